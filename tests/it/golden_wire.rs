//! The golden cases on the wire, at `serve --listen`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::golden::Case;
use crate::support::listening::Listening;
use crate::support::wire::{self, Answer, Placeholders};

/// Sends the bytes and reads one reply, and everything after it if the connection ends.
fn ask(server: &Listening, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(&server.place).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let started = Instant::now();
    stream.write_all(request).unwrap();
    let mut bytes = Vec::new();
    while !is_whole(&bytes, request.starts_with(b"HEAD ")) {
        let mut part = [0; 4096];
        let count = stream.read(&mut part).unwrap();
        assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&part[..count]);
    }
    let after = started.elapsed();
    if String::from_utf8_lossy(&bytes).to_ascii_lowercase().contains("\r\nconnection: close\r\n") {
        stream.read_to_end(&mut bytes).unwrap();
    }
    Answer { bytes, after }
}

/// Whether there is a head with as many bytes of body as it announces.
fn is_whole(bytes: &[u8], is_head: bool) -> bool {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.unwrap_or_else(|| panic!("no length: {head}")).parse().unwrap();
    is_head || bytes.len() >= end + 4 + length
}

#[test]
fn every_case_is_answered_on_loopback() {
    for (name, more, times) in wire::SERVERS {
        answers_on_loopback(&Listening::open(&wire::config(more)), &wire::cases(name), times);
    }
}

fn answers_on_loopback(server: &Listening, cases: &[Case], times: usize) {
    let placeholders = Placeholders {
        host: server.place.clone(),
        name: "kfp-task".into(),
        number: 1_000_000_000_000_000_001,
        ip: "127.0.0.1".into(),
        etag: wire::etag(&ask(server, wire::WHOLE.as_bytes()).bytes),
    };
    let failed: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            (1..times).for_each(|_| drop(ask(server, &placeholders.request(case))));
            placeholders.differences(case, &ask(server, &placeholders.request(case)))
        })
        .collect();
    assert!(failed.is_empty(), "{} of {} cases differ\n\n{}", failed.len(), cases.len(), failed.join("\n"));
}

#[test]
fn unparsable_requests_are_refused_with_our_headers() {
    let server = Listening::open("");
    for (what, request, status) in wire::unparsable() {
        let mut stream = TcpStream::connect(&server.place).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&request).unwrap();
        let mut got = Vec::new();
        // The server may reset the connection after its reply, because it did not read the request to its
        // end.
        let _ = stream.read_to_end(&mut got);
        wire::assert_refused(what, &got, status);
    }
}

#[test]
fn unset_values_have_the_documented_default() {
    let server = Listening::open("");
    let value = |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: metadata\r\nMetadata-Flavor: Google\r\n\r\n");
        let answer = String::from_utf8(ask(&server, request.as_bytes()).bytes).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_string()
    };
    let table =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/metadata.md")).unwrap();
    // These values come from the offline source or the address, so the table has no default for them.
    let said = ["email", "aliases", "scopes", "token", "identity", "project-id", "image", "hostname"];
    let mut compared = 0;
    let keys = table.split("\n## ").next().unwrap();
    for row in keys.lines().filter_map(|line| line.strip_prefix("| `")) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let (key, text) = (cells[0].trim_end_matches('`'), cells[1].trim_matches('`'));
        if key.ends_with('/') || said.iter().any(|word| key.ends_with(word)) {
            continue;
        }
        assert_eq!(value(&format!("/computeMetadata/v1/{key}?alt=text")).trim(), text, "{key}");
        compared += 1;
    }
    assert!(compared > 30, "only {compared} keys were compared");
}

#[test]
fn format_full_is_answered_without_details_or_refused_if_strict() {
    let status = |config: &str, query: &str| {
        let server = Listening::open(config);
        let path = "/computeMetadata/v1/instance/service-accounts/default/identity?audience=a";
        let request =
            format!("GET {path}{query} HTTP/1.1\r\nHost: metadata\r\nMetadata-Flavor: Google\r\n\r\n");
        String::from_utf8(ask(&server, request.as_bytes()).bytes).unwrap()[9..12].to_string()
    };
    let strict = "default = \"loader\"\n[identity.loader]\nstrict = true\n";
    assert_eq!(
        [status("", "&format=full"), status(strict, ""), status(strict, "&format=full")],
        ["200", "200", "400"]
    );
}
