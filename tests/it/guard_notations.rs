//! Keys in the notations of programs, shells and tools, each beside a text in the same notation without a
//! key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kfp_creds::guard::SecretKind;
use kfp_creds::guard::content::what;

use crate::guard_set::{self, LETTERS, TOKEN, bytes, database, guid, jwt, openssl, python, random, wrapped};

/// Retries until there are enough digits: the guard takes keys with few digits for names.
fn usual(make: impl Fn() -> String) -> String {
    let digits = |text: &String| text.bytes().filter(u8::is_ascii_digit).count() > 4;
    std::iter::repeat_with(make).find(digits).unwrap()
}

fn aws() -> String {
    usual(|| guard_set::aws().1)
}

fn entra() -> String {
    usual(guard_set::entra)
}

fn azure_key() -> String {
    STANDARD.encode(bytes(64))
}

/// Asserts that `text` contains a key, and does not if any of `instead` replaces the key.
fn assert_found(text: &str, key: &str, kind: SecretKind, instead: &[&str]) {
    let with = text.replace("KEY!", key);
    assert_eq!(what(with.as_bytes()), Some(kind), "{with}");
    for other in instead {
        let without = text.replace("KEY!", other);
        assert_eq!(what(without.as_bytes()), None, "{without}");
    }
}

#[test]
fn a_key_is_found_among_arguments_of_a_call() {
    let secret = aws();
    let words = ["aws-secret-access-key", "${AWS_SECRET_ACCESS_KEY}", "YOUR_SECRET_ACCESS_KEY", ""];
    for text in [
        "sc._jsc.hadoopConfiguration().set(\"fs.s3a.secret.key\", \"KEY!\")\n",
        "conf.set(\n    'fs.s3a.secret.key',\n    'KEY!',\n)\n",
        ".config(\"spark.hadoop.fs.s3a.access.key\", \"x\").config(\"spark.hadoop.fs.s3a.secret.key\", \"KEY!\")\n",
        "[Environment]::SetEnvironmentVariable('AWS_SECRET_ACCESS_KEY', 'KEY!', 'User')\n",
        "os.environ.setdefault(\"AWS_SECRET_ACCESS_KEY\", \"KEY!\")\n",
        "ENV.store 'AWS_SECRET_ACCESS_KEY', 'KEY!'\n",
        "{\"source\": [\"conf.set(\\\"fs.s3a.secret.key\\\", \\\"KEY!\\\")\\n\"]}",
    ] {
        assert_found(text, &secret, SecretKind::AwsKey, &words);
    }
    for text in [
        "spark.conf.set(\"fs.azure.account.key.acme.dfs.core.windows.net\", \"KEY!\")\n",
        "spark.conf.set(\n  \"fs.azure.account.key.acme.dfs.core.windows.net\",\n  \"KEY!\"\n)\n",
    ] {
        let code = "dbutils.secrets.get(scope=\\\"kv\\\", key=\\\"storage-account-key\\\")";
        assert_found(text, &azure_key(), SecretKind::AzureKey, &[code, "storage-account-key", ""]);
    }
}

#[test]
fn keys_are_found_in_variables_of_every_shell() {
    for line in [
        "set -gx AZURE_CLIENT_SECRET KEY!\n",
        "set -Ux AZURE_CLIENT_SECRET \"KEY!\"\n",
        "setenv AZURE_CLIENT_SECRET KEY!\n",
        "setx AZURE_CLIENT_SECRET \"KEY!\" /M\n",
        "ENV ARM_CLIENT_SECRET KEY!\n",
    ] {
        assert_found(line, &entra(), SecretKind::AzureLogin, &["$SECRET", "my-client-secret-2024", "\"\""]);
        // A secret from before 2021 has no recognisable mark.
        assert_found(line, &usual(|| random(LETTERS, 32)), SecretKind::AzureLogin, &["%SECRET%"]);
    }
}

