//! The sources of AWS and Azure of a session, and one credential of each as a trial.

use std::sync::Arc;
use std::time::Duration;

use super::{no_credential, proxies};
use crate::cloud::Cloud;
use crate::config::{Config, Environment};
use crate::failure::Failure;
use crate::mint::{Mint, MintFailure};
use crate::record::Requestor;
use crate::source::aws::{Aws, AwsSource};
use crate::source::azure::{Azure, AzureSource};
use crate::source::http::client::{Limits, Upstream};
use crate::source::offline::Offline;
use crate::token::Now;
use crate::workload::{Identity, Task};

/// How long one credential may take at the start and in `check`: longer than a whole mint, which ends with its own
/// reason.
pub(super) const WITHIN: Duration = Duration::from_secs(26);

/// The sources that the config has besides Google's.
#[derive(Debug, Default)]
pub(super) struct Clouds {
    pub(super) aws: Option<Arc<dyn AwsSource>>,
    pub(super) azure: Option<Arc<dyn AzureSource>>,
}

impl Clouds {
    /// `offline` is the session's key, if it signs tokens itself.
    pub(super) fn open(
        config: &Config,
        env: &Environment,
        offline: Option<&Arc<Offline>>,
    ) -> Result<Self, Failure> {
        let signer = || offline.map(|offline| offline.signer());
        let mut clouds = Self::default();
        let upstream = || Upstream::through(&proxies(env), Limits::default(), vec![]);
        if let Some(settings) = &config.aws {
            let upstream = upstream().map_err(no_credential)?;
            let home = env.home();
            let source = Aws::open(settings, &env.variables, home.as_deref(), upstream, signer());
            clouds.aws = Some(Arc::new(source.map_err(|error| told(Cloud::Aws, error.into_reason()))?));
        }
        if let Some(settings) = &config.azure {
            let upstream = upstream().map_err(no_credential)?;
            let source = Azure::open(settings, &env.variables, upstream, signer());
            clouds.azure = Some(Arc::new(source.map_err(|error| told(Cloud::Azure, error.into_reason()))?));
        }
        Ok(clouds)
    }

    /// The kinds of credentials by cloud, for a person.
    pub(super) fn kinds(&self) -> Vec<(Cloud, String)> {
        let aws = self.aws.as_ref().map(|source| (Cloud::Aws, source.kind()));
        let azure = self.azure.as_ref().map(|source| (Cloud::Azure, source.kind()));
        aws.into_iter().chain(azure).collect()
    }
}

fn told(cloud: Cloud, why: crate::failure::Reason) -> Failure {
    Failure::NoCredential(crate::failure::Reason::new(format!("{cloud}: {why}"), why.remedy))
}

/// The outcome of one credential for nobody.
#[derive(Debug)]
pub(super) enum Trial {
    /// The identity does not have the cloud.
    Absent,
    /// The identity names no resource of Azure: which ones its clouds and its principal know is not known here, and a
    /// refusal of another one would prove nothing.
    Untried,
    /// How long the credential lives.
    Done(Result<Duration, MintFailure>),
}

/// One credential of `identity` in `cloud`, for nobody.
pub(super) async fn one(mint: &Mint, identity: &Arc<Identity>, cloud: Cloud, within: Duration) -> Trial {
    let who = Some(Requestor::Session(identity));
    let left = match cloud {
        Cloud::Google => return Trial::Absent,
        Cloud::Aws => {
            let Some(ask) = mint.aws_request(identity, None, &Task::default()) else { return Trial::Absent };
            mint.aws_session(&ask, who, within).await.map(|session| session.expires)
        }
        Cloud::Azure => {
            let Some(azure) = &identity.azure else { return Trial::Absent };
            let Some(resource) = azure.resources.first() else { return Trial::Untried };
            let Some(ask) = mint.azure_request(identity, None, resource) else { return Trial::Absent };
            mint.azure_token(&ask, who, within).await.map(|token| token.expires)
        }
    };
    Trial::Done(left.map(|expires| expires.remaining(Now::read())))
}
