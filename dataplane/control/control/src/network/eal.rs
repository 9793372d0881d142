//! DPDK, once for the process. It is started with its first port, or at once where the operator gave options for it.

use api::RpcError;
use dpdk::{Eal, EalConfig, EalMemory, Mempool};
use parking_lot::Mutex;
use std::sync::OnceLock;

/// Mebibytes of DPDK's memory besides packets: rings, devices, queues.
const OVERHEAD_MIB: usize = 64;
/// Bytes of a packet buffer with all that belongs to it.
const BUFFER_BYTES: usize = 2560;

/// DPDK with its one pool of packets.
pub(crate) struct Dpdk {
    /// Options of the EAL, where the operator gave any.
    options: Option<Vec<String>>,
    packet_buffers: usize,
    /// Tried once: DPDK cannot be initialised again.
    eal: OnceLock<Result<Eal, RpcError>>,
    pool: Mutex<Option<Mempool>>,
}

impl Dpdk {
    pub(crate) fn new(options: Option<Vec<String>>, packet_buffers: usize) -> Dpdk {
        Dpdk { options, packet_buffers, eal: OnceLock::new(), pool: Mutex::default() }
    }

    /// Whether packets of all ports are to come from DPDK's memory: it runs already, or the operator gave options for it.
    pub(crate) fn is_wanted(&self) -> bool {
        self.options.is_some() || matches!(self.eal.get(), Some(Ok(_)))
    }

    /// DPDK, started if it was not, and the pool that its ports receive into. Takes a while the first time.
    pub(crate) fn start(&self) -> Result<(Eal, Mempool), RpcError> {
        let eal = self.eal.get_or_init(|| self.init()).clone()?;
        let mut pool = self.pool.lock();
        if let Some(pool) = &*pool {
            return Ok((eal, pool.clone()));
        }
        let buffers = u32::try_from(self.packet_buffers).unwrap_or(u32::MAX);
        let made = Mempool::new(&eal, "packets", buffers, None).map_err(|error| {
            RpcError::errno(libc::ENOMEM, error.to_string()).hint("see --packet-buffers and --eal of the daemon")
        })?;
        *pool = Some(made.clone());
        Ok((eal, made))
    }

    fn init(&self) -> Result<Eal, RpcError> {
        let options = self.options.clone().unwrap_or_default();
        let memory = memory(&options, self.packet_buffers);
        tracing::info!(?memory, ?options, "DPDK starts");
        Eal::init(&EalConfig { memory, options, ..EalConfig::default() }).map_err(|error| {
            RpcError::errno(libc::EIO, error.to_string()).hint("see --eal of the daemon; then restart it")
        })
    }
}

/// Where DPDK's memory comes from: as the options say, else hugepages where there are enough, else normal pages.
fn memory(options: &[String], packet_buffers: usize) -> EalMemory {
    let mib = packet_buffers.saturating_mul(BUFFER_BYTES).div_ceil(1 << 20) + OVERHEAD_MIB;
    let mib = u32::try_from(mib).unwrap_or(u32::MAX).max(EalMemory::DEFAULT_MIB);
    for option in options {
        match option.split_once('=').map_or((option.as_str(), ""), |(name, value)| (name, value)) {
            ("--in-memory", _) => return EalMemory::InMemory,
            ("--no-huge", _) => return EalMemory::NoHuge { mib },
            ("--file-prefix", prefix) => return EalMemory::Files { prefix: prefix.to_owned() },
            ("--huge-dir", _) => return EalMemory::Files { prefix: "sluice".to_owned() },
            _ => {}
        }
    }
    EalMemory::detect(mib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpdk_memory_follows_the_eal_options() {
        let of = |options: &str| memory(&options.split_whitespace().map(str::to_owned).collect::<Vec<_>>(), 1 << 18);
        assert_eq!(of("-m 512 --in-memory"), EalMemory::InMemory);
        assert_eq!(of("--no-huge"), EalMemory::NoHuge { mib: 704 });
        assert_eq!(of("--file-prefix=a --log-level=8"), EalMemory::Files { prefix: "a".to_owned() });
        assert_eq!(of("--huge-dir=/mnt/huge"), EalMemory::Files { prefix: "sluice".to_owned() });
        assert_eq!(of("--log-level=8"), EalMemory::detect(704));
    }
}
