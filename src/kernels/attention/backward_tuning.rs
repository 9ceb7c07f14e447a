//! Tile sizes of the gradients' kernels.

use super::tuning::{depth_for, unfit};
use super::{Gradient, MatrixUnits};
use crate::capabilities::{Capabilities, DeviceClass};
use crate::error::Result;

/// Tile sizes of one of the two kernels. Its workgroups hold some rows (queries for dq, keys for dk and dv) and walk
/// over tiles of the other side's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GradientTuning {
    /// Invocations across the rows of a tile that is walked over, four rows each, and across the channels of the
    /// result: a power of two, at least 4.
    pub across: u32,
    /// Invocations along the held rows: a power of two.
    pub along: u32,
    /// Held rows of one invocation: 4 or 8.
    pub rows: u32,
    /// Channels that are staged at a time for the dot products, in groups of four: 1 to 8.
    pub depth: u32,
    /// Walked rows that are staged at a time for the result: a power of two, 4 to those of a tile.
    pub staged_rows: u32,
}

/// Tile sizes of one of the two kernels for matrix units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlashGradientTuning {
    /// What multiplies.
    pub units: MatrixUnits,
    /// Subgroups of a workgroup, of 32 invocations each: a power of two; one if emulated.
    pub subgroups: u32,
    /// Held rows of a subgroup: 16 or 32.
    pub rows: u32,
    /// Rows of a tile that is walked over: a power of two from 16 on, at most 64 times the subgroups.
    pub walked: u32,
    /// Rows of it whose scores are held at a time: a power of two from 16 to `walked`.
    pub part: u32,
}

/// All sizes that do not change the gradients; [`BackwardTuning::new`] has a device's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackwardTuning {
    /// Of the kernel of dq.
    pub queries: GradientTuning,
    /// Of the kernel of dk and dv.
    pub keys: GradientTuning,
    /// Of the kernels of dq and of dk and dv for matrix units, which then serve what calls they can.
    pub flash: Option<[FlashGradientTuning; 2]>,
}

impl BackwardTuning {
    /// The defaults for a device.
    pub fn new(caps: &Capabilities, head_dim: usize, v_dim: usize) -> Self {
        let of = |gradient| GradientTuning::new(caps, gradient, head_dim, v_dim);
        Self {
            queries: of(Gradient::Queries),
            keys: of(Gradient::KeysValues),
            flash: FlashGradientTuning::both(caps, head_dim, v_dim),
        }
    }
}

impl GradientTuning {
    /// Bytes of workgroup memory.
    pub fn workgroup_bytes(&self, gradient: Gradient, head_dim: usize, v_dim: usize) -> u64 {
        let [across, along, rows, depth, staged] = [
            self.across,
            self.along,
            self.rows,
            self.depth,
            self.staged_rows,
        ]
        .map(u64::from);
        let held = along * rows;
        let stage = (depth * (held + 4 * across))
            .max(staged * gradient.widest(head_dim, v_dim).div_ceil(4) as u64);
        16 * (stage + held * across)
    }

    /// The default of a device.
    pub fn new(caps: &Capabilities, gradient: Gradient, head_dim: usize, v_dim: usize) -> Self {
        let large = caps.workgroup_bytes >= 40 << 10 && caps.class != DeviceClass::Software;
        let wide = gradient.widest(head_dim, v_dim) > 128;
        let (across, along, rows, depth) = match (large, gradient, wide) {
            // 64 queries by 32 keys: 16 KiB with everything.
            (false, Gradient::Queries, false) => (8, 16, 4, 4),
            // Half as many held rows, so that an invocation holds no more of the result.
            (false, ..) => (16, 8, 4, 4),
            // As measured on an H100 (128 channels: 18.6 ms for both kernels, 20.1 with 8 rows on 16 x 8).
            (true, Gradient::Queries, false) => (8, 16, 4, 8),
            (true, ..) => (16, 16, 4, 8),
        };
        let mut tuning = Self {
            across,
            along,
            rows,
            depth: depth_for([head_dim, v_dim], depth),
            staged_rows: 4,
        };
        let budget = u64::from(caps.workgroup_bytes).min(if large { 40 << 10 } else { 16 << 10 });
        tuning.grow(budget, gradient, head_dim, v_dim);
        tuning
    }

