//! How kernels that reduce over rows (normalisation, softmax) spread them over invocations.

use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::tuned::{Picked, Question, Work, rounded};

/// Elements that one access to memory moves, where alignment allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Four: 16 bytes of f32, 8 of a 16-bit type.
    Four,
    /// Eight: 16 bytes of a 16-bit type. Rows that are read again keep to four.
    Eight,
}

/// How rows are spread over invocations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowTuning {
    /// Invocations a row: a power of two.
    pub team: u32,
    /// Rows a workgroup: a power of two.
    pub rows: u32,
    /// Groups of four elements that an invocation keeps in registers, so that a row is read once;
    /// 0 reads it again for every pass.
    pub unroll: u32,
    /// Elements an access.
    pub access: Access,
}

/// Groups of four that an invocation can keep in registers without spilling, where a subgroup has a row for itself and
/// nothing else hides latency; otherwise half of it suffices.
const MOST_UNROLL: usize = 32;
/// Groups an invocation keeps where the table of defaults ends.
const LONG_UNROLL: usize = 8;
/// Invocations of a workgroup where rows are many.
const WORKGROUP: usize = 256;
/// Fewer rows than this leave multiprocessors idle: each row then gets as many invocations as there are.
const FEW_ROWS: usize = 64;

/// The tuning of many rows of up to so many groups of four.
struct Choice {
    groups: usize,
    team: usize,
    /// Rows a workgroup.
    rows: usize,
    access: Access,
}

const fn choice(groups: usize, team: usize, rows: usize, access: Access) -> Choice {
    Choice {
        groups,
        team,
        rows,
        access,
    }
}

/// Longer rows take as many invocations as keep them in registers. To change a default, change its line.
const MANY_ROWS_32_BIT: [Choice; 6] = [
    choice(32, 8, 32, Access::Four),
    choice(64, 16, 16, Access::Four),
    choice(128, 32, 8, Access::Four),
    choice(256, 64, 4, Access::Four),
    choice(512, 128, 2, Access::Four),
    choice(2048, 256, 1, Access::Four),
];

/// The same for f16 and bf16: the winners on an H200, 2026-11-24, from 128 groups on (rms_norm 93%, softmax 85 to 92% of
/// read bandwidth; with accesses of four it was 64 to 74%).
const MANY_ROWS_16_BIT: [Choice; 7] = [
    choice(32, 8, 32, Access::Four),
    choice(64, 16, 16, Access::Four),
    choice(128, 32, 8, Access::Eight),
    choice(256, 64, 1, Access::Eight),
    choice(512, 128, 1, Access::Eight),
    choice(1024, 128, 1, Access::Eight),
    choice(2048, 256, 1, Access::Eight),
];

impl RowTuning {
    /// What the planner takes for `rows` rows of `cols` elements, most of them `dtype`.
    pub fn default_for(caps: &Capabilities, dtype: DType, rows: usize, cols: usize) -> Self {
        let groups = cols.div_ceil(4);
        let most = (caps.invocations as usize).min(1024);
        if rows < FEW_ROWS {
            let team = groups.next_power_of_two().clamp(8, most);
            // Not of `rows` otherwise: prompts of every length share one pipeline.
            let per_workgroup = if rows == 1 { 1 } else { WORKGROUP / team };
            return Self::covering(team, per_workgroup, groups, LONG_UNROLL, Access::Four);
        }
        let table: &[Choice] = match dtype {
            DType::F32 => &MANY_ROWS_32_BIT[..],
            _ => &MANY_ROWS_16_BIT[..],
        };
        match table.iter().find(|c| groups <= c.groups) {
            Some(c) => {
                let team = c.team.min(most);
                Self::covering(team, c.rows.min(most / team), groups, MOST_UNROLL, c.access)
            }
            None => {
                let team = groups.div_ceil(LONG_UNROLL).next_power_of_two().min(most);
                Self::covering(team, 1, groups, LONG_UNROLL, Access::Four)
            }
        }
    }

