//! Containers on the host's network get an identity by a secret path on loopback, if the operator wants it
//! and the engine shares the loopback. The tests run in the engine's network.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use super::attacks::inspect;
use crate::support::raw::{Container, ask, token, until};
use crate::support::session::{Folder, Session, program, raw, task_image};

const TOKEN: &str = "/computeMetadata/v1/instance/service-accounts/default/token";

fn session() -> Session {
    let set = [("KFP_CREDS_HOST_LOOPBACK", "true")];
    Session::start("", &["--offline", "--all"], &set)
}

/// A container on the host's network, and the address and path in its environment: `127.0.0.1:PORT`,
/// `/SECRET`.
fn guest(session: &Session) -> (Container, String, String) {
    let id = session.ok(&["run", "-d", "--network", "host", &task_image(), "sleep", "120"]);
    let container = Container(id);
    let env = inspect(&container.0)["Config"]["Env"].clone();
    let env = env.as_array().unwrap().iter().map(|set| set.as_str().unwrap());
    let place = env.filter_map(|set| set.strip_prefix("GCE_METADATA_HOST=")).next().unwrap().to_string();
    let (at, secret) = place.split_once('/').unwrap();
    (container, at.into(), format!("/{secret}"))
}

/// Status and everything behind the date of a request from this machine.
fn get(at: &str, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(at).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer[9..12].parse().unwrap();
    let lines = answer.lines().skip(1).filter(|line| !line.to_ascii_lowercase().starts_with("date:"));
    (status, lines.collect::<Vec<_>>().join("\n"))
}

fn flavored(at: &str, path: &str) -> (u16, String) {
    get(at, path, "Metadata-Flavor: Google\r\n")
}

#[test]
fn a_task_on_the_hosts_network_has_its_own_identity() {
    let session = session();
    let (one, at, secret) = guest(&session);
    let (other, _, others) = guest(&session);
    for container in [&one, &other] {
        assert_eq!(token(&container.exec(&ask()))["container"], container.0.as_str());
    }
    assert_ne!(secret, others);
    let said = session.said();
    assert!(said.contains(&at) && !said.contains(&secret[1..]), "{said}");
    // The path alone gives the lease, from outside the container too.
    let (status, answer) = flavored(&at, &format!("{secret}{TOKEN}"));
    assert!(status == 200 && answer.contains("access_token"), "{answer}");
    assert_eq!(get(&at, &format!("{secret}{TOKEN}"), "").0, 403, "the protocol's own guards hold");
    let (status, answer) = flavored(&at, &format!("{secret}/computeMetadata"));
    assert!(status == 301 && answer.contains(&format!("http://{at}{secret}/computeMetadata/")), "{answer}");
    // The container cannot capture its neighbours' traffic on loopback.
    let host = inspect(&one.0)["HostConfig"].clone();
    assert!(host["CapDrop"].as_array().unwrap().contains(&"NET_RAW".into()), "{host}");
    for arguments in [&["--privileged"][..], &["--cap-add", "NET_RAW"], &["--pid", "host"]] {
        let image = task_image();
        let all = [&["run", "--rm", "--network", "host"], arguments, &[&image, "env"]].concat();
        assert!(!session.ok(&all).contains("GCE_METADATA_HOST="), "{arguments:?}");
    }
    // No other container may join its network.
    let joins = format!("container:{}", one.0);
    assert!(!session.docker(&["run", "--rm", "--network", &joins, &task_image(), "true"]).status.success());
    let (_, said) = session.end();
    assert!(said.contains("session ended 2 attached, 2 ended"), "{said}");
    assert!(TcpStream::connect(&at).is_err(), "nobody listens when the session has ended");
}

