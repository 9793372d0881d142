//! A guest that takes its commands one by one.

use crate::Qemu;
use crate::qemu::QemuConfig;
use anyhow::{Result, ensure};
use std::time::Duration;

/// What the guest runs: it takes commands from the serial line, runs each and tells its exit status.
const SCRIPT: &str = "
exec </dev/ttyS0
busybox stty -echo
echo 'shell: ready'
count=0
while read -r line && [ \"$line\" != exit ]; do
    status=0
    sh -c \"$line\" </dev/null || status=$?
    count=$((count + 1))
    echo \"shell: $count ended $status\"
done
";

/// A guest that runs commands when it is told to.
pub struct Shell {
    guest: Qemu,
    count: u32,
}

impl Shell {
    /// Starts a guest; the configuration's script is run first.
    pub fn start(config: QemuConfig) -> Result<Shell> {
        let script = config.script.clone() + SCRIPT;
        Ok(Shell { guest: Qemu::start(&QemuConfig { script, ..config })?, count: 0 })
    }

    /// Goes on with a guest that has moved here, where `self` waited for it.
    pub fn take_over(&mut self, from: Shell) {
        self.count = from.count;
    }

    /// Waits until the guest takes commands.
    pub fn wait_ready(&self) -> Result<()> {
        self.guest.console().wait_for("shell: ready", Duration::from_secs(90)).map(drop)
    }

    /// The guest itself.
    pub fn guest(&self) -> &Qemu {
        &self.guest
    }

    /// Starts a command; one at a time, unless the guest puts it into the background.
    pub fn send(&mut self, command: &str) -> Result<()> {
        self.count += 1;
        self.guest.console_mut().write_line(command)
    }

    /// Waits until the command sent last has ended well. Returns what it wrote.
    pub fn wait(&self, timeout: Duration) -> Result<String> {
        let mark = format!("shell: {} ended", self.count);
        let line = self.guest.console().wait_for(&mark, timeout)?;
        let output = self.guest.console().output();
        let before = output.split(&mark).next().unwrap_or_default();
        let before_that = format!("shell: {} ended 0", self.count - 1);
        let own = before.split(&before_that).last().unwrap_or_default();
        ensure!(line.ends_with("ended 0"), "a command in the guest failed: {line}\n{own}");
        Ok(own.to_owned())
    }

    /// Runs a command; it must end well. Returns what it wrote.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.send(command)?;
        self.wait(Duration::from_secs(60))
    }
}
