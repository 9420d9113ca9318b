//! Marks of handled dead letters: a separate topic, since a record of a log can't be deleted.

use super::{DeadLetter, Place, scan::Scan};
use crate::{config::HEADROOM, jobs::Attempts};
use kafkaq_core::{
    Error, ErrorKind, Headers, Log, NewRecord, Partition, PartitionLog, Record, Result, TopicSpec,
};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// The suffix of the dead-letter topic's name.
pub(super) const SUFFIX: &str = ".handled";

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
    /// Reads the marks of the letters that `letters` is about to read.
    pub(super) async fn read(log: &Arc<dyn PartitionLog>, topic: &Arc<str>, letters: &Scan) -> Result<Self> {
        let first: HashMap<_, _> = letters.first_offsets().collect();
        let mut scan = Scan::new(log, topic).await?;
        let mut marks = HashMap::new();
        while let Some((_, record)) = scan.next().await? {
            if let Some((place, hash, handled)) = read(&record)
                && first.get(&place.partition).is_some_and(|first| *first <= place.offset)
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
    NewRecord::new(Some(letter.place.to_string().into()), None, headers)
}

/// Creates the topic if it is missing. It keeps its records as long as the letters are kept.
pub(super) async fn ensure(log: &dyn Log, mut spec: TopicSpec, retention: Duration) -> Result<()> {
    spec.partitions = Some(1);
    spec.retention = Some(retention);
    spec.unlimited_bytes = true;
    spec.max_record_bytes = Some(HEADROOM);
    let info = log.ensure_topics(&[spec]).await?.into_iter().next();
    if let Some(info) = info
        && info.retention.is_some_and(|kept| kept < retention)
    {
        tracing::warn!(
            target: "kafkaq",
            "topic {} forgets after {:?} which dead letters were redriven or discarded. Set its retention.ms to that of \
             the dead-letter topic",
            info.name, info.retention.unwrap_or_default()
        );
    }
    Ok(())
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
        let mut outcomes = log.append(&partition, &marks).await.into_iter();
        let mut failed = None;
        marks.retain(|_| match outcomes.next() {
            Some(Ok(_)) => false,
            Some(Err(e)) => {
                failed = Some(e);
                true
            }
            None => {
                failed = Some(Error::unknown(ErrorKind::Other, "mark dead letters"));
                true
            }
        });
        if let Some(e) = failed {
            // A duplicate mark does no harm.
            attempts.again_after(e.on(&partition)).await?;
        }
    }
    Ok(())
}
