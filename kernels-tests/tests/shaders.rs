//! Every shader variant that planners make, for devices of several kinds, linked and validated by naga: none of
//! it needs a GPU.

use std::collections::HashMap;

use flashwave::capabilities::ParamsTier;
use flashwave::context::ShaderChecks;
use flashwave::shader::{Access, Binding, bindings, kernels, link};
use flashwave::spirv::{compile, instructions};
use flashwave::{Capabilities, Launch};
use kernels_tests::cases::FAMILIES;
use kernels_tests::devices::{kinds, reported};
use naga::Module;
use naga::valid::{Capabilities as Valid, ModuleInfo, ValidationFlags, Validator};

/// Launches by the text of their recipe: one of each variant.
fn variants(caps: &Capabilities) -> HashMap<String, Launch> {
    FAMILIES
        .iter()
        .flat_map(|f| (f.launches)(caps))
        .map(|l| (l.recipe.to_string(), l))
        .collect()
}

/// What naga may admit on such a device.
fn admitted(caps: &Capabilities) -> Valid {
    // pack2x16float and its inverse need no type f16.
    let mut admitted = Valid::IMMEDIATES | Valid::SUBGROUP | Valid::SHADER_FLOAT16_IN_FLOAT32;
    admitted.set(Valid::SHADER_FLOAT16, caps.shader_f16);
    admitted.set(Valid::COOPERATIVE_MATRIX, !caps.cooperative.is_empty());
    admitted.set(Valid::SUBGROUP_BARRIER, caps.spirv);
    admitted
}

/// What a variant asks of a device.
#[derive(Clone, Copy)]
struct Asks {
    /// Bytes of the type `Params`.
    params: usize,
    invocations: u32,
    workgroup_bytes: u32,
}

/// Devices share most variants: each is linked, validated and written in every dialect once.
#[derive(Default)]
struct Reader {
    read: HashMap<(String, ParamsTier, u64), Asks>,
    refused: Vec<String>,
}

impl Reader {
    fn read(&mut self, label: &str, launch: &Launch, caps: &Capabilities) -> Asks {
        let recipe = launch.recipe.to_string();
        let key = (recipe, caps.params_tier(), admitted(caps).bits());
        if let Some(asks) = self.read.get(&key) {
            return *asks;
        }
        let wgsl =
            link(&launch.recipe, caps.params_tier()).unwrap_or_else(|e| panic!("{label}: {e}"));
        let (asks, module, info) = parse(&wgsl, caps, label);
        // Cooperative matrices are for Vulkan, which takes SPIR-V; wgpu has no f16 on OpenGL.
        if !wgsl.contains("enable wgpu_cooperative_matrix;")
            && let Err(error) = write(&module, &info, !wgsl.contains("enable f16;"))
        {
            self.refused.push(format!("{label}: {error}"));
        }
        self.read.insert(key, asks);
        asks
    }
}

fn parse(wgsl: &str, caps: &Capabilities, label: &str) -> (Asks, Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(wgsl)
        .unwrap_or_else(|e| panic!("{label}\n{}", e.emit_to_string(wgsl)));
    let mut validator = Validator::new(ValidationFlags::all(), admitted(caps));
    let info = validator
        .validate(&module)
        .unwrap_or_else(|e| panic!("{label}\n{}", e.emit_to_string(wgsl)));
    assert_eq!(module.entry_points.len(), 1, "{label}");
    assert_eq!(module.entry_points[0].name, "main", "{label}");
    assert_eq!(
        bindings(wgsl),
        reflected(&module),
        "{label}: bindings as naga sees them"
    );
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).expect("layout");
    let shared = module
        .global_variables
        .iter()
        .filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
    let parameters = module
        .types
        .iter()
        .find(|(_, t)| t.name.as_deref() == Some("Params"));
    let (ty, _) = parameters.unwrap_or_else(|| panic!("{label}: no Params"));
    let asks = Asks {
        params: layouter[ty].size as usize,
        invocations: module.entry_points[0].workgroup_size.iter().product(),
        workgroup_bytes: shared
            .map(|(_, v)| layouter[v.ty].size.next_multiple_of(16))
            .sum(),
    };
    (asks, module, info)
}

