//! Records events: one call per event, which counts it ([`metrics`]), remembers it for the page ([`history`])
//! and, if configured, writes it to a log ([`audit`]).
//!
//! No token gets here, nor a hash of one: records have no field for it. No call here waits.

pub mod audit;
pub mod history;
pub mod metrics;
mod quiet;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use audit::{Audit, AuditEntry};
use history::{History, RefusingPart};
use metrics::{Attach, Cause, Metrics, MintOutcome};
use quiet::Quiet;

use crate::token::{Deadline, HandedOut, Scopes, TokenKind};
use crate::workload::{ContainerId, Grant, Identity, Task};

/// Records all events; clones share it. The default one only counts.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<RecorderInner>);

#[derive(Debug, Default)]
struct RecorderInner {
    audit: Option<Audit>,
    metrics: Metrics,
    history: History,
    quiet: Quiet,
}

/// The party that requested a token.
#[derive(Clone, Copy, Debug)]
pub enum Requestor<'a> {
    Container(&'a Grant),
    /// A program on this machine (`serve --listen`).
    Local(&'a Arc<Identity>),
    /// The session itself, ahead of any request.
    Session(&'a Arc<Identity>),
    /// A caller without a lease, at this address.
    Unknown(Ipv4Addr),
}

/// The purpose of a requested token.
#[derive(Clone, Copy, Debug)]
pub enum For<'a> {
    Scopes(&'a Scopes),
    Audience(&'a str),
    /// A session of this role of AWS; `None` is the host's own.
    Role(Option<&'a str>),
    /// A token of Azure for this resource.
    Resource(&'a str),
}

impl For<'_> {
    fn entry(self, event: &'static str, who: Option<Requestor<'_>>) -> AuditEntry {
        let (scopes, audience) = match self {
            For::Scopes(scopes) => (Some(scopes.clone()), None),
            For::Audience(audience) | For::Resource(audience) => (None, Some(audience.to_owned())),
            For::Role(_) => (None, None),
        };
        let entry =
            who.map_or_else(|| AuditEntry::of(event, "ok", None), |who| AuditEntry::who(event, "ok", who));
        let account = match self {
            For::Role(role) => role.map(String::from),
            For::Scopes(_) | For::Audience(_) | For::Resource(_) => entry.account.clone(),
        };
        AuditEntry { account, scopes, audience, ..entry }
    }
}

/// A token being minted, with the entry to write once it is there.
#[derive(Debug)]
pub struct Making {
    recorder: Recorder,
    entry: Option<AuditEntry>,
}

impl Making {
    /// The token was minted; `own` is its account if the request named none.
    pub fn made(self, own: Option<&str>, token: &HandedOut) {
        let Some(entry) = self.entry else { return };
        let account = entry.account.clone().or_else(|| own.map(String::from));
        self.recorder.write(|| AuditEntry { account, ..entry }.of_token(token));
    }
}

/// An account that is not known has no entry.
fn known(account: &str) -> Option<String> {
    (!account.is_empty()).then(|| account.to_owned())
}

impl Recorder {
    pub fn new(audit: Option<Audit>) -> Self {
        Self(Arc::new(RecorderInner { audit, ..RecorderInner::default() }))
    }

    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub fn history(&self) -> &History {
        &self.0.history
    }

    /// Sets the session's id, known only after the engine was asked; the log is opened before.
    pub fn name_session(&self, session: &str) {
        if let Some(audit) = &self.0.audit {
            audit.name_session(session);
        }
    }

    /// How many audit entries were lost to a full or slow disk.
    pub fn lost(&self) -> u64 {
        self.0.audit.as_ref().map_or(0, Audit::lost)
    }

    /// The audit log, if there is one.
    pub fn audit(&self) -> Option<&Audit> {
        self.0.audit.as_ref()
    }

    fn write(&self, entry: impl FnOnce() -> AuditEntry) {
        if let Some(audit) = &self.0.audit {
            audit.write(entry());
        }
    }

    /// `account` is that of the identity, empty if it is not known.
    pub fn attached(&self, grant: &Grant, account: &str, address: Ipv4Addr) {
        self.0.metrics.attach(Attach::Attached);
        self.0.history.began(grant);
        self.write(|| AuditEntry {
            account: known(account),
            scopes: grant.identity.google.then(|| grant.identity.scopes.clone()),
            address: Some(address),
            ..AuditEntry::of("attach", "ok", Some(grant))
        });
    }

    /// A container that gets no identity.
    pub fn passed(&self, container: &ContainerId, task: &Arc<Task>, why: &str) {
        self.0.metrics.attach(Attach::Passed);
        self.0.history.refused(RefusingPart::Identity, &task.to_string(), "an identity", why);
        self.write(|| AuditEntry {
            why: Some(why.into()),
            ..AuditEntry::task("not-attached", "none", container, task)
        });
    }

    /// A container that was to get an identity and could not; it was removed.
    pub fn attach_failed(&self, container: &ContainerId, task: &Arc<Task>, why: &str) {
        self.0.metrics.attach(Attach::Failed);
        self.0.history.refused(RefusingPart::Identity, &task.to_string(), "an identity", why);
        self.write(|| AuditEntry {
            why: Some(why.into()),
            ..AuditEntry::task("attach", "failed", container, task)
        });
    }

    /// A person disabled a service account, or tried to.
    pub fn disabled(&self, account: &str, failed: Option<&str>) {
        self.write(|| AuditEntry {
            account: Some(account.into()),
            why: failed.map(String::from),
            ..AuditEntry::of("disable", if failed.is_some() { "failed" } else { "ok" }, None)
        });
    }

    /// A person denied the AWS session of a container by `policy` on `role`, or tried to.
    pub fn denied(&self, grant: &Grant, role: &str, policy: &str, failed: Option<&str>) {
        self.write(|| AuditEntry {
            account: Some(role.into()),
            kind: Some(TokenKind::AwsSession),
            what: Some(policy.into()),
            why: failed.map(String::from),
            ..AuditEntry::of("deny", if failed.is_some() { "failed" } else { "ok" }, Some(grant))
        });
    }

    /// The guard found a key in a request that may pass all the same.
    pub fn found(&self, who: &str, what: &str) {
        self.0.history.refused(RefusingPart::Guard, who, "", what);
    }

    /// A refused request to the Docker API. `what` is method and path; `by_guard` if it would bring a key into
    /// a container.
    pub fn refused_call(&self, what: &str, why: &str, by_guard: bool) {
        self.0.metrics.refused_call();
        let part = if by_guard { RefusingPart::Guard } else { RefusingPart::Docker };
        self.0.history.refused(part, "a client of Docker", what, why);
        if self.0.audit.is_none() {
            return;
        }
        let entry = AuditEntry {
            what: Some(audit::short(what).into()),
            why: Some(audit::short(why).into()),
            ..AuditEntry::of("refusal", "refused", None)
        };
        for entry in self.0.quiet.tell("the Docker API", (), (what, why), entry) {
            self.write(|| entry);
        }
    }

    /// A token is about to be minted for `who`: on its request, or `ahead` of one (always, for the session itself). A
    /// call that returns no token is only counted.
    pub fn making(
        &self,
        who: Option<Requestor<'_>>,
        asked: For<'_>,
        account: Option<&str>,
        ahead: bool,
    ) -> Making {
        let entry = self.0.audit.as_ref().map(|_| {
            let account = account.map(String::from);
            let ahead = ahead || matches!(who, Some(Requestor::Session(_)));
            let entry = asked.entry("mint", who);
            AuditEntry { account: account.or_else(|| entry.account.clone()), ahead, ..entry }
        });
        Making { recorder: self.clone(), entry }
    }

    /// An upstream call (or, offline, a signature) ended.
    pub fn minted(&self, kind: TokenKind, outcome: MintOutcome, took: Duration) {
        self.0.metrics.mint(kind, outcome, took);
    }

    /// `who` was given a token that it did not have yet. The same token again is counted but not written:
    /// otherwise a container that asks in a loop would push older entries out of the log. `account` is empty if it
    /// is not known.
    pub fn handed_out(&self, who: Requestor<'_>, account: &str, asked: For<'_>, token: &HandedOut) {
        if let Requestor::Container(grant) = who {
            self.0.history.given(grant, token);
        }
        self.write(|| {
            AuditEntry { account: known(account), ..asked.entry("hand-out", Some(who)) }.of_token(token)
        });
    }

    /// A request of `who` was refused. Repetitions within a minute become one entry.
    pub fn refused(&self, who: Requestor<'_>, status: u16, what: &str, why: &str) {
        self.refusal(who, status, what, why, None);
    }

    /// The same for a request for an ID token.
    pub fn refused_audience(&self, who: Requestor<'_>, status: u16, audience: &str, why: &str) {
        self.refusal(who, status, TokenKind::Identity.word(), why, Some(audience));
    }

    /// The same for a request for a token of Azure.
    pub fn refused_resource(&self, who: Requestor<'_>, status: u16, resource: &str, why: &str) {
        self.refusal(who, status, TokenKind::AzureToken.word(), why, Some(resource));
    }

    fn refusal(&self, who: Requestor<'_>, status: u16, what: &str, why: &str, audience: Option<&str>) {
        let name = match who {
            Requestor::Container(grant) => grant.task.to_string(),
            Requestor::Local(_) | Requestor::Session(_) => "a program on this machine".into(),
            Requestor::Unknown(address) => address.to_string(),
        };
        self.0.history.refused(RefusingPart::Token, &name, &format!("{what} ({status})"), why);
        if self.0.audit.is_none() {
            return;
        }
        let outcome = if status < 500 { "refused" } else { "unavailable" };
        let entry = AuditEntry {
            status: Some(status),
            what: Some(what.into()),
            why: Some(audit::short(why).into()),
            audience: audience.map(|audience| audit::short(audience).into()),
            ..AuditEntry::who("refusal", outcome, who)
        };
        let caller = match who {
            Requestor::Container(grant) => (Some(&grant.container), None),
            Requestor::Local(_) | Requestor::Session(_) => (None, None),
            Requestor::Unknown(address) => (None, Some(address)),
        };
        for entry in self.0.quiet.tell(caller, (status, what), (why, audience), entry) {
            self.write(|| entry);
        }
    }

    /// Writes the entries that were held back, and waits until all are on the disk or lost, at most for
    /// `within`.
    pub async fn finish(&self, within: Duration) {
        let Some(audit) = &self.0.audit else { return };
        for entry in self.0.quiet.rest() {
            audit.write(entry);
        }
        audit.flush(within).await;
    }

    /// A lease ended; `alive` is what its container may still hold.
    pub fn cut_off(&self, grant: &Grant, cause: Cause, exit_code: Option<i64>, alive: &[HandedOut]) {
        self.0.metrics.cut_off(cause);
        self.0.history.ended(grant, cause, exit_code);
        self.write(|| {
            let last: Option<SystemTime> =
                alive.iter().map(|token| token.expires).max_by_key(Deadline::wall).map(|end| end.wall());
            AuditEntry {
                why: Some(cause.word().into()),
                exit_code,
                expires: last,
                outstanding: Some(alive.to_vec()),
                ..AuditEntry::of("cut-off", "ok", Some(grant))
            }
        });
    }
}
