//! The probes of `check`, one function each.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::finding::Finding;
use super::hints;
use crate::app::credentials::Credentials;
use crate::app::runtime_dir::{private_folder, runtime_folder};
use crate::app::session::session_id;
use crate::config::{Config, Environment, Pool};
use crate::docker::cells;
use crate::docker::network::Network;
use crate::docker::proxy::{only_value, overriding};
use crate::docker::{Engine, EngineError};
use crate::failure::{Failure, Remedy};
use crate::mint::MintFailure;
use crate::quote;
use crate::session::{EnginePlan, try_range};
use crate::source::clock::{NOTABLE, RECONCILED};
use crate::workload::Identity;

/// How many images are inspected; the newest first.
const MOST_IMAGES: usize = 50;

pub(super) fn file(config: &Config) -> Finding {
    let Some(file) = &config.file else { return "none: defaults".to_string().into() };
    let (rules, identities) = (config.policy.rules.len(), config.identities.len());
    format!("{}: {rules} rules, {identities} identities, {} mounts", quote::path(file), config.mounts.len())
        .into()
}

/// The engine's version, and restrictions that Docker Desktop's administrator may have set.
pub(super) async fn engine(engine: &Engine) -> Finding {
    let text = format!("{} at {}", engine.version(), engine.upstream().endpoint());
    match engine.is_isolating().await {
        true => Finding::Odd(
            format!("{text}: Enhanced Container Isolation is on, so containers cannot mount docker.sock"),
            "ask the administrator of Docker Desktop, where containers of yours need it".into(),
        ),
        false => text.into(),
    }
}

pub(super) fn no_engine(failure: Failure, env: &Environment) -> Finding {
    let chosen = ["DOCKER_HOST", "DOCKER_CONTEXT"].into_iter().find(|name| env.variable(name).is_some());
    let remedy = match &failure {
        Failure::Engine(why) => why.remedy.clone(),
        _ => Remedy::Unknown,
    };
    match (remedy, chosen) {
        // The engine runs, and the text says what to do.
        (Remedy::InText, _) => Finding::Bad(failure, None),
        (_, Some(name)) => Finding::bad(failure, format!("unset {name}, or let it name an engine that runs")),
        (Remedy::LeaveContext, None) => Finding::bad(failure, "docker context use default"),
        (Remedy::StartEngine, None) => Finding::bad(failure, "sudo systemctl start docker"),
        _ => Finding::failed(failure),
    }
}

/// Access to our own sockets equals root on this machine, so only we may enter their folder.
pub(super) fn rights(env: &Environment) -> Finding {
    let folder = runtime_folder(env);
    match private_folder(&folder) {
        Ok(folder) => format!("only you can open {}", quote::path(&folder)).into(),
        Err(failure) => Finding::bad(failure, format!("rm -r {}", quote::path(&folder))),
    }
}

/// Making a network is the only sure way to learn whether its range is free and networks may be made.
pub(super) async fn network(engine: &Engine, config: &Config, env: &Environment) -> Finding {
    let wanted = private_folder(&runtime_folder(env)).and_then(|folder| Ok((folder, session_id()?)));
    let (folder, session) = match wanted {
        Ok(wanted) => wanted,
        Err(failure) => return Finding::failed(failure),
    };
    let wanted = EnginePlan {
        aws: false,
        session: &session,
        pool: config.pool,
        cells: config.cells,
        attach: config.attach,
        relay: &config.relay,
        sockets: &folder,
    };
    if let Some(range) = config.cells {
        return cells(engine, &wanted, range).await;
    }
    let ours = match engine.our_networks().await {
        Ok(ours) => ours,
        Err(error) => return Finding::failed(error.into()),
    };
    match try_range(engine, &wanted, config.pool).await {
        Ok(()) => format!("{} is free", config.pool).into(),
        Err(EngineError::RangeTaken(holder)) if is_ours(engine, ours, &holder).await => {
            let text = format!(
                "{} is held by {holder}, of a session that runs or was killed; a new session handles both",
                config.pool
            );
            text.into()
        }
        Err(EngineError::RangeTaken(holder)) => {
            let fix = format!("docker network rm {holder}, or network.pool = \"…\" in kfp-creds.toml");
            let text = format!(
                "{holder} holds {}: sessions get another address, which PHP clients do not find",
                config.pool
            );
            Finding::Odd(text, fix)
        }
        Err(error) => Finding::failed(error.into()),
    }
}

