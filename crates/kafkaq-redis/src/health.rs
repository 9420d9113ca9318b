//! Checks the server for what an operator must know.

use crate::{cluster::Cluster, failure, request};
use futures_util::future::join_all;
use kafkaq_core::{
    Key, Result, Retry,
    connection::{Call, older_than},
};
use redis::{Pipeline, Value};
use std::hash::{BuildHasher, RandomState};

const OLDEST_TESTED: (u32, u32) = (6, 2);

/// Whether a server is expected to be a cluster node.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Place {
    Alone,
    InCluster,
}

/// Checks all nodes. A node that is down is a warning, unless all are.
pub(crate) async fn of_cluster(cluster: &Cluster, call: Call) -> Result<Vec<String>> {
    let nodes = cluster.nodes();
    let questions = questions();
    let answers = join_all(nodes.iter().map(|node| node.send(call, &questions))).await;
    let mut found = of_nodes(nodes.iter().map(|node| node.address()).zip(answers))?;
    let vacant = cluster.vacant();
    if vacant > 0 {
        found.push(format!("{vacant} slots of the Redis Cluster have no node: calls for their leases fail"));
    }
    Ok(found)
}

/// Evaluates the responses of the nodes with these addresses. A node that is still loading its data counts as down.
fn of_nodes<'a>(nodes: impl Iterator<Item = (&'a str, Result<Vec<Value>>)>) -> Result<Vec<String>> {
    let (mut found, mut unheard, mut is_heard) = (Vec::new(), Vec::new(), false);
    for (address, answers) in nodes {
        let at = |warning| format!("{address}: {warning}");
        let answered = answers.is_ok();
        match answers.and_then(|answers| warnings(&answers, Place::InCluster)) {
            Ok(warnings) => {
                is_heard = true;
                found.extend(warnings.into_iter().map(at));
            }
            Err(e) if answered && e.retry() == Retry::No => return Err(e),
            Err(e) => unheard.push((at(e.to_string()), e)),
        }
    }
    if !is_heard && let Some((_, e)) = unheard.pop() {
        return Err(e);
    }
    found.extend(unheard.into_iter().map(|(warning, _)| warning));
    Ok(found)
}

/// Unique keys: one of a value in a hash, and one of a value with a key of its own.
pub(crate) fn probe_keys() -> Result<[Key; 2]> {
    let random = RandomState::new().hash_one("probe");
    let id = format!("{:08x}-0000-706b-8000-{:012x}", random >> 32, random & 0xffff_ffff);
    Ok([Key::of(&["t", "kafkaq-check", "probe", &id])?, Key::of(&["kafkaq-check", &id])?])
}

/// Asked in this order by [`questions`], read in this order by [`warnings`].
pub(crate) fn questions() -> Pipeline {
    let mut commands = Pipeline::new();
    commands.cmd("PING");
    commands.add_command(request::try_script());
    commands.cmd("INFO");
    commands.cmd("CONFIG").arg("GET").arg("save");
    commands
}

/// # Errors
/// If the server refuses the credentials or can't run scripts.
pub(crate) fn warnings(answers: &[Value], place: Place) -> Result<Vec<String>> {
    let [ping, script, info, save] = answers else {
        return Err(failure::unexpected_response(failure::CHECK));
    };
    for answer in [ping, script] {
        match answer {
            Value::ServerError(e) => return Err(failure::refused(failure::CHECK, e)),
            Value::SimpleString(_) | Value::Array(_) => {}
            _ => return Err(failure::unexpected_response(failure::CHECK)),
        }
    }
    let Value::BulkString(info) = info else {
        return Ok(vec![
            "The user may not run INFO, so neither eviction nor persistence could be checked".into(),
        ]);
    };
    let info = Info(&String::from_utf8_lossy(info));
    let checks = [info.eviction(), info.persistence(save), info.role(), info.cluster(place), info.version()];
    Ok(checks.into_iter().flatten().collect())
}

/// The text of `INFO`: lines of `name:value`.
struct Info<'a>(&'a str);

