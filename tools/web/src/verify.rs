//! The correctness matrix.

use js_sys::{Array, Function};
use kernels_tests::cases::{FAMILIES, all};
use kernels_tests::{Effort, Tally, grouped};
use wasm_bindgen::prelude::*;

use crate::Device;

/// Names of the families of kernels.
#[wasm_bindgen]
pub fn families() -> Vec<String> {
    FAMILIES.iter().map(|f| f.name.to_string()).collect()
}

#[wasm_bindgen]
impl Device {
    /// Runs the cases of `family`, one a group if `quick`. `tell` gets every group when it is done: its name, how many
    /// cases passed, the failures, and the skipped as "N: what is missing"; it ends where `tell` returns false.
    pub async fn verify(&self, family: &str, quick: bool, tell: &Function) -> Result<(), JsError> {
        let effort = if quick { Effort::Quick } else { Effort::Full };
        for group in grouped(all(family, effort)) {
            let mut tally = Tally::default();
            for case in &group {
                tally.add(case, case.run_async(&self.ctx).await);
            }
            let strings = |list: Vec<String>| list.into_iter().map(JsValue::from).collect();
            let failures: Array = strings(tally.failures);
            let skipped = tally.skipped.iter().map(|(what, n)| format!("{n}: {what}"));
            let skipped: Array = strings(skipped.collect());
            let arguments = Array::of4(
                &group[0].group.as_str().into(),
                &(tally.passed as u32).into(),
                &failures,
                &skipped,
            );
            let answer = tell.apply(&JsValue::NULL, &arguments);
            let answer = answer.map_err(|e| JsError::new(&format!("{e:?}")))?;
            if answer.as_bool() == Some(false) {
                break;
            }
        }
        Ok(())
    }
}
