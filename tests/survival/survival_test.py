"""What clients and children see when deka-agent dies under its keeper: nothing but a connection that is made anew."""

import os
import resource
import signal
import subprocess
import threading

import bridge
from bridge import Code, Refusal, api, answer, process_runs, wait_until
from deka.bridge.v1 import child_pb2

KILLS = 5


class Resumed:
    """All that happens to a child, read by stock gRPC streams: each goes on after the last event of the one before."""

    def __init__(self, agent, child):
        self.agent = agent
        self.child = child
        self.events = []
        self.gaps = []
        self.attached = []
        self.changed = threading.Condition()
        self.stopped = False
        self.call = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        cursor = self.child.cursor
        while not self.stopped:
            start = api.ObserveStart(after=cursor)
            request = api.ObserveRequest(
                parent="agents/-",
                filter=child_pb2.ChildFilter(children=[self.child.name]),
                observation=api.Observation(start=start),
            )
            self.call = self.agent.stub.Observe(request, wait_for_ready=True)
            try:
                for response in self.call:
                    with self.changed:
                        self.attached += [response.attached] if response.HasField("attached") else []
                        self.gaps += [response.gap] if response.HasField("gap") else []
                        for event in response.batch.events:
                            self.events.append(event)
                            cursor.sequence = event.sequence
                        self.changed.notify_all()
            except bridge.grpc.RpcError as error:
                if error.code() is Code.CANCELLED:
                    return

    def of(self, kind):
        return [event for event in self.events if bridge.kind_of(event) == kind]

    def wait_for(self, condition, what):
        with self.changed:
            if not self.changed.wait_for(condition, bridge.DEADLINE_S):
                raise AssertionError(f"not in time: {what}; {len(self.events)} events, the last: {self.events[-1:]}")

    def stop(self):
        self.stopped = True
        self.call.cancel()
        self.thread.join(bridge.DEADLINE_S)


class TestCase(bridge.TestCase):
    def start_kept_agent(self):
        agent = self.start_agent()
        agent.await_spare()
        return agent

    def resumed(self, agent, child):
        observer = Resumed(agent, child)
        self.addCleanup(observer.stop)
        return observer

    def assertNothingMissed(self, observer):
        self.assertEqual(observer.gaps, [])
        self.assertDense([event.child_sequence for event in observer.events], first=1)
        self.assertEqual(len({attached.epoch for attached in observer.attached}), 1)


