"""An agent to test, children to talk to, and observers to watch with.

    class EchoTest(bridge.TestCase):
        def test_echo(self):
            agent = self.start_agent()
            child = agent.fork("echo.py")
            observer = agent.observe(children=[child.name], after=child.cursor)
            child.send('{"n":1}')
            observer.wait_for(lambda: observer.kinds[-1] == "from_child", "the echo")

    if __name__ == "__main__":
        bridge.main()

It talks to the agent as any Python program does: by the modules that protoc generates and Debian's grpc. Nothing sleeps: what
has to happen is waited for, DEADLINE_S at most. When a test ends its agent is stopped in order, which must give exit code
0, and no process that it forked may be left.
"""

import collections
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import grpc

from deka.bridge.v1 import bridge_service_pb2 as api
from deka.bridge.v1 import bridge_service_pb2_grpc
from deka.bridge.v1 import child_pb2
from deka.bridge.v1 import event_pb2
from google.rpc import error_details_pb2
from google.rpc import status_pb2

DEADLINE_S = 30
PYTHON = "/usr/bin/python3"
CLIENT = "harness"
# The most that this client receives in one message.
RECEIVE_BYTES_MAX = 80 << 20

DEKA = child_pb2.DIALECT_DEKA
NODE = child_pb2.DIALECT_NODE
FLUSH = api.DISCONNECT_MODE_FLUSH
NOW = api.DISCONNECT_MODE_NOW
Code = grpc.StatusCode


def testcase(name):
    """The path of one of the tiny programs in tests/testcases."""
    path = os.path.abspath(os.path.join("tests/testcases", name))
    if not os.path.exists(path):
        raise FileNotFoundError(path)
    return path


def wait_until(condition, what, deadline_s=DEADLINE_S):
    """Waits until `condition()` is true, and gives its value: for what nobody tells, such as another process' state."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        select.select([], [], [], 0.005)
    return value


def process_runs(pid):
    """False if there is no such process, or only its exit status is left."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Refusal(Exception):
    """An error of the agent, as a client reads it: the canonical code, and what ErrorInfo says."""

    def __init__(self, error):
        self.code = error.code()
        self.message = error.details()
        self.infos = []
        self.retry_ms = None
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                for detail in status_pb2.Status.FromString(value).details:
                    info = error_details_pb2.ErrorInfo()
                    if detail.Unpack(info):
                        self.infos.append(info)
                    retry = error_details_pb2.RetryInfo()
                    if detail.Unpack(retry):
                        self.retry_ms = retry.retry_delay.ToMilliseconds()
        super().__init__(f"{self.code.name} {self.reason}: {self.message}")

    @property
    def reason(self):
        return self.infos[0].reason if self.infos else ""

    @property
    def metadata(self):
        return dict(self.infos[0].metadata) if self.infos else {}


def answer(call, *arguments, **keywords):
    """Calls a method of the stub; what goes wrong is raised as a Refusal."""
    keywords.setdefault("timeout", DEADLINE_S)
    try:
        return call(*arguments, **keywords)
    except grpc.RpcError as error:
        raise Refusal(error) from None


def kind_of(event):
    """'started', 'from_child', 'to_child', 'output'..."""
    return event.WhichOneof("kind")


