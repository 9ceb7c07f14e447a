//! Sizes of the attention kernels that do not change the result.

use super::KvFormat;
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

/// When a kernel asks for keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loads {
    /// When they are needed.
    Together,
    /// A step ahead: of decode's kernel the keys, of that for matrix units both.
    Ahead,
}

impl Loads {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Together => "together",
            Self::Ahead => "ahead",
        }
    }
}

/// Sizes of the decode kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecodeTuning {
    /// Invocations of a workgroup: a power of two.
    pub workgroup: u32,
    /// Invocations that share a key: a power of two, 4 to 32. More where registers would not suffice, fewer where rows
    /// are short.
    pub lanes: u32,
    /// Keys that they handle together: 4 or 8.
    pub keys: u32,
    /// When keys are asked for.
    pub loads: Loads,
    /// Rows (queries of heads that share keys) of one workgroup, at most: a power of two, at most 8.
    pub rows: u32,
    /// Workgroups that the keys are split for.
    pub workgroups: u32,
    /// Keys of a split, at least.
    pub split_keys: u32,
}

/// What multiplies matrices in the kernel for matrix units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatrixUnits {
    /// The device's, by cooperative matrices.
    Device,
    /// Plain arithmetic in one subgroup: slow, to test the kernel where there are no matrix units.
    Emulated,
}

impl MatrixUnits {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Device => "elements",
            Self::Emulated => "emulated",
        }
    }

    /// Whether a device has them, for workgroups of so many subgroups.
    pub(crate) const fn serve(self, caps: &Capabilities, subgroups: u32) -> bool {
        match self {
            Self::Device => caps.matrix_elements,
            Self::Emulated => subgroups == 1,
        }
    }

    /// Bytes of workgroup memory that they need beside a kernel's own.
    pub(crate) const fn workgroup_bytes(self) -> u64 {
        match self {
            Self::Device => 0,
            Self::Emulated => 1024,
        }
    }
}

/// A device with matrix units whose elements are reached, for tests of planners.
#[cfg(test)]
pub(super) fn card() -> Capabilities {
    Capabilities {
        matrix_elements: true,
        workgroup_bytes: 48 << 10,
        invocations: 1024,
        ..Capabilities::webgpu_default()
    }
}

/// The error for sizes, of the argument `name`, that are not as documented or over the device's limits.
pub(super) fn unfit(name: &str, sizes: String, caps: &Capabilities) -> Error {
    let allowed = format!(
        "sizes as documented, {} invocations and {} bytes at most",
        caps.invocations, caps.workgroup_bytes
    );
    Error::argument(name, sizes, allowed)
}

/// Tile sizes of the kernel for matrix units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CooperativeTuning {
    /// What multiplies.
    pub units: MatrixUnits,
    /// Subgroups of a workgroup, of 32 invocations each: a power of two; one if emulated.
    pub subgroups: u32,
    /// Queries of a subgroup: 16 or 32.
    pub rows: u32,
    /// Keys of a tile: a power of two from 16 on.
    pub keys: u32,
    /// When a tile is asked for.
    pub loads: Loads,
}

/// Sizes of the decode kernel for matrix units, which serves caches whose numbers are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlashDecodeTuning {
    /// What multiplies.
    pub units: MatrixUnits,
    /// Subgroups of a workgroup, of 32 invocations each: a power of two, at most 8; one if emulated.
    pub subgroups: u32,
    /// Keys that a subgroup handles together: 16 or 32.
    pub keys: u32,
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
    /// Sizes of the kernel for matrix units, which then serves what of many queries it can.
    pub cooperative: Option<CooperativeTuning>,
    /// Sizes of the prefill kernel.
    pub prefill: PrefillTuning,
    /// Sizes of the decode kernel.
    pub decode: DecodeTuning,
    /// Sizes of the decode kernel for matrix units, which then serves what of caches it can.
    pub flash_decode: Option<FlashDecodeTuning>,
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
            depth: depth_for([head_dim], depth),
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
                        depth: depth_for([head_dim], depth),
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
        Err(unfit("tuning.prefill", format!("{self:?}"), caps))
    }
}

/// A staging depth of at most `most` groups of four channels, for rows of `dims` channels: one without waste where there
/// is one.
pub(super) fn depth_for<const N: usize>(dims: [usize; N], most: u32) -> u32 {
    let groups = dims.map(|d| d.div_ceil(4) as u32);
    (most / 2..=most)
        .rev()
        .find(|&d| d > 0 && groups.iter().all(|g| g.is_multiple_of(d)))
        .unwrap_or_else(|| groups.into_iter().fold(0, u32::max).min(most))
}

