#include "server/keeper_link.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <new>
#include <string_view>

#include "agent/agent_memory.h"
#include "ipc/descriptor.h"
#include "keeper/packet.h"
#include "keeper/protocol.h"

namespace deka::server {
namespace {

using agent::AgentMemory;
using keeper::Type;

// A keeper that holds the file of an agent.
class KeeperLinkTest : public testing::Test {
 protected:
  KeeperLinkTest() : file_(memfd_create("agent", MFD_CLOEXEC)) {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    keeper_ = ipc::Descriptor(ends[0]);
    link_ = *KeeperLink::Open(ends[1]);
    EXPECT_EQ(ftruncate(file_.get(), keeper::AgentFile::kBytes), 0);
    mapped_ = mmap(nullptr, keeper::AgentFile::kBytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                   file_.get(), 0);
    EXPECT_NE(mapped_, MAP_FAILED);
  }
  ~KeeperLinkTest() override { munmap(mapped_, keeper::AgentFile::kBytes); }

  AgentMemory& memory() {
    return *reinterpret_cast<AgentMemory*>(static_cast<char*>(mapped_) + sizeof(keeper::AgentFile));
  }

  absl::Status Go() {
    const int file = file_.get();
    EXPECT_EQ(
        keeper::SendPacket(
            keeper_.get(), 0,
            {.type = Type::kFile, .id = 2, .pid = getpid(), .number = keeper::kProtocolVersion},
            &file, 1),
        0);
    for (const Type type : {Type::kFed, Type::kGo}) {
      EXPECT_EQ(keeper::SendPacket(keeper_.get(), 0, {.type = type}, nullptr, 0), 0);
    }
    return link_->AwaitGo();
  }

  ipc::Descriptor file_;
  ipc::Descriptor keeper_;
  std::unique_ptr<KeeperLink> link_;
  void* mapped_;
};

TEST_F(KeeperLinkTest, AFileThatNobodyHasUsedIsMadeReady) {
  ASSERT_TRUE(Go().ok());
  EXPECT_EQ(memory().magic, AgentMemory::kMagic);
  EXPECT_EQ(link_->incarnation(), 2);
}

// The agent before was killed between the two stores that begin and decide a commit.
TEST_F(KeeperLinkTest, ABatchOfSeveralEventsThatWasNotDecidedIsNoHindrance) {
  new (&memory()) AgentMemory;
  memory().next_sequence = 5;
  memory().redo.last = 7;
  const absl::Status status = Go();
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(KeeperLinkTest, WhatCannotBeIsRefusedByName) {
  new (&memory()) AgentMemory;
  memory().next_sequence = 0;
  EXPECT_NE(Go().message().find("next_sequence"), std::string_view::npos);
}

TEST_F(KeeperLinkTest, TheFileOfAnotherVersionIsRefused) {
  new (&memory()) AgentMemory;
  memory().version = 99;
  EXPECT_NE(Go().message().find("99"), std::string_view::npos);
}

}  // namespace
}  // namespace deka::server
