//! Weeks in minutes: containers come and go, tokens are renewed, and relay and engine fail, in an order that
//! a seed decides. Afterwards nothing is wrong or lost, and nothing has grown. `scripts/soak` runs it for
//! longer.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::restart::asks;
use crate::support::raw::until;
use crate::support::second_engine::{IMAGE, SecondEngine};
use crate::support::session::{Session, claims, program};

const CONFIG: &str = r#"
[identity.reader]
service_account = "reader@p.iam.gserviceaccount.com"
lifetime = "10m"
[identity.writer]
service_account = "writer@p.iam.gserviceaccount.com"
lifetime = "10m"
[[rule]]
labels = { task = "reader" }
identity = "reader"
[[rule]]
labels = { task = "writer" }
identity = "writer"
[audit]
file = "audit.jsonl"
# So few addresses that some are used again after minutes, and that none is left if they do not come back.
[network]
pool = "10.213.7.0/25"
"#;

const TASKS: [&str; 2] = ["reader", "writer"];
/// The time that relay and engine may take to come back.
const BACK_WITHIN: Duration = Duration::from_secs(40);

/// Numbers that follow from a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % end
    }
}

/// The resources of a process while no container exists.
#[derive(Clone, Copy, Debug)]
struct Usage {
    /// Anonymous memory, in KiB.
    memory: u64,
    descriptors: u64,
    /// Number of containers so far.
    containers: u64,
}

struct Soak {
    engine: SecondEngine,
    session: Session,
    random: Random,
    containers: AtomicU64,
    faults: Vec<(&'static str, u64)>,
}

#[test]
fn nothing_grows_and_nothing_is_lost_while_things_fail() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("KFP_CREDS_TEST_SOAK").unwrap_or(30);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    let seed = number("KFP_CREDS_TEST_SOAK_SEED").unwrap_or(now.as_secs() | 1);
    eprintln!("seed {seed}, {seconds} s");
    let engine = SecondEngine::start();
    let host = engine.host();
    let arguments = ["--offline", "--all", "--config", "kfp-creds.toml"];
    let session = Session::start(CONFIG, &arguments, &[("DOCKER_HOST", &host)]);
    let mut soak =
        Soak { engine, session, random: Random(seed), containers: AtomicU64::new(0), faults: vec![] };
    let watcher = soak.watcher();
    let (began, mut samples) = (Instant::now(), vec![]);
    while began.elapsed() < Duration::from_secs(seconds) || samples.len() < 3 {
        soak.batch();
        soak.misbehave();
        soak.fault();
        soak.settled();
        samples.push(soak.usage());
    }
    soak.watched(&watcher, seconds);
    soak.engine.ok(&["rm", "-f", &watcher]);
    let Soak { engine, session, containers, faults, .. } = soak;
    let audit = std::fs::metadata(session.folder.0.join("audit.jsonl")).unwrap().len();
    let (code, said) = session.end();
    let all = containers.into_inner();
    let report = json!({
        "seed": seed, "seconds": began.elapsed().as_secs(), "rounds": samples.len(), "containers": all,
        "faults": faults.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "memory_kib": samples.iter().map(|usage| usage.memory).collect::<Vec<_>>(),
        "descriptors": samples.iter().map(|usage| usage.descriptors).collect::<Vec<_>>(),
        "audit_bytes_a_container": audit / all, "output_bytes_a_container": said.len() as u64 / all,
    });
    eprintln!("soak: {report}");
    if let Ok(file) = std::env::var("KFP_CREDS_TEST_SOAK_REPORT") {
        std::fs::write(file, format!("{report}\n")).unwrap();
    }
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("panicked") && !said.contains(" stays: "), "{said}");
    assert_eq!(engine.ok(&["ps", "-aq"]), "", "containers stay");
    assert_eq!(engine.ok(&["network", "ls", "-q", "--filter", "name=kfp-creds"]), "", "a network stays");
    does_not_grow(&samples);
    assert!(said.len() as u64 / all < 600 && audit / all < 2000, "{report}");
}

