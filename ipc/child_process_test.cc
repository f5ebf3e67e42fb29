#include "ipc/child_process.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ipc/child_process_testing.h"
#include "ipc/error.h"

namespace deka::ipc {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(ChildProcessTest, EventsComeInNodesOrder) {
  Fork(Shell(Say("1") + Say("2") + "exit 3"));
  EXPECT_EQ(heard_.order, "") << "never inside Fork";
  EXPECT_TRUE(child_->connected());
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.order, "SmmDXC");
  EXPECT_THAT(heard_.messages, ElementsAre("1", "2"));
  EXPECT_TRUE(heard_.disconnected->ok()) << *heard_.disconnected;
  EXPECT_EQ(heard_.exit->code, 3);
  EXPECT_FALSE(heard_.exit->signal.has_value());
  EXPECT_TRUE(heard_.exit->drained);
  EXPECT_FALSE(child_->connected());
}

TEST_F(ChildProcessTest, WithoutAChannelThereIsNoneAndNoTraceOfOne) {
  ForkOptions options = Shell("test -z \"$NODE_CHANNEL_FD$DEKA_IPC_FD\" && ! (: >&3) 2>/dev/null");
  options.ipc = false;
  options.env = {{"NODE_CHANNEL_FD=3", "DEKA_IPC_FD=3", "PATH=/usr/bin:/bin"}};
  Fork(std::move(options));
  EXPECT_FALSE(child_->connected());
  EXPECT_EQ(ReasonOf(child_->Send("1").status()), Reason::kNoChannel);
  EXPECT_EQ(ReasonOf(child_->Disconnect()), Reason::kNoChannel);
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.order, "SXC");
  EXPECT_EQ(heard_.exit->code, 0);
}

TEST_F(ChildProcessTest, BothEndsTalkInBothDialects) {
  for (const Dialect dialect : {Dialect::kDeka, Dialect::kNode}) {
    heard_ = Recorder();
    ForkOptions options = Program({"echo"});
    options.dialect = dialect;
    Fork(std::move(options));
    EXPECT_EQ(child_->dialect(), dialect);
    EXPECT_TRUE(child_->Send("{\"a\":[1,2]}", 5).ok());
    EXPECT_TRUE(child_->Send("null").ok());
    ASSERT_TRUE(Until([&] { return heard_.messages.size() == 2; }));
    EXPECT_THAT(heard_.messages, ElementsAre("{\"a\":[1,2]}", "null"));
    EXPECT_THAT(heard_.sent_tags, ElementsAre(5, 0));
    EXPECT_TRUE(heard_.sent_status->ok());
    EXPECT_TRUE(child_->Send("\"bye\"").ok());
    ASSERT_TRUE(UntilHeard('C'));
    EXPECT_EQ(heard_.order.substr(heard_.order.size() - 3), "DXC");
    EXPECT_EQ(heard_.exit->code, 0);
    EXPECT_EQ(ReasonOf(child_->Send("1").status()), Reason::kChannelClosed);
  }
}

TEST_F(ChildProcessTest, DisconnectIsAtOnceAndTheChildSeesTheEnd) {
  Fork(Program({"echo"}));
  ASSERT_TRUE(UntilHeard('S'));
  EXPECT_TRUE(child_->Disconnect().ok());
  EXPECT_FALSE(child_->connected());
  EXPECT_FALSE(heard_.Has('D')) << "never from inside a call";
  EXPECT_EQ(ReasonOf(child_->Disconnect()), Reason::kChannelClosed);
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.order, "SDXC");
  EXPECT_EQ(heard_.exit->code, 0);
}

TEST_F(ChildProcessTest, AHandleIsRefusedAndNothingIsSent) {
  Fork(Program({"echo"}));
  EXPECT_EQ(ReasonOf(child_->SendWithHandle("1", STDERR_FILENO).status()),
            Reason::kHandleUnsupported);
  EXPECT_EQ(child_->queued_messages(), 0u);
  EXPECT_NE(fcntl(STDERR_FILENO, F_GETFD), -1) << "it stays the caller's";
}

TEST_F(ChildProcessTest, ABadLineIsAnErrorAndTheNextOneIsHeard) {
  Fork(Shell("echo hello >&3; echo 17 >&3;" + Say("2")));
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.order, "SeemDXC");
  EXPECT_EQ(ReasonOf(heard_.errors[0]), Reason::kInvalidJson);
  EXPECT_EQ(ReasonOf(heard_.errors[1]), Reason::kEnvelopeMissing);
}

