//! How input is quoted in messages: the only place that decides whether a value may be shown.
//!
//! People put a secret where a path, a name or a URL belongs (`GOOGLE_APPLICATION_CREDENTIALS="$(cat
//! key.json)"`), and messages are copied into tickets. So a value that has the shape of a secret is never
//! shown, not even in part: the message names its shape. Short passwords have no such shape; no input asks
//! for one.

use std::path::Path;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

/// Longer than any useful name, e-mail, URL or pattern; a path may be longer.
const LONGEST: usize = 256;
/// The kernel's limit.
const LONGEST_PATH: usize = 4096;
/// Random text counts as a secret from this length on.
const RANDOM: usize = 20;
/// The length of hexadecimal digits that count as a key: 128 bits.
const HEX: usize = 32;
/// The length of letters and digits without a separator that count as a secret.
const UNBROKEN: usize = 36;
/// How much of base64 is decoded to recognise its content.
const BEGINNING: usize = 64;

/// Prefixes that identify tokens and keys.
const TOKENS: [&str; 15] = [
    "ya29.",
    "1//0",
    "GOCSPX-",
    "AIza",
    "AKIA",
    "ASIA",
    "ghp_",
    "gho_",
    "ghs_",
    "github_pat_",
    "glpat-",
    "hvs.",
    "xoxb-",
    "sk-",
    "dop_v1_",
];

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Whether a value does not look like a secret, and may appear in messages.
pub fn is_plain(text: &str) -> bool {
    hidden(text).is_none()
}

/// A value in quotation marks, or else its shape; both as the subject of a sentence: `"x" has to be …`, `a
/// value that holds JSON (not shown) has to be …`.
pub fn value(text: &str) -> String {
    match hidden(text) {
        None => format!("\"{}\"", shown(text)),
        Some(shape) => format!("a value that holds {shape} (not shown)"),
    }
}

/// Like [`value`], as the object of a sentence: `"x"` or `(JSON, not shown)`.
pub fn object(text: &str) -> String {
    match hidden(text) {
        None => value(text),
        Some(_) => name(text),
    }
}

/// A name as it is, or else its shape.
pub fn name(text: &str) -> String {
    match hidden(text) {
        None => shown(text),
        Some(shape) => format!("({shape}, not shown)"),
    }
}

/// A path, without its parts that look like a secret. Text that cannot be a path is not shown.
pub fn path(path: &Path) -> String {
    text_path(&path.to_string_lossy())
}

fn text_path(text: &str) -> String {
    if text.len() > LONGEST_PATH {
        return "(text that is longer than a path can be, not shown)".into();
    }
    let mut out = String::new();
    let mut rest = text;
    loop {
        // A secret joined to a directory starts in the middle of the path, and may contain slashes.
        if let Some(shape) = no_path(rest).or_else(|| is_blob(rest).then_some("random text")) {
            return format!("{out}({shape}, not shown)");
        }
        let (part, inner) = rest.split_once('/').map_or((rest, None), |(part, inner)| (part, Some(inner)));
        if (part.contains('=') || part.contains(": ")) && is_named(rest) {
            return format!("{out}(a secret by its name, not shown)");
        }
        match hidden(part) {
            Some(shape) => out.push_str(&format!("({shape}, not shown)")),
            // Of a URL in the place of a path, neither query nor fragment.
            None => match part.find(['?', '#']).filter(|_| text.contains("://")) {
                Some(end) => return format!("{out}{}…", one_line(&part[..=end])),
                None => out.push_str(&one_line(part)),
            },
        }
        let Some(inner) = inner else { return out };
        out.push('/');
        rest = inner;
    }
}

/// The kind of text that cannot be a path; completes "holds …, not a path".
pub fn no_path(text: &str) -> Option<&'static str> {
    let trimmed = text.trim();
    if let Some(shape) = document(trimmed).or_else(|| user_in_url(trimmed)) {
        return Some(shape);
    }
    match () {
        () if trimmed.contains(['\n', '\r']) => Some("several lines"),
        () if text.len() > LONGEST_PATH => Some("text that is longer than a path can be"),
        () => None,
    }
}

