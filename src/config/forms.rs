//! Formats of single values. An error completes the sentence `"VALUE" …`.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use url::Url;

use super::Pool;
use crate::source::google::names::{is_account, is_universe};
use crate::source::http::secure_url::is_loopback;

/// Whether `text` can name an identity or an attribute.
pub(super) fn is_name(text: &str, longest: usize) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=longest).contains(&text.len()) && text.bytes().all(good)
}

pub(super) fn account(text: &str) -> Result<(), String> {
    if is_account(text) { Ok(()) } else { Err("has to be an e-mail".into()) }
}

/// An account that can be impersonated. No service account has a `+`, and the mint refuses one, because it puts the
/// account into the path of a URL.
pub(super) fn service_account(text: &str) -> Result<(), String> {
    account(text)?;
    if text.contains('+') {
        return Err("has to be the e-mail of a service account, which has no +".into());
    }
    Ok(())
}

/// A service account, or gcloud's chain of them: each may create tokens for the next; the last is used.
pub(super) fn chain(text: &str) -> Result<Vec<String>, String> {
    let all: Vec<String> = text.split(',').map(|one| one.trim().to_owned()).collect();
    match all.iter().find_map(|one| service_account(one).err()) {
        None => Ok(all),
        Some(why) if all.len() == 1 => Err(why),
        Some(_) => Err("has to be e-mails of service accounts, separated by commas".into()),
    }
}

/// An image with its digest: whoever can push to the registry cannot change what it means.
pub(super) fn pinned(text: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"./-_:".contains(&b);
    let digest =
        |hex: &str| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    match text.split_once("@sha256:") {
        Some((name, hex))
            if !name.is_empty() && name.len() <= 255 && name.bytes().all(good) && digest(hex) =>
        {
            Ok(())
        }
        _ => Err("has to be an image with its digest: NAME@sha256: and 64 digits".into()),
    }
}

/// Checks project ids, including old ones with a domain (`example.com:name`).
pub(super) fn project(text: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.:".contains(&b);
    let whole = text.starts_with(|c: char| c.is_ascii_lowercase()) && text.len() <= 63;
    if whole && text.bytes().all(good) {
        Ok(())
    } else {
        Err("has to be a project id: lower-case letters, digits and hyphens, a letter first".into())
    }
}

pub(super) fn place(text: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=63).contains(&text.len()) && text.bytes().all(good) {
        Ok(())
    } else {
        Err("has to be lower-case letters, digits and hyphens".into())
    }
}

/// Machine types and tags have the form of a DNS label.
pub(super) fn label(text: &str) -> Result<(), String> {
    if is_label(text) { Ok(()) } else { Err("has to be letters, digits and hyphens, at most 63".into()) }
}

pub(super) fn hostname(text: &str) -> Result<(), String> {
    if text.len() <= 253 && text.split('.').all(is_label) {
        Ok(())
    } else {
        Err("has to be a host name, such as \"vm.example.internal\"".into())
    }
}

fn is_label(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let hyphen = text.starts_with('-') || text.ends_with('-');
    (1..=63).contains(&text.len()) && text.bytes().all(good) && !hyphen
}

pub(super) fn universe(text: &str) -> Result<(), String> {
    if is_universe(text) { Ok(()) } else { Err("has to be a domain, such as \"googleapis.com\"".into()) }
}

/// A URL that receives keys and tokens: never unencrypted, except within this machine.
pub(super) fn address(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
    let loopback = url.host_str().is_some_and(is_loopback);
    match url.scheme() {
        "https" => {}
        "http" if loopback => {}
        _ => return Err("has to be an https URL, or http on loopback".into()),
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err("has to be a URL without user, query and fragment".into());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

pub(super) fn lifetime(text: &str) -> Result<Duration, String> {
    span(text, 600..=43_200, "600 s to 12 h")
}

/// Printable ASCII, not empty.
pub(super) fn printable(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
}

/// A time whose seconds are in `range`, which `told` describes.
pub(super) fn span(text: &str, range: RangeInclusive<u64>, told: &str) -> Result<Duration, String> {
    let form = || String::from("has to be a time such as \"30m\", \"3600s\" or \"12h\"");
    let split = text.len().checked_sub(1).filter(|at| text.is_char_boundary(*at)).ok_or_else(form)?;
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(form()),
    };
    let digits = number.bytes().all(|b| b.is_ascii_digit());
    let number = number.parse::<u64>().ok().filter(|_| digits).ok_or_else(form)?;
    match number.checked_mul(unit) {
        Some(seconds) if range.contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("has to be from {told}")),
    }
}

pub(super) fn pool(text: &str) -> Result<Pool, String> {
    let form = || String::from("has to be a network such as \"169.254.168.0/22\"");
    let (network, prefix) = text.split_once('/').ok_or_else(form)?;
    let network: Ipv4Addr = network.parse().map_err(|_| form())?;
    let prefix: u8 = prefix.parse().map_err(|_| form())?;
    if !(16..=28).contains(&prefix) {
        return Err("has to be from /16 to /28".into());
    }
    if !network.is_link_local() && !network.is_private() {
        return Err("has to be link-local or private".into());
    }
    let first = network.to_bits() & (u32::MAX << (32 - prefix));
    if first != network.to_bits() {
        return Err(format!("has host bits set; the network is {}/{prefix}", Ipv4Addr::from_bits(first)));
    }
    Ok(Pool { network, prefix })
}

/// A rough check; the log itself ignores directives that it cannot parse.
pub(super) fn log(text: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level = |text: &str| LEVELS.contains(&text.to_ascii_lowercase().as_str());
    let good = |part: &str| level(part.rsplit_once('=').map_or(part, |(_, last)| last));
    if text.split(',').all(|part| good(part.trim())) {
        Ok(())
    } else {
        Err("has to be a level (off, error, warn, info, debug, trace) or a list of target=level".into())
    }
}
