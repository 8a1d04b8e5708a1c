//! Text in files, as people's editors save it.

/// U+FEFF in UTF-8.
const UTF_8_BOM: &[u8] = b"\xef\xbb\xbf";

/// The bytes behind a byte-order mark, which Windows' editors put before UTF-8: no parser of PEM or JSON expects it, and no prompt means it.
pub fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(UTF_8_BOM).unwrap_or(bytes)
}

/// The text of a file's bytes, without a byte-order mark.
///
/// # Errors
/// Which other encoding it is in, or where it stops being UTF-8: as what stands behind "… is".
pub fn text(bytes: &[u8]) -> Result<String, String> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err("UTF-16 text, as Windows' editors and PowerShell's `>` save it: save it as UTF-8".to_owned());
    }
    match std::str::from_utf8(without_bom(bytes)) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(format!("not UTF-8 text ({error})")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_text() {
        for bytes in [&b"\xef\xbb\xbfhello"[..], b"hello"] {
            assert_eq!(text(bytes).unwrap(), "hello");
            assert_eq!(without_bom(bytes), b"hello");
        }
        assert_eq!(without_bom(b"\xef\xbb\xbf\xef\xbb\xbf"), UTF_8_BOM, "the second one was typed");
        assert_eq!(text(b"").unwrap(), "");
    }

    #[test]
    fn other_encodings_are_told_by_name() {
        for bytes in [&b"\xff\xfeh\0i\0"[..], b"\xfe\xff\0h\0i"] {
            assert!(text(bytes).unwrap_err().contains("UTF-16"));
        }
        assert!(text(b"caf\xe9").unwrap_err().contains("not UTF-8"));
    }
}
