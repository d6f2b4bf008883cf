//! Docker clients, verb by verb, at the engine and through sessions: `docs/internals/client-matrix.md` has
//! the results. `tests/python/matrix.py` runs the clients.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::session::{Session, engine_socket, nobody, python};

/// Verbs that differ on purpose, with the reason: (verb, note). Every other verb has to be equal.
const MEANT: [(&str, &str); 1] = [(
    "wait, after its removal",
    "the engine says 404, a session the exit code: kfp takes a 404 for success, so a session never forgets a code",
)];

/// Notes for readers about rows that are equal: (client, verb, note).
const NOTES: [(&str, &str, &str); 6] = [
    (
        "docker 28",
        "build, BuildKit",
        "needs the buildx plug-in, which the tested machine lacks: the same refusal",
    ),
    ("docker 20.10", "build, BuildKit", "the engine's own BuildKit, over `POST /session` and `/grpc`"),
    (
        "docker-py 7",
        "attach over a WebSocket",
        "a hand-made client: none of these speaks it on a unix socket",
    ),
    ("docker 20.10", "attach, and detach by its keys", "exit code 1 is this client's own"),
    ("docker 28", "stats, until it is interrupted", "this client goes on until the third Ctrl-C"),
    (
        "compose 1.29",
        "run --rm, at a terminal",
        "by docker 28, as compose does it: its own stream shows nothing, at the engine already",
    ),
];

const HEAD: &str = "# Docker clients through the proxy

Every verb runs once straight at the engine, once through a session that does not attach the container (*proxied*), and
once through a session that does (*attached*). What a person or program sees (exit code, stdout, stderr, the terminal,
files that came back) is hashed after ids, names, addresses, pids and times are replaced; *equal* means the same hash as
without a session. For *attached* what a session adds is taken out of `inspect` first (the variables and hosts entries
of the metadata server, a label, the dropped NET_RAW, the second network), and a difference that is left is a failure.
Written by the test `engine::matrix`, which fails when a verdict changes.
Clients with conventions of their own have tests of their own, which compare a run at the engine with one through a session: dockerode and
Testcontainers for Node (`engine::node_clients`, which also starts a dev container by its CLI and runs jobs of gitlab-ci-local), Testcontainers for Python,
python-on-whales and, where `--clients-all` has installed it, Airflow's DockerOperator (`engine::python_clients`).
";

#[test]
fn clients_see_the_same_through_a_session() {
    if std::env::var("KFP_CREDS_TEST_NO_DOCKER").is_ok_and(|value| value == "1") {
        eprintln!("KFP_CREDS_TEST_NO_DOCKER=1: no client is run");
        return;
    }
    let (proxied, attached) = (Session::offline("", &[]), Session::offline("", &["--all"]));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/matrix.py");
    let ran = Command::new(python())
        .arg(script)
        .arg(format!("--column=direct={}", engine_socket().display()))
        .arg(format!("--column=proxied={}", proxied.socket.display()))
        .arg(format!("--column=attached={}", attached.socket.display()))
        .envs(nobody())
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let seen: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let rows = seen["rows"].as_array().unwrap();
    assert!(rows.len() > 100, "only {} rows", rows.len());
    let faults: Vec<String> = rows.iter().filter_map(fault).collect();
    assert!(faults.is_empty(), "{} verbs are not as they should be:\n{}", faults.len(), faults.join("\n"));
    compare(&document(&seen));
}

/// What is wrong with a row, with the first lines that differ.
fn fault(row: &Value) -> Option<String> {
    let (client, verb) = (row["client"].as_str().unwrap(), row["verb"].as_str().unwrap());
    let meant = MEANT.iter().any(|(name, _)| *name == verb);
    let differs = !equal(row, "proxied") || !equal(row, "attached");
    let errors: String = row["errors"].as_array().unwrap().iter().map(|e| e.as_str().unwrap()).collect();
    if differs == meant && errors.is_empty() {
        return None;
    }
    let mut text = format!("{client}, {verb}: {}\n{errors}", if differs { "differs" } else { "is equal" });
    for column in ["proxied", "attached"] {
        let lines = |column: &str| row["seen"][column].as_str().unwrap().lines().map(str::to_string);
        let pairs = lines("direct").zip(lines(column)).filter(|(direct, other)| direct != other);
        for (direct, other) in pairs.take(3) {
            writeln!(text, "  direct   {direct}\n  {column:8} {other}").unwrap();
        }
    }
    Some(text)
}

