//! What is measured, as OpenMetrics text. Pure.
//!
//! Labels are the names by which people know a container, and which of its streams it is. Nothing of what a container is
//! given or prints is ever in one.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use holdfast_proto::{control, supervisor as pb};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// All that the figures are made of.
#[derive(Debug)]
pub struct Measured {
    /// Of all managers, also those that do not run; sandboxes are among them.
    pub containers: Vec<pb::Container>,
    /// The supervisor.
    pub info: pb::InfoResponse,
    /// What shims say, and whether they say anything.
    pub output: pb::OutputResponse,
}

type Labels = Vec<(String, String)>;

/// One line.
enum Sample {
    Gauge(Labels, f64),
    Counter(Labels, u64),
}

/// One figure with all its lines.
struct Figure {
    name: &'static str,
    help: &'static str,
    samples: Vec<Sample>,
}

impl Measured {
    /// The text.
    ///
    /// # Errors
    /// The encoder's, of which none is known.
    pub fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }

    fn figures(&self) -> Vec<Figure> {
        let mut figures = vec![self.build(), self.containers(), self.sandboxes(), self.restarts(), self.restore()];
        figures.extend(self.shims());
        figures.extend(self.memory());
        figures.extend(self.streams());
        figures.extend(self.places());
        figures
    }

    fn build(&self) -> Figure {
        Figure {
            name: "holdfast_build",
            help: "The version of holdfastd, with the value 1",
            samples: vec![Sample::Gauge(labels([("version", &self.info.version)]), 1.0)],
        }
    }

    fn containers(&self) -> Figure {
        Figure {
            name: "holdfast_containers",
            help: "Containers by manager (holdfastd, or the address of a containerd) and state",
            samples: counted(self.containers.iter().filter(|one| !one.sandbox)),
        }
    }

    fn sandboxes(&self) -> Figure {
        Figure {
            name: "holdfast_sandboxes",
            help: "Sandboxes of pods by manager and state; only those that a client drives as such",
            samples: counted(self.containers.iter().filter(|one| one.sandbox)),
        }
    }

    fn restarts(&self) -> Figure {
        let own = self.containers.iter().filter(|one| one.manager == "holdfastd");
        Figure {
            name: "holdfast_container_restarts",
            help: "Restarts of a container by its restart policy since it was last started by hand",
            samples: own.map(|one| Sample::Gauge(named(one), one.restarts.into())).collect(),
        }
    }

    fn restore(&self) -> Figure {
        let took = Duration::from_nanos(self.info.restore.get_or_default().took_ns);
        Figure {
            name: "holdfast_restore_duration_seconds",
            help: "How long holdfastd took at its last start to find all containers again",
            samples: vec![Sample::Gauge(Vec::new(), took.as_secs_f64())],
        }
    }

    fn shims(&self) -> [Figure; 2] {
        let silent = self.output.shims.iter().filter(|shim| shim.unresponsive).count();
        let gauge = |name, help, count: usize| Figure {
            name,
            help,
            samples: vec![Sample::Gauge(Vec::new(), f64::from(u32::try_from(count).unwrap_or(u32::MAX)))],
        };
        [
            gauge("holdfast_shims", "Shims that run", self.output.shims.len()),
            gauge("holdfast_shims_unresponsive", "Shims that run and did not answer within a second", silent),
        ]
    }

    /// Of each shim, by the first of its containers.
    fn memory(&self) -> [Figure; 2] {
        let figure = |name, help, value: fn(&pb::ShimOutput) -> Option<u64>| {
            let one = |shim: &pb::ShimOutput| {
                let bytes = value(shim)?;
                let container = self.containers.iter().find(|c| c.shim_pid == shim.shim_pid && c.shim_pid != 0)?;
                Some(Sample::Gauge(named(container), float(bytes)))
            };
            Figure { name, help, samples: self.output.shims.iter().filter_map(one).collect() }
        };
        [
            figure(
                "holdfast_shim_resident_bytes",
                "Resident memory of a container's shim; of those that share one, the first has it",
                |shim| shim.resident_bytes,
            ),
            figure(
                "holdfast_shim_anonymous_bytes",
                "Resident memory of a container's shim that is its own: neither its program's file nor shared",
                |shim| shim.anonymous_bytes,
            ),
        ]
    }

    fn streams(&self) -> [Figure; 5] {
        let gauge = |name, help, value: fn(&control::OutputStream) -> u64| Figure {
            name,
            help,
            samples: self.each_stream(|labels, stream| Sample::Gauge(labels, float(value(stream)))),
        };
        [
            gauge(
                "holdfast_output_reader_absent",
                "Whether nobody reads a stream, 1 or 0; only streams that need a reader are here and below",
                |stream| u64::from(stream.reader == "absent"),
            ),
            gauge("holdfast_output_kept_bytes", "Output of a stream that waits for its reader", |s| s.kept_bytes),
            gauge("holdfast_output_kept_limit_bytes", "How much of a stream may be kept", |s| s.spill_limit),
            gauge(
                "holdfast_output_at_bound",
                "Whether a stream has reached its limit or a bound of the machine, 1 or 0",
                |stream| u64::from(!stream.bound.is_empty()),
            ),
            Figure {
                name: "holdfast_output_dropped_bytes",
                help: "Output of a stream that was dropped because nobody read it",
                samples: self.each_stream(|labels, stream| Sample::Counter(labels, stream.dropped_bytes)),
            },
        ]
    }

    fn each_stream(&self, sample: impl Fn(Labels, &control::OutputStream) -> Sample) -> Vec<Sample> {
        let mut samples = Vec::new();
        for shim in &self.output.shims {
            for stream in shim.streams.iter().filter(|stream| !stream.reader.is_empty()) {
                let known = self.containers.iter().find(|c| c.namespace == shim.namespace && c.id == stream.id);
                let name = known.map_or(stream.id.as_str(), |c| &c.name);
                let [id, exec_id] = [&stream.id, &stream.exec_id].map(String::as_str);
                let labels = labels([
                    ("namespace", shim.namespace.as_str()),
                    ("id", id),
                    ("name", name),
                    ("exec_id", exec_id),
                    ("stream", &stream.stream),
                ]);
                samples.push(sample(labels, stream));
            }
        }
        samples
    }

    fn places(&self) -> [Figure; 2] {
        let figure = |name, help, value: fn(&pb::SpillPlace) -> Option<u64>| {
            let one = |place: &pb::SpillPlace| {
                value(place).map(|bytes| Sample::Gauge(labels([("directory", &place.spill_dir)]), float(bytes)))
            };
            Figure { name, help, samples: self.output.places.iter().filter_map(one).collect() }
        };
        [
            figure("holdfast_spill_bytes", "What the output that is kept takes on disk, of all containers", |p| {
                p.spill_bytes
            }),
            figure("holdfast_spill_limit_bytes", "How much it may take", |place| Some(place.spill_total)),
        ]
    }
}

