"""README's quick tour, as it stands there, but for building the programs."""

import json
import os
import re
import socket
import subprocess

import bridge

DOCUMENT = "README.md"


class ReadmeTest(bridge.TestCase):
    def tour(self):
        """The commands that start an agent, and those that then use it."""
        with open(DOCUMENT, encoding="utf-8") as file:
            section = re.search(r"^## A quick tour$(.*?)^## ", file.read(), re.MULTILINE | re.DOTALL)[1]
        start, use = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        build, path, agent = start.splitlines()
        self.assertRegex(build, r"^\./bazelw build .*//:deka-agent //:dekactl$")
        self.assertRegex(path, r"^PATH=")
        self.assertRegex(agent, r"^deka-agent & ")
        return use

    def serves(self, path):
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(path) == 0

    def test_quick_tour(self):
        use = self.tour()
        folders = [os.path.dirname(os.path.abspath(os.environ[name])) for name in ("DEKA_AGENT", "DEKACTL")]
        environment = {
            "PATH": ":".join([*folders, os.path.dirname(bridge.node()), "/usr/bin", "/bin"]),
            "HOME": self.directory,
            # The default socket is in there.
            "XDG_RUNTIME_DIR": self.directory,
        }
        agent = subprocess.Popen([os.environ["DEKA_AGENT"]], env=environment, stdin=subprocess.DEVNULL)
        self.addCleanup(agent.wait)
        self.addCleanup(agent.kill)
        path = os.path.join(self.directory, "deka/agent.sock")
        bridge.wait_until(lambda: self.serves(path), "an agent on the default socket")
        result = subprocess.run(
            ["/bin/sh", "-e", "-u", "-c", use],
            stdin=subprocess.DEVNULL,
            env=environment,
            capture_output=True,
            text=True,
            timeout=bridge.DEADLINE_S,
            check=False,
        )
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertRegex(result.stdout, r"^agents/[a-z0-9-]+/children/\w+\n")
        self.assertIn("started", result.stdout)
        self.assertIn('{"ping":1}', result.stdout)
        self.assertIn('{"pong":1}', result.stdout)
        self.assertRegex(result.stdout, r'(?m)^{"pong":2}$')
        self.assertIn("node", result.stderr)
        # The one that was killed has a successor, who knows what was before.
        info = subprocess.run(["dekactl", "info", "--json"], env=environment, capture_output=True, check=True)
        self.assertEqual(json.loads(info.stdout)["incarnation"], 2)
        tail = subprocess.run(
            ["dekactl", "tail", "worker", "--from", "earliest"], env=environment, capture_output=True, text=True, check=True
        )
        self.assertIn('{"pong":1}', tail.stdout)
        self.assertIn('{"pong":3}', tail.stdout)
        agent.terminate()
        self.assertEqual(agent.wait(bridge.DEADLINE_S), 0)
        self.assertFalse(os.path.exists(path))


if __name__ == "__main__":
    bridge.main()
