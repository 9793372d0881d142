//! What each queue and each worker had to do, from two readings of counters that are there anyway.
//!
//! A port's cycles on a worker are counted once a burst; its queues there share them by their packets. What else the switch did
//! there (sending, packets that were handed over) all queues share by packets. A disk's cycles on a worker are shared evenly by the
//! queues that it has there.

use super::{QueueId, QueueLoad, Scheduler};
use ::port::QueueReport;
use clock::Cycles;
use engine::WorkerReport;
use l2::PortLoad;
use std::collections::HashMap;

/// Counters at one moment.
pub(super) struct Sample {
    pub(super) at: Cycles,
    pub(super) workers: Vec<WorkerSample>,
    pub(super) ports: Vec<PortSample>,
    pub(super) disks: Vec<DiskSample>,
}

/// Cycles of a worker.
#[derive(Clone, Copy, Default)]
pub(super) struct WorkerSample {
    pub(super) busy: u64,
    /// Of those, in the switch.
    pub(super) switch: u64,
}

pub(super) struct PortSample {
    pub(super) name: String,
    /// By worker.
    pub(super) costs: Vec<PortLoad>,
    pub(super) queues: Vec<QueueReport>,
}

pub(super) struct DiskSample {
    pub(super) name: String,
    /// Busy cycles by worker.
    pub(super) busy: Vec<u64>,
    /// The worker of each queue that is started.
    pub(super) queues: Vec<Option<usize>>,
    /// The workers that may serve it.
    pub(super) workers: Vec<usize>,
}

impl Sample {
    pub(super) fn take(scheduler: &Scheduler) -> Sample {
        let switch = scheduler.network.switching.get();
        let reports: Vec<WorkerReport> = scheduler.workers.reports();
        let sources = |report: &WorkerReport| switch.as_ref().and_then(|switch| switch.source(report.id));
        let worker = |report: &WorkerReport| {
            let id = sources(report);
            let source = report.sources.iter().find(|source| Some(source.id) == id);
            WorkerSample { busy: report.busy, switch: source.map_or(0, |source| source.busy) }
        };
        let ports = switch.iter().flat_map(|switch| switch.ports()).map(|report| PortSample {
            queues: report.port.rx_queues(),
            name: report.name,
            costs: report.loads,
        });
        let disks = scheduler.storage.controllers.list().into_iter().map(|served| {
            let busy = |report: &WorkerReport| {
                let id = sources(report);
                let own = report.sources.iter().filter(|source| source.name == served.name && Some(source.id) != id);
                own.map(|source| source.busy).sum()
            };
            let allowed = reports.iter().filter(|report| served.device.cpus.contains(&report.cpu));
            let queues = served.device.controller.report().queues;
            DiskSample {
                name: served.name.clone(),
                busy: reports.iter().map(busy).collect(),
                queues: queues.iter().map(|queue| queue.started.then_some(queue.worker.id())).collect(),
                workers: allowed.map(|report| report.id).collect(),
            }
        });
        Sample {
            at: Cycles::now(),
            workers: reports.iter().map(worker).collect(),
            ports: ports.collect(),
            disks: disks.collect(),
        }
    }
}

/// What a period cost, as shares of a worker's time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Loads {
    pub(crate) workers: Vec<f64>,
    /// Only those that stayed where they were. A queue that may go nowhere is pinned.
    pub(crate) queues: Vec<QueueLoad<QueueId>>,
}

