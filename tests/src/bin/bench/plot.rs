//! The report as a picture: for each figure a bar for each subject, as long as its median is beside the longest.

use svg::Document;
use svg::node::element::{Line, Rectangle, Text, Title};

use crate::report::{Figure, Report};
use crate::table::{is_compared, number, quantity};

const WIDTH: f64 = 960.0;
const LABEL: f64 = 220.0;
/// From a bar's left end to the picture's right end; the value stands behind the longest bar.
const BARS: f64 = 560.0;
const BAR: f64 = 14.0;
const GAP: f64 = 26.0;

/// Ours are the first of each figure.
const COLOURS: [&str; 5] = ["#1b6ca8", "#5aa9d6", "#a8d5ec", "#b0a99f", "#7d766c"];

/// Draws those figures that have more than one subject.
#[allow(clippy::cast_precision_loss)] // numbers of bars
pub(crate) fn draw(report: &Report) -> String {
    let figures: Vec<&Figure> = report.figures.iter().filter(|f| f.samples.len() > 1 && is_compared(&f.part)).collect();
    let height = figures.iter().map(|f| GAP + BAR * f.samples.len() as f64 + 8.0).sum::<f64>() + GAP;
    let mut picture = Document::new()
        .set("viewBox", (0, 0, WIDTH, height))
        .set("font-family", "sans-serif")
        .set("font-size", 11)
        .add(Rectangle::new().set("width", "100%").set("height", "100%").set("fill", "white"));
    let mut y = 0.0;
    for figure in figures {
        y += GAP;
        let better = if figure.more_is_better { "more is better" } else { "less is better" };
        let heading = format!("{}: {} ({better})", figure.part, quantity(figure));
        picture = picture.add(Text::new(heading).set("x", 8).set("y", y - 6.0).set("font-weight", "bold"));
        let longest = figure.samples.iter().filter_map(|s| s.summary()).map(|s| s.high.abs()).fold(0.0, f64::max);
        for (n, samples) in figure.samples.iter().enumerate() {
            let Some(summary) = samples.summary() else { continue };
            let scale = |value: f64| if longest > 0.0 { value.max(0.0) / longest * BARS } else { 0.0 };
            let length = scale(summary.median);
            let bar = Rectangle::new()
                .set("x", LABEL)
                .set("y", y)
                .set("width", length.max(0.5))
                .set("height", BAR - 3.0)
                .set("fill", COLOURS[n % COLOURS.len()])
                .add(Title::new(format!("{} to {}", number(summary.low), number(summary.high))));
            let spread = Line::new()
                .set("x1", LABEL + scale(summary.low))
                .set("x2", LABEL + scale(summary.high))
                .set("y1", y + BAR / 2.0 - 1.5)
                .set("y2", y + BAR / 2.0 - 1.5)
                .set("stroke", "black");
            let value = scale(summary.high).max(length) + LABEL + 6.0;
            picture = picture
                .add(
                    Text::new(samples.subject.as_str())
                        .set("x", LABEL - 6.0)
                        .set("y", y + BAR - 5.0)
                        .set("text-anchor", "end"),
                )
                .add(bar)
                .add(spread)
                .add(Text::new(number(summary.median)).set("x", value).set("y", y + BAR - 5.0));
            y += BAR;
        }
        y += 8.0;
    }
    picture.to_string()
}
