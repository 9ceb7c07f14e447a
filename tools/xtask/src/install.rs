//! What to do where no adapter is found: as data ([`install_plan`]), then in deed ([`ensure_adapter`]).

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::adapter::{self, Environment, Report};

/// The Vulkan loader and Mesa's drivers, among them the one that runs on the CPU (lavapipe).
const APT_PACKAGES: [&str; 2] = ["libvulkan1", "mesa-vulkan-drivers"];

/// An `os-release` file: its keys and values, quotes taken off.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct OsRelease(HashMap<String, String>);

impl OsRelease {
    /// Reads the form of os-release(5): `KEY=value` lines with shell quoting, `#` comments.
    pub fn parse(text: &str) -> Self {
        let mut fields = HashMap::new();
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with('#'))
        {
            if let Some((key, value)) = line.split_once('=') {
                fields.insert(key.into(), unquote(value));
            }
        }
        Self(fields)
    }

    /// This system's file; empty where there is none.
    fn read() -> Self {
        let text = ["/etc/os-release", "/usr/lib/os-release"]
            .iter()
            .find_map(|path| std::fs::read_to_string(path).ok());
        Self::parse(&text.unwrap_or_default())
    }

    /// The value of a key, empty where it is missing.
    fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }
}

/// Takes off shell quotes and the backslashes that os-release(5) allows inside them.
fn unquote(value: &str) -> String {
    let inner = ['"', '\'']
        .iter()
        .find_map(|&quote| value.strip_prefix(quote)?.strip_suffix(quote));
    let mut plain = String::new();
    let mut chars = inner.unwrap_or(value).chars();
    while let Some(char) = chars.next() {
        plain.extend(if char == '\\' {
            chars.next()
        } else {
            Some(char)
        });
    }
    plain
}

/// The systems that differ in how a Vulkan driver gets onto them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SystemKind {
    /// Debian, Ubuntu and what is derived from them: installed by this program.
    Apt,
    /// Fedora, RHEL and kin.
    Fedora,
    /// Arch and kin.
    Arch,
    /// openSUSE and SLES.
    OpenSuse,
    /// Alpine.
    Alpine,
    /// Another Unix, by its pretty name where it has one.
    OtherUnix(String),
    /// macOS: Metal is part of it.
    MacOs,
    /// Windows: DX12 is part of it.
    Windows,
}

impl SystemKind {
    /// Tells the system from Rust's name of it (`std::env::consts::OS`) and, on Linux, its os-release file.
    pub fn of(os: &str, release: &OsRelease) -> Self {
        match os {
            "macos" => return Self::MacOs,
            "windows" => return Self::Windows,
            _ => {}
        }
        // ID first, then what the system says it is like, the closest first.
        let ids =
            std::iter::once(release.get("ID")).chain(release.get("ID_LIKE").split_whitespace());
        for id in ids {
            match id {
                "debian" | "ubuntu" => return Self::Apt,
                "fedora" | "rhel" | "centos" => return Self::Fedora,
                "arch" | "archlinux" => return Self::Arch,
                "suse" | "opensuse" | "sles" => return Self::OpenSuse,
                _ if id.starts_with("opensuse-") => return Self::OpenSuse,
                "alpine" => return Self::Alpine,
                _ => {}
            }
        }
        let pretty = release.get("PRETTY_NAME");
        Self::OtherUnix(if pretty.is_empty() {
            os.into()
        } else {
            pretty.into()
        })
    }
}

/// What this process may do to the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// It runs as root.
    Root,
    /// It does not, and `sudo` is there to ask.
    Sudo,
    /// It does not, and there is no `sudo`.
    Nothing,
}

impl Privilege {
    /// This process's.
    fn of_this_process() -> Self {
        let id = Command::new("id").arg("-u").stdin(Stdio::null()).output();
        if id.is_ok_and(|output| output.stdout.trim_ascii() == b"0") {
            return Self::Root;
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        if std::env::split_paths(&path).any(|folder| folder.join("sudo").is_file()) {
            Self::Sudo
        } else {
            Self::Nothing
        }
    }
}

/// Whether the plan goes on where a step fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// A later step may do without it; if that fails too, both are told.
    GoOn,
    /// The plan has failed.
    Stop,
}

/// One command of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Whether a failure ends the plan.
    pub on_failure: OnFailure,
}

impl Step {
    /// The command as a person would type it (no argument of ours needs quotes).
    pub fn line(&self) -> String {
        self.argv.join(" ")
    }
}

