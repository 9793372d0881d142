//! What is a device type's own.

use crate::{DeviceFault, DeviceHealth, DeviceQueue, WorkerQueues};
use engine::{Source, WorkerHandle};
use vhost_user::{Change, Properties, Refusal, RingStart};

/// A device of some type. All calls come from control threads and may wait.
pub trait VhostDevice: Send + Sync + 'static {
    /// A queue of the device.
    type DeviceQueue: DeviceQueue;

    /// The device's name, where its events go, and whether it is in quarantine.
    fn health(&self) -> &DeviceHealth;

    /// What the device offers. Read at the start of each session; the number of queues does not change.
    fn properties(&self) -> Properties;

    /// Copies configuration space from `offset`. A range that is not wholly inside is refused. Only with CONFIG in the
    /// protocol features.
    fn read_config(&self, _offset: u32, _bytes: &mut [u8]) -> Result<(), Refusal> {
        Err(Refusal::new("the configuration space of this device is the front-end's"))
    }

    /// Makes a queue that the front-end starts.
    fn queue(&self, start: RingStart) -> Result<Self::DeviceQueue, DeviceFault>;

    /// What serves `queues` on `worker`: called when the first queue comes there. `None`: the device is opened there from outside
    /// ([`DeviceController::open`](crate::DeviceController::open)), and the queue waits until then.
    fn source(
        &self,
        _worker: &WorkerHandle,
        _queues: WorkerQueues<Self::DeviceQueue>,
    ) -> Result<Option<Box<dyn Source>>, Refusal> {
        Ok(None)
    }

    /// Applies a change that is no queue's: RARP, MTU, reset.
    fn apply(&self, change: Change) -> Result<(), Refusal>;
}
