// A Node program, with @grpc/grpc-js and the .proto files themselves, uses a running agent.
'use strict';

const assert = require('assert');
const path = require('path');
const test = require('node:test');
const { Agent, CLIENT, errorInfo, grpc } = require('./bridge.js');

const testcase = (name) => path.resolve('tests/testcases', name);
const me = `uid:${process.getuid()}`;

async function withAgent(body, config) {
  const agent = await Agent.start(config);
  try {
    await body(agent);
  } finally {
    assert.strictEqual(await agent.stop(), 0);
  }
}

async function refused(promise, code, reason) {
  const error = await promise.then(
    () => assert.fail(`it was not refused with ${reason}`),
    (refusal) => refusal,
  );
  const info = errorInfo(error);
  assert.deepStrictEqual([error.code, info.reason, info.domain], [code, reason, 'deka.bridge'], error.message);
  return { error, info };
}

test('fork, observe, send, disconnect', () => withAgent(async (agent) => {
  const { child, cursor } = await agent.fork('node', [testcase('worker.js')], { display_name: 'worker' });
  assert.strictEqual(child.dialect, 'DIALECT_NODE');
  const observer = agent.observe({ start: { after: cursor } }, [child.name]);
  const sent = await agent.call('SendMessage', { child: 'worker', json: '{"a":"ä"}', client: CLIENT });
  assert.strictEqual(sent.outcome, 'SEND_OUTCOME_WRITTEN');
  await observer.untilCount('from_child', 1);
  await agent.call('Disconnect', { child: child.name, mode: 'DISCONNECT_MODE_FLUSH', client: CLIENT });
  await observer.untilCount('closed', 1);

  assert.deepStrictEqual(
    observer.kinds.filter((kind) => kind !== 'output'),
    ['started', 'to_child', 'from_child', 'disconnected', 'exited', 'closed'],
  );
  observer.events.forEach((event, index) => assert.strictEqual(event.child_sequence, String(index + 1)));
  const [toChild] = observer.of('to_child');
  assert.strictEqual(toChild.sequence, sent.sequence);
  assert.deepStrictEqual(toChild.to_child.sender, { principal: me, client: CLIENT });
  assert.strictEqual(toChild.json, '{"a":"ä"}');
  assert.strictEqual(observer.of('from_child')[0].json, '{"a":"ä"}');
  assert.strictEqual(observer.of('disconnected')[0].disconnected.by, 'BY_CALLER');
  assert.deepStrictEqual(observer.of('exited')[0].exited.status.result, 'code');
  observer.call.cancel();
}));

test('numbers and escapes that parsers refuse pass untouched', () => withAgent(async (agent) => {
  const { child, cursor } = await agent.fork('/usr/bin/python3', [testcase('echo.py')]);
  const observer = agent.observe({ start: { after: cursor } }, [child.name]);
  const values = ['1e20', '123456789012345678901234567890', '1e999', '"\\ud800"'];
  for (const json of values) await agent.call('SendMessage', { child: child.name, json });
  await observer.untilCount('from_child', values.length);
  assert.deepStrictEqual(observer.of('to_child').map((event) => event.json), values);
  assert.deepStrictEqual(observer.of('from_child').map((event) => event.json), values);
  observer.call.cancel();
}));

test('list and signal', () => withAgent(async (agent) => {
  const names = [];
  for (let n = 0; n < 3; n++) {
    names.push((await agent.fork('/usr/bin/python3', [testcase('echo.py')], { labels: { n: `${n}` } })).child.name);
  }
  const first = await agent.call('ListChildren', { parent: 'agents/-', page_size: 2 });
  const second = await agent.call('ListChildren', {
    parent: 'agents/-', page_size: 2, page_token: first.next_page_token,
  });
  assert.deepStrictEqual([...first.children, ...second.children].map((child) => child.name), names);
  assert.strictEqual(second.next_page_token, '');

  const observer = agent.observe({ start: { after: first.cursor }, until_closed: true }, [names[1]]);
  await agent.call('SignalChild', { child: names[1], signal: 9 });
  await observer.untilEnd();
  assert.deepStrictEqual(observer.kinds, ['signalled', 'disconnected', 'exited', 'closed']);
  assert.strictEqual(observer.of('exited')[0].exited.status.signal, 9);
  assert.strictEqual(observer.fin.reason, 'REASON_CLOSED');
}));

