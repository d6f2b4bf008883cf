//! Credential files that contain others or use other logins, and what keys sign themselves, against a Google
//! at the wire (`FakeGoogle`), which checks the requests.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kfp_creds::mint::Mint;
use kfp_creds::process::Tasks;
use kfp_creds::record::Recorder;
use kfp_creds::source::google::{Endpoints, Google, SearchPaths};
use kfp_creds::source::http::client::{Limits, Upstream};
use kfp_creds::source::http::proxy::Proxies;
use kfp_creds::source::{AccessRequest, Reloaded, Source};
use kfp_creds::token::{AccessCondition, Boundary, BoundaryRule, CLOUD_PLATFORM, Scopes};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::leaks::{ACCOUNT, Local};
use crate::minting::{
    BIGQUERY, KEY_ACCOUNT, RUNNER, Scratch, USER, ask, claims, find, id_ask, kinds, left, quick, refusal,
    source, transient,
};
use crate::support::fake_google::{Failure, FakeGoogle, another_rsa_key, rsa_key};
use crate::support::session::{Folder, program};

const MIDDLE: &str = "middle@sa-project.iam.gserviceaccount.com";
const FIRST: &str = "first@sa-project.iam.gserviceaccount.com";
const PERSON: &str = "person@workspace.example";

/// A file that impersonates `target` by means of another file.
fn impersonated(fake: &FakeGoogle, target: &str, of: &str, delegates: &[&str]) -> String {
    let url = format!("{}/v1/projects/-/serviceAccounts/{target}:generateAccessToken", fake.url());
    let of: Value = serde_json::from_str(of).unwrap();
    json!({
        "type": "impersonated_service_account", "service_account_impersonation_url": url,
        "delegates": delegates, "source_credentials": of, "quota_project_id": "outer-quota",
    })
    .to_string()
}

#[tokio::test]
async fn an_impersonated_file_works_on_every_kind() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    for (of, caller, kind, quota) in [
        (fake.user(USER), USER, "refresh_token", Some("user-quota-project")),
        (fake.service_account(KEY_ACCOUNT, rsa_key()), KEY_ACCOUNT, "jwt-bearer", None),
        (fake.workforce("person"), "person", "workforce", Some("workforce-quota")),
    ] {
        let google = source(&scratch, &impersonated(&fake, RUNNER, &of, &[]), &fake);
        let before = fake.calls().len();
        let why = refusal(google.access_token(&ask(None)).await);
        assert!(why.contains(RUNNER), "{why}");
        fake.allow(caller, RUNNER);
        let token = google.access_token(&ask(None)).await.unwrap();
        let minted = fake.minted(token.value.expose()).unwrap();
        assert_eq!((minted.email.as_str(), minted.scopes), (RUNNER, [BIGQUERY.to_owned()].into()));
        assert!((1790..=1800).contains(&left(token.expires)), "the identity's lifetime");
        let id = google.identity_token(&id_ask(None)).await.unwrap();
        assert_eq!(claims(id.value.expose())["email"], RUNNER);
        let calls = fake.calls().split_off(before);
        assert_eq!(calls.iter().filter(|call| call.kind == kind).count(), 1, "one base token: {calls:?}");
        let quotas: Vec<_> = calls.iter().filter(|call| call.kind.starts_with("generate")).collect();
        assert!(quotas.iter().all(|call| call.quota_project.as_deref() == quota), "{quotas:?}");
        let principal = google.principal();
        assert_eq!(
            (principal.kind, principal.email.as_deref()),
            ("impersonated service account", Some(RUNNER))
        );
        assert_eq!(principal.quota_project.as_deref(), Some("outer-quota"));
        // A token of the account that the file impersonates is not impersonated again.
        let before = fake.calls().len();
        google.access_token(&ask(Some(RUNNER))).await.unwrap();
        assert_eq!(fake.calls().len() - before, 1);
    }
}

