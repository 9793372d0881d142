//! The border to what decides over packets: a [`Pipeline`], the key that it reads, and what its decisions rest on.

use crate::PortNo;
use flow::key::{Field, Wide};
use flow::{Action, DropReason, Key, Mask};
use std::sync::Arc;
use std::time::Instant;

/// The actions of a flow; an empty list drops.
pub type Actions = Arc<[Action]>;

/// Number of a bridge.
pub type BridgeId = u32;

/// Decides over packets that no worker has a flow for: the tables of a switch, as `ofproto` is in OVS.
///
/// Called by the upcall handler under its lock, never by a worker.
pub trait Pipeline: Send + 'static {
    /// Decides over one packet. The fields that are read through `packet` become the mask of the megaflow; `dependencies` gets
    /// all other state that the decision rests on, so that a change of that state finds the megaflow.
    fn translate(
        &mut self,
        packet: &mut Tracked<'_>,
        dependencies: &mut Dependencies,
        mode: Learn,
    ) -> Result<Actions, DropReason>;

    /// Refreshes the age of learned state: a flow from `in_port` with these dependencies has seen packets.
    fn refresh(&mut self, dependencies: &Dependencies, in_port: PortNo, now: Instant);

    /// Forgets learned state that is too old.
    fn expire(&mut self, now: Instant);

    /// Whether there is learned state that could expire.
    fn has_learned(&self) -> bool;

    /// Takes the dependencies that have changed since the last call: their megaflows are revalidated.
    fn take_changes(&mut self) -> Vec<Dependency>;

    /// The name of the bridge that a port is in, for reports.
    fn bridge_of(&self, _port: PortNo) -> Option<&str> {
        None
    }
}

/// Whether a translation learns from its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learn {
    /// The packet has come in at this time: its source is learned.
    At(Instant),
    /// The translation revalidates a flow, or an operator traces a packet: nothing is learned.
    No,
}

/// The key of a packet that records which fields were read: every packet that agrees in them would be decided alike.
#[derive(Debug)]
pub struct Tracked<'a> {
    key: &'a Key,
    mask: Mask,
}

impl<'a> Tracked<'a> {
    /// A key of which nothing was read yet.
    pub fn new(key: &'a Key) -> Tracked<'a> {
        Tracked { key, mask: Mask::EMPTY }
    }

    /// Reads a field.
    pub fn get(&mut self, field: Field) -> u64 {
        self.mask.set_exact(field);
        self.key.get(field)
    }

    /// Reads an IPv6 address.
    pub fn get_wide(&mut self, field: Wide) -> u128 {
        self.mask.set_exact_wide(field);
        self.key.get_wide(field)
    }

    /// Records that these bits were read.
    pub fn look_at(&mut self, bits: &Mask) {
        self.mask = self.mask.union(bits);
    }

    /// The bits that were read.
    pub fn mask(&self) -> Mask {
        self.mask
    }

    /// The whole key, unrecorded: the caller records what its decision looked at.
    pub(crate) fn key(&self) -> &'a Key {
        self.key
    }
}

/// State that the decision over a packet rests on, apart from the packet. Kinds of state that later pipelines have (tables,
/// groups, conntrack zones) become variants; the index of megaflows takes any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dependency {
    /// A static flow, by its ufid.
    StaticFlow(u128),
    /// Settings and ports of a bridge.
    Bridge(BridgeId),
    /// The port of a MAC address in a VLAN of a bridge.
    Fdb {
        /// The bridge.
        bridge: BridgeId,
        /// The VLAN, 0 without.
        vlan: u16,
        /// The address, as a flow key holds it.
        mac: u64,
    },
    /// The settings of a port, and the bridge that it is in.
    Port(PortNo),
}

/// What one decision rests on.
#[derive(Clone, Debug, Default)]
pub struct Dependencies {
    on: Vec<Dependency>,
    source_unknown: bool,
}

impl Dependencies {
    /// Adds a dependency.
    pub fn add(&mut self, dependency: Dependency) {
        self.on.push(dependency);
    }

    /// Records that the source of the packet is not known where it came in: when the flow is revalidated, it is removed, so that
    /// the next packet is learned from.
    pub fn set_source_unknown(&mut self) {
        self.source_unknown = true;
    }

    pub(crate) fn source_unknown(&self) -> bool {
        self.source_unknown
    }

    /// The dependencies, in the order in which they were added.
    pub fn as_slice(&self) -> &[Dependency] {
        &self.on
    }

    /// Whether a static flow decided.
    pub fn is_static(&self) -> bool {
        self.on.iter().any(|dependency| matches!(dependency, Dependency::StaticFlow(_)))
    }
}
