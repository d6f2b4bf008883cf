//! Google's endpoints, derived from the universe unless the config names others.

pub(super) const UNIVERSE: &str = "googleapis.com";

/// Google's endpoints. Configurable because private and regional endpoints exist (decision 18). URLs have no
/// user, query, fragment or trailing slash.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Endpoints {
    /// `https://oauth2.googleapis.com/token` by default.
    pub token: Option<String>,
    /// `https://iamcredentials.googleapis.com` by default, without a path.
    pub iam_credentials: Option<String>,
    /// `https://iam.googleapis.com` by default, without a path; used only by the kill switch.
    pub iam: Option<String>,
    /// `https://sts.googleapis.com/v1/token` by default.
    pub sts: Option<String>,
    /// `https://storage.googleapis.com` by default, without a path; task inputs are read from it.
    pub storage: Option<String>,
    /// By default the credential file's `universe_domain`, else `googleapis.com`.
    pub universe: Option<String>,
}

impl Endpoints {
    pub(super) fn universe<'a>(&'a self, file: Option<&'a str>) -> &'a str {
        let own = self.universe.as_deref().filter(|own| !own.is_empty() && *own != UNIVERSE);
        own.or(file).unwrap_or(UNIVERSE)
    }

    pub(super) fn token(&self, file: Option<&str>, universe: &str) -> String {
        let given = self.token.as_deref().or(file);
        given.map_or_else(|| format!("https://oauth2.{universe}/token"), str::to_owned)
    }

    pub(super) fn iam(&self, universe: &str) -> String {
        let given = self.iam.as_deref().map(|given| given.trim_end_matches('/').to_owned());
        given.unwrap_or_else(|| format!("https://iam.{universe}"))
    }

    pub(super) fn iam_credentials(&self, universe: &str) -> String {
        let given = self.iam_credentials.as_deref().map(|given| given.trim_end_matches('/').to_owned());
        given.unwrap_or_else(|| format!("https://iamcredentials.{universe}"))
    }

    pub(super) fn sts(&self, universe: &str) -> String {
        self.sts.clone().unwrap_or_else(|| format!("https://sts.{universe}/v1/token"))
    }

    /// `universe` is the credential's, used if the config names none.
    pub fn storage(&self, universe: Option<&str>) -> String {
        let given = self.storage.as_deref().map(|given| given.trim_end_matches('/').to_owned());
        given.unwrap_or_else(|| format!("https://storage.{}", self.universe(universe)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_follow_the_universe_unless_configured() {
        let places = |endpoints: &Endpoints, file: Option<&str>| {
            let universe = endpoints.universe(file);
            [
                endpoints.token(None, universe),
                endpoints.iam_credentials(universe),
                endpoints.iam(universe),
                endpoints.sts(universe),
                endpoints.storage(file),
            ]
        };
        let of = |universe: &str| {
            [
                format!("https://oauth2.{universe}/token"),
                format!("https://iamcredentials.{universe}"),
                format!("https://iam.{universe}"),
                format!("https://sts.{universe}/v1/token"),
                format!("https://storage.{universe}"),
            ]
        };
        let usual = Endpoints::default();
        assert_eq!(places(&usual, None), of("googleapis.com"));
        assert_eq!(places(&usual, Some("file.example")), of("file.example"));
        let configured = Endpoints { universe: Some("config.example".into()), ..Endpoints::default() };
        assert_eq!(places(&configured, Some("file.example")), of("config.example"));
        let corp = |name: &str| Some(format!("https://{name}.corp.example/"));
        let named = Endpoints { iam: corp("iam"), storage: corp("storage"), ..configured };
        assert_eq!(places(&named, None)[2], "https://iam.corp.example");
        assert_eq!(places(&named, None)[4], "https://storage.corp.example");
        assert_eq!(places(&named, None)[3], of("config.example")[3]);
    }
}
