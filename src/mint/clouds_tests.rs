//! Sessions of AWS and tokens of Azure under paused time, from scripted sources.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::tests::{Scripted, WAIT, container};
use super::*;
use crate::cloud::{AwsIdentity, AzureIdentity, Cloud};
use crate::secret::Secret;
use crate::source::azure::AzurePrincipal;
use crate::token::{Deadline, MintId, RenderedReply};
use crate::workload::{By, Task};

#[derive(Debug)]
struct Aws {
    life: u64,
    calls: AtomicUsize,
    reload: Mutex<Option<Reloaded>>,
    refuses: Mutex<Option<&'static str>>,
    /// The life of the next session, if it is another.
    next: Mutex<Option<u64>>,
}

impl AwsSource for Aws {
    fn kind(&self) -> String {
        "scripted".into()
    }

    fn session<'a>(&'a self, ask: &'a AwsRequest) -> Pending<'a, Result<AwsSession, SourceError>> {
        Box::pin(async move {
            let number = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(why) = *self.refuses.lock().unwrap() {
                return Err(SourceError::refused(why));
            }
            let life = self.next.lock().unwrap().take().unwrap_or(self.life);
            let secret = |text: String| Secret::new(text);
            Ok(AwsSession {
                access_key_id: secret(format!("ASIA{number}")),
                secret_access_key: secret(format!("secret {number}")),
                session_token: secret(format!("token {number}")),
                expires: Deadline::after(Now::read(), Duration::from_secs(life)),
                account: None,
                user_id: ask.holder.as_ref().map(|_| format!("AROAEXAMPLE:{}", ask.session_name)),
                id: MintId::random(),
                shown: RenderedReply::default(),
            })
        })
    }

    fn reload(&self) -> Reloaded {
        self.reload.lock().unwrap().take().unwrap_or(Reloaded::Same)
    }
}

#[derive(Debug, Default)]
struct Azure {
    calls: AtomicUsize,
    takes: Duration,
}

impl AzureSource for Azure {
    fn kind(&self) -> String {
        "scripted".into()
    }

    fn principal(&self) -> AzurePrincipal {
        AzurePrincipal::default()
    }

    fn token<'a>(&'a self, ask: &'a AzureRequest) -> Pending<'a, Result<AzureToken, SourceError>> {
        Box::pin(async move {
            let number = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
            tokio::time::sleep(self.takes).await;
            Ok(AzureToken {
                value: Secret::new(format!("token {number}")),
                expires: Deadline::after(Now::read(), Duration::from_secs(3600)),
                resource: ask.resource.clone(),
                client_id: None,
                id: MintId::random(),
                shown: RenderedReply::default(),
            })
        })
    }
}

fn aws(life: u64) -> Arc<Aws> {
    let (reload, refuses, next) = Default::default();
    Arc::new(Aws { life, calls: AtomicUsize::new(0), reload, refuses, next })
}

fn mint(aws: &Arc<Aws>) -> Arc<Mint> {
    mint_of(aws, &Arc::default())
}

fn mint_of(aws: &Arc<Aws>, azure: &Arc<Azure>) -> Arc<Mint> {
    let (google, azure) = (Scripted::new(1, 3600), azure.clone());
    let sources = Sources { google, aws: Some(aws.clone()), azure: Some(azure) };
    Mint::of_clouds(sources, Tasks::new(), Recorder::default())
}

fn identity() -> Arc<Identity> {
    let aws = AwsIdentity { tags: true, ..AwsIdentity::default() };
    let azure = AzureIdentity { resources: vec!["https://a.example".into()], client_id: None };
    Arc::new(Identity { aws: Some(Arc::new(aws)), azure: Some(Arc::new(azure)), ..Identity::default() })
}

fn task() -> Task {
    Task { pipeline: Some("etl".into()), component: Some("load".into()), ..Task::default() }
}

async fn key(mint: &Mint, ask: &AwsRequest) -> String {
    let session = mint.aws_session(ask, None, WAIT).await.unwrap();
    session.access_key_id.expose().clone()
}

