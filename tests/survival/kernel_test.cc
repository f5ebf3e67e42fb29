// What Linux promises to who wants to know, after the death of a process at any instruction, which
// bytes it had moved. ipc/stream_memory_test.cc has the promises that need no death.
//
// Each test forks a process that moves bytes and stores how far it is in memory that it shares,
// kills it at a random moment, and looks: what it stored and what is left must be all there was.
// DEKA_KILLS says how often, DEKA_SEED at which moments.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <new>
#include <random>
#include <string>
#include <string_view>

#include "ipc/stream_memory.h"

namespace deka {
namespace {

using ipc::StreamMemory;

constexpr size_t kBytes = 4 << 20;       // more than a process moves before it is killed
constexpr size_t kCallBytes = 64 << 10;  // of one call
constexpr size_t kWriteBytes = 8 << 10;

// Such that no two places look alike for long.
char ByteAt(uint64_t position) { return static_cast<char>((position * 2654435761u) >> 24); }

int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* const value = getenv(name);
  return value == nullptr ? otherwise : std::atoll(value);
}

class KillTest : public testing::Test {
 protected:
  struct Shared {
    StreamMemory::Transfer transfer;
    alignas(64) loff_t offset;  // of a splice, or of who stores it after it has read
    alignas(4096) char bytes[kBytes];
  };

  KillTest() {
    file_ = memfd_create("bytes", MFD_CLOEXEC);
    EXPECT_EQ(ftruncate(file_, sizeof(Shared)), 0);
    shared_ = static_cast<Shared*>(
        mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0));
    EXPECT_NE(shared_, MAP_FAILED);
    for (uint64_t i = 0; i < kBytes; ++i) stream_ += ByteAt(i);
    RecordProperty("seed", std::to_string(seed_));
  }
  ~KillTest() override {
    munmap(shared_, sizeof(Shared));
    close(file_);
  }

  // Runs `moves` for ever in a process that is killed at a random moment, while `meanwhile` is
  // called again and again.
  void RunAndKill(const std::function<void()>& moves, const std::function<void()>& meanwhile) {
    const pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      for (;;) moves();
    }
    const auto end = std::chrono::steady_clock::now() +
                     std::chrono::microseconds(std::uniform_int_distribution(0, 800)(random_));
    while (std::chrono::steady_clock::now() < end) meanwhile();
    kill(pid, SIGKILL);
    ASSERT_EQ(waitpid(pid, nullptr, 0), pid);
  }

  // Writes some more of the stream.
  void WriteSome(int descriptor, uint64_t& written) {
    const size_t size = std::min<size_t>(
        kBytes - written, std::uniform_int_distribution<size_t>(1, kWriteBytes)(random_));
    const ssize_t count = write(descriptor, stream_.data() + written, size);
    if (count > 0) written += static_cast<uint64_t>(count);
  }

  static std::string ReadAll(int descriptor) {
    std::string all(kBytes, '\0');
    size_t size = 0;
    for (ssize_t count; (count = read(descriptor, all.data() + size, all.size() - size)) > 0;) {
      size += static_cast<size_t>(count);
    }
    all.resize(size);
    return all;
  }

  // True if what was moved and what is left are the stream that was written.
  bool IsWhole(std::string_view moved, std::string_view left, uint64_t written) const {
    return moved.size() + left.size() == written && stream_.starts_with(moved) &&
           std::string_view(stream_).substr(moved.size()).starts_with(left);
  }

  const int64_t kills_ = FromEnvironment("DEKA_KILLS", 300);
  const int64_t seed_ = FromEnvironment("DEKA_SEED", 1);
  std::mt19937_64 random_{static_cast<uint64_t>(seed_)};
  std::string stream_;
  int file_ = -1;
  Shared* shared_ = nullptr;
};

TEST_F(KillTest, WhatRecvmmsgTookIsCounted) {
  for (int64_t kills = 0; kills < kills_; ++kills) {
    new (shared_) StreamMemory::Transfer{};
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    uint64_t written = 0;
    RunAndKill(
        [&] {
          StreamMemory::Transfer& transfer = shared_->transfer;
          const size_t position = transfer.Position();
          iovec part = {shared_->bytes + position, std::min(kCallBytes, kBytes - position)};
          transfer.Prepare({&part, 1}, {});
          recvmmsg(ends[1], &transfer.header, 1, 0, nullptr);
        },
        [&] { WriteSome(ends[0], written); });
    const std::string_view moved(shared_->bytes, shared_->transfer.Position());
    ASSERT_TRUE(IsWhole(moved, ReadAll(ends[1]), written))
        << "after " << kills << " kills: recvmmsg took other bytes than it counted";
    close(ends[0]);
    close(ends[1]);
  }
}

TEST_F(KillTest, WhatSendmmsgGaveIsCounted) {
  stream_.copy(shared_->bytes, kBytes);
  for (int64_t kills = 0; kills < kills_; ++kills) {
    new (shared_) StreamMemory::Transfer{};
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    std::string received;
    RunAndKill(
        [&] {
          StreamMemory::Transfer& transfer = shared_->transfer;
          const size_t position = transfer.Position();
          iovec part = {shared_->bytes + position, std::min(kWriteBytes, kBytes - position)};
          transfer.Prepare({&part, 1}, {});
          sendmmsg(ends[1], &transfer.header, 1, MSG_NOSIGNAL);
        },
        [&] {
          char buffer[kWriteBytes];
          const ssize_t count = read(ends[0], buffer, sizeof(buffer));
          if (count > 0) received.append(buffer, static_cast<size_t>(count));
        });
    received += ReadAll(ends[0]);
    ASSERT_TRUE(IsWhole(received, "", shared_->transfer.Position()))
        << "after " << kills << " kills: sendmmsg gave other bytes than it counted";
    close(ends[0]);
    close(ends[1]);
  }
}

TEST_F(KillTest, WhatSpliceTookIsCounted) {
  for (int64_t kills = 0; kills < kills_; ++kills) {
    shared_->offset = offsetof(Shared, bytes);
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    uint64_t written = 0;
    RunAndKill(
        [&] { splice(ends[0], nullptr, file_, &shared_->offset, kCallBytes, SPLICE_F_NONBLOCK); },
        [&] { WriteSome(ends[1], written); });
    const std::string_view moved(shared_->bytes,
                                 static_cast<size_t>(shared_->offset) - offsetof(Shared, bytes));
    ASSERT_TRUE(IsWhole(moved, ReadAll(ends[0]), written))
        << "after " << kills << " kills: splice took other bytes than it counted";
    close(ends[0]);
    close(ends[1]);
  }
}

// Who reads and then stores how much it was loses or doubles bytes: the test would see it.
TEST_F(KillTest, WhatWasReadAndThenStoredIsNot) {
  int64_t broken = 0;
  for (int64_t kills = 0; kills < kills_; ++kills) {
    shared_->offset = 0;
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    uint64_t written = 0;
    RunAndKill(
        [&] {
          const auto position = static_cast<size_t>(shared_->offset);
          const ssize_t count = read(ends[1], shared_->bytes + position, kCallBytes);
          // Some microseconds, as handling what was read would take.
          for (int i = 0; i < 5000; ++i) asm volatile("");
          if (count > 0) shared_->offset += count;
        },
        [&] { WriteSome(ends[0], written); });
    const std::string_view moved(shared_->bytes, static_cast<size_t>(shared_->offset));
    broken += !IsWhole(moved, ReadAll(ends[1]), written);
    close(ends[0]);
    close(ends[1]);
  }
  EXPECT_GT(broken, 0);
}

}  // namespace
}  // namespace deka
