"""The benchmark measures what it says: in a short form of each row all that was sent has arrived, on every side.

How fast anything is, no test says.
"""

import json
import os
import re
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree

import bridge

BENCHMARK = os.path.abspath(os.environ["BENCHMARK"])
SVG = "{http://www.w3.org/2000/svg}"
# How many yardsticks stand beside each row.
ROWS = {
    "ping-pong": 1,
    "one-way": 1,
    "stream": 2,
    "round-trip": 1,
    "observers": 1,
    "large": 1,
    "idle": 0,
    "children": 1,
}


def run(*arguments):
    return subprocess.run(
        [BENCHMARK, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


class BenchmarkTest(unittest.TestCase):
    def measure(self, name):
        done = run("--short", "--pairs", "2", "--row", name, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stderr, "", "it is quiet where there is no terminal")
        report = json.loads(done.stdout)
        self.assertEqual(report["pairs"], 2)
        self.assertIn(" x ", report["machine"])
        (row,) = report["rows"]
        self.assertEqual(row["name"], name)
        self.assertEqual(len(row["beside"]), ROWS[name])
        for side in [row, *row["beside"]]:
            self.assertGreater(side["sent"], 0, side)
            self.assertEqual(side["sent"], side["received"], side)
            self.assertGreater(side["value"], 0, side)
        for beside in row["beside"]:
            self.assert_judged(beside, beside["ratio"])
        if not row["beside"]:
            self.assert_judged(row, row["value"])
        return row

    def assert_judged(self, side, value):
        ((kind, limit),) = side["bar"].items()
        self.assertEqual(side["met"], value >= limit if kind == "at_least" else value <= limit, side)

    def test_ping_pong(self):
        self.measure("ping-pong")

    def test_one_way(self):
        self.measure("one-way")

    def test_stream(self):
        self.measure("stream")

    def test_round_trip(self):
        self.measure("round-trip")

    def test_observers(self):
        self.measure("observers")

    def test_large(self):
        self.measure("large")

    def test_idle(self):
        self.measure("idle")

    def test_children(self):
        self.measure("children")

    def test_every_row_has_a_case(self):
        listed = re.findall(r"^  ([a-z-]+)  +\S", run("--help").stdout.partition("The rows:")[2], re.MULTILINE)
        self.assertEqual(listed, list(ROWS))
        for name in ROWS:
            self.assertTrue(hasattr(self, "test_" + name.replace("-", "_")), name)

    def test_the_table(self):
        done = run("--short", "--pairs", "1", "--row", "ping-pong", "--row", "large")
        self.assertEqual(done.returncode, 0, done.stderr)
        machine, empty, *table = done.stdout.splitlines()
        self.assertIn("Linux", machine)
        self.assertEqual(empty, "")
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
        self.assertEqual(cells[0], ["row", "measured", "beside", "", "ratio", "bar", ""])
        self.assertEqual(len({len(line) for line in table}), 1, "the columns are aligned")
        self.assertEqual([line[5] for line in cells[2:]], ["at most 1.10 x", "at least 0.80 x"])
        for line in cells[2:]:
            self.assertIn(line[6], ("met", "missed"))

    def test_the_plot(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "out.svg")
            done = run("--short", "--plot", path)
            self.assertEqual(done.returncode, 0, done.stderr)
            image = xml.etree.ElementTree.parse(path).getroot()
        self.assertEqual(image.tag, SVG + "svg")
        texts = [text.text for text in image.iter(SVG + "text")]
        for text in ("size of a message", "messages a second", "children", "observers", "core", "Node's fork()"):
            self.assertIn(text, texts)
        # Three curves over the size, one over children, one over observers.
        self.assertEqual(len([path for path in image.iter(SVG + "path") if path.get("stroke")]), 5)

    def test_a_row_that_is_none(self):
        done = run("--row", "sideways")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("sideways", done.stderr)


if __name__ == "__main__":
    bridge.main()
