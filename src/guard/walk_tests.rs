//! Tests of where keys are searched: directories.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::archive_tests::noise;
use super::memory::Memory;
use super::stream_tests::{gzip, tar_of};
use super::tests::{aws_file, service_account, user};
use super::walk::{Budget, ScanResult, look};
use super::{Guard, GuardRules, SecretKind};

pub(super) struct Tree(pub(super) PathBuf);

impl Tree {
    pub(super) fn new(name: &str) -> Self {
        let nanos = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let path = std::env::temp_dir().join(format!("kc-guard-{name}-{}-{nanos}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }

    pub(super) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn look(&self, place: &str, budget: Budget) -> ScanResult {
        look(&[self.0.join(place)], &Guard::default(), budget, &Memory::default(), 8)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn places(seen: &ScanResult) -> Vec<(&Path, SecretKind)> {
    seen.finds.iter().map(|(_, find)| (Path::new(&find.place), find.kind)).collect()
}

#[test]
fn parents_links_and_deep_places_lead_to_keys() {
    let tree = Tree::new("parents");
    let login =
        tree.write("home/.config/gcloud/application_default_credentials.json", &user("authorized_user"));
    let deep = tree.write("home/a/b/c/d/notes", &service_account());
    tree.write("home/a/plain.txt", "nothing to see here, move along please\n");
    symlink(tree.0.join("home/.config"), tree.0.join("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tree.0.join("home/pipe"),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    for (place, found) in [
        (
            "",
            vec![
                (login.as_path(), SecretKind::AuthorizedUser),
                (deep.as_path(), SecretKind::ServiceAccountKey),
            ],
        ),
        ("home/.config", vec![(login.as_path(), SecretKind::AuthorizedUser)]),
        ("home/.config/gcloud", vec![(login.as_path(), SecretKind::AuthorizedUser)]),
        ("link", vec![(login.as_path(), SecretKind::AuthorizedUser)]),
        ("home/a/b/c/d/notes", vec![(deep.as_path(), SecretKind::ServiceAccountKey)]),
        ("home/a/plain.txt", vec![]),
    ] {
        let seen = tree.look(place, Budget::REQUEST);
        assert_eq!(places(&seen), found, "{place}");
        assert_eq!(seen.unverified, Vec::<String>::new(), "{place}");
    }
    let allow = Guard {
        rules: GuardRules { allow: vec![tree.0.join("link")], ..GuardRules::default() },
        ..Guard::default()
    };
    let seen = look(&[tree.0.join("home")], &allow, Budget::REQUEST, &Memory::default(), 8);
    assert_eq!(places(&seen), [(deep.as_path(), SecretKind::ServiceAccountKey)], "an excepted directory");
}

#[test]
fn a_missing_path_does_not_count_as_clean() {
    let tree = Tree::new("absent");
    assert_eq!(tree.look("nothing", Budget::REQUEST).unverified.len(), 1);
}

#[test]
fn a_large_tree_ends_at_its_budget_and_says_so() {
    let tree = Tree::new("large");
    let login = tree.write(".aws/credentials", &aws_file());
    for folder in 0..40 {
        let folder = tree.0.join(format!("d{folder}"));
        fs::create_dir_all(&folder).unwrap();
        for file in 0..500 {
            fs::write(folder.join(format!("part-{file}.parquet")), [b'x'; 64]).unwrap();
        }
    }
    let budget = Budget { entries: 2_000, ..Budget::REQUEST };
    let seen = tree.look("", budget);
    assert_eq!(places(&seen), [(login.as_path(), SecretKind::AwsKey)], "the well-known place comes first");
    assert!(seen.unverified[0].contains("was not looked at"), "{:?}", seen.unverified);
    assert!(seen.entries <= 2_000 + 1, "{} names", seen.entries);
    // A second scan remembers which files were clean, until they change.
    let memory = Memory::default();
    let whole = |tree: &Tree| look(&[tree.0.join("d0")], &Guard::default(), Budget::REQUEST, &memory, 8);
    assert_eq!(whole(&tree).files, 500);
    assert_eq!(whole(&tree).files, 0);
    tree.write("d0/part-7.parquet", &aws_file());
    assert_eq!((whole(&tree).files, whole(&tree).finds.len()), (1, 1));
}

/// A large directory costs bytes: 1 100 files of 100 MiB, which take no room on the disk.
#[test]
fn a_scan_of_100_gigabytes_stays_within_its_budget() {
    let tree = Tree::new("sparse");
    let login = tree.write(".aws/credentials", &aws_file());
    for part in 0..1_100 {
        let file = fs::File::create(tree.0.join(format!("part-{part}.parquet"))).unwrap();
        file.set_len(100 << 20).unwrap();
    }
    let budget = Budget::REQUEST;
    let seen = tree.look("", budget);
    assert_eq!(places(&seen), [(login.as_path(), SecretKind::AwsKey)]);
    assert!(seen.bytes <= budget.bytes + (4 << 20), "{} bytes", seen.bytes);
    assert!(seen.bytes > budget.bytes / 2 && seen.files < 1_100, "{} files", seen.files);
    assert!(seen.unverified[0].contains("was not looked at"), "{:?}", seen.unverified);
}

#[test]
fn one_root_with_many_keys_hides_no_other() {
    let tree = Tree::new("many");
    for n in 0..20 {
        tree.write(&format!("full/key-{n}.json"), &service_account());
    }
    let other = tree.write("other/login.json", &user("authorized_user"));
    let roots = [tree.0.join("full"), tree.0.join("other")];
    let seen = look(&roots, &Guard::default(), Budget::REQUEST, &Memory::default(), 4);
    assert_eq!(seen.finds.iter().filter(|(root, _)| *root == 0).count(), 4);
    let of_other: Vec<_> = seen.finds.iter().filter(|(root, _)| *root == 1).collect();
    assert!(matches!(&of_other[..], [(_, find)] if Path::new(&find.place) == other), "{of_other:?}");
}

#[test]
fn the_outputs_of_a_pipeline_are_no_keys() {
    let tree = Tree::new("outputs");
    let run = "local_outputs/etl-2026-11-23-06-04-22-567757/load";
    tree.write(
        &format!("{run}/executor_output.json"),
        "{\"parameterValues\": {\"Output\": 3, \"token\": \"none\"}, \"artifacts\": {}}",
    );
    tree.write(&format!("{run}/model/weights.bin"), &"\0\u{1}\u{2}abc".repeat(40_000));
    tree.write(&format!("{run}/data.csv"), &"id,name,key\n1,a,b\n".repeat(3_000));
    tree.write(&format!("{run}/index.html"), "<html><input type=password name=password></html>");
    tree.write(&format!("{run}/requirements.txt"), "kfp==2.17.0\ngoogle-auth==2.40.0\ncryptography==45.0\n");
    tree.write(
        "pipeline.yaml",
        "components:\n  comp-load:\n    executorLabel: exec-load\nschemaVersion: 2.1.0\n",
    );
    let seen = tree.look("", Budget::REQUEST);
    assert_eq!((seen.finds, seen.unverified), (vec![], vec![]));
}

fn told(seen: &ScanResult, tree: &Tree) -> (Vec<String>, Vec<String>) {
    let short = |text: &str| text.replace(&tree.0.display().to_string(), "");
    let finds = seen.finds.iter().map(|(_, find)| short(&find.to_string())).collect();
    (finds, seen.unverified.iter().map(|text| short(text)).collect())
}

/// The verdict does not depend on the clock, on what an earlier scan read, or on the order of names in a file
/// system.
#[test]
fn the_verdict_is_the_same_each_time_and_on_every_machine() {
    let mut all = vec![];
    for reversed in [false, true] {
        let tree = Tree::new("same");
        let mut names: Vec<String> = (0..300).map(|n| format!("d{}/part-{n}.parquet", n % 7)).collect();
        if reversed {
            names.reverse();
        }
        for name in &names {
            tree.write(name, &"x".repeat(1000));
        }
        // The budget of 10 000 000 bytes reaches this file, the smaller budgets do not.
        tree.write("d3/part-zz.parquet", &service_account());
        for bytes in [20_000, 100_000, 10_000_000] {
            let (memory, budget) = (Memory::default(), Budget { bytes, ..Budget::REQUEST });
            let look = || look(std::slice::from_ref(&tree.0), &Guard::default(), budget, &memory, 8);
            let seen: Vec<_> = (0..3).map(|_| told(&look(), &tree)).collect();
            assert!(seen[0] == seen[1] && seen[1] == seen[2], "with {bytes} bytes: {seen:?}");
            assert_eq!(seen[0].0.len(), usize::from(bytes == 10_000_000), "{seen:?}");
            all.push(seen[0].clone());
        }
    }
    assert_eq!(all[..3], all[3..], "whatever the order in which files were made");
}

#[test]
fn a_refusal_is_repeated_without_a_walk_until_the_file_changes() {
    let tree = Tree::new("again");
    for n in 0..500 {
        tree.write(&format!("a/{n}.txt"), "nothing to see here, move along please\n");
    }
    let key = tree.write("z/key.json", &service_account());
    let memory = Memory::default();
    let guard = Guard::default();
    let look = |guard: &Guard| look(std::slice::from_ref(&tree.0), guard, Budget::REQUEST, &memory, 4);
    let first = look(&guard);
    assert_eq!(
        (places(&first), first.entries > 500),
        (vec![(key.as_path(), SecretKind::ServiceAccountKey)], true)
    );
    let again = look(&guard);
    assert_eq!((places(&again), again.entries), (places(&first), 0));
    let rules = GuardRules { allow: vec![key.clone()], ..GuardRules::default() };
    assert_eq!(look(&Guard { rules, ..Guard::default() }).finds, [], "an exception counts at once");
    assert_eq!(look(&guard).finds.len(), 1);
    fs::write(&key, "no longer a key, and long enough to be read\n").unwrap();
    assert_eq!(look(&guard).finds, []);
}

#[test]
fn packages_and_repositories_are_searched_for_known_names() {
    let tree = Tree::new("packages");
    let places_of_packages = [
        ".git/objects/ab",
        "node_modules/x/test",
        ".venv/lib/python3.11/site-packages/Cryptodome/SelfTest",
        "env/lib",
        "app/__pycache__",
    ];
    for place in places_of_packages {
        tree.write(&format!("{place}/test_pkcs1.py"), &service_account());
    }
    tree.write("env/pyvenv.cfg", "home = /usr/bin\nversion = 3.11.2\n");
    tree.write(".venv/pyvenv.cfg", "home = /usr/bin\nversion = 3.11.2\n");
    let seen = tree.look("", Budget::REQUEST);
    assert_eq!(places(&seen), []);
    let told = seen.unverified.join("; ");
    assert!(told.contains("looked at for well-known names only") && seen.unverified.len() == 1, "{told}");
    let mut expected = vec![];
    for place in places_of_packages {
        expected.push(tree.write(&format!("{place}/service_account.json"), &service_account()));
    }
    let seen =
        look(std::slice::from_ref(&tree.0), &Guard::default(), Budget::REQUEST, &Memory::default(), 99);
    let mut found: Vec<_> = seen.finds.iter().map(|(_, find)| PathBuf::from(&find.place)).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    let seen = look(std::slice::from_ref(&tree.0), &Guard::default(), Budget::WHOLE, &Memory::default(), 99);
    assert_eq!((seen.finds.len(), seen.unverified), (10, vec![]), "scan looks at everything");
}

#[test]
fn small_archives_are_opened_and_large_ones_reported() {
    let tree = Tree::new("archives");
    let key = service_account();
    let small = gzip(&tar_of(&[("deep/key.json", key.as_bytes())]));
    let large = tar_of(&[("a.bin", &noise(400_000)), ("key.json", key.as_bytes())]);
    fs::write(tree.0.join("small.tgz"), &small).unwrap();
    let inner = format!("{}!/deep/key.json", tree.0.join("small.tgz").display());
    let memory = Memory::default();
    let look = |budget, guard: &Guard| look(std::slice::from_ref(&tree.0), guard, budget, &memory, 4);
    assert_eq!(
        places(&look(Budget::REQUEST, &Guard::default())),
        [(Path::new(&inner), SecretKind::ServiceAccountKey)]
    );
    // Excepted inside the archive, by itself and with its archive.
    for allow in [
        inner.clone(),
        format!("{}!/deep", tree.0.join("small.tgz").display()),
        tree.0.join("small.tgz").display().to_string(),
    ] {
        let rules = GuardRules { allow: vec![allow.clone().into()], ..GuardRules::default() };
        let seen = look(Budget::REQUEST, &Guard { rules, ..Guard::default() });
        assert_eq!((seen.finds, seen.unverified), (vec![], vec![]), "{allow}");
    }
    fs::remove_file(tree.0.join("small.tgz")).unwrap();
    fs::write(tree.0.join("large.tar"), &large).unwrap();
    for _ in 0..2 {
        let seen = look(Budget::REQUEST, &Guard::default());
        assert!(
            seen.finds.is_empty() && seen.unverified[0].contains("large.tar (archives"),
            "{:?}",
            seen.unverified
        );
    }
    let seen = look(Budget::WHOLE, &Guard::default());
    assert_eq!((seen.finds.len(), seen.unverified), (1, vec![]));
}
