//! The page of `cargo xtask web`: the library in a browser, as its JavaScript sees it.
#![cfg(target_arch = "wasm32")]

mod bench;
mod text;
mod verify;

use flashwave::Context;
use wasm_bindgen::prelude::*;

#[wasm_bindgen(start)]
fn start() {
    console_error_panic_hook::set_once();
}

/// An error of any kind as JavaScript's.
fn error(error: impl std::fmt::Display) -> JsError {
    JsError::new(&error.to_string())
}

/// The browser's device.
#[wasm_bindgen]
pub struct Device {
    ctx: Context,
}

#[wasm_bindgen]
impl Device {
    /// Opens it.
    pub async fn open() -> Result<Device, JsError> {
        let ctx = Context::builder().build_async().await.map_err(error)?;
        Ok(Self { ctx })
    }

    /// The adapter as the browser names it.
    #[wasm_bindgen(getter)]
    pub fn adapter(&self) -> String {
        let caps = self.ctx.capabilities();
        match caps.name.is_empty() {
            true => format!("unnamed ({}, {:?})", caps.backend, caps.class),
            false => caps.to_string(),
        }
    }

    /// The tiers in use.
    #[wasm_bindgen(getter)]
    pub fn tier(&self) -> String {
        self.ctx.capabilities().tier_summary()
    }

    /// Gives the device up, as when a driver resets: every later call fails.
    pub fn destroy(&self) {
        self.ctx.destroy();
    }

    /// Asks for a tensor of so many bytes, for the test of what a refusal looks like.
    pub async fn allocate(&self, bytes: usize) -> Result<(), JsError> {
        flashwave::Tensor::empty(&self.ctx, flashwave::DType::F32, [bytes / 4]).map_err(error)?;
        self.ctx.wait_async().await.map_err(error)
    }
}
