//! No key gets into a container, by any way, with the built program and a real engine.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use crate::support::proxy_fixture::call;
use crate::support::session::{
    Folder, Session, docker_at, engine_socket, is_podman, program, raw, task_image,
};

/// Part of every secret of these tests, and never in the output.
const CANARY: &str = "cAnArY0f7hEgUaRd";

/// A key that no service accepts; made when the test runs.
fn key() -> String {
    let dashes = "-".repeat(5);
    let label = ["PRIVATE", "KEY"].join(" ");
    let body = format!("MIIEvQIBADANBgkqhkiG9w0BAQEF{CANARY}").repeat(6);
    format!(
        "{{\"type\": \"service_account\", \"project_id\": \"p\", \"client_email\": \"a@p.iam\", \"private_key\": \
         \"{dashes}BEGIN {label}{dashes}\\n{body}\\n{dashes}END {label}{dashes}\\n\"}}"
    )
}

fn aws() -> String {
    format!("{CANARY}{}", "Zq3xUtnFEMI7K7MDENGb4Pxw")
}

fn write(path: PathBuf, text: &str) -> PathBuf {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path
}

/// A home with a login deep inside, and a directory without a key.
fn places() -> (Folder, String, String) {
    let folder = Folder::new("guarded");
    let home = folder.0.join("home");
    write(home.join(".config/gcloud/application_default_credentials.json"), &key());
    let plain = folder.0.join("plain");
    write(plain.join("data.csv"), &"id,token\n1,a\n".repeat(100));
    let text = |path: &Path| path.display().to_string();
    (folder, text(&home), text(&plain))
}

fn session(mode: &str) -> Session {
    Session::start("", &["--offline", "--all"], &[("KFP_CREDS_GUARD", mode)])
}

