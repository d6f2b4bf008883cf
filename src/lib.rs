//! `kfp-creds` puts a GCE-compatible metadata server on a Docker network, attaches every container of a
//! locally run Kubeflow pipeline to it before its first instruction, and mints short-lived tokens on the
//! host. No key file and no socket enters a container. The only added mounts are those that the operator
//! requests and the Cloud Storage objects that a task's inputs name.
//!
//! # The map
//!
//! A room is a file, or a folder with its files, listed at the top of its `mod.rs`. It imports only from the
//! storeys below its own (`tests/it/architecture.rs`), and files do not import each other in circles
//! (`tests/it/circles.rs`).
//!
//! | storey | room | |
//! |---|---|---|
//! | 7 | `main` | parses, dispatches, exits |
//! | | `bin` | the relay as a program of its own, built with the feature `relay` alone |
//! | | `cli` | the command line |
//! | | `lib` | this map |
//! | 6 | `app` | one file for each command, and the parts of a session that need no engine; the only wiring |
//! | | `session` | a session's part of the engine: networks, relays, and the remains of dead sessions |
//! | 5 | `lifecycle` | attaches, confirms and cuts off containers |
//! | | `server` | from request to answer |
//! | 4 | `docker` | the engine: networks, images, events, relay; `docker/proxy`, the API proxy |
//! | | `metadata` | the metadata protocol as a pure function |
//! | | `mint` | from request to token: cache, one call for many callers |
//! | | `relay` | the part that runs inside the container network, in this program or in one of its own |
//! | 3 | `config` | flags over environment over file |
//! | 2 | `readiness` | where the relay listens |
//! | | `loopback` | paths of containers on the host's network |
//! | | `registry` | which address has which lease |
//! | | `source` | where tokens come from |
//! | 1 | `certificates` | of the TLS listener: made, written, removed |
//! | | `guard` | finds keys in files, archives, images and variables |
//! | | `inputs` | which objects of Cloud Storage a task names |
//! | | `kfp` | recognises tasks of Kubeflow pipelines |
//! | | `mounts` | mounts beyond those of the create request |
//! | | `console` | every line that a person reads |
//! | | `policy` | which container gets which identity |
//! | | `record` | audit log and metrics |
//! | 0 | `cloud` | what an identity may have on AWS and Azure |
//! | | `failure` | how a command ends |
//! | | `json` | lists and objects in JSON that others wrote |
//! | | `linux` | functions that only Linux has |
//! | | `process` | tasks and time limits |
//! | | `quote` | how input is quoted in messages |
//! | | `secret` | secrets, exposed by one method |
//! | | `token` | tokens, deadlines, scopes |
//! | | `unparsable` | adds our headers to hyper's own refusals |
//! | | `workload` | container, task, identity, grant |
//!
//! Inputs in Cloud Storage: `inputs.rs` finds the objects that a task names (storey 1);
//! `docker/proxy/inputs.rs` requests and mounts them; `app/inputs.rs` fetches them, `app/cache.rs` keeps
//! them; `source/storage/mod.rs` is the client.
//!
//! # One container, one request
//!
//! `POST /containers/create` reaches [`docker::proxy`], which checks it, creates the container and registers
//! its exit code; then [`lifecycle::Lifecycle`] attaches it at an address of the session and admits a
//! [`registry::Lease`]; only now is the create answered. The container requests a token from the [`relay`];
//! the request comes through the tunnel to [`server::Server`], which finds the lease by the caller's address,
//! gets the kind of answer from [`metadata::step`] and the token from [`mint::Mint`], and checks the lease
//! once more before the bytes go out. When the container dies its lease is cut off; nothing is minted for
//! that address until another lease is admitted.
//!
//! "Decision N" in a comment refers to a number in `docs/ARCHITECTURE.md`.
//!
//! # Words
//!
//! One word for one idea, in code, messages and documents:
//!
//! * *source*: where host credentials come from; *identity*: a named entry of the config; *rule*: which
//!   container gets which identity; *grant*: what one container may have; *mint*: make a token, or reuse one.
//! * *upstream*: a server that tokens are requested from, such as Google's token endpoint. *flight*: one call
//!   upstream, shared by every caller that needs its result. *floor*: the remaining life below which a token is
//!   not served.
//! * *cloud*: Google, AWS or Azure. *service*: one of a cloud's interfaces for credentials, such as IMDSv2 or
//!   App Service (`metadata::Service`). *principal*: the account of the host, or of an identity, in a cloud.
//!   *AWS session*: temporary AWS credentials; *session* alone is always one of ours. *resource*: what a token
//!   of Azure is for. *tenant*: a Microsoft Entra directory.
//! * *lease*: a live grant at an address, for one *epoch*: one start of one container. A lease is *admitted*,
//!   and *confirmed* once the container was seen running at the address. In the code a lease is *cut off*,
//!   whatever the cause: its container ended, a person or the session ended it, or its address was taken.
//!   What a person reads says *ended* for a container that ended by itself, and *cut off* only for what a
//!   person did.
//! * *create*: the Docker API request that makes a container. The proxy *judges* it: the container is
//!   *attached*, *passes* unchanged, or is *refused*. *input*: an object in Cloud Storage that a task names.
//!   *key*, in `guard`: any credential that must not enter a container; a *find* is a key with its place.
//! * *attach*: give a container an address of the session; *detach*: disconnect it from our network. *relay*:
//!   the container that answers at the magic address. *cell*: a network of one container and the relay.
//!   *segment*: the bridge on which containers have link-local addresses; *second network*: ours, beside a
//!   container's own. *stranger*: a container that was connected to a network of ours past the proxy.
//!   *listening*: where the relay accepts requests.
//! * *session*: one `run` or `serve` (`app::session`); the module `session` has its part of the engine.
//!   *metadata network*, only in the code: one of a session's networks with its relay. *control server*:
//!   answers about a session. *console*: what a person reads.
//! * *capability*: the secret first segment of a path on loopback; in `docker::proxy`, Linux's capabilities.
//!   *stand-in*: the value that a container sees where the config and the cloud have none.
//! * *finding*, *fix*: the result of a probe of `check`, and the command that repairs it. *remedy*: what an
//!   error knows about its fix.
//! * *room*: a file or folder of `src`; *storey*: rooms that import only from below.

