//! How long a member may be silent, or hold revoked partitions, before they go to others.
//!
//! In the classic protocol each member states it when it joins. In KIP-848 it is a setting of the group, 45 s by
//! default, and the servers' settings limit how short it may be: 45 s as well, by default.

use crate::{error, settings, settings::Settings};
use kafkaq_core::{Error, ErrorKind, JoinRequest, Result};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, AlterConfig, ConfigResource, ResourceSpecifier},
    client::DefaultClientContext,
    config::FromClientConfig,
    error::{KafkaError, KafkaResult},
};
use std::{ops::RangeInclusive, time::Duration};
use tokio::{runtime::Handle, task::spawn_blocking};

const OP: &str = "set the group's session timeout";
const SESSION: &str = "consumer.session.timeout.ms";
const HEARTBEAT: &str = "consumer.heartbeat.interval.ms";
/// What servers allow by default (`group.min.session.timeout.ms` and `group.max.session.timeout.ms`).
const CLASSIC: RangeInclusive<Duration> = Duration::from_secs(6)..=Duration::from_secs(1800);
/// The client's name for it. A poll thread that is blocked for this long counts as dead, too.
const REBALANCE: &str = "max.poll.interval.ms";
/// Added to the release limit for what happens before and after the release, on a busy machine.
const MARGIN: Duration = Duration::from_secs(10);
/// What the client allows. Also keeps instants from overflowing.
pub(crate) const MAX_REBALANCE: Duration = Duration::from_secs(24 * 3600);
/// A member learns of a change with its next heartbeat.
const MAX_HEARTBEAT: Duration = Duration::from_secs(1);

/// Sets it for the classic protocol, unless the user has.
pub(crate) fn set_classic(config: &mut ClientConfig, session: Duration) {
    if config.get("session.timeout.ms").is_some() {
        return;
    }
    let session = session.clamp(*CLASSIC.start(), *CLASSIC.end());
    let mut set = |name: &str, value: Duration| {
        if config.get(name).is_none() {
            config.set(name, value.as_millis().to_string());
        }
    };
    set("session.timeout.ms", session);
    set("heartbeat.interval.ms", (session / 3).min(MAX_HEARTBEAT));
    // The client refuses a shorter one.
    set(REBALANCE, session.max(Duration::from_secs(300)));
}

/// Sets how long a member of a KIP-848 group may hold revoked partitions, unless the user has.
///
/// The group revokes once. If that response is lost, librdkafka 2.12 never learns of it: the member continues with all
/// its partitions, the others wait, and the group makes it rejoin only after this time, which is 5 minutes by default.
pub(crate) fn set_rebalance_limit(config: &mut ClientConfig, request: &JoinRequest) {
    if config.get(REBALANCE).is_none() {
        let limit = request.release_limit.saturating_add(MARGIN);
        config.set(REBALANCE, limit.min(MAX_REBALANCE).as_millis().to_string());
    }
}

/// Whether a KIP-848 group has the requested session timeout, or a shorter one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Agreed {
    Yes,
    /// No, with the reason.
    No(String),
}

/// Sets it for a KIP-848 group, where that is allowed.
///
/// # Errors
/// If no server responds.
pub(crate) async fn agree(
    settings: &Settings,
    group: &str,
    topic: &str,
    session: Duration,
) -> Result<Agreed> {
    let (config, limit) = (settings.admin(), settings.request_timeout());
    let (name, topic, runtime) = (group.to_owned(), topic.to_owned(), Handle::current());
    // Dropping the client blocks: it waits for a thread of its own.
    let asked = spawn_blocking(move || {
        let client = AdminClient::from_config(&config).map_err(|e| settings::broken(&e))?;
        let agreed =
            runtime.block_on(Admin { client: &client, group: &name, topic: &topic, limit }.agree(session));
        agreed.map_err(|e| error::rejected(error::code_of(&e), OP, ""))
    });
    match asked.await.unwrap_or_else(|e| Err(Error::not_applied(ErrorKind::Other, OP).with_source(e))) {
        Err(e) if matches!(e.kind(), ErrorKind::Timeout | ErrorKind::Unavailable) => {
            Err(error::no_answer(OP, settings).on(format_args!("group {group}")))
        }
        agreed => agreed,
    }
}

