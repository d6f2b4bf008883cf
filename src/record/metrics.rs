//! Counters in the text format of Prometheus (exposition format 0.0.4). All possible names and label values
//! are declared here: none comes from a container.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::token::TokenKind;

/// The kind of a metadata request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RouteLabel {
    /// `…/token`
    Token,
    /// `…/identity`
    Identity,
    /// All other keys.
    Metadata,
    /// `?wait_for_change=true`
    Wait,
}

impl RouteLabel {
    const ALL: [Self; 4] = [Self::Token, Self::Identity, Self::Metadata, Self::Wait];

    pub fn word(self) -> &'static str {
        ["token", "identity", "metadata", "wait"][self as usize]
    }
}

/// The outcome of a request: the class of its status, or no answer because its lease ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answered {
    Ok,
    Redirect,
    Refused,
    Unavailable,
    CutOff,
    /// No lease at the caller's address.
    Unknown,
}

impl Answered {
    const ALL: [Self; 6] =
        [Self::Ok, Self::Redirect, Self::Refused, Self::Unavailable, Self::CutOff, Self::Unknown];

    pub fn of(status: u16) -> Self {
        match status {
            ..300 => Self::Ok,
            300..400 => Self::Redirect,
            400..500 => Self::Refused,
            _ => Self::Unavailable,
        }
    }

    fn word(self) -> &'static str {
        ["ok", "redirect", "refused", "unavailable", "cut_off", "unknown_caller"][self as usize]
    }
}

/// How a call upstream ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MintOutcome {
    Ok,
    Refused,
    Transient,
}

impl MintOutcome {
    const ALL: [Self; 3] = [Self::Ok, Self::Refused, Self::Transient];

    fn word(self) -> &'static str {
        ["ok", "refused", "transient"][self as usize]
    }
}

/// The outcome for a created container.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Attach {
    Attached,
    /// No rule gives it an identity, or it may have none.
    Passed,
    Failed,
}

impl Attach {
    const ALL: [Self; 3] = [Self::Attached, Self::Passed, Self::Failed];

    fn word(self) -> &'static str {
        ["attached", "passed", "failed"][self as usize]
    }
}

/// Why a lease ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// Its container ended.
    Ended,
    /// `kfp-creds cut-off`.
    ByHand,
    /// The session ended.
    Session,
    /// Another container has its address.
    AddressTaken,
}

impl Cause {
    const ALL: [Self; 4] = [Self::Ended, Self::ByHand, Self::Session, Self::AddressTaken];

    pub fn word(self) -> &'static str {
        ["ended", "by_hand", "session", "address_taken"][self as usize]
    }
}

