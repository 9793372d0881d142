//! Items and actions that an application lends: the only code of `translate` that follows their pointers.
//!
//! # Invariant: lent-rule
//!
//! Each pointer in a [`LentItem`] or [`LentAction`] is null or leads to the structure that rte_flow gives the element's type, and
//! lists in that structure have the length beside them, or an END. All of it stays as it is while the reference lives. The unsafe
//! functions that make such references require it of their callers; an application promises it by calling rte_flow. The handle in
//! an INDIRECT action and the context in an AGE action are numbers, which nothing follows.

use super::Refusal;
use dpdk_sys as sys;
use std::marker::PhantomData;
use std::ops::Deref;
use std::slice::from_raw_parts;

/// An item of a lent pattern (lent-rule).
#[repr(transparent)]
pub(crate) struct LentItem(sys::rte_flow_item);

/// An action of a lent list (lent-rule).
#[repr(transparent)]
pub(crate) struct LentAction(sys::rte_flow_action);

/// An element of a list that ends in an END: a transparent wrapper of DPDK's structure.
pub(super) trait Element: Sized {
    type Raw;
    const END: u32;

    fn kind(&self) -> u32;
}

impl Element for LentItem {
    type Raw = sys::rte_flow_item;
    const END: u32 = sys::RTE_FLOW_ITEM_TYPE_END;

    fn kind(&self) -> u32 {
        self.0.type_
    }
}

impl Element for LentAction {
    type Raw = sys::rte_flow_action;
    const END: u32 = sys::RTE_FLOW_ACTION_TYPE_END;

    fn kind(&self) -> u32 {
        self.0.type_
    }
}

impl Deref for LentItem {
    type Target = sys::rte_flow_item;

    fn deref(&self) -> &sys::rte_flow_item {
        &self.0
    }
}

impl Deref for LentAction {
    type Target = sys::rte_flow_action;

    fn deref(&self) -> &sys::rte_flow_action {
        &self.0
    }
}

/// A lent list without its END; `None` for null.
///
/// # Safety
/// `first` is null or leads to a list that ends in an END, and lent-rule holds for its elements.
pub(super) unsafe fn list<'a, E: Element>(first: *const E::Raw) -> Option<&'a [E]> {
    let first = first.cast::<E>();
    if first.is_null() {
        return None;
    }
    let mut len = 0;
    loop {
        // SAFETY: none of the elements before is the END, so the list goes on.
        let element = unsafe { first.add(len) };
        // SAFETY: an element of the caller's list, of which `E` is a transparent wrapper.
        if unsafe { &*element }.kind() == E::END {
            break;
        }
        len += 1;
    }
    // SAFETY: the elements before the END, for which the caller promises lent-rule.
    Some(unsafe { from_raw_parts(first, len) })
}

/// A lent list of elements of these types, of which the last is the END. Otherwise the first element of another type.
///
/// # Safety
/// `first` leads to a list that ends in an END, and lent-rule holds for its elements.
pub(super) unsafe fn list_of<'a, E: Element>(first: *const E::Raw, kinds: &[u32]) -> Result<&'a [E], &'a E> {
    let first = first.cast::<E>();
    for (index, &kind) in kinds.iter().enumerate() {
        // SAFETY: none of the elements before is the END, which is the last of `kinds` alone, so the list goes on.
        let element = unsafe { first.add(index) };
        // SAFETY: an element of the caller's list, of which `E` is a transparent wrapper.
        let element = unsafe { &*element };
        if element.kind() != kind {
            return Err(element);
        }
    }
    // SAFETY: the elements up to the END, for which the caller promises lent-rule.
    Ok(unsafe { from_raw_parts(first, kinds.len()) })
}

