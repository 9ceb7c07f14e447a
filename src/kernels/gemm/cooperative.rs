//! Tilings of the product by cooperative matrices, `shaders/gemm/cooperative.wgsl`.

use super::{Checked, Gating, Gemm, GemmArgs, Transpose, UNITS};
use crate::capabilities::{Capabilities, MatrixTier};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::recipe::Recipe;

/// How the work is cut between workgroups and their subgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CooperativeTiling {
    /// Rows of the output for a workgroup: a multiple of `sub_m`.
    pub tile_m: u32,
    /// Columns of the output for a workgroup (gated: rows of B): a multiple of `sub_n`.
    pub tile_n: u32,
    /// Steps along k between barriers: 16, 32, 64 or 128.
    pub tile_k: u32,
    /// Rows of the output for a subgroup: a multiple of 16.
    pub sub_m: u32,
    /// Columns of the output for a subgroup: a multiple of 16; gated a power of two, at least 32.
    pub sub_n: u32,
    /// Rows of tiles that are walked together, column by column, so that workgroups in flight share operands.
    pub group: u32,
}

impl CooperativeTiling {
    /// A tile of m, n, k, cut into m, n for each subgroup.
    pub const fn new(tile: [u32; 3], sub: [u32; 2]) -> Self {
        Self {
            tile_m: tile[0],
            tile_n: tile[1],
            tile_k: tile[2],
            sub_m: sub[0],
            sub_n: sub[1],
            group: 8,
        }
    }

    /// Invocations of a workgroup.
    pub const fn invocations(&self) -> u32 {
        (self.tile_m / self.sub_m) * (self.tile_n / self.sub_n) * 32
    }

    /// Rows of an operand's tile, and its vectors of eight elements in a row.
    const fn stored(&self, width: u32, along_k: bool) -> [u32; 2] {
        if along_k {
            [width, self.tile_k / 8]
        } else {
            [self.tile_k, width / 8]
        }
    }

    fn operands(&self, op: &Gemm) -> [[u32; 2]; 2] {
        [
            self.stored(self.tile_m, op.a == Transpose::No),
            self.stored(self.tile_n, op.b == Transpose::Yes),
        ]
    }

    /// Workgroup memory in bytes for this product: both operands' tiles, each row padded by 16 bytes, or the results
    /// on their way out, whichever is more.
    pub fn workgroup_bytes(&self, op: &Gemm) -> u32 {
        let tiles = self.operands(op).map(|[rows, cols]| rows * (cols + 1) * 16);
        let results = self.invocations() / 32 * op.gating.factor() as u32 * 16 * 5 * 16;
        (tiles[0] + tiles[1]).max(results)
    }

    /// The shader's constants.
    pub(super) fn constants(&self, recipe: Recipe) -> Recipe {
        recipe
            .with("BM", self.tile_m)
            .with("BN", self.tile_n)
            .with("BK", self.tile_k)
            .with("SM", self.sub_m)
            .with("SN", self.sub_n)
            .with("GROUP", self.group)
    }

    pub(super) fn check(&self, caps: &Capabilities, op: &Gemm) -> Result<()> {
        let multiple = |v: u32, of: u32| v > 0 && of > 0 && v.is_multiple_of(of);
        let sizes = [self.tile_m, self.tile_n].iter().all(|&v| v <= 1024)
            && [16, 32, 64, 128].contains(&self.tile_k)
            && multiple(self.sub_m, 16)
            && multiple(self.sub_n, 16)
            && multiple(self.tile_m, self.sub_m)
            && multiple(self.tile_n, self.sub_n)
            && self.group > 0
            && (op.gating == Gating::None || self.sub_n.is_power_of_two() && self.sub_n >= 32);
        // Every invocation copies whole rows of vectors, and as many as the others.
        let even = |[rows, cols]: [u32; 2]| {
            let lanes = self.invocations();
            multiple(lanes, cols) && multiple(rows * cols, lanes)
        };
        if sizes
            && self.operands(op).into_iter().all(even)
            && self.invocations() <= caps.invocations
            && self.workgroup_bytes(op) <= caps.workgroup_bytes
        {
            return Ok(());
        }
        Err(Error::argument(
            "tuning",
            format!("{self:?}"),
            format!(
                "a tile of whole subgroups' parts (multiples of 16; gated columns a power of two, at least 32), steps of 16 to \
                 128, rows of eight elements that divide among the invocations, at most {} invocations and {} bytes",
                caps.invocations, caps.workgroup_bytes
            ),
        ))
    }
}

/// A tiling with its speed, TFLOP/s on an H100 (2026-11-25, f16 out).
struct Measured {
    tiling: CooperativeTiling,
    /// With as many workgroups on a multiprocessor as it holds: B as [k, n], and transposed.
    full: [f64; 2],
    /// With one.
    alone: [f64; 2],
}

