#include "ipc/stream_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "ipc/descriptor.h"
#include "ipc/error.h"
#include "ipc/testing.h"

namespace deka::ipc {
namespace {

constexpr StreamMemory::Limits kSmall = {
    .message_bytes_max = 1000, .queue_bytes_max = 4000, .queue_messages_max = 8};

struct Pair {
  Pair() {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    ours = Descriptor(ends[0]);
    peer = Descriptor(ends[1]);
  }
  Descriptor ours, peer;
};

StreamMemory Make(const StreamMemory::Limits& limits = kSmall) {
  absl::StatusOr<StreamMemory> memory = StreamMemory::Allocate(limits);
  EXPECT_TRUE(memory.ok()) << memory.status();
  return *std::move(memory);
}

// --- what the design takes from the kernel ---

TEST(KernelTest, RecvmmsgStoresItsCountAndLeavesThePaddingBehindIt) {
  Pair pair;
  StreamMemory memory = Make();
  StreamMemory::Transfer& transfer = memory.control().receive;
  transfer.Advance(7);
  ASSERT_EQ(write(pair.peer.get(), "hello", 5), 5);
  char bytes[16];
  iovec part = {bytes, sizeof(bytes)};
  transfer.Prepare({&part, 1}, {});
  EXPECT_EQ(transfer.Position(), 7u);
  ASSERT_EQ(recvmmsg(pair.ours.get(), &transfer.header, 1, 0, nullptr), 1);
  EXPECT_EQ(transfer.header.msg_len, 5u);
  EXPECT_EQ(transfer.Position(), 12u);
  transfer.Fold();
  EXPECT_EQ(transfer.header.msg_len, 0u);
  EXPECT_EQ(transfer.Position(), 12u);
}

TEST(KernelTest, SendmmsgStoresItsCountOfAPartialWrite) {
  Pair pair;
  StreamMemory memory = Make();
  StreamMemory::Transfer& transfer = memory.control().send;
  std::string bytes(4 << 20, 'x');
  iovec part = {bytes.data(), bytes.size()};
  transfer.Prepare({&part, 1}, {});
  ASSERT_EQ(sendmmsg(pair.ours.get(), &transfer.header, 1, MSG_DONTWAIT), 1);
  const uint32_t taken = transfer.header.msg_len;
  EXPECT_GT(taken, 0u);
  EXPECT_LT(taken, bytes.size());
  transfer.Prepare({&part, 1}, {});
  ASSERT_EQ(sendmmsg(pair.ours.get(), &transfer.header, 1, MSG_DONTWAIT), -1);
  EXPECT_EQ(errno, EAGAIN);
  EXPECT_EQ(transfer.Position(), taken);
}

TEST(KernelTest, EndOfFileIsACallThatBringsZeroBytes) {
  Pair pair;
  pair.peer.Close();
  StreamMemory memory = Make();
  StreamMemory::Transfer& transfer = memory.control().receive;
  char bytes[16];
  iovec part = {bytes, sizeof(bytes)};
  transfer.Prepare({&part, 1}, {});
  EXPECT_EQ(recvmmsg(pair.ours.get(), &transfer.header, 1, 0, nullptr), 1);
  EXPECT_EQ(transfer.Position(), 0u);
}

TEST(KernelTest, ConnectionResetComesBeforeBytesThatAreStillQueued) {
  Pair pair;
  ASSERT_EQ(write(pair.ours.get(), "unread", 6), 6);
  ASSERT_EQ(write(pair.peer.get(), "last words", 10), 10);
  pair.peer.Close();
  StreamMemory memory = Make();
  StreamMemory::Transfer& transfer = memory.control().receive;
  char bytes[16];
  iovec part = {bytes, sizeof(bytes)};
  transfer.Prepare({&part, 1}, {});
  EXPECT_EQ(recvmmsg(pair.ours.get(), &transfer.header, 1, 0, nullptr), -1);
  EXPECT_EQ(errno, ECONNRESET);
  transfer.Prepare({&part, 1}, {});
  EXPECT_EQ(recvmmsg(pair.ours.get(), &transfer.header, 1, 0, nullptr), 1);
  EXPECT_EQ(transfer.Position(), 10u);
  transfer.Prepare({&part, 1}, {});
  EXPECT_EQ(recvmmsg(pair.ours.get(), &transfer.header, 1, 0, nullptr), 1);
  EXPECT_EQ(transfer.header.msg_len, 0u);
}

TEST(TransferTest, PositionsWrapAt32Bits) {
  StreamMemory memory = Make();
  StreamMemory::Transfer& transfer = memory.control().send;
  transfer.Advance(0xffffffffu);
  transfer.header.msg_len = 3;
  EXPECT_EQ(transfer.Position(), 2u);
  transfer.Fold();
  EXPECT_EQ(transfer.Position(), 2u);
  EXPECT_EQ(transfer.header.msg_len, 0u);
}

// --- the memory ---

TEST(StreamMemoryTest, FitsWhatItWasMadeForAndNotMore) {
  StreamMemory memory = Make();
  EXPECT_TRUE(memory.Fits(kSmall));
  StreamMemory::Limits limits = kSmall;
  limits.message_bytes_max = 1 << 20;
  EXPECT_FALSE(memory.Fits(limits));
  limits = kSmall;
  limits.queue_bytes_max = 1 << 20;
  EXPECT_FALSE(memory.Fits(limits));
  limits = kSmall;
  limits.queue_messages_max = 65536;
  EXPECT_FALSE(memory.Fits(limits));
}

TEST(StreamMemoryTest, ALimitOfAnySizeLeavesRoomForOneRead) {
  for (size_t message_bytes_max :
       {size_t{1}, size_t{61438}, size_t{61439}, size_t{61440}, size_t{64} << 20}) {
    StreamMemory memory = Make({.message_bytes_max = message_bytes_max});
    const StreamMemory::Control& control = memory.control();
    EXPECT_GE(control.inbox_capacity,
              message_bytes_max + kEnvelopeBytesMax + 1 + StreamMemory::kReadBytesMax);
    EXPECT_GE(control.out_capacity, (size_t{4} << 20) + message_bytes_max + kEnvelopeBytesMax);
  }
}

TEST(StreamMemoryTest, AFullQueueLeavesRoomForTheChannelsOwnFrames) {
  // Without them it would be a power of two.
  const StreamMemory::Limits limits = {.message_bytes_max = 61440, .queue_bytes_max = 65536};
  const size_t full = limits.queue_bytes_max + limits.message_bytes_max + kEnvelopeBytesMax;
  ASSERT_EQ(full, size_t{1} << 17);
  EXPECT_GE(Make(limits).control().out_capacity,
            full + StreamMemory::kOwnSendsMax * HandleNack().size());
}

TEST(StreamMemoryTest, TakesARegionOfTheCallerAndLeavesItThere) {
  const size_t bytes = StreamMemory::BytesFor(kSmall);
  void* region = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(region, MAP_FAILED);
  const std::span<char> whole(static_cast<char*>(region), bytes);
  EXPECT_EQ(ReasonOf(StreamMemory::InRegion({whole.first(bytes - 1)}, kSmall).status()),
            Reason::kInvalidArgument);
  EXPECT_EQ(ReasonOf(StreamMemory::InRegion({whole.subspan(8)}, kSmall).status()),
            Reason::kInvalidArgument);
  {
    absl::StatusOr<StreamMemory> memory = StreamMemory::InRegion({whole}, kSmall);
    ASSERT_TRUE(memory.ok()) << memory.status();
    EXPECT_EQ(memory->at(0), region);
    EXPECT_TRUE(memory->Fits(kSmall));
  }
  EXPECT_EQ(ReasonOf(StreamMemory::InRegion({whole}, kSmall).status()), Reason::kInvalidArgument);
  EXPECT_EQ(munmap(region, bytes), 0);
}

TEST(StreamMemoryTest, AnUnusedOneCostsItsControlPage) {
  StreamMemory memory = Make({});
  EXPECT_EQ(ResidentPages(memory), 1u);
}

TEST(StreamMemoryTest, GivesBackThePagesOfEmptyRings) {
  StreamMemory memory = Make({});
  const StreamMemory::Control& control = memory.control();
  memory.at(control.index_offset)[10000] = 'x';
  memory.at(control.inbox_offset)[100000] = 'x';
  memory.at(control.out_offset)[100000] = 'x';
  EXPECT_EQ(ResidentPages(memory), 4u);
  memory.GiveBackPages(false, false);
  EXPECT_EQ(ResidentPages(memory), 4u);
  memory.GiveBackPages(/*inbox_empty=*/true, false);
  EXPECT_EQ(ResidentPages(memory), 3u);
  memory.GiveBackPages(false, /*outbox_empty=*/true);
  EXPECT_EQ(ResidentPages(memory), 1u);
  memory.at(control.inbox_offset)[100000] = 'x';
  memory.at(control.out_offset)[100000] = 'x';
  memory.GiveBackPages(true, true);
  EXPECT_EQ(ResidentPages(memory), 1u);
}

// --- the inbox ---

// As a read of the socket would.
void Receive(StreamMemory& memory, const Inbox& inbox, std::string_view bytes) {
  iovec parts[2];
  size_t copied = 0;
  for (const iovec& part : inbox.Free(parts)) {
    const size_t count = std::min(part.iov_len, bytes.size() - copied);
    std::memcpy(part.iov_base, bytes.data() + copied, count);
    copied += count;
  }
  ASSERT_EQ(copied, bytes.size());
  memory.control().receive.Fold();
  memory.control().receive.header.msg_len = static_cast<unsigned>(copied);
}

// What stands before `offset` is told.
void Consume(Inbox& inbox, uint64_t offset) {
  inbox.Store(LineFramer({}, {.begin = offset, .scanned = offset}));
}

TEST(InboxTest, OffersOneReadAtMost) {
  StreamMemory memory = Make();
  Inbox inbox(memory);
  iovec parts[2];
  const std::span<iovec> free = inbox.Free(parts);
  ASSERT_EQ(free.size(), 1u);
  EXPECT_EQ(free[0].iov_len, StreamMemory::kReadBytesMax);
}

TEST(InboxTest, AnEmptyOneStartsAgainAtItsFirstPage) {
  StreamMemory memory = Make();
  Inbox inbox(memory);
  iovec parts[2];
  const void* first = inbox.Free(parts)[0].iov_base;
  Receive(memory, inbox, "12345");
  EXPECT_NE(inbox.Free(parts)[0].iov_base, first);
  EXPECT_EQ(inbox.end() - inbox.begin(), 5u);
  Consume(inbox, inbox.end());
  const uint64_t before = inbox.begin();
  const uint64_t growth = inbox.Restart();
  EXPECT_EQ(inbox.begin(), before + growth);
  EXPECT_TRUE(inbox.empty());
  EXPECT_EQ(inbox.Free(parts)[0].iov_base, first);
  EXPECT_EQ(memory.progress().consumed, 5u) << "positions of the stream go on";
}

TEST(InboxTest, ALittleThatIsLeftIsMovedToTheFirstPage) {
  StreamMemory memory = Make();
  Inbox inbox(memory);
  Receive(memory, inbox, std::string(60000, '.') + "rest");
  Consume(inbox, inbox.begin() + 60000);
  EXPECT_EQ(inbox.Restart(), 0u) << "not worth it yet";
  Receive(memory, inbox, std::string(10000, ','));
  Consume(inbox, inbox.end() - 100);
  EXPECT_NE(inbox.Restart(), 0u);
  std::string scratch;
  EXPECT_EQ(inbox.Contiguous(inbox.begin(), inbox.end(), scratch), std::string(100, ','));
  EXPECT_EQ(inbox.view().data, inbox.Contiguous(inbox.begin(), inbox.end(), scratch).data());
}

TEST(InboxTest, KeepsEveryByteThroughWrapsAndRestarts) {
  StreamMemory memory = Make();
  // Positions pass 2^32 on the way.
  const uint64_t start = (uint64_t{1} << 32) - 500000;
  memory.progress().consumed = memory.progress().line_begin = start;
  memory.control().receive.Advance(static_cast<uint32_t>(start));
  Inbox inbox(memory);
  std::mt19937 random(1);
  std::string expected;
  std::string scratch;
  uint64_t total = 0;
  int wrapped = 0, restarted = 0;
  for (int i = 0; i < 200; ++i) {
    const size_t room =
        std::min<size_t>(StreamMemory::kReadBytesMax,
                         memory.control().inbox_capacity - (inbox.end() - inbox.begin()));
    std::string bytes(random() % (room + 1), '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    Receive(memory, inbox, bytes);
    expected += bytes;
    total += bytes.size();
    const std::string_view there = inbox.Contiguous(inbox.begin(), inbox.end(), scratch);
    if (there.data() == scratch.data()) ++wrapped;
    ASSERT_EQ(there, expected);
    const size_t told = random() % 4 == 0 ? expected.size() : random() % (expected.size() + 1);
    expected.erase(0, told);
    Consume(inbox, inbox.begin() + told);
    if (inbox.Restart() != 0) ++restarted;
    ASSERT_EQ(inbox.Contiguous(inbox.begin(), inbox.end(), scratch), expected);
  }
  EXPECT_EQ(memory.progress().consumed + expected.size(), start + total);
  EXPECT_GT(memory.progress().consumed, uint64_t{1} << 32);
  EXPECT_GT(wrapped, 0);
  EXPECT_GT(restarted, 0);
}

// --- the outbox ---

void Put(Outbox& outbox, uint64_t tag, std::string_view value,
         Outbox::Send::State state = Outbox::Send::State::kQueued) {
  const FrameParts frame = {.prefix = "<", .value = value, .suffix = ">"};
  ASSERT_TRUE(outbox.HasRoom(frame.size()));
  const Outbox::Value staged = outbox.Stage(frame);
  EXPECT_EQ(std::string(staged.first.begin(), staged.first.end()) +
                std::string(staged.second.begin(), staged.second.end()),
            value);
  outbox.Commit(tag, state);
}

std::string NextBytes(Outbox& outbox, bool begun_only = false) {
  iovec parts[2];
  std::string bytes;
  for (const iovec& part : outbox.Next(parts, begun_only)) {
    bytes.append(static_cast<const char*>(part.iov_base), part.iov_len);
  }
  return bytes;
}

// As a write of the socket would.
void Sent(StreamMemory& memory, uint32_t count) {
  memory.control().send.Fold();
  memory.control().send.header.msg_len = count;
}

TEST(OutboxTest, OneWriteTakesAllThatIsQueued) {
  StreamMemory memory = Make();
  Outbox outbox(memory);
  EXPECT_TRUE(outbox.empty());
  EXPECT_EQ(NextBytes(outbox), "");
  Put(outbox, 1, "a");
  Put(outbox, 2, "bc");
  EXPECT_EQ(outbox.sends(), 2u);
  EXPECT_EQ(outbox.bytes(), 7u);
  EXPECT_EQ(NextBytes(outbox), "<a><bc>");
  Sent(memory, 4);
  EXPECT_EQ(outbox.bytes(), 3u);
  EXPECT_EQ(outbox.front().tag, 1u);
  EXPECT_LE(outbox.front().end, outbox.sent());
  std::string scratch;
  EXPECT_EQ(outbox.Contiguous(outbox.front(), 1, 1, scratch), "a");
  outbox.PopFront();
  EXPECT_GT(outbox.front().end, outbox.sent());
  EXPECT_EQ(NextBytes(outbox), "bc>");
  EXPECT_EQ(NextBytes(outbox, /*begun_only=*/true), "bc>");
}

TEST(OutboxTest, WhatIsStagedAndNotCommittedWasNeverThere) {
  StreamMemory memory = Make();
  Outbox outbox(memory);
  outbox.Stage({.prefix = "<", .value = "no", .suffix = ">"});
  EXPECT_TRUE(outbox.empty());
  Put(outbox, 1, "yes");
  EXPECT_EQ(NextBytes(outbox), "<yes>");
}

TEST(OutboxTest, CancelTakesOutWhatIsNotBegun) {
  StreamMemory memory = Make();
  Outbox outbox(memory);
  for (uint64_t tag = 1; tag <= 4; ++tag) Put(outbox, tag, std::string(1, char('0' + tag)));
  Sent(memory, 1);
  EXPECT_FALSE(outbox.Cancel(1)) << "its first byte is written";
  EXPECT_FALSE(outbox.Cancel(9));
  EXPECT_TRUE(outbox.Cancel(2));
  EXPECT_FALSE(outbox.Cancel(2));
  EXPECT_EQ(NextBytes(outbox), "1>") << "a write ends before a cancelled send";
  EXPECT_EQ(NextBytes(outbox, true), "1>");
  Sent(memory, 2);
  outbox.PopFront();
  EXPECT_EQ(NextBytes(outbox), "<3><4>") << "then its bytes are skipped";
  EXPECT_EQ(outbox.bytes(), 6u);
  EXPECT_EQ(NextBytes(outbox, true), "");
  EXPECT_TRUE(outbox.Cancel(4));
  EXPECT_EQ(outbox.bytes(), 3u) << "the room of the last one is free at once";
  EXPECT_TRUE(outbox.Cancel(3));
  EXPECT_TRUE(outbox.empty());
  EXPECT_EQ(outbox.bytes(), 0u);
  Put(outbox, 5, "5");
  EXPECT_EQ(NextBytes(outbox), "<5>");
}

TEST(OutboxTest, CancelFindsEqualTagsOneByOneInAnyOrder) {
  StreamMemory memory = Make();
  Outbox outbox(memory);
  Put(outbox, 7, "a");
  Put(outbox, 8, "b");
  Put(outbox, 7, "c");
  Put(outbox, 9, "d");
  EXPECT_TRUE(outbox.Cancel(8));
  EXPECT_TRUE(outbox.Cancel(7)) << "looks behind the last one found first";
  EXPECT_TRUE(outbox.Cancel(7)) << "then before it";
  EXPECT_FALSE(outbox.Cancel(7));
  EXPECT_EQ(NextBytes(outbox), "<d>");
}

TEST(OutboxTest, TheChannelsOwnFramesCannotBeCancelled) {
  StreamMemory memory = Make();
  Outbox outbox(memory);
  Put(outbox, 0, "nack", Outbox::Send::State::kOwn);
  EXPECT_FALSE(outbox.Cancel(0));
  EXPECT_EQ(NextBytes(outbox), "<nack>");
}

TEST(OutboxTest, DroppingTheFrontDropsWhatIsNotWrittenOfIt) {
  StreamMemory memory = Make();
  Outbox outbox(memory);
  Put(outbox, 1, "aaaa");
  Put(outbox, 2, "b");
  Sent(memory, 2);
  outbox.PopFront();
  EXPECT_EQ(outbox.bytes(), 3u);
  outbox.Store();
  EXPECT_EQ(outbox.bytes(), 3u);
  EXPECT_EQ(NextBytes(outbox), "<b>");
  outbox.PopFront();
  outbox.Store();
  EXPECT_TRUE(outbox.empty());
  EXPECT_EQ(outbox.bytes(), 0u);
}

TEST(OutboxTest, DroppingTheFrontDropsACancelledOneToo) {
  StreamMemory memory = Make();
  Outbox outbox(memory);
  for (uint64_t tag = 1; tag <= 3; ++tag) Put(outbox, tag, std::to_string(tag));
  EXPECT_TRUE(outbox.Cancel(2));
  outbox.PopFront();
  outbox.PopFront();
  EXPECT_EQ(outbox.sends(), 1u);
  EXPECT_EQ(NextBytes(outbox), "<3>");
}

TEST(OutboxTest, HasRoomForTheQueueOneMessageAndTheChannelsOwn) {
  StreamMemory memory = Make();
  Outbox outbox(memory);
  const uint64_t capacity = memory.control().out_capacity;
  EXPECT_TRUE(outbox.HasRoom(capacity));
  EXPECT_FALSE(outbox.HasRoom(capacity + 1));
  size_t sends = 0;
  while (outbox.HasRoom(3)) {
    Put(outbox, sends, "x");
    ++sends;
  }
  EXPECT_EQ(sends, memory.control().index_capacity);
  EXPECT_GE(sends, kSmall.queue_messages_max + StreamMemory::kOwnSendsMax);
}

// Random sends, partial writes and cancels against a plain model.
TEST(OutboxTest, BehavesAsAQueueThroughWrapsAndRestarts) {
  StreamMemory memory = Make();
  const uint64_t start = (uint64_t{1} << 32) - 300000;
  memory.progress().settled = start;
  memory.control().send.Advance(static_cast<uint32_t>(start));
  Outbox outbox(memory);
  struct Model {
    uint64_t tag;
    std::string frame;
    bool cancelled = false;
  };
  std::deque<Model> model;
  size_t front_written = 0;
  std::mt19937 random(2);
  uint64_t next_tag = 1;
  std::string written, expected, scratch;
  int cancels = 0, wraps = 0;
  for (int i = 0; i < 20000; ++i) {
    switch (random() % 4) {
      case 0:
      case 1: {
        std::string value(1 + random() % 900, '\0');
        for (char& byte : value) byte = static_cast<char>('a' + random() % 26);
        if (!outbox.HasRoom(value.size() + 2)) break;
        Put(outbox, next_tag, value);
        model.push_back({.tag = next_tag++, .frame = "<" + value + ">"});
        break;
      }
      case 2: {
        iovec parts[2];
        const std::span<iovec> next = outbox.Next(parts, false);
        if (next.size() == 2) ++wraps;
        size_t count = 0;
        for (const iovec& part : next) count += part.iov_len;
        if (count == 0) break;
        const size_t taken = random() % (std::min<size_t>(count, 1500) + 1);
        const std::string bytes = NextBytes(outbox).substr(0, taken);
        Sent(memory, static_cast<uint32_t>(taken));
        written += bytes;
        while (!outbox.empty() && outbox.front().end <= outbox.sent()) {
          while (model.front().cancelled) model.pop_front();
          ASSERT_EQ(outbox.front().tag, model.front().tag);
          ASSERT_EQ(outbox.Contiguous(outbox.front(), 0, outbox.front().length, scratch),
                    model.front().frame);
          expected += model.front().frame.substr(front_written);
          front_written = 0;
          model.pop_front();
          outbox.PopFront();
        }
        if (random() % 2 == 0) outbox.Store();
        if (!outbox.empty() && outbox.sent() > outbox.front().begin()) {
          while (model.front().cancelled) model.pop_front();
          const size_t now = outbox.sent() - outbox.front().begin();
          expected += model.front().frame.substr(front_written, now - front_written);
          front_written = now;
        }
        ASSERT_EQ(written, expected);
        written.clear();
        expected.clear();
        break;
      }
      case 3: {
        if (model.empty()) break;
        Model& victim = model[random() % model.size()];
        const bool begun = front_written > 0 &&
                           &victim == &*std::find_if(model.begin(), model.end(),
                                                     [](const Model& m) { return !m.cancelled; });
        ASSERT_EQ(outbox.Cancel(victim.tag), !victim.cancelled && !begun);
        if (!begun) victim.cancelled = true;
        ++cancels;
        break;
      }
    }
  }
  EXPECT_GT(memory.progress().settled, uint64_t{1} << 32);
  EXPECT_GT(cancels, 1000);
  EXPECT_GT(wraps, 0);
}

}  // namespace
}  // namespace deka::ipc
