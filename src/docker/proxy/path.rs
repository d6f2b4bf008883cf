//! A request's target in one canonical spelling, which is both judged and sent to the engine.
//!
//! The engine decodes escapes before it routes, takes `/containers%2Fcreate` for a create, and accepts
//! `/v01.41/` (recorded on 20.10). So the proxy decodes a target once, refuses it if it is ambiguous, and
//! rewrites it for the engine.

use hyper::Uri;

use super::json::fold;

/// Judged query keys that may not be repeated: the engine reads the first value, other parsers the last.
const SINGLE: &[&str] = &[
    "name",
    "container",
    "networkmode",
    "condition",
    "repo",
    "tag",
    "fromImage",
    "fromSrc",
    "force",
    "buildargs",
    "labels",
    "remote",
];
/// Judged keys that may be repeated.
const REPEATED: &[&str] = &["t", "changes"];

/// A request target after decoding.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct ApiTarget {
    version: Option<String>,
    segments: Vec<String>,
    /// The query as the client sent it; the engine gets the same bytes.
    query: Option<String>,
    pairs: Vec<(String, String)>,
}

/// Endpoints that the proxy judges; everything else is [`Route::Other`] and passes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Route {
    Probe,
    Create,
    /// `action` is empty for the container itself.
    Container {
        name: String,
        action: String,
    },
    ExecStart,
    /// Lists of containers and of networks.
    Containers,
    Networks,
    NetworkCreate,
    Network {
        name: String,
        action: String,
    },
    Image {
        name: String,
        action: String,
    },
    /// An image is pulled or imported.
    ImageCreate,
    ImageLoad,
    VolumeCreate,
    /// A config, secret or service of a swarm is created or updated.
    Swarm,
    Build,
    Commit,
    /// BuildKit's tunnel in which the engine asks the client for the context.
    BuildSession,
    /// BuildKit's tunnel in which the client asks for the build.
    BuildControl,
    /// Podman's own API, through which every judged operation is possible in another form.
    Libpod,
    Other,
}

impl ApiTarget {
    /// Parses a target. The error is a lower-case fragment for the client.
    pub(super) fn parse(uri: &Uri) -> Result<Self, &'static str> {
        let raw = uri.path();
        let decoded = decode(raw)?;
        let mut segments: Vec<String> =
            decoded.strip_prefix('/').ok_or("the path is not absolute")?.split('/').map(Into::into).collect();
        if decoded != "/" && segments.iter().any(|s| matches!(s.as_str(), "" | "." | "..")) {
            return Err("the path has an empty or a dot segment");
        }
        let version = segments.first().filter(|first| looks_like_version(first)).cloned();
        if let Some(version) = &version {
            let libpod = segments.get(1).is_some_and(|segment| is_libpod(segment));
            if !is_version(version) && !libpod {
                return Err("the API version in the path is not of the form v1.41");
            }
            segments.remove(0);
        }
        // Clients send escaped slashes only in image names (docker-java).
        let literal = raw.split('/').nth(if version.is_some() { 2 } else { 1 });
        let names_images = matches!(literal, Some("images" | "distribution" | "plugins"));
        if raw.to_ascii_lowercase().contains("%2f") && !names_images {
            return Err("the path has an escaped slash");
        }
        let (query, pairs) = match uri.query() {
            None => (None, vec![]),
            Some(query) => {
                let create = matches!(segments.as_slice(), [.., a, b] if a == "containers" && b == "create");
                (Some(query.to_string()), pairs(query, create)?)
            }
        };
        Ok(Self { version, segments, query, pairs })
    }

    /// The canonical URI, with the client's version and query.
    pub(super) fn uri(&self) -> Result<Uri, &'static str> {
        let mut text = String::new();
        for segment in self.version.iter().chain(&self.segments) {
            text.push('/');
            encode(segment, &mut text);
        }
        if let Some(query) = &self.query {
            text.push('?');
            text.push_str(query);
        }
        text.parse().map_err(|_| "the path or the query cannot be sent on")
    }

    /// The value of a query key, decoded.
    pub(super) fn query(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The same target with `key` set to this one value in the query.
    pub(super) fn with_query(&self, key: &str, value: &str) -> Self {
        let mut pairs = self.pairs.clone();
        pairs.retain(|(name, _)| name != key);
        pairs.push((key.into(), value.into()));
        let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&pairs).finish();
        Self { query: Some(query), pairs, ..self.clone() }
    }

    pub(super) fn query_keys(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(name, _)| name.as_str())
    }

    pub(super) fn queries<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The same target, addressed to the container `id`, so that the engine acts on the container that the
    /// proxy looked up.
    pub(super) fn with_container(&self, id: &str, action: &str) -> Self {
        let mut segments = vec!["containers".into(), id.into()];
        segments.extend(action.split('/').filter(|part| !part.is_empty()).map(Into::into));
        Self { segments, ..self.clone() }
    }

    /// The route that the engine's router would choose. Its names may contain slashes (`{name:.*}`), so the
    /// action is taken from the end of the path.
    pub(super) fn route(&self, delete: bool) -> Route {
        let parts: Vec<&str> = self.segments.iter().map(String::as_str).collect();
        let named = |rest: &[&str]| match rest {
            [name @ .., "attach", "ws"] if !delete && !name.is_empty() => {
                Some((name.join("/"), "attach/ws".to_string()))
            }
            [name @ .., action] if !delete && !name.is_empty() => Some((name.join("/"), action.to_string())),
            rest => delete.then(|| (rest.join("/"), String::new())),
        };
        match parts.as_slice() {
            ["kfp-creds", "upstream"] => Route::Probe,
            ["containers", "create"] if !delete => Route::Create,
            ["containers", "json"] if !delete => Route::Containers,
            ["networks"] if !delete => Route::Networks,
            ["networks", "create"] if !delete => Route::NetworkCreate,
            ["images", "create"] if !delete => Route::ImageCreate,
            ["images", "load"] if !delete => Route::ImageLoad,
            ["volumes", "create"] if !delete => Route::VolumeCreate,
            ["configs" | "secrets" | "services", "create"] if !delete => Route::Swarm,
            ["services", .., "update"] if !delete => Route::Swarm,
            ["exec", .., "start"] => Route::ExecStart,
            ["build"] => Route::Build,
            ["commit"] => Route::Commit,
            ["session"] => Route::BuildSession,
            ["grpc"] => Route::BuildControl,
            [first, ..] if is_libpod(first) => Route::Libpod,
            ["containers", rest @ ..] => {
                named(rest).map_or(Route::Other, |(name, action)| Route::Container { name, action })
            }
            ["networks", rest @ ..] => {
                named(rest).map_or(Route::Other, |(name, action)| Route::Network { name, action })
            }
            ["images", rest @ ..] => {
                named(rest).map_or(Route::Other, |(name, action)| Route::Image { name, action })
            }
            _ => Route::Other,
        }
    }
}

