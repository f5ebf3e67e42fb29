#include "ipc/child_process.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ipc/child_process_testing.h"
#include "ipc/descriptor.h"
#include "ipc/error.h"

namespace deka::ipc {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

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

TEST_F(ChildProcessTest, SpawnIsToldFirstHoweverFastTheChild) {
  enum class Reading { kUntouched, kPaused, kResumed };
  for (const Reading reading : {Reading::kUntouched, Reading::kPaused, Reading::kResumed}) {
    heard_ = Recorder();
    bool forked = false;
    // What is forked at the end of a turn hears of it one turn later, after a look at descriptors.
    loop_.AtTurnEnd([&] {
      ForkOptions options = Shell(Say("1") + "echo out; exit 0");
      options.stdout_mode = Stdio::kPipe;
      Fork(std::move(options));
      if (reading != Reading::kUntouched) child_->PauseReading();
      if (reading == Reading::kResumed) child_->ResumeReading();
      siginfo_t ended = {};
      ASSERT_EQ(waitid(P_PID, static_cast<id_t>(child_->pid()), &ended, WEXITED | WNOWAIT), 0);
      forked = true;
    });
    ASSERT_TRUE(Until([&] { return forked; }));
    if (reading == Reading::kPaused) {
      RunFor(loop_, milliseconds(5));
      EXPECT_EQ(heard_.order, "S");
      child_->ResumeReading();
    }
    ASSERT_TRUE(UntilHeard('C'));
    EXPECT_EQ(heard_.order.front(), 'S') << heard_.order;
    EXPECT_TRUE(heard_.Has('m') && heard_.Has('o')) << heard_.order;
  }
}

TEST_F(ChildProcessTest, WithoutAChannelThereIsNoneAndNoTraceOfOne) {
  ForkOptions options = Shell("test -z \"$NODE_CHANNEL_FD$DEKA_IPC_FD\" && ! (: >&3) 2>/dev/null");
  options.ipc = false;
  options.env = {{"NODE_CHANNEL_FD=3", "DEKA_IPC_FD=3", "PATH=/usr/bin:/bin"}};
  Fork(std::move(options));
  EXPECT_FALSE(child_->connected());
  EXPECT_EQ(ReasonOf(child_->Send("1").status()), Reason::kNoChannel);
  EXPECT_EQ(ReasonOf(child_->Disconnect()), Reason::kNoChannel);
  EXPECT_EQ(ReasonOf(child_->Disconnect(Channel::Mode::kFlush)), Reason::kNoChannel);
  EXPECT_FALSE(child_->Cancel(0));
  EXPECT_EQ(child_->queued_bytes(), 0u);
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

TEST_F(ChildProcessTest, AFlushGivesTheChildWhatWasAcceptedAndHearsItsAnswers) {
  Fork(Program({"echo"}));
  Halt();
  SendBlocker(1);
  EXPECT_TRUE(child_->Send("2", 2).ok());
  EXPECT_TRUE(child_->Disconnect(Channel::Mode::kFlush).ok());
  EXPECT_FALSE(child_->connected());
  EXPECT_EQ(ReasonOf(child_->Send("3").status()), Reason::kChannelClosed);
  EXPECT_EQ(child_->queued_messages(), 2u);
  GoOn();
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_THAT(heard_.messages, ElementsAre(kBlocker, "2"));
  EXPECT_THAT(heard_.sent_tags, ElementsAre(1, 2));
  EXPECT_TRUE(heard_.sent_status->ok()) << *heard_.sent_status;
  EXPECT_EQ(heard_.order.substr(heard_.order.size() - 3), "DXC");
  EXPECT_EQ(ReasonOf(child_->Disconnect(Channel::Mode::kFlush)), Reason::kChannelClosed);
}

TEST_F(ChildProcessTest, ADisconnectNowDropsTheQueueAndSaysSo) {
  Fork(Program({"echo"}));
  Halt();
  SendBlocker(1);
  EXPECT_TRUE(child_->Send("2", 2).ok());
  EXPECT_TRUE(child_->Disconnect(Channel::Mode::kNow).ok());
  EXPECT_FALSE(child_->connected());
  ASSERT_TRUE(Until([&] { return heard_.sent_tags.size() == 2; }));
  EXPECT_THAT(heard_.sent_tags, ElementsAre(1, 2));
  EXPECT_EQ(ReasonOf(*heard_.sent_status), Reason::kChannelClosed);
  EXPECT_EQ(child_->queued_messages(), 0u);
  GoOn();
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_TRUE(heard_.messages.empty()) << "no message arrived whole";
  EXPECT_EQ(heard_.order.substr(heard_.order.size() - 3), "DXC");
}

TEST_F(ChildProcessTest, CancelledMessagesNeverReachTheChild) {
  Fork(Program({"echo"}));
  Halt();
  SendBlocker(1);
  EXPECT_TRUE(child_->Send("2", 2).ok());
  EXPECT_TRUE(child_->Send("3", 3).ok());
  EXPECT_FALSE(child_->Cancel(1)) << "begun";
  EXPECT_TRUE(child_->Cancel(2));
  EXPECT_FALSE(child_->Cancel(2));
  GoOn();
  ASSERT_TRUE(Until([&] { return heard_.messages.size() == 2; }));
  EXPECT_THAT(heard_.messages, ElementsAre(kBlocker, "3"));
  EXPECT_THAT(heard_.sent_tags, ElementsAre(1, 3));
}

TEST_F(ChildProcessTest, AMessageAtTheLimitPassesEitherWayAndOnePastDoesNot) {
  Fork(Program({"echo"}));
  EXPECT_EQ(ReasonOf(child_->Send(JsonOf((1 << 20) + 1)).status()), Reason::kMessageTooLarge);
  EXPECT_EQ(child_->queued_messages(), 0u);
  EXPECT_TRUE(child_->Send(JsonOf(1 << 20)).ok());
  ASSERT_TRUE(UntilHeard('m'));
  EXPECT_EQ(heard_.messages[0].size(), size_t{1} << 20);
  child_.reset();

  heard_ = Recorder();
  const auto string_of = [](size_t size) {
    return "printf '{\"cmd\":\"NODE_HANDLE\",\"msg\":\"' >&3; head -c " + std::to_string(size - 2) +
           " /dev/zero | tr '\\0' x >&3; echo '\"}' >&3;";
  };
  Fork(Shell(string_of(1 << 20) + string_of((1 << 20) + 1) + Say("2")));
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.order, "SmemDXC");
  EXPECT_EQ(heard_.messages[0].size(), size_t{1} << 20);
  EXPECT_EQ(ReasonOf(heard_.errors[0]), Reason::kMessageTooLarge);
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

TEST_F(ChildProcessTest, NothingThatAChildWritesEndsTheParent) {
  Fork(Shell("head -c 300000 /dev/urandom >&3; echo >&3;" + Say("1") + "printf half >&3"));
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_THAT(heard_.messages, ElementsAre("1"));
  EXPECT_GT(heard_.errors.size(), 100u);
  EXPECT_EQ(heard_.order.substr(heard_.order.size() - 5), "meDXC");
  EXPECT_EQ(ReasonOf(*heard_.disconnected), Reason::kFrameTruncated);
}

TEST_F(ChildProcessTest, AChildThatClosesItsChannelLivesOn) {
  Fork(Shell("exec 3>&-; exec sleep 1000"));
  ASSERT_TRUE(UntilHeard('D'));
  EXPECT_TRUE(heard_.disconnected->ok()) << *heard_.disconnected;
  EXPECT_FALSE(child_->connected());
  EXPECT_EQ(ReasonOf(child_->Send("1").status()), Reason::kChannelClosed);
  RunFor(loop_, milliseconds(10));
  EXPECT_FALSE(child_->exited());
  EXPECT_TRUE(child_->Kill(SIGKILL).ok());
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.order, "SDXC");
  EXPECT_EQ(heard_.exit->signal, SIGKILL);
}

TEST_F(ChildProcessTest, AChannelThatFailsIsClosedAndSaysWhy) {
  // What is no socket cannot be read as one.
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  absl::StatusOr<std::unique_ptr<ChildProcess>> child =
      ChildProcess::Adopt(loop_, ends[0], 0, {}, heard_);
  ASSERT_TRUE(child.ok()) << child.status();
  ASSERT_EQ(write(ends[1], "1\n", 2), 2);
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.order, "DC");
  EXPECT_EQ(ReasonOf(*heard_.disconnected), Reason::kChannelFailed);
  EXPECT_THAT(std::string(heard_.disconnected->message()), HasSubstr("non-socket"));
  EXPECT_EQ(ReasonOf((*child)->Send("1").status()), Reason::kChannelClosed);
  close(ends[1]);
}

