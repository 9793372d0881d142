//! Flow rules in a device (`rte_flow`): a pattern of typed items and a list of typed actions.
//!
//! What a device can is found out by [`FlowPort::validate`], never by its name. A [`FlowRule`] is destroyed when it is
//! dropped. A device does not stop while one of its rules lives.
//!
//! Where the driver has templates, a [`FlowQueue`] puts many rules in at once and waits for none of them. It owns its rules and
//! the template tables that they are in. [`FlowPort::listen`] tells of rules that have aged and of resets.

mod action;
mod event;
mod item;
mod lower;
mod queue;
mod template;

pub use action::{FlowAction, SetField};
pub use event::{FlowEvent, FlowEvents};
pub use item::{Eth, FlowItem, Icmp, Ipv4, Ipv6, L4Ports, Match, Tcp, Vlan};
pub(crate) use queue::configure;
pub use queue::{Completion, FlowQueue, Operation, RuleId};

use crate::Errno;
use crate::ethdev::{DeviceError, EthDev, Port, text};
use dpdk_sys as sys;
use lower::Lowered;
use std::ptr::{NonNull, null};
use std::sync::Arc;

/// What a rule is applied to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// What this port receives.
    #[default]
    Ingress,
    /// What this port sends.
    Egress,
    /// What passes the device's switch, whatever port it comes from.
    Transfer,
}

/// Where a rule stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowAttributes {
    /// Its group; packets start in 0.
    pub group: u32,
    /// Its priority in the group; 0 is the highest.
    pub priority: u32,
    /// What it is applied to.
    pub direction: Direction,
}

/// The part of a rule that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clause {
    /// An item of the pattern.
    Item(usize),
    /// An action.
    Action(usize),
    /// Group, priority or direction.
    Attributes,
    /// The rule as a whole.
    Rule,
}

impl std::fmt::Display for Clause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Clause::Item(index) => write!(f, "item {index}"),
            Clause::Action(index) => write!(f, "action {index}"),
            Clause::Attributes => f.write_str("attributes"),
            Clause::Rule => f.write_str("rule"),
        }
    }
}

/// Why a device did not do what was asked with a rule.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// Its driver knows nothing of flow rules.
    #[error("{device}: its driver has no flow rules")]
    NotImplemented {
        /// The device.
        device: String,
    },
    /// The device does not do that.
    #[error("{device}: {clause} is not supported: {said}")]
    Unsupported {
        /// The device.
        device: String,
        /// What was refused.
        clause: Clause,
        /// The driver's words.
        said: String,
    },
    /// A value makes no sense to the driver.
    #[error("{device}: {clause} is not valid: {said}")]
    Invalid {
        /// The device.
        device: String,
        /// What was refused.
        clause: Clause,
        /// The driver's words.
        said: String,
    },
    /// The same pattern is there already.
    #[error("{device}: there is such a rule already: {said}")]
    Exists {
        /// The device.
        device: String,
        /// The driver's words.
        said: String,
    },
    /// A table is full.
    #[error("{device}: no room for more flow rules: {said}")]
    Full {
        /// The device.
        device: String,
        /// The driver's words.
        said: String,
    },
    /// Its queue has no room: operations are to complete first.
    #[error("{device}: its flow queue is full")]
    Busy {
        /// The device.
        device: String,
    },
    /// No template table takes such a rule.
    #[error("{device}: no template for such a rule: {said}")]
    NoTemplate {
        /// The device.
        device: String,
        /// Why there is none.
        said: String,
    },
    /// The rule is not there any more: a reset of the device took it, or somebody else.
    #[error("{device}: there is no such rule any more: {said}")]
    Lost {
        /// The device.
        device: String,
        /// The driver's words.
        said: String,
    },
    /// The device is not there any more.
    #[error("{device}: the device is gone")]
    Gone {
        /// The device.
        device: String,
    },
    /// Anything else.
    #[error("{device}: {clause}: {errno}: {said}")]
    Failed {
        /// The device.
        device: String,
        /// What was refused.
        clause: Clause,
        /// The driver's reason.
        errno: Errno,
        /// The driver's words.
        said: String,
    },
}

