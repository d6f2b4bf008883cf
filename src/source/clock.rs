//! How far this machine's clock is from Google's: what is signed or judged by a wrong one is refused.

use std::time::{Duration, SystemTime};

use hyper::header::DATE;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::source::upstream::{Call, Fault, Upstream};

/// By how many seconds this machine's clock is ahead of the server's, from the Date of any answer of it,
/// good or bad; to the second, as the header is. `None` where it sends none.
pub(super) async fn ahead(upstream: &Upstream, url: &str) -> Result<Option<i64>, Fault> {
    let limit = upstream.limits().call;
    let asked = tokio::time::timeout(limit, upstream.exchange(&Call::form(url, &[]))).await;
    let answer = asked.map_err(|_| Fault::silent(url, limit))??;
    let (here, date) = (SystemTime::now(), answer.headers().get(DATE));
    let Some(there) = date.and_then(|date| http_date(date.to_str().ok()?)) else { return Ok(None) };
    let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    Ok(Some(match here.duration_since(there) {
        Ok(ahead) => seconds(ahead),
        Err(behind) => -seconds(behind.duration()),
    }))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7); other forms are obsolete.
pub(super) fn http_date(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc2822).ok().map(SystemTime::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_answers_are_read() {
        let at = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 784_111_777);
        assert_eq!(http_date("yesterday"), None);
    }
}
