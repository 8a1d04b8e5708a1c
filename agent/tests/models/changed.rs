//! Whatever number of a header or shape of a tensor is changed: the model says what it is to say, or is refused in one line.

use super::{
    load,
    maker::{GgufFile, SAID, SmallModel, Tokens, Value},
    said,
};

/// Numbers that break something: nothing, an odd one, one that is larger than anything here, and the largest.
const NUMBERS: [u32; 4] = [0, 31, 100_000, u32::MAX];

/// Every file with one thing changed.
fn changed(model: &SmallModel) -> Vec<(String, GgufFile)> {
    let whole = model.gguf();
    let mut files = Vec::new();
    for (key, value) in &whole.entries {
        let Value::U32(own) = value else { continue };
        // A shorter context ends the answer, and another token that is there may be meant as its end.
        if key.ends_with(".context_length") || key.ends_with(".eos_token_id") {
            continue;
        }
        for number in NUMBERS.into_iter().filter(|number| number != own) {
            let mut file = whole.clone();
            file.set(key, Value::U32(number));
            files.push((format!("{key} = {number}"), file));
        }
    }
    for tensor in &whole.tensors {
        let shapes = [
            tensor.shape.iter().rev().copied().collect::<Vec<_>>(),
            vec![tensor.shape.iter().product()],
            tensor.shape.iter().map(|side| side / 2).collect(),
            tensor.shape.iter().map(|_| 0).collect(),
        ];
        for shape in shapes.into_iter().filter(|shape| *shape != tensor.shape) {
            let mut file = whole.clone();
            file.tensor(&tensor.name).shape.clone_from(&shape);
            files.push((format!("{} of {shape:?}", tensor.name), file));
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wrong_number_is_found_or_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (what, file) in changed(&SmallModel::new(Tokens::SentencePiece)) {
        let (said, is_right) = match load(&file.write(&folder.path().join("small.gguf")), None).await {
            Ok(engine) => {
                let said = said(&engine).await;
                let is_right = said == SAID;
                (said, is_right)
            }
            Err(error) => {
                let message = error.to_string();
                let is_right = !message.contains('\n') && !message.contains("panicked") && message.len() < 900;
                (message, is_right)
            }
        };
        println!("{what}: {said:?}");
        if !is_right {
            wrong.push(format!("{what}: {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
