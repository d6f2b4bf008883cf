//! Exit codes of this session's containers, from the engine's events (`exit_watch`).
//!
//! An auto-removed container can be gone before its client waits for it; kfp 2.16 and later then report
//! success (kubeflow/pipelines #13332). So a container is recorded before its create is answered. When a
//! client waits, the proxy asks the engine first and answers from this record if the engine says 404.
//!
//! A session may run for weeks, so the memory for removed containers is bounded (`removed`).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Response, StatusCode, header};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use super::engine_client::{Refusal, Reply, json_reply};
use super::exit_records::{Present, Records, valid};
use super::removed::{NEVER_RAN, UNKNOWN};
use crate::docker::events::ContainerEvent;
use crate::json::fields;
use crate::workload::ContainerId;

/// Most recorded containers that still exist; beyond this, the oldest one that has ended counts as removed.
const PRESENT: usize = 16_384;
/// How long an answer waits for the removal event of a container that the engine has removed.
const REMOVED_WITHIN: Duration = Duration::from_secs(10);
/// How long an answer waits for the die event if the removal event came first (Podman).
const DIED_WITHIN: Duration = Duration::from_secs(3);

/// The exit codes of this session's containers; clones share them.
#[derive(Clone, Debug, Default)]
pub struct ExitCodes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    records: Mutex<Records>,
    changed: watch::Sender<()>,
}

/// How a removed container ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum EndState {
    /// No event of its removal has arrived.
    Present,
    NeverRan,
    Code(u32),
    Unknown,
}

/// The state before a start, to be restored if the start fails.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BeforeStart {
    started: bool,
    code: Option<u32>,
}

/// Whether a create body's restart policy, with keys in any case, lets the engine restart the container.
pub(super) fn restarts_itself(body: &Value) -> bool {
    let policy = fields(&body["HostConfig"]["RestartPolicy"]);
    let mut names = policy.filter_map(|(_, value)| value.as_str());
    names.any(|name| !matches!(name, "" | "no"))
}

impl ExitCodes {
    /// The exit code of the container's last run, once it is known.
    pub fn code(&self, container: &ContainerId) -> Option<i64> {
        self.with(|records| match records.present.get(container) {
            Some(present) => present.code,
            None => records.gone.code(container).copied().filter(|code| valid((*code).into()).is_some()),
        })
        .map(i64::from)
    }

    /// Stores the exit code that lifecycle read. It counts only if the events read here contain none.
    pub fn died(&self, container: &ContainerId, code: i64) {
        let Some(code) = valid(code) else { return };
        self.change(|records| {
            if let Some(present) = records.present.get_mut(container) {
                present.backup = Some(code);
            } else if let Some(gone) = records.gone.code(container).filter(|gone| **gone == UNKNOWN) {
                *gone = code;
            }
        });
    }

    /// A channel that receives every container whose exit becomes known from now on; there is one listener.
    pub fn ends(&self) -> mpsc::UnboundedReceiver<ContainerId> {
        let (sender, ends) = mpsc::unbounded_channel();
        self.with(|records| records.ends = Some(sender));
        ends
    }

