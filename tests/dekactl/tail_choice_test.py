"""dekactl tail and a real agent: choosing events by content, label, time, size and rate, and what becomes of a tail that is slow."""

import json
import signal

import bridge
import shell
from bridge import Code, api, child_pb2
from shell import MISSED

# A child that, when it hears something, writes more than a suspended client and all before it can hold.
MESSAGES = 4000
TALKATIVE = f"""
import os
channel = int(os.environ["DEKA_IPC_FD"])
os.read(channel, 65536)
for number in range({MESSAGES}):
    line = b'{{"cmd":"NODE_HANDLE","msg":[%d,"%s"]}}\\n' % (number, b"x" * 900)
    while line:
        line = line[os.write(channel, line) :]
"""


class TestCase(shell.Shell, bridge.TestCase):
    def setUp(self):
        super().setUp()
        self.agent = self.start_agent()
        self.open_shell(self.agent.target)

    def talk(self, lines, **fields):
        """A child that has written these lines and is closed."""
        puppet = bridge.Puppet(self, self.agent, dialect=bridge.NODE, display_name="w", **fields)
        for line in lines:
            puppet.write(line.encode() + b"\n")
        puppet.child.observe().wait_for_count("from_child", len(lines))
        puppet.close_channel()
        puppet.close_output()
        puppet.exit()
        puppet.child.observe().wait_for_last("closed")
        return puppet.child

    def told(self, *words, **keywords):
        """What tail --json has told."""
        ended = self.run_it("tail", "--from", "earliest", "--json", *words, **keywords)
        return [json.loads(line) for line in ended.lines]


class ContentTest(TestCase):
    def messages(self, *words):
        return [event["message"] for event in self.told("w", *words)]

    def test_where(self):
        bob, ann = {"id": 7, "user": {"name": "bob", "tags": ["a", "b"]}}, {"id": "7", "user": {"name": "ann"}}
        self.talk([json.dumps(bob), json.dumps(ann), "7"])
        for words, shown in (
            (["/id=7"], [bob]),
            (["/id=7.0"], [bob]),
            (['/id="7"'], [ann]),
            (["/id"], [bob, ann]),
            (["/user/name=ann"], [ann]),
            (["/user/tags/1=b"], [bob]),
            (['/user/tags=["a", "b"]'], [bob]),
            (["/user={'name':'ann'}".replace("'", '"')], [ann]),
            (["=7"], [7]),
            (["/id", "/user/tags"], [bob]),
            (["/id=8"], []),
        ):
            with self.subTest(words):
                self.assertEqual(self.messages(*(word for each in words for word in ("--where", each))), shown)

    def test_other_kinds_are_not_concerned(self):
        self.talk(['{"id":1}', '{"id":2}'])
        told = self.told("w", "--where", "/id=2", "--kind", "message", "--kind", "disconnected")
        self.assertEqual([event.get("message") for event in told], [{"id": 2}, None])

    def test_both_directions(self):
        child = self.agent.fork("echo.py", display_name="w")
        observer = child.observe()
        for count in (1, 2):
            child.send('{"id":%d}' % count)
            observer.wait_for_count("from_child", count)
        child.disconnect()
        observer.wait_for_last("closed")
        self.assertEqual(self.messages("--where", "/id=2"), [{"id": 2}] * 2)
        self.assertEqual(self.messages("--where", "/id=2", "--direction", "to"), [{"id": 2}])


class LabelTest(TestCase):
    def test_all_of_them(self):
        for name, labels in (("a", {"color": "red"}), ("b", {"color": "red", "size": "1"}), ("c", {"color": "blue"})):
            self.agent.fork("echo.py", display_name=name, labels=labels)
        for words, shown in (
            (["color=red"], ["a", "b"]),
            (["color=red", "size=1"], ["b"]),
            (["color=blue"], ["c"]),
            (["size="], []),
        ):
            labels = [word for each in words for word in ("--label", each)]
            told = self.told("--kind", "started", "--for", "50ms", *labels)
            self.assertEqual([event["started"]["child"]["displayName"] for event in told], shown, words)


class TimeTest(TestCase):
    def test_since(self):
        child = self.agent.fork("echo.py", display_name="w")
        observer = child.observe()
        for count in (1, 2, 3):
            child.send(str(count))
            observer.wait_for_count("from_child", count)
        child.disconnect()
        observer.wait_for_last("closed")
        for event in observer.events:
            since = event.time.ToJsonString()
            shown = [json.loads(line) for line in self.run_it("tail", "w", "--json", "--since", since).lines]
            expected = [each.child_sequence for each in observer.events if each.time.ToNanoseconds() >= event.time.ToNanoseconds()]
            self.assertEqual([int(each["childSequence"]) for each in shown], expected, since)
        everything = self.run_it("tail", "w", "--json", "--since", "1h").lines
        self.assertEqual(len(everything), len(observer.events))


