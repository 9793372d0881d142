//! Rings: what starts them, what changes them, what stops them (pitfalls 1 to 4, 8, 10).

use super::*;
use guest_memory::GuestAddress;
use rustix::io::dup;

/// The pieces of a ring, in QEMU's order.
fn pieces() -> Vec<Request> {
    vec![
        Request::SET_FEATURES,
        Request::SET_MEM_TABLE,
        Request::SET_VRING_NUM,
        Request::SET_VRING_BASE,
        Request::SET_VRING_ADDR,
        Request::SET_VRING_KICK,
        Request::SET_VRING_CALL,
    ]
}

fn piece(script: &mut Script, request: Request, memory: &OwnedFd) {
    match request {
        Request::SET_FEATURES => script.ok(request, &quads(&[SPLIT]), vec![]),
        Request::SET_MEM_TABLE => script.ok(request, &table(&[[0, LEN, USER, 0]]), vec![dup(memory).unwrap()]),
        Request::SET_VRING_NUM => script.ok(request, &words(&[1, 64]), vec![]),
        Request::SET_VRING_BASE => script.ok(request, &words(&[1, 7]), vec![]),
        Request::SET_VRING_ADDR => script.ok(request, &addresses(1, None), vec![]),
        _ => script.ok(request, &quads(&[1]), vec![event()]),
    }
}

/// Heap's algorithm.
fn permutations(items: &mut Vec<Request>, n: usize, each: &mut impl FnMut(&[Request])) {
    if n <= 1 {
        return each(items);
    }
    for i in 0..n {
        permutations(items, n - 1, each);
        items.swap(if n.is_multiple_of(2) { i } else { 0 }, n - 1);
    }
}

#[test]
fn a_ring_starts_when_all_is_known_in_any_order_of_messages() {
    let memory = memfd(LEN);
    let mut orders = 0;
    let mut items = pieces();
    let n = items.len();
    permutations(&mut items, n, &mut |order| {
        let mut script = Script::new();
        script.ok(Request::SET_PROTOCOL_FEATURES, &quads(&[ALL_PROTOCOL]), vec![]);
        let needed = |request: &&Request| **request != Request::SET_VRING_CALL;
        let last = *order.iter().rfind(needed).unwrap();
        for &request in order {
            let started = script.device.rings.len();
            piece(&mut script, request, &memory);
            assert_eq!(script.device.rings.len() > started, request == last, "{order:?} at {request}");
        }
        let ring = &script.device.rings[&1];
        assert_eq!((ring.start.setup.size, ring.start.setup.base), (64, 7));
        assert!(ring.start.call.is_some() && ring.start.kick.is_some());
        orders += 1;
    });
    assert_eq!(orders, 5040);
}

#[test]
fn a_ring_waits_for_the_region_that_it_lies_in() {
    let mut script = Script::negotiated(SPLIT);
    script.ok(Request::SET_VRING_NUM, &words(&[1, 256]), vec![]);
    script.ok(Request::SET_VRING_BASE, &words(&[1, 0]), vec![]);
    script.ok(Request::SET_VRING_ADDR, &addresses(1, None), vec![]);
    script.ok(Request::SET_VRING_KICK, &quads(&[1]), vec![event()]);
    let half = 0x1_0000;
    let add = |script: &mut Script, at: u64| {
        script.ok(Request::ADD_MEM_REG, &quads(&[0, at, half, USER + at, 0]), vec![memfd(half)]);
    };
    add(&mut script, 0);
    assert!(script.device.rings.is_empty());
    add(&mut script, half);
    assert_eq!(script.device.rings.len(), 1);
}

