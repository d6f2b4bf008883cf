//! Tests of keys by their content.

use std::fs;
use std::path::Path;

use super::walk_tests::Tree;
use super::{SecretKind, what};

/// Text that looks like a key but is none. Every such text is put together when the test runs, so that the
/// repository holds none.
fn body(start: &str, length: usize) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters = (0..length).map(|n| char::from(alphabet[(n * n + 7 * n) % 64]));
    start.chars().chain(letters).take(length).collect()
}

pub(super) fn pem(label: &str, start: &str, eol: &str) -> String {
    let lines: Vec<String> =
        body(start, 256).as_bytes().chunks(64).map(|l| String::from_utf8_lossy(l).into()).collect();
    let dashes = "-----";
    format!("{dashes}BEGIN {label}{dashes}{eol}{}{eol}{dashes}END {label}{dashes}{eol}", lines.join(eol))
}

pub(super) fn private() -> String {
    ["PRIVATE", "KEY"].join(" ")
}

pub(super) fn service_account() -> String {
    format!(
        "{{\n  \"type\": \"service_account\",\n  \"project_id\": \"p\",\n  \"private_key\": \"{}\",\n  \
         \"client_email\": \"a@p.iam.gserviceaccount.com\"\n}}\n",
        pem(&private(), "MIIEvQIBADANBg", "\\n")
    )
}

fn refresh() -> String {
    format!("1//0{}", body("e", 60))
}

pub(super) fn user(kind: &str) -> String {
    format!(
        "{{\"client_id\": \"1234-abc.apps.googleusercontent.com\", \"client_secret\": \"d-{}\", \
         \"refresh_token\": \"{}\", \"type\": \"{kind}\"}}",
        body("F", 20),
        refresh()
    )
}

pub(super) fn aws() -> String {
    ["Zq3xUtnFEMI7K7MDENGb", "PxRfiCYz8h2kP0aQ1Lm9"].concat()
}

