//! Sources and mint against a Google at the wire (`FakeGoogle`), which checks the requests.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kfp_creds::mint::{Mint, MintFailure};
use kfp_creds::process::Tasks;
use kfp_creds::record::Recorder;
use kfp_creds::source::google::{Endpoints, Google, SearchPaths};
use kfp_creds::source::http::client::{Limits, Upstream};
use kfp_creds::source::offline::Offline;
use kfp_creds::source::{AccessRequest, IdentityRequest, Reloaded, Source, SourceError};
use kfp_creds::token::{AccessToken, CLOUD_PLATFORM, Deadline, IdentityToken, Now, Scopes};
use kfp_creds::workload::ContainerId;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use crate::support::fake_google::{
    CANARY, Call, Failure, FakeGoogle, another_rsa_key, as_pkcs1, openssl, rsa_key,
};

pub(crate) const KEY_ACCOUNT: &str = "key@sa-project.iam.gserviceaccount.com";
pub(crate) const USER: &str = "dev@example.com";
pub(crate) const RUNNER: &str = "runner@sa-project.iam.gserviceaccount.com";
pub(crate) const BIGQUERY: &str = "https://www.googleapis.com/auth/bigquery";

/// A directory for one test.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("minting-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Short, so that a hang is noticed soon; long enough for a busy machine.
pub(crate) fn quick() -> Limits {
    Limits {
        call: Duration::from_secs(4),
        mint: Duration::from_secs(8),
        tries: 3,
        pause: Duration::from_millis(5),
    }
}

/// Three hanging calls do not get their full time, because one mint has its own limit.
#[track_caller]
pub(crate) fn assert_cut_short(took: Duration) {
    let limit = quick().mint;
    let (early, late) = (Duration::from_millis(100), Duration::from_secs(3));
    assert!(took >= limit - early && took < limit + late, "{took:?}");
}

pub(crate) fn upstream() -> Arc<Upstream> {
    Upstream::new(quick(), Vec::new()).unwrap()
}

pub(crate) fn find(place: &SearchPaths, endpoints: Endpoints) -> Result<Google, SourceError> {
    Google::find(place, endpoints, upstream())
}

/// The source that a credential file makes.
pub(crate) fn source(scratch: &Scratch, file: &str, fake: &FakeGoogle) -> Google {
    let named = Some(scratch.write("credential.json", file));
    find(&SearchPaths { google_application_credentials: named, ..SearchPaths::default() }, fake.endpoints())
        .unwrap()
}

pub(crate) fn ask(account: Option<&str>) -> AccessRequest {
    AccessRequest {
        service_account: account.map(String::from),
        scopes: Scopes::parse(BIGQUERY),
        lifetime: 1800,
        ..AccessRequest::default()
    }
}

pub(crate) fn id_ask(account: Option<&str>) -> IdentityRequest {
    IdentityRequest {
        service_account: account.map(String::from),
        audience: "https://service.example".into(),
        holder: None,
    }
}

pub(crate) fn left(end: Deadline) -> u64 {
    end.remaining(Now::read()).as_secs()
}

pub(crate) fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

pub(crate) fn kinds(fake: &FakeGoogle) -> Vec<String> {
    fake.calls().into_iter().map(|call| call.kind).collect()
}

/// The text of a refusal; panics for other results, or if the text contains the upstream's words.
#[track_caller]
pub(crate) fn refusal<T: std::fmt::Debug>(outcome: Result<T, SourceError>) -> String {
    match outcome {
        Err(SourceError::Refused(why)) if !why.contains(CANARY) => why.to_string(),
        other => panic!("not a clean refusal: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn transient<T: std::fmt::Debug>(outcome: Result<T, SourceError>) -> String {
    match outcome {
        Err(SourceError::Transient(why)) if !why.contains(CANARY) => why.to_string(),
        other => panic!("not a clean transient failure: {other:?}"),
    }
}

#[tokio::test]
async fn a_service_account_key_mints_for_exactly_the_scopes() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = source(&scratch, &fake.service_account(KEY_ACCOUNT, rsa_key()), &fake);
    let token: AccessToken = google.access_token(&ask(None)).await.unwrap();
    let minted = fake.minted(token.value.expose()).unwrap();
    assert_eq!((minted.email.as_str(), minted.scopes), (KEY_ACCOUNT, [BIGQUERY.to_owned()].into()));
    assert!((3590..=3599).contains(&left(token.expires)), "{}", left(token.expires));
    let principal = google.principal();
    assert_eq!(principal.kind, "service account key");
    assert_eq!(principal.email.as_deref(), Some(KEY_ACCOUNT));
    assert_eq!(principal.project.as_deref(), Some("sa-project"));
    // Only the mint caches.
    google.access_token(&ask(None)).await.unwrap();
    assert_eq!(kinds(&fake), ["jwt-bearer", "jwt-bearer"]);
}

/// Every form of a PEM that google-auth for Python accepts, and line ends that were escaped twice.
#[tokio::test]
async fn a_badly_pasted_private_key_is_accepted() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let file: Value = serde_json::from_str(&fake.service_account(KEY_ACCOUNT, rsa_key())).unwrap();
    let pem = rsa_key();
    let (begin, rest) = pem.split_once('\n').unwrap();
    let public = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", "QUJD".repeat(16));
    for (form, text) in [
        ("behind its certificate", format!("{public}{pem}")),
        ("with headers", format!("{begin}\nComment: of a tool\n\n{rest}")),
        ("with a byte order mark", format!("\u{feff}{pem}")),
        ("indented", pem.lines().map(|line| format!("    {line}\n")).collect()),
        ("in quotes", format!("\"{pem}\"")),
        ("with blanks for line ends", pem.replace('\n', " ")),
        ("without any line end", pem.replace('\n', "")),
        ("without the last line end", pem.trim_end().to_owned()),
        ("with the line ends of Windows", pem.replace('\n', "\r\n")),
        ("escaped twice", pem.replace('\n', "\\n")),
    ] {
        let mut file = file.clone();
        file["private_key"] = json!(text);
        let google = source(&scratch, &file.to_string(), &fake);
        google.access_token(&ask(None)).await.unwrap_or_else(|error| panic!("{form}: {error}"));
    }
}

