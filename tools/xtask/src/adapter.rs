//! Whether this machine has an adapter that the kernels can run on.
//!
//! The question is always put to a process of its own ([`probe`] starts this program again as [`PROBE_TASK`]): a
//! driver that was installed a moment ago is seen by a new process for certain, and a driver that crashes takes
//! only that process with it, and is reported.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// The hidden subcommand that runs [`look`].
pub const PROBE_TASK: &str = "probe-adapter";

/// How long a probe may take: a cold start of a large driver takes a few seconds, a hung one for ever.
const PROBE_LIMIT: Duration = Duration::from_secs(120);

/// Environment variables by which a person picks drivers or backends, and so can hide every adapter.
pub const STEERING: [&str; 8] = [
    "VK_DRIVER_FILES",
    "VK_ICD_FILENAMES",
    "VK_LOADER_DRIVERS_SELECT",
    "VK_LOADER_DRIVERS_DISABLE",
    "WGPU_BACKEND",
    BACKEND,
    NAME,
    SOFTWARE,
];

/// The library's own variables, which the tests and the demo obey: what it would not open is not usable.
const BACKEND: &str = "FLASHWAVE_BACKEND";
const NAME: &str = "FLASHWAVE_ADAPTER";
const SOFTWARE: &str = "FLASHWAVE_SOFTWARE";

/// Those of [`STEERING`] whose value is a list of driver manifests.
const PATH_LISTS: [&str; 2] = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"];

/// What the portable tier needs at the least: WebGPU's default limits, as far as compute shaders meet them.
const NEEDED: wgpu::Limits = wgpu::Limits::defaults();

/// The adapters of one process, by whether the kernels can run on them.
///
/// Its `Display` is what the probing process prints and [`Report::parse`] reads.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Names of the adapters that the kernels run on, a software driver's included.
    pub usable: Vec<String>,
    /// Names of those that the kernels run on and that nobody would choose: a software driver behind OpenGL ES,
    /// which has neither f16 nor subgroups where the same driver has both behind Vulkan.
    pub makeshift: Vec<String>,
    /// Names of the others, each with what it lacks.
    pub refused: Vec<String>,
    /// How the probing process ended, where it did not end well, with what it had said.
    pub failure: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (verdict, names) in [
            ("usable", &self.usable),
            ("makeshift", &self.makeshift),
            ("refused", &self.refused),
        ] {
            for name in names {
                // One line each, whatever a driver calls itself.
                writeln!(f, "{verdict}\t{}", name.replace(['\n', '\r', '\t'], " "))?;
            }
        }
        Ok(())
    }
}

impl Report {
    /// Reads what [`look`] printed; other lines (a chatty driver's) are passed over.
    pub fn parse(text: &str) -> Self {
        let mut report = Self::default();
        for line in text.lines() {
            match line.split_once('\t') {
                Some(("usable", name)) => report.usable.push(name.into()),
                Some(("makeshift", name)) => report.makeshift.push(name.into()),
                Some(("refused", name)) => report.refused.push(name.into()),
                _ => {}
            }
        }
        report
    }

    /// Why there is no usable adapter, in lines to follow a heading.
    pub fn why_none(&self) -> String {
        let makeshift = self
            .makeshift
            .iter()
            .map(|name| format!("  a last resort: {name}"));
        let refused = self.refused.iter().map(|name| format!("  refused: {name}"));
        let mut lines: Vec<String> = makeshift.chain(refused).collect();
        lines.extend(self.failure.iter().map(|failure| format!("  {failure}")));
        if lines.is_empty() {
            lines.push(
                "  wgpu found no adapter on any backend (Vulkan, Metal, DX12, OpenGL ES)".into(),
            );
        }
        lines.join("\n")
    }
}

/// Looks for adapters in this process, on every backend (or those of `WGPU_BACKEND`), software drivers included.
pub fn look() -> Report {
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let mut report = Report::default();
    for adapter in pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all())) {
        let info = adapter.get_info();
        let name = format!(
            "{} ({}, {:?}) {}",
            info.name, info.backend, info.device_type, info.driver_info
        );
        match wanted(&info, variable).and_then(|()| usable(&adapter)) {
            Ok(()) if is_makeshift(&info) => report.makeshift.push(name.trim_end().into()),
            Ok(()) => report.usable.push(name.trim_end().into()),
            Err(lack) => report.refused.push(format!("{}: {lack}", name.trim_end())),
        }
    }
    report
}

/// Whether there is better to be had on the same machine, unless the person has named the backends to use.
fn is_makeshift(info: &wgpu::AdapterInfo) -> bool {
    let software_gl =
        info.backend == wgpu::Backend::Gl && info.device_type == wgpu::DeviceType::Cpu;
    software_gl && wgpu::Backends::from_env().is_none() && variable(BACKEND).is_none()
}

/// A variable of this process, unless it is empty: that counts as unset, as in the library.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
    Some(value.to_string_lossy().into())
}

