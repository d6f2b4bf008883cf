//! The keys as a document, `docs/CONFIG.md`.

use std::fmt::Write;

use super::keys::KEYS;

/// The text of `docs/CONFIG.md`.
pub fn reference() -> String {
    let mut text = String::from(HEAD);
    for key in KEYS {
        let mut from = Vec::from_iter(key.flag.map(|flag| format!("`{flag}`")));
        from.extend(key.variable.map(|name| format!("`{name}`")));
        let mark = if key.guarded { " †" } else { "" };
        let path = key.path.replace("*", "NAME");
        let _ = writeln!(
            text,
            "| `{path}`{mark} | {} | {} | {} | {} |",
            key.kind.wanted(),
            key.default,
            if from.is_empty() { "-".into() } else { from.join(" ") },
            key.says,
        );
    }
    text.push_str(FOOT);
    text
}

const HEAD: &str = "\
# Configuration

Made from `src/config/keys.rs` by `cargo test`; do not edit by hand.

One file is used: `--config FILE` or `KFP_CREDS_CONFIG`, else the nearest `kfp-creds.toml` in the working
directory or above it, else `$XDG_CONFIG_HOME/kfp-creds/config.toml` (`~/.config` where that is unset).
Flags win over the environment, the environment wins over the file, the file wins over the defaults. The
pairs `credentials`/`credentials_file` and `zone`/`region` are replaced as a pair. An empty variable counts
as unset. `kfp-creds config init` writes a starter, `kfp-creds config check` says everything that is wrong.

| key | value | default | flag, variable | what it does |
|---|---|---|---|---|
";

const FOOT: &str = "
† A file that was found in a project may say this only after `kfp-creds config trust`, which holds for the
file's present content. Nobody may say it in a file that other users can write.

An identity named `default` always exists; `[identity.default]` changes it. `none` is not a name. Names of
identities: letters, digits, `-`, `_`, at most 63.
";