#[test]
fn a_ring_outside_memory_is_refused_when_it_would_start() {
    let mut script = Script::with_memory(SPLIT);
    script.ok(Request::SET_VRING_NUM, &words(&[0, 256]), vec![]);
    script.ok(Request::SET_VRING_BASE, &words(&[0, 0]), vec![]);
    script.ok(Request::SET_VRING_KICK, &quads(&[0]), vec![event()]);
    let good = [USER, USER + 0xc000, USER + 0x8000];
    let bad = [
        (0, USER - 16, "descriptor table"),
        (0, USER + 8, "descriptor table"),
        (0, USER + LEN - 16 * 255, "descriptor table"),
        (0, u64::MAX - 15, "descriptor table"),
        (1, USER + 2, "used ring"),
        (1, USER + LEN - 4, "used ring"),
        (2, USER + 1, "available ring"),
        (2, 0, "available ring"),
    ];
    for (area, address, name) in bad {
        let mut at = good;
        at[area] = address;
        let payload = [words(&[0, 0]), quads(&at), quads(&[0])].concat();
        let reason = script.refused(Request::SET_VRING_ADDR, &payload, vec![]);
        assert!(reason.contains(&format!("ring 0: {name} at user address {address:#x}")), "{reason}");
    }
    script.ok(Request::SET_VRING_ADDR, &addresses(0, None), vec![]);
    assert_eq!(script.device.rings.len(), 1);
}

#[test]
fn get_vring_base_stops_and_a_kick_starts_again_from_there() {
    let mut script = Script::running(SPLIT);
    script.device.progress = 5;
    assert_eq!(script.stop_ring(0), 5);
    assert!(script.device.rings.is_empty());
    assert_eq!(script.stop_ring(0), 5, "a stopped ring keeps its base");
    // Nothing but a kick starts it.
    script.ok(Request::SET_VRING_ADDR, &addresses(0, None), vec![]);
    script.ok(Request::SET_VRING_ENABLE, &words(&[0, 1]), vec![]);
    script.ok(Request::SET_MEM_TABLE, &table(&[[0, LEN, USER, 0]]), vec![memfd(LEN)]);
    assert!(script.device.rings.is_empty());
    script.ok(Request::SET_VRING_KICK, &quads(&[0]), vec![event()]);
    let ring = &script.device.rings[&0].start;
    assert_eq!((ring.setup.base, ring.enabled), (5, true));
    assert!(ring.call.is_some(), "the call descriptor outlives a stop");
}

#[test]
fn the_base_of_a_ring_that_never_ran_is_told() {
    let mut script = Script::negotiated(SPLIT);
    assert_eq!(script.stop_ring(0), 0);
    script.ok(Request::SET_VRING_BASE, &words(&[0, 77]), vec![]);
    assert_eq!(script.stop_ring(0), 77);
    let mut script = Script::negotiated(PACKED);
    assert_eq!(script.stop_ring(0), 0x8000_8000, "both wrap counters start at 1");
}

#[test]
fn a_packed_base_has_32_bits_and_its_used_half_follows_the_available_half() {
    for (sent, started) in [
        (0x8000_8000, 0x8000_8000),
        (0x8000, 0x8000_8000),      // DPDK's virtio-user sends 16 bits
        (0x1234_8005, 0x8005_8005), // another used half than the available one: the ring was drained
        (0x0007_0007, 0x0007_0007),
    ] {
        let mut script = Script::with_memory(PACKED);
        script.start_ring(0, 100, sent);
        assert_eq!(script.device.rings[&0].start.setup.base, started, "{sent:#x}");
        assert_eq!(script.stop_ring(0), started);
    }
    let mut script = Script::with_memory(PACKED);
    script.ok(Request::SET_VRING_NUM, &words(&[0, 100]), vec![]);
    script.ok(Request::SET_VRING_ADDR, &addresses(0, None), vec![]);
    script.ok(Request::SET_VRING_KICK, &quads(&[0]), vec![event()]);
    let reason = script.refused(Request::SET_VRING_BASE, &words(&[0, 0x8064]), vec![]);
    assert!(reason.contains("base is 0x8064, expected an index below the ring's size 100"), "{reason}");
}

