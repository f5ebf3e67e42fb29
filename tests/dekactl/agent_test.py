"""dekactl and a real agent: each command, each flag of tail, each exit code."""

import json
import os
import pty
import re
import select
import signal
import subprocess

import bridge
import shell
from bridge import api, child_pb2, event_pb2
from google.protobuf import json_format
from shell import DEADLINE_S, ERROR, MISSED, NO_SUCH_CHILD, USAGE

# The columns of a line of tail: time, child, kind, and what it says.
EVENT_LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} (\S+) {2,}(\S+)(?: +(.*))?")
ECHO_STORY = ["started", "to", "from", "to", "from", "disconnected", "exited", "closed"]
# Every command that names a child, as the shell would write it.
COMMANDS_OF_A_CHILD = (
    ["wait", "CHILD"],
    ["send", "CHILD", "1"],
    ["send", "CHILD", "-"],
    ["tail", "CHILD"],
    ["attach", "CHILD"],
    ["disconnect", "CHILD"],
    ["signal", "CHILD", "TERM"],
)


def for_child(command, child):
    return [child if word == "CHILD" else word for word in command]


def kinds(ended):
    """The second column of what tail has shown."""
    return [EVENT_LINE.fullmatch(line)[2] for line in ended.lines]


def place(ended):
    """`after:CURSOR`, as the last line of tail says it."""
    return re.search(r"--from (after:\S+) goes on here$", ended.errors[-1])[1]


class TestCase(shell.Shell, bridge.TestCase):
    def setUp(self):
        super().setUp()
        self.agent = self.start_agent()
        self.open_shell(self.agent.target)

    def fork_echo(self, name="w", **fields):
        return self.agent.fork("echo.py", display_name=name, **fields)

    def finished_echo(self):
        """A child whose whole story is ECHO_STORY."""
        child = self.fork_echo()
        observer = child.observe()
        for count, text in enumerate(('{"n":[1,"x"]}', "1e999"), 1):
            child.send(text)
            observer.wait_for_count("from_child", count)
        child.disconnect()
        observer.wait_for_last("closed")
        return child

    def close_and_wait(self, child):
        observer = child.observe()
        child.disconnect()
        observer.wait_for_last("closed")


class ForkTest(TestCase):
    def fork(self, *arguments, **keywords):
        """What dekactl said, and the child that the agent has."""
        ended = self.run_it("fork", *arguments, **keywords)
        self.assertRegex(ended.stdout, r"\Aagents/[^/\s]+/children/[^/\s]+\n\Z")
        child = bridge.answer(self.agent.stub.GetChild, api.GetChildRequest(name=ended.lines[0])).child
        self.agent.pids.append(child.pid)
        return ended, child

    def output(self, child):
        """The lines that it wrote until it closed."""
        observer = self.agent.observe(children=[child.name], earliest=True)
        observer.wait_for_last("closed")
        return [event.text for event in observer.of("output")]

    def write_program(self, directory):
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(directory, "program")
        with open(path, "w", encoding="utf-8") as file:
            file.write('#!/bin/sh\necho "$0"\npwd\necho "$@"\necho "$COLOR"\n')
        os.chmod(path, 0o755)
        return path

    def test_the_name_and_why_the_dialect(self):
        for words, dialect, reason in (
            ([bridge.PYTHON, bridge.testcase("echo.py")], "deka", "python3"),
            ([bridge.node(), bridge.testcase("worker.js")], "node", "node"),
        ):
            ended, child = self.fork("--", *words)
            self.assertEqual(ended.stderr, f"dialect {dialect}: {child.dialect_reason}\n")
            self.assertIn(reason, child.dialect_reason)
            self.assertEqual(child.state, child_pb2.Child.STATE_CONNECTED)

    def test_every_flag(self):
        path = self.write_program(self.directory)
        ended, child = self.fork(
            "--name", "w", "--label", "a=1", "--label", "b=2=3", "--dialect", "node", "--env", "COLOR=blue",
            "--cwd", "/", "--", path, "x", "--name", "-y",
        )  # fmt: skip
        self.assertEqual((child.display_name, dict(child.labels)), ("w", {"a": "1", "b": "2=3"}))
        self.assertEqual(child.dialect, bridge.NODE)
        self.assertTrue(ended.stderr.startswith("dialect node: "), ended)
        self.assertEqual(self.output(child), [path, "/", "x --name -y", "blue"])

    def test_the_program_is_found_in_the_callers_directory(self):
        directory = os.path.join(self.directory, "here")
        path = self.write_program(directory)
        _, child = self.fork("--", "./program", cwd=directory)
        said, where, *_ = self.output(child)
        self.assertEqual((os.path.normpath(said), where), (path, directory))

    def test_the_program_is_found_in_the_callers_path(self):
        path = self.write_program(os.path.join(self.directory, "bin"))
        self.environment["PATH"] = os.path.dirname(path)
        _, child = self.fork("--cwd", "bin", "--", "program", cwd=self.directory)
        self.assertEqual(self.output(child)[:2], [path, os.path.dirname(path)])

    def test_what_cannot_be_started(self):
        not_executable = os.path.join(self.directory, "text")
        with open(not_executable, "w", encoding="utf-8") as file:
            file.write("text")
        for words, said in (
            (["--", "no-such-program"], "no-such-program"),
            (["--", "/no/such/program"], "/no/such/program"),
            (["--", not_executable], not_executable),
            (["--cwd", "/no/such/folder", "--", "/bin/true"], "/no/such/folder"),
            (["--name", "not a name", "--", "/bin/true"], "not a name"),
        ):
            with self.subTest(words):
                ended = self.run_it("fork", *words, code=ERROR)
                self.assertOneError(ended, said)
                self.assertEqual(ended.stdout, "")
        self.assertEqual(list(self.agent.list().children), [])


