//! The correctness matrix on this machine's adapter: unchecked shaders (as shipped), checked shaders, and the
//! portable tier that browsers run.

use std::sync::Arc;

use flashwave::Context;
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
    let mut trials = Vec::new();
    for (mode, builder) in builders {
        let ctx = builder
            .build()
            .expect("an adapter: run `cargo xtask ensure-adapter`");
        let mut groups: Vec<(String, Vec<kernels_tests::Case>)> = Vec::new();
        for case in cases::all("", Effort::Full) {
            let name = format!("{mode}::{}::{}", case.family, case.group);
            match groups.last_mut() {
                Some((last, list)) if *last == name => list.push(case),
                _ => groups.push((name, vec![case])),
            }
        }
        let ctx = Arc::new(ctx);
        for (name, list) in groups {
            let ctx = ctx.clone();
            trials.push(Trial::test(name, move || {
                for case in &list {
                    case.run(&ctx)
                        .map_err(|e| Failed::from(format!("{}: {e}", case.name)))?;
                }
                Ok(())
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