#[tokio::test]
async fn files_nest_and_an_identity_impersonates_once_more() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let inner = impersonated(&fake, FIRST, &fake.user(USER), &[]);
    let google = source(&scratch, &impersonated(&fake, MIDDLE, &inner, &[]), &fake);
    for (caller, target) in [(USER, FIRST), (FIRST, MIDDLE), (MIDDLE, RUNNER)] {
        fake.allow(caller, target);
    }
    let token = google.access_token(&ask(Some(RUNNER))).await.unwrap();
    assert_eq!(fake.minted(token.value.expose()).unwrap().email, RUNNER);
    let chain = ["refresh_token", "generateAccessToken", "generateAccessToken", "generateAccessToken"];
    assert_eq!(kinds(&fake), chain);
    google.access_token(&ask(Some(RUNNER))).await.unwrap();
    assert_eq!(fake.calls().len(), 5, "every token of the chain is kept");
    fake.withdraw_all();
    google.access_token(&ask(Some(RUNNER))).await.unwrap();

    let mut deep = fake.user(USER);
    for _ in 0..9 {
        deep = impersonated(&fake, FIRST, &deep, &[]);
    }
    let place = SearchPaths {
        google_application_credentials: Some(scratch.write("deep.json", &deep)),
        ..SearchPaths::default()
    };
    assert!(refusal(find(&place, fake.endpoints())).contains("deeper than 8"));
}

#[tokio::test]
async fn delegates_are_used_one_after_the_other() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let with_path = format!("projects/-/serviceAccounts/{FIRST}");
    let google =
        source(&scratch, &impersonated(&fake, RUNNER, &fake.user(USER), &[&with_path, MIDDLE]), &fake);
    fake.allow(USER, FIRST);
    fake.allow(MIDDLE, RUNNER);
    refusal(google.access_token(&ask(None)).await);
    fake.allow(FIRST, MIDDLE);
    let token = google.access_token(&ask(None)).await.unwrap();
    assert_eq!(fake.minted(token.value.expose()).unwrap().email, RUNNER);
    google.identity_token(&id_ask(None)).await.unwrap();
}

#[tokio::test]
async fn a_file_may_shorten_lifetimes_and_set_the_endpoint() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    fake.allow(USER, RUNNER);
    let mut file: Value = serde_json::from_str(&impersonated(&fake, RUNNER, &fake.user(USER), &[])).unwrap();
    file["service_account_impersonation"] = json!({"token_lifetime_seconds": 700});
    // Only the file has IAM's endpoint.
    let endpoints = Endpoints { token: Some(fake.token_uri()), ..Endpoints::default() };
    let path = scratch.write("file.json", &file.to_string());
    let place = SearchPaths { google_application_credentials: Some(path), ..SearchPaths::default() };
    let token = find(&place, endpoints.clone()).unwrap().access_token(&ask(None)).await.unwrap();
    assert!((690..=700).contains(&left(token.expires)), "{}", left(token.expires));
    for (url, words) in [
        ("https://iam.example/v1/elsewhere", "not one of IAM Credentials"),
        (
            "https://iam.example/v1/projects/-/serviceAccounts/..:generateAccessToken",
            "names no service account",
        ),
        ("https://iam.example/v1/projects/-/serviceAccounts/a@b:signBlob", "names no service account"),
        ("http://iam.example/v1/projects/-/serviceAccounts/a@b:generateAccessToken", "not an https address"),
        (
            "http://127.0.0.1:1@iam.example/v1/projects/-/serviceAccounts/a@b:generateAccessToken",
            "not an https",
        ),
    ] {
        file["service_account_impersonation_url"] = json!(url);
        scratch.write("file.json", &file.to_string());
        let why = refusal(find(&place, endpoints.clone()));
        assert!(why.contains(words), "{url}: {why}");
    }
    file["source_credentials"] = json!({"type": "authorized_user", "client_id": "canary"});
    scratch.write("file.json", &file.to_string());
    let why = refusal(find(&place, endpoints));
    assert!(why.contains("source_credentials: it has no client_secret"), "{why}");
}

