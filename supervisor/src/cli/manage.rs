//! The subcommands that ask one thing and print the answer.

use std::path::Path;

use holdfast_proto::supervisor as pb;
use serde::Serialize;

use super::args::{PsArgs, Several, UpdateArgs};
use super::connection::Connection;
use super::run::{limits, log_options};
use super::schema::{Container, Done, Ended, Event, Failed, Info, Inspection, Machine, Nothing, Started, Version};
use super::{CliError, FAILED, Outcome, advice, filter, print, render, say, terminal};
use crate::chain;
use crate::client::now_unix_ns;
use crate::doctor::probe;
use crate::registry::Status;

/// How it is told what became of a request for one of several containers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    verb: &'static str,
    json: bool,
    quiet: bool,
}

impl Report {
    /// For a command by its name.
    pub(super) fn new(verb: &'static str, json: bool, quiet: bool) -> Self {
        Self { verb, json, quiet }
    }

    /// Tells it; an error is told with the next step, and makes the exit code that is returned.
    pub(super) async fn tell(
        self,
        connection: &Connection,
        container: &str,
        result: Result<impl Serialize, &CliError>,
    ) -> Outcome {
        let line = match (&result, self.json) {
            (Ok(_), _) if self.quiet => String::new(),
            (Ok(_), false) => format!("{container}\n"),
            (Err(_), false) => String::new(),
            (Ok(more), true) => render::json_line(&Done::new(container, more)),
            (Err(e), true) => render::json_line(&Failed { container, error: &chain(*e) }),
        };
        print(&line)?;
        let Err(e) = result else { return Ok(0) };
        let next = advice::next_step(connection, self.verb, container, e).await;
        say::tell_error(&chain(e), next.as_deref());
        Ok(FAILED)
    }

    /// Does one thing for each container, in order. All are tried; any failure makes the exit code.
    async fn of_each<T, F>(
        self,
        connection: &Connection,
        containers: &[String],
        mut act: impl FnMut(String) -> F,
    ) -> Outcome
    where
        T: Serialize,
        F: Future<Output = Result<T, CliError>>,
    {
        let mut code = 0;
        for container in containers {
            let result = act(container.clone()).await;
            code = code.max(self.tell(connection, container, result.as_ref()).await?);
        }
        Ok(code)
    }
}

pub(super) async fn start(connection: Connection, several: &Several, json: bool) -> Outcome {
    let report = Report::new("start", json, several.quiet);
    let act = async |ref_| {
        let answer = connection.start(&pb::StartRequest { ref_, ..Default::default() }).await?;
        Ok(Started { pid: answer.pid })
    };
    report.of_each(&connection, &several.containers, act).await
}

/// Does one thing for each container at the same time, so that one that takes long to stop does not delay the others.
async fn all_at_once<T, F>(containers: &[String], act: impl FnMut(String) -> F) -> Vec<Result<T, CliError>>
where
    F: Future<Output = Result<T, CliError>>,
{
    futures_util::future::join_all(containers.iter().cloned().map(act)).await
}

pub(super) async fn stop(connection: Connection, containers: &[String], time: Option<i32>, report: Report) -> Outcome {
    let timeout = time.unwrap_or(-1);
    let stop = async |ref_| connection.stop(&pb::StopRequest { ref_, timeout, ..Default::default() }).await;
    let mut code = 0;
    for (container, result) in containers.iter().zip(all_at_once(containers, stop).await) {
        code = code.max(report.tell(&connection, container, result.as_ref().map(Ended::new)).await?);
    }
    Ok(code)
}

pub(super) async fn restart(connection: Connection, several: &Several, time: Option<i32>, json: bool) -> Outcome {
    let (report, timeout) = (Report::new("restart", json, several.quiet), time.unwrap_or(-1));
    let restart = async |ref_| {
        let inspected = connection.inspect(&pb::InspectRequest { ref_, ..Default::default() }).await?;
        let container = inspected.container.get_or_default();
        let (ref_, begun_unix_ns) = (container.id.clone(), container.started_at_unix_ns);
        let request = pb::RestartRequest { ref_, timeout, begun_unix_ns, ..Default::default() };
        connection.restart(&request).await.map(|answer| Started { pid: answer.pid })
    };
    let mut code = 0;
    for (container, result) in several.containers.iter().zip(all_at_once(&several.containers, restart).await) {
        code = code.max(report.tell(&connection, container, result.as_ref()).await?);
    }
    Ok(code)
}

