"""Each promise of docs/guarantees.md is numbered and names tests, and each test that it names is there."""

import re
import unittest

DOCUMENT = "docs/guarantees.md"
CHECKS = "tests/validator/verdict.cc"


def promises():
    """The number of each promise, and its text."""
    with open(DOCUMENT, encoding="utf-8") as file:
        return [
            (int(number), text)
            for number, text in re.findall(
                r"^\*\*(\d+)\. (.*?)(?=^\*\*\d|^## |\Z)", file.read(), re.MULTILINE | re.DOTALL
            )
        ]


def defined(path, name):
    """Whether a source defines the test: Class.test_case in Python, Suite.Case in C++, a title in JavaScript."""
    with open(path, encoding="utf-8") as file:
        source = file.read()
    if path.endswith(".py"):
        group, _, case = name.partition(".")
        body = re.search(rf"^class {group}\(.*?(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL)
        return bool(body and re.search(rf"^    def {case}\(self\):", body[0], re.MULTILINE))
    if path.endswith(".js"):
        return f"test('{name}'," in source
    group, _, case = name.partition(".")
    return bool(re.search(rf"\bTEST(_F|_P)?\(\s*{group}\s*,\s*{case}\s*\)", source))


class GuaranteesTest(unittest.TestCase):
    def test_each_promise_names_tests_that_exist(self):
        self.assertEqual([number for number, _ in promises()], list(range(1, len(promises()) + 1)))
        self.assertTrue(promises())
        for number, text in promises():
            tests = re.findall(r"^- `([^`]+\.\w+)` (.+)$", text, re.MULTILINE)
            self.assertTrue(tests, f"promise {number} names no test")
            for path, name in tests:
                with self.subTest(promise=number):
                    self.assertTrue(defined(path, name), f"{path} has no test {name}")

    def test_each_check_of_the_validator_is_named_by_its_promise(self):
        named = [
            (number, check)
            for number, text in promises()
            for checks in re.findall(r"^- `tests/validator` (.+)$", text, re.MULTILINE)
            for check in checks.split(", ")
        ]
        with open(CHECKS, encoding="utf-8") as file:
            checks = re.findall(r'^    \{(\d+), "([a-z-]+)",', file.read(), re.MULTILINE)
        self.assertTrue(checks)
        self.assertEqual(named, [(int(number), check) for number, check in checks])

    def test_a_test_that_is_missing_is_noticed(self):
        self.assertTrue(defined(__file__, "GuaranteesTest.test_a_test_that_is_missing_is_noticed"))
        self.assertFalse(defined(__file__, "GuaranteesTest.test_another"))
        self.assertFalse(defined(__file__, "OtherTest.test_a_test_that_is_missing_is_noticed"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
