//! The control side's record of what is in the workers' caches, and of what each flow was decided by.

use crate::mac_table::Station;
use crate::{BridgeId, HardwareShare, PortNo};
use clock::Cycles;
use engine::WorkerSet;
use flow::{Action, DropReason, Key, Mask, Megaflow, Stats};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// What was decided for a packet, and by what.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Translation {
    /// What was looked at.
    pub(crate) mask: Mask,
    pub(crate) actions: Arc<[Action]>,
    pub(crate) basis: Basis,
}

/// What a decision rests on: when it changes, the flow is looked at again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Basis {
    /// A flow of an operator decided.
    pub(crate) operator: bool,
    pub(crate) bridge: Option<BridgeId>,
    /// It was learned behind the port.
    pub(crate) source: Option<Station>,
    /// It was looked for.
    pub(crate) destination: Option<Station>,
    pub(crate) drop: Option<DropReason>,
}

/// A flow that is in caches.
#[derive(Debug)]
pub(crate) struct Record {
    /// The packet that it was decided for: all of its fields, so that it can be decided again.
    pub(crate) packet: Box<Key>,
    pub(crate) port: PortNo,
    pub(crate) translation: Translation,
    /// The workers that have the flow in their caches.
    pub(crate) workers: WorkerSet,
    /// What all workers have seen of it, at the last sweep.
    pub(crate) stats: Stats,
    /// When it was installed last.
    pub(crate) installed: Cycles,
    /// What hardware does of it, once it was offered.
    pub(crate) hardware: Option<Arc<HardwareShare>>,
    /// Its workers know its mark.
    pub(crate) marked: bool,
}

impl Record {
    /// The match: what packets have where the mask looks.
    pub(crate) fn key(&self) -> Key {
        self.packet.masked(&self.translation.mask)
    }

    pub(crate) fn megaflow(&self, ufid: u128) -> Megaflow {
        let Translation { mask, actions, .. } = &self.translation;
        Megaflow { ufid, stats: self.stats, ..Megaflow::new(self.key(), *mask, actions.clone()) }
    }

    /// Whether some packet would match both.
    pub(crate) fn overlaps(&self, key: &Key, mask: &Mask) -> bool {
        self.packet.matches(key, &mask.intersection(&self.translation.mask))
    }
}

/// All records, by name.
#[derive(Debug, Default)]
pub(crate) struct Megaflows {
    records: HashMap<u128, Record>,
    by_station: HashMap<(BridgeId, Station), HashSet<u128>>,
    by_port: HashMap<PortNo, usize>,
    /// Two keyed hashes make a name: who chooses packets cannot choose two flows of one name.
    hashers: [RandomState; 2],
}

impl Megaflows {
    /// The name of a flow.
    pub(crate) fn ufid(&self, key: &Key, mask: &Mask) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| hasher.hash_one((key, mask)));
        (u128::from(high) << 64 | u128::from(low)).max(1)
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn of_port(&self, port: PortNo) -> usize {
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
        for station in stations(&record.translation.basis) {
            self.by_station.entry(station).or_default().insert(ufid);
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
        for station in stations(&record.translation.basis) {
            if let Some(flows) = self.by_station.get_mut(&station) {
                flows.remove(&ufid);
                if flows.is_empty() {
                    self.by_station.remove(&station);
                }
            }
        }
        Some(record)
    }

    /// The flows that rest on where a station is.
    pub(crate) fn of_station(&self, bridge: BridgeId, station: Station) -> Vec<u128> {
        self.by_station.get(&(bridge, station)).into_iter().flatten().copied().collect()
    }

    /// The flows for which `wanted` holds.
    pub(crate) fn where_(&self, wanted: impl Fn(&Record) -> bool) -> Vec<u128> {
        self.iter().filter(|(_, record)| wanted(record)).map(|(ufid, _)| ufid).collect()
    }
}

fn stations(basis: &Basis) -> impl Iterator<Item = (BridgeId, Station)> {
    let bridge = basis.bridge;
    [basis.source, basis.destination].into_iter().flatten().filter_map(move |station| Some((bridge?, station)))
}
