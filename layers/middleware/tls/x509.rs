//! Two things out of a certificate that rustls checks and does not tell: whom it names, and how long it is valid
//! (RFC 5280, section 4.1). Nothing is decided by it but what a log line says and whether a file is taken into use.

use std::fmt::Write;

/// Whom it names, as RFC 4514 writes it; `None` if it is no certificate.
pub(super) fn subject(certificate: &[u8]) -> Option<String> {
    let mut rest = behind_issuer(certificate)?;
    rest.take(SEQUENCE)?;
    let mut names = rest.take(SEQUENCE)?;
    let mut parts = Vec::new();
    while !names.0.is_empty() {
        parts.push(relative_name(names.take(SET)?)?);
    }
    // The most significant comes first there, and last here.
    parts.reverse();
    Some(parts.join(","))
}

/// The seconds since 1970 from and until which it is valid.
pub(super) fn validity(certificate: &[u8]) -> Option<(u64, u64)> {
    let mut validity = behind_issuer(certificate)?.take(SEQUENCE)?;
    Some((time(&mut validity)?, time(&mut validity)?))
}

/// What is to be signed, from the validity on.
fn behind_issuer(certificate: &[u8]) -> Option<Der<'_>> {
    let mut certificate = Der(certificate).take(SEQUENCE)?;
    let mut signed = certificate.take(SEQUENCE)?;
    if signed.0.first() == Some(&VERSION) {
        signed.take(VERSION)?;
    }
    signed.take(INTEGER)?;
    signed.take(SEQUENCE)?;
    signed.take(SEQUENCE)?;
    Some(signed)
}

/// Values with their tags in front.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value and its tag.
    fn next(&mut self) -> Option<(u8, Self)> {
        let (tag, rest) = self.0.split_first()?;
        let (first, mut rest) = rest.split_first()?;
        let mut length = usize::from(*first);
        if length > 0x7f {
            // So many bytes of length follow; a certificate of gigabytes is none.
            let bytes = length & 0x7f;
            if bytes == 0 || bytes > 3 {
                return None;
            }
            let (digits, behind) = rest.split_at_checked(bytes)?;
            length = digits
                .iter()
                .fold(0, |length, digit| length << 8 | usize::from(*digit));
            rest = behind;
        }
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, Self(value)))
    }

    /// The next value, which has this tag.
    fn take(&mut self, tag: u8) -> Option<Self> {
        let (found, value) = self.next()?;
        (found == tag).then_some(value)
    }
}

/// One level of a name, which seldom has more than one attribute.
fn relative_name(mut attributes: Der<'_>) -> Option<String> {
    let mut text = String::new();
    while !attributes.0.is_empty() {
        let mut attribute = attributes.take(SEQUENCE)?;
        let kind = attribute.take(OBJECT_IDENTIFIER)?;
        let whole = attribute.0;
        let (tag, value) = attribute.next()?;
        if !text.is_empty() {
            text.push('+');
        }
        let known = KINDS
            .iter()
            .find(|(id, _)| *id == kind.0);
        let readable = matches!(tag, UTF8 | PRINTABLE | IA5)
            .then(|| std::str::from_utf8(value.0).ok())
            .flatten();
        match (known, readable) {
            (Some((_, name)), Some(value)) => {
                text += name;
                text.push('=');
                escape(value, &mut text);
            }
            _ => {
                match known {
                    Some((_, name)) => text += name,
                    None => dotted(kind.0, &mut text),
                }
                text += "=#";
                hex(whole, &mut text);
            }
        }
    }
    Some(text)
}

/// RFC 4514, section 2.4; control characters as well, since it goes into logs.
fn escape(value: &str, out: &mut String) {
    let last = value.len().saturating_sub(1);
    for (at, sign) in value.char_indices() {
        match sign {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' | '=' => out.extend(['\\', sign]),
            '#' | ' ' if at == 0 => out.extend(['\\', sign]),
            ' ' if at == last => out.extend(['\\', sign]),
            _ if sign.is_control() => {
                for byte in sign.encode_utf8(&mut [0; 4]).bytes() {
                    out.push('\\');
                    hex(&[byte], out);
                }
            }
            _ => out.push(sign),
        }
    }
}

