//! What a container uses: from its shim's answer, whichever version of control groups it comes from. Pure but for asking.

use std::time::Duration;

use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};
use holdfast_proto::supervisor as pb;
use nix::time::{ClockId, clock_gettime};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use thiserror::Error;

use crate::client::{CallError, ShimClient};

/// The types of the two answers, as containerd's clients know them.
const V1: &str = "io.containerd.cgroups.v1.Metrics";
const V2: &str = "io.containerd.cgroups.v2.Metrics";

/// A number from here on is how the kernel writes "no limit": version 1 gives the largest number of whole pages, and
/// version 2 a word that shims pass on as the largest number.
const NO_LIMIT: u64 = i64::MAX as u64 & !0xffff;

/// The figures of one container. What the kernel does not count is `None`; so is a limit that is not set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Time on all CPUs.
    pub cpu: Option<Duration>,
    /// All memory that is charged to it, in bytes.
    pub memory: Option<u64>,
    /// The part of it that is page cache which nobody used lately, in bytes.
    pub inactive_file: u64,
    /// In bytes.
    pub memory_limit: Option<u64>,
    /// Bytes from and to block devices.
    pub block: Option<(u64, u64)>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// How many may be.
    pub pids_limit: Option<u64>,
}

/// Why there are no figures.
#[derive(Debug, Error)]
pub enum StatsError {
    /// The shim gave none.
    #[error("its shim does not say")]
    Call(#[source] CallError),
    /// It did not answer in time.
    #[error("its shim does not answer")]
    Silent,
    /// A message that nobody here knows.
    #[error("its shim answers with {0:?}, which is unknown here")]
    Unknown(String),
    /// Not what its type says.
    #[error("its shim's answer cannot be read")]
    Malformed(#[source] protobuf::Error),
}

/// Asks the shim at `address` for the figures of container `id`. One deadline for everything.
///
/// # Errors
/// See [`StatsError`].
pub async fn ask(address: &str, id: &str, within: Duration) -> Result<Figures, StatsError> {
    let question = |client: ShimClient| async move { client.stats(within).await };
    let answer = ShimClient::ask(address, id, "Stats", within, question).await;
    Figures::read(&answer.map_err(|e| if e.is_silence() { StatsError::Silent } else { StatsError::Call(e) })?)
}

impl Figures {
    /// Reads an answer to `Stats`.
    ///
    /// # Errors
    /// [`StatsError::Unknown`] and [`StatsError::Malformed`].
    pub fn read(any: &Any) -> Result<Self, StatsError> {
        match any.type_url.as_str() {
            V1 => v1::Metrics::parse_from_bytes(&any.value).map(|m| Self::of_v1(&m)),
            V2 => v2::Metrics::parse_from_bytes(&any.value).map(|m| Self::of_v2(&m)),
            other => return Err(StatsError::Unknown(other.to_owned())),
        }
        .map_err(StatsError::Malformed)
    }

    fn of_v1(m: &v1::Metrics) -> Self {
        let memory = m.memory.as_ref();
        let usage = memory.and_then(|memory| memory.usage.as_ref());
        let pids = m.pids.as_ref();
        let block = m.blkio.as_ref().map(|io| {
            let sum = |op: &str| {
                let fits = |e: &&v1::BlkIOEntry| e.op.eq_ignore_ascii_case(op);
                io.io_service_bytes_recursive.iter().filter(fits).map(|e| e.value).sum()
            };
            (sum("read"), sum("write"))
        });
        Self {
            cpu: m.cpu.as_ref().and_then(|cpu| cpu.usage.as_ref()).map(|usage| Duration::from_nanos(usage.total)),
            memory: usage.map(|usage| usage.usage),
            inactive_file: memory.map_or(0, |memory| memory.total_inactive_file),
            memory_limit: usage.and_then(|usage| limit(usage.limit)),
            block,
            pids: pids.map(|pids| pids.current),
            pids_limit: pids.and_then(|pids| limit(pids.limit)),
        }
    }

    fn of_v2(m: &v2::Metrics) -> Self {
        let (memory, pids) = (m.memory.as_ref(), m.pids.as_ref());
        let sum = |io: &v2::IOStat, value: fn(&v2::IOEntry) -> u64| io.usage.iter().map(value).sum();
        Self {
            cpu: m.cpu.as_ref().map(|cpu| Duration::from_micros(cpu.usage_usec)),
            memory: memory.map(|memory| memory.usage),
            inactive_file: memory.map_or(0, |memory| memory.inactive_file),
            memory_limit: memory.and_then(|memory| limit(memory.usage_limit)),
            block: m.io.as_ref().map(|io| (sum(io, |e| e.rbytes), sum(io, |e| e.wbytes))),
            pids: pids.map(|pids| pids.current),
            pids_limit: pids.and_then(|pids| limit(pids.limit)),
        }
    }

    /// Writes them into a message, with the time that is now.
    pub fn fill(self, message: &mut pb::ContainerStats) {
        message.taken_at_monotonic_ns = monotonic_ns();
        message.cpu_ns = self.cpu.map(|cpu| u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX));
        message.memory_bytes = self.memory;
        message.memory_in_use_bytes = self.memory.map(|memory| memory.saturating_sub(self.inactive_file));
        message.memory_limit_bytes = self.memory_limit;
        (message.block_read_bytes, message.block_written_bytes) = self.block.unzip();
        (message.pids, message.pids_limit) = (self.pids, self.pids_limit);
    }
}

/// Version 1 says 0 for "no limit" where there is a word in the kernel's file.
fn limit(number: u64) -> Option<u64> {
    (number != 0 && number < NO_LIMIT).then_some(number)
}

/// Time since some point in the past, the same one for all processes of this boot.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use protobuf::MessageField;

