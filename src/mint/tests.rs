//! Paused time and a scripted source, so that assertions are exact.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::record::audit::{Audit, AuditSettings};
use crate::secret::Secret;
use crate::source::Principal;
use crate::token::{Boundary, Deadline, MintId, Scopes};

pub(super) const WAIT: Duration = Duration::from_secs(2);

/// One answer of the source: after `delay`, a token with lifetime `life`, or the error.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) delay: Duration,
    pub(super) outcome: Result<u64, SourceError>,
}

/// Plays its script, then repeats `usual`. Tokens are numbered in the order in which the calls began.
#[derive(Debug)]
pub(super) struct Scripted {
    pub(super) script: Mutex<VecDeque<Answer>>,
    pub(super) usual: Answer,
    pub(super) calls: AtomicUsize,
    pub(super) reload: Mutex<VecDeque<Reloaded>>,
    pub(super) reconnects: AtomicUsize,
}

impl Scripted {
    pub(super) fn new(delay_ms: u64, life: u64) -> Arc<Self> {
        Arc::new(Self {
            script: Mutex::default(),
            usual: Answer { delay: Duration::from_millis(delay_ms), outcome: Ok(life) },
            calls: AtomicUsize::new(0),
            reload: Mutex::default(),
            reconnects: AtomicUsize::new(0),
        })
    }

    pub(super) fn next(&self, delay_ms: u64, outcome: Result<u64, SourceError>) {
        let delay = Duration::from_millis(delay_ms);
        self.script.lock().unwrap().push_back(Answer { delay, outcome });
    }

    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    async fn answer(&self) -> Result<(Secret<String>, Deadline), SourceError> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let scripted = self.script.lock().unwrap().pop_front();
        let Answer { delay, outcome } = scripted.unwrap_or_else(|| self.usual.clone());
        tokio::time::sleep(delay).await;
        let life = Duration::from_secs(outcome?);
        Ok((Secret::new(format!("token {number}")), Deadline::after(Now::read(), life)))
    }
}

impl Source for Scripted {
    fn principal(&self) -> Principal {
        Principal::default()
    }

    fn access_token<'a>(&'a self, ask: &'a AccessRequest) -> Pending<'a, Result<AccessToken, SourceError>> {
        Box::pin(async move {
            let (value, expires) = self.answer().await?;
            Ok(AccessToken::new(value, expires, ask.scopes.clone()))
        })
    }

    fn identity_token<'a>(
        &'a self,
        _: &'a IdentityRequest,
    ) -> Pending<'a, Result<IdentityToken, SourceError>> {
        Box::pin(async move {
            let (value, expires) = self.answer().await?;
            Ok(IdentityToken { value, expires, id: MintId::random() })
        })
    }

    fn reload(&self) -> Reloaded {
        self.reload.lock().unwrap().pop_front().unwrap_or(Reloaded::Same)
    }

    fn reconnect(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }
}

pub(super) fn mint(source: &Arc<Scripted>) -> Arc<Mint> {
    Mint::new(source.clone(), Tasks::new(), Recorder::default())
}

pub(super) fn ask(scopes: &str) -> AccessRequest {
    AccessRequest { scopes: Scopes::parse(scopes), lifetime: 3600, ..AccessRequest::default() }
}

pub(super) fn id_ask(audience: &str) -> IdentityRequest {
    IdentityRequest { service_account: None, audience: audience.into(), holder: None }
}

pub(super) fn container(digit: &str) -> ContainerId {
    ContainerId::parse(&digit.repeat(64)).unwrap()
}

pub(super) async fn text(mint: &Mint, ask: &AccessRequest) -> Result<String, MintFailure> {
    mint.access(ask, None, WAIT).await.map(|token| token.value.expose().clone())
}

pub(super) async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

pub(super) fn transient() -> Result<u64, SourceError> {
    Err(SourceError::transient("down"))
}

pub(super) fn refused() -> Result<u64, SourceError> {
    Err(SourceError::refused("log in again"))
}

