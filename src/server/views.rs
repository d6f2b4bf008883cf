//! Builds the view of one caller from the config, the source and the lease.

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::cloud::NIL_UUID;
use crate::config::Pool;
use crate::docker::cells;
use crate::docker::ranges::spare_relay;
use crate::metadata::{Account, AwsView, AzureView, View};
use crate::secret::Secret;
use crate::source::Principal;
use crate::source::azure::AzurePrincipal;
use crate::workload::{ContainerId, Grant, Identity};

/// Stands in for an account whose e-mail is unknown. Deliberately not a service account's: clients look up a
/// service account's e-mail at Google.
const UNKNOWN_ACCOUNT: &str = "unknown@kfp-creds.invalid";
/// Stands in for a project that neither config nor source names.
pub const UNKNOWN_PROJECT: &str = "unknown-project";

/// The part of `[aws]` that containers see.
#[derive(Clone, Debug, Default)]
pub struct AwsFacts {
    pub region: Option<String>,
}

/// The part of `[azure]` that containers see. The source may know what is `None` here.
#[derive(Clone, Debug, Default)]
pub struct AzureFacts {
    pub tenant: Option<String>,
    pub client_id: Option<String>,
}

/// Values that all callers of a session share.
#[derive(Clone, Debug, Default)]
pub struct Views {
    /// Values from the config, and stand-ins for the rest; no accounts.
    pub base: View,
    /// From the config only; takes precedence over the source's.
    pub project: Option<String>,
    pub email: Option<String>,
    /// The range of the second network; its relay has an address in this range.
    pub pool: Option<Pool>,
    /// Whether each container has its own network and reaches the relay at an address of that network.
    pub cells: bool,
    /// The address, `127.0.0.1:PORT`, at which containers on the host's network send requests.
    pub loopback: Option<String>,
    /// `None`: no caller has anything on AWS.
    pub aws: Option<AwsFacts>,
    /// `None`: no caller has anything on Azure.
    pub azure: Option<AzureFacts>,
}

impl Views {
    /// The view of the container of `grant`, at its address.
    pub fn of(&self, grant: &Grant, address: Ipv4Addr, principal: &Principal) -> View {
        let id = grant.container.as_str();
        // Clients may parse the id as a signed 64-bit integer, into which fifteen hex digits always fit.
        let number = u64::from_str_radix(&id[..15], 16).unwrap_or_default();
        let name = grant.task.name.clone().unwrap_or_else(|| grant.container.short().to_string());
        let hosts = match (&self.loopback, self.cells) {
            (Some(at), _) if address.is_loopback() => [at.clone()].into(),
            (_, true) => [cells::relay_beside(address).to_string()].into(),
            (_, false) => match self.relay_on_second(address) {
                Some(relay) => [relay.to_string()].into(),
                None => self.base.hosts.clone(),
            },
        };
        let ip = if address.is_loopback() { Ipv4Addr::LOCALHOST } else { address };
        View {
            instance_id: number,
            instance_name: name,
            ip: ip.to_string(),
            hosts,
            ..self.local(&grant.identity, principal)
        }
    }

    /// The relay's address, if a container with this address is on the second network.
    fn relay_on_second(&self, address: Ipv4Addr) -> Option<Ipv4Addr> {
        let pool = self.pool.filter(|pool| pool.contains(address));
        pool.map(Pool::relay).or_else(|| spare_relay(address))
    }

    /// The view of a program on this machine.
    pub fn local(&self, identity: &Identity, principal: &Principal) -> View {
        let account = |email: &str, service_account: Option<&String>| Account {
            email: email.into(),
            scopes: identity.scopes.clone(),
            service_account: service_account.cloned(),
        };
        let first = account(self.account(identity, principal), identity.service_account.as_ref());
        let others = identity.others.iter().map(|other| account(other, Some(other)));
        View {
            project_id: self.project(principal).into(),
            universe: self.universe(principal).into(),
            accounts: std::iter::once(first).chain(others).collect(),
            google: identity.google,
            ..self.base.clone()
        }
    }

