//! Compression codecs. Each is a feature that is on by default: none needs C code.

use super::Unreadable;
use std::io::{self, Read};

/// The codecs by their numbers, named as their features are.
const NAMES: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

/// Decompresses the records of a batch. More than `limit` bytes are refused, so that a small batch can't exhaust
/// memory.
pub(super) fn decompress(codec: i16, bytes: &[u8], limit: usize) -> Result<Vec<u8>, Unreadable> {
    let name = usize::try_from(codec).ok().and_then(|n| NAMES.get(n)).copied();
    let name = name.ok_or(Unreadable::UnknownCodec(codec))?;
    let damaged = |e: io::Error| Unreadable::Damaged(format!("{name}: {e}"));
    let decoder = decoder(name, bytes, limit).map_err(damaged)?;
    let mut out = Vec::new();
    let decoder = decoder.ok_or(Unreadable::MissingCodec(name))?;
    decoder.take(limit as u64 + 1).read_to_end(&mut out).map_err(damaged)?;
    match out.len() <= limit {
        true => Ok(out),
        false => Err(Unreadable::TooLarge),
    }
}

/// The codec's number, and the compressed records; `None` if it is left out of the build. Only one codec is used for
/// writing: every client can read it.
pub(super) fn compress(records: &[u8]) -> Option<(i16, Vec<u8>)> {
    #[cfg(feature = "gzip")]
    {
        let mut encoder = flate2::read::GzEncoder::new(records, flate2::Compression::default());
        let mut out = Vec::new();
        // What is read lies in memory.
        encoder.read_to_end(&mut out).ok()?;
        Some((1, out))
    }
    #[cfg(not(feature = "gzip"))]
    {
        let _ = records;
        None
    }
}

/// `None` for a codec that is left out of the build.
#[cfg_attr(not(feature = "snappy"), expect(unused_variables))]
fn decoder<'a>(name: &str, bytes: &'a [u8], limit: usize) -> io::Result<Option<Box<dyn Read + 'a>>> {
    Ok(match name {
        #[cfg(feature = "gzip")]
        "gzip" => Some(Box::new(flate2::read::MultiGzDecoder::new(bytes))),
        #[cfg(feature = "snappy")]
        "snappy" => Some(Box::new(io::Cursor::new(snappy(bytes, limit)?))),
        #[cfg(feature = "lz4")]
        "lz4" => Some(Box::new(lz4_flex::frame::FrameDecoder::new(bytes))),
        #[cfg(feature = "zstd")]
        "zstd" => Some(Box::new(ZstdFrames { rest: bytes, frame: None })),
        _ => None,
    })
}

/// Reads consecutive frames, as the format allows.
#[cfg(feature = "zstd")]
struct ZstdFrames<'a> {
    rest: &'a [u8],
    frame: Option<ruzstd::decoding::StreamingDecoder<&'a [u8], ruzstd::decoding::FrameDecoder>>,
}

#[cfg(feature = "zstd")]
impl Read for ZstdFrames<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(mut frame) = self.frame.take() {
                let n = frame.read(out)?;
                if n > 0 {
                    self.frame = Some(frame);
                    return Ok(n);
                }
                self.rest = frame.into_inner();
            }
            if self.rest.is_empty() || out.is_empty() {
                return Ok(0);
            }
            let frame = ruzstd::decoding::StreamingDecoder::new(self.rest).map_err(io::Error::other)?;
            self.frame = Some(frame);
        }
    }
}

/// Java's blocks behind a header of their own, or a single block without one, as other clients write it. It stops when
/// the limit is passed.
#[cfg(feature = "snappy")]
fn snappy(bytes: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    const MAGIC: &[u8] = b"\x82SNAPPY\0";
    /// The magic bytes and two versions.
    const HEADER: usize = 16;
    let mut out = Vec::new();
    if !bytes.starts_with(MAGIC) {
        snappy_block(bytes, limit, &mut out)?;
        return Ok(out);
    }
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let mut rest = bytes.get(HEADER..).ok_or_else(cut)?;
    while !rest.is_empty() && out.len() <= limit {
        let (size, behind) = rest.split_first_chunk().ok_or_else(cut)?;
        let size = u32::from_be_bytes(*size) as usize;
        let (block, next) = behind.split_at_checked(size).ok_or_else(cut)?;
        snappy_block(block, limit, &mut out)?;
        rest = next;
    }
    Ok(out)
}

