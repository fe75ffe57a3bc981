//! Ring 3: what can be seen: figures, processes, metrics, findings; of holdfastd's containers and of a containerd's, with a
//! shim that hangs among them, and after deaths that left files.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use holdfast_tests::container::{Container, Oci};
use holdfast_tests::containerd::Containerd;
use holdfast_tests::holdfastd::{Holdfastd, Said};
use holdfast_tests::process::{ChildProcess, Stopped, is_alive, kill_hard};
use holdfast_tests::programs::Version;
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::{FakeWorld, Process, Sandbox, Scene, programs, sys, until};
use serde_json::{Value, json};

/// Two processes, one of which needs all the time that it can get.
const BUSY: &str = "sleep 1000 & while :; do :; done";

/// A group that nobody is in.
const GROUP: u32 = 65533;

const IDLE: &str = "exec sleep 1000";

/// The same supervisor with flags, in place of the one that was there.
fn restart_with_flags(host: &mut Holdfastd, flags: &[&str]) {
    host.kill();
    host.launch_with(&[], flags);
    host.restored();
}

fn lines_of_json(said: Said) -> Vec<Value> {
    said.ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn stats(host: &Holdfastd, more: &[&str]) -> Vec<Value> {
    lines_of_json(host.holdfast(&[&["--json", "stats", "--no-stream"], more].concat()))
}

fn named<'a>(list: &'a [Value], name: &str) -> &'a Value {
    list.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name} is not in {list:?}"))
}

