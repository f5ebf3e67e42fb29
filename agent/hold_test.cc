// An observer that must not lose anything holds back the children it observes, for a while.
#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "agent/agent_testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ipc/error.h"

namespace deka::agent {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;
using Next = Observation::Next;

class HoldTest : public AgentTest {
 protected:
  HoldTest() {
    Create({.message_bytes_max = 4 << 10,
            .queue_bytes_max = 64 << 10,
            .log_bytes_max = 256 << 10,
            .log_events_max = 1000});
  }

  static constexpr int kCount = 20'000;

  // Writes the numbers from 1 to kCount as fast as it can: to its channel, or to its output.
  v1::Child ForkFlood(std::string_view descriptor = "3", std::string_view then = "") {
    v1::ChildSpec spec = Script("read -r go <&3; seq 1 " + std::to_string(kCount) + " >&" +
                                std::string(descriptor) + "; " + std::string(then));
    spec.set_dialect(v1::DIALECT_NODE);
    const auto response = Fork(std::move(spec));
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() ? response->child() : v1::Child();
  }

  void Go(const v1::Child& child) {
    const auto sent = Send(Message(child, "1"));
    EXPECT_TRUE(sent.ok()) << sent.status();
  }

  std::unique_ptr<Observation> Lossless(const v1::Child& child,
                                        std::chrono::milliseconds hold_max = {}) {
    v1::ObserveRequest request;
    request.mutable_filter()->add_children(child.name());
    v1::Observation& observation = *request.mutable_observation();
    observation.mutable_start()->set_earliest(true);
    observation.set_until_closed(true);
    observation.set_when_slow(v1::SLOW_POLICY_BLOCK);
    if (hold_max.count() > 0) {
      observation.mutable_hold_max()->set_seconds(hold_max.count() / 1000);
      observation.mutable_hold_max()->set_nanos(
          static_cast<int32_t>(hold_max.count() % 1000 * 1'000'000));
    }
    auto result = Observe(std::move(request));
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : nullptr;
  }

  // Until sends are refused because the child is held back.
  void WaitUntilHeld(const v1::Child& child) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    // It may not read what it is sent.
    v1::SendMessageRequest message = Message(child, "2");
    message.set_answer_when(v1::SEND_OUTCOME_ACCEPTED);
    for (;;) {
      const absl::Status refused = Send(message).status();
      if (ipc::ReasonOf(refused) == ipc::Reason::kHeldByObserver) return;
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << refused;
    }
  }

  Shown ReadToEnd(Observation& observation) {
    Shown shown;
    EXPECT_TRUE(ipc::RunUntil(loop_, [&] {
      EXPECT_TRUE(List().ok());  // a turn of the loop: nothing else might wake it
      return TakeAll(observation, shown) == Next::kEnd;
    }));
    EXPECT_EQ(shown.fin.reason(), v1::Fin::REASON_CLOSED);
    return shown;
  }

  // All numbers are there, in order.
  static void ExpectAllNumbers(const Shown& shown) {
    EXPECT_THAT(shown.gaps, IsEmpty());
    int next = 1;
    for (const v1::Event& event : shown.events) {
      if (event.has_from_child()) {
        EXPECT_EQ(event.json(), std::to_string(next++));
      } else if (event.has_output()) {
        EXPECT_EQ(event.text(), std::to_string(next++));
      }
    }
    EXPECT_EQ(next, kCount + 1);
    EXPECT_TRUE(shown.events.back().has_closed());
  }
};

TEST_F(HoldTest, NothingIsLostAndOthersAreNotHeld) {
  const v1::Child held = ForkFlood(), other = ForkFlood();
  const auto observation = Lossless(held);
  Go(held);
  WaitUntilHeld(held);
  // The other one runs to its end.
  Go(other);
  const Shown others = WholeStory({other});
  EXPECT_TRUE(others.events.back().has_closed());
  const auto now = Get(held.name());
  ASSERT_TRUE(now.ok());
  EXPECT_EQ(now->state(), v1::Child::STATE_CONNECTED);
  EXPECT_LE(now->last_child_sequence(), 1000);
  ExpectAllNumbers(ReadToEnd(*observation));
}