const fn measured(tile: [u32; 3], sub: [u32; 2], full: [f64; 2], alone: [f64; 2]) -> Measured {
    Measured {
        tiling: CooperativeTiling::new(tile, sub),
        full,
        alone,
    }
}

/// Tilings the planner chooses from. Those of 32 steps leave room for a second workgroup. B as [k, n] does not divide
/// among the invocations of 128 x 160: its first figures are not used.
const TILINGS: [Measured; 6] = [
    measured([128, 128, 32], [64, 64], [345.0, 316.0], [202.0, 190.0]),
    measured([160, 128, 32], [80, 64], [347.0, 328.0], [190.0, 160.0]),
    measured([128, 160, 32], [64, 80], [339.0, 339.0], [173.0, 173.0]),
    measured([192, 128, 64], [48, 64], [325.0, 325.0], [325.0, 325.0]),
    measured([128, 128, 64], [64, 64], [306.0, 306.0], [305.0, 297.0]),
    measured([64, 64, 64], [32, 32], [198.0, 200.0], [140.0, 140.0]),
];

/// Workgroup memory of a multiprocessor: under NVIDIA's driver 48 KiB for all of its workgroups together (two of 24576
/// bytes run at a time, two of 25600 do not).
const UNIT_BYTES: u32 = 48 << 10;

/// Errors unless the kernel takes such operands on this device.
pub(super) fn admit(
    caps: &Capabilities,
    args: &GemmArgs<'_, Layout>,
    problem: &Checked,
) -> Result<()> {
    let refuse = |was: String, allowed: &str| Err(Error::argument("tuning", was, allowed));
    if caps.matrix_tier() != MatrixTier::Cooperative {
        return refuse(
            format!("cooperative matrices on {caps}"),
            "a device whose matrix tier is Cooperative",
        );
    }
    for (name, layout, matrices) in [("a", args.a, problem.a), ("b", args.b, problem.b)] {
        if layout.dtype() != DType::F16 || !matrices.multiple_of(8) {
            return refuse(
                format!("cooperative matrices for {name} of {layout:?}"),
                "f16, rows, offset and strides multiples of 8 elements",
            );
        }
    }
    Ok(())
}

/// Every tiling that fits.
pub(super) fn candidates(
    caps: &Capabilities,
    op: &Gemm,
) -> impl Iterator<Item = CooperativeTiling> {
    let extra = [
        CooperativeTiling::new([128, 128, 64], [64, 32]),
        CooperativeTiling::new([128, 256, 32], [64, 64]),
        CooperativeTiling::new([256, 128, 32], [64, 64]),
        CooperativeTiling::new([128, 192, 64], [64, 48]),
        CooperativeTiling::new([64, 128, 64], [32, 32]),
        CooperativeTiling::new([128, 64, 64], [64, 32]),
        CooperativeTiling::new([64, 64, 128], [32, 32]),
        CooperativeTiling::new([64, 128, 32], [32, 64]),
        CooperativeTiling::new([32, 64, 64], [16, 32]),
    ];
    let tilings = TILINGS.iter().map(|m| m.tiling).chain(extra);
    tilings.filter(|t| t.check(caps, op).is_ok())
}

/// The tiling that is expected to take the shortest time. None if none fits.
pub(super) fn choose(
    caps: &Capabilities,
    op: &Gemm,
    problem: &Checked,
) -> Option<CooperativeTiling> {
    let n = problem.out.cols * op.gating.factor();
    // Whole rounds of as many workgroups as fit, and a last one that may leave them more of the device.
    let time = |m: &Measured| {
        let [tile_m, tile_n] = [m.tiling.tile_m as usize, m.tiling.tile_n as usize];
        let tiles = problem.out.rows.div_ceil(tile_m) * n.div_ceil(tile_n) * problem.out.batch;
        let resident = (UNIT_BYTES / m.tiling.workgroup_bytes(op)).clamp(1, 2) as usize;
        let along = (op.b == Transpose::Yes) as usize;
        let (rounds, rest) = (tiles / (UNITS * resident), tiles % (UNITS * resident));
        let round = resident as f64 / m.full[along];
        let last = match rest {
            0 => 0.0,
            _ if rest <= UNITS => 1.0 / m.alone[along],
            _ => round,
        };
        (tile_m * tile_n) as f64 * (rounds as f64 * round + last)
    };
    let fitting = TILINGS.iter().filter(|m| m.tiling.check(caps, op).is_ok());
    fitting
        .min_by(|a, b| time(a).total_cmp(&time(b)))
        .map(|m| m.tiling)
}
