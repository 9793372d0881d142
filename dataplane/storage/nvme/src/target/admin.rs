//! Admin and Fabrics commands of the target.

use super::subsystem::{Controller, Target};
use crate::spec::{
    AsyncEvent, ConnectData, DISCOVERY_NQN, DYNAMIC_CONTROLLER, DiscoveryEntry, DiscoveryHeader, IDENTIFY_LEN,
    IdentifyController, KasUnits, LogPage, NvmeStatus, Property, Sqe, SubsystemType, admin, cc, csts, feature,
};
use clock::Cycles;
use std::time::Duration;

/// An answer: status, dwords 0 and 1, and data for the host.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: NvmeStatus,
    pub(super) result: u64,
    pub(super) data: Vec<u8>,
}

impl Reply {
    pub(super) fn status(status: NvmeStatus) -> Reply {
        Reply { status, result: 0, data: Vec::new() }
    }

    fn result(result: u64) -> Reply {
        Reply { status: NvmeStatus::SUCCESS, result, data: Vec::new() }
    }

    fn data(data: &[u8]) -> Reply {
        Reply { status: NvmeStatus::SUCCESS, result: 0, data: data.to_vec() }
    }
}

/// The association and queue of a connection, once Connect succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Association {
    pub(super) controller: u16,
    pub(super) queue: u16,
}

/// CAP: 1024 entries, contiguous, ready within 5 s, NVM command set, no doorbell stride (Base figure 36).
const CAP: u64 = 1023 | 1 << 16 | 10 << 24 | 1 << 37;
/// VS: 2.0.
const VERSION: u64 = 0x0002_0000;

impl Target {
    /// Connect (Base 6.3).
    pub(super) fn connect(&self, sqe: &Sqe, data: &[u8], now: Cycles) -> Result<(Association, Reply), Reply> {
        let invalid_data = |offset: u64| Reply {
            status: NvmeStatus::CONNECT_INVALID_PARAMETERS,
            result: 1 << 16 | offset,
            data: Vec::new(),
        };
        let request = ConnectData::parse(data).ok_or_else(|| Reply::status(NvmeStatus::INVALID_FIELD))?;
        let is_discovery = request.subnqn == DISCOVERY_NQN;
        if !is_discovery && request.subnqn != self.config.subnqn {
            return Err(invalid_data(256));
        }
        self.check_host(&request.hostnqn).map_err(Reply::status)?;
        let queue = sqe.connect_queue_id();
        let mut state = self.state();
        if queue == 0 {
            if request.controller_id != DYNAMIC_CONTROLLER {
                return Err(invalid_data(16));
            }
            let controller = state.new_controller(Controller {
                is_discovery,
                hostnqn: request.hostnqn,
                keep_alive: Duration::from_millis(sqe.cdw(12).into()),
                traffic: now,
                cc: 0,
                csts: 0,
                queues: Vec::new(),
                connections: 0,
                event_mask: 0,
                namespaces_changed: false,
            });
            return Ok((Association { controller, queue }, Reply::result(controller.into())));
        }
        let id = request.controller_id;
        let controller =
            state.controllers.get_mut(&id).filter(|c| c.hostnqn == request.hostnqn).ok_or(invalid_data(16))?;
        if queue > self.config.max_queues || sqe.connect_sqsize() == 0 {
            let result = if sqe.connect_sqsize() == 0 { 44 } else { 42 };
            return Err(Reply { status: NvmeStatus::CONNECT_INVALID_PARAMETERS, result, data: Vec::new() });
        }
        if controller.queues.contains(&queue) || controller.csts & csts::RDY == 0 {
            return Err(Reply::status(NvmeStatus::SEQUENCE_ERROR));
        }
        controller.queues.push(queue);
        controller.connections += 1;
        Ok((Association { controller: id, queue }, Reply::result(id.into())))
    }

