#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "ipc/dialect.h"

namespace deka::ipc {
namespace {

namespace fs = std::filesystem;

// A directory of its own with programs that nobody runs.
class ChooseDialectTest : public testing::Test {
 protected:
  ChooseDialectTest() {
    std::string name = "/tmp/deka_dialect.XXXXXX";
    root_ = mkdtemp(name.data());
    root_ = fs::canonical(root_);
    for (const char* directory : {"bin", "other", "work"}) fs::create_directory(root_ / directory);
  }
  ~ChooseDialectTest() override { fs::remove_all(root_); }

  // Writes an executable file and answers its path.
  std::string Program(const std::string& name, const std::string& content =
                                                   "\x7f"
                                                   "ELF") {
    const fs::path path = root_ / name;
    std::ofstream(path, std::ios::binary) << content;
    EXPECT_EQ(chmod(path.c_str(), 0755), 0);
    return path.string();
  }

  std::string Path(const std::string& name) const { return (root_ / name).string(); }

  DialectChoice Choose(const std::string& program) {
    return ChooseDialect(program, Path("bin") + ":" + Path("other"), Path("work"));
  }

  void Expect(const std::string& program, Dialect dialect, const std::string& reason) {
    const DialectChoice choice = Choose(program);
    EXPECT_EQ(choice.dialect, dialect) << choice.reason;
    EXPECT_EQ(choice.reason, reason);
  }

