//! Project tasks: `cargo xtask demo` and `cargo xtask test`, which work on a machine with nothing but a Rust
//! toolchain, `cargo xtask ensure-adapter`, which both of them begin with, `cargo xtask matrix`, the correctness matrix
//! on every implementation that this system has, `cargo xtask web`, the page, and `cargo xtask targets`, a check for other
//! systems.
//!
//! The way through the files: [`tasks`] is what a person asks for, [`matrix`] and [`web`] too, [`adapter`] finds out
//! whether there is anything to run kernels on, [`install`] says (as data) what to do where there is not, and does it.

mod adapter;
mod install;
mod matrix;
mod serve;
mod targets;
mod tasks;
mod web;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The command line.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Project tasks of flashwave"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

/// What to do.
#[derive(Subcommand)]
enum Task {
    /// Watch the embedded model write a story through the GPU kernels, streaming
    ///
    /// Ensures an adapter, builds the command-line program in release and runs `flashwave generate`.
    Demo {
        /// Passed on to `flashwave generate`; a flag given here replaces the demo's own value of it
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<OsString>,
    },
    /// Run the whole test-suite: `cargo test --workspace`, on an ensured adapter
    ///
    /// Tests that need files from outside the repository read the folder named by FLASHWAVE_DATA.
    Test {
        /// Passed on to `cargo test`; what follows a `--` goes to the test programs
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<OsString>,
    },
    /// Run the correctness matrix on the implementations of WebGPU that this system can have, and write the README's table
    ///
    /// Installs software drivers where it may. What a column's programs printed goes to benches/record/matrix.
    Matrix(matrix::Matrix),
    /// Build the page (target/web), which runs the library in a browser
    Web(web::Web),
    /// Check that the library compiles for macOS, iOS, Android and Windows
    Targets,
    /// Find an adapter (a GPU, or a driver that runs on the CPU); install a software driver where none is found
    EnsureAdapter,
    /// List the adapters that this process sees: what the other tasks run in a process of its own
    #[command(hide = true, name = adapter::PROBE_TASK)]
    ProbeAdapter,
}

fn main() -> ExitCode {
    let cli = Cli::parse_from(keep_separator(std::env::args_os().collect()));
    let result = match cli.task {
        Task::Demo { args } => tasks::demo(&args),
        Task::Test { args } => tasks::test(&args),
        Task::Matrix(matrix) => matrix.run(),
        Task::Web(web) => web.run(),
        Task::Targets => targets::check(),
        Task::EnsureAdapter => install::ensure_adapter(),
        Task::ProbeAdapter => {
            print!("{}", adapter::look());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Doubles the `--` of `test -- ARGS`: clap takes a leading `--` for its own, and `cargo test` has to see it.
fn keep_separator(mut args: Vec<OsString>) -> Vec<OsString> {
    let is = |index: usize, word: &str| {
        args.get(index).map(OsString::as_os_str) == Some(OsStr::new(word))
    };
    if is(1, "test") && is(2, "--") {
        args.insert(2, "--".into());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn passed_on(line: &str) -> Vec<String> {
        let args = line.split(' ').map(OsString::from).collect();
        match Cli::try_parse_from(keep_separator(args)).unwrap().task {
            Task::Demo { args } | Task::Test { args } => {
                args.into_iter().map(|a| a.into_string().unwrap()).collect()
            }
            _ => panic!("neither demo nor test"),
        }
    }

    #[test]
    fn command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_reach_the_program_as_they_were_typed() {
        assert_eq!(passed_on("xtask demo"), [""; 0]);
        assert_eq!(
            passed_on("xtask demo --seed 7 --ids"),
            ["--seed", "7", "--ids"]
        );
        assert_eq!(passed_on("xtask demo -- --seed 7"), ["--seed", "7"]);
        assert_eq!(passed_on("xtask test rope"), ["rope"]);
        assert_eq!(
            passed_on("xtask test --locked -p flashwave"),
            ["--locked", "-p", "flashwave"]
        );
        assert_eq!(
            passed_on("xtask test -- --nocapture"),
            ["--", "--nocapture"]
        );
        assert_eq!(
            passed_on("xtask test rope -- --exact"),
            ["rope", "--", "--exact"]
        );
    }
}
