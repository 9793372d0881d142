//! Flows that hardware does.

use super::{Net, any, frame, mac};
use crate::{Capture, Offer, Offload, OffloadHandle, OffloadState, PortNo, RateLimit};
use clock::Cycles;
use flow::Action;
use parking_lot::Mutex;
use port::Port;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Hardware that takes all, but what comes from port 4.
#[derive(Default)]
struct Hardware {
    ports: Mutex<Vec<PortNo>>,
    flows: Mutex<BTreeMap<u128, Offer>>,
}

impl Offload for Hardware {
    fn add_port(&self, number: PortNo, _port: &dyn Port) -> bool {
        self.ports.lock().push(number);
        number != 4
    }

    fn remove_port(&self, number: PortNo) {
        self.ports.lock().retain(|port| *port != number);
    }

    fn offer(&self, offer: Offer) {
        offer.handle.set_state(OffloadState::Full);
        self.flows.lock().insert(offer.flow.ufid, offer);
    }

    fn withdraw(&self, ufid: u128) {
        if let Some(offer) = self.flows.lock().remove(&ufid) {
            offer.handle.set_state(OffloadState::No);
        }
    }
}

impl Hardware {
    /// The one flow that it has.
    fn only(&self) -> Option<(Arc<OffloadHandle>, Arc<[Action]>)> {
        let flows = self.flows.lock();
        assert!(flows.len() <= 1, "{} flows", flows.len());
        flows.values().next().map(|offer| (offer.handle.clone(), offer.flow.actions.clone()))
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// Three stations behind three ports that know each other, and a busy flow from the first to the second.
fn busy() -> (Net, Arc<Hardware>) {
    let mut net = Net::new(&[any(), any(), any()]);
    let hardware = Arc::<Hardware>::default();
    net.switch.set_offload(hardware.clone());
    for n in 1..=3 {
        net.send(n.into(), &frame(mac(n), super::BROADCAST, None));
    }
    net.settle();
    stream(&mut net, 1);
    net.sweep_after(SECOND);
    (net, hardware)
}

fn stream(net: &mut Net, from: PortNo) {
    for _ in 0..100 {
        net.send(from, &frame(mac(1), mac(2), None));
        net.settle();
    }
    (1..=3).for_each(|port| drop(net.received(port)));
}

#[test]
fn a_busy_flow_is_offered_and_a_quiet_one_is_not() {
    let (mut net, hardware) = busy();
    assert_eq!(*hardware.ports.lock(), [1, 2, 3]);
    let (_, actions) = hardware.only().unwrap();
    assert_eq!(*actions, [Action::Output(2)]);
    let reports = net.state().flow_reports();
    assert_eq!(reports.iter().filter(|report| report.offloaded == OffloadState::Full).count(), 1);
    // It is not offered anew while it is there.
    let before = hardware.flows.lock().values().next().unwrap().packets;
    stream(&mut net, 1);
    stream(&mut net, 1);
    net.sweep_after(SECOND);
    assert_eq!(hardware.flows.lock().values().next().unwrap().packets, before);
}

#[test]
fn flows_from_ports_without_hardware_are_not_offered() {
    let (mut net, hardware) = busy();
    assert_eq!(net.add_port(any()), 4);
    for _ in 0..100 {
        net.send(4, &frame(mac(4), mac(2), None));
        net.settle();
    }
    net.sweep_after(SECOND);
    assert_eq!(hardware.flows.lock().len(), 1);
}

#[test]
fn hardware_counters_are_added_to_the_flow_and_keep_it_alive() {
    let (mut net, hardware) = busy();
    let (handle, _) = hardware.only().unwrap();
    let counted = |net: &Net| {
        let reports = net.state().flow_reports();
        reports.iter().find(|report| report.offloaded == OffloadState::Full).map(|report| report.flow.stats)
    };
    let before = counted(&net).unwrap();
    handle.add(50, 5000, Cycles::now());
    net.sweep_after(SECOND);
    let after = counted(&net).unwrap();
    assert_eq!((after.packets - before.packets, after.bytes - before.bytes), (50, 5000));
    assert!(after.used > before.used);
}

#[test]
fn a_removed_flow_is_withdrawn_from_hardware() {
    let (mut net, hardware) = busy();
    let (handle, _) = hardware.only().unwrap();
    net.remove_port("1");
    assert!(hardware.only().is_none() && !handle.is_offloaded());
    assert_eq!(*hardware.ports.lock(), [2, 3]);
}

#[test]
fn changed_actions_are_offered_to_hardware() {
    let (mut net, hardware) = busy();
    // The station moves behind another port.
    net.send(3, &frame(mac(2), super::BROADCAST, None));
    net.settle();
    if let Some((handle, actions)) = hardware.only() {
        assert_eq!((handle.is_offloaded(), &*actions), (true, [Action::Output(3)].as_slice()));
    }
    stream(&mut net, 1);
    net.sweep_after(SECOND);
    assert_eq!(*hardware.only().unwrap().1, [Action::Output(3)]);
}

#[test]
fn flows_of_ports_with_limits_or_captures_stay_with_workers() {
    let (mut net, hardware) = busy();
    let limit = RateLimit { packets_per_second: Some(1_000_000), ..RateLimit::default() };
    net.switch.limit_port("1", limit).unwrap();
    assert!(hardware.only().is_none());
    stream(&mut net, 1);
    net.sweep_after(SECOND);
    assert!(hardware.only().is_none());
    net.switch.limit_port("1", RateLimit::default()).unwrap();
    stream(&mut net, 1);
    net.sweep_after(SECOND);
    assert!(hardware.only().is_some());
    // Who looks at a port sees what goes out by it, too.
    let capture = Capture::new(64, 64).unwrap();
    net.switch.start_capture("2", &capture).unwrap();
    assert!(hardware.only().is_none());
    net.switch.stop_capture("2").unwrap();
    stream(&mut net, 1);
    net.sweep_after(SECOND);
    assert!(hardware.only().is_some());
}

#[test]
fn offloaded_flows_do_not_age_and_withdrawn_ones_do() {
    let (net, hardware) = busy();
    let (handle, _) = hardware.only().unwrap();
    let ufid = *hardware.flows.lock().keys().next().unwrap();
    assert!(net.sweep_idle(ufid));
    handle.set_state(OffloadState::No);
    assert!(!net.sweep_idle(ufid));
}

#[test]
fn a_flow_that_hardware_lost_is_offered_again_at_once() {
    let (mut net, hardware) = busy();
    let (handle, _) = hardware.only().unwrap();
    hardware.flows.lock().clear();
    handle.mark_removed();
    net.sweep_after(SECOND);
    assert!(hardware.only().is_some() && handle.is_offloaded());
    // Once: it is like any other from now on.
    hardware.flows.lock().clear();
    handle.set_state(OffloadState::No);
    net.sweep_after(SECOND);
    assert!(hardware.only().is_none());
}
