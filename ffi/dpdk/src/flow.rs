//! Flow rules in a device: [`rte_rule`]'s types lowered to `rte_flow` structures.
//!
//! A [`FlowPort`] is a [`FlowDevice`] over a port of DPDK. The [`FlowRule`]s and the [`FlowQueue`] that it gives keep the port: a
//! device does not stop while one of its rules lives.
//!
//! The transfer proxy is covered by lent-port (see the crate): it is a port of the same device, which outlives its ports.
//!
//! # Invariant: ended-lists
//!
//! The lists of a [`Lowered`] end in an END, and lead only to memory that the [`Lowered`] owns and leaves alone while it is
//! borrowed.
//!
//! # Invariant: live-rule
//!
//! A `NonNull<rte_flow>` in a [`FlowRule`] or in a slot of a [`FlowQueue`] came from the driver and was not destroyed by us: its
//! owner forgets it when a destruction succeeds or begins.

#![deny(clippy::wildcard_enum_match_arm)]

mod event;
mod lower;
mod queue;
mod template;

pub use queue::FlowQueue;
pub(crate) use queue::configure;

use crate::Errno;
use crate::ethdev::{DeviceError, EthDev, Port, text};
use dpdk_sys as sys;
use lower::Lowered;
use rte_rule::{
    Clause, DeviceInfo, Direction, FlowAction, FlowAttr, FlowCount, FlowDevice, FlowError, FlowEvent, FlowEvents,
    FlowItem,
};
use std::ptr::{NonNull, null, null_mut};
use std::sync::Arc;

/// A port that takes rules, from any thread.
#[derive(Clone)]
pub struct FlowPort {
    port: Arc<Port>,
    info: DeviceInfo,
}

// SAFETY: the functions of rte_flow are called on any thread: ethdev serialises them where the driver is not thread-safe itself.
unsafe impl Send for FlowPort {}
// SAFETY: shared use is concurrent calls of rte_flow functions, which ethdev serialises.
unsafe impl Sync for FlowPort {}

impl EthDev {
    /// The port as one that takes rules.
    pub fn flow_port(&self) -> Result<FlowPort, DeviceError> {
        let info = self.raw_info()?;
        let (domain, port_id) = (info.switch_info.domain_id, self.port_id());
        let mut transfer_proxy = port_id;
        let mut error = sys::rte_flow_error::default();
        // SAFETY: lent-port; both pointers lead to locals. A driver without a proxy leaves the port itself.
        let _ = unsafe { sys::rte_flow_pick_transfer_proxy(port_id, &raw mut transfer_proxy, &raw mut error) };
        let info = DeviceInfo {
            name: self.port().name().to_owned(),
            port_id,
            switch_domain: (domain != sys::RTE_ETH_DEV_SWITCH_DOMAIN_ID_INVALID as u16).then_some(domain),
            transfer_proxy,
            rx_queues: info.nb_rx_queues,
        };
        Ok(FlowPort { port: self.port().clone(), info })
    }
}

impl FlowPort {
    /// The port that takes rules of this direction.
    fn taker(&self, attr: &FlowAttr) -> u16 {
        match attr.direction {
            Direction::Transfer => self.info.transfer_proxy,
            Direction::Ingress | Direction::Egress => self.port.id(),
        }
    }

    /// Reads up to `contexts.len()` contexts of aged rules. Returns how many rules have aged.
    fn read_aged(&self, contexts: &mut [*mut std::ffi::c_void]) -> Result<usize, FlowError> {
        let mut error = sys::rte_flow_error::default();
        let place = if contexts.is_empty() { null_mut() } else { contexts.as_mut_ptr() };
        let (proxy, room) = (self.info.transfer_proxy, contexts.len() as u32);
        // SAFETY: lent-port; `place` has room for `room` pointers, and null with no room asks for the number alone.
        let count = unsafe { sys::rte_flow_get_aged_flows(proxy, place, room, &raw mut error) };
        Errno::check(count).map_err(|errno| refused(self.port.name(), errno, &error, None))?;
        Ok(count as usize)
    }
}

impl FlowDevice for FlowPort {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn validate(&self, attr: &FlowAttr, pattern: &[FlowItem], actions: &[FlowAction]) -> Result<(), FlowError> {
        let (lowered, raw) = (Lowered::new(pattern, actions), lower::attributes(attr));
        let (items, actions) = (lowered.items.as_ptr(), lowered.actions.as_ptr());
        let mut error = sys::rte_flow_error::default();
        // SAFETY: lent-port and ended-lists; `lowered`, `raw` and `error` outlive the call.
        let returned =
            unsafe { sys::rte_flow_validate(self.taker(attr), &raw const raw, items, actions, &raw mut error) };
        Errno::check(returned).map_err(|errno| refused(self.port.name(), errno, &error, Some(&lowered)))
    }

