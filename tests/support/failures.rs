//! The rows of `docs/internals/failures.md`. A test causes a failure, and passes the client's answer and the
//! person's output; the page must have exactly this row. With `KFP_CREDS_TEST_WRITE_FAILURES=1` the row is
//! written into the page.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// A failure in a test. `…` replaces what differs from run to run (see [`steady`]).
#[derive(Debug)]
pub(crate) struct Happened {
    /// The heading above the row.
    pub(crate) part: &'static str,
    pub(crate) case: &'static str,
    /// The answer to the program in the container, or how the start ended.
    pub(crate) client: String,
    /// The lines on the terminal.
    pub(crate) person: String,
    /// What the test did afterwards and saw.
    pub(crate) recovers: &'static str,
}

pub(crate) fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/internals/failures.md")
}

impl Happened {
    fn row(&self) -> String {
        format!("| {} | {} | {} | {} |", self.case, cell(&self.client), cell(&self.person), self.recovers)
    }

    /// Fails unless the page has this row.
    pub(crate) fn is_on_the_page(&self) {
        if std::env::var("KFP_CREDS_TEST_WRITE_FAILURES").is_ok_and(|value| value == "1") {
            self.write();
        }
        let text = fs::read_to_string(page()).unwrap();
        let row = self.row();
        assert!(
            text.lines().any(|line| line == row),
            "docs/internals/failures.md is out of date; write it with KFP_CREDS_TEST_WRITE_FAILURES=1. It should say\n{row}\nand says\n{}",
            text.lines().find(|line| line.starts_with(&format!("| {} |", self.case))).unwrap_or("nothing")
        );
    }

    /// Replaces the existing row, or adds one at the end of its part.
    fn write(&self) {
        // Tests run at the same time, each in its own process.
        let lock = fs::File::open(page()).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let text = fs::read_to_string(page()).unwrap();
        let mut lines: Vec<String> = text.lines().map(String::from).collect();
        let start = format!("| {} |", self.case);
        match lines.iter().position(|line| line.starts_with(&start)) {
            Some(at) => lines[at] = self.row(),
            None => {
                let heading = format!("## {}", self.part);
                let at = lines.iter().position(|line| *line == heading).expect("the part is on the page");
                let rows = lines[at..].iter().position(|line| line.starts_with("|---")).unwrap() + at;
                let end = lines[rows..].iter().take_while(|line| line.starts_with('|')).count();
                lines.insert(rows + end, self.row());
            }
        }
        fs::write(page(), lines.join("\n") + "\n").unwrap();
    }
}

/// Puts each line in backquotes.
fn cell(text: &str) -> String {
    let line = |line: &str| {
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("`{}`", words.replace('`', "'").replace('|', "\\|"))
    };
    let lines: Vec<String> = text.lines().filter(|text| !text.trim().is_empty()).map(line).collect();
    if lines.is_empty() { "nothing".into() } else { lines.join("<br>") }
}

/// `text` with `…` in place of loopback ports and of each text in `varying`.
pub(crate) fn steady(text: &str, varying: &[&str]) -> String {
    let mut text = text.to_owned();
    for one in varying.iter().filter(|one| !one.is_empty()) {
        text = text.replace(one, "…");
    }
    let mut parts = text.split("127.0.0.1:");
    let mut steady = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        steady += "127.0.0.1:…";
        steady += part.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    steady
}
