//! Compiled pipelines and their bind groups.

use std::sync::Arc;

use arrayvec::ArrayVec;
use rustc_hash::FxHashMap;

use crate::buffer::Buffer;
use crate::capabilities::ParamsTier;
use crate::context::{Context, ShaderChecks, lock};
use crate::error::{Error, Result};
use crate::recipe::{MAX_PARAM_BYTES, Recipe};
use crate::shader::{self, Access, Binding};

/// Storage buffers of one dispatch at most; devices may have fewer, down to WebGPU's 8.
pub(crate) const MAX_BINDINGS: usize = 16;

/// A compiled recipe.
pub struct Kernel {
    pub(crate) id: u64,
    pub(crate) pipeline: wgpu::ComputePipeline,
    /// Storage bindings in the order of their numbers.
    pub(crate) bindings: ArrayVec<(u32, Access), MAX_BINDINGS>,
    layout: Arc<SharedLayout>,
}

/// The layout of all kernels with the same bindings. Shared, because a change of layout between two dispatches
/// costs the host more than a change of pipeline.
pub(crate) struct SharedLayout {
    id: u64,
    groups: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
}

/// Layouts by the bindings they are for.
pub(crate) type Layouts = FxHashMap<Vec<(u32, Access)>, Arc<SharedLayout>>;

impl SharedLayout {
    fn of(ctx: &Context, bindings: &[Binding], immediate_size: u32) -> Result<Arc<Self>> {
        let key: Vec<(u32, Access)> = bindings.iter().map(|b| (b.index, b.access)).collect();
        if let Some(found) = lock(&ctx.inner.layouts).get(&key) {
            return Ok(found.clone());
        }
        let entries: Vec<_> = key
            .iter()
            .map(|&(index, access)| layout_entry(index, access))
            .collect();
        let made = ctx.scoped(|device| {
            let descriptor = wgpu::BindGroupLayoutDescriptor {
                label: None,
                entries: &entries,
            };
            let groups = device.create_bind_group_layout(&descriptor);
            let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(&groups)],
                immediate_size,
            });
            Self {
                id: ctx.fresh_id(),
                groups,
                pipeline,
            }
        })?;
        Ok(lock(&ctx.inner.layouts)
            .entry(key)
            .or_insert(Arc::new(made))
            .clone())
    }
}

/// What browsers want of a shader with subgroup operations and naga refuses. Tint finds more control flow that may not
/// be uniform than there is (after `subgroupAny`, for one), so its opinion of that is turned off.
const BROWSER_SUBGROUPS: &str = "enable subgroups;\ndiagnostic(off, subgroup_uniformity);\n";

impl Kernel {
    pub(crate) fn compile(
        ctx: &Context,
        recipe: &Recipe,
        cache: Option<&wgpu::PipelineCache>,
    ) -> Result<Self> {
        let caps = ctx.capabilities();
        let params = caps.params_tier();
        let mut wgsl = shader::link(recipe, params)?;
        if cfg!(target_arch = "wasm32") && caps.subgroups.is_some() {
            wgsl.insert_str(0, BROWSER_SUBGROUPS);
        }
        let found = shader::bindings(&wgsl);
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
        let layout = SharedLayout::of(ctx, &found, immediate_size)?;
        let spirv = through_spirv(ctx, recipe, &wgsl, &found)?;
        let pipeline = ctx.scoped(|device| {
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(&label),
                source: wgpu::ShaderSource::Wgsl(wgsl.into()),
            };
            let module = match spirv {
                // SAFETY: as below; naga validated and wrote it, and a test holds what was changed to the rules.
                Some(words) => unsafe {
                    device.create_shader_module_passthrough(passthrough(words))
                },
                // SAFETY: our own shaders; planners admit only shapes for which every access is in bounds, which
                // the correctness matrix also runs with the checks on.
                None => unsafe { device.create_shader_module_trusted(descriptor, checks) },
            };
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&label),
                layout: Some(&layout.pipeline),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &[],
                    zero_initialize_workgroup_memory: ctx.checks() == ShaderChecks::On,
                },
                cache,
            })
        })?;
        Ok(Self {
            id: ctx.fresh_id(),
            pipeline,
            bindings: storage.into_iter().collect(),
            layout,
        })
    }
}

/// The SPIR-V of shaders whose matrices are loaded 16 bytes at a time (their constant LOADS is "wide") or whose
/// elements are reached (COOP is "elements"), which planners make for devices that take it.
#[cfg(not(target_arch = "wasm32"))]
fn through_spirv(
    ctx: &Context,
    recipe: &Recipe,
    wgsl: &str,
    bindings: &[Binding],
) -> Result<Option<Vec<u32>>> {
    let wide = recipe.constant("LOADS") == Some("wide".into());
    if !wide && recipe.constant("COOP") != Some("elements".into()) {
        return Ok(None);
    }
    let words = crate::spirv::compile(wgsl, bindings, ctx.checks());
    words.map(Some).map_err(|message| Error::Shader {
        shader: recipe.to_string(),
        message,
    })
}

#[cfg(target_arch = "wasm32")]
fn through_spirv(_: &Context, _: &Recipe, _: &str, _: &[Binding]) -> Result<Option<Vec<u32>>> {
    Ok(None)
}

fn passthrough(words: Vec<u32>) -> wgpu::ShaderModuleDescriptorPassthrough<'static> {
    wgpu::ShaderModuleDescriptorPassthrough {
        entry_points: vec![wgpu::PassthroughShaderEntryPoint {
            name: "main".into(),
            workgroup_size: (1, 1, 1), // read by Metal alone
        }]
        .into(),
        spirv: Some(words.into()),
        ..Default::default()
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

/// Bind groups by layout and buffers: a decode step finds all of its own here.
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
    let key: Key = (kernel.layout.id, ids.collect());
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
            layout: &kernel.layout.groups,
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
