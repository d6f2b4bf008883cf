//! Decides which task a create request is for if the request alone does not tell, from the requests that the
//! session has seen and from compiled pipelines. The order of creates is never used: tasks run in parallel,
//! and a guess would give one task the identity of another.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::{Compiled, Reading, RunPath};
use crate::json::one_or_more;
use crate::workload::{Task, Unknown};

/// Most pipeline roots of one session; a real session has fewer.
const MOST_ROOTS: usize = 1000;
/// Tasks of one session whose places are kept, the last ones: the tasks that read a place are of the same run. An older
/// task is recognised by its directory alone.
const MOST_PLACES: usize = 16_384;
/// For how many more places there is room at a time: doubling would leave up to half of it unused.
const ROOM: usize = 256;

/// Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Evidence(Arc<Mutex<EvidenceSeen>>);

#[derive(Debug, Default)]
struct EvidenceSeen {
    roots: BTreeSet<String>,
    /// Digest of the image and command that own a place, by the place's own: names would stay as long as the session.
    /// A retry of the task has the same digest; a request with another command only reads that task's outputs.
    places: VecDeque<(u64, u64)>,
    seed: RandomState,
}

impl Evidence {
    /// The task of a create request that is about to be sent. `there` are those of its directories that
    /// already exist: kfp creates none before it starts a task.
    pub fn task(&self, reading: Reading, body: &Value, compiled: &Compiled, there: &[String]) -> Task {
        let command: Vec<&str> = one_or_more(&body["Cmd"]).collect();
        let who = digest(&reading.task.image, &command);
        let mut seen = self.seen();
        let root = reading.root.clone();
        let task = seen.task(reading, &command, who, compiled, there);
        if let Some(root) = root.filter(|_| task.kfp && seen.roots.len() < MOST_ROOTS) {
            seen.roots.insert(root);
        }
        if let Some(place) = RunPath::of_task(&task) {
            seen.keep(&place, who);
        }
        task
    }

    /// The task of a container that was created earlier.
    pub fn look(&self, reading: Reading, body: &Value, compiled: &Compiled) -> Task {
        let command: Vec<&str> = one_or_more(&body["Cmd"]).collect();
        let who = digest(&reading.task.image, &command);
        self.seen().task(reading, &command, who, compiled, &[])
    }

    /// Whether a container that was created earlier is a kfp task.
    pub fn is_kfp(&self, reading: &Reading) -> bool {
        let seen = self.seen();
        reading.task.kfp || reading.roots.iter().any(|root| seen.roots.contains(root))
    }

    fn seen(&self) -> MutexGuard<'_, EvidenceSeen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EvidenceSeen {
    fn owner(&self, place: &RunPath) -> Option<u64> {
        let place = self.seed.hash_one(place);
        self.places.iter().rev().find(|(known, _)| *known == place).map(|(_, owner)| *owner)
    }

    /// The first one that is seen at a place owns it.
    fn keep(&mut self, place: &RunPath, who: u64) {
        if self.owner(place).is_some() {
            return;
        }
        if self.places.len() >= MOST_PLACES {
            self.places.pop_front();
        }
        if self.places.len() == self.places.capacity() {
            self.places.reserve_exact(ROOM);
        }
        self.places.push_back((self.seed.hash_one(place), who));
    }

    fn task(
        &self,
        reading: Reading,
        command: &[&str],
        who: u64,
        compiled: &Compiled,
        there: &[String],
    ) -> Task {
        let Reading { mut task, roots, root: _, places } = reading;
        if !places.is_empty() {
            own_place(&mut task, &places, |place, directory| match self.owner(place) {
                Some(owner) => owner == who,
                None => !there.iter().any(|there| there == directory),
            });
        }
        if !task.kfp && roots.iter().any(|root| self.roots.contains(root)) {
            (task.kfp, task.unknown) = (true, Unknown::PLACE);
        }
        if task.component.is_none() && !roots.is_empty() {
            compiled.fill(&mut task, command);
        }
        task
    }
}