/// Upper bounds, in seconds.
const BUCKETS: [f64; 10] = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Debug, Default)]
struct Histogram {
    /// Not cumulative; the last one counts everything longer.
    counts: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    fn observe(&self, took: Duration) {
        let bucket = BUCKETS.iter().position(|end| took.as_secs_f64() <= *end).unwrap_or(BUCKETS.len());
        add(&self.counts[bucket]);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

/// The counters of one session.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: [[AtomicU64; Answered::ALL.len()]; RouteLabel::ALL.len()],
    mints: [[AtomicU64; MintOutcome::ALL.len()]; TokenKind::ALL.len()],
    mint_seconds: [Histogram; TokenKind::ALL.len()],
    attaches: [AtomicU64; Attach::ALL.len()],
    cut_offs: [AtomicU64; Cause::ALL.len()],
    refused_calls: AtomicU64,
    relays: AtomicU64,
}

/// Values that are read when the page is rendered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges {
    pub leases: usize,
    pub outstanding: usize,
    pub audit_lost: u64,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Metrics {
    pub fn request(&self, route: RouteLabel, answered: Answered) {
        add(&self.requests[route as usize][answered as usize]);
    }

    pub fn relay_replaced(&self) {
        add(&self.relays);
    }

    pub fn relays_replaced(&self) -> u64 {
        read(&self.relays)
    }

    pub(super) fn mint(&self, kind: TokenKind, outcome: MintOutcome, took: Duration) {
        add(&self.mints[kind as usize][outcome as usize]);
        self.mint_seconds[kind as usize].observe(took);
    }

    pub(super) fn attach(&self, outcome: Attach) {
        add(&self.attaches[outcome as usize]);
    }

    pub(super) fn cut_off(&self, cause: Cause) {
        add(&self.cut_offs[cause as usize]);
    }

    pub(super) fn refused_call(&self) {
        add(&self.refused_calls);
    }

    /// All series, including those that are still 0, so that a rate never begins in the middle.
    pub fn render(&self, now: Gauges) -> String {
        let mut page = MetricsPage(String::with_capacity(8 << 10));
        self.tokens(&mut page);
        self.containers(&mut page);
        for (name, kind, help, value) in [
            (
                "kfp_creds_refused_calls_total",
                "counter",
                "Docker API requests refused.",
                read(&self.refused_calls),
            ),
            (
                "kfp_creds_relays_replaced_total",
                "counter",
                "Relays that died and were replaced.",
                read(&self.relays),
            ),
            (
                "kfp_creds_audit_lost_total",
                "counter",
                "Audit entries that could not be written.",
                now.audit_lost,
            ),
            ("kfp_creds_leases", "gauge", "Containers that can get tokens now.", now.leases as u64),
            ("kfp_creds_tokens_outstanding", "gauge", "Tokens that those hold.", now.outstanding as u64),
        ] {
            page.family(name, kind, help);
            page.line(name, &[], value);
        }
        page.0
    }

    fn tokens(&self, page: &mut MetricsPage) {
        page.family(
            "kfp_creds_requests_total",
            "counter",
            "Requests to the metadata server, by what was asked.",
        );
        for route in RouteLabel::ALL {
            for answered in Answered::ALL {
                let labels = [("route", route.word()), ("outcome", answered.word())];
                page.line(
                    "kfp_creds_requests_total",
                    &labels,
                    read(&self.requests[route as usize][answered as usize]),
                );
            }
        }
        page.family("kfp_creds_mints_total", "counter", "Tokens asked of the source, by outcome.");
        for kind in TokenKind::ALL {
            for outcome in MintOutcome::ALL {
                let labels = [("kind", kind.word()), ("outcome", outcome.word())];
                page.line(
                    "kfp_creds_mints_total",
                    &labels,
                    read(&self.mints[kind as usize][outcome as usize]),
                );
            }
        }
        page.family(
            "kfp_creds_mint_seconds",
            "histogram",
            "How long the source took for a token or a refusal.",
        );
        for kind in TokenKind::ALL {
            page.histogram("kfp_creds_mint_seconds", kind.word(), &self.mint_seconds[kind as usize]);
        }
    }

    fn containers(&self, page: &mut MetricsPage) {
        page.family("kfp_creds_attaches_total", "counter", "Containers created, by what became of them.");
        for outcome in Attach::ALL {
            let labels = [("outcome", outcome.word())];
            page.line("kfp_creds_attaches_total", &labels, read(&self.attaches[outcome as usize]));
        }
        page.family("kfp_creds_cut_offs_total", "counter", "Leases ended, by cause.");
        for cause in Cause::ALL {
            let labels = [("cause", cause.word())];
            page.line("kfp_creds_cut_offs_total", &labels, read(&self.cut_offs[cause as usize]));
        }
    }
}

struct MetricsPage(String);

impl MetricsPage {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Label values are our own words: no escaping needed.
    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (index, (label, word)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"{word}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn histogram(&mut self, name: &str, kind: &str, histogram: &Histogram) {
        let mut so_far = 0;
        for (end, count) in BUCKETS.iter().map(f64::to_string).chain(["+Inf".into()]).zip(&histogram.counts) {
            so_far += read(count);
            self.line(&format!("{name}_bucket"), &[("kind", kind), ("le", &end)], so_far);
        }
        let micros = read(&histogram.micros);
        let sum = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
        self.line(&format!("{name}_sum"), &[("kind", kind)], sum);
        self.line(&format!("{name}_count"), &[("kind", kind)], so_far);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_labels_are_written_in_order() {
        for (index, route) in RouteLabel::ALL.into_iter().enumerate() {
            assert_eq!(route as usize, index);
        }
        for (index, answered) in Answered::ALL.into_iter().enumerate() {
            assert_eq!(answered as usize, index);
        }
        assert_eq!((MintOutcome::ALL[2].word(), Attach::ALL[2].word()), ("transient", "failed"));
        assert_eq!(Cause::ALL[1].word(), "by_hand");
        for (status, answered) in [
            (200, Answered::Ok),
            (301, Answered::Redirect),
            (429, Answered::Refused),
            (503, Answered::Unavailable),
        ] {
            assert_eq!(Answered::of(status), answered);
        }
    }

    #[test]
    fn the_series_are_fixed_and_histograms_add_up() {
        let metrics = Metrics::default();
        let series = |text: &str| -> Vec<String> {
            let samples = text.lines().filter(|line| !line.starts_with('#'));
            samples.map(|line| line.rsplit_once(' ').unwrap().0.to_string()).collect()
        };
        let before = series(&metrics.render(Gauges::default()));
        metrics.request(RouteLabel::Token, Answered::Ok);
        metrics.mint(TokenKind::Access, MintOutcome::Ok, Duration::from_millis(30));
        metrics.mint(TokenKind::Access, MintOutcome::Transient, Duration::from_secs(60));
        metrics.cut_off(Cause::ByHand);
        let text = metrics.render(Gauges { leases: 3, ..Gauges::default() });
        assert_eq!(series(&text), before);
        for line in [
            "kfp_creds_requests_total{route=\"token\",outcome=\"ok\"} 1",
            "kfp_creds_mint_seconds_bucket{kind=\"access\",le=\"0.025\"} 0",
            "kfp_creds_mint_seconds_bucket{kind=\"access\",le=\"0.1\"} 1",
            "kfp_creds_mint_seconds_bucket{kind=\"access\",le=\"10\"} 1",
            "kfp_creds_mint_seconds_bucket{kind=\"access\",le=\"+Inf\"} 2",
            "kfp_creds_mint_seconds_sum{kind=\"access\"} 60.030000",
            "kfp_creds_mint_seconds_count{kind=\"access\"} 2",
            "kfp_creds_cut_offs_total{cause=\"by_hand\"} 1",
            "kfp_creds_leases 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