/// Whether the library's variables leave this adapter to choose: its `ContextBuilder` reads them alike.
fn wanted(
    info: &wgpu::AdapterInfo,
    value_of: impl Fn(&str) -> Option<String>,
) -> Result<(), String> {
    let software = info.device_type == wgpu::DeviceType::Cpu;
    let fits = |name: &str, value: &str| match name {
        BACKEND => value.eq_ignore_ascii_case(info.backend.to_str()),
        NAME => info.name.to_lowercase().contains(&value.to_lowercase()),
        _ => match value {
            "allowed" => true,
            "refused" => !software,
            "only" => software,
            _ => false,
        },
    };
    let mut set = [BACKEND, NAME, SOFTWARE]
        .into_iter()
        .filter_map(|name| Some((name, value_of(name)?)));
    match set.find(|(name, value)| !fits(name, value)) {
        Some((name, value)) => Err(format!("{name}={value} leaves it out")),
        None => Ok(()),
    }
}

/// Checks the limits, then opens the device: some drivers are listed and fail at that.
fn usable(adapter: &wgpu::Adapter) -> Result<(), String> {
    let compute = wgpu::DownlevelFlags::COMPUTE_SHADERS;
    if !adapter.get_downlevel_capabilities().flags.contains(compute) {
        return Err("no compute shaders".into());
    }
    let has = adapter.limits();
    for (limit, has, needed) in [
        (
            "max_compute_invocations_per_workgroup",
            has.max_compute_invocations_per_workgroup,
            NEEDED.max_compute_invocations_per_workgroup,
        ),
        (
            "max_compute_workgroup_storage_size",
            has.max_compute_workgroup_storage_size,
            NEEDED.max_compute_workgroup_storage_size,
        ),
        (
            "max_storage_buffers_per_shader_stage",
            has.max_storage_buffers_per_shader_stage,
            NEEDED.max_storage_buffers_per_shader_stage,
        ),
    ] {
        if has < needed {
            return Err(format!("{limit} is {has}, the kernels need {needed}"));
        }
    }
    let wanted = wgpu::DeviceDescriptor {
        required_limits: has,
        ..Default::default()
    };
    match pollster::block_on(adapter.request_device(&wanted)) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("the device does not open: {error}")),
    }
}

/// The environment that a probing process gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    /// This process's own.
    Inherited,
    /// This process's own less [`STEERING`]: tells a missing driver from a hidden one.
    Unsteered,
}

