//! Users, prefixes, settings, the check, closing.

use crate::{builder, client, shared};
use kafkaq_adapter_tests::{create, key, one, read, value};
use kafkaq_core::{Effect, ErrorKind, LeaseStore, Swapped};
use kafkaq_zookeeper::ZooKeeperStore;
use std::time::Duration;

#[tokio::test]
async fn the_right_digest_works_and_a_wrong_one_is_denied() {
    let server = shared();
    let with = |user: &str, password: &str| builder(&server, "owned").digest(user, password).build().unwrap();
    let owner = with("queue", "secret");
    let k = key("a");
    assert_eq!(one(&owner, create(&k, "a")).await.unwrap(), Swapped::Done);
    assert_eq!(read(&owner, &k).await.unwrap(), value("a"));
    assert!(owner.check().await.unwrap().is_empty());
    for stranger in
        [with("queue", "wrong"), with("other", "secret"), builder(&server, "owned").build().unwrap()]
    {
        let errors = [
            one(&stranger, create(&k, "b")).await.unwrap_err(),
            one(&stranger, create(&key("another"), "b")).await.unwrap_err(),
            read(&stranger, &k).await.unwrap_err(),
            stranger.check().await.unwrap_err(),
        ];
        for e in errors {
            assert_eq!((e.kind(), e.effect()), (ErrorKind::Denied, Effect::NotApplied), "{e}");
            assert!(e.advice().unwrap().contains("digest"));
        }
    }
    assert_eq!(read(&owner, &k).await.unwrap(), value("a"));
}

#[tokio::test]
async fn nodes_of_a_user_are_accessible_only_to_that_user() {
    let server = shared();
    let store = builder(&server, "acl/deep").digest("queue", "secret").build().unwrap();
    one(&store, create(&key("a"), "a")).await.unwrap();
    let zk = client(&server).await;
    zk.add_auth("digest", b"queue:secret".to_vec()).await.unwrap();
    for path in ["/acl", "/acl/deep"] {
        let (acl, _) = zk.get_acl(path).await.unwrap();
        assert!(acl.len() == 1 && acl[0].scheme == "digest" && acl[0].id.starts_with("queue:"), "{acl:?}");
    }
}

#[tokio::test]
async fn two_prefixes_are_two_stores_and_a_chroot_is_a_prefix() {
    let server = shared();
    let one_store = builder(&server, "one/two").build().unwrap();
    let other = builder(&server, "other").build().unwrap();
    let k = key("a");
    for (store, text) in [(&one_store, "1"), (&other, "2")] {
        assert_eq!(one(store, create(&k, text)).await.unwrap(), Swapped::Done);
    }
    assert_eq!(
        (read(&one_store, &k).await.unwrap(), read(&other, &k).await.unwrap()),
        (value("1"), value("2"))
    );
    let chroot = ZooKeeperStore::builder(format!("{}/one", server.url())).prefix("two").build().unwrap();
    assert_eq!(read(&chroot, &k).await.unwrap(), value("1"));
}

#[tokio::test]
async fn healthy_server_causes_no_warning_and_the_probe_leaves_nothing() {
    let server = shared();
    let store = builder(&server, "check").clock_skew(Duration::from_secs(10)).build().unwrap();
    assert_eq!(store.check().await.unwrap(), Vec::<String>::new());
    assert_eq!(client(&server).await.get_children("/check", false).await.unwrap(), Vec::<String>::new());
}

#[test]
fn invalid_settings_are_refused() {
    let b = || ZooKeeperStore::builder("127.0.0.1:2181");
    for builder in [
        ZooKeeperStore::builder(""),
        ZooKeeperStore::builder("localhost"),
        ZooKeeperStore::builder("a:1,,b:2"),
        b().prefix(""),
        b().prefix("a//b"),
        b().prefix("../a"),
        b().request_timeout(Duration::ZERO),
        b().session_timeout(Duration::from_millis(999)),
        b().sessions(0),
        b().sweep_every(Duration::ZERO),
        b().linger(Duration::from_secs(12)),
        b().digest("a:b", "c"),
        ZooKeeperStore::builder("127.0.0.1:0"),
        ZooKeeperStore::builder("a b:2181"),
        ZooKeeperStore::builder("a:2181:2181"),
        ZooKeeperStore::builder("a:2181/b//c"),
        b().prefix("x".repeat(200)),
        b().request_timeout(Duration::MAX),
        b().session_timeout(Duration::MAX),
        b().sessions(usize::MAX),
        b().sweep_every(Duration::MAX),
        b().clock_skew(Duration::MAX),
        b().linger(Duration::MAX),
    ] {
        let e = builder.clone().build().unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Invalid, "{builder:?}");
        assert!(e.advice().is_some());
    }
    for addresses in ["a:1, [::1]:2/chroot", "a:1/", "a:1/b/c/"] {
        assert!(ZooKeeperStore::builder(addresses).prefix("x/y").build().is_ok(), "{addresses}");
    }
}

#[test]
fn no_secret_is_printed() {
    let builder = ZooKeeperStore::builder("127.0.0.1:2181").digest("queue", "hunter2");
    let printed = format!("{builder:?} {:?}", builder.clone().build().unwrap());
    assert!(printed.contains("queue") && !printed.contains("hunter2"), "{printed}");
}