/// The directories of a process's control group that hold `file`: of version 1, if it is there, else of version 2.
fn in_its_group(pid: u32, controller: &str, file: &str) -> PathBuf {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |wanted: &str| {
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            controllers.split(',').any(|one| one == wanted).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let v1 = path(controller).map(|p| Path::new("/sys/fs/cgroup").join(controller).join(p).join(file));
    v1.unwrap_or_else(|| Path::new("/sys/fs/cgroup").join(path("").unwrap()).join(file))
}

fn number_in(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[test]
fn figures_are_those_of_the_control_group() {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    let run = ["run", "-d", "--name", "busy", "-m", "64m", "--pids-limit", "50", "--rootfs", &rootfs, "--", "/bin/sh"];
    host.holdfast(&[&run[..], &["-c", BUSY]].concat()).ok();
    host.run("idle", IDLE);
    let list = stats(&host, &[]);
    let (busy, idle) = (named(&list, "busy"), named(&list, "idle"));
    assert_eq!(list.len(), 2);
    let pid = host.pid("busy", "pid");
    let in_file = number_in(&in_its_group(pid, "pids", "pids.current")).unwrap();
    assert_eq!((busy["pids"].as_u64(), busy["pids_limit"].as_u64()), (Some(in_file), Some(50)), "{busy}");
    assert_eq!((busy["memory_limit_bytes"].as_u64(), &idle["memory_limit_bytes"]), (Some(64 << 20), &Value::Null));
    let memory = busy["memory_bytes"].as_u64().unwrap();
    assert!(memory > 0 && memory <= 64 << 20 && busy["memory_in_use_bytes"].as_u64().unwrap() <= memory, "{busy}");
    let cpu = |one: &Value| one["cpu_percent"].as_f64().unwrap();
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert!(cpu(busy) > cpu(idle) && cpu(busy) > 0.0 && cpu(busy) < 110.0 * cpus as f64, "{list:?}");
    // The time only grows, and the file read later has all that was told before.
    let told = busy["cpu_ns"].as_u64().unwrap();
    let v1 = number_in(&in_its_group(pid, "cpuacct", "cpuacct.usage"));
    let later = v1.unwrap_or_else(|| {
        let text = fs::read_to_string(in_its_group(pid, "cpu", "cpu.stat")).unwrap();
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap();
        usage.parse::<u64>().unwrap() * 1000
    });
    assert!(told > 0 && told <= later, "{told} and then {later}");
}

#[test]
fn figures_of_what_is_not_there_and_of_what_does_not_run() {
    let host = Holdfastd::start();
    host.run("web", IDLE);
    let said = host.holdfast(&["stats", "--no-stream", "web", "nowhere"]);
    assert!(said.code == 125 && said.err.contains("nowhere"), "{said:?}");
    host.holdfast(&["kill", "web"]).ok();
    host.holdfast(&["wait", "web"]);
    let list = stats(&host, &["web"]);
    assert_eq!((&list[0]["cpu_ns"], list[0]["unknown"].as_str()), (&Value::Null, Some("it does not run")));
    assert_eq!(stats(&host, &[]), Vec::<Value>::new(), "only what runs");
    let said = host.holdfast(&["top", "web"]);
    assert!(said.code == 125 && said.err.contains("it does not run"), "{said:?}");
}

#[test]
fn figures_go_on_after_a_restart_of_the_supervisor() {
    let mut host = Holdfastd::start();
    host.run("web", BUSY);
    let mut command = host.command("holdfast");
    command.args(["--json", "stats", "web"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut client = ChildProcess::spawn(&mut command);
    let mut lines = BufReader::new(client.child().stdout.take().unwrap()).lines().map(|line| {
        let value: Value = serde_json::from_str(&line.unwrap()).unwrap();
        (value["cpu_ns"].as_u64().unwrap(), value["cpu_percent"].clone())
    });
    let (before, _) = lines.next().unwrap();
    host.kill();
    host.restart();
    // Lines of before the death may have been on their way. What has more than this was looked at later.
    let since = stats(&host, &["web"])[0]["cpu_ns"].as_u64().unwrap();
    assert!(since > before, "the time goes on where it was");
    let after: Vec<_> = lines.filter(|(cpu, _)| *cpu > since).take(2).collect();
    assert_eq!(after.len(), 2, "the client goes on");
    assert!(
        after[1].0 > after[0].0 && after.iter().all(|(_, share)| share.as_f64().is_some_and(|s| s > 0.0)),
        "{after:?}"
    );
}

#[test]
fn processes_are_listed_as_ps_does() {
    let host = Holdfastd::start();
    host.run("web", "sleep 1111 & sleep 2222 & wait");
    let text = until("all three are there", || {
        Some(host.holdfast(&["top", "web"]).ok()).filter(|text| text.lines().count() == 4)
    });
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["PID", "USER", "%CPU", "TIME", "COMMAND"]);
    assert!(text.contains("sleep 1111") && text.contains("sleep 2222"), "{text}");
    let exec = host.holdfast(&["exec", "-d", "web", "/bin/sleep", "3333"]);
    assert_eq!(exec.code, 0, "{exec:?}");
    let list: Vec<Value> = serde_json::from_str(&host.holdfast(&["--json", "top", "web"]).ok()).unwrap();
    let init = list.iter().find(|p| p["pid"] == host.pid("web", "pid")).unwrap();
    assert_eq!((init["uid"].as_u64(), init["exec_id"].as_str()), (Some(0), Some("")), "{init}");
    let exec = list.iter().find(|p| p["command"] == "/bin/sleep 3333").unwrap_or_else(|| panic!("{list:?}"));
    assert!(!exec["exec_id"].as_str().unwrap().is_empty() && exec["cpu_percent"].as_f64().is_some(), "{exec}");
}

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The head and the body of an answer.
fn exchange(mut stream: impl Read + Write, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?} is no answer"));
    (head.to_lowercase(), body.to_owned())
}

const SCRAPE: &str = "GET /metrics HTTP/1.1\r\nHost: holdfast\r\nAccept: application/openmetrics-text\r\n\r\n";

/// The value of the one line of a figure that has all these labels.
fn value(metrics: &str, figure: &str, labels: &[&str]) -> Option<f64> {
    let fits = |line: &&str| {
        line.strip_prefix(figure).is_some_and(|rest| rest.starts_with([' ', '{']))
            && labels.iter().all(|label| line.contains(label))
    };
    let lines: Vec<&str> = metrics.lines().filter(fits).collect();
    assert!(lines.len() <= 1, "{figure} {labels:?}: {lines:?}");
    lines.first().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

/// Every line is a comment or a sample, and a sample's figure was announced before.
fn check_exposition(text: &str) {
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut announced: Vec<&str> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("# TYPE ") {
            announced.push(name.split(' ').next().unwrap());
        } else if !line.starts_with('#') {
            let (sample, number) = line.rsplit_once(' ').unwrap();
            assert!(number.parse::<f64>().is_ok(), "{line}");
            let name = sample.split('{').next().unwrap();
            assert!(announced.contains(&name.strip_suffix("_total").unwrap_or(name)), "{line}");
        }
    }
}

#[test]
fn metrics_are_served_on_a_unix_socket() {
    let mut host = Holdfastd::start();
    host.run("web", IDLE);
    // As tmpfiles.d makes it: what is made in it belongs to its group.
    let dir = host.run_dir().with_file_name("metrics");
    fs::create_dir(&dir).unwrap();
    chown(&dir, None, Some(GROUP)).unwrap();
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o2750)).unwrap();
    let path = dir.join("metrics.sock");
    let listen = format!("unix://{}", path.display());
    restart_with_flags(&mut host, &["--metrics-listen", &listen, "--metrics-interval", "100ms"]);
    let scrape = || exchange(until("the socket is served", || UnixStream::connect(&path).ok()), SCRAPE);
    let (head, body) = scrape();
    assert!(head.starts_with("http/1.1 200 ok"), "{head}");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    check_exposition(&body);
    let own = "manager=\"holdfastd\"";
    assert_eq!(value(&body, "holdfast_containers", &[own, "state=\"running\""]), Some(1.0), "{body}");
    assert_eq!(value(&body, "holdfast_container_restarts", &["name=\"web\""]), Some(0.0));
    assert!(value(&body, "holdfast_restore_duration_seconds", &[]).unwrap() > 0.0);
    assert_eq!(value(&body, "holdfast_spill_bytes", &[]), Some(0.0), "{body}");
    let memory = |kind| value(&body, &format!("holdfast_shim_{kind}_bytes"), &["name=\"web\""]).unwrap();
    assert!(memory("resident") > memory("anonymous") && memory("anonymous") > 0.0, "{body}");
    // What holds for the shim's process holds for the figure.
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid("web", "shim_pid"))).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")).unwrap();
    let ratio = memory("resident") / (resident.parse::<f64>().unwrap() * 1024.0);
    assert!(ratio > 0.5 && ratio < 2.0, "{ratio}");
    // For root and the directory's group.
    let socket = fs::metadata(&path).unwrap();
    assert_eq!((socket.mode() & 0o777, socket.uid(), socket.gid()), (0o660, 0, GROUP));
    let connect =
        |uid, gid| sys::as_user(uid, gid, || UnixStream::connect(&path).map(drop).map_err(|e| e.kind())).unwrap();
    assert_eq!(connect(65534, GROUP), Ok(()));
    assert_eq!(connect(65534, 65534), Err(ErrorKind::PermissionDenied));

    // What happens shows without anybody asking for it.
    host.holdfast(&["kill", "web"]).ok();
    host.holdfast(&["wait", "web"]);
    until("the end shows", || value(&scrape().1, "holdfast_containers", &[own, "state=\"exited\""]).map(drop));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "http/1.1 404"),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "http/1.1 405"),
        ("nonsense\r\n\r\n", "http/1.1 400"),
    ] {
        let (head, _) = exchange(UnixStream::connect(&path).unwrap(), request);
        assert!(head.starts_with(status), "{request:?}: {head}");
    }
    let (head, body) = exchange(UnixStream::connect(&path).unwrap(), &SCRAPE.replace("GET", "HEAD"));
    assert!(head.starts_with("http/1.1 200") && body.is_empty(), "{head}{body}");
    let metrics = host.holdfast(&["metrics"]).ok() + "\n";
    check_exposition(&metrics);
}

