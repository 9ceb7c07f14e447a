//! Measuring: times by the GPU's own clock where it has one.

use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Plan, Probe, Tuning};
use crate::capabilities::DeviceClass;
use crate::context::{Context, lock};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::random::Uniform;
use crate::recorder::{Pass, Profile};
use crate::tensor::Tensor;

/// What a time was measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Timer {
    /// Timestamps written by the GPU.
    Gpu,
    /// The processor's clock, from recording to the end of waiting.
    Host,
}

/// The time that the recorded dispatches take, by GPU timestamps where the device has them.
pub fn time(
    ctx: &Context,
    body: impl FnOnce(&mut Pass<'_>) -> Result<()>,
) -> Result<(Duration, Timer)> {
    let started = Instant::now();
    let ((), times) = ctx.profile(Profile::Pass, body)?;
    if let Some(times) = times {
        return Ok((times.total, Timer::Gpu));
    }
    ctx.wait()?;
    Ok((started.elapsed(), Timer::Host))
}

/// The measured ceilings of a device; rates a second. What the device lacks is `None`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ceilings {
    /// The adapter.
    pub device: String,
    /// Its driver.
    pub driver: String,
    /// What timed it.
    pub timer: Timer,
    /// Bytes read.
    pub read: f64,
    /// Bytes copied, read plus written.
    pub copy: f64,
    /// f32 operations (a multiply-add is two).
    pub f32: f64,
    /// f16 operations.
    pub f16: Option<f64>,
    /// int8 operations by packed dot products.
    pub int8: f64,
    /// f16 operations by cooperative matrices.
    pub cooperative: Option<f64>,
    /// Seconds of GPU time for an empty dispatch among others in a pass.
    pub dispatch_gpu: f64,
    /// Seconds of host time to record and submit a dispatch.
    pub dispatch_host: f64,
}

impl Ceilings {
    /// The ceilings of the context's device, measured at the first call in this process.
    pub fn of(ctx: &Context) -> Result<Self> {
        static KNOWN: OnceLock<Mutex<Vec<(String, Ceilings)>>> = OnceLock::new();
        let known = KNOWN.get_or_init(Mutex::default);
        // Tiers and checks change what the same device reaches.
        let caps = ctx.capabilities();
        let key = format!("{caps} {} {:?}", caps.tier_summary(), ctx.checks());
        if let Some((_, found)) = lock(known).iter().find(|(k, _)| *k == key) {
            return Ok(found.clone());
        }
        let measured = Self::measure(ctx)?;
        lock(known).push((key, measured.clone()));
        Ok(measured)
    }

    /// Measures: a few seconds, most of them on a software device.
    pub fn measure(ctx: &Context) -> Result<Self> {
        let caps = ctx.capabilities();
        let (read, timer) = memory(ctx, Probe::Read)?;
        let (copy, _) = memory(ctx, Probe::Copy)?;
        let optional = |probe: Probe| match probe.missing(caps) {
            Some(_) => Ok(None),
            None => arithmetic(ctx, probe).map(Some),
        };
        let (dispatch_gpu, dispatch_host) = dispatches(ctx)?;
        Ok(Self {
            device: caps.name.clone(),
            driver: caps.driver.clone(),
            timer,
            read,
            copy,
            f32: arithmetic(ctx, Probe::F32)?,
            f16: optional(Probe::F16)?,
            int8: arithmetic(ctx, Probe::Int8)?,
            cooperative: optional(Probe::Cooperative)?,
            dispatch_gpu,
            dispatch_host,
        })
    }

    /// The rate of a probe: bytes or operations a second; for [`Probe::Empty`] dispatches a second of GPU time.
    pub fn rate(&self, probe: Probe) -> Option<f64> {
        match probe {
            Probe::Read => Some(self.read),
            Probe::Copy => Some(self.copy),
            Probe::F32 => Some(self.f32),
            Probe::F16 => self.f16,
            Probe::Int8 => Some(self.int8),
            Probe::Cooperative => self.cooperative,
            Probe::Empty => Some(1.0 / self.dispatch_gpu),
        }
    }
}

fn software(ctx: &Context) -> bool {
    ctx.capabilities().class == DeviceClass::Software
}

fn repeats(ctx: &Context) -> usize {
    if software(ctx) { 3 } else { 9 }
}

