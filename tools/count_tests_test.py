"""count_tests counts each case of a GoogleTest by itself and any other test as one."""

import json
import os
import subprocess
import sys
import tempfile
import unittest

COUNT = os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"], "tools/count_tests.py")

GTEST = """<testsuites><testsuite name="A">
  <testcase name="Passes" status="run" result="completed"/>
  <testcase name="PassesToo" status="run" result="completed"/>
  <testcase name="DISABLED_Is" status="notrun" result="suppressed"/>
  <testcase name="Skips" status="run" result="skipped"><skipped message="no"/></testcase>{more}
</testsuite></testsuites>"""
FAILS = '<testcase name="Fails" status="run" result="completed"><failure message="no"/></testcase>'

# What Bazel writes for a test that writes nothing itself.
ONE = '<testsuites><testsuite name="t" tests="1"><testcase name="t" status="run"></testcase></testsuite></testsuites>'
ONE_FAILS = ONE.replace("></testcase>", "><error message='exited with 1'></error></testcase>")


class CountTest(unittest.TestCase):
    def count(self, *tests, checks=""):
        """What is said about tests, each (label, status or None if it was not built, test.xml)."""
        with tempfile.TemporaryDirectory() as folder:
            events = []
            for number, (label, status, xml) in enumerate(tests):
                events.append({"id": {"targetConfigured": {"label": label}}, "configured": {"testSize": "SMALL"}})
                if status is None:
                    continue
                path = os.path.join(folder, f"a test {number}.xml")
                with open(path, "w", encoding="utf-8") as file:
                    file.write(xml)
                output = {"name": "test.xml", "uri": "file://" + path.replace(" ", "%20")}
                result = {"status": status, "testActionOutput": [output]}
                events.append({"id": {"testResult": {"label": label}}, "testResult": result})
            # A target that is no test.
            events.append({"id": {"targetConfigured": {"label": "//:library"}}, "configured": {}})
            with open(os.path.join(folder, "tests.json"), "w", encoding="utf-8") as file:
                file.writelines(json.dumps(event) + "\n" for event in events)
            with open(os.path.join(folder, "check.txt"), "w", encoding="utf-8") as file:
                file.write(checks)
            done = subprocess.run(
                [sys.executable, COUNT, file.name.replace("check.txt", "tests.json"), file.name],
                stdout=subprocess.PIPE, text=True,
            )
        return done.stdout.splitlines(), done.returncode

    def test_cases_of_googletest_count_one_by_one(self):
        self.assertEqual(self.count(("//a:t", "PASSED", GTEST.format(more=""))), (["2 passed, 0 failed"], 0))

    def test_a_case_that_fails_is_named(self):
        said = ["failed: tests: //a:t Fails", "2 passed, 1 failed"]
        self.assertEqual(self.count(("//a:t", "FAILED", GTEST.format(more=FAILS))), (said, 1))

    def test_a_test_that_fails_after_its_cases_has_failed(self):
        said = ["failed: tests: //a:t", "2 passed, 1 failed"]
        self.assertEqual(self.count(("//a:t", "FAILED", GTEST.format(more=""))), (said, 1))

    def test_any_other_test_counts_as_one(self):
        said = ["failed: tests: //a:u", "1 passed, 1 failed"]
        self.assertEqual(self.count(("//a:t", "PASSED", ONE), ("//a:u", "TIMEOUT", ONE_FAILS)), (said, 1))

    def test_a_test_that_was_not_built_has_failed(self):
        said = ["failed: tests: //a:u: not built or not run", "1 passed, 1 failed"]
        self.assertEqual(self.count(("//a:t", "PASSED", ONE), ("//a:u", None, None)), (said, 1))

    def test_each_check_counts(self):
        checks = "ok       format\nFAILED   layers: Arrows\n         a.cc:1: ok\nskipped  compatible: no tag\n"
        said = ["failed: check: layers", "1 passed, 1 failed"]
        self.assertEqual(self.count(checks=checks), (said, 1))

    def test_nothing_is_not_a_success(self):
        self.assertEqual(self.count(), (["0 passed, 0 failed"], 1))


if __name__ == "__main__":
    unittest.main()