impl Info<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    fn is(&self, name: &str, value: &str) -> bool {
        self.get(name) == Some(value)
    }

    fn eviction(&self) -> Option<String> {
        let policy = self.get("maxmemory_policy")?;
        let limited = !self.is("maxmemory", "0");
        (limited && policy != "noeviction").then(|| {
            format!(
                "maxmemory-policy is {policy}: when memory is short Redis may evict leases, and a task whose \
                 lease is gone can be executed a second time; set it to noeviction"
            )
        })
    }

    fn persistence(&self, save: &Value) -> Option<String> {
        if !self.is("aof_enabled", "0") {
            return None;
        }
        match saves_snapshots(save) {
            Some(true) => None,
            Some(false) => Some(
                "Neither AOF nor RDB is enabled: Redis loses at a restart which tasks are done, and those \
                 that the log hands out again are executed a second time; set appendonly to yes"
                    .into(),
            ),
            None => Some(
                "AOF is disabled, and the user may not run CONFIG, so it could not be checked whether Redis \
                 saves snapshots; without them a restart causes second executions"
                    .into(),
            ),
        }
    }

    fn role(&self) -> Option<String> {
        (self.is("role", "slave") || self.is("role", "replica"))
            .then(|| "This server is a replica and refuses writes: give the address of the primary".into())
    }

    fn cluster(&self, place: Place) -> Option<String> {
        (place == Place::Alone && self.is("cluster_enabled", "1"))
            .then(|| "This is a node of a Redis Cluster: use RedisStore::cluster".into())
    }

    fn version(&self) -> Option<String> {
        older_than("Redis", self.get("redis_version")?, OLDEST_TESTED)
    }
}

/// `None` if the server doesn't report it.
fn saves_snapshots(answer: &Value) -> Option<bool> {
    match answer {
        Value::Array(pair) => match pair.as_slice() {
            [_, Value::BulkString(rules)] => Some(!rules.is_empty()),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafkaq_core::{ErrorKind, Operation};
    use std::time::Duration;

    const NONE: [&str; 0] = [];

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn check(info: &str, save: Value) -> Vec<String> {
        let answers = [Value::SimpleString("PONG".into()), Value::Array(vec![]), bulk(info), save];
        warnings(&answers, Place::Alone).unwrap()
    }

    fn saves(rules: &str) -> Value {
        Value::Array(vec![bulk("save"), bulk(rules)])
    }

    const SOUND: &str = "redis_version:7.2.4\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\nrole:master\r\n\
                         aof_enabled:0\r\ncluster_enabled:0\r\n";

    #[test]
    fn healthy_server_causes_no_warning() {
        assert_eq!(check(SOUND, saves("3600 1")), NONE);
        assert_eq!(check(&SOUND.replace("aof_enabled:0", "aof_enabled:1"), Value::Nil), NONE);
    }

    #[test]
    fn eviction_counts_only_with_a_memory_limit() {
        let lru = SOUND.replace("noeviction", "allkeys-lru");
        assert_eq!(check(&lru, saves("3600 1")).len(), 0);
        let limited = lru.replace("maxmemory:0", "maxmemory:1000000");
        assert!(check(&limited, saves("3600 1"))[0].contains("allkeys-lru"));
    }

    #[test]
    fn each_problem_has_its_warning() {
        for (from, to, word) in [
            ("role:master", "role:slave", "replica"),
            ("cluster_enabled:0", "cluster_enabled:1", "Cluster"),
            ("7.2.4", "6.0.16", "6.0.16"),
            ("7.2.4", "5.0", "older than 6.2"),
        ] {
            let found = check(&SOUND.replace(from, to), saves("3600 1"));
            assert!(found.len() == 1 && found[0].contains(word), "{found:?}");
        }
        assert!(check(SOUND, saves(""))[0].contains("appendonly"));
        assert!(check(SOUND, Value::Nil)[0].contains("CONFIG"));
    }

    #[test]
    fn a_node_that_is_down_or_loading_is_a_warning_unless_all_are() {
        let sound = || {
            let info = SOUND.replace("cluster_enabled:0", "cluster_enabled:1");
            Ok(vec![Value::SimpleString("PONG".into()), Value::Array(vec![]), bulk(&info), saves("3600 1")])
        };
        let refused = |with: &str| {
            let answer = redis::parse_redis_value(format!("-{with}\r\n").as_bytes()).unwrap();
            Ok(vec![answer; 4])
        };
        let down = || Err(Call::new(Operation::read("check"), Duration::from_secs(1)).timed_out("a"));
        for ill in
            [refused("LOADING Redis is loading the dataset in memory"), refused("BUSY Redis is busy"), down()]
        {
            let found = of_nodes([("a", ill.clone()), ("b", sound())].into_iter()).unwrap();
            assert!(found.len() == 1 && found[0].starts_with("a: "), "{found:?}");
            assert!(of_nodes([("a", ill)].into_iter()).is_err(), "no node responds");
        }
        let denied = refused("NOPERM this user has no permissions");
        let e = of_nodes([("a", denied), ("b", sound())].into_iter()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Denied, "{e}");
    }
}
