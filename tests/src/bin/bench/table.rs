//! What the tables have in common.

use std::fmt;
use std::io::IsTerminal;
use std::time::Duration;

/// The value in the middle; none of nothing.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// One line that is written over, for people; nothing into a file.
pub(crate) fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{text:60}\r");
    }
}

/// A value and its ratio to the reference.
pub(crate) struct Cell(pub(crate) Option<f64>, pub(crate) Option<f64>);

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value, reference) = self;
        let text = match (value, reference) {
            (None, _) => "-".into(),
            (Some(value), Some(reference)) if *reference > 0.0 => format!("{value:.1} ({:.2})", value / reference),
            (Some(value), _) => format!("{value:.1}"),
        };
        f.pad(&text)
    }
}
