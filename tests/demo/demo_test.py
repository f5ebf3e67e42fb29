"""`./bazelw run //:demo`, with and without a terminal."""

import os
import pty
import re
import subprocess
import tempfile
import unittest

DEADLINE_S = 50
DEMO = os.path.abspath(os.environ["DEMO"])
COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# Both directions with each child, in this order.
CONVERSATION = [
    ("visitor -> {}", '{"ping":1}'),
    ("{} -> visitor", '{"pong":1}'),
    ("visitor -> {}", '{"echo":"hello"}'),
    ("{} -> visitor", '{"echoed":"hello"}'),
    ("visitor -> {}", '"your turn"'),
    ("{} -> visitor", '{"ping":2}'),
    ("{} -> visitor", '{"echo":["à",2,null]}'),
    ("visitor -> {}", '{"pong":2}'),
    ("visitor -> {}", '{"echoed":["à",2,null]}'),
]


def processes_with(text):
    """The command lines of all processes that hold `text`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text in command:
            found.append(command)
    return found


class DemoTest(unittest.TestCase):
    def setUp(self):
        self.assertTrue(os.path.exists(DEMO), DEMO)

    def check_transcript(self, text):
        for child in ("worker", "native"):
            said = [line.split(None, 3)[3] for line in text.splitlines() if re.match(r"\s*#\d+ ", line)]
            lines = iter(said)
            for who, message in CONVERSATION:
                who = who.format(child)
                self.assertTrue(
                    any(line.startswith(who) and line.endswith(message) for line in lines),
                    f"{who} {message} in this order in:\n{text}",
                )
            for what in ("disconnected by the visitor", "exited with code 0", "closed"):
                self.assertTrue(any(child in line and what in line for line in said), f"{child} {what}:\n{text}")
        numbers = [int(number) for number in re.findall(r"^\s*#(\d+) ", text, re.MULTILINE)]
        self.assertEqual(numbers, list(range(1, len(numbers) + 1)))
        self.assertIn(f"{len(numbers)} events seen, none missed", text)

    def test_in_a_pipe(self):
        run = subprocess.run(
            [DEMO], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        self.assertEqual(run.stderr, "")
        self.assertNotRegex(run.stdout, COLOUR)
        self.check_transcript(run.stdout)
        directory = re.search(r"/tmp/deka-demo-\w+", run.stdout)
        self.assertIsNotNone(directory, run.stdout)
        self.assertFalse(os.path.exists(directory.group()), "it leaves nothing behind")
        self.assertEqual(processes_with(directory.group()), [])

    def test_on_a_terminal_it_is_coloured(self):
        for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
            with self.subTest(environment=environment):
                text = self.run_on_a_terminal({**os.environ, **environment})
                self.assertEqual(bool(COLOUR.search(text)), coloured)
                self.check_transcript(COLOUR.sub("", text).replace("\r\n", "\n"))

    def run_on_a_terminal(self, environment):
        master, terminal = pty.openpty()
        with subprocess.Popen(
            [DEMO], stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True
        ) as demo:
            os.close(terminal)
            chunks = []
            try:
                while chunk := os.read(master, 65536):
                    chunks.append(chunk)
            except OSError:
                pass  # the terminal's last user has closed it
            os.close(master)
            text = b"".join(chunks).decode()
            self.assertEqual(demo.wait(DEADLINE_S), 0, text)
            return text

    def test_a_child_that_cannot_be_started_is_told(self):
        with tempfile.TemporaryDirectory(dir="/tmp") as empty:
            run = subprocess.run(
                [DEMO],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
                check=False,
                env={**os.environ, "PATH": empty},
            )
        self.assertEqual(run.returncode, 1, run.stdout + run.stderr)
        self.assertIn("node", run.stderr)


if __name__ == "__main__":
    unittest.main()
