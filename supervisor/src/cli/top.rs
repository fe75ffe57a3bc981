//! `holdfast top`: the processes of a container. Which ones they are its shim knows; what they do is read from `/proc` here,
//! in a process that may wait for the kernel while the supervisor must not.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use holdfast_proto::supervisor as pb;
use procfs::Current;
use procfs::process::{Process, Stat};
use serde::Serialize;

use super::connection::Connection;
use super::{Outcome, print, render};

/// How long the command lines of all processes may take. To read one takes a lock of that process, which the kernel may
/// hold for as long as a disk or a server is away.
const PATIENCE: Duration = Duration::from_millis(500);

/// One process, as `--json` gives it, in an array of them.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    pid: u32,
    /// The exec of which it is the first process, or empty.
    exec_id: String,
    /// As the machine calls it; its number, if it has no name there.
    user: String,
    uid: u32,
    /// The share of a CPU that it has had since it was started.
    cpu_percent: f64,
    /// The time that it has had on all CPUs.
    cpu_seconds: f64,
    /// As proc_pid_stat(5) has it, one letter.
    state: char,
    /// The command line, or the name in brackets if it has none or the kernel does not give it in time.
    command: String,
}

/// Lists the processes of a container.
pub(super) async fn run(connection: Connection, container: &str, json: bool) -> Outcome {
    let request = pb::ProcessesRequest { ref_: container.to_owned(), ..Default::default() };
    let processes = connection.processes(&request).await?.processes;
    let until = Instant::now() + PATIENCE;
    // One that has ended meanwhile, or that waits to be reaped as another user's, is not there any more.
    let rows: Vec<Row> = processes.iter().filter_map(|process| row(process, until)).collect();
    if json {
        print(&render::json(&rows))?;
    } else {
        print(&table(&rows))?;
    }
    Ok(0)
}

fn row(process: &pb::Process, until: Instant) -> Option<Row> {
    let pid = i32::try_from(process.pid).ok()?;
    let found = Process::new(pid).ok()?;
    let (stat, uid) = (found.stat().ok()?, found.uid().ok()?);
    let seconds = ticks(stat.utime + stat.stime);
    let age = procfs::Uptime::current().ok().map_or(0.0, |uptime| uptime.uptime) - ticks(stat.starttime);
    Some(Row {
        pid: process.pid,
        exec_id: process.exec_id.clone(),
        user: user(uid),
        uid,
        cpu_percent: share(seconds, age),
        cpu_seconds: seconds,
        state: stat.state,
        command: command(found, &stat, until),
    })
}

#[allow(clippy::cast_precision_loss)] // a hundred years of ticks fit
fn ticks(ticks: u64) -> f64 {
    ticks as f64 / procfs::ticks_per_second() as f64
}

fn share(seconds: f64, age: f64) -> f64 {
    if age > 0.0 { seconds / age * 100.0 } else { 0.0 }
}

fn user(uid: u32) -> String {
    let known = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    known.map_or_else(|| uid.to_string(), |user| user.name)
}

fn command(process: Process, stat: &Stat, until: Instant) -> String {
    let name = format!("[{}]", stat.comm);
    if stat.state == 'Z' {
        return format!("{name} <defunct>");
    }
    let (sender, receiver) = mpsc::channel();
    // One that hangs is left behind; it ends with this program.
    std::thread::spawn(move || drop(sender.send(process.cmdline())));
    let words = receiver.recv_timeout(until.saturating_duration_since(Instant::now()));
    match words {
        Ok(Ok(words)) if !words.is_empty() => words.join(" "),
        _ => name,
    }
}

/// As ps(1) writes it.
fn time(seconds: f64) -> String {
    let seconds = Duration::from_secs_f64(seconds.max(0.0)).as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn table(rows: &[Row]) -> String {
    let mut table = render::plain_table(&["PID", "USER", "%CPU", "TIME", "COMMAND"]);
    for row in rows {
        let percent = format!("{:.1}", row.cpu_percent);
        // What a process calls itself may hold anything.
        let command: String = row.command.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        table.add_row([row.pid.to_string(), row.user.clone(), percent, time(row.cpu_seconds), command]);
    }
    render::lines(&table)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn one(command: &str) -> Row {
        Row {
            pid: 42,
            exec_id: String::new(),
            user: "root".into(),
            uid: 0,
            cpu_percent: 12.34,
            cpu_seconds: 3_725.9,
            state: 'S',
            command: command.into(),
        }
    }

    #[test]
    fn the_table_is_that_of_ps() {
        let text = table(&[one("sleep 1000")]);
        let words: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["PID", "USER", "%CPU", "TIME", "COMMAND"]);
        assert_eq!(words[1], ["42", "root", "12.3", "01:02:05", "sleep", "1000"]);
    }

    #[test]
    fn a_process_cannot_write_to_the_terminal_by_its_name() {
        assert!(table(&[one("evil\x1b[2J\nname")]).contains("evil?[2J?name"));
    }

    #[test]
    fn the_schema_of_a_process_is_fixed() {
        let expected = serde_json::json!({
            "pid": 42, "exec_id": "", "user": "root", "uid": 0, "cpu_percent": 12.34, "cpu_seconds": 3725.9, "state": "S",
            "command": "x",
        });
        assert_eq!(serde_json::to_value(one("x")).unwrap(), expected);
    }

    #[test]
    fn this_process_is_described_and_one_that_is_gone_is_not() {
        let until = Instant::now() + Duration::from_secs(10);
        let process = |pid| pb::Process { pid, ..Default::default() };
        let row = row(&process(std::process::id()), until).unwrap();
        assert_eq!(row.uid, nix::unistd::geteuid().as_raw());
        assert!(row.command.contains("holdfast") && row.cpu_percent >= 0.0, "{row:?}");
        assert_eq!(super::row(&process(u32::MAX), until), None);
        assert_eq!(super::row(&process(0), until), None);
        let late = Process::new(i32::try_from(std::process::id()).unwrap()).unwrap();
        let stat = late.stat().unwrap();
        assert!(!command(late, &stat, until).starts_with('['));
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        assert!((share(1.0, 2.0) - 50.0).abs() < f64::EPSILON);
        assert!(share(0.0, 0.0) == 0.0 && share(1.0, -1.0) == 0.0);
    }
}
