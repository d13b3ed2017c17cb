//! What processes have cost so far, in processor time and memory, as /proc tells.

use std::fs;

/// Clock ticks of /proc's times in a second: the same for all of Linux's user space.
const TICKS: f64 = 100.0;

/// Costs of some processes and of those that they have started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Seconds of processor time, user and system; of children that have ended, too.
    pub cpu: f64,
    /// Sum of the most memory that each had resident so far, in KiB; without children that have ended.
    pub peak_kib: u64,
}

impl Usage {
    /// Of these processes and all their living descendants. One that has ended counts nothing.
    pub fn of(pids: &[u32]) -> Self {
        let mut sum = Self::default();
        for pid in pids {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if let Some(times) = times(&stat) {
                sum.cpu += times.iter().sum::<f64>();
            }
            sum.peak_kib += peak_kib(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default());
            let below = Self::of(&children(*pid));
            sum.cpu += below.cpu;
            sum.peak_kib += below.peak_kib;
        }
        sum
    }

    /// Processor time of the programs that this process has run to their end.
    pub fn of_programs_run() -> f64 {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        times(&stat).map_or(0.0, |[_, _, user, system]| user + system)
    }
}

fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    // A process's children are listed by the thread that started them.
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let list = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        found.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    found
}

/// Seconds of user and system time, then the same of children that were waited for, from `/proc/PID/stat`.
fn times(stat: &str) -> Option<[f64; 4]> {
    // The name stands in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace().skip(11).map(|ticks| ticks.parse::<f64>().map(|ticks| ticks / TICKS));
    let mut next = || fields.next()?.ok();
    Some([next()?, next()?, next()?, next()?])
}

/// `VmHWM` of `/proc/PID/status`.
fn peak_kib(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn times_stand_behind_any_name() {
        let stat = "77 (a) b (c)) S 1 77 77 0 -1 4194560 900 0 3 0 150 25 300 50 20 0 8 0 1 2 3";
        assert_eq!(times(stat), Some([1.5, 0.25, 3.0, 0.5]));
        assert_eq!(times("77 (a) S 1"), None);
        assert_eq!(peak_kib("VmPeak:\t 9 kB\nVmHWM:\t  1234 kB\nVmRSS:\t 8 kB\n"), 1234);
    }

    #[test]
    fn programs_that_were_run_and_children_that_live_are_counted() {
        let before = Usage::of_programs_run();
        let work = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        assert!(Command::new("sh").args(["-c", work]).status().unwrap().success());
        assert!(Usage::of_programs_run() > before);

        let mut parent = Command::new("sh").args(["-c", "sleep 30 & sleep 30; :"]).spawn().unwrap();
        while children(parent.id()).len() < 2 {
            std::thread::yield_now();
        }
        let alone = peak_kib(&fs::read_to_string(format!("/proc/{}/status", parent.id())).unwrap());
        assert!(Usage::of(&[parent.id()]).peak_kib > alone);
        for child in children(parent.id()) {
            let _ = Command::new("kill").arg(child.to_string()).status();
        }
        parent.wait().unwrap();
        assert_eq!(Usage::of(&[parent.id()]), Usage::default());
    }
}
