//! Numbers for people.

/// A rate a second with a decimal prefix: `4.31 TB/s`.
pub fn rate(value: f64, unit: &str) -> String {
    let (scaled, prefix) = match value {
        v if v >= 1e12 => (v / 1e12, "T"),
        v if v >= 1e9 => (v / 1e9, "G"),
        v => (v / 1e6, "M"),
    };
    let digits = if scaled < 10.0 {
        2
    } else if scaled < 100.0 {
        1
    } else {
        0
    };
    format!("{scaled:.digits$} {prefix}{unit}")
}

/// A size in bytes with a binary prefix: `128 MiB`.
pub fn bytes(value: u64) -> String {
    match value {
        v if v >= 1 << 30 => format!("{:.1} GiB", v as f64 / f64::from(1 << 30)),
        v if v >= 1 << 20 => format!("{} MiB", v >> 20),
        v => format!("{} KiB", v >> 10),
    }
}

/// A time given in seconds: `2.41 us`.
pub fn seconds(value: f64) -> String {
    match value {
        v if v >= 1.0 => format!("{v:.2} s"),
        v if v >= 1e-3 => format!("{:.2} ms", v * 1e3),
        v => format!("{:.2} us", v * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_fit() {
        assert_eq!(rate(4.312e12, "B/s"), "4.31 TB/s");
        assert_eq!(rate(625e12, "FLOP/s"), "625 TFLOP/s");
        assert_eq!(rate(31.25e9, "B/s"), "31.2 GB/s");
        assert_eq!(bytes(128 << 20), "128 MiB");
        assert_eq!(bytes(2 << 30), "2.0 GiB");
        assert_eq!(seconds(2.4e-6), "2.40 us");
    }
}
