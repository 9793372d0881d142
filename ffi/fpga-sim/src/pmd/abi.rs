//! The driver's side of DPDK 22.11, whose headers Debian does not package: structures and functions of `ethdev_driver.h`,
//! `bus_vdev_driver.h`, `dev_driver.h` and `rte_flow_driver.h`. The offsets asserted here are what a C compiler says of
//! those headers on x86-64. They hold for one version of DPDK, which is asked for before the driver registers.

use dpdk_sys as sys;
use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;

const QUEUES: usize = sys::RTE_MAX_QUEUES_PER_PORT as usize;

/// An operation that this driver does not have.
pub(super) type Nothing = Option<unsafe extern "C" fn()>;

#[repr(C)]
pub(super) struct Link {
    next: *mut c_void,
    previous: *mut c_void,
}

impl Link {
    pub(super) const NONE: Link = Link { next: std::ptr::null_mut(), previous: std::ptr::null_mut() };
}

/// `struct rte_driver`
#[repr(C)]
pub(super) struct Driver {
    pub link: Link,
    pub name: *const c_char,
    pub alias: *const c_char,
}

/// `struct rte_device`
#[repr(C)]
pub(super) struct Device {
    link: Link,
    pub name: *const c_char,
    bus_info: *const c_char,
    driver: *const Driver,
    bus: *const c_void,
    pub numa_node: c_int,
    pub devargs: *mut sys::rte_devargs,
}

/// `struct rte_vdev_device`
#[repr(C)]
pub(super) struct VdevDevice {
    link: Link,
    pub device: Device,
}

/// `struct rte_vdev_driver`
#[repr(C)]
pub(super) struct VdevDriver {
    pub link: Link,
    pub driver: Driver,
    pub probe: Option<unsafe extern "C" fn(*mut VdevDevice) -> c_int>,
    pub remove: Option<unsafe extern "C" fn(*mut VdevDevice) -> c_int>,
    pub dma_map: Nothing,
    pub dma_unmap: Nothing,
    pub flags: u32,
}

/// `struct rte_mbuf_dynfield`
#[repr(C)]
pub(super) struct DynamicField {
    pub name: [c_char; 64],
    pub size: usize,
    pub align: usize,
    pub flags: u32,
}

/// `struct rte_eth_dev`
#[repr(C, align(64))]
pub(super) struct EthDev {
    pub rx_pkt_burst: sys::eth_rx_burst_t,
    pub tx_pkt_burst: sys::eth_tx_burst_t,
    tx_pkt_prepare: sys::eth_tx_prep_t,
    rx_queue_count: sys::eth_rx_queue_count_t,
    rx_descriptor_status: Nothing,
    tx_descriptor_status: Nothing,
    pub data: *mut EthDevData,
    process_private: *mut c_void,
    pub dev_ops: *const EthDevOps,
    pub device: *mut Device,
    intr_handle: *mut c_void,
    link_intr_cbs: Link,
    post_rx_burst_cbs: [*mut c_void; QUEUES],
    pre_tx_burst_cbs: [*mut c_void; QUEUES],
    state: u32,
    security_ctx: *mut c_void,
}

/// `struct rte_eth_dev_data`
#[repr(C, align(64))]
pub(super) struct EthDevData {
    pub name: [c_char; sys::RTE_ETH_NAME_MAX_LEN as usize],
    pub rx_queues: *mut *mut c_void,
    pub tx_queues: *mut *mut c_void,
    pub nb_rx_queues: u16,
    pub nb_tx_queues: u16,
    sriov: [u16; 3],
    pub dev_private: *mut c_void,
    pub dev_link: sys::rte_eth_link,
    pub dev_conf: sys::rte_eth_conf,
    pub mtu: u16,
    min_rx_buf_size: u32,
    rx_mbuf_alloc_failed: u64,
    pub mac_addrs: *mut sys::rte_ether_addr,
    mac_pool_sel: [u64; sys::RTE_ETH_NUM_RECEIVE_MAC_ADDR as usize],
    hash_mac_addrs: *mut sys::rte_ether_addr,
    pub port_id: u16,
    /// Bits: promiscuous, scattered, all multicast, started, LRO, configured, flow engine configured.
    flags: u8,
    pub rx_queue_state: [u8; QUEUES],
    pub tx_queue_state: [u8; QUEUES],
    pub dev_flags: u32,
    pub numa_node: c_int,
    vlan_filter_conf: [u64; 64],
    owner: sys::rte_eth_dev_owner,
    pub representor_id: u16,
    pub backer_port_id: u16,
    flow_ops_mutex: [u64; 5],
}

