//! Classifies failed attempts: their kind, their effect, and whether a retry helps.

use kafkaq_core::{Error, ErrorKind, Operation, Partition, out_of_descriptors};
use rskafka::{
    BackoffError, ConnectionError, SaslError,
    client::error::{Error as ClientError, ProtocolError, RequestError},
};
use std::{borrow::Cow, fmt, io, sync::Arc, time::Duration};

pub(crate) const ENSURE: Operation = Operation::write("ensure topics");
pub(crate) const DESCRIBE: Operation = Operation::read("describe topics");
pub(crate) const APPEND: Operation = Operation::write("append");
pub(crate) const FETCH: Operation = Operation::read("fetch");
pub(crate) const OFFSETS: Operation = Operation::read("offsets");

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why one attempt failed. One failed request may fail many calls.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    /// Whether the request may have been executed.
    pub(crate) sent: bool,
    /// Whether another attempt may succeed.
    pub(crate) again: bool,
    /// Whether the connection worked: the server has responded, and is the right one.
    pub(crate) answered: bool,
    /// The server's code, if the server refused.
    pub(crate) code: Option<ProtocolError>,
    /// The server that was contacted.
    address: Option<Arc<str>>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    advice: Option<Cow<'static, str>>,
}

/// There was too little time to connect, and no other reason.
#[derive(Debug)]
struct NotInTime;

impl fmt::Display for NotInTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no connection within the time limit")
    }
}

impl std::error::Error for NotInTime {}

impl Failure {
    fn new(kind: ErrorKind) -> Self {
        Failure {
            kind,
            sent: false,
            again: false,
            answered: false,
            code: None,
            address: None,
            source: None,
            advice: None,
        }
    }

    /// There was no connection to send on.
    pub(crate) fn connecting(e: ClientError) -> Self {
        Failure::of(e).unsent()
    }

    /// The same failure of an operation that changes nothing.
    pub(crate) fn unsent(self) -> Self {
        Failure { sent: false, ..self }
    }

    /// The same failure of an operation that has already changed something.
    pub(crate) fn half_done(self) -> Self {
        Failure { sent: true, ..self }
    }

    /// A connection that could not be made or broke.
    pub(crate) fn io(e: io::Error) -> Self {
        let advice = out_of_descriptors(&e).map(Cow::Borrowed);
        let failure = Failure { sent: true, again: true, advice, ..Failure::new(ErrorKind::Unavailable) };
        failure.because(e)
    }

    /// No connection within its share of the time.
    pub(crate) fn not_connected() -> Self {
        Failure { again: true, ..Failure::new(ErrorKind::Unavailable) }.because(NotInTime)
    }

    /// What to report for several attempts: if the last one only ran out of time, why an earlier one failed.
    pub(crate) fn after(self, earlier: Option<Failure>) -> Self {
        let says_nothing = self.source.as_ref().is_some_and(|source| source.is::<NotInTime>());
        match earlier {
            Some(earlier) if says_nothing => Failure { sent: self.sent, again: self.again, ..earlier },
            _ => self,
        }
    }

    /// The cluster reports no leader for a partition: it is being elected.
    pub(crate) fn no_leader() -> Self {
        Failure { again: true, answered: true, ..Failure::new(ErrorKind::Unavailable) }
            .because("it has no leader at the moment")
    }

    /// The same failure of a topic whose replication is the server's own default.
    pub(crate) fn few_brokers(self) -> Self {
        let advice = "Fewer brokers are available than the server's default.replication.factor: wait for them, or set \
                      the replication factor of the queue";
        Failure { kind: ErrorKind::Unavailable, advice: Some(advice.into()), ..self }
    }

    /// Not every broker knows a topic that was just created.
    pub(crate) fn too_new() -> Self {
        Failure { again: true, answered: true, ..Failure::new(ErrorKind::Unavailable) }
            .because("the topic is new, and a broker does not know it yet")
    }

    /// Other requests used up the time.
    pub(crate) fn crowded() -> Self {
        Failure::new(ErrorKind::Timeout).because("it waited for other requests of this process")
    }

    /// The task that sent the shared request is gone, and the request with it.
    pub(crate) fn abandoned() -> Self {
        Failure { again: true, ..Failure::new(ErrorKind::Unavailable) }.because("the request was dropped")
    }

    /// The system can't start the thread that a call needs.
    pub(crate) fn no_thread(e: io::Error) -> Self {
        Failure::io(e)
            .unsent()
            .advise("Raise this process's limits of threads and of open files (ulimit -u, ulimit -n)")
    }

