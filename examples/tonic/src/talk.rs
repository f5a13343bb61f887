//! The service: gRPC as tonic has it. All that is not tonic's is where the peer comes from.

use std::pin::Pin;

use tokio_stream::{Stream, StreamExt};
use tonic::{Extensions, Request, Response, Status, Streaming};
use tower_net::ConnHandle;

pub(crate) use self::wire::talk_server::TalkServer;
use self::wire::{Line, Said, talk_server};

/// What the compiler of `proto/talk.proto` has made.
mod wire {
    #![allow(
        clippy::all,
        clippy::allow_attributes_without_reason,
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        reason = "it is generated"
    )]

    tonic::include_proto!("talk");
}

/// Says back what it is told, and to whom it says it.
#[derive(Debug)]
pub(crate) struct Talk;

#[tonic::async_trait]
impl talk_server::Talk for Talk {
    type ChatStream = Pin<Box<dyn Stream<Item = Result<Said, Status>> + Send>>;

    async fn say(&self, request: Request<Line>) -> Result<Response<Said>, Status> {
        let conn = conn(request.extensions())?;
        // What was sent beside the message goes back beside the answer.
        let note = request
            .metadata()
            .get("x-note")
            .cloned();
        let mut response = Response::new(said(&conn, request.into_inner()));
        if let Some(note) = note {
            response
                .metadata_mut()
                .insert("x-note", note);
        }
        Ok(response)
    }

    async fn chat(
        &self,
        request: Request<Streaming<Line>>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let conn = conn(request.extensions())?;
        let lines = request.into_inner();
        let answers = lines.map(move |line| line.map(|line| said(&conn, line)));
        Ok(Response::new(Box::pin(answers)))
    }
}

/// What is known of the connection that a call came by.
fn conn(extensions: &Extensions) -> Result<ConnHandle, Status> {
    let conn = extensions.get::<ConnHandle>();
    conn.cloned()
        .ok_or_else(|| Status::internal("not behind tower-net"))
}

fn said(conn: &ConnHandle, line: Line) -> Said {
    let tls = conn
        .tls()
        .map(|tls| tls.version().label());
    Said {
        text: line.text,
        peer: conn.peer().to_string(),
        connection: conn.id().get(),
        tls: tls.unwrap_or_default().to_owned(),
    }
}
