"""The soak and the scale runs in a short form: that they run, and that what they count adds up."""

import json
import os
import subprocess
import unittest

import bridge


def run(program, *arguments):
    return subprocess.run(
        [os.path.abspath(os.environ[program]), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class SoakTest(unittest.TestCase):
    def test_it_ends_with_figures_that_add_up(self):
        done = run("SOAK", "--for", "6s", "--children", "6", "--observers", "4", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stderr, "", "it is quiet where there is no terminal")
        figures = json.loads(done.stdout)
        self.assertGreaterEqual(figures["children"], 6)
        self.assertGreater(figures["messages from children"], 1000)
        self.assertGreater(figures["messages to children"], figures["children"])
        self.assertGreater(figures["events"], figures["messages from children"] + figures["messages to children"])
        self.assertGreaterEqual(figures["other observers"], 4)
        self.assertGreater(figures["events shown to them"], 0)
        self.assertGreaterEqual(figures["agent: peak memory"], figures["agent: memory at end"])
        self.assertEqual(figures["agent: descriptors at end"], figures["agent: descriptors at start"])


class ScaleTest(unittest.TestCase):
    def measure(self, row, seconds="1s"):
        done = run("SCALE", "--short", "--for", seconds, "--row", row, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads(done.stdout)
        self.assertEqual(report["row"], row)
        self.assertGreater(report["figures"]["agent: peak memory"], 1 << 20)
        return report["figures"]

    def test_fan(self):
        figures = self.measure("fan")
        self.assertEqual(figures["children"], 20)
        self.assertEqual(figures["messages sent"], 20 * 5)
        self.assertEqual(figures["events shown, all observers"], (20 * 5 + 20) * 4)
        self.assertEqual(figures["missed"], 0)
        self.assertEqual(figures["delay, written to shown"]["count"], 20 * 5)

    def test_idle(self):
        figures = self.measure("idle")
        self.assertEqual(figures["children, processes that wait"], 50)
        self.assertEqual(figures["delay of one that speaks"]["count"], 50)
        self.assertGreater(figures["agent: memory for each"], 0)

    def test_large(self):
        figures = self.measure("large")
        self.assertGreater(figures["messages of 1 MiB"], 1)
        self.assertEqual(figures["missed"], 0)

    def test_stopped(self):
        figures = self.measure("stopped", "2s")
        self.assertEqual(figures["suspended observer: shown"] + figures["suspended observer: missed"], figures["events"])
        self.assertEqual(figures["suspended observer: resumed"], 0)
        self.assertNotIn("its call ended after", figures)

    def test_stalled(self):
        figures = self.measure("stalled", "1s")
        self.assertEqual(figures["suspended observer: shown"] + figures["suspended observer: missed"], figures["events"])
        self.assertGreaterEqual(figures["suspended observer: resumed"], 1)
        # From the write on that it did not take, which may have begun before.
        self.assertGreater(figures["its call ended after"], 0.5)


if __name__ == "__main__":
    bridge.main()