/// `struct eth_dev_ops`
#[repr(C)]
pub(super) struct EthDevOps {
    pub dev_configure: Option<unsafe extern "C" fn(*mut EthDev) -> c_int>,
    pub dev_start: Option<unsafe extern "C" fn(*mut EthDev) -> c_int>,
    pub dev_stop: Option<unsafe extern "C" fn(*mut EthDev) -> c_int>,
    pub dev_set_link: [Nothing; 2],
    pub dev_close: Option<unsafe extern "C" fn(*mut EthDev) -> c_int>,
    pub dev_reset: Nothing,
    pub link_update: Option<unsafe extern "C" fn(*mut EthDev, c_int) -> c_int>,
    pub is_removed: Nothing,
    /// Promiscuous on and off, all multicast on and off.
    pub receive_modes: [Option<unsafe extern "C" fn(*mut EthDev) -> c_int>; 4],
    pub mac_addr_remove_add: [Nothing; 2],
    pub mac_addr_set: Option<unsafe extern "C" fn(*mut EthDev, *mut sys::rte_ether_addr) -> c_int>,
    pub set_mc_addr_list: Nothing,
    pub mtu_set: Option<unsafe extern "C" fn(*mut EthDev, u16) -> c_int>,
    pub stats_get: Option<unsafe extern "C" fn(*mut EthDev, *mut sys::rte_eth_stats) -> c_int>,
    pub stats_reset: Option<unsafe extern "C" fn(*mut EthDev) -> c_int>,
    pub xstats_get: Option<unsafe extern "C" fn(*mut EthDev, *mut sys::rte_eth_xstat, u32) -> c_int>,
    pub xstats_reset: Option<unsafe extern "C" fn(*mut EthDev) -> c_int>,
    pub xstats_get_names: Option<unsafe extern "C" fn(*mut EthDev, *mut sys::rte_eth_xstat_name, u32) -> c_int>,
    pub queue_stats_mapping_set: Nothing,
    pub dev_infos_get: Option<unsafe extern "C" fn(*mut EthDev, *mut sys::rte_eth_dev_info) -> c_int>,
    pub from_rxq_info_get: [Nothing; 16],
    pub rx_queue_setup: Option<
        unsafe extern "C" fn(*mut EthDev, u16, u16, u32, *const sys::rte_eth_rxconf, *mut sys::rte_mempool) -> c_int,
    >,
    pub rx_queue_release: Option<unsafe extern "C" fn(*mut EthDev, u16)>,
    pub rx_queue_intr: [Nothing; 2],
    pub tx_queue_setup: Option<unsafe extern "C" fn(*mut EthDev, u16, u16, u32, *const sys::rte_eth_txconf) -> c_int>,
    pub tx_queue_release: Option<unsafe extern "C" fn(*mut EthDev, u16)>,
    pub from_tx_done_cleanup: [Nothing; 23],
    pub flow_ops_get: Option<unsafe extern "C" fn(*mut EthDev, *mut *const FlowOps) -> c_int>,
    pub from_get_dcb_info: [Nothing; 12],
    pub mtr_ops_get: Option<unsafe extern "C" fn(*mut EthDev, *mut c_void) -> c_int>,
    pub from_pool_ops_supported: [Nothing; 15],
    pub rx_metadata_negotiate: Option<unsafe extern "C" fn(*mut EthDev, *mut u64) -> c_int>,
    pub from_ip_reassembly: [Nothing; 13],
}

pub(super) type Attributes = *const sys::rte_flow_attr;
pub(super) type Items = *const sys::rte_flow_item;
pub(super) type Actions = *const sys::rte_flow_action;
pub(super) type Error = *mut sys::rte_flow_error;

