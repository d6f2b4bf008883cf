//! From the start of the program to a relay that serves, and the size of the program.

use std::time::Instant;

use crate::engine::{self, docker};
use crate::figures::{Table, Target, median, percentile};
use crate::load::body_of;
use crate::session::{Folder, Session, listener, whole_run};
use crate::{Outcome, Plan};

/// Most milliseconds from exec to `ready`, with the relay's image in the engine.
const READY: f64 = 800.0;

/// Most milliseconds for the start and the end of a session together.
const WHOLE: f64 = 350.0;

pub(crate) fn measure(plan: &Plan, table: &mut Table) -> Outcome<()> {
    let mut times = Vec::new();
    let mut first = Vec::new();
    for round in 0..=plan.rounds(10, 3) {
        let session = Session::start(&plan.program)?;
        if round > 0 {
            times.push(session.ready);
        }
        if round < plan.rounds(3, 1) {
            let image = docker(&engine::socket(), &["inspect", "-f", "{{.Config.Image}}", &session.relay()])?;
            drop(session);
            docker(&engine::socket(), &["rmi", "-f", &image])?;
            first.push(Session::start(&plan.program)?.ready);
        }
    }
    let middle = median(&times);
    let (low, high) = (percentile(&mut times, 0.0), percentile(&mut times, 100.0));
    let shown = format!("{middle:.0} ms ({low:.0}–{high:.0})");
    table.row("start", "exec to `ready`, relay image present", (middle, shown), Target::AtMost(READY), " ms");
    let shown = format!("{:.0} ms", median(&first));
    table.row("start", "exec to `ready`, relay image made and loaded", (0.0, shown), Target::Stated, "");
    let mut runs =
        (0..plan.rounds(20, 5)).map(|_| whole_run(&plan.program)).collect::<Outcome<Vec<f64>>>()?;
    let (low, middle, high) =
        (percentile(&mut runs, 25.0), percentile(&mut runs, 50.0), percentile(&mut runs, 75.0));
    let shown = format!("{middle:.0} ms (half of them {low:.0}–{high:.0})");
    let what = "`run -- true`: start and end of a session";
    table.row("start", what, (middle, shown), Target::AtMost(WHOLE), " ms");
    Ok(())
}

/// Most milliseconds from exec of `serve --listen` to its first token.
const FIRST: f64 = 10.0;

pub(crate) fn first_answer(plan: &Plan, table: &mut Table) -> Outcome<()> {
    let folder = Folder::new()?;
    let mut times = Vec::new();
    for round in 0..=plan.rounds(40, 10) {
        let began = Instant::now();
        let ours = listener(&plan.program, &folder, &["--offline"])?;
        body_of(ours.at)?;
        if round > 0 {
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    let (low, middle, high) =
        (percentile(&mut times, 25.0), percentile(&mut times, 50.0), percentile(&mut times, 75.0));
    let shown = format!("{middle:.1} ms (half of them {low:.1}–{high:.1})");
    let what = "exec of `serve --listen` to its first token";
    table.row("loopback", what, (middle, shown), Target::AtMost(FIRST), " ms");
    Ok(())
}

pub(crate) fn size(plan: &Plan, table: &mut Table) -> Outcome<()> {
    let megabytes = std::fs::metadata(&plan.program)?.len() as f64 / 1e6;
    let shown = (megabytes, format!("{megabytes:.2} MB"));
    table.row("size", "size of the program", shown, Target::AtMost(8.0), " MB");
    Ok(())
}
