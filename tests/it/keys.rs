//! Keys in requests of the API other than creates, against an engine that records what it receives.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::support::fake_engine::{FakeEngine, json};
use crate::support::proxy_fixture::{ProxyFixture, Scratch, call, raw};

const TASK: &str = "00000000000000000000000000000000000000000000000000000000000000aa";
const PLAIN: &str = "00000000000000000000000000000000000000000000000000000000000000bb";

/// A key that opens nothing, made when the test runs.
fn aws() -> String {
    ["Zq3xUtnFEMI7K7MDENGb", "PxRfiCYz8h2kP0aQ1Lm9"].concat()
}

fn fixture() -> (Scratch, FakeEngine, ProxyFixture) {
    let scratch = Scratch::new();
    let engine = FakeEngine::start(&scratch.0, |seen| {
        let of = |id: &str, image: &str| {
            json("200 OK", &format!(r#"{{"Id":"{id}","Config":{{"Image":"{image}"}},"HostConfig":{{}}}}"#))
        };
        match seen.line.split(' ').nth(1).unwrap() {
            path if path.contains(TASK) && seen.is("GET") => of(TASK, "i"),
            path if path.contains(PLAIN) && seen.is("GET") => of(PLAIN, "plain"),
            _ => json("200 OK", r#"{"Id":"e"}"#),
        }
    });
    let proxy = ProxyFixture::at(&scratch.0, &engine.socket);
    (scratch, engine, proxy)
}

/// An archive of one file, as text, because the helper sends text.
fn archive(name: &str, text: &str) -> String {
    let mut tar = tar::Builder::new(vec![]);
    let mut header = tar::Header::new_ustar();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    String::from_utf8(tar.into_inner().unwrap()).unwrap()
}

fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn reached(engine: &FakeEngine) -> usize {
    engine.seen().iter().filter(|seen| !seen.is("GET")).count()
}

/// A task of kfp without an identity: created before the session, or given none by a rule.
#[test]
fn copies_and_execs_with_keys_are_refused_only_for_kfp_tasks() {
    let (_scratch, engine, proxy) = fixture();
    let env = serde_json::json!({"Env": [format!("AWS_SECRET_ACCESS_KEY={}", aws())]}).to_string();
    let copied = archive("x/.env", &format!("AWS_SECRET_ACCESS_KEY={}\n", aws()));
    for (action, body) in
        [("POST /containers/ID/exec", &env), ("PUT /containers/ID/archive?path=/tmp", &copied)]
    {
        let (status, answer) = call(&proxy.socket, &action.replace("ID", TASK), body);
        assert_eq!(status, 403, "{action}: {answer}");
        assert!(answer.contains("an AWS secret access key"), "{answer}");
        let before = proxy.said().matches("an AWS secret access key").count();
        assert_eq!(call(&proxy.socket, &action.replace("ID", PLAIN), body).0, 200, "{action}");
        let said = proxy.said();
        assert_eq!(said.matches("an AWS secret access key").count(), before + 1, "{said}");
    }
    let whole = engine.seen().iter().any(|seen| seen.is("POST") && seen.line.contains(TASK));
    assert!(!whole, "{:?}", engine.seen());
    // Without a key the exec passes.
    assert_eq!(call(&proxy.socket, &format!("POST /containers/{TASK}/exec"), r#"{"Cmd":["id"]}"#).0, 200);
}

#[test]
fn imports_and_commits_are_searched() {
    let (_scratch, engine, proxy) = fixture();
    let change = |text: &str| escaped(&text.replace("VALUE", &aws()));
    let keyed = archive("etc/.env", &format!("AWS_SECRET_ACCESS_KEY={}\n", aws()));
    let env = serde_json::json!({"env": [format!("AWS_SECRET_ACCESS_KEY={}", aws())]}).to_string();
    let commit = format!("POST /commit?container={PLAIN}&repo=x");
    for (line, body) in [
        ("POST /images/create?fromSrc=-&repo=x".to_string(), keyed.as_str()),
        (format!("POST /images/create?fromSrc=-&changes={}", change("ENV AWS_SECRET_ACCESS_KEY=VALUE")), ""),
        (format!("{commit}&changes={}", change("ENV AWS_SECRET_ACCESS_KEY VALUE")), ""),
        (
            format!(
                "{commit}&changes={}&changes={}",
                change("CMD [\"x\"]"),
                change("LABEL AWS_SECRET_ACCESS_KEY=VALUE")
            ),
            "",
        ),
        (format!("{commit}&changes={}", change("CMD [\"x\"]\nENV B=c AWS_SECRET_ACCESS_KEY=VALUE")), ""),
        (commit.clone(), env.as_str()),
        (format!("POST /build?labels={}", change(r#"{"AWS_SECRET_ACCESS_KEY":"VALUE"}"#)), ""),
        (format!("POST /build?buildargs={}", change(r#"{"AWS_SECRET_ACCESS_KEY":"VALUE"}"#)), ""),
    ] {
        let (status, answer) = call(&proxy.socket, &line, body);
        assert!(status == 403 && answer.contains("an AWS secret access key"), "{line}: {status} {answer}");
    }
    assert!(!proxy.said().contains("not verified"), "{}", proxy.said());
    assert!(engine.seen().iter().all(|seen| !seen.is("POST /commit")), "{:?}", engine.seen());
    let plain = archive("etc/motd", "hello\n");
    for (line, body) in [
        ("POST /images/create?fromSrc=-&repo=x".to_string(), plain.as_str()),
        ("POST /images/create?fromImage=busybox&tag=1".into(), ""),
        (format!("{commit}&changes={}", change("ENV A=b")), ""),
        (commit, r#"{"Env":["A=b"]}"#),
    ] {
        let before = reached(&engine);
        assert_eq!(call(&proxy.socket, &line, body).0, 200, "{line}");
        assert_eq!(reached(&engine), before + 1, "{line}");
        let sent = engine.seen().last().unwrap().body.clone();
        assert_eq!(String::from_utf8(sent).unwrap(), body, "{line}");
    }
    assert!(!proxy.said().contains("not verified"), "{}", proxy.said());
}

#[test]
fn loads_are_searched_layer_by_layer() {
    let (_scratch, engine, proxy) = fixture();
    let keyed = archive("etc/.env", &format!("AWS_SECRET_ACCESS_KEY={}\n", aws()));
    let env = format!(r#"{{"config":{{"Env":["AWS_SECRET_ACCESS_KEY={}"]}},"rootfs":{{}}}}"#, aws());
    for (image, place) in [
        (archive("1/layer.tar", &keyed), "etc/.env in layer 1/layer.tar"),
        (archive("c.json", &env), "variable AWS_SECRET_ACCESS_KEY"),
    ] {
        let (status, answer) = call(&proxy.socket, "POST /images/load?quiet=1", &image);
        assert!(status == 403 && answer.contains(place), "{status} {answer}");
        assert!(!answer.contains(&aws()) && !proxy.said().contains(&aws()));
        assert!(!engine.was_sent(&aws()), "the request reached the engine");
    }
    let plain = archive("1/layer.tar", &archive("etc/motd", "hello\n"));
    assert_eq!(call(&proxy.socket, "POST /images/load", &plain).0, 200);
    assert_eq!(String::from_utf8(engine.seen().last().unwrap().body.clone()).unwrap(), plain);
    assert!(!proxy.said().contains("not verified"), "{}", proxy.said());
    assert!(engine.was_sent("hello"));
    let cut = archive("1/layer.tar", &archive("etc/motd", "hello\n")[..700]);
    assert_eq!(call(&proxy.socket, "POST /images/load", &cut).0, 200);
    // The proxy reports it at the end of the upload, which the engine may have answered already.
    let end = Instant::now() + Duration::from_secs(5);
    while !proxy.said().contains("load: not verified: 1/layer.tar: the archive breaks off") {
        assert!(Instant::now() < end, "{}", proxy.said());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The engine may have unpacked the key before it reaches the damage.
#[test]
fn a_key_is_found_before_the_damaged_part_of_an_archive() {
    let (_scratch, _engine, proxy) = fixture();
    let keyed = archive("x/.env", &format!("AWS_SECRET_ACCESS_KEY={}\n", aws()));
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    gzip.write_all(keyed.as_bytes()).unwrap();
    let body = [&gzip.finish().unwrap()[..], b"what is no gzip"].concat();
    let head = format!(
        "POST /build HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let answer = raw(&proxy.socket, [head.as_bytes(), &body].concat());
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("an AWS secret access key"), "{answer}");
}

#[test]
fn transfers_that_are_not_searched_are_reported() {
    let (_scratch, engine, proxy) = fixture();
    for (line, what) in [
        (
            "POST /images/create?fromSrc=http://x.example/a.tar",
            "not verified: an image whose files the engine",
        ),
        ("POST /build?remote=https://x.example/a.git", "not verified: the build's context, which the engine"),
    ] {
        assert!(!proxy.said().contains(what), "{line}: {}", proxy.said());
        assert_eq!(call(&proxy.socket, line, "").0, 200, "{line}");
        assert!(proxy.said().contains(what), "{line}: {}", proxy.said());
    }
    assert_eq!(reached(&engine), 2);
}

/// With `client-session` the context comes through a tunnel; an archive on stdin is sent as the classic
/// builder sends it.
#[test]
fn the_body_of_a_build_by_buildkit_is_judged_as_well() {
    let (_scratch, engine, proxy) = fixture();
    let keyed = archive("x/.env", &format!("AWS_SECRET_ACCESS_KEY={}\n", aws()));
    let plain = archive("x/.env", "A=b\n");
    let line = |remote: &str| format!("POST /build?version=2&session=s&remote={remote}");
    assert_eq!(call(&proxy.socket, &line("client-session"), "").0, 200);
    assert_eq!(call(&proxy.socket, &line("upload-request&buildid=b"), &plain).0, 200);
    assert!(!proxy.said().contains("not verified"), "{}", proxy.said());
    let (status, answer) = call(&proxy.socket, &line("upload-request&buildid=b"), &keyed);
    assert!(status == 403 && answer.contains("an AWS secret access key at x/.env"), "{status} {answer}");
    assert_eq!(reached(&engine), 2);
}

#[test]
fn every_part_of_a_swarm_service_is_searched() {
    let (scratch, _engine, proxy) = fixture();
    let place = scratch.0.join("home/.aws");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("credentials"), format!("[x]\naws_secret_access_key = {}\n", aws())).unwrap();
    let assigned = format!("AWS_SECRET_ACCESS_KEY={}", aws());
    let mounted = serde_json::json!([{"type": "bind", "source": scratch.0.join("home"), "target": "/x"}]);
    for (part, value) in [
        ("Env", serde_json::json!([assigned])),
        ("args", serde_json::json!([format!("aws_secret_access_key = {}", aws())])),
        ("Command", serde_json::json!(["sh", "-c", assigned])),
        ("labels", serde_json::json!({"AWS_SECRET_ACCESS_KEY": aws()})),
        ("mounts", mounted),
    ] {
        let name = format!("with-{part}");
        let body = serde_json::json!({"Name": name, "tasktemplate": {"containerspec": {part: value}}});
        assert_eq!(call(&proxy.socket, "POST /services/create", &body.to_string()).0, 200, "{part}");
        let said = proxy.said();
        let line = said.lines().find(|line| line.contains(&name)).unwrap_or_else(|| panic!("{part}: {said}"));
        assert!(line.contains("an AWS secret access key") && !line.contains(&aws()), "{line}");
    }
}
