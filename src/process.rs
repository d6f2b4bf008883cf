//! What belongs to the process as a whole: its tasks, their stop signal and the limits it sets itself.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::linux;

/// Spawns tasks so that none is forgotten at the end and none fails unseen.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// The signal on which every long-lived task ends in good order.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Runs `work` to its end; a panic is reported, and takes nothing else down.
    pub fn spawn<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(async move {
            #[expect(
                clippy::disallowed_methods,
                reason = "the one place that spawns, and it looks at the outcome"
            )]
            let task = tokio::spawn(work);
            if let Err(error) = task.await
                && error.is_panic()
            {
                tracing::error!(task = name, "a task panicked; please report this");
            }
        });
    }

    /// Signals the end and waits for the tasks, at most for `grace`.
    pub async fn finish(&self, grace: Duration) {
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(grace, self.tracker.wait()).await.is_err() {
            tracing::debug!(left = self.tracker.len(), "tasks still running at the end of their grace");
        }
    }
}

/// hyper's executor for a connection whose tasks belong together: where one panics, the others wait for it in vain, so that
/// who serves the connection has to end it.
#[derive(Clone, Debug, Default)]
pub struct Together(CancellationToken);

impl Together {
    /// Resolves when one of the tasks has panicked.
    pub async fn broken(&self) {
        self.0.cancelled().await;
    }
}

impl<F> hyper::rt::Executor<F> for Together
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, work: F) {
        let unfinished = self.0.clone().drop_guard();
        #[expect(
            clippy::disallowed_methods,
            reason = "it looks at the outcome: what does not end cancels all"
        )]
        tokio::spawn(async move {
            work.await;
            unfinished.disarm();
        });
    }
}

/// What blocking `work` comes to, while others are served. It has a thread of its own: one that hangs for good (a
/// dead file server answers nothing at all) takes no other's place. `None` where there is no thread to be had, or
/// `work` panicked.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, ended) = tokio::sync::oneshot::channel();
    let begun = std::thread::Builder::new().name("aside".into()).spawn(move || drop(done.send(work())));
    begun.ok()?;
    ended.await.ok()
}

/// A header that only our own requests to a metadata server carry: a server of ours that sees it is being
/// asked by a source of ours, which took it for the machine's own, and says so with a 508.
pub const OWN_SOURCE: &str = "x-kfp-creds-source";

/// No core dumps: a dump of this process would hold tokens. The limit is not enough, as it does not hold where
/// dumps are piped into a program (core(5)). What is not dumpable is not traced by other processes of the
/// user either, and they cannot read its memory.
pub fn forbid_core_dumps() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    if let Err(error) = limit.map_err(std::io::Error::from).and_then(|()| linux::forbid_dumps()) {
        tracing::warn!(%error, "could not switch core dumps off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_dumped_and_the_program_still_finds_itself() {
        use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};
        forbid_core_dumps();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
        // The relay's image is made of these.
        assert!(!std::fs::read_link("/proc/self/exe").unwrap().as_os_str().is_empty());
        assert!(!std::fs::read_to_string("/proc/self/maps").unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_stays_in_its_task_and_the_end_waits() {
        let tasks = Tasks::new();
        tasks.spawn("bad", async { panic!("on purpose") });
        let (done, mut seen) = tokio::sync::oneshot::channel();
        let stop = tasks.stop().clone();
        tasks.spawn("good", async move {
            stop.cancelled().await;
            let _ = done.send(());
        });
        tasks.finish(Duration::from_secs(1)).await;
        assert!(seen.try_recv().is_ok());
    }
}