TEST_F(ChildProcessTest, LastWordsAreHeardBeforeTheExitHoweverLongThePause) {
  ForkOptions options = Shell(Say("1") + Say("2") + "read line <&3; exit 7");
  options.exit_drain_ms_max = milliseconds(200);
  Fork(std::move(options));
  heard_.on_event = [&](char event) {
    if (event == 'm') child_->PauseReading();
  };
  ASSERT_TRUE(UntilHeard('m'));
  ASSERT_TRUE(child_->Send("3").ok());
  ASSERT_TRUE(Until([&] { return child_->exited(); }));
  RunFor(loop_, milliseconds(400));
  EXPECT_EQ(heard_.order, "Sms");
  heard_.on_event = nullptr;
  child_->ResumeReading();
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.order, "SmsmDXC");
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

TEST_F(ChildProcessTest, TheBoundedTimeBeginsAgainBehindAPause) {
  ForkOptions options = Shell("read line <&3 & exit 4");
  options.exit_drain_ms_max = milliseconds(500);
  Fork(std::move(options));
  ASSERT_TRUE(Until([&] { return child_->exited(); }));
  child_->PauseReading();
  EXPECT_TRUE(RunToTheEnd()) << "nothing is left to wait for";
  EXPECT_EQ(heard_.order, "S");
  child_->ResumeReading();
  ASSERT_TRUE(UntilHeard('X'));
  EXPECT_FALSE(heard_.exit->drained);
  EXPECT_TRUE(child_->Send("1").ok());
  ASSERT_TRUE(UntilHeard('C'));
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

TEST_F(ChildProcessTest, AChildThatHasEndedHoldsNoDescriptor) {
  const int before = OpenDescriptors();
  ForkOptions options = Shell("exec >&- 3>&-; exec sleep 1000");
  options.stdout_mode = options.stderr_mode = Stdio::kPipe;
  Fork(std::move(options));
  EXPECT_EQ(OpenDescriptors(), before + 4) << "channel, output twice, process";
  ASSERT_TRUE(UntilHeard('D'));
  ASSERT_TRUE(Until([&] { return OpenDescriptors() == before + 2; })) << "errors and process";
  ASSERT_TRUE(child_->Kill(SIGKILL).ok());
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(OpenDescriptors(), before);
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

TEST_F(ChildProcessTest, StdioIsInheritedOrNull) {
  const std::string links =
      "for n in 0 1 2; do printf '{\"cmd\":\"NODE_HANDLE\",\"msg\":\"%s\"}\\n' "
      "\"$(readlink /proc/$$/fd/$n)\" >&3; done";
  const auto link = [](int number) {
    char target[4096];
    const ssize_t size =
        readlink(("/proc/self/fd/" + std::to_string(number)).c_str(), target, sizeof(target));
    return '"' + std::string(target, size > 0 ? static_cast<size_t>(size) : 0) + '"';
  };
  Fork(Shell(links));
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_THAT(heard_.messages, ElementsAre(link(0), link(1), link(2)));

  heard_ = Recorder();
  ForkOptions options = Shell(links);
  options.stdin_mode = options.stdout_mode = options.stderr_mode = Stdio::kNull;
  Fork(std::move(options));
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_THAT(heard_.messages, ElementsAre("\"/dev/null\"", "\"/dev/null\"", "\"/dev/null\""));
}

TEST_F(ChildProcessTest, NullOutputTakesWhatIsWritten) {
  ForkOptions options = Shell("echo a || exit 8; echo b >&2 || exit 9");
  options.stdout_mode = options.stderr_mode = Stdio::kNull;
  Fork(std::move(options));
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.exit->code, 0);
}

TEST_F(ChildProcessTest, ArgumentsAndThePidAreAsGiven) {
  ForkOptions options =
      Shell("tr '\\0' , </proc/$$/cmdline | cut -c 1-11; echo \"$0,$1,$2,$#,$$\"");
  for (const char* argument : {"zero", "one  word", ""}) options.args.push_back(argument);
  options.stdout_mode = Stdio::kPipe;
  Fork(std::move(options));
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.output[1],
            "/bin/sh,-c,|zero,one  word,,2," + std::to_string(child_->pid()) + '|');
}

