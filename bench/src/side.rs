//! What is compared: queues as they are configured for the comparison, and the guarantees of each.

use crate::rival::Rival;

/// Jobs at once where handlers take a while.
pub(crate) const HELD_JOBS: usize = 500;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Side {
    /// In names of files and queues.
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    pub(crate) player: Player,
    /// The number of concurrent jobs. If the system counts jobs differently, `title` says so.
    pub(crate) jobs: usize,
    pub(crate) uses_kafka: bool,
    pub(crate) uses_redis: bool,
    /// Whether it can publish many tasks in one call.
    pub(crate) publishes_in_bulk: bool,
    /// Whether handlers that take a while are measured, too: not for two sides that would behave alike.
    pub(crate) is_held: bool,
    /// With more tasks it would stop, or take minutes.
    pub(crate) largest_backlog: Option<usize>,
}

impl Side {
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.player, Player::Kafkaq(_))
    }
}

/// What drives a side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Player {
    /// kafkaq, on these backends and with these settings: `BROKER,STORE[,SETTING…]`.
    Kafkaq(&'static str),
    Rival(Rival),
}

/// A system's guarantees with its default settings.
#[derive(Debug)]
pub(crate) struct Guarantees {
    pub(crate) system: &'static str,
    pub(crate) published: &'static str,
    pub(crate) executed: &'static str,
    pub(crate) after_crash: &'static str,
    pub(crate) duplicates: &'static str,
}

/// All sides, or kafkaq's and those of some rivals.
pub(crate) fn sides(rivals: &[Rival]) -> Vec<Side> {
    let kafkaq = [
        kafkaq("kafkaq-rdkafka-500", "kafkaq, rdkafka + Redis, 500 jobs", "rdkafka,redis", 500),
        kafkaq("kafkaq-rdkafka-50", "kafkaq, rdkafka + Redis, 50 jobs", "rdkafka,redis", 50),
        kafkaq("kafkaq-slow-500", "kafkaq, rdkafka + Redis, Slow, 500 jobs", "rdkafka,redis,slow", 500),
        kafkaq("kafkaq-slow-50", "kafkaq, rdkafka + Redis, Slow, 50 jobs", "rdkafka,redis,slow", 50),
        kafkaq(
            "kafkaq-slow-batches",
            "kafkaq, rdkafka + Redis, Slow, 500 jobs by `get_jobs`",
            "rdkafka,redis,slow,batch=50",
            500,
        ),
        kafkaq("kafkaq-rskafka-500", "kafkaq, rskafka + Redis, 500 jobs", "rskafka,redis", 500),
        kafkaq("kafkaq-rskafka-50", "kafkaq, rskafka + Redis, 50 jobs", "rskafka,redis", 50),
        kafkaq("kafkaq-memory-50", "kafkaq, in memory, 50 jobs", "memory,memory", 50),
    ];
    kafkaq.into_iter().chain(rivals.iter().map(|rival| rival_side(*rival))).collect()
}

fn kafkaq(key: &'static str, title: &'static str, backends: &'static str, jobs: usize) -> Side {
    let in_memory = backends.starts_with("memory");
    Side {
        key,
        title,
        player: Player::Kafkaq(backends),
        jobs,
        uses_kafka: !in_memory,
        uses_redis: !in_memory,
        publishes_in_bulk: true,
        is_held: (jobs == HELD_JOBS || in_memory) && !backends.contains("slow"),
        largest_backlog: None,
    }
}

fn rival_side(rival: Rival) -> Side {
    let uses_kafka = rival == Rival::ShareGroups;
    let (title, jobs) = match rival {
        Rival::ShareGroups => ("Kafka share group (Java), 6 consumers", 6),
        Rival::Asynq => ("asynq (Go), 50 jobs", 50),
        Rival::Apalis => ("apalis with Redis (Rust), 50 jobs", 50),
        Rival::BullMq => ("BullMQ (Node), 50 jobs", 50),
    };
    Side {
        key: rival.name(),
        title,
        player: Player::Rival(rival),
        jobs,
        uses_kafka,
        uses_redis: !uses_kafka,
        publishes_in_bulk: rival != Rival::Asynq,
        is_held: true,
        largest_backlog: match rival {
            Rival::ShareGroups => None,
            Rival::Asynq | Rival::BullMq => Some(100_000),
            // All tasks that are due are unpacked onto the stack of a script, which takes some 8,000.
            Rival::Apalis => Some(7_000),
        },
    }
}

const KAFKAQ: Guarantees = Guarantees {
    system: "kafkaq",
    published: "in Kafka's log, acks=all",
    executed: "at least once, whatever happens to the store",
    after_crash: "40 to 60 s, when the lease ends",
    duplicates: "a task id is executed once, even if it is published again within an hour",
};

const SLOW: Guarantees = Guarantees {
    system: "kafkaq, Slow",
    after_crash: "as soon as Kafka moves the partition; long jobs when the lease ends",
    duplicates: "only chosen ids are executed once; others again after a crash, if done since the last commit",
    ..KAFKAQ
};

/// Of kafkaq and these rivals.
pub(crate) fn guarantees(rivals: &[Rival]) -> Vec<Guarantees> {
    let mut all = vec![KAFKAQ, SLOW];
    all.extend(rivals.iter().map(|rival| match rival {
        Rival::ShareGroups => Guarantees {
            system: "Kafka share group",
            published: "in Kafka's log, acks=all",
            executed: "at least once, up to 5 deliveries; then the record is dropped",
            after_crash: "30 s, when the lock ends",
            duplicates: "no ids: what is published twice is executed twice",
        },
        Rival::Asynq => Guarantees {
            system: "asynq",
            published: "in Redis's memory",
            executed: "at least once, unless Redis loses its memory",
            after_crash: "80 to 106 s",
            duplicates: "an id is refused while its task exists",
        },
        Rival::Apalis => Guarantees {
            system: "apalis with Redis",
            published: "in Redis's memory",
            executed: "at least once, unless Redis loses its memory",
            after_crash: "300 s",
            duplicates: "if a task has a key, a second task with that key is refused",
        },
        Rival::BullMq => Guarantees {
            system: "BullMQ",
            published: "in Redis's memory",
            executed: "at least once, unless Redis loses its memory; fails after two crashes",
            after_crash: "60 s",
            duplicates: "an id is ignored while its job exists",
        },
    }));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_side_has_a_key_of_its_own_and_the_rivals_can_be_picked() {
        let all = sides(&Rival::ALL);
        assert_eq!(all.iter().map(|side| side.key).collect::<HashSet<_>>().len(), all.len());
        let picked = sides(&[Rival::Asynq]);
        let rivals: Vec<_> = picked.iter().filter(|s| matches!(s.player, Player::Rival(_))).collect();
        assert_eq!(rivals.len(), 1);
        assert_eq!(guarantees(&[Rival::Asynq])[2].system, "asynq");
    }
}
