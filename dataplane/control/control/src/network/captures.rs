//! Captures: a port's packets as a pcapng file (draft-ietf-opsawg-pcapng), written by a thread for each.
//!
//! Workers put copies into a bounded queue and never wait; the thread takes them out, and asks the switch why a packet that a
//! flow dropped was dropped.

use crate::rpc::OrRefuse;
use api::RpcError;
use clock::Cycles;
use flow::{Metadata, Miniflow, extract};
use l2::{Capture, Captured, DropReason, Observed, PortNo, Switch};
use parking_lot::{Mutex, MutexGuard};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::{DataLink, PcapError};
use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Packets that may wait to be written.
const QUEUE: usize = 4096;
/// Pause between two polls of an empty queue.
const PAUSE: Duration = Duration::from_millis(2);
/// For workers to let go of a capture.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// `epb_flags`, section 4.3.1: the direction.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
/// `if_tsresol`: nanoseconds.
const NANOSECONDS: u8 = 9;

/// What is to be captured, and how much of it.
pub(crate) struct Wanted {
    pub(crate) port: String,
    pub(crate) file: String,
    /// Bytes of each packet.
    pub(crate) snap_len: usize,
    /// It ends after so many packets,
    pub(crate) packets: u64,
    /// or when the file has so many bytes.
    pub(crate) bytes: u64,
}

/// How far a capture is.
pub(crate) struct Progress {
    pub(crate) wanted: Wanted,
    pub(crate) packets: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) error: Mutex<Option<String>>,
    pub(crate) running: AtomicBool,
    capture: Arc<Capture>,
    stop: AtomicBool,
    /// The port may be captured by others.
    released: AtomicBool,
}

impl Progress {
    /// Packets that could not be written in time.
    pub(crate) fn lost(&self) -> u64 {
        self.capture.lost()
    }
}

/// Captures that run, and the last one of each port that ended.
#[derive(Default)]
pub(crate) struct Captures(Mutex<Vec<(Arc<Progress>, JoinHandle<()>)>>);

impl Captures {
    /// Begins one.
    pub(crate) fn start(&self, switch: Arc<Switch>, wanted: Wanted) -> Result<(), RpcError> {
        if self.all().iter().any(|one| one.wanted.port == wanted.port && one.running.load(Ordering::Acquire)) {
            let error = RpcError::errno(libc::EBUSY, format!("port {} is being captured", wanted.port));
            return Err(error.hint("capture_stop ends that"));
        }
        let file = create(&wanted.file)?;
        let capture = Capture::new(QUEUE, wanted.snap_len)
            .map_err(|error| RpcError::errno(libc::ENOMEM, error.to_string()).hint("a smaller snap_len needs less"))?;
        let number = switch.start_capture(&wanted.port, &capture).or_refuse()?;
        let progress = Arc::new(Progress {
            wanted,
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            error: Mutex::default(),
            running: AtomicBool::new(true),
            capture,
            stop: AtomicBool::new(false),
            released: AtomicBool::new(false),
        });
        let (of_thread, of_port) = (progress.clone(), switch.clone());
        let run = move || run(&of_thread, &of_port, number, file);
        let thread = std::thread::Builder::new().name("capture".to_owned()).spawn(run).map_err(|error| {
            release(&progress, &switch);
            RpcError::from_io(&error, format!("thread: {error}"))
        })?;
        let mut captures = self.lock();
        captures.retain(|(one, _)| one.wanted.port != progress.wanted.port);
        captures.push((progress, thread));
        Ok(())
    }

    /// All captures.
    pub(crate) fn all(&self) -> Vec<Arc<Progress>> {
        self.lock().iter().map(|(progress, _)| progress.clone()).collect()
    }

    /// Ends one, waits for its last packet, and forgets it.
    pub(crate) fn stop(&self, port: &str) -> Option<Arc<Progress>> {
        let mut captures = self.lock();
        let at = captures.iter().position(|(one, _)| one.wanted.port == port)?;
        let (progress, thread) = captures.remove(at);
        drop(captures);
        progress.stop.store(true, Ordering::Release);
        let _ = thread.join(); // A panic is not ours to go on with: the capture is gone either way.
        Some(progress)
    }

