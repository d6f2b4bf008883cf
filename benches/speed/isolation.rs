//! What a network for each container adds to a create, against the one network that all share.

use std::time::Duration;

use crate::creates::{Hand, interval, medians, pairs};
use crate::engine::Stage;
use crate::figures::{Table, Target, difference, of_pairs};
use crate::session::Session;
use crate::{Outcome, Plan};

/// Most that it may add while a network is ready, in milliseconds: the connect is the same, and nothing else is new.
const ADDED: f64 = 3.0;
/// From one create to the next: networks are made again in the meantime, as between the tasks of a pipeline.
const REST: Duration = Duration::from_millis(700);

pub(crate) fn measure(plan: &Plan, stage: &Stage, table: &mut Table) -> Outcome<()> {
    let shared = Session::start(&plan.program)?;
    let apart = Session::with(&plan.program, &[("KFP_CREDS_ISOLATION", "network")])?;
    let hand = |session: &Session| Hand { socket: session.socket.clone(), stage, second: false };
    let (shared, apart) = (hand(&shared), hand(&apart));
    std::thread::sleep(Duration::from_secs(4)); // the first networks
    let rested = |hand: &Hand<'_>, turn| {
        std::thread::sleep(REST);
        hand.create(turn)
    };
    let pairs = pairs(plan.rounds(40, 8), |turn| rested(&apart, turn), |turn| rested(&shared, turn))?;
    let more = of_pairs(&pairs, difference);
    let shown = format!("{} more ({})", interval(more, 1.0, " ms"), medians(&pairs));
    table.row(
        "isolation",
        "create with a network of its own, one being ready, over the shared network",
        (more.value, shown),
        Target::AtMost(ADDED),
        " ms",
    );

    // Without a rest: what comes faster than networks can be made waits for them.
    let pairs = burst(plan.rounds(40, 12), &apart, &shared)?;
    let more = of_pairs(&pairs, difference);
    let shown = format!("{} more ({})", interval(more, 1.0, " ms"), medians(&pairs));
    table.row(
        "isolation",
        "the same, one create after the other without a rest: none is ready",
        (more.value, shown),
        Target::Stated,
        " ms",
    );
    Ok(())
}

/// Each by itself, so that the one does not rest while the other works; as pairs of the same turn.
fn burst(rounds: usize, apart: &Hand<'_>, shared: &Hand<'_>) -> Outcome<Vec<(f64, f64)>> {
    let turns = |hand: &Hand<'_>| (0..rounds).map(|turn| hand.create(turn)).collect::<Outcome<Vec<f64>>>();
    let (mut ours, theirs) = (turns(apart)?, turns(shared)?);
    ours.drain(..rounds.min(8)); // those that were ready
    Ok(ours.into_iter().zip(theirs).collect())
}
