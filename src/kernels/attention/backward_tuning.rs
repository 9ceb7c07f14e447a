//! Tile sizes of the gradients' kernels.

use super::Gradient;
use crate::capabilities::{Capabilities, DeviceClass};
use crate::error::{Error, Result};

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

/// All sizes that do not change the gradients; [`BackwardTuning::new`] has a device's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackwardTuning {
    /// Of the kernel of dq.
    pub queries: GradientTuning,
    /// Of the kernel of dk and dv.
    pub keys: GradientTuning,
}

impl BackwardTuning {
    /// The defaults for a device.
    pub fn new(caps: &Capabilities, head_dim: usize, v_dim: usize) -> Self {
        let of = |gradient| GradientTuning::new(caps, gradient, head_dim, v_dim);
        Self {
            queries: of(Gradient::Queries),
            keys: of(Gradient::KeysValues),
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
            depth: depth_for(head_dim, v_dim, depth),
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
                        depth: depth_for(head_dim, v_dim, depth),
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
        let allowed = format!(
            "sizes as documented, {} invocations and {} bytes at most",
            caps.invocations, caps.workgroup_bytes
        );
        Err(Error::argument(
            match gradient {
                Gradient::Queries => "tuning.queries",
                Gradient::KeysValues => "tuning.keys",
            },
            format!("{self:?}"),
            allowed,
        ))
    }
}

/// A staging depth of at most `most` groups of four channels: one without waste where there is one.
fn depth_for(head_dim: usize, v_dim: usize, most: u32) -> u32 {
    let groups = [head_dim, v_dim].map(|d| d.div_ceil(4) as u32);
    (most / 2..=most)
        .rev()
        .find(|&d| d > 0 && groups.iter().all(|g| g.is_multiple_of(d)))
        .unwrap_or(most.min(groups[0].max(groups[1])))
}