pub(super) fn aws_file() -> String {
    format!("[default]\naws_access_key_id = AKIA{}\naws_secret_access_key = {}\n", "Q".repeat(16), aws())
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn samples() -> Vec<(&'static str, String, SecretKind)> {
    let base64 = |text: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(text)
    };
    let long = body("x", 86);
    vec![
        ("service account", service_account(), SecretKind::ServiceAccountKey),
        ("in a notebook", format!("{{\"cells\": [{:?}]}}", service_account()), SecretKind::ServiceAccountKey),
        ("base64 of it", base64(&service_account()), SecretKind::ServiceAccountKey),
        ("user", user("authorized_user"), SecretKind::AuthorizedUser),
        ("base64 of a user", format!("X={}", base64(&user("authorized_user").replace("{\"client", "{\"type_\": 1, \"client"))), SecretKind::AuthorizedUser),
        ("workforce user", user("external_account_authorized_user"), SecretKind::ExternalAccountUser),
        (
            "impersonation",
            "{\"type\": \"impersonated_service_account\", \"service_account_impersonation_url\": \"https://x/y\", \
             \"source_credentials\": {\"type\": \"x\"}}".into(),
            SecretKind::ImpersonatedAccount,
        ),
        (
            "federation",
            "{\"type\": \"external_account\", \"audience\": \"//iam/x\", \"subject_token_type\": \
             \"urn:ietf:params:oauth:token-type:jwt\", \"credential_source\": {\"file\": \"/t\"}}".into(),
            SecretKind::ExternalAccount,
        ),
        ("boto", format!("[Credentials]\ngs_oauth2_refresh_token = {}\n", refresh()), SecretKind::AuthorizedUser),
        ("pkcs8", pem(&private(), "MIIEvQIBADANBg", "\n"), SecretKind::PrivateKey),
        ("pkcs1, crlf", pem(&format!("RSA {}", private()), "MIIEpAIBAAKCAQ", "\r\n"), SecretKind::PrivateKey),
        ("openssh", pem(&format!("OPENSSH {}", private()), "b3BlbnNzaC1rZXktdjEA", "\n"), SecretKind::PrivateKey),
        ("encrypted", pem(&format!("ENCRYPTED {}", private()), "MIIFHDBOBgkq", "\n"), SecretKind::PrivateKey),
        (
            "old encrypted",
            pem(&format!("RSA {}", private()), "x", "\n").replacen(
                "-----\n",
                "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00112233445566778899AABBCCDDEEFF\n\n",
                1,
            ),
            SecretKind::PrivateKey,
        ),
        ("a certificate and a key", pem("CERTIFICATE", "MIID", "\n") + &pem(&private(), "MIIE", "\n"), SecretKind::PrivateKey),
        ("kubernetes secret", format!("kind: Secret\ndata:\n  tls.key: {}\n", base64(&pem(&private(), "MIIE", "\n"))), SecretKind::PrivateKey),
        ("aws credentials", aws_file(), SecretKind::AwsKey),
        ("aws csv", format!("Access key ID,Secret access key\nAKIA{},{}\n", "Q".repeat(16), aws()), SecretKind::AwsKey),
        ("aws cli cache", format!("{{\"Credentials\": {{\"SecretAccessKey\": \"{}\"}}}}", aws()), SecretKind::AwsKey),
        ("dot env", format!("# local\nDEBUG=1\nexport AWS_SECRET_ACCESS_KEY=\"{}\"\n", aws()), SecretKind::AwsKey),
        ("dockerfile", format!("FROM x\nENV AZURE_CLIENT_SECRET=abc8Q~{}\n", aws()), SecretKind::AzureLogin),
        (
            "msal",
            format!("{{\"RefreshToken\": {{\"x\": {{\"home_account_id\": \"a.b\", \"secret\": \"0.A{}\"}}}}}}", body("x", 80)),
            SecretKind::AzureLogin,
        ),
        ("adal", format!("[{{\"_authority\": \"https://l/c\", \"refreshToken\": \"A{}\"}}]", body("x", 80)), SecretKind::AzureLogin),
        (
            "azure principal",
            format!("{{\"appId\": \"0aef-11-22\", \"displayName\": \"x\", \"password\": \"q~{}\", \"tenant\": \"t\"}}", aws()),
            SecretKind::AzureLogin,
        ),
        ("azure storage", format!("DefaultEndpointsProtocol=https;AccountName=a;AccountKey={long}==;"), SecretKind::AzureKey),
        ("netrc", "# mine\nmachine example.com\n  login me\n  password s3cr3t-p4ss\n".into(), SecretKind::Netrc),
        ("netrc, odd and short", "machine h login me password Pa$$w0rd%1\n".into(), SecretKind::Netrc),
        ("netrc, brackets", "machine host.example login me password a{b}[c]<d>(*)\n".into(), SecretKind::Netrc),
        ("netrc, tabs", "machine\thost.example\tlogin\tme\tpassword\ts3cr\n".into(), SecretKind::Netrc),
        ("netrc, default", "default\tlogin me\tpassword your1stPass\n".into(), SecretKind::Netrc),
        (
            "kubeconfig, password",
            "apiVersion: v1\nclusters: []\ncurrent-context: x\nusers:\n- user:\n    username: me\n    password: Pa$$%1\n".into(),
            SecretKind::Kubeconfig,
        ),
        (
            "kubeconfig, key",
            format!(
                "apiVersion: v1\nclusters: []\ncurrent-context: x\nusers:\n- user:\n    client-key-data: {}\n",
                base64(&pem(&format!("EC {}", private()), "MHcCAQEEI", "\n"))
            ),
            SecretKind::Kubeconfig,
        ),
        (
            "distributed cloud",
            format!(
                "{{\"type\": \"gdch_service_account\", \"format_version\": \"1\", \"project\": \"p\", \"private_key\": \
                 \"{}\", \"name\": \"n\", \"token_uri\": \"https://x/authenticate\"}}",
                pem(&format!("EC {}", private()), "MHcCAQEEI", "\\n")
            ),
            SecretKind::ServiceAccountKey,
        ),
        (
            "azure principals of the CLI",
            format!("[{{\"client_id\": \"0aef1122-3344-5566-7788-99aabbccddee\", \"tenant\": \"t\", \"client_secret\": \"abc8Q~{}\"}}]", aws()),
            SecretKind::AzureLogin,
        ),
        (
            "azure principals of older CLIs",
            format!("[{{\"servicePrincipalId\": \"0aef\", \"servicePrincipalTenant\": \"t\", \"accessToken\": \"abc8Q~{}\"}}]", aws()),
            SecretKind::AzureLogin,
        ),
        (
            "putty",
            format!(
                "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nComment: x\nPublic-Lines: 2\n{}\nPrivate-Lines: 1\n{}\n\
                 Private-MAC: {}\n",
                body("AAAAC3Nza", 68),
                body("AAAAI", 48),
                "0a1b".repeat(16)
            ),
            SecretKind::PrivateKey,
        ),
        (
            "kubeconfig",
            format!("apiVersion: v1\nclusters: []\ncurrent-context: x\nkind: Config\nusers:\n- user:\n    token: {}\n", body("e", 40)),
            SecretKind::Kubeconfig,
        ),
        ("registry", "{\"auths\": {\"reg.example\": {\"auth\": \"bWU6c2VjcmV0cGFzcw==\"}}}".into(), SecretKind::RegistryLogin),
        (
            "credentials.db",
            format!("SQLite format 3\0\u{1}\u{1}CREATE TABLE \"credentials\" (account_id TEXT PRIMARY KEY, value BLOB)\0{}", user("authorized_user")),
            SecretKind::GcloudDatabase,
        ),
        (
            "access_tokens.db",
            format!("SQLite format 3\0CREATE TABLE \"access_tokens\" (account_id TEXT)\0me@x ya29.{}", body("a", 60)),
            SecretKind::GcloudDatabase,
        ),
    ]
}

