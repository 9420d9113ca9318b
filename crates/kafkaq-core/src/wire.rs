//! Encodings shared by leases and envelopes. Numbers are LEB128 in the shortest form: a decoded value encodes to the
//! same bytes again, which compare-and-swap depends on.

use crate::DecodeError;

pub(crate) const CUT_SHORT: DecodeError = DecodeError::Damaged("it is cut short");

/// The maximum size of a number.
pub(crate) const NUMBER: usize = 10;

/// Writes a number to the front, and returns its size.
pub(crate) fn write_number(out: &mut [u8; NUMBER], mut n: u64) -> usize {
    let mut last = 0;
    while n >= 0x80 && last < NUMBER - 1 {
        out[last] = n as u8 | 0x80;
        n >>= 7;
        last += 1;
    }
    out[last] = n as u8;
    last + 1
}

pub(crate) fn put(out: &mut impl bytes::BufMut, n: u64) {
    let mut bytes = [0; NUMBER];
    let len = write_number(&mut bytes, n);
    out.put_slice(&bytes[..len]);
}

pub(crate) fn put_bytes(out: &mut impl bytes::BufMut, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// Reads from the front of a slice.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn byte(&mut self) -> Result<u8, DecodeError> {
        let (&b, rest) = self.0.split_first().ok_or(CUT_SHORT)?;
        self.0 = rest;
        Ok(b)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(CUT_SHORT)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(crate) fn number(&mut self) -> Result<u64, DecodeError> {
        let mut n = 0_u64;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            let overflows = shift == 63 && b > 1;
            let overlong = shift > 0 && b == 0;
            if overflows || overlong {
                return Err(DecodeError::Damaged("a number is not in its shortest form"));
            }
            n |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Ok(n);
            }
        }
        Err(DecodeError::Damaged("a number is too long"))
    }

    pub(crate) fn small(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.number()?).map_err(|_| DecodeError::Damaged("a number is out of range"))
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.number()?;
        let len = usize::try_from(len).ok().filter(|n| *n <= self.0.len()).ok_or(CUT_SHORT)?;
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        Ok(bytes)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::Damaged("a text is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_are_read_back_and_have_one_form(n: u64, junk in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut out = Vec::new();
            put(&mut out, n);
            let mut reader = Reader(&out);
            prop_assert_eq!(reader.number(), Ok(n));
            prop_assert!(reader.0.is_empty());
            let mut reader = Reader(&junk);
            if let Ok(n) = reader.number() {
                let mut again = Vec::new();
                put(&mut again, n);
                prop_assert_eq!(&again[..], &junk[..junk.len() - reader.0.len()]);
            }
        }
    }
}
