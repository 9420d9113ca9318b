//! URLs, passwords, permissions, and what `check` reports.

use crate::{ask, numbered, store};
use kafkaq_adapter_tests::{create, key, one, read, replace, value};
use kafkaq_core::{Effect, ErrorKind, LeaseStore, Retry, Swap, Swapped};
use kafkaq_redis::RedisStore;
use std::time::Duration;
use xtask::services::Service;

const NONE: [&str; 0] = [];
const SECRET: &str = "s3cr3t-word";

#[tokio::test]
async fn correct_password_is_accepted_and_a_wrong_one_denied() {
    let server = Service::Redis.own_with(None, &["--requirepass", SECRET]).unwrap();
    let at = |login: &str, database: u8| {
        let url = format!("redis://{login}127.0.0.1:{}/{database}", server.addr().port());
        RedisStore::builder(url).build().unwrap()
    };
    let right = at(&format!(":{SECRET}@"), 0);
    assert_eq!(one(&right, create(&key("a"), "a")).await.unwrap(), Swapped::Done);
    let wrong = [(":wrong-s3cr3t-word@", 0), ("someone:s3cr3t-word@", 0), ("", 0), ("", 3)];
    for (login, database) in wrong {
        let store = at(login, database);
        let e = one(&store, create(&key("b"), "b")).await.unwrap_err();
        assert_eq!(
            (e.kind(), e.effect(), e.retry()),
            (ErrorKind::Denied, Effect::NotApplied, Retry::No),
            "{e}"
        );
        assert!(e.advice().unwrap().contains("password"), "{e}");
        let text = format!("{e} {e:?} {} {store:?}", store.check().await.unwrap_err());
        assert!(!text.contains(SECRET), "{text}");
    }
    assert_eq!(read(&right, &key("b")).await.unwrap(), None);
}

#[test]
fn a_password_shows_in_no_debug_output_and_no_error() {
    let builder = RedisStore::builder(format!("redis://me:{SECRET}@127.0.0.1:1/3"));
    let store = builder.clone().build().unwrap();
    assert!(!format!("{builder:?} {store:?}").contains(SECRET));
    assert!(format!("{store:?}").contains("127.0.0.1:1"));
    for url in
        ["redis://:s3cr3t-word@", "redis://:s3cr3t-word@h:99999", "http://:s3cr3t-word@h", "s3cr3t-word"]
    {
        let e = RedisStore::builder(url).build().unwrap_err();
        assert!(!format!("{e} {e:?}").contains(SECRET), "{e:?}");
    }
}

#[test]
fn invalid_settings_are_refused_when_building() {
    let fine = || RedisStore::builder("redis://127.0.0.1");
    for url in ["redis://127.0.0.1", "redis://[::1]:6379/3", "redis://redis_1", "unix:///run/redis.sock?db=3"]
    {
        assert!(RedisStore::builder(url).build().is_ok(), "{url}");
    }
    for builder in [
        RedisStore::builder(""),
        RedisStore::builder("127.0.0.1:6379"),
        RedisStore::builder("redis://127.0.0.1/notanumber"),
        RedisStore::builder("redis://127.0.0.1/-1"),
        RedisStore::builder("redis://127.0.0.1:0"),
        RedisStore::builder("redis://a..b"),
        RedisStore::builder("unix:///"),
        fine().prefix(""),
        fine().prefix("a b"),
        fine().prefix("x".repeat(201)),
        fine().connections(0),
        fine().connections(65),
        fine().request_timeout(std::time::Duration::ZERO),
        fine().request_timeout(std::time::Duration::MAX),
    ] {
        let e = builder.build().unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Invalid, Effect::NotApplied));
        assert!(e.advice().is_some());
    }
}

#[cfg(not(feature = "tls"))]
#[test]
fn tls_without_the_feature_is_refused_and_the_error_names_it() {
    let e = RedisStore::builder("rediss://127.0.0.1").build().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid);
    assert!(e.to_string().contains("feature `tls`"), "{e}");
}

#[tokio::test]
async fn database_numbers_and_unix_sockets_are_understood() {
    // Short: the path of a socket may have hardly more than a hundred bytes.
    let socket = std::env::temp_dir().join(format!("kafkaq-{}.sock", std::process::id()));
    let path = socket.to_str().unwrap();
    let server = Service::Redis.own_with(None, &["--unixsocket", path]).unwrap();
    let k = key("a");
    let third = RedisStore::builder(format!("redis://127.0.0.1:{}/3", server.addr().port())).build().unwrap();
    assert_eq!(one(&third, create(&k, "a")).await.unwrap(), Swapped::Done);
    assert_eq!(store(&server).get(std::slice::from_ref(&k)).await.pop().unwrap().unwrap(), None);
    let by_socket = RedisStore::builder(format!("unix://{path}?db=3")).build().unwrap();
    assert_eq!(read(&by_socket, &k).await.unwrap(), value("a"));
    let beyond =
        RedisStore::builder(format!("redis://127.0.0.1:{}/99", server.addr().port())).build().unwrap();
    let e = beyond.get(&[k]).await.pop().unwrap().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Misconfigured, "{e}");
}

