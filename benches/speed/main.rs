//! Measures what the design promises: `scripts/bench`, or `cargo bench --bench speed -- [--quick]`.
//!
//! This one program is also everything that is compared with: a bare hyper server, the load, and the short
//! container. Figures are ratios or differences of alternating rounds in one run, so that whatever else the
//! machine does falls on both sides; the CPU time of a process counts where a rate would be noise.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a bench prints a table, reads its arguments, waits for other processes and spawns clients"
)]

mod attach;
mod bare;
mod builds;
mod creates;
mod engine;
mod figures;
mod isolation;
mod load;
mod loopback;
mod mints;
mod page;
mod process;
mod session;
mod start;
mod sts;
mod tunnel;
mod upstream;
mod who;
mod write;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use engine::Stage;
use figures::Table;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What a run was asked for.
#[derive(Debug, Default)]
struct Plan {
    quick: bool,
    /// Into `docs/internals/figures.md`, too.
    write: bool,
    /// Beside other load.
    loaded: bool,
    /// Only these groups; all when empty.
    only: Vec<String>,
    /// The build under measurement.
    program: PathBuf,
    /// An older build, measured in the same run.
    before: Option<PathBuf>,
}

impl Plan {
    fn read(mut arguments: impl Iterator<Item = String>) -> Outcome<Self> {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_kfp-creds"));
        let mut plan = Self { program, ..Self::default() };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--bench" => {}
                "--quick" => plan.quick = true,
                "--write" => plan.write = true,
                "--loaded" => plan.loaded = true,
                "--only" => plan.only.extend(value()?.split(',').map(String::from)),
                "--program" => plan.program = value()?.into(),
                "--before" => plan.before = Some(value()?.into()),
                other => return Err(format!("unknown argument {other}").into()),
            }
        }
        Ok(plan)
    }

    fn wants(&self, group: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == group)
    }

    /// `full` rounds, or the few of a quick run.
    fn rounds(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rest = arguments.get(1..).unwrap_or_default();
    let outcome = match arguments.first().map(String::as_str) {
        Some("bare") => bare::run(rest),
        Some("upstream") => upstream::run(rest),
        Some("load") => load::run(rest),
        Some("latency") => load::latency(rest),
        Some("echo") => load::echo(),
        Some("nothing") => Ok(()),
        Some("idle") => loop {
            std::thread::park();
        },
        _ if !arguments.iter().any(|argument| argument == "--bench") => {
            println!("measures, and tests nothing: start it with scripts/bench");
            Ok(())
        }
        _ => measure(arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: Vec<String>) -> Outcome<()> {
    let plan = Plan::read(arguments.into_iter())?;
    let run = plan.write.then(|| write::begin(&plan)).transpose()?;
    let mut table = Table::new();
    if plan.wants("loopback") {
        loopback::measure(&plan, &mut table)?;
    }
    if plan.wants("who") {
        who::measure(&plan, &mut table)?;
    }
    if plan.wants("mints") {
        mints::measure(&plan, &mut table)?;
    }
    if ["attach", "tunnel", "creates", "isolation", "start", "leases"].iter().any(|group| plan.wants(group)) {
        let stage = Stage::set()?;
        if plan.wants("attach") {
            attach::measure(&plan, &stage, &mut table)?;
        }
        if plan.wants("tunnel") {
            tunnel::measure(&plan, &stage, &mut table)?;
        }
        if plan.wants("creates") {
            creates::measure(&plan, &stage, &mut table)?;
            sts::measure(&plan, &stage, &mut table)?;
        }
        if plan.wants("isolation") {
            isolation::measure(&plan, &stage, &mut table)?;
        }
        if plan.wants("leases") {
            who::leases(&plan, &stage.image, &mut table)?;
        }
        if plan.wants("start") {
            start::measure(&plan, &mut table)?;
        }
    }
    if plan.wants("builds") {
        builds::measure(&plan, &mut table)?;
    }
    start::size(&plan, &mut table)?;
    table.print();
    run.map_or(Ok(()), |run| write::end(&run, &table.0))
}
