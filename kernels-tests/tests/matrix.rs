//! The correctness matrix on this machine's adapter: unchecked shaders (as shipped), checked shaders, and the
//! portable tier that browsers run, checked too.
//!
//! A software driver compiles for longer than it computes. There the first mode runs all cases, the portable tier every
//! other one, and checked shaders, which are those of the two with naga's bounds checks, one case a group.
//! `flashwave verify` runs all cases in the mode that it is asked for.

use std::sync::Arc;

use flashwave::Context;
use flashwave::capabilities::DeviceClass;
use flashwave::context::ShaderChecks;
use kernels_tests::{Effort, cases};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let arguments = Arguments::from_args();
    // Name, context, and which cases of a group a software driver runs: every so many-th.
    let modes = [
        ("unchecked", Context::builder().checks(ShaderChecks::Off), 1),
        (
            "checked",
            Context::builder().checks(ShaderChecks::On),
            usize::MAX,
        ),
        (
            "portable",
            Context::builder().checks(ShaderChecks::On).portable(),
            2,
        ),
    ];
    let modes = modes.map(|(mode, builder, step)| {
        let ctx = builder
            .build()
            .expect("an adapter: run `cargo xtask ensure-adapter`");
        match ctx.capabilities().class {
            DeviceClass::Software => (mode, Arc::new(ctx), step),
            _ => (mode, Arc::new(ctx), 1),
        }
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
        for (mode, ctx, step) in &modes {
            let (list, ctx, step) = (list.clone(), ctx.clone(), *step);
            trials.push(Trial::test(format!("{mode}::{name}"), move || {
                for case in list.iter().step_by(step) {
                    case.run(&ctx)
                        .map_err(|e| Failed::from(format!("{}: {e}", case.name)))?;
                }
                Ok(())
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
