//! Archives on their way to the engine (copies, build contexts, imports, loads): judged as they pass. No byte of a
//! file goes on before the file is judged, so that a refusal comes before the key has left.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Either, StreamBody};
use hyper::Request;
use hyper::body::{Frame, Incoming};
use hyper::http::request::Parts;
use tokio::sync::{mpsc, oneshot};

use super::path::Target;
use super::room::Room;
use super::wire::{Refusal, Reply};
use crate::guard::Mode;
use crate::guard::archive::{Entry, Tar};
use crate::guard::layer::Gzip;

/// How long the rest of a refused upload is read, so that the client comes to read the answer.
const DRAIN: Duration = Duration::from_secs(10);
/// Compressed bytes at a time: they may become a thousand times as many.
const SIP: usize = 8 << 10;

type Piece = Result<Frame<Bytes>, io::Error>;

impl Room {
    /// Files for a container: `docker cp`.
    pub(super) async fn archive(
        self: &Arc<Self>,
        parts: Parts,
        target: Target,
        body: Incoming,
        name: &str,
    ) -> Result<Reply, Refusal> {
        let Some(id) = self.locate(name).await? else {
            return self.pass(parts, &target, Either::Left(body)).await;
        };
        let target = target.with_container(id.as_str(), "archive");
        match self.strictness(self.is_guarded(&id).await?) {
            Mode::Off => self.pass(parts, &target, Either::Left(body)).await,
            mode => {
                let who = format!("copy to {name}");
                self.upload(parts, &target, body, Look { mode, who, tar: Tar::new() }).await
            }
        }
    }

    /// The classic builder's context; BuildKit fetches its own through a tunnel.
    pub(super) async fn build_context(
        self: &Arc<Self>,
        parts: Parts,
        target: &Target,
        body: Incoming,
    ) -> Result<Reply, Refusal> {
        self.guard_build_arguments(target)?;
        let remote = target.query("remote").is_some_and(|remote| !remote.is_empty());
        if target.query("version") == Some("2") {
            self.say_buildkit();
        }
        match self.strictness(true) {
            Mode::Off => self.pass(parts, target, Either::Left(body)).await,
            _ if target.query("version") == Some("2") => self.pass(parts, target, Either::Left(body)).await,
            _ if remote => {
                self.unlooked("the build's context, which the engine fetches itself");
                self.pass(parts, target, Either::Left(body)).await
            }
            mode => {
                let look = Look { mode, who: "build context".into(), tar: Tar::new() };
                self.upload(parts, target, body, look).await
            }
        }
    }

    pub(super) fn say_buildkit(&self) {
        let on = self.settings.guard.rules.mode != Mode::Off;
        if on && !self.said_buildkit.swap(true, Ordering::Relaxed) {
            self.settings.voice.notice(
                "not verified: BuildKit fetches its context itself, past this session; look into the image with \
                 kfp-creds scan IMAGE",
            );
        }
    }

    pub(super) async fn upload(
        self: &Arc<Self>,
        parts: Parts,
        target: &Target,
        body: Incoming,
        look: Look,
    ) -> Result<Reply, Refusal> {
        let uri = target.uri().map_err(Refusal::malformed)?;
        let (pieces, rest) = mpsc::channel::<Piece>(1);
        let (tell, told) = oneshot::channel();
        let room = self.clone();
        self.settings.tasks.spawn("upload", async move { room.pump(body, pieces, look, tell).await });
        let stream = stream::unfold(rest, |mut rest| async move { Some((rest.recv().await?, rest)) });
        let stream = StreamBody::new(Box::pin(stream));
        let reply = self.engine.forward(Request::from_parts(parts, stream), uri, None).await;
        let failed = reply.as_ref().map_or(true, |reply| reply.status().as_u16() >= 400);
        // A stopped upload is an error at the engine; the reason is ours.
        if failed && let Ok(Ok(Some(refusal))) = tokio::time::timeout(Duration::from_secs(1), told).await {
            return Err(refusal);
        }
        reply
    }

