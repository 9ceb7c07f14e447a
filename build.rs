//! The shaders are embedded by a macro that cargo does not see through: rebuild when one changes.

fn main() {
    println!("cargo::rerun-if-changed=shaders");
}
