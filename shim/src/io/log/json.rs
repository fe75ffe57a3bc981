//! Docker's json-file format: one JSON object a line, `{"log":"text\n","stream":"stdout","time":"…"}`. The text of a piece
//! that does not end its line is without the newline; so is the last one of a stream that ends without.

use super::{End, Piece};
use crate::rfc3339::{self, Fraction};

/// Appends an entry.
pub(super) fn write(out: &mut Vec<u8>, piece: &Piece<'_>) {
    out.extend_from_slice(b"{\"log\":\"");
    escape(out, piece.text);
    out.extend_from_slice(if piece.end == End::Newline { b"\\n\",\"stream\":\"" } else { b"\",\"stream\":\"" });
    out.extend_from_slice(piece.stream.as_bytes());
    out.extend_from_slice(b"\",\"time\":\"");
    rfc3339::write(out, piece.at, Fraction::Trimmed);
    out.extend_from_slice(b"\"}\n");
}

/// Appends `text` as the inside of a JSON string, byte for byte what Docker would write.
fn escape(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    while !rest.is_empty() {
        let (valid, invalid) = match str::from_utf8(rest) {
            Ok(all) => (all, 0),
            Err(e) => {
                let (valid, tail) = rest.split_at(e.valid_up_to());
                (str::from_utf8(valid).unwrap_or_default(), e.error_len().unwrap_or(tail.len()))
            }
        };
        escape_text(out, valid);
        for _ in 0..invalid {
            out.extend_from_slice(b"\\ufffd"); // one for each byte, as Go does
        }
        rest = &rest[valid.len() + invalid..];
    }
}

/// Bytes that go into a string as they are, whatever follows: nearly all, so they are passed over by a look at a table.
const PLAIN: [bool; 256] = {
    let mut plain = [true; 256];
    let mut byte = 0;
    while byte < 0x20 {
        plain[byte] = false;
        byte += 1;
    }
    let others = *b"\"\\<>&\xe2";
    let mut n = 0;
    while n < others.len() {
        plain[others[n] as usize] = false;
        n += 1;
    }
    plain
};

fn escape_text(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let (mut copied, mut looked) = (0, 0);
    while let Some(plain) = bytes[looked..].iter().position(|&byte| !PLAIN[usize::from(byte)]) {
        let at = looked + plain;
        let byte = bytes[at];
        looked = at + 1;
        let (short, length) = match byte {
            b'"' => (b'"', 1),
            b'\\' => (b'\\', 1),
            b'\n' => (b'n', 1),
            b'\r' => (b'r', 1),
            b'\t' => (b't', 1),
            0..=0x1f | b'<' | b'>' | b'&' => (0, 1),
            // U+2028 and U+2029 are line ends in JavaScript.
            0xe2 if matches!(&bytes[at..], [_, 0x80, 0xa8 | 0xa9, ..]) => (0, 3),
            // Another character that begins with 0xe2.
            _ => continue,
        };
        out.extend_from_slice(&bytes[copied..at]);
        match (short, length) {
            (0, 1) => push_hex(out, u32::from(byte)),
            (0, _) => push_hex(out, 0x2000 | u32::from(bytes[at + 2] & 0x3f)),
            (letter, _) => out.extend_from_slice(&[b'\\', letter]),
        }
        copied = at + length;
    }
    out.extend_from_slice(&bytes[copied..]);
}

fn push_hex(out: &mut Vec<u8>, code: u32) {
    out.extend_from_slice(b"\\u");
    for shift in [12, 8, 4, 0] {
        out.push(b"0123456789abcdef"[(code >> shift & 0xf) as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Format, sample};

    fn entry(log: &str, stream: &str, time: &str) -> String {
        format!("{{\"log\":\"{log}\",\"stream\":\"{stream}\",\"time\":\"{time}\"}}\n")
    }

    fn lines(chunks: &[&[u8]]) -> String {
        String::from_utf8_lossy(&sample::stdout(Format::Json, chunks)).into_owned()
    }

    #[test]
    fn each_line_is_an_entry_with_the_time_of_its_first_byte() {
        let got = lines(&[b"one\ntw", b"o\n\nthr", b"ee"]);
        let expected = [
            entry("one\\n", "stdout", "2023-11-14T22:13:20Z"),
            entry("two\\n", "stdout", "2023-11-14T22:13:20Z"),
            entry("\\n", "stdout", "2023-11-14T22:13:20.000000001Z"),
            entry("three", "stdout", "2023-11-14T22:13:20.000000001Z"),
        ];
        assert_eq!(got, expected.concat());
    }

    #[test]
    fn characters_are_escaped_as_docker_does() {
        let got = lines(&["\"\\/<>&\r\t\u{1}\u{7f}\u{2028}\u{2029}\u{202a}é漢😀\n".as_bytes()]);
        let expected = "\\\"\\\\/\\u003c\\u003e\\u0026\\r\\t\\u0001\u{7f}\\u2028\\u2029\u{202a}é漢😀\\n";
        assert_eq!(got, entry(expected, "stdout", "2023-11-14T22:13:20Z"));
    }

    #[test]
    fn each_invalid_byte_is_replaced() {
        let got = lines(&[b"a\xffb\xe2\x82c\xe2\x82\n"]);
        assert_eq!(got, entry("a\\ufffdb\\ufffd\\ufffdc\\ufffd\\ufffd\\n", "stdout", "2023-11-14T22:13:20Z"));
    }

    #[test]
    fn a_nul_is_escaped_and_an_empty_line_is_an_entry() {
        let expected =
            entry("a\\u0000b\\n", "stdout", "2023-11-14T22:13:20Z") + &entry("\\n", "stdout", "2023-11-14T22:13:20Z");
        assert_eq!(lines(&[b"a\0b\n\n"]), expected);
    }
}
