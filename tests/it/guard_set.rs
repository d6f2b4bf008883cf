//! How many keys the guard finds and how often it is wrong, on a set that is made when the test runs: keys of
//! every kind as people keep them, and texts that look like keys. Nothing here is a secret, and the tree
//! contains no key.

use std::fmt::Write as _;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kfp_creds::guard::content::what;
use kfp_creds::guard::environment::variable;
use ring::rand::{SecureRandom, SystemRandom};

type Sample = (String, Vec<u8>);

pub(crate) fn random(alphabet: &str, length: usize) -> String {
    let mut bytes = vec![0; length];
    SystemRandom::new().fill(&mut bytes).unwrap();
    let alphabet: Vec<char> = alphabet.chars().collect();
    bytes.iter().map(|b| alphabet[usize::from(*b) % alphabet.len()]).collect()
}

pub(crate) fn bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SystemRandom::new().fill(&mut bytes).unwrap();
    bytes
}

pub(crate) const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
pub(crate) const TOKEN: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
pub(crate) const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

pub(crate) fn guid() -> String {
    let hex = |length| random("0123456789abcdef", length);
    format!("{}-{}-4{}-a{}-{}", hex(8), hex(4), hex(3), hex(3), hex(12))
}

pub(crate) fn entra() -> String {
    format!("{}8Q~{}", random(LETTERS, 3), random(LETTERS, 34))
}

pub(crate) fn aws() -> (String, String) {
    // One key in a hundred has fewer than two digits, and the guard takes it for a name
    // (docs/security/guard.md).
    let digits = |key: &String| key.bytes().filter(u8::is_ascii_digit).count();
    let mut keys = std::iter::repeat_with(|| STANDARD.encode(bytes(30)));
    (format!("AKIA{}", random(UPPER, 16)), keys.find(|key| digits(key) >= 2).unwrap())
}

pub(crate) fn refresh() -> String {
    format!("1//0{}", random(TOKEN, 99))
}

pub(crate) fn jwt(claims: &str) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!(
        "{}.{}.{}",
        part("{\"alg\":\"RS256\",\"typ\":\"JWT\"}"),
        part(claims),
        URL_SAFE_NO_PAD.encode(bytes(256))
    )
}

pub(crate) fn openssl(arguments: &str, input: &[u8]) -> Vec<u8> {
    run("openssl", &arguments.split(' ').collect::<Vec<_>>(), input)
}

