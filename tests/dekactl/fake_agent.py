"""An agent that answers what a test has written down: for what a real one does seldom, as gaps, or how a process ended when
nobody knows."""

import contextlib
import os
import queue
import threading
from concurrent import futures

import grpc

from deka.bridge.v1 import agent_pb2
from deka.bridge.v1 import bridge_service_pb2 as api
from deka.bridge.v1 import bridge_service_pb2_grpc
from deka.bridge.v1 import child_pb2
from deka.bridge.v1 import event_pb2
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from google.rpc import status_pb2

AGENT = "fake"
EPOCH = 5


class FakeAgent(bridge_service_pb2_grpc.BridgeServiceServicer):
    """Its children are what `add` was given; every request is kept in `requests`."""

    def __init__(self, directory):
        self.path = os.path.join(directory, "agent.sock")
        self.target = "unix:" + self.path
        self.requests = []
        self.description = agent_pb2.Agent(name=f"agents/{AGENT}", epoch=EPOCH)
        self.children = []
        self.events = []
        self.gaps = []
        self.refusals = {}
        # Requests of these types are never answered.
        self.held = ()
        # Attach answers requests up to this number.
        self.answered_max = None
        self.fin = None
        self.failure = None
        self.server = grpc.server(futures.ThreadPoolExecutor(8))
        bridge_service_pb2_grpc.add_BridgeServiceServicer_to_server(self, self.server)
        self.server.add_insecure_port(self.target)
        self.server.start()

    def close(self):
        self.server.stop(0).wait()

    # --- what a test writes down ---

    def add(self, name, id=None, **fields):
        fields.setdefault("state", child_pb2.Child.STATE_CONNECTED)
        fields.setdefault("dialect", child_pb2.DIALECT_DEKA)
        child = child_pb2.Child(
            name=f"agents/{AGENT}/children/{id or name}", display_name=name, **fields
        )
        self.children.append(child)
        return child

    def append(self, child, **fields):
        event = event_pb2.Event(sequence=len(self.events) + 1, child_sequence=len(self.events) + 1, child=child)
        for key, value in fields.items():
            if isinstance(value, (str, bytes)):
                setattr(event, key, value)
            else:
                getattr(event, key).CopyFrom(value)
        self.events.append(event)

    def refuse(self, request_type, code, reason, message, **metadata):
        """Every request of this type is refused."""
        self.refusals[request_type] = (code, reason, message, metadata)

    def fail(self, code, reason, message):
        """Observe ends so when it has shown everything."""
        self.failure = (code, reason, message, {})

    def of(self, request_type):
        return [request for request in self.requests if isinstance(request, request_type)]

    # --- the service ---

    def _take(self, request, context):
        self.requests.append(request)
        if type(request) in self.refusals:
            self._abort(context, *self.refusals[type(request)])
        if type(request) in self.held:
            self._wait_until_gone(context)

    def _wait_until_gone(self, context):
        gone = threading.Event()
        if context.add_callback(gone.set):
            gone.wait()

    def _abort(self, context, code, reason, message, metadata):
        info = error_details_pb2.ErrorInfo(reason=reason, domain="deka.bridge", metadata=metadata)
        detail = any_pb2.Any()
        detail.Pack(info)
        status = status_pb2.Status(code=code.value[0], message=message, details=[detail])
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, message)

    def _find(self, name, context):
        found = [
            child
            for child in self.children
            if name in (child.name, child.display_name, child.name.rpartition("/")[2])
        ]
        if not found:
            self._abort(
                context, grpc.StatusCode.NOT_FOUND, "CHILD_NOT_FOUND", f"there is no child {name}; ps lists them", {}
            )
        if len(found) > 1:
            self._abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                "CHILD_AMBIGUOUS",
                f"two live children are called {name}",
                {"candidates": ",".join(child.name for child in found)},
            )
        return found[0]

    def ForkChild(self, request, context):
        self._take(request, context)
        child = self.add(request.spec.display_name or "forked", pid=1, dialect_reason="it is node")
        child.dialect = request.spec.dialect or child_pb2.DIALECT_NODE
        cursor = event_pb2.Cursor(agent=AGENT, epoch=EPOCH, sequence=0)
        return api.ForkChildResponse(child=child, cursor=cursor)

    def GetChild(self, request, context):
        self._take(request, context)
        return api.GetChildResponse(child=self._find(request.name, context))

    def ListChildren(self, request, context):
        self._take(request, context)
        return api.ListChildrenResponse(children=self.children)

    def SendMessage(self, request, context):
        self._take(request, context)
        self._find(request.child, context)
        return api.SendMessageResponse(outcome=api.SEND_OUTCOME_WRITTEN, sequence=1)

    def Disconnect(self, request, context):
        self._take(request, context)
        return api.DisconnectResponse()

    def SignalChild(self, request, context):
        self._take(request, context)
        return api.SignalChildResponse(sequence=1)

    def GetAgent(self, request, context):
        self._take(request, context)
        return api.GetAgentResponse(agent=self.description)

    def _observed(self, children):
        cursor = event_pb2.Cursor(agent=AGENT, epoch=EPOCH, sequence=0)
        attached = api.Attached(agent=AGENT, epoch=EPOCH, first_sequence=1, head=0, start=cursor)
        yield api.ObserveResponse(attached=attached)
        yield api.ObserveResponse(snapshot=api.Snapshot(children=children))
        yield api.ObserveResponse(snapshot_complete=api.SnapshotComplete(head=0))
        for gap in self.gaps:
            yield api.ObserveResponse(gap=gap)
        if self.events:
            yield api.ObserveResponse(batch=api.EventBatch(events=self.events))

    def _fin(self, reason):
        cursor = event_pb2.Cursor(agent=AGENT, epoch=EPOCH, sequence=len(self.events))
        return api.ObserveResponse(fin=api.Fin(cursor=cursor, reason=reason))

    def Observe(self, request, context):
        self._take(request, context)
        names = list(request.filter.children)
        yield from self._observed([self._find(name, context) for name in names] if names else self.children)
        if self.failure is not None:
            self._abort(context, *self.failure)
        if self.fin is not None:
            yield self._fin(self.fin)
            return
        self._wait_until_gone(context)

    def Attach(self, requests, context):
        answers = queue.Queue()
        opened = next(requests)
        self._take(opened, context)
        for response in self._observed([self._find(opened.open.child, context)]):
            answers.put(api.AttachResponse(observed=response))

        def read():
            with contextlib.suppress(grpc.RpcError):
                answer()
            answers.put(None)

        def answer():
            for request in requests:
                self.requests.append(request)
                if request.send.json == "bad":
                    refused = status_pb2.Status(code=3, message="the message is not JSON")
                    detail = any_pb2.Any()
                    metadata = {"number": str(request.number)}
                    detail.Pack(
                        error_details_pb2.ErrorInfo(reason="INVALID_JSON", domain="deka.bridge", metadata=metadata)
                    )
                    refused.details.append(detail)
                    failed = api.Failed(number=request.number, status=refused)
                    if opened.open.stop_on_failure:
                        answers.put(refused)
                        return
                    answers.put(api.AttachResponse(failed=failed))
                elif self.answered_max is None or request.number <= self.answered_max:
                    answers.put(api.AttachResponse(ack=api.Ack(through=request.number)))
            answers.put(api.AttachResponse(observed=self._fin(api.Fin.REASON_HALF_CLOSED)))

        threading.Thread(target=read, daemon=True).start()
        while (response := answers.get()) is not None:
            if isinstance(response, status_pb2.Status):
                context.set_trailing_metadata((("grpc-status-details-bin", response.SerializeToString()),))
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, response.message)
            yield response
