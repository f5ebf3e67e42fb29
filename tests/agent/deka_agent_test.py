"""deka-agent as a program: its command line, its configuration, whose socket it serves, and its end by signals."""

import ctypes
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import time

import grpc

import bridge
from bridge import Code
from deka.bridge.v1 import bridge_service_pb2 as api
from deka.bridge.v1 import bridge_service_pb2_grpc

AGENT = os.path.abspath(os.environ["DEKA_AGENT"])
MANUAL = "docs/deka-agent.md"
# Time, process, name, level.
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} \d+ deka-(?:agent|keeper) (debug|info|warning|error) (.+)")


def log_lines(text):
    """(level, text) of each line of a log; all of them are of one form, and text that any terminal may show."""
    lines = []
    for line in text.splitlines():
        match = LOG_LINE.fullmatch(line)
        assert match and line.isprintable(), f"no line of a log: {line!r}"
        lines.append(match.groups())
    return lines


def few_descriptors():
    """For a process that is to be started: 300, and no way to more."""
    # Root may raise them again, unless it has lost CAP_SYS_RESOURCE (PR_CAPBSET_DROP).
    ctypes.CDLL(None).prctl(24, 24, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))


class ProgramTest(bridge.TestCase):
    """What ends before it serves."""

    def run_agent(self, *arguments, **options):
        return subprocess.run(
            [AGENT, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=bridge.DEADLINE_S,
            check=False,
            **options,
        )

    def fails(self, code, *arguments, **options):
        """It ends with this code, and what it says of it, in one line."""
        done = self.run_agent(*arguments, **options)
        self.assertEqual((done.returncode, done.stdout), (code, ""), done.stderr)
        errors = [line for level, line in log_lines(done.stderr) if level == "error"]
        self.assertEqual(len(errors), 1, done.stderr)
        return errors[0]

    def config(self, text):
        path = os.path.join(self.directory, "agent.textproto")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    @property
    def listen(self):
        return "unix:" + os.path.join(self.directory, "agent.sock")

    def test_version_and_help(self):
        done = self.run_agent("--version")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"^deka-agent \d+\.\d+\.\d+\n$")
        for flag in ("--help", "-h"):
            done = self.run_agent(flag)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            for word in ("--listen", "--config", "--version", "SIGTERM", "unix:PATH"):
                self.assertIn(word, done.stdout)

    def test_the_manual_names_every_option(self):
        with open(MANUAL, encoding="utf-8") as file:
            manual = file.read()
        options = set(re.findall(r"--\w+", self.run_agent("--help").stdout))
        self.assertEqual(set(re.findall(r"`(--\w+)", manual)), options)

    def test_a_wrong_command_line(self):
        for arguments in (["--lisen", self.listen], ["serve"], ["--listen"], ["--config"]):
            with self.subTest(arguments=arguments):
                self.assertIn("--help", self.fails(2, *arguments))

    def test_addresses_that_are_refused(self):
        for address in ("0.0.0.0:4711", "localhost:4711", "tcp:127.0.0.1:1", "[::]:80", "/tmp/agent.sock", ""):
            with self.subTest(address=address):
                error = self.fails(2, "--listen", address)
                self.assertIn(f'"{address}"', error)
                self.assertIn("Give unix:PATH", error)
        self.assertIn("abstract", self.fails(2, "--listen", "unix:@agent"))
        # One that is right beside it changes nothing.
        self.fails(2, "--listen", self.listen, "--listen", "0.0.0.0:4711")
        self.assertFalse(os.path.exists(self.listen.removeprefix("unix:")))

    def test_a_path_as_long_as_it_may_be(self):
        longest = self.directory + "/" + "x" * (107 - len(self.directory) - 1)
        self.assertIn("at most 107", self.fails(2, "--listen", f"unix:{longest}x"))
        agent = self.start_agent(arguments=["--listen", f"unix:{longest}"])
        self.assertTrue(os.path.exists(longest))
        self.assertEqual(agent.stop(), 0)
        self.assertFalse(os.path.exists(longest))

    def test_a_directory_that_others_can_open(self):
        os.chmod(self.directory, 0o755)
        error = self.fails(1, "--listen", self.listen)
        self.assertIn(self.directory, error)
        self.assertIn("chmod 700", error)

    def test_a_file_that_cannot_be_read(self):
        missing = os.path.join(self.directory, "none")
        self.assertIn(f"{missing}: Can't read it", self.fails(1, "--config", missing))
        self.assertIn("directory", self.fails(1, "--config", self.directory))

    def test_a_broken_file(self):
        for text, where in (
            ('agent_id: "a"\n\nchildrn { program: "x" }\n', ":3:1: childrn: "),
            ('children {\n  program: "x"\n  args: 5\n}\n', ":3:9: children[0].args[0]: "),
            ('limits {\n  child {\n    queue_bytes_max: "x"\n  }\n}\n', ":3:22: limits.child.queue_bytes_max: "),
            ("limits {\n  children_max: -1\n}\n", ":2:3: limits.children_max: "),
            ('listen: "unix:/a"\nlisten: "0.0.0.0:1"\n', ":2:1: listen[1]: "),
            ('agent_id: "Not An Id"\n', ":1:1: agent_id: It must be 1 to 63 "),
            # Limits that do not fit each other.
            ("limits {\n  child { log_bytes_max: 5 }\n}\n", ":2:11: limits.child.log_bytes_max: It is 5; "),
            ('children {\n  program: "x"\n limits { log_bytes_max: 5 }\n}\n', ":3:11: children[0].limits.log_bytes_max: It is 5; "),
            ('children { program: "/bin/true" }\nchildren {\n  program: "/no/such"\n}\n', ":3:3: children[1].program: "),
            ('children {\n  program: "/bin/true"\n  display_name: "no spaces"\n}\n', ":3:3: children[0].display_name: It is "),
            ('children {\n  program: "x"\n  timeout { seconds: -1 }\n}\n', ":3:3: children[0].timeout: It must be "),
            ('children {\n  display_name: "x"\n}\n', ":1:1: children[0].program: It is missing."),
            # What a terminal would obey is written out.
            ('children { program: "/no/\\033[31msuch" }\n', ":1:12: children[0].program: "),
            ('childr\u009ben { }\n', ":1:"),
        ):
            with self.subTest(text=text):
                path = self.config(text)
                error = self.fails(1, "--listen", self.listen, "--config", path)
                self.assertIn(path + where, error)
                self.assertFalse(os.path.exists(self.listen.removeprefix("unix:")))

    def test_no_room_for_so_many_children(self):
        """Limits that the descriptors do not allow are lowered, and said: loudly to who has asked for them."""
        allowed = "The limit of 300 descriptors allows 8 children (children_max was {})"
        also = " and 11 connections (connections_max was {})"
        for limits, level, said in (
            ("children_max: 1 connections_max: 10", None, None),
            ("children_max: 100 connections_max: 10", "warning", allowed.format(100)),
            ("connections_max: 11", "info", allowed.format(16384)),
            ("connections_max: 12", "warning", allowed.format(16384) + also.format(12)),
            ("", "info", allowed.format(16384) + also.format(1024)),
        ):
            with self.subTest(limits=limits):
                done = self.run_agent(
                    "--listen",
                    self.listen,
                    "--config",
                    self.config(f'limits {{ {limits} }}\nchildren {{ program: "/no/such" }}\n'),
                    preexec_fn=few_descriptors,
                )
                lines = [line for line in log_lines(done.stderr) if "descriptors" in line[1]]
                if said is None:
                    self.assertEqual(lines, [])
                else:
                    self.assertEqual([line[0] for line in lines], [level], done.stderr)
                    self.assertTrue(lines[0][1].startswith(said + ". "), lines)


