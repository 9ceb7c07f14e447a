//! Tilings of products of 8-bit operands.

use super::super::attention::MatrixUnits;
use super::super::gemm::UNITS;
use super::problem::Problem;
use crate::capabilities::{Capabilities, DeviceClass, MatrixTier};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::recipe::Recipe;

/// How the work is cut for matrix units, `shaders/gemm8/cooperative.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixTiling {
    /// Rows, columns and steps along k of a workgroup's tile.
    pub tile: [u32; 3],
    /// Rows and columns for a subgroup: multiples of 16.
    pub sub: [u32; 2],
    /// What multiplies.
    pub units: MatrixUnits,
}

impl MatrixTiling {
    /// A tiling for the device's matrix units.
    pub const fn new(tile: [u32; 3], sub: [u32; 2]) -> Self {
        Self {
            tile,
            sub,
            units: MatrixUnits::Device,
        }
    }

    /// For tests without matrix units.
    pub const EMULATED: Self = Self {
        units: MatrixUnits::Emulated,
        ..Self::new([32, 32, 32], [16, 32])
    };

    const fn invocations(&self) -> u32 {
        (self.tile[0] / self.sub[0]) * (self.tile[1] / self.sub[1]) * 32
    }

    /// Vectors of 16 bytes of a tile's row, in workgroup memory and in memory for A and B.
    fn vectors(&self, problem: &Problem<'_>) -> [u32; 3] {
        let of = |t: DType| self.tile[2] * t.size() as u32 / 16;
        let stored = if problem.integers() { 16 } else { 8 };
        let [a, b] = problem.types();
        [self.tile[2] / stored, of(a), of(b)]
    }

    fn workgroup_bytes(&self, problem: &Problem<'_>) -> u32 {
        let tiles = (self.tile[0] + self.tile[1]) * (self.vectors(problem)[0] + 1) * 16;
        tiles.max(self.invocations() / 32 * 16 * 5 * 16)
    }

    fn fits(&self, caps: &Capabilities, problem: &Problem<'_>) -> bool {
        let multiple = |v: u32, of: u32| v > 0 && of > 0 && v.is_multiple_of(of);
        let [m, n, k] = self.tile;
        let lanes = self.invocations();
        let [stored, a, b] = self.vectors(problem);
        // Every invocation copies whole rows of vectors, and as many as the others.
        let even = |rows: u32, cols: u32| multiple(lanes, cols) && multiple(rows * cols, lanes);
        multiple(self.sub[0], 16)
            && multiple(self.sub[1], 16)
            && multiple(m, self.sub[0])
            && multiple(n, self.sub[1])
            && m.max(n).max(k) <= 1024
            && multiple(k, 32)
            // A step of outliers is half as many columns, of which they have multiples of 64.
            && (problem.args.outliers.is_none() || multiple(128, k))
            && multiple(stored, 2)
            && even(m, a)
            && even(n, b)
            && lanes <= caps.invocations
            && self.workgroup_bytes(problem) <= caps.workgroup_bytes
    }
}

/// How the work is cut without matrix units, `shaders/gemm8/packed.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PackedTiling {
    /// Rows, columns and steps along k of a workgroup's tile: powers of two, at least 16.
    pub tile: [u32; 3],
    /// Rows and columns for an invocation: 4 or 8.
    pub per: [u32; 2],
}

impl PackedTiling {
    const fn new(tile: [u32; 3], per: [u32; 2]) -> Self {
        Self { tile, per }
    }

    fn fits(&self, caps: &Capabilities, problem: &Problem<'_>) -> bool {
        let [m, n, k] = self.tile;
        let lanes = (m / self.per[0].max(1)) * (n / self.per[1].max(1));
        let [a, b] = problem.types().map(|t| t.size() as u32);
        self.tile
            .iter()
            .all(|t| t.is_power_of_two() && (16..=1024).contains(t))
            && self.per.iter().all(|p| [4, 8].contains(p))
            && problem.group.is_none_or(|g| g.is_multiple_of(k as usize))
            && lanes <= caps.invocations
            && (m * a + n * b) * k <= caps.workgroup_bytes
    }
}

