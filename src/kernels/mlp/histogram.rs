//! Histograms of magnitudes: what thresholds are found by.

use bytemuck::{Pod, Zeroable};

use crate::capabilities::Capabilities;
use crate::context::Context;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::elementwise::Activation;
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe};
use crate::recorder::Pass;
use crate::tensor::Tensor;

/// Bins: 32 for every octave of f32, ascending; the last 32 hold infinities and NaN.
pub const BINS: usize = 1 << 13;
/// Bits of an f32 below those that name a bin.
const DROPPED: u32 = 18;
/// Magnitudes that are counted in workgroup memory: 2^-48 to 2^16, where activations are.
const LOCAL: (u32, u32) = ((127 - 48) << (23 - DROPPED), 64 << (23 - DROPPED));

/// How many magnitudes fell into each bin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u32>,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    groups: u32,
    groups_per_row: u32,
    cols: u32,
    a_offset: u32,
    a_stride: u32,
    base: u32,
}

impl Histogram {
    /// Bins on the device, [`BINS`] of u32, all zero.
    pub fn bins(ctx: &Context) -> Result<Tensor> {
        Tensor::from_slice(ctx, &vec![0u32; BINS], [BINS])
    }

    /// Plans a count of the magnitudes of F(a) into `bins`. a: f32, f16 or bf16, rows evenly spaced.
    pub fn plan(caps: &Capabilities, f: Activation, a: &Layout, bins: &Layout) -> Result<Launch> {
        a.require_float("a")?;
        bins.require_dtype("bins", DType::U32)?;
        bins.require_shape("bins", &[BINS])?;
        bins.require_whole("bins")?;
        let rows = a.as_rows("a")?;
        let per_row = rows.cols.div_ceil(4);
        let params = Params {
            groups: (rows.rows * per_row) as u32,
            groups_per_row: per_row as u32,
            cols: rows.cols as u32,
            a_offset: rows.offset as u32,
            a_stride: rows.stride as u32,
            base: LOCAL.0,
        };
        const WORKGROUP: usize = 256;
        let recipe = Recipe::new("mlp/histogram")
            .with("A", a.dtype())
            .with("F", f.name())
            .with("VEC", if rows.multiple_of(4) { 4 } else { 1 })
            .with("LOCAL", LOCAL.1)
            .with("WG", WORKGROUP as u32);
        let groups = (rows.rows * per_row).div_ceil(8 * WORKGROUP).min(256);
        Launch::new(caps, recipe, [groups, 1, 1], &params)
    }

    /// Records a count of the magnitudes of F(a), added to what `bins` holds.
    pub fn count(pass: &mut Pass<'_>, f: Activation, a: &Tensor, bins: &Tensor) -> Result<()> {
        let launch = Self::plan(pass.capabilities(), f, a.layout(), bins.layout())?;
        pass.launch(&launch, &[a, bins])
    }

    /// Waits for `bins` and reads them.
    ///
    /// Errors if infinities or NaN were counted.
    pub fn read(bins: &Tensor) -> Result<Self> {
        let counts = bins.to_vec::<u32>()?;
        let infinite: u32 = counts[BINS - (1 << (23 - DROPPED))..].iter().sum();
        if infinite > 0 {
            let was = format!("{infinite} infinite or NaN");
            return Err(Error::argument("activations", was, "finite ones"));
        }
        Ok(Self { counts })
    }

    /// How many were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|&c| u64::from(c)).sum()
    }

    /// Bins that are not empty: the lower edge, the upper, and the count.
    pub fn filled(&self) -> impl Iterator<Item = (f32, f32, u32)> {
        let filled = self.counts.iter().enumerate().filter(|(_, c)| **c > 0);
        filled.map(|(i, &c)| (edge(i), edge(i + 1), c))
    }

    /// A threshold that the share `sparsity` of what was counted is not above, to the width of a bin (3% of the value).
    ///
    /// Errors unless `sparsity` is within 0 to 1.
    pub fn threshold(&self, sparsity: f64) -> Result<f32> {
        check_sparsity(sparsity)?;
        let target = sparsity * self.total() as f64;
        let mut below = 0.0;
        for (low, high, count) in self.filled() {
            let count = f64::from(count);
            if below + count >= target {
                let share = ((target - below) / count).clamp(0.0, 1.0);
                return Ok((f64::from(low) + share * f64::from(high - low)) as f32);
            }
            below += count;
        }
        Ok(0.0)
    }

    /// The share of what was counted that is not above a threshold, a bin that holds it being divided evenly.
    pub fn sparsity(&self, threshold: f32) -> f64 {
        let part = |(low, high, count): (f32, f32, u32)| {
            let share = f64::from(threshold - low) / f64::from(high - low);
            share.clamp(0.0, 1.0) * f64::from(count)
        };
        self.filled().map(part).sum::<f64>() / self.total().max(1) as f64
    }
}

/// Errors unless `sparsity` is within 0 to 1.
pub(crate) fn check_sparsity(sparsity: f64) -> Result<()> {
    if (0.0..=1.0).contains(&sparsity) {
        return Ok(());
    }
    Err(Error::argument("sparsity", sparsity, "0 to 1"))
}

/// Where a bin begins.
fn edge(bin: usize) -> f32 {
    f32::from_bits((bin as u32) << DROPPED)
}