#[tokio::test(start_paused = true)]
async fn a_stampede_is_one_call_and_all_are_answered_when_it_lands() {
    let source = Scripted::new(300, 3600);
    let mint = mint(&source);
    let began = Instant::now();
    let callers = (0..1000).map(|_| {
        let mint = mint.clone();
        async move {
            let token = text(&mint, &ask("a")).await.unwrap();
            (token, began.elapsed())
        }
    });
    for (token, took) in futures_util::future::join_all(callers).await {
        assert_eq!(token, "token 1");
        assert!(took < Duration::from_millis(350), "{took:?}");
    }
    assert_eq!(source.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stampede_on_a_failing_upstream_is_one_call_too() {
    let source = Scripted::new(300, 3600);
    source.next(300, transient());
    let mint = mint(&source);
    let began = Instant::now();
    let request = ask("a");
    let callers = (0..1000).map(|_| mint.access(&request, None, WAIT));
    for outcome in futures_util::future::join_all(callers).await {
        assert!(matches!(outcome, Err(MintFailure::Transient(_))), "{outcome:?}");
    }
    assert!(began.elapsed() < Duration::from_millis(350));
    assert_eq!(source.calls(), 1);
    // During the pause no upstream call is made; callers wait, and the next try brings a token.
    let began = Instant::now();
    assert_eq!(text(&mint, &ask("a")).await.unwrap(), "token 2");
    assert!(began.elapsed() > Duration::from_millis(100) && began.elapsed() < WAIT, "{:?}", began.elapsed());
    assert_eq!(source.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_pause_that_upstream_requests_is_kept() {
    let source = Scripted::new(0, 3600);
    let why = Reason::from("busy").after(Some(Duration::from_secs(60)));
    source.next(0, Err(SourceError::transient(why)));
    let mint = mint(&source);
    let pause = async || match text(&mint, &ask("a")).await {
        Err(MintFailure::Transient(why)) => why.pause.map(|pause| pause.as_secs()),
        other => panic!("{other:?}"),
    };
    assert_eq!(pause().await, Some(60));
    pass(30).await;
    let began = Instant::now();
    assert_eq!(pause().await, Some(30));
    assert!(began.elapsed() < WAIT, "held for a time that is known");
    assert_eq!(source.calls(), 1);
    pass(30).await;
    assert_eq!(text(&mint, &ask("a")).await.unwrap(), "token 2");
}

#[tokio::test(start_paused = true)]
async fn callers_are_held_for_their_time_while_a_mint_backs_off() {
    let source = Scripted::new(0, 3600);
    let mint = mint(&source);
    for _ in 0..8 {
        source.next(0, transient());
    }
    // Until the pause between two tries exceeds the longest wait of a caller.
    while source.calls() < 7 {
        assert!(text(&mint, &ask("a")).await.is_err());
    }
    let (began, calls) = (Instant::now(), source.calls());
    assert!(matches!(text(&mint, &ask("a")).await, Err(MintFailure::Transient(_))));
    assert_eq!(source.calls(), calls, "nobody asks upstream before the pause is over");
    assert!(began.elapsed() >= WAIT, "not held: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn callers_that_leave_cancel_nothing() {
    let source = Scripted::new(300, 3600);
    let mint = mint(&source);
    let request = ask("a");
    for _ in 0..10 {
        let hurried =
            tokio::time::timeout(Duration::from_millis(10), mint.access(&request, None, WAIT)).await;
        assert!(hurried.is_err());
    }
    let patient = mint.access(&request, None, Duration::from_millis(50)).await;
    assert!(matches!(patient, Err(MintFailure::Slow)), "{patient:?}");
    assert!(mint.cached(&ask("a"), None, Now::read()).is_none());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(mint.cached(&ask("a"), None, Now::read()).is_some(), "the flight finished with nobody waiting");
    assert_eq!(source.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_second_key_is_not_delayed() {
    let source = Scripted::new(10, 3600);
    source.next(20_000, Ok(3600));
    let mint = mint(&source);
    let (slow_ask, quick_ask) = (ask("slow"), ask("quick"));
    let began = Instant::now();
    let (slow, quick) = tokio::join!(mint.access(&slow_ask, None, WAIT), async {
        let token = mint.access(&quick_ask, None, WAIT).await;
        (token, began.elapsed())
    });
    assert!(matches!(slow, Err(MintFailure::Slow)));
    assert!(quick.0.is_ok() && quick.1 < Duration::from_millis(50), "{quick:?}");
}

#[tokio::test(start_paused = true)]
async fn every_part_of_a_request_is_part_of_the_key() {
    let source = Scripted::new(1, 3600);
    let mint = mint(&source);
    let base = ask("a b");
    let asks = [
        base.clone(),
        ask("a"),
        AccessRequest { lifetime: 900, ..base.clone() },
        AccessRequest { subject: Some("x@y".into()), ..base.clone() },
        AccessRequest { boundary: Some(Arc::new(Boundary(vec![]))), ..base.clone() },
        AccessRequest { service_account: Some("x@y".into()), ..base.clone() },
        AccessRequest { holder: Some(container("a")), ..base.clone() },
        AccessRequest { holder: Some(container("b")), ..base.clone() },
    ];
    for (before, ask) in asks.iter().enumerate() {
        assert_eq!(text(&mint, ask).await.unwrap(), format!("token {}", before + 1));
    }
    assert_eq!(text(&mint, &ask("b, a,b")).await.unwrap(), "token 1", "scopes have a normal form");
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_ahead_by_use_and_nobody_waits() {
    let source = Scripted::new(300, 3600);
    let mint = mint(&source);
    assert_eq!(text(&mint, &ask("a")).await.unwrap(), "token 1");
    pass(2690).await;
    assert_eq!(text(&mint, &ask("a")).await.unwrap(), "token 1");
    assert_eq!(source.calls(), 1, "910 s left: no renewal yet");
    pass(20).await;
    let began = Instant::now();
    let (one, two) =
        (mint.cached(&ask("a"), None, Now::read()).unwrap(), text(&mint, &ask("a")).await.unwrap());
    assert_eq!((one.token.value.expose().as_str(), two.as_str()), ("token 1", "token 1"));
    assert_eq!(began.elapsed(), Duration::ZERO);
    pass(1).await;
    assert_eq!(text(&mint, &ask("a")).await.unwrap(), "token 2");
    assert_eq!(source.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_unused_token_is_not_renewed() {
    let source = Scripted::new(1, 3600);
    let mint = mint(&source);
    text(&mint, &ask("a")).await.unwrap();
    pass(3010).await;
    assert_eq!(source.calls(), 1);
    assert!(mint.cached(&ask("a"), None, Now::read()).is_none(), "590 s left is under the floor");
    assert_eq!(text(&mint, &ask("a")).await.unwrap(), "token 2");
}

#[tokio::test(start_paused = true)]
async fn short_lives_are_served_down_to_a_quarter() {
    let source = Scripted::new(0, 400);
    let mint = mint(&source);
    let request = AccessRequest { lifetime: 400, ..ask("a") };
    assert_eq!(text(&mint, &request).await.unwrap(), "token 1");
    pass(240).await;
    assert_eq!(text(&mint, &request).await.unwrap(), "token 1");
    assert_eq!(source.calls(), 1);
    pass(65).await;
    assert_eq!(text(&mint, &request).await.unwrap(), "token 2", "95 of 400 s left");
}

#[tokio::test(start_paused = true)]
async fn a_valid_token_beats_errors_refusals_and_delays() {
    for (delay, outcome) in [(10, transient()), (10, refused()), (60_000, Ok(3600))] {
        let source = Scripted::new(0, 3600);
        let mint = mint(&source);
        text(&mint, &ask("a")).await.unwrap();
        pass(3100).await;
        source.next(delay, outcome.clone());
        let token = mint.access(&ask("a"), None, WAIT).await.unwrap();
        assert_eq!(token.value.expose(), "token 1", "{outcome:?}");
        let left = token.expires.remaining(Now::read()).as_secs();
        assert!((490..=500).contains(&left), "the true rest, not more: {left}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_ran_out_meanwhile_is_not_served_for_an_error() {
    let source = Scripted::new(0, 3600);
    let mint = mint(&source);
    text(&mint, &ask("a")).await.unwrap();
    pass(3599).await;
    source.next(1500, transient());
    assert!(matches!(text(&mint, &ask("a")).await, Err(MintFailure::Transient(_))));
}

#[tokio::test(start_paused = true)]
async fn failing_renewals_back_off() {
    let source = Scripted::new(0, 3600);
    let mint = mint(&source);
    text(&mint, &ask("a")).await.unwrap();
    pass(2800).await;
    for _ in 0..1000 {
        source.next(0, transient());
    }
    for _ in 0..1000 {
        assert_eq!(text(&mint, &ask("a")).await.unwrap(), "token 1");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // 20 s of trying: pauses of 0.5, 1, 2, 4, 5, 5 .. s, each with a jitter of a half.
    assert!((4..=14).contains(&source.calls()), "{}", source.calls());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_kept_for_seconds_and_dropped_by_a_new_login() {
    let source = Scripted::new(10, 3600);
    let mint = mint(&source);
    source.next(10, refused());
    for _ in 0..50 {
        let outcome = text(&mint, &ask("a")).await;
        assert!(
            matches!(&outcome, Err(MintFailure::Refused(why)) if &**why == "log in again"),
            "{outcome:?}"
        );
    }
    assert_eq!(source.calls(), 1);
    source.reload.lock().unwrap().push_back(Reloaded::Renewed);
    assert_eq!(mint.reload(), Reloaded::Renewed);
    assert_eq!(text(&mint, &ask("a")).await.unwrap(), "token 2");

    source.next(10, refused());
    assert!(text(&mint, &ask("b")).await.is_err());
    pass(5).await;
    assert_eq!(text(&mint, &ask("b")).await.unwrap(), "token 4", "also without a reload, a little later");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_is_recorded_for_its_requestor() {
    let file = std::env::temp_dir().join(format!("kc-mint-{}.jsonl", std::process::id()));
    let settings = AuditSettings { file: file.clone(), max_bytes: 1 << 20, keep: 0 };
    let recorder = Recorder::new(Some(Audit::open(settings, "one", Arc::new(|_| {})).unwrap()));
    let mint = Mint::new(Scripted::new(1, 3600), Tasks::new(), recorder.clone());
    let [one, other] =
        ["one", "other"].map(|name| Arc::new(Identity { name: name.into(), ..Identity::default() }));
    mint.access(&ask("a"), Some(Requestor::Local(&one)), WAIT).await.unwrap();
    pass(2800).await;
    assert!(mint.cached(&ask("a"), Some(Requestor::Local(&other)), Now::read()).is_some());
    pass(1).await;
    tokio::time::resume();
    recorder.audit().unwrap().flush(Duration::from_secs(5)).await;
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let told: Vec<(bool, bool)> = text
        .lines()
        .map(|line| (line.contains(r#""identity":"other""#), line.contains(r#""ahead":true"#)))
        .collect();
    assert_eq!(told, [(false, false), (true, true)], "{text}");
}
