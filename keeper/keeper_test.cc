// Runs deka-keeper with fake agents, each of which connects to the test and does as it says.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "keeper/fake_agent.h"
#include "keeper/packet.h"
#include "keeper/protocol.h"
#include "spawn/spawn.h"

namespace deka::keeper {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kDeadline{30};
constexpr uint64_t kLayout = 7;

// A sanitizer's memory is not the keeper's.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor() { Close(); }

  int get() const { return number_; }
  void Close() {
    if (number_ >= 0) close(number_);
    number_ = -1;
  }

 private:
  int number_ = -1;
};

// A packet of an agent's.
struct Told {
  Message message;
  std::vector<Descriptor> descriptors;
};

// Nothing at the end of the connection.
std::unique_ptr<Told> Receive(int socket) {
  Packet packet;
  if (ReceivePacket(socket, 0, packet) != Received::kPacket) return nullptr;
  EXPECT_FALSE(packet.truncated);
  auto told = std::make_unique<Told>();
  told->message = packet.message;
  for (size_t i = 0; i < packet.count; ++i) told->descriptors.emplace_back(packet.descriptors[i]);
  return told;
}

void SendTo(int socket, const Message& message, const std::vector<int>& descriptors = {}) {
  SendPacket(socket, 0, message, descriptors.data(), descriptors.size());
}

// The test's side of one agent. Its packets are read by the thread of Agents, under whose lock all
// of this is.
struct Agent {
  Descriptor socket;
  pid_t pid = 0;
  std::list<std::unique_ptr<Told>> packets;
  std::vector<Type> heard;  // of all there ever were, in their order
  bool gone = false;
};

// All agents of one keeper, and what the keeper says.
class Agents {
 public:
  // What an agent answers by itself. Runs on the thread of Agents.
  using Habit = std::function<void(Agent&, const Message&)>;