TEST_F(ChildProcessTest, TheEnvironmentIsTheParentsUnlessGiven) {
  setenv("CHILD_PROCESS_TEST", "the parent's", 1);
  setenv("NODE_CHANNEL_FD", "77", 1);
  const std::string script = "echo \"$CHILD_PROCESS_TEST,$NODE_CHANNEL_FD,$DEKA_IPC_FD\"";
  ForkOptions options = Shell(script);
  options.stdout_mode = Stdio::kPipe;
  Fork(std::move(options));
  ASSERT_TRUE(UntilHeard('C'));
  options = Shell(script);
  options.stdout_mode = Stdio::kPipe;
  options.env.emplace();
  Fork(std::move(options));
  ASSERT_TRUE(Until([&] { return heard_.Count('C') == 2; }));
  unsetenv("CHILD_PROCESS_TEST");
  unsetenv("NODE_CHANNEL_FD");
  EXPECT_EQ(heard_.output[1], "the parent's,,3|,,3|");
}

// As root, with a directory that only root may enter: it is entered first, as Node does.
TEST_F(ChildProcessTest, RunsAsAnotherUserAndGroup) {
  char directory[] = "/tmp/child_process_test_XXXXXX";
  ASSERT_NE(mkdtemp(directory), nullptr);
  ForkOptions options = Shell("id -u; id -g; id -G; readlink /proc/$$/cwd;" + Say("1"));
  options.env = {{"PATH=/usr/bin:/bin"}};
  options.cwd = directory;
  options.uid = 65534;
  options.gid = 65533;
  options.stdout_mode = Stdio::kPipe;
  if (geteuid() == 0) {
    Fork(std::move(options));
    ASSERT_TRUE(UntilHeard('C'));
    EXPECT_EQ(heard_.output[1], "65534|65533|65533|" + std::string(directory) + '|');
    EXPECT_THAT(heard_.messages, ElementsAre("1"));
    EXPECT_EQ(geteuid(), 0u);
  } else {
    const absl::Status refused = Refused(std::move(options));
    EXPECT_EQ(ReasonOf(refused), Reason::kSpawnFailed);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("setgroups"));
  }
  rmdir(directory);
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