class ServingTest(bridge.TestCase):
    def test_a_socket_for_its_user_alone(self):
        path = os.path.join(self.directory, "deka", "agent.sock")
        self.start_agent(arguments=["--listen", "unix:" + path])
        self.assertEqual(stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)

    def test_its_sockets(self):
        """Those of the command line, else what the configuration says, else the user's own place."""
        environment = dict(os.environ, XDG_RUNTIME_DIR=self.directory)
        config = os.path.join(self.directory, "agent.textproto")
        configured = os.path.join(self.directory, "configured.sock")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f'listen: "unix:{configured}"\n')
        for arguments, path in (
            ([], os.path.join(self.directory, "deka", "agent.sock")),
            (["--config", config], configured),
            (["--config", config, "--listen", f"unix:{self.directory}/a.sock"], f"{self.directory}/a.sock"),
        ):
            with self.subTest(arguments=arguments), subprocess.Popen(
                [AGENT, *arguments], env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            ) as process:
                for line in process.stderr:
                    if f"serves unix:{path} " in line:
                        break
                else:
                    self.fail("it does not say that it serves " + path)
                self.assertTrue(os.path.exists(path))
                self.assertEqual(os.path.exists(configured), path == configured)
                process.terminate()
                self.assertEqual(process.wait(bridge.DEADLINE_S), 0)
                self.assertFalse(os.path.exists(path))

    def test_several_sockets(self):
        """Each leads to the same agent, and they share its limits."""
        other = f"unix:{self.directory}/other.sock"
        agent = self.start_agent("limits { connections_max: 2 }\n", arguments=["--listen", other])
        child = agent.fork("echo.py")
        request = api.GetChildRequest(name=child.name)
        stub = bridge_service_pb2_grpc.BridgeServiceStub(agent.connect(target=other))
        self.assertEqual(bridge.answer(stub.GetChild, request).child.pid, child.pid)
        for target in (agent.target, other):
            stub = bridge_service_pb2_grpc.BridgeServiceStub(agent.connect(target=target))
            with self.assertRefused(Code.RESOURCE_EXHAUSTED, "CONNECTIONS_LIMIT"):
                bridge.answer(stub.GetChild, request)

    def test_a_second_agent(self):
        agent = self.start_agent()
        child = agent.fork("echo.py", display_name="first")
        second = subprocess.run(
            [AGENT, "--listen", agent.target],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=bridge.DEADLINE_S,
            check=False,
        )
        self.assertEqual(second.returncode, 1)
        self.assertIn(f"Another agent (pid {agent.process.pid}) serves {agent.path}", second.stderr)
        self.assertEqual(child.get().display_name, "first")

    def test_a_stale_socket(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
            dead.bind(os.path.join(self.directory, "agent.sock"))
        agent = self.start_agent(arguments=["--no-keeper"])
        agent.process.kill()
        agent.process.wait()
        self.assertTrue(os.path.exists(agent.path))
        self.assertEqual(list(self.start_agent().list().children), [])

    def test_the_configuration_s_children(self):
        """They are there for the first client, in their order."""
        agent = self.start_agent(
            'agent_id: "build-7"\n'
            'children { display_name: "one" program: "/bin/cat" labels { key: "a" value: "b" } }\n'
            'children { display_name: "two" program: "/bin/sh" args: "-c" args: "echo $DEKA_TEST" '
            '  env { key: "DEKA_TEST" value: "word" } }\n'
        )
        children = list(agent.list().children)
        self.assertEqual([child.display_name for child in children], ["one", "two"])
        self.assertTrue(children[0].name.startswith("agents/build-7/children/"))
        self.assertEqual(dict(children[0].labels), {"a": "b"})
        observer = agent.observe(children=["two"], earliest=True)
        self.assertEqual(observer.wait_for_last("output").text, "word")
        self.assertEqual(observer.of("started")[0].started.sender.principal, "agent")

    def test_standard_descriptors_that_are_closed_become_nothing_else(self):
        for closed in ([0], [1], [2], [0, 1, 2]):
            with self.subTest(closed=closed):
                agent = self.start_agent(preexec_fn=lambda closed=closed: [os.close(number) for number in closed])
                child = agent.fork("echo.py")
                self.assertEqual(child.get().pid, child.pid)
                for number in closed:
                    self.assertEqual(os.readlink(f"/proc/{agent.pid}/fd/{number}"), "/dev/null")
                self.assertEqual(agent.stop(), 0, agent.log())

    def test_limits_of_the_configuration(self):
        agent = self.start_agent("limits { children_max: 1 }\n")
        agent.fork("echo.py")
        with self.assertRefused(Code.RESOURCE_EXHAUSTED, "CHILDREN_LIMIT"):
            agent.fork("echo.py")

    def test_limits_that_were_lowered(self):
        """What the descriptors do not allow is refused as beyond any limit, and they do allow what is left."""
        agent = self.start_agent("limits { children_max: 100 connections_max: 12 }\n", preexec_fn=few_descriptors)
        for _ in range(8):
            agent.fork("/bin/sh", "-c", "read -r line <&3")
        with self.assertRefused(Code.RESOURCE_EXHAUSTED, "CHILDREN_LIMIT") as refused:
            agent.fork("/bin/sh", "-c", "read -r line <&3")
        self.assertEqual(refused.refusal.metadata["limit"], "8")
        limits = bridge.answer(agent.stub.GetAgent, api.GetAgentRequest(name="agents/-")).agent.limits
        self.assertEqual((limits.children_max, limits.connections_max), (8, 11))
        request = api.ListChildrenRequest(parent="agents/-")
        stubs = [bridge_service_pb2_grpc.BridgeServiceStub(agent.connect()) for _ in range(11)]
        for stub in stubs[:-1]:
            self.assertEqual(len(bridge.answer(stub.ListChildren, request).children), 8)
        with self.assertRefused(Code.RESOURCE_EXHAUSTED, "CONNECTIONS_LIMIT") as refused:
            bridge.answer(stubs[-1].ListChildren, request)
        self.assertEqual(refused.refusal.metadata["limit"], "11")

    def test_one_connection_too_many(self):
        """A client hears why each of its calls is refused, and is served when there is room."""
        agent = self.start_agent("limits { connections_max: 1 }\n")
        channel = agent.connect()
        stub = bridge_service_pb2_grpc.BridgeServiceStub(channel)
        request = api.ListChildrenRequest(parent="agents/-")
        for _ in range(3):
            with self.assertRefused(Code.RESOURCE_EXHAUSTED, "CONNECTIONS_LIMIT") as refused:
                bridge.answer(stub.ListChildren, request)
            self.assertEqual(refused.refusal.metadata["limit"], "1")
            self.assertEqual(refused.refusal.retry_ms, 1000)
        with self.assertRefused(Code.RESOURCE_EXHAUSTED, "CONNECTIONS_LIMIT"):
            try:
                next(stub.Observe(api.ObserveRequest(parent="agents/-"), timeout=bridge.DEADLINE_S))
            except grpc.RpcError as error:
                raise bridge.Refusal(error) from None
        agent.channel.close()

        def served():
            try:
                return bridge.answer(stub.ListChildren, request)
            except bridge.Refusal as error:
                self.assertEqual(error.reason, "CONNECTIONS_LIMIT")
                return None

        bridge.wait_until(served, "its place")

    def test_what_a_child_gets(self):
        """A process group of its own, stdin from /dev/null, the descriptor limit that the agent was started with."""
        before = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        agent = self.start_agent()
        with open(f"/proc/{agent.pid}/limits", encoding="ascii") as limits:
            soft, hard = next(line.split()[3:5] for line in limits if line.startswith("Max open files"))
        self.assertEqual(soft, hard)
        child = agent.fork("/bin/sh", "-c", "readlink /proc/self/fd/0; ulimit -Sn; read -r line <&3")
        observer = child.observe()
        self.assertEqual([event.text for event in observer.wait_for_count("output", 2)], ["/dev/null", str(before)])
        self.assertEqual(os.getpgid(child.pid), child.pid)
        self.assertNotEqual(os.getpgid(agent.pid), child.pid)


class StoppingTest(bridge.TestCase):
    def test_a_second_signal_ends_the_children_at_once(self):
        agent = self.start_agent()
        stubborn = agent.fork("stubborn.py")
        observer = stubborn.observe()
        observer.wait_for_last("output")
        begin = time.monotonic()
        agent.process.send_signal(signal.SIGINT)
        observer.wait_for_last("disconnected")
        agent.process.send_signal(signal.SIGINT)
        observer.wait_for_end()
        self.assertEqual(agent.stop(), 0)
        # In order it takes seven seconds: two to SIGTERM, five to SIGKILL.
        self.assertLess(time.monotonic() - begin, 5)
        self.assertEqual(observer.of("exited")[0].exited.status.signal, signal.SIGKILL)
        self.assertEqual(observer.kinds[-1], "closed")

    def test_a_signal_while_its_children_are_started(self):
        """Whenever it comes, nothing is left."""
        config = os.path.join(self.directory, "agent.textproto")
        with open(config, "w", encoding="utf-8") as file:
            file.write('children { program: "/bin/sleep" args: "1000" no_channel: true }\n' * 50)
        path = os.path.join(self.directory, "agent.sock")
        for delay_ms in range(0, 40, 4):
            with subprocess.Popen(
                [AGENT, "--listen", "unix:" + path, "--config", config],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            ) as process:
                bridge.wait_until(lambda: os.path.exists(path), "its socket")
                time_is = time.monotonic() + delay_ms / 1000
                bridge.wait_until(lambda t=time_is: time.monotonic() >= t, "the time")
                children = self.children_of(process.pid)
                process.terminate()
                self.assertEqual(process.wait(bridge.DEADLINE_S), 0, process.stderr.read())
            for pid in children:
                self.assertFalse(bridge.process_runs(pid))
            self.assertFalse(os.path.exists(path))

    @staticmethod
    def children_of(pid):
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as children:
            return [int(child) for child in children.read().split()]

    def test_under_nohup(self):
        """A hangup that was ignored stays ignored."""
        path = os.path.join(self.directory, "agent.sock")
        with subprocess.Popen(
            [AGENT, "--listen", "unix:" + path],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        ) as process:
            self.assertIn("serves", next(line for line in process.stderr if "serves" in line))
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(bridge.DEADLINE_S), 0)
            said = process.stderr.read()
        self.assertIn("SIGTERM: stopping.", said)
        self.assertNotIn("SIGHUP", said)


if __name__ == "__main__":
    bridge.main()
