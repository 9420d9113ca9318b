use super::*;
use crate::{RdKafka, settings};
use futures_util::StreamExt;
use kafkaq_core::{Headers, Log, NewRecord};
use rdkafka::mocking::MockCluster;
use std::sync::atomic::AtomicBool;

#[test]
fn only_what_a_person_has_to_mend_ends_the_stream() {
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
    // GroupMaxSizeReached and UnreleasedInstanceId among what has no kind of its own.
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
    assert!(ends.into_iter().all(takes_a_person));
    assert!(!goes_on.into_iter().any(takes_a_person));
}

/// A ring that is lost while another partition keeps the thread busy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_ring_is_made_good_however_busy_the_thread_is() -> Result<()> {
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
    let slot = locked(&shared.owned).get(&quiet).cloned();
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
