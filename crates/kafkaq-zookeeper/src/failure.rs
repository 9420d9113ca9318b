//! What a failure means: which kind, whether it took effect, what to do.

use kafkaq_core::{Error, ErrorKind};
use std::time::Duration;
use zookeeper_async::ZkError;

/// An operation as its errors name it.
#[derive(Clone, Copy)]
pub(crate) struct Op(&'static str);

impl Op {
    pub(crate) const SWAP: Op = Op("swap in ZooKeeper");
    pub(crate) const READ: Op = Op("read from ZooKeeper");
    pub(crate) const CHECK: Op = Op("check ZooKeeper");

    /// `sent`: a write was on its way when it failed.
    fn error(self, kind: ErrorKind, sent: bool) -> Error {
        if sent { Error::unknown(kind, self.0) } else { Error::not_applied(kind, self.0) }
    }
}

/// Why there is no session. No source: it was not there in time.
pub(crate) fn not_connected(op: Op, address: &str, why: Option<ConnectError>) -> Error {
    let unreachable = format!("Check that ZooKeeper runs at {address} and can be reached from here");
    let (kind, advice, source) = match why {
        None => (ErrorKind::Unavailable, unreachable, "no connection in time".into()),
        Some(ConnectError::ZooKeeper(e @ ZkError::AuthFailed)) => {
            (ErrorKind::Denied, "Check the user and the password of `digest`".into(), e.into())
        }
        Some(ConnectError::ZooKeeper(e)) => (ErrorKind::Unavailable, unreachable, e.into()),
        Some(ConnectError::Resolve(e)) => {
            (ErrorKind::Unavailable, format!("Check the host names in {address}"), e)
        }
        Some(ConnectError::Lost) => (ErrorKind::Unavailable, unreachable, "the connection broke".into()),
    };
    op.error(kind, false).with_source(source).with_advice(advice)
}

/// Why connecting failed.
#[derive(Clone, Debug)]
pub(crate) enum ConnectError {
    Resolve(String),
    ZooKeeper(ZkError),
    Lost,
}

/// The session broke or expired under the request.
pub(crate) fn lost(op: Op, address: &str, sent: bool) -> Error {
    op.error(ErrorKind::Unavailable, sent)
        .with_source("the session is lost")
        .with_advice(format!("The connection to ZooKeeper at {address} broke"))
}

pub(crate) fn timed_out(op: Op, address: &str, limit: Duration, sent: bool) -> Error {
    op.error(ErrorKind::Timeout, sent)
        .with_advice(format!("ZooKeeper at {address} did not answer within {limit:?}"))
}

/// After `close`.
pub(crate) fn closed(op: Op) -> Error {
    op.error(ErrorKind::Closed, false)
}

pub(crate) fn too_large(op: Op) -> Error {
    op.error(ErrorKind::TooLarge, false)
        .with_advice("ZooKeeper closes connections on requests of 1 MiB and more; keep values below that")
}

/// The node holds something that this crate has not written.
pub(crate) fn corrupt(op: Op) -> Error {
    op.error(ErrorKind::Corrupt, false)
        .with_advice("Something else, or a later version, writes under this prefix: choose another prefix")
}

/// Others changed the value in each of many rounds.
pub(crate) fn contended(op: Op) -> Error {
    op.error(ErrorKind::Throttled, false).with_advice("Too many writers change this key at the same time")
}

/// What the client library answered to a read, or, with `write`, to a write.
pub(crate) fn of(op: Op, e: ZkError, write: bool) -> Error {
    use ErrorKind::{Denied, Other, Unavailable};
    let (kind, advice) = match e {
        ZkError::NoAuth | ZkError::AuthFailed => (
            Denied,
            "The nodes under this prefix belong to another user: check the user and the password of `digest`",
        ),
        ZkError::InvalidACL => {
            (Denied, "ZooKeeper takes no digest users here: check its authProvider settings")
        }
        ZkError::ConnectionLoss | ZkError::OperationTimeout => (Unavailable, ""),
        ZkError::SessionExpired | ZkError::SessionMoved | ZkError::NotReadOnly => (Unavailable, ""),
        ZkError::Unimplemented => (
            Other,
            "ZooKeeper gave a reason that the client does not know, such as a quota: its log says more",
        ),
        _ => (Other, ""),
    };
    // The server's refusals have codes up to -100; what lies above happened on the way, and may have happened after
    // the server did its part. The client makes `Unimplemented` of every code that it does not know.
    let refused = (e as i32) <= ZkError::APIError as i32;
    let error = op.error(kind, write && !refused).with_source(e);
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
            let error = of(Op::SWAP, e, true);
            assert_eq!((error.kind(), error.effect()), (kind, effect), "{error}");
            assert_eq!(of(Op::SWAP, e, false).effect(), Effect::NotApplied);
            assert_eq!(error.retry() == Retry::Yes, kind == ErrorKind::Unavailable);
        }
    }
}
