// The spectrum of a convolution's filter, in the order in which fused.wgsl holds spectra in registers, times `scale`.
//
// taps: [channels, taps], adjacent along time, implied zeros to the transform's N points; SKIP adds skip[channel] to the first tap.
// spectrum: [channels][E / 2][N / E] pairs of complex numbers. Frequencies (k - 1/4) / N for PHASE quarter, k / N for none.
//
// A workgroup of N / E invocations a channel.
#import "lib/tensor.wgsl" as t
#import "lib/complex.wgsl" as complex
#import "lib/fft.wgsl" as fft
#set plan = {"points": N, "steps": fft_steps([R1, R2, R3, R4, R5]), "each": E, "vec": VEC, "planes": PLANES, "pad": PAD,
             "columns": 1, "spread": 1, "inverse_at": INVERSE, "swaps": [0, S2, S3, S4, 0]}

struct Params {
    taps: u32,
    channels: u32,
    scale: f32,
    taps_offset: u32,
    taps_channel: u32,
    skip_offset: u32,
    skip_channel: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ complex.functions() }
${ t.input(1, "taps", TAPS) }
#if SKIP != "none"
${ t.input(2, "skip", SKIP) }
#endif
${ t.words(3, "twiddles", "vec2<f32>") }
${ t.words(4, "spectrum", "vec4<f32>", "read_write") }
${ fft.memory(plan, 1) }

fn tap(channel: u32, n: u32) -> f32 {
    var value = 0.0;
    if n < p.taps { value = load_taps(p.taps_offset + channel * p.taps_channel + n); }
    #if SKIP != "none"
    if n == 0u { value += load_skip(p.skip_offset + channel * p.skip_channel); }
    #endif
    return value * p.scale;
}

@compute @workgroup_size(${N // E})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let channel = workgroup.y * grid.x + workgroup.x;
    if channel >= p.channels { return; }
    let side = 0u;
    ${ fft.registers(plan) }
    #for j in range(E)
    x${j} = vec2<f32>(tap(channel, lane * ${VEC}u + ${fft.point(plan, j)}u), 0.0);
    #endfor
    ${ fft.forward(plan, PHASE, true) }
    #for r in range(E // 2)
    spectrum[channel * ${N // 2}u + ${r * (N // E)}u + lane] = vec4<f32>(x${2 * r}, x${2 * r + 1});
    #endfor
}