/// Stops whatever runs or would be started again.
pub(super) async fn stop_all(connection: Connection, time: Option<i32>, report: Report) -> Outcome {
    let request = pb::ListRequest { all: true, ..Default::default() };
    let list = connection.list(&request).await?.containers;
    let ids: Vec<String> = list.into_iter().filter(|c| is_to_be_stopped(&c.status)).map(|c| c.id).collect();
    stop(connection, &ids, time, report).await
}

/// Whether a container with this status runs, or may run by the time that it is asked to stop.
fn is_to_be_stopped(status: &str) -> bool {
    match Status::parse(status) {
        Some(
            Status::Restoring
            | Status::Preparing
            | Status::Running
            | Status::Paused
            | Status::Stopping
            | Status::Restarting
            | Status::Unresponsive,
        ) => true,
        Some(Status::Created | Status::Exited | Status::Removing | Status::Unreadable | Status::Incompatible) => false,
        // A sandbox is none of holdfastd's.
        Some(Status::Ready | Status::NotReady) => false,
        // It is asked, rather than left running.
        None => true,
    }
}

pub(super) async fn kill(connection: Connection, several: &Several, signal: &str, json: bool) -> Outcome {
    let act = async |ref_| {
        let signal = signal.to_owned();
        connection.kill(&pb::KillRequest { ref_, signal, ..Default::default() }).await.map(Nothing::of)
    };
    Report::new("kill", json, several.quiet).of_each(&connection, &several.containers, act).await
}

pub(super) async fn pause(connection: Connection, several: &Several, json: bool) -> Outcome {
    let act = async |ref_| connection.pause(&pb::PauseRequest { ref_, ..Default::default() }).await.map(Nothing::of);
    Report::new("pause", json, several.quiet).of_each(&connection, &several.containers, act).await
}

pub(super) async fn unpause(connection: Connection, several: &Several, json: bool) -> Outcome {
    let act = async |ref_| connection.resume(&pb::ResumeRequest { ref_, ..Default::default() }).await.map(Nothing::of);
    Report::new("unpause", json, several.quiet).of_each(&connection, &several.containers, act).await
}

pub(super) async fn reopen_logs(connection: Connection, several: &Several, json: bool) -> Outcome {
    let act = async |ref_| {
        connection.reopen_logs(&pb::ReopenLogsRequest { ref_, ..Default::default() }).await.map(Nothing::of)
    };
    Report::new("reopen-logs", json, several.quiet).of_each(&connection, &several.containers, act).await
}

pub(super) async fn remove(connection: Connection, several: &Several, force: bool, json: bool) -> Outcome {
    let act =
        async |ref_| connection.remove(&pb::RemoveRequest { ref_, force, ..Default::default() }).await.map(Nothing::of);
    Report::new("rm", json, several.quiet).of_each(&connection, &several.containers, act).await
}

