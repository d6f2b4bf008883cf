//! `kfp-creds status`: shows the state of this user's sessions, read from their control sockets.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::about::About;
use super::held::{HeldToken, held, tokens};
use super::sessions::{self, Peer};
use crate::cloud::Cloud;
use crate::config::Environment;
use crate::console::rfc3339;
use crate::failure::{Ended, Failure};
use crate::lifecycle::Lifecycle;
use crate::mint::Mint;
use crate::quote;
use crate::record::Recorder;
use crate::token::Now;
use crate::workload::Identity;

/// One session at one moment: the answer to `GET /status`. Times are RFC 3339, in UTC.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Status {
    pub(super) session: String,
    pub(super) mode: String,
    pub(super) since: String,
    pub(super) engine: String,
    pub(super) network: String,
    pub(super) relay: RelayStatus,
    pub(super) source: SourceHealth,
    /// AWS and Azure, if the session has them.
    #[serde(default)]
    pub(super) clouds: Vec<CloudHealth>,
    pub(super) identities: Vec<IdentityStatus>,
    pub(super) leases: Vec<Row>,
    pub(super) totals: Totals,
    pub(super) audit: Option<AuditStatus>,
    /// Changes whenever the history does.
    #[serde(default)]
    pub(super) history: u64,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct RelayStatus {
    pub(super) address: String,
    pub(super) replaced: u64,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct SourceHealth {
    pub(super) kind: String,
    pub(super) account: String,
    pub(super) project: String,
    pub(super) last_mint: Option<String>,
    pub(super) last_failure: Option<String>,
    /// The reason of the last failure, without secrets.
    pub(super) why: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct CloudHealth {
    /// `aws` or `azure`.
    pub(super) cloud: String,
    pub(super) kind: String,
    pub(super) last_mint: Option<String>,
    pub(super) last_failure: Option<String>,
    pub(super) why: Option<String>,
}

/// The same fields as in [`SourceHealth`] and [`CloudHealth`].
type Outcomes<'a> = (&'a Option<String>, &'a Option<String>, &'a Option<String>);

impl Status {
    /// The reason why a cloud gives no token now, if its last try failed.
    pub(super) fn failing(&self) -> Option<String> {
        let source = &self.source;
        let own = (&source.last_mint, &source.last_failure, &source.why);
        let others = self.clouds.iter().map(|of| (&of.last_mint, &of.last_failure, &of.why));
        // Both are RFC 3339 in UTC and of equal length, so they sort as text.
        let failing = |(minted, failed, _): &Outcomes<'_>| failed.is_some() && minted < failed;
        let found = std::iter::once(own).chain(others).find(failing);
        found.map(|(.., why)| why.clone().unwrap_or_default())
    }
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct IdentityStatus {
    pub(super) name: String,
    pub(super) account: Option<String>,
    /// Further accounts.
    #[serde(default)]
    pub(super) others: Vec<String>,
    pub(super) scopes: String,
    pub(super) lifetime: u64,
    /// False if its containers get no tokens of Google.
    #[serde(default = "yes")]
    pub(super) google: bool,
    /// The AWS access of its containers, as `config check` prints it.
    #[serde(default)]
    pub(super) aws: Option<String>,
    #[serde(default)]
    pub(super) azure: Option<String>,
}

/// Sessions of earlier versions have only Google.
fn yes() -> bool {
    true
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Row {
    pub(super) container: String,
    pub(super) task: String,
    #[serde(default)]
    pub(super) pipeline: Option<String>,
    pub(super) identity: String,
    /// `default`, or the rule that gave the identity.
    pub(super) by: String,
    pub(super) address: String,
    /// `live`, `stopped` or `cut off`.
    pub(super) state: String,
    pub(super) since: Option<String>,
    pub(super) tokens: Vec<HeldToken>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Totals {
    pub(super) attached: u64,
    pub(super) cut_off: u64,
    /// Tokens that containers without a lease may still use, and when the last of them expires.
    pub(super) outstanding: usize,
    pub(super) until: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct AuditStatus {
    pub(super) file: String,
    pub(super) lost: u64,
    pub(super) losing: bool,
}

impl Status {
    pub(super) fn of(
        about: &About,
        mint: &Mint,
        lifecycle: &Lifecycle,
        recorder: &Recorder,
        identities: &[Arc<Identity>],
    ) -> Self {
        let now = Now::read();
        let (health, principal) = (mint.health(Cloud::Google), mint.principal());
        let summary = lifecycle.summary();
        let (last_failure, why) = health.failed.map(|(at, why)| (rfc3339(at), why)).unzip();
        let row = |member: crate::lifecycle::by_hand::JoinedMember| Row {
            container: member.grant.container.as_str().into(),
            task: member.grant.task.to_string(),
            pipeline: member.grant.task.pipeline.clone(),
            identity: member.grant.identity.name.clone(),
            by: member.grant.by.to_string(),
            address: member.address.to_string(),
            state: match (&member.lease, member.barred) {
                (_, true) => "cut off",
                (Some(_), false) => "live",
                (None, false) => "stopped",
            }
            .into(),
            since: member.lease.as_ref().map(|lease| rfc3339(lease.since())),
            tokens: tokens(&member.tokens(now), now),
        };
        Self {
            session: about.session.clone(),
            mode: about.mode.into(),
            since: rfc3339(about.since),
            engine: about.engine.clone(),
            network: about.network.clone(),
            relay: RelayStatus {
                address: about.relay.clone(),
                replaced: recorder.metrics().relays_replaced(),
            },
            source: SourceHealth {
                kind: if about.kind.is_empty() { String::new() } else { principal.kind.into() },
                account: about.account.clone(),
                project: about.project.clone(),
                last_mint: health.minted.map(rfc3339),
                last_failure,
                why,
            },
            clouds: about.clouds.iter().map(|(cloud, kind)| of_cloud(mint, *cloud, kind)).collect(),
            identities: identities.iter().map(|identity| who(identity)).collect(),
            leases: lifecycle.members().into_iter().map(row).collect(),
            totals: Totals {
                attached: summary.attached,
                cut_off: summary.cut_off,
                outstanding: summary.outstanding.len(),
                until: summary.outstanding.iter().map(crate::token::Deadline::wall).max().map(rfc3339),
            },
            audit: recorder.audit().map(|audit| AuditStatus {
                file: quote::path(audit.file()),
                lost: audit.lost(),
                losing: audit.losing(),
            }),
            history: recorder.history().changes(),
        }
    }
}

fn who(identity: &Identity) -> IdentityStatus {
    IdentityStatus {
        name: identity.name.clone(),
        account: identity.service_account.clone(),
        others: identity.others.clone(),
        scopes: identity.scopes.to_string(),
        lifetime: identity.lifetime.as_secs(),
        google: identity.google,
        aws: identity.aws.as_ref().map(ToString::to_string),
        azure: identity.azure.as_ref().map(ToString::to_string),
    }
}

fn of_cloud(mint: &Mint, cloud: Cloud, kind: &str) -> CloudHealth {
    let health = mint.health(cloud);
    let (last_failure, why) = health.failed.map(|(at, why)| (rfc3339(at), why)).unzip();
    let last_mint = health.minted.map(rfc3339);
    CloudHealth { cloud: cloud.word().into(), kind: kind.into(), last_mint, last_failure, why }
}

/// The table for a person. The containers' creators chose the names: no control character reaches the
/// terminal.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.head(&mut text);
        if self.leases.is_empty() {
            let _ = writeln!(text, "no container has an identity now");
        } else {
            let _ = writeln!(
                text,
                "{:<12}  {:<30}  {:<14}  {:<15}  {:<7}  {:<20}  TOKENS",
                "CONTAINER", "TASK", "IDENTITY", "ADDRESS", "STATE", "SINCE"
            );
        }
        for row in &self.leases {
            let tokens = held(&row.tokens);
            let _ = writeln!(
                text,
                "{:<12}  {:<30}  {:<14}  {:<15}  {:<7}  {:<20}  {tokens}",
                row.container.get(..12).unwrap_or(&row.container),
                row.task,
                row.identity,
                row.address,
                row.state,
                row.since.as_deref().unwrap_or("-"),
            );
        }
        let Totals { attached, cut_off, outstanding, until } = &self.totals;
        let _ = write!(text, "{attached} attached, {cut_off} ended");
        let _ = match until {
            Some(until) => writeln!(text, "; those hold {outstanding} tokens, the last until {until}"),
            None => writeln!(text, "; those hold no token"),
        };
        f.write_str(
            &text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect::<String>(),
        )
    }
}

impl Status {
    fn head(&self, text: &mut String) {
        let Self { session, mode, since, engine, network, relay, source, .. } = self;
        let _ = writeln!(text, "session   {session}  {mode} since {since}  ({engine}; network {network})");
        let _ = writeln!(text, "relay     {}, replaced {} times", relay.address, relay.replaced);
        if !source.kind.is_empty() {
            let _ =
                writeln!(text, "source    {}: {}, project {}", source.kind, source.account, source.project);
            outcomes(text, (&source.last_mint, &source.last_failure, &source.why));
        }
        for CloudHealth { cloud, kind, last_mint, last_failure, why } in &self.clouds {
            let _ = writeln!(text, "{cloud:<9} {kind}");
            outcomes(text, (last_mint, last_failure, why));
        }
        if let Some(audit) = &self.audit {
            let losing = if audit.losing { ", losing more now" } else { "" };
            let _ = writeln!(text, "audit     {}, {} entries lost{losing}", audit.file, audit.lost);
        }
        for IdentityStatus { name, account, others, scopes, lifetime, google, aws, azure } in &self.identities
        {
            let account = account.as_deref().unwrap_or("your own account");
            let account = std::iter::once(account).chain(others.iter().map(String::as_str));
            let account = account.collect::<Vec<_>>().join(" and ");
            let _ = match google {
                true => writeln!(text, "identity  {name}: {account}, {lifetime} s, {scopes}"),
                false => writeln!(text, "identity  {name}: nothing of Google"),
            };
            for (cloud, what) in [(Cloud::Aws, aws), (Cloud::Azure, azure)] {
                if let Some(what) = what {
                    let _ = writeln!(text, "          {name} on {cloud}: {what}");
                }
            }
        }
    }
}

fn outcomes(text: &mut String, (minted, failed, why): Outcomes<'_>) {
    let _ = match minted {
        Some(at) => writeln!(text, "minted    {at}"),
        None => writeln!(text, "minted    nothing yet"),
    };
    if let (Some(at), Some(why)) = (failed, why) {
        let _ = writeln!(text, "failed    {at}: {}", why.replace('\n', " "));
    }
}

/// Prints the state of all sessions of this user, or of the one named. Exit code 0 even if no session runs,
/// unless one was named.
pub async fn status(
    env: &Environment,
    session: Option<&str>,
    watch: bool,
    json: bool,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    loop {
        let mut found = Vec::new();
        for peer in sessions::find(env, session).await? {
            // A session that ends while it is asked counts as not running.
            if let Ok(text) = ask(&peer).await {
                found.push(text);
            }
        }
        if watch && !json {
            print("\x1b[H\x1b[2J");
        }
        if json {
            print(&format!("[{}]", found.join(",")));
        } else if found.is_empty() {
            print("no session runs");
        }
        for text in found.iter().filter(|_| !json) {
            let status: Status = serde_json::from_str(text)
                .map_err(|_| Failure::NotPermitted("a session of another version answered".into()))?;
            print(status.to_string().trim_end());
        }
        if !watch {
            return Ok(Ended::Done);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn ask(peer: &Peer) -> Result<String, Failure> {
    peer.call("GET", "/status").await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(leases: usize) -> Status {
        let row = |n: usize| Row {
            container: format!("{n:064x}"),
            task: "etl/load\x1b[2J".into(),
            pipeline: Some("etl".into()),
            identity: "loader".into(),
            by: "rule 1".into(),
            address: "169.254.168.2".into(),
            state: "live".into(),
            since: Some("2026-11-23T12:00:00Z".into()),
            tokens: vec![HeldToken {
                mint: "00112233aabbccdd".into(),
                kind: "access".into(),
                expires: "2026-11-23T13:00:00Z".into(),
                left: 3000,
            }],
        };
        Status {
            session: "0123abcd".into(),
            mode: "serve".into(),
            since: "2026-11-23T12:00:00Z".into(),
            engine: "docker 20.10.24".into(),
            network: "kfp-creds".into(),
            relay: RelayStatus { address: "169.254.169.254".into(), replaced: 1 },
            source: SourceHealth {
                kind: "offline".into(),
                account: "a@x".into(),
                project: "p".into(),
                ..SourceHealth::default()
            },
            leases: (0..leases).map(row).collect(),
            totals: Totals { attached: 1, ..Totals::default() },
            ..Status::default()
        }
    }

    #[test]
    fn each_cloud_has_its_own_lines_and_google_none_without_it() {
        let mut status = full(0);
        status.source = SourceHealth::default();
        let of = |cloud: &str, minted: Option<&str>, failed: Option<&str>| CloudHealth {
            cloud: cloud.into(),
            kind: "profile dev".into(),
            last_mint: minted.map(Into::into),
            last_failure: failed.map(Into::into),
            why: failed.map(|_| "AccessDenied".into()),
        };
        let (early, late) = (Some("2026-11-23T12:00:00Z"), Some("2026-11-23T13:00:00Z"));
        status.clouds = vec![of("aws", late, early), of("azure", None, None)];
        let text = status.to_string();
        let expected = "aws       profile dev\nminted    2026-11-23T13:00:00Z\nfailed    2026-11-23T12:00:00Z: AccessDenied\n\
            azure     profile dev\nminted    nothing yet\n";
        assert!(text.contains(expected) && !text.contains("source "), "{text}");
        assert_eq!(status.failing(), None);
        status.source.last_mint = late.map(Into::into);
        status.clouds[0] = of("aws", early, late);
        assert_eq!(status.failing().as_deref(), Some("AccessDenied"), "Google's tokens do not hide it");
    }

    #[test]
    fn the_table_says_what_a_container_holds_of_each_cloud() {
        let mut status = full(1);
        let token = |kind: &str, hour: u64| HeldToken {
            mint: "m".into(),
            kind: kind.into(),
            expires: format!("2026-11-23T{hour}:00:00Z"),
            left: hour,
        };
        status.leases[0].tokens = vec![
            token("azure-token", 14),
            token("access", 13),
            token("azure-token", 15),
            token("aws-session", 16),
        ];
        let text = status.to_string();
        let held = "Google Cloud: 1, the last until 2026-11-23T13:00:00Z (in 13 s); AWS: 1, the last until \
            2026-11-23T16:00:00Z (in 16 s); Azure: 2, the last until 2026-11-23T15:00:00Z (in 15 s)\n";
        assert!(text.contains(held), "{text}");
        status.leases[0].tokens.clear();
        assert!(status.to_string().contains("  none\n"));
    }

    #[test]
    fn the_status_table_has_aligned_columns() {
        let expected = "session   0123abcd  serve since 2026-11-23T12:00:00Z  (docker 20.10.24; network kfp-creds)\n\
            relay     169.254.169.254, replaced 1 times\nsource    offline: a@x, project p\nminted    nothing yet\n\
            CONTAINER     TASK                            IDENTITY        ADDRESS          STATE    SINCE                 TOKENS\n\
            000000000000  etl/load?[2J                    loader          169.254.168.2    live     2026-11-23T12:00:00Z  \
            1, the last until 2026-11-23T13:00:00Z (in 3000 s)\n\
            1 attached, 0 ended; those hold no token\n";
        assert_eq!(full(1).to_string(), expected);
        assert!(full(0).to_string().contains("no container has an identity now"));
    }
}