/// `struct rte_flow_ops`
#[repr(C)]
pub(super) struct FlowOps {
    pub validate: Option<unsafe extern "C" fn(*mut EthDev, Attributes, Items, Actions, Error) -> c_int>,
    pub create: Option<unsafe extern "C" fn(*mut EthDev, Attributes, Items, Actions, Error) -> *mut sys::rte_flow>,
    pub destroy: Option<unsafe extern "C" fn(*mut EthDev, *mut sys::rte_flow, Error) -> c_int>,
    pub flush: Option<unsafe extern "C" fn(*mut EthDev, Error) -> c_int>,
    pub query: Option<unsafe extern "C" fn(*mut EthDev, *mut sys::rte_flow, Actions, *mut c_void, Error) -> c_int>,
    pub isolate: Option<unsafe extern "C" fn(*mut EthDev, c_int, Error) -> c_int>,
    pub dev_dump: Nothing,
    pub get_aged_flows: Option<unsafe extern "C" fn(*mut EthDev, *mut *mut c_void, u32, Error) -> c_int>,
    pub get_q_aged_flows: Option<unsafe extern "C" fn(*mut EthDev, u32, *mut *mut c_void, u32, Error) -> c_int>,
    pub action_handle_create: Option<
        unsafe extern "C" fn(
            *mut EthDev,
            *const sys::rte_flow_indir_action_conf,
            Actions,
            Error,
        ) -> *mut sys::rte_flow_action_handle,
    >,
    pub action_handle_destroy:
        Option<unsafe extern "C" fn(*mut EthDev, *mut sys::rte_flow_action_handle, Error) -> c_int>,
    pub action_handle_update:
        Option<unsafe extern "C" fn(*mut EthDev, *mut sys::rte_flow_action_handle, *const c_void, Error) -> c_int>,
    pub action_handle_query:
        Option<unsafe extern "C" fn(*mut EthDev, *const sys::rte_flow_action_handle, *mut c_void, Error) -> c_int>,
    pub tunnel_decap_set: Option<
        unsafe extern "C" fn(
            *mut EthDev,
            *mut sys::rte_flow_tunnel,
            *mut *mut sys::rte_flow_action,
            *mut u32,
            Error,
        ) -> c_int,
    >,
    pub tunnel_match: Option<
        unsafe extern "C" fn(
            *mut EthDev,
            *mut sys::rte_flow_tunnel,
            *mut *mut sys::rte_flow_item,
            *mut u32,
            Error,
        ) -> c_int,
    >,
    pub get_restore_info:
        Option<unsafe extern "C" fn(*mut EthDev, *mut sys::rte_mbuf, *mut sys::rte_flow_restore_info, Error) -> c_int>,
    pub tunnel_action_decap_release:
        Option<unsafe extern "C" fn(*mut EthDev, *mut sys::rte_flow_action, u32, Error) -> c_int>,
    pub tunnel_item_release: Option<unsafe extern "C" fn(*mut EthDev, *mut sys::rte_flow_item, u32, Error) -> c_int>,
    pub pick_transfer_proxy: Option<unsafe extern "C" fn(*mut EthDev, *mut u16, Error) -> c_int>,
    pub flex_item: [Nothing; 2],
    pub info_get: Option<
        unsafe extern "C" fn(*mut EthDev, *mut sys::rte_flow_port_info, *mut sys::rte_flow_queue_info, Error) -> c_int,
    >,
    pub configure: Option<
        unsafe extern "C" fn(
            *mut EthDev,
            *const sys::rte_flow_port_attr,
            u16,
            *mut *const sys::rte_flow_queue_attr,
            Error,
        ) -> c_int,
    >,
    pub pattern_template_create: Option<
        unsafe extern "C" fn(
            *mut EthDev,
            *const sys::rte_flow_pattern_template_attr,
            Items,
            Error,
        ) -> *mut sys::rte_flow_pattern_template,
    >,
    pub pattern_template_destroy:
        Option<unsafe extern "C" fn(*mut EthDev, *mut sys::rte_flow_pattern_template, Error) -> c_int>,
    pub actions_template_create: Option<
        unsafe extern "C" fn(
            *mut EthDev,
            *const sys::rte_flow_actions_template_attr,
            Actions,
            Actions,
            Error,
        ) -> *mut sys::rte_flow_actions_template,
    >,
    pub actions_template_destroy:
        Option<unsafe extern "C" fn(*mut EthDev, *mut sys::rte_flow_actions_template, Error) -> c_int>,
    pub template_table_create: Option<
        unsafe extern "C" fn(
            *mut EthDev,
            *const sys::rte_flow_template_table_attr,
            *mut *mut sys::rte_flow_pattern_template,
            u8,
            *mut *mut sys::rte_flow_actions_template,
            u8,
            Error,
        ) -> *mut sys::rte_flow_template_table,
    >,
    pub template_table_destroy:
        Option<unsafe extern "C" fn(*mut EthDev, *mut sys::rte_flow_template_table, Error) -> c_int>,
    pub async_create: Option<
        unsafe extern "C" fn(
            *mut EthDev,
            u32,
            *const sys::rte_flow_op_attr,
            *mut sys::rte_flow_template_table,
            Items,
            u8,
            Actions,
            u8,
            *mut c_void,
            Error,
        ) -> *mut sys::rte_flow,
    >,
    pub async_destroy: Option<
        unsafe extern "C" fn(
            *mut EthDev,
            u32,
            *const sys::rte_flow_op_attr,
            *mut sys::rte_flow,
            *mut c_void,
            Error,
        ) -> c_int,
    >,
    pub push: Option<unsafe extern "C" fn(*mut EthDev, u32, Error) -> c_int>,
    pub pull: Option<unsafe extern "C" fn(*mut EthDev, u32, *mut sys::rte_flow_op_result, u16, Error) -> c_int>,
    pub async_action_handle_create: Option<
        unsafe extern "C" fn(
            *mut EthDev,
            u32,
            *const sys::rte_flow_op_attr,
            *const sys::rte_flow_indir_action_conf,
            Actions,
            *mut c_void,
            Error,
        ) -> *mut sys::rte_flow_action_handle,
    >,
    pub async_action_handle_destroy: Option<
        unsafe extern "C" fn(
            *mut EthDev,
            u32,
            *const sys::rte_flow_op_attr,
            *mut sys::rte_flow_action_handle,
            *mut c_void,
            Error,
        ) -> c_int,
    >,
    pub async_action_handle_update: Option<
        unsafe extern "C" fn(
            *mut EthDev,
            u32,
            *const sys::rte_flow_op_attr,
            *mut sys::rte_flow_action_handle,
            *const c_void,
            *mut c_void,
            Error,
        ) -> c_int,
    >,
    pub async_action_handle_query: Option<
        unsafe extern "C" fn(
            *mut EthDev,
            u32,
            *const sys::rte_flow_op_attr,
            *const sys::rte_flow_action_handle,
            *mut c_void,
            *mut c_void,
            Error,
        ) -> c_int,
    >,
}

