//! The golden cases over a wire: the expected bytes of a server whose view differs a little from
//! `golden::view()`.
//!
//! The view of a real session differs where the config cannot set a value: the instance's name, number and
//! address are the container's, all accounts of an identity have its scopes, and the port is another one.
//! These values are replaced, in the request and in the expected reply; a replaced reply has another length
//! and another ETag.

use std::time::Duration;

use super::golden::{ACCESS_TOKEN, Case, IDENTITY_TOKEN};
use super::session::claims;

/// Makes a session's view equal to `golden::view()`, as far as a config can.
const CONFIG: &str = r#"
    project = "golden-project"
    numeric_project = 987654321098
    email = "golden@golden-project.iam.gserviceaccount.com"
    zone = "europe-west4-b"
    [instance]
    description = "Tom & \"Jerry\" <b>é</b>"
    tags = ["http-server", "kfp"]
    [attributes]
    a-key = "007"
    user-data = "line one\nline \"two\"\n"
    [project_attributes]
    fleet = "test"
    [identity.default]
    scopes = ["https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/bigquery"]
    other_accounts = ["123-compute@developer.gserviceaccount.com"]
"#;

/// The servers of the cases, by the name that the cases use: what the identity has in addition, and how often
/// each case is sent. The last answer is compared.
pub(crate) const SERVERS: [(Option<&str>, &str, usize); 3] = [
    (None, "", 1),
    (Some("strict"), "strict = true\naudiences = [\"x\"]", 1),
    (Some("rated"), "rate = 1", 2),
];

/// The config of one of [`SERVERS`], whose identity has the name that the cases use.
pub(crate) fn config(more: &str) -> String {
    let own = CONFIG.replace("[identity.default]", &format!("[identity.loader]\n{more}"));
    format!("default = \"loader\"\n{own}")
}

/// The scopes of the second account: in the golden cases its own, in a session those of the identity.
const OF_SECOND: &str = r#""scopes":["https://www.googleapis.com/auth/devstorage.read_only"]"#;
const OF_IDENTITY: &str = concat!(
    r#""scopes":["https://www.googleapis.com/auth/bigquery","#,
    r#""https://www.googleapis.com/auth/cloud-platform"]"#
);

/// The values of a server that replace the golden ones.
#[derive(Clone, Debug)]
pub(crate) struct Placeholders {
    /// With the port, in place of `127.0.0.1:1234` in the golden cases.
    pub(crate) host: String,
    pub(crate) name: String,
    pub(crate) number: u64,
    pub(crate) ip: String,
    /// The ETag of the whole tree, on which a case waits.
    pub(crate) etag: String,
}

/// The ETag of the whole tree in the golden cases.
pub(crate) const ETAG: &str = "0b0807452bf6e0a2";

/// Host and port in the golden cases.
pub(crate) const HOST: &str = "127.0.0.1:1234";

/// A request for the whole tree, to get its ETag.
pub(crate) const WHOLE: &str =
    "GET /computeMetadata/v1/?recursive=true HTTP/1.1\r\nHost: metadata\r\nMetadata-Flavor: Google\r\n\r\n";

/// A received answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// All bytes up to the end of the body, or of the connection if the reply ends with that.
    pub(crate) bytes: Vec<u8>,
    pub(crate) after: Duration,
}

/// Every case that can be sent over a wire to one of [`SERVERS`].
pub(crate) fn cases(server: Option<&str>) -> Vec<Case> {
    let mut cases = super::golden::cases();
    let is_at = |case: &Case, server: Option<&str>| case.server.as_deref() == server;
    assert!(cases.iter().all(|case| SERVERS.iter().any(|(name, ..)| is_at(case, *name))));
    cases.retain(|case| case.step_only.is_none() && is_at(case, server));
    let least = if server.is_none() { 181 } else { 1 };
    assert!(cases.len() >= least, "only {} cases", cases.len());
    cases
}

/// The ETag in a reply.
pub(crate) fn etag(reply: &[u8]) -> String {
    let reply = shown(reply).to_ascii_lowercase();
    reply.split("\r\netag: ").nth(1).unwrap_or_else(|| panic!("no ETag: {reply}"))[..16].to_string()
}

