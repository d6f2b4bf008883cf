//! The control socket of a session, `SESSION.ctl` beside its Docker socket: the session's owner reads its
//! status there and cuts containers off. HTTP/1 and JSON; 0600 in a folder that no other user can enter.
//!
//! | request | answer |
//! |---|---|
//! | `GET /status` | [`Status`] |
//! | `GET /history` | [`Past`](crate::record::history::Past); on the page only |
//! | `GET /metrics` | the counters, for Prometheus |
//! | `POST /cut-off?container=ID\|NAME\|PIPELINE/COMPONENT`, `POST /cut-off?all` | `{"cut_off": [..]}` |
//! | `GET /kill-switch?account=..` | what disabling that account breaks; `POST` does it |
//! | `GET /deny-aws?container=..`, `GET /deny-aws?all` | which AWS sessions IAM would deny; `POST` does it |
//! | `GET /explain?container=..` | text; `/explain/created` of one without an identity |
//!
//! `[metrics] listen` serves only `/metrics`, on loopback; the page of `serve` ([`page`]) serves
//! `/status` and `/history`, behind a capability.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;

use super::about::About;
use super::credentials::Credentials;
use super::deny::Denied;
use super::explain::{explained, explained_created};
use super::named::select;
use super::status::Status;
use super::{deny, held, kill_switch, page};
use crate::console::Console;
use crate::docker::proxy::{LiveRules, ProxySettings, Rules};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::by_hand::JoinedMember;
use crate::mint::{MadeSession, Mint};
use crate::policy::Decision;
use crate::process::{Tasks, accept_each};
use crate::quote;
use crate::record::Recorder;
use crate::record::metrics::Gauges;
use crate::secret::Secret;
use crate::server::under;
use crate::token::Now;
use crate::workload::{Grant, Identity};

/// The state that requests read or change.
#[derive(Debug)]
pub(super) struct ControlServer {
    pub(super) about: About,
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) mint: Arc<Mint>,
    pub(super) rules: LiveRules,
    pub(super) recorder: Recorder,
    pub(super) console: Console,
    proxy: Arc<ProxySettings>,
}

type ControlReply = Response<Full<Bytes>>;

impl ControlServer {
    pub(super) fn new(
        about: About,
        lifecycle: &Arc<Lifecycle>,
        credentials: &Credentials,
        proxy: &Arc<ProxySettings>,
    ) -> Arc<Self> {
        let (rules, recorder) = (proxy.rules.clone(), proxy.recorder.clone());
        let (mint, console) = (credentials.mint.clone(), proxy.console.clone());
        let (lifecycle, proxy) = (lifecycle.clone(), proxy.clone());
        Arc::new(Self { about, lifecycle, mint, rules, recorder, console, proxy })
    }

    fn status(&self) -> Status {
        Status::of(&self.about, &self.mint, &self.lifecycle, &self.recorder, &self.rules.now().identities)
    }

    /// Answers on the control socket until the session stops.
    pub(super) async fn serve(self: Arc<Self>, listener: UnixListener, tasks: Tasks) {
        let attend = |(stream, _)| self.clone().attend(stream, Listener::Control, &tasks);
        accept_each(tasks.stop(), || listener.accept(), attend).await;
    }

    /// Serves the counters or the page on loopback until the session stops.
    pub(super) async fn serve_loopback(
        self: Arc<Self>,
        listener: TcpListener,
        through: Listener,
        tasks: Tasks,
    ) {
        let attend = |(stream, _)| self.clone().attend(stream, through.clone(), &tasks);
        accept_each(tasks.stop(), || listener.accept(), attend).await;
    }

