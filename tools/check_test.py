"""tools/check passes a small tree that keeps every rule, and fails by name where one is broken."""

import os
import shutil
import subprocess
import tempfile
import unittest

RUNFILES = os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"])

# A tree that keeps every rule.
GOOD = {
    ".clang-format": "BasedOnStyle: Google\nColumnLimit: 100\n",
    "BUILD": "",
    "README.md": "# Good\n\nSee [the loop](ipc/loop.h), [below](#one-more-thing), `ipc/loop.h`, `//ipc:loop`.\n"
    "\n```\n[dead](dead.md)\n```\n\n## One more thing\n",
    "agent/agent.h": "// Owns children.\n#ifndef AGENT_AGENT_H_\n#define AGENT_AGENT_H_\n\n"
    '#include "absl/status/status.h"\n#include "deka/bridge/v1/a.pb.h"\n#include "ipc/loop.h"\n\n'
    "#endif  // AGENT_AGENT_H_\n",
    "ipc/BUILD": 'cc_library(\n    name = "loop",\n    hdrs = ["loop.h"],\n)\n',
    "ipc/loop.h": "// Runs.\n#ifndef IPC_LOOP_H_\n#define IPC_LOOP_H_\n\n#include <uv.h>\n\n"
    '#include <string>\n\n#include "spawn/spawn.h"\n\n#endif  // IPC_LOOP_H_\n',
    "ipc/loop_test.cc": '#include "ipc/loop.h"\n\n#include <gtest/gtest.h>\n\n'
    '// Never sleep(1).\nconst char kChild[] = "import time; time.sleep(9); sleep(9)";\n',
    "proto/buf.yaml": None,
    "proto/deka/bridge/v1/a.proto": 'syntax = "proto3";\n\npackage deka.bridge.v1;\n\n'
    "message A {\n  int32 n = 1;\n}\n",
    "server/server.cc": "#include <grpcpp/grpcpp.h>\n\n"
    '#include "agent/agent.h"\n#include "deka/bridge/v1/a.grpc.pb.h"\n',
    "spawn/spawn.h": "// Starts.\n#ifndef SPAWN_SPAWN_H_\n#define SPAWN_SPAWN_H_\n\n"
    "#include <errno.h>\n#include <sys/types.h>\n\n#include <cstddef>\n\n#endif  // SPAWN_SPAWN_H_\n",
    "spawn/spawn_test.cc": '#include "spawn/spawn.h"\n\n#include <gtest/gtest.h>\n\n#include <string>\n',
    "tests/all_test.sh": "#!/bin/sh\nset -eu\necho 'time to sleep'\n",
    "tools/check": None,
}

# What breaks one rule: the check that must fail, a file, what it then holds, what must be said.
BROKEN = [
    ("format", "ipc/a.cc", "int  a;\n", "ipc/a.cc:1"),
    ("build-format", "agent/BUILD", "cc_library(name='agent')\n", "agent/BUILD"),
    ("build-format", "bazel/a.bzl", "A = [1,2]\n", "bazel/a.bzl"),
    ("layers", "ipc/a.cc", '#include "agent/agent.h"\n', "ipc/a.cc:1: ipc/ may not include agent/"),
    ("layers", "ipc/a.cc", '#include "deka/bridge/v1/a.pb.h"\n', "ipc/ may not include proto/"),
    ("layers", "ipc/a.cc", "#include <google/protobuf/message.h>\n", "ipc/a.cc:1"),
    ("layers", "spawn/a.cc", '#include "ipc/loop.h"\n', "spawn/ may not include ipc/"),
    ("layers", "spawn/a.cc", '#include "absl/status/status.h"\n', "spawn/a.cc:1"),
    ("layers", "spawn/a.cc", "#include <string>\n", "<string> is C++'s"),
    ("layers", "keeper/a.cc", "#include <vector>\n", "<vector> is C++'s"),
    ("layers", "agent/a.cc", "#include <uv.h>\n", "<uv.h> may be included in ipc/ only"),
    ("layers", "server/a.cc", "#include <simdjson.h>\n", "<simdjson.h> may be included in ipc/, tests/benchmark/ only"),
    ("layers", "agent/a.cc", "#include <grpcpp/grpcpp.h>\n", "agent/a.cc:1"),
    ("layers", "agent/a.cc", '#include "deka/bridge/v1/a.grpc.pb.h"\n', "gRPC belongs to"),
    ("layers", "agent/a.cc", '#include "server/server.h"\n', "agent/ may not include server/"),
    ("layers", "sdk/cpp/a.cc", '#include "agent/agent.h"\n', "sdk/cpp/ may not include agent/"),
    ("layers", "ipc/a.cc", '#include "../spawn/spawn.h"\n', "not written from the root"),
    ("layers", "elsewhere/a.cc", "int a;\n", "no layer is named"),
    ("headers", "ipc/a.h", "#ifndef IPC_A_H_\n#define IPC_A_H_\n#endif  // IPC_A_H_\n", "without a comment"),
    ("headers", "ipc/a.h", "// A.\n#pragma once\n", "the guard after its comment is not IPC_A_H_"),
    ("headers", "ipc/a.h", "// A.\n#ifndef IPC_A_H_\n#define IPC_A_H_\n#endif\n", "does not end with"),
    ("names", "ipc/a.cc", "class ChildManager {};\n", "ChildManager"),
    ("names", "ipc/a.cc", "struct Helper;\n", "Helper"),
    ("names", "ipc/a.cc", "using namespace std;\n", "using namespace"),
    ("names", "ipc/string_utils.cc", "int a;\n", "ipc/string_utils.cc"),
    ("names", "proto/deka/bridge/v1/b.proto", 'syntax = "proto3";\n\npackage deka.bridge.v1;\n\n'
     "message EventHandler {}\n", "EventHandler"),
    ("sleeps", "ipc/a_test.cc", "void A() { std::this_thread::sleep_for(a); }\n", "ipc/a_test.cc:1"),
    ("sleeps", "ipc/a_test.cc", "void A() { usleep(1); }\n", "ipc/a_test.cc:1"),
    ("sleeps", "tests/a.cc", "void A() { ::sleep(1); }\n", "tests/a.cc:1"),
    ("sleeps", "tests/a.py", "import time\n\ntime.sleep(1)\n", "tests/a.py:3"),
    ("sleeps", "tests/a.sh", "#!/bin/sh\nsleep 1\n", "tests/a.sh:2"),
    ("unfinished", "ipc/a.cc", "// TODO: more\n", "ipc/a.cc:1"),
    ("unfinished", "docs/a.md", "<<<<<<< HEAD\n", "docs/a.md:1"),
    ("shell", "tools/a", "#!/bin/sh\necho $1\n", "tools/a:2"),
    ("protos", "proto/deka/bridge/v1/b.proto", 'syntax = "proto3";\n\npackage deka.bridge.v1;\n\n'
     "message b {}\n", "proto/deka/bridge/v1/b.proto:5"),
    ("documents", "docs/a.md", "[there](there.md)\n", "links to there.md"),
    ("documents", "docs/a.md", "[there](../README.md#nowhere)\n", "no such heading"),
    ("documents", "docs/a.md", "`ipc/gone.h`\n", "names ipc/gone.h"),
    ("documents", "docs/a.md", "Run `tools/gone --now`.\n", "names tools/gone"),
    ("documents", "docs/a.md", "`./bazelw run //:gone`\n", "names //:gone"),
    ("documents", "docs/a.md", "`//agent:agent`\n", "agent has no BUILD"),
]


