//! SPIR-V of our own WGSL for drivers that take it as it is: the way to say what WGSL has no words for.
//!
//! WGSL stays the only source; naga writes the SPIR-V, and [`adapt`] changes three things in it:
//!
//! - **Wide cooperative loads.** A shader keeps its tiles in workgroup memory as vectors of 16 bytes, `vec4<u32>` or
//!   `vec4<f32>`, and points `coopLoad` at one of them, index and stride in units of 16 bytes. naga takes the matrix's elements
//!   to be those of the pointer, where f16 is meant: that type is what is changed, for factors (roles A and B). SPV_KHR_cooperative_matrix lets a
//!   pointer be to any scalar or vector, whatever the matrix is of, and the driver then loads 16 bytes at a
//!   time: on an H100 an 8192^3 product went from 114 TFLOP/s (f16 elements) and 187 (`vec4<f16>`) to 279.
//! - **Elements of cooperative matrices**, by the names of functions and variables (`elements.rs`): softmax stays in
//!   registers, and matrices are made of what plain loads brought.
//! - **Subgroup barriers order workgroup memory**, as WGSL says. naga 30 names SubgroupMemory alone, which
//!   Vulkan does not have.

mod elements;

use std::collections::BTreeMap;

use naga::back::spv;
use naga::valid::{ValidationFlags, Validator};

use crate::context::ShaderChecks;
use crate::shader::Binding;

/// The SPIR-V of a linked shader, for a pipeline layout of these `bindings`: [`adapt`] of what naga writes.
/// Errors are naga's, with the place in the source.
pub fn compile(wgsl: &str, bindings: &[Binding], checks: ShaderChecks) -> Result<Vec<u32>, String> {
    let module = naga::front::wgsl::parse_str(wgsl).map_err(|e| e.emit_to_string(wgsl))?;
    let info = Validator::new(ValidationFlags::all(), naga::valid::Capabilities::all())
        .validate(&module)
        .map_err(|e| e.emit_to_string(wgsl))?;
    let checked = checks == ShaderChecks::On;
    let policy = match checks {
        ShaderChecks::On => naga::proc::BoundsCheckPolicy::Restrict,
        ShaderChecks::Off => naga::proc::BoundsCheckPolicy::Unchecked,
    };
    let options = spv::Options {
        lang_version: (1, 5),
        // Names, for those that stand for elements.
        flags: spv::WriterFlags::DEBUG,
        binding_map: places(bindings),
        bounds_check_policies: naga::proc::BoundsCheckPolicies {
            index: policy,
            buffer: policy,
            image_load: policy,
            binding_array: policy,
        },
        zero_initialize_workgroup_memory: match checks {
            ShaderChecks::On => spv::ZeroInitializeWorkgroupMemoryMode::Polyfill,
            ShaderChecks::Off => spv::ZeroInitializeWorkgroupMemoryMode::None,
        },
        force_loop_bounding: checked,
        emit_int_div_checks: checked,
        ..spv::Options::default()
    };
    let entry = spv::PipelineOptions {
        shader_stage: naga::ShaderStage::Compute,
        entry_point: "main".into(),
    };
    let words =
        spv::write_vec(&module, &info, &options, Some(&entry)).map_err(|e| e.to_string())?;
    adapt(&elements::reach(&words)?)
}

/// wgpu numbers the bindings of a layout densely, in their order.
fn places(bindings: &[Binding]) -> spv::BindingMap {
    let mut indices: Vec<u32> = bindings.iter().map(|b| b.index).collect();
    indices.sort_unstable();
    let place = |(binding, index)| {
        let resource = naga::ResourceBinding {
            group: 0,
            binding: index,
        };
        let info = spv::BindingInfo {
            descriptor_set: 0,
            binding,
            binding_array_size: None,
        };
        (resource, info)
    };
    (0..).zip(indices).map(place).collect()
}

const HEADER: usize = 5;
const BOUND: usize = 3;

/// Instructions by number (SPIR-V 1.6, section 3.3, and SPV_KHR_cooperative_matrix).
mod op {
    pub const NAME: u32 = 5;
    pub const MEMBER_NAME: u32 = 6;
    pub const CAPABILITY: u32 = 17;
    pub const TYPE_INT: u32 = 21;
    pub const TYPE_FLOAT: u32 = 22;
    pub const CONSTANT: u32 = 43;
    pub const FUNCTION: u32 = 54;
    pub const FUNCTION_PARAMETER: u32 = 55;
    pub const FUNCTION_END: u32 = 56;
    pub const VARIABLE: u32 = 59;
    pub const ACCESS_CHAIN: u32 = 65;
    pub const BITCAST: u32 = 124;
    pub const CONTROL_BARRIER: u32 = 224;
    pub const LABEL: u32 = 248;
    pub const RETURN_VALUE: u32 = 254;
    pub const TYPE_COOPERATIVE_MATRIX: u32 = 4456;
}
const FLOAT16: u32 = 9;
const ACCUMULATOR: u32 = 2;
const WORKGROUP_MEMORY: u32 = 0x100;
const SUBGROUP_MEMORY: u32 = 0x80;

