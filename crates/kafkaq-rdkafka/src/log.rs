//! librdkafka's log lines and troubles: the lines go to `tracing`, the last trouble into errors.

use crate::locked;
use rdkafka::{config::RDKafkaLogLevel, error::KafkaError, types::RDKafkaErrorCode as Code};
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};
use tracing::level_filters::LevelFilter;

/// What librdkafka has to tell at all, so that nothing is formatted only to be thrown away.
pub(crate) fn level() -> RDKafkaLogLevel {
    match LevelFilter::current() {
        LevelFilter::OFF => RDKafkaLogLevel::Emerg,
        LevelFilter::ERROR => RDKafkaLogLevel::Error,
        LevelFilter::WARN => RDKafkaLogLevel::Warning,
        LevelFilter::INFO => RDKafkaLogLevel::Info,
        _ => RDKafkaLogLevel::Debug,
    }
}

pub(crate) fn forward(level: RDKafkaLogLevel, facility: &str, line: &str) {
    use RDKafkaLogLevel::*;
    match level {
        // A setting that is given to both sides and concerns one: by design.
        _ if facility == "CONFWARN" => tracing::debug!(target: "librdkafka", facility, "{line}"),
        Emerg | Alert | Critical | Error => tracing::error!(target: "librdkafka", facility, "{line}"),
        Warning => tracing::warn!(target: "librdkafka", facility, "{line}"),
        Notice | Info => tracing::info!(target: "librdkafka", facility, "{line}"),
        Debug => tracing::debug!(target: "librdkafka", facility, "{line}"),
    }
}

/// The last thing that went wrong with the connections: an append that ran out of time can then say why.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Mutex<Option<(Instant, String)>>);

impl Trouble {
    pub(crate) fn note(&self, error: &KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason);
        let mut last = locked(&self.0);
        match (&mut *last, error) {
            // "All brokers are down" follows on what says why.
            (Some((at, _)), KafkaError::Global(Code::AllBrokersDown)) => *at = Instant::now(),
            (last, _) => *last = Some((Instant::now(), reason.to_owned())),
        }
    }

    pub(crate) fn within(&self, limit: Duration) -> Option<String> {
        locked(&self.0).as_ref().filter(|(at, _)| at.elapsed() <= limit).map(|(_, reason)| reason.clone())
    }
}
