//! The Ethernet device below a port, with one queue each way, hidden from the application.
//!
//! # Invariant: owned-backend
//!
//! `Backend::id` is a port that DPDK has and that has our owner, from `attach` to the drop. Where the process ends, ethdev may have
//! closed it before; it refuses the number then.

use super::mbuf::Mbuf;
use crate::config;
use crate::pipeline::Frame;
use dpdk_sys as sys;
use std::ffi::{CStr, CString};
use std::ptr::null_mut;

/// Packets taken from it at a time.
const BURST: usize = 32;
const DESCRIPTORS: u16 = 512;

/// The device.
pub(super) struct Backend {
    id: u16,
    running: bool,
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    /// Packets that it did not take, or that came while it was not running.
    pub tx_dropped: u64,
}

impl Backend {
    /// Takes over a device that is there, or makes it. Its owner is `owner` from then on.
    pub(super) fn attach(config: &config::Backend, owner: &sys::rte_eth_dev_owner) -> Result<Backend, String> {
        let name = CString::new(config.name.as_str()).map_err(|_| "a name with a zero in it".to_owned())?;
        let args = CString::new(config.args.as_str()).map_err(|_| "arguments with a zero in them".to_owned())?;
        let id = port_by_name(&name).map_or_else(|| create(&name, &args), Ok)?;
        // SAFETY: `owner` outlives the call, which copies it; an unknown port is refused.
        match unsafe { sys::rte_eth_dev_owner_set(id, owner) } {
            0 => Ok(Backend {
                id,
                running: false,
                rx_packets: 0,
                rx_bytes: 0,
                tx_packets: 0,
                tx_bytes: 0,
                tx_dropped: 0,
            }),
            error => Err(format!("{}: has another owner (error {})", config.name, -error)),
        }
    }

    /// Starts the device, which receives into `pool`: a pool of packets.
    pub(super) fn start(&mut self, pool: *mut sys::rte_mempool) -> Result<(), i32> {
        let check = |returned: i32| if returned < 0 { Err(returned) } else { Ok(()) };
        let conf = sys::rte_eth_conf::default();
        let (mut rx, mut tx) = (DESCRIPTORS, DESCRIPTORS);
        // SAFETY: owned-backend; `conf` outlives the call.
        check(unsafe { sys::rte_eth_dev_configure(self.id, 1, 1, &raw const conf) })?;
        // SAFETY: owned-backend; both pointers lead to locals.
        check(unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(self.id, &raw mut rx, &raw mut tx) })?;
        // SAFETY: owned-backend.
        let node = unsafe { sys::rte_eth_dev_socket_id(self.id) } as u32;
        // SAFETY: owned-backend; the application keeps `pool` until it has stopped the port, which stops this.
        check(unsafe { sys::rte_eth_rx_queue_setup(self.id, 0, rx, node, std::ptr::null(), pool) })?;
        // SAFETY: owned-backend; null means the driver's configuration.
        check(unsafe { sys::rte_eth_tx_queue_setup(self.id, 0, tx, node, std::ptr::null()) })?;
        // SAFETY: owned-backend.
        check(unsafe { sys::rte_eth_dev_start(self.id) })?;
        // SAFETY: owned-backend. A driver without this filters by no addresses.
        let _ = unsafe { sys::rte_eth_promiscuous_enable(self.id) };
        self.running = true;
        Ok(())
    }

    pub(super) fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            // SAFETY: owned-backend; `&mut` keeps its queues from being polled.
            let _ = unsafe { sys::rte_eth_dev_stop(self.id) };
        }
    }

    /// The entry points of the running device.
    fn ops(&self) -> &sys::rte_eth_fp_ops {
        let table = &raw const sys::rte_eth_fp_ops;
        // SAFETY: the table has an entry for each port.
        let ops = unsafe { table.cast::<sys::rte_eth_fp_ops>().add(usize::from(self.id)) };
        // SAFETY: the entry changes only when the device starts or stops, which takes `&mut self`.
        unsafe { &*ops }
    }

    /// Receives packets, a burst at most.
    pub(super) fn receive(&mut self) -> Vec<Mbuf> {
        if !self.running {
            return Vec::new();
        }
        let mut raw = [null_mut(); BURST];
        let ops = self.ops();
        let Some(rx_pkt_burst) = ops.rx_pkt_burst else { return Vec::new() };
        // SAFETY: the device runs, so the data of queue 0 is there.
        let queue = unsafe { *ops.rxq.data };
        // SAFETY: the entry point of this queue, which `&mut self` keeps to one thread; `raw` has room for a burst.
        let count = unsafe { rx_pkt_burst(queue, raw.as_mut_ptr(), BURST as u16) };
        // SAFETY: the driver wrote `count` packets and gave them to us.
        let packet = |&raw: &*mut sys::rte_mbuf| unsafe { Mbuf::from_raw(raw) };
        let packets: Vec<Mbuf> = raw[..usize::from(count)].iter().filter_map(packet).collect();
        self.rx_packets += packets.len() as u64;
        self.rx_bytes += packets.iter().map(|packet| packet.total_len() as u64).sum::<u64>();
        packets
    }

    /// Sends. What it does not take is lost, as on a wire.
    pub(super) fn send(&mut self, packets: Vec<Mbuf>) {
        if !self.running {
            self.tx_dropped += packets.len() as u64;
            return;
        }
        let bytes: Vec<u64> = packets.iter().map(|packet| packet.total_len() as u64).collect();
        let mut raw: Vec<_> = packets.into_iter().map(Mbuf::into_raw).collect();
        let ops = self.ops();
        let sent = match ops.tx_pkt_burst {
            Some(tx_pkt_burst) => {
                // SAFETY: the device runs, so the data of queue 0 is there.
                let queue = unsafe { *ops.txq.data };
                // SAFETY: the entry point of this queue, which `&mut self` keeps to one thread; `raw` has packets of ours.
                usize::from(unsafe { tx_pkt_burst(queue, raw.as_mut_ptr(), raw.len() as u16) })
            }
            None => 0,
        };
        for &raw in &raw[sent..] {
            // SAFETY: the device took the packets before `sent` alone; this one is ours.
            drop(unsafe { Mbuf::from_raw(raw) });
        }
        self.tx_packets += sent as u64;
        self.tx_bytes += bytes[..sent].iter().sum::<u64>();
        self.tx_dropped += (bytes.len() - sent) as u64;
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
        // The device stays on its bus: it cannot be removed while the bus is being cleaned up.
        // SAFETY: owned-backend; the device is stopped.
        let _ = unsafe { sys::rte_eth_dev_close(self.id) };
    }
}

fn port_by_name(name: &CStr) -> Option<u16> {
    let mut id = 0;
    // SAFETY: a C string; `id` has room for a number.
    (unsafe { sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &raw mut id) } == 0).then_some(id)
}

fn create(name: &CStr, args: &CStr) -> Result<u16, String> {
    // SAFETY: two C strings, which the bus copies.
    let init = || unsafe { sys::rte_vdev_init(name.as_ptr(), args.as_ptr()) };
    let mut returned = init();
    if returned == -libc::EEXIST {
        // A device without a port: left by a backend of before.
        // SAFETY: a C string.
        let _ = unsafe { sys::rte_vdev_uninit(name.as_ptr()) };
        returned = init();
    }
    port_by_name(name).ok_or_else(|| format!("{}: not made (error {})", name.to_string_lossy(), -returned))
}
