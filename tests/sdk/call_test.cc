// Child::Call with real children: which of their messages is the reply, and what if there is none.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "fmt/format.h"
#include "sdk/cpp/client.h"
#include "tests/sdk/testing.h"

namespace deka {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

class CallTest : public AgentTest {
 protected:
  // Says what a shell in the deka dialect does.
  Child Fork(const std::string& script) {
    return ForkShell(client_,
                     R"(say() { printf '{"cmd":"NODE_HANDLE","msg":%s}\n' "$1" >&3; }; )" + script);
  }

  const Client client_ = Connect(agent_path());
};

// The reply's JSON, or the reason of the error.
std::string Word(const absl::StatusOr<v1::Event>& reply) {
  return reply.ok() ? reply->json() : ErrorReason(reply.status());
}

std::string Question(int id) { return fmt::format(R"({{"id":{}}})", id); }

TEST_F(CallTest, TheReplyIsBehindTheMessage) {
  Child child = Fork(kEcho);
  for (int id = 1; id <= 20; ++id) {
    // The same question again and again: each reply is its own.
    const absl::StatusOr<v1::Event> reply = child.Call(Question(7), {.where = {Where("/id", "7")}});
    ASSERT_EQ(Word(reply), Question(7));
    EXPECT_EQ(reply->child_sequence(), 1 + 2 * id);
    EXPECT_TRUE(reply->has_from_child());
  }
}

TEST_F(CallTest, WhatTheChildSaysFirstMayBeNoReply) {
  Child child = Fork(R"(read -r line <&3
      for json in '{"id":"7","ok":true}' '{"id":8,"ok":true}' '{"id":7,"ok":false}' '7' '{"ok":true}' \
          '{"id":70e-1,"n":{"ok":[1,true]},"ok":true}' '{"id":7,"ok":true}'; do say "$json"; done
      read -r line <&3)");
  EXPECT_EQ(Word(child.Call("1", {.where = {Where("/id", "7"), Where("/ok", "true")}})),
            R"({"id":70e-1,"n":{"ok":[1,true]},"ok":true})");
}

TEST_F(CallTest, AnyMessageWillDo) {
  Child child = Fork(R"(read -r line <&3; say 2; say 3; read -r line <&3)");
  EXPECT_EQ(Word(child.Call("1", {})), "2");
}

TEST_F(CallTest, AHundredAtOnceGetTheirOwn) {
  constexpr int kCalls = 100;
  // The child answers when it has heard all, in another order.
  Child child = Fork(fmt::format(R"(i=0
      while [ $i -lt {} ]; do
        read -r line <&3; i=$((i+1))
        if [ $((i % 2)) -eq 0 ]; then all="$all$line
"; else all="$line
$all"; fi
      done
      printf %s "$all" >&3
      read -r line <&3)",
                                 kCalls));
  std::vector<absl::StatusOr<v1::Event>> replies(kCalls);
  std::vector<std::thread> calls;
  for (int id = 0; id < kCalls; ++id) {
    calls.emplace_back([&, id] {
      replies[id] = child.Call(Question(id), {.where = {Where("/id", std::to_string(id))},
                                              .timeout = milliseconds(kDeadline)});
    });
  }
  for (int id = 0; id < kCalls; ++id) {
    calls[id].join();
    EXPECT_EQ(Word(replies[id]), Question(id)) << replies[id].status();
  }
}

TEST_F(CallTest, AReplyMayComeLate) {
  // To the first question, when the second has come.
  Child child = Fork(R"(read -r first <&3; say '{"id":0}'
      read -r second <&3; printf '%s\n%s\n' "$second" "$first" >&3; read -r line <&3)");
  Record record;
  ASSERT_TRUE(
      child.Listen({.on_message = [&](std::string_view json) { record.Add(std::string(json)); }})
          .ok());
  absl::StatusOr<v1::Event> first;
  std::thread call([&] { first = child.Call(Question(1), {.where = {Where("/id", "1")}}); });
  record.AwaitLast(Question(0));
  EXPECT_EQ(Word(child.Call(Question(2), {.where = {Where("/id", "2")}})), Question(2));
  call.join();
  EXPECT_EQ(Word(first), Question(1));
}

TEST_F(CallTest, AChildThatDiesDoesNotReply) {
  for (const char* end : {"exit 3", "kill -9 $$", "exec 3>&-; read -r line"}) {
    Child child = Fork(fmt::format("read -r line <&3; say 1; {}", end));
    const absl::StatusOr<v1::Event> reply = child.Call("1", {.where = {Where("/id")}});
    EXPECT_EQ(Word(reply), "NO_REPLY_CHANNEL_CLOSED") << end;
    EXPECT_THAT(std::string(reply.status().message()), HasSubstr("closed its channel")) << end;
  }
}

TEST_F(CallTest, TheLastWordsOfAChildAreAReply) {
  for (int i = 0; i < 10; ++i) {
    Child child = Fork(R"(read -r line <&3; say '{"id":1}'; kill -9 $$)");
    EXPECT_EQ(Word(child.Call("1", {.where = {Where("/id")}})), R"({"id":1})");
  }
}

