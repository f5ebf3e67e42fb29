// What a message costs on its way, as docs/life-of-a-message.md tells it: how often it is encoded,
// and how much memory is allocated.
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "agent/agent_testing.h"
#include "agent/event_encoding.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ipc/descriptor.h"

namespace {
size_t allocations = 0;
}  // namespace

// Counted. Not inlined, or gcc would take them for a pair that does not fit.
[[gnu::noinline]] void* operator new(size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size);
}
[[gnu::noinline]] void* operator new(size_t size) {
  if (void* const memory = operator new(size, std::nothrow)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace deka::agent {
namespace {

using Next = Observation::Next;

TEST(MessageCostTest, AnEventIsEncodedOnceWhoeverObservesIt) {
  constexpr int kEvents = 3000, kObservers = 64;
  EventLog log({.agent = "test"});
  std::vector<std::shared_ptr<Log>> children;
  for (const char* id : {"a", "b", "c"}) {
    children.push_back(*log.AddChild(id, {}, /*bytes_max=*/4 << 20, /*events_max=*/16384));
  }
  std::vector<std::unique_ptr<Observation>> observers;
  for (int i = 0; i < kObservers; ++i) {
    Asked asked;
    v1::Observation& observation = asked.observation;
    if (i % 2) asked.children = {children[static_cast<size_t>(i) % 3]};
    if (i % 3 == 1) observation.set_direction(v1::DIRECTION_FROM_CHILD);
    if (i % 4 == 1) observation.add_where()->set_pointer("/even");
    if (i % 5 == 1) observation.set_payload_bytes_max(i % 2 ? 0 : 7);
    if (i % 6 == 1) observation.set_events_per_second_max(10);
    if (i % 7 == 1) observation.set_when_slow(v1::SLOW_POLICY_BLOCK);
    if (i % 8 == 1) observation.set_response_bytes_max(64 << 10);
    observers.push_back(*agent::Observe(log, std::move(asked)));
  }
  const uint64_t encoded_before = EncodedEntries();
  size_t shown_bytes = 0;
  Response response;
  for (int i = 0; i < kEvents; ++i) {
    StageMessage(log, *children[static_cast<size_t>(i) % 3],
                 i % 2 ? R"({"odd":"abcdefgh"})" : R"({"even":"abcdefgh"})",
                 i % 5 ? v1::DIRECTION_FROM_CHILD : v1::DIRECTION_TO_CHILD);
    if (i % 100 != 99) continue;
    log.Commit();
    for (const std::unique_ptr<Observation>& observer : observers) {
      while (observer->TakeNext(response) != Next::kWait) shown_bytes += response.bytes();
    }
  }
  EXPECT_GT(shown_bytes, 2'000'000u);
  EXPECT_EQ(EncodedEntries() - encoded_before, static_cast<uint64_t>(kEvents));
}

class AllocationTest : public AgentTest {
 protected:
  AllocationTest() {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    end_ = ipc::Descriptor(ends[1]);
    const auto child = agent_->Adopt(ends[0], /*pid=*/0, ipc::Dialect::kNode, {}, nullptr);
    EXPECT_TRUE(child.ok()) << child.status();
    child_ = *Get((*child)->name());
    v1::ObserveRequest request;
    request.mutable_filter()->add_children(child_.name());
    observation_ = *Observe(request);
    while (observation_->TakeNext(response_) == Next::kResponse) {
    }
  }

  // Lets the child write `messages` messages in each of `writes` writes, each read and shown before
  // the next. Allocations for each message.
  double Allocations(int writes, int messages) {
    std::string lines;
    for (int i = 0; i < messages; ++i) lines += "{\"value\":\"0123456789abcdef\"}\n";
    const auto run = [&](int count) {
      for (int i = 0; i < count; ++i) {
        EXPECT_EQ(write(end_.get(), lines.data(), lines.size()),
                  static_cast<ssize_t>(lines.size()));
        for (int shown = 0; shown < messages;) {
          uv_run(loop_.uv(), UV_RUN_ONCE);
          while (observation_->TakeNext(response_) == Next::kResponse) shown += Events(response_);
          observation_->OnReady([] {});
        }
      }
    };
    run(writes);  // the log turns over, buffers have grown
    const size_t before = allocations;
    run(writes);
    return static_cast<double>(allocations - before) / writes / messages;
  }

  // In a batch whose events are short; found without allocating.
  static int Events(Response& response) {
    int events = 0;
    for (const Response::Piece& piece : response.pieces()) {
      const char* p = piece.owner == nullptr ? response.own().data() + piece.begin : piece.shared;
      const char* const end = p + piece.bytes;
      if (&piece == response.pieces().data()) {
        if (*p++ != (v1::ObserveResponse::kBatchFieldNumber << 3 | 2)) return 0;
        while (*p++ & 0x80) {
        }
      }
      for (; p < end; ++events) {
        p += 2 + static_cast<unsigned char>(p[1]);
      }
    }
    return events;
  }

  ipc::Descriptor end_;
  v1::Child child_;
  std::unique_ptr<Observation> observation_;
  Response response_;
};

TEST_F(AllocationTest, MessagesThatComeTogetherCostNoMemoryEach) {
  const double each = Allocations(/*writes=*/200, /*messages=*/200);
  RecordProperty("allocations", std::to_string(each));
  EXPECT_LT(each, 0.1);
}

TEST_F(AllocationTest, AMessageThatComesAlone) {
  const double each = Allocations(/*writes=*/20'000, /*messages=*/1);
  RecordProperty("allocations", std::to_string(each));
  EXPECT_LT(each, 3.1);  // a block, its index, its bytes
}

TEST_F(AllocationTest, AMessageToAChild) {
  constexpr int kSends = 100, kTurns = 100;
  v1::SendMessageRequest request = Message(child_, R"({"value":"0123456789abcdef"})");
  int answers = 0;
  const auto run = [&] {
    for (int turn = 0; turn < kTurns; ++turn) {
      for (int i = 0; i < kSends; ++i) {
        agent_->SendMessage(request, kCaller, {},
                            [&answers](absl::StatusOr<v1::SendMessageResponse> answer) {
                              EXPECT_TRUE(answer.ok()) << answer.status();
                              ++answers;
                            });
      }
      EXPECT_TRUE(ipc::RunUntil(loop_, [&] { return answers % kSends == 0 && answers > 0; }));
      char bytes[1 << 14];
      while (recv(end_.get(), bytes, sizeof(bytes), MSG_DONTWAIT) > 0) {
      }
      answers = 0;
    }
  };
  run();
  const size_t before = allocations;
  run();
  const double each = static_cast<double>(allocations - before) / kSends / kTurns;
  RecordProperty("allocations", std::to_string(each));
  EXPECT_LT(each, 20);  // the request and its parts, the message, its event, the answer
}

}  // namespace
}  // namespace deka::agent
