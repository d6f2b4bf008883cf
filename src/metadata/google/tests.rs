use std::time::Duration;

use super::query::NotSeconds;
use super::*;
use crate::metadata::guards::allowed;
use crate::metadata::{Service, failure_reply, headers};
use crate::secret::Secret;
use crate::token::{Deadline, MintId};

#[test]
fn a_target_is_split_before_it_is_decoded() {
    let names =
        |raw| PathTarget::parse(raw).map(|target| target.segments().map(|s| s.map(String::from)).collect());
    let some = |names: &[&str]| Some(names.iter().map(|name| Some(name.to_string())).collect::<Vec<_>>());
    assert_eq!(names("/"), some(&[]));
    assert_eq!(names("http://metadata"), some(&[]));
    assert_eq!(names("/a/b%40c/"), some(&["a", "b@c"]));
    assert_eq!(names("/%2561"), some(&["%61"]));
    for hostile in ["//", "/.", "/..", "/%2e%2E", "/%2f", "/%00", "/%", "/%g0", "/%ff", "/%0a"] {
        assert_eq!(names(hostile), Some(vec![None]), "{hostile}");
    }
    assert_eq!(names("/a//"), Some(vec![Some("a".into()), None]));
    for opaque in ["", "*", "computeMetadata/v1/", "https://metadata/", "metadata:80", "/a b", "/é", "/\r\n"]
    {
        assert_eq!(names(opaque), None, "{opaque:?}");
    }
}

#[test]
fn an_absolute_target_names_its_host() {
    let target = PathTarget::parse("HTTP://metadata:80?a=/b").unwrap();
    assert_eq!((target.authority, target.path, target.query), (Some("metadata:80"), "/", Some("a=/b")));
    let target = PathTarget::parse("http://user@metadata/x").unwrap();
    assert!(!allowed(target.authority.unwrap(), &View::default()));
}

#[test]
fn the_first_parameter_counts_and_broken_escapes_are_literal() {
    let query =
        Query::parse(Some("%72ecursive=TRUE&recursive=no&alt&audience=https://x/y?z=1%zz&scope=a+b&x=%ff"));
    assert!(query.recursive() && !query.waits() && !query.full());
    assert_eq!(query.alt.as_deref(), Some(""));
    assert_eq!(query.audience.as_deref(), Some("https://x/y?z=1%zz"));
    assert_eq!(query.scopes(), Some("a b"));
    assert!(!Query::parse(Some("alt=json;recursive=true")).recursive());
    assert_eq!(Query::parse(Some("audience=%ff")).audience, None);
}

#[test]
fn wait_for_change_has_a_time_limit() {
    let timeout = |text: &str| Query::parse(Some(&format!("timeout_sec={text}"))).timeout();
    assert_eq!(timeout("60"), Ok(Some(Duration::from_secs(60))));
    assert_eq!(timeout(""), Ok(None));
    assert_eq!(timeout("99999999999999999999999"), Ok(Some(Duration::from_secs(3600))));
    for wrong in ["-1", "1.5", "soon", "%2b1"] {
        assert_eq!(timeout(wrong), Err(NotSeconds), "{wrong}");
    }
}

#[test]
fn hosts_are_compared_as_names() {
    let view = View { hosts: ["127.0.0.1:8174".to_string(), "[::1]".to_string()].into(), ..View::default() };
    for known in
        ["metadata", "METADATA.google.internal.", "metadata.goog:80", "127.0.0.1", "[::1]:8174", "metadata:"]
    {
        assert!(allowed(known, &view), "{known}");
    }
    for foreign in [
        "",
        ".",
        ":80",
        "metadata..",
        "metadata:80x",
        "evil.example",
        "metadata.evil.example",
        "a@metadata",
        "[::1",
    ] {
        assert!(!allowed(foreign, &view), "{foreign}");
    }
}

#[test]
fn values_may_hold_what_json_escapes() {
    let hostile = "a\"b\\c\n\r\t\u{1}\u{7f}é</script>";
    let ask = AccessAsk {
        account: View::default().accounts.remove(0),
        scopes: None,
        enforced: false,
        form: ResponseFormat::Json,
    };
    let now = Now::read();
    let token = AccessToken::new(
        Secret::new(hostile.into()),
        Deadline::after(now, Duration::ZERO),
        Scopes::default(),
    );
    let body = access_reply(&ask, &token, now).body.into_bytes();
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&json["access_token"], &json["expires_in"]), (&hostile.into(), &0.into()));
}