class PayloadTest(TestCase):
    LONG = '{"text":"%s"}' % ("é" * 600)

    def test_text(self):
        self.talk([self.LONG])
        words = ["tail", "w", "--from", "earliest", "--direction", "from"]
        size = len(self.LONG.encode())
        for payload, shown in (
            ("full", self.LONG),
            ("1m", self.LONG),
            ("none", f"({size} bytes)"),
            # A cut never splits a character.
            ("12", f'{{"text":"é... ({size - 11} bytes more)'),
        ):
            self.assertTrue(self.run_it(*words, "--payload", payload).lines[0].endswith("  " + shown), payload)

    def test_json(self):
        self.talk([self.LONG, "1"])
        size = str(len(self.LONG.encode()))
        long, short = self.told("w", "--direction", "from", "--payload", "1k")
        self.assertEqual(long["payloadCut"]["sizeBytes"], size)
        self.assertEqual(long["fromChild"]["sizeBytes"], size)
        self.assertEqual(long["payloadCut"]["text"], self.LONG.encode()[:1024].decode(errors="ignore"))
        self.assertNotIn("message", long)
        self.assertEqual(short["message"], 1)
        long, short = self.told("w", "--direction", "from", "--payload", "none")
        self.assertEqual(long["payloadCut"], {"text": "", "sizeBytes": size})
        self.assertEqual(short["payloadCut"], {"text": "", "sizeBytes": "1"})

    def test_output(self):
        child = self.agent.fork("/bin/sh", "-c", "echo 0123456789", display_name="w")
        child.observe().wait_for_last("closed")
        (cut,) = self.told("w", "--kind", "output", "--payload", "4")
        self.assertEqual(cut["payloadCut"], {"text": "0123", "sizeBytes": "10"})
        self.assertNotIn("text", cut)


class RateTest(TestCase):
    def test_the_rest_is_missed(self):
        child = self.agent.fork("flood.py", "1000", display_name="w")
        child.observe().wait_for_last("closed")
        told = self.told("w", "--rate", "10", code=MISSED)
        expected = 1
        for each in told:
            if "gap" in each:
                self.assertEqual(each["gap"]["reason"], "REASON_RATE")
                self.assertEqual(int(each["gap"]["fromChildSequence"]), expected)
                expected = int(each["gap"]["toChildSequence"]) + 1
            else:
                self.assertEqual(int(each["childSequence"]), expected)
                expected += 1
        self.assertEqual(expected - 1, child.get().last_child_sequence)
        self.assertLess(len(told), 500)
        ended = self.run_it("tail", "w", "--from", "earliest", "--rate", "10", code=MISSED)
        self.assertIn(": more in a second than were asked for; --from after:", ended.stdout)


class SlowTest(TestCase):
    """A tail that is suspended while its child writes more than its log and everything in between can hold."""

    def suspended(self, *words):
        """The child, which has begun to write, and the tail, which does not read."""
        limits = child_pb2.ChildLimits(message_bytes_max=1000, log_bytes_max=70_000)
        child = self.agent.fork(bridge.PYTHON, "-c", TALKATIVE, display_name="w", limits=limits)
        process = self.start("tail", "w", "--from", "earliest", *words)
        self.assertIn("started", process.stdout.readline())
        process.send_signal(signal.SIGSTOP)
        child.send("1")
        return child, process

    def resume(self, process):
        process.send_signal(signal.SIGCONT)
        return self.finish(process)

    def test_disconnect_is_4_with_a_cursor(self):
        child, process = self.suspended("--when-slow", "disconnect")
        child.observe(kinds=[bridge.event_pb2.EVENT_KIND_CLOSED]).wait_for_last("closed")
        ended = self.resume(process)
        self.assertEqual(ended.code, MISSED, ended.errors)
        self.assertOneError(ended, "too slow: the log has turned over", "goes on here")
        self.assertNotIn("missed", ended.stdout)
        place = ended.errors[0].partition("--from ")[2].split()[0]
        again = self.run_it("tail", "w", "--from", place, code=MISSED)
        self.assertIn("missed", again.lines[0])
        self.assertIn("closed", again.lines[-1])

    def held(self, child):
        try:
            child.send("2", answer_when=api.SEND_OUTCOME_ACCEPTED)
        except bridge.Refusal as refusal:
            self.check_refusal(refusal, Code.RESOURCE_EXHAUSTED, "HELD_BY_OBSERVER")
            return True
        return False

    def test_block_misses_nothing(self):
        child, process = self.suspended("--when-slow", "block", "--hold", "8s", "--json")
        bridge.wait_until(lambda: self.held(child), "the tail holds the child back")
        ended = self.resume(process)
        self.assertEqual(ended.code, 0, ended.errors)
        told = [json.loads(line) for line in ended.lines]
        self.assertEqual([int(event["childSequence"]) for event in told], list(range(2, len(told) + 2)))
        self.assertEqual([event["message"][0] for event in told if "fromChild" in event], list(range(MESSAGES)))

    def test_a_hold_ends(self):
        child, process = self.suspended("--when-slow", "block", "--hold", "100ms")
        child.observe(kinds=[bridge.event_pb2.EVENT_KIND_CLOSED]).wait_for_last("closed")
        ended = self.resume(process)
        self.assertEqual(ended.code, MISSED, ended.errors)
        self.assertIn(": the child was held back as long as it may be; --from after:", ended.stdout)


if __name__ == "__main__":
    bridge.main()
