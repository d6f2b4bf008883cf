use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::judge::{Verdict, container_references, judge, network_references};
use super::question::{Neighbour, Question};
use super::{RelayAt, Wiring, json as strict};
use crate::docker::labels::SESSION_LABEL;
use crate::json::strings;
use crate::policy::Decision;
use crate::token::Scopes;
use crate::workload::{By, Identity};

const RELAY: &str = "169.254.169.254";

fn attach() -> Decision {
    let identity = Identity { scopes: Scopes::default(), ..Identity::default() };
    Decision::Attach(Arc::new(identity), By::Default)
}

fn other() -> String {
    "0b".repeat(32)
}

/// Judges `body` as a client would send it. The engine has the containers `leased`, `relay` and `friend`, and
/// the network `kfp-creds`.
fn verdict_for(body: Value, name: Option<&str>, image_env: &[&str], decision: &Decision) -> (Verdict, Value) {
    judged(body, name, image_env, decision, None)
}

/// `path`: the container's address and path on the host's loopback, if it has one.
fn judged(
    body: Value,
    name: Option<&str>,
    image_env: &[&str],
    decision: &Decision,
    path: Option<&str>,
) -> (Verdict, Value) {
    let mut body = strict::parse(body.to_string().as_bytes()).unwrap();
    strict::canonical(&mut body, strict::CREATE).unwrap();
    let neighbours = HashMap::from([
        ("leased".to_string(), Neighbour::Leased),
        ("relay".into(), Neighbour::Ours),
        ("friend".into(), Neighbour::Other(other())),
        ("nobody".into(), Neighbour::Missing),
    ]);
    let wiring = Wiring {
        at: RelayAt { address: Ipv4Addr::new(169, 254, 169, 254), container_credentials: false },
        names: ["metadata.google.internal", "metadata", "metadata.goog"].map(Into::into).into(),
        project: Some("proj".into()),
        quota_project: None,
        aws_region: None,
    };
    let image_env: Vec<String> = image_env.iter().map(ToString::to_string).collect();
    let question = Question {
        mounts: &[],
        decision,
        name,
        image_env: &image_env,
        neighbours: &neighbours,
        our_networks: &HashSet::from(["kfp-creds".to_string()]),
        wiring: &wiring,
        session: "0123abcd",
        mode: "run",
        alone: false,
        path,
        secret: None,
        linked: None,
        joins: None,
    };
    let verdict = judge(&mut body, &question);
    (verdict, body)
}

fn verdict(body: Value) -> (Verdict, Value) {
    verdict_for(body, None, &[], &attach())
}

fn notices(verdict: &Verdict) -> &[String] {
    match verdict {
        Verdict::Attach { notices, .. } => notices,
        other => panic!("{other:?}"),
    }
}

fn env(body: &Value, name: &str) -> Vec<String> {
    let all = body["Env"].as_array().unwrap().iter().map(|entry| entry.as_str().unwrap());
    all.filter_map(|entry| entry.split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, v)| v.into())
        .collect()
}

#[test]
fn recorded_bodies_gain_only_what_is_documented() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/create");
    let mut seen = 0;
    for file in std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()) {
        if file.extension().is_none_or(|ext| ext != "json") {
            continue;
        }
        seen += 1;
        let body: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let (verdict, mut changed) = verdict(body.clone());
        assert!(matches!(verdict, Verdict::Attach { .. }), "{file:?}");
        assert_eq!(env(&changed, "GCE_METADATA_IP"), [RELAY], "{file:?}");
        assert_eq!(env(&changed, "no_proxy").len(), 1);
        assert_eq!(env(&changed, "CPL_MACHINE_IS_GCE"), ["YES"]);
        assert_eq!(changed["Labels"][SESSION_LABEL], "0123abcd");
        assert_eq!(changed["HostConfig"]["CapDrop"], json!(["NET_RAW"]));
        let hosts = strings(&changed["HostConfig"]["ExtraHosts"]);
        let names: HashSet<&str> =
            hosts.filter_map(|entry| Some(entry.split_once(':')?.0.trim_end_matches('.'))).collect();
        assert_eq!(names, HashSet::from(["metadata.google.internal", "metadata", "metadata.goog"]));
        // Nothing else has changed: without the changed fields, both are equal.
        let mut original = body;
        for side in [&mut changed, &mut original] {
            let top = side.as_object_mut().unwrap();
            top.remove("Env");
            top.remove("Labels");
            let host = top["HostConfig"].as_object_mut().unwrap();
            host.remove("CapDrop");
            host.remove("ExtraHosts");
        }
        assert_eq!(changed.to_string().len(), original.to_string().len(), "{file:?}");
        assert_eq!(changed, original, "{file:?}");
    }
    assert_eq!(seen, 6);
}

