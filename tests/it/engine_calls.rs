//! Our own calls to an engine that does on demand what a real one does seldom.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kfp_creds::docker::Engine;

use crate::support::fake_engine::{Act, FakeEngine, json};
use crate::support::stand::Scratch;

/// Its exit is over before anybody who asks for the next one is heard.
#[tokio::test]
async fn a_container_that_ends_at_once_has_an_exit_code() {
    let scratch = Scratch::new();
    let ended = AtomicBool::new(false);
    let engine = FakeEngine::start(&scratch.0, move |seen| {
        let path = seen.line.split(' ').nth(1).unwrap();
        let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        if path.ends_with("/version") {
            let version =
                format!(r#"{{"Version":"20.10.24","ApiVersion":"1.41","Os":"linux","Arch":"{arch}"}}"#);
            json("200 OK", &version)
        } else if path.ends_with("/start") {
            ended.store(true, Ordering::SeqCst);
            vec![Act::Send(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())]
        } else if path.contains("/wait") && ended.load(Ordering::SeqCst) && !path.contains("next-exit") {
            json("200 OK", r#"{"StatusCode":7}"#)
        } else if path.contains("/wait") {
            vec![Act::Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()), Act::Hold]
        } else {
            json("404 Not Found", r#"{"message":"no such path"}"#)
        }
    });
    let engine = Engine::connect(&engine.socket).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), engine.run_to_end("probe")).await;
    assert_eq!(ended.expect("it waits for another end").unwrap(), 7);
}
