//! The arguments of each call to the OCI runtime; pure.
//!
//! The command line is runc's, which crun and holdfast-oci share. Every path that goes in is absolute, so that the
//! runtime's working directory does not matter. The caller keeps from the runtime's environment what is the manager's own,
//! as `NOTIFY_SOCKET` is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::options::CheckpointOptions;

/// Which OCI runtime, and what it is told on every call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// Absolute path, or a name to be looked up in `PATH`.
    pub binary: PathBuf,
    /// Its state directory, containerd's namespace included.
    pub root: PathBuf,
    /// Whether it leaves the cgroups to systemd.
    #[serde(default)]
    pub systemd_cgroup: bool,
}

/// One request to the OCI runtime. Signals go by number: names differ between runtimes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call<'a> {
    /// Make the container; its init process waits for `Start`.
    Create {
        /// The bundle directory.
        bundle: &'a Path,
        /// Where the runtime writes the pid of init.
        pid_file: &'a Path,
        /// Where the runtime sends the terminal's master; `None` without a terminal.
        console_socket: Option<&'a Path>,
        /// Do without `pivot_root(2)`.
        no_pivot: bool,
        /// Keep the session keyring.
        no_new_keyring: bool,
    },
    /// Let init run.
    Start,
    /// Write the container's state to disk.
    Checkpoint {
        /// The directory of the checkpoint.
        image: &'a Path,
        /// Where criu works and logs.
        work: &'a Path,
        /// What the client chose; the place of work is above.
        options: &'a CheckpointOptions,
    },
    /// Make a running container from a checkpoint.
    Restore {
        /// The directory of the checkpoint.
        image: &'a Path,
        /// Where criu works and logs.
        work: &'a Path,
        /// The bundle directory.
        bundle: &'a Path,
        /// Where the runtime writes the pid of init.
        pid_file: &'a Path,
        /// Where the runtime sends the terminal's master; `None` without a terminal.
        console_socket: Option<&'a Path>,
        /// Do without `pivot_root(2)`.
        no_pivot: bool,
    },
    /// Add a process.
    Exec {
        /// A file with the OCI `Process`, which may hold secrets: 0600, removed by the caller afterwards.
        process: &'a Path,
        /// Where the runtime writes the pid.
        pid_file: &'a Path,
        /// Where the runtime sends the terminal's master; `None` without a terminal.
        console_socket: Option<&'a Path>,
    },
    /// Send a signal.
    Kill {
        /// Its number.
        signal: u32,
        /// To every process of the container rather than to init alone.
        all: bool,
    },
    /// Remove a stopped container.
    Delete {
        /// Also if it runs.
        force: bool,
    },
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// Change resource limits; they come on standard input.
    Update,
    /// List the pids, as a JSON array or `null`.
    Ps,
    /// Say what the runtime can do; needs neither container nor root.
    Features,
}

impl Call<'_> {
    /// The runtime's word for it, as used in errors too (`<word> failed: …`).
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Start => "start",
            Self::Checkpoint { .. } => "checkpoint",
            Self::Restore { .. } => "restore",
            Self::Exec { .. } => "exec",
            Self::Kill { .. } => "kill",
            Self::Delete { .. } => "delete",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Update => "update",
            Self::Ps => "ps",
            Self::Features => "features",
        }
    }
}