    /// Whether a response was larger than this process accepts.
    pub(crate) fn is_oversized(&self) -> bool {
        self.kind == ErrorKind::TooLarge && self.code.is_none()
    }

    /// The same failure of one of several servers, none of which could be reached.
    pub(crate) fn not_reached(self) -> Self {
        let source = self.source.clone().unwrap_or_else(|| Source::from("no response in time").into());
        let source = Some(source);
        Failure { kind: ErrorKind::Unavailable, sent: false, again: true, source, ..self }
    }

    /// The request was sent, but there was no response.
    pub(crate) fn silence() -> Self {
        Failure { sent: true, ..Failure::new(ErrorKind::Timeout) }
    }

    /// Whether there was no response in time.
    pub(crate) fn is_silence(&self) -> bool {
        self.kind == ErrorKind::Timeout && !self.answered
    }

    /// The handle was closed meanwhile.
    pub(crate) fn closed() -> Self {
        Failure::new(ErrorKind::Closed)
    }

    /// The cluster has no such topic or partition, or does not know of it yet.
    pub(crate) fn not_found() -> Self {
        Failure { again: true, answered: true, ..Failure::new(ErrorKind::NotFound) }
    }

    /// The topic is not the one that was read until now.
    pub(crate) fn recreated() -> Self {
        Failure::refused(
            ErrorKind::Invalid,
            "The topic was deleted and recreated: a position in the old one is meaningless in the new one, \
             whose records have to be read from the first one",
        )
    }

    /// The log has different records below that offset from those that were read.
    pub(crate) fn cut(offset: i64) -> Self {
        let advice = format!(
            "The log was truncated below offset {offset} and has grown since: a position in the truncated \
             part is meaningless in the current log"
        );
        Failure::refused(ErrorKind::Invalid, advice)
    }

    /// A response that is not what was asked for.
    pub(crate) fn unreadable(e: impl Into<Source>) -> Self {
        Failure { sent: true, answered: true, ..Failure::new(ErrorKind::Corrupt) }.because(e)
    }

    /// A response to another request.
    pub(crate) fn protocol_mismatch() -> Self {
        Failure { sent: true, again: true, ..Failure::new(ErrorKind::Corrupt) }
            .because("a response to another request")
    }

    /// A response that is larger than this process accepts.
    pub(crate) fn oversized() -> Self {
        Failure {
            sent: true,
            advice: Some(
                "The server's response is larger than max_message_bytes: raise it; or it isn't a response of \
                 Kafka's, because the server expects TLS"
                    .into(),
            ),
            ..Failure::new(ErrorKind::TooLarge)
        }
    }

    /// The user, the password or the SASL mechanism is wrong.
    pub(crate) fn denied(e: impl Into<Source>) -> Self {
        Failure { answered: true, ..Failure::new(ErrorKind::Denied) }.because(e)
    }

    /// A server's error code for a request, and its message.
    pub(crate) fn of_code(code: i16, said: impl FnOnce() -> String) -> Result<(), Self> {
        match ProtocolError::new(code) {
            None => Ok(()),
            Some(code) => {
                let said = match said() {
                    said if said.is_empty() => code.to_string(),
                    said => format!("{code}: {said}"),
                };
                Err(Failure { code: Some(code), answered: true, ..of_server(code) }.because(said))
            }
        }
    }

    /// The request can't be executed.
    pub(crate) fn refused(kind: ErrorKind, advice: impl Into<Cow<'static, str>>) -> Self {
        Failure { answered: true, advice: Some(advice.into()), ..Failure::new(kind) }
    }

    /// The client library's error for a request.
    pub(crate) fn of(e: ClientError) -> Self {
        let found = match &e {
            ClientError::ServerError { protocol_error, is_virtual, .. } => {
                let verdict = of_server(*protocol_error);
                Failure { sent: verdict.sent && !is_virtual, code: Some(*protocol_error), ..verdict }
            }
            // It wraps the failure when it gives up, which here is immediately.
            ClientError::RetryFailed(_) => return unwrapped(e),
            ClientError::Connection(e) => of_connection(e),
            ClientError::Request(e) => of_request(e),
            ClientError::Timeout => Failure { sent: true, again: true, ..Failure::new(ErrorKind::Timeout) },
            // Its metadata is older than the partition; nothing was sent.
            ClientError::InvalidResponse(why) if why.contains("Could not find metadata") => {
                Failure { again: true, ..Failure::new(ErrorKind::Unavailable) }
            }
            ClientError::InvalidResponse(_) => Failure { sent: true, ..Failure::new(ErrorKind::Other) },
            _ => Failure { sent: true, ..Failure::new(ErrorKind::Other) },
        };
        found.because(e)
    }

