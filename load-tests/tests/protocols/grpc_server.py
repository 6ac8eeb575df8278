"""A gRPC server without generated code: messages are bytes.

Usage: grpc_server.py READY_FILE [CERT KEY]; {"address": ...} is written there once it listens.
"""

import json
import os
import sys
import threading
from concurrent import futures

import grpc

# What became of the calls that wait, for the client that asks.
cancelled = threading.Semaphore(0)


def same(message):
    return message


def unary(request, context):
    """Answers with the request; metadata comes back, and `x-fail` asks for a status."""
    given = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-initial", given.get("x-custom", "")),))
    context.set_trailing_metadata((("x-trailing", "after"), ("x-binary-bin", b"\x00\xff")))
    if "x-fail" in given:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked: 100 % änders")
    return request


def remaining(request, context):
    """The seconds that the deadline leaves, as the server sees it."""
    left = context.time_remaining()
    # Without a deadline it says some hundred million years.
    return b"none" if left is None or left > 1e9 else str(left).encode()


def ending(context):
    """Set when the call has ended, by a deadline or because the client has gone; then it is told, too."""
    ended = threading.Event()

    def over():
        cancelled.release()
        ended.set()

    if not context.add_callback(over):
        over()
    return ended


def wait(request, context):
    """Waits until the call ends."""
    ending(context).wait(30)
    return b""


def stream_wait(request, context):
    """One message, then silence until the call ends."""
    # Before the message: whoever has it may cancel at once, and then nothing below it runs.
    ended = ending(context)
    yield b"first"
    ended.wait(30)


def was_cancelled(request, context):
    """Says whether a call that waited has ended; waits for that."""
    return b"yes" if cancelled.acquire(timeout=10) else b"no"


def count(request, context):
    """As many messages as asked, each of the size asked."""
    number, size = map(int, request.split())
    for i in range(number):
        yield i.to_bytes(4, "big") + bytes(size)


def total(requests, context):
    number = size = 0
    for message in requests:
        number += 1
        size += len(message)
    return f"{number} {size}".encode()


def echo(requests, context):
    yield from requests


def who(request, context):
    """As the instances of the harness answer it."""
    return b"grpcio"


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary, same, same),
    "Who": grpc.unary_unary_rpc_method_handler(who, same, same),
    "Remaining": grpc.unary_unary_rpc_method_handler(remaining, same, same),
    "Wait": grpc.unary_unary_rpc_method_handler(wait, same, same),
    "StreamWait": grpc.unary_stream_rpc_method_handler(stream_wait, same, same),
    "WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled, same, same),
    "Count": grpc.unary_stream_rpc_method_handler(count, same, same),
    "Total": grpc.stream_unary_rpc_method_handler(total, same, same),
    "Echo": grpc.stream_stream_rpc_method_handler(echo, same, same),
}


def main():
    ready, *pair = sys.argv[1:]
    options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32), options=options)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Test", METHODS)])
    if pair:
        cert, key = (open(file, "rb").read() for file in pair)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, cert)]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with open(ready + ".new", "w") as file:
        json.dump({"address": f"127.0.0.1:{port}"}, file)
    os.rename(ready + ".new", ready)
    server.wait_for_termination()


main()