#[test]
fn metrics_are_served_on_a_loopback_port_and_nowhere_else() {
    let mut host = Holdfastd::start();
    let address = format!("127.0.0.1:{}", free_port());
    restart_with_flags(&mut host, &["--metrics-listen", &address]);
    let (head, body) = exchange(until("the port is served", || TcpStream::connect(&address).ok()), SCRAPE);
    assert!(head.starts_with("http/1.1 200 ok"), "{head}");
    check_exposition(&body);
    let info: Value = serde_json::from_str(&host.holdfast(&["--json", "info"]).ok()).unwrap();
    assert_eq!(info["metrics_listen"], address);
    let said: Said = host.command("holdfastd").args(["--metrics-listen", "0.0.0.0:9310"]).output().unwrap().into();
    assert!(said.code == 2 && said.err.contains("0.0.0.0:9310") && said.err.contains("loopback"), "{said:?}");
}

#[test]
fn a_reload_begins_and_ends_the_serving_of_metrics() {
    let host = Holdfastd::start();
    let path = host.run_dir().join("metrics.sock");
    let settings = |metrics: &str| host.configure(&format!("live-restore = true\n{metrics}"));
    assert!(!path.exists());
    settings(&format!("metrics-listen = \"unix://{}\"\n", path.display()));
    host.holdfast(&["reload"]).ok();
    let (head, _) = exchange(until("the socket is served", || UnixStream::connect(&path).ok()), SCRAPE);
    assert!(head.starts_with("http/1.1 200 ok"), "{head}");
    settings("");
    host.holdfast(&["reload"]).ok();
    until("the socket is gone", || (!path.exists()).then_some(()));
}

