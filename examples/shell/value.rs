//! What a flag is given.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use tower_net::error::BoxError;

/// The value of a flag, which is the next argument.
pub(crate) struct Value<'a> {
    pub(super) flag: &'a str,
    pub(super) rest: &'a mut dyn Iterator<Item = String>,
}

impl Value<'_> {
    /// Which flag it is of.
    pub(crate) fn flag(&self) -> &str {
        self.flag
    }

    pub(crate) fn text(&mut self) -> Result<String, BoxError> {
        let next = self.rest.next();
        next.ok_or_else(|| format!("{}: needs a value", self.flag).into())
    }

    pub(crate) fn parsed<T: FromStr>(&mut self, problem: impl fmt::Display) -> Result<T, BoxError> {
        let text = self.text()?;
        let parsed = text.parse();
        parsed.map_err(|_| format!("{}: `{text}` {problem}", self.flag).into())
    }

    pub(crate) fn number<T: FromStr>(&mut self) -> Result<T, BoxError> {
        self.parsed("is no number that will do")
    }

    /// So many a second, with or without saying so.
    pub(crate) fn rate(&mut self) -> Result<f64, BoxError> {
        let text = self.text()?;
        let number = text.strip_suffix("/s").unwrap_or(&text);
        let rate = number.parse();
        rate.map_err(|_| format!("{}: `{text}` is no rate: 10/s", self.flag).into())
    }

    /// What is separated by commas.
    pub(crate) fn list(&mut self) -> Result<Vec<String>, BoxError> {
        let text = self.text()?;
        Ok(text
            .split(',')
            .map(str::to_owned)
            .collect())
    }

    /// A certificate and its key, or `None` for one that the program makes itself.
    pub(crate) fn pair(&mut self) -> Result<Option<(PathBuf, PathBuf)>, BoxError> {
        let text = self.text()?;
        if text == "own" {
            return Ok(None);
        }
        let (one, other) = text
            .split_once(',')
            .ok_or_else(|| format!("{}: `{text}` is no CERT,KEY", self.flag))?;
        Ok(Some((one.into(), other.into())))
    }

    pub(crate) fn time(&mut self) -> Result<Duration, BoxError> {
        let Time(time) = self.parsed("is no time: 1500ms, 3s, 5m, 1h")?;
        Ok(time)
    }

    pub(crate) fn one_of<T, const N: usize>(
        &mut self,
        choices: [(&str, T); N],
    ) -> Result<T, BoxError> {
        let text = self.text()?;
        let names = choices
            .each_ref()
            .map(|(name, _)| *name);
        let mut choices = choices.into_iter();
        let chosen = choices.find(|(name, _)| *name == text);
        chosen
            .map(|(_, choice)| choice)
            .ok_or_else(|| {
                let names = names.join(" or ");
                format!("{}: `{text}` is not {names}", self.flag).into()
            })
    }
}

/// A number and its unit.
struct Time(Duration);

impl FromStr for Time {
    type Err = BoxError;

    fn from_str(text: &str) -> Result<Self, BoxError> {
        let unit_at = text
            .find(|c: char| !c.is_ascii_digit())
            .ok_or("no unit")?;
        let (number, unit) = text.split_at(unit_at);
        let unit = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err("no unit".into()),
        };
        let millis = number.parse::<u64>()?.checked_mul(unit);
        Ok(Self(Duration::from_millis(millis.ok_or("too long")?)))
    }
}
