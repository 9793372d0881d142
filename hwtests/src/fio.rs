//! fio in a guest: shell text that runs jobs, and what came back over the serial line.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::fmt::Write as _;

/// Random reads and writes whose every block carries a checksum that is checked after it was written.
pub struct Verify<'a> {
    /// The block devices in the guest.
    pub devices: &'a [&'a str],
    /// Queue depths, one job each on each device; each job has its own part of the device.
    pub depths: &'a [u32],
    /// MiB that each job writes and reads, from the start of its part.
    pub mib_per_job: u32,
    /// The jobs go over their part again and again for this long.
    pub seconds: u32,
}

impl Verify<'_> {
    /// Shell commands: run the jobs and leave with fio's exit status. The result goes to the standard output.
    pub fn script(&self) -> String {
        let Verify { devices, depths, mib_per_job, seconds } = self;
        let mut jobs = format!(
            "[global]\ndirect=1\nioengine=libaio\nrw=randrw\nrwmixread=40\nbs=4k\nsize={mib_per_job}m\n\
             verify=crc32c\nverify_fatal=1\nverify_backlog=64\ntime_based\nruntime={seconds}\n"
        );
        for device in *devices {
            for (part, depth) in depths.iter().enumerate() {
                let offset = part as u32 * mib_per_job;
                write!(jobs, "[{device} depth {depth}]\nfilename={device}\niodepth={depth}\noffset={offset}m\n")
                    .expect("a String takes all");
            }
        }
        run(&jobs)
    }
}

/// A job file for `/dev/DEVICE`: random writes of one block to 256 KiB at any block, each block with a checksum of its own
/// that is checked after it was written, and trims. The disk has four parts of `mib_per_part` MiB. In each of `passes` (at
/// most 4) three parts are written, each by another kind of job, while the fourth is trimmed; the parts take turns.
///
/// No block is written twice in a pass, so sizes may be mixed and many writes be under way. Each pass has another kind of
/// checksum, which fio tells apart: what is left of an earlier pass, or comes late from it, is an error.
///
/// [`mixed_environment`] comes before it.
pub fn mixed(device: &str, mib_per_part: u32, passes: usize) -> String {
    let mut jobs = format!(
        "[global]\nfilename=/dev/{device}\ndirect=1\nioengine=libaio\nthread=1\nverify_interval=${{BLOCK}}\n\
         verify_fatal=1\nverify_state_save=0\nsize={mib_per_part}m\n"
    );
    let kinds = [
        ("one", "rw=randwrite\nbsrange=${BLOCK}-256k\niodepth=1"),
        (
            "mixed",
            "rw=randwrite\nbssplit=${BLOCK}/40:8k/20:12k/10:${NINE_BLOCKS}/10:64k/10:256k/10\niodepth=16\nfsync=32",
        ),
        ("deep", "rw=randwrite\nbsrange=${BLOCK}-64k\niodepth=32\nverify_backlog=32"),
        ("trim", "rw=${TRIM}\nbsrange=${BLOCK}-64k"),
    ];
    for (pass, check) in ["crc32c", "crc64", "xxhash", "md5"].iter().enumerate().take(passes) {
        for (place, (kind, options)) in kinds.iter().enumerate() {
            let offset = (pass + place) as u32 % 4 * mib_per_part;
            let together = if place == 0 { "stonewall\n" } else { "" };
            let verify = if *kind == "trim" { String::new() } else { format!("verify={check}\n") };
            write!(jobs, "[{pass} {kind}]\n{together}offset={offset}m\n{options}\n{verify}")
                .expect("a String takes all");
        }
    }
    jobs
}

/// Shell commands that set what [`mixed`] needs to know of a disk: its block size, and whether it can be trimmed.
pub fn mixed_environment(device: &str) -> String {
    let queue = format!("/sys/block/{device}/queue");
    format!(
        "export BLOCK=$(cat {queue}/logical_block_size)\nexport NINE_BLOCKS=$((9 * BLOCK)) TRIM=randread\n\
         [ \"$(cat {queue}/discard_max_bytes)\" = 0 ] || TRIM=randtrim\n"
    )
}

/// Shell commands that run the job file `jobs` with its result as JSON on the standard output.
/// They succeed when fio does. The start and the end are marked by lines `fio: started` and `fio: ended`.
pub fn run(jobs: &str) -> String {
    format!(
        "cat >/tmp/jobs.$$ <<'END'\n{jobs}END\necho 'fio: started'\nfio --output-format=json /tmp/jobs.$$ || {{ \
         echo \"fio: failed $?\"; exit 1; }}\necho 'fio: ended'\n"
    )
}

/// fio's result, as much of it as the tests look at.
#[derive(Debug, Deserialize)]
pub struct Report {
    /// One entry a job.
    pub jobs: Vec<Job>,
}

/// One job's result.
#[derive(Debug, Deserialize)]
pub struct Job {
    /// The job's name.
    #[serde(rename = "jobname")]
    pub name: String,
    /// An errno, 0 when all went well.
    pub error: i32,
    /// Reads, those that verify included.
    pub read: Direction,
    /// Writes.
    pub write: Direction,
}

/// One direction of a job.
#[derive(Debug, Deserialize)]
pub struct Direction {
    /// Requests completed.
    pub total_ios: u64,
    /// Requests a second.
    pub iops: f64,
    /// Completion latency.
    pub clat_ns: Latency,
}

/// Completion latency in nanoseconds.
#[derive(Debug, Deserialize)]
pub struct Latency {
    /// The longest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
}

impl Report {
    /// The reports in a guest's output, one for each run that ended.
    pub fn all_in(output: &str) -> Result<Vec<Report>> {
        let runs = output.split("fio: started\n").skip(1);
        runs.map(|run| {
            let Some((text, _)) = run.split_once("fio: ended\n") else {
                bail!("fio has not ended:\n{run}");
            };
            // Lines of the kernel may stand before the report.
            let start = text.find("{\n").context("fio printed no report")?;
            serde_json::from_str(&text[start..]).with_context(|| format!("fio's report:\n{text}"))
        })
        .collect()
    }

    /// Fails unless each job ended well and has both written and read.
    pub fn check(&self) -> Result<()> {
        for job in &self.jobs {
            if job.error != 0 || job.write.total_ios == 0 || job.read.total_ios == 0 {
                bail!(
                    "{}: error {}, {} reads, {} writes",
                    job.name,
                    job.error,
                    job.read.total_ios,
                    job.write.total_ios
                );
            }
        }
        Ok(())
    }

    /// Requests completed by all jobs.
    pub fn total_ios(&self) -> u64 {
        self.jobs.iter().map(|job| job.read.total_ios + job.write.total_ios).sum()
    }

    /// The longest completion latency of all jobs, in milliseconds.
    pub fn longest_ms(&self) -> f64 {
        let each = self.jobs.iter().flat_map(|job| [job.read.clat_ns.max, job.write.clat_ns.max]);
        each.fold(0.0, f64::max) / 1e6
    }
}