class ConversationTest(TestCase):
    def send(self, agent, child, text, known_sequence):
        """As a client that repeats: the sequence of the message's event."""
        request = api.SendMessageRequest(
            child=child.name, json=text, request_id=f"id {text}", known_sequence=known_sequence
        )
        while True:
            try:
                return answer(agent.stub.SendMessage, request, wait_for_ready=True).sequence
            except Refusal as refusal:
                if refusal.reason or refusal.code not in (Code.UNAVAILABLE, Code.CANCELLED, Code.UNKNOWN):
                    raise
                request.repeat = True

    def test_killed_again_and_again_in_the_middle_of_it(self):
        """Each message is sent and echoed once, in order; the child is the same; cursors go on."""
        agent = self.start_kept_agent()
        child = agent.fork("echo.py")
        observer = self.resumed(agent, child)
        sent = []
        enough = threading.Event()

        def talk():
            known = 1
            while not enough.is_set():
                text = str(len(sent))
                known = self.send(agent, child, text, known)
                sent.append(text)

        talking = threading.Thread(target=talk)
        talking.start()
        try:
            for kill in range(1, KILLS + 1):
                before = len(sent)
                wait_until(lambda: len(sent) >= before + 20, "the conversation")
                self.assertEqual(agent.kill_agent().incarnation, kill + 1)
                agent.await_spare()
        finally:
            enough.set()
            talking.join(bridge.DEADLINE_S)
        observer.wait_for(lambda: len(observer.of("from_child")) == len(sent), "all echoes")
        self.assertEqual([event.json for event in observer.of("from_child")], sent)
        self.assertEqual([event.json for event in observer.of("to_child")], sent)
        self.assertNothingMissed(observer)
        self.assertEqual(child.get().pid, child.pid)
        self.assertEqual([each.incarnation for each in observer.attached], list(range(1, KILLS + 2)))

    def test_half_a_message_and_half_a_line(self):
        agent = self.start_kept_agent()
        puppet = bridge.Puppet(self, agent, dialect=bridge.NODE)
        observer = self.resumed(agent, puppet.child)
        puppet.write(b'[1]\n{"half":')
        os.write(puppet.stdout, b"one\ntw")
        observer.wait_for(lambda: observer.of("from_child") and observer.of("output"), "the first of each")
        agent.kill_agent()
        puppet.write(b"2}\n")
        os.write(puppet.stdout, b"o\n")
        observer.wait_for(lambda: len(observer.events) == 5, "the second of each")
        self.assertEqual([event.json for event in observer.of("from_child")], ["[1]", '{"half":2}'])
        self.assertEqual([event.text for event in observer.of("output")], ["one", "two"])
        self.assertNothingMissed(observer)

    def test_what_happens_while_there_is_no_agent(self):
        """The spare is stopped when its turn comes; meanwhile a child speaks and ends."""
        agent = self.start_kept_agent()
        puppets = [bridge.Puppet(self, agent, dialect=bridge.NODE) for _ in range(2)]
        observers = [self.resumed(agent, puppet.child) for puppet in puppets]
        for observer in observers:
            observer.wait_for(lambda observer=observer: observer.events, "the start")
        about = agent.about()
        os.kill(about.spare_pid, signal.SIGSTOP)
        os.kill(about.pid, signal.SIGKILL)
        wait_until(lambda: not process_runs(about.pid), "the agent's end")
        for code, puppet in enumerate(puppets, 7):
            puppet.write(b"[%d]\n" % code)
            os.write(puppet.stdout, b"last\n")
            puppet.close_channel()
            puppet.close_output()
            puppet.exit(code)
            wait_until(lambda puppet=puppet: not process_runs(puppet.child.pid), "the child's end")
        os.kill(about.spare_pid, signal.SIGCONT)
        for code, observer in enumerate(observers, 7):
            observer.wait_for(lambda observer=observer: observer.of("closed"), "the child's last event")
            self.assertEqual([event.json for event in observer.of("from_child")], [f"[{code}]"])
            self.assertEqual([event.text for event in observer.of("output")], ["last"])
            self.assertEqual([event.exited.status.code for event in observer.of("exited")], [code])
            self.assertNothingMissed(observer)

    def test_a_fork_that_is_repeated_is_the_same_child(self):
        agent = self.start_kept_agent()
        first = agent.fork("echo.py", request_id="once")
        agent.kill_agent()
        self.assertEqual(agent.fork("echo.py", request_id="once").name, first.name)
        self.assertEqual(len(agent.list().children), 1)


