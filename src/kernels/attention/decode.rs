//! Plans the decode kernel: few queries, the keys split over the device.

use super::format::Scaling;
use super::problem::{Problem, multiple_of};
use super::store::Rows;
use super::{AttentionLayouts, AttentionPlan, DecodeTuning, Loads};
use crate::capabilities::{Capabilities, ReduceTier};
use crate::error::Result;
use crate::layout::Layout;
use crate::recipe::{Launch, Recipe};

impl Problem<'_> {
    pub(super) fn decode(
        &self,
        caps: &Capabilities,
        tuning: &DecodeTuning,
    ) -> Result<AttentionPlan> {
        tuning.check(caps)?;
        let AttentionLayouts { k, v, .. } = self.layouts;
        let group = self.heads / self.kv_heads;
        // Heads that share keys and lists; how often the grid has each key head.
        let (alike, copies) = match &self.listed {
            None => (group, 1),
            Some(listed) => {
                let alike = group.min(listed.share);
                (alike, group / alike * listed.lines.1)
            }
        };
        let rows = alike * self.q_len;
        let tensor = |layout: &Layout| Rows {
            code: layout.dtype(),
            scaling: Scaling::None,
            row: 0,
            scales_at: 0,
        };
        let [keys, values] = match &self.caches {
            Some(caches) => [caches.keys, caches.values],
            None => [tensor(k), tensor(v)],
        };
        let widest = match &self.caches {
            Some(_) => [keys, values].map(|rows| 16 / rows.code.size() as u32),
            None => [unit(k), unit(v)],
        };
        let team = Team::new(caps, tuning, rows, widest, [self.head_dim, self.v_dim])?;
        let row_tiles = rows.div_ceil(team.rows as usize);

        let units = self.kv_heads * copies * row_tiles;
        let most = (tuning.workgroups as usize / (self.batch * units)).max(1);
        let visits = match &self.listed {
            None => self.mask_kind.band().visits(self.q_len, self.kv_len),
            Some(listed) => listed.visits(),
        };
        let splits = visits.div_ceil(tuning.split_keys as usize).clamp(1, most);
        let (page, ordered) = match &self.caches {
            Some(caches) => (caches.page, caches.ordered),
            None => ("strided".into(), false),
        };
        let recipe = self
            .recipe("attention/decode")
            .with("VEC", self.row_vector())
            .with("KVEC", team.units[0])
            .with("VVEC", team.units[1])
            .with("R", team.rows)
            .with("U", team.keys)
            .with("L", team.lanes)
            .with("WG", tuning.workgroup)
            .with("AHEAD", u32::from(tuning.loads == Loads::Ahead))
            .with("KS", keys.scaling.name())
            .with("KB", keys.scaling.block())
            .with("VS", values.scaling.name())
            .with("VB", values.scaling.block())
            .with("PAGE", page)
            .with("ORDER", u32::from(ordered))
            .with("REDUCE", team.reduce);
        let grid = [splits, units, self.batch];
        self.in_splits(caps, recipe, grid, most)
    }

    /// The plan of a kernel whose grid is splits of the keys first, `most` whatever their number: its result, or what it leaves
    /// of each split and the kernel that combines it.
    pub(super) fn in_splits(
        &self,
        caps: &Capabilities,
        recipe: Recipe,
        grid: [usize; 3],
        most: usize,
    ) -> Result<AttentionPlan> {
        let out = self.layouts.out;
        let params = self.params(grid[0]);
        let groups = self.v_dim.div_ceil(4) as u32;
        let combine = Recipe::new("attention/combine")
            .with("O", out.dtype())
            .with("DV", self.v_dim as u32)
            .with("LSE", u32::from(self.layouts.lse.is_some()))
            .with("VEC", self.row_vector())
            .with("WG", COMBINE_WORKGROUP)
            .with("CP", groups.next_power_of_two())
            .with("REDUCE", caps.reduce_tier());
        let combine_grid = [self.q_len, self.heads, self.batch];
        Ok(AttentionPlan {
            main: Launch::new(caps, recipe, grid, &params)?,
            combine: (grid[0] > 1)
                .then(|| Launch::new(caps, combine, combine_grid, &params))
                .transpose()?,
            // For as many splits as any number of keys can have, so that it never grows with the cache.
            partial: self.batch * self.heads * self.q_len * most * (groups as usize + 1) * 4,
        })
    }

    /// Elements of an access to rows of q and out.
    pub(super) fn row_vector(&self) -> u32 {
        let AttentionLayouts { q, out, .. } = self.layouts;
        let wide = multiple_of(q, 4) && multiple_of(out, 4);
        if wide { 4 } else { 1 }
    }
}

