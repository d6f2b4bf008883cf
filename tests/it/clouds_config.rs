//! `[aws]`, `[azure]` and their parts of an identity, as a user writes them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use kfp_creds::cloud::Cloud;
use kfp_creds::config::{self, Config, Environment, Overrides};
use kfp_creds::source::aws::AwsCredentials;
use kfp_creds::source::azure::AzureCredentials;

/// A home with the user's own config file in it, removed at the end.
struct Home(PathBuf);

impl Home {
    fn new(text: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let at = std::env::temp_dir().join(format!("kfp-creds-it-clouds-{}-{number}", std::process::id()));
        fs::create_dir_all(at.join(".config/kfp-creds")).unwrap();
        fs::write(at.join(".config/kfp-creds/config.toml"), text).unwrap();
        Self(at)
    }

    fn resolve(&self, variables: &[(&str, &str)]) -> Result<Config, String> {
        let own = [("HOME".to_owned(), self.0.display().to_string())];
        let all = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let env = Environment { variables: all.chain(own).collect(), cwd: self.0.clone() };
        config::resolve(&Overrides::default(), &env).map_err(|problems| problems.to_string())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn resolve(text: &str) -> Result<Config, String> {
    Home::new(text).resolve(&[])
}

fn objection(text: &str) -> String {
    resolve(text).map(|config| config.summary()).unwrap_err()
}

const WHOLE: &str = r#"
[aws]
profile = "dev"
region = "eu-west-1"
[azure]
credentials = "az"
tenant = "contoso.example"
[identity.loader]
google = false
[identity.loader.aws]
role = "arn:aws:iam::123456789012:role/kfp-loader"
policy = "loader.json"
policy_arns = ["arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess"]
lifetime = "15m"
tags = true
source_identity = "me@corp.example"
[identity.loader.azure]
resources = ["https://storage.azure.com"]
"#;

#[test]
fn a_cloud_without_a_table_is_absent() {
    let config = resolve("").unwrap();
    assert!(config.aws.is_none() && config.azure.is_none());
    let identity = config.policy.default.unwrap();
    assert_eq!(Cloud::ALL.map(|cloud| identity.has(cloud)), [true, false, false]);
}

#[test]
fn an_identity_has_a_part_for_each_cloud() {
    let home = Home::new(WHOLE);
    let file = home.0.join(".config/kfp-creds/loader.json");
    fs::write(&file, "{ \"Version\": \"2012-10-17\",\n  \"Statement\": [] }").unwrap();
    let config = home.resolve(&[]).unwrap();
    assert_eq!(config.aws.as_ref().unwrap().credentials, AwsCredentials::Profile("dev".into()));
    assert_eq!(config.azure.as_ref().unwrap().credentials, AzureCredentials::Az);
    let identity = &config.identities["loader"];
    assert_eq!(Cloud::ALL.map(|cloud| identity.has(cloud)), [false, true, true]);
    let aws = identity.aws.as_ref().unwrap();
    assert_eq!(aws.policy.as_deref(), Some(r#"{"Version":"2012-10-17","Statement":[]}"#));
    assert_eq!((aws.lifetime.as_secs(), aws.role_name()), (900, "kfp-loader"));
    let summary = config.summary();
    for part in [
        "aws           the profile dev, region eu-west-1\n",
        "azure         the Azure command line, tenant contoso.example\n",
        "loader: nothing of Google, ",
        "on AWS the role arn:aws:iam::123456789012:role/kfp-loader, 900 s, narrowed by a session policy",
        "on Azure your own principal, resources https://storage.azure.com",
    ] {
        assert!(summary.contains(part), "{part}: {summary}");
    }
}

#[test]
fn variables_set_the_credentials_and_offline_covers_all() {
    let home = Home::new("[aws]\nprofile = \"dev\"\n[azure]\ncredentials = \"az\"\n");
    let config = home.resolve(&[("KFP_CREDS_CREDENTIALS", "offline")]).unwrap();
    assert_eq!(config.aws.unwrap().credentials, AwsCredentials::Offline);
    assert_eq!(config.azure.unwrap().credentials, AzureCredentials::Offline);
    let home = Home::new("");
    let config =
        home.resolve(&[("KFP_CREDS_AWS_PROFILE", "ci"), ("KFP_CREDS_AWS_REGION", "eu-west-1")]).unwrap();
    let aws = config.aws.unwrap();
    assert_eq!(
        (aws.credentials, aws.region.as_deref()),
        (AwsCredentials::Profile("ci".into()), Some("eu-west-1"))
    );
}

#[test]
fn a_variable_replaces_how_a_file_gets_credentials() {
    let text = "[aws]\nexec = [\"get\"]\ntimeout = \"9s\"\npass = [\"X\"]\nregion = \"eu-west-1\"\n\
                [azure]\nexec = [\"get\"]\ntenant = \"corp.example\"\n";
    let home = Home::new(text);
    let config =
        home.resolve(&[("KFP_CREDS_AWS_PROFILE", "ci"), ("KFP_CREDS_AZURE_CREDENTIALS", "az")]).unwrap();
    let (aws, azure) = (config.aws.unwrap(), config.azure.unwrap());
    assert_eq!(aws.credentials, AwsCredentials::Profile("ci".into()));
    assert_eq!((aws.region.as_deref(), azure.tenant.as_deref()), (Some("eu-west-1"), Some("corp.example")));
    assert_eq!(azure.credentials, AzureCredentials::Az);
    let both = [("KFP_CREDS_AWS_PROFILE", "ci"), ("KFP_CREDS_AWS_CREDENTIALS", "machine")];
    assert!(home.resolve(&both).unwrap_err().contains("has more than one of"));
}

#[test]
fn a_region_or_client_variable_alone_enables_no_cloud() {
    let home = Home::new("");
    let client = "01234567-89ab-cdef-0123-456789abcdef";
    let config = home.resolve(&[
        ("KFP_CREDS_AWS_REGION", "eu-west-1"),
        ("KFP_CREDS_AZURE_TENANT", "corp.example"),
        ("KFP_CREDS_AZURE_CLIENT_ID", client),
    ]);
    let config = config.unwrap();
    assert!(config.aws.is_none() && config.azure.is_none());
}

#[test]
fn a_token_file_variable_is_relative_to_the_work_directory() {
    let home = Home::new(
        "[azure]\ntoken_from = \"file:token\"\ntenant = \"corp.example\"\n\
                          client_id = \"01234567-89ab-cdef-0123-456789abcdef\"\n",
    );
    let config = home.resolve(&[("KFP_CREDS_AWS_TOKEN_FROM", "file:token")]).unwrap();
    let place = |folder: PathBuf| format!("file:{}", folder.join("token").display());
    match config.aws.unwrap().credentials {
        AwsCredentials::WebIdentity { token_from, .. } => assert_eq!(token_from, place(home.0.clone())),
        other => panic!("{other:?}"),
    }
    match config.azure.unwrap().credentials {
        AzureCredentials::Federated { token_from, .. } => {
            assert_eq!(token_from, place(home.0.join(".config/kfp-creds")));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_resource_is_checked_by_one_rule() {
    let text = "[azure]\ncredentials = \"az\"\n[identity.a.azure]\n\
                resources = [\"urn:example:app\", \"https://storage.azure.com/\"]\n";
    let identity = resolve(text).unwrap().identities["a"].azure.clone().unwrap();
    assert_eq!(identity.resources, ["urn:example:app", "https://storage.azure.com"]);
}

#[test]
fn mistakes_in_a_cloud_table_are_reported_with_a_fix() {
    let role = "role = \"arn:aws:iam::123456789012:role/r\"";
    let aws = "[aws]\nprofile = \"dev\"\n";
    let az = "[azure]\ncredentials = \"az\"\n";
    let web = "[aws]\ntoken_from = \"github\"\n";
    let client = "client_id = \"01234567-89ab-cdef-0123-456789abcdef\"";
    for (text, expected) in [
        (
            "[aws]\nregion = \"eu-west-1\"\n".to_owned(),
            "has to say one of credentials, profile, exec or token_from",
        ),
        ("[aws]\nprofile = \"dev\"\ncredentials = \"machine\"\n".into(), "has more than one of"),
        ("[azure]\n".into(), "has to say one of credentials, exec or token_from"),
        ("[azure]\ntoken_from = \"github\"\n".into(), "needs tenant and client_id"),
        (format!("[identity.a.aws]\n{role}\n"), "needs [aws]"),
        (format!("{aws}[identity.a.aws]\n"), "has to name a role, or own_session = true"),
        (format!("{aws}[identity.a.aws]\n{role}\nown_session = true\n"), "keep one of them"),
        (format!("{aws}[identity.a.aws]\nown_session = true\ntags = true\n"), "are for a role"),
        (format!("{aws}[identity.a.aws]\nrole = \"loader\"\n"), "has to be an ARN"),
        (format!("{aws}[identity.a.aws]\nrole = \"arn:aws:iam::1:user/me\"\n"), "has to be an ARN"),
        (format!("{aws}[identity.a.aws]\n{role}\nlifetime = \"14m\"\n"), "from 900 s to 12 h"),
        (format!("{aws}[identity.a.aws]\n{role}\nlifetime = \"13h\"\n"), "from 900 s to 12 h"),
        (format!("{aws}[identity.a.aws]\n{role}\npolicy = \"none.json\"\n"), "cannot be read"),
        (format!("{aws}[identity.a.aws]\n{role}\nexternal_id = \"x\"\n"), "has to be 2 to 1224"),
        (format!("{az}[identity.a.azure]\nclient_id = \"me\"\n"), "has to be a client id"),
        (format!("{az}[identity.a.azure]\nresources = [\"storage\"]\n"), "has to be a resource"),
        (format!("{az}[identity.a.azure]\nresources = [\"https://\"]\n"), "has to be a resource"),
        (format!("{az}[identity.a.azure]\nresources = [\"https://a.example//\"]\n"), "has to be a resource"),
        (format!("{az}[identity.a.azure]\nresources = ['https://x\"y']\n"), "has to be a resource"),
        (format!("{aws}[identity.a.aws]\n{role}\nsource_identity = \"me:you\"\n"), "characters of _+=,.@-"),
        (format!("{aws}[identity.a.aws]\n{role}\nsource_identity = \"me/you\"\n"), "characters of _+=,.@-"),
        (format!("{az}[identity.a.azure]\n{client}\n"), "of their own principal only"),
        (format!("{az}{client}\n"), "of their own principal only"),
        (format!("[azure]\nexec = [\"get\"]\n[identity.a.azure]\n{client}\n"), "of their own principal only"),
        (
            format!("{web}[identity.a.aws]\nown_session = true\n"),
            "`identity.a.aws.own_session`: has no effect",
        ),
        (format!("{web}[identity.a.aws]\n{role}\ntags = true\n"), "`identity.a.aws.tags`: has no effect"),
        (format!("{web}[identity.a.aws]\n{role}\nexternal_id = \"xx\"\n"), "external_id`: has no effect"),
        (
            format!("{web}[identity.a.aws]\n{role}\nsource_identity = \"xx\"\n"),
            "source_identity`: has no effect",
        ),
        ("[identity.a.azure]\n".into(), "needs [azure]"),
        ("[aws]\nprofile = \"dev\"\nregoin = \"x\"\n".into(), "did you mean `region`?"),
    ] {
        let told = objection(&text);
        assert!(told.contains(expected), "{text}: {told}");
    }
}

#[test]
fn a_session_policy_must_be_valid_and_fit_the_limit() {
    let text = "[aws]\nprofile = \"dev\"\n[identity.a.aws]\nrole = \"arn:aws:iam::123456789012:role/r\"\npolicy = \"p.json\"\n";
    let long = format!("{{\"Statement\":[\"{}\"]}}", "x".repeat(2048));
    for (content, expected) in [("{", "is no JSON"), ("{}", "has no Statement"), (&long, "longer than 2048")]
    {
        let home = Home::new(text);
        fs::write(home.0.join(".config/kfp-creds/p.json"), content).unwrap();
        let told = home.resolve(&[]).unwrap_err();
        assert!(told.contains(expected) && !told.contains("xxx"), "{told}");
    }
}

#[test]
fn a_session_policy_is_trusted_with_the_file_that_names_it() {
    let home = Home::new("");
    let project = home.0.join("project");
    fs::create_dir_all(&project).unwrap();
    let role = "role = \"arn:aws:iam::123456789012:role/r\"";
    let text = format!("[aws]\nprofile = \"dev\"\n[identity.a.aws]\n{role}\npolicy = \"p.json\"\n");
    fs::write(project.join("kfp-creds.toml"), text).unwrap();
    fs::write(project.join("p.json"), r#"{"Statement": []}"#).unwrap();
    let own = [("HOME".to_owned(), home.0.display().to_string())];
    let env = Environment { variables: own.into_iter().collect(), cwd: project.clone() };
    let flags = Overrides::default();
    assert!(config::resolve(&flags, &env).is_err());
    let told = config::trust(&flags, &env).unwrap().to_string();
    assert!(told.contains("and the session policy") && told.contains("p.json"), "{told}");
    let config = config::resolve(&flags, &env).unwrap();
    assert_eq!(config.policies, [project.join("p.json")]);
    fs::write(project.join("p.json"), r#"{"Statement": ["wider"]}"#).unwrap();
    let told = config::resolve(&flags, &env).unwrap_err().to_string();
    assert!(told.contains("kfp-creds config trust"), "{told}");
    assert!(matches!(config::reread(&config, &env), Err(config::ReloadError::Untrusted(_))));
    fs::write(project.join("p.json"), r#"{"Statement": []}"#).unwrap();
    assert!(config::reread(&config, &env).is_ok());
}

#[test]
fn a_policy_must_be_a_small_file_that_only_its_owner_writes() {
    let text = "[aws]\nprofile = \"dev\"\n[identity.a.aws]\nrole = \"arn:aws:iam::123456789012:role/r\"\npolicy = \"p.json\"\n";
    let home = Home::new(text);
    let file = home.0.join(".config/kfp-creds/p.json");
    let made = std::process::Command::new("mkfifo").arg(&file).status().unwrap();
    assert!(made.success() && home.resolve(&[]).unwrap_err().contains("is not a file"));
    fs::remove_file(&file).unwrap();
    fs::write(&file, format!("{{\"Statement\": []{}}}", " ".repeat(64 << 10))).unwrap();
    assert!(home.resolve(&[]).unwrap_err().contains("larger than 64 KiB"));
    fs::write(&file, r#"{"Statement": []}"#).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(home.resolve(&[]).unwrap_err().contains("everybody can write it"));
}

#[test]
fn a_projects_file_enables_no_cloud_before_it_is_trusted() {
    let home = Home::new("");
    fs::create_dir_all(home.0.join("project")).unwrap();
    fs::write(home.0.join("project/kfp-creds.toml"), "[aws]\nprofile = \"admin\"\n").unwrap();
    let own = [("HOME".to_owned(), home.0.display().to_string())];
    let env = Environment { variables: own.into_iter().collect(), cwd: home.0.join("project") };
    let told = config::resolve(&Overrides::default(), &env).unwrap_err().to_string();
    assert!(told.contains("`aws.profile`") && told.contains("kfp-creds config trust"), "{told}");
    // The clouds come from the user's own file, but the project's file chooses what the login is used for.
    fs::write(home.0.join(".config/kfp-creds/config.toml"), "").unwrap();
    let parts = "[identity.a.aws]\nrole = \"arn:aws:iam::123456789012:role/admin\"\npolicy_arns = []\nlifetime = \"1h\"\n\
                 tags = true\nsource_identity = \"me\"\nexternal_id = \"xx\"\n[identity.a.azure]\nresources = []\n\
                 client_id = \"01234567-89ab-cdef-0123-456789abcdef\"\n";
    fs::write(home.0.join("project/kfp-creds.toml"), parts).unwrap();
    let told = config::resolve(&Overrides::default(), &env).unwrap_err().to_string();
    for key in ["role", "policy_arns", "lifetime", "tags", "source_identity", "external_id"] {
        assert!(told.contains(&format!("`identity.a.aws.{key}`")), "{key}: {told}");
    }
    for key in ["resources", "client_id"] {
        assert!(told.contains(&format!("`identity.a.azure.{key}`")), "{key}: {told}");
    }
}
