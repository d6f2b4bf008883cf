//! The bytes of the metadata protocol at `step()`, and the table of its keys.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Method};
use kfp_creds::metadata::{self, Entered, Reply, RequestHead, ResponseFormat, Service, Step, View};
use kfp_creds::server::views::Views;
use kfp_creds::source::Principal;
use kfp_creds::token::{Now, OF_GOOGLE_CLOUD, Scopes};
use kfp_creds::workload::Identity;
use serde_json::Value;

use crate::golden_clouds;
use crate::support::golden::{self, Case, Head};

fn all_are_answered(folder: &str, least: usize) {
    let cases = golden::cases_in(folder);
    assert!(cases.len() >= least, "only {} cases", cases.len());
    let failed: Vec<String> = cases.iter().filter_map(differences).collect();
    assert!(failed.is_empty(), "{} of {} cases differ\n\n{}", failed.len(), cases.len(), failed.join("\n"));
}

#[test]
fn every_case_is_answered_to_the_byte() {
    all_are_answered("metadata", 180);
}

#[test]
fn every_case_of_aws_is_answered_to_the_byte() {
    all_are_answered("aws", 90);
}

#[test]
fn every_case_of_azure_is_answered_to_the_byte() {
    all_are_answered("azure", 60);
}

#[test]
fn without_google_nothing_looks_like_google() {
    all_are_answered("absent", 6);
}

/// A server without a cloud answers every request for it as if the cloud did not exist.
#[test]
fn an_absent_cloud_answers_alike_on_every_path() {
    for folder in ["aws", "azure", "metadata"] {
        for case in golden::cases_in(folder) {
            let (head, mut view) = (case.head(), golden::view());
            (view.google, view.aws, view.azure) = (false, None, None);
            let Step::Reply(reply) = step_at(&head, case.entered(), golden::now(), &view) else {
                panic!("{}: no reply", case.name)
            };
            let status = match Service::of(&head.target) {
                Service::Google => 404,
                Service::AwsContainer | Service::AwsImds => 403,
                Service::AppService | Service::AzureImds => 400,
            };
            assert_eq!(reply.status, status, "{folder}/{}", case.name);
            let names: Vec<_> = metadata::headers(&reply).keys().map(|name| name.to_string()).collect();
            assert_eq!(names, ["content-type", "content-length"], "{folder}/{}", case.name);
        }
    }
}

/// A case that needs a failing mint, an endless wait or an odd request line is marked, so that the runners
/// over a wire know what they can send.
#[test]
fn cases_that_no_listener_can_run_say_so() {
    for case in golden::cases() {
        let head = case.head();
        let unsendable = (case.given.is_some() && case.server.is_none())
            || case.waits.as_deref().is_some_and(|limit| limit != "1s")
            || !(head.target.starts_with('/') || head.target.starts_with("http://"))
            || head.target.contains('<');
        assert_eq!(case.step_only.is_some(), unsendable, "{}: {:?}", case.name, case.step_only);
    }
}

fn differences(case: &Case) -> Option<String> {
    let (asks, waits, reply) = run(case, &case.view(), golden::now());
    let mut got: Vec<String> = asks.into_iter().chain(waits).collect();
    let mut want: Vec<String> = case.asks.iter().chain(&case.waits).cloned().collect();
    got.push(format!("HTTP/1.1 {}", reply.status.as_u16()));
    want.push(format!("HTTP/1.1 {}", case.status));
    let line = |name: &str, value: &str| format!("{}: {value}", name.to_ascii_lowercase());
    got.extend(
        metadata::headers(&reply)
            .iter()
            .map(|(name, value)| line(name.as_str(), &String::from_utf8_lossy(value.as_bytes()))),
    );
    want.extend(case.headers.iter().map(|(name, value)| line(name, value)));
    let text = |body: &[u8]| {
        body.split(|b| *b == b'\n').map(|l| format!("{:?}", String::from_utf8_lossy(l))).collect()
    };
    let (got_body, want_body): (Vec<String>, Vec<String>) =
        (text(&reply.body.into_bytes()), text(&case.body));
    got.extend(got_body);
    want.extend(want_body);
    if got == want {
        return None;
    }
    let mut report = format!("{}.http: {}\n", case.name, case.why);
    for row in 0..got.len().max(want.len()) {
        match (want.get(row), got.get(row)) {
            (Some(want), Some(got)) if want == got => writeln!(report, "    {want}").unwrap(),
            (want, got) => {
                want.iter().for_each(|want| writeln!(report, "  - {want}").unwrap());
                got.iter().for_each(|got| writeln!(report, "  + {got}").unwrap());
            }
        }
    }
    Some(report)
}