TEST_F(ChildProcessTest, ADescriptorLimitAboveTheHardOneIsTheHardOne) {
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  if (limit.rlim_max == RLIM_INFINITY) GTEST_SKIP() << "there is nothing above";
  ForkOptions options = Shell("ulimit -n");
  options.descriptors_soft_max = limit.rlim_max + 1;
  options.stdout_mode = Stdio::kPipe;
  Fork(std::move(options));
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.output[1], std::to_string(limit.rlim_max) + '|');
}

TEST_F(ChildProcessTest, KillSignalsAndSaysWhenTheChildIsGone) {
  Fork(Shell("sleep 1000"));
  EXPECT_EQ(ReasonOf(child_->Kill(999)), Reason::kInvalidArgument);
  EXPECT_TRUE(child_->Kill(0).ok());
  EXPECT_TRUE(child_->Kill().ok());
  ASSERT_TRUE(Until([&] { return child_->exited(); }));
  EXPECT_EQ(ReasonOf(child_->Kill()), Reason::kChildExited);
}

TEST_F(ChildProcessTest, AChildThatIsSomebodyElsesIsNotSignalled) {
  if (geteuid() != 0) GTEST_SKIP() << "only root may change who it is";
  ForkOptions options;
  options.program = "/bin/sleep";
  options.args = {"1000"};
  options.uid = 65533;
  Fork(std::move(options));
  ASSERT_EQ(seteuid(65534), 0);
  const absl::Status refused = child_->Kill();
  ASSERT_EQ(seteuid(0), 0);
  EXPECT_EQ(refused.code(), absl::StatusCode::kPermissionDenied) << refused;
}

