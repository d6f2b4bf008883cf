//! The history of a session, for its page: which tasks ran, when they got tokens, and what was refused. It is in
//! memory only, bounded, and holds no token.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::metrics::Cause;
use crate::token::{HandedOut, MintId};
use crate::workload::Grant;

/// The oldest entries are dropped beyond these numbers, and counted.
const RUNS: usize = 500;
const TOKENS: usize = 32;
const REFUSALS: usize = 200;
/// Names and reasons are cut off after this many characters: others chose some of them. What to do about a
/// refusal is at the end of its reason, behind everything that was found.
const LONGEST: usize = 4096;

/// The history of one session. Reading it takes a copy, so that nobody waits for a slow reader.
#[derive(Debug, Default)]
pub struct History(Mutex<Past>);

/// What a reader sees. Times are RFC 3339, in UTC.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Past {
    /// Changes whenever anything else here does.
    pub changes: u64,
    /// In the order of their beginnings.
    pub runs: VecDeque<LeaseHistory>,
    /// The most recently repeated one is last.
    pub refusals: VecDeque<RefusedRequest>,
    /// How many entries were dropped.
    pub forgotten: u64,
}

/// One lease of a container, from its beginning to its end.
#[derive(Clone, Debug, Serialize)]
pub struct LeaseHistory {
    pub container: String,
    /// The name for people: pipeline, component, iteration.
    pub task: String,
    pub pipeline: Option<String>,
    pub identity: String,
    pub by: String,
    #[serde(serialize_with = "at")]
    pub began: SystemTime,
    #[serde(serialize_with = "at_last")]
    pub ended: Option<SystemTime>,
    /// `ended`, `by_hand`, `session` or `address_taken`.
    pub cause: Option<&'static str>,
    pub exit_code: Option<i64>,
    pub tokens: VecDeque<GivenToken>,
}

/// A token that a task was given.
#[derive(Clone, Debug, Serialize)]
pub struct GivenToken {
    #[serde(serialize_with = "written")]
    pub mint: MintId,
    pub kind: &'static str,
    #[serde(serialize_with = "at")]
    pub at: SystemTime,
    #[serde(serialize_with = "at")]
    pub expires: SystemTime,
}

/// Which part of the program refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RefusingPart {
    /// A request for a token, or for something else that the metadata server has.
    Token,
    /// A request to the Docker API.
    Docker,
    /// The guard found a key.
    Guard,
    /// A container was created without an identity.
    Identity,
}

/// A refusal, with the number of its repetitions.
#[derive(Clone, Debug, Serialize)]
pub struct RefusedRequest {
    pub part: RefusingPart,
    /// The caller.
    pub who: String,
    pub what: String,
    /// The reason, and what to do.
    pub why: String,
    #[serde(serialize_with = "at")]
    pub first: SystemTime,
    #[serde(serialize_with = "at")]
    pub last: SystemTime,
    pub times: u64,
}

impl History {
    pub fn read(&self) -> Past {
        self.past().clone()
    }

