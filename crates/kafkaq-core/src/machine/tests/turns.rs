//! The order in which partitions take turns.

use super::*;

/// Returns the partitions from which the next `wanted` jobs are taken, in order, and how many from each.
fn turns(rig: &mut Rig, wanted: usize) -> Vec<(char, usize)> {
    rig.demand += wanted;
    rig.m.handle_demand(rig.now, rig.demand, 0);
    let mut swaps = vec![];
    rig.m.poll_swaps(1000, &mut swaps);
    let partition =
        |swap: &crate::Swap| swap.key.as_str().rsplit('/').next().unwrap().chars().next().unwrap();
    let taken: Vec<_> = swaps.iter().map(|(_, swap)| partition(swap)).collect();
    taken.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect()
}

#[test]
fn partitions_take_turns_that_are_as_long_as_jobs_are_wanted_at_once() {
    let mut rig = Rig::new(|s| s.prefetch = 0);
    let others = ["b", "c"].into_iter().zip(1..);
    rig.m.handle_event(
        rig.now,
        Event::Assigned(others.clone().map(|(_, index)| assignment("q", index)).collect()),
    );
    for (name, index) in others.chain([("a", 0)]) {
        let record = |n: i64| task_record(&format!("{name}{n}"), n, rig.now.wall);
        let batch = Batch::new((0..300).map(record).collect(), 300, None);
        rig.m.handle_event(rig.now, Event::Records(assignment("q", index), batch));
    }
    // One at a time, each from a different partition.
    let single: Vec<_> = (0..6).flat_map(|_| turns(&mut rig, 1)).collect();
    assert_eq!(single.iter().collect::<std::collections::HashSet<_>>().len(), 3, "{single:?}");
    assert!(single.windows(2).all(|two| two[0] != two[1]), "{single:?}");
    // Neighbors, nearly as many as are wanted: the last turn has begun with the last single one.
    let [a, b] = [turns(&mut rig, 50), turns(&mut rig, 50)];
    assert!(a[0].1 == 49 && b[0].1 == 49 && a[0].0 != b[0].0, "{a:?} {b:?}");
    // All get their turn.
    let many = turns(&mut rig, 400);
    assert_eq!(many.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [127, 128, 128, 17], "{many:?}");
}