TEST_F(HoldTest, OutputIsHeldToo) {
  const v1::Child child = ForkFlood("1");
  const auto observation = Lossless(child);
  Go(child);
  WaitUntilHeld(child);
  ExpectAllNumbers(ReadToEnd(*observation));
}

TEST_F(HoldTest, ExitedWaits) {
  // It has written everything and gone while most of it is not read: 1,500 numbers fit into the
  // log and the socket.
  v1::ChildSpec spec = Script("read -r go <&3; seq 1 1500 >&3; exit 7");
  spec.set_dialect(v1::DIALECT_NODE);
  const auto child = Fork(std::move(spec));
  ASSERT_TRUE(child.ok()) << child.status();
  const auto observation = Lossless(child->child());
  Go(child->child());
  WaitUntilHeld(child->child());
  const Shown shown = ReadToEnd(*observation);
  EXPECT_THAT(shown.gaps, IsEmpty());
  int messages = 0;
  for (const v1::Event& event : shown.events) {
    messages += event.has_from_child();
    if (!event.has_exited()) continue;
    EXPECT_EQ(messages, 1500);
    EXPECT_EQ(event.exited().status().code(), 7);
    EXPECT_FALSE(event.exited().status().still_held());
  }
}

TEST_F(HoldTest, AHoldEndsInTimeWithAGapThatSaysSo) {
  const v1::Child child = ForkFlood();
  const auto observation = Lossless(child, std::chrono::milliseconds(100));
  Go(child);
  const auto closed = WaitFor(child, v1::Child::STATE_CLOSED);
  ASSERT_TRUE(closed.ok()) << closed.status();
  const Shown shown = ReadToEnd(*observation);
  ASSERT_THAT(shown.gaps, SizeIs(1));
  EXPECT_EQ(shown.gaps[0].reason(), v1::Gap::REASON_BLOCK_TIMEOUT);
  EXPECT_EQ(shown.gaps[0].from_child_sequence(), 1);
  EXPECT_EQ(shown.events.front().child_sequence(), shown.gaps[0].to_child_sequence() + 1);
  EXPECT_TRUE(shown.events.back().has_closed());
}

// Sends alone fill a log, too.
TEST_F(HoldTest, AChildThatOnlyReadsIsHeldNoLonger) {
  v1::ChildSpec spec = Script("cat <&3 >/dev/null");
  spec.set_dialect(v1::DIALECT_NODE);
  const auto child = Fork(std::move(spec));
  ASSERT_TRUE(child.ok()) << child.status();
  const auto observation = Lossless(child->child(), std::chrono::milliseconds(200));
  int held = 0, written = 0;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (held == 0 || written < 1000) {
    const absl::Status refused = Send(Message(child->child(), "1")).status();
    if (refused.ok()) {
      ++written;
    } else {
      ExpectReason(refused, ipc::Reason::kHeldByObserver);
      ++held;
    }
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << written << " " << held;
  }
  ASSERT_TRUE(Disconnect(child->child()).ok());
  ASSERT_TRUE(WaitFor(child->child(), v1::Child::STATE_CLOSED).ok());
  const Shown shown = ReadToEnd(*observation);
  ASSERT_THAT(shown.gaps, SizeIs(1));
  EXPECT_EQ(shown.gaps[0].reason(), v1::Gap::REASON_BLOCK_TIMEOUT);
}

TEST_F(HoldTest, AnObserverThatGoesHoldsNobody) {
  const v1::Child child = ForkFlood();
  auto observation = Lossless(child);
  Go(child);
  WaitUntilHeld(child);
  observation.reset();
  EXPECT_TRUE(WaitFor(child, v1::Child::STATE_CLOSED).ok());
}

