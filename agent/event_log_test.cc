#include "agent/event_log.h"

#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "agent/testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ipc/error.h"

namespace deka::agent {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr size_t kBig = 1 << 20;

class EventLogTest : public ::testing::Test {
 protected:
  std::shared_ptr<Log> AddChild(std::string id, size_t bytes_max = kBig,
                                size_t events_max = 16384) {
    absl::StatusOr<std::shared_ptr<Log>> child = log_.AddChild(id, {}, bytes_max, events_max);
    EXPECT_TRUE(child.ok()) << child.status();
    return *child;
  }

  // All that is in the log.
  Shown Earliest() {
    return From([](v1::Observation& o) { o.mutable_start()->set_earliest(true); });
  }

  Shown From(void (*fill)(v1::Observation&)) {
    Asked asked;
    fill(asked.observation);
    Shown shown;
    absl::StatusOr<std::unique_ptr<Observation>> observation =
        agent::Observe(log_, std::move(asked));
    EXPECT_TRUE(observation.ok()) << observation.status();
    EXPECT_EQ(TakeAll(**observation, shown), Observation::Next::kWait);
    return shown;
  }

  EventLog log_{{.agent = "test"}};
};

TEST_F(EventLogTest, NumbersAreDenseForAllAndForEach) {
  const auto a = AddChild("aaaaaaaaaa"), b = AddChild("bbbbbbbbbb");
  EXPECT_EQ(log_.head(), 0);
  EXPECT_EQ(AppendMessage(log_, *a, "1"), 1);
  EXPECT_EQ(AppendMessage(log_, *b, "2"), 2);
  EXPECT_EQ(AppendMessage(log_, *a, "3"), 3);
  EXPECT_EQ(log_.head(), 3);
  EXPECT_EQ(a->newest_sequence(), 3);
  EXPECT_EQ(a->newest_child_sequence(), 2);
  EXPECT_EQ(b->newest_child_sequence(), 1);

  const Shown shown = Earliest();
  ASSERT_THAT(shown.payloads(), ElementsAre("1", "2", "3"));
  int64_t time_us = 0;
  for (int i = 0; i < 3; ++i) {
    const v1::Event& event = shown.events[i];
    EXPECT_EQ(event.sequence(), i + 1);
    EXPECT_EQ(event.child(), i == 1 ? "bbbbbbbbbb" : "aaaaaaaaaa");
    EXPECT_EQ(event.child_sequence(), i == 2 ? 2 : 1);
    EXPECT_EQ(event.from_child().dialect(), v1::DIALECT_NODE);
    const int64_t event_us = event.time().seconds() * 1'000'000 + event.time().nanos() / 1000;
    EXPECT_GE(event_us, time_us);
    EXPECT_GE(event_us, log_.epoch());
    time_us = event_us;
  }
}

TEST_F(EventLogTest, EpochIsTheTimeOfCreation) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const int64_t now_us = std::chrono::duration_cast<std::chrono::microseconds>(now).count();
  EventLog later({.agent = "test"});
  EXPECT_GE(later.epoch(), log_.epoch());
  EXPECT_NEAR(static_cast<double>(later.epoch()), static_cast<double>(now_us), 60e6);
}

TEST_F(EventLogTest, WhatIsStagedIsInvisibleUntilItsCommit) {
  const auto a = AddChild("a");
  EXPECT_EQ(StageMessage(log_, *a, "1"), 1);
  EXPECT_EQ(StageMessage(log_, *a, "2"), 2);
  EXPECT_EQ(log_.next_sequence(), 3);
  EXPECT_EQ(log_.head(), 0);
  EXPECT_THAT(Earliest().events, IsEmpty());
  log_.Commit();
  EXPECT_EQ(log_.head(), 2);
  EXPECT_THAT(Earliest().payloads(), ElementsAre("1", "2"));
  log_.Commit();  // nothing is staged
  EXPECT_EQ(log_.head(), 2);
}