    fn attend(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        through: Listener,
        tasks: &Tasks,
    ) {
        let stop = tasks.stop().clone();
        tasks.spawn("control connection", async move {
            let through = Arc::new(through);
            let service = service_fn(move |request| {
                let (this, through) = (self.clone(), through.clone());
                async move { Ok::<_, Infallible>(this.answer(&request, &through).await) }
            });
            let serving = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = stop.cancelled() => {}
                _ = serving => {}
            }
        });
    }

    async fn answer<B>(self: &Arc<Self>, request: &Request<B>, through: &Listener) -> ControlReply {
        let query = |name: &str| {
            let pairs = request.uri().query().unwrap_or_default();
            url::form_urlencoded::parse(pairs.as_bytes())
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        if !matches!(through, Listener::Control) && !is_local(request) {
            return text(StatusCode::FORBIDDEN, "the Host header names another server\n");
        }
        let path = match through {
            Listener::Page(capability) => {
                under(capability, request.uri().path()).map_or("no such path", |(_, path)| path)
            }
            Listener::Control | Listener::Metrics => request.uri().path(),
        };
        match (request.method(), path, through) {
            (&Method::GET, "/metrics", Listener::Control | Listener::Metrics) => self.metrics(),
            (&Method::GET, "/", Listener::Page(_)) => page::reply(),
            (&Method::GET, "/status", Listener::Page(_)) => json_reply(&self.status()),
            (&Method::GET, "/history", Listener::Page(_)) => json_reply(&self.recorder.history().read()),
            (&Method::GET, "/status", Listener::Control) => json_reply(&self.status()),
            (&Method::GET, "/explain", Listener::Control) => {
                self.explain(&query("container").unwrap_or_default())
            }
            (&Method::GET, "/explain/created", Listener::Control) => {
                self.explain_created(&query("container").unwrap_or_default()).await
            }
            (&Method::POST, "/cut-off", Listener::Control) if query("all").is_some() => {
                self.cut_off(&self.lifecycle.members())
            }
            (&Method::POST, "/cut-off", Listener::Control) => {
                match select(&self.lifecycle.members(), &query("container").unwrap_or_default()) {
                    Ok(found) => self.cut_off(&found),
                    Err((status, why)) => text(status, &why),
                }
            }
            (&Method::GET, "/kill-switch", Listener::Control) => {
                match self.consequences(&query("account").unwrap_or_default()) {
                    Ok(said) => text(StatusCode::OK, &said),
                    Err((status, why)) => text(status, &why),
                }
            }
            (&Method::POST, "/kill-switch", Listener::Control) => {
                let (this, account) = (self.clone(), query("account").unwrap_or_default());
                self.to_its_end(async move { this.disable(&account).await }).await
            }
            (&Method::GET | &Method::POST, "/deny-aws", Listener::Control) => {
                // A request without a name is for no container, not for all.
                let container = query("all").is_none().then(|| query("container").unwrap_or_default());
                self.deny_aws(container.as_deref(), request.method() == Method::POST).await
            }
            _ => text(StatusCode::NOT_FOUND, "no such path\n"),
        }
    }

    /// Runs `work` to its end and record even if the client goes away meanwhile.
    async fn to_its_end(&self, work: impl Future<Output = ControlReply> + Send + 'static) -> ControlReply {
        let (done, reply) = oneshot::channel();
        self.proxy.tasks.spawn("change in the cloud", async move {
            // If the reply cannot be sent, nobody waits for it.
            let _ = done.send(work.await);
        });
        let lost =
            |_| text(StatusCode::INTERNAL_SERVER_ERROR, "the outcome is not known; look at the audit log\n");
        reply.await.unwrap_or_else(lost)
    }

    /// The AWS sessions of the container that `wanted` names, also after its end; without a name, those of all
    /// containers that have an identity now.
    fn aws_sessions(&self, wanted: Option<&str>) -> Result<Vec<Denied>, deny::NotDenied> {
        let members = self.lifecycle.members();
        let all = self.mint.aws_sessions();
        let Some(wanted) = wanted else {
            let ids: HashSet<_> = members.iter().map(|member| member.grant.container.clone()).collect();
            let is_chosen = |made: &MadeSession| ids.contains(&made.grant.container);
            return deny::chosen(&self.rules.now(), all, is_chosen, "any container");
        };
        let mut known: HashMap<_, _> =
            all.iter().map(|made| (made.grant.container.clone(), made.grant.clone())).collect();
        known.extend(members.into_iter().map(|member| (member.grant.container.clone(), member.grant)));
        let known: Vec<Grant> = known.into_values().collect();
        let ids: HashSet<_> = select(&known, wanted)?.into_iter().map(|grant| grant.container).collect();
        let is_chosen = |made: &MadeSession| ids.contains(&made.grant.container);
        deny::chosen(&self.rules.now(), all, is_chosen, &quote::name(wanted))
    }

    /// Shows what would be denied; denies it if `meant`.
    async fn deny_aws(self: &Arc<Self>, container: Option<&str>, meant: bool) -> ControlReply {
        match self.aws_sessions(container) {
            Err((status, why)) => text(status, &why),
            Ok(found) if meant => {
                let this = self.clone();
                self.to_its_end(async move { this.deny(&found).await }).await
            }
            Ok(found) => {
                let said: Vec<String> = found.iter().map(Denied::consequences).collect();
                text(StatusCode::OK, &said.concat())
            }
        }
    }

    /// Denies the sessions of each role at once. Those of one role are denied all, or none.
    async fn deny(&self, found: &[Denied]) -> ControlReply {
        let (mut said, mut status) = (String::new(), StatusCode::OK);
        let outcomes = join_all(found.iter().map(|one| self.mint.deny_aws(&one.deny))).await;
        for (one, outcome) in found.iter().zip(outcomes) {
            let outcome = outcome.map_err(|error| error.to_string());
            let policy = one.deny.policy_name();
            for made in &one.sessions {
                let why = outcome.as_ref().err().map(String::as_str);
                self.recorder.denied(&made.grant, &made.role, &policy, why);
            }
            match outcome {
                Ok(()) => {
                    said.push_str(&one.done());
                    self.console.notice(format!(
                        "{} AWS sessions of {} were denied by hand: policy {policy}",
                        one.sessions.len(),
                        one.deny.role
                    ));
                }
                Err(why) => {
                    status = StatusCode::BAD_GATEWAY;
                    said.push_str(&one.failed(&why));
                }
            }
        }
        text(status, &said)
    }

    fn consequences(&self, account: &str) -> Result<String, (StatusCode, String)> {
        let has = |identity: &Identity| {
            identity.service_account.iter().chain(&identity.others).any(|own| own == account)
        };
        let members = self.lifecycle.members();
        let live = members.iter().filter(|member| member.lease.is_some() && has(&member.grant.identity));
        kill_switch::consequences(&self.rules.now(), account, live.count())
    }

    async fn disable(&self, account: &str) -> ControlReply {
        if let Err((status, why)) = self.consequences(account) {
            return text(status, &why);
        }
        match self.mint.disable(account).await {
            Ok(()) => {
                self.recorder.disabled(account, None);
                self.console.notice(format!("{account} was disabled by hand: every token of it has ended"));
                text(StatusCode::OK, &format!("disabled {account}\n"))
            }
            Err(error) => {
                self.recorder.disabled(account, Some(&error.to_string()));
                text(StatusCode::BAD_GATEWAY, &format!("{account} is as it was: {error}\n"))
            }
        }
    }

    fn metrics(&self) -> ControlReply {
        let now = Now::read();
        let leases: Vec<_> = self.lifecycle.members().into_iter().filter_map(|member| member.lease).collect();
        let outstanding = leases.iter().map(|lease| lease.issued().alive(now).len()).sum();
        let gauges = Gauges { leases: leases.len(), outstanding, audit_lost: self.recorder.lost() };
        let mut reply = text(StatusCode::OK, &self.recorder.metrics().render(gauges));
        let form = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        reply.headers_mut().insert(CONTENT_TYPE, form);
        reply
    }

    fn explain(&self, wanted: &str) -> ControlReply {
        match select(&self.lifecycle.members(), wanted) {
            Ok(found) => {
                let rules = self.rules.now();
                let all = found.iter().map(|member| explained_live(&rules, member));
                text(StatusCode::OK, &all.collect::<Vec<_>>().join("\n"))
            }
            Err((status, why)) => text(status, &why),
        }
    }

    async fn explain_created(&self, wanted: &str) -> ControlReply {
        match explained_created(&self.about.session, &self.proxy, wanted).await {
            Ok(Some(said)) => text(StatusCode::OK, &said),
            Ok(None) => {
                text(StatusCode::NOT_FOUND, &format!("there is no container {}\n", quote::name(wanted)))
            }
            Err(why) => text(StatusCode::BAD_GATEWAY, &why),
        }
    }

    fn cut_off(&self, members: &[JoinedMember]) -> ControlReply {
        let mut done = Vec::new();
        for member in members {
            if let Some(alive) = self.lifecycle.cut_off_for_good(&member.grant.container) {
                done.push(json!({
                    "container": member.grant.container.as_str(),
                    "task": member.grant.task.to_string(),
                    "tokens": held::tokens(&alive, Now::read()),
                }));
            }
        }
        json_reply(&json!({ "cut_off": done }))
    }
}

