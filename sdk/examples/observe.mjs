// Shows what a child says, sends it a message, and ends the conversation at its first answer.
//
//     npm install @grpc/grpc-js @grpc/proto-loader
//     node sdk/examples/observe.mjs unix:/run/deka/agent.sock worker

import { promisify } from 'node:util';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const [target, child] = process.argv.slice(2);
const definition = protoLoader.loadSync('deka/bridge/v1/bridge_service.proto', {
  includeDirs: ['proto'], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true,
});
const { BridgeService } = grpc.loadPackageDefinition(definition).deka.bridge.v1;
const bridge = new BridgeService(target, grpc.credentials.createInsecure());
const send = promisify(bridge.SendMessage.bind(bridge));
const disconnect = promisify(bridge.Disconnect.bind(bridge));

const observation = { start: { earliest: true }, until_closed: true };
for await (const { batch, gap } of bridge.Observe({ parent: 'agents/-', filter: { children: [child] }, observation })) {
  if (gap) console.log('missed: everything up to', gap.to_child_sequence);
  for (const event of batch?.events ?? []) {
    console.log(event.child_sequence, event.kind, event.json ?? event.text ?? '');
    if (event.kind === 'started') await send({ child, json: '{"ping":1}' });
    if (event.kind === 'from_child') await disconnect({ child });
  }
}
bridge.close();
