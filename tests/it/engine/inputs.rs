//! Inputs of tasks in Cloud Storage: fetched with the task's own identity, and mounted at `/gcs/BUCKET` in
//! its container.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::fake_google::{CANARY, FakeGoogle};
use crate::support::fake_storage::{FakeStorage, Play};
use crate::support::far_engine::serve;
use crate::support::raw::until;
use crate::support::session::{Folder, Kfp, Session, claims, engine_socket, run, task_image};

const PERSON: &str = "alice@example.com";
const READER: &str = "reader@p.iam.gserviceaccount.com";
const WRITER: &str = "writer@p.iam.gserviceaccount.com";

/// A Google with both of its APIs, a login on this machine, and a pipeline root.
struct Cloud {
    google: Arc<FakeGoogle>,
    storage: FakeStorage,
    folder: Folder,
}

impl Cloud {
    fn new() -> Self {
        let google = Arc::new(FakeGoogle::start());
        let asked = google.clone();
        let storage = FakeStorage::start(move |token| asked.minted(token).map(|minted| minted.email));
        let folder = Folder::new("cloud");
        std::fs::create_dir(folder.0.join("root")).unwrap();
        std::fs::write(folder.0.join("login.json"), google.user(PERSON)).unwrap();
        storage.allow(PERSON, "kct-bucket");
        Self { google, storage, folder }
    }

    fn config(&self, more: &str) -> String {
        let (token, iam, storage) = (self.google.token_uri(), self.google.url(), self.storage.url());
        format!(
            "{more}\n[endpoints]\ntoken = \"{token}\"\niam_credentials = \"{iam}\"\nstorage = \"{storage}\"\n"
        )
    }

    fn login(&self) -> String {
        self.folder.0.join("login.json").display().to_string()
    }

    fn session(&self, more: &str, environment: &[(&str, &str)]) -> Session {
        let arguments = ["--config", "kfp-creds.toml", "--credentials-file", &self.login()];
        Session::start(&self.config(more), &arguments, environment)
    }

    fn task(&self, component: &str, uris: &[&str], script: &str) -> Vec<String> {
        like_kfp(&self.folder.0.join("root"), component, uris, script)
    }

    fn run(&self, session: &Session, component: &str, uris: &[&str], script: &str) -> Output {
        let arguments = self.task(component, uris, script);
        session.docker(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Asserts the output of such a task.
    #[track_caller]
    fn prints(&self, session: &Session, component: &str, uris: &[&str], script: &str) -> String {
        let out = self.run(session, component, uris, script);
        assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stderr), session.said());
        String::from_utf8(out.stdout).unwrap()
    }
}

/// The arguments of `docker run` that kfp's create for a task corresponds to.
fn like_kfp(root: &Path, component: &str, uris: &[&str], script: &str) -> Vec<String> {
    let root = root.display();
    let artifacts = uris.iter().enumerate();
    let artifacts: serde_json::Map<_, _> = artifacts
        .map(|(at, uri)| (format!("in{at}"), json!({ "artifacts": [{ "name": "x", "uri": uri }] })))
        .collect();
    let output = format!("{root}/pipe-2026-11-29-00-00-00-000000/{component}/executor_output.json");
    let input = json!({ "inputs": { "artifacts": artifacts }, "outputs": { "outputFile": output } });
    let (bind, image, input) = (format!("{root}:{root}"), task_image(), input.to_string());
    let words = ["run", "--rm", "-v", &bind, &image, "sh", "-c", script, "sh", "--executor_input", &input];
    words.into_iter().chain(["--function_to_execute", "f"]).map(String::from).collect()
}

/// The folder with the files that a session fetched.
fn cache(session: &Session) -> PathBuf {
    let id = session.socket.file_stem().unwrap();
    session.folder.0.join(".cache/kfp-creds/gcs").join(id)
}

