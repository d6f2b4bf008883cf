//! Sessions of AWS and tokens of Azure from server and mint, with scripted sources.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kfp_creds::loopback::Paths;
use kfp_creds::secret::Secret;
use kfp_creds::server::LoopbackCallers;
use kfp_creds::token::{Now, TokenKind};
use kfp_creds::workload::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::support::clouds::{self, Answer, Clouds, STORAGE, Script, ask_at};
use crate::support::session::{Folder, program};

const CREDENTIALS: &str = "GET /latest/meta-data/iam/security-credentials/loader";
const IMDS: &str = "GET /metadata/identity/oauth2/token?api-version=2018-02-01&resource=";
const APP_SERVICE: &str = "GET /msi/token?api-version=2019-08-01&resource=";
const METADATA: (&str, &str) = ("Metadata", "true");

fn container(last: u8) -> String {
    format!("GET /v2/credentials/secret-{last}")
}

async fn imds(clouds: &Clouds, last: u8) -> Answer {
    let token = clouds.imds_token(last).await;
    clouds.ask(last, CREDENTIALS, &[("x-aws-ec2-metadata-token", &token)]).await
}

fn kinds(lease: &kfp_creds::registry::Lease) -> Vec<TokenKind> {
    lease.issued().alive(Now::read()).iter().map(|token| token.kind).collect()
}

#[tokio::test]
async fn both_aws_endpoints_serve_one_session_kept_on_the_lease() {
    let clouds = Clouds::start().await;
    let lease = clouds.lease(2, &clouds::identity());
    let first = clouds.ask(2, &container(2), &[]).await;
    assert_eq!(first.status, 200, "{first:?}");
    let (one, other) = (first.json(), imds(&clouds, 2).await.json());
    for (key, value) in [
        ("AccessKeyId", "canary-key-id-1"),
        ("SecretAccessKey", "canary-secret-key-1"),
        ("Token", "canary-session-token-1"),
        ("AccountId", "123456789012"),
    ] {
        assert!(one[key] == value && other[key] == value, "{key}: {one} {other}");
    }
    assert_eq!((&one["RoleArn"], &other["Code"]), (&clouds::ROLE.into(), &"Success".into()));
    assert_eq!(*clouds.aws.asked.lock().unwrap(), ["kfp-load-data-000000000000"]);
    assert_eq!(kinds(&lease), [TokenKind::AwsSession]);
    assert_eq!(clouds.counted("ok"), 2);
    // Google's tree is unchanged, and AWS's answers have none of its headers.
    assert!(!first.headers.contains_key("metadata-flavor"));
    let google = clouds.ask(2, "GET /", &[]).await;
    assert_eq!(
        (google.status.as_u16(), &google.headers["metadata-flavor"]),
        (200, &"Google".parse().unwrap())
    );
}

#[tokio::test]
async fn secrets_and_tokens_of_a_lease_are_refused_elsewhere() {
    let clouds = Clouds::start().await;
    let identity = clouds::identity();
    clouds.lease(2, &identity);
    clouds.lease(3, &identity);
    let token = clouds.imds_token(2).await;
    let header = [("x-aws-ec2-metadata-token", &*token)];
    assert_eq!(clouds.ask(3, &container(2), &[]).await.status, 403);
    assert_eq!(clouds.ask(3, CREDENTIALS, &header).await.status, 401);
    let app_service = format!("{APP_SERVICE}{STORAGE}");
    assert_eq!(clouds.ask(3, &app_service, &[("X-IDENTITY-HEADER", "secret-2")]).await.status, 401);
    assert_eq!(clouds.aws.calls.load(Ordering::SeqCst) + clouds.azure.calls.load(Ordering::SeqCst), 0);
    assert_eq!(clouds.ask(2, CREDENTIALS, &header).await.status, 200);
    // Another container at the same address gets another lease.
    clouds.lease(2, &identity);
    assert_eq!(clouds.ask(2, CREDENTIALS, &header).await.status, 401);
}

#[tokio::test]
async fn a_refused_session_says_why_in_each_form() {
    let clouds = Clouds::start().await;
    clouds.lease(2, &clouds::identity());
    clouds.aws.set(Script::Refuse("sts:AssumeRole is missing"));
    let refused = clouds.ask(2, &container(2), &[]).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["Message"]),
        (403, &"sts:AssumeRole is missing".into())
    );
    let refused = imds(&clouds, 2).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["Code"]), (200, &"AccessDenied".into()));
    assert_eq!(refused.json()["Message"], "sts:AssumeRole is missing");
    assert_eq!(
        (clouds.counted("refused"), clouds.counted("ok")),
        (2, 0),
        "a refusal in a 200 is counted as a refusal"
    );
    let past = clouds.recorder.history().read();
    let refusal = past.refusals.back().unwrap();
    assert_eq!(
        (&*refusal.what, &*refusal.why, refusal.times),
        ("aws-session (403)", "sts:AssumeRole is missing", 2)
    );
}

