//! What becomes of settings when the file is read again: most are taken over, some need a restart. Pure.

use std::path::Path;
use std::time::Duration;

use super::{Loaded, Overridden, Settings};

/// A key whose value is another one now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: &'static str,
    /// The value until now.
    pub from: String,
    /// The value from now on.
    pub to: String,
}

/// A key that keeps its value though the file has another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The key.
    pub key: &'static str,
    /// The value that stays.
    pub stays: String,
    /// The value that was asked for.
    pub asked: String,
    /// Why.
    pub why: String,
}

/// What a reload has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// What holds from now on.
    pub changed: Vec<Change>,
    /// What does not.
    pub refused: Vec<Refused>,
    /// What a flag wins over, as it did before or now for the first time.
    pub overridden: Vec<Overridden>,
}

impl Settings {
    /// Takes over from `new` what can be changed while the supervisor runs.
    pub fn reload(&self, new: Loaded) -> (Self, Reloaded) {
        let Loaded { settings: mut new, overridden, file: _ } = new;
        let mut told = Reloaded { overridden, ..Reloaded::default() };
        for ((key, from), (_, to)) in self.fixed().into_iter().zip(new.fixed()) {
            if from != to {
                let why = "it needs a restart of holdfastd".to_owned();
                told.refused.push(Refused { key, stays: from, asked: to, why });
            }
        }
        new.paths.clone_from(&self.paths);
        new.socket.clone_from(&self.socket);
        for ((key, from), (_, to)) in self.variable().into_iter().zip(new.variable()) {
            if from != to {
                told.changed.push(Change { key, from, to });
            }
        }
        (new, told)
    }

    /// What holds as long as the supervisor runs: containers, shims and clients are to be found there.
    fn fixed(&self) -> [(&'static str, String); 3] {
        // By default it moves with the run directory, which is told of by itself.
        let listen = match self.socket == self.paths.api_socket() {
            true => "(in the run directory)".to_owned(),
            false => format!("unix://{}", self.socket.display()),
        };
        [("listen", listen), ("state-dir", text(&self.paths.state)), ("run-dir", text(&self.paths.run))]
    }

    /// What can be changed at any time.
    fn variable(&self) -> [(&'static str, String); 12] {
        let path =
            |path: &Option<std::path::PathBuf>, none: &str| path.as_deref().map_or_else(|| none.to_owned(), text);
        let time = |time: Duration| humantime::format_duration(time).to_string();
        [
            ("live-restore", self.live_restore.to_string()),
            ("shim", path(&self.shim, "(looked for)")),
            ("runtime", path(&self.runtime, "(the shim's choice)")),
            ("log-level", self.log_level.to_string().to_lowercase()),
            ("start-timeout", time(self.start_timeout)),
            ("shutdown-timeout", self.shutdown_timeout.map_or_else(|| "(as the containers need)".to_owned(), time)),
            ("restore-deadline", time(self.restore_deadline)),
            (
                "metrics-listen",
                self.metrics_listen.as_ref().map_or_else(|| "(nowhere)".to_owned(), ToString::to_string),
            ),
            ("metrics-interval", time(self.metrics_interval)),
            ("log.driver", self.log.driver.name().to_owned()),
            ("log.max-size", self.log.max_size.to_string()),
            ("log.max-file", self.log.max_file.to_string()),
        ]
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
