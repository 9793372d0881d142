//! Events that a device reports about its rules.

use crate::Errno;
use crate::ethdev::Port;
use dpdk_sys as sys;
use rte_rule::{FlowError, FlowEvent, FlowEvents};
use std::ffi::{c_int, c_void};
use std::sync::Arc;

const EVENTS: [(sys::rte_eth_event_type, FlowEvent); 2] =
    [(sys::RTE_ETH_EVENT_FLOW_AGED, FlowEvent::Aged), (sys::RTE_ETH_EVENT_INTR_RESET, FlowEvent::Reset)];

type Listener = Box<dyn Fn(FlowEvent) + Send + Sync>;

/// A registered listener, which the drop takes back.
struct Subscription {
    port: Arc<Port>,
    /// The argument of the callback, owned by the subscription.
    listener: *mut Listener,
}

// SAFETY: a `Listener` is `Send`, and DPDK's callback functions may be called on any thread.
unsafe impl Send for Subscription {}
// SAFETY: a shared subscription has no operations.
unsafe impl Sync for Subscription {}

/// Calls `listener` for each event of the port, on a thread of DPDK or on one that polls the port.
pub(super) fn subscribe(port: &Arc<Port>, listener: Listener) -> Result<FlowEvents, FlowError> {
    let subscription = Subscription { port: port.clone(), listener: Box::into_raw(Box::new(listener)) };
    for (event, _) in EVENTS {
        let argument = subscription.listener.cast();
        // SAFETY: lent-port; `subscription` takes the callback back before it frees the argument.
        let returned = unsafe { sys::rte_eth_dev_callback_register(port.id(), event, Some(call), argument) };
        Errno::check(returned).map_err(|_| FlowError::NotImplemented { device: port.name().to_owned() })?;
    }
    Ok(Box::new(subscription))
}

unsafe extern "C" fn call(_: u16, event: sys::rte_eth_event_type, listener: *mut c_void, _: *mut c_void) -> c_int {
    // SAFETY: `subscribe` registered the callback with a `Listener`, which lives as long as the registration.
    let listener = unsafe { &*listener.cast::<Listener>() };
    for (_, event) in EVENTS.iter().filter(|(raw, _)| *raw == event) {
        listener(*event);
    }
    0
}

impl Drop for Subscription {
    fn drop(&mut self) {
        for (event, _) in EVENTS {
            let argument = self.listener.cast();
            // SAFETY: lent-port; the same arguments as at the registration.
            let unregister =
                || unsafe { sys::rte_eth_dev_callback_unregister(self.port.id(), event, Some(call), argument) };
            // DPDK refuses while the callback runs, which ends soon.
            while unregister() == -libc::EAGAIN {
                std::thread::yield_now();
            }
        }
        // SAFETY: made by `Box::into_raw`, and no callback has it any more.
        drop(unsafe { Box::from_raw(self.listener) });
    }
}
