//! The engine that the tests run against, for behaviour that differs between releases.

use std::sync::OnceLock;

use super::proxy_fixture;
use super::session::engine_socket;

/// A product and its major version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    Docker(u32),
    Podman(u32),
}

pub(crate) fn release() -> Release {
    static RELEASE: OnceLock<Release> = OnceLock::new();
    *RELEASE.get_or_init(|| {
        let told = version();
        let major = told["Version"].as_str().and_then(|version| version.split('.').next()?.parse().ok());
        let major = major.unwrap_or_else(|| panic!("no version: {told}"));
        let podman = told["Components"][0]["Name"].as_str().is_some_and(|name| name.contains("Podman"));
        if podman { Release::Podman(major) } else { Release::Docker(major) }
    })
}

fn version() -> serde_json::Value {
    let (status, body) = proxy_fixture::call(&engine_socket(), "GET /version", "");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}
