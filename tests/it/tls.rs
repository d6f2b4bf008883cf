//! The TLS listener of `serve --tls`, before an engine that counts requests.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kfp_creds::certificates::{Certificates, Folder};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use crate::support::fake_engine::{FakeEngine, json};
use crate::support::proxy_fixture::{ProxyFixture, Scratch};

/// A listener whose certificates are in `folder`.
struct Listening {
    engine: FakeEngine,
    proxy: ProxyFixture,
    folder: Folder,
    port: u16,
    _scratch: Scratch,
}

fn listening() -> Listening {
    let scratch = Scratch::new();
    let engine = FakeEngine::start(&scratch.0, |_| json("200 OK", "the engine"));
    let proxy = ProxyFixture::at(&scratch.0, &engine.socket);
    let certificates = Certificates::make("0123abcd", Ipv4Addr::LOCALHOST.into(), SystemTime::now()).unwrap();
    let mut folder = Folder::take(&scratch.0.join("tls")).unwrap();
    folder.write(&certificates, "0123abcd", &scratch.0).unwrap();
    let port = proxy.serve_tls(certificates.server.clone());
    Listening { engine, proxy, folder, port, _scratch: scratch }
}

const REQUEST: &[u8] = b"GET /info HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n";

/// The answer to a client that trusts `ca` and presents the certificate in `own`, or the error.
fn ask(
    port: u16,
    ca: &Path,
    own: Option<&Path>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<String, String> {
    let certificates = |path: &Path| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(path).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&ca.join("ca.pem")));
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder
            .with_client_auth_cert(
                certificates(&own.join("cert.pem")),
                PrivateKeyDer::from_pem_file(own.join("key.pem")).unwrap(),
            )
            .unwrap(),
    };
    let client = ClientConnection::new(Arc::new(config), ServerName::try_from("127.0.0.1").unwrap()).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut stream = StreamOwned::new(client, stream);
    // In TLS 1.3 the client's handshake is done before the server has seen its certificate: it sends its
    // request at once.
    stream.write_all(REQUEST).map_err(|error| error.to_string())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).map_err(|error| error.to_string())?;
    Ok(reply)
}

#[test]
fn only_a_certificate_of_this_session_opens_the_tls_listener() {
    let foreign = Scratch::new();
    crate::support::far_engine::certificates(&foreign.0);
    let other = listening();
    type Asking<'a> = &'a dyn Fn(&Listening) -> Result<String, String>;
    let cases: [(&str, Asking<'_>, &str); 6] = [
        (
            "none",
            &|at| ask(at.port, at.folder.path(), None, &[&TLS13]),
            "it showed no certificate; set DOCKER_TLS_VERIFY=1",
        ),
        (
            "of somebody else",
            &|at| ask(at.port, at.folder.path(), Some(&foreign.0), &[&TLS13]),
            "its certificate is not of this session; set DOCKER_CERT_PATH",
        ),
        (
            "of another session",
            &|at| ask(at.port, at.folder.path(), Some(other.folder.path()), &[&TLS13]),
            "its certificate is not of this session; set DOCKER_CERT_PATH",
        ),
        (
            "which trusts another authority",
            &|at| ask(at.port, &foreign.0, Some(at.folder.path()), &[&TLS13]),
            "REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE win over it: unset them",
        ),
        (
            "TLS 1.2",
            &|at| ask(at.port, at.folder.path(), Some(at.folder.path()), &[&TLS12]),
            "it does not speak TLS 1.3",
        ),
        (
            "no TLS",
            &|at| {
                let mut stream = TcpStream::connect(("127.0.0.1", at.port)).unwrap();
                stream.write_all(REQUEST).unwrap();
                let mut reply = vec![];
                let _ = stream.read_to_end(&mut reply);
                assert!(!reply.starts_with(b"HTTP"), "{reply:?}");
                Err(String::new())
            },
            "it does not speak TLS; set DOCKER_TLS_VERIFY=1",
        ),
    ];
    for (case, asking, remedy) in cases {
        let at = listening();
        assert!(asking(&at).is_err(), "{case}");
        let reply = ask(at.port, at.folder.path(), Some(at.folder.path()), &[&TLS13]).unwrap();
        assert!(reply.starts_with("HTTP/1.1 200 OK") && reply.ends_with("the engine"), "{case}: {reply}");
        assert_eq!(at.engine.seen().len(), 1, "{case}: only the request of the session's own client");
        let said = at.proxy.said();
        assert!(said.contains("a TLS connection from 127.0.0.1") && said.contains(remedy), "{case}: {said}");
        // Anybody on the machine can cause such a line, so the second failure prints none.
        assert!(asking(&at).is_err() && at.proxy.said().lines().count() == 1, "{case}: {}", at.proxy.said());
    }
}

#[test]
fn silent_tls_connections_block_nobody() {
    let at = listening();
    let silent: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(("127.0.0.1", at.port)).unwrap()).collect();
    let began = Instant::now();
    let reply = ask(at.port, at.folder.path(), Some(at.folder.path()), &[&TLS13]).unwrap();
    assert!(
        reply.ends_with("the engine") && began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    drop(silent);
}
