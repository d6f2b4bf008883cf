//! Builds a session's rooms in order and ends them in order: the common part of `run` and `serve`.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::about::About;
use super::broken;
use super::control::{ControlServer, Listener};
use super::credentials::Credentials;
use super::host_loopback;
use super::inputs::InputFetcher;
use super::networks::{self, RelayKeeper, SecondOpener, SecondPlan};
use super::processes;
use super::proxied::{reserved, settings, wiring};
use super::reach::{reach, what_paths_mean};
use super::reload;
use super::runtime_dir::{listen, private_folder, runtime_folder};
use crate::config::{Config, Environment};
use crate::console::{Console, Line, expiry};
use crate::docker::Engine;
use crate::docker::proxy::{self, Attachment, LifecycleRequest, Proxy, ProxySettings, SecondRequest};
use crate::docker::relay::Tunnel;
use crate::failure::Failure;
use crate::lifecycle::{Granting, Lifecycle};
use crate::process::Tasks;
use crate::record::Recorder;
use crate::record::audit::Audit;
use crate::registry::{self, Questions};
use crate::secret::Secret;
use crate::server::Server;
use crate::session::MetadataNetwork;
use crate::token::Now;
use crate::workload::{ContainerId, Task};

/// How long containers get between SIGTERM and SIGKILL at the end of a `run`.
const STOP_GRACE_SECONDS: i32 = 2;
/// How long connections of an ended program may still be counted.
const CLIENTS_LEAVE: Duration = Duration::from_millis(500);
/// A disk that hangs does not keep a session from ending.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// A running session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) credentials: Credentials,
    /// The socket to give to Docker clients.
    pub(super) socket: PathBuf,
    pub(super) failed: mpsc::Receiver<Failure>,
    console: Console,
    /// Whether the session was ever ready; otherwise no line reports its end.
    live: bool,
    pub(super) tasks: Tasks,
    pub(super) metadata: Arc<MetadataNetwork>,
    /// The second network, if a container needed it and the first one is a bridge.
    second: Arc<OnceLock<Arc<MetadataNetwork>>>,
    pub(super) lifecycle: Arc<Lifecycle>,
    /// Shared by all listeners for the Docker API.
    pub(super) proxy: Arc<Proxy>,
    inputs: Option<Arc<InputFetcher>>,
    /// The path of the control socket.
    control: PathBuf,
    control_server: Arc<ControlServer>,
    /// Held while containers are stopped, so that a second stop handles only what the first one left.
    stopping: Arc<tokio::sync::Mutex<()>>,
    /// Whether the notice that containers run on after Ctrl-C was shown.
    reminded: Arc<AtomicBool>,
}

