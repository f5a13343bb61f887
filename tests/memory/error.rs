use std::{error::Error, io};

use tower_net::{
    CloseReason, ServeError,
    deadline::Elapsed,
    error::{BoxError, ConfigError, find, is_disconnect},
    frame::{CodecError, FrameError, Framing, LengthDelimited},
    limit::{ConnectionLimitLayer, Full},
};
use tower_service::Service;

use crate::support::{io::Script, peer::serve};

fn config_error() -> ConfigError {
    ConnectionLimitLayer::new(0).unwrap_err()
}

/// The refusal of a codec, which only a codec can make.
fn codec_error() -> CodecError {
    use tokio_util::codec::Encoder;
    LengthDelimited::max_frame(1)
        .encode("too long", &mut bytes::BytesMut::new())
        .unwrap_err()
}

#[test]
fn an_error_is_found_whatever_wrapped_it() {
    let inner = io::Error::from(config_error());
    let frame = FrameError::Service(Box::new(io::Error::other(inner)));
    let wrapped: BoxError = Box::new(io::Error::other(frame));

    let setting = find::<ConfigError>(&*wrapped).map(ConfigError::setting);

    assert_eq!(setting, Some("limit"));
    assert!(find::<FrameError>(&*wrapped).is_some());
    assert!(find::<Full>(&*wrapped).is_none());
}

#[test]
fn only_what_says_that_the_peer_has_gone_is_a_disconnect() {
    use io::ErrorKind::*;
    for kind in [
        BrokenPipe,
        ConnectionAborted,
        ConnectionReset,
        UnexpectedEof,
    ] {
        assert!(is_disconnect(&kind.into()), "{kind}");
    }
    for kind in [TimedOut, ConnectionRefused, Interrupted, InvalidData, Other] {
        assert!(!is_disconnect(&kind.into()), "{kind}");
    }
}

#[test]
fn an_error_says_its_own_level_and_names_its_source() {
    let codec = codec_error();
    let text = codec.to_string();

    let error = FrameError::Decode(codec.into());

    assert_eq!(text, "frame of 8 bytes is over the limit of 1");
    assert_eq!(error.to_string(), "peer sent what is no frame");
    assert_eq!(error.source().unwrap().to_string(), text);
    assert_eq!(error.reason(), CloseReason::Oversize);
}

#[test]
fn a_setting_that_cannot_work_is_named() {
    let error = io::Error::from(config_error());

    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert_eq!(error.to_string(), "setting `limit` must not be zero");
}

#[tokio::test]
async fn a_refusal_is_an_io_error_of_the_right_kind() {
    let layer = ConnectionLimitLayer::new(1).unwrap();
    let mut service = tower_layer::Layer::layer(&layer, tower::service_fn(pending));

    let _holds = service.call(tower_net::Conn::new(Script::new(), ()));
    let (info, served) = serve(Script::new(), service);
    let error = served.await.unwrap().unwrap_err();
    let full = *find::<Full>(&*error).unwrap();

    assert_eq!(info.close_reason(), Some(CloseReason::Limit));
    assert_eq!((full.limit(), full.never_started()), (1, true));
    assert_eq!(
        io::Error::from(full).kind(),
        io::ErrorKind::ConnectionRefused
    );
}

#[test]
fn errors_can_cross_threads_and_be_boxed() {
    fn is_error<E: Error + Send + Sync + 'static>() {}
    is_error::<CodecError>();
    is_error::<ConfigError>();
    is_error::<Elapsed>();
    is_error::<FrameError>();
    is_error::<Full>();
    is_error::<ServeError>();
}

#[test]
fn a_zero_is_named_by_its_setter() {
    let zero = std::time::Duration::ZERO;
    let framing = Framing::default;
    for (wrong, setting) in [
        (framing().pipelined(0), "pipelined"),
        (framing().high_water(0), "high_water"),
        (framing().max_buffered(0), "max_buffered"),
        (framing().request_deadline(zero), "request_deadline"),
        (framing().handler_deadline(zero), "handler_deadline"),
        (framing().reply_deadline(zero), "reply_deadline"),
    ] {
        let codec = LengthDelimited::max_frame(1);

        let refused = tower_net::frame::FrameLayer::with_framing(codec, wrong);

        assert_eq!(refused.unwrap_err().setting(), setting);
    }
}

async fn pending<I>(_held: tower_net::Conn<I>) -> Result<(), BoxError> {
    std::future::pending().await
}
