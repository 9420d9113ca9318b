//! What a call says when the server or the network fails, and the way to the next endpoint.

use crate::{Etcd, own};
use kafkaq_adapter_tests::{Stopwatch, cases, create, descriptors, key, one, read, until};
use kafkaq_core::Swapped;
use kafkaq_etcd::EtcdStore;
use std::{net::TcpListener, time::Duration};

cases! { reconnecting for Etcd:
    without_a_server_a_swap_is_not_applied_and_returns_soon,
    an_address_that_never_answers_is_not_applied_within_the_limit,
    a_frozen_server_is_a_timeout_of_unknown_effect_and_a_new_connection_later,
    a_connection_that_breaks_before_the_answer_is_unknown_and_the_swap_is_there,
    a_read_that_fails_had_no_effect,
    a_read_over_a_connection_that_the_server_closed_succeeds,
    a_swap_over_an_idle_connection_that_the_server_closed_succeeds,
    an_idle_connection_that_was_forgotten_is_replaced,
    a_killed_server_breaks_one_call_at_most_and_then_nothing_is_applied,
    a_late_failure_of_an_old_connection_spares_the_new_one,
    many_callers_share_one_new_connection,
    many_callers_of_a_server_that_fails_share_its_failure,
    attempts_to_connect_are_spaced_even_for_a_caller_in_a_hurry,
    close_leaves_no_connection_behind,
}

cases! { strangers for Etcd: another_kind_of_server_is_taken_for_what_it_is }
cases! { outages for Etcd: a_server_that_stands_still_is_logged_once_and_so_is_its_return }

#[tokio::test]
async fn used_up_descriptors_are_named() {
    descriptors::are_named::<Etcd>("failures::used_up_descriptors_are_named").await;
}

#[tokio::test]
async fn an_endpoint_without_a_server_is_passed_over() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = own();
    let nobody = format!("127.0.0.1:{}", xtask::services::free_port().unwrap());
    let endpoints = [nobody, silent.local_addr().unwrap().to_string(), server.url()];
    let store = EtcdStore::builder(endpoints).request_timeout(Duration::from_secs(60)).build().unwrap();
    assert_eq!(one(&store, create(&key("a"), "a")).await.unwrap(), Swapped::Done);
    for _ in 0..20 {
        read(&store, &key("a")).await.unwrap();
    }
}

#[tokio::test]
async fn after_a_failure_the_next_endpoint_comes_first() {
    let (first, second) = (own(), own());
    let limit = Duration::from_secs(6);
    let builder = EtcdStore::builder([first.url(), second.url()]);
    let store = builder.request_timeout(limit).build().unwrap();
    until("it works", async || read(&store, &key("a")).await.is_ok()).await;
    first.pause().unwrap();
    read(&store, &key("a")).await.unwrap_err();
    let watch = Stopwatch::start();
    read(&store, &key("a")).await.unwrap();
    // Half of the limit would have gone to the first.
    assert!(watch.elapsed() < limit / 2, "{:?}", watch.elapsed());
}
