"""What a child wrote before it went is recorded before its end is, however fast it goes."""

import os
import signal

import bridge
from bridge import event_pb2

COUNT = 10_000


class LastWordsTest(bridge.TestCase):
    def setUp(self):
        super().setUp()
        self.agent = self.start_agent()

    def check(self, how):
        child = self.agent.fork("last_words.py", str(COUNT), how)
        observer = child.observe(until_closed=True).wait_for_end()
        self.assertEqual([int(text) for text in observer.json_from_child()], list(range(COUNT)))
        self.assertEqual(observer.kinds, ["started"] + ["from_child"] * COUNT + ["disconnected", "exited", "closed"])
        self.assertEqual(self.assertWhole(observer, child), COUNT + 4)
        status = observer.events[-2].exited.status
        self.assertFalse(status.still_held)
        return status

    def test_ten_thousand_messages_and_exit(self):
        self.assertEqual(self.check("exit").code, 7)

    def test_ten_thousand_messages_and_sigkill(self):
        self.assertEqual(self.check("kill").signal, signal.SIGKILL)

    def test_several_at_once(self):
        children = [self.agent.fork("last_words.py", str(COUNT), "exit") for _ in range(4)]
        for child in children:
            observer = child.observe(until_closed=True).wait_for_end()
            self.assertEqual([int(text) for text in observer.json_from_child()], list(range(COUNT)))
            self.assertEqual(observer.kinds[-3:], ["disconnected", "exited", "closed"])

    def test_a_child_that_dies_with_unread_input(self):
        """The socket then answers ECONNRESET before the bytes that still wait in it: they are read all the same."""
        puppet = bridge.Puppet(self, self.agent, dialect=bridge.NODE)
        observer = puppet.child.observe()
        puppet.child.signal(signal.SIGCONT)
        for _ in range(100):
            puppet.child.send('"never read"')
        puppet.write(b"".join(b"%d\n" % number for number in range(100)))
        puppet.close_channel()
        disconnected = observer.wait_for_last("disconnected")
        self.assertEqual([int(text) for text in observer.json_from_child()], list(range(100)))
        self.assertEqual(observer.events[-1], disconnected)

    def test_what_was_accepted_and_not_written_is_told(self):
        """A child that goes while messages wait for it: each of them is `undelivered`, before the end of the channel."""
        puppet = bridge.Puppet(self, self.agent, dialect=bridge.NODE)
        observer = puppet.child.observe()
        text = '"' + "x" * 60_000 + '"'
        for number in range(20):
            puppet.child.send(text, answer_when=bridge.api.SEND_OUTCOME_ACCEPTED, request_id=f"r{number}")
        puppet.close_channel()
        observer.wait_for_last("disconnected")
        written = [event.to_child.request_id for event in observer.of("to_child")]
        undelivered = [event.undelivered.request_id for event in observer.of("undelivered")]
        self.assertTrue(undelivered)
        self.assertEqual(written + undelivered, [f"r{number}" for number in range(20)])
        self.assertEqual(observer.kinds[-1], "disconnected")
        for event in observer.of("undelivered"):
            self.assertEqual(event.undelivered.frame_bytes, len(text) + 1)
            self.assertLess(event.undelivered.written_bytes, event.undelivered.frame_bytes)
            self.assertEqual(event.undelivered.sender.principal, f"uid:{os.getuid()}")
            self.assertTrue(event.undelivered.reason)
        # At most the first of them had begun.
        self.assertEqual([event.undelivered.written_bytes for event in observer.of("undelivered")][1:], [0] * (len(undelivered) - 1))

    def test_output_comes_before_exited(self):
        child = self.agent.fork("/bin/sh", "-c", "seq 1 5000; echo oops >&2; printf unfinished; exit 2")
        observer = child.observe(until_closed=True).wait_for_end()
        stdout = [event.text for event in observer.of("output") if event.output.stream == event_pb2.Output.STREAM_STDOUT]
        self.assertEqual(stdout, [str(number) for number in range(1, 5001)] + ["unfinished"])
        self.assertEqual(observer.kinds[-2:], ["exited", "closed"])


if __name__ == "__main__":
    bridge.main()
