"""What clients ask that cannot be: each is refused with its reason, and the next call works."""

import os
import signal
import socket
import subprocess
import threading

import bridge
import grpc
from bridge import Code, api, child_pb2, event_pb2

MESSAGE_BYTES_MAX = 1 << 20


class ClientInputTest(bridge.TestCase):
    def setUp(self):
        super().setUp()
        self.agent = self.start_agent()
        self.checks = 0

    def puppet(self, dialect=bridge.NODE, **fields):
        puppet = bridge.Puppet(self, self.agent, dialect=dialect, **fields)
        return puppet, puppet.child.observe()

    def check_goes_on(self, puppet, observer):
        self.checks += 1
        text = f'"next {self.checks}"'
        puppet.child.send(text)
        self.assertEqual(puppet.read_line().decode(), text + "\n")
        observer.wait_for(lambda: text in [event.json for event in observer.of("to_child")], text)

    def refuse(self, code, reason, call, *arguments, **fields):
        with self.assertRefused(code, reason) as seen:
            call(*arguments, **fields)
        return seen.refusal

    def test_a_pretty_printed_message_is_sent_as_one_line(self):
        puppet, observer = self.puppet()
        puppet.child.send('{\n  "a": [\r\n    1,\n    "b\\n"\n  ]\n}\n')
        line = b'{   "a": [      1,     "b\\n"   ] } \n'
        self.assertEqual(puppet.read_line(), line)
        self.assertEqual(observer.wait_for_last("to_child").json.encode() + b"\n", line)
        self.check_goes_on(puppet, observer)

    def test_numbers_and_escapes_that_parsers_refuse(self):
        puppet, observer = self.puppet()
        values = ["1e20", "123456789012345678901234567890", "1e999", '"\\ud800"', '{"a":1,"a":2}', '"\u2028"']
        for value in values:
            puppet.child.send(value)
            self.assertEqual(puppet.read_line(), value.encode() + b"\n")
        self.assertEqual([event.json for event in observer.wait_for_count("to_child", len(values))], values)

    def test_a_message_that_is_not_json(self):
        puppet, observer = self.puppet()
        for text in ("", " ", "hello", "{", "[1,]", "1 2", "1\n2", '"\x01"', '"a', "[" * 257 + "]" * 257):
            with self.subTest(text=text[:20]):
                refusal = self.refuse(Code.INVALID_ARGUMENT, "INVALID_JSON", puppet.child.send, text)
                self.assertIn("offset", refusal.metadata)
        self.check_goes_on(puppet, observer)
        self.assertEqual(observer.kinds, ["started", "to_child"])

    def test_a_message_at_the_limit_and_one_past(self):
        puppet, observer = self.puppet()
        received = []
        reader = threading.Thread(target=lambda: received.append(puppet.channel.makefile("rb").readline()))
        reader.start()
        at_limit = '"' + "x" * (MESSAGE_BYTES_MAX - 2) + '"'
        puppet.child.send(at_limit)
        reader.join()
        self.assertEqual(received, [at_limit.encode() + b"\n"])
        refusal = self.refuse(
            Code.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE", puppet.child.send, '"' + "x" * (MESSAGE_BYTES_MAX - 1) + '"'
        )
        self.assertEqual(refusal.metadata["limit"], str(MESSAGE_BYTES_MAX))
        self.check_goes_on(puppet, observer)

    def test_a_child_may_have_a_limit_of_its_own(self):
        limits = child_pb2.ChildLimits(message_bytes_max=10, queue_bytes_max=65536, log_bytes_max=73728)
        puppet, observer = self.puppet(limits=limits)
        puppet.child.send("1234567890")
        self.assertEqual(puppet.read_line(), b"1234567890\n")
        refusal = self.refuse(Code.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE", puppet.child.send, "12345678901")
        self.assertEqual(refusal.metadata["limit"], "10")
        self.check_goes_on(puppet, observer)

    def test_a_message_of_node_itself(self):
        puppet, observer = self.puppet()
        for word in ("NODE_HANDLE", "NODE_HANDLE_ACK", "NODE_HANDLE_NACK"):
            self.refuse(Code.INVALID_ARGUMENT, "RESERVED_MESSAGE", puppet.child.send, '{"cmd":"%s"}' % word)
        self.check_goes_on(puppet, observer)

    def test_a_full_queue(self):
        """A child that does not read: its queue fills, the sender is told, and nothing that was accepted is lost."""
        puppet, observer = self.puppet()
        accepted = 0
        with self.assertRefused(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL") as seen:
            while accepted < 1000:
                puppet.child.send(
                    '"%07d%s"' % (accepted, "x" * 65536), answer_when=api.SEND_OUTCOME_ACCEPTED
                )
                accepted += 1
        self.assertGreater(seen.refusal.retry_ms, 0)
        child = puppet.child.get()
        self.assertGreater(child.queued_messages, 0)
        self.assertLessEqual(child.queued_bytes, 4 << 20)
        lines = puppet.channel.makefile("rb")
        for number in range(accepted):
            self.assertEqual(int(lines.readline()[1:8]), number)
        observer.wait_for_count("to_child", accepted)
        self.check_goes_on(puppet, observer)

    def test_a_deadline_takes_a_message_out_of_the_queue(self):
        puppet, observer = self.puppet()
        text = '"' + "x" * 60_000 + '"'
        for _ in range(10):
            puppet.child.send(text, answer_when=api.SEND_OUTCOME_ACCEPTED)
        # More than the socket holds: these wait behind it, and their callers give up.
        late = api.SendMessageRequest(child=puppet.child.name, json='"late"', request_id="late")
        with self.assertRaises(bridge.Refusal) as seen:
            bridge.answer(self.agent.stub.SendMessage, late, timeout=0.2)
        self.assertEqual(seen.exception.code, Code.DEADLINE_EXCEEDED)
        cancelled = api.SendMessageRequest(child=puppet.child.name, json='"cancelled"')
        call = self.agent.stub.SendMessage.future(cancelled)
        bridge.wait_until(lambda: puppet.child.get().queued_bytes > 0, "a message in the queue")
        queued = puppet.child.get().queued_messages
        call.cancel()
        puppet.child.send('"after"', answer_when=api.SEND_OUTCOME_ACCEPTED)
        lines = puppet.channel.makefile("rb")
        self.assertEqual([lines.readline() for _ in range(11)], [text.encode() + b"\n"] * 10 + [b'"after"\n'])
        self.assertGreater(queued, 0)
        observer.wait_for_count("to_child", 11)
        self.assertEqual(observer.kinds, ["started"] + ["to_child"] * 11)
        # It was not sent, so the id is free for sending it now.
        puppet.child.send('"late"', request_id="late")
        self.assertEqual(lines.readline(), b'"late"\n')

    def test_an_unknown_child(self):
        puppet, observer = self.puppet()
        stub = self.agent.stub
        for name in ("nobody", "agents/-/children/nobody"):
            calls = [
                (stub.GetChild, api.GetChildRequest(name=name)),
                (stub.SendMessage, api.SendMessageRequest(child=name, json="1")),
                (stub.Disconnect, api.DisconnectRequest(child=name)),
                (stub.SignalChild, api.SignalChildRequest(child=name, signal=signal.SIGCONT)),
                (
                    stub.ListChildren,
                    api.ListChildrenRequest(parent="agents/-", filter=child_pb2.ChildFilter(children=[name])),
                ),
            ]
            for call, request in calls:
                with self.subTest(request=type(request).__name__, name=name):
                    refusal = self.refuse(Code.NOT_FOUND, "CHILD_NOT_FOUND", bridge.answer, call, request)
                    self.assertIn("nobody", refusal.message)
            self.check_refusal(
                self.agent.observe(children=[name]).wait_for_end().error, Code.NOT_FOUND, "CHILD_NOT_FOUND"
            )
        self.check_goes_on(puppet, observer)

    def test_a_name_that_cannot_be_one(self):
        puppet, observer = self.puppet()
        for name in ("", "agents/-/children/-", "agents/-", "children/x", "agents//children/x", "a/b", "x" * 64, "-a", "ä", "a b"):
            with self.subTest(name=name):
                self.refuse(Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", self.agent.send, name, "1")
        self.refuse(
            Code.NOT_FOUND, "CHILD_NOT_FOUND", self.agent.send, f"agents/other-agent/children/{puppet.child.id}", "1"
        )
        self.check_goes_on(puppet, observer)

    def test_a_child_that_has_exited(self):
        child = self.agent.fork("/bin/true")
        child.observe(until_closed=True).wait_for_end()
        self.refuse(Code.FAILED_PRECONDITION, "CHILD_EXITED", child.send, "1")
        self.refuse(Code.FAILED_PRECONDITION, "CHILD_EXITED", child.signal, signal.SIGCONT)
        child.disconnect()
        self.assertEqual(child.get().state, child_pb2.Child.STATE_CLOSED)

    def test_a_child_that_has_closed_its_channel(self):
        puppet, observer = self.puppet()
        puppet.close_channel()
        observer.wait_for_last("disconnected")
        self.refuse(Code.FAILED_PRECONDITION, "CHANNEL_CLOSED", puppet.child.send, "1")
        self.assertEqual(puppet.child.get().state, child_pb2.Child.STATE_DISCONNECTED)
        puppet.child.signal(signal.SIGTERM)
        puppet.close_output()
        observer.wait_for_last("closed")

    def test_cursors(self):
        puppet, observer = self.puppet()
        observer.wait_for_last("started")
        attached = observer.attached
        other_epoch = event_pb2.Cursor(agent=attached.agent, epoch=attached.epoch + 1, sequence=1)
        strict = self.agent.observe(after=other_epoch, fail_on_gap=True).wait_for_end()
        self.check_refusal(strict.error, Code.OUT_OF_RANGE, "CURSOR_OTHER_EPOCH")

        lenient = self.agent.observe(after=other_epoch)
        lenient.wait_for_last("started")
        self.assertIsInstance(lenient.shown[0], event_pb2.Gap)
        self.assertEqual(lenient.gaps[0].reason, event_pb2.Gap.REASON_OTHER_EPOCH)
        self.assertTrue(lenient.gaps[0].inexact)
        self.assertEqual(len(lenient.gaps), 1)

        for sequence in (attached.head + 1000, -1):
            beyond = event_pb2.Cursor(agent=attached.agent, epoch=attached.epoch, sequence=sequence)
            refused = self.agent.observe(after=beyond).wait_for_end()
            self.check_refusal(refused.error, Code.INVALID_ARGUMENT, "INVALID_ARGUMENT")
        self.check_goes_on(puppet, observer)

    def test_page_tokens(self):
        for _ in range(3):
            self.agent.fork("echo.py", labels={"a": "b"})
        token = self.agent.list(page_size=1).next_page_token
        self.assertTrue(token)
        other = child_pb2.ChildFilter(labels={"a": "b"})
        for fields in (
            dict(page_token=token, filter=other),
            dict(page_token="rubbish"),
            dict(page_token=token + "x"),
            dict(page_token="x" * 10_000),
        ):
            with self.subTest(fields=str(fields)[:60]):
                self.refuse(Code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID", self.agent.list, **fields)
        self.assertEqual(len(self.agent.list(page_size=1, page_token=token).children), 1)

    def test_programs_that_cannot_be_started(self):
        not_executable = os.path.join(self.directory, "plain")
        with open(not_executable, "w", encoding="ascii") as file:
            file.write("hello\n")
        no_interpreter = os.path.join(self.directory, "script")
        with open(no_interpreter, "w", encoding="ascii") as file:
            file.write("#!/no/such/interpreter\n")
        os.chmod(no_interpreter, 0o755)
        no_format = os.path.join(self.directory, "data")
        with open(no_format, "wb") as file:
            file.write(b"\x01\x02\x03\x04")
        os.chmod(no_format, 0o755)
        for program, code, reason in (
            ("/no/such/program", Code.NOT_FOUND, "PROGRAM_NOT_FOUND"),
            ("no-such-program", Code.NOT_FOUND, "PROGRAM_NOT_FOUND"),
            (no_interpreter, Code.NOT_FOUND, "PROGRAM_NOT_FOUND"),
            (not_executable, Code.PERMISSION_DENIED, "PROGRAM_NOT_EXECUTABLE"),
            (self.directory, Code.PERMISSION_DENIED, "PROGRAM_NOT_EXECUTABLE"),
            (no_format, Code.PERMISSION_DENIED, "PROGRAM_NOT_EXECUTABLE"),
        ):
            with self.subTest(program=program):
                refusal = self.refuse(code, reason, self.agent.fork, program)
                self.assertIn(program, refusal.message)
        refusal = self.refuse(Code.NOT_FOUND, "PROGRAM_NOT_FOUND", self.agent.fork, "/bin/true", cwd="/no/such/folder")
        self.assertIn("/no/such/folder", refusal.message)
        self.assertEqual(list(self.agent.list().children), [])
        self.agent.fork("/bin/true").observe(until_closed=True).wait_for_end()

    def test_forks_that_cannot_be(self):
        for fields in (
            dict(program=""),
            dict(program="a\0b"),
            dict(args=["a\0b"]),
            dict(env={"": "x"}),
            dict(env={"A=B": "x"}),
            dict(env={"A": "x\0"}),
            dict(cwd="a\0b"),
            dict(display_name="x" * 64),
            dict(display_name="-x"),
            dict(display_name="a b"),
            dict(display_name="a/b"),
            dict(labels={str(n): "" for n in range(65)}),
            dict(labels={"x" * 64: ""}),
            dict(labels={"x": "y" * 64}),
            dict(labels={"": "y"}),
            dict(dialect=17),
            dict(kill_signal=65),
            dict(kill_signal=-1),
            dict(args=["x" * (1 << 20)]),
            dict(limits=child_pb2.ChildLimits(message_bytes_max=(64 << 20) + 1)),
            dict(limits=child_pb2.ChildLimits(message_bytes_max=-1)),
            dict(limits=child_pb2.ChildLimits(message_bytes_max=1 << 20, queue_bytes_max=1000)),
            dict(limits=child_pb2.ChildLimits(message_bytes_max=1 << 20, log_bytes_max=1000)),
            dict(request_id="x" * 65),
        ):
            with self.subTest(fields=str(fields)[:60]):
                request_id = fields.pop("request_id", "")
                spec = child_pb2.ChildSpec(**{"program": "/bin/true", **fields})
                self.refuse(Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", self.agent.fork_spec, spec, request_id)
        for field, value in (("timeout", -1), ("timeout", 400 * 365 * 86400 * 1000)):
            spec = child_pb2.ChildSpec(program="/bin/true")
            getattr(spec, field).FromSeconds(value)
            self.refuse(Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", self.agent.fork_spec, spec)
        self.assertEqual(list(self.agent.list().children), [])

    def test_names_and_labels_at_their_limits(self):
        child = self.agent.fork(
            "/bin/true",
            display_name="x" * 63,
            labels={f"{n:063}": "y" * 63 for n in range(64)},
            request_id="x" * 64,
        )
        self.assertEqual(len(child.get().labels), 64)
        child.observe(until_closed=True).wait_for_end()

    def test_observations_that_cannot_be(self):
        def seconds(n):
            observation = api.Observation()
            observation.duration.FromSeconds(n)
            return observation.duration

        for fields in (
            dict(last=0),
            dict(last=-1),
            dict(events_max=-1),
            dict(duration=seconds(-1)),
            dict(heartbeat_interval=seconds(0)),
            dict(heartbeat_interval=seconds(61)),
            dict(response_bytes_max=65535),
            dict(response_bytes_max=-1),
            dict(kinds=[99]),
            dict(kinds=[event_pb2.EVENT_KIND_UNSPECIFIED]),
            dict(direction=9),
            dict(until_closed=True),
        ):
            with self.subTest(fields=str(fields)[:60]):
                observer = self.agent.observe(**fields).wait_for_end()
                self.assertIsNotNone(observer.error)
                self.check_refusal(observer.error, Code.INVALID_ARGUMENT, "INVALID_ARGUMENT")

    def test_calls_that_cannot_be(self):
        puppet, observer = self.puppet()
        name = puppet.child.name
        stub = self.agent.stub
        for call, request in (
            (stub.SignalChild, api.SignalChildRequest(child=name, signal=0)),
            (stub.SignalChild, api.SignalChildRequest(child=name, signal=65)),
            (stub.SignalChild, api.SignalChildRequest(child=name, signal=-9)),
            (stub.Disconnect, api.DisconnectRequest(child=name, mode=9)),
            (stub.SendMessage, api.SendMessageRequest(child=name, json="1", answer_when=9)),
            (stub.SendMessage, api.SendMessageRequest(child=name, json="1", request_id="x" * 65)),
            (stub.SendMessage, api.SendMessageRequest(child=name, json="1", client="x" * 64)),
            (stub.SendMessage, api.SendMessageRequest(child=name, json="1", repeat=True)),
            (stub.ListChildren, api.ListChildrenRequest(parent="agents/-", page_size=-1)),
            (stub.ListChildren, api.ListChildrenRequest(parent="agents/-", page_size=1001)),
            (stub.ListChildren, api.ListChildrenRequest(parent="rubbish")),
            (stub.GetAgent, api.GetAgentRequest()),
            (stub.GetAgent, api.GetAgentRequest(name="agents/-/children/" + puppet.child.id)),
            (stub.GetAgent, api.GetAgentRequest(name="agents/\x1b[2J")),
            (stub.GetAgent, api.GetAgentRequest(name="agents/" + "x" * 64)),
            (stub.ForkChild, api.ForkChildRequest(parent="", spec=child_pb2.ChildSpec(program="/bin/true"))),
        ):
            with self.subTest(request=str(request)[:60]):
                self.refuse(Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", bridge.answer, call, request)
        self.check_goes_on(puppet, observer)

    def test_attach_that_cannot_be(self):
        puppet, observer = self.puppet()
        opening = api.AttachRequest.Open(child=puppet.child.id)
        send = api.AttachRequest.Send(json="1")
        for requests in (
            [],
            [api.AttachRequest(number=1, send=send)],
            [api.AttachRequest(number=0)],
            [api.AttachRequest(number=0, open=opening), api.AttachRequest(number=2, send=send)],
            [api.AttachRequest(number=0, open=opening), api.AttachRequest(number=1, open=opening)],
            [api.AttachRequest(number=0, open=opening), api.AttachRequest(number=1)],
        ):
            with self.subTest(requests=str(requests)[:80]):
                self.refuse(
                    Code.INVALID_ARGUMENT,
                    "INVALID_ARGUMENT",
                    bridge.answer,
                    lambda **fields: list(self.agent.stub.Attach(iter(requests), **fields)),
                )
        self.check_goes_on(puppet, observer)

    def test_requests_that_are_no_protobuf(self):
        raw = lambda data: data
        puppet, observer = self.puppet()
        for method in ("SendMessage", "ForkChild", "GetChild", "ListChildren"):
            call = self.agent.channel.unary_unary(f"/deka.bridge.v1.BridgeService/{method}", raw, raw)
            with self.assertRaises(grpc.RpcError) as seen:
                call(b"\xff\xff\xff", timeout=bridge.DEADLINE_S)
            self.assertNotEqual(seen.exception.code(), Code.OK)
            self.assertNotEqual(seen.exception.code(), Code.DEADLINE_EXCEEDED)
        observe = self.agent.channel.unary_stream("/deka.bridge.v1.BridgeService/Observe", raw, raw)
        with self.assertRaises(grpc.RpcError):
            list(observe(b"\xff\xff\xff", timeout=bridge.DEADLINE_S))
        attach = self.agent.channel.stream_stream("/deka.bridge.v1.BridgeService/Attach", raw, raw)
        with self.assertRaises(grpc.RpcError):
            list(attach(iter([b"\xff\xff\xff"]), timeout=bridge.DEADLINE_S))
        with self.assertRaises(grpc.RpcError) as seen:
            call = self.agent.channel.unary_unary("/deka.bridge.v1.BridgeService/NoSuchMethod", raw, raw)
            call(b"", timeout=bridge.DEADLINE_S)
        self.assertEqual(seen.exception.code(), Code.UNIMPLEMENTED)
        self.check_goes_on(puppet, observer)

    def test_a_message_that_is_no_utf_8(self):
        """A string of protobuf is UTF-8, but a client in another language may not check it."""
        raw = lambda data: data
        puppet, observer = self.puppet()
        call = self.agent.channel.unary_unary("/deka.bridge.v1.BridgeService/SendMessage", raw, raw)
        request = api.SendMessageRequest(child=puppet.child.id).SerializeToString() + b'\x12\x03"\xff"'
        with self.assertRaises(grpc.RpcError) as seen:
            call(request, timeout=bridge.DEADLINE_S)
        self.assertIn(seen.exception.code(), (Code.INVALID_ARGUMENT, Code.INTERNAL))
        self.check_goes_on(puppet, observer)
        self.assertEqual(observer.kinds, ["started", "to_child"])

    def test_rubbish_on_the_socket(self):
        puppet, observer = self.puppet()
        for data in (
            b"",
            b"\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096,
            bytes(range(256)) * 256,
        ):
            for wait in (False, True):
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(bridge.DEADLINE_S)
                    connection.connect(self.agent.path)
                    try:
                        connection.sendall(data)
                        if wait:
                            connection.shutdown(socket.SHUT_WR)
                            while connection.recv(65536):
                                pass
                    except (BrokenPipeError, ConnectionResetError):
                        pass
            self.check_goes_on(puppet, observer)


class ConfigurationTest(bridge.TestCase):
    def start(self, *arguments):
        return subprocess.run(
            [os.path.abspath(os.environ["DEKA_AGENT"]), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=bridge.DEADLINE_S,
            check=False,
        )

    def test_a_broken_configuration_is_refused_with_file_line_and_field(self):
        path = os.path.join(self.directory, "agent.textproto")
        listen = "unix:" + os.path.join(self.directory, "agent.sock")
        for text, line, word in (
            ('agent_id: "a"\nlisten: "unix:/x"\nno_such_field: 1\n', 3, "no_such_field"),
            ('children {\n  display_name: "a"\n  program: 5\n}\n', 3, "program"),
            ('children {\n  program: "/bin/true"\n', 3, ""),
        ):
            with self.subTest(text=text):
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text)
                result = self.start("--listen", listen, "--config", path)
                self.assertNotEqual(result.returncode, 0)
                self.assertIn(f"{path}:{line}", result.stderr)
                self.assertIn(word, result.stderr)
        for text, word in (
            ('agent_id: "Not An Id"\n', "agent_id"),
            ("limits { child { message_bytes_max: 1000 queue_bytes_max: 10 } }\n", "queue_bytes_max"),
        ):
            with self.subTest(text=text):
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text)
                result = self.start("--listen", listen, "--config", path)
                self.assertNotEqual(result.returncode, 0)
                self.assertIn(path, result.stderr)
                self.assertIn(word, result.stderr)
        missing = self.start("--listen", listen, "--config", path + ".missing")
        self.assertNotEqual(missing.returncode, 0)
        self.assertIn(path + ".missing", missing.stderr)

    def test_children_of_the_configuration(self):
        agent = self.start_agent(
            'children { display_name: "echo" program: "/usr/bin/python3" args: "%s" labels { key: "a" value: "b" } }\n'
            % bridge.testcase("echo.py")
        )
        listed = agent.list().children
        self.assertEqual([child.display_name for child in listed], ["echo"])
        agent.pids.append(listed[0].pid)
        observer = agent.observe(children=["echo"], earliest=True)
        agent.send("echo", '"hello"')
        self.assertEqual(observer.wait_for_last("from_child").json, '"hello"')

    def test_listeners_that_cannot_be(self):
        for listen in ("tcp:0.0.0.0:50051", "0.0.0.0:50051", "unix-abstract:deka", "unix:", "/tmp/x.sock"):
            with self.subTest(listen=listen):
                result = self.start("--listen", listen)
                self.assertNotEqual(result.returncode, 0)
                self.assertIn("unix:", result.stderr)
        result = self.start("--listen", "unix:" + "/x" * 54)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("107", result.stderr)

    def test_a_second_agent_on_the_same_socket(self):
        agent = self.start_agent()
        second = self.start("--listen", agent.target)
        self.assertNotEqual(second.returncode, 0)
        self.assertIn(agent.path, second.stderr)
        agent.fork("/bin/true").observe(until_closed=True).wait_for_end()

    def test_a_stale_socket_is_taken_over(self):
        path = os.path.join(self.directory, "agent.sock")
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(path)
        agent = self.start_agent()
        agent.fork("/bin/true").observe(until_closed=True).wait_for_end()


if __name__ == "__main__":
    bridge.main()
