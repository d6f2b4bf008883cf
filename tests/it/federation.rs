//! Federated sources against an issuer, a security token service and an IAM that check what they are sent.
//! `golden_sources` checks the bytes on the wire, case by case.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kfp_creds::mint::{Mint, MintFailure};
use kfp_creds::process::Tasks;
use kfp_creds::record::Recorder;
use kfp_creds::source::google::{self, Endpoints, Exec, Google, Provided, SearchPaths, TokenFrom};
use kfp_creds::source::http::client::{Limits, Upstream};
use kfp_creds::source::{AccessRequest, IdentityRequest, Reloaded, Source, SourceError};
use kfp_creds::token::{AccessToken, Boundary, BoundaryRule, CLOUD_PLATFORM, Deadline, Now, Scopes};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use crate::minting::{assert_cut_short, upstream};
use crate::support::fake_google::{CANARY, Failure, openssl};
use crate::support::federation::{
    AUDIENCE, AWS4, Federation, Imds, JWT, MTLS, POOL, SAML2, Trust, WORKFORCE,
};
use crate::support::issuer::{Issuer, seconds};
use crate::support::session::Folder;

const ISSUER: &str = "https://tokens.example";
const SUBJECT: &str = "repo:owner/name:ref:refs/heads/main";
const RUNNER: &str = "runner@my-project.iam.gserviceaccount.com";
const BIGQUERY: &str = "https://www.googleapis.com/auth/bigquery";