    fn because(self, source: impl Into<Source>) -> Self {
        let source: Source = source.into();
        Failure { source: Some(source.into()), ..self }
    }

    /// With more specific advice than the general one.
    pub(crate) fn advise(self, advice: impl Into<Cow<'static, str>>) -> Self {
        Failure { advice: Some(advice.into()), ..self }
    }

    /// The same, for a specific server.
    pub(crate) fn at(self, address: &Arc<str>) -> Self {
        Failure { address: Some(address.clone()), ..self }
    }

    /// The same failure, without another attempt: it would not help.
    pub(crate) fn for_good(self) -> Self {
        Failure { again: false, ..self }
    }

    /// Returns the reason in a few words.
    pub(crate) fn reason(&self) -> impl fmt::Display {
        let mut text = match &self.source {
            Some(source) => source.to_string(),
            None => "no response in time".into(),
        };
        if let Some(advice) = &self.advice {
            text = format!("{text}. {advice}");
        }
        text
    }

    /// The contract's error.
    pub(crate) fn error(self, operation: Operation, place: &Place<'_>) -> Error {
        let advice = self.advice.clone().or_else(|| self.general_advice(place));
        let mut error = match self.sent {
            true => operation.after_sending(self.kind),
            false => operation.not_applied(self.kind),
        };
        if let Some(address) = self.address {
            error = error.on(address);
        }
        if let Some(partition) = place.partition {
            error = error.on(partition);
        }
        if let Some(advice) = advice {
            error = error.with_advice(advice);
        }
        match self.source {
            Some(source) => error.with_source(source),
            None => error,
        }
    }

    fn general_advice(&self, place: &Place<'_>) -> Option<Cow<'static, str>> {
        let Place { bootstrap, limit, .. } = place;
        Some(match self.kind {
            ErrorKind::Unavailable => format!(
                "Check that a broker responds at {bootstrap}, that its advertised.listeners can be reached \
                 from \
                 here, and whether it requires TLS or SASL"
            )
            .into(),
            ErrorKind::Timeout => format!(
                "No response within {limit:?}: check that the broker at {bootstrap} is alive and that the \
                 topic has enough in-sync replicas"
            )
            .into(),
            ErrorKind::NotFound => {
                "Create the topic first, or let ensure_topics do it; check its name and number of \
                 partitions"
                    .into()
            }
            ErrorKind::Denied => match self.code {
                Some(ProtocolError::TopicAuthorizationFailed) => {
                    "Allow this user Read, Write and Describe on the topic".into()
                }
                Some(ProtocolError::ClusterAuthorizationFailed) => {
                    "Allow this user Create on the cluster, or create the topics beforehand".into()
                }
                _ => format!("Check the user, the password and the SASL mechanism for {bootstrap}").into(),
            },
            ErrorKind::TooLarge => {
                "The record, with its headers, must fit the topic's max.message.bytes: make the \
                                    record smaller or raise the limit"
                    .into()
            }
            ErrorKind::Closed => "The log was closed: build another one".into(),
            _ => match self.code? {
                ProtocolError::InvalidReplicationFactor => {
                    "The cluster has fewer brokers than the requested replicas: request fewer".into()
                }
                ProtocolError::InvalidRecord => "A compacted topic only accepts records with a key".into(),
                _ => return None,
            },
        })
    }
}

/// What an error is about, for its text.
pub(crate) struct Place<'a> {
    pub(crate) bootstrap: &'a str,
    pub(crate) partition: Option<&'a Partition>,
    pub(crate) limit: Duration,
}

fn unwrapped(e: ClientError) -> Failure {
    let ClientError::RetryFailed(BackoffError::DeadlineExceded { source, .. }) = e else {
        return Failure { sent: true, ..Failure::new(ErrorKind::Other) };
    };
    match source.downcast::<ClientError>() {
        Ok(inner) => Failure::of(*inner),
        Err(source) => {
            Failure { sent: true, again: true, ..Failure::new(ErrorKind::Unavailable) }.because(source)
        }
    }
}

