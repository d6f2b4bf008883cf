//! A separate Docker engine that a test may restart: in its own network namespace, so that its bridges and
//! packet rules do not meet those of the shared one. It is of the same release as the shared one, if
//! `scripts/engine` started that.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::session::{Folder, docker_at};

/// One static binary; `scripts/setup` needs it as well.
pub(crate) const IMAGE: &str = "kct-busybox:1";

pub(crate) struct SecondEngine {
    folder: Folder,
    namespace: String,
    /// The name for `scripts/engine daemon`; with `None`, this machine's `dockerd` runs.
    unpacked: Option<String>,
    daemon: Option<Child>,
}

impl SecondEngine {
    pub(crate) fn start() -> Self {
        Self::of(unpacked())
    }

    /// An engine that shares no files with this machine, like one in a virtual machine.
    pub(crate) fn vm() -> Self {
        Self::of(Some(format!("{}-vm", unpacked().as_deref().unwrap_or("host"))))
    }

    fn of(unpacked: Option<String>) -> Self {
        assert!(
            rustix::process::getuid().is_root(),
            "an engine of its own needs root: run scripts/test as root"
        );
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let namespace = format!("kct-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &namespace]);
        let mut engine = Self { folder: Folder::new("engine"), namespace, unpacked, daemon: None };
        ip(&["-n", &engine.namespace, "link", "set", "lo", "up"]);
        engine.up();
        engine.load();
        engine
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.0.join("docker.sock")
    }

    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub(crate) fn up(&mut self) {
        let place = |name: &str| self.folder.0.join(name).display().to_string();
        let log = std::fs::File::options().create(true).append(true).open(place("log")).unwrap();
        let mut daemon = Command::new("nsenter");
        daemon.arg(format!("--net=/run/netns/{}", self.namespace));
        match &self.unpacked {
            Some(name) => {
                let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/engine");
                daemon.args(["unshare", "--mount", script, "daemon", name, &text(&self.folder.0)]);
            }
            None => {
                daemon.args(["dockerd", "--host", &self.host(), "--data-root", &place("data")]);
                daemon.args(["--exec-root", &place("exec"), "--pidfile", &place("pid")]);
                daemon.args(["--shutdown-timeout", "5"]);
            }
        }
        let daemon = daemon.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.daemon = Some(daemon.unwrap());
        let end = Instant::now() + Duration::from_secs(40);
        while !docker_at(&self.socket(), &["version"]).status.success() {
            assert!(Instant::now() < end, "{}", std::fs::read_to_string(place("log")).unwrap());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops it in good order, with its containers.
    pub(crate) fn down(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = Command::new("kill").args(["-TERM", &daemon.id().to_string()]).status();
            daemon.wait().unwrap();
        }
    }

    /// `signal` as `kill` takes it: `-STOP` pauses the engine.
    pub(crate) fn signal(&self, signal: &str) {
        let daemon = self.daemon.as_ref().expect("an engine that runs").id().to_string();
        assert!(Command::new("kill").args([signal, &daemon]).status().unwrap().success());
    }

    pub(crate) fn docker(&self, arguments: &[&str]) -> Output {
        docker_at(&self.socket(), arguments)
    }

    /// The trimmed stdout of a success.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let out = self.docker(arguments);
        assert!(out.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_string()
    }

    fn load(&self) {
        let root = self.folder.0.join("root");
        std::fs::create_dir_all(root.join("bin")).unwrap();
        assert!(std::fs::copy("/bin/busybox", root.join("bin/busybox")).is_ok(), "install busybox-static");
        for applet in ["sh", "sleep", "nc", "true"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let tar = self.folder.0.join("image.tar");
        let packed = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status();
        assert!(packed.unwrap().success());
        self.ok(&["import", "-c", "ENV PATH=/bin", &text(&tar), IMAGE]);
    }
}

impl Drop for SecondEngine {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            let all = self.docker(&["ps", "-aq"]);
            let all = String::from_utf8_lossy(&all.stdout).into_owned();
            for container in all.split_whitespace() {
                self.docker(&["rm", "-f", container]);
            }
        }
        self.down();
        // Mounts that the engine made there for its sandboxes must go before the folder.
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        let inside = text(&self.folder.0);
        for place in
            mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with(&inside))
        {
            let _ = Command::new("umount").arg(place).status();
        }
        ip(&["netns", "del", &self.namespace]);
    }
}

/// The Docker of `scripts/engine names` that the other tests use, if it is one of those: this is another
/// instance.
fn unpacked() -> Option<String> {
    let name = std::env::var("KFP_CREDS_TEST_ENGINE_NAME").ok()?;
    let rooted = name.strip_suffix("-rootless").unwrap_or(&name);
    rooted.starts_with("docker-").then(|| rooted.to_string())
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status();
    assert!(std::thread::panicking() || status.is_ok_and(|status| status.success()), "ip {arguments:?}");
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
