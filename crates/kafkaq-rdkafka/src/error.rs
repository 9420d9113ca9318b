//! librdkafka's error codes in the contract's words.

use crate::{log::Trouble, settings::Settings};
use kafkaq_core::{Error, ErrorKind};
use rdkafka::{error::KafkaError, types::RDKafkaErrorCode as Code};

/// What the code means for the caller, whatever the operation.
pub(crate) fn kind(code: Code) -> ErrorKind {
    use Code::*;
    match code {
        BrokerTransportFailure
        | Resolve
        | AllBrokersDown
        | LeaderNotAvailable
        | NotLeaderForPartition
        | BrokerNotAvailable
        | ReplicaNotAvailable
        | NetworkException
        | CoordinatorLoadInProgress
        | CoordinatorNotAvailable
        | NotCoordinator
        | NotEnoughReplicas
        | NotEnoughReplicasAfterAppend
        | KafkaStorageError
        | NotController
        | WaitingForCoordinator
        | RebalanceInProgress
        | UnstableOffsetCommit
        | OffsetNotAvailable
        | OutOfOrderSequenceNumber
        | UnknownProducerId
        | InvalidProducerEpoch => ErrorKind::Unavailable,
        MessageTimedOut | OperationTimedOut | RequestTimedOut | TimedOutQueue => ErrorKind::Timeout,
        QueueFull | ThrottlingQuotaExceeded => ErrorKind::Throttled,
        UnknownTopic | UnknownPartition | UnknownTopicOrPartition | UnknownTopicId => ErrorKind::NotFound,
        Authentication
        | SSL
        | TopicAuthorizationFailed
        | GroupAuthorizationFailed
        | ClusterAuthorizationFailed
        | TransactionalIdAuthorizationFailed
        | SaslAuthenticationFailed
        | UnsupportedSASLMechanism
        | IllegalSASLState => ErrorKind::Denied,
        MessageSizeTooLarge | MessageBatchTooLarge | InvalidMessageSize => ErrorKind::TooLarge,
        InvalidTopic
        | InvalidArgument
        | InvalidPartitions
        | InvalidReplicationFactor
        | InvalidReplicaAssignment
        | InvalidConfig
        | InvalidTimestamp
        | InvalidRecord
        | InvalidRequest
        | InvalidGroupId
        | PolicyViolation => ErrorKind::Invalid,
        IllegalGeneration | UnknownMemberId | FencedMemberEpoch | StaleMemberEpoch | FencedInstanceId
        | AssignmentLost => ErrorKind::NotOwner,
        UnsupportedFeature
        | NotImplemented
        | UnsupportedVersion
        | UnsupportedCompressionType
        | UnsupportedForMessageFormat
        | UnsupportedAssignor => ErrorKind::Unsupported,
        PurgeQueue | PurgeInflight => ErrorKind::Closed,
        BadMessage | InvalidMessage | BadCompression => ErrorKind::Corrupt,
        InvalidRequiredAcks | InconsistentGroupProtocol | InvalidSessionTimeout => ErrorKind::Misconfigured,
        _ => ErrorKind::Other,
    }
}

/// What to do about it, where that does not depend on the operation.
pub(crate) fn advice(code: Code, bootstrap: &str) -> Option<String> {
    Some(match kind(code) {
        ErrorKind::Unavailable | ErrorKind::Timeout => format!(
            "Check that a broker answers at {bootstrap}, and that `security.protocol` is what it speaks"
        ),
        ErrorKind::NotFound => {
            "Make the topic first, or let ensure_topics do it; check its name and number of partitions".into()
        }
        ErrorKind::Denied => match code {
            Code::TopicAuthorizationFailed => "Allow this user Read, Write and Describe on the topic".into(),
            Code::GroupAuthorizationFailed => "Allow this user Read on the consumer group".into(),
            Code::ClusterAuthorizationFailed => {
                "Allow this user IdempotentWrite on the cluster, and Create to make topics".into()
            }
            _ => "Check `security.protocol`, `sasl.mechanism`, the user and the password".into(),
        },
        ErrorKind::TooLarge => {
            "The record, with its headers, must fit the topic's `max.message.bytes` and the client's \
             `message.max.bytes`: make the record smaller or raise them"
                .into()
        }
        ErrorKind::Misconfigured if code == Code::InconsistentGroupProtocol => {
            "The members of a group must share an assignor: give them all the same \
             `partition.assignment.strategy`"
                .into()
        }
        _ => match code {
            Code::InvalidReplicationFactor => {
                "The cluster has fewer brokers than replicas asked for: ask for fewer".into()
            }
            Code::InvalidRecord => "A compacted topic takes only records with a key".into(),
            Code::InvalidTimestamp => {
                "The record's time is further from now than the topic's `message.timestamp.before.max.ms` \
                 and `message.timestamp.after.max.ms` allow"
                    .into()
            }
            _ => return None,
        },
    })
}

pub(crate) fn code_of(error: &KafkaError) -> Code {
    match error {
        KafkaError::AdminOp(code) => *code,
        other => other.rdkafka_error_code().unwrap_or(Code::Fail),
    }
}

/// The server, or the client, has rejected it: it did not happen.
pub(crate) fn rejected(code: Code, op: &'static str, bootstrap: &str) -> Error {
    dress(Error::not_applied(kind(code), op), code, bootstrap)
}

/// It may have happened.
pub(crate) fn uncertain(code: Code, op: &'static str, bootstrap: &str) -> Error {
    dress(Error::unknown(kind(code), op), code, bootstrap)
}

/// Nothing came back to a question, which changes nothing.
pub(crate) fn no_answer(op: &'static str, settings: &Settings, trouble: &Trouble) -> Error {
    let (limit, bootstrap) = (settings.request_timeout(), settings.bootstrap());
    let (kind, reason) = match trouble.within(limit) {
        Some(reason) => (ErrorKind::Unavailable, Some(reason)),
        None => (ErrorKind::Timeout, None),
    };
    let e = Error::not_applied(kind, op)
        .with_advice(format!("No answer within {limit:?}: check that a broker answers at {bootstrap}"));
    match reason {
        Some(reason) => e.with_source(reason),
        None => e,
    }
}

fn dress(error: Error, code: Code, bootstrap: &str) -> Error {
    let error = error.with_source(code);
    match advice(code, bootstrap) {
        Some(advice) => error.with_advice(advice),
        None => error,
    }
}

pub(crate) fn closed(op: &'static str) -> Error {
    Error::not_applied(ErrorKind::Closed, op)
}
