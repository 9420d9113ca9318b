//! Which of a cluster's slots a key belongs to: a function of its name that all clients and servers share.

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

/// The slot of the key that consists of these two parts. Neither has a brace: between braces the server would look
/// at nothing else, and the keys are to spread.
pub(crate) fn slot(prefix: &str, key: &str) -> u16 {
    crc(crc(0, prefix), key) % SLOTS
}

fn crc(start: u16, text: &str) -> u16 {
    text.bytes().fold(start, |crc, byte| (crc << 8) ^ TABLE[usize::from((crc >> 8) ^ u16::from(byte))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_server() {
        // The check value of the CRC, and what CLUSTER KEYSLOT of Redis 7.0 says.
        assert_eq!(crc(0, "123456789"), 0x31C3);
        for (key, expected) in [("foo", 12_182), ("kafkaq/t/emails", 1804)] {
            let (prefix, rest) = key.split_at(1);
            assert_eq!((slot("", key), slot(prefix, rest)), (expected, expected), "{key}");
        }
    }
}
