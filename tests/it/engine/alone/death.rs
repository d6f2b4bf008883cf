//! Promise 3: after the die event, a container's address gets nothing; and callers do not notice that a relay
//! dies.

use std::process::Command;
use std::time::Duration;

use crate::support::fake_google::{CANARY, FakeGoogle};
use crate::support::raw::{Container, Running, SECOND, TOKEN, address, answer, ask, network, token, until};
use crate::support::session::{Folder, Session, docker_at, engine_socket, is_podman, raw, task_image};

const SLEEPS: [&str; 3] = ["sh", "-c", "exec sleep 60"];

/// A running container of a session that has got a token.
fn attached(session: &Session) -> Container {
    let container = Container::of(session, &[&[task_image().as_str()], &SLEEPS[..]].concat());
    session.ok(&["start", &container.0]);
    assert_eq!(container.asks().1, 200);
    container
}

/// A container that the engine itself starts at an address of the session's network, and that asks once.
fn thief(network: &str, address: &str, relay: &str) -> Container {
    let script = ask();
    Container::raw(&["--network", network, "--ip", address, &task_image(), "sh", "-c", &script, "sh", relay])
}

/// Runs the container as soon as the engine frees the address, since Podman cleans up after a container's
/// end; returns its output.
fn run_once_free(container: &Container) -> String {
    let mut out = String::new();
    until("the address is free", Duration::from_secs(5), || {
        let ran = docker_at(&engine_socket(), &["start", "-a", &container.0]);
        out = String::from_utf8_lossy(&ran.stdout).into_owned();
        ran.status.success()
    });
    out
}

#[test]
fn the_address_of_a_dead_container_gets_no_token() {
    let session = Session::offline(SECOND, &["--all"]);
    let (network, relay) = network(&session);
    let container = attached(&session);
    let at = address(&session, &container);
    let heir = thief(&network, &at, &relay);
    raw(&["kill", &container.0]);
    if is_podman() {
        // Podman polls its file of events four times a second, and may free the address before it reports the
        // die.
        let ended = || {
            session.said().lines().any(|line| line.contains("ended  ") && line.contains(container.short()))
        };
        until("the session hears of the end", Duration::from_secs(2), ended);
    }
    let (body, status, seconds) = answer(&run_once_free(&heir));
    assert_eq!(status, 503, "{body}\n{}", session.said());
    assert!(seconds < 3.0 && !body.contains("access_token"), "{seconds} s: {body}");
    // The other way onto the network: connecting an existing container.
    raw(&["rm", "-f", &container.0]);
    let script = ask();
    let guest = crate::support::raw::Internal::new();
    let late = Container::raw(&["--network", &guest.0, &task_image(), "sh", "-c", &script, "sh", &relay]);
    raw(&["network", "connect", "--ip", &at, &network, &late.0]);
    let (body, status, seconds) = answer(&late.run_raw());
    assert_eq!(status, 503, "{body}");
    assert!(seconds < 3.0, "{seconds} s");
}

/// Until the container that holds the lease was seen running, its address proves nothing.
#[test]
fn the_address_of_an_unstarted_container_gets_no_token() {
    let session = Session::offline(SECOND, &["--all"]);
    let (network, relay) = network(&session);
    let script = ask();
    let container = Container::of(&session, &[&task_image(), "sh", "-c", &script]);
    let thief = thief(&network, &address(&session, &container), &relay);
    let (body, status, seconds) = answer(&thief.run_raw());
    assert_eq!(status, 503, "{body}");
    assert!(seconds < 3.0, "{seconds} s");
    drop(thief);
    let own = session.ok(&["start", "-a", &container.0]);
    assert_eq!(token(&own)["container"], container.0);
}

/// Runs in the container's own network namespace, started by the engine itself: it asks without a pause,
/// prints when each answer came, and goes on after the container's death, as long as the engine keeps the
/// address.
const PROBER: &str = r"
import http.client, json, sys, time
end, tokens, refusals, last, connection = time.time() + 20, 0, [], None, None
while time.time() < end and not (tokens and time.time() - last > 0.6):
    try:
        connection = connection or http.client.HTTPConnection(sys.argv[1], timeout=0.04)
        connection.request('GET', '/' + sys.argv[2], headers={'Metadata-Flavor': 'Google'})
        reply = connection.getresponse()
        if b'access_token' in reply.read():
            tokens, last, refusals = tokens + 1, time.time(), []
            if tokens == 10: print('asking', flush=True)
        else: refusals.append(time.time())
    except (OSError, http.client.HTTPException):
        refusals.append(time.time())
        connection = None
print(json.dumps({'tokens': tokens, 'last': last, 'refusal': refusals[0] if refusals else None}), flush=True)
";