class Observer:
    """A stream of Observe, read by a thread as fast as it comes unless it is paused."""

    def __init__(self, call, paused=False):
        self.call = call
        self.changed = threading.Condition()
        self.attached = None
        self.children = []
        self.snapshot_head = None
        # Events and gaps, in the order in which they came.
        self.shown = []
        self.events = []
        self.gaps = []
        self.by_kind = collections.defaultdict(list)
        self.heartbeats = []
        self.fin = None
        self.error = None
        self.ended = False
        self.may_read = threading.Event()
        if not paused:
            self.may_read.set()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        error = None
        try:
            self.may_read.wait()
            for response in self.call:
                with self.changed:
                    self._take(response)
                    self.changed.notify_all()
                self.may_read.wait()
        except grpc.RpcError as failure:
            error = Refusal(failure)
        with self.changed:
            self.error = error
            self.ended = True
            self.changed.notify_all()

    def _take(self, response):
        piece = response.WhichOneof("response")
        if piece == "batch":
            for event in response.batch.events:
                self.shown.append(event)
                self.events.append(event)
                self.by_kind[kind_of(event)].append(event)
        elif piece == "gap":
            self.shown.append(response.gap)
            self.gaps.append(response.gap)
        elif piece == "attached":
            self.attached = response.attached
        elif piece == "snapshot":
            self.children.extend(response.snapshot.children)
        elif piece == "snapshot_complete":
            self.snapshot_head = response.snapshot_complete.head
        elif piece == "heartbeat":
            self.heartbeats.append(response.heartbeat)
        elif piece == "fin":
            self.fin = response.fin
        else:
            raise AssertionError(f"an unknown response: {response}")

    @property
    def kinds(self):
        return [kind_of(event) for event in self.events]

    def of(self, kind):
        """The events of one kind."""
        return self.by_kind[kind]

    def json_from_child(self):
        return [event.json for event in self.of("from_child")]

    def wait_for(self, condition, what, deadline_s=DEADLINE_S):
        with self.changed:
            held = self.changed.wait_for(lambda: condition() or self.ended, deadline_s)
            if not held or not condition():
                last = "\n".join(str(each) for each in self.shown[-5:])
                raise AssertionError(
                    f"not within {deadline_s} s: {what}; ended: {self.ended}, error: {self.error}, fin: {self.fin}, "
                    f"{len(self.shown)} shown, the last of them:\n{last}"
                )
        return self

    def wait_for_count(self, kind, count):
        self.wait_for(lambda: len(self.of(kind)) >= count, f"{count} events {kind}")
        return self.of(kind)

    def wait_for_last(self, kind):
        """Waits until an event of this kind is there, and gives it."""
        return self.wait_for_count(kind, 1)[-1]

    def wait_for_end(self, deadline_s=DEADLINE_S):
        self.wait_for(lambda: self.ended, "the end of the stream", deadline_s)
        return self

    def stop(self):
        self.call.cancel()
        self.may_read.set()
        self.thread.join(DEADLINE_S)
        if self.thread.is_alive():
            raise AssertionError("the observer's thread does not end")


class Child:
    """A child that the agent has forked."""

    def __init__(self, agent, response):
        self.agent = agent
        self.name = response.child.name
        self.id = self.name.rpartition("/")[2]
        self.pid = response.child.pid
        self.description = response.child
        self.cursor = response.cursor

    def send(self, json_text, **fields):
        return self.agent.send(self.name, json_text, **fields)

    def disconnect(self, mode=FLUSH):
        return answer(
            self.agent.stub.Disconnect, api.DisconnectRequest(child=self.name, mode=mode, client=CLIENT)
        )

    def signal(self, number):
        return answer(
            self.agent.stub.SignalChild, api.SignalChildRequest(child=self.name, signal=number, client=CLIENT)
        )

    def get(self):
        return answer(self.agent.stub.GetChild, api.GetChildRequest(name=self.name)).child

    def observe(self, **fields):
        """All of its events, from the first on, unless fields of Agent.observe say otherwise."""
        fields.setdefault("after", self.cursor)
        return self.agent.observe(children=[self.name], **fields)


