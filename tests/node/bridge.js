// An agent to test against, and observers to watch with, on @grpc/grpc-js with @grpc/proto-loader.
'use strict';

const childProcess = require('child_process');
const fs = require('fs');
const path = require('path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const DEADLINE_MS = 30_000;
const CLIENT = 'node-test';

const definition = protoLoader.loadSync(
  ['deka/bridge/v1/bridge_service.proto', 'google/rpc/status.proto', 'google/rpc/error_details.proto'],
  // 64 bit integers as strings: a JavaScript number cannot hold them all.
  { includeDirs: [path.resolve('proto')], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true },
);
const bridge = grpc.loadPackageDefinition(definition).deka.bridge.v1;

// Reads one field of a message on the wire: length-delimited fields by number, in order.
function* lengthDelimited(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[at++];
      value += (byte & 127) * 2 ** shift;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    if ((tag & 7) === 2) {
      const size = varint();
      yield [tag >> 3, bytes.subarray(at, at + size)];
      at += size;
    } else {
      yield [tag >> 3, varint()];
    }
  }
}

// The google.rpc.ErrorInfo of an error: {reason, domain, metadata}. Each error of the agent has exactly one.
function errorInfo(error) {
  const infos = [];
  for (const status of error.metadata.get('grpc-status-details-bin')) {
    for (const [field, detail] of lengthDelimited(status)) {
      if (field !== 3) continue;
      const any = Object.fromEntries(lengthDelimited(detail));
      if (any[1].toString() !== 'type.googleapis.com/google.rpc.ErrorInfo') continue;
      const info = { metadata: {} };
      for (const [number, value] of lengthDelimited(any[2])) {
        if (number === 1) info.reason = value.toString();
        if (number === 2) info.domain = value.toString();
        if (number === 3) {
          const entry = Object.fromEntries(lengthDelimited(value));
          info.metadata[entry[1].toString()] = (entry[2] ?? '').toString();
        }
      }
      infos.push(info);
    }
  }
  if (infos.length !== 1) throw new Error(`${infos.length} ErrorInfo in: ${error.message}`);
  return infos[0];
}

function withDeadline(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${DEADLINE_MS} ms: ${what()}`)), DEADLINE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// A stream of Observe.
class Observer {
  constructor(call) {
    this.call = call;
    this.events = [];
    this.gaps = [];
    this.children = [];
    this.waiting = new Set();
    call.on('data', (response) => {
      switch (response.response) {
        case 'attached': this.attached = response.attached; break;
        case 'snapshot': this.children.push(...response.snapshot.children); break;
        case 'snapshot_complete': this.snapshotComplete = true; break;
        case 'batch': this.events.push(...response.batch.events); break;
        case 'gap': this.gaps.push(response.gap); break;
        case 'fin': this.fin = response.fin; break;
      }
      this.changed();
    });
    call.on('error', (error) => { this.error = error; this.changed(); });
    call.on('end', () => { this.ended = true; this.changed(); });
  }

  changed() {
    for (const check of this.waiting) check();
  }

  get kinds() {
    return this.events.map((event) => event.kind);
  }

  of(kind) {
    return this.events.filter((event) => event.kind === kind);
  }

  // Resolves when `condition` is true.
  until(condition, what) {
    const promise = new Promise((resolve) => {
      const check = () => {
        if (!condition(this)) return;
        this.waiting.delete(check);
        resolve(this);
      };
      this.waiting.add(check);
      check();
    });
    return withDeadline(promise, () => `${what}; kinds seen: ${this.kinds}; error: ${this.error}`);
  }

  untilCount(kind, count) {
    return this.until(() => this.of(kind).length >= count, `${count} events ${kind}`);
  }

  untilEnd() {
    return this.until(() => this.ended || this.error, 'the end of the stream');
  }
}

// A deka-agent on a socket of its own.
class Agent {
  static async start(config = '') {
    const agent = new Agent();
    // Not TEST_TMPDIR: the path of a Unix socket holds 107 bytes.
    agent.directory = fs.mkdtempSync('/tmp/deka-test-');
    agent.target = `unix:${agent.directory}/agent.sock`;
    const configPath = `${agent.directory}/agent.textproto`;
    fs.writeFileSync(configPath, config);
    const args = ['--listen', agent.target, '--config', configPath];
    agent.process = childProcess.spawn(path.resolve(process.env.DEKA_AGENT), args, {
      stdio: ['ignore', 'inherit', 'inherit'],
    });
    agent.exited = new Promise((resolve) => agent.process.on('exit', (code, signal) => resolve(code ?? signal)));
    agent.client = agent.connect();
    await new Promise((resolve, reject) => {
      agent.client.waitForReady(Date.now() + DEADLINE_MS, (error) => (error ? reject(error) : resolve()));
    });
    return agent;
  }

  // A client with a connection of its own.
  connect() {
    return new bridge.BridgeService(this.target, grpc.credentials.createInsecure(), {
      'grpc.use_local_subchannel_pool': 1,
    });
  }

  // Calls a unary method.
  call(method, request, client = this.client) {
    return new Promise((resolve, reject) => {
      client[method](request, { deadline: Date.now() + DEADLINE_MS }, (error, response) =>
        error ? reject(error) : resolve(response));
    });
  }

  fork(program, args, fields = {}) {
    const spec = { program, args, ...fields };
    return this.call('ForkChild', { parent: 'agents/-', spec, client: CLIENT });
  }

  observe(observation, children = []) {
    return new Observer(
      this.client.Observe({ parent: 'agents/-', filter: { children }, observation, client: CLIENT }));
  }

  // Ends it as a user does, and gives its exit code.
  async stop() {
    this.client.close();
    this.process.kill('SIGTERM');
    const code = await withDeadline(this.exited, () => 'the end of deka-agent');
    fs.rmSync(this.directory, { recursive: true });
    return code;
  }
}

module.exports = { Agent, CLIENT, errorInfo, grpc };
