//! The page of `cargo xtask web`: the library in a browser, as its JavaScript sees it.
#![cfg(target_arch = "wasm32")]

mod bench;
mod text;
mod verify;

use flashwave::DType::F32;
use flashwave::kernels::elementwise::{Activation, Unary};
use flashwave::{Context, Tensor};
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
    /// Opens it; `subgroups` says that the page's JavaScript has it require them (`page/subgroups.js`).
    pub async fn open(subgroups: bool) -> Result<Device, JsError> {
        let mut builder = Context::builder();
        if subgroups {
            builder = builder.requires_subgroups();
        }
        let ctx = builder.build_async().await.map_err(error)?;
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
        Tensor::empty(&self.ctx, F32, [bytes / 4]).map_err(error)?;
        self.ctx.wait_async().await.map_err(error)
    }

    /// Asks for more workgroups than a device takes, for the test of what its refusal looks like.
    pub async fn overreach(&self) -> Result<(), JsError> {
        let ctx = &self.ctx;
        let copy = || {
            let x = Tensor::from_slice(ctx, &[1.0f32; 4], [4])?;
            let y = Tensor::empty(ctx, F32, [4])?;
            let op = Unary(Activation::None);
            let mut launch = op.plan(ctx.capabilities(), x.layout(), y.layout())?;
            launch.grid = [u32::MAX, 1, 1];
            ctx.record(|pass| pass.launch(&launch, &[&x, &y]))
        };
        copy().map_err(error)?;
        ctx.wait_async().await.map_err(error)
    }
}
