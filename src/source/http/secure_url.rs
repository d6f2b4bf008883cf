//! Checks URLs from a file or the config that receive secrets: never unencrypted, except within this machine.

use hyper::Uri;

/// Cloud metadata services at addresses that never leave the machine or its hypervisor, where `http` is as
/// good as `https`. Each with its services.
const LINK_LOCAL: [(&str, &str); 7] = [
    ("169.254.169.254", "the metadata server of Google, AWS and Azure"),
    ("[fd00:ec2::254]", "the same of AWS, by IPv6"),
    ("169.254.170.2", "the credentials of an AWS ECS task"),
    ("169.254.170.23", "AWS EKS Pod Identity"),
    ("[fd00:ec2::23]", "the same, by IPv6"),
    ("100.100.100.200", "the metadata server of Alibaba Cloud"),
    ("metadata.google.internal", "Google's by its name, which only a Google machine's resolver has"),
];

/// Whether `host` is one of these services. Azure App Service gives each app an address of 169.254.128.0/22.
pub(crate) fn is_link_local_service(host: &str) -> bool {
    let app_service = host.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| {
        let [a, b, c, _] = ip.octets();
        (a, b) == (169, 254) && (128..132).contains(&c)
    });
    app_service || LINK_LOCAL.iter().any(|(known, _)| *known == host)
}

/// Requires `https` or this machine, because secrets are sent to the URL.
pub(crate) fn confidential(url: &str, key: &str) -> Result<(), String> {
    match parts(url) {
        Some(("https", _)) => Ok(()),
        Some(("http", host)) if is_loopback(host) => Ok(()),
        _ => Err(format!("its {key} is not an https address")),
    }
}

/// The same, but also accepts clouds' metadata services: their addresses never leave the machine's own host.
pub(crate) fn within(url: &str, key: &str) -> Result<(), String> {
    match parts(url) {
        Some(("http", host)) if is_link_local_service(host) => Ok(()),
        _ => confidential(url, key),
    }
}

/// Whether `url` is served by this machine.
pub(crate) fn is_local(url: &str) -> bool {
    parts(url).is_some_and(|(_, host)| is_loopback(host))
}

fn parts(url: &str) -> Option<(&'static str, &str)> {
    let scheme = ["https", "http"]
        .into_iter()
        .find(|scheme| url.strip_prefix(scheme).is_some_and(|rest| rest.starts_with("://")))?;
    // Checks the text that is sent, so that no other parser of it can see another host.
    let parsed: Uri = url.parse().ok()?;
    let authority = url.get(scheme.len() + 3..)?.split(['/', '?', '#']).next()?;
    let known = parsed.authority()?.as_str() == authority && !authority.contains('@');
    let end =
        authority.rfind(':').filter(|at| authority.get(at + 1..).is_some_and(|port| !port.contains(']')));
    let host = authority.get(..end.unwrap_or(authority.len()))?;
    (known && !host.is_empty()).then_some((scheme, host))
}

/// Whether `host`, in the form it has in URLs, is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let v4 = host.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback());
    v4 || matches!(host, "localhost" | "[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_sent_only_to_https_or_loopback() {
        for good in [
            "https://sts.googleapis.com/v1/token",
            "http://127.0.0.1:80/x",
            "http://localhost/x?y=z",
            "http://[::1]:8080",
            "https://h:8443",
        ] {
            assert!(confidential(good, "k").is_ok(), "{good}");
        }
        for bad in [
            "",
            "https://",
            "http://sts.googleapis.com",
            "http://127.0.0.1.example.com/",
            "http://localhost.example.com/",
            "http://127.0.0.1@example.com/",
            "https://user@h/",
            "ftp://127.0.0.1/",
            "file:///etc/passwd",
            "http://169.254.169.254/latest",
            "HTTPS://h",
            "https:/h",
            "http://::1/",
        ] {
            assert!(confidential(bad, "k").is_err(), "{bad}");
        }
        assert!(within("http://169.254.169.254/latest?x", "k").is_ok());
        assert!(within("http://[fd00:ec2::254]/latest", "k").is_ok());
        assert!(within("http://169.254.169.254.example.com/", "k").is_err());
        assert!(within("http://169.254.169.253/", "k").is_err());
        for good in [
            "http://169.254.129.2:8081/msi/token",
            "http://100.100.100.200/latest",
            "http://metadata.google.internal/x",
        ] {
            assert!(within(good, "k").is_ok(), "{good}");
        }
        for bad in [
            "http://169.254.133.2/",
            "http://100.100.100.201/",
            "http://metadata.google.internal.example.com/",
        ] {
            assert!(within(bad, "k").is_err(), "{bad}");
        }
    }
}