pub(crate) fn python(program: &str, input: &[u8]) -> Vec<u8> {
    let python = std::env::var("KFP_CREDS_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    run(&python, &["-c", program], input)
}

fn run(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().unwrap().write_all(input).unwrap();
    let made = child.wait_with_output().unwrap();
    assert!(made.status.success() && !made.stdout.is_empty(), "{program} {arguments:?}");
    made.stdout
}

pub(crate) fn wrapped(text: &str, width: usize, lead: &str) -> String {
    let lines =
        text.as_bytes().chunks(width).map(|line| format!("{lead}{}\n", String::from_utf8_lossy(line)));
    lines.collect()
}

fn wide(text: &str, little: bool, mark: bool) -> Vec<u8> {
    let units = mark.then_some(0xfeff).into_iter().chain(text.encode_utf16());
    units.flat_map(|unit| if little { unit.to_le_bytes() } else { unit.to_be_bytes() }).collect()
}

fn quoted(text: &str, plus: bool) -> String {
    text.bytes()
        .map(|b| match b {
            b if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) => char::from(b).to_string(),
            b' ' if plus => "+".into(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

fn printable(text: &str) -> String {
    let mut out = String::new();
    let mut column = 0;
    for c in text.chars() {
        let shown = match c {
            '\n' => "\n".to_string(),
            '=' => "=3D".into(),
            c => c.to_string(),
        };
        if column + shown.len() > 75 && c != '\n' {
            out.push_str("=\n");
            column = 0;
        }
        column = if c == '\n' { 0 } else { column + shown.len() };
        out.push_str(&shown);
    }
    out
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('\n', "&#10;").replace('<', "&lt;")
}

/// Files that contain a bare key.
struct Files {
    key: String,
    service_account: String,
    user: String,
    aws: String,
    connection: String,
    sas: String,
}

fn files() -> Files {
    let key =
        String::from_utf8(openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048", b"")).unwrap();
    let service_account = serde_json::to_string_pretty(&serde_json::json!({
        "type": "service_account", "project_id": "proj", "private_key_id": random("0123456789abcdef", 40), "private_key": key,
        "client_email": "a@proj.iam.gserviceaccount.com", "client_id": random("0123456789", 21),
        "auth_uri": "https://accounts.google.com/o/oauth2/auth", "token_uri": "https://oauth2.googleapis.com/token",
    }))
    .unwrap();
    let user = serde_json::to_string_pretty(&serde_json::json!({
        "account": "", "client_id": format!("{}-{}.apps.googleusercontent.com", random("0123456789", 12), random("abcdefghij0123", 32)),
        "client_secret": format!("GOCSPX-{}", random(TOKEN, 28)), "refresh_token": refresh(), "type": "authorized_user",
    }))
    .unwrap();
    let (id, secret) = aws();
    let aws = format!(
        "[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\nregion = eu-west-1\n"
    );
    let connection = format!(
        "DefaultEndpointsProtocol=https;AccountName=store{};AccountKey={};EndpointSuffix=core.windows.net",
        random("abcdef", 4),
        STANDARD.encode(bytes(64))
    );
    let sas = format!(
        "sv=2022-11-02&ss=b&srt=sco&sp=rl&se=2027-01-01T00:00:00Z&st=2026-01-01T00:00:00Z&spr=https&sig={}",
        quoted(&STANDARD.encode(bytes(32)), false)
    );
    Files { key, service_account, user, aws, connection, sas }
}

fn sorted(json: &str) -> String {
    let value: std::collections::BTreeMap<String, serde_json::Value> = serde_json::from_str(json).unwrap();
    serde_json::to_string(&value).unwrap()
}

/// Each file in each disguise: encoded, archived, embedded.
fn guises(files: &Files) -> Vec<Sample> {
    let mut all = vec![];
    let plain = [
        ("key", &files.key),
        ("service account", &files.service_account),
        ("user", &files.user),
        ("aws", &files.aws),
    ];
    for (name, text) in plain {
        let code = STANDARD.encode(text);
        let mut add = |how: &str, bytes: Vec<u8>| all.push((format!("{name}, {how}"), bytes));
        add("as it is", text.clone().into());
        add("base64", code.clone().into());
        for width in [76, 64, 32, 10] {
            add(&format!("base64, {width} columns"), wrapped(&code, width, "").into());
        }
        add(
            "base64 in YAML",
            format!("kind: Secret\ndata:\n  file: |\n{}", wrapped(&code, 76, "    ")).into(),
        );
        add("base64 in YAML, one line", format!("kind: Secret\ndata:\n  file: {code}\n").into());
        add(
            "base64 in a program",
            format!("KEY = (\n{})\n", wrapped(&code, 60, "    \"").replace('\n', "\"\n")).into(),
        );
        add(
            "base64 in JSON",
            format!("{{\"file\": \"{}\"}}", wrapped(&code, 76, "").replace('\n', "\\n")).into(),
        );
        for more in ["x", "xy"] {
            add("base64, elsewhere", STANDARD.encode(format!("{more}\n{text}")).into());
        }
        add("base64 for URLs", URL_SAFE_NO_PAD.encode(text).into());
        add("base64 twice", STANDARD.encode(wrapped(&code, 76, "")).into());
        for (little, mark) in [(true, true), (true, false), (false, true), (false, false)] {
            add(&format!("UTF-16, little {little}, mark {mark}"), wide(text, little, mark));
        }
        add("a URL", format!("google-cloud-platform://?extra__keyfile_dict={}", quoted(text, false)).into());
        add("a form", format!("name=x&file={}&more=1", quoted(text, true)).into());
        add("mail", format!("Content-Transfer-Encoding: quoted-printable\n\n{}", printable(text)).into());
        add("HTML", format!("<input value=\"{}\">\n", html(text)).into());
        add("JSON in JSON", format!("{{\"a\": {:?}}}", serde_json::to_string(text).unwrap()).into());
        add("JSON as Go writes it", serde_json::to_string(text).unwrap().replace("\\\"", "\\u0022").into());
        add("late", format!("{}{text}", "a line of a log, number 12: fine\n".repeat(90_000)).into());
        add("in a database", database(text));
        add("in a pickle", pickled(text));
    }
    all.push((
        "service account, sorted, base64".into(),
        STANDARD.encode(sorted(&files.service_account)).into(),
    ));
    all.push(("user, sorted, base64".into(), STANDARD.encode(sorted(&files.user)).into()));
    all
}

pub(crate) fn database(text: &str) -> Vec<u8> {
    let program = "import sqlite3, sys\ntext = sys.stdin.read()\nd = sqlite3.connect(':memory:')\nd.execute('create table connection (id, extra)')\n\
         d.execute('insert into connection values (1, ?)', (text,))\nd.commit()\nsys.stdout.buffer.write(d.serialize())";
    python(program, text.as_bytes())
}

fn pickled(text: &str) -> Vec<u8> {
    python(
        "import pickle, sys\nsys.stdout.buffer.write(pickle.dumps({'info': sys.stdin.read()}))",
        text.as_bytes(),
    )
}

fn gzip(text: &str) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn store(magic: [u8; 4], entry: u32) -> Vec<u8> {
    let mut store = magic.to_vec();
    let mut put = |bytes: &[u8]| store.extend_from_slice(bytes);
    put(&2_u32.to_be_bytes());
    put(&2_u32.to_be_bytes());
    // A certificate, then the entry with the key.
    for kind in [2, entry] {
        put(&kind.to_be_bytes());
        put(&4_u16.to_be_bytes());
        put(b"name");
        put(&[0; 8]);
        if kind == 1 {
            put(&64_u32.to_be_bytes());
            put(&bytes(64));
            put(&0_u32.to_be_bytes());
        } else {
            put(&5_u16.to_be_bytes());
            put(b"X.509");
            put(&90_u32.to_be_bytes());
            put(&bytes(90));
        }
    }
    put(&bytes(20));
    store
}

/// Binary keys and key stores.
fn binaries(files: &Files) -> Vec<Sample> {
    let folder = std::env::temp_dir().join(format!("kfp-creds-set-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (key, certificate) = (folder.join("k").display().to_string(), folder.join("c").display().to_string());
    std::fs::write(&key, &files.key).unwrap();
    std::fs::write(&certificate, openssl(&format!("req -x509 -key {key} -subj /CN=x -days 1"), b"")).unwrap();
    let p12 = openssl(&format!("pkcs12 -export -inkey {key} -in {certificate} -passout pass:x"), b"");
    // In BouncyCastle's encoding, the outer lengths are indefinite.
    let mut ber = vec![0x30, 0x80];
    ber.extend_from_slice(&p12[4..]);
    ber.extend_from_slice(&[0, 0]);
    let all = [
        ("der", openssl("pkcs8 -topk8 -nocrypt -outform DER", files.key.as_bytes())),
        ("der, pkcs1", openssl("rsa -outform DER -traditional", files.key.as_bytes())),
        ("der, encrypted", openssl("pkcs8 -topk8 -passout pass:x -outform DER", files.key.as_bytes())),
        ("pem, encrypted", openssl("pkcs8 -topk8 -passout pass:x", files.key.as_bytes())),
        ("ec", openssl("ecparam -name prime256v1 -genkey -noout", b"")),
        ("ec, der", openssl("ecparam -name prime256v1 -genkey -noout -outform DER", b"")),
        ("ed25519", openssl("genpkey -algorithm ED25519", b"")),
        ("ed25519, der", openssl("genpkey -algorithm ED25519 -outform DER", b"")),
        ("p12, base64", STANDARD.encode(&p12).into()),
        (
            "der, base64",
            STANDARD.encode(openssl("pkcs8 -topk8 -nocrypt -outform DER", files.key.as_bytes())).into(),
        ),
        ("p12", p12),
        ("p12, ber", ber),
        ("jks", store([0xfe, 0xed, 0xfe, 0xed], 1)),
        ("jceks", store([0xce; 4], 1)),
        ("jks, base64", STANDARD.encode(store([0xfe, 0xed, 0xfe, 0xed], 1)).into()),
    ];
    std::fs::remove_dir_all(folder).unwrap();
    all.into_iter().map(|(name, bytes)| (name.to_string(), bytes)).collect()
}

/// Files of known tools.
#[expect(clippy::too_many_lines, reason = "a table")]
fn tools(files: &Files) -> Vec<Sample> {
    let (id, secret) = aws();
    let exponent = |length| URL_SAFE_NO_PAD.encode(bytes(length));
    let login = STANDARD.encode(format!("me:{}", random(LETTERS, 20)));
    let docker = format!("{{\"auths\": {{\"registry.example\": {{\"auth\": \"{login}\"}}}}}}");
    let long = || random(TOKEN, 900);
    let token = format!(
        "{{\"access_token\":\"ya29.{}\",\"token_type\":\"Bearer\",\"refresh_token\":\"{}\"}}",
        random(TOKEN, 180),
        refresh()
    );
    let token_pickle = python(
        "import pickle, sys\nr, a = sys.stdin.read().split()\nclass C: pass\nc = C()\nc._refresh_token, c.token = r, a\n\
         sys.stdout.buffer.write(pickle.dumps(c))",
        format!("{} ya29.{}", refresh(), random(TOKEN, 180)).as_bytes(),
    );
    let all: Vec<(&str, Vec<u8>)> = vec![
        ("aws, env", format!("export AWS_ACCESS_KEY_ID={id}\nexport AWS_SECRET_ACCESS_KEY={secret}\n").into()),
        ("aws, csv", format!("Access key ID,Secret access key\n{id},{secret}\n").into()),
        ("aws, terraform", format!("provider \"aws\" {{\n  access_key = \"{id}\"\n  secret_key = \"{secret}\"\n}}\n").into()),
        ("aws, secret_key", format!("bucket: b\nsecret_key: {secret}\n").into()),
        ("aws, secret beside id", format!("[x]\naccess_key = {id}\n# a comment {}\nsecret = {secret}\n", "a ".repeat(110)).into()),
        ("aws, spark", format!("spark.hadoop.fs.s3a.access.key {id}\nspark.hadoop.fs.s3a.secret.key={secret}\n").into()),
        ("aws, kubernetes", format!("env:\n- name: AWS_SECRET_ACCESS_KEY\n  value: {secret}\n").into()),
        ("aws, session", format!("{{\"Credentials\": {{\"AccessKeyId\": \"ASIA{}\", \"SecretAccessKey\": \"{secret}\", \"SessionToken\": \"{}\"}}}}", random(UPPER, 16), long()).into()),
        ("aws, pickle", pickled(&format!("{id} {secret}"))),
        ("aws, sso", format!("{{\"startUrl\": \"https://d-1.awsapps.com/start\", \"region\": \"eu-west-1\", \"accessToken\": \"aoa{}\", \"expiresAt\": \"2027-01-01T00:00:00Z\"}}", random(TOKEN, 120)).into()),
        ("aws, sso refresh", format!("{{\"clientId\": \"{}\", \"clientSecret\": \"{}\", \"refreshToken\": \"aor{}\"}}", random(TOKEN, 22), jwt("{\"x\": 1}"), random(TOKEN, 200)).into()),
        ("s3cfg", format!("[default]\naccess_key = {id}\nsecret_key = {secret}\n").into()),
        ("azure, connection", files.connection.clone().into()),
        ("azure, env", format!("AZURE_STORAGE_CONNECTION_STRING=\"{}\"\n", files.connection).into()),
        ("azure, base64 of a connection", STANDARD.encode(&files.connection).into()),
        ("azure, UTF-16", wide(&files.connection, true, true)),
        ("azure, keys", format!("[{{\"keyName\": \"key1\", \"permissions\": \"FULL\", \"value\": \"{}\"}}]", STANDARD.encode(bytes(64))).into()),
        ("azure, hadoop", format!("fs.azure.account.key.x.dfs.core.windows.net={}\n", STANDARD.encode(bytes(64))).into()),
        ("azure, principal", format!("{{\"appId\": \"{}\", \"displayName\": \"x\", \"password\": \"{}\", \"tenant\": \"{}\"}}", guid(), entra(), guid()).into()),
        ("azure, old principal", format!("{{\"clientId\": \"{}\", \"clientSecret\": \"{}\", \"tenantId\": \"{}\"}}", guid(), guid(), guid()).into()),
        ("azure, program", format!("ClientSecretCredential(tenant_id=\"{}\", client_id=\"{}\", client_secret=\"{}\")\n", guid(), guid(), entra()).into()),
        ("azure, env secret", format!("AZURE_CLIENT_SECRET={}\n", entra()).into()),
        ("azure, command", format!("az login --service-principal --username {} --password {} --tenant {}\n", guid(), entra(), guid()).into()),
        ("azure, msal", format!("{{\"RefreshToken\": {{\"x\": {{\"home_account_id\": \"{}.{}\", \"secret\": \"0.A{}\"}}}}}}", guid(), guid(), long()).into()),
        ("azure, azcopy", format!("{{\"access_token\":\"{}\",\"refresh_token\":\"0.A{}\",\"expires_in\":\"3599\",\"resource\":\"https://storage.azure.com\"}}", jwt("{\"aud\":\"https://storage.azure.com\"}"), long()).into()),
        ("azure, sas", files.sas.clone().into()),
        ("azure, sas url", format!("URL = \"https://store.blob.core.windows.net/c/b.csv?{}\"\n", files.sas).into()),
        ("azure, sas in JSON", serde_json::json!({"url": format!("https://s/c?{}", files.sas)}).to_string().replace('&', "\\u0026").into()),
        ("azure, sas in HTML", format!("<a href=\"https://s/c?{}\">x</a>", html(&files.sas)).into()),
        ("azure, bus", format!("Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccessKey={}", STANDARD.encode(bytes(32))).into()),
        ("docker config", docker.clone().into()),
        ("kubernetes, dockerconfigjson", format!("apiVersion: v1\nkind: Secret\ntype: kubernetes.io/dockerconfigjson\ndata:\n  .dockerconfigjson: {}\n", STANDARD.encode(&docker)).into()),
        ("dockercfg", format!("{{\"https://index.docker.io/v1/\": {{\"auth\": \"{login}\", \"email\": \"a@b.example\"}}}}").into()),
        ("kubeconfig", format!("apiVersion: v1\nclusters: []\ncurrent-context: x\nkind: Config\nusers:\n- user:\n    token: {}\n", random(TOKEN, 40)).into()),
        ("kubeconfig, key", format!("apiVersion: v1\nclusters: []\ncurrent-context: x\nkind: Config\nusers:\n- user:\n    client-key-data: {}\n", STANDARD.encode(&files.key)).into()),
        ("netrc", format!("machine api.example login me password {}\n", random(LETTERS, 12)).into()),
        ("boto", format!("[Credentials]\ngs_oauth2_refresh_token = {}\n", refresh()).into()),
        ("boto, hmac", format!("[Credentials]\ngs_access_key_id = GOOG1E{}\ngs_secret_access_key = {}\n", random(UPPER, 55), STANDARD.encode(bytes(30))).into()),
        ("rclone", format!("[gcs]\ntype = google cloud storage\ntoken = {token}\n").into()),
        ("rclone, s3", format!("[s3]\ntype = s3\naccess_key_id = {id}\nsecret_access_key = {secret}\n").into()),
        ("token.json", token.clone().into()),
        ("token.pickle", token_pickle),
        ("federation", "{\"type\": \"external_account\", \"audience\": \"//iam.googleapis.com/projects/123456/locations/global/workloadIdentityPools/ci/providers/gitlab\", \
            \"subject_token_type\": \"urn:ietf:params:oauth:token-type:jwt\", \"credential_source\": {\"file\": \"/t\"}}".into()),
        ("impersonation", format!("{{\"type\": \"impersonated_service_account\", \"service_account_impersonation_url\": \"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/a@p.iam.gserviceaccount.com:generateAccessToken\", \"source_credentials\": {}}}", files.user).into()),
        ("federated token, azure", jwt("{\"aud\":\"api://AzureADTokenExchange\",\"iss\":\"https://token.actions.githubusercontent.com\",\"sub\":\"repo:a/b\"}").into()),
        ("federated token, aws", jwt("{\"aud\":[\"sts.amazonaws.com\"],\"iss\":\"https://oidc.eks.eu-west-1.amazonaws.com/id/1\",\"sub\":\"system:serviceaccount:a:b\"}").into()),
        ("jwk, rsa", format!("{{\"kty\":\"RSA\",\"n\":\"{}\",\"e\":\"AQAB\",\"d\":\"{}\"}}", exponent(256), exponent(256)).into()),
        ("jwk, ec", format!("{{\"kty\": \"EC\", \"crv\": \"P-256\", \"x\": \"{}\", \"y\": \"{}\", \"d\": \"{}\"}}", exponent(32), exponent(32), exponent(32)).into()),
        ("jwk, base64", STANDARD.encode(format!("{{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"{}\",\"d\":\"{}\"}}", exponent(32), exponent(32))).into()),
        ("compose", format!("services:\n  a:\n    environment:\n      - AWS_SECRET_ACCESS_KEY={secret}\n      AZURE_CLIENT_SECRET: {}\n", entra()).into()),
        ("hadoop", format!("<property>\n  <name>fs.s3a.secret.key</name>\n  <value>{secret}</value>\n</property>\n").into()),
        ("sts", format!("<Credentials><SecretAccessKey>{secret}</SecretAccessKey></Credentials>\n").into()),
        ("dockerfile", format!("FROM x\nENV AWS_SECRET_ACCESS_KEY {secret}\n").into()),
        ("spark, properties", format!("spark.hadoop.fs.azure.account.key.x.dfs.core.windows.net {}\n", STANDARD.encode(bytes(64))).into()),
        ("rclone, azure", format!("[a]\ntype = azureblob\naccount = x\nkey = {}\n", STANDARD.encode(bytes(64))).into()),
        ("terraform state", format!("{{\"primary_access_key\": \"{}\"}}", STANDARD.encode(bytes(64))).into()),
        ("airflow, aws", format!("AIRFLOW_CONN_AWS=aws://{id}:{}@/?region_name=eu-west-1\n", quoted(&secret, false)).into()),
        ("a URL in a URL", quoted(&quoted(&files.service_account, false), false).into()),
        ("gzip in base64", STANDARD.encode(gzip(&files.service_account)).into()),
        ("docker, password", format!("{{\"auths\": {{\"r.example\": {{\"username\": \"me\", \"password\": \"{}\"}}}}}}", random(LETTERS, 14)).into()),
        ("pem in a list", serde_json::to_string(&files.key.lines().collect::<Vec<_>>()).unwrap().into()),
        ("write-ahead log", [&[0x37, 0x7f, 0x06, 0x82, 0, 0][..], format!("\0\0x{}\0", files.aws).as_bytes()].concat()),
        ("pem in spaces", files.key.replace('\n', " ").into()),
        ("pem, indented", files.key.lines().fold(String::from("tls:\n  key: |\n"), |all, line| all + "    " + line + "\n").into()),
        ("php", serde_json::to_string(&files.key).unwrap().replace('/', "\\/").into()),
        ("hexadecimal", files.service_account.bytes().fold(String::new(), |mut all, b| {
            let _ = write!(all, "{b:02x}");
            all
        }).into()),
    ];
    all.into_iter().map(|(name, bytes)| (name.to_string(), bytes)).collect()
}

/// Texts that only look like keys.
#[expect(clippy::too_many_lines, reason = "a table")]
fn alike(files: &Files) -> Vec<Sample> {
    let dashes = "-----";
    let private = ["PRIVATE", "KEY"].join(" ");
    let hex = |length| random("0123456789abcdef", length);
    let azurite =
        ["Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/", "K1SZFPTOtr/KBHBeksoGMGw=="]
            .concat();
    let integrity: String = (0..200)
        .map(|n| format!("\"pkg{n}\": {{\"integrity\": \"sha512-{}\"}},\n", STANDARD.encode(bytes(64))))
        .collect();
    let mut all: Vec<(String, Vec<u8>)> = [
        ("doc string", "    client = Client(tenant_id=\"my-tenant\", client_id=\"my-client-id\", client_secret=\"my-client-secret\")\n".to_string()),
        ("keywords", "Credential(tenant_id=tenant_id, client_id=client_id, client_secret=client_secret)\n".into()),
        ("attributes", "self.tenant_id = tenant_id\nself.client_id = client_id\nself._client_secret = client_secret\n".into()),
        ("environment", "secret = os.environ['AZURE_CLIENT_SECRET']\nkey = os.getenv(\"AWS_SECRET_ACCESS_KEY\")\n".into()),
        ("names", "AWS_SECRET_ACCESS_KEY = \"AWS_SECRET_ACCESS_KEY\"\nAZURE_CLIENT_SECRET = 'AZURE_CLIENT_SECRET'\n".into()),
        ("template", "aws_secret_access_key = ${AWS_SECRET_ACCESS_KEY}\nclient_secret = {{ client_secret }}\n".into()),
        ("aws documentation", "aws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n".into()),
        ("moto", "AWS_ACCESS_KEY_ID=testing\nAWS_SECRET_ACCESS_KEY=testing\nAWS_SESSION_TOKEN=testing\n".into()),
        ("minio", "AWS_SECRET_ACCESS_KEY=minioadmin123\nsecret_key = minio-secret-key\n".into()),
        ("azurite", format!("AZURE_STORAGE_CONNECTION_STRING=DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={azurite};\n")),
        ("azurite, key", format!("AZURE_STORAGE_KEY={azurite}\n")),
        ("federation, example", "{\"type\": \"external_account\", \"audience\": \"//iam.googleapis.com/projects/$PROJECT_NUMBER/locations/global/workloadIdentityPools/$POOL_ID/providers/$PROVIDER_ID\", \"subject_token_type\": \"urn:ietf:params:oauth:token-type:jwt\", \"credential_source\": {\"file\": \"/t\"}}".into()),
        ("federation, words", "{\"type\": \"external_account\", \"audience\": \"//iam.googleapis.com/projects/PROJECT_NUMBER/locations/global/workloadIdentityPools/POOL_ID/providers/PROVIDER_ID\", \"subject_token_type\": \"urn:ietf:params:oauth:token-type:jwt\", \"credential_source\": {\"file\": \"/t\"}}".into()),
        ("service account, template", "{\"type\": \"service_account\", \"private_key\": \"-----BEGIN LABEL-----\\nYOUR KEY HERE\\n-----END LABEL-----\\n\", \"client_email\": \"x\"}".replace("LABEL", &private)),
        ("dots", format!("{dashes}BEGIN {private}{dashes}\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC...\n{dashes}END {private}{dashes}\n")),
        ("pem check", format!("if not key.startswith(\"{dashes}BEGIN {private}{dashes}\"):\n    raise ValueError(\"the key has to be in PEM and unencrypted, see the documentation\")\n")),
        ("pem prose", format!("A file begins with {dashes}BEGIN {private}{dashes} and then has the key in base64 with lines of sixty four characters each until the end is reached\n")),
        ("pem of x", format!("{dashes}BEGIN {private}{dashes}\n{}\n{dashes}END {private}{dashes}\n", wrapped(&"x".repeat(640), 64, ""))),
        ("user, template", "{\"client_id\": \"<id>\", \"client_secret\": \"<secret>\", \"refresh_token\": \"<token>\", \"type\": \"authorized_user\"}".into()),
        ("user, documentation", "{\"client_id\": \"your-client-id\", \"client_secret\": \"your-client-secret\", \"refresh_token\": \"1//your-refresh-token\", \"type\": \"authorized_user\"}".into()),
        ("rfc 6749", "{\"access_token\": \"2YotnFZFEjr1zCsicMWpAA\", \"refresh_token\": \"tGzv3JOkF0XG5Qx2TlKWIA\"}".into()),
        ("google documentation", "{\"access_token\": \"ya29.a0AfH6SM...\", \"refresh_token\": \"1//0dx...\"}".into()),
        ("jwk, public", format!("{{\"keys\": [{{\"kty\": \"RSA\", \"n\": \"{}\", \"e\": \"AQAB\", \"kid\": \"{}\"}}]}}", URL_SAFE_NO_PAD.encode(bytes(256)), hex(40))),
        ("jwt", jwt("{\"aud\":\"my-app\",\"iss\":\"https://issuer.example\",\"sub\":\"1234567890\"}")),
        ("audience", "aud: sts.amazonaws.com\niss: https://token.actions.githubusercontent.com\n".into()),
        ("docker helpers", "{\"auths\": {\"gcr.io\": {}}, \"credHelpers\": {\"gcr.io\": \"gcloud\"}}".into()),
        ("docker documentation", format!("{{\"auths\": {{\"https://index.docker.io/v1/\": {{\"auth\": \"{}\"}}}}}}", STANDARD.encode("username:password"))),
        ("kubeconfig without", "apiVersion: v1\nclusters: []\ncurrent-context: x\nkind: Config\nusers:\n- name: a\n  user:\n    exec:\n      command: gke-gcloud-auth-plugin\n".into()),
        ("netrc, template", "machine a.example login $USER password $API_TOKEN\nmachine b.example password <token>\n".into()),
        ("netrc, documentation", "machine a.example\nlogin me\npassword mypassword\n".into()),
        ("cosmos emulator", format!("AccountEndpoint=https://localhost:8081/;AccountKey={}", ["C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8m", "GGyPMbIZnqyMsEcaGQy67XIw/Jw=="].concat())),
        ("sealed", format!("kind: SealedSecret\nspec:\n  encryptedData:\n    password: {}\n", STANDARD.encode(bytes(400)))),
        ("sops", format!("password: ENC[AES256_GCM,data:{},iv:{},tag:{},type:str]\n", STANDARD.encode(bytes(40)), STANDARD.encode(bytes(32)), STANDARD.encode(bytes(16)))),
        ("ssh, public", format!("ssh-rsa AAAAB3NzaC1yc2E{} me@host\n", STANDARD.encode(bytes(270)))),
        ("hadoop, template", "<property><name>fs.s3a.secret.key</name><value>${env.AWS_SECRET}</value></property>\n<property><name>x</name><value>true</value></property>\n".into()),
        ("prose", "machine learning needs no password here, and the token of a word is a secret of its own\n".into()),
        ("sas documentation", "https://s.blob.core.windows.net/c?sv=2022-11-02&se=2027-01-01&sr=c&sp=rl&sig=<signature>\n".into()),
        ("sas, x", "sv=2022-11-02&se=2027-01-01&sig=XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX&sp=r\n".into()),
        ("integrity", integrity),
        ("digests", (0..100).fold(String::new(), |all, n| all + &format!("{}  file{n}.txt\n", hex(64)))),
        ("git", format!("commit {}\nparent {}\ntoken: {}\n", hex(40), hex(40), hex(40))),
        ("secret_key of a digest", format!("secret_key = {}\n", hex(40))),
        ("django", format!("SECRET_KEY = \"django-insecure-{}\"\n", random("abcdefghijklmnop0123456789", 50))),
        ("api keys", format!("OPENAI_API_KEY=sk-proj-{}\nHF_TOKEN=hf_{}\n", random(LETTERS, 48), random(LETTERS, 34))),
        ("client secrets of an app", format!("{{\"installed\": {{\"client_id\": \"1-a.apps.googleusercontent.com\", \"project_id\": \"p\", \"client_secret\": \"GOCSPX-{}\"}}}}", random(TOKEN, 28))),
        ("ids", format!("tenant_id = \"{}\"\nclient_id = \"{}\"\nsubscription_id = \"{}\"\n", guid(), guid(), guid())),
        ("azure profile", format!("{{\"installationId\": \"{}\", \"subscriptions\": [{{\"id\": \"{}\", \"tenantId\": \"{}\"}}]}}", guid(), guid(), guid())),
        ("pypi lock", (0..50).fold(String::new(), |all, n| all + &format!("pkg{n}==1.{n} --hash=sha256:{}\n", hex(64)))),
        ("metrics", "{\"metrics\": [{\"name\": \"token_accuracy\", \"value\": 0.93}, {\"name\": \"key\", \"value\": 17}]}".into()),
        ("csv", "id,token,secret,password\n1,alpha,beta,gamma\n".repeat(50)),
        ("words", ["alphabet", "benchmark", "configuration", "dictionary", "environment"].join("\n").repeat(200)),
        ("terraform variables", "variable \"client_secret\" {\n  type = string\n  sensitive = true\n}\nclient_secret = var.client_secret\ntenant_id = var.tenant_id\nclient_id = var.client_id\n".into()),
        ("helm", "env:\n- name: AWS_SECRET_ACCESS_KEY\n  valueFrom:\n    secretKeyRef:\n      name: aws-credentials\n      key: secret-access-key\n".into()),
        ("github", "aws-secret-access-key: ${{ secrets.AWS_SECRET_ACCESS_KEY }}\nclient-secret: ${{ secrets.AZURE_CLIENT_SECRET }}\n".into()),
        ("numbers", "secret_key = 1234567890123456789012345678901234567890\nrefresh_token = 11111111111111111111111111111111\n".into()),
        ("alphabet", "aws_secret_access_key = abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123\nAccountKey=0123456789abcdef0123456789abcdef\n".into()),
        ("image in a notebook", format!("{{\"image/png\": \"iVBORw0KGgo{}\"}}", STANDARD.encode(bytes(30_000)))),
        ("source map", format!("//# sourceMappingURL=data:application/json;base64,{}", STANDARD.encode("{\"version\":3,\"sources\":[\"a.js\"],\"names\":[\"token\",\"secret\"],\"mappings\":\"AAAA,SAASA\"}"))),
        ("code about tokens", "def refresh(self):\n    self.access_token = response[\"access_token\"]\n    self.refresh_token = response.get(\"refresh_token\", self.refresh_token)\n".into()),
        ("swagger", "{\"properties\": {\"accountKey\": {\"type\": \"string\", \"description\": \"The account key\"}, \"clientSecret\": {\"type\": \"string\"}, \"clientId\": {\"type\": \"string\"}, \"tenant\": {\"type\": \"string\"}}}".into()),
        ("log", "2026-11-29 token=*** secret_key=**** password=[redacted] client_secret=REDACTED tenant=x client_id=y\n".repeat(20)),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_string(), text.into_bytes()))
    .collect();
    let certificate = {
        let folder = std::env::temp_dir().join(format!("kfp-creds-alike-{}", std::process::id()));
        std::fs::write(&folder, &files.key).unwrap();
        let made = openssl(&format!("req -x509 -key {} -subj /CN=x -days 1", folder.display()), b"");
        std::fs::remove_file(folder).unwrap();
        made
    };
    all.extend([
        ("certificate, der".to_string(), openssl("x509 -outform DER", &certificate)),
        ("certificate, base64".into(), STANDARD.encode(&certificate).into()),
        ("certificate".into(), certificate),
        ("public key".into(), openssl("rsa -pubout", files.key.as_bytes())),
        ("public key, der".into(), openssl("rsa -pubout -outform DER", files.key.as_bytes())),
        ("certificates, jks".into(), store([0xfe, 0xed, 0xfe, 0xed], 2)),
        ("noise".into(), bytes(200_000)),
        ("noise, base64".into(), wrapped(&STANDARD.encode(bytes(200_000)), 76, "").into()),
        ("pickle of words".into(), pickled("refresh_token access_token secret_key client_secret")),
        ("database of words".into(), database("refresh_token access_token secret_key client_secret")),
        ("UTF-16 of words".into(), wide("secret_key = my-secret-key\r\ntoken = token\r\n", true, true)),
    ]);
    all
}

#[test]
fn the_reference_set_is_judged_almost_without_error() {
    let files = files();
    let keys: Vec<Sample> = guises(&files).into_iter().chain(binaries(&files)).chain(tools(&files)).collect();
    let others = alike(&files);
    let missed: Vec<&str> = keys.iter().filter(|(_, b)| what(b).is_none()).map(|(name, _)| &**name).collect();
    let wrong: Vec<String> =
        others.iter().filter_map(|(name, b)| Some(format!("{name}: {}", what(b)?))).collect();
    println!(
        "{} of {} found, {} of {} wrong",
        keys.len() - missed.len(),
        keys.len(),
        wrong.len(),
        others.len()
    );
    assert!(keys.len() >= 116 && others.len() >= 60, "{} and {}", keys.len(), others.len());
    // The guard finds at least 110 of 116 keys.
    assert!(missed.len() * 116 <= keys.len() * 6, "missed of {}: {missed:#?}", keys.len());
    assert!(wrong.len() <= 1, "not keys: {wrong:#?}");
    // No part of a file may cause a panic.
    for (_, bytes) in keys.iter().chain(&others).filter(|(_, bytes)| bytes.len() < 1 << 16) {
        for part in [1, 2, 3, 5] {
            let _ = (
                what(&bytes[bytes.len() / part..]),
                what(&bytes[..bytes.len() / part]),
                what(&bytes[part..]),
            );
        }
    }
}

#[test]
fn azurites_published_key_is_no_secret_under_any_name() {
    let azurite =
        ["Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/", "K1SZFPTOtr/KBHBeksoGMGw=="]
            .concat();
    for value in [azurite.clone(), format!("AccountName=devstoreaccount1;AccountKey={azurite};")] {
        for name in ["AZURE_STORAGE_KEY", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_KEY"] {
            assert_eq!(variable(&format!("{name}={value}")), None, "{name}");
        }
    }
    let own = STANDARD.encode(bytes(64));
    assert!(variable(&format!("AZURE_STORAGE_CONNECTION_STRING=AccountName=a;AccountKey={own};")).is_some());
}