/// What the step asks for, in the words of the case files, and the resulting reply.
fn run(case: &Case, view: &View, now: Now) -> (Option<String>, Option<String>, Reply) {
    let head = case.head();
    let minted = |reply: Reply| match &case.given {
        Some((kind, why)) => metadata::failure_reply(Service::of(&head.target), *kind, why).after(case.after),
        None => reply,
    };
    match step_at(&head, case.entered(), now, view) {
        Step::Reply(reply) => (None, None, reply),
        Step::AwsSession(ask) => {
            let form = if ask.service == Service::AwsImds { "imds" } else { "container" };
            let reply = metadata::aws_session_reply(&ask, &golden::aws_session(now), now);
            (Some(format!("aws-session {form}")), None, minted(reply))
        }
        Step::AzureToken(ask) => {
            let form = if ask.service == Service::AzureImds { "imds" } else { "app-service" };
            let reply = metadata::azure_token_reply(&ask, &golden::azure_token(now), now);
            (Some(format!("azure-token {form} {}", ask.resource)), None, minted(reply))
        }
        Step::Access(ask) => {
            let scopes = ask.scopes.as_ref().map_or_else(|| "-".to_string(), comma);
            let form = if ask.form == ResponseFormat::Json { "json" } else { "text" };
            let exactly = if ask.enforced { " exactly" } else { "" };
            let asks = format!("access {} scopes={scopes} form={form}{exactly}", ask.account.email);
            (Some(asks), None, minted(metadata::access_reply(&ask, &golden::access_token(now), now)))
        }
        Step::Identity(ask) => {
            let asks = format!(
                "identity {} audience={} full={} licenses={}",
                ask.account.email, ask.audience, ask.full, ask.licenses
            );
            (Some(asks), None, minted(metadata::identity_reply(&golden::identity_token(now))))
        }
        Step::Wait(wait) => {
            let limit =
                wait.limit.map_or_else(|| "until the caller leaves".into(), |limit| format!("{limit:?}"));
            (None, Some(limit), wait.then)
        }
    }
}

fn comma(scopes: &Scopes) -> String {
    scopes.iter().collect::<Vec<_>>().join(",")
}

fn step(head: &Head, view: &View) -> Step {
    step_at(head, Entered::Address, Now::read(), view)
}

fn step_at(head: &Head, entered: Entered<'_>, now: Now, view: &View) -> Step {
    let Head { method, target, host, headers } = head;
    let host = host.as_deref();
    metadata::step(&RequestHead { method, target, host, headers, entered, now }, view)
}

/// A well-behaved GET.
fn get(path: &str, view: &View) -> Step {
    let headers = HeaderMap::from_iter([(
        HeaderName::from_static("metadata-flavor"),
        HeaderValue::from_static("Google"),
    )]);
    let host = Some("metadata.google.internal".to_string());
    step(&Head { method: Method::GET, target: path.into(), host, headers }, view)
}

fn reply(path: &str, view: &View) -> Reply {
    match get(path, view) {
        Step::Reply(reply) => reply,
        other => panic!("{path}: {other:?}"),
    }
}

fn body(path: &str, view: &View) -> String {
    let reply = reply(path, view);
    assert_eq!(reply.status, 200, "{path}");
    String::from_utf8(reply.body.into_bytes().to_vec()).unwrap()
}

/// Every path under `directory` that the listings name, directories with their slash.
fn crawl(directory: &str, view: &View, found: &mut Vec<String>) {
    found.push(directory.to_string());
    if directory.ends_with("/guest-attributes/") {
        return;
    }
    for name in body(directory, view).lines() {
        let path = format!("{directory}{name}");
        if name.ends_with('/') { crawl(&path, view, found) } else { found.push(path) }
    }
}

fn paths(view: &View) -> Vec<String> {
    let mut found = Vec::new();
    crawl("/computeMetadata/v1/", view, &mut found);
    found
}

