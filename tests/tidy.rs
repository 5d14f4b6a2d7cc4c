//! The shape of the workspace, held by tests: who may use whom, what is pinned, what a file may contain.
//!
//! Each rule is a pure function from facts to findings and is shown bad input beside its use on the real tree, so that
//! a rule that stopped finding anything is itself found. A new crate is given its place in `LAYERS` or `TOOLS` here.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::semver::Version;
use cargo_metadata::{DependencyKind, MetadataCommand};

/// The product's crates: each uses crates of lower numbers only, so that no two can come to need each other. `testkit`
/// puts the product's parts together for tests and stands above what it tests; nothing is built on it.
const LAYERS: [(&str, u8); 19] = [
    ("omx", 7),
    ("gateway", 6),
    ("node", 5),
    ("dispatch", 4),
    ("models", 4),
    ("testkit", 4),
    ("agent", 3),
    ("blobs", 3),
    ("cluster", 3),
    ("engine", 3),
    ("openai", 3),
    ("store", 2),
    ("net", 2),
    ("ollama", 2),
    ("gguf", 1),
    ("scheduler", 1),
    ("vitals", 1),
    ("types", 0),
    ("codec", 0),
];

/// What works on the product from outside. A tool uses the tools before it and nothing of the product, so that it
/// compiles in seconds; the product uses a tool in its tests only, for which `testkit` is.
const TOOLS: [&str; 3] = ["testnet", "fakes", "xtask"];

/// A heavy dependency, with what is published beside it under its name, and the only crates that may use it.
const FENCES: [(&str, &[&str]); 9] = [
    ("axum", &["gateway"]),
    ("bincode", &["codec"]),
    ("clap", &["omx", "xtask"]),
    ("libp2p", &["net"]),
    ("llama-cpp-2", &["engine"]),
    ("llama-cpp-sys-2", &["engine"]),
    ("minijinja", &["engine"]),
    // `testkit` drives it on its virtual clock; no type of it is in what `cluster` offers.
    ("openraft", &["cluster", "testkit"]),
    ("sled", &["store"]),
];

/// Versions chosen for a reason: what is exact here is exact in the manifest.
const PINS: [(&str, Pin); 6] = [
    // Older ones link a yamux that a peer can crash.
    ("libp2p", Pin::AtLeast("0.57.1")),
    // They follow llama.cpp, whose interface changes with each release.
    ("llama-cpp-2", Pin::Exact("0.1.160")),
    ("llama-cpp-sys-2", Pin::Exact("0.1.161")),
    // An alpha may change its traits; 0.9 lacks pre-vote and leader transfer.
    ("openraft", Pin::Exact("0.10.0-alpha.37")),
    // The next one has been an alpha for years.
    ("sled", Pin::Exact("0.34.7")),
    // The next one is a `compile_error!`.
    ("bincode", Pin::Exact("2.0.1")),
];

/// TLS is rustls here: the system's library would be one more thing to prepare on a fresh machine.
const BANNED: [&str; 3] = ["native-tls", "openssl", "openssl-sys"];

const TOP_LEVEL: [&str; 20] = [
    ".cargo",
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "benches",
    "clippy.toml",
    "crates",
    "deny.toml",
    "docs",
    "examples",
    "rustfmt.toml",
    "src",
    "testnet",
    "tests",
];

const LINES_MAX: usize = 800;

/// Files that hold one thought in more lines than that: path and why it is one thought.
const LONG: [(&str, &str); 0] = [];

