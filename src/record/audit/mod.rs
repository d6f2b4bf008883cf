//! The audit log: one JSON object per line, written by its own thread behind a bounded queue, so that serving
//! never waits for a disk.
//!
//! Files are 0600 and rotated by size. Several sessions may share one: every batch is written under an
//! advisory lock, to the file that has the path at that time. Entries that cannot be written are lost and
//! counted. The loss is reported once when it begins and once when it ends, then also in the log itself.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::oneshot;

mod file;

use file::LogFile;

use super::Requestor;
use crate::quote;
use crate::token::{HandedOut, MintId, Scopes, TokenKind};
use crate::workload::{By, ContainerId, Grant, Identity, Task};

/// How many entries may wait for the disk.
const QUEUE: usize = 4096;
/// How many entries are written at once.
const BATCH: usize = 256;
/// Names, images and reasons are cut off after this many characters: others chose them.
const LONGEST: usize = 512;

/// `[audit]` of the config.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuditSettings {
    /// An absolute path.
    pub file: PathBuf,
    /// A file that would become larger than this is renamed to `FILE.1` first.
    pub max_bytes: u64,
    /// How many renamed files are kept.
    pub keep: u32,
}

/// One event. All its fields are shared or short, so making one during a request is cheap.
#[derive(Clone, Debug, Default)]
pub(super) struct AuditEntry {
    pub(super) event: &'static str,
    pub(super) outcome: &'static str,
    pub(super) container: Option<ContainerId>,
    pub(super) task: Option<Arc<Task>>,
    pub(super) identity: Option<Arc<Identity>>,
    pub(super) by: Option<By>,
    pub(super) local: bool,
    pub(super) kind: Option<TokenKind>,
    pub(super) account: Option<String>,
    pub(super) scopes: Option<Scopes>,
    pub(super) audience: Option<String>,
    pub(super) mint: Option<MintId>,
    pub(super) ahead: bool,
    pub(super) expires: Option<SystemTime>,
    pub(super) address: Option<Ipv4Addr>,
    pub(super) exit_code: Option<i64>,
    pub(super) outstanding: Option<Vec<HandedOut>>,
    pub(super) status: Option<u16>,
    pub(super) what: Option<String>,
    pub(super) why: Option<String>,
    pub(super) repeats: u64,
}

impl AuditEntry {
    pub(super) fn of(event: &'static str, outcome: &'static str, grant: Option<&Grant>) -> Self {
        Self {
            event,
            outcome,
            container: grant.map(|grant| grant.container.clone()),
            task: grant.map(|grant| grant.task.clone()),
            identity: grant.map(|grant| grant.identity.clone()),
            by: grant.map(|grant| grant.by),
            ..Self::default()
        }
    }

    pub(super) fn task(
        event: &'static str,
        outcome: &'static str,
        container: &ContainerId,
        task: &Arc<Task>,
    ) -> Self {
        let (container, task) = (Some(container.clone()), Some(task.clone()));
        Self { container, task, ..Self::of(event, outcome, None) }
    }

    pub(super) fn who(event: &'static str, outcome: &'static str, who: Requestor<'_>) -> Self {
        match who {
            Requestor::Container(grant) => Self::of(event, outcome, Some(grant)),
            Requestor::Local(identity) => {
                Self { identity: Some(identity.clone()), local: true, ..Self::of(event, outcome, None) }
            }
            Requestor::Session(identity) => {
                Self { identity: Some(identity.clone()), ..Self::of(event, outcome, None) }
            }
            Requestor::Unknown(address) => Self { address: Some(address), ..Self::of(event, outcome, None) },
        }
    }

    pub(super) fn of_token(self, token: &HandedOut) -> Self {
        let (kind, mint) = (Some(token.kind), Some(token.id));
        Self { kind, mint, expires: Some(token.expires.wall()), ..self }
    }

    /// One line of the log.
    fn line(&self, time: SystemTime, session: &str) -> Vec<u8> {
        let task = self.task.as_deref();
        let shown = EntryFields {
            time: rfc3339(time),
            session,
            event: self.event,
            outcome: self.outcome,
            container: self.container.as_ref().map(ContainerId::as_str),
            name: task.and_then(|task| task.name.as_deref()).map(short),
            image: task.map(|task| short(&task.image)),
            pipeline: task.and_then(|task| task.pipeline.as_deref()).map(short),
            component: task.and_then(|task| task.component.as_deref()).map(short),
            identity: self.identity.as_ref().map(|identity| identity.name.as_str()),
            by: self.by.map(|by| by.to_string()),
            caller: self.local.then_some("local"),
            kind: self.kind.map(TokenKind::word),
            account: self.account.as_deref(),
            scopes: self.scopes.as_ref().map(|scopes| scopes.iter().collect()),
            audience: self.audience.as_deref().map(short),
            mint: self.mint.map(|mint| mint.to_string()),
            ahead: self.ahead.then_some(true),
            expires: self.expires.map(rfc3339),
            outstanding: self
                .outstanding
                .as_ref()
                .map(|all| all.iter().map(|one| one.id.to_string()).collect()),
            clouds: self.outstanding.as_ref().filter(|all| !all.is_empty()).map(|all| by_cloud(all)),
            address: self.address,
            exit_code: self.exit_code,
            status: self.status,
            what: self.what.as_deref().map(short),
            why: self.why.as_deref().map(short),
            repeats: (self.repeats > 0).then_some(self.repeats),
        };
        line(&shown)
    }
}