#[test]
fn an_address_that_is_taken_keeps_nothing_else_from_working() {
    let mut host = Holdfastd::start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    restart_with_flags(&mut host, &["--metrics-listen", &address, "--metrics-interval", "100ms"]);
    host.run("web", IDLE);
    drop(taken);
    // It is tried again.
    until("the port is served", || {
        let mut stream = TcpStream::connect(&address).ok()?;
        stream.write_all(SCRAPE.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.contains("# EOF").then_some(())
    });
}

fn findings(host: &Holdfastd) -> (i32, Vec<Value>) {
    let said = host.holdfast(&["--json", "doctor"]);
    let report: Value = serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {said:?}"));
    assert_eq!(report["healthy"].as_bool(), Some(said.code == 0), "{report}");
    (said.code, report["findings"].as_array().unwrap().clone())
}

fn of<'a>(findings: &'a [Value], check: &str) -> Vec<&'a Value> {
    findings.iter().filter(|finding| finding["check"] == check).collect()
}

/// A finding that is not ok and speaks of `what`.
fn trouble<'a>(findings: &'a [Value], check: &str, what: &str) -> &'a Value {
    let all = of(findings, check);
    let found = all.iter().find(|f| f["level"] != "ok" && f["message"].as_str().unwrap().contains(what));
    found.unwrap_or_else(|| panic!("{check} {what}: {all:?}"))
}

