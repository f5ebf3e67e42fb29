"""dekactl call and real children: what it prints, and each exit code."""

import json
import os

import bridge
import shell
from bridge import api
from shell import CHILD_ENDED, ERROR, NO_SUCH_CHILD, TIMED_OUT, USAGE


class CallTest(shell.Shell, bridge.TestCase):
    def setUp(self):
        super().setUp()
        self.agent = self.start_agent()
        self.open_shell(self.agent.target)

    def fork_puppet(self):
        return bridge.Puppet(self, self.agent, dialect=bridge.NODE, display_name="p")

    def test_the_reply(self):
        child = self.agent.fork("echo.py", display_name="w")
        for word in ("w", child.id, child.name):
            ended = self.run_it("call", word, '{"id":7,\n"to":"%s"}' % word, "--match", "/id=7", "--match", f"/to={word}")
            self.assertEqual((ended.stdout, ended.stderr), ('{"id":7, "to":"%s"}\n' % word, ""))
        observer = child.observe()
        observer.wait_for_count("from_child", 3)
        self.assertEqual(observer.kinds, ["started"] + ["to_child", "from_child"] * 3)
        sender = observer.of("to_child")[0].to_child.sender
        self.assertEqual(sender.principal, f"uid:{os.getuid()}")
        self.assertRegex(sender.client, r"\Adekactl/\d+\Z")

    def test_a_node_child(self):
        self.agent.fork("worker.js", display_name="w")
        told = json.loads(self.run_it("call", "w", '{"do":"state"}', "--match", "/connected=true").stdout)
        self.assertEqual(told, {"connected": True, "channelVariables": []})

    def test_a_late_reply_and_what_comes_before_it(self):
        puppet = self.fork_puppet()
        puppet.write(b'{"id":7,"before":true}\n')
        puppet.child.observe().wait_for_count("from_child", 1)
        process = self.start("call", "p", '{"id":7}', "--match", "/id=7")
        self.assertEqual(puppet.read_line(), b'{"id":7}\n')
        for line in (b'"busy"\n', b'{"id":"7"}\n', b'{"cmd":"NODE_CLUSTER","id":7}\n', b'{"answer":{"id":7}}\n'):
            puppet.write(line)
        # It goes on waiting while others talk to the child.
        puppet.child.send("1")
        self.assertEqual(puppet.read_line(), b"1\n")
        self.assertIsNone(process.poll())
        puppet.write(b'{"id":7,"late":true}\n{"id":7}\n')
        ended = self.finish(process)
        self.assertEqual((ended.code, ended.stdout, ended.stderr), (0, '{"id":7,"late":true}\n', ""))

    def test_any_message_will_do(self):
        puppet = self.fork_puppet()
        process = self.start("call", "p", "1")
        puppet.read_line()
        puppet.write(b"[2]\n")
        self.assertEqual(self.finish(process).stdout, "[2]\n")

    def test_a_message_from_standard_input(self):
        self.agent.fork("echo.py", display_name="w")
        ended = self.run_it("call", "w", "-", "--match", "/a/1=two", text='{\n"a": [1,\n"two"]\n}\n')
        self.assertEqual(ended.stdout, '{ "a": [1, "two"] }\n')

    def test_what_is_refused_is_1(self):
        child = self.agent.fork("echo.py", display_name="w")
        self.assertOneError(self.run_it("call", "w", "{", code=ERROR), "JSON")
        self.assertOneError(self.run_it("call", "w", "-", text="1\n2\n", code=ERROR), "JSON")
        self.assertEqual(child.get().last_child_sequence, 1)

    def test_an_agent_that_ends_is_1(self):
        puppet = self.fork_puppet()
        process = self.start("call", "p", "1", "--match", "/id")
        puppet.read_line()
        self.agent.kill_all()
        self.start_agent()
        ended = self.finish(process)
        self.assertEqual(ended.code, ERROR, ended)
        self.assertOneError(ended, "before repeating it")

    def test_wrong_usage_is_2(self):
        child = self.agent.fork("echo.py", display_name="w")
        for words in (["w"], ["w", "1", "--match", "id"], ["w", "1", "--match", "/~"], ["w", "1", "--timeout", "1"]):
            self.assertOneError(self.run_it("call", *words, code=USAGE), "--help")
        self.assertEqual(child.get().last_child_sequence, 1)

    def test_no_such_child_is_3(self):
        self.assertOneError(self.run_it("call", "nobody", "1", code=NO_SUCH_CHILD), "nobody")

    def test_no_reply_in_time_is_5(self):
        puppet = self.fork_puppet()
        process = self.start("call", "p", "1", "--match", "/id", "--timeout", "500ms")
        self.assertEqual(puppet.read_line(), b"1\n")
        puppet.write(b"2\n")
        ended = self.finish(process)
        self.assertEqual((ended.code, ended.stdout), (TIMED_OUT, ""), ended)
        self.assertOneError(ended, "no reply came within 500 ms", "is in the child's socket")

    def test_a_child_that_does_not_read_in_time_is_5(self):
        puppet = self.fork_puppet()
        for _ in range(10):
            puppet.child.send('"%s"' % ("x" * 60_000), answer_when=api.SEND_OUTCOME_ACCEPTED)
        queued = puppet.child.get().queued_messages
        self.assertGreater(queued, 0)
        ended = self.run_it("call", "p", "1", "--timeout", "500ms", code=TIMED_OUT)
        self.assertOneError(ended, "nothing of it was")
        self.assertEqual(puppet.child.get().queued_messages, queued)

    def test_a_child_that_ends_is_6(self):
        # It says hello, then the length of one message, and exits.
        child = self.agent.fork("greet.sh", display_name="w")
        child.observe().wait_for_count("from_child", 1)
        ended = self.run_it("call", "w", "1", "--match", "/id", code=CHILD_ENDED)
        self.assertOneError(ended, "no reply came", "has ended")
        self.assertEqual(ended.stdout, "")
        child.observe().wait_for_last("closed")
        self.assertOneError(self.run_it("call", "w", "1", code=CHILD_ENDED), "exited")

    def test_a_child_that_is_disconnected_is_6(self):
        puppet = self.fork_puppet()
        process = self.start("call", "p", "1", "--match", "/id")
        puppet.read_line()
        disconnect = self.start("disconnect", "p")
        self.assertEqual(puppet.read_line(), b"")
        puppet.close_channel()
        self.assertEqual(self.finish(disconnect).code, 0)
        ended = self.finish(process)
        self.assertEqual(ended.code, CHILD_ENDED, ended)
        self.assertOneError(ended, "dekactl/", "has disconnected the child")

    def test_last_words_are_a_reply(self):
        child = self.agent.fork("greet.sh", display_name="w")
        child.observe().wait_for_count("from_child", 1)
        self.assertEqual(self.run_it("call", "w", "1", "--match", "/length").stdout, '{"length":29}\n')


if __name__ == "__main__":
    bridge.main()
