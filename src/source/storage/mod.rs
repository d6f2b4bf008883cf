//! Cloud Storage objects by the JSON API: an object's metadata, listings by prefix, an object's content.
//!
//! <https://cloud.google.com/storage/docs/json_api/v1/objects>. All requests use the HTTP client of the
//! sources, with the host's proxies; redirects are not followed, because the token would be sent along. A
//! download is limited by the size that the object's metadata say. Objects with the `Content-Encoding` gzip
//! are downloaded as stored, as Cloud Storage FUSE shows them.

mod crc32c;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::Method;
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::process;
use crate::quote;
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::http::client::Upstream;
use crate::source::http::fault::{Denial, Fault};
use crate::source::http::request::{Answer, Call};

/// Names per page: a name has at most 1024 bytes, each at most 6 bytes in JSON, so a page stays below the size
/// limit of an answer.
const PAGE: usize = 100;
/// A page may have fewer names than were asked for.
const MOST_PAGES: usize = 1000;
/// Queue length, in pieces of an object that wait to be written to disk.
const WAITING: usize = 16;
/// Longest error text that is read, in bytes.
const LONGEST_ERROR: usize = 64 << 10;

/// Reads objects from one endpoint.
#[derive(Debug)]
pub struct Storage {
    upstream: Arc<Upstream>,
    /// Scheme and authority of the URL.
    endpoint: String,
}

/// The account that reads.
#[derive(Clone, Copy, Debug)]
pub struct StorageReader<'a> {
    pub token: &'a Secret<String>,
    /// The account's name, for messages.
    pub account: &'a str,
    /// The project that pays, `userProject`.
    pub user_project: Option<&'a str>,
}

/// One generation of an object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ObjectMetadata {
    /// As the server sends it, unchecked.
    pub name: String,
    /// Changes with each change of the content.
    pub generation: u64,
    /// In bytes.
    pub size: u64,
    /// CRC32C (Castagnoli) of the content.
    pub crc32c: Option<u32>,
}

#[derive(Deserialize)]
struct ObjectJson {
    name: String,
    generation: String,
    size: String,
    crc32c: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListPage {
    #[serde(default)]
    items: Vec<ObjectJson>,
    next_page_token: Option<String>,
}

impl Storage {
    /// `endpoint`: scheme and authority, such as `https://storage.googleapis.com`.
    pub fn new(upstream: Arc<Upstream>, endpoint: String) -> Self {
        Self { upstream, endpoint }
    }

    /// The live generation of an object; `None` without the object or its bucket. Errors name the remedy.
    pub async fn object(
        &self,
        by: StorageReader<'_>,
        bucket: &str,
        name: &str,
    ) -> Result<Option<ObjectMetadata>, SourceError> {
        let url = self.url(by, bucket, Some(name), &[("fields", "name,generation,size,crc32c")]);
        match self.ask(by, &url).await {
            Ok(answer) => found(answer.json()?, &answer).map(Some),
            Err(Fault::Denied(denial)) if denial.status == 404 => Ok(None),
            Err(fault) => Err(told(fault, by, bucket)),
        }
    }

    /// The live objects whose names begin with `prefix`, sorted by name; an error if there are more than
    /// `most`.
    pub async fn list(
        &self,
        by: StorageReader<'_>,
        bucket: &str,
        prefix: &str,
        most: usize,
    ) -> Result<Vec<ObjectMetadata>, SourceError> {
        let (mut all, mut next) = (vec![], None::<String>);
        let most_results = PAGE.to_string();
        for _ in 0..MOST_PAGES {
            let mut query = vec![
                ("prefix", prefix),
                ("maxResults", &most_results),
                ("fields", "items(name,generation,size,crc32c),nextPageToken"),
            ];
            query.extend(next.as_deref().map(|token| ("pageToken", token)));
            let url = self.url(by, bucket, None, &query);
            let answer = self.ask(by, &url).await.map_err(|fault| told(fault, by, bucket))?;
            let page: ListPage = answer.json()?;
            for item in page.items {
                all.push(found(item, &answer)?);
            }
            if all.len() > most {
                break;
            }
            next = page.next_page_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(all);
            }
        }
        Err(SourceError::refused(format!("it has more than {most} objects; name a smaller folder")))
    }

    /// Writes the content of `found` to a new file. After an error the file is partial or absent.
    pub async fn download(
        &self,
        by: StorageReader<'_>,
        bucket: &str,
        object: &ObjectMetadata,
        file: &Path,
    ) -> Result<(), SourceError> {
        let generation = object.generation.to_string();
        let query = [("alt", "media"), ("generation", generation.as_str())];
        let url = self.url(by, bucket, Some(&object.name), &query);
        let received = self.upstream.persist(|| self.receive(by, &url, object, file)).await;
        let kept = received.map_err(|fault| told(fault, by, bucket))?;
        kept.map_err(|error| {
            SourceError::refused(format!("it cannot be written to this machine's disk: {error}"))
        })
    }

    fn url(&self, by: StorageReader<'_>, bucket: &str, name: Option<&str>, query: &[(&str, &str)]) -> String {
        let mut url = format!("{}/storage/v1/b/{}/o", self.endpoint, encoded(bucket));
        url.extend(name.map(|name| format!("/{}", encoded(name))));
        let payer = by.user_project.map(|project| ("userProject", project));
        for (at, (key, value)) in query.iter().copied().chain(payer).enumerate() {
            url.push(if at == 0 { '?' } else { '&' });
            url.push_str(&format!("{key}={}", encoded(value)));
        }
        url
    }

    async fn ask(&self, by: StorageReader<'_>, url: &str) -> Result<Answer, Fault> {
        self.upstream.send(&Call { bearer: Some(by.token), ..Call::bare(Method::GET, url) }).await
    }

