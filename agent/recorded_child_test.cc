#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "agent/agent_testing.h"
#include "ipc/descriptor.h"
#include "ipc/error.h"

namespace deka::agent {
namespace {

using ipc::Reason;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

const Caller kOther = {.principal = "uid:8", .client = "test/2"};

// A call of SendMessage that is under way.
struct Sending {
  std::optional<absl::StatusOr<v1::SendMessageResponse>> answer;
  bool accepted = false;
  std::shared_ptr<Cancellation> cancellation;

  bool written() const {
    return answer && answer->ok() && (*answer)->outcome() == v1::SEND_OUTCOME_WRITTEN;
  }
  absl::Status status() const { return answer ? answer->status() : absl::UnknownError("waits"); }
};

// A child that the test plays: it holds the other end of the channel, in dialect node.
struct Played {
  Child* child = nullptr;  // valid until it has closed
  v1::Child seen;
  ipc::Descriptor end;
  std::string received;
};

class RecordedChildTest : public AgentTest {
 protected:
  // Small enough that a few kilobytes fill the channel's socket.
  static constexpr int kSocketBytes = 4096;
  static constexpr Limits kSmall = {
      .message_bytes_max = 64 << 10, .queue_bytes_max = 128 << 10, .log_bytes_max = 1 << 20};

  Played Play(Child::Listener* listener = nullptr) {
    Played played;
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    EXPECT_EQ(setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &kSocketBytes, sizeof(kSocketBytes)), 0);
    played.end = ipc::Descriptor(ends[1]);
    const auto child = agent_->Adopt(ends[0], /*pid=*/0, ipc::Dialect::kNode, {}, listener);
    EXPECT_TRUE(child.ok()) << child.status();
    if (!child.ok()) return played;
    played.child = *child;
    played.seen = *Get((*child)->name());
    return played;
  }

  std::shared_ptr<Sending> Begin(v1::SendMessageRequest request, bool wait_for_room = false,
                                 const Caller& caller = kCaller) {
    auto sending = std::make_shared<Sending>();
    sending->cancellation = agent_->SendMessage(
        std::move(request), caller,
        {.wait_for_room = wait_for_room, .on_accepted = [sending] { sending->accepted = true; }},
        [sending](absl::StatusOr<v1::SendMessageResponse> answer) {
          EXPECT_FALSE(sending->answer.has_value());
          sending->answer = std::move(answer);
        });
    return sending;
  }

  // All requests made before it are under way.
  void Settle() { ASSERT_TRUE(List().ok()); }

  // A message of `bytes` bytes that begins with `digit`.
  static std::string Json(char digit, size_t bytes) { return std::string(bytes, digit); }

  // Reads until the child has received `count` messages; keeps what comes after them.
  std::vector<std::string> Receive(Played& played, size_t count) {
    std::vector<std::string> messages;
    EXPECT_TRUE(ipc::RunUntil(loop_, [&] {
      EXPECT_TRUE(List().ok());  // a turn of the loop: nothing else might wake it
      char bytes[4096];
      const ssize_t size = recv(played.end.get(), bytes, sizeof(bytes), MSG_DONTWAIT);
      if (size > 0) played.received.append(bytes, static_cast<size_t>(size));
      for (size_t end;
           messages.size() < count && (end = played.received.find('\n')) != std::string::npos;) {
        messages.push_back(played.received.substr(0, end));
        played.received.erase(0, end + 1);
      }
      return messages.size() == count;
    }));
    return messages;
  }

