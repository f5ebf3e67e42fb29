"""dekactl's commands, one by one: what they ask the agent for, what they print, how they exit."""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
import unittest

import grpc
import shell

from deka.bridge.v1 import agent_pb2
from deka.bridge.v1 import bridge_service_pb2 as api
from deka.bridge.v1 import child_pb2
from deka.bridge.v1 import event_pb2
from fake_agent import FakeAgent
from shell import CHILD_ENDED, COMPLETE, DEADLINE_S, ERROR, MISSED, NO_SUCH_CHILD, TIMED_OUT, USAGE

TURNED_OVER = event_pb2.Gap.REASON_LOG_TURNED_OVER


class TestCase(shell.Shell, unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="deka-test-", dir="/tmp")
        self.addCleanup(shutil.rmtree, self.directory, True)
        self.agent = FakeAgent(self.directory)
        self.addCleanup(self.agent.close)
        self.open_shell(self.agent.target)

    def append_message(self, child, text, **fields):
        self.agent.append(child, from_child=event_pb2.MessageFromChild(size_bytes=len(text), **fields), json=text)


class UsageTest(TestCase):
    def test_help_names_every_command_and_exit_code(self):
        ended = self.run_it("--help")
        for word in "fork ps wait send call tail attach disconnect signal info upgrade completion --target".split():
            self.assertIn(word, ended.stdout)
        words = " ".join(ended.stdout.split())
        self.assertIn("0 complete, 1 error, 2 usage, 3 no such child, 4 something was missed, of call", words)
        self.assertIn("5 timed out, 6 the child ended", words)

    def test_each_command_has_help(self):
        commands = self.run_it("--help").stdout.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
        self.assertEqual(
            [line.split()[0] for line in commands], "fork ps wait send call tail attach disconnect signal info upgrade completion".split()
        )
        for line in commands:
            command, summary = line.split(None, 1)
            with self.subTest(command):
                page = self.run_it(command, "--help").stdout
                self.assertTrue(page.startswith(summary + "\n\n"), page)
                self.assertIn("Usage: dekactl " + command, page)

    def test_help_has_80_columns(self):
        for command in [[], *map(str.split, "fork ps wait send call tail attach disconnect signal info upgrade completion".split())]:
            for line in self.run_it(*command, "--help").lines:
                self.assertLessEqual(len(line), 80, line)

    def test_version(self):
        ended = self.run_it("--version")
        self.assertRegex(ended.stdout, r"\Adekactl \d+\.\d+\.\d+\n\Z")
        self.assertEqual(ended.stderr, "")

    def test_wrong_usage_is_one_line_and_2(self):
        for arguments in (
            [],
            ["unknown"],
            ["ps", "--unknown"],
            ["ps", "extra"],
            ["ps", "--json", "--names"],
            ["info", "extra"],
            ["info", "--names"],
            ["fork"],
            ["fork", "--dialect", "bun", "--", "x"],
            ["fork", "--label", "x", "--", "x"],
            ["fork", "--env", "=x", "--", "x"],
            ["fork", "--label", "a=b", "--label", "a=b", "--", "x"],
            ["fork", "--env", "a=b", "--env", "a=", "--", "x"],
            ["tail", "--label", "a=b", "--label", "a=c"],
            ["wait"],
            ["send", "w"],
            ["tail", "--from", "first"],
            ["tail", "--from", "last:0"],
            ["tail", "--from", "after:nothing"],
            ["tail", "--direction", "up"],
            ["tail", "--kind", "news"],
            ["tail", "--max-events", "0"],
            ["tail", "--for", "5"],
            ["tail", "--since", "5"],
            ["tail", "--since", "2026-07-05"],
            ["tail", "--since", "5m", "--from", "latest"],
            ["tail", "--label", "x"],
            ["tail", "--where", "id=7"],
            ["tail", "--where", ""],
            ["tail", *["--where", "/id"] * 17],
            ["tail", "--payload", "some"],
            ["tail", "--rate", "0"],
            ["tail", "--when-slow", "wait"],
            ["tail", "--when-slow", "block", "--hold", "9s"],
            ["tail", "--when-slow", "gap", "--hold", "2s"],
            ["tail", "--hold", "2s"],
            ["call", "w"],
            ["call", "w", "1", "--match", "id"],
            ["call", "w", "1", *["--match", "/id"] * 17],
            ["call", "w", "1", "--timeout", "5"],
            ["call", "w", "1", "2"],
            ["attach"],
            ["disconnect"],
            ["signal", "w"],
            ["signal", "w", "NOSUCH"],
            ["completion"],
            ["completion", "fish"],
        ):
            with self.subTest(arguments):
                ended = self.run_it(*arguments, code=USAGE)
                self.assertOneError(ended, "--help")
                self.assertEqual(ended.stdout, "")
        self.assertEqual(self.agent.requests, [])

    def test_a_usage_error_names_what_is_wrong_once(self):
        for arguments, said in (
            (["--env", "=x"], "dekactl: --env: =x is no pair; write KEY=VALUE, as in color=blue; see dekactl fork --help"),
            (["--label", "x"], "dekactl: --label: x is no pair; write KEY=VALUE, as in color=blue; see dekactl fork --help"),
            (["--label", "a=b", "--label", "b=c", "--label", "a=c"],
             "dekactl: --label: a is given twice; give it one value; see dekactl fork --help"),
            (["--env", "A=b", "--env", "A=b"],
             "dekactl: --env: A is given twice; give it one value; see dekactl fork --help"),
            (["--name", "a", "--name", "b"], "dekactl: --name is given twice; give it once; see dekactl fork --help"),
            (["--frob"],
             "dekactl: --frob is no option; write what is the program's behind --; see dekactl fork --help"),
        ):  # fmt: skip
            with self.subTest(arguments):
                self.assertEqual(self.run_it("fork", *arguments, "--", "x", code=USAGE).errors, [said])
        words = "fork, ps, wait, send, call, tail, attach, disconnect, signal, info, upgrade, completion"
        for arguments, said in (
            ([], f"dekactl: which command? Write one of {words}; see dekactl --help"),
            (["help"], f"dekactl: help is no command; write one of {words}; see dekactl --help"),
            (["--frob", "ps"], "dekactl: --frob is no option; see dekactl ps --help"),
            (["ps", "extra"], "dekactl: extra is one argument too many; see dekactl ps --help"),
            (["ps", "--json", "--names"], "dekactl: --json excludes --names; see dekactl ps --help"),
            (["tail", "--for"], "dekactl: --for is given without a value; see dekactl tail --help"),
            (["tail", "--for", "1s", "--for", "2s"], "dekactl: --for is given twice; give it once; see dekactl tail --help"),
            (["wait"], "dekactl: CHILD is required; see dekactl wait --help"),
        ):  # fmt: skip
            with self.subTest(arguments):
                self.assertEqual(self.run_it(*arguments, code=USAGE).errors, [said])

    def test_no_agent_says_how_to_start_one(self):
        self.environment["DEKA_TARGET"] = f"unix:{self.directory}/none"
        self.assertOneError(self.run_it("ps", code=ERROR), f"{self.directory}/none", "deka-agent")

    def test_target_comes_before_the_environment(self):
        self.environment["DEKA_TARGET"] = "unix:/nowhere"
        self.run_it("--target", self.agent.target, "ps")
        self.run_it("ps", "--target", self.agent.target)
        self.run_it("fork", "--target", self.agent.target, "--", "sh", "--target", "x")
        self.assertEqual(list(self.agent.of(api.ForkChildRequest)[-1].spec.args), ["--target", "x"])

    def test_a_full_disk_is_an_error(self):
        self.agent.add("w", "k3")
        self.append_message("k3", "1")
        self.agent.fin = api.Fin.REASON_CLOSED
        for words in (["--help"], ["ps"], ["info"], ["fork", "--", "sh"], ["tail", "w"], ["completion", "bash"]):
            with self.subTest(words), open("/dev/full", "w", encoding="utf-8") as full:
                ended = self.run_it(*words, code=ERROR, stdout=full)
                self.assertIn("dekactl: cannot write to standard output: No space left", ended.errors[-1])

    def test_standard_descriptors_that_are_closed_become_nothing_else(self):
        self.agent.add("w", "k3")
        self.append_message("k3", "1")
        self.agent.fin = api.Fin.REASON_CLOSED
        for command, said in (
            ("ps >&-", "standard output: Bad file descriptor"),
            ("tail w >&-", "standard output: Bad file descriptor"),
            ("send w - <&-", "standard input: Bad file descriptor"),
        ):
            with self.subTest(command):
                self.assertOneError(self.run_in_sh("dekactl " + command, code=ERROR), said)
        self.assertEqual(self.run_in_sh("dekactl ps 2>&-").stderr, "")

    def test_a_reader_that_has_seen_enough_is_no_error(self):
        for number in range(3000):
            self.agent.add(f"child-{number}", f"id{number}")
        self.append_message("id1", "1")
        for command in ("--help", "ps", "ps --json", "ps --names", "tail child-1", "attach child-1", "completion bash"):
            with self.subTest(command):
                process = self.start(*command.split(), stdin=subprocess.PIPE)
                self.assertTrue(process.stdout.readline())
                process.stdout.close()
                self.assertEqual((process.wait(DEADLINE_S), process.stderr.read()), (COMPLETE, ""))