#[derive(Clone, Copy)]
enum Pin {
    AtLeast(&'static str),
    Exact(&'static str),
}

struct Member {
    name: String,
    manifest: toml::Table,
    uses: Vec<Use>,
}

struct Use {
    name: String,
    ours: bool,
    in_tests_only: bool,
}

struct Locked {
    name: String,
    version: String,
    source: Option<String>,
}

struct Source {
    /// Relative to the workspace, with `/` between the parts.
    path: String,
    text: String,
}

// ---- rules

fn layer_findings(members: &[Member]) -> Vec<String> {
    let mut findings = Vec::new();
    for member in members {
        let name = member.name.as_str();
        let (layer, tool) = (layer(name), tool(name));
        if layer.is_none() && tool.is_none() {
            findings.push(format!("`{name}` has no place: give it one in `LAYERS` or `TOOLS`"));
        }
        for used in member.uses.iter().filter(|used| used.ours) {
            let below = match (layer, tool) {
                (Some(here), _) => self::layer(&used.name).is_some_and(|there| there < here),
                (_, Some(here)) => self::tool(&used.name).is_some_and(|there| there < here),
                (None, None) => true,
            };
            let in_tests = used.in_tests_only || name == "testkit";
            let tool_in_tests = in_tests && layer.is_some() && self::tool(&used.name).is_some();
            if !below && !tool_in_tests {
                findings.push(format!("`{name}` uses `{}`, which does not lie below it", used.name));
            }
        }
    }
    findings
}

fn layer(name: &str) -> Option<u8> {
    LAYERS.iter().find(|(known, _)| *known == name).map(|(_, layer)| *layer)
}

fn tool(name: &str) -> Option<usize> {
    TOOLS.iter().position(|known| *known == name)
}

fn fence_findings(members: &[Member]) -> Vec<String> {
    let mut findings = Vec::new();
    for member in members {
        for used in member.uses.iter().filter(|used| !used.ours) {
            for (fenced, may_use) in FENCES {
                let rest = used.name.strip_prefix(fenced);
                let is_it = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']));
                if is_it && !may_use.contains(&member.name.as_str()) {
                    findings.push(format!("`{}` uses `{}`, which is for {may_use:?} alone", member.name, used.name));
                }
            }
        }
    }
    findings
}

/// One table each for lints, package facts and dependencies: a member states none of them for itself.
fn inheritance_findings(members: &[Member]) -> Vec<String> {
    let mut findings = Vec::new();
    for Member { name, manifest, .. } in members {
        let package = |key: &str| manifest.get("package").and_then(|package| package.get(key));
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            if !package(key).is_some_and(inherited) {
                findings.push(format!("`{name}` has a `{key}` of its own: write `{key}.workspace = true`"));
            }
        }
        if !manifest.get("lints").is_some_and(inherited) {
            findings.push(format!("`{name}` has lints of its own: write `[lints] workspace = true`"));
        }
        for (dependency, how) in dependency_tables(manifest).into_iter().flatten() {
            if !inherited(how) {
                findings.push(format!("`{name}` describes `{dependency}` itself: move that to the workspace's table"));
            }
        }
    }
    findings
}

fn inherited(value: &toml::Value) -> bool {
    value.get("workspace").and_then(toml::Value::as_bool) == Some(true)
}

/// All dependency tables of a manifest, those under `target` too.
fn dependency_tables(manifest: &toml::Table) -> Vec<&toml::Table> {
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let per_target = targets.into_iter().flat_map(|targets| targets.values()).filter_map(toml::Value::as_table);
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    per_target
        .chain([manifest])
        .flat_map(|owner| kinds.iter().filter_map(|kind| owner.get(*kind)?.as_table()))
        .collect()
}

fn pin_findings(workspace: &toml::Table, locked: &[Locked]) -> Vec<String> {
    let mut findings = Vec::new();
    let table = workspace.get("workspace").and_then(|table| table.get("dependencies"));
    for (name, pin) in PINS {
        let declared = table.and_then(|table| table.get(name));
        let requirement = declared.and_then(|entry| entry.as_str().or_else(|| entry.get("version")?.as_str()));
        let versions: Vec<&str> =
            locked.iter().filter(|one| one.name == name).map(|one| one.version.as_str()).collect();
        let good = match pin {
            Pin::Exact(version) => requirement == Some(&format!("={version}")) && versions == [version],
            Pin::AtLeast(least) => matches!(versions[..], [only] if version(only) >= version(least)),
        };
        if !good {
            findings.push(format!("`{name}` is asked for as {requirement:?} and locked as {versions:?}"));
        }
    }
    findings
}

fn version(text: &str) -> Version {
    Version::parse(text).expect("cargo writes valid versions, and so do we")
}

/// Everything comes from a registry, where it stays, or from this workspace.
fn origin_findings(locked: &[Locked]) -> Vec<String> {
    let mut findings = Vec::new();
    for Locked { name, source, .. } in locked {
        if source.as_ref().is_some_and(|source| !source.starts_with("registry+")) {
            findings.push(format!("`{name}` comes from no registry: {source:?}"));
        }
        if source.is_none() && layer(name).is_none() && tool(name).is_none() {
            findings.push(format!("`{name}` comes from a folder that is no member"));
        }
        if BANNED.contains(&name.as_str()) {
            findings.push(format!("`{name}` is banned, see `BANNED`"));
        }
    }
    findings
}

fn top_level_findings(paths: &[String]) -> Vec<String> {
    let entries: BTreeSet<&str> = paths.iter().map(|path| path.split('/').next().unwrap_or(path)).collect();
    let unknown = entries.into_iter().filter(|entry| !TOP_LEVEL.contains(entry));
    unknown.map(|entry| format!("`{entry}` is no known entry of the top folder")).collect()
}

fn source_findings(sources: &[Source], long: &[(&str, &str)]) -> Vec<String> {
    // In two parts, or this file would be its own finding.
    let silenced = concat!("#[", "ignore");
    let machine_paths = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")];

    let mut findings = Vec::new();
    for Source { path, text } in sources {
        for (number, line) in (1..).zip(text.lines()) {
            if machine_paths.iter().any(|start| begins_a_path(line, start)) {
                findings.push(format!("{path}:{number}: names a folder of one machine"));
            }
            if path.ends_with(".rs") && line.trim_start().starts_with(silenced) {
                findings.push(format!("{path}:{number}: a test that does not run shows nothing"));
            }
        }
        if path.ends_with("/mod.rs") {
            findings.push(format!("{path}: write `foo.rs` beside `foo/`"));
        }
        let lines = text.lines().count();
        let is_long = path.ends_with(".rs") && lines > LINES_MAX;
        let is_listed = long.iter().any(|(listed, _)| listed == path);
        if is_long && !is_listed {
            findings.push(format!("{path}: {lines} lines, two thoughts perhaps? Else list it in `LONG`"));
        }
        if is_listed && !is_long {
            findings.push(format!("{path}: no longer long, take it off `LONG`"));
        }
    }
    findings
}

/// Whether an absolute path starts with `start` in this line, as against a part of a longer path or an address.
fn begins_a_path(line: &str, start: &str) -> bool {
    line.match_indices(start).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|before| !before.is_alphanumeric() && !"._-~/}>*".contains(before))
    })
}