    fn create(
        &self,
        attr: &FlowAttr,
        pattern: &[FlowItem],
        actions: &[FlowAction],
    ) -> Result<Box<dyn rte_rule::FlowRule>, FlowError> {
        let (lowered, raw) = (Lowered::new(pattern, actions), lower::attributes(attr));
        let (taker, counts) = (self.taker(attr), actions.contains(&FlowAction::Count));
        let (items, actions) = (lowered.items.as_ptr(), lowered.actions.as_ptr());
        let mut error = sys::rte_flow_error::default();
        // SAFETY: lent-port and ended-lists; the driver copies what it keeps.
        let rule = unsafe { sys::rte_flow_create(taker, &raw const raw, items, actions, &raw mut error) };
        match NonNull::new(rule) {
            raw @ Some(_) => Ok(Box::new(FlowRule { raw, taker, counts, port: self.port.clone() })),
            None => Err(refused(self.port.name(), Errno::last(), &error, Some(&lowered))),
        }
    }

    fn queue(&self) -> Option<Box<dyn rte_rule::FlowQueue>> {
        self.take_queue().map(|queue| Box::new(queue) as _)
    }

    fn aged(&self, contexts: &mut Vec<u64>) -> Result<(), FlowError> {
        let count = self.read_aged(&mut [])?;
        if count != 0 {
            let mut found = vec![null_mut(); count];
            let read = self.read_aged(&mut found)?;
            contexts.extend(found.iter().take(read).map(|context| context.addr() as u64));
        }
        Ok(())
    }

    fn listen(&self, listener: Box<dyn Fn(FlowEvent) + Send + Sync>) -> Result<FlowEvents, FlowError> {
        event::subscribe(&self.port, listener)
    }
}

/// A rule in a device, destroyed by the drop.
struct FlowRule {
    /// `None` once the rule is destroyed.
    raw: Option<NonNull<sys::rte_flow>>,
    /// The port that took the rule.
    taker: u16,
    counts: bool,
    port: Arc<Port>,
}

// SAFETY: a rule is used by rte_flow functions alone, which any thread may call: ethdev serialises them.
unsafe impl Send for FlowRule {}
// SAFETY: a shared rule is queried alone, and ethdev serialises queries.
unsafe impl Sync for FlowRule {}

impl rte_rule::FlowRule for FlowRule {
    fn query(&self) -> Result<FlowCount, FlowError> {
        let Some(raw) = self.raw.filter(|_| self.counts) else { return Ok(FlowCount::default()) };
        count(&self.port, self.taker, raw)
    }

    fn remove(&mut self) -> Result<(), FlowError> {
        let Some(raw) = self.raw else { return Ok(()) };
        let mut error = sys::rte_flow_error::default();
        // SAFETY: lent-port and live-rule; `&mut` makes this the only use.
        let returned = unsafe { sys::rte_flow_destroy(self.taker, raw.as_ptr(), &raw mut error) };
        Errno::check(returned).map_err(|errno| refused(self.port.name(), errno, &error, None))?;
        self.raw = None;
        Ok(())
    }

    fn abandon(mut self: Box<Self>) {
        self.raw = None;
    }
}

impl Drop for FlowRule {
    fn drop(&mut self) {
        if let Err(error) = rte_rule::FlowRule::remove(self) {
            tracing::warn!(%error, "a flow rule stays in its device");
        }
    }
}

impl std::fmt::Debug for FlowRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FlowRule(of {})", self.port.name())
    }
}

/// The counters of a rule that `taker` has (lent-port and live-rule).
fn count(port: &Port, taker: u16, rule: NonNull<sys::rte_flow>) -> Result<FlowCount, FlowError> {
    let conf = sys::rte_flow_action_count::default();
    let count = sys::rte_flow_action { type_: sys::RTE_FLOW_ACTION_TYPE_COUNT, conf: (&raw const conf).cast() };
    let actions = [count, sys::rte_flow_action { type_: sys::RTE_FLOW_ACTION_TYPE_END, conf: null() }];
    let mut error = sys::rte_flow_error::default();
    let mut data = sys::rte_flow_query_count::default();
    // SAFETY: the callers see to lent-port and live-rule; `actions` ends in an END, and a query of COUNT fills an
    // `rte_flow_query_count`, which `data` is.
    let returned =
        unsafe { sys::rte_flow_query(taker, rule.as_ptr(), actions.as_ptr(), (&raw mut data).cast(), &raw mut error) };
    Errno::check(returned).map_err(|errno| refused(port.name(), errno, &error, None))?;
    Ok(FlowCount {
        packets: (data.hits_set() != 0).then_some(data.hits),
        bytes: (data.bytes_set() != 0).then_some(data.bytes),
    })
}

fn refused(device: &str, errno: Errno, error: &sys::rte_flow_error, lowered: Option<&Lowered>) -> FlowError {
    let device = device.to_owned();
    let clause = lowered.map_or(Clause::Rule, |lowered| lowered.clause(error));
    // SAFETY: rte_flow leaves `message` null or lets the driver set it to a constant C string.
    let said = unsafe { text(error.message) };
    match errno.0 {
        libc::ENOSYS => FlowError::NotImplemented { device },
        libc::ENOTSUP => FlowError::Unsupported { device, clause, said },
        libc::EINVAL => FlowError::Invalid { device, clause, said },
        libc::ENOENT => FlowError::Lost { device, said },
        libc::EEXIST => FlowError::Exists { device, said },
        libc::ENOSPC | libc::ENOMEM => FlowError::Full { device, said },
        libc::ENODEV | libc::EIO => FlowError::Gone { device },
        libc::EAGAIN => FlowError::Busy { device },
        _ => FlowError::Failed { device, clause, said: format!("{errno}: {said}") },
    }
}
