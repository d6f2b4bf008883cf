//! Process-wide state: tasks, their stop signal and the limits that the process sets itself.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::linux;

/// Spawns tasks, so that all are awaited at the end and every panic is reported.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// The signal at which every long-lived task ends.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Runs `work` to its end; a panic is reported and affects no other task.
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

/// hyper's executor for one connection, whose tasks depend on each other: if one panics, the others would
/// wait for it for ever, so the server of the connection must end it.
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

/// Connections that wait to be accepted; the kernel's own bound is the same. If it overflows, callers wait a
/// second until their kernel tries again, so one caller's flood must not fill it easily.
pub const BACKLOG: u32 = 4096;

/// A listener with room for [`BACKLOG`] connections. `TcpListener::bind` has room for 128.
pub fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// Accepts connections until `stop`. Failures in a row are one line of the log: callers could otherwise fill it.
pub async fn accept_each<S, F: Future<Output = io::Result<S>>>(
    stop: &CancellationToken,
    accept: impl Fn() -> F,
    mut serve: impl FnMut(S),
) {
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accept() => accepted,
        };
        match accepted {
            Ok(connection) => {
                failing = false;
                serve(connection);
            }
            Err(error) => {
                // Most likely out of file descriptors; these become free when connections end.
                if !failing {
                    tracing::warn!(%error, "could not accept a connection");
                }
                failing = true;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Runs blocking `work` without blocking other tasks. It gets its own thread: if it hangs for good (a dead
/// file server never answers), it blocks no thread of a pool. `None` if no thread could be started or `work`
/// panicked.
pub async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, ended) = tokio::sync::oneshot::channel();
    let begun = std::thread::Builder::new().name("blocking".into()).spawn(move || drop(done.send(work())));
    begun.ok()?;
    ended.await.ok()
}

/// Only our own requests to a metadata server carry this header: a server of ours that sees it was taken for
/// the machine's own by a source of ours, and answers 508.
pub const OWN_SOURCE: &str = "x-kfp-creds-source";

/// Prevents core dumps: a dump of this process would hold tokens. The limit does not suffice, because it does
/// not apply where dumps are piped into a program (core(5)). A process that is not dumpable cannot be traced
/// by the user's other processes either, and they cannot read its memory.
pub fn forbid_core_dumps() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    if let Err(error) = limit.map_err(io::Error::from).and_then(|()| linux::forbid_dumps()) {
        tracing::warn!(%error, "could not switch core dumps off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_dumps_are_off_and_current_exe_still_works() {
        use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};
        forbid_core_dumps();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
        // The relay's image is made from these files.
        assert!(!std::fs::read_link("/proc/self/exe").unwrap().as_os_str().is_empty());
        assert!(!std::fs::read_to_string("/proc/self/maps").unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_stays_in_its_task_and_shutdown_waits() {
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
