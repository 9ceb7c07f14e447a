//! The text form of patterns: `name:option=value,option=value`.

use std::fmt;
use std::str::FromStr;

use super::pattern::Pattern;
use crate::error::{Error, Result};

/// The patterns and their options, for error messages and help.
const FORMS: &str = "dense, s2:stride=N or N/M/..,window=N,sinks=N,offset=N, longgen:window=N,sinks=N,stride=N, \
     bigbird:window=N,global=N,random=N,seed=N, dilated:window=N,dilation=N, banded:left=N,right=N";

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense => f.write_str("dense"),
            Self::S2 {
                strides,
                offset,
                window,
                sinks,
            } => {
                let strides: Vec<String> = strides.iter().map(usize::to_string).collect();
                write!(f, "s2:stride={},window={window}", strides.join("/"))?;
                if *sinks > 0 {
                    write!(f, ",sinks={sinks}")?;
                }
                if *offset > 0 {
                    write!(f, ",offset={offset}")?;
                }
                Ok(())
            }
            Self::LongGen {
                window,
                sinks,
                stride,
            } => write!(f, "longgen:window={window},sinks={sinks},stride={stride}"),
            Self::BigBird {
                window,
                global,
                random,
                seed,
            } => write!(
                f,
                "bigbird:window={window},global={global},random={random},seed={seed}"
            ),
            Self::Dilated { window, dilation } => {
                write!(f, "dilated:window={window},dilation={dilation}")
            }
            Self::Banded { left, right } => write!(f, "banded:left={left},right={right}"),
        }
    }
}

/// The options of one pattern, taken one by one.
struct Options<'a> {
    pattern: &'a str,
    given: Vec<(&'a str, &'a str)>,
}

impl<'a> Options<'a> {
    fn parse(pattern: &'a str, text: &'a str) -> Result<Self> {
        let mut given: Vec<(&str, &str)> = Vec::new();
        for option in text.split(',').filter(|o| !o.is_empty()) {
            let Some((name, value)) = option.split_once('=') else {
                return Err(Error::argument("layout", option, "option=value"));
            };
            if given.iter().any(|(other, _)| *other == name) {
                return Err(Error::argument(name, "given twice", "once"));
            }
            given.push((name, value));
        }
        Ok(Self { pattern, given })
    }

    fn take(&mut self, name: &str) -> Option<&'a str> {
        let at = self.given.iter().position(|(other, _)| *other == name)?;
        Some(self.given.swap_remove(at).1)
    }

    fn number<T: FromStr>(&mut self, name: &str, default: T) -> Result<T> {
        match self.take(name) {
            Some(text) => number(name, text),
            None => Ok(default),
        }
    }

    /// A list of numbers `N/M/..`, which has to be there.
    fn numbers(&mut self, name: &str) -> Result<Vec<usize>> {
        let Some(text) = self.take(name) else {
            return Err(self.missing(name));
        };
        text.split('/').map(|n| number(name, n)).collect()
    }

    fn required(&mut self, name: &str) -> Result<usize> {
        match self.take(name) {
            Some(text) => number(name, text),
            None => Err(self.missing(name)),
        }
    }

    fn missing(&self, name: &str) -> Error {
        Error::argument(
            name,
            "missing",
            format!("a number of blocks for {}", self.pattern),
        )
    }

    fn finish(self) -> Result<()> {
        match self.given.first() {
            Some((name, _)) => {
                let was = format!("{}: unknown option {name}", self.pattern);
                Err(Error::argument("layout", was, FORMS))
            }
            None => Ok(()),
        }
    }
}

fn number<T: FromStr>(name: &str, text: &str) -> Result<T> {
    let parsed = text.parse();
    parsed.map_err(|_| Error::argument(name, text, "a whole number from 0 on"))
}

impl FromStr for Pattern {
    type Err = Error;

    /// Parses `dense`, `s2:stride=16,window=4` (`stride=8/16/32` for heads in turn), `longgen:window=4,sinks=1,stride=16`,
    /// `bigbird:window=3,global=1,random=2,seed=0`, `dilated:window=4,dilation=2`, `banded:left=3,right=0`. Windows are 1
    /// and everything else 0 where not given, but strides have to be.
    fn from_str(text: &str) -> Result<Self> {
        let (name, options) = text.split_once(':').unwrap_or((text, ""));
        let mut options = Options::parse(name, options)?;
        let pattern = match name {
            "dense" => Self::Dense,
            "s2" => Self::S2 {
                strides: options.numbers("stride")?,
                window: options.number("window", 1)?,
                sinks: options.number("sinks", 0)?,
                offset: options.number("offset", 0)?,
            },
            "longgen" => Self::LongGen {
                stride: options.required("stride")?,
                window: options.number("window", 1)?,
                sinks: options.number("sinks", 0)?,
            },
            "bigbird" => Self::BigBird {
                window: options.number("window", 1)?,
                global: options.number("global", 0)?,
                random: options.number("random", 0)?,
                seed: options.number("seed", 0)?,
            },
            "dilated" => Self::Dilated {
                dilation: options.required("dilation")?,
                window: options.number("window", 1)?,
            },
            "banded" => Self::Banded {
                left: options.number("left", 0)?,
                right: options.number("right", 0)?,
            },
            other => return Err(Error::argument("layout", other, FORMS)),
        };
        options.finish()?;
        pattern.check()?;
        Ok(pattern)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_parses_to_the_same() {
        for text in [
            "dense",
            "s2:stride=16,window=4",
            "s2:stride=8/16/32,window=2,sinks=1,offset=5",
            "longgen:window=4,sinks=1,stride=16",
            "bigbird:window=3,global=1,random=2,seed=7",
            "dilated:window=4,dilation=2",
            "banded:left=3,right=1",
        ] {
            let pattern: Pattern = text.parse().expect(text);
            assert_eq!(pattern.to_string(), text);
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("s3:stride=4", "layout: s3; allowed: dense, s2:"),
            ("s2:window=4", "stride: missing"),
            (
                "s2:stride=0",
                "stride: [0]; allowed: at least one, each from 1 on",
            ),
            ("s2:stride=4,window=0", "window: 0; allowed: 1 or more"),
            ("s2:stride=x", "stride: x; allowed: a whole number"),
            ("s2:stride=4,stride=5", "stride: given twice"),
            ("s2:stride=4,size=5", "s2: unknown option size"),
            ("longgen:window", "layout: window; allowed: option=value"),
            ("dilated:window=2,dilation=0", "dilation: 0"),
        ] {
            let error = text.parse::<Pattern>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
