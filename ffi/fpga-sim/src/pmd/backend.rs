//! What a port is over: another Ethernet device, with one queue each way, hidden from the application.

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
        // SAFETY: the port is there; the owner is copied.
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
            error => Err(format!("{}: owned by somebody else (error {})", config.name, -error)),
        }
    }

    /// Starts it, to receive into `pool`.
    pub(super) fn start(&mut self, pool: *mut sys::rte_mempool) -> Result<(), i32> {
        let check = |returned: i32| if returned < 0 { Err(returned) } else { Ok(()) };
        let conf = sys::rte_eth_conf::default();
        let (mut rx, mut tx) = (DESCRIPTORS, DESCRIPTORS);
        // SAFETY: the port is there and ours; `pool` is the application's pool of packets.
        unsafe {
            check(sys::rte_eth_dev_configure(self.id, 1, 1, &raw const conf))?;
            check(sys::rte_eth_dev_adjust_nb_rx_tx_desc(self.id, &raw mut rx, &raw mut tx))?;
            let node = sys::rte_eth_dev_socket_id(self.id) as u32;
            check(sys::rte_eth_rx_queue_setup(self.id, 0, rx, node, std::ptr::null(), pool))?;
            check(sys::rte_eth_tx_queue_setup(self.id, 0, tx, node, std::ptr::null()))?;
            check(sys::rte_eth_dev_start(self.id))?;
            // A device that cannot has no addresses to filter by.
            sys::rte_eth_promiscuous_enable(self.id);
        }
        self.running = true;
        Ok(())
    }

    pub(super) fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            // SAFETY: the port is ours.
            unsafe { sys::rte_eth_dev_stop(self.id) };
        }
    }

    fn ops(&self) -> *const sys::rte_eth_fp_ops {
        // SAFETY: a port number is in bounds of the table.
        unsafe { (&raw const sys::rte_eth_fp_ops).cast::<sys::rte_eth_fp_ops>().add(usize::from(self.id)) }
    }

    /// What it has received, a burst at most.
    pub(super) fn receive(&mut self) -> Vec<Mbuf> {
        if !self.running {
            return Vec::new();
        }
        let mut raw = [null_mut(); BURST];
        let ops = self.ops();
        // SAFETY: the device runs, so the queue's data is there; it writes at most as many packets as there is room for, and
        // they are ours from then on.
        let packets: Vec<Mbuf> = unsafe {
            let Some(rx_pkt_burst) = (*ops).rx_pkt_burst else { return Vec::new() };
            let count = rx_pkt_burst(*(*ops).rxq.data, raw.as_mut_ptr(), BURST as u16);
            raw[..usize::from(count)].iter().filter_map(|&raw| Mbuf::from_raw(raw)).collect()
        };
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
        // SAFETY: the device runs, so the queue's data is there; the packets that it says it sent are its own, the others ours.
        let sent = unsafe {
            let sent = match (*ops).tx_pkt_burst {
                Some(tx_pkt_burst) => tx_pkt_burst(*(*ops).txq.data, raw.as_mut_ptr(), raw.len() as u16),
                None => 0,
            };
            raw[usize::from(sent)..].iter().for_each(|&raw| drop(Mbuf::from_raw(raw)));
            usize::from(sent)
        };
        self.tx_packets += sent as u64;
        self.tx_bytes += bytes[..sent].iter().sum::<u64>();
        self.tx_dropped += (bytes.len() - sent) as u64;
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
        // SAFETY: the port is ours; it may be gone already at the end of the process. Its device stays on the bus: taking it from
        // there is not possible while the bus is being cleaned up.
        unsafe { sys::rte_eth_dev_close(self.id) };
    }
}

fn port_by_name(name: &CStr) -> Option<u16> {
    let mut id = 0;
    // SAFETY: a C string; fills `id`.
    (unsafe { sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &raw mut id) } == 0).then_some(id)
}

fn create(name: &CStr, args: &CStr) -> Result<u16, String> {
    // SAFETY: C strings, which are copied.
    let init = || unsafe { sys::rte_vdev_init(name.as_ptr(), args.as_ptr()) };
    let mut returned = init();
    if returned == -libc::EEXIST {
        // A device without a port: ours of an earlier life.
        // SAFETY: a C string.
        unsafe { sys::rte_vdev_uninit(name.as_ptr()) };
        returned = init();
    }
    port_by_name(name).ok_or_else(|| format!("{}: not made (error {})", name.to_string_lossy(), -returned))
}
