//! `run`, `create`, `start --attach` and `attach`: a container in the foreground.
//!
//! Create, attach to its output, start, wait. The streams are between us and the shim; only signals, sizes and the wait
//! go through the supervisor.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use holdfast_proto::supervisor as pb;
use tokio::sync::oneshot;

use super::args::{AttachArgs, CreateArgs, LimitArgs, LogDriverArgs, RunArgs, StartArgs};
use super::connection::Connection;
use super::detach_keys::DetachKeys;
use super::environment::environment;
use super::schema::Made;
use super::signals::{Policy, Signals};
use super::streams::{self, Copying, Fifos, InputEnd, Output};
use super::terminal::{self, RawMode};
use super::{CliError, Outcome, advice, print, render, say};
use crate::names::short;

/// How long output may be silent after the end of the container was told, before its end is not waited for any more.
const LAST_OUTPUT: Duration = Duration::from_secs(10);

pub(super) async fn run(connection: Connection, args: &RunArgs, json: bool) -> Outcome {
    terminal::check_input(args.create.tty && !args.detach, args.create.interactive)?;
    let made = connection.create(&create_request(&args.create)?).await?;
    if args.detach {
        start(&connection, &made, args.create.rm).await?;
        return tell_made(&made, json);
    }
    let view =
        View { stdin: args.create.interactive, keys: &args.leave.detach_keys, sig_proxy: args.signals.sig_proxy };
    let attached = match Attached::to(&connection, &made.id, &view).await {
        Ok(attached) => attached,
        Err(e) => {
            discard(&connection, &made.id, true).await;
            return Err(e);
        }
    };
    start(&connection, &made, args.create.rm).await?;
    attached.see_through().await
}

pub(super) async fn create(connection: Connection, args: &CreateArgs, json: bool) -> Outcome {
    tell_made(&connection.create(&create_request(args)?).await?, json)
}

fn tell_made(made: &pb::CreateResponse, json: bool) -> Outcome {
    print(&if json { render::json_line(&Made::new(made)) } else { format!("{}\n", made.id) })?;
    Ok(0)
}

/// Starts it; one that was to be removed at its end is removed if it has no beginning.
async fn start(connection: &Connection, made: &pb::CreateResponse, remove: bool) -> Result<(), CliError> {
    let request = pb::StartRequest { ref_: made.id.clone(), ..Default::default() };
    match connection.start(&request).await {
        Ok(_) => Ok(()),
        Err(mut e) => {
            discard(connection, &made.id, remove).await;
            if let CliError::Refused { next, .. } = &mut e {
                *next = (!remove).then(|| advice::after_failed_start(&made.name));
            }
            Err(e)
        }
    }
}

async fn discard(connection: &Connection, id: &str, remove: bool) {
    if remove {
        let request = pb::RemoveRequest { ref_: id.to_owned(), force: true, ..Default::default() };
        let _ = connection.remove(&request).await; // the first failure is the one to tell; it may be gone already
    }
}

pub(super) async fn attach(connection: Connection, args: &AttachArgs) -> Outcome {
    let view = View { stdin: !args.no_stdin, keys: &args.leave.detach_keys, sig_proxy: args.signals.sig_proxy };
    Attached::to(&connection, &args.container, &view).await?.see_through().await
}

/// Starts one container and shows it from its first byte; one that runs already is shown from now on.
pub(super) async fn start_attached(connection: Connection, args: &StartArgs) -> Outcome {
    let [container] = args.several.containers.as_slice() else {
        let count = args.several.containers.len();
        return Err(CliError::Usage(format!("--attach shows one container, and {count} were named")));
    };
    let view = View { stdin: args.interactive, keys: &args.leave.detach_keys, sig_proxy: args.signals.sig_proxy };
    let (attached, to) = Attached::prepare(&connection, container, &view).await?;
    if attached.runs {
        connection.attach(&to).await?;
    } else {
        let (columns, rows) = terminal::size().filter(|_| attached.tty).unwrap_or_default();
        let pb::AttachRequest { ref_, stdout, stderr, .. } = to;
        let request = pb::StartRequest { ref_, stdout, stderr, columns, rows, ..Default::default() };
        connection.start(&request).await?;
    }
    attached.see_through().await
}

