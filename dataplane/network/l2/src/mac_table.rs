//! The filtering database of a bridge: behind which port each address was seen last.

use crate::{Mac, PortNo};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

/// The key of an FDB entry: the address of a station, in a VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbKey {
    /// The VLAN; 0 where there are none.
    pub vlan: u16,
    /// The address.
    pub mac: Mac,
}

impl fmt::Display for FdbKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in VLAN {}", self.mac, self.vlan)
    }
}

/// An FDB entry: the port behind which a station is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacEntry {
    /// The station.
    pub station: FdbKey,
    /// The port that leads to it.
    pub port: PortNo,
    /// When the station was last seen; `None` for a static entry.
    pub seen: Option<Instant>,
}

/// Seen again within this time, an entry is not touched.
const COARSE: Duration = Duration::from_secs(1);

/// The FDB of a bridge, of limited size: where it is full, the port with the most stations gives up the one that it saw longest ago,
/// so that a port that invents addresses loses only its own.
#[derive(Debug)]
pub(crate) struct MacTable {
    entries: HashMap<FdbKey, MacEntry>,
    /// What each port learned, oldest first.
    learned: HashMap<PortNo, BTreeSet<(Instant, FdbKey)>>,
    capacity: usize,
    max_age: Duration,
}

impl MacTable {
    pub(crate) fn new(capacity: usize, max_age: Duration) -> MacTable {
        MacTable { entries: HashMap::new(), learned: HashMap::new(), capacity, max_age }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The port that leads to a station.
    pub(crate) fn port(&self, station: FdbKey) -> Option<PortNo> {
        self.entries.get(&station).map(|entry| entry.port)
    }

    /// All entries, by address.
    pub(crate) fn entries(&self) -> Vec<MacEntry> {
        let mut entries: Vec<MacEntry> = self.entries.values().copied().collect();
        entries.sort_by_key(|entry| entry.station);
        entries
    }

    /// A packet from `station` came in by `port`. Stations whose port changed are added to `changed`.
    pub(crate) fn learn(&mut self, station: FdbKey, port: PortNo, now: Instant, changed: &mut Vec<FdbKey>) {
        if let Some(entry) = self.entries.get(&station) {
            let Some(seen) = entry.seen else { return };
            if entry.port == port && now.saturating_duration_since(seen) < COARSE {
                return;
            }
            let moved = entry.port != port;
            self.remove(station);
            self.insert(MacEntry { station, port, seen: Some(now) });
            if moved {
                changed.push(station);
            }
            return;
        }
        if self.entries.len() >= self.capacity {
            let Some(evicted) = self.candidate() else { return };
            self.remove(evicted);
            changed.push(evicted);
        }
        self.insert(MacEntry { station, port, seen: Some(now) });
        changed.push(station);
    }

    /// Adds a static entry. `false` when the table is full of such.
    pub(crate) fn pin(&mut self, station: FdbKey, port: PortNo, changed: &mut Vec<FdbKey>) -> bool {
        if !self.entries.contains_key(&station) && self.entries.len() >= self.capacity {
            let Some(evicted) = self.candidate() else { return false };
            self.remove(evicted);
            changed.push(evicted);
        }
        self.remove(station);
        self.insert(MacEntry { station, port, seen: None });
        changed.push(station);
        true
    }

    /// Removes the entries for which `keep` does not hold.
    pub(crate) fn retain(&mut self, keep: impl Fn(&MacEntry) -> bool, changed: &mut Vec<FdbKey>) {
        let gone: Vec<FdbKey> = self.entries.values().filter(|entry| !keep(entry)).map(|e| e.station).collect();
        for station in gone {
            self.remove(station);
            changed.push(station);
        }
    }

    /// Removes the entries that were not seen for too long.
    pub(crate) fn expire(&mut self, now: Instant, changed: &mut Vec<FdbKey>) {
        let old = |seen: Instant| now.saturating_duration_since(seen) >= self.max_age;
        let stale = |learned: &BTreeSet<(Instant, FdbKey)>| {
            learned.iter().take_while(|(seen, _)| old(*seen)).map(|(_, station)| *station).collect::<Vec<_>>()
        };
        let gone: Vec<FdbKey> = self.learned.values().flat_map(stale).collect();
        for station in gone {
            self.remove(station);
            changed.push(station);
        }
    }

    /// The station to give up when the table is full.
    fn candidate(&self) -> Option<FdbKey> {
        let most = self.learned.values().max_by_key(|learned| learned.len())?;
        most.first().map(|(_, station)| *station)
    }

    fn insert(&mut self, entry: MacEntry) {
        if let Some(seen) = entry.seen {
            self.learned.entry(entry.port).or_default().insert((seen, entry.station));
        }
        self.entries.insert(entry.station, entry);
    }

    fn remove(&mut self, station: FdbKey) {
        let Some(entry) = self.entries.remove(&station) else { return };
        if let Some(seen) = entry.seen
            && let Some(learned) = self.learned.get_mut(&entry.port)
        {
            learned.remove(&(seen, station));
            if learned.is_empty() {
                self.learned.remove(&entry.port);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn station(mac: u64) -> FdbKey {
        FdbKey { vlan: 1, mac: Mac::new(mac) }
    }

    fn table(capacity: usize) -> MacTable {
        MacTable::new(capacity, Duration::from_secs(300))
    }

    #[test]
    fn a_station_is_where_it_was_seen_last() {
        let (mut table, now, mut changed) = (table(8), Instant::now(), Vec::new());
        table.learn(station(2), 1, now, &mut changed);
        table.learn(station(2), 1, now, &mut changed);
        assert_eq!((table.port(station(2)), changed.len()), (Some(1), 1));
        table.learn(station(2), 3, now, &mut changed);
        assert_eq!((table.port(station(2)), changed.len()), (Some(3), 2));
        assert_eq!(table.port(FdbKey { vlan: 2, ..station(2) }), None);
    }

    #[test]
    fn age_counts_from_the_last_packet() {
        let (mut table, start, mut changed) = (table(8), Instant::now(), Vec::new());
        let at = |seconds| start + Duration::from_secs(seconds);
        table.learn(station(2), 1, at(0), &mut changed);
        table.learn(station(4), 1, at(0), &mut changed);
        table.learn(station(2), 1, at(100), &mut changed);
        changed.clear();
        table.expire(at(300), &mut changed);
        assert_eq!(changed, [station(4)]);
        table.expire(at(399), &mut changed);
        assert_eq!(table.len(), 1);
        table.expire(at(400), &mut changed);
        assert_eq!((table.len(), table.learned.len()), (0, 0));
    }

    #[test]
    fn a_port_that_invents_addresses_loses_only_its_own() {
        let (mut table, start, mut changed) = (table(8), Instant::now(), Vec::new());
        table.learn(station(2), 1, start, &mut changed);
        for n in 0..100 {
            table.learn(station(0x1000 + 2 * n), 2, start + Duration::from_millis(n), &mut changed);
        }
        assert_eq!((table.len(), table.port(station(2))), (8, Some(1)));
        assert_eq!(table.port(station(0x1000 + 2 * 99)), Some(2));
        assert_eq!(table.port(station(0x1000)), None);
    }

    #[test]
    fn static_entries_neither_move_nor_age() {
        let (mut table, now, mut changed) = (table(2), Instant::now(), Vec::new());
        table.learn(station(2), 1, now, &mut changed);
        assert!(table.pin(station(2), 5, &mut changed));
        table.learn(station(2), 1, now, &mut changed);
        table.expire(now + Duration::from_secs(9999), &mut changed);
        assert_eq!(table.port(station(2)), Some(5));
        assert!(table.pin(station(4), 5, &mut changed));
        assert!(!table.pin(station(6), 5, &mut changed), "full of static entries");
        table.learn(station(8), 1, now, &mut changed);
        assert_eq!(table.port(station(8)), None);
        table.retain(|entry| entry.port != 5, &mut changed);
        assert_eq!(table.len(), 0);
    }
}