fn all(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[track_caller]
fn refused(session: &Session, arguments: &[&str], words: &[&str]) {
    let out = session.docker(arguments);
    let text = all(&out);
    assert!(!out.status.success(), "docker {arguments:?} passed:\n{text}{}", session.said());
    for word in words {
        assert!(text.contains(word), "docker {arguments:?} does not say {word:?}:\n{text}");
        session.wait_for(word, Duration::from_secs(5));
    }
    assert!(!text.contains(CANARY) && !session.said().contains(CANARY));
}

#[test]
fn mounts_variables_and_volumes_with_keys_are_refused() {
    let (folder, home, plain) = places();
    let session = session("deny");
    let image = task_image();
    let run = |mount: &[&str], words: &[&str]| {
        let arguments = [&["create", "--rm"], mount, &[&image, "true"]].concat();
        refused(&session, &arguments, words);
    };
    let what = ["a Google service-account key", "application_default_credentials.json"];
    let link = folder.0.join("link");
    std::os::unix::fs::symlink(&home, &link).unwrap();
    let gcloud = format!("{home}/.config/gcloud");
    for source in [home.as_str(), &format!("{home}/.config"), &gcloud, link.to_str().unwrap()] {
        run(&["-v", &format!("{source}:/x:ro")], &what);
        run(&["--mount", &format!("type=bind,source={source},target=/x")], &what);
    }
    let options = format!("volume-opt=type=none,volume-opt=o=bind,volume-opt=device={gcloud}");
    run(&["--mount", &format!("type=volume,dst=/x,volume-driver=local,{options}")], &what);
    run(
        &["-e", &format!("AWS_SECRET_ACCESS_KEY={}", aws())],
        &["AWS_SECRET_ACCESS_KEY", "an AWS secret access key"],
    );
    run(&["-e", &format!("ANY_NAME={}", key())], &["ANY_NAME", "a Google service-account key"]);
    run(&["-l", &format!("note={}", key())], &["note", "a Google service-account key"]);
    // A volume that was made earlier, with the directory of the key as its device.
    let volume = format!("kfpct-guard-{}", std::process::id());
    let made =
        ["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &format!("device={gcloud}"), &volume];
    session.ok(&made);
    session.wait_for("a volume for later", Duration::from_secs(1));
    run(&["-v", &format!("{volume}:/x")], &[what[0], &volume]);
    // Another container, which the engine itself created, has it mounted.
    let other = raw(&["create", "-v", &format!("{gcloud}:/x"), &image, "true"]);
    run(&["--volumes-from", &other], &what);
    raw(&["rm", "-f", &other]);
    raw(&["volume", "rm", "-f", &volume]);
    // Harmless variables and mounts pass.
    session.ok(&[
        "run",
        "--rm",
        "-v",
        &format!("{plain}:{plain}"),
        "-e",
        "AWS_SECRET_ACCESS_KEY=minio123",
        &image,
        "true",
    ]);
    assert!(!session.said().contains("not verified"), "{}", session.said());
    // An exec may not carry a key either.
    let container = session.ok(&["run", "-d", "--rm", &image, "sleep", "60"]);
    let secret = format!("AZURE_CLIENT_SECRET=8Q~{}", aws());
    refused(&session, &["exec", "-e", &secret, &container, "true"], &["AZURE_CLIENT_SECRET"]);
    let script = format!("echo '{}' >/tmp/key.json", key());
    refused(
        &session,
        &["exec", &container, "sh", "-c", &script],
        &["Cmd holds a Google service-account key"],
    );
    session.ok(&["exec", "-e", "A=b", &container, "true"]);
    session.ok(&["rm", "-f", &container]);
}

#[test]
fn guard_warn_prints_off_is_silent_and_allow_exempts() {
    let (_folder, home, _) = places();
    let image = task_image();
    let bind = format!("{home}:/x:ro");
    let warned = session("warn");
    warned.ok(&["run", "--rm", "-v", &bind, &image, "true"]);
    let line = warned.wait_for("a Google service-account key", Duration::from_secs(1));
    assert!(line.contains("notice") && line.contains("application_default_credentials.json"), "{line}");
    assert!(!warned.said().contains(CANARY));
    drop(warned);
    let off = session("off");
    off.ok(&["run", "--rm", "-v", &bind, &image, "true"]);
    assert!(!off.said().contains("service-account key"), "{}", off.said());
    drop(off);
    let folder = Folder::new("allow");
    let config = write(folder.0.join("own.toml"), &format!("[guard]\nallow = [\"{home}/.config\"]\n"));
    let allowed = Session::start("", &["--offline", "--all", "--config", config.to_str().unwrap()], &[]);
    allowed.ok(&["run", "--rm", "-v", &bind, &image, "true"]);
    assert!(!allowed.said().contains("service-account key"), "{}", allowed.said());
}

/// The line that a refusal prints works in the config as it is: the same request passes.
#[test]
fn the_config_line_of_a_refusal_lets_the_request_pass() {
    let (_folder, home, _) = places();
    let image = task_image();
    let (bind, set) = (format!("{home}:/x:ro"), format!("MY_SETTING=aws_secret_access_key = {}", aws()));
    let script = format!("true # aws_secret_access_key = {}", aws());
    let request = ["run", "--rm", "-v", &bind, "-e", &set, &image, "sh", "-c", &script];
    let denied = session("deny");
    let text = all(&denied.docker(&request));
    let (_, line) =
        text.trim().split_once("under [guard] in kfp-creds.toml: ").unwrap_or_else(|| panic!("{text}"));
    let line = line.lines().next().unwrap();
    for entry in ["\"env:MY_SETTING\"", "\"command:-c\"", "application_default_credentials.json\""] {
        assert!(line.contains(entry), "{line}");
    }
    drop(denied);
    let folder = Folder::new("allow");
    let config = write(folder.0.join("own.toml"), &format!("[guard]\n{line}\n"));
    let allowed = Session::start("", &["--offline", "--all", "--config", config.to_str().unwrap()], &[]);
    allowed.ok(&request);
    let other = set.replace("MY_SETTING", "OTHER");
    refused(&allowed, &["run", "--rm", "-e", &other, &image, "true"], &["env:OTHER"]);
    refused(&allowed, &["run", "--rm", &image, "true", &script], &["command:2"]);
}

#[test]
fn a_container_that_is_not_ours_is_warned_about_and_left_alone() {
    let (_folder, home, _) = places();
    let session = Session::offline("", &[]);
    session.ok(&["run", "--rm", "-v", &format!("{home}:/x"), &task_image(), "true"]);
    session.wait_for("a Google service-account key", Duration::from_secs(1));
}

#[test]
fn a_copied_key_never_reaches_the_container() {
    let (folder, _, plain) = places();
    let session = session("deny");
    let container = session.ok(&["create", &task_image(), "sleep", "60"]);
    let tree = folder.0.join("tree");
    write(tree.join("a-first.txt"), "hello");
    write(tree.join("b-big.bin"), &"x".repeat(4 << 20));
    write(tree.join("c-key.json"), &key());
    write(tree.join("d-last.bin"), &"y".repeat(8 << 20));
    let to = format!("{container}:/tmp/");
    refused(
        &session,
        &["cp", tree.to_str().unwrap(), &to],
        &["a Google service-account key", "tree/c-key.json"],
    );
    let absent = docker_at(&session.socket, &["cp", &format!("{container}:/tmp/tree/c-key.json"), "-"]);
    assert!(!absent.status.success(), "the key is in the container");
    session.ok(&["cp", &plain, &to]);
    let back = folder.0.join("back");
    session.ok(&["cp", &format!("{container}:/tmp/plain/data.csv"), back.to_str().unwrap()]);
    assert_eq!(std::fs::read(back).unwrap(), std::fs::read(Path::new(&plain).join("data.csv")).unwrap());
    // A large harmless file arrives whole.
    let big = write(folder.0.join("big.bin"), &"0123456789abcdef".repeat(1 << 20));
    session.ok(&["cp", big.to_str().unwrap(), &to]);
    let back = folder.0.join("big.back");
    session.ok(&["cp", &format!("{container}:/tmp/big.bin"), back.to_str().unwrap()]);
    assert!(std::fs::read(back).unwrap() == std::fs::read(big).unwrap());
    session.ok(&["rm", "-f", &container]);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// `POST /build` as clients of the classic builder send it.
fn build(socket: &Path, context: &[u8], query: &str) -> String {
    use std::io::Read;
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let length = context.len();
    let head = format!(
        "POST /v1.41/build?{query} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/x-tar\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A refusal may close the connection before the whole context was sent; the reply says why.
    let _ = stream.write_all(context);
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    reply
}

#[test]
fn a_build_context_with_a_key_is_refused() {
    let session = session("deny");
    let tag = format!("kfpct-guard-build-{}", std::process::id());
    let dockerfile = "FROM scratch\nCOPY . /x/\n";
    let context = |extra: &[(&str, &str)]| {
        let mut tar = tar::Builder::new(vec![]);
        for (name, text) in [&[("Dockerfile", dockerfile), ("main.py", "print(1)\n")], extra].concat() {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap()
    };
    let env = format!("DEBUG=1\nAWS_SECRET_ACCESS_KEY={}\n", aws());
    let bad = context(&[("deploy/.env", &env)]);
    for body in [bad.clone(), gzip(&bad)] {
        let reply = build(&session.socket, &body, &format!("t={tag}"));
        assert!(reply.starts_with("HTTP/1.1 403"), "{reply}\n{}", session.said());
        assert!(reply.contains("an AWS secret access key") && reply.contains("deploy/.env"), "{reply}");
        assert!(!reply.contains(CANARY) && !session.said().contains(CANARY));
    }
    assert_eq!(raw(&["images", "-q", &tag]), "");
    let arguments = format!("t={tag}&buildargs=%7B%22AWS_SECRET_ACCESS_KEY%22%3A%22{}%22%7D", aws());
    let reply = build(&session.socket, &context(&[]), &arguments);
    assert!(reply.starts_with("HTTP/1.1 403") && reply.contains("AWS_SECRET_ACCESS_KEY"), "{reply}");
    for body in [context(&[]), gzip(&context(&[]))] {
        let reply = build(&session.socket, &body, &format!("t={tag}"));
        assert!(reply.contains("Successfully built"), "{reply}\n{}", session.said());
    }
    raw(&["rmi", "-f", &tag]);
}

#[test]
fn a_mounted_docker_socket_is_replaced_by_ours() {
    let session = session("deny");
    let image = task_image();
    let engine = engine_socket();
    for (source, target) in [(engine.as_path(), "/var/run/docker.sock"), (engine.as_path(), "/e.sock")] {
        let bind = format!("{}:{target}", source.display());
        let container = session.ok(&["create", "-v", &bind, &image, "true"]);
        let mounts = raw(&["inspect", "-f", "{{json .HostConfig.Binds}}", &container]);
        assert!(mounts.contains(&format!("{}:{target}", session.socket.display())), "{mounts}");
        raw(&["rm", "-f", &container]);
    }
    let curl = ["curl", "-s", "--unix-socket", "/var/run/docker.sock", "http://d/kfp-creds/upstream"];
    let bind = format!("{}:/var/run/docker.sock", engine.display());
    let answer = session.ok(&[&["run", "--rm", "-v", &bind, &image][..], &curl].concat());
    assert!(answer.contains("upstream"), "{answer}");
    let folder = engine.parent().unwrap().display().to_string();
    refused(&session, &["create", "-v", &format!("{folder}:/r"), &image], &["the engine's own socket"]);
    let (status, text) = call(
        &session.socket,
        "POST /v1.41/containers/create",
        &format!(
            r#"{{"Image":"{image}","HostConfig":{{"mounts":[{{"Type":"volume","target":"/x","volumeoptions":{{"driverconfig":{{"options":{{"type":"none","o":"bind","device":"{folder}"}}}}}}}}]}}}}"#
        ),
    );
    // An engine with its data beside its socket may have images with keys there, which are also named.
    let beside = text.contains(&format!("a private key at {folder}/data/"));
    assert!(status == 403 && (text.contains("engine's own socket") || beside), "{status} {text}");
}

fn scan(folder: &Path, target: &str) -> (Option<i32>, String) {
    let out = program(folder).args(["scan", target]).output().unwrap();
    let text = all(&out);
    assert!(!text.contains(CANARY), "{text}");
    (out.status.code(), text)
}

#[test]
fn scan_finds_keys_in_images_archives_and_directories() {
    let (folder, home, plain) = places();
    assert_eq!(scan(&folder.0, &plain).0, Some(0));
    let (code, text) = scan(&folder.0, &home);
    assert!(code == Some(1) && text.contains("a Google service-account key"), "{text}");
    assert_eq!(scan(&folder.0, "./nothing").0, Some(64));
    assert_eq!(scan(&folder.0, "kfpct-no-such-image").0, Some(64));
    let image = format!("kfpct-guard-scan-{}", std::process::id());
    // A key in one layer that the next layer deletes, and one in the environment.
    let base = raw(&["create", &task_image(), "true"]);
    let file = write(folder.0.join("key.json"), &key());
    raw(&["cp", file.to_str().unwrap(), &format!("{base}:/opt/key.json")]);
    raw(&["commit", &base, &image]);
    raw(&["rm", &base]);
    let remover = raw(&["create", &image, "rm", "/opt/key.json"]);
    raw(&["start", "-a", &remover]);
    let env = format!("ENV AWS_SECRET_ACCESS_KEY={}", aws());
    raw(&["commit", "-c", &env, &remover, &image]);
    raw(&["rm", &remover]);
    let began = Instant::now();
    let (code, text) = scan(&folder.0, &image);
    eprintln!("scan of the image took {:?}", began.elapsed());
    raw(&["rmi", "-f", &image]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("opt/key.json:1: a Google service-account key  in layer"), "{text}");
    assert!(text.contains("deleted by a later layer"), "{text}");
    assert!(text.contains("variable AWS_SECRET_ACCESS_KEY: an AWS secret access key"), "{text}");
}

/// A tar file of `docker save`, and one of ordinary files, plain and compressed.
#[test]
fn scan_looks_into_tar_files_of_both_kinds() {
    let (folder, home, plain) = places();
    let tar = |from: &str, name: &str| {
        let file = folder.0.join(name);
        let mut builder = tar::Builder::new(vec![]);
        builder.append_dir_all("tree", from).unwrap();
        let bytes = builder.into_inner().unwrap();
        let bytes = if name.ends_with("gz") { gzip(&bytes) } else { bytes };
        std::fs::write(&file, bytes).unwrap();
        file.display().to_string()
    };
    for name in ["keys.tar", "keys.tar.gz"] {
        let (code, text) = scan(&folder.0, &tar(&home, name));
        assert!(
            code == Some(1) && text.contains("application_default_credentials.json:1: a Google"),
            "{text}"
        );
    }
    assert_eq!(scan(&folder.0, &tar(&plain, "plain.tar.gz")).0, Some(0));
    let image = format!("kfpct-guard-tar-{}", std::process::id());
    let base = raw(&["create", &task_image(), "true"]);
    let file = write(folder.0.join("key.json"), &key());
    raw(&["cp", file.to_str().unwrap(), &format!("{base}:/opt/key.json")]);
    raw(&["commit", &base, &image]);
    raw(&["rm", &base]);
    let saved = folder.0.join("saved.tar").display().to_string();
    raw(&["save", "-o", &saved, &image]);
    raw(&["rmi", "-f", &image]);
    let (code, text) = scan(&folder.0, &saved);
    assert!(
        code == Some(1) && text.contains("opt/key.json:1: a Google service-account key  in layer"),
        "{text}"
    );
}

/// Archives in the format of `docker save`, plain and compressed.
#[test]
fn a_loaded_image_with_a_key_is_refused() {
    let folder = Folder::new("load");
    let image = format!("kfpct-guard-load-{}", std::process::id());
    let saved = |name: &str, file: &str, text: &str, change: &str| {
        let tree = write(folder.0.join(name).join(file), text);
        let mut builder = tar::Builder::new(vec![]);
        builder.append_path_with_name(&tree, file).unwrap();
        let layer = folder.0.join(format!("{name}.layer"));
        std::fs::write(&layer, builder.into_inner().unwrap()).unwrap();
        raw(&["import", "-c", change, layer.to_str().unwrap(), &image]);
        let tar = folder.0.join(format!("{name}.tar"));
        raw(&["save", "-o", tar.to_str().unwrap(), &image]);
        raw(&["rmi", "-f", &image]);
        std::fs::write(tar.with_extension("tar.gz"), gzip(&std::fs::read(&tar).unwrap())).unwrap();
        [tar.display().to_string(), tar.with_extension("tar.gz").display().to_string()]
    };
    let keyed = saved("keyed", "opt/key.json", &key(), "ENV A=b");
    let env = saved("env", "opt/motd", "hello", &format!("ENV AWS_SECRET_ACCESS_KEY={}", aws()));
    let plain = saved("plain", "opt/motd", "hello", "ENV A=b");
    let there = || docker_at(&engine_socket(), &["image", "inspect", &image]).status.success();
    let denying = session("deny");
    for (files, words) in [
        (&keyed, ["load: the archive holds a Google service-account key at opt/key.json in layer"]),
        (&env, ["an AWS secret access key at variable AWS_SECRET_ACCESS_KEY"]),
    ] {
        for file in files {
            refused(&denying, &["load", "-i", file], &words);
            assert!(!there(), "{file} was loaded");
        }
    }
    for file in &plain {
        denying.ok(&["load", "-i", file]);
        assert!(there());
        raw(&["rmi", "-f", &image]);
    }
    assert!(!denying.said().contains("not verified"), "{}", denying.said());
    for (mode, told) in [("warn", true), ("off", false)] {
        let session = session(mode);
        session.ok(&["load", "-i", &keyed[0]]);
        raw(&["rmi", "-f", &image]);
        assert_eq!(session.said().contains("at opt/key.json in layer"), told, "{}", session.said());
    }
}

/// An image in pure OCI layout, without the `manifest.json` that Docker's archives have: a layer with `file`
/// in it. Podman and Docker's containerd store load such archives.
fn oci_layout(name: &str, file: &str, text: &str, environment: &str) -> Vec<u8> {
    fn add(tar: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, bytes).unwrap();
    }
    fn digest(bytes: &[u8]) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
    let mut layer = tar::Builder::new(vec![]);
    add(&mut layer, file, text.as_bytes());
    let plain = layer.into_inner().unwrap();
    let layer = gzip(&plain);
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "config": {"Env": [environment]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&plain))]},
    });
    let config = config.to_string().into_bytes();
    let of = |kind: &str, bytes: &[u8]| {
        serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{}", digest(bytes)), "size": bytes.len(),
        })
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": of("config.v1+json", &config), "layers": [of("layer.v1.tar+gzip", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut found = of("manifest.v1+json", &manifest);
    found["annotations"] = serde_json::json!({
        "io.containerd.image.name": format!("docker.io/library/{name}:latest"),
        "org.opencontainers.image.ref.name": "latest",
    });
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [found]}).to_string();
    let mut archive = tar::Builder::new(vec![]);
    add(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    add(&mut archive, "index.json", index.as_bytes());
    for blob in [&config, &layer, &manifest] {
        add(&mut archive, &format!("blobs/sha256/{}", digest(blob)), blob);
    }
    archive.into_inner().unwrap()
}

