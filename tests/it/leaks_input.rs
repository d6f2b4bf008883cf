//! Secrets in place of other values: every flag, argument, variable and config key is given secrets of many
//! shapes, and nothing that the program writes may contain a part of them. The lists come from the command
//! line's definition, the config's table and the source, so a new one is covered at once.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use clap::{CommandFactory, Parser};
use kfp_creds::cli::{self, Cli};
use kfp_creds::config::{self, Environment, Overrides};
use serde_json::json;

use crate::support::fake_google::rsa_key;
use crate::support::session::{Folder, program};

/// A part of this length is a leak.
const PIECE: usize = 14;

/// A value that the test gives, and the secret part of it.
struct Given {
    name: &'static str,
    value: String,
    secret: String,
}

impl Given {
    fn whole(name: &'static str, value: String) -> Self {
        Self { name, secret: value.clone(), value }
    }

    fn assert_absent(&self, place: &str, text: &str) {
        // A path is shown with its directories, so the search splits at slashes and blanks.
        for piece in self.secret.split(|c: char| c.is_whitespace() || "/,:\"\\.".contains(c)) {
            // Field names are not secret.
            if ["service_account", "authorized_user", "private_key_id"].contains(&piece)
                || piece.len() < PIECE
            {
                continue;
            }
            let last = piece.len() - PIECE;
            for at in (0..last).step_by(PIECE / 2).chain([last]) {
                let found = &piece[at..at + PIECE];
                assert!(!text.contains(found), "{place} shows {found:?} of {}:\n{text}", self.name);
            }
        }
    }
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn shapes() -> Vec<Given> {
    let key = json!({
        "type": "service_account", "project_id": "canary-project-of-a-key", "private_key_id": "0f3c9d1ab27e4465a8d0",
        "private_key": rsa_key(), "client_email": "canary@canary-project-of-a-key.iam.gserviceaccount.com",
    });
    let login = json!({
        "type": "authorized_user", "client_id": "canaryclient", "client_secret": "GOCSPX-canarySecretOfAClient",
        "refresh_token": "1//0gcanaryRefreshTokenOfAPerson",
    });
    let wrapped = |text: &str| {
        let encoded = STANDARD.encode(text);
        encoded
            .as_bytes()
            .chunks(76)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect::<Vec<_>>()
            .join("\n")
    };
    let pretty = serde_json::to_string_pretty(&key).unwrap();
    let claims =
        URL_SAFE_NO_PAD.encode(json!({"sub": "repo:canary/canary", "aud": "https://canary"}).to_string());
    let jwt = format!(
        "{}.{claims}.{}",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","typ":"JWT"}"#),
        URL_SAFE_NO_PAD.encode("canary signature canary signature")
    );
    let digest: String = (0..32_u8).map(|n| format!("{:02x}", n.wrapping_mul(37) ^ 0x5a)).collect();
    vec![
        Given::whole("a key", key.to_string()),
        Given::whole("a key on many lines", pretty.clone()),
        Given::whole("a login", login.to_string()),
        Given::whole("base64 of a key", STANDARD.encode(&pretty)),
        Given::whole("wrapped base64 of a key", wrapped(&key.to_string())),
        Given::whole("base64 of base64", STANDARD.encode(STANDARD.encode(login.to_string()))),
        Given::whole("a private key", rsa_key().into()),
        Given::whole("a JWT", jwt),
        Given::whole("an access token", format!("ya29.a0Canary{}", URL_SAFE_NO_PAD.encode(&digest[..40]))),
        Given::whole("a secret key", "wJalrXUtn7EMI/K7MDENG/bPxRf1CYcAnAryKEY9".into()),
        Given::whole("hexadecimal digits", digest),
        Given {
            name: "a line of a .env",
            value: "AWS_SECRET_ACCESS_KEY=in/parts/canaryofasecret/of+lower+case/letters".into(),
            secret: "in/parts/canaryofasecret/of+lower+case/letters".into(),
        },
        Given {
            name: "a shared access signature",
            value: "sp=r&se=2027-01-01&sv=2024-11-04&sig=canary%2Fof%2Ba%2Fsignature%3D".into(),
            secret: "canary%2Fof%2Ba%2Fsignature%3D".into(),
        },
        Given {
            name: "a line of a netrc",
            value: "machine a.example login somebody password hunter2canarypassword".into(),
            secret: "hunter2canarypassword".into(),
        },
        Given {
            name: "the header of a request",
            value: "Authorization: Basic c29tZWJvZHk6Y2FuYXJ5".into(),
            secret: "c29tZWJvZHk6Y2FuYXJ5".into(),
        },
        Given::whole("a secret of Entra ID", ["cnr8Q~", "canary_of_a_secret-of_entra_id_can"].concat()),
        Given {
            name: "a URL in escapes",
            value: "https%3A%2F%2Fsomebody%3Ahunter2canarypassword%40127.0.0.1%3A9%2F".into(),
            secret: "hunter2canarypassword".into(),
        },
        Given {
            name: "a URL with a token behind it",
            value: "https://127.0.0.1:9/callback#id=canary-token-of-somebody".into(),
            secret: "canary-token-of-somebody".into(),
        },
        Given {
            name: "a URL with a password",
            value: "http://somebody:hunter2canarypassword@127.0.0.1:9/".into(),
            secret: "hunter2canarypassword".into(),
        },
    ]
}

fn env(folder: &Path) -> Environment {
    let env = [("HOME", folder.display().to_string())];
    Environment {
        variables: env.map(|(name, value)| (name.into(), value)).into_iter().collect(),
        cwd: folder.to_owned(),
    }
}

/// Every key of the config, and whether it is a list of strings, from its documentation.
fn keys() -> Vec<(String, bool)> {
    let text = config::reference();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let keys: Vec<_> = rows
        .map(|row| {
            let (key, rest) = row.split_once('`').unwrap();
            (key.to_owned(), rest.contains("| a list of strings |"))
        })
        .collect();
    assert!(keys.len() > 60, "the format of the config's reference has changed");
    keys
}

/// A line of TOML that sets a path like `rule[].image` to `value`.
fn line(path: &str, value: &str) -> String {
    fn inside(path: &str, value: &str) -> String {
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        let name = first.trim_end_matches("[]");
        match rest {
            None => format!("{name} = {value}"),
            Some(rest) if first.ends_with("[]") => format!("{name} = [{{ {} }}]", inside(rest, value)),
            Some(rest) => format!("{name} = {{ {} }}", inside(rest, value)),
        }
    }
    inside(path, value)
}

#[test]
fn no_config_key_shows_a_secret() {
    let folder = Folder::new("doors");
    let env = env(&folder.0);
    let file = folder.0.join("given.toml");
    let flags = Overrides { config: Some(file.clone()), ..Overrides::default() };
    let mut refused = 0;
    for (key, is_list) in keys() {
        for given in shapes() {
            let text = serde_json::to_string(&given.value).unwrap();
            let text = if is_list { format!("[{text}]") } else { text };
            for written in
                [line(&key, &text), format!("{text} = 1"), format!("{}\n{}", line(&key, &text), given.value)]
            {
                std::fs::write(&file, &written).unwrap();
                let said = match config::resolve(&flags, &env) {
                    Ok(config) => config.summary(),
                    Err(problems) => {
                        refused += 1;
                        problems.to_string()
                    }
                };
                given.assert_absent(&key, &said);
                // Trusting a file writes to disk each time, so only some shapes are tried.
                if !["a key", "a JWT", "a secret key"].contains(&given.name) || !written.ends_with(&text) {
                    continue;
                }
                let trusted = config::trust(&flags, &env);
                given.assert_absent(
                    &key,
                    &trusted.map_or_else(|why| why.to_string(), |trust| trust.to_string()),
                );
            }
        }
    }
    assert!(refused > 1000, "hardly anything was refused: {refused}");
}

/// Each command with one of its arguments set to `value`, from the definition.
fn listening(value: &str) -> Vec<Vec<String>> {
    fn below(command: &clap::Command, path: &[String], value: &str, all: &mut Vec<Vec<String>>) {
        let with =
            |more: &[&str]| [path, &more.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>()].concat();
        for argument in command.get_arguments() {
            match argument.get_long() {
                Some(long) if argument.get_action().takes_values() => {
                    all.push(with(&[&format!("--{long}"), value]));
                    all.push(with(&[&format!("--{long}={value}")]));
                }
                Some(long) => all.push(with(&[&format!("--{long}={value}")])),
                None => all.push(with(&[value])),
            }
        }
        all.push(with(&[value]));
        all.push(with(&["--no-such-flag", value]));
        all.push(with(&[&format!("--{value}")]));
        all.push(with(&[&format!("--no-such-flag={value}")]));
        for inner in command.get_subcommands() {
            below(inner, &with(&[inner.get_name()]), value, all);
        }
    }
    let mut all = vec![];
    below(&Cli::command(), &["kfp-creds".into()], value, &mut all);
    all
}

#[test]
fn no_complaint_about_the_command_line_shows_a_secret() {
    let mut refused = 0;
    for given in shapes() {
        let listening = listening(&given.value);
        assert!(listening.len() > 80, "the command line's definition has changed");
        for door in listening {
            if let Err(error) = Cli::try_parse_from(&door) {
                refused += 1;
                given.assert_absent(&format!("{:?}", &door[1..door.len() - 1]), &cli::usage(error));
            }
        }
    }
    assert!(refused > 500, "hardly anything was refused: {refused}");
}

/// Runs it with no engine, no login and no metadata server in reach. A server is ended after 4 s.
fn told(command: &mut Command) -> (Output, bool) {
    command.env("GCE_METADATA_IP", "127.0.0.1:9").env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(4);
    let mut ended = child.try_wait().unwrap().is_some();
    while !ended && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
        ended = child.try_wait().unwrap().is_some();
    }
    if !ended {
        let _ = child.kill();
    }
    (child.wait_with_output().unwrap(), ended)
}

