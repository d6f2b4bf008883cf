//! Requests that only Podman understands. Each first works at the bare engine, if that is Podman, and the
//! proxy then refuses it; Docker does not know them, and they have no effect there either.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::attacks::{Made, address, create, inspect, ours, relay_of, sleeper, unused};
use crate::support::proxy_fixture;
use crate::support::raw::{ask, token};
use crate::support::session::{Folder, Session, docker_at, engine_socket, is_podman, raw, task_image};

/// The identity that a container got, from its output; `None` if it did not run or got none.
fn identity_of(name: &str) -> Option<String> {
    let _ = docker_at(&engine_socket(), &["start", name]);
    let _ = docker_at(&engine_socket(), &["wait", name]);
    let logs = docker_at(&engine_socket(), &["logs", name]);
    let told = String::from_utf8_lossy(&logs.stdout).into_owned();
    told.contains("access_token").then(|| token(&told)["container"].as_str().unwrap().to_string())
}

/// A command that requests a token from the victim's relay, and ends.
fn asks(victim: &str) -> Value {
    json!(["sh", "-c", ask(), "sh", relay_of(victim)])
}

/// Podman's own API creates, joins and starts containers with fields that the proxy does not judge.
#[test]
fn podmans_own_api_is_closed_in_every_spelling() {
    let session = Session::offline("", &["--all"]);
    let (_made, victim) = sleeper(&session);
    let body = json!({
        "name": unused("libpod"),
        "image": task_image(),
        "command": asks(&victim),
        "netns": {"nsmode": "container", "value": victim},
    });
    let made = Made("container", body["name"].as_str().unwrap().into());
    let path = "/libpod/containers/create";
    let (status, answer) =
        proxy_fixture::call(&engine_socket(), &format!("POST /v5.0.0{path}"), &body.to_string());
    if is_podman() {
        assert_eq!(status, 201, "{answer}");
        assert_eq!(
            identity_of(&made.1),
            Some(victim.clone()),
            "without kfp-creds it has the victim's identity"
        );
        raw(&["rm", "-f", &made.1]);
    } else {
        assert!(status >= 400, "{status} {answer}");
    }
    for spelling in [
        format!("/v5.0{path}"),
        format!("/v5.0.0{path}"),
        format!("/v4.0.0{path}"),
        format!("/v5{path}"),
        format!("/v5.0.0-rc1{path}"),
        path.into(),
        format!("/v5.0.0/%6cibpod{}", &path[7..]),
        format!("/v5.0.0/l%69bpo%64{}", &path[7..]),
        format!("/%765.0.0{path}"),
        format!("//v5.0.0{path}"),
        format!("/v5.0.0/.{path}"),
        format!("/v5.0.0/x/..{path}"),
        format!("/v5.0.0%2flibpod{}", &path[7..]),
        format!("http://d/v5.0.0{path}"),
        format!("/v5.0.0{path}?name=x"),
    ] {
        let (status, answer) =
            proxy_fixture::call(&session.socket, &format!("POST {spelling}"), &body.to_string());
        assert!(status == 403 || status == 400, "{spelling}: {status} {answer}");
        assert!(answer.contains("kfp-creds: "), "the proxy must refuse {spelling}: {answer}");
        assert_eq!(inspect(&made.1), Value::Null, "{spelling}");
    }
    for (method, rest) in [("GET", "_ping"), ("GET", "info"), ("DELETE", "networks/kfp-creds?force=true")] {
        let (status, answer) =
            proxy_fixture::call(&session.socket, &format!("{method} /v5.0.0/libpod/{rest}"), "");
        assert_eq!(status, 403, "{rest} {answer}");
    }
    // A container with this name is not part of that API.
    let (status, _) = proxy_fixture::call(&session.socket, "GET /containers/libpod/json", "");
    assert_eq!(status, 404);
}

/// For Podman, one text field can hold several values: the path of a namespace, addresses, more networks,
/// another mount.
#[test]
fn no_text_field_of_a_create_smuggles_in_other_fields() {
    let session = Session::offline("", &["--all"]);
    let (_made, victim) = sleeper(&session);
    let found = inspect(&victim);
    let (network, at) = (ours(&session).0, address(&victim, &ours(&session).0));
    let asking = |host: Value| json!({"Cmd": asks(&victim), "HostConfig": host});
    let joins = asking(json!({"NetworkMode": format!("ns:/proc/{}/ns/net", found["State"]["Pid"])}));
    if is_podman() {
        let made = Made("container", unused("path"));
        assert_eq!(create(&engine_socket(), &made.1, &joins).0, 201);
        assert_eq!(
            identity_of(&made.1),
            Some(victim.clone()),
            "without kfp-creds it has the victim's identity"
        );
    }
    let secret = Folder::new("secret");
    std::fs::write(secret.0.join("text"), "what is in there").unwrap();
    let other = Made("network", unused("other"));
    raw(&["network", "create", "--internal", &other.1]);
    let place = secret.0.display();
    let reads = |made: &str| {
        let mounts = inspect(made)["Mounts"].clone();
        mounts.as_array().into_iter().flatten().any(|mount| mount["Source"] == place.to_string())
    };
    for (body, without_us) in [
        (joins, "made"),
        (asking(json!({"PidMode": format!("ns:/proc/{}/ns/pid", found["State"]["Pid"])})), "made"),
        (asking(json!({"NetworkMode": format!("{},{network}", other.1)})), "made"),
        // Podman refuses the address of a running container, but not that of an ended one.
        (asking(json!({"NetworkMode": format!("{network}:ip={at}")})), "made"),
        (json!({"Volumes": {format!("{place}:/stolen"): {}}}), "mounted"),
        (
            json!({"HostConfig": {"Mounts": [{"Type": format!("bind,source={place}"), "Target": "/stolen"}]}}),
            "mounted",
        ),
        (
            json!({"HostConfig": {"Mounts": [{"Type": "bind", "Target": format!("/stolen,source={place}")}]}}),
            "mounted",
        ),
    ] {
        if is_podman() {
            let made = Made("container", unused("bare"));
            let (status, answer) = create(&engine_socket(), &made.1, &body);
            assert_eq!(status, 201, "without kfp-creds: {body} {answer}");
            assert!(without_us != "mounted" || reads(&made.1), "without kfp-creds: {body}");
        }
        let made = Made("container", unused("second"));
        let (status, answer) = create(&session.socket, &made.1, &body);
        if is_podman() {
            assert_eq!(status, 400, "{body} {answer}");
            assert_eq!(inspect(&made.1), Value::Null, "{body}");
        } else {
            // Docker takes it for the name of an object that does not exist.
            assert_ne!(identity_of(&made.1), Some(victim.clone()), "{body}");
            assert!(!reads(&made.1), "{body}");
        }
    }
}