class PsTest(TestCase):
    def setUp(self):
        super().setUp()
        self.puppet = bridge.Puppet(self, self.agent, dialect=bridge.NODE)
        for _ in range(10):
            self.puppet.child.send('"%s"' % ("x" * 60_000), answer_when=api.SEND_OUTCOME_ACCEPTED)
        self.done = self.finished_echo()

    def test_table(self):
        waiting = self.puppet.child.get()
        self.assertGreater(waiting.queued_messages, 0)
        done = self.done.get()
        self.assertEqual(
            [line.split() for line in self.run_it("ps").lines],
            [
                "NAME ID PID DIALECT STATE QUEUE LAST".split(),
                ["-", self.puppet.child.id, str(self.puppet.child.pid), "node", "connected",
                 str(waiting.queued_messages), str(waiting.last_sequence)],
                ["w", self.done.id, str(self.done.pid), "deka", "closed", "0", str(done.last_sequence)],
            ],
        )  # fmt: skip

    def test_json(self):
        lines = self.run_it("ps", "--json").lines
        self.assertEqual(
            [json.loads(line) for line in lines],
            [json_format.MessageToDict(child) for child in self.agent.list().children],
        )

    def test_names(self):
        self.assertEqual(self.run_it("ps", "--names").lines, [self.puppet.child.id, "w"])


class SendTest(TestCase):
    def test_one_message(self):
        child = self.fork_echo()
        observer = child.observe()
        for word in ("w", child.id, child.name):
            ended = self.run_it("send", word, '{"to":\n"%s"}' % word)
            self.assertEqual((ended.stdout, ended.stderr), ("", ""))
        observer.wait_for_count("from_child", 3)
        self.assertEqual(
            observer.json_from_child(), ['{"to": "%s"}' % word for word in ("w", child.id, child.name)]
        )
        sender = observer.of("to_child")[0].to_child.sender
        self.assertEqual(sender.principal, f"uid:{os.getuid()}")
        self.assertRegex(sender.client, r"\Adekactl/\d+\Z")

    def test_what_is_refused(self):
        child = self.fork_echo(limits=child_pb2.ChildLimits(message_bytes_max=10))
        for message, said in (("{", "JSON"), ('"%s"' % ("x" * 9), "10")):
            self.assertOneError(self.run_it("send", "w", message, code=ERROR), said)
        self.close_and_wait(child)
        self.assertOneError(self.run_it("send", "w", "1", code=ERROR), "exited")
        self.assertOneError(self.run_it("send", "w", "-", text="1\n", code=ERROR), "line 1: ", "exited")

    def test_lines(self):
        observer = self.fork_echo().observe()
        lines = ['{"n":%d}' % number for number in range(3000)]
        ended = self.run_it("send", "w", "-", text="\n".join(lines))
        self.assertEqual((ended.stdout, ended.stderr), ("", ""))
        observer.wait_for_count("from_child", len(lines))
        self.assertEqual([event.json for event in observer.of("to_child")], lines)
        self.assertEqual(observer.json_from_child(), lines)

    def test_the_first_line_that_is_refused_is_the_last(self):
        child = self.fork_echo()
        observer = child.observe()
        ended = self.run_it("send", "w", "-", text="1\n{\n3\n", code=ERROR)
        self.assertOneError(ended, "line 2: ", "JSON")
        self.close_and_wait(child)
        observer.wait_for_last("closed")
        self.assertEqual([event.json for event in observer.of("to_child")], ["1"])