// ---- the real tree

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read_table(path: &Path) -> toml::Table {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn members() -> Vec<Member> {
    let metadata = MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().unwrap();
    let member = |package: &cargo_metadata::Package| Member {
        name: package.name.to_string(),
        manifest: read_table(package.manifest_path.as_std_path()),
        uses: package
            .dependencies
            .iter()
            .map(|dependency| Use {
                name: dependency.name.clone(),
                ours: dependency.path.is_some(),
                in_tests_only: dependency.kind == DependencyKind::Development,
            })
            .collect(),
    };
    metadata.packages.iter().map(member).collect()
}

fn locked() -> Vec<Locked> {
    let lock = read_table(&root().join("Cargo.lock"));
    let text = |package: &toml::Value, key: &str| package.get(key).and_then(|value| value.as_str().map(str::to_owned));
    lock["package"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| Locked {
            name: text(package, "name").unwrap(),
            version: text(package, "version").unwrap(),
            source: text(package, "source"),
        })
        .collect()
}

/// What git tracks; in an unpacked archive everything but what a build or a node left behind.
fn tracked_paths() -> Vec<String> {
    let git = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let listed: Vec<String> = match git {
        Ok(output) if output.status.success() => {
            String::from_utf8(output.stdout).unwrap().split_terminator('\0').map(str::to_owned).collect()
        }
        _ => walk(),
    };
    // A file removed but not yet committed is still listed.
    listed.into_iter().filter(|path| root().join(path).is_file()).collect()
}

fn walk() -> Vec<String> {
    let left_behind = [".git", ".omx", "target"].map(|name| root().join(name));
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !left_behind.contains(&path) {
                folders.push(path);
            } else if path.is_file() {
                let parts: Vec<_> =
                    path.strip_prefix(root()).unwrap().iter().map(|part| part.to_str().unwrap()).collect();
                files.push(parts.join("/"));
            }
        }
    }
    files
}

/// Files that are no text have nothing for the rules to read.
fn sources() -> Vec<Source> {
    let read = |path: String| {
        let text = String::from_utf8(fs::read(root().join(&path)).unwrap()).ok()?;
        Some(Source { path, text })
    };
    tracked_paths().into_iter().filter_map(read).collect()
}

fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn crates_use_only_what_lies_below_them() {
    let members = members();
    assert!(members.len() > 2, "cargo names only {} members", members.len());
    assert_none(&layer_findings(&members));
}

#[test]
fn each_heavy_dependency_stays_behind_its_fence() {
    let members = members();
    assert_none(&fence_findings(&members));
}