#[test]
fn base_zero_of_a_packed_ring_means_wrap_counter_one_unless_the_ring_went_round() {
    let start = |flags: u16| {
        let mut script = Script::negotiated(PACKED);
        let memory = memfd(LEN);
        // Flags of descriptor 42 of 100.
        rustix::io::pwrite(&memory, &flags.to_le_bytes(), 42 * 16 + 14).unwrap();
        script.ok(Request::SET_MEM_TABLE, &table(&[[0, LEN, USER, 0]]), vec![memory]);
        script.start_ring(0, 100, 0);
        script.device.rings[&0].start.setup.base
    };
    assert_eq!(start(0), 0x8000_8000, "new");
    assert_eq!(start(1 << 7), 0x8000_8000, "new, with buffers available");
    assert_eq!(start(1 << 15 | 1 << 7), 0, "used in the lap before");
    assert_eq!(start(1 << 15), 0, "available again in this lap");
}

#[test]
fn a_split_base_has_16_bits() {
    let mut script = Script::with_memory(SPLIT);
    script.start_ring(0, 256, 0xffff);
    assert_eq!(script.device.rings[&0].start.setup.base, 0xffff);
    script.device.progress = 3;
    assert_eq!(script.stop_ring(0), 2);
}

#[test]
fn rings_without_descriptors_are_polled() {
    const NOFD: u64 = 1 << 8;
    let mut script = Script::running(SPLIT);
    script.ok(Request::SET_VRING_KICK, &quads(&[NOFD]), vec![]);
    script.ok(Request::SET_VRING_CALL, &quads(&[NOFD]), vec![]);
    script.ok(Request::SET_VRING_ERR, &quads(&[NOFD]), vec![]);
    let ring = &script.device.rings[&0].start;
    assert!(ring.kick.is_none() && ring.call.is_none() && ring.err.is_none());
    script.stop_ring(0);
    script.ok(Request::SET_VRING_KICK, &quads(&[NOFD]), vec![]);
    assert!(script.device.rings[&0].start.kick.is_none(), "started without a descriptor");
    script.refused(Request::SET_VRING_KICK, &quads(&[NOFD]), vec![event()]);
    script.refused(Request::SET_VRING_KICK, &quads(&[0]), vec![]);
    script.refused(Request::SET_VRING_KICK, &quads(&[1 << 9]), vec![event()]);
}