/// The loads between two samples.
pub(super) fn between(before: &Sample, now: &Sample, is_pinned: impl Fn(&QueueId) -> bool) -> Loads {
    let span = now.at.since(before.at).0.max(1) as f64;
    let spent = |before: u64, now: u64| now.saturating_sub(before) as f64 / span;
    let old = |worker: usize| before.workers.get(worker).copied().unwrap_or_default();
    let workers: Vec<f64> =
        now.workers.iter().enumerate().map(|(id, worker)| spent(old(id).busy, worker.busy).min(1.0)).collect();
    let switch: Vec<f64> =
        now.workers.iter().enumerate().map(|(id, worker)| spent(old(id).switch, worker.switch)).collect();

    let mut parts = Parts { rest: switch, weights: vec![0.0; workers.len()], shares: Vec::new() };
    let earlier: HashMap<&str, &PortSample> = before.ports.iter().map(|port| (port.name.as_str(), port)).collect();
    for port in &now.ports {
        if let Some(earlier) = earlier.get(port.name.as_str()) {
            parts.add(earlier, port, &spent);
        }
    }
    let everywhere: Vec<usize> = (0..workers.len()).collect();
    let allowed = |queue: &QueueId, workers: &[usize]| if is_pinned(queue) { Vec::new() } else { workers.to_vec() };
    let mut queues: Vec<QueueLoad<QueueId>> = parts
        .loads()
        .map(|(queue, worker, load)| {
            let allowed = allowed(&queue, &everywhere);
            QueueLoad { queue, worker, load, allowed }
        })
        .collect();
    let earlier: HashMap<&str, &DiskSample> = before.disks.iter().map(|disk| (disk.name.as_str(), disk)).collect();
    for disk in &now.disks {
        let Some(earlier) = earlier.get(disk.name.as_str()) else { continue };
        for (index, worker) in stayed(&earlier.queues, &disk.queues) {
            let sharing = disk.queues.iter().filter(|place| **place == Some(worker)).count() as f64;
            let load = spent(earlier.busy[worker], disk.busy[worker]) / sharing;
            let queue = QueueId::controller(&disk.name, index as u16);
            let allowed = allowed(&queue, &disk.workers);
            queues.push(QueueLoad { queue, worker, load, allowed });
        }
    }
    Loads { workers, queues }
}

/// The queues that have the same worker as before.
fn stayed<'a>(before: &'a [Option<usize>], now: &'a [Option<usize>]) -> impl Iterator<Item = (usize, usize)> + 'a {
    let pairs = before.iter().zip(now).enumerate();
    pairs.filter_map(|(index, (before, now))| now.filter(|_| before == now).map(|worker| (index, worker)))
}

/// The switch's time, shared by queues of ports.
struct Parts {
    /// What no port has, by worker.
    rest: Vec<f64>,
    weights: Vec<f64>,
    shares: Vec<Share>,
}

struct Share {
    queue: QueueId,
    worker: usize,
    /// The queue's share of its port's time.
    load: f64,
    /// The queue's share of the rest.
    weight: f64,
}

impl Parts {
    fn add(&mut self, before: &PortSample, now: &PortSample, spent: &impl Fn(u64, u64) -> f64) {
        let places = |port: &PortSample| port.queues.iter().map(|queue| queue.worker).collect::<Vec<_>>();
        let (old, new) = (places(before), places(now));
        let packets = |index: usize| now.queues[index].packets.saturating_sub(before.queues[index].packets) as f64;
        for (worker, (cost, earlier)) in now.costs.iter().zip(&before.costs).enumerate() {
            let own = spent(earlier.cycles, cost.cycles);
            self.rest[worker] = (self.rest[worker] - own).max(0.0);
            let here: Vec<usize> = stayed(&old, &new).filter(|(_, at)| *at == worker).map(|(index, _)| index).collect();
            let received: f64 = here.iter().map(|index| packets(*index)).sum();
            let handed = cost.handed.saturating_sub(earlier.handed) as f64 / here.len().max(1) as f64;
            for index in here {
                let (load, weight) = (own * packets(index) / received.max(1.0), packets(index) + handed);
                self.weights[worker] += weight;
                self.shares.push(Share { queue: QueueId::port(&now.name, index as u16), worker, load, weight });
            }
        }
    }

