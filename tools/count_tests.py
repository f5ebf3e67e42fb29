"""Counts what passed and failed: count_tests.py EVENTS.json... CHECKS.txt

EVENTS is what `bazel test --build_event_json_file` wrote, CHECKS what tools/check printed. Names what
failed, and closes with the line `N passed, N failed`; ends with 0 if something passed and nothing
failed.
"""

import json
import os
import sys
import urllib.parse
import xml.etree.ElementTree


def cases(path):
    """(name, passed) of each test case of a test.xml that was run."""
    for suite in xml.etree.ElementTree.parse(path).iter("testsuite"):
        for case in suite.findall("testcase"):
            if case.get("status") == "notrun" or case.get("result") == "skipped" or case.find("skipped") is not None:
                continue
            yield case.get("name"), case.find("failure") is None and case.find("error") is None


def results(events_path):
    """(name, passed) of each test case that one invocation of Bazel ran, or could not build."""
    tests, ran = set(), set()
    with open(events_path, encoding="utf-8") as events:
        for event in map(json.loads, events):
            identity = event["id"]
            if "targetConfigured" in identity and event.get("configured", {}).get("testSize"):
                tests.add(identity["targetConfigured"]["label"])
            if "testResult" not in identity:
                continue
            label = identity["testResult"]["label"]
            ran.add(label)
            passed = event["testResult"]["status"] == "PASSED"
            outputs = {output["name"]: output["uri"] for output in event["testResult"]["testActionOutput"]}
            found = []
            if "test.xml" in outputs:
                found = list(cases(urllib.parse.unquote(urllib.parse.urlparse(outputs["test.xml"]).path)))
            if len(found) < 2:
                found = [("", passed)]
            elif not passed and all(case_passed for _, case_passed in found):
                # It failed outside of its cases: at its end, or by a leak.
                found.append(("", False))
            for case, case_passed in found:
                yield f"{label} {case}".strip(), case_passed
    for label in sorted(tests - ran):
        yield f"{label}: not built or not run", False


def checks(path):
    """(name, passed) of each check that tools/check made."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            word, _, name = line.partition(" ")
            if word in ("ok", "FAILED"):
                yield name.strip().partition(":")[0], word == "ok"


def main(paths):
    counts = {True: 0, False: 0}
    for path in paths:
        for name, passed in results(path) if path.endswith(".json") else checks(path):
            counts[passed] += 1
            if not passed:
                print(f"failed: {os.path.basename(path).partition('.')[0]}: {name}")
    print(f"{counts[True]} passed, {counts[False]} failed")
    return 0 if counts[True] and not counts[False] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
