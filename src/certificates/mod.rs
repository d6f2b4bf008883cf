//! The certificates of one session's TLS listener: an authority, a certificate for the server and one for all
//! of its clients. The keys of the authority and of the server are in no file; the authority's is dropped as
//! soon as it has signed these two.

mod folder;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::secret::Secret;

pub use self::folder::{Folder, remove_left};

/// Longer than a session lasts. The certificates end with the session, because the next one has another
/// authority.
const VALID: Duration = Duration::from_secs(366 * 24 * 3600);
/// How far the clock of a client may be behind: that of a virtual machine, for example.
const CLOCKS_DIFFER: Duration = Duration::from_secs(24 * 3600);

/// What the two sides of a listener need.
#[derive(Debug)]
pub struct Certificates {
    /// The configuration of the server: TLS 1.3 with a client certificate of this authority.
    pub server: Arc<ServerConfig>,
    /// `ca.pem` and `cert.pem`.
    authority: String,
    client: String,
    /// `key.pem`.
    key: Secret<String>,
}

impl Certificates {
    /// Makes the certificates of `session`, whose server is at `address` and at the names of the loopback. The
    /// error is one line.
    pub fn make(session: &str, address: IpAddr, now: SystemTime) -> Result<Self, String> {
        made(session, address, now).map_err(|error| format!("no certificates could be made: {error}"))
    }
}

fn made(session: &str, address: IpAddr, now: SystemTime) -> Result<Certificates, Box<dyn std::error::Error>> {
    let about = |role: &str, names: Vec<String>| -> Result<CertificateParams, rcgen::Error> {
        let mut about = CertificateParams::new(names)?;
        about.distinguished_name.push(DnType::CommonName, format!("kfp-creds {session} {role}"));
        about.not_before = (now - CLOCKS_DIFFER).into();
        about.not_after = (now + VALID).into();
        about.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        about.use_authority_key_identifier_extension = true;
        Ok(about)
    };
    let mut authority = about("authority", vec![])?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(String::from).into();
    if !address.is_unspecified() && !names.contains(&address.to_string()) {
        names.push(address.to_string());
    }
    let mut server = about("server", names)?;
    // Each certificate has one purpose, so the holder of the clients' key cannot pose as the server.
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut client = about("client", vec![])?;
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];

    let [authority_key, server_key, client_key] = [(); 3].map(|()| KeyPair::generate().map(Secret::new));
    let (authority_key, server_key, client_key) = (authority_key?, server_key?, client_key?);
    let root = authority.self_signed(authority_key.expose())?;
    let issuer = Issuer::from_params(&authority, authority_key.expose());
    let server = server.signed_by(server_key.expose(), &issuer)?;
    let client = client.signed_by(client_key.expose(), &issuer)?;
    let private = PrivatePkcs8KeyDer::from(server_key.expose().serialized_der().to_vec());
    Ok(Certificates {
        server: Arc::new(configured(root.der(), server.der().clone(), private)?),
        authority: pem("CERTIFICATE", root.der()),
        client: pem("CERTIFICATE", client.der()),
        key: Secret::new(pem("PRIVATE KEY", client_key.expose().serialized_der())),
    })
}

fn configured(
    root: &CertificateDer<'static>,
    server: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
) -> Result<ServerConfig, Box<dyn std::error::Error>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(root.clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server], key.into())?;
    // Every connection has to present its certificate, so neither resumption nor early data is allowed.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

/// `der` as a PEM section. The text has its full capacity from the start, so that no copy of a key remains in
/// memory that was freed.
fn pem(what: &str, der: &[u8]) -> String {
    const BYTES_A_LINE: usize = 48;
    let mut text = String::with_capacity(der.len() * 3 / 2 + 2 * what.len() + 64);
    text.push_str(&format!("-----BEGIN {what}-----\n"));
    for line in der.chunks(BYTES_A_LINE) {
        STANDARD.encode_string(line, &mut text);
        text.push('\n');
    }
    text.push_str(&format!("-----END {what}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;

    #[test]
    fn certificates_are_read_back_and_a_key_is_written_once() {
        let der: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let text = pem("CERTIFICATE", &der);
        assert_eq!(CertificateDer::from_pem_slice(text.as_bytes()).unwrap().as_ref(), &der[..]);
        assert!(text.capacity() >= text.len() && text.lines().all(|line| line.len() <= 64));
        let certificates =
            Certificates::make("0badcafe", IpAddr::from([10, 1, 2, 3]), SystemTime::now()).unwrap();
        let printed = format!("{certificates:?}");
        let key = certificates.key.expose();
        assert!(PrivateKeyDer::from_pem_slice(key.as_bytes()).is_ok());
        let line = key.lines().nth(1).unwrap();
        assert!(!printed.contains(line) && !certificates.authority.contains(line));
    }
}
