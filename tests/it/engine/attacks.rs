//! What a hostile component, image or client of the proxy tries in order to be somebody else. Design decisions
//! 6, 9, 22 and 23; `docs/THREATS.md` says which test stands for which threat.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::floods::{ATTACKER, attack, facts};
use crate::support::session::{Folder, Session, docker_at, engine_socket, program, raw, task_image};
use crate::support::stand;

/// A name that no other test has.
fn unused(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("kc-{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Removed at the end of the test, past every session.
struct Made(&'static str, String);

impl Drop for Made {
    fn drop(&mut self) {
        let force: &[&str] = if self.0 == "network" { &[] } else { &["-f"] };
        docker_at(&engine_socket(), &[&[self.0, "rm"], force, &[&self.1]].concat());
    }
}

fn create(socket: &Path, name: &str, body: &Value) -> (u16, String) {
    let mut body = body.clone();
    body["Image"] = task_image().into();
    stand::call(socket, &format!("POST /v1.41/containers/create?name={name}"), &body.to_string())
}

fn inspect(container: &str) -> Value {
    let (status, body) =
        stand::call(&engine_socket(), &format!("GET /v1.41/containers/{container}/json"), "");
    if status == 404 { Value::Null } else { serde_json::from_str(&body).unwrap() }
}

/// The name of the session's network and the relay's name and id.
fn ours(session: &Session) -> (String, String, String) {
    let name = session.socket.file_stem().unwrap().to_string_lossy().into_owned();
    let network = raw(&[
        "network",
        "ls",
        "--format",
        "{{.Name}}",
        "--filter",
        &format!("label=kfp-creds.session={name}"),
    ]);
    let relay = format!("kfp-creds-relay-{name}");
    let id = inspect(&relay)["Id"].as_str().unwrap().to_string();
    (network, relay, id)
}

fn address(container: &str, network: &str) -> String {
    inspect(container)["NetworkSettings"]["Networks"][network]["IPAddress"]
        .as_str()
        .unwrap_or_default()
        .into()
}

/// A leased container that does nothing, and the session's network.
fn sleeper(session: &Session) -> (Made, String) {
    let name = unused("neighbour");
    session.ok(&["run", "-d", "--name", &name, &task_image(), "sleep", "120"]);
    (Made("container", name.clone()), inspect(&name)["Id"].as_str().unwrap().to_string())
}

/// Whether a created container is on a network of ours.
fn attached(made: &Value) -> bool {
    made["NetworkSettings"]["Networks"].as_object().unwrap().keys().any(|name| name.starts_with("kfp-creds"))
}

#[test]
fn who_could_speak_for_a_neighbour_gets_no_identity() {
    let session = Session::offline("", &["--all"]);
    for host in [
        // Without the rule about effective sets: CapAdd wins over our CapDrop, and the packet socket opens.
        json!({"CapAdd": ["NET_RAW"]}),
        json!({"CapAdd": ["CAP_NET_RAW"]}),
        json!({"CapAdd": ["net_raw"], "CapDrop": ["ALL"]}),
        json!({"capadd": ["Cap_Net_Raw"]}),
        json!({"CapAdd": ["ALL"]}),
        json!({"CapAdd": ["NET_ADMIN"]}),
        json!({"CapAdd": ["SYS_ADMIN"]}),
        json!({"Privileged": true}),
        json!({"privileged": true, "CapDrop": ["ALL"]}),
        json!({"NetworkMode": "host"}),
        json!({"PidMode": "host"}),
        json!({"Sysctls": {"net.ipv4.ip_nonlocal_bind": "1"}}),
        json!({"Sysctls": {"net/ipv4/conf/all/proxy_arp": "1"}}),
    ] {
        let made = Made("container", unused("strong"));
        let (status, answer) = create(&session.socket, &made.1, &json!({"HostConfig": host}));
        assert_eq!(status, 201, "{host} {answer}");
        let found = inspect(&made.1);
        assert!(!attached(&found), "{host}: {found}");
        assert!(!found["Config"]["Env"].to_string().contains("GCE_METADATA"), "{host}");
        let said = session.wait_for(&made.1, Duration::from_secs(2));
        assert!(said.contains("not attached"), "{said}");
    }
    let made = Made("container", unused("plain"));
    create(&session.socket, &made.1, &json!({}));
    assert!(attached(&inspect(&made.1)), "the same without any of it is attached");
}

#[test]
fn a_leased_container_cannot_speak_from_a_neighbours_address() {
    let session = Session::offline("", &["--all"]);
    let (_made, neighbour) = sleeper(&session);
    let at = address(&neighbour, &ours(&session).0);
    let tried = attack(&session, &["spoof", &at]);
    for (trick, outcome) in tried.as_object().unwrap() {
        assert_ne!(outcome, "done", "{trick}: {tried}");
    }
    assert_eq!(tried["packet socket"], "Operation not permitted");
    assert_eq!(tried["bind transparent"], "Operation not permitted");
    // What the engine gives by default, on a network that leads nowhere: the packet socket opens.
    let network = Made("network", unused("alone"));
    raw(&["network", "create", "--internal", &network.1]);
    let image = task_image();
    let default = [
        "run",
        "--rm",
        "--network",
        &network.1,
        "-e",
        "GCE_METADATA_HOST=127.0.0.1",
        &image,
        "python3",
        "-c",
        ATTACKER,
        "spoof",
        &at,
    ];
    let default = facts(&docker_at(&engine_socket(), &default));
    assert_eq!(default["packet socket"], "done", "{default}");
}

#[test]
fn no_namespace_of_a_leased_container_can_be_joined() {
    let session = Session::offline("", &["--all"]);
    let (made, id) = sleeper(&session);
    for reference in [made.1.as_str(), &id, &id[..12], &id[..7], &format!("/{}", made.1)] {
        for key in ["NetworkMode", "PidMode", "IpcMode", "networkmode", "Networ\u{212a}Mode", "pidMODE"] {
            let intruder = Made("container", unused("intruder"));
            let body = json!({"HostConfig": {key: format!("container:{reference}")}});
            let (status, answer) = create(&session.socket, &intruder.1, &body);
            assert_eq!(status, 403, "{key} {reference}: {answer}");
            assert_eq!(inspect(&intruder.1), Value::Null);
        }
        let (status, answer) =
            stand::call(&session.socket, &format!("POST /v1.41/build?networkmode=container:{reference}"), "");
        assert!(status == 403 || status == 400, "{status} {answer}");
    }
    // Also when it does not run, for it can be started again.
    session.ok(&["kill", &made.1]);
    let body = json!({"HostConfig": {"NetworkMode": format!("container:{id}")}});
    assert_eq!(create(&session.socket, &unused("intruder"), &body).0, 403);
}

/// Between the engine's create and the lease a container was not known to be leased: 20 of 20 joins won.
#[test]
fn no_join_wins_against_the_create_of_its_victim() {
    let session = Session::offline("", &["--all"]);
    for _ in 0..8 {
        let victim = Made("container", unused("victim"));
        let over = Arc::new(AtomicBool::new(false));
        let joiners = [(); 2].map(|()| {
            let (socket, name, over) = (session.socket.clone(), victim.1.clone(), over.clone());
            std::thread::spawn(move || {
                let mode = json!({"HostConfig": {"NetworkMode": format!("container:{name}")}});
                let exec = json!({"Privileged": true, "Cmd": ["true"]}).to_string();
                while !over.load(Ordering::SeqCst) {
                    let intruder = Made("container", unused("intruder"));
                    let (status, answer) = create(&socket, &intruder.1, &mode);
                    assert!(status == 404 || status == 403, "{status} {answer}");
                    let line = format!("POST /v1.41/containers/{name}/exec");
                    let (status, answer) = stand::call(&socket, &line, &exec);
                    // 409: the engine has it, and it does not run; it was asked, so it was let through.
                    assert!(status == 404 || status == 403, "{status} {answer}");
                }
            })
        });
        std::thread::sleep(Duration::from_millis(20));
        let (status, answer) = create(&session.socket, &victim.1, &json!({"Cmd": ["true"]}));
        std::thread::sleep(Duration::from_millis(30));
        over.store(true, Ordering::SeqCst);
        assert_eq!(status, 201, "{answer}");
        joiners.into_iter().for_each(|joiner| joiner.join().unwrap());
    }
}

#[test]
fn another_sessions_containers_and_network_are_closed_as_well() {
    let (one, two) = (Session::offline("", &["--all"]), Session::offline("", &["--all"]));
    let (made, id) = sleeper(&one);
    let (network, relay, relay_id) = ours(&one);
    for reference in [made.1.as_str(), &id, &id[..12]] {
        for key in ["NetworkMode", "PidMode", "IpcMode"] {
            let intruder = Made("container", unused("intruder"));
            let body = json!({"HostConfig": {key: format!("container:{reference}")}});
            assert_eq!(create(&two.socket, &intruder.1, &body).0, 403, "{key} {reference}");
        }
        let line = format!("POST /v1.41/containers/{reference}/exec");
        assert_eq!(stand::call(&two.socket, &line, r#"{"Privileged":true,"Cmd":["true"]}"#).0, 403);
    }
    for reference in [relay.as_str(), &relay_id] {
        let intruder = Made("container", unused("intruder"));
        let body = json!({"HostConfig": {"NetworkMode": format!("container:{reference}")}});
        assert_eq!(create(&two.socket, &intruder.1, &body).0, 403, "{reference}");
    }
    let network_id = raw(&["network", "inspect", "-f", "{{.Id}}", &network]);
    for reference in [network.as_str(), &network_id, &network_id[..12]] {
        let intruder = Made("container", unused("intruder"));
        // With NET_RAW it would get no identity of the second session and all of the first one's.
        let body = json!({"HostConfig": {"NetworkMode": reference, "CapAdd": ["NET_RAW"]}});
        assert_eq!(create(&two.socket, &intruder.1, &body).0, 403, "{reference}");
        let connect = json!({"Container": id}).to_string();
        let line = format!("POST /v1.41/networks/{reference}/connect");
        assert_eq!(stand::call(&two.socket, &line, &connect).0, 403, "{reference}");
    }
}

#[test]
fn a_privileged_exec_into_a_leased_container_is_refused() {
    let session = Session::offline("", &["--all"]);
    let (made, id) = sleeper(&session);
    let exec = |reference: &str, body: &str| {
        stand::call(&session.socket, &format!("POST /v1.41/containers/{reference}/exec"), body)
    };
    for reference in
        [made.1.as_str(), &id, &id[..12], &id[..6], &format!("%{:02x}{}", id.as_bytes()[0], &id[1..])]
    {
        for body in [
            r#"{"Privileged":true,"Cmd":["true"]}"#,
            r#"{"privileged":true,"Cmd":["true"]}"#,
            r#"{"PRIVILEGED":true,"Cmd":["true"],"Privileged":null}"#,
            r#"{"Privileged":false,"Privileged":true,"Cmd":["true"]}"#,
            r#"{"Privileged":false,"Cmd":["true"]}{"Privileged":true}"#,
            r#"{"Privileged":"true","Cmd":["true"]}"#,
        ] {
            let (status, answer) = exec(reference, body);
            assert!(status == 403 || status == 400, "{reference} {body}: {status} {answer}");
        }
    }
    assert!(inspect(&id)["ExecIDs"].is_null());
    // A plain one has no more rights than the container.
    let caps = session.ok(&["exec", &made.1, "grep", "CapBnd", "/proc/self/status"]);
    let caps = u64::from_str_radix(caps.split_whitespace().last().unwrap(), 16).unwrap();
    assert_eq!(caps >> 12 & 3, 0, "neither NET_ADMIN nor NET_RAW: {caps:x}");
}

const ASK: [&str; 5] = ["curl", "-s", "-m", "5", "-HMetadata-Flavor:Google"];

fn token_at(relay: &str) -> String {
    format!("http://{relay}/computeMetadata/v1/instance/service-accounts/default/token")
}

/// What a container that the raw engine puts on our network gets from the relay: status and body.
fn by_hand(network: &str, at: Option<&str>, relay: &str) -> Result<String, String> {
    let name = unused("by-hand");
    let _made = Made("container", name.clone());
    let (image, url) = (task_image(), token_at(relay));
    let at: Vec<&str> = at.into_iter().flat_map(|at| ["--ip", at]).collect();
    let run = [
        &["run", "--name", &name, "--network", network],
        &at[..],
        &[&image],
        &ASK,
        &["-w%{http_code}", &url],
    ];
    let out = docker_at(&engine_socket(), &run.concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

#[test]
fn a_container_that_connects_itself_gets_nothing_at_any_address() {
    let session = Session::offline("", &["--all"]);
    let (network, relay, _) = ours(&session);
    let relay = address(&relay, &network);
    let refused = |answer: Result<String, String>| {
        let answer = answer.unwrap();
        assert!(answer.ends_with("503") && !answer.contains("access_token"), "{answer}");
    };
    refused(by_hand(&network, None, &relay));
    // The address of one that runs: the engine has it.
    let (made, id) = sleeper(&session);
    let leased = address(&id, &network);
    let taken = by_hand(&network, Some(&leased), &relay).unwrap_err();
    assert!(taken.contains("Address already in use"), "{taken}");
    // Of one that ended: it was cut off at its end.
    session.ok(&["kill", &made.1]);
    session.wait_for(&format!("cut off       {}", made.1), Duration::from_secs(5));
    refused(by_hand(&network, Some(&leased), &relay));
    // Of one that was created and does not run yet: its lease counts only where it is seen running.
    let waiting = Made("container", unused("waiting"));
    session.ok(&["create", "--name", &waiting.1, &task_image(), "true"]);
    let said = session.wait_for(&format!("attached      {}", waiting.1), Duration::from_secs(2));
    let leased = said.split("  at ").nth(1).unwrap().split_whitespace().next().unwrap().to_string();
    match by_hand(&network, Some(&leased), &relay) {
        Err(taken) => assert!(taken.contains("Address already in use"), "{taken}"),
        given => refused(given),
    }
    // Of one that is gone.
    session.ok(&["rm", "-f", &made.1, &waiting.1]);
    refused(by_hand(&network, Some(&leased), &relay));
    // The relay's own.
    assert!(by_hand(&network, Some(&relay), &relay).is_err());
}

#[test]
fn no_name_can_be_taken_from_the_relay() {
    let session = Session::offline("", &["--all"]);
    let (network, relay, _) = ours(&session);
    let at = address(&relay, &network);
    let hijack = Made("network", unused("net"));
    raw(&["network", "create", "--internal", &hijack.1]);
    for name in ["metadata.google.internal", "metadata", "METADATA.goog", "storage.googleapis.com"] {
        let (status, answer) = create(&session.socket, name, &json!({}));
        let _made = Made("container", name.into());
        assert_eq!(status, 201, "{answer}");
        assert!(!attached(&inspect(name)), "a container's name is an alias of it: {name}");
        for key in ["Hostname", "Domainname"] {
            let made = Made("container", unused("named"));
            create(&session.socket, &made.1, &json!({key: name}));
            assert!(!attached(&inspect(&made.1)), "{key} {name}");
        }
    }
    let claims = json!({"Aliases": ["metadata.google.internal", "metadata"], "Links": []});
    let made = Made("container", unused("alias"));
    let body = json!({"Cmd": ["sleep", "60"], "HostConfig": {"NetworkMode": hijack.1},
                      "NetworkingConfig": {"EndpointsConfig": {&hijack.1: claims}}});
    assert_eq!(create(&session.socket, &made.1, &body).0, 201);
    let (status, _) = stand::call(&session.socket, &format!("POST /containers/{}/start", made.1), "");
    assert_eq!(status, 204);
    let found = inspect(&made.1);
    let aliases = &found["NetworkSettings"]["Networks"][&network]["Aliases"];
    assert!(attached(&found) && !aliases.to_string().contains("metadata"), "{aliases}");
    // Renaming comes after the judgement of the create, and is judged itself.
    let line = format!("POST /containers/{}/rename?name=metadata.google.internal", made.1);
    assert_eq!(stand::call(&session.socket, &line, "").0, 403);
    let look = "for n in metadata.google.internal metadata.google.internal. metadata.; do getent hosts $n || exit 1; done";
    let found = session.ok(&["run", "--rm", &task_image(), "sh", "-c", look]);
    assert!(found.lines().count() == 3 && found.lines().all(|line| line.starts_with(&at)), "{found}");
}

#[test]
fn what_is_ours_cannot_be_touched() {
    let session = Session::offline("", &["--all"]);
    let (network, relay, id) = ours(&session);
    let name = session.socket.file_stem().unwrap().to_string_lossy().into_owned();
    let network_id = raw(&["network", "inspect", "-f", "{{.Id}}", &network]);
    let image = raw(&["inspect", "-f", "{{.Image}}", &id]);
    let reference = raw(&["image", "inspect", "-f", "{{index .RepoTags 0}}", &image]);
    let repository = reference.split(':').next().unwrap().to_string();
    let before = inspect(&id)["State"]["StartedAt"].clone();
    let mut lines = vec![];
    for relay in [relay.as_str(), &id, &id[..12], &id[..8], &format!("%{:02x}{}", id.as_bytes()[0], &id[1..])]
    {
        for action in [
            "attach?stream=1&stdin=1",
            "attach/ws?stream=1",
            "exec",
            "kill",
            "stop",
            "restart",
            "pause",
            "update",
            "start",
            "rename?name=x",
            "resize?h=1&w=1",
        ] {
            lines.push(format!("POST /v1.41/containers/{relay}/{action}"));
        }
        lines.push(format!("DELETE /v1.41/containers/{relay}?force=1"));
        lines.push(format!("GET /v1.41/containers/{relay}/archive?path=/"));
        lines.push(format!("PUT /v1.41/containers/{relay}/archive?path=/"));
        lines.push(format!("GET /v1.41/containers/{relay}/export"));
        lines.push(format!("POST /v1.41/commit?container={relay}&repo=stolen"));
    }
    for network in [network.as_str(), &network_id, &network_id[..12], &network_id[..8]] {
        lines.push(format!("DELETE /v1.41/networks/{network}"));
        lines.push(format!("POST /v1.41/networks/{network}/connect"));
        lines.push(format!("POST /v1.41/networks/{network}/disconnect"));
    }
    for image in [reference.as_str(), &image, &image["sha256:".len()..], &image["sha256:".len()..][..12]] {
        lines.push(format!("DELETE /v1.41/images/{image}?force=1"));
    }
    let tag = reference.split(':').nth(1).unwrap();
    lines.push(format!("POST /v1.41/images/{}/tag?repo={repository}&tag={tag}", task_image()));
    lines.push(format!("POST /v1.41/images/create?fromSrc=-&repo={repository}&tag={tag}"));
    lines.push(format!("POST /v1.41/build?t={reference}"));
    for line in lines {
        let body = if line.contains("/exec") { r#"{"Cmd":["x"]}"# } else { r#"{"Container":"x"}"# };
        let (status, answer) = stand::call(&session.socket, &line, body);
        assert_eq!(status, 403, "{line}: {answer}");
    }
    // Pruning takes what nobody uses, and all of this is in use.
    let filter = format!("%7B%22label%22%3A%5B%22kfp-creds.session%3D{name}%22%5D%7D");
    for kind in ["containers", "networks", "volumes"] {
        stand::call(&session.socket, &format!("POST /v1.41/{kind}/prune?filters={filter}"), "");
    }
    assert_eq!(ours(&session), (network, relay, id.clone()));
    assert_eq!(inspect(&id)["State"]["StartedAt"], before);
    let url = "http://metadata.google.internal/";
    let image = task_image();
    let asked = [&["run", "--rm", &image], &ASK[..], &["-o/dev/null", "-w%{http_code}", url]].concat();
    assert_eq!(session.ok(&asked), "200");
}

/// Each asks for NET_RAW in a spelling that some reader of it misses. None may end up attached and with it.
fn creates() -> Vec<(String, Vec<u8>)> {
    let image = task_image();
    let host = r#"{"CapAdd":["NET_RAW"]}"#;
    let plain = format!(r#"{{"Image":"{image}","HostConfig":{host}}}"#);
    let bodies = [
        plain.clone(),
        format!(r#"{{"Image":"{image}","hostconfig":{host}}}"#),
        format!("{{\"Image\":\"{image}\",\"Ho\u{17f}tConfig\":{host}}}"),
        format!(r#"{{"Image":"{image}","Ho\u017ftConfig":{host}}}"#),
        format!(r#"{{"Image":"{image}","HostConfig":{{}},"HostConfig":{host}}}"#),
        format!(r#"{{"Image":"{image}","HostConfig":{{}},"hostConfig":{host}}}"#),
        format!(r#"{{"Image":"{image}","HostConfig":{{"CapAdd":null,"capadd":["NET_RAW"]}}}}"#),
        format!(r#"{{"Image":"{image}","HostConfig":{{"CapAdd":"NET_RAW"}}}}"#),
        format!(r#"{{"Image":"{image}","HostConfig":{{"CapAdd":[["NET_RAW"]]}}}}"#),
        format!(r#"{{"Image":"{image}","CapAdd":["NET_RAW"]}}"#),
        format!(r#"{{"Image":"{image}"}}{plain}"#),
        format!("\u{feff}{plain}"),
        format!("[{plain}]"),
    ];
    let head = |line: &str, rest: &str| {
        format!(
            "{line} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/json\r\n{rest}\r\n\r\n"
        )
    };
    let whole = |line: &str, body: &str| {
        [head(line, &format!("Content-Length: {}", body.len())).into_bytes(), body.into()].concat()
    };
    let chunks = format!("{:x}\r\n{plain}\r\n0\r\n\r\n", plain.len());
    let mut all: Vec<(String, Vec<u8>)> = vec![];
    let mut add = |request: &dyn Fn(&str) -> Vec<u8>| {
        let name = unused("variant");
        all.push((name.clone(), request(&name)));
    };
    for body in &bodies {
        add(&|name| whole(&format!("POST /v1.41/containers/create?name={name}"), body));
    }
    for path in [
        "/%63ontainers/create",
        "/containers/creat%65",
        "//containers/create",
        "/./containers/create",
        "/x/../containers/create",
        "/containers/create/",
        "/containers/create;x",
        "/containers%2Fcreate",
        "/containers/create%00",
        "/v01.41/containers/create",
        "/v1.41//containers/create",
        "/v1.41/%2e/containers/create",
        "http://docker/v1.41/containers/create",
        "/v1.41/containers/create?x=%zz&",
        "/V1.41/containers/create",
    ] {
        let join = if path.contains('?') { "" } else { "?" };
        add(&|name| whole(&format!("POST {path}{join}name={name}"), &plain));
    }
    for method in ["post", "Post", "PUT", "GET", "PATCH"] {
        add(&|name| whole(&format!("{method} /v1.41/containers/create?name={name}"), &plain));
    }
    let line = |name: &str| format!("POST /v1.41/containers/create?name={name}");
    add(&|name| [head(&line(name), "Transfer-Encoding: chunked"), chunks.clone()].concat().into());
    add(&|name| {
        [head(&line(name), "Transfer-Encoding: chunked\r\nContent-Length: 3"), chunks.clone()].concat().into()
    });
    add(&|name| {
        [head(&line(name), "Content-Length: 3\r\nTransfer-Encoding: chunked"), chunks.clone()].concat().into()
    });
    add(&|name| {
        [head(&line(name), "Content-Length: 0\r\nContent-Length: 90"), plain.clone()].concat().into()
    });
    add(&|name| [head(&line(name), "Transfer-Encoding: xchunked"), chunks.clone()].concat().into());
    add(&|name| {
        [
            head(
                &line(name),
                "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nContent-Length: 2",
            ),
            "{}".into(),
            String::from_utf8(whole(&line(name), &plain)).unwrap(),
        ]
        .concat()
        .into()
    });
    add(&|name| {
        let attach = "POST /v1.41/containers/none/attach HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
        [attach.as_bytes(), &whole(&line(name), &plain)].concat()
    });
    add(&|name| {
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", &whole(&line(name), &plain)[..]].concat()
    });
    add(&|name| {
        let form = format!("POST /v1.41/containers/create?name={name}");
        String::from_utf8(whole(&form, &plain))
            .unwrap()
            .replace("application/json", "application/x-www-form-urlencoded")
            .into()
    });
    all
}

#[test]
fn no_spelling_of_a_create_is_read_otherwise_than_by_the_engine() {
    let session = Session::offline("", &["--all"]);
    let (mut made, mut refused) = (0, 0);
    for (name, request) in creates() {
        let _made = Made("container", name.clone());
        let reply = stand::raw(&session.socket, &request);
        let request = String::from_utf8_lossy(&request);
        let found = inspect(&name);
        if found.is_null() {
            refused += 1;
            continue;
        }
        made += 1;
        // The bare engine attaches nothing; here every one that was made had its NET_RAW seen.
        let drops = found["HostConfig"]["CapDrop"].to_string();
        let has = found["HostConfig"]["CapAdd"].to_string().contains("NET_RAW") || !drops.contains("NET_RAW");
        assert!(!(attached(&found) && has), "{request}\n{reply}");
    }
    eprintln!("{made} made without an identity, {refused} refused");
    assert!(made >= 4 && refused >= 20);
}

#[test]
fn bodies_and_heads_at_the_proxy_are_bounded() {
    let session = Session::offline("", &["--all"]);
    let mut large =
        b"POST /v1.41/containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: 67108864\r\n\r\n".to_vec();
    large.resize(large.len() + (64 << 20), b' ');
    assert!(stand::raw(&session.socket, &large).starts_with("HTTP/1.1 413"));
    let mebibyte = [&b"100000\r\n"[..], &vec![b' '; 1 << 20], b"\r\n"].concat();
    let mut chunked =
        b"POST /v1.41/containers/create HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    (0..64).for_each(|_| chunked.extend_from_slice(&mebibyte));
    assert!(stand::raw(&session.socket, &chunked).starts_with("HTTP/1.1 413"));
    let many: String = (0..2000).map(|n| format!("X-{n}: y\r\n")).collect();
    let head = format!("GET /info HTTP/1.1\r\nHost: d\r\n{many}\r\n");
    assert!(stand::raw(&session.socket, head).starts_with("HTTP/1.1 431"));
    let head = format!("GET /info HTTP/1.1\r\nHost: d\r\nX: {}\r\n\r\n", "y".repeat(3 << 20));
    assert!(stand::raw(&session.socket, head).starts_with("HTTP/1.1 431"));
    let path = format!("/{}", "y".repeat(100_000));
    assert!(
        stand::raw(&session.socket, format!("GET {path} HTTP/1.1\r\nHost: d\r\n\r\n"))
            .starts_with("HTTP/1.1 4")
    );
    // Idle and slow ones, and then a client as usual.
    let idle: Vec<_> =
        (0..300).map(|_| std::os::unix::net::UnixStream::connect(&session.socket).unwrap()).collect();
    assert_eq!(stand::call(&session.socket, "GET /v1.41/_ping", "").0, 200);
    drop(idle);
}

#[test]
fn requests_that_others_send_through_a_container_are_refused() {
    let session = Session::offline("", &["--all"]);
    let (_made, neighbour) = sleeper(&session);
    let (network, _, _) = ours(&session);
    let victim = address(&neighbour, &network);
    let token = "/computeMetadata/v1/instance/service-accounts/default/token";
    let ask = |path: &str, headers: &str| {
        format!(
            r"GET {path} HTTP/1.1\r\nHost: metadata.google.internal\r\nConnection: close\r\n{headers}\r\n"
        )
    };
    let flavor = r"Metadata-Flavor: Google\r\n";
    let mut refused: Vec<String> = [
        "X-Forwarded-For: 127.0.0.1",
        "x-forwarded-for: ",
        "Forwarded: for=1.2.3.4",
        "Origin: http://evil.example",
        "Origin: null",
        "Referer: http://evil.example/",
        "Sec-Fetch-Site: same-origin",
        "Sec-Fetch-Mode: cors",
    ]
    .map(|header| ask(token, &format!(r"{flavor}{header}\r\n")))
    .into();
    // DNS rebinding: the browser names the page's own host.
    for host in [
        "evil.example",
        "metadata.google.internal.evil.example",
        "169.254.169.254.nip.io",
        "localhost",
        &victim,
    ] {
        refused.push(format!(r"GET {token} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{flavor}\r\n"));
    }
    refused.push(format!(
        r"GET http://evil.example{token} HTTP/1.1\r\nHost: metadata\r\nConnection: close\r\n{flavor}\r\n"
    ));
    refused.push(ask(token, ""));
    refused.push(ask(token, r"Metadata-Flavor: Bogus\r\n"));
    refused.push(ask(token, r"Metadata-Flavor: Google\r\nMetadata-Flavor: Bogus\r\n"));
    refused.push(ask(token, r"Metadata_Flavor: Google\r\n"));
    refused.push(ask(
        token,
        &format!(r"{flavor}Content-Length: 5\r\nTransfer-Encoding: chunked\r\nX-Forwarded-For: a\r\n"),
    ));
    refused
        .push(format!(r"GET {token} HTTP/1.1\r\nHost: metadata\r\n{flavor} X-Forwarded-For: folded\r\n\r\n"));
    refused.push(r"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into());
    refused.push(format!(
        r"CONNECT metadata:80 HTTP/1.1\r\nHost: metadata\r\nConnection: close\r\n{flavor}\r\n"
    ));
    refused.push(format!(
        r"POST {token} HTTP/1.1\r\nHost: metadata\r\nConnection: close\r\n{flavor}Content-Length: 0\r\n\r\n"
    ));
    let arguments: Vec<&str> = ["raw"].into_iter().chain(refused.iter().map(String::as_str)).collect();
    let answers = attack(&session, &arguments);
    for (request, answer) in refused.iter().zip(answers["replies"].as_array().unwrap()) {
        let answer = answer.as_str().unwrap();
        assert!(!answer.contains("access_token"), "{request}: a token");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{request}\n{answer}");
    }
    // Who calls is taken from the socket: the id is the caller's own, whatever it says.
    let id = "/computeMetadata/v1/instance/id";
    let lies = [
        String::new(),
        format!(r"kfp-creds-caller: {victim}\r\n"),
        format!(r"Kfp-Creds-Caller: {victim}\r\nkfp-creds-caller: {victim}\r\n"),
        format!(r"Connection: kfp-creds-caller\r\nkfp-creds-caller: {victim}\r\n"),
        r"kfp-creds-host: evil.example\r\n".into(),
        format!(r"X-Real-IP: {victim}\r\nVia: 1.1 {victim}\r\n"),
    ];
    let mut requests: Vec<String> = lies.iter().map(|lie| ask(id, &format!("{flavor}{lie}"))).collect();
    requests.push(format!(r"GET {id} HTTP/1.0\r\n{flavor}\r\n"));
    requests.push(format!(r"GET {id} HTTP/1.0\r\nHost: metadata\r\n{flavor}\r\n"));
    requests.push(format!(
        r"GET http://metadata{id} HTTP/1.1\r\nHost: metadata\r\nConnection: close\r\n{flavor}\r\n"
    ));
    let arguments: Vec<&str> = ["raw"].into_iter().chain(requests.iter().map(String::as_str)).collect();
    let answers = attack(&session, &arguments);
    let bodies: Vec<&str> =
        answers["replies"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
    let own = bodies[0].rsplit("\r\n\r\n").next().unwrap().to_string();
    let victims = u64::from_str_radix(&neighbour[..15], 16).unwrap().to_string();
    assert!(own.bytes().all(|b| b.is_ascii_digit()) && own != victims, "{own}");
    for (request, answer) in requests.iter().zip(bodies) {
        assert!(
            answer.contains(" 200 OK") && answer.ends_with(&format!("\r\n\r\n{own}")),
            "{request}\n{answer}"
        );
    }
}

#[test]
fn labels_choose_no_identity_and_make_no_relay() {
    let config = "[identity.rich]\n[[rule]]\nimage = \"rich*\"\nidentity = \"rich\"\n";
    let session = Session::offline(config, &["--all"]);
    let (network, _, _) = ours(&session);
    // An image that says it is a relay of a session, as `docker commit` of one would.
    let base = Made("container", unused("base"));
    raw(&["create", "--name", &base.1, "--network", "none", &task_image(), "true"]);
    let image = Made("image", unused("labelled"));
    let claims = "LABEL kfp-creds.role=relay kfp-creds.session=00000000 kfp-creds.identity=rich";
    raw(&["commit", "-c", claims, &base.1, &image.1]);
    let made = Made("container", unused("claims"));
    session.ok(&[
        "create",
        "--name",
        &made.1,
        "--label",
        "kfp-creds.identity=rich",
        "--label",
        "kfp-creds.session=00000000",
        "--label",
        "kfp-creds.role=relay",
        &image.1,
        "sleep",
        "60",
    ]);
    let said = session.wait_for(&made.1, Duration::from_secs(2));
    assert!(said.contains("as default"), "{said}");
    let found = inspect(&made.1);
    let session_name = session.socket.file_stem().unwrap().to_string_lossy().into_owned();
    assert_eq!(found["Config"]["Labels"]["kfp-creds.session"], session_name);
    assert_ne!(
        found["Config"]["Labels"]["kfp-creds.role"], "relay",
        "a sweep would take it for a live session"
    );
    assert!(attached(&found), "{network}");
}

#[test]
fn the_socket_is_ours_alone_and_hostile_folders_are_refused() {
    let session = Session::offline("", &["--all"]);
    let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&session.socket), 0o600);
    assert_eq!(mode(session.socket.parent().unwrap()), 0o700);
    let folder = Folder::new("hostile");
    let start = |runtime: &Path| {
        let mut command = program(&folder.0);
        command.env("XDG_RUNTIME_DIR", runtime).args(["serve", "--offline"]);
        let out = command.output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    // Prepared by another user, who keeps the right to rename what is in it.
    for hostile in ["symlink", "file", "other"] {
        let runtime = folder.0.join(hostile);
        std::fs::create_dir(&runtime).unwrap();
        let ours = runtime.join("kfp-creds");
        match hostile {
            "symlink" => symlink(&folder.0, &ours).unwrap(),
            "file" => std::fs::write(&ours, "").unwrap(),
            _ => {
                std::fs::create_dir(&ours).unwrap();
                if std::os::unix::fs::chown(&ours, Some(65_534), Some(65_534)).is_err() {
                    continue; // only root can give a folder away; the two others stand for it
                }
            }
        }
        let (code, said) = start(&runtime);
        assert_eq!(code, Some(77), "{hostile}: {said}");
        assert!(said.contains("kfp-creds: ") && said.contains("folder"), "{hostile}: {said}");
    }
}