// What was accepted before is written, and recorded in room that was kept for it.
TEST_F(HoldTest, WhatWasAcceptedIsKept) {
  v1::ChildSpec spec = Script("read -r go <&3; seq 1 5000 >&3; cat <&3 >/dev/null");
  spec.set_dialect(v1::DIALECT_NODE);
  const auto child = Fork(std::move(spec));
  ASSERT_TRUE(child.ok()) << child.status();
  const auto observation = Lossless(child->child());
  int written = 0, refused = 0, answers = 0;
  constexpr int kSends = 600;
  for (int i = 0; i < kSends; ++i) {
    agent_->SendMessage(Message(child->child(), std::to_string(i)), kCaller, {},
                        [&](absl::StatusOr<v1::SendMessageResponse> answer) {
                          ++answers;
                          if (answer.ok()) {
                            ++written;
                          } else {
                            ExpectReason(answer.status(), ipc::Reason::kHeldByObserver);
                            ++refused;
                          }
                        });
  }
  Shown shown;
  ASSERT_TRUE(ipc::RunUntil(loop_, [&] {
    EXPECT_TRUE(List().ok());
    if (answers < kSends) return false;
    TakeAll(*observation, shown);
    return shown.events.size() >= 5001 + static_cast<size_t>(written);
  }));
  EXPECT_THAT(shown.gaps, IsEmpty());
  EXPECT_GT(written, 0);
  int recorded = 0;
  for (const v1::Event& event : shown.events) recorded += event.has_to_child();
  EXPECT_EQ(recorded, written);
}

// Lines may be longer than messages.
TEST_F(HoldTest, LongLinesOfOutputAreKept) {
  v1::ChildSpec spec = Script(
      "read -r go <&3; line=$(head -c 60000 /dev/zero | tr '\\0' x); "
      "for i in $(seq 1 20); do echo $line; done");
  spec.set_dialect(v1::DIALECT_NODE);
  const auto child = Fork(std::move(spec));
  ASSERT_TRUE(child.ok()) << child.status();
  const auto observation = Lossless(child->child());
  Go(child->child());
  WaitUntilHeld(child->child());
  const Shown shown = ReadToEnd(*observation);
  EXPECT_THAT(shown.gaps, IsEmpty());
  int lines = 0;
  for (const v1::Event& event : shown.events) lines += event.text().size() == 60'000;
  EXPECT_EQ(lines, 20);
}

