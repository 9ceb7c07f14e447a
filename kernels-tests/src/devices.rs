//! Devices as data, for tests of planners and shaders that need no GPU.

use flashwave::Capabilities;
use flashwave::capabilities::{CooperativeShape, DeviceClass, SubgroupSizes};

/// Devices that stand for many: WebGPU's default limits, subgroups of every size, a large card.
pub fn kinds() -> Vec<Capabilities> {
    let with_subgroups = |min, max| Capabilities {
        name: format!("subgroups {min} to {max}"),
        subgroups: Some(SubgroupSizes { min, max }),
        immediate_bytes: 256,
        ..Capabilities::webgpu_default()
    };
    vec![
        Capabilities::webgpu_default(),
        with_subgroups(4, 4),
        with_subgroups(8, 8),
        with_subgroups(8, 32),
        with_subgroups(64, 128),
        large_card(),
    ]
}

/// A card with matrix units: an NVIDIA H100 as wgpu 30 reports it (driver 580.159), of which `flashwave info` was read.
pub fn large_card() -> Capabilities {
    Capabilities {
        name: "a large card".into(),
        class: DeviceClass::Discrete,
        spirv: true,
        matrix_elements: true,
        matrix_int8: true,
        cooperative: vec![CooperativeShape::F16],
        ..vulkan([32, 32], 48 << 10, 2 << 30)
    }
}

/// Devices of users, by what public reports say of their drivers. wgpu passes these limits on.
pub fn reported() -> Vec<Capabilities> {
    vec![
        // Subgroups: vulkaninfo in ValveSoftware/gamescope issue 361 (anv); range of bindings: doitsujin/dxvk issue
        // 1059; workgroup memory: the 32 KiB that every report but two kinds has in gpuweb issue 2832.
        Capabilities {
            name: "Intel UHD Graphics 620".into(),
            class: DeviceClass::Integrated,
            immediate_bytes: 128,
            ..vulkan([8, 32], 32 << 10, 1 << 30)
        },
        // wgpu pull request 2608 (32 KiB of threadgroup memory on an M1), MoltenVK's report in wgpu issue 5551 (1024
        // invocations). wgpu offers no passthrough of SPIR-V there.
        Capabilities {
            name: "Apple M1".into(),
            backend: "metal".into(),
            class: DeviceClass::Integrated,
            immediate_bytes: 4096,
            ..vulkan([4, 64], 32 << 10, 1 << 30)
        },
        // Subgroups: vulkaninfo in termux-packages pull request 7165; range of bindings: a report of Adreno 702 in
        // meta-flutter/workspace-automation issue 150.
        Capabilities {
            name: "Adreno 650".into(),
            class: DeviceClass::Integrated,
            immediate_bytes: 256,
            ..vulkan([64, 128], 32 << 10, 128 << 20)
        },
        // The one kind of phone with 16 KiB in gpuweb issue 2832.
        Capabilities {
            name: "Adreno 610".into(),
            class: DeviceClass::Integrated,
            immediate_bytes: 128,
            ..vulkan([64, 128], 16 << 10, 128 << 20)
        },
        // 512 invocations: the phone of gpuweb pull request 1898; subgroups of 16 lanes and no f16 suppose a Mali of the
        // Valhall generation (Arm's Mali best practices give the warp width).
        Capabilities {
            name: "Mali, 512 invocations".into(),
            class: DeviceClass::Integrated,
            immediate_bytes: 128,
            invocations: 512,
            shader_f16: false,
            ..vulkan([16, 16], 32 << 10, 256 << 20)
        },
        // vulkaninfo in Vulkan-Tools pull request 106 and doitsujin/dxvk issue 267: 48 KiB, 256 bytes of immediates, wgpu
        // cuts bindings at 2 GiB; without the matrix units of newer cards.
        Capabilities {
            name: "GeForce GTX 1050 Ti".into(),
            class: DeviceClass::Discrete,
            shader_f16: false,
            ..vulkan([32, 32], 48 << 10, 2 << 30)
        },
        // The same limits, and the matrix units that NVIDIA's drivers offer from Turing on (iree pull request 3469).
        Capabilities {
            name: "GeForce RTX".into(),
            ..large_card()
        },
        // vulkaninfo in Kompute issue 275 (64 lanes, or 32 in some pipelines; 128 bytes of immediates) and the 64 KiB of
        // llama.cpp issue 17117.
        Capabilities {
            name: "Radeon RX 6500 XT".into(),
            class: DeviceClass::Discrete,
            immediate_bytes: 128,
            ..vulkan([32, 64], 64 << 10, 2 << 30)
        },
    ]
}

/// A Vulkan driver with f16, 1024 invocations and these subgroups, workgroup memory and largest binding.
fn vulkan(subgroups: [u32; 2], workgroup_bytes: u32, binding_bytes: u64) -> Capabilities {
    let [min, max] = subgroups;
    Capabilities {
        backend: "vulkan".into(),
        subgroups: Some(SubgroupSizes { min, max }),
        shader_f16: true,
        immediate_bytes: 256,
        invocations: 1024,
        workgroup_bytes,
        binding_bytes,
        buffer_bytes: 2 * binding_bytes,
        ..Capabilities::webgpu_default()
    }
}