fn create_request(args: &CreateArgs) -> Result<pb::CreateRequest, CliError> {
    if args.rootfs.is_some() && args.command.is_empty() {
        return Err(CliError::Usage("there is no command to run: give it at the end, as in `-- /bin/sh`".to_owned()));
    }
    Ok(pb::CreateRequest {
        name: args.name.clone().unwrap_or_default(),
        bundle: args.bundle.as_deref().map(absolute).transpose()?.unwrap_or_default(),
        rootfs: args.rootfs.as_deref().map(absolute).transpose()?.unwrap_or_default(),
        command: args.command.clone(),
        env: environment(&args.env)?,
        cwd: args.workdir.clone().unwrap_or_default(),
        user: args.user.clone().unwrap_or_default(),
        volumes: args.volume.iter().map(|v| volume(v)).collect::<Result<_, _>>()?,
        limits: Some(limits(&args.limits)?).into(),
        network: args.network.clone().unwrap_or_default(),
        hostname: args.hostname.clone().unwrap_or_default(),
        restart: args.restart.clone(),
        terminal: args.tty,
        stdin: args.interactive,
        remove: args.rm,
        stop_signal: args.stop_signal.clone(),
        stop_timeout: args.stop_timeout,
        labels: args.label.iter().map(|l| label(l)).collect::<Result<_, _>>()?,
        log_driver: args.log.log_driver.clone().unwrap_or_default(),
        log_options: log_options(&args.log)?,
        ..Default::default()
    })
}

fn absolute(path: &Path) -> Result<String, CliError> {
    let path = std::path::absolute(path).map_err(CliError::io(format!("resolve {}", path.display())))?;
    path.into_os_string().into_string().map_err(|p| CliError::Usage(format!("the path {p:?} is not text")))
}

/// A volume's source may be relative to where we are; the supervisor is elsewhere.
fn volume(volume: &str) -> Result<String, CliError> {
    match volume.split_once(':') {
        Some((source, rest)) if !source.is_empty() => Ok(format!("{}:{rest}", absolute(Path::new(source))?)),
        _ => Ok(volume.to_owned()), // for the supervisor to refuse
    }
}

