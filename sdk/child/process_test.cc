// The library in this process, on a socket that plays the parent, and in a real child.

#include "sdk/child/process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "ipc/error.h"

namespace deka {
namespace {

std::string child_program;

constexpr int kDeadlineMs = 30000;

struct Ends {
  int ours = -1;
  int childs = -1;
};

Ends MakeEnds() {
  int ends[2];
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  return {ends[0], ends[1]};
}

void Write(int descriptor, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = send(descriptor, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    ASSERT_GT(count, 0);
    bytes.remove_prefix(static_cast<size_t>(count));
  }
}

// Up to and with the next line break; what came so far if the stream ends or the deadline passes.
std::string ReadLine(int descriptor) {
  std::string line;
  char byte;
  pollfd ready = {.fd = descriptor, .events = POLLIN, .revents = 0};
  while (poll(&ready, 1, kDeadlineMs) == 1 && read(descriptor, &byte, 1) == 1) {
    line += byte;
    if (byte == '\n') break;
  }
  return line;
}

// An environment with a channel, as long as the test lasts.
class ProcessTest : public testing::Test {
 protected:
  ProcessTest() : ends_(MakeEnds()) {}
  ~ProcessTest() override {
    ForgetChannel();
    Hangup();
  }

  void NameChannel(int descriptor) {
    setenv("NODE_CHANNEL_FD", std::to_string(descriptor).c_str(), 1);
    setenv("NODE_CHANNEL_SERIALIZATION_MODE", "json", 1);
  }
  void ForgetChannel() {
    unsetenv("NODE_CHANNEL_FD");
    unsetenv("NODE_CHANNEL_SERIALIZATION_MODE");
  }
  void Hangup() {
    if (ends_.ours >= 0) close(ends_.ours);
    ends_.ours = -1;
  }

  std::unique_ptr<Process> Open(Process::Listeners listeners) {
    NameChannel(ends_.childs);
    auto process = Process::Open(std::move(listeners));
    EXPECT_TRUE(process.ok()) << process.status();
    return *std::move(process);
  }

