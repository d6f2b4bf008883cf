//! Everything that is asked upstream, answered at once: what is left of a mint's time is our own. Only AWS's STS takes as
//! long as its path says, `/sts/MILLISECONDS/`.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpListener;

use crate::Outcome;

/// Shorter than what a base token needs to be kept, so that every mint walks its whole chain.
const LIFE: u32 = 100;

/// `upstream ADDR`: answers by path, and prints where.
pub(crate) fn run(arguments: &[String]) -> Outcome<()> {
    let at = arguments.first().ok_or("upstream: where?")?.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { serve(TcpListener::bind(at).await?).await })
}

async fn serve(listener: TcpListener) -> Outcome<()> {
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let served = hyper::server::conn::http1::Builder::new();
            let _ = served.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
        });
    }
}

/// Of the size that such answers have.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let _ = request.into_body().collect().await;
    let token = format!("ya29.{}", "c.benchmark_of_no_value".repeat(9));
    let body = match path.as_str() {
        "/subject" => "header.payload.signature".into(),
        _ if path.starts_with("/sts/") => {
            let wait = path.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or_default();
            tokio::time::sleep(Duration::from_millis(wait)).await;
            session()
        }
        _ if path.ends_with(":generateAccessToken") => {
            format!(r#"{{"accessToken":"{token}","expireTime":"2100-01-01T00:00:00Z"}}"#)
        }
        _ => format!(
            r#"{{"access_token":"{token}","expires_in":{LIFE},"token_type":"Bearer","issued_token_type":"urn:ietf:params:oauth:token-type:access_token"}}"#
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// A session of a role, of which nobody knows.
fn session() -> String {
    let end = OffsetDateTime::from(SystemTime::now() + Duration::from_secs(3600));
    let end = end.replace_nanosecond(0).unwrap_or(end).format(&Rfc3339).unwrap_or_default();
    format!(
        "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>ASIABENCHBENCHBENCH0</AccessKeyId>\
         <SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken><Expiration>{end}</Expiration></Credentials>\
         </AssumeRoleResult></AssumeRoleResponse>",
        "bench".repeat(8),
        "bench".repeat(80)
    )
}
