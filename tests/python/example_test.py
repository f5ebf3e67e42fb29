"""The client examples for Python and Node run as their first comment says, from a folder like the repository's root."""

import os
import re
import shutil
import subprocess

import bridge


class ExampleTest(bridge.TestCase):
    def commands_of(self, example):
        """The commands in the first comment of an example: its lines that are indented by four blanks."""
        with open(example, encoding="utf-8") as file:
            text = file.read()
        comment = re.match(r'"""(.*?)"""|((?://[^\n]*\n)+)', text, re.DOTALL)
        lines = [re.sub(r"^// ?", "", line) for line in comment.group(0).splitlines()]
        commands = "\n".join(line[4:] for line in lines if line.startswith("    "))
        self.assertTrue(commands)
        return commands

    def run_example(self, name):
        example = os.path.join("sdk/examples", name)
        root = os.path.join(self.directory, "root")
        os.makedirs(os.path.join(root, "sdk/examples"))
        shutil.copy(example, os.path.join(root, "sdk/examples"))
        shutil.copytree("proto", os.path.join(root, "proto"))
        commands = self.commands_of(example)
        # What npm would install here is installed.
        install = r"npm install @grpc/grpc-js @grpc/proto-loader"
        if install in commands:
            commands = commands.replace(install, "")
            os.symlink(os.path.abspath(os.environ["NODE_MODULES"]), os.path.join(root, "node_modules"))

        agent = self.start_agent()
        self.assertIn("unix:/run/deka/agent.sock", commands)
        commands = commands.replace("unix:/run/deka/agent.sock", agent.target)
        agent.fork(bridge.node(), os.path.abspath("sdk/examples/worker.js"), display_name="worker")
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "NODE_PATH")}
        result = subprocess.run(
            ["/bin/sh", "-e", "-u", "-c", commands],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=bridge.DEADLINE_S,
            check=False,
        )
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout.splitlines()

    def check_conversation(self, lines):
        """Numbered from 1, with the ping, an answer to it, and the end."""
        self.assertEqual([int(line.split()[0]) for line in lines], list(range(1, len(lines) + 1)))
        kinds = [line.split()[1] for line in lines]
        self.assertEqual(kinds[0], "started")
        self.assertLess(kinds.index("to_child"), kinds.index("disconnected"))
        self.assertIn("from_child", kinds)
        self.assertEqual(kinds[-2:], ["exited", "closed"])
        self.assertIn('{"ping":1}', lines[kinds.index("to_child")])

    def test_python(self):
        self.check_conversation(self.run_example("observe.py"))

    def test_node(self):
        self.check_conversation(self.run_example("observe.mjs"))


if __name__ == "__main__":
    bridge.main()