  Ends ends_;
};

TEST_F(ProcessTest, WithoutAChannelThereIsNoProcess) {
  EXPECT_FALSE(Process::HasChannel());
  const auto process = Process::Open({.on_message = [](Process&, std::string_view) {}});
  EXPECT_EQ(ipc::ReasonOf(process.status()), ipc::Reason::kNoChannel);
}

TEST_F(ProcessTest, OnMessageIsRequired) {
  NameChannel(ends_.childs);
  EXPECT_EQ(ipc::ReasonOf(Process::Open({}).status()), ipc::Reason::kInvalidArgument);
  EXPECT_TRUE(Process::HasChannel()) << "the channel is still to be opened";
}

TEST_F(ProcessTest, DeliversInOrderThenDisconnectsAndRunReturns) {
  std::vector<std::string> told;
  const auto process = Open({
      .on_message = [&](Process&, std::string_view json) { told.emplace_back(json); },
      .on_internal_message = [&](Process&, std::string_view) { told.push_back("internal"); },
      .on_error =
          [&](Process&, const absl::Status& why) {
            EXPECT_EQ(ipc::ReasonOf(why), ipc::Reason::kInvalidJson);
            told.push_back("error");
          },
      .on_disconnect =
          [&](Process& self, const absl::Status& why) {
            EXPECT_TRUE(why.ok()) << why;
            EXPECT_FALSE(self.connected());
            told.push_back("disconnect");
          },
  });
  EXPECT_FALSE(Process::HasChannel()) << "a grandchild would take it for its own";
  EXPECT_TRUE(process->connected());
  EXPECT_EQ(process->dialect(), ipc::Dialect::kNode);
  Write(ends_.ours, "1e999\nnot json\n{\"cmd\":\"NODE_X\"}\n\"\\ud800\"\n");
  Hangup();
  process->Run();
  EXPECT_EQ(told,
            (std::vector<std::string>{"1e999", "error", "internal", "\"\\ud800\"", "disconnect"}));
}

TEST_F(ProcessTest, SendsAndTellsWhenItIsWritten) {
  std::vector<std::string> told;
  const auto process = Open({
      .on_message = [](Process&, std::string_view) {},
      .on_disconnect = [&](Process&, const absl::Status&) { told.push_back("disconnect"); },
  });
  const auto sent = process->Send("[1]", [&](const absl::Status& status) {
    EXPECT_TRUE(status.ok()) << status;
    told.push_back("written");
  });
  EXPECT_TRUE(sent.ok() && *sent);
  EXPECT_EQ(ipc::ReasonOf(process->Send("{", [](const absl::Status&) { FAIL(); }).status()),
            ipc::Reason::kInvalidJson);
  EXPECT_TRUE(process->Disconnect().ok());
  EXPECT_EQ(ipc::ReasonOf(process->Disconnect()), ipc::Reason::kChannelClosed);
  EXPECT_FALSE(process->connected());

  std::string received;
  std::thread parent([&] {
    received = ReadLine(ends_.ours);
    EXPECT_EQ(ReadLine(ends_.ours), "");
    Hangup();
  });
  process->Run();
  parent.join();
  EXPECT_EQ(received, "[1]\n");
  EXPECT_EQ(told, (std::vector<std::string>{"written", "disconnect"}));
  EXPECT_EQ(ipc::ReasonOf(process->Send("1").status()), ipc::Reason::kChannelClosed);
}

TEST_F(ProcessTest, SaysFalseWhenMuchWaitsAndTellsWhenItIsWritten) {
  bool drained = false;
  const auto process = Open({
      .on_message = [](Process&, std::string_view) {},
      .on_drain =
          [&](Process& self) {
            drained = true;
            EXPECT_TRUE(self.Disconnect().ok());
          },
  });
  const std::string large = "\"" + std::string(200000, 'x') + "\"";
  for (int i = 0; i < 4; ++i) {
    const auto sent = process->Send(large);
    ASSERT_TRUE(sent.ok()) << sent.status();
    EXPECT_FALSE(*sent);
  }
  std::thread parent([&] {
    for (int i = 0; i < 4; ++i) EXPECT_EQ(ReadLine(ends_.ours), large + "\n");
    EXPECT_EQ(ReadLine(ends_.ours), "");
    Hangup();
  });
  process->Run();
  parent.join();
  EXPECT_TRUE(drained);
}

TEST_F(ProcessTest, PostRunsOnTheThreadOfRun) {
  const auto process = Open({.on_message = [](Process&, std::string_view) {}});
  std::thread::id ran_on;
  std::thread other([&] {
    process->Post([&] {
      ran_on = std::this_thread::get_id();
      EXPECT_TRUE(process->Send("7").ok());
    });
    EXPECT_EQ(ReadLine(ends_.ours), "7\n");
    Hangup();
  });
  process->Run();
  other.join();
  EXPECT_EQ(ran_on, std::this_thread::get_id());
}

// sdk/examples/child, with the channel as its descriptor 3 and its output in a pipe.
class Example {
 public:
  explicit Example(std::vector<std::string> variables) {
    const Ends ends = MakeEnds();
    int output[2];
    EXPECT_EQ(pipe2(output, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, output[1], 1);
    posix_spawn_file_actions_adddup2(&actions, output[1], 2);
    // dup2 onto itself would leave close-on-exec set.
    const int source = fcntl(ends.childs, F_DUPFD_CLOEXEC, 10);
    posix_spawn_file_actions_adddup2(&actions, source, 3);
    std::vector<char*> environment;
    for (std::string& variable : variables) environment.push_back(variable.data());
    environment.push_back(nullptr);
    char* const arguments[] = {child_program.data(), nullptr};
    EXPECT_EQ(
        posix_spawn(&pid_, child_program.c_str(), &actions, nullptr, arguments, environment.data()),
        0);
    posix_spawn_file_actions_destroy(&actions);
    for (const int descriptor : {ends.childs, source, output[1]}) close(descriptor);
    channel_ = ends.ours;
    output_ = output[0];
  }
  ~Example() {
    Disconnect();
    close(output_);
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
  }

  std::string Ask(const std::string& line) {
    Write(channel_, line + "\n");
    return ReadLine(channel_);
  }
  int channel() const { return channel_; }
  std::string ReadOutput() { return ReadLine(output_); }
  void Disconnect() {
    if (channel_ >= 0) close(channel_);
    channel_ = -1;
  }
  // Its output ends when it does.
  int ExitCode() {
    while (!ReadOutput().empty()) continue;
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = -1;
  int channel_ = -1;
  int output_ = -1;
};

TEST(ExampleTest, SpeaksTheDekaDialect) {
  Example child({"DEKA_IPC_ENABLED=1", "DEKA_IPC_FD=3"});
  const auto enveloped = [](const std::string& json) {
    return "{\"cmd\":\"NODE_HANDLE\",\"msg\":" + json + "}";
  };
  EXPECT_EQ(child.Ask(enveloped("{\"ping\":1}")), enveloped("{\"pong\":1}") + "\n");
  EXPECT_EQ(child.Ask(enveloped("{\"echo\":[1e999,\"\\ud800\"]}")),
            enveloped("{\"echoed\":[1e999,\"\\ud800\"]}") + "\n");
  EXPECT_EQ(child.Ask(enveloped("\"your turn\"")), enveloped("{\"ping\":2}") + "\n");
  EXPECT_EQ(ReadLine(child.channel()), enveloped("{\"echo\":[\"à\",2,null]}") + "\n");
  Write(child.channel(), enveloped("{\"pong\":2}") + "\n");
  EXPECT_EQ(child.ReadOutput(), "my parent answered {\"pong\":2}\n");
  child.Disconnect();
  EXPECT_EQ(child.ExitCode(), 0);
}

TEST(ExampleTest, SpeaksTheNodeDialect) {
  Example child({"NODE_CHANNEL_FD=3", "NODE_CHANNEL_SERIALIZATION_MODE=json"});
  EXPECT_EQ(child.Ask("{\"ping\":1}"), "{\"pong\":1}\n");
  EXPECT_EQ(child.Ask("{\"echo\":null}"), "{\"echoed\":null}\n");
  child.Disconnect();
  EXPECT_EQ(child.ExitCode(), 0);
}

TEST(ExampleTest, GoesOnAfterALineThatIsNoMessageAndSaysSo) {
  Example child({"DEKA_IPC_ENABLED=1", "DEKA_IPC_FD=3"});
  EXPECT_EQ(child.Ask("{\"ping\":1}\n{\"cmd\":\"NODE_HANDLE\",\"msg\":{\"ping\":2}}"),
            "{\"cmd\":\"NODE_HANDLE\",\"msg\":{\"pong\":2}}\n");
  const std::string said = child.ReadOutput();
  EXPECT_NE(said.find("no message of dialect deka"), std::string::npos) << said;
  child.Disconnect();
  EXPECT_EQ(child.ExitCode(), 0);
}

// What the example wrote to its output until it ended, after one ping.
std::string OutputOfAPing(std::vector<std::string> variables) {
  variables.push_back("NODE_CHANNEL_FD=3");
  Example child(std::move(variables));
  EXPECT_EQ(child.Ask("{\"ping\":1}"), "{\"pong\":1}\n");
  child.Disconnect();
  std::string output;
  for (std::string line = child.ReadOutput(); !line.empty(); line = child.ReadOutput()) {
    output += line;
  }
  EXPECT_EQ(child.ExitCode(), 0);
  return output;
}

TEST(ExampleTest, ItsFramesAreLoggedOnlyWhenAskedFor) {
  const std::string logged = OutputOfAPing({"DEKA_IPC_DEBUG=1"});
  EXPECT_NE(logged.find("{\"ping\":1}"), std::string::npos) << logged;
  EXPECT_NE(logged.find("{\"pong\":1}"), std::string::npos) << logged;
  EXPECT_EQ(OutputOfAPing({}), "");
}

TEST(ExampleTest, WithoutAChannelItSaysWhatIsMissing) {
  Example child({});
  const std::string said = child.ReadOutput();
  EXPECT_NE(said.find("DEKA_IPC_ENABLED=1"), std::string::npos) << said;
  EXPECT_EQ(child.ExitCode(), 1);
}

}  // namespace
}  // namespace deka

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc != 2) return 2;
  deka::child_program = argv[1];
  return RUN_ALL_TESTS();
}
