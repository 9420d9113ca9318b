//! Classifies failures: their kind, their effect, and what to do.

use kafkaq_core::{
    Error, ErrorKind, Operation,
    connection::{self, Call},
};
use zookeeper_async::ZkError;

pub(crate) const SWAP: Operation = Operation::write("swap in ZooKeeper");
pub(crate) const READ: Operation = Operation::read("read from ZooKeeper");
pub(crate) const CHECK: Operation = Operation::read("check ZooKeeper");

/// The server's name in errors and log messages.
pub(crate) fn server(address: &str) -> String {
    format!("ZooKeeper at {address}")
}

/// `sent`: a write was in flight when it failed.
fn error(operation: Operation, kind: ErrorKind, sent: bool) -> Error {
    if sent { operation.after_sending(kind) } else { operation.not_applied(kind) }
}

/// Why there is no session.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// No server's name could be resolved.
    Resolve(String),
    ZooKeeper(ZkError),
    /// A problem of this machine, not of a server.
    Io(std::io::Error),
    Lost,
    Late,
}

pub(crate) fn not_connected(operation: Operation, address: &str, why: ConnectError) -> Error {
    let unreachable = |cause| connection::unreachable(operation, server(address), cause);
    match why {
        ConnectError::ZooKeeper(e @ ZkError::AuthFailed) => operation
            .not_applied(ErrorKind::Denied)
            .with_source(e)
            .with_advice("Check the user and the password of `digest`"),
        ConnectError::Resolve(why) => {
            unreachable(Some(why.into())).with_advice(format!("Check the host names in {address}"))
        }
        ConnectError::ZooKeeper(e) => unreachable(Some(e.into())),
        ConnectError::Io(e) => unreachable(Some(e.into())),
        ConnectError::Lost => unreachable(Some("the connection broke".into())),
        ConnectError::Late => unreachable(None),
    }
}

/// The session broke or expired during the request.
pub(crate) fn lost(operation: Operation, address: &str, sent: bool) -> Error {
    error(operation, ErrorKind::Unavailable, sent)
        .with_source("the session is lost")
        .with_advice(format!("The connection to ZooKeeper at {address} broke"))
}

pub(crate) fn timed_out(call: Call, address: &str, sent: bool) -> Error {
    let call = if sent { call } else { call.part(Operation::read(call.operation.name())) };
    call.timed_out(server(address))
}

pub(crate) fn too_large() -> Error {
    SWAP.not_applied(ErrorKind::TooLarge)
        .with_advice("ZooKeeper closes connections on requests of 1 MiB and more; keep values below that")
}

/// The node contains something that this crate has not written.
pub(crate) fn corrupt(operation: Operation) -> Error {
    operation
        .not_applied(ErrorKind::Corrupt)
        .with_advice("Something else, or a later version, writes under this prefix: choose another prefix")
}

/// The error if others changed the value in every round.
pub(crate) fn contended() -> Error {
    SWAP.not_applied(ErrorKind::Throttled).with_advice("Too many writers change this key at the same time")
}

/// The client library's error for a read or, with `write`, for a write.
pub(crate) fn of(operation: Operation, e: ZkError, write: bool) -> Error {
    use ErrorKind::{Denied, Other, Unavailable};
    let (kind, advice) = match e {
        ZkError::NoAuth | ZkError::AuthFailed => (
            Denied,
            "The nodes under this prefix belong to another user: check the user and the password of `digest`",
        ),
        ZkError::InvalidACL => {
            (Denied, "ZooKeeper accepts no digest users here: check its authProvider settings")
        }
        ZkError::ConnectionLoss | ZkError::OperationTimeout => (Unavailable, ""),
        ZkError::SessionExpired | ZkError::SessionMoved | ZkError::NotReadOnly => (Unavailable, ""),
        ZkError::Unimplemented => (
            Other,
            "ZooKeeper reported an error that the client does not know, such as a quota: its log says more",
        ),
        _ => (Other, ""),
    };
    // The server's refusals have codes up to -100; higher ones happened in transit, perhaps after the server executed
    // the request. The client maps every unknown code to `Unimplemented`.
    let refused = (e as i32) <= ZkError::APIError as i32;
    let error = error(operation, kind, write && !refused).with_source(e);
    if advice.is_empty() { error } else { error.with_advice(advice) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafkaq_core::{Effect, Retry};

    #[test]
    fn a_refusal_has_no_effect_and_a_loss_may_have() {
        for (e, kind, effect) in [
            (ZkError::NoAuth, ErrorKind::Denied, Effect::NotApplied),
            (ZkError::SessionExpired, ErrorKind::Unavailable, Effect::NotApplied),
            (ZkError::ConnectionLoss, ErrorKind::Unavailable, Effect::Unknown),
            (ZkError::OperationTimeout, ErrorKind::Unavailable, Effect::Unknown),
            (ZkError::Unimplemented, ErrorKind::Other, Effect::Unknown),
        ] {
            let error = of(SWAP, e, true);
            assert_eq!((error.kind(), error.effect()), (kind, effect), "{error}");
            assert_eq!(of(SWAP, e, false).effect(), Effect::NotApplied);
            assert_eq!(error.retry() == Retry::Yes, kind == ErrorKind::Unavailable);
        }
    }
}
