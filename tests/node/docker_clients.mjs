// dockerode's and Testcontainers' calls that stream: most of them send no `Upgrade`. Prints one JSON object, so
// that a run through kfp-creds can be compared with one at the engine itself.
//
//   DOCKER_HOST=unix://… node docker_clients.mjs IMAGE [NETWORK-MODE]
import { createRequire } from "node:module";
import { PassThrough } from "node:stream";

const require = createRequire(`${process.env.KFP_CREDS_NODE_CLIENTS}/package.json`);
const Docker = require("dockerode");
const [image, mode] = process.argv.slice(2);
const docker = new Docker({ socketPath: process.env.DOCKER_HOST.replace("unix://", "") });
const host = mode ? { NetworkMode: mode } : {};
const results = {};

const read = (stream) =>
  new Promise((done, fail) => {
    const chunks = [];
    stream.on("data", (chunk) => chunks.push(chunk));
    stream.on("end", () => done(Buffer.concat(chunks).toString()));
    stream.on("error", fail);
  });

// Output of a stream with frames, without them.
const unframed = (stream) => {
  const [out, err] = [new PassThrough(), new PassThrough()];
  docker.modem.demuxStream(stream, out, err);
  stream.on("end", () => [out, err].forEach((end) => end.end()));
  return Promise.all([read(out), read(err)]);
};

async function step(name, work) {
  try {
    results[name] = await work();
  } catch (error) {
    results[name] = `failed: ${error.message}`;
  }
}

const sleeper = await docker.createContainer({ Image: image, Cmd: ["sleep", "120"], HostConfig: host });
await sleeper.start();
const exec = (Cmd, more = {}) => sleeper.exec({ Cmd, AttachStdout: true, AttachStderr: true, ...more });

await step("exec", async () => {
  const made = await exec(["sh", "-c", "echo out; echo err >&2; exit 3"]);
  const said = await unframed(await made.start({}));
  return [said, (await made.inspect()).ExitCode];
});
await step("exec with a terminal", async () => read(await (await exec(["echo", "hi"], { Tty: true })).start({ Tty: true })));
await step("exec as Testcontainers starts it", async () =>
  read(await (await exec(["echo", "hi"], { Tty: true, AttachStdin: true })).start({ stdin: true, Detach: false, Tty: true })));
await step("exec with stdin and an upgrade", async () => {
  const made = await exec(["head", "-c", "5"], { AttachStdin: true });
  const stream = await made.start({ hijack: true, stdin: true });
  stream.write("typed");
  return unframed(stream);
});
await step("exec detached", async () => {
  const made = await exec(["true"]);
  const stream = await made.start({ Detach: true });
  return read(stream);
});
await sleeper.remove({ force: true });

for (const hijack of [false, true]) {
  await step(`attach, hijack ${hijack}`, async () => {
    const made = await docker.createContainer({ Image: image, Cmd: ["sh", "-c", "echo one; sleep 0.3; echo two"], HostConfig: host });
    const stream = await made.attach({ stream: true, stdout: true, stderr: true, hijack });
    const said = unframed(stream);
    await made.start();
    const { StatusCode } = await made.wait();
    const all = await said;
    await made.remove();
    return [all, StatusCode];
  });
}
await step("run", async () => {
  const out = new PassThrough();
  const said = read(out);
  const [{ StatusCode }, made] = await docker.run(image, ["sh", "-c", "echo ran; exit 4"], out, { Tty: true, HostConfig: host });
  out.end();
  await made.remove();
  return [await said, StatusCode];
});
if (!mode) {
  process.env.TESTCONTAINERS_RYUK_DISABLED = "true";
  const { GenericContainer } = require("testcontainers");
  await step("testcontainers", async () => {
    const started = await new GenericContainer(image)
      .withCommand(["python3", "-m", "http.server", "8000"])
      .withExposedPorts(8000)
      .withStartupTimeout(60000)
      .start();
    const { output, exitCode } = await started.exec(["sh", "-c", "echo inside; exit 5"]);
    await started.stop();
    return [output, exitCode];
  });
}
console.log(JSON.stringify(results));
process.exit(0);