/// The fields of an entry, in the order of the file. `docs/reference/audit.md` explains them.
#[derive(Debug, Serialize)]
struct EntryFields<'a> {
    time: String,
    session: &'a str,
    event: &'static str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pipeline: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    component: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<Vec<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audience: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ahead: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outstanding: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clouds: Option<BTreeMap<&'static str, usize>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    what: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repeats: Option<u64>,
}

/// How many tokens are of each cloud.
fn by_cloud(all: &[HandedOut]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    all.iter().for_each(|one| *counts.entry(one.kind.cloud().word()).or_default() += 1);
    counts
}

fn line(shown: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(shown).unwrap_or_default();
    line.push(b'\n');
    line
}

pub(super) fn short(text: &str) -> &str {
    text.char_indices().nth(LONGEST).map_or(text, |(end, _)| &text[..end])
}

fn rfc3339(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let at = at.replace_nanosecond(at.millisecond() as u32 * 1_000_000).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_default()
}

enum Message {
    Entry(SystemTime, Box<AuditEntry>),
    /// Answered when all earlier entries are on the disk or lost.
    Flush(oneshot::Sender<()>),
}

/// The handle to the log.
#[derive(Debug)]
pub struct Audit {
    file: PathBuf,
    queue: SyncSender<Message>,
    state: Arc<AuditState>,
}

/// Shows a line on the terminal.
pub type Complain = Arc<dyn Fn(String) + Send + Sync>;

struct AuditState {
    session: Mutex<String>,
    lost: AtomicU64,
    /// Entries are being lost: the beginning was reported, the end not yet.
    losing: AtomicBool,
    complain: Complain,
}

impl std::fmt::Debug for AuditState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("lost", &self.lost)
            .field("losing", &self.losing)
            .finish_non_exhaustive()
    }
}

impl AuditState {
    fn lose(&self, entries: u64, why: &dyn std::fmt::Display) {
        self.lost.fetch_add(entries, Ordering::Relaxed);
        if !self.losing.swap(true, Ordering::AcqRel) {
            (self.complain)(format!("the audit log loses entries: {why}; tokens are served all the same"));
        }
    }
}

impl Audit {
    /// Opens the log and starts its thread. Fails if the file cannot be opened: an operator who configured a
    /// log needs to know at once that there is none.
    pub fn open(settings: AuditSettings, session: &str, complain: Complain) -> io::Result<Self> {
        let log = LogFile::open(settings.clone())?;
        let (queue, messages) = sync_channel(QUEUE);
        let lost = AtomicU64::new(0);
        let session = Mutex::new(session.to_owned());
        let state = Arc::new(AuditState { session, lost, losing: AtomicBool::new(false), complain });
        let writer = LogWriter { log, state: state.clone(), told: 0 };
        std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&messages))?;
        Ok(Self { file: settings.file, queue, state })
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    pub(super) fn name_session(&self, session: &str) {
        *self.state.session.lock().unwrap_or_else(PoisonError::into_inner) = session.to_owned();
    }

    pub fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::Relaxed)
    }

    /// True while entries are being lost.
    pub fn losing(&self) -> bool {
        self.state.losing.load(Ordering::Acquire)
    }

    pub(super) fn write(&self, entry: AuditEntry) {
        let message = Message::Entry(SystemTime::now(), Box::new(entry));
        if self.queue.try_send(message).is_err() {
            self.state.lose(1, &"the disk does not keep up");
        }
    }

    /// Waits until all entries so far are written, at most for `within`.
    pub async fn flush(&self, within: Duration) {
        let (done, written) = oneshot::channel();
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            let _ = tokio::time::timeout(within, written).await;
        }
    }
}

/// The thread's state.
struct LogWriter {
    log: LogFile,
    state: Arc<AuditState>,
    /// How many lost entries were reported in the log.
    told: u64,
}

impl LogWriter {
    /// Writes entries until the last sender is gone.
    fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(first) = messages.recv() {
            let session = self.session();
            let mut batch = Vec::new();
            let mut entries = 0;
            let mut flushed = Vec::new();
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Entry(time, entry) => {
                        batch.extend(entry.line(time, &session));
                        entries += 1;
                    }
                    Message::Flush(done) => flushed.push(done),
                }
                next = (entries < BATCH).then(|| messages.try_recv().ok()).flatten();
            }
            if entries > 0 {
                self.write(&batch, entries as u64);
            }
            for done in flushed {
                let _ = done.send(());
            }
        }
    }

    fn session(&self) -> String {
        self.state.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn write(&mut self, batch: &[u8], entries: u64) {
        if let Err(error) = self.log.append(batch) {
            self.state.lose(entries, &format!("{}: {error}", quote::path(&self.log.settings.file)));
            return;
        }
        if self.state.losing.load(Ordering::Acquire) {
            let lost = self.state.lost.load(Ordering::Relaxed);
            let missing = lost - self.told;
            let note = serde_json::json!({
                "time": rfc3339(SystemTime::now()), "session": self.session(),
                "event": "lost", "outcome": "lost", "entries": missing,
            });
            if self.log.append(&line(&note)).is_ok() {
                self.told = lost;
                self.state.losing.store(false, Ordering::Release);
                (self.state.complain)(format!("the audit log is written again; {missing} entries were lost"));
            }
        }
    }
}

#[cfg(test)]
mod tests;