fn everything(out: &Output) -> String {
    [&out.stdout[..], &out.stderr].map(String::from_utf8_lossy).concat()
}

/// With an audit log, because messages may be written there too.
fn quiet(folder: &Path) -> Command {
    std::fs::write(folder.join("kfp-creds.toml"), "").unwrap();
    // `relay-image` writes this file, which has only the header of a program, instead of a whole relay each
    // time.
    let (arch, machine) = if cfg!(target_arch = "aarch64") { ("arm64", 183) } else { ("amd64", 62) };
    let mut relay = [0; 64];
    relay[..6].copy_from_slice(b"\x7fELF\x02\x01");
    relay[0x12] = machine;
    std::fs::write(folder.join(format!("kfp-creds-relay-{arch}")), relay).unwrap();
    let mut command = program(folder);
    command
        .env("GCE_METADATA_HOST", "127.0.0.1:9")
        // Sessions of other tests are not asked.
        .env("XDG_RUNTIME_DIR", folder.join("run"))
        .env("KFP_CREDS_RELAY_FOLDER", folder)
        .env("KFP_CREDS_LOG", crate::leaks::LOUD)
        .env("KFP_CREDS_AUDIT_FILE", folder.join("audit.jsonl"));
    command
}

fn audit(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("audit.jsonl")).unwrap_or_default()
}