/// Of what planners make for reported devices, this many variants a shader are read.
const SAMPLE: usize = 12;

#[test]
fn every_variant_is_valid_and_within_the_devices_limits() {
    let mut reader = Reader::default();
    let all = kinds().into_iter().map(|caps| (caps, usize::MAX));
    let some = reported().into_iter().map(|caps| (caps, SAMPLE));
    for (caps, most) in all.chain(some) {
        let mut found: Vec<_> = variants(&caps).into_iter().collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        assert!(!found.is_empty());
        let mut seen: HashMap<String, usize> = HashMap::new();
        for (recipe, launch) in &found {
            let seen = seen.entry(launch.recipe.shader().to_string()).or_default();
            *seen += 1;
            if *seen > most {
                continue;
            }
            let label = format!("{recipe} on {}", caps.name);
            let asks = reader.read(&label, launch, &caps);
            let (invocations, bytes) = (asks.invocations, asks.workgroup_bytes);
            assert!(invocations <= caps.invocations, "{label}: {invocations}");
            assert!(bytes <= caps.workgroup_bytes, "{label}: {bytes} bytes");
            let params = launch.params.as_bytes().len();
            assert_eq!(asks.params, params, "{label}: size of Params");
        }
    }
    let refused = reader.refused;
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

/// Writes what Direct3D 12, Metal and, if asked for, OpenGL would be given.
fn write(module: &Module, info: &ModuleInfo, gl: bool) -> Result<(), Box<dyn std::error::Error>> {
    use naga::back::{glsl, hlsl, msl};
    let stage = naga::ShaderStage::Compute;
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_2,
        immediates_target: Some(hlsl::BindTarget::default()),
        ..Default::default()
    };
    let mut text = String::new();
    let entry = hlsl::PipelineOptions {
        entry_point: Some((stage, "main".into())),
    };
    hlsl::Writer::new(&mut text, &options, &entry).write(module, info, None)?;

    let options = msl::Options {
        lang_version: (2, 4),
        ..Default::default()
    };
    msl::write_string(module, info, &options, &msl::PipelineOptions::default())?;

    if !gl {
        return Ok(());
    }
    let options = glsl::Options {
        version: glsl::Version::Desktop(460),
        ..Default::default()
    };
    let entry = glsl::PipelineOptions {
        shader_stage: stage,
        entry_point: "main".into(),
        multiview: None,
    };
    let mut text = String::new();
    let policies = naga::proc::BoundsCheckPolicies::default();
    glsl::Writer::new(&mut text, module, info, &options, &entry, policies)?.write()?;
    Ok(())
}

fn reflected(module: &Module) -> Vec<Binding> {
    let mut found: Vec<Binding> = module
        .global_variables
        .iter()
        .filter_map(|(_, v)| {
            let access = match v.space {
                naga::AddressSpace::Uniform => Access::Uniform,
                naga::AddressSpace::Storage { access }
                    if access.contains(naga::StorageAccess::STORE) =>
                {
                    Access::ReadWrite
                }
                naga::AddressSpace::Storage { .. } => Access::Read,
                _ => return None,
            };
            let binding = v.binding.as_ref()?;
            Some(Binding {
                index: binding.binding,
                name: v.name.clone()?,
                access,
            })
        })
        .collect();
    found.sort_by_key(|b| b.index);
    found
}

#[test]
fn every_shader_is_planned_by_some_family() {
    let mut planned: Vec<String> = kinds()
        .iter()
        .flat_map(variants)
        .map(|(_, l)| l.recipe.shader().to_string())
        .collect();
    planned.sort();
    planned.dedup();
    assert_eq!(planned, kernels());
}

#[test]
fn uniform_parameters_take_the_place_of_immediates() {
    let caps = &kinds()[1];
    let (_, launch) = variants(caps).into_iter().next().expect("a variant");
    let uniform = link(&launch.recipe, ParamsTier::Uniform).expect("links");
    assert_eq!(bindings(&uniform)[0].access, Access::Uniform);
}