#[test]
fn keys_of_every_kind_are_known_by_their_content() {
    for (name, text, kind) in samples() {
        assert_eq!(what(text.as_bytes()), Some(kind), "{name}");
        let far = format!("{}\n{text}", "#".repeat(300));
        let anywhere =
            !matches!(kind, SecretKind::GcloudDatabase) && !["base64 of it", "putty"].contains(&name);
        assert!(!anywhere || what(far.as_bytes()).is_some(), "{name}, further down");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn text_about_keys_is_no_key() {
    let dashes = "-----";
    for (name, text) in [
        (
            "code",
            format!("if text.startswith('{dashes}BEGIN {}{dashes}'):\n    return load(text)\n", private()),
        ),
        ("docs", format!("{dashes}BEGIN {}{dashes}\n...\n{dashes}END {}{dashes}\n", private(), private())),
        ("a certificate", pem("CERTIFICATE", "MIIDdzCCAl+gAwIBAgIE", "\n")),
        ("a public key", pem("PUBLIC KEY", "MIIBIjANBgkqhkiG9w0B", "\n")),
        ("a template", "{\"type\": \"service_account\", \"private_key\": \"<your key>\"}".into()),
        ("adc template", "{\"refresh_token\": \"${TOKEN}\", \"client_id\": \"${ID}\"}".into()),
        ("code about it", "self.refresh_token = refresh_token\nself.client_secret = client_secret\n".into()),
        (
            "keywords",
            "Credentials(refresh_token=refresh_token, client_id=client_id, client_secret=None)".into(),
        ),
        ("aws example", "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n".into()),
        ("names", "AWS_SECRET_ACCESS_KEY = \"AWS_SECRET_ACCESS_KEY\"\nAWS_SESSION_TOKEN = 'AWS_SESSION_TOKEN'\n".into()),
        (
            "rfc 6749",
            "{\"access_token\": \"2YotnFZFEjr1zCsicMWpAA\", \"refresh_token\": \"tGzv3JOkF0XG5Qx2TlKWIA\", \"client_id\": \"s6BhdRkqt3\"}".into(),
        ),
        (
            "a test of kubeconfigs",
            "import yaml\nTEST = {'current-context': 'x', 'clusters': [], 'users': [{'user': {'token': 'dGVzdC10b2tlbi1kYXRh'}}]}\n".into(),
        ),
        ("minio", "AWS_SECRET_ACCESS_KEY=minio123\nAWS_ACCESS_KEY_ID=minio\n".into()),
        ("environment", "key = os.environ['AWS_SECRET_ACCESS_KEY']\n".into()),
        ("a digest", format!("AKIA{}: {}\n", "Q".repeat(16), "0a1b2c3d".repeat(5))),
        (
            "azure profile",
            "{\"installationId\": \"1\", \"subscriptions\": [{\"id\": \"2\", \"tenantId\": \"3\"}]}".into(),
        ),
        ("docker helpers", "{\"auths\": {\"gcr.io\": {}}, \"credHelpers\": {\"gcr.io\": \"gcloud\"}}".into()),
        ("netrc template", "machine host.example login me password ${TOKEN}\n".into()),
        ("netrc, shell", "machine host.example login $USER password $API_TOKEN\n".into()),
        ("netrc, placeholders", "machine a.example login me password <token>\nmachine b.example password xxxx\n".into()),
        ("netrc, documentation", "machine host.example login me password your-password\n".into()),
        (
            "kubeconfig template",
            "apiVersion: v1\nclusters: []\ncurrent-context: x\nusers:\n- user:\n    password: ${PASS}\n".into(),
        ),
        ("prose", "machine learning needs no password here, machine or not\n".into()),
        (
            "kubeconfig without",
            "apiVersion: v1\nclusters: []\ncurrent-context: x\nusers:\n- user:\n    exec: {}\n".into(),
        ),
        (
            "an empty database",
            "SQLite format 3\0CREATE TABLE \"credentials\" (account_id TEXT PRIMARY KEY, value BLOB)".into(),
        ),
        (
            "client secrets of an app",
            "{\"installed\": {\"client_id\": \"1-a.apps.googleusercontent.com\", \"project_id\": \"p\"}}"
                .into(),
        ),
        ("a metric", "{\"metrics\": [{\"name\": \"token_accuracy\", \"numberValue\": 0.93}]}".into()),
        ("a csv", "id,token,secret\n1,alpha,beta\n2,gamma,delta\n".repeat(50)),
    ] {
        assert_eq!(what(text.as_bytes()), None, "{name}");
    }
}

fn token_of(claims: &str) -> String {
    use base64::Engine as _;
    let part = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    format!(
        "{}.{}.{}",
        part("{\"alg\":\"RS256\",\"kid\":\"k\"}"),
        part(claims),
        body("s", 86).replace(['+', '/'], "_")
    )
}

#[test]
fn every_secret_variable_is_read_in_text_too() {
    for (name, _) in super::rules::SECRET {
        assert!(what(format!("# local\n{name}={}\n", aws()).as_bytes()).is_some(), "{name}");
        assert_eq!(what(format!("# local\n{name}=${{OTHER}} # or {name}\n").as_bytes()), None, "{name}");
    }
}

/// What `az account get-access-token` prints.
fn az(token: &str) -> String {
    format!(
        "{{\n  \"accessToken\": \"{token}\",\n  \"expiresOn\": \"2027-01-01 00:00:00.000000\",\n  \"expires_on\": 1798761600,\n  \
         \"subscription\": \"0b1f6471-1bf0-4dda-aec3-cb9272f09590\",\n  \"tenant\": \"72f988bf-86f1-41af-91ab-2d7cd011db47\",\n  \
         \"tokenType\": \"Bearer\"\n}}\n"
    )
}

/// Each login of AWS and Azure that is kept in a file or a variable, and beside it what only looks like it.
#[test]
fn logins_of_aws_and_azure_are_found_and_look_alikes_are_not() {
    let (token, secret, signature) = (body("aoa", 200), body("eyJ", 120), body("x", 43));
    let start = "\"startUrl\": \"https://d-1.awsapps.com/start\"";
    let registered = format!("\"clientId\": \"abcd\", \"clientSecret\": \"{secret}\"");
    for (name, text, kind) in [
        ("sso", format!("{{{start}, \"accessToken\": \"{token}\"}}"), Some(SecretKind::AwsLogin)),
        ("sso session", format!("{{{start}, {registered}, \"refreshToken\": \"{token}\"}}"), Some(SecretKind::OauthToken)),
        ("sso registration", format!("{{{registered}, \"expiresAt\": \"2027-01-01T00:00:00Z\"}}"), None),
        ("sso, a word", format!("{{{start}, \"accessToken\": \"the-access-token-of-the-session-goes-here\"}}"), None),
        (
            "azcopy",
            format!("{{\"access_token\": \"{token}\", \"refresh_token\": \"0.A{token}\", \"resource\": \"x\"}}"),
            Some(SecretKind::OauthToken),
        ),
        ("az", az(&format!("eyJ{token}")), Some(SecretKind::AzureLogin)),
        ("az, as yaml", format!("accessToken: eyJ{token}\nexpires_on: 1767225600\nsubscription: 0aef\ntenant: 72f988bf\ntokenType: Bearer\n"), Some(SecretKind::AzureLogin)),
        ("az, of many groups", az(&body("eyJ", 12_000)), Some(SecretKind::AzureLogin)),
        ("az, an example", az("eyJ0eXAiOiJKV1QiLCJhbGciOi..."), None),
        ("az, a stand-in", az("<your-access-token-of-this-subscription>"), None),
        ("aks", token_of("{\"aud\":[\"api://AzureADTokenExchange\"],\"iss\":\"https://a.example\"}"), Some(SecretKind::FederatedToken)),
        ("eks", token_of("{\"aud\":[\"sts.amazonaws.com\"],\"iss\":\"https://a.example\"}"), Some(SecretKind::FederatedToken)),
        ("another audience", token_of("{\"aud\":[\"https://a.example\"],\"iss\":\"https://a.example\"}"), None),
        ("sas", format!("?sv=2022-11-02&sr=c&se=2027-01-01T00:00:00Z&sp=r&sig={signature}%3D"), Some(SecretKind::SasToken)),
        ("no end", format!("?sv=2022-11-02&sr=c&sp=r&sig={signature}%3D"), None),
        ("bedrock", format!("export AWS_BEARER_TOKEN_BEDROCK=ABSK{secret}\n"), Some(SecretKind::SecretVariable)),
        ("bedrock, code", "key = os.environ[\"AWS_BEARER_TOKEN_BEDROCK\"]\nAWS_BEARER_TOKEN_BEDROCK=\"$TOKEN_OF_BEDROCK\"\n".into(), None),
        ("certificate", format!("AZURE_CLIENT_CERTIFICATE_PASSWORD={}\n", aws()), Some(SecretKind::SecretVariable)),
        ("certificate, code", "AZURE_CLIENT_CERTIFICATE_PASSWORD = \"AZURE_CLIENT_CERTIFICATE_PASSWORD\"\n".into(), None),
        (
            "doors of one container",
            format!("IDENTITY_HEADER={signature}\nAWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v2/credentials/{signature}\n"),
            None,
        ),
    ] {
        assert_eq!(what(text.as_bytes()), kind, "{name}");
    }
}

#[test]
fn der_needs_the_right_length() {
    let mut key = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    key.extend([7; 32]);
    assert_eq!(what(&key), Some(SecretKind::PrivateKey));
    key.push(0);
    assert_eq!(what(&key), None);
}

fn openssl(folder: &Path, arguments: &[&str]) -> Vec<u8> {
    let made = std::process::Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
    let why = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "openssl {arguments:?}: {why}");
    made.stdout
}

#[test]
fn openssls_own_keys_are_found() {
    let tree = Tree::new("openssl");
    let run = |arguments: &str| openssl(&tree.0, &arguments.split(' ').collect::<Vec<_>>());
    let found = |arguments: &str| {
        assert_eq!(what(&run(arguments)), Some(SecretKind::PrivateKey), "{arguments}");
    };
    // PKCS#8.
    found("genpkey -algorithm ED25519");
    found("genpkey -algorithm ED25519 -outform DER");
    found("genpkey -algorithm ED448 -outform DER");
    found("genpkey -algorithm X25519 -outform DER");
    found("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256");
    found("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -outform DER");
    found("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes256 -pass pass:x");
    // PKCS#1, and DER of both forms.
    found("genrsa 2048");
    fs::write(tree.0.join("rsa.pem"), run("genrsa 2048")).unwrap();
    found("rsa -in rsa.pem -outform DER");
    found("rsa -in rsa.pem -traditional -outform DER");
    found("pkcs8 -topk8 -in rsa.pem -nocrypt -outform DER");
    found("pkcs8 -topk8 -in rsa.pem -passout pass:x -outform DER");
    // SEC 1.
    for curve in ["secp224r1", "prime256v1", "secp384r1", "secp521r1", "secp256k1", "brainpoolP512r1"] {
        for form in ["PEM", "DER"] {
            found(&format!("ecparam -name {curve} -genkey -noout -outform {form}"));
        }
    }
    // PKCS#12, with a password and without any encryption.
    run("req -x509 -newkey rsa:2048 -nodes -keyout k.pem -out c.pem -subj /CN=x -days 1");
    found("pkcs12 -export -inkey k.pem -in c.pem -passout pass:x");
    found("pkcs12 -export -inkey k.pem -in c.pem -passout pass: -keypbe NONE -certpbe NONE -nomac");
    // Public files, which are not keys.
    for public in [
        "x509 -in c.pem -outform DER",
        "x509 -in c.pem",
        "rsa -in rsa.pem -pubout -outform DER",
        "rsa -in rsa.pem -pubout",
        "pkcs12 -export -nokeys -in c.pem -passout pass:x",
        "ecparam -name prime256v1 -outform DER",
    ] {
        assert_eq!(what(&run(public)), None, "{public}");
    }
}

/// A netrc counts as published only as a whole: another file may have the same password without being
/// published.
#[test]
fn a_netrc_is_known_by_the_whole_of_it() {
    use super::content::digests;
    use super::published::digest;
    let login = |password: &str| format!("machine imap login bob port imaps password {password}\n");
    let file = [login("b0bwillknow"), login("AnotherOne7")].concat();
    assert_eq!(digests(file.as_bytes()), [(SecretKind::Netrc, digest(file.as_bytes()))]);
    assert_eq!(what(file.as_bytes()), Some(SecretKind::Netrc));
    let other = file.replace("bob", "eve");
    assert_ne!(digests(file.as_bytes()), digests(other.as_bytes()));
}
