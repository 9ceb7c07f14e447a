//! How a convolution's transforms are spread over invocations.

use super::{Arithmetic, MonarchTuning};
use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::radix;
use crate::recipe::Recipe;

/// Real and imaginary parts cross between invocations together or one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Planes {
    /// Half the workgroup memory, three barriers an exchange.
    One,
    /// One barrier an exchange.
    Two,
}

impl Planes {
    const fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// Most steps of a transform in one kernel.
const STEPS: usize = 5;

/// The shape of a transform inside a workgroup, and of the work around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FusedTuning {
    /// Points of each step's butterflies, 1 where there is none; their product is the transform's length.
    pub radices: [u32; STEPS],
    /// Points that an invocation keeps in registers.
    pub each: u32,
    /// Most adjacent points of an access to memory: 1, 2 or 4; `radices[0] * vec` is at most `each`.
    pub vec: u32,
    /// How points are exchanged.
    pub planes: Planes,
    /// Transforms of a workgroup, side by side.
    pub side: u32,
    /// Most groups of batch rows that a workgroup does one after the other.
    pub rounds: u32,
}

/// A place is kept free in workgroup memory after so many, as a power of two, so that strides spread over banks.
const PADS: [u32; 4] = [7, 6, 5, 4];

/// Banks of workgroup memory, as many as invocations that access it together.
const BANKS: usize = 32;

/// Places of `points` points with one left free after every 2^`pad`.
const fn span(points: usize, pad: u32) -> usize {
    points + if pad == 0 { 0 } else { points >> pad }
}

/// `lane` with bit 4 and bit `swap` in each other's place.
const fn swapped(lane: usize, swap: u32) -> usize {
    if swap == 0 || (lane >> 4 ^ lane >> swap) & 1 == 0 {
        lane
    } else {
        lane ^ (16 | 1 << swap)
    }
}

impl FusedTuning {
    /// The transform's length.
    pub fn points(&self) -> usize {
        self.radices.iter().map(|&r| r as usize).product()
    }

    /// The same with one transform a workgroup.
    pub(super) fn alone(self) -> Self {
        Self { side: 1, ..self }
    }

    /// The radices in use.
    pub fn steps(&self) -> Vec<usize> {
        let used = self.radices.iter().filter(|&&r| r > 1);
        used.map(|&r| r as usize).collect()
    }

    /// Invocations of one transform.
    pub fn lanes(&self) -> u32 {
        self.points() as u32 / self.each
    }

    /// Bytes of workgroup memory of `together` transforms, a place left free after every 2^`pad`, or none for 0.
    fn bytes(&self, pad: u32, together: u32) -> u64 {
        // Transforms of one step exchange nothing.
        if self.steps().len() < 2 {
            0
        } else {
            let points = self.points() * together as usize;
            (4 * self.planes.count() * span(points, pad)) as u64
        }
    }

    /// Times that a bank is accessed more than once in the exchanges of the first invocations, at the places of step `s`.
    /// Transforms of `columns` columns are interleaved; bit 4 of an invocation's number changes places with bit `swap`, if that is not 0.
    fn conflicts(&self, s: usize, [pad, vec, columns, swap]: [u32; 4]) -> usize {
        let points = self.points() * columns as usize;
        let lanes = points / self.each as usize;
        let steps = radix::steps(&self.steps());
        let (step, columns) = (steps[s], columns as usize);
        // The first and the last step exchange with one other.
        let exchanges = usize::from(s > 0) + usize::from(s + 1 < steps.len());
        let run = if s == 0 { vec as usize } else { 1 };
        let stride = step.stride * columns;
        let mut hits = [0; BANKS];
        for invocation in 0..BANKS.min(lanes * self.side as usize) {
            let butterfly = swapped(invocation % lanes, swap) * run;
            let place = butterfly / stride * stride * step.radix + butterfly % stride;
            let own = invocation / lanes * self.planes.count() * span(points, pad);
            hits[(own + span(place, pad)) % BANKS] += 1;
        }
        // Every other point of an invocation is as far on for all of them.
        let worst = hits.into_iter().max().unwrap_or(1);
        exchanges * self.each as usize * (worst - 1)
    }

