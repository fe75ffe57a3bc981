//! Manual pages, made from the same definitions as the programs' help, and from the commented settings file. Pure but
//! for writing them.

use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use super::args::Cli;
use super::{CliError, Outcome};

/// What comes before the examples in a command's `after_help`.
const EXAMPLES: &str = "Examples:";

/// In front of a line to type.
const PROMPT: &str = "    $ ";

/// Writes all pages into a directory, which is made if need be.
pub(super) fn write(directory: &Path) -> Outcome {
    let failed = || CliError::io(format!("write man pages into {}", directory.display()));
    std::fs::create_dir_all(directory).map_err(failed())?;
    for (name, text) in pages().map_err(failed())? {
        std::fs::write(directory.join(name), text).map_err(failed())?;
    }
    Ok(0)
}

/// All pages, by file name.
fn pages() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        all.push(page(command.clone(), "1", &["holdfast(1)", "holdfastd(8)"])?);
    }
    all.push(page(program, "1", &["holdfastd(8)", "holdfastd.toml(5)", "holdfast-shim.toml(5)"])?);
    let mut daemon = crate::config::Flags::command();
    daemon.build();
    all.push(page(daemon, "8", &["holdfast(1)", "holdfastd.toml(5)", "holdfast-shim.toml(5)"])?);
    all.push(("holdfastd.toml.5".to_owned(), settings_page(include_str!("../../../systemd/holdfastd.toml")).into()));
    all.push(("holdfast-shim.toml.5".to_owned(), include_bytes!("holdfast-shim.toml.5").to_vec()));
    Ok(all)
}

/// One command's page.
fn page(command: Command, section: &str, related: &[&str]) -> std::io::Result<(String, Vec<u8>)> {
    let (has_arguments, has_commands) = (command.get_arguments().next().is_some(), command.has_subcommands());
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let man = Man::new(command).section(section).source(concat!("holdfast ", env!("CARGO_PKG_VERSION")));
    let name = man.get_filename();
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    let mut rest = Roff::new();
    let examples = after_help(&after, &mut rest);
    rest.to_writer(&mut text)?;
    if has_arguments {
        man.render_options_section(&mut text)?;
    }
    if has_commands {
        man.render_subcommands_section(&mut text)?;
    }
    examples.to_writer(&mut text)?;
    let mut end = Roff::new();
    end.control("SH", ["SEE ALSO"]).text([roman(related.join(", "))]);
    end.to_writer(&mut text)?;
    Ok((name, text))
}

/// Puts what is before the examples into `description`; returns the section of examples.
fn after_help(text: &str, description: &mut Roff) -> Roff {
    let (before, examples) = text.split_once(EXAMPLES).unwrap_or((text, ""));
    for paragraph in before.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty()) {
        description.control("PP", []).text([roman(paragraph)]);
    }
    let mut section = Roff::new();
    if examples.is_empty() {
        return section;
    }
    section.control("SH", ["EXAMPLES"]);
    let mut in_lines = false;
    for line in examples.lines().filter(|line| !line.is_empty()) {
        match line.strip_prefix(PROMPT) {
            Some(typed) => {
                if !in_lines {
                    section.control("RS", ["4"]).control("nf", []);
                }
                section.text([bold(typed)]);
            }
            None => {
                if in_lines {
                    section.control("fi", []).control("RE", []);
                }
                section.control("PP", []).text([roman(line.trim())]);
            }
        }
        in_lines = line.starts_with(PROMPT);
    }
    if in_lines {
        section.control("fi", []).control("RE", []);
    }
    section
}

/// holdfastd.toml(5), from the file that is installed: comments are what is to be said of the key after them.
fn settings_page(file: &str) -> String {
    let mut page = Roff::new();
    let source = concat!("holdfast ", env!("CARGO_PKG_VERSION"));
    page.control("TH", ["holdfastd.toml", "5", "", source, "File formats"]);
    page.control("SH", ["NAME"]).text([roman("holdfastd.toml - settings of holdfastd")]);
    page.control("SH", ["SYNOPSIS"]).text([italic(crate::config::DEFAULT_FILE)]);
    page.control("SH", ["DESCRIPTION"]);
    let mut said: Vec<&str> = Vec::new();
    let mut after_key = false;
    for line in file.lines() {
        let is_set = !line.starts_with(['#', '[']) && !line.is_empty();
        if let Some(key) = line.strip_prefix("#: ").or(is_set.then_some(line)) {
            if after_key && said.is_empty() {
                page.control("TQ", []).text([bold(key)]);
            } else {
                page.control("TP", []).text([bold(key)]).text([words(&mut said)]);
            }
            after_key = true;
        } else if let Some(comment) = line.strip_prefix('#') {
            said.push(comment.trim());
            after_key = false;
        } else if line.starts_with('[') {
            page.control("SH", [&*format!("TABLE {line}")]).text([words(&mut said)]);
            after_key = false;
        } else if !said.is_empty() {
            page.control("PP", []).text([words(&mut said)]);
            after_key = false;
        }
    }
    page.control("SH", ["SEE ALSO"]).text([roman("holdfastd(8), holdfast(1), holdfast-shim.toml(5)")]);
    page.to_roff()
}

