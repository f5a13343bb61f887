//! How settings are written: times as people write them, and `off` for what has no limit.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// A value, or `off`.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "neither a value of the right kind nor `off`")]
enum OrOff<T> {
    Off(Off),
    On(T),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Off {
    Off,
}

/// Anything that can be turned off.
pub(super) mod or_off {
    use super::*;

    pub(in super::super) fn serialize<T: Serialize, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let value = value.as_ref();
        value
            .map_or(OrOff::Off(Off::Off), OrOff::On)
            .serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        OrOff::deserialize(deserializer).map(|value| match value {
            OrOff::On(value) => Some(value),
            OrOff::Off(Off::Off) => None,
        })
    }
}

/// A time that can be turned off.
pub(super) mod time_or_off {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        or_off::serialize(&time.map(Time), serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        or_off::deserialize(deserializer).map(|time: Option<Time>| time.map(|Time(time)| time))
    }
}

/// Two times that can be turned off.
pub(super) mod times_or_off {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(
        times: &Option<(Duration, Duration)>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let times = times.map(|(one, other)| (Time(one), Time(other)));
        or_off::serialize(&times, serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<(Duration, Duration)>, D::Error> {
        let times: Option<(Time, Time)> = or_off::deserialize(deserializer)?;
        Ok(times.map(|(Time(one), Time(other))| (one, other)))
    }
}

/// A time that cannot.
pub(super) mod time {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(
        time: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        Time(*time).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        Time::deserialize(deserializer).map(|Time(time)| time)
    }
}

/// A time as people write it: `3s`, `1h 30m`.
struct Time(Duration);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = humantime::parse_duration(&text);
        time.map(Self)
            .map_err(|error| D::Error::custom(NoTime { text, error }))
    }
}

struct NoTime {
    text: String,
    error: humantime::DurationError,
}

impl fmt::Display for NoTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no time: {}", self.text, self.error)
    }
}