/// The engine decides whether it can load such an archive; the guard judges the content before.
#[test]
fn a_loaded_oci_layout_with_a_key_is_refused() {
    let folder = Folder::new("layout");
    let image = format!("kfpct-guard-layout-{}", std::process::id());
    let saved = |name: &str, file: &str, text: &str, environment: &str| {
        let path = folder.0.join(format!("{name}.tar"));
        std::fs::write(&path, oci_layout(&image, file, text, environment)).unwrap();
        path.display().to_string()
    };
    let session = session("deny");
    let words = ["load: the archive holds a Google service-account key at opt/key.json in layer"];
    refused(&session, &["load", "-i", &saved("keyed", "opt/key.json", &key(), "A=b")], &words);
    let secret = format!("AWS_SECRET_ACCESS_KEY={}", aws());
    let words = ["an AWS secret access key at variable AWS_SECRET_ACCESS_KEY"];
    refused(&session, &["load", "-i", &saved("env", "opt/motd", "hello", &secret)], &words);
    let plain = saved("plain", "opt/motd", "hello", "A=b");
    let (ours, bare) =
        (session.docker(&["load", "-i", &plain]), docker_at(&engine_socket(), &["load", "-i", &plain]));
    assert_eq!(ours.status.code(), bare.status.code(), "{}\nwithout us: {}", all(&ours), all(&bare));
    assert!(!all(&ours).contains("kfp-creds: "), "{}", all(&ours));
    assert!(!is_podman() || ours.status.success(), "Podman loads it: {}", all(&ours));
    docker_at(&engine_socket(), &["rmi", "-f", &image]);
}