/// The message says what kind of key it is, and what the person can do.
#[test]
fn an_unusable_key_is_named_by_its_kind() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let file: Value = serde_json::from_str(&fake.service_account(KEY_ACCOUNT, rsa_key())).unwrap();
    let pem = rsa_key();
    let told = |text: &str| {
        let place = SearchPaths {
            google_application_credentials: Some(scratch.write("odd.json", text)),
            ..SearchPaths::default()
        };
        refusal(find(&place, fake.endpoints()))
    };
    for (text, said) in [
        (pem.replace("PRIVATE", "ENCRYPTED PRIVATE"), "is encrypted with a passphrase"),
        (pem.replacen('\n', "\nProc-Type: 4,ENCRYPTED\n\n", 1), "is encrypted with a passphrase"),
        (pem.replace("PRIVATE", "PUBLIC"), "holds a public key or a certificate"),
        (pem.replace("PRIVATE KEY", "CERTIFICATE"), "holds a public key or a certificate"),
        (pem.replace("-----", ""), "is not a PEM private key"),
    ] {
        let mut file = file.clone();
        file["private_key"] = json!(text);
        let why = told(&file.to_string());
        assert!(why.contains(&format!("its private_key {said}")), "{said}: {why}");
    }
    for kind in ["installed", "web"] {
        let why = told(&json!({kind: {"client_id": "c", "client_secret": "canary-of-a-client"}}).to_string());
        assert!(why.contains("the client of an application") && !why.contains("canary"), "{why}");
    }
}

/// Blanks and a line end come with copied text, and some clients have an empty secret.
#[tokio::test]
async fn pasted_addresses_and_empty_client_secrets_are_accepted() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let mut file: Value = serde_json::from_str(&fake.service_account(KEY_ACCOUNT, rsa_key())).unwrap();
    file["token_uri"] = json!(format!(" {}\n", file["token_uri"].as_str().unwrap()));
    let google = source(&scratch, &file.to_string(), &fake);
    google.access_token(&ask(None)).await.unwrap();
    let mut file: Value = serde_json::from_str(&fake.user(USER)).unwrap();
    file["client_secret"] = json!("");
    let google = source(&scratch, &file.to_string(), &fake);
    let why = google.access_token(&ask(None)).await.map(|_| ()).unwrap_err().to_string();
    assert!(!why.contains("has no client_secret"), "the token endpoint decides: {why}");
    assert_eq!(kinds(&fake).last().map(String::as_str), Some("refresh_token"));
}

/// The answer of a proxy or of the network's login page is not Google's verdict on the credential.
#[tokio::test]
async fn answers_of_foreign_servers_are_transient_and_named() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let page =
        |status| Failure::Answer { status, content_type: "text/html", body: "<html>canary</html>".into() };
    for file in [fake.user(USER), fake.service_account(KEY_ACCOUNT, rsa_key())] {
        let google = source(&scratch, &file, &fake);
        for (status, said) in [
            (302, "answered 302 (a redirect"),
            (403, "answered 403 (not in the API's form"),
            (407, "answered 407 (a proxy wants a login"),
            (503, "answered 503"),
            (200, "but a web page"),
        ] {
            (0..3).for_each(|_| fake.fail(page(status)));
            let why = transient(google.access_token(&ask(None)).await);
            assert!(why.contains(said) && !why.contains("canary"), "{why}");
            (0..3).for_each(|_| fake.unfail());
            google.access_token(&ask(None)).await.unwrap();
        }
        // Google's own 403 is final.
        fake.fail(Failure::rpc(403, "PERMISSION_DENIED", None));
        refusal(google.access_token(&ask(None)).await);
    }
}

/// The transport that yup gets does not keep a client, but uses the current one for each call.
#[tokio::test]
async fn a_key_keeps_its_connection_until_the_machine_slept() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = source(&scratch, &fake.service_account(KEY_ACCOUNT, rsa_key()), &fake);
    for after_a_sleep in [1, 2] {
        for _ in 0..3 {
            google.access_token(&ask(None)).await.unwrap();
        }
        assert_eq!(fake.connections(), after_a_sleep);
        google.reconnect();
    }
    let chain = impersonated_over_a_key(&fake);
    let google = source(&scratch, &chain, &fake);
    for after_a_sleep in [3, 4] {
        google.access_token(&ask(None)).await.unwrap();
        assert_eq!(fake.connections(), after_a_sleep, "one for the key and for what is made of it");
        google.reconnect();
        fake.withdraw_all();
    }
}

fn impersonated_over_a_key(fake: &FakeGoogle) -> String {
    fake.allow(KEY_ACCOUNT, RUNNER);
    let key: Value = serde_json::from_str(&fake.service_account(KEY_ACCOUNT, rsa_key())).unwrap();
    let url = format!("{}/v1/projects/-/serviceAccounts/{RUNNER}:generateAccessToken", fake.url());
    json!({
        "type": "impersonated_service_account", "service_account_impersonation_url": url,
        "source_credentials": key,
    })
    .to_string()
}

