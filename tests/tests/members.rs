//! Members of a group that is kept in a store: they die, hang, leave and join, and others take over their partitions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use kafkaq::{Publisher, Queue, Task, TaskId};
use kafkaq_core::partitioner;
use kafkaq_tests::{Agent, BrokerKind, Built, Line, PATIENCE, Pair, Rng, StoreKind, until, until_done};
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

const AGENT: &str = env!("CARGO_BIN_EXE_agent");

fn pair(case: &str) -> Pair {
    Pair::new(BrokerKind::RsKafka, StoreKind::Redis, case)
}

/// The test's own member: its output, and the tasks that are known to be done.
#[derive(Clone, Default)]
struct Own {
    said: Arc<Mutex<Vec<Line>>>,
    done: Arc<Mutex<HashSet<TaskId>>>,
}

impl Own {
    /// Joins, does what is left, and leaves when all of `ids` are done.
    async fn see_to_it(
        &self,
        pair: &Pair,
        agents: impl Iterator<Item = &Agent>,
        ids: impl Iterator<Item = &String>,
    ) {
        let id = |text: &str| TaskId::new(text).unwrap();
        for line in agents.flat_map(Agent::said) {
            if let Line::Done { id: done, .. } = line {
                self.done.lock().unwrap().insert(id(&done));
            }
        }
        let queue = pair.queue().built().await;
        let workers: JoinSet<()> = (0..8).map(|_| self.clone().work(queue.clone())).collect();
        until_done(&queue, ids.map(|text| id(text)), &self.done).await;
        queue.shutdown(PATIENCE).await.unwrap();
        workers.join_all().await;
    }

    async fn work(self, queue: Queue) {
        while let Ok(job) = queue.get_job().await {
            let (task, token) = (job.id().clone(), job.token().to_string());
            let (id, attempt) = (task.to_string(), job.attempt());
            self.said.lock().unwrap().push(Line::Run { id: id.clone(), attempt, token: token.clone() });
            let line = match job.done().await {
                Ok(()) => Line::Done { id, token },
                Err(e) => Line::Failed { id, token, why: format!("{e:?}") },
            };
            if matches!(line, Line::Done { .. }) {
                self.done.lock().unwrap().insert(task);
            }
            self.said.lock().unwrap().push(line);
        }
    }
}

/// Publishes until it is told to stop, and records what and when.
struct Stream {
    stop: Arc<AtomicBool>,
    published: Arc<Mutex<HashMap<String, Instant>>>,
    running: tokio::task::JoinHandle<()>,
}

impl Stream {
    /// Publishes the tasks that `next` returns, every `every`.
    fn start(
        publisher: Publisher,
        every: Duration,
        mut next: impl FnMut() -> Vec<Task> + Send + 'static,
    ) -> Stream {
        let (stop, published) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(HashMap::new())));
        let (stopped, to) = (stop.clone(), published.clone());
        let running = tokio::spawn(async move {
            let mut tick = tokio::time::interval(every);
            while !stopped.load(Ordering::Relaxed) {
                tick.tick().await;
                let begun = Instant::now();
                for id in publisher.publish_many(next()).await {
                    to.lock().unwrap().insert(id.unwrap().to_string(), begun);
                }
            }
        });
        Stream { stop, published, running }
    }

    async fn end(self) -> HashMap<String, Instant> {
        self.stop.store(true, Ordering::Relaxed);
        self.running.await.unwrap();
        Arc::into_inner(self.published).unwrap().into_inner().unwrap()
    }
}

/// The partition of a task of [`to_each_partition`].
fn partition(id: &str) -> i32 {
    id.split_once('-').unwrap().0.parse().unwrap()
}

/// Returns one task per partition at a time, with the partition's number in its id.
fn to_each_partition(partitions: i32) -> impl FnMut() -> Vec<Task> + Send {
    let lands_in = |p| move |key: &String| partitioner::for_key(key.as_bytes(), partitions) == p;
    let key = |p| (0..).map(|n| format!("key{n}")).find(lands_in(p)).unwrap();
    let keys: Vec<_> = (0..partitions).map(key).collect();
    let mut round = 0;
    move || {
        round += 1;
        let id = |p| TaskId::new(format!("{p}-{round}")).unwrap();
        keys.iter().enumerate().map(|(p, key)| Task::new("x").with_id(id(p)).with_key(key.clone())).collect()
    }
}

/// First hand-outs: the process that starts one reads the partition, since later ones come from the wait topic.
fn first_runs(agent: &Agent) -> impl Iterator<Item = (Instant, String)> {
    agent.heard().into_iter().filter_map(|(at, line)| match line {
        Line::Run { id, attempt: 1, .. } => Some((at, id)),
        _ => None,
    })
}

