"""A gRPC client: makes the calls of one case, and prints what it saw as JSON.

Usage: grpc_client.py ADDRESS CASE [CA NAME]; with CA over TLS, to a server called NAME.
"""

import json
import queue
import sys
import threading

import grpc

TIMEOUT = 20
METADATA = (("x-custom", "value"),)


def same(message):
    return message


class Test:
    """The methods of the server, by their names."""

    def __init__(self, channel):
        def method(kind, name):
            return kind("/test.Test/" + name, same, same)

        self.unary = method(channel.unary_unary, "Unary")
        self.remaining = method(channel.unary_unary, "Remaining")
        self.wait = method(channel.unary_unary, "Wait")
        self.stream_wait = method(channel.unary_stream, "StreamWait")
        self.was_cancelled = method(channel.unary_unary, "WasCancelled")
        self.count = method(channel.unary_stream, "Count")
        self.total = method(channel.stream_unary, "Total")
        self.echo = method(channel.stream_stream, "Echo")
        self.missing = method(channel.unary_unary, "Missing")


def texts(metadata):
    return {k: v if isinstance(v, str) else v.hex() for k, v in metadata or ()}


def outcome(call):
    """How a call ended; its result is awaited first."""
    try:
        result = call.result()
    except grpc.RpcError:
        result = None
    seen = {"status": call.code().name, "details": call.details()}
    seen["length"] = None if result is None else len(result)
    seen["initial"] = texts(call.initial_metadata())
    seen["trailing"] = texts(call.trailing_metadata())
    return seen


def unary(test):
    return outcome(test.unary.future(b"hello", timeout=TIMEOUT, metadata=METADATA))


def failing(test):
    metadata = METADATA + (("x-fail", "yes"),)
    return outcome(test.unary.future(b"hello", timeout=TIMEOUT, metadata=metadata))


def missing(test):
    return outcome(test.missing.future(b"", timeout=TIMEOUT))


def empty(test):
    return outcome(test.unary.future(b"", timeout=TIMEOUT))


def large(test):
    """Messages of 4 MiB and more, there and back."""
    return [outcome(test.unary.future(bytes(n), timeout=TIMEOUT)) for n in (4 << 20, (4 << 20) + 1, 16 << 20)]


def server_stream(test):
    small = [m[:4] for m in test.count(b"1000 0", timeout=TIMEOUT)]
    wide = [len(m) for m in test.count(b"20 100000", timeout=TIMEOUT)]
    none = list(test.count(b"0 0", timeout=TIMEOUT))
    in_order = small == [i.to_bytes(4, "big") for i in range(1000)]
    return {"in_order": in_order, "wide": wide, "none": len(none)}


def client_stream(test):
    many = test.total((bytes(1000) for _ in range(1000)), timeout=TIMEOUT)
    none = test.total(iter(()), timeout=TIMEOUT)
    return {"many": many.decode(), "none": none.decode()}


def bidirectional(test):
    """Each message is sent only when the one before has come back, so nothing may be kept until the end."""
    outgoing = queue.Queue()
    call = test.echo(iter(outgoing.get, None), timeout=TIMEOUT)
    rounds = 0
    for i in range(200):
        message = i.to_bytes(4, "big") * 100
        outgoing.put(message)
        rounds += next(call) == message
    outgoing.put(None)
    left = len(list(call))
    return {"rounds": rounds, "left": left, "status": call.code().name}


def parallel_streams(test):
    """Many streams over one connection, each with its own back and forth."""
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(bidirectional(test))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def deadline(test):
    left = test.remaining(b"", timeout=TIMEOUT).decode()
    none = test.remaining(b"", timeout=None).decode()
    late = outcome(test.wait.future(b"", timeout=0.5))
    return {"left": float(left), "none": none, "late": late, "told": test.was_cancelled(b"").decode()}


def cancel(test):
    """The server says when it has learnt of it."""
    call = test.stream_wait(b"", timeout=TIMEOUT)
    first = next(call).decode()
    call.cancel()
    return {"first": first, "status": call.code().name, "told": test.was_cancelled(b"").decode()}


def cut(test):
    """Says when the stream has begun, so that the test can kill the server, and how it ends."""
    call = test.stream_wait(b"", timeout=TIMEOUT)
    print(json.dumps(next(call).decode()), flush=True)
    rest = 0
    try:
        rest = len(list(call))
    except grpc.RpcError:
        pass
    return {"rest": rest, "status": call.code().name, "details": call.details()}


def main():
    address, case, *tls = sys.argv[1:]
    # A call that fails is to fail, not to be tried again behind the test's back.
    options = [("grpc.enable_retries", 0), ("grpc.max_receive_message_length", -1)]
    if tls:
        ca, name = tls
        credentials = grpc.ssl_channel_credentials(open(ca, "rb").read())
        options.append(("grpc.ssl_target_name_override", name))
        channel = grpc.secure_channel(address, credentials, options=options)
    else:
        channel = grpc.insecure_channel(address, options=options)
    with channel:
        print(json.dumps(globals()[case](Test(channel))))


main()
