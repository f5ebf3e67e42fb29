"""A client of its own process: observes a child until it has closed, resuming whenever its stream ends with an error.

    observing_client.py TARGET CHILD EPOCH SEQUENCE

Prints `attached` when its first stream stands, and at the end one line of JSON: what it was shown, and the errors in between.
"""

import json
import sys

import bridge
import grpc
from bridge import api, child_pb2, event_pb2
from deka.bridge.v1 import bridge_service_pb2_grpc

target, child, epoch, sequence = sys.argv[1:]
cursor = event_pb2.Cursor(epoch=int(epoch), sequence=int(sequence))
stub = bridge_service_pb2_grpc.BridgeServiceStub(grpc.insecure_channel(target))
# Of child_sequence: [from, to] for each event and gap; from is null where a gap does not say it.
shown = []
errors = []
closed = False
while not closed:
    request = api.ObserveRequest(
        parent="agents/-",
        filter=child_pb2.ChildFilter(children=[child]),
        observation=api.Observation(start=api.ObserveStart(after=cursor), until_closed=True),
        client="observing-client",
    )
    try:
        for response in stub.Observe(request):
            piece = response.WhichOneof("response")
            if piece == "attached" and not errors:
                cursor.agent = response.attached.agent
                print("attached", flush=True)
            elif piece == "gap":
                first = response.gap.from_child_sequence if response.gap.HasField("from_child_sequence") else None
                shown.append([first, response.gap.to_child_sequence])
                cursor.sequence = max(cursor.sequence, response.gap.to_sequence)
            for event in response.batch.events:
                shown.append([event.child_sequence, event.child_sequence])
                cursor.sequence = event.sequence
                closed = closed or bridge.kind_of(event) == "closed"
    except grpc.RpcError as error:
        errors.append(bridge.Refusal(error).reason or error.code().name)
print(json.dumps({"shown": shown, "errors": errors}), flush=True)
