//! What is dropped, the effect on calls under way, and the cache limits.

use std::sync::atomic::Ordering;

use super::tests::*;
use super::*;
use crate::source::Principal;
use crate::token::{CLOUD_PLATFORM, SCOPE_PREFIX};
use crate::workload::By;

#[tokio::test(start_paused = true)]
async fn another_account_drops_the_cache_and_what_is_under_way() {
    let source = Scripted::new(100, 3600);
    let mint = mint(&source);
    assert_eq!(text(&mint, &ask("cached")).await.unwrap(), "token 1");
    let waiter = {
        let mint = mint.clone();
        #[expect(clippy::disallowed_methods, reason = "the test looks at the outcome")]
        tokio::spawn(async move { text(&mint, &ask("waiting")).await })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    source.reload.lock().unwrap().push_back(Reloaded::OtherAccount);
    assert_eq!(mint.reload(), Reloaded::OtherAccount);
    assert!(mint.cached(&ask("cached"), None, Now::read()).is_none());
    assert_eq!(waiter.await.unwrap().unwrap(), "token 3", "token 2 was the old account's");
    assert_eq!(text(&mint, &ask("waiting")).await.unwrap(), "token 3", "and it was not cached");
}

#[tokio::test(start_paused = true)]
async fn a_late_flight_of_an_old_account_settles_nothing() {
    let source = Scripted::new(10, 3600);
    source.next(1000, Ok(3600));
    let mint = mint(&source);
    let request = ask("a");
    assert!(mint.access(&request, None, Duration::from_millis(20)).await.is_err());
    mint.forget_all();
    assert_eq!(text(&mint, &request).await.unwrap(), "token 2");
    pass(2).await;
    assert_eq!(
        mint.cached(&request, None, Now::read()).unwrap().token.value.expose(),
        "token 2",
        "token 1 came after it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_new_account_is_never_replaced_by_the_old_one() {
    let source = Scripted::new(0, 3600);
    let mint = mint(&source);
    text(&mint, &ask("a")).await.unwrap();
    pass(3100).await;
    source.next(60_000, Ok(3600));
    source.next(60_000, Ok(3600));
    let request = ask("a");
    let (outcome, ()) = tokio::join!(mint.access(&request, None, WAIT), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        mint.forget_all();
    });
    assert!(matches!(outcome, Err(MintFailure::Slow)), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_holder_is_forgotten_with_its_flight() {
    let source = Scripted::new(100, 3600);
    let mint = mint(&source);
    let own = AccessRequest { holder: Some(container("a")), ..ask("x") };
    let other = AccessRequest { holder: Some(container("b")), ..ask("x") };
    // A shared token from before any container came; isolated containers request their own.
    let shared = ask("x");
    let (one, two, three) = tokio::join!(text(&mint, &own), text(&mint, &other), text(&mint, &shared));
    assert!(one.is_ok() && two.is_ok() && three.is_ok());
    let identity = Arc::new(Identity { scopes: Scopes::parse("x"), isolate: true, ..Identity::default() });
    let lives =
        Grant { container: container("b"), identity, by: By::Default, task: Arc::default(), secret: None };
    mint.forget_all_but(std::slice::from_ref(&lives));
    assert!(
        mint.cached(&own, None, Now::read()).is_none() && mint.cached(&other, None, Now::read()).is_some()
    );
    assert!(mint.cached(&shared, None, Now::read()).is_none());

    let (waited, ()) = tokio::join!(text(&mint, &own), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        mint.forget_all_but(std::slice::from_ref(&lives));
    });
    assert!(waited.is_ok(), "whoever waited is answered; the server looks at the lease again");
    assert!(mint.cached(&own, None, Now::read()).is_none(), "but nothing of a dead container comes back");
    assert_eq!(source.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn id_tokens_are_reused_for_four_minutes() {
    let source = Scripted::new(1, 3600);
    let mint = mint(&source);
    let value = async |audience: &str| {
        mint.identity(&id_ask(audience), None, WAIT).await.map(|token| token.value.expose().clone())
    };
    assert_eq!(value("a").await.unwrap(), "token 1");
    assert_eq!(value("b").await.unwrap(), "token 2");
    pass(238).await;
    assert_eq!(value("a").await.unwrap(), "token 1");
    pass(3).await;
    assert_eq!(value("a").await.unwrap(), "token 3");
    pass(250).await;
    source.next(1, transient());
    assert_eq!(value("a").await.unwrap(), "token 3", "still valid: better than an error");
}

#[tokio::test(start_paused = true)]
async fn the_cache_is_bounded_and_the_oldest_make_room() {
    let source = Scripted::new(0, 3600);
    let mint = mint(&source);
    for number in 0..ENTRIES + 100 {
        mint.identity(&id_ask(&number.to_string()), None, WAIT).await.unwrap();
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    assert_eq!(mint.identity.len(), ENTRIES);
    let calls = source.calls();
    mint.identity(&id_ask(&(ENTRIES + 99).to_string()), None, WAIT).await.unwrap();
    assert_eq!(source.calls(), calls, "the newest is still there");
    mint.identity(&id_ask("0"), None, WAIT).await.unwrap();
    assert_eq!(source.calls(), calls + 1, "the oldest is not");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_came_expired_is_an_error() {
    let source = Scripted::new(0, 3600);
    source.next(0, Ok(0));
    let mint = mint(&source);
    assert!(matches!(text(&mint, &ask("a")).await, Err(MintFailure::Transient(_))));
}

#[tokio::test(start_paused = true)]
async fn waking_up_forgets_failures_and_connections() {
    let source = Scripted::new(0, 3600);
    source.next(0, transient());
    let mint = mint(&source);
    assert!(text(&mint, &ask("a")).await.is_err());
    mint.woke();
    assert_eq!(source.reconnects.load(Ordering::Relaxed), 1);
    assert!(text(&mint, &ask("a")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn tokens_that_no_identity_can_request_are_dropped() {
    let source = Scripted::new(0, 3600);
    let mint = mint(&source);
    let identity = |name: &str, change: &dyn Fn(&mut Identity)| {
        let mut identity = Identity {
            name: name.into(),
            service_account: Some("shared@x".into()),
            scopes: Scopes::parse(&format!("a b {CLOUD_PLATFORM}")),
            audiences: vec!["one".into()],
            ..Identity::default()
        };
        change(&mut identity);
        Arc::new(identity)
    };
    let live = identity("live", &|_| {});
    let asked = |of: &Identity, scopes: &str| mint.request(of, None, Some(Scopes::parse(scopes)));
    let part = format!("{SCOPE_PREFIX}bigquery");
    let kept = [asked(&live, "a b"), asked(&live, &part)];
    let gone = [
        asked(&live, "c"),
        asked(&identity("", &|other| other.lifetime = Duration::from_secs(900)), "a"),
        asked(&identity("", &|other| other.subject = Some("a@b".into())), "a"),
        asked(&identity("", &|other| other.service_account = None), "a"),
        mint.request(&identity("", &|other| other.isolate = true), Some(&container("b")), None),
    ];
    let mut dropped = vec![];
    for request in kept.iter().chain(&gone) {
        dropped.push(Arc::downgrade(&mint.access(request, None, WAIT).await.unwrap()));
    }
    let spoken =
        |audience: &str| IdentityRequest { service_account: Some("shared@x".into()), ..id_ask(audience) };
    let one = Arc::downgrade(&mint.identity(&spoken("one"), None, WAIT).await.unwrap());
    let two = Arc::downgrade(&mint.identity(&spoken("two"), None, WAIT).await.unwrap());
    let grant = Grant {
        container: container("a"),
        identity: live.clone(),
        by: By::Default,
        task: Arc::default(),
        secret: None,
    };
    // The flights' own tasks end and release their tokens.
    tokio::time::sleep(Duration::from_millis(1)).await;
    mint.forget_all_but(std::slice::from_ref(&grant));
    let alive: Vec<bool> = dropped.iter().map(|token| token.upgrade().is_some()).collect();
    assert_eq!(alive, [true, true, false, false, false, false, false]);
    assert!(one.upgrade().is_some() && two.upgrade().is_none());
    mint.forget_all_but(&[]);
    assert!(mint.access.len() + mint.identity.len() == 0);
}

#[derive(Debug)]
struct Panicking;

impl Source for Panicking {
    fn principal(&self) -> Principal {
        Principal::default()
    }
    fn access_token<'a>(&'a self, _: &'a AccessRequest) -> Pending<'a, Result<AccessToken, SourceError>> {
        Box::pin(async { panic!("on purpose") })
    }
    fn identity_token<'a>(
        &'a self,
        _: &'a IdentityRequest,
    ) -> Pending<'a, Result<IdentityToken, SourceError>> {
        Box::pin(async { panic!("on purpose") })
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_upstream_is_an_answer_and_the_key_lives_on() {
    let mint = Mint::new(Arc::new(Panicking), Tasks::new(), Recorder::default());
    for _ in 0..3 {
        assert!(matches!(text(&mint, &ask("a")).await, Err(MintFailure::Transient(_))));
    }
}
