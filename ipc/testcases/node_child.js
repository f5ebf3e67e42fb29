// A child as any Node program is one, that does what its argument names.
'use strict';
const fs = require('fs');
const net = require('net');

const deeds = {
  // Sends every message back, and disconnects after "bye".
  echo() {
    process.on('message', (message) => {
      process.send(message);
      if (message === 'bye') process.disconnect();
    });
  },
  exit() {
    process.send(1);
    process.send({ two: [2] });
    process.exit(3);
  },
  throw() {
    process.send('last');
    throw new Error('on purpose');
  },
  // Ends by itself, all of it written.
  burst() {
    for (let i = 0; i < 3000; ++i) process.send(i);
  },
  silent() {},
  // Lives on without its channel.
  leave() {
    process.on('disconnect', () => setImmediate(() => process.exit(5)));
    process.disconnect();
  },
  internal() {
    process.send({ cmd: 'NODE_FOO', a: 1 });
    process.send({ cmd: 'NODE_' });
    process.send({ cmd: 1 });
  },
  disconnected() {
    process.on('disconnect', () => process.exit(process.connected ? 1 : 6));
    process.send({ parent: 'disconnect' });
  },
  killed() {
    process.on('message', () => {});
    process.send({ parent: { kill: 'SIGTERM' } });
  },
  // Reads nothing any more.
  deaf() {
    process.send({ parent: 'fill' });
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  },
  malformed() {
    fs.writeSync(3, 'no JSON\n');
    process.send('after');
  },
  // A handle, and a message that waits for the answer to it.
  handle() {
    const server = net.createServer().listen(0, '127.0.0.1', () => {
      process.send('with a handle', server);
      process.send('after');
      process.on('message', () => process.exit(0));
    });
  },
};
deeds[process.argv[2]]();
