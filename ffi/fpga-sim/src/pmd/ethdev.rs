//! A port's operations and its packets.

use super::abi::{EthDev, EthDevData, EthDevOps, FlowOps, MeterOps};
use super::backend::Backend;
use super::device::{self, Device, Pool, PortState, State, Stats};
use super::mbuf::Mbuf;
use super::{Port, flow, meter, port};
use crate::pipeline::Rss;
use crate::pipeline::toeplitz::DEFAULT_KEY;
use crate::translate::RSS_TYPES;
use dpdk_sys as sys;
use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

const MAX_QUEUES: u16 = 16;
const MAX_MTU: u16 = 9600;
/// Hash types that spread by ports.
const RSS_PORTS: u64 = (sys::RTE_ETH_RSS_TCP | sys::RTE_ETH_RSS_UDP) as u64 & !(sys::RTE_ETH_RSS_IP as u64);
const STARTED: u8 = 1;
const STOPPED: u8 = 0;

pub(super) static OPS: EthDevOps = EthDevOps {
    dev_configure: Some(configure),
    dev_start: Some(start),
    dev_stop: Some(stop),
    dev_set_link: [None; 2],
    dev_close: Some(close),
    dev_reset: None,
    link_update: Some(link_update),
    is_removed: None,
    receive_modes: [Some(accept); 4],
    mac_addr_remove_add: [None; 2],
    mac_addr_set: Some(mac_addr_set),
    set_mc_addr_list: None,
    mtu_set: Some(mtu_set),
    stats_get: Some(stats_get),
    stats_reset: Some(stats_reset),
    xstats_get: Some(xstats_get),
    xstats_reset: Some(stats_reset),
    xstats_get_names: Some(xstats_get_names),
    queue_stats_mapping_set: None,
    dev_infos_get: Some(infos_get),
    from_rxq_info_get: [None; 16],
    rx_queue_setup: Some(rx_queue_setup),
    rx_queue_release: Some(rx_queue_release),
    rx_queue_intr: [None; 2],
    tx_queue_setup: Some(tx_queue_setup),
    tx_queue_release: Some(tx_queue_release),
    from_tx_done_cleanup: [None; 23],
    flow_ops_get: Some(flow_ops_get),
    from_get_dcb_info: [None; 12],
    mtr_ops_get: Some(mtr_ops_get),
    from_pool_ops_supported: [None; 15],
    rx_metadata_negotiate: Some(rx_metadata_negotiate),
    from_ip_reassembly: [None; 13],
};

/// A queue as the burst functions get it.
struct Queue {
    device: Arc<Device>,
    port: usize,
    index: usize,
}

pub(super) unsafe extern "C" fn rx_burst(queue: *mut c_void, packets: *mut *mut sys::rte_mbuf, room: u16) -> u16 {
    // SAFETY: lent-port: `rx_queue_setup` made the queue.
    let queue = unsafe { &*queue.cast::<Queue>() };
    let (received, events) = queue.device.receive(queue.port, queue.index, usize::from(room));
    let count = received.len();
    for (index, packet) in received.into_iter().enumerate() {
        // SAFETY: lent-structure: `packets` has room for `room` packets, and no more were received.
        let place = unsafe { packets.add(index) };
        // SAFETY: within that room.
        unsafe { place.write(packet.into_raw()) };
    }
    queue.device.tell(&events);
    count as u16
}

pub(super) unsafe extern "C" fn tx_burst(queue: *mut c_void, packets: *mut *mut sys::rte_mbuf, count: u16) -> u16 {
    // SAFETY: lent-port: `tx_queue_setup` made the queue.
    let queue = unsafe { &*queue.cast::<Queue>() };
    // SAFETY: lent-structure: a list of `count` packets.
    let packets = unsafe { std::slice::from_raw_parts(packets, usize::from(count)) };
    // SAFETY: the application gives the packets away, since all of them are taken.
    let own = |&packet: &*mut sys::rte_mbuf| unsafe { Mbuf::from_raw(packet) };
    queue.device.send(queue.port, packets.iter().filter_map(own).collect());
    count
}

