//! Endpoints, users, permissions, and what `check` reports.

use crate::{own, own_with, raw, store};
use etcd_client::{AlarmAction, AlarmType, Permission, PutOptions};
use kafkaq_adapter_tests::{Log, create, key, one, read, replace, until, value};
use kafkaq_core::{Effect, ErrorKind, LeaseStore, Retry, Swap, Swapped};
use kafkaq_etcd::EtcdStore;
use std::time::Duration;
use xtask::services::Server;

const NONE: [&str; 0] = [];
const SECRET: &str = "s3cr3t-word";

fn login(server: &Server, user: &str, password: &str) -> EtcdStore {
    EtcdStore::builder([server.url()]).user(user, password).build().unwrap()
}

/// The user `kafkaq` may read and write under `kafkaq/`.
async fn with_users() -> Server {
    let server = own();
    let mut raw = raw(&server).await;
    for (user, permission) in
        [("root", None), ("kafkaq", Some(Permission::read_write("kafkaq/").with_prefix()))]
    {
        raw.role_add(user).await.unwrap();
        if let Some(permission) = permission {
            raw.role_grant_permission(user, permission).await.unwrap();
        }
        raw.user_add(user, SECRET, None).await.unwrap();
        raw.user_grant_role(user, user).await.unwrap();
    }
    raw.auth_enable().await.unwrap();
    server
}

#[tokio::test]
async fn correct_password_is_accepted_and_a_wrong_one_denied() {
    let server = with_users().await;
    let right = login(&server, "kafkaq", SECRET);
    let mortal = Swap::new(key("a"), None, value("a"), Some(Duration::from_secs(60)));
    assert_eq!(one(&right, mortal).await.unwrap(), Swapped::Done);
    assert_eq!(one(&right, replace(&key("a"), "a", "b")).await.unwrap(), Swapped::Done);
    for wrong in
        [login(&server, "kafkaq", "wrong-s3cr3t-word"), login(&server, "somebody", SECRET), store(&server)]
    {
        let e = one(&wrong, create(&key("b"), "b")).await.unwrap_err();
        assert_eq!(
            (e.kind(), e.effect(), e.retry()),
            (ErrorKind::Denied, Effect::NotApplied, Retry::No),
            "{e}"
        );
        assert!(e.advice().unwrap().contains("password"), "{e}");
        let text = format!("{e} {e:?} {} {wrong:?}", wrong.check().await.unwrap_err());
        assert!(!text.contains(SECRET), "{text}");
    }
    assert_eq!(read(&right, &key("b")).await.unwrap(), None);
}

#[tokio::test]
async fn the_documented_permission_is_enough_and_none_is_denied() {
    let server = with_users().await;
    let k = key("a");
    let enough = login(&server, "kafkaq", SECRET);
    // As of 3.6 only root may query the status, and a warning says so.
    let warnings = enough.check().await.unwrap();
    assert!(warnings.iter().all(|w| w.contains("may not query")), "{warnings:?}");
    assert_eq!(one(&enough, create(&k, "a")).await.unwrap(), Swapped::Done);

    let builder = EtcdStore::builder([server.url()]).user("kafkaq", SECRET);
    let elsewhere = builder.prefix("elsewhere/").build().unwrap();
    let e = one(&elsewhere, create(&k, "a")).await.unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Denied, Effect::NotApplied), "{e}");
    assert_eq!(elsewhere.check().await.unwrap_err().kind(), ErrorKind::Denied);
}

