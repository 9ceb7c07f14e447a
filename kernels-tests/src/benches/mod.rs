//! What is timed, as data: one definition of each row for `flashwave bench` and for the criterion benches.
//!
//! A family's module lists [`Row`]s. A row knows its work (operations and bytes that any implementation has to do),
//! the probe that bounds it, and how to prepare itself: tensors filled on the device, in as many sets as it takes
//! for none to be found in a cache, and a closure that records one run over one of the sets.

pub mod attention;
pub mod attention_backward;
pub mod cache;
pub mod elementwise;
pub mod fft;
pub mod fftconv;
pub mod gemm;
pub mod gemm8;
pub mod gemv;
pub mod heater;
pub mod hyena;
pub mod mlp;
pub mod model;
pub mod norm;
pub mod rope;
pub mod select;
pub mod softmax;
pub mod sparse_attention;

use flashwave::capabilities::DeviceClass;
use flashwave::kernels::ceilings::{Ceilings, Probe, Timer, time};
use flashwave::{Capabilities, Context, DType, Pass, Result, Tensor};

pub use crate::inputs::random;
use heater::Heater;

/// How large the problems are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// What a large card is used for.
    Full,
    /// What a software device does in a moment: whether rows run, not how fast.
    Small,
}

impl Scale {
    /// The scale that suits a device.
    pub fn of(caps: &Capabilities) -> Self {
        match caps.class {
            DeviceClass::Software => Self::Small,
            _ => Self::Full,
        }
    }

    /// `full` or `small`.
    pub fn pick<T>(self, full: T, small: T) -> T {
        match self {
            Self::Full => full,
            Self::Small => small,
        }
    }
}

/// A family's rows.
pub struct Bench {
    /// Name of its module.
    pub name: &'static str,
    /// The rows with the tunings that planners choose.
    pub rows: fn(&Capabilities, Scale) -> Vec<Row>,
    /// A row for every candidate tuning of each problem; of the rows of one [`work`](Row::work) the fastest wins.
    pub sweep: fn(&Capabilities, Scale) -> Vec<Row>,
}

/// All families.
pub const BENCHES: &[Bench] = &[
    Bench {
        name: "attention",
        rows: attention::rows,
        sweep: attention::sweep,
    },
    Bench {
        name: "attention_backward",
        rows: attention_backward::rows,
        sweep: attention_backward::sweep,
    },
    Bench {
        name: "cache",
        rows: cache::rows,
        sweep: cache::sweep,
    },
    Bench {
        name: "elementwise",
        rows: elementwise::rows,
        sweep: elementwise::sweep,
    },
    Bench {
        name: "fft",
        rows: fft::rows,
        // Nothing to tune.
        sweep: fft::rows,
    },
    Bench {
        name: "fftconv",
        rows: fftconv::rows,
        sweep: fftconv::sweep,
    },
    Bench {
        name: "gemm",
        rows: gemm::rows,
        sweep: gemm::sweep,
    },
    Bench {
        name: "gemm8",
        rows: gemm8::rows,
        sweep: gemm8::sweep,
    },
    Bench {
        name: "gemv",
        rows: gemv::rows,
        sweep: gemv::sweep,
    },
    Bench {
        name: "hyena",
        rows: hyena::rows,
        // Its products are tuned by their own families.
        sweep: hyena::rows,
    },
    Bench {
        name: "mlp",
        rows: mlp::rows,
        sweep: mlp::sweep,
    },
    Bench {
        name: "norm",
        rows: norm::rows,
        sweep: norm::sweep,
    },
    Bench {
        name: "rope",
        rows: rope::rows,
        // Nothing to tune.
        sweep: rope::rows,
    },
    Bench {
        name: "select",
        rows: select::rows,
        sweep: select::sweep,
    },
    Bench {
        name: "softmax",
        rows: softmax::rows,
        sweep: softmax::sweep,
    },
    Bench {
        name: "sparse_attention",
        rows: sparse_attention::rows,
        sweep: sparse_attention::sweep,
    },
    Bench {
        name: "model",
        rows: model::rows,
        sweep: model::sweep,
    },
];

/// One problem to time.
pub struct Row {
    /// Its family's module.
    pub family: &'static str,
    /// Kernel, types and shape: the name of the problem, as `torch_baseline.py` names it.
    pub work: String,
    /// Arithmetic operations of one run; 0 where memory alone counts.
    pub flops: f64,
    /// Bytes that one run has to read and write.
    pub bytes: f64,
    /// What bounds it.
    pub ceiling: Probe,
    /// Where figures show it.
    pub marks: Vec<Mark>,
    /// Where it does a part of another row's work.
    pub kept: Option<Kept>,
    prepare: Box<Prepare>,
}

/// What a row does of another row's work: its time should be that share, too.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// The other row's work.
    pub of: String,
    /// Work over the other row's.
    pub share: f64,
    /// What was counted.
    pub unit: &'static str,
}

/// A point of a figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// Which figure: the name of its file.
    pub figure: &'static str,
    /// The line that it is on.
    pub series: String,
    /// Where it stands.
    pub x: f64,
    /// How high.
    pub y: Measure,
}

/// What a figure shows of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Measure {
    /// TFLOP/s.
    Throughput,
    /// How many times faster than the row of this work.
    SpeedUp(String),
}

type Prepare = dyn Fn(&Context) -> Result<Prepared> + Send + Sync;

/// A row with its tensors on the device.
pub struct Prepared {
    /// The variant that the planner chose.
    pub recipe: String,
    record: Box<Record>,
}

