"""A gRPC client of an xds:/// target without generated code, told what to do line by line.

Usage: grpc_client.py TARGET [xds], with xds its channel does as the server says about TLS (gRFC A29); the
bootstrap is in GRPC_XDS_BOOTSTRAP_CONFIG (gRFC A27). Lines in:
`run N` makes N calls; `start` calls on and on until `stop`; `so_far` tells without stopping. Each but
`start` is answered by a line of JSON: successes by what answered, failures, and the first reasons.
"""

import collections
import json
import sys
import threading

import grpc

TIMEOUT = 15
WORKERS = 4
# Between two calls of a worker that goes on and on: the machine is for the others, too.
PAUSE = 0.002


def same(message):
    return message


class Calls:
    """Calls by several workers, and what became of them."""

    def __init__(self, method):
        self.method = method
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.workers = []
        self.clear()

    def clear(self):
        self.versions = collections.Counter()
        self.failures = 0
        self.reasons = []

    def begin(self, number, pause):
        """`number` calls, or without a number until the stop."""
        self.clear()
        self.left = number
        self.stopped.clear()
        self.workers = [threading.Thread(target=self.work, args=(pause,)) for _ in range(WORKERS)]
        for worker in self.workers:
            worker.start()

    def end(self):
        for worker in self.workers:
            worker.join()
        return self.outcome()

    def work(self, pause):
        while not self.stopped.is_set():
            with self.lock:
                if self.left is not None:
                    if self.left == 0:
                        return
                    self.left -= 1
            self.call()
            if pause:
                self.stopped.wait(pause)

    def call(self):
        try:
            answer = self.method(b"", timeout=TIMEOUT).decode()
        except grpc.RpcError as error:
            with self.lock:
                self.failures += 1
                if len(self.reasons) < 10:
                    self.reasons.append(f"{error.code().name}: {error.details()}")
        else:
            with self.lock:
                self.versions[answer] += 1

    def outcome(self):
        with self.lock:
            return {"versions": self.versions, "failures": self.failures, "reasons": self.reasons}


def main():
    target, *xds = sys.argv[1:]
    credentials = grpc.xds_channel_credentials() if xds else None
    channel = grpc.secure_channel(target, credentials) if xds else grpc.insecure_channel(target)
    calls = Calls(channel.unary_unary("/test.Test/Who", same, same))
    for line in sys.stdin:
        command, *number = line.split()
        if command == "start":
            calls.begin(None, PAUSE)
            continue
        if command == "run":
            calls.begin(int(number[0]), 0)
            outcome = calls.end()
        elif command == "stop":
            calls.stopped.set()
            outcome = calls.end()
        else:
            outcome = calls.outcome()
        print(json.dumps(outcome), flush=True)


main()
