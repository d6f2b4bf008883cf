//! An upstream that replays recorded exchanges: each request must be the recorded one, in the recorded order.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// Runs until it is dropped.
pub(crate) struct Replay {
    address: SocketAddr,
    played: Arc<Mutex<Played>>,
}

#[derive(Default)]
struct Played {
    left: Vec<Value>,
    /// The differences, as text.
    wrong: Vec<String>,
}

impl Replay {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let played = Arc::new(Mutex::new(Played::default()));
        let weak = Arc::downgrade(&played);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(mut stream), Some(played)) = (stream, weak.upgrade()) else { return };
                let request = request(&mut stream);
                let reply = next(&mut played.lock().unwrap(), &request);
                let _ = stream.write_all(reply.as_bytes());
            }
        });
        Self { address, played }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// The next exchanges, each `{"request": {…}, "answer": {…}}`.
    pub(crate) fn play(&self, exchanges: Vec<Value>) {
        self.played.lock().unwrap().left = exchanges;
    }

    /// The differences from the record; no result is good.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut played = self.played.lock().unwrap();
        let mut faults = std::mem::take(&mut played.wrong);
        let missing = std::mem::take(&mut played.left);
        faults.extend(missing.iter().map(|one| format!("was not asked: {}", one["request"])));
        faults
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        let played = std::mem::take(&mut self.played);
        drop(played);
        // Wakes the thread, which then ends.
        let _ = std::net::TcpStream::connect(self.address);
    }
}

/// Method, target, headers, and the body as JSON or as the fields of a form.
fn request(stream: &mut std::net::TcpStream) -> Value {
    let mut all = Vec::new();
    let (head, body) = loop {
        let mut piece = [0; 8192];
        let read = stream.read(&mut piece).unwrap_or(0);
        all.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&all).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            if read == 0 {
                return Value::Null;
            }
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) || read == 0 {
            break (head.to_owned(), body.to_owned());
        }
    };
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let form = headers.get("content-type").is_some_and(|kind| kind.contains("form-urlencoded"));
    let body = match form {
        true => {
            let fields: BTreeMap<String, String> =
                url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
            json!(fields)
        }
        false => serde_json::from_str(&body).unwrap_or(Value::Null),
    };
    json!({"method": method, "target": target, "headers": headers, "body": body})
}

fn next(played: &mut Played, request: &Value) -> String {
    if played.left.is_empty() {
        played.wrong.push(format!("was asked too often: {request}"));
        return "HTTP/1.1 500 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into();
    }
    let expected = played.left.remove(0);
    differences(&expected["request"], request, "request", &mut played.wrong);
    let answer = &expected["answer"];
    let body = match &answer["body"] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut more = String::new();
    for (name, value) in answer["headers"].as_object().into_iter().flatten() {
        let _ = write!(more, "{name}: {}\r\n", value.as_str().unwrap_or_default());
    }
    format!(
        "HTTP/1.1 {} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{more}connection: close\r\n\r\n{body}",
        answer["status"],
        body.len()
    )
}

/// The claims of a JWT, unverified.
pub(crate) fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap_or_default();
    let bytes = URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or(json!({}))
}

/// `found` must have what was recorded. A header recorded as null must not be there. `*` stands for anything,
/// and an object with `claims` for a JWT that has at least these.
fn differences(expected: &Value, found: &Value, place: &str, wrong: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(all), Value::Object(_)) => {
            for (name, value) in all {
                differences(value, &found[name], &format!("{place}.{name}"), wrong);
            }
            let exact = place.ends_with(".body");
            let more =
                found.as_object().into_iter().flatten().filter(|(name, _)| exact && !all.contains_key(*name));
            wrong.extend(more.map(|(name, value)| format!("{place}.{name} was not recorded: {value}")));
        }
        (Value::Object(all), Value::String(token)) if all.contains_key("claims") => {
            differences(&all["claims"], &claims(token), &format!("{place}.claims"), wrong);
        }
        (Value::String(star), Value::String(_)) if star == "*" => {}
        _ if expected == found => {}
        _ => wrong.push(format!("{place} is {found}, recorded is {expected}")),
    }
}
