//! `cargo xtask test`: every check, cheapest first, ending with how many tests passed and failed.
//!
//! Continuous integration runs this and nothing else.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::clients::{self, Outcome};
use crate::{build, engine_tools, tools};

/// One kind of check: a call of cargo that ends well or does not.
struct Group {
    name: &'static str,
    /// Separated by spaces.
    arguments: &'static str,
    /// Whether its tests belong to the sum at the end.
    counted: bool,
}

/// In this order: seconds first, then what needs types only, then what needs machine code. Whole workspace and one
/// profile throughout, the engine included: another selection would unify features differently and compile the dependencies again.
const GROUPS: [Group; 5] = [
    Group { name: "format", arguments: "fmt --all --check", counted: false },
    Group {
        name: "clippy",
        arguments: "clippy --locked --profile=ci --workspace --features=omx/engine --all-targets -- --deny=warnings",
        counted: false,
    },
    Group {
        name: "docs",
        arguments: "doc --locked --profile=ci --workspace --features=omx/engine --no-deps",
        counted: false,
    },
    // The fences run again among the tests, where they are counted; here they fail before the long part starts.
    Group {
        name: "fences",
        arguments: "test --locked --profile=ci --workspace --features=omx/engine --test=tidy",
        counted: false,
    },
    Group {
        name: "tests",
        arguments: "test --locked --profile=ci --workspace --features=omx/engine --no-fail-fast",
        counted: true,
    },
];

/// Runs the groups up to the first that fails. The last line is the sum over all test binaries, alone on its line.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    tools::need_component("rustfmt", "fmt")?;
    tools::need_component("clippy", "clippy")?;
    tools::need_c_compiler()?;
    engine_tools::need()?;

    let mut tally = Tally::default();
    let mut reports = Vec::with_capacity(GROUPS.len());
    for group in &GROUPS {
        println!("\n{}: cargo {}", group.name, group.arguments);
        let begun = Instant::now();
        let (passed, counted) = group.run()?;
        if group.counted {
            tally = counted;
        }
        reports.push(Report { name: group.name, passed, took: begun.elapsed() });
        if !passed {
            break;
        }
    }
    let missing = match reports.iter().all(|report| report.passed) {
        true => clients(&mut reports),
        false => Some("after a failure".to_owned()),
    };

    println!();
    for report in &reports {
        println!("{report}");
    }
    for group in GROUPS.iter().skip(reports.len()) {
        println!("{:<8} not run", group.name);
    }
    if let Some(missing) = &missing {
        println!("{:<8} not run: {missing}", "clients");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    // A person may lack Python or Node; continuous integration has both.
    let all = missing.is_none() || env::var_os("CI").is_none_or(|ci| ci != "true");
    let good = all && reports.len() >= GROUPS.len() && reports.iter().all(|report| report.passed) && tally.is_good();
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Other people's clients against the binary that was tested. Returns what was missing, where they were not run.
fn clients(reports: &mut Vec<Report>) -> Option<String> {
    println!("\nclients: PyPI `ollama`, `openai`, `langchain-ollama` and `litellm`, npm `ollama`");
    let begun = Instant::now();
    let passed = match build::tested_binary().and_then(|binary| clients::run(&binary)) {
        Ok(Outcome::NotRun(missing)) => return Some(missing),
        Ok(Outcome::Good) => true,
        Err(error) => {
            println!("{error:#}");
            false
        }
    };
    reports.push(Report { name: "clients", passed, took: begun.elapsed() });
    None
}

impl Group {
    /// Whether it ended well, and the tests in its output, which goes through unchanged.
    fn run(&self) -> anyhow::Result<(bool, Tally)> {
        let mut child = tools::cargo()
            .args(self.arguments.split(' '))
            .env("RUSTDOCFLAGS", "--deny=warnings")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to run cargo")?;
        let output = child.stdout.take().expect("stdout is a pipe, as set above");
        let tally = pass_through(output, &mut io::stdout()).context("failed to pass cargo's output on")?;
        let status = child.wait().context("failed to wait for cargo")?;
        Ok((status.success(), tally))
    }
}

struct Report {
    name: &'static str,
    passed: bool,
    took: Duration,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let outcome = if self.passed { "ok" } else { "FAILED" };
        write!(f, "{:<8} {outcome:<7} {:>7.1} s", self.name, self.took.as_secs_f64())
    }
}

/// What the test binaries said about themselves.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    /// A run in which no test ran has shown nothing.
    fn is_good(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    fn add(&mut self, other: &Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// Reads `test result: ok. 12 passed; 0 failed; 0 ignored; …`, the closing line of one test binary.
    fn of_line(line: &str) -> Option<Tally> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut counts = counts.split("; ");
        let passed = counts.next()?.strip_suffix(" passed")?.parse().ok()?;
        let failed = counts.next()?.strip_suffix(" failed")?.parse().ok()?;
        Some(Tally { passed, failed })
    }
}

/// Copies line by line, so that a person sees the tests as they run, and sums up the closing lines.
fn pass_through(from: impl Read, to: &mut impl Write) -> io::Result<Tally> {
    let mut from = BufReader::new(from);
    let mut tally = Tally::default();
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        to.write_all(&line)?;
        to.flush()?;
        if let Some(one) = Tally::of_line(String::from_utf8_lossy(&line).trim_end()) {
            tally.add(&one);
        }
        line.clear();
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_BINARIES: &str = "\
running 3 tests
test a ... ok
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

running 2 tests
test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.10s
";

    #[test]
    fn the_sum_goes_over_all_test_binaries_and_their_output_goes_through_unchanged() {
        let mut shown = Vec::new();
        let tally = pass_through(TWO_BINARIES.as_bytes(), &mut shown).unwrap();
        assert_eq!(tally, Tally { passed: 3, failed: 1 });
        assert_eq!(shown, TWO_BINARIES.as_bytes());
    }

    #[test]
    fn output_that_is_no_text_goes_through_too() {
        let bytes = b"\xff\xfe\ntest result: ok. 1 passed; 0 failed; 0 ignored\nno newline at the end";
        let mut shown = Vec::new();
        assert_eq!(pass_through(&bytes[..], &mut shown).unwrap(), Tally { passed: 1, failed: 0 });
        assert_eq!(shown, bytes);
    }

    #[test]
    fn only_closing_lines_are_counted() {
        assert_eq!(Tally::of_line("test store::test_result: ok. 9 passed; 0 failed"), None);
        assert_eq!(Tally::of_line("9 passed, 0 failed"), None);
        assert_eq!(Tally::of_line("test result: ok. many passed; 0 failed"), None);
    }

    #[test]
    fn a_run_without_tests_and_a_run_with_a_failure_are_not_good() {
        assert!(!Tally::default().is_good());
        assert!(!Tally { passed: 5, failed: 1 }.is_good());
        assert!(Tally { passed: 5, failed: 0 }.is_good());
    }
}