impl Session {
    /// Prepares everything that creating containers needs: engine, source, network, relay, proxy, a probe of
    /// the whole path, and one mint, so that a broken login is reported once and at once.
    pub(super) async fn open(
        config: &Config,
        env: &Environment,
        mode: &'static str,
        console: Console,
    ) -> Result<Self, Failure> {
        let (tasks, engine) = (Tasks::new(), reach(config, env).await?);
        let recorder = recorder(config, "", &console)?;
        let credentials = Credentials::open(config, env, &tasks, &console, recorder.clone()).await?;
        let folder = private_folder(&runtime_folder(env))?;
        let bound = host_loopback::bind(config)?;
        let (metadata, tunnel) = networks::open(engine, config, (&session_id()?, &folder), &console).await?;
        // The session id of a network that was taken over, else the new one.
        let id = metadata.network.session.clone();
        recorder.name_session(&id);
        let (writer, reader, questions) = registry::new();
        let views = networks::views(config, &credentials, &metadata, bound.as_ref());
        let server = Server::new(reader, credentials.mint.clone(), views, console.clone(), recorder.clone());
        let loopback = host_loopback::proved(bound, &metadata, &server, &console, &tasks).await;
        let granting = Granting { writer, mint: credentials.mint.clone(), recorder: recorder.clone() };
        let lifecycle = networks::lifecycle(&metadata, granting, &console, &tasks);
        let ((ask, asks), (failing, failed)) = (mpsc::channel(64), mpsc::channel(1));
        let (second, second_asked) = networks::second_network(&metadata);
        let (inputs, fetching) = InputFetcher::start(config, env, &credentials, &id, &tasks).unzip();
        let proxy = Arc::new(ProxySettings {
            socket: folder.join(format!("{id}.sock")),
            wiring: wiring(&metadata, &credentials, config),
            reserved: reserved(&metadata, &tunnel),
            cells: metadata.cells(&tunnel, &tasks),
            segment: metadata.segment.clone(),
            second,
            loopback,
            mode,
            fetching,
            exits: lifecycle.exits(),
            recorder,
            ..settings(config, &metadata, ask, &console, &tasks)
        });
        let about = About::of(mode, &metadata, &credentials, config);
        let mut opened = Self {
            control_server: ControlServer::new(about, &lifecycle, &credentials, &proxy),
            socket: proxy.socket.clone(),
            control: folder.join(format!("{id}.ctl")),
            proxy: Arc::new(Proxy::new(proxy.clone())),
            console: console.clone(),
            tasks: tasks.clone(),
            live: false,
            second: Arc::default(),
            stopping: Arc::default(),
            reminded: Arc::default(),
            credentials,
            failed,
            metadata,
            lifecycle,
            inputs,
        };
        opened.follow(config, env, asks, questions);
        let keeper = RelayKeeper { proxy, server, failing, tasks, console };
        opened.serve_relays(keeper, tunnel, SecondPlan::of(config, &folder), second_asked);
        if let Err(error) = opened.go_live(config).await {
            opened.close(true).await;
            return Err(error);
        }
        Ok(opened)
    }

    fn serve_relays(
        &self,
        keeper: RelayKeeper,
        tunnel: Tunnel,
        wanted: SecondPlan,
        asked: Option<mpsc::Receiver<SecondRequest>>,
    ) {
        if let Some(asked) = asked {
            let (second, lifecycle) = (self.second.clone(), self.lifecycle.clone());
            let (first, keeper) = (self.metadata.clone(), keeper.clone());
            let opener = SecondOpener { first, second, lifecycle, wanted, keeper };
            self.tasks.spawn("second network", opener.attend(asked));
        }
        self.tasks.spawn("relay", keeper.keep(self.metadata.clone(), tunnel));
    }

    /// A place for one more container, on the kind of network that the config asks for.
    pub(super) async fn place(&self) -> Result<Attachment, Failure> {
        let proxy = self.proxy.settings();
        match (&proxy.cells, &proxy.segment) {
            (Some(cells), _) => cells.take().await.map(Attachment::Cell).map_err(Failure::Engine),
            (None, Some(segment)) => {
                let address = segment.take();
                let none = || Failure::Engine("kfp-creds has no address left".into());
                address.map(Attachment::Linked).ok_or_else(none)
            }
            (None, None) => Ok(Attachment::Shared),
        }
    }

    /// Follows the engine's events, the config file and the other rooms from now on.
    fn follow(
        &self,
        config: &Config,
        env: &Environment,
        asks: mpsc::Receiver<LifecycleRequest>,
        questions: Questions,
    ) {
        let (tasks, lifecycle) = (&self.tasks, &self.lifecycle);
        tasks.spawn("lifecycle", lifecycle.clone().attend(asks, questions));
        tasks.spawn("events", lifecycle.clone().follow_events());
        let (config, proxy, console) = (config.clone(), self.proxy.settings().clone(), self.console.clone());
        let env = env.clone();
        tasks.spawn("config", reload::follow(config, env, proxy, lifecycle.clone(), console, tasks.clone()));
    }

