//! What Vulkan says of an adapter and wgpu does not pass on.

/// Whether it lists cooperative matrices of 16 x 16 x 32, int8 into i32, for subgroups.
#[cfg(any(target_os = "linux", target_os = "android", windows))]
pub(crate) fn multiplies_int8(adapter: &wgpu::Adapter) -> bool {
    use ash::vk;
    // SAFETY: the adapter is not destroyed while it is borrowed.
    let Some(raw) = (unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }) else {
        return false;
    };
    let instance = raw.shared_instance();
    let matrices =
        ash::khr::cooperative_matrix::Instance::new(instance.entry(), instance.raw_instance());
    // SAFETY: the adapter has the extension: callers ask where wgpu offers the feature that needs it.
    let listed = unsafe {
        matrices.get_physical_device_cooperative_matrix_properties(raw.raw_physical_device())
    };
    let (byte, word) = (vk::ComponentTypeKHR::SINT8, vk::ComponentTypeKHR::SINT32);
    let found = |p: &vk::CooperativeMatrixPropertiesKHR<'_>| {
        [p.m_size, p.n_size, p.k_size] == [16, 16, 32]
            && [p.a_type, p.b_type] == [byte; 2]
            && [p.c_type, p.result_type] == [word; 2]
            && p.saturating_accumulation == vk::FALSE
            && p.scope == vk::ScopeKHR::SUBGROUP
    };
    listed.is_ok_and(|listed| listed.iter().any(found))
}

/// Without Vulkan none.
#[cfg(not(any(target_os = "linux", target_os = "android", windows)))]
pub(crate) fn multiplies_int8(_: &wgpu::Adapter) -> bool {
    false
}
