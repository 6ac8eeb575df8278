// An HTTP/1.1 server on Node: says what reached it, and answers in the ways a client has to cope with.
// Usage: http_server.mjs READY_FILE; {"address": …} is written there once it listens.
import { createHash } from "node:crypto";
import { writeFileSync } from "node:fs";
import { createServer } from "node:http";

// Of each request: what was asked, the body's length and hash, and the trailers.
function describe(request, answer) {
  const hash = createHash("sha256");
  let length = 0;
  request.on("data", (chunk) => {
    hash.update(chunk);
    length += chunk.length;
  });
  request.on("end", () =>
    answer({
      method: request.method,
      target: request.url,
      version: request.httpVersion,
      headers: request.headers,
      length,
      sha256: hash.digest("hex"),
      trailers: request.trailers,
      expected: request.expected ?? false,
    }),
  );
}

const answers = {
  "/describe": (request, response) =>
    describe(request, (seen) => {
      const body = JSON.stringify(seen);
      response.setHeader("content-type", "application/json");
      response.setHeader("content-length", Buffer.byteLength(body));
      response.end(body);
    }),
  // As it comes in, without waiting for the end.
  "/echo": (request, response) => request.pipe(response),
  "/chunked": (request, response) => {
    request.resume();
    response.write("first ");
    response.end("second");
  },
  "/trailers": (request, response) => {
    request.resume();
    response.setHeader("trailer", "x-checksum");
    response.write("body");
    response.addTrailers({ "x-checksum": "abc" });
    response.end();
  },
  "/no-content": (request, response) => {
    request.resume();
    response.writeHead(204).end();
  },
  "/not-modified": (request, response) => {
    request.resume();
    response.writeHead(304, { etag: '"1"' }).end();
  },
  "/early-hints": (request, response) => {
    request.resume();
    response.writeEarlyHints({ link: "</style.css>; rel=preload" });
    response.end("after the hints");
  },
  // Before the body was read. It reads on: a close with bytes unread would reset the connection, and
  // could take the answer with it (RFC 9112 §9.6).
  "/refuse": (request, response) => {
    request.resume();
    response.writeHead(413);
    response.end("too large");
  },
  // A body that ends with the connection (RFC 9112 §6.3, rule 8).
  "/until-close": (request) => {
    request.resume();
    request.socket.end("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nuntil the end");
  },
};

const server = createServer({ keepAlive: true }, (request, response) => {
  const answer = answers[request.url.split("?")[0]];
  if (answer) return answer(request, response);
  request.resume();
  response.writeHead(404).end();
});
server.keepAliveTimeout = 60_000;
// Without this Node answers 100 by itself, and nobody learns that it was asked to.
server.on("checkContinue", (request, response) => {
  request.expected = true;
  if (request.url.startsWith("/refuse")) return answers["/refuse"](request, response);
  response.writeContinue();
  server.emit("request", request, response);
});
server.listen(0, "127.0.0.1", () => {
  const { address, port } = server.address();
  writeFileSync(process.argv[2], JSON.stringify({ address: `${address}:${port}` }));
});