/// Asks a new process which adapters it sees.
///
/// # Errors
/// Only where that process cannot be started; its crash or hang is part of the report.
pub fn probe(environment: Environment) -> Result<Report> {
    let program = std::env::current_exe().context("the path of this program is unknown")?;
    let mut command = Command::new(&program);
    command
        .arg(PROBE_TASK)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    quieten(&mut command);
    if environment == Environment::Unsteered {
        for variable in STEERING {
            command.env_remove(variable);
        }
    }
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let out = drain(child.stdout.take());
    let err = drain(child.stderr.take());
    let deadline = Instant::now() + PROBE_LIMIT;
    let status = loop {
        match child
            .try_wait()
            .context("cannot wait for the probing process")?
        {
            Some(status) => break Some(status),
            None if Instant::now() >= deadline => {
                // Its exit, should it come at this moment, makes the kill fail: nothing is lost by that.
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let mut report = Report::parse(&out.join().unwrap_or_default());
    report.failure = failure(status, &err.join().unwrap_or_default());
    Ok(report)
}

/// Keeps Mesa's device-select layer out of a child process that has no desktop.
///
/// The layer puts the desktop's card first in the list of devices; to find it, it opens a Wayland connection, and
/// where `XDG_RUNTIME_DIR` is unset (a container, ssh, CI) libwayland prints "error: XDG_RUNTIME_DIR is invalid or
/// not set in the environment" for each Vulkan instance. The library ranks the devices itself, so nothing is lost.
pub fn quieten(command: &mut Command) {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        command.env("NODEVICE_SELECT", "1");
    }
}

/// Reads a pipe to its end beside the waiting, so that a full pipe stops nobody.
fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Says how a probing process ended, where that was not well; `None` as status is one that was stopped.
fn failure(status: Option<ExitStatus>, stderr: &str) -> Option<String> {
    let end = match status {
        Some(status) if status.success() => return None,
        Some(status) => {
            format!("looking for adapters crashed ({status}): a driver at fault, most likely")
        }
        None => format!(
            "looking for adapters took over {} s: a driver hangs",
            PROBE_LIMIT.as_secs()
        ),
    };
    let said: Vec<&str> = stderr
        .lines()
        .filter(|line| !line.trim().is_empty())
        .take(8)
        .collect();
    Some(if said.is_empty() {
        end
    } else {
        format!("{end}\n    {}", said.join("\n    "))
    })
}

/// The variables of [`STEERING`] that are set, each as `NAME=value` with what is plainly wrong with it.
pub fn steering(
    value_of: impl Fn(&str) -> Option<String>,
    exists: impl Fn(&Path) -> bool,
) -> Vec<String> {
    let mut set = Vec::new();
    for variable in STEERING {
        let Some(value) = value_of(variable) else {
            continue;
        };
        let mut line = format!("{variable}={value}");
        if PATH_LISTS.contains(&variable) {
            for path in std::env::split_paths(&value).filter(|path| !exists(path)) {
                line += &format!("  ({}: no such file)", path.display());
            }
        }
        let allowed = |words: &[&str]| words.contains(&value.to_lowercase().as_str());
        line += match variable {
            "WGPU_BACKEND" if wgpu::Backends::from_comma_list(&value).is_empty() => {
                "  (names no backend: vulkan, metal, dx12, gl)"
            }
            BACKEND if !allowed(&["vulkan", "metal", "dx12", "gl"]) => {
                "  (allowed: vulkan, metal, dx12 or gl)"
            }
            SOFTWARE if !allowed(&["allowed", "refused", "only"]) => {
                "  (allowed: allowed, refused or only)"
            }
            _ => "",
        };
        set.push(line);
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_pipe() {
        let report = Report {
            usable: vec!["llvmpipe (vulkan, Cpu) Mesa 25".into()],
            makeshift: vec!["llvmpipe (gl, Cpu) Mesa 25".into()],
            refused: vec!["old (gl, Other): no compute shaders".into()],
            failure: None,
        };
        assert_eq!(Report::parse(&report.to_string()), report);
        assert_eq!(
            Report::parse("MESA: warning\nusable without a tab\n"),
            Report::default()
        );
        let odd = Report {
            usable: vec!["two\nlines\tand tabs".into()],
            ..Report::default()
        };
        assert_eq!(
            Report::parse(&odd.to_string()).usable,
            ["two lines and tabs"]
        );
    }

    #[test]
    fn every_reason_is_told() {
        assert!(
            Report::default()
                .why_none()
                .contains("no adapter on any backend")
        );
        let report = Report {
            makeshift: vec!["llvmpipe (gl, Cpu) Mesa 25".into()],
            refused: vec!["old (gl, Other): no compute shaders".into()],
            failure: failure(None, "first\n\nsecond\n"),
            ..Report::default()
        };
        let why = report.why_none();
        for part in [
            "llvmpipe",
            "no compute shaders",
            "took over 120 s",
            "first",
            "second",
        ] {
            assert!(why.contains(part), "{part} is missing in {why}");
        }
    }

    #[test]
    fn the_librarys_variables_leave_adapters_out() {
        let info = wgpu::AdapterInfo::new(wgpu::DeviceType::Cpu, wgpu::Backend::Vulkan);
        let info = wgpu::AdapterInfo {
            name: "llvmpipe (LLVM 19)".into(),
            ..info
        };
        let with = |variable: &'static str, value: &'static str| {
            wanted(&info, move |name| {
                (name == variable).then(|| value.to_owned())
            })
        };
        assert_eq!(wanted(&info, |_| None), Ok(()));
        for (name, fits, leaves) in [
            (BACKEND, "Vulkan", "gl"),
            (NAME, "LLVMpipe", "nvidia"),
            (SOFTWARE, "only", "refused"),
        ] {
            assert_eq!(with(name, fits), Ok(()));
            let error = with(name, leaves).unwrap_err();
            assert_eq!(error, format!("{name}={leaves} leaves it out"));
        }
    }

    #[test]
    fn steering_variables_are_named_with_their_fault() {
        let list = std::env::join_paths(["/there", "/gone"])
            .unwrap()
            .into_string()
            .unwrap();
        let value_of = |name: &str| match name {
            "VK_DRIVER_FILES" => Some(list.clone()),
            "WGPU_BACKEND" => Some("vulcan".into()),
            _ => None,
        };
        let set = steering(value_of, |path| path == Path::new("/there"));
        assert_eq!(set.len(), 2);
        assert!(
            set[0].starts_with("VK_DRIVER_FILES=") && set[0].ends_with("(/gone: no such file)"),
            "{}",
            set[0]
        );
        assert!(
            set[1].contains("WGPU_BACKEND=vulcan") && set[1].contains("names no backend"),
            "{}",
            set[1]
        );
        let value_of = |name: &str| name.starts_with("FLASHWAVE").then(|| "none".into());
        let set = steering(value_of, |_| true);
        assert_eq!(set.len(), 3);
        assert!(set[0].contains("FLASHWAVE_BACKEND=none  (allowed: vulkan"));
        assert!(set[2].contains("FLASHWAVE_SOFTWARE=none  (allowed: allowed, refused or only)"));
        assert_eq!(steering(|_| None, |_| true), [""; 0]);
        assert_eq!(
            steering(|n| (n == "WGPU_BACKEND").then(|| "vk".into()), |_| true),
            ["WGPU_BACKEND=vk"]
        );
    }
}