// Whatever is recorded while nobody is held, what follows it waits for who has not read it.
TEST_F(HoldTest, WhatFollowsASignalWaits) {
  v1::ChildSpec spec = Script(
      "line() { head -c $1 /dev/zero | tr '\\0' x; echo; }; "
      "trap 'line 60000' USR1; trap 'line 65536' USR2; echo ready; while :; do read -r x <&3; "
      "done");
  spec.set_dialect(v1::DIALECT_NODE);
  spec.mutable_limits()->set_log_bytes_max(68 << 10);
  const auto forked = Fork(std::move(spec));
  ASSERT_TRUE(forked.ok()) << forked.status();
  const v1::Child& child = forked->child();
  const auto observation = Lossless(child, std::chrono::milliseconds(8000));
  Shown shown;
  const auto until_shown = [&](std::string_view line_begin, size_t bytes) {
    return ipc::RunUntil(loop_, [&] {
      EXPECT_TRUE(List().ok());
      TakeAll(*observation, shown);
      return !shown.events.empty() && shown.events.back().text().size() == bytes &&
             shown.events.back().text().starts_with(line_begin);
    });
  };
  ASSERT_TRUE(until_shown("ready", 5));
  ASSERT_TRUE(Signal(child, SIGUSR1).ok());
  ASSERT_TRUE(until_shown("x", 60'000));
  ASSERT_TRUE(Signal(child, SIGUSR2).ok());
  // The line that follows has no room beside the signal.
  ipc::RunFor(loop_, std::chrono::milliseconds(200));
  ASSERT_TRUE(until_shown("x", 65'536));
  EXPECT_THAT(shown.gaps, IsEmpty());
  int signals = 0;
  for (const v1::Event& event : shown.events) signals += event.has_signalled();
  EXPECT_EQ(signals, 2);
}

// A queue takes no more than the log can hold, however much the observer has read.
TEST_F(HoldTest, WhatIsQueuedIsKept) {
  v1::ChildSpec spec = Script("kill -STOP $$; cat <&3 >/dev/null");
  spec.set_dialect(v1::DIALECT_NODE);
  spec.mutable_limits()->set_log_bytes_max(68 << 10);
  const auto forked = Fork(std::move(spec));
  ASSERT_TRUE(forked.ok()) << forked.status();
  const v1::Child& child = forked->child();
  const auto is_stopped = [&] {
    std::ifstream stat("/proc/" + std::to_string(child.pid()) + "/stat");
    std::string pid, name, state;
    return stat >> pid >> name >> state && state == "T";
  };
  ASSERT_TRUE(ipc::RunUntil(loop_, [&] { return Get(child.name()).ok() && is_stopped(); }));
  const auto observation = Lossless(child);
  Shown shown;
  const std::string json = '"' + std::string(400, 'x') + '"';
  int accepted = 0;
  ASSERT_TRUE(ipc::RunUntil(loop_, [&] {
    TakeAll(*observation, shown);
    v1::SendMessageRequest message = Message(child, json);
    message.set_answer_when(v1::SEND_OUTCOME_ACCEPTED);
    const absl::Status refused = Send(message).status();
    accepted += refused.ok();
    return ipc::ReasonOf(refused) == ipc::Reason::kQueueFull;
  }));
  const auto queued_messages = [&] {
    const auto now = Get(child.name());
    return now.ok() ? now->queued_messages() : -1;
  };
  EXPECT_GT(queued_messages(), 0);
  // All of it is written while nobody reads.
  ASSERT_TRUE(Signal(child, SIGCONT).ok());
  ASSERT_TRUE(ipc::RunUntil(loop_, [&] { return queued_messages() == 0; }));
  TakeAll(*observation, shown);
  EXPECT_THAT(shown.gaps, IsEmpty());
  int recorded = 0;
  for (const v1::Event& event : shown.events) recorded += event.has_to_child();
  EXPECT_EQ(recorded, accepted);
}

TEST_F(HoldTest, AStopEndsEveryHold) {
  const v1::Child child = ForkFlood("3", "read -r end <&3");
  const auto observation = Lossless(child, std::chrono::milliseconds(8000));
  Go(child);
  WaitUntilHeld(child);
  const auto begin = std::chrono::steady_clock::now();
  Stop();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(7000));
}

// A parent in the same process that listens is nobody's to hold up.
TEST_F(HoldTest, AListenerInTheSameProcessIsNeverHeld) {
  struct Listener final : Child::Listener {
    void OnMessage(Child&, std::string_view) override { ++messages; }
    void OnClose(Child&) override { closed = true; }
    int messages = 0;
    bool closed = false;
  } listener;
  ipc::ForkOptions options;
  options.program = "/bin/sh";
  options.args = {"-c", "seq 1 20000 >&3"};
  options.dialect = ipc::Dialect::kNode;
  options.channel.message_bytes_max = 4 << 10;
  const auto child = agent_->Fork(std::move(options), {}, &listener);
  ASSERT_TRUE(child.ok()) << child.status();
  const auto observation = Lossless(*Get((*child)->name()));
  EXPECT_TRUE(ipc::RunUntil(loop_, [&] { return listener.closed; }));
  EXPECT_EQ(listener.messages, 20'000);
  const Shown shown = ReadToEnd(*observation);
  ASSERT_THAT(shown.gaps, SizeIs(1));
  EXPECT_EQ(shown.gaps[0].reason(), v1::Gap::REASON_LOG_TURNED_OVER);
}

}  // namespace
}  // namespace deka::agent