pub(super) type MeterError = *mut MeterErrorInfo;
type OfMeter = Option<unsafe extern "C" fn(*mut EthDev, u32, MeterError) -> c_int>;

/// `struct rte_mtr_ops`
#[repr(C)]
pub(super) struct MeterOps {
    pub capabilities_get: Option<unsafe extern "C" fn(*mut EthDev, *mut MeterCapabilities, MeterError) -> c_int>,
    pub meter_profile_add: Option<unsafe extern "C" fn(*mut EthDev, u32, *const MeterProfile, MeterError) -> c_int>,
    pub meter_profile_delete: OfMeter,
    pub create: Option<unsafe extern "C" fn(*mut EthDev, u32, *const MeterParams, c_int, MeterError) -> c_int>,
    pub destroy: OfMeter,
    pub meter_enable: OfMeter,
    pub meter_disable: OfMeter,
    pub meter_profile_update: Option<unsafe extern "C" fn(*mut EthDev, u32, u32, MeterError) -> c_int>,
    pub tables_and_input: [Nothing; 5],
    pub stats_update: Nothing,
    pub stats_read:
        Option<unsafe extern "C" fn(*mut EthDev, u32, *mut MeterStats, *mut u64, c_int, MeterError) -> c_int>,
    pub meter_policy_validate: Option<unsafe extern "C" fn(*mut EthDev, *const MeterPolicy, MeterError) -> c_int>,
    pub meter_policy_add: Option<unsafe extern "C" fn(*mut EthDev, u32, *const MeterPolicy, MeterError) -> c_int>,
    pub meter_policy_delete: OfMeter,
    pub from_policy_update: [Nothing; 3],
}

