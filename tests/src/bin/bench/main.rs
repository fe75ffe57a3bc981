//! The benchmark: drives the shim protocol of ours and of containerd's own shims, in turn, and prints medians.
//!
//! ```text
//! bench [--only life|output|fairness] [--rounds N] [--execs N]
//! ```
//!
//! In every round each subject has its turn, in an order that rotates, so that a machine which gets slower or faster does
//! so for all of them. What matters are the ratios. Root only.
#![allow(clippy::unwrap_used)]

mod fairness;
mod life;
mod output;
mod table;

use std::env;
use std::process::ExitCode;

use holdfast_tests::skip;

const USAGE: &str = "usage: bench [--only life|output|fairness] [--rounds N] [--execs N]";

/// One of the tables.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Life,
    Output,
    Fairness,
}

impl Part {
    const ALL: [(&'static str, Self); 3] =
        [("life", Self::Life), ("output", Self::Output), ("fairness", Self::Fairness)];
}

struct Settings {
    /// None: all parts.
    only: Option<Part>,
    /// None: as many as each part needs for a steady median.
    rounds: Option<usize>,
    execs: u32,
}

impl Settings {
    fn from_arguments() -> Result<Self, String> {
        let mut settings = Self { only: None, rounds: None, execs: 200 };
        let mut args = env::args().skip(1);
        while let Some(flag) = args.next() {
            let value = args.next().ok_or_else(|| format!("{flag} wants a value"))?;
            let number = || value.parse::<u32>().map_err(|_| format!("{flag}: {value:?} is no number"));
            match flag.as_str() {
                "--only" => {
                    let part = Part::ALL.iter().find(|(name, _)| *name == value);
                    settings.only = Some(part.ok_or_else(|| format!("--only: there is no part {value:?}"))?.1);
                }
                "--rounds" => settings.rounds = Some(number()?.max(1) as usize),
                "--execs" => settings.execs = number()?,
                _ => return Err(format!("unknown flag {flag}")),
            }
        }
        Ok(settings)
    }
}

fn main() -> ExitCode {
    let settings = match Settings::from_arguments() {
        Ok(settings) => settings,
        Err(message) => {
            eprintln!("bench: {message}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if !skip::is_root() {
        eprintln!("bench: needs root, as containers do");
        return ExitCode::FAILURE;
    }
    for (_, part) in Part::ALL {
        if settings.only.is_some_and(|only| only != part) {
            continue;
        }
        let done = match part {
            Part::Life => life::run(settings.rounds.unwrap_or(15), settings.execs),
            Part::Output => output::run(settings.rounds.unwrap_or(5)),
            Part::Fairness => fairness::run(settings.rounds.unwrap_or(5)),
        };
        if let Err(message) = done {
            eprintln!("bench: {message}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
