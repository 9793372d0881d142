//! SPDK itself, once in a process.

use crate::thread::Thread;
use spdk_sys as sys;
use std::cell::Cell;
use std::ffi::{CString, c_int, c_void};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// An idle library is polled this often: for keep-alives, resets and devices that come and go.
const PAUSE: Duration = Duration::from_millis(1);

/// Who initialises DPDK, which a process has once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EalOwner {
    /// SPDK does, as it starts.
    Spdk,
    /// The process has done so, and ends it after SPDK. SPDK must be built over the same DPDK (`--with-dpdk`).
    Process,
}

/// How the library is started.
#[derive(Clone, Debug)]
pub struct SpdkConfig {
    /// What SPDK's `save_config` writes: the block devices to make.
    pub json: String,
    /// The processor of its thread.
    pub cpu: usize,
    /// Who initialises DPDK.
    pub eal: EalOwner,
}

/// Why the library did not start.
#[derive(Debug, thiserror::Error)]
#[error("SPDK: {what}: {source}")]
pub struct SpdkError {
    /// What failed.
    pub what: &'static str,
    /// SPDK's errno.
    pub source: io::Error,
}

impl SpdkError {
    fn check(what: &'static str, returned: c_int) -> Result<(), SpdkError> {
        if returned == 0 { Ok(()) } else { Err(SpdkError { what, source: errno(returned) }) }
    }
}

/// The error in what a call returned: a negative errno.
pub(crate) fn errno(returned: c_int) -> io::Error {
    io::Error::from_raw_os_error(returned.saturating_neg())
}

type Job = Box<dyn FnOnce() + Send>;

/// The library, up and running on a thread of its own.
#[derive(Debug)]
pub struct Spdk {
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Spdk {
    /// Starts it, and waits until its block devices are there. May be called once in a process.
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

    /// Does something on the library's thread, and waits for it. An error where that thread has ended.
    pub(crate) fn call<R: Send + 'static>(&self, what: impl FnOnce() -> R + Send + 'static) -> io::Result<R> {
        let ended = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        let (reply, result) = sync_channel(1);
        let job: Job = Box::new(move || drop(reply.send(what())));
        if let Some(jobs) = &*self.jobs.lock().unwrap_or_else(PoisonError::into_inner) {
            drop(jobs.send(job)); // a thread that ended drops the job, and with it `reply`
        }
        result.recv().map_err(ended)
    }
}

impl Drop for Spdk {
    fn drop(&mut self) {
        *self.jobs.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        self.thread.take().map(JoinHandle::join);
    }
}

/// The library's thread: starts it, does what it is given, ends it.
fn run(config: &SpdkConfig, started: &SyncSender<Result<(), SpdkError>>, jobs: &Receiver<Job>) {
    let environment = match Environment::start(config) {
        Ok(environment) => environment,
        Err(error) => return drop(started.send(Err(error))),
    };
    let application = match Application::start(&config.json) {
        Ok(application) => application,
        Err(error) => return drop(started.send(Err(error))),
    };
    drop(started.send(Ok(())));
    loop {
        let pause = if application.thread.poll() { Duration::ZERO } else { PAUSE };
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
        // SAFETY: the options and the strings in them live across the calls.
        let returned = unsafe {
            sys::spdk_env_opts_init(&raw mut options);
            (options.name, options.core_mask) = (c"sluice".as_ptr(), cpus.as_ptr());
            match config.eal {
                EalOwner::Spdk => sys::spdk_env_init(&raw const options),
                EalOwner::Process => sys::spdk_env_dpdk_post_init(false),
            }
        };
        SpdkError::check("environment", returned)?;
        let environment = Environment(config.eal);
        // SAFETY: once in a process, before any thread of SPDK's; each is polled by whoever makes it, so nobody is to be told.
        let returned = unsafe { sys::spdk_thread_lib_init(None, 0) };
        SpdkError::check("threads", returned)?;
        Ok(environment)
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        // SAFETY: the last of SPDK's threads and of its memory is gone: who has one has the library.
        unsafe {
            sys::spdk_thread_lib_fini();
            match self.0 {
                EalOwner::Spdk => sys::spdk_env_fini(),
                EalOwner::Process => sys::spdk_env_dpdk_post_fini(),
            }
        }
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
        // SAFETY: the callback gets the place that lives until it was called.
        let returned = wait(&thread, |result| unsafe { sys::spdk_subsystem_init(Some(ended), result) });
        SpdkError::check("subsystems", returned)?;
        let application = Application { thread };
        if !json.trim().is_empty() {
            let (text, size) = (json.as_ptr().cast_mut().cast(), json.len() as isize);
            // SAFETY: the text is copied; the callback as above.
            let load = |result| unsafe { sys::spdk_subsystem_load_config(text, size, Some(ended), result, true) };
            SpdkError::check("configuration", wait(&application.thread, load))?;
        }
        Ok(application)
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        // SAFETY: the callback gets the place that lives until it was called.
        wait(&self.thread, |result| unsafe { sys::spdk_subsystem_fini(Some(finished), result) });
    }
}

/// Starts something as `thread`, with the place that its callback is to be given, and polls until that was called.
fn wait(thread: &Thread, start: impl FnOnce(*mut c_void)) -> c_int {
    let result: Cell<Option<c_int>> = Cell::new(None);
    thread.enter(|| start(result.as_ptr().cast()));
    loop {
        if let Some(result) = result.get() {
            return result;
        }
        if !thread.poll() {
            std::thread::sleep(PAUSE);
        }
    }
}

extern "C" fn ended(result: c_int, place: *mut c_void) {
    // SAFETY: the place that `wait` gave; it reads it only between the polls that call this.
    unsafe { place.cast::<Option<c_int>>().write(Some(result)) };
}

extern "C" fn finished(place: *mut c_void) {
    ended(0, place);
}
