//! A spawned task that ends with its owner.

use std::future::Future;

use tokio::task::{JoinHandle, spawn_local};

/// Aborts its task when dropped. No state may live in the task alone: it can end at any await.
#[derive(Debug)]
pub(crate) struct OwnedTask(JoinHandle<()>);

impl OwnedTask {
    /// Spawns on the current thread.
    pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) -> Self {
        Self(spawn_local(future))
    }
}

impl Drop for OwnedTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}
