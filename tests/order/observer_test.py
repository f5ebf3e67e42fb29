"""Observers that do not read, are suspended, or vanish: nobody else notices, and what they missed is told."""

import json
import os
import signal
import subprocess
import threading

import bridge
from bridge import Code, api, child_pb2, event_pb2
from deka.bridge.v1 import bridge_service_pb2_grpc
from google.protobuf import duration_pb2

# The default time after which a call to which nothing can be written ends.
STALL_S = 10
# Far more than a connection's buffers hold, and less than a log of this size.
COUNT = 60_000
# Observers that stop reading, and the most that each may cost.
STOPPED = 64
STOPPED_KIB_MAX = 1024
LIMITS = child_pb2.ChildLimits(log_bytes_max=32 << 20)
SMALL_LIMITS = child_pb2.ChildLimits(message_bytes_max=1024, queue_bytes_max=65536, log_bytes_max=128 << 10)
# By default gRPC takes 28 MB from a stream that nobody reads.
READ_LITTLE = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]


def seconds(count):
    return duration_pb2.Duration(seconds=count)


class ObserverTest(bridge.TestCase):
    def setUp(self):
        super().setUp()
        self.agent = self.start_agent(
            f"limits {{ log_events_max: 200000 observers_max: {STOPPED + 1} }}\n"
        )

    def resident_kib(self):
        with open(f"/proc/{self.agent.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.agent.pid}/fd"))

    def connection(self, options=()):
        return bridge_service_pb2_grpc.BridgeServiceStub(self.agent.connect(options))

    def start_client(self, child):
        """Another process that observes the child."""
        process = subprocess.Popen(
            [
                bridge.PYTHON,
                bridge.testcase("observing_client.py"),
                self.agent.target,
                child.id,
                str(child.cursor.epoch),
                str(child.cursor.sequence),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.addCleanup(process.stdout.close)
        self.assertEqual(process.stdout.readline(), "attached\n")
        return process

    def write_numbers(self, puppet, first, count):
        puppet.write(b"".join(b'"%07d%s"\n' % (number, b"x" * 200) for number in range(first, first + count)))

    def check_all_seen(self, observer, count):
        observer.wait_for_count("from_child", count)
        self.assertEqual([int(event.json[1:8]) for event in observer.of("from_child")], list(range(count)))

    def observe_if_room(self, child, **start):
        """Another observer, or None if there are as many as there may be."""
        observer = self.agent.observe(children=[child.id], **start)
        observer.wait_for(lambda: observer.attached or observer.ended, "an answer")
        if observer.attached:
            return observer
        self.check_refusal(observer.error, Code.RESOURCE_EXHAUSTED, "OBSERVERS_LIMIT")
        self.agent.observers.remove(observer)
        return None

    def test_an_observer_that_stops_reading(self):
        puppet = bridge.Puppet(self, self.agent, dialect=bridge.NODE, limits=LIMITS)
        stopped = [puppet.child.observe(stub=self.connection(READ_LITTLE), paused=True) for _ in range(STOPPED)]
        reading = puppet.child.observe(stub=self.connection())
        reading.wait_for_last("started")
        before = self.resident_kib()
        writer = threading.Thread(target=self.write_numbers, args=(puppet, 0, COUNT))
        writer.start()
        self.check_all_seen(reading, COUNT)
        writer.join()
        # Other calls are answered at once, and the child is written to.
        puppet.child.send('"hello"')
        self.assertEqual(puppet.read_line(), b'"hello"\n')
        grown = self.resident_kib() - before
        self.assertLess(grown, (LIMITS.log_bytes_max >> 10) + STOPPED * STOPPED_KIB_MAX)
        # There is room for as many others when the agent has given them up.
        for _ in stopped:
            bridge.wait_until(lambda: self.observe_if_room(puppet.child), "the end of a stalled call", 3 * STALL_S)
        for observer in stopped:
            observer.may_read.set()
            observer.wait_for_end()
            # A call that is ended in the middle of a write has no room for details.
            self.assertEqual(observer.error.code, Code.ABORTED)
            self.assertTrue(observer.error.message.startswith("STALLED: "), observer.error)
        # What they missed is still there.
        reading.stop()
        late = bridge.wait_until(lambda: self.observe_if_room(puppet.child, after=puppet.child.cursor), "room for one")
        self.check_all_seen(late, COUNT)

    def test_a_suspended_process(self):
        puppet = bridge.Puppet(self, self.agent, dialect=bridge.NODE, limits=LIMITS)
        reading = puppet.child.observe(stub=self.connection())
        client = self.start_client(puppet.child)
        client.send_signal(signal.SIGSTOP)
        writer = threading.Thread(target=self.write_numbers, args=(puppet, 0, COUNT))
        writer.start()
        self.check_all_seen(reading, COUNT)
        writer.join()
        puppet.close_channel()
        puppet.exit()
        puppet.close_output()
        reading.wait_for_last("closed")
        client.send_signal(signal.SIGCONT)
        report = json.loads(client.stdout.readline())
        self.assertEqual(client.wait(bridge.DEADLINE_S), 0)
        self.check_report(report, len(reading.events))

    def check_report(self, report, last):
        expected = 1
        for begin, end in report["shown"]:
            self.assertEqual(begin if begin is not None else expected, expected)
            self.assertGreaterEqual(end, expected)
            expected = end + 1
        self.assertEqual(expected, last + 1)

    def test_a_suspended_process_behind_a_small_log(self):
        """What turned over meanwhile is one exact gap."""
        limits = child_pb2.ChildLimits(message_bytes_max=1024, queue_bytes_max=65536, log_bytes_max=73728)
        puppet = bridge.Puppet(self, self.agent, dialect=bridge.NODE, limits=limits)
        client = self.start_client(puppet.child)
        client.send_signal(signal.SIGSTOP)
        self.write_numbers(puppet, 0, COUNT)
        puppet.close_channel()
        puppet.exit()
        puppet.close_output()
        observer = self.agent.observe(children=[puppet.child.id], until_closed=True).wait_for_end()
        self.assertIsNone(observer.error)
        client.send_signal(signal.SIGCONT)
        report = json.loads(client.stdout.readline())
        self.check_report(report, COUNT + 4)
        self.assertTrue([1 for begin, end in report["shown"] if begin != end], "there was a gap")

    def test_a_lossless_observer(self):
        """It misses nothing behind a log that holds a thirtieth of what is written, and so slowly that the child waits for it."""
        puppet = bridge.Puppet(self, self.agent, dialect=bridge.NODE, limits=SMALL_LIMITS)
        other = bridge.Puppet(self, self.agent, dialect=bridge.NODE, limits=SMALL_LIMITS)
        lossless = self.observe_lossless(puppet.child, seconds(8))
        writer = threading.Thread(target=self.write_numbers, args=(puppet, 0, COUNT // 3))
        writer.start()
        bridge.wait_until(lambda: self.is_held(puppet.child), "a hold")
        self.assertTrue(writer.is_alive())
        # Meanwhile another child writes as much as it likes.
        self.write_numbers(other, 0, COUNT)
        self.assertTrue(writer.is_alive())
        lossless.may_read.set()
        self.check_all_seen(lossless, COUNT // 3)
        self.assertEqual(lossless.gaps, [])
        writer.join()
        # What was refused was not sent, what was accepted was written.
        self.assertFalse(self.is_held(puppet.child))

    def test_a_lossless_observer_that_stops_reading(self):
        puppet = bridge.Puppet(self, self.agent, dialect=bridge.NODE, limits=SMALL_LIMITS)
        lossless = self.observe_lossless(puppet.child, seconds(1))
        # The child is held once, for a second; nobody is waited for twice who has not read on.
        self.write_numbers(puppet, 0, COUNT // 4)
        self.assertFalse(self.is_held(puppet.child))
        lossless.may_read.set()
        puppet.close_channel()
        lossless.wait_for_last("disconnected")
        reasons = {gap.reason for gap in lossless.gaps}
        self.assertEqual(reasons, {event_pb2.Gap.REASON_BLOCK_TIMEOUT}, lossless.gaps)
        expected = 1
        for shown in lossless.shown:
            if isinstance(shown, event_pb2.Gap):
                self.assertEqual(shown.from_child_sequence, expected)
                expected = shown.to_child_sequence + 1
            else:
                self.assertEqual(shown.child_sequence, expected)
                expected += 1

    def observe_lossless(self, child, hold_max):
        """An observation that stands, and is not read from now on."""
        observer = child.observe(
            stub=self.connection(READ_LITTLE), when_slow=api.SLOW_POLICY_BLOCK, hold_max=hold_max
        )
        observer.wait_for_last("started")
        observer.may_read.clear()
        return observer

    def is_held(self, child):
        try:
            child.send("0")
        except bridge.Refusal as refusal:
            self.assertEqual(refusal.reason, "HELD_BY_OBSERVER")
            self.assertGreater(refusal.retry_ms, 0)
            return True
        return False

    def test_clients_that_vanish(self):
        puppet = bridge.Puppet(self, self.agent, dialect=bridge.NODE, limits=LIMITS)
        reading = puppet.child.observe(stub=self.connection())
        reading.wait_for_last("started")
        before = self.descriptors()
        clients = [self.start_client(puppet.child) for _ in range(8)]
        writer = threading.Thread(target=self.write_numbers, args=(puppet, 0, COUNT))
        writer.start()
        reading.wait_for_count("from_child", 1000)
        for client in clients:
            client.kill()
        self.check_all_seen(reading, COUNT)
        writer.join()
        bridge.wait_until(lambda: self.descriptors() <= before, "the end of the connections of clients that are gone")

    def test_a_flood_leaves_other_logs_alone(self):
        quiet = self.agent.fork("echo.py")
        quiet.send('"remember me"')
        limits = child_pb2.ChildLimits(message_bytes_max=1024, queue_bytes_max=65536, log_bytes_max=73728)
        flood = self.agent.fork("flood.py", str(COUNT), limits=limits)
        self.agent.observe(children=[flood.id], until_closed=True).wait_for_end()
        observer = quiet.observe()
        observer.wait_for_count("from_child", 1)
        self.assertEqual(observer.kinds, ["started", "to_child", "from_child"])
        self.assertEqual(observer.gaps, [])


if __name__ == "__main__":
    bridge.main()
