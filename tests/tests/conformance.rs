//! The conformance kit on a broker: `rdkafka::appended_offsets_ascend`. Each store goes through it in its own crate.

use kafkaq::rdkafka::RdKafka;
use kafkaq_conformance::broker;
use kafkaq_tests::kafka;
use std::{future::ready, process::ExitCode, time::Duration};

fn main() -> ExitCode {
    let kit = broker("rdkafka", || ready(RdKafka::builder(kafka()).build().map_err(Into::into)));
    kit.answers_within(Duration::from_secs(15)).run()
}
