//! What bytes are: the one function that everything else asks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use zeroize::Zeroizing;

use super::Kind;
use super::environment::SECRET;
use super::text::{
    has, is_aws_secret, is_base64, is_template, is_text, passwords, places, token, value, values,
};

/// How much of a file is judged: credential files are small.
pub const HEAD: usize = 1 << 20;

/// The kind of secret that `bytes` (a file, a value, or the beginning of either) hold; the first that is
/// found. Time is linear in the length, of which the first [`HEAD`] bytes count.
pub fn what(bytes: &[u8]) -> Option<Kind> {
    let bytes = &bytes[..bytes.len().min(HEAD)];
    if bytes.len() < 24 {
        return None;
    }
    if bytes.starts_with(b"SQLite format 3\0") {
        return database(bytes);
    }
    if bytes[0] == 0x30 && is_der_key(bytes) {
        return Some(Kind::PrivateKey);
    }
    if let Some(kind) = pem(bytes) {
        return Some(kind);
    }
    if !is_text(bytes) {
        return None;
    }
    google(bytes)
        .or_else(|| aws(bytes))
        .or_else(|| azure(bytes))
        .or_else(|| kubeconfig(bytes))
        .or_else(|| registry(bytes))
        .or_else(|| netrc(bytes))
        .or_else(|| assigned(bytes))
        .or_else(|| encoded(bytes))
}

/// gcloud keeps logins in `credentials.db` and tokens in `access_tokens.db`; one without rows is harmless.
fn database(bytes: &[u8]) -> Option<Kind> {
    let logins = has(bytes, "credentials") && has(bytes, "account_id");
    let filled = has(bytes, "refresh_token") || has(bytes, "private_key") || has(bytes, "external_account");
    let tokens = has(bytes, "access_tokens") && has(bytes, "ya29.");
    ((logins && filled) || tokens).then_some(Kind::GcloudDatabase)
}

/// RFC 5958 (also encrypted), RFC 8017 and RFC 5915 in DER, and PKCS#12 with a key bag: the outer length must be
/// the file's.
fn is_der_key(bytes: &[u8]) -> bool {
    const VERSION_0: [u8; 3] = [0x02, 0x01, 0x00];
    const RSA: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    const EC: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    /// X25519, X448, Ed25519 and Ed448 end in 110 to 113.
    const CURVES: [u8; 4] = [0x06, 0x03, 0x2b, 0x65];
    const PBES2: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
    /// 1 is a key as it is, 2 an encrypted one.
    const KEY_BAG: [u8; 10] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01];
    let (length, head) = match bytes[1] {
        short @ 0..=0x7f => (usize::from(short), 2),
        0x81 => (usize::from(bytes[2]), 3),
        0x82 => (usize::from(bytes[2]) << 8 | usize::from(bytes[3]), 4),
        _ => return false,
    };
    if length + head != bytes.len() {
        return false;
    }
    let inside = &bytes[head..];
    let holds = |part: &[u8], window: usize| {
        memchr::memmem::find(&inside[..inside.len().min(window)], part).is_some()
    };
    if inside.starts_with(&VERSION_0) {
        // PKCS#1 has the modulus next, PKCS#8 the algorithm.
        return inside[3] == 0x02
            || (inside[3] == 0x30 && (holds(&RSA, 24) || holds(&EC, 24) || holds(&CURVES, 24)));
    }
    // The key is next, then the curve or the public key, or nothing.
    let sec1 = match inside {
        [0x02, 0x01, 0x01, 0x04, length @ 0x10..=0x48, rest @ ..] => {
            matches!(rest.get(usize::from(*length)), None | Some(0xa0 | 0xa1))
        }
        _ => false,
    };
    let encrypted = matches!(inside, [0x30, ..]) && holds(&PBES2, 24);
    let bags = || memchr::memmem::find_iter(inside, &KEY_BAG).map(|at| inside.get(at + KEY_BAG.len()));
    let pkcs12 = || inside.starts_with(&[0x02, 0x01, 0x03]) && bags().any(|bag| matches!(bag, Some(1 | 2)));
    sec1 || encrypted || pkcs12()
}

/// A private key in PEM, also inside a JSON string; with the account's name around it a Google key.
fn pem(bytes: &[u8]) -> Option<Kind> {
    for at in places(bytes, "PRIVATE KEY") {
        let before = &bytes[at.saturating_sub(40)..at];
        let after = &bytes[at + "PRIVATE KEY".len()..];
        let after = after.strip_prefix(b" BLOCK").unwrap_or(after);
        if !has(before, "-----BEGIN ") || !after.starts_with(b"-----") || !is_key_body(&after[5..]) {
            continue;
        }
        let google = has(bytes, "service_account") || (has(bytes, "client_email") && has(bytes, "token_uri"));
        return Some(if google { Kind::ServiceAccountKey } else { Kind::PrivateKey });
    }
    let putty = bytes.starts_with(b"PuTTY-User-Key-File-") && has(bytes, "Private-Lines:");
    putty.then_some(Kind::PrivateKey)
}