fn decode(raw: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            escaped(&mut rest).ok_or("the path has a broken escape")?
        } else {
            byte
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| "the path is not UTF-8")?;
    if text.chars().any(|c| c.is_control() || c == ';' || c == '\\') {
        return Err("the path has a character that no name has");
    }
    Ok(text)
}

fn escaped(rest: &mut std::str::Bytes<'_>) -> Option<u8> {
    let mut digit = || char::from(rest.next()?).to_digit(16);
    let (high, low) = (digit()?, digit()?);
    u8::try_from(high * 16 + low).ok()
}

/// Writes `text` percent-encoded, except for characters that have no meaning in a path, so that `text` cannot
/// end the path.
pub(super) fn encode(text: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => out.push(char::from(byte)),
            b'-' | b'.' | b'_' | b'~' | b':' | b'@' | b'!' | b'$' | b'&' | b'(' | b')' | b'*' | b'+'
            | b',' | b'=' => out.push(char::from(byte)),
            other => {
                out.push('%');
                out.push(char::from(HEX[usize::from(other >> 4)]));
                out.push(char::from(HEX[usize::from(other & 15)]));
            }
        }
    }
}

fn is_libpod(segment: &str) -> bool {
    segment.eq_ignore_ascii_case("libpod")
}

/// Docker's own pattern is `v[0-9.]+`, Podman's `v[0-9][0-9A-Za-z.-]*`.
fn looks_like_version(segment: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    segment.strip_prefix('v').is_some_and(|rest| {
        rest.starts_with(|first: char| first.is_ascii_digit() || first == '.') && rest.bytes().all(allowed)
    })
}

fn is_version(segment: &str) -> bool {
    let number = |text: &str| (1..=3).contains(&text.len()) && (text == "0" || !text.starts_with('0'));
    segment[1..]
        .split_once('.')
        .is_some_and(|(major, minor)| number(major) && number(minor) && !minor.contains('.'))
}