/// The arguments for `call` on container `id`, without the program's name. `log` receives the runtime's errors; one file
/// per call, else concurrent calls read each other's.
pub fn arguments(rt: &Runtime, id: &str, log: &Path, call: &Call<'_>) -> Vec<OsString> {
    if *call == Call::Features {
        return vec![call.verb().into()];
    }
    let mut args = Arguments(Vec::with_capacity(20));
    args.option("--root", &rt.root).option("--log", log).word("--log-format").word("json");
    args.flag("--systemd-cgroup", rt.systemd_cgroup).word(call.verb());
    match *call {
        Call::Create { bundle, pid_file, console_socket, no_pivot, no_new_keyring } => {
            args.option("--bundle", bundle).option("--pid-file", pid_file).maybe("--console-socket", console_socket);
            args.flag("--no-pivot", no_pivot).flag("--no-new-keyring", no_new_keyring)
        }
        Call::Checkpoint { image, work, options } => {
            args.option("--image-path", image).option("--work-path", work);
            let parent = Path::new(&options.parent_path);
            args.maybe("--parent-path", Some(parent).filter(|parent| !parent.as_os_str().is_empty()));
            args.flag("--tcp-established", options.open_tcp).flag("--ext-unix-sk", options.external_unix_sockets);
            args.flag("--shell-job", options.terminal).flag("--file-locks", options.file_locks);
            for namespace in &options.empty_namespaces {
                args.option("--empty-ns", Path::new(namespace));
            }
            args.flag("--leave-running", !options.exit)
        }
        // Without `--no-subreaper`: crun does not know it, and a runc that detaches leaves init to us either way.
        Call::Restore { image, work, bundle, pid_file, console_socket, no_pivot } => {
            args.option("--image-path", image).option("--work-path", work).word("--detach");
            args.option("--pid-file", pid_file).flag("--no-pivot", no_pivot).maybe("--console-socket", console_socket);
            args.option("--bundle", bundle)
        }
        Call::Exec { process, pid_file, console_socket } => {
            args.option("--process", process).maybe("--console-socket", console_socket);
            args.word("--detach").option("--pid-file", pid_file)
        }
        Call::Kill { all, .. } => args.flag("--all", all),
        Call::Delete { force } => args.flag("--force", force),
        Call::Update => args.word("--resources=-"),
        Call::Ps => args.word("--format").word("json"),
        Call::Start | Call::Pause | Call::Resume | Call::Features => &mut args,
    };
    args.word(id);
    if let Call::Kill { signal, .. } = call {
        args.word(signal.to_string());
    }
    args.0
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn word(&mut self, word: impl Into<OsString>) -> &mut Self {
        self.0.push(word.into());
        self
    }

    fn flag(&mut self, name: &str, given: bool) -> &mut Self {
        if given { self.word(name) } else { self }
    }

    fn option(&mut self, name: &str, value: &Path) -> &mut Self {
        self.word(name).word(value)
    }

    fn maybe(&mut self, name: &str, value: Option<&Path>) -> &mut Self {
        match value {
            Some(value) => self.option(name, value),
            None => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(systemd_cgroup: bool, call: &Call<'_>) -> String {
        let rt = Runtime { binary: "runc".into(), root: "/r/ns".into(), systemd_cgroup };
        let args = arguments(&rt, "c1", Path::new("/b/log.json"), call);
        args.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_call_has_the_arguments_of_the_contract() {
        let (bundle, pid_file, process) = (Path::new("/b"), Path::new("/b/init.pid"), Path::new("/t/p.json"));
        let socket = Some(Path::new("/t/s"));
        let (image, work, plain) = (Path::new("/i"), Path::new("/w"), CheckpointOptions::default());
        let all = CheckpointOptions {
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".to_owned(), "uts".to_owned()],
            work_path: "/elsewhere".to_owned(),
            parent_path: "../p".to_owned(),
        };
        let create = Call::Create { bundle, pid_file, console_socket: None, no_pivot: false, no_new_keyring: false };
        let full = Call::Create { bundle, pid_file, console_socket: socket, no_pivot: true, no_new_keyring: true };
        for (call, expected) in [
            (create, "create --bundle /b --pid-file /b/init.pid c1"),
            (full, "create --bundle /b --pid-file /b/init.pid --console-socket /t/s --no-pivot --no-new-keyring c1"),
            (Call::Start, "start c1"),
            (
                Call::Checkpoint { image, work, options: &plain },
                "checkpoint --image-path /i --work-path /w --leave-running c1",
            ),
            (
                Call::Checkpoint { image, work, options: &all },
                "checkpoint --image-path /i --work-path /w --parent-path ../p --tcp-established --ext-unix-sk \
                 --shell-job --file-locks --empty-ns network --empty-ns uts c1",
            ),
            (
                Call::Restore { image, work, bundle, pid_file, console_socket: None, no_pivot: false },
                "restore --image-path /i --work-path /w --detach --pid-file /b/init.pid --bundle /b c1",
            ),
            (
                Call::Restore { image, work, bundle, pid_file, console_socket: socket, no_pivot: true },
                "restore --image-path /i --work-path /w --detach --pid-file /b/init.pid --no-pivot \
                 --console-socket /t/s --bundle /b c1",
            ),
            (
                Call::Exec { process, pid_file, console_socket: None },
                "exec --process /t/p.json --detach --pid-file /b/init.pid c1",
            ),
            (
                Call::Exec { process, pid_file, console_socket: socket },
                "exec --process /t/p.json --console-socket /t/s --detach --pid-file /b/init.pid c1",
            ),
            (Call::Kill { signal: 15, all: false }, "kill c1 15"),
            (Call::Kill { signal: 9, all: true }, "kill --all c1 9"),
            (Call::Delete { force: false }, "delete c1"),
            (Call::Delete { force: true }, "delete --force c1"),
            (Call::Pause, "pause c1"),
            (Call::Resume, "resume c1"),
            (Call::Update, "update --resources=- c1"),
            (Call::Ps, "ps --format json c1"),
        ] {
            let global = "--root /r/ns --log /b/log.json --log-format json ";
            assert_eq!(line(false, &call), format!("{global}{expected}"));
            assert_eq!(line(true, &call), format!("{global}--systemd-cgroup {expected}"));
        }
        assert_eq!(line(true, &Call::Features), "features");
    }
}
