// The SDK's client, and deka-agent that is killed under its keeper while a call is under way: the
// agent is stopped, the call is made, and what it was sent dies with it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <cstdint>
#include <future>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "sdk/cpp/client.h"
#include "tests/sdk/testing.h"

namespace deka {
namespace {

using testing::ElementsAre;

class SurvivalTest : public AgentTest {
 protected:
  SurvivalTest() : client_(Connect(agent_path())) { AwaitSpare(); }

  v1::Agent AwaitSpare() {
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    for (;;) {
      const absl::StatusOr<v1::Agent> agent = client_.GetAgent();
      if (agent.ok() && agent->spare_pid() != 0) {
        return *agent;
      }
      if (std::chrono::steady_clock::now() > deadline) {
        ADD_FAILURE() << "no spare in time: " << agent.status();
        abort();
      }
    }
  }

  // What `call` answers, if the agent is killed when it was asked and could do nothing yet.
  template <typename Call>
  auto KillUnder(Call call) {
    const v1::Agent agent = AwaitSpare();
    kill(agent.pid(), SIGSTOP);
    auto answer = std::async(std::launch::async, std::move(call));
    // The request is on its way, or will be when the successor is there: neither may matter.
    EXPECT_EQ(answer.wait_for(std::chrono::milliseconds(100)), std::future_status::timeout);
    kill(agent.pid(), SIGKILL);
    auto answered = answer.get();
    EXPECT_EQ(client_.GetAgent()->incarnation(), agent.incarnation() + 1);
    return answered;
  }

  Client client_;
};

TEST_F(SurvivalTest, ASendIsDoneOnce) {
  const Child child = ForkShell(client_, kEcho);
  Record record;
  absl::StatusOr<Child> heard = client_.Find(child.name());
  ASSERT_TRUE(heard.ok()) << heard.status();
  ASSERT_TRUE(
      heard->Listen({.on_message = [&](std::string_view json) { record.Add(std::string(json)); }})
          .ok());
  for (int i = 1; i <= 3; ++i) {
    const auto sent = KillUnder([&] { return child.Send(std::to_string(i)); });
    EXPECT_TRUE(sent.ok()) << sent.status();
  }
  ASSERT_TRUE(child.Send("4").ok());
  EXPECT_THAT(record.AwaitLast("4"), ElementsAre("1", "2", "3", "4"));
}

TEST_F(SurvivalTest, AForkIsDoneOnce) {
  const auto child = KillUnder([&] { return client_.Fork("/bin/sh", {"-c", std::string(kEcho)}); });
  ASSERT_TRUE(child.ok()) << child.status();
  const absl::StatusOr<Client::Children> all = client_.List();
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->children.size(), 1u);
  EXPECT_EQ(all->children[0].name(), child->name());
}

TEST_F(SurvivalTest, ACallGetsItsReply) {
  const Child child = ForkShell(client_, kEcho);
  const auto reply =
      KillUnder([&] { return child.Call(R"({"id":7})", {.where = {Where("/id", "7")}}); });
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->json(), R"({"id":7})");
  EXPECT_EQ(child.Describe()->last_child_sequence(), 3);
}

TEST_F(SurvivalTest, ADisconnectIsDone) {
  const Child child = ForkShell(client_, kEcho);
  const absl::Status disconnected = KillUnder([&] { return child.Disconnect(); });
  EXPECT_TRUE(disconnected.ok()) << disconnected;
  const absl::StatusOr<v1::ExitStatus> exited = child.Wait();
  ASSERT_TRUE(exited.ok()) << exited.status();
  EXPECT_EQ(exited->code(), 0);
}

TEST_F(SurvivalTest, AnObserverIsToldOfEachAgentAndMissesNothing) {
  const Child child = ForkShell(client_, kEcho);
  Record record;
  Observer observer;
  observer.on_event = [&](const v1::Event& event) {
    if (event.has_from_child()) {
      record.Add(event.json());
    }
  };
  observer.on_gap = [&](const v1::Gap& gap) { ADD_FAILURE() << gap.ShortDebugString(); };
  observer.on_replaced = [&](int64_t incarnation) {
    record.Add(fmt::format("replaced {}", incarnation));
  };
  observer.on_resumed = [&](const v1::Cursor&) { record.Add("resumed"); };
  const absl::StatusOr<Observation> observation = client_.Observe({}, observer);
  ASSERT_TRUE(observation.ok()) << observation.status();
  ASSERT_TRUE(child.Send("1").ok());
  record.AwaitLast("1");
  kill(AwaitSpare().pid(), SIGKILL);
  record.AwaitLast("resumed");
  ASSERT_TRUE(child.Send("2").ok());
  EXPECT_THAT(record.AwaitLast("2"), ElementsAre("1", "replaced 2", "resumed", "2"));
}

TEST_F(SurvivalTest, AnAttachmentSendsEachOnceAndInOrder) {
  constexpr int kSends = 3000;
  const Child child = ForkShell(client_, kEcho);
  Record record;
  Attachment attachment =
      child.Attach({.observation = v1::Observation(),
                    .observer = {.on_event =
                                     [&](const v1::Event& event) {
                                       if (event.has_from_child()) {
                                         record.Add(event.json());
                                       }
                                     }},
                    .on_failed = [](int64_t number, const absl::Status& status) {
                      ADD_FAILURE() << number << ": " << status;
                    }});
  std::vector<std::string> expected;
  for (int i = 1; i <= kSends; ++i) {
    expected.push_back(std::to_string(i));
    ASSERT_TRUE(attachment.Send(expected.back()).ok());
    if (i % 1000 == 500) {
      kill(AwaitSpare().pid(), SIGKILL);
    }
  }
  EXPECT_EQ(record.AwaitLast(expected.back()), expected);
}

TEST_F(SurvivalTest, AnUpgradeAnswersTheNewAgent) {
  const Child child = ForkShell(client_, kEcho);
  const absl::StatusOr<v1::Agent> agent = client_.Upgrade();
  ASSERT_TRUE(agent.ok()) << agent.status();
  EXPECT_EQ(agent->incarnation(), 2);
  EXPECT_TRUE(child.Send("1").ok());
  EXPECT_EQ(ErrorReason(client_.Upgrade("/bin/true").status()), "UPGRADE_REFUSED");
  EXPECT_EQ(client_.GetAgent()->pid(), agent->pid());
}

}  // namespace
}  // namespace deka