impl Placeholders {
    pub(crate) fn request(&self, case: &Case) -> Vec<u8> {
        self.replaced(std::str::from_utf8(&case.request).unwrap()).into_bytes()
    }

    fn replaced(&self, text: &str) -> String {
        let mac = |ip: &str| {
            let octets = ip.split('.').map(|octet| format!(":{:02x}", octet.parse::<u8>().unwrap()));
            format!("42:01{}", octets.collect::<String>())
        };
        let number = self.number.to_string();
        [
            (HOST, self.host.as_str()),
            (ETAG, &self.etag),
            (r#""gateway":"169.254.168.1""#, r#""gateway":"""#),
            ("golden-vm", &self.name),
            ("7015181712655481713", &number),
            (&mac("169.254.168.7"), &mac(&self.ip)),
            ("169.254.168.7", &self.ip),
            ("5543610867827062957", "0"),
            (OF_SECOND, OF_IDENTITY),
        ]
        .iter()
        .fold(text.to_string(), |text, (from, to)| text.replace(from, to))
    }

    /// What is wrong with the answer; `None` if it is right.
    pub(crate) fn differences(&self, case: &Case, answer: &Answer) -> Option<String> {
        let fault = self.compare(case, answer).err()?;
        Some(format!("{}.http: {}\n    {fault}\n    got {:?}\n", case.name, case.why, shown(&answer.bytes)))
    }

    fn compare(&self, case: &Case, answer: &Answer) -> Result<(), String> {
        let bytes = &answer.bytes;
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").ok_or("no end of the head")?;
        let (head, body) = (shown(&bytes[..end]), &bytes[end + 4..]);
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default();
        if !status.starts_with(&format!("{} {} ", version(case), case.status)) {
            return Err(format!("status line {status:?}"));
        }
        let mut headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_string()))
            .collect();
        if headers.iter().filter(|(name, _)| name == "date").count() != 1 {
            return Err("not one Date".into());
        }
        headers.retain(|(name, _)| name != "date");
        let is_head = case.request.starts_with(b"HEAD ");
        let golden = std::str::from_utf8(&case.body).unwrap();
        // The ETag of a listing depends on its values.
        let moved = self.replaced(golden) != golden || case.head().target.ends_with('/');
        let want_body = self.body(case, body, is_head)?;
        let mut want: Vec<(String, String)> = case
            .headers
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), self.replaced(value)))
            .map(|(name, value)| match name.as_str() {
                // For a HEAD whose GET would return a token, the length is not known here.
                "content-length" if is_head && case.asks.is_some() => {
                    (name, header(&headers, "content-length"))
                }
                "content-length" => (name, want_body.len().to_string()),
                "etag" if moved && value != self.etag => (name, header(&headers, "etag")),
                _ => (name, value),
            })
            .collect();
        let etag = header(&headers, "etag");
        if !etag.is_empty() && (etag.len() != 16 || !etag.bytes().all(|b| b.is_ascii_hexdigit())) {
            return Err(format!("ETag {etag:?}"));
        }
        want.sort();
        headers.sort();
        if headers != want {
            let only = |these: &[(String, String)], those: &[(String, String)]| {
                these.iter().filter(|one| !those.contains(one)).cloned().collect::<Vec<_>>()
            };
            return Err(format!(
                "headers: missing {:?}, not wanted {:?}",
                only(&want, &headers),
                only(&headers, &want)
            ));
        }
        if is_head && !body.is_empty() || !is_head && body != want_body.as_bytes() {
            return Err(format!("body: wanted {want_body:?}"));
        }
        match case.waits {
            Some(_) if answer.after < Duration::from_secs(1) => {
                Err(format!("did not wait: {:?}", answer.after))
            }
            Some(_) => Ok(()),
            None if answer.after > Duration::from_millis(900) => Err(format!("took {:?}", answer.after)),
            None => Ok(()),
        }
    }

    /// The expected body; if it has a minted token, that is taken from the answer and checked, and replaces
    /// the golden one.
    fn body(&self, case: &Case, got: &[u8], is_head: bool) -> Result<String, String> {
        let want = self.replaced(std::str::from_utf8(&case.body).unwrap());
        let given = case.asks.as_deref().filter(|_| !is_head && case.given.is_none());
        let Some(asks) = given else { return Ok(want) };
        let got = shown(got);
        let email = asks.split(' ').nth(1).unwrap();
        if let Some(rest) = asks.strip_prefix("identity ") {
            let audience = rest.split(" audience=").nth(1).and_then(|rest| rest.split(" full=").next());
            let whose = |got: &str| claims(got)["aud"].as_str() == audience && claims(got)["email"] == email;
            if got.split('.').count() != 3 || !whose(&got) {
                return Err(format!("no identity token for {audience:?}"));
            }
            return Ok(want.replace(IDENTITY_TOKEN, &got));
        }
        let word = |before: &str, after: char| {
            let rest = got.split_once(before)?.1;
            Some(rest.split(after).next()?.to_string())
        };
        let (token, left) = if asks.contains(" form=json") {
            (word(r#""access_token":""#, '"'), word(r#""expires_in":"#, ','))
        } else {
            (word("access_token ", '\n'), word("expires_in ", '\n'))
        };
        let (token, left) = (token.ok_or("no token")?, left.ok_or("no expires_in")?);
        if token.split('.').count() != 3 || claims(&token)["email"] != email {
            return Err(format!("whose token is this: {token}"));
        }
        if !left.parse().is_ok_and(|left: u64| (3000..=3600).contains(&left)) {
            return Err(format!("expires_in {left}"));
        }
        Ok(want.replace(ACCESS_TOKEN, &token).replace("3521", &left))
    }
}

/// The golden replies are in HTTP/1.1; a request in HTTP/1.0 gets a reply in HTTP/1.0.
fn version(case: &Case) -> &'static str {
    if shown(&case.request).contains(" HTTP/1.0\r\n") { "HTTP/1.0" } else { "HTTP/1.1" }
}