    pub fn changes(&self) -> u64 {
        self.past().changes
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn began(&self, grant: &Grant) {
        self.past().began(grant);
    }

    pub(super) fn given(&self, grant: &Grant, token: &HandedOut) {
        let mut past = self.past();
        past.changes += 1;
        let container = grant.container.as_str();
        if !past.runs.iter().any(|run| run.container == container && run.ended.is_none()) {
            // The container was started again.
            past.began(grant);
        }
        let Some(run) =
            past.runs.iter_mut().rev().find(|run| run.container == container && run.ended.is_none())
        else {
            return;
        };
        run.tokens.push_back(GivenToken {
            mint: token.id,
            kind: token.kind.word(),
            at: SystemTime::now(),
            expires: token.expires.wall(),
        });
        if run.tokens.len() > TOKENS {
            run.tokens.pop_front();
            past.forgotten += 1;
        }
    }

    pub(super) fn ended(&self, grant: &Grant, cause: Cause, exit_code: Option<i64>) {
        let mut past = self.past();
        past.changes += 1;
        let container = grant.container.as_str();
        let open = |run: &&mut LeaseHistory| run.container == container && run.ended.is_none();
        if let Some(run) = past.runs.iter_mut().rev().find(open) {
            run.ended = Some(SystemTime::now());
            run.cause = Some(cause.word());
            run.exit_code = exit_code;
        }
    }

    /// Repetitions are counted, however many there are of others in between.
    pub(super) fn refused(&self, part: RefusingPart, who: &str, what: &str, why: &str) {
        let (who, what, why) = (short(who), short(what), short(why));
        let mut past = self.past();
        past.changes += 1;
        let now = SystemTime::now();
        let same =
            |one: &RefusedRequest| one.part == part && one.who == who && one.what == what && one.why == why;
        let again = past.refusals.iter().rposition(same).and_then(|at| past.refusals.remove(at));
        let refusal = match again {
            Some(again) => RefusedRequest { last: now, times: again.times + 1, ..again },
            None => RefusedRequest {
                part,
                who: who.into(),
                what: what.into(),
                why: why.into(),
                first: now,
                last: now,
                times: 1,
            },
        };
        past.refusals.push_back(refusal);
        if past.refusals.len() > REFUSALS {
            past.refusals.pop_front();
            past.forgotten += 1;
        }
    }
}

impl Past {
    fn began(&mut self, grant: &Grant) {
        self.changes += 1;
        self.runs.push_back(LeaseHistory {
            container: grant.container.as_str().into(),
            task: short(&grant.task.to_string()).into(),
            pipeline: grant.task.pipeline.as_deref().map(|name| short(name).into()),
            identity: grant.identity.name.clone(),
            by: grant.by.to_string(),
            began: SystemTime::now(),
            ended: None,
            cause: None,
            exit_code: None,
            tokens: VecDeque::new(),
        });
        if self.runs.len() > RUNS {
            // Keep those that still run: people look for them.
            let oldest = self.runs.iter().position(|run| run.ended.is_some()).unwrap_or_default();
            self.runs.remove(oldest);
            self.forgotten += 1;
        }
    }
}

fn short(text: &str) -> &str {
    text.char_indices().nth(LONGEST).map_or(text, |(end, _)| &text[..end])
}

fn at<S: Serializer>(time: &SystemTime, into: S) -> Result<S::Ok, S::Error> {
    at_last(&Some(*time), into)
}

fn written<S: Serializer>(id: &MintId, into: S) -> Result<S::Ok, S::Error> {
    into.collect_str(id)
}

/// To the millisecond: tasks may run for less than a second.
fn at_last<S: Serializer>(time: &Option<SystemTime>, into: S) -> Result<S::Ok, S::Error> {
    let text = time.and_then(|time| {
        let time = OffsetDateTime::from(time);
        time.replace_millisecond(time.millisecond()).ok()?.format(&Rfc3339).ok()
    });
    text.serialize(into)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::token::{Deadline, Now, TokenKind};
    use crate::workload::{By, ContainerId, Identity, Task};

    fn grant(id: usize) -> Grant {
        Grant {
            container: ContainerId::parse(&format!("{id:064x}")).unwrap(),
            identity: Arc::new(Identity { name: "loader".into(), ..Identity::default() }),
            by: By::Default,
            task: Arc::new(Task {
                pipeline: Some("etl".into()),
                component: Some("load".into()),
                ..Task::default()
            }),
            secret: None,
        }
    }

    fn token() -> HandedOut {
        HandedOut {
            id: MintId::random(),
            kind: TokenKind::Access,
            expires: Deadline::after(Now::read(), Duration::from_secs(60)),
        }
    }

    #[test]
    fn a_container_that_starts_again_is_another_run() {
        let history = History::default();
        history.began(&grant(1));
        history.given(&grant(1), &token());
        history.ended(&grant(1), Cause::Ended, Some(3));
        history.given(&grant(1), &token());
        let past = history.read();
        let runs: Vec<_> = past.runs.iter().map(|run| (run.tokens.len(), run.exit_code)).collect();
        assert_eq!(runs, [(1, Some(3)), (1, None)]);
        let text = serde_json::to_string(&past).unwrap();
        assert!(text.contains(r#""task":"etl/load""#) && text.contains(r#""cause":"ended""#), "{text}");
    }

    #[test]
    fn memory_is_bounded_and_what_still_runs_is_kept() {
        let history = History::default();
        for id in 0..RUNS * 2 {
            history.began(&grant(id));
            if id > 0 {
                history.ended(&grant(id), Cause::Ended, None);
            }
        }
        for _ in 0..TOKENS * 2 {
            history.given(&grant(0), &token());
        }
        for number in 0..REFUSALS * 2 {
            history.refused(
                RefusingPart::Token,
                "etl/load",
                "access",
                &format!("{number}{}", "x".repeat(9999)),
            );
        }
        let past = history.read();
        assert_eq!((past.runs.len(), past.refusals.len()), (RUNS, REFUSALS));
        assert_eq!((past.runs[0].tokens.len(), past.runs[0].ended), (TOKENS, None));
        assert_eq!(past.forgotten as usize, RUNS + TOKENS + REFUSALS);
        assert!(past.refusals.iter().all(|one| one.why.len() <= LONGEST));
    }

    #[test]
    fn repetitions_are_counted() {
        let history = History::default();
        for why in ["a", "b", "a"] {
            history.refused(RefusingPart::Guard, "etl/load", "create", why);
        }
        let past = history.read();
        let seen: Vec<_> = past.refusals.iter().map(|one| (one.why.as_str(), one.times)).collect();
        assert_eq!(seen, [("b", 1), ("a", 2)]);
        assert_eq!(past.changes, history.changes());
    }
}
