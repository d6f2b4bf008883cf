//! Handles the engine's events, and compares containers with the engine's state: all of them after a gap in
//! the events, and those with a confirmed lease every few seconds.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;

use super::{AttachedContainer, Lifecycle, LifecycleState};
use crate::docker::Product;
use crate::docker::events::ContainerEvent;
use crate::registry::Lease;
use crate::workload::ContainerId;

impl Lifecycle {
    /// Follows the engine's events until the session stops; after a break, inspects all containers for missed
    /// changes.
    pub async fn follow_events(self: Arc<Self>) {
        let mut ends = self.exits.ends();
        loop {
            // Taken before the resync, so that the subscription also reports what happens during the resync.
            let since = SystemTime::now();
            self.resync().await;
            let mut events = Box::pin(self.engine.container_events(since));
            loop {
                let event = tokio::select! {
                    () = self.tasks.stop().cancelled() => return,
                    Some(container) = ends.recv() => {
                        self.clone().expect_die(container);
                        continue;
                    }
                    event = events.next() => event,
                };
                match event {
                    Some(Ok(event)) => self.clone().on(event),
                    Some(Err(error)) => {
                        tracing::debug!(%error, "lost the engine's events; reconnecting");
                        break;
                    }
                    None => break,
                }
            }
            self.doubt_all();
            tokio::select! {
                () = self.tasks.stop().cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }

    /// Compares all known containers with the engine's state, after a gap in the events.
    async fn resync(self: &Arc<Self>) {
        self.look_for_strangers().await;
        for (container, network) in self.known_networks(|_| true) {
            self.look_at(&container, &network).await;
        }
    }

    /// Compares the containers that have a confirmed lease with the engine's list of running ones: an engine
    /// drops events for a reader that it considers slow.
    pub(super) async fn compare(self: &Arc<Self>) {
        let is_confirmed =
            |attached: &AttachedContainer| attached.lease.as_ref().is_some_and(Lease::confirmed);
        let confirmed = self.known_networks(is_confirmed);
        if confirmed.is_empty() {
            return;
        }
        let Ok(members) = self.engine.containers_of(&self.session).await else { return };
        for (container, network) in confirmed {
            if !members.iter().any(|member| member.running && member.id == container.as_str()) {
                self.look_at(&container, &network).await;
            }
        }
    }

    fn known_networks(&self, which: impl Fn(&AttachedContainer) -> bool) -> Vec<(ContainerId, String)> {
        let state = self.state();
        let found = state.containers.iter().filter(|(_, attached)| which(attached));
        found.map(|(container, attached)| (container.clone(), attached.network.clone())).collect()
    }

    async fn look_at(self: &Arc<Self>, container: &ContainerId, network: &str) {
        match self.engine.look(container.as_str(), network).await {
            Ok(seen) if seen.running => {
                self.readmit(container);
                self.confirm(container).await;
            }
            Ok(seen) => self.ended_unseen(container, seen.exit_code),
            Err(error) if error.is_gone() => self.forget(container),
            Err(error) => tracing::debug!(%error, %container, "could not look at a container"),
        }
    }

    async fn look_again(&self, container: &ContainerId) {
        let network = self.state().containers.get(container).map(|attached| attached.network.clone());
        let Some(network) = network else { return };
        if self.engine.look(container.as_str(), &network).await.is_ok_and(|seen| seen.running) {
            self.readmit(container);
            self.confirm(container).await;
        }
    }

    /// Marks all leases unconfirmed. During a break in the events a container may end unseen and its address
    /// may go to another one, so the server answers a container only after another inspection.
    fn doubt_all(&self) {
        let mut state = self.state();
        let LifecycleState { writer, containers, .. } = &mut *state;
        containers
            .values()
            .filter_map(|attached| attached.lease.as_ref())
            .for_each(|lease| writer.doubt(lease));
    }

    /// Records that the container has run, even if it ended before it could be inspected.
    pub(super) fn has_run(&self, container: &ContainerId) {
        if let Some(attached) = self.state().containers.get_mut(container) {
            attached.started = true;
        }
    }

    fn on(self: Arc<Self>, event: ContainerEvent) {
        match event {
            ContainerEvent::Started(container) => {
                self.has_run(&container);
                self.readmit(&container);
                // Podman reports the connection of a running container, but not that of a container that
                // starts.
                if self.engine.product() == Product::Podman && !self.state().is_leased(&container) {
                    let this = self.clone();
                    self.tasks.spawn("strangers", async move { this.look_for_strangers().await });
                }
                let this = self.clone();
                self.tasks.spawn("confirm", async move { this.confirm(&container).await });
            }
            ContainerEvent::Died { container, code, at } => {
                self.has_run(&container);
                if let Some(code) = code {
                    self.exits.died(&container, code);
                }
                self.died(&container, code, at);
                // Podman reports no disconnect when a container ends.
                self.stranger_ended(&container);
                // Events can come late: if the container runs, this event reported an earlier run.
                let this = self.clone();
                self.tasks.spawn("look", async move { this.look_again(&container).await });
            }
            ContainerEvent::Destroyed(container) => {
                self.stranger_gone(&container, None);
                self.forget(&container);
            }
            ContainerEvent::Connected { container, network } => self.connected(container, network),
            ContainerEvent::Disconnected { container, network, at } => {
                self.stranger_gone(&container, Some(&network));
                self.disconnected(&container, &network, at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::console::{Console, OutputForm};
    use crate::docker::Engine;
    use crate::docker::members::KnownMembers;
    use crate::docker::network::Network;
    use crate::docker::proxy::{Attachment, RelayAt};
    use crate::lifecycle::{Granting, SessionNetworks};
    use crate::mint::Mint;
    use crate::process::Tasks;
    use crate::record::Recorder;
    use crate::registry;
    use crate::source::offline::Offline;
    use crate::workload::{By, Grant, Identity, Task};

    /// An engine that reports a version, accepts every connect, and says that no container runs or is on a
    /// network.
    async fn engine(folder: &std::path::Path, tasks: &Tasks) -> Engine {
        let socket = folder.join("engine.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        tasks.spawn("engine", async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..read]);
                let body = match () {
                    () if head.contains("/version") => {
                        format!(r#"{{"Version":"20.10","ApiVersion":"1.41","Os":"linux","Arch":"{arch}"}}"#)
                    }
                    () if head.contains("/containers/json") => "[]".into(),
                    () => r#"{"State":{"Running":false}}"#.into(),
                };
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
                let reply = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
                // A client that only tests whether anybody listens has disconnected by now.
                let _ = stream.write_all(reply.as_bytes()).await;
            }
        });
        Engine::connect(&socket).await.unwrap()
    }

    fn folder(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("kc-events-{name}-{}", std::process::id()))
    }

    /// A lifecycle with a second network, whose id is `n`.
    async fn lifecycle(name: &str) -> Arc<Lifecycle> {
        let folder = folder(name);
        std::fs::create_dir_all(&folder).unwrap();
        let tasks = Tasks::new();
        let engine = engine(&folder, &tasks).await;
        let recorder = Recorder::default();
        let mint =
            Mint::new(Arc::new(Offline::new("p", "a@p.invalid").unwrap()), tasks.clone(), recorder.clone());
        let network = Network {
            id: "n".into(),
            name: "n".into(),
            session: "s".into(),
            subnet: "10.0.0.0/24".into(),
            keeps_credentials_address: false,
            routed: false,
        };
        let (writer, _reader, _questions) = registry::new();
        let granting = Granting { writer, mint, recorder };
        let addresses = (2..9).map(|last| Ipv4Addr::new(10, 0, 0, last));
        let relay = RelayAt { address: Ipv4Addr::new(10, 0, 0, 1), container_credentials: false };
        let console = Console::new(OutputForm::Quiet, std::io::sink());
        let known = KnownMembers::default();
        let networks = SessionNetworks { engine, session: "s".into(), segment: None, known };
        let lifecycle = Lifecycle::new(networks, granting, console, tasks);
        lifecycle.open_second(network, relay, addresses);
        lifecycle
    }

    fn container(digit: &str) -> ContainerId {
        ContainerId::parse(&digit.repeat(64)).unwrap()
    }

    async fn attach(lifecycle: &Arc<Lifecycle>, container: ContainerId) {
        let identity = Arc::new(Identity::default());
        let grant =
            Grant { container, identity, by: By::Default, task: Arc::new(Task::default()), secret: None };
        lifecycle.attach(grant, Attachment::Shared).await.unwrap();
    }

    #[tokio::test]
    async fn a_container_that_ended_before_its_inspection_has_run() {
        let lifecycle = lifecycle("ended").await;
        let [ran, ended, never] = ["a", "b", "c"].map(container);
        for container in [&ran, &ended, &never] {
            attach(&lifecycle, container.clone()).await;
        }
        lifecycle.clone().on(ContainerEvent::Started(ran.clone()));
        lifecycle.clone().on(ContainerEvent::Died { container: ended.clone(), code: Some(0), at: None });
        std::fs::remove_dir_all(folder("ended")).unwrap();
        assert!(lifecycle.started(&ran) && lifecycle.started(&ended) && !lifecycle.started(&never));
    }

    #[tokio::test]
    async fn a_stranger_that_left_during_a_gap_or_ended_is_forgotten() {
        let lifecycle = lifecycle("stranger").await;
        attach(&lifecycle, container("a")).await;
        let stranger = container("b");
        let connect = || lifecycle.suspend(&stranger, "n");
        assert!(connect() && lifecycle.state().strangers.are_on("n"));
        lifecycle.resync().await;
        assert!(!lifecycle.state().strangers.are_on("n"));
        assert!(connect());
        lifecycle.clone().on(ContainerEvent::Died { container: stranger.clone(), code: Some(0), at: None });
        let gone = async {
            while lifecycle.state().strangers.are_on("n") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
        std::fs::remove_dir_all(folder("stranger")).unwrap();
    }
}
