// Clients of AWS and Azure for Node, one of them by name: node_clouds.mjs CLIENT STEP... (as python_clouds.py)
import { randomUUID } from 'node:crypto';
import { readSync } from 'node:fs';
import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';

// Where setup put the packages.
const require = createRequire(process.env.NODE_PACKAGES + '/');
const [library, ...steps] = process.argv.slice(2);
// Each process has an object of its own.
const [BUCKET, NAME, CONTENT] = ['data', `object-${randomUUID()}`, 'written and read'];

function aws() {
  const { S3Client, PutObjectCommand, GetObjectCommand } = require('@aws-sdk/client-s3');
  const { STSClient, GetCallerIdentityCommand } = require('@aws-sdk/client-sts');
  let sts;
  const identity = async () => (await (sts ??= new STSClient({})).send(new GetCallerIdentityCommand({}))).Arn;
  return {
    identity, again: identity, use: identity,
    region: async () => (sts ??= new STSClient({})).config.region(),
    refresh: async () => {
      await sts.config.credentials({ forceRefresh: true });
      return identity();
    },
    api: async () => {
      const s3 = new S3Client({ forcePathStyle: true });
      await s3.send(new PutObjectCommand({ Bucket: BUCKET, Key: NAME, Body: CONTENT }));
      return (await s3.send(new GetObjectCommand({ Bucket: BUCKET, Key: NAME }))).Body.transformToString();
    },
  };
}

function azure() {
  const { DefaultAzureCredential } = require('@azure/identity');
  const { BlobServiceClient } = require('@azure/storage-blob');
  let kept;
  const made = () => (kept ??= new DefaultAzureCredential());
  const identity = async () => (await made().getToken('https://storage.azure.com/.default')).token;
  return {
    identity, again: identity, use: identity,
    api: async () => {
      const blob = new BlobServiceClient(process.env.BLOBS, made()).getContainerClient(BUCKET).getBlockBlobClient(NAME);
      await blob.upload(CONTENT, CONTENT.length);
      return (await blob.downloadToBuffer()).toString();
    },
  };
}

const found = { aws, azure }[library]();
for (const step of steps) {
  const [name, wait] = step.split('@');
  if (wait) await sleep(wait * 1000);
  let said;
  try {
    said = { value: await found[name]() };
  } catch (error) {
    console.error(error.stack);
    said = { error: `${error.name}: ${error.message}`.replaceAll('\n', ' ').slice(0, 4000) };
  }
  console.log(JSON.stringify({ step, ...said }));
  readSync(0, Buffer.alloc(1));
}
process.exit(0);
