//! The source that `[azure]` chooses.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::failure::Reason;
use crate::quote;
use crate::source::azure::cli::{Az, TokenCommand};
use crate::source::azure::entra::Entra;
use crate::source::azure::machine::Machine;
use crate::source::azure::offline::OfflineEntra;
use crate::source::azure::resource::resource;
use crate::source::azure::{
    AzureCredentials, AzurePrincipal, AzureRequest, AzureSettings, AzureSource, is_name,
};
use crate::source::command::{HelperCommand, environment};
use crate::source::http::client::Upstream;
use crate::source::signer::Signer;
use crate::source::subject::SubjectToken;
use crate::source::variables::Variables;
use crate::source::{Pending, Reloaded, SourceError};
use crate::token::AzureToken;

/// Most programs of one source at the same time: containers choose the resources, and each resource needs a run.
const RUNS: usize = 4;

/// The host's credentials for Azure.
#[derive(Debug)]
pub struct Azure {
    kind: AzureKind,
    tenant: Option<String>,
    client_id: Option<String>,
    upstream: Arc<Upstream>,
    runs: Semaphore,
}

#[derive(Debug)]
enum AzureKind {
    Az(Az),
    Entra(Box<Entra>),
    Machine(Machine),
    Program(TokenCommand),
    Offline(OfflineEntra),
}

impl Azure {
    /// Opens what `settings` choose, without a request. `signer` has the session's key, needed for
    /// [`AzureCredentials::Offline`] only. `Absent` if the credentials do not exist here, `Refused` if they exist and
    /// cannot be used.
    pub fn open(
        settings: &AzureSettings,
        variables: &Variables,
        upstream: Arc<Upstream>,
        signer: Option<Arc<Signer>>,
    ) -> Result<Self, SourceError> {
        for (value, key) in [(&settings.tenant, "tenant"), (&settings.client_id, "client_id")] {
            if let Some(value) = value.as_ref().filter(|value| !is_name(value)) {
                return Err(SourceError::refused(format!(
                    "azure.{key}: {} is not a name in Azure",
                    quote::object(value)
                )));
            }
        }
        let kind = match &settings.credentials {
            AzureCredentials::Az => AzureKind::Az(Az::new(settings.tenant.clone(), variables)?),
            AzureCredentials::Environment => {
                AzureKind::Entra(Box::new(Entra::of_environment(settings, variables)?))
            }
            AzureCredentials::Machine => AzureKind::Machine(Machine::new(variables)?),
            AzureCredentials::Command { program, arguments, pass, timeout } => {
                let (program, arguments) = (program.clone(), arguments.clone());
                let environment = environment(pass, variables);
                AzureKind::Program(TokenCommand {
                    command: HelperCommand { program, arguments, environment, timeout: *timeout },
                })
            }
            AzureCredentials::Federated { token_from, audience } => {
                let token = SubjectToken::named(token_from, audience, variables)?;
                AzureKind::Entra(Box::new(Entra::federated(settings, variables, token)?))
            }
            AzureCredentials::Offline => {
                let signer = signer
                    .ok_or_else(|| SourceError::refused("there is no key that signs offline tokens"))?;
                AzureKind::Offline(OfflineEntra { signer, tenant: settings.tenant.clone() })
            }
        };
        let (tenant, client_id) = match &kind {
            AzureKind::Entra(entra) => (Some(entra.tenant.clone()), Some(entra.client_id.clone())),
            _ => (settings.tenant.clone(), settings.client_id.clone()),
        };
        let azure = Self { kind, tenant, client_id, upstream, runs: Semaphore::new(RUNS) };
        match &azure.client_id {
            Some(id) => azure.can_be(id).map(|()| azure),
            None => Ok(azure),
        }
    }

    /// Refuses a choice of the principal where a login or a command has only one.
    fn can_be(&self, client_id: &str) -> Result<(), SourceError> {
        let what = match &self.kind {
            AzureKind::Az(_) => "az gives tokens of its own login only",
            AzureKind::Program(_) => "a command gives tokens of its own principal only",
            AzureKind::Entra(_) | AzureKind::Machine(_) | AzureKind::Offline(_) => return Ok(()),
        };
        Err(SourceError::refused(Reason::advice(format!(
            "{what}, not of client_id {}; leave client_id out, or use the credentials `environment` or `machine`",
            quote::name(client_id)
        ))))
    }

    async fn exchange(&self, ask: &AzureRequest) -> Result<AzureToken, SourceError> {
        if resource(&ask.resource).as_ref() != Ok(&ask.resource) {
            return Err(SourceError::refused(format!(
                "{} is not a resource, such as https://storage.azure.com",
                quote::object(&ask.resource)
            )));
        }
        if let Some(id) = &ask.client_id {
            if !is_name(id) {
                return Err(SourceError::refused(format!(
                    "{} is not a client id of Azure",
                    quote::object(id)
                )));
            }
            self.can_be(id)?;
        }
        let _run = match self.kind {
            AzureKind::Az(_) | AzureKind::Program(_) => self.runs.acquire().await.ok(),
            AzureKind::Entra(_) | AzureKind::Machine(_) | AzureKind::Offline(_) => None,
        };
        let client_id = ask.client_id.as_deref().or(self.client_id.as_deref());
        match &self.kind {
            AzureKind::Az(az) => az.token(ask).await,
            AzureKind::Entra(entra) => entra.token(&self.upstream, ask).await,
            AzureKind::Machine(machine) => machine.token(&self.upstream, ask, client_id).await,
            AzureKind::Program(program) => program.token(ask).await,
            AzureKind::Offline(made) => made.token(ask, client_id),
        }
    }

    /// Extra time for a program, beyond what upstream calls may take.
    fn patience(&self) -> Duration {
        match &self.kind {
            AzureKind::Az(az) => az.patience(),
            AzureKind::Program(program) => program.patience(),
            AzureKind::Entra(_) | AzureKind::Machine(_) | AzureKind::Offline(_) => Duration::ZERO,
        }
    }
}

impl AzureSource for Azure {
    fn kind(&self) -> String {
        match &self.kind {
            AzureKind::Az(_) => "az",
            AzureKind::Entra(entra) => entra.kind(),
            AzureKind::Machine(_) => "managed identity",
            AzureKind::Program(_) => "command",
            AzureKind::Offline(_) => "offline",
        }
        .to_owned()
    }

    fn principal(&self) -> AzurePrincipal {
        AzurePrincipal { tenant: self.tenant.clone(), client_id: self.client_id.clone() }
    }

    fn per_container(&self) -> bool {
        matches!(self.kind, AzureKind::Offline(_))
    }

    fn token<'a>(&'a self, ask: &'a AzureRequest) -> Pending<'a, Result<AzureToken, SourceError>> {
        let limit = self.upstream.limits().mint + self.patience();
        Box::pin(async move {
            tokio::time::timeout(limit, self.exchange(ask)).await.unwrap_or_else(|_| {
                Err(SourceError::transient(format!("Azure gave no token within {} s", limit.as_secs_f32())))
            })
        })
    }

    fn reload(&self) -> Reloaded {
        match &self.kind {
            AzureKind::Az(az) => az.reload(),
            AzureKind::Entra(entra) => entra.reload(),
            AzureKind::Machine(_) | AzureKind::Program(_) | AzureKind::Offline(_) => Reloaded::Same,
        }
    }

    fn reconnect(&self) {
        self.upstream.reconnect();
    }
}
