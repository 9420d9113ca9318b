use super::*;
use crate::{RdKafka, settings};
use futures_util::StreamExt;
use kafkaq_core::{Assignment, Commit, Cursor, Effect, Headers, Log, NewRecord, Record};
use rdkafka::{
    Offset, TopicPartitionList,
    error::KafkaResult,
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr as Fault},
};
use std::sync::{Weak, atomic::AtomicBool};

#[test]
fn only_errors_that_an_operator_has_to_fix_end_the_stream() {
    use Code::*;
    let ends = [
        GroupAuthorizationFailed,
        TopicAuthorizationFailed,
        SaslAuthenticationFailed,
        InvalidSessionTimeout,
        InconsistentGroupProtocol,
        UnsupportedAssignor,
        UnsupportedVersion,
        InvalidGroupId,
    ];
    // GroupMaxSizeReached and UnreleasedInstanceId are among the codes without a specific kind.
    let goes_on = [
        FencedInstanceId,
        UnreleasedInstanceId,
        GroupMaxSizeReached,
        InvalidRequest,
        UnknownMemberId,
        FencedMemberEpoch,
        BrokerTransportFailure,
        Fail,
    ];
    assert!(ends.into_iter().all(needs_operator));
    assert!(!goes_on.into_iter().any(needs_operator));
}

#[tokio::test]
async fn invalid_join_request_is_refused() {
    let kafka = Arc::new(RdKafka::builder("127.0.0.1:1").build().unwrap());
    let refused = async |change: fn(&mut JoinRequest)| {
        let mut request = JoinRequest::new("g", vec!["t".into()], [1; 16]);
        change(&mut request);
        let joined = start(kafka.settings.clone(), kafka.clone(), request).await;
        let e = joined.map(|_| "joined").unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Invalid, Effect::NotApplied), "{e}");
        assert!(e.to_string().contains("group g") && e.advice().is_some(), "{e}");
    };
    refused(|request| request.topics.clear()).await;
    refused(|request| request.max_batch = 0).await;
}

#[test]
fn closing_deadline_does_not_overflow_the_clock() {
    let now = Instant::now();
    assert_eq!(closed_by(now, Duration::from_secs(10)), now + Duration::from_secs(10) + CLOSING);
    assert!(closed_by(now, Duration::MAX) > now + Duration::from_secs(3600));
}

#[test]
fn next_consumer_knows_which_recreated_partitions_were_read() -> Result<()> {
    let kafka = RdKafka::builder("127.0.0.1:1").build()?;
    let (shared, _gone) = Shared::new(kafka.settings.clone());
    let request = JoinRequest::new("g", vec!["t".into()], [1; 16]);
    let mut plan = Plan::new(&request.topics);
    plan.replaced("t".into());
    let connection_errors = kafka.settings.connection_errors();
    let mut group = Group::join(&request, plan, &shared, connection_errors, GroupProtocol::Classic)?;
    let of = [0, 1].map(|index| Partition::new("t", index));
    let slots = of.clone().map(|partition| {
        let doubt = group.plan().doubt(&partition);
        assert_eq!(doubt, Doubt::Log);
        Arc::new(Slot::new(Assignment { partition, epoch: 1 }, doubt, Weak::new()))
    });
    for slot in &slots {
        let Partition { topic, index } = &slot.assignment.partition;
        let queue = group.consumer.split_partition_queue(topic, *index);
        group.queues.extend(queue.map(|queue| (slot.clone(), queue)));
        lock(&slot.trail).begin(Cursor::new(0), 0);
    }
    let record = Record::new(0, 0, None, None, Headers::new());
    assert_eq!(lock(&slots[0].trail).read(&[record]), Ok(false));
    group.lose_all(&mut Pending::new());
    assert_eq!(of.map(|of| group.plan().doubt(&of)), [Doubt::Nothing, Doubt::Log]);
    Ok(())
}

