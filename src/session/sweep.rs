//! Removes what dead sessions left in the engine, found by the labels of networks.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::{BACK_WITHIN, detach_stopped};
use crate::certificates;
use crate::console::Console;
use crate::docker::members::Member;
use crate::docker::network::Network;
use crate::docker::{Engine, EngineError};

/// How long a session whose socket we cannot reach may lack a relay before it counts as dead. If the sweep
/// would stop containers of it, `BACK_WITHIN` applies: the time that a relay may take to come back.
const GAP: Duration = Duration::from_secs(2);

/// Removes the remains of dead sessions, and returns the networks that have to stay because containers run on
/// them. Relies on membership of a network that carries our label: labels of containers and images can be
/// copied, labels of networks cannot. Anything that cannot be removed now does not prevent a start.
pub(super) async fn sweep(
    engine: &Engine,
    sockets: &Path,
    console: &Console,
) -> Result<Vec<Network>, EngineError> {
    let mut left = vec![];
    let mut alive = vec![];
    let mut sessions: BTreeMap<String, Vec<Network>> = BTreeMap::new();
    for network in engine.our_networks().await? {
        sessions.entry(network.session.clone()).or_default().push(network);
    }
    for (session, networks) in sessions {
        // A network that another user's `check` has made and removed meanwhile does not make a session dead.
        let Some(networks) = dead(engine, networks, sockets).await? else {
            alive.push(session);
            continue;
        };
        let swept = join_all(networks.iter().map(|network| sweep_network(engine, network))).await;
        let (mut gone, mut stopped) = (0, 0);
        for (network, outcome) in networks.into_iter().zip(swept) {
            match outcome {
                Ok(ended) => (gone, stopped) = (gone + 1, stopped + ended),
                Err(error) => {
                    tracing::debug!(%error, network = network.name, "a network of ours stays for now");
                    left.push(network);
                }
            }
        }
        if gone > 0 {
            let what = if gone == 1 { "its network".into() } else { format!("{gone} of its networks") };
            console.notice(format!("swept session {session}: {what}, {stopped} of its containers stopped"));
        }
    }
    let held =
        |session: &str| alive.iter().chain(left.iter().map(|network| &network.session)).any(|s| s == session);
    for path in left_files(sockets).await {
        if !stem(&path).is_some_and(held) {
            remove(&path);
        }
    }
    Ok(left)
}

/// Stops the containers that a dead `run` left and removes its network; returns the number of stopped ones.
async fn sweep_network(engine: &Engine, network: &Network) -> Result<usize, EngineError> {
    let members = engine.containers_on(network).await?;
    let ours = members.iter().filter(|member| stops(member, network));
    let stops = ours.map(|member| engine.stop(&member.id, 1));
    let stopped = join_all(stops).await.iter().filter(|stopped| stopped.is_ok()).count();
    detach_stopped(engine, network).await?;
    engine.remove_network(&network.id).await.map(|()| stopped)
}

/// Whether the container ends with the session of `network`, as those of a `run` do.
fn stops(member: &Member, network: &Network) -> bool {
    let of_a_run = member.mode.as_deref() == Some("run");
    member.running && of_a_run && member.session.as_ref() == Some(&network.session)
}

/// The remaining `networks` of a session if it is dead; `None` while its relay runs. A live session may lack
/// a relay for a moment: while it starts, and while a dead relay is replaced. Then its socket decides; if
/// that belongs to another user, repeated checks do.
async fn dead(
    engine: &Engine,
    mut networks: Vec<Network>,
    sockets: &Path,
) -> Result<Option<Vec<Network>>, EngineError> {
    let Some(session) = networks.first().map(|first| first.session.clone()) else { return Ok(None) };
    let socket = sockets.join(format!("{session}.sock"));
    let began = Instant::now();
    while !networks.is_empty() {
        let relays = engine.running_relays().await?;
        let mut gap = GAP;
        for network in &networks {
            let members = engine.containers_on(network).await?;
            if members.iter().any(|member| member.running && relays.iter().any(|(id, _)| *id == member.id)) {
                return Ok(None);
            }
            if members.iter().any(|member| stops(member, network)) {
                gap = BACK_WITHIN;
            }
        }
        match UnixStream::connect(&socket).await {
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
            Err(_) if began.elapsed() > gap => break,
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
        networks = engine.our_networks().await?;
        networks.retain(|network| network.session == session);
    }
    Ok(Some(networks))
}

fn remove(path: &Path) {
    let _ = match path.extension().and_then(OsStr::to_str) {
        Some("tls") => return certificates::remove_left(path),
        _ if path.is_dir() => std::fs::remove_dir_all(path),
        _ => std::fs::remove_file(path),
    };
}

/// Finds what dead sessions left in the folder: sockets without a listener, links to them and to the certificates of
/// `serve --tls`, and the directories of `run --processes`. Connects only to sockets of sessions: a connection to
/// another socket, such as a service manager's, would start its service.
async fn left_files(folder: &Path) -> Vec<PathBuf> {
    let mut left = vec![];
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let socket = match path.extension().and_then(OsStr::to_str) {
            Some("sock" | "ctl") => std::fs::read_link(&path).unwrap_or_else(|_| path.clone()),
            Some("gcloud" | "tls") => path.with_extension("sock"),
            _ => continue,
        };
        let nobody = |error: std::io::Error| {
            matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound)
        };
        let of_a_session = stem(&socket).is_some_and(is_session);
        if of_a_session && UnixStream::connect(folder.join(&socket)).await.is_err_and(nobody) {
            left.push(path);
        }
    }
    left
}

