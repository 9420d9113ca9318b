//! Classifies failures: their kind, their effect, and what to do.

use crate::link::Dialer;
use kafkaq_core::{
    Error, ErrorKind, Operation,
    connection::{self, Connect},
};
use redis::{RedisError, ServerError};

pub(crate) const SWAP: Operation = Operation::write("swap in Redis");
pub(crate) const READ: Operation = Operation::read("read from Redis");
pub(crate) const SLOTS: Operation = Operation::read("ask for the slots of the Redis Cluster");
pub(crate) const CHECK: Operation = Operation::read("check Redis");

/// No connection, so nothing was sent.
pub(crate) fn not_connected(address: &str, source: RedisError) -> Error {
    use redis::ErrorKind::{AuthenticationFailed, InvalidClientConfig, Parse};
    // The redis crate wraps the server's responses to AUTH and SELECT in errors of its own.
    let says = |words| source.detail().is_some_and(|text| text.contains(words));
    let (kind, advice) = match source.kind() {
        AuthenticationFailed => {
            (ErrorKind::Denied, format!("Check the user and the password for Redis at {address}"))
        }
        _ if says("Authentication required") => {
            (ErrorKind::Denied, format!("Redis at {address} requires a password: put it into the URL"))
        }
        InvalidClientConfig => (ErrorKind::Misconfigured, format!("Check the URL of Redis at {address}")),
        _ if says("DB index") || says("cluster mode") => {
            (ErrorKind::Misconfigured, format!("Check the database number in the URL of Redis at {address}"))
        }
        Parse => return not_redis(Dialer::OPERATION.not_applied(ErrorKind::Unavailable), address),
        _ => {
            let server = format!("Redis at {address}");
            return connection::unreachable(Dialer::OPERATION, server, Some(source.into()));
        }
    };
    Dialer::OPERATION.not_applied(kind).with_source(source).with_advice(advice)
}

/// The client's own message takes several lines.
fn not_redis(error: Error, address: &str) -> Error {
    error.with_source("the response is not in the Redis protocol").with_advice(format!(
        "Check the address, and whether it requires TLS: something other than Redis or Valkey may be at \
         {address}"
    ))
}

/// The connection broke after the request was handed to it.
pub(crate) fn broken(operation: Operation, address: &str, source: RedisError) -> Error {
    let error = operation.after_sending(ErrorKind::Unavailable);
    if source.kind() == redis::ErrorKind::Parse {
        return not_redis(error, address);
    }
    error.with_source(source).with_advice(format!("The connection to Redis at {address} broke"))
}

/// A response that this crate does not understand.
pub(crate) fn unexpected_response(operation: Operation) -> Error {
    operation.after_sending(ErrorKind::Other).with_advice(
        "The response is not understood: is there something other than Redis or Valkey at this address?",
    )
}

/// No node serves the key: slots are being moved, or the cluster is incomplete.
pub(crate) fn unassigned(operation: Operation) -> Error {
    operation
        .not_applied(ErrorKind::Unavailable)
        .with_advice("No node of the Redis Cluster serves the slot at this moment; CLUSTER SHARDS shows more")
}

/// The server refused one command, which therefore had no effect.
pub(crate) fn refused(operation: Operation, e: &ServerError) -> Error {
    let (kind, advice) = meaning(e);
    let error = operation.not_applied(kind).with_source(e.clone());
    if advice.is_empty() { error } else { error.with_advice(advice) }
}

/// The server answered a script with one error instead of one response per key. Errors that occur before a script
/// starts are known by their code; after any other it may have run partially.
pub(crate) fn script_refused(operation: Operation, e: &ServerError) -> Error {
    match meaning(e) {
        (ErrorKind::Other, _) => operation.after_sending(ErrorKind::Other).with_source(e.clone()),
        _ => refused(operation, e),
    }
}

/// A write reached a server that is only a replica, as after a failover.
pub(crate) fn is_readonly(e: &ServerError) -> bool {
    code(e) == "READONLY"
}

/// Returns whether the command has to go to another server: this one is a replica, or doesn't have the key's slot, or
/// soon won't.
pub(crate) fn is_for_another(e: &ServerError) -> bool {
    code(e) == "MOVED" || is_ask(e) || is_readonly(e)
}

/// Returns whether the server as a whole serves no keys: it is cut off from the others of its cluster, has been
/// replaced, or is still loading its data.
pub(crate) fn is_out_of_service(e: &ServerError) -> bool {
    matches!(code(e), "CLUSTERDOWN" | "MASTERDOWN" | "LOADING")
}

/// Returns whether only this command goes to the other node.
pub(crate) fn is_ask(e: &ServerError) -> bool {
    code(e) == "ASK"
}

/// The script is not in the server's cache: it did not run.
pub(crate) fn is_unknown_script(e: &ServerError) -> bool {
    code(e) == "NOSCRIPT"
}

/// How Redis before 7.0 responds to `SET` with `NX` and `GET`.
pub(crate) fn is_syntax_error(e: &ServerError) -> bool {
    code(e) == "ERR" && e.details() == Some("syntax error")
}

