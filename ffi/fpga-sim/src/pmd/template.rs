//! Templates and tables of a port. Their handles are numbers, in pointers that nothing follows.

use super::abi::{Actions, Error, EthDev, Items};
use super::flow::{in_context, refuse, unspecified};
use super::queue::Queue;
use super::{Port, port};
use crate::pipeline::{RuleTemplate, TableId};
use crate::translate::{self, Context, Refusal};
use dpdk_sys as sys;
use std::ffi::{CStr, c_int, c_void};
use std::ptr::{null, null_mut, without_provenance_mut};

/// Queues, tables and templates of a port.
#[derive(Default)]
pub(super) struct Engine {
    pub queues: Vec<Queue>,
    pub tables: Objects<Table>,
    patterns: Objects<translate::Pattern>,
    actions: Objects<translate::Actions>,
}

/// A table.
pub(super) struct Table {
    pub id: TableId,
    pub templates: translate::Table,
    /// Rules without their values, by pattern template.
    pub rule_templates: Vec<RuleTemplate>,
    patterns: Vec<usize>,
    actions: Vec<usize>,
}

/// Objects that an application names by handles.
pub(super) struct Objects<T>(Vec<Option<T>>);

impl<T> Default for Objects<T> {
    fn default() -> Objects<T> {
        Objects(Vec::new())
    }
}

impl<T> Objects<T> {
    /// Adds an object. Returns its handle, which is not used again.
    fn add(&mut self, object: T) -> usize {
        self.0.push(Some(object));
        self.0.len()
    }

    pub(super) fn get(&self, address: usize) -> Option<&T> {
        self.0.get(address.checked_sub(1)?)?.as_ref()
    }

    fn remove(&mut self, address: usize) -> Option<T> {
        self.0.get_mut(address.checked_sub(1)?)?.take()
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }
}

fn invalid(message: &'static CStr) -> Refusal {
    unspecified(libc::EINVAL, message)
}

fn busy(message: &'static CStr) -> Refusal {
    unspecified(libc::EBUSY, message)
}

/// The object's address, or null and why.
fn answer<T>(result: Result<usize, Refusal>, error: Error) -> *mut T {
    match result {
        Ok(address) => without_provenance_mut(address),
        Err(refusal) => {
            refuse(error, &refusal);
            null_mut()
        }
    }
}

/// Zero, or why not.
pub(super) fn done(result: Result<(), Refusal>, error: Error) -> c_int {
    result.map_or_else(|refusal| refuse(error, &refusal), |()| 0)
}

fn translated<T>(port: &Port, call: impl FnOnce(&Context) -> Result<T, Refusal>) -> Result<T, Refusal> {
    in_context(port, &mut port.device.lock(), true, call)
}

pub(super) unsafe extern "C" fn pattern_create(
    dev: *mut EthDev,
    attributes: *const sys::rte_flow_pattern_template_attr,
    items: Items,
    error: Error,
) -> *mut sys::rte_flow_pattern_template {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure.
    let attributes = unsafe { &*attributes };
    // SAFETY: lent-structure: a list for whose elements lent-rule holds.
    let pattern = translated(port, |context| unsafe { translate::Pattern::new(context, attributes, items) });
    answer(pattern.map(|pattern| port.engine().patterns.add(pattern)), error)
}

pub(super) unsafe extern "C" fn pattern_destroy(
    dev: *mut EthDev,
    template: *mut sys::rte_flow_pattern_template,
    error: Error,
) -> c_int {
    // SAFETY: lent-port.
    let mut engine = unsafe { port(dev) }.engine();
    let address = template.addr();
    let used = engine.tables.iter().any(|table| table.patterns.contains(&address));
    let destroyed = match used {
        true => Err(busy(c"a table uses the template")),
        false => engine.patterns.remove(address).map(drop).ok_or_else(|| invalid(c"no such pattern template")),
    };
    done(destroyed, error)
}