#[test]
fn a_session_is_named_after_its_container() {
    let (mint, identity) = (mint(&aws(3600)), identity());
    let named = |component: &str| {
        let task = Task { component: Some(component.into()), ..task() };
        mint.aws_request(&identity, Some(&container("a")), &task).unwrap().session_name
    };
    assert_eq!(named("load data/2"), "kfp-load-data-2-aaaaaaaaaaaa");
    let long = named(&format!("{}-17", "x".repeat(200)));
    assert!(long.len() == 64 && long.ends_with("x-17-aaaaaaaaaaaa") && long.starts_with("kfp-xx"), "{long}");
    let ask = mint.aws_request(&identity, None, &task()).unwrap();
    assert_eq!(ask.session_name, "kfp-local");
    assert_eq!(ask.tags, [("pipeline".into(), "etl".into()), ("component".into(), "load".into())]);
    let foreign = Task { pipeline: Some("a & b".into()), component: Some("x".repeat(300)), ..task() };
    let ask = mint.aws_request(&identity, None, &foreign).unwrap();
    assert_eq!((&*ask.tags[0].1, ask.tags[1].1.len()), ("a - b", 256));
    assert!(mint.aws_request(&Identity::default(), None, &task()).is_none());
}

#[tokio::test(start_paused = true)]
async fn every_container_has_a_session_of_its_own() {
    let (source, identity) = (aws(3600), identity());
    let mint = mint(&source);
    let of = |digit| mint.aws_request(&identity, Some(&container(digit)), &task()).unwrap();
    assert_eq!(key(&mint, &of("a")).await, "ASIA1");
    assert_eq!(key(&mint, &of("a")).await, "ASIA1");
    assert_eq!(key(&mint, &of("b")).await, "ASIA2");
    let grant = Grant {
        container: container("b"),
        identity: identity.clone(),
        by: By::Default,
        task: Arc::default(),
        secret: None,
    };
    mint.forget_all_but(&[grant]);
    assert!(mint.cached_aws_session(&of("a"), None, Now::read()).is_none());
    assert!(mint.cached_aws_session(&of("b"), None, Now::read()).is_some());
}

#[tokio::test(start_paused = true)]
async fn each_cloud_has_a_health_of_its_own() {
    let (source, identity) = (aws(0), identity());
    let mint = mint(&source);
    mint.azure_token(&mint.azure_request(&identity, None, "https://a.example").unwrap(), None, WAIT)
        .await
        .unwrap();
    let refused = Mint::new(Scripted::new(1, 3600), Tasks::new(), Recorder::default());
    let ask = refused.aws_request(&identity, None, &task()).unwrap();
    refused.aws_session(&ask, None, WAIT).await.unwrap_err();
    let seen = |mint: &Mint| {
        Cloud::ALL.map(|cloud| {
            let health = mint.health(cloud);
            (health.minted.is_some(), health.failed.is_some())
        })
    };
    assert_eq!(seen(&mint), [(false, false), (false, false), (true, false)]);
    assert_eq!(seen(&refused), [(false, false), (false, false), (false, false)], "no source was asked");
}

#[tokio::test(start_paused = true)]
async fn sessions_of_host_programs_outlive_every_lease() {
    let (source, identity) = (aws(3600), identity());
    let mint = mint(&source);
    let session = mint.aws_request(&identity, None, &Task::default()).unwrap();
    let token = mint.azure_request(&identity, None, "https://a.example").unwrap();
    let make = async || {
        key(&mint, &session).await;
        mint.azure_token(&token, None, WAIT).await.unwrap();
        mint.forget_all_but(&[]);
        (
            mint.cached_aws_session(&session, None, Now::read()).is_some(),
            mint.cached_azure_token(&token, None, Now::read()).is_some(),
        )
    };
    assert_eq!(make().await, (false, false), "nobody can ask for what the first trial made");
    mint.serves_local(&identity);
    assert_eq!(make().await, (true, true));
    let other = Arc::new(Identity { aws: Some(Arc::default()), ..Identity::default() });
    let others = mint.aws_request(&other, None, &Task::default()).unwrap();
    key(&mint, &others).await;
    mint.forget_all_but(&[]);
    assert!(mint.cached_aws_session(&others, None, Now::read()).is_none(), "programs have another identity");
}

