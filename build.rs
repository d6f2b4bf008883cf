//! Puts relays into the program: those in the folder that `KFP_CREDS_RELAYS` names, for the architectures
//! that it has. Without the variable the program carries none, and makes the relay from itself.

use std::path::{Path, PathBuf};
use std::{fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=KFP_CREDS_RELAYS");
    println!("cargo::rerun-if-changed=build.rs");
    #[expect(clippy::disallowed_methods, reason = "cargo talks to build scripts by variables")]
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let out = variable("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    let folder = variable("KFP_CREDS_RELAYS");
    for arch in ["amd64", "arm64"] {
        // An empty file stands for none.
        let program = folder.as_deref().map_or(Ok(vec![]), |folder| relay(folder, arch))?;
        fs::write(out.join(format!("relay-{arch}")), program)?;
    }
    Ok(())
}

fn relay(folder: &Path, arch: &str) -> io::Result<Vec<u8>> {
    let file = folder.join(format!("kfp-creds-relay-{arch}"));
    println!("cargo::rerun-if-changed={}", file.display());
    match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && folder.is_dir() => Ok(vec![]),
        read => read,
    }
}