    /// The stored tuning of kernels of this variant for so many rows, or the default; `bytes` are what it moves.
    pub(crate) fn pick(
        caps: &Capabilities,
        variant: impl FnOnce() -> Recipe,
        dtype: DType,
        [rows, cols]: [usize; 2],
        bytes: u64,
    ) -> Picked<Self> {
        let class = || {
            let cols = cols as u32;
            variant().with("ROWS", rounded(rows)).with("COLS", cols)
        };
        let question = Question {
            default: Self::default_for(caps, dtype, rows, cols),
            candidates: &|| Self::candidates(caps, dtype, rows, cols),
            admits: &|tuning| tuning.check(caps, cols.div_ceil(4)).is_ok(),
            work: &|_| Work::bytes(bytes),
        };
        caps.tuned.pick(class, &question)
    }

    /// Tunings worth timing for this size: teams of every size, alone in a workgroup and side by side, with every
    /// width of access that the row and the type have a use for.
    pub fn candidates(caps: &Capabilities, dtype: DType, rows: usize, cols: usize) -> Vec<Self> {
        let groups = cols.div_ceil(4);
        let most = (caps.invocations as usize).min(1024);
        let subgroup = caps.subgroups.map_or(0, |s| s.min as usize);
        let mut found = Vec::new();
        let teams = (3..).map(|i| 1usize << i);
        for team in teams.take_while(|&t| t <= most && t <= groups.next_power_of_two().max(8)) {
            let deepest = match team <= subgroup {
                true => MOST_UNROLL,
                false => MOST_UNROLL / 2,
            };
            let mut shared = (WORKGROUP / team).max(1);
            if rows == 1 {
                shared = 1;
            }
            for per_workgroup in [1, shared] {
                for access in [Access::Four, Access::Eight] {
                    let tuning = Self::covering(team, per_workgroup, groups, deepest, access);
                    let useful = access == Access::Four
                        || (dtype != DType::F32 && cols.is_multiple_of(8) && tuning.unroll >= 2);
                    if useful && !found.contains(&tuning) {
                        found.push(tuning);
                    }
                }
            }
        }
        // Rows are read again only where no team can keep them.
        if found.iter().any(|t| t.unroll > 0) {
            found.retain(|t| t.unroll > 0);
        }
        found
    }

    /// With as many groups an invocation as cover the row, or none if those are more than `deepest`.
    fn covering(team: usize, rows: usize, groups: usize, deepest: usize, access: Access) -> Self {
        let unroll = groups.div_ceil(team).next_power_of_two();
        let unroll = if unroll <= deepest { unroll } else { 0 };
        Self {
            team: team as u32,
            rows: rows.max(1) as u32,
            unroll: unroll as u32,
            access,
        }
    }

    pub(crate) fn check(self, caps: &Capabilities, groups: usize) -> Result<Self> {
        let Self {
            team, rows, unroll, ..
        } = self;
        let covers = unroll == 0 || team as usize * unroll as usize >= groups;
        let fits = team.is_power_of_two()
            && rows.is_power_of_two()
            && team.saturating_mul(rows) <= caps.invocations
            && unroll <= MOST_UNROLL as u32;
        if covers && fits {
            return Ok(self);
        }
        Err(Error::argument(
            "tuning",
            format!("{self:?} for {groups} groups of four a row"),
            format!(
                "powers of two, at most {} invocations, unroll 0 or covering the row and at most {MOST_UNROLL}",
                caps.invocations
            ),
        ))
    }

    /// The constants of a shader that handles rows so, when offsets, strides and lengths are multiples of `aligned`
    /// elements (8, 4 or 1).
    pub(crate) fn constants(self, recipe: Recipe, caps: &Capabilities, aligned: u32) -> Recipe {
        let reduce = match caps.subgroups {
            // A row belongs to one subgroup: shuffles, no barrier.
            Some(s) if self.team <= s.min && self.team * self.rows >= s.max => "shuffle",
            // A row belongs to whole subgroups, or has the workgroup for itself.
            Some(s) if self.team >= s.max || self.rows == 1 => "subgroup",
            _ => "workgroup",
        };
        // Accesses of eight come in pairs of groups.
        let eight =
            self.access == Access::Eight && self.unroll.is_multiple_of(2) && self.unroll > 0;
        recipe
            .with("TEAM", self.team)
            .with("ROWS", self.rows)
            .with("UNROLL", self.unroll)
            .with("REDUCE", reduce)
            .with("VEC", if eight { aligned } else { aligned.min(4) })
    }
}