/// The value of a header, whose name is in lower case.
fn header(headers: &[(String, String)], name: &str) -> String {
    headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone()).unwrap_or_default()
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Requests that every HTTP parser rejects, with the status of the refusal.
pub(crate) fn unparsable() -> Vec<(&'static str, Vec<u8>, u16)> {
    let long = "x".repeat(20_000);
    vec![
        ("no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), 400),
        ("characters that no target has", b"GET /<b> HTTP/1.1\r\nHost: metadata\r\n\r\n".to_vec(), 400),
        ("no version", b"GET /\r\nHost: metadata\r\n\r\n".to_vec(), 400),
        ("a version from the future", b"GET / HTTP/7.3\r\nHost: metadata\r\n\r\n".to_vec(), 400),
        ("a header without a colon", b"GET / HTTP/1.1\r\nMetadata-Flavor Google\r\n\r\n".to_vec(), 400),
        ("two lengths", b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_vec(), 400),
        ("a head over the limit", format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n").into_bytes(), 431),
        (
            "the second of two in one packet",
            b"GET / HTTP/1.1\r\nHost: metadata\r\n\r\nGET /<b> HTTP/1.1\r\nHost: metadata\r\n\r\n".to_vec(),
            400,
        ),
    ]
}

/// Every reply on the connection has our headers; the last one refuses and closes.
pub(crate) fn assert_refused(what: &str, got: &[u8], status: u16) {
    let text = shown(got);
    let heads: Vec<&str> = text.split("HTTP/1.1 ").skip(1).collect();
    assert!(!heads.is_empty(), "{what}: no reply: {text:?}");
    for head in &heads {
        let lower = head.to_ascii_lowercase();
        for line in [
            "\r\nmetadata-flavor: google\r\n",
            "\r\nserver: metadata server for vm\r\n",
            "\r\ncontent-type: ",
        ] {
            assert_eq!(lower.matches(line).count(), 1, "{what}: {line:?} in {text:?}");
        }
    }
    let last = heads.last().unwrap();
    assert!(last.starts_with(&status.to_string()), "{what}: {text:?}");
    assert!(last.ends_with("\r\n\r\n") && last.contains("content-length: 0\r\n"), "{what}: {text:?}");
}
