// The child of node_parent.js: sends as many messages as it is told to, a block at a time, and waits
// until a block is written, so that nothing piles up; then says how many those were.
'use strict';
const BLOCK = 256;

process.on('message', ({ messages, message }) => {
  let sent = 0;
  const some = () => {
    for (const end = Math.min(sent + BLOCK, messages) - 1; sent < end; sent++) {
      process.send(message);
    }
    if (sent === messages) {
      process.send({ sent });
    } else {
      sent++;
      process.send(message, some);
    }
  };
  some();
});