  explicit Agents(const std::string& path) {
    listener_ = Descriptor(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    EXPECT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_.get(), 128), 0);
    wake_ = Descriptor(eventfd(0, EFD_CLOEXEC));
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    said_from_ = Descriptor(ends[0]);
    said_to_ = Descriptor(ends[1]);
    thread_ = std::thread([this] { Run(); });
  }

  ~Agents() {
    const uint64_t one = 1;
    EXPECT_EQ(write(wake_.get(), &one, sizeof(one)), 8);
    thread_.join();
  }

  int standard_error() const { return said_to_.get(); }
  void CloseStandardError() { said_to_.Close(); }

  void SetHabit(Habit habit) {
    const std::lock_guard<std::mutex> lock(mutex_);
    habit_ = std::move(habit);
  }

  template <typename Condition>
  bool Await(Condition condition) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, kDeadline, condition);
  }

  // The agents in the order in which they came.
  Agent& At(size_t index) {
    Agent* found = nullptr;
    EXPECT_TRUE(Await([&] {
      if (agents_.size() <= index) return false;
      found = &*std::next(agents_.begin(), static_cast<std::ptrdiff_t>(index));
      return found->pid != 0;
    })) << "agent "
        << index << "; " << said_;
    if (found == nullptr) abort();
    return *found;
  }

  size_t Count() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return agents_.size();
  }

  // The agent's first packet of this type that was not taken, and, if `id` is given, of this id.
  Told Take(Agent& agent, Type type, int64_t id = -1) {
    std::unique_ptr<Told> taken;
    const bool there = Await([&] {
      for (auto it = agent.packets.begin(); it != agent.packets.end(); ++it) {
        if ((*it)->message.type != type) continue;
        if (id >= 0 && (*it)->message.id != static_cast<uint64_t>(id)) continue;
        taken = std::move(*it);
        agent.packets.erase(it);
        return true;
      }
      return false;
    });
    EXPECT_TRUE(there) << "no packet of type " << static_cast<int>(type) << "; " << said_;
    return there ? std::move(*taken) : Told();
  }

  std::vector<Type> Heard(Agent& agent) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return agent.heard;
  }

  // What came before its kGo, that included.
  std::vector<Type> HeardUntilGo(Agent& agent) {
    std::vector<Type> heard = Heard(agent);
    const auto go = std::find(heard.begin(), heard.end(), Type::kGo);
    EXPECT_NE(go, heard.end());
    if (go != heard.end()) heard.erase(go + 1, heard.end());
    return heard;
  }

  bool HasHeard(Agent& agent, Type type) {
    const std::vector<Type> heard = Heard(agent);
    return std::find(heard.begin(), heard.end(), type) != heard.end();
  }

  // Returns when the keeper can read it, if it is for the keeper.
  void Send(Agent& agent, const Message& message, const std::vector<int>& descriptors = {}) {
    SendTo(agent.socket.get(), message, descriptors);
    if (message.type < fake::kFirst) Command(agent, fake::kPing);
  }

  // Returns when the agent has done it.
  void Command(Agent& agent, Type type, uint32_t detail = 0) {
    Send(agent, {.type = type, .detail = detail});
    Take(agent, fake::kDone);
  }

  void AwaitGone(Agent& agent) {
    EXPECT_TRUE(Await([&] { return agent.gone; })) << agent.pid << "; " << said_;
  }

  void AwaitSaid(const std::string& text) {
    EXPECT_TRUE(Await([&] { return said_.find(text) != std::string::npos; })) << text << "\n"
                                                                              << said_;
  }

  std::string Said() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return said_;
  }

 private:
  void Run() {
    std::vector<pollfd> ready;
    for (;;) {
      ready = {
          {wake_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}, {said_from_.get(), POLLIN, 0}};
      for (const Agent& agent : agents_)
        ready.push_back({agent.gone ? -1 : agent.socket.get(), POLLIN, 0});
      poll(ready.data(), ready.size(), -1);
      if (ready[0].revents != 0) return;

      const std::lock_guard<std::mutex> lock(mutex_);
      size_t i = 3;
      for (Agent& agent : agents_) {
        if (ready[i++].revents != 0) Read(agent);
      }
      if (ready[1].revents != 0) {
        agents_.emplace_back();
        agents_.back().socket =
            Descriptor(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      }
      if (ready[2].revents != 0) {
        char text[4096];
        const ssize_t bytes = read(said_from_.get(), text, sizeof(text));
        if (bytes > 0) said_.append(text, static_cast<size_t>(bytes));
        if (bytes == 0) said_from_.Close();
      }
      changed_.notify_all();
    }
  }

  void Read(Agent& agent) {
    std::unique_ptr<Told> packet = Receive(agent.socket.get());
    if (packet == nullptr) {
      agent.gone = true;
      return;
    }
    const Message message = packet->message;
    agent.heard.push_back(message.type);
    if (message.type == fake::kHello) agent.pid = message.pid;
    if (message.type == Type::kGo) {
      // The fence: each agent before has been waited for.
      for (const Agent& before : agents_) {
        if (std::find(before.heard.begin(), before.heard.end(), Type::kGo) == before.heard.end())
          continue;
        if (&before == &agent) continue;
        EXPECT_EQ(kill(before.pid, 0), -1) << before.pid;
      }
    }
    agent.packets.push_back(std::move(packet));
    if (habit_) {
      habit_(agent, message);
    } else if (message.type == Type::kFed) {
      SendTo(agent.socket.get(), {.type = Type::kReady, .id = kLayout, .number = kProtocolVersion});
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Agent> agents_;  // changed by the thread, under the lock
  std::string said_;
  Habit habit_;

  Descriptor listener_;
  Descriptor wake_;
  Descriptor said_from_;
  Descriptor said_to_;
  std::thread thread_;
};

Descriptor MemoryFile(const std::string& bytes, bool sealed) {
  Descriptor file(memfd_create("spec", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(write(file.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  if (sealed) {
    EXPECT_EQ(
        fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL),
        0);
  }
  return file;
}

struct Program {
  std::vector<std::string> arguments;
  std::vector<std::string> environment = {"PATH=/usr/bin:/bin"};
  std::string directory;
  SpawnSpec spec;  // what is not in the above

  std::string Bytes() const {
    std::string bytes(sizeof(SpawnSpec), '\0');
    SpawnSpec out = spec;
    const auto append = [&](const std::string& text) {
      const uint64_t offset = bytes.size();
      bytes.append(text.c_str(), text.size() + 1);
      return offset;
    };
    out.program = append(arguments[0]);
    out.arguments = bytes.size();
    out.arguments_count = arguments.size();
    for (const std::string& argument : arguments) append(argument);
    if (!directory.empty()) out.directory = append(directory);
    out.environment = bytes.size();
    out.environment_count = environment.size();
    for (const std::string& variable : environment) append(variable);
    out.bytes = bytes.size();
    memcpy(bytes.data(), &out, sizeof(out));
    return bytes;
  }
};

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string StatusOf(pid_t pid, const std::string& name) {
  std::istringstream lines(ReadFile("/proc/" + std::to_string(pid) + "/status"));
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(name + ":", 0) == 0)
      return line.substr(line.find_first_not_of(" \t", name.size() + 1));
  }
  return "";
}

// Which file it is.
using FileId = std::pair<dev_t, ino_t>;

FileId FileOf(int descriptor) {
  struct stat status = {};
  EXPECT_EQ(fstat(descriptor, &status), 0);
  return {status.st_dev, status.st_ino};
}

std::map<int, FileId> DescriptorsOf(pid_t pid) {
  std::map<int, FileId> descriptors;
  const std::string path = "/proc/" + std::to_string(pid) + "/fd";
  DIR* directory = opendir(path.c_str());
  if (directory == nullptr) return descriptors;
  while (const dirent* entry = readdir(directory)) {
    struct stat status = {};
    if (entry->d_name[0] == '.' || stat((path + "/" + entry->d_name).c_str(), &status) != 0)
      continue;
    descriptors[atoi(entry->d_name)] = {status.st_dev, status.st_ino};
  }
  closedir(directory);
  return descriptors;
}

std::set<int> NumbersOf(pid_t pid) {
  std::set<int> numbers;
  for (const auto& [number, file] : DescriptorsOf(pid)) numbers.insert(number);
  return numbers;
}

// Until something comes, or the end, "".
std::string ReadSome(int descriptor) {
  pollfd ready = {descriptor, POLLIN, 0};
  EXPECT_EQ(poll(&ready, 1, std::chrono::milliseconds(kDeadline).count()), 1);
  if (ready.revents == 0) return "";
  char text[4096];
  const ssize_t bytes = read(descriptor, text, sizeof(text));
  return bytes > 0 ? std::string(text, static_cast<size_t>(bytes)) : "";
}

bool AwaitEnd(int pidfd) {
  pollfd ready = {pidfd, POLLIN, 0};
  return poll(&ready, 1, std::chrono::milliseconds(kDeadline).count()) == 1;
}

// What comes back, as soon as who is at the other end runs.
std::string Echo(int channel) {
  EXPECT_EQ(write(channel, "hello", 5), 5);
  return ReadSome(channel);
}

struct Pair {
  Pair() {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    ours = Descriptor(ends[0]);
    childs = Descriptor(ends[1]);
  }
  Descriptor ours;
  Descriptor childs;
};

struct Pipe {
  Pipe() {
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    from = Descriptor(ends[0]);
    to = Descriptor(ends[1]);
  }
  Descriptor from;
  Descriptor to;
};

class KeeperTest : public testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/keeper_test.XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    folder_ = folder;
    socket_ = folder_ + "/test";
    agents_ = std::make_unique<Agents>(socket_);
    fake_ = realpath_of("keeper/fake_agent");
  }

  void TearDown() override {
    if (keeper_ > 0) {
      kill(keeper_, SIGKILL);
      waitpid(keeper_, nullptr, 0);
    }
    agents_.reset();
    std::filesystem::remove_all(folder_);
  }

  static std::string realpath_of(const char* path) {
    char real[PATH_MAX];
    EXPECT_NE(realpath(path, real), nullptr) << path;
    return real;
  }

  // `agent`: the program; else the fake one.
  void Launch(std::vector<std::string> limits = {}, const std::string& agent = "",
              const std::function<void()>& in_keeper = nullptr) {
    std::vector<std::string> words = {realpath_of("keeper/deka-keeper")};
    for (const std::string& limit : limits) words.push_back("--" + limit);
    words.push_back(agent.empty() ? fake_ : agent);
    words.push_back(socket_);
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    keeper_ = fork();
    if (keeper_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      setpgid(0, 0);
      const int null = open("/dev/null", O_RDONLY);
      dup2(null, STDIN_FILENO);
      dup2(agents_->standard_error(), STDERR_FILENO);
      if (in_keeper) in_keeper();
      execv(arguments[0], arguments.data());
      _exit(127);
    }
    ASSERT_GT(keeper_, 0);
  }

  // The keeper's exit code, or 1000 and the signal that ended it.
  int AwaitExit() {
    const auto deadline = Clock::now() + kDeadline;
    const Descriptor pidfd(static_cast<int>(syscall(SYS_pidfd_open, keeper_, 0)));
    EXPECT_TRUE(AwaitEnd(pidfd.get())) << agents_->Said();
    if (Clock::now() > deadline) return -1;
    int status = 0;
    waitpid(keeper_, &status, 0);
    keeper_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }

  // Asks for a child; what is held, and what it gets, stays the test's.
  void Ask(Agent& agent, uint64_t id, const Program& program, uint32_t holds = 0,
           const std::vector<int>& held = {}, const std::vector<int>& childs = {}) {
    const Descriptor spec = MemoryFile(program.Bytes(), true);
    std::vector<int> descriptors = {spec.get()};
    descriptors.insert(descriptors.end(), held.begin(), held.end());
    descriptors.insert(descriptors.end(), childs.begin(), childs.end());
    agents_->Send(agent, {.type = Type::kSpawn, .detail = holds, .id = id}, descriptors);
  }

  Told Spawned(Agent& agent, uint64_t id) {
    Told answer = agents_->Take(agent, Type::kSpawned, static_cast<int64_t>(id));
    EXPECT_EQ(answer.message.detail, 0u) << strerror(answer.message.status);
    EXPECT_GT(answer.message.pid, 0);
    return answer;
  }

  // A child that says what it hears on its channel, and ends with it. Its pid.
  pid_t SpawnEcho(Agent& agent, uint64_t id, const Pair& channel) {
    Ask(agent, id, Shell("exec cat <&3 >&3", 3), kChannel, {channel.ours.get()},
        {channel.childs.get()});
    return Spawned(agent, id).message.pid;
  }

  // A child that exits with `code` when its channel ends.
  static Program Exits(int code) { return Shell("read line <&3; exit " + std::to_string(code), 3); }

  static Program Shell(const std::string& script, int descriptor) {
    Program program{.arguments = {"/bin/sh", "-c", script}, .directory = "", .spec = {}};
    program.spec.session = static_cast<uint32_t>(spawn::Session::kOwnGroup);
    if (descriptor >= 0) {
      program.spec.descriptors_count = 1;
      program.spec.descriptors[0] = descriptor;
    }
    return program;
  }

  // Waits until the keeper has a spare that is ready.
  Agent& ReadySpare(Agent& agent, size_t index) {
    Agent& spare = agents_->At(index);
    for (;;) {
      const Told told = agents_->Take(agent, Type::kSpare);
      if (told.message.pid == spare.pid || told.message.type != Type::kSpare) return spare;
    }
  }

  // Launches with an agent that is ready, and no spare that is.
  Agent& LaunchWithoutSpare(const std::vector<std::string>& options) {
    agents_->SetHabit([](Agent&, const Message&) {});
    Launch(options);
    Agent& agent = agents_->At(0);
    agents_->Take(agent, Type::kGo);
    agents_->Send(agent, {.type = Type::kReady, .id = kLayout, .number = kProtocolVersion});
    agents_->At(1);
    return agent;
  }

  // Ends the agent from outside. It is there to be waited for then.
  void Kill(Agent& agent) {
    const Descriptor pidfd(static_cast<int>(syscall(SYS_pidfd_open, agent.pid, 0)));
    ASSERT_GE(pidfd.get(), 0);
    kill(agent.pid, SIGKILL);
    EXPECT_TRUE(AwaitEnd(pidfd.get()));
    agents_->AwaitGone(agent);
  }

  std::string folder_;
  std::string socket_;
  std::string fake_;
  std::unique_ptr<Agents> agents_;
  pid_t keeper_ = -1;
};

// --- Agents --------------------------------------------------------------------------------------

TEST_F(KeeperTest, FirstAgentIsToldTheFileAndGo) {
  Launch();
  Agent& agent = agents_->At(0);
  agents_->Take(agent, Type::kGo);
  EXPECT_EQ(agents_->HeardUntilGo(agent),
            (std::vector<Type>{fake::kHello, Type::kFile, Type::kFed, Type::kGo}));

  Told file = agents_->Take(agent, Type::kFile);
  EXPECT_EQ(file.message.number, kProtocolVersion);
  EXPECT_EQ(file.message.id, 1u);
  EXPECT_EQ(file.message.pid, keeper_);
  ASSERT_EQ(file.descriptors.size(), 1u);
  struct stat status = {};
  ASSERT_EQ(fstat(file.descriptors[0].get(), &status), 0);
  EXPECT_EQ(static_cast<uint64_t>(status.st_size), AgentFile::kBytes);
  EXPECT_NE(ftruncate(file.descriptors[0].get(), 0), 0);
  EXPECT_NE(ftruncate(file.descriptors[0].get(), AgentFile::kBytes + 1), 0);

  EXPECT_EQ(ReadFile("/proc/" + std::to_string(agent.pid) + "/cmdline"),
            fake_ + '\0' + socket_ + '\0');
  EXPECT_NE(ReadFile("/proc/" + std::to_string(agent.pid) + "/environ").find("DEKA_KEEPER_FD=3"),
            std::string::npos);
  EXPECT_EQ(getpgid(agent.pid), agent.pid);
}

TEST_F(KeeperTest, SpareIsStartedWhenTheAgentIsReadyAndIsToldAllChildren) {
  agents_->SetHabit([](Agent&, const Message&) {});
  Launch();
  Agent& agent = agents_->At(0);
  agents_->Take(agent, Type::kGo);
  const Pair channel;
  SpawnEcho(agent, 5, channel);
  EXPECT_EQ(agents_->Count(), 1u);

  agents_->SetHabit(nullptr);
  agents_->Send(agent, {.type = Type::kReady, .id = kLayout, .number = kProtocolVersion});
  Agent& spare = ReadySpare(agent, 1);
  EXPECT_EQ(agents_->Heard(spare),
            (std::vector<Type>{fake::kHello, Type::kFile, Type::kChild, Type::kFed}));
  EXPECT_EQ(agents_->Take(spare, Type::kFile).message.id, 2u);

  // Each change is told.
  const Pair another;
  SpawnEcho(agent, 6, another);
  EXPECT_EQ(agents_->Take(spare, Type::kChild, 6).descriptors.size(), 2u);
  agents_->Send(agent, {.type = Type::kRelease, .id = 6});
  EXPECT_EQ(agents_->Take(spare, Type::kGone, 6).message.detail, 0u);
  agents_->Send(agent, {.type = Type::kForget, .id = 5});
  EXPECT_EQ(agents_->Take(spare, Type::kGone, 5).message.detail, 1u);
}

TEST_F(KeeperTest, AgentsAndChildrenGetNoDescriptorTooMuch) {
  Launch();
  Agent& agent = agents_->At(0);
  Agent& spare = ReadySpare(agent, 1);
  const Pair channel;
  const pid_t child = SpawnEcho(agent, 1, channel);
  agents_->Take(spare, Type::kChild);
  agents_->Command(agent, fake::kPing);  // what it passed on before is closed
  agents_->Command(spare, fake::kPing);
  // Theirs: the keeper's pair and their own to the test.
  const std::set<int> expected = {0, 1, 2, 3, 4};
  EXPECT_EQ(NumbersOf(agent.pid), expected);
  EXPECT_EQ(NumbersOf(spare.pid), expected);
  EXPECT_EQ(Echo(channel.ours.get()), "hello");
  EXPECT_EQ(NumbersOf(child), (std::set<int>{0, 1, 2, 3}));
}

TEST_F(KeeperTest, AgentsHaveTheLimitOfDescriptorsThatTheKeeperWasStartedWith) {
  rlimit limit = {.rlim_cur = 300, .rlim_max = 400};
  Launch({}, "", [&] { setrlimit(RLIMIT_NOFILE, &limit); });
  Agent& agent = agents_->At(0);
  rlimit found = {};
  ASSERT_EQ(prlimit(agent.pid, RLIMIT_NOFILE, nullptr, &found), 0);
  EXPECT_EQ(found.rlim_cur, 300u);
  EXPECT_EQ(found.rlim_max, 400u);
  ASSERT_EQ(prlimit(keeper_, RLIMIT_NOFILE, nullptr, &found), 0);
  EXPECT_GE(found.rlim_cur, 400u);

  const Pair channel;
  const pid_t child = SpawnEcho(agent, 1, channel);
  ASSERT_EQ(prlimit(child, RLIMIT_NOFILE, nullptr, &found), 0);
  EXPECT_EQ(found.rlim_cur, 300u);
}

TEST_F(KeeperTest, StandardDescriptorsThatAreClosedStayNobodys) {
  Launch({}, "", [] {
    close(0);
    close(1);
  });
  Agent& agent = agents_->At(0);
  const Pair channel;
  SpawnEcho(agent, 1, channel);
  char target[64] = {};
  EXPECT_GT(readlink(("/proc/" + std::to_string(agent.pid) + "/fd/0").c_str(), target, 63), 0);
  EXPECT_STREQ(target, "/dev/null");
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Whose routine for exceptions it names brings all of it along, and does not link where unused
// sections are left out (-c opt).
TEST(KeeperProgramTest, HasNoCxxRuntime) {
  std::ifstream file("keeper/deka-keeper", std::ios::binary);
  const std::string program((std::istreambuf_iterator<char>(file)), {});
  EXPECT_NE(program.find("deka-keeper"), std::string::npos);
  EXPECT_EQ(program.find("__gxx_personality_v0"), std::string::npos);
}
#endif

TEST_F(KeeperTest, AgentThatExitsBeforeAnyWasReadyEndsTheKeeperWithItsCode) {
  agents_->SetHabit([](Agent& agent, const Message& message) {
    if (message.type == Type::kGo) SendTo(agent.socket.get(), {.type = fake::kExit, .status = 3});
  });
  Launch();
  EXPECT_EQ(AwaitExit(), 3);
}

TEST_F(KeeperTest, ProgramThatIsNotThereEndsTheKeeper) {
  Launch({}, folder_ + "/nothing");
  EXPECT_EQ(AwaitExit(), 1);
  agents_->AwaitSaid(" deka-keeper error cannot open " + folder_ +
                     "/nothing: No such file or directory\n");
}

TEST_F(KeeperTest, AgentOfAnotherProtocolEndsTheKeeper) {
  agents_->SetHabit([](Agent& agent, const Message& message) {
    if (message.type != Type::kFed) return;
    SendTo(agent.socket.get(), {.type = Type::kReady, .number = kProtocolVersion + 1});
  });
  Launch();
  EXPECT_EQ(AwaitExit(), 1);
  agents_->AwaitSaid("speaks version 2 of the protocol, not 1");
}

TEST_F(KeeperTest, WhatIsNoPacketOfTheProtocolIsPassedOver) {
  Launch();
  Agent& agent = agents_->At(0);
  ReadySpare(agent, 1);
  agents_->Send(agent, {.type = static_cast<Type>(900)});
  agents_->Send(agent, {.type = Type::kKeep, .id = kSlotsMax});
  for (const Type type : {Type::kAcknowledge, Type::kRelease, Type::kForget}) {
    agents_->Send(agent, {.type = type, .id = 77});
  }
  agents_->Send(agent, {.type = Type::kUpgrade, .detail = 1});
  const Pair channel;
  SpawnEcho(agent, 1, channel);
}

// --- Children ------------------------------------------------------------------------------------

TEST_F(KeeperTest, ChildIsStartedAsTheSpecSays) {
  Launch();
  Agent& agent = agents_->At(0);
  const Pair channel;
  const Pipe output;
  const Pipe errors;
  const bool root = geteuid() == 0;
  ASSERT_EQ(chmod(folder_.c_str(), 0755), 0);

  Program program{.arguments = {"/bin/sh", "-c", "echo $0 $1; exec cat <&3 >&3", "one word", "two"},
                  .environment = {"PATH=/usr/bin:/bin", "NAME=a value"},
                  .directory = folder_,
                  .spec = {}};
  program.spec.session = static_cast<uint32_t>(spawn::Session::kOwnSession);
  program.spec.has_limit = 1;
  program.spec.limit_soft = 64;
  program.spec.limit_hard = 128;
  if (root) {
    program.spec.has_user = program.spec.has_group = 1;
    program.spec.user = 65534;
    program.spec.group = 65533;
  }
  program.spec.descriptors_count = 3;
  program.spec.descriptors[0] = 3;
  program.spec.descriptors[1] = 1;
  program.spec.descriptors[2] = 2;
  Ask(agent, 9, program, kChannel | kStdout | kStderr,
      {channel.ours.get(), output.from.get(), errors.from.get()},
      {channel.childs.get(), output.to.get(), errors.to.get()});
  const Told answer = Spawned(agent, 9);
  const pid_t child = answer.message.pid;
  ASSERT_EQ(answer.descriptors.size(), 1u);

  EXPECT_EQ(ReadSome(output.from.get()), "one word two\n");
  EXPECT_EQ(Echo(channel.ours.get()), "hello");
  const std::string self = "/proc/" + std::to_string(child);
  EXPECT_NE(ReadFile(self + "/environ").find("NAME=a value"), std::string::npos);
  char directory[PATH_MAX] = {};
  EXPECT_GT(readlink((self + "/cwd").c_str(), directory, sizeof(directory) - 1), 0);
  EXPECT_EQ(directory, folder_);
  EXPECT_EQ(getsid(child), child);
  std::istringstream limits(ReadFile(self + "/limits"));
  std::string line;
  while (std::getline(limits, line) && line.rfind("Max open files", 0) != 0) {
  }
  std::istringstream fields(line.substr(std::min(line.size(), sizeof("Max open files"))));
  int soft = 0;
  int hard = 0;
  fields >> soft >> hard;
  EXPECT_EQ(soft, 64);
  EXPECT_EQ(hard, 128);
  if (root) {
    EXPECT_EQ(StatusOf(child, "Uid"), "65534\t65534\t65534\t65534");
    EXPECT_EQ(StatusOf(child, "Gid"), "65533\t65533\t65533\t65533");
  }
  EXPECT_EQ(StatusOf(child, "PPid"), std::to_string(keeper_));
  std::map<int, FileId> descriptors = DescriptorsOf(child);
  EXPECT_EQ(descriptors[2], FileOf(errors.to.get()));
  EXPECT_EQ(descriptors[3], FileOf(channel.childs.get()));
  EXPECT_EQ(descriptors.rbegin()->first, 3);

  EXPECT_EQ(spawn::SendSignal(answer.descriptors[0].get(), SIGKILL), 0);
  EXPECT_EQ(agents_->Take(agent, Type::kExited, 9).message.status, SIGKILL);
}

TEST_F(KeeperTest, ChildThatCannotBeStartedIsAnsweredWithTheStepAndNotKept) {
  Launch();
  Agent& agent = agents_->At(0);
  Agent& spare = ReadySpare(agent, 1);
  Ask(agent, 1, {.arguments = {"/nothing/there"}, .directory = "", .spec = {}});
  Told answer = agents_->Take(agent, Type::kSpawned, 1);
  EXPECT_EQ(answer.message.detail, static_cast<uint32_t>(spawn::Step::kExec));
  EXPECT_EQ(answer.message.status, ENOENT);
  EXPECT_TRUE(answer.descriptors.empty());
  Ask(agent, 2, {.arguments = {"/bin/true"}, .directory = "/nothing/there", .spec = {}});
  answer = agents_->Take(agent, Type::kSpawned, 2);
  EXPECT_EQ(answer.message.detail, static_cast<uint32_t>(spawn::Step::kDirectory));

  // The same number may be asked for again.
  const Pair channel;
  SpawnEcho(agent, 1, channel);
  EXPECT_EQ(agents_->Take(spare, Type::kChild).message.id, 1u);
}

TEST_F(KeeperTest, ChildThatIsAskedForAgainIsStartedOnce) {
  Launch();
  Agent& agent = agents_->At(0);
  Agent& spare = ReadySpare(agent, 1);
  const Pair channel;
  const pid_t child = SpawnEcho(agent, 1, channel);
  Ask(agent, 1, Exits(1), kChannel, {channel.ours.get()}, {channel.childs.get()});
  EXPECT_EQ(Spawned(agent, 1).message.pid, child);
  Kill(agent);
  agents_->Take(spare, Type::kGo);
  Ask(spare, 1, Exits(1), kChannel, {channel.ours.get()}, {channel.childs.get()});
  const Told answer = Spawned(spare, 1);
  EXPECT_EQ(answer.message.pid, child);
  ASSERT_EQ(answer.descriptors.size(), 1u);
  EXPECT_EQ(spawn::SendSignal(answer.descriptors[0].get(), 0), 0);
}

TEST_F(KeeperTest, BadSpecsAreAnsweredAndNothingIsStarted) {
  Launch();
  Agent& agent = agents_->At(0);
  ReadySpare(agent, 1);
  const Program good{.arguments = {"/bin/true", "x"}, .directory = "/", .spec = {}};
  const std::string bytes = good.Bytes();
  const uint64_t size = bytes.size();
  using Change = std::function<void(SpawnSpec&)>;
  const std::map<std::string, Change> changes = {
      {"magic", [](SpawnSpec& s) { s.magic ^= 1; }},
      {"bytes, one more", [](SpawnSpec& s) { ++s.bytes; }},
      {"bytes, one less", [](SpawnSpec& s) { --s.bytes; }},
      {"program, none", [](SpawnSpec& s) { s.program = 0; }},
      {"program, in the head", [](SpawnSpec& s) { s.program = sizeof(SpawnSpec) - 1; }},
      {"program, at the end", [=](SpawnSpec& s) { s.program = size; }},
      {"program, far", [](SpawnSpec& s) { s.program = UINT64_MAX; }},
      {"arguments, none", [](SpawnSpec& s) { s.arguments = 0; }},
      {"arguments, behind the end", [=](SpawnSpec& s) { s.arguments = size + 1; }},
      {"arguments, far", [](SpawnSpec& s) { s.arguments = UINT64_MAX; }},
      {"arguments_count, 0", [](SpawnSpec& s) { s.arguments_count = 0; }},
      {"arguments_count, too many", [](SpawnSpec& s) { s.arguments_count = 6; }},
      {"arguments_count, far", [](SpawnSpec& s) { s.arguments_count = UINT64_MAX; }},
      {"environment, none", [](SpawnSpec& s) { s.environment = 0; }},
      {"environment, behind the end", [=](SpawnSpec& s) { s.environment = size + 1; }},
      {"environment, at the end", [=](SpawnSpec& s) { s.environment = size; }},
      {"environment_count, too many", [](SpawnSpec& s) { ++s.environment_count; }},
      {"environment_count, far", [](SpawnSpec& s) { s.environment_count = UINT64_MAX; }},
      {"directory, in the head", [](SpawnSpec& s) { s.directory = 1; }},
      {"directory, at the end", [=](SpawnSpec& s) { s.directory = size; }},
      {"session", [](SpawnSpec& s) { s.session = 3; }},
      {"has_user", [](SpawnSpec& s) { s.has_user = 2; }},
      {"has_group", [](SpawnSpec& s) { s.has_group = 2; }},
      {"has_limit", [](SpawnSpec& s) { s.has_limit = 2; }},
      {"descriptors_count, more than came", [](SpawnSpec& s) { s.descriptors_count = 1; }},
      {"descriptors_count, too many", [](SpawnSpec& s) { s.descriptors_count = 5; }},
      {"descriptors_count, far", [](SpawnSpec& s) { s.descriptors_count = UINT32_MAX; }},
      {"unused", [](SpawnSpec& s) { s.unused = 1; }},
  };
  const auto refused = [&](const std::string& what, uint32_t holds,
                           const std::vector<int>& descriptors) {
    SCOPED_TRACE(what);
    agents_->Send(agent, {.type = Type::kSpawn, .detail = holds, .id = 1}, descriptors);
    const Told answer = agents_->Take(agent, Type::kSpawned, 1);
    EXPECT_EQ(answer.message.detail, static_cast<uint32_t>(spawn::Step::kStart));
    EXPECT_EQ(answer.message.status, EINVAL);
    EXPECT_TRUE(answer.descriptors.empty());
  };
  for (const auto& [what, change] : changes) {
    std::string changed = bytes;
    change(*reinterpret_cast<SpawnSpec*>(changed.data()));
    refused(what, 0, {MemoryFile(changed, true).get()});
  }
  std::string open = bytes;
  open.back() = 'x';
  refused("no NUL at the end", 0, {MemoryFile(open, true).get()});
  refused("empty", 0, {MemoryFile("", true).get()});
  refused("shorter than a spec", 0,
          {MemoryFile(bytes.substr(0, sizeof(SpawnSpec) - 1), true).get()});
  std::string large(SpawnSpec::kBytesMax + 1, '\0');
  large.replace(0, size, bytes);
  reinterpret_cast<SpawnSpec*>(large.data())->bytes = large.size();
  refused("larger than kBytesMax", 0, {MemoryFile(large, true).get()});
  refused("not sealed", 0, {MemoryFile(bytes, false).get()});

  const Descriptor spec = MemoryFile(bytes, true);
  const Pipe pipe;
  refused("no memfd", 0, {pipe.from.get()});
  refused("no descriptors", 0, {});
  refused("holds that did not come", kChannel, {spec.get()});
  refused("one descriptor too many", 0, {spec.get(), pipe.from.get()});
  refused("not to be held", kPidfd, {spec.get(), pipe.from.get()});
  Program negative = good;
  negative.spec.descriptors_count = 1;
  negative.spec.descriptors[0] = -1;
  refused("a negative number", 0, {MemoryFile(negative.Bytes(), true).get(), pipe.from.get()});

  refused("more than a child has", kChannel, std::vector<int>(kDescriptorsMax, spec.get()));

  // At their limits, all is well.
  large.pop_back();
  reinterpret_cast<SpawnSpec*>(large.data())->bytes = large.size();
  agents_->Send(agent, {.type = Type::kSpawn, .id = 2}, {MemoryFile(large, true).get()});
  Spawned(agent, 2);
  std::string bare = bytes;
  reinterpret_cast<SpawnSpec*>(bare.data())->environment = size;
  reinterpret_cast<SpawnSpec*>(bare.data())->environment_count = 0;
  agents_->Send(agent, {.type = Type::kSpawn, .id = 3}, {MemoryFile(bare, true).get()});
  Spawned(agent, 3);
  Program four = good;
  four.spec.descriptors_count = 4;
  for (int i = 0; i < 4; ++i) four.spec.descriptors[i] = 3 + i;
  Ask(agent, 4, four, 0, {}, std::vector<int>(4, pipe.from.get()));
  Spawned(agent, 4);
  // What came with a request is closed before the next is taken.
  refused("no descriptors", 0, {});
  const std::map<int, FileId> left = DescriptorsOf(keeper_);
  for (const auto& [number, file] : left) {
    EXPECT_NE(file, FileOf(spec.get()));
    EXPECT_NE(file, FileOf(pipe.from.get()));
  }
}

TEST_F(KeeperTest, ExitIsKeptUntilItIsAcknowledged) {
  Launch();
  Agent& first = agents_->At(0);
  Agent& second = ReadySpare(first, 1);
  Pair channel;
  Ask(first, 1, Exits(42), kChannel, {channel.ours.get()}, {channel.childs.get()});
  Spawned(first, 1);
  EXPECT_EQ(agents_->Take(second, Type::kChild, 1).message.detail, kChannel | kPidfd);
  channel.childs.Close();
  shutdown(channel.ours.get(), SHUT_RDWR);
  EXPECT_EQ(WEXITSTATUS(agents_->Take(first, Type::kExited, 1).message.status), 42);
  EXPECT_EQ(WEXITSTATUS(agents_->Take(second, Type::kExited, 1).message.status), 42);

  // One that was not there then is told with the child, and again.
  Kill(first);
  agents_->Take(second, Type::kGo);
  Agent& third = ReadySpare(second, 2);
  Told child = agents_->Take(third, Type::kChild, 1);
  EXPECT_EQ(child.message.detail, kChannel | kPidfd | kHasExited);
  EXPECT_EQ(WEXITSTATUS(child.message.status), 42);

  agents_->Send(second, {.type = Type::kAcknowledge, .id = 1});
  Kill(second);
  agents_->Take(third, Type::kGo);
  Agent& fourth = ReadySpare(third, 3);
  EXPECT_EQ(agents_->Take(fourth, Type::kChild, 1).message.detail, kChannel | kPidfd);

  agents_->Send(third, {.type = Type::kForget, .id = 1});
  agents_->Take(fourth, Type::kGone, 1);
  Kill(third);
  agents_->Take(fourth, Type::kGo);
  Agent& fifth = ReadySpare(fourth, 4);
  EXPECT_FALSE(agents_->HasHeard(fifth, Type::kChild));
}

TEST_F(KeeperTest, SuccessorGetsEveryDescriptorAndTheyWork) {
  Launch();
  Agent& first = agents_->At(0);
  Agent& second = ReadySpare(first, 1);
  Pair channel;
  Pipe output;
  Pipe errors;
  Descriptor memory(memfd_create("memory", MFD_CLOEXEC));
  const FileId memory_file = FileOf(memory.get());
  Program program = Shell("echo out; echo err >&2; exec cat <&3 >&3", 3);
  program.spec.descriptors_count = 3;
  program.spec.descriptors[1] = 1;
  program.spec.descriptors[2] = 2;
  Ask(first, 1, program, kMemory | kChannel | kStdout | kStderr,
      {memory.get(), channel.ours.get(), output.from.get(), errors.from.get()},
      {channel.childs.get(), output.to.get(), errors.to.get()});
  const pid_t pid = Spawned(first, 1).message.pid;
  channel = Pair();
  output = Pipe();
  errors = Pipe();
  memory.Close();
  agents_->Take(second, Type::kChild, 1);
  Kill(first);
  agents_->Take(second, Type::kGo);

  Agent& third = ReadySpare(second, 2);
  const Told child = agents_->Take(third, Type::kChild, 1);
  EXPECT_EQ(child.message.pid, pid);
  EXPECT_EQ(child.message.detail, kMemory | kChannel | kStdout | kStderr | kPidfd);
  ASSERT_EQ(child.descriptors.size(), 5u);
  EXPECT_EQ(FileOf(child.descriptors[0].get()), memory_file);
  EXPECT_EQ(Echo(child.descriptors[1].get()), "hello");
  EXPECT_EQ(ReadSome(child.descriptors[2].get()), "out\n");
  EXPECT_EQ(ReadSome(child.descriptors[3].get()), "err\n");
  EXPECT_EQ(spawn::SendSignal(child.descriptors[4].get(), SIGKILL), 0);
  EXPECT_EQ(agents_->Take(second, Type::kExited, 1).message.status, SIGKILL);

  // Released, all is closed but the memory.
  agents_->Send(second, {.type = Type::kRelease, .id = 1});
  agents_->Take(third, Type::kGone, 1);
  Kill(third);
  Agent& fourth = ReadySpare(second, 3);
  const Told rest = agents_->Take(fourth, Type::kChild, 1);
  EXPECT_EQ(rest.message.detail, kMemory | kHasExited);
  ASSERT_EQ(rest.descriptors.size(), 1u);
  EXPECT_EQ(FileOf(rest.descriptors[0].get()), memory_file);
}

TEST_F(KeeperTest, KeptSlotsComeWithGo) {
  Launch();
  Agent& first = agents_->At(0);
  Agent& second = ReadySpare(first, 1);
  Pipe replaced;
  Pipe one;
  Pipe two;
  const FileId one_file = FileOf(one.to.get());
  const FileId two_file = FileOf(two.to.get());
  agents_->Send(first, {.type = Type::kKeep, .id = 3}, {replaced.to.get()});
  replaced.to.Close();
  agents_->Send(first, {.type = Type::kKeep, .id = 3}, {one.to.get(), two.to.get()});
  EXPECT_EQ(ReadSome(replaced.from.get()), "");  // closed
  const std::vector<int> many(kDescriptorsMax, one.to.get());
  agents_->Send(first, {.type = Type::kKeep, .id = kSlotsMax - 1}, many);
  one.to.Close();
  two.to.Close();
  EXPECT_FALSE(agents_->HasHeard(second, Type::kKept));
  Kill(first);

  agents_->Take(second, Type::kGo);
  const std::vector<Type> heard = agents_->HeardUntilGo(second);
  EXPECT_EQ(std::count(heard.begin(), heard.end(), Type::kKept), 2);
  Told kept = agents_->Take(second, Type::kKept);
  EXPECT_EQ(kept.message.id, 3u);
  ASSERT_EQ(kept.descriptors.size(), 2u);
  EXPECT_EQ(FileOf(kept.descriptors[0].get()), one_file);
  EXPECT_EQ(FileOf(kept.descriptors[1].get()), two_file);
  EXPECT_EQ(agents_->Take(second, Type::kKept).descriptors.size(), kDescriptorsMax);

  // They are held for each successor, until they are given up.
  kept = Told();
  agents_->Send(second, {.type = Type::kKeep, .id = kSlotsMax - 1});
  agents_->Send(second, {.type = Type::kKeep, .id = 3});
  EXPECT_EQ(ReadSome(one.from.get()), "");
  EXPECT_EQ(ReadSome(two.from.get()), "");
}

TEST_F(KeeperTest, WhatADeadAgentAskedForIsDoneBeforeItsSuccessorGoes) {
  Launch();
  Agent& first = agents_->At(0);
  Agent& second = ReadySpare(first, 1);
  // It has packets that it did not read: its end of the pair is reset, not only closed.
  agents_->Command(first, fake::kListen, 0);
  std::list<Pair> channels(20);
  const Pair unread;
  Ask(first, 99, Exits(0), kChannel, {unread.ours.get()}, {unread.childs.get()});
  agents_->Take(second, Type::kChild, 99);

  kill(keeper_, SIGSTOP);
  uint64_t id = 0;
  for (const Pair& channel : channels) {
    Ask(first, id++, Exits(0), kChannel, {channel.ours.get()}, {channel.childs.get()});
  }
  const Pipe kept;
  agents_->Send(first, {.type = Type::kKeep, .id = 1}, {kept.from.get()});
  Kill(first);
  kill(keeper_, SIGCONT);

  agents_->Take(second, Type::kGo);
  const std::vector<Type> heard = agents_->HeardUntilGo(second);
  EXPECT_EQ(std::count(heard.begin(), heard.end(), Type::kChild), 21);
  EXPECT_EQ(std::count(heard.begin(), heard.end(), Type::kKept), 1);
}

TEST_F(KeeperTest, SpareDoesNotGoWhileTheAgentBeforeIsNotWaitedFor) {
  Launch();
  Agent& first = agents_->At(0);
  Agent& second = ReadySpare(first, 1);
  Pair channel;
  Ask(first, 1, Exits(0), kChannel, {channel.ours.get()}, {channel.childs.get()});
  Spawned(first, 1);
  // A process that is traced is its tracer's to wait for first.
  ASSERT_EQ(ptrace(PTRACE_SEIZE, first.pid, nullptr, nullptr), 0) << strerror(errno);
  Kill(first);
  channel.childs.Close();
  shutdown(channel.ours.get(), SHUT_RDWR);
  agents_->Take(second, Type::kExited, 1);  // the keeper has looked who ended
  EXPECT_FALSE(agents_->HasHeard(second, Type::kGo));
  int status;
  EXPECT_EQ(waitpid(first.pid, &status, __WALL), first.pid);
  agents_->Take(second, Type::kGo);
}

TEST_F(KeeperTest, SpareThatWasKilledIsReplacedAndSoIsTheAgentWithoutOne) {
  Launch();
  Agent& first = agents_->At(0);
  Agent& second = ReadySpare(first, 1);
  const Pair channel;
  SpawnEcho(first, 1, channel);
  agents_->Take(second, Type::kChild);
  Kill(second);
  Agent& third = ReadySpare(first, 2);
  agents_->Take(third, Type::kChild);
  EXPECT_EQ(agents_->Take(third, Type::kFile).message.id, 2u);

  // Cold: no spare is there.
  kill(keeper_, SIGSTOP);
  Kill(third);
  Kill(first);
  kill(keeper_, SIGCONT);
  Agent& fourth = agents_->At(3);
  agents_->Take(fourth, Type::kGo);
  EXPECT_EQ(agents_->HeardUntilGo(fourth),
            (std::vector<Type>{fake::kHello, Type::kFile, Type::kChild, Type::kFed, Type::kGo}));
  EXPECT_EQ(agents_->Take(fourth, Type::kFile).message.id, 2u);
}

TEST_F(KeeperTest, SpareThatDoesNotReadIsReplaced) {
  Launch({"mail_ms_max=50"});
  Agent& agent = agents_->At(0);
  Agent& deaf = ReadySpare(agent, 1);
  agents_->Command(deaf, fake::kListen, 0);
  // More than its socket holds.
  for (uint64_t id = 1; id <= 200 && agents_->Count() == 2; ++id) {
    const Pair channel;
    Ask(agent, id, {.arguments = {fake_}, .directory = "", .spec = {}}, kChannel,
        {channel.ours.get()});
    Spawned(agent, id);
    agents_->Take(agent, Type::kExited, static_cast<int64_t>(id));
    agents_->Send(agent, {.type = Type::kRelease, .id = id});
    agents_->Send(agent, {.type = Type::kForget, .id = id});
  }
  agents_->AwaitSaid("spare " + std::to_string(deaf.pid) + " does not take its mail and is killed");
  agents_->AwaitGone(deaf);
  ReadySpare(agent, 2);
}

TEST_F(KeeperTest, SpareThatIsNotReadyInTimeIsReplaced) {
  agents_->SetHabit([count = 0](Agent& agent, const Message& message) mutable {
    if (message.type != Type::kFed || ++count == 2) return;
    SendTo(agent.socket.get(), {.type = Type::kReady, .id = kLayout, .number = kProtocolVersion});
  });
  Launch({"ready_ms_max=1000"});
  Agent& agent = agents_->At(0);
  Agent& silent = agents_->At(1);
  agents_->AwaitGone(silent);
  ReadySpare(agent, 2);
}

TEST_F(KeeperTest, AgentThatDoesNotReadKeepsOnlyItselfWaiting) {
  Launch();
  Agent& agent = agents_->At(0);
  Agent& spare = ReadySpare(agent, 1);
  Pair channel;
  Ask(agent, 1, Exits(5), kChannel, {channel.ours.get()}, {channel.childs.get()});
  Spawned(agent, 1);
  agents_->Command(agent, fake::kListen, 0);
  // More answers than its socket holds.
  constexpr int kRequests = 400;
  for (int i = 0; i < kRequests; ++i) agents_->Send(agent, {.type = Type::kSpawn, .id = 2});
  channel.childs.Close();
  shutdown(channel.ours.get(), SHUT_RDWR);
  agents_->Take(spare, Type::kExited, 1);

  agents_->Command(agent, fake::kListen, 1);
  agents_->Take(agent, Type::kExited, 1);
  for (int i = 0; i < kRequests; ++i) {
    EXPECT_EQ(agents_->Take(agent, Type::kSpawned, 2).message.status, EINVAL);
  }
  EXPECT_FALSE(agent.gone);
}

// --- Agents that hang or crash -------------------------------------------------------------------

TEST_F(KeeperTest, AgentThatHangsIsKilled) {
  Launch({"look_ms=20"});
  Agent& first = agents_->At(0);
  Agent& second = ReadySpare(first, 1);
  agents_->Command(first, fake::kBeat, 0);
  agents_->AwaitSaid("agent " + std::to_string(first.pid) + " hangs and is killed");
  agents_->Take(second, Type::kGo);

  // One that was stopped too.
  ReadySpare(second, 2);
  kill(second.pid, SIGSTOP);
  agents_->Take(agents_->At(2), Type::kGo);
}

TEST_F(KeeperTest, AgentThatHangsButIsTracedGoesOn) {
  Launch({"look_ms=20"});
  Agent& first = agents_->At(0);
  Agent& second = ReadySpare(first, 1);
  ASSERT_EQ(ptrace(PTRACE_SEIZE, first.pid, nullptr, nullptr), 0) << strerror(errno);
  agents_->Command(first, fake::kBeat, 0);
  agents_->AwaitSaid("agent " + std::to_string(first.pid) + " hangs, but is traced: it goes on");
  EXPECT_FALSE(agents_->HasHeard(second, Type::kGo));
  agents_->Command(first, fake::kBeat, 1);
  Kill(first);
  int status;
  EXPECT_EQ(waitpid(first.pid, &status, __WALL), first.pid);
  agents_->Take(second, Type::kGo);
}

TEST_F(KeeperTest, AgentThatClosesItsEndIsKilled) {
  Launch({"mail_ms_max=20"});
  Agent& first = agents_->At(0);
  Agent& second = ReadySpare(first, 1);
  agents_->Command(first, fake::kHangUp);
  agents_->AwaitSaid("has closed its end of the conversation and is killed");
  agents_->Take(second, Type::kGo);
}

TEST_F(KeeperTest, AgentThatCrashesAgainAndAgainIsStartedMoreSeldom) {
  constexpr int kPauseMs = 300;
  Launch({"crash_pause_ms=" + std::to_string(kPauseMs)});
  const Pair channel;
  pid_t child = 0;
  const int endings[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE,  SIGABRT,
                         SIGTRAP, SIGSYS, 0,      SIGABRT, SIGSEGV};
  size_t index = 0;
  for (const int ending : endings) {
    Agent& agent = agents_->At(index);
    agents_->Take(agent, Type::kGo);
    if (index == 0) child = SpawnEcho(agent, 1, channel);
    ReadySpare(agent, ++index);
    EXPECT_EQ(agents_->Said().find("have ended by themselves"), std::string::npos);
    agents_->Send(agent, {.type = ending == 0 ? fake::kExit : fake::kRaise, .status = ending});
    agents_->AwaitGone(agent);
  }
  auto before = Clock::now();
  agents_->AwaitSaid(
      "10 agents have ended by themselves in 60 s: one is started every 0 s from now on");
  for (int more = 0; more < 2; ++more) {
    Agent& agent = agents_->At(index);
    agents_->Take(agent, Type::kGo);
    if (more > 0) {
      EXPECT_GE(Clock::now() - before, std::chrono::milliseconds(kPauseMs - 50));
    }
    before = Clock::now();
    ReadySpare(agent, ++index);
    agents_->Send(agent, {.type = fake::kRaise, .status = SIGABRT});
    agents_->AwaitGone(agent);
  }
  Agent& last = agents_->At(index);
  agents_->Take(last, Type::kGo);
  EXPECT_EQ(agents_->Take(last, Type::kChild, 1).message.pid, child);
  const std::string said = agents_->Said();
  EXPECT_EQ(said.find("have ended by themselves"), said.rfind("have ended by themselves"));
}

TEST_F(KeeperTest, AgentThatIsKilledFromOutsideIsTakenOverFromAtOnceAndAlways) {
  Launch({"crash_pause_ms=600000"});
  for (size_t index = 0; index < 25; ++index) {
    Agent& agent = agents_->At(index);
    agents_->Take(agent, Type::kGo);
    EXPECT_EQ(agents_->Take(agent, Type::kFile).message.id, index + 1);
    ReadySpare(agent, index + 1);
    kill(agent.pid, index % 2 == 0 ? SIGKILL : SIGQUIT);
    agents_->AwaitGone(agent);
  }
  agents_->Take(agents_->At(25), Type::kGo);
}

TEST_F(KeeperTest, SpareThatExitsAgainAndAgainIsStartedMoreSeldom) {
  agents_->SetHabit([](Agent& agent, const Message& message) {
    if (message.type == Type::kGo) {
      SendTo(agent.socket.get(), {.type = Type::kReady, .id = kLayout, .number = kProtocolVersion});
    }
    if (message.type == Type::kFile && message.id != 1) {
      SendTo(agent.socket.get(), {.type = fake::kExit, .status = 9});
    }
  });
  Launch();
  agents_->AwaitSaid(
      "10 spares have ended by themselves in 60 s: one is started every 10 s from now on");
  EXPECT_LE(agents_->Count(), 12u);
  const Pair channel;
  SpawnEcho(agents_->At(0), 1, channel);
}

// --- Upgrade -------------------------------------------------------------------------------------

class UpgradeTest : public KeeperTest {
 protected:
  void SetUp() override {
    KeeperTest::SetUp();
    old_ = folder_ + "/old-agent";
    new_ = folder_ + "/new-agent";
    std::filesystem::copy_file(fake_, old_);
    std::filesystem::copy_file(fake_, new_);
    // What the next candidate says; "" is a fit one.
    agents_->SetHabit([this](Agent& agent, const Message& message) {
      if (message.type != Type::kFed) return;
      Message ready = {.type = Type::kReady, .id = kLayout, .number = kProtocolVersion};
      char program[PATH_MAX] = {};
      const std::string link = "/proc/" + std::to_string(agent.pid) + "/exe";
      EXPECT_GT(readlink(link.c_str(), program, sizeof(program) - 1), 0);
      if (program == new_) {
        if (answer_ == "layout") ++ready.id;
        if (answer_ == "protocol") ++ready.number;
        if (answer_ == "exit") ready = {.type = fake::kExit, .status = 4};
        if (answer_ == "silence") return;
      }
      SendTo(agent.socket.get(), ready);
    });
  }

  std::string ProgramOf(const Agent& agent) {
    char program[PATH_MAX] = {};
    const ssize_t length = readlink(("/proc/" + std::to_string(agent.pid) + "/exe").c_str(),
                                    program, sizeof(program) - 1);
    return length > 0 ? program : "";
  }

  // Wants `new_` by its descriptor.
  void Upgrade(Agent& agent) {
    const Descriptor program(open(new_.c_str(), O_RDONLY | O_CLOEXEC));
    agents_->Send(agent, {.type = Type::kUpgrade, .detail = 1}, {program.get()});
  }

  std::string old_;
  std::string new_;
  std::string answer_;
};

TEST_F(UpgradeTest, ProgramThatFitsTakesOver) {
  Launch({"crash_pause_ms=600000"}, old_);
  Agent& first = agents_->At(0);
  Agent& spare = ReadySpare(first, 1);
  const Pair channel;
  const pid_t child = SpawnEcho(first, 1, channel);
  Upgrade(first);
  agents_->AwaitGone(spare);
  Agent& candidate = agents_->At(2);
  agents_->Take(candidate, Type::kGo);
  EXPECT_EQ(agents_->Take(candidate, Type::kChild, 1).message.pid, child);
  EXPECT_EQ(agents_->Take(candidate, Type::kFile).message.id, 2u);
  EXPECT_EQ(ProgramOf(candidate), new_);
  // argv stays.
  EXPECT_EQ(ReadFile("/proc/" + std::to_string(candidate.pid) + "/cmdline"),
            old_ + '\0' + socket_ + '\0');

  // Its path is that of later ones.
  Agent& third = ReadySpare(candidate, 3);
  EXPECT_EQ(ProgramOf(third), new_);
  EXPECT_EQ(ReadFile("/proc/" + std::to_string(third.pid) + "/comm"), "new-agent\n");
  kill(keeper_, SIGUSR2);
  Agent& fourth = agents_->At(4);
  agents_->Take(fourth, Type::kGo);
  EXPECT_EQ(ProgramOf(fourth), new_);
}

TEST_F(UpgradeTest, SignalStartsWhatIsAtThePathNow) {
  Launch({}, old_);
  Agent& first = agents_->At(0);
  Agent& spare = ReadySpare(first, 1);
  std::filesystem::rename(new_, old_);
  // Until it is told, the keeper starts the program that it had.
  Kill(spare);
  Agent& second = ReadySpare(first, 2);
  EXPECT_EQ(ProgramOf(second), old_ + " (deleted)");
  kill(keeper_, SIGUSR2);
  Agent& third = agents_->At(3);
  agents_->Take(third, Type::kGo);
  EXPECT_EQ(ProgramOf(third), old_);
}

TEST_F(UpgradeTest, ProgramThatDoesNotFitIsRefused) {
  Launch({"ready_ms_max=2000"}, old_);
  Agent& agent = agents_->At(0);
  ReadySpare(agent, 1);
  const std::tuple<const char*, Refusal, const char*> refusals[] = {
      {"layout", Refusal::kLayout, "has version 8 of the layout, the agent version 7"},
      {"protocol", Refusal::kProtocol, "speaks version 2 of the protocol, not 1"},
      {"exit", Refusal::kEnded, "exited with code 4"},
      {"silence", Refusal::kSilent, "is not ready in time"},
  };
  size_t index = 1;
  for (const auto& [answer, refusal, text] : refusals) {
    answer_ = answer;
    Upgrade(agent);
    agents_->AwaitGone(agents_->At(++index));
    EXPECT_EQ(agents_->Take(agent, Type::kRefused).message.detail, static_cast<uint32_t>(refusal));
    agents_->AwaitSaid("the upgrade to " + new_ + " is refused: it " + text +
                       "; the agent goes on");
    Agent& spare = ReadySpare(agent, ++index);
    EXPECT_EQ(ProgramOf(spare), old_);
  }
  EXPECT_FALSE(agent.gone);
}

TEST_F(UpgradeTest, ProgramThatCannotBeStartedIsRefused) {
  Launch({}, old_);
  Agent& agent = agents_->At(0);
  ReadySpare(agent, 1);
  const Descriptor text = MemoryFile("text", true);
  agents_->Send(agent, {.type = Type::kUpgrade, .detail = 1}, {text.get()});
  EXPECT_EQ(agents_->Take(agent, Type::kRefused).message.detail,
            static_cast<uint32_t>(Refusal::kNotStarted));
  ReadySpare(agent, 2);
  std::filesystem::remove(old_);
  agents_->Send(agent, {.type = Type::kUpgrade});
  EXPECT_EQ(agents_->Take(agent, Type::kRefused).message.detail,
            static_cast<uint32_t>(Refusal::kNotStarted));
  agents_->AwaitSaid("cannot be opened: No such file or directory");
}

TEST_F(UpgradeTest, AgentThatDiesMeanwhileIsTakenOverFromByItsOwnProgram) {
  Launch({}, old_);
  Agent& agent = agents_->At(0);
  ReadySpare(agent, 1);
  answer_ = "silence";
  Upgrade(agent);
  Agent& candidate = agents_->At(2);
  agents_->Take(candidate, Type::kFed);
  Kill(agent);
  Agent& cold = agents_->At(3);
  agents_->Take(cold, Type::kGo);
  EXPECT_EQ(ProgramOf(cold), old_);
  agents_->AwaitGone(candidate);
  // The upgrade goes on.
  agents_->Take(agents_->At(4), Type::kFed);
  EXPECT_EQ(ProgramOf(agents_->At(4)), new_);
  EXPECT_FALSE(agents_->HasHeard(agents_->At(4), Type::kGo));
}

TEST_F(UpgradeTest, CrashLoopIsEndedByAnUpgrade) {
  Launch({"crash_pause_ms=600000"}, old_);
  size_t index = 0;
  for (int crash = 0; crash < 10; ++crash) {
    Agent& agent = agents_->At(index);
    agents_->Take(agent, Type::kGo);
    ReadySpare(agent, ++index);
    agents_->Send(agent, {.type = fake::kRaise, .status = SIGABRT});
    agents_->AwaitGone(agent);
  }
  agents_->AwaitSaid("from now on");
  std::filesystem::rename(new_, old_);
  kill(keeper_, SIGUSR2);
  Agent& mended = agents_->At(index + 1);
  agents_->Take(mended, Type::kGo);
}

TEST_F(UpgradeTest, StopMeanwhileIsForTheSuccessor) {
  Launch({}, old_);
  Agent& agent = agents_->At(0);
  ReadySpare(agent, 1);
  ASSERT_EQ(ptrace(PTRACE_SEIZE, agent.pid, nullptr, nullptr), 0) << strerror(errno);
  Upgrade(agent);
  Agent& candidate = agents_->At(2);
  agents_->AwaitGone(agent);  // but it is its tracer's to wait for
  kill(keeper_, SIGTERM);
  int status;
  EXPECT_EQ(waitpid(agent.pid, &status, __WALL), agent.pid);
  EXPECT_EQ(agents_->Take(candidate, Type::kStop).message.detail, 0u);
  agents_->Send(candidate, {.type = fake::kExit, .status = 6});
  EXPECT_EQ(AwaitExit(), 6);
}

// --- Stop ----------------------------------------------------------------------------------------

TEST_F(KeeperTest, StopIsTheAgentsAndItsExitCodeTheKeepers) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    SCOPED_TRACE(signal);
    agents_.reset();
    std::filesystem::remove(socket_);
    agents_ = std::make_unique<Agents>(socket_);
    Launch();
    Agent& agent = agents_->At(0);
    Agent& spare = ReadySpare(agent, 1);
    const Pair channel;
    const pid_t child = SpawnEcho(agent, 1, channel);
    kill(keeper_, signal);
    EXPECT_EQ(agents_->Take(agent, Type::kStop).message.detail, 0u);
    kill(keeper_, signal);
    EXPECT_EQ(agents_->Take(agent, Type::kStop).message.detail, 1u);
    // Still at its service.
    const Pair another;
    SpawnEcho(agent, 2, another);
    agents_->Send(agent, {.type = fake::kExit, .status = 17});
    EXPECT_EQ(AwaitExit(), 17);
    agents_->AwaitGone(spare);
    EXPECT_EQ(kill(child, 0), 0);  // what the agent leaves runs on
  }
}

