//! The callers: many at once for rates, one at a time for latencies. They read answers as little as is
//! needed to know where one ends, so that they cost less than what they measure.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::Outcome;
use crate::figures::{median, percentile};

/// Where clients ask for their tokens.
pub(crate) const TOKEN: &str = "/computeMetadata/v1/instance/service-accounts/default/token";

fn request(at: SocketAddr) -> Vec<u8> {
    request_for(at, TOKEN, "Metadata-Flavor: Google")
}

fn request_for(at: SocketAddr, path: &str, header: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {at}\r\nUser-Agent: bench\r\nAccept: */*\r\n{header}\r\n\r\n")
        .into_bytes()
}

/// A token of IMDSv2, which the requests of AWS's clients carry.
pub(crate) fn imds_token(at: SocketAddr) -> Outcome<String> {
    let mut stream = TcpStream::connect(at)?;
    let put = "PUT /latest/api/token HTTP/1.1\r\nHost: 127.0.0.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n";
    stream.write_all(put.as_bytes())?;
    let mut bytes = Vec::new();
    exchange_end(&mut stream, &mut bytes)?;
    let text = String::from_utf8(bytes)?;
    Ok(text.split_once("\r\n\r\n").ok_or("no head")?.1.to_string())
}

/// Whether `bytes` hold a whole answer. Everything but a 200 with a length is an error: a bench that
/// measures refusals measures nothing.
fn complete(bytes: &[u8]) -> Outcome<bool> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(false) };
    let head = std::str::from_utf8(&bytes[..end])?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(format!("not a token: {}", head.lines().next().unwrap_or_default()).into());
    }
    let mut lengths = head.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let length = lengths.next().ok_or("an answer without a length")?;
    Ok(bytes.len() >= end + 4 + length)
}

/// One answer of a server, its body alone.
pub(crate) fn body_of(at: SocketAddr) -> Outcome<String> {
    let mut stream = TcpStream::connect(at)?;
    stream.write_all(&request(at))?;
    let mut bytes = Vec::new();
    exchange_end(&mut stream, &mut bytes)?;
    let text = String::from_utf8(bytes)?;
    Ok(text.split_once("\r\n\r\n").ok_or("no head")?.1.to_string())
}

fn exchange_end(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Outcome<()> {
    let mut piece = [0; 8192];
    loop {
        let read = stream.read(&mut piece)?;
        if read == 0 {
            return Err("the server closed the connection".into());
        }
        bytes.extend_from_slice(&piece[..read]);
        if complete(bytes)? {
            return Ok(());
        }
    }
}

/// `load ADDR CONNECTIONS (SECONDS|REQUESTSr) [PATH HEADER]`: prints requests, seconds, p50 and p99 in microseconds.
pub(crate) fn run(arguments: &[String]) -> Outcome<()> {
    let [at, connections, amount, other @ ..] = arguments else {
        return Err("load ADDR CONNECTIONS AMOUNT [PATH HEADER]".into());
    };
    let (at, connections): (SocketAddr, usize) = (at.parse()?, connections.parse()?);
    let request = match other {
        [path, header] => request_for(at, path, header),
        _ => request(at),
    };
    let (most, long) = match amount.strip_suffix('r') {
        Some(requests) => (requests.parse()?, Duration::from_secs(600)),
        None => (u64::MAX, Duration::from_secs_f64(amount.parse()?)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let began = Instant::now();
    let times = Rc::new(RefCell::new(Vec::new()));
    let failures = local.block_on(&runtime, async {
        let callers: Vec<_> = (0..connections)
            .map(|_| {
                let request = request.clone();
                tokio::task::spawn_local(caller(at, request, most, began + long, times.clone()))
            })
            .collect();
        let mut failures = vec![];
        for caller in callers {
            failures.extend(caller.await.ok().and_then(Result::err));
        }
        failures
    });
    if let Some(first) = failures.first() {
        return Err(format!("{} of {connections} callers failed: {first}", failures.len()).into());
    }
    let seconds = began.elapsed().as_secs_f64();
    let mut times = times.borrow_mut();
    let (p50, p99) = (percentile(&mut times, 50.0), percentile(&mut times, 99.0));
    println!("{} {seconds} {p50} {p99}", times.len());
    Ok(())
}

async fn caller(
    at: SocketAddr,
    request: Vec<u8>,
    most: u64,
    until: Instant,
    times: Rc<RefCell<Vec<f64>>>,
) -> Outcome<()> {
    let mut stream = tokio::net::TcpStream::connect(at).await?;
    stream.set_nodelay(true)?;
    let mut bytes = Vec::with_capacity(8192);
    loop {
        let asked = Instant::now();
        if asked >= until || times.borrow().len() as u64 >= most {
            return Ok(());
        }
        stream.write_all(&request).await?;
        bytes.clear();
        while !complete(&bytes)? {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err("the server closed the connection".into());
            }
        }
        times.borrow_mut().push(asked.elapsed().as_secs_f64() * 1e6);
    }
}

/// `latency ROUNDS REQUESTS ADDR...`: one caller that goes from server to server, a connection each.
/// Prints a line per server: the median, and the p99, of the rounds' own, in microseconds.
pub(crate) fn latency(arguments: &[String]) -> Outcome<()> {
    let [rounds, requests, servers @ ..] = arguments else {
        return Err("latency ROUNDS REQUESTS ADDR...".into());
    };
    let (rounds, requests): (usize, usize) = (rounds.parse()?, requests.parse()?);
    let mut lines = Vec::new();
    for server in servers {
        let at: SocketAddr = server.parse()?;
        let stream = TcpStream::connect(at)?;
        stream.set_nodelay(true)?;
        lines.push((stream, request(at), Vec::new(), Vec::new()));
    }
    let mut bytes = Vec::with_capacity(8192);
    // The first round is for caches and is thrown away.
    for round in 0..=rounds {
        for (stream, request, p50s, p99s) in &mut lines {
            let mut times = Vec::with_capacity(requests);
            for _ in 0..requests {
                let asked = Instant::now();
                stream.write_all(request)?;
                bytes.clear();
                exchange_end(stream, &mut bytes)?;
                times.push(asked.elapsed().as_secs_f64() * 1e6);
            }
            if round > 0 {
                p50s.push(percentile(&mut times, 50.0));
                p99s.push(percentile(&mut times, 99.0));
            }
        }
    }
    for (_, _, p50s, p99s) in &lines {
        println!("{} {}", median(p50s), median(p99s));
    }
    Ok(())
}

/// Sends back what comes in on stdin, without a thought: what the engine's attach stream costs by itself.
pub(crate) fn echo() -> Outcome<()> {
    let (mut stdin, mut stdout, mut piece) = (std::io::stdin(), std::io::stdout(), [0; 8192]);
    loop {
        let read = stdin.read(&mut piece)?;
        if read == 0 {
            return Ok(());
        }
        stdout.write_all(&piece[..read])?;
        stdout.flush()?;
    }
}