fn is_minted(path: &str) -> bool {
    path.ends_with("/token") || path.ends_with("/identity")
}

/// The values that are served if neither config nor credentials nor container set them.
fn stand_in() -> View {
    let views = Views::default();
    views.local(&Identity::default(), &Principal::default())
}

/// What sets the value of a key: keys of the config, the container, the credentials; empty if nothing does.
fn said_by(key: &str) -> &'static str {
    match key.rsplit('/').next().unwrap_or_default() {
        "attributes" => unreachable!("a directory"),
        "id" if key == "instance/id" => "the container's id",
        "name" => "the container's name",
        "device-name" => "the container's name",
        "ip" | "mac" => "the container's address",
        "hostname" => "`instance.hostname`; else made of name and project",
        "description" => "`instance.description`",
        "machine-type" => "`instance.machine_type`, `numeric_project`",
        "tags" => "`instance.tags`",
        "zone" | "region" => "`zone` or `region`, `numeric_project`",
        "numeric-project-id" | "network" => "`numeric_project`",
        "project-id" | "image" => "`project`, else the credentials",
        "universe-domain" => "the credentials",
        "email" => "the identity's `service_account`, `email`, else the credentials",
        "scopes" => "the identity's `scopes`",
        _ => "",
    }
}

/// How `/token` treats `scopes` and `enforce_scopes`.
fn scopes() -> String {
    let mut text = String::from(
        "\n## Scopes of a token\n\n\
         | query of `\u{2026}/token` | what the token has |\n| --- | --- |\n\
         | no `scopes` | all scopes of the identity |\n\
         | `scopes=a,b` | those of them that the identity has; all scopes of the identity if `cloud-platform` is among them, or if it \
         has none of them. With `strict = true`, a scope that it does not have is a 403 |\n\
         | `scopes=a,b&enforce_scopes=true` (`1`, `yes`, `y`) | exactly those, or 403 with a line that names what is missing |\n\
         | `enforce_scopes=false` (`0`, `no`, `n`) | 400 |\n\n\
         With `enforce_scopes`, a request may name scopes that the identity has. If the identity has `cloud-platform`, the request may \
         also name scopes that\nallow a part of it; next to `cloud-platform` itself, such a scope adds nothing and is left out. If the \
         credential cannot choose the scopes of its tokens\n(a person's login, gcloud, a command, the machine's own metadata server), the \
         answer is a 403 that says so; impersonate a service account with that\ncredential. The parts of `cloud-platform`, each after \
         `https://www.googleapis.com/auth/`:\n\n",
    );
    for row in OF_GOOGLE_CLOUD.chunks(6) {
        let names: Vec<String> = row.iter().map(|name| format!("`{name}`")).collect();
        writeln!(text, "{}", names.join(" ")).unwrap();
    }
    text
}

/// The whole text of `docs/reference/metadata.md`, which nobody edits by hand.
fn table(view: &View) -> String {
    let mut table = String::from(
        "# The metadata trees\n\n\
         This page lists every key that the server serves: first Google's, below `/computeMetadata/v1/`. The columns *text* and *JSON* have \
         the value\nthat a key has if nothing sets it, and *set by* says what sets it. If that is empty, the value is the same for every \
         container, because a container\nhas no disk, licence or processor that Google knows. A test compares this page with what the \
         protocol answers.\n\n\
         | key | text | JSON | set by |\n| --- | --- | --- | --- |\n",
    );
    for path in paths(view) {
        let key = path.strip_prefix("/computeMetadata/v1/").unwrap();
        let mut by = said_by(key);
        let (text, json) = match key {
            _ if key.ends_with("/token") => {
                ("minted".into(), "minted: access_token, expires_in, token_type".into())
            }
            _ if key.ends_with("/identity") => ("minted for `?audience=`".into(), String::new()),
            "instance/guest-attributes/" => ("403".into(), "{}".into()),
            _ if key.is_empty() => continue,
            _ if path.ends_with('/') => {
                if !body(&path, view).is_empty() {
                    continue;
                }
                by = if key.ends_with("attributes/") { "the config's tables of this name" } else { "" };
                (String::new(), body(&format!("{path}?recursive=true"), view))
            }
            _ => (body(&format!("{path}?alt=text"), view), body(&format!("{path}?alt=json"), view)),
        };
        let cell = |value: &str| match value.trim_end().replace('\n', " ⏎ ") {
            empty if empty.is_empty() => String::new(),
            word if word.starts_with("minted") || word == "403" => word,
            value => format!("`{value}`"),
        };
        writeln!(table, "| `{key}` | {} | {} | {by} |", cell(&text), cell(&json)).unwrap();
    }
    table.push_str(
        "\n`universe/universe_domain` is served, but not listed. In a recursive JSON answer, names are camelCase except \
         e-mail addresses and the keys of\nattributes; it never contains `token` and `identity`.\n",
    );
    table + &scopes() + &golden_clouds::trees()
}