#[tokio::test]
async fn a_workforce_login_keeps_its_rotated_refresh_token() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let file = fake.workforce("person");
    let place = SearchPaths {
        google_application_credentials: Some(scratch.write("credential.json", &file)),
        ..SearchPaths::default()
    };
    // Without a configured endpoint, the file's own token_url is used.
    let google = find(&place, Endpoints::default()).unwrap();
    let token = google.access_token(&ask(None)).await.unwrap();
    assert!((3590..=3599).contains(&left(token.expires)));
    assert_eq!(google.principal().kind, "workforce login");
    assert_eq!(google.principal().quota_project.as_deref(), Some("workforce-quota"));
    fake.rotate_refresh_tokens();
    for _ in 0..3 {
        google.access_token(&ask(None)).await.unwrap();
    }
    scratch.write("credential.json", &file);
    assert_eq!(google.reload(), Reloaded::Same, "touched only: the token in memory is the good one");
    google.access_token(&ask(None)).await.unwrap();
    let stale = find(&place, Endpoints::default()).unwrap();
    let why = refusal(stale.access_token(&ask(None)).await);
    assert!(why.contains("--login-config="), "{why}");
    refusal(google.identity_token(&id_ask(None)).await);
    scratch.write("credential.json", &fake.workforce("other"));
    assert_eq!(google.reload(), Reloaded::OtherAccount);

    fake.expires_in(0);
    transient(google.access_token(&ask(None)).await);
    (0..3).for_each(|_| fake.fail(Failure::html_503()));
    transient(google.access_token(&ask(None)).await);
}

/// The advised command must write the file that this session reads.
#[tokio::test]
async fn the_advised_login_command_renews_the_login_in_use() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let said = async |name: &str, file: &str| {
        let path = scratch.write(name, file);
        let home = scratch.0.to_str().unwrap().to_owned();
        let variables = [("CLOUDSDK_CONFIG".to_owned(), home)].into_iter().collect();
        let place =
            SearchPaths { google_application_credentials: Some(path), variables, ..SearchPaths::default() };
        let google = find(&place, fake.endpoints()).unwrap();
        fake.fail(Failure::oauth(400, "invalid_grant", Some("invalid_rapt")));
        refusal(google.access_token(&ask(None)).await)
    };
    let (own, login) = ("application_default_credentials.json", "`gcloud auth application-default login");
    let user = fake.user(USER);
    let why = said(own, &user).await;
    assert!(why.contains(&format!("{login}`")) && !why.contains("in its place"), "{why}");
    let why = said("other.json", &user).await;
    assert!(why.contains(&format!("{login}`")) && why.contains("other.json, which is in use here"), "{why}");
    let why = said(own, &impersonated(&fake, RUNNER, &user, &[])).await;
    assert!(why.contains(&format!("{login} --impersonate-service-account={RUNNER}`")), "{why}");
    let nested = impersonated(&fake, RUNNER, &user, &[&format!("projects/-/serviceAccounts/{MIDDLE}")]);
    let why = said("other.json", &nested).await;
    assert!(why.contains(&format!("--impersonate-service-account={MIDDLE},{RUNNER}`")), "{why}");
    assert!(why.contains("in its place"), "{why}");
    let why = said(own, &fake.workforce("person")).await;
    assert!(why.contains(&format!("{login} --login-config=FILE`")) && why.contains("of your pool"), "{why}");
}