    pub(crate) fn stop_all(&self) {
        for one in self.all() {
            self.stop(&one.wanted.port);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Arc<Progress>, JoinHandle<()>)>> {
        self.0.lock()
    }
}

/// A regular file that is empty. What could keep the daemon waiting, such as a pipe, is refused.
fn create(path: &str) -> Result<File, RpcError> {
    let refused = |error: std::io::Error| RpcError::from_io(&error, format!("file {path}: {error}"));
    let mut options = File::options();
    options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(refused)?;
    match file.metadata().map_err(refused)?.is_file() {
        true => Ok(file),
        false => Err(RpcError::invalid("file", path, "a regular file, or none yet")),
    }
}

/// Lets no more packets in, once, and waits until no worker has the capture: its memory is not to be freed there.
fn release(progress: &Progress, switch: &Switch) {
    if progress.released.swap(true, Ordering::AcqRel) {
        return;
    }
    // A deleted port has ended its part of the capture already.
    if let Err(error) = switch.stop_capture(&progress.wanted.port) {
        tracing::debug!(%error, "capture");
    }
    for _ in 0..RELEASE_TIMEOUT.as_millis() / PAUSE.as_millis() {
        if Arc::strong_count(&progress.capture) == 1 {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// The thread of a capture.
fn run(progress: &Progress, switch: &Switch, number: PortNo, file: File) {
    if let Err(error) = write(progress, switch, number, file) {
        tracing::warn!(port = progress.wanted.port, %error, "a capture ends");
        *progress.error.lock() = Some(format!("file {}: {error}", progress.wanted.file));
    }
    release(progress, switch);
    progress.running.store(false, Ordering::Release);
}

fn write(progress: &Progress, switch: &Switch, number: PortNo, file: File) -> Result<(), PcapError> {
    let (wanted, clock) = (&progress.wanted, WallClock::now());
    let mut writer = PcapNgWriter::new(BufWriter::new(file))?;
    let name = InterfaceDescriptionOption::IfName(Cow::Borrowed(&wanted.port));
    writer.write_pcapng_block(InterfaceDescriptionBlock {
        linktype: DataLink::ETHERNET,
        snaplen: wanted.snap_len as u32,
        options: vec![name, InterfaceDescriptionOption::IfTsResol(NANOSECONDS)],
    })?;
    let (mut packets, mut bytes) = (0, 0);
    while packets < wanted.packets && bytes < wanted.bytes {
        let stop = progress.stop.load(Ordering::Acquire);
        if stop {
            // No more come in: the queue has an end.
            release(progress, switch);
        }
        let Some(captured) = progress.capture.take() else {
            writer.get_mut().flush().map_err(PcapError::IoError)?;
            if stop {
                break;
            }
            std::thread::sleep(PAUSE);
            continue;
        };
        bytes += writer.write_pcapng_block(block(&captured, switch, number, &clock))? as u64;
        packets += 1;
        progress.bytes.store(bytes, Ordering::Relaxed);
        progress.packets.store(packets, Ordering::Relaxed);
    }
    writer.get_mut().flush().map_err(PcapError::IoError)
}

fn block<'a>(captured: &Captured, switch: &Switch, number: PortNo, clock: &WallClock) -> EnhancedPacketBlock<'a> {
    let mut data = vec![0; captured.packet.len()];
    captured.packet.copy_to(&mut data);
    let direction = if captured.observed == Observed::Sent { OUTBOUND } else { INBOUND };
    let mut options = vec![EnhancedPacketOption::Flags(direction)];
    if let Observed::Dropped(loss) = captured.observed {
        let comment = format!("dropped: {}", reason(loss, captured, switch, number));
        options.push(EnhancedPacketOption::Comment(Cow::Owned(comment)));
    }
    let timestamp = clock.time(captured.time);
    let original_len = captured.len as u32;
    EnhancedPacketBlock { interface_id: 0, timestamp, original_len, data: Cow::Owned(data), options }
}

/// Why a packet was dropped, in a word. A flow's reason is the bridge's.
fn reason(drop: DropReason, captured: &Captured, switch: &Switch, number: PortNo) -> &'static str {
    if drop != DropReason::FlowDrop {
        return drop.as_str();
    }
    let mut key = Miniflow::default();
    let metadata = Metadata { in_port: number, packet_len: captured.len as u32, ..Metadata::default() };
    extract(captured.packet.data(), &metadata, &mut key);
    switch.trace(key.key()).drop.unwrap_or(drop).as_str()
}

/// Cycles as time of day.
struct WallClock {
    time: Duration,
    cycles: Cycles,
}

impl WallClock {
    fn now() -> WallClock {
        WallClock { time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), cycles: Cycles::now() }
    }

    fn time(&self, at: Cycles) -> Duration {
        let (after, before) = (at.since(self.cycles).to_duration(), self.cycles.since(at).to_duration());
        (self.time + after).saturating_sub(before)
    }
}