#[test]
fn a_key_in_the_images_environment_is_refused() {
    let session = session("deny");
    let image = format!("kfpct-guard-env-{}", std::process::id());
    let base = raw(&["create", &task_image(), "true"]);
    raw(&["commit", "-c", &format!("ENV AWS_SECRET_ACCESS_KEY={}", aws()), &base, &image]);
    raw(&["rm", &base]);
    refused(&session, &["create", &image, "true"], &["the image's variable AWS_SECRET_ACCESS_KEY"]);
    raw(&["rmi", "-f", &image]);
}

#[test]
fn the_root_directory_cannot_be_mounted() {
    let session = session("deny");
    refused(&session, &["create", "-v", "/:/host:ro", &task_image(), "true"], &["the engine's own socket"]);
}

/// Containers of a swarm get no identity here, so a key for them is only reported, and the request passes:
/// the engine, which is in no swarm, answers itself.
#[test]
fn keys_in_swarm_secrets_are_reported() {
    use base64::Engine as _;
    let session = session("deny");
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let send = |path: &str, body: serde_json::Value| {
        call(&session.socket, &format!("POST /v1.41/{path}"), &body.to_string())
    };
    for (path, body) in [
        ("configs/create", serde_json::json!({"Name": "one", "Data": encode(&key())})),
        ("secrets/create", serde_json::json!({"name": "two", "data": encode(&key())})),
        (
            "services/create",
            serde_json::json!({"Name": "three", "TaskTemplate": {"ContainerSpec": {
                "Image": "x", "Env": [format!("ANY={}", key())]}}}),
        ),
    ] {
        let name = body["Name"].as_str().or_else(|| body["name"].as_str()).unwrap().to_string();
        let (status, text) = send(path, body);
        // Docker is in no swarm; Podman has no swarms, but has secrets of its own.
        assert!(is_podman() || (status == 503 && text.contains("swarm")), "{status} {text}");
        let line = session.wait_for(&format!("{name}, of the swarm"), Duration::from_secs(1));
        assert!(line.contains("a Google service-account key"), "{line}");
    }
    let (status, _) = send("configs/create", serde_json::json!({"Name": "four", "Data": encode("a = 1")}));
    assert!(
        (is_podman() || status == 503) && !session.said().contains("four, of the swarm"),
        "{}",
        session.said()
    );
    assert!(!session.said().contains(CANARY));
    if is_podman() {
        call(&engine_socket(), "DELETE /v1.41/secrets/two", "");
    }
}