    /// Admin commands but Connect, Abort and Asynchronous Event Request, which the connection answers.
    pub(super) fn admin(&self, id: u16, sqe: &Sqe) -> Reply {
        match sqe.opcode() {
            admin::FABRICS => self.fabrics(id, sqe),
            admin::IDENTIFY => self.identify(id, sqe),
            admin::GET_LOG_PAGE => self.log_page(sqe),
            admin::SET_FEATURES => self.set_features(id, sqe),
            admin::KEEP_ALIVE => Reply::status(NvmeStatus::SUCCESS),
            _ => Reply::status(NvmeStatus::INVALID_OPCODE),
        }
    }

    fn fabrics(&self, id: u16, sqe: &Sqe) -> Reply {
        let property = Property::at(sqe.cdw(11));
        let mut state = self.state();
        let Some(controller) = state.controllers.get_mut(&id) else {
            return Reply::status(NvmeStatus::INTERNAL_ERROR);
        };
        match (sqe.fctype(), property) {
            (0x04, Some(Property::Cap)) => Reply::result(CAP),
            (0x04, Some(Property::Vs)) => Reply::result(VERSION),
            (0x04, Some(Property::Cc)) => Reply::result(controller.cc.into()),
            (0x04, Some(Property::Csts)) => Reply::result(controller.status().into()),
            (0x00, Some(Property::Cc)) => {
                let (before, after) = (controller.cc, sqe.cdw(12));
                controller.cc = after;
                let stops = before & cc::EN != 0 && after & cc::EN == 0;
                let shuts_down = after & cc::SHN_NORMAL != 0;
                if stops || shuts_down {
                    self.stop_commands(&mut state, id);
                }
                let ready = after & cc::EN != 0 && !state.faults.never_ready;
                if let Some(controller) = state.controllers.get_mut(&id) {
                    controller.csts = if ready { csts::RDY } else { 0 };
                    controller.csts |= if shuts_down { csts::SHUTDOWN_COMPLETE } else { 0 };
                }
                Reply::status(NvmeStatus::SUCCESS)
            }
            _ => Reply::status(NvmeStatus::INVALID_FIELD),
        }
    }

    fn identify(&self, id: u16, sqe: &Sqe) -> Reply {
        let state = self.state();
        let Some(controller) = state.controllers.get(&id) else {
            return Reply::status(NvmeStatus::INTERNAL_ERROR);
        };
        match sqe.cdw(10) as u8 {
            0x01 => Reply::data(&self.identify_controller(id, controller.is_discovery).bytes()[..]),
            0x02 => {
                let after = sqe.nsid();
                let mut list = vec![0; IDENTIFY_LEN];
                let nsids = state.namespaces.keys().filter(|&&nsid| nsid > after);
                for (entry, nsid) in list.chunks_exact_mut(4).zip(nsids) {
                    entry.copy_from_slice(&nsid.to_le_bytes());
                }
                Reply::data(&list)
            }
            cns @ (0x00 | 0x03) => match state.namespaces.get(&sqe.nsid()) {
                Some(namespace) if cns == 0 => Reply::data(&namespace.identify().bytes()[..]),
                Some(namespace) => Reply::data(&namespace.ids().bytes()[..]),
                None => Reply::status(NvmeStatus::INVALID_NAMESPACE),
            },
            _ => Reply::status(NvmeStatus::INVALID_FIELD),
        }
    }