#[test]
fn a_shim_that_hangs_is_shown_everywhere_and_delays_nobody() {
    let mut host = Holdfastd::start();
    let (stuck, fine) = (host.run("stuck", IDLE), host.run("fine", IDLE));
    let path = host.run_dir().join("metrics.sock");
    let listen = format!("unix://{}", path.display());
    restart_with_flags(&mut host, &["--metrics-listen", &listen, "--metrics-interval", "100ms"]);
    let (_, before) = findings(&host);
    assert!(of(&before, "shims").iter().all(|f| f["level"] == "ok"), "all shims say what they are: {before:?}");
    let shim = host.pid("stuck", "shim_pid");
    let stopped = Stopped::new(shim);

    let list = until("ps shows it", || {
        let list: Vec<Value> = serde_json::from_str(&host.holdfast(&["--json", "ps"]).ok()).unwrap();
        (named(&list, "stuck")["status"] == "unresponsive").then_some(list)
    });
    assert!(named(&list, "stuck")["reason"].as_str().unwrap().contains(&shim.to_string()), "{list:?}");
    assert_eq!((&named(&list, "stuck")["id"], &named(&list, "fine")["status"]), (&stuck.into(), &"running".into()));
    assert!(host.holdfast(&["ps"]).ok().contains("unresponsive: its shim"));

    let list = stats(&host, &[]);
    assert_eq!((&named(&list, "stuck")["cpu_ns"], named(&list, "fine")["cpu_ns"].is_u64()), (&Value::Null, true));
    assert!(named(&list, "stuck")["unknown"].as_str().unwrap().contains("does not answer"), "{list:?}");
    let table = host.holdfast(&["stats", "--no-stream"]).ok();
    let row = table.lines().find(|line| line.contains("stuck")).unwrap();
    assert_eq!(row.split_whitespace().skip(2).collect::<Vec<_>>(), ["-"; 5], "{table}");

    until("the metrics tell", || {
        let (_, body) = exchange(UnixStream::connect(&path).unwrap(), SCRAPE);
        let silent = value(&body, "holdfast_shims_unresponsive", &[]) == Some(1.0);
        (silent && value(&body, "holdfast_containers", &["state=\"unresponsive\""]) == Some(1.0)).then_some(())
    });
    // The shim is what hangs, so each of these ends only because nobody waits for it.
    host.holdfast(&["exec", "fine", "/bin/echo", "hello"]).ok();
    host.holdfast(&["top", "fine"]).ok();
    let said = host.holdfast(&["top", "stuck"]);
    assert!(said.code == 125 && said.err.contains("the shim did not answer Pids within 1s"), "{said:?}");
    let (code, found) = findings(&host);
    let wedged = trouble(&found, "shims", "does not answer");
    assert_eq!((code, wedged["level"].as_str()), (1, Some("fail")));
    assert_eq!(wedged["advice"], format!("kill -CONT {shim}"));

    drop(stopped);
    until("ps shows that it is back", || {
        let list: Vec<Value> = serde_json::from_str(&host.holdfast(&["--json", "ps"]).ok()).unwrap();
        (named(&list, "stuck")["status"] == "running").then_some(())
    });
    assert!(host.holdfast(&["inspect", &fine]).code == 0);
}

