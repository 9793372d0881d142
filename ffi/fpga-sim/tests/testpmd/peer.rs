//! `dpdk-testpmd` at the other end of a pipe.

use parking_lot::Mutex;
use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The driver, as `-d` names it.
pub(crate) const LIBRARY: &str = "librte_net_fpgasim.so";
/// How long an answer may take on a busy machine.
const PROMPT_TIMEOUT: Duration = Duration::from_secs(60);
/// No command, and the answer to it. It ends the answer to the command before, as a prompt would if testpmd wrote prompts in one
/// piece: what other threads say meanwhile stands between their letters.
const MARKER: (&str, &str) = ("end-of-answer", "Command not found\n");

/// Where cargo put the driver: beside the tests.
pub(crate) fn library_path() -> PathBuf {
    let dir = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    assert!(dir.join(LIBRARY).exists(), "no {LIBRARY} in {}", dir.display());
    dir
}

pub(crate) fn write_pcap(path: &Path, frames: &[Vec<u8>]) {
    let mut file = PcapWriter::new(File::create(path).unwrap()).unwrap();
    for frame in frames {
        file.write_packet(&PcapPacket::new(Duration::ZERO, frame.len() as u32, frame)).unwrap();
    }
}

pub(crate) fn frames_of(path: &Path) -> Vec<Vec<u8>> {
    let mut file = PcapReader::new(File::open(path).unwrap()).unwrap();
    std::iter::from_fn(|| Some(file.next_packet()?.unwrap().data.into_owned())).collect()
}

/// A testpmd with one device; killed when dropped.
pub(crate) struct Testpmd {
    child: Child,
    /// Its files' name in DPDK's directory for such.
    prefix: String,
    output: Arc<Mutex<String>>,
}

impl Testpmd {
    pub(crate) fn start(device: &str, args: &[&str]) -> Testpmd {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("fpgasim-{}-{}", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        // Unbuffered, and complaints in their place among the answers.
        let mut child = Command::new("sh")
            .args([
                "-c",
                "exec stdbuf -o0 dpdk-testpmd \"$@\" 2>&1",
                "testpmd",
                "--no-pci",
                "--no-huge",
                "--no-shconf",
                "-m256",
            ])
            .args(["--file-prefix", &prefix])
            .args(["--lcores=0@0,1@0", "-d", LIBRARY, "--vdev", &format!("net_fpgasim0,{device}")])
            .args(["--", "--no-mlockall", "--total-num-mbufs=2048", "--no-flush-rx", "-i"])
            .args(args)
            .env("LD_LIBRARY_PATH", library_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("stdbuf and dpdk-testpmd (package dpdk-dev) start");
        let output = Arc::new(Mutex::new(String::new()));
        let (mut stream, text) = (child.stdout.take().unwrap(), output.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                text.lock().push_str(&String::from_utf8_lossy(&bytes[..count]).replace('\r', ""));
            }
        });
        Testpmd { child, prefix, output }
    }

    /// All that it has said.
    pub(crate) fn output(&self) -> String {
        self.output.lock().clone()
    }

    /// Waits until it has said something.
    pub(crate) fn wait_for(&self, what: &str) {
        self.wait_from(0, what);
    }

    fn wait_from(&self, start: usize, what: &str) -> String {
        let deadline = Instant::now() + PROMPT_TIMEOUT;
        loop {
            let said = self.output()[start..].to_owned();
            if said.contains(what) {
                return said;
            }
            assert!(Instant::now() < deadline, "no {what:?} in {PROMPT_TIMEOUT:?}: {}", self.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Gives a command. Returns what it answers.
    pub(crate) fn command(&mut self, line: &str) -> String {
        let start = self.output().len();
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}\n{}", MARKER.0).unwrap();
        self.wait_from(start, MARKER.1)
    }

    /// Gives a command to DPDK's telemetry, by its own client. Returns the answer.
    pub(crate) fn telemetry(&self, command: &str) -> String {
        let mut client = Command::new("dpdk-telemetry.py")
            .args(["-f", &self.prefix])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("dpdk-telemetry.py (package dpdk-dev) starts");
        writeln!(client.stdin.take().unwrap(), "{command}").unwrap();
        let output = client.wait_with_output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A counter of a port, by its name in the extended statistics.
    pub(crate) fn counter(&mut self, port: u16, name: &str) -> u64 {
        let said = self.command(&format!("show port xstats {port}"));
        let value = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {said}"))
    }

    /// Waits until a counter has this value, and no more.
    pub(crate) fn wait_for_counter(&mut self, port: u16, name: &str, value: u64) {
        let deadline = Instant::now() + PROMPT_TIMEOUT;
        loop {
            let now = self.counter(port, name);
            assert!(now <= value, "{name}: {now}, expected {value}");
            if now == value {
                return;
            }
            assert!(Instant::now() < deadline, "{name}: {now}, expected {value}: {}", self.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it, with all files written.
    pub(crate) fn quit(mut self) {
        writeln!(self.child.stdin.as_mut().unwrap(), "quit").unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.output());
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Where DPDK puts its sockets: for root, and for others.
        let of_user = std::env::var("XDG_RUNTIME_DIR").unwrap_or("/tmp".to_owned());
        for dir in ["/var/run", &of_user] {
            let _ = std::fs::remove_dir_all(Path::new(dir).join("dpdk").join(&self.prefix));
        }
    }
}
