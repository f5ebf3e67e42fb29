// The child's end found from the environment: what is taken, what is taken away, what is refused.

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "ipc/descriptor.h"
#include "ipc/error.h"
#include "ipc/process.h"

namespace deka::ipc {
namespace {

constexpr const char* kVariables[] = {"DEKA_IPC_ENABLED", "DEKA_IPC_FD", "NODE_CHANNEL_FD",
                                      "NODE_CHANNEL_SERIALIZATION_MODE"};

class Nobody : public Process::Listener {
  void OnMessage(Message) override {}
};

class ProcessEnvironmentTest : public testing::Test {
 protected:
  ProcessEnvironmentTest() {
    Clear();
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    parent_ = Descriptor(ends[0]);
    child_ = ends[1];
  }
  ~ProcessEnvironmentTest() override { Clear(); }

  static void Clear() {
    for (const char* name : kVariables) unsetenv(name);
  }
  static void Set(const char* name, const std::string& value) { setenv(name, value.c_str(), 1); }

  absl::StatusOr<std::unique_ptr<Process>> Open() { return Process::Open(loop_, {}, nobody_); }

  EventLoop loop_;
  Nobody nobody_;
  Descriptor parent_;
  int child_ = -1;
};

TEST_F(ProcessEnvironmentTest, FindsEitherDialectAndLeavesNoVariableBehind) {
  Set("DEKA_IPC_ENABLED", "1");
  Set("DEKA_IPC_FD", std::to_string(child_));
  Set("NODE_CHANNEL_SERIALIZATION_MODE", "json");
  EXPECT_TRUE(Process::HasChannel());
  const auto process = Open();
  ASSERT_TRUE(process.ok()) << process.status();
  EXPECT_EQ((*process)->dialect(), Dialect::kDeka);
  EXPECT_TRUE((*process)->connected());
  for (const char* name : kVariables) EXPECT_EQ(std::getenv(name), nullptr) << name;
  EXPECT_FALSE(Process::HasChannel());
  EXPECT_NE(fcntl(child_, F_GETFD) & FD_CLOEXEC, 0) << "a grandchild would inherit the channel";
}

TEST_F(ProcessEnvironmentTest, NodesModeIsJsonWhenItIsNotNamed) {
  Set("NODE_CHANNEL_FD", std::to_string(child_));
  const auto process = Open();
  ASSERT_TRUE(process.ok()) << process.status();
  EXPECT_EQ((*process)->dialect(), Dialect::kNode);
  EXPECT_EQ(std::getenv("NODE_CHANNEL_FD"), nullptr);
}

TEST_F(ProcessEnvironmentTest, AnEnvironmentThatNamesNoneIsAnErrorThatSaysWhatIsMissing) {
  Set("DEKA_IPC_FD", std::to_string(child_));  // without DEKA_IPC_ENABLED=1
  Set("NODE_CHANNEL_FD", "");
  EXPECT_FALSE(Process::HasChannel());
  const absl::Status status = Open().status();
  EXPECT_EQ(ReasonOf(status), Reason::kNoChannel);
  EXPECT_NE(std::string(status.message()).find("NODE_CHANNEL_FD"), std::string::npos) << status;
  close(child_);
}

TEST_F(ProcessEnvironmentTest, WhatIsNoOpenStreamSocketIsRefusedByName) {
  const Descriptor file(open("/dev/null", O_RDWR | O_CLOEXEC));
  const Descriptor network(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const Descriptor packets(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const Descriptor good(child_);
  const int closed = dup(child_);
  close(closed);
  const std::string number = std::to_string(child_);
  const std::vector<std::string> values = {"abc",
                                           "-1",
                                           number + "x",
                                           " " + number,
                                           "99999999999999999999",
                                           std::to_string(closed),
                                           std::to_string(file.get()),
                                           std::to_string(network.get()),
                                           std::to_string(packets.get())};
  for (const std::string& value : values) {
    Set("NODE_CHANNEL_FD", value);
    const absl::Status status = Open().status();
    EXPECT_EQ(ReasonOf(status), Reason::kInvalidArgument) << value << status;
    EXPECT_NE(std::string(status.message()).find("NODE_CHANNEL_FD=" + value), std::string::npos)
        << status;
  }
}

TEST_F(ProcessEnvironmentTest, AnotherSerializationIsRefused) {
  Set("NODE_CHANNEL_FD", std::to_string(child_));
  Set("NODE_CHANNEL_SERIALIZATION_MODE", "advanced");
  const absl::Status status = Open().status();
  EXPECT_EQ(ReasonOf(status), Reason::kInvalidArgument);
  EXPECT_NE(std::string(status.message()).find("advanced"), std::string::npos) << status;
  close(child_);
}

}  // namespace
}  // namespace deka::ipc