class TailTest(TestCase):
    def test_from_earliest(self):
        child = self.finished_echo()
        ended = self.run_it("tail", "w", "--from", "earliest")
        self.assertEqual(kinds(ended), ECHO_STORY)
        self.assertEqual({EVENT_LINE.fullmatch(line)[1] for line in ended.lines}, {"w"})
        self.assertEqual(EVENT_LINE.fullmatch(ended.lines[1])[3], '{"n":[1,"x"]}')
        self.assertOneError(ended, "closed", f"/{child.get().last_sequence} goes on here")

    def test_from_latest(self):
        child = self.fork_echo()
        child.send("1")
        child.observe().wait_for_last("from_child")
        process = self.start("tail", "w", stderr=subprocess.STDOUT)
        # It tells nothing when it stands, so the first message that it shows is any of these.
        def shown():
            child.send("2")
            ready, _, _ = select.select([process.stdout], [], [], 0)
            return ready

        bridge.wait_until(shown, "the first line of tail")
        child.disconnect()
        lines = process.communicate(timeout=DEADLINE_S)[0].splitlines()
        self.assertEqual(process.returncode, 0, lines)
        events = [EVENT_LINE.fullmatch(line) for line in lines[:-1]]
        self.assertEqual([event[2] for event in events[-3:]], ["disconnected", "exited", "closed"])
        self.assertEqual({event[3] for event in events[:-3]}, {"2"})

    def test_from_last(self):
        self.finished_echo()
        self.assertEqual(kinds(self.run_it("tail", "w", "--from", "last:4")), ECHO_STORY[-4:])
        self.assertEqual(kinds(self.run_it("tail", "w", "--from", "last:1", "--kind", "message")), ["from"])
        self.assertEqual(kinds(self.run_it("tail", "w", "--from", "last:1000")), ECHO_STORY)

    def test_from_the_cursor_that_it_printed(self):
        self.finished_echo()
        word = "earliest"
        story = []
        while len(story) < len(ECHO_STORY):
            ended = self.run_it("tail", "w", "--from", word, "--max-events", "3")
            self.assertGreater(len(ended.lines), 0)
            story += kinds(ended)
            word = place(ended)
        self.assertEqual(story, ECHO_STORY)
        self.assertEqual(kinds(self.run_it("tail", "w", "--from", word)), [])

    def test_a_cursor_of_another_epoch_is_4(self):
        self.finished_echo()
        ended = self.run_it("tail", "w", "--from", "earliest", "--max-events", "1")
        agent, epoch, _ = place(ended).split("/")
        ended = self.run_it("tail", "w", "--from", f"{agent}/{int(epoch) - 1}/1", code=MISSED)
        self.assertIn("the agent was started anew", ended.lines[0])

    def test_direction(self):
        self.finished_echo()
        for word in ("from", "to"):
            ended = self.run_it("tail", "w", "--from", "earliest", "--direction", word)
            self.assertEqual(kinds(ended), [word] * 2)

    def test_kind(self):
        self.finished_echo()
        ended = self.run_it("tail", "w", "--from", "earliest", "--kind", "message", "--kind", "exited")
        self.assertEqual(kinds(ended), ["to", "from", "to", "from", "exited"])
        ended = self.run_it(
            "tail", "w", "--from", "earliest", "--direction", "to", "--kind", "message", "--kind", "exited"
        )
        self.assertEqual(kinds(ended), ["to", "to", "exited"])

    def test_each_kind(self):
        child = self.agent.fork("/bin/sh", "-c", 'echo out; echo err >&2; echo no >&"$DEKA_IPC_FD"; kill -STOP $$')
        observer = child.observe()
        observer.wait_for_count("output", 2)
        observer.wait_for_last("error")
        child.signal(signal.SIGKILL)
        observer.wait_for_last("closed")
        for kind, shown in (
            ("started", ["started"]),
            ("message", []),
            ("error", ["error"]),
            ("undelivered", []),
            ("signalled", ["signalled"]),
            ("disconnected", ["disconnected"]),
            ("exited", ["exited"]),
            ("closed", ["closed"]),
        ):
            ended = self.run_it("tail", child.id, "--from", "earliest", "--kind", kind)
            self.assertEqual(kinds(ended), shown)
        ended = self.run_it("tail", child.id, "--from", "earliest", "--kind", "output")
        self.assertEqual(
            sorted(EVENT_LINE.fullmatch(line).groups()[1:] for line in ended.lines),
            [("stderr", "err"), ("stdout", "out")],
        )

    def test_json(self):
        child = self.finished_echo()
        observer = child.observe()
        observer.wait_for_last("closed")
        ended = self.run_it("tail", "w", "--from", "earliest", "--json")
        self.assertEqual(len(ended.lines), len(ECHO_STORY))
        for line, event in zip(ended.lines, observer.events):
            told = json.loads(line)
            expected = json_format.MessageToDict(event)
            if event.HasField("json"):
                del expected["json"]
                self.assertTrue(line.endswith('"message":' + event.json + "}"), line)
                expected["message"] = json.loads(event.json)
            self.assertEqual(told, expected)
        self.assertOneError(ended, "goes on here")

    def test_max_events(self):
        self.finished_echo()
        ended = self.run_it("tail", "--from", "earliest", "--max-events", "2")
        self.assertEqual(kinds(ended), ECHO_STORY[:2])
        self.assertOneError(ended, "as many events as were asked for", "goes on here")

    def test_for(self):
        self.fork_echo()
        ended = self.run_it("tail", "w", "--from", "earliest", "--for", "50ms")
        self.assertEqual(kinds(ended), ["started"])
        self.assertOneError(ended, "the time is over", "goes on here")

    def test_children(self):
        first, second, third = [self.fork_echo(name) for name in ("a", "b", "c")]
        process = self.start("tail", "a", second.id, "--from", "earliest")
        for child in (third, second, first):
            self.close_and_wait(child)
        ended = self.finish(process)
        self.assertEqual(ended.code, 0, ended)
        labels = [EVENT_LINE.fullmatch(line)[1] for line in ended.lines]
        self.assertEqual((labels.count("a"), labels.count("b"), len(labels)), (4, 4, 8))
        ended = self.run_it("tail", "--from", "earliest", "--max-events", "12")
        self.assertEqual(kinds(ended).count("closed"), 3)

    def gap(self, *words):
        child = self.agent.fork(
            "flood.py", "5000", display_name="w",
            limits=child_pb2.ChildLimits(message_bytes_max=1000, log_bytes_max=70_000),
        )  # fmt: skip
        child.observe().wait_for_last("closed")
        start = f"after:{child.cursor.agent}/{child.cursor.epoch}/{child.cursor.sequence}"
        return self.run_it("tail", "w", "--from", start, *words, code=MISSED)

    def test_a_gap_is_4(self):
        ended = self.gap()
        self.assertRegex(ended.lines[0], r" w +missed .*the log has turned over; --from after:\S+ goes on behind them$")
        behind = re.search(r"--from (after:\S+)", ended.lines[0])[1]
        again = self.run_it("tail", "w", "--from", behind)
        self.assertEqual(again.lines, ended.lines[1:])
        self.assertEqual(kinds(again)[-1], "closed")

    def test_a_gap_in_json(self):
        ended = self.gap("--json")
        told = json.loads(ended.lines[0])
        self.assertEqual(told["gap"]["reason"], "REASON_LOG_TURNED_OVER")
        first = json.loads(ended.lines[1])
        self.assertEqual(int(first["childSequence"]), int(told["gap"]["toChildSequence"]) + 1)
        again = self.run_it("tail", "w", "--json", "--from", "after:" + told["cursor"])
        self.assertEqual(again.lines, ended.lines[1:])

    def test_an_agent_that_stops_in_order(self):
        """It shows all that the children did to their end, and its last line says where to go on: right behind that."""
        self.fork_echo()
        everyone = self.start("tail", "--from", "earliest")
        named = self.start("tail", "w", "--from", "earliest")
        for process in (everyone, named):
            self.assertIn("started", process.stdout.readline())
        self.assertEqual(self.agent.stop(), 0)
        for process, code, why in ((everyone, ERROR, "the agent is stopping"), (named, 0, "has closed")):
            ended = self.finish(process)
            self.assertEqual(kinds(ended), ["disconnected", "exited", "closed"])
            self.assertEqual(ended.code, code, ended)
            self.assertOneError(ended, why)
            self.assertTrue(place(ended).endswith("/4"), ended)

    def test_another_agent_takes_over(self):
        self.fork_echo()
        process = self.start("tail", "--from", "earliest")
        self.assertIn("started", process.stdout.readline())
        self.agent.kill_all()
        successor = self.start_agent()
        self.assertIn("the agent was started anew", process.stdout.readline())
        successor.fork("echo.py")
        self.assertIn("started", process.stdout.readline())
        process.send_signal(signal.SIGINT)
        ended = self.finish(process)
        self.assertEqual(ended.code, MISSED, ended)
        self.assertOneError(ended, "interrupted", "/1 goes on here")