class EndTest(TestCase):
    def second_agent(self):
        """The exit code and log of another one on the same socket."""
        command = [os.path.abspath(os.environ["DEKA_AGENT"]), "--listen", "unix:" + os.path.join(self.directory, "agent.sock")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=bridge.DEADLINE_S)
        return ended.returncode, ended.stderr

    def assertRefusesASecond(self):
        code, log = self.second_agent()
        self.assertEqual(code, 1, log)
        self.assertIn("agent.sock", log)

    def test_a_second_agent_on_the_socket_is_refused(self):
        agent = self.start_kept_agent()
        self.assertRefusesASecond()
        agent.kill_agent()
        self.assertRefusesASecond()
        self.assertEqual(agent.about().incarnation, 2)

    def kept_children(self):
        agent = self.start_kept_agent()
        children = [agent.fork("echo.py"), agent.fork("/bin/sleep", "1000")]
        return agent, children

    def assertEnded(self, agent, children, code=0):
        self.assertEqual(agent.wait(), code, agent.log())
        for child in children:
            self.assertFalse(process_runs(child.pid))
        self.assertFalse(os.path.exists(agent.path))

    def test_sigterm(self):
        agent, children = self.kept_children()
        observer = children[0].observe()
        observer.wait_for_last("started")
        about = agent.about()
        agent.process.terminate()
        self.assertEqual(observer.wait_for_end().fin.reason, api.Fin.REASON_AGENT_STOPPING)
        self.assertEqual(observer.kinds, ["started", "disconnected", "exited", "closed"])
        self.assertEnded(agent, children)
        for pid in (about.pid, about.spare_pid):
            wait_until(lambda pid=pid: not process_runs(pid), "the end of agent and spare")

    def test_sigterm_right_after_the_agent_was_killed(self):
        agent, children = self.kept_children()
        os.kill(agent.about().pid, signal.SIGKILL)
        agent.process.terminate()
        self.assertEnded(agent, children)

    def test_sigterm_while_the_agent_hangs(self):
        """Its spare stops in its stead."""
        agent, children = self.kept_children()
        os.kill(agent.about().pid, signal.SIGSTOP)
        agent.process.terminate()
        self.assertEnded(agent, children)

    def test_without_a_keeper_the_agents_end_is_the_channels_end(self):
        for config, arguments in ((None, ["--no-keeper"]), ("survive: false", [])):
            with self.subTest(arguments):
                agent = self.start_agent(config, arguments)
                about = agent.about()
                self.assertEqual((about.pid, about.keeper_pid, about.incarnation), (agent.process.pid, 0, 1))
                child = agent.fork("echo.py")
                agent.process.kill()
                agent.process.wait()
                wait_until(lambda child=child: not process_runs(child.pid), "the end of a child whose channel ended")