    /// One attempt. The inner error is local (this machine's disk), so a retry would not help.
    async fn receive(
        &self,
        by: StorageReader<'_>,
        url: &str,
        object: &ObjectMetadata,
        file: &Path,
    ) -> Result<io::Result<()>, Fault> {
        // Without this header the server would decompress gzip content.
        let headers = &[("accept-encoding", "gzip")];
        let call = Call { bearer: Some(by.token), headers, ..Call::bare(Method::GET, url) };
        let (request, client, silence) =
            (call.request()?, self.upstream.client(), self.upstream.limits().call);
        let asked = timeout(silence, client.request(request)).await;
        let answer =
            asked.map_err(|_| Fault::silent(url, silence))?.map_err(|error| Fault::lost(url, &error))?;
        let (head, body) = answer.into_parts();
        if !head.status.is_success() {
            let read = timeout(silence, Limited::new(body, LONGEST_ERROR).collect()).await;
            let text = read.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
            let mut denial = Denial::read(url, head.status.as_u16(), &text);
            // Errors of requests for content come as plain text.
            denial.foreign &= denial.status != 403 || is_page(&text);
            denial.heed(&head.headers);
            return Err(Fault::Denied(denial));
        }
        let (pieces, arriving) = mpsc::channel(WAITING);
        let (file, wanted) = (file.to_owned(), object.clone());
        let (sent, kept) = tokio::join!(
            self.pump(url, body, pieces),
            process::run_blocking(move || keep(&file, &wanted, arriving))
        );
        match kept {
            None => Ok(Err(io::Error::other("no thread could be started"))),
            Some(Err(error)) => Ok(Err(error)),
            Some(Ok(came)) => sent.and_then(|()| came.map_err(|why| Fault::unreachable(url, why))).map(Ok),
        }
    }

    /// Forwards the pieces as they arrive; fails if one takes too long.
    async fn pump(&self, url: &str, mut body: Incoming, to: mpsc::Sender<Bytes>) -> Result<(), Fault> {
        let silence = self.upstream.limits().call;
        while let Some(frame) =
            timeout(silence, body.frame()).await.map_err(|_| Fault::silent(url, silence))?
        {
            let frame = frame.map_err(|_| Fault::unreachable(url, "its answer broke off"))?;
            // The receiver stopped because of its own error, which the caller reports.
            if let Ok(piece) = frame.into_data()
                && to.send(piece).await.is_err()
            {
                break;
            }
        }
        Ok(())
    }
}

/// Writes the pieces to the file; blocks. The inner error says what is wrong with the received data.
fn keep(
    file: &Path,
    wanted: &ObjectMetadata,
    mut pieces: mpsc::Receiver<Bytes>,
) -> io::Result<Result<(), &'static str>> {
    let mut file = File::create(file)?;
    let (mut came, mut sum) = (0, 0);
    while let Some(piece) = pieces.blocking_recv() {
        came += piece.len() as u64;
        if came > wanted.size {
            return Ok(Err("it sends more bytes than the object has"));
        }
        sum = crc32c::add(sum, &piece);
        file.write_all(&piece)?;
    }
    Ok(match (came == wanted.size, wanted.crc32c.is_none_or(|wanted| wanted == sum)) {
        (false, _) => Err("its answer broke off"),
        (true, false) => Err("the content does not match the object's checksum (CRC32C)"),
        (true, true) => Ok(()),
    })
}

fn found(written: ObjectJson, answer: &Answer) -> Result<ObjectMetadata, SourceError> {
    let sum = |text: &str| Some(u32::from_be_bytes(STANDARD.decode(text).ok()?.try_into().ok()?));
    let read = || {
        Some(ObjectMetadata {
            generation: written.generation.parse().ok()?,
            size: written.size.parse().ok()?,
            crc32c: written.crc32c.as_deref().and_then(sum),
            name: written.name.clone(),
        })
    };
    let unlike = || SourceError::transient(format!("{} gave an answer that is not understood", answer.host));
    read().ok_or_else(unlike)
}

/// Turns a fault into an error that tells the user what to do.
fn told(fault: Fault, by: StorageReader<'_>, bucket: &str) -> SourceError {
    let Fault::Denied(denial) = &fault else { return fault.into() };
    let (account, bucket) = (by.account, quote::name(bucket));
    let reason = denial.reason.as_deref();
    if denial.foreign {
        return fault.into();
    }
    SourceError::refused(match denial.status {
        400 if reason == Some("required") && by.user_project.is_none() => {
            format!("{denial}: the reader pays for this bucket; name the project to charge by quota_project")
        }
        401 => format!(
            "{denial}: it does not take the token of {account}; is endpoints.storage the right place?"
        ),
        403 if reason == Some("SECURITY_POLICY_VIOLATED") => format!(
            "{denial} (SECURITY_POLICY_VIOLATED): a perimeter of VPC Service Controls keeps {account} from it"
        ),
        403 => {
            let payer = by.user_project.map(|project| {
                let project = quote::name(project);
                format!(
                    ", or, if it may not charge the quota project {project}: grant it \
                     roles/serviceusage.serviceUsageConsumer there"
                )
            });
            format!(
                "{denial}: {account} may not read it; grant it roles/storage.objectViewer on {bucket}{}",
                payer.unwrap_or_default()
            )
        }
        404 => format!("{denial}: there is no bucket {bucket}, or no such object any more"),
        _ => return fault.into(),
    })
}

/// Whether a body is HTML or XML: a proxy's or a firewall's.
fn is_page(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"<")
}

/// Percent-encodes a path segment or a query value.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_name_is_one_path_segment() {
        assert_eq!(encoded("a/b c?d=e&ü#.~-_"), "a%2Fb%20c%3Fd%3De%26%C3%BC%23.~-_");
    }
}