#[test]
fn the_users_own_settings_win_and_are_reported() {
    let file =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/create/kfp-2.17-dockerrunner-run-args.json");
    let body: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let (verdict, body) = verdict_for(body, Some("fixedname"), &["GCE_METADATA_ROOT=y"], &attach());
    assert_eq!(env(&body, "GCE_METADATA_HOST"), ["x"]);
    assert!(env(&body, "GCE_METADATA_ROOT").is_empty(), "the image's value stays");
    assert_eq!(body["NetworkingConfig"], json!({"my-net": null}));
    assert_eq!(
        body["Labels"],
        json!({"a": "b", "kfp-creds.session": "0123abcd", "kfp-creds.mode": "run", "kfp-creds.role": "task"})
    );
    let reported = notices(&verdict).join("\n");
    for part in ["GCE_METADATA_HOST points", "GCE_METADATA_ROOT points", "metadata.google.internal elsewhere"]
    {
        assert!(reported.contains(part), "{reported}");
    }
    assert_eq!(
        body["HostConfig"]["ExtraHosts"],
        json!([
            "metadata.google.internal:10.9.8.7",
            "metadata:169.254.169.254",
            "metadata.goog:169.254.169.254",
            "metadata.goog.:169.254.169.254"
        ])
    );
}

#[test]
fn proxy_exceptions_of_both_spellings_and_the_image_are_merged() {
    let ours = "metadata.google.internal,metadata,metadata.goog,169.254.169.254";
    for (request, image, upper, lower) in [
        (json!(null), &[][..], ours.to_string(), ours.to_string()),
        (json!(["NO_PROXY=a"]), &[], format!("a,{ours}"), format!("a,{ours}")),
        (json!(["no_proxy=b", "NO_PROXY=a, c"]), &["no_proxy=i"], format!("a,c,{ours}"), format!("b,{ours}")),
        (json!([]), &["NO_PROXY=i"], format!("i,{ours}"), format!("i,{ours}")),
        (json!(["NO_PROXY=a", "NO_PROXY=z"]), &[], format!("z,{ours}"), format!("z,{ours}")),
    ] {
        let (_, body) = verdict_for(json!({"Image": "x", "Env": request}), None, image, &attach());
        assert_eq!(env(&body, "NO_PROXY"), [upper]);
        assert_eq!(env(&body, "no_proxy"), [lower]);
    }
    let (_, body) = verdict(json!({"Env": ["GOOGLE_CLOUD_PROJECT", "A=1", "CPL_MACHINE_IS_GCE=NO"]}));
    assert_eq!(env(&body, "CPL_MACHINE_IS_GCE"), ["NO"]);
    assert!(env(&body, "GOOGLE_CLOUD_PROJECT").is_empty(), "unset by the request is a decision");
    assert!(env(&body, "GOOGLE_CLOUD_QUOTA_PROJECT").is_empty());
}

#[test]
fn settings_that_hide_the_metadata_server_are_reported() {
    let host = |host: Value| json!({"HostConfig": host});
    for (body, image, part) in [
        (
            json!({"Env": ["GOOGLE_APPLICATION_CREDENTIALS=/k.json"]}),
            &[][..],
            "GOOGLE_APPLICATION_CREDENTIALS",
        ),
        (json!({}), &["NO_GCE_CHECK=true"], "NO_GCE_CHECK"),
        (json!({"Env": ["METADATA_SERVER_DETECTION=None"]}), &[], "METADATA_SERVER_DETECTION"),
        (json!({"Env": ["GCE_METADATA_MTLS_MODE=strict"]}), &[], "GCE_METADATA_MTLS_MODE"),
        (json!({"Env": ["CLOUDSDK_CONFIG=/c"]}), &[], "CLOUDSDK_CONFIG"),
        (
            host(json!({"Binds": ["/home/u/.config/gcloud:/app/.config/gcloud:ro"]})),
            &[],
            "/app/.config/gcloud",
        ),
        (host(json!({"Mounts": [{"type": "bind", "target": "/x/gcloud/"}]})), &[], "/x/gcloud"),
    ] {
        let (verdict, _) = verdict_for(body.clone(), None, image, &attach());
        assert!(notices(&verdict).iter().any(|notice| notice.contains(part)), "{body}: {verdict:?}");
    }
    let (quiet, _) = verdict_for(json!({"Env": ["NO_GCE_CHECK="]}), None, &["NO_GCE_CHECK=true"], &attach());
    assert!(notices(&quiet).is_empty());
}

