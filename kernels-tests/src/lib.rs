//! Correctness cases of every kernel, shared by `cargo test` and `flashwave verify`.
//!
//! A [`Case`] draws random inputs with planted outliers, poisons its outputs, runs the kernel and compares it
//! with the f64 reference. The bound is derived, not chosen: see [`tolerance`].

#[cfg(not(target_arch = "wasm32"))]
pub mod benches;
pub mod cases;
pub mod devices;
pub mod grammar;
pub mod inputs;
pub mod probes;
pub mod tolerance;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use flashwave::capabilities::DeviceClass;
use flashwave::{Context, Error};
use tolerance::Outcome;

/// How many cases to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// One case a group: does the device work at all.
    Quick,
    /// All of them.
    Full,
}

impl std::fmt::Display for Effort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Quick => "one a group",
            Self::Full => "all",
        })
    }
}

/// One comparison of a kernel with its reference.
pub struct Case {
    /// Kernel family: the name of its module.
    pub family: &'static str,
    /// What of the family: kernel and option, a line of the report.
    pub group: String,
    /// Shape and types.
    pub name: String,
    /// Not on software drivers: it takes too long there.
    on_gpus: bool,
    run: Box<Run>,
}

static SEED: OnceLock<u64> = OnceLock::new();

/// Sets the seed of all cases; the first call before any case has run counts.
pub fn set_seed(seed: u64) {
    SEED.get_or_init(|| seed);
}

type Run = dyn Fn(&Context) -> Result<Outcome, Failure> + Send + Sync;

impl Case {
    /// A case; `run` gets the context to run on.
    pub fn new(
        family: &'static str,
        group: impl Into<String>,
        name: impl Into<String>,
        run: impl Fn(&Context) -> Result<Outcome, Failure> + Send + Sync + 'static,
    ) -> Self {
        Self {
            family,
            group: group.into(),
            name: name.into(),
            on_gpus: false,
            run: Box::new(run),
        }
    }

    /// Not on software drivers, for which it is too long, if `alone`.
    pub fn on_gpus(mut self, alone: bool) -> Self {
        self.on_gpus = alone;
        self
    }

    /// Runs it where it is meant to run.
    pub fn run(&self, ctx: &Context) -> Result<Outcome, Failure> {
        if self.on_gpus && ctx.capabilities().class == DeviceClass::Software {
            return Ok(Outcome::skipped("a GPU that runs this within minutes"));
        }
        (self.run)(ctx)
    }

    /// Runs it where nothing may wait.
    pub async fn run_async(&self, ctx: &Context) -> Result<Outcome, Failure> {
        #[cfg(target_arch = "wasm32")]
        return flashwave::replay::replay(|| self.run(ctx)).await?;
        #[cfg(not(target_arch = "wasm32"))]
        self.run(ctx)
    }

    /// A seed for its inputs: the same for the same case, another for every value of [`set_seed`] or of
    /// `FLASHWAVE_SEED`.
    pub fn seed(name: &str) -> u64 {
        let base = SEED.get_or_init(|| {
            let variable = std::env::var("FLASHWAVE_SEED").ok();
            variable.and_then(|s| s.parse().ok()).unwrap_or(0)
        });
        name.bytes().fold(0xcbf2_9ce4_8422_2325 ^ base, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

/// The cases by family and group, in the order in which each was first met.
pub fn grouped(cases: Vec<Case>) -> Vec<Vec<Case>> {
    let mut groups: Vec<Vec<Case>> = Vec::new();
    for case in cases {
        let same = |g: &&mut Vec<Case>| g[0].family == case.family && g[0].group == case.group;
        match groups.iter_mut().find(same) {
            Some(group) => group.push(case),
            None => groups.push(vec![case]),
        }
    }
    groups
}

/// How the cases of a group went.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Cases that held.
    pub passed: usize,
    /// Cases that did not, each with its name and why.
    pub failures: Vec<String>,
    /// Cases not run, by what the device lacks.
    pub skipped: BTreeMap<&'static str, usize>,
    /// The worst share of a bound.
    pub share: f64,
}

impl Tally {
    /// Adds what `case` came to.
    pub fn add(&mut self, case: &Case, outcome: Result<Outcome, Failure>) {
        match outcome {
            Ok(Outcome {
                missing: Some(missing),
                ..
            }) => *self.skipped.entry(missing).or_default() += 1,
            Ok(outcome) => {
                self.passed += 1;
                self.share = self.share.max(outcome.share);
            }
            Err(failure) => self.failures.push(format!("{}: {failure}", case.name)),
        }
    }

    /// Adds another group's.
    pub fn merge(&mut self, other: Self) {
        self.passed += other.passed;
        self.failures.extend(other.failures);
        self.share = self.share.max(other.share);
        for (missing, count) in other.skipped {
            *self.skipped.entry(missing).or_default() += count;
        }
    }

    /// `ok`, `skip` or `FAILED`.
    pub fn verdict(&self) -> &'static str {
        match (self.passed, self.failures.len()) {
            (0, 0) => "skip",
            (_, 0) => "ok",
            _ => "FAILED",
        }
    }
}

/// Why a case failed.
#[derive(Debug)]
pub enum Failure {
    /// The library returned an error.
    Library(Error),
    /// The result is wrong.
    Wrong(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Library(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Library(error) => write!(f, "{error}"),
            Self::Wrong(message) => f.write_str(message),
        }
    }
}
