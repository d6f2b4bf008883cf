//! A loopback port in front of a fake upstream, which fails as networks do: no listener, no answer, half an
//! answer, a reset.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

/// What happens to every request, until it is changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// Nobody listens on the port.
    Closed,
    /// The request is read, and never answered.
    Silence,
    /// The connection ends in the middle of the answer.
    HalfBody,
    /// The request is read, and then the connection is reset (RST).
    Reset,
}

/// Passes requests on while there is no fault. Ends when dropped.
pub(crate) struct FaultProxy {
    address: SocketAddr,
    fault: Arc<Mutex<Option<Fault>>>,
    ended: Arc<AtomicBool>,
}

impl FaultProxy {
    pub(crate) fn of(upstream: SocketAddr) -> Self {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = first.local_addr().unwrap();
        let (fault, ended) = (Arc::default(), Arc::default());
        let proxy = Self { address, fault, ended };
        let (fault, ended) = (proxy.fault.clone(), proxy.ended.clone());
        std::thread::spawn(move || {
            let mut open = Some(first);
            while !ended.load(Ordering::SeqCst) {
                if *fault.lock().unwrap() == Some(Fault::Closed) {
                    open = None;
                } else {
                    let listener = open.get_or_insert_with(|| TcpListener::bind(address).unwrap());
                    listener.set_nonblocking(true).unwrap();
                    if let Ok((stream, _)) = listener.accept() {
                        let fault = fault.clone();
                        // A client may leave at any time.
                        std::thread::spawn(move || drop(serve(stream, upstream, &fault)));
                        continue;
                    }
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        proxy
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn cause(&self, fault: Fault) {
        *self.fault.lock().unwrap() = Some(fault);
        let end = Instant::now() + Duration::from_secs(5);
        while fault == Fault::Closed && TcpStream::connect(self.address).is_ok() {
            assert!(Instant::now() < end, "the port stays open");
        }
    }

    /// From now on, requests are passed on.
    pub(crate) fn stop(&self) {
        *self.fault.lock().unwrap() = None;
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
    }
}

/// One request.
fn serve(mut stream: TcpStream, upstream: SocketAddr, fault: &Mutex<Option<Fault>>) -> io::Result<()> {
    let request = read(&mut stream)?;
    let fault = *fault.lock().unwrap();
    match fault {
        None => {
            let mut behind = TcpStream::connect(upstream)?;
            behind.write_all(&request)?;
            io::copy(&mut behind, &mut stream)?;
        }
        Some(Fault::Closed) => {}
        Some(Fault::Silence) => drop(io::copy(&mut stream, &mut io::sink())?),
        Some(Fault::HalfBody) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"canary\": \"half")?;
        }
        Some(Fault::Reset) => set_socket_linger(&stream, Some(Duration::ZERO))?,
    }
    Ok(())
}

/// A request with its body, changed so that the upstream closes its connection after the answer.
fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let (mut request, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut piece)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        request.extend_from_slice(&piece[..read]);
        let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length = length.map_or(0, |length| length.trim().parse().unwrap());
        if request.len() == end + 4 + length {
            drop(request.splice(end..end, *b"\r\nConnection: close"));
            return Ok(request);
        }
    }
}
