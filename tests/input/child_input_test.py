"""What children write that they should not: each is told as an event, and the next message passes."""

import array
import os
import socket
import threading

import bridge
from bridge import event_pb2

BAD_FRAME_BYTES = 64
MESSAGE_BYTES_MAX = 1 << 20
DIALECTS = {"deka": bridge.DEKA, "node": bridge.NODE}


def frame(dialect, value):
    """A value as the child writes it."""
    if isinstance(value, str):
        value = value.encode()
    if dialect == "deka":
        value = b'{"cmd":"NODE_HANDLE","msg":' + value + b"}"
    return value + b"\n"


class ChildInputTest(bridge.TestCase):
    def setUp(self):
        super().setUp()
        self.agent = self.start_agent()

    def puppet(self, dialect):
        puppet = bridge.Puppet(self, self.agent, dialect=DIALECTS[dialect])
        return puppet, puppet.child.observe()

    def check_goes_on(self, dialect, puppet, observer):
        """The next message passes, in both directions."""
        before = len(observer.of("from_child"))
        puppet.write(frame(dialect, '{"next":1}'))
        self.assertEqual(observer.wait_for_count("from_child", before + 1)[-1].json, '{"next":1}')
        puppet.child.send('{"back":2}')
        self.assertEqual(puppet.read_line(), frame(dialect, '{"back":2}'))
        observer.wait_for_last("to_child")
        self.assertEqual(self.assertWhole(observer, puppet.child), len(observer.events))

    def check_bad_line(self, dialect, line, reason, size_bytes=None):
        """Writes a line, and expects this error and nothing else."""
        puppet, observer = self.puppet(dialect)
        # What is too long for the socket's buffer is written meanwhile.
        writer = threading.Thread(target=puppet.write, args=(line + b"\n",))
        writer.start()
        event = observer.wait_for_last("error")
        writer.join()
        self.assertEqual(event.error.reason, reason)
        self.assertTrue(event.error.message)
        self.assertEqual(event.error.size_bytes, len(line) if size_bytes is None else size_bytes)
        self.assertEqual(event.raw, line[:BAD_FRAME_BYTES])
        self.check_goes_on(dialect, puppet, observer)
        self.assertEqual(observer.kinds, ["started", "error", "from_child", "to_child"])
        return event

    def check_bad_value(self, value, reason):
        for dialect in DIALECTS:
            with self.subTest(dialect=dialect):
                self.check_bad_line(dialect, frame(dialect, value)[:-1], reason)

    def check_good_value(self, value):
        """The value passes, its bytes untouched."""
        for dialect in DIALECTS:
            with self.subTest(dialect=dialect):
                puppet, observer = self.puppet(dialect)
                puppet.write(frame(dialect, value))
                event = observer.wait_for_last("from_child")
                self.assertEqual(event.json, value)
                self.assertEqual(event.from_child.size_bytes, len(value.encode()))
                self.check_goes_on(dialect, puppet, observer)
                self.assertEqual(observer.of("error"), [])

    def test_a_line_that_is_not_json(self):
        for line in (b"hello", b"{'a':1}", b'{"a":1', b"nul", b"01", b"1 2", b'"\x01"'):
            for dialect in DIALECTS:
                with self.subTest(line=line, dialect=dialect):
                    self.check_bad_line(dialect, line, "INVALID_JSON")

    def test_a_value_that_is_not_json(self):
        self.check_bad_value(b"tru", "INVALID_JSON")

    def test_the_error_names_the_byte(self):
        event = self.check_bad_line("node", b'{"a":tru}', "INVALID_JSON")
        self.assertRegex(event.error.message, r"\b8\b")

    def test_a_line_without_the_envelope(self):
        for line in (b'{"a":1}', b"[1]", b"1", b'{"cmd":"NODE_HANDLE"}', b'{"cmd":"x","msg":1}', b'{"msg":1}'):
            with self.subTest(line=line):
                self.check_bad_line("deka", line, "ENVELOPE_MISSING")

    def test_invalid_utf_8(self):
        for bad in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\xaf"):
            with self.subTest(bad=bad):
                self.check_bad_value(b'"a' + bad + b'b"', "INVALID_JSON")

    def test_ten_thousand_levels_of_nesting(self):
        self.check_bad_value(b"[" * 10_000 + b"]" * 10_000, "INVALID_JSON")
        self.check_bad_value(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "INVALID_JSON")

    def test_nesting_at_the_limit_and_one_past(self):
        self.check_good_value("[" * 256 + "]" * 256)
        self.check_bad_value(b"[" * 257 + b"]" * 257, "INVALID_JSON")

    def test_a_nul_byte(self):
        self.check_bad_value(b'"a\0b"', "INVALID_JSON")
        self.check_bad_line("node", b"\0", "INVALID_JSON")
        self.check_bad_line("node", b"1\0", "INVALID_JSON")

    def test_an_empty_line(self):
        for dialect in DIALECTS:
            with self.subTest(dialect=dialect):
                self.check_bad_line(dialect, b"", "INVALID_JSON")
                self.check_bad_line(dialect, b" \t ", "INVALID_JSON")

    def test_a_line_break_of_windows(self):
        puppet, observer = self.puppet("node")
        puppet.write(b'{"a":1}\r\n')
        self.assertEqual(observer.wait_for_last("from_child").json, '{"a":1}')
        self.check_goes_on("node", puppet, observer)

    def test_an_endless_line(self):
        """64 MiB without an end: the agent's memory does not grow with it, other children are served, and its end is told."""
        other, other_observer = self.puppet("node")
        puppet, observer = self.puppet("node")
        resident = self.resident_kib()
        block = b"x" * (1 << 20)
        for _ in range(64):
            puppet.write(block)
        self.assertLess(self.resident_kib() - resident, 16 << 10)
        self.check_goes_on("node", other, other_observer)
        puppet.write(b"\n")
        event = observer.wait_for_last("error")
        self.assertEqual(event.error.reason, "MESSAGE_TOO_LARGE")
        self.assertEqual(event.error.size_bytes, 64 << 20)
        self.assertEqual(event.raw, b"x" * BAD_FRAME_BYTES)
        self.check_goes_on("node", puppet, observer)

    def resident_kib(self):
        with open(f"/proc/{self.agent.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

    def test_a_message_at_the_limit_and_one_past(self):
        at_limit = '"' + "x" * (MESSAGE_BYTES_MAX - 2) + '"'
        self.check_good_value(at_limit)
        self.check_bad_value(b'"' + b"x" * (MESSAGE_BYTES_MAX - 1) + b'"', "MESSAGE_TOO_LARGE")

    def test_half_a_line_at_the_end_of_file(self):
        for dialect in DIALECTS:
            with self.subTest(dialect=dialect):
                puppet, observer = self.puppet(dialect)
                half = frame(dialect, '{"whole":false}')[:-3]
                puppet.write(frame(dialect, "1") + half)
                puppet.close_channel()
                observer.wait_for_last("disconnected")
                self.assertEqual(observer.kinds, ["started", "from_child", "error", "disconnected"])
                error = observer.events[2]
                self.assertEqual(error.error.reason, "FRAME_TRUNCATED")
                self.assertEqual(error.error.size_bytes, len(half))
                self.assertEqual(error.raw, half[:BAD_FRAME_BYTES])
                self.assertEqual(observer.events[3].disconnected.by, event_pb2.Disconnected.BY_CHILD)
                puppet.exit(5)
                puppet.close_output()
                observer.wait_for_last("closed")
                self.assertEqual(observer.wait_for_last("exited").exited.status.code, 5)

    def test_a_whole_value_without_its_line_break_at_the_end_of_file(self):
        """No line break, no message: nobody can tell 1 from the beginning of 12."""
        puppet, observer = self.puppet("node")
        puppet.write(b"1")
        puppet.close_channel()
        observer.wait_for_last("disconnected")
        self.assertEqual(observer.kinds, ["started", "error", "disconnected"])

    def test_numbers_and_escapes_that_parsers_refuse(self):
        for value in ("1e20", "123456789012345678901234567890", "1e999", '"\\ud800"', "-0.0", "1E-400", '"\\udc00\\ud800"'):
            with self.subTest(value=value):
                self.check_good_value(value)

    def test_white_space_and_escapes_stay(self):
        for value in ('{ "a" : [ 1 ,2 ] }', '"\\u0041\\/"', '{"a":1,"a":2}', '"\u2028 \U0001f600 \x7f"'):
            with self.subTest(value=value):
                self.check_good_value(value)

    def test_an_envelope_in_another_order(self):
        puppet, observer = self.puppet("deka")
        puppet.write(b' { "msg" : {"a":1} , "later":[2], "\\u0063md" : "NODE_HANDLE" } \n')
        self.assertEqual(observer.wait_for_last("from_child").json, '{"a":1}')
        self.check_goes_on("deka", puppet, observer)

    def test_bad_lines_among_good_ones(self):
        """Of a thousand lines in one write, each bad one is an error in its place."""
        puppet, observer = self.puppet("node")
        lines = [b"nonsense" if n % 3 == 0 else b"%d" % n for n in range(1000)]
        puppet.write(b"".join(line + b"\n" for line in lines))
        puppet.close_channel()
        observer.wait_for_last("disconnected")
        seen = [event.raw or event.json.encode() for event in observer.events[1:-1]]
        self.assertEqual(seen, lines)

    def test_bytes_one_at_a_time(self):
        for dialect in DIALECTS:
            with self.subTest(dialect=dialect):
                puppet, observer = self.puppet(dialect)
                for byte in frame(dialect, '"ü"') + b"bad\n" + frame(dialect, "2"):
                    puppet.write(bytes([byte]))
                observer.wait_for_count("from_child", 2)
                self.assertEqual(observer.json_from_child(), ['"ü"', "2"])
                self.assertEqual(observer.kinds, ["started", "from_child", "error", "from_child"])

    def send_with_handle(self, puppet, data):
        """Writes bytes with one end of a pipe, and gives the other end: at its end of file the agent has closed what it got."""
        ours, theirs = os.pipe()
        puppet.channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs]))])
        os.close(theirs)
        self.addCleanup(os.close, ours)
        return ours

    def check_closed(self, descriptor):
        with open(os.dup(descriptor), "rb") as pipe:
            reader = threading.Thread(target=pipe.read, daemon=True)
            reader.start()
            reader.join(bridge.DEADLINE_S)
            self.assertFalse(reader.is_alive(), "the agent keeps the handle open")

    def test_a_handle_is_refused(self):
        for dialect in DIALECTS:
            with self.subTest(dialect=dialect):
                puppet, observer = self.puppet(dialect)
                handle = self.send_with_handle(puppet, b'{"cmd":"NODE_HANDLE","type":"net.Socket","msg":{"a":1}}\n')
                self.assertEqual(puppet.read_line(), b'{"cmd":"NODE_HANDLE_NACK"}\n')
                error = observer.wait_for_last("error")
                self.assertEqual(error.error.reason, "HANDLE_UNSUPPORTED")
                self.check_closed(handle)
                self.check_goes_on(dialect, puppet, observer)
                self.assertEqual(observer.kinds, ["started", "error", "from_child", "to_child"])

    def test_a_handle_that_nothing_announces_is_closed(self):
        puppet, observer = self.puppet("node")
        handle = self.send_with_handle(puppet, b'{"a":1}\n')
        self.check_closed(handle)
        self.assertEqual(observer.wait_for_last("from_child").json, '{"a":1}')
        self.check_goes_on("node", puppet, observer)

    def test_messages_of_the_runtime_itself_are_marked(self):
        puppet, observer = self.puppet("node")
        puppet.write(b'{"cmd":"NODE_DEBUG_ENABLED"}\n{"cmd":"NODE_"}\n{"cmd":"NODE_HANDLE_ACK"}\n')
        events = observer.wait_for_count("from_child", 3)
        self.assertEqual([event.from_child.internal for event in events], [True, False, True])
        self.check_goes_on("node", puppet, observer)