TEST_F(KeeperTest, SpareStopsInThePlaceOfAnAgentThatIsKilledMeanwhile) {
  Launch();
  Agent& agent = agents_->At(0);
  Agent& spare = ReadySpare(agent, 1);
  const Pair channel;
  SpawnEcho(agent, 1, channel);
  kill(keeper_, SIGTERM);
  agents_->Take(agent, Type::kStop);
  kill(agent.pid, SIGKILL);
  agents_->Take(spare, Type::kGo);
  EXPECT_EQ(agents_->Take(spare, Type::kStop).message.detail, 0u);
  EXPECT_EQ(agents_->Take(spare, Type::kChild, 1).descriptors.size(), 2u);
  agents_->Send(spare, {.type = fake::kExit, .status = 0});
  EXPECT_EQ(AwaitExit(), 0);
}

TEST_F(KeeperTest, SpareStopsInThePlaceOfAnAgentThatDoesNot) {
  Launch({"stop_ms_max=200"});
  Agent& agent = agents_->At(0);
  Agent& spare = ReadySpare(agent, 1);
  kill(keeper_, SIGTERM);
  agents_->AwaitSaid("has not stopped in time and is killed");
  agents_->Take(spare, Type::kGo);
  agents_->Take(spare, Type::kStop);
  agents_->Send(spare, {.type = fake::kExit, .status = 3});
  EXPECT_EQ(AwaitExit(), 3);
}

