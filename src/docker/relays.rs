//! Finds the relay's program for the engine's architecture.
//!
//! The places, in this order: a folder that the config names, the relays in this program (`build.rs`), a
//! folder beside this program, and this program itself, which is a relay too but a larger one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::elf;
use super::image::{RelayImage, own_architecture};

/// The relays of `scripts/relay` that existed at build time; empty if there was none.
const CARRIED: [(&str, &[u8]); 2] = [
    ("amd64", include_bytes!(concat!(env!("OUT_DIR"), "/relay-amd64"))),
    ("arm64", include_bytes!(concat!(env!("OUT_DIR"), "/relay-arm64"))),
];

/// The relay for engines of `arch` (`amd64`). Reads files and hashes them: call it off the serving thread.
/// The error completes a sentence.
pub fn relay_for(arch: &str, folder: Option<&Path>) -> Result<RelayImage, String> {
    if let Some(relay) = alone(arch, folder)? {
        return Ok(relay);
    }
    if (std::env::consts::OS, own_architecture()) == ("linux", arch) {
        return RelayImage::of_this_program().map_err(|error| error.to_string());
    }
    Err(format!(
        "this program has no relay for linux/{arch}: set relay_folder to a folder with {}, which scripts/relay \
         builds, or use a build that carries it",
        file_name(arch)
    ))
}

/// Like [`relay_for`], but without this program itself: the relay as a program of its own, if there is one.
pub fn alone(arch: &str, folder: Option<&Path>) -> Result<Option<RelayImage>, String> {
    if let Some(folder) = folder {
        let file = folder.join(file_name(arch));
        let failure = |why: String| format!("relay_folder: {} {why}", file_name(arch));
        let program = fs::read(file).map_err(|error| failure(format!("cannot be read: {error}")))?;
        return of_program(program, arch).map(Some).map_err(failure);
    }
    let carried = CARRIED.iter().find(|(name, program)| *name == arch && !program.is_empty());
    if let Some((_, program)) = carried {
        return of_program(program.to_vec(), arch).map(Some);
    }
    let Some(file) = beside_this_program(arch) else { return Ok(None) };
    match fs::read(&file) {
        Ok(program) => {
            of_program(program, arch).map(Some).map_err(|why| format!("{} {why}", file_name(arch)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{} beside this program cannot be read: {error}", file_name(arch))),
    }
}

/// Where packages put programs that other programs run (the Filesystem Hierarchy Standard, 4.7).
fn beside_this_program(arch: &str) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    Some(program.parent()?.parent()?.join("libexec/kfp-creds").join(file_name(arch)))
}

fn file_name(arch: &str) -> String {
    // The engine reports the architecture, which becomes part of a path here.
    let word: String = arch.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("kfp-creds-relay-{word}")
}

fn of_program(program: Vec<u8>, arch: &str) -> Result<RelayImage, String> {
    if !elf::is_for(&program, arch) {
        return Err(format!("is not a program for linux/{arch}"));
    }
    if elf::interpreter(&program).is_some() {
        return Err(
            "needs shared libraries, which its image would not have: build it with scripts/relay".into()
        );
    }
    RelayImage::of_files(vec![(PathBuf::from("/kfp-creds"), program)], String::new(), arch)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest file that counts as a program without a loader.
    fn program(machine: u8) -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x12] = machine;
        elf
    }

    #[test]
    fn the_relay_has_the_engine_s_architecture() {
        let folder = std::env::temp_dir().join(format!("kfp-creds-relays-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let put = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
        let refused = |arch| relay_for(arch, Some(&folder)).unwrap_err();
        put("kfp-creds-relay-arm64", &program(183));
        let relay = relay_for("arm64", Some(&folder)).unwrap();
        assert_eq!(relay.architecture(), "arm64");
        assert!(refused("amd64").contains("kfp-creds-relay-amd64 cannot be read"));
        put("kfp-creds-relay-amd64", &program(183));
        assert!(refused("amd64").ends_with("is not a program for linux/amd64"), "{}", refused("amd64"));
        put("kfp-creds-relay-amd64", &fs::read("/proc/self/exe").unwrap());
        if own_architecture() == "amd64" && elf::interpreter(&fs::read("/proc/self/exe").unwrap()).is_some() {
            assert!(refused("amd64").contains("needs shared libraries"), "{}", refused("amd64"));
        }
        assert!(refused("../amd64").contains("kfp-creds-relay-amd64"), "no path from the engine");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn this_program_is_the_relay_for_its_own_architecture_only() {
        let own = own_architecture();
        assert_eq!(relay_for(own, None).unwrap().architecture(), own);
        let said = relay_for("s390x", None).unwrap_err();
        assert!(said.contains("linux/s390x") && said.contains("relay_folder"), "{said}");
    }
}