/// An object identifier as numbers and dots.
fn dotted(id: &[u8], out: &mut String) {
    let (mut number, mut first) = (0_u64, true);
    for byte in id {
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 != 0 {
            continue;
        }
        let (lead, rest) = match (first, number) {
            (false, rest) => (None, rest),
            // The first two share a number.
            (true, 0..80) => (Some(number / 40), number % 40),
            (true, _) => (Some(2), number - 80),
        };
        // Writing to a string does not fail.
        let _written = match lead {
            Some(lead) => write!(out, "{lead}.{rest}"),
            None => write!(out, ".{rest}"),
        };
        (number, first) = (0, false);
    }
}

fn hex(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        let _written = write!(out, "{byte:02X}");
    }
}

/// `YYMMDDHHMMSSZ`, or with four digits of the year (RFC 5280, section 4.1.2.5).
fn time(validity: &mut Der<'_>) -> Option<u64> {
    let (tag, value) = validity.next()?;
    let digits = value.0.strip_suffix(b"Z")?;
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let (year, rest) = digits.split_at(2);
            let year = number(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        (GENERALIZED_TIME, 14) => {
            let (year, rest) = digits.split_at(4);
            (number(year)?, rest)
        }
        _ => return None,
    };
    let mut parts = [0; 5];
    for (part, digits) in parts.iter_mut().zip(rest.chunks(2)) {
        *part = number(digits)?;
    }
    let [month, day, hour, minute, second] = parts;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Before 1970 is before anybody's clock.
    let days = days_since_1970(year, month, day).unwrap_or(0);
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

fn number(digits: &[u8]) -> Option<u64> {
    digits
        .iter()
        .try_fold(0, |number, digit| {
            digit
                .is_ascii_digit()
                .then(|| number * 10 + u64::from(digit - b'0'))
        })
}

/// Days of the Gregorian calendar, counted in years that begin in March, so that a leap day is the last.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = if month < 3 {
        year.checked_sub(1)?
    } else {
        year
    };
    let month = (month + 9) % 12;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    days.checked_sub(719_468)
}

const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const IA5: u8 = 0x16;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;

/// RFC 4514, section 3: those that have a short name.
const KINDS: &[(&[u8], &str)] = &[
    (&[0x55, 4, 3], "CN"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 9], "STREET"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (
        &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1],
        "UID",
    ),
    (
        &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25],
        "DC",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        let days = |year, month, day| days_since_1970(year, month, day);

        assert_eq!(days(1970, 1, 1), Some(0));
        assert_eq!(days(2000, 2, 29), Some(11_016));
        assert_eq!(days(2000, 3, 1), Some(11_017));
        assert_eq!(days(2100, 3, 1), Some(47_541));
        assert_eq!(days(1969, 12, 31), None);
    }

    #[test]
    fn a_value_cannot_step_out_of_its_field() {
        let mut text = String::new();
        escape("# a,CN=b+\"\\\n\u{9f} ", &mut text);
        assert_eq!(text, r##"\# a\,CN\=b\+\"\\\0A\C2\9F\ "##);
    }

    #[test]
    fn an_unknown_kind_is_dotted() {
        let mut text = String::new();
        dotted(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1], &mut text);
        assert_eq!(text, "1.2.840.113549.1.9.1");
    }

    #[test]
    fn what_is_no_certificate_says_nothing() {
        for bytes in [
            &b""[..],
            b"\x30",
            b"\x30\x80",
            b"\x30\x84\xff\xff\xff\xff",
            b"\x30\x02\x30\x7f",
        ] {
            assert_eq!((subject(bytes), validity(bytes)), (None, None), "{bytes:?}");
        }
    }
}