/// Nothing was sent: the client was still connecting.
fn of_connection(e: &ConnectionError) -> Failure {
    // A connection that breaks meanwhile says nothing about the password.
    if let ConnectionError::SaslFailed(SaslError::RequestError(e)) = e {
        return of_request(e).unsent();
    }
    // If several addresses were tried, the library keeps only the text of each failure.
    let text = e.to_string();
    let denials = text.matches("Sasl handshake failed: ").count();
    if denials > text.matches("Sasl handshake failed: Request error: ").count() {
        return Failure { answered: true, ..Failure::new(ErrorKind::Denied) };
    }
    let code = [23, 24].into_iter().find(|code| text.contains(&format!("os error {code})")));
    let advice = code.and_then(|code| out_of_descriptors(&io::Error::from_raw_os_error(code)));
    Failure { again: true, advice: advice.map(Cow::Borrowed), ..Failure::new(ErrorKind::Unavailable) }
}

fn of_request(e: &RequestError) -> Failure {
    match e {
        RequestError::Poisoned(e) => of_request(e),
        // The library's type is private, and it has no other reason than this and a broken connection.
        RequestError::ReadFramedMessageError(e) if e.to_string().starts_with("Message too large") => {
            Failure::oversized()
        }
        RequestError::IO(_)
        | RequestError::ReadFramedMessageError(_)
        | RequestError::WriteMessageError(_) => {
            Failure { sent: true, again: true, ..Failure::new(ErrorKind::Unavailable) }
        }
        RequestError::NoVersionMatch { .. } => Failure::new(ErrorKind::Unsupported),
        RequestError::WriteError(_) => Failure::new(ErrorKind::Invalid),
        // The response is complete but can't be parsed; the connection is in sync.
        _ => Failure { sent: true, answered: true, ..Failure::new(ErrorKind::Corrupt) },
    }
}

