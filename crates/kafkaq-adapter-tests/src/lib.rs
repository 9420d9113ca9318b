//! Tests shared by kafkaq's stores, beyond the rules that the conformance kit checks: how a client fails, reconnects
//! and closes, with a server that stops, hangs and comes back.
//!
//! An adapter implements [`Adapter`] and includes all cases with [`all_cases!`](crate::all_cases), or selected ones
//! with [`cases!`](crate::cases).

#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod certificate;
#[allow(missing_docs, reason = "the name of a case describes it")]
pub mod descriptors;
mod fixtures;
mod log;
#[allow(missing_docs, reason = "the name of a case describes it")]
pub mod outages;
#[allow(missing_docs, reason = "the name of a case describes it")]
pub mod reconnecting;
mod stopwatch;
#[allow(missing_docs, reason = "the name of a case describes it")]
pub mod strangers;

pub use certificate::Certificate;
pub use fixtures::{create, key, keys, one, read, remove, replace, until, value};
pub use kafkaq_conformance::noise;
pub use log::Log;
pub use stopwatch::Stopwatch;

use kafkaq_core::LeaseStore;
use std::{net::SocketAddr, time::Duration};
use xtask::services::Service;

/// A store on a server, as the cases see it.
pub trait Adapter {
    /// The store.
    type Store: LeaseStore;

    /// The service that it is a client of.
    const SERVICE: Service;

    /// How many connections the client library attempts at most when one is requested.
    const MAX_CONNECT_ATTEMPTS: usize;

    /// A store with one connection to this address and this time limit per call.
    fn at(addr: SocketAddr, limit: Duration) -> Self::Store;
}

/// Creates a test for each named case: `cases! { reconnecting for Redis: first, second }`.
#[macro_export]
macro_rules! cases {
    ($module:ident for $adapter:ty: $($case:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $case() {
            $crate::$module::$case::<$adapter>().await;
        })*
    };
}

/// Creates a test for each case: `all_cases!(Redis);`.
#[macro_export]
macro_rules! all_cases {
    ($adapter:ty) => {
        $crate::cases! { reconnecting for $adapter:
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
        $crate::cases! { strangers for $adapter: another_kind_of_server_is_taken_for_what_it_is }
        $crate::cases! { outages for $adapter: a_server_that_stands_still_is_logged_once_and_so_is_its_return }
        $crate::cases! { descriptors for $adapter: used_up_descriptors_are_named }
    };
}