impl CooperativeTuning {
    /// For the tests of devices without matrix units.
    pub const EMULATED: Self = Self {
        units: MatrixUnits::Emulated,
        subgroups: 1,
        rows: 16,
        keys: 32,
        loads: Loads::Together,
    };

    /// Bytes of workgroup memory: a tile of K and one of V, channels padded to 32.
    pub fn workgroup_bytes(&self, head_dim: usize, v_dim: usize) -> u64 {
        let channels = head_dim.next_multiple_of(32) + v_dim.next_multiple_of(32);
        2 * u64::from(self.keys) * channels as u64 + self.units.workgroup_bytes()
    }

    pub(super) fn new(caps: &Capabilities, head_dim: usize, v_dim: usize) -> Option<Self> {
        let (rows, subgroups, keys, loads) = match head_dim.max(v_dim) {
            ..97 => (32, 4, 64, Loads::Ahead),
            97..129 => (16, 8, 64, Loads::Ahead),
            // The output of 16 rows takes as many registers as that of 32 with half the channels.
            _ => (16, 8, 32, Loads::Together),
        };
        let tuning = Self {
            units: MatrixUnits::Device,
            subgroups,
            rows,
            keys,
            loads,
        };
        // Half of the tile where memory is scarce.
        let smaller = Self {
            keys: keys / 2,
            ..tuning
        };
        [tuning, smaller]
            .into_iter()
            .find(|t| t.check(caps, head_dim, v_dim).is_ok())
    }

    /// What a sweep on a device should try.
    pub fn candidates(caps: &Capabilities, head_dim: usize, v_dim: usize) -> Vec<Self> {
        let Some(default) = Self::new(caps, head_dim, v_dim) else {
            return Vec::new();
        };
        let mut found = vec![default];
        for (rows, subgroups) in [(32, 4), (16, 8), (16, 4), (32, 8)] {
            // Else the output alone takes all registers.
            if rows as usize * v_dim.next_multiple_of(32) > 32 * 128 {
                continue;
            }
            for keys in [32, 64] {
                for loads in [Loads::Together, Loads::Ahead] {
                    let tuning = Self {
                        subgroups,
                        rows,
                        keys,
                        loads,
                        ..default
                    };
                    if !found.contains(&tuning) && tuning.check(caps, head_dim, v_dim).is_ok() {
                        found.push(tuning);
                    }
                }
            }
        }
        found
    }

    /// The default for listed blocks of so many queries and keys, of the default for all: measured as
    /// shaders/attention/flash.wgsl tells.
    pub(super) fn listed(
        self,
        caps: &Capabilities,
        [head_dim, v_dim]: [usize; 2],
        block: u32,
    ) -> Self {
        let (rows, subgroups, keys, loads) = match (head_dim.max(v_dim), block) {
            (97..129, 64) => (32, 2, 16, Loads::Together),
            (97..129, ..64) => (32, 4, 32, Loads::Together),
            _ => return self,
        };
        let tuning = Self {
            subgroups,
            rows,
            keys,
            loads,
            ..self
        };
        let fits = tuning.check(caps, head_dim, v_dim).is_ok();
        if fits { tuning } else { self }
    }

    /// With tiles that a block of so many queries and keys is made of.
    pub(super) fn within(mut self, block: u32) -> Self {
        self.keys = self.keys.min(block);
        if block < 64 {
            self.rows = 16;
        }
        self.subgroups = self.subgroups.min(block / self.rows);
        self
    }

    pub(super) fn check(&self, caps: &Capabilities, head_dim: usize, v_dim: usize) -> Result<()> {
        let sound = self.units.serve(caps, self.subgroups)
            && self.subgroups.is_power_of_two()
            && self.subgroups * 32 <= caps.invocations
            && [16, 32].contains(&self.rows)
            && (16..=128).contains(&self.keys)
            && self.keys.is_power_of_two()
            && self.workgroup_bytes(head_dim, v_dim) <= caps.workgroup_bytes.into();
        if sound {
            return Ok(());
        }
        let sizes = format!("{self:?} for {head_dim} and {v_dim} channels");
        Err(unfit("tuning.cooperative", sizes, caps))
    }
}

impl DecodeTuning {
    pub(super) fn new(caps: &Capabilities) -> Self {
        Self {
            workgroup: 128,
            lanes: 16,
            keys: 4,
            loads: Loads::Ahead,
            rows: if caps.subgroups.is_some() { 8 } else { 4 },
            // Four workgroups for each processor of an H100 or H200, as many as run at a time there: 1056 took 5%
            // longer. A software driver gains nothing by more than it has threads.
            workgroups: if caps.class == DeviceClass::Software {
                8
            } else {
                528
            },
            split_keys: 128,
        }
    }

