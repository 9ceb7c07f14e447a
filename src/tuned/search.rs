//! Finding winners: what is to become faster is run with other candidates for each class of problems that it plans.
//!
//! All classes are tried at once, a candidate each a round, and the GPU's own clock around each launch tells them apart: so a
//! model's step is tuned where it runs, with its weights out of the caches, in about as many steps as the largest family has
//! candidates. What cannot win is not tried: a candidate is left out if its work at the device's ceilings takes as long as the
//! default did.

use std::fmt;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{Asked, Lazy, Tuned, Work};
use crate::capabilities::DeviceClass;
use crate::context::{Context, lock};
use crate::error::Result;
use crate::kernels::ceilings::Ceilings;
use crate::recipe::Recipe;
use crate::recorder::{Pass, Profile, TimedLaunch};

/// What is run to be tuned: records one run; its number chooses among sets of inputs.
type Body<'a> = dyn FnMut(&mut Pass<'_>, usize) -> Result<()> + 'a;

/// A winner has to be faster than the default by this share, in the median of paired runs.
pub const NOISE: f64 = 0.03;

/// Paired runs that decide, and how many of them the winner may lose.
const ROUNDS: usize = 7;
const LOST: usize = 1;

/// How long a card works before it is timed.
const HEAT: Duration = Duration::from_millis(80);

/// Candidates that are paired with the default.
const FINALISTS: usize = 3;

/// How to search.
pub struct Search<'a> {
    /// Time to spend; what is under way is finished: a kernel's compilation, and within a fifth more the pairs that decide.
    pub budget: Duration,
    /// What the device reaches; without it no candidate is left out.
    pub ceilings: Option<&'a Ceilings>,
    /// Whether a class, by its name, is to be left as it is.
    pub skips: &'a dyn Fn(&str) -> bool,
}

/// What came of a class.
#[derive(Clone, Debug)]
pub struct Report {
    /// The class's name.
    pub class: String,
    /// Candidates beside the default.
    pub candidates: usize,
    /// Those left out because they could not win.
    pub pruned: usize,
    /// Those that were timed.
    pub timed: usize,
    /// The default, and its median time a run in microseconds.
    pub default: (String, f64),
    /// The best other, and its time.
    pub best: Option<(String, f64)>,
    /// What of it.
    pub verdict: Verdict,
}

/// What came of the search for a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The best is in the store.
    Won,
    /// No candidate was faster by more than the noise.
    DefaultBest,
    /// The default does what the device can.
    AtTheCeiling,
    /// Time was over before it could be decided.
    OutOfTime,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Won => "kept",
            Self::DefaultBest => "default",
            Self::AtTheCeiling => "default, at the ceiling",
            Self::OutOfTime => "default, out of time",
        })
    }
}

/// Planners take defaults, or what is tried, as long as it lives.
struct Watch<'a>(&'a Tuned);

impl<'a> Watch<'a> {
    fn new(tuned: &'a Tuned) -> Self {
        tuned.change(|state| state.watched = Some(Vec::new()));
        Self(tuned)
    }

    fn with<T>(&self, f: impl FnOnce(&mut [(Recipe, Asked)]) -> T) -> T {
        let state = &mut *lock(&self.0.inner.state);
        f(state.watched.as_deref_mut().unwrap_or_default())
    }

    fn set(&self, trials: impl Fn(usize) -> Option<usize>) {
        self.with(|asked| {
            let each = asked.iter_mut().enumerate();
            each.for_each(|(i, (_, asked))| asked.trial = trials(i));
        });
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.watched = None);
    }
}

/// The clock of a body.
struct Clock<'a, 'b> {
    ctx: &'a Context,
    body: &'a mut Body<'b>,
    /// The number of the next run.
    next: usize,
    /// In a pass.
    runs: usize,
    /// At most: timestamps of a pass are limited.
    most: usize,
}

/// Launches that a pass may have for each of them to be timed.
const TIMED: usize = 1024;