class AttachTest(TestCase):
    def test_a_conversation(self):
        self.fork_echo()
        process = self.start("attach", "w", stdin=subprocess.PIPE)
        for text in ("1", '{"n":2}'):
            process.stdin.write(text + "\n\n")
            process.stdin.flush()
            said = [EVENT_LINE.fullmatch(process.stdout.readline().rstrip("\n")).groups() for _ in range(2)]
            self.assertEqual(said, [("w", "to", text), ("w", "from", text)])
        ended = self.finish(process)
        self.assertEqual((ended.code, ended.stdout, ended.stderr), (0, "", ""))
        self.assertEqual(self.agent.list().children[0].state, child_pb2.Child.STATE_CONNECTED)

    def test_json(self):
        self.fork_echo()
        process = self.start("attach", "w", "--json", stdin=subprocess.PIPE)
        process.stdin.write("[1]\n")
        process.stdin.flush()
        told = [json.loads(process.stdout.readline()) for _ in range(2)]
        self.assertEqual([event["message"] for event in told], [[1], [1]])
        self.assertEqual([("toChild" in event, "fromChild" in event) for event in told], [(True, False), (False, True)])
        self.assertEqual(self.finish(process).code, 0)

    def test_a_refused_line_fails_alone(self):
        observer = self.fork_echo().observe()
        ended = self.run_it("attach", "w", text="1\n{\n3\n", code=ERROR)
        self.assertOneError(ended, "line 2: ", "JSON")
        observer.wait_for_count("from_child", 2)
        self.assertEqual(observer.json_from_child(), ["1", "3"])

    def test_it_ends_with_the_child(self):
        child = self.fork_echo()
        process = self.start("attach", "w", stdin=subprocess.PIPE)
        process.stdin.write("1\n")
        process.stdin.flush()
        self.assertIn("to", process.stdout.readline())
        self.assertIn("from", process.stdout.readline())
        child.disconnect()
        self.assertEqual(process.wait(DEADLINE_S), 0)
        ended = self.finish(process)
        self.assertEqual(kinds(ended), ["disconnected", "exited", "closed"])
        self.assertEqual(ended.stderr, "")

    def test_an_agent_that_stops_in_order(self):
        self.fork_echo()
        process = self.start("attach", "w", stdin=subprocess.PIPE)
        process.stdin.write("1\n")
        process.stdin.flush()
        self.assertIn("to", process.stdout.readline())
        self.assertIn("from", process.stdout.readline())
        self.assertEqual(self.agent.stop(), 0)
        self.assertEqual(process.wait(DEADLINE_S), 0)
        self.assertEqual(kinds(self.finish(process)), ["disconnected", "exited", "closed"])

    def test_a_child_that_has_exited(self):
        self.close_and_wait(self.fork_echo())
        self.assertOneError(self.run_it("attach", "w", text="1\n", code=ERROR), "line 1: ", "exited")

    def test_any_number_of_lines_may_be_refused(self):
        self.fork_echo()
        ended = self.run_it("attach", "w", text="{\n" * 3000, code=ERROR)
        self.assertEqual(len(ended.errors), 3000)
        self.assertIn("line 3000: ", ended.errors[-1])