/// 1 100 files of 100 MiB, which use no space on the disk: more than one search may read, however fast the
/// machine is. `guard::tests` counts how much it reads.
fn hundred_gigabytes(folder: &Folder) -> PathBuf {
    let big = folder.0.join("big");
    std::fs::create_dir_all(&big).unwrap();
    for part in 0..1_100 {
        let sparse = std::fs::File::create(big.join(format!("part-{part}.parquet"))).unwrap();
        sparse.set_len(100 << 20).unwrap();
    }
    big
}

#[test]
fn a_scan_of_100_gigabytes_reports_what_it_left_out() {
    let (folder, _, _) = places();
    let big = hundred_gigabytes(&folder);
    let session = session("deny");
    let bind = format!("{}:/x:ro", big.display());
    let container = session.ok(&["create", "-v", &bind, &task_image(), "true"]);
    raw(&["rm", "-f", &container]);
    let line = session.wait_for("not verified", Duration::from_secs(1));
    assert!(line.contains("was not looked at"), "{line}");
    // The same for a mount of the session's config.
    let mount = format!("{}:/data", big.display());
    let other = Session::offline("", &["--mount", &mount]);
    let line = other.wait_for("[[mount]]: not verified", Duration::from_secs(1));
    assert!(line.contains("was not looked at"), "{line}");
    drop(other);
    write(big.join(".aws/credentials"), &format!("[x]\naws_secret_access_key = {}\n", aws()));
    refused(&session, &["create", "-v", &bind, &task_image(), "true"], &["an AWS secret access key"]);
}

