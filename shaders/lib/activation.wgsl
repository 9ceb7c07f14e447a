<#
Activations: `activate4` applies the one named to four values; kernels fuse it into their epilogues.

GELU with tanh is x * sigmoid(2u), the same as 0.5 x (1 + tanh u) without its cancellation for negative x.
GELU with erf is x * erfc(-x / sqrt 2) / 2 with erfc by Numerical Recipes' Chebyshev fit (relative error
below 1.2e-7 for every argument), so that the negative tail keeps its digits too.
#>
#macro functions(name)
#if name == "none"
fn activate4(x: vec4<f32>) -> vec4<f32> { return x; }
#elif name == "relu"
fn activate4(x: vec4<f32>) -> vec4<f32> { return max(x, vec4<f32>()); }
#elif name == "silu"
fn activate4(x: vec4<f32>) -> vec4<f32> { return x / (1.0 + exp(-x)); }
#elif name == "gelu_tanh"
fn activate4(x: vec4<f32>) -> vec4<f32> {
    let u = x * (1.5957691216057308 + 0.07135481282553175 * x * x);
    return x / (1.0 + exp(-u));
}
#elif name == "gelu_erf"
fn activate4(x: vec4<f32>) -> vec4<f32> {
    let z = abs(x) * 0.7071067811865476;
    let s = 1.0 / (1.0 + 0.5 * z);
    let poly = -1.26551223 + s * (1.00002368 + s * (0.37409196 + s * (0.09678418 + s * (-0.18628806
        + s * (0.27886807 + s * (-1.13520398 + s * (1.48851587 + s * (-0.82215223 + s * 0.17087277))))))));
    // A square rounds: its error, times the square's size, would be exp's. Split, it does not.
    let high = bitcast<vec4<f32>>(bitcast<vec4<u32>>(z) & vec4<u32>(0xfffff000u));
    let tail = s * exp(-high * high) * exp((high - z) * (high + z) + poly);
    return 0.5 * x * select(tail, 2.0 - tail, x > vec4<f32>());
}
#endif
#endmacro
