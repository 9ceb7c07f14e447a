//! Tilings of the product by f32 multiply-adds, `shaders/gemm/gemm.wgsl`.

use super::{Checked, Gating, UNITS};
use crate::capabilities::{Capabilities, DeviceClass};
use crate::error::{Error, Result};
use crate::recipe::Recipe;

/// Whether the next step's elements are read during a step's arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prefetch {
    /// No: fewer registers.
    Off,
    /// Into registers.
    On,
}

/// How the work is cut: one row of a tuning table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FmaTiling {
    /// Rows of the output for a workgroup: a power of two, at least 16.
    pub tile_m: u32,
    /// Columns of the output for a workgroup: a power of two, at least 16.
    pub tile_n: u32,
    /// Steps along k between barriers: a power of two, at least 8.
    pub tile_k: u32,
    /// Rows of the output for an invocation: 4 or 8.
    pub per_m: u32,
    /// Columns of the output for an invocation: 4 or 8; 8 for a gated product.
    pub per_n: u32,
    /// Whether to read ahead.
    pub prefetch: Prefetch,
    /// Rows of tiles that are walked together, column by column, so that workgroups in flight share operands.
    pub group: u32,
}

impl FmaTiling {
    const fn new(tile: [u32; 3], per: [u32; 2], prefetch: Prefetch) -> Self {
        Self {
            tile_m: tile[0],
            tile_n: tile[1],
            tile_k: tile[2],
            per_m: per[0],
            per_n: per[1],
            prefetch,
            group: 8,
        }
    }

    /// Invocations of a workgroup.
    pub const fn invocations(&self) -> u32 {
        (self.tile_m / self.per_m) * (self.tile_n / self.per_n)
    }

    /// Workgroup memory in bytes.
    pub const fn workgroup_bytes(&self) -> u32 {
        (self.tile_m + self.tile_n) * self.tile_k * 4
    }

    /// The shader's constants.
    pub(super) fn constants(&self, recipe: Recipe) -> Recipe {
        recipe
            .with("BM", self.tile_m)
            .with("BN", self.tile_n)
            .with("BK", self.tile_k)
            .with("TM", self.per_m)
            .with("TN", self.per_n)
            .with("PREFETCH", (self.prefetch == Prefetch::On) as u32)
            .with("GROUP", self.group)
    }

    pub(super) fn check(&self, caps: &Capabilities, gating: Gating) -> Result<()> {
        let power = |v: u32, least: u32| v.is_power_of_two() && v >= least;
        let sizes = power(self.tile_m, 16)
            && power(self.tile_n, 16)
            && power(self.tile_k, 8)
            && [4, 8].contains(&self.per_m)
            && [4, 8].contains(&self.per_n)
            && self.group > 0
            && (gating == Gating::None || self.per_n == 8);
        if sizes
            && self.tile_m <= 1024
            && self.tile_n <= 1024
            && self.tile_k <= 256
            && self.invocations() <= caps.invocations
            && self.workgroup_bytes() <= caps.workgroup_bytes
        {
            return Ok(());
        }
        Err(Error::argument(
            "tuning",
            format!("{self:?}"),
            format!(
                "powers of two, 4 or 8 an invocation (8 columns if gated), at most {} invocations and {} bytes",
                caps.invocations, caps.workgroup_bytes
            ),
        ))
    }
}

/// Tilings the planner chooses from, with the share of the fastest one's speed that each reaches when it fills the
/// device: f32 4096^3 on an H200, 2026-11-24, 41.0 TFLOP/s for the first (as much as 128 x 128 x 32 had, which wants 32 KiB).
/// All fit WebGPU's default limits.
const TILINGS: [(FmaTiling, f64); 8] = {
    use Prefetch::{Off, On};
    [
        (FmaTiling::new([64, 64, 16], [8, 8], On), 1.0),
        (FmaTiling::new([128, 64, 16], [8, 8], On), 0.94),
        (FmaTiling::new([64, 128, 16], [8, 8], Off), 0.94),
        (FmaTiling::new([64, 64, 16], [4, 8], Off), 0.85),
        (FmaTiling::new([32, 64, 32], [4, 8], On), 0.79),
        (FmaTiling::new([64, 64, 16], [4, 4], Off), 0.77),
        (FmaTiling::new([32, 32, 32], [4, 4], On), 0.66),
        (FmaTiling::new([16, 64, 32], [4, 4], On), 0.52),
    ]
};

/// The tiling for software drivers: 4.0 GFLOP/s with llvmpipe on two cores, where 64 x 64 with 4 x 4 had 1.9
/// and reading ahead 3.5.
const SOFTWARE: FmaTiling = FmaTiling::new([64, 64, 16], [8, 8], Prefetch::Off);

/// Every tiling that fits, with and without reading ahead.
pub(super) fn candidates(caps: &Capabilities, gating: Gating) -> impl Iterator<Item = FmaTiling> {
    let extra = [
        FmaTiling::new([128, 128, 8], [8, 8], Prefetch::On),
        FmaTiling::new([128, 128, 32], [8, 8], Prefetch::On),
        FmaTiling::new([256, 128, 8], [8, 8], Prefetch::On),
        FmaTiling::new([128, 256, 8], [8, 8], Prefetch::On),
        FmaTiling::new([64, 64, 16], [8, 8], Prefetch::On),
        FmaTiling::new([64, 64, 32], [8, 8], Prefetch::On),
        FmaTiling::new([64, 64, 32], [4, 4], Prefetch::On),
        FmaTiling::new([64, 64, 32], [4, 8], Prefetch::On),
        FmaTiling::new([64, 32, 32], [4, 4], Prefetch::On),
        FmaTiling::new([16, 64, 32], [4, 8], Prefetch::On),
        FmaTiling::new([16, 32, 64], [4, 4], Prefetch::On),
    ];
    let tilings = TILINGS.iter().map(|(tuning, _)| *tuning).chain(extra);
    tilings
        .flat_map(|t| [Prefetch::On, Prefetch::Off].map(|prefetch| FmaTiling { prefetch, ..t }))
        .filter(move |t| t.check(caps, gating).is_ok())
}

/// The tiling that is expected to take the shortest time: rounds of workgroups times a tile's work.
pub(super) fn choose(caps: &Capabilities, gating: Gating, problem: &Checked) -> FmaTiling {
    if caps.class == DeviceClass::Software {
        return SOFTWARE;
    }
    let n = problem.out.cols * gating.factor();
    let time = |tuning: &FmaTiling, speed: f64| {
        let (tile_m, tile_n) = (tuning.tile_m as usize, tuning.tile_n as usize);
        let tiles: usize =
            problem.out.rows.div_ceil(tile_m) * n.div_ceil(tile_n) * problem.out.batch;
        (tiles.div_ceil(UNITS) * tile_m * tile_n) as f64 / speed
    };
    let fitting = TILINGS
        .iter()
        .filter(|(t, _)| t.check(caps, gating).is_ok());
    fitting
        .min_by(|(t, s), (u, r)| time(t, *s).total_cmp(&time(u, *r)))
        .map_or(SOFTWARE, |(tuning, _)| *tuning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tiling_of_the_table_fits_the_portable_tier() {
        let caps = Capabilities::webgpu_default();
        for (tuning, _) in &TILINGS {
            tuning.check(&caps, Gating::None).unwrap();
        }
        SOFTWARE.check(&caps, Gating::GateUp).unwrap();
    }
}
