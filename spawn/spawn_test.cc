#include "spawn/spawn.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace deka::spawn {
namespace {

constexpr int kDeadlineMs = 20000;

// Waits until the process has ended, then reaps it.
Ended WaitFor(int pidfd) {
  for (;;) {
    pollfd ready{.fd = pidfd, .events = POLLIN, .revents = 0};
    const int count = poll(&ready, 1, kDeadlineMs);
    if (count < 0 && errno == EINTR) continue;
    EXPECT_EQ(count, 1) << "the process did not end in time";
    const Ended ended = Reap(pidfd);
    if (ended.how != Ended::How::kNotYet || count != 1) return ended;
  }
}

std::string ReadAll(int descriptor) {
  std::string text;
  char buffer[4096];
  for (;;) {
    const ssize_t count = read(descriptor, buffer, sizeof(buffer));
    if (count <= 0) return text;
    text.append(buffer, static_cast<size_t>(count));
  }
}

unsigned long InodeOf(int descriptor) {
  struct stat status = {};
  EXPECT_EQ(fstat(descriptor, &status), 0);
  return status.st_ino;
}

size_t Mappings() {
  std::ifstream maps("/proc/self/maps");
  size_t count = 0;
  for (std::string line; std::getline(maps, line);) ++count;
  return count;
}

size_t OpenDescriptors() {
  size_t count = 0;
  DIR* directory = opendir("/proc/self/fd");
  while (readdir(directory) != nullptr) ++count;
  closedir(directory);
  return count;
}

// The arguments of one Spawn(), with memory of their own.
struct Call {
  explicit Call(std::vector<std::string> command_in) : command(std::move(command_in)) {}

  Started operator()() {
    arguments.clear();
    variables.clear();
    for (const std::string& word : command) arguments.push_back(word.c_str());
    arguments.push_back(nullptr);
    for (const std::string& variable : environment) variables.push_back(variable.c_str());
    variables.push_back(nullptr);
    options.program = program.empty() ? arguments[0] : program.c_str();
    options.arguments = arguments.data();
    options.environment = variables.data();
    options.descriptors = mappings.data();
    options.descriptors_count = mappings.size();
    if (!directory.empty()) options.directory = directory.c_str();
    return Spawn(options);
  }

  std::string program;  // if it is not command[0]
  std::vector<std::string> command;
  std::vector<std::string> environment = {"PATH=/usr/bin:/bin"};
  std::vector<DescriptorMapping> mappings;
  std::string directory;
  Options options;

  std::vector<const char*> arguments;
  std::vector<const char*> variables;
};

// Runs a command to its end and returns what it wrote to descriptor 1.
std::string OutputOf(Call& call, Ended* ended = nullptr) {
  int ends[2];
  EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
  call.mappings.push_back({ends[1], 1});
  const Started started = call();
  call.mappings.pop_back();
  close(ends[1]);
  EXPECT_EQ(started.failed_step, Step::kNone)
      << StepName(started.failed_step) << ": " << strerror(started.error);
  std::string text;
  if (started.pid > 0) {
    text = ReadAll(ends[0]);
    const Ended how = WaitFor(started.pidfd);
    if (ended != nullptr) *ended = how;
    close(started.pidfd);
  }
  close(ends[0]);
  return text;
}

using Report = std::map<std::string, std::string>;

// What the test child says of itself.
Report ReportOf(Call& call) {
  Report report;
  std::istringstream lines(OutputOf(call));
  for (std::string line; std::getline(lines, line);) {
    const size_t space = line.find(' ');
    report[line.substr(0, space)] = space == std::string::npos ? "" : line.substr(space + 1);
  }
  EXPECT_EQ(report.count("directory"), 1u) << "the test child did not report";
  return report;
}

std::string TestChild() {
  char directory[4096];
  EXPECT_NE(getcwd(directory, sizeof(directory)), nullptr);
  return std::string(directory) + "/spawn/spawn_test_child";
}

// descriptor -> inode
std::map<int, unsigned long> DescriptorsOf(const Report& report) {
  std::map<int, unsigned long> descriptors;
  std::istringstream words(report.at("descriptors"));
  for (std::string word; words >> word;) {
    int descriptor;
    unsigned long inode;
    EXPECT_EQ(sscanf(word.c_str(), "%d=%lu", &descriptor, &inode), 2) << word;
    descriptors[descriptor] = inode;
  }
  return descriptors;
}

class Directory {
 public:
  Directory() {
    char name[] = "/tmp/spawn_test_XXXXXX";
    EXPECT_NE(mkdtemp(name), nullptr);
    path_ = name;
  }
  ~Directory() {
    for (auto i = made_.rbegin(); i != made_.rend(); ++i) remove(i->c_str());
    rmdir(path_.c_str());
  }