#[test]
fn the_buffer_of_a_token_is_never_grown() {
    for value in ["", "ya29.x", &"\u{1}\"".repeat(500), &"t".repeat(4096)] {
        for form in [ResponseFormat::Json, ResponseFormat::Text] {
            let first = Vec::<u8>::with_capacity(96 + 2 + value.len()).capacity();
            let out = render::token(value, u64::MAX, form);
            let escapes = value.bytes().filter(|b| *b < 0x20 || *b == b'"').count() * 5;
            assert_eq!(out.capacity(), first + escapes, "{form:?} of {} bytes", value.len());
        }
    }
}

#[test]
fn a_token_cannot_be_printed_with_its_reply() {
    let now = Now::read();
    let secret = || Secret::new(String::from("canary-token"));
    let expires = Deadline::after(now, Duration::from_secs(60));
    let ask = AccessAsk {
        account: View::default().accounts.remove(0),
        scopes: None,
        enforced: false,
        form: ResponseFormat::Text,
    };
    let access = access_reply(&ask, &AccessToken::new(secret(), expires, Scopes::default()), now);
    let identity = identity_reply(&IdentityToken { value: secret(), expires, id: MintId::random() });
    for reply in [access, identity] {
        assert!(reply.body.is_secret() && reply.etag.is_none());
        assert!(!format!("{reply:?} {reply:#?}").contains("canary"));
        assert!(!format!("{:?}", headers(&reply)).contains("canary"));
        assert!(String::from_utf8_lossy(&reply.body.into_bytes()).contains("canary-token"));
    }
}

#[test]
fn a_reason_stays_one_line() {
    let reply =
        failure_reply(Service::Google, TokenFailure::Transient, "the token endpoint\r\ndid not answer");
    assert_eq!(&*reply.body.into_bytes(), b"the token endpoint  did not answer");
}

#[test]
fn accounts_of_one_name_are_one_entry_and_the_first_is_default() {
    let account = |email: &str, scope: &str| Account {
        email: email.into(),
        scopes: Scopes::parse(scope),
        service_account: None,
    };
    let view = View {
        accounts: vec![account("z@x", "first"), account("z@x", "second"), account("a@x", "third")],
        ..View::default()
    };
    let dir =
        tree::find(&PathTarget::parse("/computeMetadata/v1/instance/service-accounts/").unwrap(), &view)
            .unwrap();
    assert_eq!(render::listing(&dir), b"a@x/\ndefault/\nz@x/\n");
    let json = String::from_utf8(render::subtree(&dir, ResponseFormat::Json)).unwrap();
    assert_eq!(
        json,
        r#"{"a@x":{"aliases":[],"email":"a@x","scopes":["third"]},"default":{"aliases":["default"],"email":"z@x","scopes":["first"]},"z@x":{"aliases":["default"],"email":"z@x","scopes":["first"]}}"#
    );
    let none = View { accounts: vec![], ..View::default() };
    let path = PathTarget::parse("/computeMetadata/v1/instance/service-accounts/default/token").unwrap();
    assert!(tree::find(&path, &none).is_none());
}

/// Listings follow the order of the declaration, which must be alphabetical; so must JSON, although its names
/// differ.
#[test]
fn the_tree_is_declared_in_alphabetical_order() {
    fn check(spot: &Spot<'_>) {
        let names: Vec<String> = spot.children().into_iter().map(|(name, _)| name.into_owned()).collect();
        if !spot.is_indexed() {
            let camel = |name: &String| {
                name.split('-').map(String::from).reduce(|a, b| a + &b[..1].to_uppercase() + &b[1..])
            };
            assert!(
                names.is_sorted() && (spot.has_custom_names() || names.is_sorted_by_key(camel)),
                "{names:?}"
            );
        }
        spot.children().iter().for_each(|(_, child)| check(child));
    }
    let view = View::default();
    check(&tree::find(&PathTarget::parse("/").unwrap(), &view).unwrap());
}