pub(super) unsafe extern "C" fn actions_create(
    dev: *mut EthDev,
    attributes: *const sys::rte_flow_actions_template_attr,
    actions: Actions,
    masks: Actions,
    error: Error,
) -> *mut sys::rte_flow_actions_template {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure.
    let attributes = unsafe { &*attributes };
    // SAFETY: lent-structure: lists for whose elements lent-rule holds.
    let actions = translated(port, |context| unsafe { translate::Actions::new(context, attributes, actions, masks) });
    answer(actions.map(|actions| port.engine().actions.add(actions)), error)
}

pub(super) unsafe extern "C" fn actions_destroy(
    dev: *mut EthDev,
    template: *mut sys::rte_flow_actions_template,
    error: Error,
) -> c_int {
    // SAFETY: lent-port.
    let mut engine = unsafe { port(dev) }.engine();
    let address = template.addr();
    let used = engine.tables.iter().any(|table| table.actions.contains(&address));
    let destroyed = match used {
        true => Err(busy(c"a table uses the template")),
        false => engine.actions.remove(address).map(drop).ok_or_else(|| invalid(c"no such actions template")),
    };
    done(destroyed, error)
}

pub(super) unsafe extern "C" fn table_create(
    dev: *mut EthDev,
    attributes: *const sys::rte_flow_template_table_attr,
    patterns: *mut *mut sys::rte_flow_pattern_template,
    patterns_len: u8,
    actions: *mut *mut sys::rte_flow_actions_template,
    actions_len: u8,
    error: Error,
) -> *mut sys::rte_flow_template_table {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure.
    let attributes = unsafe { &*attributes };
    // SAFETY: lent-structure: a list of this length.
    let patterns = unsafe { std::slice::from_raw_parts(patterns, usize::from(patterns_len)) };
    // SAFETY: lent-structure: a list of this length.
    let actions = unsafe { std::slice::from_raw_parts(actions, usize::from(actions_len)) };
    let addresses = (
        patterns.iter().map(|template| template.addr()).collect(),
        actions.iter().map(|template| template.addr()).collect(),
    );
    answer(open(port, attributes, addresses), error)
}

fn open(
    port: &Port,
    attributes: &sys::rte_flow_template_table_attr,
    (patterns, actions): (Vec<usize>, Vec<usize>),
) -> Result<usize, Refusal> {
    let mut engine = port.engine();
    let found = patterns.iter().map(|&address| engine.patterns.get(address)).collect::<Option<Vec<_>>>();
    let found = found.zip(actions.iter().map(|&address| engine.actions.get(address)).collect::<Option<Vec<_>>>());
    let (found_patterns, found_actions) = found.ok_or_else(|| invalid(c"no such template"))?;
    if patterns.is_empty() || actions.is_empty() || attributes.nb_flows == 0 {
        return Err(invalid(c"a table has a pattern template, an actions template, and room for a rule"));
    }
    let mut state = port.device.lock();
    let templates = in_context(port, &mut state, true, |context| {
        translate::Table::new(context, &attributes.flow_attr, &found_patterns, &found_actions)
    })?;
    let place = (templates.domain, templates.group, templates.priority);
    let owner = state.ports[port.index].id;
    let id = state.pipeline.open_table(owner, place, &templates.patterns(), attributes.nb_flows);
    let rule_templates = (0..patterns.len()).filter_map(|pattern| state.pipeline.rule_template(id, pattern)).collect();
    drop(state);
    Ok(engine.tables.add(Table { id, templates, rule_templates, patterns, actions }))
}

pub(super) unsafe extern "C" fn table_destroy(
    dev: *mut EthDev,
    table: *mut sys::rte_flow_template_table,
    error: Error,
) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    let mut engine = port.engine();
    let closed = match engine.tables.get(table.addr()) {
        None => Err(no_table(table)),
        Some(table) if !port.device.lock().pipeline.close_table(table.id) => Err(busy(c"the table has rules")),
        Some(_) => Ok(()),
    };
    if closed.is_ok() {
        engine.tables.remove(table.addr());
    }
    done(closed, error)
}

pub(super) fn no_table(table: *mut sys::rte_flow_template_table) -> Refusal {
    let cause = if table.is_null() { null() } else { table.cast_const().cast::<c_void>() };
    Refusal { errno: libc::EINVAL, kind: sys::RTE_FLOW_ERROR_TYPE_HANDLE, cause, message: c"no such template table" }
}