/// The median time of `body`, after one run that is not counted.
fn median(
    ctx: &Context,
    mut body: impl FnMut(&mut Pass<'_>) -> Result<()>,
) -> Result<(f64, Timer)> {
    time(ctx, &mut body)?;
    let mut times = Vec::new();
    let mut timer = Timer::Host;
    for _ in 0..repeats(ctx) {
        let (each, by) = time(ctx, &mut body)?;
        times.push(each.as_secs_f64());
        timer = by;
    }
    times.sort_by(f64::total_cmp);
    // A clock may be too coarse to see anything: then the rate is not infinite.
    Ok((times[times.len() / 2].max(1e-9), timer))
}

/// The fastest candidate's rate, over buffers as large as the device gives.
fn memory(ctx: &Context, probe: Probe) -> Result<(f64, Timer)> {
    let caps = ctx.capabilities();
    // Well over any cache; as large as a binding may be, up to where nothing is gained any more.
    let wanted: u64 = match caps.class {
        DeviceClass::Software => 48 << 20,
        DeviceClass::Discrete => 2 << 30,
        _ => 512 << 20,
    };
    let mut bytes = wanted.min(caps.binding_bytes).min(caps.buffer_bytes);
    loop {
        match memory_over(ctx, probe, bytes) {
            Err(Error::OutOfMemory(_)) if bytes > 32 << 20 => bytes /= 2,
            other => return other,
        }
    }
}

fn memory_over(ctx: &Context, probe: Probe, bytes: u64) -> Result<(f64, Timer)> {
    let caps = ctx.capabilities();
    // A whole number of every candidate's chunks.
    let words = (bytes & !((1 << 18) - 1)) as usize / 4;
    let input = random(ctx, DType::U32, words)?;
    // On a device with small bindings one dispatch is too short to time.
    let launches = match software(ctx) {
        true => 1,
        false => ((1 << 30) / bytes).clamp(1, 16),
    };
    let mut best = (0.0, Timer::Host);
    let mut output: Option<Tensor> = None;
    for tuning in probe.candidates(caps) {
        let chunk = (tuning.workgroup * tuning.unroll * 4) as usize;
        let plan = probe.plan(caps, tuning, (words / chunk) as u32)?;
        let target = match output.take() {
            Some(kept) if kept.len() == plan.output => kept,
            _ => Tensor::empty(ctx, DType::U32, [plan.output])?,
        };
        let (seconds, timer) = median(ctx, |pass| {
            (0..launches).try_for_each(|_| pass.launch(&plan.launch, &[&input, &target]))
        })?;
        let rate = plan.work * launches as f64 / seconds;
        if rate > best.0 {
            best = (rate, timer);
        }
        output = Some(target);
    }
    Ok(best)
}

fn random(ctx: &Context, dtype: DType, len: usize) -> Result<Tensor> {
    let fill = Uniform {
        seed: 1,
        scale: 1.0,
    };
    fill.tensor(ctx, dtype, [len])
}

/// The fastest candidate's rate.
fn arithmetic(ctx: &Context, probe: Probe) -> Result<f64> {
    let mut best = 0.0f64;
    for tuning in probe.candidates(ctx.capabilities()) {
        best = best.max(arithmetic_with(ctx, probe, tuning)?);
    }
    Ok(best)
}

fn arithmetic_with(ctx: &Context, probe: Probe, tuning: Tuning) -> Result<f64> {
    let caps = ctx.capabilities();
    let first = probe.plan(caps, tuning, 1)?;
    let output = Tensor::empty(ctx, DType::F32, [first.output])?;
    let input = match probe {
        Probe::Cooperative => Some(random(ctx, DType::F16, first.input)?),
        _ => None,
    };
    let run = |plan: &Plan, pass: &mut Pass<'_>| match &input {
        Some(input) => pass.launch(&plan.launch, &[input, &output]),
        None => pass.launch(&plan.launch, &[&output]),
    };
    // Rounds double until a dispatch is long enough for the clock and for the device to speed up.
    let enough = Duration::from_millis(if software(ctx) { 20 } else { 4 });
    let mut rounds = 4;
    let plan = loop {
        let plan = probe.plan(caps, tuning, rounds)?;
        time(ctx, |pass| run(&plan, pass))?;
        let (taken, _) = time(ctx, |pass| run(&plan, pass))?;
        if taken >= enough || rounds >= 1 << 20 {
            break plan;
        }
        rounds *= 2;
    };
    let (seconds, _) = median(ctx, |pass| run(&plan, pass))?;
    Ok(plan.work / seconds)
}

/// Seconds of an empty dispatch: of the GPU, and of the host to record and submit it.
fn dispatches(ctx: &Context) -> Result<(f64, f64)> {
    let count = if software(ctx) { 256 } else { 1024 };
    let caps = ctx.capabilities();
    let tuning = Tuning {
        workgroup: 1,
        unroll: 1,
        chains: [1, 1],
        groups: 1,
    };
    let plan = Probe::Empty.plan(caps, tuning, 0)?;
    let output = Tensor::empty(ctx, DType::U32, [plan.output])?;
    let many = |pass: &mut Pass<'_>| {
        for _ in 0..count {
            pass.launch(&plan.launch, &[&output])?;
        }
        Ok(())
    };
    let (gpu, _) = median(ctx, many)?;
    let mut host = Vec::new();
    for _ in 0..repeats(ctx) {
        let started = Instant::now();
        ctx.record(many)?;
        host.push(started.elapsed().as_secs_f64());
        ctx.wait()?;
    }
    host.sort_by(f64::total_cmp);
    Ok((
        gpu / f64::from(count),
        host[host.len() / 2] / f64::from(count),
    ))
}
