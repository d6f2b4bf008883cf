//! `kfp-creds scan`: is there a key in a directory, an archive or an image, in whatever layer?

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::house::reach;
use crate::config::{Config, Surroundings};
use crate::docker::EngineError;
use crate::failure::{Ended, Failure};
use crate::guard::image::{self, Report};
use crate::guard::memory::Memory;
use crate::guard::walk::{Budget, look};
use crate::guard::{Guard, Rules};
use crate::quote;

/// Looks at `target`: a path if there is one of that name, else an image of the engine. One line a find,
/// exit code 1 if there is any; what could not be looked at is no clean end either.
pub async fn scan(
    config: &Config,
    around: &Surroundings,
    target: &str,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    let began = Instant::now();
    let path = around.cwd.join(target);
    let rules = config.guard.rules.clone();
    let report = match std::fs::metadata(&path) {
        Ok(about) if about.is_dir() => blocking(move || Ok(folder(path, rules))).await?,
        Ok(_) => {
            let name = quote::path(&path);
            let scanned = blocking(move || File::open(&path).and_then(image::scan)).await;
            let mut report = scanned.map_err(|error| Failure::Usage(format!("{name}: {error}")))?;
            report.finds.iter_mut().filter(|find| find.place.is_empty()).for_each(|find| {
                find.place.clone_from(&name);
            });
            report
        }
        Err(error) if is_a_path(target) => {
            return Err(Failure::Usage(format!(
                "{}: {error}: name a directory, a tar file or an image",
                quote::path(Path::new(target))
            )));
        }
        Err(_) => of_the_engine(config, around, target).await?,
    };
    let spent = began.elapsed();
    tracing::info!(bytes = report.bytes, ms = spent.as_millis(), "scanned");
    tell(&report, target, &config.guard.rules, print)
}

fn is_a_path(target: &str) -> bool {
    target.starts_with(['/', '.', '~']) || target.ends_with(".tar") || target.ends_with(".tar.gz")
}

fn tell(report: &Report, target: &str, rules: &Rules, print: impl Fn(&str)) -> Result<Ended, Failure> {
    let target = quote::name(target);
    let mut found = 0_u32;
    for find in &report.finds {
        if rules.allows_inside(&find.place) {
            continue;
        }
        found += 1;
        let layer = find.layer.as_ref().map(|layer| format!("  in layer {layer}")).unwrap_or_default();
        let deleted = if find.deleted { ", deleted by a later layer and still in the image" } else { "" };
        print(&one_line(&format!("{}: {}{layer}{deleted}", find.place, find.kind)));
    }
    for what in &report.unverified {
        print(&one_line(&format!("not verified: {what}")));
    }
    match (found, report.unverified.len()) {
        (0, 0) => {
            print(&one_line(&format!("{target}: no key found")));
            Ok(Ended::Done)
        }
        (0, unread) => Err(Failure::NotPermitted(format!(
            "{target}: no key found, but {unread} places could not be looked at"
        ))),
        _ => Ok(Ended::Found),
    }
}

/// Names come out of archives.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        // The kind alone: the text of an error can quote what was read.
        Ok(Err(error)) => Err(Failure::Usage(error.kind().to_string())),
        Err(error) => Err(Failure::Bug(format!("the scan ended early: {error}"))),
    }
}

fn folder(path: PathBuf, rules: Rules) -> Report {
    let guard = Guard { rules, ..Guard::default() };
    let seen = look(&[path], &guard, Budget::WHOLE, &Memory::default(), usize::MAX);
    let finds = seen.finds.into_iter().zip(seen.lines).map(|((_, find), line)| image::Located {
        kind: find.kind,
        place: find.place,
        layer: None,
        line,
        deleted: false,
    });
    Report { finds: finds.collect(), unverified: seen.unverified, bytes: seen.bytes }
}

/// What `docker save` gives, read while it comes.
async fn of_the_engine(config: &Config, around: &Surroundings, image: &str) -> Result<Report, Failure> {
    let engine = reach(config, around).await?;
    let (pieces, rest) = mpsc::channel(16);
    let scanning = blocking(move || image::scan(Stream { rest, piece: Bytes::new() }));
    let copying = async {
        let mut saved = std::pin::pin!(engine.save(image));
        while let Some(piece) = saved.next().await {
            if pieces.send(Ok(piece?)).await.is_err() {
                break;
            }
        }
        drop(pieces);
        Ok::<(), EngineError>(())
    };
    let (report, copied) = tokio::join!(scanning, copying);
    copied.map_err(|error| match error.is_gone() {
        true => Failure::Usage(format!("{image}: neither a path nor an image of the engine; pull it first")),
        false => error.into(),
    })?;
    report
}

/// The engine's stream, for a reader that blocks.
struct Stream {
    rest: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.rest.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let read = self.piece.len().min(into.len());
        into[..read].copy_from_slice(&self.piece.split_to(read));
        Ok(read)
    }
}