TEST_F(KeeperTest, HangupThatWasIgnoredAtTheStartStaysSo) {
  Launch({}, "", [] { signal(SIGHUP, SIG_IGN); });
  Agent& agent = agents_->At(0);
  ReadySpare(agent, 1);
  kill(keeper_, SIGHUP);
  kill(keeper_, SIGTERM);
  EXPECT_EQ(agents_->Take(agent, Type::kStop).message.detail, 0u);
  agents_->Send(agent, {.type = fake::kExit, .status = 0});
  EXPECT_EQ(AwaitExit(), 0);
}

TEST_F(KeeperTest, AgentThatDoesNotStopIsKilledAndTheKeeperEndsTheChildren) {
  Agent& agent = LaunchWithoutSpare({"stop_ms_max=50", "end_ms_max=100"});
  Pipe obeys;
  Pipe ignores;
  const Pair channel;
  // Both say when they are set up; the second has a process in its group that outlives it.
  Program program =
      Shell("trap 'echo term; exit' TERM; echo up; while :; do read line <&3; done", 3);
  program.spec.descriptors_count = 2;
  program.spec.descriptors[1] = 1;
  Ask(agent, 1, program, 0, {}, {channel.childs.get(), obeys.to.get()});
  program.arguments[2] = "trap '' TERM; (cat <&3; :) & echo up; cat <&3";
  Ask(agent, 2, program, 0, {}, {channel.childs.get(), ignores.to.get()});
  obeys.to.Close();
  ignores.to.Close();
  EXPECT_EQ(ReadSome(obeys.from.get()), "up\n");
  EXPECT_EQ(ReadSome(ignores.from.get()), "up\n");
  kill(keeper_, SIGTERM);
  EXPECT_EQ(AwaitExit(), 1);
  agents_->AwaitSaid("has not stopped in time and is killed");
  agents_->AwaitSaid("ends the 2 children that run");
  EXPECT_EQ(ReadSome(obeys.from.get()), "term\n");
  EXPECT_EQ(ReadSome(ignores.from.get()), "");  // nobody of the group is left
}