#[tokio::test]
async fn the_token_uri_of_a_key_file_counts_unless_one_is_configured() {
    let (fake, other, scratch) = (FakeGoogle::start(), FakeGoogle::start(), Scratch::new());
    let file = fake.service_account(KEY_ACCOUNT, rsa_key());
    other.service_account(KEY_ACCOUNT, rsa_key());
    let named = SearchPaths {
        google_application_credentials: Some(scratch.write("key.json", &file)),
        ..SearchPaths::default()
    };
    find(&named, Endpoints::default()).unwrap().access_token(&ask(None)).await.unwrap();
    find(&named, other.endpoints()).unwrap().access_token(&ask(None)).await.unwrap();
    assert_eq!((fake.calls().len(), other.calls().len()), (1, 1));

    for bad in ["http://example.com/token", "ftp://example.com", "nonsense", "http://127.0.0.1.example.com/"]
    {
        let mut file: Value = serde_json::from_str(&file).unwrap();
        file["token_uri"] = json!(bad);
        let named = SearchPaths {
            google_application_credentials: Some(scratch.write("key.json", &file.to_string())),
            ..SearchPaths::default()
        };
        refusal(find(&named, Endpoints::default()));
    }
}

#[tokio::test]
async fn old_key_files_work_and_foreign_keys_do_not() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let mut file: Value = serde_json::from_str(&fake.service_account(KEY_ACCOUNT, rsa_key())).unwrap();
    file["private_key"] = json!(as_pkcs1(rsa_key()));
    let google = source(&scratch, &file.to_string(), &fake);
    google.access_token(&ask(None)).await.unwrap();
    google.identity_token(&id_ask(None)).await.unwrap();

    file["private_key"] = json!(another_rsa_key());
    let google = source(&scratch, &file.to_string(), &fake);
    let why = refusal(google.access_token(&ask(None)).await);
    assert!(why.contains(KEY_ACCOUNT) && why.contains("invalid_grant"), "{why}");
    refusal(google.identity_token(&id_ask(None)).await);
}

#[tokio::test]
async fn a_service_account_key_mints_id_tokens() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = source(&scratch, &fake.service_account(KEY_ACCOUNT, rsa_key()), &fake);
    let token: IdentityToken = google.identity_token(&id_ask(None)).await.unwrap();
    let claims = claims(token.value.expose());
    assert_eq!((&claims["aud"], &claims["email"]), (&json!("https://service.example"), &json!(KEY_ACCOUNT)));
    assert!((3590..=3600).contains(&left(token.expires)));
}

#[tokio::test]
async fn a_user_login_refreshes_without_narrowing_and_learns_its_name() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = source(&scratch, &fake.user(USER), &fake);
    assert_eq!(google.principal().email, None);
    let token = google.access_token(&ask(None)).await.unwrap();
    assert!(fake.minted(token.value.expose()).unwrap().scopes.contains(CLOUD_PLATFORM));
    assert!(token.scopes.is_empty(), "the upstream chooses the scopes");
    assert_eq!(fake.calls()[0].scopes, None);
    let principal = google.principal();
    assert_eq!((principal.kind, principal.email.as_deref()), ("user login", Some(USER)));
    assert_eq!(principal.quota_project.as_deref(), Some("user-quota-project"));
    let why = refusal(google.identity_token(&id_ask(None)).await);
    assert!(why.contains("--impersonate"), "{why}");
}

#[tokio::test]
async fn a_rotated_refresh_token_is_used_from_then_on() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let file = fake.user(USER);
    let google = source(&scratch, &file, &fake);
    fake.rotate_refresh_tokens();
    for _ in 0..3 {
        google.access_token(&ask(None)).await.unwrap();
    }
    // Touching the file does not bring the old refresh token back.
    scratch.write("credential.json", &file);
    assert_eq!(google.reload(), Reloaded::Same);
    google.access_token(&ask(None)).await.unwrap();
    let stale = source(&scratch, &file, &fake);
    assert!(
        refusal(stale.access_token(&ask(None)).await).contains("invalid_grant"),
        "the fake does end the old one"
    );
}

#[tokio::test]
async fn refusals_say_what_a_person_has_to_do() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = source(&scratch, &fake.user(USER), &fake);
    for (failure, words) in [
        (Failure::oauth(400, "invalid_grant", None), "expired"),
        (Failure::oauth(400, "invalid_grant", Some("invalid_rapt")), "invalid_rapt"),
        (Failure::oauth(400, "invalid_grant", Some("rapt_required")), "rapt_required"),
        (Failure::oauth(401, "invalid_client", None), "invalid_client"),
    ] {
        fake.fail(failure);
        let why = refusal(google.access_token(&ask(None)).await);
        assert!(why.contains(words) && why.contains("gcloud auth application-default login"), "{why}");
    }
    fake.fail(Failure::oauth(400, "something_else", None));
    assert_eq!(refusal(google.access_token(&ask(None)).await), "127.0.0.1 answered 400 something_else");
    assert_eq!(fake.calls().len(), 5, "a refusal is not repeated");
}

#[tokio::test]
async fn permanent_failures_are_refusals_for_every_kind() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    for file in [fake.user(USER), fake.service_account(KEY_ACCOUNT, rsa_key())] {
        let google = source(&scratch, &file, &fake);
        for code in [
            "disabled_client",
            "deleted_client",
            "admin_policy_enforced",
            "org_internal",
            "restricted_client",
            "invalid_client",
            "unauthorized_client",
            "invalid_scope",
            "access_denied",
        ] {
            let before = fake.calls().len();
            fake.fail(Failure::oauth(401, code, None));
            let why = refusal(google.access_token(&ask(None)).await);
            assert!(why.contains(code), "{why}");
            assert_eq!(fake.calls().len() - before, 1, "{code}");
        }
    }
}

