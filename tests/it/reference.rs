//! Pages of `docs/reference` against the program: the command line, the exit codes and the metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use clap::{Arg, ArgAction, Command, CommandFactory};
use kfp_creds::cli::Cli;
use kfp_creds::config;
use kfp_creds::record::metrics::{Gauges, Metrics};

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The cells of each row of a table.
fn cells(line: &str) -> Vec<String> {
    let inside = line.trim().trim_start_matches('|').trim_end_matches('|').replace("\\|", "\u{0}");
    inside.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
}

/// The default of every config key, as on the page about the config.
fn defaults() -> BTreeMap<String, String> {
    let text = config::reference();
    let rows = text.lines().filter(|line| line.starts_with("| `")).map(cells);
    rows.map(|row| (row[0].split('`').nth(1).unwrap().to_owned(), row[2].clone())).collect()
}

fn in_table(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// How an argument is written: `--config FILE`.
fn spelling(arg: &Arg) -> String {
    let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let names = arg.get_value_names().unwrap_or_default();
    let value = names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let name = match (arg.get_long(), arg.get_short()) {
        (Some(long), _) => format!("--{long}"),
        (None, Some(short)) => format!("-{short}"),
        (None, None) => return in_table(&value),
    };
    let value = if takes { format!(" {value}") } else { String::new() };
    in_table(&format!("{name}{value}"))
}

fn row(arg: &Arg, keys: &BTreeMap<String, String>) -> String {
    let help = in_table(&arg.get_help().map(ToString::to_string).unwrap_or_default());
    let (help, said) = match help.split_once(" [default: ") {
        Some((help, rest)) => (help.to_owned(), Some(rest.trim_end_matches(']').to_owned())),
        None => (help, None),
    };
    // `--all` of `cut-off` has the name of a config key, but does not set it.
    let is_flag_of_key =
        |flag: config::Flag| arg.get_id().as_str() == flag.path && help == in_table(flag.help);
    let key = keys.get(arg.get_id().as_str()).filter(|_| config::flags().any(is_flag_of_key));
    let values: Vec<String> =
        arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    let values = if values.is_empty() || !takes_value(arg) {
        String::new()
    } else {
        format!("One of {}", values.join(", "))
    };
    let set = key.map(|_| format!("Sets the key `{}`", arg.get_id())).unwrap_or_default();
    let sentences = [help, values, set].into_iter().filter(|sentence| !sentence.is_empty());
    let says = sentences.collect::<Vec<_>>().join(". ");
    let default = match (arg.get_default_values().first(), said, key) {
        _ if arg.is_required_set() => "required".to_owned(),
        _ if matches!(arg.get_action(), ArgAction::SetTrue) => "off".to_owned(),
        (Some(value), _, _) if takes_value(arg) => format!("`{}`", value.to_string_lossy()),
        (_, Some(said), _) => said,
        (_, _, Some(default)) => default.clone(),
        _ => "-".to_owned(),
    };
    format!("| `{}` | {default} | {says} |\n", spelling(arg))
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// The section of `command`, and those of its subcommands.
fn sections(command: &Command, keys: &BTreeMap<String, String>, text: &mut String) {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help")
    {
        if inner.has_subcommands() {
            sections(inner, keys, text);
            continue;
        }
        let about = inner.get_about().map(ToString::to_string).unwrap_or_default();
        let usage = inner.clone().render_usage().to_string();
        let name = inner.get_bin_name().unwrap();
        let _ = write!(text, "\n## {name}\n\n{about}.\n\n    {}\n\n", usage.trim_start_matches("Usage: "));
        let shown = |arg: &&Arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str());
        let args: Vec<&Arg> = inner.get_arguments().filter(shown).collect();
        let rows: String = args.iter().map(|arg| row(arg, keys)).collect();
        if !rows.is_empty() {
            let _ = writeln!(text, "| argument | default | what it does |\n|---|---|---|\n{rows}");
        }
        let after = inner.get_after_help().map(ToString::to_string).unwrap_or_default();
        let example = after.lines().next().unwrap_or_default().trim_start_matches("Example: ");
        let _ = writeln!(text, "Example: `{example}`");
    }
}

const HEAD: &str = "\
# Command line

Generated from the program's own definition of its commands by `cargo test`; do not edit by hand.

A flag takes precedence over the environment, and the environment over the config file. A flag that sets a key of the config says so;
[the config reference](config.md) has the key's variable. Every command has `--help`, and `kfp-creds --version` prints the version.
What comes after `--` or after the first word of the command of `run` belongs to that command.

## Exit codes

| code | of | meaning |
|---|---|---|
| 0 | all but `run` | success |
| 1 | `scan`, `conformance` | `scan` found a key, or `conformance` found a deviation |
| 64 | all but `run` | wrong use of the command line; a target, container or file that does not exist or cannot be used, but for the row 66; or `--yes` is missing for a `cut-off` that disables or denies something |
| 66 | all but `run` | no usable credential, or `explain FILE` names a file that does not exist |
| 69 | all but `run` | the engine, a session or the target cannot be reached |
| 70 | all but `run` | a bug in kfp-creds |
| 77 | all but `run` | not permitted, or `scan` found no key but could not read everything |
| 78 | all but `run` | something is wrong in the config |
| 125 | `run` | kfp-creds itself failed, for any of the reasons above |
| 126 | `run` | the command cannot be executed |
| 127 | `run` | the command was not found |
| other | `run` | the exit code of the command, or 128 + n if signal n ended it |

At a terminal, Ctrl-C goes to the command of `run`: in `ipython` or `jupyter lab` it interrupts a statement and does not end the session. The session
ends when the command ends, on SIGTERM, SIGHUP or SIGQUIT, and at the third Ctrl-C within 2 s. kfp-creds then stops the containers that still run
(unless `--keep`).
";

#[test]
fn the_page_of_the_command_line_is_up_to_date() {
    let mut program = Cli::command();
    program.build();
    let mut text = HEAD.to_owned();
    sections(&program, &defaults(), &mut text);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/command-line.md");
    if fs::read_to_string(&path).unwrap_or_default() != text {
        fs::write(&path, &text).unwrap();
        panic!("docs/reference/command-line.md was out of date; it is rewritten now, look at the difference");
    }
    assert!(
        text.contains("\n## kfp-creds config trust\n") && text.contains("| `--session NAME` |"),
        "{text}"
    );
}

#[test]
fn the_exit_codes_listed_are_those_of_main() {
    let main = read("src/main.rs");
    let function = main.split("fn exit_code(").nth(1).unwrap();
    let numbers = |text: &str| -> BTreeSet<u8> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    let returned = numbers(function.split_once('{').unwrap().1);
    let listed: BTreeSet<u8> = HEAD.lines().filter_map(|line| cells(line)[0].parse().ok()).collect();
    assert_eq!(listed, returned);
    assert!(returned.len() > 8, "{returned:?}");
}

/// Name, type and labels of every metric that Prometheus is served.
fn rendered() -> Vec<[String; 3]> {
    let page = Metrics::default().render(Gauges::default());
    let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let labels = |name: &str| -> String {
        let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
        let series = page.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
        let inside = series.filter_map(|(labels, _)| labels.split_once('{')?.1.strip_suffix('}'));
        let pairs = inside.flat_map(|labels| labels.split(',')).filter_map(|pair| pair.split_once('='));
        for (label, value) in pairs.filter(|(label, _)| *label != "le") {
            let at = found.iter().position(|(known, _)| *known == label).unwrap_or_else(|| {
                found.push((label, vec![]));
                found.len() - 1
            });
            let value = value.trim_matches('"');
            if !found[at].1.contains(&value) {
                found[at].1.push(value);
            }
        }
        let shown = found.iter().map(|(label, values)| format!("`{label}`: `{}`", values.join("`, `")));
        let shown = shown.collect::<Vec<_>>().join("; ");
        if shown.is_empty() { "-".into() } else { shown }
    };
    families.map(|(name, kind)| [format!("`{name}`"), kind.into(), labels(name)]).collect()
}

#[test]
fn the_page_of_metrics_lists_what_is_served() {
    let text = read("docs/reference/metrics.md");
    let rows: Vec<Vec<String>> =
        text.lines().filter(|line| line.starts_with("| `kfp_creds_")).map(cells).collect();
    let listed: Vec<[String; 3]> =
        rows.iter().map(|row| [row[0].clone(), row[1].clone(), row[2].clone()]).collect();
    assert_eq!(listed, rendered());
    assert!(rows.iter().all(|row| row[3].ends_with('.')), "each has a sentence that says what it means");
    let page = Metrics::default().render(Gauges::default());
    let mut bounds: Vec<&str> =
        page.lines().filter_map(|line| line.split("le=\"").nth(1)?.split('"').next()).collect();
    bounds.truncate(bounds.iter().position(|bound| *bound == "+Inf").unwrap());
    assert!(text.contains(&format!("`{}`", bounds.join("`, `"))), "the bounds are {bounds:?}");
    // Every value of a label has an explanation.
    for words in rendered().iter().map(|row| &row[2]).filter(|words| words.contains("outcome")) {
        for word in
            words.split('`').skip(1).step_by(2).filter(|word| !["outcome", "route", "kind"].contains(word))
        {
            assert!(text.matches(&format!("`{word}`")).count() > 1, "{word} is not explained");
        }
    }
}
