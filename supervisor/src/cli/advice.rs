//! What to do next when something went wrong.

use std::io::ErrorKind;

use holdfast_proto::supervisor as pb;
use ttrpc::Code;

use super::args::Command;
use super::connection::Connection;
use super::{CliError, FAILED};

const START_IT: &str = "Start it with `systemctl start holdfastd`, or run `holdfastd` as root.";

/// The next step after a failure of `verb` with a container, if one is known. May ask in which state the container is.
pub(super) async fn next_step(
    connection: &Connection,
    verb: &str,
    container: &str,
    error: &CliError,
) -> Option<String> {
    match error {
        CliError::Refused { next: Some(next), .. } => Some(next.clone()),
        CliError::Refused { code, exit, .. } => match code {
            Code::NOT_FOUND => Some("`holdfast ps -a` lists all containers.".to_owned()),
            Code::ALREADY_EXISTS if matches!(verb, "run" | "create") => {
                Some(format!("Give another --name, or remove that container: `holdfast rm {container}`."))
            }
            Code::FAILED_PRECONDITION => {
                let request = pb::InspectRequest { ref_: container.to_owned(), ..Default::default() };
                let inspected = connection.inspect(&request).await.ok()?;
                after_state(verb, container, &inspected.container.get_or_default().status)
            }
            // The OCI runtime's words; those about the command itself say enough.
            Code::UNKNOWN if *exit == FAILED && matches!(verb, "run" | "create" | "start" | "exec") => {
                Some("The log of holdfastd (`journalctl -u holdfastd`) has what its shim said.".to_owned())
            }
            Code::UNAVAILABLE => Some("`holdfast doctor` shows what is wrong with its shim.".to_owned()),
            _ => None,
        },
        CliError::Unreachable { source, .. } => Some(match source.kind() {
            ErrorKind::PermissionDenied => "holdfastd serves root alone: run holdfast as root, as by sudo.".to_owned(),
            ErrorKind::NotFound => format!("holdfastd does not run, or with another socket. {START_IT}"),
            ErrorKind::ConnectionRefused => format!("holdfastd does not run any more. {START_IT}"),
            _ => START_IT.to_owned(),
        }),
        CliError::Broken { .. } => Some("Look with `holdfast ps -a` what became of the request.".to_owned()),
        CliError::Io { .. } | CliError::Usage(_) => None,
    }
}

fn after_state(verb: &str, container: &str, status: &str) -> Option<String> {
    let text = match (status, verb) {
        ("paused", "rm") => format!("Remove it nevertheless with `holdfast rm -f {container}`."),
        ("paused", _) => format!("Let it go on: `holdfast unpause {container}`."),
        ("running", "rm") => {
            format!("Stop it first: `holdfast stop {container}`. Or remove it with `holdfast rm -f {container}`.")
        }
        ("running", "update") => format!("Stop it first: `holdfast stop {container}`."),
        ("running", "start") => format!("Connect to it: `holdfast attach {container}`."),
        ("created" | "exited", "exec" | "attach" | "top" | "kill" | "pause" | "unpause" | "update" | "reopen-logs") => {
            format!("Start it: `holdfast start {container}`.")
        }
        ("stopping", _) => format!("Wait for its end: `holdfast wait {container}`."),
        _ => return None,
    };
    Some(text)
}

/// What to do about a container that could not be started and stays.
pub(super) fn after_failed_start(name: &str) -> String {
    format!(
        "The container stays: `holdfast logs {name}` shows what it printed, `holdfast rm {name}` removes it, and the log of \
         holdfastd (`journalctl -u holdfastd`) has what its shim said."
    )
}

/// The name of a command and the one container that it is about, for those that are about one.
pub(super) fn subject(command: &Command) -> (&'static str, &str) {
    match command {
        Command::Run(args) => ("run", args.create.name.as_deref().unwrap_or_default()),
        Command::Create(args) => ("create", args.name.as_deref().unwrap_or_default()),
        Command::Start(args) => ("start", first(&args.several.containers)),
        Command::Attach(args) => ("attach", &args.container),
        Command::Exec(args) => ("exec", &args.container),
        Command::Logs(args) => ("logs", &args.container),
        Command::Update(args) => ("update", &args.container),
        Command::Inspect { containers } => ("inspect", first(containers)),
        Command::Wait { containers, .. } => ("wait", first(containers)),
        Command::Top { container } => ("top", container),
        _ => ("", ""),
    }
}

fn first(containers: &[String]) -> &str {
    containers.first().map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_names_the_container() {
        for (status, verb, part) in [
            ("exited", "exec", "holdfast start web"),
            ("created", "attach", "holdfast start web"),
            ("paused", "exec", "holdfast unpause web"),
            ("running", "rm", "holdfast rm -f web"),
            ("running", "update", "holdfast stop web"),
            ("stopping", "start", "holdfast wait web"),
        ] {
            let step = after_state(verb, "web", status);
            assert!(step.as_ref().is_some_and(|text| text.contains(part)), "{status} {verb}: {step:?}");
        }
        assert_eq!(after_state("exec", "web", "restarting"), None);
    }
}
