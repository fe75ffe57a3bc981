//! `run` and `attach`: a container in the foreground.
//!
//! Create, attach to its output, start, wait. The streams are between us and the shim; only signals, sizes and the wait
//! go through the supervisor.

use std::path::Path;
use std::time::Duration;

use holdfast_proto::supervisor as pb;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::args::{LimitArgs, RunArgs};
use super::connection::Connection;
use super::streams::{self, Fifos, InputEnd, Output};
use super::terminal::{self, RawMode};
use super::{CliError, Outcome, print};

/// How long output may still come after the end of the container was told.
const LAST_OUTPUT: Duration = Duration::from_secs(10);

pub(super) async fn run(connection: Connection, args: &RunArgs) -> Outcome {
    let made = connection.create(&create_request(args)?).await?;
    if args.detach {
        start(&connection, &made.id, args.rm).await?;
        print(&format!("{}\n", made.id))?;
        return Ok(0);
    }
    let attached = match Attached::new(&connection, &made.id, args.interactive).await {
        Ok(attached) => attached,
        Err(e) => {
            discard(&connection, &made.id, true).await;
            return Err(e);
        }
    };
    start(&connection, &made.id, args.rm).await?;
    attached.see_through().await
}

/// Starts it; one that was to be removed at its end is removed if it has no beginning.
async fn start(connection: &Connection, id: &str, remove: bool) -> Result<(), CliError> {
    let request = pb::StartRequest { ref_: id.to_owned(), ..Default::default() };
    match connection.start(&request).await {
        Ok(_) => Ok(()),
        Err(e) => {
            discard(connection, id, remove).await;
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

pub(super) async fn attach(connection: Connection, container: &str, no_stdin: bool) -> Outcome {
    Attached::new(&connection, container, !no_stdin).await?.see_through().await
}

fn create_request(args: &RunArgs) -> Result<pb::CreateRequest, CliError> {
    Ok(pb::CreateRequest {
        name: args.name.clone().unwrap_or_default(),
        bundle: args.bundle.as_deref().map(absolute).transpose()?.unwrap_or_default(),
        rootfs: args.rootfs.as_deref().map(absolute).transpose()?.unwrap_or_default(),
        command: args.command.clone(),
        env: environment(&args.env),
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

/// `NAME` alone takes our own value, and is left out if we have none.
pub(super) fn environment(given: &[String]) -> Vec<String> {
    let value = |pair: &String| match pair.contains('=') {
        true => Some(pair.clone()),
        false => std::env::var(pair).ok().map(|value| format!("{pair}={value}")),
    };
    given.iter().filter_map(value).collect()
}

/// Limits as they are sent.
pub(super) fn limits(args: &LimitArgs) -> Result<pb::Limits, CliError> {
    let memory = match &args.memory {
        None => 0,
        Some(text) => crate::config::size(text)
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

/// A container whose streams are ours.
struct Attached {
    connection: Connection,
    id: String,
    tty: bool,
    stdin: String,
    stdout: Output,
    stderr: Option<Output>,
    _fifos: Fifos,
}

impl Attached {
    async fn new(connection: &Connection, container: &str, stdin: bool) -> Result<Self, CliError> {
        let info = connection.info(&pb::InfoRequest::new()).await?;
        let fifos = Fifos::new(Path::new(&info.run_dir))?;
        let tty = inspect(connection, container).await?.terminal;
        let (stdout_path, stdout) = fifos.make_for_reading("stdout")?;
        // With a terminal there is one stream only.
        let (stderr_path, stderr) = match tty {
            true => (String::new(), None),
            false => fifos.make_for_reading("stderr").map(|(path, output)| (path, Some(output)))?,
        };
        let request = pb::AttachRequest {
            ref_: container.to_owned(),
            stdout: stdout_path,
            stderr: stderr_path,
            ..Default::default()
        };
        let answer = connection.attach(&request).await?;
        let stdin = if stdin { answer.stdin } else { String::new() };
        let (connection, id) = (connection.clone(), answer.id);
        Ok(Self { connection, id, tty, stdin, stdout, stderr, _fifos: fifos })
    }

    /// Passes bytes, signals and sizes on until the container ends, or the person leaves.
    async fn see_through(self) -> Outcome {
        let raw = if self.tty { RawMode::enter() } else { None };
        let mut outputs = vec![self.stdout.copy_to(std::io::stdout())];
        outputs.extend(self.stderr.map(|e| e.copy_to(std::io::stderr())));
        let input = match self.stdin.as_str() {
            "" => None,
            path => Some(streams::copy_stdin(path, raw.is_some())?),
        };
        let request = pb::WaitRequest { ref_: self.id.clone(), ..Default::default() };
        let ended = tokio::select! {
            ended = self.connection.wait(&request) => ended?,
            () = left(input, &self.connection, &self.id, "") => {
                drop(raw);
                eprintln!("\nholdfast: detached; {} goes on", crate::names::short(&self.id));
                return Ok(0);
            }
            () = pass_signals(&self.connection, &self.id, "", self.tty) => unreachable!("signals do not end"),
        };
        drain(outputs).await;
        drop(raw);
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

/// Waits for the last output, but not for a process that somebody left behind with it.
pub(super) async fn drain(outputs: Vec<oneshot::Receiver<()>>) {
    let all = async {
        for output in outputs {
            let _ = output.await; // a thread that is gone has nothing more to copy
        }
    };
    let _ = tokio::time::timeout(LAST_OUTPUT, all).await; // what is still open then belongs to somebody else
}

/// The exit code that stands for how it ended; why, if the status alone does not say it.
pub(super) fn exit_code(ended: &pb::WaitResponse) -> u8 {
    if !ended.reason.is_empty() {
        eprintln!("holdfast: {}: {}", crate::names::short(&ended.id), ended.reason);
    }
    u8::try_from(ended.exit_status).unwrap_or(u8::MAX)
}

/// Passes signals on to a container, or a window's changes to its terminal; never returns. An exec (`exec_id`) gets only
/// the sizes: there is no way to signal one process of many that would not surprise somebody.
pub(super) async fn pass_signals(connection: &Connection, id: &str, exec_id: &str, tty: bool) {
    let watch = |kind| signal(kind).ok();
    let mut resized = if tty { watch(SignalKind::window_change()) } else { None };
    let forwarded = !tty && exec_id.is_empty();
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ];
    let mut signals: Vec<(SignalKind, Signal)> = match forwarded {
        true => kinds.into_iter().filter_map(|kind| Some((kind, watch(kind)?))).collect(),
        false => Vec::new(),
    };
    if tty {
        resize(connection, id, exec_id).await;
    }
    loop {
        let next = std::future::poll_fn(|cx| {
            for (kind, signal) in &mut signals {
                if signal.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(Some(*kind));
                }
            }
            if let Some(resized) = &mut resized
                && resized.poll_recv(cx).is_ready()
            {
                return std::task::Poll::Ready(None);
            }
            std::task::Poll::Pending
        });
        match next.await {
            Some(kind) => {
                let signal = kind.as_raw_value().to_string();
                let request = pb::KillRequest { ref_: id.to_owned(), signal, ..Default::default() };
                if let Err(e) = connection.kill(&request).await {
                    eprintln!("holdfast: {}", crate::chain(&e));
                }
            }
            None => resize(connection, id, exec_id).await,
        }
    }
}

async fn resize(connection: &Connection, id: &str, exec_id: &str) {
    if let Some((columns, rows)) = terminal::size() {
        let (ref_, exec_id) = (id.to_owned(), exec_id.to_owned());
        let request = pb::ResizeRequest { ref_, exec_id, columns, rows, ..Default::default() };
        let _ = connection.resize(&request).await; // the next change tries again; the process may be gone
    }
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