/// The shape of a text that must not be shown.
fn hidden(text: &str) -> Option<&'static str> {
    let trimmed = text.trim();
    if let Some(shape) = document(trimmed).or_else(|| user_in_url(trimmed)) {
        return Some(shape);
    }
    match () {
        () if trimmed.contains(['\n', '\r']) => Some("several lines"),
        () if TOKENS.iter().any(|token| begins(trimmed, token)) || is_entra(trimmed) => {
            Some("a token or key")
        }
        () if is_named(trimmed) => Some("a secret by its name"),
        () if is_random(trimmed) || is_blob(trimmed) => Some("random text"),
        () if trimmed.len() > LONGEST => Some("long text"),
        () => None,
    }
}

/// JSON, PEM, a JWT, or one of them encoded.
fn document(text: &str) -> Option<&'static str> {
    if let Some(shape) = plain_document(text) {
        return Some(shape);
    }
    if text.contains("%7B%22")
        || text.contains("%7b%22")
        || text.contains("%7B%0A")
        || text.contains("-----BEGIN%20")
    {
        return Some("a URL-encoded credential");
    }
    // `base64` wraps its lines.
    let encoded: String = text.chars().filter(|c| !c.is_whitespace()).take(BEGINNING).collect();
    let decoded = decode(&encoded)?;
    match plain_document(decoded.trim_start()) {
        Some("JSON") => Some("base64 of JSON"),
        Some("a PEM file") => Some("base64 of a PEM file"),
        Some(_) => Some("base64 of a JSON Web Token"),
        // It may be encoded twice.
        None => decode(decoded.trim_end())
            .and_then(|inner| plain_document(inner.trim_start()))
            .map(|_| "base64 of base64"),
    }
}

fn plain_document(text: &str) -> Option<&'static str> {
    let text = text.trim_start_matches(['\u{feff}', '"', '\'', ' ', '\n', '\r', '\t']);
    let quoted = |text: &str| text.trim_start().starts_with(['"', '\'', '{', '[', '}', ']', '\\']);
    let object =
        |open: char| text.strip_prefix(open).is_some_and(|rest| rest.trim().is_empty() || quoted(rest));
    match () {
        () if object('{') || object('[') => Some("JSON"),
        () if ["\"private_key\"", "\"client_secret\"", "\"refresh_token\""]
            .iter()
            .any(|key| text.contains(key)) =>
        {
            Some("JSON")
        }
        () if text.contains("-----BEGIN") || text.contains("PRIVATE KEY-----") => Some("a PEM file"),
        () if is_jwt(text) => Some("a JSON Web Token"),
        () => None,
    }
}

/// Decodes the beginning of base64 as text; `None` for fewer than six bytes of text.
fn decode(encoded: &str) -> Option<String> {
    let whole = encoded.get(..encoded.len() / 4 * 4).filter(|whole| whole.len() >= 8)?;
    let bytes = STANDARD.decode(whole).or_else(|_| URL_SAFE.decode(whole)).ok()?;
    let cut = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(bytes.get(..error.valid_up_to())?).ok()?,
    };
    (cut.len() >= 6).then(|| cut.to_owned())
}

/// A word that begins with `{"` in base64 and contains a point.
fn is_jwt(text: &str) -> bool {
    text.split(|c: char| !is_word(c) && c != '.').any(|word| {
        word.split_once('.').is_some_and(|(head, _)| {
            head.len() >= 12
                && (head.starts_with("eyJ") || head.starts_with("ewo") || head.starts_with("eyA"))
        })
    })
}

