// The SDK's client and deka-agent itself, with connections between them that break.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "fmt/format.h"
#include "sdk/cpp/client.h"
#include "tests/sdk/testing.h"

namespace deka {
namespace {

using testing::ElementsAre;

using ResumeTest = AgentTest;

// Writes 1 to `count`, each as a message.
std::string CountTo(int count) {
  return fmt::format(
      R"(i=0; while [ $i -lt {} ]; do i=$((i+1)); echo "{{\"cmd\":\"NODE_HANDLE\",\"msg\":$i}}"; done >&3)",
      count);
}

TEST_F(ResumeTest, AnObserverSeesEveryEventOnce) {
  constexpr int kMessages = 2000;
  // The first connection breaks before the stream stands, later ones anywhere in it.
  const std::vector<size_t> breaks = {200, 1000, 300, 5'003, 400, 20'011, 601, 30'029};
  const Proxy proxy(proxy_path(), agent_path(), breaks);
  Child child = ForkShell(Connect(agent_path()), CountTo(kMessages));
  Client client = Connect(proxy_path());

  v1::ObserveRequest request;
  request.mutable_filter()->add_children(child.name());
  request.mutable_observation()->mutable_start()->set_earliest(true);
  request.mutable_observation()->set_until_closed(true);
  Record record;
  int64_t last = 0;
  Observer observer;
  observer.on_event = [&](const v1::Event& event) {
    EXPECT_EQ(event.child_sequence(), ++last);
    if (event.has_from_child()) {
      record.Add(event.json());
    }
  };
  observer.on_gap = [](const v1::Gap& gap) { ADD_FAILURE() << gap.ShortDebugString(); };
  observer.on_end = [&](const absl::Status& status, const v1::Fin& fin) {
    EXPECT_TRUE(status.ok()) << status;
    record.Add(v1::Fin::Reason_Name(fin.reason()));
  };
  const absl::StatusOr<Observation> observation = client.Observe(request, observer);
  ASSERT_TRUE(observation.ok()) << observation.status();

  std::vector<std::string> expected;
  for (int i = 1; i <= kMessages; ++i) {
    expected.push_back(std::to_string(i));
  }
  expected.push_back("REASON_CLOSED");
  EXPECT_EQ(record.AwaitLast("REASON_CLOSED"), expected);
  EXPECT_EQ(proxy.broken(), breaks.size());
}

TEST_F(ResumeTest, AChildGetsEverySendOnce) {
  constexpr int kSends = 20;
  // So little that answers are lost.
  const std::vector<size_t> breaks = {150, 170, 190, 210, 230, 250, 270, 290, 310, 330};
  const Proxy proxy(proxy_path(), agent_path(), breaks);
  Client direct = Connect(agent_path());
  Child child = ForkShell(direct, kEcho);
  Record record;
  ASSERT_TRUE(
      child
          .Listen({.on_message = [&](std::string_view json) { record.Add(std::string(json)); },
                   .on_gap = [](const v1::Gap& gap) { ADD_FAILURE() << gap.DebugString(); }})
          .ok());

  absl::StatusOr<Child> found = Connect(proxy_path()).Find(child.id());
  ASSERT_TRUE(found.ok()) << found.status();
  std::vector<std::string> expected;
  for (int i = 1; i <= kSends; ++i) {
    expected.push_back(std::to_string(i));
    const auto sent = found->Send(expected.back());
    EXPECT_TRUE(sent.ok()) << sent.status();
  }
  EXPECT_EQ(record.AwaitLast(expected.back()), expected);
  EXPECT_EQ(proxy.broken(), breaks.size());
}

TEST_F(ResumeTest, AnAttachmentSendsEachOnceInOrderOrSaysSo) {
  constexpr int kSends = 3000;
  const std::vector<size_t> breaks = {300, 500, 700, 900, 3'001, 5'003, 20'011, 30'029};
  const Proxy proxy(proxy_path(), agent_path(), breaks);
  Client direct = Connect(agent_path());
  Child child = ForkShell(direct, kEcho);
  Record echoed;
  ASSERT_TRUE(
      child
          .Listen({.on_message = [&](std::string_view json) { echoed.Add(std::string(json)); },
                   .on_gap = [](const v1::Gap& gap) { ADD_FAILURE() << gap.DebugString(); }})
          .ok());

  Attachment::Options options;
  options.observation.emplace();  // what it sends and gets is what breaks the connections
  // Those on their way when a connection breaks are lost with it.
  std::set<int64_t> lost;
  options.on_failed = [&](int64_t number, const absl::Status& status) {
    EXPECT_EQ(ErrorReason(status), "OUTCOME_UNKNOWN") << number;
    lost.insert(number);
  };
  absl::StatusOr<Attachment> attachment = Connect(proxy_path()).Attach(child.id(), options);
  ASSERT_TRUE(attachment.ok()) << attachment.status();
  for (int i = 1; i <= kSends; ++i) {
    ASSERT_TRUE(attachment->Send(std::to_string(i)).ok());
  }
  attachment->Finish();
  const absl::Status end = attachment->Wait();
  EXPECT_TRUE(end.ok()) << end;
  std::vector<std::string> expected;
  for (int i = 1; i <= kSends; ++i) {
    if (!lost.contains(i)) {
      expected.push_back(std::to_string(i));
    }
  }
  EXPECT_EQ(echoed.AwaitLast(expected.back()), expected);
  EXPECT_EQ(proxy.broken(), breaks.size());
}

TEST_F(ResumeTest, ASlowObserverIsToldWhatItMissed) {
  constexpr int kMessages = 20'000;
  v1::ChildLimits limits;
  limits.set_message_bytes_max(1024);
  limits.set_log_bytes_max(80 << 10);
  Client client = Connect(agent_path());
  Child child = ForkShell(client, "read line <&3; " + CountTo(kMessages), limits);

  v1::ObserveRequest request;
  request.mutable_filter()->add_children(child.name());
  request.mutable_observation()->set_until_closed(true);
  request.mutable_observation()->mutable_start()->set_earliest(true);
  Record record;
  int64_t last = 0;
  int64_t missed = 0;
  Observer observer;
  observer.on_event = [&](const v1::Event& event) {
    EXPECT_EQ(event.child_sequence(), last + 1);
    last = event.child_sequence();
    if (last == 3) {
      // Everything else turns over meanwhile.
      const absl::StatusOr<v1::ExitStatus> exited = child.Wait();
      EXPECT_TRUE(exited.ok()) << exited.status();
    }
  };
  observer.on_gap = [&](const v1::Gap& gap) {
    EXPECT_EQ(gap.from_child_sequence(), last + 1) << gap.ShortDebugString();
    missed += gap.to_child_sequence() - last;
    last = gap.to_child_sequence();
  };
  observer.on_end = [&](const absl::Status& status, const v1::Fin&) {
    EXPECT_TRUE(status.ok()) << status;
    record.Add("end");
  };
  const absl::StatusOr<Observation> observation = client.Observe(request, observer);
  ASSERT_TRUE(observation.ok()) << observation.status();
  ASSERT_TRUE(child.Send("1").ok());
  EXPECT_THAT(record.AwaitLast("end"), ElementsAre("end"));
  EXPECT_GT(missed, 0);
  EXPECT_EQ(child.Describe()->last_child_sequence(), last);
}

TEST_F(ResumeTest, AnotherAgentIsAGap) {
  Client client = Connect(agent_path());
  Child before = ForkShell(client, kEcho);
  Record record;
  Observer observer;
  observer.on_event = [&](const v1::Event& event) {
    if (event.has_from_child()) {
      record.Add(event.json());
    }
  };
  observer.on_gap = [&](const v1::Gap& gap) { record.Add(v1::Gap::Reason_Name(gap.reason())); };
  observer.on_lost = [&](const absl::Status&) { record.Add("lost"); };
  const absl::StatusOr<Observation> observation = client.Observe({}, observer);
  ASSERT_TRUE(observation.ok()) << observation.status();
  ASSERT_TRUE(before.Send("1").ok());
  record.AwaitLast("1");

  KillAll(client);
  record.AwaitLast("lost");
  StartAgent();
  record.AwaitLast("REASON_OTHER_EPOCH");
  // The client is the one from before.
  EXPECT_EQ(ErrorReason(before.Send("2").status()), "CHILD_NOT_FOUND");
  Child after = ForkShell(client, kEcho);
  ASSERT_TRUE(after.Send("3").ok());
  EXPECT_THAT(record.AwaitLast("3"), ElementsAre("1", "lost", "REASON_OTHER_EPOCH", "3"));
}

}  // namespace
}  // namespace deka