#[tokio::test]
async fn temporary_failures_are_retried_then_transient() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let files = [fake.user(USER), fake.service_account(KEY_ACCOUNT, rsa_key())];
    for file in files {
        let google = source(&scratch, &file, &fake);
        let troubles = [
            Failure::html_503(),
            Failure::oauth(429, "rate_limit_exceeded", None),
            Failure::oauth(500, "internal_failure", None),
            Failure::CutShort,
        ];
        for trouble in troubles {
            let before = fake.calls().len();
            fake.fail(trouble.clone());
            fake.fail(trouble.clone());
            google.access_token(&ask(None)).await.unwrap();
            assert_eq!(fake.calls().len() - before, 3, "{trouble:?}");
            (0..3).for_each(|_| fake.fail(trouble.clone()));
            transient(google.access_token(&ask(None)).await);
            assert_eq!(fake.calls().len() - before, 6, "{trouble:?}");
        }
    }
}

#[tokio::test]
async fn a_server_is_not_asked_before_its_retry_after() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    for file in [fake.user(USER), fake.service_account(KEY_ACCOUNT, rsa_key())] {
        let google = source(&scratch, &file, &fake);
        // The source waits for a second.
        fake.asks_to_wait("1");
        let (before, began) = (fake.calls().len(), Instant::now());
        fake.fail(Failure::oauth(429, "rate_limit_exceeded", None));
        google.access_token(&ask(None)).await.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!(fake.calls().len() - before, 2);
        // A minute is reported to the caller instead.
        fake.asks_to_wait("60");
        let before = fake.calls().len();
        fake.fail(Failure::html_503());
        match google.access_token(&ask(None)).await {
            Err(SourceError::Transient(why)) => {
                assert_eq!(why.pause, Some(Duration::from_secs(60)), "{why}");
                assert!(why.contains("asks to wait for 60 s"), "{why}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fake.calls().len() - before, 1);
    }
}

#[tokio::test]
async fn answers_are_bounded_in_size_and_time() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    for file in [fake.user(USER), fake.service_account(KEY_ACCOUNT, rsa_key())] {
        let google = source(&scratch, &file, &fake);
        (0..3).for_each(|_| fake.fail(Failure::Huge((1 << 20) + 1)));
        let why = transient(google.access_token(&ask(None)).await);
        assert!(why.contains("larger than 1 MiB"), "{why}");
        (0..3).for_each(|_| fake.fail(Failure::Hang));
        let began = Instant::now();
        transient(google.access_token(&ask(None)).await);
        assert_cut_short(began.elapsed());
        assert!(google.access_token(&ask(None)).await.is_ok());
    }
}

#[tokio::test]
async fn an_unreachable_endpoint_is_transient_and_named() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let path = scratch.write("user.json", &fake.user(USER));
    let place = SearchPaths { google_application_credentials: Some(path), ..SearchPaths::default() };
    let endpoints = Endpoints { token: Some(format!("http://{closed}/token")), ..Endpoints::default() };
    let why = transient(find(&place, endpoints).unwrap().access_token(&ask(None)).await);
    assert!(why.contains("127.0.0.1") && why.to_lowercase().contains("refused"), "{why}");
}

#[tokio::test]
async fn lifetimes_are_never_inflated() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    for file in [fake.user(USER), fake.service_account(KEY_ACCOUNT, rsa_key())] {
        let google = source(&scratch, &file, &fake);
        fake.expires_in(300);
        fake.latency(Duration::from_millis(1200));
        let token = google.access_token(&ask(None)).await.unwrap();
        assert!(left(token.expires) <= 298, "counted from before the request: {}", left(token.expires));
        fake.latency(Duration::ZERO);
        fake.expires_in(0);
        transient(google.access_token(&ask(None)).await);
        let absurd = json!({"access_token": "x", "expires_in": 3_000_000_000_u64, "token_type": "Bearer"});
        fake.fail(plain_200(&absurd.to_string()));
        let token = google.access_token(&ask(None)).await.unwrap();
        assert!(left(token.expires) <= 43_200);
        // Without an expiry there is no token, and neither is there for an answer of another form.
        for body in [r#"{"access_token":"canary","token_type":"Bearer"}"#, "{}", "[]", ""] {
            let before = fake.calls().len();
            (0..3).for_each(|_| fake.fail(plain_200(body)));
            transient(google.access_token(&ask(None)).await);
            (0..3 - (fake.calls().len() - before)).for_each(|_| fake.unfail());
        }
    }
}

fn plain_200(body: &str) -> Failure {
    Failure::Answer { status: 200, content_type: "application/json", body: body.into() }
}

#[tokio::test]
async fn an_absurd_lifetime_causes_no_panic() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    // yup computes with the lifetime that it gets and panics on overflow, so it gets one that a clock can
    // represent.
    let google = source(&scratch, &fake.service_account(KEY_ACCOUNT, rsa_key()), &fake);
    let mint = Mint::new(Arc::new(google), Tasks::new(), Recorder::default());
    fake.fail(plain_200(&json!({"access_token": "x", "expires_in": i64::MAX}).to_string()));
    let token = mint.access(&ask(None), None, Duration::from_secs(2)).await.unwrap();
    assert!((43_190..=43_200).contains(&left(token.expires)), "{}", left(token.expires));
}

