//! The headers of Linux programs (ELF): their architecture, and whether they need a loader.

use std::path::PathBuf;

/// `e_machine`, by the names that engines use.
const MACHINES: [(&str, u64); 2] = [("amd64", 62), ("arm64", 183)];

/// Whether this is a program for `arch` (`amd64`). False for architectures that are not known here.
pub(super) fn is_for(file: &[u8], arch: &str) -> bool {
    let machine = MACHINES.iter().find(|(name, _)| *name == arch);
    is_elf(file) && machine.is_some_and(|(_, machine)| number(file, 0x12, 2) == Some(*machine))
}

/// 64-bit and little-endian.
fn is_elf(file: &[u8]) -> bool {
    file.starts_with(b"\x7fELF\x02\x01")
}

fn number(elf: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = elf.get(at..at + size)?;
    Some(bytes.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// `PT_INTERP`: the path under which the kernel looks for the loader.
pub(super) fn interpreter(elf: &[u8]) -> Option<PathBuf> {
    const PT_INTERP: u64 = 3;
    if !is_elf(elf) {
        return None;
    }
    let number = |at, size| number(elf, at, size);
    let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    (0..count).find_map(|index| {
        let entry = usize::try_from(index.checked_mul(size)?.checked_add(table)?).ok()?;
        let entry = elf.get(entry..)?;
        let (offset, length) = (self::number(entry, 8, 8)?, self::number(entry, 32, 8)?);
        if self::number(entry, 0, 4)? != PT_INTERP {
            return None;
        }
        let text = elf.get(usize::try_from(offset).ok()?..)?.get(..usize::try_from(length).ok()?)?;
        Some(PathBuf::from(std::str::from_utf8(text).ok()?.trim_end_matches('\0')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_programs_have_no_interpreter() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        for end in [0, 6, 40, 64, 200] {
            assert_eq!(interpreter(&program[..end]), None, "{end}");
        }
        // The table begins beyond the end of the file.
        let mut far = program;
        far[0x20..0x28].fill(0xff);
        assert_eq!(interpreter(&far), None);
    }
}
