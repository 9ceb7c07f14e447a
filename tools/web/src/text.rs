//! Text from a model.

use flashwave::loader::Weights;
use flashwave::model::{Generation, LlamaOptions, Model, Sampling};
use js_sys::{Function, Uint8Array};
use wasm_bindgen::prelude::*;

use crate::{Device, error};

/// A model on the device.
#[wasm_bindgen]
pub struct Writer {
    weights: Weights,
    model: Model,
}

#[wasm_bindgen]
impl Writer {
    /// Loads the files of a Hugging Face folder, a GGUF file, or a llama2.c checkpoint and its tokenizer.
    pub async fn load(
        device: &Device,
        names: Vec<String>,
        contents: Vec<Uint8Array>,
    ) -> Result<Writer, JsError> {
        let bytes = contents.iter().map(Uint8Array::to_vec);
        let weights = Weights::from_bytes(names.into_iter().zip(bytes).collect()).map_err(error)?;
        let options = LlamaOptions::default();
        let model = Model::load_with(&device.ctx, &weights, options, &mut |_| {}).map_err(error)?;
        device.ctx.wait_async().await.map_err(error)?;
        Ok(Self { weights, model })
    }

    /// The longest text in tokens, the prompt's among them.
    #[wasm_bindgen(getter)]
    pub fn longest(&self) -> usize {
        self.weights.config().max_positions()
    }

    /// Writes at most `tokens` tokens after `prompt`. `tell` gets each piece of text and the number of tokens generated so
    /// far; the text ends where it returns false.
    pub async fn write(
        &self,
        prompt: &str,
        tokens: usize,
        temperature: f32,
        seed: u32,
        tell: &Function,
    ) -> Result<(), JsError> {
        let config = self.weights.config();
        let tokenizer = self.weights.tokenizer();
        let tokenizer = tokenizer.ok_or_else(|| JsError::new("the model has no tokenizer"))?;
        let mut ids: Vec<u32> = config.bos_token_id().into_iter().collect();
        ids.extend(tokenizer.encode(prompt).map_err(error)?);
        let room = config.max_positions().saturating_sub(ids.len());
        let capacity = ids.len() + tokens.min(room);
        let sampling = Sampling::temperature(temperature).seed(seed.into());
        let mut session = self.model.session(capacity).map_err(error)?;
        let mut generation = Generation::of(&mut *session, &ids, &sampling).map_err(error)?;
        let mut stream = tokenizer.stream();
        for &id in &ids {
            if let Some(text) = stream.push(id).map_err(error)? {
                say(tell, &text, 0)?;
            }
        }
        let mut generated = 0;
        while generated < tokens
            && let Some(token) = generation.next_async().await
        {
            let token = token.map_err(error)?;
            generated += 1;
            let ends = config.eos_token_ids().contains(&token);
            let text = match ends {
                true => None,
                false => stream.push(token).map_err(error)?,
            };
            if !say(tell, &text.unwrap_or_default(), generated)? {
                break;
            }
        }
        let rest = stream.finish().map_err(error)?;
        say(tell, &rest.unwrap_or_default(), generated)?;
        Ok(())
    }
}

/// Whether the listener wants more.
fn say(tell: &Function, text: &str, generated: usize) -> Result<bool, JsError> {
    let answer = tell.call2(&JsValue::NULL, &text.into(), &(generated as u32).into());
    let answer = answer.map_err(|e| JsError::new(&format!("{e:?}")))?;
    Ok(answer.as_bool() != Some(false))
}