class InterruptTest(TestCase):
    """Ctrl-C and SIGTERM before there is anything to tell: the process ends as by default, at once."""

    COMMANDS = (
        ["ps"],
        ["info"],
        ["fork", "--", "sh"],
        ["wait", "w"],
        ["send", "w", "1"],
        ["send", "w", "-"],
        ["call", "w", "1"],
        ["tail"],
        ["tail", "w"],
        ["attach", "w"],
        ["disconnect", "w"],
        ["signal", "w", "TERM"],
    )

    def interrupt(self, process, number):
        process.send_signal(number)
        ended = self.finish(process)
        self.assertEqual((ended.code, ended.stdout, ended.stderr), (-number, "", ""))

    def test_while_it_connects(self):
        path = os.path.join(self.directory, "mute.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            listener.settimeout(DEADLINE_S)
            self.environment["DEKA_TARGET"] = "unix:" + path
            for command in self.COMMANDS:
                for number in (signal.SIGINT, signal.SIGTERM):
                    with self.subTest(command, signal=number.name):
                        process = self.start(*command, stdin=subprocess.PIPE)
                        with listener.accept()[0]:
                            self.interrupt(process, number)

    def test_while_the_agent_does_not_answer(self):
        self.agent.add("w", "k3")
        self.agent.held = (
            api.ForkChildRequest, api.GetChildRequest, api.ListChildrenRequest, api.ObserveRequest, api.GetAgentRequest,
        )  # fmt: skip
        for command in self.COMMANDS:
            with self.subTest(command):
                self.agent.requests.clear()
                process = self.start(*command, stdin=subprocess.PIPE)
                self.wait_until(lambda: self.agent.requests, "a request")
                self.interrupt(process, signal.SIGINT)

    def test_one_that_was_ignored_stays_so(self):
        self.agent.add("w", "k3")
        self.append_message("k3", "1")
        process = subprocess.Popen(
            ["/bin/sh", "-c", "trap '' INT; exec dekactl tail"],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.addCleanup(self.reap, process)
        self.assertIn("from", process.stdout.readline())
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        ended = self.finish(process)
        self.assertEqual(ended.code, COMPLETE, ended)

    def test_the_second_ends_it_whatever_it_waits_for(self):
        """The first is not carried out while nobody reads what is shown."""
        self.agent.add("w", "k3")
        for _ in range(20):
            self.append_message("k3", '"%s"' % ("x" * 60_000))
        process = self.start("tail")
        self.assertIn("from", process.stdout.readline())
        # More than one event's line: it is within the next one, which the pipe (16 pages) cannot hold.
        self.wait_until(lambda: self.readable_bytes(process.stdout) > 61_000, "the pipe to be full")
        process.send_signal(signal.SIGINT)
        self.wait_until(lambda: not self.catches(process.pid, signal.SIGINT), "the first to be taken")
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(DEADLINE_S), -signal.SIGINT)

    def readable_bytes(self, pipe):
        return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, struct.pack("i", 0)))[0]

    def catches(self, pid, number):
        with open(f"/proc/{pid}/status", encoding="ascii") as status:
            caught = re.search(r"^SigCgt:\s*(\w+)$", status.read(), re.MULTILINE)[1]
        return bool(int(caught, 16) >> (number - 1) & 1)


