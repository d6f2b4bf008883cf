//! `kfp-creds explain`: which rule decides about a container, why those before it did not, and what it gets.

use std::path::Path;

use serde_json::Value;

use super::cut_off::query;
use super::sessions;
use crate::config::{Config, Surroundings};
use crate::failure::{Ended, Failure};
use crate::kfp;

/// Larger than any create request that a person would look at.
const LARGEST: u64 = 32 << 20;

/// `what` is a file with the body of a create request, else a container of a session that runs. Whether a
/// container may have an identity at all (`--privileged`, host network) is decided when it is created.
pub async fn explain(
    config: &Config,
    around: &Surroundings,
    what: &str,
    print: impl Fn(&str),
) -> Result<Ended, Failure> {
    let path = around.cwd.join(what);
    if path.is_file() {
        let body = read(&path)?;
        let task = kfp::task(&body, None);
        print(config.policy.explain(&task).to_string().trim_end());
        return Ok(Ended::Done);
    }
    for peer in sessions::find(around, None).await? {
        match peer.call("GET", &format!("/explain?{}", query("container", what))).await {
            Ok(text) => {
                print(text.trim_end());
                return Ok(Ended::Done);
            }
            Err(Failure::NotFound(_)) => {}
            Err(failure) => return Err(failure),
        }
    }
    Err(Failure::Usage(format!(
        "{what} is neither a file nor a container with an identity in a session that runs"
    )))
}

fn read(path: &Path) -> Result<Value, Failure> {
    let wrong = |why: String| Failure::Usage(format!("{}: {why}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if size > LARGEST {
        return Err(wrong("is larger than 32 MiB, which the proxy refuses as well".into()));
    }
    let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let body: Value = serde_json::from_slice(&text)
        .map_err(|error| wrong(format!("is not JSON (line {})", error.line())))?;
    if body.is_object() { Ok(body) } else { Err(wrong("is not the body of a create request".into())) }
}