/// The search finds the key early; the file system hangs at another place, for which the answer does not
/// wait.
#[test]
fn a_key_is_refused_although_the_search_never_ends() {
    let (folder, home, plain) = places();
    let dead = folder.0.join("home/server");
    std::fs::create_dir(&dead).unwrap();
    let arguments = ["--offline", "--all"];
    let session = Session::beside_a_dead_server(&arguments, &dead);
    let image = task_image();
    let create = |source: &str| session.docker(&["create", "-v", &format!("{source}:/x:ro"), &image, "true"]);
    let out = create(&home);
    let text = all(&out);
    assert!(!out.status.success() && text.contains("application_default_credentials.json"), "{text}");
    // Without the key the search cannot finish, so no container is created, each time.
    std::fs::remove_dir_all(folder.0.join("home/.config")).unwrap();
    for _ in 0..2 {
        let text = all(&create(&home));
        assert!(text.contains("not verified: the file system did not answer; try again"), "{text}");
    }
    // Other requests do not wait, not even while the hanging place is searched.
    let hung = format!("{}/x:/var/run/docker.sock", dead.display());
    let asked = std::thread::scope(|scope| {
        let asking = scope.spawn(|| session.docker(&["create", "-v", &hung, &image, "true"]));
        while !asking.is_finished() {
            let (status, _) = call(&session.socket, "GET /_ping", "");
            assert_eq!(status, 200);
            std::thread::sleep(Duration::from_millis(20));
        }
        asking.join().unwrap()
    });
    let text = all(&asked);
    assert!(!asked.status.success() && text.contains("the file system did not answer"), "{text}");
    let out = create(&plain);
    assert!(out.status.success(), "{}", all(&out));
    raw(&["rm", "-f", String::from_utf8_lossy(&out.stdout).trim()]);
}