/// `user@` or `user:password@` in front of a host.
fn user_in_url(text: &str) -> Option<&'static str> {
    let shape = "a URL with a user or a password in it";
    // The same with escapes, as it stands inside another URL.
    let folded = text.to_ascii_lowercase();
    if folded.split_once("%3a%2f%2f").is_some_and(|(_, rest)| rest.contains("%40")) {
        return Some(shape);
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let scheme = scheme.rsplit([':', '=', ',', ' ']).next().unwrap_or_default();
        let named =
            !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+.-".contains(&b));
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        // A user without a password is no secret for ssh.
        if scheme == "ssh" && !rest.contains(':') {
            return None;
        }
        // A password may contain characters that end a host.
        let cut = || {
            host.rsplit_once(':')
                .is_some_and(|(_, port)| !port.bytes().all(|b| b.is_ascii_digit() || b == b']'))
        };
        return (named && (host.contains('@') || rest.contains('@') && cut())).then_some(shape);
    }
    // An account as IAM's policies write it, which people paste.
    if ["serviceAccount:", "user:", "group:"]
        .iter()
        .any(|member| text.strip_prefix(member).is_some_and(|rest| !rest.contains(':') && rest.contains('.')))
    {
        return None;
    }
    // Without a scheme: `user:password@host`.
    let (user, host) = text.rsplit_once('@')?;
    let password =
        user.split_once(':').is_some_and(|(user, password)| !user.is_empty() && !password.is_empty());
    (password && !host.is_empty() && !user.contains('/')).then_some(shape)
}

/// `PASSWORD=…`, `sig=…`, `password: …`, a line of `.netrc`, the value of an `Authorization` header: what
/// precedes the value says that it is a secret, of whatever form.
fn is_named(text: &str) -> bool {
    const NAMES: &str =
        "password passwd pwd passphrase secret token accesskey accountkey privatekey secretkey apikey";
    /// Shorter values are numbers of ports, words and levels of a log.
    const SHORTEST: usize = 6;
    let long = |value: &str| {
        let value = value.trim_start_matches([' ', '"', '\'']);
        value.chars().take_while(|c| !c.is_whitespace()).count() >= SHORTEST
    };
    let named = |name: &str| {
        let name: String = name
            .chars()
            .rev()
            .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '"' | '\'' | ' '))
            .filter(char::is_ascii_alphanumeric)
            .map(|c| c.to_ascii_lowercase())
            .collect();
        let ends = |end: &str| name.starts_with(&end.chars().rev().collect::<String>());
        NAMES.split(' ').any(ends) || name == "gis"
    };
    let mut signs = text.match_indices('=').chain(text.match_indices(": ")).chain(text.match_indices('>'));
    let assigned = signs.any(|(at, _)| {
        let (name, value) = (text.get(..at).unwrap_or_default(), text.get(at + 1..).unwrap_or_default());
        long(value) && named(name)
    });
    let words = || {
        let words: Vec<&str> = text.split_whitespace().collect();
        let login = words.contains(&"login");
        words.windows(2).any(|pair| {
            let scheme = pair[0].rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
            (scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("basic"))
                && pair[1].len() >= 12
                && pair[1].contains(|c: char| c.is_ascii_digit())
                || scheme == "password" && login
                || matches!(pair[0], "-u" | "--user") && pair[1].contains(':')
                || pair[0].starts_with("--") && named(pair[0]) && long(pair[1])
        })
    };
    assigned || words()
}

/// An application secret of Entra ID: three characters, a digit, `Q~`, and 31 or more.
fn is_entra(text: &str) -> bool {
    text.match_indices("Q~").any(|(at, _)| {
        let digit = text.get(..at).is_some_and(|before| before.ends_with(|c: char| c.is_ascii_digit()));
        let rest = text.get(at + 2..).unwrap_or_default();
        digit && rest.chars().take_while(|c| is_word(*c) || matches!(c, '.' | '~')).count() >= 31
    })
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '=')
}

fn begins(text: &str, token: &str) -> bool {
    text.match_indices(token).any(|(at, _)| {
        let fresh = text.get(..at).is_none_or(|before| !before.ends_with(is_word));
        let rest = text.get(at + token.len()..).unwrap_or_default();
        fresh && rest.chars().take_while(|c| is_word(*c) || *c == '.').count() >= 10
    })
}

