//! The tree of keys: the only place that spells paths. Listing, redirect, recursion, forms and ETags all
//! follow from this declaration.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::metadata::target::PathTarget;
use crate::metadata::view::{Account, View};

/// A node of the tree. Entries are in alphabetical order, which is the order of listings.
pub(super) enum Node {
    /// Above the versioned tree: lists its children whatever the query says, because the root is
    /// answered without the flavor header and must not show more than names.
    Signpost(&'static [TreeEntry]),
    Dir(&'static [TreeEntry]),
    /// `0/`, `1/`, …: a directory per item, an array in JSON.
    Indexed(fn(&View) -> usize, &'static Node),
    /// Keys chosen by users: never converted to camelCase.
    Attributes(fn(&View) -> &BTreeMap<String, String>),
    /// A directory per account, by e-mail and as `default`.
    Accounts(&'static Node),
    /// A directory that exists but refuses every request, whatever its method.
    Closed,
    Leaf(Read),
    /// An alternative spelling: served, but neither listed nor part of a recursion.
    Unlisted(Read),
    /// The leaves that need a mint: listed, never part of a recursion, without an ETag.
    Token,
    Identity,
}

pub(super) type TreeEntry = (&'static str, Node);
type Read = for<'v> fn(Scene<'v>) -> TreeValue<'v>;

/// The input of a leaf: the view, and the item, account or key on its path.
#[derive(Clone, Copy)]
pub(super) struct Scene<'v> {
    view: &'v View,
    account: Option<&'v Account>,
    index: usize,
    custom: &'v str,
}

pub(super) enum TreeValue<'v> {
    Text(Cow<'v, str>),
    Number(i128),
    /// Lines by default, an array in JSON.
    Lines(Vec<&'v str>),
    /// An array by default, lines as text.
    Array(Vec<&'v str>),
}

static ROOT: Node = Signpost(&[("computeMetadata", Signpost(&[("v1", Dir(V1))]))]);

// `0.1` and `v1beta1` are left out deliberately: they need no header, which makes them dangerous.
const V1: &[TreeEntry] = &[
    ("instance", Dir(INSTANCE)),
    ("oslogin", Dir(&[("authenticate", Dir(&[("sessions", Dir(&[]))]))])),
    ("project", Dir(PROJECT)),
    ("universe", Dir(UNIVERSE)),
];

const PROJECT: &[TreeEntry] = &[
    ("attributes", Attributes(|view| &view.project_attributes)),
    ("numeric-project-id", Leaf(|s| Number(s.view.numeric_project_id.into()))),
    ("project-id", Leaf(|s| text(&s.view.project_id))),
];

const UNIVERSE: &[TreeEntry] = &[
    ("universe-domain", Leaf(|s| text(&s.view.universe))),
    // x/oauth2 of Go and PHP use an underscore.
    ("universe_domain", Unlisted(|s| text(&s.view.universe))),
];

const INSTANCE: &[TreeEntry] = &[
    ("attributes", Attributes(|view| &view.attributes)),
    ("cpu-platform", Leaf(|s| text(&s.view.cpu_platform))),
    ("description", Leaf(|s| text(&s.view.description))),
    ("disks", Indexed(|_| 1, &Dir(DISK))),
    ("guest-attributes", Closed),
    ("hostname", Leaf(|s| Text(s.view.shown_hostname()))),
    ("id", Leaf(|s| Number(s.view.instance_id.into()))),
    ("image", Leaf(|s| Text(s.view.shown_image()))),
    ("legacy-endpoint-access", Dir(&[("0.1", Leaf(|_| Number(0))), ("v1beta1", Leaf(|_| Number(0)))])),
    ("licenses", Indexed(|view| view.licenses.len(), &Dir(LICENSE))),
    ("machine-type", Leaf(|s| owned(s.view.numbered("machineTypes", &s.view.machine_type)))),
    ("maintenance-event", Leaf(|_| text("NONE"))),
    ("name", Leaf(|s| text(&s.view.instance_name))),
    ("network-interfaces", Indexed(|_| 1, &Dir(INTERFACE))),
    ("preempted", Leaf(|_| text("FALSE"))),
    // A key of Cloud Run, not of virtual machines; clients that know Cloud Run request it.
    ("region", Leaf(|s| owned(s.view.numbered("regions", s.view.shown_region())))),
    ("remaining-cpu-time", Leaf(|_| Number(-1))),
    ("scheduling", Dir(SCHEDULING)),
    ("service-accounts", Accounts(&Dir(ACCOUNT))),
    ("tags", Leaf(|s| Array(strs(&s.view.tags)))),
    ("virtual-clock", Dir(&[("drift-token", Leaf(|_| text("0")))])),
    ("zone", Leaf(|s| owned(s.view.numbered("zones", &s.view.zone)))),
];

const DISK: &[TreeEntry] = &[
    ("device-name", Leaf(|s| text(&s.view.instance_name))),
    ("index", Leaf(|s| Number(s.index as i128))),
    ("interface", Leaf(|_| text("SCSI"))),
    ("mode", Leaf(|_| text("READ_WRITE"))),
    ("type", Leaf(|_| text("PERSISTENT"))),
];

const LICENSE: &[TreeEntry] =
    &[("id", Leaf(|s| text(s.view.licenses.get(s.index).map_or("", String::as_str))))];

const INTERFACE: &[TreeEntry] = &[
    ("access-configs", Indexed(|_| 1, &Dir(ACCESS_CONFIG))),
    ("dns-servers", Leaf(|s| Lines(strs(&s.view.dns_servers)))),
    ("forwarded-ips", Indexed(|_| 0, &Leaf(|_| text("")))),
    ("gateway", Leaf(|s| text(&s.view.gateway))),
    ("ip", Leaf(|s| text(&s.view.ip))),
    ("ip-aliases", Indexed(|_| 0, &Leaf(|_| text("")))),
    ("mac", Leaf(|s| Text(s.view.shown_mac()))),
    ("mtu", Leaf(|s| Number(s.view.mtu.into()))),
    ("network", Leaf(|s| owned(s.view.numbered("networks", &s.view.network)))),
    ("subnetmask", Leaf(|s| text(&s.view.subnet_mask))),
    ("target-instance-ips", Leaf(|_| Lines(Vec::new()))),
];

const ACCESS_CONFIG: &[TreeEntry] =
    &[("external-ip", Leaf(|s| text(&s.view.external_ip))), ("type", Leaf(|_| text("ONE_TO_ONE_NAT")))];

const SCHEDULING: &[TreeEntry] = &[
    ("automatic-restart", Leaf(|_| text("TRUE"))),
    ("on-host-maintenance", Leaf(|_| text("MIGRATE"))),
    ("preemptible", Leaf(|_| text("FALSE"))),
];

const ACCOUNT: &[TreeEntry] = &[
    ("aliases", Leaf(|s| Lines(s.aliases()))),
    ("email", Leaf(|s| text(s.account.map_or("", |account| &account.email)))),
    ("identity", Identity),
    ("scopes", Leaf(|s| Lines(s.account.map_or_else(Vec::new, |account| account.scopes.iter().collect())))),
    ("token", Token),
];

static CUSTOM: Node = Leaf(|s| text(s.custom));

use Node::{Accounts, Attributes, Closed, Dir, Identity, Indexed, Leaf, Signpost, Token, Unlisted};
use TreeValue::{Array, Lines, Number, Text};

fn text(value: &str) -> TreeValue<'_> {
    Text(Cow::Borrowed(value))
}

fn owned<'v>(value: String) -> TreeValue<'v> {
    Text(Cow::Owned(value))
}

fn strs(values: &[String]) -> Vec<&str> {
    values.iter().map(String::as_str).collect()
}

impl<'v> Scene<'v> {
    fn aliases(self) -> Vec<&'v str> {
        let default = self.view.accounts.first();
        let same = self.account.zip(default).is_some_and(|(own, default)| own.email == default.email);
        if same { vec!["default"] } else { Vec::new() }
    }
}

/// A node as one caller sees it.
#[derive(Clone, Copy)]
pub(super) struct Spot<'v> {
    node: &'static Node,
    scene: Scene<'v>,
}

/// The node at a path, whether or not the path ends in a slash. Allocates nothing, except for a name
/// that came with escapes.
pub(super) fn find<'v>(target: &PathTarget<'_>, view: &'v View) -> Option<Spot<'v>> {
    let scene = Scene { view, account: None, index: 0, custom: "" };
    target.segments().try_fold(Spot { node: &ROOT, scene }, |spot, name| spot.child(&name?))
}

impl<'v> Spot<'v> {
    pub(super) fn node(&self) -> &'static Node {
        self.node
    }

    pub(super) fn account(&self) -> Option<&'v Account> {
        self.scene.account
    }

