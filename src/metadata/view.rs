//! The caller's view of the instance, the project, the accounts and the clouds: plain values, without behaviour of the
//! protocol. The calling room fills in a [`View`]; omitted values have stand-ins.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::secret::Secret;
use crate::token::{CLOUD_PLATFORM, Scopes};

/// An account as `instance/service-accounts/` shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Account {
    /// The name of its directory; clients put it into later paths. Must contain an `@`: without one gcloud
    /// takes the listing for that of a machine without accounts.
    pub email: String,
    /// All scopes of the account, as `scopes` lists them.
    pub scopes: Scopes,
    /// The service account to impersonate. Not used here, only passed on with the request for a token.
    pub service_account: Option<String>,
}

/// What AWS's tree shows to a caller whose identity has AWS.
#[derive(Clone, Debug)]
pub struct AwsView {
    /// The name of the role, as the instance's; never empty.
    pub role: String,
    /// The ARN of the role; `None` for the host's own session.
    pub role_arn: Option<String>,
    /// Twelve digits.
    pub account: Option<String>,
    /// `eu-west-1`. Without one, `placement/` is empty and clients use their own default.
    pub region: Option<String>,
    /// The last part of the path of the container form. `None`: for a caller that entered by its address
    /// ([`super::Entered`]) that form is closed.
    pub secret: Option<Arc<Secret<String>>>,
    /// Authenticates the tokens of IMDSv2; another one for each lease, so that no other caller's token is
    /// valid. `None`, if the system has no randomness: IMDSv2 gives no tokens.
    pub session_key: Option<Arc<Secret<[u8; 32]>>>,
}

/// What Azure's tree shows to a caller whose identity has Azure.
#[derive(Clone, Debug)]
pub struct AzureView {
    /// The client id of the identity's principal, if known; no other one may be requested.
    pub client_id: Option<String>,
    pub tenant: Option<String>,
    /// A stand-in: the identity may have several, or none.
    pub subscription: String,
    /// A UUID.
    pub vm_id: String,
    /// The value of `X-IDENTITY-HEADER`; as [`AwsView::secret`].
    pub secret: Option<Arc<Secret<String>>>,
}

/// Everything that the trees show to one caller. [`View::default`] is the table of stand-ins
/// (`docs/reference/metadata.md`); numeric ids are numbers here, so that they are always digits on the wire.
#[derive(Clone, Debug)]
pub struct View {
    pub project_id: String,
    pub numeric_project_id: u64,
    /// `googleapis.com`, unless the cloud is another one.
    pub universe: String,
    /// The short name, `us-central1-a`; the tree adds `projects/NUMBER/zones/`.
    pub zone: String,
    /// The short name, `us-central1`. Empty: the zone without its last part.
    pub region: String,
    pub instance_id: u64,
    pub instance_name: String,
    /// Empty: `NAME.c.PROJECT.internal`.
    pub hostname: String,
    /// The short name; the tree adds `projects/NUMBER/machineTypes/`.
    pub machine_type: String,
    pub cpu_platform: String,
    pub description: String,
    /// The whole path, with the project *id* as the real server has it. Empty: an image of this project.
    pub image: String,
    pub tags: Vec<String>,
    /// Licence ids, digits.
    pub licenses: Vec<String>,
    /// Custom metadata of the instance. Keys are `[A-Za-z0-9_-]+`; another key is listed but its path
    /// may not be reachable.
    pub attributes: BTreeMap<String, String>,
    pub project_attributes: BTreeMap<String, String>,
    /// The first one is `default`. If empty, every account path is 404, "no service account attached".
    pub accounts: Vec<Account>,
    /// Host values that are allowed besides [`View::NAMES`], with or without a port.
    pub hosts: Arc<[String]>,
    /// The caller's own IPv4 address.
    pub ip: String,
    /// If empty, made from the address, as Compute Engine does.
    pub mac: String,
    pub gateway: String,
    pub subnet_mask: String,
    /// Empty if there is none; the real server shows an empty value as well.
    pub external_ip: String,
    pub dns_servers: Vec<String>,
    pub mtu: u32,
    /// The short name; the tree adds `projects/NUMBER/networks/`.
    pub network: String,
    /// False: no path looks like Google's server.
    pub google: bool,
    /// `None`: AWS's paths answer as on a machine whose metadata service is turned off.
    pub aws: Option<AwsView>,
    /// `None`: Azure's paths answer as on a machine without an identity.
    pub azure: Option<AzureView>,
}

impl View {
    /// The names and addresses that clients use by default.
    pub const NAMES: [&str; 6] = [
        "metadata.google.internal",
        "metadata.goog",
        "metadata",
        "169.254.169.254",
        "169.254.170.2",
        "[fd20:ce::254]",
    ];

    pub(super) fn shown_region(&self) -> &str {
        if !self.region.is_empty() {
            return &self.region;
        }
        self.zone.rsplit_once('-').map_or(&self.zone, |(region, _)| region)
    }

    pub(super) fn shown_hostname(&self) -> Cow<'_, str> {
        if !self.hostname.is_empty() {
            return Cow::Borrowed(&self.hostname);
        }
        format!("{}.c.{}.internal", self.instance_name, self.project_id).into()
    }

    pub(super) fn shown_image(&self) -> Cow<'_, str> {
        if !self.image.is_empty() {
            return Cow::Borrowed(&self.image);
        }
        format!("projects/{}/global/images/container", self.project_id).into()
    }

    pub(super) fn shown_mac(&self) -> Cow<'_, str> {
        if !self.mac.is_empty() {
            return Cow::Borrowed(&self.mac);
        }
        let [a, b, c, d] = self.ip.parse().unwrap_or(Ipv4Addr::UNSPECIFIED).octets();
        format!("42:01:{a:02x}:{b:02x}:{c:02x}:{d:02x}").into()
    }

    /// `projects/NUMBER/COLLECTION/NAME`: the real server names these by project number.
    pub(super) fn numbered(&self, collection: &str, name: &str) -> String {
        format!("projects/{}/{collection}/{name}", self.numeric_project_id)
    }
}

impl Default for View {
    fn default() -> Self {
        Self {
            project_id: "kfp-local".into(),
            numeric_project_id: 123_456_789_012,
            universe: "googleapis.com".into(),
            zone: "us-central1-a".into(),
            region: String::new(),
            instance_id: 1_000_000_000_000_000_001,
            instance_name: "kfp-task".into(),
            hostname: String::new(),
            machine_type: "e2-standard-4".into(),
            cpu_platform: "Unknown CPU Platform".into(),
            description: String::new(),
            image: String::new(),
            tags: Vec::new(),
            licenses: vec!["0".into()],
            attributes: BTreeMap::new(),
            project_attributes: BTreeMap::new(),
            accounts: vec![Account {
                email: "default@kfp-local.iam.gserviceaccount.com".into(),
                scopes: Scopes::from_iter([CLOUD_PLATFORM]),
                service_account: None,
            }],
            hosts: Arc::from([]),
            ip: "127.0.0.1".into(),
            mac: String::new(),
            gateway: String::new(),
            subnet_mask: "255.255.255.255".into(),
            external_ip: String::new(),
            dns_servers: vec!["127.0.0.11".into()],
            mtu: 1500,
            network: "default".into(),
            google: true,
            aws: None,
            azure: None,
        }
    }
}