/// The first third does not count, since a program keeps some things for good, mostly the last 500 runs for
/// the page. Afterwards a container that is gone leaves 64 bytes (`tests/memory.rs`); the mebibyte is for the
/// allocator.
fn does_not_grow(samples: &[Usage]) {
    let third = samples.len() / 3;
    let least = |of: &[Usage]| of.iter().map(|usage| usage.memory).min().unwrap();
    let (before, after) = (&samples[third..=third * 2], &samples[samples.len() - third.max(1)..]);
    let (first, last) = (before[0], after[after.len() - 1]);
    let allowed = 1024 + (last.containers - first.containers) * 64 / 1024;
    assert!(least(after) <= least(before) + allowed, "memory grows by more than {allowed} KiB: {samples:?}");
    // One of the two samples may include a connection of the watcher or of a poll.
    assert!(last.descriptors <= first.descriptors + 3, "descriptors grow: {samples:?}");
}

impl Soak {
    /// A container that runs all the time and asks every ten seconds, whatever else happens.
    fn watcher(&self) -> String {
        let script = format!("while :; do {} & sleep 10; done", asks());
        let flags = ["-d", "--restart", "always", "--stop-timeout", "1", "--label", "task=reader"];
        self.session.ok(&[&["run"], &flags[..], &[IMAGE, "sh", "-c", &script]].concat())
    }

    /// The watcher only had tokens of its own identity, and new ones when the old ones expired.
    fn watched(&self, watcher: &str, seconds: u64) {
        let said = self.engine.ok(&["logs", watcher]);
        let tokens: Vec<&str> = access_tokens(&said).collect();
        assert!(tokens.len() as u64 > seconds / 40, "{} tokens in {seconds} s", tokens.len());
        let all = tokens.iter().map(|token| claims(token));
        let mut issued: Vec<u64> = all
            .map(|claims| {
                assert_eq!((&claims["container"], &claims["email"]), (&json!(watcher), &account("reader")));
                claims["iat"].as_u64().unwrap()
            })
            .collect();
        issued.dedup();
        assert!(issued.len() as u64 > seconds / 700, "{issued:?}");
    }

