// wgpu knows no subgroups in a browser, though browsers have them: devices are made to require them here.

/** Whether devices have subgroups from now on: those of an adapter that has them. */
export async function requireSubgroups() {
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter?.features.has("subgroups")) return false;
  const request = GPUAdapter.prototype.requestDevice;
  GPUAdapter.prototype.requestDevice = function (descriptor) {
    const requiredFeatures = [...(descriptor?.requiredFeatures ?? []), "subgroups"];
    return request.call(this, { ...descriptor, requiredFeatures });
  };
  return true;
}