/// How this system gets a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// By these commands, in order.
    Run(Vec<Step>),
    /// By the person's hand: what to say to them.
    Tell(String),
}

/// The way to a driver for a system and a process's rights on it.
pub fn install_plan(system: &SystemKind, privilege: Privilege) -> Plan {
    let by_hand =
        |line: &str| format!("Install the Vulkan loader and Mesa's software driver:\n  {line}");
    Plan::Tell(match system {
        SystemKind::Apt if privilege == Privilege::Nothing => {
            format!(
                "This is not root and there is no sudo here (minimal container images have none).\n\
                 As root, run:\n  apt-get update && {}",
                apt_install(&APT_PACKAGES).join(" ")
            )
        }
        SystemKind::Apt => {
            // One broken third-party source makes an update fail while the packages are there all the same.
            return Plan::Run(vec![
                step(privilege, &["apt-get", "update"].map(String::from), OnFailure::GoOn),
                step(privilege, &apt_install(&APT_PACKAGES), OnFailure::Stop),
            ]);
        }
        SystemKind::Fedora => by_hand("sudo dnf install vulkan-loader mesa-vulkan-drivers"),
        SystemKind::Arch => by_hand("sudo pacman -S vulkan-icd-loader vulkan-swrast"),
        SystemKind::OpenSuse => by_hand("sudo zypper install libvulkan1 libvulkan_lvp"),
        SystemKind::Alpine => {
            by_hand("apk add vulkan-loader mesa-vulkan-swrast")
                + "\nA statically linked musl program cannot load it: with a toolchain from rustup, also build with\n  \
                   RUSTFLAGS='-C target-feature=-crt-static'"
        }
        SystemKind::OtherUnix(name) => format!(
            "No install command is known for this system ({name}). Install the Vulkan loader (libvulkan.so.1) and \
             either\nthe GPU's Vulkan driver or Mesa's software driver (lavapipe, in some packagings swrast)."
        ),
        SystemKind::MacOs => "Nothing is to be installed: Metal is part of macOS, and every Mac that Rust supports has \
             it.\nThis happens in a virtual machine without a paravirtualised GPU, and where WGPU_BACKEND leaves Metal \
             out."
            .into(),
        SystemKind::Windows => "Windows 10 and 11 have DX12, with a software adapter (WARP) even without a GPU.\n\
             Install the graphics driver from the GPU's maker, or the pending Windows updates; a Server Core or Nano \
             Server\nimage has no DX12: use a full one."
            .into(),
    })
}

/// The install command, without what makes it root's.
fn apt_install(packages: &[&str]) -> Vec<String> {
    // The time-out waits for a lock that another apt holds: a new Ubuntu upgrades itself in the background.
    let options = [
        "apt-get",
        "-o",
        "DPkg::Lock::Timeout=120",
        "install",
        "-y",
        "--no-install-recommends",
    ];
    options
        .into_iter()
        .chain(packages.iter().copied())
        .map(String::from)
        .collect()
}

/// A step of root's that asks nothing. The variable goes through `env`, since sudo drops it.
fn step(privilege: Privilege, command: &[String], on_failure: OnFailure) -> Step {
    let sudo: &[&str] = if privilege == Privilege::Root {
        &[]
    } else {
        &["sudo"]
    };
    let words = sudo
        .iter()
        .chain(&["env", "DEBIAN_FRONTEND=noninteractive"])
        .map(|&word| word.into());
    Step {
        argv: words.chain(command.iter().cloned()).collect(),
        on_failure,
    }
}

/// Installs Debian's packages.
///
/// # Errors
/// Where this system has no apt, this process may not use it, or it fails.
pub fn packages(names: &[&str]) -> Result<()> {
    let system = SystemKind::of(std::env::consts::OS, &OsRelease::read());
    let privilege = Privilege::of_this_process();
    let line = apt_install(names);
    if system != SystemKind::Apt || privilege == Privilege::Nothing {
        bail!("install by hand what Debian calls {}", names.join(" and "));
    }
    let update = ["apt-get", "update"].map(String::from);
    let steps = [
        step(privilege, &update, OnFailure::GoOn),
        step(privilege, &line, OnFailure::Stop),
    ];
    run(&steps).map_err(anyhow::Error::msg)
}