/// A credential file with this source.
fn described(fake: &Federation, source: &Value, more: &Value) -> String {
    let mut file = json!({
        "type": "external_account", "audience": AUDIENCE, "subject_token_type": JWT,
        "token_url": format!("{}/v1/token", fake.url()), "credential_source": source,
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        file[name] = value.clone();
    }
    file.to_string()
}

fn impersonation(fake: &Federation) -> Value {
    let url = format!("{}/v1/projects/-/serviceAccounts/{RUNNER}:generateAccessToken", fake.google.url());
    json!({"service_account_impersonation_url": url})
}

fn place(folder: &Folder, file: &str, variables: &[(&str, &str)]) -> SearchPaths {
    let path = folder.0.join("adc.json");
    fs::write(&path, file).unwrap();
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    SearchPaths { google_application_credentials: Some(path), variables, ..SearchPaths::default() }
}

fn source(folder: &Folder, file: &str, variables: &[(&str, &str)]) -> Google {
    Google::find(&place(folder, file, variables), Endpoints::default(), upstream()).unwrap()
}

/// The source of a CI job, set in the config.
fn job(fake: &Federation, from: TokenFrom, variables: &[(String, String)]) -> Result<Google, SourceError> {
    let federation = google::Federation {
        provider: POOL.into(),
        service_account: Some(RUNNER.into()),
        from,
        token_audience: None,
        token_type: None,
        field: None,
        headers: vec![],
        post: false,
    };
    let place = SearchPaths { variables: variables.iter().cloned().collect(), ..SearchPaths::default() };
    let endpoints = Endpoints {
        sts: Some(format!("{}/v1/token", fake.url())),
        iam_credentials: Some(fake.google.url()),
        ..Endpoints::default()
    };
    let provided = Provided { exec: None, federation: Some(federation) };
    Google::provided(&place, endpoints, upstream(), &provided)
}

fn ask() -> AccessRequest {
    AccessRequest { scopes: Scopes::parse(BIGQUERY), lifetime: 1800, ..AccessRequest::default() }
}

fn left(end: Deadline) -> u64 {
    end.remaining(Now::read()).as_secs()
}

#[track_caller]
fn refusal<T: std::fmt::Debug>(outcome: Result<T, SourceError>) -> String {
    match outcome {
        Err(SourceError::Refused(why)) if !why.contains(CANARY) && !why.contains("eyJ") => why.to_string(),
        other => panic!("not a clean refusal: {other:?}"),
    }
}

#[track_caller]
fn transient<T: std::fmt::Debug>(outcome: Result<T, SourceError>) -> String {
    match outcome {
        Err(SourceError::Transient(why)) if !why.contains(CANARY) && !why.contains("eyJ") => why.to_string(),
        other => panic!("not a clean transient failure: {other:?}"),
    }
}

fn default_audience() -> String {
    format!("https:{AUDIENCE}")
}

#[tokio::test]
async fn rs256_and_es256_issuers_are_accepted_and_impostors_are_not() {
    for issuer in [Issuer::rs256(ISSUER), Issuer::es256(ISSUER)] {
        let (fake, folder) = (Federation::start(), Folder::new("federation"));
        fake.trust(AUDIENCE, &issuer, &[]);
        let token = folder.0.join("token");
        let google = source(&folder, &described(&fake, &json!({"file": token}), &json!({})), &[]);
        fs::write(&token, issuer.token(SUBJECT, &default_audience(), 300, &json!({}))).unwrap();
        let minted: AccessToken = google.access_token(&ask()).await.unwrap();
        let known = fake.google.minted(minted.value.expose()).unwrap();
        let pool = AUDIENCE.split("/providers/").next().unwrap();
        assert_eq!(known.email, format!("principal:{pool}/subject/{SUBJECT}"));
        assert_eq!(known.scopes, [BIGQUERY.to_owned()].into());
        assert!((3590..=3599).contains(&left(minted.expires)), "{}", left(minted.expires));
        let spoilt = |text: String| text.replacen('.', ".A", 1);
        for (bad, words) in [
            (Issuer::impostor(ISSUER).token(SUBJECT, &default_audience(), 300, &json!({})), "invalid_grant"),
            (issuer.token(SUBJECT, "https://another.example", 300, &json!({})), "invalid_grant"),
            (
                issuer.token(SUBJECT, &default_audience(), 300, &json!({"iss": "https://x.example"})),
                "invalid_grant",
            ),
            (issuer.token(SUBJECT, &default_audience(), -90, &json!({})), "expired at 2"),
            (issuer.token(SUBJECT, &default_audience(), 300, &json!({"iat": 1000})), "invalid_grant"),
            (issuer.token("", &default_audience(), 300, &json!({})), "invalid_grant"),
            (spoilt(issuer.token(SUBJECT, &default_audience(), 300, &json!({}))), "invalid_grant"),
        ] {
            fs::write(&token, bad).unwrap();
            let why = refusal(google.access_token(&ask()).await);
            assert!(why.contains(words) && why.contains("token"), "{words}: {why}");
        }
    }
}

#[tokio::test]
async fn an_attribute_condition_decides_and_is_named() {
    let (fake, folder, issuer) = (Federation::start(), Folder::new("federation"), Issuer::rs256(ISSUER));
    fake.trust(AUDIENCE, &issuer, &[("repository", "owner/name"), ("ref", "refs/heads/main")]);
    let token = folder.0.join("token");
    let google = source(&folder, &described(&fake, &json!({"file": token}), &json!({})), &[]);
    let claims = |branch: &str| json!({"repository": "owner/name", "ref": branch});
    fs::write(&token, issuer.token(SUBJECT, &default_audience(), 300, &claims("refs/heads/main"))).unwrap();
    google.access_token(&ask()).await.unwrap();
    fs::write(&token, issuer.token(SUBJECT, &default_audience(), 300, &claims("refs/pull/1"))).unwrap();
    let why = refusal(google.access_token(&ask()).await);
    assert!(why.contains("unauthorized_client") && why.contains("attribute condition"), "{why}");
}

#[tokio::test]
async fn a_federated_identity_impersonates_like_any_other() {
    let (fake, folder, issuer) = (Federation::start(), Folder::new("federation"), Issuer::rs256(ISSUER));
    fake.trust(AUDIENCE, &issuer, &[]);
    let token = folder.0.join("token");
    fs::write(&token, issuer.token("me", &default_audience(), 300, &json!({}))).unwrap();
    let google = source(&folder, &described(&fake, &json!({"file": token}), &impersonation(&fake)), &[]);
    let pool = AUDIENCE.split("/providers/").next().unwrap();
    fake.google.allow("somebody", RUNNER);
    let why = refusal(google.access_token(&ask()).await);
    assert!(why.contains("roles/iam.workloadIdentityUser") && why.contains(AUDIENCE), "{why}");
    fake.google.allow(&format!("principal:{pool}/subject/me"), RUNNER);
    let minted = google.access_token(&ask()).await.unwrap();
    let known = fake.google.minted(minted.value.expose()).unwrap();
    assert_eq!((known.email.as_str(), known.scopes), (RUNNER, [BIGQUERY.to_owned()].into()));
    assert!((1790..=1800).contains(&left(minted.expires)));
    assert_eq!(fake.count("/v1/token"), 1, "one federated token for both");
    assert_eq!(fake.seen()[0].scope.as_deref(), Some(CLOUD_PLATFORM));
    let audience = "https://service.example";
    let wanted = IdentityRequest { service_account: None, audience: audience.into(), holder: None };
    google.identity_token(&wanted).await.unwrap();
    assert_eq!(google.principal().email.as_deref(), Some(RUNNER));
}

/// The boundary narrows the token that would be handed out: the account's, or the principal's own.
#[tokio::test]
async fn a_boundary_narrows_the_token_that_would_be_handed_out() {
    let (fake, folder, issuer) = (Federation::start(), Folder::new("federation"), Issuer::rs256(ISSUER));
    fake.trust(AUDIENCE, &issuer, &[]);
    let token = folder.0.join("token");
    fs::write(&token, issuer.token("me", &default_audience(), 300, &json!({}))).unwrap();
    let pool = AUDIENCE.split("/providers/").next().unwrap();
    let principal = format!("principal:{pool}/subject/me");
    fake.google.allow(&principal, RUNNER);
    let rule = BoundaryRule {
        bucket: "data".into(),
        permissions: vec!["inRole:roles/storage.objectViewer".into()],
        condition: None,
    };
    let request = AccessRequest { boundary: Some(Arc::new(Boundary(vec![rule]))), ..ask() };
    let endpoints = || Endpoints {
        sts: Some(format!("{}/v1/token", fake.url())),
        iam_credentials: Some(fake.google.url()),
        ..Endpoints::default()
    };
    let impersonated = impersonation(&fake);
    for (more, whose) in [(json!({}), principal.as_str()), (impersonated, RUNNER)] {
        let before = fake.count("/v1/token");
        let file = described(&fake, &json!({"file": token}), &more);
        let google = Google::find(&place(&folder, &file, &[]), endpoints(), upstream()).unwrap();
        let narrowed = google.access_token(&request).await.unwrap();
        let value = narrowed.value.expose();
        let rules = &fake.google.boundary_of(value).expect("not the wide one")["accessBoundary"];
        assert_eq!(rules["accessBoundaryRules"].as_array().unwrap().len(), 1);
        let known = fake.google.minted(value).unwrap();
        assert_eq!((known.email.as_str(), known.scopes), (whose, [BIGQUERY.to_owned()].into()));
        assert_eq!(fake.count("/v1/token") - before, 2, "one exchange in, one to narrow: {whose}");
        assert!(left(narrowed.expires) <= 3599);
        // If the service does not narrow, the source never gives the wide token instead.
        fake.fail_later(1, &Failure::oauth(400, "invalid_request", None), 1);
        fs::write(&token, issuer.token("me", &default_audience(), 301, &json!({}))).unwrap();
        let google = Google::find(&place(&folder, &file, &[]), endpoints(), upstream()).unwrap();
        let why = refusal(google.access_token(&request).await);
        assert!(why.contains("boundary is not accepted"), "{why}");
    }
}

#[tokio::test]
async fn subject_tokens_are_read_for_every_exchange() {
    let (fake, issuer) = (Federation::start(), Issuer::es256(ISSUER));
    fake.trust(AUDIENCE, &issuer, &[("repository", "owner/name")]);
    let pool = AUDIENCE.split("/providers/").next().unwrap();
    fake.google.allow(&format!("principal:{pool}/subject/{SUBJECT}"), RUNNER);
    let variables = fake.actions(issuer, SUBJECT, json!({"repository": "owner/name"}));
    let google = job(&fake, TokenFrom::Github, &variables).unwrap();
    google.access_token(&ask()).await.unwrap();
    // The federated token is kept while it is valid, and then made from a new token of the job.
    google.access_token(&ask()).await.unwrap();
    assert_eq!((fake.count("/actions/token"), fake.count("/v1/token")), (1, 1));
    fake.google.withdraw_all();
    google.access_token(&ask()).await.unwrap();
    assert_eq!((fake.count("/actions/token"), fake.count("/v1/token")), (2, 2));
    let mut wrong = variables.clone();
    wrong[1].1 = "another".into();
    let why = refusal(job(&fake, TokenFrom::Github, &wrong).unwrap().access_token(&ask()).await);
    assert!(why.contains("/actions/token") && why.contains("401"), "{why}");
    let why = refusal(job(&fake, TokenFrom::Github, &[]));
    assert!(why.contains("id-token: write"), "{why}");
}

#[tokio::test]
async fn a_jobs_token_comes_from_a_variable_or_a_file() {
    let (fake, folder, issuer) = (Federation::start(), Folder::new("federation"), Issuer::rs256(ISSUER));
    fake.trust(AUDIENCE, &issuer, &[]);
    let pool = AUDIENCE.split("/providers/").next().unwrap();
    fake.google.allow(&format!("principal:{pool}/subject/me"), RUNNER);
    let token = issuer.token("me", &default_audience(), 300, &json!({}));
    let path = folder.0.join("token");
    fs::write(&path, &token).unwrap();
    let variables = [("GITLAB_OIDC_TOKEN".to_owned(), token)];
    for from in [TokenFrom::Variable("GITLAB_OIDC_TOKEN".into()), TokenFrom::File(path)] {
        let google = job(&fake, from, &variables).unwrap();
        let minted = google.access_token(&ask()).await.unwrap();
        assert_eq!(fake.google.minted(minted.value.expose()).unwrap().email, RUNNER);
    }
    let why = refusal(job(&fake, TokenFrom::Variable("OTHER".into()), &variables));
    assert!(why.contains("OTHER"), "{why}");
}

#[tokio::test]
async fn a_url_gives_text_or_json_only_with_the_right_headers() {
    let (fake, folder, issuer) = (Federation::start(), Folder::new("federation"), Issuer::rs256(ISSUER));
    fake.trust(AUDIENCE, &issuer, &[]);
    fake.url_token(&issuer.token("me", &default_audience(), 300, &json!({})));
    let json = json!({"type": "json", "subject_token_field_name": "id_token"});
    for (path, format) in [("text", None), ("json", Some(json))] {
        let mut described_source = json!({"url": format!("{}/url/{path}", fake.url()), "headers": {"X-Wanted": "canary-header-value"}});
        if let Some(format) = format {
            described_source["format"] = format;
        }
        let google = source(&folder, &described(&fake, &described_source, &json!({})), &[]);
        google.access_token(&ask()).await.unwrap();
        described_source["headers"] = json!({"X-Wanted": "other"});
        let google = source(&folder, &described(&fake, &described_source, &json!({})), &[]);
        refusal(google.access_token(&ask()).await);
    }
}

#[tokio::test]
async fn a_workforce_pool_checks_the_paying_project_or_client() {
    let (fake, folder, issuer) = (Federation::start(), Folder::new("federation"), Issuer::rs256(ISSUER));
    fake.trust(WORKFORCE, &issuer, &[]);
    fake.provider(WORKFORCE, Trust::Saml { assertion: "c2FtbA==".into() }, &[]);
    let token = folder.0.join("token");
    fs::write(&token, "c2FtbA==\n").unwrap();
    let file = |more: Value| {
        let mut all = json!({"audience": WORKFORCE, "subject_token_type": SAML2});
        for (name, value) in more.as_object().unwrap() {
            all[name] = value.clone();
        }
        described(&fake, &json!({"file": token}), &all)
    };
    fake.user_project("paying-project");
    let google = source(&folder, &file(json!({"workforce_pool_user_project": "paying-project"})), &[]);
    google.access_token(&ask()).await.unwrap();
    assert_eq!(google.principal().kind, "workforce identity");
    let google = source(&folder, &file(json!({"workforce_pool_user_project": "another"})), &[]);
    refusal(google.access_token(&ask()).await);
    // Characters that the two alphabets of base64 encode differently.
    let secret = "canary-client-secret-???>>>~~~";
    fake.client("client", secret);
    let info = format!("{}/v1/introspect", fake.url());
    let client = json!({
        "client_id": "client", "client_secret": secret, "workforce_pool_user_project": "another",
        "token_info_url": info,
    });
    let google = source(&folder, &file(client), &[]);
    google.access_token(&ask()).await.unwrap();
    google.access_token(&ask()).await.unwrap();
    assert_eq!(fake.count("/v1/introspect"), 1, "the principal is looked up once");
    assert_eq!(
        fake.seen().iter().filter(|seen| seen.options.is_some()).count(),
        2,
        "with a client, no project is sent"
    );
    let google = source(&folder, &file(json!({"client_id": "client", "client_secret": "canary-other"})), &[]);
    assert!(refusal(google.access_token(&ask()).await).contains("invalid_client"));
}

/// The fake service computes the signature again, as AWS's documentation describes it.
#[tokio::test]
async fn aws_is_proven_by_a_signed_request() {
    let (fake, folder) = (Federation::start(), Folder::new("federation"));
    let (id, secret, session) = ("AKIDEXAMPLE", "canary-aws-secret-key", "canary-aws-session/+=");
    let trust = |session: Option<&str>, region: &str| Trust::Aws {
        id: id.into(),
        secret: secret.into(),
        session: session.map(String::from),
        region: region.into(),
    };
    let aws = fake.aws();
    let file = described(&fake, &aws, &json!({"subject_token_type": AWS4}));
    let keys = [("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret), ("AWS_REGION", "eu-west-1")];
    fake.provider(AUDIENCE, trust(None, "eu-west-1"), &[]);
    source(&folder, &file, &keys).access_token(&ask()).await.unwrap();
    let both = [&keys[..], &[("AWS_SESSION_TOKEN", session), ("AWS_DEFAULT_REGION", "us-west-2")]].concat();
    assert!(refusal(source(&folder, &file, &both).access_token(&ask()).await).contains("invalid_grant"));
    fake.provider(AUDIENCE, trust(Some(session), "eu-west-1"), &[]);
    source(&folder, &file, &both).access_token(&ask()).await.unwrap();
    let mut wrong = both.clone();
    wrong[1].1 = "canary-another-secret";
    refusal(source(&folder, &file, &wrong).access_token(&ask()).await);
    assert_eq!(fake.count("/latest/api/token"), 0, "the environment is enough");
    for skew in [-590, 590] {
        fake.clock_off_by(skew);
        let google = source(&folder, &file, &both);
        let before = fake.count("/v1/token");
        google.access_token(&ask()).await.unwrap();
        google.access_token(&ask()).await.unwrap();
        assert_eq!(fake.count("/v1/token") - before, 3, "signed once with the wrong clock: {skew}");
    }
    fake.clock_off_by(0);

    fake.provider(AUDIENCE, trust(Some(session), "us-east-1"), &[]);
    fake.imds(Imds {
        zone: "us-east-1d".into(),
        role: "a-role".into(),
        id: id.into(),
        secret: secret.into(),
        session: session.into(),
        strict: true,
    });
    source(&folder, &file, &[]).access_token(&ask()).await.unwrap();
    assert_eq!(fake.count("/latest/api/token"), 1, "one session token for all questions");
    let mut first = aws;
    first.as_object_mut().unwrap().remove("imdsv2_session_token_url");
    let file = described(&fake, &first, &json!({"subject_token_type": AWS4}));
    let why = refusal(source(&folder, &file, &[]).access_token(&ask()).await);
    assert!(why.contains("401"), "the fake does want a session token: {why}");
}

/// A CA, a leaf of it for localhost, and the leaf's key.
pub(crate) fn certificates(folder: &Folder) -> (PathBuf, PathBuf, PathBuf) {
    let path = |name: &str| folder.0.join(name);
    let text = |path: &PathBuf| path.display().to_string();
    let curve = ["genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
    for name in ["ca.key", "leaf.key"] {
        fs::write(path(name), openssl(&curve, "")).unwrap();
    }
    let ca = ["req", "-x509", "-new", "-subj", "/CN=test CA", "-days", "1", "-key", &text(&path("ca.key"))];
    fs::write(path("ca.pem"), openssl(&ca, "")).unwrap();
    let leaf = [
        "req",
        "-x509",
        "-new",
        "-subj",
        "/CN=localhost",
        "-days",
        "1",
        "-key",
        &text(&path("leaf.key")),
        "-CA",
        &text(&path("ca.pem")),
        "-CAkey",
        &text(&path("ca.key")),
        "-addext",
        "subjectAltName=DNS:localhost",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ];
    fs::write(path("leaf.pem"), openssl(&leaf, "")).unwrap();
    (path("ca.pem"), path("leaf.pem"), path("leaf.key"))
}

/// A server that presents the leaf and asks for a client certificate of the CA.
pub(crate) fn asking_for_certificates(ca: &Path, leaf: &Path, key: &Path) -> rustls::ServerConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_file(leaf).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap()
}

/// Over TLS 1.3, to a service that asks for the certificate and compares it with the subject token.
#[tokio::test]
async fn a_client_certificate_is_sent_with_its_chain() {
    let (fake, folder) = (Federation::start(), Folder::new("federation"));
    let (ca, leaf, key) = certificates(&folder);
    let root = CertificateDer::from_pem_file(&ca).unwrap();
    let port = fake.behind_tls(asking_for_certificates(&ca, &leaf, &key));
    fake.provider(AUDIENCE, Trust::Certificate, &[("chain", "2")]);
    let config = folder.0.join("certificate_config.json");
    let workload = json!({"cert_path": leaf, "key_path": key});
    fs::write(&config, json!({"cert_configs": {"workload": workload}}).to_string()).unwrap();
    let chain = folder.0.join("chain.pem");
    fs::write(&chain, [fs::read(&leaf).unwrap(), fs::read(&ca).unwrap()].concat()).unwrap();
    let file = |certificate: Value| {
        let more = json!({
            "subject_token_type": MTLS, "token_url": format!("https://localhost:{port}/v1/token"),
        });
        described(&fake, &json!({"certificate": certificate}), &more)
    };
    let find = |certificate: Value, variables: &[(&str, &str)]| {
        let trusting = Upstream::new(Limits::default(), vec![root.clone()]).unwrap();
        Google::find(&place(&folder, &file(certificate), variables), Endpoints::default(), trusting).unwrap()
    };
    let named = json!({"certificate_config_location": config, "trust_chain_path": chain});
    let google = find(named.clone(), &[]);
    google.access_token(&ask()).await.unwrap();
    let usual = json!({"use_default_certificate_config": true, "trust_chain_path": chain});
    let google_by_variable = find(usual, &[("GOOGLE_API_CERTIFICATE_CONFIG", config.to_str().unwrap())]);
    google_by_variable.access_token(&ask()).await.unwrap();
    // The leaf alone does not meet this provider's condition, so the chain does arrive.
    let alone = find(json!({"certificate_config_location": config}), &[]);
    assert!(refusal(alone.access_token(&ask()).await).contains("unauthorized_client"));
    fs::write(&chain, [fs::read(&ca).unwrap(), fs::read(&leaf).unwrap()].concat()).unwrap();
    let why = refusal(google.access_token(&ask()).await);
    assert!(why.contains("has to come first"), "{why}");
    let google = find(named, &[]);
    fs::write(&chain, fs::read(&leaf).unwrap()).unwrap();
    assert_eq!(google.reload(), Reloaded::Supplied);
    assert_eq!(google.reload(), Reloaded::Same);
    for renewed in [&leaf, &key] {
        fs::write(renewed, fs::read_to_string(renewed).unwrap() + "\n").unwrap();
        assert_eq!(google.reload(), Reloaded::Supplied, "{}", renewed.display());
    }
    fs::write(&key, "not a key").unwrap();
    transient(google.access_token(&ask()).await);
}

/// Fifty callers who ask a cold mint for one access token, or for one ID token.
async fn fifty(google: Google, identity: bool) {
    let mint = Mint::new(Arc::new(google), Tasks::new(), Recorder::default());
    let wait = Duration::from_secs(5);
    let (access, audience) = (ask(), "https://service.example".to_owned());
    let id = IdentityRequest { service_account: None, audience, holder: None };
    if identity {
        let all = futures_util::future::join_all((0..50).map(|_| mint.identity(&id, None, wait))).await;
        assert!(all.iter().all(Result::is_ok), "{:?}", all.first());
    } else {
        let all = futures_util::future::join_all((0..50).map(|_| mint.access(&access, None, wait))).await;
        assert!(all.iter().all(Result::is_ok), "{:?}", all.first());
    }
}

#[tokio::test]
async fn fifty_callers_cause_one_chain_for_every_kind_of_source() {
    let (fake, folder, issuer) = (Federation::start(), Folder::new("federation"), Issuer::es256(ISSUER));
    fake.trust(AUDIENCE, &issuer, &[]);
    let pool = AUDIENCE.split("/providers/").next().unwrap();
    fake.google.allow(&format!("principal:{pool}/subject/me"), RUNNER);
    fake.latency(Duration::from_millis(50));
    let token = folder.0.join("token");
    fs::write(&token, issuer.token("me", &default_audience(), 300, &json!({}))).unwrap();
    let file = described(&fake, &json!({"file": token}), &impersonation(&fake));
    let variables = fake.actions(issuer, "me", json!({}));
    for identity in [false, true] {
        for job_on_github in [false, true] {
            let (seen, generated) = (fake.seen().len(), fake.google.calls().len());
            let google = match job_on_github {
                true => job(&fake, TokenFrom::Github, &variables).unwrap(),
                false => source(&folder, &file, &[]),
            };
            fifty(google, identity).await;
            let asked: Vec<String> = fake.seen().split_off(seen).into_iter().map(|one| one.path).collect();
            let subject: &[&str] = if job_on_github { &["/actions/token"] } else { &[] };
            assert_eq!(asked, [subject, &["/v1/token"]].concat(), "ID token: {identity}");
            assert_eq!(fake.google.calls().len() - generated, 1, "ID token: {identity}");
        }
    }

    let (id, secret, session) = ("AKIDEXAMPLE", "canary-aws-secret-key", "canary-aws-session");
    let trust = Trust::Aws {
        id: id.into(),
        secret: secret.into(),
        session: Some(session.into()),
        region: "us-east-1".into(),
    };
    fake.provider(AUDIENCE, trust, &[]);
    fake.imds(Imds {
        zone: "us-east-1d".into(),
        role: "a-role".into(),
        id: id.into(),
        secret: secret.into(),
        session: session.into(),
        strict: true,
    });
    let aws = fake.aws();
    let file = described(&fake, &aws, &json!({"subject_token_type": AWS4}));
    let keys = [
        ("AWS_ACCESS_KEY_ID", id),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_SESSION_TOKEN", session),
        ("AWS_REGION", "us-east-1"),
    ];
    for (variables, chain) in [(&keys[..], 1), (&[], 5)] {
        let before = fake.seen().len();
        fifty(source(&folder, &file, variables), false).await;
        assert_eq!(fake.seen().len() - before, chain, "{:?}", fake.seen().split_off(before));
    }
}

#[tokio::test]
async fn different_lifetimes_share_one_federated_token() {
    let (fake, folder, issuer) = (Federation::start(), Folder::new("federation"), Issuer::rs256(ISSUER));
    fake.trust(AUDIENCE, &issuer, &[]);
    let pool = AUDIENCE.split("/providers/").next().unwrap();
    fake.google.allow(&format!("principal:{pool}/subject/me"), RUNNER);
    fake.url_token(&issuer.token("me", &default_audience(), 300, &json!({})));
    let run = folder.0.join("run");
    let answer = json!({
        "version": 1, "success": true, "token_type": JWT,
        "id_token": issuer.token("me", &default_audience(), 300, &json!({})),
    });
    script(&run, &format!("echo x >> {}.log\nsleep 0.2\necho '{answer}'", run.display()));
    let url =
        json!({"url": format!("{}/url/text", fake.url()), "headers": {"X-Wanted": "canary-header-value"}});
    let executable = json!({"executable": {"command": run}});
    let allowed = [("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1")];
    fake.latency(Duration::from_millis(200));
    for described_source in [url, executable] {
        let (before, generated) = (fake.count("/v1/token"), fake.google.calls().len());
        let file = described(&fake, &described_source, &impersonation(&fake));
        let mint = Mint::new(Arc::new(source(&folder, &file, &allowed)), Tasks::new(), Recorder::default());
        let (one, other) = (ask(), AccessRequest { lifetime: 900, ..ask() });
        let wait = Duration::from_secs(5);
        let callers =
            (0..50).map(|caller| mint.access(if caller % 2 == 0 { &one } else { &other }, None, wait));
        for token in futures_util::future::join_all(callers).await {
            token.unwrap();
        }
        assert_eq!(fake.count("/v1/token") - before, 1, "two keys, one federated token");
        assert_eq!(fake.google.calls().len() - generated, 2);
    }
    assert_eq!(fake.count("/url/text"), 1);
    assert_eq!(fs::read_to_string(folder.0.join("run.log")).unwrap().lines().count(), 1);
}

/// Federated tokens live as long as the answer says, whatever the clocks; impersonated ones end at a time
/// that IAM sets.
#[tokio::test]
async fn a_clock_skew_does_not_change_lifetimes() {
    let (fake, folder, issuer) = (Federation::start(), Folder::new("federation"), Issuer::rs256(ISSUER));
    fake.trust(AUDIENCE, &issuer, &[]);
    let pool = AUDIENCE.split("/providers/").next().unwrap();
    fake.google.allow(&format!("principal:{pool}/subject/me"), RUNNER);
    let token = folder.0.join("token");
    fs::write(&token, issuer.token("me", &default_audience(), 300, &json!({}))).unwrap();
    for skew in [-590, 590] {
        fake.google.clock_off_by(skew, true);
        let google = source(&folder, &described(&fake, &json!({"file": token}), &json!({})), &[]);
        let left_of_it = left(google.access_token(&ask()).await.unwrap().expires);
        assert!((3590..=3599).contains(&left_of_it), "off by {skew}: {left_of_it}");
        let google = source(&folder, &described(&fake, &json!({"file": token}), &impersonation(&fake)), &[]);
        let left_of_it = left(google.access_token(&ask()).await.unwrap().expires);
        assert!((1790..=1800).contains(&left_of_it), "off by {skew}: {left_of_it}");
    }
}

fn script(path: &PathBuf, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn a_replaced_token_file_is_read_and_a_broken_one_ignored() {
    let (fake, folder, issuer) = (Federation::start(), Folder::new("federation"), Issuer::rs256(ISSUER));
    fake.trust(AUDIENCE, &issuer, &[]);
    let token = folder.0.join("token");
    let good = || issuer.token("me", &default_audience(), 300, &json!({}));
    let file = described(&fake, &json!({"file": token}), &json!({}));
    let google = Arc::new(source(&folder, &file, &[]));
    let mint = Mint::new(google.clone(), Tasks::new(), Recorder::default());
    let wait = Duration::from_secs(2);
    // A missing file is reported, and the next look finds the new one.
    let missing = mint.access(&ask(), None, wait).await;
    assert!(matches!(&missing, Err(MintFailure::Transient(why)) if why.contains("token")), "{missing:?}");
    fs::write(&token, good()).unwrap();
    assert_eq!(mint.reload(), Reloaded::Supplied);
    let first = mint.access(&ask(), None, wait).await.unwrap();
    // The file is broken, then removed: the minted token stays in use.
    for _ in 0..2 {
        fs::write(&token, "").unwrap();
        assert_eq!(mint.reload(), Reloaded::Supplied);
        assert_eq!(mint.access(&ask(), None, wait).await.unwrap().value.expose(), first.value.expose());
        let _ = fs::remove_file(&token);
        mint.reload();
    }
    transient(google.access_token(&ask()).await);
    // The file is rewritten in place, then replaced by a rename; a reload notices both.
    fs::write(&token, good()).unwrap();
    assert_eq!(mint.reload(), Reloaded::Supplied);
    google.access_token(&ask()).await.unwrap();
    let beside = folder.0.join("beside");
    fs::write(&beside, good()).unwrap();
    fs::rename(&beside, &token).unwrap();
    assert_eq!(mint.reload(), Reloaded::Supplied);
    assert_eq!(mint.reload(), Reloaded::Same);
    google.access_token(&ask()).await.unwrap();
}

/// The exchange reads a token that is just being replaced, is refused, and reads the file once more.
#[tokio::test]
async fn a_token_replaced_during_the_exchange_is_read_again() {
    let (fake, folder, issuer) = (Federation::start(), Folder::new("federation"), Issuer::rs256(ISSUER));
    fake.trust(AUDIENCE, &issuer, &[]);
    let token = folder.0.join("token");
    fs::write(&token, issuer.token("me", &default_audience(), -30, &json!({}))).unwrap();
    let google = source(&folder, &described(&fake, &json!({"file": token}), &json!({})), &[]);
    fake.latency(Duration::from_millis(300));
    let new = issuer.token("me", &default_audience(), 300, &json!({}));
    let request = ask();
    let (outcome, ()) = tokio::join!(google.access_token(&request), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        fs::write(&token, new).unwrap();
    });
    outcome.unwrap();
    assert_eq!(fake.count("/v1/token"), 2);
}

#[tokio::test]
async fn a_changed_credential_file_is_another_identity_if_in_doubt() {
    let (fake, folder, issuer) = (Federation::start(), Folder::new("federation"), Issuer::rs256(ISSUER));
    fake.trust(AUDIENCE, &issuer, &[]);
    let token = folder.0.join("token");
    fs::write(&token, issuer.token("me", &default_audience(), 300, &json!({}))).unwrap();
    let file = described(&fake, &json!({"file": token}), &json!({}));
    let google = source(&folder, &file, &[]);
    google.access_token(&ask()).await.unwrap();
    let write = |text: &str| fs::write(folder.0.join("adc.json"), text).unwrap();
    write(&file.replace("/token\"", "/token\" "));
    assert_eq!(google.reload(), Reloaded::OtherAccount, "the account is not known");
    write("{\"type\": \"external_account\"");
    assert_eq!(google.reload(), Reloaded::Same);
    assert!(matches!(google.reload(), Reloaded::Broken(_)));
    google.access_token(&ask()).await.unwrap();
    let account = described(&fake, &json!({"file": token}), &impersonation(&fake));
    write(&account);
    assert_eq!(google.reload(), Reloaded::OtherAccount);
    write(&account.replace("\"credential_source\"", " \"credential_source\""));
    assert_eq!(google.reload(), Reloaded::Renewed, "the same service account");
}

#[tokio::test]
async fn temporary_failures_are_retried_within_limits() {
    let (fake, folder, issuer) = (Federation::start(), Folder::new("federation"), Issuer::rs256(ISSUER));
    fake.trust(AUDIENCE, &issuer, &[]);
    let token = folder.0.join("token");
    fs::write(&token, issuer.token("me", &default_audience(), 300, &json!({}))).unwrap();
    let google = source(&folder, &described(&fake, &json!({"file": token}), &json!({})), &[]);
    for trouble in [Failure::html_503(), Failure::oauth(429, "rate_limit_exceeded", None)] {
        (0..2).for_each(|_| fake.fail(trouble.clone()));
        google.access_token(&ask()).await.unwrap();
        (0..3).for_each(|_| fake.fail(trouble.clone()));
        transient(google.access_token(&ask()).await);
    }
    fake.fail(Failure::oauth(400, "canary_in_capitals_OR_not", None));
    refusal(google.access_token(&ask()).await);
    (0..3).for_each(|_| fake.fail(Failure::Huge((1 << 20) + 1)));
    assert!(transient(google.access_token(&ask()).await).contains("larger than 1 MiB"));
    (0..3).for_each(|_| fake.fail(Failure::Hang));
    let began = Instant::now();
    transient(google.access_token(&ask()).await);
    assert_cut_short(began.elapsed());
    fake.unfail();
    // No token without a lifetime, none that has ended, and none that lives for ever.
    fake.leave_lives_out(true);
    assert!(refusal(google.access_token(&ask()).await).contains("how long"));
    fake.leave_lives_out(false);
    fake.expires_in(0);
    transient(google.access_token(&ask()).await);
    fake.expires_in(u64::MAX);
    assert!(left(google.access_token(&ask()).await.unwrap().expires) <= 43_200);
    fake.token_type("DPoP");
    refusal(google.access_token(&ask()).await);
}

#[tokio::test]
async fn a_command_is_a_source_like_any_other() {
    let (fake, folder) = (Federation::start(), Folder::new("federation"));
    let helper = folder.0.join("helper");
    let (token, end) =
        (fake.google.issue("helper", [CLOUD_PLATFORM.to_owned()].into(), 1200), seconds() + 1200);
    let answer = json!({
        "version": 1, "success": true, "access_token": token, "expiration_time": end,
        "token_type": "urn:ietf:params:oauth:token-type:access_token",
    });
    script(
        &helper,
        &format!("cat > {}.told\necho x >> {}.log\necho '{answer}'", helper.display(), helper.display()),
    );
    let program = helper.clone();
    let exec = Exec { program: helper, arguments: vec![], pass: vec![], timeout: Duration::from_secs(5) };
    let endpoints = Endpoints { iam_credentials: Some(fake.google.url()), ..Endpoints::default() };
    let provided = Provided { exec: Some(exec), federation: None };
    let google =
        Arc::new(Google::provided(&SearchPaths::default(), endpoints, upstream(), &provided).unwrap());
    let minted = google.access_token(&ask()).await.unwrap();
    assert!((1190..=1200).contains(&left(minted.expires)), "{}", left(minted.expires));
    let told: Value =
        serde_json::from_str(&fs::read_to_string(folder.0.join("helper.told")).unwrap()).unwrap();
    assert_eq!(
        told,
        json!({"version": 1, "kind": "access_token", "scopes": [BIGQUERY], "lifetime_seconds": 1800})
    );
    fake.google.allow("helper", RUNNER);
    let other = AccessRequest { service_account: Some(RUNNER.into()), ..ask() };
    let minted = google.access_token(&other).await.unwrap();
    assert_eq!(fake.google.minted(minted.value.expose()).unwrap().email, RUNNER);
    // The account changes from one answer to the next: earlier tokens are not served any more.
    let now_of = |account: &str| {
        let mut answer = answer.clone();
        answer["account"] = json!(account);
        script(&program, &format!("echo x >> {}.log\necho '{answer}'", program.display()));
    };
    for (account, seen) in [
        ("a@example.com", Reloaded::Same),
        ("a@example.com", Reloaded::Same),
        ("b@example.com", Reloaded::OtherAccount),
    ] {
        now_of(account);
        google.access_token(&ask()).await.unwrap();
        assert_eq!(google.reload(), seen, "{account}");
        assert_eq!(google.reload(), Reloaded::Same);
    }
    // Fifty callers at once cause one run.
    let runs = || fs::read_to_string(folder.0.join("helper.log")).unwrap().lines().count();
    let before = runs();
    let mint = Mint::new(google, Tasks::new(), Recorder::default());
    let request = ask();
    let callers = (0..50).map(|_| mint.access(&request, None, Duration::from_secs(5)));
    for token in futures_util::future::join_all(callers).await {
        token.unwrap();
    }
    assert_eq!(runs() - before, 1);
}
