//! Replayable randomness.

/// A seeded generator: splitmix64.
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    /// Creates a generator from the seed in `KAFKAQ_TEST_SEED`, or a new one, which is printed.
    #[must_use]
    #[allow(clippy::print_stdout, reason = "it is what a failure is replayed with")]
    pub fn seeded() -> Rng {
        let told = std::env::var("KAFKAQ_TEST_SEED").ok().map(|seed| seed.parse().expect("a number"));
        let seed = told.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        println!("KAFKAQ_TEST_SEED={seed}");
        Rng(seed)
    }

    /// From 0 to `n - 1`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}