#[test]
fn no_argument_shows_a_secret_when_it_is_used() {
    let folder = Folder::new("doors");
    let mut ran = 0;
    for given in shapes() {
        for door in listening(&given.value) {
            // Without the lines that clap refuses, which have a test of their own.
            if Cli::try_parse_from(&door).is_err() || door.iter().any(|word| word == "--no-such-flag") {
                continue;
            }
            let mut command = quiet(&folder.0);
            // Without an engine, `run` does not look for the command.
            let (out, _) = told(command.args(&door[1..]));
            ran += 1;
            let place = format!("{:?}", &door[1..door.len() - 1]);
            given.assert_absent(&place, &(everything(&out) + &audit(&folder.0)));
        }
    }
    assert!(ran > 100, "hardly anything ran: {ran}");
}

/// The variables that the program reads, from its source and its documentation.
fn variables() -> BTreeSet<String> {
    let upper = |word: &str| {
        word.len() > 3
            && word.starts_with(|c: char| c.is_ascii_uppercase())
            && word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    };
    let mut all: BTreeSet<String> = config::reference()
        .split('`')
        .filter(|word| word.starts_with("KFP_CREDS_") && upper(word))
        .map(Into::into)
        .collect();
    for folder in [
        "src",
        "src/app",
        "src/config",
        "src/source",
        "src/source/google",
        "src/source/google/external_account",
        "src/source/google/external_account/subject",
        "src/source/google/service_account",
        "src/source/http",
    ] {
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(path).unwrap();
            for reader in ["variable(\"", "text(\"", "secret(\"", "variable(VAR", "names ["] {
                for (at, _) in text.match_indices(reader) {
                    let word: String = text[at + reader.len()..].chars().take_while(|c| *c != '"').collect();
                    if upper(&word) {
                        all.insert(word);
                    }
                }
            }
            // Lists of names in string literals.
            for word in text.split('"').skip(1).step_by(2).filter(|word| upper(word) && word.contains('_')) {
                all.insert(word.into());
            }
        }
    }
    for known in
        ["GOOGLE_APPLICATION_CREDENTIALS", "DOCKER_CONTEXT", "AWS_REGION", "HTTPS_PROXY", "CLOUDSDK_CONFIG"]
    {
        assert!(all.contains(known), "{known} is not found any more");
    }
    // Leaves out variables of the loader, and those that would keep the program from running or logging.
    all.retain(|name| !name.starts_with("LD_") && name != "PATH" && name != "KFP_CREDS_LOG");
    all
}

