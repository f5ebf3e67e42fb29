"""sdk/examples/embedded_parent.cc: a C++ program hears its children in its own process while others look in."""

import os
import subprocess

import grpc

import bridge
from bridge import api


class EmbeddedParentTest(bridge.TestCase):
    def setUp(self):
        super().setUp()
        self.target = "unix:" + os.path.join(self.directory, "parent.sock")
        self.parent = subprocess.Popen(
            [os.path.abspath(os.environ["EMBEDDED_PARENT"]), self.target, bridge.PYTHON, bridge.testcase("echo.py")],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(self.end)
        self.assertEqual(self.parent.stdout.readline(), f"serving {self.target}\n")
        self.channel = grpc.insecure_channel(self.target)
        self.addCleanup(self.channel.close)
        self.stub = bridge.bridge_service_pb2_grpc.BridgeServiceStub(self.channel)

    def end(self):
        self.parent.kill()
        self.parent.wait()
        self.parent.stdout.close()

    def test_both_hear_what_the_children_say(self):
        names = ("forked", "adopted")
        listed = bridge.answer(self.stub.ListChildren, api.ListChildrenRequest(parent="agents/-"))
        self.assertEqual([child.display_name for child in listed.children], list(names))
        ids = [child.name.rpartition("/")[2] for child in listed.children]
        request = api.ObserveRequest(parent="agents/-")
        request.filter.children.extend(names)
        request.observation.start.earliest = True
        request.observation.until_closed = True
        observation = self.stub.Observe(request, timeout=bridge.DEADLINE_S)
        for name in names:
            sent = api.SendMessageRequest(child=name, json=f'{{"to":"{name}"}}')
            bridge.answer(self.stub.SendMessage, sent)
            # The parent's own callback, in its own process.
            self.assertEqual(self.parent.stdout.readline(), f'{name} says {{"to":"{name}"}}\n')
        for name in names:
            bridge.answer(self.stub.Disconnect, api.DisconnectRequest(child=name))
            self.assertEqual(self.parent.stdout.readline(), f"{name} is closed\n")

        kinds = {child: [] for child in ids}
        for response in observation:
            for event in response.batch.events:
                kinds[event.child].append(bridge.kind_of(event))
        for child in ids:
            self.assertEqual(
                kinds[child], ["started", "to_child", "from_child", "disconnected", "exited", "closed"]
            )
        self.assertEqual(self.parent.wait(bridge.DEADLINE_S), 0)


if __name__ == "__main__":
    bridge.main()
