//! Any bytes, as frames of the RPC framing: never a panic, the same frames however they are split, nothing reserved for
//! what is only announced, and what was read is written as what reads the same.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use tokio_util::codec::{Decoder, Encoder};
use tower_net::frame::{CodecError, RpcCodec, RpcFrame};

fuzz_target!(|input: (usize, u8, &[u8])| {
    let (max, size, bytes) = input;
    let codec = RpcCodec::max_payload(max % 4096);
    let whole = decode(codec.clone(), bytes, bytes.len().max(1));
    let pieces = decode(codec.clone(), bytes, usize::from(size).max(1));
    assert_eq!(whole, pieces);
    for frame in whole.0 {
        written_again(codec.clone(), frame);
    }
});

/// What comes out of `bytes` in pieces of `size`, and the error in words that ends it.
fn decode(mut codec: RpcCodec, bytes: &[u8], size: usize) -> (Vec<RpcFrame>, Option<String>) {
    let (mut input, mut frames) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(size) {
        input.extend_from_slice(piece);
        let room = input.capacity();
        loop {
            match codec.decode(&mut input) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(words(&error))),
            }
        }
        assert!(input.capacity() <= room);
    }
    match codec.decode_eof(&mut input) {
        Ok(frame) => {
            assert!(frame.is_none(), "what is whole was decoded before");
            (frames, None)
        }
        Err(error) => (frames, Some(words(&error))),
    }
}

/// Every error has words.
fn words(error: &CodecError) -> String {
    let words = error.to_string();
    assert!(!words.is_empty());
    words
}

fn written_again(mut codec: RpcCodec, frame: RpcFrame) {
    let mut wire = BytesMut::new();
    if matches!(frame, RpcFrame::Unreadable { .. }) {
        assert!(codec.encode(frame, &mut wire).is_err() && wire.is_empty());
        return;
    }
    codec
        .encode(frame.clone(), &mut wire)
        .expect("what was read can be written");
    let read = codec
        .decode(&mut wire)
        .expect("what was written can be read");
    assert_eq!(read, Some(frame));
    assert!(wire.is_empty());
}