pub(super) async fn wait(connection: Connection, containers: &[String], exec: Option<&str>, json: bool) -> Outcome {
    if exec.is_some() && containers.len() != 1 {
        return Err(CliError::Usage("an exec belongs to one container: --exec goes with one".to_owned()));
    }
    let exec_id = exec.unwrap_or_default();
    let mut last = 0;
    for container in containers {
        let request = pb::WaitRequest { ref_: container.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let ended = connection.wait(&request).await?;
        let line = match json {
            true => render::json_line(&Done::new(container, Ended::new(&ended))),
            false => format!("{}\n", ended.exit_status),
        };
        print(&line)?;
        if !ended.reason.is_empty() {
            say::tell(&format!("{container}: {}", ended.reason));
        }
        last = u8::try_from(ended.exit_status).unwrap_or(u8::MAX);
    }
    Ok(last)
}

pub(super) async fn ps(connection: Connection, args: &PsArgs, json: bool) -> Outcome {
    let all = args.all || filter::is_about_status(&args.filter);
    let request = pb::ListRequest { all, all_managers: args.all_managers, ..Default::default() };
    let mut list = connection.list(&request).await?.containers;
    list.retain(|c| filter::wanted(&args.filter, c));
    if args.quiet {
        let id = |c: &pb::Container| if args.no_trunc { c.id.clone() } else { crate::names::short(&c.id).to_owned() };
        let ids: String = list.iter().map(|c| id(c) + "\n").collect();
        print(&ids)?;
    } else if json {
        print(&render::json(&list.iter().map(Container::new).collect::<Vec<_>>()))?;
    } else {
        let columns = render::Columns { truncate: !args.no_trunc, managers: args.all_managers };
        print(&render::table(&list, now_unix_ns(), columns, terminal::width()))?;
    }
    Ok(0)
}

pub(super) async fn inspect(connection: Connection, containers: &[String]) -> Outcome {
    let mut all = Vec::new();
    for container in containers {
        let request = pb::InspectRequest { ref_: container.clone(), ..Default::default() };
        all.push(connection.inspect(&request).await?);
    }
    print(&render::json(&all.iter().map(Inspection::new).collect::<Vec<_>>()))?;
    Ok(0)
}

pub(super) async fn update(connection: Connection, args: &UpdateArgs, json: bool) -> Outcome {
    let request = pb::UpdateRequest {
        ref_: args.container.clone(),
        limits: Some(limits(&args.limits)?).into(),
        restart: args.restart.clone().unwrap_or_default(),
        log_driver: args.log.log_driver.clone().unwrap_or_default(),
        log_options: log_options(&args.log)?,
        ..Default::default()
    };
    let result = connection.update(&request).await.map(Nothing::of);
    Report::new("update", json, args.quiet).tell(&connection, &args.container, result.as_ref()).await
}

pub(super) async fn events(connection: Connection, since: Option<&str>, json: bool) -> Outcome {
    let since = since.map(|text| render::parse_time(text, now_unix_ns())).transpose().map_err(CliError::Usage)?;
    let show = |event: pb::Event| {
        let text = if json { render::json_line(&Event::new(&event)) } else { render::event(&event) };
        say::stream(&text)
    };
    connection.events(since.unwrap_or(0), show).await?;
    Ok(0)
}

pub(super) async fn version(connection: Connection, json: bool) -> Outcome {
    let server = connection.version(&pb::VersionRequest::new()).await;
    let theirs = server.as_ref().ok();
    if json {
        print(&render::json(&Version::new(theirs)))?;
    } else {
        print(&format!("holdfast   {}\n", env!("CARGO_PKG_VERSION")))?;
        if let Some(v) = theirs {
            print(&format!("holdfastd  {} (pid {}, record schema {})\n", v.version, v.pid, v.record_schema))?;
        }
    }
    server.map(|_| 0)
}

pub(super) async fn info(connection: Connection, json: bool) -> Outcome {
    let info = connection.info(&pb::InfoRequest::new()).await?;
    let machine = Machine {
        kernel: probe::release(),
        cgroup: probe::cgroup().mode.as_str(),
        runtimes: probe::runtimes(Some(Path::new(&info.shim)), &info.runtime).await,
    };
    let shown = Info::new(&info, &machine);
    let restore = info.restore.get_or_default();
    print(&if json {
        render::json(&shown)
    } else {
        render::info(&shown, now_unix_ns(), info.started_at_unix_ns, restore)
    })?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_run_is_stopped_with_all_the_others() {
        for status in ["running", "paused", "restarting", "restoring", "unresponsive", "something-new"] {
            assert!(is_to_be_stopped(status), "{status}");
        }
        for status in ["created", "exited", "removing", "unreadable", "incompatible", "ready"] {
            assert!(!is_to_be_stopped(status), "{status}");
        }
    }
}