class Agent:
    """A deka-agent of its own on a socket of its own."""

    def __init__(self, directory, config=None, arguments=(), preexec_fn=None):
        self.directory = directory
        self.path = os.path.join(directory, "agent.sock")
        self.target = "unix:" + self.path
        self.observers = []
        self.pids = []
        self.channels = []
        self.log_path = os.path.join(directory, "agent.log")
        command = [os.path.abspath(os.environ["DEKA_AGENT"]), "--listen", self.target, *arguments]
        if config is not None:
            config_path = os.path.join(directory, "agent.textproto")
            with open(config_path, "w", encoding="utf-8") as file:
                file.write(config)
            command += ["--config", config_path]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=preexec_fn
            )
        self.channel = self.connect()
        self.stub = bridge_service_pb2_grpc.BridgeServiceStub(self.channel)
        self._wait_until_served()

    def connect(self, options=(), target=None):
        """A connection of its own to the agent."""
        channel = grpc.insecure_channel(
            target or self.target,
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                # An agent that has just been started listens soon.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
                ("grpc.max_send_message_length", RECEIVE_BYTES_MAX),
                *options,
            ],
        )
        self.channels.append(channel)
        return channel

    def _wait_until_served(self):
        ready = threading.Event()
        self.channel.subscribe(
            lambda state: ready.set() if state is grpc.ChannelConnectivity.READY else None, try_to_connect=True
        )
        end = time.monotonic() + DEADLINE_S
        while not ready.wait(0.05):
            if self.process.poll() is not None:
                raise AssertionError(f"deka-agent ended with {self.process.returncode}: {self.log()}")
            if time.monotonic() > end:
                raise AssertionError(f"deka-agent does not serve {self.target}: {self.log()}")

    @property
    def pid(self):
        """Of the process that answers; `process` is its keeper if it has one."""
        return self.about().pid

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def fork(self, program, *args, **fields):
        """Forks a testcase by its file's name, or any program by its path."""
        if program.endswith(".py"):
            program, args = PYTHON, (testcase(program), *args)
        elif program.endswith(".js"):
            program, args = node(), (testcase(program), *args)
        elif program.endswith(".sh"):
            program, args = "/bin/sh", (testcase(program), *args)
        request_id = fields.pop("request_id", "")
        spec = child_pb2.ChildSpec(program=program, args=args, **fields)
        return self.fork_spec(spec, request_id)

    def fork_spec(self, spec, request_id=""):
        request = api.ForkChildRequest(parent="agents/-", spec=spec, request_id=request_id, client=CLIENT)
        response = answer(self.stub.ForkChild, request)
        self.pids.append(response.child.pid)
        return Child(self, response)

    def send(self, name, json_text, **fields):
        fields.setdefault("client", CLIENT)
        return answer(self.stub.SendMessage, api.SendMessageRequest(child=name, json=json_text, **fields))

    def list(self, **fields):
        return answer(self.stub.ListChildren, api.ListChildrenRequest(parent="agents/-", **fields))

    def observe(self, children=(), labels=None, stub=None, paused=False, timeout=None, **fields):
        """Observes from LATEST, or as one of `earliest`, `last` and `after` says."""
        start = api.ObserveStart()
        if "after" in fields:
            start.after.CopyFrom(fields.pop("after"))
        elif "last" in fields:
            start.last = fields.pop("last")
        elif fields.pop("earliest", False):
            start.earliest = True
        else:
            start.latest = True
        request = api.ObserveRequest(
            parent="agents/-",
            filter=child_pb2.ChildFilter(children=children, labels=labels or {}),
            observation=api.Observation(start=start, **fields),
            client=CLIENT,
        )
        observer = Observer((stub or self.stub).Observe(request, timeout=timeout), paused)
        self.observers.append(observer)
        return observer

    def attach(self, requests):
        """The call of Attach for an iterable of AttachRequest."""
        return self.stub.Attach(requests)

    def about(self):
        """What it tells of itself."""
        return answer(self.stub.GetAgent, api.GetAgentRequest(name="agents/-"), wait_for_ready=True).agent

    def await_spare(self):
        """Waits until somebody could take over."""
        return wait_until(lambda: self.about().spare_pid, "a spare that is ready")

    def await_successor(self, incarnation):
        """Waits until an agent that came after this one answers, and gives what it tells of itself."""

        def there():
            # A call that meets the end of the agent before is lost with it.
            with contextlib.suppress(Refusal):
                about = self.about()
                return about if about.incarnation > incarnation else None
            return None

        return wait_until(there, f"an agent after incarnation {incarnation}")

    def kill_agent(self):
        """Kills the agent under its keeper, and gives what the next one tells of itself."""
        about = self.about()
        os.kill(about.pid, signal.SIGKILL)
        return self.await_successor(about.incarnation)

    def kill_all(self):
        """Kills keeper, agent and spare: nobody is left to go on."""
        pid = self.about().pid
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not process_runs(pid), "the agent's end")

    def stop(self, number=signal.SIGTERM, deadline_s=DEADLINE_S):
        """Stops it as a user does, and gives its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(deadline_s)

    def wait(self, deadline_s=DEADLINE_S):
        """Waits until it has ended, and gives its exit code."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"deka-agent does not stop: {self.log()}") from None

    def close(self):
        """Frees what is held here. The agent has ended before, or is killed now."""
        if self.process.poll() is None:
            with contextlib.suppress(Exception):
                self.kill_all()
        for observer in self.observers:
            observer.stop()
        for channel in self.channels:
            channel.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.pids:
            if pid and process_runs(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def node():
    path = shutil.which("node")
    if not path:
        raise AssertionError("there is no `node` on PATH; run ./bazelw once, or: apt-get install nodejs")
    return path


class Puppet:
    """A child whose end of the channel the test holds itself, to write any bytes to it and to see every byte that comes.

    The process has handed its channel, stdout and stderr over and has closed its own: what the test closes is closed.
    """

    def __init__(self, test, agent, **fields):
        path = os.path.join(tempfile.mkdtemp(dir=test.directory), "control")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen(1)
            listener.settimeout(DEADLINE_S)
            self.child = agent.fork("puppet.py", path, **fields)
            self.control, _ = listener.accept()
        self.control.settimeout(DEADLINE_S)
        state, descriptors, _, _ = socket.recv_fds(self.control, 1 << 20, 3)
        self.state = json.loads(state)
        self.stdout, self.stderr = descriptors[:2]
        self.channel = None
        if len(descriptors) == 3:
            self.channel = socket.socket(fileno=descriptors[2])
            self.channel.settimeout(DEADLINE_S)
        test.addCleanup(self.close)

    def write(self, data):
        self.channel.sendall(data)

    def read_line(self):
        """The next line that the agent wrote, with its line break; less at the end of the stream."""
        line = bytearray()
        while not line.endswith(b"\n"):
            byte = self.channel.recv(1)
            if not byte:
                break
            line += byte
        return bytes(line)

    def close_channel(self):
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def close_output(self):
        for descriptor in (self.stdout, self.stderr):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.stdout = self.stderr = -1

    def exit(self, code=0):
        """Ends the process. What the test holds of it stays open."""
        self.control.send(bytes([code]))

    def close(self):
        self.close_channel()
        self.close_output()
        self.control.close()


class TestCase(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        # Not TEST_TMPDIR: the path of a Unix socket holds 107 bytes.
        self.directory = tempfile.mkdtemp(prefix="deka-test-", dir="/tmp")
        self.addCleanup(shutil.rmtree, self.directory, True)

    def start_agent(self, config=None, arguments=(), preexec_fn=None):
        """Starts an agent that must end with code 0 when the test ends, with every child that it forked."""
        agent = Agent(self.directory, config, arguments, preexec_fn)
        self.addCleanup(self._finish, agent)
        return agent

    def _finish(self, agent):
        try:
            ended_before = agent.process.poll() is not None
            code = agent.stop()
            if not ended_before:
                self.assertEqual(code, 0, f"the agent's exit code; its log: {agent.log()}")
                for pid in agent.pids:
                    self.assertFalse(process_runs(pid), f"child process {pid} is left when its agent has ended")
        finally:
            agent.close()

    @contextlib.contextmanager
    def assertRefused(self, code, reason):
        """The calls inside are refused with this canonical code and this reason, in exactly one ErrorInfo."""

        class Seen:
            refusal = None

        seen = Seen()
        try:
            yield seen
        except Refusal as refusal:
            seen.refusal = refusal
        else:
            self.fail(f"it was not refused with {code.name} {reason}")
        self.check_refusal(seen.refusal, code, reason)

    def check_refusal(self, refusal, code, reason):
        self.assertEqual((refusal.code, refusal.reason), (code, reason), str(refusal))
        self.assertEqual(len(refusal.infos), 1, str(refusal))
        self.assertEqual(refusal.infos[0].domain, "deka.bridge")
        self.assertTrue(refusal.message, "an error has a message")

    def assertDense(self, numbers, first=None):
        """Each number is the one before and 1."""
        if numbers and first is not None:
            self.assertEqual(numbers[0], first)
        for before, after in zip(numbers, numbers[1:]):
            self.assertEqual(after, before + 1)

    def assertWhole(self, observer, child, first=1):
        """What an observer was shown of a child, of all kinds and directions: every event or exactly named as missed, once."""
        expected = first
        for each in observer.shown:
            if each.child != child.id:
                continue
            if isinstance(each, event_pb2.Gap):
                self.assertFalse(each.inexact)
                if each.HasField("from_child_sequence"):
                    self.assertEqual(each.from_child_sequence, expected)
                self.assertGreaterEqual(each.to_child_sequence, expected)
                expected = each.to_child_sequence + 1
            else:
                self.assertEqual(each.child_sequence, expected)
                expected += 1
        return expected - 1


def main():
    if os.environ.get("TESTBRIDGE_TEST_ONLY"):
        sys.argv += ["-k", os.environ["TESTBRIDGE_TEST_ONLY"]]
    # A test that hangs shows where.
    import faulthandler

    faulthandler.dump_traceback_later(int(os.environ.get("TEST_TIMEOUT", "60")) - 5, exit=True)
    unittest.main(verbosity=2)