/// At least sixty characters of base64: the shortest real key has 64. Line ends may be escaped, and old
/// keys have header lines (RFC 1421) before the body.
fn is_key_body(body: &[u8]) -> bool {
    let mut count = 0;
    let mut rest = &body[..body.len().min(2048)];
    let first = rest.iter().position(|b| !b.is_ascii_whitespace() && *b != b'\\').unwrap_or(0);
    let headers = rest[first..].starts_with(b"Proc-Type:") || rest[first..].starts_with(b"nProc-Type:");
    if headers
        || has(&rest[..rest.len().min(128)], "Version: ")
        || has(&rest[..rest.len().min(512)], "DEK-Info:")
    {
        let blank = places(rest, "\n\n").chain(places(rest, "\n\r\n")).chain(places(rest, "\\n\\n")).min();
        rest = &rest[blank.unwrap_or(0)..];
    }
    while let Some((byte, more)) = rest.split_first() {
        rest = more;
        match byte {
            b'\\' => {
                // `\n`, `\\n`, `\r`: the letter belongs to the escape.
                if let [b'n' | b'r', more @ ..] = rest {
                    rest = more;
                }
            }
            b if is_base64(*b) => count += 1,
            b if b.is_ascii_whitespace() || matches!(b, b'"' | b'\'' | b'+' | b'|') => {}
            _ => break,
        }
        if count >= 60 {
            return true;
        }
    }
    false
}

/// Application default credentials of every type, and gcloud's own files.
fn google(bytes: &[u8]) -> Option<Kind> {
    let typed = |kind: &str| values(bytes, "type").any(|value| value == kind.as_bytes());
    // Examples in the documents of OAuth have refresh tokens too; Google's begin with `1/`.
    let of_google = |token: &[u8]| {
        token.starts_with(b"1/") || typed("authorized_user") || typed("external_account_authorized_user")
    };
    if token(bytes, "refresh_token").is_some_and(of_google)
        && (value(bytes, "client_secret").is_some() || value(bytes, "client_id").is_some())
    {
        return Some(match () {
            () if has(bytes, "external_account_authorized_user") => Kind::ExternalAccountUser,
            () if has(bytes, "impersonated_service_account") => Kind::ImpersonatedAccount,
            () => Kind::AuthorizedUser,
        });
    }
    if token(bytes, "gs_oauth2_refresh_token").is_some() {
        return Some(Kind::AuthorizedUser);
    }
    if has(bytes, "impersonated_service_account")
        && has(bytes, "source_credentials")
        && typed("impersonated_service_account")
    {
        return Some(Kind::ImpersonatedAccount);
    }
    if has(bytes, "external_account")
        && value(bytes, "subject_token_type").is_some()
        && has(bytes, "credential_source")
        && typed("external_account")
    {
        return Some(Kind::ExternalAccount);
    }
    None
}

fn aws(bytes: &[u8]) -> Option<Kind> {
    const NAMES: [&str; 6] = [
        "aws_secret_access_key",
        "AWS_SECRET_ACCESS_KEY",
        "SecretAccessKey",
        "secretAccessKey",
        "secret_access_key",
        "aws_secret_key",
    ];
    let secret = has(bytes, "ecret") || has(bytes, "SECRET");
    if secret && NAMES.iter().any(|name| values(bytes, name).any(is_aws_secret)) {
        return Some(Kind::AwsKey);
    }
    // A key id with a secret beside it, as in the CSV of the console.
    let mut ids = places(bytes, "AKIA").chain(places(bytes, "ASIA"));
    let paired = ids.any(|at| {
        let id = &bytes[at..bytes.len().min(at + 20)];
        let whole = id.len() == 20 && id.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
        whole && !has(id, "EXAMPLE") && has_secret(&bytes[at.saturating_sub(200)..bytes.len().min(at + 200)])
    });
    paired.then_some(Kind::AwsKey)
}

fn has_secret(around: &[u8]) -> bool {
    around.split(|b| !is_base64(*b)).any(is_aws_secret)
}

