//! A port's operations and its packets.

use super::abi::{EthDev, EthDevOps, FlowOps, MeterOps};
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
    // SAFETY: `rx_queue_setup` has made the queue.
    let queue = unsafe { &*queue.cast::<Queue>() };
    let (received, events) = queue.device.receive(queue.port, queue.index, usize::from(room));
    let count = received.len();
    for (index, packet) in received.into_iter().enumerate() {
        // SAFETY: there is place for `room` packets.
        unsafe { *packets.add(index) = packet.into_raw() };
    }
    queue.device.tell(&events);
    count as u16
}

pub(super) unsafe extern "C" fn tx_burst(queue: *mut c_void, packets: *mut *mut sys::rte_mbuf, count: u16) -> u16 {
    // SAFETY: `tx_queue_setup` has made the queue; the packets are ours from now on.
    let (queue, packets) = unsafe {
        let packets = std::slice::from_raw_parts(packets, usize::from(count));
        (&*queue.cast::<Queue>(), packets.iter().filter_map(|&packet| Mbuf::from_raw(packet)).collect())
    };
    queue.device.send(queue.port, packets);
    count
}

/// The port, with its device locked.
///
/// # Safety
/// As for [`port`].
unsafe fn with<T>(dev: *mut EthDev, call: impl FnOnce(&Port, &mut State) -> T) -> T {
    // SAFETY: as the caller promises.
    let port = unsafe { port(dev) };
    call(port, &mut port.device.lock())
}

unsafe extern "C" fn configure(dev: *mut EthDev) -> c_int {
    // SAFETY: DPDK lends a port of ours.
    unsafe {
        let data = &*(*dev).data;
        let wanted = data.dev_conf.rx_adv_conf.rss_conf.rss_hf & RSS_TYPES;
        let queues: Vec<u16> = (0..data.nb_rx_queues).collect();
        let rss = Rss { queues, key: DEFAULT_KEY, ports: wanted & RSS_PORTS != 0 };
        with(dev, |port, state| {
            let PortState { id, queues, .. } = &mut state.ports[port.index];
            queues.resize_with(usize::from(data.nb_rx_queues), || (VecDeque::new(), 0));
            state.pipeline.port_mode(*id).rss = (wanted != 0 && data.nb_rx_queues > 1).then_some(rss);
        });
    }
    0
}

unsafe extern "C" fn start(dev: *mut EthDev) -> c_int {
    // SAFETY: DPDK lends a port of ours, configured.
    unsafe {
        let started = with(dev, |port, state| {
            let PortState { backend, pool, .. } = &mut state.ports[port.index];
            match backend {
                Some(_) if pool.0.is_null() => Err(-libc::EINVAL),
                Some(backend) => backend.start(pool.0),
                None => Ok(()),
            }
        });
        if let Err(error) = started {
            return error;
        }
        set_running(dev, true);
    }
    0
}

unsafe extern "C" fn stop(dev: *mut EthDev) -> c_int {
    // SAFETY: DPDK lends a port of ours.
    unsafe {
        with(dev, |port, state| {
            let port = &mut state.ports[port.index];
            port.backend.iter_mut().for_each(super::backend::Backend::stop);
            port.drain();
        });
        set_running(dev, false);
    }
    0
}

/// # Safety
/// As for [`port`].
unsafe fn set_running(dev: *mut EthDev, running: bool) {
    // SAFETY: as the caller promises.
    let data = unsafe { &mut *(*dev).data };
    let state = if running { STARTED } else { STOPPED };
    data.rx_queue_state[..usize::from(data.nb_rx_queues)].fill(state);
    data.tx_queue_state[..usize::from(data.nb_tx_queues)].fill(state);
    data.dev_link.set_link_status(u16::from(running));
}

pub(super) unsafe extern "C" fn close(dev: *mut EthDev) -> c_int {
    // SAFETY: DPDK lends a port of ours for the last time; what is in it was made by `add_port`, and DPDK frees none of it.
    unsafe {
        if (*(*dev).data).dev_private.is_null() {
            return 0;
        }
        stop(dev);
        let backend = with(dev, |port, state| {
            let port = &mut state.ports[port.index];
            state.pipeline.remove_of(port.id);
            state.pipeline.close_tables_of(port.id);
            state.pipeline.unshare_of(port.id);
            port.id = device::CLOSED;
            port.backend.take()
        });
        drop(backend);
        let data = &mut *(*dev).data;
        (0..data.nb_rx_queues).for_each(|index| release(data.rx_queues, index));
        (0..data.nb_tx_queues).for_each(|index| release(data.tx_queues, index));
        data.mac_addrs = null_mut();
        drop(Box::from_raw(std::mem::replace(&mut data.dev_private, null_mut()).cast::<Port>()));
    }
    0
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
    // SAFETY: DPDK lends a port of ours and the structure to fill.
    unsafe {
        let (port, info) = (port(dev), &mut *info);
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
    }
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
    // SAFETY: DPDK lends a port of ours that is configured to have this queue.
    unsafe {
        let queue = with(dev, |port, state| {
            let state = &mut state.ports[port.index];
            state.queues[usize::from(index)].1 = usize::from(depth);
            // All that a port receives comes from one device, so into one pool.
            if index == 0 {
                state.pool = Pool(pool);
            }
            Queue { device: port.device.clone(), port: port.index, index: usize::from(index) }
        });
        *(*(*dev).data).rx_queues.add(usize::from(index)) = Box::into_raw(Box::new(queue)).cast();
    }
    0
}