TEST_F(EventLogTest, StagingForAnotherChildCommitsFirst) {
  const auto a = AddChild("a"), b = AddChild("b");
  EXPECT_EQ(StageMessage(log_, *a, "1"), 1);
  EXPECT_EQ(StageMessage(log_, *b, "2"), 2);
  EXPECT_EQ(log_.head(), 1);
  EXPECT_THAT(Earliest().payloads(), ElementsAre("1"));
  EXPECT_EQ(StageMessage(log_, *a, "3"), 3);
  EXPECT_EQ(log_.head(), 2);
  log_.Commit();
  EXPECT_THAT(Earliest().payloads(), ElementsAre("1", "2", "3"));
}

TEST_F(EventLogTest, HoldsEventsMaxAndNotOneMore) {
  const auto a = AddChild("a", kBig, 5);
  for (int i = 1; i <= 5; ++i) AppendMessage(log_, *a, std::to_string(i));
  EXPECT_THAT(Earliest().payloads(), ElementsAre("1", "2", "3", "4", "5"));
  AppendMessage(log_, *a, "6");
  EXPECT_THAT(Earliest().payloads(), ElementsAre("2", "3", "4", "5", "6"));
}

TEST_F(EventLogTest, HoldsBytesMaxAndNotOneMore) {
  // All records of one size.
  const std::string json(100, '1');
  const EncodedKind kind = EncodedKind::FromChild(v1::DIALECT_NODE, json.size(), false);
  const uint64_t record_bytes = Record::BytesFor(EntryBytes({.sequence = 1,
                                                             .child_sequence = 1,
                                                             .time_us = log_.epoch(),
                                                             .child = "a",
                                                             .kind_field = v1::Event::kFromChild,
                                                             .kind = kind.bytes(),
                                                             .payload_field = PayloadField::kJson,
                                                             .payload = json}));
  const auto a = AddChild("a", 5 * record_bytes, 100);
  for (int i = 0; i < 5; ++i) AppendMessage(log_, *a, json);
  Shown shown = Earliest();
  ASSERT_EQ(shown.events.size(), 5u);
  EXPECT_EQ(shown.events[0].sequence(), 1);
  AppendMessage(log_, *a, json);
  shown = Earliest();
  ASSERT_LT(shown.events.size(), 6u);
  ASSERT_GE(shown.events.size(), 4u);
  EXPECT_GT(shown.events[0].sequence(), 1);
  EXPECT_EQ(shown.events.back().sequence(), 6);
  EXPECT_EQ(shown.attached.first_sequence(), shown.events[0].sequence());
}