#[test]
fn the_last_token_goes_out_within_100_ms_of_the_die_event() {
    let session = Session::offline("", &["--all"]);
    let (_, relay) = network(&session);
    let mut delays = vec![];
    for _ in 0..5 {
        let container = attached(&session);
        let joined = format!("container:{}", container.0);
        let prober =
            Container::raw(&["--network", &joined, &task_image(), "python3", "-c", PROBER, &relay, TOKEN]);
        raw(&["start", &prober.0]);
        until("the prober asks", Duration::from_secs(10), || raw(&["logs", &prober.0]).contains("asking"));
        raw(&["kill", &container.0]);
        raw(&["wait", &prober.0]);
        let died = died_at(&container);
        let said = raw(&["logs", &prober.0]);
        let said: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        let after = |key: &str| (said[key].as_f64().unwrap_or(f64::NAN) - died) * 1e3;
        eprintln!(
            "{} tokens; last {:.1} ms after the die event, first refusal {:.1} ms",
            said["tokens"],
            after("last"),
            after("refusal")
        );
        assert!(said["tokens"].as_u64().unwrap() >= 10, "{said}");
        delays.push((after("last"), after("refusal")));
    }
    // The host does not record when it sends (that would cost every request), so this is the time at which
    // the prober read the answer: later, if a busy machine lets it wait for a processor.
    // Podman polls its file of events four times a second, and reports a die so much later.
    let told = if is_podman() { 250.0 } else { 0.0 };
    assert!(delays.iter().all(|(last, _)| *last < 100.0 + told), "{delays:?} ms");
    assert!(delays.iter().all(|(_, refusal)| *refusal < 1000.0), "{delays:?} ms");
}

/// The time of the container's die event, in seconds. Reads a stream without an end: with `--until`, Podman on a
/// busy machine did not return an event that was in its file.
fn died_at(container: &Container) -> f64 {
    let filter = format!("container={}", container.0);
    let mut command = Command::new("docker");
    command.args(["-H", &format!("unix://{}", engine_socket().display()), "events", "--since", "10m"]);
    command.args(["--filter", &filter, "--filter", "event=die", "--format", "{{.TimeNano}}"]);
    let events = Running::spawn(&mut command, None);
    until("the die event", Duration::from_secs(10), || events.out().ends_with('\n'));
    events.out().lines().last().unwrap().parse::<f64>().unwrap() / 1e9
}

/// Sees every byte that reaches its interface, at any port.
const SNIFFER: &str = r"
import socket, sys, time
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
wire.settimeout(0.2)
print('ready', time.time(), flush=True)
end, seen, frames = time.time() + 3.5, b'', 0
while time.time() < end:
    try: seen += wire.recv(65535); frames += 1
    except socket.timeout: pass
print('saw', frames, 'frames;', 'TOKEN' if sys.argv[1].encode() in seen else 'nothing', flush=True)
";

const NARROW: &str = "https://www.googleapis.com/auth/devstorage.read_only";

