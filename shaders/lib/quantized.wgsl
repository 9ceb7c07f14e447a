<#
What the products of 8-bit operands (shaders/gemm8) have around the product itself.

  out[m, n] = F(s_b[n] (s_a[m] sum_k (a[m, k] - z_a[m]) (b[n, k] - z_b[n]) + apart[m, n]) + bias[n]) + residual[m, n]

where a and b are codes, s scales, z zero points (int8 alone). The sum over k comes as it is; zero points are taken out
here, by sums[m] = sum_k a[m, k] and the like, which stand beside them.

  ${ quantized.params(PARAMS) }         struct Params and the variable `p`
  ${ quantized.surroundings(OUT, …) }   bindings 3 to 9: out, bias, residual, scales, zero points with sums
  ${ quantized.finish(SUMS, …) }        fn finish(row, col, sum, apart): stores four columns of a row; sum of SUMS, i32 or f32
Scales are f32: of the group `row / per` and `k / group`, `row_stride` apart along rows (0: one for all).
#>
#import "lib/tensor.wgsl" as t
#import "lib/product.wgsl" as product

#macro params(tier)
struct Params {
    m: u32,
    n: u32,
    k: u32,
    tiles_m: u32,
    tiles_n: u32,
    a_offset: u32,
    a_stride: u32,
    b_offset: u32,
    b_stride: u32,
    out_offset: u32,
    out_stride: u32,
    residual_offset: u32,
    residual_stride: u32,
    bias_offset: u32,
    a_scale_offset: u32,
    a_scale_stride: u32,
    a_scale_rows: u32,
    b_scale_offset: u32,
    b_scale_stride: u32,
    b_scale_rows: u32,
    a_zero_offset: u32,
    b_zero_offset: u32,
    group: u32,
    outlier_stride: u32,
}
${ t.params(tier) }
#endmacro

#macro surroundings(out, out_vec, bias, residual, a_scales, b_scales, zeros)
#if out == "i32"
${ t.words(3, "out", "i32", "read_write") }
#else
${ product.surroundings(out, out_vec, bias, residual) }
#endif
#for x in ["a", "b"]
#if (a_scales if x == "a" else b_scales) != "none"
${ t.words(6 + loop.index0, x ~ "_scales", "f32") }
fn scale_${x}(row: u32, group: u32) -> f32 {
    return ${x}_scales[p.${x}_scale_offset + row / p.${x}_scale_rows * p.${x}_scale_stride + group];
}
#endif
#if zeros == 1
// Zero point of each row, and the sum of its codes.
${ t.words(8 + loop.index0, x ~ "_zeros", "i32") }
fn zero_${x}(row: u32) -> vec2<i32> {
    let at = p.${x}_zero_offset + 2u * row;
    return vec2<i32>(${x}_zeros[at], ${x}_zeros[at + 1u]);
}
#endif
#endfor
#endmacro

<# Scales that are "groups" have been applied to the sum. #>
#macro finish(sums, edges, out, bias, residual, a_scales, b_scales, zeros, apart, factor)
fn finish(row: u32, col: u32, product: vec4<${sums}>, apart: vec4<f32>) {
    #if edges == "none"
    let n = 4u;
    #else
    if row >= p.m || col >= p.n { return; }
    let n = min(p.n - col, 4u);
    #endif
    var sum = product;
    #if zeros == 1
    let za = zero_a(row);
    #for i in range(4)
    let zb${i} = zero_b(min(col + ${i}u, p.n - 1u));
    sum[${i}] += za.x * (i32(p.k) * zb${i}.x - zb${i}.y) - zb${i}.x * za.y;
    #endfor
    #endif
    #if out == "i32"
    let at = p.out_offset + row * p.out_stride + col;
    for (var i = 0u; i < n; i += 1u) { out[at + i] = sum[i]; }
    #else
    var y = vec4<f32>(sum)${factor};
    #if a_scales == "rows"
    y *= scale_a(row, 0u);
    #endif
    #if apart == 1
    y += apart;
    #endif
    #if b_scales == "rows"
    y *= vec4<f32>(
        #for i in range(4)
        scale_b(min(col + ${i}u, p.n - 1u), 0u),
        #endfor
    );
    #endif
    #if bias != "none"
    y += load_some_bias(p.bias_offset + col, n);
    #endif
    y = activate4(y);
    let at = p.out_offset + row * p.out_stride + col;
    #if residual == "inout"
    y += load_some_out(at, n);
    #elif residual != "none"
    y += load_some_residual(p.residual_offset + row * p.residual_stride + col, n);
    #endif
    store_some_out(at, n, y);
    #endif
}
#endmacro
