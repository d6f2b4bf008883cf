//! The image of `deploy/Dockerfile`, and how the other files of `deploy/` use it.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use crate::support::far_engine::certificates;
use crate::support::federation::{AUDIENCE, Federation, POOL};
use crate::support::issuer::Issuer;
use crate::support::raw::{answer, ask, token, until};
use crate::support::session::{
    Folder, PROGRAM, Session, docker_at, engine_socket, nobody, python, raw, task_image,
};

/// The user who runs the image: not root, and without an entry on this machine.
const USER: u32 = 51234;

fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The image that `KFP_CREDS_TEST_IMAGE` names, made by `scripts/image`; otherwise that of
/// `deploy/Dockerfile` with the program under test. That program is not static, so another layer adds its
/// libraries.
fn image() -> String {
    if let Ok(given) = std::env::var("KFP_CREDS_TEST_IMAGE") {
        return given;
    }
    let about = std::fs::metadata(PROGRAM).unwrap();
    let changed = about.modified().unwrap().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let tag = format!("kfp-creds-image-test:{changed}");
    if docker_at(&engine_socket(), &["image", "inspect", &tag]).status.success() {
        return tag;
    }
    let context = Folder::new("image");
    let run = |program: &str, arguments: &[&str]| {
        let out = Command::new(program).args(arguments).env("DOCKER_BUILDKIT", "0").output().unwrap();
        assert!(out.status.success(), "{program} {arguments:?}: {}", said(&out));
        String::from_utf8(out.stdout).unwrap()
    };
    let inside = |name: &str| context.0.join(name).display().to_string();
    run("strip", &["--strip-debug", "-o", &inside("kfp-creds"), PROGRAM]);
    std::fs::copy("/etc/ssl/certs/ca-certificates.crt", inside("ca-certificates.crt")).unwrap();
    let host = format!("unix://{}", engine_socket().display());
    let docker = |arguments: &[&str]| run("docker", &[&["-H", &host, "build", "-q"], arguments].concat());
    let file = root().join("deploy/Dockerfile").display().to_string();
    let plain = format!("kfp-creds-image-plain:{changed}");
    docker(&["-t", &plain, "-f", &file, &context.0.display().to_string()]);
    let libraries = run("ldd", &[PROGRAM]);
    let paths: BTreeSet<&str> = libraries.split_whitespace().filter(|word| word.starts_with('/')).collect();
    let mut steps = format!("FROM {plain}\n");
    for (number, path) in paths.iter().enumerate() {
        std::fs::copy(path, inside(&format!("library-{number}"))).unwrap();
        steps.push_str(&format!("COPY library-{number} {path}\n"));
    }
    std::fs::write(inside("Dockerfile"), steps).unwrap();
    docker(&["-t", &tag, &context.0.display().to_string()]);
    tag
}

/// A container of the image, removed at the end of the test.
struct Sidecar(String);

