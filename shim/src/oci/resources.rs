//! What Update asks: the `linux.resources` of the OCI runtime specification (config-linux.md, "Control groups"), looked at
//! before an OCI runtime gets them; pure.
//!
//! A runtime says of a wrong value that it could not read its input; here it is named. A field that is not known here is no
//! error (config.md, "Extensibility"): a later client may know a later runtime. The runtime gets it, and the log is told,
//! since a limit that is misspelt seems to be set. Whether a limit can be met is the runtime's and the kernel's to say.

use serde_json::{Map, Value};

/// What is wrong with the resources.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They are of a message that no OCI runtime here takes.
    #[error("resources of type {0:?} are not those of Linux")]
    Type(String),
    /// They are no JSON object.
    #[error("the resources are not a JSON object: {0}")]
    Json(String),
    /// A field has a value of another kind.
    #[error("the resources' field {field} must be {wanted}, not {value}")]
    Kind {
        /// Its path, as `memory.limit` or `devices[0].allow`.
        field: String,
        /// In words.
        wanted: &'static str,
        /// As JSON.
        value: String,
    },
}

/// The kinds of values. What is optional in the specification's Go types may be `null`.
enum Kind {
    Bool,
    Text,
    /// A whole number within these bounds.
    Whole(i128, i128, &'static str),
    Object(&'static [(&'static str, Kind)]),
    List(&'static Kind),
    /// An object with any names and values of one kind.
    Map(&'static Kind),
}

const SIGNED: Kind = Kind::Whole(i64::MIN as i128, i64::MAX as i128, "a whole number of at most 63 bits");
const UNSIGNED: Kind = Kind::Whole(0, u64::MAX as i128, "a whole number of at most 64 bits, 0 or more");
const UNSIGNED_32: Kind = Kind::Whole(0, u32::MAX as i128, "a whole number of at most 32 bits, 0 or more");
const UNSIGNED_16: Kind = Kind::Whole(0, u16::MAX as i128, "a whole number of at most 16 bits, 0 or more");

const DEVICE: Kind = Kind::Object(&[
    ("allow", Kind::Bool),
    ("type", Kind::Text),
    ("major", SIGNED),
    ("minor", SIGNED),
    ("access", Kind::Text),
]);
const MEMORY: Kind = Kind::Object(&[
    ("limit", SIGNED),
    ("reservation", SIGNED),
    ("swap", SIGNED),
    ("kernel", SIGNED),
    ("kernelTCP", SIGNED),
    ("swappiness", UNSIGNED),
    ("disableOOMKiller", Kind::Bool),
    ("useHierarchy", Kind::Bool),
    ("checkBeforeUpdate", Kind::Bool),
]);
const CPU: Kind = Kind::Object(&[
    ("shares", UNSIGNED),
    ("quota", SIGNED),
    ("burst", UNSIGNED),
    ("period", UNSIGNED),
    ("realtimeRuntime", SIGNED),
    ("realtimePeriod", UNSIGNED),
    ("cpus", Kind::Text),
    ("mems", Kind::Text),
    ("idle", SIGNED),
]);
const WEIGHT_OF_DEVICE: Kind =
    Kind::Object(&[("major", SIGNED), ("minor", SIGNED), ("weight", UNSIGNED_16), ("leafWeight", UNSIGNED_16)]);
const RATE_OF_DEVICE: Kind = Kind::Object(&[("major", SIGNED), ("minor", SIGNED), ("rate", UNSIGNED)]);
const BLOCK_IO: Kind = Kind::Object(&[
    ("weight", UNSIGNED_16),
    ("leafWeight", UNSIGNED_16),
    ("weightDevice", Kind::List(&WEIGHT_OF_DEVICE)),
    ("throttleReadBpsDevice", Kind::List(&RATE_OF_DEVICE)),
    ("throttleWriteBpsDevice", Kind::List(&RATE_OF_DEVICE)),
    ("throttleReadIOPSDevice", Kind::List(&RATE_OF_DEVICE)),
    ("throttleWriteIOPSDevice", Kind::List(&RATE_OF_DEVICE)),
]);
const NETWORK: Kind = Kind::Object(&[
    ("classID", UNSIGNED_32),
    ("priorities", Kind::List(&Kind::Object(&[("name", Kind::Text), ("priority", UNSIGNED_32)]))),
]);
const RESOURCES: Kind = Kind::Object(&[
    ("devices", Kind::List(&DEVICE)),
    ("memory", MEMORY),
    ("cpu", CPU),
    ("pids", Kind::Object(&[("limit", SIGNED)])),
    ("blockIO", BLOCK_IO),
    ("hugepageLimits", Kind::List(&Kind::Object(&[("pageSize", Kind::Text), ("limit", UNSIGNED)]))),
    ("network", NETWORK),
    ("rdma", Kind::Map(&Kind::Object(&[("hcaHandles", UNSIGNED_32), ("hcaObjects", UNSIGNED_32)]))),
    ("unified", Kind::Map(&Kind::Text)),
]);

/// Checks what came as the resources of an Update: its type and its value. The fields that are not known, by their paths.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(type_url: &str, json: &[u8]) -> Result<Vec<String>, Malformed> {
    // Nobody but us looks at the type; a client that leaves it out has always been served.
    if !type_url.is_empty() && type_url.rsplit('/').next() != Some("LinuxResources") {
        return Err(Malformed::Type(type_url.to_owned()));
    }
    let object: Map<String, Value> = serde_json::from_slice(json).map_err(|e| Malformed::Json(e.to_string()))?;
    let mut unknown = Vec::new();
    check_value("", &Value::Object(object), &RESOURCES, &mut unknown)?;
    Ok(unknown)
}

