//! Attaches a created container: lifecycle connects it and admits its lease.

use std::sync::Arc;

use hyper::StatusCode;
use tokio::sync::oneshot;

use super::engine_client::Refusal;
use super::question::Joined;
use super::state::Proxy;
use super::{LifecycleRequest, Place};
use crate::cloud::Cloud;
use crate::console::Line;
use crate::loopback;
use crate::policy::Decision;
use crate::secret::Secret;
use crate::workload::{By, ContainerId, Identity, Task};

/// How the lease of a new container is reached.
#[derive(Debug)]
pub(super) struct Reach {
    pub(super) place: Place,
    pub(super) secret: LeaseSecret,
}

/// What only the container's environment holds; `None` if its identity has neither AWS nor Azure.
pub(super) type LeaseSecret = Option<Arc<Secret<String>>>;

/// A new secret, or that of the container whose lease is shared.
pub(super) fn lease_secret(decision: &Decision, joins: Option<&Joined>) -> Result<LeaseSecret, Refusal> {
    let Decision::Attach(identity, _) = decision else { return Ok(None) };
    match joins {
        _ if !identity.has(Cloud::Aws) && !identity.has(Cloud::Azure) => Ok(None),
        Some(joined) => Ok(joined.secret.clone()),
        None => match loopback::capability() {
            Some(secret) => Ok(Some(Arc::new(secret))),
            None => {
                let why = "cannot make the secret of a lease (no random numbers)";
                Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why))
            }
        },
    }
}

impl Proxy {
    pub(super) async fn attach(
        &self,
        id: &ContainerId,
        identity: &Arc<Identity>,
        by: By,
        task: &Arc<Task>,
        Reach { place, secret }: Reach,
    ) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let (container, task) = (id.clone(), task.clone());
        let on_loopback = matches!(place, Place::Loopback(_));
        let ask = LifecycleRequest::Attach {
            container,
            identity: identity.clone(),
            by,
            task: task.clone(),
            place,
            secret,
            answer,
        };
        let gone = || "the session has ended".to_string();
        let address = match self.settings.ask.send(ask).await {
            Ok(()) => match answered.await {
                Ok(outcome) => outcome.map_err(|why| why.to_string())?,
                Err(_) => return Err(gone()),
            },
            Err(_) => return Err(gone()),
        };
        let at = self.settings.loopback.as_ref().filter(|_| on_loopback).map(|paths| paths.at().to_string());
        self.settings.console.say(Line::Attached {
            task: &task.to_string(),
            container: id.short(),
            identity: &identity.name,
            address: &at.unwrap_or_else(|| address.to_string()),
        });
        Ok(())
    }
}