/// How the work is cut, and by what it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gemm8Tuning {
    /// By packed products of four, or in f32.
    Packed(PackedTiling),
    /// By matrix units: rows, offsets and strides of codes multiples of 16 elements, scales not of blocks.
    Matrix(MatrixTiling),
}

impl Gemm8Tuning {
    pub(super) fn tile(&self) -> [usize; 3] {
        let tile = match self {
            Self::Packed(t) => t.tile,
            Self::Matrix(t) => t.tile,
        };
        tile.map(|v| v as usize)
    }

    pub(super) const fn shader(&self) -> &'static str {
        match self {
            Self::Packed(_) => "gemm8/packed",
            Self::Matrix(_) => "gemm8/cooperative",
        }
    }

    /// The shader's constants.
    pub(super) fn constants(&self, recipe: Recipe) -> Recipe {
        let [m, n, k] = match self {
            Self::Packed(t) => t.tile,
            Self::Matrix(t) => t.tile,
        };
        let recipe = recipe
            .with("BM", m)
            .with("BN", n)
            .with("BK", k)
            .with("GROUP", GROUP);
        match self {
            Self::Packed(t) => recipe.with("TM", t.per[0]).with("TN", t.per[1]),
            Self::Matrix(t) => {
                let (coop, loads) = match t.units {
                    MatrixUnits::Device => ("units", "wide"),
                    MatrixUnits::Emulated => ("emulated", "narrow"),
                };
                recipe
                    .with("SM", t.sub[0])
                    .with("SN", t.sub[1])
                    .with("COOP", coop)
                    .with("LOADS", loads)
            }
        }
    }

    pub(super) fn check(&self, caps: &Capabilities, problem: &Problem<'_>) -> Result<()> {
        let fits = match self {
            Self::Packed(t) => t.fits(caps, problem),
            Self::Matrix(t) => admits(caps, problem, t.units) && t.fits(caps, problem),
        };
        if fits {
            return Ok(());
        }
        Err(Error::argument(
            "tuning",
            format!(
                "{self:?} for {:?} by {:?}",
                problem.args.a.codes, problem.args.b.codes
            ),
            format!(
                "a tile of whole parts whose steps divide a block's, at most {} invocations and {} bytes; for matrix units \
                 parts of 16, rows of codes that divide among the invocations and are multiples of 16 elements, scales of \
                 rows or tensors, and a device that has such units",
                caps.invocations, caps.workgroup_bytes
            ),
        ))
    }
}

/// Rows of tiles that are walked together, column by column, so that workgroups in flight share operands.
const GROUP: u32 = 8;

/// Workgroup memory of a multiprocessor for all of its workgroups (NVIDIA's driver).
const UNIT_BYTES: u32 = 48 << 10;

/// Tilings with their speeds: TOP/s on an H100 (2026-11-25, f16 out) with as many workgroups on a multiprocessor as it holds,
/// and with one on each of 128.
type Measured = (MatrixTiling, [f64; 2]);

/// Of int8 by int8.
const INTEGERS: [Measured; 5] = [
    (MatrixTiling::new([128, 160, 64], [64, 80]), [629.0, 515.0]),
    (MatrixTiling::new([160, 128, 64], [80, 64]), [605.0, 494.0]),
    (MatrixTiling::new([192, 128, 128], [48, 64]), [584.0, 652.0]),
    (MatrixTiling::new([128, 128, 128], [64, 64]), [543.0, 550.0]),
    (MatrixTiling::new([64, 64, 128], [32, 32]), [378.0, 240.0]),
];

/// Of operands that become f16: f16 by E4M3.
const HALVES: [Measured; 4] = [
    (MatrixTiling::new([128, 128, 32], [64, 64]), [269.0, 140.0]),
    (MatrixTiling::new([192, 128, 64], [48, 64]), [267.0, 260.0]),
    (MatrixTiling::new([128, 128, 64], [64, 64]), [245.0, 240.0]),
    (MatrixTiling::new([64, 64, 64], [32, 32]), [175.0, 120.0]),
];