/// The names of all files and directories below `folder`, and the contents of the files.
fn everything(folder: &Path) -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        all.push_str(&format!("{}\n", path.display()));
        all.push_str(&everything(&path));
        all.push_str(&String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()));
    }
    all
}

/// Real importers of real kfp, in a pipeline as in production.
#[test]
fn a_component_sees_only_its_imported_objects() {
    let cloud = Cloud::new();
    cloud.storage.wants_payer("user-quota-project");
    for (name, content) in [
        ("dir/data.csv", "1,2\n"),
        ("dir/other.csv", "not imported"),
        ("model/", ""),
        ("model/saved.pb", "weights"),
        ("model/variables/index", "index"),
        ("model-2/saved.pb", "not imported"),
    ] {
        cloud.storage.put("kct-bucket", name, content);
    }
    let kfp = Kfp::newest();
    let script = format!("{}/tests/python/pipelines/imported.py", env!("CARGO_MANIFEST_DIR"));
    let flags = ["--config", "kfp-creds.toml", "--credentials-file", &cloud.login()];
    let ran = run(&kfp, &cloud.config(""), &flags, &[&kfp.python, &script, "kct-bucket"]);
    let said = ran.report()["reader"].clone();
    assert_eq!(said["path"], "/gcs/kct-bucket/dir/data.csv");
    assert_eq!((&said["data"], &said["model"]), (&json!("1,2\n"), &json!(["saved.pb", "variables"])));
    let seen = json!({
        "/gcs/kct-bucket/dir/data.csv": "1,2\n",
        "/gcs/kct-bucket/model/saved.pb": "weights",
        "/gcs/kct-bucket/model/variables/index": "index",
    });
    assert_eq!(said["seen"], seen);
    assert_eq!(said["writable"], json!([]));
    let lines = ran.said("notice");
    assert!(
        lines.iter().any(|line| line.contains("3 objects of gs://kct-bucket, 16 bytes, at /gcs/kct-bucket")),
        "{lines:?}"
    );
    assert!(cloud.storage.asked().iter().all(|asked| asked.account == PERSON), "{:?}", cloud.storage.asked());
    assert_eq!(cloud.storage.downloads(), 3, "the container component's input was there already");
    assert!(!ran.stderr.contains(CANARY), "{}", ran.stderr);
}

#[test]
fn each_identity_fetches_only_what_it_may_read() {
    let cloud = Cloud::new();
    cloud.google.allow(PERSON, READER);
    cloud.google.allow(PERSON, WRITER);
    for account in [READER, WRITER] {
        cloud.storage.allow(account, "kct-bucket");
    }
    cloud.storage.allow(READER, "kct-private");
    cloud.storage.put("kct-bucket", "a", "shared");
    cloud.storage.put("kct-private", "a", "private");
    let rules = format!(
        "[identity.reads]\nservice_account = \"{READER}\"\n[identity.writes]\nservice_account = \"{WRITER}\"\n\
         [identity.queries]\nscopes = [\"https://www.googleapis.com/auth/bigquery\"]\n\
         [[rule]]\ncomponent = \"read*\"\nidentity = \"reads\"\n[[rule]]\ncomponent = \"write*\"\nidentity = \"writes\"\n\
         [[rule]]\ncomponent = \"query\"\nidentity = \"queries\"\n"
    );
    let session = cloud.session(&rules, &[]);
    let (both, script) = (["gs://kct-bucket/a", "gs://kct-private/a"], "cat /gcs/kct-bucket/a; ls /gcs");
    assert_eq!(cloud.prints(&session, "reader", &both, script), "sharedkct-bucket\nkct-private\n");
    assert_eq!(cloud.storage.downloads(), 2);
    // The same identity may read it, and gets the content that was fetched before.
    cloud.prints(&session, "reader-2", &both, script);
    assert_eq!(cloud.storage.downloads(), 2);
    assert_eq!(cloud.prints(&session, "writer", &both, script), "sharedkct-bucket\n");
    let line = session.wait_for("pipe/writer: gs://kct-private/a is not fetched", Duration::from_secs(1));
    assert!(
        line.contains(&format!("{WRITER} may not read it; grant it roles/storage.objectViewer")),
        "{line}"
    );
    let content: Vec<(String, String)> = cloud
        .storage
        .asked()
        .into_iter()
        .filter(|asked| asked.kind == "media")
        .map(|asked| (asked.account, asked.bucket))
        .collect();
    let mut wanted = [(READER, "kct-bucket"), (READER, "kct-private"), (WRITER, "kct-bucket")];
    wanted[..2].sort_by_key(|one| *one != (content[0].0.as_str(), content[0].1.as_str()));
    assert_eq!(content, wanted.map(|(account, bucket)| (account.to_string(), bucket.to_string())));
    // A new generation has other content.
    cloud.storage.put("kct-bucket", "a", "renewed");
    assert_eq!(cloud.prints(&session, "reader", &both[..1], "cat /gcs/kct-bucket/a"), "renewed");
    // An identity whose tokens have no scope for reading objects causes no requests.
    let before = cloud.storage.asked().len();
    assert_eq!(cloud.prints(&session, "query", &both[..1], "ls / | grep -c gcs || true"), "0\n");
    session.wait_for("the identity queries has no scope for it", Duration::from_secs(1));
    assert_eq!(cloud.storage.asked().len(), before);
}

