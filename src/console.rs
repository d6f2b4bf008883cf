//! The output for a person: one line per decision, on stderr, and the diagnostic log of `-v`.
//!
//! No line holds a secret: [`Line`] has no field that could carry one, and the log is built without the
//! bridge to the `log` crate, through which dependencies print tokens at debug level.

use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// One line for the terminal, or one JSON object with `--json` (`event` names the kind).
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Line<'a> {
    /// The account, project (empty without Google), engine and network of the session.
    Ready { source: &'a str, account: &'a str, project: &'a str, engine: &'a str, network: &'a str },
    /// A container got an identity and an address before its first instruction.
    Attached { task: &'a str, container: &'a str, identity: &'a str, address: &'a str },
    /// A container got no identity, and why.
    NotAttached { task: &'a str, why: &'a str },
    /// A refused request, and why.
    Refused { what: &'a str, why: &'a str },
    /// A container ended, or a person cut it off: nothing is minted for it any more. `outstanding` is when
    /// its last token expires.
    CutOff {
        task: &'a str,
        container: &'a str,
        /// A person cut it off: the container may still run.
        by_hand: bool,
        exit_code: Option<i64>,
        outstanding: Option<String>,
    },
    /// Information or advice for a person.
    Notice { text: &'a str },
    /// The reason for a wait at the start.
    Progress { text: &'a str },
    /// The end of the session; `cut_off` counts leases, whatever ended them.
    Ended { attached: u64, cut_off: u64, outstanding: u64, until: Option<String> },
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Ready { source, account, project, engine, network } => {
                write!(f, "ready         {account}")?;
                if !project.is_empty() {
                    write!(f, "  project {project}")?;
                }
                write!(f, "  ({source}; {engine}; network {network})")
            }
            Line::Attached { task, container, identity, address } => {
                write!(f, "attached      {task}  as {identity}  at {address}  ({container})")
            }
            Line::NotAttached { task, why } => write!(f, "not attached  {task}: {why}"),
            Line::Refused { what, why } => write!(f, "refused       {what}: {why}"),
            Line::CutOff { task, container, by_hand, exit_code, outstanding } => {
                let (word, how) = if *by_hand { ("cut off", ", by hand") } else { ("ended", "") };
                write!(f, "{word:<14}{task}  ({container}{how}")?;
                if let Some(code) = exit_code {
                    write!(f, ", exit code {code}")?;
                }
                f.write_str(")")?;
                match outstanding {
                    Some(until) => write!(f, "; its last token expires {until}"),
                    None => Ok(()),
                }
            }
            Line::Notice { text } => write!(f, "notice        {text}"),
            Line::Progress { text } => write!(f, "...           {text}"),
            Line::Ended { attached, cut_off, outstanding, until } => {
                write!(f, "session ended {attached} attached, {cut_off} ended, ")?;
                match (until, outstanding) {
                    (None, _) => f.write_str("no token outstanding"),
                    (Some(until), 1) => write!(f, "1 token outstanding until {until}"),
                    (Some(until), many) => write!(f, "{many} tokens outstanding, the last until {until}"),
                }
            }
        }
    }
}

/// Verbosity and format of the output.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OutputForm {
    #[default]
    Text,
    Json,
    /// Prints only refusals and notices.
    Quiet,
}

/// A step that takes longer shows what it waits for.
const SLOW: Duration = Duration::from_secs(2);

/// The only writer of [`Line`]s; clones share it.
#[derive(Clone)]
pub struct Console {
    form: OutputForm,
    out: Arc<Mutex<dyn Write + Send>>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Console({:?})", self.form)
    }
}

impl Console {
    pub fn new(form: OutputForm, out: impl Write + Send + 'static) -> Self {
        Self { form, out: Arc::new(Mutex::new(out)) }
    }

