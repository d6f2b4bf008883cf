//! CRC-32C (Castagnoli; RFC 3720 appendix B.4), Cloud Storage's object checksum, eight bytes at a time.

/// 0x1EDC6F41 with its bits reversed.
const POLYNOMIAL: u32 = 0x82F6_3B78;

const TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let (mut sum, mut bit) = (byte as u32, 0);
        while bit < 8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ POLYNOMIAL } else { sum >> 1 };
            bit += 1;
        }
        tables[0][byte] = sum;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before: u32 = tables[table - 1][byte];
            tables[table][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// Continues the checksum `sum` with `bytes`; a new checksum starts at 0.
pub(super) fn add(sum: u32, bytes: &[u8]) -> u32 {
    let at = |table: usize, byte: u32| TABLES[table][(byte & 0xff) as usize];
    let mut sum = !sum;
    let mut eights = bytes.chunks_exact(8);
    for eight in &mut eights {
        let &[a, b, c, d, e, f, g, h] = eight else { break };
        let low = sum ^ u32::from_le_bytes([a, b, c, d]);
        let high = u32::from_le_bytes([e, f, g, h]);
        sum = at(7, low) ^ at(6, low >> 8) ^ at(5, low >> 16) ^ at(4, low >> 24);
        sum ^= at(3, high) ^ at(2, high >> 8) ^ at(1, high >> 16) ^ at(0, high >> 24);
    }
    for byte in eights.remainder() {
        sum = sum >> 8 ^ at(0, sum ^ u32::from(*byte));
    }
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of RFC 3720 appendix B.4, and the usual one.
    #[test]
    fn crc32c_is_the_same_however_data_is_split() {
        let rising: Vec<u8> = (0..32).collect();
        for (bytes, wanted) in [
            (&b"123456789"[..], 0xE306_9283),
            (&[0; 32], 0x8A91_36AA),
            (&[0xff; 32], 0x62A8_AB43),
            (&rising, 0x46DD_794E),
            (&[], 0),
        ] {
            assert_eq!(add(0, bytes), wanted);
            for cut in 0..bytes.len() {
                assert_eq!(add(add(0, &bytes[..cut]), &bytes[cut..]), wanted, "cut at {cut}");
            }
        }
    }
}
