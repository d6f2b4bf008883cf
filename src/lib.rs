//! `kfp-creds` puts a GCE-compatible metadata server on a Docker network, attaches every container of a
//! locally run Kubeflow pipeline to it before its first instruction, and mints short-lived tokens on the
//! host. No key file and no socket enters a container. What is mounted is what the operator asks for, and what
//! a task's inputs name in Cloud Storage.
//!
//! # The map
//!
//! A room imports only from the storeys below its own (`tests/it/architecture.rs` holds it).
//!
//! | storey | rooms |
//! |---|---|
//! | 6 | `main.rs` parse, dispatch, exit code; `cli.rs` the command line, `cli/plugin.rs` as docker calls it; `lib.rs` this map |
//! | 5 | `app`: `app/run.rs`, `app/serve.rs`, `app/check.rs` one file a command, `app/looks.rs` what check looks at, `app/mends.rs` what mends a token; `app/status.rs`, `app/cut_off.rs`, `app/explain.rs`; `app/scan.rs`, `app/scan/said.rs` what it came to; `app/conformance.rs` any server against the protocol, `app/conformance/case.rs`, `app/conformance/wire.rs`; `app/reach.rs` the engine; `app/reload.rs` follows the config file; `app/house.rs` builds and ends a session, `app/proxied.rs` what its proxy is given; `app/control.rs` answers about it, `app/sessions.rs` asks, `app/page.rs` shows it; `app/kill_switch.rs` ends an account; `app/host.rs` its engine-free half; `app/host_loopback.rs` containers on the host's network; `app/folder.rs` where sockets are, `app/name.rs` under which name, `app/activation.rs` whose a service manager opened; `app/ready.rs` what is told when all is ready, `app/health.rs` whether it still serves; `app/child.rs` the command under `run`, `app/processes.rs` the server for processes; `session.rs` the session as the engine sees it: network, relay; `session/sweep.rs` what dead ones left |
//! | 4 | `server` request to answer; `server/tokens.rs` what it may have, `server/rates.rs`, `server/views.rs` what a caller sees; `server/jwks.rs` the offline keys; `server/caller.rs` who asks; `server/entrance.rs` on loopback; `server/refusals.rs` why there is no token, on the terminal; `lifecycle` attach, confirm, cut off; `lifecycle/by_hand.rs` cut off by a person, `lifecycle/addresses.rs` the pool, `lifecycle/events.rs` what the engine tells, `lifecycle/exit.rs` the end of a container, `lifecycle/joined.rs` who shares a lease, `lifecycle/end.rs` the end |
//! | 3 | `metadata` the protocol as a pure step: `metadata/tree.rs` every path, `metadata/target.rs` what is asked, `metadata/render.rs` forms, `metadata/reply.rs` bytes, `metadata/view.rs` values; `mint.rs` (request) to token, one flight per key, `mint/shelf.rs` its cache; `docker` the engine: `docker/upstream.rs` the way to it, `docker/advice.rs` what its words mean, `docker/call.rs` calls read as JSON, `docker/podman.rs` where Podman is another, `docker/network.rs`, `docker/members.rs` who is on it, `docker/cells.rs` a network for each container, `docker/image.rs`, `docker/relay.rs`, `docker/events.rs`, and the API proxy (below); `relay.rs` the part inside the container network, `relay/cells.rs` on many networks, `relay/links.rs` which there are |
//! | 2 | `config` flags over environment over file: `config/keys.rs` every key, `config/read.rs`, `config/find.rs` and trust, `config/check.rs` meaning, `config/forms.rs` what values look like, `config/rules.rs`, `config/boundary.rs`, `config/provider.rs`, `config/seeing.rs`, `config/mounts.rs`, `config/guarding.rs` where keys are likeliest, `config/reference.rs` and `config/schema.rs` for readers and editors, `config/summary.rs` what it comes to, `config/shown.rs` who set what, `config/engine.rs` which engine, `config/endpoint.rs` where it answers, `config/proxies.rs` what docker's config says of proxies; `registry.rs` which address has which lease; `doors.rs` where the relay listens; `loopback.rs` paths of containers on the host's network; `source` where tokens come from: `source/google.rs` where credentials are found, `source/file.rs` credential files, `source/document.rs` their JSON, `source/pem.rs` keys in it, `source/credential.rs` their kinds, `source/user.rs`, `source/yup.rs` service-account keys, `source/assertion.rs` what they sign, `source/workforce.rs`, `source/impersonate.rs`, `source/impersonated.rs` files of it, `source/disable.rs` the kill switch, `source/boundary.rs` narrowed tokens, `source/machine.rs` the host's metadata server, `source/external` federation: `source/external/described.rs` files of it, `source/external/configured.rs` CI jobs, `source/external/subject.rs` what is exchanged, `source/external/executable.rs`, `source/external/response.rs`, `source/external/aws.rs`, `source/external/aws_keys.rs`, `source/external/certificate.rs`; `source/exec.rs` commands that bring tokens, `source/command.rs` runs them, `source/variables.rs`, `source/stamp.rs`, `source/address.rs` where secrets may go, `source/endpoints.rs` where Google is, `source/proxied.rs` the way out, `source/call.rs` a request, `source/transport.rs` how yup-oauth2 sends one, `source/clock.rs` by whose clock is signed, `source/offline.rs`, `source/upstream.rs` the HTTP client, `source/flight.rs` one call for many callers, `source/gcloud.rs`, `source/jwt.rs` |
//! | 1 | `provided.rs` sources that the config sets up; `kfp.rs` recognises tasks; `kfp/evidence.rs` by what a session has seen, `kfp/compiled.rs` by compiled pipelines, `kfp/pipeline.rs` reads these, `kfp/yaml.rs` their form; `mounts.rs` what is mounted besides what is asked for; `policy.rs` which container gets which identity; `guard` is there a key in it: `guard/content.rs` by content, `guard/pem.rs`, `guard/binary.rs` DER and key stores, `guard/fields.rs` names and values in text, `guard/rules.rs` what they come to, `guard/logins.rs` files of known tools, `guard/encoded.rs` base64 and escapes, `guard/text.rs` what values look like, `guard/published.rs` keys that everybody has, `guard/work.rs` steps, `guard/environment.rs` variables, `guard/excepted.rs` what may hold keys by its name, `guard/walk.rs` and `guard/tree.rs` directories under a budget, `guard/seen.rs` what that comes to, `guard/reading.rs` a file of one, `guard/memory.rs` earlier looks, `guard/likely.rs` names that come first, `guard/stream.rs` any file as it passes: `guard/judge.rs`, `guard/archive.rs` tar, `guard/zip.rs`, `guard/unpack.rs` and `guard/zstd.rs` decompression, `guard/found.rs` what came of it; `guard/image.rs` whole images; `observe.rs` every line a person reads; `record.rs` what happened: `record/audit.rs` the log, `record/audit/file.rs` its files, `record/metrics.rs` the counters, `record/quiet.rs` repetitions |
//! | 0 | `secret.rs` the one door; `token.rs` deadlines, tokens, `token/scopes.rs` what they may be used for; `workload.rs` container, task, identity, grant; `process.rs` tasks and limits; `quote.rs` how input is quoted in messages; `failure.rs` how a command ends; `linux.rs` what other systems do not have; `unparsable.rs` our headers on hyper's own refusals |
//!
//! The proxy: `docker/proxy` listens; `docker/proxy/path.rs` and `docker/proxy/json.rs` read strictly;
//! `docker/proxy/judge.rs` and `docker/proxy/confine.rs` judge a create, `docker/proxy/wiring.rs` puts in what it needs, `docker/proxy/join.rs` lets containers share a network, `docker/proxy/entrypoint.rs` keeps a task's command its own; `docker/proxy/create.rs` carries it
//! out; `docker/proxy/wait.rs` keeps exit codes, `docker/proxy/logs.rs` (with `docker/proxy/frames.rs`) the output of auto-removed
//! containers; `docker/proxy/gate.rs` and `docker/proxy/reserved.rs` guard what is leased and what is ours, `docker/proxy/hidden.rs` leaves it out of lists;
//! `docker/proxy/guard.rs`, `docker/proxy/texts.rs`, `docker/proxy/look.rs`, `docker/proxy/upload.rs`, `docker/proxy/images.rs`,
//! `docker/proxy/volumes.rs` and `docker/proxy/swarm.rs` keep keys out, and `docker/proxy/builds` out of BuildKit's contexts:
//! `docker/proxy/builds/control.rs` what is asked for, `docker/proxy/builds/calls.rs` its calls, `docker/proxy/builds/answer.rs` their answers, `docker/proxy/builds/context.rs`
//! and `docker/proxy/builds/upload.rs` what they hold, `docker/proxy/builds/message.rs` their form;
//! `docker/proxy/proxies.rs` adds docker's own proxies, `docker/proxy/commit.rs` takes out what we added; `docker/proxy/rulebook.rs` has the rules that stand, `docker/proxy/writable.rs` what
//! containers could write, `docker/proxy/preview.rs` what would be judged without an engine; `docker/proxy/room.rs` looks things up; `docker/proxy/podman.rs` what Podman alone would read in a create;
//! `docker/proxy/wire.rs` moves bytes.
//!
//! Inputs in Cloud Storage: `inputs.rs` which objects a task names (storey 1); `docker/proxy/inputs.rs` asks for them and mounts
//! them; `app/inputs.rs` fetches them, `app/cache.rs` keeps them; `source/storage.rs` is the client, `source/storage/crc32c.rs` its sums.
//!
//! # One container, one request
//!
//! `POST /containers/create` reaches [`docker::proxy`]: judged, created, its exit code registered, then
//! [`lifecycle::Lifecycle`] connects it at an address of ours and admits a [`registry::Lease`]; only now is
//! the create answered. The container asks the [`relay`] for a token; the request comes through the tunnel
//! to [`server::Server`], which finds the lease by the caller's address, asks [`metadata::step`] what is
//! wanted and [`mint::Mint`] for the token, and looks at the lease once more before the bytes go out. When
//! the container dies the lease is cut off; nothing is minted for that address until another is admitted.
//!
//! "Decision N" in a comment is a number of `docs/ARCHITECTURE.md`.
//!
//! # Words
//!
//! *source*: where host credentials come from. *identity*: a named entry of the config. *rule*: which
//! container gets which identity. *grant*: what one container may have. *lease*: a live grant at an address.
//! *mint*: make or reuse a token. *attach*, *detach*: a container and our network. *admit*, *cut off*: a
//! lease. *relay*: the container that answers at the magic address. *cell*: a network of one container and the
//! relay. *session*: one `run` or `serve`.

pub mod app;
pub mod cli;
pub mod config;
pub mod docker;
pub mod doors;
pub mod failure;
pub mod guard;
pub mod inputs;
pub mod kfp;
pub mod lifecycle;
pub mod linux;
pub mod loopback;
pub mod metadata;
pub mod mint;
pub mod mounts;
pub mod observe;
pub mod policy;
pub mod process;
pub mod provided;
pub mod quote;
pub mod record;
pub mod registry;
pub mod relay;
pub mod secret;
pub mod server;
pub mod session;
pub mod source;
pub mod token;
pub mod unparsable;
pub mod workload;
