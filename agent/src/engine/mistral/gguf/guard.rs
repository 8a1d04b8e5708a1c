//! A walk over the header of a GGUF file before candle reads it. candle believes every length: it would reserve memory for a text of an exabyte, and
//! follow arrays within arrays until the stack ends. Nothing is kept here but the position.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::io::{self, BufRead, BufReader, Read, Seek};

use super::{GgufError, quantization};

/// A tensor has one to four dimensions.
const MAX_DIMENSIONS: u32 = 4;
/// Largest number of metadata entries and of tensors that is believed; the largest models have some thousands.
const MAX_ENTRIES: u64 = 1_000_000;
/// Elements of all arrays together. candle keeps each in 32 bytes; the largest vocabularies have a million tokens, merges and scores.
const MAX_ELEMENTS: u64 = 1 << 25;
/// Bytes of a header; those of the largest vocabularies are some 20 MB.
const MAX_HEADER_BYTES: u64 = 1 << 28;
/// Bytes of the name of a key or a tensor. The format allows no more.
const MAX_NAME_BYTES: u64 = 65_535;
/// Tensors may lie at multiples of this many bytes. candle divides by it.
const ALIGNMENT: &str = "general.alignment";
const MAX_ALIGNMENT: u32 = 1 << 20;

/// Types of values.
const U32: u32 = 4;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Walks over the header of a file of `file_bytes` bytes.
pub(super) fn walk(input: impl Read + Seek, file_bytes: u64) -> Result<(), GgufError> {
    Walk { input: BufReader::with_capacity(1 << 16, input), file_bytes, position: 0, elements: 0 }.header()
}

struct Walk<R> {
    input: BufReader<R>,
    file_bytes: u64,
    position: u64,
    elements: u64,
}

impl<R: Read + Seek> Walk<R> {
    fn header(&mut self) -> Result<(), GgufError> {
        let begins = self.input.fill_buf()?.get(..4) == Some(b"GGUF");
        if !begins {
            return Err(GgufError::NotGguf);
        }
        self.skip(4)?;
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version(version));
        }
        let (tensors, entries) = (self.u64()?, self.u64()?);
        if tensors > MAX_ENTRIES || entries > MAX_ENTRIES {
            return Err(damaged("impossible counts"));
        }
        for _ in 0..entries {
            let key = self.name()?;
            let kind = self.u32()?;
            match key.as_str() {
                ALIGNMENT => self.alignment(kind)?,
                _ => self.value(kind)?,
            }
        }
        for _ in 0..tensors {
            self.tensor()?;
        }
        Ok(())
    }

    fn alignment(&mut self, kind: u32) -> Result<(), GgufError> {
        let is_possible = kind == U32 && {
            let alignment = self.u32()?;
            alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT
        };
        if is_possible { Ok(()) } else { Err(damaged("an impossible alignment")) }
    }

    fn value(&mut self, kind: u32) -> Result<(), GgufError> {
        match kind {
            TEXT => self.text(),
            ARRAY => self.array(),
            _ => self.skip(size(kind)?),
        }
    }

    fn array(&mut self) -> Result<(), GgufError> {
        let (kind, length) = (self.u32()?, self.u64()?);
        self.elements = self.elements.saturating_add(length);
        if self.elements > MAX_ELEMENTS {
            // Each element is a byte at least: an array that is longer than the file is the likelier fault.
            self.within(length)?;
            return Err(damaged("arrays of too many elements"));
        }
        match kind {
            TEXT => (0..length).try_for_each(|_| self.text()),
            ARRAY => Err(damaged("an array of arrays")),
            _ => self.skip(length.saturating_mul(size(kind)?)),
        }
    }

    fn tensor(&mut self) -> Result<(), GgufError> {
        let name = self.name()?;
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(damaged("a tensor of more than four dimensions"));
        }
        self.skip(8 * u64::from(dimensions))?;
        let kind = self.u32()?;
        if let Err(found) = quantization::known(kind) {
            return Err(GgufError::Quantization { tensor: name, found, supported: quantization::supported() });
        }
        // Where it lies.
        self.skip(8)
    }

    fn name(&mut self) -> Result<String, GgufError> {
        let length = self.u64()?;
        self.within(length)?;
        if length > MAX_NAME_BYTES {
            return Err(damaged("a name of impossible length"));
        }
        let mut name = vec![0; length as usize];
        self.fill(&mut name)?;
        Ok(String::from_utf8_lossy(&name).into_owned())
    }

    fn text(&mut self) -> Result<(), GgufError> {
        let length = self.u64()?;
        self.skip(length)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), GgufError> {
        self.within(bytes)?;
        self.input.seek_relative(i64::try_from(bytes).map_err(|_| damaged("an impossible length"))?)?;
        self.position += bytes;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), GgufError> {
        self.within(bytes.len() as u64)?;
        match self.input.read_exact(bytes) {
            // It shrank in the meantime.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(GgufError::Truncated { have: self.position, need: self.file_bytes });
            }
            other => other?,
        }
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// As many bytes follow, and a header may be as long.
    fn within(&self, bytes: u64) -> Result<(), GgufError> {
        let need = self.position.saturating_add(bytes);
        if need > self.file_bytes {
            return Err(GgufError::Truncated { have: self.file_bytes, need });
        }
        if need > MAX_HEADER_BYTES {
            return Err(damaged("a header of impossible length"));
        }
        Ok(())
    }
}

/// Bytes of a value that has always the same size.
fn size(kind: u32) -> Result<u64, GgufError> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(damaged("an unknown type of value")),
    }
}

fn damaged(what: &str) -> GgufError {
    GgufError::Damaged(what.to_owned())
}