class DisconnectTest(TestCase):
    def queue_behind(self, puppet):
        """Messages of which the puppet's socket does not hold all."""
        for number in range(10):
            puppet.child.send('"%d%s"' % (number, "x" * 60_000), answer_when=api.SEND_OUTCOME_ACCEPTED)
        self.assertGreater(puppet.child.get().queued_messages, 0)

    def test_what_is_queued_is_written(self):
        puppet = bridge.Puppet(self, self.agent, dialect=bridge.NODE)
        observer = puppet.child.observe()
        self.queue_behind(puppet)
        process = self.start("disconnect", puppet.child.id)
        with puppet.channel.makefile("rb") as lines:
            self.assertEqual(len(lines.read().splitlines()), 10)
        puppet.close_channel()
        ended = self.finish(process)
        self.assertEqual((ended.code, ended.stdout, ended.stderr), (0, "", ""))
        disconnected = observer.wait_for_last("disconnected").disconnected
        self.assertEqual(disconnected.by, event_pb2.Disconnected.BY_CALLER)
        self.assertRegex(disconnected.sender.client, r"\Adekactl/\d+\Z")
        self.assertEqual(observer.of("undelivered"), [])
        self.assertEqual(puppet.child.get().state, child_pb2.Child.STATE_DISCONNECTED)

    def test_now(self):
        puppet = bridge.Puppet(self, self.agent, dialect=bridge.NODE)
        observer = puppet.child.observe()
        self.queue_behind(puppet)
        process = self.start("disconnect", "--now", puppet.child.id)
        observer.wait_for_count("undelivered", 1)
        puppet.close_channel()
        self.assertEqual(self.finish(process).code, 0)
        observer.wait_for_last("disconnected")
        self.assertEqual(len(observer.of("undelivered")) + len(observer.of("to_child")), 10)


