//! `list`: the containers of this root and what is true of each.

use serde_json::Value;

use crate::cli::{Global, ListArgs, ListFormat};
use crate::error::Failure;
use crate::record::RunRoot;

/// Prints them. One whose record cannot be read is shown as `unreadable`, never left out.
///
/// # Errors
/// When the root cannot be read.
pub(crate) fn run(global: &Global, args: &ListArgs) -> Result<u8, Failure> {
    let root = RunRoot::new(&global.root);
    let ids = root.ids()?;
    if args.quiet {
        ids.iter().for_each(|id| println!("{id}"));
        return Ok(0);
    }
    let documents: Vec<Value> = ids
        .iter()
        .map(|id| match root.load(id) {
            Ok(container) => container.document(),
            Err(_) => serde_json::json!({ "id": id, "pid": 0, "status": "unreadable" }),
        })
        .collect();
    match args.format {
        ListFormat::Json => println!("{}", Value::from(documents)),
        ListFormat::Table => print!("{}", table(&documents)),
    }
    Ok(0)
}

fn table(documents: &[Value]) -> String {
    let columns = ["id", "pid", "status", "bundle", "created", "owner"];
    let cell = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut rows = vec![columns.map(str::to_uppercase)];
    rows.extend(documents.iter().map(|document| columns.map(|name| document.get(name).map(cell).unwrap_or_default())));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0) + 4;
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    rows.iter()
        .map(|row| {
            let line: String = row.iter().zip(&widths).map(|(text, &width)| format!("{text:<width$}")).collect();
            format!("{}\n", line.trim_end())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let documents = [serde_json::json!({ "id": "a", "pid": 7, "status": "running", "bundle": "/b" })];
        let text = table(&documents);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].find("STATUS"), lines[1].find("running"));
        assert_eq!(lines[0].find("BUNDLE"), lines[1].find("/b"));
    }
}
