//! What fuzz targets and property tests share: each takes bytes and panics only where we are wrong.

use crate::controller::Controller;
use crate::io::{MemoryStream, Pieces};
use crate::params::AttachParams;
use crate::pdu::{Digests, IcReq, IcResp, PduType, Transfer, flags};
use crate::queue_pair::{Data, Payload, QueueConfig, QueuePair};
use crate::spec::{DiscoveryEntry, IdentifyController, IdentifyNamespace, NamespaceIds, Sqe, nvm};
use crate::target::{Access, Connection, MemoryStore, Namespace, ServerConnection, Target, TargetConfig};
use clock::Cycles;
use memory::IoBuffers;
use std::sync::Arc;
use std::time::Duration;

const LEN: u32 = 1024;

struct Buffers(IoBuffers);

impl Payload for Buffers {
    fn buffers(&self) -> Option<&IoBuffers> {
        Some(&self.0)
    }
}

/// A connected queue with four reads and four writes outstanding.
fn busy_queue(digests: Digests) -> QueuePair<Buffers> {
    let mut queue = QueuePair::new(QueueConfig { entries: 9, digests, in_capsule_len: 0 });
    let mut hello = [0; 128];
    IcResp { version: 0, cpda: 0, digests, max_h2c_data: 4096 }.put(&mut hello);
    feed(&mut queue, &hello, 128);
    for i in 0..8 {
        let opcode = if i < 4 { nvm::READ } else { nvm::WRITE };
        let buffers = Buffers(IoBuffers::anonymous(LEN as usize).expect("memory"));
        let data = Data::Buffers { offset: 0, len: LEN };
        assert!(queue.submit(Sqe::io(opcode, 1, 0, 2), data, buffers, Cycles(1)).is_ok());
    }
    drain(&mut queue);
    queue
}

fn drain(queue: &mut QueuePair<Buffers>) {
    let mut pieces = Pieces::new();
    while queue.wants_to_send() {
        let len = queue.gather(&mut pieces).len();
        if len == 0 {
            return;
        }
        queue.sent(len);
    }
}

/// Feeds bytes in pieces until the queue refuses. Commands that completed, or `None` when it refused.
fn feed(queue: &mut QueuePair<Buffers>, bytes: &[u8], split: usize) -> Option<usize> {
    let mut pieces = Pieces::new();
    let mut completed = 0;
    for mut piece in bytes.chunks(split.max(1)) {
        while !piece.is_empty() {
            let taken = queue.scatter(&mut pieces).copy_from(piece);
            assert!(taken > 0, "the queue always takes bytes");
            piece = &piece[taken..];
            if let Err(error) = queue.received(taken) {
                queue.fail(&error);
                drain(queue);
                return None;
            }
            drain(queue);
            while queue.pop_completion().is_some() {
                completed += 1;
            }
        }
    }
    Some(completed)
}

/// A target's bytes for a busy queue: the first byte says in which pieces, the rest are fed.
pub fn fuzz_initiator(bytes: &[u8]) {
    if let [split, rest @ ..] = bytes {
        initiator_receives(rest, (*split).into());
    }
}

/// An honest session with one wrong byte: where, what, in which pieces, under which digests.
pub fn fuzz_initiator_session(bytes: &[u8]) {
    if let [low, high, value, split, digests, ..] = *bytes {
        let at = u16::from_le_bytes([low, high]).into();
        initiator_meets_one_wrong_byte(at, value, split.into(), Digests::from_bits(digests));
    }
}

/// An initiator's bytes for the target: the first byte says in which pieces, the rest are fed.
pub fn fuzz_target(bytes: &[u8]) {
    if let [split, rest @ ..] = bytes {
        target_receives(rest, (*split).into());
    }
}

/// Bytes from a target, in pieces of `split`.
pub(crate) fn initiator_receives(bytes: &[u8], split: usize) {
    let mut queue = busy_queue(Digests::default());
    let completed = feed(&mut queue, bytes, split);
    let left = (0..queue.slots()).filter(|&slot| queue.take(slot).is_some()).count();
    assert!(completed.is_none_or(|completed| completed + left == 8), "each command ends or is left, once");
}