/// Bytes of the structure of an item; 0 for one that the device does not read.
pub(super) const fn item_len(kind: sys::rte_flow_item_type) -> usize {
    match kind {
        sys::RTE_FLOW_ITEM_TYPE_ETH => size_of::<sys::rte_flow_item_eth>(),
        sys::RTE_FLOW_ITEM_TYPE_VLAN => size_of::<sys::rte_flow_item_vlan>(),
        sys::RTE_FLOW_ITEM_TYPE_IPV4 => size_of::<sys::rte_flow_item_ipv4>(),
        sys::RTE_FLOW_ITEM_TYPE_IPV6 => size_of::<sys::rte_flow_item_ipv6>(),
        sys::RTE_FLOW_ITEM_TYPE_IPV6_FRAG_EXT => size_of::<sys::rte_flow_item_ipv6_frag_ext>(),
        sys::RTE_FLOW_ITEM_TYPE_TCP => size_of::<sys::rte_flow_item_tcp>(),
        sys::RTE_FLOW_ITEM_TYPE_UDP => size_of::<sys::rte_flow_item_udp>(),
        sys::RTE_FLOW_ITEM_TYPE_SCTP => size_of::<sys::rte_flow_item_sctp>(),
        sys::RTE_FLOW_ITEM_TYPE_ICMP => size_of::<sys::rte_flow_item_icmp>(),
        sys::RTE_FLOW_ITEM_TYPE_ICMP6 => size_of::<sys::rte_flow_item_icmp6>(),
        sys::RTE_FLOW_ITEM_TYPE_VXLAN => size_of::<sys::rte_flow_item_vxlan>(),
        sys::RTE_FLOW_ITEM_TYPE_GENEVE => size_of::<sys::rte_flow_item_geneve>(),
        sys::RTE_FLOW_ITEM_TYPE_REPRESENTED_PORT | sys::RTE_FLOW_ITEM_TYPE_PORT_REPRESENTOR => {
            size_of::<sys::rte_flow_item_ethdev>()
        }
        sys::RTE_FLOW_ITEM_TYPE_CONNTRACK => size_of::<sys::rte_flow_item_conntrack>(),
        _ => 0,
    }
}

/// Bytes of the configuration of an action that has values, of AGE those of the timeout; 0 for an action without values.
const fn conf_len(kind: sys::rte_flow_action_type) -> usize {
    match kind {
        sys::RTE_FLOW_ACTION_TYPE_MARK
        | sys::RTE_FLOW_ACTION_TYPE_JUMP
        | sys::RTE_FLOW_ACTION_TYPE_METER
        | sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_SRC
        | sys::RTE_FLOW_ACTION_TYPE_SET_IPV4_DST
        | sys::RTE_FLOW_ACTION_TYPE_AGE => 4,
        sys::RTE_FLOW_ACTION_TYPE_QUEUE
        | sys::RTE_FLOW_ACTION_TYPE_REPRESENTED_PORT
        | sys::RTE_FLOW_ACTION_TYPE_PORT_REPRESENTOR
        | sys::RTE_FLOW_ACTION_TYPE_OF_PUSH_VLAN
        | sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_VID
        | sys::RTE_FLOW_ACTION_TYPE_SET_TP_SRC
        | sys::RTE_FLOW_ACTION_TYPE_SET_TP_DST => 2,
        sys::RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_PCP | sys::RTE_FLOW_ACTION_TYPE_SET_TTL => 1,
        sys::RTE_FLOW_ACTION_TYPE_SET_MAC_SRC | sys::RTE_FLOW_ACTION_TYPE_SET_MAC_DST => 6,
        sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_SRC | sys::RTE_FLOW_ACTION_TYPE_SET_IPV6_DST => 16,
        sys::RTE_FLOW_ACTION_TYPE_PORT_ID => size_of::<sys::rte_flow_action_port_id>(),
        sys::RTE_FLOW_ACTION_TYPE_RSS => size_of::<sys::rte_flow_action_rss>(),
        sys::RTE_FLOW_ACTION_TYPE_VXLAN_ENCAP => size_of::<sys::rte_flow_action_vxlan_encap>(),
        sys::RTE_FLOW_ACTION_TYPE_RAW_ENCAP => size_of::<sys::rte_flow_action_raw_encap>(),
        sys::RTE_FLOW_ACTION_TYPE_RAW_DECAP => size_of::<sys::rte_flow_action_raw_decap>(),
        _ => 0,
    }
}

