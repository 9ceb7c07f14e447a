<#
Activations: `activate4` applies the one named to four values; kernels fuse it into their epilogues.

GELU with tanh is x * sigmoid(2u), the same as 0.5 x (1 + tanh u) without its cancellation for negative x.
GELU with erf is max(x, 0) - |x| * h with h = erfc(|x| / sqrt 2) / 2, so that the negative tail keeps its digits
too: h = exp2(-x^2 log2(e) / 2) * s * P(s) with s = 1 / (1 + c |x|), P of degree 7 (minimax, fitted here; relative
error below 1.6e-7 up to |x| = 13, where h leaves f32). The exponent's roundings are within what WGSL grants exp2
itself, so splitting x^2, or a second exponential, would buy nothing.

Dropped: Numerical Recipes' fit in the exponent: degree 9 and two exponentials for 1.2e-7. Degree 6 has 5.8e-7.
#>
#macro functions(name)
#if name == "none"
fn activate4(x: vec4<f32>) -> vec4<f32> { return x; }
#elif name == "relu"
fn activate4(x: vec4<f32>) -> vec4<f32> { return max(x, vec4<f32>()); }
#elif name == "relu_squared"
fn activate4(x: vec4<f32>) -> vec4<f32> { return max(x, vec4<f32>()) * max(x, vec4<f32>()); }
#elif name == "silu"
fn activate4(x: vec4<f32>) -> vec4<f32> { return x / (1.0 + exp(-x)); }
#elif name == "gelu_tanh"
fn activate4(x: vec4<f32>) -> vec4<f32> {
    let u = x * (1.5957691216057308 + 0.07135481282553175 * x * x);
    return x / (1.0 + exp(-u));
}
#elif name == "gelu_erf"
fn activate4(x: vec4<f32>) -> vec4<f32> {
    let a = abs(x);
    let s = 1.0 / (1.0 + 0.3026417 * a);
    let poly = 0.1206871 + s * (0.12172672 + s * (0.1013403 + s * (0.12603008 + s * (-0.048204014
        + s * (0.1987111 + s * (-0.1570054 + s * 0.036714095))))));
    return max(x, vec4<f32>()) - a * (s * poly * exp2(-0.72134752 * x * x));
}
#endif
#endmacro