    async fn pump(
        &self,
        mut body: Incoming,
        pieces: mpsc::Sender<Piece>,
        Look { mode, who, tar }: Look,
        tell: oneshot::Sender<Option<Refusal>>,
    ) {
        let mut filter = Filter::new(tar);
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                let _ = pieces.send(Err(io::ErrorKind::UnexpectedEof.into())).await;
                return;
            };
            let Ok(mut data) = frame.into_data() else { continue };
            while !data.is_empty() {
                let sip = filter.sip(&mut data);
                filter = match filter.push_aside(sip).await {
                    Some(filter) => filter,
                    None => return,
                };
                if let Err(refusal) = self.decide(mode, &who, self.texts(&mut filter)) {
                    let _ = pieces.send(Err(io::Error::other("a key"))).await;
                    drop(pieces);
                    if let Err(Some(refusal)) = tell.send(Some(refusal)) {
                        // The engine has answered already, and nobody waits for the reason.
                        self.settings.voice.notice(refusal.why);
                    }
                    let _ =
                        tokio::time::timeout(DRAIN, async { while body.frame().await.is_some() {} }).await;
                    return;
                }
                while let Some(piece) = filter.release(false) {
                    if pieces.send(Ok(Frame::data(piece))).await.is_err() {
                        return;
                    }
                }
            }
        }
        for why in filter.unverified() {
            self.settings.voice.notice(format!("{who}: not verified: {why}"));
        }
        while let Some(piece) = filter.release(true) {
            if pieces.send(Ok(Frame::data(piece))).await.is_err() {
                return;
            }
        }
        let _ = tell.send(None);
    }

    fn texts(&self, filter: &mut Filter) -> Vec<String> {
        let finds = filter.take_finds().into_iter();
        let finds = finds.filter(|entry| !self.settings.guard.rules.allows_inside(&entry.name));
        let layer = |entry: &Entry| entry.layer.as_ref().map(|layer| format!(" in layer {layer}"));
        finds
            .map(|entry| {
                let layer = layer(&entry).unwrap_or_default();
                format!("the archive holds {} at {}{layer}", entry.kind, entry.name)
            })
            .collect()
    }
}

/// How an upload is looked at.
pub(super) struct Look {
    pub(super) mode: Mode,
    /// Names the upload in messages.
    pub(super) who: String,
    pub(super) tar: Tar,
}

/// Judges what goes in, and holds it back until it is judged.
struct Filter {
    form: Form,
    /// What is compressed, or holds what is, comes in small pieces.
    sips: bool,
    held: VecDeque<Bytes>,
    /// Bytes that were released.
    released: u64,
}

enum Form {
    /// The first bytes tell how this one is read.
    Unknown(Tar),
    Plain(Tar),
    Gzip(Box<Gzip>),
    /// Not a form that is opened.
    Closed(&'static str),
}

impl Filter {
    fn new(tar: Tar) -> Self {
        Self { sips: tar.is_of_image(), form: Form::Unknown(tar), held: VecDeque::new(), released: 0 }
    }

    fn sip(&self, data: &mut Bytes) -> Bytes {
        match self.form {
            Form::Plain(_) if !self.sips => std::mem::take(data),
            Form::Closed(_) => std::mem::take(data),
            Form::Unknown(_) | Form::Gzip(_) | Form::Plain(_) => data.split_to(data.len().min(SIP)),
        }
    }

    /// [`Self::push`] away from the thread that serves where a sip may become gigabytes: compressed layers in a
    /// compressed archive multiply. `None` where that broke.
    async fn push_aside(mut self, bytes: Bytes) -> Option<Self> {
        if !self.sips {
            self.push(bytes);
            return Some(self);
        }
        let pushed = tokio::task::spawn_blocking(move || {
            self.push(bytes);
            self
        });
        pushed.await.ok()
    }

    fn push(&mut self, bytes: Bytes) {
        if let Form::Unknown(tar) = &mut self.form {
            let tar = std::mem::take(tar);
            // A stream that begins with fewer bytes than tell is taken for plain tar and breaks there.
            self.form = match &bytes[..] {
                [0x1f, 0x8b, ..] | [0x1f] => Form::Gzip(Box::new(Gzip::new(tar))),
                [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', ..] | [0x28, 0xb5, 0x2f, ..] => {
                    Form::Closed("only plain and gzip archives are opened")
                }
                _ => Form::Plain(tar),
            };
        }
        match &mut self.form {
            Form::Plain(tar) => tar.push(&bytes),
            Form::Gzip(gzip) => gzip.push(&bytes),
            Form::Unknown(_) | Form::Closed(_) => {}
        }
        self.held.push_back(bytes);
    }

    fn tar(&mut self) -> Option<&mut Tar> {
        match &mut self.form {
            Form::Plain(tar) => Some(tar),
            Form::Gzip(gzip) => Some(gzip.tar_mut()),
            Form::Unknown(_) | Form::Closed(_) => None,
        }
    }

    fn take_finds(&mut self) -> Vec<Entry> {
        self.tar().map(Tar::take_finds).unwrap_or_default()
    }

    fn unverified(&mut self) -> Vec<String> {
        match &self.form {
            Form::Closed(why) => return vec![(*why).into()],
            Form::Gzip(gzip) if gzip.broken() => return vec!["the archive cannot be decompressed".into()],
            _ => {}
        }
        let Some(tar) = self.tar() else { return vec![] };
        // Of other archives the engine itself says so.
        let cut = tar.is_of_image() && !tar.is_between();
        let broken = (tar.broken() || cut).then(|| "it is not a tar archive, or a broken one".to_string());
        broken.into_iter().chain(tar.take_unverified()).collect()
    }

    /// The next bytes that may go on; all of them at the end.
    fn release(&mut self, end: bool) -> Option<Bytes> {
        let first = self.held.front_mut()?;
        let judged = match &self.form {
            _ if end => u64::MAX,
            Form::Plain(tar) => tar.safe(),
            Form::Gzip(gzip) => gzip.judged(),
            Form::Closed(_) => u64::MAX,
            Form::Unknown(_) => 0,
        };
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
