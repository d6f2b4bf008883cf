//! The output of auto-removed containers, kept until their client has read it.
//!
//! The engine removes such a container as soon as it ends, with its logs: a client that asks then is told
//! 404 or 409, or finds a stream that breaks off, and docker-py's look for a terminal fails. So before a
//! leased container starts that nobody watches (no attach in its create, as kfp does it), the proxy attaches
//! to its output, and tells from what it heard what the engine cannot tell any more. The engine is asked
//! first, always, and nothing about the container changes: it is removed when it would be, whatever becomes
//! of this process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

use super::frames::{ENGINE, Frames, Part};
use super::path::Target;
use super::room::Room;
use super::wire::{Reply, full, json_reply};
use crate::workload::ContainerId;

/// Longest output that is kept of one container: those that write more live long enough to be read.
const KEPT: usize = 1 << 20;
/// And of all containers together.
const KEPT_TOGETHER: usize = 64 << 20;
/// How long after the end of a container its client may still ask.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// How long a client's logs wait for the end of the output after the engine has ended them. Podman ends the stream of
/// an attach only when the process that removes the container is done, which takes seconds on a busy machine.
const LAST_WORD: Duration = Duration::from_secs(30);

/// Bytes of standard output and standard error.
type Streams = [Vec<u8>; 2];

/// What is kept, by container.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    kept: Mutex<HashMap<ContainerId, Arc<Kept>>>,
    together: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Kept {
    heard: Mutex<Heard>,
    ended: watch::Sender<bool>,
    /// What the engine said of the container before it started.
    inspected: Value,
    /// A client has asked for the logs, so its look at the container belongs to that.
    asked: AtomicBool,
    together: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Heard {
    streams: Streams,
    /// Which stream spoke, and how many bytes.
    order: Vec<(usize, usize)>,
    too_long: bool,
}

impl Outputs {
    fn open(&self, container: &ContainerId, inspected: Value) -> Arc<Kept> {
        let kept = Arc::new(Kept {
            heard: Mutex::default(),
            ended: watch::Sender::new(false),
            inspected,
            asked: AtomicBool::new(false),
            together: self.together.clone(),
        });
        self.all().insert(container.clone(), kept.clone());
        kept
    }

    fn close(&self, container: &ContainerId, kept: &Arc<Kept>) {
        let mut all = self.all();
        if all.get(container).is_some_and(|known| Arc::ptr_eq(known, kept)) {
            all.remove(container);
        }
    }

    /// By full id only, as libraries ask: a name may be another container's by now.
    fn find(&self, reference: &str) -> Option<Arc<Kept>> {
        self.all().get(&ContainerId::parse(reference)?).cloned()
    }

    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, Arc<Kept>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let heard = self.heard.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.together.fetch_sub(heard.streams.iter().map(Vec::len).sum(), Ordering::Relaxed);
    }
}

impl Kept {
    fn hear(&self, stream: usize, payload: &[u8]) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.too_long {
            return;
        }
        let length: usize = heard.streams.iter().map(Vec::len).sum();
        let together = self.together.fetch_add(payload.len(), Ordering::Relaxed);
        if length + payload.len() > KEPT || together + payload.len() > KEPT_TOGETHER {
            self.together.fetch_sub(length + payload.len(), Ordering::Relaxed);
            *heard = Heard { too_long: true, ..Heard::default() };
            return;
        }
        heard.streams[stream].extend_from_slice(payload);
        match heard.order.last_mut() {
            Some((last, length)) if *last == stream => *length += payload.len(),
            _ => heard.order.push((stream, payload.len())),
        }
    }

    /// Everything after `told`, in frames, once the output has ended; empty when that was all. `None` when it is
    /// not known, or when what was told is not how the output begins: then nothing can be added to it.
    async fn rest(&self, told: &Streams, wants: [bool; 2]) -> Option<Bytes> {
        let mut ended = self.ended.subscribe();
        tokio::time::timeout(LAST_WORD, ended.wait_for(|ended| *ended)).await.ok()?.ok()?;
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = |stream: usize| !wants[stream] || heard.streams[stream].starts_with(&told[stream]);
        if heard.too_long || !begins(0) || !begins(1) {
            return None;
        }
        let mut skip = [told[0].len(), told[1].len()];
        let (mut at, mut frames) = ([0, 0], vec![]);
        for &(stream, length) in heard.order.iter().filter(|(stream, _)| wants[*stream]) {
            let piece = heard.streams[stream].get(at[stream]..at[stream] + length)?;
            at[stream] += length;
            let piece = piece.get(skip[stream].min(length)..)?;
            skip[stream] = skip[stream].saturating_sub(length);
            if !piece.is_empty() {
                frames.extend_from_slice(&[if stream == 0 { 1 } else { 2 }, 0, 0, 0]);
                frames.extend_from_slice(&u32::try_from(piece.len()).ok()?.to_be_bytes());
                frames.extend_from_slice(piece);
            }
        }
        Some(frames.into())
    }

    /// The container as it would look had it not been removed.
    fn look(&self, code: i64) -> Reply {
        let mut inspected = self.inspected.clone();
        let state = &mut inspected["State"];
        state["Status"] = "exited".into();
        state["Running"] = false.into();
        state["ExitCode"] = code.into();
        json_reply(StatusCode::OK, inspected.to_string())
    }
}

