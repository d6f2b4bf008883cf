//! Service managers (systemd): one may pass open sockets to this process (sd_listen_fds(3)) and expects a
//! message when it is ready (sd_notify(3)).

use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;

use super::broken;
use crate::config::Environment;
use crate::failure::Failure;
use crate::linux;

/// The first passed descriptor.
const FIRST: i32 = 3;
/// More than any unit passes.
const MOST: i32 = 16;

/// A socket that the service manager opened, and its path.
#[derive(Debug)]
pub(super) struct ActivatedSocket {
    pub(super) listener: UnixListener,
    pub(super) path: PathBuf,
}

/// The sockets that were passed to this process, if any.
pub(super) fn given(env: &Environment) -> Result<Vec<ActivatedSocket>, Failure> {
    let number = |name| env.variable(name).and_then(|text| text.parse::<i32>().ok());
    let ours = number("LISTEN_PID").and_then(|pid| u32::try_from(pid).ok()) == Some(std::process::id());
    let count = number("LISTEN_FDS").filter(|_| ours).unwrap_or(0);
    if !(0..=MOST).contains(&count) {
        return Err(Failure::Usage(format!("LISTEN_FDS: between 0 and {MOST} sockets can be passed on")));
    }
    (FIRST..FIRST + count).map(take).collect()
}

fn take(number: i32) -> Result<ActivatedSocket, Failure> {
    let what = format!("take the socket that was passed on as descriptor {number} (LISTEN_FDS)");
    let descriptor = linux::inherited(number).map_err(|error| broken(&what, error))?;
    let listener = UnixListener::from(descriptor);
    let address = listener.local_addr().map_err(|error| broken(&what, error))?;
    let path = address.as_pathname().map(PathBuf::from);
    let path = path.ok_or_else(|| broken(&what, "it is not a unix socket with a path"))?;
    listener.set_nonblocking(true).map_err(|error| broken(&what, error))?;
    Ok(ActivatedSocket { listener, path })
}

/// Sends `READY=1` or `STOPPING=1` to the service manager, if it asks for them. A manager that no longer
/// listens is not an error.
pub(super) fn tell(env: &Environment, state: &str) {
    let Some(place) = env.variable("NOTIFY_SOCKET") else { return };
    let told = UnixDatagram::unbound().and_then(|socket| match place.strip_prefix('@') {
        Some(name) => linux::send_to_abstract(&socket, name, state.as_bytes()),
        None => socket.send_to(state.as_bytes(), place),
    });
    if let Err(error) = told {
        tracing::warn!(%error, "NOTIFY_SOCKET: the service manager could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(variables: &[(&str, &str)]) -> Environment {
        let env = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Environment { variables: env, ..Environment::default() }
    }

    #[test]
    fn sockets_passed_to_another_process_are_not_used() {
        let parent = env(&[("LISTEN_PID", "1"), ("LISTEN_FDS", "1")]);
        assert!(given(&parent).unwrap().is_empty());
        assert!(given(&env(&[])).unwrap().is_empty());
        let own = std::process::id().to_string();
        assert!(given(&env(&[("LISTEN_PID", &own), ("LISTEN_FDS", "100000")])).is_err());
    }

    #[test]
    fn the_service_manager_is_notified_by_path_and_abstract_name() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::SocketAddr;
        let own = std::process::id();
        let path = std::env::temp_dir().join(format!("kc-notify-{own}"));
        let _ = std::fs::remove_file(&path);
        let name = format!("kc-notify-{own}");
        let heard = |socket: UnixDatagram, place: &str| {
            tell(&env(&[("NOTIFY_SOCKET", place)]), "READY=1");
            let mut bytes = [0; 32];
            let many = socket.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..many]).into_owned()
        };
        assert_eq!(heard(UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap()), "READY=1");
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        assert_eq!(heard(UnixDatagram::bind_addr(&address).unwrap(), &format!("@{name}")), "READY=1");
        std::fs::remove_file(&path).unwrap();
        tell(&env(&[("NOTIFY_SOCKET", "/nowhere/at/all")]), "READY=1");
    }
}