/// What a rule has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCount {
    /// Packets, where the device counts them.
    pub packets: Option<u64>,
    /// Bytes, where the device counts them.
    pub bytes: Option<u64>,
}

/// Where rules are put into a device. Any thread may do so.
#[derive(Clone)]
pub struct FlowPort {
    port: Arc<Port>,
    /// Takes the rules of direction [`Direction::Transfer`]: this port, or one that is in charge of the device's switch.
    proxy: u16,
    domain: Option<u16>,
    rx_queues: u16,
}

// SAFETY: ethdev serialises the calls where the driver wants it.
unsafe impl Send for FlowPort {}
// SAFETY: as above.
unsafe impl Sync for FlowPort {}

impl EthDev {
    /// Where rules are put into it.
    pub fn flow_port(&self) -> Result<FlowPort, DeviceError> {
        let info = self.raw_info()?;
        let (domain, rx_queues) = (info.switch_info.domain_id, info.nb_rx_queues);
        let mut proxy = self.port_id();
        let mut error = sys::rte_flow_error::default();
        // SAFETY: fills `proxy`. A driver that has none leaves the port itself.
        unsafe { sys::rte_flow_pick_transfer_proxy(self.port_id(), &raw mut proxy, &raw mut error) };
        let domain = (domain != sys::RTE_ETH_DEV_SWITCH_DOMAIN_ID_INVALID as u16).then_some(domain);
        Ok(FlowPort { port: self.port().clone(), proxy, domain, rx_queues })
    }
}

impl FlowPort {
    /// DPDK's number for the port.
    pub fn port_id(&self) -> u16 {
        self.port.id()
    }

    /// Its name on its bus.
    pub fn name(&self) -> &str {
        self.port.name()
    }

    /// It takes the device's rules of direction [`Direction::Transfer`] itself, and no other port does.
    pub fn is_transfer_proxy(&self) -> bool {
        self.proxy == self.port.id()
    }

    /// The queues that it receives by.
    pub fn rx_queues(&self) -> u16 {
        self.rx_queues
    }

    /// Its device's switch: rules lead between ports of the same one.
    pub fn switch_domain(&self) -> Option<u16> {
        self.domain
    }

    /// Whether the device would take such a rule now.
    pub fn validate(
        &self,
        attributes: &FlowAttributes,
        pattern: &[FlowItem],
        actions: &[FlowAction],
    ) -> Result<(), FlowError> {
        let (lowered, raw) = (Lowered::new(pattern, actions), lower::attributes(attributes));
        let mut error = sys::rte_flow_error::default();
        // SAFETY: both lists end in an END and live across the call, with all that they lead to.
        let returned = unsafe {
            let (items, actions) = (lowered.items.as_ptr(), lowered.actions.as_ptr());
            sys::rte_flow_validate(self.taker(attributes), &raw const raw, items, actions, &raw mut error)
        };
        Errno::check(returned).map_err(|errno| refused(self.port.name(), errno, &error, Some(&lowered)))
    }

    /// Puts a rule into the device.
    pub fn create(
        &self,
        attributes: &FlowAttributes,
        pattern: &[FlowItem],
        actions: &[FlowAction],
    ) -> Result<FlowRule, FlowError> {
        let (lowered, raw) = (Lowered::new(pattern, actions), lower::attributes(attributes));
        let taker = self.taker(attributes);
        let mut error = sys::rte_flow_error::default();
        // SAFETY: as in `validate`; the driver copies what it keeps.
        let rule = unsafe {
            let (items, actions) = (lowered.items.as_ptr(), lowered.actions.as_ptr());
            sys::rte_flow_create(taker, &raw const raw, items, actions, &raw mut error)
        };
        match NonNull::new(rule) {
            raw @ Some(_) => {
                Ok(FlowRule { raw, taker, counts: actions.contains(&FlowAction::Count), port: self.port.clone() })
            }
            None => Err(refused(self.port.name(), Errno::last(), &error, Some(&lowered))),
        }
    }

