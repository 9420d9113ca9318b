//! Where reading starts once a partition was won.

use super::{Cursor, Mark};
use crate::{Offsets, Record};

/// Where reading starts: at the cursor if it belongs to this topic, else at the first record, never at the end
/// (hole 17).
///
/// `at_mark` is what a read from the cursor's mark found first. A mark that retention has deleted proves nothing, and
/// the cursor is believed; a mark that isn't where it was, or a cursor beyond the end, is of an earlier topic of the
/// same name (hole 15).
#[must_use]
pub fn start(cursor: Option<Cursor>, log: Offsets, at_mark: Option<&Record>) -> Cursor {
    let first = Cursor { offset: log.first, mark: None };
    let Some(cursor) = cursor.filter(|c| c.offset <= log.next) else { return first };
    let same = match cursor.mark {
        Some(mark) if mark.offset >= log.first => at_mark.is_some_and(|r| Mark::of(r) == mark),
        _ => true,
    };
    match same {
        true if cursor.offset >= log.first => cursor,
        _ => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Headers;

    fn record(offset: i64, value: &'static str) -> Record {
        Record::new(offset, 5, None, Some(value.into()), Headers::new())
    }

    fn at(offset: i64) -> Option<Cursor> {
        Some(Cursor { offset, mark: Some(Mark::of(&record(offset - 1, "x"))) })
    }

    #[test]
    fn it_starts_at_the_cursor_if_the_last_finished_record_is_still_the_same() {
        let log = Offsets { first: 0, next: 9 };
        assert_eq!(start(at(4), log, Some(&record(3, "x"))).offset, 4);
    }

    #[test]
    fn a_topic_made_anew_starts_at_its_first_record() {
        let log = Offsets { first: 0, next: 9 };
        assert_eq!(start(at(4), log, Some(&record(3, "y"))).offset, 0);
        assert_eq!(start(at(4), log, Some(&record(5, "x"))).offset, 0);
        assert_eq!(start(at(20), log, None).offset, 0);
    }

    #[test]
    fn without_a_cursor_it_starts_at_the_first_record() {
        assert_eq!(start(None, Offsets { first: 3, next: 9 }, None).offset, 3);
    }

    #[test]
    fn what_retention_deleted_is_passed_over() {
        assert_eq!(start(at(4), Offsets { first: 6, next: 9 }, None).offset, 6);
        assert_eq!(start(at(4), Offsets { first: 4, next: 9 }, None).offset, 4);
    }
}
