"""A gRPC client of Google's, without generated code: `client.py TARGET CA say TEXT NOTE` or `client.py TARGET CA chat`.

`say` makes one call. `chat` opens a stream: each line of standard input goes out on it, and the end of the input ends it.
CA is a file for TLS, or `-`. What happens is told as lines of JSON: `state` of the channel, `said`, and `status` at the
end.
"""

import json
import sys
import threading

import grpc

OUT = threading.Lock()
PATIENCE = 60


def tell(**what):
    with OUT:
        print(json.dumps(what), flush=True)


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def line(text):
    text = text.encode()
    assert len(text) < 0x80, "one byte of length will do here"
    return bytes([1 << 3 | 2, len(text)]) + text


def said(data):
    names = {1: "text", 2: "peer", 3: "connection", 4: "tls"}
    fields, at = {"text": "", "peer": "", "connection": 0, "tls": ""}, 0
    while at < len(data):
        tag, at = varint(data, at)
        value, at = varint(data, at)
        if tag & 7 == 2:
            value, at = data[at : at + value].decode(), at + value
        fields[names[tag >> 3]] = value
    return fields


def open_channel(target, ca):
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        ("grpc.ssl_target_name_override", "example.com"),
    ]
    if ca == "-":
        return grpc.insecure_channel(target, options)
    with open(ca, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    return grpc.secure_channel(target, credentials, options)


def main(target, ca, call, *args):
    channel = open_channel(target, ca)
    channel.subscribe(lambda state: tell(state=state.name))
    try:
        if call == "say":
            text, note = args
            say = channel.unary_unary("/talk.Talk/Say", line, said)
            answer, done = say.with_call(text, timeout=PATIENCE, metadata=[("x-note", note)])
            tell(said=answer, note=dict(done.initial_metadata()).get("x-note"))
        else:
            lines = (text.rstrip("\n") for text in sys.stdin)
            chat = channel.stream_stream("/talk.Talk/Chat", line, said)
            for answer in chat(lines, timeout=PATIENCE):
                tell(said=answer)
        tell(status="OK")
    except grpc.RpcError as error:
        tell(status=error.code().name, details=error.details())


main(*sys.argv[1:])
