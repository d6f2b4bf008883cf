//! Profiles of `~/.aws/config` and `~/.aws/credentials`: what a profile's keys are made of.
//!
//! | a profile has | its keys are |
//! |---|---|
//! | `role_arn` and `source_profile` or `credential_source` | a role, assumed with those of another profile, of variables, of a container or of the machine |
//! | `role_arn` and `web_identity_token_file` | a role, assumed with another issuer's token |
//! | `sso_session`, or `sso_start_url` and `sso_region` | those of a role at IAM Identity Center |
//! | `aws_access_key_id` and `aws_secret_access_key` | these |
//! | `credential_process` | what a command prints |
//!
//! The first row that fits counts. If both files have the setting, `~/.aws/credentials` takes precedence.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::digest::{Context, SHA256};

use crate::cloud::sts::LIFETIMES;
use crate::failure::Reason;
use crate::quote::{self, hex};
use crate::secret::Secret;
use crate::source::SourceError;
use crate::source::aws::endpoint::is_region;
use crate::source::aws::ini::{Section, sections};
use crate::source::aws::keys::Keys;
use crate::source::aws::sso::Login;
use crate::source::subject::read;
use crate::source::variables::Variables;

/// Longest chain of roles; real chains have two or three.
const LONGEST_CHAIN: usize = 8;
/// Most names in a message.
const NAMED: usize = 20;

/// The paths of the two files.
#[derive(Clone, Debug)]
pub(super) struct Files {
    config: Option<PathBuf>,
    credentials: Option<PathBuf>,
}

/// The text of both files.
#[derive(Debug, Default)]
pub(super) struct Profiles {
    all: BTreeMap<String, Section>,
    sso_sessions: BTreeMap<String, Section>,
}

/// The keys that a chain begins with.
#[derive(Debug)]
pub(super) enum Base {
    Keys(Keys),
    Process(Vec<String>),
    Sso(Login),
    WebIdentity { file: PathBuf, role: AssumedRole },
    Variables,
    Container,
    Machine,
}

/// A role of a profile.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct AssumedRole {
    pub(super) arn: String,
    pub(super) external_id: Option<String>,
    pub(super) duration: Option<Duration>,
    pub(super) session_name: Option<String>,
}

/// What a profile's keys are made of.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) base: Base,
    /// The roles to assume, one after the other.
    pub(super) roles: Vec<AssumedRole>,
    /// The profile's `region`.
    pub(super) region: Option<String>,
    /// A digest of everything in the files that the chain depends on.
    pub(super) fingerprint: String,
}

