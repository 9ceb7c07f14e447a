<#
What all kernels of matrix products have around the product itself.

  ${ product.params(PARAMS) }                  struct Params and the variable `p`
  ${ product.surroundings(OUT, OUT_VEC, BIAS, RESIDUAL) }   bindings 3 to 5: out, bias, residual
  ${ product.finish(EDGES, GATED, BIAS, RESIDUAL) }     fn finish(row, col, batch, sum, up): stores four columns of a row of the result
  ${ product.tile(GROUP, BM, BN) }             in main: `m0`, `n0`, `batch` of workgroup `tile`
#>
#import "lib/tensor.wgsl" as t

#macro params(tier)
struct Params {
    m: u32,
    n: u32,
    k: u32,
    tiles_m: u32,
    tiles_n: u32,
    a_offset: u32,
    a_stride: u32,
    a_batch: u32,
    b_offset: u32,
    b_stride: u32,
    b_batch: u32,
    out_offset: u32,
    out_stride: u32,
    out_batch: u32,
    residual_offset: u32,
    residual_stride: u32,
    residual_batch: u32,
    bias_offset: u32,
    alpha: f32,
}
${ t.params(tier) }
#endmacro

#macro surroundings(out, out_vec, bias, residual)
#if residual == "inout"
${ t.inout(3, "out", out, out_vec) }
#else
${ t.output(3, "out", out, out_vec) }
#endif
#if bias != "none"
${ t.input(4, "bias", bias, out_vec) }
#endif
#if residual != "none" and residual != "inout"
${ t.input(5, "residual", residual, out_vec) }
#endif
#endmacro

#macro finish(edges, gated, bias, residual)
fn finish(row: u32, col: u32, batch: u32, sum: vec4<f32>, up: vec4<f32>) {
    #if edges == "none"
    let n = 4u;
    #else
    if row >= p.m || col >= p.n { return; }
    let n = min(p.n - col, 4u);
    #endif
    #if gated == 1
    var y = activate4(p.alpha * sum) * (p.alpha * up);
    #else
    var y = p.alpha * sum;
    #if bias != "none"
    y += load_some_bias(p.bias_offset + col, n);
    #endif
    y = activate4(y);
    #endif
    let at = p.out_offset + batch * p.out_batch + row * p.out_stride + col;
    #if residual == "inout"
    y += load_some_out(at, n);
    #elif residual != "none"
    y += load_some_residual(p.residual_offset + batch * p.residual_batch + row * p.residual_stride + col, n);
    #endif
    store_some_out(at, n, y);
}
#endmacro

<# Tiles are numbered down columns of `rows` rows, so that those in flight together share their operands. #>
#macro tile(rows, bm, bn)
    let tile = workgroup.y * grid.x + workgroup.x;
    if tile >= p.tiles_m * p.tiles_n { return; }
    let group = tile / (${rows}u * p.tiles_n);
    let rows = min(p.tiles_m - group * ${rows}u, ${rows}u);
    let in_group = tile - group * ${rows}u * p.tiles_n;
    let m0 = (group * ${rows}u + in_group % rows) * ${bm}u;
    let n0 = (in_group / rows) * ${bn}u;
    let batch = workgroup.z;
#endmacro