    /// The same with tiles that divide blocks of `block` rows (a power of two, at least 16) either way.
    pub(super) fn within(&self, block: u32) -> Self {
        let mut tuning = *self;
        tuning.across = tuning.across.min(block / 4);
        tuning.along = tuning.along.min(block / tuning.rows);
        tuning.staged_rows = tuning.staged_rows.min(4 * tuning.across);
        tuning
    }

    /// As many staged rows as fit.
    fn grow(&mut self, budget: u64, gradient: Gradient, head_dim: usize, v_dim: usize) {
        while self.staged_rows < 4 * self.across {
            self.staged_rows *= 2;
            if self.workgroup_bytes(gradient, head_dim, v_dim) > budget {
                self.staged_rows /= 2;
                return;
            }
        }
    }

    /// What a sweep on a device should try.
    pub fn candidates(
        caps: &Capabilities,
        gradient: Gradient,
        head_dim: usize,
        v_dim: usize,
    ) -> Vec<Self> {
        let mut found = vec![Self::new(caps, gradient, head_dim, v_dim)];
        for (across, along) in [
            (8, 8),
            (8, 16),
            (8, 32),
            (16, 4),
            (16, 8),
            (16, 16),
            (32, 4),
            (32, 8),
        ] {
            for rows in [4, 8] {
                for depth in [4, 8] {
                    let mut tuning = Self {
                        across,
                        along,
                        rows,
                        depth: depth_for([head_dim, v_dim], depth),
                        staged_rows: 4,
                    };
                    tuning.grow(caps.workgroup_bytes.into(), gradient, head_dim, v_dim);
                    let sound = tuning.check(caps, gradient, head_dim, v_dim).is_ok();
                    if sound && !found.contains(&tuning) {
                        found.push(tuning);
                    }
                }
            }
        }
        found
    }

    pub(super) fn check(
        &self,
        caps: &Capabilities,
        gradient: Gradient,
        head_dim: usize,
        v_dim: usize,
    ) -> Result<()> {
        let powers = [self.across, self.along, self.staged_rows];
        let sound = powers.iter().all(|n| n.is_power_of_two() && *n <= 1024)
            && self.across >= 4
            && [4, 8].contains(&self.rows)
            && self.along * self.rows >= 16
            && (1..=8).contains(&self.depth)
            && (4..=4 * self.across).contains(&self.staged_rows)
            && self.across * self.along <= caps.invocations
            && self.workgroup_bytes(gradient, head_dim, v_dim) <= caps.workgroup_bytes.into();
        if sound {
            return Ok(());
        }
        let name = match gradient {
            Gradient::Queries => "tuning.queries",
            Gradient::KeysValues => "tuning.keys",
        };
        Err(unfit(name, format!("{self:?}"), caps))
    }
}

/// Most channels of a head for the kernels for matrix units, whose results stay in registers.
pub(super) const MOST_FLASH_CHANNELS: usize = 128;

impl FlashGradientTuning {
    /// For the tests of devices without matrix units.
    pub const EMULATED: Self = Self {
        units: MatrixUnits::Emulated,
        subgroups: 1,
        rows: 16,
        walked: 32,
        part: 16,
    };

    /// Bytes of workgroup memory: tiles of walked rows, channels padded to 32.
    pub fn workgroup_bytes(&self, gradient: Gradient, head_dim: usize, v_dim: usize) -> u64 {
        let [d, dv] = [head_dim, v_dim].map(|d| d.next_multiple_of(32) as u64);
        let (channels, known) = match gradient {
            Gradient::Queries => (2 * d + dv, 0),
            Gradient::KeysValues => (2 * d + 2 * dv, 8),
        };
        u64::from(self.walked) * (2 * channels + known) + self.units.workgroup_bytes()
    }