#[tokio::test]
async fn keys_and_logins_can_impersonate() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let cases = [
        (fake.user(USER), USER, "refresh_token", Some("user-quota-project")),
        (fake.service_account(KEY_ACCOUNT, rsa_key()), KEY_ACCOUNT, "jwt-bearer", None),
    ];
    for (file, caller, base, quota_project) in cases {
        let before = fake.calls().len();
        let google = source(&scratch, &file, &fake);
        fake.allow(caller, RUNNER);
        let (request, id_request) = (ask(Some(RUNNER)), id_ask(Some(RUNNER)));
        let (token, id) = tokio::join!(google.access_token(&request), google.identity_token(&id_request));
        let (token, id) = (token.unwrap(), id.unwrap());
        let minted = fake.minted(token.value.expose()).unwrap();
        assert_eq!((minted.email.as_str(), minted.scopes), (RUNNER, [BIGQUERY.to_owned()].into()));
        assert!((1790..=1800).contains(&left(token.expires)), "{}", left(token.expires));
        let claims = claims(id.value.expose());
        assert_eq!((&claims["email"], &claims["aud"]), (&json!(RUNNER), &json!("https://service.example")));
        google.access_token(&request).await.unwrap();

        let calls: Vec<Call> = fake.calls().split_off(before);
        assert_eq!(
            calls.iter().filter(|call| call.kind == base).count(),
            1,
            "one base token for all: {calls:?}"
        );
        let generate = calls.iter().find(|call| call.kind == "generateAccessToken").unwrap();
        assert_eq!(generate.lifetime.as_deref(), Some("1800s"));
        assert_eq!(generate.scopes.as_deref(), Some(BIGQUERY));
        assert_eq!(generate.quota_project.as_deref(), quota_project);
    }
}

#[tokio::test]
async fn a_key_does_not_impersonate_itself() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = source(&scratch, &fake.service_account(KEY_ACCOUNT, rsa_key()), &fake);
    google.access_token(&ask(Some(KEY_ACCOUNT))).await.unwrap();
    google.identity_token(&id_ask(Some(KEY_ACCOUNT))).await.unwrap();
    assert_eq!(kinds(&fake), ["jwt-bearer", "jwt-bearer"]);
}

#[tokio::test]
async fn denied_impersonation_says_who_lacks_what() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = source(&scratch, &fake.user(USER), &fake);
    let why = refusal(google.access_token(&ask(Some(RUNNER))).await);
    assert!(why.contains("404 NOT_FOUND") && why.contains(RUNNER), "{why}");
    fake.allow("somebody@example.com", RUNNER);
    for why in [
        refusal(google.access_token(&ask(Some(RUNNER))).await),
        refusal(google.identity_token(&id_ask(Some(RUNNER))).await),
    ] {
        assert!(why.contains("403 PERMISSION_DENIED") && why.contains(USER), "{why}");
        assert!(why.contains("roles/iam.serviceAccountTokenCreator"), "{why}");
    }
    fake.fail(Failure::rpc(403, "PERMISSION_DENIED", Some("SERVICE_DISABLED")));
    let why = refusal(google.access_token(&ask(Some(RUNNER))).await);
    assert!(why.contains("gcloud services enable iamcredentials.googleapis.com"), "{why}");
    refusal(google.access_token(&ask(Some("../../evil"))).await);

    fake.allow(USER, RUNNER);
    let too_long = AccessRequest { lifetime: 7200, ..ask(Some(RUNNER)) };
    assert!(refusal(google.access_token(&too_long).await).contains("400 INVALID_ARGUMENT"));
    (0..2).for_each(|_| fake.fail(Failure::rpc(503, "UNAVAILABLE", None)));
    google.access_token(&ask(Some(RUNNER))).await.unwrap();
    (0..3).for_each(|_| fake.fail(Failure::rpc(503, "UNAVAILABLE", None)));
    transient(google.access_token(&ask(Some(RUNNER))).await);
}

#[tokio::test]
async fn a_withdrawn_base_token_is_renewed_once() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = source(&scratch, &fake.user(USER), &fake);
    fake.allow(USER, RUNNER);
    google.access_token(&ask(Some(RUNNER))).await.unwrap();
    fake.withdraw_all();
    google.access_token(&ask(Some(RUNNER))).await.unwrap();
    let seen = kinds(&fake);
    let again = ["generateAccessToken", "refresh_token", "generateAccessToken"];
    assert_eq!(seen[2..], again, "{seen:?}");
    (0..2).for_each(|_| fake.fail(Failure::rpc(401, "UNAUTHENTICATED", None)));
    // The second failure answers the refresh: a 401 there is a refusal, and does not cause a loop.
    refusal(google.access_token(&ask(Some(RUNNER))).await);
}

#[tokio::test]
async fn wrong_clocks_and_false_expiries_are_tolerated() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = source(&scratch, &fake.user(USER), &fake);
    fake.allow(USER, RUNNER);
    let request = ask(Some(RUNNER));
    let life = async || google.access_token(&request).await.map(|token| left(token.expires));
    google.access_token(&request).await.unwrap();
    for skew in [-590, -60, 60, 590] {
        fake.clock_off_by(skew, true);
        let left = life().await.unwrap();
        assert!((1790..=1800).contains(&left), "server off by {skew} s: {left}");
        let id = google.identity_token(&id_ask(Some(RUNNER))).await.unwrap();
        let id = id.expires.remaining(Now::read()).as_secs();
        assert!((3590..=3600).contains(&id), "server off by {skew} s: {id}");
    }
    fake.clock_off_by(590, false);
    assert!(life().await.unwrap() <= 1800, "no date, our clock behind: what was asked for, at most");
    fake.clock_off_by(-590, false);
    assert!((1200..=1210).contains(&life().await.unwrap()), "no date, our clock ahead: less, never more");
    fake.clock_off_by(0, true);
    for (forged, longest) in
        [("2999-01-01T00:00:00Z", Some(1800)), ("2001-01-01T00:00:00Z", None), ("soon", None)]
    {
        fake.forge_expire_time(forged);
        match longest {
            Some(longest) => assert!(life().await.unwrap() <= longest),
            None => {
                transient(life().await);
            }
        }
    }
}

#[tokio::test]
async fn a_clock_hours_off_is_an_error_not_a_panic() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = source(&scratch, &fake.user(USER), &fake);
    fake.allow(USER, RUNNER);
    fake.clock_off_by(-7200, true);
    let why = transient(google.access_token(&ask(Some(RUNNER))).await);
    assert!(why.contains("clock"), "{why}");
}

