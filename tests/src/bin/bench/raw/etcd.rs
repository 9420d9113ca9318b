//! `etcd-client`: one connection for all callers. A batch is sent as several concurrent requests, each a transaction
//! with a nested one per key that compares, and puts or reads.
//!
//! All keys share one lease, which is granted beforehand; what kafkaq's store spends on leases counts as its overhead.

use super::{Swaps, all_done, full};
use crate::{Outcome, stores::TTL};
use etcd_client::{Client, Compare, CompareOp, KvClient, PutOptions, Txn, TxnOp, TxnOpResponse};
use futures_util::future::try_join_all;
use kafkaq::backend::Swap;

/// The same as in kafkaq's store: of 128 operations, one is the outer transaction.
const KEYS_A_REQUEST: usize = 125;

pub(crate) struct Etcd {
    kv: KvClient,
    lease: i64,
}

impl Etcd {
    pub(crate) async fn connect(endpoint: &str) -> Outcome<Etcd> {
        let mut client = Client::connect([endpoint], None).await?;
        let lease = client.lease_grant(TTL.as_secs() as i64, None).await?.id();
        Ok(Etcd { kv: client.kv_client(), lease })
    }

    fn transaction(&self, swap: &Swap) -> TxnOp {
        let key = full(&swap.key);
        let is_expected = match &swap.expect {
            Some(value) => Compare::value(key.as_str(), CompareOp::Equal, &value[..]),
            None => Compare::version(key.as_str(), CompareOp::Equal, 0),
        };
        let options = PutOptions::new().with_lease(self.lease);
        let put = TxnOp::put(key.as_str(), swap.new.as_deref().unwrap_or_default(), Some(options));
        TxnOp::txn(Txn::new().when([is_expected]).and_then([put]).or_else([TxnOp::get(key, None)]))
    }
}

impl Swaps for Etcd {
    type Batch = Vec<Swap>;

    async fn prepare(&self, swaps: Vec<Swap>) -> Outcome<Vec<Swap>> {
        Ok(swaps)
    }

    async fn swap(&self, _caller: usize, batch: &Vec<Swap>) -> Outcome<()> {
        let requests = batch.chunks(KEYS_A_REQUEST).map(|chunk| {
            let each: Vec<_> = chunk.iter().map(|swap| self.transaction(swap)).collect();
            let mut kv = self.kv.clone();
            async move {
                let answer = kv.txn(Txn::new().and_then(each)).await?;
                let done = |op| matches!(op, TxnOpResponse::Txn(answer) if answer.succeeded());
                all_done(answer.op_responses().into_iter().map(done))
            }
        });
        try_join_all(requests).await.map(drop)
    }
}