    /// `/` itself.
    pub(super) fn is_root(&self) -> bool {
        std::ptr::eq(self.node, &ROOT)
    }

    pub(super) fn is_dir(&self) -> bool {
        !matches!(self.node, Leaf(_) | Unlisted(_) | Token | Identity)
    }

    /// True for a node that is an array in JSON.
    pub(super) fn is_indexed(&self) -> bool {
        matches!(self.node, Indexed(..))
    }

    /// True when users chose the names of the children.
    pub(super) fn has_custom_names(&self) -> bool {
        matches!(self.node, Attributes(_) | Accounts(_))
    }

    /// The value of a leaf that is neither minted nor a directory.
    pub(super) fn value(&self) -> Option<TreeValue<'v>> {
        match self.node {
            Leaf(read) | Unlisted(read) => Some(read(self.scene)),
            _ => None,
        }
    }

    fn child(&self, name: &str) -> Option<Self> {
        match self.node {
            Signpost(entries) | Dir(entries) => {
                let (_, node) = entries.iter().find(|(own, _)| *own == name)?;
                Some(self.to(node))
            }
            Indexed(count, item) => {
                let index: usize = name.parse().ok()?;
                // "00" and "+0" parse as well, but are not names of nodes.
                let exact =
                    name.bytes().all(|b| b.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
                (exact && index < count(self.scene.view)).then(|| self.item(item, index))
            }
            Attributes(of) => of(self.scene.view).get(name).map(|value| self.attribute(value)),
            Accounts(dir) => {
                let accounts = &self.scene.view.accounts;
                let account = match name {
                    "default" => accounts.first(),
                    email => accounts.iter().find(|account| account.email == email),
                };
                account.map(|account| self.account_dir(dir, account))
            }
            Closed => Some(*self),
            Leaf(_) | Unlisted(_) | Token | Identity => None,
        }
    }

    /// The entries of a listing, in order.
    pub(super) fn children(&self) -> Vec<(Cow<'v, str>, Self)> {
        match self.node {
            Signpost(entries) | Dir(entries) => {
                let listed = entries.iter().filter(|(_, node)| !matches!(node, Unlisted(_)));
                listed.map(|(name, node)| (Cow::Borrowed(*name), self.to(node))).collect()
            }
            Indexed(count, item) => (0..count(self.scene.view))
                .map(|index| (Cow::Owned(index.to_string()), self.item(item, index)))
                .collect(),
            Attributes(of) => {
                let custom = of(self.scene.view).iter();
                custom.map(|(key, value)| (Cow::Borrowed(key.as_str()), self.attribute(value))).collect()
            }
            Accounts(dir) => {
                let accounts = &self.scene.view.accounts;
                // The first account of a name counts, as in `child`.
                let mut named: BTreeMap<&str, &Account> =
                    accounts.iter().rev().map(|account| (account.email.as_str(), account)).collect();
                named.extend(accounts.first().map(|account| ("default", account)));
                named
                    .into_iter()
                    .map(|(name, own)| (Cow::Borrowed(name), self.account_dir(dir, own)))
                    .collect()
            }
            Closed | Leaf(_) | Unlisted(_) | Token | Identity => Vec::new(),
        }
    }

    fn to(&self, node: &'static Node) -> Self {
        Self { node, scene: self.scene }
    }

    fn item(&self, node: &'static Node, index: usize) -> Self {
        Self { node, scene: Scene { index, ..self.scene } }
    }

    fn attribute(&self, custom: &'v str) -> Self {
        Self { node: &CUSTOM, scene: Scene { custom, ..self.scene } }
    }

    fn account_dir(&self, node: &'static Node, account: &'v Account) -> Self {
        Self { node, scene: Scene { account: Some(account), ..self.scene } }
    }
}