class SignalAndWaitTest(TestCase):
    def test_the_code(self):
        child = self.agent.fork("greet.sh", display_name="w")
        process = self.start("wait", "w")
        child.send("1")
        ended = self.finish(process)
        self.assertEqual((ended.code, ended.stdout, ended.stderr), (3, "", ""))
        for word in (child.id, child.name):
            self.run_it("wait", word, code=3)

    def test_128_and_the_signal(self):
        for word, number in (("TERM", 15), ("SIGKILL", 9), ("usr1", 10), ("2", 2)):
            child = self.agent.fork("/bin/sleep", "1000")
            process = self.start("wait", child.id)
            ended = self.run_it("signal", child.id, word)
            self.assertEqual((ended.stdout, ended.stderr), ("", ""))
            self.assertEqual(self.finish(process).code, 128 + number)

    def test_a_signal_to_one_that_has_exited(self):
        self.close_and_wait(self.fork_echo())
        self.assertOneError(self.run_it("signal", "w", "TERM", code=ERROR), "exited")


class WhichChildTest(TestCase):
    def test_an_ambiguous_name_is_1_with_the_candidates(self):
        children = [self.fork_echo(), self.fork_echo()]
        for command in COMMANDS_OF_A_CHILD:
            with self.subTest(command):
                ended = self.run_it(*for_child(command, "w"), code=ERROR, text="1\n")
                self.assertOneError(ended, *(child.name for child in children))
                self.assertEqual(ended.stdout, "")
        self.run_it("send", children[0].name, "1")

    def test_no_such_child_is_3(self):
        self.fork_echo()
        for command in COMMANDS_OF_A_CHILD:
            for word in ("nobody", "agents/-/children/nobody"):
                with self.subTest(command, child=word):
                    ended = self.run_it(*for_child(command, word), code=NO_SUCH_CHILD, text="1\n")
                    self.assertOneError(ended, "nobody")
                    self.assertEqual(ended.stdout, "")

    def test_a_live_child_before_an_ended_one_of_its_name(self):
        self.close_and_wait(self.fork_echo())
        observer = self.fork_echo().observe()
        self.run_it("send", "w", "1")
        observer.wait_for_count("from_child", 1)


