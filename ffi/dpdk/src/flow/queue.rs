//! The flow queue of a port: insertions and removals that nothing waits for.

use super::lower::Lowered;
use super::template::TemplateTable;
use super::{FlowPort, count, refused};
use crate::Errno;
use crate::ethdev::Port;
use dpdk_sys as sys;
use rte_rule::FlowQueue as _;
use rte_rule::{Completion, FlowAction, FlowAttr, FlowCount, FlowError, FlowItem, Operation, RuleId};
use std::ptr::{NonNull, without_provenance_mut};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Largest number of operations in a queue.
const MAX_SIZE: u32 = 1024;
/// Largest number of counters and of ageing rules to preallocate in the driver, and of rules in a table.
const MAX_RULES: u32 = 1 << 20;
/// Number of the one queue of a port.
const QUEUE: u32 = 0;
/// Largest number of template tables in a queue.
const MAX_TABLES: usize = 64;
/// Number of rules in the first table of a shape. Each further one has twice as many.
const FIRST_TABLE_RULES: u32 = 1024;
/// Number of completions pulled by one call.
const PULL_BATCH: usize = 64;
/// Longest wait for the removal of all rules when a queue is dropped.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(1);

/// Configures the flow queue of a port that is configured and not started. Returns the number of operations that the queue holds;
/// `None` where the driver has no queues.
pub(crate) fn configure(port: u16) -> Option<u32> {
    let (mut info, mut of_queue) = (sys::rte_flow_port_info::default(), sys::rte_flow_queue_info::default());
    let mut error = sys::rte_flow_error::default();
    // SAFETY: the caller has the port attached; the pointers lead to locals.
    let returned = unsafe { sys::rte_flow_info_get(port, &raw mut info, &raw mut of_queue, &raw mut error) };
    if returned != 0 || info.max_nb_queues == 0 {
        return None;
    }
    let size = if of_queue.max_size == 0 { MAX_SIZE } else { of_queue.max_size.min(MAX_SIZE) };
    let port_attr = sys::rte_flow_port_attr {
        nb_counters: info.max_nb_counters.min(MAX_RULES),
        nb_aging_objects: info.max_nb_aging_objects.min(MAX_RULES),
        ..Default::default()
    };
    let queue_attr = sys::rte_flow_queue_attr { size };
    let mut queues = [&raw const queue_attr];
    // SAFETY: the caller has the port attached; `queues` has the attributes of the one queue asked for.
    let returned =
        unsafe { sys::rte_flow_configure(port, &raw const port_attr, 1, queues.as_mut_ptr(), &raw mut error) };
    (returned == 0).then_some(size)
}

/// The flow queue of a port, with the rules that it has inserted. The drop removes them.
///
/// Rules of one shape (the same items with the same masks, and the same kinds of actions) share template tables, which are made
/// on demand and destroyed when they are empty and others are wanted.
pub struct FlowQueue {
    port: Arc<Port>,
    /// Number of operations that the queue holds.
    size: u32,
    /// Number of operations without a completion.
    pending: u32,
    tables: Vec<Option<TemplateTable>>,
    rules: Vec<Slot>,
    free: Vec<u32>,
    lowered: Lowered,
}

/// A slot for a rule.
struct Slot {
    raw: Option<NonNull<sys::rte_flow>>,
    generation: u32,
    table: u16,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Creating,
    Installed,
    Destroying,
}

const _: () = assert!(size_of::<Slot>() == 16);

// SAFETY: rte_flow wants one thread at a time at a queue, not always the same one: `&mut` and no `Sync` see to it.
unsafe impl Send for FlowQueue {}

impl FlowPort {
    /// Takes the port's queue. `None` where the driver has no templates, the queue has an owner, or another port is the transfer
    /// proxy.
    pub fn take_queue(&self) -> Option<FlowQueue> {
        let size = self.port.flow_queue().take_if(|_| self.info.is_transfer_proxy())?;
        let (port, lowered) = (self.port.clone(), Lowered::default());
        Some(FlowQueue { port, size, pending: 0, tables: Vec::new(), rules: Vec::new(), free: Vec::new(), lowered })
    }
}

impl FlowQueue {
    /// Memory of each rule, in bytes.
    pub const BYTES_A_RULE: usize = size_of::<Slot>();

    /// Lowers a rule as [`create`](rte_rule::FlowQueue::create) does, and no more: for measurements.
    pub fn lower(&mut self, pattern: &[FlowItem], actions: &[FlowAction]) {
        self.lowered.lower(pattern, actions);
    }

    /// Number of operations that the queue takes before one completes.
    pub fn room(&self) -> u32 {
        self.size - self.pending
    }

    /// Number of template tables.
    pub fn tables(&self) -> usize {
        self.tables.iter().flatten().count()
    }

