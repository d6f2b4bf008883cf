//! Builds with BuildKit: no key gets into a context, whatever its form, and everything else works as without
//! kfp-creds.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::fake_google::rsa_key;
use crate::support::far_engine::{certificates, fake_ssh, serve};
use crate::support::session::{Folder, Session, engine_socket, raw, task_image};

/// A key that no service knows; made when the test runs.
fn key() -> String {
    rsa_key().to_owned()
}

fn session(mode: &str) -> Session {
    Session::start("", &["--offline", "--all"], &[("KFP_CREDS_GUARD", mode)])
}

/// docker's plugin for BuildKit, as `scripts/setup --all` found it.
pub(super) fn buildx() -> PathBuf {
    plugin("KFP_CREDS_DOCKER_BUILDX")
}

fn plugin(variable: &str) -> PathBuf {
    let plugin = std::env::var_os(variable).expect("run scripts/setup --all, then `. .work/env`");
    PathBuf::from(plugin)
}

/// A folder with contexts in it, and the docker command line with buildx.
struct BuildSetup(Folder);

impl BuildSetup {
    fn new() -> Self {
        let folder = Folder::new("builds");
        std::fs::create_dir_all(folder.0.join("config/cli-plugins")).unwrap();
        for (name, place) in
            [("docker-buildx", buildx()), ("docker-compose", plugin("KFP_CREDS_DOCKER_COMPOSE_2"))]
        {
            std::os::unix::fs::symlink(place, folder.0.join("config/cli-plugins").join(name)).unwrap();
        }
        let setup = Self(folder);
        // The content differs from that of any earlier build.
        setup.write("app/id.txt", &format!("{}\n", setup.0.0.display()));
        setup.write("app/Dockerfile", "FROM scratch\nCOPY . /app\n");
        setup.write("app/rows.csv", &"1,2,3,4,5,6,7\n".repeat(100_000));
        setup
    }

    fn path(&self, name: &str) -> String {
        self.0.0.join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.0.0.join(name)).unwrap();
    }

    /// `docker ARGUMENTS` in the folder, with `stdin`.
    fn docker(&self, session: &Session, arguments: &[&str], stdin: &[u8]) -> Output {
        let mut child = Command::new("timeout")
            .args(["120", "docker"])
            .args(arguments)
            .current_dir(&self.0.0)
            .env("DOCKER_HOST", format!("unix://{}", session.socket.display()))
            .env("DOCKER_CONFIG", self.path("config"))
            .env("DOCKER_BUILDKIT", "1")
            .env("BUILDKIT_PROGRESS", "plain")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // docker may end without reading it.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn builds(&self, session: &Session, arguments: &[&str], stdin: &[u8]) -> String {
        let out = self.docker(session, arguments, stdin);
        assert!(out.status.success(), "docker {arguments:?}: {}{}", all(&out), session.said());
        all(&out)
    }

    /// As [`Self::refuses`], for a client that shows the line amid its own output: one line names the file
    /// and says what to do, there and on the terminal.
    #[track_caller]
    fn refuses_somewhere(&self, session: &Session, arguments: &[&str], words: &str) {
        let out = self.docker(session, arguments, b"");
        let text = all(&out);
        assert!(!out.status.success(), "docker {arguments:?} passed: {text}");
        let told = |line: &str| line.contains(words) && line.contains("leave it out");
        assert!(text.lines().any(told), "docker {arguments:?}: {text}");
        session.wait_for(words, Duration::from_secs(5));
        assert!(!text.contains("MIIEvQIBADAN") && !session.said().contains("MIIEvQIBADAN"));
    }

    #[track_caller]
    fn refuses(&self, session: &Session, arguments: &[&str], stdin: &[u8], words: &str) {
        let out = self.docker(session, arguments, stdin);
        let text = all(&out);
        assert!(!out.status.success(), "docker {arguments:?} passed: {text}");
        let line = text.lines().find(|line| line.starts_with("ERROR:")).unwrap_or_default();
        assert!(line.contains(words) && line.contains("leave it out"), "docker {arguments:?}: {text}");
        session.wait_for(words, Duration::from_secs(5));
        assert!(!text.contains("MIIEvQIBADAN") && !session.said().contains("MIIEvQIBADAN"));
    }
}

