//! What clients see of our objects: nothing in lists, no network when they inspect a container, nothing in
//! images of containers.

use serde_json::Value;

use super::attacks::{inspect, ours};
use crate::support::raw::{Container, token};
use crate::support::session::{Folder, Session, docker_at, engine_socket, program, raw, task_image};

#[test]
fn lists_and_inspects_show_neither_relay_nor_network() {
    seen("");
}

#[test]
fn isolated_lists_and_inspects_hide_relay_and_networks() {
    seen(super::attacks::STRICT);
}

fn seen(config: &str) {
    let session = Session::offline(config, &["--all"]);
    let neighbour = Session::offline("", &[]);
    let image = task_image();
    let container = Container(session.ok(&["run", "-d", &image, "sleep", "90"]));
    let created = Container(session.ok(&["create", &image, "true"]));
    let (network, relay, relay_id) = ours(&session);
    let (other_network, other_relay, _) = ours(&neighbour);

    let names = session.ok(&["ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.Networks}}"]);
    assert!(names.contains(&container.0) && names.contains(&created.0), "{names}");
    for hidden in [&relay, &relay_id, &other_relay] {
        assert!(!names.contains(hidden.as_str()), "{hidden} in {names}");
    }
    let mine = names.lines().find(|line| line.contains(&container.0)).unwrap();
    assert!(!mine.contains("kfp-creds"), "{mine}");
    let networks = session.ok(&["network", "ls", "--format", "{{.Name}}"]);
    assert!(networks.contains("bridge"), "{networks}");
    assert!(!networks.lines().any(|name| name == network || name == other_network), "{networks}");
    for made in [&container, &created] {
        let all = session.ok(&["inspect", "-f", "{{json .NetworkSettings.Networks}}", &made.0]);
        let all: Value = serde_json::from_str(&all).unwrap();
        assert_eq!(all.as_object().unwrap().keys().collect::<Vec<_>>(), ["bridge"]);
    }
    // Exactly one address, and the right one.
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = session.ok(&["inspect", "-f", format, &container.0]);
    let networks = inspect(&container.0)["NetworkSettings"]["Networks"].clone();
    let own = [networks.get("bridge"), networks.get(&network)].into_iter().flatten().next().unwrap();
    assert_eq!(address, own["IPAddress"]);
    // The engine itself shows them, and a client that names one can inspect it.
    assert!(raw(&["ps", "--format", "{{.Names}}"]).contains(&relay));
    assert!(inspect(&container.0)["NetworkSettings"]["Networks"].to_string().contains("kfp-creds"));
    session.ok(&["inspect", &relay]);
    // What scripts do with the output of a list.
    let all = session.ok(&["ps", "-aq", "--filter", &format!("id={}", container.0)]);
    session.ok(&["rm", "-f", &all]);
    let (code, said) = session.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("is reserved"), "{said}");
}

/// An image committed in one session, used without a session and in a later one.
#[test]
fn a_committed_image_contains_nothing_of_ours() {
    let first = Session::offline("", &["--all"]);
    let second = Session::offline("", &["--all"]);
    let image = format!("kct-committed:{}", std::process::id());
    let made =
        Container(second.ok(&["create", "-e", "OWN=1", "-e", "NO_PROXY=a.example", &task_image(), "true"]));
    second.ok(&["commit", &made.0, &image]);
    let config: Value =
        serde_json::from_str(&raw(&["image", "inspect", "-f", "{{json .Config}}", &image])).unwrap();
    let env: Vec<&str> = config["Env"].as_array().unwrap().iter().map(|set| set.as_str().unwrap()).collect();
    assert!(env.contains(&"OWN=1") && env.contains(&"NO_PROXY=a.example"), "{env:?}");
    let set = |set: &&&str| {
        set.split_once('=').is_some_and(|(name, _)| name.contains("GCE_") || name.contains("CLOUD"))
    };
    assert_eq!(env.iter().find(set), None, "{env:?}");
    // The user's exceptions stay, in both spellings.
    assert!(!env.iter().any(|set| set.contains("169.254.") || set.contains("metadata.google")), "{env:?}");
    assert_eq!(config["Labels"]["kfp-creds.session"], "");
    let seen = raw(&["run", "--rm", "--network", "none", &image, "env"]);
    assert!(!seen.contains("GCE_") && !seen.contains("GOOGLE_CLOUD") && seen.contains("OWN=1"), "{seen}");

    let run = |session: &Session| {
        let ask = crate::support::raw::ask();
        token(&session.ok(&["run", "--rm", &image, "sh", "-c", &ask]))["container"].clone()
    };
    assert!(run(&first).is_string());
    let said = first.end().1;
    assert!(!said.contains("points elsewhere"), "{said}");
    drop(made);
    docker_at(&engine_socket(), &["rmi", &image]);
}

