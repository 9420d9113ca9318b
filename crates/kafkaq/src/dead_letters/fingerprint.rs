//! Normalizes the reasons of similar failures.

use std::{borrow::Cow, fmt};

/// Stands for everything that differs between similar reasons.
const PLACEHOLDER: char = '#';
/// A word of hexadecimal digits that is at least this long is an id, if it has a decimal digit.
const HEX_LEN: usize = 8;
/// Any other word of letters and digits is an id from this length on, if it has several decimal digits.
const ID_LEN: usize = 16;
const ID_DIGITS: usize = 3;

/// A reason without the parts that differ between similar failures: `user 17 not found` and `user 18 not found` have
/// the same fingerprint, `user # not found`.
///
/// Numbers, UUIDs, hexadecimal and other long ids, quoted text, URLs and mail addresses become `#`, and white space
/// becomes single spaces. A fingerprint's own fingerprint is itself.
///
/// ```
/// use kafkaq::dead_letters::Fingerprint;
///
/// let of = |reason| Fingerprint::new(reason);
/// assert_eq!(of("user 17 not found"), of("user 18 not found"));
/// assert_eq!(of("no file 'a.txt' on https://files/17").as_str(), "no file '#' on #");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Returns the fingerprint of a reason.
    #[must_use]
    pub fn new(reason: &str) -> Self {
        let mut out = String::with_capacity(reason.len());
        let mut rest = reason.trim();
        while let Some(c) = rest.chars().next() {
            // A quote within a word is an apostrophe.
            let in_word = out.ends_with(is_part);
            let (text, after) = if c.is_whitespace() {
                (Cow::Borrowed(" "), rest.trim_start())
            } else if is_word(c) {
                word(rest)
            } else if let Some(after) = quoted(rest, c).filter(|_| !in_word) {
                (format!("{c}{PLACEHOLDER}{c}").into(), after)
            } else {
                let (text, after) = rest.split_at(c.len_utf8());
                (text.into(), after)
            };
            out.push_str(&text);
            rest = after;
        }
        Fingerprint(out)
    }

    /// Returns its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Fingerprint {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Part of a word, or what stands for one.
fn is_part(c: char) -> bool {
    is_word(c) || c == PLACEHOLDER
}

/// Returns what follows the quotation that `text` starts with, if it does.
fn quoted(text: &str, quote: char) -> Option<&str> {
    if !matches!(quote, '"' | '`' | '\'') {
        return None;
    }
    let closing = text.char_indices().skip(1).filter(|(_, c)| *c == quote);
    closing.map(|(at, _)| &text[at + 1..]).find(|after| !after.starts_with(is_part))
}

/// Returns the replacement of the word that `text` starts with, and what follows it.
fn word(text: &str) -> (Cow<'_, str>, &str) {
    let split = |inside: fn(char) -> bool| text.split_at(text.find(|c| !inside(c)).unwrap_or(text.len()));
    let (token, _) = split(|c| !c.is_whitespace() && !"\"'`<>()[]{},;".contains(c));
    let token = token.trim_end_matches(['.', ':', '!', '?']);
    if is_address(token) {
        return ("#".into(), &text[token.len()..]);
    }
    let (dashed, after) = split(|c| is_word(c) || c == '-');
    if is_uuid(dashed) {
        return ("#".into(), after);
    }
    let (word, after) = split(is_word);
    if is_id(word) { ("#".into(), after) } else { numbers(text) }
}

fn is_address(token: &str) -> bool {
    let around = |separator| token.split_once(separator).is_some_and(|(a, b)| !a.is_empty() && !b.is_empty());
    around("://") || around("@")
}

fn is_uuid(word: &str) -> bool {
    let lengths = word.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && word.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}

fn is_id(word: &str) -> bool {
    let digits = word.chars().filter(char::is_ascii_digit).count();
    let hex = word.strip_prefix("0x").unwrap_or(word);
    let is_hex = !hex.is_empty() && hex.chars().all(|c| c.is_ascii_hexdigit());
    let long_hex = is_hex && digits > 0 && (hex.len() >= HEX_LEN || hex.len() < word.len());
    long_hex || (word.len() >= ID_LEN && digits >= ID_DIGITS)
}

/// The word that `text` begins with, a placeholder for each number in it. A number may have a fraction, or dots and
/// commas as a version or an IP address has them.
fn numbers(text: &str) -> (Cow<'_, str>, &str) {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(c) = rest.chars().next().filter(|c| is_word(*c)) {
        if !c.is_ascii_digit() {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        }
        out.push(PLACEHOLDER);
        rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        while let Some(more) =
            rest.strip_prefix(['.', ',']).filter(|r| r.starts_with(|c: char| c.is_ascii_digit()))
        {
            rest = more.trim_start_matches(|c: char| c.is_ascii_digit());
        }
    }
    (out.into(), rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(reason: &str) -> String {
        Fingerprint::new(reason).to_string()
    }

    #[test]
    fn reasons_that_differ_in_values_have_one_fingerprint() {
        for (reason, fingerprint) in [
            ("user 17 not found", "user # not found"),
            ("failed 25 times, most recently: took 1.5s", "failed # times, most recently: took #s"),
            ("task 0192f0c1-7b3a-7c4d-8e5f-0123456789ab is late", "task # is late"),
            ("commit 9dc1673a, pointer 0xff, 3 of 12,000", "commit #, pointer #, # of #"),
            ("object 4f9c1e0ab77d2e10c3 is gone", "object # is gone"),
            ("key AKIAxx77yy88zz99Q was refused", "key # was refused"),
            ("no route to 10.0.0.17:8080", "no route to #:#"),
            ("GET https://api.example.org/users/17?x=y: 503", "GET #: #"),
            ("mailbox ada@example.org is full.", "mailbox # is full."),
            ("file 'a b.txt' can't be read", "file '#' can't be read"),
            (r#"expected "x", got `y`"#, r##"expected "#", got `#`"##),
            ("the user's file isn't Ada's", "the user's file isn't Ada's"),
            ("  two\n\tlines  ", "two lines"),
            ("", ""),
        ] {
            assert_eq!(of(reason), fingerprint, "{reason}");
        }
    }

    #[test]
    fn reasons_that_differ_in_words_have_different_fingerprints() {
        let reasons = ["user 17 not found", "order 17 not found", "user 17 found", "decade", "facade"];
        let distinct: std::collections::HashSet<_> = reasons.iter().map(|r| Fingerprint::new(r)).collect();
        assert_eq!(distinct.len(), reasons.len());
    }

    proptest! {
        #[test]
        fn a_fingerprint_has_itself_as_its_fingerprint(reason in "[a-f0-9@:/'\"`#. x_-]{0,40}|\\PC{0,40}") {
            let once = of(&reason);
            prop_assert_eq!(of(&once), once.clone());
            prop_assert!(!once.contains(|c: char| c.is_ascii_digit()));
        }

        #[test]
        fn values_do_not_matter(a: u64, b: u64, id: u128, other: u128) {
            let reason = |n: u64, id: u128| format!("job {n} of {} failed", uuid::Uuid::from_u128(id));
            prop_assert_eq!(of(&reason(a, id)), of(&reason(b, other)));
        }
    }
}
