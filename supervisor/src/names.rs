//! Ids, names, and finding a container by what a person typed; pure but for the randomness of a new id.

use std::io::Read;
use std::{fs, io};

use thiserror::Error;

/// containerd's limit for identifiers.
const MAX_LENGTH: usize = 76;

/// The length of the id's prefix that people see.
pub const SHORT: usize = 12;

/// Most containers that an error lists.
const MOST_CANDIDATES: usize = 8;

/// Why a text names no container.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// Not an identifier by containerd's rule.
    #[error(
        "{what} {value:?} is not valid: {why} (letters and digits, with single '.', '_' or '-' between them, at most {MAX_LENGTH} characters)"
    )]
    Invalid {
        /// What the value was meant as.
        what: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Nothing matches.
    #[error("no container {0:?}")]
    Unknown(String),
    /// A prefix of several ids.
    #[error("{given:?} is ambiguous: it is the beginning of {}", candidates.join(", "))]
    Ambiguous {
        /// What was given.
        given: String,
        /// What it may mean: ids as people see them, with names, and how many more there are.
        candidates: Vec<String>,
    },
}

/// Checks `value` by containerd's rule for identifiers; `what` names it in the error.
///
/// # Errors
/// [`NameError::Invalid`] with the reason.
pub fn check_identifier(what: &'static str, value: &str) -> Result<(), NameError> {
    let invalid = |why| Err(NameError::Invalid { what, value: value.to_owned(), why });
    if value.is_empty() {
        return invalid("it is empty");
    }
    if value.len() > MAX_LENGTH {
        return invalid("it is too long");
    }
    if !value.bytes().all(|b| b.is_ascii_alphanumeric() || is_separator(b)) {
        return invalid("it has a forbidden character");
    }
    let bytes = value.as_bytes();
    if is_separator(bytes[0]) || is_separator(bytes[bytes.len() - 1]) {
        return invalid("it begins or ends with a separator");
    }
    if bytes.windows(2).any(|pair| is_separator(pair[0]) && is_separator(pair[1])) {
        return invalid("it has two separators in a row");
    }
    Ok(())
}

fn is_separator(byte: u8) -> bool {
    matches!(byte, b'.' | b'_' | b'-')
}

/// A fresh id: 64 hexadecimal digits from the kernel's random source.
///
/// # Errors
/// When `/dev/urandom` cannot be read.
pub fn generate_id() -> io::Result<String> {
    let mut bytes = [0u8; 32];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// The part of an id that people see.
pub fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

/// The id that `given` means among `(id, name)` pairs: a whole id, else a name, else the beginning of one id only.
///
/// # Errors
/// [`NameError::Unknown`], [`NameError::Ambiguous`].
pub fn resolve<'a>(given: &str, known: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Result<&'a str, NameError> {
    if given.is_empty() {
        return Err(NameError::Unknown(String::new()));
    }
    if let Some((id, _)) = known.clone().find(|(id, _)| *id == given) {
        return Ok(id);
    }
    if let Some((id, _)) = known.clone().find(|(_, name)| *name == given) {
        return Ok(id);
    }
    let matching: Vec<(&str, &str)> = known.filter(|(id, _)| id.starts_with(given)).collect();
    match matching.as_slice() {
        [] => Err(NameError::Unknown(given.to_owned())),
        [(one, _)] => Ok(one),
        several => Err(NameError::Ambiguous { given: given.to_owned(), candidates: candidates(several) }),
    }
}

fn candidates(matching: &[(&str, &str)]) -> Vec<String> {
    let shown = matching.iter().take(MOST_CANDIDATES);
    let mut list: Vec<String> = shown.map(|(id, name)| format!("{} ({name})", short(id))).collect();
    if matching.len() > MOST_CANDIDATES {
        list.push(format!("and {} more", matching.len() - MOST_CANDIDATES));
    }
    list
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn containerds_rule_for_identifiers() {
        for good in ["a", "web-1", "a.b_c-d", "0", &"x".repeat(76)] {
            check_identifier("name", good).unwrap();
        }
        for bad in ["", "-a", "a-", "a..b", "a/b", "a b", "ä", "..", &"x".repeat(77)] {
            let error = check_identifier("name", bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn an_id_is_64_hex_digits_and_new_each_time() {
        let (one, two) = (generate_id().unwrap(), generate_id().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.len(), 64);
        check_identifier("id", &one).unwrap();
    }

    #[test]
    fn a_name_wins_over_a_prefix_and_a_whole_id_over_all() {
        let known = [("abc1", "web"), ("abd2", "abc"), ("web", "other")];
        let find = |text| resolve(text, known.iter().copied());
        assert_eq!(find("abc1"), Ok("abc1"));
        assert_eq!(find("abc"), Ok("abd2"), "a name");
        assert_eq!(find("web"), Ok("web"), "an id before a name");
        assert_eq!(find("abd"), Ok("abd2"), "a prefix");
        assert_eq!(find("zz"), Err(NameError::Unknown("zz".into())));
        let error = find("ab").unwrap_err().to_string();
        assert!(error.ends_with("the beginning of abc1 (web), abd2 (abc)"), "{error}");
        let many: Vec<(String, String)> = (0..20).map(|n| (format!("id{n}"), format!("n{n}"))).collect();
        let error = resolve("id", many.iter().map(|(id, name)| (id.as_str(), name.as_str()))).unwrap_err().to_string();
        assert!(error.contains("id7 (n7), and 12 more"), "{error}");
        assert!(find("").is_err());
    }
}
