//! Containers made through the proxy, against the same calls at the engine itself.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::engine::{self, Stage, call, docker};
use crate::figures::{Figure, Table, Target, difference, median, of_pairs, ratio};
use crate::session::Session;
use crate::{Outcome, Plan};

/// Most that a create may gain, in milliseconds (design promise 6).
const CREATE: f64 = 10.0;
/// Most that a whole short container may take of what it takes by hand.
const WHOLE: f64 = 1.05;

pub(crate) fn measure(plan: &Plan, stage: &Stage, table: &mut Table) -> Outcome<()> {
    let session = Session::start(&plan.program)?;
    let by_hand = Hand { socket: engine::socket(), stage, second: true };
    let through = Hand { socket: session.socket.clone(), stage, second: false };

    let pairs = pairs(plan.rounds(50, 10), |turn| through.create(turn), |turn| by_hand.create(turn))?;
    let more = of_pairs(&pairs, difference);
    let shown = format!("{} more ({})", interval(more, 1.0, " ms"), medians(&pairs));
    table.row(
        "creates",
        "create through the proxy over the engine's create + connect",
        (more.value, shown),
        Target::AtMost(CREATE),
        " ms",
    );

    let pairs = self::pairs(plan.rounds(25, 5), |turn| through.whole(turn), |turn| by_hand.whole(turn))?;
    let share = of_pairs(&pairs, ratio);
    let shown = format!("{} ({})", interval(share, 1.0, ""), medians(&pairs));
    table.row(
        "creates",
        "a short container, the same calls: create, connect, start, wait, remove",
        (share.value, shown),
        Target::AtMost(WHOLE),
        "",
    );

    let alone = Hand { socket: engine::socket(), stage, second: false };
    let pairs = self::pairs(plan.rounds(25, 5), |turn| through.whole(turn), |turn| alone.whole(turn))?;
    let more = of_pairs(&pairs, difference);
    let shown = format!("{} more ({})", interval(more, 1.0, " ms"), medians(&pairs));
    table.row(
        "creates",
        "a short container from create to removal, over one without a second network",
        (more.value, shown),
        Target::Stated,
        " ms",
    );

    let pairs = self::pairs(plan.rounds(15, 4), |_| through.run(), |turn| by_hand.commands(turn))?;
    let share = of_pairs(&pairs, ratio);
    let shown = format!("{} ({})", interval(share, 1.0, ""), medians(&pairs));
    table.row(
        "creates",
        "`docker run --rm` over `docker create; network connect; start -a; rm`",
        (share.value, shown),
        Target::AtMost(WHOLE),
        "",
    );
    Ok(())
}

pub(crate) fn interval(figure: Figure, scale: f64, unit: &str) -> String {
    let Figure { value, low, high } = figure;
    format!("{:.2}{unit} (95 %: {:.2}–{:.2})", value * scale, low * scale, high * scale)
}

pub(crate) fn medians(pairs: &[(f64, f64)]) -> String {
    let (ours, theirs): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    format!("{:.1} against {:.1} ms, {} pairs", median(&ours), median(&theirs), pairs.len())
}

/// Milliseconds of alternating turns, each pair in the other order than the one before.
pub(crate) fn pairs(
    rounds: usize,
    mut first: impl FnMut(usize) -> Outcome<f64>,
    mut second: impl FnMut(usize) -> Outcome<f64>,
) -> Outcome<Vec<(f64, f64)>> {
    let mut found = Vec::new();
    for turn in 0..=rounds {
        let pair = if turn % 2 == 0 {
            (first(turn)?, second(turn)?)
        } else {
            let second = second(turn)?;
            (first(turn)?, second)
        };
        if turn > 0 {
            found.push(pair);
        }
    }
    Ok(found)
}

/// Somebody who makes containers at a socket: at the engine's the second network is connected by hand.
pub(crate) struct Hand<'a> {
    pub(crate) socket: std::path::PathBuf,
    pub(crate) stage: &'a Stage,
    pub(crate) second: bool,
}

impl Hand<'_> {
    fn make(&self, turn: usize) -> Outcome<String> {
        let answer =
            call(&self.socket, "POST", "/containers/create", Some(&self.stage.container(&["nothing"])))?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let id = answer["Id"].as_str().ok_or("no id")?.to_string();
        if self.second {
            let address = format!("{}.{}", self.stage.second_range, 2 + turn % 250);
            let endpoint =
                json!({"Container": id, "EndpointConfig": {"IPAMConfig": {"IPv4Address": address}}});
            call(&self.socket, "POST", &format!("/networks/{}/connect", self.stage.second), Some(&endpoint))?;
        }
        Ok(id)
    }

    pub(crate) fn create(&self, turn: usize) -> Outcome<f64> {
        let began = Instant::now();
        let id = self.make(turn)?;
        let took = began.elapsed().as_secs_f64() * 1e3;
        remove(&engine::socket(), &id)?;
        Ok(took)
    }

    fn whole(&self, turn: usize) -> Outcome<f64> {
        let began = Instant::now();
        let id = self.make(turn)?;
        call(&self.socket, "POST", &format!("/containers/{id}/start"), None)?;
        let exit: Value =
            serde_json::from_slice(&call(&self.socket, "POST", &format!("/containers/{id}/wait"), None)?)?;
        remove(&self.socket, &id)?;
        let took = began.elapsed().as_secs_f64() * 1e3;
        if exit["StatusCode"] != 0 {
            return Err(format!("the short container failed: {exit}").into());
        }
        Ok(took)
    }

    fn run(&self) -> Outcome<f64> {
        let began = Instant::now();
        docker(
            &self.socket,
            &["run", "--rm", "--network", &self.stage.network, &self.stage.image, "nothing"],
        )?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }

    fn commands(&self, turn: usize) -> Outcome<f64> {
        let address = format!("{}.{}", self.stage.second_range, 2 + turn % 250);
        let Stage { image, network, second, .. } = self.stage;
        let began = Instant::now();
        let id = docker(&self.socket, &["create", "--network", network, image, "nothing"])?;
        docker(&self.socket, &["network", "connect", "--ip", &address, second, &id])?;
        docker(&self.socket, &["start", "-a", &id])?;
        docker(&self.socket, &["rm", &id])?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }
}

fn remove(socket: &Path, id: &str) -> Outcome<()> {
    call(socket, "DELETE", &format!("/containers/{id}"), None).map(drop)
}
