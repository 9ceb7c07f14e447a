//! Sizes of the attention kernels that do not change the result.

use crate::capabilities::{Capabilities, DeviceClass};
use crate::error::{Error, Result};

/// Tile sizes of the prefill kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefillTuning {
    /// Invocations across the keys of a tile, four keys each: a power of two, at least 4.
    pub key_threads: u32,
    /// Invocations across its queries: a power of two.
    pub query_threads: u32,
    /// Queries of one invocation: 4 or 8.
    pub rows: u32,
    /// Channels of q and k that are staged at a time, in groups of four: 1 to 8.
    pub depth: u32,
    /// Keys whose values are staged at a time: a power of two, 4 to the tile's keys.
    pub value_keys: u32,
}

/// Sizes of the decode kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecodeTuning {
    /// Invocations of a workgroup: a power of two.
    pub workgroup: u32,
    /// Invocations that share a key, at least: a power of two, at most 32. More where registers would not suffice.
    pub lanes: u32,
    /// Rows (queries of heads that share keys) of one workgroup, at most: a power of two, at most 8.
    pub rows: u32,
    /// Workgroups that the keys are split for.
    pub workgroups: u32,
    /// Keys of a split, at least.
    pub split_keys: u32,
}

/// All sizes that do not change the result; [`Tuning::new`] has a device's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuning {
    /// Queries that still go to the decode kernel.
    pub decode_queries: usize,
    /// Sizes of the prefill kernel.
    pub prefill: PrefillTuning,
    /// Sizes of the decode kernel.
    pub decode: DecodeTuning,
}

impl PrefillTuning {
    /// Bytes of workgroup memory with values of `v_dim` channels.
    pub fn workgroup_bytes(&self, v_dim: usize) -> u64 {
        let [tx, ty, rows, depth, value_keys] = [
            self.key_threads,
            self.query_threads,
            self.rows,
            self.depth,
            self.value_keys,
        ]
        .map(u64::from);
        let queries = ty * rows;
        let staged = depth * (queries + 4 * tx);
        let stage = staged.max(value_keys * (v_dim as u64).div_ceil(4));
        16 * (stage + queries * tx + tx * ty * rows / 4)
    }

    pub(super) fn new(caps: &Capabilities, head_dim: usize, v_dim: usize) -> Self {
        let large = caps.workgroup_bytes >= 40 << 10 && caps.class != DeviceClass::Software;
        let (key_threads, query_threads, rows, depth) = match (large, v_dim) {
            // 64 queries by 32 keys: 16 KiB with everything.
            (false, ..=128) => (8, 16, 4, 4),
            // Half as many queries, so that an invocation holds no more of the output.
            (false, ..=256) => (16, 8, 4, 4),
            (false, _) => (16, 4, 4, 4),
            (true, ..=128) => (16, 8, 8, 8),
            (true, ..=256) => (16, 16, 4, 8),
            (true, _) => (32, 8, 4, 8),
        };
        let mut tuning = Self {
            key_threads,
            query_threads,
            rows,
            depth: depth_for(head_dim, depth),
            value_keys: 4,
        };
        let budget = u64::from(caps.workgroup_bytes).min(if large { 40 << 10 } else { 16 << 10 });
        tuning.grow_values(budget, v_dim);
        tuning
    }

    /// As many keys' values at a time as fit.
    fn grow_values(&mut self, budget: u64, v_dim: usize) {
        while self.value_keys < 4 * self.key_threads {
            self.value_keys *= 2;
            if self.workgroup_bytes(v_dim) > budget {
                self.value_keys /= 2;
                return;
            }
        }
    }