/// Two containers that request different scopes cause two flights and one login.
#[tokio::test]
async fn a_refresh_token_is_not_used_twice_at_once() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    fake.rotate_refresh_tokens();
    fake.latency(Duration::from_millis(100));
    for file in [fake.user(USER), fake.workforce("person")] {
        let google = source(&scratch, &file, &fake);
        let mint = Mint::new(Arc::new(google), Tasks::new(), Recorder::default());
        let (one, two) = (ask(None), AccessRequest { scopes: Scopes::parse(CLOUD_PLATFORM), ..ask(None) });
        let wait = Duration::from_secs(5);
        let (one, two) = tokio::join!(mint.access(&one, None, wait), mint.access(&two, None, wait));
        assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
    }
}

#[tokio::test]
async fn domain_wide_delegation_works_for_allowed_users() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = source(&scratch, &fake.service_account(KEY_ACCOUNT, rsa_key()), &fake);
    let request = AccessRequest { subject: Some(PERSON.into()), ..ask(None) };
    let why = refusal(google.access_token(&request).await);
    assert!(why.contains("unauthorized_client") && why.contains("Domain-wide delegation"), "{why}");
    fake.delegate(KEY_ACCOUNT, PERSON);
    let token = google.access_token(&request).await.unwrap();
    let minted = fake.minted(token.value.expose()).unwrap();
    assert_eq!((minted.email.as_str(), minted.scopes), (PERSON, [BIGQUERY.to_owned()].into()));
    // Without a key, IAM signs as the account.
    let user = source(&scratch, &fake.user(USER), &fake);
    let request = AccessRequest { service_account: Some(RUNNER.into()), ..request };
    fake.allow(USER, RUNNER);
    refusal(user.access_token(&request).await);
    fake.delegate(RUNNER, PERSON);
    let token = user.access_token(&request).await.unwrap();
    assert_eq!(fake.minted(token.value.expose()).unwrap().email, PERSON);
    let why = refusal(user.access_token(&AccessRequest { service_account: None, ..request }).await);
    assert!(why.contains("--impersonate"), "{why}");
}

/// Signatures use Google's time, once an answer has shown it.
#[tokio::test]
async fn with_a_clock_minutes_off_signed_assertions_are_accepted() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let key = fake.service_account(KEY_ACCOUNT, rsa_key());
    fake.delegate(KEY_ACCOUNT, PERSON);
    fake.allow(USER, RUNNER);
    fake.delegate(RUNNER, PERSON);
    let (as_person, by_iam) = (
        AccessRequest { subject: Some(PERSON.into()), ..ask(None) },
        AccessRequest { subject: Some(PERSON.into()), ..ask(Some(RUNNER)) },
    );
    for skew in [-590, 590] {
        fake.clock_off_by(skew, true);
        let fresh = || source(&scratch, &key, &fake);
        for google in [&fresh(), &fresh()] {
            for _ in 0..2 {
                let token = google.access_token(&ask(None)).await.unwrap();
                assert!((3590..=3599).contains(&left(token.expires)), "{skew}: {}", left(token.expires));
            }
            google.access_token(&as_person).await.unwrap();
            assert!(left(google.identity_token(&id_ask(None)).await.unwrap().expires) >= 3590, "{skew}");
        }
        fresh().access_token(&as_person).await.unwrap();
        fresh().identity_token(&id_ask(None)).await.unwrap();
        source(&scratch, &fake.user(USER), &fake).access_token(&by_iam).await.unwrap();
        // The clock is corrected meanwhile, on either side.
        let google = fresh();
        google.access_token(&ask(None)).await.unwrap();
        fake.clock_off_by(0, true);
        google.access_token(&ask(None)).await.unwrap();
        google.identity_token(&id_ask(None)).await.unwrap();
        fake.clock_off_by(-skew, true);
        google.identity_token(&id_ask(None)).await.unwrap();
        google.access_token(&as_person).await.unwrap();
    }
    // A skew of hours is not corrected, and without a Date the skew is unknown.
    for (skew, with_date) in [(-7200, true), (-590, false)] {
        fake.clock_off_by(skew, with_date);
        let why = refusal(source(&scratch, &key, &fake).access_token(&ask(None)).await);
        assert!(why.contains("clock"), "{why}");
    }
}

