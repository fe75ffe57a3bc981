//! `holdfast stats`: what containers use, again and again. The time that a container has had on the CPUs only ever grows, and
//! so does the clock that the figures carry, whoever serves them: a restart of the supervisor is a pause and no more.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use holdfast_proto::supervisor as pb;
use serde::Serialize;
use ttrpc::Code;

use super::args::StatsArgs;
use super::connection::Connection;
use super::{CliError, FAILED, Outcome, render, say};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// What a cell shows of which nothing is known.
const UNKNOWN: &str = "-";

/// Cursor to the upper left corner; the rest of a line; the rest of the screen.
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K";
const REST_OF_SCREEN: &str = "\x1b[J";

/// One container's figures, as `--json` gives them: one object on a line. What is not known, or not limited, is null.
#[derive(Debug, Serialize)]
struct Line<'a> {
    namespace: &'a str,
    id: &'a str,
    name: &'a str,
    manager: &'a str,
    /// Of one CPU, so that two that are busy make 200.
    cpu_percent: Option<f64>,
    cpu_ns: Option<u64>,
    memory_bytes: Option<u64>,
    memory_in_use_bytes: Option<u64>,
    memory_limit_bytes: Option<u64>,
    block_read_bytes: Option<u64>,
    block_written_bytes: Option<u64>,
    pids: Option<u64>,
    pids_limit: Option<u64>,
    /// Why there are no figures; empty when there are.
    unknown: &'a str,
}

/// The last look at each container: when, and how much time it had had.
#[derive(Default)]
struct Before(HashMap<(String, String), (u64, u64)>);

impl Before {
    /// The share of a CPU that it has had since the last look; remembers this one.
    fn percent(&mut self, now: &pb::ContainerStats) -> Option<f64> {
        let (at, cpu) = (now.taken_at_monotonic_ns, now.cpu_ns?);
        let key = (now.namespace.clone(), now.id.clone());
        let (at_before, cpu_before) = self.0.insert(key, (at, cpu))?;
        // It was started again meanwhile, in a new control group.
        let used = cpu.checked_sub(cpu_before)?;
        let passed = at.checked_sub(at_before).filter(|passed| *passed != 0)?;
        Some(Duration::from_nanos(used).as_secs_f64() / Duration::from_nanos(passed).as_secs_f64() * 100.0)
    }
}

/// Shows the figures until it is interrupted, or once.
pub(super) async fn run(connection: Connection, args: &StatsArgs, json: bool) -> Outcome {
    let request =
        pb::StatsRequest { refs: args.containers.clone(), all_managers: args.all_managers, ..Default::default() };
    let machine = crate::sys::proc::memory_of_machine();
    let live = std::io::stdout().is_terminal() && !json && !args.no_stream;
    let mut before = Before::default();
    // The share of the CPUs is that of a span, which the first look begins.
    let mut list = connection.stats(&request).await?.containers;
    if let Some(missing) = list.iter().find(|one| one.missing) {
        return Err(CliError::Refused {
            text: missing.unknown.clone(),
            code: Code::NOT_FOUND,
            exit: FAILED,
            next: None,
        });
    }
    for one in &list {
        before.percent(one);
    }
    if live {
        say::stream(&format!("\x1b[2J{}", screen(&table(&list, &HashMap::new(), machine, !args.no_trunc))))?;
    }
    loop {
        tokio::time::sleep(INTERVAL).await;
        list = connection.stats(&request).await?.containers;
        let key = |one: &pb::ContainerStats| (one.namespace.clone(), one.id.clone());
        let percent: HashMap<_, _> = list.iter().filter_map(|one| Some((key(one), before.percent(one)?))).collect();
        let text = if json {
            list.iter().map(|one| render::json_line(&line(one, percent.get(&key(one)).copied()))).collect()
        } else {
            let text = table(&list, &percent, machine, !args.no_trunc);
            if live { screen(&text) } else { text }
        };
        let is_read = say::stream(&text)?;
        // Of the containers that were named none is left.
        let over = !args.containers.is_empty() && list.iter().all(|one| one.missing);
        if args.no_stream || over || !is_read {
            return Ok(0);
        }
    }
}

fn line(one: &pb::ContainerStats, cpu_percent: Option<f64>) -> Line<'_> {
    Line {
        namespace: &one.namespace,
        id: &one.id,
        name: if one.name.is_empty() { &one.ref_ } else { &one.name },
        manager: &one.manager,
        cpu_percent,
        cpu_ns: one.cpu_ns,
        memory_bytes: one.memory_bytes,
        memory_in_use_bytes: one.memory_in_use_bytes,
        memory_limit_bytes: one.memory_limit_bytes,
        block_read_bytes: one.block_read_bytes,
        block_written_bytes: one.block_written_bytes,
        pids: one.pids,
        pids_limit: one.pids_limit,
        unknown: &one.unknown,
    }
}

/// Over what a terminal shows already.
fn screen(table: &str) -> String {
    format!("{HOME}{}{REST_OF_SCREEN}", table.replace('\n', &format!("{REST_OF_LINE}\n")))
}

