// A gRPC client of an xds:/// target without generated code, told what to do line by line.
//
// Usage: grpc_client.mjs TARGET [xds], with xds its channel does as the server says about TLS (gRFC A29);
// the bootstrap is in GRPC_XDS_BOOTSTRAP_CONFIG (gRFC A27). Lines in:
// `run N` makes N calls; `start` calls on and on until `stop`; `so_far` tells without stopping. Each but
// `start` is answered by a line of JSON: successes by what answered, failures, and the first reasons.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { setTimeout } from "node:timers/promises";

// Scripts are found beside the tests and packages are not, so the packages are named.
const require = createRequire(process.env.PEERS + "/");
const grpc = require("@grpc/grpc-js");
const { register, XdsChannelCredentials } = require("@grpc/grpc-js-xds");
register();

const TIMEOUT = 15_000;
const WORKERS = 4;
// Between two calls of a worker that goes on and on: the machine is for the others, too.
const PAUSE = 2;

const same = (message) => message;
const [target, xds] = process.argv.slice(2);
const insecure = grpc.credentials.createInsecure();
const client = new grpc.Client(target, xds ? new XdsChannelCredentials(insecure) : insecure);
const nothing = Buffer.alloc(0);

let outcome, left, stopped, workers;

function call() {
  return new Promise((resolve) => {
    const options = { deadline: Date.now() + TIMEOUT };
    client.makeUnaryRequest("/test.Test/Who", same, same, nothing, options, (error, answer) => {
      if (error) {
        outcome.failures += 1;
        if (outcome.reasons.length < 10) outcome.reasons.push(`${grpc.status[error.code]}: ${error.details}`);
      } else {
        const name = answer.toString();
        outcome.versions[name] = (outcome.versions[name] ?? 0) + 1;
      }
      resolve();
    });
  });
}

async function work(pause) {
  while (!stopped && left > 0) {
    left -= 1;
    await call();
    if (pause) await setTimeout(pause);
  }
}

function begin(number, pause) {
  outcome = { versions: {}, failures: 0, reasons: [] };
  [left, stopped] = [number, false];
  workers = Promise.all(Array.from({ length: WORKERS }, () => work(pause)));
}

for await (const line of createInterface({ input: process.stdin })) {
  const [command, number] = line.split(" ");
  if (command === "start") {
    begin(Infinity, PAUSE);
    continue;
  }
  if (command === "run") {
    begin(Number(number), 0);
    await workers;
  } else if (command === "stop") {
    stopped = true;
    await workers;
  }
  console.log(JSON.stringify(outcome));
}
client.close();
process.exit(0);