    /// Adds what `identity` has on AWS and Azure. `grant` is that of a container; `session_key` is the key of
    /// its lease.
    pub fn add_clouds(
        &self,
        view: &mut View,
        identity: &Identity,
        grant: Option<&Grant>,
        principal: &AzurePrincipal,
        session_key: Option<Arc<Secret<[u8; 32]>>>,
    ) {
        let secret = grant.and_then(|grant| grant.secret.clone());
        view.aws = identity.aws.as_ref().zip(self.aws.as_ref()).map(|(own, facts)| AwsView {
            role: own.role_name().into(),
            role_arn: own.role.clone(),
            account: own.account().map(String::from),
            region: facts.region.clone(),
            secret: secret.clone(),
            session_key,
        });
        view.azure = identity.azure.as_ref().filter(|_| self.azure.is_some()).map(|_| AzureView {
            client_id: self.client_id(identity, principal).map(String::from),
            tenant: self.tenant(principal).map(String::from),
            // No client needs one for a token.
            subscription: NIL_UUID.into(),
            vm_id: vm_id(grant.map(|grant| &grant.container)),
            secret,
        });
    }

    /// The principal of `identity`: its own, else that of the config, else that of the source.
    fn client_id<'a>(&'a self, identity: &'a Identity, principal: &'a AzurePrincipal) -> Option<&'a str> {
        let own = identity.azure.as_ref().and_then(|azure| azure.client_id.as_deref());
        let configured = self.azure.as_ref().and_then(|facts| facts.client_id.as_deref());
        own.or(configured).or(principal.client_id.as_deref())
    }

    fn tenant<'a>(&'a self, principal: &'a AzurePrincipal) -> Option<&'a str> {
        let configured = self.azure.as_ref().and_then(|facts| facts.tenant.as_deref());
        configured.or(principal.tenant.as_deref())
    }

    /// The view of the relay's own probe: no accounts.
    pub fn nobody(&self) -> View {
        self.base.clone()
    }

    /// Whether an earlier view would be made the same way now. Checked on every request, so it copies
    /// nothing.
    pub fn is_current(
        &self,
        view: &View,
        identity: &Identity,
        principal: &Principal,
        azure: &AzurePrincipal,
    ) -> bool {
        let on_azure = view.azure.as_ref().is_none_or(|shown| {
            shown.client_id.as_deref() == self.client_id(identity, azure)
                && shown.tenant.as_deref() == self.tenant(azure)
        });
        let account = view.accounts.first().map(|account| account.email.as_str());
        account == Some(self.account(identity, principal))
            && view.project_id == self.project(principal)
            && view.universe == self.universe(principal)
            && on_azure
    }

    fn account<'a>(&'a self, identity: &'a Identity, principal: &'a Principal) -> &'a str {
        let own = || self.email.as_deref().or(principal.email.as_deref());
        identity.service_account.as_deref().or_else(own).unwrap_or(UNKNOWN_ACCOUNT)
    }

    fn universe<'a>(&'a self, principal: &'a Principal) -> &'a str {
        principal.universe.as_deref().unwrap_or(&self.base.universe)
    }

    /// The project that containers see: from the config, else from the source (which may know the service
    /// account's own), else a stand-in.
    pub fn project<'a>(&'a self, principal: &'a Principal) -> &'a str {
        self.project.as_deref().or(principal.project.as_deref()).unwrap_or(UNKNOWN_PROJECT)
    }
}

/// A UUID of the first 32 digits of a container's id; of zeros for programs on this machine.
fn vm_id(container: Option<&ContainerId>) -> String {
    let Some(id) = container.map(ContainerId::as_str) else { return NIL_UUID.into() };
    [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..32]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_of_another_tenant_or_principal_is_made_anew() {
        let views = Views {
            base: View { accounts: vec![], ..View::default() },
            azure: Some(AzureFacts::default()),
            ..Views::default()
        };
        let identity = Identity { azure: Some(Arc::default()), ..Identity::default() };
        let named = |tenant: &str, client: &str| AzurePrincipal {
            tenant: Some(tenant.into()),
            client_id: Some(client.into()),
        };
        let principal = Principal::default();
        let mut view = views.local(&identity, &principal);
        views.add_clouds(&mut view, &identity, None, &named("one", "a"), None);
        let current = |azure: AzurePrincipal| views.is_current(&view, &identity, &principal, &azure);
        assert!(current(named("one", "a")));
        assert!(!current(named("other", "a")) && !current(named("one", "b")));
    }
}