    /// The padding that fits with the fewest conflicts, and the bits swapped for the second, third and fourth step.
    fn geometry(&self, caps: &Capabilities, vec: u32, columns: u32) -> (u32, [u32; 3]) {
        let together = self.side * columns;
        let steps = self.steps().len();
        let bits = (self.points() as u32 * columns / self.each).ilog2();
        let fits = |pad: &u32| {
            self.points() * together as usize >= 1 << pad
                && self.bytes(*pad, together) <= caps.workgroup_bytes.into()
        };
        let swap = |s: usize, pad: u32| {
            let bits = if s + 1 < steps { bits } else { 0 };
            [0].into_iter()
                .chain(5..bits)
                .min_by_key(|&swap| self.conflicts(s, [pad, vec, columns, swap]))
                .unwrap_or(0)
        };
        let found = PADS.into_iter().filter(fits).chain([0]).map(|pad| {
            let swaps = [1, 2, 3].map(|s| if s < steps { swap(s, pad) } else { 0 });
            let of = |s: usize| if s == 0 || s > 3 { 0 } else { swaps[s - 1] };
            let conflicts: usize = (0..steps)
                .map(|s| self.conflicts(s, [pad, vec, columns, of(s)]))
                .sum();
            (conflicts, pad, swaps)
        });
        let best = found.min_by_key(|&(conflicts, ..)| conflicts);
        best.map_or((0, [0; 3]), |(_, pad, swaps)| (pad, swaps))
    }

    pub(super) fn check(self, caps: &Capabilities) -> Result<Self> {
        self.check_columns(caps, 1)
    }

    /// With `columns` transforms interleaved in a workgroup.
    fn check_columns(self, caps: &Capabilities, columns: u32) -> Result<Self> {
        let together = self.side * columns;
        let fits = self.radices.iter().all(|r| r.is_power_of_two() && r <= &self.each)
            && self.each.is_power_of_two()
            && self.each >= 2
            && self.points() * columns as usize >= self.each as usize
            && [1, 2, 4].contains(&self.vec)
            && self.radices[0] * self.vec <= self.each
            && self.side.is_power_of_two()
            && self.rounds >= 1
            && self.points() as u32 * together / self.each <= caps.invocations
            && self.bytes(0, together) <= caps.workgroup_bytes.into()
            // The order of a single step's points depends on the width of accesses.
            && (self.steps().len() > 1 || self.vec == 1 || columns >= self.vec);
        if fits {
            return Ok(self);
        }
        let allowed = format!(
            "powers of two, radices and radices[0] * vec at most each, at most {} invocations and {} bytes of workgroup memory",
            caps.invocations, caps.workgroup_bytes
        );
        Err(Error::argument("tuning", format!("{self:?}"), allowed))
    }

    /// The constants of the transforms of a workgroup.
    pub(super) fn constants(&self, recipe: Recipe, caps: &Capabilities, vec: u32) -> Recipe {
        self.constants_of(recipe, caps, vec, 1)
    }

    /// The constants of `columns` transforms whose points are interleaved.
    pub(super) fn constants_of(
        &self,
        recipe: Recipe,
        caps: &Capabilities,
        vec: u32,
        columns: u32,
    ) -> Recipe {
        let inverse_at = radix::forward_len(&radix::steps(&self.steps())) as u32;
        self.write(recipe, caps, [vec, columns, inverse_at])
    }

    /// The constants with the inverse twiddles at `inverse_at`.
    pub(super) fn constants_at(
        &self,
        recipe: Recipe,
        caps: &Capabilities,
        vec: u32,
        inverse_at: u32,
    ) -> Recipe {
        self.write(recipe, caps, [vec, 1, inverse_at])
    }

    fn write(
        &self,
        recipe: Recipe,
        caps: &Capabilities,
        [vec, columns, inverse_at]: [u32; 3],
    ) -> Recipe {
        let [r1, r2, r3, r4, r5] = self.radices;
        let (pad, [s2, s3, s4]) = self.geometry(caps, vec, columns);
        recipe
            .with("N", self.points() as u32 * columns)
            .with("R1", r1)
            .with("R2", r2)
            .with("R3", r3)
            .with("R4", r4)
            .with("R5", r5)
            .with("E", self.each)
            .with("VEC", vec)
            .with("PLANES", self.planes.count() as u32)
            .with("PAD", pad)
            .with("S2", s2)
            .with("S3", s3)
            .with("S4", s4)
            .with("INVERSE", inverse_at)
    }

