//! The default model in 8-bit blocks, for CPUs: candle has vector kernels for Q8_0 and none for Q4_1, which takes half of a token's time.
//!
//! Made once, beside the original, and checked against the SHA-256 that it had when it was made. Every 4-bit value is a value of the
//! 8-bit grid or next to one: texts stay as good as they were.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter},
    path::{Path, PathBuf},
};

use candle_core::{
    Device,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Content, Value},
    },
};

use super::model_cache::{TEMPORARY, lock, sha256_of};

/// GGUF's number for "mostly Q8_0" in `general.file_type`.
const MOSTLY_Q8_0: u32 = 7;

/// The file to run on this build's device: `original`, or where that is faster its copy in Q8_0, made if need be. Blocks.
pub(super) fn for_this_device(original: PathBuf) -> PathBuf {
    if cfg!(any(feature = "cuda", feature = "metal")) {
        // GPUs have kernels for both, and less memory is better there.
        return original;
    }
    match q8_0(&original) {
        Ok(converted) => converted,
        Err(error) => {
            tracing::warn!(%error, "cannot keep the default model in its faster form; the original is used, a quarter slower");
            original
        }
    }
}

/// `model.gguf` -> `model.q8_0.gguf`, with `model.q8_0.gguf.sha256` beside it.
fn q8_0(original: &Path) -> io::Result<PathBuf> {
    let converted = original.with_extension("q8_0.gguf");
    let checksum = original.with_extension("q8_0.gguf.sha256");
    if is_whole(&converted, &checksum) {
        return Ok(converted);
    }
    let folder = original.parent().unwrap_or(Path::new("."));
    let _lock = lock(&folder.join(".lock"), &|| ())?;
    // Another process may have made it while this one waited.
    if is_whole(&converted, &checksum) {
        return Ok(converted);
    }
    let temporary = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(folder)?;
    let made = temporary.path().join("model");
    convert(original, &made)?;
    let noted = temporary.path().join("checksum");
    fs::write(&noted, sha256_of(File::open(&made)?, &mut io::sink())?)?;
    fs::rename(&made, &converted)?;
    // Last: without it the file does not count.
    fs::rename(&noted, &checksum)?;
    Ok(converted)
}

fn is_whole(path: &Path, checksum: &Path) -> bool {
    let Ok(expected) = fs::read_to_string(checksum) else { return false };
    File::open(path).and_then(|file| sha256_of(file, &mut io::sink())).is_ok_and(|found| found == expected)
}

fn convert(from: &Path, to: &Path) -> io::Result<()> {
    let mut input = BufReader::new(File::open(from)?);
    let content = Content::read(&mut input).map_err(io::Error::other)?;
    let mut tensors = Vec::with_capacity(content.tensor_infos.len());
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(&mut input, name, &Device::Cpu).map_err(io::Error::other)?;
        tensors.push((name.as_str(), faster(tensor).map_err(io::Error::other)?));
    }
    let file_type = Value::U32(MOSTLY_Q8_0);
    let metadata: Vec<_> = content
        .metadata
        .iter()
        .map(|(key, value)| (key.as_str(), if key == "general.file_type" { &file_type } else { value }))
        .collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let mut output = BufWriter::new(File::create(to)?);
    gguf_file::write(&mut output, &metadata, &tensors).map_err(io::Error::other)?;
    output.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn faster(tensor: QTensor) -> candle_core::Result<QTensor> {
    match tensor.dtype() {
        GgmlDType::Q4_1 => QTensor::quantize(&tensor.dequantize(&Device::Cpu)?, GgmlDType::Q8_0),
        _ => Ok(tensor),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use candle_core::Tensor;

    use super::*;

    /// A file with one tensor of each kind.
    fn original(folder: &Path) -> PathBuf {
        let path = folder.join("model.gguf");
        let values = |n: usize| Tensor::from_vec((0..n).map(|i| (i as f32 * 0.37).sin()).collect(), n, &Device::Cpu);
        let weights = QTensor::quantize(&values(256).unwrap(), GgmlDType::Q4_1).unwrap();
        let norm = QTensor::quantize(&values(32).unwrap(), GgmlDType::F32).unwrap();
        let metadata =
            [("general.architecture", &Value::String("llama".into())), ("general.file_type", &Value::U32(3))];
        let mut file = File::create(&path).unwrap();
        gguf_file::write(&mut file, &metadata, &[("weights", &weights), ("norm", &norm)]).unwrap();
        path
    }

    fn tensor(path: &Path, name: &str) -> (GgmlDType, Vec<f32>) {
        let mut file = File::open(path).unwrap();
        let tensor = Content::read(&mut file).unwrap().tensor(&mut file, name, &Device::Cpu).unwrap();
        (tensor.dtype(), tensor.dequantize(&Device::Cpu).unwrap().to_vec1().unwrap())
    }

    #[test]
    fn only_what_is_slow_is_converted_and_values_stay() {
        let folder = tempfile::tempdir().unwrap();
        let original = original(folder.path());
        let converted = q8_0(&original).unwrap();
        let ((_, before), (kind, after)) = (tensor(&original, "weights"), tensor(&converted, "weights"));
        assert_eq!(kind, GgmlDType::Q8_0);
        for (before, after) in before.iter().zip(&after) {
            assert!((before - after).abs() < 1.0 / 127.0, "{before} became {after}");
        }
        assert_eq!(tensor(&original, "norm"), tensor(&converted, "norm"));
        let content = Content::read(&mut File::open(&converted).unwrap()).unwrap();
        assert_eq!(content.metadata["general.architecture"].to_string().unwrap(), "llama");
        assert_eq!(content.metadata["general.file_type"].to_u32().unwrap(), MOSTLY_Q8_0);
    }

    #[test]
    fn it_is_made_once_and_again_when_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let original = original(folder.path());
        let converted = q8_0(&original).unwrap();
        let whole = fs::read(&converted).unwrap();
        let made = fs::metadata(&converted).unwrap().modified().unwrap();
        q8_0(&original).unwrap();
        assert_eq!(fs::metadata(&converted).unwrap().modified().unwrap(), made);
        fs::write(&converted, &whole[..whole.len() / 2]).unwrap();
        q8_0(&original).unwrap();
        assert_eq!(fs::metadata(&converted).unwrap().len(), whole.len() as u64);
    }

    #[test]
    fn what_cannot_be_converted_is_used_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let garbage = folder.path().join("model.gguf");
        fs::write(&garbage, "no model").unwrap();
        assert_eq!(for_this_device(garbage.clone()), garbage);
    }
}