#[test]
fn a_configured_volume_with_a_key_prevents_the_start() {
    let (_folder, home, _) = places();
    let volume = format!("kfpct-guard-start-{}", std::process::id());
    let device = format!("device={home}/.config/gcloud");
    raw(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &device, &volume]);
    let folder = Folder::new("volume");
    std::fs::create_dir(folder.0.join("images")).unwrap();
    let mount =
        |source: &str, target: &str| format!("[[mount]]\nsource = \"{source}\"\ntarget = \"{target}\"\n");
    let absent = format!("{volume}-absent");
    let config = mount(&volume, "/x") + &mount("images", "/y") + &mount(&absent, "/z");
    std::fs::write(folder.0.join("own.toml"), config).unwrap();
    let out = program(&folder.0).args(["serve", "--offline", "--config", "own.toml"]).output().unwrap();
    raw(&["volume", "rm", &volume]);
    let text = all(&out);
    assert_eq!(out.status.code(), Some(78), "{text}");
    // All problems are reported at once.
    for what in [
        &format!("volume {volume}, bound to"),
        "a Google service-account key",
        "no volume images; if you mean the one beside it, write ./images",
        &format!("no volume {absent}; make it with docker volume create {absent}"),
    ] {
        assert!(text.contains(what), "{what}:\n{text}");
    }
    assert!(!text.contains(CANARY));
    assert_eq!(
        raw(&["volume", "ls", "-q", "-f", &format!("name={absent}")]),
        "",
        "the refused start must not create the volume"
    );
}