/// The whole program: its first signature is accepted already, and it reports the wrong clock once.
#[test]
fn a_wrong_clock_is_reported_once_for_keys_too() {
    let (fake, folder, scratch) = (FakeGoogle::start(), Folder::new("clock"), Scratch::new());
    for skew in [-590, 590] {
        fake.clock_off_by(skew, true);
        let mut command = program(&folder.0);
        let file = scratch.write("key.json", &fake.service_account(KEY_ACCOUNT, rsa_key()));
        command.env("GOOGLE_APPLICATION_CREDENTIALS", file);
        let server = Local::start(command, &[]);
        assert!(server.get(&format!("{ACCOUNT}/token")).0.contains(" 200 "));
        assert!(
            server.get(&format!("{ACCOUNT}/identity?audience=https://service.example")).0.contains(" 200 ")
        );
        let (_, stderr) = server.end();
        assert_eq!(stderr.matches("the upstream's differ").count(), 1, "{stderr}");
        assert!(!fake.calls().iter().any(|call| call.kind == "jwt-bearer" && call.status != 200));
    }
}

/// The whole program: a broken new file does not end the old login, and is reported once, however long it
/// stays.
#[test]
fn a_broken_new_file_is_reported_once_and_the_old_login_stays() {
    let (fake, folder, scratch) = (FakeGoogle::start(), Folder::new("broken"), Scratch::new());
    let config = folder.0.join("test.toml");
    std::fs::write(&config, format!("[endpoints]\ntoken = \"{}\"\n", fake.token_uri())).unwrap();
    let mut command = program(&folder.0);
    command.env("GOOGLE_APPLICATION_CREDENTIALS", scratch.write("user.json", &fake.user(USER)));
    let server = Local::start(command, &["--config", config.to_str().unwrap()]);
    let told = |path: &str| server.get(&format!("{ACCOUNT}/token{path}"));
    let (head, before) = told("");
    assert!(head.contains(" 200 "), "{head}");
    scratch.write("user.json", "{ canary");
    // The program looks at the file each second, and reports a change at the second look.
    std::thread::sleep(Duration::from_secs(5));
    let value = |body: &str| serde_json::from_str::<Value>(body).unwrap()["access_token"].clone();
    assert_eq!(value(&told("").1), value(&before), "the token that there is");
    assert!(told(&format!("?scopes={BIGQUERY}")).0.contains(" 200 "), "the old login still gives new tokens");
    let (_, stderr) = server.end();
    assert_eq!(stderr.matches("the old login stays in use").count(), 1, "{stderr}");
    assert!(!stderr.contains("canary"), "{stderr}");
}

/// The claims of a token that a key signed; asserts the signature.
fn checked(token: &str) -> Value {
    let key = PrivatePkcs8KeyDer::from_pem_slice(rsa_key().as_bytes()).unwrap();
    let key = RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).unwrap();
    let (input, signature) = token.rsplit_once('.').unwrap();
    use base64::Engine as _;
    let signature = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(signature).unwrap();
    let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public().as_ref());
    public.verify(input.as_bytes(), &signature).unwrap();
    claims(token)
}

