//! Archives sent to the engine (copies, build contexts, imports, loads), judged as they pass. No byte of a
//! file is released before the file is judged, so the engine never gets a key that is refused.
//!
//! The judgement of a create includes its image's environment. The files of an image are scanned here if they
//! pass in a readable form; otherwise `kfp-creds scan` can scan them.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Either, StreamBody};
use hyper::Request;
use hyper::body::{Frame, Incoming};
use hyper::http::request::Parts;
use tokio::sync::{mpsc, oneshot};

use super::engine_client::{EngineClient, Refusal, Reply};
use super::guard::KeyGuard;
use super::lookups::Lookups;
use super::path::ApiTarget;
use super::texts::{FoundKey, instruction};
use super::{ProxySettings, proxies};
use crate::config::proxies::ClientProxies;
use crate::guard::found::ArchivedFind;
use crate::guard::stream::Stream;
use crate::guard::{GuardRules, Mode};
use crate::process::Tasks;

/// How long the proxy reads the rest of a refused upload, so that the client finishes sending and reads the
/// answer.
const DRAIN: Duration = Duration::from_secs(10);
/// Compressed bytes processed at a time; they may expand a thousandfold.
pub(super) const SCAN_CHUNK: usize = 8 << 10;

type Piece = Result<Frame<Bytes>, io::Error>;

/// Judges archives and sends them on.
#[derive(Debug)]
pub(super) struct Uploads {
    engine: EngineClient,
    guard: Arc<KeyGuard>,
    lookups: Lookups,
    client_proxies: ClientProxies,
    tasks: Tasks,
}

impl Uploads {
    pub(super) fn new(
        settings: &ProxySettings,
        engine: EngineClient,
        lookups: Lookups,
        guard: Arc<KeyGuard>,
    ) -> Self {
        let (client_proxies, tasks) = (settings.client_proxies.clone(), settings.tasks.clone());
        Self { engine, guard, lookups, client_proxies, tasks }
    }

    /// Files copied into a container: `docker cp`.
    pub(super) async fn archive(
        &self,
        parts: Parts,
        target: ApiTarget,
        body: Incoming,
        name: &str,
    ) -> Result<Reply, Refusal> {
        let Some(id) = self.lookups.locate(name).await? else {
            return self.engine.pass(parts, target.uri(), Either::Left(body)).await;
        };
        let target = target.with_container(id.as_str(), "archive");
        match self.guard.strictness(self.guard.protects(&id).await?) {
            Mode::Off => self.engine.pass(parts, target.uri(), Either::Left(body)).await,
            mode => {
                let who = format!("copy to {name}");
                self.send(parts, &target, body, JudgedUpload { mode, who, stream: Stream::files() }).await
            }
        }
    }

    /// The context of the classic builder. BuildKit fetches its context through `POST /session`, except for
    /// an archive that an old client announces by `upload-request`.
    pub(super) async fn build_context(
        &self,
        parts: Parts,
        target: &ApiTarget,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        let given = target.query("buildargs");
        let arguments = proxies::build_arguments(given, &parts.headers, &self.client_proxies);
        let target = &arguments.map_or_else(|| target.clone(), |all| target.with_query("buildargs", &all));
        self.guard.build_arguments(target)?;
        let remote = target.query("remote").unwrap_or_default();
        match self.guard.strictness(true) {
            Mode::Off => self.engine.pass(parts, target.uri(), Either::Left(body)).await,
            _ if remote == "client-session" => {
                self.engine.pass(parts, target.uri(), Either::Left(body)).await
            }
            _ if !matches!(remote, "" | "upload-request") => {
                self.guard.report_unscanned("the build's context, which the engine fetches itself");
                self.engine.pass(parts, target.uri(), Either::Left(body)).await
            }
            mode => {
                let upload = JudgedUpload { mode, who: "build context".into(), stream: Stream::files() };
                self.send(parts, target, body, upload).await
            }
        }
    }

    /// `docker load`: an archive of archives.
    pub(super) async fn image_load(
        &self,
        parts: Parts,
        target: &ApiTarget,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        match self.guard.strictness(true) {
            Mode::Off => self.engine.pass(parts, target.uri(), Either::Left(body)).await,
            mode => {
                let upload = JudgedUpload { mode, who: "load".into(), stream: Stream::image() };
                self.send(parts, target, body, upload).await
            }
        }
    }

    /// `docker import`, which carries the files of an image, and `docker pull`.
    pub(super) async fn image_create(
        &self,
        parts: Parts,
        target: &ApiTarget,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        let mode = self.guard.strictness(true);
        let pulled = target.query("fromImage").is_some_and(|image| !image.is_empty());
        if pulled || mode == Mode::Off {
            return self.engine.pass(parts, target.uri(), Either::Left(body)).await;
        }
        self.guard.decide(mode, "import", changes(target, self.guard.rules()))?;
        match target.query("fromSrc") {
            Some("-") => {
                let upload = JudgedUpload { mode, who: "import".into(), stream: Stream::files() };
                self.send(parts, target, body, upload).await
            }
            _ => {
                self.guard.report_unscanned("an image whose files the engine fetches itself");
                self.engine.pass(parts, target.uri(), Either::Left(body)).await
            }
        }
    }