    fn with<T>(&self, work: impl FnOnce(&mut Records) -> T) -> T {
        work(&mut self.0.records.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, work: impl FnOnce(&mut Records) -> T) -> T {
        let outcome = self.with(work);
        self.0.changed.send_replace(());
        outcome
    }

    pub(super) fn rename(&self, container: &ContainerId, name: &str) {
        self.with(|records| {
            let name = records.take_name(name);
            if let Some(present) = records.present.get_mut(container) {
                present.name = Some(name);
            }
        });
    }

    /// Called before a start reaches the engine: the code of an earlier run must not count for the next one.
    pub(super) fn begin(&self, container: &ContainerId) -> BeforeStart {
        self.with(|records| {
            let Some(present) = records.present.get_mut(container) else { return BeforeStart::default() };
            let before = BeforeStart { started: present.started, code: present.code };
            (present.started, present.code, present.backup) = (true, None, None);
            before
        })
    }

    /// Called if that start failed.
    pub(super) fn undo(&self, container: &ContainerId, before: BeforeStart) {
        self.change(|records| {
            if let Some(present) = records.present.get_mut(container) {
                present.started = before.started;
                present.code = present.code.or(before.code);
            } else if let Some(gone) = records.gone.code(container)
                && !before.started
                && *gone == UNKNOWN
            {
                // The engine removed the container because it could not start.
                *gone = NEVER_RAN;
            }
        });
    }

    /// Records a container that was just created.
    pub(super) fn record(&self, container: &ContainerId, name: Option<&str>, restarts: bool) {
        self.with(|records| {
            records.recorded += 1;
            let present = Present {
                name: name.map(|name| records.take_name(name)),
                recorded: records.recorded,
                started: false,
                restarts,
                code: None,
                backup: None,
            };
            records.present.insert(container.clone(), present);
            if records.present.len() > PRESENT {
                let ended = records.present.iter().filter(|(_, present)| present.code.is_some());
                let oldest = ended.min_by_key(|(_, present)| present.recorded).map(|(id, _)| id.clone());
                oldest.into_iter().for_each(|id| records.removed(&id));
            }
        });
    }

    /// Processes an event of the engine. Events must come in the order in which the engine sent them.
    pub(super) fn happened(&self, event: &ContainerEvent) {
        self.change(|records| match event {
            ContainerEvent::Started(container) => {
                if let Some(present) = records.present.get_mut(container) {
                    (present.started, present.code) = (true, None);
                }
            }
            ContainerEvent::Died { container, code, .. } => {
                records.ended(container, code.and_then(valid));
            }
            ContainerEvent::Destroyed(container) => records.removed(container),
            ContainerEvent::Connected { .. } | ContainerEvent::Disconnected { .. } => {}
        });
    }

    /// How many containers were recorded so far. A later one cannot be missing from a list that is asked for now.
    pub(super) fn recorded(&self) -> u64 {
        self.with(|records| records.recorded)
    }

    /// Called after a gap, with all containers and which run, as the engine listed them after `recorded`
    /// containers. Returns those that ended with an unknown code.
    pub(super) fn listed(&self, all: &HashMap<ContainerId, bool>, recorded: u64) -> Vec<ContainerId> {
        self.change(|records| {
            let is_missing =
                |id: &ContainerId, present: &Present| present.recorded <= recorded && !all.contains_key(id);
            let missing = records.present.iter().filter(|(id, present)| is_missing(id, present));
            let missing: HashSet<ContainerId> = missing.map(|(id, _)| id.clone()).collect();
            for container in &missing {
                if let Some(present) = records.present.get_mut(container)
                    && present.restarts
                {
                    // The container may have run again in the gap.
                    (present.code, present.backup) = (None, None);
                }
                records.removed(container);
            }
            let mut unknown = vec![];
            for (container, present) in &mut records.present {
                match all.get(container) {
                    Some(true) => (present.started, present.code) = (true, None),
                    Some(false) if present.started && present.code.is_none() => {
                        unknown.push(container.clone())
                    }
                    _ => {}
                }
            }
            unknown
        })
    }

    /// Stores the exit code that the engine's inspect shows for a container that does not run.
    pub(super) fn inspected(&self, container: &ContainerId, code: i64) {
        self.change(|records| records.ended(container, valid(code)));
    }

    /// The container that a client names: by full id, by name (the newest with that name), or by the
    /// beginning of its id if that is unambiguous.
    pub(super) fn find(&self, reference: &str) -> Option<ContainerId> {
        let reference = reference.trim_start_matches('/');
        self.with(|records| {
            let full = ContainerId::parse(reference);
            if let Some(id) =
                full.filter(|id| records.present.contains_key(id) || records.gone.code(id).is_some())
            {
                return Some(id);
            }
            let named =
                records.present.iter().find(|(_, present)| present.name.as_deref() == Some(reference));
            if let Some((id, _)) = named {
                return Some(id.clone());
            }
            if reference.is_empty() {
                return None;
            }
            if let Some(id) = records.gone.named(reference) {
                return Some(id);
            }
            let present = records.present.keys().filter(|id| id.as_str().starts_with(reference)).cloned();
            let mut found = present.chain(records.gone.with_id_prefix(reference));
            found.next().filter(|_| found.next().is_none())
        })
    }

    fn fate(&self, container: &ContainerId) -> Option<EndState> {
        self.with(|records| {
            if records.present.contains_key(container) {
                return Some(EndState::Present);
            }
            records.gone.code(container).map(|code| match *code {
                NEVER_RAN => EndState::NeverRan,
                UNKNOWN => EndState::Unknown,
                code => EndState::Code(code),
            })
        })
    }

    /// How a container that the engine has removed ended; `None` if it was never recorded. Waits for the
    /// event of the removal: until then, the recorded code may be that of an earlier run.
    async fn final_fate(&self, container: &ContainerId) -> Option<EndState> {
        let mut changed = self.0.changed.subscribe();
        let (removal_until, die_until) = (Instant::now() + REMOVED_WITHIN, Instant::now() + DIED_WITHIN);
        loop {
            let until = match self.fate(container)? {
                EndState::Present => removal_until,
                EndState::Unknown => die_until,
                fate => return Some(fate),
            };
            if !matches!(timeout_at(until, changed.changed()).await, Ok(Ok(()))) {
                break;
            }
        }
        // Without that event, the recorded code counts only if the container cannot have run again by itself.
        self.with(|records| match records.present.get(container) {
            Some(present) if !present.started => Some(EndState::NeverRan),
            Some(present) if present.restarts => Some(EndState::Unknown),
            Some(present) => Some(present.code.or(present.backup).map_or(EndState::Unknown, EndState::Code)),
            None => Some(EndState::Unknown),
        })
    }

    /// The container's exit code, once it is known.
    pub(super) async fn last_code(&self, container: &ContainerId) -> Option<i64> {
        match self.final_fate(container).await? {
            EndState::Code(code) => Some(code.into()),
            EndState::Present | EndState::NeverRan | EndState::Unknown => None,
        }
    }

    /// The answer to a client's wait: the engine's, or our record if that is a 404 or has no code and the
    /// proxy knows the exit. The head of a 200 passes at once: clients start the container after it.
    pub(super) async fn wait(&self, name: &str, reply: Reply) -> Reply {
        let (mut head, body) = reply.into_parts();
        match (head.status, body) {
            (StatusCode::OK, Either::Left(engine)) => {
                head.headers.remove(header::CONTENT_LENGTH);
                let (codes, name) = (self.clone(), name.to_owned());
                let answer = async move { codes.with_recorded_code(engine, &name).await.map(Frame::data) };
                let body = StreamBody::new(futures_util::stream::once(answer)).boxed_unsync();
                Response::from_parts(head, Either::Right(Either::Right(body)))
            }
            (StatusCode::NOT_FOUND, body) => {
                let reply = Response::from_parts(head, body);
                self.answer(name).await.unwrap_or(reply)
            }
            (_, body) => Response::from_parts(head, body),
        }
    }

    /// The answer to a wait for a container that the engine has removed; `None` if the engine's 404 stands.
    async fn answer(&self, reference: &str) -> Option<Reply> {
        let id = self.find(reference)?;
        Some(match self.final_fate(&id).await? {
            // The container never ran, so there is no exit code.
            EndState::NeverRan => return None,
            EndState::Code(code) => json_reply(StatusCode::OK, wait_body(code)),
            EndState::Present | EndState::Unknown => Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the exit code of {id} is not known: the engine broke off; treat the task as failed"),
            )
            .reply(),
        })
    }

