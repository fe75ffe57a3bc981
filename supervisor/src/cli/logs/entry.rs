//! One entry of a log, read from the formats that the shim writes. Pure.

use std::time::{Duration, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;

/// What a file of a log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Docker's json-file.
    Json,
    /// Kubernetes' container log.
    Cri,
    /// The bytes as they came.
    Raw,
}

/// A piece of what a stream printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// With its newline, if it has one.
    pub(super) text: Vec<u8>,
    /// Whether it came from standard error.
    pub(super) is_stderr: bool,
    /// As the log has it; empty if that has none.
    pub(super) time: String,
}

impl Entry {
    /// Of one line of a file, its newline included. What is no entry is shown as it is.
    pub(super) fn parse(format: Format, line: &[u8]) -> Self {
        let entry = match format {
            Format::Json => Self::of_json(line),
            Format::Cri => Self::of_cri(line),
            Format::Raw => None,
        };
        entry.unwrap_or_else(|| Self { text: line.to_vec(), ..Self::default() })
    }

    fn of_json(line: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Json {
            log: String,
            #[serde(default)]
            stream: String,
            #[serde(default)]
            time: String,
        }
        let Json { log, stream, time } = serde_json::from_slice(line).ok()?;
        Some(Self { text: log.into_bytes(), is_stderr: stream == "stderr", time })
    }

    fn of_cri(line: &[u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |&b| b == b' ');
        let time = str::from_utf8(fields.next()?).ok()?;
        let stream = fields.next().filter(|s| matches!(*s, b"stdout" | b"stderr"))?;
        let whole = match fields.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        let mut text = fields.next()?.to_vec();
        if !whole && text.ends_with(b"\n") {
            text.pop();
        }
        Some(Self { text, is_stderr: stream == b"stderr", time: time.to_owned() })
    }

    /// Of what `journalctl --output=json` gives, with its cursor.
    pub(super) fn of_journal(line: &[u8]) -> Option<(Self, String)> {
        let fields: serde_json::Map<String, Value> = serde_json::from_slice(line).ok()?;
        let text = |key: &str| fields.get(key).and_then(Value::as_str).unwrap_or_default();
        let mut message = message(fields.get("MESSAGE"));
        if text("CONTAINER_PARTIAL_MESSAGE") != "true" {
            message.push(b'\n');
        }
        let received = || {
            let us = text("__REALTIME_TIMESTAMP").parse().unwrap_or(0);
            humantime::format_rfc3339_micros(UNIX_EPOCH + Duration::from_micros(us)).to_string()
        };
        let read = text("SYSLOG_TIMESTAMP");
        let time = if read.is_empty() { received() } else { read.to_owned() };
        let entry = Self { text: message, is_stderr: text("HOLDFAST_STREAM") == "stderr", time };
        Some((entry, text("__CURSOR").to_owned()))
    }

    /// Whether the stream's next entry begins a new line.
    pub(super) fn ends_line(&self) -> bool {
        self.text.ends_with(b"\n")
    }

    /// When it was read, in nanoseconds since the Unix epoch, if that is known.
    pub(super) fn unix_ns(&self) -> Option<i64> {
        let time = humantime::parse_rfc3339(&self.time).ok()?.duration_since(UNIX_EPOCH).ok()?;
        i64::try_from(time.as_nanos()).ok()
    }
}

/// A field that is not printable text is an array of its bytes.
fn message(field: Option<&Value>) -> Vec<u8> {
    match field {
        Some(Value::String(text)) => text.clone().into_bytes(),
        Some(Value::Array(bytes)) => {
            bytes.iter().filter_map(|b| b.as_u64().and_then(|b| u8::try_from(b).ok())).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry(text: &[u8], is_stderr: bool, time: &str) -> Entry {
        Entry { text: text.to_vec(), is_stderr, time: time.to_owned() }
    }

    #[test]
    fn each_format_is_read() {
        let time = "2023-11-14T22:13:20.5Z";
        let json = br#"{"log":"a\u0000\n","stream":"stderr","time":"2023-11-14T22:13:20.5Z"}"#;
        assert_eq!(Entry::parse(Format::Json, json), entry(b"a\0\n", true, time));
        let cri = |line: &[u8]| Entry::parse(Format::Cri, line);
        assert_eq!(cri(b"2023-11-14T22:13:20.5Z stdout F a  b\xff\n"), entry(b"a  b\xff\n", false, time));
        assert_eq!(cri(b"2023-11-14T22:13:20.5Z stderr P half\n"), entry(b"half", true, time));
        assert_eq!(cri(b"2023-11-14T22:13:20.5Z stdout F \n"), entry(b"\n", false, time));
        assert_eq!(Entry::parse(Format::Raw, json), entry(json, false, ""));
        assert_eq!(entry(b"", false, time).unix_ns(), Some(1_700_000_000_500_000_000));
    }

    #[test]
    fn what_is_no_entry_is_shown_as_it_is() {
        for format in [Format::Json, Format::Cri] {
            for line in [&b"text\n"[..], b"2023-11-14T22:13:20Z stdout X a\n", b"a b F c\n", b"{}\n", b"\n", b"\xff"] {
                assert_eq!(Entry::parse(format, line), entry(line, false, ""));
            }
        }
    }

    #[test]
    fn an_entry_of_the_journal_has_its_bytes_and_the_time_of_reading() {
        let text = br#"{"MESSAGE":"a","HOLDFAST_STREAM":"stderr","SYSLOG_TIMESTAMP":"2023-11-14T22:13:20.5Z",
            "__CURSOR":"c","__REALTIME_TIMESTAMP":"1"}"#;
        let (first, cursor) = Entry::of_journal(text).unwrap();
        assert_eq!((first, cursor.as_str()), (entry(b"a\n", true, "2023-11-14T22:13:20.5Z"), "c"));
        let bytes = br#"{"MESSAGE":[255,0],"CONTAINER_PARTIAL_MESSAGE":"true","__REALTIME_TIMESTAMP":"1500000"}"#;
        let (second, _) = Entry::of_journal(bytes).unwrap();
        assert_eq!(second, entry(b"\xff\0", false, "1970-01-01T00:00:01.500000Z"));
        assert_eq!(Entry::of_journal(br#"{"MESSAGE":null}"#).unwrap().0.text, b"\n");
        assert!(Entry::of_journal(b"-- No entries --").is_none());
    }
}