/// `struct rte_mtr_capabilities`
#[repr(C)]
#[derive(Default)]
pub(super) struct MeterCapabilities {
    pub n_max: u32,
    pub n_shared_max: u32,
    pub identical: c_int,
    pub shared_identical: c_int,
    pub shared_n_flows_per_mtr_max: u32,
    pub chaining_n_mtrs_per_flow_max: u32,
    pub chaining_use_prev_mtr_color: [c_int; 2],
    pub meter_srtcm_rfc2697_n_max: u32,
    pub trtcm_n_max: [u32; 2],
    pub meter_rate_max: u64,
    pub meter_policy_n_max: u64,
    pub color_aware: [c_int; 3],
    pub srtcm_rfc2697_byte_mode_supported: c_int,
    pub other_modes: [c_int; 5],
    pub stats_mask: u64,
    pub input_color_proto_mask: u64,
    pub separate_input_color_table_per_port: c_int,
}

/// `struct rte_mtr_meter_profile`
#[repr(C)]
pub(super) struct MeterProfile {
    pub alg: u32,
    /// Of RFC 2697: rate, committed and excess burst size.
    pub values: [u64; 4],
    pub packet_mode: c_int,
}

/// `struct rte_mtr_params`
#[repr(C)]
pub(super) struct MeterParams {
    pub meter_profile_id: u32,
    pub use_prev_mtr_color: c_int,
    pub dscp_table: *const u32,
    pub vlan_table: *const u32,
    pub meter_enable: c_int,
    pub stats_mask: u64,
    pub meter_policy_id: u32,
    pub default_input_color: u32,
}

/// `struct rte_mtr_meter_policy_params`
#[repr(C)]
pub(super) struct MeterPolicy {
    /// Of green, yellow and red packets.
    pub actions: [Actions; 3],
}

/// `struct rte_mtr_stats`
#[repr(C)]
#[derive(Default)]
pub(super) struct MeterStats {
    pub n_pkts: [u64; 3],
    pub n_bytes: [u64; 3],
    pub n_pkts_dropped: u64,
    pub n_bytes_dropped: u64,
}

/// `struct rte_mtr_error`
#[repr(C)]
pub(super) struct MeterErrorInfo {
    pub kind: u32,
    pub cause: *const c_void,
    pub message: *const c_char,
}

const _: () = {
    assert!(size_of::<MeterOps>() == 168 && size_of::<MeterErrorInfo>() == 24);
    assert!(size_of::<MeterCapabilities>() == 128 && offset_of!(MeterCapabilities, meter_rate_max) == 48);
    assert!(offset_of!(MeterCapabilities, srtcm_rfc2697_byte_mode_supported) == 76);
    assert!(offset_of!(MeterCapabilities, stats_mask) == 104);
    assert!(size_of::<MeterProfile>() == 48 && offset_of!(MeterProfile, packet_mode) == 40);
    assert!(size_of::<MeterParams>() == 48 && offset_of!(MeterParams, meter_enable) == 24);
    assert!(offset_of!(MeterParams, meter_policy_id) == 40 && size_of::<MeterStats>() == 64);
};

