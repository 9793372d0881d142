//! Guests that do anything.

use crate::guest::{BUFFERS, Guest, LAYOUTS, MEMORY};
use guest_memory::GuestAddress;
use packet::Burst;
use std::sync::atomic::{AtomicBool, Ordering};
use virtio_spec::feature;
use virtio_spec::net::feature as net;
use virtqueue::driver::Buffer;

/// Bytes that say what happens; zeros when they have run out.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u64 {
        u64::from(self.byte()) << 8 | u64::from(self.byte())
    }

    fn guest(&mut self) -> Guest {
        let offloads = net::CSUM | net::HOST_TSO4 | net::HOST_TSO6 | net::HOST_USO;
        let choices = [0, feature::VERSION_1, net::MRG_RXBUF, net::GUEST_CSUM | net::GUEST_TSO4 | net::GUEST_USO6];
        let choice = usize::from(self.byte());
        let chosen = (0..4).filter(|bit| choice >> bit & 1 == 1).fold(0, |bits, at: usize| bits | choices[at]);
        Guest::new(LAYOUTS[usize::from(self.byte()) % LAYOUTS.len()] | offloads | chosen, 128)
    }

    /// A chain of up to four buffers, most of them in memory, whose first bytes come from the input.
    fn chain(&mut self, guest: &Guest, writable: bool) -> Vec<Buffer> {
        let shape = self.byte();
        let place = |at: u64| if at > 0xff00 { MEMORY - 20 } else { BUFFERS + at };
        let mut chain = Vec::new();
        for part in 0..shape % 4 + 1 {
            let (at, len) = (GuestAddress(place(self.word())), self.word() as u32);
            let content: Vec<u8> = (0..shape >> 2).map(|_| self.byte()).collect();
            // Near the end of memory there is no room for it, as for a guest.
            let _outside = guest.memory.write(at, &content);
            chain.push((at, len, writable ^ (shape & 0x80 != 0 && part == 3)));
        }
        chain
    }
}

/// Chains of any shape on the transmit ring.
pub fn fuzz_receive(data: &[u8]) {
    let mut input = Input(data);
    let mut guest = input.guest();
    while !input.0.is_empty() {
        let chain = input.chain(&guest, false);
        let indirect = input.byte() & 1 == 1;
        guest.post_tx(&chain, indirect);
        forward(&mut guest);
        guest.reclaim();
    }
    guest.end();
}

/// Packets of any kind to receive buffers of any shape.
pub fn fuzz_transmit(data: &[u8]) {
    let mut input = Input(data);
    let mut guest = input.guest();
    while !input.0.is_empty() {
        for _ in 0..input.byte() % 8 {
            let chain = input.chain(&guest, true);
            let indirect = input.byte() & 1 == 1;
            guest.post_rx_chain(chain, indirect);
        }
        let chain = input.chain(&guest, false);
        guest.post_tx(&chain, false);
        forward(&mut guest);
        guest.reclaim();
        while guest.rx.take_used().is_some() {}
    }
    guest.end();
}

/// What the guest sends comes back to it.
fn forward(guest: &mut Guest) {
    let mut burst = Burst::new();
    guest.shard.rx(&mut burst);
    guest.shard.tx(&mut burst);
    guest.shard.flush();
}

/// Sends while another thread rewrites headers, frames and descriptors all the time.
pub fn fuzz_receive_race(data: &[u8]) {
    let mut input = Input(data);
    let mut guest = input.guest();
    let (memory, stop) = (guest.memory.clone(), AtomicBool::new(false));
    let ring = guest.tx.setup().addresses.descriptor.0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (at, bytes) in data.chunks_exact(4).cycle().enumerate() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (base, len) = if at % 2 == 0 { (ring, 16 * 64) } else { (BUFFERS, 0x40) };
                let offset = u64::from(u16::from_le_bytes([bytes[0], bytes[1]])) % (len - 1);
                memory.write(GuestAddress(base + offset), &bytes[2..]).expect("inside memory");
            }
        });
        while !input.0.is_empty() {
            let chain = input.chain(&guest, false);
            if !guest.post_tx(&chain, false) {
                break;
            }
            forward(&mut guest);
        }
        stop.store(true, Ordering::Relaxed);
    });
    guest.end();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn no_chain_harms_the_device(data in prop::collection::vec(any::<u8>(), 0..2000)) {
            super::fuzz_receive(&data);
            super::fuzz_transmit(&data);
        }

        #[test]
        fn no_race_harms_the_device(data in prop::collection::vec(any::<u8>(), 0..600)) {
            super::fuzz_receive_race(&data);
        }
    }
}
