//! `exec`: another process in a running container.

use std::path::Path;

use holdfast_proto::supervisor as pb;

use super::args::ExecArgs;
use super::connection::Connection;
use super::run::{drain, environment, exit_code, left, pass_signals};
use super::streams::{self, Fifos};
use super::terminal::RawMode;
use super::{CliError, Outcome};

pub(super) async fn run(connection: Connection, args: &ExecArgs) -> Outcome {
    let exec_id = crate::names::generate_id().map_err(CliError::io("make an exec id"))?;
    let mut request = pb::ExecRequest {
        ref_: args.container.clone(),
        exec_id: format!("exec-{}", crate::names::short(&exec_id)),
        command: args.command.clone(),
        env: environment(&args.env),
        cwd: args.workdir.clone().unwrap_or_default(),
        user: args.user.clone().unwrap_or_default(),
        terminal: args.tty,
        ..Default::default()
    };
    if args.detach {
        connection.exec(&request).await?;
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
    let started = connection.exec(&request).await?;
    let raw = if args.tty { RawMode::enter() } else { None };
    let mut outputs = vec![stdout.copy_to(std::io::stdout())];
    outputs.extend(stderr.map(|e| e.copy_to(std::io::stderr())));
    let input = match request.stdin.as_str() {
        "" => None,
        path => Some(streams::copy_stdin(path, raw.is_some())?),
    };
    let (ref_, exec_id) = (started.id.clone(), request.exec_id.clone());
    let wait = pb::WaitRequest { ref_, exec_id, ..Default::default() };
    let ended = tokio::select! {
        ended = connection.wait(&wait) => ended?,
        () = left(input, &connection, &started.id, &request.exec_id) => {
            drop(raw);
            eprintln!("\nholdfast: detached; the command goes on");
            return Ok(0);
        }
        () = pass_signals(&connection, &started.id, &request.exec_id, args.tty) => {
            unreachable!("signals do not end")
        }
    };
    drain(outputs).await;
    drop(raw);
    Ok(exit_code(&ended))
}
