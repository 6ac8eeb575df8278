// A WebSocket server on ws: echoes, and does what the path asks for.
// Usage: ws_server.mjs READY_FILE [CERT KEY]; {"address": …} is written there once it listens.
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createServer as createSecureServer } from "node:https";
import { createRequire } from "node:module";

const { WebSocketServer } = createRequire(`${process.env.PEERS}/`)("ws");

const [ready, cert, key] = process.argv.slice(2);
const plain = (request, response) => response.end("not a WebSocket");
const server = cert
  ? createSecureServer({ cert: readFileSync(cert), key: readFileSync(key) }, plain)
  : createServer(plain);
const sockets = new WebSocketServer({
  server,
  maxPayload: 64 << 20,
  handleProtocols: (offered) => (offered.has("chat") ? "chat" : false),
  verifyClient: ({ req }, answer) => answer(req.url !== "/refused", 403, "no", { "x-reason": "refused" }),
});

// What became of connections whose client went away, for `/fate`.
const fates = [];
const asking = [];
function tell() {
  while (fates.length && asking.length) asking.shift().send(fates.shift());
}

sockets.on("connection", (socket, request) => {
  const url = new URL(request.url, "ws://x");
  const path = url.pathname;
  socket.on("error", () => {});
  if (path === "/close") return socket.close(Number(url.searchParams.get("code")), "as asked");
  if (path === "/drop") return socket.terminate();
  if (path === "/greet") socket.send("first word");
  if (path === "/ping") {
    socket.on("pong", (data) => socket.send(`pong ${data}`));
    socket.ping("from the server");
  }
  if (path === "/headers") socket.send(JSON.stringify(request.headers));
  if (path === "/watched") socket.on("close", (code, reason) => (fates.push(`${code} ${reason}`), tell()));
  if (path === "/fate") return asking.push(socket), tell();
  // All that it has to say while it is being spoken to.
  if (path === "/flood") for (let i = 0; i < 200; i++) socket.send(Buffer.alloc(50_000, i));
  socket.on("message", (data, binary) => socket.send(data, { binary }));
});

server.listen(0, "127.0.0.1", () => {
  const { address, port } = server.address();
  writeFileSync(`${ready}.new`, JSON.stringify({ address: `${address}:${port}` }));
  renameSync(`${ready}.new`, ready);
});
