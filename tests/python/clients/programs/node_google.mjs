// Node's libraries, one of them by name: node_google.mjs LIBRARY STEP...
import { readSync } from 'node:fs';
import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';

// Where setup put the packages.
const require = createRequire(process.env.NODE_PACKAGES + '/');
const [library, ...steps] = process.argv.slice(2);
const URL = 'https://storage.googleapis.com/storage/v1/b/bucket/o/object?alt=media';

function auth(name) {
  const { GoogleAuth } = require(name);
  const auth = new GoogleAuth({ scopes: ['https://www.googleapis.com/auth/cloud-platform'] });
  let client;
  const made = async () => (client ??= await auth.getClient());
  const token = async () => (await (await made()).getAccessToken()).token;
  return {
    detect: async () => (await made()).constructor.name === 'Compute',
    project: () => auth.getProjectId(),
    // Its clients have one of their own, of their options; this asks.
    universe: () => auth.getUniverseDomainFromMetadataServer(),
    email: async () => (await auth.getCredentials()).client_email,
    token, again: token, use: token,
    refresh: async () => {
      (await made()).credentials.expiry_date = 1; // as an hour later
      return token();
    },
    identity: async () => (await auth.getIdTokenClient(process.env.AUDIENCE)).idTokenProvider.fetchIdToken(process.env.AUDIENCE),
    api: async () => {
      const { data } = await (await made()).request({ url: URL, responseType: 'text' });
      return data;
    },
  };
}

function storage() {
  const { Storage } = require('@google-cloud/storage');
  const storage = new Storage();
  const api = async () => (await storage.bucket('bucket').file('object').download())[0].toString();
  return {
    project: () => storage.getProjectId(),
    api, 'api-again': api, 'api-use': api,
    'api-refresh': async () => {
      (await storage.authClient.getClient()).credentials.expiry_date = 1;
      return api();
    },
  };
}

const found = library === 'storage' ? storage() : auth(library);
for (const step of steps) {
  const [name, wait] = step.split('@');
  if (wait) await sleep(wait * 1000);
  let said;
  try {
    said = { value: await found[name]() };
  } catch (error) {
    console.error(error.stack);
    said = { error: String(error.message).slice(0, 300) };
  }
  console.log(JSON.stringify({ step, ...said }));
  readSync(0, Buffer.alloc(1));
}
process.exit(0);