#[tokio::test]
async fn another_universe_gets_tokens_that_the_key_signed() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let mut file: Value = serde_json::from_str(&fake.service_account(KEY_ACCOUNT, rsa_key())).unwrap();
    file["universe_domain"] = json!("cloud.example");
    let path = scratch.write("key.json", &file.to_string());
    let place = SearchPaths { google_application_credentials: Some(path), ..SearchPaths::default() };
    let endpoints = Endpoints { iam_credentials: Some(fake.url()), ..Endpoints::default() };
    let google = find(&place, endpoints.clone()).unwrap();
    assert_eq!(google.principal().universe.as_deref(), Some("cloud.example"));
    let token = google.access_token(&ask(None)).await.unwrap();
    let claims = checked(token.value.expose());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert_eq!((&claims["iss"], &claims["sub"]), (&json!(KEY_ACCOUNT), &json!(KEY_ACCOUNT)));
    assert_eq!((&claims["scope"], claims.get("aud")), (&json!(BIGQUERY), None));
    let end = claims["exp"].as_u64().unwrap();
    assert_eq!(end - claims["iat"].as_u64().unwrap(), 1800);
    assert!(now + left(token.expires) <= end && left(token.expires) >= 1797, "never longer than it says");
    assert!(fake.calls().is_empty(), "no request was sent");
    let long = AccessRequest { lifetime: 43_200, ..ask(None) };
    assert!(left(google.access_token(&long).await.unwrap().expires) <= 3600);
    let why =
        refusal(google.access_token(&AccessRequest { subject: Some(PERSON.into()), ..ask(None) }).await);
    assert!(why.contains("googleapis.com only"), "{why}");
    // A configured universe or token endpoint overrides the file.
    let asked = Endpoints { token: Some(fake.token_uri()), ..endpoints };
    find(&place, asked).unwrap().access_token(&ask(None)).await.unwrap();
    assert_eq!(kinds(&fake), ["jwt-bearer"]);
}

/// A proxy that connects to nothing and records the requested hosts.
fn dead_end() -> (Proxies, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxies =
        Proxies { https: Some(format!("http://{}", listener.local_addr().unwrap())), none_for: None };
    let noted = Arc::new(Mutex::new(vec![]));
    let kept = noted.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let place = line.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
            kept.lock().unwrap().push(place.unwrap_or_default().to_owned());
            let _ = stream.write_all(b"HTTP/1.1 502 X\r\n\r\n");
        }
    });
    (proxies, noted)
}

/// Every call uses the universe of the innermost credential, including those of the kill switch and for the
/// clock.
#[tokio::test]
async fn every_call_goes_to_the_universe() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    fake.allow(USER, RUNNER);
    let mut user: Value = serde_json::from_str(&fake.user(USER)).unwrap();
    user["universe_domain"] = json!("cloud.example");
    let path = scratch.write("c.json", &impersonated(&fake, RUNNER, &user.to_string(), &[]));
    let place = SearchPaths { google_application_credentials: Some(path), ..SearchPaths::default() };
    let (proxies, noted) = dead_end();
    let limits = Limits { tries: 1, ..quick() };
    let open = |endpoints| {
        Google::find(&place, endpoints, Upstream::through(&proxies, limits, vec![]).unwrap()).unwrap()
    };
    let asked = || std::mem::take(&mut *noted.lock().unwrap());
    let google = open(Endpoints { token: Some(fake.token_uri()), ..Endpoints::default() });
    assert_eq!(google.principal().universe.as_deref(), Some("cloud.example"));
    google.access_token(&ask(None)).await.unwrap();
    assert!(asked().is_empty(), "the fake's endpoints need no proxy");
    transient(google.access_token(&AccessRequest { boundary: Some(boundary()), ..ask(None) }).await);
    assert_eq!(asked(), ["sts.cloud.example:443"]);
    transient(google.access_token(&ask(Some(FIRST))).await);
    transient(google.identity_token(&id_ask(Some(FIRST))).await);
    assert_eq!(asked(), ["iamcredentials.cloud.example:443"; 2]);
    transient(google.disable(FIRST).await);
    assert_eq!(asked(), ["iam.cloud.example:443"]);
    let google = open(Endpoints::default());
    transient(google.clock().await);
    transient(google.access_token(&ask(None)).await);
    assert_eq!(asked(), ["oauth2.cloud.example:443"; 2]);
}