/// The worst case: the container's interface goes down first, so the relay never learns that the caller is
/// gone; then it dies while its token is being minted, and another container has its address and hardware
/// address when the token arrives.
#[test]
fn a_reply_in_flight_at_the_end_reaches_nobody() {
    let google = FakeGoogle::start();
    let folder = Folder::new("google");
    let file = folder.0.join("adc.json");
    std::fs::write(&file, google.user("dev@example.com")).unwrap();
    // Each round uses a scope that has no token yet.
    let scopes: Vec<String> = ('a'..='j').map(|last| format!("{NARROW}{last}")).collect();
    let config = format!("{SECOND}[identity.default]\nscopes = {scopes:?}\n");
    let endpoint = google.token_uri();
    let audit = folder.0.join("audit.jsonl");
    let environment = [
        ("KFP_CREDS_CREDENTIALS_FILE", file.to_str().unwrap()),
        ("KFP_CREDS_ENDPOINT_TOKEN", &endpoint),
        ("KFP_CREDS_AUDIT_FILE", audit.to_str().unwrap()),
    ];
    let session = Session::start(&config, &["--all"], &environment);
    let (network, relay) = network(&session);
    for scope in scopes {
        if in_flight(&session, &google, &network, &relay, &scope) {
            let audit = std::fs::read_to_string(&audit).unwrap();
            assert!(audit.contains(r#""event":"cut-off""#) && audit.contains(r#""event":"mint""#), "{audit}");
            assert!(!audit.contains(r#""event":"hand-out""#), "no caller may get the token: {audit}");
            return;
        }
    }
    panic!("this machine was never fast enough to put a container at the address before the token came");
}

/// False if the attacker was not in place before the token was minted: then the round proves nothing.
fn in_flight(session: &Session, google: &FakeGoogle, network: &str, relay: &str, scope: &str) -> bool {
    let wait = format!(
        "while [ ! -e /go ]; do sleep 0.02; done; \
         curl -s -m 9 -H Metadata-Flavor:Google 'http://{relay}/{TOKEN}?scopes={scope}'; sleep 60"
    );
    let container = Container::of(session, &[&task_image(), "sh", "-c", &wait]);
    session.ok(&["start", &container.0]);
    let at = address(session, &container);
    let joined = format!("container:{}", container.0);
    let image = task_image();
    let sleeps = [&[image.as_str()], &SLEEPS[..]].concat();
    let hand = Container::raw(&[&["--network", &joined, "--cap-add", "NET_ADMIN"], &sleeps[..]].concat());
    raw(&["start", &hand.0]);
    let find = format!("ip -o -4 addr | grep -F ' {at}/' | cut -d' ' -f2 | head -n 1");
    let interface = hand.exec(&find);
    // Podman gives NET_RAW on request.
    let heir = ["--network", network, "--ip", &at, "--cap-add", "NET_RAW", &image];
    let heir = Container::raw(&[&heir[..], &["python3", "-c", SNIFFER, CANARY]].concat());

    google.latency(Duration::from_millis(1900));
    let before = google.calls().len();
    container.exec(": >/go");
    hand.exec(&format!("sleep 0.15; ip link set {interface} down"));
    raw(&["kill", &container.0, &hand.0]);
    // Podman does not remove a container whose network another one uses.
    if is_podman() {
        raw(&["rm", "-f", &hand.0]);
        raw(&["rm", "-f", &container.0]);
    } else {
        raw(&["rm", "-f", &hand.0, &container.0]);
    }
    raw(&["start", &heir.0]);
    let ready = || raw(&["logs", &heir.0]).contains("ready");
    until("the heir is there", Duration::from_secs(10), ready);
    let in_time = google.calls().len() == before;
    until("the token is minted", Duration::from_secs(5), || google.calls().len() > before);
    google.latency(Duration::ZERO);
    raw(&["wait", &heir.0]);
    let said = raw(&["logs", &heir.0]);
    eprintln!("in time: {in_time}; {}", said.lines().last().unwrap());
    assert!(said.contains("nothing"), "{said}");
    in_time
}

/// Ten threads refresh as fast as they can for five seconds; only what reaches a caller counts.
const LOOPS: &str = r"
import json, sys, threading, time
import google.auth.compute_engine as gce, google.auth.transport.requests as transport
end, done, errors, longest = time.time() + float(sys.argv[1]), [], [], []
def loop():
    credentials, request, worst = gce.Credentials(), transport.Request(), 0
    while time.time() < end:
        began = time.time()
        try: credentials.refresh(request); done.append(1)
        except Exception as error: errors.append(repr(error)[:200])
        worst = max(worst, time.time() - began)
        time.sleep(0.05)
    longest.append(worst)
threads = [threading.Thread(target=loop) for _ in range(10)]
for thread in threads: thread.start()
print('going', flush=True)
for thread in threads: thread.join()
print(json.dumps({'refreshes': len(done), 'errors': errors[:3], 'longest': round(max(longest), 2)}), flush=True)
";

#[test]
fn a_killed_relay_is_replaced_and_no_caller_notices() {
    for config in ["", SECOND] {
        replaced(&Session::offline(config, &["--all"]));
    }
}

fn replaced(session: &Session) {
    let (network, relay) = network(session);
    let name = format!("kfp-creds-relay-{}", session.socket.file_stem().unwrap().to_string_lossy());
    let endpoint = || {
        let format = format!(
            "{{{{with index .NetworkSettings.Networks \"{network}\"}}}}{{{{.IPAddress}}}} {{{{.MacAddress}}}} {{{{.IPAMConfig}}}}{{{{end}}}}"
        );
        let out = docker_at(&engine_socket(), &["inspect", "-f", &format, &name]);
        String::from_utf8(out.stdout).unwrap().trim().to_string()
    };
    let before = endpoint();
    assert!(before.contains(&relay), "{before}");
    let loops: Vec<Container> =
        (0..5).map(|_| Container::of(session, &[&task_image(), "python3", "-c", LOOPS, "7"])).collect();
    let ids: Vec<&str> = loops.iter().map(|container| container.0.as_str()).collect();
    session.ok(&[&["start"], &ids[..]].concat());
    for container in &loops {
        until("it asks", Duration::from_secs(20), || raw(&["logs", &container.0]).contains("going"));
    }
    raw(&["kill", &name]);
    let replaced = session.wait_for("the relay died and was replaced after", Duration::from_secs(10));
    eprintln!("{replaced}");
    until("the relay is up", Duration::from_secs(5), || endpoint() == before);
    let took: u64 = replaced.split("after ").last().unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((10..3_000).contains(&took), "{replaced}");
    for container in &loops {
        assert_eq!(raw(&["wait", &container.0]), "0");
        let said = raw(&["logs", &container.0]);
        eprintln!("{said}");
        let said: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!(said["errors"], serde_json::json!([]), "{said}");
        assert!(said["refreshes"].as_u64().unwrap() > 50, "{said}");
    }
}
