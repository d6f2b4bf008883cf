//! Requests that two readers understand differently: at the proxy, where the other reader is the engine, and
//! at the relay, whose callers claim hosts and addresses that are not theirs.

use super::attacks::{Made, STRICT, address, attached, inspect, network_of, sleeper, unused};
use super::baselines::{a_plain_server_answers, the_engine_takes};
use super::floods::attack;
use crate::support::proxy_fixture;
use crate::support::release::{Release, release};
use crate::support::session::{Session, engine_socket, task_image};

/// Bodies that ask for a capability in a spelling that some reader misses.
fn bodies(capability: &str) -> Vec<String> {
    let image = task_image();
    let host = r#"{"CapAdd":["NET_RAW"]}"#;
    let plain = format!(r#"{{"Image":"{image}","HostConfig":{host}}}"#);
    [
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
        format!(r#"{plain}{{"Image":"{image}"}}"#),
        format!("\u{feff}{plain}"),
        format!("[{plain}]"),
    ]
    .map(|body| body.replace("NET_RAW", capability))
    .into()
}

fn head(line: &str, rest: &str) -> String {
    format!(
        "{line} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/json\r\n{rest}\r\n\r\n"
    )
}

fn whole(line: &str, body: &str) -> String {
    head(line, &format!("Content-Length: {}", body.len())) + body
}

/// Request lines that some reader takes for a create; `NAME` is the container's name.
const LINES: [&str; 20] = [
    "POST /%63ontainers/create?name=NAME",
    "POST /containers/creat%65?name=NAME",
    "POST //containers/create?name=NAME",
    "POST /./containers/create?name=NAME",
    "POST /x/../containers/create?name=NAME",
    "POST /containers/create/?name=NAME",
    "POST /containers/create;x?name=NAME",
    "POST /containers%2Fcreate?name=NAME",
    "POST /containers/create%00?name=NAME",
    "POST /v01.41/containers/create?name=NAME",
    "POST /v1.41//containers/create?name=NAME",
    "POST /v1.41/%2e/containers/create?name=NAME",
    "POST http://docker/v1.41/containers/create?name=NAME",
    "POST /v1.41/containers/create?x=%zz&name=NAME",
    "POST /V1.41/containers/create?name=NAME",
    "post /v1.41/containers/create?name=NAME",
    "Post /v1.41/containers/create?name=NAME",
    "PUT /v1.41/containers/create?name=NAME",
    "GET /v1.41/containers/create?name=NAME",
    "PATCH /v1.41/containers/create?name=NAME",
];

/// Framings and protocols behind which a create could hide.
fn framings(capability: &str) -> Vec<String> {
    let line = "POST /v1.41/containers/create?name=NAME";
    let plain = bodies(capability).remove(0);
    let create = whole(line, &plain);
    let chunks = format!("{:x}\r\n{plain}\r\n0\r\n\r\n", plain.len());
    let attach = "POST /v1.41/containers/none/attach HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
    // The same from clients that send no `Upgrade`, and where no stream begins: the bytes that follow are a
    // request.
    let bare = "POST /v1.41/containers/none/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: d\r\n";
    let options = "Content-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"Detach\":true}";
    let exec = "POST /v1.41/exec/none/start HTTP/1.1\r\nHost: d\r\n";
    let hidden = format!("{bare}Content-Length: {}\r\n\r\n{create}", create.len());
    let h2c = "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nContent-Length: 2";
    vec![
        head(line, "Transfer-Encoding: chunked") + &chunks,
        head(line, "Transfer-Encoding: chunked\r\nContent-Length: 3") + &chunks,
        head(line, "Content-Length: 3\r\nTransfer-Encoding: chunked") + &chunks,
        head(line, "Content-Length: 0\r\nContent-Length: 90") + &plain,
        head(line, "Transfer-Encoding: xchunked") + &chunks,
        head(line, h2c) + "{}" + &create,
        attach.to_string() + &create,
        format!("{bare}\r\n{create}"),
        format!("{bare}{options}{create}"),
        format!("{exec}{options}{create}"),
        hidden,
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_string() + &create,
        create.replace("application/json", "application/x-www-form-urlencoded"),
    ]
}

/// No such container may get an address of ours together with the capability. The bare engine creates many of
/// them with it.
#[test]
fn the_proxy_reads_every_create_as_the_engine_does() {
    spellings("", "NET_RAW");
}

#[test]
fn the_proxy_reads_creates_as_the_engine_in_isolation() {
    spellings(STRICT, "NET_ADMIN");
}

fn spellings(config: &str, capability: &str) {
    let session = Session::offline(config, &["--all"]);
    let line = "POST /v1.41/containers/create?name=NAME";
    let plain = bodies(capability).remove(0);
    let requests = bodies(capability).iter().map(|body| whole(line, body)).collect::<Vec<_>>();
    let requests =
        requests.into_iter().chain(LINES.map(|line| whole(line, &plain))).chain(framings(capability));
    let (mut bare, mut made, mut refused) = (vec![], 0, 0);
    for request in requests {
        let (by_engine, by_us) = (Made("container", unused("variant")), Made("container", unused("variant")));
        proxy_fixture::raw(&engine_socket(), request.replace("NAME", &by_engine.1));
        if inspect(&by_engine.1)["HostConfig"]["CapAdd"].to_string().contains(capability) {
            bare.push(request.clone());
        }
        let reply = proxy_fixture::raw(&session.socket, request.replace("NAME", &by_us.1));
        let found = inspect(&by_us.1);
        if found.is_null() {
            refused += 1;
            continue;
        }
        made += 1;
        let (adds, drops) = (found["HostConfig"]["CapAdd"].to_string(), &found["HostConfig"]["CapDrop"]);
        let default = capability == "NET_RAW" && !drops.to_string().contains(capability);
        assert!(!(attached(&found) && (adds.contains(capability) || default)), "{request}\n{reply}");
    }
    eprintln!(
        "with {capability} at the bare engine {}; here {made} without an identity, {refused} refused",
        bare.len()
    );
    assert!(bare.len() >= 10 && made >= 4 && refused >= 20);
    // What the engine itself accepts, so that each kind of attack works somewhere: an escaped path, keys in
    // other case and with letters that fold, a body without a length, a second document.
    for (kind, takes) in TAKEN {
        let taken = bare.iter().any(|request| request.contains(kind));
        assert_eq!(taken, takes(release()), "{kind:?} at {:?}", release());
    }
}

type Takes = fn(Release) -> bool;

/// The engines that accept each kind. Docker reads one document since 23.0; Podman reads the first of
/// several, and no escaped path.
const TAKEN: [(&str, Takes); 5] = [
    ("/%63ontainers/", |engine| matches!(engine, Release::Docker(_))),
    ("\"hostconfig\":", |_| true),
    ("Ho\u{17f}tConfig", |_| true),
    ("chunked\r\n\r\n", |_| true),
    ("}}{\"Image\"", |engine| !matches!(engine, Release::Docker(23..))),
];

#[test]
fn bodies_and_heads_at_the_proxy_are_bounded() {
    bounded("");
}

#[test]
fn bodies_and_heads_are_bounded_in_isolation() {
    bounded(STRICT);
}

fn bounded(config: &str) {
    let session = Session::offline(config, &["--all"]);
    let mut large =
        b"POST /v1.41/containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: 67108864\r\n\r\n".to_vec();
    large.resize(large.len() + (64 << 20), b' ');
    assert!(proxy_fixture::raw(&session.socket, &large).starts_with("HTTP/1.1 413"));
    let mebibyte = [&b"100000\r\n"[..], &vec![b' '; 1 << 20], b"\r\n"].concat();
    let mut chunked =
        b"POST /v1.41/containers/create HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    (0..64).for_each(|_| chunked.extend_from_slice(&mebibyte));
    assert!(proxy_fixture::raw(&session.socket, &chunked).starts_with("HTTP/1.1 413"));
    let many: String = (0..2000).map(|n| format!("X-{n}: y\r\n")).collect();
    let head = format!("GET /info HTTP/1.1\r\nHost: d\r\n{many}\r\n");
    the_engine_takes(&head.replace("Host: d", "Host: d\r\nConnection: close"));
    assert!(proxy_fixture::raw(&session.socket, head).starts_with("HTTP/1.1 431"));
    let head = format!("GET /info HTTP/1.1\r\nHost: d\r\nX: {}\r\n\r\n", "y".repeat(3 << 20));
    assert!(proxy_fixture::raw(&session.socket, head).starts_with("HTTP/1.1 431"));
    let path = format!("/{}", "y".repeat(100_000));
    assert!(
        proxy_fixture::raw(&session.socket, format!("GET {path} HTTP/1.1\r\nHost: d\r\n\r\n"))
            .starts_with("HTTP/1.1 4")
    );
    // Idle connections, and then an ordinary client.
    let idle: Vec<_> =
        (0..300).map(|_| std::os::unix::net::UnixStream::connect(&session.socket).unwrap()).collect();
    assert_eq!(proxy_fixture::call(&session.socket, "GET /v1.41/_ping", "").0, 200);
    drop(idle);
}

/// In the attacker's notation of escapes.
const FLAVOR: &str = r"Metadata-Flavor: Google\r\n";

fn ask(path: &str, headers: &str) -> String {
    format!(r"GET {path} HTTP/1.1\r\nHost: metadata.google.internal\r\nConnection: close\r\n{headers}\r\n")
}

#[test]
fn requests_that_others_send_through_a_container_are_refused() {
    sent_by_others("");
}

#[test]
fn requests_that_others_send_are_refused_in_isolation() {
    sent_by_others(STRICT);
}

fn sent_by_others(config: &str) {
    let session = Session::offline(config, &["--all"]);
    let (_made, neighbour) = sleeper(&session);
    let victim = address(&neighbour, &network_of(&neighbour));
    let token = "/computeMetadata/v1/instance/service-accounts/default/token";
    let flavor = FLAVOR;
    let mut refused: Vec<String> = [
        "X-Forwarded-For: 127.0.0.1",
        "x-forwarded-for: ",
        "Forwarded: for=1.2.3.4",
        "Origin: http://evil.example",
        "Origin: null",
        "Referer: http://evil.example/",
        "Sec-Fetch-Site: same-origin",
        "Sec-Fetch-Dest: empty",
    ]
    .map(|header| ask(token, &format!(r"{flavor}{header}\r\n")))
    .into();
    // DNS rebinding: the browser sends the page's own host name.
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
    if config.is_empty() {
        a_plain_server_answers(&refused);
    }
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
        r"PUT {token} HTTP/1.1\r\nHost: metadata\r\nConnection: close\r\n{flavor}Content-Length: 0\r\n\r\n"
    ));
    let arguments: Vec<&str> = ["raw"].into_iter().chain(refused.iter().map(String::as_str)).collect();
    let answers = attack(&session, &arguments);
    for (request, answer) in refused.iter().zip(answers["replies"].as_array().unwrap()) {
        let answer = answer.as_str().unwrap();
        assert!(!answer.contains("access_token"), "{request}: a token");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{request}\n{answer}");
    }
}

#[test]
fn the_caller_is_identified_by_its_socket() {
    who_calls("");
}

#[test]
fn the_caller_is_identified_by_its_socket_in_isolation() {
    who_calls(STRICT);
}

fn who_calls(config: &str) {
    let session = Session::offline(config, &["--all"]);
    let (_made, neighbour) = sleeper(&session);
    let victim = address(&neighbour, &network_of(&neighbour));
    let flavor = FLAVOR;
    // The relay derives the id from the container itself, whatever the caller claims.
    let id = "/computeMetadata/v1/instance/id";
    let lies = [
        String::new(),
        format!(r"kfp-creds-caller: {victim}\r\n"),
        format!(r"Kfp-Creds-Caller: {victim}\r\nkfp-creds-caller: {victim}\r\n"),
        format!(r"Connection: kfp-creds-caller\r\nkfp-creds-caller: {victim}\r\n"),
        r"kfp-creds-host: evil.example\r\n".into(),
        format!(r"kfp-creds-listens: {victim}\r\n"),
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