fn label(label: &str) -> Result<(String, String), CliError> {
    let (key, value) = label.split_once('=').unwrap_or((label, ""));
    if key.is_empty() {
        return Err(CliError::Usage(format!("{label:?} is not a label (KEY=VALUE)")));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Options of the log as they are sent.
pub(super) fn log_options(args: &LogDriverArgs) -> Result<HashMap<String, String>, CliError> {
    args.log_opt.iter().map(|option| log_option(option)).collect()
}

fn log_option(option: &str) -> Result<(String, String), CliError> {
    let (key, value) = option
        .split_once('=')
        .ok_or_else(|| CliError::Usage(format!("{option:?} is not a log option (KEY=VALUE, as max-size=10m)")))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Limits as they are sent.
pub(super) fn limits(args: &LimitArgs) -> Result<pb::Limits, CliError> {
    let memory = match &args.memory {
        None => 0,
        Some(text) => holdfast_proto::size::parse(text)
            .and_then(|n| i64::try_from(n).ok())
            .ok_or_else(|| CliError::Usage(format!("{text:?} is not a size (as 64m or 1g)")))?,
    };
    let cpus = match &args.cpus {
        None => 0,
        Some(text) => milli_cpus(text)
            .ok_or_else(|| CliError::Usage(format!("{text:?} is not a number of CPUs (as 2 or 0.5)")))?,
    };
    let pids = args.pids_limit.unwrap_or(0);
    Ok(pb::Limits { memory_bytes: memory, milli_cpus: cpus, pids, ..Default::default() })
}

/// `1.5` → 1500. `None` for what is no positive number.
fn milli_cpus(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().chain(whole.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction: i64 = format!("{fraction:0<3}").parse().ok()?;
    whole.checked_mul(1000)?.checked_add(fraction).filter(|milli| *milli > 0)
}

/// How a container is to be shown.
struct View<'a> {
    /// Whether our standard input is passed on, if the container has one.
    stdin: bool,
    keys: &'a DetachKeys,
    sig_proxy: bool,
}

/// A container whose streams are ours.
struct Attached {
    connection: Connection,
    id: String,
    /// It ran when it was looked at.
    runs: bool,
    tty: bool,
    stdin: String,
    stdout: Output,
    stderr: Option<Output>,
    keys: DetachKeys,
    signals: Signals,
    raw: Option<RawMode>,
    _fifos: Fifos,
}

impl Attached {
    /// Attaches to a container that is made, or runs.
    async fn to(connection: &Connection, container: &str, view: &View<'_>) -> Result<Self, CliError> {
        let (attached, request) = Self::prepare(connection, container, view).await?;
        connection.attach(&request).await?;
        if attached.tty
            && let Some((columns, rows)) = terminal::size()
        {
            // Before it is started: what it prints first is for a window of this size already.
            let request = pb::ResizeRequest { ref_: attached.id.clone(), columns, rows, ..Default::default() };
            connection.resize(&request).await;
        }
        Ok(attached)
    }

    /// All that is ours: FIFOs, the terminal, signals. And what is still to be asked for.
    async fn prepare(
        connection: &Connection,
        container: &str,
        view: &View<'_>,
    ) -> Result<(Self, pb::AttachRequest), CliError> {
        let inspected = inspect(connection, container).await?;
        let (id, tty) = (inspected.container.get_or_default().id.clone(), inspected.terminal);
        let stdin = if view.stdin { inspected.stdin.clone() } else { String::new() };
        terminal::check_input(tty, !stdin.is_empty())?;
        let info = connection.info(&pb::InfoRequest::new()).await?;
        let fifos = Fifos::new(Path::new(&info.run_dir))?;
        let (stdout_path, stdout) = fifos.make_for_reading("stdout")?;
        // With a terminal there is one stream only.
        let (stderr_path, stderr) = match tty {
            true => (String::new(), None),
            false => fifos.make_for_reading("stderr").map(|(path, output)| (path, Some(output)))?,
        };
        // Without our input a raw terminal would only keep ctrl-c from being a signal.
        let raw = if tty && !stdin.is_empty() { RawMode::enter() } else { None };
        let policy = if view.sig_proxy && raw.is_none() { Policy::Forward } else { Policy::Leave };
        let request = pb::AttachRequest {
            ref_: container.to_owned(),
            stdout: stdout_path,
            stderr: stderr_path,
            ..Default::default()
        };
        let attached = Self {
            connection: connection.clone(),
            runs: inspected.container.get_or_default().pid != 0,
            id,
            tty,
            stdin,
            stdout,
            stderr,
            keys: view.keys.clone(),
            signals: Signals::catch(policy, tty),
            raw,
            _fifos: fifos,
        };
        Ok((attached, request))
    }

    /// Passes bytes, signals and sizes on until the container ends, or the person leaves.
    async fn see_through(mut self) -> Outcome {
        let mut outputs = vec![self.stdout.copy_to(std::io::stdout())];
        outputs.extend(self.stderr.map(|e| e.copy_to(std::io::stderr())));
        let input = match self.stdin.as_str() {
            "" => None,
            path => streams::copy_stdin(path, self.raw.as_ref().map(|_| &self.keys))?,
        };
        let request = pb::WaitRequest { ref_: self.id.clone(), ..Default::default() };
        let called = short(&self.id);
        let ended = tokio::select! {
            ended = self.connection.wait(&request) => ended?,
            () = left(input, &self.connection, &self.id, "") => {
                drop(self.raw);
                say::tell_leaving(&format!("detached; {called} goes on"));
                return Ok(0);
            }
            signal = self.signals.pass_on(&self.connection, &self.id, "") => {
                drop(self.raw);
                say::tell_leaving(&format!("left by a signal; {called} goes on (`holdfast stop {called}` ends it)"));
                return Ok(super::by_signal(signal));
            }
        };
        drain(outputs).await;
        drop(self.raw);
        Ok(exit_code(&ended))
    }
}

async fn inspect(connection: &Connection, container: &str) -> Result<pb::InspectResponse, CliError> {
    connection.inspect(&pb::InspectRequest { ref_: container.to_owned(), ..Default::default() }).await
}

/// Returns when the detach keys were typed. The end of our input is told to the process, and then nothing ends this.
pub(super) async fn left(input: Option<oneshot::Receiver<InputEnd>>, connection: &Connection, id: &str, exec_id: &str) {
    if let Some(input) = input {
        match input.await {
            Ok(InputEnd::Detached) => return,
            Ok(InputEnd::Eof) | Err(_) => {
                let (ref_, exec_id) = (id.to_owned(), exec_id.to_owned());
                connection.close_stdin(&pb::CloseStdinRequest { ref_, exec_id, ..Default::default() }).await;
            }
        }
    }
    std::future::pending().await
}

/// Waits for the last output, however slowly our reader takes it, but not for a process that somebody left behind with it.
pub(super) async fn drain(mut outputs: Vec<Copying>) {
    let any_moves = |outputs: &mut [Copying]| outputs.iter_mut().fold(false, |any, output| output.moves() | any);
    any_moves(&mut outputs);
    // What is still open after a while in which nothing came belongs to somebody else.
    while tokio::time::timeout(LAST_OUTPUT, join_all(outputs.iter_mut().map(Copying::ended))).await.is_err()
        && any_moves(&mut outputs)
    {}
}

/// The exit code that stands for how it ended; why, if the status alone does not say it.
pub(super) fn exit_code(ended: &pb::WaitResponse) -> u8 {
    if !ended.reason.is_empty() {
        say::tell(&format!("{}: {}", short(&ended.id), ended.reason));
    }
    u8::try_from(ended.exit_status).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_in_thousandths() {
        for (text, milli) in [("1", 1000), ("1.5", 1500), (".25", 250), ("0.001", 1), ("64", 64_000)] {
            assert_eq!(milli_cpus(text), Some(milli), "{text}");
        }
        for bad in ["", ".", "0", "-1", "1.2345", "1e3", "one", "99999999999999999999"] {
            assert_eq!(milli_cpus(bad), None, "{bad}");
        }
    }
}
