//! The way to an upstream: one HTTP client for all sources.
//!
//! `client` sends, `request` is what is sent and a good answer to it, `fault` why there is none, `proxy` the way
//! through a proxy of the host, `clock` by whose clock a token is signed, `secure_url` where secrets may go.

pub mod client;
pub mod proxy;

pub(crate) mod clock;
pub(crate) mod fault;
pub(crate) mod request;
pub(crate) mod secure_url;
