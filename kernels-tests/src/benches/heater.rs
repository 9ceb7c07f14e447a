//! Keeps a card's clocks up while benches prepare.
//!
//! On an H200 the rows of a sweep became slower and slower without it (2026-11-24: `silu f32` 252 us in the first row, 640 us
//! in the 48th), and stayed the same with it: a card that idles between rows (compiling, allocating) seems to lower what
//! a short burst of work does not raise in time. Clocks were logged only with it. So work goes to the device ahead
//! of every timed pass, without a wait between the two.

use std::time::Duration;

use flashwave::capabilities::DeviceClass;
use flashwave::kernels::ceilings::{Plan, Probe, time};
use flashwave::{Context, DType, Result, Tensor};

/// Busy work of a known length.
pub struct Heater {
    work: Option<(Plan, Tensor)>,
    launches: usize,
}

impl Heater {
    /// Work of about `length`; none on a software device, whose clocks are the processor's.
    pub fn new(ctx: &Context, length: Duration) -> Result<Self> {
        let caps = ctx.capabilities();
        let first = Probe::F32.candidates(caps).into_iter().next();
        let Some(tuning) = first.filter(|_| caps.class != DeviceClass::Software) else {
            return Ok(Self {
                work: None,
                launches: 0,
            });
        };
        let plan = Probe::F32.plan(caps, tuning, 256)?;
        let output = Tensor::empty(ctx, DType::F32, [plan.output])?;
        let once = |pass: &mut flashwave::Pass<'_>| pass.launch(&plan.launch, &[&output]);
        time(ctx, once)?;
        let (each, _) = time(ctx, once)?;
        let launches = (length.as_secs_f64() / each.as_secs_f64().max(1e-6))
            .ceil()
            .min(1e5) as usize;
        Ok(Self {
            work: Some((plan, output)),
            launches,
        })
    }

    /// Submits the work; does not wait.
    pub fn run(&self, ctx: &Context) -> Result<()> {
        let Some((plan, output)) = &self.work else {
            return Ok(());
        };
        ctx.record(|pass| (0..self.launches).try_for_each(|_| pass.launch(&plan.launch, &[output])))
    }
}
