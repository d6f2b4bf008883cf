//! `serve --listen`: the metadata server alone, on loopback.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use super::session::{Folder, program};

/// A `serve --listen --offline`; ends when dropped.
#[derive(Debug)]
pub(crate) struct Listening {
    child: Child,
    /// Address, port and, unless the listener is open, the secret path, from the printed lines.
    pub(crate) place: String,
    _folder: Folder,
}

impl Listening {
    pub(crate) fn open(config: &str) -> Self {
        Self::start(config, &["--open"], &[])
    }

    /// A listener behind the secret path that it prints.
    pub(crate) fn guarded(config: &str) -> Self {
        Self::start(config, &[], &[])
    }

    /// An open listener with additional variables.
    pub(crate) fn with(environment: &[(&str, &str)]) -> Self {
        Self::start("", &["--open"], environment)
    }

    fn start(config: &str, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let folder = Folder::new("listen");
        std::fs::write(folder.0.join("kfp-creds.toml"), config).unwrap();
        let mut child = program(&folder.0)
            .args(["serve", "--listen", "127.0.0.1:0", "--offline", "--quiet"])
            .args(flags)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let said: Vec<String> = lines.take(4).collect();
        let value = |name: &str| {
            let line = said.iter().find_map(|line| line.strip_prefix(&format!("export {name}=")));
            line.unwrap_or_else(|| panic!("no {name} in {said:?}")).to_string()
        };
        let place = value("GCE_METADATA_HOST");
        assert!(value("GCE_METADATA_IP") == place && value("GCE_METADATA_ROOT") == place, "{said:?}");
        assert!(value("KFP_CREDS_JWKS_URL").starts_with("http://127.0.0.1:"), "{said:?}");
        Self { child, place, _folder: folder }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