/// Records a run over the input set of this number (any number: sets rotate).
type Record = dyn FnMut(&mut Pass<'_>, usize) -> Result<()>;

impl Prepared {
    /// `record` gets the number of the run, and takes its set modulo the number of sets.
    pub fn new(
        recipe: impl ToString,
        record: impl FnMut(&mut Pass<'_>, usize) -> Result<()> + 'static,
    ) -> Self {
        Self {
            recipe: recipe.to_string(),
            record: Box::new(record),
        }
    }
}

impl Row {
    /// A row bounded by how fast memory is read.
    pub fn memory(
        family: &'static str,
        work: impl Into<String>,
        bytes: f64,
        prepare: impl Fn(&Context) -> Result<Prepared> + Send + Sync + 'static,
    ) -> Self {
        Self {
            family,
            work: work.into(),
            flops: 0.0,
            bytes,
            ceiling: Probe::Read,
            marks: Vec::new(),
            kept: None,
            prepare: Box::new(prepare),
        }
    }

    /// A row bounded by arithmetic of the kind of `ceiling`.
    pub fn compute(
        family: &'static str,
        work: impl Into<String>,
        ceiling: Probe,
        flops: f64,
        prepare: impl Fn(&Context) -> Result<Prepared> + Send + Sync + 'static,
    ) -> Self {
        Self {
            family,
            work: work.into(),
            flops,
            bytes: 0.0,
            ceiling,
            marks: Vec::new(),
            kept: None,
            prepare: Box::new(prepare),
        }
    }

    /// Makes the tensors and plans.
    pub fn prepare(&self, ctx: &Context) -> Result<Prepared> {
        (self.prepare)(ctx)
    }

    /// What one run does of what bounds it: bytes or operations.
    pub fn amount(&self) -> f64 {
        match self.ceiling {
            Probe::Read | Probe::Copy => self.bytes,
            _ => self.flops,
        }
    }

    /// The share of the ceiling that a run of `us` microseconds reaches, where the device has that ceiling.
    pub fn share(&self, us: f64, ceilings: &Ceilings) -> Option<f64> {
        Some(self.amount() / us * 1e6 / ceilings.rate(self.ceiling)?)
    }
}

impl Prepared {
    /// Records the run of this number.
    pub fn record(&mut self, pass: &mut Pass<'_>, run: usize) -> Result<()> {
        (self.record)(pass, run)
    }
}

/// How a row was timed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measurement {
    /// Median time of a run in microseconds.
    pub us: f64,
    /// Shortest time.
    pub min_us: f64,
    /// (longest - shortest) / median.
    pub spread: f64,
    /// Runs in a pass.
    pub runs: usize,
    /// What timed it.
    pub timer: Timer,
}

/// Records runs `first..first + count` into one pass and returns their time.
pub fn time_runs(
    ctx: &Context,
    prepared: &mut Prepared,
    first: usize,
    count: usize,
) -> Result<(std::time::Duration, Timer)> {
    time(ctx, |pass| {
        (first..first + count).try_for_each(|run| (prepared.record)(pass, run))
    })
}

/// Times passes of several runs each: `repeats` passes after two that are not counted.
pub fn measure(
    ctx: &Context,
    prepared: &mut Prepared,
    repeats: usize,
    heater: &Heater,
) -> Result<Measurement> {
    let software = ctx.capabilities().class == DeviceClass::Software;
    // The first pass compiles and uploads; the second says how many runs make a pass long enough for the clock.
    time_runs(ctx, prepared, 0, 1)?;
    let (once, _) = time_runs(ctx, prepared, 1, 1)?;
    let enough = if software { 10e-3 } else { 2e-3 };
    let runs = (enough / once.as_secs_f64().max(1e-6))
        .ceil()
        .clamp(1.0, 512.0) as usize;
    heater.run(ctx)?;
    time_runs(ctx, prepared, 2, runs)?;
    let mut times = Vec::new();
    let mut timer = Timer::Host;
    for pass in 0..repeats.max(1) {
        let (taken, by) = time_runs(ctx, prepared, pass * runs, runs)?;
        times.push(taken.as_secs_f64() * 1e6 / runs as f64);
        timer = by;
    }
    times.sort_by(f64::total_cmp);
    let us = times[times.len() / 2].max(1e-3);
    Ok(Measurement {
        us,
        min_us: times[0],
        spread: (times[times.len() - 1] - times[0]) / us,
        runs,
        timer,
    })
}

/// How many sets of inputs of `bytes` each make a run find none of its data in a cache: four times the largest
/// cache known (60 MB on an H200) in all.
pub fn sets(caps: &Capabilities, bytes: f64) -> usize {
    match caps.class {
        DeviceClass::Software => 1,
        _ => (256e6 / bytes.max(1.0)).ceil().clamp(1.0, 64.0) as usize,
    }
}

/// A quantised matrix whose words are random: its numbers mean nothing, its arithmetic takes as long as any.
pub fn random_bits(ctx: &Context, dtype: DType, shape: [usize; 2]) -> Result<Tensor> {
    let matrix = Tensor::empty(ctx, dtype, shape)?;
    let mut random = crate::inputs::Random::new(1);
    let block: Vec<u64> = (0..1 << 17).map(|_| random.bits()).collect();
    let bytes: Vec<u8> = block.iter().flat_map(|b| b.to_le_bytes()).collect();
    let total = matrix.layout().bytes() as usize;
    for at in (0..total).step_by(bytes.len()) {
        matrix.write_bytes(at, &bytes[..bytes.len().min(total - at)])?;
    }
    ctx.wait()?;
    Ok(matrix)
}