#[test]
fn listable_but_unreadable_objects_are_not_given() {
    let cloud = Cloud::new();
    cloud.storage.put("kct-bucket", "dir/a", "content");
    let session = cloud.session("", &[]);
    let uris = ["gs://kct-bucket/dir/"];
    assert_eq!(cloud.prints(&session, "task", &uris, "cat /gcs/kct-bucket/dir/a"), "content");
    cloud.storage.allow_only_lists(PERSON, "kct-bucket");
    assert_eq!(cloud.prints(&session, "task", &uris, "ls -d /gcs || echo none"), "none\n");
    session.wait_for("gs://kct-bucket/dir/a is not fetched: ", Duration::from_secs(1));
    cloud.storage.allow(PERSON, "kct-bucket");
    assert_eq!(cloud.prints(&session, "task", &uris, "cat /gcs/kct-bucket/dir/a"), "content");
    assert_eq!(cloud.storage.downloads(), 1);
}

#[test]
fn an_unreadable_input_is_reported_and_the_task_runs() {
    let cloud = Cloud::new();
    cloud.storage.put("kct-bucket", "small", "x");
    cloud.storage.put_claiming("kct-bucket", "large", 5 << 30);
    cloud.storage.put("kct-bucket", "odd/../../../../../../../../tmp/kct-escaped", "x");
    cloud.storage.put("kct-bucket", "odd/b", "x");
    let session = cloud.session("[gcs]\nmax_bytes = 4294967296\n", &[]);
    let said = |uri: &str, words: &str| {
        let uris = [uri, "gs://kct-bucket/small"];
        let seen = cloud.prints(&session, "task", &uris, "cd /gcs && find . -type f | sort");
        assert_eq!(seen, "./kct-bucket/small\n", "{uri}");
        let line = session.wait_for(words, Duration::from_secs(1));
        assert!(line.contains("notice") && line.contains("pipe/task: gs://"), "{line}");
    };
    said(
        "gs://kct-bucket/none",
        "gs://kct-bucket/none is not fetched: there is no object and no folder of this name",
    );
    said("gs://kct-foreign/a", "may not read it; grant it roles/storage.objectViewer on kct-foreign");
    said("gs://kct-bucket/large", "it has 5.0 GiB, and a task gets 4.0 GiB (gcs.max_bytes)");
    said("gs://kct-bucket/../../etc/passwd", "is not fetched: its name has . or .. in it");
    said("gs://kct-bucket/odd", "an object in it cannot be a file: its name has . or .. in it");
    (0..3).for_each(|_| cloud.storage.play("object", Play::Status(503)));
    let script = "ls -d /gcs || echo none";
    assert_eq!(cloud.prints(&session, "task", &["gs://kct-bucket/small"], script), "none\n");
    session.wait_for("gs://kct-bucket/small is not fetched: 127.0.0.1 answered 503", Duration::from_secs(1));
    assert!(!Path::new("/tmp/kct-escaped").exists());
    // A mount of the container's own is left alone.
    let mut arguments = cloud.task("task", &["gs://kct-bucket/small"], "ls -A /gcs/kct-bucket");
    arguments.splice(2..2, ["--tmpfs".into(), "/gcs/kct-bucket/own".into()]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    assert_eq!(session.ok(&arguments), "own");
    session.wait_for("has a mount of its own at /gcs/kct-bucket", Duration::from_secs(1));
    // A container that is no kfp task gets nothing, and neither does any container if fetching is off.
    assert_eq!(
        session.ok(&[
            "run",
            "--rm",
            &task_image(),
            "sh",
            "-c",
            "ls -d /gcs/* 2>/dev/null || echo none",
            "/gcs/kct-bucket/small"
        ]),
        "none"
    );
    let off = cloud.session("", &[("KFP_CREDS_GCS_FETCH", "false")]);
    assert_eq!(cloud.prints(&off, "task", &["gs://kct-bucket/small"], "ls -d /gcs || echo none"), "none\n");
}

#[test]
fn a_create_waits_no_longer_than_30_s_for_its_inputs() {
    let cloud = Cloud::new();
    cloud.storage.put("kct-bucket", "a", "x");
    (0..3).for_each(|_| cloud.storage.play("media", Play::Hang));
    let session = cloud.session("", &[]);
    let began = Instant::now();
    let out = cloud.run(&session, "task", &["gs://kct-bucket/a"], "true");
    let (took, why) = (began.elapsed().as_secs_f64(), String::from_utf8_lossy(&out.stderr).into_owned());
    assert!(!out.status.success() && (29.0..33.0).contains(&took), "{took} s: {why}");
    assert!(why.contains("fetching gs://kct-bucket/a and its other inputs takes longer than 30 s"), "{why}");
    let lines = session.said().lines().filter(|line| line.contains("takes longer than 30 s")).count();
    assert_eq!(lines, 1, "{}", session.said());
    // The download goes on until it fails after its third try; the next create starts a new one.
    let given_up = || cloud.storage.downloads() == 3 && !cloud.storage.hangs();
    until("the download is given up", Duration::from_secs(15), given_up);
    assert_eq!(cloud.prints(&session, "task", &["gs://kct-bucket/a"], "cat /gcs/kct-bucket/a"), "x");
}

#[test]
fn fetched_inputs_are_removed_with_their_session() {
    let cloud = Cloud::new();
    cloud.storage.put("kct-bucket", "a", "content");
    let session = cloud.session("", &[]);
    cloud.prints(&session, "task", &["gs://kct-bucket/a"], "true");
    let (folder, home) = (cache(&session), session.folder.0.clone());
    assert!(everything(&folder).contains("content"), "{}", everything(&folder));
    use std::os::unix::fs::PermissionsExt;
    for private in [&folder, folder.parent().unwrap(), folder.parent().unwrap().parent().unwrap()] {
        let mode = std::fs::metadata(private).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{}", private.display());
    }
    let pid = session.pid();
    std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status().unwrap();
    until("it ends", Duration::from_secs(15), || !folder.exists());
    assert!(!everything(&home.join(".cache")).contains("content"));
    assert_eq!(session.left().0, Some(0));
}

#[test]
fn inputs_of_a_killed_session_are_swept_at_a_start() {
    let cloud = Cloud::new();
    let shared = Folder::new("shared-cache");
    let place = shared.0.display().to_string();
    cloud.storage.put("kct-bucket", "a", "content");
    let (killed, living) =
        (cloud.session("", &[("XDG_CACHE_HOME", &place)]), cloud.session("", &[("XDG_CACHE_HOME", &place)]));
    for session in [&killed, &living] {
        cloud.prints(session, "task", &["gs://kct-bucket/a"], "true");
    }
    let folder = |session: &Session| shared.0.join("kfp-creds/gcs").join(session.socket.file_stem().unwrap());
    let (dead, alive) = (folder(&killed), folder(&living));
    assert!(dead.exists() && alive.exists());
    killed.kill();
    assert!(dead.exists());
    let next = cloud.session("", &[("XDG_CACHE_HOME", &place)]);
    until("it is swept", Duration::from_secs(10), || !dead.exists());
    assert!(alive.exists());
    assert_eq!(cloud.prints(&living, "task", &["gs://kct-bucket/a"], "cat /gcs/kct-bucket/a"), "content");
    drop((next, living));
    let left = std::fs::read_dir(shared.0.join("kfp-creds/gcs")).unwrap();
    assert_eq!(left.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>(), ["lock"]);
}

/// Nothing that a service would take; made when the test runs.
fn key() -> String {
    let (dashes, label) = ("-".repeat(5), ["PRIVATE", "KEY"].join(" "));
    let body = format!("MIIEvQIBADANBgkqhkiG9w0BAQEF{CANARY}").repeat(6);
    format!("{dashes}BEGIN {label}{dashes}\n{body}\n{dashes}END {label}{dashes}\n")
}

#[test]
fn a_key_in_a_fetched_input_is_refused() {
    let cloud = Cloud::new();
    cloud.storage.put("kct-bucket", "dir/service.pem", key());
    let uris = ["gs://kct-bucket/dir/"];
    let session = cloud.session("", &[("KFP_CREDS_GUARD", "deny")]);
    let out = cloud.run(&session, "task", &uris, "true");
    let why = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && why.contains("what was fetched from gs://kct-bucket holds"), "{why}");
    assert!(why.contains("service.pem") && !why.contains(CANARY), "{why}");
    session.wait_for("what was fetched from gs://kct-bucket holds", Duration::from_secs(1));
    assert!(why.contains(r#"allow = ["gs://kct-bucket/dir/service.pem"]"#), "{why}");
    for (allowed, passes) in [("dir/service.pem", true), ("dir", true), ("dir/service", false), ("", true)] {
        let config = format!("[guard]\nallow = [\"gs://kct-bucket/{allowed}\"]\n");
        let session = cloud.session(&config, &[("KFP_CREDS_GUARD", "deny")]);
        let out = cloud.run(&session, "task", &uris, "test -s /gcs/kct-bucket/dir/service.pem");
        assert_eq!(out.status.success(), passes, "{allowed}: {}", String::from_utf8_lossy(&out.stderr));
    }
    for (mode, told) in [("warn", true), ("off", false)] {
        let session = cloud.session("", &[("KFP_CREDS_GUARD", mode)]);
        cloud.prints(&session, "task", &uris, "test -s /gcs/kct-bucket/dir/service.pem");
        assert_eq!(session.said().contains("what was fetched from gs://kct-bucket holds"), told, "{mode}");
        assert!(!session.said().contains(CANARY));
    }
}

#[test]
fn no_token_is_in_a_name_a_log_or_an_error() {
    let cloud = Cloud::new();
    cloud.storage.put("kct-bucket", "a", "content");
    cloud.storage.play("object", Play::Status(403));
    cloud.storage.play("object", Play::Redirect);
    cloud.storage.play("object", Play::Page);
    let session = cloud.session("log = \"trace\"\n", &[]);
    for uri in ["gs://kct-bucket/refused", "gs://kct-bucket/a", "gs://kct-bucket/a"] {
        cloud.prints(&session, "task", &[uri], "true");
    }
    let mut arguments = cloud.task("task", &["gs://kct-bucket/a"], "sleep 60");
    arguments.splice(1..2, ["-d".to_string()]);
    let id = session.ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let inspected = session.ok(&["inspect", &id]);
    let inside =
        session.ok(&["exec", &id, "sh", "-c", "env; cat /proc/mounts; find /gcs; cat /gcs/kct-bucket/a"]);
    session.ok(&["rm", "-f", &id]);
    let kept = everything(&cache(&session));
    for (place, text) in [("the cache", &kept), ("inspect", &inspected), ("the container", &inside)] {
        assert!(text.contains("kct-bucket"), "{place}: {text}");
    }
    for (place, text) in
        [("the cache", kept), ("inspect", inspected), ("the container", inside), ("the log", session.end().1)]
    {
        assert!(!text.contains(CANARY), "{place}: {text}");
        for secret in cloud.google.canaries() {
            assert!(!text.contains(&secret), "{place}");
        }
    }
}

#[test]
fn offline_fetches_only_from_a_configured_emulator() {
    let cloud = Cloud::new();
    let root = cloud.folder.0.join("root");
    let script = "ls -d /gcs || echo none";
    let plain = Session::offline("", &[]);
    for component in ["one", "two"] {
        let task = like_kfp(&root, component, &["gs://kct-bucket/a"], script);
        assert_eq!(plain.ok(&task.iter().map(String::as_str).collect::<Vec<_>>()), "none");
    }
    let lines = plain.said().lines().filter(|line| line.contains("Google accepts no offline token")).count();
    assert_eq!(lines, 1, "{}", plain.said());
    let emulator = FakeStorage::start(|token| claims(token)["email"].as_str().map(String::from));
    emulator.allow("offline@kfp-creds.invalid", "kct-bucket");
    emulator.put("kct-bucket", "a", "emulated");
    let session = Session::start("", &["--offline"], &[("KFP_CREDS_ENDPOINT_STORAGE", &emulator.url())]);
    let task = like_kfp(&root, "one", &["gs://kct-bucket/a"], "cat /gcs/kct-bucket/a");
    assert_eq!(session.ok(&task.iter().map(String::as_str).collect::<Vec<_>>()), "emulated");
}

/// As with every call to Google, it uses the proxy of this machine and reports the proxy's answer.
#[test]
fn objects_are_fetched_through_the_proxy_of_this_machine() {
    let cloud = Cloud::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    // One call is tried three times.
    let asked = std::thread::spawn(move || {
        let answers = listener.incoming().take(3).map(|stream| {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").unwrap();
            line
        });
        answers.collect::<Vec<String>>()
    });
    let storage = "https://storage.corp.example";
    let session = cloud.session("", &[("HTTPS_PROXY", &proxy), ("KFP_CREDS_ENDPOINT_STORAGE", storage)]);
    cloud.prints(&session, "task", &["gs://kct-bucket/a"], "true");
    let line = session.wait_for("gs://kct-bucket/a is not fetched", Duration::from_secs(1));
    assert!(line.contains("(HTTPS_PROXY): it does not connect to storage.corp.example:443 (403)"), "{line}");
    let asked = asked.join().unwrap();
    assert!(asked.iter().all(|line| line == "CONNECT storage.corp.example:443 HTTP/1.1\r\n"), "{asked:?}");
    assert!(cloud.storage.asked().is_empty());
}

#[test]
fn nothing_is_fetched_for_an_engine_elsewhere() {
    let cloud = Cloud::new();
    cloud.storage.put("kct-bucket", "a", "x");
    let host = format!("tcp://127.0.0.1:{}", serve(None, engine_socket()));
    let session = cloud.session("", &[("DOCKER_HOST", &host), ("KFP_CREDS_PLAIN_TCP", "true")]);
    for component in ["one", "two"] {
        assert_eq!(
            cloud.prints(&session, component, &["gs://kct-bucket/a"], "ls -d /gcs || echo none"),
            "none\n"
        );
    }
    let said = session.said();
    let lines = said.lines().filter(|line| line.contains("does not see this machine's files")).count();
    assert_eq!((lines, cloud.storage.asked().len()), (1, 0), "{said}");
}