#[tokio::test]
async fn protocol_version_in_the_url_is_ignored() {
    let server = Service::Redis.own().unwrap();
    let store = RedisStore::builder(format!("{}?protocol=resp3", server.url())).build().unwrap();
    let k = key("a");
    assert_eq!(one(&store, replace(&k, "a", "b")).await.unwrap(), Swapped::Conflict(None));
    let warnings = store.check().await.unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("appendonly"), "{warnings:?}");
}

#[tokio::test]
async fn check_warns_of_eviction_only_with_a_memory_limit() {
    let server = Service::Redis.own_with(None, &["--appendonly", "yes"]).unwrap();
    let store = store(&server);
    assert_eq!(store.check().await.unwrap(), NONE);
    ask(&server, &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    assert_eq!(store.check().await.unwrap(), NONE);
    ask(&server, &["CONFIG", "SET", "maxmemory", "100mb"]);
    let warnings = store.check().await.unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("allkeys-lru"), "{warnings:?}");
}

#[tokio::test]
async fn check_warns_without_persistence_and_of_a_replica() {
    let server = Service::Redis.own().unwrap();
    let store = store(&server);
    let warnings = store.check().await.unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("appendonly"), "{warnings:?}");
    ask(&server, &["CONFIG", "SET", "save", "3600 1"]);
    assert_eq!(store.check().await.unwrap(), NONE);
    ask(&server, &["REPLICAOF", "127.0.0.1", "1"]);
    let warnings = store.check().await.unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("replica"), "{warnings:?}");
}

#[tokio::test]
async fn the_documented_permissions_are_enough_and_fewer_are_denied() {
    let server = Service::Redis.own().unwrap();
    let user = |name: &str, rules: &[&str]| {
        let password = format!(">{SECRET}");
        ask(&server, &[&["ACL", "SETUSER", name, "on", &password, "resetkeys", "~kafkaq/*"], rules].concat());
        let url = format!("redis://{name}:{SECRET}@127.0.0.1:{}/0", server.addr().port());
        RedisStore::builder(url).build().unwrap()
    };
    let k = key("a");
    let in_hashes = ["+hmget", "+hset", "+hdel", "+hlen", "+pttl", "+pexpire", "+persist"];
    let by_key = ["+get", "+set", "+mget", "+del", "+eval", "+evalsha", "+ping"];
    let enough = user("enough", &[&by_key[..], &in_hashes].concat());
    for k in [&k, &numbered(1)] {
        let lives = |secs| Some(Duration::from_secs(secs));
        let swap = |is, next, ttl| one(&enough, Swap::new(k.clone(), is, next, ttl));
        assert_eq!(swap(None, value("a"), lives(1000)).await.unwrap(), Swapped::Done);
        assert_eq!(swap(value("a"), value("b"), lives(1)).await.unwrap(), Swapped::Done);
        assert_eq!(swap(value("b"), value("c"), None).await.unwrap(), Swapped::Done);
        assert_eq!(read(&enough, k).await.unwrap(), value("c"));
        assert_eq!(swap(value("c"), None, None).await.unwrap(), Swapped::Done);
    }
    assert_eq!(one(&enough, create(&k, "b")).await.unwrap(), Swapped::Done);
    let warnings = enough.check().await.unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("INFO"), "{warnings:?}");
    user("enough", &["+info"]);
    let warnings = enough.check().await.unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("CONFIG"), "{warnings:?}");

    // Redis has executed half of it: the value exists, and lives forever.
    let no_ends = user("noends", &[&by_key[..], &["+hmget", "+hset", "+pttl"]].concat());
    let lives = Some(Duration::from_secs(1000));
    let e = one(&no_ends, Swap::new(numbered(1), None, value("a"), lives)).await.unwrap_err();
    assert_eq!(e.effect(), Effect::Unknown, "{e}");
    assert!(no_ends.check().await.is_err(), "missing permissions are reported at startup");

    let no_scripts = user("noscripts", &["+get", "+set", "+mget", "+ping"]);
    assert_eq!(no_scripts.check().await.unwrap_err().kind(), ErrorKind::Denied);
    let e = one(&no_scripts, replace(&k, "b", "c")).await.unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Denied, Effect::NotApplied), "{e}");

    let no_writes = user("nowrites", &["+get", "+mget", "+hmget", "+pttl", "+eval", "+evalsha", "+ping"]);
    let no_pttl = user("nopttl", &["+hmget", "+hset", "+pexpire", "+eval", "+evalsha"]);
    for (store, swap) in [
        (&no_writes, replace(&k, "b", "c")),
        (&no_writes, replace(&numbered(1), "a", "c")),
        (&no_writes, create(&numbered(2), "a")),
        (&no_pttl, create(&numbered(2), "a")),
    ] {
        let e = one(store, swap).await.unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Denied, Effect::NotApplied), "{e}");
    }

    let elsewhere =
        RedisStore::builder(format!("redis://enough:{SECRET}@127.0.0.1:{}/0", server.addr().port()))
            .prefix("elsewhere/")
            .build()
            .unwrap();
    for swap in [create(&k, "a"), replace(&k, "a", "b")] {
        let e = one(&elsewhere, swap).await.unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Denied, Effect::NotApplied), "{e}");
    }
}