class ForkTest(TestCase):
    def test_usage_says_where_the_program_stands(self):
        self.assertIn("Usage: dekactl fork [OPTIONS] -- PROGRAM [ARGS...]\n", self.run_it("fork", "--help").stdout)

    def spec(self):
        return self.agent.of(api.ForkChildRequest)[-1].spec

    def test_prints_the_name_and_why_the_dialect(self):
        ended = self.run_it("fork", "--name", "w", "--", "sh", "-c", "exit")
        self.assertEqual(ended.stdout, "agents/fake/children/w\n")
        self.assertEqual(ended.stderr, "dialect node: it is node\n")

    def test_every_flag_arrives(self):
        self.run_it(
            "fork", "--name", "w", "--label", "a=1", "--label", "b=2=3", "--dialect", "deka",
            "--env", "X=", "--env", "Y=[1,2]", "--cwd", "/tmp", "--", "/bin/sh", "x",
        )  # fmt: skip
        spec = self.spec()
        self.assertEqual(spec.display_name, "w")
        self.assertEqual(dict(spec.labels), {"a": "1", "b": "2=3"})
        self.assertEqual(spec.dialect, child_pb2.DIALECT_DEKA)
        self.assertEqual(dict(spec.env), {"X": "", "Y": "[1,2]"})
        self.assertEqual((spec.cwd, spec.program, list(spec.args)), ("/tmp", "/bin/sh", ["x"]))

    def test_a_word_that_is_no_option_is_nobody_elses(self):
        for arguments in (["--nmae", "w", "--", "sh"], ["sh", "-c", "exit"], ["-x", "sh"]):
            with self.subTest(arguments):
                self.assertOneError(self.run_it("fork", *arguments, code=USAGE), "is no option")
        self.run_it("fork", "sh", "x")
        self.assertEqual(list(self.spec().args), ["x"])

    def test_arguments_are_the_programs_own(self):
        arguments = ["ps", "--name", "-x", "--", "[1,2]", "", "--help", "fork"]
        self.run_it("fork", "--", "sh", *arguments)
        self.assertEqual(list(self.spec().args), arguments)

    def test_the_program_is_found_from_here(self):
        path = os.path.join(self.directory, "program")
        with open(path, "w", encoding="utf-8") as file:
            file.write("#!/bin/sh\n")
        os.chmod(path, 0o755)
        self.run_it("fork", "--", "./program", cwd=self.directory)
        self.assertEqual(os.path.normpath(self.spec().program), path)
        self.assertEqual(self.spec().cwd, self.directory)
        self.environment["PATH"] = self.directory
        self.run_it("fork", "--cwd", "sub", "--", "program", cwd=self.directory)
        self.assertEqual(self.spec().program, path)
        self.assertEqual(self.spec().cwd, self.directory + "/sub")

    def test_no_such_program(self):
        self.assertOneError(self.run_it("fork", "--", "no-such-program", code=ERROR), "no-such-program", "PATH")
        self.assertEqual(self.agent.requests, [])


class PsTest(TestCase):
    def setUp(self):
        super().setUp()
        self.agent.add("worker", "k3", pid=42, queued_messages=7, last_sequence=99, dialect=child_pb2.DIALECT_NODE)
        self.agent.add("", "x9", state=child_pb2.Child.STATE_EXITED)

    def test_is_a_table(self):
        lines = [line.split() for line in self.run_it("ps").lines]
        self.assertEqual(lines[0], "NAME ID PID DIALECT STATE QUEUE LAST".split())
        self.assertEqual(lines[1], "worker k3 42 node connected 7 99".split())
        self.assertEqual(lines[2], "- x9 - deka exited 0 0".split())

    def test_json_is_one_object_a_line(self):
        children = [json.loads(line) for line in self.run_it("ps", "--json").lines]
        self.assertEqual([child["name"] for child in children], [child.name for child in self.agent.children])
        self.assertEqual(children[0]["queuedMessages"], "7")

    def test_names_are_what_a_child_can_be_called(self):
        self.agent.add("twice", "t1")
        self.agent.add("twice", "t2")
        self.assertEqual(self.run_it("ps", "--names").lines, ["worker", "x9", "t1", "t2"])


