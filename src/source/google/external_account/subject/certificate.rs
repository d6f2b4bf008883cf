//! This workload's X.509 certificate: presented in TLS to the Security Token Service, and sent as the subject
//! token. A separate *certificate config file* names certificate and key:
//! `{"cert_configs": {"workload": {"cert_path": …, "key_path": …}}}`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;

use crate::quote;
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::google::gcloud;
use crate::source::http::client::Upstream;
use crate::source::subject;
use crate::source::variables::Variables;

/// Overrides the path of gcloud's certificate config file.
const VARIABLE: &str = "GOOGLE_API_CERTIFICATE_CONFIG";

/// `credential_source.certificate` in a credential file.
#[derive(Debug, Deserialize)]
pub(in crate::source) struct CertificateSource {
    use_default_certificate_config: Option<bool>,
    certificate_config_location: Option<PathBuf>,
    trust_chain_path: Option<PathBuf>,
}

#[derive(Debug)]
pub(crate) struct CertificateSubject {
    config: PathBuf,
    trust_chain: Option<PathBuf>,
    /// The client that presents the certificate, and the certificate and key it was built from.
    client: Mutex<Option<(Vec<u8>, Arc<Upstream>)>>,
}

#[derive(Deserialize)]
struct CertificateConfig {
    cert_configs: Configs,
}

#[derive(Deserialize)]
struct Configs {
    workload: Option<Workload>,
}

#[derive(Deserialize)]
struct Workload {
    cert_path: PathBuf,
    key_path: PathBuf,
}

impl CertificateSubject {
    /// The error is a fragment about the file.
    pub(crate) fn described(described: CertificateSource, variables: &Variables) -> Result<Self, String> {
        let usual = described.use_default_certificate_config.unwrap_or_default();
        let config = match (usual, described.certificate_config_location) {
            (false, Some(named)) => named,
            (true, None) => default_config(variables)
                .ok_or("it wants the default certificate config, and HOME is not set")?,
            _ => {
                return Err("its certificate has to say one of use_default_certificate_config and \
                            certificate_config_location"
                    .into());
            }
        };
        Ok(Self { config, trust_chain: described.trust_chain_path, client: Mutex::default() })
    }

    pub(crate) fn place(&self) -> String {
        format!("the certificate of {}", quote::path(&self.config))
    }

    /// Includes the files that the config names at this moment: certificates are renewed in place.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let own = [Some(self.config.clone()), self.trust_chain.clone()];
        let named = self.workload().ok().map(|workload| [workload.cert_path, workload.key_path]);
        own.into_iter().flatten().chain(named.into_iter().flatten()).collect()
    }

    /// The chain as a JSON list of base64 DER, the leaf first. If the chain file starts with the leaf too,
    /// the leaf is listed once.
    pub(crate) fn token(&self) -> Result<Secret<String>, SourceError> {
        let leaf = self.leaf(&self.workload()?)?;
        let mut chain = vec![STANDARD.encode(&leaf)];
        if let Some(path) = &self.trust_chain {
            for (at, one) in certificates(path)?.into_iter().enumerate() {
                match (one == leaf, at) {
                    (true, 0) => {}
                    (true, _) => {
                        return Err(SourceError::refused(format!(
                            "in the trust chain {} the own certificate has to come first",
                            quote::path(path)
                        )));
                    }
                    (false, _) => chain.push(STANDARD.encode(&one)),
                }
            }
        }
        Ok(Secret::new(serde_json::json!(chain).to_string()))
    }

    /// The client for servers that may request the certificate. Rebuilt when the files change.
    pub(crate) fn client(&self, plain: &Upstream) -> Result<Arc<Upstream>, SourceError> {
        let workload = self.workload()?;
        let unread = |path: &Path, error| {
            SourceError::transient(format!("cannot read {}: {error}", quote::path(path)))
        };
        let chain = subject::read(&workload.cert_path).map_err(|error| unread(&workload.cert_path, error))?;
        let key = subject::read(&workload.key_path).map_err(|error| unread(&workload.key_path, error))?;
        let made_of =
            [digest(&SHA256, chain.expose()), digest(&SHA256, key.expose())].map(|one| one.as_ref().to_vec());
        let made_of = made_of.concat();
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, client)) = client.as_ref()
            && *of == made_of
        {
            return Ok(client.clone());
        }
        let key = PrivateKeyDer::from_pem_slice(key.expose()).map_err(|_| {
            SourceError::transient(format!("{} holds no private key as PEM", quote::path(&workload.key_path)))
        })?;
        let made = plain.showing((pem(&workload.cert_path, chain.expose())?, key))?;
        *client = Some((made_of, made.clone()));
        Ok(made)
    }

    pub(crate) fn reconnect(&self) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn workload(&self) -> Result<Workload, SourceError> {
        let name = quote::path(&self.config);
        let bytes = subject::read(&self.config).map_err(|error| {
            SourceError::transient(format!("the certificate config {name} cannot be read: {error}"))
        })?;
        let config = serde_json::from_slice::<CertificateConfig>(bytes.expose()).ok();
        config.and_then(|config| config.cert_configs.workload).ok_or_else(|| {
            SourceError::transient(format!(
                "the certificate config {name} names no workload certificate and key"
            ))
        })
    }

    fn leaf(&self, workload: &Workload) -> Result<CertificateDer<'static>, SourceError> {
        certificates(&workload.cert_path).map(|mut all| all.swap_remove(0))
    }
}

/// The certificates in a PEM file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let bytes = subject::read(path)
        .map_err(|error| SourceError::transient(format!("cannot read {}: {error}", quote::path(path))))?;
    pem(path, bytes.expose())
}

fn pem(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    all.ok()
        .filter(|all| !all.is_empty())
        .ok_or_else(|| SourceError::transient(format!("{} holds no certificate as PEM", quote::path(path))))
}

fn default_config(variables: &Variables) -> Option<PathBuf> {
    let named = variables.text(VARIABLE).map(PathBuf::from);
    named.or_else(|| {
        let place = |name| variables.text(name).map(Path::new);
        Some(gcloud::directory(place("CLOUDSDK_CONFIG"), place("HOME"))?.join("certificate_config.json"))
    })
}