#[test]
fn the_documented_keys_are_those_that_are_served() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/metadata.md");
    let want = table(&stand_in());
    let stands = std::fs::read_to_string(&file).unwrap_or_default();
    let new = want.lines().filter(|line| !stands.lines().any(|own| own == *line));
    let old = stands.lines().filter(|line| !want.lines().any(|own| own == *line));
    let diff: Vec<String> =
        old.map(|line| format!("- {line}")).chain(new.map(|line| format!("+ {line}"))).collect();
    assert!(
        stands == want,
        "docs/reference/metadata.md is not what is served:\n{}\n\nwhole text:\n{want}",
        diff.join("\n")
    );
}

#[test]
fn listing_recursion_and_leaves_agree() {
    let view = golden::view();
    let whole: Value = serde_json::from_str(&body("/computeMetadata/v1/?recursive=true", &view)).unwrap();
    let mut leaves = 0;
    for path in paths(&view) {
        let keys: Vec<&str> = path.trim_end_matches('/').split('/').skip(3).collect();
        let pointer: String = keys.iter().enumerate().fold(String::new(), |pointer, (at, key)| {
            let custom = at > 0 && matches!(keys[at - 1], "attributes" | "service-accounts");
            pointer + "/" + &if custom { key.to_string() } else { camel(key) }
        });
        match whole.pointer(&pointer) {
            None => assert!(is_minted(&path), "{path} is listed but {pointer} is not in the recursion"),
            Some(_) if path.ends_with("/guest-attributes/") => {}
            Some(value) if path.ends_with('/') => {
                let own: Value = serde_json::from_str(&body(&format!("{path}?recursive=1"), &view)).unwrap();
                assert_eq!(&own, value, "{path}");
                assert_eq!(reply(path.trim_end_matches('/'), &view).status, 301, "{path}");
            }
            Some(value) => {
                leaves += 1;
                let own: Value = serde_json::from_str(&body(&format!("{path}?alt=json"), &view)).unwrap();
                assert_eq!(&own, value, "{path}");
                assert_eq!(reply(&format!("{path}/"), &view).status, 404, "{path}/");
                assert_eq!(reply(&format!("{path}/deeper"), &view).status, 404, "{path}/deeper");
                assert!(
                    reply(&path, &view).etag.is_some(),
                    "{path}: without an ETag, a subscriber would loop"
                );
            }
        }
    }
    assert!(leaves >= 50, "{leaves}");
}

fn camel(key: &str) -> String {
    let mut words = key.split('-');
    let first = words.next().unwrap().to_string();
    words.fold(first, |name, word| name + &word[..1].to_uppercase() + &word[1..])
}

#[test]
fn no_recursion_holds_a_minted_value_or_a_place_for_one() {
    let view = golden::view();
    let directories: Vec<String> = paths(&view).into_iter().filter(|path| path.ends_with('/')).collect();
    assert!(directories.len() > 20);
    for path in directories.iter().filter(|path| !path.ends_with("/guest-attributes/")) {
        for query in
            ["recursive=true", "recursive=True&alt=text", "recursive=on&alt=json&scopes=a&audience=b"]
        {
            let dump = body(&format!("{path}?{query}"), &view);
            for word in ["token", "identity", golden::ACCESS_TOKEN, golden::IDENTITY_TOKEN] {
                let word_found = dump.contains(&format!("\"{word}\"")) || dump.contains(&format!("/{word} "));
                assert!(!word_found && !dump.contains("ya29"), "{path}?{query}: {word}");
            }
        }
    }
}