impl Room {
    /// Before a start reaches the engine: attaches to a container whose output only its logs would hold.
    pub(super) async fn keep_output(self: &Arc<Self>, container: &ContainerId) {
        let path = format!("/containers/{}/json", container.as_str());
        let Ok(Some(inspected)) = self.engine.look(&path).await else { return };
        if !is_fleeting(&inspected) {
            return;
        }
        let Some(stream) = self.listen(container).await else { return };
        let kept = self.outputs.open(container, inspected);
        let (room, container) = (self.clone(), container.clone());
        self.settings.tasks.spawn("output", async move {
            let whole = tokio::select! {
                () = hear_out(stream, &kept) => true,
                () = room.settings.tasks.stop().cancelled() => false,
            };
            if whole {
                kept.ended.send_replace(true);
                tokio::select! {
                    () = tokio::time::sleep(KEPT_FOR) => {}
                    () = room.settings.tasks.stop().cancelled() => {}
                }
            }
            room.outputs.close(&container, &kept);
        });
    }

    /// The output from its first byte: the engine answers when it has connected the stream.
    async fn listen(&self, container: &ContainerId) -> Option<hyper::upgrade::Upgraded> {
        let path = format!("/containers/{}/attach?stream=1&stdout=1&stderr=1", container.as_str());
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::HOST, "docker")
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "tcp")
            .header(header::CONTENT_LENGTH, 0)
            .body(full(Bytes::new()))
            .ok()?;
        let mut reply = self.engine.exchange(request).await.ok()?;
        if reply.status() != StatusCode::SWITCHING_PROTOCOLS {
            return None;
        }
        hyper::upgrade::on(&mut reply).await.ok()
    }

    /// A client's logs: the engine's, and what it left out.
    pub(super) async fn logs(&self, reference: &str, target: &Target, reply: Reply) -> Reply {
        let Some(kept) = self.outputs.find(reference) else { return reply };
        kept.asked.store(true, Ordering::Relaxed);
        let Some(wants) = plain(target) else { return reply };
        let follows = is_yes(target.query("follow"));
        let (head, body) = reply.into_parts();
        match body {
            Either::Left(engine) if head.status == StatusCode::OK => {
                let tale = Tale {
                    engine: Some(engine),
                    frames: Frames::default(),
                    told: Streams::default(),
                    excuse: vec![],
                    kept,
                    wants,
                    follows,
                };
                let body = StreamBody::new(futures_util::stream::unfold(tale, Tale::next));
                Response::from_parts(head, Either::Right(Either::Right(body.boxed_unsync())))
            }
            body if is_gone(head.status) => match kept.rest(&Streams::default(), wants).await {
                Some(frames) => {
                    let mut reply = Response::new(full(frames));
                    let kind = HeaderValue::from_static("application/vnd.docker.raw-stream");
                    reply.headers_mut().insert(header::CONTENT_TYPE, kind);
                    reply
                }
                None => Response::from_parts(head, body),
            },
            body => Response::from_parts(head, body),
        }
    }

    /// A client's look at a container whose logs it reads. Without an exit code the engine's answer stands: a 0
    /// that never was would make a failed task look well.
    pub(super) async fn looked(&self, reference: &str, reply: Reply) -> Reply {
        if !is_gone(reply.status()) {
            return reply;
        }
        let kept = self.outputs.find(reference).filter(|kept| kept.asked.load(Ordering::Relaxed));
        let (Some(kept), Some(id)) = (kept, ContainerId::parse(reference)) else { return reply };
        match self.settings.exits.last_code(&id).await {
            Some(code) => kept.look(code),
            None => reply,
        }
    }
}

/// Created and not yet run, removed at its end, and nobody attached: its logs are all there is.
fn is_fleeting(inspected: &Value) -> bool {
    let (host, config) = (&inspected["HostConfig"], &inspected["Config"]);
    inspected["State"]["Status"] == "created"
        && host["AutoRemove"] == true
        && host["LogConfig"]["Type"] != "none"
        && ["Tty", "AttachStdout", "AttachStderr"].iter().all(|key| config[key] != true)
}

/// How the engine answers around a removal: marked for it, file deleted already, forgotten (Podman: 500 for a look).
fn is_gone(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::CONFLICT | StatusCode::INTERNAL_SERVER_ERROR)
}

/// Which streams a query wants from their first byte to their last; `None` for a part, or for times.
fn plain(target: &Target) -> Option<[bool; 2]> {
    let unset = |key: &str| matches!(target.query(key), None | Some("" | "0"));
    let all = matches!(target.query("tail"), None | Some("" | "all"));
    let wants = [is_yes(target.query("stdout")), is_yes(target.query("stderr"))];
    let whole = all && unset("since") && unset("until") && !is_yes(target.query("timestamps"));
    (whole && wants != [false, false]).then_some(wants)
}

