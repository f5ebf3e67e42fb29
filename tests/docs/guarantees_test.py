"""Each promise of docs/guarantees.md is numbered and names tests, and each test that it names is there."""

import re
import unittest

DOCUMENT = "docs/guarantees.md"


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
        with open(DOCUMENT, encoding="utf-8") as file:
            promises = re.findall(
                r"^\*\*(\d+)\. (.*?)(?=^\*\*\d|^## |\Z)", file.read(), re.MULTILINE | re.DOTALL
            )
        self.assertEqual([int(number) for number, _ in promises], list(range(1, len(promises) + 1)))
        self.assertGreater(len(promises), 0)
        for number, text in promises:
            tests = re.findall(r"^- `([^`]+)` (.+)$", text, re.MULTILINE)
            self.assertTrue(tests, f"promise {number} names no test")
            for path, name in tests:
                with self.subTest(promise=number):
                    self.assertTrue(defined(path, name), f"{path} has no test {name}")

    def test_a_test_that_is_missing_is_noticed(self):
        self.assertTrue(defined(__file__, "GuaranteesTest.test_a_test_that_is_missing_is_noticed"))
        self.assertFalse(defined(__file__, "GuaranteesTest.test_another"))
        self.assertFalse(defined(__file__, "OtherTest.test_a_test_that_is_missing_is_noticed"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