const _: () = {
    assert!(size_of::<DynamicField>() == 88);
    assert!(size_of::<VdevDriver>() == 88 && offset_of!(VdevDriver, probe) == 48);
    assert!(size_of::<VdevDevice>() == 80 && offset_of!(VdevDevice, device) == 16);
    assert!(size_of::<Device>() == 64 && offset_of!(Device, devargs) == 56);
    assert!(size_of::<EthDev>() == 16512 && offset_of!(EthDev, data) == 48 && offset_of!(EthDev, state) == 16488);
    assert!(offset_of!(EthDev, dev_ops) == 64 && offset_of!(EthDev, device) == 72);
    assert!(size_of::<EthDevData>() == 6144 && offset_of!(EthDevData, dev_private) == 96);
    assert!(offset_of!(EthDevData, dev_link) == 104 && offset_of!(EthDevData, dev_conf) == 112);
    assert!(offset_of!(EthDevData, mtu) == 2384 && offset_of!(EthDevData, mac_addrs) == 2400);
    assert!(offset_of!(EthDevData, port_id) == 3440 && offset_of!(EthDevData, rx_queue_state) == 3443);
    assert!(offset_of!(EthDevData, dev_flags) == 5492 && offset_of!(EthDevData, numa_node) == 5496);
    assert!(offset_of!(EthDevData, owner) == 6016 && offset_of!(EthDevData, representor_id) == 6088);
    assert!(size_of::<EthDevOps>() == 904 && offset_of!(EthDevOps, dev_close) == 40);
    assert!(offset_of!(EthDevOps, mtu_set) == 136 && offset_of!(EthDevOps, stats_get) == 144);
    assert!(offset_of!(EthDevOps, xstats_get_names) == 176 && offset_of!(EthDevOps, dev_infos_get) == 192);
    assert!(offset_of!(EthDevOps, rx_queue_setup) == 328 && offset_of!(EthDevOps, tx_queue_setup) == 360);
    assert!(offset_of!(EthDevOps, flow_ops_get) == 560 && offset_of!(EthDevOps, mtr_ops_get) == 664);
    assert!(offset_of!(EthDevOps, rx_metadata_negotiate) == 792);
    assert!(size_of::<FlowOps>() == 296 && offset_of!(FlowOps, get_aged_flows) == 56);
    assert!(offset_of!(FlowOps, get_q_aged_flows) == 64 && offset_of!(FlowOps, action_handle_create) == 72);
    assert!(
        offset_of!(FlowOps, tunnel_decap_set) == 104
            && offset_of!(FlowOps, get_restore_info) == 120
            && offset_of!(FlowOps, pick_transfer_proxy) == 144
    );
    assert!(offset_of!(FlowOps, info_get) == 168 && offset_of!(FlowOps, configure) == 176);
    assert!(offset_of!(FlowOps, pattern_template_create) == 184 && offset_of!(FlowOps, async_create) == 232);
    assert!(
        offset_of!(FlowOps, async_action_handle_query) == 288
            && offset_of!(FlowOps, push) == 248
            && offset_of!(FlowOps, pull) == 256
    );
};

// Not among the libraries that pkg-config names, as applications do not call it.
#[link(name = "rte_bus_vdev")]
unsafe extern "C" {
    pub(super) fn rte_vdev_register(driver: *mut VdevDriver);
    pub(super) fn rte_eth_dev_allocate(name: *const c_char) -> *mut EthDev;
    pub(super) fn rte_eth_dev_allocated(name: *const c_char) -> *mut EthDev;
    pub(super) fn rte_eth_dev_release_port(dev: *mut EthDev) -> c_int;
    pub(super) fn rte_eth_dev_probing_finish(dev: *mut EthDev);
    pub(super) fn rte_eth_dev_callback_process(dev: *mut EthDev, event: u32, param: *mut c_void) -> c_int;
    pub(super) fn rte_eth_switch_domain_alloc(domain: *mut u16) -> c_int;
    pub(super) fn rte_eth_switch_domain_free(domain: u16) -> c_int;
    pub(super) fn rte_mbuf_dynfield_register(field: *const DynamicField) -> c_int;
    pub(super) fn rte_telemetry_register_cmd(
        command: *const c_char,
        callback: unsafe extern "C" fn(*const c_char, *const c_char, *mut c_void) -> c_int,
        help: *const c_char,
    ) -> c_int;
    pub(super) fn rte_tel_data_start_dict(data: *mut c_void) -> c_int;
    pub(super) fn rte_tel_data_add_dict_string(data: *mut c_void, name: *const c_char, value: *const c_char) -> c_int;
}
