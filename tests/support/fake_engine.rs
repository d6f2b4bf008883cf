//! An engine with faults that a real one does not produce on demand. It parses requests strictly, records
//! them, and sends exactly the bytes that the test chose.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// One received request. Header names are in lower case.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn is(&self, start: &str) -> bool {
        self.line.starts_with(start)
    }
}

#[derive(Clone)]
pub(crate) enum Act {
    Send(Vec<u8>),
    /// Waits until the peer closes its connection, and drops what the peer still sends.
    Hold,
    /// Sends nothing until the peer is closed in both directions: a half-close is not enough.
    Gone,
    /// Sends back what it receives, until the stream ends.
    Echo,
    /// Waits until so many requests have arrived in all.
    Until(usize),
}

type Script = dyn Fn(&Seen) -> Vec<Act> + Send + Sync;

#[derive(Clone)]
pub(crate) struct FakeEngine {
    pub(crate) socket: PathBuf,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Every byte that arrived, also of incomplete requests.
    came: Arc<Mutex<Vec<u8>>>,
    open: Arc<AtomicUsize>,
}

/// A complete answer with a JSON body.
pub(crate) fn json(status: &str, body: &str) -> Vec<Act> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    vec![Act::Send((head + body).into_bytes())]
}

impl FakeEngine {
    pub(crate) fn start(dir: &Path, script: impl Fn(&Seen) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let socket = dir.join("engine.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let engine = Self { socket, seen: Arc::default(), came: Arc::default(), open: Arc::default() };
        let (script, served): (Arc<Script>, _) = (Arc::new(script), engine.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (script, engine) = (script.clone(), served.clone());
                engine.open.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    engine.serve(stream.unwrap(), &*script);
                    engine.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        engine
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Whether `text` ever arrived, even in an incomplete request.
    pub(crate) fn was_sent(&self, text: &str) -> bool {
        let came = self.came.lock().unwrap();
        came.windows(text.len()).any(|window| window == text.as_bytes())
    }

    /// Waits until exactly `count` connections are open.
    pub(crate) fn settles_at(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.open.load(Ordering::SeqCst) != count {
            assert!(Instant::now() < deadline, "{} connections open", self.open.load(Ordering::SeqCst));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn serve(&self, mut stream: UnixStream, script: &Script) {
        let mut reader =
            BufReader::new(Kept { stream: stream.try_clone().unwrap(), came: self.came.clone() });
        let Some(seen) = read(&mut reader) else { return };
        self.seen.lock().unwrap().push(seen.clone());
        for act in script(&seen) {
            match act {
                Act::Send(bytes) => {
                    if stream.write_all(&bytes).is_err() {
                        return;
                    }
                }
                Act::Hold => {
                    let _ = std::io::copy(&mut reader, &mut std::io::sink());
                }
                Act::Gone => gone(stream.try_clone().unwrap()),
                Act::Echo => {
                    let _ = std::io::copy(&mut reader, &mut stream);
                }
                Act::Until(count) => {
                    while self.seen.lock().unwrap().len() < count {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                }
            }
        }
    }
}

/// A stream that records what was read from it.
struct Kept {
    stream: UnixStream,
    came: Arc<Mutex<Vec<u8>>>,
}

impl Read for Kept {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.stream.read(into)?;
        self.came.lock().unwrap().extend_from_slice(&into[..read]);
        Ok(read)
    }
}

fn gone(stream: UnixStream) {
    use tokio::io::Interest;
    stream.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::from_std(stream).unwrap();
        while !stream.ready(Interest::READABLE | Interest::WRITABLE).await.unwrap().is_write_closed() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

/// One request; `None` if the peer left before its end. Ambiguous framing is a failure of the proxy.
fn read(reader: &mut impl BufRead) -> Option<Seen> {
    let mut lines = vec![];
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        lines.push(line.trim_end().to_string());
    }
    let mut headers = HashMap::new();
    for line in &lines[1..] {
        let (name, value) = line.split_once(':').expect("a header line");
        let old = headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
        // bollard sends two content types for a load, and the first one is wrong.
        let loads = lines[0].contains("/images/load") && name.eq_ignore_ascii_case("content-type");
        assert!(old.is_none() || loads || name.eq_ignore_ascii_case("x-repeated"), "{name} was sent twice");
    }
    assert!(lines[0].ends_with(" HTTP/1.1"), "{}", lines[0]);
    assert!(headers.contains_key("host"), "no Host");
    let chunked = headers.contains_key("transfer-encoding");
    assert!(!(chunked && headers.contains_key("content-length")), "two framings");
    let mut body = vec![];
    if chunked {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|&read| read > 0)?;
            let size = usize::from_str_radix(line.trim(), 16).expect("a chunk size");
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    } else if let Some(length) = headers.get("content-length") {
        body.resize(length.parse().unwrap(), 0);
        reader.read_exact(&mut body).ok()?;
    }
    Some(Seen { line: lines[0].clone(), headers, body })
}
