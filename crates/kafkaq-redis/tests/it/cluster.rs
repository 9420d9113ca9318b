//! What is specific to a cluster: slots that move, and nodes that are down while the others continue.

use crate::{ask, clients, hashes::HASH, number, numbered, target::Target, tell, try_ask};
use kafkaq_adapter_tests::{Stopwatch, create, key, keys, one, replace, until, value};
use kafkaq_core::{Effect, ErrorKind, Key, LeaseStore, Retry, Swapped};
use kafkaq_redis::RedisStore;
use std::time::{Duration, Instant};
use xtask::services::{Server, Service, free_port};

/// How long a call may take while a node is down; calls to the others have to end within it.
const LIMIT: Duration = Duration::from_secs(3);

fn impatient(target: &Target) -> RedisStore {
    target.builder().request_timeout(LIMIT).connections(1).build().unwrap()
}

/// Returns the name of the Redis key that has the value.
fn full_name(key: &Key) -> String {
    let neighbours = (0..64).any(|n| numbered(n) == *key);
    format!("kafkaq/{}", if neighbours { HASH.to_owned() } else { key.to_string() })
}

async fn fill(store: &RedisStore, keys: &[Key], text: &'static str) {
    let swaps: Vec<_> = keys.iter().map(|k| create(k, text)).collect();
    for outcome in store.swap(&swaps).await {
        assert_eq!(outcome.unwrap(), Swapped::Done);
    }
}

async fn replace_all(store: &RedisStore, keys: &[Key], from: &'static str, to: &'static str) {
    let swaps: Vec<_> = keys.iter().map(|k| replace(k, from, to)).collect();
    for (outcome, k) in store.swap(&swaps).await.into_iter().zip(keys) {
        assert_eq!(outcome.unwrap(), Swapped::Done, "{k}");
    }
}

async fn assert_all(store: &RedisStore, keys: &[Key], text: &'static str) {
    for (outcome, k) in store.get(keys).await.into_iter().zip(keys) {
        assert_eq!(outcome.unwrap(), value(text), "{k}");
    }
}

fn id(node: &Server) -> String {
    tell(node, &["CLUSTER", "MYID"])
}

fn slot(target: &Target, key: &Key) -> String {
    number(target.ask(&["CLUSTER", "KEYSLOT", &full_name(key)])).to_string()
}

/// Begins to move the slot of the key from its owner to another node; returns both.
fn open_move<'a>(target: &'a Target, key: &Key) -> (&'a Server, &'a Server) {
    let owner = target.owner(&full_name(key));
    let (from, to) = (&target.nodes[owner], &target.nodes[(owner + 1) % 3]);
    let slot = slot(target, key);
    ask(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]);
    ask(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]);
    (from, to)
}