    /// Well-behaved containers: each has its own token with its first instruction, and its exit code.
    fn batch(&mut self) {
        let (count, parallel) = (8 + self.random.below(16), 1 + self.random.below(5));
        let codes: Vec<u64> = (0..count).map(|_| 1 + self.random.below(119)).collect();
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..parallel {
                scope.spawn(|| {
                    while let Some(code) = codes.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                        self.behaves(TASKS[(*code % 2) as usize], *code);
                    }
                });
            }
        });
    }

    fn behaves(&self, task: &str, code: u64) {
        let (label, script) = (format!("task={task}"), format!("{}; exit {code}", asks()));
        let create = ["create", "--rm", "--label", &label, IMAGE, "sh", "-c", &script];
        let container = self.session.ok(&create);
        self.containers.fetch_add(1, Ordering::Relaxed);
        let ran = self.session.docker(&["start", "-a", &container]);
        let printed = String::from_utf8_lossy(&ran.stdout);
        assert_eq!(ran.status.code(), Some(code as i32), "{printed}{ran:?}\n{}", self.session.said());
        let token = access_tokens(&printed).next();
        let token = token.unwrap_or_else(|| panic!("{container} missed: {printed}\n{}", self.session.said()));
        let claims = claims(token);
        assert_eq!((&claims["container"], &claims["email"]), (&json!(container), &account(task)));
    }

    /// Containers that are killed, restarted, paused, removed while they run, or never started; clients that
    /// hang up.
    fn misbehave(&mut self) {
        for _ in 0..2 + self.random.below(4) {
            let flags = ["--label", "task=writer", "--stop-timeout", "1"];
            let long = format!("{}; sleep 60", asks());
            let create = [&["create"], &flags[..], &[IMAGE, "sh", "-c", &long]].concat();
            let container = self.session.ok(&create);
            self.containers.fetch_add(1, Ordering::Relaxed);
            let what = self.random.below(6);
            if what > 0 {
                self.session.ok(&["start", &container]);
            }
            match what {
                1 => drop(self.engine.ok(&["kill", &container])),
                2 => drop(self.session.ok(&["restart", "-t", "0", &container])),
                3 => {
                    self.session.ok(&["pause", &container]);
                    self.session.ok(&["unpause", &container]);
                }
                4 => self.hangs_up(),
                _ => {}
            }
            self.session.ok(&["rm", "-f", &container]);
        }
    }

    /// A client that is killed while it waits for its container.
    fn hangs_up(&self) {
        let host = format!("unix://{}", self.session.socket.display());
        let name = format!("gone-{}", self.containers.fetch_add(1, Ordering::Relaxed));
        let mut client = Command::new("docker");
        client.args(["-H", &host, "run", "--name", &name, IMAGE, "sleep", "60"]);
        let mut client = client.stdout(std::process::Stdio::null()).spawn().unwrap();
        let there = || self.engine.docker(&["inspect", &name]).status.success();
        until("it is created", Duration::from_secs(10), there);
        client.kill().unwrap();
        client.wait().unwrap();
        self.session.ok(&["rm", "-f", &name]);
    }

    fn fault(&mut self) {
        let name = match self.random.below(9) {
            0 | 1 => {
                let relays = self.session.said().matches("the relay died and was replaced").count();
                let label = "label=kfp-creds.role=relay";
                let relay = self.engine.ok(&["ps", "-q", "--filter", label]);
                self.engine.ok(&["kill", &relay]);
                until("another relay", BACK_WITHIN, || {
                    self.session.said().matches("the relay died and was replaced").count() > relays
                });
                "relay killed"
            }
            2 => {
                self.engine.signal("-STOP");
                std::thread::sleep(Duration::from_secs(1 + self.random.below(8)));
                self.engine.signal("-CONT");
                "engine paused"
            }
            3 => {
                self.engine.down();
                self.engine.up();
                "engine restarted"
            }
            4 => {
                let reads = self.session.said().matches("was read again").count();
                let text = format!("# {}\n{CONFIG}", self.random.below(u64::MAX));
                let new = self.session.folder.0.join("new.toml");
                std::fs::write(&new, text).unwrap();
                std::fs::rename(new, self.session.folder.0.join("kfp-creds.toml")).unwrap();
                until("the config is read", BACK_WITHIN, || {
                    self.session.said().matches("was read again").count() > reads
                });
                "config changed"
            }
            5 => {
                // As on a laptop that sleeps: events, exits and requests accumulate.
                let pid = self.session.pid().to_string();
                let signal =
                    |name: &str| assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
                signal("-STOP");
                self.engine.ok(&["run", "--rm", IMAGE, "true"]);
                std::thread::sleep(Duration::from_secs(1 + self.random.below(8)));
                signal("-CONT");
                "program paused"
            }
            _ => "none",
        };
        match self.faults.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => self.faults.push((name, 1)),
        }
    }

    /// Waits until containers get tokens again, and only the watcher has a lease.
    fn settled(&self) {
        until("a container has its token", BACK_WITHIN, || {
            let ask = asks();
            let out =
                self.session.docker(&["run", "--rm", "--label", "task=reader", IMAGE, "sh", "-c", &ask]);
            self.containers.fetch_add(1, Ordering::Relaxed);
            access_tokens(&String::from_utf8_lossy(&out.stdout)).next().is_some()
        });
        until("only the watcher has a lease", BACK_WITHIN, || self.leases() == 1);
    }

    fn leases(&self) -> usize {
        let id = self.session.socket.file_stem().unwrap().to_str().unwrap();
        let shown = program(&self.session.folder.0).args(["status", "--json", "--session", id]).output();
        let shown: Value = serde_json::from_slice(&shown.unwrap().stdout).unwrap_or_default();
        shown[0]["leases"].as_array().map_or(usize::MAX, Vec::len)
    }

    fn usage(&self) -> Usage {
        let place = format!("/proc/{}", self.session.pid());
        let status = std::fs::read_to_string(format!("{place}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let memory = line.trim().trim_end_matches(" kB").parse().unwrap();
        let descriptors = std::fs::read_dir(Path::new(&place).join("fd")).unwrap().count() as u64;
        Usage { memory, descriptors, containers: self.containers.load(Ordering::Relaxed) }
    }
}

fn account(task: &str) -> Value {
    json!(format!("{task}@p.iam.gserviceaccount.com"))
}

/// The tokens in the replies that a container printed.
fn access_tokens(printed: &str) -> impl Iterator<Item = &str> {
    printed.split("\"access_token\":").skip(1).filter_map(|rest| rest.split('"').nth(1))
}
