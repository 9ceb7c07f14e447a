//! How kernels that reduce over rows (normalisation, softmax) spread them over invocations.

use crate::capabilities::{Capabilities, ReduceTier};
use crate::error::{Error, Result};
use crate::recipe::Recipe;

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
}

/// Groups of four that an invocation can keep in registers without spilling.
const MAX_UNROLL: usize = 8;
/// Invocations of a workgroup where rows are many.
const WORKGROUP: usize = 256;
/// Fewer rows than this leave multiprocessors idle: each row then gets as many invocations as there are.
const FEW_ROWS: usize = 64;

impl RowTuning {
    /// What the planner takes for `rows` rows of `cols` elements.
    pub fn default_for(caps: &Capabilities, rows: usize, cols: usize) -> Self {
        let groups = cols.div_ceil(4);
        let most = (caps.invocations as usize).min(1024);
        let (limit, unroll) = if rows < FEW_ROWS {
            (most, 1)
        } else if groups <= WORKGROUP * MAX_UNROLL {
            (WORKGROUP, 4)
        } else {
            (most, MAX_UNROLL)
        };
        let team = groups.div_ceil(unroll).next_power_of_two().clamp(8, limit);
        Self::with_team(team, rows, groups)
    }

    /// Tunings worth timing for this size.
    pub fn candidates(caps: &Capabilities, rows: usize, cols: usize) -> Vec<Self> {
        let groups = cols.div_ceil(4);
        let teams = (3..).map(|i| 1usize << i);
        teams
            .take_while(|&t| {
                t <= caps.invocations as usize && t <= groups.next_power_of_two().max(8)
            })
            .map(|team| Self::with_team(team, rows, groups))
            .collect()
    }

    fn with_team(team: usize, rows: usize, groups: usize) -> Self {
        let unroll = groups.div_ceil(team).next_power_of_two();
        let unroll = if unroll <= MAX_UNROLL { unroll } else { 0 };
        // Not of `rows` otherwise: prompts of every length share one pipeline.
        let per_workgroup = if rows == 1 {
            1
        } else {
            (WORKGROUP / team).max(1)
        };
        Self {
            team: team as u32,
            rows: per_workgroup as u32,
            unroll: unroll as u32,
        }
    }

    pub(crate) fn check(self, caps: &Capabilities, groups: usize) -> Result<Self> {
        let Self { team, rows, unroll } = self;
        let covers = unroll == 0 || team as usize * unroll as usize >= groups;
        let fits = team.is_power_of_two()
            && rows.is_power_of_two()
            && team.saturating_mul(rows) <= caps.invocations
            && unroll <= 4 * MAX_UNROLL as u32;
        if covers && fits {
            return Ok(self);
        }
        Err(Error::argument(
            "tuning",
            format!("{self:?} for {groups} groups of four a row"),
            format!(
                "powers of two, at most {} invocations, unroll 0 or covering the row",
                caps.invocations
            ),
        ))
    }

    /// The constants of a shader that handles rows so. Teams that share a workgroup reduce without subgroups.
    pub(crate) fn constants(self, recipe: Recipe, caps: &Capabilities) -> Recipe {
        let reduce = if self.rows == 1 {
            caps.reduce_tier()
        } else {
            ReduceTier::Workgroup
        };
        recipe
            .with("TEAM", self.team)
            .with("ROWS", self.rows)
            .with("UNROLL", self.unroll)
            .with("REDUCE", reduce)
    }
}
