//! Correctness cases of every kernel, shared by `cargo test` and `flashwave verify`.
//!
//! A [`Case`] draws random inputs with planted outliers, poisons its outputs, runs the kernel and compares it
//! with the f64 reference. The bound is derived, not chosen: see [`tolerance`].

pub mod benches;
pub mod cases;
pub mod devices;
pub mod grammar;
pub mod inputs;
pub mod tolerance;

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
            return Ok(Outcome::default());
        }
        (self.run)(ctx)
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