  std::string Sub(const std::string& name) {
    made_.push_back(path_ + "/" + name);
    EXPECT_EQ(mkdir(made_.back().c_str(), 0755), 0);
    return made_.back();
  }
  std::string File(const std::string& name, const std::string& text, mode_t mode) {
    made_.push_back(path_ + "/" + name);
    std::ofstream(made_.back()) << text;
    EXPECT_EQ(chmod(made_.back().c_str(), mode), 0);
    return made_.back();
  }
  std::string Link(const std::string& name, const std::string& target) {
    made_.push_back(path_ + "/" + name);
    EXPECT_EQ(symlink(target.c_str(), made_.back().c_str()), 0);
    return made_.back();
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::vector<std::string> made_;
};

// ---- Starting and ending

TEST(SpawnTest, ExitCodeComesBack) {
  for (const int code : {0, 7, 255}) {
    Call call({"/bin/sh", "-c", "exit " + std::to_string(code)});
    const Started started = call();
    ASSERT_GT(started.pid, 0);
    const Ended ended = WaitFor(started.pidfd);
    EXPECT_EQ(ended.how, Ended::How::kExited);
    EXPECT_EQ(ended.value, code);
    EXPECT_FALSE(ended.stolen);
    close(started.pidfd);
  }
}

TEST(SpawnTest, SignalEndsTheProcessAndComesBack) {
  Call call({"/bin/sh", "-c", "read line"});
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  call.mappings = {{ends[0], 0}};
  const Started started = call();
  ASSERT_GT(started.pid, 0);
  EXPECT_EQ(Reap(started.pidfd).how, Ended::How::kNotYet);
  EXPECT_FALSE(Reap(started.pidfd).stolen);
  EXPECT_EQ(SendSignal(started.pidfd, 0), 0);
  EXPECT_EQ(SendSignal(started.pidfd, SIGTERM), 0);
  const Ended ended = WaitFor(started.pidfd);
  EXPECT_EQ(ended.how, Ended::How::kSignal);
  EXPECT_EQ(ended.value, SIGTERM);
  EXPECT_EQ(SendSignal(started.pidfd, SIGTERM), ESRCH);
  close(started.pidfd);
  close(ends[0]);
  close(ends[1]);
}

TEST(SpawnTest, BadSignalNumberIsRefused) {
  Call call({"/bin/true"});
  const Started started = call();
  ASSERT_GT(started.pid, 0);
  EXPECT_EQ(SendSignal(started.pidfd, 12345), EINVAL);
  WaitFor(started.pidfd);
  close(started.pidfd);
}

TEST(SpawnTest, PidfdIsCloseOnExec) {
  Call call({"/bin/true"});
  const Started started = call();
  ASSERT_GT(started.pid, 0);
  EXPECT_EQ(fcntl(started.pidfd, F_GETFD), FD_CLOEXEC);
  WaitFor(started.pidfd);
  close(started.pidfd);
}

TEST(SpawnTest, PidfdIsNoStandardDescriptor) {
  for (const int standard : {0, 1, 2}) {
    const int kept = fcntl(standard, F_DUPFD_CLOEXEC, 3);
    close(standard);
    Call call({"/bin/true"});
    const Started started = call();
    const bool taken = fcntl(standard, F_GETFD) != -1;
    if (kept >= 0) {
      EXPECT_EQ(dup2(kept, standard), standard);
      close(kept);
    }
    ASSERT_GT(started.pid, 0);
    EXPECT_FALSE(taken) << standard;
    EXPECT_GT(started.pidfd, 2);
    EXPECT_EQ(fcntl(started.pidfd, F_GETFD), FD_CLOEXEC);
    EXPECT_EQ(WaitFor(started.pidfd).value, 0);
    close(started.pidfd);
  }
}

TEST(SpawnTest, ArgumentsAndEnvironmentArrive) {
  Call call({"zero", "-c", "echo $0 $1 $VALUE", "one word", "two  words"});
  call.program = "/bin/sh";
  call.environment = {"VALUE=seen"};
  EXPECT_EQ(OutputOf(call), "one word two words seen\n");
}

// ---- Failing, typed and at once

TEST(SpawnTest, NoSuchFile) {
  Call call({"/no/such/program"});
  const Started started = call();
  EXPECT_EQ(started.failed_step, Step::kExec);
  EXPECT_EQ(started.error, ENOENT);
  EXPECT_EQ(started.pid, -1);
  EXPECT_EQ(started.pidfd, -1);
}

TEST(SpawnTest, NotExecutable) {
  Directory directory;
  Call call({directory.File("text", "no program\n", 0644)});
  const Started started = call();
  EXPECT_EQ(started.failed_step, Step::kExec);
  EXPECT_EQ(started.error, EACCES);
}

TEST(SpawnTest, DirectoryIsNoProgram) {
  Call call({"/tmp"});
  EXPECT_EQ(call().error, EACCES);
}

TEST(SpawnTest, FileOfNoFormatIsNotGivenToAShell) {
  Directory directory;
  Call call({directory.File("text", "echo run by a shell\n", 0755)});
  const Started started = call();
  EXPECT_EQ(started.failed_step, Step::kExec);
  EXPECT_EQ(started.error, ENOEXEC);
}

TEST(SpawnTest, MissingInterpreter) {
  Directory directory;
  Call call({directory.File("script", "#!/no/such/interpreter\n", 0755)});
  EXPECT_EQ(call().error, ENOENT);
}

TEST(SpawnTest, MissingDirectory) {
  Call call({"/bin/true"});
  call.directory = "/no/such/directory";
  const Started started = call();
  EXPECT_EQ(started.failed_step, Step::kDirectory);
  EXPECT_EQ(started.error, ENOENT);
}

TEST(SpawnTest, DescriptorThatIsNotOpen) {
  Call call({"/bin/true"});
  call.mappings = {{987, 3}};
  const Started started = call();
  EXPECT_EQ(started.failed_step, Step::kDescriptors);
  EXPECT_EQ(started.error, EBADF);
}

TEST(SpawnTest, TargetGivenTwice) {
  Call call({"/bin/true"});
  call.mappings = {{0, 3}, {1, 3}};
  const Started started = call();
  EXPECT_EQ(started.failed_step, Step::kDescriptors);
  EXPECT_EQ(started.error, EINVAL);
}

TEST(SpawnTest, AsManyDescriptorsAsTheLimitAndOneMore) {
  Call call({TestChild()});
  for (int i = 0; i < static_cast<int>(kDescriptorsMax) - 1; ++i)
    call.mappings.push_back({0, 3 + i});
  // With descriptor 1, which ReportOf maps, they are exactly the limit.
  EXPECT_EQ(DescriptorsOf(ReportOf(call)).size(), kDescriptorsMax + 2);

  call.mappings.push_back({0, 999});
  call.mappings.push_back({0, 998});
  const Started started = call();
  EXPECT_EQ(started.failed_step, Step::kDescriptors);
  EXPECT_EQ(started.error, E2BIG);
}

class LimitTest : public testing::Test {
 protected:
  LimitTest() { getrlimit(RLIMIT_NOFILE, &before_); }
  ~LimitTest() override { setrlimit(RLIMIT_NOFILE, &before_); }

