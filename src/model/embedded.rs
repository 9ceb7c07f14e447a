//! The small model that comes with the crate (feature `embedded-model`): stories of a grammar of its own, see
//! `assets/README.md`.

use crate::error::Result;
use crate::loader::Weights;

macro_rules! file {
    ($name:literal) => {
        (
            $name.to_string(),
            &include_bytes!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/assets/default-model/",
                $name
            ))[..],
        )
    };
}

/// Opens it; the bytes stay in the program and are not copied.
pub fn weights() -> Result<Weights> {
    Weights::from_bytes(vec![
        file!("config.json"),
        file!("model.safetensors"),
        file!("tokenizer.json"),
    ])
}
