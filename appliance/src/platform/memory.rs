//! How much memory the VM has and how much the worker needed.

use std::fs;

/// Sizes in KiB, 0 where the kernel does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// What the kernel can use.
    pub total_kib: u64,
    /// What a program could still get.
    pub available_kib: u64,
    /// Most that this process ever held at once.
    pub worker_peak_kib: u64,
}

/// Memory of the VM and of this process.
pub fn now() -> Memory {
    // A file that cannot be read gives zeros: this only informs.
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    Memory {
        total_kib: field_kib(&meminfo, "MemTotal:"),
        available_kib: field_kib(&meminfo, "MemAvailable:"),
        worker_peak_kib: field_kib(&status, "VmHWM:"),
    }
}

/// True if the kernel has killed a process since boot because memory ran out.
pub fn ran_out() -> bool {
    let counters = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    counters.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|n| n.trim() != "0"))
}

fn field_kib(text: &str, name: &str) -> u64 {
    let field = text.lines().find_map(|line| line.strip_prefix(name));
    field.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_missing_ones_are_zero() {
        let text = "MemTotal:         115484 kB\nMemAvailable:      84000 kB\n";
        assert_eq!(field_kib(text, "MemAvailable:"), 84_000);
        assert_eq!(field_kib(text, "VmHWM:"), 0);
    }

    #[test]
    fn this_process_has_a_peak() {
        assert!(now().worker_peak_kib > 0);
    }
}