    fn any(type_url: &str, message: &impl Message) -> Any {
        Any { type_url: type_url.into(), value: message.write_to_bytes().unwrap(), ..Default::default() }
    }

    fn v1_metrics(limit: u64) -> v1::Metrics {
        let entry = |op: &str, value| v1::BlkIOEntry { op: op.into(), value, ..Default::default() };
        let mut m = v1::Metrics::default();
        let usage = v1::CPUUsage { total: 5_000_000, ..Default::default() };
        m.cpu = MessageField::some(v1::CPUStat { usage: MessageField::some(usage), ..Default::default() });
        let usage = v1::MemoryEntry { usage: 4096, limit, ..Default::default() };
        m.memory = MessageField::some(v1::MemoryStat {
            total_inactive_file: 1096,
            usage: MessageField::some(usage),
            ..Default::default()
        });
        m.pids = MessageField::some(v1::PidsStat { current: 3, ..Default::default() });
        m.blkio = MessageField::some(v1::BlkIOStat {
            io_service_bytes_recursive: vec![entry("Read", 1), entry("Write", 2), entry("Read", 4), entry("Sync", 8)],
            ..Default::default()
        });
        m
    }

    #[test]
    fn version_1_is_read() {
        let figures = Figures::read(&any(V1, &v1_metrics(1 << 20))).unwrap();
        let expected = Figures {
            cpu: Some(Duration::from_millis(5)),
            memory: Some(4096),
            inactive_file: 1096,
            memory_limit: Some(1 << 20),
            block: Some((5, 2)),
            pids: Some(3),
            pids_limit: None,
        };
        assert_eq!(figures, expected);
    }

    #[test]
    fn version_2_is_read() {
        let cpu = MessageField::some(v2::CPUStat { usage_usec: 7, ..Default::default() });
        let mut m = v2::Metrics { cpu, ..Default::default() };
        m.memory = MessageField::some(v2::MemoryStat {
            usage: 100,
            inactive_file: 300,
            usage_limit: u64::MAX,
            ..Default::default()
        });
        let entry = v2::IOEntry { rbytes: 1, wbytes: 2, ..Default::default() };
        m.io = MessageField::some(v2::IOStat { usage: vec![entry.clone(), entry], ..Default::default() });
        m.pids = MessageField::some(v2::PidsStat { current: 1, limit: 9, ..Default::default() });
        let figures = Figures::read(&any(V2, &m)).unwrap();
        assert_eq!((figures.cpu, figures.block), (Some(Duration::from_micros(7)), Some((2, 4))));
        assert_eq!((figures.memory_limit, figures.pids_limit), (None, Some(9)));
        let mut message = pb::ContainerStats::default();
        figures.fill(&mut message);
        assert_eq!((message.memory_bytes, message.memory_in_use_bytes), (Some(100), Some(0)));
        assert!(message.taken_at_monotonic_ns > 0);
    }

    #[test]
    fn what_the_kernel_calls_no_limit_is_none() {
        for none in [9_223_372_036_854_771_712, 9_223_372_036_854_710_272, u64::MAX, 0] {
            assert_eq!(Figures::read(&any(V1, &v1_metrics(none))).unwrap().memory_limit, None, "{none}");
        }
    }

    #[test]
    fn what_is_not_counted_is_not_made_up() {
        assert_eq!(Figures::read(&any(V2, &v2::Metrics::default())).unwrap(), Figures::default());
        let unknown = Figures::read(&Any { type_url: "io.x".into(), ..Default::default() }).unwrap_err();
        assert!(unknown.to_string().contains("io.x"));
        let broken = Any { type_url: V1.into(), value: vec![0xff], ..Default::default() };
        assert!(matches!(Figures::read(&broken), Err(StatsError::Malformed(_))));
    }
}
