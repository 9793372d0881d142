//! What a device tells of its rules by itself.

use super::{FlowError, FlowPort};
use crate::Errno;
use crate::ethdev::Port;
use dpdk_sys as sys;
use std::ffi::{c_int, c_void};
use std::sync::Arc;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowEvent {
    /// Rules have aged: [`FlowPort::aged`].
    Aged,
    /// The device was reset: rules may be lost.
    Reset,
}

const EVENTS: [(sys::rte_eth_event_type, FlowEvent); 2] =
    [(sys::RTE_ETH_EVENT_FLOW_AGED, FlowEvent::Aged), (sys::RTE_ETH_EVENT_INTR_RESET, FlowEvent::Reset)];

type Listener = Box<dyn Fn(FlowEvent) + Send + Sync>;

/// Somebody listens, until this is dropped.
pub struct FlowEvents {
    port: Arc<Port>,
    /// A [`Listener`], which DPDK calls with.
    listener: *mut Listener,
}

// SAFETY: the listener may be called, and dropped, by any thread.
unsafe impl Send for FlowEvents {}
// SAFETY: nothing is done with a shared one.
unsafe impl Sync for FlowEvents {}

impl FlowPort {
    /// Calls `listener` when something happens. It is called on a thread of DPDK or on one that polls the port: it must not wait.
    pub fn listen(&self, listener: impl Fn(FlowEvent) + Send + Sync + 'static) -> Result<FlowEvents, FlowError> {
        let listener: *mut Listener = Box::into_raw(Box::new(Box::new(listener)));
        let events = FlowEvents { port: self.port.clone(), listener };
        for (event, _) in EVENTS {
            // SAFETY: the listener lives until `events` has taken the callback back.
            let returned =
                unsafe { sys::rte_eth_dev_callback_register(self.port.id(), event, Some(call), listener.cast()) };
            Errno::check(returned).map_err(|_| FlowError::NotImplemented { device: self.port.name().to_owned() })?;
        }
        Ok(events)
    }
}

unsafe extern "C" fn call(_: u16, event: sys::rte_eth_event_type, listener: *mut c_void, _: *mut c_void) -> c_int {
    // SAFETY: registered with a listener that lives as long.
    let listener = unsafe { &*listener.cast::<Listener>() };
    EVENTS.iter().filter(|(raw, _)| *raw == event).for_each(|(_, event)| listener(*event));
    0
}

impl Drop for FlowEvents {
    fn drop(&mut self) {
        for (event, _) in EVENTS {
            // SAFETY: as it was registered. DPDK refuses while it is in the callback, which ends soon.
            while unsafe {
                sys::rte_eth_dev_callback_unregister(self.port.id(), event, Some(call), self.listener.cast())
            } == -libc::EAGAIN
            {
                std::thread::yield_now();
            }
        }
        // SAFETY: nobody calls it any more.
        drop(unsafe { Box::from_raw(self.listener) });
    }
}