class InfoTest(TestCase):
    def setUp(self):
        super().setUp()
        self.agent.description.MergeFrom(
            agent_pb2.Agent(version="1.2.3", pid=42, incarnation=1, head=9, observers=2, children=3, running_children=1)
        )
        self.agent.description.start_time.GetCurrentTime()
        self.agent.description.limits.children_max = 7
        self.agent.description.limits.child.log_bytes_max = 1 << 40

    def test_asks_the_agent_that_is_there(self):
        self.run_it("info")
        self.assertEqual(self.agent.requests, [api.GetAgentRequest(name="agents/-")])

    def test_is_two_columns(self):
        state, _, limits = self.run_it("info").stdout.partition("\n\n")
        rows = dict(line.split(None, 1) for line in state.splitlines())
        self.assertRegex(rows.pop("uptime"), r"\A(\d+m )?\d+s\Z")
        self.assertEqual(
            rows,
            {
                "agent": "fake", "version": "1.2.3", "pid": "42", "keeper": "none", "spare": "none",
                "incarnation": "1", "children": "3, 1 running", "observers": "2", "epoch": "5", "head": "9",
            },
        )  # fmt: skip
        self.assertIn("child.log_bytes_max      1048576 MiB\n", limits)
        self.assertIn("children_max             7\n", limits)

    def test_json_is_one_object_of_numbers(self):
        (line,) = self.run_it("info", "--json").lines
        told = json.loads(line)
        self.assertIsInstance(told.pop("uptime"), float)
        limits = told.pop("limits")
        self.assertEqual(
            told,
            {
                "agent": "fake", "version": "1.2.3", "agentPid": 42, "keeperPid": None, "sparePid": None,
                "incarnation": 1, "degraded": False, "epoch": 5, "head": 9, "observers": 2, "children": 3,
            },
        )  # fmt: skip
        self.assertEqual((limits["childrenMax"], limits["child"]["logBytesMax"]), (7, 1 << 40))

    def test_a_keeper_and_a_spare(self):
        self.agent.description.keeper_pid = 40
        self.agent.description.spare_pid = 43
        self.agent.description.incarnation = 17
        told = json.loads(self.run_it("info", "--json").stdout)
        self.assertEqual([told[name] for name in ("keeperPid", "sparePid", "incarnation")], [40, 43, 17])
        lines = self.run_it("info").lines
        self.assertIn("keeper       40", lines)
        self.assertIn("spare        43", lines)

    def test_a_keeper_that_has_ended(self):
        self.agent.description.degraded = True
        self.assertIs(json.loads(self.run_it("info", "--json").stdout)["degraded"], True)
        self.assertIn("keeper       ended: degraded", self.run_it("info").lines)

    def test_colours_are_for_terminals(self):
        screen, terminal = pty.openpty()
        self.addCleanup(os.close, screen)
        self.run_it("info", stdout=terminal)
        os.close(terminal)
        self.assertTrue(os.read(screen, 1 << 16).decode().startswith("\x1b[1magent      \x1b[0m  fake"))

    def test_an_agent_that_stops_is_1(self):
        self.agent.refuse(api.GetAgentRequest, grpc.StatusCode.UNAVAILABLE, "AGENT_STOPPING", "the agent is stopping")
        for words in (["info"], ["info", "--json"]):
            ended = self.run_it(*words, code=ERROR)
            self.assertOneError(ended, "the agent is stopping")
            self.assertEqual(ended.stdout, "")


class ChildTest(TestCase):
    def setUp(self):
        super().setUp()
        self.worker = self.agent.add("worker", "k3")

    COMMANDS = (
        ["wait"],
        ["tail"],
        ["attach"],
        ["disconnect"],
        ["send", "{}"],
        ["send", "-"],
        ["call", "{}"],
        ["signal", "TERM"],
    )

    def test_an_unknown_child_is_3(self):
        for command, *rest in self.COMMANDS:
            with self.subTest(command):
                self.assertOneError(self.run_it(command, "nobody", *rest, code=NO_SUCH_CHILD), "nobody")

    def test_an_ambiguous_child_is_refused_with_the_candidates(self):
        self.agent.add("worker", "x9")
        for command, *rest in self.COMMANDS:
            with self.subTest(command):
                ended = self.run_it(command, "worker", *rest, code=ERROR)
                self.assertOneError(ended, "agents/fake/children/k3", "agents/fake/children/x9")

    def test_every_way_to_name_it(self):
        for name in ("worker", "k3", "agents/fake/children/k3"):
            self.run_it("send", name, "1")
            self.assertEqual(self.agent.of(api.SendMessageRequest)[-1].child, self.worker.name)


class WaitTest(TestCase):
    def wait(self, expected, **status):
        self.agent.add("w", exit_status=child_pb2.ExitStatus(**status))
        return self.run_it("wait", "w", code=expected)

    def test_a_code(self):
        self.wait(3, code=3)

    def test_zero(self):
        self.assertEqual(self.wait(0, code=0).stderr, "")

    def test_a_signal(self):
        self.wait(137, signal=9)

    def test_unknown(self):
        self.assertOneError(self.wait(125, unknown_reason="it was reaped"), "it was reaped")

    def test_waits_for_the_event(self):
        self.agent.add("w")
        self.agent.append("w", exited=event_pb2.Exited(status=child_pb2.ExitStatus(code=7)))
        self.run_it("wait", "w", code=7)