impl Sidecar {
    fn run(arguments: &[&str]) -> Self {
        let strict = ["run", "-d", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"];
        Self(raw(&[&strict, arguments].concat()))
    }

    fn said(&self) -> String {
        said(&docker_at(&engine_socket(), &["logs", &self.0]))
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        docker_at(&engine_socket(), &["rm", "-f", "-v", &self.0]);
    }
}

/// The arguments that let [`USER`] use `runtime`, as the head of the Dockerfile says.
fn as_user(runtime: &Path, network: &str) -> Vec<String> {
    let group = std::fs::metadata(engine_socket()).unwrap().gid().to_string();
    let (user, place) = (format!("{USER}:{USER}"), runtime.display());
    let environment = format!("XDG_RUNTIME_DIR={place}");
    let given = ["--user", &user, "--group-add", &group, "--network", network, "-e", &environment, "-v"];
    given.into_iter().map(String::from).chain([format!("{place}:{place}")]).collect()
}

#[test]
fn the_image_serves_the_containers_of_its_machine() {
    let (image, folder, socket) = (image(), Folder::new("deploy"), engine_socket());
    let runtime = folder.0.join("run");
    std::fs::create_dir(&runtime).unwrap();
    chown(&runtime, Some(USER), Some(USER)).unwrap();
    let user = as_user(&runtime, "none");
    let user: Vec<&str> = user.iter().map(String::as_str).collect();
    let engine = format!("{}:/var/run/docker.sock", socket.display());
    let serve = ["serve", "--offline", "--all", "--host-root", "/host"];
    let mounts = ["-v", &engine, "-v", "/:/host:ro", &image];
    let session = Sidecar::run(&[&user[..], &mounts, &serve].concat());
    let proxy = runtime.join("kfp-creds/default.sock");
    until("it serves", Duration::from_secs(30), || docker_at(&proxy, &["version"]).status.success());
    assert!(!session.said().contains("no certificate authorities"), "{}", session.said());
    let out = docker_at(&proxy, &["run", "--rm", &task_image(), "sh", "-c", &ask()]);
    assert!(out.status.success(), "{}{}", said(&out), session.said());
    assert!(token(&String::from_utf8(out.stdout).unwrap())["container"].is_string());
    sees_the_files_of_the_machine(&session, &proxy, &folder);
    // A health check with the same image and user, in a container of its own.
    let health = [&["run", "--rm"], &user[..], &[&image, "health"]].concat();
    assert!(docker_at(&socket, &health).status.success());
    raw(&["stop", "-t", "20", &session.0]);
    assert_eq!(raw(&["inspect", "-f", "{{.State.ExitCode}}", &session.0]), "0", "{}", session.said());
    assert!(session.said().contains("session ended") && !proxy.exists());
}

/// The docker command, with the certificates in `folder`, or without any.
fn over_tls(port: u16, folder: Option<&Path>, arguments: &[&str]) -> Output {
    let mut command = Command::new("docker");
    command.env_clear().env("PATH", std::env::var("PATH").unwrap());
    command.args(["-H", &format!("tcp://127.0.0.1:{port}")]);
    if let Some(folder) = folder {
        command.arg("--tlsverify");
        for (flag, file) in [("--tlscacert", "ca.pem"), ("--tlscert", "cert.pem"), ("--tlskey", "key.pem")] {
            command.arg(flag).arg(folder.join(file));
        }
    }
    command.args(arguments).output().unwrap()
}

/// For a host without the program: it has only a published port and the certificates.
#[test]
fn the_image_serves_docker_over_tls_through_a_published_port() {
    let (image, folder, socket) = (image(), Folder::new("deploy"), engine_socket());
    let (runtime, tls) = (folder.0.join("run"), folder.0.join("tls"));
    for place in [&runtime, &tls] {
        std::fs::create_dir(place).unwrap();
        chown(place, Some(USER), Some(USER)).unwrap();
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let user = as_user(&runtime, "bridge");
    let user: Vec<&str> = user.iter().map(String::as_str).collect();
    let (engine, shown) =
        (format!("{}:/var/run/docker.sock", socket.display()), format!("{}:/tls", tls.display()));
    let published = format!("127.0.0.1:{port}:2376");
    let mounts = ["-v", &engine, "-v", &shown, "-p", &published, &image];
    let serve = ["serve", "--offline", "--all", "--tls", "/tls", "--tls-listen", "0.0.0.0:2376"];
    let session = Sidecar::run(&[&user[..], &mounts, &serve].concat());
    until("it serves", Duration::from_secs(30), || over_tls(port, Some(&tls), &["version"]).status.success());
    let out = over_tls(port, Some(&tls), &["run", "--rm", &task_image(), "sh", "-c", &ask()]);
    assert!(out.status.success(), "{}{}", said(&out), session.said());
    assert!(token(&String::from_utf8(out.stdout).unwrap())["container"].is_string());
    let key = std::fs::metadata(tls.join("key.pem")).unwrap();
    assert_eq!((key.mode() & 0o7777, key.uid()), (0o600, USER));
    // Without them, a client learns nothing about the engine.
    assert!(!over_tls(port, None, &["version"]).status.success());
    let other = folder.0.join("other");
    certificates(&other);
    std::fs::copy(tls.join("ca.pem"), other.join("ca.pem")).unwrap();
    let out = over_tls(port, Some(&other), &["version"]);
    assert!(!out.status.success() && !said(&out).contains("Server:"), "{}", said(&out));
    assert!(
        session.said().contains("the Docker API is open to the network on 0.0.0.0:2376"),
        "{}",
        session.said()
    );
    raw(&["stop", "-t", "20", &session.0]);
    assert_eq!(std::fs::read_dir(&tls).unwrap().count(), 0, "its certificates went with it");
}

/// Sources of `[[mount]]` are paths of the machine, and the session follows a config file of the machine by
/// its path there.
#[test]
fn the_image_reads_and_follows_a_config_of_its_machine() {
    let (image, folder, socket) = (image(), Folder::new("deploy"), engine_socket());
    let (runtime, place) = (folder.0.join("run"), folder.0.join("project"));
    std::fs::create_dir(&runtime).unwrap();
    chown(&runtime, Some(USER), Some(USER)).unwrap();
    std::fs::create_dir_all(place.join("data")).unwrap();
    std::fs::write(place.join("data/rows.csv"), "1,2\n").unwrap();
    let configure = |target: &str| {
        let text = format!("all = true\n[[mount]]\nsource = \"./data\"\ntarget = \"{target}\"\n");
        std::fs::write(place.join("kfp-creds.toml"), text).unwrap();
    };
    configure("/first");
    let user = as_user(&runtime, "none");
    let user: Vec<&str> = user.iter().map(String::as_str).collect();
    let engine = format!("{}:/var/run/docker.sock", socket.display());
    let config = format!("/host{}/kfp-creds.toml", place.display());
    let serve = ["serve", "--offline", "--host-root", "/host", "--config", &config];
    let mounts = ["-v", &engine, "-v", "/:/host:ro", &image];
    let session = Sidecar::run(&[&user[..], &mounts, &serve].concat());
    let proxy = runtime.join("kfp-creds/default.sock");
    until("it serves", Duration::from_secs(30), || docker_at(&proxy, &["version"]).status.success());
    let has = |target: &str| {
        let out = docker_at(&proxy, &["run", "--rm", &task_image(), "cat", &format!("{target}/rows.csv")]);
        assert!(out.status.success() && said(&out).contains("1,2"), "{}{}", said(&out), session.said());
    };
    let says = |what: &str| until(what, Duration::from_secs(10), || session.said().contains(what));
    has("/first");
    configure("/second");
    says("1 mounts for containers from now on");
    has("/second");
    let bind = format!("{}:/project", folder.0.display());
    let made = docker_at(&proxy, &["create", "-v", &bind, &task_image(), "true"]);
    assert!(made.status.success(), "{}", said(&made));
    configure("/third");
    says(&format!("a container can write {}, or could", folder.0.display()));
    has("/second");
    docker_at(&socket, &["rm", "-f", String::from_utf8(made.stdout).unwrap().trim()]);
    raw(&["stop", "-t", "20", &session.0]);
}

/// The guard's messages use the machine's paths, and it resolves links as the machine does.
fn sees_the_files_of_the_machine(session: &Sidecar, proxy: &Path, folder: &Folder) {
    let (task, keys, link) = (task_image(), folder.0.join("keys"), folder.0.join("link"));
    certificates(&keys);
    std::fs::set_permissions(keys.join("key.pem"), PermissionsExt::from_mode(0o644)).unwrap();
    std::os::unix::fs::symlink(&keys, &link).unwrap();
    for source in [&keys, &link] {
        let bind = format!("{}:/keys:ro", source.display());
        let out = docker_at(proxy, &["create", "-v", &bind, &task, "true"]);
        let found = format!("a private key at {}/", keys.display());
        assert!(!out.status.success() && said(&out).contains(&found), "{}{}", said(&out), session.said());
        assert!(!said(&out).contains("/host"), "{}", said(&out));
    }
    let clean = folder.0.join("clean");
    std::fs::create_dir(&clean).unwrap();
    std::fs::write(clean.join("notes.txt"), "nothing").unwrap();
    let bind = format!("{}:/notes:ro", clean.display());
    let out = docker_at(proxy, &["run", "--rm", "-v", &bind, &task, "true"]);
    let unseen = format!("not verified: {}", clean.display());
    assert!(out.status.success() && !session.said().contains(&unseen), "{}", session.said());
}

/// `docker-compose -f deploy/compose.yaml` for a separate project.
fn compose(host: &Path, project: &str, code: &str, arguments: &[&str]) -> Output {
    let program = std::env::var("KFP_CREDS_DOCKER_COMPOSE")
        .expect("KFP_CREDS_DOCKER_COMPOSE is not set: scripts/setup --all writes .work/env, which sets it");
    Command::new(program)
        .args(["-p", project, "-f"])
        .arg(root().join("deploy/compose.yaml"))
        .args(arguments)
        .env("DOCKER_HOST", format!("unix://{}", host.display()))
        .env("COMPOSE_DOCKER_CLI_BUILD", "0")
        .env("KFP_CREDS_IMAGE", image())
        .env("APP_IMAGE", task_image())
        .env("APP_CODE", code)
        .envs(nobody())
        .output()
        .unwrap()
}

/// Sends the request of Google's library; for `python3 -c` in the compose file.
const CODE: &str = "import os, urllib.request as u; \
    print('TOKEN ' + u.urlopen(u.Request('http://' + os.environ['GCE_METADATA_HOST'] + \
    '/computeMetadata/v1/instance/service-accounts/default/token', headers={'Metadata-Flavor': 'Google'})).read().decode())";

#[test]
fn compose_application_and_services_get_their_identities() {
    let project = format!("deploy{}", std::process::id());
    let engine = engine_socket();
    let out = compose(&engine, &project, CODE, &["up", "--exit-code-from", "app"]);
    let text = said(&out);
    let logs =
        if out.status.success() { String::new() } else { said(&compose(&engine, &project, CODE, &["logs"])) };
    compose(&engine, &project, CODE, &["down", "-t", "1"]);
    assert!(out.status.success() && text.contains("\"access_token\""), "{text}{logs}");

    let session = Session::offline("", &["--all"]);
    let out = compose(&session.socket, &project, CODE, &["--profile", "session", "run", "--rm", "task"]);
    let text = said(&out);
    compose(&session.socket, &project, CODE, &["--profile", "session", "down", "-t", "1"]);
    assert!(out.status.success() && text.contains("\"access_token\""), "{text}{}", session.said());
}

/// The pod as one of its containers sees it in Kubernetes.
struct Pod(Value);

impl Pod {
    /// The pod of `deploy/kubernetes.yaml`; the models of the official client accept it.
    fn read() -> Self {
        let model = root().join("tests/python/kubernetes_model.py");
        let file = root().join("deploy/kubernetes.yaml");
        let out = Command::new(python()).arg(model).arg(file).output().unwrap();
        assert!(out.status.success(), "{}", said(&out));
        let objects: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
        Self(objects.into_iter().find(|object| object["kind"] == "Pod").unwrap())
    }

    fn sidecar(&self) -> &Value {
        &self.0["spec"]["initContainers"][0]
    }

    /// A user or group id of the pod's security context.
    fn id(&self, name: &str) -> u32 {
        self.0["spec"]["securityContext"][name].as_u64().unwrap().try_into().unwrap()
    }

    fn variables(of: &Value) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        of["env"].as_array().unwrap().iter().map(|one| (text(&one["name"]), text(&one["value"]))).collect()
    }
}

fn words(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

const ACCOUNT: &str = "pipeline@my-project.iam.gserviceaccount.com";

/// Writes the pod's projected token as the kubelet does for `fsGroup`, and makes a provider trust the
/// cluster.
fn project(pod: &Pod, fake: &Federation, folder: &Folder) {
    let issuer = Issuer::rs256("https://kubernetes.default.svc.cluster.local");
    fake.trust(AUDIENCE, &issuer, &[]);
    let subject = "system:serviceaccount:default:pipeline";
    let pool = AUDIENCE.split("/providers/").next().unwrap();
    fake.google.allow(&format!("principal:{pool}/subject/{subject}"), ACCOUNT);
    let projected = &pod.0["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    let audience = filled(projected["audience"].as_str().unwrap());
    let file = folder.0.join(projected["path"].as_str().unwrap());
    std::fs::write(&file, issuer.token(subject, &audience, 3600, &serde_json::json!({}))).unwrap();
    chown(&file, Some(0), Some(pod.id("fsGroup"))).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
    std::fs::set_permissions(&folder.0, PermissionsExt::from_mode(0o755)).unwrap();
}

/// The text with the values that a user fills in.
fn filled(text: &str) -> String {
    text.replace("projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER", POOL)
        .replace("ACCOUNT@PROJECT", "pipeline@my-project")
        .replace("PROJECT", "my-project")
}

/// The sidecar in the test's network, where the fake Google listens: the containers of a pod share one
/// network.
fn sidecar(pod: &Pod, fake: &Federation, folder: &Folder) -> Sidecar {
    let sidecar = pod.sidecar();
    let mount = sidecar["volumeMounts"][0]["mountPath"].as_str().unwrap();
    let bind = format!("{}:{mount}:ro", folder.0.display());
    let user = format!("{}:{}", pod.id("runAsUser"), pod.id("runAsGroup"));
    let mut variables: Vec<String> =
        Pod::variables(sidecar).iter().map(|(name, value)| format!("{name}={}", filled(value))).collect();
    variables.push(format!("KFP_CREDS_ENDPOINT_STS={}/v1/token", fake.url()));
    variables.push(format!("KFP_CREDS_ENDPOINT_IAM_CREDENTIALS={}", fake.google.url()));
    let mut arguments = vec!["--network", "host", "--user", &user, "-v", &bind];
    arguments.extend(variables.iter().flat_map(|variable| ["-e", variable]));
    let image = image();
    arguments.push(&image);
    arguments.extend(words(&sidecar["args"]));
    Sidecar::run(&arguments)
}

#[test]
fn the_kubernetes_pod_gets_tokens_of_its_service_account() {
    let (pod, fake, folder) = (Pod::read(), Federation::start(), Folder::new("deploy"));
    let (spec, about) = (&pod.0["spec"], pod.sidecar());
    assert_eq!(about["restartPolicy"], "Always");
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(about["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(about["securityContext"]["capabilities"]["drop"][0], "ALL");
    project(&pod, &fake, &folder);
    let running = sidecar(&pod, &fake, &folder);
    let probe = words(&about["startupProbe"]["exec"]["command"]);
    until(&format!("its probe succeeds: {}", running.said()), Duration::from_secs(30), || {
        docker_at(&engine_socket(), &[&["exec", &running.0], probe.as_slice()].concat()).status.success()
    });

    let mut arguments = vec!["run", "--rm", "--network", "host"];
    let app: Vec<String> = Pod::variables(&spec["containers"][0])
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    arguments.extend(app.iter().flat_map(|variable| ["-e", variable]));
    let (task, script) = (task_image(), ask());
    arguments.extend([task.as_str(), "sh", "-c", &script]);
    let (body, status, _) = answer(&raw(&arguments));
    assert_eq!(status, 200, "{body}{}", running.said());
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(fake.google.minted(body["access_token"].as_str().unwrap()).unwrap().email, ACCOUNT);
}