/// Podman accepts keys of a query in any case, and more forms of a version.
#[test]
fn no_spelling_of_a_query_or_version_evades_the_judgement() {
    let session = Session::offline("", &["--all"]);
    let body = |name: &str| json!({"Image": task_image(), "Cmd": ["true"], "Labels": {"kct-test": name}});
    let post = |socket: &Path, path: &str, body: &Value| {
        proxy_fixture::call(socket, &format!("POST {path}"), &body.to_string())
    };
    let version = if is_podman() { "v1.41-x" } else { "v1.41" };
    let (bare, ours) = (Made("container", unused("bare")), Made("container", unused("spelt")));
    let path = |name: &str| format!("/{version}/containers/create?NAME={name}");
    let (status, answer) = post(&engine_socket(), &path(&bare.1), &body("bare"));
    assert_eq!(status, 201, "{answer}");
    // Podman gives it the name, Docker chooses one itself.
    assert_eq!(inspect(&bare.1) != Value::Null, is_podman());
    let all = raw(&["ps", "-aq", "--filter", "label=kct-test=bare"]);
    all.lines().for_each(|id| drop(raw(&["rm", "-f", id])));
    for path in [
        path(&ours.1),
        format!("/v1.41-x/containers/create?name={}", ours.1),
        format!("/v1.41/containers/create?Name={}", ours.1),
        format!("/v1.41/containers/create?na%4De={}", ours.1),
        format!("/v1.41.1/containers/create?name={}", ours.1),
    ] {
        let (status, answer) = post(&session.socket, &path, &body("spelt"));
        assert_eq!(status, 400, "{path} {answer}");
    }
    assert_eq!(raw(&["ps", "-aq", "--filter", "label=kct-test=spelt"]), "");
    let options = r#"nsoptions=[{"Name":"network","Host":true}]"#.replace('"', "%22");
    for query in
        [options.as_str(), "volume=/home:/x", "NSOPTIONS=%5B%5D", "Volume=/home:/x", "addcaps=%5B%5D"]
    {
        let (status, answer) = post(&session.socket, &format!("/build?{query}"), &json!({}));
        assert!(matches!(status, 400 | 403) && answer.contains("kfp-creds: "), "{query} {status} {answer}");
    }
}

/// The second network overlaps with no route of the host, and name look-ups stay as they were.
#[test]
fn the_network_has_no_address_of_the_hosts_and_no_name_server() {
    let session = Session::offline("[network]\nattach = \"second\"\n", &["--all"]);
    let other = Made("network", unused("other"));
    raw(&["network", "create", "--internal", &other.1]);
    let resolver = ["run", "--rm", "--network", &other.1, &task_image(), "cat", "/etc/resolv.conf"];
    assert_eq!(session.ok(&resolver), raw(&resolver), "as without kfp-creds");
    let (network, _, _) = ours(&session);
    let found: Value = serde_json::from_str(&raw(&["network", "inspect", &network])).unwrap();
    assert_eq!(found[0]["Internal"], true, "{found}");
    let subnet = found[0]["IPAM"]["Config"][0]["Subnet"].as_str().unwrap();
    let (first, prefix) = subnet.split_once('/').unwrap();
    let (first, bits) = (first.parse::<Ipv4Addr>().unwrap(), 32 - prefix.parse::<u32>().unwrap());
    // This process is in the engine's network namespace and sees its routes.
    let routes = std::fs::read_to_string("/proc/net/route").unwrap();
    for route in routes.lines().skip(1) {
        let to = u32::from_str_radix(route.split_whitespace().nth(1).unwrap(), 16).unwrap().to_be();
        assert_ne!(to >> bits, u32::from(first) >> bits, "{route}");
    }
}

/// Podman's events differ: `remove` for `destroy`, and a network's event names the container in place of the
/// network.
#[test]
fn a_disconnected_or_removed_container_loses_its_lease() {
    let session = Session::offline("[network]\npool = \"10.219.40.0/28\"\n", &["--all"]);
    let (network, _, _) = ours(&session);
    let (made, id) = sleeper(&session);
    // A container that was not seen running has no lease to lose.
    let told = raw(&["exec", &id, "sh", "-c", &ask()]);
    assert_eq!(token(&told)["container"], id);
    raw(&["network", "disconnect", &network, &id]);
    session.wait_for(&format!("ended         {}", made.1), Duration::from_secs(5));
    drop(made);
    // There are ten addresses: the eleventh container would get none if they were not freed.
    for _ in 0..12 {
        session.ok(&["run", "--rm", &task_image(), "true"]);
    }
    assert_eq!(session.said().matches("attached      ").count(), 13, "{}", session.said());
}
