"""Children that are plain Node: process.on('message'), process.send, and nothing of ours."""

import json
import os
import signal

import bridge
from bridge import Code, child_pb2, event_pb2


class NodeChildTest(bridge.TestCase):
    def setUp(self):
        super().setUp()
        self.agent = self.start_agent()
        # What is set there is not the child's to inherit.
        os.environ.pop("NODE_OPTIONS", None)

    def fork(self, name="worker.js", **fields):
        child = self.agent.fork(name, **fields)
        return child, child.observe()

    def ask(self, child, observer, message):
        """Sends a message, and gives the child's next one."""
        before = len(observer.of("from_child"))
        child.send(json.dumps(message))
        return json.loads(observer.wait_for_count("from_child", before + 1)[before].json)

    def test_messages_of_every_kind(self):
        child, observer = self.fork()
        self.assertEqual(child.description.dialect, bridge.NODE)
        for message in ({"a": [1, 2.5, None]}, [], "text", "ä\u2028\U0001f600\0", 0, -1.5, True, False, None, {"do": 0}):
            self.assertEqual(self.ask(child, observer, message), message)
        # Read as process.send would have written it.
        self.assertEqual(observer.of("to_child")[0].json, '{"a": [1, 2.5, null]}')
        self.assertEqual(observer.of("from_child")[0].json, '{"a":[1,2.5,null]}')
        self.assertEqual(observer.of("error"), [])

    def test_the_dialect_is_found(self):
        link = os.path.join(self.directory, "my-program")
        os.symlink(bridge.node(), link)
        script = os.path.join(self.directory, "script")
        with open(bridge.testcase("worker.js"), encoding="utf-8") as source, open(script, "w", encoding="utf-8") as file:
            file.write("#!/usr/bin/env node\n" + source.read())
        os.chmod(script, 0o755)
        path = os.path.dirname(bridge.node()) + ":/usr/bin:/bin"
        for program, args in (("node", [bridge.testcase("worker.js")]), (link, [bridge.testcase("worker.js")]), (script, [])):
            with self.subTest(program=program):
                child = self.agent.fork(program, *args, env={"PATH": path})
                observer = child.observe()
                self.assertEqual(child.description.dialect, bridge.NODE)
                self.assertIn("node", child.description.dialect_reason)
                self.assertEqual(self.ask(child, observer, "hello"), "hello")

    def test_it_is_connected_and_hides_its_channel(self):
        child, observer = self.fork(env={"DEKA_IPC_FD": "77", "DEKA_IPC_ENABLED": "1", "NODE_CHANNEL_FD": "78"})
        self.assertEqual(self.ask(child, observer, {"do": "state"}), {"connected": True, "channelVariables": []})

    def test_it_disconnects(self):
        child, observer = self.fork()
        self.assertEqual(self.ask(child, observer, {"do": "disconnect"}), "last")
        disconnected = observer.wait_for_last("disconnected")
        self.assertEqual(disconnected.disconnected.by, event_pb2.Disconnected.BY_CHILD)
        observer.wait_for_last("closed")
        self.assertEqual(observer.wait_for_last("exited").exited.status.code, 9)
        with self.assertRefused(Code.FAILED_PRECONDITION, "CHILD_EXITED"):
            child.send("1")

    def test_it_is_disconnected(self):
        child, observer = self.fork()
        self.assertEqual(self.ask(child, observer, 1), 1)
        child.disconnect()
        observer.wait_for_last("closed")
        self.assertEqual(observer.wait_for_last("output").text, "the channel is closed")
        self.assertEqual(observer.wait_for_last("exited").exited.status.code, 0)
        self.assertEqual(observer.wait_for_last("disconnected").disconnected.by, event_pb2.Disconnected.BY_CALLER)
        self.assertEqual(sorted(observer.kinds[-4:]), ["closed", "disconnected", "exited", "output"])
        self.assertEqual(observer.kinds[-2:], ["exited", "closed"])

    def test_it_sends_and_exits(self):
        child, observer = self.fork()
        self.assertEqual(self.ask(child, observer, {"do": "exit", "code": 3}), {"last": True})
        observer.wait_for_last("closed")
        self.assertEqual(observer.kinds[-4:], ["from_child", "disconnected", "exited", "closed"])
        self.assertEqual(observer.wait_for_last("exited").exited.status.code, 3)

    def test_a_burst_before_it_ends(self):
        child, observer = self.fork()
        child.send('{"do":"burst","count":10000}')
        observer.wait_for_last("closed")
        numbers = [int(text) for text in observer.json_from_child()]
        self.assertEqual(numbers, list(range(10000)))
        self.assertEqual(observer.kinds[-3:], ["disconnected", "exited", "closed"])
        self.assertEqual(observer.wait_for_last("exited").exited.status.code, 0)

    def test_output(self):
        child, observer = self.fork()
        self.assertEqual(self.ask(child, observer, {"do": "print"}), "printed")
        observer.wait_for_count("output", 2)
        lines = {(event.output.stream, event.text) for event in observer.of("output")}
        self.assertEqual(
            lines, {(event_pb2.Output.STREAM_STDOUT, "to stdout"), (event_pb2.Output.STREAM_STDERR, "to stderr")}
        )

    def test_it_throws(self):
        child, observer = self.fork()
        child.send('{"do":"throw"}')
        observer.wait_for_last("closed")
        self.assertEqual(observer.wait_for_last("exited").exited.status.code, 1)
        lines = [event.text for event in observer.of("output")]
        self.assertIn("Error: thrown on purpose", lines)

    def test_a_signal_ends_it(self):
        child, observer = self.fork()
        self.assertEqual(self.ask(child, observer, 1), 1)
        child.signal(signal.SIGTERM)
        observer.wait_for_last("closed")
        self.assertEqual(observer.wait_for_last("exited").exited.status.signal, signal.SIGTERM)

    def test_messages_sent_before_it_listens(self):
        child, observer = self.fork("late_listener.js")
        for number in range(100):
            child.send(str(number))
        observer.wait_for_count("from_child", 100)
        self.assertEqual([int(text) for text in observer.json_from_child()], list(range(100)))

    def test_large_messages(self):
        child, observer = self.fork()
        for size in (65_536, 219_264, (1 << 20) - 2):
            text = "".join(chr(ord("a") + n % 26) for n in range(size))
            self.assertEqual(self.ask(child, observer, text), text)

    def test_it_forks_a_child_of_its_own(self):
        child, observer = self.fork()
        self.assertEqual(
            self.ask(child, observer, {"do": "fork"}),
            {"fromGrandchild": {"connected": True, "channelVariables": []}},
        )
        child.disconnect()
        observer.wait_for_last("closed")
        self.assertFalse(observer.wait_for_last("exited").exited.status.still_held)

    def test_many_workers_at_once(self):
        workers = [self.fork(display_name=f"worker-{n}") for n in range(8)]
        for number, (child, _) in enumerate(workers):
            child.send(str(number))
        for number, (child, observer) in enumerate(workers):
            self.assertEqual(observer.wait_for_last("from_child").json, str(number))
            self.assertEqual(child.get().state, child_pb2.Child.STATE_CONNECTED)


if __name__ == "__main__":
    bridge.main()
