//! Connections to upstreams that fail: rows of `docs/internals/failures.md` beside those of [`crate::failures`].

use std::fs;
use std::time::Duration;

use crate::failures::{
    AGAIN, KEY, Listener, OTHER, answer, ask_aws, ask_azure, waits_for, with_aws, with_azure,
};
use crate::leaks::files;
use crate::support::failures::Happened;
use crate::support::fake_aws::FakeAws;
use crate::support::fake_entra::FakeEntra;
use crate::support::fake_google::{FakeGoogle, rsa_key};
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::session::{Folder, program};

#[test]
fn a_reset_connection_to_google_is_a_temporary_failure() {
    let (google, folder) = (FakeGoogle::start(), Folder::new("failures"));
    let proxy = FaultProxy::of(google.address());
    let through = |text: &str| text.replace(&google.url(), &proxy.url());
    let (config, file) = files(&folder.0, &google, &through(&google.service_account(KEY, rsa_key())));
    fs::write(&config, through(&fs::read_to_string(&config).unwrap())).unwrap();
    let mut command = program(&folder.0);
    command.env("GOOGLE_APPLICATION_CREDENTIALS", &file);
    let server = Listener::start(command, &["--config", &config], &folder.0).map_err(|why| why.1).unwrap();
    assert_eq!(server.token(""), "200 the token");
    let before = server.said();
    proxy.cause(Fault::Reset);
    let client = answer(|| server.token(OTHER));
    let person = server.lines(&before);
    assert_eq!(server.token(""), "200 the token", "the token that is there is served");
    proxy.stop();
    waits_for(Duration::from_secs(30), || server.token(OTHER).starts_with("200"));
    let case = "Google resets the connection";
    Happened { part: "Google", case, client, person, recovers: AGAIN }.is_on_the_page();
}

/// A fault that begins before the program starts.
fn fails_from_the_start(
    part: &'static str,
    (case, fault): (&'static str, Fault),
    proxy: &FaultProxy,
    start: impl Fn() -> Result<Listener, (i32, String)>,
    ask: impl Fn(&Listener) -> String,
) {
    proxy.cause(fault);
    let server = start().unwrap_or_else(|(code, said)| panic!("{case}: {code}: {said}"));
    let mut client = String::new();
    // Without an answer, an attempt is under way for most of the time.
    waits_for(Duration::from_secs(20), || {
        client = ask(&server);
        (fault == Fault::Silence) == client.contains("still being minted")
    });
    let person = server.lines("");
    proxy.stop();
    waits_for(Duration::from_secs(60), || ask(&server).starts_with("200"));
    Happened { part, case, client, person, recovers: AGAIN }.is_on_the_page();
}

#[test]
fn faults_of_the_connection_to_aws_do_not_prevent_the_start() {
    for case in [
        ("no answer from AWS", Fault::Silence),
        ("half a body from AWS", Fault::HalfBody),
        ("AWS resets the connection", Fault::Reset),
        ("no connection to AWS", Fault::Closed),
    ] {
        let (aws, folder) = (FakeAws::start(), Folder::new("failures"));
        let proxy = FaultProxy::of(aws.address());
        fails_from_the_start("AWS", case, &proxy, || with_aws(&aws, &proxy.url(), &folder), ask_aws);
    }
}

#[test]
fn faults_of_the_connection_to_entra_do_not_prevent_the_start() {
    for case in [
        ("no answer from Entra", Fault::Silence),
        ("half a body from Entra", Fault::HalfBody),
        ("Entra resets the connection", Fault::Reset),
        ("no connection to Entra", Fault::Closed),
    ] {
        let (entra, folder) = (FakeEntra::start(), Folder::new("failures"));
        let proxy = FaultProxy::of(entra.address());
        fails_from_the_start("Azure", case, &proxy, || with_azure(&entra, &proxy.url(), &folder), ask_azure);
    }
}