    /// `points` points with `each` an invocation, the first radix small enough for accesses of `vec`.
    fn of(points: u32, each: u32, vec: u32) -> Option<Self> {
        let first = if points <= each / vec {
            points
        } else {
            each / vec
        };
        let mut radices = [1; STEPS];
        radices[0] = first;
        let mut left = points / first;
        let more = left.ilog2().div_ceil(each.ilog2());
        for step in 0..more {
            // As even as possible, the larger ones last (1.14 times as fast at 4096 points on an H100).
            let bits = left.ilog2() / (more - step);
            *radices.get_mut(step as usize + 1)? = 1 << bits;
            left >>= bits;
        }
        Some(Self {
            radices,
            each,
            vec,
            planes: Planes::Two,
            side: 1,
            rounds: 8,
        })
    }

    /// What the planner takes for transforms of `points` points of f32 sequences: from 2048 on larger radices, so that points are
    /// exchanged less often (on an H200, batch 64: 2048 points as 8, 16, 16 498 us, as 4, 8, 8, 8 634).
    pub fn default_for_f32(caps: &Capabilities, points: usize) -> Option<Self> {
        let (radices, each, vec) = match points {
            2048 => ([8, 16, 16, 1, 1], 16, 2),
            4096 => ([16, 16, 16, 1, 1], 16, 1),
            8192 => ([8, 32, 32, 1, 1], 32, 4),
            _ => return Self::default_for(caps, points),
        };
        let tuning = Self {
            radices,
            each,
            vec,
            planes: Planes::One,
            side: 1,
            rounds: 8,
        };
        let checked = tuning.check(caps).ok();
        checked.or_else(|| Self::default_for(caps, points))
    }

    /// What the planner takes for transforms of `points` points, if the device can hold them in a workgroup.
    pub fn default_for(caps: &Capabilities, points: usize) -> Option<Self> {
        let points = u32::try_from(points).ok()?;
        let each = points.clamp(2, 16);
        let two = match points {
            0..=16 => Self::of(points, each, 1)?,
            _ => Self::of(points, each, 4)?,
        };
        let side = (64 / two.lanes().max(1)).max(1);
        let two = Self { side, ..two };
        let one = Self {
            planes: Planes::One,
            ..two
        };
        // One plane leaves the cache more room for spectra and twiddles: 1.4 times as fast at 4096 points on an H100.
        [one, two].into_iter().find(|t| t.check(caps).is_ok())
    }

    /// Most points of a transform in a workgroup.
    pub fn most_points(caps: &Capabilities) -> usize {
        let bits = (1..=16)
            .rev()
            .find(|&bits| Self::default_for(caps, 1 << bits).is_some());
        1 << bits.unwrap_or(1)
    }

    /// Tunings worth timing for transforms of `points` points.
    pub fn candidates(caps: &Capabilities, points: usize) -> Vec<Self> {
        let mut found = Vec::new();
        for each in [8, 16, 32] {
            for vec in [1, 2, 4] {
                for radices in factorisations(points as u32, each / vec, each)
                    .into_iter()
                    .take(2)
                {
                    for planes in [Planes::One, Planes::Two] {
                        let side = (64 * each / points as u32).max(1);
                        let tuning = Self {
                            radices,
                            each,
                            vec,
                            planes,
                            side,
                            rounds: 8,
                        };
                        if tuning.check(caps).is_ok() {
                            found.push(tuning);
                        }
                    }
                }
            }
        }
        found
    }
}

/// Products of radices up to `most`, the first at most `first`, in as few steps as there can be, the most even first.
fn factorisations(points: u32, first: u32, most: u32) -> Vec<[u32; STEPS]> {
    let mut found = Vec::new();
    let mut grow = vec![vec![]];
    for _ in 0..STEPS {
        let mut longer: Vec<Vec<u32>> = Vec::new();
        for start in &grow {
            let done: u32 = start.iter().product();
            let limit = if start.is_empty() { first } else { most };
            let mut radix = 2;
            while radix <= limit && points.is_multiple_of(done * radix) {
                let mut next = start.clone();
                next.push(radix);
                longer.push(next);
                radix *= 2;
            }
        }
        for radices in longer
            .iter()
            .filter(|r| r.iter().product::<u32>() == points)
        {
            let mut padded = [1; STEPS];
            padded[..radices.len()].copy_from_slice(radices);
            found.push(padded);
        }
        if !found.is_empty() {
            break;
        }
        grow = longer;
    }
    found.sort_by_key(|radices| radices.iter().sum::<u32>());
    found
}

/// What comes before the last pass of a long convolution, the inverse over columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Passes {
    /// Transforms over columns, then rows convolved.
    Three,
    /// Rows convolved, which make their points from the whole sequence: of up to 16 rows, the transforms over columns in one step.
    Two,
}

