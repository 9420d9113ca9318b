//! The forms that requests and answers consist of, in versions from before the compact ones.

use crate::failure::Failure;
use bytes::{Buf, BufMut, Bytes};
use kafkaq_core::ErrorKind;

/// A request's body.
#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn int8(&mut self, n: i8) {
        self.0.put_i8(n);
    }

    pub(super) fn int16(&mut self, n: i16) {
        self.0.put_i16(n);
    }

    pub(super) fn int32(&mut self, n: i32) {
        self.0.put_i32(n);
    }

    /// How many entries of a list follow.
    pub(super) fn count(&mut self, n: usize) -> Result<(), Failure> {
        self.0.put_i32(i32::try_from(n).map_err(|_| too_long())?);
        Ok(())
    }

    pub(super) fn string(&mut self, text: &str) -> Result<(), Failure> {
        self.0.put_i16(i16::try_from(text.len()).map_err(|_| too_long())?);
        self.0.put_slice(text.as_bytes());
        Ok(())
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.count(bytes.len())?;
        self.0.put_slice(bytes);
        Ok(())
    }
}

fn too_long() -> Failure {
    Failure::refused(ErrorKind::Invalid, "Kafka's protocol has no room for a text of more than 32 KiB")
}

/// An answer. Reading beyond its end is a failure.
#[derive(Debug)]
pub(super) struct Reader(pub(super) Bytes);

impl Reader {
    pub(super) fn int8(&mut self) -> Result<i8, Failure> {
        self.0.try_get_i8().map_err(Failure::unreadable)
    }

    pub(super) fn int16(&mut self) -> Result<i16, Failure> {
        self.0.try_get_i16().map_err(Failure::unreadable)
    }

    pub(super) fn int32(&mut self) -> Result<i32, Failure> {
        self.0.try_get_i32().map_err(Failure::unreadable)
    }

    /// None if it is null.
    pub(super) fn string(&mut self) -> Result<Option<String>, Failure> {
        let Ok(len) = usize::try_from(self.int16()?) else { return Ok(None) };
        let text = String::from_utf8(self.take(len)?.to_vec()).map_err(Failure::unreadable)?;
        Ok(Some(text))
    }

    pub(super) fn bytes(&mut self) -> Result<Bytes, Failure> {
        // Null is as good as empty wherever this is used.
        let len = usize::try_from(self.int32()?).unwrap_or(0);
        self.take(len)
    }

    /// The entries of a list, each as `read` reads it.
    pub(super) fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Reader) -> Result<T, Failure>,
    ) -> Result<Vec<T>, Failure> {
        // However many are announced, no more come than there are bytes for.
        (0..self.int32()?).map(|_| read(self)).collect()
    }

    fn take(&mut self, len: usize) -> Result<Bytes, Failure> {
        match len <= self.0.len() {
            true => Ok(self.0.split_to(len)),
            false => Err(Failure::unreadable(format!("{len} bytes announced, {} there", self.0.len()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(bytes: &[u8]) -> Reader {
        Reader(Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn what_is_written_is_read() {
        let mut body = Writer::default();
        body.int8(-1);
        body.int16(300);
        body.int32(-70_000);
        body.string("ü").unwrap();
        body.bytes(b"\0\xff").unwrap();
        body.count(2).unwrap();
        body.int8(1);
        body.int8(2);
        let mut read = reader(&body.0);
        assert_eq!((read.int8().unwrap(), read.int16().unwrap(), read.int32().unwrap()), (-1, 300, -70_000));
        assert_eq!(read.string().unwrap().as_deref(), Some("ü"));
        assert_eq!(&read.bytes().unwrap()[..], b"\0\xff");
        assert_eq!(read.list(Reader::int8).unwrap(), [1, 2]);
        assert!(read.int8().is_err(), "nothing is left");
    }

    #[test]
    fn an_answer_that_announces_more_than_it_has_is_a_failure_and_takes_no_memory() {
        assert!(reader(&[127, 255, 255, 255]).list(Reader::int8).is_err());
        assert!(reader(&[127, 255, 255, 255]).bytes().is_err());
        assert!(reader(&[127, 255]).string().is_err());
        assert!(reader(&[0, 1, 255]).string().is_err(), "not text");
        assert_eq!(reader(&[255, 255]).string().unwrap(), None);
    }

    #[test]
    fn a_text_that_does_not_fit_is_refused() {
        assert!(Writer::default().string(&"x".repeat(1 << 15)).is_err());
    }
}
