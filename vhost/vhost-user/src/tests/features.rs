//! Negotiation, status, configuration space, reset, acknowledgements.

use super::*;
use crate::SessionError;
use std::os::unix::net::UnixStream;

#[test]
fn no_bit_is_offered_that_is_not_implemented() {
    let mut script = Script::new();
    let offered = script.u64(Request::GET_FEATURES);
    assert_eq!(offered, crate::fake::FEATURES | feature::VHOST_USER_PROTOCOL_FEATURES | feature::VHOST_LOG_ALL);
    assert_eq!(offered & feature::ACCESS_PLATFORM, 0, "no IOTLB yet");
    // MQ, LOG_SHMFD, RARP, REPLY_ACK, MTU, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS.
    let bits: u64 = [0, 1, 2, 3, 4, 5, 9, 12, 13, 15, 16].iter().map(|bit| 1 << bit).sum();
    assert_eq!(script.u64(Request::GET_PROTOCOL_FEATURES), bits);
    script.device.properties.protocol_features = u64::MAX;
    let mut greedy = Script::with(script.device);
    assert_eq!(greedy.u64(Request::GET_PROTOCOL_FEATURES), bits, "a device cannot add what the session does not do");
}

#[test]
fn a_bit_that_was_not_offered_is_refused() {
    let mut script = Script::negotiated(SPLIT);
    for bit in [6, 7, 8, 10, 11, 14, 17, 18, 19, 20, 22, 23, 63] {
        let reason = script.refused(Request::SET_PROTOCOL_FEATURES, &quads(&[ALL_PROTOCOL | 1 << bit]), vec![]);
        assert!(reason.contains("SET_PROTOCOL_FEATURES: protocol features is 0x"), "{reason}");
    }
    let reason = script.refused(Request::SET_FEATURES, &quads(&[SPLIT | feature::ACCESS_PLATFORM]), vec![]);
    assert!(reason.contains("a part of the offered"), "{reason}");
}

#[test]
fn requests_of_features_never_offered_are_refused_by_name() {
    let mut script = Script::negotiated(SPLIT);
    let never = [
        Request::SET_VRING_ENDIAN,
        Request::CREATE_CRYPTO_SESSION,
        Request::CLOSE_CRYPTO_SESSION,
        Request::POSTCOPY_ADVISE,
        Request::POSTCOPY_LISTEN,
        Request::POSTCOPY_END,
        Request::GPU_SET_SOCKET,
        Request::VRING_KICK,
        Request::GET_SHARED_OBJECT,
        Request::SET_DEVICE_STATE_FD,
        Request::CHECK_DEVICE_STATE,
        Request::GET_SHMEM_CONFIG,
        Request::IOTLB_MSG,
        Request(0),
        Request(45),
        Request(u32::MAX),
    ];
    for request in never {
        let reason = script.refused(request, &[7; 40], vec![event()]);
        assert_eq!(reason, format!("{request}: this device does not offer it"));
    }
    assert_eq!(Request(45).to_string(), "request 45");
}

#[test]
fn a_request_without_its_protocol_feature_is_refused() {
    let gated = [
        (Request::GET_CONFIG, pf::CONFIG),
        (Request::SET_CONFIG, pf::CONFIG),
        (Request::SET_LOG_BASE, pf::LOG_SHMFD),
        (Request::SEND_RARP, pf::RARP),
        (Request::NET_SET_MTU, pf::NET_MTU),
        (Request::SET_BACKEND_REQ_FD, pf::BACKEND_REQ),
        (Request::SET_INFLIGHT_FD, pf::INFLIGHT_SHMFD),
        (Request::RESET_DEVICE, pf::RESET_DEVICE),
        (Request::ADD_MEM_REG, pf::CONFIGURE_MEM_SLOTS),
        (Request::REM_MEM_REG, pf::CONFIGURE_MEM_SLOTS),
        (Request::SET_STATUS, pf::STATUS),
    ];
    for (request, needed) in gated {
        let mut script = Script::new();
        script.ok(Request::SET_PROTOCOL_FEATURES, &quads(&[ALL_PROTOCOL & !needed]), vec![]);
        if request == Request::GET_CONFIG {
            assert_eq!(script.ask(request, &words(&[0, 4, 0]), vec![]), [], "an empty reply is the failure");
        } else {
            let reason = script.refused(request, &[], vec![]);
            assert!(reason.ends_with("was not negotiated"), "{reason}");
        }
    }
    for request in [Request::GET_QUEUE_NUM, Request::GET_MAX_MEM_SLOTS, Request::GET_STATUS, Request::GET_INFLIGHT_FD] {
        let mut script = Script::new();
        script.ok(Request::SET_PROTOCOL_FEATURES, &quads(&[pf::REPLY_ACK]), vec![]);
        let error = script.tell(request, &[], vec![]).expect_err("its reply has no room for a failure");
        assert!(matches!(error, SessionError::Refused { request: r, .. } if r == request));
    }
}