TEST_F(ChildProcessTest, LastWordsAreHeardBeforeTheExitHoweverLongThePause) {
  ForkOptions options = Shell(Say("1") + Say("2") + "exit 7");
  options.exit_drain_ms_max = milliseconds(200);
  Fork(std::move(options));
  heard_.on_event = [&](char event) {
    if (event == 'm') child_->PauseReading();
  };
  ASSERT_TRUE(UntilHeard('m'));
  ASSERT_TRUE(Until([&] { return child_->exited(); }));
  RunFor(loop_, milliseconds(400));
  EXPECT_EQ(heard_.order, "Sm");
  heard_.on_event = nullptr;
  child_->ResumeReading();
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.order, "SmmDXC");
  EXPECT_EQ(heard_.exit->code, 7);
  EXPECT_TRUE(heard_.exit->drained);
}

TEST_F(ChildProcessTest, AllThatAChildQueuedComesBeforeItsDisconnect) {
  Fork(Program({"words", "5000"}));
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.order, 'S' + std::string(5000, 'm') + "DXC");
  EXPECT_EQ(heard_.messages.back(), "4999");
  EXPECT_EQ(heard_.exit->code, 7);
}

TEST_F(ChildProcessTest, AGrandchildThatHoldsTheChannelDelaysTheExitForABoundedTime) {
  ForkOptions options = Shell("(read line <&3; " + Say("2") + ") & exit 4");
  options.exit_drain_ms_max = milliseconds(50);
  Fork(std::move(options));
  ASSERT_TRUE(UntilHeard('X'));
  EXPECT_EQ(heard_.order, "SX");
  EXPECT_EQ(heard_.exit->code, 4);
  EXPECT_FALSE(heard_.exit->drained);
  EXPECT_TRUE(child_->connected());
  EXPECT_TRUE(child_->Send("1").ok());
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.order, "SXsmDC");
}

TEST_F(ChildProcessTest, ExitWaitsForTheEndOfTheOutputToo) {
  ForkOptions options = Shell("echo a; echo b > /dev/stderr; echo; printf c");
  options.stdout_mode = options.stderr_mode = Stdio::kPipe;
  Fork(std::move(options));
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.output[1], "a||c!");
  EXPECT_EQ(heard_.output[2], "b|");
  EXPECT_EQ(heard_.exit->code, 0);
  EXPECT_EQ(heard_.order.substr(heard_.order.size() - 2), "XC");
}

TEST_F(ChildProcessTest, OutputOfAChildThatFloodsWaitsWhileReadingIsPaused) {
  ForkOptions options = Shell("yes");
  options.stdout_mode = Stdio::kPipe;
  Fork(std::move(options));
  heard_.on_event = [&](char event) {
    if (event == 'o') child_->PauseReading();
  };
  ASSERT_TRUE(UntilHeard('o'));
  RunFor(loop_, milliseconds(30));
  EXPECT_EQ(heard_.output[1], "y|");
  child_->ResumeReading();
  ASSERT_TRUE(Until([&] { return heard_.output[1] == "y|y|"; }));
}

TEST_F(ChildProcessTest, NullStdinIsEmpty) {
  ForkOptions options = Shell("read line || exit 9");
  options.stdin_mode = Stdio::kNull;
  Fork(std::move(options));
  ASSERT_TRUE(UntilHeard('X'));
  EXPECT_EQ(heard_.exit->code, 9);
}

TEST_F(ChildProcessTest, AProcessGroupOrASessionOfItsOwn) {
  ForkOptions options = Program({"echo"});
  Fork(options);
  EXPECT_EQ(getpgid(child_->pid()), getpgid(0)) << "as Node's by default";
  options.own_process_group = true;
  Fork(options);
  EXPECT_EQ(getpgid(child_->pid()), child_->pid());
  EXPECT_EQ(getsid(child_->pid()), getsid(0));
  options.detached = true;
  Fork(options);
  EXPECT_EQ(getsid(child_->pid()), child_->pid());
}