#[test]
fn what_deaths_have_left_is_found_without_a_supervisor() {
    let mut host = Holdfastd::start();
    let orphan = host.run("orphan", IDLE);
    host.run("gone", IDLE);
    let (_, sound) = findings(&host);
    assert!(of(&sound, "stale-files").iter().all(|f| f["level"] == "ok"), "{sound:?}");
    let pids = |name: &str| (host.pid(name, "shim_pid"), host.pid(name, "pid"));
    let (orphans, gones) = (pids("orphan"), pids("gone"));
    host.kill();
    for pid in [orphans.0, gones.0, gones.1] {
        kill_hard(pid);
    }
    assert!(is_alive(orphans.1));
    // As a shim leaves it that was killed, and a supervisor that was killed between two removals.
    let socket = host.run_dir().join("s").join("0".repeat(64));
    drop(UnixListener::bind(&socket).unwrap());
    let bundle = host.run_dir().join("bundles/default/nobodys");
    fs::create_dir_all(&bundle).unwrap();
    let earlier = host.run_dir().join("tasks/0123456789abcdef/k8s.io/earlier");
    fs::create_dir_all(&earlier).unwrap();
    let record =
        fs::read_to_string(host.run_dir().join(format!("tasks/holdfastd/default/{orphan}/record.json"))).unwrap();
    let mut record: Value = serde_json::from_str(&record).unwrap();
    record["boot_id"] = "another".into();
    fs::write(earlier.join("record.json"), record.to_string()).unwrap();

    let (code, found) = findings(&host);
    assert_eq!(code, 1);
    assert_eq!(trouble(&found, "holdfastd", "cannot reach holdfastd")["level"], "fail");
    let running = trouble(&found, "stale-files", &format!("its process {} runs", orphans.1));
    assert_eq!(running["advice"], format!("holdfast stop {orphan}"));
    trouble(&found, "stale-files", "shim and container are dead");
    assert_eq!(
        trouble(&found, "stale-files", "nobody listens")["advice"].as_str().unwrap().split(' ').next(),
        Some("rm")
    );
    assert!(found.iter().any(|f| f["advice"] == format!("rm {}", socket.display())), "{found:?}");
    assert!(trouble(&found, "stale-files", "does not exist")["message"].as_str().unwrap().contains("nobodys"));
    assert!(trouble(&found, "stale-files", "last boot")["advice"].as_str().unwrap().contains("earlier"));
    let text = host.holdfast(&["doctor"]);
    assert!(text.code == 1 && text.out.contains("→ holdfast stop"), "{text:?}");

    fs::remove_file(&socket).unwrap();
    fs::remove_dir_all(&earlier).unwrap();
    fs::remove_dir_all(&bundle).unwrap();
    host.restart();
    host.holdfast(&["rm", "-f", "orphan", "gone"]).ok();
    let (_, found) = findings(&host);
    assert!(of(&found, "stale-files").iter().all(|f| f["level"] == "ok"), "{found:?}");
    assert!(!is_alive(orphans.1));
}

#[test]
fn the_machine_is_told_of() {
    let host = Holdfastd::start();
    host.run("web", IDLE);
    let info: Value = serde_json::from_str(&host.holdfast(&["--json", "info"]).ok()).unwrap();
    assert_eq!((info["states"]["running"].as_u64(), info["log_driver"].as_str()), (Some(1), Some("json-file")));
    let runtimes = info["runtimes"].as_array().unwrap();
    let ours = runtimes.iter().find(|tool| tool["name"] == "holdfast-oci").unwrap_or_else(|| panic!("{info}"));
    assert!(!ours["version"].as_str().unwrap().is_empty() && ours["error"] == "", "{ours}");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(info["kernel"].as_str(), Some(release.trim()));
    assert_ne!(info["cgroup"], "none");
    for part in ["holdfast-oci", release.trim(), "1 running, 1 in all (1 running)"] {
        assert!(host.holdfast(&["info"]).ok().contains(part), "{part}");
    }
    let (_, found) = findings(&host);
    for check in
        ["kernel", "pidfd", "pidfd-exit", "inotify", "pid-max", "cgroup", "runtimes", "criu", "shim", "holdfastd"]
    {
        assert_eq!(of(&found, check).len(), 1, "{check}: {found:?}");
    }
    for check in ["descriptors", "restore", "spill", "shims", "stale-files"] {
        assert!(!of(&found, check).is_empty(), "{check}: {found:?}");
    }
    assert!(of(&found, "runtimes")[0]["message"].as_str().unwrap().contains("holdfast-oci"));
}

#[test]
fn the_shims_settings_are_judged_as_shims_read_them() {
    let host = Holdfastd::start();
    let file = host.settings_file().with_file_name("judged.toml");
    let examined = |settings: &str| {
        fs::write(&file, settings).unwrap();
        let mut doctor = host.command("holdfast");
        let said = Said::from(doctor.args(["--json", "doctor"]).env("HOLDFAST_SHIM_CONFIG", &file).output().unwrap());
        let report: Value = serde_json::from_str(&said.out).unwrap();
        report["findings"].as_array().unwrap().clone()
    };
    let found = examined("[output]\nfree-floor = '7%'");
    assert!(of(&found, "shim-settings").is_empty(), "{found:?}");
    assert!(of(&found, "spill")[0]["message"].as_str().unwrap().contains("the floor is 7 %"), "{found:?}");
    for mistake in ["[output]\npolicy = 'drop'", "[output]\nlimit = 1", "[outputs]", "[output"] {
        trouble(&examined(mistake), "shim-settings", "judged.toml");
    }
}

