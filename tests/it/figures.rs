//! What `scripts/bench --write` does to `docs/internals/figures.md`, and that the page has tables of this form.

use std::path::Path;

#[path = "../../benches/speed/page.rs"]
mod page;

use page::{HEAD, Row, WITHOUT_ENGINE, replace_rows};

fn row(group: &'static str, what: &str, figure: &str) -> Row {
    let (what, figure) = (what.to_owned(), figure.to_owned());
    Row { group, what, figure, target: "≤ 1 ms".into(), verdict: "met" }
}

/// Some prose, then the section of an engine with three groups of two runs.
fn written() -> String {
    let first = [row("attach", "a", "1"), row("creates", "b", "2"), row("creates", "c", "3")];
    let page = replace_rows("# Figures\n\nProse.\n", "Engine 1", "monday", &first).unwrap();
    replace_rows(&page, "Engine 1", "tuesday", &[row("start", "d", "4")]).unwrap() + "\nMore prose.\n"
}

#[test]
fn the_bench_adds_a_section_that_the_page_lacks() {
    let table = "| a | 1 | ≤ 1 ms | met | `attach` |\n| b | 2 | ≤ 1 ms | met | `creates` |\n\
        | c | 3 | ≤ 1 ms | met | `creates` |\n| d | 4 | ≤ 1 ms | met | `start` |\n";
    let expected = format!(
        "# Figures\n\nProse.\n\n## Engine 1\n\n<!-- scripts/bench --write: Engine 1 -->\n\n{HEAD}{table}\n\
         Measured:\n\n- `attach`, `creates`: monday\n- `start`: tuesday\n\n\
         <!-- scripts/bench --write: end -->\n\nMore prose.\n"
    );
    assert_eq!(written(), expected);
    let other = replace_rows(&expected, "Engine 2", "monday", &[row("attach", "a", "9")]).unwrap();
    let added = other.strip_prefix(&expected).unwrap();
    assert!(added.starts_with("\n## Engine 2\n"), "{added}");
}

#[test]
fn the_bench_replaces_only_rows_of_measured_groups() {
    let page = written();
    let with_two = replace_rows(&page, "Engine 2", "monday", &[row("creates", "b", "2")]).unwrap();
    let rows = [row("creates", "only one now", "5"), row("leases", "new", "6")];
    let now = replace_rows(&with_two, "Engine 1", "wednesday", &rows).unwrap();
    let expected = with_two
        .replacen("| b | 2 | ≤ 1 ms | met | `creates` |\n| c | 3 |", "| only one now | 5 |", 1)
        .replacen("`start` |\n", "`start` |\n| new | 6 | ≤ 1 ms | met | `leases` |\n", 1)
        .replacen("`attach`, `creates`: monday", "`attach`: monday", 1)
        .replacen("`start`: tuesday\n", "`start`: tuesday\n- `creates`, `leases`: wednesday\n", 1);
    assert_eq!(now, expected);
    assert_eq!(replace_rows(&now, "Engine 1", "wednesday", &rows).unwrap(), now);
}

#[test]
fn the_bench_refuses_a_page_whose_end_marker_is_missing() {
    let with_two = replace_rows(&written(), "Engine 2", "monday", &[row("attach", "a", "9")]).unwrap();
    let broken = with_two.replacen("<!-- scripts/bench --write: end -->", "", 1);
    let error = replace_rows(&broken, "Engine 1", "monday", &[row("attach", "a", "1")]).unwrap_err();
    assert!(error.contains("is missing after `<!-- scripts/bench --write: Engine 1 -->`"), "{error}");
    assert!(replace_rows(&broken, "Engine 2", "monday", &[row("attach", "a", "1")]).is_ok());
}

#[test]
fn the_bench_writes_beside_other_load_only_if_asked() {
    let run = |load, loaded| page::run("2026-12-01", 2, "CPU", load, loaded);
    let line = |load| format!("2026-12-01, 2 cores, CPU, load average {load} at the start");
    assert_eq!(run(3.0, false), Ok(line("3.00")));
    assert_eq!(run(3.0, true), Ok(line("3.00")));
    let error = run(3.1, false).unwrap_err();
    assert!(error.contains("3.10 on 2 cores") && error.contains("add --loaded"), "{error}");
    assert_eq!(run(3.1, true), Ok(line("3.10") + ", beside other load (`--loaded`)"));
}

/// So that the next run changes nothing but its own rows, and every figure has its run.
#[test]
fn tables_of_the_page_are_as_the_bench_writes_them() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/internals/figures.md");
    let page = std::fs::read_to_string(page).unwrap();
    let sections: Vec<(&str, &str)> = page
        .split("<!-- scripts/bench --write: ")
        .filter_map(|part| part.split_once(" -->"))
        .filter(|(title, _)| *title != "end")
        .collect();
    assert!(sections.len() >= 3, "{sections:?}");
    for (title, text) in sections {
        assert_eq!(replace_rows(&page, title, "", &[]).as_ref(), Ok(&page), "{title}");
        assert!(page.contains(&format!("\n## {title}\n")), "{title}");
        let runs: Vec<&str> = text.lines().filter(|line| line.starts_with("- `")).collect();
        for line in text.lines().skip(4).filter(|line| line.starts_with("| ")) {
            let cells: Vec<&str> = line.trim_matches(['|', ' ']).split(" | ").collect();
            let [_, _, _, verdict, group] = cells[..] else { panic!("five cells: {line}") };
            assert!(["met", "MISSED", "stated"].contains(&verdict), "{line}");
            assert!(runs.iter().any(|run| run.contains(group)), "{title}: when was {group} measured?");
            let own = WITHOUT_ENGINE.1.contains(&group.trim_matches('`'));
            assert_eq!(title == WITHOUT_ENGINE.0, own, "{title}: {line}");
        }
    }
}