impl Clock<'_, '_> {
    fn profile(&mut self, profile: Profile) -> Result<(f64, Vec<TimedLaunch>)> {
        let started = Instant::now();
        let numbers = self.next..self.next + self.runs;
        self.next += self.runs;
        let (ctx, body) = (self.ctx, &mut *self.body);
        let ((), times) = ctx.profile(profile, |pass| {
            numbers.into_iter().try_for_each(|run| body(pass, run))
        })?;
        let (total, launches) = match times {
            Some(times) => (times.total, times.launches),
            None => {
                ctx.wait()?;
                (started.elapsed(), Vec::new())
            }
        };
        Ok((total.as_secs_f64() / self.runs as f64, launches))
    }

    /// Seconds of a run.
    fn whole(&mut self) -> Result<f64> {
        Ok(self.profile(Profile::Pass)?.0)
    }

    /// Seconds of a run for each of the classes.
    fn each(&mut self, classes: &[Recipe]) -> Result<Vec<f64>> {
        if let [_] = classes {
            return Ok(vec![self.whole()?]);
        }
        let (_, launches) = self.profile(Profile::EachLaunch)?;
        let of = |class: &Recipe| {
            let own = launches.iter().filter(|l| l.class.as_ref() == Some(class));
            own.map(|l| l.time.as_secs_f64()).sum::<f64>() / self.runs as f64
        };
        Ok(classes.iter().map(of).collect())
    }

    /// As many runs a pass as its clock needs, and the device warm.
    fn warm(&mut self) -> Result<()> {
        let enough = if self.software() { 4e-3 } else { 2e-3 };
        self.whole()?;
        let once = self.whole()?.max(1e-7);
        self.runs = (enough / once).ceil().clamp(1.0, self.most as f64) as usize;
        self.heat()
    }

    /// Work until a card's clocks are up again: after a pause, for compilation, kernels were seen to take five times as long.
    fn heat(&mut self) -> Result<()> {
        let started = Instant::now();
        while !self.software() && started.elapsed() < HEAT {
            self.whole()?;
        }
        Ok(())
    }

    fn software(&self) -> bool {
        self.ctx.capabilities().class == DeviceClass::Software
    }
}

fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The shortest time that the work can take.
fn bound(work: &Work, ceilings: &Ceilings) -> f64 {
    let rate = ceilings.rate(work.by).unwrap_or(f64::INFINITY);
    (work.bytes / ceilings.read).max(work.operations / rate)
}

/// The state of a class.
struct Class {
    default_us: f64,
    labels: Vec<String>,
    default: String,
    /// By candidate: whether it is still to be timed, and the time of a first look.
    usable: Vec<bool>,
    seen: Vec<Option<f64>>,
    pruned: usize,
    /// Those that time did not suffice for.
    late: usize,
    at_ceiling: bool,
    /// Candidates, and their times beside those of the default.
    finalists: Vec<usize>,
    paired: Vec<Vec<[f64; 2]>>,
}

