"""Children of every kind, observers that come, go and fall behind, and senders that race, all at once; then every promise on
order and loss is checked on what was seen.

The checks read only what a client can see: the events and gaps of each stream, the answers to the senders, and what each child is
known to write. `--test_arg=--seed=N` repeats one run.
"""

import collections
import json
import queue
import random
import sys
import threading

import bridge
from bridge import api, child_pb2, event_pb2
from deka.bridge.v1 import bridge_service_pb2_grpc

SEED = None
# Big enough for everything, and so small that it turns over.
WHOLE = child_pb2.ChildLimits(message_bytes_max=65536, queue_bytes_max=1 << 20, log_bytes_max=16 << 20)
TINY = child_pb2.ChildLimits(message_bytes_max=1024, queue_bytes_max=1 << 20, log_bytes_max=73728)
MESSAGES = 4000


class StormTest(bridge.TestCase):
    def setUp(self):
        super().setUp()
        self.seed = SEED if SEED is not None else random.randrange(1 << 32)
        print(f"seed {self.seed}; repeat it with --test_arg=--seed={self.seed}", file=sys.stderr)
        self.random = random.Random(self.seed)
        self.agent = self.start_agent("limits { log_events_max: 65536 }\n")
        self.failures = queue.Queue()

    def start(self, target, *arguments):
        def run():
            try:
                target(*arguments)
            except BaseException as failure:  # pylint: disable=broad-except
                self.failures.put(failure)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def join(self, threads):
        for thread in threads:
            thread.join(2 * bridge.DEADLINE_S)
            self.assertFalse(thread.is_alive(), "a thread hangs")
        if not self.failures.empty():
            raise self.failures.get()

    def test_storm(self):
        begin = self.agent.list().cursor
        first = self.observe_all(begin)
        children = self.fork_children()
        echoes = [child for child in children if child.role == "echo"]
        sent = []
        senders = [
            self.start(self.send_unary, sent, f"unary-{n}", self.random.choice(echoes), self.random.random())
            for n in range(2)
        ]
        senders += [self.start(self.send_attached, sent, f"attach-{n}", child) for n, child in enumerate(echoes)]
        # These come and go meanwhile.
        visitors = []
        readers = [self.start(self.observe_in_pieces, visitors, begin, self.random.random()) for _ in range(2)]
        lagging = self.observe_all(begin, paused=True)
        self.join(senders)
        for child in echoes:
            child.disconnect()
        for child in children:
            first.wait_for(lambda c=child: self.closed(first, c), f"the end of {child.description.display_name}")
        lagging.may_read.set()
        for child in children:
            lagging.wait_for(lambda c=child: self.closed(lagging, c), f"the end of {child.description.display_name}")
        late = self.observe_all(begin)
        for child in children:
            late.wait_for(lambda c=child: self.closed(late, c), f"the end of {child.description.display_name}")
        self.join(readers)

        histories = [first.shown, lagging.shown, late.shown, *visitors]
        self.check_numbers(histories)
        for history in histories:
            for child in children:
                self.check_child(history, child)
        self.check_sends(late.shown, sent)
        gaps = [each for history in histories for each in history if isinstance(each, event_pb2.Gap)]
        self.assertTrue(gaps, "the logs never turned over: this run has shown nothing about gaps")
        self.assertGreater(len(late.events), 10_000)

    def closed(self, observer, child):
        return any(event.child == child.id for event in observer.of("closed"))

    def observe_all(self, cursor, **fields):
        stub = bridge_service_pb2_grpc.BridgeServiceStub(self.agent.connect())
        return self.agent.observe(stub=stub, after=cursor, **fields)

    def fork_children(self):
        specs = [
            ("flood", "flood.py", [str(MESSAGES)], WHOLE, bridge.DEKA),
            ("flood", "flood.py", [str(MESSAGES)], WHOLE, bridge.NODE),
            ("flood", "flood.py", [str(MESSAGES)], TINY, bridge.DEKA),
            ("flood", "flood.py", [str(MESSAGES)], TINY, bridge.NODE),
            ("echo", "echo.py", [], WHOLE, bridge.DEKA),
            ("echo", "echo.py", [], WHOLE, bridge.NODE),
            ("exit", "last_words.py", ["1000", "exit"], WHOLE, bridge.DEKA),
            ("kill", "last_words.py", ["1000", "kill"], WHOLE, bridge.NODE),
            ("half", "half_write.py", ["1000"], WHOLE, bridge.DEKA),
            ("half", "half_write.py", ["1000"], TINY, bridge.NODE),
        ]
        self.random.shuffle(specs)
        children = []
        for number, (role, program, args, limits, dialect) in enumerate(specs):
            child = self.agent.fork(
                program, *args, limits=limits, dialect=dialect, display_name=f"{role}-{number}", labels={"role": role}
            )
            child.role = role
            child.messages = {"flood": MESSAGES, "exit": 1000, "kill": 1000, "half": 1000}.get(role)
            child.whole = limits is WHOLE
            children.append(child)
        return children

    def send_unary(self, sent, sender, child, seed):
        chance = random.Random(seed)
        stub = bridge_service_pb2_grpc.BridgeServiceStub(self.agent.connect())
        for number in range(300):
            text = json.dumps({"sender": sender, "n": number, "pad": "x" * chance.randrange(200)})
            request_id = f"{sender}/{number}"
            request = api.SendMessageRequest(child=child.name, json=text, request_id=request_id, client=sender)
            answer = bridge.answer(stub.SendMessage, request)
            if chance.random() < 0.1:
                request.repeat = True
                self.assertEqual(bridge.answer(stub.SendMessage, request), answer)
            sent.append((sender, child, text, request_id, answer.sequence))

    def send_attached(self, sent, sender, child):
        stub = bridge_service_pb2_grpc.BridgeServiceStub(self.agent.connect())
        count = 1000

        def requests():
            yield api.AttachRequest(open=api.AttachRequest.Open(child=child.name, client=sender))
            for number in range(count):
                text = json.dumps({"sender": sender, "n": number})
                send = api.AttachRequest.Send(json=text, request_id=f"{sender}/{number}")
                sent.append((sender, child, text, f"{sender}/{number}", None))
                yield api.AttachRequest(number=number + 1, send=send)

        through = 0
        for response in stub.Attach(requests(), timeout=2 * bridge.DEADLINE_S):
            if response.WhichOneof("response") == "ack":
                through = response.ack.through
            else:
                self.assertEqual(response.WhichOneof("response"), "observed", str(response))
        self.assertEqual(through, count)

    def observe_in_pieces(self, visitors, cursor, seed):
        """Observes some events, ends or breaks off, and goes on from the cursor of the last one seen."""
        chance = random.Random(seed)
        shown = []
        last = collections.Counter()
        current = event_pb2.Cursor()
        current.CopyFrom(cursor)
        for _ in range(8):
            stop_after = chance.randrange(1, 1500)
            # It ends by itself where nothing happens any more.
            end = api.Observation()
            end.duration.FromSeconds(2)
            observer = self.observe_all(
                current, events_max=stop_after if chance.random() < 0.5 else 0, duration=end.duration
            )
            observer.wait_for(lambda o=observer, n=stop_after: len(o.shown) >= n or o.ended, "some events")
            if not observer.ended:
                observer.stop()
            elif observer.fin.reason == api.Fin.REASON_EVENTS_MAX:
                self.assertEqual(len(observer.events), stop_after)
            else:
                self.assertEqual(observer.fin.reason, api.Fin.REASON_DURATION)
            for each in list(observer.shown):
                if isinstance(each, event_pb2.Event):
                    current.sequence = each.sequence
                elif each.to_child_sequence <= last[each.child]:
                    # A cursor stands behind events only, so a gap behind the last event is told again.
                    continue
                elif each.from_child_sequence <= last[each.child]:
                    # Unset, which reads as 0, or told in part before.
                    each.from_child_sequence = last[each.child] + 1
                last[each.child] = each.child_sequence if isinstance(each, event_pb2.Event) else each.to_child_sequence
                shown.append(each)
        visitors.append(shown)

    # --- What must hold. ---

    def check_numbers(self, histories):
        """A sequence stands for one event, the same for everybody; each stream shows them in order, each once."""
        events = {}
        for history in histories:
            last = 0
            last_time = 0
            for each in history:
                if isinstance(each, event_pb2.Gap):
                    continue
                self.assertGreater(each.sequence, last)
                last = each.sequence
                time = each.time.ToNanoseconds()
                self.assertGreaterEqual(time, last_time)
                last_time = time
                key = each.SerializeToString(deterministic=True)
                self.assertEqual(events.setdefault(each.sequence, key), key)

    def check_child(self, history, child):
        """Every event of a child is shown or named in a gap, once, in order; its messages are those that it wrote."""
        expected = 1
        kinds = []
        for each in history:
            if each.child != child.id:
                continue
            if isinstance(each, event_pb2.Gap):
                self.assertFalse(each.inexact)
                # Unset where a cursor was resumed: whatever followed the last event seen of this child.
                begin = each.from_child_sequence if each.HasField("from_child_sequence") else expected
                self.assertEqual(begin, expected)
                self.assertGreaterEqual(each.to_child_sequence, begin)
                expected = each.to_child_sequence + 1
                kinds.append("gap")
                continue
            self.assertEqual(each.child_sequence, expected)
            expected += 1
            kind = bridge.kind_of(each)
            kinds.append(kind)
            # Nothing else happens in between, so the place of a message tells its number.
            if kind == "from_child" and child.role in ("flood", "exit", "kill"):
                self.assertEqual(int(each.json), each.child_sequence - 2)
            if kind == "exited":
                self.check_exit(child, each.exited.status)
        if kinds and kinds[0] != "gap":
            self.assertEqual(kinds[0], "started")
        for kind in ("started", "disconnected", "exited", "closed"):
            self.assertLessEqual(kinds.count(kind), 1)
        if "closed" not in kinds:
            return
        self.assertEqual(kinds[-2:], ["exited", "closed"])
        # Visitors may have had gaps of which the end is all they saw; a log that is big enough has none.
        if child.whole:
            self.assertNotIn("gap", kinds)
            if child.messages:
                messages = [
                    int(each.json)
                    for each in history
                    if each.child == child.id and isinstance(each, event_pb2.Event) and bridge.kind_of(each) == "from_child"
                ]
                self.assertEqual(messages, list(range(child.messages)))
            self.assertLess(
                max(index for index, kind in enumerate(kinds) if kind == "from_child"), kinds.index("disconnected")
            )
            self.assertEqual(kinds.count("error"), 1 if child.role == "half" else 0)
            self.assertEqual(kinds.count("output"), 20 if child.role == "half" else 0)

    def check_exit(self, child, status):
        expected = {"flood": 0, "echo": 0, "exit": 7, "half": 4}
        self.assertFalse(status.still_held)
        if child.role == "kill":
            self.assertEqual(status.signal, 9)
        else:
            self.assertEqual((status.WhichOneof("result"), status.code), ("code", expected[child.role]))

    def check_sends(self, history, sent):
        """Each message sent is one event, in the order of its sender, before its echo; the answer had its number."""
        to_child = {}
        echoed = {}
        order = collections.defaultdict(list)
        for each in history:
            if isinstance(each, event_pb2.Gap):
                continue
            if bridge.kind_of(each) == "to_child":
                self.assertNotIn(each.to_child.request_id, to_child)
                to_child[each.to_child.request_id] = each
                order[each.to_child.sender.client].append(each.to_child.request_id)
            elif bridge.kind_of(each) == "from_child" and each.json.startswith("{"):
                message = json.loads(each.json)
                key = f'{message["sender"]}/{message["n"]}'
                self.assertNotIn(key, echoed)
                echoed[key] = each
        asked = collections.defaultdict(list)
        for sender, child, text, request_id, sequence in sent:
            asked[sender].append(request_id)
            event = to_child[request_id]
            self.assertEqual((event.child, event.json), (child.id, text))
            if sequence is not None:
                self.assertEqual(event.sequence, sequence)
            self.assertEqual(echoed[request_id].json, text)
            self.assertGreater(echoed[request_id].sequence, event.sequence)
        self.assertEqual(order, asked)
        self.assertEqual(len(to_child), len(sent))
        self.assertEqual(len(echoed), len(sent))


if __name__ == "__main__":
    for argument in [a for a in sys.argv if a.startswith("--seed=")]:
        SEED = int(argument.partition("=")[2])
        sys.argv.remove(argument)
    bridge.main()