/// A block that is too large becomes one byte too many.
#[cfg(feature = "snappy")]
fn snappy_block(block: &[u8], limit: usize, out: &mut Vec<u8>) -> io::Result<()> {
    let begin = out.len();
    let size = snap::raw::decompress_len(block)?;
    if size > limit.saturating_sub(begin) {
        out.resize(limit + 1, 0);
        return Ok(());
    }
    out.resize(begin + size, 0);
    snap::raw::Decoder::new().decompress(block, &mut out[begin..])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_unknown_codecs_are_named() {
        assert!(matches!(decompress(9, b"", 10), Err(Unreadable::UnknownCodec(9))));
        for (codec, is_on) in [
            (1, cfg!(feature = "gzip")),
            (2, cfg!(feature = "snappy")),
            (3, cfg!(feature = "lz4")),
            (4, cfg!(feature = "zstd")),
        ] {
            let missing = Err(Unreadable::MissingCodec(NAMES[codec as usize]));
            assert_eq!(decompress(codec, b"?", 10) == missing, !is_on, "{codec}");
        }
    }

    #[cfg(feature = "snappy")]
    #[test]
    fn both_forms_of_snappy_are_read_and_cut_ones_refused() {
        let one = snap::raw::Encoder::new().compress_vec(b"first").unwrap();
        let two = snap::raw::Encoder::new().compress_vec(b"second").unwrap();
        assert_eq!(decompress(2, &one, 100).unwrap(), b"first");
        let mut framed = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
        for block in [&one, &two] {
            framed.extend((block.len() as u32).to_be_bytes());
            framed.extend(block);
        }
        assert_eq!(decompress(2, &framed, 100).unwrap(), b"firstsecond");
        assert!(matches!(decompress(2, &framed, 8), Err(Unreadable::TooLarge)));
        for cut in [8, framed.len() - 1, framed.len() - two.len() - 2] {
            assert!(matches!(decompress(2, &framed[..cut], 100), Err(Unreadable::Damaged(_))), "{cut}");
        }
    }

    #[cfg(feature = "gzip")]
    #[test]
    fn a_small_batch_that_unpacks_to_more_than_the_limit_is_refused() {
        use std::io::Write;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&vec![0; 1 << 20]).unwrap();
        let gzip = gzip.finish().unwrap();
        assert!(gzip.len() < 5000);
        assert!(matches!(decompress(1, &gzip, (1 << 20) - 1), Err(Unreadable::TooLarge)));
        assert_eq!(decompress(1, &gzip, 1 << 20).unwrap().len(), 1 << 20);
    }

    #[cfg(feature = "zstd")]
    #[test]
    fn every_frame_of_zstd_is_read() {
        use ruzstd::encoding::{CompressionLevel, compress_to_vec};
        let frames =
            [&b"first"[..], b"second"].map(|bytes| compress_to_vec(bytes, CompressionLevel::Fastest));
        assert_eq!(decompress(4, &frames.concat(), 100).unwrap(), b"firstsecond");
        assert_eq!(decompress(4, &frames.concat(), 8), Err(Unreadable::TooLarge));
    }

    #[test]
    fn garbage_is_reported_as_damaged_by_every_codec() {
        for codec in 1..=4 {
            let read = decompress(codec, b"nonsense that goes on", 100);
            assert!(
                matches!(
                    read,
                    Err(Unreadable::Damaged(_) | Unreadable::MissingCodec(_) | Unreadable::TooLarge)
                ),
                "{codec}: {read:?}"
            );
        }
    }
}
