//! The keys by which a person leaves a terminal: how they are written, and how they are found in what is typed.

use std::fmt;
use std::str::FromStr;

/// What is typed when nothing else is asked for, as in Docker.
const DEFAULT: [u8; 2] = [0x10, 0x11];

/// A sequence of keys; empty: there is no way to leave by keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DetachKeys(Vec<u8>);

/// Why a text names no keys.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is no key: a key is one character, ctrl- with a letter or one of @ [ \\ ] ^ _, or DEL; a comma is between two"
)]
pub(super) struct NoKey(String);

impl Default for DetachKeys {
    fn default() -> Self {
        Self(DEFAULT.to_vec())
    }
}

impl FromStr for DetachKeys {
    type Err = NoKey;

    /// Docker's syntax: keys with commas between them.
    fn from_str(text: &str) -> Result<Self, NoKey> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        text.split(',').map(|key| code(key).ok_or_else(|| NoKey(key.to_owned()))).collect::<Result<_, _>>().map(Self)
    }
}

/// What a terminal sends for a key.
fn code(key: &str) -> Option<u8> {
    if let [byte] = key.as_bytes() {
        return byte.is_ascii_graphic().then_some(*byte);
    }
    if key == "DEL" {
        return Some(0x7f);
    }
    match key.strip_prefix("ctrl-").or_else(|| key.strip_prefix("CTRL-"))?.as_bytes() {
        // ctrl takes the upper bits away: `@` and `A` to `_` become 0 to 31.
        [byte] if matches!(byte.to_ascii_uppercase(), b'@'..=b'_') => Some(byte.to_ascii_uppercase() & 0x1f),
        _ => None,
    }
}

impl fmt::Display for DetachKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match byte {
                0..0x20 => write!(f, "{comma}ctrl-{}", char::from(byte | 0x40).to_ascii_lowercase())?,
                0x7f => write!(f, "{comma}DEL")?,
                _ => write!(f, "{comma}{}", char::from(*byte))?,
            }
        }
        Ok(())
    }
}

/// Looks for the keys in what is typed. What only begins like them is passed on late, with what follows.
pub(super) struct Watch {
    keys: Vec<u8>,
    pending: Vec<u8>,
}

impl Watch {
    /// One that has seen nothing yet.
    pub(super) fn new(keys: &DetachKeys) -> Self {
        Self { keys: keys.0.clone(), pending: Vec::new() }
    }

    /// What to pass on of these bytes, and whether the keys were among them; what follows the keys is dropped.
    pub(super) fn filter(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (bytes.to_vec(), false);
        }
        let mut passed = Vec::with_capacity(bytes.len() + self.pending.len());
        for &byte in bytes {
            self.pending.push(byte);
            // The longest end of what was typed that the keys may begin with is held back.
            let released = (0..=self.pending.len()).find(|&n| self.keys.starts_with(&self.pending[n..]));
            passed.extend(self.pending.drain(..released.unwrap_or(self.pending.len())));
            if self.pending == self.keys {
                return (passed, true);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn watch(keys: &str) -> Watch {
        Watch::new(&keys.parse().unwrap())
    }

    #[test]
    fn keys_are_written_as_docker_writes_them() {
        for (text, bytes) in [
            ("ctrl-p,ctrl-q", b"\x10\x11".as_slice()),
            ("a", b"a"),
            ("a,ctrl-@,ctrl-z", b"a\x00\x1a"),
            ("ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\x1b\x1c\x1d\x1e\x1f"),
            ("DEL", b"\x7f"),
            ("", b""),
        ] {
            let keys: DetachKeys = text.parse().unwrap();
            assert_eq!(keys.0, bytes, "{text}");
            assert_eq!(keys.to_string(), text);
        }
        assert_eq!("CTRL-P,ctrl-Q".parse(), Ok(DetachKeys::default()));
    }

    #[test]
    fn what_is_no_key_is_named() {
        for (text, key) in
            [("ctrl-1", "ctrl-1"), ("a,,b", ""), ("ab", "ab"), ("ctrl-", "ctrl-"), ("ä", "ä"), (" ", " ")]
        {
            let error = text.parse::<DetachKeys>().unwrap_err();
            assert_eq!(error, NoKey(key.to_owned()), "{text}");
        }
    }

    #[test]
    fn the_keys_are_found_across_reads_and_never_passed_on() {
        let mut keys = watch("ctrl-p,ctrl-q");
        assert_eq!(keys.filter(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"\x11zz"), (vec![], true));
    }

    #[test]
    fn what_only_begins_like_the_keys_is_passed_on_with_what_follows() {
        let mut keys = watch("ctrl-p,ctrl-q");
        assert_eq!(keys.filter(b"\x10"), (vec![], false));
        assert_eq!(keys.filter(b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10\x11"), (b"\x10".to_vec(), true));
        let mut keys = watch("a,a,b");
        assert_eq!(keys.filter(b"aaab"), (b"a".to_vec(), true), "the keys may begin within a beginning");
        let mut keys = watch("a,b,a,c");
        assert_eq!(keys.filter(b"abab"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"ac"), (vec![], true));
    }

    #[test]
    fn without_keys_all_is_passed_on() {
        assert_eq!(watch("").filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
