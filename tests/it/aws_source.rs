//! The source of AWS's sessions against a token service, a portal and metadata services that check what they are sent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kfp_creds::cloud::AwsIdentity;
use kfp_creds::source::aws::{Aws, AwsCredentials, AwsRequest, AwsSettings, AwsSource, Deny, session_name};
use kfp_creds::source::offline::Offline;
use kfp_creds::source::variables::Variables;
use kfp_creds::source::{Reloaded, SourceError};
use kfp_creds::token::{AwsSession, Now};
use kfp_creds::workload::ContainerId;
use serde_json::{Value, json};

use crate::minting::upstream;
use crate::support::canary::Canaries;
use crate::support::fake_aws::{ACCOUNT, CANARY, FakeAws, Known, REGION, Role, refusal};
use crate::support::issuer::verified;
use crate::support::session::Folder;

fn container() -> ContainerId {
    ContainerId::parse(&"0123456789abcdef".repeat(4)).unwrap()
}

/// The request of a container with this identity.
fn ask(identity: AwsIdentity) -> AwsRequest {
    AwsRequest {
        identity: Arc::new(identity),
        session_name: session_name("load", &container()),
        tags: vec![],
        holder: Some(container()),
    }
}

fn with_role(role: &str) -> AwsIdentity {
    AwsIdentity { role: Some(role.into()), ..AwsIdentity::default() }
}

/// The host in these tests: a home, variables, and the fake as AWS.
struct Host {
    aws: FakeAws,
    home: Folder,
    variables: Vec<(String, String)>,
}

impl Host {
    fn new() -> Self {
        let (aws, home) = (FakeAws::start(), Folder::new("aws"));
        fs::create_dir_all(home.0.join(".aws/sso/cache")).unwrap();
        let mut host = Self { aws, home, variables: vec![] };
        let url = host.aws.url();
        for service in ["IAM", "SSO", "SSO_OIDC", "STS"] {
            host.var(&format!("AWS_ENDPOINT_URL_{service}"), &url);
        }
        // Never asks this machine's own metadata service.
        host.var("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9");
        host.var("AWS_REGION", REGION);
        host.var("PATH", "/usr/bin:/bin");
        host
    }

