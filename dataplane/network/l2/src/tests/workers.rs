//! Ports whose queue one worker has, and packets that come in by another.

use super::{BROADCAST, Net, any, frame, mac};
use clock::Cycles;
use engine::{Source, WorkerHandle};
use packet::Burst;
use port::{MemoryPeer, MemoryPort, Port, PortError, PortInfo, PortShard, PortStats};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A port with one queue each way, on the worker named by `owner`. Shards are opened in the order of the workers.
struct OneQueue {
    port: MemoryPort,
    owner: Arc<AtomicUsize>,
    opened: AtomicUsize,
}

struct Shard {
    inner: Box<dyn PortShard>,
    worker: usize,
    owner: Arc<AtomicUsize>,
}

impl OneQueue {
    fn new(owner: usize) -> (OneQueue, Arc<MemoryPeer>, Arc<AtomicUsize>) {
        let ((port, wire), owner) = (MemoryPort::new(256), Arc::new(AtomicUsize::new(owner)));
        (OneQueue { port, owner: owner.clone(), opened: AtomicUsize::new(0) }, wire, owner)
    }
}

impl Port for OneQueue {
    fn open_shard(&self, worker: &WorkerHandle) -> Result<Box<dyn PortShard>, PortError> {
        let inner = self.port.open_shard(worker)?;
        let worker = self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Shard { inner, worker, owner: self.owner.clone() }))
    }

    fn info(&self) -> PortInfo {
        self.port.info()
    }

    fn stats(&self) -> Vec<Arc<PortStats>> {
        self.port.stats()
    }
}

impl PortShard for Shard {
    fn rx(&mut self, burst: &mut Burst) -> usize {
        if self.can_tx() { self.inner.rx(burst) } else { 0 }
    }

    fn tx(&mut self, burst: &mut Burst) {
        if self.can_tx() { self.inner.tx(burst) } else { burst.clear() }
    }

    fn can_tx(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == self.worker
    }
}

fn net(owners: &[usize]) -> (Net, Vec<Arc<AtomicUsize>>) {
    let mut net = Net::with_workers(2, &[]);
    let add = |owner: &usize| {
        let (port, wire, owner) = OneQueue::new(*owner);
        net.add(Arc::new(port), any(), wire);
        owner
    };
    let owners = owners.iter().map(add).collect();
    (net, owners)
}

#[test]
fn packets_are_handed_to_the_worker_that_has_the_queue() {
    let (mut net, _) = net(&[0, 1, 1]);
    assert_eq!(net.reaches(1, &frame(mac(1), BROADCAST, None)), [2, 3]);
    assert_eq!(net.reaches(2, &frame(mac(2), mac(1), None)), [1]);
    assert_eq!(net.reaches(1, &frame(mac(1), mac(2), None)), [2]);
    let numbered = |n: u8| {
        let mut frame = frame(mac(1), mac(2), None);
        frame[20] = n;
        frame
    };
    (0..200).for_each(|n| net.send(1, &numbered(n)));
    net.settle();
    assert!(net.received(2).iter().map(|frame| frame[20]).eq(0..200), "in order");
    assert_eq!(net.pool.free_count(), net.pool.capacity());
}

#[test]
fn a_port_queue_moves_between_workers_without_loss() {
    let (mut net, owners) = net(&[0, 0]);
    net.reaches(2, &frame(mac(2), mac(1), None));
    for owner in [1, 0, 1, 1, 0] {
        assert_eq!(net.reaches(1, &frame(mac(1), mac(2), None)), [2]);
        owners[1].store(owner, Ordering::Relaxed);
        net.settle();
        assert_eq!(net.reaches(2, &frame(mac(2), mac(1), None)), [1]);
    }
    owners[1].store(9, Ordering::Relaxed);
    net.settle();
    assert_eq!(net.reaches(1, &frame(mac(1), mac(2), None)), [0; 0], "no worker has it: the port drops");
    assert_eq!(net.pool.free_count(), net.pool.capacity());
}

#[test]
fn a_removed_port_frees_handed_over_packets() {
    let (mut net, _) = net(&[0, 1]);
    net.reaches(2, &frame(mac(2), mac(1), None));
    net.reaches(1, &frame(mac(1), mac(2), None));
    (0..100).for_each(|_| net.send(1, &frame(mac(1), mac(2), None)));
    // The first worker hands over, the second has not looked yet.
    net.workers[0].poll(Cycles::now());
    net.remove_port("2");
    net.settle();
    net.received(2);
    assert_eq!(net.pool.free_count(), net.pool.capacity());
}
