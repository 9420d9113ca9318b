//! The primitive types of Kafka's protocol. A flexible version writes lengths as variable-length integers and ends each
//! structure with tagged fields; the same calls serve both kinds.

use crate::failure::Failure;
use bytes::{Buf, BufMut, Bytes};
use kafkaq_core::ErrorKind;

/// The id of a topic: it changes when the topic is deleted and recreated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TopicId(pub(crate) [u8; 16]);

impl TopicId {
    /// The value that stands for the lack of an id.
    const NONE: TopicId = TopicId([0; 16]);
}

/// Encodes a request.
#[derive(Default)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
    flexible: bool,
}

impl Writer {
    pub(crate) fn new(flexible: bool) -> Self {
        Writer { bytes: Vec::new(), flexible }
    }

    pub(crate) fn int8(&mut self, n: i8) {
        self.bytes.put_i8(n);
    }

    pub(crate) fn bool(&mut self, b: bool) {
        self.bytes.put_u8(u8::from(b));
    }

    pub(crate) fn int16(&mut self, n: i16) {
        self.bytes.put_i16(n);
    }

    pub(crate) fn int32(&mut self, n: i32) {
        self.bytes.put_i32(n);
    }

    pub(crate) fn int64(&mut self, n: i64) {
        self.bytes.put_i64(n);
    }

    pub(crate) fn topic_id(&mut self, id: Option<TopicId>) {
        self.bytes.put_slice(&id.unwrap_or(TopicId::NONE).0);
    }

    /// The number of entries that follow.
    pub(crate) fn array(&mut self, n: usize) -> Result<(), Failure> {
        let n = i32::try_from(n).map_err(|_| too_long())?;
        match self.flexible {
            true => self.unsigned_varint(n.cast_unsigned() + 1),
            false => self.int32(n),
        }
        Ok(())
    }

    /// An array that is null.
    pub(crate) fn no_array(&mut self) {
        match self.flexible {
            true => self.unsigned_varint(0),
            false => self.int32(-1),
        }
    }

    pub(crate) fn string(&mut self, text: &str) -> Result<(), Failure> {
        let len = i16::try_from(text.len()).map_err(|_| too_long())?;
        match self.flexible {
            true => self.unsigned_varint(u32::from(len.cast_unsigned()) + 1),
            false => self.int16(len),
        }
        self.bytes.put_slice(text.as_bytes());
        Ok(())
    }

    /// A string that is null.
    pub(crate) fn no_string(&mut self) {
        match self.flexible {
            true => self.unsigned_varint(0),
            false => self.int16(-1),
        }
    }

    pub(crate) fn byte_array(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.array(bytes.len())?;
        self.bytes.put_slice(bytes);
        Ok(())
    }

    /// The end of a structure.
    pub(crate) fn end(&mut self) {
        if self.flexible {
            self.unsigned_varint(0);
        }
    }

    fn unsigned_varint(&mut self, mut n: u32) {
        while n >= 128 {
            self.bytes.push((n % 128) as u8 | 128);
            n /= 128;
        }
        self.bytes.push(n as u8);
    }
}

fn too_long() -> Failure {
    Failure::refused(ErrorKind::Invalid, "Kafka's protocol can't encode a text of more than 32 KiB")
}

/// Decodes a response. Reading beyond its end is a failure.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) bytes: Bytes,
    flexible: bool,
}

impl Reader {
    pub(crate) fn new(bytes: Bytes, flexible: bool) -> Self {
        Reader { bytes, flexible }
    }

    pub(crate) fn int8(&mut self) -> Result<i8, Failure> {
        self.bytes.try_get_i8().map_err(Failure::unreadable)
    }

    pub(crate) fn int16(&mut self) -> Result<i16, Failure> {
        self.bytes.try_get_i16().map_err(Failure::unreadable)
    }

    pub(crate) fn int32(&mut self) -> Result<i32, Failure> {
        self.bytes.try_get_i32().map_err(Failure::unreadable)
    }

    pub(crate) fn int64(&mut self) -> Result<i64, Failure> {
        self.bytes.try_get_i64().map_err(Failure::unreadable)
    }

    /// `None` from a server that has no ids.
    pub(crate) fn topic_id(&mut self) -> Result<Option<TopicId>, Failure> {
        let id = self.take(16)?;
        let id = TopicId(id[..].try_into().map_err(Failure::unreadable)?);
        Ok((id != TopicId::NONE).then_some(id))
    }

    /// `None` if it is null.
    pub(crate) fn string(&mut self) -> Result<Option<String>, Failure> {
        let len = match self.flexible {
            true => i64::from(self.unsigned_varint()?) - 1,
            false => i64::from(self.int16()?),
        };
        let Ok(len) = usize::try_from(len) else { return Ok(None) };
        let text = String::from_utf8(self.take(len)?.to_vec()).map_err(Failure::unreadable)?;
        Ok(Some(text))
    }