    fn var(&mut self, name: &str, value: &str) {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.into(), value.into()));
    }

    /// Sets keys as variables.
    fn keys(&mut self, keys: &Known) {
        self.var("AWS_ACCESS_KEY_ID", &keys.id);
        self.var("AWS_SECRET_ACCESS_KEY", &keys.secret);
        self.var("AWS_SESSION_TOKEN", keys.session.as_deref().unwrap_or_default());
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.file(name, &format!("#!/bin/sh\n{text}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        path
    }

    fn open(&self, credentials: AwsCredentials) -> Result<Aws, SourceError> {
        let settings = AwsSettings { credentials, region: None, sts: None, iam: None };
        let variables: Variables = self.variables.iter().cloned().collect();
        Aws::open(&settings, &variables, Some(&self.home.0), upstream(), None)
    }

    fn profile(&self, name: &str) -> Result<Aws, SourceError> {
        self.open(AwsCredentials::Profile(name.into()))
    }

    fn command(&self, program: PathBuf, timeout: Duration) -> Aws {
        self.open(AwsCredentials::Command { program, arguments: vec![], pass: vec![], timeout }).unwrap()
    }

    /// Asserts that `text` contains no secret.
    #[track_caller]
    fn assert_clean(&self, text: &str) {
        let mut canaries = Canaries::default();
        self.aws.secrets().iter().for_each(|secret| canaries.add("a secret", secret));
        canaries.assert_absent("a message", text);
        assert!(!text.contains(CANARY), "{text}");
    }

    #[track_caller]
    fn refusal<T: std::fmt::Debug>(&self, outcome: Result<T, SourceError>) -> String {
        let Err(SourceError::Refused(why)) = &outcome else { panic!("no refusal: {outcome:?}") };
        self.assert_clean(&format!("{outcome:?} {why}"));
        why.to_string()
    }

    #[track_caller]
    fn transient<T: std::fmt::Debug>(&self, outcome: Result<T, SourceError>) -> String {
        let Err(SourceError::Transient(why)) = &outcome else { panic!("does not pass: {outcome:?}") };
        self.assert_clean(&format!("{outcome:?} {why}"));
        why.to_string()
    }

    /// Whose session AWS takes it for: the session signs a request of its own.
    async fn arn(&self, session: &AwsSession) -> String {
        let mut other: Vec<(String, String)> = self.variables.clone();
        other.retain(|(name, _)| !name.starts_with("AWS_SE") && name != "AWS_ACCESS_KEY_ID");
        let part = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        other.push(part("AWS_ACCESS_KEY_ID", session.access_key_id.expose()));
        other.push(part("AWS_SECRET_ACCESS_KEY", session.secret_access_key.expose()));
        other.push(part("AWS_SESSION_TOKEN", session.session_token.expose()));
        let settings =
            AwsSettings { credentials: AwsCredentials::Environment, region: None, sts: None, iam: None };
        let aws = Aws::open(&settings, &other.into_iter().collect(), None, upstream(), None).unwrap();
        aws.caller().await.unwrap().unwrap().arn
    }
}

fn left(session: &AwsSession) -> u64 {
    session.expires.remaining(Now::read()).as_secs()
}

/// The output of a `credential_process`.
fn printed(keys: &Known, more: &str) -> String {
    let token =
        keys.session.as_ref().map(|token| format!(r#","SessionToken":"{token}""#)).unwrap_or_default();
    format!(r#"{{"Version":1,"AccessKeyId":"{}","SecretAccessKey":"{}"{token}{more}}}"#, keys.id, keys.secret)
}

#[tokio::test]
async fn a_container_gets_a_session_of_its_role_and_its_name() {
    let mut host = Host::new();
    host.keys(&host.aws.user());
    let role = Role {
        external_id: Some("their-id".into()),
        lets_tag: true,
        lets_name_a_person: true,
        longest: Some(43_200),
        ..Role::default()
    };
    let role = host.aws.role("loader", role);
    let aws = host.open(AwsCredentials::Environment).unwrap();
    assert!(!format!("{aws:?}").contains("canary"), "{aws:?}");
    let mut ask = ask(AwsIdentity {
        policy: Some(r#"{"Version":"2012-10-17","Statement":[]}"#.into()),
        policy_arns: vec!["arn:aws:iam::aws:policy/ReadOnlyAccess".into()],
        lifetime: Duration::from_secs(43_200),
        source_identity: Some("me@corp.example".into()),
        external_id: Some("their-id".into()),
        ..with_role(&role)
    });
    ask.tags = vec![("pipeline".into(), "a + b".into()), ("component".into(), "load".into())];
    let session = aws.session(&ask).await.unwrap();
    assert!((43_190..=43_200).contains(&left(&session)), "{}", left(&session));
    assert_eq!(session.account.as_deref(), Some(ACCOUNT));
    assert!(session.access_key_id.expose().starts_with("ASIA"));
    assert_eq!(
        host.arn(&session).await,
        format!("arn:aws:sts::{ACCOUNT}:assumed-role/loader/kfp-load-0123456789ab")
    );
    let form = &host.aws.of("AssumeRole")[0].form;
    for (name, value) in [
        ("DurationSeconds", "43200"),
        ("PolicyArns.member.1.arn", "arn:aws:iam::aws:policy/ReadOnlyAccess"),
        ("Tags.member.1.Key", "pipeline"),
        ("Tags.member.1.Value", "a + b"),
        ("Tags.member.2.Value", "load"),
        ("SourceIdentity", "me@corp.example"),
        ("ExternalId", "their-id"),
    ] {
        assert_eq!(form.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!(
        host.aws.of("GetCallerIdentity").len(),
        1,
        "long-lived keys belong to no role: only the test called it"
    );
}

#[tokio::test]
async fn every_container_gets_a_session_of_its_own() {
    let mut host = Host::new();
    host.keys(&host.aws.user());
    let role = host.aws.role("loader", Role::default());
    // Variables win over a profile.
    host.file(".aws/config", "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = wrong\n");
    let aws = host.open(AwsCredentials::Default).unwrap();
    let one = aws.session(&ask(with_role(&role))).await.unwrap();
    let two = aws.session(&ask(with_role(&role))).await.unwrap();
    assert_ne!(one.session_token.expose(), two.session_token.expose());
    assert_ne!(one.id, two.id);
    assert_eq!(host.aws.of("AssumeRole").len(), 2);
}

#[tokio::test]
async fn wrong_keys_are_refused_with_the_reason() {
    let mut host = Host::new();
    let role = host.aws.role("loader", Role::default());
    let (user, session) = (host.aws.user(), host.aws.session("assumed-role/a/b"));
    let elsewhere = Known { secret: "canary-of-nobody-at-all".into(), ..user.clone() };
    let unknown = Known { id: "AKIDEXAMPLE".into(), ..user.clone() };
    let foreign = Known { session: Some("canary-of-another-session".into()), ..session.clone() };
    for (keys, code, word) in [
        (elsewhere, "SignatureDoesNotMatch", "secret access key"),
        (unknown, "InvalidClientTokenId", "does not know"),
        (foreign, "InvalidClientTokenId", "does not know"),
    ] {
        host.keys(&keys);
        let aws = host.open(AwsCredentials::Environment).unwrap();
        let why = host.refusal(aws.session(&ask(with_role(&role))).await);
        assert!(why.contains(code) && why.contains(word), "{why}");
        assert!(!why.contains("canary-of"), "{why}");
        assert!(host.refusal(aws.caller().await).contains(code));
    }
    host.keys(&session);
    host.aws.end(&session);
    let aws = host.open(AwsCredentials::Environment).unwrap();
    assert!(host.refusal(aws.session(&ask(with_role(&role))).await).contains("log in again"));
}

#[tokio::test]
async fn a_trust_policy_that_refuses_is_named() {
    let mut host = Host::new();
    host.keys(&host.aws.user());
    let aws = host.open(AwsCredentials::Environment).unwrap();
    let role = host.aws.role("loader", Role::default());
    let refused = async |ask: AwsRequest| host.refusal(aws.session(&ask).await);
    let why = refused(ask(with_role("arn:aws:iam::123456789012:role/absent"))).await;
    assert!(why.contains("role/absent") && why.contains("sts:AssumeRole to"), "{why}");
    let mut tagged = ask(with_role(&role));
    tagged.tags = vec![("a".into(), "b".into())];
    assert!(refused(tagged).await.contains("sts:TagSession"));
    let person = AwsIdentity { source_identity: Some("me".into()), ..with_role(&role) };
    assert!(refused(ask(person)).await.contains("sts:SetSourceIdentity"));
    let foreign = AwsIdentity { external_id: Some("wrong".into()), ..with_role(&role) };
    assert!(refused(ask(foreign)).await.contains("sts:ExternalId"));
    let policy = AwsIdentity { policy: Some("{}".into()), ..with_role(&role) };
    assert!(refused(ask(policy)).await.contains("MalformedPolicyDocument"));
    let long = AwsIdentity { lifetime: Duration::from_secs(7200), ..with_role(&role) };
    assert!(refused(ask(long)).await.contains("maximum session duration"));
    let before = host.aws.seen().len();
    let large = AwsIdentity { policy: Some("x".repeat(2049)), ..with_role(&role) };
    assert!(refused(ask(large)).await.contains("2048"));
    assert_eq!(host.aws.seen().len(), before, "a policy over the limit is not sent to AWS");
}

#[tokio::test]
async fn only_the_code_of_an_aws_error_is_reported() {
    let mut host = Host::new();
    host.keys(&host.aws.user());
    let role = host.aws.role("loader", Role::default());
    let aws = host.open(AwsCredentials::Environment).unwrap();
    for (status, code, word) in [
        (400, "PackedPolicyTooLarge", "policy_arns"),
        (403, "RegionDisabledException", "region"),
        (400, "ExpiredTokenException", "log in again"),
        (403, "CanaryCodeOfNobody", "CloudTrail"),
    ] {
        host.aws.instead(status, &refusal(code));
        // After an error that keys have expired, the source looks for new ones, and the environment has the
        // same ones.
        let why = host.refusal(aws.session(&ask(with_role(&role))).await);
        assert!(why.contains(word) && !why.contains("CanaryCode"), "{why}");
    }
    for _ in 0..3 {
        host.aws.instead(400, &refusal("Throttling"));
    }
    assert!(host.transient(aws.session(&ask(with_role(&role))).await).contains("Throttling"));
    for _ in 0..3 {
        host.aws.instead(503, "<html>canary-in-a-message</html>");
    }
    host.transient(aws.session(&ask(with_role(&role))).await);
    // AWS did not send a firewall's page.
    host.aws.instead(403, "<html>canary-in-a-message</html>");
    host.aws.instead(403, "<html>canary-in-a-message</html>");
    host.aws.instead(403, "<html>canary-in-a-message</html>");
    host.transient(aws.session(&ask(with_role(&role))).await);
    for body in [
        "",
        "{}",
        "<html><body>canary-in-a-message</body></html>",
        "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>A</AccessKeyId></Credentials>\
         </AssumeRoleResult></AssumeRoleResponse>",
        "<!DOCTYPE a><AssumeRoleResponse/>",
    ] {
        host.aws.instead(200, body);
        host.transient(aws.session(&ask(with_role(&role))).await);
    }
    // 5xx are temporary.
    host.aws.instead(500, "");
    aws.session(&ask(with_role(&role))).await.unwrap();
}

#[tokio::test]
async fn a_chained_role_session_is_limited_to_one_hour() {
    let mut host = Host::new();
    let role = host.aws.role("loader", Role { longest: Some(43_200), ..Role::default() });
    let long = AwsIdentity { lifetime: Duration::from_secs(7200), ..with_role(&role) };
    host.keys(&host.aws.session("assumed-role/host/me"));
    let aws = host.open(AwsCredentials::Environment).unwrap();
    for _ in 0..2 {
        let session = aws.session(&ask(long.clone())).await.unwrap();
        assert!((3590..=3600).contains(&left(&session)), "{}", left(&session));
    }
    assert_eq!(host.aws.of("GetCallerIdentity").len(), 1, "called once for these keys");
    // A user's session, obtained with a second factor, is not a role's.
    host.keys(&host.aws.session("federated-user/me"));
    let aws = host.open(AwsCredentials::Environment).unwrap();
    let session = aws.session(&ask(long)).await.unwrap();
    assert!((7190..=7200).contains(&left(&session)), "{}", left(&session));
}

#[tokio::test]
async fn clocks_may_differ_by_minutes() {
    for skew in [-590, 590] {
        let mut host = Host::new();
        host.keys(&host.aws.user());
        let role = host.aws.role("loader", Role::default());
        host.aws.clock_off_by(skew);
        let aws = host.open(AwsCredentials::Environment).unwrap();
        for _ in 0..2 {
            let session = aws.session(&ask(with_role(&role))).await.unwrap();
            assert!((3590..=3600).contains(&left(&session)), "{skew}: {}", left(&session));
        }
        assert_eq!(host.aws.of("AssumeRole").len(), 3, "signed once with the wrong clock: {skew}");
    }
}

#[tokio::test]
async fn long_lived_keys_are_never_handed_out() {
    let mut host = Host::new();
    let own = AwsIdentity { own_session: true, ..AwsIdentity::default() };
    host.keys(&host.aws.user());
    let aws = host.open(AwsCredentials::Environment).unwrap();
    for identity in [own.clone(), AwsIdentity::default()] {
        assert!(host.refusal(aws.session(&ask(identity)).await).contains("set role in [identity.NAME.aws]"));
    }
    // Long-lived keys with an expiry, or with something in the place of a session token.
    let user = host.aws.user();
    host.var("AWS_CREDENTIAL_EXPIRATION", "2999-01-01T00:00:00Z");
    host.keys(&Known { session: Some("canary-session-token".into()), ..user });
    let aws = host.open(AwsCredentials::Environment).unwrap();
    assert!(host.refusal(aws.session(&ask(own)).await).contains("never handed out"));
    assert!(host.aws.seen().is_empty());
}

#[tokio::test]
async fn the_hosts_session_is_given_only_if_its_end_is_known() {
    let mut host = Host::new();
    let keys = host.aws.session("assumed-role/host/me");
    let own = AwsIdentity { own_session: true, ..AwsIdentity::default() };
    host.keys(&keys);
    let aws = host.open(AwsCredentials::Environment).unwrap();
    assert!(host.refusal(aws.session(&ask(own.clone())).await).contains("AWS_CREDENTIAL_EXPIRATION"));
    assert!(host.refusal(aws.session(&ask(AwsIdentity::default())).await).contains("set role"));
    let end = time::OffsetDateTime::now_utc() + time::Duration::seconds(1800);
    let end = end.format(&time::format_description::well_known::Rfc3339).unwrap();
    host.var("AWS_CREDENTIAL_EXPIRATION", &end);
    let aws = host.open(AwsCredentials::Environment).unwrap();
    let session = aws.session(&ask(own.clone())).await.unwrap();
    assert!((1780..=1800).contains(&left(&session)), "{}", left(&session));
    assert_eq!(session.session_token.expose(), keys.session.as_ref().unwrap());
    host.var("AWS_CREDENTIAL_EXPIRATION", "2001-01-01T00:00:00Z");
    let aws = host.open(AwsCredentials::Environment).unwrap();
    assert!(host.refusal(aws.session(&ask(own)).await).contains("have expired"));
}

#[tokio::test]
async fn roles_of_chained_profiles_are_assumed_in_order() {
    let host = Host::new();
    let (user, last) = (host.aws.user(), host.aws.role("loader", Role::default()));
    let first = host.aws.role("first", Role::default());
    let second = host.aws.role("second", Role { external_id: Some("x".into()), ..Role::default() });
    host.file(
        ".aws/config",
        &format!(
            "[profile top]\nrole_arn = {second}\nsource_profile = middle\nexternal_id = x\nduration_seconds = 900\n\
             [profile middle]\nrole_arn = {first}\nsource_profile = base\nrole_session_name = me@corp\n"
        ),
    );
    host.file(
        ".aws/credentials",
        &format!("[base]\naws_access_key_id = {}\naws_secret_access_key = {}\n", user.id, user.secret),
    );
    let aws = host.profile("top").unwrap();
    assert_eq!(aws.kind(), "profile top");
    for _ in 0..2 {
        aws.session(&ask(with_role(&last))).await.unwrap();
    }
    let roles: Vec<_> = host.aws.of("AssumeRole").iter().map(|seen| seen.form["RoleArn"].clone()).collect();
    assert_eq!(roles, [&first, &second, &last, &last].map(String::clone), "the chain is made once");
    let names: Vec<_> =
        host.aws.of("AssumeRole").iter().map(|seen| seen.form["RoleSessionName"].clone()).collect();
    assert_eq!(names[..3], ["me@corp", "kfp-creds", "kfp-load-0123456789ab"]);
    assert_eq!(
        aws.caller().await.unwrap().unwrap().arn,
        format!("arn:aws:sts::{ACCOUNT}:assumed-role/second/kfp-creds")
    );
    // A profile with `duration_seconds = 900` is known to give a role session, so GetCallerIdentity is not
    // called.
    let long = AwsIdentity { lifetime: Duration::from_secs(7200), ..with_role(&last) };
    let session = aws.session(&ask(long)).await.unwrap();
    assert!(left(&session) <= 3600 && host.aws.of("GetCallerIdentity").len() == 1);
    let why = host.refusal(host.profile("absent"));
    assert!(why.contains("base, middle, top"), "{why}");
}

/// A cached login.
fn login(token: &str, ends: &str, refresh: Option<&[String; 3]>) -> String {
    let mut login = json!({
        "startUrl": "https://corp.example/start", "region": REGION, "accessToken": token, "expiresAt": ends,
    });
    if let Some([id, secret, refresh]) = refresh {
        login["clientId"] = json!(id);
        login["clientSecret"] = json!(secret);
        login["registrationExpiresAt"] = json!("2999-01-01T00:00:00Z");
        login["refreshToken"] = json!(refresh);
    }
    login.to_string()
}

const PAST: &str = "2001-01-01T00:00:00Z";
const FUTURE: &str = "2999-01-01T00:00:00UTC";

/// The file name that AWS's tools give the cached login of the session `corp`.
fn cache() -> String {
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, b"corp");
    let name: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!(".aws/sso/cache/{name}.json")
}

fn sso() -> Host {
    let host = Host::new();
    host.file(
        ".aws/config",
        &format!(
            "[profile dev]\nsso_session = corp\nsso_account_id = {ACCOUNT}\nsso_role_name = Reader\n\
             [sso-session corp]\nsso_start_url = https://corp.example/start\nsso_region = {REGION}\n\
             [profile other]\nsso_session = corp\nsso_account_id = {ACCOUNT}\nsso_role_name = Admin\n\
             [sso-session unused]\nsso_start_url = x\n"
        ),
    );
    host
}

#[tokio::test]
async fn a_login_of_sso_gives_the_keys_of_its_role() {
    let host = sso();
    let role = host.aws.role("loader", Role { longest: Some(43_200), ..Role::default() });
    let why = host.refusal(host.profile("dev").unwrap().caller().await);
    assert!(why.contains("there is no AWS SSO login; run: aws sso login --sso-session corp"), "{why}");
    host.file(&cache(), &login(&host.aws.login(), FUTURE, None));
    let aws = host.profile("dev").unwrap();
    let long = AwsIdentity { lifetime: Duration::from_secs(7200), ..with_role(&role) };
    let session = aws.session(&ask(long)).await.unwrap();
    assert!(left(&session) <= 3600, "it is a role session, so AWS limits the next one to an hour");
    aws.session(&ask(with_role(&role))).await.unwrap();
    assert_eq!(host.aws.of("/federation/credentials").len(), 1);
    assert!(host.aws.of("GetCallerIdentity").is_empty() && host.aws.of("/token").is_empty());
    let own = AwsIdentity { own_session: true, ..AwsIdentity::default() };
    let session = aws.session(&ask(own)).await.unwrap();
    assert!(host.arn(&session).await.ends_with("AWSReservedSSO_Reader/me"));
    assert_eq!(session.account.as_deref(), Some(ACCOUNT));
    let why = host.refusal(host.profile("other").unwrap().caller().await);
    assert!(why.contains("the role Admin") && why.contains("list-account-roles"), "{why}");
}

#[tokio::test]
async fn an_expired_login_is_refreshed_in_memory() {
    let host = sso();
    let role = host.aws.role("loader", Role::default());
    let file = host.file(&cache(), &login("canary-of-yesterday", PAST, Some(&host.aws.refreshes())));
    let before = fs::read(&file).unwrap();
    let aws = host.profile("dev").unwrap();
    assert!(!format!("{aws:?}").contains("canary"), "{aws:?}");
    aws.session(&ask(with_role(&role))).await.unwrap();
    assert_eq!((host.aws.of("/token").len(), fs::read(&file).unwrap()), (1, before));
    // AWS ends the login.
    host.aws.log_out();
    let why = host.refusal(host.profile("dev").unwrap().caller().await);
    assert!(why.contains("cannot be refreshed") && why.contains("aws sso login --sso-session corp"), "{why}");
    host.file(&cache(), &login("canary-of-yesterday", PAST, None));
    let why = host.refusal(host.profile("dev").unwrap().caller().await);
    assert!(why.contains("has expired; run: aws sso login --sso-session corp"), "{why}");
    host.file(&cache(), &login("canary-of-nobody-here", FUTURE, None));
    let why = host.refusal(host.profile("dev").unwrap().caller().await);
    assert!(why.contains("not accepted") && why.contains("aws sso login"), "{why}");
    host.file(&cache(), "canary-in-a-message");
    assert!(host.refusal(host.profile("dev").unwrap().caller().await).contains("aws sso login"));
}

#[tokio::test]
async fn a_new_login_and_a_changed_profile_are_picked_up() {
    let host = sso();
    let role = host.aws.role("loader", Role::default());
    host.file(&cache(), &login("canary-of-yesterday", PAST, None));
    let aws = host.profile("dev").unwrap();
    host.refusal(aws.session(&ask(with_role(&role))).await);
    assert_eq!(aws.reload(), Reloaded::Same);
    host.file(&cache(), &login(&host.aws.login(), FUTURE, None));
    assert_eq!(aws.reload(), Reloaded::Supplied);
    assert_eq!(aws.reload(), Reloaded::Same);
    aws.session(&ask(with_role(&role))).await.unwrap();
    let config = fs::read_to_string(host.home.0.join(".aws/config")).unwrap();
    host.file(".aws/config", &format!("{config}[profile more]\nregion = eu-west-1\n"));
    assert_eq!(aws.reload(), Reloaded::Same, "a change of another profile does not matter");
    host.file(".aws/config", "canary");
    let Reloaded::Broken(why) = aws.reload() else { panic!("broken") };
    assert!(why.contains(".aws/config has a line") && !why.contains("canary"), "{why}");
    aws.session(&ask(with_role(&role))).await.unwrap();
    assert_eq!(aws.reload(), Reloaded::Same, "it is reported once");
    let user = host.aws.user();
    let keys = format!("aws_access_key_id = {}\naws_secret_access_key = {}\n", user.id, user.secret);
    host.file(".aws/config", &format!("[profile dev]\n{keys}"));
    assert_eq!(aws.reload(), Reloaded::OtherAccount);
    assert_eq!(aws.caller().await.unwrap().unwrap().arn, user.arn);
}

#[tokio::test]
async fn a_command_runs_once_for_many_containers() {
    let host = Host::new();
    let role = host.aws.role("loader", Role::default());
    let keys = host.aws.session("assumed-role/host/me");
    let end = time::OffsetDateTime::now_utc() + time::Duration::seconds(1800);
    let end = end.format(&time::format_description::well_known::Rfc3339).unwrap().replace('Z', "+00:00");
    let more = format!(r#","Expiration":"{end}","AccountId":"{ACCOUNT}""#);
    let text = format!(
        "read line && exit 9\necho run >>{}/runs\nsleep 0.2\ncat <<'E'\n{}\nE",
        host.home.0.display(),
        printed(&keys, &more)
    );
    let aws = host.command(host.script("tool", &text), Duration::from_secs(9));
    let request = ask(with_role(&role));
    let all = futures_util::future::join_all((0..20).map(|_| aws.session(&request))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    let own = AwsIdentity { own_session: true, ..AwsIdentity::default() };
    let session = aws.session(&ask(own)).await.unwrap();
    assert!((1780..=1800).contains(&left(&session)) && session.account.as_deref() == Some(ACCOUNT));
    assert_eq!(fs::read_to_string(host.home.0.join("runs")).unwrap(), "run\n");
    assert!(aws.kind().starts_with("command ") && aws.kind().ends_with("/tool"), "{}", aws.kind());
}

#[tokio::test]
async fn keys_that_expire_soon_are_not_fetched_at_every_request() {
    let host = Host::new();
    let role = host.aws.role("loader", Role::default());
    let keys = host.aws.session("assumed-role/host/me");
    let file = host.home.0.join("runs");
    let runs = || fs::read_to_string(&file).unwrap().lines().count();
    let own = AwsIdentity { own_session: true, ..AwsIdentity::default() };
    // Clients want 900 s of life, and the command has no newer keys.
    for (life, expected) in [(300, 1), (20, 3)] {
        let _ = fs::remove_file(&file);
        let end = time::OffsetDateTime::now_utc() + time::Duration::seconds(life);
        let end = end.format(&time::format_description::well_known::Rfc3339).unwrap();
        let text = printed(&keys, &format!(r#","Expiration":"{end}""#));
        let tool = host.script("tool", &format!("echo run >>{}\ncat <<'E'\n{text}\nE", file.display()));
        let aws = host.command(tool, Duration::from_secs(9));
        assert!(left(&aws.session(&ask(own.clone())).await.unwrap()) <= life.unsigned_abs());
        aws.session(&ask(own.clone())).await.unwrap();
        aws.session(&ask(with_role(&role))).await.unwrap();
        assert_eq!(runs(), expected, "{life}");
    }
}

#[tokio::test]
async fn answers_of_a_command_are_checked() {
    let host = Host::new();
    let keys = host.aws.session("assumed-role/host/me");
    let caller =
        async |text: &str| host.command(host.script("tool", text), Duration::from_millis(700)).caller().await;
    let cat = |text: &str| format!("cat <<'E'\n{text}\nE");
    for more in [
        "",
        r#","Expiration":"2999-01-01T00:00:00.000Z""#,
        r#","Expiration":"2999-01-01T00:00:00+00:00","More":1"#,
    ] {
        assert_eq!(caller(&cat(&printed(&keys, more))).await.unwrap().unwrap().arn, keys.arn, "{more}");
    }
    let wrong = printed(&keys, "").replace("\"Version\":1", "\"Version\":2");
    for (text, word) in [
        (cat("canary-in-a-message"), "credential_process"),
        (cat("{}"), "Version 1"),
        (cat(&wrong), "Version 1"),
        (cat(r#"{"Version":1,"AccessKeyId":"canary-in-a-message"}"#), "access key"),
        (cat(&printed(&keys, r#","Expiration":"canary-in-a-message""#)), "Expiration"),
        (cat(&printed(&keys, &format!(r#","Expiration":"{PAST}""#))), "have expired"),
        (format!("{}\nexit 255", cat(&printed(&keys, ""))), "returned no AWS keys"),
    ] {
        let why = host.refusal(caller(&text).await);
        assert!(why.contains(word) && why.contains("/tool"), "{word}: {why}");
    }
    assert!(host.transient(caller("sleep 60").await).contains("without an answer"));
    let gone = host.command("/no/such/tool".into(), Duration::from_secs(1)).caller().await;
    assert!(host.refusal(gone).contains("is not there"));
}

#[tokio::test]
async fn a_profile_may_name_a_command() {
    let mut host = Host::new();
    let keys = host.aws.user();
    host.var("OF_THE_USER", "1");
    let text =
        format!("test \"$OF_THE_USER\" = 1 && test \"$1\" = 'a b' && cat <<'E'\n{}\nE", printed(&keys, ""));
    let tool = host.script("tool", &text);
    host.file(".aws/config", &format!("[profile dev]\ncredential_process = {} \"a b\"\n", tool.display()));
    let aws = host.profile("dev").unwrap();
    assert_eq!(aws.caller().await.unwrap().unwrap().arn, keys.arn);
}

#[tokio::test]
async fn keys_that_expire_early_are_fetched_once_more() {
    let host = Host::new();
    let role = host.aws.role("loader", Role::default());
    let (old, new) = (host.aws.session("assumed-role/host/old"), host.aws.session("assumed-role/host/new"));
    let more = r#","Expiration":"2999-01-01T00:00:00Z""#;
    let file = host.file("keys", &printed(&old, more));
    let aws = host.command(host.script("tool", &format!("cat {}", file.display())), Duration::from_secs(9));
    aws.session(&ask(with_role(&role))).await.unwrap();
    host.aws.end(&old);
    let why = host.refusal(aws.session(&ask(with_role(&role))).await);
    assert!(why.contains("ExpiredToken") && why.contains("log in again"), "{why}");
    host.file("keys", &printed(&new, more));
    aws.session(&ask(with_role(&role))).await.unwrap();
    assert_eq!(aws.caller().await.unwrap().unwrap().arn, new.arn);
}

#[tokio::test]
async fn a_job_s_token_is_exchanged_without_keys() {
    let host = Host::new();
    let web = Role { web_token: Some("canary-web-token-1".into()), longest: Some(7200), ..Role::default() };
    let role = host.aws.role("ci", web);
    let path = host.file("token", "canary-web-token-1\n");
    let from = |token_from: String| {
        host.open(AwsCredentials::WebIdentity { token_from, audience: "sts.amazonaws.com".into() })
    };
    let aws = from(format!("file:{}", path.display())).unwrap();
    let long = AwsIdentity {
        lifetime: Duration::from_secs(7200),
        policy: Some(r#"{"Statement":[]}"#.into()),
        ..with_role(&role)
    };
    let session = aws.session(&ask(long)).await.unwrap();
    assert!((7190..=7200).contains(&left(&session)));
    assert!(host.arn(&session).await.ends_with(":assumed-role/ci/kfp-load-0123456789ab"));
    assert_eq!(aws.caller().await.unwrap(), None);
    host.file("token", "canary-web-token-22");
    assert_eq!((aws.reload(), aws.reload()), (Reloaded::Supplied, Reloaded::Same));
    let why = host.refusal(aws.session(&ask(with_role(&role))).await);
    assert!(why.contains("sts:AssumeRoleWithWebIdentity") && !why.contains("web-token"), "{why}");
    let mut tagged = ask(with_role(&role));
    tagged.tags = vec![("a".into(), "b".into())];
    assert!(host.refusal(aws.session(&tagged).await).contains("tags"));
    for identity in [
        AwsIdentity { source_identity: Some("me".into()), ..with_role(&role) },
        AwsIdentity { external_id: Some("id".into()), ..with_role(&role) },
    ] {
        assert!(host.refusal(aws.session(&ask(identity)).await).contains("remove it"));
    }
    let own = AwsIdentity { own_session: true, ..AwsIdentity::default() };
    assert!(host.refusal(aws.session(&ask(own)).await).contains("set role"));
    assert!(host.refusal(from("github".into())).contains("id-token: write"));
    assert!(host.refusal(from("env:ABSENT".into())).contains("ABSENT"));
}

#[tokio::test]
async fn a_token_file_in_variables_or_a_profile_is_exchanged() {
    let mut host = Host::new();
    let web = Role { web_token: Some("canary-web-token".into()), ..Role::default() };
    let (ci, loader) = (host.aws.role("ci", web), host.aws.role("loader", Role::default()));
    let token = host.file("token", "canary-web-token\n");
    host.file(".aws/config", &format!("[profile dev]\nrole_arn = {ci}\nweb_identity_token_file = ~/token\n"));
    host.profile("dev").unwrap().session(&ask(with_role(&loader))).await.unwrap();
    host.var("AWS_WEB_IDENTITY_TOKEN_FILE", &token.display().to_string());
    host.var("AWS_ROLE_ARN", &ci);
    host.var("AWS_ROLE_SESSION_NAME", "job-1");
    for credentials in [AwsCredentials::Default, AwsCredentials::Environment] {
        let aws = host.open(credentials).unwrap();
        assert!(aws.caller().await.unwrap().unwrap().arn.ends_with("/ci/job-1"));
    }
}

#[tokio::test]
async fn a_machine_and_a_container_have_keys_of_their_role() {
    let mut host = Host::new();
    let (role, keys) = (host.aws.role("loader", Role::default()), host.aws.machine());
    host.var("AWS_EC2_METADATA_SERVICE_ENDPOINT", &host.aws.url());
    for credentials in [AwsCredentials::Machine, AwsCredentials::Default] {
        let aws = host.open(credentials).unwrap();
        aws.session(&ask(with_role(&role))).await.unwrap();
        aws.session(&ask(with_role(&role))).await.unwrap();
        assert_eq!(aws.caller().await.unwrap().unwrap().arn, keys.arn);
    }
    assert_eq!(host.aws.of("/latest/api/token").len(), 2, "called once for each source");
    host.var("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{}/agent", host.aws.url()));
    host.var("AWS_CONTAINER_AUTHORIZATION_TOKEN", &host.aws.agent_token());
    let aws = host.open(AwsCredentials::Machine).unwrap();
    aws.session(&ask(with_role(&role))).await.unwrap();
    assert_eq!((host.aws.of("/agent").len(), host.aws.of("/latest/api/token").len()), (1, 2));
    host.var("AWS_CONTAINER_AUTHORIZATION_TOKEN", "canary-of-another-agent");
    let why = host.refusal(host.open(AwsCredentials::Machine).unwrap().caller().await);
    assert!(why.contains("401") && !why.contains("canary"), "{why}");
}

#[tokio::test]
async fn kfp_creds_is_never_its_own_source_of_aws_keys() {
    let mut host = Host::new();
    host.aws.machine();
    host.aws.is_ourselves();
    host.var("AWS_EC2_METADATA_SERVICE_ENDPOINT", &host.aws.url());
    let why = host.refusal(host.open(AwsCredentials::Machine).unwrap().caller().await);
    assert!(why.contains("is kfp-creds itself"), "{why}");
    host.var("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{}/agent", host.aws.url()));
    let why = host.refusal(host.open(AwsCredentials::Default).unwrap().caller().await);
    assert!(why.contains("is kfp-creds itself"), "{why}");
    host.var("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://a.example/x");
    let why = host.refusal(host.open(AwsCredentials::Default).unwrap().caller().await);
    assert!(why.contains("AWS_CONTAINER_CREDENTIALS_FULL_URI"), "{why}");
}

#[tokio::test]
async fn a_host_without_credentials_is_told_what_to_do() {
    let mut host = Host::new();
    let caller =
        async |host: &Host, credentials| host.refusal(host.open(credentials).unwrap().caller().await);
    let why = caller(&host, AwsCredentials::Default).await;
    assert!(why.contains("no AWS credentials on this host") && why.contains("aws configure sso"), "{why}");
    assert!(caller(&host, AwsCredentials::Machine).await.contains("is not a metadata service of AWS"));
    assert!(caller(&host, AwsCredentials::Environment).await.contains("AWS_ACCESS_KEY_ID"));
    host.var("AWS_EC2_METADATA_DISABLED", "True");
    assert!(caller(&host, AwsCredentials::Default).await.contains("AWS_EC2_METADATA_DISABLED"));
    host.var("AWS_PROFILE", "absent");
    assert!(host.refusal(host.open(AwsCredentials::Default)).contains("no AWS profile absent"));
    let settings = |region: Option<&str>, sts: Option<&str>| AwsSettings {
        credentials: AwsCredentials::Environment,
        region: region.map(String::from),
        sts: sts.map(String::from),
        iam: None,
    };
    for (bad, word) in [
        (settings(Some("evil.example/"), None), "aws.region"),
        (settings(None, Some("http://a.example")), "aws.sts"),
    ] {
        let outcome = Aws::open(&bad, &Variables::default(), None, upstream(), None);
        assert!(host.refusal(outcome).contains(word));
    }
}

#[tokio::test]
async fn the_config_sets_the_endpoint_of_the_token_service() {
    let mut host = Host::new();
    let keys = host.aws.user();
    host.keys(&keys);
    host.variables.retain(|(name, _)| !name.contains("ENDPOINT_URL") && name != "AWS_REGION");
    let settings = AwsSettings {
        credentials: AwsCredentials::Environment,
        region: Some(REGION.into()),
        sts: Some(format!("{}/", host.aws.url())),
        iam: None,
    };
    let variables: Variables = host.variables.iter().cloned().collect();
    let aws = Aws::open(&settings, &variables, None, upstream(), None).unwrap();
    assert_eq!(aws.caller().await.unwrap().unwrap().arn, keys.arn);
}

#[tokio::test]
async fn a_busy_token_service_is_not_asked_too_early() {
    let mut host = Host::new();
    host.keys(&host.aws.user());
    let role = host.aws.role("loader", Role::default());
    let aws = host.open(AwsCredentials::Environment).unwrap();
    // STS reports throttling with 400, which other services use for permanent errors.
    host.aws.instead(400, &refusal("Throttling"));
    aws.session(&ask(with_role(&role))).await.unwrap();
    assert_eq!(host.aws.of("AssumeRole").len(), 2);
    for (status, code) in [(400, "Throttling"), (429, "RequestLimitExceeded"), (503, "ServiceUnavailable")] {
        host.aws.asks_to_wait("60");
        let before = host.aws.seen().len();
        host.aws.instead(status, &refusal(code));
        let error = aws.session(&ask(with_role(&role))).await.unwrap_err();
        assert!(
            matches!(&error, SourceError::Transient(why) if why.pause == Some(Duration::from_secs(60))),
            "{error:?}"
        );
        assert_eq!(host.aws.seen().len() - before, 1, "{code}");
    }
}

/// The policy that denies this role's session `name`, as the config requests it.
fn deny(role: &str, user_id: &str) -> Deny {
    Deny { role: role.into(), user_ids: vec![user_id.into()] }
}

#[tokio::test]
async fn one_container_s_session_is_denied_at_iam_and_no_other() {
    let mut host = Host::new();
    let (keys, role) = (host.aws.user(), host.aws.role("team/loader", Role::default()));
    host.keys(&keys);
    let aws = host.open(AwsCredentials::Environment).unwrap();
    let session = aws.session(&ask(with_role(&role))).await.unwrap();
    let user_id = session.user_id.clone().unwrap();
    assert!(user_id.starts_with("AROA") && user_id.ends_with(":kfp-load-0123456789ab"), "{user_id}");

    // The request is signed, but the permission is missing.
    let why = host.refusal(aws.deny(&deny(&role, &user_id)).await);
    assert!(why.contains("needs the permission iam:PutRolePolicy") && why.contains(&role), "{why}");
    assert!(host.aws.inline().is_empty());

    host.aws.may_put_policies(&keys);
    for _ in 0..2 {
        aws.deny(&deny(&role, &user_id)).await.unwrap();
        assert_eq!(host.aws.inline().len(), 1, "a repetition changes nothing");
    }
    assert!(
        host.aws.denies("loader", "kfp-load-0123456789ab")
            && !host.aws.denies("loader", "kfp-load-ffffffffffff")
    );
    aws.deny(&deny(&role, &user_id.replace("0123456789ab", "ffffffffffff"))).await.unwrap();
    assert!(
        host.aws.denies("loader", "kfp-load-0123456789ab")
            && host.aws.denies("loader", "kfp-load-ffffffffffff")
    );

    // IAM would put the policy on the role of the same name in the host's own account.
    let before = host.aws.inline();
    let foreign =
        deny("arn:aws:iam::210987654321:role/loader", &user_id.replace("0123456789ab", "eeeeeeeeeeee"));
    let why = host.refusal(aws.deny(&foreign).await);
    assert!(why.contains("is of another account than the host's (123456789012)"), "{why}");
    assert_eq!(host.aws.inline(), before);

    let gone = deny("arn:aws:iam::123456789012:role/gone", &user_id);
    assert!(host.refusal(aws.deny(&gone).await).contains("the host's account has no such role"));
    for _ in 0..3 {
        host.aws.instead(400, &refusal("Throttling"));
    }
    assert!(host.transient(aws.deny(&deny(&role, &user_id)).await).contains("try again"));
    host.aws.instead(409, &refusal("LimitExceeded"));
    assert!(host.refusal(aws.deny(&deny(&role, &user_id)).await).contains("10 240 characters"));
}

#[tokio::test]
async fn a_session_is_denied_with_a_renewed_login_too() {
    let host = Host::new();
    let (old, new) = (host.aws.session("assumed-role/sso/me"), host.aws.session("assumed-role/sso/me"));
    host.aws.may_put_policies(&new);
    let role = host.aws.role("loader", Role::default());
    host.aws.clock_off_by(590);
    let first = format!("{}/first", host.home.0.display());
    let (before, after) = (printed(&old, ""), printed(&new, ""));
    let script = format!("if mkdir {first} 2>/dev/null; then echo '{before}'; else echo '{after}'; fi");
    let program = host.script("keys", &script);
    host.aws.end(&old);
    let aws = host.command(program, Duration::from_secs(10));
    aws.deny(&deny(&role, "AROAEXAMPLE:kfp-a-1")).await.unwrap();
    assert_eq!(host.aws.inline().len(), 1);
}

#[tokio::test]
async fn sessions_that_cannot_be_denied_are_reported() {
    let mut host = Host::new();
    let token = host.file("token", "another issuer's");
    let web =
        AwsCredentials::WebIdentity { token_from: format!("file:{}", token.display()), audience: "a".into() };
    let ask = deny("arn:aws:iam::123456789012:role/loader", "AROAEXAMPLE:kfp-a-1");
    assert!(host.refusal(host.open(web).unwrap().deny(&ask).await).contains("signs nothing for IAM"));
    let offline = host.open(AwsCredentials::Offline).unwrap();
    assert!(host.refusal(offline.deny(&ask).await).contains("made offline"));
    host.variables.retain(|(name, _)| name != "AWS_ENDPOINT_URL_IAM");
    let keys = host.aws.user();
    host.keys(&keys);
    let elsewhere = deny("arn:aws-iso:iam::123456789012:role/loader", "AROAEXAMPLE:kfp-a-1");
    let aws = host.open(AwsCredentials::Environment).unwrap();
    assert!(host.refusal(aws.deny(&elsewhere).await).contains("endpoints.aws_iam"));
}

#[tokio::test]
async fn an_offline_session_verifies_and_names_its_container() {
    let host = Host::new();
    let google = Offline::new("p", "me@a.example").unwrap();
    let jwks: Value = serde_json::from_str(&google.jwks()).unwrap();
    let settings = AwsSettings { credentials: AwsCredentials::Offline, region: None, sts: None, iam: None };
    let aws = Aws::open(&settings, &Variables::default(), None, upstream(), Some(google.signer())).unwrap();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/loader");
    let lifetime = Duration::from_secs(900);
    let session = aws.session(&ask(AwsIdentity { lifetime, ..with_role(&role) })).await.unwrap();
    let claims = verified(session.session_token.expose(), &jwks).unwrap();
    assert_eq!((claims["sub"].as_str(), claims["account"].as_str()), (Some(role.as_str()), Some(ACCOUNT)));
    assert_eq!(claims["container"], container().as_str());
    assert_eq!(claims["session"], "kfp-load-0123456789ab");
    assert_eq!(claims["key"], session.access_key_id.expose().as_str());
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 900);
    assert!((890..=900).contains(&left(&session)));
    let id = session.access_key_id.expose();
    assert!(id.len() == 20 && id.starts_with("ASIA"), "{}", id.len());
    let secret = aws.offline_secret(session.session_token.expose()).unwrap();
    assert_eq!(secret.expose(), session.secret_access_key.expose());
    let other = aws.session(&ask(AwsIdentity::default())).await.unwrap();
    assert_ne!(other.secret_access_key.expose(), secret.expose());
    assert_eq!(verified(other.session_token.expose(), &jwks).unwrap()["sub"], "000000000000");
    assert_eq!(
        (aws.kind().as_str(), aws.caller().await.unwrap().unwrap().account.as_str()),
        ("offline", "000000000000")
    );
    let alone = host.open(AwsCredentials::Offline).unwrap();
    let foreign = alone.session(&ask(AwsIdentity::default())).await.unwrap();
    assert!(verified(foreign.session_token.expose(), &jwks).is_none(), "another signer");
    assert!(!format!("{aws:?} {session:?}").contains(secret.expose().as_str()));
}