    /// The defaults for a cache in these formats. Numbers of a byte take more instructions for each byte read: eight
    /// keys together share what a step costs, and block exponents favour few lanes with long accesses (int8 146 us
    /// by eight keys, 154 by four; block8 169 us by 16 lanes, 159 by eight: H100, 131072 keys).
    pub fn cached(caps: &Capabilities, keys: KvFormat, values: KvFormat) -> Self {
        let mut tuning = Self::new(caps);
        let formats = [keys, values];
        if caps.subgroups.is_none()
            || caps.class == DeviceClass::Software
            || formats.iter().any(|f| f.code().size() > 1)
        {
            return tuning;
        }
        tuning.workgroups = 1056;
        match formats.iter().any(|f| f.scaling().block() > 0) {
            true => tuning.lanes = 8,
            false => (tuning.keys, tuning.loads) = (8, Loads::Together),
        }
        tuning
    }

    /// What a sweep on a device should try.
    pub fn candidates(caps: &Capabilities) -> Vec<Self> {
        let default = Self::new(caps);
        let mut found = vec![default];
        for workgroup in [64, 128, 256] {
            for lanes in [8, 16] {
                for (keys, loads) in [
                    (4, Loads::Together),
                    (4, Loads::Ahead),
                    (8, Loads::Together),
                    (8, Loads::Ahead),
                ] {
                    for workgroups in [1, 2, 4].map(|n| n * default.workgroups) {
                        let tuning = Self {
                            workgroup,
                            lanes,
                            keys,
                            loads,
                            workgroups,
                            ..default
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
            && (4..=32).contains(&self.lanes)
            && [4, 8].contains(&self.keys)
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

impl FlashDecodeTuning {
    /// Most channels of a head, for its output to stay in registers.
    pub(super) const MOST_CHANNELS: usize = 256;

    /// For the tests of devices without matrix units.
    pub const EMULATED: Self = Self {
        units: MatrixUnits::Emulated,
        subgroups: 1,
        keys: 16,
        workgroups: 8,
        split_keys: 128,
    };

    /// The defaults for a device; none if it has no matrix units.
    pub fn new(caps: &Capabilities) -> Option<Self> {
        // Two workgroups for each processor of an H100, as many as its registers hold.
        let tuning = Self {
            units: MatrixUnits::Device,
            subgroups: 4,
            keys: 32,
            workgroups: 264,
            split_keys: 128,
        };
        tuning.check(caps).is_ok().then_some(tuning)
    }

    /// What a sweep on a device should try.
    pub fn candidates(caps: &Capabilities) -> Vec<Self> {
        let Some(default) = Self::new(caps) else {
            return Vec::new();
        };
        let mut found = vec![default];
        for subgroups in [2, 4, 8] {
            for keys in [16, 32] {
                for workgroups in [264, 396, 528] {
                    let tuning = Self {
                        subgroups,
                        keys,
                        workgroups,
                        ..default
                    };
                    if !found.contains(&tuning) && tuning.check(caps).is_ok() {
                        found.push(tuning);
                    }
                }
            }
        }
        found
    }

    /// Bytes of workgroup memory, for tiles of 16 rows of [`Self::MOST_CHANNELS`].
    pub(super) fn workgroup_bytes(&self) -> u32 {
        let queries = 2 * 16 * Self::MOST_CHANNELS as u32;
        queries + self.subgroups * (2 * 32 * 16 + 8 * 16) + self.units.workgroup_bytes() as u32
    }

    pub(super) fn check(&self, caps: &Capabilities) -> Result<()> {
        let sound = self.units.serve(caps, self.subgroups)
            && self.subgroups.is_power_of_two()
            && self.subgroups <= 8
            && self.subgroups * 32 <= caps.invocations
            && [16, 32].contains(&self.keys)
            && self.workgroups > 0
            && self.split_keys > 0
            && self.workgroup_bytes() <= caps.workgroup_bytes;
        if sound {
            return Ok(());
        }
        Err(unfit("tuning.flash_decode", format!("{self:?}"), caps))
    }
}

impl Tuning {
    /// The defaults for a device.
    pub fn new(caps: &Capabilities, head_dim: usize, v_dim: usize) -> Self {
        Self {
            decode_queries: 16,
            cooperative: CooperativeTuning::new(caps, head_dim, v_dim),
            prefill: PrefillTuning::new(caps, head_dim, v_dim),
            decode: DecodeTuning::new(caps),
            flash_decode: FlashDecodeTuning::new(caps),
        }
    }
}