    fn loads(self) -> impl Iterator<Item = (QueueId, usize, f64)> {
        let Parts { rest, weights, shares } = self;
        shares.into_iter().map(move |Share { queue, worker, load, weight }| {
            let rest = rest[worker] * weight / weights[worker].max(1.0);
            (queue, worker, load + rest)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 1_000_000;

    fn port(name: &str, costs: &[(u64, u64)], queues: &[(usize, u64)]) -> PortSample {
        PortSample {
            name: name.to_owned(),
            costs: costs.iter().map(|&(cycles, handed)| PortLoad { cycles, handed }).collect(),
            queues: queues.iter().map(|&(at, packets)| QueueReport { worker: Some(at), packets }).collect(),
        }
    }

    fn sample(at: u64, workers: &[(u64, u64)], ports: Vec<PortSample>, disks: Vec<DiskSample>) -> Sample {
        let workers = workers.iter().map(|&(busy, switch)| WorkerSample { busy, switch }).collect();
        Sample { at: Cycles(at), workers, ports, disks }
    }

    fn rounded(loads: &Loads) -> Vec<(String, u16, usize, u32)> {
        let percent = |load: f64| (load * 100.0).round() as u32;
        let queue =
            |q: &QueueLoad<QueueId>| (q.queue.device.name().to_owned(), q.queue.queue, q.worker, percent(q.load));
        loads.queues.iter().map(queue).collect()
    }

    #[test]
    fn switch_time_is_shared_by_ports_and_their_queues() {
        let before = sample(
            0,
            &[(0, 0), (0, 0)],
            vec![
                port("a", &[(0, 0), (0, 0)], &[(0, 0), (0, 0)]),
                port("b", &[(0, 0), (0, 0)], &[(1, 0)]),
                port("m", &[(0, 0), (0, 0)], &[(1, 0)]),
            ],
            vec![],
        );
        // Worker 0: a spends 40 % on 3000 and 1000 packets; of 80 % in the switch 40 % are left. Worker 1: b is handed 500.
        let now = sample(
            HZ,
            &[(HZ * 9 / 10, HZ * 8 / 10), (HZ / 2, HZ / 10)],
            vec![
                port("a", &[(HZ * 4 / 10, 0), (0, 0)], &[(0, 3000), (0, 1000)]),
                port("b", &[(0, 0), (0, 500)], &[(1, 0)]),
                port("m", &[(0, 0), (0, 0)], &[(0, 50)]),
                port("new", &[(HZ, 0), (HZ, 0)], &[(0, 50)]),
            ],
            vec![],
        );
        let loads = between(&before, &now, |queue| queue.queue == 1);
        assert_eq!(loads.workers, [0.9, 0.5]);
        let expected = [("a", 0, 0, 60), ("a", 1, 0, 20), ("b", 0, 1, 10)];
        assert_eq!(rounded(&loads), expected.map(|(name, queue, at, load)| (name.to_owned(), queue, at, load)));
        assert_eq!(loads.queues.iter().map(|q| q.allowed.len()).collect::<Vec<_>>(), [2, 0, 2]);
    }

    #[test]
    fn queues_of_a_disk_share_evenly() {
        let disk = |busy: [u64; 2], queues: &[Option<usize>]| DiskSample {
            name: "d".to_owned(),
            busy: busy.to_vec(),
            queues: queues.to_vec(),
            workers: vec![1],
        };
        let before = sample(0, &[(0, 0); 2], vec![], vec![disk([100, 0], &[Some(0), Some(0), Some(1), None])]);
        let now = disk([HZ * 6 / 10 + 100, HZ / 10], &[Some(0), Some(0), Some(0), None]);
        let now = sample(HZ, &[(HZ, 0), (HZ, 0)], vec![], vec![now]);
        let loads = between(&before, &now, |_| false);
        let expected = [("d", 0, 0, 20), ("d", 1, 0, 20)];
        assert_eq!(rounded(&loads), expected.map(|(name, queue, at, load)| (name.to_owned(), queue, at, load)));
        assert!(loads.queues.iter().all(|queue| queue.allowed == [1]));
    }

    #[test]
    fn restarted_counters_are_no_load() {
        let before = sample(HZ, &[(HZ, HZ)], vec![port("a", &[(HZ, 9)], &[(0, 999)])], vec![]);
        let now = sample(2 * HZ, &[(HZ, HZ)], vec![port("a", &[(0, 0)], &[(0, 0), (0, 0)])], vec![]);
        assert_eq!(rounded(&between(&before, &now, |_| false)), [("a".to_owned(), 0, 0, 0)]);
    }
}
