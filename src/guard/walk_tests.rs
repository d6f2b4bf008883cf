//! Where keys are looked for: directories, streams, images.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::archive::Tar;
use super::tests::{aws, aws_file, pem, private, service_account, user};
use super::walk::{Budget, Memory, Seen, look};
use super::{Guard, Kind, Rules, image};

pub(super) struct Tree(pub(super) PathBuf);

impl Tree {
    pub(super) fn new(name: &str) -> Self {
        let nanos = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let path = std::env::temp_dir().join(format!("kc-guard-{name}-{}-{nanos}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
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

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(vec![]);
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn a_stream_is_judged_however_it_is_cut_and_holds_back_what_is_not() {
    let key = service_account();
    let long = format!("{}/key.json", "deep/".repeat(60));
    let big = vec![b'x'; 3 << 20];
    let tar = tar_of(&[("a.txt", b"hello"), ("big", &big), (&long, key.as_bytes()), ("z", b"end")]);
    let at = memchr::memmem::find(&tar, b"service_account").unwrap();
    for cut in [1, 7, 511, 512, 513, 65_536, tar.len()] {
        if cut < 7 && cfg!(debug_assertions) {
            continue;
        }
        let mut reader = Tar::new();
        let mut before = 0;
        for (index, piece) in tar.chunks(cut).enumerate() {
            reader.push(piece);
            assert!(reader.safe() <= (index as u64 + 1) * cut as u64);
            let finds = reader.take_finds();
            if let [find] = &finds[..] {
                assert_eq!((find.name.as_str(), find.kind), (long.as_str(), Kind::ServiceAccountKey));
                assert!(before < at as u64, "{before} bytes were free before the key at {at} was judged");
                before = u64::MAX;
            }
            before = before.max(reader.safe());
        }
        assert_eq!(before, u64::MAX, "nothing found in pieces of {cut}");
        assert!(reader.is_between() && !reader.broken());
    }
    let mut reader = Tar::new();
    reader.push(&[b'x'; 4096]);
    assert!(reader.broken());
}

/// The same finds as those of `scan`, however the stream is cut, and nothing of a key goes on before them.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[test]
fn an_image_is_judged_as_it_streams_by() {
    let key = service_account();
    let lower = tar_of(&[("app/main.py", b"print(1)"), ("app/key.json", key.as_bytes()), ("z", b"end")]);
    let packed = gzip(&lower);
    let config = serde_json::json!({
        "config": {"Env": [format!("AWS_SECRET_ACCESS_KEY={}", aws())]}, "rootfs": {"type": "layers"},
    })
    .to_string();
    let upper = tar_of(&[("app/.wh.key.json", b""), ("app/other", b"x")]);
    for lower in [&lower, &packed] {
        let saved = tar_of(&[
            ("two/layer.tar", &upper),
            ("one/layer.tar", lower),
            ("tiny", b"x"),
            ("notes.gz", &packed[..9]),
            ("c.json", config.as_bytes()),
        ]);
        let end = memchr::memmem::find(&saved, lower).unwrap() + lower.len();
        let start = end - lower.len();
        let shows_key = |bytes: &[u8]| {
            let mut plain = vec![];
            let _ = flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain); // as far as it goes
            memchr::memmem::find(bytes, b"service_account").is_some()
                || memchr::memmem::find(&plain, b"service_account").is_some()
        };
        assert!(shows_key(&saved[start..end]));
        let expected: Vec<_> =
            image::scan(&saved[..]).unwrap().finds.into_iter().map(|f| (f.place, f.kind, f.layer)).collect();
        assert_eq!(expected.len(), 2);
        for cut in [7, 511, 512, 513, 8192, saved.len()] {
            let mut reader = Tar::new().of_image();
            let (mut found, mut before) = (vec![], 0);
            for piece in saved.chunks(cut) {
                reader.push(piece);
                found.extend(reader.take_finds().into_iter().map(|f| (f.name, f.kind, f.layer)));
                if found.is_empty() {
                    before = reader.safe();
                }
            }
            assert_eq!(found, expected, "in pieces of {cut}");
            let free = usize::try_from(before).unwrap().clamp(start, end);
            assert!(!shows_key(&saved[start..free]), "{before} bytes were free before the key was judged");
            assert!(reader.is_between() && reader.unjudged() == 0);
            assert_eq!(reader.take_unverified(), Vec::<String>::new());
        }
    }
}

#[test]
fn what_of_an_image_cannot_be_looked_at_is_said() {
    let lower = tar_of(&[
        ("app/main.py", b"print(1)"),
        ("app/key.json", service_account().as_bytes()),
        ("z", b"end"),
    ]);
    let packed = gzip(&lower);
    let zstd = [&[0x28, 0xb5, 0x2f, 0xfd][..], &[0; 900]].concat();
    let odd = tar_of(&[
        ("a/layer.tar.zst", &zstd),
        ("a/bz", b"BZh91AY"),
        ("b/layer.tar", &lower[..1700]),
        ("c/layer.tar", &packed[..packed.len() * 2 / 3]),
    ]);
    let mut reader = Tar::new().of_image();
    reader.push(&odd);
    let doubts = reader.take_unverified();
    assert_eq!(doubts.len(), 4, "{doubts:?}");
    assert!(
        doubts[0].contains("zstd")
            && doubts[1].starts_with("a/bz")
            && doubts[2].contains("b/layer.tar: the archive breaks off")
    );
    let mut reader = Tar::new().of_image();
    reader.push(&tar_of(&[("1/layer.tar", &[&packed[..], b"what is no gzip"].concat())]));
    assert_eq!(reader.take_finds().len(), 1, "what comes before the damage counts");
    assert_eq!(reader.take_unverified(), ["1/layer.tar: cannot be decompressed"]);
}

/// However large it is, and wherever its files begin and end in what is sent.
#[test]
fn of_a_compressed_layer_no_more_is_held_than_one_file_needs() {
    // Without a byte of padding between them, and hard to compress.
    let mut state = 1_u64;
    let mut noise = |length: usize| {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        };
        (0..length).map(|_| next()).collect::<Vec<_>>()
    };
    let files: Vec<(String, Vec<u8>)> = (0..60).map(|n| (format!("f{n}"), noise(64 << 10))).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    gzip.write_all(&tar_of(&files)).unwrap();
    let saved = tar_of(&[("1/layer.tar", &gzip.finish().unwrap())]);
    let mut reader = Tar::new().of_image();
    let most = saved.chunks(8 << 10).map(|piece| {
        reader.push(piece);
        reader.unjudged()
    });
    let most = most.max().unwrap();
    assert!(most < 100 << 10, "{most} bytes were held of {}", saved.len());
    assert_eq!((reader.unjudged(), reader.take_unverified()), (0, vec![]));
}

#[test]
fn images_are_read_with_every_layer() {
    let key = service_account();
    let lower = tar_of(&[
        ("app/main.py", b"print(1)"),
        ("app/key.json", key.as_bytes()),
        ("etc/x.pem", pem(&private(), "MIIE", "\n").as_bytes()),
    ]);
    let upper = tar_of(&[("app/.wh.key.json", b""), ("app/other", b"x")]);
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    gzip.write_all(&lower).unwrap();
    let packed = gzip.finish().unwrap();
    let config = serde_json::json!({
        "config": {"Env": ["PATH=/bin", format!("AWS_SECRET_ACCESS_KEY={}", aws())], "Labels": {"note": key}},
        "rootfs": {"type": "layers"},
        "history": [{"created_by": "/bin/sh -c #(nop) COPY dir"}, {"created_by": format!("|1 AZURE_CLIENT_SECRET=abc8Q~{} /bin/sh", aws())}],
    })
    .to_string();
    let manifest =
        serde_json::json!([{"Config": "c.json", "Layers": ["one/layer.tar", "two/layer.tar"]}]).to_string();
    for lower in [&lower, &packed] {
        let saved = tar_of(&[
            ("two/layer.tar", &upper),
            ("one/layer.tar", lower),
            ("c.json", config.as_bytes()),
            ("manifest.json", manifest.as_bytes()),
        ]);
        let report = image::scan(&saved[..]).unwrap();
        let mut found: Vec<String> = report
            .finds
            .iter()
            .map(|f| format!("{} {:?} {} {}", f.place, f.kind, f.layer.as_deref().unwrap_or("-"), f.deleted))
            .collect();
        found.sort();
        let expected = [
            "app/key.json ServiceAccountKey one/layer.tar true",
            "etc/x.pem PrivateKey one/layer.tar false",
            "history step 2 AzureLogin - false",
            "label note ServiceAccountKey - false",
            "variable AWS_SECRET_ACCESS_KEY AwsKey - false",
        ];
        assert_eq!(found, expected);
        assert_eq!(report.unverified, Vec::<String>::new());
    }
    assert!(image::scan(&[b'x'; 2048][..]).is_err());
    let cut = tar_of(&[("one/layer.tar", &lower[..lower.len() - 1536])]);
    assert_eq!(image::scan(&cut[..]).unwrap().unverified.len(), 1, "a layer that breaks off is said");
}