/// Finds a usable adapter, after installing a software driver if it takes that, and prints what it found.
///
/// # Errors
/// Where there is none at the end: what was tried, which command failed, and what to do by hand.
pub fn ensure_adapter() -> Result<()> {
    let before = adapter::probe(Environment::Inherited)?;
    if announce(&before) {
        return Ok(());
    }
    let set = adapter::steering(
        |name| std::env::var_os(name).map(|value| value.to_string_lossy().into()),
        Path::exists,
    );
    if !set.is_empty() {
        let unsteered = adapter::probe(Environment::Unsteered)?;
        if let Some(hidden) = unsteered.usable.first() {
            bail!(
                "no usable adapter, and the environment is why. Unset or correct:\n  {}\n\
                 With them:\n{}\nWithout them:\n  usable: {hidden}",
                set.join("\n  "),
                before.why_none()
            );
        }
    }
    eprintln!("No usable adapter:\n{}", before.why_none());
    let system = SystemKind::of(std::env::consts::OS, &OsRelease::read());
    let (after, trouble) = match install_plan(&system, Privilege::of_this_process()) {
        Plan::Tell(advice) => (before, format!("no usable adapter.\n{advice}")),
        Plan::Run(steps) => {
            eprintln!("Installing the Vulkan loader and Mesa's software driver.");
            let installed = run(&steps);
            let after = adapter::probe(Environment::Inherited)?;
            let trouble = installed.err().unwrap_or_else(|| {
                format!(
                    "no usable adapter, though {} are installed:\n{}\n\
                     See what `vulkaninfo --summary` (package vulkan-tools) says of the drivers.",
                    APT_PACKAGES.join(" and "),
                    after.why_none()
                )
            });
            (after, trouble)
        }
    };
    if announce(&after) {
        return Ok(());
    }
    let trouble = trouble + &also(&set);
    if let Some(makeshift) = after.makeshift.first() {
        eprintln!("warning: {trouble}\nGoing on with a last resort: {makeshift}");
        return Ok(());
    }
    bail!(trouble)
}

/// Names the usable adapters, if there are any.
fn announce(report: &Report) -> bool {
    for name in &report.usable {
        eprintln!("adapter: {name}");
    }
    if let (false, Some(failure)) = (report.usable.is_empty(), &report.failure) {
        eprintln!("warning: {failure}");
    }
    !report.usable.is_empty()
}

/// A clause that names the variables that may be at fault.
fn also(set: &[String]) -> String {
    if set.is_empty() {
        return String::new();
    }
    format!(
        "\nThese variables choose among drivers and may be at fault:\n  {}",
        set.join("\n  ")
    )
}

/// Runs the steps of a plan, each shown before it runs; the error is what to tell the person.
fn run(steps: &[Step]) -> Result<(), String> {
    let mut failed = Vec::new();
    for step in steps {
        eprintln!("+ {}", step.line());
        let Some((program, args)) = step.argv.split_first() else {
            continue;
        };
        let fault = match Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .status()
        {
            Ok(status) if status.success() => continue,
            Ok(status) => status.to_string(),
            Err(error) => format!("cannot start {program}: {error}"),
        };
        failed.push(format!("  {}\n    {fault}", step.line()));
        if step.on_failure == OnFailure::Stop {
            return Err(failure_message(&failed, steps));
        }
    }
    Ok(())
}