/// The Azure command line's caches and service principals; `azureProfile.json` holds no secret.
fn azure(bytes: &[u8]) -> Option<Kind> {
    let msal = has(bytes, "home_account_id") && token(bytes, "secret").is_some();
    let adal = has(bytes, "_authority") && token(bytes, "refreshToken").is_some();
    let principal = (has(bytes, "servicePrincipalId") && token(bytes, "accessToken").is_some())
        || (has(bytes, "tenant")
            && ((token(bytes, "clientSecret").is_some() && value(bytes, "clientId").is_some())
                || (value(bytes, "client_secret").is_some() && value(bytes, "client_id").is_some())
                || (value(bytes, "appId").is_some() && token(bytes, "password").is_some())));
    if msal || adal || principal {
        return Some(Kind::AzureLogin);
    }
    // The key that every copy of Azurite has is no secret.
    let storage = places(bytes, "AccountKey=").any(|at| {
        let key = &bytes[at + "AccountKey=".len()..];
        let length = key.iter().take_while(|b| is_base64(**b)).count();
        length >= 80 && !key.starts_with(b"Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1")
    });
    storage.then_some(Kind::AzureKey)
}

fn kubeconfig(bytes: &[u8]) -> Option<Kind> {
    let known = [
        "apiVersion:",
        "kind:",
        "clusters:",
        "contexts:",
        "current-context:",
        "users:",
        "preferences:",
        "{",
        "---",
    ];
    let first = first_line(bytes);
    let begins = known.iter().any(|start| first.starts_with(start.as_bytes()));
    let shape = begins && has(bytes, "clusters") && has(bytes, "users") && has(bytes, "current-context");
    let filled = || {
        ["client-key-data", "token"].iter().any(|name| value(bytes, name).is_some())
            || passwords(bytes, "password").next().is_some()
    };
    (shape && filled()).then_some(Kind::Kubeconfig)
}

/// `~/.docker/config.json` with a login in it; one that only names a helper has none.
fn registry(bytes: &[u8]) -> Option<Kind> {
    let login = has(bytes, "\"auths\"")
        && (value(bytes, "auth").is_some() || value(bytes, "identitytoken").is_some());
    login.then_some(Kind::RegistryLogin)
}

/// The first that is neither blank nor a comment.
fn first_line(bytes: &[u8]) -> &[u8] {
    let mut lines = bytes.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
    lines.find(|line| !line.is_empty() && !line.starts_with(b"#")).unwrap_or_default()
}

/// A file of `machine HOST login USER password SECRET`, comments and macros aside.
fn netrc(bytes: &[u8]) -> Option<Kind> {
    let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.trim_ascii_start().starts_with(b"#"));
    let words = lines.flat_map(|line| line.split(u8::is_ascii_whitespace));
    let mut words = words.filter(|word| !word.is_empty());
    match words.next()? {
        b"machine" => drop(words.next()),
        b"default" => {}
        _ => return None,
    }
    // Prose about machines goes on in another way.
    let mut last = words.next()?;
    if !matches!(last, b"login" | b"password" | b"account" | b"macdef") {
        return None;
    }
    let filled = words.any(|word| std::mem::replace(&mut last, word) == b"password" && !is_template(word));
    filled.then_some(Kind::Netrc)
}

/// `NAME=value` of a known name at the beginning of a line, as in `.env` files, scripts and Dockerfiles.
fn assigned(bytes: &[u8]) -> Option<Kind> {
    if !["SECRET", "TOKEN", "_KEY", "PASSWORD", "CONNECTION_STRING"].iter().any(|part| has(bytes, part)) {
        return None;
    }
    SECRET.iter().find_map(|(name, kind)| {
        let filled = places(bytes, name).any(|at| {
            let start = memchr::memrchr(b'\n', &bytes[..at]).map_or(0, |at| at + 1);
            let lead = bytes[start..at].trim_ascii();
            let leads = matches!(lead, b"" | b"export" | b"ENV" | b"ARG" | b"set" | b"-" | b"\"" | b"- \"");
            let value = bytes[at..].split(|b| *b == b'\n').next().unwrap_or_default();
            leads
                && value.get(name.len()).is_some_and(|b| matches!(b, b'=' | b':' | b' ' | b'"'))
                && token(value, name).is_some_and(|value| value.len() >= 20)
        });
        filled.then_some(*kind)
    })
}

/// What base64 hides in plain sight: PEM and key files in Kubernetes secrets, kubeconfigs and variables.
fn encoded(bytes: &[u8]) -> Option<Kind> {
    // `-----BEGIN `, `{"type`, `{\n  "t`, `{ "type`.
    for start in ["LS0tLS1CRUdJTi", "eyJ0eXBl", "ewogICJ0", "eyAidHlwZS", "ewogICAgIn"] {
        for at in places(bytes, start) {
            let run = &bytes[at..bytes.len().min(at + (16 << 10))];
            let run = &run[..run.iter().take_while(|b| is_base64(**b)).count() & !3];
            let Ok(plain) = STANDARD_NO_PAD.decode(run).map(Zeroizing::new) else { continue };
            if let found @ Some(_) = pem(&plain).or_else(|| google(&plain)) {
                return found;
            }
        }
    }
    None
}