#[tokio::test]
async fn a_file_replaced_while_serving_is_picked_up() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = Arc::new(source(&scratch, &fake.user(USER), &fake));
    let mint = Mint::new(google.clone(), Tasks::new(), Recorder::default());
    let wait = Duration::from_secs(2);
    let who = async || {
        let token = mint.access(&ask(None), None, wait).await.unwrap();
        fake.minted(token.value.expose()).unwrap().email
    };
    assert_eq!(who().await, USER);
    assert_eq!(mint.reload(), Reloaded::Same);

    // Half written: the first look reports nothing, and the old credential stays.
    scratch.write("credential.json", "{\"type\": \"authorized_user\", \"refresh_token\": \"canary");
    assert_eq!(mint.reload(), Reloaded::Same);
    let broken = mint.reload();
    assert!(matches!(&broken, Reloaded::Broken(why) if !why.contains(CANARY)), "{broken:?}");
    assert_eq!(mint.reload(), Reloaded::Same, "reported once");
    google.access_token(&ask(None)).await.unwrap();
    assert_eq!(who().await, USER);

    scratch.write("credential.json", &fake.user("other@example.com"));
    assert_eq!(mint.reload(), Reloaded::OtherAccount);
    assert_eq!(google.principal().email, None, "the old account's name must be dropped");
    assert_eq!(who().await, "other@example.com");

    fs::remove_file(scratch.0.join("credential.json")).unwrap();
    assert_eq!(mint.reload(), Reloaded::Same);
    assert!(matches!(mint.reload(), Reloaded::Broken(_)));
    google.access_token(&ask(None)).await.unwrap();

    scratch.write("credential.json", &fake.service_account(KEY_ACCOUNT, rsa_key()));
    assert_eq!(mint.reload(), Reloaded::OtherAccount);
    assert_eq!(who().await, KEY_ACCOUNT);
    scratch.write("credential.json", &fake.service_account(KEY_ACCOUNT, another_rsa_key()));
    assert_eq!(mint.reload(), Reloaded::Renewed, "another key of the same account");
    assert_eq!(mint.reload(), Reloaded::Same);
    let calls = fake.calls().len();
    assert_eq!(who().await, KEY_ACCOUNT);
    assert_eq!(fake.calls().len(), calls, "its cached token stays in use");
    google.access_token(&ask(None)).await.unwrap();
}

#[tokio::test]
async fn a_new_login_ends_a_remembered_refusal() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = Arc::new(source(&scratch, &fake.user(USER), &fake));
    let mint = Mint::new(google, Tasks::new(), Recorder::default());
    fake.fail(Failure::oauth(400, "invalid_grant", Some("invalid_rapt")));
    let wait = Duration::from_secs(2);
    for _ in 0..10 {
        assert!(matches!(mint.access(&ask(None), None, wait).await, Err(MintFailure::Refused(_))));
    }
    assert_eq!(fake.calls().len(), 1);
    scratch.write("credential.json", &fake.user(USER));
    mint.reload();
    mint.access(&ask(None), None, wait).await.unwrap();
}

#[test]
fn credentials_are_looked_for_in_order() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let (user, key) = (fake.user(USER), fake.service_account(KEY_ACCOUNT, rsa_key()));
    let home = scratch.0.join("home");
    let nowhere = SearchPaths { home: Some(home.clone()), ..SearchPaths::default() };
    let nothing = find(&nowhere, fake.endpoints()).unwrap_err();
    let text = nothing.to_string();
    assert!(matches!(nothing, SourceError::Absent(_)), "{nothing:?}");
    for word in [
        "home/.config/gcloud/application_default_credentials.json",
        "gcloud auth application-default login",
        "--offline",
    ] {
        assert!(text.contains(word), "{text}");
    }
    assert!(matches!(find(&SearchPaths::default(), fake.endpoints()), Err(SourceError::Absent(_))));

    scratch.write("home/.config/gcloud/application_default_credentials.json", &user);
    scratch.write("home/.config/gcloud/configurations/config_default", "[core]\naccount = no\n");
    scratch.write("home/.config/gcloud/active_config", "work\n");
    scratch.write(
        "home/.config/gcloud/configurations/config_work",
        "[core]\naccount = g@example.com\nproject = gcloud-project\n",
    );
    let google = find(&nowhere, fake.endpoints()).unwrap();
    assert_eq!(google.principal().kind, "user login");
    assert_eq!(google.principal().email.as_deref(), Some("g@example.com"), "the last resort");
    assert_eq!(google.principal().project.as_deref(), Some("gcloud-project"));

    scratch.write("sdk/application_default_credentials.json", &key);
    let elsewhere = SearchPaths { cloudsdk_config: Some(scratch.0.join("sdk")), ..nowhere };
    let google = find(&elsewhere, fake.endpoints()).unwrap();
    assert_eq!(google.principal().email.as_deref(), Some(KEY_ACCOUNT));
    assert_eq!(google.principal().project.as_deref(), Some("sa-project"), "the file comes before gcloud");

    let named =
        |path: PathBuf| SearchPaths { google_application_credentials: Some(path), ..elsewhere.clone() };
    let google = find(&named(scratch.write("named.json", &user)), fake.endpoints()).unwrap();
    assert_eq!(google.principal().kind, "user login");
    assert_eq!(google.path(), Some(scratch.0.join("named.json").as_path()));
    assert!(find(&named(PathBuf::new()), fake.endpoints()).is_ok(), "empty is unset");
    let why = refusal(find(&named(scratch.0.join("gone.json")), fake.endpoints()));
    assert!(why.contains("gone.json"), "never a fallback from a broken choice: {why}");
    refusal(find(&named(scratch.0.clone()), fake.endpoints()));
}

