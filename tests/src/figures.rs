//! A protobuf message as figures by name, so that two answers can be compared without a list of their fields.

use std::collections::BTreeMap;

use protobuf::MessageDyn;
use protobuf::reflect::{ReflectFieldRef, ReflectValueRef};

/// Figures by name, as `memory.usage.limit` or `blkio.io_serviced_recursive[/dev/sda 8 0 Read].value`; those that are zero
/// or empty are left out, as on the wire.
pub type Figures = BTreeMap<String, String>;

/// The fields that name an element of a list.
const NAMES: [&str; 6] = ["pagesize", "device", "major", "minor", "op", "name"];

/// All figures of a message.
///
/// # Panics
/// If it has fields that its type does not know: they could not be compared.
#[track_caller]
pub fn of(message: &dyn MessageDyn) -> Figures {
    let mut figures = Figures::new();
    collect("", message, &mut figures);
    figures
}

#[track_caller]
fn collect(prefix: &str, message: &dyn MessageDyn, figures: &mut Figures) {
    let unknown = message.unknown_fields_dyn().iter().map(|(number, _)| number).collect::<Vec<_>>();
    assert!(unknown.is_empty(), "{prefix:?} has fields that are not known here: {unknown:?}");
    for field in message.descriptor_dyn().fields() {
        let name = if prefix.is_empty() { field.name().to_owned() } else { format!("{prefix}.{}", field.name()) };
        match field.get_reflect(message) {
            ReflectFieldRef::Optional(value) => {
                if let Some(value) = value.value() {
                    add(&name, &value, figures);
                }
            }
            ReflectFieldRef::Repeated(list) => {
                for (index, value) in list.into_iter().enumerate() {
                    add(&format!("{name}[{}]", element_name(&value, index)), &value, figures);
                }
            }
            ReflectFieldRef::Map(_) => panic!("{name} is a map, which no metrics had when this was written"),
        }
    }
}

#[track_caller]
fn add(name: &str, value: &ReflectValueRef<'_>, figures: &mut Figures) {
    let text = match value {
        ReflectValueRef::Message(message) => return collect(name, &**message, figures),
        ReflectValueRef::U32(n) => n.to_string(),
        ReflectValueRef::U64(n) => n.to_string(),
        ReflectValueRef::F64(n) => n.to_string(),
        ReflectValueRef::String(text) => (*text).to_owned(),
        other => panic!("{name} has a type that no metrics had when this was written: {other:?}"),
    };
    if !text.is_empty() && text != "0" {
        figures.insert(name.to_owned(), text);
    }
}

/// What is the same of an element wherever in the list it stands; else its place.
fn element_name(value: &ReflectValueRef<'_>, index: usize) -> String {
    let ReflectValueRef::Message(message) = value else { return index.to_string() };
    let descriptor = message.descriptor_dyn();
    let parts = NAMES.iter().filter_map(|name| {
        let field = descriptor.field_by_name(name)?;
        let text = match field.get_singular_field_or_default(&**message) {
            ReflectValueRef::U64(n) => n.to_string(),
            ReflectValueRef::String(text) => text.to_owned(),
            _ => return None,
        };
        (!text.is_empty()).then_some(text)
    });
    let name = parts.collect::<Vec<_>>().join(" ");
    if name.is_empty() { index.to_string() } else { name }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::cgroups::metrics::{BlkIOEntry, Metrics, NetworkStat};

    use super::*;

    #[test]
    fn every_figure_has_a_name_and_zeros_have_none() {
        let mut metrics = Metrics::default();
        metrics.cpu.mut_or_insert_default().usage.mut_or_insert_default().per_cpu = vec![7, 0, 9];
        metrics.memory.mut_or_insert_default().usage.mut_or_insert_default().limit = 5;
        metrics.network.push(NetworkStat::default());
        let entry =
            BlkIOEntry { device: "/dev/sda".into(), major: 8, op: "Read".into(), value: 3, ..Default::default() };
        metrics.blkio.mut_or_insert_default().io_serviced_recursive = vec![BlkIOEntry::default(), entry];
        let figures: Vec<(String, String)> = of(&metrics).into_iter().collect();
        let element = "blkio.io_serviced_recursive[/dev/sda 8 0 Read]";
        let expected = [
            (format!("{element}.device"), "/dev/sda"),
            (format!("{element}.major"), "8"),
            (format!("{element}.op"), "Read"),
            (format!("{element}.value"), "3"),
            ("cpu.usage.per_cpu[0]".to_owned(), "7"),
            ("cpu.usage.per_cpu[2]".to_owned(), "9"),
            ("memory.usage.limit".to_owned(), "5"),
        ];
        assert_eq!(figures, expected.map(|(name, value)| (name, value.to_owned())));
    }

    #[test]
    #[should_panic(expected = "not known here: [77]")]
    fn a_field_that_is_not_known_is_no_figure_but_an_alarm() {
        let mut metrics = Metrics::default();
        let unknown = metrics.special_fields.mut_unknown_fields();
        unknown.add_varint(77, 1);
        of(&metrics);
    }
}