fn stem(path: &Path) -> Option<&str> {
    path.file_stem().and_then(OsStr::to_str)
}

/// Whether the text has the form of a session's id.
fn is_session(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::console::OutputForm;
    use crate::process::Tasks;

    const SESSION: &str = "0badcafe";

    /// An engine with one network of another user's session, a running container of it, and no relay: it is
    /// being replaced, and comes `back` or does not.
    struct Foreign {
        mode: &'static str,
        back: Option<Duration>,
        /// How long the engine still lists the ended relay.
        going: Duration,
        began: Instant,
        asked: Mutex<Vec<String>>,
    }

    impl Foreign {
        fn answer(&self, line: &str) -> (u16, String) {
            self.asked.lock().unwrap().push(line.into());
            let asked = |what: &str| self.asked.lock().unwrap().iter().any(|line| line.contains(what));
            let relay = self.back.is_some_and(|back| self.began.elapsed() >= back);
            let relay = relay.then(|| {
                format!(r#"{{"Id":"relay","State":"running","Labels":{{"kfp-creds.session":"{SESSION}"}}}}"#)
            });
            let going = format!(
                r#"{{"Id":"old","State":"exited","Labels":{{"kfp-creds.role":"relay","kfp-creds.session":"{SESSION}"}}}}"#
            );
            let going = (self.began.elapsed() < self.going).then_some(going);
            let state = if asked("/task/stop") { "exited" } else { "running" };
            let task = format!(
                r#"{{"Id":"task","State":"{state}","Labels":{{"kfp-creds.session":"{SESSION}","kfp-creds.mode":"{}"}}}}"#,
                self.mode
            );
            let network =
                format!(r#"{{"Id":"net","Name":"net","Labels":{{"kfp-creds.session":"{SESSION}"}}}}"#);
            let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
            match line {
                _ if line.contains("/version") => (
                    200,
                    format!(r#"{{"Version":"20.10","ApiVersion":"1.41","Os":"linux","Arch":"{arch}"}}"#),
                ),
                _ if line.starts_with("GET") && line.contains("/networks") => (200, format!("[{network}]")),
                _ if line.contains("kfp-creds.role") => (200, format!("[{}]", relay.unwrap_or_default())),
                _ if line.contains("kfp-creds.session") => (200, "[]".into()),
                _ if line.contains("/containers/json") => {
                    let there = relay.into_iter().chain(going).chain([task]);
                    (200, format!("[{}]", there.collect::<Vec<_>>().join(",")))
                }
                _ if line.starts_with("DELETE") && state == "running" => {
                    (403, r#"{"message":"network net has active endpoints"}"#.into())
                }
                _ => (204, String::new()),
            }
        }

        async fn serve(self: Arc<Self>, listener: UnixListener) {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).await.unwrap();
                if read == 0 {
                    continue;
                }
                let head = String::from_utf8_lossy(&head[..read]).into_owned();
                let (status, body) = self.answer(head.lines().next().unwrap_or_default());
                let length =
                    if status == 204 { String::new() } else { format!("content-length: {}\r\n", body.len()) };
                let head = "content-type: application/json\r\nconnection: close\r\n";
                let reply = format!("HTTP/1.1 {status} x\r\n{head}{length}\r\n{body}");
                // A client that only tests whether the socket is served has disconnected by now.
                let _ = stream.write_all(reply.as_bytes()).await;
            }
        }

        async fn swept(
            mode: &'static str,
            back: Option<Duration>,
            socket_left: bool,
        ) -> (Duration, usize, Vec<String>) {
            Self::swept_while(mode, back, Duration::ZERO, socket_left).await
        }

        /// Sweeps beside such a session: returns the time it took, the networks that stay, and the changes
        /// made at the engine.
        async fn swept_while(
            mode: &'static str,
            back: Option<Duration>,
            going: Duration,
            socket_left: bool,
        ) -> (Duration, usize, Vec<String>) {
            let folder = std::env::temp_dir().join(format!(
                "kc-sweep-{}-{mode}-{}-{}",
                std::process::id(),
                back.is_some(),
                going.as_secs()
            ));
            std::fs::create_dir_all(&folder).unwrap();
            let listener = UnixListener::bind(folder.join("engine")).unwrap();
            let foreign =
                Arc::new(Self { mode, back, going, began: Instant::now(), asked: Mutex::default() });
            Tasks::new().spawn("engine", foreign.clone().serve(listener));
            let engine = Engine::connect(&folder.join("engine")).await.unwrap();
            if socket_left {
                drop(UnixListener::bind(folder.join(format!("{SESSION}.sock"))).unwrap());
            }
            let console = Console::new(OutputForm::Quiet, std::io::sink());
            let began = Instant::now();
            let left = sweep(&engine, &folder, &console).await.unwrap();
            let after = began.elapsed();
            std::fs::remove_dir_all(&folder).unwrap();
            let asked = foreign.asked.lock().unwrap();
            let changes = asked.iter().filter(|line| !line.starts_with("GET"));
            let changes = changes.map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
            (after, left.len(), changes)
        }
    }

    fn about(after: Duration, seconds: u64) {
        let slack = Duration::from_millis(500);
        assert!(
            after >= Duration::from_secs(seconds) && after < Duration::from_secs(seconds) + slack,
            "{after:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_of_another_user_whose_relay_comes_back_is_alive() {
        let (after, left, changes) = Foreign::swept("run", Some(Duration::from_secs(29)), false).await;
        about(after, 29);
        assert_eq!((left, changes), (0, vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn another_users_run_is_dead_if_its_relay_stays_away() {
        let (after, left, changes) = Foreign::swept("run", None, false).await;
        about(after, 30);
        assert_eq!(left, 0);
        let want =
            ["POST /containers/task/stop?t=1", "POST /networks/net/disconnect", "DELETE /networks/net"];
        assert_eq!(changes, want);
    }

    /// The sweep would stop no container of it.
    #[tokio::test(start_paused = true)]
    async fn a_serve_of_another_user_is_waited_for_a_moment_only() {
        let (after, left, changes) = Foreign::swept("serve", None, false).await;
        about(after, 2);
        assert_eq!(left, 1);
        assert!(
            !changes.iter().any(|line| line.contains("/stop") || line.contains("/disconnect")),
            "{changes:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_on_which_nobody_listens_needs_no_waiting() {
        let (after, left, _) = Foreign::swept("run", None, true).await;
        about(after, 0);
        assert_eq!(left, 0);
    }

    #[tokio::test]
    async fn only_files_of_dead_sessions_are_swept() {
        let folder = std::env::temp_dir().join(format!("kc-left-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        // As a service manager does it, for a service that the first connection starts.
        let service = std::os::unix::net::UnixListener::bind(folder.join("default.sock")).unwrap();
        service.set_nonblocking(true).unwrap();
        let _live = UnixListener::bind(folder.join("00c0ffee.sock")).unwrap();
        for dead in [format!("{SESSION}.sock"), format!("{SESSION}.ctl"), "team.sock".into()] {
            drop(UnixListener::bind(folder.join(dead)).unwrap());
        }
        for (name, to) in [("gone", "deadbeef.sock"), ("here", "00c0ffee.sock"), ("other", "default.sock")] {
            std::os::unix::fs::symlink(to, folder.join(format!("{name}.sock"))).unwrap();
        }
        for run in [SESSION, "00c0ffee", "deadbeef"] {
            std::fs::create_dir(folder.join(format!("{run}.gcloud"))).unwrap();
        }
        let mut left: Vec<String> = left_files(&folder)
            .await
            .iter()
            .map(|path| path.strip_prefix(&folder).unwrap().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(
            left,
            ["0badcafe.ctl", "0badcafe.gcloud", "0badcafe.sock", "deadbeef.gcloud", "gone.sock"]
        );
        assert_eq!(service.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// Podman keeps the address of a container that is disconnected while it is being removed.
    #[tokio::test(start_paused = true)]
    async fn a_relay_that_the_engine_removes_is_waited_for() {
        let going = Duration::from_secs(1);
        let (after, left, changes) = Foreign::swept_while("serve", None, going, true).await;
        about(after, 1);
        assert_eq!((left, changes), (1, vec!["DELETE /networks/net".to_string()]));
    }
}