#[test]
fn a_container_that_could_pose_as_a_neighbour_passes_unchanged() {
    let host = |host: Value| json!({"Image": "x", "HostConfig": host});
    for (body, name, part) in [
        (host(json!({"Privileged": true})), None, "privileged"),
        (host(json!({"privileged": true})), None, "privileged"),
        (host(json!({"CapAdd": ["NET_RAW"], "CapDrop": ["NET_RAW"]})), None, "NET_RAW"),
        (host(json!({"capadd": "cap_net_admin"})), None, "NET_ADMIN"),
        (json!({"Image": "x", "ho\u{17f}tconfig": {"capadd": ["all"]}}), None, "NET_ADMIN"),
        (host(json!({"CapAdd": ["SYS_ADMIN"]})), None, "SYS_ADMIN"),
        (host(json!({"NetworkMode": "host"})), None, "host's network"),
        (host(json!({"NetworkMode": "none"})), None, "no network"),
        (json!({"NetworkDisabled": true}), None, "no network"),
        (host(json!({"PidMode": "host"})), None, "host's processes"),
        (host(json!({"Sysctls": {"net.ipv4.ip_nonlocal_bind": "1"}})), None, "ip_nonlocal_bind"),
        (json!({"Hostname": "storage.googleapis.com"}), None, "Hostname"),
        (json!({"Domainname": "google.internal"}), None, "Domainname"),
        (json!({}), Some("/metadata"), "metadata server"),
        (json!({}), Some("a.b"), "dot"),
    ] {
        let (verdict, after) = verdict_for(body.clone(), name, &[], &attach());
        let Verdict::Pass(why) = verdict else { panic!("{body}: {verdict:?}") };
        assert!(why.contains(part), "{body}: {why}");
        assert!(after["Env"].is_null() && after["HostConfig"]["ExtraHosts"].is_null(), "{after}");
    }
    let (verdict, body) = verdict(host(json!({"CapDrop": "ALL"})));
    assert!(matches!(verdict, Verdict::Attach { .. }));
    assert_eq!(body["HostConfig"]["CapDrop"], "ALL", "nothing to drop, nothing changed");
}

#[test]
fn joining_a_leased_container_or_our_objects_is_refused() {
    let host = |host: Value| json!({"Image": "x", "HostConfig": host});
    let net = |endpoints: Value| json!({"NetworkingConfig": {"EndpointsConfig": endpoints}});
    for (body, status) in [
        (host(json!({"NetworkMode": "container:leased"})), 403),
        (host(json!({"networkmode": "container:leased"})), 403),
        (host(json!({"Networ\u{212a}Mode": "container:leased"})), 403),
        (host(json!({"PidMode": "container:leased"})), 403),
        (host(json!({"IpcMode": "container:leased"})), 403),
        (host(json!({"NetworkMode": "container:relay"})), 403),
        (host(json!({"NetworkMode": "container:nobody"})), 404),
        (host(json!({"NetworkMode": "kfp-creds"})), 403),
        (host(json!({"Links": ["/relay:r"]})), 403),
        (net(json!({"kfp-creds": {}})), 403),
        (net(json!({"bridge": {"NetworkID": "kfp-creds"}})), 403),
        (net(json!({"bridge": {"links": ["relay:r"]}})), 403),
        // Without a HostConfig, engines read its fields from the top level.
        (json!({"Privileged": true}), 400),
        (json!({"capadd": ["NET_RAW"], "HostConfig": null}), 400),
        (json!({"networkmode": "container:leased"}), 400),
        // A type that the engine does not accept.
        (json!({"HostConfig": []}), 400),
        (host(json!({"Privileged": "true"})), 400),
        (host(json!({"CapAdd": [["NET_RAW"]]})), 400),
        (json!({"Env": "A=1"}), 400),
        (json!([]), 400),
    ] {
        for decision in [attach(), Decision::Pass("by rule".into())] {
            let (verdict, _) = verdict_for(body.clone(), None, &[], &decision);
            let Verdict::Refuse(refusal) = verdict else { panic!("{body}: {verdict:?}") };
            assert_eq!(refusal.status.as_u16(), status, "{body}");
        }
    }
    let (passed, body) =
        verdict(host(json!({"NetworkMode": "container:friend", "PidMode": "container:friend"})));
    assert!(matches!(passed, Verdict::Pass(_)));
    assert_eq!(
        body["HostConfig"]["NetworkMode"],
        format!("container:{}", other()),
        "names can move, ids cannot"
    );
    assert_eq!(body["HostConfig"]["PidMode"], format!("container:{}", other()));
}

