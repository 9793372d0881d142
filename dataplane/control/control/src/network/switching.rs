//! The switch of this process. It is made with the first port or bridge: who serves disks alone pays nothing for it.

use crate::blocking::blocking;
use crate::rpc::{OrRefuse, Refuse};
use crate::{Control, Settings};
use api::RpcError;
#[cfg(feature = "dpdk")]
use offload::Offloader;
use packet::Pool;
#[cfg(feature = "dpdk")]
use std::sync::OnceLock;
use std::sync::{Arc, Mutex, MutexGuard};
use switch::{Switch, SwitchError};
use virtio_net::NetController;

/// The switch, once there is one.
pub(crate) struct Switching {
    packet_buffers: usize,
    #[cfg(feature = "dpdk")]
    limits: offload::Config,
    #[cfg(feature = "dpdk")]
    pub(crate) dpdk: super::eal::Dpdk,
    /// Hardware behind its ports.
    #[cfg(feature = "dpdk")]
    pub(crate) offloader: OnceLock<Arc<Offloader>>,
    made: Mutex<Option<Arc<Switch>>>,
    /// One handler at a time makes it.
    making: tokio::sync::Mutex<()>,
    /// Ports that are guests, by name.
    guests: Mutex<Vec<(String, Arc<NetController>)>>,
}

impl Switching {
    pub(crate) fn new(settings: &Settings) -> Switching {
        Switching {
            packet_buffers: settings.packet_buffers,
            #[cfg(feature = "dpdk")]
            limits: offload::Config {
                rules_of_a_port: settings.offload_rules_per_port.unwrap_or(offload::Config::default().rules_of_a_port),
                ..offload::Config::default()
            },
            #[cfg(feature = "dpdk")]
            dpdk: super::eal::Dpdk::new(settings.eal.clone(), settings.packet_buffers),
            #[cfg(feature = "dpdk")]
            offloader: OnceLock::new(),
            made: Mutex::default(),
            making: tokio::sync::Mutex::default(),
            guests: Mutex::default(),
        }
    }

    /// The switch, if something needed it already.
    pub(crate) fn get(&self) -> Option<Arc<Switch>> {
        self.lock().clone()
    }

    /// Takes ports and switch out of use, at the daemon's end. Waits for both.
    pub(crate) fn stop(&self) {
        let switch = self.lock().take();
        for port in switch.iter().flat_map(|switch| switch.ports()) {
            if let Err(error) = switch.iter().try_for_each(|switch| switch.remove_port(&port.name).map(drop)) {
                tracing::error!(%error, port = port.name, "the port could not be removed");
            }
        }
        drop(std::mem::take(&mut *self.lock_guests()));
    }

    /// The pool that the switch's packets come from.
    fn packet_pool(&self) -> Result<Pool, RpcError> {
        #[cfg(feature = "dpdk")]
        if self.dpdk.is_wanted() {
            return self.dpdk.start().map(|(_, pool)| pool.packets().clone());
        }
        Pool::new(self.packet_buffers, None).map_err(|error| {
            RpcError::errno(libc::ENOMEM, error.to_string()).hint("see --packet-buffers of the daemon")
        })
    }

    /// Offers what the switch does to the hardware behind its ports.
    #[cfg(feature = "dpdk")]
    fn offload(&self, switch: &Switch) -> Result<(), RpcError> {
        let started =
            Offloader::start_with(self.limits).map_err(|error| RpcError::from_io(&error, "thread".to_owned()))?;
        let offloader = self.offloader.get_or_init(|| Arc::new(started));
        switch.set_offload(offloader.clone());
        Ok(())
    }

    pub(crate) fn add_guest(&self, name: &str, guest: Arc<NetController>) {
        self.lock_guests().push((name.to_owned(), guest));
    }

    pub(crate) fn guest(&self, name: &str) -> Result<Arc<NetController>, RpcError> {
        let found = self.guests().into_iter().find(|(known, _)| known == name).map(|(_, guest)| guest);
        found.ok_or_else(|| RpcError::no_such("controller", name).hint("vhost_get_net_controllers lists them"))
    }

    pub(crate) fn guests(&self) -> Vec<(String, Arc<NetController>)> {
        self.lock_guests().clone()
    }

    pub(crate) fn take_guest(&self, name: &str) -> Option<Arc<NetController>> {
        let mut guests = self.lock_guests();
        let at = guests.iter().position(|(known, _)| known == name)?;
        Some(guests.remove(at).1)
    }

    fn lock_guests(&self) -> MutexGuard<'_, Vec<(String, Arc<NetController>)>> {
        self.guests.lock().expect("no panic under this lock")
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Switch>>> {
        self.made.lock().expect("no panic under this lock")
    }
}

impl Control {
    /// The switch, for looking something up by its name.
    pub(crate) fn switch(&self, kind: &str, name: &str) -> Result<Arc<Switch>, RpcError> {
        self.switching.get().ok_or_else(|| RpcError::no_such(kind, name))
    }

    /// The switch, made if there is none yet.
    pub(crate) async fn make_switch(self: &Arc<Control>) -> Result<Arc<Switch>, RpcError> {
        let _making = self.switching.making.lock().await;
        if let Some(switch) = self.switching.get() {
            return Ok(switch);
        }
        let control = self.clone();
        let made = blocking(move || {
            let pool = control.switching.packet_pool()?;
            let switch = Switch::start(control.engine().workers(), pool).or_refuse()?;
            #[cfg(feature = "dpdk")]
            control.switching.offload(&switch)?;
            Ok::<_, RpcError>(switch)
        });
        let switch = Arc::new(made.await??);
        *self.switching.lock() = Some(switch.clone());
        Ok(switch)
    }
}

impl Refuse for SwitchError {
    fn refuse(self) -> RpcError {
        let error = self;
        let text = error.to_string();
        match error {
            SwitchError::NoSuch { kind, name } => {
                let lists = match kind {
                    "bridge" => "bridge_get lists the bridges",
                    "port" => "port_get lists the ports",
                    "flow" => "flow_dump lists the flows",
                    _ => "bridge_get_fdb lists the stations",
                };
                RpcError::no_such(kind, &name).hint(lists)
            }
            SwitchError::Exists { kind, name } => RpcError::name_taken(kind, &name),
            SwitchError::Invalid(error) => RpcError::invalid(error.field, error.got, error.expected),
            SwitchError::Limit { what, limit } => RpcError::limit(what, limit),
            SwitchError::Busy { .. } => {
                RpcError::errno(libc::EBUSY, text).hint("bridge_remove_port takes a port out of its bridge")
            }
            SwitchError::Overlaps(other) => RpcError::errno(libc::EEXIST, text).field("flow", other).hint(
                "no packet may match two flows: make their keys differ in a bit that both look at, or delete the other",
            ),
            SwitchError::Port(error) => error.refuse(),
            SwitchError::Os { source, .. } => RpcError::from_io(&source, text),
        }
    }
}

impl Refuse for port::PortError {
    fn refuse(self) -> RpcError {
        let error = self;
        let text = error.to_string();
        match error {
            port::PortError::Invalid(invalid) => RpcError::invalid(invalid.field, invalid.got, invalid.expected),
            port::PortError::Os { source, .. } => RpcError::from_io(&source, text),
            port::PortError::Other { .. } => RpcError::errno(libc::EIO, text),
        }
    }
}