    /// The fastest of those measured (see the shaders).
    fn new(caps: &Capabilities, gradient: Gradient, head_dim: usize, v_dim: usize) -> Option<Self> {
        let (rows, subgroups, walked, part) = match (gradient, head_dim.max(v_dim)) {
            (Gradient::Queries, ..=64) => (32, 4, 64, 32),
            (Gradient::Queries, _) => (16, 8, 64, 64),
            (Gradient::KeysValues, ..=64) => (16, 8, 64, 32),
            (Gradient::KeysValues, _) => (16, 8, 32, 16),
        };
        let mut tuning = Self {
            units: MatrixUnits::Device,
            subgroups,
            rows,
            walked,
            part,
        };
        if tuning.workgroup_bytes(gradient, head_dim, v_dim) > caps.workgroup_bytes.into() {
            tuning.walked /= 2;
            tuning.part = tuning.part.min(tuning.walked);
        }
        let fits = tuning.check(caps, gradient, head_dim, v_dim).is_ok();
        fits.then_some(tuning)
    }

    fn both(caps: &Capabilities, head_dim: usize, v_dim: usize) -> Option<[Self; 2]> {
        let of = |gradient| Self::new(caps, gradient, head_dim, v_dim);
        Some([of(Gradient::Queries)?, of(Gradient::KeysValues)?])
    }

    /// What a sweep on a device should try.
    pub fn candidates(
        caps: &Capabilities,
        gradient: Gradient,
        head_dim: usize,
        v_dim: usize,
    ) -> Vec<Self> {
        let Some(default) = Self::new(caps, gradient, head_dim, v_dim) else {
            return Vec::new();
        };
        let mut found = vec![default];
        let shapes = [(16, 4), (16, 8), (32, 4)].into_iter();
        for (rows, subgroups) in shapes.filter(|s| s.0 == 16 || head_dim.max(v_dim) <= 64) {
            for (walked, part) in [(16, 16), (32, 16), (32, 32), (64, 16), (64, 32), (64, 64)] {
                let tuning = Self {
                    rows,
                    subgroups,
                    walked,
                    part,
                    ..default
                };
                let sound = tuning.check(caps, gradient, head_dim, v_dim).is_ok();
                if sound && !found.contains(&tuning) {
                    found.push(tuning);
                }
            }
        }
        found
    }

    /// With tiles that divide blocks of `block` rows (a power of two, at least 16) either way.
    pub(super) fn within(mut self, block: u32) -> Self {
        self.walked = self.walked.min(block);
        self.part = self.part.min(block);
        self.rows = self.rows.min(block);
        self.subgroups = self.subgroups.min(block / self.rows);
        // As many invocations as copy a tile's logarithms.
        self.walked = self.walked.min(64 * self.subgroups);
        self
    }

    pub(super) fn check(
        &self,
        caps: &Capabilities,
        gradient: Gradient,
        head_dim: usize,
        v_dim: usize,
    ) -> Result<()> {
        let sound = self.units.serve(caps, self.subgroups)
            && self.subgroups.is_power_of_two()
            && self.subgroups <= caps.invocations / 32
            && [16, 32].contains(&self.rows)
            && self.walked.is_power_of_two()
            && self.part.is_power_of_two()
            && (16..=self.walked).contains(&self.part)
            && self.walked <= 64 * self.subgroups
            && self.workgroup_bytes(gradient, head_dim, v_dim) <= caps.workgroup_bytes.into();
        if sound {
            return Ok(());
        }
        let sizes = format!("{self:?} for {head_dim} and {v_dim} channels");
        Err(unfit("tuning.flash", sizes, caps))
    }
}
