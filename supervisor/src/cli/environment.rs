//! Environment variables as they are typed or written in files, for `run`, `create` and `exec`.

use std::path::Path;

use super::CliError;
use super::args::EnvArgs;

/// The variables in the order in which they are set: those of files first. A name alone takes our own value, and is left
/// out if we have none.
///
/// # Errors
/// A file that cannot be read, or a line of it that sets nothing.
pub(super) fn environment(args: &EnvArgs) -> Result<Vec<String>, CliError> {
    let mut all = Vec::new();
    for file in &args.env_file {
        let text = std::fs::read_to_string(file).map_err(CliError::io(format!("read {}", file.display())))?;
        all.extend(of_file(file, &text)?);
    }
    all.extend(args.env.iter().cloned());
    Ok(all.into_iter().filter_map(|pair| complete(pair, |name| std::env::var(name).ok())).collect())
}

fn complete(pair: String, own: impl Fn(&str) -> Option<String>) -> Option<String> {
    if pair.contains('=') {
        return Some(pair);
    }
    own(&pair).map(|value| format!("{pair}={value}"))
}

/// Docker's format: a variable on each line, `#` before a comment, nothing is quoted.
fn of_file(file: &Path, text: &str) -> Result<Vec<String>, CliError> {
    let mut pairs = Vec::new();
    for (index, line) in text.strip_prefix('\u{feff}').unwrap_or(text).lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split_once('=').map_or(line, |(name, _)| name);
        if name.is_empty() || name.contains(char::is_whitespace) {
            let (file, number) = (file.display(), index + 1);
            return Err(CliError::Usage(format!(
                "{file}, line {number}: {line:?} sets no environment variable (NAME=VALUE, or NAME alone)"
            )));
        }
        pairs.push(line.to_owned());
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_has_a_variable_on_each_line() {
        let text = "\u{feff}# comment\n\nA=1\n  B=two words # not a comment\nC=\nHOME\nD=a=b\r\n";
        let pairs = of_file(Path::new("f"), text).unwrap();
        assert_eq!(pairs, ["A=1", "B=two words # not a comment", "C=", "HOME", "D=a=b"]);
    }

    #[test]
    fn a_line_that_sets_nothing_is_named() {
        for bad in ["=x", "A B=1", "export A"] {
            let error = of_file(Path::new("/e/f"), &format!("OK=1\n{bad}\n")).unwrap_err().to_string();
            assert!(error.contains("/e/f, line 2") && error.contains(bad), "{error}");
        }
    }

    #[test]
    fn a_name_alone_takes_our_value() {
        let own = |name: &str| (name == "HERE").then(|| "x".to_owned());
        assert_eq!(complete("HERE".into(), own), Some("HERE=x".into()));
        assert_eq!(complete("NOT".into(), own), None);
        assert_eq!(complete("A=1".into(), own), Some("A=1".into()));
    }
}
