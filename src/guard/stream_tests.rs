//! Tests of where keys are searched: streams and images (archives: `archive_tests`).

use std::io::{Read, Write};

use super::stream::Stream;
use super::tests::{aws, pem, private, service_account};
use super::{SecretKind, image};

pub(super) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(vec![]);
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

/// The finds are those of `scan`, however the stream is cut, and no byte of a key is forwarded before its
/// find.
#[test]
fn a_stream_is_judged_in_any_pieces_and_held_back_until_then() {
    let key = service_account();
    let long = format!("{}/key.json", "deep/".repeat(60));
    let big = vec![b'x'; 3 << 20];
    let tar = tar_of(&[("a.txt", b"hello"), ("big", &big), (&long, key.as_bytes()), ("z", b"end")]);
    let at = memchr::memmem::find(&tar, b"service_account").unwrap();
    for cut in [1, 7, 511, 512, 513, 65_536, tar.len()] {
        if cut < 7 && cfg!(debug_assertions) {
            continue;
        }
        let mut reader = Stream::files();
        let mut before = 0;
        for (index, piece) in tar.chunks(cut).enumerate() {
            reader.push_root(piece);
            assert!(reader.safe() <= (index as u64 + 1) * cut as u64);
            let finds = reader.take_finds();
            if let [find] = &finds[..] {
                assert_eq!((find.name.as_str(), find.kind), (long.as_str(), SecretKind::ServiceAccountKey));
                assert!(before < at as u64, "{before} bytes were free before the key at {at} was judged");
                before = u64::MAX;
            }
            before = before.max(reader.safe());
        }
        assert_eq!(before, u64::MAX, "nothing found in pieces of {cut}");
        reader.end();
        assert_eq!(reader.take_unverified(), Vec::<String>::new());
    }
    let mut reader = Stream::files();
    reader.push_root(&[b'x'; 4096]);
    assert!(!reader.is_archive());
}

/// `bytes` compressed with gzip.
pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
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
            let mut reader = Stream::image();
            let (mut found, mut before) = (vec![], 0);
            for piece in saved.chunks(cut) {
                reader.push_root(piece);
                found.extend(reader.take_finds().into_iter().map(|f| (f.name, f.kind, f.layer)));
                if found.is_empty() {
                    before = reader.safe();
                }
            }
            assert_eq!(found, expected, "in pieces of {cut}");
            let free = usize::try_from(before).unwrap().clamp(start, end);
            assert!(!shows_key(&saved[start..free]), "{before} bytes were free before the key was judged");
            reader.end();
            assert_eq!(reader.unjudged(), 0);
            assert_eq!(reader.take_unverified(), Vec::<String>::new());
        }
    }
}

#[test]
fn unreadable_parts_of_an_image_are_reported() {
    let lower = tar_of(&[
        ("app/main.py", b"print(1)"),
        ("app/key.json", service_account().as_bytes()),
        ("z", b"end"),
    ]);
    let packed = gzip(&lower);
    let zstd = [&[0x28, 0xb5, 0x2f, 0xfd][..], &[0, 0], &[0xff; 900]].concat();
    let odd = tar_of(&[
        ("a/layer.tar.zst", &zstd),
        ("a/7z", &[0x37, 0x7a, 0xbc, 0xaf, 0x27, 0x1c, 0, 4]),
        ("b/layer.tar", &lower[..1700]),
        ("c/layer.tar", &packed[..packed.len() * 2 / 3]),
    ]);
    let mut reader = Stream::image();
    reader.push_root(&odd);
    reader.end();
    let doubts = reader.take_unverified();
    let expected = [
        "a/layer.tar.zst: cannot be decompressed",
        "a/7z: a 7-Zip archive is not opened",
        "b/layer.tar: the archive breaks off or is not understood",
        "c/layer.tar: cannot be decompressed",
    ];
    assert_eq!(doubts, expected);
    let mut reader = Stream::image();
    reader.push_root(&tar_of(&[("1/layer.tar", &[&packed[..], b"what is no gzip"].concat())]));
    assert_eq!(reader.take_finds().len(), 1, "what comes before the damage counts");
    assert_eq!(reader.take_unverified(), ["1/layer.tar: cannot be decompressed"]);
}

/// The bound holds however large the layer is, and wherever its files begin and end in the pushed pieces.
#[test]
fn a_compressed_layer_holds_one_file_in_memory() {
    // Files without any padding between them, and hard to compress.
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
    let mut reader = Stream::image();
    let most = saved.chunks(8 << 10).map(|piece| {
        reader.push_root(piece);
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
    let report = image::scan(&[b'x'; 2048][..]).unwrap();
    assert_eq!((report.finds, report.unverified), (vec![], vec![]), "a file that is no archive");
    let cut = tar_of(&[("one/layer.tar", &lower[..lower.len() - 1536])]);
    assert_eq!(image::scan(&cut[..]).unwrap().unverified.len(), 1, "a layer that breaks off is said");
}

#[test]
fn a_key_late_in_a_large_file_counts_and_has_its_line() {
    let key = service_account();
    for length in [10, 1 << 20, (1 << 20) - 300, (5 << 20) - 77] {
        let filler = "0123456789abcde\n".repeat(length / 16);
        let lines = filler.lines().count();
        let text = format!("{filler}{key}{filler}");
        for cut in [100_000, text.len()] {
            let mut stream = Stream::file("big.txt").with_lines();
            text.as_bytes().chunks(cut).for_each(|piece| stream.push_root(piece));
            stream.end();
            let finds = stream.take_finds();
            assert_eq!(finds.len(), 1, "after {length} bytes");
            let line = finds[0].line.unwrap() as usize;
            assert!((lines + 1..=lines + 5).contains(&line), "line {line} after {lines}");
        }
        let report = image::scan(&tar_of(&[("big.txt", text.as_bytes())])[..]).unwrap();
        assert_eq!(report.finds.len(), 1);
    }
    let pem = format!("a\nb\n{}c\n", pem(&private(), "MIIE", "\n"));
    let report = image::scan(pem.as_bytes()).unwrap();
    assert_eq!((report.finds[0].line, report.finds[0].place.as_str()), (Some(3), ""));
}

/// The crates that read archives quote input that they cannot parse.
#[test]
fn no_error_quotes_what_was_read() {
    let key = pem(&private(), "MIIE", "\n");
    for bytes in [gzip(key.as_bytes()), key.clone().into_bytes(), gzip(key.repeat(40).as_bytes())] {
        let report = image::scan(&bytes[..]).unwrap();
        assert_eq!(report.finds.len(), 1);
        assert_eq!(report.unverified, Vec::<String>::new());
    }
    let odd = [&gzip(key.as_bytes())[..60], key.as_bytes()].concat();
    let report = image::scan(&odd[..]).unwrap();
    assert_eq!(report.unverified, ["the archive: cannot be decompressed"]);
}
