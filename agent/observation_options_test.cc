// What an observation may ask for besides kinds and directions: content, a time to begin at, the
// size of payloads, a rate, and what happens when it is slow.
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "agent/event_log.h"
#include "agent/testing.h"
#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ipc/error.h"

namespace deka::agent {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Next = Observation::Next;

class ObservationOptionsTest : public ::testing::Test {
 protected:
  std::shared_ptr<Log> AddChild(std::string id, size_t bytes_max = 1 << 20,
                                size_t events_max = 16384) {
    absl::StatusOr<std::shared_ptr<Log>> child =
        log_.AddChild(std::move(id), {}, bytes_max, events_max);
    EXPECT_TRUE(child.ok()) << child.status();
    return *child;
  }

  std::unique_ptr<Observation> Observe(const v1::Observation& observation) {
    auto result = agent::Observe(log_, {.observation = observation});
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : nullptr;
  }

  // All that there is.
  Shown ShownBy(const v1::Observation& observation) {
    Shown shown;
    EXPECT_EQ(TakeAll(*Observe(observation), shown), Next::kWait);
    return shown;
  }

  EventLog log_{{.agent = "test"}};
};

v1::Observation Earliest() {
  v1::Observation observation;
  observation.mutable_start()->set_earliest(true);
  return observation;
}

void AddWhere(v1::Observation& observation, std::string pointer,
              std::optional<std::string> equals = std::nullopt) {
  v1::ContentFilter& where = *observation.add_where();
  where.set_pointer(std::move(pointer));
  if (equals) where.set_equals(*std::move(equals));
}

std::string RefusedField(const v1::Observation& observation) {
  const absl::Status status = ObservationSpec::Parse(observation, false).status();
  EXPECT_EQ(ipc::ReasonOf(status), ipc::Reason::kInvalidArgument) << status;
  return ipc::MetadataOf(status, "field").value_or("");
}

// --- Content. ---

TEST_F(ObservationOptionsTest, ContentThatExistsOrEquals) {
  const auto a = AddChild("a");
  AppendMessage(log_, *a, R"({"id":1,"ok":true})");
  AppendMessage(log_, *a, R"({"id":2})", v1::DIRECTION_TO_CHILD);
  AppendMessage(log_, *a, R"([1,2])");
  AppendMessage(log_, *a, R"({"ok":false,"id":1.0})");

  v1::Observation exists = Earliest();
  AddWhere(exists, "/ok");
  EXPECT_THAT(ShownBy(exists).payloads(),
              ElementsAre(R"({"id":1,"ok":true})", R"({"ok":false,"id":1.0})"));

  v1::Observation equals = Earliest();
  AddWhere(equals, "/id", "1");
  EXPECT_THAT(ShownBy(equals).payloads(), SizeIs(2));
  AddWhere(equals, "/ok", "false");
  EXPECT_THAT(ShownBy(equals).payloads(), ElementsAre(R"({"ok":false,"id":1.0})"));

  v1::Observation item = Earliest();
  AddWhere(item, "/1", "2");
  item.set_direction(v1::DIRECTION_FROM_CHILD);
  EXPECT_THAT(ShownBy(item).payloads(), ElementsAre("[1,2]"));
}

TEST_F(ObservationOptionsTest, ContentConcernsMessagesOnly) {
  const auto a = AddChild("a");
  AppendMessage(log_, *a, "1");
  AppendKind(log_, *a, v1::Event::kClosed);
  v1::Observation observation = Earliest();
  AddWhere(observation, "/nothing");
  EXPECT_THAT(ShownBy(observation).events, SizeIs(1));
  observation.add_kinds(v1::EVENT_KIND_MESSAGE);
  EXPECT_THAT(ShownBy(observation).events, IsEmpty());
}

TEST_F(ObservationOptionsTest, TheLastThatMatchByContent) {
  const auto a = AddChild("a"), b = AddChild("b");
  for (int i = 1; i <= 20; ++i) {
    AppendMessage(log_, i % 3 ? *a : *b, fmt::format(R"({{"n":{},"even":{}}})", i, i % 2 == 0));
  }
  v1::Observation observation;
  observation.mutable_start()->set_last(3);
  AddWhere(observation, "/even", "true");
  const Shown shown = ShownBy(observation);
  EXPECT_THAT(shown.payloads(), ElementsAre(R"({"n":16,"even":true})", R"({"n":18,"even":true})",
                                            R"({"n":20,"even":true})"));
  EXPECT_EQ(shown.attached.start().sequence(), 15);
}

TEST_F(ObservationOptionsTest, ContentOfLargeMessages) {
  const auto a = AddChild("a", 8 << 20);
  const std::string big(300'000, 'x');
  AppendMessage(log_, *a, fmt::format(R"({{"text":"{}","last":1}})", big));
  AppendMessage(log_, *a, fmt::format(R"({{"text":"{}","last":2}})", big));
  for (const bool last : {false, true}) {
    v1::Observation observation = Earliest();
    if (last) observation.mutable_start()->set_last(5);
    AddWhere(observation, "/last", "2");
    const Shown shown = ShownBy(observation);
    ASSERT_THAT(shown.events, SizeIs(1));
    EXPECT_EQ(shown.events[0].sequence(), 2);
    EXPECT_EQ(shown.events[0].json().size(), big.size() + 20);
  }
}

TEST_F(ObservationOptionsTest, BadContentFilters) {
  v1::Observation bad_pointer;
  AddWhere(bad_pointer, "/ok");
  AddWhere(bad_pointer, "no/slash");
  EXPECT_EQ(RefusedField(bad_pointer), "observation.where[1]");
  v1::Observation bad_value;
  AddWhere(bad_value, "/ok", "{");
  EXPECT_EQ(RefusedField(bad_value), "observation.where[0]");

  v1::Observation many;
  for (int i = 0; i < 16; ++i) AddWhere(many, "/a");
  EXPECT_TRUE(ObservationSpec::Parse(many, false).ok());
  AddWhere(many, "/a");
  EXPECT_EQ(RefusedField(many), "observation.where");
}

// An observer that finds nothing takes its turns: no call to it is long.
TEST_F(ObservationOptionsTest, WorkIsDoneInTurns) {
  const auto a = AddChild("a", 4 << 20, 16384);
  const std::string message = fmt::format(R"({{"text":"{}"}})", std::string(150, 'x'));
  for (int i = 0; i < 10'000; ++i) StageMessage(log_, *a, message);
  log_.Commit();
  v1::Observation none = Earliest();
  AddWhere(none, "/nothing");
  v1::Observation last;
  last.mutable_start()->set_last(1);
  AddWhere(last, "/nothing");
  for (const v1::Observation& observation : {none, last}) {
    const auto observer = Observe(observation);
    Response response;
    int turns = 0, responses = 0;
    for (Next next = observer->TakeNext(response); next != Next::kWait;
         next = observer->TakeNext(response)) {
      (next == Next::kBusy ? turns : responses) += 1;
    }
    EXPECT_GE(turns, 3);
    EXPECT_EQ(responses, 2);
    EXPECT_EQ(observer->cursor().sequence(), 10'000);
  }
}

// --- Time. ---

int64_t TimeUs(const v1::Event& event) {
  return event.time().seconds() * 1'000'000 + event.time().nanos() / 1000;
}

v1::Observation Since(int64_t time_us) {
  v1::Observation observation;
  observation.mutable_start()->mutable_since()->set_seconds(time_us / 1'000'000);
  observation.mutable_start()->mutable_since()->set_nanos(
      static_cast<int32_t>(time_us % 1'000'000 * 1000));
  return observation;
}

// Appends until the log's clock has moved.
void AppendLater(EventLog& log, Log& child, int64_t& count) {
  using std::chrono::steady_clock;
  const auto begin = steady_clock::now();
  while (steady_clock::now() - begin < std::chrono::microseconds(20)) {
  }
  AppendMessage(log, child, std::to_string(++count));
}

TEST_F(ObservationOptionsTest, BeginsWithTheFirstEventThatIsNotOlder) {
  const auto a = AddChild("a"), b = AddChild("b");
  int64_t count = 0;
  for (int i = 0; i < 40; ++i) AppendLater(log_, i % 4 ? *a : *b, count);
  const Shown all = ShownBy(Earliest());
  ASSERT_THAT(all.events, SizeIs(40));
  for (const v1::Event& first : all.events) {
    const Shown shown = ShownBy(Since(TimeUs(first)));
    ASSERT_THAT(shown.gaps, IsEmpty());
    ASSERT_EQ(static_cast<int64_t>(shown.events.size()), 41 - first.sequence());
    EXPECT_EQ(shown.events.front().sequence(), first.sequence());
    EXPECT_EQ(shown.attached.start().sequence(), first.sequence() - 1);
    // One microsecond later it is older.
    EXPECT_EQ(static_cast<int64_t>(ShownBy(Since(TimeUs(first) + 1)).events.size()),
              40 - first.sequence());
  }
  EXPECT_THAT(ShownBy(Since(0)).events, SizeIs(40));
  EXPECT_THAT(ShownBy(Since(253'402'300'799'000'000)).events, IsEmpty());
}

TEST_F(ObservationOptionsTest, WhatIsGoneOfThatTimeIsAGap) {
  const auto a = AddChild("a", 1 << 20, 4), b = AddChild("b");
  int64_t count = 0;
  AppendLater(log_, *b, count);
  std::vector<int64_t> times;
  for (int i = 0; i < 6; ++i) {
    AppendLater(log_, *a, count);
    Shown last;
    v1::Observation one;
    one.mutable_start()->set_last(1);
    times.push_back(TimeUs(ShownBy(one).events.at(0)));
  }
  // Events 1 and 2 of `a` are gone. From the time of the third on nothing is missing.
  EXPECT_THAT(ShownBy(Since(times[2])).gaps, IsEmpty());
  EXPECT_THAT(ShownBy(Since(times[2])).payloads(), ElementsAre("4", "5", "6", "7"));
  const Shown shown = ShownBy(Since(times[1]));
  ASSERT_THAT(shown.gaps, SizeIs(1));
  EXPECT_EQ(shown.gaps[0].child(), "a");
  EXPECT_EQ(shown.gaps[0].to_child_sequence(), 2);
  EXPECT_EQ(shown.gaps[0].to_sequence(), 3);
  EXPECT_THAT(shown.payloads(), ElementsAre("4", "5", "6", "7"));

  v1::Observation strict = Since(times[1]);
  strict.set_fail_on_gap(true);
  const auto observer = Observe(strict);
  Shown refused;
  EXPECT_EQ(TakeAll(*observer, refused), Next::kEnd);
  EXPECT_EQ(ipc::ReasonOf(observer->status()), ipc::Reason::kCursorExpired);

  // A child that is forgotten with all of that time.
  log_.Forget(b);
  EXPECT_THAT(ShownBy(Since(times[2])).gaps, IsEmpty());
  const Shown before = ShownBy(Since(0));
  ASSERT_THAT(before.gaps, SizeIs(2));
  EXPECT_TRUE(before.gaps[0].inexact());
}

// Who is ended before its start is found was shown nothing.
TEST_F(ObservationOptionsTest, AnEndBeforeTheStartIsFound) {
  const auto a = AddChild("a");
  for (int i = 0; i < 5000; ++i) StageMessage(log_, *a, R"({"ok":true})");
  log_.Commit();
  v1::Observation last;
  last.mutable_start()->set_last(4000);
  AddWhere(last, "/ok");
  for (const v1::Observation& observation : {Since(0), last}) {
    const auto observer = Observe(observation);
    EXPECT_EQ(observer->cursor().sequence(), 0);
    observer->End(v1::Fin::REASON_DURATION);
    Shown shown;
    EXPECT_EQ(TakeAll(*observer, shown), Next::kEnd);
    EXPECT_THAT(shown.events, IsEmpty());
    EXPECT_EQ(shown.fin.cursor().sequence(), shown.attached.start().sequence());
    EXPECT_LE(shown.fin.cursor().sequence(), 1000);
  }
}

// What a response keeps alive is in proportion to it.
TEST_F(ObservationOptionsTest, ASmallPartOfALargeEventIsCopied) {
  const auto a = AddChild("a", 4 << 20);
  AppendMessage(log_, *a, '"' + std::string(1 << 20, 'x') + '"');
  for (const int64_t bytes : {20'000, 500'000}) {
    v1::Observation observation = Earliest();
    observation.set_payload_bytes_max(bytes);
    const auto observer = Observe(observation);
    Response response;
    while (observer->TakeNext(response) != Next::kWait && response.bytes() < 20'000) {
    }
    EXPECT_GT(response.bytes(), 20'000u);
    bool shares = false;
    for (const Response::Piece& piece : response.pieces()) shares |= piece.owner != nullptr;
    EXPECT_EQ(shares, bytes == 500'000);
  }
}

TEST_F(ObservationOptionsTest, BadTimes) {
  v1::Observation observation;
  observation.mutable_start()->mutable_since()->set_nanos(1'000'000'000);
  EXPECT_EQ(RefusedField(observation), "observation.start.since");
  observation.mutable_start()->mutable_since()->set_nanos(0);
  observation.mutable_start()->mutable_since()->set_seconds(253'402'300'800);
  EXPECT_EQ(RefusedField(observation), "observation.start.since");
}

// --- Payload. ---

TEST_F(ObservationOptionsTest, PayloadsAreCut) {
  const auto a = AddChild("a", 8 << 20);
  const std::string text = R"("abcdefgäöü")";
  AppendMessage(log_, *a, text);
  AppendMessage(log_, *a, "1");
  const std::string large = '"' + std::string(200'000, 'y') + '"';
  AppendMessage(log_, *a, large);
  const auto payloads = [&](int64_t bytes_max) {
    v1::Observation observation = Earliest();
    observation.set_payload_bytes_max(bytes_max);
    const Shown shown = ShownBy(observation);
    EXPECT_THAT(shown.gaps, IsEmpty());
    for (const v1::Event& event : shown.events) EXPECT_TRUE(event.has_json());
    EXPECT_EQ(shown.events.at(0).from_child().size_bytes(), static_cast<int64_t>(text.size()));
    EXPECT_EQ(shown.events.at(2).from_child().size_bytes(), static_cast<int64_t>(large.size()));
    return shown.payloads();
  };
  EXPECT_THAT(payloads(0), ElementsAre("", "", ""));
  EXPECT_THAT(payloads(1), ElementsAre("\"", "1", "\""));
  EXPECT_THAT(payloads(9), ElementsAre("\"abcdefg", "1", large.substr(0, 9)));
  EXPECT_THAT(payloads(10), ElementsAre("\"abcdefgä", "1", large.substr(0, 10)));
  EXPECT_THAT(payloads(100'000), ElementsAre(text, "1", large.substr(0, 100'000)));
  EXPECT_THAT(payloads(1'000'000), ElementsAre(text, "1", large));

  v1::Observation observation;
  observation.set_payload_bytes_max(-1);
  EXPECT_EQ(RefusedField(observation), "observation.payload_bytes_max");
}

// --- Rate. ---

TEST_F(ObservationOptionsTest, ARateLeavesOutAndSaysWhat) {
  const auto a = AddChild("a"), b = AddChild("b");
  v1::Observation observation;
  observation.set_events_per_second_max(3);
  const auto observer = Observe(observation);
  Shown shown;
  EXPECT_EQ(TakeAll(*observer, shown), Next::kWait);
  EXPECT_EQ(observer->time(), std::chrono::steady_clock::time_point::max());
  for (int i = 1; i <= 10; ++i) AppendMessage(log_, i % 2 ? *a : *b, std::to_string(i));
  EXPECT_EQ(TakeAll(*observer, shown), Next::kWait);
  EXPECT_THAT(shown.payloads(), ElementsAre("1", "2", "3"));
  EXPECT_THAT(shown.gaps, IsEmpty());
  // Until it is told, what was left out is still to come.
  EXPECT_EQ(observer->cursor().sequence(), 3);

  const auto time = observer->time();
  EXPECT_LE(time, std::chrono::steady_clock::now() + std::chrono::seconds(1));
  while (shown.gaps.empty()) {
    const bool is_time = std::chrono::steady_clock::now() >= time;
    EXPECT_EQ(TakeAll(*observer, shown), Next::kWait);
    ASSERT_TRUE(!is_time || !shown.gaps.empty());
  }
  ASSERT_THAT(shown.gaps, SizeIs(2));
  EXPECT_EQ(shown.gaps[0].child(), "a");
  EXPECT_EQ(shown.gaps[0].from_child_sequence(), 3);
  EXPECT_EQ(shown.gaps[0].to_child_sequence(), 5);
  EXPECT_EQ(shown.gaps[0].to_sequence(), 9);
  EXPECT_EQ(shown.gaps[0].reason(), v1::Gap::REASON_RATE);
  EXPECT_EQ(shown.gaps[1].child(), "b");
  EXPECT_EQ(shown.gaps[1].from_child_sequence(), 2);
  EXPECT_EQ(shown.gaps[1].to_child_sequence(), 5);
  EXPECT_EQ(observer->cursor().sequence(), 10);
  EXPECT_EQ(observer->time(), std::chrono::steady_clock::time_point::max());

  // A new second begins with the next event.
  for (int i = 11; i <= 13; ++i) AppendMessage(log_, *a, std::to_string(i));
  EXPECT_EQ(TakeAll(*observer, shown), Next::kWait);
  EXPECT_THAT(shown.payloads(), ElementsAre("1", "2", "3", "11", "12", "13"));
  EXPECT_THAT(shown.gaps, SizeIs(2));
}

TEST_F(ObservationOptionsTest, ARateTellsGapsBeforeItsEndAndWithoutAnError) {
  const auto a = AddChild("a");
  v1::Observation observation = Earliest();
  observation.set_events_per_second_max(1);
  observation.set_fail_on_gap(true);
  for (int i = 1; i <= 3; ++i) AppendMessage(log_, *a, std::to_string(i));
  const auto observer = Observe(observation);
  Shown shown;
  EXPECT_EQ(TakeAll(*observer, shown), Next::kWait);
  observer->End(v1::Fin::REASON_HALF_CLOSED);
  EXPECT_EQ(TakeAll(*observer, shown), Next::kEnd);
  EXPECT_TRUE(observer->status().ok());
  EXPECT_THAT(shown.payloads(), ElementsAre("1"));
  ASSERT_THAT(shown.gaps, SizeIs(1));
  EXPECT_EQ(shown.gaps[0].to_child_sequence(), 3);
  EXPECT_EQ(shown.fin.cursor().sequence(), 3);
}

// What a rate leaves out and what the log evicts meet in one child: no event is in two gaps.
TEST_F(ObservationOptionsTest, ARateAndALogThatTurnsOver) {
  const auto a = AddChild("a", 1 << 20, 8);
  v1::Observation observation;
  observation.set_events_per_second_max(2);
  const auto observer = Observe(observation);
  Shown shown;
  EXPECT_EQ(TakeAll(*observer, shown), Next::kWait);
  for (int i = 1; i <= 5; ++i) AppendMessage(log_, *a, std::to_string(i));
  EXPECT_EQ(TakeAll(*observer, shown), Next::kWait);
  for (int i = 6; i <= 40; ++i) AppendMessage(log_, *a, std::to_string(i));
  observer->End(v1::Fin::REASON_AGENT_STOPPING);
  EXPECT_EQ(TakeAll(*observer, shown), Next::kEnd);
  int64_t next = 1;
  size_t event = 0;
  for (const v1::ObserveResponse& response : shown.responses) {
    for (const v1::Event& shown_event : response.batch().events()) {
      EXPECT_EQ(shown_event.child_sequence(), next++);
      ++event;
    }
    if (!response.has_gap()) continue;
    EXPECT_EQ(response.gap().from_child_sequence(), next);
    next = response.gap().to_child_sequence() + 1;
  }
  EXPECT_EQ(next, 41);
  EXPECT_THAT(shown.gaps, SizeIs(3));
}

// --- Slow. ---

TEST_F(ObservationOptionsTest, DisconnectsAnObserverThatIsTooSlow) {
  const auto a = AddChild("a", 1 << 20, 4);
  v1::Observation observation;
  observation.set_when_slow(v1::SLOW_POLICY_DISCONNECT);
  const auto observer = Observe(observation);
  Shown shown;
  AppendMessage(log_, *a, "1");
  EXPECT_EQ(TakeAll(*observer, shown), Next::kWait);
  for (int i = 2; i <= 20; ++i) AppendMessage(log_, *a, std::to_string(i));
  EXPECT_EQ(TakeAll(*observer, shown), Next::kEnd);
  EXPECT_THAT(shown.payloads(), ElementsAre("1"));
  EXPECT_EQ(ipc::ReasonOf(observer->status()), ipc::Reason::kTooSlow);
  EXPECT_EQ(ipc::MetadataOf(observer->status(), "sequence"), "1");

  // Resumed, it begins with the gap, and goes on.
  v1::Observation resumed = observation;
  *resumed.mutable_start()->mutable_after() = observer->cursor();
  const Shown rest = ShownBy(resumed);
  EXPECT_THAT(rest.gaps, SizeIs(1));
  EXPECT_FALSE(rest.payloads().empty());
}

class LosslessTest : public ObservationOptionsTest {
 protected:
  static v1::Observation Lossless(std::chrono::milliseconds hold_max = std::chrono::seconds(5)) {
    v1::Observation observation;
    observation.set_when_slow(v1::SLOW_POLICY_BLOCK);
    observation.mutable_hold_max()->set_seconds(hold_max.count() / 1000);
    observation.mutable_hold_max()->set_nanos(
        static_cast<int32_t>(hold_max.count() % 1000 * 1'000'000));
    return observation;
  }

  // Records until it must wait. How many.
  int Fill(Log& child) {
    int count = 0;
    while (!log_.IsFull(child, {.bytes = 1000, .events = 10})) {
      AppendMessage(log_, child, std::to_string(++count_));
      ++count;
      if (count > 100'000) break;
    }
    return count;
  }

  int count_ = 0;
};

TEST_F(LosslessTest, NothingIsFullWithoutAnObserverThatAsksForIt) {
  const auto a = AddChild("a", 1 << 20, 20);
  const auto observer = Observe(Earliest());
  for (int i = 0; i < 100; ++i) AppendMessage(log_, *a, "1");
  EXPECT_FALSE(log_.IsFull(*a, {.bytes = 1 << 20, .events = 20}));
}

TEST_F(LosslessTest, ALogIsFullOfWhatIsUnreadAndNothingIsLost) {
  const auto a = AddChild("a", 1 << 20, 100), b = AddChild("b", 64 << 10, 16384);
  const auto observer = Observe(Lossless());
  Shown shown;
  EXPECT_EQ(TakeAll(*observer, shown), Next::kWait);
  for (int round = 0; round < 10; ++round) {
    EXPECT_EQ(Fill(*a), 91);
    const int bytes_bound = Fill(*b);
    EXPECT_GT(bytes_bound, 300);
    EXPECT_LT(bytes_bound, 1500);
    bool read = false;
    log_.OnRead(*a, [&] { read = true; });
    EXPECT_EQ(TakeAll(*observer, shown), Next::kWait);
    EXPECT_TRUE(read);
    EXPECT_FALSE(log_.IsFull(*a, {.bytes = 1000, .events = 10}));
  }
  EXPECT_THAT(shown.gaps, IsEmpty());
  EXPECT_EQ(static_cast<int>(shown.events.size()), count_);
}

TEST_F(LosslessTest, StagedEventsCount) {
  const auto a = AddChild("a", 1 << 20, 100);
  const auto observer = Observe(Lossless());
  int count = 0;
  while (!log_.IsFull(*a, {.bytes = 0, .events = 1})) {
    StageMessage(log_, *a, "1");
    ASSERT_LE(++count, 100);
  }
  EXPECT_EQ(count, 100);
  EXPECT_TRUE(log_.Lapse(*a, std::chrono::steady_clock::now()).has_value());
  log_.Commit();
  Shown shown;
  EXPECT_EQ(TakeAll(*observer, shown), Next::kWait);
  EXPECT_THAT(shown.events, SizeIs(100));
  EXPECT_THAT(shown.gaps, IsEmpty());
}

TEST_F(LosslessTest, WhoBeginsAmongStagedEventsLosesNoneOfThem) {
  const auto a = AddChild("a", 1 << 20, 100);
  for (int i = 0; i < 95; ++i) StageMessage(log_, *a, "1");
  const auto observer = Observe(Lossless());
  int count = 0;
  while (!log_.IsFull(*a, {.bytes = 0, .events = 60})) {
    StageMessage(log_, *a, "2");
    ASSERT_LE(++count, 100);
  }
  // What cannot wait.
  for (int i = 0; i < 40; ++i, ++count) StageMessage(log_, *a, "3");
  log_.Commit();
  Shown shown;
  EXPECT_EQ(TakeAll(*observer, shown), Next::kWait);
  EXPECT_THAT(shown.gaps, IsEmpty());
  ASSERT_FALSE(shown.events.empty());
  EXPECT_EQ(shown.events.front().child_sequence(), shown.attached.head() + 1);
  EXPECT_EQ(shown.events.back().child_sequence(), 95 + count);
}

TEST_F(LosslessTest, ChildrenThatComeLaterAreHeldToo) {
  const auto observer = Observe(Lossless());
  const auto a = AddChild("a", 1 << 20, 50);
  EXPECT_EQ(Fill(*a), 41);
}

TEST_F(LosslessTest, AHoldThatLastsTooLongEndsWithAGapThatSaysSo) {
  const auto a = AddChild("a", 1 << 20, 50);
  const auto observer = Observe(Lossless(std::chrono::milliseconds(200)));
  Shown shown;
  EXPECT_EQ(TakeAll(*observer, shown), Next::kWait);
  Fill(*a);
  const auto now = std::chrono::steady_clock::now();
  const auto limit = log_.Lapse(*a, now);
  ASSERT_TRUE(limit.has_value());
  EXPECT_GT(*limit, now);
  EXPECT_LE(*limit, now + std::chrono::milliseconds(200));
  EXPECT_TRUE(log_.IsFull(*a, {.bytes = 1000, .events = 10}));
  EXPECT_FALSE(log_.Lapse(*a, *limit).has_value());
  EXPECT_FALSE(log_.IsFull(*a, {.bytes = 1000, .events = 10}));
  for (int i = 0; i < 30; ++i) AppendMessage(log_, *a, "2");
  EXPECT_EQ(TakeAll(*observer, shown), Next::kWait);
  ASSERT_THAT(shown.gaps, SizeIs(1));
  EXPECT_EQ(shown.gaps[0].reason(), v1::Gap::REASON_BLOCK_TIMEOUT);
  EXPECT_EQ(shown.gaps[0].from_child_sequence(), 1);
  EXPECT_EQ(shown.events.front().child_sequence(), shown.gaps[0].to_child_sequence() + 1);
  // It has caught up: nothing of it is lost again.
  Fill(*a);
  EXPECT_TRUE(log_.IsFull(*a, {.bytes = 1000, .events = 10}));
}

TEST_F(LosslessTest, WhoIsGoneHoldsNobody) {
  const auto a = AddChild("a", 1 << 20, 50);
  auto observer = Observe(Lossless());
  Fill(*a);
  bool read = false;
  log_.OnRead(*a, [&] { read = true; });
  observer.reset();
  EXPECT_TRUE(read);
  EXPECT_FALSE(log_.IsFull(*a, {.bytes = 1000, .events = 10}));
}

TEST_F(LosslessTest, EveryHoldEndsAtAStop) {
  const auto a = AddChild("a", 1 << 20, 50);
  const auto observer = Observe(Lossless());
  Fill(*a);
  bool read = false;
  log_.OnRead(*a, [&] { read = true; });
  log_.EndHolds();
  EXPECT_TRUE(read);
  EXPECT_FALSE(log_.IsFull(*a, {.bytes = 1000, .events = 10}));
}

TEST_F(LosslessTest, BadHolds) {
  v1::Observation observation = Lossless(std::chrono::milliseconds(8000));
  EXPECT_TRUE(ObservationSpec::Parse(observation, false).ok());
  EXPECT_EQ(RefusedField(Lossless(std::chrono::milliseconds(8001))), "observation.hold_max");
  EXPECT_EQ(RefusedField(Lossless(std::chrono::milliseconds(0))), "observation.hold_max");
  observation.set_when_slow(v1::SLOW_POLICY_GAP);
  EXPECT_EQ(RefusedField(observation), "observation.hold_max");
  observation.clear_hold_max();
  observation.set_when_slow(static_cast<v1::SlowPolicy>(17));
  EXPECT_EQ(RefusedField(observation), "observation.when_slow");
}

// --- Sharing. ---

// Observers at the same place share the bytes of long runs.
TEST_F(ObservationOptionsTest, BytesAreShared) {
  const auto a = AddChild("a", 4 << 20);
  const std::string message = '"' + std::string(1000, 'x') + '"';
  for (int i = 0; i < 200; ++i) AppendMessage(log_, *a, message);
  std::vector<std::unique_ptr<Observation>> observers;
  std::vector<Response> responses(8);
  for (Response& response : responses) {
    observers.push_back(Observe(Earliest()));
    while (observers.back()->TakeNext(response) == Next::kResponse && response.bytes() < 10'000) {
    }
  }
  for (const Response& response : responses) {
    EXPECT_EQ(response.ToString(), responses[0].ToString());
    ASSERT_EQ(response.pieces().size(), responses[0].pieces().size());
    size_t shared_bytes = 0;
    for (size_t i = 0; i < response.pieces().size(); ++i) {
      EXPECT_EQ(response.pieces()[i].shared, responses[0].pieces()[i].shared);
      if (response.pieces()[i].owner != nullptr) shared_bytes += response.pieces()[i].bytes;
    }
    EXPECT_GT(shared_bytes, response.bytes() * 9 / 10);
  }
}

}  // namespace
}  // namespace deka::agent