/// How many there are of each manager in each state.
fn counted<'a>(all: impl Iterator<Item = &'a pb::Container>) -> Vec<Sample> {
    let mut counts: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    for one in all {
        *counts.entry((&one.manager, &one.status)).or_default() += 1.0;
    }
    let sample = |((manager, state), count)| Sample::Gauge(labels([("manager", manager), ("state", state)]), count);
    counts.into_iter().map(sample).collect()
}

fn named(container: &pb::Container) -> Labels {
    labels([("namespace", &container.namespace), ("id", &container.id), ("name", &container.name)])
}

/// Escaped here, for the encoder does not.
fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    pairs.into_iter().map(|(name, value)| (name.to_owned(), escaped(value))).collect()
}

/// Sizes beyond 2^53 lose their last digits.
#[allow(clippy::cast_precision_loss)]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

impl Collector for Measured {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for Figure { name, help, samples } in self.figures() {
            // A figure without lines says nothing, and its kind is not known.
            let kind = match samples.first() {
                Some(Sample::Counter(..)) => MetricType::Counter,
                Some(Sample::Gauge(..)) => MetricType::Gauge,
                None => continue,
            };
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            if let [Sample::Gauge(labels, value)] = samples.as_slice()
                && labels.is_empty()
            {
                ConstGauge::new(*value).encode(metric)?;
                continue;
            }
            for sample in &samples {
                match sample {
                    Sample::Gauge(labels, value) => ConstGauge::new(*value).encode(metric.encode_family(labels)?)?,
                    Sample::Counter(labels, value) => {
                        ConstCounter::new(*value).encode(metric.encode_family(labels)?)?
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn container(manager: &str, id: &str, status: &str, pid: u32) -> pb::Container {
        let [manager, id, status] = [manager, id, status].map(str::to_owned);
        let (name, namespace) = (format!("{id}-name"), "default".to_owned());
        let shim_pid = if id == "a" { 70 } else { 0 };
        pb::Container { namespace, id, name, manager, status, pid, shim_pid, restarts: 3, ..Default::default() }
    }

    fn measured() -> Measured {
        let stream = control::OutputStream {
            id: "a".into(),
            stream: "stdout".into(),
            reader: "absent".into(),
            kept_bytes: 4096,
            spill_limit: 8192,
            bound: "total".into(),
            dropped_bytes: 7,
            ..Default::default()
        };
        let to_a_file = control::OutputStream { id: "b".into(), stream: "stdout".into(), ..Default::default() };
        let streams = vec![stream, to_a_file];
        let shim = pb::ShimOutput {
            shim_pid: 70,
            namespace: "default".into(),
            streams,
            resident_bytes: Some(3 << 20),
            anonymous_bytes: Some(1 << 19),
            ..Default::default()
        };
        let silent = pb::ShimOutput { unresponsive: true, ..Default::default() };
        let place = pb::SpillPlace {
            spill_dir: "/s".into(),
            spill_total: 1 << 32,
            spill_bytes: Some(12288),
            ..Default::default()
        };
        Measured {
            containers: vec![
                container("holdfastd", "a", "running", 1),
                container("holdfastd", "b", "exited", 0),
                container("/run/c.sock", "c", "running", 5),
                container("/run/c.sock", "d", "exited", 0),
                pb::Container { sandbox: true, ..container("/run/c.sock", "s", "ready", 8) },
            ],
            info: pb::InfoResponse {
                version: "0.1.0".into(),
                restore: protobuf::MessageField::some(pb::RestoreReport { took_ns: 12_500_000, ..Default::default() }),
                ..Default::default()
            },
            output: pb::OutputResponse { shims: vec![shim, silent], places: vec![place], ..Default::default() },
        }
    }

    #[test]
    fn every_figure_is_there() {
        let text = measured().text().unwrap();
        for line in [
            "# TYPE holdfast_containers gauge",
            "holdfast_build{version=\"0.1.0\"} 1.0",
            "holdfast_containers{manager=\"holdfastd\",state=\"running\"} 1.0",
            "holdfast_containers{manager=\"holdfastd\",state=\"exited\"} 1.0",
            "holdfast_containers{manager=\"/run/c.sock\",state=\"running\"} 1.0",
            "holdfast_containers{manager=\"/run/c.sock\",state=\"exited\"} 1.0",
            "holdfast_sandboxes{manager=\"/run/c.sock\",state=\"ready\"} 1.0",
            "holdfast_container_restarts{namespace=\"default\",id=\"a\",name=\"a-name\"} 3.0",
            "holdfast_restore_duration_seconds 0.0125",
            "holdfast_shim_resident_bytes{namespace=\"default\",id=\"a\",name=\"a-name\"} 3145728.0",
            "holdfast_shim_anonymous_bytes{namespace=\"default\",id=\"a\",name=\"a-name\"} 524288.0",
            "holdfast_shims 2.0",
            "holdfast_shims_unresponsive 1.0",
            "holdfast_output_reader_absent{namespace=\"default\",id=\"a\",name=\"a-name\",exec_id=\"\",stream=\"stdout\"} 1.0",
            "holdfast_output_kept_bytes{namespace=\"default\",id=\"a\",name=\"a-name\",exec_id=\"\",stream=\"stdout\"} 4096.0",
            "holdfast_output_at_bound{namespace=\"default\",id=\"a\",name=\"a-name\",exec_id=\"\",stream=\"stdout\"} 1.0",
            "# TYPE holdfast_output_dropped_bytes counter",
            "holdfast_output_dropped_bytes_total{namespace=\"default\",id=\"a\",name=\"a-name\",exec_id=\"\",stream=\"stdout\"} 7",
            "holdfast_spill_bytes{directory=\"/s\"} 12288.0",
            "holdfast_spill_limit_bytes{directory=\"/s\"} 4294967296.0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("id=\"b\",name=\"b\""), "a stream without a reader to wait for: {text}");
        assert!(text.ends_with("# EOF\n"), "OpenMetrics ends like that");
    }

    #[test]
    fn a_name_cannot_break_a_line() {
        let pairs = labels([("directory", "a\"} 1\nb\\")]);
        assert_eq!(pairs[0].1, "a\\\"} 1\\nb\\\\");
    }

    #[test]
    fn the_same_is_always_written_in_the_same_order() {
        assert_eq!(measured().text().unwrap(), measured().text().unwrap());
    }
}
