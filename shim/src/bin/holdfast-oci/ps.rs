//! `ps`: the processes of a container, by their pids in our pid namespace.

use std::process::Command;

use crate::cli::{Global, ListFormat, PsArgs};
use crate::error::Failure;
use crate::record::RunRoot;

/// Prints them, as JSON or as the table that ps(1) makes of them.
///
/// # Errors
/// When there is no such container, or ps(1) cannot be run.
pub(crate) fn run(global: &Global, args: &PsArgs) -> Result<u8, Failure> {
    let container = RunRoot::new(&global.root).load(&args.id)?;
    let pids = container.record.cgroup.pids();
    match args.format {
        ListFormat::Json => println!("{}", json(&pids)),
        ListFormat::Table => print!("{}", table(&args.options, &pids)?),
    }
    Ok(0)
}

/// An empty list is `null`, as runc writes it.
fn json(pids: &[i32]) -> String {
    if pids.is_empty() { "null".to_owned() } else { serde_json::json!(pids).to_string() }
}

fn table(options: &[String], pids: &[i32]) -> Result<String, Failure> {
    let options: Vec<&str> =
        if options.is_empty() { vec!["-ef"] } else { options.iter().map(String::as_str).collect() };
    let output = Command::new("ps").args(options).output().map_err(Failure::file("run", "ps"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    select(&text, pids).ok_or(Failure::Argument {
        what: "options of ps",
        value: text.lines().next().unwrap_or_default().to_owned(),
        reason: "the output has no column PID",
    })
}

/// The heading and the lines of these pids.
fn select(text: &str, pids: &[i32]) -> Option<String> {
    let mut lines = text.lines();
    let heading = lines.next()?;
    let column = heading.split_ascii_whitespace().position(|name| name == "PID")?;
    let ours = |line: &&str| {
        let pid = line.split_ascii_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    Some(std::iter::once(heading).chain(lines.filter(ours)).map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_processes_are_null() {
        assert_eq!(json(&[]), "null");
        assert_eq!(json(&[1, 22]), "[1,22]");
    }

    #[test]
    fn the_table_keeps_the_heading_and_our_lines() {
        let text = "UID  PID CMD\nroot   1 init\nroot  17 sh\n";
        assert_eq!(select(text, &[17]).unwrap(), "UID  PID CMD\nroot  17 sh\n");
        assert_eq!(select("UID CMD\n", &[17]), None);
    }
}
