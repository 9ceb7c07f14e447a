// Last pass of a convolution too long for a workgroup: the inverse over the columns that columns_forward.wgsl made and
// rows.wgsl convolved, and y = w * result. Layout and parallelisation: columns_forward.wgsl.
#import "lib/tensor.wgsl" as t
#import "lib/complex.wgsl" as complex
#import "lib/fft.wgsl" as fft
#import "lib/conv.wgsl" as conv
#set plan = {"points": N, "steps": fft_steps([R1, R2, R3, R4, R5]), "each": E, "vec": VEC, "planes": PLANES, "pad": PAD,
             "columns": COLUMNS, "spread": SPREAD, "inverse_at": INVERSE, "swaps": [0, S2, S3, S4, 0]}
#set ROWS = N // COLUMNS
#set POINTS = ROWS * SPREAD

struct Params {
    ${ conv.params() }
    first_channel: u32,
    first: u32,
    transforms: u32,
    workgroups: u32,
    skip_offset: u32,
    skip_channel: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ complex.functions() }
${ t.words(1, "scratch", "vec2<f32>") }
#if GATE_OUT != "none"
${ t.input(2, "w", GATE_OUT, VEC) }
#endif
${ t.words(3, "twiddles", "vec2<f32>") }
${ t.output(5, "y", Y, VEC) }
${ fft.memory(plan, 1) }
${ conv.store(BOUNDARY, GATE_OUT, VEC, RAGGED, POINTS) }

@compute @workgroup_size(${N // E})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = workgroup.y * grid.x + workgroup.x;
    if id >= p.workgroups { return; }
    let column = id % ${SPREAD // COLUMNS}u * ${COLUMNS}u;
    let transform = id / ${SPREAD // COLUMNS}u;
    let channel = p.first_channel + transform / p.transforms;
    let q = p.first + transform % p.transforms;
    let start = lane * ${VEC}u;
    let side = 0u;
    ${ fft.registers(plan) }
    let source = transform * ${POINTS}u + column;
    #for j in range(E)
    {
        let place = ${fft.place(plan, j)};
        let row = place / ${COLUMNS}u;
        x${j} = scratch[source + row * ${SPREAD}u + place % ${COLUMNS}u];
    }
    #endfor
    ${ fft.inverse(plan) }
    ${ conv.results(plan, BOUNDARY, VEC, TWIST) }
}