    async fn send(
        &self,
        parts: Parts,
        target: &ApiTarget,
        body: Incoming,
        upload: JudgedUpload,
    ) -> Result<Reply, Refusal> {
        let uri = target.uri().map_err(Refusal::malformed)?;
        let (pieces, rest) = mpsc::channel::<Piece>(1);
        let (report, reported) = oneshot::channel();
        let pump = Pump { guard: self.guard.clone(), mode: upload.mode, who: upload.who };
        self.tasks.spawn("upload", async move { pump.run(body, upload.stream, pieces, report).await });
        let stream = stream::unfold(rest, |mut rest| async move { Some((rest.recv().await?, rest)) });
        let stream = StreamBody::new(Box::pin(stream));
        let reply = self.engine.forward(Request::from_parts(parts, stream), uri, None).await;
        let failed = reply.as_ref().map_or(true, |reply| reply.status().as_u16() >= 400);
        // The engine reports a stopped upload as an error; the client gets our refusal, which is the reason.
        if failed && let Ok(Ok(Some(refusal))) = tokio::time::timeout(Duration::from_secs(1), reported).await
        {
            return Err(refusal);
        }
        reply
    }
}

/// Copies one upload from the client to the engine.
struct Pump {
    guard: Arc<KeyGuard>,
    mode: Mode,
    who: String,
}

impl Pump {
    async fn run(
        self,
        mut body: Incoming,
        stream: Stream,
        pieces: mpsc::Sender<Piece>,
        report: oneshot::Sender<Option<Refusal>>,
    ) {
        let mut filter = Filter::new(stream);
        loop {
            let frame = body.frame().await;
            let end = frame.is_none();
            let judged = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => filter.push(data).await,
                    Err(_) => continue,
                },
                Some(Err(_)) => {
                    let _ = pieces.send(Err(io::ErrorKind::UnexpectedEof.into())).await;
                    return;
                }
                None => filter.end().await,
            };
            let Some(done) = judged else { return };
            filter = done;
            if let Err(refusal) = self.guard.decide(self.mode, &self.who, self.keys(&mut filter)) {
                let _ = pieces.send(Err(io::Error::other("a key"))).await;
                drop(pieces);
                if let Err(Some(refusal)) = report.send(Some(refusal)) {
                    // The engine has answered already, so the reason goes to the console.
                    self.guard.notice(refusal.why);
                }
                let _ = tokio::time::timeout(DRAIN, async { while body.frame().await.is_some() {} }).await;
                return;
            }
            if end {
                self.report_unverified(&mut filter.stream);
            }
            while let Some(piece) = filter.release(end) {
                if pieces.send(Ok(Frame::data(piece))).await.is_err() {
                    return;
                }
            }
            if end {
                let _ = report.send(None);
                return;
            }
        }
    }

    fn report_unverified(&self, stream: &mut Stream) {
        let who = &self.who;
        let none = (!stream.is_archive()).then(|| "it is not a tar archive".to_string());
        for why in none.into_iter().chain(stream.take_unverified()) {
            self.guard.notice(format!("{who}: not verified: {why}"));
        }
        if let Some(note) = stream.take_passed().told() {
            self.guard.notice(format!("{who}: {note}"));
        }
    }

    fn keys(&self, filter: &mut Filter) -> Vec<FoundKey> {
        in_archive(filter.stream.take_finds(), self.guard.rules()).collect()
    }
}

/// The keys found in an archive, as reported.
pub(super) fn in_archive(finds: Vec<ArchivedFind>, rules: &GuardRules) -> impl Iterator<Item = FoundKey> {
    let finds = finds.into_iter().filter(|entry| !rules.allows_find(&entry.name, &entry.exception));
    finds.map(|entry| {
        let layer = entry.layer.as_ref().map(|layer| format!(" in layer {layer}")).unwrap_or_default();
        FoundKey::inside(format!("the archive holds {} at {}{layer}", entry.kind, entry.name), &entry)
    })
}

/// Dockerfile instructions in the query.
pub(super) fn changes(target: &ApiTarget, rules: &GuardRules) -> Vec<FoundKey> {
    let lines = target.queries("changes").flat_map(str::lines);
    lines.filter_map(|line| instruction(line, rules)).collect()
}

/// How an upload is judged.
struct JudgedUpload {
    mode: Mode,
    /// Names the upload in messages.
    who: String,
    stream: Stream,
}

/// Judges incoming bytes and holds them back until they are judged.
struct Filter {
    stream: Stream,
    held: VecDeque<Bytes>,
    /// The number of bytes released.
    released: u64,
}

impl Filter {
    fn new(stream: Stream) -> Self {
        Self { stream, held: VecDeque::new(), released: 0 }
    }

    /// Runs off the serving thread, because a frame may expand to gigabytes. `None` if the scan panicked.
    async fn push(mut self, bytes: Bytes) -> Option<Self> {
        let pushed = tokio::task::spawn_blocking(move || {
            // In compressed data, the offset of a file is known only per chunk.
            bytes.chunks(SCAN_CHUNK).for_each(|chunk| self.stream.push_root(chunk));
            self.held.push_back(bytes);
            self
        });
        pushed.await.ok()
    }

    async fn end(mut self) -> Option<Self> {
        let ended = tokio::task::spawn_blocking(move || {
            self.stream.end();
            self
        });
        ended.await.ok()
    }

    /// The next bytes that may be sent on; at the end, all of them.
    fn release(&mut self, end: bool) -> Option<Bytes> {
        let first = self.held.front_mut()?;
        let judged = if end { u64::MAX } else { self.stream.safe() };
        let free = judged.saturating_sub(self.released);
        let free = usize::try_from(free).unwrap_or(usize::MAX).min(first.len());
        if free == 0 {
            return None;
        }
        let piece = first.split_to(free);
        if first.is_empty() {
            self.held.pop_front();
        }
        self.released += piece.len() as u64;
        Some(piece)
    }
}
