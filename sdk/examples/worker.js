// A worker as any Node program would fork it: child_process' own channel, no library.
//
//   {"ping":n}    -> {"pong":n}
//   {"echo":any}  -> {"echoed":any}
//   "your turn"   -> asks its parent the same: {"ping":n}, then {"echo":any}
//
// child.cc speaks the same in C++.
process.on('message', (message) => {
  if (message === 'your turn') {
    process.send({ ping: 2 });
    process.send({ echo: ['à', 2, null] });
  } else if ('ping' in message) {
    process.send({ pong: message.ping });
  } else if ('echo' in message) {
    process.send({ echoed: message.echo });
  } else {
    console.log('my parent answered', JSON.stringify(message));
  }
});
