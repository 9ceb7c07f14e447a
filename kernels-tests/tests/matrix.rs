//! The correctness matrix on this machine's adapter: unchecked shaders (as shipped), checked shaders, and the
//! portable tier that browsers run, checked too.
//!
//! A software driver compiles for longer than it computes: all of it takes two cores half an hour. There the first mode
//! runs half of a group's cases, the portable tier half of the others, and checked shaders, which are those of
//! the two with naga's bounds checks, one; all of them if FLASHWAVE_MATRIX is `all`. `flashwave verify` runs all cases
//! in the mode that it is asked for.

use std::sync::Arc;

use flashwave::Context;
use flashwave::capabilities::DeviceClass;
use flashwave::context::ShaderChecks;
use kernels_tests::{Effort, cases};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let all = std::env::var("FLASHWAVE_MATRIX").is_ok_and(|cases| cases == "all");
    let checked = Context::builder().checks(ShaderChecks::On);
    // Name, context, and which cases of a group a software driver runs: the first, and one in how many.
    let modes = [
        (
            "unchecked",
            Context::builder().checks(ShaderChecks::Off),
            (0, 2),
        ),
        ("checked", checked.clone(), (0, usize::MAX)),
        ("portable", checked.portable(), (1, 4)),
    ];
    let modes = modes.map(|(mode, builder, sample)| {
        let ctx = builder
            .build()
            .expect("an adapter: run `cargo xtask ensure-adapter`");
        let sampled = ctx.capabilities().class == DeviceClass::Software && !all;
        (mode, Arc::new(ctx), if sampled { sample } else { (0, 1) })
    });
    let mut groups: Vec<(String, Vec<kernels_tests::Case>)> = Vec::new();
    for case in cases::all("", Effort::Full) {
        let name = format!("{}::{}", case.family, case.group);
        match groups.iter_mut().find(|(group, _)| *group == name) {
            Some((_, list)) => list.push(case),
            None => groups.push((name, vec![case])),
        }
    }
    // A group in every mode before the next group: a software driver compiles the shaders of one device on one
    // thread, so trials side by side have to be of different devices.
    let mut trials = Vec::new();
    for (name, list) in groups {
        let list = Arc::new(list);
        for (mode, ctx, (first, step)) in &modes {
            // Every group has a case in every mode.
            let first = (*first).min(list.len() - 1);
            let (list, ctx, step) = (list.clone(), ctx.clone(), *step);
            trials.push(Trial::test(format!("{mode}::{name}"), move || {
                for case in list[first..].iter().step_by(step) {
                    case.run(&ctx)
                        .map_err(|e| Failed::from(format!("{}: {e}", case.name)))?;
                }
                Ok(())
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
