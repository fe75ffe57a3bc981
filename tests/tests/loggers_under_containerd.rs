//! Ring 3: `ctr run --log-uri` with loggers and files, under a private containerd of each version.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Output;

use holdfast_tests::logger::{End, Logger};
use holdfast_tests::matrix;
use holdfast_tests::matrix::Real;
use holdfast_tests::{eventually, gate};

matrix!(
    a_logger_has_every_byte_of_a_burst_when_ctr_has_ended,
    a_logger_that_waits_for_sigterm_may_flush,
    a_file_takes_both_outputs,
    a_logger_that_is_missing_is_named,
    an_exec_has_a_logger_of_its_own,
    a_logger_outlives_containerd,
);

const BURST: usize = 8 << 20;

/// `ctr run --rm --log-uri URI`, to the container's end and its removal.
#[track_caller]
fn run(real: &Real<'_>, uri: &str, script: &str, status: i32) -> Output {
    let output = real.container().run(&["--rm", "--log-uri", uri], script);
    assert_eq!(output.status.code(), Some(status), "{}", real.containerd.complain(&output));
    output
}

fn a_logger_has_every_byte_of_a_burst_when_ctr_has_ended(real: &Real<'_>) {
    let logger = Logger::new(real.scene, "l");
    let yes = format!("/bin/busybox yes 0123456789abcde | /bin/busybox head -c {BURST}; /bin/echo err >&2; exit 7");
    run(real, &logger.address("binary"), &yes, 7);
    let got = logger.file("stdout");
    assert_eq!(got.len(), BURST);
    assert!(got.chunks(16).all(|line| line == b"0123456789abcde\n"));
    assert_eq!((logger.text("stderr"), logger.text("ends")), ("err\n".into(), "eof\n".into()));
    assert_eq!(logger.text("env"), format!("CONTAINER_ID={}\nCONTAINER_NAMESPACE=tests", real.container().id));
}

fn a_logger_that_waits_for_sigterm_may_flush(real: &Real<'_>) {
    let logger = Logger::new(real.scene, "l").end(End::AtTerm).with("flush-ms", "200");
    run(real, &logger.address("binary"), "/bin/echo out", 0);
    assert_eq!((logger.text("stdout"), logger.text("ends")), ("out\n".into(), "eof\nterm\nflushed\n".into()));
}

fn a_file_takes_both_outputs(real: &Real<'_>) {
    let path = real.scene.path("some log/of it");
    let uri = format!("file://{}", path.display()).replace(' ', "%20");
    run(real, &uri, "/bin/echo out; /bin/echo err >&2; exit 3", 3);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("out\n") && text.contains("err\n") && text.len() == 8, "{text:?}");
}

fn a_logger_that_is_missing_is_named(real: &Real<'_>) {
    let output = run(real, "binary:///no/such/logger?a=b", "exit 0", 1);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("cannot start the logger /no/such/logger of the init process"), "{said}");
}

fn an_exec_has_a_logger_of_its_own(real: &Real<'_>) {
    let container = real.container();
    container.run_detached("exec /bin/sleep 1000");
    let logger = Logger::new(real.scene, "l");
    // Not by the container's own method: ctr takes no directory for FIFOs then.
    let uri = logger.address("binary");
    let exec = ["task", "exec", "--exec-id", "e", "--log-uri", &uri, &container.id, "/bin/echo", "exec"];
    let output = real.containerd.run(&exec);
    assert!(output.status.success(), "{}", real.containerd.complain(&output));
    assert_eq!((logger.text("stdout"), logger.text("ends")), ("exec\n".into(), "eof\n".into()));
    assert!(logger.text("env").starts_with("CONTAINER_ID=e\n"), "{}", logger.text("env"));
    real.containerd.remove(&container.id);
}

/// It belongs to the shim: it neither notices that containerd is killed nor misses what is printed meanwhile.
fn a_logger_outlives_containerd(real: &Real<'_>) {
    let container = real.container();
    let logger = Logger::new(real.scene, "l");
    let script = format!("echo before; {}; echo meanwhile; exec /bin/sleep 1000", gate::wait_at("go"));
    let output = container.run(&["--detach", "--log-uri", &logger.address("binary")], &script);
    assert!(output.status.success(), "{}", real.containerd.complain(&output));
    real.containerd.wait_for_status(&container.id, "RUNNING");
    real.containerd.kill();
    gate::open(real.containerd.rootfs(), "go");
    eventually("it should be logged with no containerd", || {
        let text = logger.text("stdout");
        if text == "before\nmeanwhile\n" { Ok(()) } else { Err(text) }
    });
    real.containerd.resume();
    real.containerd.remove(&container.id);
    assert_eq!((logger.text("ends"), logger.pids().len()), ("eof\n".into(), 1));
}
