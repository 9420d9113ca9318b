//! The cluster slot of a key: a function of its name that all clients and servers share.

pub(crate) const SLOTS: u16 = 16_384;

/// The remainders of CRC-16/XMODEM (polynomial 0x1021) for each byte.
const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut rest = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            rest = if rest & 0x8000 == 0 { rest << 1 } else { (rest << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = rest;
        byte += 1;
    }
    table
};

/// The slot of the name that consists of these parts. No name has a brace: the server would only hash what is in
/// braces, and names are supposed to spread.
pub(crate) fn slot<'a>(parts: impl IntoIterator<Item = &'a str>) -> u16 {
    let bytes = parts.into_iter().flat_map(str::bytes);
    let crc = bytes.fold(0_u16, |crc, byte| (crc << 8) ^ TABLE[usize::from((crc >> 8) ^ u16::from(byte))]);
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_server() {
        // The check value of the CRC, and what CLUSTER KEYSLOT of Redis 7.0 says.
        for (name, expected) in [("123456789", 0x31C3 % SLOTS), ("foo", 12_182), ("kafkaq/t/emails", 1804)] {
            let (prefix, rest) = name.split_at(1);
            assert_eq!((slot([name]), slot([prefix, rest])), (expected, expected), "{name}");
        }
    }
}