#[test]
fn a_containerds_containers_are_shown_beside_ours() {
    if !is_root() {
        return skip("needs root");
    }
    let scene = Scene::new();
    let containerd = Containerd::start(&scene, Version::V2_1);
    let holdfast = |args: &[&str]| -> Said {
        scene.command(programs::ours("holdfast")).args(args).stdin(Stdio::null()).output().unwrap().into()
    };
    let log = fs::File::create(scene.path("holdfastd.log")).unwrap();
    let mut command: Command = scene.command(programs::ours("holdfastd"));
    let daemon = ChildProcess::spawn(command.stdin(Stdio::null()).stderr(log));
    until("holdfastd answers", || (holdfast(&["info"]).code == 0).then_some(()));
    let container = Container::new(&containerd, Oci::HoldfastOci);
    let pid = container.run_detached("exec /bin/sleep 1000");
    let ps = |args: &[&str]| -> Vec<Value> {
        serde_json::from_str(&holdfast(&[&["--json", "ps", "--all-managers"], args].concat()).ok()).unwrap()
    };
    let list = ps(&[]);
    let one = named(&list, &container.id);
    assert_eq!((one["status"].as_str(), one["pid"].as_u64()), (Some("running"), Some(pid.into())), "{one}");
    assert_eq!(one["shim_pid"].as_u64(), Some(container.shim_pid().into()));
    assert_eq!(one["namespace"], holdfast_tests::containerd::NAMESPACE);
    assert!(one["manager"].as_str().unwrap().ends_with("c.sock"), "{one}");
    assert!(one["command"].to_string().contains("sleep 1000"), "as its bundle says: {one}");
    assert!(!one["started_at"].as_str().unwrap().is_empty(), "{one}");
    assert_eq!(ours(&holdfast(&["--json", "ps", "-a"]).ok()), 0, "only when they are asked for");

    containerd.ok(&["task", "pause", &container.id]);
    until("it is shown as paused", || (named(&ps(&[]), &container.id)["status"] == "paused").then_some(()));
    containerd.ok(&["task", "resume", &container.id]);
    let top = holdfast(&["top", &container.id]).ok();
    assert!(top.contains("sleep 1000") && top.contains(&pid.to_string()), "{top}");
    let figures = lines_of_json(holdfast(&["--json", "stats", "--no-stream", "--all-managers"]));
    assert_eq!(named(&figures, &container.id)["pids"].as_u64(), Some(1), "{figures:?}");

    let stopped = Stopped::new(container.shim_pid());
    until("it is shown as unresponsive", || (named(&ps(&[]), &container.id)["status"] == "unresponsive").then_some(()));
    drop(stopped);
    until("it is back", || (named(&ps(&[]), &container.id)["status"] == "running").then_some(()));

    containerd.ok(&["task", "kill", "-s", "SIGKILL", &container.id]);
    containerd.wait_for_status(&container.id, "STOPPED");
    let list =
        until("its end is shown", || Some(ps(&["-a"])).filter(|list| named(list, &container.id)["status"] == "exited"));
    assert_eq!(named(&list, &container.id)["exit_status"], 137);
    assert_eq!(ps(&[]), Vec::<Value>::new(), "it does not run");
    assert_eq!(containerd.delete(&container.id), 137);
    assert_eq!(ps(&["-a"]), Vec::<Value>::new());
    drop(daemon);
}