    /// What a sweep on a device should try.
    pub fn candidates(caps: &Capabilities, head_dim: usize, v_dim: usize) -> Vec<Self> {
        let mut found = vec![Self::new(caps, head_dim, v_dim)];
        for (key_threads, query_threads) in [
            (8, 8),
            (8, 16),
            (8, 32),
            (16, 4),
            (16, 8),
            (16, 16),
            (32, 8),
        ] {
            for rows in [4, 8] {
                for depth in [2, 4, 8] {
                    let mut tuning = Self {
                        key_threads,
                        query_threads,
                        rows,
                        depth: depth_for(head_dim, depth),
                        value_keys: 4,
                    };
                    tuning.grow_values(caps.workgroup_bytes.into(), v_dim);
                    if !found.contains(&tuning) && tuning.check(caps, v_dim).is_ok() {
                        found.push(tuning);
                    }
                }
            }
        }
        found
    }

    pub(super) fn check(&self, caps: &Capabilities, v_dim: usize) -> Result<()> {
        let powers = [self.key_threads, self.query_threads, self.value_keys];
        let sound = powers.iter().all(|n| n.is_power_of_two() && *n <= 1024)
            && self.key_threads >= 4
            && [4, 8].contains(&self.rows)
            && self.query_threads * self.rows >= 16
            && (1..=8).contains(&self.depth)
            && (4..=4 * self.key_threads).contains(&self.value_keys)
            && self.key_threads * self.query_threads <= caps.invocations
            && self.workgroup_bytes(v_dim) <= caps.workgroup_bytes.into();
        if sound {
            return Ok(());
        }
        let allowed = format!(
            "sizes as documented, {} invocations and {} bytes at most",
            caps.invocations, caps.workgroup_bytes
        );
        Err(Error::argument(
            "tuning.prefill",
            format!("{self:?}"),
            allowed,
        ))
    }
}

/// A staging depth of at most `most` groups of four channels: one without waste where there is one.
fn depth_for(head_dim: usize, most: u32) -> u32 {
    let groups = head_dim.div_ceil(4) as u32;
    (most / 2..=most)
        .rev()
        .find(|&d| d > 0 && groups.is_multiple_of(d))
        .unwrap_or(most.min(groups))
}

impl DecodeTuning {
    pub(super) fn new(caps: &Capabilities) -> Self {
        Self {
            workgroup: 128,
            lanes: 8,
            rows: 8,
            // A few workgroups for each processor of the largest cards; a software driver gains nothing by more
            // than it has threads.
            workgroups: if caps.class == DeviceClass::Software {
                8
            } else {
                512
            },
            split_keys: 128,
        }
    }

    /// What a sweep on a device should try.
    pub fn candidates(caps: &Capabilities) -> Vec<Self> {
        let mut found = vec![Self::new(caps)];
        for workgroup in [64, 128, 256] {
            for lanes in [8, 16, 32] {
                for rows in [4, 8] {
                    for workgroups in [256, 512, 1024, 2048] {
                        let tuning = Self {
                            workgroup,
                            lanes,
                            rows,
                            workgroups,
                            split_keys: 128,
                        };
                        if !found.contains(&tuning) && tuning.check(caps).is_ok() {
                            found.push(tuning);
                        }
                    }
                }
            }
        }
        found
    }

    pub(super) fn check(&self, caps: &Capabilities) -> Result<()> {
        let sound = [self.workgroup, self.lanes, self.rows]
            .iter()
            .all(|n| n.is_power_of_two())
            && (32..=caps.invocations.min(256)).contains(&self.workgroup)
            && self.lanes <= 32
            && self.rows <= 8
            && self.workgroups > 0
            && self.split_keys > 0;
        if sound {
            return Ok(());
        }
        Err(Error::argument(
            "tuning.decode",
            format!("{self:?}"),
            format!(
                "sizes as documented, {} invocations at most",
                caps.invocations.min(256)
            ),
        ))
    }
}

impl Tuning {
    /// The defaults for a device.
    pub fn new(caps: &Capabilities, head_dim: usize, v_dim: usize) -> Self {
        Self {
            decode_queries: 16,
            prefill: PrefillTuning::new(caps, head_dim, v_dim),
            decode: DecodeTuning::new(caps),
        }
    }
}