/// The shape of a transform in three passes: over columns, over rows, over columns; or in two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LongTuning {
    /// The transforms over columns; their points are the rows.
    pub columns: FusedTuning,
    /// What comes before the last pass.
    pub passes: Passes,
    /// Columns of a workgroup.
    pub width: u32,
    /// The transforms over rows.
    pub rows: FusedTuning,
    /// Bytes of memory between the passes, at most. What would stay in a cache is slower: dispatches of few workgroups wait for one
    /// another (32768 points on an H200 6.1 ms with 32 MiB, 5.4 with 256, 5.1 with 1024).
    pub scratch: u64,
}

impl LongTuning {
    /// The transform's length.
    pub fn points(&self) -> usize {
        self.columns.points() * self.rows.points()
    }

    fn check(self, caps: &Capabilities) -> Result<Self> {
        self.rows.check(caps)?;
        let columns = self.columns.check_columns(caps, self.width)?;
        let fits = self.width.is_power_of_two()
            && self.width >= columns.vec
            && self.rows.points().is_multiple_of(self.width as usize)
            && columns.side == 1
            && self.rows.side == 1
            && (self.passes == Passes::Three || columns.steps().len() == 1);
        if fits {
            return Ok(self);
        }
        let allowed = "a power of two of columns, no more than the rows have, one transform side by side, one step over columns for two passes";
        Err(Error::argument("tuning", format!("{self:?}"), allowed))
    }

    /// `rows` of `row_points` points, so many points of columns a workgroup, if that fits.
    fn of(
        caps: &Capabilities,
        points: usize,
        row_points: usize,
        [each, together, vec]: [u32; 3],
        row_each: u32,
        scratch: u64,
    ) -> Option<Self> {
        let rows = FusedTuning::of(row_points as u32, row_each.min(row_points as u32 / 2), 1)?;
        let count = (points / row_points) as u32;
        let width = (together / count).clamp(4, 512);
        let columns = FusedTuning::of(count, each, vec)?;
        // One plane a pass over columns: 1048576 points on an H200 13.1 ms, with two 16.4.
        let one = |t: FusedTuning| FusedTuning {
            planes: Planes::One,
            ..t
        };
        let tuning = Self {
            columns: one(columns),
            passes: Passes::Three,
            width,
            rows: one(rows),
            scratch,
        };
        tuning.check(caps).ok()
    }

    /// In two passes, `rows` of so many points.
    fn two_passes(
        caps: &Capabilities,
        points: usize,
        rows: FusedTuning,
        width: u32,
        scratch: u64,
    ) -> Option<Self> {
        let count = u32::try_from(points / rows.points()).ok()?;
        let columns = FusedTuning {
            radices: [count, 1, 1, 1, 1],
            each: 4 * count,
            vec: 4,
            ..rows
        };
        let tuning = Self {
            columns,
            passes: Passes::Two,
            width,
            rows,
            scratch,
        };
        let fits = (2..=8).contains(&count) && points == tuning.points();
        fits.then_some(tuning)?.check(caps).ok()
    }

    /// What the planner takes for transforms of `points` points.
    pub fn default_for(caps: &Capabilities, points: usize) -> Option<Self> {
        // The winners on an H100 at 32768 and 1048576 points.
        let (row_points, first) = match points {
            0..=0x20000 => (2048, [8, 1024, 4]),
            0x20001..=0x200000 => (4096, [16, 2048, 4]),
            _ => (8192, [16, 2048, 4]),
        };
        let row_points = row_points
            .min(FusedTuning::most_points(caps))
            .min(points / 2);
        let wanted = [first, [16, 2048, 4], [16, 4096, 4]];
        wanted
            .into_iter()
            .find_map(|columns| Self::of(caps, points, row_points, columns, 16, 1 << 30))
    }

    /// In two passes, if those are faster: of up to 32768 points with rows of 4096 (batch 16 on an H200 4.6 ms, three passes 4.8).
    fn default_in_two_passes(caps: &Capabilities, points: usize) -> Option<Self> {
        let rows = FusedTuning::default_for_f32(caps, 4096)?;
        Self::two_passes(caps, points, rows, 512, 1 << 30)
    }