/// Compares with our networks before and after the attempt: the holder may have ended or started meanwhile.
async fn is_ours(engine: &Engine, before: Vec<Network>, holder: &str) -> bool {
    let after = engine.our_networks().await.unwrap_or_default();
    before.iter().chain(&after).any(|network| network.name == holder)
}

/// The same for one network per container: tests the ranges until one is free.
async fn cells(engine: &Engine, wanted: &EnginePlan<'_>, range: Pool) -> Finding {
    let mut held = 0;
    for cell in cells::of(range) {
        match try_range(engine, wanted, cell).await {
            Ok(()) => {
                let total = cells::of(range).count();
                return format!(
                    "{cell} is free, one of {total} for a container each; {held} before it are held"
                )
                .into();
            }
            Err(error) if error.is_range_taken() => held += 1,
            Err(error) => return Finding::failed(error.into()),
        }
    }
    let failure = Failure::Engine(format!("all {held} networks of {range} are held").into());
    Finding::bad(failure, "network.cells = \"…\" in kfp-creds.toml")
}

/// Variables set in images that take precedence over a metadata server.
pub(super) async fn images(engine: &Engine) -> Finding {
    let overriding: Vec<&str> = overriding().collect();
    match engine.images_that_set(&overriding, MOST_IMAGES).await {
        Ok(found) if found.is_empty() => {
            "none sets a variable that overrides the metadata server".to_string().into()
        }
        Ok(found) => {
            let (image, name) = &found[0];
            let more =
                if found.len() > 1 { format!(", and {} more", found.len() - 1) } else { String::new() };
            Finding::Odd(
                format!("{image} sets {name}{more}: its clients might not ask the metadata server"),
                format!("ENV {name}= in its Dockerfile, or leave the variable out"),
            )
        }
        Err(error) => Finding::failed(error.into()),
    }
}

pub(super) fn routes(config: &Config) -> Finding {
    let table = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let within = routes_into(&table, config.pool);
    if within.is_empty() {
        return format!("none of this machine leads into {}", config.pool).into();
    }
    let text = within.join(", ");
    if within.iter().any(|route| route.starts_with("169.254.169.254/32")) {
        return Finding::Odd(
            format!("{text}: this machine has a metadata server of its own, as in a cloud"),
            "keep containers without an identity off it: sudo iptables -I DOCKER-USER -d 169.254.169.254 -j DROP".into(),
        );
    }
    // Our network is internal and has no address on the host, so the host's routes and ours do not meet.
    format!("{text} (the host's own; containers of a session do not use it)").into()
}

/// `NETWORK/PREFIX dev NAME` of every route with its own destination that overlaps the pool, except for
/// bridges of the engine. The table is that of `/proc/net/route` (proc(5)): hexadecimal, in the host's byte
/// order.
fn routes_into(table: &str, pool: Pool) -> Vec<String> {
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::from_be);
    let first = u32::from(pool.network);
    let last = first | (u32::MAX >> pool.prefix);
    let rows = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (device, to, mask) = (*fields.first()?, number(fields.get(1)?)?, number(fields.get(7)?)?);
        let bridge = device.starts_with("br-") || device.starts_with("docker");
        let meets = mask != 0 && to <= last && (to | !mask) >= first;
        (meets && !bridge).then(|| format!("{}/{} dev {device}", Ipv4Addr::from(to), mask.leading_ones()))
    });
    rows.collect()
}

/// Variables of the shell that the pipeline's own process will see.
pub(super) fn shell(env: &Environment) -> Finding {
    let set: Vec<&str> = overriding()
        .filter(|name| {
            let value = env.variable(name).map(str::trim);
            value.is_some_and(|value| only_value(name).is_none_or(|only| value.eq_ignore_ascii_case(only)))
        })
        .collect();
    match set.as_slice() {
        [] => "no variable overrides the metadata server".to_string().into(),
        [one] if *one == "GOOGLE_APPLICATION_CREDENTIALS" => {
            format!("{one} names the credential; containers do not see it").into()
        }
        many => Finding::Odd(
            format!("{} set: programs on this machine follow it, containers do not see it", many.join(", ")),
            format!("unset {}", many.join(" ")),
        ),
    }
}

