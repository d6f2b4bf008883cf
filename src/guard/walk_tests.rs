//! Where keys are looked for: directories.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::tests::{aws_file, service_account, user};
use super::walk::{Budget, Memory, Seen, look};
use super::{Guard, Kind, Rules};

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

    fn look(&self, place: &str, budget: Budget) -> Seen {
        look(&[self.0.join(place)], &Guard::default(), budget, &Memory::default(), 8)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn places(seen: &Seen) -> Vec<(&Path, Kind)> {
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
        ("", vec![(login.as_path(), Kind::AuthorizedUser), (deep.as_path(), Kind::ServiceAccountKey)]),
        ("home/.config", vec![(login.as_path(), Kind::AuthorizedUser)]),
        ("home/.config/gcloud", vec![(login.as_path(), Kind::AuthorizedUser)]),
        ("link", vec![(login.as_path(), Kind::AuthorizedUser)]),
        ("home/a/b/c/d/notes", vec![(deep.as_path(), Kind::ServiceAccountKey)]),
        ("home/a/plain.txt", vec![]),
    ] {
        let seen = tree.look(place, Budget::REQUEST);
        assert_eq!(places(&seen), found, "{place}");
        assert_eq!(seen.unverified, Vec::<String>::new(), "{place}");
    }
    let allow =
        Guard { rules: Rules { allow: vec![tree.0.join("link")], ..Rules::default() }, ..Guard::default() };
    let seen = look(&[tree.0.join("home")], &allow, Budget::REQUEST, &Memory::default(), 8);
    assert_eq!(places(&seen), [(deep.as_path(), Kind::ServiceAccountKey)], "an excepted directory");
}

#[test]
fn what_is_not_there_is_not_clean() {
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
    assert_eq!(places(&seen), [(login.as_path(), Kind::AwsKey)], "the well-known place comes first");
    assert!(seen.unverified[0].contains("were not looked at"), "{:?}", seen.unverified);
    assert!(seen.entries <= 2_000 + 64, "{} names", seen.entries);
    let budget = Budget { time: Duration::ZERO, ..Budget::REQUEST };
    let seen = tree.look("", budget);
    assert_eq!(seen.entries, 0, "no time, and no name was read");
    assert!(seen.unverified[0].contains("were not looked at"), "{:?}", seen.unverified);
    // A second look remembers what was clean, until it changes.
    let memory = Memory::default();
    let whole = |tree: &Tree| look(&[tree.0.join("d0")], &Guard::default(), Budget::WHOLE, &memory, 8);
    assert_eq!(whole(&tree).files, 500);
    assert_eq!(whole(&tree).files, 0);
    tree.write("d0/part-7.parquet", &aws_file());
    assert_eq!((whole(&tree).files, whole(&tree).finds.len()), (1, 1));
}

/// Bytes are what a large directory costs: 1 100 files of 100 MiB, which take no room on the disk.
#[test]
fn of_a_hundred_gigabytes_no_more_than_the_budget_is_read() {
    let tree = Tree::new("sparse");
    let login = tree.write(".aws/credentials", &aws_file());
    for part in 0..1_100 {
        let file = fs::File::create(tree.0.join(format!("part-{part}.parquet"))).unwrap();
        file.set_len(100 << 20).unwrap();
    }
    // However fast the machine is.
    let budget = Budget { time: Duration::from_secs(600), ..Budget::REQUEST };
    let seen = tree.look("", budget);
    assert_eq!(places(&seen), [(login.as_path(), Kind::AwsKey)]);
    assert!(seen.bytes <= budget.bytes + budget.head, "{} bytes", seen.bytes);
    assert!(seen.bytes > budget.bytes / 2 && seen.files < 1_100, "{} files", seen.files);
    assert!(seen.unverified[0].contains("were not looked at"), "{:?}", seen.unverified);
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
