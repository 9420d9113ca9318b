//! Classifies failures: their kind, their effect, and what to do.

use crate::link::Members;
use kafkaq_core::{
    Error, ErrorKind, Operation, Retry,
    connection::{self, Connect},
    out_of_descriptors,
};
use std::error::Error as _;
use tonic::{Code, ConnectError, Status};

pub(crate) const SWAP: Operation = Operation::write("swap in etcd");
pub(crate) const READ: Operation = Operation::read("read from etcd");
pub(crate) const CHECK: Operation = Operation::read("check etcd");
/// An etcd lease that nobody uses expires by itself.
pub(crate) const GRANT: Operation = Operation::read("get a lease from etcd");

/// The server's name in errors and log messages.
pub(crate) fn server(address: &str) -> String {
    format!("etcd at {address}")
}

/// The attempt to connect failed.
pub(crate) fn refused_connection(address: &str, e: &tonic::transport::Error) -> Error {
    not_reached(Members::OPERATION, address, e)
}

fn not_reached(operation: Operation, address: &str, e: &(dyn std::error::Error + 'static)) -> Error {
    let error = connection::unreachable(operation, server(address), Some(root(e).into()));
    match out_of_descriptors(e) {
        Some(advice) => error.with_advice(advice),
        None => error,
    }
}

/// A response that this crate does not understand.
pub(crate) fn unexpected_response(operation: Operation) -> Error {
    operation
        .after_sending(ErrorKind::Other)
        .with_advice("The response is not understood: is there something other than etcd at this address?")
}

/// The client's error about a request that was passed to it.
pub(crate) fn failed(operation: Operation, address: &str, e: &etcd_client::Error) -> Error {
    let etcd_client::Error::GRpcStatus(status) = e else {
        return operation.after_sending(ErrorKind::Other).on(address).with_source(e.to_string());
    };
    if status.source().is_some() {
        // Created by the client: there was no response.
        if is_connect_error(status) {
            return not_reached(operation, address, status);
        }
        let advice = match operation.name() == Members::OPERATION.name() {
            true => format!(
                "Check the address, and whether it requires TLS: something other than etcd may be at \
                 {address}"
            ),
            false => format!("The connection to etcd at {address} broke"),
        };
        return operation.after_sending(ErrorKind::Unavailable).with_source(root(status)).with_advice(advice);
    }
    let Meaning { kind, refused, advice } = meaning(status);
    let error = if refused { operation.not_applied(kind) } else { operation.after_sending(kind) };
    let error = error.on(address).with_source(status.message().to_owned());
    let error = if kind == ErrorKind::NotFound { error.with_retry(Retry::Yes) } else { error };
    if advice.is_empty() { error } else { error.with_advice(advice) }
}

/// Whether another connection, perhaps to another member, is preferable.
pub(crate) fn is_of_connection(e: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = e else { return true };
    let says = |words| status.message().contains(words);
    status.source().is_some()
        || matches!(status.code(), Code::Unavailable | Code::Unauthenticated)
        || says("revision of auth store is old")
}

fn is_connect_error(status: &Status) -> bool {
    chain(status).any(|e| e.is::<ConnectError>())
}

fn chain<'a>(
    e: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(e), |&e| e.source())
}

