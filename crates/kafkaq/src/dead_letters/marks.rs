//! Marks of handled dead letters: a separate topic, since a record of a log can't be deleted.

use super::{
    DeadLetter, Place,
    scan::{Ranges, Scan},
};
use crate::{driver::every_answer, jobs::Attempts};
use kafkaq_core::{Headers, Log, NewRecord, Partition, PartitionLog, Record, Result};
use std::{collections::HashMap, convert::Infallible, sync::Arc};

const HANDLED: &str = "kafkaq-handled";
const LETTER: &str = "kafkaq-letter";
const HASH: &str = "kafkaq-letter-hash";
const REDRIVEN_AS: &str = "kafkaq-redriven-as";

/// What was last done with a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Handled {
    /// It was published again.
    Redriven,
    /// It was discarded.
    Discarded,
}

impl Handled {
    fn word(self) -> &'static str {
        match self {
            Handled::Redriven => "redriven",
            Handled::Discarded => "discarded",
        }
    }
}

/// The marks of a topic.
#[derive(Debug, Default)]
pub(super) struct Marks(HashMap<Place, (u64, Handled)>);

impl Marks {
    /// Reads the marks of the letters in these ranges. No others are kept in memory: marks outlive their letters, and
    /// those of an earlier topic of this name may be of letters that this one doesn't have.
    pub(super) async fn read(
        log: &Arc<dyn PartitionLog>,
        topic: &Arc<str>,
        letters: &Ranges,
    ) -> Result<Self> {
        let mut scan = Scan::new(log, topic).await?;
        let mut marks = HashMap::new();
        while let Some((_, record)) = scan.next().await? {
            if let Some((place, hash, handled)) = read(&record)
                && letters.get(&place.partition).is_some_and(|range| range.contains(&place.offset))
            {
                marks.insert(place, (hash, handled));
            }
        }
        Ok(Marks(marks))
    }

    pub(super) fn get(&self, letter: &DeadLetter) -> Option<Handled> {
        self.0.get(&letter.place).filter(|(hash, _)| *hash == letter.hash).map(|(_, handled)| *handled)
    }
}

/// Records of other programs, or of a later version, are not marks.
fn read(record: &Record) -> Option<(Place, u64, Handled)> {
    let text = |name| record.headers.get(name).and_then(|value| std::str::from_utf8(value).ok());
    let handled = match text(HANDLED)? {
        "redriven" => Handled::Redriven,
        "discarded" => Handled::Discarded,
        _ => return None,
    };
    Some((text(LETTER)?.parse().ok()?, u64::from_str_radix(text(HASH)?, 16).ok()?, handled))
}

fn mark(letter: &DeadLetter, handled: Handled) -> NewRecord {
    let mut headers = Headers::new();
    let mut add = |name, value: String| headers.push(name, Some(value.into()));
    add(HANDLED, handled.word().to_owned());
    add(LETTER, letter.place.to_string());
    add(HASH, format!("{:016x}", letter.hash));
    if handled == Handled::Redriven {
        add(REDRIVEN_AS, letter.redrive_id().as_str().to_owned());
    }
    // Only the headers are read. But a record with a key and no value is a tombstone, which compaction deletes, should
    // somebody ask for that later.
    let value = handled.word().into();
    NewRecord::new(Some(letter.place.to_string().into()), Some(value), headers)
}

/// Marks letters. When it returns, the marks are durable.
pub(super) async fn append<'a>(
    log: &dyn Log,
    topic: &Arc<str>,
    letters: impl Iterator<Item = &'a DeadLetter>,
    handled: Handled,
) -> Result<()> {
    let partition = Partition::new(topic.clone(), 0);
    let mut marks: Vec<_> = letters.map(|letter| mark(letter, handled)).collect();
    let mut attempts = Attempts::begin();
    while !marks.is_empty() {
        let outcomes = every_answer(Ok::<_, Infallible>(log.append(&partition, &marks).await));
        let mut failed = None;
        let unmarked = marks.into_iter().zip(outcomes).filter_map(|(mark, outcome)| {
            failed = Some(outcome.err()?);
            Some(mark)
        });
        marks = unmarked.collect();
        if let Some(e) = failed {
            // A duplicate mark does no harm.
            attempts.again_after(e.on(&partition)).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryLog;
    use kafkaq_core::TopicSpec;

    #[tokio::test]
    async fn only_marks_of_existing_letters_are_held_in_memory() {
        let log = MemoryLog::new();
        let specs = ["dead", "marks"].map(|name| {
            let mut spec = TopicSpec::new(name);
            spec.partitions = Some(1);
            spec
        });
        log.ensure_topics(&specs).await.unwrap();
        let dead = Partition::new("dead", 0);
        for outcome in log.append(&dead, &vec![NewRecord::new(None, None, Headers::new()); 5]).await {
            outcome.unwrap();
        }
        log.delete_records(&dead, 2).unwrap();
        let marks = (0..9).map(|offset| {
            let record = Record::new(offset, 0, None, None, Headers::new());
            mark(&DeadLetter::new(0, record), Handled::Redriven)
        });
        for outcome in log.append(&Partition::new("marks", 0), &marks.collect::<Vec<_>>()).await {
            outcome.unwrap();
        }
        let log: Arc<dyn PartitionLog> = Arc::new(log);
        let scan = Scan::new(&log, &"dead".into()).await.unwrap();
        let marks = Marks::read(&log, &"marks".into(), &scan.ranges()).await.unwrap();
        let mut kept: Vec<_> = marks.0.keys().map(|place| place.offset).collect();
        kept.sort_unstable();
        assert_eq!(kept, [2, 3, 4]);
    }
}
