//! The output of auto-removed containers, kept until their client has read it.
//!
//! The engine removes such a container with its logs as soon as it ends: a client that asks afterwards gets
//! 404 or 409, or a stream that breaks off, and docker-py's look-up of the terminal setting fails. So the
//! proxy attaches to the output of a leased container before the container starts, unless the create attaches
//! the client (kfp's does not), and answers from that output if the engine has none. The proxy always asks
//! the engine first and changes nothing about the container: the engine removes it as without kfp-creds,
//! whatever happens to this process.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;

use super::engine_client::{EngineClient, Opened, Reply, full, opened_engine};
use super::exit_codes::ExitCodes;
use super::frames::{ENGINE, FramePart, Frames};
use super::lookups::Lookups;
use super::outputs::{Capture, KEPT, Outputs, Streams};
use super::path::ApiTarget;
use crate::process::Tasks;
use crate::workload::ContainerId;

/// How long after the end of a container its client may still ask for the output.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// Keeps outputs, and completes the engine's answers from them.
#[derive(Debug)]
pub(super) struct Logs {
    outputs: Arc<Outputs>,
    exits: ExitCodes,
    lookups: Lookups,
    engine: EngineClient,
    tasks: Tasks,
}

impl Logs {
    pub(super) fn new(exits: ExitCodes, lookups: Lookups, engine: EngineClient, tasks: Tasks) -> Self {
        Self { outputs: Arc::default(), exits, lookups, engine, tasks }
    }

    /// Called before a start reaches the engine: attaches to a container whose output would exist only in its
    /// logs.
    pub(super) async fn keep(&self, container: &ContainerId) {
        let Ok(Some(inspected)) = self.lookups.container(container.as_str()).await else { return };
        if !is_only_in_logs(&inspected) {
            return;
        }
        let Some(stream) = self.attach_to_output(container).await else { return };
        let kept = self.outputs.open(container, &inspected);
        drop(inspected);
        let (outputs, stop, container) = (self.outputs.clone(), self.tasks.stop().clone(), container.clone());
        self.tasks.spawn("output", async move {
            let whole = tokio::select! {
                () = capture_to_end(stream, &kept) => true,
                () = stop.cancelled() => false,
            };
            if whole {
                kept.ended.send_replace(true);
                tokio::select! {
                    () = tokio::time::sleep(KEPT_FOR) => {}
                    () = stop.cancelled() => {}
                }
            }
            outputs.close(&container, &kept);
        });
    }

    /// Attaches to the output from its first byte: the engine answers after it has connected the stream.
    async fn attach_to_output(&self, container: &ContainerId) -> Option<Opened> {
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
        opened_engine(hyper::upgrade::on(&mut reply), &self.tasks).await
    }

