//! Maps librdkafka's error codes to the contract.

use crate::settings::Settings;
use kafkaq_core::{Error, ErrorKind, Retry};
use rdkafka::{error::KafkaError, types::RDKafkaErrorCode as Code};

const CREDENTIALS: &str = "Check `security.protocol`, `sasl.mechanism`, the user and the password";

const DESCRIPTORS: &str = "This process, or the system, has no file descriptors left: raise `ulimit -n`, or let queues \
                           share one RdKafka";

/// The kind of a code, whatever the operation.
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
        MessageSizeTooLarge
        | MessageBatchTooLarge
        | InvalidMessageSize
        | OffsetMetadataTooLarge
        | InvalidCommitOffsetSize => ErrorKind::TooLarge,
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

/// What to do about it, if that doesn't depend on the operation.
pub(crate) fn advice(code: Code, bootstrap: &str) -> Option<String> {
    Some(match kind(code) {
        ErrorKind::Unavailable | ErrorKind::Timeout => {
            format!("Check that a broker responds at {bootstrap}, and that `security.protocol` matches it")
        }
        ErrorKind::NotFound => {
            "Create the topic first, or let ensure_topics do it; check its name and number of \
             partitions"
                .into()
        }
        ErrorKind::Denied => match code {
            Code::TopicAuthorizationFailed => "Allow this user Read, Write and Describe on the topic".into(),
            Code::GroupAuthorizationFailed => "Allow this user Read on the consumer group".into(),
            Code::ClusterAuthorizationFailed => {
                "Allow this user IdempotentWrite on the cluster, and Create to create topics".into()
            }
            _ => CREDENTIALS.into(),
        },
        ErrorKind::TooLarge if is_of_offsets(code) => {
            "A commit carries up to 200 bytes of metadata per partition: raise `offset.metadata.max.bytes` on the \
             servers, and `max.message.bytes` of the topic `__consumer_offsets`"
                .into()
        }
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
                "The cluster has fewer brokers than the requested replicas: request fewer".into()
            }
            Code::InvalidRecord => "A compacted topic only accepts records with a key".into(),
            Code::InvalidTimestamp => {
                "The record's time is further from now than the topic's `message.timestamp.before.max.ms` \
                 and `message.timestamp.after.max.ms` allow"
                    .into()
            }
            _ => return None,
        },
    })
}

/// Returns whether a commit with its metadata is too large for the servers' settings.
pub(crate) fn is_of_offsets(code: Code) -> bool {
    matches!(code, Code::OffsetMetadataTooLarge | Code::InvalidCommitOffsetSize)
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

/// The error of a partition that the consumer can't read further, or none if it recovers by itself. `reason` is from
/// its error event.
pub(crate) fn unreadable(code: Code, reason: &str, op: &'static str, bootstrap: &str) -> Option<Error> {
    let error = match kind(code) {
        ErrorKind::NotFound
        | ErrorKind::Denied
        | ErrorKind::Misconfigured
        | ErrorKind::TooLarge
        | ErrorKind::Corrupt
        | ErrorKind::Unsupported => rejected(code, op, bootstrap),
        _ => return None,
    };
    let error = if reason.is_empty() { error } else { error.with_source(reason) };
    Some(match codec(reason).filter(|_| code == Code::NotImplemented) {
        Some(codec @ ("gzip" | "zstd")) => error.with_advice(format!(
            "The records there are compressed with {codec}, which was left out of this program: build it \
             with the feature `{codec}` of the crate kafkaq-rdkafka, and reading continues from there"
        )),
        _ if matches!(kind(code), ErrorKind::Corrupt | ErrorKind::Unsupported) => error.with_advice(
            "Reading stops there: delete the records up to there, or continue with a client that can \
             decode them",
        ),
        _ => error,
    })
}

/// librdkafka knows a codec by its number in Kafka's protocol: "Decompression (codec 0x4) of message at 17 of 100
/// bytes failed".
fn codec(reason: &str) -> Option<&'static str> {
    let (_, number) = reason.split_once("(codec 0x")?;
    match number.split(')').next()? {
        "1" => Some("gzip"),
        "2" => Some("snappy"),
        "3" => Some("lz4"),
        "4" => Some("zstd"),
        _ => None,
    }
}

/// The error of a query, which changes nothing, that got no response.
pub(crate) fn no_answer(op: &'static str, settings: &Settings) -> Error {
    overdue(settings, "No response", |kind| Error::not_applied(kind, op))
}

/// There was no response in time: gives the reason, if the connections reported one.
pub(crate) fn overdue(settings: &Settings, what: &str, error: impl Fn(ErrorKind) -> Error) -> Error {
    let (limit, bootstrap) = (settings.request_timeout(), settings.bootstrap());
    let check = format!("{what} within {limit:?}: check that a broker responds at {bootstrap}");
    match settings.connection_errors().within(limit) {
        Some((kind, reason)) => {
            let advice = match kind {
                _ if reason.contains("Too many open files") => DESCRIPTORS.into(),
                ErrorKind::Denied => CREDENTIALS.into(),
                _ => format!("{check}, and that `security.protocol` matches it"),
            };
            // It may have been fixed meanwhile, which the next call finds out.
            error(kind).with_source(reason).with_advice(advice).with_retry(Retry::Yes)
        }
        None => error(ErrorKind::Timeout).with_advice(check),
    }
}

pub(crate) fn dress(error: Error, code: Code, bootstrap: &str) -> Error {
    let error = error.with_source(code);
    match advice(code, bootstrap) {
        Some(advice) => error.with_advice(advice),
        None => error,
    }
}

pub(crate) fn closed(op: &'static str) -> Error {
    Error::not_applied(ErrorKind::Closed, op)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(codec: u8) -> String {
        format!(
            "Decompression (codec 0x{codec:x}) of message at 17 of 100 bytes failed: Local: Not implemented"
        )
    }

    #[test]
    fn missing_codec_is_named_with_its_feature() {
        for (number, name) in [(1, "gzip"), (4, "zstd")] {
            let e = unreadable(Code::NotImplemented, &reason(number), "read", "k:9092").unwrap();
            assert_eq!((e.kind(), e.effect()), (ErrorKind::Unsupported, kafkaq_core::Effect::NotApplied));
            let advice = e.advice().unwrap();
            assert!(advice.contains(&format!("feature `{name}`")), "{advice}");
            assert!(e.to_string().contains("message at 17"), "{e}");
        }
        let e = unreadable(Code::NotImplemented, &reason(7), "read", "k:9092").unwrap();
        assert!(!e.to_string().contains("feature") && e.advice().is_some(), "{e}");
    }

    #[test]
    fn permanent_partition_errors_are_reported_and_transient_ones_are_not() {
        for code in
            [Code::BadCompression, Code::BadMessage, Code::TopicAuthorizationFailed, Code::UnknownTopic]
        {
            assert!(unreadable(code, "", "read", "k:9092").is_some_and(|e| e.advice().is_some()), "{code:?}");
        }
        for code in [Code::BrokerTransportFailure, Code::NotLeaderForPartition, Code::RequestTimedOut] {
            assert!(unreadable(code, "", "read", "k:9092").is_none(), "{code:?}");
        }
    }
}
