//! Recording: many dispatches in one pass and one submission.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::buffer::Buffer;
use crate::capabilities::{Capabilities, ParamsTier};
use crate::context::{Context, lock, mapped};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernel::{self, MAX_BINDINGS};
use crate::layout::Layout;
use crate::recipe::{Launch, MAX_PARAM_BYTES, Recipe};
use crate::shader::Access;
use crate::tensor::Tensor;

/// Variants, each with its class ([`Launch::class`]).
pub(crate) type Listed = Vec<(Option<Recipe>, Recipe)>;

/// What to time on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Nothing.
    Off,
    /// The pass as a whole.
    Pass,
    /// Every dispatch (slows the pass a little).
    EachLaunch,
}

/// Times of a recorded pass.
#[derive(Clone, Debug)]
pub struct Times {
    /// From the first dispatch's start to the last one's end.
    pub total: Duration,
    /// Each dispatch, for [`Profile::EachLaunch`].
    pub launches: Vec<TimedLaunch>,
}

/// The time of a dispatch.
#[derive(Clone, Debug)]
pub struct TimedLaunch {
    /// The variant.
    pub recipe: Recipe,
    /// See [`Launch::class`].
    pub class: Option<Recipe>,
    /// What it took.
    pub time: Duration,
}

/// Bytes of uniform parameters one pass can hold: its dispatches, on devices without immediates.
const UNIFORM_LAUNCHES: usize = 1024;

/// A pass under recording; see [`Context::record`].
pub struct Pass<'a> {
    ctx: &'a Context,
    encoder: wgpu::CommandEncoder,
    pass: Option<wgpu::ComputePass<'static>>,
    /// Buffers in use, so that none goes back to the pool before the submission.
    held: Vec<Arc<Buffer>>,
    /// What this pass was given for each slot of scratch memory.
    scratch: Vec<Option<Arc<Buffer>>>,
    uniforms: Option<Uniforms>,
    current: u64,
    launches: usize,
    profile: Option<Queries>,
    /// Where nothing is to run: what would.
    listed: Option<Listed>,
}

struct Uniforms {
    buffer: Arc<Buffer>,
    bytes: Vec<u8>,
    stride: usize,
    filled: Vec<(Arc<Buffer>, Vec<u8>)>,
}

struct Queries {
    set: wgpu::QuerySet,
    each: bool,
    timed: Vec<(Recipe, Option<Recipe>)>,
    capacity: u32,
}

impl<'a> Pass<'a> {
    pub(crate) fn record<T>(
        ctx: &'a Context,
        profile: Profile,
        body: impl FnOnce(&mut Pass<'_>) -> Result<T>,
    ) -> Result<(T, Option<Pending>)> {
        let mut outcome = None;
        // One scope around everything: wgpu reports a pass's errors when its encoder is finished.
        ctx.scoped(|device| outcome = Some(Self::record_scoped(ctx, device, profile, body)))?;
        outcome.unwrap_or_else(|| Err(Error::Validation("the pass was not recorded".into())))
    }

    fn record_scoped<T>(
        ctx: &'a Context,
        device: &wgpu::Device,
        profile: Profile,
        body: impl FnOnce(&mut Pass<'_>) -> Result<T>,
    ) -> Result<(T, Option<Pending>)> {
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let queries = Queries::new(ctx, device, profile);
        let around =
            queries
                .as_ref()
                .filter(|q| !q.each)
                .map(|q| wgpu::ComputePassTimestampWrites {
                    query_set: &q.set,
                    beginning_of_pass_write_index: Some(0),
                    end_of_pass_write_index: Some(1),
                });
        let pass = encoder
            .begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: around,
            })
            .forget_lifetime();
        let mut recording = Self::over(ctx, encoder, pass, queries);
        let value = body(&mut recording)?;
        let pending = recording.submit(device)?;
        Ok((value, pending))
    }

    fn over(
        ctx: &'a Context,
        encoder: wgpu::CommandEncoder,
        pass: wgpu::ComputePass<'static>,
        profile: Option<Queries>,
    ) -> Self {
        Self {
            ctx,
            encoder,
            pass: Some(pass),
            held: Vec::with_capacity(64),
            scratch: Vec::new(),
            uniforms: None,
            current: 0,
            launches: 0,
            profile,
            listed: None,
        }
    }

