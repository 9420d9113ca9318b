//! Decides where reading starts after a partition was taken.

use crate::{Cursor, Standing};

/// Where reading starts, and an alarm for the operator: at the furthest known cursor that belongs to the current log,
/// otherwise at its first record. Never at the end, since a later member must find what was published before.
///
/// Everything below each cursor was finished once, so the furthest is right, whether it is from the store or the log: a
/// store that was rolled back doesn't take the group back with it. A cursor without a mark had no record below it and
/// would fit any log: ignoring it repeats nothing. The first cursor is the most trusted one: if it is of an earlier
/// log, the operator has to know.
#[must_use]
pub fn start(first: i64, known: &[(Cursor, Standing)]) -> (Cursor, Option<(Cursor, Standing)>) {
    let marked = known.iter().filter(|(cursor, _)| cursor.mark.is_some());
    let usable = marked.filter_map(|(cursor, standing)| match *standing {
        Standing::Intact => Some((*cursor, None)),
        Standing::DeletedUnread { first } => {
            Some((Cursor { offset: first, ..*cursor }, Some((*cursor, *standing))))
        }
        Standing::Replaced { .. } => None,
    });
    // Of two equal ones, the one without lost records.
    let furthest = usable.max_by_key(|(cursor, deleted)| (cursor.offset, deleted.is_none()));
    let (at, deleted) = furthest.unwrap_or((Cursor::new(first), None));
    let replaced = known.first().copied().filter(|(_, s)| matches!(s, Standing::Replaced { .. }));
    (at, replaced.or(deleted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mark;

    fn at(offset: i64) -> Cursor {
        let mark = Mark { offset: offset - 1, timestamp_ms: 5, hash: 7 };
        Cursor { offset, mark: Some(mark), anchor: Some(mark) }
    }

    const INTACT: Standing = Standing::Intact;
    const REPLACED: Standing = Standing::Replaced { first: 2 };

    #[test]
    fn it_starts_at_the_furthest_cursor_of_this_log() {
        assert_eq!(start(2, &[(at(4), INTACT), (at(6), INTACT)]), (at(6), None));
        assert_eq!(start(2, &[(at(6), INTACT), (at(4), INTACT)]), (at(6), None));
        assert_eq!(
            start(2, &[(at(4), INTACT), (at(8), REPLACED)]),
            (at(4), None),
            "an old checkpoint raises no alarm"
        );
    }

    #[test]
    fn without_a_cursor_of_this_log_it_starts_at_the_first_record_and_reports_the_first_cursor() {
        assert_eq!(start(2, &[]), (Cursor::new(2), None));
        let (stored, kept) = ((at(8), REPLACED), (at(6), REPLACED));
        assert_eq!(start(2, &[stored, kept]), (Cursor::new(2), Some(stored)));
        assert_eq!(
            start(2, &[stored, (at(6), INTACT)]),
            (at(6), Some(stored)),
            "truncated below the last \
            commit"
        );
    }

    #[test]
    fn cursor_without_a_mark_is_ignored() {
        assert_eq!(start(2, &[(Cursor::new(6), INTACT)]), (Cursor::new(2), None));
        assert_eq!(start(2, &[(Cursor::new(6), INTACT), (at(4), INTACT)]), (at(4), None));
    }

    #[test]
    fn records_deleted_unread_are_skipped_and_reported_unless_another_cursor_covers_them() {
        let gone = Standing::DeletedUnread { first: 9 };
        let moved = Cursor { offset: 9, ..at(4) };
        assert_eq!(start(9, &[(at(4), gone)]), (moved, Some((at(4), gone))));
        for intact in [at(9), at(12)] {
            assert_eq!(start(9, &[(at(4), gone), (intact, INTACT)]), (intact, None));
            assert_eq!(start(9, &[(intact, INTACT), (at(4), gone)]), (intact, None));
        }
    }
}