/// How the engine reads a flag.
fn is_yes(value: Option<&str>) -> bool {
    let value = value.unwrap_or_default().trim().to_ascii_lowercase();
    !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
}

async fn hear_out(stream: hyper::upgrade::Upgraded, kept: &Kept) {
    let mut stream = TokioIo::new(stream);
    let (mut frames, mut piece) = (Frames::default(), vec![0; 16 << 10]);
    // Read to the end even when it is too long: an attach that nobody reads would hold the container up.
    while let Ok(read @ 1..) = stream.read(&mut piece).await {
        frames.read(piece.get(..read).unwrap_or_default(), |stream, part| {
            if let Part::Payload(payload) = part {
                kept.hear(usize::from(stream == 2), payload);
            }
        });
    }
}

/// The engine's logs on their way to a client.
struct Tale {
    engine: Option<Incoming>,
    frames: Frames,
    told: Streams,
    /// What the engine says itself: that it finds the logs no more. It goes on only where they are not known here either.
    excuse: Vec<u8>,
    kept: Arc<Kept>,
    wants: [bool; 2],
    follows: bool,
}

impl Tale {
    async fn next(mut self) -> Option<(Result<Frame<Bytes>, hyper::Error>, Self)> {
        loop {
            let error = match self.engine.as_mut()?.frame().await {
                Some(Ok(frame)) => {
                    let Some(data) = frame.data_ref() else { return Some((Ok(frame), self)) };
                    let passes = self.pass(data);
                    if passes.is_empty() {
                        continue;
                    }
                    return Some((Ok(Frame::data(passes)), self));
                }
                Some(Err(error)) => Some(error),
                None => None,
            };
            self.engine = None;
            let ends = self.follows || error.is_some() || !self.excuse.is_empty();
            let rest = if ends && self.frames.is_whole() {
                self.kept.rest(&self.told, self.wants).await
            } else {
                None
            };
            let last = match (rest, error) {
                (Some(rest), _) => rest,
                (None, Some(error)) => return Some((Err(error), self)),
                (None, None) => std::mem::take(&mut self.excuse).into(),
            };
            return (!last.is_empty()).then_some((Ok(Frame::data(last)), self));
        }
    }

    /// What of a piece goes on at once.
    fn pass(&mut self, data: &[u8]) -> Bytes {
        let (told, excuse) = (&mut self.told, &mut self.excuse);
        let mut passes = Vec::with_capacity(data.len());
        self.frames.read(data, |stream, part| {
            let (Part::Head(bytes) | Part::Payload(bytes)) = part;
            if stream == ENGINE {
                excuse.extend_from_slice(bytes);
                return;
            }
            passes.extend_from_slice(bytes);
            if let Part::Payload(payload) = part {
                // One byte more than is ever kept is enough to see that it is too long.
                let told = &mut told[usize::from(stream == 2)];
                let room = (KEPT + 1).saturating_sub(told.len());
                told.extend_from_slice(payload.get(..payload.len().min(room)).unwrap_or_default());
            }
        });
        passes.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> (Outputs, Arc<Kept>) {
        let outputs = Outputs::default();
        let id = ContainerId::parse(&"ab".repeat(32)).unwrap();
        let kept = outputs.open(&id, Value::Null);
        (outputs, kept)
    }

    #[tokio::test(start_paused = true)]
    async fn an_output_that_is_too_long_is_not_kept_in_part() {
        let (outputs, kept) = kept();
        kept.hear(0, &vec![b'x'; KEPT]);
        assert_eq!(outputs.together.load(Ordering::Relaxed), KEPT);
        kept.hear(1, b"y");
        assert_eq!(outputs.together.load(Ordering::Relaxed), 0);
        kept.hear(0, b"z");
        kept.ended.send_replace(true);
        assert_eq!(kept.rest(&Streams::default(), [true, true]).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_waited_for_and_not_for_ever() {
        let (_outputs, kept) = kept();
        kept.hear(0, b"one");
        assert_eq!(kept.rest(&Streams::default(), [true, true]).await, None);
        let teller = kept.clone();
        let rest = async move { teller.rest(&[b"o".to_vec(), vec![]], [true, true]).await };
        let (rest, ()) = tokio::join!(rest, async { _ = kept.ended.send_replace(true) });
        assert_eq!(rest.unwrap(), b"\x01\0\0\0\0\0\0\x02ne".as_slice());
    }

    #[test]
    fn what_is_kept_is_counted_until_it_is_dropped() {
        let (outputs, kept) = kept();
        kept.hear(1, b"four");
        let id = ContainerId::parse(&"ab".repeat(32)).unwrap();
        outputs.close(&id, &kept);
        drop(kept);
        assert_eq!(outputs.together.load(Ordering::Relaxed), 0);
        assert!(outputs.all().is_empty());
    }
}
