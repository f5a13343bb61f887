//! Services that do what their requests say.

use std::{io, time::Duration};

use bytes::Bytes;
use tokio::time::sleep;
use tower_net::{CloseReason, Deadline, frame::Request};

pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Does what a request says:
///
/// | request | reply |
/// |---|---|
/// | `wait 20 x` | `x` after 20 ms |
/// | `more 20 wait 30 x` | the same, with 20 ms more time for it |
/// | `hold 20 x` | the same, with the deadlines stopped |
/// | `long 20` | twenty bytes |
/// | `left` | the milliseconds left until the deadline |
/// | `bye x` | `x`, and the connection ends |
/// | `cut` | none: the connection is cut |
/// | `fail`, `fail 20` | an error, at once or after 20 ms |
/// | `panic`, `panic 20` | a panic, at once or after 20 ms |
/// | anything else | the same |
pub async fn obey(request: Request<Bytes>) -> io::Result<String> {
    let text = String::from_utf8_lossy(request.message()).into_owned();
    let mut words: Vec<_> = text.split(' ').collect();
    if let ["more", time, ..] = words[..] {
        request.conn().extend(parse(time));
        words.drain(..2);
    }
    match words[..] {
        ["wait", time, word] => {
            sleep(parse(time)).await;
            Ok(word.to_owned())
        }
        ["hold", time, word] => {
            let _suspended = request.conn().suspend();
            sleep(parse(time)).await;
            Ok(word.to_owned())
        }
        ["long", length] => Ok("x".repeat(length.parse().unwrap())),
        ["left"] => Ok(Deadline::current()
            .remaining()
            .as_millis()
            .to_string()),
        ["bye", word] => {
            request.conn().close_after_reply();
            Ok(word.to_owned())
        }
        ["cut"] => {
            request.conn().cut(CloseReason::Served);
            Ok(String::new())
        }
        ["fail"] => Err(io::Error::other("told to fail")),
        ["fail", time] => {
            sleep(parse(time)).await;
            Err(io::Error::other("told to fail"))
        }
        ["panic"] => panic!("told to panic"),
        ["panic", time] => {
            sleep(parse(time)).await;
            panic!("told to panic")
        }
        _ => Ok(text),
    }
}

fn parse(time: &str) -> Duration {
    millis(time.parse().unwrap())
}
