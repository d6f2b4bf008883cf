# Ruby's googleauth as Debian has it: ruby_google.rb STEP...
require 'json'
require 'googleauth'

$stdout.sync = true
SCOPE = 'https://www.googleapis.com/auth/cloud-platform'.freeze

def credentials
  @credentials ||= Google::Auth.get_application_default([SCOPE])
end

# As before each call: what is there, if the library takes it for good.
def token
  credentials.apply({})[:authorization].delete_prefix('Bearer ')
end

FOUND = {
  'detect' => -> { credentials.is_a?(Google::Auth::GCECredentials) },
  'token' => method(:token), 'use' => method(:token), 'again' => method(:token),
  'refresh' => lambda {
    credentials.refresh!
    token
  },
  'api' => lambda {
    answer = Faraday.get('https://storage.googleapis.com/storage/v1/b/bucket/o/object?alt=media', nil, credentials.apply({}))
    raise "status #{answer.status}" unless answer.success?

    answer.body
  },
}.freeze

ARGV.each do |step|
  name, wait = step.split('@')
  sleep(wait.to_f) if wait
  begin
    said = { value: FOUND.fetch(name).call }
  rescue StandardError => e
    warn e.full_message
    said = { error: "#{e.class}: #{e.message}"[0, 300] }
  end
  puts JSON.generate({ step: step }.merge(said))
  $stdin.gets
end
