//! A thousand programs request a token at once, over real connections, from a slow Google.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::leaks::{ACCOUNT, Local, files};
use crate::support::fake_google::FakeGoogle;
use crate::support::session::{Folder, program};

/// The beginning of one answer's body.
async fn ask(server: &Local) -> String {
    let mut stream = TcpStream::connect(server.at).await.unwrap();
    let path = format!("/{}{ACCOUNT}/token", server.capability);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: metadata\r\nConnection: close\r\nMetadata-Flavor: Google\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.split(',').next().unwrap().into()
}

#[tokio::test]
async fn a_thousand_connections_at_once_are_one_call_at_google() {
    let (google, folder) = (FakeGoogle::start(), Folder::new("stampede"));
    let (config, credential) = files(&folder.0, &google, &google.user("somebody@example.com"));
    // The token of the start has expired when the thousand requests come.
    google.expires_in(1);
    let mut command = program(&folder.0);
    command.env("GOOGLE_APPLICATION_CREDENTIALS", &credential);
    let server = Local::start(command, &["--config", &config]);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    google.expires_in(3599);
    google.latency(Duration::from_millis(300));
    let before = google.calls().len();
    let answers = join_all((0..1000).map(|_| ask(&server))).await;
    assert_eq!(google.calls().len() - before, 1);
    assert!(answers[0].starts_with("{\"access_token\":"), "{}", answers[0]);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "not everybody has the same token");
}