#[tokio::test]
async fn temporary_failures_are_503_in_each_form() {
    let clouds = Clouds::start().await;
    clouds.lease(2, &clouds::identity());
    clouds.aws.set(Script::Fail("STS did not answer"));
    clouds.azure.set(Script::Fail("Entra did not answer"));
    let container = clouds.ask(2, &container(2), &[]).await;
    assert_eq!(
        (container.status.as_u16(), &container.json()["Message"]),
        (503, &"STS did not answer".into())
    );
    let text = imds(&clouds, 2).await;
    assert_eq!((text.status.as_u16(), &*text.body), (503, "STS did not answer"));
    let azure = clouds.ask(2, &format!("{IMDS}{STORAGE}"), &[METADATA]).await;
    assert_eq!(
        (azure.status.as_u16(), &azure.json()["error_description"]),
        (503, &"Entra did not answer".into())
    );
    assert_eq!(clouds.counted("unavailable"), 3);
}

#[tokio::test]
async fn a_busy_upstream_gives_clients_a_retry_after() {
    let clouds = Clouds::start().await;
    clouds.lease(2, &clouds::identity());
    clouds.aws.set(Script::Busy(60));
    clouds.azure.set(Script::Busy(60));
    let app_service = format!("{APP_SERVICE}{STORAGE}");
    let secret = [("X-IDENTITY-HEADER", "secret-2")];
    let began = std::time::Instant::now();
    for _ in 0..2 {
        for answer in [
            clouds.ask(2, &container(2), &[]).await,
            imds(&clouds, 2).await,
            clouds.ask(2, &format!("{IMDS}{STORAGE}"), &[METADATA]).await,
            clouds.ask(2, &app_service, &secret).await,
        ] {
            assert_eq!(answer.status, 503, "{answer:?}");
            let left: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((55..=60).contains(&left), "{left}");
        }
    }
    assert!(began.elapsed().as_secs() < 2, "a request is held although the waiting time is known");
    let calls = |source: &clouds::Scripted| source.calls.load(Ordering::SeqCst);
    assert_eq!((calls(&clouds.aws), calls(&clouds.azure)), (1, 1), "it was asked again before its time");
    // A permanent failure has no Retry-After.
    clouds.aws.set(Script::Refuse("no"));
    clouds.lease(3, &clouds::identity());
    assert!(!clouds.ask(3, &container(3), &[]).await.headers.contains_key("retry-after"));
}

