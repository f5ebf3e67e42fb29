"""Shows what a child says, sends it a message, and ends the conversation at its first answer.

    mkdir stubs
    protoc -I proto --python_out=stubs --grpc_python_out=stubs --plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin \
        proto/deka/bridge/v1/*.proto proto/google/rpc/*.proto
    PYTHONPATH=stubs /usr/bin/python3 sdk/examples/observe.py unix:/run/deka/agent.sock worker

Needs Debian's python3-grpcio.
"""

import sys

import grpc

from deka.bridge.v1 import bridge_service_pb2 as api
from deka.bridge.v1 import bridge_service_pb2_grpc
from deka.bridge.v1 import child_pb2

target, child = sys.argv[1:]
bridge = bridge_service_pb2_grpc.BridgeServiceStub(grpc.insecure_channel(target))

request = api.ObserveRequest(
    parent="agents/-",
    filter=child_pb2.ChildFilter(children=[child]),
    observation=api.Observation(start=api.ObserveStart(earliest=True), until_closed=True),
)
for response in bridge.Observe(request):
    if response.HasField("gap"):
        print("missed: everything up to", response.gap.to_child_sequence)
    for event in response.batch.events:
        kind = event.WhichOneof("kind")
        print(event.child_sequence, kind, event.json or event.text, flush=True)
        if kind == "started":
            bridge.SendMessage(api.SendMessageRequest(child=child, json='{"ping":1}'))
        elif kind == "from_child":
            bridge.Disconnect(api.DisconnectRequest(child=child))
