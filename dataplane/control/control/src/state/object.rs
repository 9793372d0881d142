//! What the calls of the desired state are about: objects, and one aspect of each.

use std::fmt;

/// An object of the daemon that calls create, change and delete.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ObjectId {
    /// The workers and their scheduler.
    Engine,
    /// A disk.
    Bdev(String),
    /// An NVMe controller, whose namespaces are disks.
    NvmeController(String),
    /// A vhost-user-blk controller.
    VhostController(String),
    /// A port of the switch.
    Port(String),
    /// A bridge.
    Bridge(String),
    /// A static flow, by its match in normal form.
    Flow(String),
}

impl ObjectId {
    pub(crate) fn bdev(name: &str) -> ObjectId {
        ObjectId::Bdev(name.to_owned())
    }

    pub(crate) fn nvme_controller(name: &str) -> ObjectId {
        ObjectId::NvmeController(name.to_owned())
    }

    pub(crate) fn vhost_controller(name: &str) -> ObjectId {
        ObjectId::VhostController(name.to_owned())
    }

    pub(crate) fn port(name: &str) -> ObjectId {
        ObjectId::Port(name.to_owned())
    }

    pub(crate) fn bridge(name: &str) -> ObjectId {
        ObjectId::Bridge(name.to_owned())
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            ObjectId::Engine => "",
            ObjectId::Bdev(name)
            | ObjectId::NvmeController(name)
            | ObjectId::VhostController(name)
            | ObjectId::Port(name)
            | ObjectId::Bridge(name)
            | ObjectId::Flow(name) => name,
        }
    }

    /// The section of a configuration document that holds the calls about the object.
    pub(crate) fn subsystem(&self) -> &'static str {
        match self {
            ObjectId::Engine => "engine",
            ObjectId::Bdev(_) | ObjectId::NvmeController(_) => "bdev",
            ObjectId::VhostController(_) => "vhost_blk",
            ObjectId::Port(_) => "port",
            ObjectId::Bridge(_) => "bridge",
            ObjectId::Flow(_) => "flow",
        }
    }

    /// The slot of the call that creates the object.
    pub(crate) fn itself(self) -> Slot {
        self.aspect(Aspect::Existence)
    }

    /// The slot of a call that sets one aspect of the object.
    pub(crate) fn aspect(self, aspect: Aspect) -> Slot {
        Slot { object: self, aspect }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectId::NvmeController(name) => write!(f, "nvme {name}"),
            other => f.write_str(other.name()),
        }
    }
}

/// What a call sets of its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Aspect {
    /// That it exists.
    Existence,
    /// How workers idle.
    Idle,
    /// How queues move between workers.
    Scheduler,
    /// The limits of a disk.
    Qos,
    /// The limits of a port.
    RateLimit,
    /// The worker of a queue.
    Queue(u16),
    /// A port of a bridge.
    BridgePort(String),
    /// A static entry of a bridge's FDB; the address in normal form.
    Fdb { vlan: u16, mac: String },
}

/// Where in the desired state a call is kept: a later call for the same slot takes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) object: ObjectId,
    pub(crate) aspect: Aspect,
}