#[test]
fn acknowledgements_come_when_negotiated_and_asked_for() {
    let mut script = Script::new();
    let frame = |flags| Script::frame(Request::SET_OWNER, flags, &[], vec![]);
    let answered =
        |script: &mut Script, flags| script.session.handle(frame(flags), &mut script.device).unwrap().is_some();
    assert!(!answered(&mut script, VERSION | NEED_REPLY), "not negotiated");
    script.tell(Request::SET_PROTOCOL_FEATURES, &quads(&[pf::REPLY_ACK]), vec![]).unwrap();
    assert!(!answered(&mut script, VERSION), "not asked for");
    assert!(answered(&mut script, VERSION | NEED_REPLY));
}

#[test]
fn a_refusal_without_a_reply_channel_ends_the_session() {
    let mut script = Script::negotiated(SPLIT);
    let error = script.tell(Request::SET_VRING_NUM, &words(&[0, 3]), vec![]).unwrap_err();
    assert_eq!(error.to_string(), "SET_VRING_NUM refused: num is 0x3, expected a power of two for a split ring");
}

#[test]
fn queues_slots_and_configuration_are_told() {
    let mut script = Script::negotiated(SPLIT);
    assert_eq!(script.u64(Request::GET_QUEUE_NUM), u64::from(crate::fake::QUEUES));
    assert_eq!(script.u64(Request::GET_MAX_MEM_SLOTS), crate::MAX_MEM_SLOTS as u64);
    // QEMU sends as many bytes as it wants back, others the header alone.
    for request in [words(&[4, 8, 1]), [words(&[4, 8, 1]), vec![0; 8]].concat()] {
        let reply = script.ask(Request::GET_CONFIG, &request, vec![]);
        assert_eq!(reply[..12], words(&[4, 8, 1]));
        assert_eq!(reply[12..], [4, 5, 6, 7, 8, 9, 10, 11]);
    }
    assert_eq!(script.ask(Request::GET_CONFIG, &words(&[50, 11, 0]), vec![]), [], "outside: no payload");
    assert_eq!(script.ask(Request::GET_CONFIG, &words(&[u32::MAX, 8, 0]), vec![]), []);
    assert_eq!(script.ask(Request::GET_CONFIG, &words(&[0, 257, 0]), vec![]), []);
    script.ok(Request::SET_CONFIG, &[words(&[32, 1, 0]), vec![99]].concat(), vec![]);
    assert_eq!(script.device.config[32], 99);
    script.refused(Request::SET_CONFIG, &[words(&[60, 1, 0]), vec![99]].concat(), vec![]);
    script.refused(Request::SET_CONFIG, &[words(&[32, 2, 0]), vec![99]].concat(), vec![]);
}

