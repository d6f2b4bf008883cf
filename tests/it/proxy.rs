//! The proxy against an engine that fails on demand, byte by byte.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kfp_creds::workload::ContainerId;

use crate::support::fake_engine::{Act, FakeEngine, Seen, json};
use crate::support::proxy_fixture::{ProxyFixture, Scratch, call, raw};

const ID: &str = "00000000000000000000000000000000000000000000000000000000000000aa";

fn fixture(
    script: impl Fn(&Seen) -> Vec<Act> + Send + Sync + 'static,
) -> (Scratch, FakeEngine, ProxyFixture) {
    let scratch = Scratch::new();
    let engine = FakeEngine::start(&scratch.0, script);
    let proxy = ProxyFixture::at(&scratch.0, &engine.socket);
    (scratch, engine, proxy)
}

/// An engine with one container, which sends these events, with an exit code if there is one.
fn created(events: &'static [(&str, Option<u8>)]) -> impl Fn(&Seen) -> Vec<Act> + Send + Sync + 'static {
    move |seen| {
        let path = seen.line.split(' ').nth(1).unwrap();
        if seen.is("POST") && path.contains("/containers/create") {
            json("201 Created", &format!(r#"{{"Id":"{ID}","Warnings":null}}"#))
        } else if path.starts_with("/events?") {
            // The proxy follows the events at once; the events come only after a client's start has arrived.
            let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n".to_vec();
            vec![Act::Send(head), Act::Until(6), Act::Send(told(events)), Act::Hold]
        } else if path.ends_with("/start") || path.ends_with("/restart") || seen.is("DELETE") {
            vec![Act::Send(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())]
        } else if path == format!("/containers/{ID}/json") {
            json("200 OK", &format!(r#"{{"Id":"{ID}","Name":"/happy_name"}}"#))
        } else {
            json("404 Not Found", r#"{"message":"No such container: x"}"#)
        }
    }
}

fn told(events: &[(&str, Option<u8>)]) -> Vec<u8> {
    let line = |(action, code): &(&str, Option<u8>)| {
        let facts =
            code.map_or(serde_json::json!({}), |code| serde_json::json!({"exitCode": code.to_string()}));
        let actor = serde_json::json!({"ID": ID, "Attributes": facts});
        format!("{}\n", serde_json::json!({"Type": "container", "Action": action, "Actor": actor}))
    };
    events.iter().map(line).collect::<String>().into_bytes()
}

const ENDED: &[(&str, Option<u8>)] = &[("start", None), ("die", Some(3)), ("destroy", None)];

#[test]
fn the_proxy_answers_an_exit_that_the_engine_forgot() {
    let (_scratch, engine, proxy) = fixture(created(ENDED));
    let (status, body) = call(&proxy.socket, "POST /v1.41/containers/create", r#"{"Image":"i"}"#);
    assert_eq!((status, body), (201, format!(r#"{{"Id":"{ID}","Warnings":null}}"#)));
    assert_eq!(call(&proxy.socket, &format!("POST /v1.41/containers/{ID}/start"), "").0, 204);
    for reference in [ID, "happy_name", "00000000"] {
        let (status, body) = call(&proxy.socket, &format!("POST /v1.41/containers/{reference}/wait"), "");
        assert_eq!((status, body.trim()), (200, r#"{"StatusCode":3}"#), "{reference}");
    }
    // The engine answers for a container whose exit the proxy never saw.
    assert_eq!(call(&proxy.socket, "POST /v1.41/containers/stranger/wait", "").0, 404);
    let id = ContainerId::parse(ID).unwrap();
    assert_eq!(proxy.exits.code(&id), Some(3));
    let seen = engine.seen();
    let sent: serde_json::Value = serde_json::from_slice(&seen[1].body).unwrap();
    assert!(seen[1].is("POST /v1.41/containers/create"), "{:?}", seen[1]);
    assert_eq!(sent["Labels"]["kfp-creds.session"], "0123abcd");
    assert_eq!(proxy.lifecycle.starting.lock().unwrap()[0].as_str(), ID);
    assert!(proxy.said().contains("attached      i  as default  at 169.254.168.2"), "{}", proxy.said());
}

#[test]
fn an_unknown_exit_is_an_error_and_never_a_404() {
    let (_scratch, _engine, proxy) = fixture(created(&[("start", None), ("destroy", None)]));
    let mut ends = proxy.exits.ends();
    assert_eq!(call(&proxy.socket, "POST /containers/create", r#"{"Image":"i"}"#).0, 201);
    assert_eq!(call(&proxy.socket, &format!("POST /containers/{ID}/start"), "").0, 204);
    let (status, body) = call(&proxy.socket, &format!("POST /containers/{ID}/wait"), "");
    assert_eq!(status, 500, "{body}");
    assert!(body.contains("not known"), "{body}");
    assert!(ends.try_recv().is_err(), "no event reported the end");
}

/// Podman 5.4 answers some waits for a container that it removes meanwhile with 200 and -1. The code is in
/// the die event, which comes after that of the removal, or only on the stream that the lifecycle reads.
#[test]
fn an_answer_without_a_code_is_no_exit_code() {
    let lost = r#"{"StatusCode":-1,"Error":{"Message":"no such container"}}"#;
    let events: [&'static [(&str, Option<u8>)]; 2] =
        [&[("start", None), ("remove", None), ("die", Some(63))], &[("start", None), ("remove", None)]];
    for (events, elsewhere) in events.into_iter().zip([false, true]) {
        let (_scratch, _engine, proxy) = fixture(move |seen| match &seen.line {
            line if line.contains("/wait") => json("200 OK", lost),
            _ => created(events)(seen),
        });
        let mut ends = proxy.exits.ends();
        assert_eq!(call(&proxy.socket, "POST /containers/create", r#"{"Image":"i"}"#).0, 201);
        assert_eq!(call(&proxy.socket, &format!("POST /containers/{ID}/start"), "").0, 204);
        if elsewhere {
            proxy.exits.died(&ContainerId::parse(ID).unwrap(), 63);
        }
        let (status, body) = call(&proxy.socket, &format!("POST /containers/{ID}/wait"), "");
        assert_eq!((status, body.trim()), (200, r#"{"StatusCode":63}"#), "{elsewhere}");
        assert_eq!(ends.try_recv().is_ok(), !elsewhere);
    }
}

/// The new run may end, and its container be removed, before the engine answers the restart.
#[test]
fn a_restart_that_ends_at_once_keeps_its_exit_code() {
    let (_scratch, _engine, proxy) = fixture(created(&[
        ("start", None),
        ("die", Some(137)),
        ("start", None),
        ("die", Some(5)),
        ("destroy", None),
    ]));
    assert_eq!(call(&proxy.socket, "POST /containers/create?name=n", r#"{"Image":"i"}"#).0, 201);
    assert_eq!(call(&proxy.socket, &format!("POST /containers/{ID}/start"), "").0, 204);
    assert_eq!(call(&proxy.socket, &format!("POST /containers/{ID}/restart"), "").0, 204);
    let (status, body) = call(&proxy.socket, "POST /containers/n/wait", "");
    assert_eq!((status, body.trim()), (200, r#"{"StatusCode":5}"#));
}

#[test]
fn a_container_that_never_ran_has_no_exit() {
    let (_scratch, _engine, proxy) = fixture(created(&[("destroy", None)]));
    assert_eq!(call(&proxy.socket, "POST /containers/create?name=n", r#"{"Image":"i"}"#).0, 201);
    for _ in 0..3 {
        let _ = call(&proxy.socket, "GET /info", "");
    }
    assert_eq!(call(&proxy.socket, "POST /containers/n/wait", "").0, 404);
}

/// When the proxy follows the events again, the engine does not repeat those that it missed, because it was
/// restarted.
#[test]
fn an_exit_in_a_gap_of_the_events_is_looked_up() {
    let follows = AtomicUsize::new(0);
    let (_scratch, engine, proxy) = fixture(move |seen| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n".to_vec();
        if seen.is("GET /events?") {
            return match follows.fetch_add(1, Ordering::SeqCst) {
                0 => vec![Act::Send(head), Act::Until(6), Act::Send(told(&[("start", None)]))],
                _ => vec![Act::Send(head), Act::Hold],
            };
        }
        if seen.is("GET /containers/json?all=1") {
            return json("200 OK", &format!(r#"[{{"Id":"{ID}","State":"exited"}}]"#));
        }
        if seen.is(&format!("GET /containers/{ID}/json")) {
            return json("200 OK", &format!(r#"{{"Id":"{ID}","Name":"/n","State":{{"ExitCode":9}}}}"#));
        }
        created(&[])(seen)
    });
    assert_eq!(call(&proxy.socket, "POST /containers/create", r#"{"Image":"i"}"#).0, 201);
    assert_eq!(call(&proxy.socket, &format!("POST /containers/{ID}/start"), "").0, 204);
    wait_for(|| proxy.exits.code(&ContainerId::parse(ID).unwrap()) == Some(9));
    let since =
        |seen: &Seen| seen.line.split("since=").nth(1).map(|rest| rest.split('&').next().unwrap().to_owned());
    let all: Vec<_> = engine.seen().iter().filter_map(since).collect();
    assert_eq!((all.len(), &all[0]), (2, &all[1]), "both requests must ask for the same events");
}

/// Hundreds of containers may run at the same time.
#[test]
fn a_running_container_holds_no_connection_to_the_engine() {
    let number = AtomicUsize::new(0);
    let (_scratch, engine, proxy) = fixture(move |seen| {
        if seen.is("POST") && seen.line.contains("/containers/create") {
            let id = format!("{:064x}", number.fetch_add(1, Ordering::SeqCst));
            return json("201 Created", &format!(r#"{{"Id":"{id}","Warnings":null}}"#));
        }
        created(&[])(seen)
    });
    for container in 0..20 {
        assert_eq!(call(&proxy.socket, "POST /containers/create", r#"{"Image":"i"}"#).0, 201);
        assert_eq!(call(&proxy.socket, &format!("POST /containers/{container:064x}/start"), "").0, 204);
    }
    engine.settles_at(1);
    assert!(!engine.was_sent("/wait"));
}

#[test]
fn a_failed_attach_removes_the_container_and_says_why() {
    let (_scratch, engine, proxy) = fixture(created(&[]));
    *proxy.lifecycle.fails.lock().unwrap() = Some("no address is free; wait for a task to end".into());
    let (status, body) = call(&proxy.socket, "POST /containers/create", r#"{"Image":"i"}"#);
    assert_eq!(status, 500);
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert!(body["message"].as_str().unwrap().contains("no address is free"), "{body}");
    assert!(
        engine.seen().iter().any(|seen| seen.line == format!("DELETE /containers/{ID}?force=1 HTTP/1.1"))
    );
}

#[test]
fn a_client_that_hangs_up_leaves_no_half_made_container() {
    let (_scratch, engine, proxy) = fixture(|seen| {
        if seen.is("POST /containers/create") {
            // The client has hung up when the answer comes.
            let mut acts = vec![Act::Until(3)];
            acts.extend(json("201 Created", &format!(r#"{{"Id":"{ID}"}}"#)));
            return acts;
        }
        json("404 Not Found", "{}")
    });
    let body = r#"{"Image":""}"#;
    let mut stream = UnixStream::connect(&proxy.socket).unwrap();
    write!(
        stream,
        "POST /containers/create?name=n HTTP/1.1\r\nHost: d\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    wait_for(|| !engine.seen().is_empty());
    drop(stream);
    std::thread::sleep(Duration::from_millis(50));
    call(&proxy.socket, "GET /info", "");
    call(&proxy.socket, "GET /info", "");
    wait_for(|| proxy.lifecycle.leased.lock().unwrap().len() == 1);
}

fn wait_for(mut what: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !what() {
        assert!(Instant::now() < deadline, "it did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Nothing is known of an object that the engine fails to describe; a name that Podman rejects with 500 is the
/// engine's to refuse.
#[test]
fn a_failing_inspection_lets_no_request_pass() {
    for (why, expected) in [("lookup x: no such host", 502), ("no such container", 201)] {
        let (_scratch, _engine, proxy) = fixture(move |seen| match seen.is("GET") {
            true => json("500 Internal Server Error", &format!(r#"{{"message":"{why}"}}"#)),
            false => json("201 Created", r#"{"Id":"e"}"#),
        });
        let line = format!("POST /containers/{ID}/exec");
        let (status, said) = call(&proxy.socket, &line, r#"{"Privileged":true,"Cmd":["true"]}"#);
        assert_eq!(status, expected, "{why}: {said}");
    }
}

#[test]
fn an_ending_session_refuses_creates() {
    let (_scratch, engine, proxy) = fixture(created(&[]));
    proxy.closing.set();
    let (status, body) = call(&proxy.socket, "POST /containers/create", "{}");
    assert_eq!(status, 503, "{body}");
    assert!(engine.seen().is_empty());
}

#[test]
fn idle_streams_end_at_the_engine_when_their_client_leaves() {
    let (_scratch, engine, proxy) = fixture(|seen| {
        if seen.is("GET /events") {
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            return vec![Act::Send(head), Act::Hold];
        }
        // The head of the answer never comes.
        vec![Act::Hold]
    });
    let open: Vec<UnixStream> = (0..40)
        .map(|number| {
            let mut stream = UnixStream::connect(&proxy.socket).unwrap();
            let path = if number % 2 == 0 { "/events" } else { "/slow" };
            write!(stream, "GET {path} HTTP/1.1\r\nHost: d\r\n\r\n").unwrap();
            if number % 2 == 0 {
                let mut head = [0; 12];
                stream.read_exact(&mut head).unwrap();
                assert_eq!(&head, b"HTTP/1.1 200");
            }
            stream
        })
        .collect();
    engine.settles_at(40);
    drop(open);
    engine.settles_at(0);
}

#[test]
fn a_raw_stream_ends_when_its_client_leaves_half_closed() {
    let (_scratch, engine, proxy) = fixture(|_| {
        let head = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".to_vec();
        // The engine is silent and ignores the end of stdin, like a container that does not read.
        vec![Act::Send(head), Act::Gone]
    });
    let mut stream = UnixStream::connect(&proxy.socket).unwrap();
    write!(
        stream,
        "POST /containers/x/attach HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    )
    .unwrap();
    let mut head = [0; 21];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 101 UPGRADED");
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // The stream stays open, because the client may wait for output.
    std::thread::sleep(Duration::from_millis(1300));
    engine.settles_at(1);
    drop(stream);
    engine.settles_at(0);
}

#[test]
fn a_stream_carries_each_direction_to_its_own_end() {
    let (_scratch, _engine, proxy) = fixture(|_| {
        let head = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nearly ".to_vec();
        vec![Act::Send(head), Act::Echo, Act::Send(b" late".to_vec())]
    });
    let mut stream = UnixStream::connect(&proxy.socket).unwrap();
    // Bytes directly after the head belong to the stream.
    write!(stream, "POST /exec/x/start HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{{}}one")
        .unwrap();
    let big = vec![b'z'; 3 << 20];
    let mut writer = stream.try_clone().unwrap();
    let sent = big.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut got = vec![];
    stream.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    let at = got.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(got[at..].len(), 6 + 3 + big.len() + 5);
    assert!(got[at..].starts_with(b"early onez") && got.ends_with(b"z late"));
}

#[test]
fn a_refused_upgrade_is_an_answer_and_what_follows_is_judged() {
    let (_scratch, engine, proxy) = fixture(|seen| match seen.is("POST /containers/x/attach") {
        true => json("409 Conflict", r#"{"message":"container is paused"}"#),
        false => json("200 OK", "{}"),
    });
    proxy.reserved.put(kfp_creds::docker::proxy::ReservedKind::Container, ID, "relay");
    let smuggled = raw(
        &proxy.socket,
        "POST /containers/x/attach HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n\
         POST /containers/relay/kill HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n",
    );
    assert!(smuggled.contains("HTTP/1.1 409") && smuggled.contains("HTTP/1.1 403"), "{smuggled}");
    assert_eq!(engine.seen().len(), 1);
    assert!(
        raw(&proxy.socket, "POST /session HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
            .starts_with("HTTP/1.1 426")
    );
    for request in [
        // Another protocol, through which a client could reach every endpoint.
        "POST /containers/x/attach HTTP/1.1\r\nHost: d\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n",
        // Bytes that the engine would read as part of the stream.
        "POST /session HTTP/1.1\r\nHost: d\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\nx",
    ] {
        assert!(raw(&proxy.socket, request).starts_with("HTTP/1.1 400"), "{request}");
    }
    assert_eq!(engine.seen().len(), 1);
    let detached = "POST /exec/x/start HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: 15\r\n\r\n{\"detach\":true}";
    assert!(raw(&proxy.socket, detached).starts_with("HTTP/1.1 200"));
    let plain = "GET /info HTTP/1.1\r\nHost: d\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n";
    assert!(raw(&proxy.socket, plain).starts_with("HTTP/1.1 200"));
    let last = engine.seen().pop().unwrap();
    assert!(
        !last.headers.contains_key("upgrade") && !last.headers.contains_key("http2-settings"),
        "{last:?}"
    );
}

/// dockerode, docker-java and curl send no `Upgrade`: an engine answers 200, followed by the stream.
#[test]
fn clients_without_upgrade_get_200_and_the_stream() {
    let (_scratch, engine, proxy) = fixture(|_| {
        let head =
            b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nServer: fake\r\n\r\nearly ";
        vec![Act::Send(head.to_vec()), Act::Echo, Act::Send(b" late".to_vec())]
    });
    let options = r#"{"stream":true,"stdout":true}"#;
    for (line, body, stdin) in [
        ("POST /containers/x/attach?stream=1&stdout=1", "", ""),
        ("POST /containers/x/attach?stream=1&stdout=1&stdin=1", options, "typed"),
        ("POST /v1.41/exec/x/start", "{}", ""),
        ("POST /exec/x/start", r#"{"Detach":false,"Tty":true,"stdin":true}"#, "typed"),
    ] {
        let mut stream = UnixStream::connect(&proxy.socket).unwrap();
        let length = body.len();
        write!(stream, "{line} HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}{stdin}").unwrap();
        let mut got = String::new();
        let mut buffer = [0; 4096];
        // Stdin ends after the stream began, as with a real program.
        while !got.contains("early ") {
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "{line}: {got}");
            got.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.read_to_string(&mut got).unwrap();
        let (head, rest) = got.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream"),
            "{head}"
        );
        assert!(!head.to_ascii_lowercase().contains("upgrade") && head.contains("server: fake"), "{head}");
        assert_eq!(rest, format!("early {stdin} late"), "{line}");
        let seen = engine.seen().pop().unwrap();
        assert_eq!(seen.headers.get("upgrade").map(String::as_str), Some("tcp"), "{seen:?}");
        // The proxy removes the options of an attach; those of an exec go to the engine.
        assert_eq!(seen.body, if line.contains("attach") { b"" } else { body.as_bytes() });
    }
    engine.settles_at(0);
}

/// Bytes after a request that started no stream are another request, and are judged.
#[test]
fn bytes_after_a_refused_stream_are_judged() {
    let (_scratch, engine, proxy) = fixture(|seen| match () {
        () if seen.is("POST /containers/x/attach") => json("409 Conflict", r#"{"message":"it is paused"}"#),
        () if seen.is("POST /exec/detached/start") => json("200 OK", "{}"),
        () if seen.is("POST /exec/plain/start") => {
            // An engine that streams without a 101: the bytes are the body of a reply, and end with the
            // connection.
            let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\nout";
            vec![Act::Send(head.to_vec())]
        }
        () => json("200 OK", "{}"),
    });
    proxy.reserved.put(kfp_creds::docker::proxy::ReservedKind::Container, ID, "relay");
    let kill = "POST /containers/relay/kill HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n";
    for (line, body) in [
        ("POST /containers/x/attach?stream=1", ""),
        ("POST /containers/x/attach?stream=1", r#"{"stream":true}"#),
        ("POST /exec/detached/start", r#"{"Detach":true}"#),
        ("POST /exec/detached/start", r#"{"detach":true}"#),
        ("POST /exec/plain/start", r#"{"Detach":false}"#),
    ] {
        let length = body.len();
        let request = format!("{line} HTTP/1.1\r\nHost: d\r\nContent-Length: {length}\r\n\r\n{body}{kill}");
        let before = engine.seen().len();
        let reply = raw(&proxy.socket, request);
        assert!(reply.contains("HTTP/1.1 403"), "{line}: {reply}");
        assert_eq!(engine.seen().len(), before + 1, "{line}");
    }
    // A body with a request in place of options is refused, with and without an upgrade.
    for upgrade in ["", "Connection: Upgrade\r\nUpgrade: tcp\r\n"] {
        let length = kill.len();
        let request = format!(
            "POST /containers/x/attach HTTP/1.1\r\nHost: d\r\n{upgrade}Content-Length: {length}\r\n\r\n{kill}POST /containers/relay/kill HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n"
        );
        let before = engine.seen().len();
        let reply = raw(&proxy.socket, request);
        assert!(reply.starts_with("HTTP/1.1 400") && !reply.contains("HTTP/1.1 200"), "{reply}");
        assert_eq!(engine.seen().len(), before);
    }
    assert!(!engine.was_sent("relay/kill"));
}

#[test]
fn ambiguous_requests_do_not_reach_the_engine() {
    let (_scratch, engine, proxy) = fixture(|_| json("200 OK", "{}"));
    let (status, _) = call(&proxy.socket, "POST /containers%2Fcreate", "{}");
    assert_eq!(status, 400);
    for line in ["POST //containers/create", "POST /v01.41/containers/create", "POST /x/../containers/create"]
    {
        assert_eq!(call(&proxy.socket, line, "{}").0, 400, "{line}");
    }
    for body in [r#"{"Image":"a","Image":"b"}"#, r#"{"HostConfig":{},"hostconfig":{}}"#, "{} {}", "", "[]"] {
        assert_eq!(call(&proxy.socket, "POST /containers/create", body).0, 400, "{body}");
    }
    let preface = raw(&proxy.socket, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    assert!(!preface.contains("200"), "{preface}");
    let head = "POST /containers/x/rename?name=a HTTP/1.1\r\nHost: d\r\nConnection: close\r\n";
    let form = format!(
        "{head}Content-Type: Application/x-www-form-urlencoded; charset=utf-8\r\nContent-Length: 6\r\n\r\nname=b"
    );
    assert!(raw(&proxy.socket, form).starts_with("HTTP/1.1 415"));
    let connect = raw(&proxy.socket, "CONNECT d:1 HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n");
    assert!(connect.starts_with("HTTP/1.1 4"), "{connect}");
    let old = r#"{"NetworkMode":"container:x"}"#;
    assert_eq!(call(&proxy.socket, "POST /v1.23/containers/x/start", old).0, 400);
    assert!(engine.seen().is_empty(), "{:?}", engine.seen());
    // Two framings in one request: the engine gets one of them, and bytes hidden by the other are judged as a
    // request.
    proxy.reserved.put(kfp_creds::docker::proxy::ReservedKind::Container, ID, "relay");
    for framing in [
        "Content-Length: 74\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 74",
    ] {
        let hidden = "POST /containers/relay/kill HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n";
        let both =
            raw(&proxy.socket, format!("POST /x HTTP/1.1\r\nHost: d\r\n{framing}\r\n\r\n0\r\n\r\n{hidden}"));
        assert!(both.matches("HTTP/1.1 200").count() <= 1, "{both}");
    }
    assert!(
        engine.seen().iter().all(|seen| seen.is("POST /x") && seen.body.is_empty()),
        "{:?}",
        engine.seen()
    );
}

#[test]
fn a_body_over_the_limit_is_refused_by_length_and_by_bytes() {
    let (_scratch, engine, proxy) = fixture(|_| json("200 OK", "{}"));
    let long = "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: 99999999\r\n\r\n{";
    assert!(raw(&proxy.socket, long).starts_with("HTTP/1.1 413"));
    let mut chunked =
        b"POST /containers/create HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let mebibyte = [&b"100000\r\n"[..], &vec![b' '; 1 << 20], b"\r\n"].concat();
    (0..33).for_each(|_| chunked.extend_from_slice(&mebibyte));
    assert!(raw(&proxy.socket, chunked).starts_with("HTTP/1.1 413"));
    assert!(engine.seen().is_empty());
}

#[test]
fn heads_lengths_and_versions_pass_as_they_are() {
    let (_scratch, engine, proxy) = fixture(|seen| {
        if seen.is("HEAD") {
            return vec![Act::Send(
                b"HTTP/1.1 200 Fine By Me\r\nContent-Length: 77\r\nApi-Version: 1.41\r\n\r\n".to_vec(),
            )];
        }
        if seen.is("POST /containers/x/wait") {
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            return vec![Act::Send(head), Act::Hold];
        }
        json("304 Not Modified", "")
    });
    let head = raw(&proxy.socket, "HEAD /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 Fine By Me\r\n"), "{head}");
    assert!(head.contains("Content-Length: 77\r\n") && head.contains("Api-Version: 1.41\r\n"), "{head}");
    let auth = "A".repeat(200_000);
    let get = format!("GET /images/json?a=%2F HTTP/1.0\r\nX-Registry-Auth: {auth}\r\n\r\n");
    assert!(raw(&proxy.socket, get).contains(" 304 "));
    let seen = engine.seen().pop().unwrap();
    assert_eq!(seen.line, "GET /images/json?a=%2F HTTP/1.1");
    assert_eq!(seen.headers["x-registry-auth"], auth);
    assert!(!proxy.said().contains("AAAA"));
    // The head of an answer passes before its body, which never comes here.
    let mut stream = UnixStream::connect(&proxy.socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "POST /containers/x/wait HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n").unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
}

#[test]
fn bodies_stream_both_ways_while_they_are_sent() {
    let received = Arc::new(Mutex::new(0));
    let counted = received.clone();
    let (_scratch, _engine, proxy) = fixture(move |seen| {
        *counted.lock().unwrap() = seen.body.len();
        assert!(!seen.headers.contains_key("expect"));
        json("200 OK", "{}")
    });
    let mut stream = UnixStream::connect(&proxy.socket).unwrap();
    write!(stream, "POST /build HTTP/1.1\r\nHost: d\r\nConnection: close\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    let mut go = [0; 25];
    stream.read_exact(&mut go).unwrap();
    assert_eq!(&go, b"HTTP/1.1 100 Continue\r\n\r\n");
    let mebibyte = [&b"100000\r\n"[..], &vec![7; 1 << 20], b"\r\n"].concat();
    (0..40).for_each(|_| stream.write_all(&mebibyte).unwrap());
    stream.write_all(b"0\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert_eq!(*received.lock().unwrap(), 40 << 20, "more than is ever held in memory");
}

/// Every kind of request that would use or change our objects.
fn touches() -> Vec<String> {
    let by_id = |rest: &str| format!("POST /v1.41/containers/{ID}/{rest}");
    vec![
        by_id("attach"),
        by_id("attach/ws"),
        by_id("exec"),
        by_id("kill"),
        by_id("stop"),
        by_id("restart"),
        by_id("update"),
        by_id("rename?name=x"),
        by_id("resize"),
        by_id("pause"),
        by_id("start"),
        "GET /containers/relay/attach/ws".into(),
        "GET /containers/relay/export".into(),
        "HEAD /containers/relay/archive?path=/".into(),
        "PUT /containers/relay/archive?path=/".into(),
        "DELETE /containers/00000000?force=1".into(),
        "DELETE /v1.41/containers/re%6cay".into(),
        "POST /commit?container=relay&repo=x".into(),
        "POST /commit?container=x&repo=kfp-creds-relay".into(),
        "POST /build?t=kfp-creds-relay:v1".into(),
        "POST /build?t=a&t=docker.io/library/kfp-creds-relay".into(),
        "POST /build?networkmode=kfp-creds".into(),
        format!("POST /build?networkmode=container:{ID}"),
        "POST /images/x/tag?repo=kfp-creds-relay&tag=v1".into(),
        "POST /images/create?fromSrc=-&repo=kfp-creds-relay".into(),
        "DELETE /images/kfp-creds-relay:v1".into(),
        format!("DELETE /images/sha256:{ID}"),
        "POST /networks/kfp-creds/connect".into(),
        "POST /networks/0000/disconnect".into(),
        format!("DELETE /networks/{ID}"),
    ]
}

#[test]
fn our_objects_are_refused_by_name_id_and_prefix() {
    use kfp_creds::docker::proxy::ReservedKind;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let (_scratch, engine, proxy) = fixture(move |seen| {
        let path = seen.line.split(' ').nth(1).unwrap();
        if seen.is("GET") && (path == "/containers/00000000/json" || path == "/networks/0000") {
            counted.fetch_add(1, Ordering::SeqCst);
            return json("200 OK", &format!(r#"{{"Id":"{ID}"}}"#));
        }
        json("200 OK", "{}")
    });
    proxy.reserved.put(ReservedKind::Container, ID, "/relay");
    proxy.reserved.put(ReservedKind::Network, ID, "kfp-creds");
    proxy.reserved.put(ReservedKind::Image, &format!("sha256:{ID}"), "kfp-creds-relay:v1");
    for line in touches() {
        let (status, body) = call(&proxy.socket, &line, "");
        assert_eq!(status, 403, "{line}: {body}");
        assert!(body.contains("kfp-creds: ") || line.starts_with("HEAD"), "{body}");
    }
    for body in [r#"{"Name":"kfp-creds"}"#, r#"{"name":"x","labels":{"kfp-creds.session":"1"}}"#] {
        assert_eq!(call(&proxy.socket, "POST /networks/create", body).0, 403);
    }
    for body in [r#"{"Image":"kfp-creds-relay:v1"}"#, r#"{"HostConfig":{"NetworkMode":"kfp-creds"}}"#] {
        assert_eq!(call(&proxy.socket, "POST /containers/create", body).0, 403);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2, "the engine resolves prefixes");
    assert!(engine.seen().iter().all(|seen| seen.is("GET")), "{:?}", engine.seen());
    for line in [
        "GET /containers/relay/json",
        "POST /containers/relay/wait",
        "POST /containers/other/kill",
        "GET /networks/kfp-creds",
    ] {
        assert_eq!(call(&proxy.socket, line, "").0, 200, "{line}");
    }
    assert!(proxy.said().contains("refused       DELETE /v1.41/containers/re%6cay"), "{}", proxy.said());
}

#[test]
fn reaching_into_a_leased_container_is_refused() {
    let (_scratch, engine, proxy) = fixture(|seen| match seen.is("GET /containers/task/json") {
        true => json("200 OK", &format!(r#"{{"Id":"{ID}"}}"#)),
        false => json("201 Created", r#"{"Id":"e"}"#),
    });
    proxy.lifecycle.leased.lock().unwrap().push(ContainerId::parse(ID).unwrap());
    for (line, body) in [
        ("POST /containers/task/exec".to_string(), r#"{"Privileged":true}"#),
        (format!("POST /containers/{ID}/exec"), r#"{"privileged":true}"#),
        (format!("POST /containers/{ID}/exec"), "{\"Privileged\":false,\"PRIVILEGED\":true}"),
        ("POST /containers/task/rename?name=storage.googleapis.com".into(), ""),
        (format!("POST /containers/{ID}/rename?name=metadata"), ""),
        ("POST /containers/create".into(), r#"{"HostConfig":{"NetworkMode":"container:task"}}"#),
        (format!("POST /build?networkmode=container:{ID}"), ""),
    ] {
        let (status, answer) = call(&proxy.socket, &line, body);
        assert!(
            status == 403 || (status == 400 && body.contains("PRIVILEGED")),
            "{line} {body}: {status} {answer}"
        );
    }
    assert!(engine.seen().iter().all(|seen| seen.is("GET")), "{:?}", engine.seen());
    assert_eq!(call(&proxy.socket, "POST /containers/task/exec", r#"{"Cmd":["id"]}"#).0, 201);
    assert_eq!(call(&proxy.socket, "POST /containers/task/rename?name=plain", "").0, 201);
    assert!(engine.seen().last().unwrap().is(&format!("POST /containers/{ID}/rename?name=plain")));
}

#[test]
fn a_proxy_of_ours_is_known_by_its_probe() {
    let (_scratch, engine, proxy) = fixture(|_| json("404 Not Found", r#"{"message":"page not found"}"#));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let upstream = |socket| runtime.block_on(kfp_creds::docker::proxy::upstream_of(socket));
    assert_eq!(
        upstream(&proxy.socket),
        Some(kfp_creds::config::endpoint::Endpoint::Unix(engine.socket.clone()))
    );
    assert_eq!(upstream(&engine.socket), None);
    assert_eq!(upstream(std::path::Path::new("/nonexistent/socket")), None);
}

#[test]
fn an_unreachable_engine_is_a_502() {
    let proxy = ProxyFixture::new(std::path::Path::new("/nonexistent/docker.sock"));
    let (status, body) = call(&proxy.socket, "GET /info", "");
    assert_eq!(status, 502);
    assert!(body.contains("/nonexistent/docker.sock"), "{body}");
}

const INSPECTED: &str = r#","Name":"/happy_name","State":{"Status":"created","Running":false,"ExitCode":0},"HostConfig":{"AutoRemove":true,"LogConfig":{"Type":"json-file"}},"Config":{"Tty":false,"AttachStdout":false,"AttachStderr":false,"Env":["A=b"]}"#;

fn frame(stream: u8, text: &str) -> Vec<u8> {
    let mut frame = vec![stream, 0, 0, 0];
    frame.extend((text.len() as u32).to_be_bytes());
    frame.extend(text.as_bytes());
    frame
}

/// An engine whose auto-removed container has ended when a client asks for its logs: `logs` is the engine's
/// answer.
fn ended(logs: Vec<Act>, silent: bool) -> impl Fn(&Seen) -> Vec<Act> + Send + Sync + 'static {
    let rest = created(ENDED);
    let (logs, looks) = (Mutex::new(Some(logs)), AtomicUsize::new(0));
    move |seen| {
        if seen.is(&format!("POST /containers/{ID}/attach?stream=1&stdout=1&stderr=1 ")) {
            let mut all = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".to_vec();
            if silent {
                return vec![Act::Send(all)];
            }
            // One frame comes in two parts, and the last frame only after logs were requested.
            all.extend(frame(1, "one\n"));
            all.extend(&frame(2, "err\n")[..5]);
            let mut late = frame(2, "err\n")[5..].to_vec();
            late.extend(frame(1, "two\n"));
            return vec![Act::Send(all), Act::Until(9), Act::Send(late)];
        }
        if seen.line.contains("/logs?") {
            return logs.lock().unwrap().take().unwrap();
        }
        // Create and start inspect the container; after that it is gone.
        if seen.is(&format!("GET /containers/{ID}/json")) && looks.fetch_add(1, Ordering::SeqCst) < 2 {
            return json("200 OK", &format!(r#"{{"Id":"{ID}"{INSPECTED}}}"#));
        }
        rest(seen)
    }
}

/// What a client sees of a container that ended before it asked: the logs, and the inspect of docker-py.
fn read_late(logs: Vec<Act>, query: &str) -> (u16, String, u16, String) {
    read_late_of(logs, query, false)
}

fn read_late_of(logs: Vec<Act>, query: &str, silent: bool) -> (u16, String, u16, String) {
    let (_scratch, _engine, proxy) = fixture(ended(logs, silent));
    assert_eq!(call(&proxy.socket, "POST /v1.41/containers/create", r#"{"Image":"i"}"#).0, 201);
    let look = format!("GET /v1.41/containers/{ID}/json");
    assert_eq!(call(&proxy.socket, &format!("POST /v1.41/containers/{ID}/start"), "").0, 204);
    assert_eq!(
        call(&proxy.socket, &look, "").0,
        404,
        "the container must be gone before its logs are requested"
    );
    let (status, text) = call(&proxy.socket, &format!("GET /v1.41/containers/{ID}/logs?{query}"), "");
    let (looked, body) = call(&proxy.socket, &look, "");
    (status, text, looked, body)
}

const FOLLOW: &str = "stderr=1&stdout=1&timestamps=0&follow=1&tail=all";

fn frames(texts: &[(u8, &str)]) -> String {
    String::from_utf8(texts.iter().flat_map(|(stream, text)| frame(*stream, text)).collect()).unwrap()
}

#[test]
fn forgotten_logs_are_answered_from_the_capture() {
    let whole = frames(&[(1, "one\n"), (2, "err\n"), (1, "two\n")]);
    for gone in ["404 Not Found", "409 Conflict", "500 Internal Server Error"] {
        let (status, text, looked, body) = read_late(json(gone, r#"{"message":"gone"}"#), FOLLOW);
        assert_eq!((status, &text, looked), (200, &whole, 200), "{gone}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["Config"]["Env"], serde_json::json!(["A=b"]));
        assert_eq!(body["State"]["Status"], "exited");
        assert_eq!((&body["State"]["Running"], &body["State"]["ExitCode"]), (&false.into(), &3.into()));
    }
    let only = read_late(json("404 Not Found", "{}"), "stdout=1&follow=1").1;
    assert_eq!(only, frames(&[(1, "one\n"), (1, "two\n")]));
    // A query that needs timestamps or counts lines is left to the engine.
    for query in ["stdout=1&tail=1", "stdout=1&timestamps=1", "stdout=1&since=5"] {
        assert_eq!(read_late(json("404 Not Found", "{}"), query).0, 404, "{query}");
    }
}

/// The container is known to have written nothing; the engine's error would end the client's run instead of
/// its exit code.
#[test]
fn logs_of_a_silent_container_are_empty_and_no_error() {
    for gone in ["404 Not Found", "409 Conflict", "500 Internal Server Error"] {
        let (status, text, looked, _) = read_late_of(json(gone, r#"{"message":"gone"}"#), FOLLOW, true);
        assert_eq!((status, text.as_str(), looked), (200, "", 200), "{gone}");
    }
}

#[test]
fn broken_logs_are_completed_from_the_capture() {
    let sent = |texts: &[(u8, &str)], end: &str| {
        let part = frames(texts);
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        vec![Act::Send(format!("{head}{:x}\r\n{part}\r\n{end}", part.len()).into_bytes())]
    };
    let cut = |texts: &[(u8, &str)]| sent(texts, "0\r\n\r\n");
    let all = [(1, "one\n"), (2, "e"), (2, "rr\n"), (1, "two\n")];
    // A connection that ends without the last chunk counts as an end, too.
    for end in ["0\r\n\r\n", ""] {
        let (status, text, looked, _) = read_late(sent(&all[..2], end), FOLLOW);
        assert_eq!((status, text, looked), (200, frames(&all), 200), "{end:?}");
        assert_eq!(read_late(sent(&all, end), FOLLOW).1, frames(&all), "{end:?}");
    }
    // The engine may report that the file is gone, instead of the output or in the middle of it.
    let excuse = "Error grabbing logs: open x-json.log: no such file or directory\n";
    for query in [FOLLOW, "stdout=1&stderr=1"] {
        let (status, text, ..) = read_late(cut(&[(3, excuse)]), query);
        assert_eq!((status, text), (200, frames(&[(1, "one\n"), (2, "err\n"), (1, "two\n")])), "{query}");
        assert_eq!(read_late(cut(&[(1, "one\n"), (2, "e"), (3, excuse)]), query).1, frames(&all), "{query}");
    }
    assert_eq!(read_late(cut(&[(1, "ONE\n"), (3, excuse)]), FOLLOW).1, frames(&[(1, "ONE\n"), (3, excuse)]));
    // Podman reports it in JSON outside of any frame.
    let json =
        r#"{"cause":"container has already been removed","message":"failed to obtain logs","response":500}"#;
    for (told, rest) in
        [("", frames(&[(1, "one\n"), (2, "err\n"), (1, "two\n")])), (&frames(&all[..2]), frames(&all))]
    {
        let body = format!("{told}{json}");
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let acts = vec![Act::Send(format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).into_bytes())];
        let (status, text, looked, _) = read_late(acts, FOLLOW);
        assert_eq!((status, text, looked), (200, rest, 200), "{told:?}");
    }
    // No text comes twice, and none is added if the engine's output differs from the capture.
    for texts in [&[(1, "one\ntwo\n"), (2, "err\n")][..], &[(1, "ONE\n")]] {
        assert_eq!(read_late(cut(texts), FOLLOW).1, frames(texts));
    }
}
