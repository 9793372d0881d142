//! SPDK itself, once in a process.

use crate::thread::Thread;
use parking_lot::Mutex;
use spdk_sys as sys;
use std::cell::Cell;
use std::ffi::{CString, c_int, c_void};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Time between two polls of an idle library, for keep-alives, resets and devices that come and go.
const IDLE_PAUSE: Duration = Duration::from_millis(1);

/// The owner of DPDK's environment, which is initialised once in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EalOwner {
    /// SPDK initialises DPDK as it starts.
    Spdk,
    /// The process has initialised DPDK, and ends it after SPDK. SPDK must be built over the same DPDK (`--with-dpdk`).
    Process,
}

/// The configuration of the library.
#[derive(Clone, Debug)]
pub struct SpdkConfig {
    /// Configuration of the block devices, as SPDK's `save_config` writes it.
    pub json: String,
    /// Processor of the library's thread.
    pub cpu: usize,
    /// The owner of DPDK's environment.
    pub eal: EalOwner,
}

/// The reason why the library did not start.
#[derive(Debug, thiserror::Error)]
#[error("SPDK: {what}: {source}")]
pub struct SpdkError {
    /// The step that failed.
    pub what: &'static str,
    /// SPDK's errno.
    pub source: io::Error,
}

impl SpdkError {
    fn check(what: &'static str, returned: c_int) -> Result<(), SpdkError> {
        if returned == 0 { Ok(()) } else { Err(SpdkError { what, source: errno(returned) }) }
    }
}

/// The error of a call that returned a negative errno.
pub(crate) fn errno(returned: c_int) -> io::Error {
    io::Error::from_raw_os_error(returned.saturating_neg())
}

type Job = Box<dyn FnOnce() + Send>;

/// The running library, on a thread of its own.
#[derive(Debug)]
pub struct Spdk {
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Spdk {
    /// Starts the library, and waits until its block devices exist. May be called once in a process.
    pub fn start(config: SpdkConfig) -> Result<Arc<Spdk>, SpdkError> {
        let (jobs, waiting) = channel();
        let (started, result) = sync_channel(1);
        let thread = std::thread::Builder::new().name("spdk".into());
        let thread = thread
            .spawn(move || run(&config, &started, &waiting))
            .map_err(|source| SpdkError { what: "thread", source })?;
        let spdk = Spdk { jobs: Mutex::new(Some(jobs)), thread: Some(thread) };
        let died = |_| SpdkError { what: "start", source: io::ErrorKind::BrokenPipe.into() };
        result.recv().map_err(died)??;
        Ok(Arc::new(spdk))
    }

    /// Runs a function on the library's thread, and waits for it. Fails where that thread has ended.
    pub(crate) fn call<R: Send + 'static>(&self, what: impl FnOnce() -> R + Send + 'static) -> io::Result<R> {
        let ended = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        let (reply, result) = sync_channel(1);
        let job: Job = Box::new(move || {
            let _ = reply.send(what()); // the caller waits for it
        });
        if let Some(jobs) = &*self.jobs.lock() {
            let _ = jobs.send(job); // a thread that ended drops the job, and with it `reply`
        }
        result.recv().map_err(ended)
    }
}

impl Drop for Spdk {
    fn drop(&mut self) {
        *self.jobs.get_mut() = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic of the thread was reported by the panic hook
        }
    }
}