#[test]
fn each_cloud_answers_at_the_variables_of_a_task_on_the_host() {
    let config = "[aws]\ncredentials = \"offline\"\n[azure]\ncredentials = \"offline\"\n\
        [identity.default.aws]\nrole = \"arn:aws:iam::123456789012:role/loader\"\n[identity.default.azure]\n";
    let set = [("KFP_CREDS_HOST_LOOPBACK", "true")];
    let session = Session::start(config, &["--offline", "--all", "--config", "kfp-creds.toml"], &set);
    let (container, at, _) = guest(&session);
    let env = inspect(&container.0)["Config"]["Env"].clone();
    let value = |name: &str| {
        let mut all = env.as_array().unwrap().iter().map(|entry| entry.as_str().unwrap());
        all.find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=')).unwrap().to_owned()
    };
    let path = |url: &str| url.strip_prefix(&format!("http://{at}")).unwrap().to_owned();
    let (status, answer) = get(&at, &path(&value("AWS_CONTAINER_CREDENTIALS_FULL_URI")), "");
    assert!(status == 200 && answer.contains("\"AccessKeyId\":\"ASIA"), "{answer}");
    let token =
        path(&value("IDENTITY_ENDPOINT")) + "?api-version=2019-08-01&resource=https://storage.azure.com";
    let header = format!("X-IDENTITY-HEADER: {}\r\n", value("IDENTITY_HEADER"));
    let (status, answer) = get(&at, &token, &header);
    assert!(status == 200 && answer.contains("\"access_token\""), "{answer}");
    assert_eq!(get(&at, &token, "").0, 401, "the header is needed as well");
}

#[test]
fn the_secret_path_of_an_ended_lease_is_refused() {
    let session = session();
    let (one, at, secret) = guest(&session);
    let (_other, _, _) = guest(&session);
    assert_eq!(token(&one.exec(&ask()))["container"], one.0.as_str());
    let path = format!("{secret}{TOKEN}");
    let refused = flavored(&at, TOKEN);
    assert_eq!(refused.0, 404);
    // Every wrong request gets the same answer, which reveals nothing.
    let guess = format!("/{}{TOKEN}", "A".repeat(secret.len() - 1));
    let cut = format!("{}{TOKEN}", &secret[..secret.len() - 1]);
    for wrong in ["/", "/computeMetadata/v1/", guess.as_str(), &cut, &format!("/{path}"), "/%2e%2e/"] {
        assert_eq!(flavored(&at, wrong), refused, "{wrong}");
        assert_eq!(get(&at, wrong, ""), refused, "{wrong}");
        assert_eq!(get(&at, wrong, "x-kfp-creds-source: 1\r\n"), refused, "{wrong}");
    }
    raw(&["stop", "-t", "0", &one.0]);
    until("its end is reported", Duration::from_secs(5), || {
        session.said().lines().any(|line| line.contains("ended  ") && line.contains(one.short()))
    });
    assert_eq!(flavored(&at, &path), refused, "its container has ended");
    // A restart gives another lease of the same container.
    session.ok(&["start", &one.0]);
    assert_eq!(token(&one.exec(&ask()))["container"], one.0.as_str());
    assert_eq!(flavored(&at, &path).0, 200);
    session.ok(&["rm", "-f", &one.0]);
    until("gone", Duration::from_secs(5), || flavored(&at, &path) == refused);
}

/// Both by default, and if the program does not share the engine's loopback.
#[test]
fn an_unshared_loopback_gives_no_identity() {
    let image = task_image();
    let folder = Folder::new("apart");
    let command = ["--", "docker", "run", "--rm", "--network", "host", &image, "env"];
    let out = program(&folder.0).args(["run", "--offline", "--all"]).args(command).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (seen, said) = (text(&out.stdout), text(&out.stderr));
    assert!(out.status.success() && !seen.contains("GCE_METADATA_HOST="), "{seen}{said}");
    assert!(said.contains("it uses the host's network"), "{said}");

    let own = program(&folder.0);
    let root = text(&Command::new("id").arg("-u").output().unwrap().stdout) == "0\n";
    let mut apart = Command::new("unshare");
    apart.args(if root { &["-n"][..] } else { &["-r", "-n"] });
    apart.args(["sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]).arg(own.get_program());
    apart.env_clear().envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
    apart.env("KFP_CREDS_HOST_LOOPBACK", "true").current_dir(&folder.0);
    let out = apart.args(["run", "--offline", "--all"]).args(command).output().unwrap();
    let (seen, said) = (text(&out.stdout), text(&out.stderr));
    assert!(out.status.success() && !seen.contains("GCE_METADATA_HOST="), "{seen}{said}");
    let lines = said.lines().filter(|line| line.contains("network.host_loopback")).count();
    assert!(lines == 1 && said.contains("the engine's loopback is not this machine's"), "{said}");
}
