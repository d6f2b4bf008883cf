//! Azure's tokens against an Entra, a metadata service and programs that check what they are sent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kfp_creds::source::azure::{
    Azure, AzureCredentials, AzurePrincipal, AzureRequest, AzureSettings, AzureSource,
};
use kfp_creds::source::http::client::Upstream;
use kfp_creds::source::http::proxy::Proxies;
use kfp_creds::source::signer::Signer;
use kfp_creds::source::variables::Variables;
use kfp_creds::source::{Reloaded, SourceError};
use kfp_creds::token::{AzureToken, Now, TokenKind};
use kfp_creds::workload::ContainerId;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::minting::{Scratch, quick, upstream};
use crate::sources_host::{proxy, tls_front};
use crate::support::canary::Canaries;
use crate::support::fake_entra::{APP, FakeEntra, OTHER_APP, STORAGE, TENANT, Trust};
use crate::support::fake_google::{another_rsa_key, as_pkcs1, openssl, public_key, rsa_key};
use crate::support::federation::Federation;
use crate::support::issuer::{Issuer, seconds, verified};

const ISSUER: &str = "https://tokens.example";
const SUBJECT: &str = "repo:owner/name:ref:refs/heads/main";
const EXCHANGE: &str = "api://AzureADTokenExchange";
const SECRET: &str = "canary-client-secret-of-the-app";

fn settings(credentials: AzureCredentials) -> AzureSettings {
    AzureSettings { credentials, tenant: None, client_id: None, authority: None }
}