/// Invocations of a workgroup of the combining kernel.
const COMBINE_WORKGROUP: u32 = 128;

/// Groups of four values that an invocation of the decode kernel accumulates, at most: beyond, registers spill.
const ACCUMULATORS: u32 = 32;

/// How the decode kernel's invocations share rows and keys.
struct Team {
    rows: u32,
    keys: u32,
    lanes: u32,
    /// Elements of an access to K and to V.
    units: [u32; 2],
    reduce: ReduceTier,
}

impl Team {
    /// For `rows` rows over K and V with so many channels, read by accesses of at most `units` elements.
    fn new(
        caps: &Capabilities,
        tuning: &DecodeTuning,
        rows: usize,
        mut units: [u32; 2],
        dims: [usize; 2],
    ) -> Result<Self> {
        // Eight channels of a byte suffice for an access if that gives each lane one.
        for (unit, dim) in units.iter_mut().zip(dims) {
            if *unit == 16 && dim.div_ceil(16) < tuning.lanes as usize {
                *unit = 8;
            }
        }
        // In groups of four elements: an access, and a row.
        let widths = units.map(|u| u.div_ceil(4));
        let groups = dims.map(|dim| dim.div_ceil(4) as u32);
        let columns = [0, 1].map(|i| groups[i].div_ceil(widths[i]));
        let mut rows = (rows.min(tuning.rows as usize).next_power_of_two() as u32).min(tuning.rows);
        let held = |rows: u32, lanes: u32| rows * widths[1] * columns[1].div_ceil(lanes);
        let mut lanes = tuning.lanes;
        while lanes < 32 && held(rows, lanes) > ACCUMULATORS / 4 {
            lanes *= 2;
        }
        lanes = lanes
            .min(columns[0].max(columns[1]).next_power_of_two())
            .max(4);
        let reduce = match caps.subgroups {
            // No subgroup may be larger than the workgroup, nor so small that sums across it save nothing.
            Some(s) if s.max <= tuning.workgroup && (s.min >= lanes || s.min >= 8) => {
                lanes = lanes.min(s.min);
                ReduceTier::Subgroup
            }
            _ => ReduceTier::Workgroup,
        };
        rows = rows.min(lanes);
        let columns = columns.map(|c| c.div_ceil(lanes));
        let mut team = Self {
            rows,
            keys: tuning.keys,
            lanes,
            units,
            reduce,
        };
        let fits = |team: &Self| {
            let query = columns[0] * widths[0] * lanes;
            let bytes = team.workgroup_bytes(tuning.workgroup, query, columns[1] * widths[1]);
            held(team.rows, lanes) <= ACCUMULATORS && bytes <= caps.workgroup_bytes
        };
        if !fits(&team) && reduce == ReduceTier::Workgroup {
            team.keys = 4;
        }
        while team.rows > 1 && !fits(&team) {
            team.rows /= 2;
        }
        Ok(team)
    }

    /// Workgroup memory, given the groups of four of a query and those of the result that an invocation holds.
    fn workgroup_bytes(&self, workgroup: u32, query: u32, result: u32) -> u32 {
        let pool = (self.rows * query).max(workgroup * result.min(512 / workgroup));
        let states = self.rows * (workgroup / self.lanes);
        let row_keys = self.keys / self.keys.min(self.lanes / self.rows);
        let shares = match self.reduce {
            ReduceTier::Subgroup => 0,
            ReduceTier::Workgroup => (self.rows * self.keys + row_keys + 1) * workgroup,
        };
        16 * pool + 8 * states + 4 * shares
    }
}

/// Elements of the widest access, of at most 16 bytes, that every row is made of; 1 if there is none.
fn unit(layout: &Layout) -> u32 {
    let widest = 16 / layout.dtype().size();
    [widest, widest / 2]
        .into_iter()
        .find(|&n| n >= 4 && multiple_of(layout, n))
        .unwrap_or(1) as u32
}
