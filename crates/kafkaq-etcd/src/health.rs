//! Checks the connected member for what an operator must know.

use crate::link::{self, Link};
use etcd_client::{Error, GetOptions, StatusResponse};
use kafkaq_core::{
    ErrorKind, Result,
    connection::{Call, older_than},
};
use tonic::Code;

const OLDEST_TESTED: (u32, u32) = (3, 4);

/// The default of `--quota-backend-bytes`.
const DEFAULT_QUOTA: i64 = 2 * 1024 * 1024 * 1024;

/// A history this long that was never compacted won't be compacted soon.
const LONG_HISTORY: i64 = 10_000;

/// # Errors
/// If etcd can't be reached or refuses the credentials.
pub(crate) async fn warnings(call: Call, link: &Link) -> Result<Vec<String>> {
    let probe = link.connect().probe();
    let uncompacted = link::send(link, call, |to| async move {
        let first = GetOptions::new().with_count_only().with_revision(1);
        match to.kv.clone().get(probe, Some(first)).await {
            Ok(answer) => Ok(answer.header().map_or(0, etcd_client::ResponseHeader::revision)),
            // The first revision is gone, so history is compacted.
            Err(Error::GRpcStatus(status)) if status.code() == Code::OutOfRange => Ok(0),
            Err(e) => Err(e),
        }
    });
    let uncompacted = uncompacted.await?;
    let status = link::send(link, call, |to| async move { to.maintenance.clone().status().await }).await;
    let status = match status {
        // As of 3.6 only root may query it.
        Err(e) if e.kind() == ErrorKind::Denied => {
            let unasked =
                "This user may not query the status of etcd, so neither alarms nor space could be checked";
            return Ok(history(uncompacted).into_iter().chain([unasked.to_owned()]).collect());
        }
        status => status?,
    };
    Ok(history(uncompacted).into_iter().chain(Facts::of(&status).warnings()).collect())
}

/// Warns of this many revisions that were never compacted.
fn history(uncompacted: i64) -> Option<String> {
    (uncompacted > LONG_HISTORY).then(|| {
        format!(
            "etcd keeps all {uncompacted} revisions since its beginning, so its database grows with every swap: \
             start it with --auto-compaction-retention"
        )
    })
}

struct Facts<'a> {
    version: &'a str,
    is_learner: bool,
    /// The size of the database, in bytes.
    size: i64,
    /// Its limit, in bytes; 0 if this etcd doesn't report it.
    quota: i64,
    /// Alarms and other problems, as etcd reports them.
    trouble: &'a [String],
}

impl<'a> Facts<'a> {
    fn of(status: &'a StatusResponse) -> Self {
        Facts {
            version: status.version(),
            is_learner: status.is_learner(),
            size: status.db_size(),
            quota: status.db_size_quota(),
            trouble: status.errors(),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let trouble = self.trouble.iter().map(|words| trouble(words));
        let checks = [self.space(), self.learner(), older_than("etcd", self.version, OLDEST_TESTED)];
        trouble.chain(checks.into_iter().flatten()).collect()
    }

    fn space(&self) -> Option<String> {
        let (quota, of_what) = match self.quota {
            0 => (
                DEFAULT_QUOTA,
                "etcd's default limit of 2 GiB; ignore this if --quota-backend-bytes is higher",
            ),
            quota => (quota, "its limit, --quota-backend-bytes; beyond that, etcd refuses to write"),
        };
        (self.size > quota / 5 * 4).then(|| {
            let mib = self.size / (1024 * 1024);
            format!("The database of etcd has {mib} MiB, more than four fifths of {of_what}")
        })
    }

    fn learner(&self) -> Option<String> {
        self.is_learner.then(|| {
            "This member of etcd is a learner and serves no swaps: give the address of a voting member".into()
        })
    }
}

fn trouble(words: &str) -> String {
    if words.contains("NOSPACE") {
        return "etcd is full (alarm NOSPACE) and refuses to write: compact and defragment it, or raise \
                --quota-backend-bytes, then `etcdctl alarm disarm`"
            .into();
    }
    format!("etcd reports trouble: {words}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [&str; 0] = [];

    fn sound() -> Facts<'static> {
        Facts { version: "3.5.9", is_learner: false, size: 1 << 20, quota: 0, trouble: &[] }
    }

    #[test]
    fn healthy_server_causes_no_warning() {
        assert_eq!(sound().warnings(), NONE);
        assert_eq!(Facts { version: "3.10.0", ..sound() }.warnings(), NONE);
        assert_eq!(Facts { size: 3 << 30, quota: 8 << 30, ..sound() }.warnings(), NONE);
    }

    #[test]
    fn only_a_long_history_causes_a_warning() {
        assert_eq!(history(10_000), None);
        assert!(history(10_001).unwrap().contains("--auto-compaction-retention"));
    }

    #[test]
    fn each_problem_has_its_warning() {
        let alarm = ["memberID:1 alarm:NOSPACE ".to_owned()];
        let no_leader = ["etcdserver: no leader".to_owned()];
        for (facts, word) in [
            (Facts { version: "3.3.27", ..sound() }, "older than 3.4"),
            (Facts { is_learner: true, ..sound() }, "learner"),
            (Facts { size: 1800 << 20, ..sound() }, "1800 MiB"),
            (Facts { size: 7 << 30, quota: 8 << 30, ..sound() }, "7168 MiB"),
            (Facts { trouble: &alarm, ..sound() }, "alarm disarm"),
            (Facts { trouble: &no_leader, ..sound() }, "no leader"),
        ] {
            let found = facts.warnings();
            assert!(found.len() == 1 && found[0].contains(word), "{word}: {found:?}");
        }
    }
}
