//! Who got what, afterwards and at the time: audit log, control socket, `cut-off`, rates.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::support::session::{Folder, Session, claims, program, task_image};

const TOKEN: &str = "curl -s -m 5 -H Metadata-Flavor:Google \
    http://$GCE_METADATA_HOST/computeMetadata/v1/instance/service-accounts/default/token";
const IDENTITY: &str = "curl -s -m 5 -H Metadata-Flavor:Google \
    http://$GCE_METADATA_HOST/computeMetadata/v1/instance/service-accounts/default/identity?audience=";

fn audited(config: &str, file: &Path) -> Session {
    let file = file.display().to_string();
    Session::start(config, &["--offline", "--all"], &[("KFP_CREDS_AUDIT_FILE", &file)])
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The program as a second command of the same user.
fn ask(arguments: &[&str]) -> Output {
    let folder = Folder::new("ask");
    program(&folder.0).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8([output.stdout.as_slice(), output.stderr.as_slice()].concat()).unwrap()
}

/// A container name for this test.
fn unique(what: &str) -> String {
    format!("kc-{what}-{}", std::process::id())
}

fn name(session: &Session) -> String {
    session.socket.file_stem().unwrap().to_string_lossy().into_owned()
}

#[test]
fn the_audit_log_says_who_got_what_and_no_token() {
    let folder = Folder::new("audit");
    let file = folder.0.join("audit.jsonl");
    let config = "[identity.default]\naudiences = [\"https://good.example\"]\nlifetime = \"30m\"\n";
    let session = audited(config, &file);
    let script = format!("{TOKEN}; echo; {TOKEN}; echo; {IDENTITY}https://good.example; echo; {IDENTITY}bad");
    let called = unique("audited");
    let shown = session.ok(&["run", "--name", &called, &task_image(), "sh", "-c", &script]);
    let id = session.ok(&["inspect", "-f", "{{.Id}}", &called]);
    session.wait_for("ended", Duration::from_secs(5));
    session.ok(&["run", "--rm", "--network", "none", &task_image(), "true"]);
    session.ok(&["rm", &called]);
    let (_, told) = session.end();

    let all = lines(&file);
    let of = |event: &str| all.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    let (made, minted) = (of("mint"), of("hand-out"));
    assert_eq!(minted.len(), 2, "one access token, asked for twice, and one ID token: {all:#?}");
    assert_eq!(made.len(), 2, "each was made once: {all:#?}");
    for (made, given) in made.iter().zip(&minted) {
        assert_eq!(made["mint"], given["mint"]);
    }
    assert_eq!((&made[0]["ahead"], &made[1]["ahead"]), (&true.into(), &Value::Null), "{all:#?}");
    for line in minted.iter().chain(&made) {
        assert_eq!((&line["container"], &line["name"]), (&id.as_str().into(), &called.as_str().into()));
        assert_eq!((&line["identity"], &line["outcome"]), (&"default".into(), &"ok".into()));
        assert_eq!(line["image"], task_image());
        assert_eq!(line["mint"].as_str().unwrap().len(), 16);
        assert_eq!(line["account"], "offline@kfp-creds.invalid");
        assert!(line["expires"].as_str().unwrap() > line["time"].as_str().unwrap());
        assert_eq!(line["session"].as_str().unwrap().len(), 8);
    }
    assert_eq!(minted[0]["scopes"], serde_json::json!(["https://www.googleapis.com/auth/cloud-platform"]));
    assert_eq!(
        (&minted[0]["kind"], &minted[1]["audience"]),
        (&"access".into(), &"https://good.example".into())
    );
    let refused = of("refusal");
    assert_eq!((refused.len(), &refused[0]["status"]), (1, &404.into()), "{refused:?}");
    assert!(
        refused[0]["why"]
            .as_str()
            .unwrap()
            .contains("identity default (by default) may not ask for this audience")
    );
    assert_eq!((of("attach").len(), of("not-attached").len()), (1, 1), "{all:#?}");
    let cut = of("cut-off");
    assert_eq!((cut.len(), &cut[0]["container"], &cut[0]["exit_code"]), (1, &id.into(), &0.into()));
    assert_eq!(cut[0]["outstanding"], serde_json::json!([minted[0]["mint"], minted[1]["mint"]]));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    // Neither the log nor the terminal contains a token, or a usable part of one.
    let text = std::fs::read_to_string(&file).unwrap() + &told;
    let token: Value = serde_json::from_str(shown.lines().next().unwrap()).unwrap();
    for token in [token["access_token"].as_str().unwrap(), shown.lines().nth(2).unwrap()] {
        let parts: Vec<&str> = token.split('.').collect();
        assert!(parts.len() == 3 && parts.iter().all(|part| !text.contains(part)), "{shown}");
    }
}

#[test]
fn a_full_disk_stops_no_token_and_is_reported_once() {
    let folder = Folder::new("full");
    let file = folder.0.join("audit.jsonl");
    symlink("/dev/full", &file).unwrap();
    let session = audited("", &file);
    for _ in 0..2 {
        let token = session.ok(&["run", "--rm", &task_image(), "sh", "-c", TOKEN]);
        assert!(token.contains("access_token"), "{token}");
    }
    session.wait_for("the audit log loses entries", Duration::from_secs(5));
    let asked = ask(&["status", "--session", &name(&session)]);
    assert!(said(&asked).contains("losing more now"), "{}", said(&asked));
    let (_, told) = session.end();
    assert_eq!(told.matches("the audit log loses entries").count(), 1, "{told}");
}

#[test]
fn a_full_disk_loses_audit_entries_and_no_tokens() {
    let folder = Folder::new("tiny");
    let session = Session::on_a_full_disk(&["--offline", "--all"], &folder.0);
    let token = || session.ok(&["run", "--rm", &task_image(), "sh", "-c", TOKEN]);
    let end = Instant::now() + Duration::from_secs(60);
    while !session.said().contains("the audit log loses entries") {
        assert!(Instant::now() < end, "the disk was never full:\n{}", session.said());
        assert!(token().contains("access_token"));
    }
    assert!(session.said().contains("tokens are served all the same"), "{}", session.said());
    assert!(token().contains("access_token"), "a full disk stops no token");
    assert_eq!(session.said().matches("the audit log loses entries").count(), 1);
    let disk = std::path::PathBuf::from(format!("/proc/{}/root{}", session.pid(), folder.0.display()));
    // The log has only whole lines, although the disk became full in the middle of one.
    let log = disk.join("audit.jsonl");
    let before = lines(&log).len();
    std::fs::remove_file(disk.join("filler")).unwrap();
    assert!(token().contains("access_token"));
    let line = session.wait_for("the audit log is written again", Duration::from_secs(5));
    let all = lines(&log);
    let lost: Vec<_> = all.iter().filter(|line| line["event"] == "lost").collect();
    assert!(lost.len() == 1 && all.len() > before, "{all:#?}");
    assert!(line.contains(&format!("{} entries were lost", lost[0]["entries"])), "{line} {}", lost[0]);
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn the_audit_log_is_rotated() {
    let folder = Folder::new("rotated");
    let file = folder.0.join("audit.jsonl");
    let session = audited("[audit]\nmax_bytes = 4096\nkeep = 1\n", &file);
    let script = format!("for n in $(seq 40); do {IDENTITY}https://$n.example >/dev/null; done");
    session.ok(&["run", "--rm", &task_image(), "sh", "-c", &script]);
    session.end();
    let older = folder.0.join("audit.jsonl.1");
    assert!(!folder.0.join("audit.jsonl.2").exists());
    for file in [&file, &older] {
        let about = std::fs::metadata(file).unwrap();
        assert!(about.len() <= 4096 && about.permissions().mode() & 0o777 == 0o600, "{about:?}");
    }
    assert_eq!(lines(&file).last().unwrap()["event"], "cut-off");
}

#[test]
fn a_container_is_cut_off_by_hand_at_once_and_for_good() {
    let session = Session::offline("", &["--all"]);
    let own = name(&session);
    // Prints the time, in milliseconds, of each token that it gets, ten times a second.
    let script =
        format!("while :; do if {TOKEN} | grep -q access_token; then date +got:%s%3N; fi; sleep 0.1; done");
    let called = unique("cut");
    let container = session.ok(&["run", "-d", "--name", &called, &task_image(), "sh", "-c", &script]);
    let end = Instant::now() + Duration::from_secs(20);
    while !session.ok(&["logs", &container]).contains("got:") {
        assert!(Instant::now() < end, "it never got a token: {}", session.said());
        std::thread::sleep(Duration::from_millis(50));
    }
    let status = ask(&["status", "--json", "--session", &own]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let row = &status[0]["leases"][0];
    assert_eq!(
        (&row["container"], &row["state"]),
        (&container.as_str().into(), &"live".into()),
        "{status:#}"
    );
    assert_eq!((&row["task"], row["tokens"].as_array().unwrap().len()), (&called.as_str().into(), 1));
    assert!(row["tokens"][0].get("value").is_none() && !status.to_string().contains("eyJ"));

    let cut = ask(&["cut-off", &called, "--session", &own]);
    let at = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let text = said(&cut);
    assert!(
        cut.status.success()
            && text.contains(&format!("cut off {called} ("))
            && text.contains("tokens that it holds: 1, the last"),
        "{text}"
    );
    session.wait_for("by hand", Duration::from_secs(1));
    std::thread::sleep(Duration::from_secs(3));
    let last = |logs: String| -> u64 { logs.lines().last().unwrap()["got:".len()..].parse().unwrap() };
    let got = last(session.ok(&["logs", &container]));
    assert!(got <= at + 100, "a token {} ms after the cut-off", got - at);
    assert_eq!(session.ok(&["inspect", "-f", "{{.State.Running}}", &container]), "true");

    // A restart does not bring the lease back, and it is not cut off twice.
    session.ok(&["restart", "-t", "0", &container]);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(last(session.ok(&["logs", &container])), got, "a restart brought the lease back");
    assert!(said(&ask(&["status", "--session", &own])).contains("  cut off  "));
    assert!(said(&ask(&["cut-off", "--all", "--session", &own])).contains("nothing to cut off"));
    let nobody = ask(&["cut-off", "no-such-container", "--session", &own]);
    assert_eq!(nobody.status.code(), Some(64), "{}", said(&nobody));
    session.ok(&["rm", "-f", &container]);
    assert!(said(&ask(&["status", "--session", &own])).contains("no container has an identity now"));
}

#[test]
fn metrics_count_and_contain_no_text_of_a_container() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = format!("127.0.0.1:{port}");
    let session = Session::start("", &["--offline", "--all"], &[("KFP_CREDS_METRICS_LISTEN", at.as_str())]);
    session.ok(&["run", "--rm", "--name", "kc-metered-in-vain", &task_image(), "sh", "-c", TOKEN]);
    session.wait_for("ended", Duration::from_secs(5));
    let fetch = |arguments: &[&str]| {
        let out = std::process::Command::new("curl").arg("-s").args(arguments).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    let text = fetch(&[&format!("http://{at}/metrics")]);
    let control = session.socket.with_extension("ctl");
    let same = fetch(&["--unix-socket", &control.display().to_string(), "http://localhost/metrics"]);
    let series = |text: &str| -> Vec<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.map(|line| line.rsplit_once(' ').unwrap().0.to_string()).collect()
    };
    assert_eq!(series(&text), series(&same));
    for line in [
        "kfp_creds_requests_total{route=\"token\",outcome=\"ok\"} 1",
        "kfp_creds_attaches_total{outcome=\"attached\"} 1",
        "kfp_creds_cut_offs_total{cause=\"ended\"} 1",
        "kfp_creds_leases 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains("kc-metered-in-vain") && !text.contains(&task_image()), "{text}");
    assert_eq!(fetch(&[&format!("http://{at}/status")]), "no such path\n");
    let rebound = fetch(&["-H", "Host: evil.example", &format!("http://{at}/metrics")]);
    assert_eq!(rebound, "the Host header names another server\n");
    assert_eq!(std::fs::metadata(&control).unwrap().permissions().mode() & 0o777, 0o600);
    session.end();
    assert!(!control.exists());
}

#[test]
fn the_page_needs_its_secret_path() {
    let session = Session::offline("", &["--all"]);
    let page = session.page.clone().unwrap();
    let fetch = |arguments: &[&str]| {
        let code = ["-s", "-i", "-m", "5"];
        let out = std::process::Command::new("curl").args(code).args(arguments).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    let html = fetch(&[&page]);
    assert!(html.starts_with("HTTP/1.1 200") && html.contains("<title>kfp-creds</title>"), "{html}");
    assert!(html.contains("content-security-policy: default-src 'none'"), "{html}");
    let status = fetch(&[&format!("{page}status")]);
    assert!(status.contains(&format!("\"session\":\"{}\"", name(&session))), "{status}");
    let (root, _) = page.trim_end_matches('/').rsplit_once('/').unwrap();
    for path in ["/", "/status", "/wrong/", "/wrong/status", "/metrics"] {
        assert!(fetch(&[&format!("{root}{path}")]).starts_with("HTTP/1.1 404"), "{path}");
    }
    let cut = fetch(&["-X", "POST", &format!("{page}cut-off?all")]);
    assert!(cut.starts_with("HTTP/1.1 404"), "the page must not cut off: {cut}");
    assert!(fetch(&["-H", "Host: evil.example", &page]).starts_with("HTTP/1.1 403"));
    assert!(!session.said().contains(&page), "only stdout may show the capability");
}

#[test]
fn an_identity_is_rate_limited_and_a_container_may_choose() {
    let config = "choose = [\"other\"]\n[identity.default]\nrate = 2\n[identity.other]\n";
    let session = Session::offline(config, &["--all"]);
    let codes = format!("for n in 1 2 3; do {TOKEN} -o /dev/null -w '%{{http_code}} '; done");
    let image = task_image();
    assert_eq!(session.ok(&["run", "--rm", &image, "sh", "-c", &codes]), "200 200 429");
    // gcloud accepts a 404 for an ID token, and fails on any other status.
    let identity = format!("{IDENTITY}https://a.example -w ' %{{http_code}}'");
    let said = session.ok(&["run", "--rm", &image, "sh", "-c", &identity]);
    assert!(said.contains("identity default has used its 2 requests of this minute"), "{said}");
    assert!(said.ends_with(" 404"), "{said}");
    let chosen = ["run", "--rm", "-e", "KFP_CREDS_IDENTITY=other", &image, "sh", "-c", &codes];
    assert_eq!(session.ok(&chosen), "200 200 200");
    session.ok(&["run", "--rm", "-e", "KFP_CREDS_IDENTITY=admin", &image, "true"]);
    session.wait_for("it may not choose the identity admin", Duration::from_secs(5));
}

#[test]
fn explain_says_why_a_container_got_its_identity() {
    let config = "[identity.loader]\n[[rule]]\nimage = \"other:*\"\nidentity = \"none\"\n\
        [[rule]]\nlabels = { team = \"a\" }\nidentity = \"loader\"\n";
    let session = Session::offline(config, &[]);
    let image = task_image();
    let own = name(&session);
    // For a container without an identity, each running session explains its own rules.
    let explain = |container: &str| {
        let text = said(&ask(&["explain", container]));
        let answers: Vec<String> = text.split("\n\n").map(String::from).collect();
        let ours = answers.iter().find(|answer| answer.contains(&format!("in session {own}:")));
        ours.cloned().unwrap_or(text)
    };
    let make = |more: &[&str]| session.ok(&[&["create"][..], more, &[&image, "true"]].concat());
    let (live, plain) = (make(&["--label", "team=a"]), make(&[]));
    let called = unique("privileged");
    let strong = make(&["--label", "team=a", "--privileged", "--name", &called]);
    let miss = format!("rule 1 does not match: image has to be other:*, but it is {image}\n");

    let text = explain(&live);
    assert!(text.starts_with(&miss) && text.contains("rule 2 matches\nidentity      loader\n"), "{text}");
    assert!(!text.contains("has no identity"), "{text}");
    let text = explain(&plain);
    assert!(text.starts_with(&miss), "{text}");
    assert!(text.contains("rule 2 does not match: label team has to be a, but it has none\n"), "{text}");
    assert!(text.contains("no identity: not a kfp task; attach it with --all or a [[rule]]\n"), "{text}");
    let text = explain(&called);
    assert!(text.contains("rule 2 matches\n"), "{text}");
    assert!(text.contains("it gets no identity nevertheless: it is privileged"), "{text}");
    assert!(text.contains(&format!("{called} has no identity in session")), "{text}");
    session.ok(&["rm", &live, &plain, &strong]);
}

/// The creator of a container chooses the name that the terminal and the page show.
#[test]
fn names_are_shown_as_text_wherever_they_are_shown() {
    let session = Session::offline("", &["--all"]);
    let evil = "<script>alert(1)<\u{1b}[2J\u{7}\u{202e}";
    let root = Folder::new("root");
    let root = root.0.display();
    let output = format!("{root}/my-etl-2026-11-23-06-04-22-567757/{evil}/executor_output.json");
    let input = serde_json::json!({"outputs": {"outputFile": output}}).to_string();
    let bind = format!("{root}:{root}:rw");
    let image = task_image();
    let task = ["--executor_input", &input, "--function_to_execute", evil];
    let made = [&["run", "-d", "-v", &bind, &image, "sh", "-c", "sleep 60", "sh"], &task[..]].concat();
    let id = session.ok(&made);
    session.wait_for("attached ", Duration::from_secs(5));
    let own = name(&session);
    let explained = said(&ask(&["explain", &id]));
    let shown = said(&ask(&["status", "--session", &own]));
    let json = said(&ask(&["status", "--json", "--session", &own]));
    let cut = said(&ask(&["cut-off", &id, "--session", &own]));
    for (what, text) in [
        ("explain", &explained),
        ("status", &shown),
        ("json", &json),
        ("cut-off", &cut),
        ("lines", &session.said()),
    ] {
        let raw = text.chars().find(|c| c.is_control() && *c != '\n');
        assert!(raw.is_none(), "{what} has {raw:?}: {text:?}");
    }
    assert!(cut.contains("my-etl") && shown.contains("<script>alert(1)<"), "{cut:?} {shown:?}");
    let page = session.page.clone().unwrap();
    let fetch = |url: &str| {
        let out = std::process::Command::new("curl").args(["-s", "-i", "-m", "5", url]).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    assert!(!fetch(&page).contains("alert(1)"), "the page itself holds no name");
    let status = fetch(&format!("{page}status"));
    assert!(
        status.contains("content-type: application/json") && status.contains("<script>alert(1)<"),
        "{status}"
    );
    session.ok(&["rm", "-f", &id]);
}

#[test]
fn status_watch_shows_changes() {
    let session = Session::offline("", &["--all"]);
    let folder = Folder::new("watch");
    let mut watching = program(&folder.0)
        .args(["status", "--watch", "--session", &name(&session)])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let mut out = watching.stdout.take().unwrap();
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = std::io::Read::read(&mut out, &mut piece) {
            let _ = tell.send(String::from_utf8_lossy(&piece[..read]).into_owned());
        }
    });
    let mut shown = String::new();
    let mut until = |text: &str| {
        while !shown.contains(text) {
            let more = told.recv_timeout(Duration::from_secs(20));
            shown.push_str(&more.unwrap_or_else(|_| panic!("never showed {text:?}:\n{shown}")));
        }
    };
    until("no container has an identity now");
    let called = unique("watched");
    let id = session.ok(&["run", "-d", "--name", &called, &task_image(), "sleep", "60"]);
    until(&called);
    session.ok(&["rm", "-f", &id]);
    watching.kill().unwrap();
    watching.wait().unwrap();
}

#[test]
fn without_a_session_commands_say_so() {
    let asked = ask(&["status", "--session", "00000000"]);
    assert_eq!(asked.status.code(), Some(69), "{}", said(&asked));
    let folder = Folder::new("empty");
    let runtime = folder.0.display().to_string();
    let status = |arguments: &[&str]| {
        let out = program(&folder.0).args(arguments).env("XDG_RUNTIME_DIR", &runtime).output().unwrap();
        (out.status.code(), said(&out))
    };
    assert_eq!(status(&["status"]), (Some(0), "no session runs\n".into()));
    assert_eq!(status(&["status", "--json"]), (Some(0), "[]\n".into()));
    assert_eq!(status(&["cut-off", "--all"]), (Some(69), "kfp-creds: no session runs\n".into()));
    assert_eq!(status(&["cut-off"]).0, Some(64));
}

#[test]
fn both_accounts_of_an_identity_are_listed_and_have_tokens() {
    let (one, two) = ("one@p.iam.gserviceaccount.com", "two@p.iam.gserviceaccount.com");
    let config = format!(
        "default = \"both\"\n[identity.both]\nservice_account = \"{one}\"\nother_accounts = [\"{two}\"]\n\
         [[rule]]\nimage = \"*\"\nidentity = \"both\"\n"
    );
    let session = Session::offline(&config, &[]);
    let at = "curl -s -H Metadata-Flavor:Google http://$GCE_METADATA_HOST/computeMetadata/v1/instance/service-accounts";
    let script = format!(
        "{at}/; echo; {at}/{two}/email; echo; {at}/{one}/token; echo; {at}/{two}/token; echo; {at}/{two}/aliases; \
         {at}/three@p.iam.gserviceaccount.com/token -o /dev/null -w '%{{http_code}}'"
    );
    let shown = session.ok(&["run", "--rm", &task_image(), "sh", "-c", &script]);
    let lines: Vec<&str> = shown.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines[..4], ["default/", &format!("{one}/"), &format!("{two}/"), two], "{shown}");
    let whose = |line: &str| {
        let token: Value = serde_json::from_str(line).unwrap();
        claims(token["access_token"].as_str().unwrap())["email"].as_str().unwrap().to_owned()
    };
    assert_eq!((whose(lines[4]).as_str(), whose(lines[5]).as_str()), (one, two), "{shown}");
    assert_eq!(lines.last().unwrap(), &"404", "{shown}");
}

#[test]
fn an_audience_that_is_not_allowed_is_a_404_that_names_the_rule() {
    let config = "[identity.narrow]\naudiences = [\"https://good.example\"]\n[[rule]]\ncomponent = \"nobody\"\n\
        identity = \"none\"\n[[rule]]\nimage = \"*\"\nidentity = \"narrow\"\n";
    let session = Session::offline(config, &[]);
    let script = format!(
        "{IDENTITY}https://good.example -o /dev/null -w '%{{http_code}} '; {IDENTITY}bad -w ' %{{http_code}}'"
    );
    let shown = session.ok(&["run", "--rm", &task_image(), "sh", "-c", &script]);
    assert!(shown.starts_with("200 ") && shown.ends_with(" 404"), "{shown}");
    assert!(shown.contains("identity narrow (by rule 2) may not ask for this audience"), "{shown}");
}
