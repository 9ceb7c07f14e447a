//! The kernel for matrix units on an emulation of these, so that all but the units is tested everywhere: masks, ragged
//! lengths and channels, modifiers, outliers, rows that see nothing.

use flashwave::DType::F16;
use flashwave::kernels::attention::{CooperativeTuning, Loads, Mask};

use super::{Setup, Sizes, Storage};

pub(super) fn all() -> Vec<(&'static str, Setup)> {
    let base = CooperativeTuning::EMULATED;
    let emulated = |mask, heads, pair, d, sizes| {
        let mut setup = Setup::new(mask, heads, pair, d);
        setup.types = [F16; 4];
        setup.sizes = Sizes::Emulated(sizes);
        setup
    };
    let window = |left, right, sinks| Mask::Window { left, right, sinks };
    let mut setups = Vec::new();
    for (mask, pair) in [
        (Mask::Full, [33, 70]),
        (Mask::Causal, [70, 70]),
        (Mask::Causal, [50, 20]),
        (Mask::Causal, [40, 101]),
        (window(20, 0, 3), [67, 90]),
        (window(9, 5, 40), [67, 90]),
        (Mask::Prefix(37), [50, 50]),
    ] {
        setups.push(emulated(mask, [2, 1], pair, 32, base));
    }
    // Channels that are padded, two matrices of rows, other tiles.
    for (d, v_dim, sizes) in [
        (16, 24, base),
        (40, 80, base),
        (128, 64, CooperativeTuning { rows: 32, ..base }),
        (96, 32, CooperativeTuning { keys: 16, ..base }),
        (64, 16, CooperativeTuning { keys: 64, ..base }),
        (
            32,
            40,
            CooperativeTuning {
                loads: Loads::Ahead,
                ..base
            },
        ),
    ] {
        let mut setup = emulated(Mask::Causal, [1, 1], [45, 77], d, sizes);
        setup.problem.v_dim = v_dim;
        setups.push(setup);
    }
    let plain = || emulated(Mask::Causal, [4, 2], [35, 71], 32, base);
    let mut setup = plain();
    setup.problem.batch = 2;
    setup.problem.q_len = 71;
    setup.place = Storage::Fused;
    setups.push(setup);
    setup.place = Storage::Turned;
    setups.push(setup);
    setup = plain();
    setup.place = Storage::Cache;
    setup.sharpness = 30.0;
    setups.push(setup);
    setup = plain();
    setup.bias = Some((F16, [false, true, true, true]));
    setup.mask = Some([false, false, true, true]);
    setups.push(setup);
    setup = plain();
    setup.softcap = Some(20.0);
    setup.alibi = Some(8.0);
    setup.sink = Some(3.0);
    setups.push(setup);
    setups.push(Setup {
        types: [F16; 4],
        sizes: Sizes::Emulated(base),
        ..Setup::packed(Mask::Causal, [2, 1], &[[20, 20], [17, 30], [33, 33]], 32)
    });
    setups
        .into_iter()
        .map(|setup| ("matrix units emulated", setup))
        .collect()
}
