// A WebSocket client on ws: makes the connections of one case, and prints what it saw as JSON.
// Usage: ws_client.mjs ADDRESS CASE [CA NAME]; with CA over TLS, to a server called NAME.
import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { WebSocket } = createRequire(`${process.env.PEERS}/`)("ws");
const { once } = await import("node:events");

const [address, name, ca, servername] = process.argv.slice(2);
// Compression would hide how large a message is on the wire.
const options = { perMessageDeflate: false, maxPayload: 64 << 20, handshakeTimeout: 20_000 };
if (ca) Object.assign(options, { ca: readFileSync(ca), servername });

function connect(path, protocols = [], more = {}) {
  const url = `${ca ? "wss" : "ws"}://${address}${path}`;
  return new WebSocket(url, protocols, { ...options, ...more });
}

async function open(path, protocols, more) {
  const socket = connect(path, protocols, more);
  // A message may come together with the answer to the handshake, so it is awaited from the start.
  socket.received = [];
  socket.on("message", (data, binary) => {
    socket.received.push(binary ? data : data.toString());
    socket.emit("received");
  });
  await once(socket, "open");
  return socket;
}

async function next(socket) {
  while (socket.received.length === 0) await once(socket, "received");
  return socket.received.shift();
}

const cases = {
  async echo() {
    const socket = await open("/", ["other", "chat"]);
    const seen = [];
    for (const text of ["hello", "", "ä€😀", "x".repeat(125), "x".repeat(126), "x".repeat(65_536)]) {
      socket.send(text);
      seen.push((await next(socket)) === text);
    }
    socket.close();
    const [code] = await once(socket, "close");
    return { seen, protocol: socket.protocol, code };
  },
  async binary() {
    const socket = await open("/");
    const sent = randomBytes(1 << 20);
    const hash = (data) => createHash("sha256").update(data).digest("hex");
    socket.send(sent);
    const back = await next(socket);
    socket.close(1000);
    await once(socket, "close");
    return { length: back.length, same: hash(back) === hash(sent) };
  },
  async greeting() {
    // Sent by the server right behind its 101, perhaps in the same segment.
    const socket = await open("/greet");
    const first = await next(socket);
    socket.close();
    return { first };
  },
  async ping() {
    const socket = await open("/ping");
    const fromServer = await next(socket);
    socket.ping("from the client");
    const [data] = await once(socket, "pong");
    socket.close();
    return { fromServer, fromClient: data.toString() };
  },
  async codes() {
    const seen = [];
    for (const code of [1000, 1001, 1011, 4321]) {
      const socket = connect(`/close?code=${code}`);
      const [got, reason] = await once(socket, "close");
      seen.push(`${got} ${reason}`);
    }
    return seen;
  },
  async dropped() {
    // No close frame: 1006 is what a client makes of that (RFC 6455 §7.1.5).
    const socket = connect("/drop");
    const [code] = await once(socket, "close");
    return { code };
  },
  async fates() {
    const closed = await open("/watched");
    closed.close(4001, "done");
    await once(closed, "close");
    const asking = await open("/fate");
    const first = await next(asking);
    const cut = await open("/watched");
    cut.terminate();
    const again = await open("/fate");
    const second = await next(again);
    asking.terminate();
    again.terminate();
    return { first, second };
  },
  async both() {
    // 10 MB in each direction at once: neither side waits for the other to have finished.
    const socket = await open("/flood");
    for (let i = 0; i < 200; i++) socket.send(Buffer.alloc(50_000, i));
    let [own, echoed, right] = [0, 0, true];
    for (let n = 0; n < 400; n++) {
      const message = await next(socket);
      // The server's own come in order, and so do the echoes; which is next is told by its turn.
      if (message[0] === own % 256 && own < 200) own++;
      else if (message[0] === echoed % 256) echoed++;
      else right = false;
      right &&= message.length === 50_000 && message[49_999] === message[0];
    }
    socket.close();
    return { own, echoed, right };
  },
  async refused() {
    const socket = connect("/refused");
    const [, response] = await once(socket, "unexpected-response");
    let body = "";
    for await (const chunk of response) body += chunk;
    return { status: response.statusCode, reason: response.headers["x-reason"], body };
  },
  async idle() {
    // Longer than anything a proxy may do after an upgrade "soon"; nothing is on the wire meanwhile.
    const socket = await open("/");
    await new Promise((resolve) => setTimeout(resolve, 3_000));
    socket.send("still there");
    const back = await next(socket);
    socket.close();
    return { back };
  },
  async headers() {
    const socket = await open("/headers", [], { headers: { "x-custom": "value", cookie: "a=b" } });
    const seen = JSON.parse(await next(socket));
    socket.close();
    return seen;
  },
  async many() {
    const sockets = await Promise.all(Array.from({ length: 100 }, () => open("/")));
    const answers = await Promise.all(
      sockets.map(async (socket, i) => {
        socket.send(`number ${i}`);
        return (await next(socket)) === `number ${i}`;
      }),
    );
    for (const socket of sockets) socket.close();
    return { right: answers.filter(Boolean).length };
  },
};

console.log(JSON.stringify(await cases[name]()));
process.exit(0);
