//! File descriptors of a session with idle streams.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::session::{Session, task_image};

/// Only root may list them, because the program is not dumpable; everyone may read their number (Linux 6.2).
fn descriptors(pid: u32) -> usize {
    let list = format!("/proc/{pid}/fd");
    match std::fs::read_dir(&list) {
        Ok(all) => all.count(),
        Err(_) => std::fs::metadata(&list).unwrap().len() as usize,
    }
}

fn settles(pid: u32, wanted: impl Fn(usize) -> bool) -> usize {
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        let count = descriptors(pid);
        if wanted(count) || Instant::now() > end {
            return count;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A request whose answer has begun and does not end.
fn idle(socket: &Path, path: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: docker\r\n\r\n").unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200", "{path}");
    stream
}

#[test]
fn idle_streams_give_their_descriptors_back() {
    let session = Session::offline("", &["--all"]);
    let id = session.ok(&[
        "run",
        "-d",
        "--rm",
        "--network",
        "none",
        &task_image(),
        "sh",
        "-c",
        "echo on; exec sleep 300",
    ]);
    idle(&session.socket, "/events");
    std::thread::sleep(Duration::from_millis(500));
    let before = settles(session.pid(), |_| true);
    for _ in 0..3 {
        let open: Vec<UnixStream> = (0..60)
            .map(|number| match number % 2 {
                0 => idle(&session.socket, "/events"),
                // The container has written a line, so the engine sends the head.
                _ => idle(&session.socket, &format!("/containers/{id}/logs?follow=1&stdout=1")),
            })
            .collect();
        let during = settles(session.pid(), |count| count >= before + 120);
        assert!(during >= before + 120, "{before} before, {during} with 60 streams: they are not held open");
        drop(open);
        let after = settles(session.pid(), |count| count <= before);
        assert!(after <= before, "{before} before, {after} after 60 streams were left");
    }
    session.ok(&["kill", &id]);
}
