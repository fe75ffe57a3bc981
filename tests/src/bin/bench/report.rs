//! What was measured: the table for people, JSON for comparisons, a plot.

use std::path::Path;

use holdfast_tests::readme;
use serde::{Deserialize, Serialize};

/// The whole of one run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// When, as `date -u` writes it.
    pub(crate) date: String,
    /// Whether everything was measured, as often as it takes.
    pub(crate) full: bool,
    /// What it ran on, and the versions of what was compared.
    pub(crate) machine: Vec<String>,
    /// How much of the time a virtual machine's processors were kept from it, in percent.
    #[serde(default)]
    pub(crate) stolen: Option<f64>,
    /// When the figures were measured that an earlier run has left, if there are any.
    #[serde(default)]
    pub(crate) kept_from: Vec<String>,
    /// In the order in which they were measured.
    pub(crate) figures: Vec<Figure>,
}

/// One quantity of all subjects.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// The part of the benchmark.
    pub(crate) part: String,
    pub(crate) name: String,
    pub(crate) unit: String,
    /// Whether more is better; otherwise less is.
    #[serde(default)]
    pub(crate) more_is_better: bool,
    /// In the order of the columns. The last one is what the others are compared with.
    pub(crate) samples: Vec<Samples>,
}

/// All values of one subject.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Samples {
    pub(crate) subject: String,
    pub(crate) values: Vec<f64>,
}

/// The three values that stand for many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    /// A quarter of the values is less than this.
    pub(crate) low: f64,
    pub(crate) median: f64,
    /// A quarter of the values is more than this.
    pub(crate) high: f64,
}

impl Samples {
    /// None of no values.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        // Between the two values that are nearest to that part of the way.
        let at = |quarters: usize| {
            let (whole, rest) = (last * quarters / 4, last * quarters % 4);
            let next = values[(whole + 1).min(last)];
            #[allow(clippy::cast_precision_loss)] // 0 to 3
            let part = rest as f64 / 4.0;
            values[whole] + (next - values[whole]) * part
        };
        Some(Summary { low: at(1), median: at(2), high: at(3) })
    }
}

impl Report {
    /// Adds a value; figures and subjects come in the order in which they are named first.
    pub(crate) fn add(&mut self, of: &Of<'_>, subject: &str, value: f64) {
        let known = self.figures.iter().position(|f| f.part == of.part && f.name == of.name);
        let at = known.unwrap_or_else(|| {
            self.figures.push(Figure {
                part: of.part.into(),
                name: of.name.into(),
                unit: of.unit.into(),
                more_is_better: of.more_is_better,
                samples: Vec::new(),
            });
            self.figures.len() - 1
        });
        let samples = &mut self.figures[at].samples;
        match samples.iter_mut().find(|s| s.subject == subject) {
            Some(samples) => samples.values.push(value),
            None => samples.push(Samples { subject: subject.into(), values: vec![value] }),
        }
    }

    /// The older report with what this one has measured in its place.
    ///
    /// # Errors
    /// If they cannot stand beside each other.
    pub(crate) fn instead_of(mut self, older: Self) -> Result<Self, String> {
        if (&self.machine, self.full) != (&older.machine, older.full) {
            return Err("the last run was of another machine, of other versions or of the other form".into());
        }
        let mut figures = older.figures;
        for new in self.figures {
            match figures.iter_mut().find(|old| old.part == new.part && old.name == new.name) {
                Some(old) => *old = new,
                None => figures.push(new),
            }
        }
        self.stolen = [self.stolen, older.stolen].into_iter().flatten().reduce(f64::max);
        self.kept_from = older.kept_from;
        if older.date != self.date && !self.kept_from.contains(&older.date) {
            self.kept_from.push(older.date);
        }
        Ok(Self { figures, ..self })
    }

    /// # Errors
    /// If it is no report, with the file's name.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        serde_json::from_str(&readme::load(path)?)
            .map_err(|e| format!("{} is no report of this benchmark: {e}", path.display()))
    }
}

/// Which quantity.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Of<'a> {
    pub(crate) part: &'a str,
    pub(crate) name: &'a str,
    pub(crate) unit: &'a str,
    pub(crate) more_is_better: bool,
}
