//! Types of weights: their numbers in GGUF files, and their names in the field.

use candle_core::quantized::GgmlDType;

/// Those that a tensor can be read from, with their numbers. candle knows Q8_1 and Q8_K too, for what it computes, and reads neither from a file.
const READABLE: [(u32, GgmlDType); 13] = [
    (0, GgmlDType::F32),
    (1, GgmlDType::F16),
    (30, GgmlDType::BF16),
    (2, GgmlDType::Q4_0),
    (3, GgmlDType::Q4_1),
    (6, GgmlDType::Q5_0),
    (7, GgmlDType::Q5_1),
    (8, GgmlDType::Q8_0),
    (10, GgmlDType::Q2K),
    (11, GgmlDType::Q3K),
    (12, GgmlDType::Q4K),
    (13, GgmlDType::Q5K),
    (14, GgmlDType::Q6K),
];

/// Names of others that are met, so that people find the right file by what its name says.
const OTHERS: [(u32, &str); 17] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// Whether tensors of this type can be read; otherwise its name.
pub(super) fn known(number: u32) -> Result<(), String> {
    if READABLE.iter().any(|(known, _)| *known == number) {
        return Ok(());
    }
    let other = OTHERS.iter().find(|(known, _)| *known == number);
    Err(other.map_or_else(|| format!("type {number}"), |(_, name)| (*name).to_owned()))
}

/// All that can be read.
pub(super) fn supported() -> String {
    READABLE.map(|(_, kind)| name(kind)).join(", ")
}

/// Such as `Q4_K`.
pub(super) fn name(kind: GgmlDType) -> String {
    let name = format!("{kind:?}");
    match name.strip_suffix('K').filter(|rest| !rest.ends_with('_')) {
        Some(rest) => format!("{rest}_K"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_the_names_that_files_have() {
        assert_eq!(supported(), "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K");
        assert_eq!(known(20), Err("IQ4_NL".to_owned()));
        assert_eq!(known(4_000), Err("type 4000".to_owned()));
    }
}