class InfoTest(TestCase):
    def told(self):
        return json.loads(self.run_it("info", "--json").stdout)

    def test_json(self):
        self.close_and_wait(self.fork_echo("ended"))
        self.fork_echo("runs")
        observer = self.agent.observe()
        observer.wait_for(lambda: observer.attached, "an observer")
        self.agent.await_spare()
        about = self.agent.about()
        told = self.told()
        self.assertGreater(told.pop("uptime"), 0)
        limits = told.pop("limits")
        version = subprocess.run([os.environ["DEKA_AGENT"], "--version"], capture_output=True, text=True, check=True)
        self.assertEqual(
            told,
            {
                "agent": observer.attached.agent,
                "version": version.stdout.split()[1],
                "agentPid": about.pid,
                "keeperPid": self.agent.process.pid,
                "sparePid": about.spare_pid,
                "incarnation": 1,
                "degraded": False,
                "epoch": observer.attached.epoch,
                "head": observer.attached.head,
                "observers": len(self.agent.observers),
                "children": 2,
            },
        )
        self.assertEqual(
            limits.pop("child"), {"messageBytesMax": 1 << 20, "queueBytesMax": 4 << 20, "logBytesMax": 4 << 20}
        )
        # What descriptors allow of these is the system's affair.
        self.assertGreater(limits.pop("childrenMax"), 0)
        self.assertGreater(limits.pop("connectionsMax"), 0)
        self.assertEqual(
            limits,
            {
                "logsBytesMax": 256 << 20,
                "queuesBytesMax": 256 << 20,
                "observersMax": 1024,
                "logEventsMax": 16_384,
                "queueMessagesMax": 65_536,
                "endedChildrenMax": 1024,
                "writeStalledMsMax": 10_000,
            },
        )

    def test_text(self):
        self.close_and_wait(self.fork_echo("ended"))
        self.fork_echo("runs")
        spare = self.agent.await_spare()
        ended = self.run_it("info")
        self.assertEqual(ended.stderr, "")
        rows = dict(line.split(None, 1) for line in ended.lines if line)
        self.assertEqual(rows["pid"], str(self.agent.about().pid))
        keeper = str(self.agent.process.pid)
        self.assertEqual((rows["keeper"], rows["spare"], rows["incarnation"]), (keeper, str(spare), "1"))
        self.assertEqual(rows["children"], "2, 1 running")
        self.assertEqual(rows["head"], str(self.told()["head"]))
        self.assertEqual(rows["child.message_bytes_max"], "1 MiB")
        self.assertEqual(rows["write_stalled_ms_max"], "10 s")

    def test_where_to_observe_from(self):
        """agent, epoch and head are a cursor."""
        told = self.told()
        child = self.fork_echo()
        cursor = f"{told['agent']}/{told['epoch']}/{told['head']}"
        ended = self.run_it("tail", "--from", f"after:{cursor}", "--max-events", "1", "--json")
        self.assertEqual(json.loads(ended.lines[0])["child"], child.id)

    def test_limits_of_the_configuration(self):
        self.assertEqual(self.agent.stop(), 0)
        child = "message_bytes_max: 99"
        self.agent = self.start_agent(f"limits {{ connections_max: 9 write_stalled_ms_max: 1500 child {{ {child} }} }}")
        limits = self.told()["limits"]
        self.assertEqual((limits["connectionsMax"], limits["writeStalledMsMax"]), (9, 1500))
        self.assertEqual(limits["child"]["messageBytesMax"], 99)
        self.assertIn("write_stalled_ms_max     1500 ms", self.run_it("info").lines)

    def test_without_a_keeper(self):
        self.assertEqual(self.agent.stop(), 0)
        self.agent = self.start_agent(arguments=["--no-keeper"])
        told = self.told()
        self.assertEqual((told["agentPid"], told["keeperPid"], told["sparePid"]), (self.agent.process.pid, None, None))
        rows = dict(line.split(None, 1) for line in self.run_it("info").lines if line)
        self.assertEqual((rows["keeper"], rows["spare"], rows["incarnation"]), ("none", "none", "1"))

    def test_a_script_kills_the_agent_by_its_pid_and_another_goes_on(self):
        child = self.fork_echo()
        self.agent.await_spare()
        self.run_in_sh("kill -9 $(dekactl info --json | grep -o '\"agentPid\":[0-9]*' | cut -d: -f2)")
        self.assertEqual(self.agent.await_successor(1).incarnation, 2)
        self.run_it("send", child.id, "1")


class UpgradeTest(TestCase):
    def test_the_same_program(self):
        child = self.fork_echo()
        for incarnation, words in ((2, []), (3, ["--binary", os.path.relpath(os.environ["DEKA_AGENT"])])):
            self.agent.await_spare()
            ended = self.run_it("upgrade", *words)
            about = self.agent.about()
            self.assertEqual(about.incarnation, incarnation)
            self.assertEqual(ended.lines, [f"version {about.version}, pid {about.pid}, incarnation {incarnation}"])
            self.assertEqual(ended.stderr, "")
        self.run_it("send", child.id, "1")

    def test_what_is_refused(self):
        for binary, said in (("/bin/true", "ended before it was ready"), ("/no/such/file", "cannot be opened")):
            ended = self.run_it("upgrade", "--binary", binary, code=ERROR)
            self.assertOneError(ended, binary, said)
            self.assertEqual(ended.stdout, "")
        self.assertEqual(self.agent.about().incarnation, 1)

    def test_without_a_keeper(self):
        self.assertEqual(self.agent.stop(), 0)
        self.agent = self.start_agent(arguments=["--no-keeper"])
        self.assertOneError(self.run_it("upgrade", code=ERROR), "without a keeper")


