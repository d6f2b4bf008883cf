//! `serve --tls`, used by Docker's own clients.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::raw::{ask, token, until};
use crate::support::served::Served;
use crate::support::session::{Folder, python, raw, task_image};

/// A session, and the directory of the certificates that it makes.
fn served(folder: &Folder) -> (Served, PathBuf) {
    let tls = folder.0.join("its certificates");
    let served = Served::start(&folder.0, &["--all", "--tls", tls.to_str().unwrap()]);
    (served, tls)
}

/// A program with only the variables of the ready line.
fn client(served: &Served, name: &str) -> Command {
    let mut command = Command::new(name);
    command.env_clear().env("PATH", std::env::var("PATH").unwrap()).env("NO_GCE_CHECK", "true");
    for name in ["DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"] {
        command.env(name, served.variable(name));
    }
    command
}

fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

const PYTHON: &str = "
import docker, sys
client = docker.from_env()
print(client.containers.run(sys.argv[1], ['echo', 'from docker-py'], remove=True).decode())
";

#[test]
fn dockers_clients_use_a_session_with_its_certificates() {
    let folder = Folder::new("tls");
    let (served, tls) = served(&folder);
    assert_eq!(Path::new(&served.variable("DOCKER_CERT_PATH")), tls.canonicalize().unwrap());
    assert!(served.variable("DOCKER_HOST").starts_with("tcp://127.0.0.1:"));
    let image = task_image();
    // A token, and with it the whole life of an attached container.
    let out = client(&served, "docker").args(["run", "--rm", &image, "sh", "-c", &ask()]).output().unwrap();
    assert!(out.status.success(), "{}", said(&out));
    assert!(token(&String::from_utf8(out.stdout).unwrap())["container"].is_string());
    // The container sees the end of stdin, and its output still arrives.
    let mut cat = client(&served, "docker")
        .args(["run", "--rm", "-i", &image, "sh", "-c", "cat; echo the end; exit 6"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut cat.stdin.take().unwrap(), b"said\n").unwrap();
    let out = cat.wait_with_output().unwrap();
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(6), &b"said\nthe end\n"[..]));
    // docker-py, which kfp uses; and the variable that overrides its ca.pem.
    let run = |bundle: Option<&str>| {
        let mut command = client(&served, &python());
        command.args(["-c", PYTHON, &image]);
        bundle.map(|path| command.env("REQUESTS_CA_BUNDLE", path));
        command.output().unwrap()
    };
    let out = run(None);
    assert!(out.status.success() && said(&out).contains("from docker-py"), "{}", said(&out));
    let other = folder.0.join("other");
    crate::support::far_engine::certificates(&other);
    let out = run(other.join("ca.pem").to_str());
    assert!(!out.status.success() && said(&out).contains("CERTIFICATE_VERIFY_FAILED"), "{}", said(&out));
    let unset = served.ready["unset"].as_array().unwrap();
    assert!(unset.iter().any(|name| name == "REQUESTS_CA_BUNDLE"), "{unset:?}");
    // Without a certificate, and with one of another CA.
    let out = client(&served, "docker").env("DOCKER_CERT_PATH", &other).arg("version").output().unwrap();
    assert!(!out.status.success(), "{}", said(&out));
    std::fs::copy(tls.join("ca.pem"), other.join("ca.pem")).unwrap();
    let out = client(&served, "docker").env("DOCKER_CERT_PATH", &other).arg("version").output().unwrap();
    assert!(!out.status.success() && !said(&out).contains("Server:"), "{}", said(&out));
}

#[test]
fn certificates_are_removed_even_if_the_session_is_killed() {
    let folder = Folder::new("tls");
    let (mut first, tls) = served(&folder);
    let files = ["ca.pem", "cert.pem", "key.pem"].map(|name| tls.join(name));
    assert!(files.iter().all(|file| file.exists()));
    first.signal("-TERM");
    assert!(first.ended(Duration::from_secs(10)).is_some_and(|status| status.success()));
    assert!(!tls.exists(), "the directory was made by the session");

    let (mut killed, _) = served(&folder);
    let link = PathBuf::from(killed.text("socket")).canonicalize().unwrap().with_extension("tls");
    assert_eq!(std::fs::read_link(&link).unwrap(), tls.canonicalize().unwrap());
    killed.signal("-KILL");
    killed.child.wait().unwrap();
    assert!(files.iter().all(|file| file.exists()));
    let label = format!("label=kfp-creds.session={}", killed.text("session"));
    until("its relay has ended", Duration::from_secs(10), || {
        raw(&["ps", "-q", "--filter", &label, "--filter", "status=running"]).is_empty()
    });
    // The next session removes them, although it makes none itself.
    let next = Served::start(&folder.0, &[]);
    until("they are swept", Duration::from_secs(10), || files.iter().all(|file| !file.exists()));
    assert!(link.symlink_metadata().is_err());
    drop(next);
}