impl LentItem {
    /// The bytes of the value.
    pub(super) fn spec(&self) -> Option<&[u8]> {
        // SAFETY: lent-rule: where `spec` is not null, it leads to a structure of this length.
        (!self.0.spec.is_null()).then(|| unsafe { from_raw_parts(self.0.spec.cast(), item_len(self.0.type_)) })
    }

    /// The bytes of the mask.
    pub(super) fn mask(&self) -> Option<&[u8]> {
        // SAFETY: lent-rule: where `mask` is not null, it leads to a structure of this length.
        (!self.0.mask.is_null()).then(|| unsafe { from_raw_parts(self.0.mask.cast(), item_len(self.0.type_)) })
    }
}

impl LentAction {
    /// A lent action; `None` for null.
    ///
    /// # Safety
    /// `action` is null or leads to an action for which lent-rule holds.
    pub(crate) unsafe fn new<'a>(action: *const sys::rte_flow_action) -> Option<&'a LentAction> {
        // SAFETY: the caller passes null or an action, of which this is a transparent wrapper.
        unsafe { action.cast::<LentAction>().as_ref() }
    }

    /// The bytes of the configuration; empty for an action without values.
    pub(super) fn conf_bytes(&self) -> Option<&[u8]> {
        let len = conf_len(self.0.type_);
        if len == 0 {
            return Some(&[]);
        }
        // SAFETY: lent-rule: where `conf` is not null, it leads to a structure of at least this length.
        (!self.0.conf.is_null()).then(|| unsafe { from_raw_parts(self.0.conf.cast(), len) })
    }

    /// The configuration of an RSS action, with its queues and the bytes of its key.
    pub(super) fn rss(&self) -> Result<(sys::rte_flow_action_rss, Vec<u16>, Vec<u8>), Refusal> {
        let rss = Conf::<sys::rte_flow_action_rss>::of(self)?;
        // SAFETY: lent-rule: `queue` is null or a list of `queue_num` queues of two bytes.
        let queues = unsafe { copy(rss.queue.cast::<u8>(), 2 * rss.queue_num as usize) };
        let queues = queues.chunks(2).map(|queue| u16::from_ne_bytes([queue[0], queue[1]])).collect();
        // SAFETY: lent-rule: `key` is null or a list of `key_len` bytes.
        let key = unsafe { copy(rss.key, rss.key_len as usize) };
        Ok((rss, queues, key))
    }

    /// The bytes that a RAW_ENCAP action prepends, `None` without any.
    pub(super) fn raw_encap_data(&self) -> Result<Option<Vec<u8>>, Refusal> {
        let conf = Conf::<sys::rte_flow_action_raw_encap>::of(self)?;
        // SAFETY: lent-rule: `data` is null or a list of `size` bytes.
        Ok((!conf.data.is_null()).then(|| unsafe { copy(conf.data, conf.size) }))
    }

    /// The items of a VXLAN_ENCAP action, `None` without any.
    pub(super) fn encap_items(&self) -> Result<Option<&[LentItem]>, Refusal> {
        let conf = Conf::<sys::rte_flow_action_vxlan_encap>::of(self)?;
        // SAFETY: lent-rule: `definition` is null or a list that ends in an END, and lent-rule holds for its items.
        Ok(unsafe { list(conf.definition) })
    }

    /// The connection of a CONNTRACK action.
    pub(crate) fn connection(&self) -> Option<&sys::rte_flow_action_conntrack> {
        assert_eq!(self.0.type_, sys::RTE_FLOW_ACTION_TYPE_CONNTRACK, "an action of another type");
        // SAFETY: lent-rule: `conf` is null or leads to a connection.
        unsafe { self.0.conf.cast::<sys::rte_flow_action_conntrack>().as_ref() }
    }
}

