//! The keys of the instance metadata service, as far as clients and detectors request them.

use std::borrow::Cow;

use crate::console::rfc3339;
use crate::metadata::json::{JsonValue, object};
use crate::metadata::view::{AwsView, View};
use crate::token::Now;

/// Four processors and 16 GiB, as the machine that Google's tree shows.
const INSTANCE_TYPE: &str = "m5.xlarge";

pub(super) enum ImdsNode<'v> {
    Text(Cow<'v, str>),
    Json(Vec<u8>),
    /// Needs a session.
    Credentials,
}

/// What the keys are read from.
#[derive(Clone, Copy)]
pub(super) struct ImdsScene<'v> {
    pub(super) view: &'v View,
    pub(super) aws: &'v AwsView,
    pub(super) now: Now,
}

impl<'v> ImdsScene<'v> {
    /// The node at a path; one slash at its end makes no difference, as at the real service. Listings end
    /// without a newline.
    pub(super) fn find(self, path: &[&str]) -> Option<ImdsNode<'v>> {
        let text = |text: &'v str| Some(ImdsNode::Text(text.into()));
        let owned = |text: String| Some(ImdsNode::Text(text.into()));
        let (latest, rest) = path.split_first()?;
        match (*latest, rest) {
            ("latest", []) => text("dynamic\nmeta-data"),
            ("latest", ["dynamic"]) => text("instance-identity/"),
            ("latest", ["dynamic", "instance-identity"]) => text("document"),
            ("latest", ["dynamic", "instance-identity", "document"]) => Some(ImdsNode::Json(self.document())),
            ("latest", ["meta-data"]) => {
                text("hostname\niam/\ninstance-id\ninstance-type\nlocal-ipv4\nmac\nplacement/\nservices/")
            }
            ("latest", ["meta-data", "hostname"]) => owned(self.hostname()),
            ("latest", ["meta-data", "iam", iam @ ..]) => self.iam(iam),
            ("latest", ["meta-data", "instance-id"]) => owned(self.instance_id()),
            ("latest", ["meta-data", "instance-type"]) => text(INSTANCE_TYPE),
            ("latest", ["meta-data", "local-ipv4"]) => text(&self.view.ip),
            ("latest", ["meta-data", "mac"]) => Some(ImdsNode::Text(self.view.shown_mac())),
            ("latest", ["meta-data", "placement"]) => {
                text(self.aws.region.as_ref().map_or("", |_| "availability-zone\nregion"))
            }
            ("latest", ["meta-data", "placement", "availability-zone"]) => owned(self.zone()?),
            ("latest", ["meta-data", "placement", "region"]) => text(self.aws.region.as_deref()?),
            ("latest", ["meta-data", "services"]) => text("domain\npartition"),
            ("latest", ["meta-data", "services", "domain"]) => text(self.domain()),
            ("latest", ["meta-data", "services", "partition"]) => text(self.partition()),
            _ => None,
        }
    }

    fn iam(self, path: &[&str]) -> Option<ImdsNode<'v>> {
        match path {
            [] => Some(ImdsNode::Text("info\nsecurity-credentials/".into())),
            ["info"] => Some(ImdsNode::Json(self.info())),
            // Newer SDKs for Java look for the second name first.
            ["security-credentials" | "security-credentials-extended", rest @ ..] => match rest {
                [] => Some(ImdsNode::Text(self.aws.role.as_str().into())),
                [role] if *role == self.aws.role => Some(ImdsNode::Credentials),
                _ => None,
            },
            _ => None,
        }
    }

    fn info(self) -> Vec<u8> {
        let updated = rfc3339(self.now.wall);
        let profile = self.aws.account.as_ref().map(|account| {
            format!("arn:{}:iam::{account}:instance-profile/{}", self.partition(), self.aws.role)
        });
        let mut fields =
            vec![("Code", JsonValue::Text("Success")), ("LastUpdated", JsonValue::Text(&updated))];
        fields.extend(profile.as_ref().map(|profile| ("InstanceProfileArn", JsonValue::Text(profile))));
        object(&fields)
    }

    fn document(self) -> Vec<u8> {
        let (zone, instance) = (self.zone(), self.instance_id());
        let fields = [
            ("accountId", self.aws.account.as_deref()),
            ("availabilityZone", zone.as_deref()),
            ("instanceId", Some(&*instance)),
            ("instanceType", Some(INSTANCE_TYPE)),
            ("privateIp", Some(&*self.view.ip)),
            ("region", self.aws.region.as_deref()),
            ("version", Some("2017-09-30")),
        ];
        let known: Vec<_> =
            fields.into_iter().filter_map(|(name, value)| Some((name, JsonValue::Text(value?)))).collect();
        object(&known)
    }

    /// Seventeen hex digits, those of the container's number.
    fn instance_id(self) -> String {
        format!("i-{:017x}", self.view.instance_id)
    }

    fn hostname(self) -> String {
        let name = self.view.ip.replace(['.', ':'], "-");
        match self.aws.region.as_deref() {
            None | Some("us-east-1") => format!("ip-{name}.ec2.internal"),
            Some(region) => format!("ip-{name}.{region}.compute.internal"),
        }
    }

    fn zone(self) -> Option<String> {
        self.aws.region.as_ref().map(|region| format!("{region}a"))
    }

    /// That of the role, else that of the region.
    fn partition(self) -> &'v str {
        let of_role = self.aws.role_arn.as_deref().and_then(|arn| arn.split(':').nth(1));
        let region = self.aws.region.as_deref().unwrap_or_default();
        match of_role {
            Some(partition) if !partition.is_empty() => partition,
            _ if region.starts_with("cn-") => "aws-cn",
            _ if region.starts_with("us-gov-") => "aws-us-gov",
            _ => "aws",
        }
    }

    fn domain(self) -> &'static str {
        if self.partition() == "aws-cn" { "amazonaws.com.cn" } else { "amazonaws.com" }
    }
}
