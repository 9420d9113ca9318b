//! Where reading starts once a partition was won.

use crate::{Cursor, Mark, Offsets, Record};

/// Where reading starts: at the furthest of the known cursors that belongs to this topic, else at the first record,
/// never at the end (hole 17).
///
/// Every cursor was once finished up to, so the furthest is right, whichever of the store and the log has it: a store
/// that went back in time doesn't make the group go back with it. With each cursor comes what a read from its mark found
/// first. A mark that retention has deleted proves nothing, and the cursor is believed; a mark that isn't where it was,
/// or a cursor beyond the end, is of an earlier topic of the same name (hole 15).
#[must_use]
pub fn start(log: Offsets, cursors: &[(Cursor, Option<Record>)]) -> Cursor {
    let of_this_topic = |(cursor, at_mark): &&(Cursor, Option<Record>)| {
        let moved = cursor
            .mark
            .is_some_and(|mark| mark.offset >= log.first && at_mark.as_ref().map(Mark::of) != Some(mark));
        cursor.offset <= log.next && !moved
    };
    let furthest = cursors.iter().filter(of_this_topic).map(|(cursor, _)| *cursor).max_by_key(|c| c.offset);
    furthest.filter(|c| c.offset >= log.first).unwrap_or(Cursor::new(log.first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Headers;

    fn record(offset: i64, value: &'static str) -> Record {
        Record::new(offset, 5, None, Some(value.into()), Headers::new())
    }

    fn at(offset: i64) -> Cursor {
        Cursor { offset, mark: Some(Mark::of(&record(offset - 1, "x"))), anchor: None }
    }

    fn start_at(log: Offsets, cursor: Cursor, at_mark: Option<Record>) -> i64 {
        start(log, &[(cursor, at_mark)]).offset
    }

    #[test]
    fn it_starts_at_the_cursor_if_the_last_finished_record_is_still_the_same() {
        let log = Offsets { first: 0, next: 9 };
        assert_eq!(start_at(log, at(4), Some(record(3, "x"))), 4);
    }

    #[test]
    fn a_topic_made_anew_starts_at_its_first_record() {
        let log = Offsets { first: 0, next: 9 };
        assert_eq!(start_at(log, at(4), Some(record(3, "y"))), 0);
        assert_eq!(start_at(log, at(4), Some(record(5, "x"))), 0);
        assert_eq!(start_at(log, at(20), None), 0);
    }

    #[test]
    fn the_furthest_cursor_of_this_topic_counts() {
        let log = Offsets { first: 0, next: 9 };
        let cursors = |a, b| [(at(a), Some(record(a - 1, "x"))), (at(b), Some(record(b - 1, "x")))];
        assert_eq!(start(log, &cursors(4, 6)).offset, 6);
        assert_eq!(start(log, &cursors(6, 4)).offset, 6);
        let of_an_earlier_topic = (at(8), Some(record(7, "y")));
        assert_eq!(start(log, &[of_an_earlier_topic, (at(4), Some(record(3, "x")))]).offset, 4);
    }

    #[test]
    fn without_a_cursor_it_starts_at_the_first_record() {
        assert_eq!(start(Offsets { first: 3, next: 9 }, &[]).offset, 3);
    }

    #[test]
    fn what_retention_deleted_is_passed_over() {
        assert_eq!(start_at(Offsets { first: 6, next: 9 }, at(4), None), 6);
        assert_eq!(start_at(Offsets { first: 4, next: 9 }, at(4), None), 4);
    }
}