TEST_F(ChildProcessTest, EnvironmentDirectoryAndDescriptorLimitAreTheChilds) {
  ForkOptions options = Shell("pwd; echo $A-$NODE_CHANNEL_FD-$DEKA_IPC_FD; ulimit -n");
  options.cwd = "/";
  options.env = {{"A=b", "NODE_CHANNEL_FD=77"}};
  options.descriptors_soft_max = 123;
  options.stdout_mode = Stdio::kPipe;
  Fork(std::move(options));
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.output[1], "/|b--3|123|") << "a stale variable is replaced";
}

TEST_F(ChildProcessTest, KillSignalsAndSaysWhenTheChildIsGone) {
  Fork(Shell("sleep 1000"));
  EXPECT_EQ(ReasonOf(child_->Kill(999)), Reason::kInvalidArgument);
  EXPECT_TRUE(child_->Kill().ok());
  ASSERT_TRUE(Until([&] { return child_->exited(); }));
  EXPECT_EQ(ReasonOf(child_->Kill()), Reason::kChildExited);
}

TEST_F(ChildProcessTest, ATimeoutSendsTheKillSignal) {
  ForkOptions options;
  options.program = "sleep";
  options.args = {"1000"};
  options.timeout = milliseconds(20);
  options.kill_signal = SIGUSR1;
  Fork(std::move(options));
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.exit->signal, SIGUSR1);
  EXPECT_FALSE(heard_.exit->code.has_value());
}

TEST_F(ChildProcessTest, ASpawnThatFailsIsATypedErrorAtOnceAndLeavesNothing) {
  char directory[] = "/tmp/child_process_test_XXXXXX";
  ASSERT_NE(mkdtemp(directory), nullptr);
  while (waitpid(-1, nullptr, 0) > 0) continue;  // what other tests have left, all of it killed
  const std::string file = std::string(directory) + "/file";
  close(open(file.c_str(), O_CREAT | O_WRONLY, 0644));
  const int before = OpenDescriptors();

  ForkOptions options;
  options.program = "/no/such/program";
  EXPECT_EQ(ReasonOf(Refused(options)), Reason::kProgramNotFound);
  EXPECT_THAT(std::string(Refused(options).message()), HasSubstr("/no/such/program"));
  options.program = "no-such-program";
  EXPECT_EQ(ReasonOf(Refused(options)), Reason::kProgramNotFound);
  options.program = file;
  EXPECT_EQ(ReasonOf(Refused(options)), Reason::kProgramNotExecutable);
  chmod(file.c_str(), 0755);
  EXPECT_EQ(ReasonOf(Refused(options)), Reason::kProgramNotExecutable) << "neither binary nor #!";
  options = Shell("exit");
  options.cwd = file + "/x";
  EXPECT_EQ(ReasonOf(Refused(options)), Reason::kProgramNotFound);
  EXPECT_THAT(std::string(Refused(options).message()), HasSubstr(options.cwd));
  options.cwd.clear();
  options.program.clear();
  EXPECT_EQ(ReasonOf(Refused(options)), Reason::kInvalidArgument);

  EXPECT_EQ(OpenDescriptors(), before);
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1) << "no zombie";
  EXPECT_EQ(errno, ECHILD);
  RunFor(loop_, milliseconds(10));
  EXPECT_EQ(heard_.order, "");
  unlink(file.c_str());
  rmdir(directory);
}

TEST_F(ChildProcessTest, WhatIsTooLongForTheKernelIsRefusedWithWhatToDo) {
  const auto page_bytes = static_cast<size_t>(getpagesize());
  const size_t longest = 32 * page_bytes - 1;
  const auto refusal = [&](const ForkOptions& options) {
    const absl::Status refused = Refused(options);
    EXPECT_EQ(ReasonOf(refused), Reason::kInvalidArgument) << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr("in a message or a file"));
    return std::string(refused.message());
  };
  ForkOptions options = Shell("exit");
  options.args.push_back(std::string(longest + 1, 'x'));
  EXPECT_THAT(refusal(options),
              testing::AllOf(HasSubstr("argument 3 has " + std::to_string(longest + 1)),
                             HasSubstr("at most " + std::to_string(longest))));
  options.args.back().pop_back();
  options.env = {{"SHORT=1", "LONG=" + std::string(longest - 4, 'x')}};
  EXPECT_THAT(refusal(options), HasSubstr("LONG has " + std::to_string(longest + 1)));
  options.env->back().pop_back();
  Fork(options);
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.exit->code, 0);

  // The kernel takes 6 MiB in all where the stack may grow without a limit.
  options = Shell("exit");
  options.args.insert(options.args.end(), (7 << 20) / longest + 1, std::string(longest, 'x'));
  EXPECT_THAT(refusal(options), HasSubstr("its arguments and environment take 7"));
}