#[test]
fn a_shim_with_nothing_but_a_sandbox_is_shown_as_what_it_is() {
    let host = Holdfastd::start();
    let world = FakeWorld::new();
    let bundle = world.sleeper().configure(|c| c["linux"]["namespaces"] = json!([]));
    let shim = world.launch(&bundle).env("HOLDFAST_RUN_DIR", host.run_dir().to_str().unwrap()).start();
    let mut sandbox = Sandbox::of(&shim, &bundle);
    let list = |args: &[&str]| -> Vec<Value> {
        serde_json::from_str(&host.holdfast(&[&["--json", "ps", "--all-managers"], args].concat()).ok()).unwrap()
    };
    let metric = |figure: &str, labels: &[&str]| value(&(host.holdfast(&["metrics"]).ok() + "\n"), figure, labels);
    let state = |state: &str| metric("holdfast_sandboxes", &[&format!("state=\"{state}\"")]);
    sandbox.create().unwrap();
    let list_all = list(&["-a"]);
    let one = named(&list_all, bundle.id());
    assert_eq!((&one["status"], &one["sandbox"], &one["pid"]), (&"not-ready".into(), &true.into(), &0.into()), "{one}");
    assert_eq!(list(&[]), Vec::<Value>::new(), "it holds nothing yet");

    let holder = Process::of(sandbox.start().unwrap().pid);
    let list_running = list(&[]);
    let one = named(&list_running, bundle.id());
    assert_eq!((&one["status"], &one["pid"]), (&"ready".into(), &holder.pid().into()), "{one}");
    assert_eq!(one["shim_pid"], shim.process().pid());
    assert!(!one["started_at"].as_str().unwrap().is_empty() && one["exit_status"].is_null(), "{one}");
    assert!(host.holdfast(&["ps", "--all-managers"]).ok().contains("(sandbox)"));
    assert_eq!((state("ready"), metric("holdfast_containers", &[])), (Some(1.0), None), "it is no container");
    assert_eq!(metric("holdfast_shims", &[]), Some(1.0));
    let of_it = format!("id=\"{}\"", bundle.id());
    assert!(metric("holdfast_shim_resident_bytes", &[&of_it]).unwrap() > 0.0);
    let (_, found) = findings(&host);
    let told = of(&found, "shims");
    assert!(
        told.len() == 1 && told[0]["level"] == "ok" && told[0]["message"].as_str().unwrap().starts_with("1 "),
        "{told:?}"
    );
    assert_eq!(stats(&host, &["--all-managers"]), Vec::<Value>::new());
    let named_stats = stats(&host, &[bundle.id()]);
    assert!(named_stats[0]["unknown"].as_str().unwrap().contains("sandbox"), "{named_stats:?}");
    let seen = host.inspect(bundle.id());
    assert_eq!((&seen["output"], &seen["output_unknown"]), (&json!([]), &"".into()), "it prints nothing: {seen}");

    let stopped = Stopped::new(shim.process().pid());
    until("it is shown as unresponsive", || (named(&list(&[]), bundle.id())["status"] == "unresponsive").then_some(()));
    assert_eq!((state("unresponsive"), metric("holdfast_shims_unresponsive", &[])), (Some(1.0), Some(1.0)));
    drop(stopped);
    until("it is back", || (named(&list(&[]), bundle.id())["status"] == "ready").then_some(()));

    holder.kill();
    sandbox.wait().unwrap();
    let list_ended = list(&["-a"]);
    let one = named(&list_ended, bundle.id());
    assert_eq!((&one["status"], &one["pid"]), (&"not-ready".into(), &0.into()), "{one}");
    assert!(one["exit_status"] == 137 && !one["exited_at"].as_str().unwrap().is_empty(), "{one}");
    assert_eq!(state("not-ready"), Some(1.0));
    sandbox.shutdown().unwrap();
    shim.process().wait_gone();
    assert_eq!(list(&["-a"]), Vec::<Value>::new());
}

fn ours(list: &str) -> usize {
    serde_json::from_str::<Vec<Value>>(list).unwrap().len()
}