/// Software drivers run a part of the variants; these only meet a compiler here.
#[test]
fn cooperative_variants_become_spirv() {
    let caps = kinds().pop().expect("the large card");
    let mut written = 0;
    for (label, launch) in variants(&caps) {
        let wgsl =
            link(&launch.recipe, caps.params_tier()).unwrap_or_else(|e| panic!("{label}: {e}"));
        if !wgsl.contains("enable wgpu_cooperative_matrix;") {
            continue;
        }
        for checks in [ShaderChecks::Off, ShaderChecks::On] {
            let words =
                compile(&wgsl, &bindings(&wgsl), checks).unwrap_or_else(|e| panic!("{label}: {e}"));
            let wide = launch.recipe.constant("LOADS") == Some("wide".into());
            hold_to_the_rules(&words, wide).unwrap_or_else(|e| panic!("{label}: {e}"));
        }
        written += 1;
    }
    assert!(written > 0);
}

/// What the SPIR-V specification asks of the parts that are changed after naga wrote them: identifiers are below the
/// bound, defined once, types before their use; no two types are the same; the factors of products are f16 or
/// int8; barriers that order anything name a storage class that Vulkan has.
fn hold_to_the_rules(words: &[u32], wide: bool) -> Result<(), String> {
    const TYPES: std::ops::RangeInclusive<u32> = 19..=39;
    const TYPE_INT: u32 = 21;
    const TYPE_FLOAT: u32 = 22;
    const TYPE_MATRIX: u32 = 4456;
    const LOAD: u32 = 4457;
    const FUNCTION_PARAMETER: u32 = 55;
    const VARIABLE_LOAD: u32 = 61;
    const MULTIPLY_ADD: u32 = 4459;
    let (mut types, mut defined) = (HashMap::new(), HashMap::new());
    let (mut constants, mut products) = (HashMap::new(), 0);
    let bound = words[3];
    let mut define = |id: u32, what: Vec<u32>| {
        if id >= bound || defined.insert(id, what).is_some() {
            return Err(format!("%{id} twice or beyond {bound}"));
        }
        Ok(())
    };
    let mut result_types = HashMap::new();
    for i in instructions(words)? {
        let op = i[0] & 0xffff;
        match op {
            43 => {
                constants.insert(i[2], i[3]);
                define(i[2], Vec::new())?;
            }
            224 => {
                let semantics = constants.get(&i[3]).copied().unwrap_or(0);
                if semantics & 0xe != 0 && semantics & 0x948 == 0 {
                    return Err(format!("a barrier of semantics {semantics:#x}"));
                }
            }
            // Loaded, or, where elements are reached, handed to the function that multiplies.
            LOAD | FUNCTION_PARAMETER | VARIABLE_LOAD => {
                result_types.insert(i[2], i[1]);
            }
            MULTIPLY_ADD => {
                products += 1;
                for operand in [i[3], i[4]] {
                    let ty = result_types
                        .get(&operand)
                        .ok_or("a factor that was not loaded")?;
                    let matrix: &Vec<u32> = types.get(ty).ok_or("a factor's type is unknown")?;
                    let element = types
                        .get(&matrix[1])
                        .ok_or("an element's type is unknown")?;
                    let known = [&[TYPE_FLOAT, 16][..], &[TYPE_INT, 8, 1]];
                    if wide && !known.contains(&&element[..]) {
                        return Err(format!("a factor of {element:?}"));
                    }
                    // Of signed factors, and nothing else, the product says so.
                    if (element[0] == TYPE_INT) != (i.get(6) == Some(&0xf)) {
                        return Err(format!(
                            "a product of {element:?} of operands {:?}",
                            i.get(6)
                        ));
                    }
                }
            }
            _ => {}
        }
        if TYPES.contains(&op) || op == TYPE_MATRIX {
            let body: Vec<u32> = std::iter::once(op).chain(i[2..].iter().copied()).collect();
            if op == TYPE_MATRIX && !types.contains_key(&i[2]) {
                return Err(format!("the elements of %{} are defined after it", i[1]));
            }
            // Structures and arrays may be alike and yet differ by their decorations.
            if ![28, 29, 30, 32].contains(&op) && types.values().any(|t| *t == body) {
                return Err(format!("type {body:?} twice"));
            }
            define(i[1], body.clone())?;
            types.insert(i[1], body);
        }
    }
    if products == 0 {
        Err("no product".into())
    } else {
        Ok(())
    }
}
