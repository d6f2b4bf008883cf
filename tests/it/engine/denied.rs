//! `cut-off --deny-aws` in a session. A fake AWS at the wire checks signatures and permissions, and keeps the
//! policy.

use serde_json::Value;

use super::attacks::{Made, unused};
use crate::support::canary::Canaries;
use crate::support::fake_aws::{FakeAws, Known, REGION, Role};
use crate::support::session::{Folder, Session, program, task_image};

struct Place {
    aws: FakeAws,
    keys: Known,
    log: Folder,
}

impl Place {
    fn new() -> Self {
        let aws = FakeAws::start();
        let keys = aws.user();
        aws.role("team/loader", Role::default());
        Self { aws, keys, log: Folder::new("denied") }
    }

    fn start(&self, kill_switch: bool) -> Session {
        let url = self.aws.url();
        let config = format!(
            "[aws]\ncredentials = \"environment\"\nregion = \"{REGION}\"\n[endpoints]\naws_sts = \"{url}\"\naws_iam = \"{url}\"\n\
             [audit]\nfile = \"{}\"\n[identity.default]\ngoogle = false\n[identity.default.aws]\n\
             role = \"arn:aws:iam::123456789012:role/team/loader\"\nkill_switch = {kill_switch}\n",
            self.audit().display()
        );
        let environment =
            [("AWS_ACCESS_KEY_ID", self.keys.id.as_str()), ("AWS_SECRET_ACCESS_KEY", &self.keys.secret)];
        Session::start(&config, &["--all", "--config", "kfp-creds.toml"], &environment)
    }

    fn audit(&self) -> std::path::PathBuf {
        self.log.0.join("audit.jsonl")
    }

    /// The name of the last AWS session.
    fn last_session(&self) -> String {
        self.aws.of("AssumeRole").pop().unwrap().form["RoleSessionName"].clone()
    }
}

/// A running container, with its name and id.
fn container(session: &Session) -> (Made, String) {
    let name = unused("denied");
    session.ok(&["run", "-d", "--name", &name, &task_image(), "sleep", "120"]);
    let id = session.ok(&["inspect", "-f", "{{.Id}}", &name]).trim().to_owned();
    (Made("container", name), id)
}

/// Exit code and output of `cut-off`.
fn cut_off(session: &Session, arguments: &[&str]) -> (Option<i32>, String) {
    let name = session.socket.file_stem().unwrap().to_str().unwrap();
    let folder = Folder::new("cut");
    let out = program(&folder.0).arg("cut-off").args(arguments).args(["--session", name]).output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

#[test]
fn an_aws_session_is_denied_only_after_a_dry_run_and_consent() {
    let place = Place::new();
    place.aws.may_put_policies(&place.keys);
    let closed = place.start(false);
    let (made, id) = container(&closed);
    let (code, text) = cut_off(&closed, &[&id, "--deny-aws", "--yes"]);
    assert!(
        code == Some(64) && text.contains("kill_switch = true in [identity.default.aws]"),
        "{code:?} {text}"
    );
    assert!(text.contains("cut off") && place.aws.inline().is_empty(), "{text}");
    drop(made);
    closed.end();

    let session = place.start(true);
    let (one, id) = container(&session);
    let denied = place.last_session();
    let (other, _) = container(&session);
    let kept = place.last_session();
    assert_ne!(denied, kept);
    let (code, text) = cut_off(&session, &[&id, "--deny-aws"]);
    assert_eq!(code, Some(64), "{text}");
    for word in [
        "cut off",
        &denied,
        "all other sessions of the role",
        "delete-role-policy --role-name loader",
        "add --yes",
    ] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    assert!(place.aws.inline().is_empty() && !text.contains(&kept), "{text}");

    // The container has ended, but its AWS session is still valid.
    drop(one);
    let (code, text) = cut_off(&session, &[&id[..12], "--deny-aws", "--yes"]);
    assert!(
        code == Some(0) && text.contains(&format!("{denied} of")) && text.contains("denied "),
        "{code:?} {text}"
    );
    assert!(place.aws.denies("loader", &denied) && !place.aws.denies("loader", &kept));
    session.wait_for("were denied by hand", std::time::Duration::from_secs(2));

    let control = session.socket.with_extension("ctl");
    let mut misspelt = std::process::Command::new("curl");
    misspelt
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", "--unix-socket"])
        .arg(&control);
    let answer = misspelt.arg("http://localhost/deny-aws?contaner=x").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "404", "a request that names nothing denies nothing");
    let (code, text) = cut_off(&session, &["--all", "--deny-aws", "--yes"]);
    assert!(code == Some(0) && place.aws.denies("loader", &kept), "{code:?} {text}");
    assert!(place.aws.denies("loader", &denied), "an earlier policy stays");
    drop(other);
    session.end();
    assert_recorded(&place, &[&denied, &kept]);
}

#[test]
fn a_missing_permission_is_named_and_nothing_is_denied() {
    let place = Place::new();
    let session = place.start(true);
    let (made, id) = container(&session);
    let (code, text) = cut_off(&session, &[&id, "--deny-aws", "--yes"]);
    assert!(code == Some(77) && text.contains("permission iam:PutRolePolicy"), "{code:?} {text}");
    assert!(text.contains(&format!("{} ", place.last_session())) && text.contains("not denied"), "{text}");
    assert!(place.aws.inline().is_empty());
    let mut canaries = Canaries::default();
    place.aws.secrets().iter().for_each(|secret| canaries.add("a secret", secret));
    canaries.assert_absent("a message", &text);
    drop(made);
    session.end();
    let failed = entries(&place).into_iter().filter(|entry| entry["outcome"] == "failed").count();
    assert_eq!(failed, 1);
}

fn entries(place: &Place) -> Vec<Value> {
    let log = std::fs::read_to_string(place.audit()).unwrap();
    let all = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|entry| entry["event"] == "deny").collect()
}

fn assert_recorded(place: &Place, sessions: &[&str]) {
    let entries = entries(place);
    assert_eq!(entries.len(), sessions.len(), "{entries:?}");
    for (entry, session) in entries.iter().zip(sessions) {
        assert_eq!((&entry["outcome"], &entry["kind"]), (&"ok".into(), &"aws-session".into()), "{entry}");
        assert_eq!(entry["account"], "arn:aws:iam::123456789012:role/team/loader");
        assert!(entry["what"].as_str().unwrap().starts_with("kfp-creds-cut-off-"), "{entry}");
        assert!(session.ends_with(&entry["container"].as_str().unwrap()[..12]), "{entry} {session}");
    }
}
