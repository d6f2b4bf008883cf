//! What profiles are made of.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::profile::{Base, Chain, Files, at_home, words};
use super::sso::Login;
use crate::source::SourceError;
use crate::source::variables::Variables;

/// A home with both files, removed at the end.
struct Home(PathBuf);

impl Home {
    fn new(config: &str, credentials: &str) -> Self {
        let nanos = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let path = std::env::temp_dir().join(format!("kc-profiles-{}-{nanos}", std::process::id()));
        std::fs::create_dir_all(path.join(".aws")).unwrap();
        std::fs::write(path.join(".aws/config"), config).unwrap();
        std::fs::write(path.join(".aws/credentials"), credentials).unwrap();
        Self(path)
    }

    fn chain(&self, name: &str) -> Result<Chain, SourceError> {
        Files::of(&Variables::default(), Some(&self.0)).read()?.chain(name)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn chain(config: &str, credentials: &str, name: &str) -> Result<Chain, SourceError> {
    Home::new(config, credentials).chain(name)
}

fn why(config: &str, name: &str) -> String {
    match chain(config, "", name) {
        Err(SourceError::Refused(why)) if !why.contains("canary") => why.to_string(),
        other => panic!("not a clean refusal: {other:?}"),
    }
}

const KEYS: &str = "aws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = canary-secret\n";

#[test]
fn the_credentials_file_counts_before_the_config() {
    let config =
        "[profile a]\nregion = eu-west-1\naws_access_key_id = WRONG\naws_secret_access_key = canary\n";
    let made = chain(config, &format!("[a]\n{KEYS}aws_session_token = canary-token\n"), "a").unwrap();
    let Base::Keys(keys) = &made.base else { panic!("{made:?}") };
    assert_eq!(keys.id.expose(), "AKIDEXAMPLE");
    assert_eq!(keys.session_token.as_ref().unwrap().expose(), "canary-token");
    assert_eq!(made.region.as_deref(), Some("eu-west-1"));
    assert!(!format!("{made:?}").contains("canary") && made.roles.is_empty());
}

#[test]
fn roles_are_assumed_from_the_last_to_the_first() {
    let config = format!(
        "[profile top]\nrole_arn = arn:3\nsource_profile = middle\nexternal_id = x\nduration_seconds = 1800\n\
         role_session_name = me\n[profile middle]\nrole_arn = arn:2\nsource_profile = base\n[profile base]\n{KEYS}"
    );
    let made = chain(&config, "", "top").unwrap();
    let arns: Vec<_> = made.roles.iter().map(|role| role.arn.as_str()).collect();
    assert_eq!(arns, ["arn:2", "arn:3"]);
    let top = &made.roles[1];
    assert_eq!(top.duration, Some(Duration::from_secs(1800)));
    assert_eq!((top.external_id.as_deref(), top.session_name.as_deref()), (Some("x"), Some("me")));
    assert!(matches!(made.base, Base::Keys(_)));
}

#[test]
fn a_profile_may_be_its_own_source_once() {
    let own = format!("[default]\nrole_arn = arn:1\nsource_profile = default\n{KEYS}");
    let made = chain(&own, "", "default").unwrap();
    assert!(matches!(made.base, Base::Keys(_)) && made.roles.len() == 1);
    assert!(
        why("[default]\nrole_arn = a\nsource_profile = default\n", "default")
            .contains("its own source_profile")
    );
    let circle =
        "[profile a]\nrole_arn = a\nsource_profile = b\n[profile b]\nrole_arn = b\nsource_profile = a\n";
    assert!(why(circle, "a").contains("leads back to itself"));
    let long: String =
        (0..20).map(|n| format!("[profile p{n}]\nrole_arn = a\nsource_profile = p{}\n", n + 1)).collect();
    assert!(why(&long, "p0").contains("too long a chain"));
}

#[test]
fn the_environment_can_hold_the_first_keys() {
    let of = |source: &str| {
        chain(&format!("[profile a]\nrole_arn = r\ncredential_source = {source}\n"), "", "a")
            .map(|made| made.base)
    };
    assert!(matches!(of("Environment"), Ok(Base::Variables)));
    assert!(matches!(of("EcsContainer"), Ok(Base::Container)));
    assert!(matches!(of("Ec2InstanceMetadata"), Ok(Base::Machine)));
    assert!(of("Elsewhere").unwrap_err().to_string().contains("credential_source"));
    let web = chain("[profile a]\nrole_arn = r\nweb_identity_token_file = ~/token\n", "", "a").unwrap();
    let Base::WebIdentity { file, role } = &web.base else { panic!("{web:?}") };
    assert_eq!((at_home(file, Some(Path::new("/h"))), role.arn.as_str()), (PathBuf::from("/h/token"), "r"));
}

#[test]
fn logins_have_a_session_of_their_own_or_not() {
    let role = "sso_account_id = 123456789012\nsso_role_name = Reader\n";
    let place = "sso_start_url = https://corp.example/start\nsso_region = eu-west-1\n";
    let new = format!("[profile a]\nsso_session = corp\n{role}[sso-session corp]\n{place}");
    let old = format!("[profile \"a\"]\n{role}{place}");
    for (config, session) in [(new, Some("corp")), (old, None)] {
        let made = chain(&config, "", "a").unwrap();
        let wanted = Login {
            profile: "a".into(),
            session: session.map(String::from),
            start_url: "https://corp.example/start".into(),
            region: "eu-west-1".into(),
            account: "123456789012".into(),
            role: "Reader".into(),
        };
        assert!(matches!(&made.base, Base::Sso(login) if *login == wanted), "{made:?}");
    }
    assert!(why(&format!("[profile a]\nsso_session = corp\n{role}"), "a").contains("[sso-session corp]"));
    assert!(why(&format!("[profile a]\n{place}"), "a").contains("sso_account_id"));
    let elsewhere = "sso_start_url = x\nsso_region = evil.example/\n";
    assert!(why(&format!("[profile a]\n{role}{elsewhere}"), "a").contains("sso_region"));
}

#[test]
fn an_unusable_profile_is_refused_with_the_next_step() {
    for (section, word) in [
        ("role_arn = r\n", "source_profile"),
        ("role_arn = r\nsource_profile = b\ncredential_source = Environment\n", "keep one"),
        ("role_arn = r\nsource_profile = b\nmfa_serial = arn:mfa\n", "mfa_serial"),
        ("role_arn = r\nsource_profile = b\nduration_seconds = 899\n", "900"),
        ("role_arn = r\nsource_profile = b\nduration_seconds = canary\n", "900"),
        ("role_arn = r\nsource_profile = absent\n", "no AWS profile absent; there are: a"),
        ("login_session = arn:aws:iam::123456789012:user/me\n", "export-credentials"),
        ("region = eu-west-1\n", "has no keys"),
        ("aws_access_key_id = canary\n", "aws_secret_access_key"),
        ("credential_process = \"canary\n", "command line"),
        ("region = evil.example/\naws_access_key_id = A\naws_secret_access_key = canary\n", "region"),
    ] {
        let said = why(&format!("[profile a]\n{section}"), "a");
        assert!(said.contains(word) && said.contains(" a"), "{section}: {said}");
    }
    assert!(why("", "a").contains("aws configure sso"));
    assert!(why("canary", "a").contains("/.aws/config has a line"));
}

#[test]
fn a_fingerprint_changes_with_the_chain_alone() {
    let config = |key: &str, other: &str| {
        format!(
            "[profile a]\nrole_arn = r\nsource_profile = b\n[profile b]\naws_access_key_id = A\n\
             aws_secret_access_key = {key}\n[profile c]\nregion = {other}\n"
        )
    };
    let of = |key: &str, other: &str| chain(&config(key, other), "", "a").unwrap().fingerprint;
    assert_eq!(of("s", "x"), of("s", "y"));
    assert_ne!(of("s", "x"), of("t", "x"));
}

#[test]
fn variables_name_other_files() {
    let home = Home::new("[profile a]\nregion = eu-west-1\n", "");
    let other = home.0.join("other");
    std::fs::write(&other, format!("[profile b]\n{KEYS}")).unwrap();
    let variables: Variables =
        [("AWS_CONFIG_FILE".to_owned(), other.to_string_lossy().into_owned())].into_iter().collect();
    let profiles = Files::of(&variables, Some(&home.0)).read().unwrap();
    assert!(profiles.has_keys("b") && !profiles.has_keys("a") && profiles.chain("a").is_err());
    assert!(Files::of(&Variables::default(), None).read().is_ok_and(|none| !none.has_keys("a")));
}

#[test]
fn a_command_line_is_split_without_a_shell() {
    let of = |line: &str| words(line);
    let all = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    assert_eq!(of("/bin/a  --b=c d"), all(&["/bin/a", "--b=c", "d"]));
    assert_eq!(
        of(r#""/opt/my tool/a" --x="1 2" '' 'a"b' $HOME;ls a\ b"#),
        all(&["/opt/my tool/a", "--x=1 2", "", "a\"b", "$HOME;ls", "a b"])
    );
    assert_eq!(of(r#""a\"b" 'c\d'"#), all(&["a\"b", "c\\d"]));
    assert_eq!(of(" "), all(&[]));
    assert_eq!((of("\"a"), of("a\\")), (None, None));
}
