//! Which Docker engine: `engine` of the config, `DOCKER_HOST`, `DOCKER_CONTEXT`, the current context, the
//! usual sockets, in this order, as the docker command line goes about it.
//!
//! What works so far is an engine of this machine, on a unix socket. Everything else is refused in one line.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Surroundings;
use super::find::digest_of;
use crate::quote;

/// The engine's socket; it exists and is a socket, which is not to say that somebody listens.
/// `chosen` is [`super::Config::engine`]. The error is one line for the terminal.
pub fn endpoint(chosen: Option<&str>, around: &Surroundings) -> Result<PathBuf, String> {
    if let Some(host) = chosen {
        return socket_of("engine", host);
    }
    if let Some(host) = around.variable("DOCKER_HOST") {
        return socket_of("DOCKER_HOST", host);
    }
    match context(around)? {
        Some((name, from)) => {
            socket_of(&format!("docker context {} ({from})", quote::name(&name)), &host_of(&name, around)?)
        }
        None => usual(around),
    }
}

/// The path of `unix:///path`. The error completes the sentence `"tcp://…" …`.
pub(super) fn unix_path(host: &str) -> Result<PathBuf, String> {
    let (scheme, rest) = match host.split_once("://") {
        Some(parts) => parts,
        None if host.starts_with('/') => {
            return Err(format!("has to be written unix://{}", quote::path(Path::new(host))));
        }
        None => return Err("has to be unix:///path: only an engine of this machine works so far".into()),
    };
    match scheme {
        "unix" | "http+unix" if rest.starts_with('/') => Ok(rest.into()),
        "unix" | "http+unix" => Err("has to name an absolute path, unix:///path".into()),
        "tcp" | "http" | "https" | "ssh" => Err(format!(
            "is an engine at the other end of {scheme}; only an engine of this machine, on a unix socket, works \
             so far"
        )),
        "npipe" => Err("is Docker for Windows; only Linux works so far (inside WSL, too)".into()),
        "fd" => Err("is for the engine itself; say unix:///path".into()),
        _ => Err("has to be unix:///path".into()),
    }
}

/// `from` says where `host` was read.
fn socket_of(from: &str, host: &str) -> Result<PathBuf, String> {
    let path = unix_path(host).map_err(|what| format!("{from}: {} {what}", quote::value(host)))?;
    match look(&path) {
        Look::Socket => Ok(path),
        Look::Missing => {
            Err(format!("{from}: {}: no such socket; is the engine running?", quote::path(&path)))
        }
        Look::Other(what) => Err(format!("{from}: {}: {what}", quote::path(&path))),
    }
}

enum Look {
    Socket,
    Missing,
    Other(String),
}

fn look(path: &Path) -> Look {
    match fs::metadata(path) {
        Ok(about) if about.file_type().is_socket() => Look::Socket,
        Ok(_) => Look::Other("is not a socket".into()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Look::Missing
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Look::Other("not permitted; are you in the group docker?".into())
        }
        Err(error) => Look::Other(format!("cannot be reached: {error}")),
    }
}

pub(super) fn configuration(around: &Surroundings) -> Option<PathBuf> {
    let named = around.variable("DOCKER_CONFIG").map(|path| around.cwd.join(path));
    named.or_else(|| Some(around.home()?.join(".docker")))
}

/// The context in use and where it is said; `default` is the engine of the usual sockets, not a context.
fn context(around: &Surroundings) -> Result<Option<(String, String)>, String> {
    if let Some(name) = around.variable("DOCKER_CONTEXT") {
        return Ok((name != "default").then(|| (name.to_owned(), "DOCKER_CONTEXT".into())));
    }
    let Some(file) = configuration(around).map(|directory| directory.join("config.json")) else {
        return Ok(None);
    };
    let Some(settings) = json(&file)? else { return Ok(None) };
    let name = settings.get("currentContext").and_then(Value::as_str).unwrap_or_default();
    Ok((!matches!(name, "" | "default")).then(|| (name.to_owned(), quote::path(&file))))
}

/// `Endpoints.docker.Host` of a context: docker names the directory by the SHA-256 of the context's name.
fn host_of(name: &str, around: &Surroundings) -> Result<String, String> {
    let missing =
        || format!("docker context {}: there is no such context; see: docker context ls", quote::name(name));
    let directory = configuration(around).ok_or_else(missing)?.join("contexts/meta");
    let meta = json(&directory.join(digest_of(name.as_bytes())).join("meta.json"))?.ok_or_else(missing)?;
    let host = meta.pointer("/Endpoints/docker/Host").and_then(Value::as_str).filter(|host| !host.is_empty());
    host.map(String::from)
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

/// The first of the usual sockets that is there.
fn usual(around: &Surroundings) -> Result<PathBuf, String> {
    let home = |path: &str| around.home().map(|home| home.join(path));
    let runtime = |path: &str| around.variable("XDG_RUNTIME_DIR").map(|at| Path::new(at).join(path));
    let places = [
        Some("/var/run/docker.sock".into()),
        home(".docker/run/docker.sock"),
        home(".colima/default/docker.sock"),
        runtime("docker.sock"),
        // After Docker's: where both are, the docker command uses that one.
        runtime("podman/podman.sock"),
        Some("/run/podman/podman.sock".into()),
    ];
    first(places.into_iter().flatten())
}

fn first(places: impl Iterator<Item = PathBuf>) -> Result<PathBuf, String> {
    let mut looked = Vec::new();
    let mut refused = None;
    for path in places {
        match look(&path) {
            Look::Socket => return Ok(path),
            Look::Missing => {}
            Look::Other(what) => {
                refused = refused.or_else(|| Some(format!("{}: {what}", quote::path(&path))))
            }
        }
        looked.push(quote::path(&path));
    }
    Err(refused.unwrap_or_else(|| {
        format!("no Docker engine found at {}; start it, or set DOCKER_HOST", looked.join(", "))
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_usual_places_in_order_and_what_they_are() {
        let at = tempdir();
        let path = |name: &str| at.join(name);
        let none = first([path("a.sock"), path("b.sock")].into_iter()).unwrap_err();
        let places = format!("{} and {}", path("a.sock").display(), path("b.sock").display());
        assert_eq!(
            none,
            format!(
                "no Docker engine found at {}; start it, or set DOCKER_HOST",
                places.replace(" and ", ", ")
            )
        );
        // podman-docker puts a link to Podman's socket where Docker's would be; whose it is the engine says.
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
