//! Which problems the cases of attention are: grids of flash-attention's, ggml's and our own.

use flashwave::DType::{BF16, F16, F32};
use flashwave::kernels::attention::Mask;

use super::{Dims, Hides, Setup, Sizes, Storage};

/// Every setup, with its group.
pub(super) fn all() -> Vec<(&'static str, Setup)> {
    let mut setups = Vec::new();
    let mut add = |group, setup| setups.push((group, setup));
    // Lengths: flash-attention's pairs, cut; one variant each of mask and kernel serves them all.
    let pairs = [
        [1, 1],
        [1, 239],
        [3, 799],
        [113, 203],
        [128, 217],
        [113, 211],
        [64, 128],
        [239, 1],
        [129, 129],
        [1, 147],
        [127, 513],
        [203, 113],
        [17, 17],
        [16, 16],
        [108, 256],
        [256, 512],
        [512, 256],
        [127, 512],
        [3, 1024],
        [64, 800],
        [1023, 1024],
        [1024, 1023],
    ];
    for pair in pairs {
        add("lengths causal", Setup::new(Mask::Causal, [1, 1], pair, 16));
        add("lengths full", Setup::new(Mask::Full, [1, 1], pair, 16));
    }
    // ggml's: lengths of the cache that other backends stumbled over, for one query, a few, and a tile and a bit.
    let awkward = [
        1, 17, 31, 33, 61, 65, 113, 127, 129, 130, 255, 260, 371, 380, 407,
    ];
    for kv_len in awkward {
        for q_len in [1, 3, 75] {
            let setup = Setup::new(Mask::Causal, [1, 1], [q_len, kv_len], 16);
            add("awkward caches", setup);
        }
    }
    // Masks that hide keys on both sides: windows narrower and wider than tiles, sinks within and over a tile.
    let window = |left, right, sinks| Mask::Window { left, right, sinks };
    let masks = [
        window(20, 0, 0),
        window(3, 5, 0),
        window(64, 0, 4),
        window(30, 0, 70),
        Mask::Prefix(37),
        Mask::Prefix(300),
    ];
    for mask in masks {
        for pair in [[113, 203], [129, 129], [203, 113], [3, 239], [1, 147]] {
            add("windows and prefixes", Setup::new(mask, [2, 1], pair, 16));
        }
    }
    // Channels of a head, prefill and decode.
    for d in [8, 40, 59, 64, 80, 96, 111, 128, 192, 256] {
        add(
            "channels prefill",
            Setup::new(Mask::Causal, [1, 1], [67, 77], d),
        );
        let mut decode = Setup::new(Mask::Causal, [1, 1], [1, 147], d);
        decode.types = [F32, F16, F16, F32];
        // 80 and 96 are cut up as 40 and 64 are.
        if d != 80 && d != 96 {
            add("channels decode", decode);
        }
    }
    for d in [3, 64] {
        let mut setup = Setup::new(Mask::Full, [1, 1], [21, 33], d);
        setup.problem.v_dim = d + 4;
        add("values of another width", setup);
        setup.problem.q_len = 2;
        add("values of another width", setup);
    }
    // Multi-head latent attention, and Mistral 3's 320.
    for (d, v_dim) in [(192, 128), (320, 256), (576, 512)] {
        for q_len in [19, 1] {
            let mut setup = Setup::new(Mask::Causal, [4, 1], [q_len, 75], d);
            setup.problem.v_dim = v_dim;
            setup.types = [F32, F16, F16, F32];
            add("wide heads", setup);
        }
    }
    // Query heads to a key head.
    for heads in [
        [4, 4],
        [8, 2],
        [8, 1],
        [6, 2],
        [12, 1],
        [16, 1],
        [20, 1],
        [32, 1],
    ] {
        let mut setup = Setup::new(Mask::Causal, heads, [33, 41], 32);
        setup.problem.batch = 2;
        add("grouped heads", setup);
        setup.problem.q_len = 1;
        setup.types = [F32, F16, F16, F32];
        add("grouped heads", setup);
        setup.problem.q_len = 3;
        add("grouped heads", setup);
    }
    for types in [
        [F16; 4],
        [BF16; 4],
        [F32, F16, F16, F32],
        [F16, F32, BF16, F32],
        [F32, BF16, BF16, F16],
    ] {
        for (d, q_len) in [(24, 37), (24, 1), (13, 37), (13, 1)] {
            // Ragged rows differ in how they are stored: once for each type is enough.
            if d == 13 && types[0] != types[3] {
                continue;
            }
            let mut setup = Setup::new(Mask::Causal, [1, 1], [q_len, 45], d);
            setup.types = types;
            setup.lse = false;
            add("types", setup);
        }
    }
    for d in [32, 15] {
        for q_len in [39, 2] {
            let mut setup = Setup::new(Mask::Causal, [4, 2], [q_len, q_len], d);
            setup.problem.batch = 2;
            setup.place = Storage::Fused;
            add("strided", setup);
            setup.place = Storage::Turned;
            add("strided", setup);
            if d == 32 {
                setup.place = Storage::Cache;
                setup.problem.kv_len = 83;
                setup.types = [F32, F16, F16, F32];
                add("strided", setup);
            }
        }
    }
    let forms: [Dims; 5] = [
        [true; 4],
        [false, false, true, true],
        [true, false, false, true],
        [false, true, true, false],
        [false; 4],
    ];
    for (q_len, mask) in [(35, Mask::Causal), (2, Mask::Full)] {
        for dims in forms {
            let mut setup = Setup::new(mask, [4, 2], [q_len, 71], 16);
            setup.problem.batch = 2;
            setup.bias = Some((F32, dims));
            add("bias", setup);
            setup.mask = Some([false, false, true, true]);
            add("bias and mask", setup);
            setup.bias = None;
            setup.mask = Some(dims);
            add("mask", setup);
        }
        let mut setup = Setup::new(mask, [4, 2], [q_len, 71], 16);
        setup.bias = Some((F16, [false, true, true, true]));
        add("bias", setup);
    }
    // Packed sequences, alone and with everything that counts positions.
    let few: &[[usize; 2]] = &[[113, 203], [1, 147], [5, 3], [64, 64]];
    let tiny: &[[usize; 2]] = &[[1, 147], [2, 5], [4, 1], [3, 90]];
    for documents in [few, tiny] {
        for mask in [
            Mask::Full,
            Mask::Causal,
            window(20, 0, 0),
            window(30, 2, 5),
            Mask::Prefix(7),
        ] {
            let mut setup = Setup::packed(mask, [2, 1], documents, 16);
            add("documents", setup);
            setup.alibi = Some(8.0);
            add("documents", setup);
        }
        let mut setup = Setup::packed(Mask::Causal, [4, 2], documents, 40);
        setup.problem.batch = 2;
        setup.types = [F32, F16, F16, F32];
        setup.sizes = Sizes::Split(16);
        add("documents", setup);
    }
    // What scores go through, one by one and together.
    let plain = |q_len, mask| Setup::new(mask, [12, 4], [q_len, 71], 16);
    for q_len in [35, 2] {
        for mask in [Mask::Causal, Mask::Full] {
            for softcap in [0.5, 10.0, 50.0] {
                let mut setup = plain(q_len, mask);
                setup.softcap = Some(softcap);
                setup.sharpness = 10.0;
                add("softcap", setup);
            }
            for max_bias in [8.0, 1.0] {
                let mut setup = plain(q_len, mask);
                setup.alibi = Some(max_bias);
                add("alibi", setup);
            }
            for sink in [3.0, 90.0] {
                let mut setup = plain(q_len, mask);
                setup.sink = Some(sink);
                add("learned sinks", setup);
                setup.mask = Some([false, false, true, true]);
                add("learned sinks", setup);
            }
        }
        let mut setup = plain(q_len, Mask::Causal);
        setup.problem.kv_len = 20;
        setup.sink = Some(1.0);
        add("learned sinks", setup);
        setup = plain(q_len, window(40, 0, 3));
        setup.softcap = Some(20.0);
        setup.alibi = Some(8.0);
        setup.sink = Some(1.0);
        setup.bias = Some((F16, [false, true, true, true]));
        setup.lse = false;
        setup.sizes = Sizes::Split(8);
        add("all modifiers", setup);
    }
    // Nothing to see anywhere.
    for (q_len, mask) in [(35, Mask::Causal), (2, Mask::Full)] {
        let mut setup = Setup::new(mask, [4, 2], [q_len, 71], 16);
        setup.problem.batch = 2;
        setup.hides = Hides::All;
        setup.bias = Some((F32, [false, false, true, true]));
        add("bias", setup);
        setup.bias = None;
        setup.mask = Some([false, false, true, true]);
        add("mask", setup);
    }
    // Many splits, some of which see nothing; rows of several workgroups.
    for (heads, pair, d, split, kv) in [
        ([4, 1], [1, 799], 64, 64, F16),
        ([8, 8], [1, 300], 128, 64, F16),
        ([8, 1], [3, 513], 32, 100, F16),
        ([2, 2], [16, 203], 16, 64, F32),
        ([8, 2], [5, 3], 40, 64, F32),
        ([1, 1], [2, 1999], 256, 512, F32),
    ] {
        let mut setup = Setup::new(Mask::Causal, heads, pair, d);
        setup.sizes = Sizes::Split(split);
        setup.types = [F32, kv, kv, F32];
        add("split keys", setup);
    }
    // Scores in the hundreds: all weight on a key or two.
    for q_len in [1, 40] {
        let mut setup = Setup::new(Mask::Full, [2, 1], [q_len, 90], 16);
        setup.sharpness = 30.0;
        add("sharp", setup);
    }
    for (d, pair) in [(72, [100, 190]), (128, [1, 600])] {
        let mut setup = Setup::new(Mask::Causal, [2, 1], pair, d);
        setup.sizes = Sizes::Unusual;
        add("unusual sizes", setup);
    }
    setups.extend(large());
    // A group's cases together, that they be one test.
    setups.sort_by_key(|&(group, _)| group);
    setups
}