/// Returns for each partition which of the agents was the last to start a task.
fn owners(agents: [&Agent; 2]) -> BTreeMap<i32, usize> {
    let mut last = BTreeMap::new();
    for (n, agent) in agents.into_iter().enumerate() {
        for (at, id) in first_runs(agent) {
            let newest = last.entry(partition(&id)).or_insert((at, n));
            *newest = (at, n).max(*newest);
        }
    }
    last.into_iter().map(|(partition, (_, n))| (partition, n)).collect()
}

/// How long the partitions of a killed member are not read, and how long a task in one of them waits afterwards.
struct TakenOver {
    /// From the kill until the last of them was read again.
    gap: Duration,
    /// From publishing to execution, the median.
    wait: Duration,
}

/// Two members, one of which is killed.
async fn one_of_two_is_killed(pair: &Pair) -> TakenOver {
    const PARTITIONS: i32 = 6;
    const BOTH: Duration = Duration::from_secs(2);
    let publisher = pair.queue().partitions(PARTITIONS).built_publisher().await;
    let stream = Stream::start(publisher, Duration::from_millis(100), to_each_partition(PARTITIONS));
    // Long enough that the victim dies holding some; and enough workers that the backlog of one partition doesn't delay
    // the others.
    let member = || Agent::work(AGENT, pair, 200, Duration::from_millis(200));
    let (survivor, victim) = (member(), member());
    let of_victim = || {
        let owners = owners([&survivor, &victim]).into_iter();
        owners.filter(|(_, n)| *n == 1).map(|(partition, _)| partition).collect::<Vec<_>>()
    };
    let mut since = Instant::now();
    until("each has half of the partitions for a while", || {
        if of_victim().len() != PARTITIONS as usize / 2 {
            since = Instant::now();
        }
        since.elapsed() > BOTH
    })
    .await;

    let killed = Instant::now();
    victim.signal("KILL");
    let orphans = of_victim();
    // For each orphaned partition, the tasks published later: when each started, and how long after publishing.
    let begun_since = |since: Instant| {
        let published = stream.published.lock().unwrap();
        let begun = first_runs(&survivor).filter_map(|(at, id)| {
            let then = *published.get(&id)?;
            (then >= since && orphans.contains(&partition(&id))).then(|| (partition(&id), at, at - then))
        });
        begun.collect::<Vec<_>>()
    };
    let mut first = BTreeMap::new();
    until("the survivor has the partitions of the dead one", || {
        for (partition, at, _) in begun_since(killed) {
            first.entry(partition).or_insert(at);
        }
        first.len() == orphans.len()
    })
    .await;
    let taken_over = *first.values().max().unwrap();

    // The backlog has been drained by then.
    let calm = taken_over + Duration::from_secs(1);
    until("enough are begun to tell how long one waits", || begun_since(calm).len() > 60).await;
    let mut waits: Vec<_> = begun_since(calm).into_iter().map(|(.., wait)| wait).collect();
    waits.sort();

    let published = stream.end().await;
    Own::default().see_to_it(pair, [&survivor, &victim].into_iter(), published.keys()).await;
    TakenOver { gap: taken_over - killed, wait: waits[waits.len() / 2] }
}

/// With a margin for a busy machine: on an idle one it takes the timeout plus less than a second, and then a few
/// milliseconds. Both are printed.
async fn is_taken_over(pair: &Pair, timeout: Duration) {
    let TakenOver { gap, wait } = one_of_two_is_killed(pair).await;
    println!("member timeout {timeout:?}: taken over {gap:?} after the kill, then a task waited {wait:?}");
    assert!(gap < 2 * timeout, "taken over {gap:?} after the kill");
    assert!(wait < Duration::from_secs(1), "then a task waited {wait:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_members_partitions_are_taken_over_soon_after_its_timeout() {
    let timeout = Duration::from_secs(5);
    is_taken_over(&pair("killed").with_member_timeout(timeout), timeout).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_members_partitions_are_taken_over_soon_after_the_timeout_that_users_get() {
    is_taken_over(&pair("killed"), Duration::from_secs(10)).await;
}

/// How a member ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// It shuts its queue down.
    Goodbye,
    /// It drops its queue with all the jobs that it holds.
    Dropped,
    /// SIGKILL.
    Killed,
    /// SIGSTOP for longer than the member timeout and a lease; then it resumes, and shuts down its queue.
    Stopped,
}

const WAYS: [Way; 4] = [Way::Goodbye, Way::Dropped, Way::Killed, Way::Stopped];
const ASLEEP: Duration = Duration::from_secs(6);

/// Five members come and go, and all leave in the end. Returns all members, and how each ended.
async fn come_and_go(pair: &Pair, rng: &mut Rng, length: Duration) -> Vec<(Agent, Way)> {
    let join = || Some(Agent::work(AGENT, pair, 8, Duration::from_millis(100)));
    let mut members: Vec<Option<Agent>> = (0..5).map(|_| join()).collect();
    let (mut gone, mut asleep) = (Vec::new(), VecDeque::new());
    let end = Instant::now() + length;
    let mut go = |agent: Agent, way| gone.push((agent, way));
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(200 + rng.below(1000))).await;
        while asleep.front().is_some_and(|(wake, _)| *wake <= Instant::now()) {
            asleep.pop_front().into_iter().for_each(|(_, agent)| go(woken(agent), Way::Stopped));
        }
        let member = &mut members[rng.below(5) as usize];
        let way = WAYS[rng.below(4) as usize];
        match (member.take(), way) {
            (None, _) => *member = join(),
            (Some(mut agent), Way::Goodbye) => {
                agent.end();
                go(agent, way);
            }
            (Some(mut agent), Way::Dropped) => {
                agent.drop_queue();
                go(agent, way);
            }
            (Some(agent), Way::Killed) => {
                agent.signal("KILL");
                go(agent, way);
            }
            (Some(agent), Way::Stopped) => {
                agent.signal("STOP");
                asleep.push_back((Instant::now() + ASLEEP, agent));
            }
        }
    }
    asleep.into_iter().for_each(|(_, agent)| go(woken(agent), Way::Stopped));
    for mut agent in members.into_iter().flatten() {
        agent.end();
        go(agent, Way::Goodbye);
    }
    gone
}

