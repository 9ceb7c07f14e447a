// Short depthwise causal convolution: y[b, c, t] = f(bias[c] + sum over j < K of weight[c, j] x[b, c, t - j]).
//
// x, y: [batch, channels, length] at any strides; weight: [channels, K]; what lies before the first element is zero, or
// state: [batch, channels, K - 1] f32, oldest first. UPDATE 1: no sequence is over RUN elements, and the invocation that has it
// leaves the last K - 1 inputs in state.
//
// An invocation has RUN adjacent elements of a row; neighbours have neighbouring channels (INNER channel) or runs (time).
// VEC 4: rows are aligned and adjacent along time.
#import "lib/tensor.wgsl" as t
#import "lib/activation.wgsl" as activation
#set RUN = 4

struct Params {
    batch: u32,
    channels: u32,
    length: u32,
    runs: u32,
    x_offset: u32,
    x_batch: u32,
    x_channel: u32,
    x_time: u32,
    y_offset: u32,
    y_batch: u32,
    y_channel: u32,
    y_time: u32,
    weight_offset: u32,
    weight_channel: u32,
    bias_offset: u32,
    bias_channel: u32,
    state_offset: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "x", X) }
${ t.input(2, "weight", W) }
#if BIAS != "none"
${ t.input(3, "bias", BIAS) }
#endif
#if STATE
${ t.words(4, "state", "f32", "read_write" if UPDATE else "read") }
#endif
${ t.output(5, "y", Y, VEC) }
${ activation.functions(F) }

// x at time t - K + 1, where that is before the first element: from the state.
fn before(b: u32, c: u32, t: u32) -> f32 {
    #if STATE
    return state[p.state_offset + (b * p.channels + c) * ${K - 1}u + t];
    #else
    return 0.0;
    #endif
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (workgroup.y * grid.x + workgroup.x) * 64u + lane;
    if i >= p.batch * p.channels * p.runs { return; }
    #if INNER == "channel"
    let c = i % p.channels;
    let first = i / p.channels % p.runs * ${RUN}u;
    let b = i / p.channels / p.runs;
    #else
    let first = i % p.runs * ${RUN}u;
    let c = i / p.runs % p.channels;
    let b = i / p.runs / p.channels;
    #endif
    let source = p.x_offset + b * p.x_batch + c * p.x_channel;
    let target_at = p.y_offset + b * p.y_batch + c * p.y_channel;
    #for j in range(K - 1)
    var x${j}: f32;
    if first + ${j}u < ${K - 1}u {
        x${j} = before(b, c, first + ${j}u);
    } else {
        x${j} = load_x(source + (first + ${j}u - ${K - 1}u) * p.x_time);
    }
    #endfor
    #if VEC == 4
    let loaded = load4_x(source + first);
    #for r in range(RUN)
    let x${K - 1 + r} = loaded[${r}];
    #endfor
    #else
    #for r in range(RUN)
    var x${K - 1 + r} = 0.0;
    if first + ${r}u < p.length { x${K - 1 + r} = load_x(source + (first + ${r}u) * p.x_time); }
    #endfor
    #endif
    #if BIAS != "none"
    var sum = vec4<f32>(load_bias(p.bias_offset + c * p.bias_channel));
    #else
    var sum = vec4<f32>();
    #endif
    #for j in range(K)
    sum = fma(vec4<f32>(load_weight(p.weight_offset + c * p.weight_channel + ${j}u)),
        vec4<f32>(x${K - 1 - j}, x${K - j}, x${K + 1 - j}, x${K + 2 - j}), sum);
    #endfor
    let result = activate4(sum);
    #if VEC == 4
    store4_y(target_at + first, result);
    #else
    #for r in range(RUN)
    if first + ${r}u < p.length { store_y(target_at + (first + ${r}u) * p.y_time, result[${r}]); }
    #endfor
    #endif
    #if UPDATE
    <# The K - 1 inputs before time `length`: x(length) … x(length + K - 2) of those in registers. #>
    #for j in range(K - 1)
    {
        var kept = x${j};
        #for r in range(1, RUN + 1)
        if p.length == ${r}u { kept = x${j + r}; }
        #endfor
        state[p.state_offset + (b * p.channels + c) * ${K - 1}u + ${j}u] = kept;
    }
    #endfor
    #endif
}