  void SetLimit(rlim_t soft) {
    const rlimit limit = {soft, before_.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  }

  rlimit before_;
};

TEST_F(LimitTest, NoDescriptorIsLeft) {
  SetLimit(64);
  std::vector<int> held;
  for (int descriptor; (descriptor = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0;) {
    held.push_back(descriptor);
  }
  ASSERT_EQ(errno, EMFILE);

  Call call({"/bin/true"});
  const Started started = call();
  EXPECT_EQ(started.failed_step, Step::kStart);
  EXPECT_EQ(started.error, EMFILE);

  for (const int descriptor : held) close(descriptor);
  const Started again = call();
  ASSERT_EQ(again.failed_step, Step::kNone);
  EXPECT_EQ(WaitFor(again.pidfd).value, 0);
  close(again.pidfd);
}

TEST_F(LimitTest, NoNumberIsLeftToMoveAnOverlappingSource) {
  SetLimit(64);
  const int low = open("/dev/null", O_RDONLY | O_CLOEXEC);
  ASSERT_EQ(dup2(low, 63), 63);
  Call call({"/bin/true"});
  call.mappings = {{low, 63}, {63, low}};
  const Started started = call();
  EXPECT_EQ(started.failed_step, Step::kDescriptors);
  EXPECT_EQ(started.error, EMFILE);
  close(low);
  close(63);
}

TEST_F(LimitTest, LimitIsGivenToTheChildAlone) {
  SetLimit(200);
  Call call({TestChild()});
  EXPECT_EQ(ReportOf(call)["limit"], "200");

  const rlimit limit = {100, before_.rlim_max};
  call.options.descriptors_limit = &limit;
  call.mappings = {{0, 150}};  // above the child's limit, still below the caller's
  const Report report = ReportOf(call);
  EXPECT_EQ(report.at("limit"), "100");
  EXPECT_EQ(DescriptorsOf(report).count(150), 1u);

  rlimit now;
  getrlimit(RLIMIT_NOFILE, &now);
  EXPECT_EQ(now.rlim_cur, 200u);
}

TEST_F(LimitTest, ImpossibleLimit) {
  const rlimit limit = {100, 50};
  Call call({"/bin/true"});
  call.options.descriptors_limit = &limit;
  const Started started = call();
  EXPECT_EQ(started.failed_step, Step::kLimit);
  EXPECT_EQ(started.error, EINVAL);
}

// ---- Descriptors

TEST(SpawnTest, NoDescriptorLeaks) {
  // Opened without close-on-exec, as a careless host does.
  std::vector<int> careless;
  for (int i = 0; i < 20; ++i) careless.push_back(open("/dev/null", O_RDONLY));
  Call call({TestChild()});
  const auto descriptors = DescriptorsOf(ReportOf(call));
  for (const auto& [descriptor, inode] : descriptors) EXPECT_LE(descriptor, 2);
  // The caller's flags stay as they were.
  for (const int descriptor : careless) {
    EXPECT_EQ(fcntl(descriptor, F_GETFD), 0);
    close(descriptor);
  }
}

TEST(SpawnTest, StandardDescriptorsAreInherited) {
  const int input = dup(0);
  const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  ASSERT_EQ(dup3(null, 0, O_CLOEXEC), 0);
  Call call({TestChild()});
  const auto descriptors = DescriptorsOf(ReportOf(call));
  EXPECT_EQ(descriptors.at(0), InodeOf(null));
  EXPECT_EQ(descriptors.at(2), InodeOf(2));
  if (input >= 0) {
    dup2(input, 0);
    close(input);
  } else {
    close(0);
  }
  close(null);
}

class MappingTest : public testing::Test {
 protected:
  MappingTest() {
    // Four pipes, each known by its inode, at the numbers 20 to 23.
    for (int i = 0; i < 4; ++i) {
      int ends[2];
      EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
      EXPECT_EQ(dup3(ends[0], 20 + i, O_CLOEXEC), 20 + i);
      inodes_[20 + i] = InodeOf(ends[0]);
      close(ends[0]);
      close(ends[1]);
    }
  }
  ~MappingTest() override {
    for (int i = 20; i < 24; ++i) close(i);
  }

  // Checks that the child has what `mappings` says and nothing else.
  void Check(const std::vector<DescriptorMapping>& mappings) {
    Call call({TestChild()});
    call.mappings = mappings;
    const auto descriptors = DescriptorsOf(ReportOf(call));
    size_t above = 0;
    for (const auto& [descriptor, inode] : descriptors) above += descriptor > 2;
    EXPECT_EQ(above, mappings.size());
    for (const DescriptorMapping& mapping : mappings) {
      ASSERT_EQ(descriptors.count(mapping.to), 1u) << mapping.to;
      EXPECT_EQ(descriptors.at(mapping.to), inodes_.at(mapping.from)) << mapping.to;
    }
  }

  std::map<int, unsigned long> inodes_;
};

TEST_F(MappingTest, Plain) { Check({{20, 3}, {21, 4}}); }
TEST_F(MappingTest, SameNumber) { Check({{20, 20}, {21, 21}}); }
TEST_F(MappingTest, Swap) { Check({{20, 21}, {21, 20}}); }
TEST_F(MappingTest, Rotation) { Check({{20, 21}, {21, 22}, {22, 23}, {23, 20}}); }
TEST_F(MappingTest, ChainForwards) { Check({{20, 21}, {21, 22}, {22, 23}}); }
TEST_F(MappingTest, ChainBackwards) { Check({{22, 23}, {21, 22}, {20, 21}}); }
TEST_F(MappingTest, OneSourceManyTargets) { Check({{20, 3}, {20, 20}, {20, 21}, {20, 22}}); }
TEST_F(MappingTest, TargetIsTheSourceOfALaterOne) { Check({{20, 21}, {21, 3}, {21, 21 + 50}}); }

TEST_F(MappingTest, EveryPermutation) {
  int targets[4] = {20, 21, 22, 23};
  std::sort(targets, targets + 4);
  do {
    Check({{20, targets[0]}, {21, targets[1]}, {22, targets[2]}, {23, targets[3]}});
  } while (std::next_permutation(targets, targets + 4));
}

// ---- Signals, session, directory

TEST(SpawnTest, SignalsAreReset) {
  struct sigaction ignore = {};
  ignore.sa_handler = SIG_IGN;
  struct sigaction pipe_before, user_before, real_time_before;
  sigaction(SIGPIPE, &ignore, &pipe_before);
  sigaction(SIGUSR1, &ignore, &user_before);
  sigaction(SIGRTMAX, &ignore, &real_time_before);
  sigset_t blocked, mask_before;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGTERM);
  sigaddset(&blocked, SIGRTMIN);
  pthread_sigmask(SIG_BLOCK, &blocked, &mask_before);

  Call call({TestChild()});
  const Report report = ReportOf(call);
  EXPECT_EQ(report.at("ignored"), "");
  EXPECT_EQ(report.at("blocked"), "");

  // The caller's stay.
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, &mask_before, &mask);
  EXPECT_EQ(sigismember(&mask, SIGTERM), 1);
  EXPECT_EQ(sigismember(&mask, SIGRTMIN), 1);
  EXPECT_EQ(sigismember(&mask, SIGUSR2), 0);
  struct sigaction now;
  sigaction(SIGPIPE, &pipe_before, &now);
  EXPECT_EQ(now.sa_handler, SIG_IGN);
  sigaction(SIGUSR1, &user_before, nullptr);
  sigaction(SIGRTMAX, &real_time_before, nullptr);
}

std::atomic<int> handled_in_caller;
std::atomic<int> handled_in_child;
pid_t caller;

TEST(SpawnTest, HandlersOfTheCallerNeverRunInTheChild) {
  setpgid(0, 0);  // fails if this leads a group already, which does as well
  caller = getpid();
  struct sigaction count = {};
  count.sa_handler = [](int) {
    // The kernel's answer: the child shares this memory until exec.
    ++(syscall(SYS_getpid) == caller ? handled_in_caller : handled_in_child);
  };
  count.sa_flags = SA_RESTART;
  struct sigaction before;
  sigaction(SIGUSR2, &count, &before);

  std::atomic<bool> stop = false;
  std::thread storm([&stop] {
    while (!stop) kill(0, SIGUSR2);
  });
  for (int i = 0; i < 200; ++i) {
    Call call({"/bin/true"});
    const Started started = call();
    ASSERT_EQ(started.failed_step, Step::kNone);
    WaitFor(started.pidfd);
    close(started.pidfd);
  }
  stop = true;
  storm.join();
  sigaction(SIGUSR2, &before, nullptr);
  EXPECT_GT(handled_in_caller, 0);
  EXPECT_EQ(handled_in_child, 0);
}

TEST(SpawnTest, ProcessGroupAndSession) {
  Call call({TestChild()});
  Report report = ReportOf(call);
  EXPECT_EQ(report["group"], std::to_string(getpgid(0)));
  EXPECT_EQ(report["session"], std::to_string(getsid(0)));

  call.options.session = Session::kOwnGroup;
  report = ReportOf(call);
  EXPECT_EQ(report["group"], report["pid"]);
  EXPECT_EQ(report["session"], std::to_string(getsid(0)));

  call.options.session = Session::kOwnSession;
  report = ReportOf(call);
  EXPECT_EQ(report["group"], report["pid"]);
  EXPECT_EQ(report["session"], report["pid"]);
}

TEST(SpawnTest, RelativeProgramStartsAtTheDirectory) {
  Directory directory;
  directory.Sub("bin");
  directory.File("bin/where", "#!/bin/sh\npwd\n", 0755);
  Call call({"./bin/where"});
  call.directory = directory.path();
  EXPECT_EQ(OutputOf(call), directory.path() + "\n");
}

// ---- PATH

class PathTest : public testing::Test {
 protected:
  PathTest() {
    first_ = directory_.Sub("first");
    second_ = directory_.Sub("second");
    directory_.File("first/denied", "#!/bin/sh\necho first\n", 0644);
    directory_.File("second/denied", "#!/bin/sh\necho second\n", 0755);
    directory_.File("second/only", "#!/bin/sh\necho only\n", 0755);
    file_ = directory_.File("file", "", 0644);
  }