    /// The variants that `body` would run, each with its class; nothing is compiled or submitted.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn list(
        ctx: &'a Context,
        body: impl FnOnce(&mut Pass<'_>) -> Result<()>,
    ) -> Result<Listed> {
        let mut listed = Ok(Vec::new());
        ctx.scoped(|device| {
            let mut encoder =
                device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let descriptor = wgpu::ComputePassDescriptor::default();
            let pass = encoder.begin_compute_pass(&descriptor).forget_lifetime();
            let mut recording = Self::over(ctx, encoder, pass, None);
            recording.listed = Some(Vec::new());
            listed = body(&mut recording).map(|()| recording.listed.take().unwrap_or_default());
        })?;
        listed
    }

    /// The context recorded for.
    pub fn context(&self) -> &Context {
        self.ctx
    }

    /// What the device can do, for planning.
    pub fn capabilities(&self) -> &'a Capabilities {
        self.ctx.capabilities()
    }

    /// Dispatches recorded so far.
    pub fn launches(&self) -> usize {
        self.launches
    }

    /// Memory for intermediate results, kept by the context: the same for every request of this pass for `slot`, as long
    /// as none is larger. Dispatches run in order, so passes share it safely, those of other threads too.
    pub fn scratch(
        &mut self,
        slot: usize,
        dtype: DType,
        shape: impl AsRef<[usize]>,
    ) -> Result<Tensor> {
        let layout = Layout::contiguous(dtype, shape)?;
        let fits = |b: &Arc<Buffer>| b.raw.size() >= layout.bytes();
        if self.scratch.len() <= slot {
            self.scratch.resize_with(slot + 1, || None);
        }
        if let Some(own) = self.scratch[slot].clone().filter(fits) {
            return Ok(Tensor::over(self.ctx, own, layout));
        }
        let slots = &self.ctx.inner.scratch;
        let kept = lock(slots).get(slot).cloned().flatten();
        let buffer = match kept.filter(fits) {
            Some(buffer) => buffer,
            None => {
                let buffer = self.ctx.inner.pool.allocate(self.ctx, layout.bytes())?;
                let mut slots = lock(slots);
                let count = slots.len().max(slot + 1);
                slots.resize_with(count, || None);
                slots[slot] = Some(buffer.clone());
                buffer
            }
        };
        // Another thread may put a larger buffer in the context's slot while this pass is recorded.
        self.scratch[slot] = Some(buffer.clone());
        Ok(Tensor::over(self.ctx, buffer, layout))
    }

    /// Records one dispatch over `tensors`, in the order of the shader's bindings.
    pub fn launch(&mut self, launch: &Launch, tensors: &[&Tensor]) -> Result<()> {
        if let Some(listed) = &mut self.listed {
            listed.push((launch.class.clone(), launch.recipe.clone()));
            return Ok(());
        }
        let kernel = self.ctx.kernel(&launch.recipe)?;
        if tensors.len() != kernel.bindings.len() {
            return Err(Error::argument(
                "tensors",
                format!("{} for {}", tensors.len(), launch.recipe),
                format!("{} bindings", kernel.bindings.len()),
            ));
        }
        check_aliases(&kernel.bindings, tensors, launch)?;
        let buffers: arrayvec::ArrayVec<&Arc<Buffer>, MAX_BINDINGS> =
            tensors.iter().map(|t| t.buffer()).collect();
        let tier = self.ctx.capabilities().params_tier();
        let offset = match tier {
            ParamsTier::Immediate => None,
            ParamsTier::Uniform => Some(self.push_uniform(launch.params.as_bytes())?),
        };
        let uniform = self.uniforms.as_ref().map(|u| &*u.buffer);
        let group = kernel::bind_group(self.ctx, &kernel, &buffers, uniform)?;
        for buffer in buffers {
            self.held.push(buffer.clone());
        }
        let Some(pass) = &mut self.pass else {
            return Err(Error::Validation("launch outside a pass".into()));
        };
        if let Some(queries) = &mut self.profile {
            queries.before(pass, launch);
        }
        if self.current != kernel.id {
            pass.set_pipeline(&kernel.pipeline);
            self.current = kernel.id;
        }
        match offset {
            Some(offset) => pass.set_bind_group(0, &group, &[offset]),
            None => {
                pass.set_bind_group(0, &group, &[]);
                pass.set_immediates(0, launch.params.as_bytes());
            }
        }
        let [x, y, z] = launch.grid;
        pass.dispatch_workgroups(x, y, z);
        if let Some(queries) = &mut self.profile {
            queries.after(pass);
        }
        self.launches += 1;
        Ok(())
    }

    /// Copies the whole of a contiguous tensor into a region of another of the same type, in order with the
    /// dispatches. Lengths and offsets are elements; bytes must be multiples of 4 (WebGPU).
    pub fn copy(&mut self, from: &Tensor, to: &Tensor, to_offset: usize) -> Result<()> {
        let size = from.dtype().size();
        let bytes = from.layout().bytes();
        let (source, target) = (
            (from.layout().offset() * size) as u64,
            ((to.layout().offset() + to_offset) * size) as u64,
        );
        if from.dtype() != to.dtype()
            || !from.layout().is_contiguous()
            || !to.layout().is_contiguous()
            || to_offset + from.len() > to.len()
        {
            return Err(Error::argument(
                "copy",
                format!("{from:?} into {to:?}"),
                "contiguous, same dtype, in range",
            ));
        }
        if [bytes, source, target].iter().any(|b| b % 4 != 0) {
            return Err(Error::argument(
                "copy",
                format!("{bytes} bytes from {source} to {target}"),
                "multiples of 4",
            ));
        }
        // A copy ends the pass; the next dispatch begins another in the same submission.
        self.pass = None;
        self.encoder.copy_buffer_to_buffer(
            &from.buffer().raw,
            source,
            &to.buffer().raw,
            target,
            bytes,
        );
        self.held.push(from.buffer().clone());
        self.held.push(to.buffer().clone());
        let descriptor = wgpu::ComputePassDescriptor::default();
        self.pass = Some(
            self.encoder
                .begin_compute_pass(&descriptor)
                .forget_lifetime(),
        );
        self.current = 0;
        Ok(())
    }

    fn push_uniform(&mut self, params: &[u8]) -> Result<u32> {
        let stride =
            MAX_PARAM_BYTES.next_multiple_of(self.ctx.capabilities().uniform_alignment as usize);
        let full = self
            .uniforms
            .as_ref()
            .is_some_and(|u| u.bytes.len() + stride > UNIFORM_LAUNCHES * stride);
        if self.uniforms.is_none() || full {
            let buffer = self
                .ctx
                .inner
                .pool
                .allocate_uniform(self.ctx, (UNIFORM_LAUNCHES * stride) as u64)?;
            let fresh = Uniforms {
                buffer,
                bytes: Vec::with_capacity(64 * stride),
                stride,
                filled: Vec::new(),
            };
            if let Some(old) = self.uniforms.replace(fresh)
                && let Some(new) = &mut self.uniforms
            {
                new.filled = old.filled;
                new.filled.push((old.buffer, old.bytes));
            }
        }
        let Some(uniforms) = &mut self.uniforms else {
            return Err(Error::Validation("no uniform buffer".into()));
        };
        let offset = uniforms.bytes.len();
        uniforms.bytes.extend_from_slice(params);
        uniforms.bytes.resize(offset + uniforms.stride, 0);
        Ok(offset as u32)
    }

    fn submit(mut self, device: &wgpu::Device) -> Result<Option<Pending>> {
        self.pass = None;
        if let Some(mut uniforms) = self.uniforms.take() {
            uniforms.filled.push((uniforms.buffer, uniforms.bytes));
            for (buffer, bytes) in uniforms.filled {
                self.ctx.inner.queue.write_buffer(&buffer.raw, 0, &bytes);
                self.held.push(buffer);
            }
        }
        let pending = self
            .profile
            .take()
            .map(|q| q.resolve(device, &mut self.encoder, self.launches));
        self.ctx.inner.queue.submit([self.encoder.finish()]);
        self.ctx.inner.submissions.fetch_add(1, Ordering::Relaxed);
        Ok(pending)
    }
}