TEST_F(ChildProcessTest, TheLoopEndsWithTheChildWhateverItsTimeout) {
  ForkOptions options = Shell("exit 2");
  options.timeout = std::chrono::hours(1);
  Fork(std::move(options));
  ASSERT_TRUE(RunToTheEnd());
  EXPECT_EQ(heard_.order, "SDXC");
  EXPECT_EQ(heard_.exit->code, 2);
}

TEST_F(ChildProcessTest, AnUnreferencedChannelDoesNotKeepTheLoopRunning) {
  ForkOptions options = Shell("(read line <&3) & exit 0");
  options.exit_drain_ms_max = milliseconds(20);
  Fork(std::move(options));
  child_->ReferenceChannel(false);
  ASSERT_TRUE(RunToTheEnd());
  EXPECT_EQ(heard_.order, "SX") << "the process keeps it running";
  EXPECT_TRUE(child_->connected()) << "the grandchild has it";

  child_->ReferenceChannel(true);
  Timer timer(loop_);
  timer.Start(
      milliseconds(20), [&] { EXPECT_TRUE(child_->Disconnect().ok()); }, /*referenced=*/false);
  ASSERT_TRUE(RunToTheEnd());
  EXPECT_EQ(heard_.order, "SXDC");
}

std::atomic<int> sigchlds;

TEST_F(ChildProcessTest, SigchldAndWaitStayTheHosts) {
  struct sigaction hosts = {}, before, after;
  hosts.sa_handler = [](int) { ++sigchlds; };
  sigaction(SIGCHLD, &hosts, &before);
  Fork(Shell("exit 3"));
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.exit->code, 3);
  sigaction(SIGCHLD, &before, &after);
  EXPECT_EQ(after.sa_handler, hosts.sa_handler);
  EXPECT_GE(sigchlds, 1);

  // A host that waits for whatever ends takes the status; the kernel may tell it all the same.
  heard_ = Recorder();
  Fork(Shell("exit 3"));
  ASSERT_EQ(waitpid(child_->pid(), nullptr, 0), child_->pid());
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.order, "SDXC");
  if (heard_.exit->code.has_value()) {
    EXPECT_EQ(heard_.exit->code, 3);
  } else {
    EXPECT_NE(heard_.exit->unknown_reason, "");
  }
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
  options.program = file + "/x";
  EXPECT_EQ(ReasonOf(Refused(options)), Reason::kProgramNotFound);
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