struct Admin<'a> {
    client: &'a AdminClient<DefaultClientContext>,
    group: &'a str,
    /// Any existing topic, to find a broker.
    topic: &'a str,
    limit: Duration,
}

/// What the group's settings are.
enum Found {
    /// It has settings of its own, which the client library can't show.
    Own,
    Inherited {
        session: Duration,
        heartbeat: Option<Duration>,
    },
    None(String),
}

impl Admin<'_> {
    async fn agree(&self, wanted: Duration) -> KafkaResult<Agreed> {
        let heartbeat = match self.look().await? {
            // Set by kafkaq, in another process or earlier; or by an operator, whose choice is respected.
            Found::Own => return Ok(Agreed::Yes),
            Found::None(why) => return Ok(Agreed::No(why)),
            Found::Inherited { session, .. } if session <= wanted => return Ok(Agreed::Yes),
            Found::Inherited { heartbeat, .. } => heartbeat,
        };
        let [session, beat] = [wanted, wanted / 3].map(|d| d.as_millis().to_string());
        let mut change = AlterConfig::new(ResourceSpecifier::Group(self.group)).set(SESSION, &session);
        if heartbeat.is_some_and(|heartbeat| heartbeat > wanted / 2) {
            change = change.set(HEARTBEAT, &beat);
        }
        // The client library doesn't report whether a server has refused it.
        self.client.alter_configs([&change], &self.options()).await?;
        Ok(match self.look().await? {
            Found::Own => Agreed::Yes,
            Found::Inherited { session, .. } if session <= wanted => Agreed::Yes,
            Found::Inherited { session, .. } => Agreed::No(format!(
                "the servers have refused `{SESSION}={}` for the group, which has {}",
                wanted.as_millis(),
                session.as_millis()
            )),
            Found::None(why) => Agreed::No(why),
        })
    }

    async fn look(&self) -> KafkaResult<Found> {
        let group = ResourceSpecifier::Group(self.group);
        let mut found = self.client.describe_configs([&group], &self.options()).await;
        // A single slow response should not decide on the protocol.
        if found.as_ref().is_err_and(is_away) {
            found = self.client.describe_configs([&group], &self.options()).await;
        }
        let found = match found {
            // It fails on the source of a setting that is the group's own.
            Err(KafkaError::AdminOpCreation(said)) if said.contains("GROUP_CONFIG") => return Ok(Found::Own),
            found => found,
        };
        match found {
            Ok(found) => Ok(inherited(found.iter().flatten())),
            // Servers that don't know the request may not respond.
            Err(e)
                if is_away(&e)
                    && self.client.inner().fetch_metadata(Some(self.topic), self.limit).is_err() =>
            {
                Err(e)
            }
            Err(e) => Ok(Found::None(format!("the servers don't return the group's settings: {e}"))),
        }
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new().request_timeout(Some(self.limit)).operation_timeout(Some(self.limit))
    }
}

fn is_away(e: &KafkaError) -> bool {
    matches!(error::kind(error::code_of(e)), ErrorKind::Timeout | ErrorKind::Unavailable)
}

fn inherited<'a>(found: impl Iterator<Item = &'a ConfigResource>) -> Found {
    let entries: Vec<_> = found.flat_map(|resource| &resource.entries).collect();
    let of = |name: &str| {
        let entry = entries.iter().find(|entry| entry.name == name)?;
        entry.value.as_deref()?.parse().ok().map(Duration::from_millis)
    };
    match of(SESSION) {
        Some(session) => Found::Inherited { session, heartbeat: of(HEARTBEAT) },
        None => Found::None("the servers don't return the group's session timeout".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_that_never_releases_revoked_partitions_is_soon_considered_dead() {
        let limit = |release: u64, set: Option<&str>| {
            let mut request = JoinRequest::new("g", Vec::new(), [0; 16]);
            request.release_limit = Duration::from_secs(release);
            let mut config = ClientConfig::new();
            set.map(|value| config.set(REBALANCE, value));
            set_rebalance_limit(&mut config, &request);
            config.get(REBALANCE).map(str::to_owned).unwrap()
        };
        assert_eq!(limit(5, None), "15000");
        assert_eq!(limit(u64::MAX, None), "86400000", "the client takes no more");
        assert_eq!(limit(5, Some("60000")), "60000", "the user's");
    }
}
