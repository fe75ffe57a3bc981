//! The settings file: its text taken apart into keys and values, each with the place where it stands.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// Every key, in the order in which people are told of them.
pub(super) const KEYS: [&str; 15] = [
    "live-restore",
    "listen",
    "state-dir",
    "run-dir",
    "shim",
    "runtime",
    "log-level",
    "start-timeout",
    "shutdown-timeout",
    "restore-deadline",
    "metrics-listen",
    "metrics-interval",
    "log.driver",
    "log.max-size",
    "log.max-file",
];

/// The tables that keys may be in.
const TABLES: [&str; 1] = ["log"];

/// What TOML type a key's value has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Boolean,
    Number,
}

impl Kind {
    fn of(key: &str) -> Self {
        match key {
            "live-restore" => Self::Boolean,
            "log.max-file" => Self::Number,
            _ => Self::Text,
        }
    }

    fn wanted(self) -> &'static str {
        match self {
            Self::Text => "it must be a text in quotes",
            Self::Boolean => "it must be true or false, without quotes",
            Self::Number => "it must be a number, without quotes",
        }
    }
}

/// A value that was given for a key, and how to point at it: `FILE:LINE:COLUMN: key = value`, or `--key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) text: String,
    pub(super) place: String,
}

impl Given {
    /// Says why the value does not do.
    pub(super) fn invalid(&self, why: impl Into<String>) -> ConfigError {
        ConfigError::Value { place: self.place.clone(), value: self.text.clone(), why: why.into() }
    }
}

/// Takes the file's text apart.
///
/// # Errors
/// [`ConfigError::Malformed`] and [`ConfigError::Value`]: the first mistake with its line and column, counted from 1.
pub(super) fn parse(path: &Path, text: &str) -> Result<BTreeMap<&'static str, Given>, ConfigError> {
    let file = File { path, text };
    let table = DeTable::parse(text).map_err(|e| file.malformed(e.span().unwrap_or_default(), e.message()))?;
    let mut given = BTreeMap::new();
    file.collect("", table.get_ref(), &mut given)?;
    Ok(given)
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn collect(
        &self,
        prefix: &str,
        table: &DeTable<'_>,
        given: &mut BTreeMap<&'static str, Given>,
    ) -> Result<(), ConfigError> {
        for (name, value) in table {
            let dotted = format!("{prefix}{}", name.get_ref());
            if let (true, DeValue::Table(inner)) = (TABLES.contains(&dotted.as_str()), value.get_ref()) {
                self.collect(&format!("{dotted}."), inner, given)?;
                continue;
            }
            let Some(key) = KEYS.iter().find(|key| **key == dotted) else {
                let why = match TABLES.contains(&dotted.as_str()) {
                    true => format!("{dotted} is a table: it is written as [{dotted}]"),
                    false => format!("there is no key {dotted:?}; there are {}", KEYS.join(", ")),
                };
                return Err(self.malformed(name.span(), &why));
            };
            let place = format!("{}: {key}", self.place(value.span()));
            let found = match value.get_ref() {
                DeValue::String(text) => Some((Kind::Text, text.to_string())),
                DeValue::Boolean(yes) => Some((Kind::Boolean, yes.to_string())),
                DeValue::Integer(number) => Some((Kind::Number, number.to_string())),
                _ => None,
            };
            match found.filter(|(kind, _)| *kind == Kind::of(key)) {
                Some((_, text)) => {
                    given.insert(key, Given { text, place });
                }
                None => {
                    let text = self.text.get(value.span()).unwrap_or_default().trim().to_owned();
                    return Err(Given { text, place }.invalid(Kind::of(key).wanted()));
                }
            }
        }
        Ok(())
    }

    fn malformed(&self, span: Range<usize>, why: &str) -> ConfigError {
        // Of a parser's words that take several lines, the first says it.
        let why = why.lines().next().unwrap_or_default().to_owned();
        let line = self.text.get(self.start_of_line(span.start)..).unwrap_or_default();
        let line = line.lines().next().unwrap_or_default().trim().to_owned();
        ConfigError::Malformed { place: self.place(span), line, why }
    }

    fn start_of_line(&self, at: usize) -> usize {
        self.text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1)
    }

    /// `FILE:LINE:COLUMN`, both from 1; columns are characters.
    fn place(&self, span: Range<usize>) -> String {
        let before = self.text.get(..span.start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before[self.start_of_line(span.start)..].chars().count() + 1;
        format!("{}:{line}:{column}", self.path.display())
    }
}
