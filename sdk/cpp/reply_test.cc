#include "sdk/cpp/reply.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>

#include "sdk/cpp/error.h"

namespace deka {
namespace {

using std::chrono::seconds;
using testing::EndsWith;
using Clock = Reply::Clock;

v1::Event Message(int64_t sequence, const std::string& json) {
  v1::Event event;
  event.set_sequence(sequence);
  event.mutable_from_child();
  event.set_json(json);
  return event;
}

v1::Event Disconnected(int64_t sequence, v1::Disconnected::By by = v1::Disconnected::BY_CHILD) {
  v1::Event event;
  event.set_sequence(sequence);
  event.mutable_disconnected()->set_by(by);
  event.mutable_disconnected()->mutable_sender()->set_client("dekactl/7");
  event.mutable_disconnected()->set_message("the reason");
  return event;
}

v1::Gap Gap(int64_t to_sequence) {
  v1::Gap gap;
  gap.set_to_sequence(to_sequence);
  return gap;
}

class ReplyTest : public testing::Test {
 protected:
  // What is there at once: the reply's JSON, the reason of an error, "" if nothing is.
  std::string Now() { return Word(reply_.Await(Clock::now())); }

  static std::string Word(const std::optional<absl::StatusOr<v1::Event>>& result) {
    if (!result.has_value()) {
      return "";
    }
    return result->ok() ? (*result)->json() : ErrorReason(result->status());
  }

  Reply reply_;
  const Observer observer_ = reply_.Observer(Clock::time_point::max());
};

TEST_F(ReplyTest, IsTheFirstBehindTheMessage) {
  reply_.Sent(7);
  observer_.on_event(Message(5, "5"));
  observer_.on_event(Message(7, "7"));
  EXPECT_EQ(Now(), "");
  observer_.on_event(Message(9, "9"));
  observer_.on_event(Message(10, "10"));
  observer_.on_event(Disconnected(11));
  EXPECT_EQ(Now(), "9");
}

TEST_F(ReplyTest, IsTakenThoughItIsToldBeforeTheSendIsAnswered) {
  std::thread observation([this] {
    observer_.on_event(Message(5, "5"));
    observer_.on_event(Message(8, "8"));
  });
  EXPECT_EQ(Now(), "");
  reply_.Sent(7);
  EXPECT_EQ(Word(reply_.Await(Clock::time_point::max())), "8");
  observation.join();
}

TEST_F(ReplyTest, NodesOwnMessagesAreNone) {
  reply_.Sent(1);
  v1::Event event = Message(2, R"({"cmd":"NODE_CLUSTER"})");
  event.mutable_from_child()->set_internal(true);
  observer_.on_event(event);
  EXPECT_EQ(Now(), "");
}

TEST_F(ReplyTest, ThereIsNoneOnceTheChannelHasEnded) {
  const struct {
    v1::Disconnected::By by;
    std::string says;
  } cases[] = {
      {v1::Disconnected::BY_CHILD, "the child has closed its channel, or has ended"},
      {v1::Disconnected::BY_CALLER, "dekactl/7 has disconnected the child"},
      {v1::Disconnected::BY_AGENT, "the agent is stopping"},
      {v1::Disconnected::BY_FAILURE, "the child's channel has failed: the reason"},
  };
  for (const auto& [by, says] : cases) {
    Reply reply;
    reply.Sent(7);
    reply.Observer(Clock::time_point::max()).on_event(Disconnected(8, by));
    const auto result = reply.Await(Clock::now());
    ASSERT_TRUE(result.has_value());
    EXPECT_EQ(result->status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ErrorReason(result->status()), "NO_REPLY_CHANNEL_CLOSED");
    EXPECT_THAT(std::string(result->status().message()), EndsWith("no reply came: " + says));
  }
}

TEST_F(ReplyTest, AGapBehindTheMessageMayHoldIt) {
  reply_.Sent(7);
  observer_.on_gap(Gap(7));
  EXPECT_EQ(Now(), "");
  observer_.on_gap(Gap(8));
  observer_.on_event(Message(9, "9"));
  EXPECT_EQ(Now(), "OUTCOME_UNKNOWN");
}

TEST_F(ReplyTest, AnInexactGapMayHoldIt) {
  reply_.Sent(7);
  v1::Gap gap = Gap(3);
  gap.set_inexact(true);
  observer_.on_gap(gap);
  EXPECT_EQ(Now(), "OUTCOME_UNKNOWN");
}

TEST_F(ReplyTest, TheEndOfTheObservationSaysWhy) {
  reply_.Sent(7);
  observer_.on_end(absl::NotFoundError("there is no such child"), v1::Fin());
  const auto result = reply_.Await(Clock::now());
  EXPECT_EQ(Word(result), "OUTCOME_UNKNOWN");
  EXPECT_THAT(std::string(result->status().message()), EndsWith("there is no such child"));
}

TEST_F(ReplyTest, AnEndBeforeTheSendIsAnsweredIsNotForgotten) {
  observer_.on_end(absl::OkStatus(), v1::Fin());
  reply_.Sent(7);
  EXPECT_EQ(Now(), "OUTCOME_UNKNOWN");
}

TEST_F(ReplyTest, ComesNotAfterTheDeadline) {
  reply_.Sent(7);
  EXPECT_FALSE(reply_.Await(Clock::now()).has_value());
  EXPECT_FALSE(reply_.Await(Clock::now() - seconds(1)).has_value());
}

TEST_F(ReplyTest, NobodyStandsStillBeyondTheDeadline) {
  const Observer observer = reply_.Observer(Clock::now() - seconds(1));
  observer.on_event(Message(8, "8"));
  observer.on_gap(Gap(9));
  EXPECT_EQ(Now(), "");
}

TEST_F(ReplyTest, WhoIsNotWaitedForGoesOn) {
  std::thread event([this] { observer_.on_event(Message(8, "8")); });
  std::thread gap([this] { observer_.on_gap(Gap(9)); });
  reply_.Abandon();
  event.join();
  gap.join();
  EXPECT_EQ(Now(), "");
}

}  // namespace
}  // namespace deka