#[test]
fn files_that_are_not_understood_are_refused_clearly() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let mut key: Value = serde_json::from_str(&fake.service_account(KEY_ACCOUNT, rsa_key())).unwrap();
    let mut cases = vec![
        (String::from("{\"type\": \"canary"), "is not valid"),
        ("[]".into(), "has to be an object, and is a list"),
        ("{}".into(), "not known"),
        (json!({"type": "canary"}).to_string(), "not known"),
        (json!({"type": "authorized_user", "client_id": "canary"}).to_string(), "no client_secret"),
        (json!({"type": "service_account", "client_email": "canary"}).to_string(), "no private_key"),
    ];
    cases.push((
        json!({"type": "gdch_service_account", "x": "canary"}).to_string(),
        "is of Google Distributed Cloud",
    ));
    cases.push((json!({"type": "external_account", "x": "canary"}).to_string(), "no audience"));
    key["private_key"] = json!("canary");
    cases.push((key.to_string(), "private_key"));
    key["private_key"] = json!(openssl(&["genrsa", "1024"], ""));
    cases.push((key.to_string(), "has less than 2048 bits"));
    key["private_key"] = json!(rsa_key().replace("MII", "MIX"));
    cases.push((key.to_string(), "private_key"));
    for (file, words) in cases {
        let path = scratch.write("file.json", &file);
        let place = SearchPaths { google_application_credentials: Some(path), ..SearchPaths::default() };
        let why = refusal(find(&place, fake.endpoints()));
        assert!(why.contains(words) && why.contains("file.json"), "{why}");
    }
}

#[tokio::test]
async fn a_stampede_is_one_call_at_google() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = Arc::new(source(&scratch, &fake.user(USER), &fake));
    let mint = Mint::new(google, Tasks::new(), Recorder::default());
    fake.latency(Duration::from_millis(300));
    let wait = Duration::from_secs(5);
    let began = Instant::now();
    let request = ask(None);
    let callers = (0..1000).map(|_| mint.access(&request, None, wait));
    let first: Vec<_> = futures_util::future::join_all(callers).await;
    let took = began.elapsed();
    let values: std::collections::BTreeSet<_> =
        first.into_iter().map(|token| token.unwrap().value.expose().clone()).collect();
    assert_eq!((values.len(), fake.calls().len()), (1, 1));
    // The exact 350 ms are asserted in paused time (src/mint/tests.rs); this machine may be busy.
    assert!(took < Duration::from_secs(4), "{took:?}");

    // For a failing upstream, one flight asks three times; a thousand callers do not ask three thousand
    // times.
    (0..3).for_each(|_| fake.fail(Failure::html_503()));
    let other = AccessRequest { lifetime: 60, ..ask(None) };
    let callers = (0..1000).map(|_| mint.access(&other, None, wait));
    for outcome in futures_util::future::join_all(callers).await {
        assert!(matches!(outcome, Err(MintFailure::Transient(_))), "{outcome:?}");
    }
    assert_eq!(fake.calls().len(), 4);

    // Callers that leave, with a second key at the same time.
    fake.latency(Duration::from_millis(300));
    let (left, second) =
        (AccessRequest { lifetime: 61, ..ask(None) }, AccessRequest { lifetime: 62, ..ask(None) });
    let hurried =
        (0..500).map(|_| tokio::time::timeout(Duration::from_millis(20), mint.access(&left, None, wait)));
    let (gone, stayed) =
        tokio::join!(futures_util::future::join_all(hurried), mint.access(&second, None, wait));
    assert!(gone.iter().all(Result::is_err) && stayed.is_ok());
    mint.access(&left, None, wait).await.unwrap();
    assert_eq!(fake.calls().len(), 6, "the flight must go on when all callers have left");
}

#[tokio::test]
async fn offline_tokens_verify_against_the_published_key() {
    let offline = Offline::new("demo-project", "demo@demo-project.iam.gserviceaccount.com").unwrap();
    let holder = ContainerId::parse(&"ab".repeat(32)).unwrap();
    let access = AccessRequest { holder: Some(holder.clone()), ..ask(None) };
    let identity = IdentityRequest { holder: Some(holder.clone()), ..id_ask(Some(RUNNER)) };
    let access = offline.access_token(&access).await.unwrap();
    let identity = offline.identity_token(&identity).await.unwrap();
    assert!(offline.per_container());

    let verify = |token: &str, jwks: &str| {
        let keys: Value = serde_json::from_str(jwks).unwrap();
        let key = &keys["keys"][0];
        let part = |value: &Value| URL_SAFE_NO_PAD.decode(value.as_str().unwrap()).unwrap();
        let point = [vec![4], part(&key["x"]), part(&key["y"])].concat();
        let (input, signature) = token.rsplit_once('.').unwrap();
        let header: Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(input.split('.').next().unwrap()).unwrap())
                .unwrap();
        assert_eq!(
            (&header["alg"], &key["kty"], &key["crv"]),
            (&json!("ES256"), &json!("EC"), &json!("P-256"))
        );
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        assert_eq!(signature.len(), 64);
        header["kid"] == key["kid"]
            && UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                .verify(input.as_bytes(), &signature)
                .is_ok()
    };
    let tokens = [access.value.expose(), identity.value.expose()];
    let stranger = Offline::new("demo-project", "x").unwrap();
    for token in tokens {
        assert!(verify(token, &offline.jwks()));
        assert!(!verify(token, &stranger.jwks()), "every start has its own key");
    }
    let forged = tokens[0].replacen('.', ".A", 1);
    assert!(!verify(&forged, &offline.jwks()));

    let (one, two) = (claims(tokens[0]), claims(tokens[1]));
    assert_eq!(one["iss"], "https://kfp-creds.offline");
    assert_eq!(one["scope"], BIGQUERY);
    assert_eq!(one["email"], "demo@demo-project.iam.gserviceaccount.com");
    assert_eq!((&two["email"], &two["aud"]), (&json!(RUNNER), &json!("https://service.example")));
    for claims in [&one, &two] {
        assert_eq!(claims["container"], holder.as_str());
    }
    assert_eq!(one["exp"].as_u64().unwrap() - one["iat"].as_u64().unwrap(), 1800);
    assert_ne!(one["jti"], two["jti"]);
    assert!((1798..=1800).contains(&left(access.expires)));
}

