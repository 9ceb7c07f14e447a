// What transforms need between and around them, element by element. x and y: rows of complex or real elements, `cols` results a row.
//
//   chirp    y[j] = x[j] table[j], zero from `limit` on                       (Bluestein: into the padded sequence)
//   product  y[j] = x[j] table[j]                                             (… times the chirp's spectrum)
//   widen    y[j] = x[j] + 0 i, x real
//   real     y[j] = Re(x[j]), y real
//   copy     y[j] = x[j]
//   split    y[k] for k = 0 … h from x, the transform of h complex numbers that are 2 h real ones' pairs:
//              (x[k] + x*[h - k]) / 2 - i e^(-2 pi i k / 2 h) (x[k] - x*[h - k]) / 2, x[h] = x[0]; table[k] = e^(-2 pi i k / 2 h)
//   join     the inverse of split, times 2
//   mirror   y[k] = x[k] up to limit - 1, x*[cols - k] beyond
// All times `scale`.
#import "lib/tensor.wgsl" as t
#import "lib/complex.wgsl" as complex

struct Params {
    elements: u32,
    cols: u32,
    limit: u32,
    scale: f32,
    x_offset: u32,
    x_row: u32,
    x_point: u32,
    y_offset: u32,
    y_row: u32,
    y_point: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ complex.functions() }
${ t.input(1, "x", X) }
#if KIND in ["chirp", "product", "split", "join"]
${ t.words(2, "table", "vec2<f32>") }
#endif
${ t.output(3, "y", Y, 1 if KIND == "real" else 2) }

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (workgroup.y * grid.x + workgroup.x) * 256u + lane;
    if i >= p.elements { return; }
    let j = i % p.cols;
    let source = p.x_offset + i / p.cols * p.x_row;
    let target_at = p.y_offset + i / p.cols * p.y_row + j * p.y_point;
    #if KIND == "chirp"
    var value = vec2<f32>();
    if j < p.limit { value = times(load2_x(source + j * p.x_point), table[j]); }
    #elif KIND == "product"
    let value = times(load2_x(source + j * p.x_point), table[j]);
    #elif KIND == "widen"
    let value = vec2<f32>(load_x(source + j * p.x_point), 0.0);
    #elif KIND in ["real", "copy"]
    let value = load2_x(source + j * p.x_point);
    #elif KIND == "mirror"
    let inside = j < p.limit;
    let loaded = load2_x(source + select(p.cols - j, j, inside) * p.x_point);
    let value = select(conjugate(loaded), loaded, inside);
    #elif KIND == "split"
    let h = p.limit;
    let a = load2_x(source + j % h * p.x_point);
    let b = conjugate(load2_x(source + (h - j) % h * p.x_point));
    let odd = times(table[j], a - b);
    let value = 0.5 * (a + b + vec2<f32>(odd.y, -odd.x));
    #elif KIND == "join"
    var a = load2_x(source + j * p.x_point);
    var b = conjugate(load2_x(source + (p.limit - j) * p.x_point));
    if j == 0u {
        a.y = 0.0;
        b.y = 0.0;
    }
    let odd = times(conjugate(table[j]), a - b);
    let value = a + b + vec2<f32>(-odd.y, odd.x);
    #endif
    #if KIND == "real"
    store_y(target_at, value.x * p.scale);
    #else
    store2_y(target_at, value * p.scale);
    #endif
}