/// The main function of the library's thread: starts the library, runs jobs, ends the library.
fn run(config: &SpdkConfig, started: &SyncSender<Result<(), SpdkError>>, jobs: &Receiver<Job>) {
    let environment = match Environment::start(config) {
        Ok(environment) => environment,
        Err(error) => {
            let _ = started.send(Err(error)); // `Spdk::start` waits for it
            return;
        }
    };
    let application = match Application::start(&config.json) {
        Ok(application) => application,
        Err(error) => {
            let _ = started.send(Err(error)); // `Spdk::start` waits for it
            return;
        }
    };
    let _ = started.send(Ok(())); // `Spdk::start` waits for it
    loop {
        let pause = if application.thread.poll() { Duration::ZERO } else { IDLE_PAUSE };
        match jobs.recv_timeout(pause) {
            Ok(job) => application.thread.enter(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    drop(application);
    drop(environment);
}

/// Memory for devices, and SPDK's threads.
struct Environment(EalOwner);

impl Environment {
    fn start(config: &SpdkConfig) -> Result<Environment, SpdkError> {
        let cpus = CString::new(format!("[{}]", config.cpu)).expect("digits");
        let mut options = sys::spdk_env_opts { opts_size: size_of::<sys::spdk_env_opts>(), ..Default::default() };
        // SAFETY: `opts_size` says how much of `options` may be written.
        unsafe { sys::spdk_env_opts_init(&raw mut options) };
        options.name = c"sluice".as_ptr();
        options.core_mask = cpus.as_ptr();
        let returned = match config.eal {
            // SAFETY: the options and the strings in them outlive the call; `Spdk::start` is called once in a process.
            EalOwner::Spdk => unsafe { sys::spdk_env_init(&raw const options) },
            // SAFETY: `EalOwner::Process` says that the process has initialised DPDK.
            EalOwner::Process => unsafe { sys::spdk_env_dpdk_post_init(false) },
        };
        SpdkError::check("environment", returned)?;
        let environment = Environment(config.eal);
        // SAFETY: called once, before any SPDK thread is made. Without a callback the makers of threads poll them.
        let returned = unsafe { sys::spdk_thread_lib_init(None, 0) };
        SpdkError::check("threads", returned)?;
        Ok(environment)
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        // SAFETY: no SPDK thread is left: `run` has dropped the application, and a channel keeps the library.
        unsafe { sys::spdk_thread_lib_fini() };
        let end = match self.0 {
            EalOwner::Spdk => sys::spdk_env_fini,
            EalOwner::Process => sys::spdk_env_dpdk_post_fini,
        };
        // SAFETY: the counterpart of the call in `start`; no memory of SPDK is left, as a channel keeps the library.
        unsafe { end() };
    }
}

/// SPDK's subsystems on the first of its threads.
struct Application {
    thread: Thread,
}

impl Application {
    fn start(json: &str) -> Result<Application, SpdkError> {
        let no_memory = || SpdkError { what: "thread", source: errno(-libc::ENOMEM) };
        let thread = Thread::create(c"sluice").ok_or_else(no_memory)?;
        // SAFETY: within an SPDK thread; `wait` passes a place that lives until `ended` was called.
        let returned = wait(&thread, |result| unsafe { sys::spdk_subsystem_init(Some(ended), result) });
        SpdkError::check("subsystems", returned)?;
        let application = Application { thread };
        if !json.trim().is_empty() {
            let (text, size) = (json.as_ptr().cast_mut().cast(), json.len() as isize);
            // SAFETY: within an SPDK thread; the text is copied, and `wait` passes a place that lives until `ended` was called.
            let load = |result| unsafe { sys::spdk_subsystem_load_config(text, size, Some(ended), result, true) };
            SpdkError::check("configuration", wait(&application.thread, load))?;
        }
        Ok(application)
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        // SAFETY: within an SPDK thread; `wait` passes a place that lives until `finished` was called.
        wait(&self.thread, |result| unsafe { sys::spdk_subsystem_fini(Some(finished), result) });
    }
}

/// Calls `start` within `thread`, with the argument of its callback, and polls until the callback was called.
fn wait(thread: &Thread, start: impl FnOnce(*mut c_void)) -> c_int {
    let result: Cell<Option<c_int>> = Cell::new(None);
    thread.enter(|| start(result.as_ptr().cast()));
    loop {
        if let Some(result) = result.get() {
            return result;
        }
        if !thread.poll() {
            std::thread::sleep(IDLE_PAUSE);
        }
    }
}

extern "C" fn ended(result: c_int, place: *mut c_void) {
    // SAFETY: `wait` passed the place, and reads it only between the polls that call this.
    unsafe { place.cast::<Option<c_int>>().write(Some(result)) };
}

extern "C" fn finished(place: *mut c_void) {
    ended(0, place);
}
