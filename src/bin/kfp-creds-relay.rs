//! The relay as a program of its own: no command line library, no TLS, no source of credentials. The engine
//! runs it from an image that holds nothing else.

use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::process::ExitCode;

use kfp_creds::process;
use kfp_creds::relay::program::ProgramCall;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

fn main() -> ExitCode {
    process::forbid_core_dumps();
    let _ = tracing::subscriber::set_global_default(Warnings);
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let outcome = match ProgramCall::parse(&words) {
        Some(Ok(asked)) => asked.run().map_err(|error| (77, error.to_string())),
        Some(Err(why)) => Err((64, why.to_string())),
        None => Err((64, "is a part of kfp-creds, which starts it in a container".to_string())),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err((code, why)) => {
            let _ = writeln!(std::io::stderr(), "kfp-creds-relay: {why}");
            ExitCode::from(code)
        }
    }
}

/// Writes warnings and errors to stderr, one line each; the host logs them.
struct Warnings;

impl Subscriber for Warnings {
    fn enabled(&self, about: &Metadata<'_>) -> bool {
        about.is_event() && *about.level() <= Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = LogLine(format!("{} ", event.metadata().level()));
        event.record(&mut line);
        let _ = writeln!(std::io::stderr(), "{}", line.0);
    }

    // Spans are not enabled.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct LogLine(String);

impl Visit for LogLine {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?} "),
            name => write!(self.0, "{name}={value:?} "),
        };
    }
}