#[cfg(feature = "host")]
pub mod app;
#[cfg(feature = "host")]
pub mod certificates;
#[cfg(feature = "host")]
pub mod cli;
pub mod cloud;
#[cfg(feature = "host")]
pub mod config;
#[cfg(feature = "host")]
pub mod console;
#[cfg(feature = "host")]
pub mod docker;
#[cfg(feature = "host")]
pub mod failure;
#[cfg(feature = "host")]
pub mod guard;
#[cfg(feature = "host")]
pub mod inputs;
#[cfg(feature = "host")]
pub mod json;
#[cfg(feature = "host")]
pub mod kfp;
#[cfg(feature = "host")]
pub mod lifecycle;
pub mod linux;
#[cfg(feature = "host")]
pub mod loopback;
#[cfg(feature = "host")]
pub mod metadata;
#[cfg(feature = "host")]
pub mod mint;
#[cfg(feature = "host")]
pub mod mounts;
#[cfg(feature = "host")]
pub mod policy;
pub mod process;
#[cfg(feature = "host")]
pub mod quote;
#[cfg(feature = "host")]
pub mod readiness;
#[cfg(feature = "host")]
pub mod record;
#[cfg(feature = "host")]
pub mod registry;
pub mod relay;
#[cfg(feature = "host")]
pub mod secret;
#[cfg(feature = "host")]
pub mod server;
#[cfg(feature = "host")]
pub mod session;
#[cfg(feature = "host")]
pub mod source;
#[cfg(feature = "host")]
pub mod token;
pub mod unparsable;
#[cfg(feature = "host")]
pub mod workload;
