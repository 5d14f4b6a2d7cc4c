//! What the built-in engine takes to compile: cmake, libclang and a C++ compiler. Asked for where they are missing,
//! installed where that may be done without asking anybody.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::tools::{Hinted, runs};

const APT_PACKAGES: [&str; 3] = ["cmake", "libclang-dev", "g++"];

/// Where systems keep libraries; below `llvm*` folders they are one level deeper.
const LIBRARY_FOLDERS: [&str; 9] = [
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/local/lib",
    "/opt/homebrew/opt/llvm/lib",
    "/usr/local/opt/llvm/lib",
    "/Library/Developer/CommandLineTools/usr/lib",
    "/Applications/Xcode.app/Contents/Developer/Toolchains/XcodeDefault.xctoolchain/usr/lib",
];

/// Sees to it that all of them are there.
pub(crate) fn need() -> anyhow::Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("the engine needs {}, asking the system for it", missing.join(" and "));
    install();
    let missing = self::missing();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Hinted::new(&format!("{} is missing, which the engine needs", missing.join(" and ")), line()).into())
}

fn missing() -> Vec<&'static str> {
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let all = [
        ("cmake", runs(Command::new("cmake").arg("--version"))),
        ("libclang", has_libclang()),
        ("a C++ compiler", cfg!(windows) || runs(Command::new(compiler).arg("--version"))),
    ];
    all.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect()
}

fn has_libclang() -> bool {
    let named = env::var_os("LIBCLANG_PATH").map(PathBuf::from);
    let folders = named.into_iter().chain(LIBRARY_FOLDERS.map(PathBuf::from));
    folders.into_iter().any(|folder| folder.is_file() || holds_libclang(&folder) || llvm_below(&folder))
}

fn holds_libclang(folder: &Path) -> bool {
    let is_it = |name: &str| {
        let numbered = name.starts_with("libclang-") && !name.starts_with("libclang-cpp") && name.contains(".so");
        name.starts_with("libclang.so") || numbered || name == "libclang.dylib"
    };
    names(folder).iter().any(|name| is_it(name))
}

fn llvm_below(folder: &Path) -> bool {
    let below = names(folder).into_iter().filter(|name| name.starts_with("llvm"));
    below.into_iter().any(|name| holds_libclang(&folder.join(name).join("lib")))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Only where nobody has to type a password. What it could not do shows in what is still missing.
fn install() {
    if runs(Command::new("apt-get").arg("--version")) {
        let root = runs(Command::new("test").args(["-w", "/var/lib/dpkg/lock"]));
        let sudo = !root && runs(Command::new("sudo").args(["-n", "true"]));
        if root || sudo {
            let install = ["install", "-y", "--no-install-recommends"].into_iter().chain(APT_PACKAGES);
            if !apt(sudo, install.clone()) && apt(sudo, ["update"]) {
                apt(sudo, install);
            }
        }
    } else if cfg!(target_os = "macos") && runs(Command::new("brew").arg("--version")) {
        runs(Command::new("brew").args(["install", "cmake"]));
    }
}

fn apt<'a>(sudo: bool, arguments: impl IntoIterator<Item = &'a str>) -> bool {
    let mut command = if sudo { Command::new("sudo") } else { Command::new("apt-get") };
    if sudo {
        command.args(["-n", "apt-get"]);
    }
    // What it says goes where people look for progress; stdout is for the tests' own lines.
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn line() -> &'static str {
    if cfg!(target_os = "macos") {
        return "xcode-select --install; brew install cmake";
    }
    const LINES: [(&str, &str); 5] = [
        ("apt-get", "sudo apt-get install -y cmake libclang-dev g++"),
        ("dnf", "sudo dnf install -y cmake clang-devel gcc-c++"),
        ("pacman", "sudo pacman -S --needed cmake clang gcc"),
        ("zypper", "sudo zypper install -y cmake clang-devel gcc-c++"),
        ("apk", "doas apk add cmake clang-dev g++"),
    ];
    let known = LINES.iter().find(|(manager, _)| runs(Command::new(manager).arg("--version")));
    known.map_or("LIBCLANG_PATH=/path/to/libclang cargo xtask build", |(_, line)| line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libclang_is_found_under_the_names_systems_give_it() {
        for (folder, name, found) in [
            ("", "libclang.so", true),
            ("", "libclang-14.so.1", true),
            ("llvm-14/lib", "libclang.so.1", true),
            ("", "libclang.dylib", true),
            ("", "libclang-cpp.so.14", false),
            ("gcc", "libclang.so", false),
        ] {
            let scratch = tempfile::tempdir().unwrap();
            let inside = scratch.path().join(folder);
            fs::create_dir_all(&inside).unwrap();
            fs::write(inside.join(name), "").unwrap();
            let is_found = holds_libclang(scratch.path()) || llvm_below(scratch.path());
            assert_eq!(is_found, found, "{folder}/{name}");
        }
    }

    #[test]
    fn whoever_has_to_type_something_is_told_one_line() {
        assert!(!line().is_empty() && !line().contains('\n'));
    }
}
