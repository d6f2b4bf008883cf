//! The parts of a release agree: the workflow's archives, what `cargo binstall` looks for, and the formula.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::session::Folder;

const TARGETS: [&str; 4] =
    ["aarch64-apple-darwin", "x86_64-apple-darwin", "aarch64-unknown-linux-gnu", "x86_64-unknown-linux-gnu"];

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

fn archive(target: &str) -> String {
    format!("kfp-creds-{target}.tar.gz")
}

/// Sixty-four digits that differ for each target.
fn sum(target: &str) -> String {
    format!("{:0>64x}", target.bytes().fold(7_u64, |sum, byte| sum * 31 % 0xffff_ffff + u64::from(byte)))
}

fn formula(targets: &[&str]) -> Output {
    let folder = Folder::new("release");
    let sums = folder.0.join("SHA256SUMS");
    let lines: String =
        targets.iter().map(|target| format!("{}  {}\n", sum(target), archive(target))).collect();
    fs::write(&sums, lines + &format!("{}  kfp_creds-9.8.7.tar.gz\n", sum("sdist"))).unwrap();
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/formula"))
        .args(["9.8.7", "https://git.example/kfp-creds"])
        .arg(&sums)
        .output()
        .unwrap()
}

#[test]
fn the_formula_matches_the_release() {
    let out = formula(&TARGETS);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    for target in TARGETS {
        let url =
            format!("url \"https://git.example/kfp-creds/releases/download/v9.8.7/{}\"", archive(target));
        let (_, after) = text.split_once(&url).unwrap_or_else(|| panic!("{url}\n{text}"));
        assert_eq!(after.lines().nth(1).unwrap().trim(), format!("sha256 \"{}\"", sum(target)));
    }
    assert!(!text.contains(&sum("sdist")), "{text}");
    // Without one of the archives there is no formula.
    for (index, target) in TARGETS.iter().enumerate() {
        let others: Vec<&str> =
            TARGETS.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, one)| *one).collect();
        let out = formula(&others);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && out.stdout.is_empty() && said.contains(target), "{target}: {said}");
    }
}

/// The output of `scripts/release-notes` in a checkout with this manifest and changelog.
fn notes(manifest: &str, changelog: &str) -> Output {
    let folder = Folder::new("notes");
    fs::create_dir(folder.0.join("scripts")).unwrap();
    fs::write(folder.0.join("Cargo.toml"), manifest).unwrap();
    fs::write(folder.0.join("CHANGELOG.md"), changelog).unwrap();
    let script = folder.0.join("scripts/release-notes");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/release-notes"), &script).unwrap();
    Command::new(script).args(["9.8.7", "https://git.example/kfp-creds"]).output().unwrap()
}

#[test]
fn the_changelog_is_of_the_version_that_is_built() {
    let changelog = read("CHANGELOG.md");
    let heading = changelog.lines().find_map(|line| line.strip_prefix("## [")).unwrap();
    let (version, date) = heading.split_once("] - ").unwrap();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    let digits = |date: &str| date.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    assert!(date == "unreleased" || date.len() == 10 && digits(date), "{date}");
}

#[test]
fn a_release_has_notes_and_agrees_with_its_tag() {
    let manifest = "version = \"9.8.7\"\nrepository = \"https://git.example/kfp-creds\"\n";
    let changelog = "# Changelog\n\n## [9.8.7] - 2026-11-30\n\n### Added\n\n- One.\n\n## [9.8.6] - 2026-10-01\n\n- Older.\n";
    let out = notes(manifest, changelog);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8(out.stdout).unwrap().trim(), "### Added\n\n- One.");
    let refused = |manifest: &str, changelog: &str, why: &str| {
        let out = notes(manifest, changelog);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && out.stdout.is_empty() && said.contains(why), "{said}");
    };
    refused(&manifest.replace("9.8.7", "9.8.8"), changelog, "another version");
    refused("version = \"9.8.7\"\n", changelog, "add repository = \"https://git.example/kfp-creds\"");
    refused(manifest, &changelog.replace("2026-11-30", "unreleased"), "## [9.8.7] - DATE");
    refused(manifest, &changelog.replace("[9.8.7]", "[Unreleased]"), "## [9.8.7] - DATE");
}

#[test]
fn the_workflow_makes_the_archives_that_are_looked_for() {
    let (workflow, manifest) = (read(".github/workflows/release.yml"), read("Cargo.toml"));
    assert!(manifest.contains("/releases/download/v{ version }/{ name }-{ target }.tar.gz\""));
    let made =
        ["programs/kfp-creds-$(uname -m)-unknown-linux-gnu.tar.gz", "programs/kfp-creds-$TARGET.tar.gz"];
    assert!(made.into_iter().all(|archive| workflow.contains(archive)));
    for target in TARGETS.into_iter().filter(|target| target.ends_with("-darwin")) {
        assert!(workflow.contains(target), "{target}");
    }
    // The steps are pinned, and the workflow declares its permissions.
    let steps = workflow.lines().filter_map(|line| line.trim().strip_prefix("- uses: "));
    for step in steps {
        let (_, pin) = step.split_once('@').unwrap();
        let hash = pin.split(' ').next().unwrap();
        assert!(hash.len() == 40 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{step}");
    }
    assert!(workflow.contains("\npermissions: {}\n"));
}
