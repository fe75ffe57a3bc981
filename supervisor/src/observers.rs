//! What looks at the shims in the background: which of them answer, and the figures for whoever collects those.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::api::Api;
use crate::config::{MetricsListen, Settings};
use crate::{health, metrics};

/// Looks, with the settings as they are at each moment, until it is dropped.
pub async fn observe(api: Api, settings: watch::Receiver<Arc<Settings>>) {
    tokio::join!(health::watch(api.clone()), serve_metrics(api, settings));
}

/// Serves metrics where the settings want them; settings that are about other things disturb nobody.
async fn serve_metrics(api: Api, mut settings: watch::Receiver<Arc<Settings>>) {
    loop {
        let wanted = served(&settings.borrow_and_update());
        let serving = async {
            match wanted.clone() {
                Some((listen, interval)) => metrics::serve(api.clone(), listen, interval).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = serving => {}
            // The socket that was served is gone before the next one is bound: it may be the same.
            changed = settings.wait_for(|new| served(new) != wanted) => if changed.is_err() { return },
        }
    }
}

/// Where and how often, if at all.
fn served(settings: &Settings) -> Option<(MetricsListen, Duration)> {
    Some((settings.metrics_listen.clone()?, settings.metrics_interval))
}
