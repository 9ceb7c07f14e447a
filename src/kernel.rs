//! Compiled pipelines and their bind groups.

use std::sync::Arc;

use arrayvec::ArrayVec;
use rustc_hash::FxHashMap;

use crate::buffer::Buffer;
use crate::capabilities::ParamsTier;
use crate::context::{Context, ShaderChecks, lock};
use crate::error::{Error, Result};
use crate::recipe::{MAX_PARAM_BYTES, Recipe};
use crate::shader::{self, Access};

/// Storage buffers of one dispatch; WebGPU guarantees 8.
pub(crate) const MAX_BINDINGS: usize = 8;

/// A compiled recipe.
pub struct Kernel {
    pub(crate) id: u64,
    pub(crate) pipeline: wgpu::ComputePipeline,
    /// Storage bindings in the order of their numbers.
    pub(crate) bindings: ArrayVec<(u32, Access), MAX_BINDINGS>,
    layout: wgpu::BindGroupLayout,
}

impl Kernel {
    pub(crate) fn compile(
        ctx: &Context,
        recipe: &Recipe,
        cache: Option<&wgpu::PipelineCache>,
    ) -> Result<Self> {
        let caps = ctx.capabilities();
        let params = caps.params_tier();
        let wgsl = shader::link(recipe, params)?;
        let found = shader::bindings(&wgsl);
        let entries: Vec<wgpu::BindGroupLayoutEntry> = found
            .iter()
            .map(|b| layout_entry(b.index, b.access))
            .collect();
        let storage: Vec<(u32, Access)> = found
            .iter()
            .filter(|b| b.access != Access::Uniform)
            .map(|b| (b.index, b.access))
            .collect();
        if storage.len() > MAX_BINDINGS.min(caps.storage_buffers as usize) {
            return Err(Error::Shader {
                shader: recipe.to_string(),
                message: format!(
                    "{} storage buffers, the device has {}",
                    storage.len(),
                    caps.storage_buffers
                ),
            });
        }
        let label = recipe.to_string();
        let checks = match ctx.checks() {
            ShaderChecks::On => wgpu::ShaderRuntimeChecks::checked(),
            ShaderChecks::Off => wgpu::ShaderRuntimeChecks::unchecked(),
        };
        let immediate_size = match params {
            ParamsTier::Immediate => MAX_PARAM_BYTES as u32,
            ParamsTier::Uniform => 0,
        };
        let (layout, pipeline) = ctx.scoped(|device| {
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(&label),
                source: wgpu::ShaderSource::Wgsl(wgsl.into()),
            };
            // SAFETY: our own shaders; planners admit only shapes for which every access is in bounds, which
            // the correctness matrix also runs with the checks on.
            let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
            let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(&label),
                entries: &entries,
            });
            let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(&label),
                bind_group_layouts: &[Some(&layout)],
                immediate_size,
            });
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&label),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &[],
                    zero_initialize_workgroup_memory: ctx.checks() == ShaderChecks::On,
                },
                cache,
            });
            (layout, pipeline)
        })?;
        Ok(Self {
            id: ctx.fresh_id(),
            pipeline,
            bindings: storage.into_iter().collect(),
            layout,
        })
    }
}

fn layout_entry(binding: u32, access: Access) -> wgpu::BindGroupLayoutEntry {
    let ty = match access {
        Access::Uniform => wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Uniform,
            has_dynamic_offset: true,
            min_binding_size: None,
        },
        Access::Read | Access::ReadWrite => wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage {
                read_only: access == Access::Read,
            },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
    };
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty,
        count: None,
    }
}

/// Which kernel over which buffers, that of the uniform parameters last.
type Key = (u64, ArrayVec<u64, { MAX_BINDINGS + 1 }>);

/// Bind groups by kernel and buffers: a decode step finds all of its own here.
#[derive(Default)]
pub(crate) struct BindGroups {
    groups: FxHashMap<Key, wgpu::BindGroup>,
}

impl BindGroups {
    /// Kept at most; a program that never repeats itself must not grow without end.
    const LIMIT: usize = 16384;

    pub(crate) fn clear(&mut self) {
        self.groups.clear();
    }

    pub(crate) fn forget(&mut self, buffer: u64) {
        self.groups
            .retain(|(_, buffers), _| !buffers.contains(&buffer));
    }
}

/// The bind group of `kernel` over `buffers` (whole, in the order of the bindings), with `uniform` as its
/// parameters where they are not immediates.
pub(crate) fn bind_group(
    ctx: &Context,
    kernel: &Kernel,
    buffers: &[&Arc<Buffer>],
    uniform: Option<&Buffer>,
) -> Result<wgpu::BindGroup> {
    let ids = buffers.iter().map(|b| b.id).chain(uniform.map(|u| u.id));
    let key: Key = (kernel.id, ids.collect());
    if let Some(group) = lock(&ctx.inner.bind_groups).groups.get(&key) {
        return Ok(group.clone());
    }
    let storage = kernel
        .bindings
        .iter()
        .zip(buffers)
        .map(|(&(binding, _), buffer)| wgpu::BindGroupEntry {
            binding,
            resource: buffer.raw.as_entire_binding(),
        });
    let params = uniform.map(|u| wgpu::BindGroupEntry {
        binding: 0,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &u.raw,
            offset: 0,
            size: std::num::NonZeroU64::new(MAX_PARAM_BYTES as u64),
        }),
    });
    let entries: Vec<_> = storage.chain(params).collect();
    let group = ctx.scoped(|device| {
        device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &kernel.layout,
            entries: &entries,
        })
    })?;
    let mut cache = lock(&ctx.inner.bind_groups);
    if cache.groups.len() >= BindGroups::LIMIT {
        cache.groups.clear();
    }
    cache.groups.insert(key, group.clone());
    Ok(group)
}