#[test]
fn rarp_and_mtu_reach_the_device() {
    let mut script = Script::negotiated(SPLIT);
    script.ok(Request::SEND_RARP, &[2, 0, 0, 0, 0, 7, 0, 0], vec![]);
    assert_eq!(script.device.rarp, Some([2, 0, 0, 0, 0, 7]));
    script.ok(Request::NET_SET_MTU, &quads(&[9000]), vec![]);
    assert_eq!(script.device.mtu, Some(9000));
    for mtu in [0, 67, 65_536, u64::MAX] {
        assert!(script.refused(Request::NET_SET_MTU, &quads(&[mtu]), vec![]).contains("68 to 65535"));
    }
    assert_eq!(script.device.mtu, Some(9000));
}

#[test]
fn status_is_kept_and_zero_resets() {
    let mut script = Script::running(SPLIT);
    script.ok(Request::SET_STATUS, &quads(&[0x0f]), vec![]);
    assert_eq!(script.u64(Request::GET_STATUS), 0x0f);
    assert!(script.refused(Request::SET_STATUS, &quads(&[0x100]), vec![]).contains("8 bits"));
    script.ok(Request::SET_STATUS, &quads(&[0]), vec![]);
    assert_eq!(script.u64(Request::GET_STATUS), 0);
    assert!(script.device.rings.is_empty());
    assert_eq!(script.device.resets, 1);
}

#[test]
fn a_reset_device_starts_again_without_renegotiation() {
    let mut script = Script::running(SPLIT);
    script.ok(Request::RESET_DEVICE, &[], vec![]);
    assert!(script.device.rings.is_empty());
    // A ring that is kicked now is new: its size, addresses and base have to come again.
    script.ok(Request::SET_VRING_KICK, &quads(&[0]), vec![event()]);
    assert!(script.device.rings.is_empty());
    script.start_ring(0, 128, 0);
    assert!(script.device.rings[&0].start.call.is_some());
}

#[test]
fn reset_owner_disables_rings_and_keeps_the_connection_state() {
    let mut script = Script::running(SPLIT);
    script.ok(Request::RESET_OWNER, &[], vec![]);
    assert!(!script.device.rings[&0].start.enabled);
    script.ok(Request::SET_VRING_ENABLE, &words(&[0, 1]), vec![]);
    assert!(script.device.rings[&0].start.enabled);
}

#[test]
fn firmware_and_kernel_negotiate_one_after_the_other() {
    let mut script = Script::running(SPLIT);
    let reason = script.refused(Request::SET_FEATURES, &quads(&[PACKED]), vec![]);
    assert!(reason.contains("GET_VRING_BASE first"), "{reason}");
    assert_eq!(script.stop_ring(0), 0);
    script.ok(Request::SET_FEATURES, &quads(&[PACKED]), vec![]);
    script.start_ring(0, 100, 0x8000_8000);
    assert!(script.device.rings[&0].start.setup.packed());
}

#[test]
fn the_back_end_channel_is_a_stream_socket() {
    let mut script = Script::negotiated(SPLIT);
    let (_ours, theirs) = UnixStream::pair().unwrap();
    script.ok(Request::SET_BACKEND_REQ_FD, &[], vec![theirs.into()]);
    assert!(script.session.channel().is_some());
    script.refused(Request::SET_BACKEND_REQ_FD, &[], vec![event()]);
    let (_, datagram) = std::os::unix::net::UnixDatagram::pair().unwrap();
    assert!(script.refused(Request::SET_BACKEND_REQ_FD, &[], vec![datagram.into()]).contains("a stream socket"));
}

#[test]
fn a_device_that_refuses_is_passed_on() {
    let mut script = Script::with_memory(SPLIT);
    script.device.refuses = true;
    script.ok(Request::SET_VRING_NUM, &words(&[0, 256]), vec![]);
    script.ok(Request::SET_VRING_BASE, &words(&[0, 0]), vec![]);
    script.ok(Request::SET_VRING_ADDR, &addresses(0, None), vec![]);
    let reason = script.refused(Request::SET_VRING_KICK, &quads(&[0]), vec![event()]);
    assert_eq!(reason, "SET_VRING_KICK: the device was told to refuse");
    script.device.refuses = false;
    script.ok(Request::SET_VRING_KICK, &quads(&[0]), vec![event()]);
    assert_eq!(script.device.rings.len(), 1);
}