  // Something is in the child's socket.
  bool WaitForByte(const Played& played) {
    return ipc::RunUntil(loop_, [&] {
      EXPECT_TRUE(List().ok());
      char byte;
      return recv(played.end.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 1;
    });
  }

  bool Await(const std::shared_ptr<Sending>& sending) {
    return ipc::RunUntil(loop_, [&] { return sending->answer.has_value(); });
  }
};

TEST_F(RecordedChildTest, OutputIsRecordedLineByLine) {
  const v1::Child child = ForkScript(
      "printf 'one\\n\\nno UTF-8: \\377\\n'; head -c 65537 /dev/zero | tr '\\0' x; printf "
      "'\\nlast'; "
      "exec >&-; echo err >&2");
  const Shown shown = WholeStory({child});
  std::vector<v1::Event> out;
  for (const v1::Event& event : shown.events) {
    if (!event.has_output()) continue;
    if (event.output().stream() == v1::Output::STREAM_STDERR) {
      EXPECT_EQ(event.text(), "err");
    } else {
      out.push_back(event);
    }
  }
  ASSERT_EQ(out.size(), 6u);
  EXPECT_EQ(out[0].text(), "one");
  EXPECT_EQ(out[1].payload_case(), v1::Event::kText);
  EXPECT_EQ(out[1].text(), "");
  EXPECT_EQ(out[2].raw(), "no UTF-8: \377");
  EXPECT_EQ(out[2].output().size_bytes(), 11);
  EXPECT_EQ(out[3].text(), std::string(65536, 'x'));
  EXPECT_TRUE(out[3].output().partial());
  EXPECT_EQ(out[4].text(), "x");
  EXPECT_FALSE(out[4].output().partial());
  EXPECT_EQ(out[5].text(), "last");
  EXPECT_TRUE(out[5].output().unterminated());
}

TEST_F(RecordedChildTest, AFrameThatIsNoMessageIsRecordedAndTheNextOneIsRead) {
  const v1::Child child = ForkScript(
      "printf '%s\\n' '{' '[1]' >&3; head -c 1100000 /dev/zero | tr '\\0' 1 >&3; echo >&3; " +
      Say("7") + "printf '{\"cmd\"' >&3");
  const Shown shown = WholeStory({child});
  std::vector<v1::Event> told;
  for (const v1::Event& event : shown.events) {
    if (event.has_error() || event.has_from_child()) told.push_back(event);
  }
  ASSERT_EQ(told.size(), 5u);
  EXPECT_EQ(told[0].error().reason(), "INVALID_JSON");
  EXPECT_EQ(told[0].raw(), "{");
  EXPECT_EQ(told[1].error().reason(), "ENVELOPE_MISSING");
  EXPECT_EQ(told[1].raw(), "[1]");
  EXPECT_EQ(told[1].error().size_bytes(), 3);
  EXPECT_EQ(told[2].error().reason(), "MESSAGE_TOO_LARGE");
  EXPECT_EQ(told[2].error().size_bytes(), 1100000);
  EXPECT_EQ(told[2].raw(), std::string(64, '1'));
  EXPECT_EQ(told[3].json(), "7");
  EXPECT_EQ(told[4].error().reason(), "FRAME_TRUNCATED");
}

TEST_F(RecordedChildTest, NodesOwnMessagesAreMarked) {
  class Parent : public Child::Listener {
   public:
    void OnMessage(Child&, std::string_view json) override { messages.emplace_back(json); }
    std::vector<std::string> messages;
  } parent;
  Played played = Play(&parent);
  const std::string_view lines = "{\"cmd\":\"NODE_CLUSTER\"}\n1\n";
  ASSERT_EQ(write(played.end.get(), lines.data(), lines.size()),
            static_cast<ssize_t>(lines.size()));
  played.end.Close();
  const Shown shown = WholeStory({played.seen});
  ASSERT_EQ(shown.events.size(), 5u);
  EXPECT_TRUE(shown.events[1].from_child().internal());
  EXPECT_FALSE(shown.events[2].from_child().internal());
  EXPECT_EQ(shown.events[3].disconnected().by(), v1::Disconnected::BY_CHILD);
  EXPECT_THAT(parent.messages, ElementsAre("1"));
}

TEST_F(RecordedChildTest, AGrandchildThatHoldsTheChannelGoesOnWithTheConversation) {
  const v1::Child child = ForkScript(
      "(read -r line <&3; printf '%s\\n' \"$line\" >&3; echo late) & echo early; exit 4");
  ASSERT_TRUE(WaitFor(child, v1::Child::STATE_EXITED).ok());
  EXPECT_TRUE(Get(child.name())->exit_status().still_held());
  ASSERT_TRUE(Send(Message(child, "1")).ok());
  ExpectReason(Signal(child, SIGTERM).status(), Reason::kChildExited);
  const Shown shown = WholeStory({child});
  ExpectReason(Send(Message(child, "1")).status(), Reason::kChildExited);
  const auto place = [&](auto is) {
    return std::find_if(shown.events.begin(), shown.events.end(), is) - shown.events.begin();
  };
  const auto exited = place([](const v1::Event& event) { return event.has_exited(); });
  const auto question = place([](const v1::Event& event) { return event.has_to_child(); });
  const auto answer = place([](const v1::Event& event) { return event.has_from_child(); });
  const auto late = place([](const v1::Event& event) { return event.text() == "late"; });
  const auto disconnected = place([](const v1::Event& event) { return event.has_disconnected(); });
  const auto closed = place([](const v1::Event& event) { return event.has_closed(); });
  EXPECT_LT(exited, question);
  EXPECT_LT(question, answer);
  EXPECT_LT(answer, disconnected);
  EXPECT_LT(exited, late);
  EXPECT_EQ(closed + 1, static_cast<ptrdiff_t>(shown.events.size()));
  EXPECT_LT(disconnected, closed);
  EXPECT_LT(late, closed);
  EXPECT_EQ(shown.events[static_cast<size_t>(exited)].exited().status().code(), 4);
}

TEST_F(RecordedChildTest, SendersAreToldApart) {
  Played played = Play();
  const auto first = Begin(Message(played.seen, "1", "same id"));
  const auto second = Begin(Message(played.seen, "2", "same id"), false, kOther);
  ASSERT_TRUE(Await(second));
  EXPECT_TRUE(first->written() && second->written());
  ASSERT_TRUE(played.child->Send("3").ok());
  EXPECT_THAT(Receive(played, 3), ElementsAre("1", "2", "3"));
  played.end.Close();
  const Shown shown = WholeStory({played.seen});
  ASSERT_EQ(shown.events.size(), 6u);
  EXPECT_EQ(shown.events[1].to_child().sender().principal(), "uid:7");
  EXPECT_EQ(shown.events[1].to_child().request_id(), "same id");
  EXPECT_EQ(shown.events[2].to_child().sender().principal(), "uid:8");
  EXPECT_EQ(shown.events[2].to_child().sender().client(), "test/2");
  EXPECT_EQ(shown.events[3].to_child().sender().principal(), "agent");
  EXPECT_EQ(shown.events[3].to_child().request_id(), "");
}

TEST_F(RecordedChildTest, ARepeatWaitsForTheFirst) {
  Create(kSmall);
  Played played = Play();
  const auto first = Begin(Message(played.seen, Json('1', 60'000), "id"));
  const auto again = Begin(Message(played.seen, Json('1', 60'000), "id"));
  v1::SendMessageRequest hasty = Message(played.seen, Json('1', 60'000), "id");
  hasty.set_answer_when(v1::SEND_OUTCOME_ACCEPTED);
  const auto accepted = Send(hasty);
  ASSERT_TRUE(accepted.ok());
  EXPECT_EQ(accepted->outcome(), v1::SEND_OUTCOME_ACCEPTED);
  EXPECT_FALSE(first->answer || again->answer);
  ExpectReason(Send(Message(played.seen, "2", "id")).status(), Reason::kRequestIdReused);
  EXPECT_THAT(Receive(played, 1), ElementsAre(Json('1', 60'000)));
  ASSERT_TRUE(Await(first) && Await(again));
  EXPECT_TRUE(first->written() && again->written());
  EXPECT_EQ((*first->answer)->sequence(), (*again->answer)->sequence());
  EXPECT_TRUE(played.received.empty());
}

TEST_F(RecordedChildTest, WhatIsRepeatedIsForgottenBeyondItsNumber) {
  Create({.send_request_ids_max = 1});
  Played played = Play();
  ASSERT_TRUE(Send(Message(played.seen, "1", "a")).ok());
  v1::SendMessageRequest repeat = Message(played.seen, "1", "a");
  repeat.set_repeat(true);
  EXPECT_TRUE(Send(repeat).ok());
  ASSERT_TRUE(Send(Message(played.seen, "2", "b")).ok());
  ExpectReason(Send(repeat).status(), Reason::kOutcomeUnknown);
  EXPECT_THAT(Receive(played, 2), ElementsAre("1", "2"));
  EXPECT_TRUE(played.received.empty());
}

TEST_F(RecordedChildTest, WhatIsRepeatedIsForgottenInTime) {
  Create({.request_id_kept_ms_max = std::chrono::milliseconds(1)});
  Played played = Play();
  v1::SendMessageRequest repeat = Message(played.seen, "1", "a");
  ASSERT_TRUE(Send(repeat).ok());
  repeat.set_repeat(true);
  ASSERT_TRUE(ipc::RunUntil(loop_, [&] { return !Send(repeat).ok(); }));
  ExpectReason(Send(repeat).status(), Reason::kOutcomeUnknown);
}

TEST_F(RecordedChildTest, ARefusalIsNotRemembered) {
  Played played = Play();
  ExpectReason(Send(Message(played.seen, "{", "id")).status(), Reason::kInvalidJson);
  EXPECT_TRUE(Send(Message(played.seen, "1", "id")).ok());
}

TEST_F(RecordedChildTest, AMessageThatHasBegunIsFinishedThoughItsCallerGaveUp) {
  Create(kSmall);
  Played played = Play();
  const auto begun = Begin(Message(played.seen, Json('1', 60'000)));
  const auto queued = Begin(Message(played.seen, "2", "id"));
  ASSERT_TRUE(WaitForByte(played));
  const absl::Status reason = ipc::MakeError(Reason::kNotSentDeadline, "too late");
  begun->cancellation->Cancel(reason);
  queued->cancellation->Cancel(reason);
  ASSERT_TRUE(Await(begun) && Await(queued));
  ExpectReason(begun->status(), Reason::kOutcomeUnknown);
  ExpectReason(queued->status(), Reason::kNotSentDeadline);
  // It was not sent, so its id is free.
  const auto again = Begin(Message(played.seen, "3", "id"));
  EXPECT_THAT(Receive(played, 2), ElementsAre(Json('1', 60'000), "3"));
  ASSERT_TRUE(Await(again));
  played.end.Close();
  EXPECT_THAT(Kinds(WholeStory({played.seen})),
              ElementsAre(v1::Event::kStarted, v1::Event::kToChild, v1::Event::kToChild,
                          v1::Event::kDisconnected, v1::Event::kClosed));
}

TEST_F(RecordedChildTest, AMessageThatAnotherCountsOnIsNotTakenBack) {
  Create(kSmall);
  Played played = Play();
  Begin(Message(played.seen, Json('1', 60'000)));
  const auto first = Begin(Message(played.seen, "2", "id"));
  const auto again = Begin(Message(played.seen, "2", "id"));
  Settle();
  const absl::Status reason = ipc::MakeError(Reason::kNotSentCancelled, "not any more");
  first->cancellation->Cancel(reason);
  ASSERT_TRUE(Await(first));
  ExpectReason(first->status(), Reason::kOutcomeUnknown);
  first->cancellation->Cancel(reason);  // changes nothing
  again->cancellation->Cancel(reason);
  ASSERT_TRUE(Await(again));
  ExpectReason(again->status(), Reason::kNotSentCancelled);
}

TEST_F(RecordedChildTest, WaitingForRoomKeepsTheOrder) {
  Create(kSmall);
  Played played = Play();
  std::vector<std::shared_ptr<Sending>> sendings;
  for (char digit = '1'; digit <= '8'; ++digit) {
    sendings.push_back(Begin(Message(played.seen, Json(digit, 50'000)), /*wait_for_room=*/true));
  }
  Settle();
  EXPECT_TRUE(sendings.front()->accepted);
  EXPECT_FALSE(sendings.back()->accepted);
  // What would fit does not overtake what waits.
  ExpectReason(Send(Message(played.seen, "9")).status(), Reason::kQueueFull);
  // One that waits is taken back.
  sendings[6]->cancellation->Cancel(ipc::MakeError(Reason::kNotSentCancelled, "not any more"));
  // One that cannot be sent fails when its turn comes.
  const auto bad = Begin(Message(played.seen, "{"), /*wait_for_room=*/true);
  std::string digits;
  for (const std::string& message : Receive(played, 7)) digits += message[0];
  EXPECT_EQ(digits, "1234568");
  ASSERT_TRUE(Await(sendings.back()) && Await(bad));
  ExpectReason(sendings[6]->status(), Reason::kNotSentCancelled);
  EXPECT_FALSE(sendings[6]->accepted);
  ExpectReason(bad->status(), Reason::kInvalidJson);
  EXPECT_FALSE(bad->accepted);
  sendings.erase(sendings.begin() + 6);
  for (const auto& sending : sendings) EXPECT_TRUE(sending->accepted && sending->written());
}

TEST_F(RecordedChildTest, WhatWaitsForRoomIsRefusedWhenTheChannelEnds) {
  Create(kSmall);
  Played played = Play();
  std::vector<std::shared_ptr<Sending>> sendings;
  for (int i = 0; i < 8; ++i) {
    sendings.push_back(Begin(Message(played.seen, Json('1', 50'000)), /*wait_for_room=*/true));
  }
  ASSERT_TRUE(WaitForByte(played));
  EXPECT_FALSE(sendings.back()->accepted);
  played.end.Close();
  for (const auto& sending : sendings) {
    ASSERT_TRUE(Await(sending));
    // A part of the first one is in the socket.
    ExpectReason(sending->status(),
                 sending == sendings[0] ? Reason::kOutcomeUnknown : Reason::kChannelClosed);
  }
}

TEST_F(RecordedChildTest, MessagesInAQueueAreLimited) {
  Limits limits = kSmall;
  limits.queue_messages_max = 2;
  Create(limits);
  Played played = Play();
  const auto first = Begin(Message(played.seen, Json('1', 60'000)));
  const auto second = Begin(Message(played.seen, "2"));
  ExpectReason(Send(Message(played.seen, "3")).status(), Reason::kQueueFull);
  EXPECT_EQ(Get(played.seen.name())->queued_messages(), 2);
  EXPECT_GT(Get(played.seen.name())->queued_bytes(), 2);
  EXPECT_EQ(Receive(played, 2).back(), "2");
  ASSERT_TRUE(Await(second));
  EXPECT_TRUE(Send(Message(played.seen, "3")).ok());
  EXPECT_EQ(Get(played.seen.name())->queued_messages(), 0);
}

TEST_F(RecordedChildTest, AllQueuesTogetherAreLimited) {
  Limits limits = kSmall;
  limits.queues_bytes_max = limits.queue_bytes_max;
  Create(limits);
  Played full = Play(), other = Play();
  // 60,000 and 60,000 of 131,072 bytes.
  const auto first = Begin(Message(full.seen, Json('1', 60'000)));
  const auto second = Begin(Message(full.seen, Json('2', 60'000)));
  const absl::Status refused = Send(Message(other.seen, Json('3', 30'000))).status();
  ExpectReason(refused, Reason::kQueueFull);
  EXPECT_THAT(refused.message(), HasSubstr("queues_bytes_max"));
  const auto waits = Begin(Message(other.seen, Json('4', 30'000)), /*wait_for_room=*/true);
  Settle();
  EXPECT_FALSE(waits->accepted);
  // Room that one child makes is another's.
  EXPECT_EQ(Receive(full, 2).size(), 2u);
  EXPECT_THAT(Receive(other, 1), ElementsAre(Json('4', 30'000)));
  ASSERT_TRUE(Await(waits));
  EXPECT_TRUE(waits->written());
  // A child that ends gives its room back.
  const auto lost = Begin(Message(full.seen, Json('5', 60'000)));
  const auto lost_too = Begin(Message(full.seen, Json('6', 60'000)));
  const auto waits_again = Begin(Message(other.seen, Json('7', 30'000)), /*wait_for_room=*/true);
  Settle();
  EXPECT_FALSE(waits_again->accepted);
  full.end.Close();
  ASSERT_TRUE(ipc::RunUntil(loop_, [&] { return waits_again->accepted; }));
}

TEST_F(RecordedChildTest, TheRoomOfAllQueuesIsExact) {
  Limits limits = kSmall;
  limits.queues_bytes_max = limits.queue_bytes_max;
  Create(limits);
  Played full = Play(), other = Play();
  // The first fills the socket, so that nothing of the queue moves any more.
  const auto begun = Begin(Message(full.seen, Json('1', 60'000)));
  ASSERT_TRUE(WaitForByte(full));
  const auto queued = Begin(Message(full.seen, Json('1', 30'000)));
  Settle();
  const size_t used = static_cast<size_t>(Get(full.seen.name())->queued_bytes());
  ASSERT_GT(used, 0u);
  // What a dialect may put around a message is set aside.
  const size_t left = limits.queues_bytes_max - used - (4 << 10);
  ASSERT_LE(left, limits.message_bytes_max);
  ExpectReason(Send(Message(other.seen, Json('2', left + 1))).status(), Reason::kQueueFull);
  v1::SendMessageRequest fits = Message(other.seen, Json('2', left));
  fits.set_answer_when(v1::SEND_OUTCOME_ACCEPTED);
  EXPECT_TRUE(Send(fits).ok());
}

TEST_F(RecordedChildTest, DisconnectNowTellsWhatWasNotWritten) {
  Create(kSmall);
  Played played = Play();
  const auto begun = Begin(Message(played.seen, Json('1', 60'000), "one"));
  ASSERT_TRUE(WaitForByte(played));
  v1::SendMessageRequest hasty = Message(played.seen, "22", "two");
  hasty.set_answer_when(v1::SEND_OUTCOME_ACCEPTED);
  ASSERT_TRUE(Send(hasty).ok());
  std::optional<absl::Status> own;
  ASSERT_TRUE(played.child->Send("333", [&](absl::Status status) { own = status; }).ok());
  v1::DisconnectRequest request;
  request.set_child(played.seen.name());
  request.set_mode(v1::DISCONNECT_MODE_NOW);
  std::vector<int64_t> disconnected;
  for (int i = 0; i < 2; ++i) {
    agent_->Disconnect(request, kOther, [&](absl::StatusOr<v1::DisconnectResponse> answer) {
      ASSERT_TRUE(answer.ok()) << answer.status();
      disconnected.push_back(answer->sequence());
    });
  }
  Settle();
  ExpectReason(Send(Message(played.seen, "4")).status(), Reason::kChannelClosed);
  played.end.Close();
  const Shown shown = WholeStory({played.seen});
  EXPECT_THAT(Kinds(shown),
              ElementsAre(v1::Event::kStarted, v1::Event::kUndelivered, v1::Event::kUndelivered,
                          v1::Event::kUndelivered, v1::Event::kDisconnected, v1::Event::kClosed));
  const v1::Undelivered& first = shown.events[1].undelivered();
  EXPECT_EQ(first.request_id(), "one");
  EXPECT_EQ(first.frame_bytes(), 60'001);
  EXPECT_GT(first.written_bytes(), 0);
  EXPECT_LT(first.written_bytes(), 60'001);
  const v1::Undelivered& second = shown.events[2].undelivered();
  EXPECT_EQ(second.request_id(), "two");
  EXPECT_EQ(second.sender().client(), "test/1");
  EXPECT_EQ(second.written_bytes(), 0);
  EXPECT_EQ(second.frame_bytes(), 3);
  EXPECT_EQ(second.reason(), "CHANNEL_CLOSED");
  EXPECT_EQ(shown.events[3].undelivered().sender().principal(), "agent");
  EXPECT_EQ(shown.events[4].disconnected().by(), v1::Disconnected::BY_CALLER);
  EXPECT_EQ(shown.events[4].disconnected().sender().principal(), "uid:8");
  ExpectReason(begun->status(), Reason::kOutcomeUnknown);
  ASSERT_TRUE(own.has_value());
  ExpectReason(*own, Reason::kChannelClosed);
  EXPECT_THAT(disconnected, ElementsAre(shown.events[4].sequence(), shown.events[4].sequence()));
  EXPECT_EQ(Disconnect(played.seen)->sequence(), shown.events[5].sequence());
  // The first answer again, of one that failed.
  ExpectReason(Send(hasty).status(), Reason::kChannelClosed);
}

TEST_F(RecordedChildTest, DisconnectFlushesFirst) {
  Create(kSmall);
  Played played = Play();
  const auto sending = Begin(Message(played.seen, Json('1', 60'000)));
  std::optional<int64_t> disconnected;
  v1::DisconnectRequest request;
  request.set_child(played.seen.name());
  agent_->Disconnect(request, kCaller, [&](absl::StatusOr<v1::DisconnectResponse> answer) {
    if (answer.ok()) disconnected = answer->sequence();
  });
  Settle();
  EXPECT_EQ(Get(played.seen.name())->state(), v1::Child::STATE_DISCONNECTED);
  EXPECT_THAT(Receive(played, 1), ElementsAre(Json('1', 60'000)));
  // What it still says is recorded.
  ASSERT_EQ(write(played.end.get(), "2\n", 2), 2);
  played.end.Close();
  EXPECT_THAT(Kinds(WholeStory({played.seen})),
              ElementsAre(v1::Event::kStarted, v1::Event::kToChild, v1::Event::kFromChild,
                          v1::Event::kDisconnected, v1::Event::kClosed));
  EXPECT_TRUE(sending->written());
  EXPECT_EQ(disconnected, 4);
}

TEST_F(RecordedChildTest, WithoutAChannelThereIsNothingToDisconnect) {
  v1::ChildSpec spec = Script("echo out");
  spec.set_no_channel(true);
  const auto forked = Fork(spec);
  ASSERT_TRUE(forked.ok());
  EXPECT_EQ(forked->child().state(), v1::Child::STATE_DISCONNECTED);
  EXPECT_EQ(forked->child().dialect(), v1::DIALECT_UNSPECIFIED);
  ExpectReason(Disconnect(forked->child()).status(), Reason::kNoChannel);
  EXPECT_THAT(
      Kinds(WholeStory({forked->child()})),
      ElementsAre(v1::Event::kStarted, v1::Event::kOutput, v1::Event::kExited, v1::Event::kClosed));
}

TEST_F(RecordedChildTest, AChildWithoutItsProcessIsNotSignalled) {
  Played played = Play();
  const absl::Status refused = Signal(played.seen, SIGTERM).status();
  ExpectReason(refused, Reason::kNoProcess);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  ExpectReason(played.child->Kill(SIGTERM), Reason::kNoProcess);
  ExpectReason(played.child->Kill(0), Reason::kInvalidArgument);
  EXPECT_EQ(Get(played.seen.name())->last_child_sequence(), 1);
}

TEST_F(RecordedChildTest, ASignalThatMayNotGoIsNotRecorded) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const ipc::Descriptor end(ends[1]);
  // Process 1 is root's, and root itself puts its power aside for a moment. The signal is one that
  // would do nothing.
  const auto child = agent_->Adopt(ends[0], /*pid=*/1, ipc::Dialect::kNode, {}, nullptr);
  ASSERT_TRUE(child.ok()) << child.status();
  const v1::Child seen = *Get((*child)->name());
  constexpr uid_t kNobody = 65534;
  const bool root = geteuid() == 0;
  if (root) {
    ASSERT_EQ(setresuid(kNobody, kNobody, 0), 0);
  }
  const bool own = kill(1, 0) == 0;
  const absl::Status refused = own ? absl::OkStatus() : Signal(seen, SIGURG).status();
  if (root) {
    ASSERT_EQ(setresuid(0, 0, 0), 0);
    prctl(PR_SET_DUMPABLE, 1);  // as it was
  }
  if (own) GTEST_SKIP() << "process 1 is this user's own";
  ExpectReason(refused, Reason::kSignalNotPermitted);
  EXPECT_EQ(refused.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(refused.message(), HasSubstr(seen.name()));
  EXPECT_EQ(Get(seen.name())->last_child_sequence(), 1);
}

TEST_F(RecordedChildTest, WhatIsAdoptedInVainLeavesNoChild) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const pid_t pid = fork();
  if (pid == 0) _exit(0);
  ASSERT_EQ(waitpid(pid, nullptr, 0), pid);
  ExpectReason(agent_->Adopt(ends[0], pid, ipc::Dialect::kDeka, {}, nullptr).status(),
               Reason::kChildExited);
  char byte;
  EXPECT_EQ(read(ends[1], &byte, 1), 0);  // the agent has closed its end
  close(ends[1]);
  ExpectReason(agent_->Adopt(-1, 0, ipc::Dialect::kDeka, {}, nullptr).status(),
               Reason::kInvalidArgument);
  EXPECT_EQ(List()->children_size(), 0);
}

// Ends the agent at a chosen moment, from inside the listener's call.
class Ender : public Child::Listener {
 public:
  Ender(std::unique_ptr<Agent>& agent, char when) : agent_(agent), when_(when) {}
  void OnSpawn(Child&) override { On('S'); }
  void OnMessage(Child&, std::string_view) override { On('m'); }
  void OnOutput(Child&, const ipc::OutputLine&) override { On('o'); }
  void OnError(Child&, const absl::Status&) override { On('e'); }
  void OnDisconnect(Child&) override { On('D'); }
  void OnExit(Child&, const ipc::ExitStatus&) override { On('X'); }
  void OnClose(Child&) override { On('C'); }

  std::string heard;

 private:
  void On(char what) {
    heard += what;
    if (what == when_) agent_.reset();
  }

  std::unique_ptr<Agent>& agent_;
  const char when_;
};

TEST_F(RecordedChildTest, AParentMayEndItsAgentFromAnyCall) {
  for (const char when : std::string("SmoeDXC")) {
    SCOPED_TRACE(when);
    Create({});
    Ender ender(agent_, when);
    ipc::ForkOptions options;
    options.program = "/bin/sh";
    options.args = {"-c", Say("1") + Say("2") + "echo no message >&3; echo out; echo again"};
    options.stdout_mode = ipc::Stdio::kPipe;
    const auto child = agent_->Fork(std::move(options), {}, &ender);
    ASSERT_TRUE(child.ok()) << child.status();
    ASSERT_TRUE(ipc::RunUntil(loop_, [&] { return agent_ == nullptr; }));
    EXPECT_EQ(ender.heard.back(), when);
  }
}

TEST_F(RecordedChildTest, WhoWaitsIsAnsweredThoughTheAgentEnds) {
  Create(kSmall);
  Played played = Play();
  const auto begun = Begin(Message(played.seen, Json('1', 60'000)));
  const auto queued = Begin(Message(played.seen, Json('2', 60'000)));
  const auto waits = Begin(Message(played.seen, Json('3', 60'000)), /*wait_for_room=*/true);
  Settle();
  agent_.reset();
  ExpectReason(begun->status(), Reason::kOutcomeUnknown);
  ExpectReason(queued->status(), Reason::kOutcomeUnknown);
  ExpectReason(waits->status(), Reason::kAgentStopping);
}

TEST_F(RecordedChildTest, TheGapOfALogThatTurnedOverIsExact) {
  Limits limits = kSmall;
  limits.log_events_max = 4;
  Create(limits);
  Played played = Play();
  std::string lines;
  for (int i = 2; i <= 10; ++i) lines += std::to_string(i) + "\n";
  ASSERT_EQ(write(played.end.get(), lines.data(), lines.size()),
            static_cast<ssize_t>(lines.size()));
  played.end.Close();
  const Shown shown = WholeStory({played.seen});
  ASSERT_EQ(shown.gaps.size(), 1u);
  EXPECT_EQ(shown.gaps[0].from_child_sequence(), 1);
  EXPECT_FALSE(shown.gaps[0].inexact());
  ASSERT_FALSE(shown.events.empty());
  EXPECT_EQ(shown.events[0].child_sequence(), shown.gaps[0].to_child_sequence() + 1);
  EXPECT_EQ(shown.events.back().child_sequence(), 12);
  for (const v1::Event& event : shown.events) {
    if (event.has_from_child()) {
      EXPECT_EQ(event.json(), std::to_string(event.child_sequence()));
    }
  }
}

TEST_F(RecordedChildTest, LongArgumentsAreShownCut) {
  v1::ChildSpec spec = Script("exit 0");
  for (int i = 0; i < 10; ++i) spec.add_args(std::string(100'000, 'x'));
  const auto forked = Fork(spec);
  ASSERT_TRUE(forked.ok()) << forked.status();
  size_t bytes = 0;
  for (const std::string& arg : forked->child().args()) bytes += arg.size();
  EXPECT_GT(bytes, 16'000u);
  EXPECT_LE(bytes, 16u << 10);
  EXPECT_EQ(WholeStory({forked->child()}).events.front().started().child().args_size(),
            forked->child().args_size());
  // One argument at the limit, and one past it.
  for (const size_t size : {16u << 10, (16u << 10) + 1}) {
    spec.clear_args();
    spec.set_program("/bin/true");
    spec.add_args(std::string(size, 'x'));
    const auto cut = Fork(spec);
    ASSERT_TRUE(cut.ok()) << cut.status();
    EXPECT_THAT(cut->child().args(), ElementsAre(std::string(16 << 10, 'x')));
  }
}

}  // namespace
}  // namespace deka::agent
