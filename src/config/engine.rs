//! Chooses the Docker engine in the order of the docker command line: the config's `engine`, `DOCKER_HOST`,
//! `DOCKER_CONTEXT`, the current context, the usual sockets.
//!
//! A local socket, TCP with TLS, or ssh; see [`Endpoint`]. Anything else is refused with a one-line error.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Environment;
use super::endpoint::Endpoint;
use super::find::digest_of;
use crate::failure::{Reason, Remedy};
use crate::quote;

/// The engine's address. A socket must exist and be one, but possibly no engine listens on it. `chosen` is
/// [`super::Config::engine`], `plain` [`super::Config::plain_tcp`]. The error is one line for the terminal.
pub fn endpoint(chosen: Option<&str>, plain: bool, env: &Environment) -> Result<Endpoint, Reason> {
    let (from, host) = match (chosen, env.variable("DOCKER_HOST")) {
        (Some(host), _) => ("engine", host),
        (None, Some(host)) => ("DOCKER_HOST", host),
        (None, None) => {
            return match context(env)? {
                Some((name, from)) => {
                    of_context(&name, &from, plain, env).map_err(|why| Reason::new(why, Remedy::LeaveContext))
                }
                None => usual(env).map(Endpoint::Unix),
            };
        }
    };
    let endpoint = read(from, host)?;
    let set = |name| env.variable(name);
    // As in docker: the first variable enables TLS with certificate checks, the second TLS without them.
    let verified = set("DOCKER_TLS_VERIFY").is_some()
        || set("DOCKER_CERT_PATH").is_some()
        || host.starts_with("https://");
    if matches!(endpoint, Endpoint::Tcp { .. }) && !verified && set("DOCKER_TLS").is_some() {
        return Err(
            format!("{from}: DOCKER_TLS checks no certificate, so anyone could answer; {SECURED}").into()
        );
    }
    let folder = set("DOCKER_CERT_PATH").map(|path| env.cwd.join(path)).or_else(|| configuration(env));
    let folder = folder.filter(|_| verified);
    let own = folder.as_ref().is_some_and(|folder| folder.join("cert.pem").exists());
    Ok(secured(from, endpoint, folder.map(|folder| (folder, own)), plain)?)
}

const SECURED: &str =
    "set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH to the folder of ca.pem, cert.pem and key.pem";

/// `from` names the place where `host` was read.
fn read(from: &str, host: &str) -> Result<Endpoint, String> {
    let endpoint = Endpoint::parse(host).map_err(|what| format!("{from}: {} {what}", quote::value(host)))?;
    match endpoint.socket() {
        Some(path) => socket_of(from, path).map(Endpoint::Unix),
        None => Ok(endpoint),
    }
}

/// TCP with the requested TLS, or without TLS if the operator's config allows it.
fn secured(
    from: &str,
    endpoint: Endpoint,
    tls: Option<(PathBuf, bool)>,
    plain: bool,
) -> Result<Endpoint, String> {
    match (&endpoint, tls) {
        (Endpoint::Tcp { .. }, Some((folder, own))) => Ok(endpoint.with_tls(&folder, own)),
        (Endpoint::Tcp { .. }, None) if plain => Ok(endpoint.plain()),
        (Endpoint::Tcp { .. }, None) => Err(format!(
            "{from}: {} is TCP without TLS, where everybody on the network path has root access to the engine; {SECURED}, \
             use ssh://, or set plain_tcp = true in kfp-creds.toml",
            endpoint.plain()
        )),
        (Endpoint::Unix(_) | Endpoint::Ssh(_), _) => Ok(endpoint),
    }
}

/// The endpoint of a docker context, with the context's own certificates.
fn of_context(name: &str, from: &str, plain: bool, env: &Environment) -> Result<Endpoint, String> {
    let from = format!("docker context {} ({from})", quote::name(name));
    let (host, unverified) = host_of(name, env)?;
    let endpoint = read(&from, &host)?;
    let folder = configuration(env).map(|home| home.join("contexts/tls"));
    let folder = folder.map(|all| all.join(digest_of(name.as_bytes())).join("docker"));
    let folder = folder.filter(|folder| folder.join("ca.pem").exists());
    if matches!(endpoint, Endpoint::Tcp { .. }) && unverified {
        return Err(format!(
            "{from}: SkipTLSVerify checks no certificate, so anyone could answer; {SECURED}"
        ));
    }
    let own = folder.as_ref().is_some_and(|folder| folder.join("cert.pem").exists());
    secured(&from, endpoint, folder.map(|folder| (folder, own)), plain)
}

fn socket_of(from: &str, path: &Path) -> Result<PathBuf, String> {
    match look(path) {
        SocketState::Socket => Ok(path.into()),
        SocketState::Missing => {
            Err(format!("{from}: {}: no such socket; is the engine running?", quote::path(path)))
        }
        SocketState::Other(what) => Err(format!("{from}: {}: {what}", quote::path(path))),
    }
}

enum SocketState {
    Socket,
    Missing,
    Other(String),
}

