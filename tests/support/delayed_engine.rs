//! Sits between a session and its engine: it can delay events, so that they come late or out of order, and it
//! can hang.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// An event to delay.
struct Held {
    action: String,
    container: String,
    late: Duration,
    /// The event also waits until so many starts of the container have been sent.
    starts: usize,
    /// Delays it only on the stream that the leases follow, which includes events of networks.
    leases_only: bool,
    /// The streams on which it was delayed already: a session has two, each with its own events.
    by: Vec<usize>,
}

/// The events to delay, and those that were sent, in order: action and container.
#[derive(Clone, Default)]
pub(crate) struct DelayedEngine {
    holding: Arc<Mutex<Vec<Held>>>,
    told: Arc<Mutex<Vec<(String, String)>>>,
    hangs: Arc<AtomicBool>,
    pub(crate) socket: PathBuf,
}

impl DelayedEngine {
    pub(crate) fn start(folder: &Path, engine: &Path) -> Self {
        let socket = folder.join("between.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let this = Self { socket, ..Self::default() };
        let (between, engine) = (this.clone(), engine.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (between, engine) = (between.clone(), UnixStream::connect(&engine).unwrap());
                std::thread::spawn(move || between.carry(client, engine));
            }
        });
        this
    }

    /// Delays the next event `action` of `container` by `late`, on each stream.
    pub(crate) fn hold(&self, action: &str, container: &str, late: Duration) {
        self.held(action, container, late, 0, false);
    }

    /// The same, but only on the stream that the leases follow; the one for the exit codes gets it in time.
    pub(crate) fn hold_from_leases(&self, action: &str, container: &str, late: Duration) {
        self.held(action, container, late, 0, true);
    }

    fn held(&self, action: &str, container: &str, late: Duration, starts: usize, leases_only: bool) {
        let (action, container) = (action.into(), container.into());
        let held = Held { action, container, late, starts, leases_only, by: vec![] };
        self.holding.lock().unwrap().push(held);
    }

    /// Delays the next event `action` of `container` by `late`, and beyond its next start, however slow the
    /// engine is.
    pub(crate) fn hold_beyond_start(&self, action: &str, container: &str, late: Duration) {
        self.held(action, container, late, starts(&self.told, container) + 1, false);
    }

    /// From now on nobody gets an answer. Connections that a client closes still end.
    pub(crate) fn hang(&self) {
        self.hangs.store(true, Ordering::SeqCst);
    }

    /// The place of the last event `action` of `container` among all that were sent.
    pub(crate) fn place(&self, action: &str, container: &str) -> Option<usize> {
        self.told.lock().unwrap().iter().rposition(|(what, whom)| what == action && whom == container)
    }

    fn carry(&self, client: UnixStream, engine: UnixStream) {
        let (events, of_leases) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (mut from, mut to) = (client.try_clone().unwrap(), engine.try_clone().unwrap());
        let (seen, networks, hangs) = (events.clone(), of_leases.clone(), self.hangs.clone());
        std::thread::spawn(move || {
            let mut piece = [0; 1 << 16];
            while let Ok(read @ 1..) = from.read(&mut piece) {
                if hangs.load(Ordering::SeqCst) {
                    continue;
                }
                let head = String::from_utf8_lossy(&piece[..read.min(1024)]).into_owned();
                networks.store(head.contains("%22network%22"), Ordering::SeqCst);
                seen.store(head.starts_with("GET ") && head.contains("/events"), Ordering::SeqCst);
                if to.write_all(&piece[..read]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
        let (mut from, to) = (engine, Arc::new(Mutex::new(client)));
        let mut piece = [0; 1 << 16];
        let mut waiting = vec![];
        while let Ok(read @ 1..) = from.read(&mut piece) {
            if !events.load(Ordering::SeqCst) {
                if to.lock().unwrap().write_all(&piece[..read]).is_err() {
                    break;
                }
                continue;
            }
            waiting.extend_from_slice(&piece[..read]);
            while let Some(end) = whole(&waiting) {
                self.pass(waiting.drain(..end).collect(), &to, of_leases.load(Ordering::SeqCst));
            }
        }
        let _ = to.lock().unwrap().shutdown(std::net::Shutdown::Both);
    }

    /// A head, or one chunk, which contains one event.
    fn pass(&self, part: Vec<u8>, to: &Arc<Mutex<UnixStream>>, of_leases: bool) {
        let text = String::from_utf8_lossy(&part);
        let event: Value =
            text.find('{').and_then(|at| serde_json::from_str(text[at..].trim()).ok()).unwrap_or_default();
        let word = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let actor = &event["Actor"];
        // An event of a network has the container among its attributes.
        let whom = if event["Type"] == "network" { &actor["Attributes"]["container"] } else { &actor["ID"] };
        let (action, whom) = (word(&event["Action"]), word(whom));
        let mut holding = self.holding.lock().unwrap();
        let stream = Arc::as_ptr(to) as usize;
        let here = |held: &&mut Held| {
            let of_this = of_leases || !held.leases_only;
            of_this && held.action == action && held.container == whom && !held.by.contains(&stream)
        };
        let (late, after) = holding.iter_mut().find(here).map_or((Duration::ZERO, 0), |held| {
            held.by.push(stream);
            (held.late, held.starts)
        });
        drop(holding);
        let (told, to) = (self.told.clone(), to.clone());
        let deliver = move || {
            std::thread::sleep(late);
            let end = Instant::now() + Duration::from_secs(20);
            while starts(&told, &whom) < after && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            let mut to = to.lock().unwrap();
            told.lock().unwrap().push((action, whom));
            let _ = to.write_all(&part);
        };
        if late.is_zero() { deliver() } else { drop(std::thread::spawn(deliver)) }
    }
}

fn starts(told: &Mutex<Vec<(String, String)>>, container: &str) -> usize {
    let told = told.lock().unwrap();
    told.iter().filter(|(action, whom)| action == "start" && whom == container).count()
}

/// The length of a head or chunk, once it is complete.
fn whole(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(b"HTTP/") {
        return bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
    }
    let line = bytes.windows(2).position(|two| two == b"\r\n")?;
    let size = usize::from_str_radix(std::str::from_utf8(&bytes[..line]).ok()?.trim(), 16).ok()?;
    let end = line + 2 + size + 2;
    (bytes.len() >= end).then_some(end)
}
