//! Makes the networks of a session, of the kinds that the config asks for and the engine allows.

use std::collections::VecDeque;

use super::{EnginePlan, lock};
use crate::config::{AttachMode, Pool};
use crate::console::Console;
use crate::docker::bridge::{self, DEFAULT_BRIDGE, DefaultBridge};
use crate::docker::cells;
use crate::docker::network::{MAGIC, Network, SHARED_NAME};
use crate::docker::ranges::spare_pools;
use crate::docker::segment::Segment;
use crate::docker::{Engine, EngineError};

/// The bridge on which containers that name no network have link-local addresses, if there is to be one;
/// `None`: they get a second network.
pub(super) async fn segment(
    engine: &Engine,
    wanted: &EnginePlan<'_>,
    console: &Console,
) -> Result<Option<Segment>, EngineError> {
    if wanted.attach == AttachMode::Second || wanted.cells.is_some() {
        return Ok(None);
    }
    let otherwise = |why: &str| {
        if wanted.attach != AttachMode::Auto {
            let mode = wanted.attach.name();
            console.notice(format!("network.attach = \"{mode}\": {why}: containers get a second network"));
        }
        tracing::debug!(why, "no bridge with link-local addresses");
        Ok(None)
    };
    let Some(range) = bridge::range_beside(&[wanted.pool]) else {
        return otherwise("network.pool leaves no link-local address");
    };
    let default = match engine.default_bridge().await {
        Ok(default) => default,
        Err(why) => return otherwise(&why),
    };
    if wanted.attach == AttachMode::LinkLocal {
        if engine.has_on_default_bridge(MAGIC).await? {
            return otherwise("another session has 169.254.169.254 on the default bridge");
        }
        let network = on_default(&default, wanted.session);
        return Ok(Some(Segment::new(network, range, wanted.aws)));
    }
    match engine.make_bridge(&default, wanted.session).await {
        Ok(network) => Ok(Some(Segment::new(network, range, wanted.aws))),
        // The engine's ranges for networks may be used up; the second network has a range of its own.
        Err(error) if error.is_refusal() => otherwise(&error.to_string()),
        Err(error) => Err(error),
    }
}

fn on_default(default: &DefaultBridge, session: &str) -> Network {
    Network {
        id: default.id.clone(),
        name: DEFAULT_BRIDGE.into(),
        session: session.into(),
        subnet: String::new(),
        keeps_credentials_address: false,
        routed: false,
    }
}

/// The ranges in the order in which a session uses them: each session begins elsewhere, so that two seldom
/// try the same range.
pub(super) fn cell_ranges(range: Pool, session: &str) -> VecDeque<Pool> {
    let mut ranges: VecDeque<Pool> = cells::of(range).collect();
    let start = usize::from_str_radix(session, 16).unwrap_or_default() % ranges.len().max(1);
    ranges.rotate_left(start);
    ranges
}

/// The relay's own network, if every container has its own: no container joins it.
pub(super) async fn own_network(
    engine: &Engine,
    wanted: &EnginePlan<'_>,
    ranges: &mut VecDeque<Pool>,
    console: &Console,
) -> Result<(Network, Pool), EngineError> {
    let name = format!("{SHARED_NAME}-{}", wanted.session);
    let mut error = EngineError::Broken("make a network", "network.cells has no room for one".into());
    for _ in 0..ranges.len() {
        let Some(range) = ranges.pop_front() else { break };
        match engine.make_cell(&name, range, wanted.session).await {
            Ok(network) => {
                console.notice(
                    "isolation: every container gets a network of its own, on which its clients find the relay by \
                     environment and hosts entries; every client but PHP's follows those",
                );
                return Ok((network, range));
            }
            Err(taken) if taken.is_range_taken() => {
                error = taken;
                ranges.push_back(range);
            }
            // The range may be in use although no holder is visible; a second refusal has another reason.
            Err(refused) if refused.is_refusal() && !error.is_refusal() => error = refused,
            Err(error) => return Err(error),
        }
    }
    Err(error)
}

/// The shared network with the magic address if it is free, else a small network of this session alone.
pub(super) async fn network(
    engine: &Engine,
    wanted: &EnginePlan<'_>,
    left: Vec<Network>,
    console: &Console,
) -> Result<(Network, Pool), EngineError> {
    let own_name = format!("{SHARED_NAME}-{}", wanted.session);
    let name = if wanted.pool.relay() == MAGIC { SHARED_NAME } else { &own_name };
    let made = match engine.make_network(name, wanted.pool, wanted.session).await {
        // A network of that name exists, with other addresses.
        Err(EngineError::NameTaken(_)) if name != own_name => {
            engine.make_network(&own_name, wanted.pool, wanted.session).await
        }
        made => made,
    };
    let (error, owner) = match made {
        Ok(network) => return Ok((network, wanted.pool)),
        Err(EngineError::RangeTaken(holder)) => {
            let owner = format!("network {holder} holds its range");
            (EngineError::RangeTaken(holder), owner)
        }
        // Without a visible holder, the range may be in use by something outside the engine.
        Err(error) if error.is_refusal() => {
            (error, "something other than a network of the engine holds its range".into())
        }
        Err(error) => return Err(error),
    };
    // Take over the network of a dead session, which stayed because containers still run on it.
    if let Some(network) = left.into_iter().find(|network| wanted.pool.is(&network.subnet)) {
        return Ok((network, wanted.pool));
    }
    for pool in spare_pools() {
        match engine.make_network(&own_name, pool, wanted.session).await {
            Ok(network) => {
                console.notice(format!(
                    "169.254.169.254 is not ours in this session ({owner}): containers find {} by environment \
                     and hosts entries, which every client but PHP's follows",
                    pool.relay()
                ));
                return Ok((network, pool));
            }
            Err(taken) if taken.is_range_taken() => {}
            // Refused twice without a holder of the range: the engine's first error is returned.
            Err(again) if again.is_refusal() && error.is_refusal() => return Err(error),
            Err(again) => return Err(again),
        }
    }
    Err(error)
}

/// Tests whether `range` is free, by making a network of it and removing it again; the error of
/// [`Engine::make_network`] otherwise. Holds the lock, so that a start by the same user does not collide with
/// it.
pub async fn try_range(engine: &Engine, wanted: &EnginePlan<'_>, range: Pool) -> Result<(), EngineError> {
    let _lock = lock(&wanted.sockets.join("lock")).await?;
    let name = format!("{SHARED_NAME}-{}", wanted.session);
    let made = match wanted.cells {
        Some(_) => engine.make_cell(&name, range, wanted.session).await?,
        None => engine.make_network(&name, range, wanted.session).await?,
    };
    engine.remove_network(&made.id).await
}