/// ethdev's data of a port, for an operation that changes the port: ethdev makes one such call at a time.
///
/// # Safety
/// lent-port holds for `dev`.
unsafe fn data<'a>(dev: *mut EthDev) -> &'a mut EthDevData {
    // SAFETY: lent-port: ethdev keeps the structure.
    let data = unsafe { (*dev).data };
    // SAFETY: lent-port: ethdev keeps the data of the port, and leaves it to this call.
    unsafe { &mut *data }
}

unsafe extern "C" fn configure(dev: *mut EthDev) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-port.
    let data = unsafe { data(dev) };
    let wanted = data.dev_conf.rx_adv_conf.rss_conf.rss_hf & RSS_TYPES;
    let rss = Rss { queues: (0..data.nb_rx_queues).collect(), key: DEFAULT_KEY, ports: wanted & RSS_PORTS != 0 };
    let mut state = port.device.lock();
    let PortState { id, queues, .. } = &mut state.ports[port.index];
    queues.resize_with(usize::from(data.nb_rx_queues), || (VecDeque::new(), 0));
    let id = *id;
    state.pipeline.port_mode(id).rss = (wanted != 0 && data.nb_rx_queues > 1).then_some(rss);
    0
}

unsafe extern "C" fn start(dev: *mut EthDev) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    let mut state = port.device.lock();
    let PortState { backend, pool, .. } = &mut state.ports[port.index];
    let started = match backend {
        Some(_) if pool.0.is_null() => Err(-libc::EINVAL),
        Some(backend) => backend.start(pool.0),
        None => Ok(()),
    };
    drop(state);
    if let Err(error) = started {
        return error;
    }
    // SAFETY: lent-port.
    set_running(unsafe { data(dev) }, true);
    0
}

unsafe extern "C" fn stop(dev: *mut EthDev) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    let mut state = port.device.lock();
    let state = &mut state.ports[port.index];
    if let Some(backend) = &mut state.backend {
        backend.stop();
    }
    state.drain();
    // SAFETY: lent-port.
    set_running(unsafe { data(dev) }, false);
    0
}

fn set_running(data: &mut EthDevData, running: bool) {
    let state = if running { STARTED } else { STOPPED };
    data.rx_queue_state[..usize::from(data.nb_rx_queues)].fill(state);
    data.tx_queue_state[..usize::from(data.nb_tx_queues)].fill(state);
    data.dev_link.set_link_status(u16::from(running));
}

pub(super) unsafe extern "C" fn close(dev: *mut EthDev) -> c_int {
    // SAFETY: lent-port; a port that is closed already keeps its data.
    if unsafe { data(dev) }.dev_private.is_null() {
        return 0;
    }
    // SAFETY: lent-port; the port is not closed yet.
    unsafe { stop(dev) };
    // SAFETY: lent-port; the port is not closed yet.
    let backend = close_state(unsafe { port(dev) });
    drop(backend);
    // SAFETY: lent-port.
    let data = unsafe { data(dev) };
    for index in 0..data.nb_rx_queues {
        // SAFETY: lent-port: the port has this queue, and it is not polled any more.
        unsafe { release(data.rx_queues, index) };
    }
    for index in 0..data.nb_tx_queues {
        // SAFETY: lent-port: the port has this queue, and it is not polled any more.
        unsafe { release(data.tx_queues, index) };
    }
    // The address is in the `Port`.
    data.mac_addrs = null_mut();
    let port = std::mem::replace(&mut data.dev_private, null_mut());
    // SAFETY: `add_port` made it by a box, and no operation comes after this one.
    drop(unsafe { Box::from_raw(port.cast::<Port>()) });
    0
}

/// Forgets what a port has in the device. Returns the device below the port, which must be dropped without the lock.
fn close_state(port: &Port) -> Option<Backend> {
    let state = &mut *port.device.lock();
    let port = &mut state.ports[port.index];
    state.pipeline.remove_of(port.id);
    state.pipeline.close_tables_of(port.id);
    state.pipeline.unshare_of(port.id);
    port.id = device::CLOSED;
    port.backend.take()
}

unsafe extern "C" fn link_update(_dev: *mut EthDev, _wait: c_int) -> c_int {
    0
}