/// The container resolves its own name; its neighbours do not.
#[test]
fn a_container_with_a_full_host_name_gets_an_identity() {
    let session = Session::offline("", &["--all"]);
    let image = task_image();
    for name in
        [&["--hostname", "dev.corp.example"][..], &["--hostname", "dev", "--domainname", "corp.example"]]
    {
        let arguments = [&["run", "-d"], name, &[&image, "sleep", "90"]].concat();
        let container = Container(session.ok(&arguments));
        assert_eq!(container.exec("hostname -f"), "dev.corp.example");
        assert_eq!(container.asks().1, 200);
        let look = "getent hosts dev.corp.example || echo nobody";
        assert_eq!(session.ok(&["run", "--rm", &image, "sh", "-c", look]), "nobody");
    }
    // On a network of the user, others still find the name, also beside other aliases.
    let own = crate::support::raw::Internal::new();
    for more in [&[][..], &["--network-alias", "store"]] {
        let host = ["run", "-d", "--network", &own.0, "--hostname", "db.corp.example"];
        let named = Container(session.ok(&[&host[..], more, &[&image, "sleep", "90"]].concat()));
        let look = "getent hosts db.corp.example || echo nobody";
        let found = session.ok(&["run", "--rm", "--network", &own.0, &image, "sh", "-c", look]);
        assert!(found.contains("db.corp.example"), "{more:?}: {found}");
        assert_eq!(named.asks().1, 200);
    }
}

/// `~/.docker/config.json` has proxies for the engine's own address, but clients connect to ours.
#[test]
fn proxies_for_the_engines_address_are_applied() {
    let folder = Folder::new("proxies");
    std::fs::create_dir_all(folder.0.join(".docker")).unwrap();
    let entry = |name: &str| serde_json::json!({"httpProxy": format!("http://{name}.example:3128"), "noProxy": "own.example"});
    let address = format!("unix://{}", engine_socket().display());
    let config = serde_json::json!({"proxies": {address: entry("engine"), "default": entry("default")}});
    std::fs::write(folder.0.join(".docker/config.json"), config.to_string()).unwrap();
    let image = task_image();
    let show = "env | grep -i _proxy | sort";
    let script = format!(
        "docker run --rm {image} sh -c '{show}'; docker run --rm -e HTTP_PROXY=http://asked {image} sh -c '{show}'"
    );
    let out =
        program(&folder.0).args(["run", "--offline", "--all", "--", "sh", "-c", &script]).output().unwrap();
    let (seen, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}");
    assert!(!seen.contains("default.example"), "{seen}");
    let count = |text: &str| seen.lines().filter(|line| line.starts_with(text)).count();
    assert_eq!(
        (count("HTTP_PROXY=http://engine.example:3128"), count("http_proxy=http://engine.example:3128")),
        (1, 2),
        "{seen}"
    );
    assert_eq!(count("HTTP_PROXY=http://asked"), 1, "{seen}");
    assert_eq!(count("NO_PROXY=own.example,metadata.google.internal"), 2, "{seen}");
}

/// docker sets build arguments from the same entries, with either builder.
#[test]
fn proxies_for_the_engines_address_reach_builds() {
    let folder = Folder::new("build-proxies");
    let plugins = folder.0.join(".docker/cli-plugins");
    std::fs::create_dir_all(&plugins).unwrap();
    std::os::unix::fs::symlink(super::builds::buildx(), plugins.join("docker-buildx")).unwrap();
    let address = format!("unix://{}", engine_socket().display());
    let entry = |name: &str| serde_json::json!({"httpProxy": format!("http://{name}.example:3128")});
    let config = serde_json::json!({"proxies": {address: entry("engine"), "default": entry("default")}});
    std::fs::write(folder.0.join(".docker/config.json"), config.to_string()).unwrap();
    let file = format!("FROM {}\nRUN echo built with $HTTP_PROXY $http_proxy\n", task_image());
    std::fs::write(folder.0.join("Dockerfile"), file).unwrap();
    for kit in ["0", "1"] {
        let build = format!("DOCKER_BUILDKIT={kit} docker build --no-cache --network none .");
        // BuildKit treats both spellings as one variable, and may use the value of either.
        let asked = "--build-arg HTTP_PROXY=http://asked --build-arg http_proxy=http://asked --network";
        let asked = build.replace("--network", asked);
        for (build, seen) in [
            (build, "built with http://engine.example:3128 http://engine.example:3128"),
            (asked, "built with http://asked http://asked"),
        ] {
            let mut run = program(&folder.0);
            run.env("BUILDKIT_PROGRESS", "plain").args(["run", "--offline", "--", "sh", "-c", &build]);
            let out = run.output().unwrap();
            let text = [out.stdout, out.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            assert!(out.status.success() && text.contains(seen), "{build}: {text}");
            assert!(!text.contains("default.example"), "{build}: {text}");
        }
    }
}