#[tokio::test]
async fn an_audience_in_the_place_of_scopes_is_signed_for() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    let google = source(&scratch, &fake.service_account(KEY_ACCOUNT, rsa_key()), &fake);
    let for_service = AccessRequest { scopes: Scopes::parse("https://pubsub.googleapis.com/"), ..ask(None) };
    let token = google.access_token(&for_service).await.unwrap();
    let claims = checked(token.value.expose());
    assert_eq!((&claims["aud"], claims.get("scope")), (&json!("https://pubsub.googleapis.com/"), None));
    assert!(fake.calls().is_empty());
    let both = format!("https://pubsub.googleapis.com/ {CLOUD_PLATFORM}");
    let mixed = AccessRequest { scopes: Scopes::parse(&both), ..ask(None) };
    assert!(refusal(google.access_token(&mixed).await).contains("only scope"));
}

fn boundary() -> Arc<Boundary> {
    let condition = AccessCondition {
        title: Some("inputs".into()),
        description: None,
        expression: "resource.name.startsWith('projects/_/buckets/data/objects/in/')".into(),
    };
    Arc::new(Boundary(vec![
        BoundaryRule {
            bucket: "data".into(),
            permissions: vec!["inRole:roles/storage.objectViewer".into()],
            condition: Some(condition),
        },
        BoundaryRule {
            bucket: "results".into(),
            permissions: vec!["inRole:roles/storage.objectCreator".into()],
            condition: None,
        },
    ]))
}

#[tokio::test]
async fn a_boundary_narrows_whatever_the_token_was_made_of() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    fake.allow(USER, RUNNER);
    let request = AccessRequest { boundary: Some(boundary()), ..ask(Some(RUNNER)) };
    let google = source(&scratch, &fake.user(USER), &fake);
    let token = google.access_token(&request).await.unwrap();
    let options = fake.boundary_of(token.value.expose()).expect("not the wide one");
    assert_eq!(
        options["accessBoundary"]["accessBoundaryRules"],
        json!([
            {
                "availableResource": "//storage.googleapis.com/projects/_/buckets/data",
                "availablePermissions": ["inRole:roles/storage.objectViewer"],
                "availabilityCondition": {
                    "expression": "resource.name.startsWith('projects/_/buckets/data/objects/in/')",
                    "title": "inputs",
                },
            },
            {
                "availableResource": "//storage.googleapis.com/projects/_/buckets/results",
                "availablePermissions": ["inRole:roles/storage.objectCreator"],
            },
        ])
    );
    assert_eq!(kinds(&fake), ["refresh_token", "generateAccessToken", "boundary"]);
    assert!((1790..=1800).contains(&left(token.expires)));
    // Without a lifetime in the answer, that of the token below is used; a shorter one in the answer applies.
    fake.leave_lives_out();
    let key = source(&scratch, &fake.service_account(KEY_ACCOUNT, rsa_key()), &fake);
    let narrow = AccessRequest { service_account: None, ..request.clone() };
    let token = key.access_token(&narrow).await.unwrap();
    assert!((3590..=3599).contains(&left(token.expires)), "{}", left(token.expires));
    assert_eq!(fake.minted(token.value.expose()).unwrap().email, KEY_ACCOUNT);
    // A failed narrowing is a refusal: the wide token is never the answer.
    let before = fake.calls().len();
    let empty = AccessRequest { boundary: Some(Arc::new(Boundary(vec![]))), ..request };
    let why = refusal(google.access_token(&empty).await);
    assert!(why.contains("boundary is not accepted") && fake.calls().len() > before, "{why}");
}