  fs::path root_;
};

TEST_F(ChooseDialectTest, TheFourRuntimesExpectNode) {
  for (const char* name : {"node", "nodejs", "bun", "deno"}) {
    const std::string path = Program(std::string("bin/") + name);
    Expect(name, Dialect::kNode, path + " is " + name);
    Expect(path, Dialect::kNode, path + " is " + name);
  }
}

TEST_F(ChooseDialectTest, AnyOtherProgramExpectsDeka) {
  for (const char* name : {"python3", "node2", "mynode", "Node", "node.exe", "denode"}) {
    const std::string path = Program(std::string("bin/") + name);
    Expect(name, Dialect::kDeka, path + " is not node, nodejs, bun or deno");
  }
}

TEST_F(ChooseDialectTest, PathIsSearchedAsExecDoes) {
  const std::string second = Program("other/node");
  fs::create_directory(root_ / "bin/node");
  Expect("node", Dialect::kNode, second + " is node");  // a directory is passed over
  fs::remove(root_ / "bin/node");
  std::ofstream(root_ / "bin/node") << "not executable";
  if (geteuid() != 0) Expect("node", Dialect::kNode, second + " is node");
  ASSERT_EQ(chmod(Path("bin/node").c_str(), 0644), 0);
  Expect("node", Dialect::kNode, second + " is node");
  const std::string first = Program("bin/node");
  Expect("node", Dialect::kNode, first + " is node");
}

TEST_F(ChooseDialectTest, AnEmptyPieceOfPathIsTheWorkingDirectory) {
  const std::string path = Program("work/node");
  for (const char* search : {"", ":/nowhere", "/nowhere:", "/nowhere::/nowhere"}) {
    EXPECT_EQ(ChooseDialect("node", search, Path("work")).dialect, Dialect::kNode) << search;
  }
  EXPECT_EQ(ChooseDialect("node", "/nowhere", Path("work")).dialect, Dialect::kDeka);
}

TEST_F(ChooseDialectTest, ANameWithASlashStartsAtTheWorkingDirectory) {
  Program("bin/node");
  const std::string path = Program("work/node");
  Expect("./node", Dialect::kNode, Path("work") + "/./node is node");
  Expect("../bin/node", Dialect::kNode, Path("work") + "/../bin/node is node");
  Expect("./nodejs", Dialect::kDeka, "./nodejs is not found");
}

TEST_F(ChooseDialectTest, SymbolicLinksAreFollowed) {
  const std::string node = Program("other/node");
  fs::create_symlink("../other/node", root_ / "bin/js");
  fs::create_symlink("js", root_ / "bin/js2");
  Expect("js2", Dialect::kNode, Path("bin/js2") + " leads to " + node + ", which is node");
  // A link that is called node, to a program that starts the right version of it.
  Program("other/shim");
  fs::create_symlink(Path("other/shim"), root_ / "bin/nodejs");
  Expect("nodejs", Dialect::kNode, Path("bin/nodejs") + " is nodejs");
}

TEST_F(ChooseDialectTest, InterpretersOfScriptsAreFollowed) {
  const std::string node = Program("bin/node");
  const std::string end = " is run by " + node + ", which is node";
  Expect(Program("work/a.js", "#!" + node + "\n"), Dialect::kNode, Path("work/a.js") + end);
  Expect(Program("work/b.js", "#! \t" + node + " --flag x\n"), Dialect::kNode,
         Path("work/b.js") + end);
  Expect(Program("work/c.js", "#!" + node), Dialect::kNode, Path("work/c.js") + end);
  // The script of a script.
  Program("bin/runner", "#!" + node + "\n");
  Expect(Program("work/d.js", "#!" + Path("bin/runner") + "\n"), Dialect::kNode,
         Path("work/d.js") + " is run by " + Path("bin/runner") + ", which" + end);
  // Through a link to the script, as npm makes them.
  fs::create_symlink(Path("work/a.js"), root_ / "bin/tool");
  Expect("tool", Dialect::kNode, Path("bin/tool") + end);

  const std::string python = Program("bin/python3");
  Expect(Program("work/e.py", "#!" + python + "\n"), Dialect::kDeka,
         Path("work/e.py") + " is run by " + python + ", which is not node, nodejs, bun or deno");
  Expect(Program("work/f.js", "#!/nowhere/node\n"), Dialect::kDeka,
         Path("work/f.js") + " is run by /nowhere/node, which is not found");
  // The kernel does not look for an interpreter in PATH.
  Expect(Program("work/g.js", "#!node\n"), Dialect::kDeka,
         Path("work/g.js") + " is run by ./node, which is not found");
}

TEST_F(ChooseDialectTest, AsManyScriptsAreFollowedAsByTheKernel) {
  std::string interpreter = Program("bin/node");
  for (int scripts = 1; scripts <= 6; ++scripts) {
    interpreter = Program("work/" + std::to_string(scripts), "#!" + interpreter + "\n");
    const DialectChoice choice = Choose(interpreter);
    EXPECT_EQ(choice.dialect, scripts <= 5 ? Dialect::kNode : Dialect::kDeka) << choice.reason;
    EXPECT_EQ(choice.reason.ends_with("too many scripts"), scripts > 5) << choice.reason;
  }
}

TEST_F(ChooseDialectTest, ScriptsThatEnvStarts) {
  const std::string node = Program("bin/node");
  const std::string deno = Program("bin/deno");
  const std::string env = Program("other/env");
  int number = 0;
  const auto run_by = [&](const std::string& line) {
    const std::string script = Program("work/" + std::to_string(number++), "#!" + env + line);
    const DialectChoice choice = Choose(script);
    const std::string begin = script + " is run by ";
    EXPECT_TRUE(choice.reason.starts_with(begin)) << choice.reason;
    return choice.reason.substr(begin.size());
  };
  EXPECT_EQ(run_by(" node\n"), node + ", which is node");
  EXPECT_EQ(run_by(" -S node --flag\n"), node + ", which is node");
  EXPECT_EQ(run_by(" -S deno run -A\n"), deno + ", which is deno");
  EXPECT_EQ(run_by(" -Snode\n"), node + ", which is node");
  EXPECT_EQ(run_by(" -iS node\n"), node + ", which is node");
  EXPECT_EQ(run_by(" -vS A=1 B= node x\n"), node + ", which is node");
  EXPECT_EQ(run_by(" -S -u HOME -C /tmp -i node\n"), node + ", which is node");
  EXPECT_EQ(run_by(" --split-string=node -x\n"), node + ", which is node");
  // One argument, whatever its blanks: there is no program of that name.
  EXPECT_EQ(run_by(" node --flag\n"), "node --flag, which is not found");
  EXPECT_TRUE(run_by(" -i\n").starts_with(env + ", which starts other programs"));
  EXPECT_TRUE(run_by("\n").starts_with(env + ", which starts other programs"));
  EXPECT_TRUE(run_by(" -S A=1\n").starts_with(env + ", which starts other programs"));
}

TEST_F(ChooseDialectTest, OfAProgramThatStartsOthersTheReasonSaysWhatToGive) {
  for (const char* name : {"sh", "bash", "env", "sudo", "timeout", "nice"}) {
    const std::string path = Program(std::string("bin/") + name);
    Expect(name, Dialect::kDeka,
           path +
               " starts other programs, and which ones is not known: give the dialect node if "
               "it starts node, nodejs, bun or deno");
  }
  fs::create_symlink("bash", root_ / "bin/shell");
  EXPECT_NE(Choose("shell").reason.find("give the dialect node"), std::string::npos);
  const std::string script = Program("work/run.sh", "#!" + Path("bin/sh") + " -e\nnode x.js\n");
  EXPECT_TRUE(Choose(script).reason.starts_with(script + " is run by " + Path("bin/sh") +
                                                ", which starts other programs"));
}

TEST_F(ChooseDialectTest, WhatCannotBeReadIsDeka) {
  Expect("", Dialect::kDeka, " is not found");
  Expect("nothing", Dialect::kDeka, "nothing is not found");
  Expect(Program("work/empty", ""), Dialect::kDeka,
         Path("work/empty") + " is not node, nodejs, bun or deno");
  Expect(Program("work/hash", "#!"), Dialect::kDeka,
         Path("work/hash") + " is not node, nodejs, bun or deno");
  ASSERT_EQ(mkfifo(Path("work/fifo").c_str(), 0755), 0);
  Expect("./fifo", Dialect::kDeka, "./fifo is not found");
  Program("work/self", "#!" + Path("work/self") + "\n");
  EXPECT_EQ(Choose("./self").dialect, Dialect::kDeka);
  fs::create_symlink("loop", root_ / "work/loop");
  Expect("./loop", Dialect::kDeka, "./loop is not found");
  Expect(Program("work/long", "#!/" + std::string(100000, 'x')), Dialect::kDeka,
         Path("work/long") + " is run by /" + std::string(253, 'x') + ", which is not found");
}

}  // namespace
}  // namespace deka::ipc