/// The pairs of a query. `create`: whether this is the query of a container create. dockerode repeats all
/// options of the body in it (`Labels=…`); the engine reads only the name there.
fn pairs(query: &str, create: bool) -> Result<Vec<(String, String)>, &'static str> {
    // Engines built with Go before 1.17 treat `;` as a separator, later ones drop the pair.
    if query.contains(';') {
        return Err("the query has a semicolon");
    }
    let mut rest = query.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' && escaped(&mut rest).is_none() {
            return Err("the query has a broken escape");
        }
    }
    let pairs: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let single = if create { &SINGLE[..1] } else { SINGLE };
    let repeated = if create { &[] } else { REPEATED };
    if single.iter().any(|key| pairs.iter().filter(|(name, _)| name == key).count() > 1) {
        return Err("the query names the same key twice");
    }
    // Podman matches keys case-insensitively, Docker case-sensitively.
    let judged = || single.iter().chain(repeated);
    let folds = |name: &str| judged().any(|key| *key != name && fold(key) == fold(name));
    if pairs.iter().any(|(name, _)| folds(name)) {
        return Err("the query spells a key in another case");
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Result<ApiTarget, &'static str> {
        ApiTarget::parse(&text.parse().unwrap())
    }

    #[test]
    fn targets_are_rewritten_to_one_canonical_spelling() {
        for (asked, sent) in [
            ("/v1.41/containers/create?name=a", "/v1.41/containers/create?name=a"),
            ("/%63ontainers/create", "/containers/create"),
            ("http://docker/v1.41/info", "/v1.41/info"),
            ("/v1.41/images/localhost:5000/a/b:c/json", "/v1.41/images/localhost:5000/a/b:c/json"),
            ("/v1.41/images/localhost%3A5000%2Fa/json", "/v1.41/images/localhost:5000/a/json"),
            ("/containers/a%3Fb/json", "/containers/a%3Fb/json"),
            ("/images/a%20b/json?x=%2F%2B", "/images/a%20b/json?x=%2F%2B"),
        ] {
            assert_eq!(target(asked).unwrap().uri().unwrap().to_string(), sent, "{asked}");
        }
    }

    #[test]
    fn ambiguous_targets_are_refused() {
        for bad in [
            "//containers/create",
            "/./containers/create",
            "/x/../containers/create",
            "/%2e%2e/containers/create",
            "/containers%2Fcreate",
            "/containers%2fcreate",
            "/images%2Fcreate",
            "/containers/create/",
            "/containers/create;x",
            "/containers/create%3Bx",
            "/containers/create%00",
            "/containers/create%0a",
            "/containers/%ff/json",
            "/containers/%zz/json",
            "/containers/%2",
            "/v01.41/containers/create",
            "/v1.041/containers/create",
            "/v1/containers/create",
            "/v1.41-x/containers/create",
            "/v5.0.0/containers/create",
            "/v1.41rc1/containers/create",
            "/containers/create?NAME=a",
            "/containers/create?Name=a",
            "/images/create?fromimage=a",
            "/build?networkmode=a&networKmode=b",
            "/build?T=a",
            "/v1.41.0/containers/create",
            "/v1..41/containers/create",
            "/containers/create?name=a&name=b",
            "/containers/create?name=a&na%6De=b",
            "/containers/create?name=a;name=b",
            "/commit?container=a&container=b",
            "/commit?container=%",
        ] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_may_contain_slashes_as_in_the_engines_router() {
        let container =
            |name: &str, action: &str| Route::Container { name: name.into(), action: action.into() };
        for (path, delete, route) in [
            ("/containers/create", false, Route::Create),
            ("/v1.41/containers/%63reate", false, Route::Create),
            ("/containers/create", true, container("create", "")),
            ("/containers/json", false, Route::Containers),
            ("/v1.41/networks", false, Route::Networks),
            ("/containers/a/attach", false, container("a", "attach")),
            ("/containers/a/attach/ws", false, container("a", "attach/ws")),
            ("/containers/a/b/exec", false, container("a/b", "exec")),
            ("/containers/a/b", true, container("a/b", "")),
            ("/V1.41/containers/create", false, Route::Other),
            ("/libpod/_ping", false, Route::Libpod),
            ("/libpod", false, Route::Libpod),
            ("/v5.0/libpod/containers/create", false, Route::Libpod),
            ("/v5.0.0/libpod/containers/create", false, Route::Libpod),
            ("/v5-x/libpod/networks/create", false, Route::Libpod),
            ("/v5.0.0/%6cib%70od/containers/a", true, Route::Libpod),
            ("/LIBPOD/info", false, Route::Libpod),
            ("/containers/libpod/json", false, container("libpod", "json")),
            ("/exec/a/start", false, Route::ExecStart),
            ("/session", false, Route::BuildSession),
            ("/grpc", false, Route::BuildControl),
        ] {
            assert_eq!(target(path).unwrap().route(delete), route, "{path}");
        }
    }
}
