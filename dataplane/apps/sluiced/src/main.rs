//! The daemon: wiring only. Options in, workers and control plane up, signals out.

mod options;

use control::{Control, Log, MetricsError, ServeError, Server, Settings, StoreError};
use engine::{Engine, EngineError};
use options::{Options, OptionsError};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Time that clients wait for the restoration; slower calls (a cloud disk that does not answer) go on in the background.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(3);

/// Time that background work gets to end after the last answer.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    State(#[from] StoreError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("{what}: {source}")]
    Os { what: &'static str, source: std::io::Error },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluiced: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), StartError> {
    let options = Options::read()?;
    let (socket, cpus, (mode, vhost_socket_mode)) = (options.socket()?, options.cpus()?, options.socket_modes()?);
    let log = Log::start(options.log_format.unwrap_or_default(), options.log_level.unwrap_or_default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| StartError::Os { what: "runtime", source })?;
    let served = runtime.block_on(async {
        let vhost_dir = options.vhost_dir.clone().or_else(|| socket.parent().map(Into::into)).unwrap_or_default();
        let engine = Engine::start(cpus.as_slice(), options.idle())?;
        let (state_dir, idle, eal) = (options.state_dir.clone(), options.idle(), options.eal()?);
        let packet_buffers = options.packet_buffers.unwrap_or(Control::DEFAULT_PACKET_BUFFERS);
        let offload_rules_per_port = options.offload_rules_per_port;
        let settings =
            Settings { state_dir, vhost_dir, vhost_socket_mode, packet_buffers, offload_rules_per_port, eal, idle };
        let control = Control::new(engine, log, settings)?;
        // After the state: a daemon that can be connected to has its directory for itself.
        let server = Server::bind(&socket, mode, options.rpc_allowed_uids.clone().unwrap_or_default())?;
        if let Some(address) = options.metrics {
            let address = control::serve_metrics(&control, address)?;
            tracing::info!(%address, "metrics at /metrics");
        }
        serve(control, server, &socket).await
    });
    // What still waits for a silent target does not keep the process.
    runtime.shutdown_timeout(SHUTDOWN_GRACE);
    served
}

async fn serve(control: std::sync::Arc<Control>, server: Server, socket: &std::path::Path) -> Result<(), StartError> {
    let signal = |kind| signal(kind).map_err(|source| StartError::Os { what: "signal", source });
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    control.restore()?;
    tokio::spawn(control.clone().keep_applying());
    tokio::spawn(control.clone().keep_balanced());
    tokio::select! {
        _ = tokio::time::timeout(RESTORE_TIMEOUT, control.restored()) => {}
        _ = term.recv() => return Ok(()),
        _ = int.recv() => return Ok(()),
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]); // Nothing to notify outside systemd.
    tracing::info!(socket = %socket.display(), workers = control.workers(), "ready");
    tokio::select! {
        _ = server.serve(control.clone()) => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    control.stop().await;
    tracing::info!("stopped");
    Ok(())
}
