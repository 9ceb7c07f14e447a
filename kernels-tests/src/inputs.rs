//! Random inputs, poisoned outputs.

use flashwave::kernels::random::Uniform;
pub use flashwave::reference::round;
use flashwave::{Context, DType, Result, Tensor};

/// SplitMix64: small, seedable, good enough to fill tensors.
pub struct Random(u64);

impl Random {
    /// A generator for this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// An integer below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// `n` standard normal values, one in a hundred (at least one) ten times as large, rounded to `dtype`.
    pub fn normals(&mut self, n: usize, dtype: DType) -> Vec<f32> {
        self.scaled_normals(n, dtype, 1.0)
    }

    /// As [`normals`](Self::normals), times `scale`.
    pub fn scaled_normals(&mut self, n: usize, dtype: DType, scale: f64) -> Vec<f32> {
        let mut values: Vec<f64> = (0..n).map(|_| self.normal() * scale).collect();
        for _ in 0..n.div_ceil(100) {
            let at = self.below(n);
            values[at] *= 10.0;
        }
        values.into_iter().map(|x| round(x as f32, dtype)).collect()
    }
}

/// Every value as f64.
pub fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| x.into()).collect()
}

/// A tensor full of NaN: an element that a kernel does not write shows.
pub fn poisoned(ctx: &Context, dtype: DType, shape: impl AsRef<[usize]>) -> Result<Tensor> {
    let n = shape.as_ref().iter().product();
    Tensor::from_f32(ctx, dtype, &vec![f32::NAN; n], shape)
}

/// A tensor of random numbers in [-1, 1) (u32: random bits), made on the device.
pub fn random(
    ctx: &Context,
    dtype: DType,
    shape: impl AsRef<[usize]>,
    seed: usize,
) -> Result<Tensor> {
    let fill = Uniform {
        seed: seed as u32,
        scale: 1.0,
    };
    fill.tensor(ctx, dtype, shape)
}