fn of_server(code: ProtocolError) -> Failure {
    use ProtocolError::*;
    let certain = |kind| Failure { answered: true, ..Failure::new(kind) };
    match code {
        MessageTooLarge | RecordListTooLarge => certain(ErrorKind::TooLarge),
        UnknownTopicOrPartition | UnknownTopicId => Failure::not_found(),
        TopicAuthorizationFailed
        | ClusterAuthorizationFailed
        | SaslAuthenticationFailed
        | UnsupportedSaslMechanism => certain(ErrorKind::Denied),
        CorruptMessage
        | InvalidRecord
        | InvalidTimestamp
        | InvalidTopicException
        | InvalidPartitions
        | InvalidConfig
        | InvalidRequest
        | InvalidReplicaAssignment
        | PolicyViolation
        | OffsetOutOfRange => certain(ErrorKind::Invalid),
        // A server that knows too few of the others yet also returns this.
        InvalidReplicationFactor => Failure { again: true, ..certain(ErrorKind::Invalid) },
        InvalidRequiredAcks => certain(ErrorKind::Misconfigured),
        UnsupportedVersion | UnsupportedForMessageFormat | UnsupportedCompressionType => {
            certain(ErrorKind::Unsupported)
        }
        ThrottlingQuotaExceeded => Failure { again: true, ..certain(ErrorKind::Throttled) },
        // Refused before anything was written.
        LeaderNotAvailable | OffsetNotAvailable | FencedLeaderEpoch | UnknownLeaderEpoch
        | NotEnoughReplicas | NotController | BrokerNotAvailable | ReplicaNotAvailable => {
            Failure { again: true, ..Failure::new(ErrorKind::Unavailable) }
        }
        // A leader that steps down while it waits for the replicas returns this too, and the record may have been
        // written; likewise for the others.
        NotLeaderOrFollower | NotEnoughReplicasAfterAppend | KafkaStorageError | NetworkException => {
            Failure { sent: true, again: true, ..Failure::new(ErrorKind::Unavailable) }
        }
        RequestTimedOut => Failure { sent: true, again: true, ..Failure::new(ErrorKind::Timeout) },
        _ => Failure { sent: true, ..Failure::new(ErrorKind::Other) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafkaq_core::{Effect, Retry};
    use rskafka::client::error::RequestContext;
    use std::io;

    const PLACE: Place<'_> = Place { bootstrap: "b:9092", partition: None, limit: Duration::from_secs(1) };

    fn server(protocol_error: ProtocolError, is_virtual: bool) -> ClientError {
        ClientError::ServerError {
            protocol_error,
            error_message: None,
            request: RequestContext::Topic("t".into()),
            response: None,
            is_virtual,
        }
    }

    fn broken() -> ClientError {
        ClientError::Request(RequestError::IO(io::ErrorKind::ConnectionReset.into()))
    }

    fn outcome(e: ClientError) -> (ErrorKind, Effect, Retry) {
        let e = Failure::of(e).error(APPEND, &PLACE);
        (e.kind(), e.effect(), e.retry())
    }

    #[test]
    fn attempt_without_enough_time_keeps_the_reason_of_an_earlier_one() {
        let told = |failure: Failure| failure.error(APPEND, &PLACE).to_string();
        let refused = || Failure::io(io::ErrorKind::ConnectionRefused.into());
        assert!(told(Failure::not_connected()).contains("no connection within the time limit"));
        assert!(told(Failure::not_connected().after(Some(refused()))).contains("refused"));
        assert!(told(Failure::not_connected().after(None)).contains("no connection within the time limit"));
        let other = Failure::io(io::ErrorKind::ConnectionReset.into());
        assert!(told(other.after(Some(refused()))).contains("reset"));
    }

    #[test]
    fn only_what_certainly_was_not_written_is_not_applied() {
        use ProtocolError::*;
        for (code, kind, effect, retry) in [
            (MessageTooLarge, ErrorKind::TooLarge, Effect::NotApplied, Retry::No),
            (UnknownTopicOrPartition, ErrorKind::NotFound, Effect::NotApplied, Retry::No),
            (TopicAuthorizationFailed, ErrorKind::Denied, Effect::NotApplied, Retry::No),
            (InvalidRecord, ErrorKind::Invalid, Effect::NotApplied, Retry::No),
            (NotEnoughReplicas, ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes),
            (NotLeaderOrFollower, ErrorKind::Unavailable, Effect::Unknown, Retry::Yes),
            (NotEnoughReplicasAfterAppend, ErrorKind::Unavailable, Effect::Unknown, Retry::Yes),
            (RequestTimedOut, ErrorKind::Timeout, Effect::Unknown, Retry::Yes),
            (UnknownServerError, ErrorKind::Other, Effect::Unknown, Retry::No),
        ] {
            assert_eq!(outcome(server(code, false)), (kind, effect, retry), "{code:?}");
        }
        assert_eq!(outcome(broken()), (ErrorKind::Unavailable, Effect::Unknown, Retry::Yes));
    }

    #[test]
    fn a_leader_that_only_the_client_doubts_was_sent_nothing() {
        let of = outcome(server(ProtocolError::NotLeaderOrFollower, true));
        assert_eq!(of, (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes));
    }

    #[test]
    fn failure_inside_the_librarys_retry_error_is_unwrapped() {
        let wrapped = ClientError::RetryFailed(BackoffError::DeadlineExceded {
            deadline: Duration::ZERO,
            source: Box::new(server(ProtocolError::RequestTimedOut, false)),
        });
        assert_eq!(outcome(wrapped), (ErrorKind::Timeout, Effect::Unknown, Retry::Yes));
    }

    #[test]
    fn connection_that_breaks_during_authentication_is_not_a_wrong_password() {
        let sasl = |e| ConnectionError::SaslFailed(e);
        // As the library puts it if several addresses were tried.
        let in_words = |e: ConnectionError| {
            let source = Box::new(e);
            ConnectionError::RetryFailed(BackoffError::DeadlineExceded { deadline: Duration::ZERO, source })
        };
        let cut = || {
            let eof = io::Error::from(io::ErrorKind::UnexpectedEof);
            SaslError::RequestError(RequestError::Poisoned(Arc::new(RequestError::IO(eof))))
        };
        let refused = || SaslError::UnsupportedSaslMechanism;
        for (e, kind, retry) in [
            (sasl(cut()), ErrorKind::Unavailable, Retry::Yes),
            (in_words(sasl(cut())), ErrorKind::Unavailable, Retry::Yes),
            (sasl(refused()), ErrorKind::Denied, Retry::No),
            (in_words(sasl(refused())), ErrorKind::Denied, Retry::No),
        ] {
            let text = e.to_string();
            let of = outcome(ClientError::Connection(e));
            assert_eq!(of, (kind, Effect::NotApplied, retry), "{text}");
        }
    }

    #[test]
    fn a_failed_read_had_no_effect_and_nothing_was_sent_without_a_connection() {
        assert_eq!(Failure::of(broken()).error(FETCH, &PLACE).effect(), Effect::NotApplied);
        assert_eq!(Failure::connecting(broken()).error(APPEND, &PLACE).effect(), Effect::NotApplied);
    }
}
