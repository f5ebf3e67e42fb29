"""How an agent ends: in order when it is asked to, and what its children and observers see when it is killed."""

import os
import signal

import bridge
from bridge import Code, api, event_pb2


class StopTest(bridge.TestCase):
    def test_each_signal_that_ends_it(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with self.subTest(signal=number.name):
                agent = self.start_agent()
                child = agent.fork("echo.py")
                observer = child.observe()
                observer.wait_for_last("started")
                self.assertEqual(agent.stop(number), 0)
                observer.wait_for_end()
                self.assertEqual(observer.fin.reason, api.Fin.REASON_AGENT_STOPPING)
                self.assertEqual(observer.kinds, ["started", "disconnected", "exited", "closed"])
                self.assertFalse(os.path.exists(agent.path))

    def test_the_order(self):
        """Channels end first; who still runs gets SIGTERM, then SIGKILL; each `closed` comes before the end of the stream."""
        agent = self.start_agent()
        polite = agent.fork("echo.py")
        deaf = agent.fork("/bin/sleep", "1000")
        stubborn = agent.fork("stubborn.py")
        observer = agent.observe(earliest=True)
        # It ignores signals from here on.
        observer.wait_for_count("output", 1)
        agent.process.send_signal(signal.SIGTERM)
        observer.wait_for_count("disconnected", 1)
        for call in (
            lambda: agent.fork("/bin/true"),
            lambda: agent.send(stubborn.name, "1"),
            lambda: stubborn.signal(signal.SIGCONT),
        ):
            with self.assertRefused(Code.UNAVAILABLE, "AGENT_STOPPING"):
                call()
        self.assertEqual(agent.wait(), 0)
        observer.wait_for_end()

        self.assertEqual(observer.fin.reason, api.Fin.REASON_AGENT_STOPPING)
        self.assertEqual(observer.fin.cursor.sequence, observer.events[-1].sequence)
        self.assertDense([event.sequence for event in observer.events], first=1)
        story = {child.id: [] for child in (polite, deaf, stubborn)}
        for event in observer.events:
            kind = bridge.kind_of(event)
            if kind == "signalled":
                self.assertEqual(event.signalled.sender.principal, "agent")
                kind = signal.Signals(event.signalled.signal).name
            story[event.child].append(kind)
        self.assertEqual(story[polite.id], ["started", "disconnected", "exited", "closed"])
        # These would keep their channel open for ever.
        self.assertEqual(story[deaf.id], ["started", "disconnected", "SIGTERM", "exited", "closed"])
        self.assertEqual(
            story[stubborn.id], ["started", "output", "disconnected", "SIGTERM", "SIGKILL", "exited", "closed"]
        )
        for event in observer.of("disconnected"):
            self.assertEqual(event.disconnected.by, event_pb2.Disconnected.BY_AGENT)
        status = {event.child: event.exited.status for event in observer.of("exited")}
        self.assertEqual(status[polite.id].WhichOneof("result"), "code")
        self.assertEqual(status[deaf.id].signal, signal.SIGTERM)
        self.assertEqual(status[stubborn.id].signal, signal.SIGKILL)

    def test_what_is_queued_is_written_first(self):
        """A child that reads late still gets all that was accepted for it, then the end of its channel."""
        agent = self.start_agent()
        puppet = bridge.Puppet(self, agent, dialect=bridge.NODE)
        observer = puppet.child.observe()
        texts = ['"%02d%s"' % (number, "x" * 60_000) for number in range(10)]
        for text in texts:
            puppet.child.send(text, answer_when=api.SEND_OUTCOME_ACCEPTED)
        self.assertGreater(puppet.child.get().queued_messages, 0)
        agent.process.send_signal(signal.SIGTERM)
        with puppet.channel.makefile("rb") as lines:
            self.assertEqual(lines.read().decode().splitlines(), texts)
        puppet.close_channel()
        puppet.close_output()
        puppet.exit()
        self.assertEqual(agent.wait(), 0)
        observer.wait_for_end()
        self.assertEqual(observer.kinds, ["started"] + ["to_child"] * 10 + ["disconnected", "exited", "closed"])

    def test_what_a_stubborn_child_has_started(self):
        """SIGKILL goes to the child's whole group; what has left the group runs on."""
        agent = self.start_agent()
        script = "trap '' TERM; sleep 1000 & echo in $!; setsid sh -c 'echo out $$; exec sleep 1000' & wait"
        child = agent.fork("/bin/sh", "-c", script)
        observer = child.observe()
        pids = dict(line.text.split() for line in observer.wait_for_count("output", 2))
        in_group, outside = int(pids["in"]), int(pids["out"])
        self.addCleanup(os.kill, outside, signal.SIGKILL)
        agent.process.send_signal(signal.SIGTERM)
        observer.wait_for_last("disconnected")
        self.assertTrue(bridge.process_runs(in_group))
        self.assertEqual(agent.stop(), 0)
        self.assertFalse(bridge.process_runs(in_group))
        self.assertTrue(bridge.process_runs(outside))

    def test_a_grandchild_that_holds_everything(self):
        """It is nobody's to end, and the agent does not wait for it longer than its limits say."""
        agent = self.start_agent()
        child = agent.fork("/bin/sh", "-c", "setsid sleep 1000 & echo $!")
        observer = child.observe()
        grandchild = int(observer.wait_for_last("output").text)
        self.addCleanup(os.kill, grandchild, signal.SIGKILL)
        self.assertTrue(observer.wait_for_last("exited").exited.status.still_held)
        self.assertEqual(agent.stop(), 0)
        observer.wait_for_end()
        self.assertEqual(observer.fin.reason, api.Fin.REASON_AGENT_STOPPING)
        self.assertTrue(bridge.process_runs(grandchild))

    def test_it_is_killed_and_another_takes_over(self):
        """Without a keeper its children see the end of their channel; the next agent on the socket says that what was before is not known."""
        agent = self.start_agent(arguments=["--no-keeper"])
        puppet = bridge.Puppet(self, agent, dialect=bridge.NODE)
        observer = puppet.child.observe()
        observer.wait_for_last("started")
        cursor = observer.attached.start
        agent.process.kill()
        self.assertEqual(puppet.read_line(), b"")
        observer.wait_for_end()
        self.assertEqual(observer.error.code, Code.UNAVAILABLE)
        self.assertIsNone(observer.fin)
        self.assertTrue(os.path.exists(agent.path))
        agent.process.wait()

        successor = self.start_agent()
        resumed = successor.observe(after=cursor)
        resumed.wait_for(lambda: resumed.gaps, "a gap")
        self.assertEqual(resumed.gaps[0].reason, event_pb2.Gap.REASON_OTHER_EPOCH)
        self.assertTrue(resumed.gaps[0].inexact)
        self.assertNotEqual(resumed.attached.epoch, cursor.epoch)
        self.assertEqual(list(successor.list().children), [])


if __name__ == "__main__":
    bridge.main()