    /// Records a result of the device. Returns the completion, unless `give_up` or `abandon` came first.
    fn complete(&mut self, result: &sys::rte_flow_op_result) -> Option<Completion> {
        self.pending = self.pending.saturating_sub(1);
        let (rule, operation) = read_user_data(result.user_data.addr());
        let done = result.status == sys::RTE_FLOW_OP_SUCCESS;
        let state = self.find(rule)?.state;
        match (operation, state, done) {
            (Operation::Create, State::Creating, true) | (Operation::Destroy, State::Destroying, false) => {
                self.rules[rule.index as usize].state = State::Installed;
            }
            (Operation::Create, State::Creating, false) | (Operation::Destroy, State::Destroying, true) => {
                self.release(rule);
            }
            _ => return None,
        }
        Some(Completion { rule, operation, done })
    }

    fn release(&mut self, rule: RuleId) {
        let slot = &mut self.rules[rule.index as usize];
        if let Some(Some(table)) = self.tables.get_mut(usize::from(slot.table)) {
            table.rules -= 1;
        }
        *slot = Slot { raw: None, generation: slot.generation.wrapping_add(1), table: 0, state: State::Free };
        self.free.push(rule.index);
    }

    fn find(&self, rule: RuleId) -> Option<&Slot> {
        let slot = self.rules.get(rule.index as usize)?;
        (slot.generation == rule.generation && slot.state != State::Free).then_some(slot)
    }

    fn lost(&self) -> FlowError {
        FlowError::Lost {
            device: self.port.name().to_owned(),
            said: "the flow queue does not have the rule".to_owned(),
        }
    }

    /// Finds or makes a table that has room for a rule of this shape. Returns its index.
    fn table_for(&mut self, attr: &FlowAttr, pattern: &[FlowItem], actions: &[FlowAction]) -> Result<usize, FlowError> {
        let mut room = FIRST_TABLE_RULES;
        let mut vacant = None;
        for (at, table) in self.tables.iter().enumerate() {
            match table {
                Some(table) if table.is_for(attr, pattern, actions) => {
                    if table.rules < table.room {
                        return Ok(at);
                    }
                    room = room.max(table.room.saturating_mul(2)).min(MAX_RULES);
                }
                Some(_) => {}
                None => vacant = Some(at),
            }
        }
        if vacant.is_none() && self.tables.len() == MAX_TABLES {
            let empty = |table: &mut Option<TemplateTable>| table.take_if(|table| table.rules == 0).is_some();
            vacant = (0..MAX_TABLES).filter(|at| empty(&mut self.tables[*at])).last();
            if vacant.is_none() {
                let said = format!("the queue has {MAX_TABLES} tables of other shapes");
                return Err(FlowError::NoTemplate { device: self.port.name().to_owned(), said });
            }
        }
        let table = TemplateTable::new(&self.port, attr, pattern, actions, room)?;
        let at = vacant.unwrap_or_else(|| {
            self.tables.push(None);
            self.tables.len() - 1
        });
        self.tables[at] = Some(table);
        Ok(at)
    }

    /// Removes all rules, until the device refuses or [`CLEAR_TIMEOUT`] passes.
    fn clear(&mut self) -> Result<(), FlowError> {
        let deadline = Instant::now() + CLEAR_TIMEOUT;
        let mut completions = Vec::new();
        let mut left: Vec<RuleId> = (0..).zip(&self.rules).map(|(index, slot)| slot.id(index)).collect();
        loop {
            while let Some(rule) = left.pop() {
                match self.find(rule).map(|slot| slot.state) {
                    Some(State::Installed) if self.room() > 0 => {
                        let _ = self.destroy(rule); // a rule that the device refuses to remove is reported by `drop`
                    }
                    Some(State::Installed | State::Creating) => {
                        left.push(rule);
                        break;
                    }
                    _ => {}
                }
            }
            self.push()?;
            self.pull(&mut completions)?;
            completions.clear();
            if left.is_empty() && self.pending == 0 || Instant::now() > deadline {
                return Ok(());
            }
        }
    }
}

impl rte_rule::FlowQueue for FlowQueue {
    fn create(&mut self, attr: &FlowAttr, pattern: &[FlowItem], actions: &[FlowAction]) -> Result<RuleId, FlowError> {
        if self.room() == 0 {
            return Err(FlowError::Busy { device: self.port.name().to_owned() });
        }
        let at = self.table_for(attr, pattern, actions)?;
        let Some(table) = self.tables[at].as_mut() else { unreachable!("`table_for` returns a table") };
        self.lowered.lower(pattern, actions);
        let index = self.free.pop().unwrap_or_else(|| {
            self.rules.push(Slot { raw: None, generation: 0, table: 0, state: State::Free });
            self.rules.len() as u32 - 1
        });
        let slot = &mut self.rules[index as usize];
        let id = RuleId { index, generation: slot.generation };
        let (items, actions) = (self.lowered.items.as_ptr(), self.lowered.actions.as_ptr());
        let (port, table_ptr, data) = (self.port.id(), table.raw.as_ptr(), user_data(id, Operation::Create));
        let (postponed, mut error) = (postponed(), sys::rte_flow_error::default());
        // SAFETY: lent-port and ended-lists; `table_for` found a table whose templates, each of index 0, fit the lists.
        let raw = unsafe {
            let (op_attr, error) = (&raw const postponed, &raw mut error);
            sys::rte_flow_async_create(port, QUEUE, op_attr, table_ptr, items, 0, actions, 0, data, error)
        };
        let Some(raw) = NonNull::new(raw) else {
            self.free.push(index);
            return Err(refused(self.port.name(), Errno::last(), &error, Some(&self.lowered)));
        };
        *slot = Slot { raw: Some(raw), table: at as u16, state: State::Creating, ..*slot };
        table.rules += 1;
        self.pending += 1;
        Ok(id)
    }