/// The error's code. Before 7.0, an error inside a script reads `@user_script: <line>: -CODE text`.
fn code(e: &ServerError) -> &str {
    let inside = e.details().filter(|_| e.code().starts_with('@')).and_then(|text| text.split(" -").nth(1));
    match inside {
        Some(text) => text.split(' ').next().unwrap_or(text),
        None => e.code(),
    }
}

const PERMISSIONS: &str = "The user needs +get +set +mget +del +hmget +hset +hdel +hlen +pttl +pexpire +persist +eval \
                           +evalsha on the keys of the prefix, and for a cluster also +cluster|slots and +asking";

fn meaning(e: &ServerError) -> (ErrorKind, &'static str) {
    use ErrorKind::{Corrupt, Denied, Misconfigured, Other, Unavailable, Unsupported};
    let says = |words| e.details().is_some_and(|text| text.contains(words));
    match code(e) {
        "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" => (Unavailable, ""),
        "BUSY" => (Unavailable, "A script blocks Redis; SCRIPT KILL ends it"),
        "NOREPLICAS" => (
            Unavailable,
            "Redis requires more replicas than are connected \
         (min-replicas-to-write)",
        ),
        "MISCONF" => (Unavailable, "Redis can't save to disk and refuses writes; its log says why"),
        "OOM" => (Unavailable, "Redis has reached maxmemory: raise it, or shorten done_retention"),
        "READONLY" => {
            (Unavailable, "This server is a replica: after a failover a retry finds the new primary")
        }
        "NOAUTH" => (Denied, "Redis requires a password: put it into the URL"),
        "WRONGPASS" => (Denied, "Check the user and the password"),
        "NOPERM" => (Denied, PERMISSIONS),
        "WRONGTYPE" => (Corrupt, "Something else writes under this prefix: choose another prefix"),
        "MOVED" | "ASK" | "CROSSSLOT" => {
            (Unsupported, "This is a node of a Redis Cluster: use RedisStore::cluster")
        }
        // These have no code of their own; Redis and Valkey phrase the first differently.
        _ if says("user executing the script") || says("ACL failure in script") => (Denied, PERMISSIONS),
        _ if says("cluster support disabled") => {
            (Misconfigured, "This Redis is not a node of a cluster: use RedisStore::builder")
        }
        _ if says("unknown command") => (
            Unsupported,
            "kafkaq needs plain Redis commands, EVAL and EVALSHA: see the README of kafkaq-redis",
        ),
        _ => (Other, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafkaq_core::{Effect, Retry};
    use redis::{Value, parse_redis_value};

    fn server_error(line: &str) -> ServerError {
        match parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap() {
            Value::ServerError(e) => e,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_refused_command_had_no_effect_and_says_whether_a_retry_helps() {
        for (line, kind, retry) in [
            ("LOADING Redis is loading the dataset in memory", ErrorKind::Unavailable, Retry::Yes),
            ("BUSY Redis is busy running a script.", ErrorKind::Unavailable, Retry::Yes),
            ("READONLY You can't write against a read only replica.", ErrorKind::Unavailable, Retry::Yes),
            ("MASTERDOWN Link with MASTER is down", ErrorKind::Unavailable, Retry::Yes),
            ("OOM command not allowed", ErrorKind::Unavailable, Retry::Yes),
            ("CLUSTERDOWN The cluster is down", ErrorKind::Unavailable, Retry::Yes),
            ("TRYAGAIN Multiple keys request", ErrorKind::Unavailable, Retry::Yes),
            ("NOAUTH Authentication required.", ErrorKind::Denied, Retry::No),
            ("WRONGPASS invalid username-password pair", ErrorKind::Denied, Retry::No),
            ("NOPERM this user has no permissions", ErrorKind::Denied, Retry::No),
            ("WRONGTYPE Operation against a key", ErrorKind::Corrupt, Retry::No),
            ("MOVED 3999 127.0.0.1:6381", ErrorKind::Unsupported, Retry::No),
            ("ERR unknown command 'EVALSHA'", ErrorKind::Unsupported, Retry::No),
            ("ERR whatever", ErrorKind::Other, Retry::No),
        ] {
            let e = refused(SWAP, &server_error(line));
            assert_eq!((e.kind(), e.retry(), e.effect()), (kind, retry, Effect::NotApplied), "{line}");
        }
    }

    #[test]
    fn a_script_that_may_have_stopped_halfway_is_unknown() {
        let halfway = "ERR Error running script (call to f_0): @user_script:1: out of memory";
        assert_eq!(script_refused(SWAP, &server_error(halfway)).effect(), Effect::Unknown);
        for before in ["BUSY Redis is busy", "NOPERM no permissions", "LOADING Redis is loading"] {
            assert_eq!(script_refused(SWAP, &server_error(before)).effect(), Effect::NotApplied, "{before}");
        }
    }

    #[test]
    fn a_code_inside_an_old_script_error_is_found() {
        let e = server_error("@user_script: 18: -READONLY You can't write against a read only replica.");
        assert!(is_readonly(&e));
        assert_eq!(refused(SWAP, &e).kind(), ErrorKind::Unavailable);
    }
}
