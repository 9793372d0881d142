//! Which queues go to which workers: loads and time in, moves out.
//!
//! As OVS's PMD auto load balance: nothing moves while no worker is overloaded, and nothing moves unless the loads would be spread
//! better by a threshold. It does less than that: as few queues as bring most of it, and a queue that was moved rests, longer each
//! time, so that what was measured wrong cannot make a queue go to and fro.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// Most queues that move at a time.
const MOVES: usize = 16;
/// Two workers whose loads differ by less are even: measuring is no more exact.
const EVEN: f64 = 0.1;
/// A single move is worth making when it brings so much of what there is to bring.
const WORTH: f64 = 0.01;
/// The rest of a queue after its first move, and the longest, in periods.
const REST: u32 = 2;
const LONGEST_REST: u32 = 64;

/// When queues move. Shares of 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Thresholds {
    /// A worker that is busy for so much of its time is overloaded.
    pub(crate) load: f64,
    /// By so much of their variance must loads be spread better.
    pub(crate) improvement: f64,
}

/// A queue in the last period.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct QueueLoad<K> {
    /// Names it.
    pub(crate) queue: K,
    /// The worker that has it.
    pub(crate) worker: usize,
    /// The share of the worker's time that it took.
    pub(crate) load: f64,
    /// The workers that it may go to; none if it is to stay.
    pub(crate) allowed: Vec<usize>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Move<K> {
    pub(crate) queue: K,
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// Remembers which queues were moved.
pub(crate) struct Balancer<K> {
    resting: HashMap<K, Rest>,
}

struct Rest {
    until: Duration,
    periods: u32,
}

impl<K> Default for Balancer<K> {
    fn default() -> Balancer<K> {
        Balancer { resting: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash> Balancer<K> {
    /// The moves for loads that were measured over the `period` before `now`; `workers` are the shares of their time that they were
    /// busy. Assumes that they are made.
    pub(crate) fn balance(
        &mut self,
        thresholds: Thresholds,
        workers: &[f64],
        queues: &[QueueLoad<K>],
        now: Duration,
        period: Duration,
    ) -> Vec<Move<K>> {
        // One that stayed for as long again as it had to has settled.
        self.resting.retain(|_, rest| now < rest.until + period * rest.periods);
        if workers.iter().all(|load| *load < thresholds.load) {
            return Vec::new();
        }
        let mut free = candidates(workers, queues);
        free.retain(|candidate| !self.rests(&candidate.queue.queue, now));
        let (moves, spread) = plan(workers, free);
        if spread > variance(workers) * (1.0 - thresholds.improvement) {
            return Vec::new();
        }
        for Move { queue, .. } in &moves {
            let periods = self.resting.get(queue).map_or(REST, |rest| LONGEST_REST.min(rest.periods * 2));
            self.resting.insert(queue.clone(), Rest { until: now + period * periods, periods });
        }
        moves
    }

    fn rests(&self, queue: &K, now: Duration) -> bool {
        self.resting.get(queue).is_some_and(|rest| now < rest.until)
    }
}

/// A queue that could move.
struct Candidate<'a, K> {
    queue: &'a QueueLoad<K>,
    /// What its worker would be rid of.
    load: f64,
}

/// All queues. What a worker did for none of them that could be named goes with them all the same: so a queue that has a worker for
/// itself is never better off elsewhere, however badly it was measured.
fn candidates<'a, K>(workers: &[f64], queues: &'a [QueueLoad<K>]) -> Vec<Candidate<'a, K>> {
    let mut named = vec![0.0; workers.len()];
    queues.iter().for_each(|queue| named[queue.worker] += queue.load);
    let loaded = queues.iter().filter(|queue| queue.load > 0.0);
    loaded.map(|queue| Candidate { queue, load: queue.load * workers[queue.worker] / named[queue.worker] }).collect()
}

/// The moves that spread the loads best, the best first, and the variance that they leave.
fn plan<K: Clone>(workers: &[f64], mut queues: Vec<Candidate<'_, K>>) -> (Vec<Move<K>>, f64) {
    let (mut loads, before) = (workers.to_vec(), variance(workers));
    let mut moves = Vec::new();
    while moves.len() < MOVES && range(&loads) >= EVEN {
        let Some((at, to, gain)) = best(&loads, &queues) else { break };
        if gain < before * WORTH {
            break;
        }
        let Candidate { queue, load } = queues.swap_remove(at);
        loads[queue.worker] -= load;
        loads[to] += load;
        moves.push(Move { queue: queue.queue.clone(), from: queue.worker, to });
    }
    (moves, variance(&loads))
}

/// The single move that lowers the variance most: which queue, where to, and by how much. Of equals, that of the smaller queue.
fn best<K>(loads: &[f64], queues: &[Candidate<'_, K>]) -> Option<(usize, usize, f64)> {
    let moves = queues.iter().enumerate().flat_map(|(at, Candidate { queue, load })| {
        let gain = move |to: usize| 2.0 * load * (loads[queue.worker] - loads[to] - load) / loads.len() as f64;
        queue.allowed.iter().filter(|to| **to != queue.worker).map(move |to| (at, *to, gain(*to)))
    });
    moves.max_by(|(a, _, one), (b, _, other)| {
        one.total_cmp(other).then_with(|| queues[*b].load.total_cmp(&queues[*a].load))
    })
}

fn variance(loads: &[f64]) -> f64 {
    let mean = loads.iter().sum::<f64>() / loads.len() as f64;
    loads.iter().map(|load| (load - mean).powi(2)).sum::<f64>() / loads.len() as f64
}

/// From the least loaded to the most loaded.
fn range(loads: &[f64]) -> f64 {
    let (least, most) =
        loads.iter().fold((f64::MAX, f64::MIN), |(least, most), load| (least.min(*load), most.max(*load)));
    most - least
}

#[cfg(test)]
mod tests;
