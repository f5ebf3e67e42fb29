"""Children that speak on the inherited descriptor with no library at all: a POSIX shell and Python, in both dialects."""

import json
import os
import signal

import bridge
from bridge import event_pb2

DIALECTS = (bridge.DEKA, bridge.NODE)


class ScriptChildTest(bridge.TestCase):
    def setUp(self):
        super().setUp()
        self.agent = self.start_agent()

    def test_a_shell_echoes_in_both_dialects(self):
        for dialect in DIALECTS:
            with self.subTest(dialect=dialect):
                child = self.agent.fork("echo.sh", dialect=dialect)
                observer = child.observe()
                values = ['{"a":"b\\\\n"}', "[]", '"  "', "1e999"]
                for value in values:
                    child.send(value)
                observer.wait_for_count("from_child", len(values))
                self.assertEqual(observer.json_from_child(), values)
                child.disconnect()
                observer.wait_for_last("closed")
                self.assertEqual(observer.wait_for_last("output").text, "the channel is closed")
                self.assertEqual(observer.wait_for_last("exited").exited.status.code, 0)

    def test_a_shell_speaks_first(self):
        child = self.agent.fork("greet.sh")
        observer = child.observe()
        self.assertEqual(observer.wait_for_last("from_child").json, '{"hello":"from a shell"}')
        child.send("42")
        observer.wait_for_last("closed")
        length = len('{"cmd":"NODE_HANDLE","msg":42}')
        self.assertEqual(observer.json_from_child()[1:], ['{"length":%d}' % length])
        self.assertEqual(observer.wait_for_last("exited").exited.status.code, 3)

    def test_the_reason_of_the_dialect_says_what_to_give(self):
        child = self.agent.fork("greet.sh")
        self.assertEqual(child.description.dialect, bridge.DEKA)
        self.assertIn("give the dialect node", child.description.dialect_reason)

    def test_a_shell_writes_to_dev_stderr(self):
        """Its output is a pipe: a socket cannot be opened by that name."""
        child = self.agent.fork("/bin/sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr")
        observer = child.observe(until_closed=True).wait_for_end()
        self.assertEqual(sorted(event.text for event in observer.of("output")), ["err", "out"])

    def test_python_in_both_dialects(self):
        for dialect in DIALECTS:
            with self.subTest(dialect=dialect):
                child = self.agent.fork("talk.py", dialect=dialect)
                observer = child.observe()
                observer.wait_for_count("from_child", 1)
                child.send('{"add":[1,2]}')
                child.send('{"add":[3,4]}')
                child.send('"end"')
                observer.wait_for_last("closed")
                answers = [json.loads(text) for text in observer.json_from_child()]
                self.assertEqual(answers, [{"ready": True}, {"sum": 3}, {"sum": 7}])
                output = {(event.output.stream, event.text) for event in observer.of("output")}
                self.assertEqual(
                    output,
                    {
                        (event_pb2.Output.STREAM_STDOUT, "adding [1, 2]"),
                        (event_pb2.Output.STREAM_STDOUT, "adding [3, 4]"),
                        (event_pb2.Output.STREAM_STDERR, "done"),
                    },
                )
                self.assertEqual(observer.wait_for_last("exited").exited.status.code, 0)

    def test_a_child_inherits_its_channel_and_nothing_else(self):
        for dialect in DIALECTS:
            with self.subTest(dialect=dialect):
                puppet = bridge.Puppet(self, self.agent, dialect=dialect)
                # 4 is its socket to the test, 5 the folder that it lists.
                self.assertEqual(puppet.state["descriptors"], [0, 1, 2, 3, 4, 5])
                environment = puppet.state["environment"]
                names = ["DEKA_IPC_FD", "DEKA_IPC_ENABLED", "NODE_CHANNEL_FD", "NODE_CHANNEL_SERIALIZATION_MODE"]
                values = [environment.get(name) for name in names]
                if dialect == bridge.DEKA:
                    self.assertEqual(values, ["3", "1", None, None])
                else:
                    self.assertEqual(values, [None, None, "3", "json"])
                self.assertEqual(puppet.state["stdin"], "/dev/null")
                self.assertEqual(puppet.state["group"], puppet.child.pid)

    def test_a_grandchild_that_holds_the_channel(self):
        """exited comes after a bounded wait and says so; what the grandchild writes is still recorded; closed is last."""
        script = 'sh -c \'read -r go <&"$1"; printf "%s\\n" 1 >&"$1"\' grandchild "$NODE_CHANNEL_FD" & exit 6'
        child = self.agent.fork("/bin/sh", "-c", script, dialect=bridge.NODE)
        observer = child.observe()
        exited = observer.wait_for_last("exited")
        self.assertEqual(exited.exited.status.code, 6)
        self.assertTrue(exited.exited.status.still_held)
        self.assertEqual(observer.kinds, ["started", "exited"])
        child.send('"go"')
        observer.wait_for_last("closed")
        self.assertEqual(observer.kinds, ["started", "exited", "to_child", "from_child", "disconnected", "closed"])

    def test_it_stops_and_goes_on(self):
        child = self.agent.fork("echo.sh")
        observer = child.observe()
        child.signal(signal.SIGSTOP)
        child.send("1")
        child.signal(signal.SIGCONT)
        observer.wait_for_last("from_child")
        self.assertEqual([event.signalled.signal for event in observer.of("signalled")], [signal.SIGSTOP, signal.SIGCONT])
        with open(f"/proc/{child.pid}/environ", "rb") as environment:
            self.assertIn(b"DEKA_IPC_FD=3", environment.read().split(b"\0"))
        self.assertTrue(os.path.exists(f"/proc/{child.pid}"))


if __name__ == "__main__":
    bridge.main()
