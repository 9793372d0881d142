//! Work that may wait, off the control thread.

use api::RpcError;

/// Runs `work`, which may wait for files, sockets or threads, off the control thread.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RpcError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| RpcError::internal(format!("a handler failed: {error}")))
}
