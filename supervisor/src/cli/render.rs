//! Answers as text: tables for people, JSON for programs. Pure; the time is an argument.

use std::time::{Duration, UNIX_EPOCH};

use comfy_table::{ContentArrangement, Table, presets};
use holdfast_proto::supervisor as pb;
use serde_json::{Value, json};

use crate::names::short;

/// Longest command that a table shows whole.
const COMMAND_WIDTH: usize = 32;

fn plain_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table
}

/// Lines without the blanks that a table leaves at both ends of each.
fn lines(table: &Table) -> String {
    table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned() + "\n").collect()
}

/// A span in the largest unit that says enough.
pub(super) fn span(ns: i64) -> String {
    let seconds = u64::try_from(ns / 1_000_000_000).unwrap_or(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A time for people and for programs; empty for none.
pub(super) fn timestamp(unix_ns: i64) -> String {
    match u64::try_from(unix_ns) {
        Ok(0) | Err(_) => String::new(),
        Ok(ns) => humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(ns)).to_string(),
    }
}

/// A time given as RFC 3339, or as a span before now.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse_time(text: &str, now_unix_ns: i64) -> Result<i64, String> {
    let ns = |d: Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(time.duration_since(UNIX_EPOCH).map_or(0, ns));
    }
    match humantime::parse_duration(text) {
        Ok(span) => Ok(now_unix_ns.saturating_sub(ns(span))),
        Err(_) => Err(format!("{text:?} is not a time (2026-01-31T12:00:00Z) or a span (10m)")),
    }
}