    /// Null is equivalent to empty wherever this is used.
    pub(crate) fn byte_array(&mut self) -> Result<Bytes, Failure> {
        let len = self.len()?;
        self.take(len)
    }

    /// The entries of an array, each decoded by `read`. Null is equivalent to empty.
    pub(crate) fn array<T>(
        &mut self,
        mut read: impl FnMut(&mut Reader) -> Result<T, Failure>,
    ) -> Result<Vec<T>, Failure> {
        // Whatever number is announced, there can't be more than the bytes allow.
        (0..self.len()?).map(|_| read(self)).collect()
    }

    /// The end of a structure, with fields that this version doesn't know.
    pub(crate) fn end(&mut self) -> Result<(), Failure> {
        self.end_with(|_tag| {})
    }

    /// The same, where it matters whether some of these fields are there.
    pub(crate) fn end_with(&mut self, mut is_there: impl FnMut(u32)) -> Result<(), Failure> {
        if !self.flexible {
            return Ok(());
        }
        for _ in 0..self.unsigned_varint()? {
            is_there(self.unsigned_varint()?);
            let len = self.unsigned_varint()?;
            self.take(len as usize)?;
        }
        Ok(())
    }

    fn len(&mut self) -> Result<usize, Failure> {
        let len = match self.flexible {
            true => i64::from(self.unsigned_varint()?) - 1,
            false => i64::from(self.int32()?),
        };
        Ok(usize::try_from(len).unwrap_or(0))
    }

    fn unsigned_varint(&mut self) -> Result<u32, Failure> {
        let mut n = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.bytes.try_get_u8().map_err(Failure::unreadable)?;
            n |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return u32::try_from(n).map_err(Failure::unreadable);
            }
        }
        Err(Failure::unreadable("a number of more than five bytes"))
    }

    fn take(&mut self, len: usize) -> Result<Bytes, Failure> {
        match len <= self.bytes.len() {
            true => Ok(self.bytes.split_to(len)),
            false => Err(Failure::unreadable(format!("{len} bytes announced, {} there", self.bytes.len()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(bytes: &[u8], flexible: bool) -> Reader {
        Reader::new(Bytes::copy_from_slice(bytes), flexible)
    }

    #[test]
    fn encoding_round_trips() {
        let long = "x".repeat(300);
        for flexible in [false, true] {
            let mut body = Writer::new(flexible);
            body.int8(-1);
            body.int16(300);
            body.int32(-70_000);
            body.int64(i64::MIN);
            body.topic_id(Some(TopicId([7; 16])));
            body.topic_id(None);
            body.string("ü").unwrap();
            body.string(&long).unwrap();
            body.no_string();
            body.byte_array(b"\0\xff").unwrap();
            body.array(2).unwrap();
            body.bool(true);
            body.int8(2);
            body.no_array();
            body.end();
            let mut read = reader(&body.bytes, flexible);
            let ints =
                (read.int8().unwrap(), read.int16().unwrap(), read.int32().unwrap(), read.int64().unwrap());
            assert_eq!(ints, (-1, 300, -70_000, i64::MIN));
            assert_eq!(read.topic_id().unwrap(), Some(TopicId([7; 16])));
            assert_eq!(read.topic_id().unwrap(), None);
            assert_eq!(read.string().unwrap().as_deref(), Some("ü"));
            assert_eq!(read.string().unwrap(), Some(long.clone()));
            assert_eq!(read.string().unwrap(), None);
            assert_eq!(&read.byte_array().unwrap()[..], b"\0\xff");
            assert_eq!(read.array(Reader::int8).unwrap(), [1, 2]);
            assert!(read.array(Reader::int8).unwrap().is_empty());
            read.end().unwrap();
            assert!(read.int8().is_err(), "nothing is left");
        }
    }

    #[test]
    fn unknown_fields_are_skipped() {
        // Two of them: tag 0 with three bytes, tag 200 with none.
        let mut read = reader(&[2, 0, 3, 9, 9, 9, 200, 1, 0, 42], true);
        read.end().unwrap();
        assert_eq!(read.int8().unwrap(), 42);
    }

    #[test]
    fn response_with_a_too_large_length_fails_without_allocating() {
        assert!(reader(&[127, 255, 255, 255], false).array(Reader::int8).is_err());
        assert!(reader(&[127, 255, 255, 255], false).byte_array().is_err());
        assert!(reader(&[255, 255, 255, 255, 15], true).array(Reader::int8).is_err());
        assert!(reader(&[255, 255, 255, 255, 255, 1], true).byte_array().is_err());
        assert!(reader(&[1, 0, 127], true).end().is_err());
        assert!(reader(&[127, 255], false).string().is_err());
        assert!(reader(&[0, 1, 255], false).string().is_err(), "not text");
    }

    #[test]
    fn too_long_text_is_refused() {
        assert!(Writer::default().string(&"x".repeat(1 << 15)).is_err());
    }
}
