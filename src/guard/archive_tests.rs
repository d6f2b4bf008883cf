//! Tests of keys in archives and compressed files.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use super::found::{NESTED, UNPACKED, UNPACKED_RATIO};
use super::stream::Stream;
use super::stream_tests::{gzip, tar_of};
use super::tests::service_account;
use super::walk_tests::Tree;
use super::{GuardRules, SecretKind};

/// The output of a real program for `input`.
fn made(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(out.status.success(), "{program}");
    out.stdout
}

fn zip_of(files: &[(&str, &[u8])], options: &[&str]) -> Vec<u8> {
    let tree = Tree::new("zip");
    for (name, bytes) in files {
        let path = tree.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    let mut zip = Command::new("zip");
    let zip = zip.args(options).args(["-q", "made.zip"]).args(names).current_dir(&tree.0);
    assert!(zip.status().unwrap().success());
    fs::read(tree.0.join("made.zip")).unwrap()
}

/// A zip archive that `zip` wrote to a pipe: sizes come after the files, not before them.
fn piped_zip(name: &str, bytes: &[u8]) -> Vec<u8> {
    let tree = Tree::new("piped");
    fs::write(tree.0.join(name), bytes).unwrap();
    let out = Command::new("zip").args(["-q", "-", name]).current_dir(&tree.0).output().unwrap();
    assert!(out.status.success());
    out.stdout
}

pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Every format that is opened, with `key.json` in it: its name, its bytes, and the place of the find.
fn opened() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let key = service_account();
    let key = key.as_bytes();
    let tar = tar_of(&[("a.bin", &noise(70_000)), ("key.json", key), ("z", b"end")]);
    let zip = zip_of(&[("a.bin", &noise(70_000)), ("deep/key.json", key)], &[]);
    vec![
        ("key.json.gz", gzip(key), "key.json.gz"),
        ("key.json.bz2", made("bzip2", &["-c"], key), "key.json.bz2"),
        ("key.json.xz", made("xz", &["-c"], key), "key.json.xz"),
        ("key.json.zst", made("zstd", &["-q", "-c"], key), "key.json.zst"),
        ("two.gz", [gzip(b"first"), gzip(key)].concat(), "two.gz"),
        ("two.bz2", [made("bzip2", &["-c"], b"first"), made("bzip2", &["-c"], key)].concat(), "two.bz2"),
        ("two.xz", [made("xz", &["-c"], b"first"), made("xz", &["-c"], key)].concat(), "two.xz"),
        ("two.zst", [made("zstd", &["-qc"], b"first"), made("zstd", &["-qc"], key)].concat(), "two.zst"),
        ("crc.xz", made("xz", &["-c", "--check=crc32"], key), "crc.xz"),
        ("t.tar", tar.clone(), "t.tar!/key.json"),
        ("t.tar.gz", gzip(&tar), "t.tar.gz!/key.json"),
        ("t.tar.bz2", made("bzip2", &["-c"], &tar), "t.tar.bz2!/key.json"),
        ("t.tar.xz", made("xz", &["-c"], &tar), "t.tar.xz!/key.json"),
        ("t.tar.zst", made("zstd", &["-q", "-19", "-c"], &tar), "t.tar.zst!/key.json"),
        ("long.tar.zst", made("zstd", &["-q", "--long", "-c"], &tar), "long.tar.zst!/key.json"),
        ("a.whl", zip.clone(), "a.whl!/deep/key.json"),
        ("stored.zip", zip_of(&[("key.json", key)], &["-0"]), "stored.zip!/key.json"),
        ("zip64.zip", zip_of(&[("key.json", key)], &["-fz"]), "zip64.zip!/key.json"),
        ("bz.zip", zip_of(&[("key.json", key)], &["-Z", "bzip2"]), "bz.zip!/key.json"),
        ("piped.zip", piped_zip("key.json", key), "piped.zip!/key.json"),
        ("app.pyz", [b"#!/usr/bin/env python3\n", &zip[..]].concat(), "app.pyz!/deep/key.json"),
        ("in.zip", zip_of(&[("t.tar.gz", &gzip(&tar))], &[]), "in.zip!/t.tar.gz!/key.json"),
        ("in.tar", tar_of(&[("in/a.whl", &zip)]), "in.tar!/in/a.whl!/deep/key.json"),
    ]
}

#[test]
fn archives_of_every_kind_are_opened_however_they_are_cut() {
    for (name, bytes, expected) in opened() {
        for cut in [97, 4096, usize::MAX] {
            let mut stream = Stream::file(name);
            let mut found = vec![];
            for piece in bytes.chunks(cut.min(bytes.len())) {
                stream.push_root(piece);
                found.extend(stream.take_finds());
            }
            stream.end();
            found.extend(stream.take_finds());
            let found: Vec<_> = found.into_iter().map(|find| (find.name, find.kind)).collect();
            assert_eq!(
                found,
                [(expected.to_string(), SecretKind::ServiceAccountKey)],
                "{name} in pieces of {cut}"
            );
            assert_eq!(stream.take_unverified(), Vec::<String>::new(), "{name} in pieces of {cut}");
            assert_eq!(stream.unjudged(), 0, "{name}");
        }
    }
}