/// Resumes a stopped agent: its jobs may be over by now, which it has to learn.
fn woken(mut agent: Agent) -> Agent {
    agent.signal("CONT");
    agent.end();
    agent
}

/// `KAFKAQ_TEST_CHURN_SECS` makes it longer, and `KAFKAQ_TEST_SEED` replays an earlier run.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_five_comes_and_goes_and_every_task_is_executed_and_no_two_finish_one() {
    let length = std::env::var("KAFKAQ_TEST_CHURN_SECS").map_or(60, |s| s.parse().unwrap());
    let mut rng = Rng::seeded();
    let pair = pair("churn").with_member_timeout(Duration::from_secs(2));
    let publisher = pair.queue().partitions(12).built_publisher().await;
    let mut count = 0;
    let stream = Stream::start(publisher, Duration::from_millis(100), move || {
        count += 20;
        (count - 20..count).map(|n| Task::new("x").with_id(TaskId::new(format!("t{n}")).unwrap())).collect()
    });
    let members = come_and_go(&pair, &mut rng, Duration::from_secs(length)).await;
    let published = stream.end().await;
    let own = Own::default();
    own.see_to_it(&pair, members.iter().map(|(agent, _)| agent), published.keys()).await;

    let mut ways: BTreeMap<Way, usize> = BTreeMap::new();
    let mut lives = vec![(own.said.lock().unwrap().clone(), Way::Goodbye)];
    for (mut agent, way) in members {
        *ways.entry(way).or_default() += 1;
        agent.end();
        lives.push((agent.last_words(), way));
    }
    let account = Account::of(&lives);
    println!(
        "{} tasks, {} members: {ways:?}\n{} executions, of which these did not end their task: {:?}",
        published.len(),
        lives.len(),
        account.runs,
        account.in_vain
    );
    assert!(published.keys().all(|id| account.executed.contains(id)), "a task was not executed");
}

/// The combined executions of all members.
#[derive(Default)]
struct Account {
    runs: usize,
    executed: HashSet<String>,
    /// Executions that did not end their task, by how the member ended and how it learned of it.
    in_vain: BTreeMap<String, usize>,
}

impl Account {
    /// Panics if a token or an attempt was assigned twice, if two executions ended one task, or if one had no outcome
    /// although its member ended regularly.
    fn of(lives: &[(Vec<Line>, Way)]) -> Account {
        let mut account = Account::default();
        let (mut fences, mut attempts, mut finished) = (HashSet::new(), HashSet::new(), HashSet::new());
        for (life, way) in lives {
            let mut open = HashMap::new();
            for line in life {
                match line {
                    Line::Run { id, attempt, token } => {
                        account.runs += 1;
                        account.executed.insert(id.clone());
                        assert!(fences.insert(token), "{token} was handed out twice");
                        assert!(attempts.insert((id, attempt)), "attempt {attempt} of {id} was made twice");
                        open.insert(token, id);
                    }
                    Line::Done { id, token } => {
                        assert_eq!(open.remove(token), Some(id));
                        // The store never lost anything, so a task ends once, and under one token.
                        assert!(finished.insert(id), "{id} was ended twice");
                    }
                    Line::Failed { id, token, why } => {
                        assert_eq!(open.remove(token), Some(id));
                        let why = why.split('(').next().unwrap();
                        *account.in_vain.entry(format!("{way:?}: {why}")).or_default() += 1;
                    }
                    Line::Published(_) => {}
                }
            }
            assert!(open.is_empty() || *way != Way::Goodbye, "it ended regularly, but left {open:?}");
            if !open.is_empty() {
                *account.in_vain.entry(format!("{way:?} in mid-run")).or_default() += open.len();
            }
        }
        account
    }
}
