// Second pass of monarch.wgsl with FOLD > 1: y = w * (the inverse transform over the FOLD parts that its workgroups left).
//
// parts: [rows of this dispatch][kappa][256 R] complex numbers of f16, over scales[row][kappa]; twisted already, so that
// y[n0][n] = the real part of the sum over kappa, KEPT of them, of e^(2 pi i n0 (kappa - 1/4) / FOLD) parts[kappa][n]. w, y: [batch, channels, length] f16.
//
// An invocation has four neighbouring n, and all n0 of them.
#import "lib/tensor.wgsl" as t
#set INNER = 256 * R
struct Params {
    w_offset: u32,
    w_batch: u32,
    w_channel: u32,
    y_offset: u32,
    y_batch: u32,
    y_channel: u32,
    length: u32,
    batch: u32,
    workgroups: u32,
    first_channel: u32,
    first_row: u32,
}
${ t.params(PARAMS) }
#if GATE_OUT
${ t.words(1, "w", "vec2<u32>") }
#endif
${ t.words(2, "parts", "vec4<u32>") }
${ t.words(3, "scales", "f32") }
${ t.words(4, "y", "vec2<u32>", "read_write") }

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let id = workgroup.y * grid.x + workgroup.x;
    if id >= p.workgroups { return; }
    let row = id / ${INNER // 512}u;
    let at = id % ${INNER // 512}u * 128u + index;
    let batch = p.first_row + row % p.batch;
    let channel = p.first_channel + row / p.batch;
    // Vectors of eight elements there, of four here.
    #if GATE_OUT
    let w_at = 2u * (p.w_offset + batch * p.w_batch + channel * p.w_channel) + at;
    #endif
    let y_at = 2u * (p.y_offset + batch * p.y_batch + channel * p.y_channel) + at;
    #for k in range(KEPT)
    let scale${k} = scales[row * ${FOLD}u + ${k}u];
    let words${k} = parts[row * ${FOLD * INNER // 4}u + ${k * INNER // 4}u + at];
    #for i in range(4)
    let z${k}_${i} = unpack2x16float(words${k}[${i}]) * scale${k};
    #endfor
    #endfor
    #for n in range(FOLD)
    ${"if 4u * at + " ~ n * INNER ~ "u < p.length" if RAGGED else ""} {
        var sum: vec4<f32>;
        #for i in range(4)
        sum[${i}] =
            #for k in range(KEPT)
            ${"+" if k else ""} z${k}_${i}.x * ${cos_turn(n * (4 * k - 1), 4 * FOLD)} - z${k}_${i}.y * ${sin_turn(n * (4 * k - 1), 4 * FOLD)}
            #endfor
            ;
        #endfor
        #if GATE_OUT
        let gate = w[w_at + ${n * INNER // 4}u];
        sum *= vec4<f32>(unpack2x16float(gate.x), unpack2x16float(gate.y));
        #endif
        y[y_at + ${n * INNER // 4}u] = vec2<u32>(pack2x16float(sum.xy), pack2x16float(sum.zw));
    }
    #endfor
}