class SendTest(TestCase):
    def setUp(self):
        super().setUp()
        self.agent.add("w")

    def test_the_message_is_not_touched(self):
        for message in ("[1,2,3]", '{"a":"b"}', "-5", "1e999", '"\\ud800"', "null"):
            self.run_it("send", "w", message)
            self.assertEqual(self.agent.of(api.SendMessageRequest)[-1].json, message)

    def test_a_refusal_is_1(self):
        self.agent.refuse(
            api.SendMessageRequest, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_JSON", "the message is\nnot JSON"
        )
        self.assertOneError(self.run_it("send", "w", "x", code=ERROR), "the message is\\nnot JSON")

    def sent(self):
        return [request.send.json for request in self.agent.of(api.AttachRequest) if request.HasField("send")]

    def test_lines(self):
        self.run_it("send", "w", "-", text="1\n2\n3")
        self.assertEqual(self.sent(), ["1", "2", "3"])

    def test_no_lines(self):
        for text in ("", "\n", "\r\n \t\n\n"):
            self.run_it("send", "w", "-", text=text)
            self.assertEqual(self.sent(), [])

    def test_blank_lines_are_no_messages(self):
        self.run_it("send", "w", "-", text="\n1\n\n \r\n2\n\n")
        self.assertEqual(self.sent(), ["1", "2"])

    def test_a_line_that_is_not_utf8_is_named_and_the_last(self):
        process = self.start("send", "w", "-", stdin=subprocess.PIPE)
        process.stdin.buffer.write(b"1\n\n\xff\n4\n")
        ended = self.finish(process)
        self.assertEqual(ended.code, ERROR, ended)
        self.assertOneError(ended, "line 3: ", "UTF-8")
        self.assertEqual(self.sent(), ["1"])

    def interrupt(self, process, number):
        process.send_signal(number)
        self.assertEqual(process.wait(DEADLINE_S), 128 + number)
        self.assertEqual(process.stdout.read(), "")
        return process.stderr.read()

    def test_ctrl_c_says_what_is_written(self):
        self.agent.answered_max = 2
        for number in (signal.SIGINT, signal.SIGTERM):
            self.agent.requests.clear()
            process = self.start("send", "w", "-", stdin=subprocess.PIPE)
            process.stdin.write("\n" + "".join(f"{number}\n" for number in range(1000)))
            process.stdin.flush()
            # 512 wait at most: these two go out when the answers to the first two have come.
            self.wait_until(lambda: len(self.sent()) == 514, "514 messages")
            self.assertEqual(
                self.interrupt(process, number),
                "dekactl: interrupted: written up to line 3; lines 4 to 515 may be written or not, "
                "no further ones are\n",
            )

    def test_ctrl_c_while_nothing_comes(self):
        process = self.start("send", "w", "-", stdin=subprocess.PIPE)
        process.stdin.write("1\n")
        process.stdin.flush()
        self.wait_until(self.sent, "a message")
        self.assertRegex(
            self.interrupt(process, signal.SIGINT),
            r"\Adekactl: interrupted: (written up to line 1 and no further|line 1 may be written or not, no further ones are)\n\Z",
        )

    def test_many_lines(self):
        lines = [str(number) for number in range(5000)]
        self.run_it("send", "w", "-", text="\n".join(lines))
        self.assertEqual(self.sent(), lines)

    def test_a_refused_line_is_named_and_the_last(self):
        ended = self.run_it("send", "w", "-", text="1\n\nbad\n3\n", code=ERROR)
        self.assertOneError(ended, "line 3: the message is not JSON")