    async fn go_live(&mut self, config: &Config) -> Result<(), Failure> {
        if let Some(at) = config.metrics {
            let listener = tokio::net::TcpListener::bind(at).await;
            let listener = listener.map_err(|e| broken(&format!("serve metrics on {at}"), e))?;
            self.tasks.spawn(
                "metrics",
                self.control_server.clone().serve_loopback(listener, Listener::Metrics, self.tasks.clone()),
            );
        }
        what_paths_mean(&self.metadata.engine).into_iter().for_each(|text| self.console.notice(text));
        self.mounts(config).await?;
        let listener = listen(&self.control).map_err(|e| broken("open the control socket", e))?;
        self.tasks.spawn("control", self.control_server.clone().serve(listener, self.tasks.clone()));
        let listener = listen(&self.socket).map_err(|e| broken("open the socket", e))?;
        self.tasks.spawn("proxy", proxy::serve(listener, self.proxy.clone()));
        let probed = self.console.while_slow("waiting for the relay to answer", self.metadata.wait_ready());
        let (console, first) = (&self.console, self.credentials.first_mint(config, &self.console));
        let minted = console.while_slow("waiting for a first token", first);
        let (probed, minted) = tokio::join!(probed, minted);
        probed?;
        minted?;
        self.live = true;
        self.credentials.tell_clouds(&self.console);
        self.console.say(Line::Ready {
            source: &self.credentials.kind(),
            account: &self.credentials.account(config),
            project: &self.credentials.shown_project(config),
            engine: self.metadata.engine.version(),
            network: &format!("{} {}", self.metadata.network.name, self.metadata.relay),
        });
        Ok(())
    }

    /// Reports mounts that could not be verified, and fails if every create would be refused because of a
    /// mount.
    async fn mounts(&self, config: &Config) -> Result<(), Failure> {
        for what in &config.unverified {
            self.console.notice(format!("[[mount]]: not verified: {what}"));
        }
        let wrong = proxy::wrong_with_volumes(self.proxy.settings(), &config.mounts).await;
        match wrong.map_err(|why| Failure::Engine(why.into()))? {
            wrong if wrong.is_empty() => Ok(()),
            wrong => Err(Failure::Config(format!("a volume of [[mount]]: {}", wrong.join("\n")))),
        }
    }

    /// Refuses all creates from now on; running containers continue.
    pub(super) fn refuse_creates(&self) {
        self.proxy.settings().closing.set();
    }

    /// Stops the containers that run now, even if the command is still ending.
    pub(super) fn begin_stop(&self) {
        let (lifecycle, engine, console, stopping) = (
            self.lifecycle.clone(),
            self.metadata.engine.clone(),
            self.console.clone(),
            self.stopping.clone(),
        );
        self.tasks.spawn("stop", async move {
            let _alone = stopping.lock().await;
            stop_containers(&lifecycle, &engine, &console).await;
        });
    }

    /// Shows `text`, once per session, if containers run. In the background, because the engine may be slow.
    pub(super) fn remind_of_running(&self, text: &'static str) {
        let (lifecycle, console, said) =
            (self.lifecycle.clone(), self.console.clone(), self.reminded.clone());
        self.tasks.spawn("remind", async move {
            let running = lifecycle.running().await.is_ok_and(|running| !running.is_empty());
            if running && !said.swap(true, Ordering::Relaxed) {
                console.notice(text);
            }
        });
    }

    /// Serves the Docker API on a passed-in socket, too.
    pub(super) fn serve_also(&self, listener: UnixListener) {
        self.tasks.spawn("proxy", proxy::serve(listener, self.proxy.clone()));
    }

    /// Serves the default identity to processes of this machine; returns the variables that lead them there.
    pub(super) fn serve_processes(&self, config: &Config) -> Result<Vec<(String, String)>, Failure> {
        let at = (Ipv4Addr::LOCALHOST, 0).into();
        let with = (&self.tasks, &self.console, &self.proxy.settings().recorder);
        processes::serve(at, false, &self.credentials, config, with).map(|(_, variables)| variables)
    }

    /// Opens the page on a free port, behind `capability`; returns its URL.
    pub(super) async fn show_page(&self, capability: Secret<String>) -> Result<String, Failure> {
        let failed = |error: io::Error| broken("show the page", error);
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let at = listener.local_addr().map_err(failed)?;
        let place = format!("http://{at}/{}/", capability.expose());
        let through = Listener::Page(Arc::new(capability));
        self.tasks
            .spawn("page", self.control_server.clone().serve_loopback(listener, through, self.tasks.clone()));
        Ok(place)
    }