    /// Adds the contexts of rules that have aged ([`FlowAction::Age`]), of all rules that the port's driver keeps. One that is still
    /// there when this is called again may come again.
    pub fn aged(&self, contexts: &mut Vec<u64>) -> Result<(), FlowError> {
        let mut error = sys::rte_flow_error::default();
        // SAFETY: asks for their number.
        let count = unsafe { sys::rte_flow_get_aged_flows(self.proxy, std::ptr::null_mut(), 0, &raw mut error) };
        Errno::check(count).map_err(|errno| refused(self.port.name(), errno, &error, None))?;
        if count == 0 {
            return Ok(());
        }
        let mut found = vec![std::ptr::null_mut(); count as usize];
        // SAFETY: there is room for so many; more are not written.
        let returned =
            unsafe { sys::rte_flow_get_aged_flows(self.proxy, found.as_mut_ptr(), found.len() as u32, &raw mut error) };
        Errno::check(returned).map_err(|errno| refused(self.port.name(), errno, &error, None))?;
        contexts.extend(found.iter().take(returned as usize).map(|context| context.addr() as u64));
        Ok(())
    }

    fn taker(&self, attributes: &FlowAttributes) -> u16 {
        match attributes.direction {
            Direction::Transfer => self.proxy,
            Direction::Ingress | Direction::Egress => self.port.id(),
        }
    }
}

/// A rule in a device.
pub struct FlowRule {
    /// `None` once it is destroyed.
    raw: Option<NonNull<sys::rte_flow>>,
    /// The port that took it.
    taker: u16,
    counts: bool,
    port: Arc<Port>,
}

// SAFETY: ethdev serialises the calls where the driver wants it.
unsafe impl Send for FlowRule {}
// SAFETY: as above.
unsafe impl Sync for FlowRule {}

impl FlowRule {
    /// What it has counted; nothing where it has no [`FlowAction::Count`].
    pub fn query(&self) -> Result<FlowCount, FlowError> {
        let Some(raw) = self.raw.filter(|_| self.counts) else { return Ok(FlowCount::default()) };
        count(&self.port, self.taker, raw)
    }

    /// The device has lost the rule, by a reset or at the hands of somebody else: nothing is left to destroy.
    pub fn abandon(mut self) {
        self.raw = None;
    }

    /// Takes the rule out of the device. After an error it is still there.
    pub fn remove(&mut self) -> Result<(), FlowError> {
        let Some(raw) = self.raw else { return Ok(()) };
        let mut error = sys::rte_flow_error::default();
        // SAFETY: the rule is in the device and nobody uses it any more.
        let returned = unsafe { sys::rte_flow_destroy(self.taker, raw.as_ptr(), &raw mut error) };
        Errno::check(returned).map_err(|errno| refused(self.port.name(), errno, &error, None))?;
        self.raw = None;
        Ok(())
    }
}

impl Drop for FlowRule {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "a flow rule stays in its device");
        }
    }
}

impl std::fmt::Debug for FlowRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FlowRule(of {})", self.port.name())
    }
}

/// What a rule has counted, which is in the device.
fn count(port: &Port, taker: u16, rule: NonNull<sys::rte_flow>) -> Result<FlowCount, FlowError> {
    let conf = sys::rte_flow_action_count::default();
    let count = sys::rte_flow_action { type_: sys::RTE_FLOW_ACTION_TYPE_COUNT, conf: (&raw const conf).cast() };
    let actions = [count, sys::rte_flow_action { type_: sys::RTE_FLOW_ACTION_TYPE_END, conf: null() }];
    let mut error = sys::rte_flow_error::default();
    let mut data = sys::rte_flow_query_count::default();
    // SAFETY: the rule is in the device; the driver fills `data`, which is what a query of COUNT is answered with.
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
    // SAFETY: null or a constant string of the driver.
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
        _ => FlowError::Failed { device, clause, errno, said },
    }
}
