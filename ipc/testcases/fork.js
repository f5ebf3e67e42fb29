// A parent as any Node program is one: forks a program of Node's and writes down what it is told, a
// line for each event. node_parity_test.cc does the same with ChildProcess.
//
//   node fork.js MODULE ARGUMENT [JSON...]    each JSON is sent to the child at once
//
// A message {"parent":...} asks the parent for something:
//
//   "disconnect"     disconnects, then tries to send and to disconnect once more
//   {"kill":NAME}    sends that signal
//   "fill"           sends 1 KiB a turn until send() answers false, then kills with SIGKILL
'use strict';
const { fork } = require('child_process');

const say = (...words) => console.log(words.map(String).join(' '));
const [module_, argument, ...messages] = process.argv.slice(2);
const child = fork(module_, [argument], { stdio: ['ignore', 'ignore', 'ignore', 'ipc'] });

const send = (message) => child.send(message, () => {});

function fill(count) {
  if (send('x'.repeat(1022))) {
    setImmediate(fill, count + 1);
  } else {
    say('false', count);
    child.kill('SIGKILL');
  }
}

function obey(request) {
  if (request === 'disconnect') {
    child.disconnect();
    say('connected', child.connected);
    say('send', send(1));
    child.disconnect();
  } else if (request === 'fill') {
    fill(1);
  } else {
    say('kill', child.kill(request.kill));
  }
}

child.on('spawn', () => say('spawn', child.pid !== undefined));
child.on('message', (message) => {
  say('message', JSON.stringify(message));
  if (message && message.parent) obey(message.parent);
});
child.on('internalMessage', (message) => say('internal', JSON.stringify(message)));
child.on('error', (error) => say('error', error.code));
child.on('disconnect', () => say('disconnect', child.connected));
child.on('exit', (code, signal) => say('exit', code, signal));
child.on('close', (code, signal) => say('close', code, signal));
for (const message of messages) send(JSON.parse(message));