    pub(super) fn has_created(&self) -> bool {
        self.proxy.settings().created.load(Ordering::Relaxed)
    }

    /// Whether a client is still connected to our socket. Waits a moment first, because the end of a program
    /// may be seen before the end of its connections.
    pub(super) async fn has_clients(&self) -> bool {
        let until = Instant::now() + CLIENTS_LEAVE;
        while self.proxy.settings().clients.count() > 0 {
            if Instant::now() > until {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }

    /// Ends the session: no creates, then the containers (unless `keep`), the leases, the relay, the network,
    /// the socket. Every step is tried, even if an earlier one failed.
    pub(super) async fn close(self, keep: bool) {
        self.refuse_creates();
        if keep {
            for (container, task) in running(&self.lifecycle, &self.console).await {
                self.console.notice(format!("{task} ({container}) keeps running, without identity"));
            }
        } else {
            let _alone = self.stopping.lock().await;
            stop_containers(&self.lifecycle, &self.metadata.engine, &self.console).await;
        }
        self.lifecycle.report_ends().await;
        let summary = self.lifecycle.cut_off_all();
        // Ending the tunnel ends the relay.
        self.tasks.finish(Duration::from_secs(3)).await;
        if let Some(inputs) = &self.inputs {
            inputs.close().await;
        }
        // If the network stays, so does the socket: without a listener, it shows the next start that the
        // session is dead.
        let networks = std::iter::once(&self.metadata).chain(self.second.get());
        let closing = networks.map(|metadata| async move { (metadata, metadata.close().await) });
        let mut all_gone = true;
        for (metadata, closed) in futures_util::future::join_all(closing).await {
            if let Err(error) = closed {
                self.console.notice(format!("the network {} stays: {error}", metadata.network.name));
                all_gone = false;
            }
        }
        if all_gone {
            let _ = std::fs::remove_file(&self.socket);
        }
        let _ = std::fs::remove_file(&self.control);
        self.proxy.settings().recorder.finish(FLUSH_WITHIN).await;
        if !self.live {
            return;
        }
        let now = Now::read();
        let last = summary.outstanding.iter().max_by_key(|end| end.wall());
        self.console.say(Line::Ended {
            attached: summary.attached,
            cut_off: summary.cut_off,
            outstanding: summary.outstanding.len() as u64,
            until: last.map(|end| expiry(end.wall(), end.remaining(now))),
        });
    }
}

/// Stops all containers concurrently.
async fn stop_containers(lifecycle: &Lifecycle, engine: &Engine, console: &Console) {
    let running = running(lifecycle, console).await;
    let stops = running.iter().map(|(container, task)| async move {
        match engine.stop(container.as_str(), STOP_GRACE_SECONDS).await {
            Ok(()) => console.notice(format!("stopped {task} ({container})")),
            Err(error) => console.notice(format!("could not stop {task} ({container}): {error}")),
        }
    });
    futures_util::future::join_all(stops).await;
}

async fn running(lifecycle: &Lifecycle, console: &Console) -> Vec<(ContainerId, Arc<Task>)> {
    lifecycle.running().await.unwrap_or_else(|error| {
        console.notice(format!("which containers still run is not known: {error}"));
        vec![]
    })
}

/// A recorder, with the audit log if the config asks for one.
pub(super) fn recorder(config: &Config, session: &str, console: &Console) -> Result<Recorder, Failure> {
    let Some(settings) = config.audit.clone() else { return Ok(Recorder::default()) };
    let (file, console) = (crate::quote::path(&settings.file), console.clone());
    let audit = Audit::open(settings, session, Arc::new(move |text| console.notice(text)));
    let audit = audit.map_err(|error| broken(&format!("the audit log {file}"), error))?;
    Ok(Recorder::new(Some(audit)))
}

pub(super) fn session_id() -> Result<String, Failure> {
    let mut bytes = [0_u8; 4];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Failure::NotPermitted("there are no random numbers".into()))?;
    Ok(format!("{:08x}", u32::from_be_bytes(bytes)))
}