#[test]
fn every_reference_is_looked_up() {
    let body = json!({
        "HostConfig": {"NetworkMode": "container:a", "PidMode": "container:b", "IpcMode": "host", "Links": ["c:x"]},
        "NetworkingConfig": {"EndpointsConfig": {"n1": {"Links": ["/d"], "NetworkID": "n2"}, "n3": null}},
    });
    assert_eq!(container_references(&body), ["a", "b", "c", "d"]);
    assert_eq!(network_references(&body), ["n1", "n2", "n3"]);
    assert_eq!(network_references(&json!({"HostConfig": {"NetworkMode": "n"}})), ["n"]);
}

#[test]
fn clients_cannot_set_our_labels() {
    let labels = json!({"kfp-creds.session": "ffffffff", "kfp-creds.identity": "evil", "KFP-CREDS.x": "1"});
    let (_, body) = verdict(json!({"Labels": labels}));
    assert_eq!(
        body["Labels"],
        json!({"KFP-CREDS.x": "1", "kfp-creds.session": "0123abcd", "kfp-creds.mode": "run", "kfp-creds.role": "task"})
    );
    let (passed, body) = verdict_for(json!({"Labels": labels}), None, &[], &Decision::Pass("by rule".into()));
    assert!(matches!(passed, Verdict::Pass(why) if why == "by rule"));
    assert_eq!(body["Labels"], json!({"KFP-CREDS.x": "1"}));
}

#[test]
fn a_full_host_name_is_an_alias_on_user_defined_networks() {
    let aliases = |mut body: Value| {
        body["Hostname"] = "db.corp.example".into();
        let (verdict, mut body) = verdict(body);
        assert!(matches!(verdict, Verdict::Attach { .. }), "{verdict:?}");
        assert_eq!((&body["Hostname"], &body["Domainname"]), (&"db".into(), &"corp.example".into()));
        body["NetworkingConfig"]["EndpointsConfig"].take()
    };
    let whole = json!({"Aliases": ["db.corp.example"]});
    let mode = |mode: &str| json!({"HostConfig": {"NetworkMode": mode}});
    assert_eq!(aliases(mode("own")), json!({ "own": whole }));
    let both = |mode: &str, endpoints: Value| json!({"HostConfig": {"NetworkMode": mode}, "NetworkingConfig": {"EndpointsConfig": endpoints}});
    assert_eq!(aliases(both("own", Value::Null)), json!({ "own": whole }));
    assert_eq!(aliases(both("own", json!({"own": null}))), json!({ "own": whole }));
    assert_eq!(
        aliases(both("own", json!({"own": {"Aliases": ["store"], "MacAddress": "02:00:00:00:00:01"}}))),
        json!({"own": {"Aliases": ["store", "db.corp.example"], "MacAddress": "02:00:00:00:00:01"}})
    );
    assert_eq!(aliases(both("own", json!({"other": {}}))), json!({ "other": whole }));
    for engines in ["", "bridge", "default", "nat", "slirp4netns:mtu=1500", "pasta"] {
        assert_eq!(aliases(mode(engines)), Value::Null, "{engines}");
    }
    assert_eq!(aliases(both("bridge", json!({"bridge": {}}))), json!({"bridge": {}}));
}

#[test]
fn a_container_on_the_hosts_network_gets_only_its_path() {
    let place = "127.0.0.1:4711/s3cr3t";
    let on_host = |host: Value| judged(json!({ "HostConfig": host }), None, &[], &attach(), Some(place));
    let (verdict, body) = on_host(json!({"NetworkMode": "host"}));
    assert!(matches!(verdict, Verdict::Attach { .. }) && notices(&verdict).is_empty(), "{verdict:?}");
    for name in ["GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"] {
        assert_eq!(env(&body, name), [place]);
    }
    let host = &body["HostConfig"];
    assert!(host["ExtraHosts"].is_null() && host["CapDrop"] == json!(["NET_RAW"]), "{host}");
    for risky in [
        json!({"NetworkMode": "host", "Privileged": true}),
        json!({"NetworkMode": "host", "CapAdd": ["NET_ADMIN"]}),
        json!({"NetworkMode": "host", "CapAdd": ["CAP_NET_RAW"]}),
        json!({"NetworkMode": "host", "PidMode": "host"}),
    ] {
        assert!(matches!(on_host(risky.clone()).0, Verdict::Pass(_)), "{risky}");
    }
    let (verdict, _) = judged(json!({"HostConfig": {"NetworkMode": "host"}}), None, &[], &attach(), None);
    assert!(matches!(&verdict, Verdict::Pass(why) if why.contains("host's network")), "{verdict:?}");
}
