//! The switch of this process. It is made with the first port or bridge: a daemon that serves disks alone has none.

use crate::Settings;
use crate::rpc::Refuse;
use api::RpcError;
use l2::{Switch, SwitchError};
#[cfg(feature = "dpdk")]
use offload::Offloader;
use packet::Pool;
use parking_lot::Mutex;
use std::sync::Arc;
#[cfg(feature = "dpdk")]
use std::sync::OnceLock;

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
    pub(super) making: tokio::sync::Mutex<()>,
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
        }
    }

    /// The switch, if something needed it already.
    pub(crate) fn get(&self) -> Option<Arc<Switch>> {
        self.made.lock().clone()
    }

    /// Takes ports and switch out of use, at the daemon's end. Waits for both.
    pub(crate) fn stop(&self) {
        let switch = self.made.lock().take();
        let Some(switch) = switch else { return };
        for port in switch.ports() {
            if let Err(error) = switch.remove_port(&port.name) {
                tracing::error!(%error, port = port.name, "the port could not be removed");
            }
        }
    }

    /// The pool that the switch's packets come from.
    pub(super) fn packet_pool(&self) -> Result<Pool, RpcError> {
        #[cfg(feature = "dpdk")]
        if self.dpdk.is_wanted() {
            return self.dpdk.start().map(|(_, pool)| pool.packets().clone());
        }
        Pool::new(self.packet_buffers, None).map_err(|error| {
            RpcError::errno(libc::ENOMEM, error.to_string()).hint("see --packet-buffers of the daemon")
        })
    }

    /// Offers the flows of the switch to the hardware behind its ports.
    #[cfg(feature = "dpdk")]
    pub(super) fn offload(&self, switch: &Switch) -> Result<(), RpcError> {
        let started =
            Offloader::start_with(self.limits).map_err(|error| RpcError::from_io(&error, "thread".to_owned()))?;
        let offloader = self.offloader.get_or_init(|| Arc::new(started));
        switch.set_offload(offloader.clone());
        Ok(())
    }

    pub(super) fn set(&self, switch: Arc<Switch>) {
        *self.made.lock() = Some(switch);
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
            SwitchError::Invalid(error) => error.refuse(),
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
            port::PortError::Invalid(error) => error.refuse(),
            port::PortError::Os { source, .. } => RpcError::from_io(&source, text),
            port::PortError::Other { .. } => RpcError::errno(libc::EIO, text),
        }
    }
}