/// Runs `body` with the candidates of every class of problems that it plans, within a budget, and puts winners into the
/// context's store: those that were faster than the default by more than [`NOISE`] in paired runs. A body that plans several
/// classes needs a device with timestamps inside passes; without, nothing is tuned.
///
/// Every run of the body has to do the same, and what it computes may differ as the candidates' results do, within each
/// kernel's bounds. Other threads that plan meanwhile get what is tried.
pub fn tune(ctx: &Context, search: &Search<'_>, body: &mut Body<'_>) -> Result<Vec<Report>> {
    let started = Instant::now();
    let budget = search.budget;
    let left = |share: f64| started.elapsed() < budget.mul_f64(share);
    let caps = ctx.capabilities();
    let watch = Watch::new(&caps.tuned);
    let launches = ctx.recipes_of(|pass| body(pass, 0))?;
    let all: Vec<Recipe> = watch.with(|asked| asked.iter().map(|(c, _)| c.clone()).collect());
    let wanted: Vec<usize> = (0..all.len())
        .filter(|&i| !(search.skips)(&all[i].to_string()))
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    if all.len() > 1 && !caps.timestamps_in_pass {
        log::info!("not tuned: the device has no timestamps inside passes");
        return Ok(Vec::new());
    }
    let mut clock = Clock {
        ctx,
        body,
        next: 1,
        runs: 1,
        most: (TIMED / launches.len().max(1)).clamp(1, 256),
    };
    clock.warm()?;
    let first = [clock.each(&all)?, clock.each(&all)?, clock.each(&all)?];
    let mut classes: FxHashMap<usize, Class> = FxHashMap::default();
    for &i in &wanted {
        let time = median(&first.each_ref().map(|t| t[i]));
        // A call may be several launches, each of a kernel of its own.
        let own = launches.iter().filter(|(c, _)| c.as_ref() == Some(&all[i]));
        let kernels: FxHashSet<&Recipe> = own.clone().map(|(_, recipe)| recipe).collect();
        let calls = own.count() as f64 / kernels.len().max(1) as f64;
        let class = watch.with(|asked| Class::new(&asked[i].1, time, calls, search.ceilings));
        classes.insert(i, class);
    }
    let rounds = classes.values().map(|c| c.usable.len()).max().unwrap_or(0);

    // What is to be compiled is compiled side by side.
    let mut needs: Vec<(usize, usize, Recipe)> = Vec::new();
    for round in 0..rounds {
        let trial = |i: usize| classes.get(&i).and_then(|c| c.trial(round));
        watch.set(trial);
        for (class, recipe) in ctx.recipes_of(|pass| (clock.body)(pass, 0))? {
            let at = class.and_then(|class| all.iter().position(|c| *c == class));
            if let Some(at) = at.filter(|&at| trial(at).is_some()) {
                needs.push((at, round, recipe));
            }
        }
    }
    let mut seen = FxHashSet::default();
    let recipes: Vec<&Recipe> = needs
        .iter()
        .map(|n| &n.2)
        .filter(|r| seen.insert(*r))
        .collect();
    let compiled: FxHashMap<&Recipe, bool> = recipes
        .into_par_iter()
        .with_max_len(1)
        .filter(|_| left(0.6))
        .map(|recipe| (recipe, compiles(ctx, recipe)))
        .collect();
    for (at, round, recipe) in &needs {
        let Some(class) = classes.get_mut(at) else {
            continue;
        };
        match compiled.get(recipe) {
            Some(true) => {}
            Some(false) => class.usable[*round] = false,
            None => {
                class.usable[*round] = false;
                class.late += 1;
            }
        }
    }

    watch.set(|_| None);
    clock.heat()?;
    for round in 0..rounds {
        let trial = |i: usize| classes.get(&i).and_then(|c| c.trial(round));
        if !left(0.9) {
            for class in classes.values_mut() {
                class.late += usize::from(class.trial(round).is_some());
            }
            continue;
        }
        if !(0..all.len()).any(|i| trial(i).is_some()) {
            continue;
        }
        watch.set(trial);
        clock.each(&all)?;
        let (a, b) = (clock.each(&all)?, clock.each(&all)?);
        for (i, class) in &mut classes {
            if class.trial(round).is_some() {
                class.seen[round] = Some(a[*i].min(b[*i]));
            }
        }
    }

    classes.values_mut().for_each(Class::nominate);
    let most = classes.values().map(|c| c.finalists.len()).max();
    for _ in 0..ROUNDS {
        if most == Some(0) || !left(1.2) {
            break;
        }
        watch.set(|_| None);
        let default = clock.each(&all)?;
        for place in 0..most.unwrap_or(0) {
            watch.set(|i| classes.get(&i)?.finalists.get(place).copied());
            let times = clock.each(&all)?;
            for (i, class) in &mut classes {
                if let Some(paired) = class.paired.get_mut(place) {
                    paired.push([default[*i], times[*i]]);
                }
            }
        }
    }
    drop(watch);

    let mut reports = Vec::new();
    for i in wanted {
        let Some(class) = classes.remove(&i) else {
            continue;
        };
        let report = class.report(all[i].to_string());
        match report.verdict {
            Verdict::Won => {
                let winner = report.best.as_ref().map(|(label, _)| &**label);
                caps.tuned.set(&report.class, winner);
            }
            Verdict::DefaultBest | Verdict::AtTheCeiling => caps.tuned.set(&report.class, None),
            Verdict::OutOfTime => {}
        }
        reports.push(report);
    }
    Ok(reports)
}