/// A notification is lost while another partition keeps the thread busy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_notification_is_recovered_however_busy_the_thread_is() -> Result<()> {
    let mock = MockCluster::new(1).map_err(|e| settings::broken(&e))?;
    mock.create_topic("t", 2, 1).map_err(|e| settings::broken(&e))?;
    let builder = RdKafka::builder(mock.bootstrap_servers()).set("group.protocol", "classic");
    let kafka = Arc::new(builder.build()?);
    let (busy, quiet) = (Partition::new("t", 0), Partition::new("t", 1));
    let mut request = JoinRequest::new("g", vec!["t".into()], [1; 16]);
    request.max_batch = 1;
    let settings = kafka.settings.clone();
    let (mut c, shared) = start(settings, kafka.clone(), request).await?;
    let record = || NewRecord::new(None, Some("x".into()), Headers::new());
    let (stop, load) = (Arc::new(AtomicBool::new(false)), kafka.clone());
    let stopped = stop.clone();
    let load = tokio::spawn(async move {
        while !stopped.load(SeqCst) {
            load.append(&busy, &[record(), record()]).await;
        }
    });
    let until = tokio::time::Instant::now() + Duration::from_secs(25);
    let mut next = async || tokio::time::timeout_at(until, c.events.next()).await;
    while !matches!(next().await, Ok(Some(Ok(Event::Records(..))))) {}
    let slot = lock(&shared.owned).get(&quiet).cloned();
    slot.iter().for_each(|slot| slot.is_deaf.store(true, SeqCst));
    let mut sought = false;
    kafka.append(&quiet, &[record()]).await.remove(0)?;
    while let Ok(Some(event)) = next().await {
        sought |= matches!(event?, Event::Records(of, _) if of.partition == quiet);
        if sought {
            break;
        }
    }
    stop.store(true, SeqCst);
    let _ = load.await;
    assert!(sought, "the record was read");
    kafka.close().await
}

fn failed(e: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::unknown(ErrorKind::Other, "test").with_source(e)
}

type Mock = MockCluster<'static, DefaultProducerContext>;

/// A member whose calls may take this long, and that has a record to read.
async fn joined(limit: Duration) -> Result<(Mock, Arc<RdKafka>, Consumer, Arc<Shared>)> {
    let mock = MockCluster::new(1).map_err(|e| settings::broken(&e))?;
    mock.create_topic("t", 1, 1).map_err(|e| settings::broken(&e))?;
    let builder = RdKafka::builder(mock.bootstrap_servers()).set("group.protocol", "classic");
    let builder = builder.set_consumer("group.instance.id", "one").set("heartbeat.interval.ms", "300");
    let kafka = Arc::new(builder.request_timeout(limit).build()?);
    let request = JoinRequest::new("g", vec!["t".into()], [1; 16]);
    let (c, shared) = start(kafka.settings.clone(), kafka.clone(), request).await?;
    let record = NewRecord::new(None, Some("x".into()), Headers::new());
    kafka.append(&Partition::new("t", 0), &[record]).await.remove(0)?;
    Ok((mock, kafka, c, shared))
}

/// The assignment under which records are read next.
async fn read(c: &mut Consumer) -> Assignment {
    loop {
        match c.events.next().await {
            Some(Ok(Event::Records(of, _))) => break of,
            Some(_) => {}
            None => panic!("the stream has ended"),
        }
    }
}

/// A commit that hangs in a consumer until its end is dropped: librdkafka may never complete one whose coordinator went
/// down, and such a client is also never closed.
struct Hanging {
    end: oneshot::Sender<()>,
    commit: JoinHandle<Option<KafkaResult<()>>>,
    slot: Arc<Slot>,
}

