//! Sessions with a stable path: `serve --name`, sockets that a service manager opened, the end of stdin,
//! `health`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::raw::until;
use crate::support::served::Served;
use crate::support::session::{Folder, docker_at, program, python, raw, task_image};

fn unused(what: &str) -> String {
    let nanos = std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    format!("{what}-{}-{}", std::process::id(), nanos / 1000)
}

fn answers(socket: &Path) -> bool {
    docker_at(socket, &["version"]).status.success()
}

/// Exit code and stderr.
fn ask(arguments: &[&str]) -> (Option<i32>, String) {
    let folder = Folder::new("ask");
    let out = program(&folder.0).args(arguments).output().unwrap();
    (out.status.code(), String::from_utf8(out.stderr).unwrap())
}

#[test]
fn a_session_name_is_a_stable_path_and_unique() {
    let (folder, name) = (Folder::new("named"), unused("team"));
    let mut first = Served::start(&folder.0, &["--name", &name]);
    let socket = PathBuf::from(first.text("socket"));
    assert_eq!(socket.file_name().unwrap().to_str(), Some(&*format!("{name}.sock")));
    assert_eq!(first.variable("DOCKER_HOST"), format!("unix://{}", socket.display()));
    assert!(first.text("page").starts_with("http://127.0.0.1:") && answers(&socket));

    let mut second = program(&folder.0);
    second.args(["serve", "--json", "--offline", "--name", &name]);
    let (status, said) = Served::of(second).unwrap_err();
    assert_eq!(status.code(), Some(77), "{said}");
    assert!(said.contains(&format!("taken by process {}", first.child.id())), "{said}");

    assert_eq!(ask(&["health", "--session", &name]), (Some(0), String::new()));
    assert_eq!(ask(&["status", "--session", &name]), ask(&["status", "--session", &first.text("session")]));

    // A killed session does not hold the name any more, and the next one has the same path.
    first.signal("-KILL");
    first.child.wait().unwrap();
    assert_eq!(ask(&["health", "--session", &name]).0, Some(69));
    let mut next = Served::start(&folder.0, &["--name", &name]);
    assert!(next.text("socket") == first.text("socket") && answers(&socket));
    next.signal("-TERM");
    assert!(next.ended(Duration::from_secs(10)).is_some_and(|status| status.success()));
    for kind in ["sock", "ctl", "pid"] {
        assert!(socket.with_extension(kind).symlink_metadata().is_err(), "{kind}");
    }
}

#[test]
fn an_unnamed_session_is_default_or_says_why_not() {
    let folder = Folder::new("named");
    let start = || {
        let mut command = program(&folder.0);
        command.args(["serve", "--json", "--offline"]).env("XDG_RUNTIME_DIR", &folder.0);
        Served::of(command).unwrap()
    };
    let (first, second) = (start(), start());
    assert_eq!((first.text("name"), &second.ready["name"]), ("default".into(), &serde_json::Value::Null));
    assert_eq!(Path::new(&first.text("socket")), folder.0.join("kfp-creds/default.sock"));
    let own = format!("kfp-creds/{}.sock", second.text("session"));
    assert_eq!(Path::new(&second.text("socket")), folder.0.join(own));
    assert!([&first, &second].iter().all(|served| answers(Path::new(&served.text("socket")))));
    for served in [first, second] {
        served.signal("-TERM");
        let mut served = served;
        assert!(served.ended(Duration::from_secs(10)).is_some());
    }
}

#[test]
fn a_session_ends_with_the_stdin_that_it_was_given() {
    let (folder, name) = (Folder::new("named"), unused("held"));
    let mut served = Served::start(&folder.0, &["--name", &name, "--stdin"]);
    let label = format!("label=kfp-creds.session={}", served.text("session"));
    drop(served.stdin.take());
    assert!(served.ended(Duration::from_secs(10)).is_some_and(|status| status.success()));
    assert_eq!(raw(&["network", "ls", "-q", "--filter", &label]), "");
    assert!(!Path::new(&served.text("socket")).exists());
}

/// As systemd does it: the socket is bound before the program starts, and passed on as descriptor 3.
const ACTIVATE: &str = "
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')
os.execv(sys.argv[2], sys.argv[2:])
";

#[test]
fn a_socket_that_is_passed_on_is_served() {
    let folder = Folder::new("named");
    let socket = folder.0.join("given.sock");
    let own = program(&folder.0);
    let mut command = Command::new(python());
    command.env_clear().envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["-c", ACTIVATE]).arg(&socket).arg(own.get_program());
    command.args(["serve", "--json", "--offline"]).current_dir(&folder.0);
    let mut served = Served::of(command).unwrap_or_else(|(_, said)| panic!("{said}"));
    assert_eq!(Path::new(&served.text("socket")), socket);
    assert!(answers(&socket));
    served.signal("-TERM");
    assert!(served.ended(Duration::from_secs(10)).is_some_and(|status| status.success()));
    assert!(socket.exists(), "it is the service manager's to remove");
    until("nobody answers there", Duration::from_secs(2), || !answers(&socket));
}

/// Uses Google's library, in a process and in a container of the same command.
const WHO: &str = "
import os, subprocess, sys
import google.auth, google.auth.transport.requests
credentials, project = google.auth.default()
credentials.refresh(google.auth.transport.requests.Request())
print(type(credentials).__module__, credentials.service_account_email, project)
print(os.environ['CLOUDSDK_CONFIG'])
where = '/computeMetadata/v1/instance/service-accounts/default/email'
script = 'curl -sf -H Metadata-Flavor:Google http://$GCE_METADATA_HOST' + where
print(subprocess.run(['docker', 'run', '--rm', sys.argv[1], 'sh', '-c', script], capture_output=True, text=True).stdout)
";

/// On a machine with a login, which Google's libraries prefer to a metadata server.
#[test]
fn processes_of_a_run_have_its_identity_and_not_the_login() {
    let folder = Folder::new("named");
    let login = folder.0.join(".config/gcloud");
    std::fs::create_dir_all(&login).unwrap();
    let file = login.join("application_default_credentials.json");
    let user = r#"{"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}"#;
    std::fs::write(&file, user).unwrap();
    let run = |flags: &[&str]| {
        let mut command = program(&folder.0);
        command.args(["run", "--offline", "--all"]).args(flags).args([
            "--",
            &python(),
            "-c",
            WHO,
            &task_image(),
        ]);
        command.envs([("GCE_METADATA_HOST", "127.0.0.1:9"), ("GCE_METADATA_IP", "127.0.0.1:9")]);
        command.env("GOOGLE_APPLICATION_CREDENTIALS", &file).env("CLOUDSDK_CONFIG", &login);
        // No upstream answers for the user's login here.
        command.env("HTTPS_PROXY", "http://127.0.0.1:9").output().unwrap()
    };
    let out = run(&["--processes"]);
    let (said, told) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert!(out.status.success(), "{said}{told}");
    let lines: Vec<&str> = said.lines().collect();
    let own = "google.auth.compute_engine.credentials offline@kfp-creds.invalid offline-project";
    assert_eq!((lines[0], lines[2]), (own, "offline@kfp-creds.invalid"), "{told}");
    assert!(!Path::new(lines[1]).exists(), "the empty directory stayed: {}", lines[1]);
    assert!(!told.contains("no container was created"), "{told}");
    // Without the flag, processes have their usual credentials.
    let out = run(&[]);
    assert!(!out.status.success(), "the login was not asked for: {}", String::from_utf8_lossy(&out.stdout));
}