#[test]
fn every_fence_has_something_behind_it() {
    let members = members();
    let used: BTreeMap<&str, &str> = members
        .iter()
        .flat_map(|member| member.uses.iter().map(move |used| (used.name.as_str(), member.name.as_str())))
        .collect();
    let stale: Vec<_> = FENCES.iter().filter(|(fenced, _)| !used.contains_key(fenced)).collect();
    assert!(stale.is_empty(), "nobody uses {stale:?}");
}

#[test]
fn members_inherit_what_the_workspace_decides() {
    assert_none(&inheritance_findings(&members()));
}

#[test]
fn versions_are_the_ones_that_were_chosen() {
    assert_none(&pin_findings(&read_table(&root().join("Cargo.toml")), &locked()));
}

#[test]
fn everything_comes_from_a_registry_or_from_here() {
    assert_none(&origin_findings(&locked()));
}

#[test]
fn the_top_folder_holds_what_is_known() {
    let paths = tracked_paths();
    assert!(paths.iter().any(|path| path == "Cargo.toml"), "no manifest among {} files", paths.len());
    assert_none(&top_level_findings(&paths));
}

#[test]
fn files_keep_to_the_rules_for_files() {
    let sources = sources();
    assert!(sources.iter().any(|source| source.path == "tests/tidy.rs"), "this very file was not read");
    assert_none(&source_findings(&sources, &LONG));
}

#[test]
fn a_walk_sees_the_same_top_folder_as_git_where_there_is_no_git() {
    let walked = walk();
    assert!(tracked_paths().iter().all(|path| walked.contains(path)));
}

// ---- each rule can fail

mod bad_input {
    use super::*;

    fn member(name: &str, uses: &[&str]) -> Member {
        let uses = uses.iter().map(|used| Use {
            name: used.trim_start_matches("test:").to_owned(),
            ours: layer(used.trim_start_matches("test:")).is_some() || tool(used.trim_start_matches("test:")).is_some(),
            in_tests_only: used.starts_with("test:"),
        });
        Member { name: name.to_owned(), manifest: toml::Table::new(), uses: uses.collect() }
    }

    fn package(name: &str, version: &str, source: Option<&str>) -> Locked {
        Locked { name: name.to_owned(), version: version.to_owned(), source: source.map(str::to_owned) }
    }

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_crate_that_looks_up_or_sideways_is_found() {
        assert_eq!(layer_findings(&[member("store", &["cluster"])]).len(), 1);
        assert_eq!(layer_findings(&[member("store", &["net"])]).len(), 1);
        assert_eq!(layer_findings(&[member("store", &["test:net"])]).len(), 1);
        assert_eq!(layer_findings(&[member("cluster", &["store", "net", "types"])]).len(), 0);
    }

    #[test]
    fn a_crate_without_a_place_is_found() {
        assert_eq!(layer_findings(&[member("helpers", &["types"])]).len(), 1);
    }

    #[test]
    fn a_tool_stays_outside_the_product_and_the_product_uses_it_in_tests_only() {
        assert_eq!(layer_findings(&[member("xtask", &["node"])]).len(), 1);
        assert_eq!(layer_findings(&[member("testnet", &["xtask"])]).len(), 1);
        assert_eq!(layer_findings(&[member("omx", &["testnet"])]).len(), 1);
        assert_eq!(layer_findings(&[member("omx", &["test:testnet"]), member("xtask", &["testnet"])]).len(), 0);
        assert_eq!(layer_findings(&[member("testkit", &["fakes"]), member("gateway", &["test:fakes"])]).len(), 0);
    }

    #[test]
    fn a_heavy_dependency_outside_its_fence_is_found() {
        assert_eq!(fence_findings(&[member("node", &["sled"])]).len(), 1);
        assert_eq!(fence_findings(&[member("cluster", &["libp2p-stream"])]).len(), 1);
        assert_eq!(fence_findings(&[member("gateway", &["test:clap_complete"])]).len(), 1);
        assert_eq!(fence_findings(&[member("store", &["sled", "sledgehammer"])]).len(), 0);
    }

    #[test]
    fn a_member_that_decides_for_itself_is_found() {
        let good = r#"
            package = { version.workspace = true, edition.workspace = true, rust-version.workspace = true,
                        license.workspace = true, publish.workspace = true }
            lints.workspace = true
            dependencies = { serde.workspace = true }
            target.'cfg(unix)'.dependencies = { rustix = { workspace = true } }
        "#;
        let findings = |manifest: &str| {
            inheritance_findings(&[Member { manifest: manifest.parse().unwrap(), ..member("store", &[]) }]).len()
        };
        assert_eq!(findings(good), 0);
        assert_eq!(findings(&good.replace("edition.workspace = true", "edition = '2021'")), 1);
        assert_eq!(findings(&good.replace("lints.workspace = true", "")), 1);
        assert_eq!(findings(&good.replace("serde.workspace = true", "serde = '1'")), 1);
        assert_eq!(findings(&good.replace("rustix = { workspace = true }", "rustix = { version = '1' }")), 1);
        assert_eq!(findings(""), 6);
    }

