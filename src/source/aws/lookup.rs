//! Where the host's own keys come from, and how they are found: in the order of AWS's own tools, or at the one place
//! that the config names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::failure::Reason;
use crate::quote;
use crate::source::SourceError;
use crate::source::aws::keys::Keys;
use crate::source::aws::profile::{AssumedRole, Base, Chain, Files, at_home};
use crate::source::aws::sso::Refreshed;
use crate::source::aws::sts::{Assume, Sts};
use crate::source::aws::{endpoint, machine, process};
use crate::source::command::HelperCommand;
use crate::source::http::client::Upstream;
use crate::source::subject::{FileToken, Format};
use crate::source::variables::Variables;

/// The session name for a role whose profile sets none.
const SESSION_NAME: &str = "kfp-creds";

/// The place of the host's keys.
#[derive(Debug)]
pub(super) enum KeySource {
    /// Variables, a profile, a container's agent, the machine.
    Default,
    Variables,
    Profile(String),
    Machine,
    Command(HelperCommand),
}

/// Finds the host's keys; each call asks again.
#[derive(Debug)]
pub(crate) struct Lookup {
    place: KeySource,
    variables: Variables,
    home: Option<PathBuf>,
    files: Files,
    /// The address and the region of the token service, if the config sets them.
    sts: Option<String>,
    region: Option<String>,
    refreshed: Refreshed,
}

impl Lookup {
    /// In the order of AWS's own tools.
    pub(crate) fn usual(variables: &Variables) -> Self {
        let home = variables.text("HOME").map(PathBuf::from);
        Self::new(KeySource::Default, variables, home.as_deref(), None, None)
    }

    pub(super) fn new(
        place: KeySource,
        variables: &Variables,
        home: Option<&Path>,
        sts: Option<String>,
        region: Option<String>,
    ) -> Self {
        Self {
            place,
            variables: variables.clone(),
            home: home.map(Path::to_owned),
            files: Files::of(variables, home),
            sts,
            region,
            refreshed: Refreshed::default(),
        }
    }

    /// The keys. [`SourceError::Absent`] if there are none on this host.
    pub(super) async fn keys(&self, upstream: &Upstream) -> Result<Keys, SourceError> {
        match &self.place {
            KeySource::Default => match self.near(upstream).await? {
                Some(keys) => Ok(keys),
                None => machine::of_machine(&self.variables, upstream).await.map_err(|error| match error {
                    SourceError::Absent(why) => SourceError::absent(Reason::advice(format!(
                        "no AWS credentials on this host (no AWS_ACCESS_KEY_ID, profile or container agent, and {why}); run \
                         `aws configure sso`, or name a profile in [aws]"
                    ))),
                    other => other,
                }),
            },
            KeySource::Variables => match self.of_variables(upstream).await? {
                Some(keys) => Ok(keys),
                None => Err(SourceError::refused(
                    "no AWS keys in the environment; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN",
                )),
            },
            KeySource::Profile(_) => match self.chain()? {
                Some(chain) => self.follow(chain, upstream).await,
                None => Err(SourceError::refused("no AWS profile is named")),
            },
            KeySource::Machine => match machine::of_container(&self.variables, upstream).await? {
                Some(keys) => Ok(keys),
                None => machine::of_machine(&self.variables, upstream).await,
            },
            KeySource::Command(command) => process::keys(command).await,
        }
    }

    /// The keys of everything before the machine's metadata service, if there are any.
    pub(crate) async fn near(&self, upstream: &Upstream) -> Result<Option<Keys>, SourceError> {
        if let Some(keys) = self.of_variables(upstream).await? {
            return Ok(Some(keys));
        }
        if let Some(chain) = self.chain()? {
            return self.follow(chain, upstream).await.map(Some);
        }
        machine::of_container(&self.variables, upstream).await
    }

    /// Keys, or another issuer's token for a role (`AWS_WEB_IDENTITY_TOKEN_FILE`).
    async fn of_variables(&self, upstream: &Upstream) -> Result<Option<Keys>, SourceError> {
        if let Some(keys) = Keys::of_variables(&self.variables) {
            return keys.map(Some);
        }
        let Some((file, arn)) = self.web_identity() else { return Ok(None) };
        let session_name = self.variables.text("AWS_ROLE_SESSION_NAME").map(str::to_owned);
        let role = AssumedRole { arn: arn.to_owned(), external_id: None, duration: None, session_name };
        let base = Base::WebIdentity { file: file.into(), role };
        let chain = Chain { base, roles: vec![], region: None, fingerprint: String::new() };
        self.follow(chain, upstream).await.map(Some)
    }

    /// The file of another issuer's token, and the role to assume with it.
    fn web_identity(&self) -> Option<(&str, &str)> {
        Some((self.variables.text("AWS_WEB_IDENTITY_TOKEN_FILE")?, self.variables.text("AWS_ROLE_ARN")?))
    }