/// The test runs itself as a child, because a `log` bridge is installed for the whole process.
#[test]
fn yup_prints_no_secret_at_trace_level() {
    const CHILD: &str = "KFP_CREDS_TEST_LEAK_CHILD";
    #[expect(clippy::disallowed_methods, reason = "parent and child are told apart by it")]
    let child = std::env::var_os(CHILD);
    if child.is_some() {
        return exchange_at_trace_level();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "minting::yup_prints_no_secret_at_trace_level", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("exchanges done: 4"), "the child did its work: {text}");
    assert!(text.contains("this is what a leak looks like"), "trace level is on: {text}");
    let found: Vec<&str> =
        text.lines().filter(|line| line.contains(CANARY) || line.contains("eyJ")).collect();
    assert!(found.is_empty(), "{found:#?}");
    // The child lists its own keys, assertions and ID tokens in a file.
    let listed = text.lines().find_map(|line| line.strip_prefix("secrets file: ")).unwrap();
    let secrets = fs::read_to_string(listed).unwrap();
    assert!(secrets.lines().count() > 20);
    let leaked: Vec<&str> = secrets.lines().filter(|secret| text.contains(secret)).collect();
    assert!(leaked.is_empty(), "{leaked:#?}");
    fs::remove_dir_all(Path::new(listed).parent().unwrap()).unwrap();
}

fn exchange_at_trace_level() {
    tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false).init();
    tracing::trace!("this is what a leak looks like");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
        let google = source(&scratch, &fake.service_account(KEY_ACCOUNT, rsa_key()), &fake);
        fake.allow(KEY_ACCOUNT, RUNNER);
        let mut done = 0;
        for outcome in [google.access_token(&ask(None)).await, google.access_token(&ask(Some(RUNNER))).await]
        {
            done += usize::from(outcome.is_ok());
        }
        for outcome in
            [google.identity_token(&id_ask(None)).await, google.identity_token(&id_ask(Some(RUNNER))).await]
        {
            done += usize::from(outcome.is_ok());
        }
        fake.fail(Failure::oauth(400, "invalid_grant", None));
        let refused = google.access_token(&ask(None)).await;
        let secrets = scratch.write("secrets", &fake.canaries().join("\n"));
        let said =
            format!("{refused:?}\n{google:?}\nexchanges done: {done}\nsecrets file: {}\n", secrets.display());
        std::io::stdout().write_all(said.as_bytes()).unwrap();
        std::mem::forget(scratch);
    });
}

#[tokio::test]
async fn https_endpoints_are_verified_and_extra_roots_count() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let (certificate, port, server) = tls_server(&scratch);
    let path = scratch.write("user.json", &fake.user(USER));
    let place = SearchPaths { google_application_credentials: Some(path), ..SearchPaths::default() };
    let endpoints =
        Endpoints { token: Some(format!("https://localhost:{port}/token")), ..Endpoints::default() };
    // An untrusted certificate is not retried, since the same server would answer; this pause makes a retry
    // noticeable.
    let slow = Limits { pause: Duration::from_secs(3600), mint: Duration::from_secs(20), ..quick() };
    let distrusting = Google::find(&place, endpoints.clone(), Upstream::new(slow, vec![]).unwrap()).unwrap();
    let why = transient(distrusting.access_token(&ask(None)).await);
    assert!(why.contains("certificate"), "{why}");
    let trusting =
        Google::find(&place, endpoints, Upstream::new(quick(), vec![certificate]).unwrap()).unwrap();
    assert_eq!(trusting.access_token(&ask(None)).await.unwrap().value.expose(), "x");
    server.join().unwrap();
}

/// A token endpoint with a certificate of its own; it ends after its first answer.
fn tls_server(scratch: &Scratch) -> (CertificateDer<'static>, u16, std::thread::JoinHandle<()>) {
    let curve = ["genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let key = scratch.write("tls.key", &openssl(&curve, ""));
    let request =
        ["req", "-x509", "-new", "-subj", "/CN=localhost", "-days", "1", "-key", key.to_str().unwrap()];
    let names = ["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"];
    let certificate = openssl(&[&request[..], &names[..]].concat(), "");
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], PrivateKeyDer::from_pem_file(&key).unwrap())
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let body = r#"{"access_token":"x","expires_in":60,"token_type":"Bearer"}"#;
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    let server = std::thread::spawn(move || {
        let config = Arc::new(config);
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let mut session = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut tls = rustls::Stream::new(&mut session, &mut stream);
            // A client that does not trust the certificate leaves before it sends anything.
            if tls.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {
                tls.write_all(answer.as_bytes()).unwrap();
                tls.conn.send_close_notify();
                tls.flush().unwrap();
                return;
            }
        }
    });
    (certificate, port, server)
}

#[tokio::test]
async fn a_reconnect_drops_connections_and_nothing_else() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = source(&scratch, &fake.user(USER), &fake);
    for _ in 0..2 {
        google.access_token(&ask(None)).await.unwrap();
        google.reconnect();
    }
    assert_eq!(fake.calls().len(), 2);
}