TEST_F(ChildProcessTest, OptionsThatCannotBeAreRefusedByName) {
  const auto refused = [&](const char* name, auto change) {
    ForkOptions options = Shell("exit");
    change(options);
    const absl::Status status = Refused(std::move(options));
    EXPECT_EQ(ReasonOf(status), Reason::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  };
  const std::string nul("a\0b", 3);
  refused("NUL", [&](ForkOptions& options) { options.program = nul; });
  refused("NUL", [&](ForkOptions& options) { options.cwd = nul; });
  refused("NUL", [&](ForkOptions& options) { options.args.push_back(nul); });
  refused("NAME=value", [&](ForkOptions& options) { options.env = {{"A=" + nul}}; });
  refused("NAME=value", [](ForkOptions& options) { options.env = {{"A=1", "NAME"}}; });
  refused("NAME=value", [](ForkOptions& options) { options.env = {{"=1"}}; });
  refused("stdin", [](ForkOptions& options) { options.stdin_mode = Stdio::kPipe; });
  refused("output_line_bytes_max", [](ForkOptions& options) { options.output_line_bytes_max = 0; });
  refused("kill_signal", [](ForkOptions& options) { options.kill_signal = 0; });
  refused("kill_signal", [](ForkOptions& options) { options.kill_signal = SIGRTMAX + 1; });

  ForkOptions options = Shell("exit");
  options.env = {{"EMPTY=", "TWO=="}};
  options.output_line_bytes_max = 1;
  options.kill_signal = SIGRTMAX;
  Fork(std::move(options));
  ASSERT_TRUE(UntilHeard('C'));
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

TEST_F(ChildProcessTest, AllThatIsOpenForAChildIsCloseOnExec) {
  std::vector<int> before;
  for (int number = 0; number < 1024; ++number) {
    if (fcntl(number, F_GETFD) != -1) before.push_back(number);
  }
  ForkOptions options = Shell("read line <&3");
  options.stdout_mode = options.stderr_mode = Stdio::kPipe;
  Fork(std::move(options));
  int opened = 0;
  for (int number = 0; number < 1024; ++number) {
    const int flags = fcntl(number, F_GETFD);
    if (flags == -1 || std::count(before.begin(), before.end(), number) > 0) continue;
    EXPECT_EQ(flags, FD_CLOEXEC) << number;
    ++opened;
  }
  EXPECT_EQ(opened, 4) << "channel, output twice, process";
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

// This process without one of its standard descriptors.
class WithoutDescriptor {
 public:
  explicit WithoutDescriptor(int number)
      : number_(number), kept_(fcntl(number, F_DUPFD_CLOEXEC, STDERR_FILENO + 1)) {
    close(number);
  }
  ~WithoutDescriptor() {
    close(number_);
    if (kept_.valid()) dup2(kept_.get(), number_);
  }

 private:
  const int number_;
  const Descriptor kept_;
};

TEST_F(ChildProcessTest, NothingOfOursTakesTheNumberOfAStandardDescriptorThatIsClosed) {
  ForkOptions options = Shell("for n in 0 1 2; do ! [ -e /proc/$$/fd/$n ] || echo $n; done");
  options.stdout_mode = Stdio::kPipe;
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  Recorder adopted_heard;
  absl::StatusOr<std::unique_ptr<ChildProcess>> adopted;
  bool stdin_taken, stderr_taken;
  {
    const WithoutDescriptor no_stdin(0), no_stderr(2);
    adopted = ChildProcess::Adopt(loop_, ends[0], getppid(), {}, adopted_heard);
    Fork(std::move(options));
    stdin_taken = fcntl(0, F_GETFD) != -1;
    stderr_taken = fcntl(2, F_GETFD) != -1;
  }
  close(ends[1]);
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  EXPECT_FALSE(stdin_taken);
  EXPECT_FALSE(stderr_taken);
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.output[1], "1|");
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

TEST_F(ChildProcessTest, AGrandchildHasNothingOfTheChannel) {
  for (const Dialect dialect : {Dialect::kDeka, Dialect::kNode}) {
    heard_ = Recorder();
    ForkOptions options = Program({"grandchild"});
    options.dialect = dialect;
    options.stdout_mode = Stdio::kPipe;
    Fork(std::move(options));
    ASSERT_TRUE(UntilHeard('C'));
    EXPECT_EQ(heard_.output[1], "free|[]|");
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
    ForkOptions options = Program({what, std::string(what) == "parent" ? "words" : "1"});
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
              testing::AllOf(HasSubstr("started: /proc/self/exe; dialect deka: "),
                             HasSubstr("disconnected: OK"), HasSubstr("ended")));
  EXPECT_EQ(log_with("DEKA_VERBOSE=0", "parent"), "");
  EXPECT_THAT(log_with("DEKA_IPC_DEBUG=1", "parent"),
              testing::AllOf(testing::ContainsRegex("<- child [0-9]+ 29 bytes \\{\"cmd\""),
                             HasSubstr("-> parent 30 bytes"), Not(HasSubstr("started"))));
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
  ASSERT_TRUE(UntilHeard('S'));
  ASSERT_TRUE(child_->Kill(SIGSTOP).ok());
  child_.reset();
  EXPECT_TRUE(RunToTheEnd()) << "it keeps no loop running";
  EXPECT_EQ(kill(pid, SIGCONT), 0);
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

TEST_F(ChildProcessTest, AnAdoptedProcessThatIsNoChildIsSeenToEndWithoutItsCode) {
  // Its parent never waits for it.
  ForkOptions options = Shell("sh -c 'echo $$; exec sleep 1000' & exec sleep 1000");
  options.ipc = false;
  options.stdout_mode = Stdio::kPipe;
  Fork(std::move(options));
  ASSERT_TRUE(UntilHeard('o'));

  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  Recorder heard;
  absl::StatusOr<std::unique_ptr<ChildProcess>> adopted =
      ChildProcess::Adopt(loop_, ends[0], std::stoi(heard_.output[1]), {}, heard);
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  close(ends[1]);
  ASSERT_TRUE(Until([&] { return heard.Has('D'); }));
  EXPECT_FALSE((*adopted)->exited());
  EXPECT_TRUE((*adopted)->Kill(SIGKILL).ok());
  ASSERT_TRUE(Until([&] { return heard.Has('C'); }));
  EXPECT_EQ(heard.order, "DXC");
  EXPECT_TRUE((*adopted)->exited());
  EXPECT_FALSE(heard.exit->code.has_value());
  EXPECT_FALSE(heard.exit->signal.has_value());
  EXPECT_THAT(heard.exit->unknown_reason, HasSubstr("did not tell how it ended"));
  EXPECT_EQ(ReasonOf((*adopted)->Kill()), Reason::kChildExited);
}

TEST_F(ChildProcessTest, AnAdoptedChildOfOursIsLeftToWhoStartedIt) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const pid_t pid = fork();
  if (pid == 0) _exit(5);
  ASSERT_GT(pid, 0);
  absl::StatusOr<std::unique_ptr<ChildProcess>> adopted =
      ChildProcess::Adopt(loop_, ends[0], pid, {}, heard_);
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  close(ends[1]);
  ASSERT_TRUE(UntilHeard('C'));
  EXPECT_EQ(heard_.order, "DXC");
  EXPECT_EQ(heard_.exit->code, 5);
  int status = 0;
  EXPECT_EQ(waitpid(pid, &status, WNOHANG), pid) << "not reaped";
  EXPECT_EQ(WEXITSTATUS(status), 5);
}

TEST_F(ChildProcessTest, AChannelWithoutItsProcessCannotBeSignalled) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const absl::StatusOr<std::unique_ptr<ChildProcess>> adopted =
      ChildProcess::Adopt(loop_, ends[0], 0, {}, heard_);
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  EXPECT_EQ((*adopted)->pid(), 0);
  EXPECT_EQ(ReasonOf((*adopted)->Kill()), Reason::kNoProcess);
  EXPECT_EQ(ReasonOf((*adopted)->Kill(0)), Reason::kNoProcess);
  close(ends[1]);
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