/// The mint's part: it does not send a token that arrives after its lease has ended, nor put it on a lease.
#[tokio::test]
async fn a_cut_off_between_mint_and_reply_sends_no_byte() {
    let app_service = format!("{APP_SERVICE}{STORAGE}");
    let secret = [("X-IDENTITY-HEADER", "secret-2")];
    for (line, headers) in [(&*container(2), &[][..]), (&*app_service, &secret)] {
        let clouds = Clouds::start().await;
        let lease = clouds.lease(2, &clouds::identity());
        let go = Arc::new(Notify::new());
        clouds.aws.set(Script::Hold(go.clone()));
        clouds.azure.set(Script::Hold(go.clone()));
        let calls = || clouds.aws.calls.load(Ordering::SeqCst) + clouds.azure.calls.load(Ordering::SeqCst);
        let asking = clouds.try_ask(2, line, headers);
        let cutting = async {
            while calls() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::pin!(asking);
        tokio::select! {
            answer = &mut asking => panic!("{line}: {answer:?}"),
            () = cutting => {}
        }
        let ended = clouds.writer.lock().unwrap().cut_off(lease.address(), &lease.grant().container);
        assert!(ended.is_some());
        go.notify_one();
        assert!(asking.await.is_err(), "{line}: bytes went out");
        assert!(kinds(&lease).is_empty());
        assert_eq!(clouds.counted("cut_off"), 1);
    }
}

#[tokio::test]
async fn a_token_of_azure_is_given_for_listed_resources_alone() {
    let clouds = Clouds::start().await;
    let lease = clouds.lease(2, &clouds::identity());
    let secret = [("X-IDENTITY-HEADER", "secret-2")];
    for resource in [STORAGE, "https%3A%2F%2Fstorage.azure.com%2F"] {
        let app = clouds.ask(2, &format!("{APP_SERVICE}{resource}"), &secret).await;
        let machine = clouds.ask(2, &format!("{IMDS}{resource}"), &[METADATA]).await;
        for answer in [app, machine] {
            assert_eq!(answer.status, 200, "{answer:?}");
            let json = answer.json();
            assert_eq!(
                json["access_token"], "canary-azure-1",
                "a trailing slash must not cause another token"
            );
            assert_eq!(json["client_id"], "client-of-source");
            let number = |key: &str| json[key].as_str().unwrap().parse::<u64>().unwrap();
            assert!((3590..=3600).contains(&number("expires_in")), "{json}");
            assert_eq!(number("not_before") + number("expires_in"), number("expires_on"));
        }
    }
    assert_eq!(*clouds.azure.asked.lock().unwrap(), [STORAGE]);
    assert_eq!(kinds(&lease), [TokenKind::AzureToken]);

    let other = "https://vault.azure.net";
    let why = "identity loader (by rule 3) may not ask for this resource: add it to resources in [identity.loader.azure]";
    let app = clouds.ask(2, &format!("{APP_SERVICE}{other}"), &secret).await;
    assert_eq!((app.status.as_u16(), &app.json()["message"]), (403, &why.into()));
    let machine = clouds.ask(2, &format!("{IMDS}{other}"), &[METADATA]).await;
    assert_eq!((machine.status.as_u16(), &machine.json()["error_description"]), (400, &why.into()));
    let foreign = clouds.ask(2, &format!("{IMDS}{STORAGE}&client_id=other"), &[METADATA]).await;
    assert_eq!(foreign.status, 400);
    let own = clouds.ask(2, &format!("{IMDS}{STORAGE}&client_id=client-of-source"), &[METADATA]).await;
    assert_eq!(own.status, 200);
    assert_eq!(clouds.azure.calls.load(Ordering::SeqCst), 1);
    let past = clouds.recorder.history().read();
    assert!(past.refusals.iter().any(|refusal| refusal.why == why), "{past:?}");
}

#[tokio::test]
async fn invalid_resources_are_refused_before_any_request() {
    let clouds = Clouds::start().await;
    clouds.lease(2, &Identity { azure: Some(Arc::default()), ..clouds::identity() });
    let secret = [("X-IDENTITY-HEADER", "secret-2")];
    for bad in ["https://a.example/%3Bid", "https://a.example/%24IFS", "--help", "https%3A%2F%2Fa.example//"]
    {
        let app = clouds.ask(2, &format!("{APP_SERVICE}{bad}"), &secret).await;
        assert_eq!(app.status, 403, "{bad}: {app:?}");
        assert!(app.json()["message"].as_str().unwrap().contains("is not a resource"), "{app:?}");
        let machine = clouds.ask(2, &format!("{IMDS}{bad}"), &[METADATA]).await;
        assert_eq!(machine.status, 400, "{bad}: {machine:?}");
    }
    assert_eq!(clouds.azure.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_rate_limit_of_an_identity_covers_all_its_clouds() {
    let clouds = Clouds::start().await;
    clouds.lease(2, &Identity { rate: Some(2), ..clouds::identity() });
    assert_eq!(clouds.ask(2, &container(2), &[]).await.status, 200);
    assert_eq!(clouds.ask(2, &format!("{IMDS}{STORAGE}"), &[METADATA]).await.status, 200);
    let third = clouds.ask(2, &container(2), &[]).await;
    assert_eq!(third.status, 503);
    assert!(third.json()["Message"].as_str().unwrap().contains("2 requests of this minute"), "{third:?}");
    let fourth = clouds.ask(2, &format!("{IMDS}{STORAGE}"), &[METADATA]).await;
    assert!(fourth.json()["error_description"].as_str().unwrap().contains("2 requests"), "{fourth:?}");
    let flavor = [("Metadata-Flavor", "Google")];
    let token = |what: &str| format!("GET /computeMetadata/v1/instance/service-accounts/default/{what}");
    let google = clouds.ask(2, &token("token"), &flavor).await;
    assert_eq!(google.status, 429);
    for answer in [third, fourth, imds(&clouds, 2).await, google] {
        let left: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((50..=60).contains(&left), "{answer:?}");
    }
    // gcloud accepts only this status here, and a 404 is not a temporary failure.
    let id = clouds.ask(2, &token("identity?audience=x"), &flavor).await;
    assert!(id.status == 404 && !id.headers.contains_key("retry-after"), "{id:?}");
}

#[tokio::test]
async fn an_unknown_caller_gets_the_error_of_its_client() {
    let clouds = Clouds::start().await;
    let asked = [
        "GET /v2/credentials/x",
        "PUT /latest/api/token",
        "GET /msi/token",
        "GET /metadata/instance",
        "GET /",
    ];
    let [container, imds, app, machine, google] = asked.map(|line| clouds.ask(9, line, &[]));
    let (container, imds, app, machine, google) = tokio::join!(container, imds, app, machine, google);
    for answer in [&container, &imds, &app, &machine, &google] {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.body.contains("this container has no identity here"), "{answer:?}");
    }
    assert!(container.json()["Message"].is_string() && app.json()["message"].is_string());
    assert!(machine.json()["error_description"].is_string() && !imds.body.starts_with('{'));
    let flavored =
        [&container, &imds, &app, &machine, &google].map(|a| a.headers.contains_key("metadata-flavor"));
    assert_eq!(flavored, [false, false, false, false, true]);
}

#[tokio::test]
async fn an_identity_has_only_its_own_clouds() {
    let clouds = Clouds::start().await;
    clouds.lease(2, &Identity { google: false, ..clouds::identity() });
    clouds.lease(3, &Identity { aws: None, azure: None, ..clouds::identity() });
    let flavor = [("Metadata-Flavor", "Google")];
    for path in ["GET /", "GET /computeMetadata/v1/instance/service-accounts/default/token"] {
        let absent = clouds.ask(2, path, &flavor).await;
        assert_eq!(absent.status, 404);
        assert!(!absent.headers.contains_key("metadata-flavor") && !absent.headers.contains_key("server"));
        assert_eq!(clouds.ask(3, path, &flavor).await.status, 200, "{path}");
    }
    assert_eq!(clouds.ask(2, &container(2), &[]).await.status, 200);
    assert_eq!(clouds.ask(3, &container(3), &[]).await.status, 403);
    assert_eq!(clouds.ask(3, &format!("{IMDS}{STORAGE}"), &[METADATA]).await.status, 400);
    assert_eq!(clouds.aws.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_wrong_secret_is_audited_and_a_bare_probe_is_not() {
    let clouds = Clouds::start().await;
    clouds.lease(2, &clouds::identity());
    clouds.lease(3, &Identity { google: false, aws: None, azure: None, ..clouds::identity() });
    let resource = format!("{IMDS}{STORAGE}");
    let looks = [CREDENTIALS, "PUT /latest/api/token", "GET /metadata/instance", "GET /", &*resource];
    for line in looks {
        let answer = clouds.ask(3, line, &[METADATA]).await;
        assert!(answer.status.is_client_error(), "{line}: {answer:?}");
    }
    assert_eq!(
        clouds.ask(2, "GET /metadata/instance", &[]).await.status,
        400,
        "the first request of clients"
    );
    assert!(clouds.recorder.history().read().refusals.is_empty());
    let app_service = format!("{APP_SERVICE}{STORAGE}");
    for (line, header, why) in [
        (CREDENTIALS, ("x-aws-ec2-metadata-token", "other"), "A token of IMDSv2 is needed"),
        (&*app_service, ("X-IDENTITY-HEADER", "other"), "X-IDENTITY-HEADER is not the value"),
    ] {
        assert_eq!(clouds.ask(2, line, &[header]).await.status, 401);
        let past = clouds.recorder.history().read();
        let last = past.refusals.back().unwrap();
        assert_eq!(&*last.what, "metadata (401)");
        assert!(last.why.starts_with(why), "{last:?}");
    }
}

#[tokio::test]
async fn the_secret_path_replaces_the_secret_of_a_lease() {
    let clouds = Clouds::start().await;
    let capability = Some(Secret::new("capability".to_string()));
    let at =
        clouds.listen(LoopbackCallers::Local { identity: Arc::new(clouds::identity()), capability }).await;
    let session = ask_at(at, "GET /capability/v2/credentials", &[]).await;
    assert_eq!((session.status.as_u16(), &session.json()["AccessKeyId"]), (200, &"canary-key-id-1".into()));
    let ttl = [("x-aws-ec2-metadata-token-ttl-seconds", "60")];
    let token = ask_at(at, "PUT /capability/latest/api/token", &ttl).await.body;
    let header = [("x-aws-ec2-metadata-token", &*token)];
    assert_eq!(
        ask_at(at, "GET /capability/latest/meta-data/placement/region", &header).await.body,
        "eu-west-1"
    );
    let azure = format!("{}{STORAGE}", APP_SERVICE.replace("/msi", "/capability/msi"));
    assert_eq!(ask_at(at, &azure, &[("X-IDENTITY-HEADER", "capability")]).await.status, 200);
    assert_eq!(ask_at(at, &azure, &[("X-IDENTITY-HEADER", "other")]).await.status, 401);

    // With a wrong secret every path answers 404, whatever the request.
    for wrong in [
        "GET /wrong/v2/credentials",
        "GET /wrong/latest/meta-data/iam/security-credentials/loader",
        "PUT /wrong/latest/api/token",
        "GET /wrong/msi/token",
        "GET /wrong/metadata/identity/oauth2/token",
        "GET /v2/credentials",
        "GET /latest/meta-data/",
    ] {
        let answer = ask_at(at, wrong, &[]).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (404, "no such path"), "{wrong}");
    }
}

#[tokio::test]
async fn an_open_listener_gives_no_credentials_for_a_bare_get() {
    let clouds = Clouds::start().await;
    let at = clouds
        .listen(LoopbackCallers::Local { identity: Arc::new(clouds::identity()), capability: None })
        .await;
    assert_eq!(ask_at(at, "GET /v2/credentials", &[]).await.status, 403);
    assert_eq!(ask_at(at, &format!("{APP_SERVICE}{STORAGE}"), &[]).await.status, 401);
    let ttl = [("x-aws-ec2-metadata-token-ttl-seconds", "60")];
    let token = ask_at(at, "PUT /latest/api/token", &ttl).await.body;
    assert_eq!(ask_at(at, CREDENTIALS, &[("x-aws-ec2-metadata-token", &token)]).await.status, 200);
    let azure = ask_at(at, &format!("{APP_SERVICE}{STORAGE}"), &[("X-IDENTITY-HEADER", "any")]).await;
    assert_eq!(azure.status, 200);
}

#[tokio::test]
async fn a_container_on_loopback_has_a_path_of_its_own() {
    let clouds = Clouds::start().await;
    let paths = Paths::new("127.0.0.1:1".parse().unwrap());
    let (one, other) = (paths.take().unwrap(), paths.take().unwrap());
    let lease = clouds.lease(2, &clouds::identity());
    let lease = clouds.admit(one.address(), lease.grant().clone());
    let at = clouds.listen(LoopbackCallers::Leases(paths)).await;
    let path = format!("GET /{}/v2/credentials", one.segment());
    let session = ask_at(at, &path, &[]).await;
    assert_eq!(session.status, 200, "{session:?}");
    assert_eq!(kinds(&lease), [TokenKind::AwsSession]);
    for behind in ["v2/credentials", "latest/meta-data/iam/security-credentials/", "metadata/instance"] {
        let nobody = format!("GET /{}/{behind}", other.segment());
        assert_eq!(ask_at(at, &nobody, &[]).await.status, 404, "{behind}");
    }
    // The header may hold the secret of the path, or the one in the container's environment.
    for header in [one.segment(), "secret-2"] {
        let line = format!("{}{STORAGE}", APP_SERVICE.replace("/msi", &format!("/{}/msi", one.segment())));
        assert_eq!(ask_at(at, &line, &[("X-IDENTITY-HEADER", header)]).await.status, 200);
    }
}

/// The deviations that `kfp-creds conformance` finds, by case.
async fn deviations(at: std::net::SocketAddr) -> (serde_json::Value, Vec<String>) {
    deviations_at(format!("http://{at}"), vec![]).await
}

/// The same, with a path and variables.
async fn deviations_at(target: String, env: Vec<(&'static str, String)>) -> (serde_json::Value, Vec<String>) {
    let asking = tokio::task::spawn_blocking(move || {
        let folder = Folder::new("conformance");
        program(&folder.0).args(["conformance", "--json", "--target", &target]).envs(env).output().unwrap()
    });
    let out = asking.await.unwrap();
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let of = report["deviations"].as_array().unwrap();
    let names = of.iter().map(|one| one["case"].as_str().unwrap().to_string()).collect();
    (report, names)
}

#[tokio::test]
async fn conformance_runs_the_cases_of_the_clouds_that_answer() {
    let clouds = Clouds::start().await;
    let all = Identity { aws: clouds::identity().aws, azure: Some(Arc::default()), ..Identity::default() };
    let none = Identity { aws: None, azure: None, ..all.clone() };
    let listen =
        |identity| clouds.listen(LoopbackCallers::Local { identity: Arc::new(identity), capability: None });
    let (of_all, none) = (listen(all).await, listen(none).await);
    let (with, deviating) = deviations(of_all).await;
    assert!(deviating.is_empty(), "{with}");
    assert!(!with.to_string().contains("canary"), "{with}");
    let (without, deviating) = deviations(none).await;
    assert!(deviating.is_empty(), "{without}");
    let count = |report: &serde_json::Value| report["conforming"].as_u64().unwrap();
    assert_eq!(count(&with), count(&without) + 18);
    assert!(clouds.aws.calls.load(Ordering::SeqCst) > 0 && clouds.azure.calls.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn conformance_runs_the_cases_of_forms_whose_secret_is_known() {
    let clouds = Clouds::start().await;
    let capability = || Some(Secret::new("capability".to_string()));
    let listen = |identity: Identity| {
        clouds.listen(LoopbackCallers::Local { identity: Arc::new(identity), capability: capability() })
    };
    let all = Identity { aws: clouds::identity().aws, azure: Some(Arc::default()), ..Identity::default() };
    let none = Identity { aws: None, azure: None, ..all.clone() };
    let (of_all, of_none) = (listen(all).await, listen(none).await);
    let (with, deviating) = deviations_at(format!("http://{of_all}/capability"), vec![]).await;
    assert!(deviating.is_empty(), "{with}");
    assert!(!with.to_string().contains("canary") && !with.to_string().contains("capability"), "{with}");
    let (without, deviating) = deviations_at(format!("http://{of_none}/capability"), vec![]).await;
    assert!(deviating.is_empty(), "{without}");
    let count = |report: &serde_json::Value| report["conforming"].as_u64().unwrap();
    assert_eq!(count(&with), count(&without) + 18 + 9, "{with}");

    // A wrong server that a container's variables point to.
    let at = wrong_server().await;
    let env = vec![
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://{at}/creds")),
        ("IDENTITY_ENDPOINT", format!("http://{at}/msi/token")),
        ("IDENTITY_HEADER", "canary".into()),
    ];
    let (report, deviating) = deviations_at(format!("http://{at}"), env).await;
    for case in
        ["container-credentials", "container-forwarded", "app-service-token", "app-service-wrong-header"]
    {
        assert!(deviating.iter().any(|name| name == case), "{case}: {report}");
    }
    assert!(!report.to_string().contains("canary"), "{report}");
}

/// A server that serves IMDSv1, sends no lifetime, and sets Google's header everywhere.
async fn wrong_server() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let read = stream.read(&mut head).await.unwrap_or_default();
            let head = String::from_utf8_lossy(&head[..read]).into_owned();
            let (status, flavor, body) = match head.split(' ').nth(1).unwrap_or_default() {
                "/latest/api/token" => ("200 OK", "", "token"),
                path if path.starts_with("/latest/") => ("200 OK", "", "role"),
                path if path.starts_with("/metadata/") && !head.contains("\r\nMetadata: true") => {
                    ("400 Bad Request", "", r#"{"error":"x","error_description":"Required metadata header"}"#)
                }
                _ => ("200 OK", "Metadata-Flavor: Google\r\n", "{}"),
            };
            let length = body.len();
            let reply = format!("HTTP/1.1 {status}\r\n{flavor}Content-Length: {length}\r\n\r\n{body}");
            let _ = stream.write_all(reply.as_bytes()).await;
        }
    });
    at
}

#[tokio::test]
async fn deviations_of_aws_and_azure_servers_are_listed() {
    let (report, _) = deviations(wrong_server().await).await;
    let of = |name: &str| {
        let all = report["deviations"].as_array().unwrap();
        let found = all.iter().find(|deviation| deviation["case"] == name);
        found.unwrap_or_else(|| panic!("no deviation in {name}: {report}"))["deviation"].to_string()
    };
    assert!(of("aws-token").contains("no x-aws-ec2-metadata-token-ttl-seconds"), "{report}");
    assert!(of("aws-v1").contains("status 200, expected 401"), "{report}");
    assert!(of("aws-credentials").contains("JSON"), "{report}");
    assert!(of("azure-token").contains("on a path of another cloud"), "{report}");
    assert!(of("azure-without-resource").contains("status 200, expected 400"), "{report}");
}