TEST_F(EventLogTest, AChattyChildDoesNotEvictAQuietOnesPast) {
  const auto quiet = AddChild("q", 8192), chatty = AddChild("c", 8192);
  AppendMessage(log_, *quiet, "\"here\"");
  for (int i = 0; i < 10'000; ++i) AppendMessage(log_, *chatty, std::to_string(i));
  const Shown shown = Earliest();
  EXPECT_EQ(shown.events[0].json(), "\"here\"");
  EXPECT_LT(shown.events.size(), 200u);
}

// Every size of record at every place of the ring.
TEST_F(EventLogTest, RecordsOfAllSizesSurviveTheEndOfTheMemory) {
  for (const size_t bytes_max : {4096, 4104, 5000, 8192}) {
    const auto child = AddChild("c", bytes_max);
    std::vector<std::string> written;
    for (size_t i = 0; i < 3000; ++i) {
      written.push_back(std::string(i * 37 % (i % 50 == 0 ? 3900 : 600), 'x'));
      AppendMessage(log_, *child, written.back());
      ASSERT_EQ(child->newest_child_sequence(), static_cast<int64_t>(i + 1));
      if (i % 7 != 0 && i < 2900) continue;
      Asked asked;
      asked.children = {child};
      asked.observation.mutable_start()->set_earliest(true);
      Shown shown;
      auto observation = agent::Observe(log_, std::move(asked));
      ASSERT_TRUE(observation.ok());
      ASSERT_EQ(TakeAll(**observation, shown), Observation::Next::kWait);
      ASSERT_FALSE(shown.events.empty());
      for (size_t k = 0; k < shown.events.size(); ++k) {
        const v1::Event& event = shown.events[shown.events.size() - 1 - k];
        ASSERT_EQ(event.child_sequence(), static_cast<int64_t>(i + 1 - k));
        ASSERT_EQ(event.json(), written[i - k]);
      }
    }
  }
}

TEST_F(EventLogTest, ABatchLargerThanTheLogIsCommittedInParts) {
  const auto a = AddChild("a", 4096);
  for (int i = 1; i <= 1000; ++i) EXPECT_EQ(StageMessage(log_, *a, std::to_string(i)), i);
  log_.Commit();
  EXPECT_EQ(log_.head(), 1000);
  const Shown shown = Earliest();
  EXPECT_EQ(shown.events.back().json(), "1000");
  EXPECT_EQ(shown.events.back().child_sequence(), 1000);
}

TEST_F(EventLogTest, APayloadTooLongForTheLogIsCutBetweenCharacters) {
  const auto a = AddChild("a", 4096);
  std::string text;
  while (text.size() < 8000) text += "\xE2\x82\xAC";
  log_.Stage(
      *a,
      {.kind_field = v1::Event::kOutput,
       .kind = EncodedKind::Output(v1::Output::STREAM_STDOUT, text.size(), false, false).bytes(),
       .payload_field = PayloadField::kText,
       .payload = text});
  log_.Commit();
  const Shown shown = Earliest();
  ASSERT_EQ(shown.events.size(), 1u);
  EXPECT_EQ(shown.events[0].output().size_bytes(), static_cast<int64_t>(text.size()));
  EXPECT_GT(shown.events[0].text().size(), 3900u);
  EXPECT_EQ(shown.events[0].text().size() % 3, 0u);
}

// --- All logs together. ---

// Kilobytes of memory that this process has touched.
size_t ResidentKib() {
  std::FILE* const file = std::fopen("/proc/self/statm", "r");
  size_t total = 0, resident = 0;
  EXPECT_EQ(std::fscanf(file, "%zu %zu", &total, &resident), 2);
  std::fclose(file);
  return resident * static_cast<size_t>(getpagesize()) / 1024;
}

TEST_F(EventLogTest, AnObservationThatStopsShowsWhatHasHappened) {
  const auto child = AddChild("aaaaaaaaaa");
  AppendMessage(log_, *child, "1");
  Asked asked;
  asked.observation.mutable_start()->set_earliest(true);
  const auto observation = agent::Observe(log_, std::move(asked));
  ASSERT_TRUE(observation.ok()) << observation.status();
  AppendMessage(log_, *child, "2");
  (*observation)->End(v1::Fin::REASON_AGENT_STOPPING);
  Shown shown;
  EXPECT_EQ(TakeAll(**observation, shown), Observation::Next::kEnd);
  EXPECT_THAT(shown.payloads(), ElementsAre("1", "2"));
  EXPECT_EQ(shown.fin.reason(), v1::Fin::REASON_AGENT_STOPPING);
  EXPECT_EQ(shown.fin.cursor().sequence(), 2);
}

TEST(EventLogTogether, TheLargestYieldsFirstAndGivesItsPagesBack) {
  EventLog log({.agent = "test", .logs_bytes_max = 8 << 20});
  const std::string json(1000, '1');
  std::vector<std::shared_ptr<Log>> children;
  for (int i = 0; i < 20; ++i) {
    children.push_back(*log.AddChild("child" + std::to_string(i), {}, 4 << 20, 1 << 20));
  }
  for (int i = 0; i < 10; ++i) AppendMessage(log, *children[0], json);
  const size_t resident_before = ResidentKib();
  // 4 MiB each, 76 MiB in all.
  for (int i = 1; i < 20; ++i) {
    for (int k = 0; k < 4000; ++k) {
      AppendMessage(log, *children[i], json);
      ASSERT_LE(log.charged_bytes(), 8u << 20);
    }
  }
  EXPECT_GT(log.charged_bytes(), 7u << 20);
#if defined(__SANITIZE_ADDRESS__)
  constexpr size_t kOwnKib = 32 << 10;  // the sanitizer's, beside each byte and each frame
#else
  constexpr size_t kOwnKib = 4 << 10;
#endif
  EXPECT_LT(ResidentKib() - resident_before, (8u << 10) + kOwnKib);

  std::vector<int> events(20);
  Asked asked;
  asked.observation.mutable_start()->set_earliest(true);
  Shown shown;
  auto observation = agent::Observe(log, std::move(asked));
  ASSERT_EQ(TakeAll(**observation, shown), Observation::Next::kWait);
  for (const v1::Event& event : shown.events) events[std::stoi(event.child().substr(5))] += 1;
  EXPECT_EQ(events[0], 10);  // the smallest gave nothing
  for (int i = 1; i < 20; ++i) EXPECT_GT(events[i], 50) << i;
  observation->reset();

  for (const std::shared_ptr<Log>& child : children) log.Forget(child);
  EXPECT_EQ(log.charged_bytes(), 0u);
}

TEST(EventLogTogether, NothingYieldsAtTheLimitAndOnePagePastItDoes) {
  constexpr size_t kLimit = 8 * LogMemory::kPageBytes;
  EventLog log({.agent = "test", .logs_bytes_max = kLimit});
  const auto quiet = *log.AddChild("quiet", {}, 1 << 20, 16384);
  const auto child = *log.AddChild("child", {}, 1 << 20, 16384);
  AppendMessage(log, *quiet, "1");
  const auto first_sequence = [&] {
    Asked asked;
    asked.children = {child};
    asked.observation.mutable_start()->set_earliest(true);
    Shown shown;
    TakeAll(**agent::Observe(log, std::move(asked)), shown);
    return shown.events.front().sequence();
  };
  size_t charged_before = 0;
  do {
    charged_before = log.charged_bytes();
    AppendMessage(log, *child, std::string(500, '1'));
    ASSERT_LE(log.charged_bytes(), kLimit);
  } while (first_sequence() == 2);
  EXPECT_EQ(charged_before, kLimit) << "all pages were used before one was given back";
}

TEST(EventLogTogether, ManyIdleLogsCostAPageEach) {
  EventLog log({.agent = "test", .logs_bytes_max = 64 << 20});
  std::vector<std::shared_ptr<Log>> children;
  for (int i = 0; i < 5000; ++i) {
    children.push_back(*log.AddChild(std::to_string(i), {}, 4 << 20, 16384));
    AppendMessage(log, *children.back(), "1");
  }
  EXPECT_EQ(log.charged_bytes(), 5000u * LogMemory::kPageBytes);
  Asked asked;
  asked.observation.mutable_start()->set_earliest(true);
  Shown shown;
  auto observation = agent::Observe(log, std::move(asked));
  TakeAll(**observation, shown);
  EXPECT_EQ(shown.events.size(), 5000u);
  EXPECT_EQ(shown.gaps.size(), 0u);
}

TEST(EventLogTogether, LogsOfOneSizeGiveInTurn) {
  EventLog log({.agent = "test", .logs_bytes_max = 1 << 20});
  const std::string json(200, '1');
  std::vector<std::shared_ptr<Log>> children;
  for (int i = 0; i < 64; ++i) {
    children.push_back(*log.AddChild(std::to_string(i), {}, 1 << 20, 16384));
  }
  for (int k = 0; k < 400; ++k) {
    for (const auto& child : children) AppendMessage(log, *child, json);
  }
  Asked asked;
  asked.observation.mutable_start()->set_earliest(true);
  Shown shown;
  auto observation = agent::Observe(log, std::move(asked));
  TakeAll(**observation, shown);
  std::vector<int> events(64);
  for (const v1::Event& event : shown.events) events[std::stoi(event.child())] += 1;
  for (const int count : events) EXPECT_GT(count, 10);
}

}  // namespace
}  // namespace deka::agent