    /// The answer to a client's request for logs: the engine's, completed by the output that is missing in
    /// it.
    pub(super) async fn complete(&self, reference: &str, target: &ApiTarget, reply: Reply) -> Reply {
        let Some(kept) = self.outputs.find(reference) else { return reply };
        kept.logs_asked.store(true, Ordering::Relaxed);
        let Some(wants) = whole_streams(target) else { return reply };
        let follows = is_yes(target.query("follow"));
        let (head, body) = reply.into_parts();
        match body {
            Either::Left(engine) if head.status == StatusCode::OK => {
                let stream = LogStream {
                    engine: Some(engine),
                    frames: Frames::default(),
                    sent: Streams::default(),
                    engine_message: vec![],
                    kept,
                    wants,
                    follows,
                };
                let body = StreamBody::new(futures_util::stream::unfold(stream, LogStream::next));
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

    /// The answer to a client's inspect of a container whose logs it reads. If the exit code is unknown, the
    /// engine's answer stands, because an invented 0 would make a failed task look successful.
    pub(super) async fn inspected(&self, reference: &str, reply: Reply) -> Reply {
        if !is_gone(reply.status()) {
            return reply;
        }
        let kept = self.outputs.find(reference).filter(|kept| kept.logs_asked.load(Ordering::Relaxed));
        let (Some(kept), Some(id)) = (kept, ContainerId::parse(reference)) else { return reply };
        match self.exits.last_code(&id).await {
            Some(code) => kept.inspect_reply(code),
            None => reply,
        }
    }
}

/// Whether the output will exist only in the container's logs: the container was created but has not run, it
/// is auto-removed, and no client is attached.
fn is_only_in_logs(inspected: &Value) -> bool {
    let (host, config) = (&inspected["HostConfig"], &inspected["Config"]);
    inspected["State"]["Status"] == "created"
        && host["AutoRemove"] == true
        && host["LogConfig"]["Type"] != "none"
        && ["Tty", "AttachStdout", "AttachStderr"].iter().all(|key| config[key] != true)
}

/// Whether the engine answers so during or after a removal: 409 if the container is marked for removal, 500
/// if the log file is deleted already, 404 if the container is gone (Podman: 500 on inspect).
fn is_gone(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::CONFLICT | StatusCode::INTERNAL_SERVER_ERROR)
}

/// Which streams a query requests in full; `None` if it requests a part of them, or time stamps.
fn whole_streams(target: &ApiTarget) -> Option<[bool; 2]> {
    let unset = |key: &str| matches!(target.query(key), None | Some("" | "0"));
    let all = matches!(target.query("tail"), None | Some("" | "all"));
    let wants = [is_yes(target.query("stdout")), is_yes(target.query("stderr"))];
    let whole = all && unset("since") && unset("until") && !is_yes(target.query("timestamps"));
    (whole && wants != [false, false]).then_some(wants)
}

/// How the engine parses a flag.
fn is_yes(value: Option<&str>) -> bool {
    let value = value.unwrap_or_default().trim().to_ascii_lowercase();
    !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
}

async fn capture_to_end(mut stream: Opened, kept: &Capture) {
    let mut frames = Frames::default();
    let mut capture = |piece: &[u8]| {
        frames.read(piece, |stream, part| {
            if let FramePart::Payload(payload) = part
                && stream != ENGINE
            {
                kept.record(usize::from(stream == 2), payload);
            }
        });
    };
    capture(&std::mem::take(&mut stream.early));
    // The proxy reads to the end even beyond the limit: an attached stream that nobody reads would block the
    // container. The buffer exists only while there is something to read, because a container may print
    // nothing for hours.
    while stream.stream.readable().await.is_ok() {
        let mut piece = vec![0; 16 << 10];
        loop {
            match stream.stream.try_read(&mut piece) {
                Ok(0) => return,
                Ok(read) => capture(piece.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return,
            }
        }
    }
}

/// The engine's logs on their way to a client.
struct LogStream {
    engine: Option<Incoming>,
    frames: Frames,
    sent: Streams,
    /// The engine's own message that the logs are gone. The client gets it only if the output is not known
    /// here either.
    engine_message: Vec<u8>,
    kept: Arc<Capture>,
    wants: [bool; 2],
    follows: bool,
}

impl LogStream {
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
            let ends = self.follows || error.is_some() || !self.engine_message.is_empty();
            let rest = if ends && self.frames.is_whole() {
                self.kept.rest(&self.sent, self.wants).await
            } else {
                None
            };
            let last = match (rest, error) {
                (Some(rest), _) => rest,
                (None, Some(error)) => return Some((Err(error), self)),
                (None, None) => std::mem::take(&mut self.engine_message).into(),
            };
            return (!last.is_empty()).then_some((Ok(Frame::data(last)), self));
        }
    }

    /// The part of a piece that is passed on at once.
    fn pass(&mut self, data: &[u8]) -> Bytes {
        let (sent, engine_message) = (&mut self.sent, &mut self.engine_message);
        let mut passes = Vec::with_capacity(data.len());
        self.frames.read(data, |stream, part| {
            let (FramePart::Head(bytes) | FramePart::Payload(bytes)) = part;
            if stream == ENGINE {
                engine_message.extend_from_slice(bytes);
                return;
            }
            passes.extend_from_slice(bytes);
            if let FramePart::Payload(payload) = part {
                // One byte more than the limit is enough to detect that the output is too long.
                let sent = &mut sent[usize::from(stream == 2)];
                let left = (KEPT + 1).saturating_sub(sent.len());
                sent.extend_from_slice(payload.get(..payload.len().min(left)).unwrap_or_default());
            }
        });
        passes.into()
    }
}
