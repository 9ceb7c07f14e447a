//! The correctness matrix on this machine's adapter: unchecked shaders (as shipped), checked shaders, and the
//! portable tier that browsers run, checked too.
//!
//! A software driver compiles for longer than it computes, and checked shaders are the shaders of the other modes with
//! naga's bounds checks: there one case a group runs in that mode. `flashwave verify --checks on` runs them all.

use std::sync::Arc;

use flashwave::Context;
use flashwave::capabilities::DeviceClass;
use flashwave::context::ShaderChecks;
use kernels_tests::{Effort, cases};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let builders = [
        ("unchecked", Context::builder().checks(ShaderChecks::Off)),
        ("checked", Context::builder().checks(ShaderChecks::On)),
        (
            "portable",
            Context::builder().checks(ShaderChecks::On).portable(),
        ),
    ];
    let contexts = builders.map(|(mode, builder)| {
        let ctx = builder
            .build()
            .expect("an adapter: run `cargo xtask ensure-adapter`");
        (mode, Arc::new(ctx))
    });
    let mut groups: Vec<(String, Vec<kernels_tests::Case>)> = Vec::new();
    for case in cases::all("", Effort::Full) {
        let name = format!("{}::{}", case.family, case.group);
        match groups.last_mut() {
            Some((last, list)) if *last == name => list.push(case),
            _ => groups.push((name, vec![case])),
        }
    }
    // A group in every mode before the next group: a software driver compiles the shaders of one device on one
    // thread, so trials side by side have to be of different devices.
    let mut trials = Vec::new();
    for (name, list) in groups {
        let list = Arc::new(list);
        for (mode, ctx) in &contexts {
            let software = ctx.capabilities().class == DeviceClass::Software;
            let cases = match *mode {
                "checked" if software => 1,
                _ => list.len(),
            };
            let (list, ctx) = (list.clone(), ctx.clone());
            trials.push(Trial::test(format!("{mode}::{name}"), move || {
                for case in &list[..cases] {
                    case.run(&ctx)
                        .map_err(|e| Failed::from(format!("{}: {e}", case.name)))?;
                }
                Ok(())
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
