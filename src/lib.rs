//! `kfp-creds` puts a GCE-compatible metadata server on a Docker network, attaches every container of a
//! locally run Kubeflow pipeline to it before its first instruction, and mints short-lived tokens on the
//! host. No key file, mount or socket enters a container.

pub mod app;
pub mod cli;
pub mod config;
pub mod docker;
pub mod failure;
pub mod kfp;
pub mod lifecycle;
pub mod metadata;
pub mod mint;
pub mod observe;
pub mod policy;
pub mod process;
pub mod registry;
pub mod relay;
pub mod secret;
pub mod server;
pub mod session;
pub mod source;
pub mod token;
pub mod workload;