impl Files {
    /// `home` is the user's; variables may name other files.
    pub(super) fn of(variables: &Variables, home: Option<&Path>) -> Self {
        let place = |variable: &str, usual: &str| match variables.text(variable) {
            Some(named) => Some(at_home(Path::new(named), home)),
            None => home.map(|home| home.join(".aws").join(usual)),
        };
        Self {
            config: place("AWS_CONFIG_FILE", "config"),
            credentials: place("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        }
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.config.iter().chain(&self.credentials)
    }

    /// A file that does not exist is an empty one.
    pub(super) fn read(&self) -> Result<Profiles, SourceError> {
        let mut profiles = Profiles::default();
        for (path, is_config) in [(&self.config, true), (&self.credentials, false)] {
            let Some(path) = path else { continue };
            let name = quote::path(path);
            let bytes = match read(path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(SourceError::refused(format!(
                        "{name} cannot be read: {error}; correct that"
                    )));
                }
            };
            let read = sections(&bytes);
            let read = read.map_err(|why| SourceError::refused(format!("{name} {why}; correct it")))?;
            read.into_iter().for_each(|(title, section)| profiles.add(&title, section, is_config));
        }
        Ok(profiles)
    }
}

/// `~/` in front of a path is the home directory.
pub(super) fn at_home(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

impl Profiles {
    fn add(&mut self, title: &str, section: Section, is_config: bool) {
        let (kind, name) = title.split_once(char::is_whitespace).unwrap_or(("", title));
        let name = name.trim().trim_matches(['"', '\'']).to_owned();
        let into = match (kind, is_config) {
            ("profile", true) => &mut self.all,
            ("sso-session", true) => &mut self.sso_sessions,
            ("", true) if name == "default" => &mut self.all,
            ("", false) => &mut self.all,
            // Services and plugins have sections of their own.
            _ => return,
        };
        into.entry(name).or_default().extend(section);
    }

    /// Whether the profile says where its keys come from.
    pub(super) fn has_keys(&self, name: &str) -> bool {
        let keys = [
            "aws_access_key_id",
            "role_arn",
            "sso_session",
            "sso_start_url",
            "credential_process",
            "login_session",
        ];
        self.all.get(name).is_some_and(|section| keys.iter().any(|key| section.contains_key(*key)))
    }

    fn section(&self, name: &str) -> Result<&Section, SourceError> {
        self.all.get(name).ok_or_else(|| {
            let shown: Vec<String> = self.all.keys().take(NAMED).map(|known| quote::name(known)).collect();
            let there = match shown.is_empty() {
                true => "there is none in ~/.aws/config and ~/.aws/credentials; run `aws configure sso`"
                    .to_owned(),
                false => format!("there are: {}", shown.join(", ")),
            };
            SourceError::refused(Reason::advice(format!("no AWS profile {}; {there}", quote::name(name))))
        })
    }

    /// Follows a profile to the keys at the start of its chain.
    pub(super) fn chain(&self, name: &str) -> Result<Chain, SourceError> {
        let (mut roles, mut seen, mut at) = (vec![], vec![name], name);
        let mut digest = Context::new(&SHA256);
        let base = loop {
            let section = self.section(at)?;
            take(&mut digest, at, section);
            let profile = Profile { name: at, section };
            let role = profile.role()?;
            let from = (profile.text("source_profile"), profile.text("credential_source"));
            match (role, from) {
                (None, _) => break self.own(&profile, &mut digest)?,
                (Some(role), _) if profile.text("web_identity_token_file").is_some() => {
                    let file = profile.text("web_identity_token_file").unwrap_or_default();
                    break Base::WebIdentity { file: file.into(), role };
                }
                (Some(_), (Some(_), Some(_))) => {
                    return Err(profile.wrong("has source_profile and credential_source; keep one of them"));
                }
                (Some(_), (None, None)) => {
                    return Err(
                        profile.wrong("has role_arn, and no source_profile or credential_source; add one")
                    );
                }
                (Some(role), (None, Some(source))) => {
                    roles.push(role);
                    break profile.base_of(source)?;
                }
                (Some(role), (Some(source), None)) => {
                    roles.push(role);
                    // A profile may contain the keys with which its own role is assumed.
                    if source == at {
                        break profile.keys()?.map(Base::Keys).ok_or_else(|| {
                            profile.wrong("is its own source_profile, and has no keys of its own")
                        })?;
                    }
                    if seen.contains(&source) {
                        return Err(profile.wrong("leads back to itself by source_profile; correct that"));
                    }
                    if roles.len() >= LONGEST_CHAIN {
                        return Err(
                            profile.wrong("is the end of too long a chain of source_profile; shorten it")
                        );
                    }
                    seen.push(source);
                    at = source;
                }
            }
        };
        roles.reverse();
        let region = Profile { name, section: self.section(name)? }.region("region")?;
        Ok(Chain { base, roles, region, fingerprint: hex(digest.finish().as_ref()) })
    }

    /// The keys of a profile without a role.
    fn own(&self, profile: &Profile<'_>, digest: &mut Context) -> Result<Base, SourceError> {
        let has = |key: &str| profile.text(key).is_some();
        if has("sso_session") || has("sso_start_url") {
            return self.login(profile, digest).map(Base::Sso);
        }
        if let Some(keys) = profile.keys()? {
            return Ok(Base::Keys(keys));
        }
        if let Some(line) = profile.text("credential_process") {
            let words = words(line).filter(|words| !words.is_empty());
            let words =
                words.ok_or_else(|| profile.wrong("has a credential_process that is not a command line"))?;
            return Ok(Base::Process(words));
        }
        let name = quote::name(profile.name);
        if has("login_session") {
            return Err(SourceError::refused(Reason::advice(format!(
                "the AWS profile {name} is one of `aws login`, which only AWS's own tool can use; set in [aws] credentials = \
                 {{ exec = [\"aws\", \"configure\", \"export-credentials\", \"--profile\", \"{name}\"] }}"
            ))));
        }
        Err(profile
            .wrong("has no keys, role, SSO or credential_process; run `aws configure sso`, or name another"))
    }

    fn login(&self, profile: &Profile<'_>, digest: &mut Context) -> Result<Login, SourceError> {
        let need = |from: &Profile<'_>, key: &str| {
            from.text(key)
                .map(str::to_owned)
                .ok_or_else(|| from.wrong(&format!("has no {key}; run `aws configure sso`")))
        };
        let session = profile.text("sso_session");
        let named = match session {
            None => None,
            Some(name) => {
                let section = self.sso_sessions.get(name).ok_or_else(|| {
                    profile.wrong(&format!(
                        "has an sso_session without its section [sso-session {}]",
                        quote::name(name)
                    ))
                })?;
                take(digest, name, section);
                Some(Profile { name: profile.name, section })
            }
        };
        let from = named.as_ref().unwrap_or(profile);
        let region = from.region("sso_region")?;
        Ok(Login {
            profile: profile.name.to_owned(),
            session: session.map(str::to_owned),
            start_url: need(from, "sso_start_url")?,
            region: region.ok_or_else(|| from.wrong("has no sso_region; run `aws configure sso`"))?,
            account: need(profile, "sso_account_id")?,
            role: need(profile, "sso_role_name")?,
        })
    }
}

/// A section with its name, for messages.
struct Profile<'a> {
    name: &'a str,
    section: &'a Section,
}