    fn identify_controller(&self, id: u16, is_discovery: bool) -> IdentifyController {
        IdentifyController {
            serial: "SLUICE".into(),
            model: "Sluice NVMe/TCP target".into(),
            firmware: env!("CARGO_PKG_VERSION").into(),
            mdts: self.config.mdts,
            controller_id: id,
            async_events: if is_discovery { feature::DISCOVERY_NOTICES } else { feature::NAMESPACE_NOTICES },
            attributes: IdentifyController::TBKAS,
            controller_type: if is_discovery { 2 } else { 1 },
            kas: KasUnits(1),
            command_quiesce_ms: self.config.quiesce_ms,
            max_commands: 1024,
            optional_commands: IdentifyController::COMPARE
                | IdentifyController::DATASET_MANAGEMENT
                | IdentifyController::WRITE_ZEROES,
            write_cache: 1,
            subnqn: if is_discovery { DISCOVERY_NQN.into() } else { self.config.subnqn.clone() },
            // "IOCCSZ: in units of 16 bytes, the 64 of the SQE included" (Base figure 275).
            io_capsule_units: (64 + self.config.in_capsule_len) / 16,
            in_capsule_offset_units: 0,
        }
    }

    fn set_features(&self, id: u16, sqe: &Sqe) -> Reply {
        match sqe.cdw(10) as u8 {
            feature::NUMBER_OF_QUEUES => {
                let granted = |asked: u32| (asked & 0xFFFF).min(u32::from(self.config.max_queues) - 1);
                let (submission, completion) = (granted(sqe.cdw(11)), granted(sqe.cdw(11) >> 16));
                Reply::result((submission | completion << 16).into())
            }
            feature::ASYNC_EVENT_CONFIGURATION => {
                if let Some(controller) = self.state().controllers.get_mut(&id) {
                    controller.event_mask = sqe.cdw(11);
                }
                Reply::status(NvmeStatus::SUCCESS)
            }
            _ => Reply::status(NvmeStatus::INVALID_FIELD),
        }
    }

    fn log_page(&self, sqe: &Sqe) -> Reply {
        let Some((page, offset, len)) = sqe.log_page().filter(|&(_, _, len)| len <= 1 << 20) else {
            return Reply::status(NvmeStatus::INVALID_FIELD);
        };
        let log = match page {
            p if p == LogPage::ChangedNamespaces as u8 => {
                // FFFFFFFFh first: more changed than the list says, look at all (Base 5.16.1.5).
                let mut log = vec![0; IDENTIFY_LEN];
                log[..4].fill(0xFF);
                log
            }
            p if p == LogPage::Discovery as u8 => self.discovery_log(),
            _ => return Reply::status(NvmeStatus::INVALID_LOG_PAGE),
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(log.len());
        let end = start.saturating_add(len as usize).min(log.len());
        let mut data = log[start..end].to_vec();
        data.resize(len as usize, 0);
        Reply::data(&data)
    }

    fn discovery_log(&self) -> Vec<u8> {
        let (traddr, trsvcid) = self.state().address.clone();
        let entry = |subtype, subnqn: &str, traddr: &str, trsvcid: &str| DiscoveryEntry {
            transport: DiscoveryEntry::TCP,
            address_family: if traddr.contains(':') { 2 } else { 1 },
            subtype,
            port_id: 1,
            controller_id: DYNAMIC_CONTROLLER,
            trsvcid: trsvcid.to_owned(),
            subnqn: subnqn.to_owned(),
            traddr: traddr.to_owned(),
        };
        let mut entries = vec![entry(SubsystemType::Nvm, &self.config.subnqn, &traddr, &trsvcid)];
        entries.extend(self.config.referrals.iter().map(|(a, p)| entry(SubsystemType::Referral, DISCOVERY_NQN, a, p)));
        let mut log = DiscoveryHeader { generation: 1, records: entries.len() as u64 }.bytes().to_vec();
        entries.iter().for_each(|entry| log.extend_from_slice(&entry.bytes()));
        log
    }

    /// The event that is to be sent to the host now, if the host asked for it.
    pub(super) fn take_event(&self, id: u16) -> Option<AsyncEvent> {
        let mut state = self.state();
        let controller = state.controllers.get_mut(&id)?;
        let wanted = controller.event_mask & feature::NAMESPACE_NOTICES != 0;
        if controller.namespaces_changed && wanted {
            controller.namespaces_changed = false;
            return Some(AsyncEvent::NamespaceAttributeChanged);
        }
        None
    }
}