TEST_F(ChildProcessTest, WithoutDescriptorsLeftEveryStepIsATypedError) {
  ForkOptions options = Shell("exit");
  options.stdin_mode = Stdio::kNull;
  options.stdout_mode = options.stderr_mode = Stdio::kPipe;
  const int before = OpenDescriptors();
  rlimit old;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
  int refused = 0;
  for (rlim_t limit = 0;; ++limit) {
    ASSERT_LT(limit, 1000u);
    const rlimit low = {limit, old.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
    absl::StatusOr<std::unique_ptr<ChildProcess>> child =
        ChildProcess::Fork(loop_, options, heard_);
    setrlimit(RLIMIT_NOFILE, &old);
    if (child.ok()) {
      child_ = *std::move(child);
      break;
    }
    EXPECT_EQ(ReasonOf(child.status()), Reason::kDescriptorsExhausted) << child.status();
    ASSERT_EQ(OpenDescriptors(), before);
    ++refused;
  }
  EXPECT_GT(refused, 7);
  ASSERT_TRUE(UntilHeard('C'));
}

TEST_F(ChildProcessTest, TheChildInheritsItsStdioAndItsChannelOnly) {
  const int open_to_all = open("/dev/null", O_RDONLY);  // without close-on-exec
  Recorder other_heard;
  absl::StatusOr<std::unique_ptr<ChildProcess>> other =
      ChildProcess::Fork(loop_, Program({"echo"}), other_heard);
  ASSERT_TRUE(other.ok()) << other.status();
  ForkOptions options = Program({"inherited"});
  options.stdout_mode = Stdio::kPipe;
  Fork(std::move(options));
  ASSERT_TRUE(UntilHeard('m'));
  EXPECT_THAT(heard_.messages, ElementsAre("[0,1,2,3]"));
  close(open_to_all);
}

TEST_F(ChildProcessTest, TheChildsEndTakesTheChannelOutOfItsEnvironment) {
  for (const Dialect dialect : {Dialect::kDeka, Dialect::kNode}) {
    heard_ = Recorder();
    ForkOptions options = Program({"environment"});
    options.dialect = dialect;
    Fork(std::move(options));
    ASSERT_TRUE(UntilHeard('m'));
    EXPECT_THAT(heard_.messages, ElementsAre("[0,true,false]"));
  }
}

TEST_F(ChildProcessTest, AChildWhoseEnvironmentNamesNoChannelIsToldWhy) {
  const auto reason_with = [&](std::vector<std::string> env) {
    heard_ = Recorder();
    ForkOptions options = Shell(std::string("exec env ") +
                                (env.empty() ? std::string() : env[0] + " ") + kChild + " open");
    options.ipc = false;
    options.stderr_mode = Stdio::kPipe;
    Fork(std::move(options));
    EXPECT_TRUE(UntilHeard('C'));
    return heard_.output[2];
  };
  EXPECT_EQ(reason_with({}), "NO_CHANNEL|");
  EXPECT_EQ(reason_with({"NODE_CHANNEL_FD=abc"}), "INVALID_ARGUMENT|");
  EXPECT_EQ(reason_with({"NODE_CHANNEL_FD=99"}), "INVALID_ARGUMENT|");
  EXPECT_EQ(reason_with({"NODE_CHANNEL_FD=0"}), "INVALID_ARGUMENT|") << "no socket";
}

TEST_F(ChildProcessTest, TheLogsShowFramesAndWhatHappensOnlyWhenAsked) {
  const auto log_with = [&](const char* variable, const char* what) {
    heard_ = Recorder();
    ForkOptions options = Program({what, "1"});
    options.env = {{variable}};
    options.stderr_mode = Stdio::kPipe;
    Fork(std::move(options));
    EXPECT_TRUE(UntilHeard('C'));
    return heard_.output[2];
  };
  EXPECT_THAT(log_with("DEKA_IPC_DEBUG=1", "words"),
              HasSubstr("-> parent 30 bytes {\"cmd\":\"NODE_HANDLE\",\"msg\":0}"));
  EXPECT_EQ(log_with("DEKA_IPC_DEBUG=0", "words"), "");
  EXPECT_EQ(log_with("DEKA_VERBOSE=1", "words"), "");
  EXPECT_THAT(log_with("DEKA_VERBOSE=1", "parent"),
              testing::AllOf(HasSubstr("started: /bin/true"), HasSubstr("ended")));
  EXPECT_EQ(log_with("DEKA_VERBOSE=0", "parent"), "");
  EXPECT_EQ(log_with("DEKA_IPC_DEBUG=1", "parent"), "") << "no frame went";
}

TEST_F(ChildProcessTest, AnyCallMayDestroyTheChild) {
  for (const char event : std::string_view("SmoesDXC")) {
    heard_ = Recorder();
    ForkOptions options = Shell("echo bad >&3;" + Say("1") + "echo out; read line <&3; exit 0");
    options.stdout_mode = Stdio::kPipe;
    Fork(std::move(options));
    EXPECT_TRUE(child_->Send("1").ok());
    bool gone = false;
    heard_.on_event = [&](char heard) {
      EXPECT_FALSE(gone) << heard << " after the end";
      if (heard != event) return;
      gone = true;
      child_.reset();
    };
    ASSERT_TRUE(Until([&] { return gone; })) << event;
    RunFor(loop_, milliseconds(5));
  }
}

TEST_F(ChildProcessTest, ADestroyedChildRunsOnAndIsReaped) {
  Fork(Program({"echo"}));
  const pid_t pid = child_->pid();
  child_.reset();
  ASSERT_TRUE(Until([&] {
    RunFor(loop_, milliseconds(1));
    return kill(pid, 0) != 0;
  }));
  EXPECT_EQ(errno, ESRCH);
}

TEST_F(ChildProcessTest, TheDialectIsChosenFromTheProgramUnlessAskedFor) {
  ForkOptions options;
  options.program = "/bin/true";
  Fork(options);
  EXPECT_EQ(child_->dialect(), Dialect::kDeka);
  EXPECT_THAT(child_->dialect_reason(), HasSubstr("true"));
  options.dialect = Dialect::kNode;
  Fork(options);
  EXPECT_EQ(child_->dialect(), Dialect::kNode);
  EXPECT_EQ(child_->dialect_reason(), "asked for");

  char directory[] = "/tmp/child_process_test_XXXXXX";
  ASSERT_NE(mkdtemp(directory), nullptr);
  const std::string node = std::string(directory) + "/node";
  ASSERT_TRUE(std::filesystem::copy_file("/bin/sh", node));
  options = Shell("echo \"$NODE_CHANNEL_FD $NODE_CHANNEL_SERIALIZATION_MODE\"");
  options.program = node;
  options.dialect.reset();
  options.stdout_mode = Stdio::kPipe;
  Fork(std::move(options));
  EXPECT_EQ(child_->dialect(), Dialect::kNode);
  EXPECT_THAT(child_->dialect_reason(), HasSubstr("is node"));
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.output[1], "3 json|");
  unlink(node.c_str());
  rmdir(directory);
}

