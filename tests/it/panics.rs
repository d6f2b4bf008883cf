//! The program panics while it holds secrets: its output contains none of them, and it keeps running.

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::leaks::{ACCOUNT, Local, files, secrets_of};
use crate::support::fake_google::FakeGoogle;
use crate::support::session::{Folder, program};

const PERSON: &str = "somebody@example.com";
const RUNNER: &str = "runner@sa-project.iam.gserviceaccount.com";

/// Without memory for the stack of another thread, the event loop cannot start to resolve a name, and panics
/// in the exchange that needs it. Returns the previous limits.
fn no_room_for_a_thread(pid: Pid) -> Rlimit {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let kilobytes: u64 = size.split_whitespace().next().unwrap().parse().unwrap();
    let limit = (kilobytes + 1024) * 1024;
    let as_it_is = Rlimit { current: None, maximum: None };
    prlimit(Some(pid), Resource::As, Rlimit { current: Some(limit), ..as_it_is }).unwrap()
}

#[test]
fn a_panic_inside_an_exchange_shows_no_secret_and_ends_nothing() {
    let google = FakeGoogle::start();
    let file = google.user(PERSON);
    google.allow(PERSON, RUNNER);
    let folder = Folder::new("panics");
    let (config, credential) = files(&folder.0, &google, &file);
    // The person's own token needs no name resolution, the second account's does: the first is in memory by
    // then.
    let written = std::fs::read_to_string(&config).unwrap();
    let iam = format!("iam_credentials = \"{}\"", google.url());
    assert!(written.contains(&iam), "{written}");
    let written = written.replace(&iam, &iam.replace("127.0.0.1", "localhost"));
    std::fs::write(&config, format!("{written}[identity.default]\nother_accounts = [\"{RUNNER}\"]\n"))
        .unwrap();
    let mut command = program(&folder.0);
    command.env("GOOGLE_APPLICATION_CREDENTIALS", &credential);
    let server = Local::start(command, &["--config", &config]);
    let (own, other) = (format!("{ACCOUNT}/token"), format!("{}/token", ACCOUNT.replace("default", RUNNER)));
    assert!(server.get(&own).0.contains(" 200 "));

    let pid = Pid::from_raw(server.child.id() as i32).unwrap();
    let limits = no_room_for_a_thread(pid);
    let (head, body) = server.get(&other);
    prlimit(Some(pid), Resource::As, limits).unwrap();
    assert!(head.contains(" 503 ") && body.contains("please report this"), "{head}\n{body}");
    // The next request succeeds.
    assert!(server.get(&other).0.contains(" 200 "));

    let capability = server.capability.clone();
    let (stdout, stderr) = server.end();
    assert!(stderr.contains("panicked at") && stderr.contains("stack backtrace"), "{stderr}");
    assert!(stderr.contains("an exchange panicked"), "{stderr}");
    let mut canaries = secrets_of(&google, &file);
    canaries.add("the path capability", &capability);
    for (place, text) in [("stdout", stdout), ("stderr", stderr), ("the reply", head + &body)] {
        canaries.assert_absent(place, &text);
    }
}