/// Archives lie in a build context, and in a layer.
#[test]
fn archives_in_uploads_are_opened_before_their_bytes_go_on() {
    for (name, bytes, expected) in opened() {
        let context = tar_of(&[("Dockerfile", b"FROM scratch\n"), (name, &bytes), ("z", b"end")]);
        let start = context.windows(bytes.len()).position(|window| window == bytes).unwrap();
        let layer = tar_of(&[("1/layer.tar", &made("zstd", &["-qc"], &context))]);
        for (mut stream, bytes, layer) in
            [(Stream::files(), &context, None), (Stream::image(), &layer, Some("1/layer.tar"))]
        {
            let (mut found, mut before) = (vec![], 0);
            for piece in bytes.chunks(997) {
                stream.push_root(piece);
                found.extend(stream.take_finds());
                if found.is_empty() {
                    before = stream.safe();
                }
            }
            stream.end();
            found.extend(stream.take_finds());
            let found: Vec<_> =
                found.iter().map(|find| (find.name.as_str(), find.layer.as_deref())).collect();
            assert_eq!(found, [(expected, layer)], "{name}");
            assert_eq!((stream.take_unverified(), stream.unjudged()), (vec![], 0), "{name}");
            if layer.is_none() && !expected.contains('!') && !name.starts_with("two") {
                assert!(before <= start as u64, "{name}: {before} bytes were free, the key began at {start}");
            }
        }
    }
}

#[test]
fn archives_that_cannot_be_opened_are_reported() {
    let key = service_account();
    let tar = |name: &str, inner: &[u8]| tar_of(&[(name, inner)]);
    let deep = tar("3.tar", &tar("2.tar", &tar("1.tar", key.as_bytes())));
    let gz = |times: usize| (0..times).fold(key.as_bytes().to_vec(), |inner, _| gzip(&inner));
    let mut torn = zip_of(&[("a.json", key.as_bytes())], &[]);
    torn.truncate(torn.len() / 3);
    let at = 8;
    let mut unknown = zip_of(&[("a.json", key.as_bytes())], &[]);
    unknown[at] = 9;
    for (name, bytes, why) in [
        ("x.zip", zip_of(&[("a.json", key.as_bytes())], &["-P", "pw"]), "x.zip!/a.json: it is encrypted"),
        ("x.zip", unknown, "x.zip!/a.json: its compression is not one that is opened"),
        ("x.zip", torn, "x.zip: the archive breaks off or is not understood"),
        ("x.tar", tar("4.tar", &deep), "x.tar!/4.tar!/3.tar: an archive so deep in others is not opened"),
        ("x.gz", gz(4), "x.gz: an archive so deep in others is not opened"),
        (
            "x.7z",
            [&[0x37, 0x7a, 0xbc, 0xaf, 0x27, 0x1c][..], &[0; 40]].concat(),
            "x.7z: a 7-Zip archive is not opened",
        ),
        ("x.rar", [&b"Rar!\x1a\x07\x01\0"[..], &[0; 40]].concat(), "x.rar: a RAR archive is not opened"),
        (
            "x.lzma",
            made("xz", &["-c", "--format=lzma"], key.as_bytes()),
            "x.lzma: what is compressed with lzma is not opened",
        ),
    ] {
        let mut stream = Stream::file(name);
        stream.push_root(&bytes);
        stream.end();
        assert_eq!(stream.take_finds(), vec![], "{name}");
        assert_eq!(stream.take_unverified(), [why], "{name}");
    }
    assert_eq!(NESTED, 2);
}

/// Output is counted, not timed, so the bound holds for however small a bomb and on any machine.
#[test]
fn archive_bombs_are_limited_by_their_output() {
    const ALLOWED: u64 = 8 << 20;
    let zst = made("zstd", &["-q", "-19", "-c"], &vec![0; 4 << 20]);
    let bomb = zst.repeat(20);
    assert!(bomb.len() < 20_000, "{} bytes", bomb.len());
    let key = service_account();
    let tar = tar_of(&[("bomb.zst", &bomb), ("key.json", key.as_bytes()), ("more.zst", &bomb)]);
    let mut stream = Stream::files().with_allowance(ALLOWED);
    stream.push_root(&tar);
    stream.end();
    assert_eq!(stream.take_finds().len(), 1, "what is not compressed is looked at all the same");
    let doubts = stream.take_unverified();
    let why = "becomes larger when decompressed than is looked at";
    assert_eq!(doubts, [format!("bomb.zst: {why}"), format!("more.zst: {why}")]);
    let most = ALLOWED + tar.len() as u64 * (UNPACKED_RATIO + 1) + (1 << 20);
    assert!(stream.bytes() < most, "{} bytes", stream.bytes());
    assert_eq!(UNPACKED, 1 << 30);
}

#[test]
fn exceptions_name_places_in_archives() {
    let place = "dist/app.tar.gz!/lib/a.whl!/app/key.json";
    for (allow, excepted) in [
        ("dist", true),
        ("dist/app.tar.gz", true),
        ("dist/app.tar.gz!/lib", true),
        ("dist/app.tar.gz!/lib/a.whl", true),
        ("dist/app.tar.gz!/lib/a.whl!/app/key.json", true),
        ("dist/app.tar", false),
        ("dist/app.tar.gz!/other", false),
        ("lib", false),
        ("app/key.json", false),
    ] {
        let rules = GuardRules { allow: vec![allow.into()], ..GuardRules::default() };
        assert_eq!(rules.allows_inside(place), excepted, "{allow}");
        let absolute = GuardRules { allow: vec![format!("/w/{allow}").into()], ..GuardRules::default() };
        assert_eq!(absolute.allows_place(&format!("/w/{place}")), excepted, "{allow}");
    }
}