    /// The engine's answer to a wait; ours if the engine's has no code and the code is known here.
    async fn with_recorded_code(&self, engine: Incoming, name: &str) -> Result<Bytes, hyper::Error> {
        let theirs = engine.collect().await?.to_bytes();
        let parsed: Value = serde_json::from_slice(&theirs).unwrap_or_default();
        if parsed["StatusCode"].as_i64().is_some_and(|code| code >= 0) {
            return Ok(theirs);
        }
        let ours = match self.find(name) {
            Some(id) => self.final_fate(&id).await,
            None => None,
        };
        Ok(match ours {
            Some(EndState::Code(code)) => wait_body(code),
            _ => theirs,
        })
    }
}

fn wait_body(code: u32) -> Bytes {
    Bytes::from(format!("{{\"StatusCode\":{code}}}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(number: usize) -> ContainerId {
        ContainerId::parse(&format!("{number:064x}")).unwrap()
    }

    fn died(container: &ContainerId, code: i64) -> ContainerEvent {
        ContainerEvent::Died { container: container.clone(), code: Some(code), at: None }
    }

    /// Records a container that runs once for each of `exits` and is then removed.
    fn ran(codes: &ExitCodes, number: usize, name: &str, exits: &[i64]) -> ContainerId {
        let id = container(number);
        codes.record(&id, Some(name), false);
        for code in exits {
            codes.happened(&ContainerEvent::Started(id.clone()));
            codes.happened(&died(&id, *code));
        }
        codes.happened(&ContainerEvent::Destroyed(id.clone()));
        id
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_run_counts_and_names_and_id_prefixes_are_found() {
        let codes = ExitCodes::default();
        let first = ran(&codes, 0xa1, "/twice", &[3]);
        let again = ran(&codes, 0xa2, "twice", &[4, 5]);
        assert_eq!(codes.find("twice"), Some(again.clone()));
        assert_eq!((codes.code(&first), codes.last_code(&again).await), (Some(3), Some(5)));
        assert_eq!(codes.find(again.as_str()), Some(again.clone()));
        assert_eq!(codes.find(&"0".repeat(40)), None, "two begin like this");
        assert_eq!((codes.find("tw"), codes.find("")), (None, None));
        let present = container(0xb3);
        codes.record(&present, Some("twice"), false);
        assert_eq!(codes.find("twice"), Some(present), "the engine has one of that name");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_for_the_event_of_the_removal() {
        let codes = ExitCodes::default();
        let id = container(1);
        codes.record(&id, None, true);
        codes.happened(&ContainerEvent::Started(id.clone()));
        codes.happened(&died(&id, 1));
        let rest = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            codes.happened(&ContainerEvent::Started(id.clone()));
            codes.happened(&died(&id, 2));
            codes.happened(&ContainerEvent::Destroyed(id.clone()));
        };
        let (code, ()) = tokio::join!(codes.last_code(&id), rest);
        assert_eq!(code, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_code_after_the_removal_counts_and_no_code_is_not_zero() {
        let codes = ExitCodes::default();
        let (late, never) = (container(1), container(2));
        for id in [&late, &never] {
            codes.record(id, None, false);
            codes.happened(&ContainerEvent::Started(id.clone()));
            codes.happened(&ContainerEvent::Destroyed(id.clone()));
        }
        let rest = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            codes.happened(&died(&late, 7));
        };
        let (late, never, ()) = tokio::join!(codes.last_code(&late), codes.last_code(&never), rest);
        assert_eq!((late, never), (Some(7), None));
    }

    #[test]
    fn a_failed_start_keeps_the_code_of_the_previous_run() {
        let codes = ExitCodes::default();
        let id = container(1);
        codes.record(&id, None, false);
        codes.happened(&ContainerEvent::Started(id.clone()));
        codes.happened(&died(&id, 3));
        let before = codes.begin(&id);
        assert_eq!(codes.code(&id), None);
        codes.undo(&id, before);
        assert_eq!(codes.code(&id), Some(3));
    }

    #[test]
    fn after_a_gap_the_engines_list_counts() {
        let codes = ExitCodes::default();
        let ids: Vec<_> = (0..5).map(container).collect();
        for (id, restarts) in ids.iter().zip([false, true, false, false, false]) {
            codes.record(id, None, restarts);
        }
        for id in &ids[..4] {
            codes.happened(&ContainerEvent::Started(id.clone()));
        }
        for id in &ids[..2] {
            codes.happened(&died(id, 4));
        }
        // The first two are gone, the third runs, the fourth has ended, the fifth was never started.
        let all = HashMap::from([(ids[2].clone(), true), (ids[3].clone(), false), (ids[4].clone(), false)]);
        assert_eq!(codes.listed(&all, codes.recorded()), [ids[3].clone()]);
        codes.inspected(&ids[3], 6);
        let found: Vec<_> = ids.iter().map(|id| codes.code(id)).collect();
        assert_eq!(found, [Some(4), None, None, Some(6), None]);
        assert_eq!(codes.fate(&ids[1]), Some(EndState::Unknown), "it may have run again");
    }

    #[test]
    fn a_container_recorded_after_the_list_is_not_missing() {
        let codes = ExitCodes::default();
        let (listed, later) = (container(1), container(2));
        codes.record(&listed, None, false);
        let recorded = codes.recorded();
        codes.record(&later, None, false);
        codes.happened(&ContainerEvent::Started(later.clone()));
        assert_eq!(codes.listed(&HashMap::new(), recorded), []);
        assert_eq!(codes.fate(&listed), Some(EndState::NeverRan));
        assert_eq!(codes.fate(&later), Some(EndState::Present));
    }

    #[test]
    fn a_name_belongs_to_its_newest_container() {
        let codes = ExitCodes::default();
        let missed = container(1);
        codes.record(&missed, Some("x"), false);
        codes.happened(&ContainerEvent::Started(missed.clone()));
        codes.happened(&died(&missed, 0));
        let newest = ran(&codes, 2, "x", &[1]);
        assert_eq!(codes.find("x"), Some(newest), "the removal of the first one was missed");
    }

    #[test]
    fn a_failed_second_start_keeps_the_code_of_the_first() {
        let codes = ExitCodes::default();
        let id = container(1);
        codes.record(&id, None, false);
        let (loser, _winner) = (codes.begin(&id), codes.begin(&id));
        codes.happened(&ContainerEvent::Started(id.clone()));
        codes.happened(&died(&id, 5));
        codes.happened(&ContainerEvent::Destroyed(id.clone()));
        codes.undo(&id, loser);
        assert_eq!(codes.code(&id), Some(5));
    }

    #[test]
    fn the_number_of_recorded_containers_is_bounded() {
        let codes = ExitCodes::default();
        for number in 0..PRESENT + 10 {
            let id = container(number);
            codes.record(&id, None, false);
            codes.happened(&ContainerEvent::Started(id.clone()));
            codes.happened(&died(&id, 2));
        }
        assert_eq!(codes.with(|records| records.present.len()), PRESENT);
        assert_eq!(codes.code(&container(1)), Some(2));
        for number in 0..PRESENT + 10 {
            codes.happened(&ContainerEvent::Destroyed(container(number)));
        }
        assert!(codes.with(|records| records.present.capacity()) <= 128);
    }
}