TEST_F(CallTest, AChildThatHasEndedIsSentNothing) {
  Child child = Fork("exit 3");
  ASSERT_TRUE(child.Wait().ok());
  EXPECT_EQ(Word(child.Call("1", {})), "CHILD_EXITED");
}

TEST_F(CallTest, ADisconnectedChildDoesNotReply) {
  Child child = Fork("read -r line <&3; say 2; read -r line <&3");
  Record record;
  ASSERT_TRUE(
      child.Listen({.on_message = [&](std::string_view json) { record.Add(std::string(json)); }})
          .ok());
  absl::StatusOr<v1::Event> reply;
  std::thread call([&] { reply = child.Call("1", {.where = {Where("/id")}}); });
  record.AwaitLast("2");
  EXPECT_TRUE(child.Disconnect().ok());
  call.join();
  EXPECT_EQ(Word(reply), "NO_REPLY_CHANNEL_CLOSED");
  EXPECT_THAT(std::string(reply.status().message()), HasSubstr("test has disconnected the child"));
}

TEST_F(CallTest, AChildThatDoesNotReplyCostsTheTimeout) {
  Child child = Fork("while read -r line <&3; do say 2; done");
  const absl::StatusOr<v1::Event> reply =
      child.Call("1", {.where = {Where("/id")}, .timeout = milliseconds(200)});
  EXPECT_EQ(reply.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Word(reply), "NO_REPLY_DEADLINE");
}

TEST_F(CallTest, AChildThatDoesNotReadIsSentNothing) {
  Child child = Fork("kill -STOP $$");
  // More than its socket holds.
  const std::string large = '"' + std::string(500'000, 'x') + '"';
  ASSERT_TRUE(child.Send(large, {.answer_when = v1::SEND_OUTCOME_ACCEPTED}).ok());
  const absl::StatusOr<v1::Event> reply = child.Call("1", {.timeout = milliseconds(500)});
  EXPECT_EQ(reply.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Word(reply), "NOT_SENT_DEADLINE");
  EXPECT_EQ(child.Describe()->queued_messages(), 1);
  EXPECT_TRUE(child.Kill(SIGKILL).ok());
  EXPECT_TRUE(child.Wait().ok());
}

TEST_F(CallTest, ARefusedMessageIsNotWaitedFor) {
  Child child = Fork(kEcho);
  EXPECT_EQ(Word(child.Call("{", {})), "INVALID_JSON");
  EXPECT_EQ(Word(child.Call("1", {.where = {Where("id")}})), "INVALID_ARGUMENT");
  EXPECT_EQ(child.Describe()->last_child_sequence(), 1);
}

TEST_F(CallTest, ConnectionsThatBreakLoseNoReply) {
  constexpr int kCalls = 40;
  std::vector<size_t> breaks;
  for (size_t i = 0; i < 20; ++i) {
    breaks.push_back(150 + 61 * i);
  }
  const Proxy proxy(proxy_path(), agent_path(), breaks);
  Child child = Fork(kEcho);
  std::map<std::string, int> echoed;
  Record record;
  ASSERT_TRUE(child
                  .Listen({.on_message =
                               [&](std::string_view json) {
                                 ++echoed[std::string(json)];
                                 record.Add(std::string(json));
                               }})
                  .ok());
  absl::StatusOr<Child> found = Connect(proxy_path()).Find(child.id());
  ASSERT_TRUE(found.ok()) << found.status();
  int replies = 0;
  for (int id = 1; id <= kCalls; ++id) {
    const absl::StatusOr<v1::Event> reply = found->Call(
        Question(id),
        {.where = {Where("/id", std::to_string(id))}, .timeout = milliseconds(kDeadline)});
    if (reply.ok()) {
      EXPECT_EQ(Word(reply), Question(id));
      ++replies;
    } else {
      // The message was on its way when the connection broke.
      EXPECT_EQ(Word(reply), "OUTCOME_UNKNOWN") << reply.status();
    }
  }
  EXPECT_EQ(proxy.broken(), breaks.size());
  EXPECT_GE(replies, kCalls / 2);
  ASSERT_TRUE(child.Send("0").ok());
  record.AwaitLast("0");
  for (const auto& [json, times] : echoed) {
    EXPECT_EQ(times, 1) << json;
  }
  EXPECT_GE(echoed.size(), static_cast<size_t>(replies) + 1);
}

TEST_F(CallTest, AnAgentThatIsKilledIsNotWaitedFor) {
  Child child = Fork("read -r line <&3; say 2; read -r line <&3");
  Record record;
  ASSERT_TRUE(
      child.Listen({.on_message = [&](std::string_view json) { record.Add(std::string(json)); }})
          .ok());
  absl::StatusOr<v1::Event> reply;
  std::thread call([&] { reply = child.Call("1", {.where = {Where("/id")}}); });
  record.AwaitLast("2");
  KillAll(client_);
  StartAgent();
  call.join();
  EXPECT_EQ(Word(reply), "OUTCOME_UNKNOWN");
}

}  // namespace
}  // namespace deka
