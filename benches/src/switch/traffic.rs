//! The packets and the flows that both sides see: UDP over IPv4, 64 bytes, a flow for each destination address, or for each
//! destination MAC address where bridges decide.

use anyhow::{Context, Result};
use pcap_file::pcap::{PcapPacket, PcapWriter};
use std::fmt::Write as _;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use testkit::Rng;

/// Packets of one round of the source, at least: each flow comes at least once.
const ROUND: usize = 16_384;
/// Packets of one round, at most: the source keeps each in a buffer, and OVS's pool has no more than 262,144. Of more flows than
/// that a round is a sample.
const LARGEST_ROUND: usize = 180_000;

/// How packets choose their flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Popularity {
    /// Each flow as often as any other, in random order.
    Uniform,
    /// Flow `n` is `n` times as rare as the first.
    Zipf,
}

impl Popularity {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Popularity::Uniform => "uniform",
            Popularity::Zipf => "Zipf",
        }
    }
}

/// One load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) flows: usize,
    /// Different masks that the flows are matched by.
    pub(crate) masks: usize,
    /// What is done before the output, as OVS's datapath writes it; each action with its comma.
    pub(crate) rewrite: &'static str,
}

impl Load {
    /// Writes the packets of one round as a pcap file.
    pub(crate) fn write_pcap(&self, directory: &Path, popularity: Popularity) -> Result<PathBuf> {
        let path = directory.join(format!("{}-{}.pcap", self.flows, popularity.name()));
        write_pcap(&path, self.order(popularity).into_iter().map(frame))?;
        Ok(path)
    }

    /// Which flow each packet of a round belongs to.
    fn order(&self, popularity: Popularity) -> Vec<usize> {
        let mut random = Rng::new(1);
        let packets = self.flows.clamp(ROUND, LARGEST_ROUND);
        let mut order: Vec<usize> = match popularity {
            Popularity::Uniform if self.flows > packets => {
                (0..packets).map(|_| random.below(self.flows as u64) as usize).collect()
            }
            Popularity::Uniform => (0..packets).map(|packet| packet % self.flows).collect(),
            Popularity::Zipf => {
                let mut sum = 0.0;
                let cumulated: Vec<f64> = (1..=self.flows)
                    .map(|rank| {
                        sum += 1.0 / rank as f64;
                        sum
                    })
                    .collect();
                let pick = |random: &mut Rng| random.below(1 << 53) as f64 / (1_u64 << 53) as f64 * sum;
                (0..packets).map(|_| cumulated.partition_point(|&bound| bound <= pick(&mut random))).collect()
            }
        };
        for last in (1..order.len()).rev() {
            order.swap(last, random.below(last as u64 + 1) as usize);
        }
        order
    }

    /// The flows in OVS's datapath text, from port `from` to port `to`: disjoint, spread evenly over the masks.
    pub(crate) fn flow_lines(&self, from: &str, to: &str) -> String {
        let mut text = String::new();
        for flow in 0..self.flows {
            let [a, b, c, d] = address(flow);
            // All packets come from 10.0.0.1: each prefix of it is one more mask.
            let source = match flow % self.masks {
                0 => String::new(),
                class @ 1..=32 => {
                    let mask = u32::MAX << (32 - class);
                    let (net, mask) = ((SOURCE & mask).to_be_bytes(), mask.to_be_bytes());
                    format!("src={}/{},", dotted(net), dotted(mask))
                }
                class => format!("src=10.0.0.1,ttl=64,tos=0/{:#x},", class - 32),
            };
            writeln!(
                text,
                "recirc_id(0),in_port({from}),eth(),eth_type(0x0800),ipv4({source}dst={a}.{b}.{c}.{d},frag=no) {}{to}",
                self.rewrite
            )
            .expect("a String takes all");
        }
        text
    }
}

/// Writes a round of packets, each to another station, as a pcap file.
pub(crate) fn write_stations(path: &Path, stations: usize) -> Result<()> {
    let to_station = |station: usize| {
        let mut frame = frame(station);
        frame[..6].copy_from_slice(&(0x0200_0100_0000 + station as u64).to_be_bytes()[2..]);
        frame
    };
    write_pcap(path, (0..stations).map(to_station))
}

fn write_pcap(path: &Path, frames: impl Iterator<Item = [u8; 60]>) -> Result<()> {
    let file = std::fs::File::create(path).with_context(|| path.display().to_string())?;
    let mut out = PcapWriter::new(BufWriter::new(file))?;
    for frame in frames {
        out.write_packet(&PcapPacket::new(Duration::ZERO, frame.len() as u32, &frame))?;
    }
    out.into_writer().flush()?;
    Ok(())
}

const SOURCE: u32 = 0x0a00_0001;

fn dotted([a, b, c, d]: [u8; 4]) -> String {
    format!("{a}.{b}.{c}.{d}")
}

fn address(flow: usize) -> [u8; 4] {
    (0x0b00_0000 + flow as u32).to_be_bytes()
}

/// A packet of `flow`.
pub(crate) fn frame(flow: usize) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..12].copy_from_slice(&[0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14..26].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame[26..30].copy_from_slice(&SOURCE.to_be_bytes());
    frame[30..34].copy_from_slice(&address(flow));
    let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    frame[24..26].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    frame[34..36].copy_from_slice(&1024_u16.to_be_bytes());
    frame[36..38].copy_from_slice(&9_u16.to_be_bytes());
    frame[38..40].copy_from_slice(&26_u16.to_be_bytes());
    frame
}
