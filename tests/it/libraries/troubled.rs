//! The source fails, and not the way to the server: a real credential whose Google answers 503 at the start
//! of the session, for 3 s more from a container's first request on, and then for a while answers 2 s late.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::text;
use crate::support::fake_google::{FakeGoogle, rsa_key};
use crate::support::session::{Folder, PROGRAM, python};

const CLIENTS: [&str; 6] = [
    "google-auth",
    "google-auth 2.17",
    "google-auth-library 10",
    "google-auth-library 9",
    "compute/metadata",
    "x/oauth2",
];

const STEPS: [&str; 5] = ["detect", "token", "again@3.5", "again@4", "again@4.5"];

/// The attempts of the session's first mint.
const TRIES: u32 = 3;

/// What libraries print if they conclude that they run elsewhere: then they use other sources and never
/// return.
const ELSEWHERE: [&str; 6] = [
    "default credentials",
    "DefaultCredentialsError",
    "not on GCE",
    "not running on",
    "not defined",
    "Unable to detect a Project Id",
];

/// A socket that leads to `google` from inside a network namespace. Ends with the test process.
fn way_out(folder: &Path, google: &FakeGoogle) -> String {
    let (path, to) = (folder.join("google"), google.address());
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for from in listener.incoming().map_while(Result::ok) {
            let Ok(out) = std::net::TcpStream::connect(to) else { return };
            let (mut from_back, mut out_back) = (from.try_clone().unwrap(), out.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut out_back, &mut from_back);
                let _ = from_back.shutdown(std::net::Shutdown::Both);
            });
            std::thread::spawn(move || {
                let (mut from, mut out) = (from, out);
                let _ = std::io::copy(&mut from, &mut out);
                let _ = out.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    path.display().to_string()
}

fn seen(client: &str, source: &Value) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/clients/matrix.py");
    let mut command = Command::new(python());
    command.arg(script).args(["--program", PROGRAM, "--client", client, "--source", &source.to_string()]);
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let rows: Value = serde_json::from_slice(&ran.stdout).unwrap();
    rows[0].clone()
}

/// What went wrong with this client.
fn fault(client: &str, credential: &dyn Fn(&FakeGoogle) -> String) -> Option<String> {
    let (google, folder) = (FakeGoogle::start(), Folder::new("troubled"));
    let file = folder.0.join("credential.json");
    std::fs::write(&file, credential(&google)).unwrap();
    google.outage(TRIES);
    let way_out = way_out(&folder.0, &google);
    let row = seen(client, &json!({"credential": file, "port": google.address().port(), "socket": way_out}));
    assert!(row["missing"].is_null(), "{client}: {}; scripts/setup --clients installs it", row["missing"]);
    let steps = &row["steps"];
    let error = |step: &str| steps[step]["error"].as_str();
    let good = |step: &str| steps[step].is_object() && error(step).is_none();
    let errors: Vec<&str> = STEPS.into_iter().filter_map(error).collect();
    let elsewhere = errors.iter().any(|error| ELSEWHERE.iter().any(|words| error.contains(words)));
    // A client that gives up shows the server's message, which says to ask again; Node's newest shows that
    // its 3 s were over.
    let words = ["503", "ask again", "operation was aborted"];
    let told = errors.iter().all(|error| words.iter().any(|words| error.contains(words)));
    let at_first = text(&row, "log").contains("no token yet: ");
    let well = good("detect") && good(STEPS[STEPS.len() - 1]) && told && at_first && !elsewhere;
    eprintln!("{client}: {steps}");
    let calls: Vec<u16> = google.calls().iter().map(|call| call.status).collect();
    (!well).then(|| format!("{client}: {steps}\n{}{calls:?}", text(&row, "log")))
}

/// All clients run at the same time, each with its own Google: they mostly wait.
fn bear(credential: impl Fn(&FakeGoogle) -> String + Sync) {
    let faults: Vec<String> = std::thread::scope(|scope| {
        let runs = CLIENTS.map(|client| scope.spawn(|| fault(client, &credential)));
        runs.into_iter().filter_map(|run| run.join().unwrap()).collect()
    });
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn clients_with_a_key_get_their_token_after_an_outage() {
    bear(|google| google.service_account("loader@sa-project.iam.gserviceaccount.com", rsa_key()));
}

#[test]
fn clients_with_a_login_get_their_token_after_an_outage() {
    bear(|google| google.user("somebody@example.com"));
}