unsafe extern "C" fn tx_queue_setup(
    dev: *mut EthDev,
    index: u16,
    _depth: u16,
    _node: u32,
    _conf: *const sys::rte_eth_txconf,
) -> c_int {
    // SAFETY: as above.
    unsafe {
        let port = port(dev);
        let queue = Queue { device: port.device.clone(), port: port.index, index: usize::from(index) };
        *(*(*dev).data).tx_queues.add(usize::from(index)) = Box::into_raw(Box::new(queue)).cast();
    }
    0
}

unsafe extern "C" fn rx_queue_release(dev: *mut EthDev, index: u16) {
    // SAFETY: DPDK lends a port of ours that has or had this queue, and nobody polls it.
    unsafe { release((*(*dev).data).rx_queues, index) };
}

unsafe extern "C" fn tx_queue_release(dev: *mut EthDev, index: u16) {
    // SAFETY: as above.
    unsafe { release((*(*dev).data).tx_queues, index) };
}

/// # Safety
/// `queues` is null or has a place `index`, which is null or a queue of ours that nobody polls.
unsafe fn release(queues: *mut *mut c_void, index: u16) {
    if queues.is_null() {
        return;
    }
    // SAFETY: as the caller promises.
    unsafe {
        let place = queues.add(usize::from(index));
        let queue = std::mem::replace(&mut *place, null_mut());
        if !queue.is_null() {
            drop(Box::from_raw(queue.cast::<Queue>()));
        }
    }
}

unsafe extern "C" fn stats_get(dev: *mut EthDev, stats: *mut sys::rte_eth_stats) -> c_int {
    // SAFETY: DPDK lends a port of ours and the structure to fill.
    let (ours, stats) = unsafe { (with(dev, |port, state| state.ports[port.index].stats), &mut *stats) };
    stats.ipackets = ours.rx_packets;
    stats.ibytes = ours.rx_bytes;
    stats.imissed = ours.rx_missed;
    stats.opackets = ours.tx_packets;
    stats.obytes = ours.tx_bytes;
    0
}

unsafe extern "C" fn stats_reset(dev: *mut EthDev) -> c_int {
    // SAFETY: DPDK lends a port of ours.
    unsafe { with(dev, |port, state| state.ports[port.index].stats = Stats::default()) };
    0
}

/// Counters of the port's other side, and of the whole device.
fn extended(port: &Port, state: &State) -> [(&'static str, u64); 11] {
    let backend = state.ports[port.index].backend.as_ref();
    let of = |counter: fn(&super::backend::Backend) -> u64| backend.map_or(0, counter);
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
    // SAFETY: DPDK lends a port of ours.
    let counters = unsafe { with(dev, |port, state| extended(port, state)) };
    if !stats.is_null() && room as usize >= counters.len() {
        for (id, (_, value)) in counters.iter().enumerate() {
            // SAFETY: there is room for all.
            unsafe { *stats.add(id) = sys::rte_eth_xstat { id: id as u64, value: *value } };
        }
    }
    counters.len() as c_int
}

unsafe extern "C" fn xstats_get_names(dev: *mut EthDev, names: *mut sys::rte_eth_xstat_name, room: u32) -> c_int {
    // SAFETY: DPDK lends a port of ours.
    let counters = unsafe { with(dev, |port, state| extended(port, state)) };
    if !names.is_null() && room as usize >= counters.len() {
        for (id, (name, _)) in counters.iter().enumerate() {
            let mut place = sys::rte_eth_xstat_name::default();
            place.name.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte as _);
            // SAFETY: there is room for all.
            unsafe { *names.add(id) = place };
        }
    }
    counters.len() as c_int
}

unsafe extern "C" fn flow_ops_get(_dev: *mut EthDev, ops: *mut *const FlowOps) -> c_int {
    // SAFETY: DPDK lends the place to fill.
    unsafe { *ops = &raw const flow::OPS };
    0
}

unsafe extern "C" fn mtr_ops_get(_dev: *mut EthDev, ops: *mut c_void) -> c_int {
    // SAFETY: DPDK lends the place to fill.
    unsafe { *ops.cast::<*const MeterOps>() = &raw const meter::OPS };
    0
}

/// Marks and restore data are delivered, and no other metadata.
unsafe extern "C" fn rx_metadata_negotiate(_dev: *mut EthDev, features: *mut u64) -> c_int {
    // SAFETY: DPDK lends the value.
    unsafe { *features &= u64::from(sys::RTE_ETH_RX_METADATA_USER_MARK | sys::RTE_ETH_RX_METADATA_TUNNEL_ID) };
    0
}