class OutputTest(bridge.TestCase):
    """stdout and stderr are events, line by line, whatever stands in them."""

    def setUp(self):
        super().setUp()
        self.agent = self.start_agent()
        self.puppet = bridge.Puppet(self, self.agent, no_channel=True)
        self.observer = self.puppet.child.observe()

    def finish(self):
        self.puppet.close_output()
        self.puppet.exit()
        self.observer.wait_for_last("closed")
        return self.observer.of("output")

    def test_lines(self):
        os.write(self.puppet.stdout, b"one\n\ntwo\r\nlast")
        output = self.finish()
        self.assertEqual([event.text for event in output][0::3], ["one", "last"])
        self.assertEqual([event.output.unterminated for event in output], [False, False, False, True])
        self.assertEqual([event.output.size_bytes for event in output][:2], [3, 0])
        for event in output:
            self.assertEqual(event.output.stream, event_pb2.Output.STREAM_STDOUT)

    def test_both_streams(self):
        os.write(self.puppet.stderr, b"to err\n")
        self.observer.wait_for_count("output", 1)
        os.write(self.puppet.stdout, b"to out\n")
        output = self.finish()
        self.assertEqual([event.text for event in output], ["to err", "to out"])
        self.assertEqual(
            [event.output.stream for event in output],
            [event_pb2.Output.STREAM_STDERR, event_pb2.Output.STREAM_STDOUT],
        )

    def test_bytes_that_are_no_utf_8(self):
        os.write(self.puppet.stdout, b"caf\xe9\n\0\n")
        output = self.finish()
        self.assertEqual(output[0].raw, b"caf\xe9")
        self.assertEqual(output[1].text, "\0")

    def test_a_long_line_comes_in_pieces(self):
        line = b"".join(b"%07d " % n for n in range(20_000))
        os.set_blocking(self.puppet.stdout, True)
        written = 0
        while written < len(line):
            written += os.write(self.puppet.stdout, line[written:])
        os.write(self.puppet.stdout, b"\nnext\n")
        output = self.finish()
        self.assertEqual("".join(event.text for event in output[:-1]).encode(), line)
        self.assertEqual([event.output.partial for event in output], [True, True, False, False])
        self.assertEqual([event.output.size_bytes for event in output[:2]], [64 << 10] * 2)
        self.assertEqual(output[-1].text, "next")


if __name__ == "__main__":
    bridge.main()