    #[test]
    fn a_version_that_moved_is_found() {
        let table = |sled: &str| -> toml::Table {
            let text = format!(
                "[workspace.dependencies]\nsled = '{sled}'\nlibp2p = {{ version = '0.57.1' }}\n\
                 openraft = '=0.10.0-alpha.37'\nbincode = {{ version = '=2.0.1' }}\n\
                 llama-cpp-2 = '=0.1.160'\nllama-cpp-sys-2 = '=0.1.161'"
            );
            text.parse().unwrap()
        };
        let lock = |sled: &str, libp2p: &str| {
            vec![
                package("sled", sled, None),
                package("libp2p", libp2p, None),
                package("openraft", "0.10.0-alpha.37", None),
                package("bincode", "2.0.1", None),
                package("llama-cpp-2", "0.1.160", None),
                package("llama-cpp-sys-2", "0.1.161", None),
            ]
        };
        assert_eq!(pin_findings(&table("=0.34.7"), &lock("0.34.7", "0.57.2")).len(), 0);
        assert_eq!(pin_findings(&table("0.34.7"), &lock("0.34.7", "0.57.2")).len(), 1);
        assert_eq!(pin_findings(&table("=0.34.7"), &lock("0.34.6", "0.57.2")).len(), 1);
        assert_eq!(pin_findings(&table("=0.34.7"), &lock("0.34.7", "0.57.0")).len(), 1);
        let mut twice = lock("0.34.7", "0.57.2");
        twice.push(package("libp2p", "0.58.0", None));
        assert_eq!(pin_findings(&table("=0.34.7"), &twice).len(), 1);
        assert_eq!(pin_findings(&toml::Table::new(), &[]).len(), PINS.len());
    }

    #[test]
    fn a_dependency_from_elsewhere_and_a_banned_one_are_found() {
        assert_eq!(origin_findings(&[package("x", "1.0.0", Some("git+https://example.org/x"))]).len(), 1);
        assert_eq!(origin_findings(&[package("vendored", "1.0.0", None)]).len(), 1);
        let registry = Some("registry+https://example.org/index");
        assert_eq!(origin_findings(&[package("openssl-sys", "0.9.0", registry)]).len(), 1);
        assert_eq!(origin_findings(&[package("serde", "1.0.0", registry), package("store", "0.1.0", None)]).len(), 0);
    }

    #[test]
    fn an_unknown_entry_of_the_top_folder_is_found() {
        let findings = |path: &str| top_level_findings(&[path.to_owned()]).len();
        assert_eq!(findings("notes.txt"), 1);
        assert_eq!(findings("scripts/run.sh"), 1);
        assert_eq!(findings("tests/tidy.rs"), 0);
    }

    #[test]
    fn files_against_the_rules_are_found() {
        let findings = |path: &str, text: &str| source_findings(&[source(path, text)], &[]).len();
        assert_eq!(findings("crates/a/src/b/mod.rs", ""), 1);
        assert_eq!(findings("src/a.rs", concat!("    #[", "ignore = \"slow\"]\nfn a() {}")), 1);
        assert_eq!(findings("docs/a.md", concat!("see `/ho", "me/me/notes`")), 1);
        assert_eq!(findings("docs/a.md", concat!("see https://example.org/ho", "me/page and ~/ho", "me/")), 0);
        assert_eq!(findings("src/a.rs", "fn ignore() {}"), 0);
    }

    #[test]
    fn a_long_file_is_found_and_so_is_a_listing_it_has_outgrown() {
        let long = source("src/a.rs", &"//\n".repeat(LINES_MAX + 1));
        let short = source("src/a.rs", &"//\n".repeat(LINES_MAX));
        let listed = [("src/a.rs", "one table")];
        assert_eq!(source_findings(std::slice::from_ref(&long), &[]).len(), 1);
        assert_eq!(source_findings(&[long], &listed).len(), 0);
        assert_eq!(source_findings(std::slice::from_ref(&short), &listed).len(), 1);
        assert_eq!(source_findings(&[short], &[]).len(), 0);
    }
}