class ReplacedTest(TestCase):
    """The agent is killed under a command that goes on."""

    def setUp(self):
        super().setUp()
        self.child = self.fork_echo()
        self.agent.await_spare()

    def test_tail_goes_on_and_tells_a_terminal(self):
        screen, terminal = pty.openpty()
        self.addCleanup(os.close, screen)
        process = self.start("tail", "w", "--from", "earliest", stderr=terminal)
        os.close(terminal)
        self.assertIn("started", process.stdout.readline())
        self.agent.kill_agent()
        self.child.send("1")
        for word in ("to", "from"):
            self.assertIn(f" {word} ", process.stdout.readline())
        shown = b""
        while b"incarnation 2 goes on" not in shown:
            shown += os.read(screen, 65536)
        self.assertIn(b"\x1b[2mthe agent was replaced", shown)
        self.child.disconnect()
        ended = self.finish(process)
        self.assertEqual((ended.code, kinds(ended)), (0, ["disconnected", "exited", "closed"]))

    def test_tail_tells_nobody_else(self):
        process = self.start("tail", "w", "--from", "earliest")
        self.assertIn("started", process.stdout.readline())
        self.agent.kill_agent()
        self.child.disconnect()
        ended = self.finish(process)
        self.assertEqual((ended.code, kinds(ended)), (0, ["disconnected", "exited", "closed"]))
        self.assertOneError(ended, "has closed")

    def test_attach_goes_on(self):
        process = self.start("attach", "w", stdin=subprocess.PIPE)
        for number in range(1, 4):
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            said = [EVENT_LINE.fullmatch(process.stdout.readline().rstrip("\n")).groups() for _ in range(2)]
            self.assertEqual(said, [("w", "to", str(number)), ("w", "from", str(number))])
            self.agent.kill_agent()
            self.agent.await_spare()
        ended = self.finish(process)
        self.assertEqual((ended.code, ended.stdout, ended.stderr), (0, "", ""))

    def test_lines_are_sent_once_and_in_order(self):
        process = self.start("send", "w", "-", stdin=subprocess.PIPE)
        lines = 4000
        for number in range(lines):
            process.stdin.write(f"{number}\n")
            if number in (lines // 3, 2 * lines // 3):
                process.stdin.flush()
                self.agent.kill_agent()
                self.agent.await_spare()
        ended = self.finish(process)
        self.assertEqual((ended.code, ended.stdout, ended.stderr), (0, "", ""))
        self.child.disconnect()
        observer = self.child.observe()
        observer.wait_for_last("closed")
        expected = [str(number) for number in range(lines)]
        self.assertEqual([event.json for event in observer.of("to_child")], expected)
        self.assertEqual(observer.json_from_child(), expected)



class NoAgentTest(TestCase):
    def test_it_is_1_and_says_what_to_do(self):
        path = os.path.join(self.directory, "none")
        commands = [["ps"], ["info"], ["fork", "--", "/bin/true"], ["tail"], *COMMANDS_OF_A_CHILD]
        for command in commands:
            with self.subTest(command):
                ended = self.run_it("--target", "unix:" + path, *for_child(command, "w"), code=ERROR, text="1\n")
                self.assertOneError(ended, path, f"deka-agent --listen unix:{path}")

    def test_what_is_no_socket(self):
        for path in (self.directory, self.agent.log_path):
            ended = self.run_it("--target", "unix:" + path, "ps", code=ERROR)
            self.assertOneError(ended, f"{path}: this is no socket; name an agent's with DEKA_TARGET or --target")

    def test_a_socket_that_an_agent_has_left(self):
        self.agent.kill_all()
        self.assertOneError(self.run_it("ps", code=ERROR), self.agent.path, "deka-agent --listen")


class UsageTest(TestCase):
    def test_it_is_2_and_nothing_is_done(self):
        child = self.fork_echo()
        for words in (
            ["fork", "--dialect", "bun", "--", "/bin/true"],
            ["send", "w"],
            ["tail", "w", "--from", "first"],
            ["tail", "w", "--from", "after:nothing"],
            ["tail", "w", "--direction", "up"],
            ["tail", "w", "--kind", "news"],
            ["tail", "w", "--max-events", "0"],
            ["tail", "w", "--for", "5"],
            ["signal", "w", "NOSUCH"],
            ["disconnect", "w", "--later"],
        ):
            with self.subTest(words):
                self.assertOneError(self.run_it(*words, code=USAGE), "--help")
        self.assertEqual(child.get().last_child_sequence, 1)
        self.assertEqual(len(self.agent.list().children), 1)


if __name__ == "__main__":
    bridge.main()
