//! Child processes whose output is watched, and which end with the test.

use anyhow::{Context, Result, bail, ensure};
use parking_lot::{Condvar, Mutex};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A child process whose output (both streams, in the order of arrival) is kept and can be waited on.
/// The process is killed when this value is dropped, and by the kernel when the thread that started it ends.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
}

#[derive(Default)]
struct Output {
    text: Mutex<Text>,
    grown: Condvar,
}

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    open_streams: usize,
}

impl Process {
    /// Starts `command`; `name` stands before its lines in messages.
    pub fn spawn(name: &str, command: &Command) -> Result<Process> {
        let mut with_deathsig = Command::new("setpriv");
        with_deathsig.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => with_deathsig.env(key, value),
                None => with_deathsig.env_remove(key),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            with_deathsig.current_dir(dir);
        }
        let mut child = with_deathsig
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {name}: {command:?}"))?;
        let output = Arc::new(Output::default());
        output.text.lock().open_streams = 2;
        watch(name, child.stdout.take().expect("stdout is piped"), output.clone());
        watch(name, child.stderr.take().expect("stderr is piped"), output.clone());
        Ok(Process { name: name.to_owned(), child, output })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to the process's standard input.
    pub fn write_line(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().with_context(|| format!("{}: its input is closed", self.name))?;
        writeln!(input, "{line}").with_context(|| format!("write to {}", self.name))
    }

    /// Everything written so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.text.lock().bytes).into_owned()
    }

    /// Whether `pattern` has been written.
    pub fn has_written(&self, pattern: &str) -> bool {
        self.output().contains(pattern)
    }

    /// Waits until a whole line with `pattern` has been written and returns that line.
    /// Fails at the timeout, and at once when the process has ended without it.
    pub fn wait_for(&self, pattern: &str, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        let mut text = self.output.text.lock();
        loop {
            let seen = String::from_utf8_lossy(&text.bytes);
            if let Some(line) = seen.split_inclusive('\n').find(|l| l.ends_with('\n') && l.contains(pattern)) {
                return Ok(line.trim_end().to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || text.open_streams == 0 {
                let why = if left.is_zero() { format!("in {timeout:?}") } else { "before its end".to_owned() };
                bail!("{} did not write '{pattern}' {why}; its last lines:\n{}", self.name, tail(&seen));
            }
            self.output.grown.wait_for(&mut text, left);
        }
    }

    /// Waits for the process's end.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("{} still runs after {timeout:?}; its last lines:\n{}", self.name, tail(&self.output()))
    }

    /// Whether the process has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL to the process and its children (user-mode Linux has some that outlive it), and wait until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        let group = format!("-{}", self.child.id());
        let _children_are_gone_too =
            Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _already_gone = self.kill();
    }
}

/// Runs a command to its end and returns what it writes.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

fn watch(name: &str, stream: impl Read + Send + 'static, output: Arc<Output>) {
    let verbose = std::env::var_os("HWTESTS_VERBOSE").is_some();
    let name = name.to_owned();
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            // A read error ends the stream too: a closed terminal answers EIO.
            let len = stream.read_until(b'\n', &mut line).unwrap_or(0);
            // A serial line ends its lines with CR LF.
            line.retain(|&byte| byte != b'\r');
            if verbose && len > 0 {
                eprintln!("{name}| {}", String::from_utf8_lossy(&line).trim_end());
            }
            let mut text = output.text.lock();
            text.bytes.extend(line);
            text.open_streams -= usize::from(len == 0);
            output.grown.notify_all();
            if len == 0 {
                return;
            }
        }
    });
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        Process::spawn("sh", Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn waits_for_a_whole_line() {
        let process = shell("printf 'rea'; sleep 0.1; echo 'dy now'; sleep 5");
        assert_eq!(process.wait_for("ready", Duration::from_secs(3)).unwrap(), "ready now");
    }

    #[test]
    fn a_wait_fails_at_its_timeout_and_at_the_end_of_the_process() {
        let error = shell("echo other; sleep 5").wait_for("ready", Duration::from_millis(200)).unwrap_err().to_string();
        assert!(error.contains("in 200ms") && error.contains("other"), "{error}");
        let started = Instant::now();
        let error = shell("echo oops >&2").wait_for("ready", Duration::from_secs(9)).unwrap_err().to_string();
        assert!(error.contains("before its end") && error.contains("oops"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let process = shell("echo up; exec sleep 60");
        process.wait_for("up", Duration::from_secs(3)).unwrap();
        let stat = format!("/proc/{}/stat", process.id());
        assert!(std::fs::exists(&stat).unwrap());
        drop(process);
        assert!(!std::fs::exists(&stat).unwrap());
    }
}