#[test]
fn descriptors_of_a_live_ring_are_replaced() {
    let mut script = Script::running(SPLIT);
    assert!(script.device.rings[&0].start.err.is_none());
    script.ok(Request::SET_VRING_ERR, &quads(&[0]), vec![event()]);
    assert!(script.device.rings[&0].start.err.is_some());
    let call = event();
    script.ok(Request::SET_VRING_CALL, &quads(&[0]), vec![dup(&call).unwrap()]);
    rustix::io::write(script.device.rings[&0].start.call.as_ref().unwrap(), &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(rustix::io::read(&call, &mut [0; 8]), Ok(8), "the new descriptor is the one in use");
}

#[test]
fn a_started_ring_is_disabled_until_enabled() {
    let mut script = Script::with_memory(SPLIT);
    script.ok(Request::SET_VRING_NUM, &words(&[0, 256]), vec![]);
    script.ok(Request::SET_VRING_BASE, &words(&[0, 0]), vec![]);
    script.ok(Request::SET_VRING_ADDR, &addresses(0, None), vec![]);
    script.ok(Request::SET_VRING_KICK, &quads(&[0]), vec![event()]);
    assert!(!script.device.rings[&0].start.enabled);
    script.ok(Request::SET_VRING_ENABLE, &words(&[0, 1]), vec![]);
    assert!(script.device.rings[&0].start.enabled);
    script.ok(Request::SET_VRING_ENABLE, &words(&[0, 0]), vec![]);
    assert!(!script.device.rings[&0].start.enabled, "disabled and still started");
    assert!(script.refused(Request::SET_VRING_ENABLE, &words(&[0, 2]), vec![]).contains("0 or 1"));
}

#[test]
fn without_protocol_features_a_ring_starts_enabled() {
    let mut script = Script::new();
    let tell = |script: &mut Script, request, payload: &[u8], fds| {
        assert!(script.tell(request, payload, fds).unwrap().is_none());
    };
    tell(&mut script, Request::SET_OWNER, &[], vec![]);
    tell(&mut script, Request::SET_FEATURES, &quads(&[feature::VERSION_1]), vec![]);
    tell(&mut script, Request::SET_MEM_TABLE, &table(&[[0, LEN, USER, 0]]), vec![memfd(LEN)]);
    tell(&mut script, Request::SET_VRING_NUM, &words(&[0, 256]), vec![]);
    tell(&mut script, Request::SET_VRING_BASE, &words(&[0, 0]), vec![]);
    tell(&mut script, Request::SET_VRING_ADDR, &addresses(0, None), vec![]);
    tell(&mut script, Request::SET_VRING_KICK, &quads(&[0]), vec![event()]);
    assert!(script.device.rings[&0].start.enabled);
    assert!(script.tell(Request::SET_VRING_ENABLE, &words(&[0, 0]), vec![]).is_err());
}

#[test]
fn enable_may_come_before_the_features() {
    let mut script = Script::new();
    script.ok(Request::SET_PROTOCOL_FEATURES, &quads(&[ALL_PROTOCOL]), vec![]);
    script.ok(Request::SET_VRING_ENABLE, &words(&[1, 1]), vec![]);
    let memory = memfd(LEN);
    pieces().into_iter().for_each(|request| piece(&mut script, request, &memory));
    assert!(script.device.rings[&1].start.enabled);
}

#[test]
fn ring_sizes_are_checked_for_the_layout() {
    let mut script = Script::negotiated(SPLIT);
    for num in [0, 3, 100, 1023, 1025, 2048, 32_768, 65_536, u32::MAX] {
        script.refused(Request::SET_VRING_NUM, &words(&[0, num]), vec![]);
    }
    for num in [1, 2, 256, 1024] {
        script.ok(Request::SET_VRING_NUM, &words(&[0, num]), vec![]);
    }
    let mut script = Script::negotiated(PACKED);
    for num in [0, 1025, u32::MAX] {
        script.refused(Request::SET_VRING_NUM, &words(&[0, num]), vec![]);
    }
    for num in [1, 3, 100, 1023, 1024] {
        script.ok(Request::SET_VRING_NUM, &words(&[0, num]), vec![]);
    }
    // Before the features the layout is not known; the ring does not start then.
    let mut script = Script::new();
    script.ok(Request::SET_PROTOCOL_FEATURES, &quads(&[ALL_PROTOCOL]), vec![]);
    script.ok(Request::SET_VRING_NUM, &words(&[0, 100]), vec![]);
    script.ok(Request::SET_VRING_BASE, &words(&[0, 0]), vec![]);
    script.ok(Request::SET_VRING_ADDR, &addresses(0, None), vec![]);
    script.ok(Request::SET_VRING_KICK, &quads(&[0]), vec![event()]);
    script.ok(Request::SET_MEM_TABLE, &table(&[[0, LEN, USER, 0]]), vec![memfd(LEN)]);
    assert!(script.refused(Request::SET_FEATURES, &quads(&[SPLIT]), vec![]).contains("a power of two"));
    assert!(script.device.rings.is_empty());
}

#[test]
fn what_a_started_ring_was_made_of_is_frozen() {
    let mut script = Script::running(SPLIT);
    assert!(script.refused(Request::SET_VRING_NUM, &words(&[0, 128]), vec![]).contains("the ring's size"));
    assert!(script.refused(Request::SET_VRING_BASE, &words(&[0, 0]), vec![]).contains("the ring's base"));
    let moved = [words(&[0, 0]), quads(&[USER + 0x1_0000, USER + 0xc000, USER + 0x8000, 0])].concat();
    assert!(script.refused(Request::SET_VRING_ADDR, &moved, vec![]).contains("the ring's addresses"));
    script.ok(Request::SET_VRING_NUM, &words(&[0, 256]), vec![]);
    script.ok(Request::SET_VRING_ADDR, &addresses(0, None), vec![]);
}

#[test]
fn the_used_log_address_changes_on_a_live_ring() {
    let mut script = Script::running(SPLIT);
    script.ok(Request::SET_VRING_ADDR, &addresses(0, Some(0xdead_0000_0000)), vec![]);
    assert_eq!(script.device.rings[&0].used_log, Some(GuestAddress(0xdead_0000_0000)), "outside memory is legal");
    script.ok(Request::SET_VRING_ADDR, &addresses(0, None), vec![]);
    assert_eq!(script.device.rings[&0].used_log, None);
    let unknown = [words(&[0, 2]), quads(&[USER, USER + 0xc000, USER + 0x8000, 0])].concat();
    assert!(script.refused(Request::SET_VRING_ADDR, &unknown, vec![]).contains("VHOST_VRING_F_LOG"));
}

#[test]
fn an_index_outside_is_refused_by_every_ring_request() {
    let mut script = Script::with_memory(SPLIT);
    for index in [4_u32, 255] {
        script.refused(Request::SET_VRING_NUM, &words(&[index, 256]), vec![]);
        script.refused(Request::SET_VRING_BASE, &words(&[index, 0]), vec![]);
        script.refused(Request::SET_VRING_ADDR, &addresses(index, None), vec![]);
        script.refused(Request::SET_VRING_ENABLE, &words(&[index, 1]), vec![]);
        script.refused(Request::SET_VRING_KICK, &quads(&[index.into()]), vec![event()]);
        script.refused(Request::SET_VRING_CALL, &quads(&[index.into()]), vec![event()]);
        let reason = script.refused(Request::SET_VRING_ERR, &quads(&[index.into()]), vec![event()]);
        assert!(reason.contains("below the device's 4 queues"), "{reason}");
    }
    assert!(script.tell(Request::GET_VRING_BASE, &words(&[4, 0]), vec![]).is_err());
}

#[test]
fn only_eventfds_kick_and_what_is_signalled_is_a_counter_or_a_stream() {
    let mut script = Script::running(SPLIT);
    let other = || -> [OwnedFd; 2] { [memfd(8), std::fs::File::open("/").unwrap().into()] };
    let (_read, write) = std::io::pipe().unwrap();
    let socket = std::os::unix::net::UnixStream::pair().unwrap().0;
    for fd in other().into_iter().chain([write.into(), socket.into()]) {
        assert!(script.refused(Request::SET_VRING_KICK, &quads(&[0]), vec![fd]).ends_with("expected an eventfd"));
    }
    for request in [Request::SET_VRING_CALL, Request::SET_VRING_ERR, Request::SET_LOG_FD] {
        for fd in other() {
            let payload = if request == Request::SET_LOG_FD { vec![] } else { quads(&[0]) };
            assert!(script.refused(request, &payload, vec![fd]).ends_with("an eventfd, a pipe or a socket"));
        }
    }
}

#[test]
fn a_full_pipe_or_socket_does_not_block_the_device() {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let mut script = Script::running(SPLIT);
    let mut call = |fd: &OwnedFd| {
        script.ok(Request::SET_VRING_CALL, &quads(&[0]), vec![dup(fd).unwrap()]);
        script.device.rings.get_mut(&0).unwrap().start.call.take().unwrap()
    };
    let fill = |fd: &OwnedFd| (0..1_000_000).find_map(|_| rustix::io::write(fd, &[0; 8]).err());
    let blocks = |fd: &OwnedFd| !fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK);
    let (_read, write) = std::io::pipe().unwrap();
    let write: OwnedFd = write.into();
    let ours = call(&write);
    fcntl_setfl(&write, OFlags::empty()).unwrap(); // the front-end cannot take it back
    assert_eq!(fill(&ours), Some(rustix::io::Errno::AGAIN));
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let (near, far): (OwnedFd, OwnedFd) = (near.into(), far.into());
    assert_eq!(fill(&call(&near)), Some(rustix::io::Errno::AGAIN));
    let counter = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    call(&counter);
    assert!(blocks(&far) && blocks(&counter), "the front-end may want to block when it reads");
}
