//! What is offered to a guest.

use virtio_spec::{feature as ring, net::feature as net};

/// The feature bits of a device. The control queue, and all that goes through it, is the front-end's; the bit says that the
/// device goes along with queue pairs that come and go.
pub(crate) fn offered(queue_pairs: u16, packed: bool, mrg_rxbuf: bool) -> u64 {
    let mut bits = ring::VERSION_1
        | ring::ANY_LAYOUT
        | ring::RING_INDIRECT_DESC
        | ring::RING_EVENT_IDX
        | ring::IN_ORDER
        | net::CSUM
        | net::GUEST_CSUM
        | net::GUEST_TSO4
        | net::GUEST_TSO6
        | net::GUEST_USO4
        | net::GUEST_USO6
        | net::HOST_TSO4
        | net::HOST_TSO6
        | net::HOST_USO
        | net::MTU
        | net::STATUS
        | net::GUEST_ANNOUNCE;

    let optional =
        [(packed, ring::RING_PACKED), (mrg_rxbuf, net::MRG_RXBUF), (queue_pairs > 1, net::MQ | net::CTRL_VQ)];
    optional.iter().filter(|(has, _)| *has).for_each(|(_, bit)| bits |= bit);
    bits
}
