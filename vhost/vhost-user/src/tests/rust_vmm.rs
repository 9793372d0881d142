//! The front-end of rust-vmm, an independent implementation, against a served device.

use super::peer::Served;
use super::*;
use crate::Role;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::Relaxed;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

/// Connected, negotiated, every message acknowledged.
fn frontend(served: &Served, features: u64) -> Frontend {
    let mut frontend = Frontend::connect(&served.path, 4).unwrap();
    assert_eq!(frontend.get_features().unwrap() & features, features);
    let offered = frontend.get_protocol_features().unwrap();
    let mine = VhostUserProtocolFeatures::all() & !VhostUserProtocolFeatures::XEN_MMAP;
    frontend.set_protocol_features(offered & mine).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_owner().unwrap();
    frontend.set_features(features).unwrap();
    frontend
}

fn region(file: &OwnedFd, guest: u64, user: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: guest,
        memory_size: LEN,
        userspace_addr: user,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    }
}

fn ring(log: bool) -> VringConfigData {
    VringConfigData {
        queue_max_size: 256,
        queue_size: 256,
        flags: log.into(),
        desc_table_addr: USER,
        used_ring_addr: USER + 0xc000,
        avail_ring_addr: USER + 0x8000,
        log_addr: log.then_some(0x8000),
    }
}

fn start(frontend: &mut Frontend, memory: &OwnedFd) -> (EventFd, EventFd) {
    let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
    frontend.set_mem_table(&[region(memory, 0, USER)]).unwrap();
    frontend.set_vring_num(0, 256).unwrap();
    frontend.set_vring_addr(0, &ring(false)).unwrap();
    frontend.set_vring_base(0, 0).unwrap();
    frontend.set_vring_call(0, &call).unwrap();
    frontend.set_vring_kick(0, &kick).unwrap();
    frontend.set_vring_err(0, &EventFd::new(0).unwrap()).unwrap();
    frontend.set_vring_enable(0, true).unwrap();
    (kick, call)
}

#[test]
fn rust_vmm_starts_and_stops_a_ring() {
    for features in [SPLIT, PACKED] {
        let served = Served::new(Role::Server);
        let mut frontend = frontend(&served, features);
        let memory = memfd(LEN);
        let (kick, call) = start(&mut frontend, &memory);
        {
            let device = served.device.lock();
            let ring = &device.rings[&0].start;
            assert!(ring.enabled);
            kick.write(1).unwrap();
            assert_eq!(rustix::io::read(ring.kick.as_ref().unwrap(), &mut [0; 8]), Ok(8));
            rustix::io::write(ring.call.as_ref().unwrap(), &1_u64.to_ne_bytes()).unwrap();
            assert_eq!(call.read().unwrap(), 1);
        }
        let base = if features == PACKED { 0x8000_8000 } else { 0 };
        assert_eq!(
            frontend.get_vring_base(0).unwrap(),
            base,
            "32 bits, and a new packed ring starts with both counters"
        );
        assert!(served.device.lock().rings.is_empty());
        assert_eq!(served.control.status().last_error, None);
        served.stop();
    }
}

#[test]
fn rust_vmm_reads_queues_slots_and_configuration() {
    let served = Served::new(Role::Server);
    let mut frontend = frontend(&served, SPLIT);
    assert_eq!(frontend.get_queue_num().unwrap(), 4);
    assert_eq!(frontend.get_max_mem_slots().unwrap(), 256);
    let (config, bytes) = frontend.get_config(0, 8, VhostUserConfigFlags::WRITABLE, &[0; 8]).unwrap();
    assert_eq!((config.offset, config.size, bytes), (0, 8, (0..8).collect()));
    assert!(frontend.set_config(59, VhostUserConfigFlags::WRITABLE, &[1, 2]).is_err());
    frontend.set_config(59, VhostUserConfigFlags::WRITABLE, &[1]).unwrap();
    frontend.reset_owner().unwrap();
    frontend.reset_device().unwrap();
    served.stop();
}