TEST_F(KeeperTest, AgentThatDoesNotStopHasNoChildrenToWaitFor) {
  Launch({"stop_ms_max=50", "end_ms_max=600000"});
  Agent& agent = agents_->At(0);
  ReadySpare(agent, 1);
  kill(keeper_, SIGTERM);
  EXPECT_EQ(AwaitExit(), 1);
}

TEST_F(KeeperTest, SignalWhileTheKeeperEndsTheChildrenHurriesIt) {
  Agent& agent = LaunchWithoutSpare({"end_ms_max=600000"});
  Pipe up;
  const Pair channel;
  Program program = Shell("trap '' TERM; echo up; cat <&3", 3);
  program.spec.descriptors_count = 2;
  program.spec.descriptors[1] = 1;
  Ask(agent, 1, program, 0, {}, {channel.childs.get(), up.to.get()});
  const Told child = Spawned(agent, 1);
  EXPECT_EQ(ReadSome(up.from.get()), "up\n");
  kill(keeper_, SIGTERM);
  agents_->Take(agent, Type::kStop);
  agents_->Send(agent, {.type = fake::kRaise, .status = SIGSEGV});
  agents_->AwaitSaid("was ended by signal 11 while it stopped");
  agents_->AwaitSaid("ends the 1 children that run");
  kill(keeper_, SIGINT);
  EXPECT_EQ(AwaitExit(), 1);
  EXPECT_TRUE(AwaitEnd(child.descriptors[0].get()));
}

