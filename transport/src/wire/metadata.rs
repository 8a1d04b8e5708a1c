//! HTTP header maps, as tonic uses them, to and from metadata entries: PROTOCOL.md §4.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use titan_proto::wire::{Entry, Trailers};
use tonic::{Code, Status};

use crate::{deadline, limits::MAX_METADATA_ENTRIES};

/// What a peer put into its metadata that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MetadataError {
    #[error("{0} metadata entries; the limit is {MAX_METADATA_ENTRIES}")]
    TooMany(usize),
    #[error("metadata key {0:?} is not a lower-case header name")]
    Key(String),
    #[error("the value of metadata key {0:?} is not printable ASCII")]
    Value(String),
}

/// gRPC sends base64 without padding and accepts it with or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Headers that only HTTP needs. `grpc-status` and `grpc-message` have fields of their own in TRAILERS.
const HTTP_ONLY: [&str; 8] =
    ["te", "grpc-status", "grpc-message", "content-length", "transfer-encoding", "connection", "host", "date"];

/// What every gRPC message has as its content type: not sent.
const GRPC: &str = "application/grpc";

/// The metadata in `headers`.
pub(crate) fn entries(headers: &HeaderMap) -> Vec<Entry> {
    let mut entries = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let key = name.as_str();
        if HTTP_ONLY.contains(&key) || (key == "content-type" && value == GRPC) {
            continue;
        }
        if !key.ends_with("-bin") {
            entries.push(Entry { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()) });
            continue;
        }
        // Several binary values may stand in one header, separated by commas.
        for part in value.as_bytes().split(|byte| *byte == b',') {
            match BASE64.decode(part.trim_ascii()) {
                Ok(raw) => entries.push(Entry { key: key.into(), value: raw.into() }),
                Err(error) => crate::seldom!(warn, key, %error, "binary metadata is not base64: left out"),
            }
        }
    }
    entries
}

/// Adds `entries` to `headers`.
pub(crate) fn insert(headers: &mut HeaderMap, entries: Vec<Entry>) -> Result<(), MetadataError> {
    if entries.len() > MAX_METADATA_ENTRIES {
        return Err(MetadataError::TooMany(entries.len()));
    }
    for Entry { key, value } in entries {
        let valid = !key.bytes().any(|byte| byte.is_ascii_uppercase());
        let Some(name) = HeaderName::try_from(&key).ok().filter(|_| valid) else { return Err(MetadataError::Key(key)) };
        let value = if key.ends_with("-bin") { BASE64.encode(&value).into() } else { value };
        let Ok(value) = HeaderValue::from_maybe_shared(value) else { return Err(MetadataError::Value(key)) };
        headers.append(name, value);
    }
    Ok(())
}

/// The TRAILERS payload for trailers, or for the headers of a response that has nothing else.
pub(crate) fn trailers(headers: &HeaderMap) -> Trailers {
    match Status::from_header_map(headers) {
        Some(status) => {
            Trailers { status: status.code() as i32, message: status.message().into(), metadata: entries(headers) }
        }
        None => Trailers {
            status: Code::Internal as i32,
            message: "the handler ended without a status".into(),
            metadata: vec![],
        },
    }
}

/// The trailers that tonic reads, from a TRAILERS payload.
pub(crate) fn trailer_map(trailers: Trailers) -> Result<HeaderMap, MetadataError> {
    let mut map = deadline::trailers(&Status::new(Code::from(trailers.status), trailers.message));
    insert(&mut map, trailers.metadata)?;
    Ok(map)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn metadata_survives_with_repeated_and_binary_keys() {
        let mut headers = HeaderMap::new();
        headers.append("x-user", HeaderValue::from_static("ann"));
        headers.append("x-user", HeaderValue::from_static("bob"));
        headers.append("trace-bin", HeaderValue::from_static("AP8B")); // 00 ff 01
        headers.append("te", HeaderValue::from_static("trailers"));
        headers.append("content-type", HeaderValue::from_static("application/grpc"));
        let sent = entries(&headers);
        assert_eq!(sent.iter().find(|e| e.key == "trace-bin").unwrap().value, &[0, 255, 1][..]);
        assert_eq!(sent.len(), 3);
        let mut back = HeaderMap::new();
        insert(&mut back, sent).unwrap();
        assert_eq!(back.get_all("x-user").iter().collect::<Vec<_>>(), ["ann", "bob"]);
        assert_eq!(back["trace-bin"], "AP8B");
    }

    #[test]
    fn several_binary_values_in_one_header_are_several_entries() {
        let mut headers = HeaderMap::new();
        headers.append("x-bin", HeaderValue::from_static("AA==, AQ"));
        let values: Vec<_> = entries(&headers).into_iter().map(|entry| entry.value).collect();
        assert_eq!(values, [&[0][..], &[1][..]]);
    }

    #[test]
    fn a_status_survives_with_its_details() {
        let status = Status::with_details(Code::NotFound, "ünïcode, %41 and\nnewline", Bytes::from_static(b"\x00\xfe"));
        let mut map = HeaderMap::new();
        status.add_header(&mut map).unwrap();
        let back = Status::from_header_map(&trailer_map(trailers(&map)).unwrap()).unwrap();
        assert_eq!(back.code(), Code::NotFound);
        assert_eq!(back.message(), status.message());
        assert_eq!(back.details(), b"\x00\xfe");
    }

    #[test]
    fn impossible_metadata_is_refused_by_name() {
        let try_insert = |key: &str, value: &'static [u8]| {
            insert(&mut HeaderMap::new(), vec![Entry { key: key.into(), value: Bytes::from_static(value) }])
        };
        assert_eq!(try_insert("X-Upper", b""), Err(MetadataError::Key("X-Upper".into())));
        assert_eq!(try_insert("two words", b""), Err(MetadataError::Key("two words".into())));
        assert_eq!(try_insert("", b""), Err(MetadataError::Key("".into())));
        assert_eq!(try_insert("x", b"\r\nevil: 1"), Err(MetadataError::Value("x".into())));
        let many = vec![Entry::default(); MAX_METADATA_ENTRIES + 1];
        assert_eq!(insert(&mut HeaderMap::new(), many), Err(MetadataError::TooMany(MAX_METADATA_ENTRIES + 1)));
    }
}