#[tokio::test(start_paused = true)]
async fn a_session_made_before_its_lease_outlives_other_leases() {
    let (source, identity) = (aws(3600), identity());
    let mint = mint(&source);
    let ask = mint.aws_request(&identity, Some(&container("a")), &task()).unwrap();
    let arriving = mint.arriving(&container("a"));
    key(&mint, &ask).await;
    mint.forget_all_but(&[]);
    assert!(mint.cached_aws_session(&ask, None, Now::read()).is_some());
    drop(arriving);
    mint.forget_all_but(&[]);
    assert!(mint.cached_aws_session(&ask, None, Now::read()).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_short_session_is_replaced_after_240_seconds() {
    let (source, identity) = (aws(900), identity());
    let mint = mint(&source);
    let ask = mint.aws_request(&identity, Some(&container("a")), &task()).unwrap();
    key(&mint, &ask).await;
    let mut age = 0;
    // A renewal begins 60 s before, so that nobody waits for it.
    for (second, calls) in [(170, 1), (190, 2), (350, 2), (380, 3)] {
        tokio::time::sleep(Duration::from_secs(second - age)).await;
        age = second;
        key(&mint, &ask).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(source.calls.load(Ordering::Relaxed), calls, "after {second} s");
    }
}

/// Whoever asks: a container, or a program on this machine, which no lease ends.
#[tokio::test(start_paused = true)]
async fn handed_out_sessions_live_long_enough_for_clients() {
    for (life, least) in [(700, 660), (900, 660), (1799, 660), (1800, 900), (3600, 900), (43_200, 900)] {
        for holder in [None, Some(container("a"))] {
            let (source, identity) = (aws(life), identity());
            let mint = mint(&source);
            mint.serves_local(&identity);
            let ask = mint.aws_request(&identity, holder.as_ref(), &task()).unwrap();
            // Of a prime, so that all ages are met.
            for _ in 0..2 * life / 23 {
                tokio::time::sleep(Duration::from_secs(23)).await;
                let session = match mint.cached_aws_session(&ask, None, Now::read()) {
                    Some(fresh) => fresh.token,
                    None => mint.aws_session(&ask, None, WAIT).await.unwrap(),
                };
                let left = session.expires.remaining(Now::read()).as_secs();
                assert!(left >= least, "{left} s are left of {life} s, {holder:?}");
            }
            assert!(source.calls.load(Ordering::Relaxed) >= 2, "{life}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_too_soon_is_not_handed_out() {
    let (source, identity) = (aws(659), identity());
    let mint = mint(&source);
    let ask = mint.aws_request(&identity, Some(&container("a")), &task()).unwrap();
    let failure = mint.aws_session(&ask, None, WAIT).await.unwrap_err();
    assert!(
        matches!(&failure, MintFailure::Transient(why) if why.to_string().contains("too soon")),
        "{failure}"
    );
    assert!(mint.cached_aws_session(&ask, None, Now::read()).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_came_too_short_is_asked_for_again() {
    let (source, identity) = (aws(3600), identity());
    let mint = mint(&source);
    let ask = mint.aws_request(&identity, Some(&container("a")), &task()).unwrap();
    *source.next.lock().unwrap() = Some(600);
    mint.aws_ahead(&ask, Requestor::Local(&identity));
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(mint.cached_aws_session(&ask, None, Now::read()).is_none());
    assert_eq!(key(&mint, &ask).await, "ASIA2", "a login meanwhile counts at the next look");
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_says_its_own_reason_at_the_end() {
    let (source, identity) = (aws(3600), identity());
    let mint = mint(&source);
    let ask = mint.aws_request(&identity, Some(&container("a")), &task()).unwrap();
    key(&mint, &ask).await;
    *source.refuses.lock().unwrap() = Some("run: aws sso login");
    tokio::time::sleep(Duration::from_secs(2900)).await;
    assert_eq!(key(&mint, &ask).await, "ASIA1", "700 s left: the session is still worth more than a failure");
    tokio::time::sleep(Duration::from_secs(100)).await;
    let failure = mint.aws_session(&ask, None, WAIT).await.unwrap_err();
    assert!(
        matches!(&failure, MintFailure::Refused(why) if why.to_string() == "run: aws sso login"),
        "{failure}"
    );
}

#[tokio::test(start_paused = true)]
async fn azure_tokens_are_shared_and_go_with_the_last_lease() {
    let (source, identity) = (aws(3600), identity());
    let mint = mint(&source);
    let of = |digit| mint.azure_request(&identity, Some(&container(digit)), "https://a.example/").unwrap();
    assert_eq!(of("a"), of("b"));
    let first = mint.azure_token(&of("a"), None, WAIT).await.unwrap();
    let second = mint.azure_token(&of("b"), None, WAIT).await.unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    mint.forget_all_but(&[]);
    assert!(mint.cached_azure_token(&of("a"), None, Now::read()).is_none());
}

#[tokio::test(start_paused = true)]
async fn another_account_voids_the_sessions_of_its_cloud_alone() {
    let (source, identity) = (aws(3600), identity());
    let mint = mint(&source);
    let ask = mint.aws_request(&identity, Some(&container("a")), &task()).unwrap();
    let azure = mint.azure_request(&identity, None, "https://a.example").unwrap();
    key(&mint, &ask).await;
    mint.azure_token(&azure, None, WAIT).await.unwrap();
    *source.reload.lock().unwrap() = Some(Reloaded::OtherAccount);
    assert_eq!(mint.reload_clouds()[0], (Cloud::Aws, Reloaded::OtherAccount));
    assert!(mint.cached_aws_session(&ask, None, Now::read()).is_none());
    assert!(mint.cached_azure_token(&azure, None, Now::read()).is_some());
    assert_eq!(key(&mint, &ask).await, "ASIA2");
}

/// A new login may be another person's.
#[tokio::test(start_paused = true)]
async fn a_new_login_voids_sessions_that_are_its_own() {
    let source = aws(3600);
    let mint = mint(&source);
    let ask = |role: Option<&str>| {
        let aws =
            AwsIdentity { own_session: role.is_none(), role: role.map(Into::into), ..AwsIdentity::default() };
        let identity = Identity { aws: Some(Arc::new(aws)), ..Identity::default() };
        mint.aws_request(&identity, Some(&container("a")), &task()).unwrap()
    };
    let (own, assumed) = (ask(None), ask(Some("arn:aws:iam::123456789012:role/r")));
    assert_eq!((key(&mint, &own).await, key(&mint, &assumed).await), ("ASIA1".into(), "ASIA2".into()));
    *source.reload.lock().unwrap() = Some(Reloaded::Supplied);
    mint.reload_clouds();
    assert!(mint.cached_aws_session(&own, None, Now::read()).is_none());
    assert!(mint.cached_aws_session(&assumed, None, Now::read()).is_some(), "a role stays the same");
    assert_eq!(key(&mint, &own).await, "ASIA3");
}

#[tokio::test(start_paused = true)]
async fn a_cloud_without_credentials_is_refused() {
    let mint = Mint::new(Scripted::new(1, 3600), Tasks::new(), Recorder::default());
    let ask = mint.aws_request(&identity(), None, &task()).unwrap();
    let failure = mint.aws_session(&ask, None, WAIT).await.unwrap_err();
    assert!(matches!(&failure, MintFailure::Refused(why) if why.to_string().contains("[aws]")), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn one_identity_cannot_fill_azure_for_the_others() {
    let azure = Arc::new(Azure { takes: Duration::from_secs(20), ..Azure::default() });
    let mint = mint_of(&aws(3600), &azure);
    let [greedy, other] =
        ["greedy", "other"].map(|name| Arc::new(Identity { name: name.into(), ..(*identity()).clone() }));
    let ask =
        |number: usize| mint.azure_request(&greedy, None, &format!("https://{number}.example")).unwrap();
    let asks: Vec<_> = (0..20).map(ask).collect();
    let all = asks.iter().map(|ask| mint.azure_token(ask, Some(Requestor::Local(&greedy)), WAIT));
    let outcomes = futures_util::future::join_all(all).await;
    let said = |outcome: &Result<_, MintFailure>| matches!(outcome, Err(MintFailure::Transient(why)) if why.to_string().contains("being made for this identity"));
    assert_eq!(outcomes.iter().filter(|outcome| said(outcome)).count(), 4, "{outcomes:?}");
    assert_eq!(azure.calls.load(Ordering::Relaxed), 16);
    let _ = mint.azure_token(&ask(21), Some(Requestor::Local(&other)), WAIT).await;
    assert_eq!(azure.calls.load(Ordering::Relaxed), 17, "another identity has a count of its own");
    tokio::time::sleep(Duration::from_secs(30)).await;
    let _ = mint.azure_token(&ask(22), Some(Requestor::Local(&greedy)), WAIT).await;
    assert_eq!(azure.calls.load(Ordering::Relaxed), 18, "those that ended make room");
}
