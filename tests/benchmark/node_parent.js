// Node's own fork(): forks node_child.js, and counts what it sends.
//
// Its parent is the benchmark, which orders {"messages":n,"message":<value>} and hears
// {"sent":n,"received":n,"seconds":s}.
'use strict';
const { fork } = require('child_process');
const path = require('path');

const child = fork(path.join(__dirname, 'node_child.js'));

process.on('message', (order) => {
  let received = 0;
  const begin = process.hrtime.bigint();
  const take = (message) => {
    if (message.sent === undefined) {
      received++;
      return;
    }
    const seconds = Number(process.hrtime.bigint() - begin) / 1e9;
    child.off('message', take);
    process.send({ sent: message.sent, received, seconds });
  };
  child.on('message', take);
  child.send(order);
});

// The channel's end ends the child, too.
process.on('disconnect', () => process.exit());
