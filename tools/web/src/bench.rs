//! Attention over longer and longer texts: dense, windowed, and over listed blocks.

use flashwave::DType::F32;
use flashwave::Result;
use flashwave::kernels::attention::{Attention, AttentionArgs, Blocks, Mask};
use flashwave::kernels::random::Uniform;
use flashwave::kernels::sparse::{Pattern, SparseLayout};
use flashwave::{Context, Tensor};
use wasm_bindgen::prelude::*;

use crate::{Device, error};

const HEADS: usize = 8;
const DIM: usize = 64;
const BLOCK: usize = 32;
/// Milliseconds that repetitions of one point take at least.
const ENOUGH: f64 = 30.0;

/// What is compared.
#[derive(Clone, Copy)]
enum Variant {
    Dense,
    /// Keys that a query sees.
    Window(u32),
    /// One block in so many, and as many in a window.
    S2(usize),
}

const VARIANTS: [Variant; 5] = [
    Variant::Dense,
    Variant::Window(128),
    Variant::S2(4),
    Variant::S2(8),
    Variant::S2(16),
];

impl Variant {
    fn name(self) -> String {
        match self {
            Self::Dense => "dense".into(),
            Self::Window(keys) => format!("window of {keys}"),
            Self::S2(stride) => format!("S2, one block in {stride}"),
        }
    }

    fn mask(self) -> Mask {
        match self {
            Self::Window(keys) => Mask::Window {
                left: keys - 1,
                right: 0,
                sinks: 0,
            },
            _ => Mask::Causal,
        }
    }

    fn layout(self, length: usize) -> Result<Option<SparseLayout>> {
        let Self::S2(stride) = self else {
            return Ok(None);
        };
        // Half of what is met strided, half in the window.
        let window = (length / BLOCK / 4 / stride).max(1);
        let pattern = Pattern::s2(2 * stride, window);
        let builder = SparseLayout::builder(HEADS, length, length).block(BLOCK);
        builder.pattern(&pattern).map(Some)
    }
}

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = performance)]
    fn now() -> f64;
}

/// Names of the variants.
#[wasm_bindgen]
pub fn variants() -> Vec<String> {
    VARIANTS.iter().map(|v| v.name()).collect()
}

#[wasm_bindgen]
impl Device {
    /// Milliseconds that causal attention of one sequence of `length` takes by variant number `variant`: 8 heads of 64
    /// channels of f32.
    pub async fn attention(&self, variant: usize, length: usize) -> Result<f64, JsError> {
        let variant = VARIANTS.get(variant).copied();
        let variant = variant.ok_or_else(|| JsError::new("no such variant"))?;
        time(&self.ctx, variant, length).await.map_err(error)
    }
}

async fn time(ctx: &Context, variant: Variant, length: usize) -> Result<f64> {
    let shape = [1, HEADS, length, DIM];
    let random = |seed| Uniform { seed, scale: 1.0 }.tensor(ctx, F32, shape);
    let (q, k, v) = (random(0)?, random(1)?, random(2)?);
    let out = Tensor::empty(ctx, F32, shape)?;
    let layout = variant.layout(length)?;
    let op = Attention::new(variant.mask());
    let args = || AttentionArgs {
        sparse: layout.as_ref().map(Blocks::Listed),
        ..AttentionArgs::new(&q, &k, &v, &out)
    };
    // The first run compiles; then twice as many at a time until it takes long enough for the clock.
    let mut runs = 0;
    loop {
        let started = now();
        ctx.record(|pass| (0..runs.max(1)).try_for_each(|_| op.run(pass, args())))?;
        ctx.wait_async().await?;
        let taken = now() - started;
        if runs > 0 && (taken > ENOUGH || runs >= 256) {
            return Ok(taken / f64::from(runs));
        }
        runs = (2 * runs).max(1);
    }
}
