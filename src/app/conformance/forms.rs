//! The services of AWS and Azure that need a secret: AWS's container credentials, and App Service. The secret comes
//! from the target's path (`serve --listen`), or from the variables of the container that this program runs in. It is
//! sent only to the server that it belongs to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use url::Url;

use super::wire::TestedServer;
use crate::config::Environment;
use crate::secret::Secret;

const CONTAINER: &str = "/v2/credentials";
const APP_SERVICE: &str = "/msi/token";
/// Where the relative URI of AWS's containers is asked.
const AGENT: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2));

/// The path of a service, and the header that it needs.
#[derive(Debug)]
pub(super) struct Form {
    /// A path from the target's root on.
    pub(super) path: Secret<String>,
    /// The value of `Authorization` (AWS) or `X-IDENTITY-HEADER` (Azure); empty if there is none.
    pub(super) header: Secret<String>,
}

impl Form {
    fn new(path: String, header: &str) -> Self {
        Self { path: Secret::new(path), header: Secret::new(header.to_owned()) }
    }
}

/// The container form of AWS.
pub(super) fn container(target: &TestedServer, at: SocketAddr, env: &Environment) -> Option<Form> {
    if !target.prefix().is_empty() {
        return Some(Form::new(format!("{}{CONTAINER}", target.prefix()), ""));
    }
    let header = env.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN").unwrap_or_default();
    match env.variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
        Some(path) => (at.ip() == AGENT).then(|| Form::new(path.to_owned(), header)),
        None => path_at(env.variable("AWS_CONTAINER_CREDENTIALS_FULL_URI")?, at)
            .map(|path| Form::new(path, header)),
    }
    .filter(fits)
}

/// The form of App Service.
pub(super) fn app_service(target: &TestedServer, at: SocketAddr, env: &Environment) -> Option<Form> {
    let prefix = target.prefix();
    if !prefix.is_empty() {
        let secret = prefix.rsplit('/').next().unwrap_or_default();
        return Some(Form::new(format!("{prefix}{APP_SERVICE}"), secret));
    }
    let header = env.variable("IDENTITY_HEADER")?;
    path_at(env.variable("IDENTITY_ENDPOINT")?, at).map(|path| Form::new(path, header)).filter(fits)
}

/// The path of a URL, if it leads to this address.
fn path_at(url: &str, at: SocketAddr) -> Option<String> {
    let url = Url::parse(url).ok().filter(|url| url.scheme() == "http" && url.query().is_none())?;
    let host: IpAddr = url.host_str()?.trim_matches(['[', ']']).parse().ok()?;
    let same = host == at.ip() && url.port_or_known_default() == Some(at.port());
    same.then(|| url.path().to_owned())
}

/// Whether both parts fit into a request.
fn fits(form: &Form) -> bool {
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
    let (path, header) = (form.path.expose(), form.header.expose());
    path.starts_with('/') && path.len() + header.len() < 4096 && plain(path) && plain(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Environment {
        let variables = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Environment { variables, cwd: "/".into() }
    }

    #[test]
    fn secrets_of_this_container_go_only_where_they_belong() {
        let (agent, relay, other): (SocketAddr, SocketAddr, SocketAddr) = (
            "169.254.170.2:80".parse().unwrap(),
            "169.254.168.2:80".parse().unwrap(),
            "127.0.0.1:8174".parse().unwrap(),
        );
        let here = env(&[
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/s3cret"),
            ("IDENTITY_ENDPOINT", "http://169.254.168.2/msi/token"),
            ("IDENTITY_HEADER", "s3cret"),
        ]);
        let plain = TestedServer::parse("http://relay").unwrap();
        assert_eq!(container(&plain, agent, &here).unwrap().path.expose(), "/v2/credentials/s3cret");
        assert_eq!(app_service(&plain, relay, &here).unwrap().header.expose(), "s3cret");
        assert!(container(&plain, relay, &here).is_none() && app_service(&plain, agent, &here).is_none());
        assert!(container(&plain, other, &here).is_none() && app_service(&plain, other, &here).is_none());

        let full = env(&[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:8174/creds"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "t0ken"),
        ]);
        let form = container(&plain, other, &full).unwrap();
        assert_eq!((form.path.expose().as_str(), form.header.expose().as_str()), ("/creds", "t0ken"));
        assert!(container(&plain, agent, &full).is_none());
        let split = env(&[("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2\r\nX: y")]);
        assert!(container(&plain, agent, &split).is_none(), "a variable is no second header");
    }

    #[test]
    fn a_secret_path_is_the_secret_of_both_forms() {
        let target = TestedServer::parse("http://127.0.0.1:8174/s3cret").unwrap();
        let (at, none) = ("127.0.0.1:8174".parse().unwrap(), env(&[]));
        assert_eq!(container(&target, at, &none).unwrap().path.expose(), "/s3cret/v2/credentials");
        let form = app_service(&target, at, &none).unwrap();
        assert_eq!(
            (form.path.expose().as_str(), form.header.expose().as_str()),
            ("/s3cret/msi/token", "s3cret")
        );
    }
}