/// Whether a part of it looks like a generated key rather than text by a person.
fn is_random(text: &str) -> bool {
    let digest = |run: &str| text.split_once(run).is_some_and(|(before, _)| before.ends_with("sha256:"));
    text.split(|c: char| !is_word(c)).any(|run| {
        let plain = run.split(|c: char| !c.is_ascii_alphanumeric());
        let unbroken = plain.clone().any(|part| {
            let digits = part.bytes().filter(u8::is_ascii_digit).count();
            let mixed = digits > 0 && digits < part.len();
            let hex = part.len() >= HEX && part.bytes().all(|b| b.is_ascii_hexdigit());
            mixed && (hex || part.len() >= UNBROKEN)
        });
        (unbroken || run.len() >= RANDOM && is_mixed(run)) && !digest(run)
    })
}

/// Whether all of it is base64, slashes included, as AWS secret keys are.
fn is_blob(text: &str) -> bool {
    text.len() >= HEX && text.chars().all(|c| is_word(c) || c == '/') && is_mixed(text)
}

/// Whether upper case, lower case and digits alternate often: words change case only at their beginnings.
fn is_mixed(run: &str) -> bool {
    let class = |b: u8| match b {
        b'A'..=b'Z' => Some(0),
        b'a'..=b'z' => Some(1),
        b'0'..=b'9' => Some(2),
        _ => None,
    };
    let classes: Vec<Option<u8>> = run.bytes().map(class).collect();
    let all = (0..3).all(|one| classes.contains(&Some(one)));
    let turns = classes
        .windows(2)
        .filter(|pair| pair[0].is_some() && pair[1].is_some() && pair[0] != pair[1])
        .count();
    all && turns * 5 >= run.len() * 2
}

/// A value that may be shown, on one line, without the query and the fragment of a URL, which may be secrets.
fn shown(text: &str) -> String {
    let text = one_line(text);
    match text.find(['?', '#']).filter(|_| text.contains("://")) {
        Some(at) => format!("{}{}…", &text[..at], &text[at..=at]),
        None => text,
    }
}