#[test]
fn a_key_is_found_before_its_name() {
    let secret = aws();
    for text in [
        "<add value=\"KEY!\" key=\"AWS_SECRET_ACCESS_KEY\"/>\n",
        "{\"environment\": [{\"value\": \"KEY!\", \"name\": \"AWS_SECRET_ACCESS_KEY\"}]}",
        "- value: KEY!\n  name: AWS_SECRET_ACCESS_KEY\n",
    ] {
        assert_found(text, &secret, SecretKind::AwsKey, &["$(SECRET)", "aws-secret-access-key"]);
    }
    // Flags are read before tags, and tags before words, wherever they stand.
    for text in [
        "<name>token-of-a-tag</name> <key>name-of-a-key</key> --value something-else\n",
        "<value>text</value> --name some-name --key some-key\n",
    ] {
        assert_eq!(what(text.as_bytes()), None, "{text}");
    }
    // A value belongs to the name before it.
    let other = format!(
        "[{{\"name\": \"BUILD\", \"value\": \"{}\"}}, {{\"name\": \"AWS_SECRET_ACCESS_KEY\", \"valueFrom\": \"arn\"}}]",
        secret
    );
    assert_eq!(what(other.as_bytes()), None, "{other}");
}

#[test]
fn base64_keys_are_found_in_lists_comments_and_strings() {
    let key = openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048", b"");
    let noise = bytes(1700);
    for width in [57, 64, 76] {
        let lines = |of: &[u8]| {
            wrapped(&STANDARD.encode(of), width, "").lines().map(String::from).collect::<Vec<_>>()
        };
        let joined = |before: &str, after: &str, of: &[u8]| {
            lines(of).iter().map(|line| format!("{before}{line}{after}\n")).collect::<String>()
        };
        for (before, after) in [
            ("  - ", ""),
            ("  - \"", "\""),
            ("  + '", "'"),
            ("  '", "' ."),
            ("  . '", "'"),
            ("// ", ""),
            (" * ", ""),
            ("; ", ""),
            ("-- ", ""),
            ("  \"", "\" &"),
            ("> > ", ""),
            ("\t`", "` +"),
            ("\"", "\","),
        ] {
            let with = joined(before, after, &key);
            assert_eq!(what(with.as_bytes()), Some(SecretKind::PrivateKey), "{with}");
            assert_eq!(what(joined(before, after, &noise).as_bytes()), None);
        }
    }
}

#[test]
fn keys_are_found_in_stores_without_separators() {
    // An application secret of Entra ID is recognisable by its form, wherever it stands.
    let program = "import pickle, sys\nt, c, s = sys.stdin.read().split()\n\
                   sys.stdout.buffer.write(pickle.dumps({'tenant_id': t, 'client_id': c, 'client_secret': s}))";
    let pickled = |secret: &str| python(program, format!("{} {} {secret}", guid(), guid()).as_bytes());
    assert_eq!(what(&pickled(&entra())), Some(SecretKind::AzureLogin));
    assert_eq!(what(&pickled("my-client-secret-of-8Q~-and-some-more-words")), None);
    // A database that stores text as UTF-16.
    let secret = aws();
    for encoding in ["UTF-16le", "UTF-16be"] {
        let made = |text: &str| {
            let program = format!(
                "import sqlite3, sys\ntext = sys.stdin.read()\nd = sqlite3.connect(':memory:')\nd.execute(\"pragma encoding = '{encoding}'\")\n\
                 d.execute('create table connection (id, extra)')\nd.execute('insert into connection values (1, ?)', (text,))\n\
                 d.commit()\nsys.stdout.buffer.write(d.serialize())"
            );
            python(&program, text.as_bytes())
        };
        assert_eq!(
            what(&made(&format!("AWS_SECRET_ACCESS_KEY={secret}"))),
            Some(SecretKind::AwsKey),
            "{encoding}"
        );
        assert_eq!(what(&made("AWS_SECRET_ACCESS_KEY=${SECRET}, and more words")), None, "{encoding}");
    }
    // gcloud's database has a specific table; another database may contain the same words.
    let words = "credentials, account_id, refresh_token, private_key";
    assert_eq!(what(&database(words)), None);
}