fn words(said: &mut Vec<&str>) -> Inline {
    roman(std::mem::take(said).join(" "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The words of a line as a shell sees them, up to a pipe, a redirection or another command.
    fn typed(line: &str) -> Vec<String> {
        let words = shlex::split(line).unwrap_or_else(|| panic!("{line:?} has an open quote"));
        words.into_iter().take_while(|word| !matches!(word.as_str(), "|" | "||" | "&&" | "<" | ">")).collect()
    }

    /// The command lines of holdfast in a line, also after a pipe and in a substitution.
    fn lines_of_holdfast(line: &str) -> Vec<String> {
        let parts = line.split(" | ").flat_map(|part| part.split("<("));
        let parts = parts.map(|part| part.trim().trim_end_matches(')').trim_start_matches("xargs -r "));
        parts.filter(|part| part.starts_with("holdfast ")).map(str::to_owned).collect()
    }

    fn visible(program: &Command) -> impl Iterator<Item = &Command> {
        program.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
    }

    #[test]
    fn every_command_has_examples_and_each_of_them_can_be_typed() {
        use clap::Parser;
        let mut program = Cli::command();
        program.build();
        for command in visible(&program).chain([&program]) {
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = after.split_once(EXAMPLES).map(|(_, examples)| examples.to_owned());
            let examples = examples.unwrap_or_else(|| panic!("{} has no examples", command.get_name()));
            let mut lines = Vec::new();
            for line in examples.lines().filter_map(|line| line.strip_prefix(PROMPT)) {
                for line in lines_of_holdfast(line) {
                    let mut words = typed(&line);
                    if words.last().is_some_and(|last| matches!(last.as_str(), "rm")) {
                        words.push("from-xargs".to_owned());
                    }
                    let parsed = Cli::try_parse_from(&words);
                    assert!(parsed.is_ok(), "{line}: {}", parsed.err().unwrap());
                    lines.push(words);
                }
            }
            let own = lines.iter().filter(|words| command.get_name() == "holdfast" || words[1] == command.get_name());
            assert!(own.count() > 0, "no example of {} shows it", command.get_name());
        }
    }

    #[test]
    fn every_command_program_and_file_has_a_page() {
        let names: Vec<String> = pages().unwrap().into_iter().map(|(name, _)| name).collect();
        for command in visible(&Cli::command()) {
            let page = format!("holdfast-{}.1", command.get_name());
            assert!(names.contains(&page), "{page} is missing in {names:?}");
        }
        for page in ["holdfast.1", "holdfastd.8", "holdfastd.toml.5", "holdfast-shim.toml.5"] {
            assert!(names.iter().any(|name| name == page), "{page} is missing in {names:?}");
        }
    }

    #[test]
    fn examples_are_a_section_of_lines_to_type() {
        let mut description = Roff::new();
        let examples = after_help("One.\n\nTwo.\n\nExamples:\n  Do it:\n    $ a b\n    $ c\n", &mut description);
        let plain = |roff: &Roff| roff.to_roff();
        assert_eq!(plain(&description), ".PP\nOne.\n.PP\nTwo.\n");
        let expected = ".SH EXAMPLES\n.PP\nDo it:\n.RS 4\n.nf\n\\fBa b\\fR\n\\fBc\\fR\n.fi\n.RE\n";
        assert_eq!(plain(&examples), expected);
    }

    #[test]
    fn the_settings_page_has_every_key_with_what_is_said_of_it() {
        let file =
            "# About.\n\n# What a is.\n#: a = 1\nb = 2\n\n# A table.\n[t]\n# What c is,\n# at length.\n#: c = 3\n";
        let page = settings_page(file);
        let body = page.split_once("DESCRIPTION\n").unwrap().1;
        let expected = ".PP\nAbout.\n.TP\n\\fBa = 1\\fR\nWhat a is.\n.TQ\n\\fBb = 2\\fR\n.SH \"TABLE [t]\"\nA table.\n\
                        .TP\n\\fBc = 3\\fR\nWhat c is, at length.\n";
        assert!(body.starts_with(expected), "{body}");
    }
}