/// Sets the task's own place among the places that its command names, if exactly one is possible: the others
/// are its inputs.
fn own_place(task: &mut Task, places: &[(RunPath, String)], can_be: impl Fn(&RunPath, &str) -> bool) {
    let mut own = places.iter().filter(|(place, directory)| can_be(place, directory));
    match (own.next(), own.next()) {
        (Some((place, _)), None) => {
            let RunPath { pipeline, run, iteration, component } = place.clone();
            *task = Task {
                kfp: true,
                pipeline,
                run,
                iteration,
                component,
                unknown: Unknown::default(),
                ..task.clone()
            };
        }
        _ => {
            (task.component, task.iteration) = (None, None);
            if task.kfp {
                task.unknown = Unknown { pipeline: task.pipeline.is_none(), ..Unknown::PLACE };
            }
        }
    }
}

impl RunPath {
    /// `None` for a task that does not show its place.
    fn of_task(task: &Task) -> Option<Self> {
        task.component.as_ref().filter(|_| task.run.is_some())?;
        Some(Self {
            pipeline: task.pipeline.clone(),
            run: task.run.clone(),
            iteration: task.iteration.clone(),
            component: task.component.clone(),
        })
    }
}

fn digest(image: &str, command: &[&str]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (image, command).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::read;
    use super::*;

    const RUN: &str = "/r/p-2026-11-23-06-04-22-567757";

    fn body(command: &[&str]) -> Value {
        json!({"Image": "i", "Cmd": command, "HostConfig": {"Binds": ["/r:/r:rw"]}})
    }

    fn seen(evidence: &Evidence, command: &[&str], there: &[&str]) -> Task {
        let body = body(command);
        let there: Vec<String> = there.iter().map(|place| format!("{RUN}/{place}/")).collect();
        evidence.task(read(&body, None), &body, &Compiled::default(), &there)
    }

    fn lightweight(component: &str) -> String {
        format!(r#"{{"outputs":{{"outputFile":"{RUN}/{component}/executor_output.json"}}}}"#)
    }

    #[test]
    fn a_task_that_names_only_inputs_is_not_taken_for_their_maker() {
        let evidence = Evidence::default();
        let made = seen(
            &evidence,
            &["x", "--executor_input", &lightweight("make"), "--function_to_execute", "make"],
            &[],
        );
        assert_eq!(made.component.as_deref(), Some("make"));
        let input = format!("{RUN}/make/data");
        let reads = seen(&evidence, &["cat", &input], &[]);
        assert_eq!(
            (reads.kfp, reads.pipeline.as_deref(), reads.component.as_deref()),
            (true, Some("p"), None)
        );
        assert_eq!(reads.unknown, Unknown { pipeline: false, ..Unknown::PLACE });
        // Not in this session, but its outputs are there.
        let elsewhere = seen(&Evidence::default(), &["cat", &input], &["make"]);
        assert_eq!(elsewhere.component, None);
        // Nothing is there yet: it is an output.
        let own = seen(&Evidence::default(), &["cat", &input], &[]);
        assert_eq!((own.component.as_deref(), own.unknown), (Some("make"), Unknown::default()));
    }

    #[test]
    fn one_output_among_inputs_is_its_own_place() {
        let evidence = Evidence::default();
        let (input, output) = (format!("{RUN}/make/data"), format!("{RUN}/turn/out"));
        seen(&evidence, &["sh", "-c", "make", &input], &[]);
        let turn = ["sh", "-c", "turn", &input, &output];
        assert_eq!(seen(&evidence, &turn, &[]).component.as_deref(), Some("turn"));
        let again = seen(&evidence, &turn, &["make", "turn"]);
        assert_eq!(again.component.as_deref(), Some("turn"), "another attempt is the same task");
        assert_eq!(seen(&Evidence::default(), &turn, &[]).component, None, "either could be the output");
    }

    #[test]
    fn a_bind_of_a_known_root_makes_a_container_a_task() {
        let evidence = Evidence::default();
        let plain = ["gsutil", "ls"];
        assert!(!seen(&evidence, &plain, &[]).kfp);
        seen(&evidence, &["x", "--executor_input", &lightweight("make")], &[]);
        let task = seen(&evidence, &plain, &[]);
        assert!(task.kfp && task.unknown == Unknown::PLACE, "{task:?}");
        let elsewhere = json!({"Image": "i", "Cmd": plain, "HostConfig": {"Binds": ["/r/below:/r/below"]}});
        assert!(!evidence.task(read(&elsewhere, None), &elsewhere, &Compiled::default(), &[]).kfp);
        assert!(evidence.is_kfp(&read(&body(&plain), None)) && !evidence.is_kfp(&read(&elsewhere, None)));
    }
}
