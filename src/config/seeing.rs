//! `[audit]` and `[metrics]`: what is recorded, and where it is served.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::Environment;
use super::layers::Layers;
use crate::quote;
use crate::record::audit::AuditSettings;

const LARGEST: u64 = 10 << 20;
const KEEP: u32 = 5;

/// `beside` is the base of relative paths in the file.
pub(super) fn audit(say: &mut Layers, beside: &Path, env: &Environment) -> Option<AuditSettings> {
    let mut number = |key: &str, least: i64, most: i64| {
        let value = say.number(key)?;
        if !(least..=most).contains(&value) {
            say.problem(key, format_args!("{value} has to be from {least} to {most}"));
            return None;
        }
        Some(value)
    };
    let max_bytes = number("audit.max_bytes", 4096, 1 << 40);
    let keep = number("audit.keep", 0, 1000);
    let text = say.text("audit.file").filter(|text| say.is_path("audit.file", text))?;
    let base = if say.is_from_file("audit.file") { beside } else { &env.cwd };
    let file: PathBuf = match (text.strip_prefix("~/"), env.home()) {
        (None, _) if text.is_empty() => {
            say.problem("audit.file", "is empty; leave it out for no audit log");
            return None;
        }
        (Some(rest), Some(home)) => home.join(rest),
        _ => base.join(text),
    };
    Some(AuditSettings {
        file,
        max_bytes: max_bytes.and_then(|n| u64::try_from(n).ok()).unwrap_or(LARGEST),
        keep: keep.and_then(|n| u32::try_from(n).ok()).unwrap_or(KEEP),
    })
}

pub(super) fn metrics(say: &mut Layers) -> Option<SocketAddr> {
    let text = say.text("metrics.listen")?;
    let at = text.parse::<SocketAddr>().ok().filter(|at| at.ip().is_loopback());
    if at.is_none() {
        let what =
            format!("{} has to be a loopback address, such as \"127.0.0.1:9464\"", quote::value(&text));
        say.problem("metrics.listen", what);
    }
    at
}
