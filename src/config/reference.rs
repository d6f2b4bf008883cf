//! The keys as a document, `docs/reference/config.md`.

use std::fmt::Write;

use super::keys::KEYS;

/// The text of `docs/reference/config.md`.
pub fn reference() -> String {
    let mut text = String::from(HEAD);
    for key in KEYS {
        let mut from = Vec::from_iter(key.flag.map(|flag| format!("`{}`", flag.name)));
        from.extend(key.variable.map(|name| format!("`{name}`")));
        let mark = if key.guarded { " †" } else { "" };
        let path = key.path.replace("*", "NAME");
        let _ = writeln!(
            text,
            "| `{path}`{mark} | {} | {} | {} | {} |",
            key.kind.wanted(),
            key.default,
            if from.is_empty() { "-".into() } else { from.join(" ") },
            // Links of the table are relative to `docs/`, where the schema is.
            key.says.replace("](", "](../"),
        );
    }
    text.push_str(FOOT);
    text
}

const HEAD: &str = "\
# Configuration

Generated from `src/config/keys.rs` by `cargo test`; do not edit by hand.

One file is used: `--config FILE` or `KFP_CREDS_CONFIG`, otherwise the nearest `kfp-creds.toml` in the working
directory or above it, else `$XDG_CONFIG_HOME/kfp-creds/config.toml` (`~/.config` where that is unset).
Flags override the environment, the environment overrides the file, and the file overrides the defaults. The
pairs `credentials`/`credentials_file` and `zone`/`region` are replaced as a pair. An empty variable counts
as unset. `kfp-creds config init` writes a starter, `kfp-creds config check` lists every mistake.

| key | value | default | flag, variable | what it does |
|---|---|---|---|---|
";

const FOOT: &str = "
† In a file that was found in a project, this key takes effect only after `kfp-creds config trust`, which applies to the
file's present content. In a file that other users can write it is always refused.

An identity named `default` always exists; `[identity.default]` changes it. `none` is not a name. Names of
identities: letters, digits, `-`, `_`, at most 63.
";