class CheckTest(unittest.TestCase):
    def setUp(self):
        self.tree = tempfile.mkdtemp(prefix="check_test.", dir="/tmp")
        self.addCleanup(shutil.rmtree, self.tree)
        for name, content in GOOD.items():
            if content is None:
                self.write(name, open(os.path.join(RUNFILES, name), encoding="utf-8").read())
                shutil.copymode(os.path.join(RUNFILES, name), os.path.join(self.tree, name))
            else:
                self.write(name, content)
        self.write(".gitignore", ".cache\nnode_modules\n")
        os.makedirs(os.path.join(self.tree, "tests/npm"))
        os.symlink(
            os.path.realpath(os.path.join(RUNFILES, "../deka_npm/node_modules")),
            os.path.join(self.tree, "tests/npm/node_modules"),
        )
        self.git("init", "-q")
        self.git("add", ".")
        self.git("commit", "-q", "-m", "a")

    def write(self, name, content):
        path = os.path.join(self.tree, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)

    def git(self, *arguments):
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run(["git", *identity, *arguments], cwd=self.tree, check=True)

    def check(self, *names):
        """Runs tools/check: {check: its word}, its exit code, and all it said."""
        done = subprocess.run(
            [os.path.join(self.tree, "tools/check"), *names],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        words = [line.split() for line in done.stdout.splitlines() if line[0] != " "]
        return {word[1].rstrip(":"): word[0] for word in words}, done.returncode, done.stdout

    def test_passes_what_keeps_every_rule(self):
        results, code, output = self.check()
        self.assertEqual(code, 0, output)
        self.assertEqual(results.pop("compatible"), "skipped", output)
        self.assertEqual(set(results.values()), {"ok"}, output)
        # Every check has a tree below that fails it.
        self.assertEqual(set(results), {check for check, _, _, _ in BROKEN})

    def test_each_rule_fails_when_broken(self):
        for check, name, content, said in BROKEN:
            with self.subTest(check=check, said=said):
                self.write(name, content)
                results, code, output = self.check()
                os.remove(os.path.join(self.tree, name))
                self.assertEqual(code, 1, output)
                self.assertEqual(results.pop(check), "FAILED", output)
                self.assertNotIn("FAILED", results.values(), output)
                self.assertIn(said, output)

    def test_protos_stay_compatible_with_the_last_release(self):
        self.git("tag", "v0.9.0")
        proto = "proto/deka/bridge/v1/a.proto"
        self.write(proto, GOOD[proto].replace("int32 n", "string n"))
        _, code, output = self.check("compatible")
        self.assertEqual(code, 1, output)
        self.assertIn('changed type from "int32" to "string"', output)

        # The latest release counts, by its number.
        self.git("commit", "-q", "-a", "-m", "b")
        self.git("tag", "v0.10.0")
        _, code, output = self.check("compatible")
        self.assertEqual(code, 0, output)

    def test_a_missing_tool_is_a_failure_that_says_what_to_do(self):
        os.remove(os.path.join(self.tree, "tests/npm/node_modules"))
        results, code, output = self.check("protos", "names")
        self.assertEqual(code, 1, output)
        self.assertEqual(results, {"protos": "FAILED", "names": "ok"})
        self.assertIn("buf is not installed; run ./bazelw", output)

    def test_an_unknown_check_is_refused_with_those_there_are(self):
        done = subprocess.run([os.path.join(self.tree, "tools/check"), "taste"], stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn("no check taste; there are: format", done.stderr)


if __name__ == "__main__":
    unittest.main()