fn check_value(field: &str, value: &Value, kind: &Kind, unknown: &mut Vec<String>) -> Result<(), Malformed> {
    let (fits, wanted) = match kind {
        _ if value.is_null() => return Ok(()),
        Kind::Bool => (value.is_boolean(), "true or false"),
        Kind::Text => (value.is_string(), "a string"),
        Kind::Whole(least, most, wanted) => (whole(value).is_some_and(|n| (*least..=*most).contains(&n)), *wanted),
        Kind::Object(fields) => match value {
            Value::Object(object) => return check_object(field, object, fields, unknown),
            _ => (false, "an object"),
        },
        Kind::List(kind) => match value {
            Value::Array(list) => {
                let mut elements = list.iter().enumerate();
                return elements.try_for_each(|(n, value)| check_value(&format!("{field}[{n}]"), value, kind, unknown));
            }
            _ => (false, "a list"),
        },
        Kind::Map(kind) => match value {
            Value::Object(map) => {
                let mut entries = map.iter();
                let mut check = |name: &String, value| check_value(&format!("{field}[{name:?}]"), value, kind, unknown);
                return entries.try_for_each(|(name, value)| check(name, value));
            }
            _ => (false, "an object"),
        },
    };
    if fits { Ok(()) } else { Err(Malformed::Kind { field: field.to_owned(), wanted, value: value.to_string() }) }
}

fn check_object(
    field: &str,
    object: &Map<String, Value>,
    fields: &[(&str, Kind)],
    unknown: &mut Vec<String>,
) -> Result<(), Malformed> {
    for (name, value) in object {
        let path = if field.is_empty() { name.clone() } else { format!("{field}.{name}") };
        match fields.iter().find(|(known, _)| known == name) {
            Some((_, kind)) => check_value(&path, value, kind, unknown)?,
            None => unknown.push(path),
        }
    }
    Ok(())
}

fn whole(value: &Value) -> Option<i128> {
    value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(json: &str) -> String {
        check("", json.as_bytes()).map_or_else(|e| e.to_string(), |unknown| format!("well{}", unknown.join(" ")))
    }

    #[test]
    fn all_that_the_specification_has_is_taken() {
        let all = r#"{
            "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": -1}],
            "memory": {"limit": -1, "reservation": 1, "swap": 2, "kernel": -1, "kernelTCP": -1, "swappiness": 0,
                       "disableOOMKiller": false, "useHierarchy": true, "checkBeforeUpdate": true},
            "cpu": {"shares": 1024, "quota": -1, "burst": 0, "period": 100000, "realtimeRuntime": 950000,
                    "realtimePeriod": 1000000, "cpus": "0-1", "mems": "0", "idle": 0},
            "pids": {"limit": 18446744}, "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 5}]},
            "blockIO": {"weight": 10, "leafWeight": 10, "weightDevice": [{"major": 8, "minor": 0, "weight": 500}],
                        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}], "throttleWriteBpsDevice": [],
                        "throttleReadIOPSDevice": null, "throttleWriteIOPSDevice": [{"rate": 18446744073709551615}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 9223372036854772000}],
            "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}}, "unified": {"memory.high": "max"}
        }"#;
        assert_eq!(said(all), "well");
        assert_eq!([said("{}"), said(r#"{"memory": null}"#)], ["well", "well"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, expected) in [
            ("", "the resources are not a JSON object: EOF while parsing a value at line 1 column 0"),
            (r#"{"memory": 7}"#, "the resources' field memory must be an object, not 7"),
            (
                r#"{"memory": {"limit": "1G"}}"#,
                r#"the resources' field memory.limit must be a whole number of at most 63 bits, not "1G""#,
            ),
            (
                r#"{"cpu": {"shares": -2}}"#,
                "the resources' field cpu.shares must be a whole number of at most 64 bits, 0 or more, not -2",
            ),
            (
                r#"{"blockIO": {"weight": 70000}}"#,
                "the resources' field blockIO.weight must be a whole number of at most 16 bits, 0 or more, not 70000",
            ),
            (
                r#"{"pids": {"limit": 1.5}}"#,
                "the resources' field pids.limit must be a whole number of at most 63 bits, not 1.5",
            ),
            (r#"{"devices": {}}"#, "the resources' field devices must be a list, not {}"),
            (
                r#"{"devices": [{}, {"allow": "yes"}]}"#,
                r#"the resources' field devices[1].allow must be true or false, not "yes""#,
            ),
            (r#"{"cpu": {"cpus": 0}}"#, "the resources' field cpu.cpus must be a string, not 0"),
            (r#"{"unified": {"pids.max": 5}}"#, r#"the resources' field unified["pids.max"] must be a string, not 5"#),
            (
                r#"{"rdma": {"m": {"hcaHandles": -1}}}"#,
                "the resources' field rdma[\"m\"].hcaHandles must be a whole number of at most 32 bits, 0 or more, not -1",
            ),
        ] {
            assert_eq!(said(json), expected);
        }
    }

    #[test]
    fn what_is_not_known_is_told_and_no_error() {
        let unknown = check("", br#"{"memoy": {}, "memory": {"limit": 1, "limitt": "1"}, "devices": [{"new": 1}]}"#);
        assert_eq!(unknown, Ok(["devices[0].new", "memory.limitt", "memoy"].map(str::to_owned).to_vec()));
    }

    #[test]
    fn only_resources_of_linux_are_taken() {
        let prefix = "types.containerd.io/opencontainers/runtime-spec/1/";
        assert_eq!(check(&format!("{prefix}LinuxResources"), b"{}"), Ok(Vec::new()));
        let windows = format!("{prefix}WindowsResources");
        assert_eq!(check(&windows, b"{}"), Err(Malformed::Type(windows.clone())));
    }
}