  Directory directory_;
  std::string first_, second_, file_;
};

TEST_F(PathTest, IsTheChilds) {
  Call call({"only"});
  call.environment = {"OTHER=1", "PATH=" + second_};
  EXPECT_EQ(OutputOf(call), "only\n");
  call.environment = {"PATH=" + first_};
  EXPECT_EQ(call().error, ENOENT);
}

TEST_F(PathTest, GoesOnAfterAFileThatMayNotBeExecuted) {
  Call call({"denied"});
  call.environment = {"PATH=" + first_ + ":" + second_};
  EXPECT_EQ(OutputOf(call), "second\n");
}

TEST_F(PathTest, RemembersThatOneWasDenied) {
  Call call({"denied"});
  call.environment = {"PATH=" + first_ + ":/no/such/directory"};
  const Started started = call();
  EXPECT_EQ(started.failed_step, Step::kExec);
  EXPECT_EQ(started.error, EACCES);
}

TEST_F(PathTest, GoesOnAfterWhatIsNoDirectory) {
  const std::string loop = directory_.Link("loop", "loop");
  for (const std::string& entry :
       {std::string("/no/such"), file_, loop, std::string(300, 'x'), std::string(5000, 'x')}) {
    Call call({"only"});
    call.environment = {"PATH=" + entry + ":" + second_};
    EXPECT_EQ(OutputOf(call), "only\n") << entry;
  }
}

TEST_F(PathTest, AnEntryMayBeAsLongAsAPathAndNotLonger) {
  const std::string name = "only";
  // 4,095 bytes with the slash and the name.
  const std::string entry = second_ + std::string(4095 - second_.size() - 1 - name.size(), '/');
  Call call({name});
  call.environment = {"PATH=" + entry};
  EXPECT_EQ(OutputOf(call), "only\n");
  call.environment = {"PATH=" + entry + "/"};
  EXPECT_EQ(call().error, ENOENT);
}

TEST_F(PathTest, EmptyEntryIsTheDirectory) {
  for (const char* path : {"PATH=", "PATH=:/no/such", "PATH=/no/such:", "PATH=/no::/such"}) {
    Call call({"only"});
    call.environment = {path};
    call.directory = second_;
    EXPECT_EQ(OutputOf(call), "only\n") << path;
  }
}

TEST_F(PathTest, UnsetIsTheSystems) {
  Call call({"true"});
  call.environment = {"PATHS=/no/such"};
  Ended ended;
  OutputOf(call, &ended);
  EXPECT_EQ(ended.value, 0);
}

TEST_F(PathTest, NameThatIsEmptyOrTooLong) {
  Call call({""});
  EXPECT_EQ(call().error, ENOENT);
  Call longest({std::string(255, 'x')});
  EXPECT_EQ(longest().error, ENOENT);
  Call too_long({std::string(256, 'x')});
  EXPECT_EQ(too_long().error, ENAMETOOLONG);
}

// ---- Reaped by somebody else

bool KernelTellsOfReaped() {
  utsname name;
  uname(&name);
  int major = 0, minor = 0;
  EXPECT_EQ(sscanf(name.release, "%d.%d", &major, &minor), 2);
  return major > 6 || (major == 6 && minor >= 15);
}

// That somebody else reaped the process, and how it ended where the kernel tells.
void ExpectStolen(const Ended& ended, Ended::How how, int value) {
  EXPECT_TRUE(ended.stolen);
  if (KernelTellsOfReaped()) {
    EXPECT_EQ(ended.how, how);
    EXPECT_EQ(ended.value, value);
  } else {
    EXPECT_EQ(ended.how, Ended::How::kNotKnown);
  }
}

TEST(ReapTest, Stolen) {
  for (const bool by_signal : {false, true}) {
    Call call({"/bin/sh", "-c", by_signal ? "kill -KILL $$" : "exit 7"});
    const Started started = call();
    ASSERT_GT(started.pid, 0);
    int status;
    ASSERT_EQ(waitpid(-1, &status, 0), started.pid);
    ExpectStolen(Reap(started.pidfd), by_signal ? Ended::How::kSignal : Ended::How::kExited,
                 by_signal ? SIGKILL : 7);
    close(started.pidfd);
  }
}

TEST(ReapTest, HostThatIgnoresSigchld) {
  struct sigaction ignore = {};
  ignore.sa_handler = SIG_IGN;
  struct sigaction before;
  sigaction(SIGCHLD, &ignore, &before);
  Call call({"/bin/sh", "-c", "exit 9"});
  const Started started = call();
  ASSERT_GT(started.pid, 0);
  const Ended ended = WaitFor(started.pidfd);
  sigaction(SIGCHLD, &before, nullptr);
  ExpectStolen(ended, Ended::How::kExited, 9);
  close(started.pidfd);

  // A program that cannot be started is told all the same.
  sigaction(SIGCHLD, &ignore, &before);
  Call missing({"/no/such/program"});
  EXPECT_EQ(missing().error, ENOENT);
  sigaction(SIGCHLD, &before, nullptr);
}

TEST(ReapTest, ProcessThatIsNoChildOfOurs) {
  // The shell's child is seen to run and to end; the shell reaps it.
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  Call call({"/bin/sh", "-c", "/bin/sh -c 'echo $$; exec sleep 1000' & wait"});
  call.mappings = {{ends[1], 1}};
  const Started shell = call();
  close(ends[1]);
  ASSERT_GT(shell.pid, 0);
  char line[32] = {};
  ASSERT_GT(read(ends[0], line, sizeof(line) - 1), 0);
  const int grandchild = static_cast<int>(syscall(SYS_pidfd_open, atoi(line), 0));
  ASSERT_GE(grandchild, 0);

  const Ended ended = Reap(grandchild);
  EXPECT_EQ(ended.how, Ended::How::kNotYet);
  EXPECT_TRUE(ended.stolen);

  EXPECT_EQ(SendSignal(grandchild, SIGKILL), 0);
  EXPECT_EQ(WaitFor(shell.pidfd).how, Ended::How::kExited);
  ExpectStolen(WaitFor(grandchild), Ended::How::kSignal, SIGKILL);
  close(shell.pidfd);
  close(grandchild);
  close(ends[0]);
}

TEST(ReapTest, ZombieOfAnotherParent) {
  // A parent that does not reap: it becomes cat after its child has gone.
  int input[2], output[2];
  ASSERT_EQ(pipe2(input, O_CLOEXEC), 0);
  ASSERT_EQ(pipe2(output, O_CLOEXEC), 0);
  Call call({"/bin/sh", "-c", "/bin/sh -c 'echo $$; read line' <&3 & exec cat"});
  call.mappings = {{input[0], 3}, {input[0], 0}, {output[1], 1}};
  const Started parent = call();
  ASSERT_GT(parent.pid, 0);
  close(output[1]);
  char line[32] = {};
  ASSERT_GT(read(output[0], line, sizeof(line) - 1), 0);
  const int grandchild = static_cast<int>(syscall(SYS_pidfd_open, atoi(line), 0));
  ASSERT_GE(grandchild, 0);
  EXPECT_EQ(SendSignal(grandchild, SIGKILL), 0);

  const Ended ended = WaitFor(grandchild);
  EXPECT_EQ(ended.how, Ended::How::kNotKnown);
  EXPECT_TRUE(ended.stolen);

  close(input[1]);  // cat ends
  close(input[0]);
  WaitFor(parent.pidfd);
  close(parent.pidfd);
  close(grandchild);
  close(output[0]);
}

TEST(ReapTest, AThiefInAnotherThread) {
  // Whoever wins, the code is told, where the kernel can.
  std::atomic<bool> stop = false;
  std::thread thief([&stop] {
    while (!stop) waitpid(-1, nullptr, WNOHANG);
  });
  for (int i = 0; i < 500; ++i) {
    Call call({"/bin/sh", "-c", "exit 5"});
    const Started started = call();
    ASSERT_GT(started.pid, 0);
    const Ended ended = WaitFor(started.pidfd);
    if (KernelTellsOfReaped() || !ended.stolen) {
      EXPECT_EQ(ended.how, Ended::How::kExited);
      EXPECT_EQ(ended.value, 5);
    } else {
      EXPECT_EQ(ended.how, Ended::How::kNotKnown);
    }
    close(started.pidfd);
  }
  stop = true;
  thief.join();
}

// ---- Many

TEST(SpawnTest, AThousandLeaveNothingBehind) {
  const size_t before = OpenDescriptors();
  const size_t mappings_before = Mappings();
  for (int i = 0; i < 1000; ++i) {
    const bool fails = i % 4 == 0;
    Call call({fails ? "/no/such/program" : "/bin/true"});
    const Started started = call();
    ASSERT_EQ(started.failed_step, fails ? Step::kExec : Step::kNone);
    if (fails) continue;
    EXPECT_EQ(WaitFor(started.pidfd).value, 0);
    close(started.pidfd);
  }
  EXPECT_EQ(OpenDescriptors(), before);
  EXPECT_LT(Mappings(), mappings_before + 100);
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);  // no zombie
  EXPECT_EQ(errno, ECHILD);
}

TEST(SpawnTest, ThreadsAtOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> right = 0;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([t, &right] {
      for (int i = 0; i < 40; ++i) {
        const int code = t * 10 + i % 10;
        Call call({"/bin/sh", "-c", "exit " + std::to_string(code)});
        if (i % 5 == 4) {
          call.program = "/no/such/program";
          const Started started = call();
          right += started.failed_step == Step::kExec && started.error == ENOENT;
          continue;
        }
        const Started started = call();
        if (started.failed_step != Step::kNone) continue;
        const Ended ended = WaitFor(started.pidfd);
        right += ended.how == Ended::How::kExited && ended.value == code;
        close(started.pidfd);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 8 * 40);
}

TEST(SpawnTest, StepNames) {
  EXPECT_STREQ(StepName(Step::kExec), "exec");
  EXPECT_STREQ(StepName(Step::kDirectory), "directory");
}

}  // namespace
}  // namespace deka::spawn
