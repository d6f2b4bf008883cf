//! Addresses of AWS's services: those of a region, or those that AWS's own variables name
//! (`AWS_ENDPOINT_URL_STS`, and `AWS_ENDPOINT_URL` for all services).

use crate::source::SourceError;
use crate::source::http::secure_url::confidential;
use crate::source::variables::Variables;

/// The region that requests are signed for when none is known.
pub(super) const GLOBAL_REGION: &str = "us-east-1";

/// The Security Token Service. Without a region it is the global one, whose sessions are not accepted in regions
/// that were enabled later.
pub(super) fn sts(region: Option<&str>) -> String {
    match region {
        Some(region) => format!("https://sts.{region}.{}", domain(region)),
        None => "https://sts.amazonaws.com".into(),
    }
}

/// The portal of IAM Identity Center (SSO).
pub(super) fn portal(region: &str) -> String {
    format!("https://portal.sso.{region}.{}", domain(region))
}

/// The token endpoint of IAM Identity Center.
pub(super) fn oidc(region: &str) -> String {
    format!("https://oidc.{region}.{}", domain(region))
}

/// IAM, which has one address for a whole partition, and the region that its requests are signed for. No address if
/// the partition of `role` is unknown.
pub(super) fn iam(role: &str) -> (Option<String>, &'static str) {
    match role.split(':').nth(1) {
        Some("aws") => (Some("https://iam.amazonaws.com".into()), GLOBAL_REGION),
        Some("aws-cn") => (Some("https://iam.cn-north-1.amazonaws.com.cn".into()), "cn-north-1"),
        Some("aws-us-gov") => (Some("https://iam.us-gov.amazonaws.com".into()), "us-gov-west-1"),
        _ => (None, GLOBAL_REGION),
    }
}

fn domain(region: &str) -> &'static str {
    if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" }
}

/// A region's name becomes part of a host, so it is checked wherever it comes from.
pub(super) fn is_region(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.len() <= 40 && !text.starts_with('-') && text.bytes().all(fits)
}

/// The base URL that variables name for a service (`STS`, `IAM`, `SSO`, `SSO_OIDC`), without a slash at its end.
pub(super) fn named(service: &str, variables: &Variables) -> Result<Option<String>, SourceError> {
    if variables.text("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").is_some_and(|on| on.eq_ignore_ascii_case("true"))
    {
        return Ok(None);
    }
    for name in [format!("AWS_ENDPOINT_URL_{service}"), "AWS_ENDPOINT_URL".to_owned()] {
        if let Some(url) = variables.text(&name) {
            confidential(url, &name)
                .map_err(|_| SourceError::refused(format!("the variable {name} is not an https address")))?;
            return Ok(Some(url.trim_end_matches('/').to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_have_their_own_services() {
        assert_eq!(sts(Some("eu-west-1")), "https://sts.eu-west-1.amazonaws.com");
        assert_eq!(sts(Some("cn-north-1")), "https://sts.cn-north-1.amazonaws.com.cn");
        assert_eq!(sts(None), "https://sts.amazonaws.com");
        assert_eq!(portal("eu-west-1"), "https://portal.sso.eu-west-1.amazonaws.com");
        assert_eq!(oidc("eu-west-1"), "https://oidc.eu-west-1.amazonaws.com");
        assert_eq!(iam("arn:aws:iam::1:role/a"), (Some("https://iam.amazonaws.com".into()), "us-east-1"));
        assert_eq!(iam("arn:aws-cn:iam::1:role/a").1, "cn-north-1");
        assert_eq!(iam("arn:aws-iso:iam::1:role/a").0, None);
        for bad in ["", "-a", "evil.example/", "a@b", "EU", &"a".repeat(41)] {
            assert!(!is_region(bad), "{bad}");
        }
    }

    #[test]
    fn variables_name_an_endpoint_only_if_it_is_safe() {
        let of = |pairs: &[(&str, &str)]| {
            let variables: Variables =
                pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            named("STS", &variables)
        };
        let (one, all) =
            (("AWS_ENDPOINT_URL_STS", "https://a.example/"), ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"));
        assert_eq!(of(&[one, all]).unwrap().as_deref(), Some("https://a.example"));
        assert_eq!(of(&[all]).unwrap().as_deref(), Some("http://127.0.0.1:1"));
        assert_eq!(of(&[all, ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")]).unwrap(), None);
        assert!(of(&[("AWS_ENDPOINT_URL", "http://a.example")]).is_err());
    }
}
