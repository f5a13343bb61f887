//! What a call costs a server that answers by id, beside tarpc and tonic, each with its own protocol and client.

mod client;

use anyhow::Result;
use bytes::{Buf, BufMut, Bytes};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use self::client::Client;
use crate::args::CallsArgs;
use crate::contestants::CALLS;
use crate::turns::Turns;

pub(crate) use self::client::{World, WorldEcho};

pub(crate) fn run(args: &CallsArgs) -> Result<()> {
    for &depth in &args.depths {
        let calls = depth * args.connections;
        let calls_each = args.calls.div_ceil(calls);
        let turns = Turns {
            rounds: args.rounds,
            pieces: calls_each * calls,
            server_core: args.cores.server_core,
        };
        println!(
            "calls of {} bytes, {depth} at once on each of {} connections ({} rounds of {} calls), server CPU",
            args.payload, args.connections, args.rounds, turns.pieces
        );
        turns.compare(
            CALLS,
            |contestant, server| Client::connect(contestant.name, server, args, depth),
            |client, calls_of_a_turn| client.call(calls_of_a_turn / calls),
        )?;
    }
    Ok(())
}

/// Bytes as they are, for tonic.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(input.copy_to_bytes(input.remaining())))
    }
}