fn all(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// The size that BuildKit reports as sent: the last `transferring context: 1.40MB 0.1s done`.
fn transferred(text: &str) -> f64 {
    let said = text.lines().filter_map(|line| line.split_once("transferring context: "));
    let mut sizes = said.filter_map(|(_, size)| {
        let size = size.split(' ').next()?;
        let unit = size.find(|c: char| c.is_alphabetic())?;
        let scale = match &size[unit..] {
            "B" => 1.0,
            "kB" => 1e3,
            "MB" => 1e6,
            other => panic!("{other}"),
        };
        Some(size[..unit].parse::<f64>().ok()? * scale)
    });
    sizes.next_back().unwrap_or_else(|| panic!("{text}"))
}

fn archive(folder: &Path, arguments: &[&str]) -> Vec<u8> {
    let out = Command::new("tar").arg("-C").arg(folder).args(arguments).arg(".").output().unwrap();
    assert!(out.status.success());
    out.stdout
}

#[test]
fn a_context_with_a_key_is_refused_and_a_clean_one_builds() {
    let (setup, session) = (BuildSetup::new(), session("deny"));
    let image = format!("kfpct-builds-{}", std::process::id());
    let build = ["build", "-t", &image, "app"];
    // After this build the engine has everything but the key.
    setup.builds(&session, &build, b"");
    setup.write("app/deep/key.pem", &key());
    let words = "build context: it holds a private key at deep/key.pem";
    for _ in 0..2 {
        setup.refuses(&session, &build, b"", words);
    }
    setup.refuses(&session, &["buildx", "build", "app"], b"", words);
    setup.write("docker-bake.json", r#"{"target": {"default": {"context": "app"}}}"#);
    setup.refuses(&session, &["buildx", "bake"], b"", words);
    setup.write("app/.dockerignore", "**/*.pem\n");
    setup.builds(&session, &build, b"");
    setup.remove("app/.dockerignore");
    setup.refuses(&session, &build, b"", words);
    setup.remove("app/deep/key.pem");
    setup.builds(&session, &build, b"");
    setup.builds(&session, &["buildx", "bake"], b"");
    assert!(!session.said().contains("not verified"), "{}", session.said());
    raw(&["rmi", "-f", &image]);
}

#[test]
fn the_second_build_of_a_session_sends_only_changes() {
    let setup = BuildSetup::new();
    for round in 0..2 {
        let session = session("deny");
        let first = transferred(&setup.builds(&session, &["build", "app"], b""));
        assert!(first > 1e6, "{first} bytes of a context of 1.4 MB, in round {round}");
        setup.write("app/id.txt", &format!("{round}\n"));
        let second = transferred(&setup.builds(&session, &["build", "app"], b""));
        assert!(second < 1e4, "{second} bytes of a context of which a line has changed");
        setup.write("app/key.pem", &key());
        setup.refuses(&session, &["build", "app"], b"", "a private key at key.pem");
        setup.remove("app/key.pem");
        let after = transferred(&setup.builds(&session, &["build", "app"], b""));
        assert!(after > 1e6, "{after} bytes after a refusal");
    }
}

/// A context, or a Dockerfile, from stdin.
#[test]
fn a_context_from_stdin_is_searched() {
    let (setup, session) = (BuildSetup::new(), session("deny"));
    setup.write("plain/a.txt", "a\n");
    let aws = ["Zq3xUtnFEMI7K7MDENGb", "PxRfiCYz8h2kP0aQ1Lm9"].concat();
    let keyed = format!("FROM scratch\nCOPY a.txt /\nENV AWS_SECRET_ACCESS_KEY={aws}\n");
    let words = "an AWS secret access key at Dockerfile";
    setup.refuses(&session, &["build", "-f", "-", "plain"], keyed.as_bytes(), words);
    setup.builds(&session, &["build", "-f", "-", "plain"], b"FROM scratch\nCOPY a.txt /\n");
    for compressed in ["-c", "-cz"] {
        let app = archive(&setup.0.0.join("app"), &[compressed]);
        setup.builds(&session, &["build", "-"], &app);
        setup.write("app/key.pem", &key());
        let app = archive(&setup.0.0.join("app"), &[compressed]);
        setup.refuses(
            &session,
            &["build", "-"],
            &app,
            "build context: the archive holds a private key at key.pem",
        );
        setup.remove("app/key.pem");
    }
}

/// Directories besides the context. The frontend of Engine 20.10 does not support them.
#[test]
fn named_contexts_are_searched() {
    let (setup, session) = (BuildSetup::new(), session("deny"));
    setup.write("keys/key.pem", &key());
    setup.write("plain/a.txt", "a\n");
    let steps = b"FROM scratch\nCOPY --from=more . /more\n";
    let plain = ["build", "--build-context", "more=plain", "-"];
    if raw(&["version", "--format", "{{.Server.Version}}"]).starts_with("20.") {
        let out = setup.docker(&session, &plain, steps);
        assert!(all(&out).contains("unsupported frontend capability"), "{}", all(&out));
        return;
    }
    let words = "build context more: it holds a private key at key.pem";
    setup.refuses(&session, &["build", "--build-context", "more=keys", "-"], steps, words);
    setup.builds(&session, &plain, steps);
}

#[test]
fn a_build_argument_or_label_with_a_key_is_refused() {
    let (setup, session) = (BuildSetup::new(), session("deny"));
    let aws = ["Zq3xUtnFEMI7K7MDENGb", "PxRfiCYz8h2kP0aQ1Lm9"].concat();
    let key = format!("AWS_SECRET_ACCESS_KEY={aws}");
    for (flag, what) in [("--build-arg", "build argument"), ("--label", "label")] {
        let words = format!("the {what} AWS_SECRET_ACCESS_KEY holds an AWS secret access key");
        setup.refuses(&session, &["build", flag, &key, "app"], b"", &words);
        setup.builds(&session, &["build", flag, "VERSION=1", "app"], b"");
    }
    assert!(!session.said().contains(&aws));
}

/// A secret exists for one instruction and is not in the image.
#[test]
fn a_secret_of_a_build_passes() {
    let (setup, session) = (BuildSetup::new(), session("deny"));
    setup.write("key.pem", &key());
    let steps = format!("FROM {}\nRUN --mount=type=secret,id=k wc -c /run/secrets/k\n", task_image());
    let said = setup.builds(
        &session,
        &["build", "--no-cache", "--secret", "id=k,src=key.pem", "-"],
        steps.as_bytes(),
    );
    assert!(said.contains(&format!("{} /run/secrets/k", key().len())), "{said}");
}

#[test]
fn compose_builds_are_searched_and_services_attached() {
    let (setup, session) = (BuildSetup::new(), session("deny"));
    let project = format!("kfpct-compose-{}", std::process::id());
    // Compose 2 builds the two services in one bake.
    let service =
        |name: &str, folder: &str| format!("  {name}:\n    build: ./{folder}\n    image: {project}-{name}\n");
    setup.write("other/Dockerfile", "FROM scratch\nCOPY . /other\n");
    setup.write("other/id.txt", &project);
    let run = format!("  task:\n    image: {}\n    command: [\"env\"]\n", task_image());
    let services = format!("{}{}{run}", service("one", "app"), service("two", "other"));
    setup.write("compose.yaml", &format!("name: {project}\nservices:\n{services}"));
    setup.builds(&session, &["compose", "build", "one", "two"], b"");
    setup.write("other/key.pem", &key());
    setup.refuses_somewhere(&session, &["compose", "build", "one", "two"], "key.pem");
    setup.refuses_somewhere(&session, &["compose", "up", "--build", "two"], "key.pem");
    setup.remove("other/key.pem");
    setup.builds(&session, &["compose", "build", "two"], b"");
    let said = setup.builds(&session, &["compose", "run", "--rm", "task"], b"");
    assert!(said.contains("GCE_METADATA_HOST="), "{said}");
    setup.docker(&session, &["compose", "down", "--rmi", "local", "-t", "1"], b"");
    setup.docker(&session, &["image", "rm", &format!("{project}-one"), &format!("{project}-two")], b"");
}

#[test]
fn in_builds_warn_prints_off_is_silent_and_allow_exempts() {
    let setup = BuildSetup::new();
    setup.write("app/key.pem", &key());
    let warned = session("warn");
    setup.builds(&warned, &["build", "app"], b"");
    warned.wait_for("build context: it holds a private key at key.pem", Duration::from_secs(5));
    drop(warned);
    let off = session("off");
    setup.builds(&off, &["build", "app"], b"");
    assert!(!off.said().contains("key.pem"), "{}", off.said());
    drop(off);
    setup.write("own.toml", "[guard]\nallow = [\"key.pem\"]\n");
    let allowed = Session::start("", &["--offline", "--all", "--config", &setup.path("own.toml")], &[]);
    setup.builds(&allowed, &["build", "app"], b"");
    setup.write("app/other/key.pem", &key());
    setup.refuses(&allowed, &["build", "app"], b"", "a private key at other/key.pem");
}

/// A context is sent and another refused, over every kind of connection to the engine.
fn a_context_is_looked_into(session: &Session) {
    let setup = BuildSetup::new();
    let sent = transferred(&setup.builds(session, &["build", "app"], b""));
    assert!(sent > 1e6, "{sent} bytes of a context of 1.4 MB");
    setup.write("app/key.pem", &key());
    for _ in 0..2 {
        setup.refuses(session, &["build", "app"], b"", "build context: it holds a private key at key.pem");
    }
    setup.remove("app/key.pem");
    setup.builds(session, &["build", "app"], b"");
    assert!(!session.said().contains("BuildKit"), "{}", session.said());
}

#[test]
fn a_context_for_an_engine_behind_tls_is_searched() {
    let folder = Folder::new("tls");
    certificates(&folder.0);
    let host = format!("tcp://127.0.0.1:{}", serve(Some(&folder.0), engine_socket()));
    let certs = folder.0.display().to_string();
    let environment = [
        ("DOCKER_HOST", host.as_str()),
        ("DOCKER_TLS_VERIFY", "1"),
        ("DOCKER_CERT_PATH", &certs),
        ("KFP_CREDS_GUARD", "deny"),
    ];
    a_context_is_looked_into(&Session::start("", &["--offline", "--all"], &environment));
}

#[test]
fn a_context_for_an_engine_behind_ssh_is_searched() {
    let folder = Folder::new("ssh");
    let bin = fake_ssh(&folder.0, &engine_socket(), &["--", "build.example"]);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let environment =
        [("DOCKER_HOST", "ssh://build.example"), ("PATH", path.as_str()), ("KFP_CREDS_GUARD", "deny")];
    a_context_is_looked_into(&Session::start("", &["--offline", "--all"], &environment));
}

/// A key that a package publishes: tornado's, as the package was installed for the tests.
fn published_key() -> String {
    let fallback = format!("{}/.work/venv-notebooks/bin", env!("CARGO_MANIFEST_DIR"));
    let bin = std::env::var("KFP_CREDS_TEST_NOTEBOOKS").unwrap_or(fallback);
    let library = Path::new(&bin).parent().unwrap().join("lib");
    let pythons = std::fs::read_dir(&library)
        .unwrap_or_else(|e| panic!("{}: {e}; run scripts/setup", library.display()));
    let mut keys = pythons.map(|python| python.unwrap().path().join("site-packages/tornado/test/test.key"));
    std::fs::read_to_string(keys.find(|key| key.exists()).expect("tornado's test key")).unwrap()
}

#[test]
fn published_test_keys_pass_with_one_note() {
    const NOTE: &str = ": known by digest, not refused";
    let (setup, session, key) = (BuildSetup::new(), session("deny"), published_key());
    setup.write("app/lib/a.key", &key);
    setup.write("app/lib/b.py", &format!("KEY = {key:?}\n"));
    let tag = format!("kfpct-published-{}", std::process::id());
    setup.builds(&session, &["build", "-t", &tag, "app"], b"");
    let archive = archive(&setup.0.0.join("app"), &["-c"]);
    setup.builds(&session, &["build", "-"], &archive);
    let saved = setup.path("saved.tar");
    raw(&["save", "-o", &saved, &tag]);
    session.ok(&["load", "-i", &saved]);
    session.wait_for("load: ", Duration::from_secs(5));
    let said = session.said();
    let notes: Vec<&str> = said.lines().filter(|line| line.contains(NOTE)).collect();
    assert_eq!(notes.len(), 3, "{said}");
    assert!(
        notes
            .iter()
            .all(|note| note.contains("2 published test keys in ") && note.contains(" and 1 more file"))
    );
    let of = |who: &str| notes.iter().filter(|note| note.contains(who)).count();
    assert_eq!((of("build context: "), of("load: ")), (2, 1), "{notes:?}");
    raw(&["rmi", "-f", &tag]);

    let scan = |flag: &[&str]| {
        let out =
            crate::support::session::program(&setup.0.0).arg("scan").args(flag).arg("app").output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", all(&out));
        String::from_utf8(out.stdout).unwrap()
    };
    let note = format!("2 published test keys in lib/a.key and 1 more file{NOTE}");
    assert_eq!(scan(&[]), format!("note: {note}\napp: no key found\n"));
    let json: serde_json::Value = serde_json::from_str(&scan(&["--json"])).unwrap();
    assert_eq!(
        (&json["event"], &json["keys"], &json["what"]),
        (&"published".into(), &2.into(), &note.clone().into())
    );
    let sarif: serde_json::Value = serde_json::from_str(&scan(&["--sarif"])).unwrap();
    let told = &sarif["runs"][0]["invocations"][0]["toolExecutionNotifications"];
    assert_eq!(told, &serde_json::json!([{"level": "note", "message": {"text": note}}]));
}