impl<'a> Profile<'a> {
    fn text(&self, key: &str) -> Option<&'a str> {
        self.section.get(key).map(|value| value.expose().as_str()).filter(|value| !value.is_empty())
    }

    fn wrong(&self, what: &str) -> SourceError {
        SourceError::refused(Reason::advice(format!("the AWS profile {} {what}", quote::name(self.name))))
    }

    fn region(&self, key: &str) -> Result<Option<String>, SourceError> {
        match self.text(key) {
            Some(region) if !is_region(region) => {
                Err(self.wrong(&format!("has a {key} that is not the name of one; correct it")))
            }
            region => Ok(region.map(str::to_owned)),
        }
    }

    fn keys(&self) -> Result<Option<Keys>, SourceError> {
        let copy = |key: &str| self.text(key).map(|text| Secret::new(text.to_owned()));
        match (copy("aws_access_key_id"), copy("aws_secret_access_key")) {
            (None, None) => Ok(None),
            (Some(id), Some(secret)) => {
                let place = format!("the AWS profile {}", quote::name(self.name));
                Keys::new(Some(id), Some(secret), copy("aws_session_token"), &place).map(Some)
            }
            _ => Err(self.wrong("has one of aws_access_key_id and aws_secret_access_key; add the other")),
        }
    }

    /// `None` if the profile has no role.
    fn role(&self) -> Result<Option<AssumedRole>, SourceError> {
        let Some(arn) = self.text("role_arn") else { return Ok(None) };
        if self.text("mfa_serial").is_some() {
            return Err(self.wrong(
                "asks for a code of an MFA device (mfa_serial), and nobody can enter one here; get a session first, and \
                 name a profile whose keys are temporary, or a command that keeps the session ([aws] credentials = \
                 { exec = [...] })",
            ));
        }
        let duration = match self.text("duration_seconds").map(str::parse::<u64>) {
            None => None,
            Some(Ok(seconds)) if LIFETIMES.contains(&seconds) => Some(Duration::from_secs(seconds)),
            Some(_) => {
                return Err(self.wrong("has a duration_seconds that is not from 900 to 43200; correct it"));
            }
        };
        let own = |key: &str| self.text(key).map(str::to_owned);
        Ok(Some(AssumedRole {
            arn: arn.to_owned(),
            external_id: own("external_id"),
            duration,
            session_name: own("role_session_name"),
        }))
    }

    fn base_of(&self, source: &str) -> Result<Base, SourceError> {
        match source {
            "Environment" => Ok(Base::Variables),
            "EcsContainer" => Ok(Base::Container),
            "Ec2InstanceMetadata" => Ok(Base::Machine),
            _ => Err(self.wrong(
                "has a credential_source that is none of Environment, EcsContainer and Ec2InstanceMetadata; correct it",
            )),
        }
    }
}

fn take(digest: &mut Context, name: &str, section: &Section) {
    let parts = section.iter().flat_map(|(key, value)| [key.as_str(), value.expose().as_str()]);
    for part in [name].into_iter().chain(parts) {
        digest.update(&part.len().to_be_bytes());
        digest.update(part.as_bytes());
    }
}

/// Splits a command line as the AWS command line does: at blanks, with both kinds of quotation marks and with
/// backslashes. No shell is involved. `None` if a quotation does not end.
pub(super) fn words(line: &str) -> Option<Vec<String>> {
    let (mut all, mut word) = (vec![], None::<String>);
    let mut quoted = None;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match (c, quoted) {
            ('\'' | '"', None) => {
                quoted = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(mark)) if c == mark => quoted = None,
            ('\\', None | Some('"')) => word.get_or_insert_default().push(rest.next()?),
            (c, None) if c.is_whitespace() => all.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    all.extend(word);
    quoted.is_none().then_some(all)
}
