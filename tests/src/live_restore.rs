//! The table of what becomes of containers while Docker's daemons are away, beside containerd's own shim: made by
//! `tests/docker_live_restore.rs`, put into README.md and compared with it by `src/bin/matrix.rs`.

/// Where it is written to below the target directory.
pub const FILE: &str = "live-restore.md";

/// What ends the title of a row about containerd's own shim.
pub const STOCK: &str = "containerd's";

/// A table in Markdown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table(String);

impl Table {
    /// An empty one with columns of these titles.
    pub fn new<const N: usize>(titles: [&str; N]) -> Self {
        Self(format!("| | {} |\n{}\n", titles.join(" | "), "|---".repeat(N + 1) + "|"))
    }

    /// Adds a row.
    pub fn add<const N: usize>(&mut self, title: &str, cells: [String; N]) {
        self.0 += &format!("| {title} | {} |\n", cells.join(" | "));
    }

    /// All of it.
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// Whether two tables say the same of ours. What another shim does, it does as it likes: there only the title counts.
///
/// # Errors
/// The first rows that differ: `a`'s, then `b`'s.
pub fn compare(a: &str, b: &str) -> Result<(), (String, String)> {
    let rows = |text: &str| -> Vec<String> { text.trim_end().lines().map(ours).collect() };
    let (a, b) = (rows(a), rows(b));
    let row = |rows: &[String], n: usize| rows.get(n).cloned().unwrap_or_else(|| "(no such row)".into());
    let differ = (0..a.len().max(b.len())).map(|n| (row(&a, n), row(&b, n))).find(|(a, b)| a != b);
    differ.map_or(Ok(()), Err)
}

fn ours(row: &str) -> String {
    let title = row.split(" | ").next().unwrap_or_default();
    if title.ends_with(STOCK) { title.to_owned() } else { row.to_owned() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sample(stock: &str, ours: &str) -> String {
        let mut table = Table::new(["goes on", "lines"]);
        table.add(&format!("dockerd killed: {STOCK}"), ["yes".into(), stock.into()]);
        table.add("dockerd killed: holdfast", ["yes".into(), ours.into()]);
        table.text().to_owned()
    }

    #[test]
    fn rows_of_ours_must_be_equal_and_of_another_be_there() {
        assert_eq!(compare(&sample("0", "5000"), &sample("17", "5000")), Ok(()));
        let (a, b) = compare(&sample("0", "5000"), &sample("0", "4999")).unwrap_err();
        assert!(a.ends_with("| 5000 |") && b.ends_with("| 4999 |"), "{a} and {b}");
        let whole = sample("0", "5000");
        let (without, _) = whole.trim_end().rsplit_once('\n').unwrap();
        assert!(compare(&whole, without).is_err());
        assert!(compare("", &whole).is_err());
    }
}
