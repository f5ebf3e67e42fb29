"""bazelw installs what is missing, once, then becomes Bazel; or says what to install.

The system is a folder of small scripts on PATH: what bazelw calls is written to a log, and apt-get
"installs" by adding a script.
"""

import os
import shutil
import subprocess
import tempfile
import unittest

RUNFILES = os.path.join(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"])

PACKAGES = """# A comment with the words: # package command nothing
bazel-bootstrap  command bazel-4
pkg-config       command pkg-config
libuv1-dev       pkg-config libuv
rt               file {system}/lib/*/rt.a
nodejs           command node
npm              command npm
"""

# What bazelw itself needs of any system.
UTILITIES = "cat chmod cmp cp dirname env flock mkdir printf pwd rm sh tail touch tr".split()

SCRIPTS = {
    "bazel-4": 'log "bazel $*"; exit "${BAZEL_EXIT:-0}"',
    "pkg-config": 'echo "$SYSTEM/pc"',
    "node": "echo v18.20.4",
    "npm": 'log "npm $*"; mkdir -p "$3/node_modules"; [ ! -e "$SYSTEM/npm-fails" ] || { echo no registry; exit 1; }',
    "id": "echo 0",
}

APT_GET = """log "apt-get $*"
[ ! -e "$SYSTEM/apt-fails" ] || { echo E: no network; exit 100; }
for package; do
  case $package in
    libuv1-dev) touch "$SYSTEM/pc/libuv.pc" ;;
    rt) mkdir -p "$SYSTEM/lib/x"; touch "$SYSTEM/lib/x/rt.a" ;;
    bazel-bootstrap) cp "$SYSTEM/store/bazel-4" "$SYSTEM/bin/" ;;
    pkg-config | npm) cp "$SYSTEM/store/$package" "$SYSTEM/bin/" ;;
    nodejs) cp "$SYSTEM/store/node" "$SYSTEM/bin/" ;;
  esac
done"""


class BazelwTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="bazelw_test.", dir="/tmp")
        self.addCleanup(shutil.rmtree, self.folder)
        self.system = os.path.join(self.folder, "system")
        self.checkout = os.path.join(self.folder, "a checkout")
        for folder in ("bin", "pc", "store", "lib/x"):
            os.makedirs(os.path.join(self.system, folder))
        for folder in ("bazel", "tests/npm", "ipc"):
            os.makedirs(os.path.join(self.checkout, folder))
        shutil.copy(os.path.join(RUNFILES, "bazelw"), self.checkout)
        self.write("bazel/debian-packages.txt", PACKAGES.format(system=self.system))
        self.write("tests/npm/package-lock.json", "{}")
        for name in UTILITIES:
            os.symlink(shutil.which(name), os.path.join(self.system, "bin", name))
        for name, body in SCRIPTS.items():
            self.script("store/" + name, body)

    def write(self, name, content):
        with open(os.path.join(self.checkout, name), "w", encoding="utf-8") as file:
            file.write(content)

    def script(self, name, body):
        path = os.path.join(self.system, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nSYSTEM={self.system}\nlog() {{ echo "$*" >>"$SYSTEM/log"; }}\n{body}\n')
        os.chmod(path, 0o755)

    def install(self, *names):
        for name in names:
            self.script("bin/" + name, SCRIPTS[name])

    def install_everything(self):
        self.install(*SCRIPTS)
        open(os.path.join(self.system, "pc/libuv.pc"), "w").close()
        open(os.path.join(self.system, "lib/x/rt.a"), "w").close()

    def bazelw(self, *arguments, cwd=None, **environment):
        """Runs bazelw: its exit code, what it said, and what it called since the last time."""
        done = subprocess.run(
            [os.path.join(self.checkout, "bazelw"), *arguments],
            cwd=cwd or self.checkout, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
            env={"PATH": environment.pop("PATH", os.path.join(self.system, "bin")), **environment},
        )
        log = os.path.join(self.system, "log")
        calls = []
        if os.path.exists(log):
            with open(log, encoding="utf-8") as file:
                calls = file.read().splitlines()
            os.remove(log)
        return done.returncode, done.stdout, calls

    def test_where_all_is_there_it_becomes_bazel(self):
        self.install_everything()
        self.bazelw()  # npm ci
        code, said, calls = self.bazelw("--batch", "test", "//...", "--x=a b", BAZEL_EXIT="3")
        self.assertEqual((code, said), (3, ""))
        self.assertEqual(calls, ["bazel --batch test //... --x=a b"])
        self.assertEqual(self.bazelw(), (0, "", ["bazel "]))

    def test_keeps_the_directory_inside_the_checkout_and_leaves_another(self):
        self.install_everything()
        self.bazelw()
        self.script("bin/bazel-4", 'log "$(pwd)"')
        inside = os.path.join(self.checkout, "ipc")
        self.assertEqual(self.bazelw(cwd=inside)[2], [inside])
        self.assertEqual(self.bazelw(cwd="/")[2], [self.checkout])

    def test_installs_what_is_missing_and_only_once(self):
        self.install("id", "pkg-config", "node")
        self.script("bin/apt-get", APT_GET)
        code, said, calls = self.bazelw("build", "//:all")
        self.assertEqual(code, 0, said)
        self.assertEqual(len(calls), 4, calls)
        self.assertRegex(calls[0], r"^apt-get .*-y.* update$")
        self.assertRegex(calls[1], r"^apt-get .*-y.* install .*bazel-bootstrap libuv1-dev rt npm$")
        self.assertRegex(calls[2], r"^npm ci ")
        self.assertEqual(calls[3], "bazel build //:all")
        self.assertEqual(self.bazelw("build"), (0, "", ["bazel build"]))

    def test_without_apt_it_names_what_to_install(self):
        self.install("id", "pkg-config", "bazel-4", "npm")
        code, said, calls = self.bazelw("build")
        self.assertEqual((code, calls), (1, []))
        self.assertIn("no apt-get", said)
        for package, thing in [("libuv1-dev", "library libuv"), ("rt", "/lib/*/rt.a"), ("nodejs", "program node")]:
            self.assertRegex(said, f"(?m)^  {package} .*{thing.replace('*', '[*]')}")
        self.assertNotIn("npm", said)

    def test_without_root_or_sudo_it_says_the_command(self):
        self.install("pkg-config", "bazel-4", "npm", "node")
        self.script("bin/id", "echo 1000")
        self.script("bin/apt-get", APT_GET)
        code, said, calls = self.bazelw("build")
        self.assertEqual((code, calls), (1, []))
        self.assertIn("As root: apt-get install libuv1-dev rt\n", said)

    def test_sudo_is_never_asked_for_a_password_where_nobody_can_type_it(self):
        self.install("pkg-config", "bazel-4", "npm", "node")
        self.script("bin/id", "echo 1000")
        self.script("bin/apt-get", APT_GET)
        self.script("bin/sudo", 'log "sudo $1"; shift; exec "$@"')
        code, said, calls = self.bazelw("build")
        self.assertEqual(code, 0, said)
        self.assertEqual([call for call in calls if call.startswith("sudo")], ["sudo -n", "sudo -n"])

    def test_when_apt_fails_it_shows_why_and_stops(self):
        self.install("id", "pkg-config", "bazel-4", "npm", "node")
        self.script("bin/apt-get", APT_GET)
        open(os.path.join(self.system, "apt-fails"), "w").close()
        code, said, calls = self.bazelw("build")
        self.assertEqual((code, len(calls)), (1, 1))
        self.assertIn("E: no network", said)
        self.assertIn("apt-get install libuv1-dev rt", said)

    def test_what_apt_installed_and_is_still_missing_is_named(self):
        self.install("id", "pkg-config", "bazel-4", "npm", "node")
        self.script("bin/apt-get", "exit 0")
        code, said, calls = self.bazelw("build")
        self.assertEqual((code, calls), (1, []))
        self.assertRegex(said, "still missing.*\n  libuv1-dev .*libuv")

    def test_npm_packages_follow_the_lock_file(self):
        self.install_everything()
        self.assertEqual(len(self.bazelw()[2]), 2)
        self.assertEqual(self.bazelw()[2], ["bazel "])
        self.write("tests/npm/package-lock.json", '{"other": 1}')
        self.assertRegex(self.bazelw()[2][0], "^npm ci")
        self.assertEqual(self.bazelw()[2], ["bazel "])

    def test_without_npm_packages_bazel_runs_all_the_same(self):
        self.install_everything()
        open(os.path.join(self.system, "npm-fails"), "w").close()
        code, said, calls = self.bazelw("build")
        self.assertEqual((code, calls[-1]), (0, "bazel build"))
        self.assertIn("no registry", said)
        self.assertIn("tests that need npm packages will fail", said)
        os.remove(os.path.join(self.system, "npm-fails"))
        self.assertRegex(self.bazelw("build")[2][0], "^npm ci")

    def test_an_old_node_is_named(self):
        self.install_everything()
        self.script("bin/node", "echo v16.20.2")
        code, said, _ = self.bazelw("build")
        self.assertEqual(code, 0)
        self.assertIn("bin/node is Node 16.20.2; the tests need 18 or newer", said)

    def test_tests_find_a_node_that_is_elsewhere(self):
        self.install_everything()
        self.bazelw()
        with open(os.path.join(self.checkout, ".cache/node.bazelrc"), encoding="utf-8") as file:
            self.assertEqual(
                file.read(),
                f"test --test_env=PATH={self.system}/bin:/bin:/usr/bin:/usr/local/bin\n",
            )


if __name__ == "__main__":
    unittest.main()