/// A parser's message without the secrets that it quotes from the document: the first text in quotation marks
/// or backquotes is the document's, the rest is the parser's.
pub fn complaint(text: &str) -> String {
    let text = one_line(text);
    for (open, close) in [("string \"", "\", expected"), ("`", "`")] {
        let Some((before, rest)) = text.split_once(open) else { continue };
        let Some((quoted, after)) = rest.split_once(close) else { continue };
        if hidden(quoted).is_some() {
            return format!(
                "{before}{}{}",
                name(quoted),
                format!("{close}{after}").trim_start_matches(['"', '`'])
            );
        }
    }
    name(&text)
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Replaces control characters, so that none reaches the terminal.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_described_by_its_shape_only() {
        for (text, shape) in [
            ("{\"a\": 1}", "JSON"),
            (" {\n  \"a\": 1}", "JSON"),
            ("[\"a\"]", "JSON"),
            ("eyJhIjogMSwgImIiOiAyfQ==", "base64 of JSON"),
            ("ewogICJ0eXBlIjogInNlcnZpY2Vf", "base64 of JSON"),
            ("eyJhbGciOiJSUzI1NiJ9.e30.c2ln", "a JSON Web Token"),
            ("https://u:p@h.example/x", "a URL with a user or a password in it"),
            ("https://u:p/w?x@h.example/x", "a URL with a user or a password in it"),
            ("https://u@h.example", "a URL with a user or a password in it"),
            ("u:p@h.example", "a URL with a user or a password in it"),
            ("a\nb", "several lines"),
            ("GOCSPX-abcdefghij", "a token or key"),
            ("env:ya29.abcdefghijk", "a token or key"),
            ("AWS_SECRET_ACCESS_KEY=short/but/a/secret", "a secret by its name"),
            ("sp=r&sv=2024-11-04&sig=a%2Fb%2Bc", "a secret by its name"),
            ("password: hunter2", "a secret by its name"),
            ("machine a.example login me password hunter2", "a secret by its name"),
            ("Authorization: Basic bWU6aHVudGVyMg==", "a secret by its name"),
            ("attributes.Bearer abcdefghijkl1", "a secret by its name"),
            ("run --db-password hunter2", "a secret by its name"),
            ("<password>hunter2</password>", "a secret by its name"),
            ("curl -u me:pw https://h.example/", "a secret by its name"),
            ("x.py8Q~ab.cd-ef.gh_ij.kl-mn.op_qr.st-uv", "a token or key"),
            ("https%3A%2F%2Fu%3Ap%40h.example", "a URL with a user or a password in it"),
            ("0123456789abcdef0123456789abcdef", "random text"),
            ("aB3dE6gH9jK2mN5pQ8sT1", "random text"),
        ] {
            assert_eq!(name(text), format!("({shape}, not shown)"), "{text}");
            assert_eq!(value(text), format!("a value that holds {shape} (not shown)"));
        }
        assert_eq!(name(&"a ".repeat(200)), "(long text, not shown)");
        assert_eq!(no_path(&format!("-----BEGIN {} KEY-----", "PRIVATE")), Some("a PEM file"));
    }

    #[test]
    fn ordinary_input_is_shown_as_written() {
        for text in [
            "",
            "a",
            "me@example.com",
            "loader@my-project.iam.gserviceaccount.com",
            "my-project-123456",
            "tcp://10.0.0.1:2376",
            "http://[::1]:80/x@y",
            "https://www.googleapis.com/auth/cloud-platform",
            "projects/123456/locations/global/workloadIdentityPools/POOL/providers/NAME",
            "gcr.io/p/i@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "KFP_CREDS_CREDENTIALS_FILE",
            "My-Project-2024-Credentials-File",
            "{name}",
            "serviceAccount:loader@my-project.iam.gserviceaccount.com",
            "info,kfp_creds::token=debug",
            "registry.example/token:latest",
            "Basic classification of documents",
            "env:ACTIONS_ID_TOKEN",
            "/home/me/tokens/password.txt",
        ] {
            assert_eq!(name(text), text);
        }
        assert_eq!(value("https://h.example/x?key=1"), "\"https://h.example/x?…\"");
        assert_eq!(value("https://h.example/x#a=1"), "\"https://h.example/x#…\"");
        assert_eq!(name("a\u{7}b"), "a b");
    }

    #[test]
    fn each_part_of_a_path_is_judged() {
        let shown = |text: &str| path(Path::new(text));
        assert_eq!(shown("/home/me/key.json"), "/home/me/key.json");
        assert_eq!(shown("/home/me/{\"a\": \"b/c\"}"), "/home/me/(JSON, not shown)");
        assert_eq!(shown("/home/me/{\"private_key\": \"b/c\"}"), "(JSON, not shown)");
        assert_eq!(shown("/x/0123456789abcdef0123456789abcdef/diff"), "/x/(random text, not shown)/diff");
        assert_eq!(shown("/x/https://h.example/y#id=z"), "/x/https://h.example/y#…");
        assert_eq!(shown("/x/http://u:p#q@h/y"), "/x/(a URL with a user or a password in it, not shown)");
        assert_eq!(name("/x:http://u:p/q@h"), "(a URL with a user or a password in it, not shown)");
        assert_eq!(shown("/x/SECRET=in/short/parts"), "/x/(a secret by its name, not shown)");
        assert_eq!(shown("/x/http://u:p@h/y"), "/x/(a URL with a user or a password in it, not shown)");
    }

    #[test]
    fn a_parse_error_keeps_its_position_and_cause() {
        assert_eq!(
            complaint("unknown field `eyJhbGciOiJSUzI1NiJ9.e30.c2ln`, expected one of `a`, `b`"),
            "unknown field (a JSON Web Token, not shown), expected one of `a`, `b`"
        );
        assert_eq!(
            complaint("invalid type: string \"x\", expected a map"),
            "invalid type: string \"x\", expected a map"
        );
    }
}
