//! The subcommands that ask one thing and print the answer.

use holdfast_proto::supervisor as pb;

use super::args::{PsArgs, UpdateArgs};
use super::connection::Connection;
use super::run::limits;
use super::{CliError, FAILED, Outcome, print, render};
use crate::chain;
use crate::client::now_unix_ns;

/// Does one thing for each container; prints what it gives. All are tried; any failure makes the exit code.
async fn for_each<F>(containers: &[String], mut act: impl FnMut(String) -> F) -> Outcome
where
    F: Future<Output = Result<String, CliError>>,
{
    let mut code = 0;
    for container in containers {
        match act(container.clone()).await {
            Ok(text) => print(&format!("{text}\n"))?,
            Err(e) => {
                eprintln!("holdfast: {}", chain(&e));
                code = FAILED;
            }
        }
    }
    Ok(code)
}

pub(super) async fn start(connection: Connection, containers: &[String]) -> Outcome {
    for_each(containers, async |ref_| {
        connection.start(&pb::StartRequest { ref_: ref_.clone(), ..Default::default() }).await?;
        Ok(ref_)
    })
    .await
}

pub(super) async fn stop(connection: Connection, containers: &[String], time: Option<i32>) -> Outcome {
    let timeout = time.unwrap_or(-1);
    // At the same time: one that takes long to stop does not delay the others.
    let stops = containers.iter().map(async |ref_| {
        let request = pb::StopRequest { ref_: ref_.clone(), timeout, ..Default::default() };
        (ref_, connection.stop(&request).await)
    });
    let mut code = 0;
    for (container, result) in futures_util::future::join_all(stops).await {
        match result {
            Ok(_) => print(&format!("{container}\n"))?,
            Err(e) => {
                eprintln!("holdfast: {}", chain(&e));
                code = FAILED;
            }
        }
    }
    Ok(code)
}

pub(super) async fn kill(connection: Connection, containers: &[String], signal: &str) -> Outcome {
    for_each(containers, async |ref_| {
        let signal = signal.to_owned();
        connection.kill(&pb::KillRequest { ref_: ref_.clone(), signal, ..Default::default() }).await?;
        Ok(ref_)
    })
    .await
}

pub(super) async fn remove(connection: Connection, containers: &[String], force: bool) -> Outcome {
    for_each(containers, async |ref_| {
        connection.remove(&pb::RemoveRequest { ref_: ref_.clone(), force, ..Default::default() }).await?;
        Ok(ref_)
    })
    .await
}

pub(super) async fn wait(connection: Connection, containers: &[String], json: bool) -> Outcome {
    let mut last = 0;
    for container in containers {
        let request = pb::WaitRequest { ref_: container.clone(), ..Default::default() };
        let ended = connection.wait(&request).await?;
        print(&if json { render::json_line(&render::ended(&ended)) } else { format!("{}\n", ended.exit_status) })?;
        if !ended.reason.is_empty() {
            eprintln!("holdfast: {container}: {}", ended.reason);
        }
        last = u8::try_from(ended.exit_status).unwrap_or(u8::MAX);
    }
    Ok(last)
}

pub(super) async fn ps(connection: Connection, args: &PsArgs, json: bool) -> Outcome {
    let request = pb::ListRequest { all: args.all, all_managers: args.all_managers, ..Default::default() };
    let list = connection.list(&request).await?.containers;
    if args.quiet {
        let id = |c: &pb::Container| if args.no_trunc { c.id.clone() } else { crate::names::short(&c.id).to_owned() };
        let ids: String = list.iter().map(|c| id(c) + "\n").collect();
        print(&ids)?;
    } else if json {
        print(&render::json(&serde_json::Value::Array(list.iter().map(render::container).collect())))?;
    } else {
        print(&render::table(&list, now_unix_ns(), !args.no_trunc, args.all_managers))?;
    }
    Ok(0)
}

pub(super) async fn inspect(connection: Connection, containers: &[String]) -> Outcome {
    let mut all = Vec::new();
    for container in containers {
        let request = pb::InspectRequest { ref_: container.clone(), ..Default::default() };
        all.push(render::inspection(&connection.inspect(&request).await?));
    }
    print(&render::json(&serde_json::Value::Array(all)))?;
    Ok(0)
}

pub(super) async fn update(connection: Connection, args: &UpdateArgs) -> Outcome {
    let request = pb::UpdateRequest {
        ref_: args.container.clone(),
        limits: Some(limits(&args.limits)?).into(),
        restart: args.restart.clone().unwrap_or_default(),
        ..Default::default()
    };
    connection.update(&request).await?;
    print(&format!("{}\n", args.container))?;
    Ok(0)
}

pub(super) async fn events(connection: Connection, since: Option<&str>, json: bool) -> Outcome {
    let since = since.map(|text| render::parse_time(text, now_unix_ns())).transpose().map_err(CliError::Usage)?;
    let show = |event: pb::Event| {
        let text = if json { render::json_line(&render::event_json(&event)) } else { render::event(&event) };
        print(&text)?;
        Ok(true)
    };
    connection.events(since.unwrap_or(0), show).await?;
    Ok(0)
}

pub(super) async fn version(connection: Connection, json: bool) -> Outcome {
    let server = connection.version(&pb::VersionRequest::new()).await;
    let theirs = server.as_ref().ok();
    if json {
        let value = serde_json::json!({
            "client": { "version": env!("CARGO_PKG_VERSION") },
            "server": theirs.map(|v| serde_json::json!({
                "version": v.version, "pid": v.pid, "record_schema": v.record_schema,
            })),
        });
        print(&render::json(&value))?;
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
    print(&if json { render::json(&render::info_json(&info)) } else { render::info(&info, now_unix_ns()) })?;
    Ok(0)
}

pub(super) async fn doctor(connection: Connection, json: bool) -> Outcome {
    let info = connection.info(&pb::InfoRequest::new()).await?;
    let report = info.restore.get_or_default();
    if json {
        print(&render::json(&render::report_json(report)))?;
    } else {
        print(&render::report(report))?;
    }
    let sound = |class: &str| matches!(class, "reattached" | "exited-while-away" | "foreign" | "at-rest");
    let healthy = report.containers.iter().all(|c| sound(&c.class)) && !info.shim.is_empty();
    if info.shim.is_empty() {
        eprintln!("holdfast: holdfastd finds no {}: new containers cannot be made", crate::config::SHIM);
    }
    Ok(u8::from(!healthy))
}
