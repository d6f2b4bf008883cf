//! The tables of `docs/internals/figures.md` as text. `tests/it/figures.rs` includes this file, which therefore
//! imports nothing of the bench.

use std::fmt::Write as _;

/// What goes before the rows of a table.
pub(crate) const HEAD: &str = "| what | figure | target | verdict | group |\n|---|---|---|---|---|\n";

const END: &str = "<!-- scripts/bench --write: end -->";

/// The section of figures that depend on no engine, and the groups that it has.
pub(crate) const WITHOUT_ENGINE: (&str, [&str; 4]) =
    ("Without an engine", ["loopback", "who", "mints", "size"]);

/// Most load for a core at the start, unless a run is `--loaded`.
const LOAD: f64 = 1.5;

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) group: &'static str,
    pub(crate) what: String,
    pub(crate) figure: String,
    pub(crate) target: String,
    pub(crate) verdict: &'static str,
}

impl Row {
    pub(crate) fn line(&self) -> String {
        let Self { group, what, figure, target, verdict } = self;
        format!("| {what} | {figure} | {target} | {verdict} | `{group}` |")
    }
}

/// The run as the page names it, or why its figures do not go into the page.
pub(crate) fn run(day: &str, cores: usize, cpu: &str, load: f64, loaded: bool) -> Result<String, String> {
    let run = format!("{day}, {cores} cores, {cpu}, load average {load:.2} at the start");
    match load > LOAD * cores as f64 {
        false => Ok(run),
        true if loaded => Ok(run + ", beside other load (`--loaded`)"),
        true => Err(format!(
            "the load average is {load:.2} on {cores} cores: --write takes at most {LOAD} a core; wait, or add --loaded"
        )),
    }
}

/// `page` with `rows` of one run in a section, in place of all rows of the same groups there. Other groups keep
/// their rows and their runs. A section that the page does not have is added at its end.
pub(crate) fn replace_rows(page: &str, section: &str, run: &str, rows: &[Row]) -> Result<String, String> {
    let begin = format!("<!-- scripts/bench --write: {section} -->");
    let (before, old, after) = match page.split_once(&begin) {
        None => (format!("{}\n\n## {section}\n\n", page.trim_end()), "", "\n"),
        Some((before, rest)) => {
            let parts = rest.split_once(END).filter(|(old, _)| !old.contains("<!--"));
            let (old, after) = parts.ok_or_else(|| format!("`{END}` is missing after `{begin}`"))?;
            (before.to_owned(), old, after)
        }
    };
    let mut table: Vec<String> =
        old.lines().filter(|line| group_of(line).is_some()).map(String::from).collect();
    let mut runs: Vec<(String, String)> = old.lines().flat_map(groups_and_run).collect();
    let mut groups: Vec<&str> = rows.iter().map(|row| row.group).collect();
    groups.dedup();
    for group in groups {
        let at = table.iter().position(|line| group_of(line) == Some(group)).unwrap_or(table.len());
        table.retain(|line| group_of(line) != Some(group));
        table.splice(at..at, rows.iter().filter(|row| row.group == group).map(Row::line));
        runs.retain(|(of, _)| of != group);
        runs.push((group.to_owned(), run.to_owned()));
    }
    let mut text = format!("{begin}\n\n{HEAD}");
    for line in table {
        let _ = writeln!(text, "{line}");
    }
    text += "\nMeasured:\n\n";
    // One line for all groups of a run.
    while let Some((_, first)) = runs.first().cloned() {
        let (same, others): (Vec<_>, Vec<_>) = runs.into_iter().partition(|(_, run)| *run == first);
        let groups: Vec<String> = same.iter().map(|(group, _)| format!("`{group}`")).collect();
        let _ = writeln!(text, "- {}: {first}", groups.join(", "));
        runs = others;
    }
    Ok(format!("{before}{text}\n{END}{after}"))
}

/// The last cell of a row, which is in backquotes.
fn group_of(line: &str) -> Option<&str> {
    Some(line.strip_suffix("` |")?.rsplit_once("| `")?.1)
}

fn groups_and_run(line: &str) -> Vec<(String, String)> {
    let Some((groups, run)) = line.strip_prefix("- `").and_then(|line| line.split_once("`: ")) else {
        return Vec::new();
    };
    groups.split("`, `").map(|group| (group.to_owned(), run.to_owned())).collect()
}