/// The grids of flash-attention and ggml as far as CPU references go, on GPUs alone: 2 x 13 lengths, 14 pairs, 12 head
/// dimensions, 6 masks; 12 widths of k and v by 3 lengths of the cache by 4 numbers of queries.
fn large() -> Vec<(&'static str, Setup)> {
    let mut found = Vec::new();
    let widths = [
        (40, 40),
        (64, 64),
        (72, 72),
        (80, 80),
        (96, 96),
        (128, 128),
        (192, 192),
        (192, 128),
        (256, 256),
        (320, 256),
        (512, 512),
        (576, 512),
    ];
    for (n, (d, v_dim)) in widths.into_iter().enumerate() {
        for kv_len in [113, 512, 1024] {
            for q_len in [1, 3, 32, 75] {
                let mut setup = Setup::new(Mask::Full, [8, 2], [q_len, kv_len], d);
                setup.problem.v_dim = v_dim;
                setup.types = [F32, [F16, BF16, F32][n % 3], [F16, BF16, F32][n % 3], F32];
                setup.mask = Some([false, false, true, true]);
                setup.alibi = Some(8.0).filter(|_| n % 2 == 1);
                setup.softcap = Some(10.0).filter(|_| n % 4 > 1);
                setup.sink = Some(1.0).filter(|_| n % 3 == 1);
                setup.place = if n % 2 == 0 {
                    Storage::Turned
                } else {
                    Storage::Heads
                };
                found.push((["large", "large caches"][n % 2], setup));
            }
        }
    }
    let mut add = |mask, heads, pair, d| {
        let mut setup = Setup::new(mask, heads, pair, d);
        setup.types = [F16; 4];
        found.push(("large lengths", setup));
    };
    for length in [
        97, 128, 200, 257, 384, 512, 768, 1024, 1025, 2048, 300, 500, 444,
    ] {
        add(Mask::Causal, [2, 1], [length, length], 64);
        add(Mask::Full, [1, 1], [length, length], 128);
    }
    for pair in [
        [113, 203],
        [108, 256],
        [1, 239],
        [3, 799],
        [799, 3],
        [127, 513],
        [640, 128],
        [333, 444],
        [1023, 1024],
        [1024, 1023],
        [64, 2048],
        [16, 20_000],
        [16, 100_000],
        [512, 4224],
        [1, 128],
        [1, 339],
        [64, 256],
        [64, 800],
        [128, 217],
        [113, 211],
        [127, 512],
        [3, 1024],
        [256, 256],
        [256, 512],
        [239, 1],
        [203, 113],
        [217, 128],
        [211, 113],
        [256, 108],
        [512, 127],
        [513, 127],
        [512, 256],
        [255, 255],
        [129, 129],
        [512, 500],
        [500, 512],
        [384, 256],
    ] {
        add(Mask::Causal, [2, 1], pair, 64);
    }
    for mask in [(128, 0, 0), (256, 0, 4), (512, 0, 0), (100, 30, 70)] {
        let (left, right, sinks) = mask;
        add(
            Mask::Window { left, right, sinks },
            [2, 1],
            [1025, 1025],
            64,
        );
    }
    for prefix in [200, 1000] {
        add(Mask::Prefix(prefix), [2, 1], [1025, 1025], 64);
    }
    // MHA, MQA, GQA and both 16-bit types by turns, with what flash-attention's test of all channels has.
    for (n, d) in [32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256]
        .into_iter()
        .enumerate()
    {
        let heads = [[6, 2], [4, 4], [4, 1]][n % 3];
        let local = Mask::Window {
            left: 100,
            right: 0,
            sinks: 0,
        };
        for (types, mask) in [(F16, Mask::Causal), (BF16, Mask::Causal), (F16, local)] {
            let mut setup = Setup::new(mask, heads, [257, 512], d);
            setup.types = [types; 4];
            setup.alibi = Some(8.0).filter(|_| types == BF16 && n % 2 == 0);
            setup.softcap = Some(50.0).filter(|_| types == BF16 && n % 4 > 1);
            found.push(("large channels", setup));
        }
    }
    found
}
