//! The record of every megaflow in the caches of workers, and the index of what each rests on.

use crate::pipeline::{Actions, Dependencies, Dependency};
use crate::{OffloadHandle, PortNo};
use clock::Cycles;
use engine::WorkerSet;
use flow::{DropReason, Key, Mask, Megaflow, Stats};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// A decision over a packet.
#[derive(Clone, Debug)]
pub struct Translation {
    /// The bits of the packet's key that were read.
    pub mask: Mask,
    /// The actions.
    pub actions: Actions,
    /// The state that the decision rests on.
    pub dependencies: Dependencies,
    /// The reason, where the packet is dropped.
    pub drop: Option<DropReason>,
}

/// A megaflow that workers have in their caches.
#[derive(Debug)]
pub(crate) struct Record {
    /// The key of the packet that the flow was made for, with all its fields: revalidation decides over it again.
    pub(crate) packet: Box<Key>,
    pub(crate) port: PortNo,
    pub(crate) translation: Translation,
    /// The workers that have the flow in their caches.
    pub(crate) workers: WorkerSet,
    /// The statistics of all workers and of hardware, as of the last sweep.
    pub(crate) stats: Stats,
    /// When the flow was last installed.
    pub(crate) installed: Cycles,
    /// The state of the flow in hardware, once it was offered.
    pub(crate) offload: Option<Arc<OffloadHandle>>,
    /// Whether the workers know the mark of the flow.
    pub(crate) marked: bool,
}

impl Record {
    /// The key of the megaflow: the packet's, masked.
    pub(crate) fn key(&self) -> Key {
        self.packet.masked(&self.translation.mask)
    }

    pub(crate) fn megaflow(&self, ufid: u128) -> Megaflow {
        let Translation { mask, actions, .. } = &self.translation;
        Megaflow { ufid, stats: self.stats, ..Megaflow::new(self.key(), *mask, actions.clone()) }
    }

    /// Whether some packet would match both this flow and the given one.
    pub(crate) fn overlaps(&self, key: &Key, mask: &Mask) -> bool {
        self.packet.matches(key, &mask.intersection(&self.translation.mask))
    }
}

/// All records, by ufid.
#[derive(Debug, Default)]
pub(crate) struct Megaflows {
    records: HashMap<u128, Record>,
    by_dependency: HashMap<Dependency, HashSet<u128>>,
    by_port: HashMap<PortNo, usize>,
    /// Two keyed hashes make a ufid: a sender who chooses packets cannot choose two flows of one ufid.
    hashers: [RandomState; 2],
}

impl Megaflows {
    /// The ufid of a flow.
    pub(crate) fn ufid(&self, key: &Key, mask: &Mask) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| hasher.hash_one((key, mask)));
        (u128::from(high) << 64 | u128::from(low)).max(1)
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn count_of_port(&self, port: PortNo) -> usize {
        self.by_port.get(&port).copied().unwrap_or(0)
    }

    pub(crate) fn get_mut(&mut self, ufid: u128) -> Option<&mut Record> {
        self.records.get_mut(&ufid)
    }

    pub(crate) fn get(&self, ufid: u128) -> Option<&Record> {
        self.records.get(&ufid)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u128, &Record)> {
        self.records.iter().map(|(ufid, record)| (*ufid, record))
    }

    pub(crate) fn insert(&mut self, ufid: u128, record: Record) {
        *self.by_port.entry(record.port).or_default() += 1;
        for dependency in indexed(ufid, &record.translation) {
            self.by_dependency.entry(*dependency).or_default().insert(ufid);
        }
        self.records.insert(ufid, record);
    }

    pub(crate) fn remove(&mut self, ufid: u128) -> Option<Record> {
        let record = self.records.remove(&ufid)?;
        if let Some(count) = self.by_port.get_mut(&record.port) {
            *count -= 1;
            if *count == 0 {
                self.by_port.remove(&record.port);
            }
        }
        for dependency in indexed(ufid, &record.translation) {
            if let Some(flows) = self.by_dependency.get_mut(dependency) {
                flows.remove(&ufid);
                if flows.is_empty() {
                    self.by_dependency.remove(dependency);
                }
            }
        }
        Some(record)
    }

    /// The flows that rest on `dependency`.
    pub(crate) fn depending_on(&self, dependency: &Dependency) -> Vec<u128> {
        self.by_dependency.get(dependency).into_iter().flatten().copied().collect()
    }

    /// The flows for which `wanted` holds.
    pub(crate) fn matching(&self, wanted: impl Fn(&Record) -> bool) -> Vec<u128> {
        self.iter().filter(|(_, record)| wanted(record)).map(|(ufid, _)| ufid).collect()
    }
}

/// The dependencies by which a flow is found; a static flow is found by its own ufid.
fn indexed(ufid: u128, translation: &Translation) -> impl Iterator<Item = &Dependency> {
    let own = Dependency::StaticFlow(ufid);
    translation.dependencies.as_slice().iter().filter(move |dependency| **dependency != own)
}