#[test]
fn rust_vmm_adds_and_removes_memory_of_a_live_device() {
    let served = Served::new(Role::Server);
    let mut frontend = frontend(&served, SPLIT);
    let (memory, more) = (memfd(LEN), memfd(LEN));
    start(&mut frontend, &memory);
    let added = region(&more, LEN, USER + LEN);
    frontend.add_mem_region(&added).unwrap();
    assert_eq!(served.control.status().memory_regions, 2);
    assert!(frontend.add_mem_region(&added).is_err(), "twice");
    frontend.remove_mem_region(&added).unwrap();
    assert!(frontend.remove_mem_region(&added).is_err(), "gone");
    assert!(frontend.remove_mem_region(&region(&memory, 0, USER)).is_err(), "the ring is in it");
    let status = served.control.status();
    assert_eq!((status.memory_regions, status.refused, status.rings.len()), (1, 3, 1));
    served.stop();
}

#[test]
fn rust_vmm_migrates() {
    let served = Served::new(Role::Server);
    let mut frontend = frontend(&served, SPLIT);
    let (memory, log) = (memfd(LEN), memfd(4096));
    start(&mut frontend, &memory);
    let region = VhostUserDirtyLogRegion { mmap_size: 4096, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
    frontend.set_log_base(0, Some(region)).unwrap();
    frontend.set_features(SPLIT | feature::VHOST_LOG_ALL).unwrap();
    frontend.set_vring_addr(0, &ring(true)).unwrap();
    {
        let device = served.device.lock();
        assert!(device.rings[&0].start.log.is_some());
        assert_eq!(device.rings[&0].used_log, Some(guest_memory::GuestAddress(0x8000)));
    }
    frontend.set_features(SPLIT).unwrap();
    assert!(served.device.lock().rings[&0].start.log.is_none());
    served.stop();
}

#[test]
fn rust_vmm_keeps_the_inflight_region_over_a_reconnect() {
    let served = Served::new(Role::Server);
    let ask = VhostUserInflight::new(0, 0, 4, 256);
    let memory = memfd(LEN);
    let mut first = frontend(&served, SPLIT);
    let (region, file) = first.get_inflight_fd(&ask).unwrap();
    first.set_inflight_fd(&region, file.as_raw_fd()).unwrap();
    start(&mut first, &memory);
    let window = |served: &Served| served.device.lock().rings[&0].start.setup.inflight.clone().unwrap();
    window(&served).store_u64(8, 42, Relaxed);
    drop(first);
    served.until("the first session's end", |device, _| device.rings.is_empty());
    let mut second = frontend(&served, SPLIT);
    second.set_inflight_fd(&region, file.as_raw_fd()).unwrap();
    start(&mut second, &memory);
    assert_eq!(window(&served).load_u64(8, Relaxed), 42);
    served.stop();
}

#[test]
fn rust_vmm_is_told_of_refusals_and_goes_on() {
    let served = Served::new(Role::Server);
    let mut frontend = frontend(&served, SPLIT);
    assert!(frontend.set_vring_num(0, 3).is_err());
    assert!(frontend.set_vring_num(0, 0).is_err());
    assert!(frontend.set_vring_num(0, 2048).is_err());
    assert!(frontend.set_features(u64::MAX).is_err());
    let directory: OwnedFd = std::fs::File::open("/").unwrap().into();
    assert!(frontend.set_mem_table(&[region(&directory, 0, USER)]).is_err());
    start(&mut frontend, &memfd(LEN));
    let status = served.control.status();
    assert_eq!((status.refused, status.connections), (5, 1));
    assert!(status.last_error.unwrap().starts_with("SET_MEM_TABLE: "));
    served.stop();
}

#[test]
fn rust_vmm_hears_of_a_new_configuration() {
    use std::io::Read;
    let served = Served::new(Role::Server);
    let mut frontend = frontend(&served, SPLIT);
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    frontend.set_backend_request_fd(&theirs).unwrap();
    served.control.config_changed();
    ours.set_read_timeout(Some(super::peer::PATIENCE)).unwrap();
    let mut message = [0; 12];
    ours.read_exact(&mut message).unwrap();
    assert_eq!(message.to_vec(), words(&[2, VERSION, 0]));
    served.stop();
}
