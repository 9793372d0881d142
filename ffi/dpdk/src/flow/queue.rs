//! Rules that are put in and taken out without waiting for the device.

use super::lower::Lowered;
use super::template::TemplateTable;
use super::{FlowAction, FlowAttributes, FlowCount, FlowError, FlowItem, FlowPort, count, refused};
use crate::Errno;
use crate::ethdev::Port;
use dpdk_sys as sys;
use std::ptr::{NonNull, without_provenance_mut};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Operations that a queue holds, where the driver has no smaller limit.
const SIZE: u32 = 1024;
/// Counters, and rules that age, that a driver is to have ready, where it has so many.
const RULES: u32 = 1 << 20;
/// The one queue that a port has.
const QUEUE: u32 = 0;
/// Template tables of a queue.
const TABLES: usize = 64;
/// Rules of the first table of a shape. Each further one has twice as many.
const FIRST_TABLE: u32 = 1024;
/// Completions that are taken at a time.
const BATCH: usize = 64;
/// What a device gets to let go of the last rules.
const PATIENCE: Duration = Duration::from_secs(1);

/// Gives a port that is configured and does not run a queue, where its driver has queues. Returns what it holds.
pub(crate) fn configure(port: u16) -> Option<u32> {
    let (mut info, mut of_queue) = (sys::rte_flow_port_info::default(), sys::rte_flow_queue_info::default());
    let mut error = sys::rte_flow_error::default();
    // SAFETY: fills both.
    let returned = unsafe { sys::rte_flow_info_get(port, &raw mut info, &raw mut of_queue, &raw mut error) };
    if returned != 0 || info.max_nb_queues == 0 {
        return None;
    }
    let size = if of_queue.max_size == 0 { SIZE } else { of_queue.max_size.min(SIZE) };
    let port_attr = sys::rte_flow_port_attr {
        nb_counters: info.max_nb_counters.min(RULES),
        nb_aging_objects: info.max_nb_aging_objects.min(RULES),
        ..Default::default()
    };
    let queue_attr = sys::rte_flow_queue_attr { size };
    let mut queues = [&raw const queue_attr];
    // SAFETY: reads the attributes of the port and of one queue.
    let returned =
        unsafe { sys::rte_flow_configure(port, &raw const port_attr, 1, queues.as_mut_ptr(), &raw mut error) };
    (returned == 0).then_some(size)
}

/// A rule of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleId {
    index: u32,
    /// Rules that had the index before.
    generation: u32,
}

/// What was asked of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`FlowQueue::create`].
    Create,
    /// [`FlowQueue::destroy`].
    Destroy,
}

/// The device has done it, or has not and will not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The rule.
    pub rule: RuleId,
    /// What was asked.
    pub operation: Operation,
    /// It was done. If not, a rule to create is not there, and one to destroy still is.
    pub done: bool,
}

/// A port's queue of operations, with the rules that it has put in. Dropped, it takes them out.
///
/// Rules of one shape (the same items with the same masks, and the same kinds of actions) share template tables, which are made
/// on demand and go when they are empty and others are wanted.
pub struct FlowQueue {
    port: Arc<Port>,
    size: u32,
    /// Operations whose completion did not come yet.
    pending: u32,
    tables: Vec<Option<TemplateTable>>,
    rules: Vec<Slot>,
    free: Vec<u32>,
    lowered: Lowered,
}

/// A rule.
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
    There,
    Destroying,
}

const _: () = assert!(size_of::<Slot>() == 16);

// SAFETY: ethdev wants one thread at a time to use a queue, and a slot's pointer leads to what is the driver's.
unsafe impl Send for FlowQueue {}

impl FlowPort {
    /// The port's queue, if its driver has templates, nobody else has it, and the port takes its own rules of every direction.
    pub fn queue(&self) -> Option<FlowQueue> {
        let size = self.port.flow_queue().take_if(|_| self.proxy == self.port.id())?;
        let (port, lowered) = (self.port.clone(), Lowered::default());
        Some(FlowQueue { port, size, pending: 0, tables: Vec::new(), rules: Vec::new(), free: Vec::new(), lowered })
    }
}

impl FlowQueue {
    /// What it keeps of each rule.
    pub const BYTES_A_RULE: usize = size_of::<Slot>();

    /// Brings a rule into the form that DPDK takes, as [`create`](Self::create) does, and no more: so it is known what that costs.
    pub fn lower(&mut self, pattern: &[FlowItem], actions: &[FlowAction]) {
        self.lowered.lower(pattern, actions);
    }

