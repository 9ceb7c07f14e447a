//! What an adapter can do, as plain data: planners read it and need no GPU.

use std::fmt;

use crate::tuned::Tuned;

/// A cooperative-matrix shape and its element types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CooperativeShape {
    /// Rows of A and C.
    pub m: u32,
    /// Columns of B and C.
    pub n: u32,
    /// Columns of A, rows of B.
    pub k: u32,
    /// Elements of A and B are f16 (otherwise f32).
    pub f16_inputs: bool,
    /// Elements of C are f32 (otherwise f16).
    pub f32_accumulator: bool,
}

impl CooperativeShape {
    /// The shape that kernels are written for: 16 x 16 x 16, f16 into f32.
    pub const F16: Self = Self {
        m: 16,
        n: 16,
        k: 16,
        f16_inputs: true,
        f32_accumulator: true,
    };
}

/// Smallest and largest number of invocations of a subgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubgroupSizes {
    /// Smallest.
    pub min: u32,
    /// Largest.
    pub max: u32,
}

/// The class of a device, for choosing between adapters and for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceClass {
    /// A card with memory of its own.
    Discrete,
    /// A GPU that shares the processor's memory.
    Integrated,
    /// A GPU seen through a virtual machine.
    Virtual,
    /// A software driver.
    Software,
    /// Unknown.
    Other,
}

/// How per-dispatch parameters reach a shader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParamsTier {
    /// `var<immediate>` (push constants): cheapest.
    Immediate,
    /// A uniform buffer with a dynamic offset: browsers, and devices without immediates.
    Uniform,
}

/// How invocations of a workgroup combine values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceTier {
    /// Subgroup operations, then workgroup memory across subgroups.
    Subgroup,
    /// Workgroup memory alone.
    Workgroup,
}

/// How products of matrices of f16 are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatrixTier {
    /// Cooperative matrices, 16 x 16 x 16 of f16 into f32, in subgroups of 32, loaded 16 bytes at a time (see
    /// [`crate::spirv`]).
    Cooperative,
    /// f32 multiply-adds.
    Fma,
}

/// What one adapter offers and where its limits are.
#[derive(Clone, Debug, PartialEq)]
pub struct Capabilities {
    /// The adapter's name.
    pub name: String,
    /// The backend: "vulkan", "metal", "dx12", "gl" or "webgpu".
    pub backend: String,
    /// The driver and its version.
    pub driver: String,
    /// Kind of device.
    pub class: DeviceClass,
    /// Subgroup sizes, if shaders can use subgroup operations.
    pub subgroups: Option<SubgroupSizes>,
    /// Shaders may use the type f16.
    pub shader_f16: bool,
    /// Largest immediate data in bytes; 0 without the feature.
    pub immediate_bytes: u32,
    /// GPU timestamps around a pass.
    pub timestamps: bool,
    /// GPU timestamps inside a pass.
    pub timestamps_in_pass: bool,
    /// Pipelines can be cached on disk.
    pub pipeline_cache: bool,
    /// Cooperative-matrix shapes; empty without the feature.
    pub cooperative: Vec<CooperativeShape>,
    /// Shaders reach the elements of cooperative matrices, and find them where kernels expect them. Known of devices
    /// that are open alone; see [`crate::kernels::fragments`].
    pub matrix_elements: bool,
    /// 16 x 16 x 32 products of int8 into i32 in subgroups of 32, by cooperative matrices that naga does not know
    /// ([`crate::spirv`]). Of an open device it is known that its numbers are right.
    pub matrix_int8: bool,
    /// The driver takes our SPIR-V as it is: what [`crate::spirv`] makes of WGSL.
    pub spirv: bool,
    /// Largest storage binding in bytes.
    pub binding_bytes: u64,
    /// Largest buffer in bytes.
    pub buffer_bytes: u64,
    /// Storage buffers one kernel may bind.
    pub storage_buffers: u32,
    /// Invocations of one workgroup.
    pub invocations: u32,
    /// Workgroup memory in bytes.
    pub workgroup_bytes: u32,
    /// Workgroups along one dimension of a dispatch.
    pub workgroups: u32,
    /// Alignment of dynamic uniform offsets in bytes.
    pub uniform_alignment: u32,
    /// Winners of tuning, which planners take before their defaults: of an open device, what it has found or stored.
    pub tuned: Tuned,
}

impl Capabilities {
    /// WebGPU's default limits: what every kernel's portable tier has to fit in.
    pub fn webgpu_default() -> Self {
        Self {
            name: "WebGPU defaults".into(),
            backend: "webgpu".into(),
            driver: String::new(),
            class: DeviceClass::Other,
            subgroups: None,
            shader_f16: false,
            immediate_bytes: 0,
            timestamps: false,
            timestamps_in_pass: false,
            pipeline_cache: false,
            cooperative: Vec::new(),
            matrix_elements: false,
            matrix_int8: false,
            spirv: false,
            binding_bytes: 128 << 20,
            buffer_bytes: 256 << 20,
            storage_buffers: 8,
            invocations: 256,
            workgroup_bytes: 16 << 10,
            workgroups: 65535,
            uniform_alignment: 256,
            tuned: Tuned::default(),
        }
    }

    /// Bytes of the largest tensor: of one binding and one buffer, and what 32 bits count.
    pub fn tensor_bytes(&self) -> u64 {
        let counted = u64::from(u32::MAX) & !255;
        self.binding_bytes.min(self.buffer_bytes).min(counted)
    }

    /// How parameters reach shaders on this device.
    pub fn params_tier(&self) -> ParamsTier {
        if self.immediate_bytes as usize >= crate::recipe::MAX_PARAM_BYTES {
            ParamsTier::Immediate
        } else {
            ParamsTier::Uniform
        }
    }

    /// How workgroups reduce on this device.
    pub fn reduce_tier(&self) -> ReduceTier {
        if self.subgroups.is_some() {
            ReduceTier::Subgroup
        } else {
            ReduceTier::Workgroup
        }
    }

    /// How products of f16 matrices are computed on this device.
    pub fn matrix_tier(&self) -> MatrixTier {
        let lanes = SubgroupSizes { min: 32, max: 32 };
        if self.spirv
            && self.shader_f16
            && self.subgroups == Some(lanes)
            && self.cooperative.contains(&CooperativeShape::F16)
        {
            MatrixTier::Cooperative
        } else {
            MatrixTier::Fma
        }
    }

    /// The tiers in use, in one word each, as the command-line program prints them.
    pub fn tier_summary(&self) -> String {
        let reduce = match (self.reduce_tier(), self.subgroups) {
            (ReduceTier::Subgroup, Some(s)) if s.min == s.max => format!("subgroup({})", s.min),
            (ReduceTier::Subgroup, Some(s)) => format!("subgroup({}..{})", s.min, s.max),
            _ => "portable".into(),
        };
        let params = match self.params_tier() {
            ParamsTier::Immediate => "immediates",
            ParamsTier::Uniform => "uniforms",
        };
        let matrix = match self.matrix_tier() {
            MatrixTier::Cooperative => ", cooperative matrices",
            MatrixTier::Fma => "",
        };
        format!("{reduce}, {params}{matrix}")
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}, {:?}, {})",
            self.name, self.backend, self.class, self.driver
        )
    }
}