fn move_key(from: &Server, to: &Server, key: &Key) {
    ask(from, &["MIGRATE", "127.0.0.1", &to.addr().port().to_string(), &full_name(key), "0", "5000"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_one_queue_lie_on_all_nodes() {
    let target = Target::shared_cluster();
    fill(&target.builder().prefix("spread/").build().unwrap(), &keys(300), "a").await;
    for node in &target.nodes {
        let n = number(ask(node, &["EVAL", "return #redis.call('KEYS', 'spread/*')", "0"]));
        assert!((60..=140).contains(&n), "{n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_leads_to_all_nodes() {
    let target = Target::shared_cluster();
    let at = |urls: &[String]| RedisStore::cluster(urls).prefix("address/").build().unwrap();
    let there = target.nodes[2].url();
    fill(&at(std::slice::from_ref(&there)), &keys(100), "a").await;
    assert_all(&at(&["redis://127.0.0.1:1".to_owned(), there]), &keys(100), "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_is_followed_before_while_and_after() {
    let target = Target::cluster();
    let store = target.store();
    is_followed(&target, &store, &keys(50), &key("moving")).await;
    let neighbours: Vec<_> = (0..64).map(numbered).collect();
    is_followed(&target, &store, &neighbours[1..], &neighbours[0]).await;
}

async fn is_followed(target: &Target, store: &RedisStore, others: &[Key], moving: &Key) {
    let all = [others, std::slice::from_ref(moving)].concat();
    fill(store, &all, "0").await;

    // First its key is still at the source, then already at the target.
    let (from, to) = open_move(target, moving);
    replace_all(store, &all, "0", "1").await;
    move_key(from, to, moving);
    replace_all(store, &all, "1", "2").await;
    assert_all(store, &all, "2").await;
    let again = one(store, create(moving, "x")).await.unwrap();
    assert_eq!(again, Swapped::Conflict(value("2")));

    let slot = slot(target, moving);
    for node in [to, from] {
        ask(node, &["CLUSTER", "SETSLOT", &slot, "NODE", &id(to)]);
    }
    replace_all(store, &all, "2", "3").await;
    assert_all(store, &all, "3").await;
    assert_all(&target.store(), &all, "3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn create_finds_a_key_that_has_already_migrated() {
    let target = Target::cluster();
    let store = target.store();
    let moving = key("moving");
    fill(&store, std::slice::from_ref(&moving), "0").await;
    let (from, to) = open_move(&target, &moving);
    move_key(from, to, &moving);
    let conflict = one(&store, create(&moving, "x")).await.unwrap();
    assert_eq!(conflict, Swapped::Conflict(value("0")));
}

/// Returns keys of the node, and keys of the others.
fn split(target: &Target, node: usize) -> (Vec<Key>, Vec<Key>) {
    keys(90).into_iter().partition(|k| target.owner(&full_name(k)) == node)
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_frozen_node_time_out_and_the_others_keep_working() {
    let target = Target::cluster();
    let (away, there) = split(&target, 1);
    let all = [away.clone(), there.clone()].concat();
    let (patient, store) = (target.store(), impatient(&target));
    fill(&patient, &all, "0").await;
    replace_all(&patient, &all, "0", "1").await;
    until("all nodes are connected and know the script", async || {
        let swaps: Vec<_> = all.iter().map(|k| replace(k, "1", "1")).collect();
        store.swap(&swaps).await.iter().all(Result::is_ok)
    })
    .await;
    target.nodes[1].pause().unwrap();

    let (begin, watch) = (Instant::now(), Stopwatch::start());
    let swaps: Vec<_> = all.iter().map(|k| replace(k, "1", "2")).collect();
    let outcomes = store.swap(&swaps).await;
    assert!(begin.elapsed() >= LIMIT && watch.elapsed() < LIMIT * 3, "{:?}", begin.elapsed());
    let (of_away, of_there) = outcomes.split_at(away.len());
    assert!(of_there.iter().all(|outcome| *outcome.as_ref().unwrap() == Swapped::Done));
    for outcome in of_away {
        let e = outcome.as_ref().unwrap_err();
        assert_eq!(
            (e.kind(), e.effect(), e.retry()),
            (ErrorKind::Timeout, Effect::Unknown, Retry::Yes),
            "{e}"
        );
    }
    // One call at a time checks whether it is back; the other fails at once.
    let get = async || {
        let watch = Stopwatch::start();
        (store.get(&all).await, watch.elapsed())
    };
    let ((first, took_first), (second, took_second)) = tokio::join!(get(), get());
    assert!(took_first.max(took_second) < LIMIT * 3);
    assert!(took_first.min(took_second) < LIMIT / 2, "{took_first:?}, {took_second:?}");
    for outcomes in [first, second] {
        assert!(outcomes[..away.len()].iter().all(Result::is_err));
        assert!(outcomes[away.len()..].iter().all(Result::is_ok));
    }
    target.nodes[1].resume().unwrap();
    await_working(&store, &all).await;
    // It was frozen, but still received the requests.
    assert_all(&store, &all, "2").await;
}

async fn await_working(store: &RedisStore, keys: &[Key]) {
    until("all keys are read", async || store.get(keys).await.iter().all(Result::is_ok)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swaps_for_a_node_that_is_gone_are_not_applied_and_the_others_are() {
    let mut target = Target::cluster();
    let (away, there) = split(&target, 2);
    let store = impatient(&target);
    await_working(&store, &keys(90)).await;
    target.nodes[2].kill().unwrap();
    // The first may have been sent before the connection was seen to be broken.
    store.get(&away).await;
    let watch = Stopwatch::start();
    for k in &away {
        let e = one(&store, create(k, "a")).await.unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Unavailable, Effect::NotApplied), "{e}");
    }
    assert!(watch.elapsed() < LIMIT, "{:?}", watch.elapsed());
    fill(&store, &there, "a").await;
    target.nodes[2].start_again().unwrap();
    await_working(&store, &away).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_promoted_is_found() {
    // A node that is only slow is not considered dead.
    let timeout = ["--cluster-node-timeout", "5000"];
    let mut nodes = Service::RedisCluster.own_with(None, &timeout).unwrap().into_nodes();
    let bus = free_port().unwrap().to_string();
    let options = ["--cluster-enabled", "yes", "--cluster-port", &bus];
    let replica = Service::Redis.own_with(None, &[&options[..], &timeout].concat()).unwrap();
    ask(&nodes[0], &["CLUSTER", "MEET", "127.0.0.1", &replica.addr().port().to_string(), &bus]);
    let replicate = ["CLUSTER", "REPLICATE", &id(&nodes[0])];
    until("the replica knows its primary", async || try_ask(&replica, &replicate).is_ok()).await;
    until("the replica follows", async || {
        tell(&replica, &["INFO", "replication"]).contains("master_link_status:up")
            && tell(&nodes[1], &["CLUSTER", "NODES"]).contains(" slave ")
    })
    .await;
    let target = Target { nodes };
    let (store, all) = (target.store(), keys(90));
    nodes = target.nodes;
    fill(&store, &all, "0").await;
    // Replication is asynchronous: what the replica lacks is lost with the primary.
    let owned = number(ask(&nodes[0], &["DBSIZE"]));
    until("the replica has it all", async || number(ask(&replica, &["DBSIZE"])) == owned).await;
    nodes[0].kill().unwrap();
    await_working(&store, &all).await;
    replace_all(&store, &all, "0", "1").await;
}

/// Like a node that was replaced and returns without its data: it responds, and has no slots.
#[tokio::test(flavor = "multi_thread")]
async fn slots_of_a_node_that_lost_them_are_found_elsewhere() {
    let target = Target::cluster();
    let (store, all) = (target.store(), keys(90));
    await_working(&store, &all).await;
    let [lost, heir, other] = &target.nodes[..] else { panic!("three nodes") };
    let lost_id = id(lost);
    ask(lost, &["CLUSTER", "RESET", "HARD"]);
    for node in [heir, other] {
        ask(node, &["CLUSTER", "FORGET", &lost_id]);
    }
    ask(heir, &["CLUSTER", "ADDSLOTSRANGE", "0", "5460"]);
    await_working(&store, &all).await;
    fill(&store, &all, "a").await;
}

#[tokio::test]
async fn without_any_node_a_swap_is_not_applied_and_returns_soon() {
    let urls = ["redis://127.0.0.1:1", "redis://127.0.0.1:2"];
    let store = RedisStore::cluster(urls).request_timeout(LIMIT).build().unwrap();
    for _ in 0..3 {
        let watch = Stopwatch::start();
        let e = one(&store, create(&key("a"), "a")).await.unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Unavailable, Effect::NotApplied), "{e}");
        assert!(watch.elapsed() < LIMIT * 2, "{:?}", watch.elapsed());
    }
}

#[tokio::test]
async fn mixing_up_a_server_and_a_cluster_is_reported() {
    let server = Service::Redis.own().unwrap();
    let store = RedisStore::cluster([server.url()]).build().unwrap();
    let e = one(&store, create(&key("a"), "a")).await.unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Misconfigured, Effect::NotApplied), "{e}");

    let target = Target::shared_cluster();
    let store = RedisStore::builder(target.nodes[0].url()).prefix("alone/").build().unwrap();
    let refused = store.swap(&keys(30).iter().map(|k| create(k, "a")).collect::<Vec<_>>()).await;
    let e = refused.into_iter().find_map(Result::err).unwrap();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Unsupported, Effect::NotApplied), "{e}");
    assert!(e.advice().unwrap().contains("RedisStore::cluster"), "{e}");
    assert!(store.check().await.unwrap().iter().any(|warning| warning.contains("RedisStore::cluster")));
}

#[test]
fn invalid_cluster_settings_are_refused_when_building() {
    let none: [&str; 0] = [];
    for builder in [
        RedisStore::cluster(none),
        RedisStore::cluster(["redis://127.0.0.1/3"]),
        RedisStore::cluster(["unix:///tmp/redis.sock"]),
        RedisStore::cluster(["redis://127.0.0.1", "127.0.0.1:6379"]),
        RedisStore::cluster(["redis://127.0.0.1"]).prefix("{kafkaq}/"),
    ] {
        assert_eq!(builder.build().unwrap_err().kind(), ErrorKind::Invalid);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_the_node_of_a_warning_and_a_node_that_is_away() {
    let mut target = Target::cluster();
    let store = impatient(&target);
    let warnings = store.check().await.unwrap();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for node in &target.nodes {
        let address = format!("127.0.0.1:{}: ", node.addr().port());
        assert!(warnings.iter().any(|w| w.starts_with(&address) && w.contains("appendonly")), "{warnings:?}");
    }
    target.nodes[0].kill().unwrap();
    let gone = format!("127.0.0.1:{}: ", target.nodes[0].addr().port());
    until("the check names it", async || {
        let warnings = store.check().await.unwrap();
        warnings.iter().any(|w| w.starts_with(&gone) && w.contains("connect to Redis"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_close_no_node_is_connected() {
    let target = Target::cluster();
    let store = target.store();
    fill(&store, &keys(30), "a").await;
    assert!(target.nodes.iter().all(|node| clients(node) > 0));
    store.close().await.unwrap();
    until("they are gone", async || target.nodes.iter().all(|node| clients(node) == 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_permissions_are_enough_and_the_password_goes_to_all_nodes() {
    let target = Target::cluster();
    let rules = "resetkeys ~kafkaq/* +get +set +mget +del +eval +evalsha +hmget +hset +hdel +hlen +pttl \
                 +pexpire +persist +ping +cluster|slots +asking";
    let user = ["ACL", "SETUSER", "enough", "on", ">s3cr3t-word"];
    target.ask_all(&[&user[..], &rules.split(' ').collect::<Vec<_>>()].concat());
    let at = |login: &str| {
        let url = format!("redis://{login}@127.0.0.1:{}", target.nodes[0].addr().port());
        RedisStore::cluster([url]).build().unwrap()
    };
    let store = at("enough:s3cr3t-word");
    let moving = key("moving");
    let all = [keys(50), vec![moving.clone()]].concat();
    fill(&store, &all, "0").await;
    let (from, to) = open_move(&target, &moving);
    move_key(from, to, &moving);
    replace_all(&store, &all, "0", "1").await;
    assert_all(&store, &all, "1").await;
    store.check().await.unwrap();

    let e = one(&at("enough:wrong"), create(&moving, "x")).await.unwrap_err();
    assert_eq!((e.kind(), e.effect(), e.retry()), (ErrorKind::Denied, Effect::NotApplied, Retry::No), "{e}");
    target.ask_all(&["ACL", "SETUSER", "enough", "-cluster"]);
    let e = one(&at("enough:s3cr3t-word"), create(&moving, "x")).await.unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Denied, Effect::NotApplied), "{e}");
    assert!(e.advice().unwrap().contains("+cluster|slots"), "{e}");
}