test('a gap is exact', () => withAgent(async (agent) => {
  const limits = { message_bytes_max: 1024, queue_bytes_max: 65536, log_bytes_max: 73728 };
  const { child, cursor } = await agent.fork('/usr/bin/python3', [testcase('flood.py'), '5000'], { limits });
  await agent.observe({ start: { latest: true }, until_closed: true }, [child.name]).untilEnd();
  const observer = await agent.observe({ start: { after: cursor }, until_closed: true }, [child.name]).untilEnd();
  assert.strictEqual(observer.error, undefined);
  assert.strictEqual(observer.gaps.length, 1);
  const [gap] = observer.gaps;
  assert.strictEqual(gap.reason, 'REASON_LOG_TURNED_OVER');
  assert.strictEqual(Number(gap.to_child_sequence) + observer.events.length, 5004);
  assert.strictEqual(Number(observer.events[0].child_sequence), Number(gap.to_child_sequence) + 1);

  const strict = await agent.observe({ start: { after: cursor }, fail_on_gap: true }, [child.name]).untilEnd();
  const { info } = await refused(Promise.reject(strict.error), grpc.status.OUT_OF_RANGE, 'CURSOR_EXPIRED');
  assert.ok(Number(info.metadata.first_sequence) > 0);
}));

test('errors say which thing and why', () => withAgent(async (agent) => {
  await refused(agent.call('GetChild', { name: 'nobody' }), grpc.status.NOT_FOUND, 'CHILD_NOT_FOUND');
  const { error } = await refused(
    agent.fork('/no/such/program', []), grpc.status.NOT_FOUND, 'PROGRAM_NOT_FOUND');
  assert.match(error.details, /\/no\/such\/program/);
  const { child } = await agent.fork('/usr/bin/python3', [testcase('echo.py')]);
  await refused(
    agent.call('SendMessage', { child: child.name, json: '{' }), grpc.status.INVALID_ARGUMENT, 'INVALID_JSON');
  const observer = await agent.observe({ start: { after: { epoch: '1', sequence: '-1' } } }).untilEnd();
  await refused(Promise.reject(observer.error), grpc.status.INVALID_ARGUMENT, 'INVALID_ARGUMENT');
}));

test('one connection too many', () => withAgent(async (agent) => {
  const client = agent.connect();
  for (let i = 0; i < 3; ++i) {
    const { info } = await refused(
      agent.call('ListChildren', { parent: 'agents/-' }, client), grpc.status.RESOURCE_EXHAUSTED, 'CONNECTIONS_LIMIT');
    assert.strictEqual(info.metadata.limit, '1');
  }
  client.close();
  await agent.call('ListChildren', { parent: 'agents/-' });
}, 'limits { connections_max: 1 }'));

test('attach', () => withAgent(async (agent) => {
  const { child } = await agent.fork('/usr/bin/python3', [testcase('echo.py')]);
  const call = agent.client.Attach();
  const echoed = [];
  let through = 0;
  const done = new Promise((resolve, reject) => {
    call.on('data', ({ response, ack, observed }) => {
      if (response === 'ack') through = Number(ack.through);
      if (observed?.response === 'batch') {
        echoed.push(...observed.batch.events.filter((event) => event.kind === 'from_child').map((event) => event.json));
      }
      if (through === 100 && echoed.length === 100) call.end();
    });
    call.on('end', resolve);
    call.on('error', reject);
  });
  call.write({ open: { child: child.name, observation: { start: { latest: true } }, client: CLIENT } });
  for (let number = 1; number <= 100; number++) call.write({ number, send: { json: `${number}` } });
  await done;
  assert.deepStrictEqual(echoed, Array.from({ length: 100 }, (_, index) => `${index + 1}`));
}));