TEST_F(KeeperTest, StopWithoutAnAgentEndsTheChildren) {
  Launch({"crash_pause_ms=600000"});
  const Pair channel;
  Told child;
  size_t index = 0;
  for (int crash = 0; crash < 10; ++crash) {
    Agent& agent = agents_->At(index);
    agents_->Take(agent, Type::kGo);
    if (crash == 0) {
      Ask(agent, 1, Shell("exec cat <&3", 3), 0, {}, {channel.childs.get()});
      child = Spawned(agent, 1);
    }
    ReadySpare(agent, ++index);
    agents_->Send(agent, {.type = fake::kRaise, .status = SIGABRT});
    agents_->AwaitGone(agent);
  }
  agents_->AwaitSaid("from now on");
  kill(keeper_, SIGTERM);
  EXPECT_EQ(AwaitExit(), 1);
  EXPECT_TRUE(AwaitEnd(child.descriptors[0].get()));
}

TEST_F(KeeperTest, StandardErrorThatNobodyReadsKeepsNobodyWaiting) {
  Pipe full;
  fcntl(full.to.get(), F_SETFL, O_NONBLOCK);
  const std::string text(4096, 'x');
  while (write(full.to.get(), text.data(), text.size()) > 0) {
  }
  fcntl(full.to.get(), F_SETFL, 0);
  Launch({}, "", [&] { dup2(full.to.get(), STDERR_FILENO); });
  ReadySpare(agents_->At(0), 1);
  Kill(agents_->At(0));
  agents_->Take(agents_->At(1), Type::kGo);
  ReadySpare(agents_->At(1), 2);
}

