//! ttrpc frames as bytes (contract 9.1). Pure.

use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_RESPONSE, MessageHeader};

/// What is at the beginning of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// Less than a frame.
    Incomplete,
    /// A whole frame: its header, and how many bytes it has in all.
    Frame(MessageHeader, usize),
    /// A frame too long to be read: its payload is to be passed over and its stream told so.
    Oversize(MessageHeader),
}

pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let Some(header) = bytes.get(..MESSAGE_HEADER_LENGTH) else { return Parsed::Incomplete };
    let header = MessageHeader::from(header);
    let payload = header.length as usize;
    if payload > MESSAGE_LENGTH_MAX {
        return Parsed::Oversize(header);
    }
    match MESSAGE_HEADER_LENGTH + payload {
        whole if bytes.len() < whole => Parsed::Incomplete,
        whole => Parsed::Frame(header, whole),
    }
}

/// Appends a frame to `out`.
pub(crate) fn append(out: &mut Vec<u8>, kind: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.reserve(MESSAGE_HEADER_LENGTH + payload.len());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&[kind, 0]);
    out.extend_from_slice(payload);
}

/// Appends a response.
pub(crate) fn append_response(out: &mut Vec<u8>, stream: u32, payload: &[u8]) {
    append(out, MESSAGE_TYPE_RESPONSE, stream, payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_whole_only_with_its_last_byte() {
        let mut bytes = Vec::new();
        append(&mut bytes, 1, 7, b"abc");
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Parsed::Incomplete, "{cut}");
        }
        let Parsed::Frame(header, whole) = parse(&bytes) else { panic!("not a frame") };
        assert_eq!((header.stream_id, header.type_, header.length, whole), (7, 1, 3, 13));
        assert_eq!(bytes, [0, 0, 0, 3, 0, 0, 0, 7, 1, 0, b'a', b'b', b'c']);
    }

    #[test]
    fn a_frame_too_long_is_known_by_its_header_alone() {
        let mut bytes = Vec::new();
        append(&mut bytes, 1, 9, b"");
        bytes[..4].copy_from_slice(&(MESSAGE_LENGTH_MAX as u32 + 1).to_be_bytes());
        assert!(matches!(parse(&bytes), Parsed::Oversize(header) if header.stream_id == 9));
    }
}
