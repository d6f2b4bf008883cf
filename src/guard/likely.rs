//! Names of files and directories by how likely they hold keys.

use std::path::Path;

/// Paths where keys are kept: below a home, or continued from any directory that such a path leads through.
pub(super) const KNOWN: &[&str] = &[
    ".config/gcloud/application_default_credentials.json",
    ".config/gcloud/credentials.db",
    ".config/gcloud/access_tokens.db",
    ".config/gcloud/legacy_credentials",
    ".aws/credentials",
    ".aws/config",
    ".aws/sso/cache",
    ".aws/cli/cache",
    ".aws/login/cache",
    ".azure/accessTokens.json",
    ".azure/msal_token_cache.json",
    ".azure/service_principal_entries.json",
    ".kube/config",
    ".docker/config.json",
    ".netrc",
    ".boto",
    ".ssh/id_rsa",
    ".ssh/id_ed25519",
    ".ssh/id_ecdsa",
    ".env",
];

/// Whether this is a file system of the kernel: it holds no files of users and is endless.
pub(super) fn is_kernels(path: &Path) -> bool {
    ["/proc", "/sys", "/dev"].iter().any(|kernels| path == Path::new(kernels))
}

/// Whether this is a directory of published packages or of version control. `.venv` and the like are
/// recognised by their `pyvenv.cfg`.
pub(super) fn is_package(name: &str) -> bool {
    matches!(
        name,
        "node_modules" | "site-packages" | "dist-packages" | "__pycache__" | ".git" | ".hg" | ".svn" | ".bzr"
    )
}

/// Whether this is the name of a credential file: one in a package was put there by mistake.
pub(super) fn is_well_known(name: &str) -> bool {
    let known = KNOWN.iter().filter_map(|known| known.rsplit('/').next()).any(|known| known == name);
    let others = [
        ".git-credentials",
        ".dockerconfigjson",
        "_netrc",
        "adc.json",
        "credentials.json",
        "key.json",
        "keyfile.json",
        "kubeconfig",
        "sa.json",
        "service-account.json",
        "service_account.json",
    ];
    // `config` is also a file of git's and of a hundred packages: its content decides.
    known
        || others.contains(&name)
        || name.starts_with(".env.")
        || (name.ends_with(".json")
            && ["gha-creds-", "client_secret"].iter().any(|start| name.starts_with(start)))
        || ["-key.json", "_key.json", "-sa.json"].iter().any(|end| name.ends_with(end))
}

/// Whether keys are usually kept under such a name.
pub(super) fn is_likely(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let ends = [
        ".json",
        ".pem",
        ".key",
        ".p12",
        ".pfx",
        ".ppk",
        ".env",
        ".db",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
        ".cfg",
        ".conf",
        ".csv",
        ".boto",
        ".txt",
        ".sh",
        ".tfstate",
        ".properties",
    ];
    let words = [
        "cred", "secret", "token", "key", "id_rsa", "id_ed", "id_ec", "netrc", "kube", "config", ".env",
        "auth",
    ];
    !name.contains('.')
        || ends.iter().any(|end| name.ends_with(end))
        || words.iter().any(|word| name.contains(word))
}

/// Whether `path` is below `ROOT/PIPELINE-TIMESTAMP`, which tasks of `kfp.local` make, often as root.
pub(super) fn is_of_a_run(path: &Path, root: &Path) -> bool {
    const STAMP: &[u8] = b"-0000-00-00-00-00-00-000000";
    let Some(run) = path.strip_prefix(root).ok().and_then(|below| below.components().next()) else {
        return false;
    };
    let name = run.as_os_str().as_encoded_bytes();
    let Some(at) = name.len().checked_sub(STAMP.len()).filter(|at| *at > 0) else { return false };
    let like = |(byte, form): (&u8, &u8)| if *form == b'0' { byte.is_ascii_digit() } else { byte == form };
    name[at..].iter().zip(STAMP).all(like)
}