pub(super) fn credential(credentials: &Credentials, config: &Config) -> Finding {
    let kind = credentials.source.principal().kind;
    let ends = match kind {
        "service account key" => "; does not expire by itself",
        "user login" => "; lasts until it is withdrawn, or your organisation asks to log in again",
        "offline" => "; ends with each session",
        _ => "",
    };
    format!("{kind}, {}{ends}", credentials.own_account(config)).into()
}

pub(super) async fn clock(credentials: &Credentials) -> Finding {
    match credentials.source.clock().await {
        Ok(None) => "no server to compare with".to_string().into(),
        Ok(Some(seconds)) => {
            let by = format!(
                "{} s {}",
                seconds.abs(),
                if seconds < 0 { "behind Google's" } else { "ahead of Google's" }
            );
            let fix = "sudo timedatectl set-ntp true";
            match seconds.abs() {
                few if few <= NOTABLE => format!("{by}: good").into(),
                more if more <= RECONCILED.as_secs().cast_signed() => Finding::Odd(by, fix.into()),
                _ => Finding::bad(
                    Failure::NotPermitted(format!("{by}: what is signed here is refused there")),
                    fix,
                ),
            }
        }
        // The probe of the token reports this better.
        Err(error) => {
            Finding::Odd(format!("not known: {error}"), "curl -sI https://www.googleapis.com".into())
        }
    }
}

/// One token for each account of the config: the own one if an identity uses it, and every other one.
pub(super) async fn tokens(
    credentials: &Credentials,
    config: &Config,
) -> Vec<(String, Result<Duration, MintFailure>)> {
    let mut asked = HashSet::new();
    let mut found = vec![];
    for identity in config.identities.values().filter(|identity| identity.google) {
        let accounts = std::iter::once(identity.service_account.clone())
            .chain(identity.others.iter().cloned().map(Some));
        for account in accounts {
            if !asked.insert((
                account.clone(),
                identity.subject.clone(),
                identity.scopes.to_string(),
                identity.lifetime,
                identity.boundary.clone(),
            )) {
                continue;
            }
            let one = Identity { service_account: account.clone(), ..Identity::clone(identity) };
            let request = credentials.mint.request(&one, None, None);
            let minted = credentials.mint.access(&request, None, Duration::from_secs(25)).await;
            let left = minted.map(|token| token.expires.remaining(crate::token::Now::read()));
            let account = account.unwrap_or_else(|| credentials.own_account(config));
            found.push((format!("{account} ({})", identity.name), left));
        }
    }
    found
}

pub(super) fn token(
    credentials: &Credentials,
    account: String,
    found: Result<Duration, MintFailure>,
) -> Finding {
    match found {
        Ok(left) => format!("{account}: minted, good for {} s", left.as_secs()).into(),
        Err(error) => {
            let fix = hints::token(&error, credentials.source.principal().kind);
            Finding::Bad(Failure::NoCredential(format!("{account}: {error}").into()), fix)
        }
    }
}

pub(super) fn project(credentials: &Credentials, config: &Config) -> Finding {
    let project = credentials.project(config);
    if project == crate::server::views::UNKNOWN_PROJECT {
        return Finding::Odd(
            "unknown: containers see a placeholder".into(),
            "project = \"…\" in kfp-creds.toml, or gcloud config set project …".into(),
        );
    }
    project.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_that_overlap_the_pool_are_found() {
        let pool = Pool { network: Ipv4Addr::new(169, 254, 168, 0), prefix: 22 };
        let row = |device: &str, to: Ipv4Addr, mask: Ipv4Addr| {
            let hex = |at: Ipv4Addr| format!("{:08X}", u32::from(at).to_be());
            format!("{device}\t{}\t00000000\t0001\t0\t0\t0\t{}\t0\t0\t0\n", hex(to), hex(mask))
        };
        let table = [
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n".to_string(),
            row("eth0", Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED),
            row("eth0", [10, 0, 0, 0].into(), [255, 0, 0, 0].into()),
            row("avahi", [169, 254, 0, 0].into(), [255, 255, 0, 0].into()),
            row("eth0", [169, 254, 169, 254].into(), [255, 255, 255, 255].into()),
            row("br-0123", [169, 254, 168, 0].into(), [255, 255, 252, 0].into()),
        ]
        .concat();
        assert_eq!(routes_into(&table, pool), ["169.254.0.0/16 dev avahi", "169.254.169.254/32 dev eth0"]);
        assert!(routes_into("", pool).is_empty() && routes_into("x\ny z\n", pool).is_empty());
    }
}