async fn hang(shared: &Shared, of: &Assignment) -> Result<Hanging> {
    let slot = lock(&shared.owned)[&of.partition].clone();
    let committer = slot.committer.upgrade();
    let client = committer.and_then(|of| of.consumer.upgrade()).ok_or_else(|| error::closed("commit"))?;
    let (end, hangs) = oneshot::channel::<()>();
    let (hang, is_hanging) = oneshot::channel();
    let commit = thread::spawn(move || {
        client.context().unless_closing(|| {
            let _ = (hang.send(()), hangs.blocking_recv());
            Ok(())
        })
    });
    is_hanging.await.map_err(failed)?;
    Ok(Hanging { end, commit, slot })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_commit_does_not_delay_the_next_consumers_commits() -> Result<()> {
    let (mock, kafka, mut c, shared) = joined(Duration::from_secs(120)).await?;
    let commit = |assignment: Assignment| {
        let shared = shared.clone();
        tokio::spawn(async move { shared.commit(&[Commit { assignment, offset: 1 }]).await.remove(0) })
    };
    let first = read(&mut c).await;
    let hanging = hang(&shared, &first).await?;
    let behind = commit(first);
    while hanging.slot.committing.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    mock.request_errors(RDKafkaApiKey::Heartbeat, &[Fault::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID]);
    let second = read(&mut c).await;
    commit(second.clone()).await.map_err(failed)??;
    // The consumer was closed before the commit's turn.
    drop(hanging.end);
    assert!(hanging.commit.join().is_ok_and(|made| made.is_some()));
    let e = behind.await.map_err(failed)?.map(|()| "committed").unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::NotOwner, Effect::NotApplied), "{e}");
    // A leaving member doesn't keep a caller waiting either.
    let hanging = hang(&shared, &second).await?;
    shared.ask_to_leave();
    let until = Instant::now() + Duration::from_secs(60);
    while !lock(&shared.owned).is_empty() {
        assert!(Instant::now() < until, "it accepts commits although it can't make them");
        tokio::time::sleep(SHORT).await;
    }
    let e = commit(second).await.map_err(failed)?.map(|()| "committed").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Closed, "{e}");
    drop(hanging.end);
    kafka.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_leaves_at_once_even_if_an_earlier_consumer_never_closes() -> Result<()> {
    let limit = Duration::from_secs(120);
    let (mock, kafka, mut c, shared) = joined(limit).await?;
    let first = read(&mut c).await;
    let hanging = hang(&shared, &first).await?;
    mock.request_errors(RDKafkaApiKey::Heartbeat, &[Fault::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID]);
    read(&mut c).await;
    let left = tokio::time::timeout(limit / 2, c.member.leave()).await;
    assert!(matches!(left, Ok(Ok(()))), "{left:?}");
    assert!(!hanging.commit.is_finished(), "the consumer was closed");
    drop(hanging.end);
    kafka.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_marks_do_not_prevent_commits() -> Result<()> {
    let (mock, kafka, mut c, shared) = joined(Duration::from_secs(60)).await?;
    let of = read(&mut c).await;
    let commit = async || shared.commit(&[Commit { assignment: of.clone(), offset: 1 }]).await.remove(0);
    let committed = async || {
        let slot = lock(&shared.owned)[&of.partition].clone();
        let committer = slot.committer.upgrade();
        let client = committer.and_then(|of| of.consumer.upgrade()).ok_or_else(|| error::closed("commit"))?;
        let mut list = TopicPartitionList::new();
        list.add_partition(&of.partition.topic, of.partition.index);
        let asked = move || client.committed_offsets(list, Duration::from_secs(60));
        let list = tokio::task::spawn_blocking(asked).await.map_err(failed)?.map_err(failed)?;
        let found = list.find_partition(&of.partition.topic, of.partition.index);
        let found = found.map(|found| (found.offset(), found.metadata().to_owned()));
        found.ok_or_else(|| error::closed("commit"))
    };
    let refuse = |codes: &[Fault]| mock.request_errors(RDKafkaApiKey::OffsetCommit, codes);
    for code in [
        Fault::RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE,
        Fault::RD_KAFKA_RESP_ERR_INVALID_COMMIT_OFFSET_SIZE,
    ] {
        commit().await?;
        let (offset, marks) = committed().await?;
        assert!(offset == Offset::Offset(1) && !marks.is_empty(), "{offset:?} {marks}");
        refuse(&[code]);
        commit().await?;
        assert_eq!(committed().await?, (Offset::Offset(1), String::new()));
        refuse(&[code, code]);
        let e = commit().await.unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::TooLarge, Effect::NotApplied), "{e}");
        assert!(e.advice().is_some_and(|advice| advice.contains("`offset.metadata.max.bytes`")), "{e}");
    }
    kafka.close().await
}