/// A whole honest session in which byte `at` holds `value`.
pub(crate) fn initiator_meets_one_wrong_byte(at: usize, value: u8, split: usize, digests: Digests) {
    let mut queue = busy_queue(digests);
    let mut stream = honest_answers(digests);
    let at = at % stream.len();
    let changed = stream[at] != value;
    stream[at] = value;
    let completed = feed(&mut queue, &stream, split);
    if !changed {
        assert_eq!(completed, Some(4));
    }
    // With both digests nothing wrong passes as right: a change in a header ends the connection.
    if changed && digests.header && at < 24 {
        assert_eq!(completed, None);
    }
}

/// Reads are answered; writes get an R2T for all of their data, and their answer is still to come.
fn honest_answers(digests: Digests) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut put = |write: &dyn Fn(&mut [u8]) -> usize, data: &[u8]| {
        let mut head = [0; 256];
        let len = write(&mut head);
        stream.extend_from_slice(&head[..len]);
        stream.extend_from_slice(data);
        if digests.data && !data.is_empty() {
            stream.extend_from_slice(&crate::digest::crc32c(data).to_le_bytes());
        }
    };
    for cid in 0..8u16 {
        let transfer = Transfer { cid, tag: 0, offset: 0, len: LEN };
        if cid < 4 {
            let bits = flags::LAST | flags::SUCCESS;
            put(&|out| transfer.put(out, PduType::C2hData, bits, digests, 4), &[cid as u8; LEN as usize]);
        } else {
            put(&|out| transfer.put(out, PduType::R2t, 0, digests, 4), &[]);
        }
    }
    stream
}

/// Bytes from an initiator: first after a handshake, then without.
pub(crate) fn target_receives(bytes: &[u8], split: usize) {
    for greets in [true, false] {
        let target = Target::new(TargetConfig::new("nqn.2024-01.org.sluice:fuzz"), 1);
        let store = Arc::new(MemoryStore::new(1 << 16));
        let uuid = uuid::Uuid::from_u128(1);
        target.set_namespace(1, Namespace { store, block_size: 512, access: Access::ReadWrite, uuid });
        let mut connection = Connection::new(target);
        let mut now = Cycles(1);
        if greets {
            let mut hello = [0; 128];
            IcReq { version: 0, hpda: 0, digests: Digests::default(), max_r2t: 0 }.put(&mut hello);
            connection.receive(&hello, now);
        }
        for piece in bytes.chunks(split.max(1)) {
            connection.receive(piece, now);
            connection.poll(now);
            let sent = connection.output().len();
            connection.consume(sent);
            now = now + Cycles(1);
        }
        connection.disconnect(now);
    }
}

/// A whole admin session played from `bytes`, until it refuses them or its time is up.
pub fn fuzz_admin_session(bytes: &[u8]) {
    let params = AttachParams::new("Fuzz0", ([127, 0, 0, 1], 4420).into(), "nqn.2024-01.org.sluice:fuzz");
    let Ok(settings) = params.validate() else { return };
    let (mut hello, stream) = ([0; 128], Arc::new(MemoryStream::default()));
    IcResp { version: 0, cpda: 0, digests: Digests::default(), max_h2c_data: 4096 }.put(&mut hello);
    stream.push(&hello);
    stream.push(bytes);
    let mut now = Cycles(1);
    let mut controller = Controller::new(Arc::new(settings), stream, now);
    for _ in 0..1000 {
        if controller.turn(now, false).is_err() {
            return;
        }
        while controller.pop_event().is_some() {}
        now = now + Cycles::from(Duration::from_secs(1));
    }
    panic!("a silent target is not noticed");
}

/// Structures of the specification.
pub fn fuzz_structures(bytes: &[u8]) {
    let mut page = [0; 4096];
    let len = bytes.len().min(page.len());
    page[..len].copy_from_slice(&bytes[..len]);
    let controller = IdentifyController::parse(&page);
    assert_eq!(IdentifyController::parse(&controller.bytes()).mdts, controller.mdts);
    let _ = IdentifyNamespace::parse(&page);
    let _ = NamespaceIds::parse(bytes);
    let _ = DiscoveryEntry::parse(page.first_chunk().expect("a page is long enough"));
}

#[cfg(test)]
proptest::proptest! {
    #[test]
    fn admin_sessions_end(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
        fuzz_admin_session(&bytes);
    }

    #[test]
    fn any_structure_is_read(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..4096)) {
        fuzz_structures(&bytes);
    }
}