// --- Size ----------------------------------------------------------------------------------------

TEST_F(KeeperTest, AThousandChildrenAreFedToASpareAndCostLittleMemory) {
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  const uint64_t children = kSanitized ? 100 : 1000;
  if (limit.rlim_max < 5 * children + 1000) GTEST_SKIP() << "too few descriptors";

  Launch();
  Agent& agent = agents_->At(0);
  Agent& spare = ReadySpare(agent, 1);
  const Pipe hold;  // the children's standard input; they end with the test
  Program program{.arguments = {fake_}, .directory = "", .spec = {}};
  program.spec.descriptors_count = 1;
  program.spec.descriptors[0] = 0;
  for (uint64_t id = 1; id <= children; ++id) {
    const int held = hold.from.get();
    Ask(agent, id, program, kMemory | kChannel | kStdout | kStderr, {held, held, held, held},
        {held});
    Spawned(agent, id);
    agents_->Take(spare, Type::kChild, static_cast<int64_t>(id));
  }
  Kill(spare);
  Agent& next = ReadySpare(agent, 2);
  for (uint64_t id = 1; id <= children; ++id) {
    EXPECT_EQ(agents_->Take(next, Type::kChild, static_cast<int64_t>(id)).descriptors.size(), 5u);
  }
  if (!kSanitized) {
    EXPECT_LT(atoi(StatusOf(keeper_, "VmRSS").c_str()), 2048) << StatusOf(keeper_, "VmRSS");
  }
  EXPECT_EQ(DescriptorsOf(keeper_).size() / children, 5u);
  std::printf("keeper: %s\n", StatusOf(keeper_, "VmRSS").c_str());
}

}  // namespace
}  // namespace deka::keeper
