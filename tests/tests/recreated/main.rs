//! A task topic that is replaced under the queue's processes: deleted and recreated while tasks are published, or with
//! its log truncated while the broker is down. Everything in the log afterwards is executed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod cut;
mod queue;
mod segments;
mod topic;

use kafkaq_tests::{not_asked_for, run};
use libtest_mimic::{Arguments, Completion, Trial};
use queue::Client;

/// The cases mostly wait.
const AT_ONCE: usize = 4;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let mut trials: Vec<_> = Client::ALL.into_iter().map(recreated).collect();
    trials.push(Trial::test("every_client::the_end_of_its_log_is_cut_off", || {
        Ok(run(cut::nothing_is_lost())?)
    }));
    libtest_mimic::run(&arguments, trials).exit();
}

fn recreated(client: Client) -> Trial {
    Trial::ignorable_test(format!("{}::its_topic_is_recreated", client.name()), move || {
        let (broker, store) = client.backends();
        if let Some(why) = not_asked_for(broker, store) {
            return Ok(Completion::ignored_with(why));
        }
        run(topic::nothing_is_lost(client))?;
        Ok(Completion::Completed)
    })
}