#[test]
fn an_etag_belongs_to_the_value_and_not_to_its_form() {
    let (view, mut other) = (golden::view(), golden::view());
    other.attributes.insert("a-key".into(), "008".into());
    let etag = |path: &str, view: &View| reply(path, view).etag.unwrap();
    for path in ["instance/attributes/a-key", "instance/attributes/", "instance/", ""] {
        let path = format!("/computeMetadata/v1/{path}");
        let forms: BTreeSet<String> = ["?recursive=true", "?recursive=true&alt=text"]
            .map(|query| etag(&format!("{path}{query}"), &view))
            .into();
        assert_eq!(forms.len(), 1, "{path}");
        assert_ne!(etag(&path, &view), etag(&path, &other), "{path}");
    }
    let path = "/computeMetadata/v1/instance/id";
    assert_eq!(etag(path, &view), etag(&format!("{path}?alt=json"), &view));
    assert_eq!(etag(path, &view), etag(path, &other));
}

/// xorshift64*, with a fixed seed so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len())]
    }

    fn junk(&mut self) -> String {
        let bytes: Vec<u8> = (0..self.roll(12)).map(|_| self.roll(256) as u8).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

const STARTS: [&str; 7] = [
    "",
    "/",
    "/computeMetadata/v1/",
    "/computeMetadata/v1/instance/",
    "/latest/",
    "/v2/credentials/",
    "/msi/token",
];

/// Pieces of targets, one per blank.
const PIECES: &str = "/ // .. . % %2 %2f %2F %00 %ff %25 %2e%2e ? & = ; # + @ %40 \\ \r\n \0 é http:// HTTP://metadata \
    metadata:80 computeMetadata v1 v1beta1 0.1 instance project project-id universe service-accounts default token \
    identity disks 0 00 +0 99999999999999999999 tags guest-attributes attributes a-key recursive alt json text true \
    True wait_for_change timeout_sec -1 last_etag audience scopes enforce_scopes no format=full licenses=TRUE";

#[test]
fn no_head_makes_the_step_panic_or_the_reply_irregular() {
    let mut random = Random(0x6b66_7063_7265_6473);
    let view = golden::view();
    let pieces: Vec<&str> = PIECES.split(' ').collect();
    let (mut found, mut asked) = (0, 0);
    for round in 0..20_000 {
        let mut target = random.pick(&STARTS).to_string();
        if random.roll(4) == 0 {
            target += "service-accounts/default/token?";
        }
        for _ in 0..random.roll(10) {
            target += &if random.roll(5) == 0 { random.junk() } else { random.pick(&pieces).to_string() };
        }
        let mut headers = HeaderMap::new();
        if random.roll(20) > 0 {
            headers.insert("metadata-flavor", HeaderValue::from_static("Google"));
        }
        if random.roll(3) == 0
            && let (Ok(name), Ok(value)) = (
                HeaderName::from_bytes(random.junk().as_bytes()),
                HeaderValue::from_bytes(random.junk().as_bytes()),
            )
        {
            headers.append(name, value);
        }
        let host = match random.roll(8) {
            0 => Some(random.junk()),
            1 => None,
            2 => Some(random.pick(&["METADATA.goog.:80", "[::1]:80", "[", "]:", ":", "."]).to_string()),
            _ => Some("metadata".to_string()),
        };
        let method =
            random.pick(&["GET", "GET", "GET", "HEAD", "PUT", "DELETE", "POST", "BREW"]).parse().unwrap();
        let reply = match step(&Head { method, target: target.clone(), host, headers }, &view) {
            Step::Reply(reply) => reply,
            Step::Wait(wait) => wait.then,
            Step::Access(_) | Step::Identity(_) | Step::AwsSession(_) | Step::AzureToken(_) => {
                asked += 1;
                continue;
            }
        };
        found += usize::from(reply.status == 200);
        let sent = metadata::headers(&reply);
        let flavored =
            sent.iter().next().is_some_and(|(name, value)| name == "metadata-flavor" && value == "Google");
        assert_eq!(flavored, Service::of(&target) == Service::Google, "{round}: {target:?}");
        let located = sent.contains_key("location");
        assert_eq!(located, reply.status == 301, "{round}: {target:?}");
        assert!([200, 301, 400, 401, 403, 404, 405].contains(&reply.status.as_u16()), "{round}: {target:?}");
    }
    assert!(
        found > 200 && asked > 200,
        "no random request got past the guards: {found} found, {asked} asked"
    );
}
