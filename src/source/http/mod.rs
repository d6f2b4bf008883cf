//! HTTP to upstreams: one client for all sources.
//!
//! `client` sends requests; `request` has requests and successful answers, `fault` failures; `proxy` connects
//! through the host's proxy; `secure_url` checks where secrets may be sent.

pub mod client;
pub mod proxy;

pub(crate) mod fault;
pub(crate) mod request;
pub(crate) mod secure_url;
