//! Containers of a containerd that is gone: at the machine's shutdown nobody but us would end them before the file systems
//! and the network that they use. Those of one that lives are its own business; it, or who drives it, would take the end
//! of a container for a crash. The drop-in for `containerd.service` has it go first.

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use holdfast_proto::record::{Manager, Record};
use holdfast_proto::regular;
use nix::libc::SIGTERM;

use super::{Stop, stopped};
use crate::api::signal_number;
use crate::client::has_listener;
use crate::registry::Stopped;
use crate::{names, scan};

/// Where the conversion of an image's configuration puts its stop signal (OCI image specification, conversion.md).
const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";

/// From the stop signal to SIGKILL: containerd's clients keep their own to themselves. As Docker's default.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Stops them all, in parallel.
pub(super) async fn stop_all(records: Vec<Record>) -> Vec<Stopped> {
    let stops = records.into_iter().map(async |record| {
        if !is_orphan(&record.manager).await {
            return None;
        }
        let began = Instant::now();
        let stop = Stop { id: &record.id, signal: stop_signal(&record), timeout: STOP_TIMEOUT };
        let ended = stop.shim(&scan::traces_of(&record)).await?;
        let name = format!("{}/{}", record.namespace, names::short(&record.id));
        Some(stopped(record.id.clone(), name, ended, began))
    });
    join_all(stops).await.into_iter().flatten().collect()
}

/// Whether its containerd is gone, for sure: one that is merely slow has a full backlog, and looks after its containers.
async fn is_orphan(manager: &Manager) -> bool {
    match manager {
        Manager::Containerd { address } => {
            let path = Path::new(address.strip_prefix("unix://").unwrap_or(address));
            matches!(has_listener(path).await, Ok(false))
        }
        Manager::Holdfastd => false,
    }
}

fn stop_signal(record: &Record) -> i32 {
    let config = regular::read_to_string(&record.bundle.join("config.json")).unwrap_or_default();
    stop_signal_in(&config)
}

fn stop_signal_in(config: &str) -> i32 {
    let config: serde_json::Value = serde_json::from_str(config).unwrap_or_default();
    let named = config["annotations"][STOP_SIGNAL].as_str().unwrap_or_default();
    signal_number(named, SIGTERM).unwrap_or(SIGTERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_containerd_counts_as_gone_only_if_that_is_sure() {
        let at = |address: &str| Manager::Containerd { address: address.into() };
        assert!(is_orphan(&at("/no/such/containerd.sock")).await);
        assert!(is_orphan(&at("unix:///no/such/containerd.sock")).await);
        assert!(!is_orphan(&at("/dev/null/containerd.sock")).await, "that it cannot be asked says nothing");
        assert!(!is_orphan(&Manager::Holdfastd).await);
    }

    #[test]
    fn the_stop_signal_is_the_images_or_sigterm() {
        let config = |signal: &str| format!(r#"{{ "annotations": {{ "{STOP_SIGNAL}": "{signal}" }} }}"#);
        assert_eq!(stop_signal_in(&config("SIGQUIT")), nix::libc::SIGQUIT);
        for none in [config("loud"), "{}".to_owned(), String::new()] {
            assert_eq!(stop_signal_in(&none), SIGTERM, "{none}");
        }
    }
}