fn compiles(ctx: &Context, recipe: &Recipe) -> bool {
    let compiled = ctx.kernel(recipe);
    if let Err(error) = &compiled {
        log::info!("candidate refused: {error}");
    }
    compiled.is_ok()
}

impl Class {
    /// `time` is that of `calls` calls.
    fn new(asked: &Asked, time: f64, calls: f64, ceilings: Option<&Ceilings>) -> Self {
        let count = asked.candidates.len();
        let mut usable = vec![true; count];
        let mut at_ceiling = false;
        if let Some(ceilings) = ceilings {
            let bound = |work| bound(work, ceilings) * calls * asked.least;
            let least = bound(&asked.default.1);
            // A default that is faster than that has its data in caches: the bound says nothing.
            if least <= time {
                at_ceiling = least >= time * (1.0 - NOISE);
                for (usable, candidate) in usable.iter_mut().zip(&asked.candidates) {
                    *usable = bound(&candidate.work) < time * (1.0 - NOISE);
                }
            }
        }
        Self {
            default_us: time * 1e6,
            labels: asked.candidates.iter().map(|c| c.label.clone()).collect(),
            default: asked.default.0.clone(),
            pruned: usable.iter().filter(|u| !**u).count(),
            usable,
            seen: vec![None; count],
            late: 0,
            at_ceiling,
            finalists: Vec::new(),
            paired: Vec::new(),
        }
    }

    /// The candidate of a round.
    fn trial(&self, round: usize) -> Option<usize> {
        self.usable.get(round).filter(|u| **u).map(|_| round)
    }

    /// Those that looked fastest; one look is not exact.
    fn nominate(&mut self) {
        let looked = self.seen.iter().enumerate();
        let mut near: Vec<(usize, f64)> = looked
            .filter_map(|(i, t)| Some((i, (*t)?)))
            .filter(|(_, t)| t * 1e6 < self.default_us * (1.0 + NOISE))
            .collect();
        near.sort_by(|a, b| a.1.total_cmp(&b.1));
        self.finalists = near.iter().take(FINALISTS).map(|(i, _)| *i).collect();
        self.paired = vec![Vec::new(); self.finalists.len()];
    }

    fn report(self, class: String) -> Report {
        let timed = self.seen.iter().flatten().count();
        let ratio =
            |pairs: &[[f64; 2]]| median(&pairs.iter().map(|[d, t]| t / d).collect::<Vec<_>>());
        let paired = self.finalists.iter().zip(&self.paired);
        let best = paired
            .filter(|(_, pairs)| !pairs.is_empty())
            .min_by(|a, b| ratio(a.1).total_cmp(&ratio(b.1)));
        let of = |pairs: &[[f64; 2]], which: usize| {
            1e6 * median(&pairs.iter().map(|p| p[which]).collect::<Vec<_>>())
        };
        let complete = |pairs: &[[f64; 2]]| pairs.len() == ROUNDS;
        let verdict = match best {
            Some((_, pairs)) if complete(pairs) => {
                let lost = pairs.iter().filter(|[d, t]| t >= d).count();
                match ratio(pairs) < 1.0 - NOISE && lost <= LOST {
                    true => Verdict::Won,
                    false if self.late > 0 => Verdict::OutOfTime,
                    false => Verdict::DefaultBest,
                }
            }
            None if self.at_ceiling => Verdict::AtTheCeiling,
            None if self.late == 0 && self.finalists.is_empty() => Verdict::DefaultBest,
            _ => Verdict::OutOfTime,
        };
        Report {
            class,
            candidates: self.labels.len(),
            pruned: self.pruned,
            timed,
            default: (
                self.default,
                best.map_or(self.default_us, |(_, pairs)| of(pairs, 0)),
            ),
            best: best.map(|(i, pairs)| (self.labels[*i].clone(), of(pairs, 1))),
            verdict,
        }
    }
}

