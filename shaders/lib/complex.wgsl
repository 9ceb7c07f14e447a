<#
Complex numbers as vec2<f32>(re, im).

  ${ complex.functions() }     once a kernel
#>
#macro functions()
fn times(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return fma(vec2<f32>(-a.y, a.y), b.yx, a.xx * b);
}
// a + w b.
fn plus_times(a: vec2<f32>, w: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return fma(vec2<f32>(-w.y, w.y), b.yx, fma(w.xx, b, a));
}
// The real part of a b.
fn real_times(a: vec2<f32>, b: vec2<f32>) -> f32 { return fma(-a.y, b.y, a.x * b.x); }
fn conjugate(a: vec2<f32>) -> vec2<f32> { return vec2<f32>(a.x, -a.y); }
#endmacro
