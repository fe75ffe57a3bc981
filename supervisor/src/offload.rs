//! Work that may take a while, done off the loop: in a thread that ends with it.

use std::{io, thread};

use tokio::sync::oneshot;

/// Does `work`, while the loop goes on. Dropped meanwhile, it is finished for nobody.
///
/// # Errors
/// When there can be no thread, or it panics.
pub async fn off_loop<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    // Not among Tokio's blocking threads: these linger, and at the limit of a control group they panic.
    thread::Builder::new().spawn(move || drop(done.send(work())))?; // nobody may wait any more
    result.await.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::pin::pin;
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_takes_long_does_not_stop_the_loop() {
        let (go_on, gate) = mpsc::channel();
        let mut work = pin!(off_loop(move || gate.recv()));
        assert!(work.as_mut().now_or_never().is_none());
        go_on.send(7).unwrap();
        assert_eq!(work.await.unwrap(), Ok(7));
    }
}
