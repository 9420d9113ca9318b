//! The headers of typed tasks. They are text, for people and for programs in other languages.

pub(super) use crate::task_headers::{EXPIRED_HEADER, EXPIRES_HEADER, KIND_HEADER};

use crate::Headers;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The version of its payload, in decimal digits; 1 if it is missing.
pub(super) const VERSION_HEADER: &str = "task-version";
/// The format of its payload: [`Format::name`](super::Format::name); `json` if it is missing.
pub(super) const FORMAT_HEADER: &str = "task-format";
/// The value of [`EXPIRED_HEADER`] that dead-letters the task.
pub(super) const DEAD: &str = "dead";

fn text<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    std::str::from_utf8(headers.get(name)?).ok()
}

/// The kind and the version of a task, if it has a kind.
pub(super) fn kind(headers: &Headers) -> Option<(&str, Result<u16, &str>)> {
    let kind = text(headers, KIND_HEADER)?;
    let version = match text(headers, VERSION_HEADER) {
        Some(version) => version.parse().map_err(|_| version),
        None => Ok(1),
    };
    Some((kind, version))
}

/// The format of a payload.
pub(super) fn format(headers: &Headers) -> &str {
    text(headers, FORMAT_HEADER).unwrap_or(super::Format::Json.name())
}

/// What happens to a task that was not started in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    Dropped,
    Dead,
}

/// Whether the task must no longer be started.
pub(super) fn expired(headers: &Headers, now: SystemTime) -> Option<Expired> {
    let at = text(headers, EXPIRES_HEADER)?.parse().ok()?;
    let is_over = now.duration_since(UNIX_EPOCH).unwrap_or_default() >= Duration::from_millis(at);
    let then = if text(headers, EXPIRED_HEADER) == Some(DEAD) { Expired::Dead } else { Expired::Dropped };
    is_over.then_some(then)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> Headers {
        list.iter().map(|(name, value)| ((*name).into(), Some((*value).into()))).collect()
    }

    #[test]
    fn version_defaults_to_one_and_must_be_a_number() {
        assert_eq!(kind(&headers(&[])), None);
        assert_eq!(kind(&headers(&[(KIND_HEADER, "a")])), Some(("a", Ok(1))));
        assert_eq!(kind(&headers(&[(KIND_HEADER, "a"), (VERSION_HEADER, "7")])), Some(("a", Ok(7))));
        assert_eq!(kind(&headers(&[(KIND_HEADER, "a"), (VERSION_HEADER, "x")])), Some(("a", Err("x"))));
    }

    #[test]
    fn a_task_expires_at_its_time_and_not_before() {
        let at = |ms| UNIX_EPOCH + Duration::from_millis(ms);
        let dropped = headers(&[(EXPIRES_HEADER, "5000")]);
        assert_eq!(expired(&dropped, at(4999)), None);
        assert_eq!(expired(&dropped, at(5000)), Some(Expired::Dropped));
        let dead = headers(&[(EXPIRES_HEADER, "5000"), (EXPIRED_HEADER, DEAD)]);
        assert_eq!(expired(&dead, at(6000)), Some(Expired::Dead));
        assert_eq!(
            expired(&headers(&[(EXPIRES_HEADER, "soon")]), at(6000)),
            None,
            "not a time, so it isn't \
            ours"
        );
    }
}