TEST_F(ChildProcessTest, AdoptsAChannelWithAndWithoutItsProcess) {
  for (const pid_t pid : {0, static_cast<int>(getppid())}) {
    heard_ = Recorder();
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    Channel::Options options;
    options.dialect = Dialect::kNode;
    absl::StatusOr<std::unique_ptr<ChildProcess>> child =
        ChildProcess::Adopt(loop_, ends[0], pid, options, heard_);
    ASSERT_TRUE(child.ok()) << child.status();
    ASSERT_EQ(write(ends[1], "1\n", 2), 2);
    close(ends[1]);
    ASSERT_TRUE(UntilHeard(pid == 0 ? 'C' : 'D'));
    RunFor(loop_, milliseconds(5));
    EXPECT_EQ(heard_.order, pid == 0 ? "mDC" : "mD") << "the process runs on";
  }
}

TEST_F(ChildProcessTest, AdoptsNoProcessThatIsGone) {
  Fork(Shell("exit"));
  const pid_t pid = child_->pid();
  ASSERT_TRUE(UntilHeard('C'));
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  EXPECT_EQ(ReasonOf(ChildProcess::Adopt(loop_, ends[0], pid, {}, heard_).status()),
            Reason::kChildExited);
  EXPECT_EQ(fcntl(ends[0], F_GETFD), -1) << "closed";
  close(ends[1]);
}

}  // namespace
}  // namespace deka::ipc