/// What to say where a plan has failed: the failed commands, then the whole plan to be run by hand.
fn failure_message(failed: &[String], steps: &[Step]) -> String {
    let lines: Vec<String> = steps.iter().map(Step::line).collect();
    format!(
        "installing failed:\n{}\nTheir own messages are above. Once what they name is mended \
         (network, package sources, rights), run by hand:\n  {}\nthen this command again.",
        failed.join("\n"),
        lines.join("\n  ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> SystemKind {
        SystemKind::of("linux", &OsRelease::parse(text))
    }

    fn told(system: &SystemKind) -> String {
        match install_plan(system, Privilege::Sudo) {
            Plan::Tell(text) => text,
            Plan::Run(steps) => panic!("{system:?} runs {steps:?}"),
        }
    }

    #[test]
    fn os_release_is_read_with_its_quotes_and_comments() {
        let release = OsRelease::parse(
            "# ID=no\n\n  ID='fedora'\nVERSION_ID=41\nNAME=\"A \\\"B\\\" \\$C\"\nODD=\"x\nnonsense\n",
        );
        assert_eq!(release.get("ID"), "fedora");
        assert_eq!(release.get("VERSION_ID"), "41");
        assert_eq!(release.get("NAME"), "A \"B\" $C");
        assert_eq!(release.get("ODD"), "\"x");
        assert_eq!(release.get("nonsense"), "");
        assert_eq!(unquote("\""), "\"");
        assert_eq!(unquote("a\\"), "a");
    }

    #[test]
    fn systems_are_told_by_their_id_and_then_by_what_they_are_like() {
        assert_eq!(kind("ID=debian"), SystemKind::Apt);
        assert_eq!(kind("ID=ubuntu\nID_LIKE=debian"), SystemKind::Apt);
        assert_eq!(
            kind("ID=linuxmint\nID_LIKE=\"ubuntu debian\""),
            SystemKind::Apt
        );
        assert_eq!(kind("ID=fedora"), SystemKind::Fedora);
        assert_eq!(
            kind("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\""),
            SystemKind::Fedora
        );
        assert_eq!(kind("ID=manjaro\nID_LIKE=arch"), SystemKind::Arch);
        assert_eq!(
            kind("ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\""),
            SystemKind::OpenSuse
        );
        assert_eq!(kind("ID=alpine"), SystemKind::Alpine);
        assert_eq!(
            kind("ID=nixos\nPRETTY_NAME=\"NixOS 25.05\""),
            SystemKind::OtherUnix("NixOS 25.05".into())
        );
        assert_eq!(kind(""), SystemKind::OtherUnix("linux".into()));
        assert_eq!(
            SystemKind::of("macos", &OsRelease::default()),
            SystemKind::MacOs
        );
        assert_eq!(
            SystemKind::of("windows", &OsRelease::default()),
            SystemKind::Windows
        );
    }

    #[test]
    fn apt_systems_install_as_root_or_through_sudo() {
        let lines = |privilege| match install_plan(&SystemKind::Apt, privilege) {
            Plan::Run(steps) => steps.iter().map(Step::line).collect::<Vec<_>>(),
            Plan::Tell(text) => panic!("{text}"),
        };
        let as_root = [
            "env DEBIAN_FRONTEND=noninteractive apt-get update",
            "env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y \
             --no-install-recommends libvulkan1 mesa-vulkan-drivers",
        ];
        assert_eq!(lines(Privilege::Root), as_root);
        assert_eq!(
            lines(Privilege::Sudo),
            as_root.map(|line| format!("sudo {line}"))
        );
    }

    #[test]
    fn without_root_and_sudo_the_person_is_told_so() {
        let Plan::Tell(text) = install_plan(&SystemKind::Apt, Privilege::Nothing) else {
            panic!("runs commands")
        };
        for part in [
            "no sudo",
            "As root",
            "apt-get update && ",
            "libvulkan1 mesa-vulkan-drivers",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn other_systems_are_told_their_own_command() {
        for (system, part) in [
            (
                SystemKind::Fedora,
                "dnf install vulkan-loader mesa-vulkan-drivers",
            ),
            (
                SystemKind::Arch,
                "pacman -S vulkan-icd-loader vulkan-swrast",
            ),
            (
                SystemKind::OpenSuse,
                "zypper install libvulkan1 libvulkan_lvp",
            ),
            (
                SystemKind::Alpine,
                "apk add vulkan-loader mesa-vulkan-swrast",
            ),
            (SystemKind::Alpine, "crt-static"),
            (SystemKind::OtherUnix("NixOS 25.05".into()), "NixOS 25.05"),
            (SystemKind::MacOs, "Metal is part of macOS"),
            (SystemKind::Windows, "WARP"),
        ] {
            assert!(
                told(&system).contains(part),
                "{system:?}: {part} is missing in {}",
                told(&system)
            );
        }
    }

    #[test]
    fn a_plan_goes_on_or_stops_as_its_steps_say() {
        let step = |line: &str, on_failure| Step {
            argv: line.split(' ').map(String::from).collect(),
            on_failure,
        };
        let missing = "flashwave-no-such-program";
        assert!(run(&[step(missing, OnFailure::GoOn)]).is_ok());
        let steps = [
            step(&format!("{missing} update"), OnFailure::GoOn),
            step(missing, OnFailure::Stop),
        ];
        let message = run(&steps).unwrap_err();
        assert_eq!(
            message
                .matches("cannot start flashwave-no-such-program")
                .count(),
            2,
            "{message}"
        );
        assert!(message.contains(
            "run by hand:\n  flashwave-no-such-program update\n  flashwave-no-such-program\n"
        ));
    }
}