fn look(path: &Path) -> SocketState {
    match fs::metadata(path) {
        Ok(about) if about.file_type().is_socket() => SocketState::Socket,
        Ok(_) => SocketState::Other("is not a socket".into()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            SocketState::Missing
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => SocketState::Other(
            "not permitted: you may not enter a folder of its path; run this as its owner".into(),
        ),
        Err(error) => SocketState::Other(format!("cannot be reached: {error}")),
    }
}

pub(super) fn configuration(env: &Environment) -> Option<PathBuf> {
    let named = env.variable("DOCKER_CONFIG").map(|path| env.cwd.join(path));
    named.or_else(|| Some(env.home()?.join(".docker")))
}

/// The context in use and the setting that names it; `default` means the usual sockets, not a context.
fn context(env: &Environment) -> Result<Option<(String, String)>, String> {
    if let Some(name) = env.variable("DOCKER_CONTEXT") {
        return Ok((name != "default").then(|| (name.to_owned(), "DOCKER_CONTEXT".into())));
    }
    let Some(file) = configuration(env).map(|directory| directory.join("config.json")) else {
        return Ok(None);
    };
    let Some(settings) = json(&file)? else { return Ok(None) };
    let name = settings.get("currentContext").and_then(Value::as_str).unwrap_or_default();
    Ok((!matches!(name, "" | "default")).then(|| (name.to_owned(), quote::path(&file))))
}

/// A context's `Endpoints.docker.Host`, and whether it skips certificate checks. docker names the directory
/// by the SHA-256 of the context's name.
fn host_of(name: &str, env: &Environment) -> Result<(String, bool), String> {
    let missing =
        || format!("docker context {}: there is no such context; see: docker context ls", quote::name(name));
    let directory = configuration(env).ok_or_else(missing)?.join("contexts/meta");
    let meta = json(&directory.join(digest_of(name.as_bytes())).join("meta.json"))?.ok_or_else(missing)?;
    let host = meta.pointer("/Endpoints/docker/Host").and_then(Value::as_str).filter(|host| !host.is_empty());
    let unverified =
        meta.pointer("/Endpoints/docker/SkipTLSVerify").and_then(Value::as_bool).unwrap_or(false);
    host.map(|host| (host.to_owned(), unverified))
        .ok_or_else(|| format!("docker context {}: names no docker endpoint", quote::name(name)))
}

pub(super) fn json(file: &Path) -> Result<Option<Value>, String> {
    match fs::read(file) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(format!("{}: is not JSON (line {})", quote::path(file), error.line())),
        },
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(format!("{}: cannot be read: {error}", quote::path(file))),
    }
}

/// The first of the usual sockets that accepts our connection; if none does, the first that exists.
fn usual(env: &Environment) -> Result<PathBuf, Reason> {
    let home = |path: &str| env.home().map(|home| home.join(path));
    let runtime = |path: &str| env.variable("XDG_RUNTIME_DIR").map(|at| Path::new(at).join(path));
    let places = [
        Some("/var/run/docker.sock".into()),
        // Docker Desktop on macOS and on Linux, OrbStack, colima, Rancher Desktop.
        home(".docker/run/docker.sock"),
        home(".docker/desktop/docker.sock"),
        home(".orbstack/run/docker.sock"),
        home(".colima/default/docker.sock"),
        home(".rd/docker.sock"),
        runtime("docker.sock"),
        // Podman's sockets come last: if both exist, the docker command uses Docker's.
        runtime("podman/podman.sock"),
        Some("/run/podman/podman.sock".into()),
    ];
    first(places.into_iter().flatten())
}

fn first(places: impl Iterator<Item = PathBuf>) -> Result<PathBuf, Reason> {
    let mut looked = Vec::new();
    let (mut refused, mut silent) = (None, None);
    for path in places {
        match look(&path) {
            SocketState::Socket if UnixStream::connect(&path).is_ok() => return Ok(path),
            // The reason is reported when the socket is used.
            SocketState::Socket => silent = silent.or_else(|| Some(path.clone())),
            SocketState::Missing => {}
            SocketState::Other(what) => {
                refused = refused.or_else(|| Some(format!("{}: {what}", quote::path(&path))))
            }
        }
        looked.push(quote::path(&path));
    }
    if let Some(path) = silent {
        return Ok(path);
    }
    Err(refused.map_or_else(
        || {
            let looked = looked.join(", ");
            let text = format!("no Docker engine found at {looked}; start it, or set DOCKER_HOST");
            Reason::new(text, Remedy::StartEngine)
        },
        Reason::from,
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn default_sockets_are_tried_in_order() {
        let at = tempdir();
        let path = |name: &str| at.join(name);
        let none = first([path("a.sock"), path("b.sock")].into_iter()).unwrap_err();
        let places = format!("{} and {}", path("a.sock").display(), path("b.sock").display());
        assert_eq!(
            *none,
            *format!(
                "no Docker engine found at {}; start it, or set DOCKER_HOST",
                places.replace(" and ", ", ")
            )
        );
        // podman-docker links Docker's usual path to Podman's socket; the engine's answers tell which it is.
        let _podman = UnixListener::bind(path("podman.sock")).unwrap();
        std::os::unix::fs::symlink(path("podman.sock"), path("link.sock")).unwrap();
        assert_eq!(first([path("a.sock"), path("link.sock")].into_iter()), Ok(path("link.sock")));
        let _docker = UnixListener::bind(path("b.sock")).unwrap();
        let found = first([path("a.sock"), path("b.sock"), path("podman.sock")].into_iter());
        assert_eq!(found, Ok(path("b.sock")));
        fs::remove_dir_all(at).unwrap();
    }

    fn tempdir() -> PathBuf {
        let at = std::env::temp_dir().join(format!("kfp-creds-engine-{}", std::process::id()));
        fs::create_dir(&at).unwrap();
        at
    }
}