fn status(c: &pb::Container, now_unix_ns: i64) -> String {
    let since = |then: i64| if then == 0 { "?".to_owned() } else { span(now_unix_ns.saturating_sub(then)) };
    let text = match c.status.as_str() {
        "running" | "paused" | "stopping" if c.pid != 0 => {
            let up = format!("up {}", since(c.started_at_unix_ns));
            if c.status == "running" { up } else { format!("{up} ({})", c.status) }
        }
        "foreign" if c.pid != 0 => format!("up {}", since(c.started_at_unix_ns)),
        "foreign" => format!("exited ({})", c.exit_status),
        "exited" => format!("exited ({}) {} ago", c.exit_status, since(c.exited_at_unix_ns)),
        "restarting" => format!("restarting (last {})", c.exit_status),
        other => other.to_owned(),
    };
    match c.status.as_str() {
        "unreadable" | "incompatible" | "unresponsive" => format!("{text}: {}", c.reason),
        "running" | "exited" if !c.reason.is_empty() => format!("{text}: {}", first_line(&c.reason)),
        _ => text,
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn command(c: &pb::Container, truncate: bool) -> String {
    let whole = c.command.join(" ");
    match whole.char_indices().nth(COMMAND_WIDTH) {
        Some((at, _)) if truncate => format!("{}…", &whole[..at]),
        _ => whole,
    }
}

/// The table of `ps`.
pub(super) fn table(list: &[pb::Container], now_unix_ns: i64, truncate: bool, managers: bool) -> String {
    let mut header = vec!["CONTAINER ID", "NAME", "COMMAND", "CREATED", "STATUS", "PID"];
    if managers {
        header.extend(["NAMESPACE", "MANAGER"]);
    }
    let mut table = plain_table(&header);
    for c in list {
        let id = if truncate { short(&c.id) } else { &c.id };
        let created = match c.created_at_unix_ns {
            0 => "-".to_owned(),
            then => format!("{} ago", span(now_unix_ns.saturating_sub(then))),
        };
        let pid = if c.pid == 0 { "-".to_owned() } else { c.pid.to_string() };
        let mut row = vec![id.to_owned(), c.name.clone(), command(c, truncate), created, status(c, now_unix_ns), pid];
        if managers {
            row.extend([c.namespace.clone(), c.manager.clone()]);
        }
        table.add_row(row);
    }
    lines(&table)
}

/// A value over several lines.
pub(super) fn json(value: &Value) -> String {
    format!("{value:#}\n")
}

/// A value on one line, for streams of them.
pub(super) fn json_line(value: &Value) -> String {
    format!("{value}\n")
}

/// One container.
pub(super) fn container(c: &pb::Container) -> Value {
    json!({
        "namespace": c.namespace,
        "id": c.id,
        "name": c.name,
        "manager": c.manager,
        "command": c.command,
        "status": c.status,
        "pid": c.pid,
        "shim_pid": c.shim_pid,
        "created_at": timestamp(c.created_at_unix_ns),
        "started_at": timestamp(c.started_at_unix_ns),
        "exited_at": timestamp(c.exited_at_unix_ns),
        "exit_status": (c.exited_at_unix_ns != 0).then_some(c.exit_status),
        "reason": c.reason,
        "restart": c.restart,
        "restarts": c.restarts,
        "labels": c.labels.iter().collect::<std::collections::BTreeMap<_, _>>(),
    })
}

/// All about one container.
pub(super) fn inspection(i: &pb::InspectResponse) -> Value {
    let mut value = container(i.container.get_or_default());
    value["log_path"] = json!(i.log_path);
    value["stdin"] = json!(i.stdin);
    value["terminal"] = json!(i.terminal);
    value["bundle"] = json!(i.bundle);
    value["shim_address"] = json!(i.shim_address);
    value["stop_signal"] = json!(i.stop_signal);
    value["stop_timeout"] = json!(i.stop_timeout);
    value["remove"] = json!(i.remove);
    value["spec"] = serde_json::from_str(&i.spec_json).unwrap_or(Value::Null);
    value
}

/// How something ended.
pub(super) fn ended(w: &pb::WaitResponse) -> Value {
    json!({
        "id": w.id,
        "exit_status": w.exit_status,
        "exited_at": timestamp(w.exited_at_unix_ns),
        "reason": w.reason,
    })
}

/// One event, for people.
pub(super) fn event(e: &pb::Event) -> String {
    let mut text = format!("{} {:<10} {}", timestamp(e.time_unix_ns), e.kind, short(&e.id));
    if !e.exec_id.is_empty() {
        text += &format!(" exec={}", e.exec_id);
    }
    if e.pid != 0 {
        text += &format!(" pid={}", e.pid);
    }
    if matches!(e.kind.as_str(), "exit" | "exec-exit" | "delete") {
        text += &format!(" status={}", e.exit_status);
    }
    if !e.detail.is_empty() {
        text += &format!(" ({})", e.detail);
    }
    text + "\n"
}

/// One event.
pub(super) fn event_json(e: &pb::Event) -> Value {
    json!({
        "time": timestamp(e.time_unix_ns),
        "namespace": e.namespace,
        "id": e.id,
        "kind": e.kind,
        "exec_id": e.exec_id,
        "pid": e.pid,
        "exit_status": e.exit_status,
        "detail": e.detail,
    })
}

/// The report of a restore, for people.
pub(super) fn report(r: &pb::RestoreReport) -> String {
    let mut text = format!(
        "restore at {} took {:.1} ms, {} found\n",
        timestamp(r.at_unix_ns),
        Duration::from_nanos(r.took_ns).as_secs_f64() * 1000.0,
        r.containers.len()
    );
    if !r.containers.is_empty() {
        let mut table = plain_table(&["CLASS", "CONTAINER ID", "NAME", "PID", "DETAIL"]);
        for c in &r.containers {
            let pid = if c.pid == 0 { "-".to_owned() } else { c.pid.to_string() };
            table.add_row([c.class.as_str(), short(&c.id), &c.name, &pid, &c.detail]);
        }
        text += &lines(&table);
    }
    text
}

/// The report of a restore.
pub(super) fn report_json(r: &pb::RestoreReport) -> Value {
    let one = |c: &pb::Restored| {
        json!({
            "namespace": c.namespace, "id": c.id, "name": c.name, "class": c.class, "detail": c.detail, "pid": c.pid,
        })
    };
    json!({
        "at": timestamp(r.at_unix_ns),
        "took_ns": r.took_ns,
        "containers": r.containers.iter().map(one).collect::<Vec<_>>(),
    })
}

/// How the supervisor is set up, for people.
pub(super) fn info(i: &pb::InfoResponse, now_unix_ns: i64) -> String {
    let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (key, value) in [
        ("holdfastd", format!("{} (pid {}, up {})", i.version, i.pid, span(now_unix_ns - i.started_at_unix_ns))),
        ("containers", format!("{} running, {} in all", i.running, i.total)),
        ("run directory", i.run_dir.clone()),
        ("state directory", i.state_dir.clone()),
        ("socket", i.socket.clone()),
        ("shim", or(&i.shim, "not found")),
        ("OCI runtime", or(&i.runtime, "the shim's choice")),
    ] {
        table.add_row([key, &value]);
    }
    format!("{}\n{}", lines(&table), report(i.restore.get_or_default()))
}

/// How the supervisor is set up.
pub(super) fn info_json(i: &pb::InfoResponse) -> Value {
    json!({
        "version": i.version,
        "pid": i.pid,
        "started_at": timestamp(i.started_at_unix_ns),
        "run_dir": i.run_dir,
        "state_dir": i.state_dir,
        "socket": i.socket,
        "shim": i.shim,
        "runtime": i.runtime,
        "running": i.running,
        "total": i.total,
        "restore": report_json(i.restore.get_or_default()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn one(status: &str) -> pb::Container {
        pb::Container {
            id: "0123456789abcdef".into(),
            name: "web".into(),
            command: vec!["/counter".into(), "run".into()],
            status: status.into(),
            pid: if status == "running" { 42 } else { 0 },
            created_at_unix_ns: SECOND,
            started_at_unix_ns: SECOND,
            exited_at_unix_ns: if status == "exited" { 31 * SECOND } else { 0 },
            exit_status: 143,
            ..Default::default()
        }
    }

    #[test]
    fn the_table_is_aligned_and_short() {
        let text = table(&[one("running"), one("exited")], 91 * SECOND, true, false);
        let expected = "\
CONTAINER ID  NAME  COMMAND       CREATED    STATUS                PID
0123456789ab  web   /counter run  1m30s ago  up 1m30s              42
0123456789ab  web   /counter run  1m30s ago  exited (143) 1m00s ago  -
";
        let squeeze = |t: &str| t.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(&text), squeeze(expected));
        assert!(text.lines().all(|l| !l.starts_with(' ') && !l.ends_with(' ')));
    }

    #[test]
    fn what_is_wrong_is_said_in_the_status() {
        let broken = pb::Container { status: "unreadable".into(), reason: "no JSON".into(), ..one("running") };
        assert!(table(&[broken], 0, true, false).contains("unreadable: no JSON"));
    }

    #[test]
    fn a_long_command_is_cut_between_characters() {
        let long = pb::Container { command: vec!["ä".repeat(50)], ..one("running") };
        assert_eq!(command(&long, true), "ä".repeat(COMMAND_WIDTH) + "…");
        assert_eq!(command(&long, false), "ä".repeat(50));
    }

    #[test]
    fn spans_in_two_units_at_most() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m01s"), (3661, "1h01m"), (90_000, "1d01h")] {
            assert_eq!(span(seconds * SECOND), text);
        }
        assert_eq!(span(-5 * SECOND), "0s", "a clock that was set back");
    }

    #[test]
    fn times_are_points_or_spans() {
        assert_eq!(parse_time("1970-01-01T00:00:05Z", 0), Ok(5 * SECOND));
        assert_eq!(parse_time("1m", 100 * SECOND), Ok(40 * SECOND));
        assert!(parse_time("yesterday", 0).unwrap_err().contains("yesterday"));
        assert_eq!(timestamp(5 * SECOND), "1970-01-01T00:00:05.000000000Z");
        assert_eq!(timestamp(0), "");
    }

    #[test]
    fn json_has_no_status_for_what_runs() {
        assert_eq!(container(&one("running"))["exit_status"], Value::Null);
        assert_eq!(container(&one("exited"))["exit_status"], 143);
    }

    #[test]
    fn an_event_is_one_line() {
        let exit = pb::Event { id: "abc".into(), kind: "exit".into(), exit_status: 7, pid: 3, ..Default::default() };
        assert_eq!(event(&exit).trim(), "exit       abc pid=3 status=7");
    }
}
