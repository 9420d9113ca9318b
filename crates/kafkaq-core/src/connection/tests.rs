//! Tests in virtual time, against a scripted server.

use super::*;
use crate::ErrorKind;
use std::{
    io,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

const LIMIT: Duration = Duration::from_secs(60);
const SWAP: Operation = Operation::write("swap");
const READ: Operation = Operation::read("read");

/// A fake server. A connection to it is a number, counted from 1.
#[derive(Default)]
struct Fake {
    attempts: AtomicUsize,
    pings: AtomicUsize,
    is_down: AtomicBool,
    /// Connecting never ends.
    hangs: AtomicBool,
    /// The connections up to this one don't respond.
    broken: AtomicUsize,
}

impl Fake {
    fn answers(&self, number: usize) -> bool {
        number > self.broken.load(Relaxed)
    }

    fn attempts(&self) -> usize {
        self.attempts.load(Relaxed)
    }
}

impl Connect for Arc<Fake> {
    const OPERATION: Operation = Operation::read("connect");
    type Connection = usize;

    async fn connect(&self, _: Call) -> Result<usize> {
        let number = self.attempts.fetch_add(1, Relaxed) + 1;
        // Long enough for others to come and wait.
        tokio::time::sleep(Duration::from_millis(1)).await;
        if self.hangs.load(Relaxed) {
            std::future::pending::<()>().await;
        }
        match self.is_down.load(Relaxed) {
            true => Err(unreachable(Self::OPERATION, self.server(None), None)),
            false => Ok(number),
        }
    }

    async fn ping(&self, connection: &usize, _: Call) -> Result<()> {
        self.pings.fetch_add(1, Relaxed);
        // As behind a firewall that has forgotten the connection.
        if !self.answers(*connection) {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    fn server(&self, _: Option<&usize>) -> String {
        "the fake at h:1".to_owned()
    }
}

fn pair() -> (Arc<Fake>, SharedConnection<Arc<Fake>>) {
    let fake = Arc::new(Fake::default());
    (fake.clone(), SharedConnection::new(fake))
}

fn impatient_pair() -> (Arc<Fake>, SharedConnection<Arc<Fake>>) {
    let fake = Arc::new(Fake::default());
    (fake.clone(), SharedConnection::new(fake).impatient())
}

/// Sends a request that a broken connection answers with an error, and returns the number of the connection.
async fn ask(fake: &Arc<Fake>, shared: &SharedConnection<Arc<Fake>>, operation: Operation) -> Result<usize> {
    let request = |connection: usize| {
        let fake = fake.clone();
        async move {
            match fake.answers(connection) {
                true => Reply::Keep(Ok(connection)),
                false => Reply::Leave(Err(operation.after_sending(ErrorKind::Unavailable))),
            }
        }
    };
    shared.send(Call::new(operation, LIMIT), request).await
}

/// All connections so far break.
fn break_all(fake: &Fake) {
    fake.broken.store(fake.attempts(), Relaxed);
}

#[tokio::test(start_paused = true)]
async fn read_is_resent_over_a_new_connection_and_a_swap_is_not() {
    let (fake, shared) = pair();
    assert_eq!(ask(&fake, &shared, READ).await.unwrap(), 1);
    tokio::time::advance(Duration::from_secs(1)).await;
    break_all(&fake);
    assert_eq!(ask(&fake, &shared, READ).await.unwrap(), 2);
    tokio::time::advance(Duration::from_secs(1)).await;
    break_all(&fake);
    let error = ask(&fake, &shared, SWAP).await.unwrap_err();
    assert_eq!((error.effect(), fake.attempts()), (Effect::Unknown, 2), "it may have taken effect");
    assert_eq!(ask(&fake, &shared, SWAP).await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn idle_connection_is_pinged_and_replaced_without_an_error() {
    let (fake, shared) = pair();
    ask(&fake, &shared, SWAP).await.unwrap();
    tokio::time::advance(IDLE - Duration::from_millis(1)).await;
    ask(&fake, &shared, SWAP).await.unwrap();
    assert_eq!(fake.pings.load(Relaxed), 0, "it was not idle");
    tokio::time::advance(IDLE).await;
    assert_eq!(ask(&fake, &shared, SWAP).await.unwrap(), 1);
    assert_eq!(fake.pings.load(Relaxed), 1);
    tokio::time::advance(IDLE).await;
    break_all(&fake);
    for operation in [SWAP, READ] {
        assert_eq!(
            ask(&fake, &shared, operation).await.unwrap(),
            2,
            "the connection was silent, the server is not"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_repeated_request_fails_by_the_error_of_its_last_attempt() {
    let (fake, shared) = pair();
    ask(&fake, &shared, READ).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    // A server that takes connections and breaks them.
    fake.broken.store(usize::MAX, Relaxed);
    ask(&fake, &shared, READ).await.unwrap_err();
    assert_eq!(fake.attempts(), 2, "once more, and only once");
    ask(&fake, &shared, READ).await.unwrap_err();
    assert_eq!(fake.attempts(), 3, "a connection that was opened for this call is not replaced");
    break_all(&fake);
    fake.is_down.store(true, Relaxed);
    let error = ask(&fake, &shared, READ).await.unwrap_err();
    assert_eq!((error.op(), error.effect()), ("connect", Effect::NotApplied), "{error}");
}

#[tokio::test(start_paused = true)]
async fn missing_response_times_out_and_drops_the_connection() {
    let (fake, shared) = pair();
    for (operation, effect) in [(SWAP, Effect::Unknown), (READ, Effect::NotApplied)] {
        let begin = Instant::now();
        let request = |_| std::future::pending::<Reply<()>>();
        let error = shared.send(Call::new(operation, LIMIT), request).await.unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Timeout, effect));
        assert!(error.to_string().contains("the fake at h:1 did not answer within 60s"), "{error}");
        assert_eq!(begin.elapsed(), LIMIT);
    }
    assert_eq!(ask(&fake, &shared, SWAP).await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn callers_share_one_attempt_and_its_failure_and_attempts_are_spaced() {
    let (fake, shared) = pair();
    let all = || futures_util::future::join_all((0..64).map(|_| ask(&fake, &shared, SWAP)));
    fake.is_down.store(true, Relaxed);
    assert!(all().await.iter().all(Result::is_err));
    assert_eq!(fake.attempts(), 1);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(10) {
        ask(&fake, &shared, SWAP).await.unwrap_err();
    }
    // After 20, 40, 80, 160, 320 ms, and then each half second.
    assert!((20..=27).contains(&fake.attempts()), "{}", fake.attempts());
    fake.is_down.store(false, Relaxed);
    let number = fake.attempts() + 1;
    assert!(all().await.into_iter().all(|outcome| outcome.unwrap() == number));
}

#[tokio::test(start_paused = true)]
async fn impatient_connection_fails_fast_during_an_outage_and_recovers() {
    let (fake, shared) = impatient_pair();
    fake.is_down.store(true, Relaxed);
    ask(&fake, &shared, SWAP).await.unwrap_err();
    let begin = Instant::now();
    ask(&fake, &shared, SWAP).await.unwrap_err();
    assert_eq!((begin.elapsed(), fake.attempts()), (Duration::ZERO, 1));
    tokio::time::advance(Duration::from_secs(1)).await;
    fake.is_down.store(false, Relaxed);
    assert_eq!(ask(&fake, &shared, SWAP).await.unwrap(), 2, "the first call after its return finds it");
}

/// As a stopped process does: the operating system still accepts connections for it.
#[tokio::test(start_paused = true)]
async fn impatient_connection_barely_waits_for_a_server_that_accepts_but_never_responds() {
    let (fake, shared) = impatient_pair();
    ask(&fake, &shared, SWAP).await.unwrap();
    fake.hangs.store(true, Relaxed);
    let request = |_| std::future::pending::<Reply<usize>>();
    shared.send(Call::new(SWAP, LIMIT), request).await.unwrap_err();
    let mut waited = Duration::ZERO;
    for _ in 0..1000 {
        let begin = Instant::now();
        ask(&fake, &shared, SWAP).await.unwrap_err();
        waited += begin.elapsed();
        tokio::time::advance(Duration::from_millis(200)).await;
    }
    let tried = fake.attempts() - 1;
    assert!((2..=5).contains(&tried), "{tried} attempts in 200 s");
    assert!(waited <= (MOMENT + Duration::from_millis(1)) * 5, "the calls waited for {waited:?}");
    fake.hangs.store(false, Relaxed);
    tokio::time::advance(LIMIT).await;
    while ask(&fake, &shared, SWAP).await.is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn wake_connects_without_a_call() {
    let (fake, shared) = impatient_pair();
    let call = || Call::new(SWAP, LIMIT);
    assert!(!shared.is_up());
    (0..3).for_each(|_| shared.wake(call()));
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(shared.is_up());
    shared.wake(call());
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(fake.attempts(), 1, "it has a connection");
    shared.close().await;
    shared.wake(call());
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!((fake.attempts(), shared.is_up()), (1, false));
}

#[tokio::test(start_paused = true)]
async fn call_near_its_deadline_does_not_wait_for_an_attempt() {
    let (fake, shared) = impatient_pair();
    fake.hangs.store(true, Relaxed);
    ask(&fake, &shared, SWAP).await.unwrap_err();
    tokio::time::sleep(LIMIT).await;
    let call = Call::new(SWAP, LIMIT);
    tokio::time::sleep(LIMIT - MOMENT / 4).await;
    shared.up(call).await.unwrap_err();
    assert!(Instant::now() <= call.deadline() + Duration::from_millis(1));
}

/// Such as the runtime of a program that blocks on single calls.
#[test]
fn attempt_on_a_stalled_runtime_does_not_block_others() {
    const SHORT: Duration = Duration::from_millis(50);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (fake, shared) = impatient_pair();
    let request = |n: usize| async move { Reply::Keep(Ok(n)) };
    let ask = async || shared.send(Call::new(SWAP, SHORT), request).await;
    fake.hangs.store(true, Relaxed);
    let idle = runtime();
    idle.block_on(ask()).unwrap_err();
    std::thread::sleep(2 * SHORT);
    idle.block_on(ask()).unwrap_err();
    assert!(lock(&shared.endpoint.dialing).overdue.is_some(), "an attempt has begun");
    fake.hangs.store(false, Relaxed);
    runtime().block_on(async {
        while ask().await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn an_abandoned_attempt_is_given_up_by_patient_calls_too() {
    const SHORT: Duration = Duration::from_millis(50);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (fake, shared) = pair();
    fake.hangs.store(true, Relaxed);
    let idle = runtime();
    idle.block_on(async {
        let shared = shared.endpoint.clone();
        let dial = shared.dial(Call::new(SWAP, SHORT), false).await.unwrap();
        let attempt =
            tokio::spawn(async move { shared.attempt(Call::new(SWAP, SHORT), dial).await.map(drop) });
        tokio::time::sleep(SHORT / 5).await;
        drop(attempt);
    });
    fake.hangs.store(false, Relaxed);
    let request = |n: usize| async move { Reply::Keep(Ok(n)) };
    runtime().block_on(async { shared.send(Call::new(SWAP, LIMIT), request).await.unwrap() });
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_calls_under_way_and_nothing_is_sent_after_it() {
    let (fake, shared) = pair();
    ask(&fake, &shared, SWAP).await.unwrap();
    let ended = AtomicBool::new(false);
    let request = |_| async {
        tokio::time::sleep(Duration::from_secs(7)).await;
        ended.store(true, Relaxed);
        Reply::Keep(Ok(()))
    };
    let begin = Instant::now();
    let (sent, closed) = tokio::join!(shared.send(Call::new(SWAP, LIMIT), request), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let connection = shared.close().await;
        (connection, ended.load(Relaxed), begin.elapsed())
    });
    assert!(sent.is_ok(), "a call under way gets its answer");
    assert_eq!(closed, (Some(1), true, Duration::from_secs(7)));
    for operation in [SWAP, READ] {
        let error = ask(&fake, &shared, operation).await.unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Closed, Effect::NotApplied));
    }
    assert_eq!(shared.close().await, None);
}

#[tokio::test(start_paused = true)]
async fn close_does_not_wait_for_a_call_that_nobody_polls() {
    let (_fake, shared) = pair();
    let mut forgotten =
        Box::pin(shared.send(Call::new(SWAP, LIMIT), |_| std::future::pending::<Reply<()>>()));
    assert!(futures_util::FutureExt::now_or_never(&mut forgotten).is_none());
    let begin = Instant::now();
    tokio::time::timeout(10 * LIMIT, shared.close()).await.expect("it returns");
    assert_eq!(begin.elapsed(), LIMIT + OVERDUE);
}

#[test]
fn exhausted_file_descriptors_are_found_at_any_depth_of_the_source_chain() {
    let used_up = io::Error::other(io::Error::from_raw_os_error(24));
    let error = unreachable(READ, "the fake", Some(used_up.into()));
    assert!(error.advice().unwrap().contains("ulimit -n"), "{error}");
    let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    let error = unreachable(READ, "the fake", Some(refused.into()));
    assert!(error.advice().unwrap().contains("Check that the fake runs"), "{error}");
}