/// A buffer written by a dispatch may not be bound to it a second time (WebGPU's usage rules): said here
/// with the argument's place instead of as a validation error.
fn check_aliases(bindings: &[(u32, Access)], tensors: &[&Tensor], launch: &Launch) -> Result<()> {
    for (i, (_, access)) in bindings.iter().enumerate() {
        if *access == Access::ReadWrite
            && let Some(j) = (0..tensors.len())
                .find(|&j| j != i && tensors[j].buffer().id == tensors[i].buffer().id)
        {
            return Err(Error::argument(
                format!("tensor {i} of {}", launch.recipe.shader()),
                format!("written, and in the same buffer as tensor {j}"),
                "an output in a buffer of its own",
            ));
        }
    }
    Ok(())
}

impl Queries {
    fn new(ctx: &Context, device: &wgpu::Device, profile: Profile) -> Option<Self> {
        let caps = ctx.capabilities();
        let each = match profile {
            Profile::Off => return None,
            Profile::Pass => false,
            Profile::EachLaunch => caps.timestamps_in_pass,
        };
        if !caps.timestamps {
            return None;
        }
        let capacity = if each { wgpu::QUERY_SET_MAX_QUERIES } else { 2 };
        let set = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count: capacity,
        });
        Some(Self {
            set,
            each,
            timed: Vec::new(),
            capacity,
        })
    }

    fn room(&self) -> bool {
        self.each && (self.timed.len() as u32 + 1) * 2 <= self.capacity
    }

    fn before(&mut self, pass: &mut wgpu::ComputePass<'_>, launch: &Launch) {
        if self.room() {
            pass.write_timestamp(&self.set, self.timed.len() as u32 * 2);
            self.timed
                .push((launch.recipe.clone(), launch.class.clone()));
        }
    }

    fn after(&mut self, pass: &mut wgpu::ComputePass<'_>) {
        let written = self.timed.len() as u32;
        if self.each && written > 0 && written * 2 <= self.capacity {
            pass.write_timestamp(&self.set, written * 2 - 1);
        }
    }

    fn resolve(
        self,
        device: &wgpu::Device,
        encoder: &mut wgpu::CommandEncoder,
        launches: usize,
    ) -> Pending {
        let count = if self.each {
            self.timed.len() as u32 * 2
        } else {
            2
        };
        let bytes = u64::from(count) * 8;
        let buffer = |usage, label| {
            let size = bytes.max(8);
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        let resolved = buffer(
            wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            "timestamps",
        );
        let read = buffer(
            wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            "timestamps read",
        );
        if count > 0 && launches > 0 {
            encoder.resolve_query_set(&self.set, 0..count, &resolved, 0);
            encoder.copy_buffer_to_buffer(&resolved, 0, &read, 0, bytes);
        }
        Pending {
            read,
            timed: self.timed,
            empty: launches == 0,
        }
    }
}