/// The model has no filter of addresses: a port receives what the pipeline sends it.
unsafe extern "C" fn accept(_dev: *mut EthDev) -> c_int {
    0
}

/// DPDK keeps the address itself.
unsafe extern "C" fn mac_addr_set(_dev: *mut EthDev, _mac: *mut sys::rte_ether_addr) -> c_int {
    0
}

/// The pipeline takes packets of any length.
unsafe extern "C" fn mtu_set(_dev: *mut EthDev, _mtu: u16) -> c_int {
    0
}

unsafe extern "C" fn infos_get(dev: *mut EthDev, info: *mut sys::rte_eth_dev_info) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure.
    let info = unsafe { &mut *info };
    info.max_mac_addrs = 1;
    info.min_mtu = 68;
    info.max_mtu = MAX_MTU;
    info.max_rx_pktlen = u32::from(MAX_MTU) + 26;
    info.max_rx_queues = MAX_QUEUES;
    info.max_tx_queues = MAX_QUEUES;
    info.flow_type_rss_offloads = RSS_TYPES;
    info.speed_capa = 0;
    info.switch_info.name = port.device.names[0].as_ptr();
    info.switch_info.domain_id = port.device.switch_domain;
    info.switch_info.port_id = port.index as u16;
    0
}

unsafe extern "C" fn rx_queue_setup(
    dev: *mut EthDev,
    index: u16,
    depth: u16,
    _node: u32,
    _conf: *const sys::rte_eth_rxconf,
    pool: *mut sys::rte_mempool,
) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    let mut state = port.device.lock();
    let state = &mut state.ports[port.index];
    state.queues[usize::from(index)].1 = usize::from(depth);
    // All packets of a port come from one device, so into one pool.
    if index == 0 {
        state.pool = Pool(pool);
    }
    let queue = Queue { device: port.device.clone(), port: port.index, index: usize::from(index) };
    // SAFETY: lent-port.
    let queues = unsafe { data(dev) }.rx_queues;
    // SAFETY: lent-port: ethdev sets up only a queue that the port is configured to have.
    unsafe { set_queue(queues, index, queue) };
    0
}

unsafe extern "C" fn tx_queue_setup(
    dev: *mut EthDev,
    index: u16,
    _depth: u16,
    _node: u32,
    _conf: *const sys::rte_eth_txconf,
) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    let queue = Queue { device: port.device.clone(), port: port.index, index: usize::from(index) };
    // SAFETY: lent-port.
    let queues = unsafe { data(dev) }.tx_queues;
    // SAFETY: lent-port: ethdev sets up only a queue that the port is configured to have.
    unsafe { set_queue(queues, index, queue) };
    0
}

/// Puts a queue into ethdev's list.
///
/// # Safety
/// `queues` is a list with a place `index`.
unsafe fn set_queue(queues: *mut *mut c_void, index: u16, queue: Queue) {
    // SAFETY: the caller has that place in the list.
    let place = unsafe { queues.add(usize::from(index)) };
    // SAFETY: the caller has that place in the list.
    unsafe { place.write(Box::into_raw(Box::new(queue)).cast()) };
}

unsafe extern "C" fn rx_queue_release(dev: *mut EthDev, index: u16) {
    // SAFETY: lent-port.
    let queues = unsafe { data(dev) }.rx_queues;
    // SAFETY: lent-port: the port has or had this queue, and it is not polled.
    unsafe { release(queues, index) };
}

unsafe extern "C" fn tx_queue_release(dev: *mut EthDev, index: u16) {
    // SAFETY: lent-port.
    let queues = unsafe { data(dev) }.tx_queues;
    // SAFETY: lent-port: the port has or had this queue, and it is not polled.
    unsafe { release(queues, index) };
}

/// Frees a queue, if it is there.
///
/// # Safety
/// `queues` is null or has a place `index`, which is null or a queue of ours that is not polled.
unsafe fn release(queues: *mut *mut c_void, index: u16) {
    if queues.is_null() {
        return;
    }
    // SAFETY: the caller has that place in the list.
    let place = unsafe { queues.add(usize::from(index)) };
    // SAFETY: the caller has that place in the list.
    let queue = unsafe { place.replace(null_mut()) };
    if !queue.is_null() {
        // SAFETY: `set_queue` made it by a box, and the caller has it polled by no thread.
        drop(unsafe { Box::from_raw(queue.cast::<Queue>()) });
    }
}

