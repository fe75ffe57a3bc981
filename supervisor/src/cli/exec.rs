//! `exec`: another process in a running container.

use std::path::Path;

use holdfast_proto::supervisor as pb;

use super::args::ExecArgs;
use super::connection::Connection;
use super::environment::environment;
use super::run::{drain, exit_code, left};
use super::schema::{Done, ExecStarted};
use super::signals::{Policy, Signals};
use super::streams::{self, Fifos};
use super::terminal::{self, RawMode};
use super::{CliError, Outcome, print, render, say};

pub(super) async fn run(connection: Connection, args: &ExecArgs, json: bool) -> Outcome {
    terminal::check_input(args.tty && !args.detach, args.interactive)?;
    let exec_id = crate::names::generate_id().map_err(CliError::io("make an exec id"))?;
    let mut request = pb::ExecRequest {
        ref_: args.container.clone(),
        exec_id: format!("exec-{}", crate::names::short(&exec_id)),
        command: args.command.clone(),
        env: environment(&args.env)?,
        cwd: args.workdir.clone().unwrap_or_default(),
        user: args.user.clone().unwrap_or_default(),
        terminal: args.tty,
        ..Default::default()
    };
    if args.detach {
        let started = connection.exec(&request).await?;
        print(&match json {
            true => {
                let more = ExecStarted { exec_id: &request.exec_id, pid: started.pid };
                render::json_line(&Done::new(&args.container, more))
            }
            false => format!("{}\n", request.exec_id),
        })?;
        return Ok(0);
    }
    let info = connection.info(&pb::InfoRequest::new()).await?;
    let fifos = Fifos::new(Path::new(&info.run_dir))?;
    let (path, stdout) = fifos.make_for_reading("stdout")?;
    request.stdout = path;
    let stderr = match args.tty {
        true => None,
        false => {
            let (path, stderr) = fifos.make_for_reading("stderr")?;
            request.stderr = path;
            Some(stderr)
        }
    };
    if args.interactive {
        request.stdin = fifos.make("stdin")?;
    }
    if args.tty {
        (request.columns, request.rows) = terminal::size().unwrap_or_default();
    }
    // Before it runs: what it does first is seen as the rest is, and no signal takes us by surprise.
    let mut signals = Signals::catch(Policy::Leave, args.tty);
    let raw = if args.tty && args.interactive { RawMode::enter() } else { None };
    let container = connection.exec(&request).await?.id;
    let mut outputs = vec![stdout.copy_to(std::io::stdout())];
    outputs.extend(stderr.map(|e| e.copy_to(std::io::stderr())));
    let input = match request.stdin.as_str() {
        "" => None,
        path => streams::copy_stdin(path, raw.as_ref().map(|_| &args.leave.detach_keys))?,
    };
    let (ref_, exec_id) = (container.clone(), request.exec_id.clone());
    let wait = pb::WaitRequest { ref_, exec_id, ..Default::default() };
    let ended = tokio::select! {
        ended = connection.wait(&wait) => ended?,
        () = left(input, &connection, &container, &request.exec_id) => {
            drop(raw);
            say::tell_leaving(&format!("detached; the command goes on as {}", request.exec_id));
            return Ok(0);
        }
        // There is no way to signal one process of many that would not surprise somebody.
        signal = signals.pass_on(&connection, &container, &request.exec_id) => {
            drop(raw);
            say::tell_leaving(&format!("left by a signal; the command goes on as {}", request.exec_id));
            return Ok(super::by_signal(signal));
        }
    };
    drain(outputs).await;
    drop(raw);
    Ok(exit_code(&ended))
}