#[tokio::test]
async fn fifty_callers_of_each_kind_cause_one_chain() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    for (caller, target) in [(USER, FIRST), (FIRST, RUNNER), ("person", RUNNER), (USER, RUNNER)] {
        fake.allow(caller, target);
    }
    fake.delegate(KEY_ACCOUNT, PERSON);
    fake.latency(Duration::from_millis(50));
    let nested = impersonated(&fake, FIRST, &fake.user(USER), &[]);
    let subject = AccessRequest { subject: Some(PERSON.into()), ..ask(None) };
    let narrowed = AccessRequest { boundary: Some(boundary()), ..ask(Some(RUNNER)) };
    for (file, request, chain) in [
        (impersonated(&fake, RUNNER, &nested, &[]), ask(None), 3),
        (impersonated(&fake, RUNNER, &fake.workforce("person"), &[]), ask(None), 2),
        (fake.workforce("person"), ask(None), 1),
        (fake.service_account(KEY_ACCOUNT, rsa_key()), ask(None), 1),
        (fake.service_account(KEY_ACCOUNT, rsa_key()), subject, 1),
        (fake.user(USER), narrowed, 3),
    ] {
        let before = fake.calls().len();
        let mint = Mint::new(Arc::new(source(&scratch, &file, &fake)), Tasks::new(), Recorder::default());
        let callers = (0..50).map(|_| mint.access(&request, None, Duration::from_secs(5)));
        let tokens = futures_util::future::join_all(callers).await;
        assert!(tokens.iter().all(Result::is_ok), "{tokens:?}");
        assert_eq!(fake.calls().len() - before, chain, "{:?}", fake.calls().split_off(before));
    }
}

#[tokio::test]
async fn fifty_callers_for_an_id_token_cause_one_chain() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    fake.allow(USER, RUNNER);
    fake.latency(Duration::from_millis(50));
    for (file, chain) in [
        (fake.service_account(KEY_ACCOUNT, rsa_key()), 1),
        (impersonated(&fake, RUNNER, &fake.user(USER), &[]), 2),
    ] {
        let (before, request) = (fake.calls().len(), id_ask(None));
        let mint = Mint::new(Arc::new(source(&scratch, &file, &fake)), Tasks::new(), Recorder::default());
        let callers = (0..50).map(|_| mint.identity(&request, None, Duration::from_secs(5)));
        let tokens = futures_util::future::join_all(callers).await;
        assert!(tokens.iter().all(Result::is_ok), "{:?}", tokens.first());
        assert_eq!(fake.calls().len() - before, chain, "{:?}", fake.calls().split_off(before));
    }
}

/// Two requests at once for different scopes share the token below them.
#[tokio::test]
async fn different_keys_share_the_chain_below_them() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    fake.allow(USER, FIRST);
    fake.allow(FIRST, RUNNER);
    fake.latency(Duration::from_millis(50));
    let nested = impersonated(&fake, FIRST, &fake.user(USER), &[]);
    let google = source(&scratch, &impersonated(&fake, RUNNER, &nested, &[]), &fake);
    let other = AccessRequest { scopes: Scopes::parse(CLOUD_PLATFORM), ..ask(None) };
    let request = ask(None);
    let (one, two) = tokio::join!(google.access_token(&request), google.access_token(&other));
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(kinds(&fake).iter().filter(|kind| *kind == "refresh_token").count(), 1);
    assert_eq!(fake.calls().len(), 4, "{:?}", kinds(&fake));
}

#[tokio::test]
async fn a_new_account_in_a_generated_file_drops_old_tokens() {
    let (fake, scratch) = (FakeGoogle::start(), Scratch::new());
    fake.allow(USER, RUNNER);
    fake.allow(USER, FIRST);
    let google = source(&scratch, &impersonated(&fake, RUNNER, &fake.user(USER), &[]), &fake);
    scratch.write("credential.json", &impersonated(&fake, RUNNER, &fake.user(USER), &[]));
    assert_eq!(google.reload(), Reloaded::Renewed);
    scratch.write("credential.json", &impersonated(&fake, FIRST, &fake.user(USER), &[]));
    assert_eq!(google.reload(), Reloaded::OtherAccount);
    scratch.write("credential.json", &fake.service_account(FIRST, another_rsa_key()));
    assert_eq!(google.reload(), Reloaded::OtherAccount);
}
