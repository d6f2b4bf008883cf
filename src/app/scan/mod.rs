//! `kfp-creds scan`: searches a directory, an archive or all layers of an image for keys.

mod said;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use self::said::{Baseline, ScanReport};
use super::reach::reach;
use crate::config::{Config, Environment};
use crate::console::printable;
use crate::docker::EngineError;
use crate::failure::{Ended, Failure};
use crate::guard::excepted::Exception;
use crate::guard::found::PassedOver;
use crate::guard::image::{self, Report};
use crate::guard::memory::Memory;
use crate::guard::walk::{Budget, look};
use crate::guard::{Guard, GuardRules};
use crate::quote;

pub use self::said::ReportFormat;

/// The options of `scan`.
#[derive(Clone, Copy, Debug)]
pub struct ScanOptions<'a> {
    pub form: ReportFormat,
    /// The output of an earlier `scan --json`; its finds are not reported again.
    pub baseline: Option<&'a Path>,
}

/// Scans `target`: a path if it exists, else an image of the engine. Prints one line per find; exit code 1 if
/// there is any. Parts that could not be scanned are no success either.
///
/// # Errors
/// If the target does not exist, or if there is no find but a part that could not be scanned.
pub async fn scan(
    config: &Config,
    env: &Environment,
    target: &str,
    ask: ScanOptions<'_>,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    let began = Instant::now();
    let baseline = match ask.baseline {
        None => Baseline::default(),
        Some(file) => {
            let known = std::fs::read_to_string(env.cwd.join(file)).and_then(|text| Baseline::read(&text));
            known.map_err(|error| Failure::Usage(format!("the baseline {}: {error}", quote::path(file))))?
        }
    };
    let path = env.cwd.join(target);
    let rules = config.guard.rules.clone();
    let mut report = match std::fs::metadata(&path) {
        Ok(about) if about.is_dir() => blocking(move || Ok(folder(path, rules))).await?,
        Ok(_) => {
            let scanned = blocking(move || File::open(&path).and_then(image::scan)).await;
            scanned.map_err(|error| Failure::Usage(format!("{}: {error}", quote::path(Path::new(target)))))?
        }
        Err(error) if is_a_path(target) => {
            return Err(Failure::Usage(format!("{target}: {error}: name a directory, a file or an image")));
        }
        Err(_) => of_the_engine(config, env, target).await?,
    };
    report.finds.iter_mut().filter(|find| find.place.is_empty()).for_each(|find| {
        find.place = target.into();
    });
    if report.passed.first.is_empty() {
        report.passed.first = target.into();
    }
    let spent = began.elapsed();
    tracing::info!(bytes = report.bytes, ms = spent.as_millis(), "scanned");
    let target = quote::name(target);
    let said = ScanReport::of(&report, &target, &config.guard.rules, &baseline);
    said.tell(ask.form, &print);
    match said.counts() {
        (0, 0) => Ok(Ended::Done),
        (0, unread) => Err(Failure::NotPermitted(printable(&format!(
            "{target}: no key found, but {unread} places could not be looked at"
        )))),
        _ => Ok(Ended::Found),
    }
}

fn is_a_path(target: &str) -> bool {
    target.starts_with(['/', '.', '~']) || target.ends_with(".tar") || target.ends_with(".tar.gz")
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        // The error is one of the file system or of the engine's stream; it contains no text of a decoder.
        Ok(Err(error)) => Err(Failure::Usage(error.to_string())),
        Err(error) => Err(Failure::Bug(format!("the scan ended early: {error}"))),
    }
}

fn folder(path: PathBuf, rules: GuardRules) -> Report {
    let guard = Guard { rules, ..Guard::default() };
    // Show places relative to the target, wherever it is.
    let root = path.canonicalize().unwrap_or_else(|_| path.clone());
    let below = format!("{}/", root.to_string_lossy());
    let short = |text: &str| text.replace(&below, "");
    let seen = look(&[path], &guard, Budget::WHOLE, &Memory::default(), usize::MAX);
    let finds = seen.finds.into_iter().zip(seen.lines).map(|((_, find), line)| image::Located {
        kind: find.kind,
        place: short(&find.place),
        layer: None,
        line,
        deleted: false,
        exception: Exception::Path,
    });
    let unverified = seen.unverified.iter().map(|what| short(what)).collect();
    let passed = PassedOver { first: short(&seen.passed.first), ..seen.passed };
    Report { finds: finds.collect(), unverified, passed, bytes: seen.bytes }
}

/// Scans the stream of `docker save` as it arrives.
async fn of_the_engine(config: &Config, env: &Environment, image: &str) -> Result<Report, Failure> {
    let engine = reach(config, env).await?;
    let (pieces, rest) = mpsc::channel(16);
    let scanning = blocking(move || image::scan(OutputStream { rest, piece: Bytes::new() }));
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

/// The engine's stream, for a blocking reader.
struct OutputStream {
    rest: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for OutputStream {
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
