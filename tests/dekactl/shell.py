"""Runs dekactl as a shell does, and looks at what it said and how it ended."""

import contextlib
import os
import select
import subprocess
import time

DEKACTL = os.path.abspath(os.environ["DEKACTL"])
DEADLINE_S = 30
COMPLETE, ERROR, USAGE, NO_SUCH_CHILD, MISSED, TIMED_OUT, CHILD_ENDED = range(7)


class Ended:
    def __init__(self, process, stdout, stderr):
        self.code = process.returncode
        self.stdout = stdout
        self.stderr = stderr
        self.lines = stdout.splitlines()
        self.errors = stderr.splitlines()

    def __repr__(self):
        return f"exit code {self.code}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


class Shell:
    """For a TestCase: dekactl with `self.environment`, its agent at `target` unless told otherwise."""

    def open_shell(self, target):
        self.environment = {
            "PATH": os.path.dirname(DEKACTL) + ":/usr/bin:/bin",
            "DEKA_TARGET": target,
            "TERM": "xterm",
            "TZ": "UTC",
        }

    def start(self, *arguments, **keywords):
        keywords.setdefault("stdin", subprocess.DEVNULL)
        keywords.setdefault("stdout", subprocess.PIPE)
        keywords.setdefault("stderr", subprocess.PIPE)
        process = subprocess.Popen([DEKACTL, *arguments], env=self.environment, text=True, **keywords)
        self.addCleanup(self.reap, process)
        return process

    def reap(self, process):
        """Kills it if it still runs, and closes what leads to it."""
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def finish(self, process, text=None):
        stdout, stderr = process.communicate(text, timeout=DEADLINE_S)
        return Ended(process, stdout or "", stderr or "")

    def run_it(self, *arguments, code=COMPLETE, text=None, **keywords):
        if text is not None:
            keywords["stdin"] = subprocess.PIPE
        ended = self.finish(self.start(*arguments, **keywords), text)
        self.assertEqual(ended.code, code, ended)
        return ended

    def run_in_sh(self, command, code=COMPLETE):
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.addCleanup(self.reap, process)
        ended = self.finish(process)
        self.assertEqual(ended.code, code, ended)
        return ended

    def wait_until(self, condition, what):
        """For what nobody tells."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            self.assertLess(time.monotonic(), end, what)
            select.select([], [], [], 0.005)

    def assertOneError(self, ended, *words):
        """The error is one line that holds these words."""
        self.assertEqual(len(ended.errors), 1, ended)
        self.assertTrue(ended.errors[0].startswith("dekactl: "), ended)
        for word in words:
            self.assertIn(word, ended.errors[0])