unsafe extern "C" fn stats_get(dev: *mut EthDev, stats: *mut sys::rte_eth_stats) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    // SAFETY: lent-structure.
    let stats = unsafe { &mut *stats };
    let ours = port.device.lock().ports[port.index].stats;
    stats.ipackets = ours.rx_packets;
    stats.ibytes = ours.rx_bytes;
    stats.imissed = ours.rx_missed;
    stats.opackets = ours.tx_packets;
    stats.obytes = ours.tx_bytes;
    0
}

unsafe extern "C" fn stats_reset(dev: *mut EthDev) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    port.device.lock().ports[port.index].stats = Stats::default();
    0
}

/// Counters of the port's other side, and of the whole device.
fn extended(port: &Port, state: &State) -> [(&'static str, u64); 11] {
    let backend = state.ports[port.index].backend.as_ref();
    let of = |counter: fn(&Backend) -> u64| backend.map_or(0, counter);
    let totals = state.pipeline.totals();
    let (exact, masked) = state.pipeline.rule_counts();
    [
        ("represented_rx_packets", of(|backend| backend.rx_packets)),
        ("represented_rx_bytes", of(|backend| backend.rx_bytes)),
        ("represented_tx_packets", of(|backend| backend.tx_packets)),
        ("represented_tx_bytes", of(|backend| backend.tx_bytes)),
        ("represented_tx_dropped", of(|backend| backend.tx_dropped)),
        ("device_offloaded_packets", totals.offloaded),
        ("device_missed_packets", totals.missed),
        ("device_unfit_packets", totals.unfit),
        ("device_aborted_packets", totals.aborted),
        ("device_exact_rules", exact as u64),
        ("device_masked_rules", masked as u64),
    ]
}

unsafe extern "C" fn xstats_get(dev: *mut EthDev, stats: *mut sys::rte_eth_xstat, room: u32) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    let counters = extended(port, &port.device.lock());
    if !stats.is_null() && room as usize >= counters.len() {
        for (id, (_, value)) in counters.iter().enumerate() {
            // SAFETY: lent-structure: there is room for all counters.
            let place = unsafe { stats.add(id) };
            // SAFETY: within that room.
            unsafe { place.write(sys::rte_eth_xstat { id: id as u64, value: *value }) };
        }
    }
    counters.len() as c_int
}

unsafe extern "C" fn xstats_get_names(dev: *mut EthDev, names: *mut sys::rte_eth_xstat_name, room: u32) -> c_int {
    // SAFETY: lent-port.
    let port = unsafe { port(dev) };
    let counters = extended(port, &port.device.lock());
    if !names.is_null() && room as usize >= counters.len() {
        for (id, (name, _)) in counters.iter().enumerate() {
            let mut shown = sys::rte_eth_xstat_name::default();
            shown.name.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte as _);
            // SAFETY: lent-structure: there is room for all names.
            let place = unsafe { names.add(id) };
            // SAFETY: within that room.
            unsafe { place.write(shown) };
        }
    }
    counters.len() as c_int
}

unsafe extern "C" fn flow_ops_get(_dev: *mut EthDev, ops: *mut *const FlowOps) -> c_int {
    // SAFETY: lent-structure.
    unsafe { *ops = &raw const flow::OPS };
    0
}

unsafe extern "C" fn mtr_ops_get(_dev: *mut EthDev, ops: *mut c_void) -> c_int {
    // SAFETY: lent-structure.
    unsafe { *ops.cast::<*const MeterOps>() = &raw const meter::OPS };
    0
}

/// Marks and restore data are delivered, and no other metadata.
unsafe extern "C" fn rx_metadata_negotiate(_dev: *mut EthDev, features: *mut u64) -> c_int {
    // SAFETY: lent-structure.
    unsafe { *features &= u64::from(sys::RTE_ETH_RX_METADATA_USER_MARK | sys::RTE_ETH_RX_METADATA_TUNNEL_ID) };
    0
}
