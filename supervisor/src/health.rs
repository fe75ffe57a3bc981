//! Which shims do not answer. All are asked in the background, each with a deadline of its own, so that whoever looks at
//! a list waits for none of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::sync::Notify;

use crate::api::Api;
use crate::client::{QUICK, ShimClient, now_unix_ns};
use crate::output::Whom;
use crate::registry::Refusal;

/// How long after the last round the next begins, and how long for each shim at least: a shim that is asked, and the
/// asking, take about a millisecond of a processor.
#[derive(Clone, Copy)]
struct Pause {
    least: Duration,
    each: Duration,
}

/// Unless somebody looks.
const ROUNDS: Pause = Pause { least: Duration::from_secs(10), each: Duration::from_millis(20) };

/// However often somebody looks, shims are left alone for this long; and no longer while one of them does not answer.
const REST: Pause = Pause { least: Duration::from_secs(1), each: Duration::from_millis(2) };

impl Pause {
    fn after(self, shims: usize) -> Duration {
        self.least.max(self.each.saturating_mul(u32::try_from(shims).unwrap_or(u32::MAX)))
    }
}

/// So many are asked at the same time.
const AT_A_TIME: usize = 64;

/// What is known of the shims. Cheap to clone; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Since when, in nanoseconds since the Unix epoch, a shim with this address is known not to answer.
    silent: Arc<Mutex<BTreeMap<String, i64>>>,
    looked_at: Arc<Notify>,
}

impl Health {
    /// Since when a shim has been known not to answer, in nanoseconds since the Unix epoch; `None` if it answered when it
    /// was last asked, or was never asked.
    pub fn silent_since(&self, address: &str) -> Option<i64> {
        self.table().get(address).copied()
    }

    /// Takes note of how a shim took a question.
    pub fn note(&self, address: &str, silent: bool) {
        let mut table = self.table();
        if !silent {
            if table.remove(address).is_some() {
                tracing::info!(address, "the shim answers again");
            }
        } else if !table.contains_key(address) {
            tracing::warn!(address, "the shim does not answer");
            table.insert(address.to_owned(), now_unix_ns());
        }
    }

    /// Somebody looks at a list: the next round may come early.
    pub fn looked_at(&self) {
        self.looked_at.notify_one();
    }

    /// Forgets shims that are gone.
    fn retain(&self, known: &[Whom]) {
        self.table().retain(|address, _| known.iter().any(|shim| shim.address == *address));
    }

    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, i64>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks all shims, over and over. Never ends.
pub async fn watch(api: Api) {
    let health = api.health().clone();
    let mut count = 0;
    loop {
        // At first too: a restore that has just begun asks them all.
        if health.table().is_empty() {
            let _ = tokio::time::timeout(ROUNDS.after(count), health.looked_at.notified()).await; // either will do
        }
        if let Ok(shims) = shims(&api).await {
            count = shims.len();
            health.retain(&shims);
            let ask = async |shim: &Whom| health.note(&shim.address, is_silent(&shim.address).await);
            stream::iter(&shims).for_each_concurrent(AT_A_TIME, ask).await;
        }
        tokio::time::sleep(REST.after(count)).await;
    }
}

/// Everybody's.
async fn shims(api: &Api) -> Result<Vec<Whom>, Refusal> {
    api.shims(&api.foreign().await?).await
}

/// Whether a shim that lives does not answer what it can answer from memory.
async fn is_silent(address: &str) -> bool {
    let question = |client: ShimClient| async move { client.info(QUICK).await };
    // A connection that breaks is that of a shim which is about to end; who watches it learns that by itself.
    ShimClient::ask(address, "", "Info", QUICK, question).await.is_err_and(|e| e.is_silence())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_silence_is_remembered_until_there_is_an_answer() {
        let health = Health::default();
        assert_eq!(health.silent_since("a"), None);
        health.note("a", true);
        let since = health.silent_since("a");
        health.note("a", true);
        assert!(since.is_some() && health.silent_since("a") == since);
        health.note("a", false);
        assert_eq!(health.silent_since("a"), None);
    }

    #[test]
    fn few_shims_are_asked_every_ten_seconds_and_many_never_more_than_fifty_in_a_second() {
        let seconds = |pause: Pause, shims| pause.after(shims).as_secs();
        assert_eq!((seconds(ROUNDS, 0), seconds(ROUNDS, 500), seconds(ROUNDS, 10_000)), (10, 10, 200));
        assert_eq!((seconds(REST, 1), seconds(REST, 10_000)), (1, 20));
    }

    #[test]
    fn a_shim_that_is_gone_is_forgotten() {
        let health = Health::default();
        health.note("a", true);
        health.note("b", true);
        health.retain(&[Whom { address: "b".into(), pid: 1, namespace: "default".into() }]);
        assert_eq!((health.silent_since("a"), health.silent_since("b").is_some()), (None, true));
    }
}