    /// Tunings worth timing for transforms of `points` points.
    pub fn candidates(caps: &Capabilities, points: usize) -> Vec<Self> {
        let mut found = Vec::new();
        for rows in [
            ([8, 32, 32, 1, 1], 32, 4),
            ([32, 16, 16, 1, 1], 32, 1),
            ([8, 8, 8, 16, 1], 16, 2),
            ([16, 16, 16, 1, 1], 16, 1),
            ([8, 16, 32, 1, 1], 32, 4),
            ([4, 8, 8, 16, 1], 16, 4),
            ([8, 16, 32, 1, 1], 32, 1),
        ] {
            let (radices, each, vec) = rows;
            let rows = FusedTuning {
                radices,
                each,
                vec,
                planes: Planes::One,
                side: 1,
                rounds: 8,
            };
            for (width, mib) in [(512, 1024), (128, 1024), (512, 256)] {
                found.extend(Self::two_passes(caps, points, rows, width, mib << 20));
            }
        }
        for row_points in [1024, 2048, 4096, 8192] {
            for columns in [[8, 1024, 4], [16, 2048, 4]] {
                for mib in [32, 256, 1024] {
                    if points > row_points {
                        let scratch = mib << 20;
                        found.extend(Self::of(caps, points, row_points, columns, 16, scratch));
                    }
                }
            }
        }
        found
    }
}

/// The shape of a convolution's transforms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tuning {
    /// In a workgroup: one kernel.
    Fused(FusedTuning),
    /// Over three kernels.
    Long(LongTuning),
    /// In f16, on matrix units.
    Monarch(MonarchTuning),
}

impl Tuning {
    /// The transform's length.
    pub fn points(&self) -> usize {
        match self {
            Self::Fused(tuning) => tuning.points(),
            Self::Long(tuning) => tuning.points(),
            Self::Monarch(tuning) => tuning.points(),
        }
    }

    pub(super) fn check(self, caps: &Capabilities) -> Result<Self> {
        match self {
            Self::Fused(tuning) => tuning.check(caps).map(Self::Fused),
            Self::Long(tuning) => tuning.check(caps).map(Self::Long),
            Self::Monarch(tuning) => tuning.check(caps).map(Self::Monarch),
        }
    }

    /// Tunings worth timing for transforms of `points` points.
    pub fn candidates(caps: &Capabilities, arithmetic: Arithmetic, points: usize) -> Vec<Self> {
        if arithmetic == Arithmetic::Half {
            let monarch = MonarchTuning::candidates(caps, points);
            if !monarch.is_empty() {
                return monarch.into_iter().map(Self::Monarch).collect();
            }
        }
        let fused = FusedTuning::candidates(caps, points);
        if !fused.is_empty() {
            return fused.into_iter().map(Self::Fused).collect();
        }
        LongTuning::candidates(caps, points)
            .into_iter()
            .map(Self::Long)
            .collect()
    }

    /// What the planner takes for causal convolutions of whole sequences of `points` points.
    pub fn default_for_whole(caps: &Capabilities, points: usize, dtype: DType) -> Option<Self> {
        let any = Self::default_for(caps, points, dtype)?;
        match any {
            Self::Long(_) if dtype == DType::F32 => LongTuning::default_in_two_passes(caps, points)
                .map_or(Some(any), |t| Some(Self::Long(t))),
            _ => Some(any),
        }
    }

    /// What the planner takes for transforms of `points` points, of f32 sequences if the filter is f32.
    pub fn default_for(caps: &Capabilities, points: usize, dtype: DType) -> Option<Self> {
        let fused = match dtype {
            DType::F32 => FusedTuning::default_for_f32(caps, points),
            _ => FusedTuning::default_for(caps, points),
        };
        match fused {
            Some(tuning) => Some(Self::Fused(tuning)),
            None => LongTuning::default_for(caps, points).map(Self::Long),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_cover_what_fits() {
        let caps = Capabilities::webgpu_default();
        for bits in 1..=12 {
            let tuning = FusedTuning::default_for(&caps, 1 << bits).unwrap();
            assert_eq!(tuning.points(), 1 << bits);
        }
        assert!(FusedTuning::default_for(&caps, 8192).is_none());
        let large = Capabilities {
            workgroup_bytes: 48 << 10,
            invocations: 1024,
            ..caps
        };
        assert!(FusedTuning::default_for(&large, 8192).is_some());
    }

    #[test]
    fn candidates_are_of_the_length() {
        let caps = Capabilities::webgpu_default();
        for points in [64, 1024, 4096] {
            let found = FusedTuning::candidates(&caps, points);
            assert!(found.len() > 3 && found.iter().all(|t| t.points() == points));
        }
    }
}