    /// Writes one line. Errors are ignored: a closed terminal must not end the session.
    pub fn say(&self, line: Line<'_>) {
        let text = match self.form {
            OutputForm::Json => serde_json::to_string(&line).unwrap_or_default(),
            OutputForm::Quiet if !matches!(line, Line::Refused { .. } | Line::Notice { .. }) => return,
            OutputForm::Text | OutputForm::Quiet => format!("kfp-creds: {}", printable(&line.to_string())),
        };
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    pub fn notice(&self, text: impl AsRef<str>) {
        self.say(Line::Notice { text: text.as_ref() });
    }

    /// Waits for `work`; if that takes longer than `SLOW`, shows `text` once.
    pub async fn while_slow<T>(&self, text: &str, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        match tokio::time::timeout(SLOW, &mut work).await {
            Ok(done) => done,
            Err(_) => {
                self.say(Line::Progress { text });
                work.await
            }
        }
    }
}

/// Names come from containers, images and archives: no control character reaches the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// `2026-01-02T12:34:56Z (in 412 s)`, for an expiry.
pub fn expiry(at: SystemTime, left: Duration) -> String {
    format!("{} (in {} s)", rfc3339(at), left.as_secs())
}

/// A time to the second.
pub fn rfc3339(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at).replace_nanosecond(0).ok();
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

/// Installs the diagnostic log. `filter` holds `LEVEL` and `TARGET=LEVEL`, separated by commas. Our own
/// directives come last and cannot be overridden: those crates print secrets.
pub fn install_log(filter: &str, out: fn() -> std::io::Stderr) {
    let filter = format!("{filter},yup_oauth2=off,bollard=info,h2=info,hyper=info,rustls=info");
    let lines = tracing_subscriber::fmt::layer().with_writer(out).with_ansi(false);
    let _ = tracing_subscriber::registry().with(lines).with(targets(&filter)).try_init();
}

/// Ignores directives that cannot be parsed; of two for the same target the later one counts.
fn targets(filter: &str) -> Targets {
    filter.split(',').map(str::trim).filter(|directive| !directive.is_empty()).fold(
        Targets::new(),
        |targets, directive| match directive.split_once('=') {
            Some((target, level)) => match level.parse::<LevelFilter>() {
                Ok(level) => targets.with_target(target, level),
                Err(_) => targets,
            },
            None => match directive.parse::<LevelFilter>() {
                Ok(level) => targets.with_default(level),
                Err(_) => targets.with_target(directive, LevelFilter::TRACE),
            },
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<u8>>>);

    impl Write for Heard {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_session_without_google_names_no_project() {
        let line = |project| {
            Line::Ready { source: "s", account: "a", project, engine: "e", network: "n" }.to_string()
        };
        assert_eq!(line("p"), "ready         a  project p  (s; e; network n)");
        assert_eq!(line(""), "ready         a  (s; e; network n)");
    }

    #[test]
    fn hostile_names_stay_on_one_line() {
        let heard = Heard::default();
        let console = Console::new(OutputForm::Text, heard.clone());
        console.say(Line::NotAttached { task: "evil\n\x1b[2Jname", why: "no" });
        let text = String::from_utf8(heard.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "kfp-creds: not attached  evil??[2Jname: no\n");
    }

    #[test]
    fn quiet_still_prints_lines_that_need_a_person() {
        let heard = Heard::default();
        let console = Console::new(OutputForm::Quiet, heard.clone());
        console.say(Line::Progress { text: "loading" });
        console.notice("log in again");
        let text = String::from_utf8(heard.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "kfp-creds: notice        log in again\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_step_says_what_it_waits_for() {
        let heard = Heard::default();
        let console = Console::new(OutputForm::Text, heard.clone());
        let step = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        console.while_slow("quick", step(1)).await;
        console.while_slow("slow", step(3)).await;
        let text = String::from_utf8(heard.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "kfp-creds: ...           slow\n");
    }

    #[test]
    fn log_targets_that_print_secrets_stay_off() {
        use tracing::Level;
        let ours = "yup_oauth2=off,h2=info";
        let all = targets(&format!("trace,yup_oauth2=trace,h2=trace,nonsense=loud,,{ours}"));
        assert!(all.would_enable("kfp_creds::mint", &Level::TRACE));
        assert!(!all.would_enable("yup_oauth2::helper", &Level::ERROR));
        assert!(!all.would_enable("h2::proto", &Level::DEBUG) && all.would_enable("h2", &Level::INFO));
        let some = targets("warn,kfp_creds::server=debug,kfp_creds::mint");
        assert!(!some.would_enable("kfp_creds::relay", &Level::INFO));
        assert!(some.would_enable("kfp_creds::server", &Level::DEBUG));
        assert!(some.would_enable("kfp_creds::mint::cache", &Level::TRACE));
    }
}
