//! Subject tokens that Google's Security Token Service takes: those of other issuers, and what a command, AWS or a
//! client certificate prove.

pub(super) mod aws;
pub(super) mod certificate;
pub(super) mod executable;

use std::path::PathBuf;

use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::google::external_account::subject::aws::AwsSubject;
use crate::source::google::external_account::subject::certificate::CertificateSubject;
use crate::source::google::external_account::subject::executable::Executable;
use crate::source::http::client::Upstream;
use crate::source::subject::SubjectToken;

/// Where a subject token comes from.
#[derive(Debug)]
pub(crate) enum Subject {
    Issued(SubjectToken),
    Executable(Executable),
    Aws(Box<AwsSubject>),
    Certificate(CertificateSubject),
}

/// The parts of an exchange that its subject token depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Purpose<'a> {
    pub(crate) audience: &'a str,
    pub(crate) token_type: &'a str,
    pub(crate) account: Option<&'a str>,
    /// An earlier token was refused: ignore cached ones.
    pub(crate) afresh: bool,
}

impl Subject {
    pub(crate) async fn token(
        &self,
        upstream: &Upstream,
        purpose: &Purpose<'_>,
    ) -> Result<Secret<String>, SourceError> {
        match self {
            Self::Issued(token) => token.token(upstream).await,
            Self::Executable(executable) => executable.token(purpose).await,
            Self::Aws(aws) => aws.token(upstream, purpose.audience).await,
            Self::Certificate(certificate) => certificate.token(),
        }
    }

    /// A name for messages.
    pub(crate) fn place(&self) -> String {
        match self {
            Self::Issued(token) => token.place(),
            Self::Executable(executable) => executable.name(),
            Self::Aws(_) => "AWS".into(),
            Self::Certificate(certificate) => certificate.place(),
        }
    }

    /// Whether fetching again may return a different token.
    pub(crate) fn may_change(&self) -> bool {
        match self {
            Self::Issued(token) => token.may_change(),
            Self::Executable(executable) => executable.keeps(),
            Self::Aws(_) | Self::Certificate(_) => false,
        }
    }

    /// Whether kfp-creds signs the token, with a timestamp by its own clock.
    pub(crate) fn is_signed_here(&self) -> bool {
        matches!(self, Self::Aws(_))
    }

    /// The files whose change means that a failed exchange may now succeed.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Issued(token) => token.files(),
            Self::Certificate(certificate) => certificate.files(),
            Self::Executable(_) | Self::Aws(_) => vec![],
        }
    }
}