fn table(
    list: &[pb::ContainerStats],
    percent: &HashMap<(String, String), f64>,
    machine: Option<u64>,
    truncate: bool,
) -> String {
    let header = ["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "BLOCK I/O", "PIDS"];
    let mut table = render::plain_table(&header);
    for one in list {
        let line = line(one, percent.get(&(one.namespace.clone(), one.id.clone())).copied());
        let or = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.to_owned());
        let share = |share: f64| format!("{share:.2}%");
        // As people know it from elsewhere: a container without a limit has the machine's.
        let limit = line.memory_limit_bytes.into_iter().chain(machine).min();
        let memory = line.memory_in_use_bytes.map(|used| match limit {
            Some(limit) => format!("{} / {}", size(used), size(limit)),
            None => size(used),
        });
        let memory_share = line.memory_in_use_bytes.zip(limit).map(|(used, limit)| share(ratio(used, limit) * 100.0));
        let block = line.block_read_bytes.zip(line.block_written_bytes);
        let id = if truncate { crate::names::short(line.id) } else { line.id };
        table.add_row([
            or(Some(id.to_owned()).filter(|id| !id.is_empty())),
            line.name.to_owned(),
            or(line.cpu_percent.map(share)),
            or(memory),
            or(memory_share),
            or(block.map(|(read, written)| format!("{} / {}", size(read), size(written)))),
            or(line.pids.map(|pids| pids.to_string())),
        ]);
    }
    render::lines(&table)
}

#[allow(clippy::cast_precision_loss)] // it is to be read, not to be calculated with
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

/// A size in the largest unit in which it is one or more, with four digits at most.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let exponent = (u64::BITS - 1 - bytes.leading_zeros()) / 10;
    let value = ratio(bytes, 1 << (10 * exponent));
    let unit = UNITS[exponent as usize - 1];
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn one(at: u64, cpu: u64) -> pb::ContainerStats {
        pb::ContainerStats {
            namespace: "default".into(),
            id: "0123456789abcdef".into(),
            name: "web".into(),
            manager: "holdfastd".into(),
            taken_at_monotonic_ns: at,
            cpu_ns: Some(cpu),
            memory_bytes: Some(6 << 20),
            memory_in_use_bytes: Some(5 << 20),
            block_read_bytes: Some(0),
            block_written_bytes: Some(1536),
            pids: Some(3),
            ..Default::default()
        }
    }

    #[test]
    fn the_share_of_the_cpus_is_that_since_the_last_look() {
        let mut before = Before::default();
        assert_eq!(before.percent(&one(1_000, 500)), None, "nothing to compare with");
        assert_eq!(before.percent(&one(3_000, 1_500)), Some(50.0));
        assert_eq!(before.percent(&one(4_000, 3_500)), Some(200.0), "two CPUs");
        assert_eq!(before.percent(&one(5_000, 10)), None, "another run of it");
        assert_eq!(before.percent(&one(5_000, 20)), None, "no time has passed");
        assert_eq!(before.percent(&pb::ContainerStats { cpu_ns: None, ..one(6_000, 0) }), None);
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let silent = pb::ContainerStats {
            name: "stuck".into(),
            id: "fedcba".into(),
            unknown: "its shim does not answer".into(),
            ..Default::default()
        };
        let limited = pb::ContainerStats { memory_limit_bytes: Some(10 << 20), ..one(1, 1) };
        let percent = HashMap::from([(("default".to_owned(), limited.id.clone()), 12.345)]);
        let text = table(&[limited, silent], &percent, Some(1 << 30), true);
        let words = |n: usize| text.lines().nth(n).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(1), "0123456789ab web 12.35% 5.00MiB / 10.0MiB 50.00% 0B / 1.50KiB 3");
        assert_eq!(words(2), "fedcba stuck - - - - -");
    }

    #[test]
    fn without_a_limit_the_machines_memory_is_one() {
        let text = table(&[one(1, 1)], &HashMap::new(), Some(50 << 20), true);
        assert!(text.contains("5.00MiB / 50.0MiB") && text.contains("10.00%"), "{text}");
        assert_eq!(line(&one(1, 1), None).memory_limit_bytes, None, "programs are told the truth");
    }

    #[test]
    fn the_schema_of_a_line_is_fixed() {
        let value = serde_json::to_value(line(&one(1, 7), Some(1.5))).unwrap();
        let expected = serde_json::json!({
            "namespace": "default", "id": "0123456789abcdef", "name": "web", "manager": "holdfastd",
            "cpu_percent": 1.5, "cpu_ns": 7, "memory_bytes": 6 << 20, "memory_in_use_bytes": 5 << 20,
            "memory_limit_bytes": null, "block_read_bytes": 0, "block_written_bytes": 1536, "pids": 3,
            "pids_limit": null, "unknown": "",
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn sizes_have_few_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.00KiB"),
            (10 << 10, "10.0KiB"),
            (1000 << 10, "1000KiB"),
            (3 << 29, "1.50GiB"),
            (u64::MAX, "16.0EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
