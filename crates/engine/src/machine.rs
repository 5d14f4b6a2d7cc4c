//! What this machine offers to a model.

use std::fs;

/// Bytes of memory that a model may take now, and `None` where the system does not tell.
pub(crate) fn memory_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    memory_line(&text, "MemAvailable:")
}

/// Bytes of memory there are, and `None` where the system does not tell.
pub fn memory_total() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    memory_line(&text, "MemTotal:")
}

fn memory_line(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Cores that can be used at once for the same kind of work: of two threads on one core the second only waits.
#[cfg(any(feature = "llama", test))]
pub(crate) fn cores() -> usize {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let siblings = (0..threads)
        .map(|cpu| fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).ok());
    distinct(siblings).unwrap_or(threads)
}

/// `None` where any CPU does not tell which share its core.
#[cfg(any(feature = "llama", test))]
fn distinct(siblings: impl Iterator<Item = Option<String>>) -> Option<usize> {
    let lists: Option<std::collections::BTreeSet<String>> = siblings.collect();
    lists.map(|lists| lists.len()).filter(|cores| *cores > 0)
}

/// The first feature that llama.cpp is compiled for and this processor lacks: it would die of an illegal instruction.
#[cfg(feature = "llama")]
pub(crate) fn cpu_lacks() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let has = [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("f16c", std::arch::is_x86_feature_detected!("f16c")),
            ("bmi2", std::arch::is_x86_feature_detected!("bmi2")),
        ];
        has.into_iter().find(|(_, has)| !has).map(|(name, _)| name)
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       24576000 kB\nMemFree:  1 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(memory_line(text, "MemAvailable:"), Some(1024 * 1024));
        assert_eq!(memory_line(text, "MemTotal:"), Some(24_576_000 * 1024));
        assert_eq!(memory_line("MemTotal: 1 kB", "MemAvailable:"), None);
        assert_eq!(memory_line("MemAvailable: much kB", "MemAvailable:"), None);
    }

    #[test]
    fn threads_of_one_core_count_once() {
        let lists = |lists: &[&str]| distinct(lists.iter().map(|list| Some((*list).to_owned())));
        assert_eq!(lists(&["0,2", "1,3", "0,2", "1,3"]), Some(2));
        assert_eq!(lists(&["0", "1"]), Some(2));
        assert_eq!(distinct([Some("0".to_owned()), None].into_iter()), None);
        assert_eq!(lists(&[]), None);
    }

    #[test]
    fn this_machine_has_a_core_and_memory() {
        assert!(cores() > 0);
        assert!(memory_available().is_none_or(|bytes| bytes > 0));
        assert_eq!(memory_available().is_some(), cfg!(target_os = "linux"));
    }
}
