//! FNV-1a: stable across versions and machines, which std's hasher does not promise.

/// The hash of the bytes that were added.
#[derive(Debug)]
pub struct Fnv(pub u64);

impl Fnv {
    /// The hash of no bytes.
    #[allow(clippy::new_without_default, reason = "the hash of no bytes isn't a useful default")]
    #[must_use]
    pub fn new() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    /// Adds bytes. It doesn't matter how they are split.
    pub fn add(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
