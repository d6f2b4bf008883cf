//! The recorded output of containers whose logs the engine no longer has.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use hyper::StatusCode;
use serde_json::Value;
use tokio::sync::watch;

use super::engine_client::{Reply, json_reply};
use crate::workload::ContainerId;

/// Longest output kept per container: a container that writes more runs long enough for a client to read its
/// logs.
pub(super) const KEPT: usize = 1 << 20;
/// Most bytes kept for all containers together.
const KEPT_IN_TOTAL: usize = 64 << 20;
/// How long the answer to a request for logs waits for the end of the output after the engine has ended its
/// own. Podman ends an attach only when the process that removes the container is done, which takes seconds
/// on a busy machine.
const END_WITHIN: Duration = Duration::from_secs(30);

/// Bytes of standard output and standard error.
pub(super) type Streams = [Vec<u8>; 2];

/// The recorded outputs, by container.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    kept: Mutex<HashMap<ContainerId, Arc<Capture>>>,
    total: Arc<AtomicUsize>,
}

#[derive(Debug)]
pub(super) struct Capture {
    captured: Mutex<Captured>,
    pub(super) ended: watch::Sender<bool>,
    /// The engine's inspect result from before the start, compressed: parsed it takes 20 KB, as text 3 KB and
    /// more.
    inspected: Vec<u8>,
    /// Whether a client has asked for the logs: only then does a later inspect get an answer from here.
    pub(super) logs_asked: AtomicBool,
    total: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Captured {
    streams: Streams,
    /// The stream and length of each piece, in order.
    order: Vec<(usize, usize)>,
    too_long: bool,
}

impl Outputs {
    pub(super) fn open(&self, container: &ContainerId, inspected: &Value) -> Arc<Capture> {
        let mut packed = DeflateEncoder::new(vec![], Compression::fast());
        // Writing into memory does not fail.
        let _ = serde_json::to_writer(&mut packed, inspected);
        let mut packed = packed.finish().unwrap_or_default();
        packed.shrink_to_fit();
        let kept = Arc::new(Capture {
            captured: Mutex::default(),
            ended: watch::Sender::new(false),
            inspected: packed,
            logs_asked: AtomicBool::new(false),
            total: self.total.clone(),
        });
        self.all().insert(container.clone(), kept.clone());
        kept
    }

    pub(super) fn close(&self, container: &ContainerId, kept: &Arc<Capture>) {
        let mut all = self.all();
        if all.get(container).is_some_and(|known| Arc::ptr_eq(known, kept)) {
            all.remove(container);
        }
    }

    /// Finds a record by full id only, as libraries ask: a name may belong to another container by now.
    pub(super) fn find(&self, reference: &str) -> Option<Arc<Capture>> {
        self.all().get(&ContainerId::parse(reference)?).cloned()
    }

    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, Arc<Capture>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let captured = self.captured.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.total.fetch_sub(captured.streams.iter().map(Vec::len).sum(), Ordering::Relaxed);
    }
}

impl Capture {
    pub(super) fn record(&self, stream: usize, payload: &[u8]) {
        let mut captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        if captured.too_long {
            return;
        }
        let length: usize = captured.streams.iter().map(Vec::len).sum();
        let total_before = self.total.fetch_add(payload.len(), Ordering::Relaxed);
        if length + payload.len() > KEPT || total_before + payload.len() > KEPT_IN_TOTAL {
            self.total.fetch_sub(length + payload.len(), Ordering::Relaxed);
            *captured = Captured { too_long: true, ..Captured::default() };
            return;
        }
        captured.streams[stream].extend_from_slice(payload);
        match captured.order.last_mut() {
            Some((last, length)) if *last == stream => *length += payload.len(),
            _ => captured.order.push((stream, payload.len())),
        }
    }

    /// The output after `sent`, in frames, once the output has ended; empty if nothing is missing. `None` if
    /// the output is unknown, or does not begin with `sent`: then nothing can be appended.
    pub(super) async fn rest(&self, sent: &Streams, wants: [bool; 2]) -> Option<Bytes> {
        let mut ended = self.ended.subscribe();
        tokio::time::timeout(END_WITHIN, ended.wait_for(|ended| *ended)).await.ok()?.ok()?;
        let captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = |stream: usize| !wants[stream] || captured.streams[stream].starts_with(&sent[stream]);
        if captured.too_long || !begins(0) || !begins(1) {
            return None;
        }
        let mut skip = [sent[0].len(), sent[1].len()];
        let (mut at, mut frames) = ([0, 0], vec![]);
        for &(stream, length) in captured.order.iter().filter(|(stream, _)| wants[*stream]) {
            let piece = captured.streams[stream].get(at[stream]..at[stream] + length)?;
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

    /// The inspect result that the container would have if it still existed.
    pub(super) fn inspect_reply(&self, code: i64) -> Reply {
        let mut inspected =
            serde_json::from_reader::<_, Value>(DeflateDecoder::new(&*self.inspected)).unwrap_or_default();
        let state = &mut inspected["State"];
        state["Status"] = "exited".into();
        state["Running"] = false.into();
        state["ExitCode"] = code.into();
        json_reply(StatusCode::OK, inspected.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> (Outputs, Arc<Capture>) {
        let outputs = Outputs::default();
        let id = ContainerId::parse(&"ab".repeat(32)).unwrap();
        let kept = outputs.open(&id, &Value::Null);
        (outputs, kept)
    }

    #[tokio::test(start_paused = true)]
    async fn an_output_that_is_too_long_is_not_kept_at_all() {
        let (outputs, kept) = kept();
        kept.record(0, &vec![b'x'; KEPT]);
        assert_eq!(outputs.total.load(Ordering::Relaxed), KEPT);
        kept.record(1, b"y");
        assert_eq!(outputs.total.load(Ordering::Relaxed), 0);
        kept.record(0, b"z");
        kept.ended.send_replace(true);
        assert_eq!(kept.rest(&Streams::default(), [true, true]).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_the_end_of_the_output_has_a_limit() {
        let (_outputs, kept) = kept();
        kept.record(0, b"one");
        assert_eq!(kept.rest(&Streams::default(), [true, true]).await, None);
        let reader = kept.clone();
        let rest = async move { reader.rest(&[b"o".to_vec(), vec![]], [true, true]).await };
        let (rest, ()) = tokio::join!(rest, async { _ = kept.ended.send_replace(true) });
        assert_eq!(rest.unwrap(), b"\x01\0\0\0\0\0\0\x02ne".as_slice());
    }

    #[test]
    fn kept_bytes_are_counted_until_the_output_is_dropped() {
        let (outputs, kept) = kept();
        kept.record(1, b"four");
        let id = ContainerId::parse(&"ab".repeat(32)).unwrap();
        outputs.close(&id, &kept);
        drop(kept);
        assert_eq!(outputs.total.load(Ordering::Relaxed), 0);
        assert!(outputs.all().is_empty());
    }
}
