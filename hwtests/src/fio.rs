//! fio in a guest: shell text that runs jobs, and what came back over the serial line.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

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
        let Self { devices, depths, mib_per_job, seconds } = self;
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