    /// Operations that it takes before one completes.
    pub fn room(&self) -> u32 {
        self.size - self.pending
    }

    /// Operations whose completion did not come yet.
    pub fn pending(&self) -> u32 {
        self.pending
    }

    /// Template tables that it has.
    pub fn tables(&self) -> usize {
        self.tables.iter().flatten().count()
    }

    /// Puts a rule in, with the next [`push`](Self::push): a completion says whether it is there.
    pub fn create(
        &mut self,
        attributes: &FlowAttributes,
        pattern: &[FlowItem],
        actions: &[FlowAction],
    ) -> Result<RuleId, FlowError> {
        if self.room() == 0 {
            return Err(FlowError::Busy { device: self.port.name().to_owned() });
        }
        let at = self.table_for(attributes, pattern, actions)?;
        let Some(table) = self.tables[at].as_mut() else { unreachable!("a table was found there") };
        self.lowered.lower(pattern, actions);
        let index = self.free.pop().unwrap_or_else(|| {
            self.rules.push(Slot { raw: None, generation: 0, table: 0, state: State::Free });
            self.rules.len() as u32 - 1
        });
        let slot = &mut self.rules[index as usize];
        let id = RuleId { index, generation: slot.generation };
        let (postponed, mut error) = (postponed(), sys::rte_flow_error::default());
        // SAFETY: items and actions are of the table's templates, end in an END, and live across the call.
        let raw = unsafe {
            let (items, actions) = (self.lowered.items.as_ptr(), self.lowered.actions.as_ptr());
            let (port, table, name) = (self.port.id(), table.raw.as_ptr(), user_data(id, Operation::Create));
            sys::rte_flow_async_create(
                port,
                QUEUE,
                &raw const postponed,
                table,
                items,
                0,
                actions,
                0,
                name,
                &raw mut error,
            )
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

    /// Takes a rule out, with the next [`push`](Self::push): a completion says whether it is gone.
    pub fn destroy(&mut self, rule: RuleId) -> Result<(), FlowError> {
        let Some(raw) = self.find(rule).filter(|slot| slot.state == State::There).and_then(|slot| slot.raw) else {
            return Err(self.lost());
        };
        if self.room() == 0 {
            return Err(FlowError::Busy { device: self.port.name().to_owned() });
        }
        let (postponed, mut error) = (postponed(), sys::rte_flow_error::default());
        // SAFETY: the rule is in the device, and nobody uses it after its destruction has begun.
        let returned = unsafe {
            let (port, name) = (self.port.id(), user_data(rule, Operation::Destroy));
            sys::rte_flow_async_destroy(port, QUEUE, &raw const postponed, raw.as_ptr(), name, &raw mut error)
        };
        Errno::check(returned).map_err(|errno| refused(self.port.name(), errno, &error, None))?;
        self.rules[rule.index as usize].state = State::Destroying;
        self.pending += 1;
        Ok(())
    }

    /// What a rule has counted, if one of its actions is [`FlowAction::Count`].
    pub fn query(&self, rule: RuleId) -> Result<FlowCount, FlowError> {
        match self.find(rule) {
            Some(Slot { raw: Some(raw), state: State::There, .. }) => count(&self.port, self.port.id(), *raw),
            _ => Err(self.lost()),
        }
    }

    /// Gives the device all that was asked.
    pub fn push(&mut self) -> Result<(), FlowError> {
        let mut error = sys::rte_flow_error::default();
        // SAFETY: plain integers.
        let returned = unsafe { sys::rte_flow_push(self.port.id(), QUEUE, &raw mut error) };
        Errno::check(returned).map_err(|errno| refused(self.port.name(), errno, &error, None))
    }

    /// Adds what the device has done.
    pub fn pull(&mut self, completions: &mut Vec<Completion>) -> Result<(), FlowError> {
        loop {
            let mut results = [sys::rte_flow_op_result::default(); BATCH];
            let mut error = sys::rte_flow_error::default();
            // SAFETY: there is room for so many.
            let returned = unsafe {
                sys::rte_flow_pull(self.port.id(), QUEUE, results.as_mut_ptr(), BATCH as u16, &raw mut error)
            };
            Errno::check(returned).map_err(|errno| refused(self.port.name(), errno, &error, None))?;
            let pulled = (returned as usize).min(BATCH);
            completions.extend(results[..pulled].iter().filter_map(|result| self.complete(result)));
            if pulled < BATCH {
                return Ok(());
            }
        }
    }

    /// Takes note of a completion. One that nobody waits for says nothing.
    fn complete(&mut self, result: &sys::rte_flow_op_result) -> Option<Completion> {
        self.pending = self.pending.saturating_sub(1);
        let (rule, operation) = read_user_data(result.user_data.addr());
        let done = result.status == sys::RTE_FLOW_OP_SUCCESS;
        let state = self.find(rule)?.state;
        match (operation, state, done) {
            (Operation::Create, State::Creating, true) | (Operation::Destroy, State::Destroying, false) => {
                self.rules[rule.index as usize].state = State::There;
            }
            (Operation::Create, State::Creating, false) | (Operation::Destroy, State::Destroying, true) => {
                self.release(rule);
            }
            _ => return None,
        }
        Some(Completion { rule, operation, done })
    }

    /// A completion does not come. A rule that was to be created is taken for one that is there, and one that was to be destroyed
    /// for one that is not.
    pub fn give_up(&mut self, rule: RuleId) {
        match self.find(rule).map(|slot| slot.state) {
            Some(State::Creating) => self.rules[rule.index as usize].state = State::There,
            Some(State::Destroying) => self.release(rule),
            _ => return,
        }
        self.pending = self.pending.saturating_sub(1);
    }

    /// The device has lost a rule, by a reset or at the hands of somebody else: nothing is left to destroy.
    pub fn abandon(&mut self, rule: RuleId) {
        self.give_up(rule);
        if self.find(rule).is_some() {
            self.release(rule);
        }
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
        FlowError::Lost { device: self.port.name().to_owned(), said: "it is not in the queue's care".to_owned() }
    }

    /// A table that has room for such a rule.
    fn table_for(
        &mut self,
        attributes: &FlowAttributes,
        pattern: &[FlowItem],
        actions: &[FlowAction],
    ) -> Result<usize, FlowError> {
        let (mut room, mut vacant) = (FIRST_TABLE, None);
        for (at, table) in self.tables.iter().enumerate() {
            match table {
                Some(table) if table.is_for(attributes, pattern, actions) => {
                    if table.rules < table.room {
                        return Ok(at);
                    }
                    room = room.max(table.room.saturating_mul(2)).min(RULES);
                }
                Some(_) => {}
                None => vacant = Some(at),
            }
        }
        if vacant.is_none() && self.tables.len() == TABLES {
            let empty = |table: &mut Option<TemplateTable>| table.take_if(|table| table.rules == 0).is_some();
            vacant = (0..TABLES).filter(|at| empty(&mut self.tables[*at])).last();
            if vacant.is_none() {
                let said = format!("there are {TABLES} tables of other shapes");
                return Err(FlowError::NoTemplate { device: self.port.name().to_owned(), said });
            }
        }
        let table = TemplateTable::new(&self.port, attributes, pattern, actions, room)?;
        let at = vacant.unwrap_or_else(|| {
            self.tables.push(None);
            self.tables.len() - 1
        });
        self.tables[at] = Some(table);
        Ok(at)
    }

    /// Takes all rules out, as far as the device lets go of them.
    fn clear(&mut self) -> Result<(), FlowError> {
        let deadline = Instant::now() + PATIENCE;
        let mut completions = Vec::new();
        let mut left: Vec<RuleId> = (0..).zip(&self.rules).map(|(index, slot)| slot.id(index)).collect();
        loop {
            while let Some(rule) = left.pop() {
                match self.find(rule).map(|slot| slot.state) {
                    Some(State::There) if self.room() > 0 => drop(self.destroy(rule)),
                    Some(State::There | State::Creating) => {
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

/// Nothing is given to the device before a push.
fn postponed() -> sys::rte_flow_op_attr {
    let mut attr = sys::rte_flow_op_attr::default();
    attr.set_postpone(1);
    attr
}

/// What a completion is known by.
fn user_data(rule: RuleId, operation: Operation) -> *mut std::ffi::c_void {
    let bit = u64::from(operation == Operation::Destroy);
    without_provenance_mut((u64::from(rule.generation) << 32 | u64::from(rule.index) << 1 | bit) as usize)
}

fn read_user_data(data: usize) -> (RuleId, Operation) {
    let data = data as u64;
    let rule = RuleId { index: (data as u32) >> 1, generation: (data >> 32) as u32 };
    (rule, if data & 1 == 0 { Operation::Create } else { Operation::Destroy })
}