/// The innermost cause is the most specific: the outer ones say `transport error`.
fn root(e: &(dyn std::error::Error + 'static)) -> String {
    chain(e).last().map(ToString::to_string).unwrap_or_default()
}

struct Meaning {
    kind: ErrorKind,
    /// etcd returned this instead of applying the request. Only errors for which its source code is certain of that; a
    /// timeout or a change of leader is not.
    refused: bool,
    advice: &'static str,
}

/// etcd's errors are distinguished by their text: several share a code.
fn meaning(status: &Status) -> Meaning {
    use ErrorKind::{
        Denied, Invalid, Misconfigured, NotFound, Other, Throttled, Timeout, TooLarge, Unavailable,
        Unsupported,
    };
    let says = |words| status.message().contains(words);
    let (kind, refused, advice) = match status.code() {
        _ if says("requested lease not found") => {
            (NotFound, true, "An etcd lease has vanished twice: does somebody else revoke them?")
        }
        _ if says("request is too large") || says("received message larger than max") => {
            (TooLarge, true, "etcd accepts 1.5 MiB per request, unless --max-request-bytes says otherwise")
        }
        _ if says("too many operations in txn") => {
            (Misconfigured, true, "kafkaq needs etcd's --max-txn-ops to be at least 128, the default")
        }
        _ if says("duplicate key given") => (Invalid, true, "The keys of one call have to be distinct"),
        _ if says("too many requests") => (Throttled, true, ""),
        // The request that fills the space is applied, but gets the same response as later ones.
        _ if says("database space exceeded") => (
            Unavailable,
            false,
            "etcd is full: compact and defragment it, or raise --quota-backend-bytes, then `etcdctl alarm disarm`; \
             --auto-compaction-retention keeps it from happening again",
        ),
        _ if says("corrupt cluster") => (
            Unavailable,
            false,
            "etcd has found that its members differ, and refuses requests; its log \
                                  says more",
        ),
        _ if says("no leader") => {
            (Unavailable, true, "This member of etcd sees no leader: is there a majority?")
        }
        _ if says("for learner") => (Unavailable, true, "This member of etcd is still a learner"),
        _ if says("request timed out") => (Timeout, false, "etcd is overloaded or has no majority"),
        _ if says("permission denied") => {
            (Denied, true, "The user needs a role with readwrite on the keys of the prefix")
        }
        _ if says("user name is empty") => (Denied, true, "etcd requires a user and a password"),
        _ if says("authentication failed") || says("invalid auth token") => {
            (Denied, true, "Check the user and the password")
        }
        _ if says("authentication is not enabled") => {
            (Misconfigured, true, "A user is set, but etcd has no users: see `etcdctl auth enable`")
        }
        _ if says("revision of auth store is old") => (Unavailable, true, ""),
        Code::Unauthenticated | Code::PermissionDenied => (Denied, true, "Check the user and the password"),
        Code::Unimplemented => (Unsupported, true, "Is this etcd 3.4 or later?"),
        Code::Unavailable => (Unavailable, false, ""),
        Code::ResourceExhausted => (Throttled, false, ""),
        _ => (Other, false, ""),
    };
    Meaning { kind, refused, advice }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafkaq_core::Effect;

    fn answered(code: Code, text: &str) -> etcd_client::Error {
        etcd_client::Error::GRpcStatus(Status::new(code, text))
    }

    #[test]
    fn errors_are_classified_by_effect_and_retry() {
        use Effect::{NotApplied, Unknown};
        use Retry::{No, Yes};
        for (code, text, kind, effect, retry) in [
            (Code::InvalidArgument, "request is too large", ErrorKind::TooLarge, NotApplied, No),
            (Code::ResourceExhausted, "too many requests", ErrorKind::Throttled, NotApplied, Yes),
            (Code::ResourceExhausted, "mvcc: database space exceeded", ErrorKind::Unavailable, Unknown, Yes),
            (Code::Unavailable, "no leader", ErrorKind::Unavailable, NotApplied, Yes),
            (Code::Unavailable, "leader changed", ErrorKind::Unavailable, Unknown, Yes),
            (Code::Unavailable, "server stopped", ErrorKind::Unavailable, Unknown, Yes),
            (Code::Unavailable, "request timed out", ErrorKind::Timeout, Unknown, Yes),
            (
                Code::Unavailable,
                "request timed out, possibly due to previous leader failure",
                ErrorKind::Timeout,
                Unknown,
                Yes,
            ),
            (Code::PermissionDenied, "permission denied", ErrorKind::Denied, NotApplied, No),
            (Code::Unauthenticated, "invalid auth token", ErrorKind::Denied, NotApplied, No),
            (Code::InvalidArgument, "user name is empty", ErrorKind::Denied, NotApplied, No),
            (Code::InvalidArgument, "revision of auth store is old", ErrorKind::Unavailable, NotApplied, Yes),
            (
                Code::InvalidArgument,
                "too many operations in txn request",
                ErrorKind::Misconfigured,
                NotApplied,
                No,
            ),
            (Code::NotFound, "requested lease not found", ErrorKind::NotFound, NotApplied, Yes),
            (Code::Unknown, "whatever", ErrorKind::Other, Unknown, No),
        ] {
            let e = failed(SWAP, "h:1", &answered(code, &format!("etcdserver: {text}")));
            assert_eq!((e.kind(), e.effect(), e.retry()), (kind, effect, retry), "{text}");
            assert!(e.to_string().contains(text), "{e}");
            let e = failed(READ, "h:1", &answered(code, &format!("etcdserver: {text}")));
            assert_eq!(e.effect(), NotApplied, "{text}");
        }
    }

    #[test]
    fn partitioned_member_is_left_but_not_one_that_refuses() {
        for (code, text, leave) in [
            (Code::Unavailable, "etcdserver: no leader", true),
            (Code::Unavailable, "etcdserver: request timed out", true),
            (Code::Unauthenticated, "etcdserver: invalid auth token", true),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old", true),
            (Code::InvalidArgument, "etcdserver: request is too large", false),
            (Code::PermissionDenied, "etcdserver: permission denied", false),
            (Code::NotFound, "etcdserver: requested lease not found", false),
        ] {
            assert_eq!(is_of_connection(&answered(code, text)), leave, "{text}");
        }
    }
}