/// The instructions of a module, each with its operands.
///
/// Errors if a length does not fit.
pub fn instructions(words: &[u32]) -> Result<Vec<&[u32]>, String> {
    let mut rest = words.get(HEADER..).ok_or("SPIR-V without a header")?;
    let mut found = Vec::new();
    while let Some(&first) = rest.first() {
        let length = (first >> 16) as usize;
        if length == 0 || length > rest.len() {
            return Err(format!(
                "an instruction of {length} words, {} left",
                rest.len()
            ));
        }
        let (instruction, tail) = rest.split_at(length);
        found.push(instruction);
        rest = tail;
    }
    Ok(found)
}

fn opcode(instruction: &[u32]) -> u32 {
    instruction[0] & 0xffff
}

fn encode(opcode: u32, operands: &[u32]) -> Vec<u32> {
    let mut words = vec![(operands.len() as u32 + 1) << 16 | opcode];
    words.extend(operands);
    words
}

/// A module of naga's with f16 for the elements of factors (cooperative matrices of roles A and B) of u32 or f32, and with
/// subgroup barriers that order workgroup memory. Errors if it is not a module.
pub fn adapt(words: &[u32]) -> Result<Vec<u32>, String> {
    let all = instructions(words)?;
    let word = all
        .iter()
        .find(|i| opcode(i) == op::TYPE_INT && i[2..] == [32, 0])
        .map(|i| i[1]);
    let half = all
        .iter()
        .find(|i| opcode(i) == op::TYPE_FLOAT && i[2] == 16)
        .map(|i| i[1]);
    let float = all
        .iter()
        .find(|i| opcode(i) == op::TYPE_FLOAT && i[2] == 32)
        .map(|i| i[1]);
    let accumulator = all
        .iter()
        .find(|i| opcode(i) == op::CONSTANT && Some(i[1]) == word && i[3] == ACCUMULATOR)
        .map(|i| i[2]);
    let retyped = |i: &[u32]| {
        opcode(i) == op::TYPE_COOPERATIVE_MATRIX
            && (Some(i[2]) == word || Some(i[2]) == float)
            && Some(i[6]) != accumulator
    };
    let wide = all.iter().any(|i| retyped(i));
    // The semantics that barriers have (constants of u32), and what they should have.
    let mut semantics = BTreeMap::new();
    let mut bound = words[BOUND];
    let mut fresh = || {
        bound += 1;
        bound - 1
    };
    for i in all
        .iter()
        .filter(|i| opcode(i) == op::CONSTANT && Some(i[1]) == word)
    {
        let lacks = i[3] & SUBGROUP_MEMORY != 0 && i[3] & WORKGROUP_MEMORY == 0;
        let used = |b: &&[u32]| opcode(b) == op::CONTROL_BARRIER && b[3] == i[2];
        if lacks && all.iter().any(used) {
            semantics.insert(i[2], fresh());
        }
    }
    let half = half.unwrap_or_else(&mut fresh);
    let mut out = words[..HEADER].to_vec();
    if wide
        && !all
            .iter()
            .any(|i| opcode(i) == op::CAPABILITY && i[1] == FLOAT16)
    {
        out.extend(encode(op::CAPABILITY, &[FLOAT16]));
    }
    let mut declared = false;
    for instruction in all {
        let mut i = instruction.to_vec();
        match opcode(instruction) {
            op::TYPE_FLOAT if i[1] == half => {
                if declared {
                    continue;
                }
                declared = true;
            }
            op::TYPE_COOPERATIVE_MATRIX if retyped(instruction) => {
                if !declared {
                    out.extend(encode(op::TYPE_FLOAT, &[half, 16]));
                    declared = true;
                }
                i[2] = half;
            }
            op::CONTROL_BARRIER => {
                if let Some(&better) = semantics.get(&i[3]) {
                    i[3] = better;
                }
            }
            _ => {}
        }
        out.extend(&i);
        if opcode(&i) == op::CONSTANT
            && let Some(&better) = semantics.get(&i[2])
        {
            out.extend(encode(
                op::CONSTANT,
                &[i[1], better, i[3] | WORKGROUP_MEMORY],
            ));
        }
    }
    out[BOUND] = bound;
    Ok(out)
}
