//! The report as text: for people, for README.md, and beside an older one.

use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::presets::{ASCII_MARKDOWN, NOTHING};
use comfy_table::{CellAlignment, Table};

use crate::goals;
use crate::report::{Figure, Report, Samples, Summary};

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// With as many digits as say something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

pub(crate) fn quantity(figure: &Figure) -> String {
    if figure.unit.is_empty() { figure.name.clone() } else { format!("{}, {}", figure.name, figure.unit) }
}

/// A median, its quartiles if there is more than one value, and the ratio to the reference.
fn cell(samples: Option<&Samples>, reference: Option<&Samples>, spread: bool) -> String {
    let Some((samples, summary)) = samples.and_then(|s| Some((s, s.summary()?))) else { return "–".into() };
    let Summary { low, median, high } = summary;
    let mut text = number(median);
    if spread && samples.values.len() > 1 {
        let _ = write!(text, " ({} to {})", number(low), number(high));
    }
    let reference = reference.filter(|r| r.subject != samples.subject).and_then(Samples::summary);
    if let Some(reference) = reference.filter(|r| r.median > 0.0) {
        let _ = write!(text, " × {:.2}", median / reference.median);
    }
    text
}

/// Parts whose columns are not the same of several subjects.
const NOT_COMPARED: [&str; 2] = ["projection", "limits"];

/// Whether a figure's columns are several subjects, and more of it or less is better.
pub(crate) fn is_compared(part: &str) -> bool {
    !NOT_COMPARED.contains(&part)
}

/// The goals, and one table for each part. The ratios are those to the last column.
pub(crate) fn tables(report: &Report, markdown: bool) -> String {
    let preset = if markdown { ASCII_MARKDOWN } else { NOTHING };
    let mut text = goals::table(report, preset);
    for part in distinct(report.figures.iter().map(|f| f.part.as_str())) {
        let figures: Vec<&Figure> = report.figures.iter().filter(|f| f.part == part).collect();
        let subjects = distinct(figures.iter().flat_map(|f| &f.samples).map(|s| s.subject.as_str()));
        let mut table = Table::new();
        table.load_preset(preset);
        table.set_header([part].into_iter().chain(subjects.iter().copied()));
        for figure in figures {
            let of = |subject: &str| figure.samples.iter().find(|s| s.subject == subject);
            let reference = subjects.last().filter(|_| is_compared(part)).and_then(|s| of(s));
            let cells = subjects.iter().map(|subject| cell(of(subject), reference, !markdown));
            table.add_row([quantity(figure)].into_iter().chain(cells));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let _ = writeln!(text, "{}\n", table.trim_fmt());
    }
    text
}

/// Each word once, where it comes first.
fn distinct<'a>(words: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    words.fold(Vec::new(), |mut seen, word| {
        if !seen.contains(&word) {
            seen.push(word);
        }
        seen
    })
}

/// All of it, for README.md.
pub(crate) fn markdown(report: &Report) -> String {
    format!("{}\n\n{}", heading(report), tables(report, true))
}

/// The date, the machine, and what was compared.
pub(crate) fn heading(report: &Report) -> String {
    let mode = if report.full { "all of it" } else { "the short form" };
    let kept = match report.kept_from.as_slice() {
        [] => String::new(),
        dates => format!(" (some of it {})", dates.join(", ")),
    };
    let stolen =
        report.stolen.map_or(String::new(), |stolen| format!("; at most {stolen:.1} % of its time stolen by its host"));
    format!(
        "{}{kept}; {}{stolen}; {mode}. Medians, and × the ratio to the last column.",
        report.date,
        report.machine.join("; ")
    )
}

/// What changed, figure by figure and subject by subject. Marked is what the spread of both does not explain.
pub(crate) fn comparison(old: &Report, new: &Report) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(["", "", "before", "now", "now / before", ""]);
    for figure in new.figures.iter().filter(|figure| is_compared(&figure.part)) {
        let Some(before) = old.figures.iter().find(|f| f.part == figure.part && f.name == figure.name) else {
            continue;
        };
        for samples in &figure.samples {
            let Some(earlier) = before.samples.iter().find(|s| s.subject == samples.subject) else { continue };
            let (Some(was), Some(is)) = (earlier.summary(), samples.summary()) else { continue };
            let ratio = if was.median > 0.0 { format!("{:.2}", is.median / was.median) } else { "–".into() };
            table.add_row([
                quantity(figure),
                samples.subject.clone(),
                number(was.median),
                number(is.median),
                ratio,
                verdict(was, is, figure.more_is_better).into(),
            ]);
        }
    }
    format!("before: {}\nnow:    {}\n\n{}\n", heading(old), heading(new), table.trim_fmt())
}

fn verdict(was: Summary, is: Summary, more_is_better: bool) -> &'static str {
    let (less, more) = (is.high < was.low, is.low > was.high);
    match (less, more, more_is_better) {
        (true, _, false) | (_, true, true) => "better",
        (true, _, true) | (_, true, false) => "WORSE",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Of;

    fn report(values: [f64; 4], more_is_better: bool) -> Report {
        let mut report = Report::default();
        for value in values {
            report.add(&Of { part: "a life", name: "Create", unit: "ms", more_is_better }, "ours", value);
        }
        report.add(&Of { part: "a life", name: "Create", unit: "ms", more_is_better }, "theirs", 10.0);
        report
    }

    #[test]
    fn a_cell_has_the_median_the_quartiles_and_the_ratio_to_the_last_column() {
        let text = tables(&report([5.0, 1.0, 3.0, 2.0], false), false);
        assert!(text.contains("2.50 (1.75 to 3.50) × 0.25"), "{text}");
        assert!(text.contains("Create, ms"), "{text}");
        assert!(text.contains("10.0"), "{text}");
    }

    #[test]
    fn what_is_measured_again_stands_in_the_place_of_the_older_and_the_rest_is_kept() {
        let of = |name| Of { part: "a life", name, unit: "ms", more_is_better: false };
        let mut older = report([1.0; 4], false);
        older.date = "yesterday".into();
        older.add(&of("Start"), "ours", 7.0);
        let mut newer = report([2.0; 4], false);
        newer.date = "today".into();
        let both = newer.instead_of(older).unwrap();
        let medians = both.figures.iter().map(|figure| figure.samples[0].summary().unwrap().median);
        assert_eq!(medians.collect::<Vec<_>>(), [2.0, 7.0]);
        assert!(heading(&both).starts_with("today (some of it yesterday)"), "{}", heading(&both));
        let elsewhere = Report { machine: vec!["another".into()], ..Report::default() };
        assert!(elsewhere.instead_of(both).is_err());
    }

    #[test]
    fn only_what_the_spread_does_not_explain_is_called_better_or_worse() {
        let verdicts = |new, more| {
            let text = comparison(&report([4.0, 5.0, 5.0, 6.0], more), &report(new, more));
            (text.contains("better"), text.contains("WORSE"))
        };
        assert_eq!(verdicts([1.0, 1.0, 2.0, 2.0], false), (true, false));
        assert_eq!(verdicts([1.0, 1.0, 2.0, 2.0], true), (false, true));
        assert_eq!(verdicts([8.0, 8.0, 9.0, 9.0], false), (false, true));
        assert_eq!(verdicts([4.0, 5.0, 6.0, 6.0], false), (false, false));
    }
}