class CallTest(TestCase):
    def setUp(self):
        super().setUp()
        self.agent.add("w", "k3")
        # The message itself is event 1.
        self.agent.append("k3", to_child=event_pb2.MessageToChild(), json="1")

    def refuse_send(self, code, reason):
        self.agent.refuse(api.SendMessageRequest, code, reason, "the agent says why")

    def test_prints_the_reply(self):
        self.append_message("k3", '{"a":[1,\r\n2]}')
        self.append_message("k3", "3")
        ended = self.run_it("call", "w", '{"ping":1}')
        self.assertEqual((ended.stdout, ended.stderr), ('{"a":[1,  2]}\n', ""))
        self.assertEqual(self.agent.of(api.SendMessageRequest)[-1].json, '{"ping":1}')

    def test_the_agent_looks_for_it(self):
        self.append_message("k3", "2")
        self.run_it(
            "call", "w", "1", "--match", "/id=7", "--match", "/user/name=bob", "--match", "/ok", "--match", "/s=",
            "--match", '/v={"a":[1]}', "--match", '/t="7"',
        )  # fmt: skip
        request = self.agent.of(api.ObserveRequest)[-1]
        self.assertEqual(list(request.filter.children), ["agents/fake/children/k3"])
        self.assertEqual(request.observation.direction, event_pb2.DIRECTION_FROM_CHILD)
        self.assertIn(event_pb2.EVENT_KIND_MESSAGE, request.observation.kinds)
        self.assertEqual(
            [(each.pointer, each.equals if each.HasField("equals") else None) for each in request.observation.where],
            [("/id", "7"), ("/user/name", '"bob"'), ("/ok", None), ("/s", '""'), ("/v", '{"a":[1]}'), ("/t", '"7"')],
        )
        # It looks before the message is sent.
        kinds = [type(request) for request in self.agent.requests]
        self.assertLess(kinds.index(api.ObserveRequest), kinds.index(api.SendMessageRequest))

    def test_a_message_of_many_lines_from_standard_input(self):
        self.append_message("k3", "2")
        self.assertEqual(self.run_it("call", "w", "-", text='{\n  "ping": 1\n}\n').lines, ["2"])
        self.assertEqual(json.loads(self.agent.of(api.SendMessageRequest)[-1].json), {"ping": 1})

    def test_a_refusal_is_1(self):
        self.refuse_send(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_JSON")
        self.assertOneError(self.run_it("call", "w", "x", code=ERROR), "the agent says why")

    def test_what_may_have_been_missed_is_1(self):
        self.agent.gaps.append(event_pb2.Gap(child="k3", to_child_sequence=9, to_sequence=9, reason=TURNED_OVER))
        ended = self.run_it("call", "w", "1", code=ERROR)
        self.assertOneError(ended, "a reply may have been missed")
        self.assertEqual(ended.stdout, "")

    def test_no_reply_in_time_is_5(self):
        ended = self.run_it("call", "w", "1", "--timeout", "100ms", code=TIMED_OUT)
        self.assertOneError(ended, "no reply came within 100 ms", "is in the child's socket")
        self.assertEqual(ended.stdout, "")

    def test_a_message_that_the_child_does_not_take_in_time_is_5(self):
        self.refuse_send(grpc.StatusCode.DEADLINE_EXCEEDED, "NOT_SENT_DEADLINE")
        self.assertOneError(self.run_it("call", "w", "1", code=TIMED_OUT), "the agent says why")

    def test_a_child_that_ends_without_a_reply_is_6(self):
        self.agent.append("k3", disconnected=event_pb2.Disconnected(by=event_pb2.Disconnected.BY_CHILD))
        ended = self.run_it("call", "w", "1", code=CHILD_ENDED)
        self.assertOneError(ended, "no reply came", "has ended")
        self.assertEqual(ended.stdout, "")

    def test_a_child_that_has_ended_is_6(self):
        for reason in ("CHILD_EXITED", "CHANNEL_CLOSED", "CHANNEL_FAILED"):
            self.refuse_send(grpc.StatusCode.FAILED_PRECONDITION, reason)
            self.assertOneError(self.run_it("call", "w", "1", code=CHILD_ENDED), "the agent says why")

    def test_a_full_disk_is_1(self):
        self.append_message("k3", "2")
        with open("/dev/full", "w", encoding="utf-8") as full:
            self.assertOneError(self.run_it("call", "w", "1", code=ERROR, stdout=full), "No space left")


class TailTest(TestCase):
    def setUp(self):
        super().setUp()
        self.agent.add("w", "k3")

    def end(self, reason):
        self.agent.fin = reason

    def request(self):
        return self.agent.of(api.ObserveRequest)[-1]

    def test_every_flag_arrives(self):
        self.end(api.Fin.REASON_DURATION)
        self.run_it(
            "tail", "w", "--from", "last:3", "--direction", "from", "--kind", "message", "--kind", "exited",
            "--max-events", "9", "--for", "1.5s",
        )  # fmt: skip
        observation = self.request().observation
        self.assertEqual(list(self.request().filter.children), ["w"])
        self.assertEqual(observation.start.last, 3)
        self.assertEqual(observation.direction, event_pb2.DIRECTION_FROM_CHILD)
        self.assertEqual(list(observation.kinds), [event_pb2.EVENT_KIND_MESSAGE, event_pb2.EVENT_KIND_EXITED])
        self.assertEqual(observation.events_max, 9)
        self.assertEqual(observation.duration.ToMilliseconds(), 1500)
        self.assertTrue(observation.until_closed)

    def test_every_flag_of_content_and_speed_arrives(self):
        self.end(api.Fin.REASON_DURATION)
        self.run_it(
            "tail", "--since", "2026-07-05T14:30:00.5Z", "--label", "a=1", "--label", "b=", "--where", "/id=7",
            "--where", "/user", "--payload", "4k", "--rate", "9", "--when-slow", "block", "--hold", "1.5s",
        )  # fmt: skip
        observation = self.request().observation
        self.assertEqual(dict(self.request().filter.labels), {"a": "1", "b": ""})
        self.assertFalse(observation.until_closed)
        self.assertEqual(observation.start.since.ToJsonString(), "2026-07-05T14:30:00.500Z")
        self.assertEqual(
            list(observation.where), [api.ContentFilter(pointer="/id", equals="7"), api.ContentFilter(pointer="/user")]
        )
        self.assertEqual(observation.payload_bytes_max, 4096)
        self.assertEqual(observation.events_per_second_max, 9)
        self.assertEqual(observation.when_slow, api.SLOW_POLICY_BLOCK)
        self.assertEqual(observation.hold_max.ToMilliseconds(), 1500)

    def test_what_is_not_asked_for_is_not_set(self):
        self.end(api.Fin.REASON_DURATION)
        self.run_it("tail", "--payload", "full")
        observation = self.request().observation
        self.assertTrue(observation.start.latest)
        for field in ("payload_bytes_max", "hold_max"):
            self.assertFalse(observation.HasField(field), field)
        self.run_it("tail", "--payload", "none")
        self.assertTrue(self.request().observation.HasField("payload_bytes_max"))
        self.assertEqual(self.request().observation.payload_bytes_max, 0)

    def test_since_may_be_so_long_ago(self):
        self.end(api.Fin.REASON_DURATION)
        before = time.time()
        self.run_it("tail", "--since", "1h")
        since = self.request().observation.start.since.ToMilliseconds() / 1000
        self.assertTrue(before - 0.001 <= since + 3600 <= time.time(), since)

    def test_starts(self):
        self.end(api.Fin.REASON_DURATION)
        for word, start in (
            ("latest", api.ObserveStart(latest=True)),
            ("earliest", api.ObserveStart(earliest=True)),
            ("after:fake/5/2", api.ObserveStart(after=event_pb2.Cursor(agent="fake", epoch=5, sequence=2))),
        ):
            self.run_it("tail", "--for", "1h", "--from", word)
            self.assertEqual(self.request().observation.start, start)

    def test_a_direction_means_messages(self):
        self.end(api.Fin.REASON_DURATION)
        self.run_it("tail", "--for", "1h", "--direction", "to")
        self.assertEqual(list(self.request().observation.kinds), [event_pb2.EVENT_KIND_MESSAGE])

    def test_content_means_messages(self):
        self.end(api.Fin.REASON_DURATION)
        self.run_it("tail", "--where", "/id")
        self.assertEqual(list(self.request().observation.kinds), [event_pb2.EVENT_KIND_MESSAGE])
        self.run_it("tail", "--where", "/id", "--kind", "exited")
        self.assertEqual(list(self.request().observation.kinds), [event_pb2.EVENT_KIND_EXITED])

    def test_shows_events_and_where_to_go_on(self):
        self.append_message("k3", '{"n":1}')
        self.end(api.Fin.REASON_CLOSED)
        ended = self.run_it("tail", "w")
        self.assertEqual(ended.stdout, '00:00:00.000 w  from          {"n":1}\n')
        self.assertOneError(ended, "closed", "--from after:fake/5/1 goes on here")

    def test_json_has_the_message_as_a_value(self):
        self.append_message("k3", '{"n":[1,"x"]}')
        self.append_message("k3", "1e999")
        self.agent.append("k3", output=event_pb2.Output(stream=1), text="hello")
        self.end(api.Fin.REASON_CLOSED)
        lines = self.run_it("tail", "w", "--json").lines
        self.assertEqual(json.loads(lines[0])["message"], {"n": [1, "x"]})
        self.assertTrue(lines[1].endswith('"message":1e999}'))
        self.assertEqual(json.loads(lines[2])["text"], "hello")
        self.assertEqual(len(lines), 3)

    def test_a_cut_message(self):
        self.agent.append("k3", from_child=event_pb2.MessageFromChild(size_bytes=100), json='{"n":"é')
        self.end(api.Fin.REASON_CLOSED)
        self.assertEqual(
            self.run_it("tail", "w", "--payload", "8").lines,
            ['00:00:00.000 w  from          {"n":"é... (92 bytes more)'],
        )
        told = json.loads(self.run_it("tail", "w", "--json", "--payload", "8").stdout)
        self.assertEqual(told["payloadCut"], {"text": '{"n":"é', "sizeBytes": "100"})
        self.assertNotIn("message", told)
        self.assertNotIn("json", told)

    def test_each_reason_of_a_gap(self):
        self.end(api.Fin.REASON_CLOSED)
        for reason, words in (
            (event_pb2.Gap.REASON_RATE, "more in a second than were asked for"),
            (event_pb2.Gap.REASON_BLOCK_TIMEOUT, "the child was held back as long as it may be"),
        ):
            self.agent.gaps = [
                event_pb2.Gap(child="k3", from_child_sequence=2, to_child_sequence=2, to_sequence=8, reason=reason)
            ]
            ended = self.run_it("tail", "w", code=MISSED)
            self.assertIn(f"missed        1 event, 2 to 2: {words}; --from after:fake/5/8", ended.stdout)

    def test_too_slow_is_4_with_a_cursor(self):
        self.append_message("k3", "1")
        self.agent.fail(grpc.StatusCode.ABORTED, "TOO_SLOW", "the log has turned over")
        ended = self.run_it("tail", "w", "--when-slow", "disconnect", code=MISSED)
        self.assertOneError(ended, "too slow: the log has turned over", "--from after:fake/5/1 goes on here")
        self.assertEqual(len(self.agent.of(api.ObserveRequest)), 1)

    def test_a_gap_is_shown_and_4(self):
        gap = event_pb2.Gap(
            child="k3", from_child_sequence=1, to_child_sequence=4, to_sequence=8, reason=TURNED_OVER
        )
        self.agent.gaps.append(gap)
        self.end(api.Fin.REASON_CLOSED)
        ended = self.run_it("tail", "w", code=MISSED)
        self.assertRegex(ended.stdout, r"\A\d\d:\d\d:\d\d\.\d{3} w  missed        4 events, 1 to 4: ")
        self.assertIn("--from after:fake/5/8", ended.stdout)
        told = json.loads(self.run_it("tail", "w", "--json", code=MISSED).lines[0])
        self.assertEqual(told["cursor"], "fake/5/8")
        self.assertEqual(told["gap"]["toChildSequence"], "4")

    def test_an_agent_that_stops_is_1_with_a_cursor(self):
        self.end(api.Fin.REASON_AGENT_STOPPING)
        self.environment["DEKA_TARGET"] = self.agent.target
        ended = self.run_it("tail", code=ERROR)
        self.assertIn("--from after:fake/5/0", ended.stderr)

    def interrupt(self, number):
        self.append_message("k3", "1")
        process = self.start("tail")
        self.assertIn("from", process.stdout.readline())
        process.send_signal(number)
        ended = self.finish(process)
        self.assertEqual(ended.code, COMPLETE, ended)
        self.assertOneError(ended, "interrupted", "--from after:fake/5/1")

    def test_ctrl_c_ends_it_with_a_cursor(self):
        self.interrupt(signal.SIGINT)

    def test_sigterm_ends_it_with_a_cursor(self):
        self.interrupt(signal.SIGTERM)

    def on_terminal(self):
        self.append_message("k3", "1")
        self.end(api.Fin.REASON_CLOSED)
        screen, terminal = pty.openpty()
        self.run_it("tail", "w", stdout=terminal)
        os.close(terminal)
        shown = os.read(screen, 65536).decode()
        os.close(screen)
        return shown

    def test_tells_a_terminal_how_to_end_it(self):
        self.end(api.Fin.REASON_CLOSED)
        screen, terminal = pty.openpty()
        self.run_it("tail", "w", stderr=terminal)
        os.close(terminal)
        shown = b""
        while b"goes on here" not in shown:
            shown += os.read(screen, 65536)
        os.close(screen)
        self.assertIn(b"Ctrl-C ends it", shown)

    def test_has_colors_on_a_terminal(self):
        self.assertIn("\x1b[32mfrom", self.on_terminal())

    def test_respects_no_color(self):
        self.environment["NO_COLOR"] = "1"
        self.assertNotIn("\x1b", self.on_terminal())


class AttachTest(TestCase):
    def setUp(self):
        super().setUp()
        self.agent.add("w", "k3")

    def sent(self):
        return [request.send.json for request in self.agent.of(api.AttachRequest) if request.HasField("send")]

    def test_shows_events_and_sends_lines(self):
        self.append_message("k3", "41")
        ended = self.run_it("attach", "w", text="1\n\n2")
        self.assertEqual(ended.stdout, "00:00:00.000 w  from          41\n")
        self.assertEqual(self.sent(), ["1", "2"])

    def test_json(self):
        self.append_message("k3", "41")
        self.assertEqual(json.loads(self.run_it("attach", "w", "--json", text="1").stdout)["message"], 41)

    def test_a_refused_line_fails_alone(self):
        ended = self.run_it("attach", "w", text="1\n\nbad\n3\n", code=ERROR)
        self.assertOneError(ended, "line 3: the message is not JSON")
        self.assertEqual(self.sent(), ["1", "bad", "3"])

    def test_many_lines(self):
        lines = [str(number) for number in range(5000)]
        self.run_it("attach", "w", text="\n".join(lines))
        self.assertEqual(self.sent(), lines)

    def test_ends_with_the_child(self):
        self.agent.append("k3", closed=event_pb2.Closed())
        process = self.start("attach", "w", stdin=subprocess.PIPE)
        self.assertEqual(process.wait(DEADLINE_S), COMPLETE)
        self.assertIn("closed", self.finish(process).stdout)

    def test_a_gap_is_4(self):
        self.agent.gaps.append(event_pb2.Gap(child="k3", to_child_sequence=2, to_sequence=2, reason=TURNED_OVER))
        self.run_it("attach", "w", text="1", code=MISSED)

    def test_ctrl_c_ends_it(self):
        self.append_message("k3", "1")
        process = self.start("attach", "w", stdin=subprocess.PIPE)
        self.assertIn("from", process.stdout.readline())
        process.send_signal(signal.SIGINT)
        ended = self.finish(process)
        self.assertEqual((ended.code, ended.stderr), (COMPLETE, ""))

    def test_ctrl_c_says_which_lines_are_not_answered(self):
        self.agent.answered_max = 0
        process = self.start("attach", "w", stdin=subprocess.PIPE)
        process.stdin.write("\n1\n")
        process.stdin.flush()
        self.wait_until(self.sent, "a message")
        process.send_signal(signal.SIGINT)
        ended = self.finish(process)
        self.assertEqual(ended.code, 128 + signal.SIGINT)
        self.assertOneError(ended, "interrupted: line 2 may be written or not, no further ones are")

    def test_a_line_that_is_not_utf8_fails_alone(self):
        process = self.start("attach", "w", stdin=subprocess.PIPE)
        process.stdin.buffer.write(b"1\n\xff\n3\n")
        ended = self.finish(process)
        self.assertEqual(ended.code, ERROR, ended)
        self.assertOneError(ended, "line 2: ", "UTF-8")
        self.assertEqual(self.sent(), ["1", "3"])


class DisconnectTest(TestCase):
    def test_flushes(self):
        self.agent.add("w")
        self.run_it("disconnect", "w")
        self.assertEqual(self.agent.of(api.DisconnectRequest)[-1].mode, api.DISCONNECT_MODE_FLUSH)

    def test_now(self):
        self.agent.add("w")
        self.run_it("disconnect", "w", "--now")
        self.assertEqual(self.agent.of(api.DisconnectRequest)[-1].mode, api.DISCONNECT_MODE_NOW)


class SignalTest(TestCase):
    def test_every_way_to_write_it(self):
        self.agent.add("w")
        for word in ("USR1", "SIGUSR1", "usr1", str(int(signal.SIGUSR1))):
            self.run_it("signal", "w", word)
            self.assertEqual(self.agent.of(api.SignalChildRequest)[-1].signal, signal.SIGUSR1)


class CompletionTest(TestCase):
    def setUp(self):
        super().setUp()
        self.agent.add("worker", "k3")
        self.agent.add("", "x9")

    def complete(self, line):
        """What bash offers for this line."""
        script = f"""
            compopt() {{ :; }}
            source <(dekactl completion bash)
            COMP_LINE=$1 COMP_POINT=${{#1}}
            _dekactl
            [[ ${{#COMPREPLY[@]}} -eq 0 ]] || printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        command = ["bash", "--norc", "--noprofile", "-c", script, "bash", line]
        done = subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S
        )
        self.assertEqual(done.stderr, "")
        return done.stdout.splitlines()

    def test_commands(self):
        self.assertEqual(
            self.complete("dekactl "),
            "fork ps wait send call tail attach disconnect signal info upgrade completion".split(),
        )
        self.assertEqual(self.complete("dekactl se"), ["send"])
        self.assertEqual(self.complete("dekactl --t"), ["--target"])

    def test_children_are_asked_from_the_agent(self):
        for command in ("wait", "send", "call", "tail", "attach", "disconnect", "signal"):
            self.assertEqual(self.complete(f"dekactl {command} "), ["worker", "x9"], command)
        self.assertEqual(self.complete("dekactl tail worker --json x"), ["x9"])
        self.assertEqual(self.complete("dekactl wait worker "), [])

    def test_children_of_the_target_on_the_line(self):
        self.environment["DEKA_TARGET"] = "unix:/nowhere"
        self.assertEqual(self.complete(f"dekactl --target {self.agent.target} wait w"), ["worker"])
        self.assertEqual(self.complete(f"dekactl wait --target {self.agent.target} w"), ["worker"])
        self.assertEqual(self.complete("dekactl wait w"), [])

    def test_options_and_their_words(self):
        self.assertEqual(self.complete("dekactl tail --d"), ["--direction"])
        self.assertEqual(self.complete("dekactl info --j"), ["--json"])
        self.assertEqual(self.complete("dekactl tail --direction "), ["from", "to"])
        self.assertEqual(self.complete("dekactl tail --kind me"), ["message"])
        self.assertEqual(self.complete("dekactl tail --from la"), ["latest", "last:"])
        self.assertEqual(self.complete("dekactl tail --payload "), ["full", "none"])
        self.assertEqual(self.complete("dekactl tail --when-slow b"), ["block"])
        self.assertEqual(self.complete("dekactl tail --where "), [])
        self.assertEqual(self.complete("dekactl call worker 1 --match /id=7 --ti"), ["--timeout"])
        self.assertEqual(self.complete("dekactl fork --dialect "), ["deka", "node"])
        self.assertEqual(self.complete("dekactl signal worker TER"), ["TERM"])
        self.assertEqual(self.complete("dekactl completion "), ["bash", "zsh"])
        self.assertEqual(self.complete("dekactl disconnect worker --n"), ["--now"])

    def test_programs_and_directories(self):
        self.assertIn("bash", self.complete("dekactl fork --name w -- bas"))
        self.assertIn("/usr", self.complete("dekactl fork --cwd /us"))

    def test_zsh_reads_it(self):
        script = self.run_it("completion", "zsh").stdout
        self.assertTrue(script.startswith("#compdef dekactl\n"))
        test = (
            "autoload -U compinit; compinit -u -D; source <(dekactl completion zsh); "
            "_dekactl_candidates dekactl wait; _dekactl_candidates dekactl tail --direction"
        )
        done = subprocess.run(
            ["zsh", "-f", "-c", test],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE_S,
        )  # fmt: skip
        self.assertIn("worker\nx9\n", done.stdout)
        self.assertTrue(done.stdout.endswith("from\nto\n"), done.stdout)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *sys.argv[1:]])
