//! Memory table, dirty log and inflight region.

use super::{Answer, Session};
use crate::backend::{Backend, Change};
use crate::error::Reason;
use crate::inflight::{self, Inflight};
use crate::memory_table::NextTable;
use crate::message::{InflightDescription, Outgoing, RegionDescription};
use crate::request::Request;
use crate::ring::{check_areas, signalled};
use guest_memory::{DirtyLog, MapError, Mapping};
use std::os::fd::{AsFd, OwnedFd};
use virtio_spec::feature;

/// Largest dirty log: enough for 32 TiB of guest addresses.
const MAX_LOG: u64 = 1 << 30;

impl Session {
    pub(super) fn set_memory_table(
        &mut self,
        regions: Vec<(RegionDescription, OwnedFd)>,
        device: &mut dyn Backend,
    ) -> Result<(), Reason> {
        self.change_memory(self.table.replaced(regions)?, device)
    }

    pub(super) fn add_region(
        &mut self,
        region: RegionDescription,
        fd: OwnedFd,
        device: &mut dyn Backend,
    ) -> Result<(), Reason> {
        self.change_memory(self.table.with(region, fd)?, device)
    }

    pub(super) fn remove_region(&mut self, region: RegionDescription, device: &mut dyn Backend) -> Result<(), Reason> {
        self.change_memory(self.table.without(region)?, device)
    }

    /// Moves the device to `next`; only then the old epoch is given up, and only then the front-end hears of it.
    fn change_memory(&mut self, next: NextTable, device: &mut dyn Backend) -> Result<(), Reason> {
        if self.table.is(&next) {
            return Ok(());
        }
        for index in self.started_rings() {
            if let Some(setup) = self.setup(index) {
                check_areas(index, &setup, &next.memory)?;
            }
        }
        if self.any_started() {
            device.apply(Change::SetMemory(next.memory.clone()))?;
        }
        self.table.commit(next);
        self.start_ready(device)
    }

    /// The dirty log that is in force.
    pub(super) fn active_log(&self) -> Option<DirtyLog> {
        let wanted = self.features.unwrap_or(0) & feature::VHOST_LOG_ALL != 0;
        self.log.as_ref().filter(|_| wanted).cloned()
    }

    /// SET_LOG_BASE is answered even when no acknowledgement is asked for: front-ends wait until the log is in use.
    pub(super) fn set_log_base(&mut self, size: u64, offset: u64, fd: OwnedFd, device: &mut dyn Backend) -> Answer {
        if size > MAX_LOG {
            return Err(Reason::value("log size", size, format!("at most {MAX_LOG:#x}")));
        }
        let log = DirtyLog::new(Mapping::shared(fd.as_fd(), offset, size)?).map_err(MapError::Range)?;
        let old = self.log.replace(log);
        let active = self.active_log();
        if self.any_started()
            && active.is_some()
            && let Err(refusal) = device.apply(Change::SetLog(active))
        {
            self.log = old;
            return Err(refusal.into());
        }
        // QEMU takes any payload here; rust-vmm's front-ends want the description back.
        let payload: Vec<u8> = [size, offset].iter().flat_map(|word| word.to_ne_bytes()).collect();
        Ok(Some(Outgoing::reply(Request::SET_LOG_BASE, &payload)))
    }

    pub(super) fn set_log_fd(&mut self, fd: OwnedFd) -> Result<(), Reason> {
        self.log_fd = Some(signalled(fd)?);
        Ok(())
    }

    /// "It may be used to inform the front-end that the log has been modified."
    pub(super) fn signal_log(&self) {
        if let Some(fd) = &self.log_fd
            && self.any_started()
            && self.active_log().is_some()
        {
            // A counter that is full has been signalled already.
            let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
        }
    }

    /// Whether an inflight region is for no more than the device has.
    fn check_inflight(&self, description: &InflightDescription) -> Result<(), Reason> {
        let (queues, size) = (self.properties.queues, self.properties.max_queue_size);
        if !(1..=queues).contains(&description.queues) {
            return Err(Reason::value("num queues", description.queues, format!("1 to {queues}")));
        }
        if !(1..=size).contains(&description.queue_size) {
            return Err(Reason::value("queue size", description.queue_size, format!("1 to {size}")));
        }
        Ok(())
    }

    pub(super) fn get_inflight(&self, asked: InflightDescription) -> Answer {
        self.check_inflight(&asked)?;
        let (region, fd) = inflight::allocate(asked)?;
        Ok(Some(Outgoing::reply(Request::GET_INFLIGHT_FD, &region.bytes()).with_fd(fd)))
    }

    pub(super) fn set_inflight(&mut self, given: InflightDescription, fd: OwnedFd) -> Result<(), Reason> {
        if self.any_started() {
            return Err(Reason::Started("the inflight region"));
        }
        self.check_inflight(&given)?;
        self.inflight = Some(Inflight::map(given, fd)?);
        Ok(())
    }
}
