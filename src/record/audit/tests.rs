//! Tests of the audit log with real files.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;

use serde_json::{Value, json};

use super::*;
use crate::record::{For, Recorder};
use crate::token::{Deadline, HandedOut, Now};

struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let at = std::env::temp_dir().join(format!("kfp-creds-audit-{}-{number}", std::process::id()));
        fs::create_dir_all(&at).unwrap();
        Self(at)
    }

    fn settings(&self, max_bytes: u64, keep: u32) -> AuditSettings {
        AuditSettings { file: self.0.join("audit.jsonl"), max_bytes, keep }
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.0.join(name)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn heard() -> (Arc<Mutex<Vec<String>>>, Complain) {
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let ear = said.clone();
    (said, Arc::new(move |text| ear.lock().unwrap().push(text)))
}

fn grant() -> Grant {
    let identity = Identity { name: "loader".into(), ..Identity::default() };
    let task = Task {
        pipeline: Some("etl".into()),
        component: Some("load\n".into()),
        image: "i".repeat(2000),
        ..Task::default()
    };
    let container = ContainerId::parse(&"a".repeat(64)).unwrap();
    Grant { container, identity: Arc::new(identity), by: By::Rule(2), task: Arc::new(task), secret: None }
}

#[tokio::test]
async fn an_account_that_is_not_of_the_cloud_is_not_named() {
    let place = Place::new();
    let recorder = Recorder::new(Some(Audit::open(place.settings(1 << 20, 1), "s", heard().1).unwrap()));
    let aws = Some(Arc::new(crate::cloud::AwsIdentity { own_session: true, ..Default::default() }));
    let other = Identity { google: false, aws, ..Identity::default() };
    let grant = Grant { identity: Arc::new(other), ..grant() };
    recorder.attached(&grant, "", Ipv4Addr::new(10, 0, 0, 2));
    recorder.handed_out(Requestor::Container(&grant), "", For::Role(None), &token());
    recorder.finish(Duration::from_secs(5)).await;
    let lines = place.lines("audit.jsonl");
    assert_eq!(lines.len(), 2);
    for line in lines {
        assert!(line["account"].is_null() && line["scopes"].is_null(), "{line}");
    }
}

fn token() -> HandedOut {
    let expires = Deadline::after(Now::read(), Duration::from_secs(3600));
    HandedOut { id: MintId::random(), kind: TokenKind::Access, expires }
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn an_entry_says_who_got_what_until_when() {
    let place = Place::new();
    let (said, complain) = heard();
    let recorder =
        Recorder::new(Some(Audit::open(place.settings(1 << 20, 2), "0123abcd", complain).unwrap()));
    let (grant, token) = (grant(), token());
    let scopes = Scopes::parse("b a");
    recorder.handed_out(Requestor::Container(&grant), "l@x.example", For::Scopes(&scopes), &token);
    recorder.refused(Requestor::Unknown(Ipv4Addr::new(10, 0, 0, 9)), 503, "token", "no lease");
    recorder.refused(Requestor::Unknown(Ipv4Addr::new(10, 0, 0, 9)), 503, "token", "no lease");
    let session = HandedOut { id: MintId::random(), kind: TokenKind::AwsSession, ..token };
    recorder.cut_off(&grant, crate::record::metrics::Cause::Ended, Some(3), &[token, session]);
    recorder.cut_off(&grant, crate::record::metrics::Cause::Ended, None, &[]);
    recorder.audit().unwrap().flush(LONG).await;
    let lines = place.lines("audit.jsonl");
    assert_eq!(lines.len(), 4, "a repeated refusal is one entry");
    let mint = &lines[0];
    for (key, value) in [
        ("session", "0123abcd"),
        ("event", "hand-out"),
        ("outcome", "ok"),
        ("pipeline", "etl"),
        ("component", "load\n"),
        ("identity", "loader"),
        ("kind", "access"),
        ("account", "l@x.example"),
        ("mint", &token.id.to_string()),
        ("expires", &rfc3339(token.expires.wall())),
    ] {
        assert_eq!(mint[key], value, "{key}");
    }
    assert_eq!(mint["scopes"], json!(["a", "b"]));
    assert_eq!(mint["image"].as_str().unwrap().len(), LONGEST);
    assert!(OffsetDateTime::parse(mint["time"].as_str().unwrap(), &Rfc3339).is_ok());
    assert_eq!((&lines[1]["event"], &lines[1]["address"]), (&"refusal".into(), &"10.0.0.9".into()));
    assert_eq!((&lines[2]["exit_code"], &lines[2]["why"]), (&3.into(), &"ended".into()));
    assert_eq!(
        (&lines[2]["outstanding"], &lines[2]["clouds"]),
        (&json!([token.id.to_string(), session.id.to_string()]), &json!({ "aws": 1, "google": 1 }))
    );
    assert_eq!((&lines[3]["outstanding"], &lines[3]["clouds"]), (&json!([]), &json!(null)));
    let mode = fs::metadata(place.0.join("audit.jsonl")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(said.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_mint_is_recorded_with_its_container() {
    let place = Place::new();
    let (_, complain) = heard();
    let recorder = Recorder::new(Some(Audit::open(place.settings(1 << 20, 2), "one", complain).unwrap()));
    let (grant, scopes) = (grant(), Scopes::parse("a"));
    let who = [Some(Requestor::Session(&grant.identity)), Some(Requestor::Container(&grant)), None];
    for (who, account) in who.into_iter().zip([None, Some("other@x"), None]) {
        drop(recorder.making(who, For::Scopes(&scopes), account, false));
        recorder.making(who, For::Scopes(&scopes), account, false).made(Some("own@x"), &token());
    }
    recorder.making(who[1], For::Audience("aud"), None, true).made(None, &token());
    recorder.audit().unwrap().flush(LONG).await;
    let lines = place.lines("audit.jsonl");
    let told: Vec<Value> = lines
        .iter()
        .map(|line| {
            assert_eq!((&line["event"], &line["outcome"]), (&"mint".into(), &"ok".into()));
            assert!(line["mint"].is_string() && line["expires"].is_string());
            let by = if line["container"].is_null() { Value::Null } else { line["component"].clone() };
            json!([line["identity"], by, line["account"], line["ahead"], line["audience"]])
        })
        .collect();
    assert_eq!(
        json!(told),
        json!([
            ["loader", null, "own@x", true, null],
            ["loader", "load\n", "other@x", null, null],
            [null, null, "own@x", null, null],
            ["loader", "load\n", null, true, "aud"],
        ])
    );
}

#[tokio::test]
async fn refusals_differ_by_audience_and_reason_and_none_is_lost() {
    let place = Place::new();
    let (_, complain) = heard();
    let recorder = Recorder::new(Some(Audit::open(place.settings(1 << 20, 2), "one", complain).unwrap()));
    let grant = grant();
    for (audience, why) in
        [("a", "not allowed"), ("b", "not allowed"), ("b", "the rate"), ("b", "the rate"), ("b", "the rate")]
    {
        recorder.refused_audience(Requestor::Container(&grant), 404, audience, why);
    }
    recorder.finish(LONG).await;
    let lines = place.lines("audit.jsonl");
    let told: Vec<[&Value; 3]> =
        lines.iter().map(|line| [&line["audience"], &line["why"], &line["repeats"]]).collect();
    let null = Value::Null;
    let text = |text: &str| Value::from(text);
    assert_eq!(
        told,
        [
            [&text("a"), &text("not allowed"), &null],
            [&text("b"), &text("not allowed"), &null],
            [&text("b"), &text("the rate"), &null],
            [&text("b"), &text("the rate"), &1.into()],
        ],
        "{lines:#?}"
    );
}

#[tokio::test]
async fn the_audit_log_is_rotated_by_size() {
    let place = Place::new();
    let (_, complain) = heard();
    let settings = place.settings(2000, 2);
    // Two sessions share the file: no rotation loses the other's entries.
    let one = Audit::open(settings.clone(), "one", complain.clone()).unwrap();
    let two = Audit::open(settings, "two", complain).unwrap();
    for n in 0..20 {
        let audit = if n % 2 == 0 { &one } else { &two };
        audit.write(AuditEntry {
            why: Some(n.to_string().repeat(100)),
            ..AuditEntry::of("refusal", "refused", None)
        });
        audit.flush(LONG).await;
    }
    let newest = place.lines("audit.jsonl");
    assert_eq!(newest.last().unwrap()["session"], "two");
    let kept: Vec<Value> =
        ["audit.jsonl.2", "audit.jsonl.1", "audit.jsonl"].iter().flat_map(|name| place.lines(name)).collect();
    let numbers: Vec<usize> =
        kept.iter().map(|l| if l["why"].as_str().unwrap().len() > 100 { 2 } else { 1 }).collect();
    assert!(numbers.is_sorted() && kept.len() >= 8, "{kept:?}");
    assert!(!place.0.join("audit.jsonl.3").exists());
    for name in ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"] {
        let about = fs::metadata(place.0.join(name)).unwrap();
        assert!(about.len() <= 2000 && about.mode() & 0o777 == 0o600, "{name}: {about:?}");
    }
}

#[tokio::test]
async fn a_full_disk_and_its_end_are_reported_once() {
    let place = Place::new();
    let (said, complain) = heard();
    symlink("/dev/full", place.0.join("audit.jsonl")).unwrap();
    let audit = Audit::open(place.settings(1 << 20, 1), "s", complain).unwrap();
    for _ in 0..3 {
        audit.write(AuditEntry::of("refusal", "refused", None));
        audit.flush(LONG).await;
    }
    assert_eq!((audit.lost(), audit.losing()), (3, true));
    assert_eq!(said.lock().unwrap().len(), 1, "{said:?}");
    fs::remove_file(place.0.join("audit.jsonl")).unwrap();
    audit.write(AuditEntry::of("refusal", "refused", None));
    audit.flush(LONG).await;
    let lines = place.lines("audit.jsonl");
    assert_eq!((lines.len(), &lines[1]["event"], &lines[1]["entries"]), (2, &"lost".into(), &3.into()));
    let said = said.lock().unwrap();
    assert_eq!(said.len(), 2);
    assert!(said[0].contains("loses entries") && said[1].contains("3 entries were lost"), "{said:?}");
    assert!(!audit.losing());
}

#[test]
fn a_hanging_disk_delays_no_request() {
    let place = Place::new();
    let (said, complain) = heard();
    let audit = Audit::open(place.settings(1 << 30, 1), "s", complain).unwrap();
    // While another process holds the lock, the log's thread waits.
    let other = File::open(place.0.join("audit.jsonl")).unwrap();
    other.lock().unwrap();
    let began = std::time::Instant::now();
    for _ in 0..3 * QUEUE {
        audit.write(AuditEntry::of("refusal", "refused", None));
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(audit.lost() >= 1000 && said.lock().unwrap().len() == 1);
    other.unlock().unwrap();
}

#[test]
fn odd_files_are_refused_at_start() {
    let place = Place::new();
    let (_, complain) = heard();
    let at = |name: &str| AuditSettings { file: place.0.join(name), max_bytes: 1, keep: 1 };
    let folder = Audit::open(at(""), "s", complain.clone()).unwrap_err();
    assert_eq!(folder.to_string(), "is not a file");
    assert!(Audit::open(at("missing/audit"), "s", complain.clone()).is_err());
    fs::write(place.0.join("wide"), "").unwrap();
    fs::set_permissions(place.0.join("wide"), Permissions::from_mode(0o644)).unwrap();
    Audit::open(at("wide"), "s", complain).unwrap();
    assert_eq!(fs::metadata(place.0.join("wide")).unwrap().mode() & 0o777, 0o600);
}