fn equal(row: &Value, column: &str) -> bool {
    row["hashes"][column] == row["hashes"]["direct"]
}

fn document(seen: &Value) -> String {
    let mut text = String::from(HEAD);
    for (client, version) in seen["clients"].as_object().unwrap() {
        let version = version.as_str().unwrap();
        write!(text, "\n## {client} ({version})\n\n| verb | hash | proxied | attached | note |\n| --- | --- | --- | --- | --- |\n")
            .unwrap();
        let rows = seen["rows"].as_array().unwrap().iter().filter(|row| row["client"] == **client);
        for row in rows {
            let verb = row["verb"].as_str().unwrap();
            let cell = |column: &str| match equal(row, column) {
                true => "equal".to_string(),
                false => format!("differs ({})", prefix(row, column)),
            };
            let note =
                NOTES.iter().find(|(name, of, _)| name == client && *of == verb).map(|(_, _, note)| *note);
            let note = note.or_else(|| MEANT.iter().find(|(of, _)| *of == verb).map(|(_, note)| *note));
            let (hash, verb) = (prefix(row, "direct"), verb.replace('|', "\\|"));
            let (one, two) = (cell("proxied"), cell("attached"));
            writeln!(text, "| {verb} | `{hash}` | {one} | {two} | {} |", note.unwrap_or_default()).unwrap();
        }
    }
    text
}

fn prefix<'a>(row: &'a Value, column: &str) -> &'a str {
    &row["hashes"][column].as_str().unwrap()[..8]
}

/// The claims of a document, by client and verb. Hashes and versions depend on the machine; verdicts do not.
fn verdicts(document: &str) -> BTreeMap<(String, String), Vec<String>> {
    let (mut client, mut found) = (String::new(), BTreeMap::new());
    for line in document.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            client = heading.split(" (").next().unwrap_or_default().to_string();
        }
        let cells: Vec<&str> = line.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
        if let [verb, hash, proxied, attached, note] = cells.as_slice()
            && hash.starts_with('`')
        {
            let word = |cell: &str| cell.split(" (").next().unwrap_or_default().to_string();
            let claims = vec![word(proxied), word(attached), (*note).to_string()];
            found.insert((client.clone(), (*verb).to_string()), claims);
        }
    }
    found
}

fn compare(document: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/internals/client-matrix.md");
    let (was, is) = (verdicts(&std::fs::read_to_string(&file).unwrap_or_default()), verdicts(document));
    if was != is {
        std::fs::write(&file, document).unwrap();
        let keys: BTreeSet<_> = was.keys().chain(is.keys()).collect();
        let changed: Vec<_> = keys.into_iter().filter(|key| was.get(*key) != is.get(*key)).take(5).collect();
        panic!(
            "docs/internals/client-matrix.md differed from the results; it is rewritten now, look: {changed:?} ..."
        );
    }
}

#[test]
fn a_difference_is_a_fault_and_verdicts_are_read_back() {
    let row = |verb: &str, attached: &str| {
        let seen = serde_json::json!({"direct": "one", "proxied": "one", "attached": attached});
        let attached = if attached == "one" { "1111111111" } else { "2222222222" };
        let hashes =
            serde_json::json!({"direct": "1111111111", "proxied": "1111111111", "attached": attached});
        serde_json::json!({"client": "docker 28", "verb": verb, "hashes": hashes, "seen": seen, "errors": []})
    };
    assert_eq!(fault(&row("run | it", "one")), None);
    assert!(fault(&row("run | it", "two")).unwrap().contains("direct   one\n  attached two"));
    assert_eq!(fault(&row(MEANT[0].0, "two")), None);
    assert!(fault(&row(MEANT[0].0, "one")).unwrap().contains("is equal"));
    let table = |attached: &str| {
        let rows = [row("run | it", attached)];
        verdicts(&document(&serde_json::json!({"clients": {"docker 28": "28.1"}, "rows": rows})))
    };
    assert_eq!(table("one").len(), 1);
    assert_ne!(table("one"), table("two"));
}