/// The classes of problems that `body` plans.
pub fn classes(ctx: &Context, body: &mut Body<'_>) -> Result<Vec<String>> {
    let watch = Watch::new(&ctx.capabilities().tuned);
    ctx.recipes_of(|pass| body(pass, 0))?;
    Ok(watch.with(|asked| asked.iter().map(|(class, _)| class.to_string()).collect()))
}

/// Median times of a run, in microseconds, of runs in turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// With the planners' defaults.
    pub default_us: f64,
    /// With what is in the store.
    pub tuned_us: f64,
    /// The median of how many times as fast the second was as the first beside it.
    pub speed_up: f64,
}

/// Runs `body` with and without the context's store in turn, in pairs.
pub fn compare(ctx: &Context, body: &mut Body<'_>, pairs: usize) -> Result<Compared> {
    let mut clock = Clock {
        ctx,
        body,
        next: 0,
        runs: 1,
        most: 256,
    };
    clock.warm()?;
    let mut times = Vec::new();
    for pair in 0..pairs.max(1) {
        let default = |clock: &mut Clock<'_, '_>| {
            let _watch = Watch::new(&ctx.capabilities().tuned);
            clock.whole()
        };
        // In either order, or a drift of the clock would count for one of them.
        times.push(match pair % 2 {
            0 => [default(&mut clock)?, clock.whole()?],
            _ => {
                let tuned = clock.whole()?;
                [default(&mut clock)?, tuned]
            }
        });
    }
    let of = |f: &dyn Fn(&[f64; 2]) -> f64| median(&times.iter().map(f).collect::<Vec<_>>());
    Ok(Compared {
        default_us: 1e6 * of(&|t| t[0]),
        tuned_us: 1e6 * of(&|t| t[1]),
        speed_up: of(&|t| t[0] / t[1].max(1e-12)),
    })
}

impl Context {
    /// Tunes what `body` plans if classes were met that nothing is known of, within what is left of the budget of
    /// [`Tuning::Lazy`](crate::context::Tuning::Lazy). Whether it made a difference.
    pub(crate) fn tune_wanted(
        &self,
        body: &mut dyn FnMut(&mut Pass<'_>) -> Result<()>,
    ) -> Result<bool> {
        let tuned = &self.capabilities().tuned;
        if !tuned.wanted() {
            return Ok(false);
        }
        let started = Instant::now();
        let budget = *lock(&self.inner.lazy);
        let known: FxHashSet<String> = tuned.entries().into_iter().map(|(c, _)| c).collect();
        let search = Search {
            budget,
            // Measuring them would take as long as tuning does.
            ceilings: None,
            skips: &|class| known.contains(class),
        };
        let reports = tune(self, &search, &mut |pass, _| body(pass))?;
        let rest = budget.saturating_sub(started.elapsed());
        *lock(&self.inner.lazy) = rest;
        if rest.is_zero() {
            tuned.change(|state| state.lazy = Lazy::Off);
        }
        for report in &reports {
            log::info!("tuned {}: {}", report.class, report.verdict);
        }
        if let Err(error) = self.save_tuned() {
            log::warn!("tunings are not kept: {error}");
        }
        Ok(reports.iter().any(|r| r.verdict == Verdict::Won))
    }
}