/// Timestamps under way.
pub(crate) struct Pending {
    read: wgpu::Buffer,
    timed: Vec<(Recipe, Option<Recipe>)>,
    empty: bool,
}

impl Pending {
    pub(crate) async fn read(self, ctx: &Context) -> Result<Times> {
        if self.empty {
            return Ok(Times {
                total: Duration::ZERO,
                launches: Vec::new(),
            });
        }
        let (sender, receiver) = futures_channel::oneshot::channel();
        self.read
            .slice(..)
            .map_async(wgpu::MapMode::Read, move |result| {
                // The receiver waits below; if it is gone nobody needs the answer.
                sender.send(result).ok();
            });
        mapped(ctx, receiver).await?;
        let ticks: Vec<u64> = {
            let view = self.read.slice(..).get_mapped_range();
            let view = view.map_err(|e| Error::DeviceLost(format!("timestamps: {e}")))?;
            bytemuck::pod_collect_to_vec(&view)
        };
        let period = f64::from(ctx.inner.queue.get_timestamp_period());
        let span =
            |a: u64, b: u64| Duration::from_nanos((b.saturating_sub(a) as f64 * period) as u64);
        let total = span(ticks[0], ticks.last().copied().unwrap_or(ticks[0]));
        let each = ticks.chunks_exact(2).map(|pair| span(pair[0], pair[1]));
        let launches = self.timed.into_iter().zip(each);
        let launches = launches.map(|((recipe, class), time)| TimedLaunch {
            recipe,
            class,
            time,
        });
        Ok(Times {
            total,
            launches: launches.collect(),
        })
    }
}

/// A pooled staging buffer for reading back.
pub(crate) fn staging(ctx: &Context, bytes: u64) -> Result<wgpu::Buffer> {
    let size = bytes.max(256).next_power_of_two();
    let mut pool = lock(&ctx.inner.staging);
    if let Some(at) = pool.iter().position(|b| b.size() == size) {
        return Ok(pool.swap_remove(at));
    }
    drop(pool);
    ctx.scoped(|device| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("flashwave read-back"),
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    })
}