/// A container keeps what it was given, even if the rules have changed since.
fn explained_live(rules: &Rules, member: &JoinedMember) -> String {
    let mut text = explained(rules, &member.grant.task);
    let (has, by) = (&member.grant.identity, member.grant.by);
    match rules.policy.decide(&member.grant.task) {
        Decision::Attach(identity, _) if identity == *has => {}
        _ => text
            .push_str(&format!("the rules changed: until it ends it has identity {} (by {by})\n", has.name)),
    }
    text
}

/// The listener that a request came through, which determines what it may do.
#[derive(Clone, Debug)]
pub(super) enum Listener {
    Control,
    Metrics,
    /// Clients that know the path may only read.
    Page(Arc<Secret<String>>),
}

/// Prevents DNS rebinding: a web page can make its own name point to this machine.
fn is_local<B>(request: &Request<B>) -> bool {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    matches!(name, "localhost" | "[::1]") || name.parse().is_ok_and(|at: std::net::Ipv4Addr| at.is_loopback())
}

fn json_reply(value: &impl serde::Serialize) -> ControlReply {
    let mut reply = text(StatusCode::OK, &serde_json::to_string(value).unwrap_or_default());
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

fn text(status: StatusCode, text: &str) -> ControlReply {
    let mut reply = Response::new(Full::new(Bytes::from(text.to_owned())));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{By, ContainerId, Task};

    fn member(id: &str, name: Option<&str>, component: &str) -> JoinedMember {
        let task = Task {
            name: name.map(String::from),
            pipeline: Some("etl".into()),
            component: Some(component.into()),
            ..Task::default()
        };
        let container = ContainerId::parse(&format!("{id:0<64}")).unwrap();
        let grant = Grant {
            container,
            identity: Arc::new(Identity::default()),
            by: By::Default,
            task: Arc::new(task),
            secret: None,
        };
        JoinedMember { grant, address: [10, 0, 0, 1].into(), lease: None, barred: false, held: vec![] }
    }

    #[test]
    fn a_container_is_found_by_id_name_or_task() {
        let members = [
            member("abcd1", Some("/one"), "load"),
            member("abcd2", None, "load"),
            member("ffff", Some("abcd1"), "train"),
        ];
        let found = |wanted: &str| {
            let found = select(&members, wanted).map_err(|(status, _)| status.as_u16())?;
            Ok::<_, u16>(
                found.iter().map(|m| m.grant.container.as_str()[..5].to_string()).collect::<Vec<_>>(),
            )
        };
        assert_eq!(found("one").unwrap(), ["abcd1"]);
        assert_eq!(found("etl/load").unwrap(), ["abcd1", "abcd2"]);
        assert_eq!(found("abcd2").unwrap(), ["abcd2"]);
        assert_eq!(found("abcd1"), Err(409), "one container's name is another's id");
        assert_eq!(found("abcd"), Err(409));
        for nothing in ["", "abc", "two", "etl", "0000"] {
            assert_eq!(found(nothing), Err(404), "{nothing}");
        }
    }
}
