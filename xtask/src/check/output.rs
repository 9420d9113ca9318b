//! Parses the final output of test binaries.

use std::time::Duration;

/// Counts of test outcomes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) ignored: u64,
}

impl Tally {
    /// The sum of all lines `test result:` in a binary's output.
    pub(super) fn of(said: &str) -> Self {
        let mut sum = Self::default();
        for line in said.lines().filter(|line| line.starts_with("test result:")) {
            let count = |what: &str| {
                let before = line.split(what).next().filter(|before| before.len() < line.len())?;
                before.rsplit([' ', '.']).find(|word| !word.is_empty())?.parse().ok()
            };
            let count = |what| count(what).unwrap_or_default();
            sum.add(Self { passed: count(" passed"), failed: count(" failed"), ignored: count(" ignored") });
        }
        sum
    }

    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// As a test binary prints it.
    pub(super) fn line(self, all_well: bool, took: Duration) -> String {
        let Self { passed, failed, ignored } = self;
        let word = if all_well { "ok" } else { "FAILED" };
        let took = took.as_secs_f64();
        format!(
            "test result: {word}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; \
             0 filtered out; finished in {took:.2}s"
        )
    }
}

/// The names of the tests that failed. A binary lists them again after the word `failures:`.
pub(super) fn failed(said: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut lines = said.lines();
    while lines.any(|line| line == "failures:") {
        // The same word, followed by an empty line, also precedes the output of the failed tests.
        let listed = lines.by_ref().map_while(|line| line.strip_prefix("    "));
        names.extend(listed.map(|name| name.trim().to_owned()));
    }
    names
}

/// Returns the variable that replays a test's random choices, as the test printed it.
pub(super) fn seed(said: &str) -> Option<String> {
    let set = said.lines().rfind(|line| line.starts_with("KAFKAQ_TEST_SEED="))?;
    Some(set.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
running 3 tests
test one ... ok
test two ... FAILED

failures:

---- two stdout ----
    indented
KAFKAQ_TEST_SEED=12

thread 'two' panicked


failures:
    two
    three::inner

test result: FAILED. 1 passed; 2 failed; 4 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn results_are_added_up() {
        let twice = [SAID, SAID].concat();
        assert_eq!(Tally::of(&twice), Tally { passed: 2, failed: 4, ignored: 8 });
        assert_eq!(Tally::of("test result: something new"), Tally::default());
    }

    #[test]
    fn tally_round_trips() {
        let tally = Tally { passed: 12, failed: 0, ignored: 3 };
        assert_eq!(Tally::of(&tally.line(true, Duration::ZERO)), tally);
    }

    #[test]
    fn failed_tests_are_named() {
        assert_eq!(failed(SAID), ["two", "three::inner"]);
        assert!(failed("test one ... ok\n").is_empty());
    }

    #[test]
    fn the_seed_is_found() {
        assert_eq!(seed(SAID).as_deref(), Some("KAFKAQ_TEST_SEED=12"));
        assert_eq!(seed(""), None);
    }
}
