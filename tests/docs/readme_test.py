"""README's quick tour, as it stands there, but for building the programs."""

import os
import re
import subprocess

import bridge

DOCUMENT = "README.md"


class ReadmeTest(bridge.TestCase):
    def tour(self):
        with open(DOCUMENT, encoding="utf-8") as file:
            section = re.search(r"^## A quick tour$.*?^```sh\n(.*?)^```$", file.read(), re.MULTILINE | re.DOTALL)
        commands = section[1].splitlines()
        self.assertRegex(commands[0], r"^\./bazelw build .*//:deka-agent //:dekactl$")
        self.assertRegex(commands[1], r"^PATH=")
        self.assertRegex(commands[3], r"^deka-agent & ")
        return commands[2:]

    def test_quick_tour(self):
        # A command that fails ends it; the agent is stopped as a user does it.
        script = "\n".join(["trap 'kill $!; wait $!' EXIT", *self.tour(), "trap - EXIT; kill $!; wait $!"])
        folders = [os.path.dirname(os.path.abspath(os.environ[name])) for name in ("DEKA_AGENT", "DEKACTL")]
        environment = {
            "PATH": ":".join([*folders, os.path.dirname(bridge.node()), "/usr/bin", "/bin"]),
            "HOME": self.directory,
            # The default socket is in there.
            "XDG_RUNTIME_DIR": self.directory,
        }
        result = subprocess.run(
            ["/bin/bash", "-e", "-u", "-c", script],
            stdin=subprocess.DEVNULL,
            env=environment,
            capture_output=True,
            text=True,
            timeout=2 * bridge.DEADLINE_S,
            check=False,
        )
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertRegex(result.stdout, r"^agents/[a-z0-9-]+/children/\w+\n")
        self.assertIn("started", result.stdout)
        self.assertIn('{"ping":1}', result.stdout)
        self.assertIn('{"pong":1}', result.stdout)
        self.assertIn("node", result.stderr)
        self.assertFalse(os.path.exists(os.path.join(self.directory, "deka/agent.sock")))


if __name__ == "__main__":
    bridge.main()