    /// The chain of the profile in use; `None` if none is used, because variables with keys take precedence over it. A
    /// named profile must exist; `default` need not.
    pub(super) fn chain(&self) -> Result<Option<Chain>, SourceError> {
        let named = match &self.place {
            KeySource::Profile(name) => Some(name.as_str()),
            KeySource::Default
                if Keys::of_variables(&self.variables).is_some() || self.web_identity().is_some() =>
            {
                return Ok(None);
            }
            KeySource::Default => {
                self.variables.text("AWS_PROFILE").or_else(|| self.variables.text("AWS_DEFAULT_PROFILE"))
            }
            KeySource::Variables | KeySource::Machine | KeySource::Command(_) => return Ok(None),
        };
        let profiles = self.files.read()?;
        match named {
            Some(name) => profiles.chain(name).map(Some),
            None if profiles.has_keys("default") => profiles.chain("default").map(Some),
            None => Ok(None),
        }
    }

    /// The region of the token service: the config's, else the variables', else the profile's.
    pub(super) fn region(&self, chain: Option<&Chain>) -> Option<String> {
        let variable =
            || ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().find_map(|name| self.variables.text(name));
        let named = self.region.clone().or_else(|| variable().map(str::to_owned));
        let region = named.filter(|region| endpoint::is_region(region)).or_else(|| chain?.region.clone());
        // Older tools call the global service by this name.
        region.filter(|region| region != "aws-global")
    }

    /// The address of the token service, if it is not the region's own.
    pub(super) fn sts(&self) -> Result<Option<String>, SourceError> {
        match &self.sts {
            Some(base) => Ok(Some(base.clone())),
            None => endpoint::named("STS", &self.variables),
        }
    }

    /// The address of IAM that variables name.
    pub(super) fn iam(&self) -> Result<Option<String>, SourceError> {
        endpoint::named("IAM", &self.variables)
    }

    async fn follow(&self, chain: Chain, upstream: &Upstream) -> Result<Keys, SourceError> {
        let (region, base) = (self.region(Some(&chain)), self.sts()?);
        let sts = Sts { upstream, base: base.as_deref(), region: region.as_deref() };
        let home = self.home.as_deref();
        let mut keys = match chain.base {
            Base::Keys(keys) => keys,
            Base::Sso(login) => login.keys(home, &self.variables, upstream, &self.refreshed).await?,
            Base::Process(words) => match process::of_profile(&words, &self.variables) {
                Some(command) => process::keys(&command).await?,
                None => return Err(SourceError::refused("the profile's credential_process is empty")),
            },
            Base::WebIdentity { file, role } => {
                let token = FileToken { path: at_home(&file, home), format: Format::Text };
                sts.assume_with(&token.token().await?, &role.ask()).await?
            }
            Base::Variables => Keys::of_variables(&self.variables).unwrap_or_else(|| {
                Err(SourceError::refused(
                    "the AWS profile takes keys from the environment, and AWS_ACCESS_KEY_ID is not set",
                ))
            })?,
            Base::Container => machine::of_container(&self.variables, upstream).await?.ok_or_else(|| {
                SourceError::refused(
                    "the AWS profile takes keys from a container's agent, and AWS_CONTAINER_CREDENTIALS_RELATIVE_URI is not set",
                )
            })?,
            Base::Machine => machine::of_machine(&self.variables, upstream).await?,
        };
        for role in &chain.roles {
            keys = sts.assume(&keys, &role.ask()).await?;
        }
        Ok(keys)
    }

    /// The files of the profiles.
    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        let used = matches!(self.place, KeySource::Default | KeySource::Profile(_));
        self.files.paths().filter(move |_| used).cloned()
    }

    /// The file of the token that the profile's keys are exchanged for.
    pub(super) fn token_file(&self, chain: &Chain) -> Option<PathBuf> {
        match &chain.base {
            Base::Sso(login) => login.file(self.home.as_deref()),
            Base::WebIdentity { file, .. } => Some(at_home(file, self.home.as_deref())),
            _ => None,
        }
    }

    /// Extra time for a command, beyond what requests may take.
    pub(super) fn patience(&self, chain: Option<&Chain>) -> Duration {
        match (&self.place, chain.map(|chain| &chain.base)) {
            (KeySource::Command(command), _) => command.timeout,
            (_, Some(Base::Process(_))) => process::TIMEOUT,
            _ => Duration::ZERO,
        }
    }

    /// A name for messages.
    pub(super) fn kind(&self) -> String {
        match &self.place {
            KeySource::Default => "default".into(),
            KeySource::Variables => "environment".into(),
            KeySource::Profile(name) => format!("profile {}", quote::name(name)),
            KeySource::Machine => "machine".into(),
            KeySource::Command(command) => format!("command {}", quote::path(&command.program)),
        }
    }
}

impl AssumedRole {
    fn ask(&self) -> Assume<'_> {
        Assume {
            role: &self.arn,
            session_name: self.session_name.as_deref().unwrap_or(SESSION_NAME),
            duration: self.duration,
            external_id: self.external_id.as_deref(),
            ..Assume::default()
        }
    }
}
