//! A principal's certificate: its key signs assertions (RFC 7523 section 2.2), which replace the principal's secret.
//!
//! `AZURE_CLIENT_CERTIFICATE_PATH` names a PEM file with the key and its certificate. It is read for every assertion,
//! so that a renewed certificate is used at once.

use std::path::PathBuf;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{RSA_PSS_SHA256, RsaKeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

use crate::failure::Reason;
use crate::quote;
use crate::secret::Secret;
use crate::source::subject::read;
use crate::source::{SourceError, jwt};

/// Entra accepts assertions that live for ten minutes, in seconds.
const LIFE: u64 = 600;

#[derive(Debug)]
pub(super) struct Certificate {
    path: PathBuf,
    /// Whether the chain is sent too, for principals that trust the name of an issuer.
    chain: bool,
}

struct Loaded {
    signer: RsaKeyPair,
    /// The certificate of the key first.
    certificates: Vec<CertificateDer<'static>>,
}

impl Certificate {
    /// Fails here, not at the first token, if the file cannot sign.
    pub(super) fn open(path: PathBuf, chain: bool) -> Result<Self, SourceError> {
        let certificate = Self { path, chain };
        certificate.load()?;
        Ok(certificate)
    }

    pub(super) fn place(&self) -> String {
        quote::path(&self.path)
    }

    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// An assertion of `client_id` for the token endpoint `url`, signed with the time `now`.
    pub(super) fn assertion(
        &self,
        client_id: &str,
        url: &str,
        now: SystemTime,
    ) -> Result<Secret<String>, SourceError> {
        let weak = |_| SourceError::transient("signing failed: no randomness; try again");
        let Loaded { signer, certificates } = self.load()?;
        let random = SystemRandom::new();
        let mut id = [0; 16];
        random.fill(&mut id).map_err(weak)?;
        let thumbprint = certificates.first().map(|own| jwt::encode(digest(&SHA256, own)));
        let mut header = json!({"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint});
        if self.chain {
            header["x5c"] = certificates.iter().map(|one| STANDARD.encode(one)).collect();
        }
        let issued = jwt::seconds(now);
        let claims = json!({
            "aud": url, "iss": client_id, "sub": client_id, "jti": jwt::encode(id),
            "iat": issued, "nbf": issued, "exp": issued + LIFE,
        });
        let input = jwt::signing_input(&header, &claims);
        let mut signature = vec![0; signer.public().modulus_len()];
        signer.sign(&RSA_PSS_SHA256, &random, input.as_bytes(), &mut signature).map_err(weak)?;
        Ok(Secret::new(format!("{input}.{}", jwt::encode(signature))))
    }

    fn load(&self) -> Result<Loaded, SourceError> {
        let place = self.place();
        let bytes = read(&self.path).map_err(|error| {
            SourceError::refused(format!("the certificate file {place} cannot be read: {error}"))
        })?;
        loaded(&bytes, &place).map_err(|why| SourceError::refused(Reason::advice(format!("{place} {why}"))))
    }
}

/// The error completes a sentence about the file and quotes nothing from it.
fn loaded(bytes: &Secret<Vec<u8>>, place: &str) -> Result<Loaded, String> {
    let bytes = bytes.expose();
    // DER: the beginning of a PKCS#12 file, whatever its name is.
    if bytes.first() == Some(&0x30) {
        return Err(format!(
            "is no PEM file but PKCS#12 (PFX); convert it: openssl pkcs12 -in {place} -nodes -out certificate.pem"
        ));
    }
    let encrypted = ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"];
    if encrypted.iter().any(|mark| bytes.windows(mark.len()).any(|part| part == mark.as_bytes())) {
        return Err(format!(
            "has an encrypted key; write it without a password: openssl pkey -in {place} -out key.pem, and put the \
             certificate into the same file"
        ));
    }
    let key = PrivateKeyDer::from_pem_slice(bytes).map_err(|_| "has no private key as PEM in it")?;
    let signer = match &key {
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
        _ => return Err("has no RSA key, and Entra accepts no other".into()),
    };
    let signer = signer.map_err(|error| match error.to_string().as_str() {
        "TooSmall" => "has a key of less than 2048 bits, with which nothing is signed here; make a new one",
        _ => "has no RSA key that can be read, and Entra accepts no other",
    })?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let mut certificates = all.map_err(|_| "has a certificate that cannot be read")?;
    // Files hold chains in any order; the one that contains the public key is the key's own.
    let public = signer.public().as_ref();
    let own = certificates.iter().position(|one| one.windows(public.len()).any(|part| part == public));
    let own = own.ok_or("has no certificate of its key in it; put both into the file")?;
    certificates.swap(0, own);
    Ok(Loaded { signer, certificates })
}
