//! How settings are written: times as people write them, and `off` for what has no limit.

use std::{fmt, marker::PhantomData, time::Duration};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        Error, IntoDeserializer, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};

/// Anything that can be turned off.
pub(super) mod or_off {
    use super::*;

    pub(in super::super) fn serialize<T: Serialize, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => value.serialize(serializer),
            None => serializer.serialize_str(OFF),
        }
    }

    pub(in super::super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        deserializer.deserialize_any(OrOff(PhantomData))
    }
}

/// Reads a value, or `off`. What is wrong with the value is for the value to say.
struct OrOff<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OrOff<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value or `{OFF}`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Option<T>, E> {
        if text == OFF {
            return Ok(None);
        }
        T::deserialize(text.into_deserializer()).map(Some)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Option<T>, E> {
        T::deserialize(number.into_deserializer()).map(Some)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Option<T>, E> {
        T::deserialize(number.into_deserializer()).map(Some)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Option<T>, E> {
        T::deserialize(number.into_deserializer()).map(Some)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, values: A) -> Result<Option<T>, A::Error> {
        T::deserialize(SeqAccessDeserializer::new(values)).map(Some)
    }

    fn visit_map<A: MapAccess<'de>>(self, values: A) -> Result<Option<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(values)).map(Some)
    }
}

const OFF: &str = "off";

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
