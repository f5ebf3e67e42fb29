"""A Python program, with Debian's grpc and modules made by protoc, uses every method of a running agent."""

import os
import queue
import signal
import time

import bridge
import grpc
from bridge import Code, api, child_pb2, event_pb2
from deka.bridge.v1 import bridge_service_pb2_grpc

# grpc.health.v1.HealthCheckResponse {status: SERVING}
SERVING = b"\x08\x01"


class ClientTest(bridge.TestCase):
    def setUp(self):
        super().setUp()
        self.agent = self.start_agent()

    def test_fork_observe_send_disconnect(self):
        child = self.agent.fork("echo.py", display_name="echo", labels={"role": "test"})
        observer = child.observe()
        sent = child.send('{"hello": "wörld"}', request_id="one")
        observer.wait_for_count("from_child", 1)
        child.disconnect()
        observer.wait_for_last("closed")

        self.assertEqual(
            observer.kinds, ["started", "to_child", "from_child", "disconnected", "exited", "closed"]
        )
        self.assertDense([event.child_sequence for event in observer.events], first=1)
        self.assertDense([event.sequence for event in observer.events], first=child.cursor.sequence + 1)
        times = [event.time.ToNanoseconds() for event in observer.events]
        self.assertEqual(times, sorted(times))

        started, to_child, from_child, disconnected, exited, _ = observer.events
        me = f"uid:{os.getuid()}"
        self.assertEqual(started.started.child.display_name, "echo")
        self.assertEqual(dict(started.started.child.labels), {"role": "test"})
        self.assertEqual(started.started.sender.principal, me)
        self.assertEqual(started.started.sender.client, bridge.CLIENT)
        self.assertEqual(sent.outcome, api.SEND_OUTCOME_WRITTEN)
        self.assertEqual(sent.sequence, to_child.sequence)
        self.assertEqual(to_child.to_child.request_id, "one")
        self.assertEqual(to_child.to_child.sender.principal, me)
        self.assertEqual(to_child.to_child.sender.client, bridge.CLIENT)
        for event in (to_child, from_child):
            self.assertEqual(event.json, '{"hello": "wörld"}')
        self.assertEqual(from_child.from_child.size_bytes, len('{"hello": "wörld"}'.encode()))
        self.assertEqual(from_child.from_child.dialect, bridge.DEKA)
        self.assertEqual(disconnected.disconnected.by, event_pb2.Disconnected.BY_CALLER)
        self.assertEqual(disconnected.disconnected.sender.principal, me)
        self.assertEqual(exited.exited.status.code, 0)

    def test_the_stream_begins_with_the_children_as_they_are(self):
        children = [self.agent.fork("echo.py") for _ in range(3)]
        for child in children:
            child.send("1")
        observer = self.agent.observe()
        observer.wait_for(lambda: observer.snapshot_head is not None, "the snapshot")
        self.assertEqual([child.name for child in observer.children], [child.name for child in children])
        self.assertEqual(observer.attached.head, observer.snapshot_head)
        self.assertEqual(observer.attached.start.sequence, observer.attached.head)
        self.assertEqual(f"agents/{observer.attached.agent}/children/{children[0].id}", children[0].name)
        for child in observer.children:
            self.assertEqual(child.state, child_pb2.Child.STATE_CONNECTED)
            self.assertGreater(child.pid, 0)

    def test_children_started_later_are_observed(self):
        observer = self.agent.observe(labels={"role": "late"})
        observer.wait_for(lambda: observer.attached, "the beginning")
        self.agent.fork("echo.py", labels={"role": "other"})
        late = self.agent.fork("echo.py", labels={"role": "late"})
        observer.wait_for_last("started")
        self.assertEqual([event.child for event in observer.events], [late.id])

    def test_starts(self):
        child = self.agent.fork("echo.py")
        for number in range(5):
            child.send(str(number))
        whole = child.observe()
        whole.wait_for_count("from_child", 5)
        events = len(whole.events)
        self.assertEqual(events, 11)

        earliest = self.agent.observe(children=[child.id], earliest=True, events_max=events).wait_for_end()
        self.assertEqual(earliest.events, whole.events)
        self.assertEqual(earliest.fin.reason, api.Fin.REASON_EVENTS_MAX)

        last = self.agent.observe(
            children=[child.id], last=2, kinds=[event_pb2.EVENT_KIND_MESSAGE], events_max=2
        ).wait_for_end()
        self.assertEqual(last.events, [event for event in whole.events if event.json][-2:])

        cursor = event_pb2.Cursor(
            agent=whole.attached.agent, epoch=whole.attached.epoch, sequence=whole.events[3].sequence
        )
        after = self.agent.observe(children=[child.id], after=cursor, events_max=events - 4).wait_for_end()
        self.assertEqual(after.events, whole.events[4:])

        latest = self.agent.observe(children=[child.id])
        latest.wait_for(lambda: latest.snapshot_head is not None, "the beginning")
        child.send('"new"')
        latest.wait_for_count("from_child", 1)
        self.assertEqual([event.json for event in latest.events], ['"new"', '"new"'])

    def test_filters_of_kind_and_direction(self):
        child = self.agent.fork("echo.py")
        messages = child.observe(
            kinds=[event_pb2.EVENT_KIND_MESSAGE, event_pb2.EVENT_KIND_EXITED], direction=event_pb2.DIRECTION_FROM_CHILD
        )
        child.send("1")
        child.send("2")
        messages.wait_for_count("from_child", 2)
        child.disconnect()
        messages.wait_for_last("exited")
        self.assertEqual(messages.kinds, ["from_child", "from_child", "exited"])

    def test_ends(self):
        child = self.agent.fork("echo.py")
        observer = child.observe(until_closed=True)
        child.disconnect()
        observer.wait_for_end()
        self.assertEqual(observer.fin.reason, api.Fin.REASON_CLOSED)
        self.assertIsNone(observer.error)
        self.assertEqual(observer.kinds[-1], "closed")
        self.assertGreaterEqual(observer.fin.cursor.sequence, observer.events[-1].sequence)

        request = api.Observation(start=api.ObserveStart(latest=True))
        request.duration.FromMilliseconds(10)
        timed = self.agent.observe(duration=request.duration).wait_for_end()
        self.assertEqual(timed.fin.reason, api.Fin.REASON_DURATION)
        self.assertIsNone(timed.error)

    def test_heartbeats(self):
        observation = api.Observation()
        observation.heartbeat_interval.FromSeconds(1)
        observer = self.agent.observe(heartbeat_interval=observation.heartbeat_interval)
        observer.wait_for(lambda: observer.heartbeats, "a heartbeat")
        self.assertEqual(observer.heartbeats[0].cursor.sequence, observer.attached.head)
        self.assertEqual(observer.heartbeats[0].cursor.epoch, observer.attached.epoch)

    def test_list_in_pages_and_by_filter(self):
        names = [
            self.agent.fork("echo.py", display_name=f"echo-{n}", labels={"parity": str(n % 2)}).name for n in range(5)
        ]
        listed = []
        page = self.agent.list(page_size=2)
        head = page.cursor.sequence
        while True:
            self.assertLessEqual(len(page.children), 2)
            self.assertEqual(page.cursor.sequence, head)
            listed += [child.name for child in page.children]
            if not page.next_page_token:
                break
            page = self.agent.list(page_size=2, page_token=page.next_page_token)
        self.assertEqual(listed, names)

        odd = self.agent.list(filter=child_pb2.ChildFilter(labels={"parity": "1"}))
        self.assertEqual([child.name for child in odd.children], [names[1], names[3]])
        one = self.agent.list(filter=child_pb2.ChildFilter(children=["echo-2"]))
        self.assertEqual([child.name for child in one.children], [names[2]])
        none = self.agent.list(filter=child_pb2.ChildFilter(states=[child_pb2.Child.STATE_CLOSED]))
        self.assertEqual(list(none.children), [])

    def test_the_agent_itself(self):
        def get(name="agents/-"):
            return bridge.answer(self.agent.stub.GetAgent, api.GetAgentRequest(name=name)).agent

        before = get()
        self.assertEqual((before.keeper_pid, before.incarnation), (self.agent.process.pid, 1))
        self.assertNotEqual(before.pid, self.agent.process.pid)
        bridge.wait_until(lambda: get().spare_pid not in (0, before.pid), "a spare")
        self.assertRegex(before.version, r"\A\d+\.\d+\.\d+\Z")
        self.assertLess(abs(before.start_time.ToSeconds() - time.time()), bridge.DEADLINE_S)
        self.assertEqual(before.limits.child.message_bytes_max, 1 << 20)
        self.assertEqual(before.limits.write_stalled_ms_max, 10_000)
        self.assertEqual((before.head, before.children, before.observers), (0, 0, 0))

        child = self.agent.fork("echo.py")
        observer = child.observe()
        observer.wait_for_last("started")
        now = get(before.name)
        self.assertEqual(before.name, f"agents/{observer.attached.agent}")
        self.assertEqual((now.epoch, now.head), (observer.attached.epoch, observer.events[-1].sequence))
        self.assertEqual((now.observers, now.children, now.running_children), (1, 1, 1))
        self.assertEqual(now.start_time, before.start_time)
        child.disconnect()
        observer.wait_for_last("closed")
        self.assertEqual((get().children, get().running_children), (1, 0))

        with self.assertRefused(Code.NOT_FOUND, "AGENT_NOT_FOUND") as seen:
            get("agents/other-agent")
        self.assertEqual(seen.refusal.metadata["agent"], observer.attached.agent)

    def test_names(self):
        child = self.agent.fork("echo.py", display_name="echo")
        for name in ("echo", child.id, child.name, f"agents/-/children/{child.id}", "agents/-/children/echo"):
            answer = bridge.answer(self.agent.stub.GetChild, api.GetChildRequest(name=name))
            self.assertEqual(answer.child.name, child.name, name)
        second = self.agent.fork("echo.py", display_name="echo")
        with self.assertRefused(Code.FAILED_PRECONDITION, "CHILD_AMBIGUOUS") as seen:
            self.agent.send("echo", "1")
        for candidate in (child, second):
            self.assertIn(candidate.id, seen.refusal.metadata["candidates"])
        second.disconnect()
        second.observe(until_closed=True).wait_for_end()
        self.assertEqual(
            bridge.answer(self.agent.stub.GetChild, api.GetChildRequest(name="echo")).child.name, child.name
        )

    def test_signal(self):
        child = self.agent.fork("echo.py")
        observer = child.observe()
        answer = child.signal(signal.SIGKILL)
        observer.wait_for_last("closed")
        signalled = observer.wait_for_last("signalled")
        self.assertEqual(answer.sequence, signalled.sequence)
        self.assertEqual(signalled.signalled.signal, signal.SIGKILL)
        self.assertEqual(signalled.signalled.sender.principal, f"uid:{os.getuid()}")
        self.assertEqual(observer.wait_for_last("exited").exited.status.signal, signal.SIGKILL)
        self.assertLess(observer.kinds.index("signalled"), observer.kinds.index("exited"))
        self.assertEqual(child.get().exit_status.signal, signal.SIGKILL)

    def test_gap_is_exact(self):
        limits = child_pb2.ChildLimits(message_bytes_max=1024, queue_bytes_max=65536, log_bytes_max=73728)
        child = self.agent.fork("flood.py", "5000", limits=limits)
        self.agent.observe(children=[child.id], until_closed=True).wait_for_end()
        observer = child.observe(until_closed=True).wait_for_end()
        self.assertEqual([type(each) for each in observer.shown[:2]], [event_pb2.Gap, event_pb2.Event])
        self.assertEqual(len(observer.gaps), 1)
        gap = observer.gaps[0]
        self.assertEqual(gap.reason, event_pb2.Gap.REASON_LOG_TURNED_OVER)
        self.assertFalse(gap.inexact)
        self.assertEqual(gap.to_child_sequence, observer.events[0].child_sequence - 1)
        self.assertEqual(self.assertWhole(observer, child), child.get().last_child_sequence)
        # started, 5,000 messages, disconnected, exited, closed: missed and shown are all of them.
        self.assertEqual(gap.to_child_sequence + len(observer.events), 5004)

        with self.assertRefused(Code.OUT_OF_RANGE, "CURSOR_EXPIRED") as seen:
            raise child.observe(fail_on_gap=True).wait_for_end().error
        first = event_pb2.Cursor()
        first.CopyFrom(child.cursor)
        first.sequence = int(seen.refusal.metadata["first_sequence"])
        rest = child.observe(after=first, fail_on_gap=True, until_closed=True).wait_for_end()
        self.assertIsNone(rest.error)
        self.assertEqual(rest.events, observer.events)

    def test_attach(self):
        child = self.agent.fork("echo.py")
        requests = queue.Queue()
        call = self.agent.attach(iter(requests.get, None))
        opening = api.AttachRequest.Open(
            child=child.id, observation=api.Observation(start=api.ObserveStart(latest=True)), client=bridge.CLIENT
        )
        requests.put(api.AttachRequest(number=0, open=opening))
        for number in range(1, 4):
            requests.put(api.AttachRequest(number=number, send=api.AttachRequest.Send(json=str(number))))
        requests.put(api.AttachRequest(number=4, send=api.AttachRequest.Send(json="no json")))
        requests.put(api.AttachRequest(number=5, signal=api.AttachRequest.Signal(signal=signal.SIGCONT)))
        requests.put(api.AttachRequest(number=6, disconnect=api.AttachRequest.Disconnect()))
        through = 0
        failed = []
        events = []
        for response in call:
            piece = response.WhichOneof("response")
            if piece == "ack":
                self.assertGreater(response.ack.through, through)
                through = response.ack.through
            elif piece == "failed":
                failed.append(response.failed)
            elif response.observed.WhichOneof("response") == "batch":
                events += response.observed.batch.events
            if through == 6 and events and bridge.kind_of(events[-1]) == "closed":
                break
        requests.put(None)
        self.assertEqual([failure.number for failure in failed], [4])
        self.assertEqual(failed[0].status.code, Code.INVALID_ARGUMENT.value[0])
        self.assertEqual([event.json for event in events if bridge.kind_of(event) == "to_child"], ["1", "2", "3"])
        self.assertEqual([event.json for event in events if bridge.kind_of(event) == "from_child"], ["1", "2", "3"])
        for response in call:
            self.assertEqual(response.observed.WhichOneof("response"), "fin")
            self.assertEqual(response.observed.fin.reason, api.Fin.REASON_HALF_CLOSED)

    def test_a_fork_with_all_options(self):
        spec = dict(
            env={"GREETING": "hello"},
            clear_env=True,
            cwd=self.directory,
            detached=True,
            dialect=bridge.NODE,
            display_name="all-options",
        )
        puppet = bridge.Puppet(self, self.agent, **spec)
        self.assertEqual(puppet.state["environment"]["GREETING"], "hello")
        self.assertNotIn("PYTHONPATH", puppet.state["environment"])
        self.assertEqual(puppet.state["environment"]["NODE_CHANNEL_SERIALIZATION_MODE"], "json")
        self.assertNotIn("DEKA_IPC_FD", puppet.state["environment"])
        self.assertEqual(puppet.state["directory"], self.directory)
        self.assertEqual(puppet.state["session"], puppet.child.pid)
        self.assertEqual(puppet.state["stdin"], "/dev/null")
        self.assertEqual(puppet.child.description.display_name, "all-options")
        self.assertTrue(puppet.child.description.dialect_reason)

    def test_a_time_out_kills(self):
        spec = child_pb2.ChildSpec(program="/bin/sleep", args=["1000"], kill_signal=signal.SIGKILL)
        spec.timeout.FromMilliseconds(20)
        child = self.agent.fork_spec(spec)
        observer = child.observe(until_closed=True).wait_for_end()
        self.assertEqual(observer.wait_for_last("exited").exited.status.signal, signal.SIGKILL)

    def test_a_child_without_a_channel(self):
        child = self.agent.fork("/bin/sh", "-c", "echo out; exit 4", no_channel=True)
        observer = child.observe(until_closed=True).wait_for_end()
        self.assertEqual(observer.kinds, ["started", "output", "exited", "closed"])
        self.assertEqual(observer.events[1].text, "out")
        self.assertEqual(observer.events[2].exited.status.code, 4)
        with self.assertRefused(Code.FAILED_PRECONDITION, "NO_CHANNEL"):
            child.send("1")

    def test_a_fork_is_idempotent_by_request_id(self):
        first = self.agent.fork("echo.py", request_id="fork-1")
        again = self.agent.fork("echo.py", request_id="fork-1")
        self.assertEqual(first.name, again.name)
        with self.assertRefused(Code.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
            self.agent.fork("echo.py", "other", request_id="fork-1")
        self.assertEqual(len(self.agent.list().children), 1)

    def test_a_send_is_idempotent_by_request_id(self):
        child = self.agent.fork("echo.py")
        observer = child.observe()
        first = child.send("1", request_id="a")
        self.assertEqual(child.send("1", request_id="a", repeat=True), first)
        with self.assertRefused(Code.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
            child.send("2", request_id="a")
        with self.assertRefused(Code.UNKNOWN, "OUTCOME_UNKNOWN"):
            child.send("3", request_id="b", repeat=True)
        child.send("4", request_id="c")
        observer.wait_for(lambda: observer.json_from_child()[-1:] == ["4"], "the last echo")
        self.assertEqual(observer.json_from_child(), ["1", "4"])

    def test_disconnect_is_idempotent(self):
        child = self.agent.fork("echo.py")
        observer = child.observe()
        child.disconnect()
        child.disconnect()
        child.disconnect(bridge.NOW)
        observer.wait_for_last("closed")
        self.assertEqual(observer.kinds.count("disconnected"), 1)

    def test_health(self):
        raw = lambda data: data
        for service in (b"", b"deka.bridge.v1.BridgeService"):
            check = self.agent.channel.unary_unary("/grpc.health.v1.Health/Check", raw, raw)
            request = b"\x0a" + bytes([len(service)]) + service if service else b""
            self.assertEqual(check(request, timeout=bridge.DEADLINE_S), SERVING)
        watch = self.agent.channel.unary_stream("/grpc.health.v1.Health/Watch", raw, raw)(b"")
        self.assertEqual(next(watch), SERVING)
        watch.cancel()
        with self.assertRaises(grpc.RpcError) as seen:
            check(b"\x0a\x01x", timeout=bridge.DEADLINE_S)
        self.assertEqual(seen.exception.code(), Code.NOT_FOUND)

    def test_several_connections_see_the_same(self):
        child = self.agent.fork("echo.py")
        stubs = [bridge_service_pb2_grpc.BridgeServiceStub(self.agent.connect()) for _ in range(4)]
        observers = [child.observe(stub=stub, until_closed=True) for stub in stubs]
        for number, stub in enumerate(stubs):
            bridge.answer(stub.SendMessage, api.SendMessageRequest(child=child.name, json=str(number)))
        observers[0].wait_for_count("from_child", len(stubs))
        child.disconnect()
        for observer in observers:
            observer.wait_for_end()
            self.assertEqual(observer.events, observers[0].events)

    def test_the_agent_ends_streams_with_a_cursor(self):
        child = self.agent.fork("echo.py")
        observer = child.observe()
        observer.wait_for_last("started")
        self.assertEqual(self.agent.stop(), 0)
        observer.wait_for_end()
        self.assertEqual(observer.fin.reason, api.Fin.REASON_AGENT_STOPPING)
        self.assertEqual(observer.kinds, ["started", "disconnected", "exited", "closed"])
        self.assertEqual(observer.fin.cursor.sequence, observer.events[-1].sequence)
        self.assertEqual(observer.events[1].disconnected.by, event_pb2.Disconnected.BY_AGENT)
        self.assertFalse(bridge.process_runs(child.pid))
        self.assertFalse(os.path.exists(self.agent.path))


if __name__ == "__main__":
    bridge.main()