#[test]
fn no_variable_shows_a_secret() {
    let folder = Folder::new("doors");
    let aws = json!({
        "type": "external_account", "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
        "subject_token_type": "urn:ietf:params:aws:token-type:aws4_request", "token_url": "http://127.0.0.1:9/token",
        "credential_source": {
            "environment_id": "aws1",
            "regional_cred_verification_url": "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15",
        },
    });
    let file = folder.0.join("aws.json");
    std::fs::write(&file, aws.to_string()).unwrap();
    let some = |given: &Given| ["a key", "a JWT", "a URL with a password"].contains(&given.name);
    for given in shapes().into_iter().filter(some) {
        for name in variables() {
            let mut command = quiet(&folder.0);
            if name.starts_with("AWS_") {
                command.env("GOOGLE_APPLICATION_CREDENTIALS", &file).env("AWS_REGION", "eu-west-1");
            }
            let (out, _) = told(command.env(&name, &given.value).args(["serve", "--listen", "127.0.0.1:0"]));
            given.assert_absent(&name, &(everything(&out) + &audit(&folder.0)));
            assert!(!out.stderr.is_empty() || out.status.success(), "{name}: it said nothing");
        }
    }
}

/// The message says what was wrong, for a person who made this common mistake.
#[test]
fn a_credential_in_place_of_its_path_is_recognised() {
    let folder = Folder::new("doors");
    for given in shapes() {
        let expected = match given.name {
            "a key" | "a key on many lines" | "a login" => "holds JSON, not a path",
            "base64 of a key" | "wrapped base64 of a key" => "holds base64 of JSON, not a path",
            "a private key" => "holds a PEM file, not a path",
            "a JWT" => "holds a JSON Web Token, not a path",
            _ => continue,
        };
        for variable in ["GOOGLE_APPLICATION_CREDENTIALS", "KFP_CREDS_CREDENTIALS_FILE"] {
            let (out, ended) =
                told(quiet(&folder.0).env(variable, &given.value).args(["serve", "--listen", "127.0.0.1:0"]));
            let text = everything(&out);
            assert!(
                ended && text.contains(expected) && text.contains("name that file"),
                "{variable}: {text}"
            );
            assert_eq!(out.status.code(), Some(if variable.starts_with('K') { 78 } else { 66 }));
        }
        let (out, _) = told(quiet(&folder.0).args(["check", &format!("--credentials-file={}", given.value)]));
        assert!(everything(&out).contains(expected), "{}", everything(&out));
    }
}

/// Values that are not secret are shown, because messages would be useless without them.
#[test]
fn ordinary_values_are_quoted_as_they_are() {
    let folder = Folder::new("doors");
    let env = env(&folder.0);
    let file = folder.0.join("given.toml");
    let flags = Overrides { config: Some(file.clone()), ..Overrides::default() };
    for (key, value) in [
        ("impersonate", "my-very-long-service-account-name_at_my-project-2024"),
        ("project", "My Project (production) 2024"),
        ("engine", "tcp://10.0.0.1:2376/v1"),
        ("metrics.listen", "metrics.eu-west-1.compute.internal:9464"),
        ("identity.a.scopes", "[\"bigquery.readonly\"]"),
        ("credentials.token_from", "ftp://tokens.example.com/v1/projects/my-project-123456/token"),
        (
            "credentials.workload_identity_provider",
            "projects/123456789012/locations/global/workloadIdentityPools/my-pool",
        ),
        ("impersonate", "764086051850-6qr4p6gpi6hn506pt8ejuq83di341hur.apps.googleusercontent.com"),
    ] {
        let text = if value.starts_with('[') { value.to_owned() } else { format!("{value:?}") };
        std::fs::write(&file, line(key, &text)).unwrap();
        let said = config::resolve(&flags, &env).unwrap_err().to_string();
        let shown = value.trim_matches(['[', ']', '"']);
        assert!(said.contains(&format!("\"{shown}\"")), "{key}: {said}");
    }
    for path in [
        "/home/somebody/My Projects/Pipeline2024/keys/service-account-prod-01.json",
        "/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T/kfp",
        "C:/Users/Anna/Keys/key1.json",
        "relative/folder/of/my/project/credentials/key",
    ] {
        let env = Environment {
            variables: [("HOME".into(), "/nonexistent".into())].into_iter().collect(),
            cwd: "/".into(),
        };
        let flags = Overrides { config: Some(path.into()), ..Overrides::default() };
        let said = config::resolve(&flags, &env).unwrap_err().to_string();
        assert!(said.contains(path), "{said}");
    }
}