fn variables(all: &[(&str, &str)]) -> Variables {
    all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The variables of a principal; those in `more` are added or replace others.
fn principal(fake: &FakeEntra, more: &[(&str, &str)]) -> Variables {
    let url = fake.url();
    let own = [("AZURE_TENANT_ID", TENANT), ("AZURE_CLIENT_ID", APP), ("AZURE_AUTHORITY_HOST", url.as_str())];
    variables(&[&own[..], more].concat())
}

fn open(credentials: AzureCredentials, variables: &Variables) -> Result<Azure, SourceError> {
    Azure::open(&settings(credentials), variables, upstream(), None)
}

fn environment(fake: &FakeEntra, more: &[(&str, &str)]) -> Azure {
    open(AzureCredentials::Environment, &principal(fake, more)).unwrap()
}

fn with_secret(fake: &FakeEntra) -> Azure {
    fake.trust(APP, Trust::Secret(SECRET.into()));
    environment(fake, &[("AZURE_CLIENT_SECRET", SECRET)])
}

fn ask() -> AzureRequest {
    AzureRequest { client_id: None, resource: STORAGE.into(), holder: None }
}

fn ask_as(client_id: &str) -> AzureRequest {
    AzureRequest { client_id: Some(client_id.into()), ..ask() }
}

fn left(token: &AzureToken) -> u64 {
    token.expires.remaining(Now::read()).as_secs()
}

/// The text of a refusal; asserts that it contains nothing that was sent or answered.
#[track_caller]
fn refusal<T: std::fmt::Debug>(outcome: Result<T, SourceError>) -> String {
    match outcome {
        Err(SourceError::Refused(why)) if !why.contains("canary") && !why.contains("eyJ") => why.to_string(),
        other => panic!("not a clean refusal: {other:?}"),
    }
}

#[track_caller]
fn transient<T: std::fmt::Debug>(outcome: Result<T, SourceError>) -> String {
    match outcome {
        Err(SourceError::Transient(why)) if !why.contains("canary") && !why.contains("eyJ") => {
            why.to_string()
        }
        other => panic!("not a clean transient failure: {other:?}"),
    }
}

/// Asserts that `text` contains nothing that went through the fake.
#[track_caller]
fn assert_clean(fake: &FakeEntra, text: &str) {
    let mut canaries = Canaries::default();
    for (what, secret) in fake.secrets() {
        canaries.add(what, &secret);
    }
    assert!(canaries.len() > 1, "the fake has hardly any secret");
    canaries.assert_absent("a text", text);
}

#[tokio::test]
async fn a_client_secret_brings_a_token_for_one_resource() {
    let fake = FakeEntra::start();
    let azure = with_secret(&fake);
    assert_eq!((azure.kind().as_str(), azure.per_container()), ("client secret", false));
    let (tenant, client_id) = (Some(TENANT.to_owned()), Some(APP.to_owned()));
    assert_eq!(azure.principal(), AzurePrincipal { tenant, client_id });
    let token = azure.token(&ask()).await.unwrap();
    assert_eq!(fake.minted(token.value.expose()), Some((APP.into(), STORAGE.into())));
    assert_eq!((token.resource.as_str(), token.client_id.as_deref()), (STORAGE, Some(APP)));
    assert_eq!(token.about().kind, TokenKind::AzureToken);
    assert!((3590..=3599).contains(&left(&token)), "{}", left(&token));
    let vault = AzureRequest { resource: "https://vault.azure.net".into(), ..ask() };
    let other = azure.token(&vault).await.unwrap();
    assert_eq!(fake.minted(other.value.expose()).unwrap().1, "https://vault.azure.net");
    let seen = fake.seen();
    assert!(seen.len() == 2 && seen[0].path == format!("/{TENANT}/oauth2/v2.0/token"), "{seen:?}");
    assert_clean(&fake, &format!("{azure:?} {token:?} {seen:?}").replace("Secret(..)", ""));
}

#[tokio::test]
async fn invalid_resources_and_client_ids_are_never_sent() {
    let fake = FakeEntra::start();
    let azure = with_secret(&fake);
    for bad in
        ["", "https://storage.azure.com/", "--help", "https://a.example x", "https://a.example\r\nx: y"]
    {
        let why = refusal(azure.token(&AzureRequest { resource: bad.into(), ..ask() }).await);
        assert!(why.contains("is not a resource"), "{why}");
    }
    let why = refusal(azure.token(&ask_as("../x")).await);
    assert!(why.contains("is not a client id"), "{why}");
    let why = refusal(azure.token(&ask_as(OTHER_APP)).await);
    assert!(why.contains(&format!("belongs to {APP}, not to {OTHER_APP}")), "{why}");
    assert!(fake.seen().is_empty());
    azure.token(&ask_as(APP)).await.unwrap();
}

#[tokio::test]
async fn every_refusal_of_entra_says_what_to_do() {
    let fake = FakeEntra::start();
    let azure = with_secret(&fake);
    let nothing = AzureRequest { resource: "https://nothing.example".into(), ..ask() };
    let why = refusal(azure.token(&nothing).await);
    assert!(why.contains("AADSTS500011") && why.contains("no resource https://nothing.example"), "{why}");
    let tenant = "99999999-aaaa-4bbb-8ccc-000000000009";
    for (more, words) in [
        (("AZURE_CLIENT_SECRET", "canary-of-another-app"), "AADSTS7000215: the client secret of"),
        (("AZURE_CLIENT_ID", OTHER_APP), "AADSTS700016: the tenant"),
        (("AZURE_TENANT_ID", tenant), "AADSTS90002: there is no tenant"),
    ] {
        let azure = environment(&fake, &[("AZURE_CLIENT_SECRET", SECRET), more]);
        let why = refusal(azure.token(&ask()).await);
        assert!(why.contains(words), "{why}");
    }
    for (status, error, number, words) in [
        (401, "invalid_client", 7_000_222, "has expired; make a new one"),
        (400, "invalid_grant", 65_001, "admin-consent"),
        (400, "invalid_grant", 53_003, "Conditional Access"),
        (400, "interaction_required", 50_076, "second factor"),
        (400, "invalid_request", 1_234_567, "answered 400 invalid_request AADSTS1234567"),
    ] {
        fake.fail_as(status, error, number);
        let why = refusal(azure.token(&ask()).await);
        assert!(why.contains(words), "{why}");
    }
}

#[tokio::test]
async fn entra_and_a_machine_are_not_asked_before_retry_after() {
    let fake = FakeEntra::start();
    let azure = with_secret(&fake);
    fake.asks_to_wait("60");
    fake.fail_as(429, "temporarily_unavailable", 90_055);
    let error = azure.token(&ask()).await.unwrap_err();
    assert!(
        matches!(&error, SourceError::Transient(why) if why.pause == Some(Duration::from_secs(60))),
        "{error:?}"
    );
    assert_eq!(fake.seen().len(), 1);
    // A refusal has no waiting time.
    fake.fail_as(401, "invalid_client", 7_000_215);
    assert!(!refusal(azure.token(&ask()).await).contains("asks to wait"));
}

#[tokio::test]
async fn temporary_failures_are_retried_and_named_as_such() {
    let fake = FakeEntra::start();
    let azure = with_secret(&fake);
    fake.fail(503, "<html>canary</html>");
    fake.fail_as(429, "temporarily_unavailable", 90_055);
    azure.token(&ask()).await.unwrap();
    assert_eq!(fake.seen().len(), 3);
    for status in [429, 500, 503, 302] {
        (0..3).for_each(|_| fake.fail(status, "canary-in-an-error-page"));
        let why = transient(azure.token(&ask()).await);
        assert!(why.contains(&format!("answered {status}")), "{why}");
    }
    for body in [
        "canary",
        r#"{"access_token":"canary-token"}"#,
        r#"{"access_token":"","expires_in":3599}"#,
        r#"{"access_token":"canary-token","expires_in":"canary"}"#,
        r#"{"access_token":"canary-token","expires_in":0}"#,
    ] {
        fake.fail(200, body);
        transient(azure.token(&ask()).await);
    }
    fake.fail(200, r#"{"access_token":"canary-token","expires_in":3599,"token_type":"pop"}"#);
    refusal(azure.token(&ask()).await);
    let gone =
        principal(&fake, &[("AZURE_CLIENT_SECRET", SECRET), ("AZURE_AUTHORITY_HOST", "http://127.0.0.1:9")]);
    let why = transient(open(AzureCredentials::Environment, &gone).unwrap().token(&ask()).await);
    assert!(why.contains("cannot reach 127.0.0.1"), "{why}");
}

#[test]
fn the_principal_is_checked_at_start() {
    let fake = FakeEntra::start();
    let secret = ("AZURE_CLIENT_SECRET", SECRET);
    let opened = |all: &[(&str, &str)]| open(AzureCredentials::Environment, &variables(all)).map(|_| ());
    let why = opened(&[("AZURE_TENANT_ID", TENANT), ("AZURE_CLIENT_ID", APP)]).unwrap_err();
    assert!(matches!(&why, SourceError::Absent(why) if why.contains("AZURE_FEDERATED_TOKEN_FILE")), "{why}");
    let named = |more| [secret, ("AZURE_TENANT_ID", TENANT), ("AZURE_CLIENT_ID", APP), more];
    assert!(refusal(opened(&[secret, ("AZURE_CLIENT_ID", APP)])).contains("AZURE_TENANT_ID"));
    assert!(refusal(opened(&[secret, ("AZURE_TENANT_ID", TENANT)])).contains("AZURE_CLIENT_ID"));
    for (bad, words) in [
        (("AZURE_TENANT_ID", "a/../b"), "is not a tenant"),
        (("AZURE_TENANT_ID", "a b"), "is not a tenant"),
        (("AZURE_CLIENT_ID", "abc8Q~canary"), "is not a client id"),
        (("AZURE_AUTHORITY_HOST", "http://login.example"), "not an https address"),
        (("AZURE_AUTHORITY_HOST", "https://user:canary@login.example"), "not an https address"),
        (("AZURE_AUTHORITY_HOST", "https://login.example/?x"), "not an https address"),
    ] {
        // The value does not look like a secret, so a refusal may quote it; but it may never quote the real
        // secret.
        let why = match opened(&named(bad)) {
            Err(SourceError::Refused(why)) => why.to_string(),
            other => panic!("{bad:?}: {other:?}"),
        };
        assert!(why.contains(words) && !why.contains(SECRET), "{why}");
    }
    for good in ["login.microsoftonline.us", "https://login.chinacloudapi.cn/", "http://[::1]:1"] {
        opened(&named(("AZURE_AUTHORITY_HOST", good))).unwrap();
    }
    // Settings of the config fill the gaps; the config's tenant wins over the variable's.
    let said = AzureSettings {
        tenant: Some("corp.example".into()),
        client_id: Some(OTHER_APP.into()),
        authority: Some(fake.url()),
        ..settings(AzureCredentials::Environment)
    };
    let own =
        |all: &[(&str, &str)]| Azure::open(&said, &variables(all), upstream(), None).unwrap().principal();
    let tenant = Some("corp.example".to_owned());
    let configured = AzurePrincipal { tenant: tenant.clone(), client_id: Some(OTHER_APP.into()) };
    assert_eq!(own(&[secret]), configured);
    let directory = [secret, ("AZURE_TENANT_ID", TENANT), ("AZURE_CLIENT_ID", OTHER_APP)];
    assert_eq!(own(&directory), configured);
}

#[test]
fn config_and_environment_may_not_name_two_principals() {
    let fake = FakeEntra::start();
    let said = |client_id: &str| AzureSettings {
        client_id: Some(client_id.into()),
        ..settings(AzureCredentials::Environment)
    };
    let given = principal(&fake, &[("AZURE_CLIENT_SECRET", SECRET), ("JOB_TOKEN", "canary")]);
    let opened = |said| Azure::open(&said, &given, upstream(), None);
    let why = refusal(opened(said(OTHER_APP)));
    assert!(why.contains("azure.client_id") && why.contains("AZURE_CLIENT_ID"), "{why}");
    assert!(!why.contains(APP) && !why.contains(OTHER_APP), "{why}");
    assert_eq!(opened(said(APP)).unwrap().principal().client_id.as_deref(), Some(APP));
    // Another issuer's token is exchanged for the config's principal; the variables of a login do not matter.
    let federated =
        AzureCredentials::Federated { token_from: "env:JOB_TOKEN".into(), audience: EXCHANGE.into() };
    let job = AzureSettings { credentials: federated, ..said(OTHER_APP) };
    assert_eq!(opened(job).unwrap().principal().client_id.as_deref(), Some(OTHER_APP));
}

/// A self-signed certificate of this key, as PEM.
fn certificate(scratch: &Scratch, key: &str) -> String {
    let key = scratch.write("to-sign.key", key);
    openssl(&["req", "-x509", "-new", "-subj", "/CN=app", "-days", "1", "-key", key.to_str().unwrap()], "")
}

fn trusted(key: &str, certificate: &str) -> Trust {
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    Trust::Certificate { certificate: der.to_vec(), public: public_key(key) }
}

#[tokio::test]
async fn a_certificate_signs_an_assertion_for_each_token() {
    let (fake, scratch) = (FakeEntra::start(), Scratch::new());
    let (own, other) = (certificate(&scratch, rsa_key()), certificate(&scratch, another_rsa_key()));
    fake.trust(APP, trusted(rsa_key(), &own));
    fake.trust(OTHER_APP, trusted(rsa_key(), &own));
    // The key's certificate need not come first, and a key has two formats.
    for (at, content) in [
        format!("{}{own}", rsa_key()),
        format!("{other}{own}{}", rsa_key()),
        format!("Bag Attributes\n{}{own}", as_pkcs1(rsa_key())),
    ]
    .into_iter()
    .enumerate()
    {
        let path = scratch.write(&format!("{at}.pem"), &content);
        let azure = environment(&fake, &[("AZURE_CLIENT_CERTIFICATE_PATH", path.to_str().unwrap())]);
        assert_eq!(azure.kind(), "certificate");
        for _ in 0..2 {
            let token = azure.token(&ask()).await.unwrap();
            assert_eq!(fake.minted(token.value.expose()).unwrap().0, APP);
        }
        // One certificate may be registered with several principals.
        let token = azure.token(&ask_as(OTHER_APP)).await.unwrap();
        assert_eq!(fake.minted(token.value.expose()).unwrap().0, OTHER_APP);
        assert_clean(&fake, &format!("{azure:?}"));
    }
    // A renewed file takes effect at once; for a wrong one, the refusal says which principal does not know it.
    let path = scratch.write("0.pem", &format!("{}{other}", another_rsa_key()));
    let chain = [
        ("AZURE_CLIENT_CERTIFICATE_PATH", path.to_str().unwrap()),
        ("AZURE_CLIENT_SEND_CERTIFICATE_CHAIN", "true"),
    ];
    let azure = environment(&fake, &chain);
    let why = refusal(azure.token(&ask()).await);
    assert!(why.contains("AADSTS700027: the certificate of") && why.contains("0.pem is not one of"), "{why}");
    assert_eq!(azure.reload(), Reloaded::Same);
    scratch.write("0.pem", &format!("{}{own}\n", rsa_key()));
    assert_eq!(azure.reload(), Reloaded::Supplied);
    fake.wants_chain();
    azure.token(&ask()).await.unwrap();
    fs::remove_file(&path).unwrap();
    assert!(refusal(azure.token(&ask()).await).contains("cannot be read"));
}

#[tokio::test]
async fn a_clock_skew_of_minutes_is_corrected() {
    let (fake, scratch) = (FakeEntra::start(), Scratch::new());
    let own = certificate(&scratch, rsa_key());
    fake.trust(APP, trusted(rsa_key(), &own));
    let path = scratch.write("own.pem", &format!("{}{own}", rsa_key()));
    for (off, tries) in [(-500, Some(2)), (500, Some(1)), (-3600, None)] {
        fake.clock_off_by(off);
        let azure = environment(&fake, &[("AZURE_CLIENT_CERTIFICATE_PATH", path.to_str().unwrap())]);
        let before = fake.seen().len();
        let outcome = azure.token(&ask()).await;
        match tries {
            Some(tries) => {
                assert!((3590..=3599).contains(&left(&outcome.unwrap())));
                assert_eq!(fake.seen().len() - before, tries, "{off}");
            }
            None => assert!(refusal(outcome).contains("clock is wrong")),
        }
    }
}

#[test]
fn a_certificate_that_cannot_sign_is_refused_at_start() {
    let (fake, scratch) = (FakeEntra::start(), Scratch::new());
    let own = certificate(&scratch, rsa_key());
    let other = certificate(&scratch, another_rsa_key());
    let encrypted =
        |arguments: &[&str]| openssl(&[arguments, &["-passout", "pass:canary"]].concat(), rsa_key());
    let curve =
        openssl(&["genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], "");
    let weak = openssl(&["genrsa", "1024"], "");
    let both = scratch.write("both.pem", &format!("{}{own}", rsa_key()));
    let pfx = scratch.0.join("own.pfx");
    let (both, at) = (both.to_str().unwrap(), pfx.to_str().unwrap());
    openssl(&["pkcs12", "-export", "-in", both, "-out", at, "-passout", "pass:canary"], "");
    let file = |name: &str, content: String| scratch.write(name, &content);
    for (path, words) in [
        (pfx.clone(), "openssl pkcs12 -in "),
        (file("a", format!("{}{own}", encrypted(&["pkcs8", "-topk8"]))), "without a password"),
        (file("b", format!("{}{own}", encrypted(&["rsa", "-aes128", "-traditional"]))), "without a password"),
        (file("c", own.clone()), "has no private key"),
        (file("d", rsa_key().into()), "no certificate of its key"),
        (file("e", format!("{}{other}", rsa_key())), "no certificate of its key"),
        (file("f", format!("{curve}{own}")), "no RSA key"),
        (file("g", format!("{weak}{own}")), "less than 2048 bits"),
        (file("h", "canary".into()), "has no private key"),
        (scratch.0.join("nothing"), "cannot be read"),
        (scratch.0.clone(), "cannot be read"),
    ] {
        let more = [("AZURE_CLIENT_CERTIFICATE_PATH", path.to_str().unwrap())];
        let why = refusal(open(AzureCredentials::Environment, &principal(&fake, &more)));
        assert!(why.contains(words), "{why}");
    }
}

#[tokio::test]
async fn a_workload_token_file_authenticates_its_principal() {
    let (fake, scratch) = (FakeEntra::start(), Scratch::new());
    let issuer = Issuer::rs256(ISSUER);
    fake.federate(APP, &issuer, SUBJECT, EXCHANGE);
    fake.federate(OTHER_APP, &issuer, SUBJECT, EXCHANGE);
    let good = || issuer.token(SUBJECT, EXCHANGE, 300, &json!({}));
    let path = scratch.write("token", &good());
    let azure = environment(&fake, &[("AZURE_FEDERATED_TOKEN_FILE", path.to_str().unwrap())]);
    assert_eq!(azure.kind(), "federated token");
    azure.token(&ask()).await.unwrap();
    let token = azure.token(&ask_as(OTHER_APP)).await.unwrap();
    assert_eq!(fake.minted(token.value.expose()).unwrap().0, OTHER_APP);
    let of = |subject: &str, audience: &str| issuer.token(subject, audience, 300, &json!({}));
    let add = format!("az ad app federated-credential create --id {APP}");
    for (bad, number, words) in [
        (of("repo:other/name", EXCHANGE), 700_213, "subject repo:other/name,"),
        (of(SUBJECT, "https://other.example"), 700_212, "audience https://other.example"),
        (
            issuer.token(SUBJECT, EXCHANGE, 300, &json!({"iss": "https://x.example"})),
            700_211,
            "issuer https://x.example,",
        ),
        (
            Issuer::impostor(ISSUER).token(SUBJECT, EXCHANGE, 300, &json!({})),
            700_021,
            "issuer https://tokens.example,",
        ),
        (issuer.token(SUBJECT, EXCHANGE, -3600, &json!({})), 700_024, "has expired"),
    ] {
        fs::write(&path, bad).unwrap();
        let why = refusal(azure.token(&ask()).await);
        assert!(why.contains(&format!("AADSTS{number}")) && why.contains(words), "{why}");
        assert!(number == 700_024 || why.contains(&add), "{why}");
    }
    azure.reload();
    assert_eq!(azure.reload(), Reloaded::Same);
    fs::write(&path, format!("{}\n", good())).unwrap();
    assert_eq!(azure.reload(), Reloaded::Supplied);
    azure.token(&ask()).await.unwrap();
    assert_clean(&fake, &format!("{azure:?}"));
    fs::remove_file(&path).unwrap();
    assert!(transient(azure.token(&ask()).await).contains("cannot be read"));
}

#[tokio::test]
async fn a_job_on_github_needs_no_secret() {
    let (fake, jobs) = (FakeEntra::start(), Federation::start());
    fake.federate(APP, &Issuer::rs256(ISSUER), SUBJECT, EXCHANGE);
    let given = jobs.actions(Issuer::rs256(ISSUER), SUBJECT, json!({}));
    let given: Vec<_> = given.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let federated = || AzureCredentials::Federated { token_from: "github".into(), audience: EXCHANGE.into() };
    let azure = open(federated(), &principal(&fake, &given)).unwrap();
    assert_eq!((azure.kind().as_str(), azure.reload()), ("federated token", Reloaded::Same));
    azure.token(&ask()).await.unwrap();
    let why = refusal(open(federated(), &principal(&fake, &[])));
    assert!(why.contains("id-token: write"), "{why}");
    let variable =
        AzureCredentials::Federated { token_from: "env:JOB_TOKEN".into(), audience: EXCHANGE.into() };
    let other = Issuer::rs256(ISSUER).token("repo:other", EXCHANGE, 300, &json!({}));
    let azure = open(variable, &principal(&fake, &[("JOB_TOKEN", &other)])).unwrap();
    let why = refusal(azure.token(&ask()).await);
    assert!(why.contains("the variable JOB_TOKEN") && why.contains("subject repo:other"), "{why}");
}

/// A program that notes what it was given, then does `script`.
fn executable(scratch: &Scratch, name: &str, script: &str) -> PathBuf {
    let text = format!("#!/bin/sh\ncd \"$(dirname \"$0\")\"\necho \"$*|$(cat)|$SEEN\" >> calls\n{script}\n");
    let path = scratch.write(name, &text);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn calls(scratch: &Scratch) -> Vec<String> {
    let text = fs::read_to_string(scratch.0.join("bin/calls")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The output of az: `expiresOn` is local time without a zone, and here years away from `expires_on`.
fn printed(life: u64) -> String {
    let answer = json!({
        "accessToken": "canary-token-of-az", "expiresOn": "2099-01-01 00:00:00.000000", "expires_on": seconds() + life,
        "subscription": "s", "tenant": TENANT, "tokenType": "Bearer",
    });
    format!("cat <<'X'\n{answer}\nX")
}

fn path_of(scratch: &Scratch) -> String {
    format!("{}:/usr/bin:/bin", scratch.0.join("bin").display())
}

#[tokio::test]
async fn az_gives_tokens_of_its_login() {
    let scratch = Scratch::new();
    executable(&scratch, "bin/az", &printed(1800));
    let path = path_of(&scratch);
    let given = variables(&[("PATH", &path), ("SEEN", "inherited"), ("HOME", scratch.0.to_str().unwrap())]);
    let azure = open(AzureCredentials::Az, &given).unwrap();
    assert_eq!((azure.kind().as_str(), azure.principal()), ("az", AzurePrincipal::default()));
    let token = azure.token(&ask()).await.unwrap();
    assert_eq!((token.value.expose().as_str(), token.client_id.as_deref()), ("canary-token-of-az", None));
    assert!((1795..=1800).contains(&left(&token)), "{}", left(&token));
    let in_tenant = AzureSettings { tenant: Some(TENANT.into()), ..settings(AzureCredentials::Az) };
    let azure = Azure::open(&in_tenant, &given, upstream(), None).unwrap();
    azure.token(&ask()).await.unwrap();
    let line = format!("account get-access-token --output json --resource {STORAGE}");
    assert_eq!(
        calls(&scratch),
        [format!("{line}||inherited"), format!("{line} --tenant {TENANT}||inherited")]
    );
    // The login of az belongs to one principal.
    let why = refusal(azure.token(&ask_as(APP)).await);
    assert!(why.contains("leave client_id out"), "{why}");
    let chosen = AzureSettings { client_id: Some(APP.into()), ..settings(AzureCredentials::Az) };
    assert!(refusal(Azure::open(&chosen, &given, upstream(), None)).contains("leave client_id out"));
    assert_eq!(calls(&scratch).len(), 2);
    assert!(!format!("{azure:?}").contains("canary"));
    let absent = open(AzureCredentials::Az, &variables(&[("PATH", "/nowhere:relative")]));
    assert!(matches!(absent, Err(SourceError::Absent(_))), "{absent:?}");
}

#[tokio::test]
async fn a_failure_of_az_says_the_next_step_and_quotes_nothing() {
    let scratch = Scratch::new();
    let path = path_of(&scratch);
    let azure = |script: &str| {
        executable(&scratch, "bin/az", script);
        open(AzureCredentials::Az, &variables(&[("PATH", &path)])).unwrap()
    };
    let out = azure("echo \"ERROR: canary Please run 'az login' to setup account.\" >&2; exit 1");
    assert!(refusal(out.token(&ask()).await).contains("run: az login"));
    let factor = azure("echo 'ERROR: AADSTS50076: canary' >&2; exit 1");
    let why = refusal(factor.token(&ask()).await);
    assert!(
        why.contains(&format!(
            "AADSTS50076: the login needs a second factor; run: az login --scope {STORAGE}"
        ))
    );
    let broken = azure("echo canary; echo canary >&2; exit 2");
    assert!(transient(broken.token(&ask()).await).contains("az account get-access-token"));
    for printed in
        ["echo canary", "true", "echo '{\"accessToken\":\"canary\",\"expiresOn\":\"2099-01-01 00:00:00\"}'"]
    {
        refusal(azure(printed).token(&ask()).await);
    }
}

#[tokio::test]
async fn a_new_login_of_az_is_noticed() {
    let scratch = Scratch::new();
    executable(&scratch, "bin/az", &printed(1800));
    let (path, folder) = (path_of(&scratch), scratch.0.join("config"));
    let given = variables(&[("PATH", &path), ("AZURE_CONFIG_DIR", folder.to_str().unwrap())]);
    let azure = open(AzureCredentials::Az, &given).unwrap();
    assert_eq!(azure.reload(), Reloaded::Same);
    scratch.write("config/azureProfile.json", "{\"user\": \"a\"}");
    assert_eq!((azure.reload(), azure.reload()), (Reloaded::OtherAccount, Reloaded::Same));
    scratch.write("config/new", "{\"user\": \"a\"}");
    fs::rename(folder.join("new"), folder.join("azureProfile.json")).unwrap();
    assert_eq!(azure.reload(), Reloaded::Renewed, "the same account");
    scratch.write("config/azureProfile.json", "{\"user\": \"bb\"}");
    assert_eq!(azure.reload(), Reloaded::OtherAccount);
}

#[tokio::test]
async fn a_command_gives_tokens_in_the_format_of_az() {
    let scratch = Scratch::new();
    let program = executable(&scratch, "bin/own", &printed(900));
    let command = |program: &Path, seconds| AzureCredentials::Command {
        program: program.to_owned(),
        arguments: vec!["get".into(), "--for={resource}".into()],
        pass: vec!["SEEN".into()],
        timeout: Duration::from_secs(seconds),
    };
    let given = variables(&[("PATH", "/usr/bin:/bin"), ("SEEN", "passed"), ("OTHER", "canary")]);
    let azure = open(command(&program, 9), &given).unwrap();
    let token = azure.token(&ask()).await.unwrap();
    assert!((895..=900).contains(&left(&token)), "{}", left(&token));
    assert_eq!(calls(&scratch), [format!("get --for={STORAGE}||passed")]);
    assert!(refusal(azure.token(&ask_as(APP)).await).contains("leave client_id out"));
    assert!(!format!("{azure:?}").contains("canary"));
    let failing = executable(&scratch, "bin/failing", "echo canary; exit 3");
    assert!(refusal(open(command(&failing, 9), &given).unwrap().token(&ask()).await).contains("failed"));
    let slow = executable(&scratch, "bin/slow", "sleep 60");
    let began = Instant::now();
    assert!(
        transient(open(command(&slow, 1), &given).unwrap().token(&ask()).await).contains("ended after 1 s")
    );
    assert!(began.elapsed() < Duration::from_secs(5));
}

/// Containers choose the resources, and the command runs once for each resource.
#[tokio::test]
async fn only_a_few_commands_run_at_the_same_time() {
    let scratch = Scratch::new();
    let script = format!("touch run.$$; ls run.* | wc -l >> counts; sleep 0.3; rm run.$$; {}", printed(900));
    let program = executable(&scratch, "bin/own", &script);
    let timeout = Duration::from_secs(9);
    let command = AzureCredentials::Command { program, arguments: vec![], pass: vec![], timeout };
    let azure = open(command, &variables(&[("PATH", "/usr/bin:/bin")])).unwrap();
    let all: Vec<_> = (0..9)
        .map(|number| AzureRequest { resource: format!("https://{number}.example"), ..ask() })
        .collect();
    let outcomes = futures_util::future::join_all(all.iter().map(|ask| azure.token(ask))).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let counts = fs::read_to_string(scratch.0.join("bin/counts")).unwrap();
    let counts: Vec<u32> = counts.lines().map(|line| line.trim().parse().unwrap()).collect();
    assert!(counts.len() == 9 && counts.iter().all(|count| *count <= 4), "{counts:?}");
}

/// The command may be a shell script, and a container chooses the resource.
#[tokio::test]
async fn a_resource_cannot_inject_shell_commands() {
    let scratch = Scratch::new();
    let line = format!("printf '%s %s\\n' {{resource}} \"$AZURE_RESOURCE\" >> calls; {}", printed(900));
    let command = AzureCredentials::Command {
        program: "/bin/sh".into(),
        arguments: vec!["-c".into(), format!("cd '{}'; {line}", scratch.0.display())],
        pass: vec![],
        timeout: Duration::from_secs(9),
    };
    let azure = open(command, &variables(&[("PATH", "/usr/bin:/bin")])).unwrap();
    azure.token(&ask()).await.unwrap();
    assert_eq!(fs::read_to_string(scratch.0.join("calls")).unwrap(), format!("{STORAGE} {STORAGE}\n"));
    for text in
        ["x;touch${IFS}own", "x$(touch${IFS}own)", "x&>own", "x`touch${IFS}own`", "x|touch", "x*", "x?"]
    {
        let bad = AzureRequest { resource: format!("https://{text}"), ..ask() };
        assert!(refusal(azure.token(&bad).await).contains("is not a resource"), "{text}");
    }
    assert!(!scratch.0.join("own").exists());
}

#[tokio::test]
async fn each_kind_of_machine_is_asked_by_its_own_protocol() {
    let fake = FakeEntra::start();
    fake.machine(&[APP, OTHER_APP]);
    let url = fake.url();
    let vm = variables(&[("AZURE_POD_IDENTITY_AUTHORITY_HOST", &url)]);
    let app_service: Variables = fake.app_service().into_iter().collect();
    for (given, path, life) in
        [(&vm, "/metadata/identity/oauth2/token", 3599), (&app_service, "/msi/token", 43_200)]
    {
        let azure = open(AzureCredentials::Machine, given).unwrap();
        assert_eq!(azure.kind(), "managed identity");
        let token = azure.token(&ask()).await.unwrap();
        assert_eq!(fake.minted(token.value.expose()), Some((APP.into(), STORAGE.into())));
        assert_eq!(token.client_id.as_deref(), Some(APP));
        assert!((life - 10..=life).contains(&left(&token)), "{}", left(&token));
        let token = azure.token(&ask_as(OTHER_APP)).await.unwrap();
        assert_eq!(fake.minted(token.value.expose()).unwrap().0, OTHER_APP);
        assert!(fake.seen().iter().rev().take(2).all(|seen| seen.path == path), "{:?}", fake.seen());
        let why = refusal(azure.token(&ask_as(TENANT)).await);
        assert!(why.contains(&format!("no managed identity with the client id {TENANT}")), "{why}");
        assert_clean(&fake, &format!("{azure:?}"));
    }
    let chosen = AzureSettings { client_id: Some(OTHER_APP.into()), ..settings(AzureCredentials::Machine) };
    let azure = Azure::open(&chosen, &vm, upstream(), None).unwrap();
    let token = azure.token(&ask()).await.unwrap();
    assert_eq!(fake.minted(token.value.expose()).unwrap().0, OTHER_APP);
    fake.machine(&[]);
    let azure = open(AzureCredentials::Machine, &vm).unwrap();
    assert!(refusal(azure.token(&ask()).await).contains("no managed identity, or several"));
}

#[tokio::test]
async fn a_busy_machine_and_kfp_creds_itself_are_reported() {
    let fake = FakeEntra::start();
    fake.machine(&[APP]);
    let url = fake.url();
    let given = variables(&[("AZURE_POD_IDENTITY_AUTHORITY_HOST", &url)]);
    let azure = open(AzureCredentials::Machine, &given).unwrap();
    fake.fail(508, "canary");
    assert!(refusal(azure.token(&ask()).await).contains("is kfp-creds itself"));
    for (status, tries) in [(404, 1), (410, 1), (429, 3), (500, 3)] {
        (0..tries).for_each(|_| fake.fail(status, "canary"));
        transient(azure.token(&ask()).await);
        azure.token(&ask()).await.unwrap();
    }
    let wrong =
        [("IDENTITY_ENDPOINT", format!("{url}/msi/token")), ("IDENTITY_HEADER", "canary-wrong".into())];
    let wrong = wrong.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
    let azure = open(AzureCredentials::Machine, &wrong).unwrap();
    assert!(refusal(azure.token(&ask()).await).contains("IDENTITY_HEADER is not the one"));
    let nowhere = variables(&[("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:9")]);
    let azure = open(AzureCredentials::Machine, &nowhere).unwrap();
    assert!(transient(azure.token(&ask()).await).contains("not in Azure"));
}

#[test]
fn an_identity_endpoint_elsewhere_is_refused() {
    let header = ("IDENTITY_HEADER", "canary-header");
    for (given, words) in [
        (vec![("IDENTITY_ENDPOINT", "http://192.0.2.1/msi/token"), header], "IDENTITY_ENDPOINT is not"),
        (
            vec![("IDENTITY_ENDPOINT", "http://169.254.169.254.example.com/"), header],
            "IDENTITY_ENDPOINT is not",
        ),
        (vec![("IDENTITY_ENDPOINT", "http://127.0.0.1/?x=y"), header], "IDENTITY_ENDPOINT is not"),
        (vec![("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://192.0.2.1")], "AUTHORITY_HOST is not"),
        (
            vec![("IDENTITY_ENDPOINT", "http://127.0.0.1/x"), ("IMDS_ENDPOINT", "http://127.0.0.1")],
            "Azure Arc",
        ),
        (
            vec![("IDENTITY_ENDPOINT", "http://127.0.0.1/x"), header, ("IDENTITY_SERVER_THUMBPRINT", "x")],
            "Service Fabric",
        ),
    ] {
        let why = refusal(open(AzureCredentials::Machine, &variables(&given)));
        assert!(why.contains(words), "{why}");
    }
    let app_service = [("IDENTITY_ENDPOINT", "http://169.254.129.2:8081/msi/token"), header];
    open(AzureCredentials::Machine, &variables(&app_service)).unwrap();
    open(AzureCredentials::Machine, &variables(&[])).unwrap();
}

#[tokio::test]
async fn an_offline_token_has_entras_shape_and_names_its_container() {
    let key = Arc::new(Signer::new().unwrap());
    let said = AzureSettings { tenant: Some(TENANT.into()), ..settings(AzureCredentials::Offline) };
    let azure = Azure::open(&said, &Variables::default(), upstream(), Some(key.clone())).unwrap();
    assert_eq!((azure.kind().as_str(), azure.per_container()), ("offline", true));
    let holder = "ab".repeat(32);
    let request = AzureRequest { holder: ContainerId::parse(&holder), ..ask_as(APP) };
    let token = azure.token(&request).await.unwrap();
    let jwks: Value = serde_json::from_str(&key.jwks()).unwrap();
    let claims = verified(token.value.expose(), &jwks).unwrap();
    assert_eq!(claims["iss"], format!("https://sts.windows.net/{TENANT}/"));
    assert_eq!(
        (&claims["aud"], &claims["appid"], &claims["tid"]),
        (&json!(STORAGE), &json!(APP), &json!(TENANT))
    );
    assert_eq!((&claims["oid"], &claims["sub"]), (&json!(holder), &json!(holder)));
    let time = |name: &str| claims[name].as_u64().unwrap();
    assert!(time("iat") == time("nbf") && time("exp") == time("iat") + 3600 && time("iat") <= seconds());
    assert!((3595..=3600).contains(&left(&token)));
    let other = azure.token(&ask()).await.unwrap();
    let claims = verified(other.value.expose(), &jwks).unwrap();
    assert_eq!(claims["oid"], "00000000-0000-0000-0000-000000000000");
    assert_ne!(other.value.expose(), azure.token(&ask()).await.unwrap().value.expose());
    assert!(refusal(open(AzureCredentials::Offline, &Variables::default())).contains("no key"));
}

/// The names resolve only behind the proxy, and a company's CA signed their certificates.
#[tokio::test]
async fn entra_is_reached_through_a_proxy_with_a_companys_ca() {
    let (fake, scratch) = (FakeEntra::start(), Scratch::new());
    let (root, front) = tls_front(&scratch, fake.address());
    let (at, seen) = proxy(front);
    let own = certificate(&scratch, rsa_key());
    fake.trust(APP, trusted(rsa_key(), &own));
    fake.known_as("https://login.corp.example");
    let path = scratch.write("own.pem", &format!("{}{own}", rsa_key()));
    let given = principal(
        &fake,
        &[
            ("AZURE_AUTHORITY_HOST", "login.corp.example"),
            ("AZURE_CLIENT_CERTIFICATE_PATH", path.to_str().unwrap()),
        ],
    );
    let root = CertificateDer::from_pem_slice(&fs::read(root).unwrap()).unwrap();
    let through = |extra: Vec<CertificateDer<'static>>| {
        let https = Some(format!("http://worker:canary-proxy-password@{at}"));
        let upstream = Upstream::through(&Proxies { https, none_for: None }, quick(), extra).unwrap();
        Azure::open(&settings(AzureCredentials::Environment), &given, upstream, None).unwrap()
    };
    through(vec![root]).token(&ask()).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), ["CONNECT login.corp.example:443 HTTP/1.1"]);
    let why = transient(through(vec![]).token(&ask()).await);
    assert!(why.contains("cannot reach login.corp.example") && why.contains("certificate"), "{why}");
}
