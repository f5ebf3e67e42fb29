// Plain Node: does what each message says, and answers the others with themselves.
process.on('message', (message) => {
  switch (message?.do) {
    case 'state':
      process.send({
        connected: process.connected,
        channelVariables: Object.keys(process.env).filter((name) => /^(NODE_CHANNEL|DEKA_IPC)/.test(name)),
      });
      break;
    case 'disconnect':
      process.send('last');
      process.disconnect();
      // Nobody listens any more: the process would end by itself.
      setTimeout(() => process.exit(9), 20);
      break;
    case 'exit':
      process.send({ last: true });
      process.exit(message.code);
      break;
    case 'burst':
      for (let n = 0; n < message.count; n++) process.send(n);
      // Nothing is left to wait for: Node writes what is queued and ends.
      process.removeAllListeners('message');
      process.removeAllListeners('disconnect');
      break;
    case 'print':
      console.log('to stdout');
      console.error('to stderr');
      process.send('printed');
      break;
    case 'throw':
      throw new Error('thrown on purpose');
    case 'fork': {
      const grandchild = require('child_process').fork(__filename, { env: {} });
      grandchild.on('message', (answer) => {
        process.send({ fromGrandchild: answer });
        grandchild.disconnect();
      });
      grandchild.send({ do: 'state' });
      break;
    }
    default:
      process.send(message);
  }
});
process.on('disconnect', () => console.log('the channel is closed'));
