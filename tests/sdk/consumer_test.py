"""A workspace of somebody else builds a client and a child from the SDK alone; both work with an agent."""

import os
import shutil
import subprocess
import unittest

import bridge

# The test's size allows 900 s.
BUILD_S_MAX = 840


class ConsumerTest(bridge.TestCase):
    def setUp(self):
        super().setUp()
        # Bazel follows a workspace to where it really is: the checkout, with all that it depends on.
        self.workspace = os.path.dirname(os.path.realpath("tests/consumer/WORKSPACE"))
        bazel = shutil.which("bazel-4")
        self.assertIsNotNone(bazel, "there is no bazel-4 in PATH; ./bazelw installs it")
        # A server and outputs of its own: it waits for no other Bazel, and none waits for it. It ends by itself
        # if nobody is left to end it.
        self.bazel = [bazel, "--nohome_rc", f"--output_user_root={self.directory}/bazel", "--max_idle_secs=60"]
        self.addCleanup(self.run_bazel, "clean", "--expunge")

    def run_bazel(self, *arguments):
        result = subprocess.run(
            [*self.bazel, *arguments],
            cwd=self.workspace,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_S_MAX,
            check=False,
        )
        self.assertEqual(result.returncode, 0, result.stdout)
        return result.stdout

    def test_client_and_child(self):
        self.run_bazel("build", "//:client", "//:child")
        programs = self.run_bazel("info", "bazel-bin").splitlines()[-1]

        agent = self.start_agent()
        result = subprocess.run(
            [os.path.join(programs, "client"), os.path.join(programs, "child")],
            env={"DEKA_TARGET": agent.target},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=bridge.DEADLINE_S,
            check=False,
        )
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertEqual(result.stdout, 'answered {"hello":"child"}\nexited with code 0\n')


if __name__ == "__main__":
    bridge.main()