    fn destroy(&mut self, rule: RuleId) -> Result<(), FlowError> {
        let Some(raw) = self.find(rule).filter(|slot| slot.state == State::Installed).and_then(|slot| slot.raw) else {
            return Err(self.lost());
        };
        if self.room() == 0 {
            return Err(FlowError::Busy { device: self.port.name().to_owned() });
        }
        let (port, data) = (self.port.id(), user_data(rule, Operation::Destroy));
        let (postponed, mut error) = (postponed(), sys::rte_flow_error::default());
        // SAFETY: lent-port and live-rule; the slot leaves `State::Installed` below, so the rule is not used again.
        let returned = unsafe {
            sys::rte_flow_async_destroy(port, QUEUE, &raw const postponed, raw.as_ptr(), data, &raw mut error)
        };
        Errno::check(returned).map_err(|errno| refused(self.port.name(), errno, &error, None))?;
        self.rules[rule.index as usize].state = State::Destroying;
        self.pending += 1;
        Ok(())
    }

    fn query(&self, rule: RuleId) -> Result<FlowCount, FlowError> {
        match self.find(rule) {
            Some(Slot { raw: Some(raw), state: State::Installed, .. }) => count(&self.port, self.port.id(), *raw),
            _ => Err(self.lost()),
        }
    }

    fn pending(&self) -> u32 {
        self.pending
    }

    fn push(&mut self) -> Result<(), FlowError> {
        let mut error = sys::rte_flow_error::default();
        // SAFETY: lent-port, whose queue `configure` made; `error` leads to a local.
        let returned = unsafe { sys::rte_flow_push(self.port.id(), QUEUE, &raw mut error) };
        Errno::check(returned).map_err(|errno| refused(self.port.name(), errno, &error, None))
    }

    fn pull(&mut self, completions: &mut Vec<Completion>) -> Result<(), FlowError> {
        loop {
            let mut results = [sys::rte_flow_op_result::default(); PULL_BATCH];
            let (place, room) = (results.as_mut_ptr(), PULL_BATCH as u16);
            let mut error = sys::rte_flow_error::default();
            // SAFETY: lent-port, whose queue `configure` made; `results` has room for `PULL_BATCH` results.
            let returned = unsafe { sys::rte_flow_pull(self.port.id(), QUEUE, place, room, &raw mut error) };
            Errno::check(returned).map_err(|errno| refused(self.port.name(), errno, &error, None))?;
            let pulled = (returned as usize).min(PULL_BATCH);
            completions.extend(results[..pulled].iter().filter_map(|result| self.complete(result)));
            if pulled < PULL_BATCH {
                return Ok(());
            }
        }
    }

    fn give_up(&mut self, rule: RuleId) {
        match self.find(rule).map(|slot| slot.state) {
            Some(State::Creating) => self.rules[rule.index as usize].state = State::Installed,
            Some(State::Destroying) => self.release(rule),
            Some(State::Free | State::Installed) | None => return,
        }
        self.pending = self.pending.saturating_sub(1);
    }

    fn abandon(&mut self, rule: RuleId) {
        self.give_up(rule);
        if self.find(rule).is_some() {
            self.release(rule);
        }
    }
}

impl Slot {
    fn id(&self, index: u32) -> RuleId {
        RuleId { index, generation: self.generation }
    }
}

impl Drop for FlowQueue {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            tracing::warn!(%error, "flow rules stay in their device");
        }
        let left = self.rules.iter().filter(|slot| slot.state != State::Free).count();
        if left > 0 {
            tracing::warn!(device = self.port.name(), left, "flow rules stay in their device");
        }
        *self.port.flow_queue() = Some(self.size);
    }
}

/// The attribute of operations that wait in the queue for a push.
fn postponed() -> sys::rte_flow_op_attr {
    let mut attr = sys::rte_flow_op_attr::default();
    attr.set_postpone(1);
    attr
}

/// The user data by which a completion names its rule and operation.
fn user_data(rule: RuleId, operation: Operation) -> *mut std::ffi::c_void {
    let bit = u64::from(operation == Operation::Destroy);
    without_provenance_mut((u64::from(rule.generation) << 32 | u64::from(rule.index) << 1 | bit) as usize)
}

fn read_user_data(data: usize) -> (RuleId, Operation) {
    let data = data as u64;
    let rule = RuleId { index: (data as u32) >> 1, generation: (data >> 32) as u32 };
    (rule, if data & 1 == 0 { Operation::Create } else { Operation::Destroy })
}
