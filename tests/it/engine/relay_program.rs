//! The separate relay program, as `scripts/relay` builds it: from a folder, and in an image that the engine
//! pulled from a registry.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::raw::{Container, ask, token};
use crate::support::session::{Folder, Session, is_podman, program, raw, task_image};

/// The folder with the relay for this machine; `scripts/setup --all` has built it, and `scripts/relay` checks
/// that it is current.
fn relays() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = Command::new(root.join("scripts/relay")).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let file = PathBuf::from(String::from_utf8(out.stdout).unwrap().trim());
    file.parent().unwrap().display().to_string()
}

fn relay_of(session: &Session, format: &str) -> String {
    let name = format!("kfp-creds-relay-{}", session.socket.file_stem().unwrap().to_string_lossy());
    raw(&["inspect", "-f", format, &name])
}

fn serves(session: &Session) {
    let container = Container::of(session, &[&task_image(), "sh", "-c", &ask()]);
    assert_eq!(token(&session.ok(&["start", "-a", &container.0]))["container"], container.0);
}

/// Resident memory of a process, in KiB.
fn resident(pid: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn the_relay_needs_an_image_of_3_mb_and_3_mib_of_memory() {
    let environment = [("KFP_CREDS_RELAY_FOLDER", &relays() as &str)];
    let session = Session::start("", &["--offline", "--all"], &environment);
    serves(&session);
    let size: u64 =
        raw(&["image", "inspect", "-f", "{{.Size}}", &relay_of(&session, "{{.Image}}")]).parse().unwrap();
    assert!((500_000..=3_000_000).contains(&size), "{size} bytes");
    let many = format!("for n in $(seq 50); do {} >/dev/null; done", ask());
    Container::of(&session, &[&task_image(), "sleep", "60"]);
    session.ok(&["run", "--rm", &task_image(), "sh", "-c", &many]);
    let memory = resident(&relay_of(&session, "{{.State.Pid}}"));
    assert!((500..=3072).contains(&memory), "{memory} KiB");
    drop(session);

    let cells = Session::start("isolation = \"network\"\n", &["--offline", "--all"], &environment);
    serves(&cells);
    drop(cells);

    // The probe of `check` uses it, too.
    let folder = Folder::new("relay");
    let mut check = program(&folder.0);
    let out = check.envs(environment).args(["check", "--offline"]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("got a token at"), "{text}{}", String::from_utf8_lossy(&out.stderr));
}

/// A registry with one image that can only be pulled.
struct Registry {
    at: String,
    reference: String,
}

/// Serves `archive`, which is made for `docker load`, as an OCI image.
fn registry(archive: &Path) -> Registry {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(std::fs::File::open(archive).unwrap()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let (name, mut bytes) = (entry.path().unwrap().display().to_string(), vec![]);
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(name, bytes);
    }
    let config = files.iter().find(|(name, _)| name.len() == 69).map(|(_, bytes)| bytes.clone()).unwrap();
    let layer = files.remove("layer.tar").unwrap();
    let kind = |what: &str| format!("application/vnd.oci.image.{what}");
    let about = |what: &str, bytes: &[u8]| json!({"mediaType": kind(what), "size": bytes.len(), "digest": digest(bytes)});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": kind("manifest.v1+json"),
        "config": about("config.v1+json", &config),
        "layers": [about("layer.v1.tar", &layer)],
    })
    .to_string()
    .into_bytes();
    let reference = digest(&manifest);
    let blobs: BTreeMap<String, (String, Vec<u8>)> = [
        (kind("manifest.v1+json"), manifest),
        (kind("config.v1+json"), config),
        (kind("layer.v1.tar"), layer),
    ]
    .into_iter()
    .map(|(kind, bytes)| (digest(&bytes), (kind, bytes)))
    .collect();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut line = String::new();
            let mut reader = BufReader::new(&stream);
            // The engine tries TLS first, which is not text.
            if reader.read_line(&mut line).is_err() {
                continue;
            }
            while reader.read_line(&mut String::new()).is_ok_and(|length| length > 2) {}
            let (method, path) = line.split_once(' ').unwrap_or_default();
            let path = path.split(' ').next().unwrap_or_default();
            let found = path.rsplit_once('/').and_then(|(_, last)| blobs.get(last));
            let empty = (String::from("application/json"), b"{}".to_vec());
            let (status, (kind, bytes)) = match (path, found) {
                ("/v2/", _) => ("200 OK", &empty),
                (_, Some(found)) => ("200 OK", found),
                _ => ("404 Not Found", &empty),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\nConnection: close\r\n\r\n",
                bytes.len(),
                digest(bytes),
            );
            let body = if method == "HEAD" { &[][..] } else { bytes };
            let _ = (&stream).write_all(head.as_bytes()).and_then(|()| (&stream).write_all(body));
        }
    });
    Registry { reference: format!("{at}/kfp-creds-relay@{reference}"), at }
}

fn digest(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    hash.as_ref().iter().fold("sha256:".into(), |text, byte| format!("{text}{byte:02x}"))
}

#[test]
fn an_engine_with_the_relay_image_is_not_loaded_again() {
    let (folder, relays) = (Folder::new("relay"), relays());
    let archive = folder.0.join("relay.tar");
    let written = |file: &Path| {
        let mut command = program(&folder.0);
        command.arg("relay-image").arg(file).env("KFP_CREDS_RELAY_FOLDER", &relays);
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_string()
    };
    let name = written(&archive);
    let again = folder.0.join("again.tar");
    written(&again);
    assert!(std::fs::read(&archive).unwrap() == std::fs::read(&again).unwrap(), "not the same image again");
    let reference = if is_podman() {
        // Podman knows the digest of a loaded image; a registry without TLS would have to be allowed first.
        raw(&["load", "-i", &archive.display().to_string()]);
        let known =
            raw(&["image", "inspect", "-f", "{{index .RepoDigests 0}}", &format!("localhost/{name}")]);
        known.trim_start_matches("localhost/").to_string()
    } else {
        let registry = registry(&archive);
        let absent = format!("{}/kfp-creds-relay@{}", registry.at, digest(b"another"));
        let mut command = program(&folder.0);
        let out = command.args(["check", "--offline", "--relay-image", &absent]).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(text.contains(&format!("docker pull {absent}")), "{text}");
        raw(&["pull", &registry.reference]);
        registry.reference
    };
    let id = raw(&["image", "inspect", "-f", "{{.Id}}", &reference]);
    let start = |environment: &[(&str, &str)]| {
        let session = Session::start("", &["--offline", "--all", "--relay-image", &reference], environment);
        serves(&session);
        assert_eq!(
            relay_of(&session, "{{.Image}}").trim_start_matches("sha256:"),
            id.trim_start_matches("sha256:")
        );
        session.end().1
    };
    let said = start(&[("KFP_CREDS_RELAY_FOLDER", &relays)]);
    assert!(!said.contains("loading the relay image") && !said.contains("not the relay"), "{said}");
    // A relay of another build still serves, and the session reports it.
    let other = folder.0.join("other");
    std::fs::create_dir(&other).unwrap();
    for entry in std::fs::read_dir(&relays).unwrap() {
        let path = entry.unwrap().path();
        let bytes = [std::fs::read(&path).unwrap(), vec![0]].concat();
        std::fs::write(other.join(path.file_name().unwrap()), bytes).unwrap();
    }
    let said = start(&[("KFP_CREDS_RELAY_FOLDER", &other.display().to_string())]);
    assert!(said.contains("relay_image is not the relay of this version"), "{said}");
    raw(&["rmi", &reference]);
}