class DescriptorTest(TestCase):
    def test_a_spare_has_room_for_all_that_the_agent_holds(self):
        """However low the limit is that both were started with: it is raised first."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        agent = self.start_agent(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)))
        children = [agent.fork("/bin/sleep", "1000", no_channel=True) for _ in range(40)]
        agent.await_spare()
        agent.kill_agent()
        self.assertEqual(len(agent.list(page_size=100).children), len(children))
        # The next one, too, which is given all of them at once.
        agent.await_spare()
        agent.kill_agent()
        self.assertTrue(all(bridge.process_runs(child.pid) for child in children))


class KeeperTest(TestCase):
    def test_a_keeper_that_was_killed(self):
        agent = self.start_kept_agent()
        child = agent.fork("echo.py")
        sleeper = agent.fork("/bin/sleep", "1000")
        observer = child.observe()
        other = sleeper.observe()
        observer.wait_for_last("started")
        about = agent.about()
        self.assertFalse(about.degraded or observer.attached.degraded)
        agent.process.kill()
        agent.process.wait()

        # Observers are told at once, and those that come later.
        observer.wait_for(lambda: observer.heartbeats, "word of it")
        self.assertTrue(observer.heartbeats[0].degraded)
        late = child.observe()
        late.wait_for(lambda: late.attached, "a late observer")
        self.assertTrue(late.attached.degraded)
        degraded = agent.about()
        self.assertTrue(degraded.degraded)
        self.assertEqual((degraded.pid, degraded.keeper_pid, degraded.spare_pid), (about.pid, 0, 0))

        # What there is goes on; there will be nothing new.
        child.send("[1]")
        observer.wait_for_last("from_child")
        with self.assertRefused(Code.FAILED_PRECONDITION, "KEEPER_GONE") as seen:
            agent.fork("echo.py")
        self.assertIn(f"kill {about.pid}", seen.refusal.message)
        sleeper.signal(signal.SIGKILL)
        status = other.wait_for_last("exited").exited.status
        self.assertTrue(status.signal == signal.SIGKILL or status.unknown_reason, str(status))

        ended = subprocess.run(
            [os.path.abspath(os.environ["DEKA_AGENT"]), "--listen", agent.target],
            capture_output=True, text=True, timeout=bridge.DEADLINE_S,
        )  # fmt: skip
        self.assertEqual(ended.returncode, 1, ended.stderr)
        self.assertIn(f"(pid {about.pid})", ended.stderr)
        os.kill(about.pid, signal.SIGTERM)
        self.assertEqual(observer.wait_for_end().fin.reason, api.Fin.REASON_AGENT_STOPPING)
        self.assertEqual(observer.kinds[-3:], ["disconnected", "exited", "closed"])
        wait_until(lambda: not process_runs(about.pid), "the agent's end")
        wait_until(lambda: not process_runs(child.pid), "the child's end")
        self.assertFalse(os.path.exists(agent.path))


class UpgradeTest(TestCase):
    def upgrade(self, agent, binary=""):
        return answer(agent.stub.UpgradeAgent, api.UpgradeAgentRequest(name="agents/-", binary=binary))

    def assertGoesOn(self, agent, about):
        self.assertEqual(agent.about().pid, about.pid)
        self.assertEqual(agent.about().incarnation, about.incarnation)

    def test_under_a_conversation(self):
        agent = self.start_kept_agent()
        child = agent.fork("echo.py")
        observer = self.resumed(agent, child)
        for incarnation, binary in ((2, os.path.abspath(os.environ["DEKA_AGENT"])), (3, "")):
            child.send(f"[{incarnation}]")
            with self.assertRaises(Refusal) as ended:
                self.upgrade(agent, binary)
            self.assertEqual(ended.exception.reason, "", "the connection ends")
            self.assertEqual(agent.await_successor(incarnation - 1).incarnation, incarnation)
            self.assertEqual(child.get().pid, child.pid)
        child.send("[4]")
        observer.wait_for(lambda: len(observer.of("from_child")) == 3, "the echoes")
        self.assertNothingMissed(observer)
        agent.await_spare()
        agent.process.send_signal(signal.SIGUSR2)
        self.assertEqual(agent.await_successor(3).incarnation, 4)

    def test_what_does_not_fit_is_refused(self):
        agent = self.start_kept_agent()
        text = os.path.join(self.directory, "text")
        with open(text, "w", encoding="utf-8") as file:
            file.write("no program")
        os.chmod(text, 0o755)
        child = agent.fork("echo.py")
        about = agent.about()
        for binary, what in (("/bin/true", "ended"), (text, "not_started")):
            with self.subTest(binary):
                with self.assertRefused(Code.FAILED_PRECONDITION, "UPGRADE_REFUSED") as seen:
                    self.upgrade(agent, binary)
                self.assertEqual(seen.refusal.metadata["what"], what)
                self.assertIn(binary, seen.refusal.message)
                self.assertGoesOn(agent, about)
        for binary in ("agent", "/no/such/file", "/tmp"):
            with self.subTest(binary):
                with self.assertRefused(Code.INVALID_ARGUMENT, "INVALID_ARGUMENT") as seen:
                    self.upgrade(agent, binary)
                self.assertEqual(seen.refusal.metadata["field"], "binary")
        with self.assertRefused(Code.NOT_FOUND, "AGENT_NOT_FOUND"):
            answer(agent.stub.UpgradeAgent, api.UpgradeAgentRequest(name="agents/nobody"))
        self.assertGoesOn(agent, about)
        child.send("1")

    def test_without_a_keeper(self):
        agent = self.start_agent(arguments=["--no-keeper"])
        with self.assertRefused(Code.FAILED_PRECONDITION, "UPGRADE_REFUSED") as seen:
            self.upgrade(agent)
        self.assertEqual(seen.refusal.metadata["what"], "no_keeper")

    def test_without_its_keeper(self):
        agent = self.start_kept_agent()
        about = agent.about()
        agent.process.kill()
        agent.process.wait()
        wait_until(lambda: agent.about().degraded, "word of it")
        with self.assertRefused(Code.FAILED_PRECONDITION, "KEEPER_GONE"):
            self.upgrade(agent)
        os.kill(about.pid, signal.SIGTERM)
        wait_until(lambda: not process_runs(about.pid), "the agent's end")


if __name__ == "__main__":
    bridge.main()
