// Listens only after a while: Node keeps for it what came before.
setTimeout(() => process.on('message', (message) => process.send(message)), 50);
process.channel.ref();
