//! Every shader variant that planners make, for devices of several kinds, linked and validated by naga: none of
//! it needs a GPU.

use std::collections::HashMap;

use flashwave::capabilities::{CooperativeShape, DeviceClass, ParamsTier, SubgroupSizes};
use flashwave::shader::{Access, Binding, bindings, kernels, link};
use flashwave::{Capabilities, Launch};
use kernels_tests::cases::FAMILIES;
use naga::valid::{Capabilities as Valid, ValidationFlags, Validator};

fn devices() -> Vec<Capabilities> {
    let portable = Capabilities::webgpu_default();
    let with_subgroups = |min, max| Capabilities {
        name: format!("subgroups {min} to {max}"),
        subgroups: Some(SubgroupSizes { min, max }),
        immediate_bytes: 256,
        ..Capabilities::webgpu_default()
    };
    let large = Capabilities {
        name: "a large card".into(),
        class: DeviceClass::Discrete,
        shader_f16: true,
        spirv: true,
        matrix_elements: true,
        workgroup_bytes: 48 << 10,
        invocations: 1024,
        binding_bytes: 2 << 30,
        buffer_bytes: 4 << 30,
        cooperative: vec![CooperativeShape {
            m: 16,
            n: 16,
            k: 16,
            f16_inputs: true,
            f32_accumulator: true,
        }],
        ..with_subgroups(32, 32)
    };
    vec![
        portable,
        with_subgroups(4, 4),
        with_subgroups(8, 8),
        with_subgroups(8, 32),
        with_subgroups(64, 128),
        large,
    ]
}

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
    admitted
}

fn parse(wgsl: &str, caps: &Capabilities, label: &str) -> (naga::Module, naga::valid::ModuleInfo) {
    let module = naga::front::wgsl::parse_str(wgsl)
        .unwrap_or_else(|e| panic!("{label}\n{}", e.emit_to_string(wgsl)));
    let mut validator = Validator::new(ValidationFlags::all(), admitted(caps));
    let info = validator
        .validate(&module)
        .unwrap_or_else(|e| panic!("{label}\n{}", e.emit_to_string(wgsl)));
    (module, info)
}

#[test]
fn every_variant_is_valid_and_within_the_devices_limits() {
    for caps in devices() {
        let found = variants(&caps);
        assert!(!found.is_empty());
        for (label, launch) in found {
            let label = format!("{label} on {}", caps.name);
            let wgsl =
                link(&launch.recipe, caps.params_tier()).unwrap_or_else(|e| panic!("{label}: {e}"));
            let (module, _) = parse(&wgsl, &caps, &label);
            assert_eq!(module.entry_points.len(), 1, "{label}");
            let entry = &module.entry_points[0];
            assert_eq!(entry.name, "main", "{label}");
            let invocations: u32 = entry.workgroup_size.iter().product();
            assert!(
                invocations <= caps.invocations,
                "{label}: {invocations} invocations"
            );
            let mut layouter = naga::proc::Layouter::default();
            layouter.update(module.to_ctx()).expect("layout");
            let shared = module
                .global_variables
                .iter()
                .filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
            let bytes: u32 = shared
                .map(|(_, v)| layouter[v.ty].size.next_multiple_of(16))
                .sum();
            assert!(
                bytes <= caps.workgroup_bytes,
                "{label}: {bytes} bytes of workgroup memory"
            );
            assert_eq!(
                bindings(&wgsl),
                reflected(&module),
                "{label}: bindings as naga sees them"
            );
            let parameters = module
                .types
                .iter()
                .find(|(_, t)| t.name.as_deref() == Some("Params"));
            let (ty, _) = parameters.unwrap_or_else(|| panic!("{label}: no Params"));
            assert_eq!(
                layouter[ty].size as usize,
                launch.params.as_bytes().len(),
                "{label}: size of Params"
            );
        }
    }
}

fn reflected(module: &naga::Module) -> Vec<Binding> {
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
    let mut planned: Vec<String> = devices()
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
    let caps = &devices()[1];
    let (_, launch) = variants(caps).into_iter().next().expect("a variant");
    let uniform = link(&launch.recipe, ParamsTier::Uniform).expect("links");
    assert_eq!(bindings(&uniform)[0].access, Access::Uniform);
}

/// Software drivers run every other variant; these only meet a compiler here.
#[test]
fn cooperative_variants_become_spirv() {
    let caps = devices().pop().expect("the large card");
    let mut written = 0;
    for (label, launch) in variants(&caps) {
        let wgsl =
            link(&launch.recipe, caps.params_tier()).unwrap_or_else(|e| panic!("{label}: {e}"));
        if !wgsl.contains("enable wgpu_cooperative_matrix;") {
            continue;
        }
        let (module, info) = parse(&wgsl, &caps, &label);
        let options = naga::back::spv::Options {
            lang_version: (1, 4),
            ..Default::default()
        };
        naga::back::spv::write_vec(&module, &info, &options, None)
            .unwrap_or_else(|e| panic!("{label}: {e}"));
        written += 1;
    }
    assert!(written > 0);
}