/// A copy of bytes; empty for null.
///
/// # Safety
/// `first` is null or leads to `len` bytes.
unsafe fn copy(first: *const u8, len: usize) -> Vec<u8> {
    if first.is_null() {
        return Vec::new();
    }
    // SAFETY: not null, so the caller has `len` bytes there.
    unsafe { from_raw_parts(first, len) }.to_vec()
}

/// The configuration of an action, as a `T`.
pub(super) struct Conf<T>(PhantomData<T>);

impl<T: ConfOf> Conf<T> {
    /// Reads the configuration, if there is one.
    pub(super) fn of(action: &LentAction) -> Result<T, Refusal> {
        assert!(T::ACTIONS.contains(&action.0.type_), "the configuration of an action of another type");
        if action.0.conf.is_null() {
            let message = c"the action has no configuration";
            return Err(Refusal::invalid(sys::RTE_FLOW_ERROR_TYPE_ACTION, action, message));
        }
        // SAFETY: lent-rule: `conf` leads to the structure of the action's type, which is a `T` or begins with one. Some of these
        // structures have no alignment.
        Ok(unsafe { action.0.conf.cast::<T>().read_unaligned() })
    }
}

/// A structure that is, or begins, the configuration of some actions.
pub(super) trait ConfOf: Copy {
    const ACTIONS: &'static [sys::rte_flow_action_type];
}

macro_rules! conf_of {
    ($($conf:ty: $($action:ident),+;)*) => {
        $(impl ConfOf for $conf {
            const ACTIONS: &'static [sys::rte_flow_action_type] = &[$(sys::$action),+];
        })*
    };
}

conf_of! {
    sys::rte_flow_action_mark: RTE_FLOW_ACTION_TYPE_MARK;
    sys::rte_flow_action_meter: RTE_FLOW_ACTION_TYPE_METER;
    sys::rte_flow_action_jump: RTE_FLOW_ACTION_TYPE_JUMP;
    sys::rte_flow_action_queue: RTE_FLOW_ACTION_TYPE_QUEUE;
    sys::rte_flow_action_rss: RTE_FLOW_ACTION_TYPE_RSS;
    sys::rte_flow_action_age: RTE_FLOW_ACTION_TYPE_AGE;
    sys::rte_flow_action_ethdev: RTE_FLOW_ACTION_TYPE_REPRESENTED_PORT, RTE_FLOW_ACTION_TYPE_PORT_REPRESENTOR;
    sys::rte_flow_action_port_id: RTE_FLOW_ACTION_TYPE_PORT_ID;
    sys::rte_flow_action_of_push_vlan: RTE_FLOW_ACTION_TYPE_OF_PUSH_VLAN;
    sys::rte_flow_action_of_set_vlan_vid: RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_VID;
    sys::rte_flow_action_of_set_vlan_pcp: RTE_FLOW_ACTION_TYPE_OF_SET_VLAN_PCP;
    sys::rte_flow_action_vxlan_encap: RTE_FLOW_ACTION_TYPE_VXLAN_ENCAP;
    sys::rte_flow_action_raw_encap: RTE_FLOW_ACTION_TYPE_RAW_ENCAP;
    sys::rte_flow_action_raw_decap: RTE_FLOW_ACTION_TYPE_RAW_DECAP;
    [u8; 6]: RTE_FLOW_ACTION_TYPE_SET_MAC_SRC, RTE_FLOW_ACTION_TYPE_SET_MAC_DST;
    [u8; 4]: RTE_FLOW_ACTION_TYPE_SET_IPV4_SRC, RTE_FLOW_ACTION_TYPE_SET_IPV4_DST;
    [u8; 16]: RTE_FLOW_ACTION_TYPE_SET_IPV6_SRC, RTE_FLOW_ACTION_TYPE_SET_IPV6_DST;
    [u8; 2]: RTE_FLOW_ACTION_TYPE_SET_TP_SRC, RTE_FLOW_ACTION_TYPE_SET_TP_DST;
    u8: RTE_FLOW_ACTION_TYPE_SET_TTL;
}
