//! In-situ quantisation: what plain weights are brought to while they are loaded.

use std::{fmt, str::FromStr};

use mistralrs::IsqType;

use super::ModelSource;

/// What the weights of safetensors are brought to when they are loaded. GGUF files hold quantised weights already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isq {
    /// `Q8_0` on a CPU, for which plain weights are too slow: eight bits halve them and lose next to nothing. None on a GPU.
    #[default]
    Auto,
    /// The weights stay as they are.
    None,
    /// They are brought to this type.
    To(QuantizedType),
}

/// A type of quantised weights, as GGUF files name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizedType(IsqType);

/// What a CPU and a GPU both compute with, and the names under which GGUF files have it. The other types of mistral.rs need Metal, or calibration.
const TYPES: [(&str, IsqType); 10] = [
    ("Q4_0", IsqType::Q4_0),
    ("Q4_1", IsqType::Q4_1),
    ("Q5_0", IsqType::Q5_0),
    ("Q5_1", IsqType::Q5_1),
    ("Q8_0", IsqType::Q8_0),
    ("Q2_K", IsqType::Q2K),
    ("Q3_K", IsqType::Q3K),
    ("Q4_K", IsqType::Q4K),
    ("Q5_K", IsqType::Q5K),
    ("Q6_K", IsqType::Q6K),
];
/// What [`Isq::Auto`] is on a CPU.
const CPU: QuantizedType = QuantizedType(IsqType::Q8_0);

/// It is no type that weights can be brought to.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no type of quantised weights: there is auto, none, {types}", types = names())]
pub struct UnknownIsq(String);

/// There are no plain weights that it could change.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "--isq {0}: no model is loaded from safetensors. The weights of a GGUF file are quantised already: give a file of the type that you want; a server has its own weights"
)]
pub struct NothingToQuantize(Isq);

impl Isq {
    /// The type to bring the weights to, if any.
    pub(super) fn on(self, cpu: bool) -> Option<QuantizedType> {
        match self {
            Self::Auto => cpu.then_some(CPU),
            Self::None => None,
            Self::To(kind) => Some(kind),
        }
    }

    /// Refuses what would change nothing: no model from these sources has plain weights.
    pub fn check<'a>(self, mut sources: impl Iterator<Item = &'a ModelSource>) -> Result<(), NothingToQuantize> {
        match self == Self::Auto || sources.any(has_plain_weights) {
            true => Ok(()),
            false => Err(NothingToQuantize(self)),
        }
    }
}

impl QuantizedType {
    pub(super) fn name(self) -> &'static str {
        TYPES.iter().find(|(_, kind)| *kind == self.0).map_or("", |(name, _)| name)
    }

    pub(super) fn for_mistral(self) -> IsqType {
        self.0
    }
}

impl fmt::Display for Isq {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => out.write_str("auto"),
            Self::None => out.write_str("none"),
            Self::To(kind) => out.write_str(kind.name()),
        }
    }
}

impl FromStr for Isq {
    type Err = UnknownIsq;

    /// `auto`, `none`, or a type, in capitals or not: `Q4_K`, `q4_k` and mistral.rs' own `q4k` are one.
    fn from_str(text: &str) -> Result<Self, UnknownIsq> {
        let plain = |name: &str| name.to_ascii_lowercase().replace('_', "");
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            _ => TYPES
                .iter()
                .find(|(name, _)| plain(name) == plain(text))
                .map(|(_, kind)| Self::To(QuantizedType(*kind)))
                .ok_or_else(|| UnknownIsq(text.to_owned())),
        }
    }
}

/// Of a repository on the hub the safetensors are taken.
fn has_plain_weights(source: &ModelSource) -> bool {
    match source {
        ModelSource::GgufFile(_) => false,
        ModelSource::SafetensorsDir(_) => true,
        ModelSource::Hub(name) => !name.ends_with(".gguf"),
    }
}

fn names() -> String {
    TYPES.map(|(name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_type_is_read_as_it_is_written() {
        for (name, kind) in TYPES {
            assert_eq!(name.parse(), Ok(Isq::To(QuantizedType(kind))));
            assert_eq!(Isq::To(QuantizedType(kind)).to_string(), name);
        }
        for text in ["auto", "none"] {
            assert_eq!(text.parse::<Isq>().unwrap().to_string(), text);
        }
        assert_eq!("q4k".parse::<Isq>(), "Q4_K".parse());
        let message = "q9".parse::<Isq>().unwrap_err().to_string();
        assert!(message.contains("\"q9\"") && message.contains("Q4_K"), "{message}");
    }

    #[test]
    fn what_would_change_nothing_is_refused() {
        let sources = ["m.gguf", "org/name/m.gguf", "org/name"].map(|text| match text.split('/').count() {
            1 => ModelSource::GgufFile(text.into()),
            _ => ModelSource::Hub(text.to_owned()),
        });
        assert_eq!(Isq::Auto.check(sources[..2].iter()), Ok(()));
        assert_eq!(Isq::None.check(sources.iter()), Ok(()));
        let message = Isq::None.check(sources[..2].iter()).unwrap_err().to_string();
        assert!(message.contains("--isq none") && message.contains("quantised already"), "{message}");
        assert!(Isq::None.check([].iter()).is_err());
    }

    #[test]
    fn without_a_word_only_a_cpu_changes_weights() {
        assert_eq!(Isq::Auto.on(true).map(QuantizedType::name), Some("Q8_0"));
        assert_eq!(Isq::Auto.on(false), None);
        assert_eq!(Isq::None.on(true), None);
        assert_eq!("q4_0".parse::<Isq>().unwrap().on(false).map(QuantizedType::name), Some("Q4_0"));
    }
}