/// All fit WebGPU's default limits; the last is for software drivers.
const PACKED: [PackedTiling; 4] = [
    PackedTiling::new([64, 64, 64], [8, 8]),
    PackedTiling::new([32, 64, 64], [4, 8]),
    PackedTiling::new([16, 64, 64], [4, 4]),
    PackedTiling::new([64, 64, 32], [8, 8]),
];

/// Whether matrix units take the problem on this device.
fn admits(caps: &Capabilities, problem: &Problem<'_>, units: MatrixUnits) -> bool {
    let has = match units {
        MatrixUnits::Emulated => true,
        MatrixUnits::Device if problem.integers() => caps.matrix_int8,
        MatrixUnits::Device => caps.matrix_tier() == MatrixTier::Cooperative,
    };
    // Outliers are added to sums that have become f32 in registers.
    let reached =
        problem.args.outliers.is_none() || units == MatrixUnits::Emulated || caps.matrix_elements;
    let eight_bits = problem.types().iter().any(|&t| t != DType::F16);
    has && reached && eight_bits && problem.alignment() == 16 && problem.group.is_none()
}

fn measured(problem: &Problem<'_>) -> &'static [Measured] {
    if problem.integers() {
        &INTEGERS
    } else {
        &HALVES
    }
}

/// Every tiling that fits.
pub(super) fn candidates(caps: &Capabilities, problem: &Problem<'_>) -> Vec<Gemm8Tuning> {
    let extra: &[MatrixTiling] = if problem.integers() {
        &[
            MatrixTiling::new([128, 128, 64], [64, 64]),
            MatrixTiling::new([128, 256, 64], [64, 64]),
            MatrixTiling::new([128, 128, 64], [32, 64]),
            MatrixTiling::new([96, 128, 64], [48, 64]),
            MatrixTiling::new([64, 128, 128], [32, 64]),
        ]
    } else {
        &[
            MatrixTiling::new([160, 128, 32], [80, 64]),
            MatrixTiling::new([128, 128, 64], [32, 64]),
        ]
    };
    let tables = measured(problem).iter().map(|(t, _)| *t);
    let matrix = tables.chain(extra.iter().copied()).map(Gemm8Tuning::Matrix);
    let extra = [
        PackedTiling::new([128, 64, 32], [8, 8]),
        PackedTiling::new([128, 128, 32], [8, 8]),
        PackedTiling::new([32, 32, 64], [4, 4]),
    ];
    let packed = PACKED.into_iter().chain(extra).map(Gemm8Tuning::Packed);
    matrix
        .chain(packed)
        .filter(|t| t.check(caps, problem).is_ok())
        .collect()
}

/// The tiling that is expected to take the shortest time, of the fastest kernel that takes the problem.
pub(super) fn choose(caps: &Capabilities, problem: &Problem<'_>) -> Gemm8Tuning {
    let tiles =
        |[m, n, _]: [u32; 3]| problem.m.div_ceil(m as usize) * problem.n.div_ceil(n as usize);
    if admits(caps, problem, MatrixUnits::Device) {
        // Whole rounds of as many workgroups as fit, and a last one that may leave them more of the device.
        let time = |(tiling, [full, alone]): &Measured| {
            let resident = (UNIT_BYTES / tiling.workgroup_bytes(problem)).clamp(1, 2) as usize;
            let (rounds, rest) = (
                tiles(tiling.tile) / (UNITS * resident),
                tiles(tiling.tile) % (UNITS * resident),
            );
            let round = resident as f64 / full;
            let last = match rest {
                0 => 0.0,
                _ if rest <= UNITS => 1.0 / alone,
                _ => round,
            };
            f64::from(tiling.tile[0] * tiling.tile[1]) * (rounds as f64 * round + last)
        };
        let fitting = measured(problem).iter().filter(|m| m.0.fits(caps, problem));
        if let Some((tiling, _)) = fitting.min_by(|x, y| time(x).total_cmp(&time(y))) {
            return Gemm8Tuning::Matrix(*tiling);
        }
    }
    let fitting = PACKED.iter().filter(|t| t.fits(caps, problem));
    let time = |t: &PackedTiling| {
        let work = (t.tile[0] * t.tile[1]) as usize;
        // Small tiles read more for each product.
        let each = work * (t.per[0] + t.per[1]) as usize / (t.per[0] * t.per[1]) as usize;
        tiles(t.tile).div_ceil(UNITS) * (work + 2 * each)
    };
    let best = fitting.min_by_key(|t| match caps.class {
        DeviceClass::Software => t.tile[2] as usize,
        _ => time(t),
    });
    Gemm8Tuning::Packed(best.copied().unwrap_or(PACKED[3]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::{CooperativeShape, SubgroupSizes};
    use crate::kernels::gemm8::{Gemm8, Gemm8Args, Operand, Outliers};
    use crate::layout::Layout;

    /// The shader and its tile.
    fn chosen(caps: &Capabilities, types: [DType; 2], [m, n, k]: [usize; 3]) -> String {
        let of = |dtype, shape| Layout::contiguous(dtype, shape).unwrap();
        let (a, b) = (of(types[0], [m, k]), of(types[1], [n, k]));
        let out = of(DType::F32, [m, n]);
        let args = Gemm8Args::new(Operand::plain(&a), Operand::plain(&b), &out);
        let recipe = Gemm8::default().plan(caps, &args).unwrap().recipe;
        let tile = ["BM", "BN", "BK"].map(|name| recipe.constant(name).unwrap().to_string());
        format!("{} {}", recipe.shader(), tile.join("x"))
    }

    #[test]
    fn outliers_go_to_matrix_units_whose_elements_are_reached() {
        let card = |matrix_elements| Capabilities {
            class: DeviceClass::Discrete,
            shader_f16: true,
            spirv: true,
            matrix_int8: true,
            matrix_elements,
            subgroups: Some(SubgroupSizes { min: 32, max: 32 }),
            cooperative: vec![CooperativeShape::F16],
            invocations: 1024,
            workgroup_bytes: 48 << 10,
            ..Capabilities::webgpu_default()
        };
        let of = |dtype, shape: [usize; 2]| Layout::contiguous(dtype, shape).unwrap();
        let (codes, apart) = (
            of(DType::I8, [8192, 8192]),
            of(DType::F16, [8192 + 256, 64]),
        );
        let columns = Layout::contiguous(DType::U32, [65]).unwrap();
        let out = of(DType::F16, [8192, 8192]);
        let mut args = Gemm8Args::new(Operand::plain(&codes), Operand::plain(&codes), &out);
        args.outliers = Some(Outliers {
            columns: &columns,
            a: &apart,
            b: &apart,
        });
        for (reached, shader) in [(true, "gemm8/cooperative"), (false, "gemm8/packed")] {
            let launch = Gemm8::default().plan(&card(reached), &args).unwrap();
            assert_eq!(launch.recipe.shader(), shader);
        }
    }

    #[test]
    fn matrix_units_take_whole_vectors_of_codes() {
        let card = Capabilities {
            class: DeviceClass::Discrete,
            shader_f16: true,
            spirv: true,
            matrix_int8: true,
            subgroups: Some(SubgroupSizes { min: 32, max: 32 }),
            cooperative: vec![CooperativeShape::F16],
            invocations: 1024,
            workgroup_bytes: 48 << 10,
            ..Capabilities::webgpu_default()
        };
        let (int8, mixed) = ([DType::I8; 2], [DType::F16, DType::F8E4M3]);
        let large = [8192; 3];
        assert_eq!(chosen(&card, int8, large), "gemm8/cooperative 128x160x64");
        assert_eq!(
            chosen(&card, int8, [4096, 512, 14336]),
            "gemm8/cooperative 128x128x128"
        );
        assert_eq!(
            chosen(&card, int8, [256, 256, 4096]),
            "gemm8/cooperative 64x64x128"
        );
        assert_eq!(chosen(&card, mixed, large), "gemm8/cooperative 128x128x32");
        assert_eq!(
            chosen(&card, int8, [8192, 8192, 8180]),
            "gemm8/packed 64x64x64"
        );
        let halves_alone = Capabilities {
            matrix_int8: false,
            ..card
        };
        assert_eq!(chosen(&halves_alone, int8, large), "gemm8/packed 64x64x64");
        assert_eq!(
            chosen(&halves_alone, mixed, large),
            "gemm8/cooperative 128x128x32"
        );
    }
}
