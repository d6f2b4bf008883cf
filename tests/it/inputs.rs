//! What the proxy does with fetched inputs, against an engine that fails on demand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use kfp_creds::docker::proxy::{Fetch, Fetched, Fetching};
use serde_json::{Value, json};

use crate::support::fake_engine::{Act, FakeEngine, Seen, json as answered};
use crate::support::proxy_fixture::{ProxyFixture, Scratch, call};

const ID: &str = "00000000000000000000000000000000000000000000000000000000000000aa";

struct Fixture {
    place: PathBuf,
    engine: FakeEngine,
    proxy: ProxyFixture,
    asked: Arc<Mutex<Vec<Fetch>>>,
    _scratch: Scratch,
}

/// A proxy whose fetches always give `kct-bucket`; `answer` gets the body of a create and may replace the
/// engine's answer.
fn fixture(answer: impl Fn(&str) -> Option<Vec<Act>> + Send + Sync + 'static) -> Fixture {
    let scratch = Scratch::new();
    let place = scratch.0.join("mounts/0/kct-bucket");
    std::fs::create_dir_all(&place).unwrap();
    let engine = FakeEngine::start(&scratch.0, move |seen: &Seen| {
        let path = seen.line.split(' ').nth(1).unwrap();
        if path.contains("/containers/create") {
            let body = String::from_utf8_lossy(&seen.body).into_owned();
            answer(&body).unwrap_or_else(|| answered("201 Created", &format!(r#"{{"Id":"{ID}"}}"#)))
        } else if path.starts_with("/events?") {
            vec![Act::Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()), Act::Hold]
        } else {
            answered("404 Not Found", r#"{"message":"no such thing"}"#)
        }
    });
    let (ask, mut asks) = tokio::sync::mpsc::channel::<Fetch>(8);
    let (asked, given) = (Arc::new(Mutex::new(vec![])), place.clone());
    let kept = asked.clone();
    std::thread::spawn(move || {
        while let Some(Fetch { identity, objects, answer }) = asks.blocking_recv() {
            let buckets = BTreeMap::from([("kct-bucket".to_string(), given.clone())]);
            let lines = vec!["1 object of gs://kct-bucket".into()];
            let _ = answer.send(Fetched { buckets, lines, off: None });
            let (answer, _) = tokio::sync::oneshot::channel();
            kept.lock().unwrap().push(Fetch { identity, objects, answer });
        }
    });
    let fetching = Fetching { ask, folder: scratch.0.join("mounts") };
    let proxy = ProxyFixture::fetching(&scratch.0, &engine.socket, Some(fetching));
    Fixture { place, engine, proxy, asked, _scratch: scratch }
}

impl Fixture {
    fn create(&self, body: &Value) -> (u16, String) {
        call(&self.proxy.socket, "POST /v1.41/containers/create", &body.to_string())
    }

    /// The bodies of the creates that reached the engine.
    fn creates(&self) -> Vec<Value> {
        let seen = self.engine.seen();
        let creates = seen.iter().filter(|seen| seen.line.contains("/containers/create"));
        creates.map(|seen| serde_json::from_slice(&seen.body).unwrap()).collect()
    }

    fn named(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked.iter().flat_map(|ask| ask.objects.iter().map(ToString::to_string)).collect()
    }
}

fn body(image: &str, host: Value) -> Value {
    json!({ "Image": image, "Cmd": ["cat", "/gcs/kct-bucket/a", "/gcs/kct-other/b"], "HostConfig": host })
}

fn mounted(place: &Path) -> Value {
    json!([{ "Target": "/gcs/kct-bucket", "ReadOnly": true, "Type": "bind", "Source": place }])
}

#[test]
fn given_inputs_are_mounted_read_only_before_the_create() {
    let fixture = fixture(|_| None);
    assert_eq!(fixture.create(&body("i", json!({}))).0, 201);
    assert_eq!(fixture.named(), ["gs://kct-bucket/a", "gs://kct-other/b"]);
    assert_eq!(fixture.creates()[0]["HostConfig"]["Mounts"], mounted(&fixture.place));
    assert!(fixture.proxy.said().contains("i: 1 object of gs://kct-bucket"), "{}", fixture.proxy.said());
}

#[test]
fn containers_without_inputs_request_nothing() {
    let fixture = fixture(|_| None);
    assert_eq!(fixture.create(&body("plain", json!({}))).0, 201);
    assert_eq!(fixture.create(&json!({ "Image": "i", "Cmd": ["true"] })).0, 201);
    // A privileged container gets no identity, so nothing may be read for it.
    assert_eq!(fixture.create(&body("i", json!({ "Privileged": true }))).0, 201);
    assert!(fixture.named().is_empty());
    assert!(fixture.creates().iter().all(|body| body["HostConfig"]["Mounts"].is_null()));
}

#[test]
fn a_mount_of_the_containers_own_is_not_covered() {
    for own in ["/gcs", "/gcs/kct-bucket", "/gcs/kct-bucket/deep/er"] {
        let fixture = fixture(|_| None);
        let host = json!({ "Tmpfs": { own: "" } });
        assert_eq!(fixture.create(&body("i", host)).0, 201);
        assert!(!fixture.named().contains(&"gs://kct-bucket/a".to_string()), "{own}");
        let said = fixture.proxy.said();
        assert!(
            said.contains("gs://kct-bucket/a is not fetched: the container has a mount of its own"),
            "{said}"
        );
    }
}

#[test]
fn a_create_is_repeated_if_the_engine_lacks_the_mount() {
    let fixture = fixture(|body: &str| {
        let words = "invalid mount config for type \\\"bind\\\": bind source path does not exist: ";
        let place = serde_json::from_str::<Value>(body).unwrap()["HostConfig"]["Mounts"][0]["Source"].clone();
        let place = place.as_str()?.to_owned();
        Some(answered("400 Bad Request", &format!(r#"{{"message":"{words}{place}"}}"#)))
    });
    let own = json!({ "Mounts": [] });
    for _ in 0..2 {
        assert_eq!(fixture.create(&body("i", own.clone())).0, 201);
    }
    let creates = fixture.creates();
    assert_eq!(creates.len(), 3, "the second create needs no repetition");
    assert!(creates[1..].iter().all(|body| body["HostConfig"]["Mounts"] == json!([])), "{creates:?}");
    let mut first = creates[0].clone();
    first["HostConfig"]["Mounts"] = json!([]);
    assert_eq!(first, creates[1], "nothing else is different");
    let said = fixture.proxy.said();
    assert_eq!(said.matches("does not see this machine's files").count(), 1, "{said}");
}

/// kfp adds labels to its own binds if the engine reports SELinux.
#[test]
fn fetched_inputs_get_the_label_of_other_binds() {
    let fixture = fixture(|_| None);
    for (own, labelled) in [("/x:/x:rw,z", true), ("/x:/x:Z", true), ("/x:/x:rw", false), ("/x:/z", false)] {
        assert_eq!(fixture.create(&body("i", json!({ "Binds": [own] }))).0, 201);
        let host = &fixture.creates().pop().unwrap()["HostConfig"];
        let bind = format!("{}:/gcs/kct-bucket:ro,z", fixture.place.display());
        match labelled {
            true => assert_eq!((&host["Binds"], &host["Mounts"]), (&json!([own, bind]), &Value::Null)),
            false => assert_eq!((&host["Binds"], &host["Mounts"]), (&json!([own]), &mounted(&fixture.place))),
        }
    }
}

#[test]
fn a_refusal_for_another_reason_is_passed_on() {
    let count = AtomicUsize::new(0);
    let fixture = fixture(move |_| {
        let refusal = r#"{"message":"no such image: i"}"#;
        (count.fetch_add(1, Ordering::SeqCst) == 0).then(|| answered("404 Not Found", refusal))
    });
    let (status, why) = fixture.create(&body("i", json!({})));
    assert_eq!((status, why.as_str()), (404, r#"{"message":"no such image: i"}"#));
    assert_eq!(fixture.creates().len(), 1);
    assert!(!fixture.proxy.said().contains("does not see"), "{}", fixture.proxy.said());
}

#[test]
fn a_key_in_an_input_is_refused_by_object_name() {
    let fixture = fixture(|_| None);
    let (dashes, label) = ("-".repeat(5), ["PRIVATE", "KEY"].join(" "));
    let lines = "MIIEvQIBADANBgkqhkiG9w0BAQEF".repeat(6);
    let key = format!("{dashes}BEGIN {label}{dashes}\n{lines}\n{dashes}END {label}{dashes}\n");
    std::fs::write(fixture.place.join("a.pem"), key).unwrap();
    let (status, why) = fixture.create(&body("i", json!({})));
    assert!(status == 403 && why.contains("what was fetched from gs://kct-bucket holds"), "{status} {why}");
    let entry = r#"allow = [\"gs://kct-bucket/a.pem\"]"#;
    assert!(why.contains(entry), "a path of this session is of no use in a config: {why}");
    assert!(fixture.creates().is_empty());
}