#[tokio::test]
async fn restarted_server_without_tokens_gets_the_password_again() {
    let mut server = with_users().await;
    let store = login(&server, "kafkaq", SECRET);
    assert_eq!(one(&store, create(&key("a"), "a")).await.unwrap(), Swapped::Done);
    server.start_again().unwrap();
    until("it swaps again", async || {
        let outcome = one(&store, replace(&key("a"), "a", "a")).await;
        assert!(!matches!(&outcome, Err(e) if e.kind() == ErrorKind::Denied), "{outcome:?}");
        outcome.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_token_that_is_no_longer_known_is_renewed_unnoticed() {
    let server = with_users().await;
    let store = login(&server, "kafkaq", SECRET);
    assert_eq!(one(&store, create(&key("a"), "a")).await.unwrap(), Swapped::Done);
    // As after five minutes without a call, but faster.
    let options = etcd_client::ConnectOptions::new().with_user("root", SECRET);
    let mut root = etcd_client::Client::connect([server.url()], Some(options)).await.unwrap();
    root.auth_disable().await.unwrap();
    raw(&server).await.auth_enable().await.unwrap();
    assert_eq!(one(&store, replace(&key("a"), "a", "b")).await.unwrap(), Swapped::Done);
}

#[tokio::test]
async fn a_change_of_the_users_is_survived() {
    let server = with_users().await;
    let store = login(&server, "kafkaq", SECRET);
    assert_eq!(one(&store, create(&key("a"), "0")).await.unwrap(), Swapped::Done);
    let options = etcd_client::ConnectOptions::new().with_user("root", SECRET);
    let mut root = etcd_client::Client::connect([server.url()], Some(options)).await.unwrap();
    root.user_add("another", SECRET, None).await.unwrap();
    // The token belongs to an older revision of the users: one call may be refused, without effect.
    if let Err(e) = one(&store, replace(&key("a"), "0", "1")).await {
        assert_eq!((e.effect(), e.retry()), (Effect::NotApplied, Retry::Yes), "{e}");
        assert_eq!(one(&store, replace(&key("a"), "0", "1")).await.unwrap(), Swapped::Done);
    }
}

#[tokio::test]
async fn user_without_authentication_enabled_is_reported() {
    let server = own();
    let e = one(&login(&server, "kafkaq", SECRET), create(&key("a"), "a")).await.unwrap_err();
    assert_eq!((e.kind(), e.effect()), (ErrorKind::Misconfigured, Effect::NotApplied), "{e}");
    assert!(e.advice().unwrap().contains("auth enable"), "{e}");
}

#[test]
fn a_password_shows_in_no_debug_output_and_no_error() {
    let builder = EtcdStore::builder(["127.0.0.1:1"]).user("me", SECRET);
    let store = builder.clone().build().unwrap();
    assert!(!format!("{builder:?} {store:?}").contains(SECRET));
    assert!(format!("{store:?}").contains("127.0.0.1:1"));
    for endpoint in
        ["http://me:s3cr3t-word@h:1", "me:s3cr3t-word@h:1", "ftp://s3cr3t-word@h:1", "s3cr3t-word"]
    {
        let builder = EtcdStore::builder([endpoint]);
        let text = format!("{builder:?}");
        let e = builder.build().unwrap_err();
        assert!(!format!("{text} {e} {e:?}").contains(SECRET), "{e:?}");
    }
}

#[test]
fn invalid_settings_are_refused_when_building() {
    let fine = || EtcdStore::builder(["127.0.0.1:2379"]);
    assert!(fine().build().is_ok());
    assert!(EtcdStore::builder(["http://[::1]:2379", "etcd-1.example:2379/"]).build().is_ok());
    for builder in [
        EtcdStore::builder(NONE),
        EtcdStore::builder([""]),
        EtcdStore::builder(["127.0.0.1"]),
        EtcdStore::builder(["127.0.0.1:2379", "not a host"]),
        EtcdStore::builder(["127.0.0.1:port"]),
        EtcdStore::builder(["127.0.0.1:2379/path"]),
        EtcdStore::builder(["redis://127.0.0.1:6379"]),
        EtcdStore::builder([":2379"]),
        EtcdStore::builder(["127.0.0.1:0"]),
        EtcdStore::builder(["http://127.0.0.1:2379?a=b"]),
        EtcdStore::builder(["127.0.0.1:2379#a"]),
        fine().prefix(""),
        fine().prefix("a\n"),
        fine().prefix("x".repeat(201)),
        fine().user("", "password"),
        fine().user("name", ""),
        fine().request_timeout(Duration::ZERO),
        fine().request_timeout(Duration::MAX),
    ] {
        let text = format!("{builder:?}");
        let e = builder.build().map(|s| panic!("{s:?} from {text}")).unwrap_err();
        assert_eq!((e.kind(), e.effect()), (ErrorKind::Invalid, Effect::NotApplied));
        assert!(e.advice().is_some());
    }
}

#[cfg(not(feature = "tls"))]
#[test]
fn tls_without_the_feature_is_refused_and_the_error_names_it() {
    let e = EtcdStore::builder(["https://127.0.0.1:2379"]).build().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid);
    assert!(e.to_string().contains("feature `tls`"), "{e}");
}

#[tokio::test]
async fn check_of_a_healthy_server_has_no_warnings() {
    let server = own();
    assert_eq!(store(&server).check().await.unwrap(), NONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_warns_of_a_long_history_until_it_is_compacted() {
    let server = own();
    let mut raw = raw(&server).await;
    let writers: Vec<_> = (0..100)
        .map(|n: u32| {
            let mut raw = raw.clone();
            tokio::spawn(async move {
                for _ in 0..101 {
                    raw.put(n.to_be_bytes(), "x", None).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let store = store(&server);
    let warnings = store.check().await.unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("--auto-compaction-retention"), "{warnings:?}");
    raw.compact(10_000, None).await.unwrap();
    assert_eq!(store.check().await.unwrap(), NONE);
}

#[tokio::test]
async fn a_full_etcd_grants_no_lease_serves_reads_and_is_reported_and_logged() {
    let server = own_with(&["--quota-backend-bytes=4000000"]);
    let (log, store) = (Log::capture(), store(&server));
    assert_eq!(one(&store, create(&key("there"), "a")).await.unwrap(), Swapped::Done);
    let mut raw = raw(&server).await;
    let megabyte = vec![0; 1 << 20];
    while raw.put("filler", megabyte.clone(), Some(PutOptions::new())).await.is_ok() {}
    // etcd itself accepts nested transactions, but grants no new lease.
    let mortal = Swap::new(key("new"), None, value("a"), Some(Duration::from_secs(60)));
    let e = one(&store, mortal).await.unwrap_err();
    assert_eq!(
        (e.kind(), e.effect(), e.retry()),
        (ErrorKind::Unavailable, Effect::NotApplied, Retry::Yes),
        "{e}"
    );
    assert!(e.advice().unwrap().contains("alarm disarm"), "{e}");
    let told = log.lines();
    assert!(
        told.len() == 1 && told[0].contains("is failing") && told[0].contains("alarm disarm"),
        "{told:#?}"
    );
    assert_eq!(read(&store, &key("there")).await.unwrap(), value("a"));
    // Versions that report their limit cause a warning about that, too.
    assert!(store.check().await.unwrap()[0].contains("NOSPACE"));
    assert_eq!(raw.alarm(AlarmAction::Get, AlarmType::None, None).await.unwrap().alarms().len(), 1);
}
