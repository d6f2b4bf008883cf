//! The config as a user meets it: files, variables and flags in, a resolved config or messages out.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kfp_creds::config::endpoint::{Endpoint, TlsFiles};
use kfp_creds::config::{self, Config, Environment, Overrides, SourceChoice, engine};
use kfp_creds::console::OutputForm;
use kfp_creds::policy::Decision;
use kfp_creds::workload::Task;

/// A directory of its own with `home` and `project` in it, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let at = std::env::temp_dir().join(format!("kfp-creds-it-config-{}-{number}", std::process::id()));
        fs::create_dir_all(at.join("home")).unwrap();
        fs::create_dir_all(at.join("project/deep/er")).unwrap();
        Self(at.canonicalize().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path
    }

    /// Started in `project/deep/er`.
    fn env(&self, env: &[(&str, &str)]) -> Environment {
        let own = [("HOME".to_string(), self.path("home").display().to_string())];
        let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Environment { variables: env.chain(own).collect(), cwd: self.path("project/deep/er") }
    }

    fn resolve(&self, env: &[(&str, &str)], flags: Overrides) -> Result<Config, String> {
        config::resolve(&flags, &self.env(env)).map_err(|problems| self.plain(&problems.to_string()))
    }

    /// Messages without the name of this directory.
    fn plain(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.display()), "")
    }

    /// Runs the program itself in `project/deep/er`, with only this environment.
    fn program(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_kfp-creds"))
            .args(arguments)
            .env_clear()
            .envs(self.env(&[]).variables.all())
            .current_dir(self.path("project/deep/er"))
            .output()
            .unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn flags() -> Overrides {
    Overrides::default()
}

/// The flags for these keys.
fn given(keys: &[(&'static str, &str)]) -> Overrides {
    let keys = keys.iter().map(|(path, value)| (*path, (*value).to_owned())).collect();
    Overrides { keys, ..flags() }
}

fn reject(place: &Place, env: &[(&str, &str)], flags: Overrides) -> String {
    place.resolve(env, flags).map(|config| config.summary()).unwrap_err()
}

#[test]
fn without_a_file_the_defaults_apply() {
    let config = Place::new().resolve(&[], flags()).unwrap();
    assert_eq!(config.source, SourceChoice::Adc { file: None });
    assert_eq!((config.file, config.project, config.engine), (None, None, None));
    assert_eq!((config.zone.as_str(), config.log.as_str()), ("us-central1-a", "warn"));
    assert_eq!(config.pool.to_string(), "169.254.168.0/22");
    assert_eq!(config.form, OutputForm::Text);
    assert_eq!(config.identities.keys().collect::<Vec<_>>(), ["default"]);
    let identity = config.policy.default.unwrap();
    assert_eq!((identity.name.as_str(), &identity.service_account), ("default", &None));
    assert_eq!(identity.scopes.to_string(), "https://www.googleapis.com/auth/cloud-platform");
    assert_eq!(identity.lifetime, Duration::from_secs(3600));
    assert!(!config.keep && !config.policy.all && config.policy.rules.is_empty());
}

#[test]
fn only_the_nearest_file_is_read() {
    let place = Place::new();
    let project = || place.resolve(&[], flags()).unwrap().project;
    place.write("home/.config/kfp-creds/config.toml", "project = \"user\"\nzone = \"z\"");
    assert_eq!(project().as_deref(), Some("user"));
    let elsewhere = place.path("xdg").display().to_string();
    place.write("xdg/kfp-creds/config.toml", "project = \"xdg\"");
    let config = place.resolve(&[("XDG_CONFIG_HOME", &elsewhere)], flags()).unwrap();
    assert_eq!(config.project.as_deref(), Some("xdg"));
    place.write("project/kfp-creds.toml", "project = \"ancestor\"");
    assert_eq!(project().as_deref(), Some("ancestor"));
    let near = place.write("project/deep/er/kfp-creds.toml", "project = \"near\"");
    let config = place.resolve(&[], flags()).unwrap();
    assert_eq!((config.project.as_deref(), config.zone.as_str()), (Some("near"), "us-central1-a"));
    assert_eq!(config.file, Some(near));
    place.write("other.toml", "project = \"named\"");
    let named = |path: &str| Overrides { config: Some(path.into()), ..flags() };
    assert_eq!(place.resolve(&[], named("../../../other.toml")).unwrap().project.as_deref(), Some("named"));
    let variable = [("KFP_CREDS_CONFIG", "../../../other.toml")];
    assert_eq!(place.resolve(&variable, flags()).unwrap().project.as_deref(), Some("named"));
    let missing = reject(&place, &variable, named("none.toml"));
    assert_eq!(missing, "project/deep/er/none.toml: no such file");
}

#[test]
fn flags_override_variables_and_these_the_file() {
    let place = Place::new();
    place.write(
        "project/kfp-creds.toml",
        "project = \"file\"\nquota_project = \"file\"\nemail = \"file@x\"\nregion = \"europe-west4\"\n\
         all = true\nlog = \"error\"\n[network]\npool = \"10.1.0.0/24\"\n",
    );
    let env = [
        ("KFP_CREDS_PROJECT", "variable"),
        ("KFP_CREDS_QUOTA_PROJECT", "variable"),
        ("KFP_CREDS_EMAIL", ""),
        ("KFP_CREDS_NUMERIC_PROJECT", "42"),
        ("KFP_CREDS_ALL", "0"),
        ("KFP_CREDS_KEEP", "true"),
        ("KFP_CREDS_POOL", "192.168.7.16/28"),
        ("KFP_CREDS_GCS_FETCH", "false"),
        ("KFP_CREDS_GCS_MAX_BYTES", "1024"),
        ("KFP_CREDS_ENDPOINT_TOKEN", "http://127.0.0.1:5/token"),
    ];
    let said = Overrides { json: true, ..given(&[("project", "flag"), ("log", "debug")]) };
    let config = place.resolve(&env, said).unwrap();
    assert_eq!(config.project.as_deref(), Some("flag"));
    assert_eq!(config.quota_project.as_deref(), Some("variable"));
    assert_eq!(config.email.as_deref(), Some("file@x"), "an empty variable is unset");
    assert_eq!((config.numeric_project, config.keep, config.policy.all), (Some(42), true, false));
    assert_eq!((config.zone.as_str(), config.log.as_str()), ("europe-west4-1", "debug"));
    assert_eq!(config.pool.to_string(), "192.168.7.16/28");
    assert_eq!(config.endpoints.token.as_deref(), Some("http://127.0.0.1:5/token"));
    assert_eq!((config.gcs.fetch, config.gcs.max_bytes), (false, 1024));
    assert_eq!(config.form, OutputForm::Json);
    let zone = place.resolve(&[("KFP_CREDS_ZONE", "a-b")], flags()).unwrap().zone;
    assert_eq!(zone, "a-b", "a zone above replaces a region below");
}

#[test]
fn credentials_and_their_file_are_overridden_together() {
    let place = Place::new();
    let own = "home/.config/kfp-creds/config.toml";
    let source = |env: &[(&str, &str)], flags| place.resolve(env, flags).unwrap().source;
    let adc = |path: PathBuf| SourceChoice::Adc { file: Some(path) };
    let offline = || given(&[("credentials", "offline")]);
    place.write(own, "credentials_file = \"key.json\"");
    assert_eq!(source(&[], flags()), adc(place.path("home/.config/kfp-creds/key.json")));
    assert_eq!(source(&[], offline()), SourceChoice::Offline);
    assert_eq!(source(&[("KFP_CREDS_CREDENTIALS", "offline")], flags()), SourceChoice::Offline);
    assert_eq!(source(&[("KFP_CREDS_CREDENTIALS", "adc")], flags()), SourceChoice::Adc { file: None });
    let variable = [("KFP_CREDS_CREDENTIALS_FILE", "key.json")];
    assert_eq!(source(&variable, flags()), adc(place.path("project/deep/er/key.json")));
    place.write(own, "credentials = \"offline\"");
    let flag = given(&[("credentials_file", "/k/key.json")]);
    assert_eq!(source(&[], flag), adc("/k/key.json".into()));
    place.write(own, "credentials_file = \"~/key.json\"");
    assert_eq!(source(&[], flags()), adc(place.path("home/key.json")));
}

#[test]
fn rules_choose_identities() {
    let place = Place::new();
    place.write("project/kfp-creds.toml", include_str!("../golden/config/good.toml"));
    let config = place.resolve(&[], flags()).unwrap();
    let named = |pipeline: &str, component: &str, image: &str| {
        let task = Task {
            kfp: true,
            pipeline: Some(pipeline.into()),
            component: Some(component.into()),
            image: image.into(),
            ..Task::default()
        };
        match config.policy.decide(&task) {
            Decision::Attach(identity, _) => identity.name.clone(),
            Decision::Pass(why) => why,
        }
    };
    assert_eq!(named("etl-1", "load-2", "i"), "loader");
    assert_eq!(named("etl-1", "x", "r.example/untrusted/i"), "rule 2 says none");
    assert_eq!(named("etl-1", "x", "i"), "default");
    let account = |name: &str| config.identities[name].service_account.as_deref();
    assert_eq!(account("loader"), Some("loader@my-project.iam.gserviceaccount.com"));
    assert_eq!(
        account("reader"),
        Some("all@my-project.iam.gserviceaccount.com"),
        "impersonate applies to the other identities"
    );
    assert_eq!(account("default"), account("reader"));
    assert_eq!(config.identities["loader"].lifetime, Duration::from_secs(1800));
    assert_eq!(config.instance_attributes["team"], "a \"b\"\n");
    assert_eq!(config.instance.hostname.as_deref(), Some("vm.example.internal"));
    assert_eq!(config.instance.machine_type.as_deref(), Some("n2-highmem-8"));
    assert_eq!(
        (config.instance.description.as_deref(), &config.instance.tags[..]),
        (Some("a vm"), &["kfp".into()][..])
    );
    let none = place.resolve(&[("KFP_CREDS_DEFAULT", "none")], flags()).unwrap();
    assert!(none.policy.default.is_none());
}

#[test]
fn config_messages_are_those_of_the_golden_files() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/config");
    let mut cases = 0;
    for entry in fs::read_dir(&golden).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let place = Place::new();
        place.write("config.toml", &fs::read_to_string(&path).unwrap());
        let output = place.program(&["config", "check", "--config", "../../../config.toml"]);
        let code = output.status.code().unwrap();
        let said = if code == 0 { &output.stdout } else { &output.stderr };
        let said = place.plain(&String::from_utf8_lossy(said)).replace("project/deep/er/../../../", "");
        let expected = fs::read_to_string(path.with_extension("txt")).unwrap_or_default();
        assert_eq!(format!("exit code {code}\n{said}"), expected, "{}", path.display());
        cases += 1;
    }
    assert!(cases > 15, "only {cases} cases found");
}

/// A key that no service accepts; made when the test runs.
fn key() -> String {
    let (dashes, label) = ("-".repeat(5), ["PRIVATE", "KEY"].join(" "));
    let body = "MIIEvQIBADANBgkqhkiG9w0BAQEFcAnArY".repeat(6);
    format!("{dashes}BEGIN {label}{dashes}\n{body}\n{dashes}END {label}{dashes}\n")
}

#[test]
fn keys_in_configured_mounts_are_all_reported_at_the_start() {
    let place = Place::new();
    place.write("data/deep/down/id.pem", &key());
    place.write("clean/data.csv", "1,2\n");
    place.write("single.pem", &key());
    let config = "[[mount]]\nsource = \"data\"\ntarget = \"/data\"\n[[mount]]\nsource = \"./clean\"\n\
        target = \"/clean\"\n[[mount]]\nsource = \"./data/deep\"\ntarget = \"relative\"\n[[mount]]\n\
        source = \"./data\"\ntarget = \"/again\"\n";
    place.write("config.toml", config);
    let mount = format!("{}:/single.pem", place.path("single.pem").display());
    let arguments = ["config", "check", "--config", "../../../config.toml", "--mount", mount.as_str()];
    let output = place.program(&arguments);
    let said = place.plain(&String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(78), "{said}");
    for wanted in [
        "`mount[3].target`: \"relative\" has to be an absolute path",
        "`mount[4].source`: data holds a private key at data/deep/down/id.pem; mount what lies beside it",
        "--mount single.pem:/single.pem: holds a private key at single.pem;",
    ] {
        assert!(said.contains(wanted), "{wanted}\n{said}");
    }
    assert!(!said.contains("clean") && !said.contains("cAnArY"), "{said}");
    // A source without a slash is a volume of the engine; the session checks it.
    assert!(!said.contains("mount[1]"), "{said}");
    for mode in ["off", "warn"] {
        place.write(
            "config.toml",
            &format!("{}\n[guard]\nmode = \"{mode}\"\n", config.replace("relative", "/x")),
        );
        let output = place.program(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    place.write(
        "config.toml",
        &format!("[guard]\nallow = [\"data\", \"single.pem\"]\n{}", config.replace("relative", "/x")),
    );
    let output = place.program(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// In a container, the machine's root is mounted at a directory: sources are found there, and named by the
/// paths of that machine.
#[test]
fn mounts_are_paths_of_the_engines_machine() {
    let place = Place::new();
    let root = place.path("host").display().to_string();
    place.write("host/srv/data/rows.csv", "1,2\n");
    place.write("host/home/you/pipelines/here/rows.csv", "1,2\n");
    place.write("host/srv/keys/id.pem", &key());
    // On that machine the link leads to its own /srv, whatever is at /srv here.
    symlink("/srv/data", place.path("host/link")).unwrap();
    let mounts = |sources: &[&str]| {
        let one = |(number, source)| format!("[[mount]]\nsource = \"{source}\"\ntarget = \"/in/{number}\"\n");
        sources.iter().enumerate().map(one).collect::<String>()
    };
    let resolved = |file: &str, sources: &[&str]| {
        let config = Some(place.write(file, &mounts(sources)));
        place.resolve(&[], Overrides { config, ..given(&[("host_root", &root)]) })
    };
    let below = "host/home/you/pipelines/kfp-creds.toml";
    let config = resolved(below, &["/srv/data", "/link", "./here", "../pipelines/here"]).unwrap();
    let told: Vec<String> = config.mounts.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "/in/0 from /srv/data, read-only",
            "/in/1 from /srv/data, read-only",
            "/in/2 from /home/you/pipelines/here, read-only",
            "/in/3 from /home/you/pipelines/here, read-only",
        ]
    );
    assert!(config.unverified.is_empty(), "{:?}", config.unverified);
    // Paths that only this program sees do not exist on that machine.
    let wrong = resolved(below, &[&root, "/srv/keys", "./nothing"]).unwrap_err();
    assert!(wrong.contains("host cannot be mounted"), "{wrong}");
    assert!(wrong.contains("/srv/keys holds a private key at /srv/keys/id.pem; mount"), "{wrong}");
    assert!(wrong.contains("/home/you/pipelines/./nothing cannot be mounted"), "{wrong}");
    let elsewhere = resolved("etc/kfp-creds.toml", &["/srv/data", "./here"]).unwrap_err();
    assert!(
        elsewhere.contains("mount[2].source") && elsewhere.contains("is not below the host root"),
        "{elsewhere}"
    );
    assert!(!elsewhere.contains("mount[1]"), "{elsewhere}");
    // This program's home belongs to nobody on that machine.
    let home = resolved(below, &["~/data"]).unwrap_err();
    assert!(home.contains("starts at your home, which is not below the host root"), "{home}");
}

#[test]
fn other_accounts_of_an_identity_are_valid_and_unique() {
    let place = Place::new();
    let write = |others: &str| {
        place.write(
            "project/kfp-creds.toml",
            &format!("[identity.two]\nservice_account = \"a@p.iam.gserviceaccount.com\"\nother_accounts = [{others}]\n"),
        )
    };
    write("\"b@p.iam.gserviceaccount.com\"");
    let config = place.resolve(&[], flags()).unwrap();
    assert_eq!(config.identities["two"].others, ["b@p.iam.gserviceaccount.com"]);
    assert!(
        config.summary().contains("two: a@p.iam.gserviceaccount.com and b@p.iam.gserviceaccount.com, 3600 s")
    );
    write("\"a@p.iam.gserviceaccount.com\", \"b\"");
    let said = reject(&place, &[], flags());
    assert!(said.contains("is listed twice") && said.contains("\"b\" has to be an e-mail"), "{said}");
}

#[test]
fn wrong_variables_and_flags_are_named() {
    let place = Place::new();
    let env = [
        ("KFP_CREDS_PROJCET", "x"),
        ("KFP_CREDS_ALL", "yes"),
        ("KFP_CREDS_NUMERIC_PROJECT", "x"),
        ("KFP_CREDS_SOMETHING_ELSE", "is somebody else's"),
    ];
    let expected = "KFP_CREDS_NUMERIC_PROJECT: \"x\" is not a whole number\n\
                    KFP_CREDS_ALL: \"yes\" is not true or false\n\
                    KFP_CREDS_PROJCET: unknown variable; did you mean KFP_CREDS_PROJECT?";
    assert_eq!(reject(&place, &env, flags()), expected);
    let said = given(&[("impersonate", "me"), ("project", "My Project")]);
    let expected = "KFP_CREDS_POOL: \"10.0.0.0/8\" has to be from /16 to /28\n\
                    --impersonate: \"me\" has to be an e-mail\n\
                    --project: \"My Project\" has to be a project id: lower-case letters, digits and hyphens, a letter \
                    first";
    assert_eq!(reject(&place, &[("KFP_CREDS_POOL", "10.0.0.0/8")], said), expected);
}

const GUARDED: &str = "project = \"p\"\ncredentials_file = \"key.json\"\nengine = \"unix:///x.sock\"\n\
                       [endpoints]\ntoken = \"https://evil.example/token\"\nuniverse = \"evil.example\"\n";

#[test]
fn a_projects_file_names_no_endpoint_before_it_is_trusted() {
    let place = Place::new();
    let file = place.write("project/kfp-creds.toml", GUARDED);
    let refused = "project/kfp-creds.toml: `credentials_file` (line 2), `engine` (line 3), \
                   `endpoints.token` (line 5), `endpoints.universe` (line 6) has effect in a project's file only once you trust \
                   it; read it, then run: kfp-creds config trust";
    assert_eq!(reject(&place, &[], flags()), refused);
    // A variable or flag that overrides the file's key does not make the file trusted.
    let over = given(&[("credentials", "offline")]);
    assert_eq!(reject(&place, &[], over), refused);

    let env = place.env(&[]);
    let trust = config::trust(&flags(), &env).unwrap();
    assert_eq!(
        place.plain(&trust.to_string()),
        "trusted project/kfp-creds.toml, as it is now\n  line 2: credentials_file = \"key.json\"\n  line 3: \
         engine = \"unix:///x.sock\"\n  line 5: endpoints.token = \"https://evil.example/token\"\n  line 6: \
         endpoints.universe = \"evil.example\"\n"
    );
    let config = place.resolve(&[], flags()).unwrap();
    assert_eq!(config.endpoints.universe.as_deref(), Some("evil.example"));
    assert_eq!(config.source, SourceChoice::Adc { file: Some(place.path("project/key.json")) });

    // Trust covers neither other content nor the same content in another place.
    place.write("project/kfp-creds.toml", &GUARDED.replace("key.json", "other.json"));
    assert_eq!(reject(&place, &[], flags()), refused);
    place.write("project/kfp-creds.toml", GUARDED);
    assert!(place.resolve(&[], flags()).is_ok());
    place.write("project/deep/kfp-creds.toml", GUARDED);
    assert_eq!(reject(&place, &[], flags()), refused.replace("project/", "project/deep/"));
    fs::remove_file(place.path("project/deep/kfp-creds.toml")).unwrap();

    // Trusting the file again replaces its line; only the user can read the list.
    place.write("project/kfp-creds.toml", &format!("{GUARDED}\n"));
    config::trust(&flags(), &env).unwrap();
    let list = place.path("home/.local/state/kfp-creds/trusted");
    let text = fs::read_to_string(&list).unwrap();
    assert_eq!(text.lines().count(), 1);
    assert!(text.trim_end().ends_with(&format!(" {}", file.display())), "{text}");
    assert_eq!(fs::metadata(&list).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(list.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(place.resolve(&[], flags()).is_ok());

    // A list that others can write is not believed.
    fs::set_permissions(&list, fs::Permissions::from_mode(0o602)).unwrap();
    let refused =
        "home/.local/state/kfp-creds/trusted: everybody can write it, so it proves nothing; remove it";
    assert_eq!(reject(&place, &[], flags()), refused);
}

#[test]
fn the_users_own_files_need_trust_only_if_others_can_write() {
    let place = Place::new();
    let own = place.write("home/.config/kfp-creds/config.toml", GUARDED);
    assert!(place.resolve(&[], flags()).is_ok());
    let project = place.write("project/kfp-creds.toml", GUARDED);
    let named = || Overrides { config: Some(project.clone()), ..flags() };
    assert!(place.resolve(&[], named()).is_ok());
    let names = "`credentials_file` (line 2), `engine` (line 3), `endpoints.token` (line 5), `endpoints.universe` \
                 (line 6) cannot be taken from it: everybody can write it; chmod or chown it";
    fs::set_permissions(&own, fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(&project, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(reject(&place, &[], named()), format!("project/kfp-creds.toml: {names}"));
    let refused = config::trust(&flags(), &place.env(&[])).unwrap_err().to_string();
    assert_eq!(
        place.plain(&refused),
        "project/kfp-creds.toml: everybody can write it, so it cannot be trusted; chmod or chown it"
    );
    fs::remove_file(&project).unwrap();
    assert_eq!(reject(&place, &[], flags()), format!("home/.config/kfp-creds/config.toml: {names}"));
    fs::write(&own, "project = \"fine\"").unwrap();
    assert!(place.resolve(&[], flags()).is_ok(), "the other keys need no trust");
}

#[test]
fn odd_files_are_refused_and_not_skipped() {
    let place = Place::new();
    let file = place.path("project/kfp-creds.toml");
    fs::create_dir(&file).unwrap();
    assert_eq!(reject(&place, &[], flags()), "project/kfp-creds.toml: is not a file");
    fs::remove_dir(&file).unwrap();
    fs::write(&file, [0xff, 0xfe]).unwrap();
    let wide = "is not UTF-8 in line 1 (PowerShell writes UTF-16); save it as UTF-8";
    assert_eq!(
        reject(&place, &[], flags()),
        format!("project/kfp-creds.toml: {}", wide.replace(" (PowerShell writes UTF-16)", ""))
    );
    fs::write(&file, [0xff, 0xfe, b'a', 0]).unwrap();
    assert_eq!(reject(&place, &[], flags()), format!("project/kfp-creds.toml: {wide}"));
    fs::write(&file, b"zone = \"a-b\"\nproject = \"Pr\xfcfung\"\n").unwrap();
    assert_eq!(
        reject(&place, &[], flags()),
        "project/kfp-creds.toml: is not UTF-8 in line 2; save it as UTF-8"
    );
    // A file of another kind gives thousands of problems, and a person sees the first 50.
    let many: String = (0..3000).map(|number| format!("entry{number} = 1\n")).collect();
    fs::write(&file, many).unwrap();
    let said = reject(&place, &[], flags());
    assert_eq!(said.lines().count(), 51, "{said}");
    assert!(said.ends_with("\nand 2950 more"), "{said}");
    fs::write(&file, "#".repeat((1 << 20) + 1)).unwrap();
    assert_eq!(reject(&place, &[], flags()), "project/kfp-creds.toml: is larger than 1 MiB");
    fs::remove_file(&file).unwrap();
    // Opening a pipe for reading would wait for a writer.
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    assert_eq!(reject(&place, &[], flags()), "project/kfp-creds.toml: is not a file");
    fs::remove_file(&file).unwrap();
    let deep = format!("a = {}", "[".repeat(100_000));
    fs::write(&file, deep).unwrap();
    assert!(reject(&place, &[], flags()).starts_with("project/kfp-creds.toml:1:"));
}

#[test]
fn init_check_and_trust_work_from_the_command_line() {
    let place = Place::new();
    let said = |arguments: &[&str]| {
        let output = place.program(arguments);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code().unwrap(), place.plain(&text))
    };
    let nothing = "kfp-creds: there is no kfp-creds.toml here or above; nothing to trust\n";
    assert_eq!(said(&["config", "trust"]), (78, nothing.into()));
    let wrote = (0, "wrote project/deep/er/kfp-creds.toml\n".to_string());
    assert_eq!(said(&["config", "init"]), wrote);
    let exists = "kfp-creds: project/deep/er/kfp-creds.toml: already exists and was not changed\n";
    assert_eq!(said(&["config", "init"]), (78, exists.into()));
    assert_eq!(said(&["config", "check"]).0, 0, "the starter is a good config");

    // The starter is also valid with every commented line in effect.
    let file = place.path("project/deep/er/kfp-creds.toml");
    let starter = fs::read_to_string(&file).unwrap();
    let lines = starter.lines().map(|line| match line.strip_prefix("# ") {
        Some(key) if key.starts_with('[') || key.contains(" = ") => key,
        _ => line,
    });
    fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let (code, summary) = said(&["config", "check"]);
    assert_eq!(code, 0, "{summary}");
    assert!(summary.contains("\nrule 2        image */untrusted/*: none\n"), "{summary}");

    fs::write(&file, GUARDED).unwrap();
    assert_eq!(said(&["config", "check"]).0, 78);
    assert_eq!(said(&["config", "trust"]).0, 0);
    assert_eq!(said(&["config", "check"]).0, 0);
}

#[test]
fn each_failure_has_its_exit_code() {
    let place = Place::new();
    place.write("project/kfp-creds.toml", "projct = \"p\"");
    let code = |arguments: &[&str]| place.program(arguments).status.code().unwrap();
    for (arguments, expected) in [
        (&["--help"][..], 0),
        (&["--version"], 0),
        (&["run", "--help"], 0),
        (&[], 64),
        (&["no-such-command"], 64),
        (&["serve", "--open"], 64),
        (&["config", "check", "--no-such-flag"], 64),
        (&["check"], 78),
        (&["serve"], 78),
        (&["config", "check"], 78),
        (&["run", "--no-such-flag"], 125),
        (&["run"], 125),
        (&["run", "--", "true"], 125),
    ] {
        assert_eq!(code(arguments), expected, "{arguments:?}");
    }
}

#[test]
fn the_reference_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/config.md");
    let text = config::reference();
    if fs::read_to_string(&path).unwrap_or_default() != text {
        fs::write(&path, text).unwrap();
        panic!("docs/reference/config.md was out of date; it is rewritten now, look at the difference");
    }
}

#[test]
fn the_schema_is_up_to_date_and_refuses_unknown_keys() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kfp-creds.schema.json");
    let text = config::schema();
    if fs::read_to_string(&path).unwrap_or_default() != text {
        fs::write(&path, &text).unwrap();
        panic!("docs/kfp-creds.schema.json was out of date; it is rewritten now, look at the difference");
    }
    let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
    let at = |pointer: &str| schema.pointer(pointer).unwrap_or_else(|| panic!("{pointer}"));
    assert_eq!(at("/properties/identity/additionalProperties/properties/rate/type"), "integer");
    assert_eq!(at("/properties/rule/items/properties/labels/additionalProperties/type"), "string");
    assert_eq!(at("/properties/rule/items/required"), &serde_json::json!(["identity"]));
    assert_eq!(at("/properties/mount/items/required"), &serde_json::json!(["target"]));
    assert_eq!(at("/properties/guard/properties/mode/enum"), &serde_json::json!(["deny", "warn", "off"]));
    // The config that the documents show is valid by the schema, and an unknown key is not.
    let good = fs::read_to_string(path.with_file_name("../tests/golden/config/good.toml")).unwrap();
    let good: toml::Value = toml::from_str(&good).unwrap();
    assert_eq!(unknown(&good, &schema), None);
    let bad: toml::Value = toml::from_str("[identity.a]\nscope = []\n").unwrap();
    assert_eq!(unknown(&bad, &schema).as_deref(), Some("scope"));
}

/// A key of `value` that the schema does not have; this validates just enough for closed objects.
fn unknown(value: &toml::Value, schema: &serde_json::Value) -> Option<String> {
    match value {
        toml::Value::Array(all) => all.iter().find_map(|one| unknown(one, &schema["items"])),
        toml::Value::Table(table) => table.iter().find_map(|(name, inside)| {
            let known = [&schema["properties"][name], &schema["additionalProperties"]];
            match known.into_iter().find(|known| known.is_object()) {
                Some(known) => unknown(inside, known),
                None => Some(name.clone()),
            }
        }),
        _ => None,
    }
}

#[test]
fn engines_of_this_machine_are_found_and_others_refused() {
    let place = Place::new();
    let socket = place.path("d.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let host = format!("unix://{}", socket.display());
    let found = |env: &[(&str, &str)]| {
        engine::endpoint(None, false, &place.env(env)).map_err(|problem| place.plain(&problem))
    };
    assert_eq!(found(&[("DOCKER_HOST", &host)]), Ok(Endpoint::Unix(socket.clone())));
    assert_eq!(found(&[("DOCKER_HOST", &format!("http+{host}"))]), Ok(Endpoint::Unix(socket.clone())));
    assert_eq!(
        engine::endpoint(Some(&host), false, &place.env(&[("DOCKER_HOST", "tcp://x:1")])),
        Ok(Endpoint::Unix(socket.clone()))
    );
    place.write("file", "");
    symlink(&socket, place.path("link.sock")).unwrap();
    let unix = |name: &str| format!("unix://{}", place.path(name).display());
    assert_eq!(found(&[("DOCKER_HOST", &unix("link.sock"))]), Ok(Endpoint::Unix(place.path("link.sock"))));
    for (host, expected) in [
        (
            "ssh://user:hunter2@host",
            "DOCKER_HOST: a value that holds a URL with a user or a password in it (not shown) contains a password, \
             which is not accepted: use keys or an agent"
                .into(),
        ),
        (
            "ssh://-oProxyCommand=x",
            "DOCKER_HOST: \"ssh://-oProxyCommand=x\" has to be ssh://user@host:port; names begin with a letter or a \
             digit"
                .into(),
        ),
        (
            "npipe:////./pipe/docker_engine",
            "DOCKER_HOST: \"npipe:////./pipe/docker_engine\" is Docker for Windows; only Linux works so far (inside WSL, too)".into(),
        ),
        ("/x.sock", "DOCKER_HOST: \"/x.sock\" has to be written unix:///x.sock".into()),
        (
            "127.0.0.1:2375",
            "DOCKER_HOST: \"127.0.0.1:2375\" has to be unix:///path, tcp://host:port or ssh://user@host"
                .into(),
        ),
        ("unix://x.sock", "DOCKER_HOST: \"unix://x.sock\" has to name an absolute path, unix:///path".into()),
        (&unix("none.sock"), "DOCKER_HOST: none.sock: no such socket; is the engine running?".into()),
        (&unix("file"), "DOCKER_HOST: file: is not a socket".into()),
    ] {
        assert_eq!(found(&[("DOCKER_HOST", host)]), Err(expected), "{host}");
    }
}

#[test]
fn docker_contexts_are_followed() {
    let place = Place::new();
    let socket = place.path("d.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let context = |directory: &str, name: &str, digest: &str, host: &str| {
        let meta = format!(
            r#"{{"Name":"{name}","Endpoints":{{"docker":{{"Host":"{host}","SkipTLSVerify":false}}}}}}"#
        );
        place.write(&format!("{directory}/contexts/meta/{digest}/meta.json"), &meta);
    };
    // The output of `printf NAME | sha256sum`.
    let local = "25bf8e1a2393f1108d37029b3df5593236c755742ec93465bbafa9b290bddcf6";
    context("home/.docker", "local", local, &format!("unix://{}", socket.display()));
    let found = |env: &[(&str, &str)]| {
        engine::endpoint(None, false, &place.env(env)).map_err(|problem| place.plain(&problem))
    };
    assert_eq!(found(&[("DOCKER_CONTEXT", "local")]), Ok(Endpoint::Unix(socket.clone())));
    place.write("home/.docker/config.json", r#"{"currentContext":"local","auths":{}}"#);
    assert_eq!(found(&[]), Ok(Endpoint::Unix(socket.clone())));
    assert_eq!(
        found(&[("DOCKER_CONTEXT", "gone")]),
        Err("docker context gone: there is no such context; see: docker context ls".into())
    );
    assert!(found(&[("DOCKER_HOST", "tcp://x:1")]).is_err(), "DOCKER_HOST wins over the context");
    context("elsewhere", "local", local, "ssh://user@host");
    let elsewhere = place.path("elsewhere").display().to_string();
    let other = || found(&[("DOCKER_CONFIG", &elsewhere), ("DOCKER_CONTEXT", "local")]);
    assert_eq!(other().unwrap().to_string(), "ssh://user@host");
    context("elsewhere", "local", local, "tcp://host:2376");
    assert!(other().unwrap_err().contains("is TCP without TLS"), "{:?}", other());
    // With certificates of its own, the context uses TLS.
    let tls = format!("elsewhere/contexts/tls/{local}/docker");
    for file in ["ca.pem", "cert.pem", "key.pem"] {
        place.write(&format!("{tls}/{file}"), "");
    }
    let folder = place.path(&tls);
    let files =
        TlsFiles { ca: folder.join("ca.pem"), own: Some((folder.join("cert.pem"), folder.join("key.pem"))) };
    assert_eq!(other(), Ok(Endpoint::Tcp { host: "host".into(), port: 2376, tls: Some(files) }));
    place.write("home/.docker/config.json", "{");
    assert_eq!(found(&[]), Err("home/.docker/config.json: is not JSON (line 1)".into()));
}

#[test]
fn an_engine_on_tcp_needs_tls_or_the_operators_consent() {
    let place = Place::new();
    let found = |plain: bool, env: &[(&str, &str)]| engine::endpoint(None, plain, &place.env(env));
    let host = ("DOCKER_HOST", "tcp://10.0.0.1");
    let said = found(false, &[host]).unwrap_err();
    assert!(
        said.contains("tcp://10.0.0.1:2375 is TCP without TLS") && said.contains("plain_tcp = true"),
        "{said}"
    );
    assert_eq!(found(true, &[host]).unwrap().to_string(), "tcp://10.0.0.1:2375");
    place.write("certs/cert.pem", "");
    let certs = place.path("certs").display().to_string();
    for env in [
        vec![host, ("DOCKER_TLS_VERIFY", "1"), ("DOCKER_CERT_PATH", certs.as_str())],
        vec![host, ("DOCKER_CERT_PATH", &certs)],
        vec![("DOCKER_HOST", "https://10.0.0.1:2376"), ("DOCKER_CERT_PATH", &certs)],
    ] {
        for plain in [false, true] {
            let Ok(Endpoint::Tcp { port: 2376, tls: Some(files), .. }) = found(plain, &env) else {
                panic!("{env:?}: {:?}", found(plain, &env));
            };
            assert!(files.own.is_some() && files.ca == place.path("certs/ca.pem"));
        }
    }
    for plain in [false, true] {
        let said = found(plain, &[host, ("DOCKER_TLS", "1")]).unwrap_err();
        assert!(said.contains("checks no certificate"), "{said}");
    }
    let ssh = engine::endpoint(Some("ssh://me@host:22/run/d.sock"), false, &place.env(&[]));
    assert_eq!(ssh.unwrap().to_string(), "ssh://me@host:22/run/d.sock");
}

/// A session that reads its config again names these keys, because it keeps the values that it started with.
#[test]
fn keys_that_only_a_new_session_reads_are_named() {
    let place = Place::new();
    let read = |text: &str| {
        let config = Some(place.write("read.toml", text));
        place.resolve(&[], Overrides { config, ..Overrides::default() }).unwrap()
    };
    let before = read("");
    for (text, name) in [
        ("network.host_loopback = true", "network"),
        ("network.pool = \"10.9.0.0/24\"", "network"),
        ("isolation = \"network\"", "network"),
        ("relay_image = \"r@sha256:DIGEST\"", "relay"),
        ("keep = true", "keep"),
    ] {
        let text = text.replace("DIGEST", &"ab".repeat(32));
        assert_eq!(before.differs_beyond_rules(&read(&text)), [name], "{text}");
    }
    assert_eq!(before.differs_beyond_rules(&read("default = \"none\"")), [""; 0]);
}
