//! Answers as text: tables for people, JSON for programs (what is in it: [`super::schema`]). Pure; the time is an argument.

use std::time::{Duration, UNIX_EPOCH};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use holdfast_proto::supervisor as pb;
use serde::Serialize;

use super::say::{self, BAD, GOOD, HEAD, ODD};
use super::schema::Info;
use crate::names::short;

/// Longest command that a table shows whole.
const COMMAND_WIDTH: usize = 32;

pub(super) fn plain_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table
}

/// Lines without the blanks that a table leaves at both ends of each.
pub(super) fn lines(table: &Table) -> String {
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
        // Its shim died, and nobody knows when it ended.
        "exited" if c.exited_at_unix_ns == 0 => format!("exited ({})", c.exit_status),
        "exited" => format!("exited ({}) {} ago", c.exit_status, since(c.exited_at_unix_ns)),
        "restarting" => format!("restarting (last {})", c.exit_status),
        "ready" => format!("ready {}", since(c.started_at_unix_ns)),
        "not-ready" if c.exited_at_unix_ns != 0 => format!("not-ready {}", since(c.exited_at_unix_ns)),
        other => other.to_owned(),
    };
    match c.status.as_str() {
        "unreadable" | "incompatible" | "unresponsive" => format!("{text}: {}", c.reason),
        "running" | "exited" | "ready" | "not-ready" if !c.reason.is_empty() => {
            format!("{text}: {}", first_line(&c.reason))
        }
        _ => text,
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn command(c: &pb::Container, truncate: bool) -> String {
    if c.sandbox {
        return "(sandbox)".to_owned();
    }
    let whole = c.command.join(" ");
    match whole.char_indices().nth(COMMAND_WIDTH) {
        Some((at, _)) if truncate => format!("{}…", &whole[..at]),
        _ => whole,
    }
}

/// What a table of containers shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    /// Ids and commands are shortened.
    pub(super) truncate: bool,
    /// Whose they are.
    pub(super) managers: bool,
}

/// The table of `ps`. With a `width` it is made to fit by breaking cells into lines, and coloured.
pub(super) fn table(
    list: &[pb::Container],
    now_unix_ns: i64,
    Columns { truncate, managers }: Columns,
    width: Option<u16>,
) -> String {
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
    let Some(width) = width else { return lines(&table) };
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    // What is copied to another command line stays in one piece.
    for whole in [ID_COLUMN, PID_COLUMN] {
        if let Some(column) = table.column_mut(whole) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    coloured(&lines(&table), list)
}

/// The places of two columns of [`table`].
const ID_COLUMN: usize = 0;
const PID_COLUMN: usize = 5;

/// A table with its head and the first words of states in colours; the table is laid out before, so that nothing moves.
fn coloured(table: &str, list: &[pb::Container]) -> String {
    let (head, rows) = table.split_once('\n').unwrap_or((table, ""));
    let mut text = say::styled(HEAD, head) + "\n";
    let mut list = list.iter().peekable();
    for line in rows.lines() {
        // A row may have several lines; its first one begins with the id.
        let container = list.next_if(|c| !line.is_empty() && line.starts_with(short(&c.id)));
        let word = container.and_then(|c| Some((line.rfind(word(c))?, word(c), style(c)?)));
        match word {
            Some((at, word, style)) => {
                text += &format!("{}{}{}\n", &line[..at], say::styled(style, word), &line[at + word.len()..]);
            }
            None => text += &format!("{line}\n"),
        }
    }
    text
}

/// The first word of what [`status`] says.
fn word(c: &pb::Container) -> &str {
    match c.status.as_str() {
        "running" | "paused" | "stopping" if c.pid != 0 => "up",
        other => other.split(' ').next().unwrap_or_default(),
    }
}

fn style(c: &pb::Container) -> Option<anstyle::Style> {
    match c.status.as_str() {
        "unreadable" | "incompatible" | "unresponsive" => Some(BAD),
        "paused" | "restarting" | "stopping" => Some(ODD),
        "exited" if c.exit_status != 0 => Some(ODD),
        "running" | "ready" if c.reason.is_empty() => Some(GOOD),
        "running" | "ready" => Some(ODD),
        _ => None,
    }
}

/// Anything over several lines.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("what we print has text for keys") + "\n"
}

