//! Encodes swaps and reads as etcd transactions, and decodes responses into outcomes. No I/O.
//!
//! A batch is one unconditional transaction that contains one transaction per key: one request, one entry of the Raft
//! log, one sync to disk. The outer one always succeeds; each inner one compares and puts, or reads.

use crate::failure;
use bytes::Bytes;
use etcd_client::{Compare, CompareOp, GetResponse, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use kafkaq_core::{Key, Operation, Result, Swap, Swapped};

/// etcd allows 128 operations per transaction, of which the inner ones need one: 127. A thousand swaps are eight
/// transactions of 125.
pub(crate) const MAX_OPS: usize = 125;

/// Well below etcd's limit of 1.5 MiB. A single swap may be larger: the server decides whether it fits.
const MAX_BYTES: usize = 1024 * 1024;

/// What protobuf adds to a swap, rounded up generously.
const FRAMING: usize = 96;

/// Splits a batch so that each part fits into one request.
pub(crate) fn chunks<'a>(prefix: &str, mut swaps: &'a [Swap]) -> Vec<&'a [Swap]> {
    let mut chunks = Vec::with_capacity(swaps.len().div_ceil(MAX_OPS));
    while !swaps.is_empty() {
        let mut bytes = 0;
        let fitting = swaps.iter().take(MAX_OPS).take_while(|swap| {
            bytes += size(prefix, swap);
            bytes <= MAX_BYTES
        });
        let (chunk, rest) = swaps.split_at(fitting.count().max(1));
        chunks.push(chunk);
        swaps = rest;
    }
    chunks
}

/// The key is in the comparison and in both branches.
fn size(prefix: &str, swap: &Swap) -> usize {
    let bytes = |b: &Option<Bytes>| b.as_ref().map_or(0, Bytes::len);
    3 * (prefix.len() + swap.key.as_str().len()) + bytes(&swap.expect) + bytes(&swap.new) + FRAMING
}

fn full(prefix: &str, key: &Key) -> Vec<u8> {
    [prefix.as_bytes(), key.as_str().as_bytes()].concat()
}

/// The request for these swaps and their leases; lease 0 is none.
pub(crate) fn swaps(prefix: &str, swaps: &[Swap], leases: &[i64]) -> Txn {
    let each = swaps.iter().zip(leases).map(|(swap, &lease)| TxnOp::txn(one_swap(prefix, swap, lease)));
    Txn::new().and_then(each.collect::<Vec<_>>())
}

fn one_swap(prefix: &str, swap: &Swap, lease: i64) -> Txn {
    let key = full(prefix, &swap.key);
    let is_expected = match &swap.expect {
        // A missing key doesn't equal any value, not even the empty one.
        Some(value) => Compare::value(key.clone(), CompareOp::Equal, &value[..]),
        None => Compare::version(key.clone(), CompareOp::Equal, 0),
    };
    let change = match (&swap.new, &swap.expect) {
        (Some(new), _) => Some(TxnOp::put(key.clone(), &new[..], Some(PutOptions::new().with_lease(lease)))),
        (None, Some(_)) => Some(TxnOp::delete(key.clone(), None)),
        (None, None) => None,
    };
    Txn::new()
        .when([is_expected])
        .and_then(change.into_iter().collect::<Vec<_>>())
        .or_else([TxnOp::get(key, None)])
}

/// The outcomes of [`swaps`].
pub(crate) fn swapped(count: usize, answer: &TxnResponse) -> Vec<Result<Swapped>> {
    let outcomes = answer.op_responses().into_iter().map(|op| match op {
        TxnOpResponse::Txn(answer) if answer.succeeded() => Ok(Swapped::Done),
        TxnOpResponse::Txn(answer) => match answer.op_responses().pop() {
            Some(TxnOpResponse::Get(current)) => Ok(Swapped::Conflict(value(current))),
            _ => Err(failure::unexpected_response(failure::SWAP)),
        },
        _ => Err(failure::unexpected_response(failure::SWAP)),
    });
    complete(outcomes, count, failure::SWAP)
}

/// The request for the values of these keys.
pub(crate) fn reads(prefix: &str, keys: &[Key]) -> Txn {
    Txn::new().and_then(keys.iter().map(|key| TxnOp::get(full(prefix, key), None)).collect::<Vec<_>>())
}

/// The outcomes of [`reads`].
pub(crate) fn read(count: usize, answer: &TxnResponse) -> Vec<Result<Option<Bytes>>> {
    let outcomes = answer.op_responses().into_iter().map(|op| match op {
        TxnOpResponse::Get(current) => Ok(value(current)),
        _ => Err(failure::unexpected_response(failure::READ)),
    });
    complete(outcomes, count, failure::READ)
}

fn value(mut answer: GetResponse) -> Option<Bytes> {
    answer.take_kvs().pop().map(|kv| kv.into_key_value().1.into())
}

/// Returns exactly as many outcomes as requested, whatever the response contains.
fn complete<T>(
    outcomes: impl Iterator<Item = Result<T>>,
    count: usize,
    operation: Operation,
) -> Vec<Result<T>> {
    outcomes
        .chain(std::iter::repeat_with(|| Err(failure::unexpected_response(operation))))
        .take(count)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafkaq_core::{Effect, Partition};

    fn swap(n: usize, value: usize) -> Swap {
        let key = Key::partition("g", &Partition::new("t", i32::try_from(n).unwrap()));
        Swap::new(key, None, Some(Bytes::from(vec![0; value])), None)
    }

    fn lengths(swaps: &[Swap]) -> Vec<usize> {
        chunks("kafkaq/", swaps).into_iter().map(<[Swap]>::len).collect()
    }

    #[test]
    fn a_batch_is_cut_by_number_and_by_size_and_nothing_is_lost() {
        let small: Vec<_> = (0..1000).map(|n| swap(n, 100)).collect();
        assert_eq!(lengths(&small), [125; 8]);
        let large: Vec<_> = (0..20).map(|n| swap(n, 100 * 1024)).collect();
        assert_eq!(lengths(&large), [10, 10]);
        assert_eq!(lengths(&[swap(0, 1), swap(1, 5 * MAX_BYTES), swap(2, 1)]), [1, 1, 1]);
        assert_eq!(lengths(&[]), [0; 0]);
    }

    #[test]
    fn missing_answers_are_unknown_and_surplus_ones_are_ignored() {
        let outcomes = |given: usize| complete((0..given).map(Ok), 2, failure::SWAP);
        let short = outcomes(1);
        assert!(short.len() == 2 && short[0].is_ok());
        assert_eq!(short[1].as_ref().unwrap_err().effect(), Effect::Unknown);
        assert!(outcomes(3).len() == 2 && outcomes(3).iter().all(Result::is_ok));
    }
}
