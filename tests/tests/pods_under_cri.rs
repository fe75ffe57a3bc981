//! Ring 3: pods and their containers, as a kubelet asks a private containerd of each version for them; see `with_containerd.rs`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use holdfast_tests::container::Oci;
use holdfast_tests::cri::Cri;
use holdfast_tests::matrix::Real;

holdfast_tests::matrix!(a_container_of_a_pod_runs_to_its_end,);

#[track_caller]
fn start<'a>(real: &'a Real<'a>) -> Cri<'a> {
    Cri::start(&real.containerd, real.cell.oci)
}

fn a_container_of_a_pod_runs_to_its_end(real: &Real<'_>) {
    let cri = start(real);
    let pod = cri.run_pod("pod");
    assert_eq!(pod.is_ready(), Some(true));
    let script = "echo one; echo two >&2; exit 7";
    let container = pod.run("main", script);
    assert_eq!(container.wait(), (7, "Error".into()));
    // What the handler's options say has got through.
    let chosen = fs::read_to_string(container.bundle().join("runtime")).unwrap();
    let expected = if real.cell.oci == Oci::HoldfastOci { "".into() } else { real.cell.oci.program() };
    assert_eq!(Path::new(&chosen), expected);
    let mut lines = container.log_lines();
    lines.sort_by(|a, b| a.stream.cmp(&b.stream));
    let seen: Vec<(&str, &str)> = lines.iter().map(|line| (&*line.stream, &*line.text)).collect();
    assert_eq!(seen, [("stderr", "two"), ("stdout", "one")]);
    container.remove();
    assert!(container.try_status().is_err());
    pod.stop();
    assert_eq!(pod.is_ready(), Some(false));
    pod.remove();
    assert_eq!(pod.is_ready(), None);
    cri.finish();
}