#[test]
fn output_of_az_counts_as_login_or_key() {
    let token = format!(
        "{{\"accessToken\": \"{}\", \"expiresOn\": \"2026-11-30 12:00:00\", \"subscription\": \"{}\", \"tenant\": \"{}\", \
         \"tokenType\": \"Bearer\"}}",
        jwt("{\"aud\":\"https://management.azure.com\"}"),
        guid(),
        guid()
    );
    assert_eq!(what(token.as_bytes()), Some(SecretKind::AzureLogin), "{token}");
    for text in [
        "2026-01-01T00:00:00+00:00\tkey1\tFULL\tKEY!\n2026-01-01T00:00:00+00:00\tkey2\tFULL\t-\n",
        "CreationTime  KeyName  Permissions  Value\n------------\n2026-01-01    key1     FULL         KEY!\n",
    ] {
        let digest = format!("sha512-{}", azure_key());
        assert_found(text, &azure_key(), SecretKind::AzureKey, &["hidden", &digest]);
    }
}

#[test]
fn a_plain_registry_login_in_a_kubernetes_secret_is_found() {
    let text = "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/dockerconfigjson\nstringData:\n  .dockerconfigjson: \
                '{\"auths\": {\"r.example\": {\"username\": \"me\", \"password\": \"KEY!\"}}}'\n";
    assert_found(text, &random(LETTERS, 20), SecretKind::RegistryLogin, &["${PASSWORD}", "<password>"]);
}

#[test]
fn secret_keys_of_openpgp_are_keys_and_public_ones_are_not() {
    // Packets of RFC 9580: a key of version 4 for RSA, and a user id.
    let packets = |tag: u8| {
        let body = [&[4][..], &bytes(4), &[1, 8, 0], &bytes(256), &[0, 17, 1, 0, 1], &bytes(400)].concat();
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&[tag][..], &length, &body, &[0xb4, 3], b"a@b"].concat()
    };
    assert_eq!(what(&packets(0x95)), Some(SecretKind::PrivateKey));
    assert_eq!(what(&packets(0x99)), None);
    // Keys as GnuPG's agent stores them; a shadowed key is on a card.
    for (start, kind) in [
        ("(21:protected-private-key(3:rsa(1:n257:", Some(SecretKind::PrivateKey)),
        ("(11:private-key(3:ecc(5:curve7:Ed25519)(1:q33:", Some(SecretKind::PrivateKey)),
        (
            "Created: 20261130T100000\nKey: (protected-private-key (rsa (n #00C0#)",
            Some(SecretKind::PrivateKey),
        ),
        ("(20:shadowed-private-key(3:rsa(1:n257:", None),
        ("Created: 20261130T100000\nKey: (shadowed-private-key (rsa (n #00C0#)", None),
        ("Key: (private) notes about a private-key (", None),
    ] {
        assert_eq!(what(&[start.as_bytes(), &bytes(300)].concat()), kind, "{start}");
    }
}

#[test]
fn names_sealed_values_and_public_keys_are_no_secrets() {
    let azurite =
        ["Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/", "K1SZFPTOtr/KBHBeksoGMGw=="]
            .concat();
    let sealed = STANDARD.encode(bytes(500));
    for text in [
        "secretKey = 'ThisIsNotASecretKeyButAVeryLongName12345'\n".to_owned(),
        "client_secret = NameOfTheSecretInTheVaultOfTheTeam2024\ntenant_id = a-tenant\nclient_id = a-client\n".into(),
        format!("kind: SealedSecret\nspec:\n  encryptedData:\n    AWS_SECRET_ACCESS_KEY: Ag{sealed}\n    AZURE_CLIENT_SECRET: Ag{sealed}\n"),
        format!("kind: Secret\ndata:\n  AZURE_STORAGE_KEY: {}\n", STANDARD.encode(&azurite)),
        "apiVersion: v1\nclusters: []\ncurrent-context: x\nkind: Config\nusers:\n- name: u\n  user:\n    client-key-data: DATA+OMITTED\n".into(),
        "{\"type\": \"external_account\", \"audience\": \"//iam.googleapis.com/projects/<NUMBER>/locations/global/workloadIdentityPools/<POOL>/providers/<NAME>\", \
          \"subject_token_type\": \"urn:ietf:params:oauth:token-type:jwt\", \"credential_source\": {\"file\": \"/t\"}}".into(),
        format!("[\"{}\", \"{}\"]\n", random(TOKEN, 40), random(TOKEN, 88)),
    ] {
        assert_eq!(what(text.as_bytes()), None, "{text}");
    }
}