/// Anything on one line, for streams of them.
pub(super) fn json_line(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("what we print has text for keys") + "\n"
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

/// The report of a restore, for people.
pub(super) fn report(r: &pb::RestoreReport) -> String {
    let mut text = match r.at_unix_ns {
        0 => format!("restore is under way, {} found so far\n", r.containers.len()),
        at => format!(
            "restore at {} took {:.1} ms, {} found\n",
            timestamp(at),
            Duration::from_nanos(r.took_ns).as_secs_f64() * 1000.0,
            r.containers.len()
        ),
    };
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

/// How the supervisor is set up, for people.
pub(super) fn info(i: &Info<'_>, now_unix_ns: i64, started_at_unix_ns: i64, restore: &pb::RestoreReport) -> String {
    let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
    let states: Vec<String> = i.states.iter().map(|(state, number)| format!("{number} {state}")).collect();
    let runtimes: Vec<String> = i.runtimes.iter().map(|tool| format!("{} {}", tool.name, tool.version)).collect();
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (key, value) in [
        ("holdfast", i.client_version.to_owned()),
        ("holdfastd", format!("{} (pid {}, up {})", i.version, i.pid, span(now_unix_ns - started_at_unix_ns))),
        ("containers", format!("{} running, {} in all{}", i.running, i.total, brackets(&states.join(", ")))),
        ("run directory", i.run_dir.to_owned()),
        ("state directory", i.state_dir.to_owned()),
        ("socket", i.socket.to_owned()),
        ("event socket", i.event_socket.to_owned()),
        ("metrics", or(i.metrics_listen, "not served")),
        ("live-restore", if i.live_restore { "on" } else { "off" }.to_owned()),
        ("log driver", i.log_driver.to_owned()),
        ("shim", or(i.shim, "not found")),
        ("OCI runtime", or(i.runtime, "the shim's choice")),
        ("OCI runtimes found", or(&runtimes.join(", "), "none")),
        ("kernel", i.kernel.to_owned()),
        ("control groups", i.cgroup.to_owned()),
    ] {
        table.add_row([key, &value]);
    }
    format!("{}\n{}", lines(&table), report(restore))
}

fn brackets(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const SHORT: Columns = Columns { truncate: true, managers: false };

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
        let text = table(&[one("running"), one("exited")], 91 * SECOND, SHORT, None);
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
    fn a_table_fits_the_terminal_and_loses_nothing() {
        let odd = pb::Container { reason: "killed for want of memory".into(), ..one("exited") };
        let list = [one("running"), odd];
        let text = anstream::adapter::strip_str(&table(&list, 91 * SECOND, SHORT, Some(70))).to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 70), "{text}");
        assert!(text.matches("0123456789ab").count() == 2 && text.contains("42"), "{text}");
        let words: Vec<&str> = text.split_whitespace().collect();
        for word in ["/counter", "killed", "for", "want", "of", "memory"] {
            assert!(words.contains(&word), "{word}: {text}");
        }
        let piped = table(&list, 91 * SECOND, SHORT, None);
        assert!(piped.contains("exited (143) 1m00s ago: killed for want of memory"), "{piped}");
    }

    #[test]
    fn states_are_coloured_and_nothing_moves() {
        let list = [one("running"), one("exited")];
        let (plain, coloured) = (table(&list, 91 * SECOND, SHORT, None), table(&list, 91 * SECOND, SHORT, Some(200)));
        assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), plain);
        assert!(coloured.contains(&say::styled(GOOD, "up")) && coloured.contains(&say::styled(ODD, "exited")));
    }

    #[test]
    fn what_is_wrong_is_said_in_the_status() {
        let broken = pb::Container { status: "unreadable".into(), reason: "no JSON".into(), ..one("running") };
        assert!(table(&[broken], 0, SHORT, None).contains("unreadable: no JSON"));
    }

    #[test]
    fn a_sandbox_is_shown_with_its_state_and_since_when() {
        let sandbox = |status: &str| pb::Container { sandbox: true, status: status.into(), ..one("exited") };
        for (shown, text) in [
            (sandbox("ready"), "(sandbox) 1m30s ago ready 1m30s"),
            (sandbox("not-ready"), "(sandbox) 1m30s ago not-ready 1m00s"),
            (pb::Container { exited_at_unix_ns: 0, ..sandbox("not-ready") }, "(sandbox) 1m30s ago not-ready -"),
        ] {
            let table = table(&[shown], 91 * SECOND, SHORT, None);
            let words = table.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.contains(text), "{table}");
        }
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
    fn an_event_is_one_line() {
        let exit = pb::Event { id: "abc".into(), kind: "exit".into(), exit_status: 7, pid: 3, ..Default::default() };
        assert_eq!(event(&exit).trim(), "exit       abc pid=3 status=7");
    }
}
