//! SPIR-V of our own WGSL for drivers that take it as it is: the way to say what WGSL has no words for.
//!
//! WGSL stays the only source; naga writes the SPIR-V, and [`adapt`] changes four things in it:
//!
//! - **Wide cooperative loads.** A shader keeps its tiles in workgroup memory as vectors of 16 bytes, `vec4<u32>` or
//!   `vec4<f32>`, and points `coopLoad` at one of them, index and stride in units of 16 bytes. naga takes the matrix's elements
//!   to be those of the pointer, where f16 is meant: that type is what is changed, for factors (roles A and B). SPV_KHR_cooperative_matrix lets a
//!   pointer be to any scalar or vector, whatever the matrix is of, and the driver then loads 16 bytes at a
//!   time: on an H100 an 8192^3 product went from 114 TFLOP/s (f16 elements) and 187 (`vec4<f16>`) to 279.
//! - **Matrices of int8**, which WGSL does not have: `coop_mat8x8<f32, …>` stands for 16 x 32 (A) and 32 x 16 (B) of int8 and 16 x 16
//!   of i32 (C), and products of these are signed. They are loaded as above, 16 elements at a time; an accumulator is
//!   stored as bits.
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
    /// Declarations of types.
    pub const TYPES: std::ops::RangeInclusive<u32> = 19..=39;
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
    pub const COOPERATIVE_MULTIPLY_ADD: u32 = 4459;
}
const FLOAT16: u32 = 9;
const INT8: u32 = 39;
/// A, B, C and the result of a product have signed elements.
const ALL_SIGNED: u32 = 0xf;
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

/// Types and constants that matrices are given, declared before all others: a number by its description.
struct Prelude {
    declared: Vec<(Vec<u32>, u32)>,
    bound: u32,
}

impl Prelude {
    /// The number of what `instruction` (its code, then its operands without the result) declares in `all`, or a fresh one.
    fn id(&mut self, all: &[&[u32]], instruction: &[u32]) -> u32 {
        if let Some((_, id)) = self.declared.iter().find(|(i, _)| i == instruction) {
            return *id;
        }
        let found = all.iter().find(|i| described(i) == instruction);
        let id = match found {
            Some(i) => i[result(opcode(i))],
            None => self.fresh(),
        };
        self.declared.push((instruction.to_vec(), id));
        id
    }

    fn fresh(&mut self) -> u32 {
        self.bound += 1;
        self.bound - 1
    }

    fn words(&self) -> Vec<u32> {
        let encoded = self.declared.iter().map(|(i, id)| {
            let mut operands = i[1..].to_vec();
            operands.insert(result(i[0]) - 1, *id);
            encode(i[0], &operands)
        });
        encoded.flatten().collect()
    }
}

/// Which word of a declaration is its result.
fn result(code: u32) -> usize {
    if code == op::CONSTANT { 2 } else { 1 }
}

/// A declaration's code and its operands without the result.
fn described(i: &[u32]) -> Vec<u32> {
    let mut described = i.to_vec();
    described[0] = opcode(i);
    if described.len() > result(described[0]) {
        described.remove(result(described[0]));
    }
    described
}

/// A module of naga's with the matrices that are meant (see the head of this file), and with subgroup barriers that order
/// workgroup memory. Errors if it is not a module.
pub fn adapt(words: &[u32]) -> Result<Vec<u32>, String> {
    let all = instructions(words)?;
    let mut prelude = Prelude {
        declared: Vec::new(),
        bound: words[BOUND],
    };
    let word = prelude.id(&all, &[op::TYPE_INT, 32, 0]);
    let constants: BTreeMap<u32, u32> = all
        .iter()
        .filter(|i| opcode(i) == op::CONSTANT && i[1] == word)
        .map(|i| (i[2], i[3]))
        .collect();
    let value = |id: u32| constants.get(&id).copied().unwrap_or(0);
    let mut replaced = BTreeMap::new();
    let (mut capabilities, mut products) = (Vec::new(), Vec::new());
    for i in all
        .iter()
        .filter(|i| opcode(i) == op::TYPE_COOPERATIVE_MATRIX)
    {
        let [ty, element, scope, rows, role] = [i[1], i[2], i[3], i[4], i[6]];
        let mut meant = [ty, element, scope, rows, i[5], role];
        match (value(rows), value(role)) {
            (8, ACCUMULATOR) => {
                let side = prelude.id(&all, &[op::CONSTANT, word, 16]);
                let int = prelude.id(&all, &[op::TYPE_INT, 32, 1]);
                meant = [ty, int, scope, side, side, role];
                products.push(ty);
            }
            (8, factor) => {
                let side = prelude.id(&all, &[op::CONSTANT, word, 16]);
                let depth = prelude.id(&all, &[op::CONSTANT, word, 32]);
                let byte = prelude.id(&all, &[op::TYPE_INT, 8, 1]);
                let [rows, cols] = if factor == 0 {
                    [side, depth]
                } else {
                    [depth, side]
                };
                meant = [ty, byte, scope, rows, cols, role];
                capabilities.push(INT8);
            }
            (_, ACCUMULATOR) => {}
            _ => {
                meant[1] = prelude.id(&all, &[op::TYPE_FLOAT, 16]);
                capabilities.push(FLOAT16);
            }
        }
        replaced.insert(ty, encode(op::TYPE_COOPERATIVE_MATRIX, &meant));
    }
    // The semantics that barriers have, and what they should have.
    let mut semantics = BTreeMap::new();
    for i in all.iter().filter(|i| opcode(i) == op::CONTROL_BARRIER) {
        let has = value(i[3]);
        if has & SUBGROUP_MEMORY != 0 && has & WORKGROUP_MEMORY == 0 {
            let better = [op::CONSTANT, word, has | WORKGROUP_MEMORY];
            semantics.insert(i[3], prelude.id(&all, &better));
        }
    }
    let mut out = words[..HEADER].to_vec();
    capabilities.sort_unstable();
    capabilities.dedup();
    for capability in capabilities {
        let has = |i: &&[u32]| opcode(i) == op::CAPABILITY && i[1] == capability;
        if !all.iter().any(has) {
            out.extend(encode(op::CAPABILITY, &[capability]));
        }
    }
    let mut begun = false;
    for i in &all {
        let code = opcode(i);
        if !begun && op::TYPES.contains(&code) {
            out.extend(prelude.words());
            begun = true;
        }
        let declared = |(d, _): &(Vec<u32>, u32)| *d == described(i);
        match code {
            op::TYPE_INT | op::TYPE_FLOAT | op::CONSTANT
                if prelude.declared.iter().any(declared) => {}
            op::TYPE_COOPERATIVE_MATRIX => out.extend(&replaced[&i[1]]),
            op::COOPERATIVE_MULTIPLY_ADD if products.contains(&i[1]) => {
                out.extend(encode(code, &[&i[1..6], &[ALL_SIGNED]].concat()));
            }
            op::CONTROL_BARRIER => {
                let better = semantics.get(&i[3]).copied().unwrap_or(i[3]);
                out.extend(encode(code, &[i[1], i[2], better]));
            }
            _ => out.extend(*i),
        }
    }
    out[BOUND] = prelude.bound;
    Ok(out)
}
