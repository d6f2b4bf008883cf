//! The real engine as if it were on another machine: behind TLS with client certificates, and behind ssh.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, UnixStream};
use tokio_rustls::TlsAcceptor;

/// `ca.pem`, `cert.pem` and `key.pem` for a client, `server.pem` and `server-key.pem`, made for one test.
pub(crate) fn certificates(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let openssl = |arguments: &[&str]| {
        let out = Command::new("openssl").current_dir(folder).args(arguments).output().unwrap();
        assert!(out.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let ca = [
        "req",
        "-x509",
        "-days",
        "1",
        "-subj",
        "/CN=made for one test",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
    ];
    openssl(&[&ca[..], &key[..]].concat());
    for (name, names, out, private) in [
        ("server", "subjectAltName=IP:127.0.0.1", "server.pem", "server-key.pem"),
        ("client", "extendedKeyUsage=clientAuth", "cert.pem", "key.pem"),
    ] {
        let subject = format!("/CN={name}");
        let request = ["req", "-subj", &subject, "-keyout", private, "-out", "request.csr"];
        openssl(&[&request[..], &key[..]].concat());
        std::fs::write(folder.join("ext"), names).unwrap();
        let by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "ext"];
        openssl(&[&["x509", "-req", "-in", "request.csr", "-out", out][..], &by[..]].concat());
    }
}

fn chain(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path).unwrap().collect::<Result<_, _>>().unwrap()
}

/// Serves `engine` on a loopback port: to clients with a certificate of the CA in `folder`, or without TLS to
/// everyone.
pub(crate) fn serve(folder: Option<&Path>, engine: PathBuf) -> u16 {
    let acceptor = folder.map(|folder| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(chain(&folder.join("ca.pem")));
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(
                chain(&folder.join("server.pem")),
                PrivateKeyDer::from_pem_file(folder.join("server-key.pem")).unwrap(),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    });
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap().port()).unwrap();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (acceptor, engine) = (acceptor.clone(), engine.clone());
                tokio::spawn(async move {
                    let Ok(mut engine) = UnixStream::connect(&engine).await else { return };
                    let (mut plain, mut secret);
                    let client: &mut (dyn Both + Unpin + Send) = match acceptor {
                        Some(acceptor) => {
                            let Ok(accepted) = acceptor.accept(client).await else { return };
                            secret = accepted;
                            &mut secret
                        }
                        None => {
                            plain = client;
                            &mut plain
                        }
                    };
                    let mut client = client;
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut engine).await;
                });
            }
        });
    });
    told.recv().unwrap()
}

trait Both: tokio::io::AsyncRead + tokio::io::AsyncWrite {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite> Both for T {}

/// A folder for the front of `PATH` with an `ssh` that accepts exactly the expected arguments and runs
/// `docker system dial-stdio` against `engine`; it records its calls in `calls`.
pub(crate) fn fake_ssh(folder: &Path, engine: &Path, destination: &[&str]) -> PathBuf {
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let wanted = ["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15"];
    let wanted = [&wanted[..], destination, &["docker", "system", "dial-stdio"]].concat().join(" ");
    let script = format!(
        "#!/bin/sh\necho \"$*\" >>'{calls}'\n[ \"$*\" = '{wanted}' ] || {{ echo \"not expected: $*\" >&2; exit 255; }}\n\
         exec docker --host 'unix://{engine}' system dial-stdio\n",
        calls = folder.join("calls").display(),
        engine = engine.display(),
    );
    std::fs::write(bin.join("ssh"), script).unwrap();
    std::fs::set_permissions(bin.join("ssh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    bin
}
