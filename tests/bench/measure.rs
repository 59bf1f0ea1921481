//! Measurements for the benches: medians and percentiles, CPU time and memory of a process.
#![allow(dead_code)]

/// The median; the upper one of an even number of values.
pub fn median(values: Vec<f64>) -> f64 {
    percentile(values, 50)
}

/// The value that `percent` of all do not exceed.
pub fn percentile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() * percent / 100).min(values.len() - 1)]
}

/// The CPU seconds of a process so far.
pub fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().expect("ticks")).sum();
    // Linux reports ticks of 10 ms (USER_HZ).
    ticks / 100.0
}

/// The memory of a process in MiB: `VmHWM` is the maximum so far, `VmRSS` the current value.
pub fn memory(pid: u32, which: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux");
    let line = status.lines().find(|line| line.starts_with(which)).expect("a process with memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("KiB") / 1024.0
}