/// kfp makes its pipeline root itself, at its first task, so a newcomer's first message is not about that.
#[test]
fn a_pipeline_root_that_does_not_exist_yet_is_not_reported() {
    let (session, folder) = (session("deny"), Folder::new("roots"));
    let image = task_image();
    let input = |root: &str| {
        let output = format!("{root}/my-etl-2026-11-23-06-04-22-567757/comp/executor_output.json");
        serde_json::json!({"outputs": {"outputFile": output}}).to_string()
    };
    let create = |root: &str, command: &[&str]| {
        let bind = format!("{root}:{root}:rw");
        // Podman makes no directory for a bind, and reports that after the judgement.
        let out = session.docker(&[&["create", "-v", &bind, &image][..], command].concat());
        assert!(is_podman() || out.status.success(), "{}", all(&out));
        let id = String::from_utf8_lossy(&out.stdout).trim().to_string();
        docker_at(&engine_socket(), &["rm", "-f", &id]);
    };
    let root = folder.0.join("local_outputs").display().to_string();
    create(
        &root,
        &["sh", "-c", "true", "sh", "--executor_input", &input(&root), "--function_to_execute", "comp"],
    );
    assert!(!session.said().contains("local_outputs"), "{}", session.said());
    assert!(!session.said().contains("not verified"), "{}", session.said());
    // Any other missing place is reported.
    let other = folder.0.join("elsewhere").display().to_string();
    create(&other, &["true"]);
    let line = session.wait_for("not verified", Duration::from_secs(2));
    assert!(line.contains(&format!("{other} is not there")), "{line}");
}

/// The calls of Testcontainers' Ryuk, from a container to which a program gave the engine's socket: it looks
/// for objects with a label, removes them, and prunes.
#[test]
fn a_reaper_with_the_mounted_socket_finds_and_removes_by_label() {
    let session = session("deny");
    let image = task_image();
    let label = format!("kfpct.reaped={}", std::process::id());
    let one = session.ok(&["create", "--label", &label, &image, "true"]);
    session.ok(&["volume", "create", "--label", &label, &format!("kfpct-reaped-{}", std::process::id())]);
    session.ok(&["network", "create", "--label", &label, &format!("kfpct-reaped-{}", std::process::id())]);
    let bind = format!("{}:/var/run/docker.sock", engine_socket().display());
    let reaper = session.ok(&["run", "-d", "--rm", "-v", &bind, &image, "sleep", "120"]);
    let ask = |method: &str, path: &str, body: &str| {
        let url = format!("http://d/v1.41{path}");
        let curl = ["exec", &reaper, "curl", "-s", "-X", method, "--unix-socket", "/var/run/docker.sock"];
        let more = ["-H", "Content-Type: application/json", "-d", body, "-w", "\n%{http_code}", "-g", &url];
        // Through the engine itself, since the session would refuse an exec with a key in its command.
        let out = raw(&[&curl[..], &more].concat());
        let (text, status) = out.rsplit_once('\n').unwrap_or(("", &out));
        (status.to_string(), text.to_string())
    };
    let filters: String =
        format!(r#"{{"label":["{label}"]}}"#).bytes().map(|byte| format!("%{byte:02X}")).collect();
    // A sibling container is judged like every other.
    let (status, text) = ask(
        "POST",
        "/containers/create",
        &format!(r#"{{"Image":"{image}","Env":["AWS_SECRET_ACCESS_KEY={}"]}}"#, aws()),
    );
    assert!(status == "403" && text.contains("an AWS secret access key"), "{status} {text}");
    let labels = label.replace('=', "\":\"");
    let (status, text) =
        ask("POST", "/containers/create", &format!(r#"{{"Image":"{image}","Labels":{{"{labels}"}}}}"#));
    assert_eq!(status, "201", "{text}");
    let sibling =
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["Id"].as_str().unwrap().to_string();
    let (status, text) = ask("GET", &format!("/containers/json?all=1&filters={filters}"), "");
    let listed: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut ids: Vec<&str> = listed.as_array().unwrap().iter().filter_map(|one| one["Id"].as_str()).collect();
    let mut wanted = vec![one.as_str(), &sibling];
    ids.sort_unstable();
    wanted.sort_unstable();
    assert_eq!((status.as_str(), &ids), ("200", &wanted));
    assert_eq!(ask("DELETE", &format!("/containers/{sibling}?force=1&v=1"), "").0, "204");
    for what in ["containers", "networks", "volumes", "images"] {
        let (status, text) = ask("POST", &format!("/{what}/prune?filters={filters}"), "");
        assert_eq!(status, "200", "{what}: {text}");
    }
    for list in [&["ps", "-aq"][..], &["network", "ls", "-q"], &["volume", "ls", "-q"]] {
        assert_eq!(raw(&[list, &["--filter", &format!("label={label}")]].concat()), "", "{list:?}");
    }
    session.ok(&["rm", "-f", &reaper]);
}
