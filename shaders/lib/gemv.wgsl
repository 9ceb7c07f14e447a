<#
What kernels that stream weights share.

  ${ gemv.params() }          fields of Params, as src/kernels/gemv.rs has them
  ${ gemv.finish(M, ROWS, WG, GATED, NORMED, BIAS, RESIDUAL) }   the sums of ROWS columns for M rows, in workgroup memory as
                              results[gate or up][row of x][column] (and squares[row], sums of x^2), finished and stored, four
                              neighbours at a time, as 16-bit elements need; from row m0 and column n0 on.
#>
#macro params()
rows: u32,
n: u32,
k: u32,
x_offset: u32,
x_stride: u32,
w_offset: u32,
w_stride: u32,
y_offset: u32,
y_stride: u32,
bias_offset: u32,
residual_offset: u32,
residual_stride: u32,
norm_offset: u32,
eps: f32,
#endmacro

#macro finish(m_rows, rows, wg, gated, normed, bias, residual)
for (var i = lane; i < ${m_rows * rows // 4}u; i += ${wg}u) {
    let m = i / ${rows // 4}u;
    let col = (i % ${rows // 4}u) * 4u;
    let row = m0 + m;
    if row >= p.rows || n0 + col >= p.n { continue; }
    let n = min(p.n - n0 - col, 4u);
    let at_sum = m * ${rows}u + col;
    var y = vec4<f32>(results[at_sum], results[at_sum + 1u], results[at_sum + 2u], results[at_sum + 3u]);
    #if gated == 1
    let at_up = at_sum + ${m_rows * rows}u;
    var up = vec4<f32>(results[at_up], results[at_up + 1u], results[at_up + 2u], results[at_up + 3u]);
    #endif
    #if normed
    let scale = inverseSqrt(squares[m] / f32(p.k) + p.eps);
    y *= scale;
    #if gated == 1
    up *= scale;
    #endif
    #endif
    #if bias != "none"
    y += load_some_bias(p.bias_offset + n0 + col, n);
    #endif
    y = activate4(y);
    #if gated == 1
    y *= up;
    #endif
    let at = p.y_offset + row * p.y_stride + n0 + col;
    #if residual == "inout"
    y += load_some_y(at, n);
    #elif residual != "none"
    y += load_some_residual(p.residual_offset + row * p.residual_stride + n0 + col, n);
    #endif
    store_some_y(at, n, y);
}
#endmacro
