// What an Observation of an EventLog shows: each promise by hand, then all of them over random
// histories, which a checker compares with what was written.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "agent/event_log.h"
#include "agent/observation.h"
#include "agent/testing.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ipc/error.h"
#include "ipc/mutex.h"

namespace deka::agent {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Next = Observation::Next;

constexpr size_t kBig = 8 << 20;
constexpr size_t kMany = 1 << 20;

// --- By hand. ---

class LogObservationTest : public ::testing::Test {
 protected:
  std::shared_ptr<Log> AddChild(std::string id, size_t bytes_max = kBig,
                                size_t events_max = kMany) {
    auto child = log_.AddChild(std::move(id), {}, bytes_max, events_max);
    EXPECT_TRUE(child.ok()) << child.status();
    return *child;
  }

  // Messages "1" to "count", one after the other.
  void Append(Log& child, int first, int last) {
    for (int i = first; i <= last; ++i) AppendMessage(log_, child, std::to_string(i));
  }

  template <typename Fill>
  std::unique_ptr<Observation> Observe(Fill fill) {
    Asked asked;
    fill(asked);
    auto observation = agent::Observe(log_, std::move(asked));
    EXPECT_TRUE(observation.ok()) << observation.status();
    return observation.ok() ? *std::move(observation) : nullptr;
  }

  std::unique_ptr<Observation> Earliest() {
    return Observe([](Asked& asked) { StartEarliest(asked); });
  }

  static void StartEarliest(Asked& asked) { asked.observation.mutable_start()->set_earliest(true); }

  void StartAfter(Asked& asked, int64_t sequence) {
    v1::Cursor& after = *asked.observation.mutable_start()->mutable_after();
    after.set_agent(log_.agent());
    after.set_epoch(log_.epoch());
    after.set_sequence(sequence);
  }

  template <typename Fill>
  ipc::Reason Refused(Fill fill) {
    Asked asked;
    fill(asked);
    const auto observation = agent::Observe(log_, std::move(asked));
    EXPECT_FALSE(observation.ok());
    return ipc::ReasonOf(observation.status()).value_or(ipc::Reason::kInternal);
  }

  // What a new observation shows.
  static Shown Show(Observation& observation, Next next = Next::kWait) {
    Shown shown;
    EXPECT_EQ(TakeAll(observation, shown), next);
    return shown;
  }

  // What one shows that has begun before.
  static Shown ShowMore(Observation& observation, Next next = Next::kWait) {
    Shown shown;
    shown.complete = true;
    EXPECT_EQ(TakeAll(observation, shown), next);
    return shown;
  }

  EventLog log_{{.agent = "test"}};
};

TEST_F(LogObservationTest, StartsWhereItIsAsked) {
  const auto a = AddChild("a"), b = AddChild("b");
  for (int i = 1; i <= 9; ++i) Append(i % 3 == 0 ? *b : *a, i, i);
  const auto payloads = [&](auto fill) { return Show(*Observe(fill)).payloads(); };
  const auto last = [](int64_t count) {
    return [count](Asked& asked) { asked.observation.mutable_start()->set_last(count); };
  };
  const auto after = [&](int64_t sequence) {
    return [this, sequence](Asked& asked) { StartAfter(asked, sequence); };
  };
  EXPECT_THAT(payloads([](Asked&) {}), IsEmpty());
  EXPECT_EQ(payloads(StartEarliest).size(), 9u);
  EXPECT_THAT(payloads(last(1)), ElementsAre("9"));
  EXPECT_THAT(payloads(last(4)), ElementsAre("6", "7", "8", "9"));
  EXPECT_EQ(payloads(last(9)).size(), 9u);
  EXPECT_EQ(payloads(last(10)).size(), 9u);
  EXPECT_EQ(payloads(after(0)).size(), 9u);
  EXPECT_THAT(payloads(after(7)), ElementsAre("8", "9"));
  EXPECT_THAT(payloads(after(9)), IsEmpty());
  // Of one child.
  EXPECT_THAT(payloads([&](Asked& asked) {
                asked.children = {b};
                last(2)(asked);
              }),
              ElementsAre("6", "9"));
  EXPECT_THAT(payloads([&](Asked& asked) {
                asked.children = {b};
                after(4)(asked);
              }),
              ElementsAre("6", "9"));
}

TEST_F(LogObservationTest, TheLastAreThoseThatFitTheFilter) {
  const auto a = AddChild("a");
  for (int i = 1; i <= 9; ++i) {
    AppendMessage(log_, *a, std::to_string(i),
                  i % 3 == 0 ? v1::DIRECTION_TO_CHILD : v1::DIRECTION_FROM_CHILD);
  }
  const auto observation = Observe([](Asked& asked) {
    asked.observation.mutable_start()->set_last(2);
    asked.observation.set_direction(v1::DIRECTION_TO_CHILD);
  });
  const Shown shown = Show(*observation);
  EXPECT_THAT(shown.payloads(), ElementsAre("6", "9"));
  EXPECT_EQ(shown.attached.start().sequence(), 5);
}

TEST_F(LogObservationTest, AttachedTellsWhatIsThere) {
  const auto a = AddChild("a", kBig, 4);
  EXPECT_EQ(Show(*Earliest()).attached.first_sequence(), 1);
  Append(*a, 1, 6);
  const auto observation = Observe([](Asked& asked) {
    asked.snapshot = {"", ""};
    v1::ObserveResponse piece;
    piece.mutable_snapshot()->add_children()->set_name("one");
    asked.snapshot[0] = piece.SerializeAsString();
    piece.mutable_snapshot()->mutable_children(0)->set_name("two");
    asked.snapshot[1] = piece.SerializeAsString();
  });
  Append(*a, 7, 7);
  const Shown shown = Show(*observation);
  EXPECT_EQ(shown.attached.agent(), "test");
  EXPECT_EQ(shown.attached.epoch(), log_.epoch());
  EXPECT_EQ(shown.attached.first_sequence(), 3);
  EXPECT_EQ(shown.attached.head(), 6);
  EXPECT_EQ(shown.attached.response_bytes_max(), 4 << 20);
  ASSERT_EQ(shown.responses.size(), 5u);
  EXPECT_EQ(shown.responses[3].snapshot_complete().head(), 6);
  ASSERT_EQ(shown.children.size(), 2u);
  EXPECT_EQ(shown.children[0].name(), "one");
  EXPECT_EQ(shown.children[1].name(), "two");
  EXPECT_THAT(shown.payloads(), ElementsAre("7"));
}

TEST_F(LogObservationTest, AGapStandsInItsPlaceAndIsExactWhateverTheFilter) {
  const auto chatty = AddChild("chatty", kBig, 4), quiet = AddChild("quiet");
  Append(*quiet, 1, 1);
  const auto all = Earliest();
  const auto filtered = Observe([](Asked& asked) {
    StartEarliest(asked);
    asked.observation.set_direction(v1::DIRECTION_TO_CHILD);
  });
  Append(*chatty, 2, 3);
  Append(*quiet, 4, 4);
  Append(*chatty, 5, 9);
  Append(*quiet, 10, 10);
  AppendMessage(log_, *chatty, "11", v1::DIRECTION_TO_CHILD);
  // Of chatty's 2, 3 and 5 to 9 and 11 the last four are left: 7, 8, 9, 11.
  for (Observation* const observation : {all.get(), filtered.get()}) {
    const Shown shown = Show(*observation);
    ASSERT_EQ(shown.gaps.size(), 1u);
    const v1::Gap& gap = shown.gaps[0];
    EXPECT_EQ(gap.child(), "chatty");
    EXPECT_EQ(gap.from_child_sequence(), 1);
    EXPECT_EQ(gap.to_child_sequence(), 4);
    EXPECT_EQ(gap.to_sequence(), 6);
    EXPECT_EQ(gap.reason(), v1::Gap::REASON_LOG_TURNED_OVER);
    EXPECT_FALSE(gap.inexact());
  }
}

TEST_F(LogObservationTest, EventsStandOnTheirSideOfAGap) {
  const auto chatty = AddChild("chatty", kBig, 2), quiet = AddChild("quiet");
  const auto observation = Earliest();
  Append(*quiet, 1, 1);
  Append(*chatty, 2, 3);
  Append(*quiet, 4, 4);
  Append(*chatty, 5, 5);
  Append(*quiet, 6, 6);
  // Missed are 2 and, with it, nothing else: 3 and 5 are left.
  const Shown shown = Show(*observation);
  EXPECT_THAT(shown.payloads(), ElementsAre("1", "3", "4", "5", "6"));
  std::vector<std::string> order;
  for (const v1::ObserveResponse& response : shown.responses) {
    if (response.has_gap()) order.push_back("gap " + std::to_string(response.gap().to_sequence()));
    for (const v1::Event& event : response.batch().events()) order.push_back(event.json());
  }
  EXPECT_THAT(order, ElementsAre("1", "gap 2", "3", "4", "5", "6"));
}

TEST_F(LogObservationTest, AGapWherePlacesAreResumedLeavesOutWhatACursorCannotTell) {
  const auto a = AddChild("a", kBig, 2), b = AddChild("b", kBig, 2);
  Append(*a, 1, 5);
  Append(*b, 6, 10);
  const Shown shown = Show(*Observe([&](Asked& asked) { StartAfter(asked, 2); }));
  ASSERT_EQ(shown.gaps.size(), 2u);
  for (const v1::Gap& gap : shown.gaps) {
    EXPECT_EQ(gap.to_child_sequence(), 3);
    EXPECT_EQ(gap.to_sequence(), gap.child() == "a" ? 3 : 8);
    // All of b lies behind the cursor, of a the first may have been seen.
    EXPECT_EQ(gap.has_from_child_sequence(), gap.child() == "b");
  }
  // They come first.
  EXPECT_TRUE(shown.responses[2].has_gap() && shown.responses[3].has_gap());
  EXPECT_THAT(shown.payloads(), ElementsAre("4", "5", "9", "10"));
  // After what was missed there is none.
  EXPECT_THAT(Show(*Observe([&](Asked& asked) { StartAfter(asked, 8); })).gaps, IsEmpty());
}

TEST_F(LogObservationTest, WhatWasNotReadOfAForgottenChildIsAGap) {
  const auto a = AddChild("a"), b = AddChild("b");
  Append(*a, 1, 2);
  const auto slow = Earliest();
  const auto read = Earliest();
  EXPECT_EQ(Show(*read).events.size(), 2u);
  Append(*a, 3, 4);
  Append(*b, 5, 5);
  const auto named = Observe([&](Asked& asked) {
    asked.children = {b};
    StartEarliest(asked);
  });
  log_.Forget(a);
  Shown shown = Show(*slow);
  ASSERT_EQ(shown.gaps.size(), 1u);
  EXPECT_EQ(shown.gaps[0].child(), "a");
  EXPECT_EQ(shown.gaps[0].from_child_sequence(), 1);
  EXPECT_EQ(shown.gaps[0].to_child_sequence(), 4);
  EXPECT_EQ(shown.gaps[0].to_sequence(), 4);
  EXPECT_EQ(shown.gaps[0].reason(), v1::Gap::REASON_CHILD_FORGOTTEN);
  EXPECT_THAT(shown.payloads(), ElementsAre("5"));
  shown = ShowMore(*read);
  ASSERT_EQ(shown.gaps.size(), 1u);
  EXPECT_EQ(shown.gaps[0].from_child_sequence(), 3);
  EXPECT_THAT(Show(*named).gaps, IsEmpty());
  // Who has read everything misses nothing.
  log_.Forget(b);
  EXPECT_THAT(ShowMore(*slow).gaps, IsEmpty());
  // A cursor of before cannot tell who was there.
  shown = Show(*Observe([&](Asked& asked) { StartAfter(asked, 2); }));
  ASSERT_EQ(shown.gaps.size(), 1u);
  EXPECT_TRUE(shown.gaps[0].inexact());
  EXPECT_EQ(shown.gaps[0].to_sequence(), 5);
  EXPECT_EQ(shown.gaps[0].reason(), v1::Gap::REASON_CHILD_FORGOTTEN);
  EXPECT_THAT(Show(*Observe([&](Asked& asked) { StartAfter(asked, 5); })).gaps, IsEmpty());
}

TEST_F(LogObservationTest, TooManyForgottenChildrenAreToldTogether) {
  constexpr int kToldOneByOne = 1024;
  for (const int count : {kToldOneByOne, kToldOneByOne + 1}) {
    const auto slow = Observe([](Asked&) {});
    int64_t newest = 0;
    for (int i = 0; i < count; ++i) {
      const auto child = AddChild(std::to_string(i), 4096);
      newest = AppendMessage(log_, *child, "1");
      log_.Forget(child);
    }
    const Shown shown = Show(*slow);
    const auto inexact = std::count_if(shown.gaps.begin(), shown.gaps.end(),
                                       [](const v1::Gap& gap) { return gap.inexact(); });
    EXPECT_EQ(inexact, count - kToldOneByOne);
    EXPECT_EQ(shown.gaps.size(), static_cast<size_t>(count));
    EXPECT_EQ(shown.gaps.back().to_sequence(), newest);
  }
}

TEST_F(LogObservationTest, ACursorOfAnotherLogIsToldOrRefused) {
  const auto a = AddChild("a");
  Append(*a, 1, 3);
  const auto other_epoch = [&](Asked& asked) {
    StartAfter(asked, 2);
    asked.observation.mutable_start()->mutable_after()->set_epoch(log_.epoch() - 1);
  };
  const Shown shown = Show(*Observe(other_epoch));
  ASSERT_EQ(shown.gaps.size(), 1u);
  EXPECT_TRUE(shown.gaps[0].inexact());
  EXPECT_EQ(shown.gaps[0].reason(), v1::Gap::REASON_OTHER_EPOCH);
  EXPECT_THAT(shown.payloads(), ElementsAre("1", "2", "3"));
  EXPECT_EQ(Refused([&](Asked& asked) {
              other_epoch(asked);
              asked.observation.set_fail_on_gap(true);
            }),
            ipc::Reason::kCursorOtherEpoch);
  EXPECT_EQ(Refused([&](Asked& asked) { StartAfter(asked, 4); }), ipc::Reason::kInvalidArgument);
  EXPECT_EQ(Refused([&](Asked& asked) {
              StartAfter(asked, 1);
              asked.observation.mutable_start()->mutable_after()->set_agent("other");
            }),
            ipc::Reason::kInvalidArgument);
}

TEST_F(LogObservationTest, FailsInsteadOfAGap) {
  const auto a = AddChild("a", kBig, 2);
  Append(*a, 1, 5);
  const auto after = [&](int64_t sequence) {
    return [this, sequence](Asked& asked) {
      StartAfter(asked, sequence);
      asked.observation.set_fail_on_gap(true);
    };
  };
  Asked asked;
  after(2)(asked);
  const absl::Status refused = agent::Observe(log_, std::move(asked)).status();
  EXPECT_EQ(ipc::ReasonOf(refused), ipc::Reason::kCursorExpired);
  EXPECT_EQ(ipc::MetadataOf(refused, "first_sequence"), "3");
  // What it says holds.
  const auto observation = Observe(after(3));
  EXPECT_THAT(Show(*observation).payloads(), ElementsAre("4", "5"));
  EXPECT_TRUE(observation->status().ok());
  Append(*a, 6, 10);
  EXPECT_THAT(ShowMore(*observation, Next::kEnd).events, IsEmpty());
  EXPECT_EQ(ipc::ReasonOf(observation->status()), ipc::Reason::kCursorExpired);
  EXPECT_EQ(ipc::MetadataOf(observation->status(), "first_sequence"), "8");
  EXPECT_EQ(observation->cursor().sequence(), 5);
}

TEST_F(LogObservationTest, AHeartbeatSaysHowFarItIsAndWhatWasMissed) {
  const auto a = AddChild("a", kBig, 8);
  const auto observation = Observe([](Asked& asked) {
    asked.observation.set_direction(v1::DIRECTION_TO_CHILD);
    asked.observation.mutable_heartbeat_interval()->set_seconds(7);
  });
  EXPECT_EQ(observation->heartbeat_interval(), std::chrono::seconds(7));
  const auto heartbeat = [&] {
    Response response;
    observation->TakeHeartbeat(response);
    v1::ObserveResponse shown;
    EXPECT_TRUE(shown.ParseFromString(response.ToString()));
    EXPECT_EQ(shown.heartbeat().cursor().epoch(), log_.epoch());
    return shown.heartbeat();
  };
  Show(*observation);
  Append(*a, 1, 3);
  EXPECT_EQ(heartbeat().cursor().sequence(), 0) << "not yet looked at";
  ShowMore(*observation);
  EXPECT_EQ(heartbeat().cursor().sequence(), 3);
  // While it waits, what does not fit the filter is passed over.
  int woken = 0;
  observation->OnReady([&] { ++woken; });
  Append(*a, 4, 20);
  EXPECT_EQ(woken, 0);
  EXPECT_EQ(heartbeat().cursor().sequence(), 20);
  EXPECT_EQ(heartbeat().dropped(), 0);
  AppendMessage(log_, *a, "21", v1::DIRECTION_TO_CHILD);
  EXPECT_EQ(woken, 1);
  EXPECT_EQ(ShowMore(*observation).events.size(), 1u);
  Append(*a, 22, 40);
  ShowMore(*observation);
  EXPECT_EQ(heartbeat().cursor().sequence(), 40);
  EXPECT_EQ(heartbeat().delivered(), 1);
  EXPECT_EQ(heartbeat().dropped(), 40 - 8 - 21);
}

TEST_F(LogObservationTest, EndsAfterSoManyEvents) {
  const auto a = AddChild("a");
  const auto observation = Observe([](Asked& asked) {
    StartEarliest(asked);
    asked.observation.set_events_max(4);
    asked.observation.set_direction(v1::DIRECTION_FROM_CHILD);
  });
  Append(*a, 1, 2);
  AppendMessage(log_, *a, "no", v1::DIRECTION_TO_CHILD);
  Append(*a, 3, 3);
  Shown shown;
  EXPECT_EQ(TakeAll(*observation, shown), Next::kWait);
  Append(*a, 4, 9);
  EXPECT_EQ(TakeAll(*observation, shown), Next::kEnd);
  EXPECT_THAT(shown.payloads(), ElementsAre("1", "2", "3", "4"));
  EXPECT_EQ(shown.fin.reason(), v1::Fin::REASON_EVENTS_MAX);
  EXPECT_EQ(shown.fin.cursor().sequence(), 5);
}

TEST_F(LogObservationTest, EndsWhenAllThatWereNamedHaveClosed) {
  const auto other = AddChild("other");
  for (const bool filtered : {false, true}) {
    SCOPED_TRACE(filtered);
    const auto a = AddChild("a"), b = AddChild("b");
    const auto until_closed = [&](Asked& asked) {
      asked.children = {a, b};
      asked.observation.set_until_closed(true);
      if (filtered) asked.observation.add_kinds(v1::EVENT_KIND_MESSAGE);
    };
    const auto observation = Observe(until_closed);
    Shown shown;
    Append(*a, 1, 1);
    AppendKind(log_, *a, v1::Event::kClosed);
    Append(*b, 2, 2);
    EXPECT_EQ(TakeAll(*observation, shown), Next::kWait);
    int woken = 0;
    observation->OnReady([&] { ++woken; });
    AppendKind(log_, *other, v1::Event::kClosed);
    EXPECT_EQ(woken, 0);
    AppendKind(log_, *b, v1::Event::kClosed);
    EXPECT_EQ(woken, 1) << "though `closed` may not fit the filter";
    EXPECT_EQ(TakeAll(*observation, shown), Next::kEnd);
    EXPECT_EQ(shown.fin.reason(), v1::Fin::REASON_CLOSED);
    EXPECT_EQ(shown.events.size(), filtered ? 2u : 4u);
    // Who comes when all is over is told so.
    EXPECT_EQ(Show(*Observe(until_closed), Next::kEnd).fin.reason(), v1::Fin::REASON_CLOSED);
  }
}

TEST_F(LogObservationTest, EndsAfterItsTime) {
  const auto a = AddChild("a");
  const auto observation =
      Observe([](Asked& asked) { asked.observation.mutable_duration()->set_nanos(1'000'000); });
  EXPECT_LE(observation->time(), std::chrono::steady_clock::now() + std::chrono::seconds(1));
  Append(*a, 1, 1);
  Shown shown;
  while (TakeAll(*observation, shown) == Next::kWait) {
  }
  EXPECT_GE(std::chrono::steady_clock::now(), observation->time());
  EXPECT_EQ(shown.fin.reason(), v1::Fin::REASON_DURATION);
  int woken = 0;
  observation->OnReady([&] { ++woken; });
  EXPECT_EQ(woken, 1);
  EXPECT_EQ(Earliest()->time(), std::chrono::steady_clock::time_point::max());
}

TEST_F(LogObservationTest, AnAgentThatStopsEndsThemAll) {
  const auto a = AddChild("a");
  const auto all = Earliest();
  const auto closing = Observe([&](Asked& asked) {
    asked.children = {a};
    asked.observation.set_until_closed(true);
  });
  const auto late = Earliest();
  Show(*all);
  Show(*closing);
  int woken = 0;
  all->OnReady([&] { ++woken; });
  closing->OnReady([&] { ++woken; });
  StageMessage(log_, *a, "1");
  log_.Stage(*a, {.kind_field = v1::Event::kClosed});
  log_.Close();
  EXPECT_EQ(woken, 2);
  Shown shown = ShowMore(*all, Next::kEnd);
  EXPECT_EQ(shown.events.size(), 2u);
  EXPECT_EQ(shown.fin.reason(), v1::Fin::REASON_AGENT_STOPPING);
  EXPECT_EQ(shown.fin.cursor().sequence(), 2);
  EXPECT_EQ(ShowMore(*closing, Next::kEnd).fin.reason(), v1::Fin::REASON_CLOSED);
  shown = Show(*late, Next::kEnd);
  EXPECT_EQ(shown.events.size(), 2u);
  EXPECT_EQ(shown.fin.reason(), v1::Fin::REASON_AGENT_STOPPING);
}

TEST_F(LogObservationTest, EndsAtOnceWithAnotherReason) {
  const auto a = AddChild("a");
  Append(*a, 1, 3);
  const auto observation = Earliest();
  int woken = 0;
  Show(*observation);
  observation->OnReady([&] { ++woken; });
  observation->End(v1::Fin::REASON_HALF_CLOSED);
  EXPECT_EQ(woken, 1);
  Append(*a, 4, 4);
  const Shown shown = ShowMore(*observation, Next::kEnd);
  EXPECT_THAT(shown.events, IsEmpty());
  EXPECT_EQ(shown.fin.reason(), v1::Fin::REASON_HALF_CLOSED);
  EXPECT_EQ(shown.fin.cursor().sequence(), 3);
  EXPECT_TRUE(observation->status().ok());
}

// --- Sizes. ---

std::vector<v1::EventBatch> Batches(const Shown& shown) {
  std::vector<v1::EventBatch> batches;
  for (const v1::ObserveResponse& response : shown.responses) {
    if (response.has_batch()) batches.push_back(response.batch());
  }
  return batches;
}

// Changes `size` until `measure(size)`, which is some bytes more, is `target`. What is measured has
// an event's time in it, so it may have a byte more or less each time.
template <typename Measure>
void MeetSize(size_t size, size_t target, Measure measure) {
  for (int tries = 0; tries < 200; ++tries) {
    const size_t measured = measure(size);
    if (measured == target) return;
    size += target - measured;
  }
  FAIL() << "never met " << target;
}

TEST_F(LogObservationTest, ABatchIsAsLargeAsItMayBe) {
  const auto a = AddChild("a");
  const auto bytes_of_all = [&](size_t bytes_of_last) {
    const auto observation = Observe([](Asked&) {});
    for (int i = 0; i < 4; ++i) StageMessage(log_, *a, std::string(50'000, '1'));
    StageMessage(log_, *a, std::string(bytes_of_last, '1'));
    log_.Commit();
    const Shown shown = Show(*observation);
    v1::EventBatch all;
    for (const v1::Event& event : shown.events) *all.add_events() = event;
    const size_t bytes = all.ByteSizeLong();
    EXPECT_EQ(all.events_size(), 5);
    EXPECT_EQ(Batches(shown).size(), bytes <= Observation::kBatchBytesMax ? 1u : 2u) << bytes;
    return bytes;
  };
  MeetSize(60'000, Observation::kBatchBytesMax, bytes_of_all);
  MeetSize(60'000, Observation::kBatchBytesMax + 1, bytes_of_all);
}

TEST_F(LogObservationTest, ALargeEventComesWholeAndAlone) {
  const auto a = AddChild("a");
  std::string large(1 << 20, 'x');
  for (size_t i = 0; i < large.size(); ++i) large[i] = static_cast<char>('a' + i % 26);
  const auto observation = Earliest();
  AppendMessage(log_, *a, "1");
  AppendMessage(log_, *a, large);
  AppendMessage(log_, *a, large.substr(0, 100'000));
  AppendMessage(log_, *a, "4");
  const Shown shown = Show(*observation);
  EXPECT_THAT(shown.payloads(), ElementsAre("1", large, large.substr(0, 100'000), "4"));
  const auto batches = Batches(shown);
  ASSERT_EQ(batches.size(), 3u);
  EXPECT_EQ(batches[1].events_size(), 1);
}

TEST_F(LogObservationTest, AnEventBeyondTheResponseIsCutBetweenCharacters) {
  constexpr size_t kAsked = 64 << 10;
  const auto a = AddChild("a");
  struct Seen {
    size_t shown = 0;  // of the payload
    size_t response = 0;
  };
  const auto show = [&](PayloadField field, const std::string& payload) {
    const auto observation =
        Observe([](Asked& asked) { asked.observation.set_response_bytes_max(kAsked); });
    const EncodedKind kind =
        EncodedKind::Output(v1::Output::STREAM_STDOUT, payload.size(), false, false);
    log_.Stage(*a, {.kind_field = v1::Event::kOutput,
                    .kind = kind.bytes(),
                    .payload_field = field,
                    .payload = payload});
    log_.Commit();
    const Shown shown = Show(*observation);
    EXPECT_EQ(shown.attached.response_bytes_max(), static_cast<int64_t>(kAsked));
    if (shown.events.size() != 1) {
      ADD_FAILURE() << shown.events.size() << " events";
      return Seen();
    }
    EXPECT_EQ(shown.events[0].output().size_bytes(), static_cast<int64_t>(payload.size()));
    const std::string part = shown.payloads()[0];
    EXPECT_EQ(payload.substr(0, part.size()), part);
    return Seen{part.size(), shown.largest_response_bytes};
  };
  // Bytes are cut anywhere, so nothing is given away.
  const Seen cut = show(PayloadField::kRaw, std::string(100'000, '\xFF'));
  const size_t limit = cut.response;
  EXPECT_LE(limit, kAsked);
  EXPECT_GT(limit, kAsked - 256);
  const auto bytes_of_whole = [&](size_t size) {
    const Seen seen = show(PayloadField::kRaw, std::string(size, 'x'));
    const size_t whole = seen.response + (size - seen.shown);
    EXPECT_EQ(seen.shown == size, whole <= limit) << whole;
    EXPECT_LE(seen.response, limit);
    return whole;
  };
  MeetSize(cut.shown, limit, bytes_of_whole);
  MeetSize(cut.shown, limit + 1, bytes_of_whole);
  for (size_t before = 0; before < 4; ++before) {
    std::string text(before, 'x');
    while (text.size() < 100'000) text += "\xF0\x9F\x98\x80";
    const Seen seen = show(PayloadField::kText, text);
    EXPECT_EQ((seen.shown - before) % 4, 0u);
    EXPECT_LE(seen.response, limit);
    EXPECT_GT(seen.response, limit - 4);
  }
}

TEST_F(LogObservationTest, TellsAtOnceThatTheAgentIsDegraded) {
  const auto a = AddChild("a");
  const auto observation = Observe([](Asked&) {});
  EXPECT_FALSE(Show(*observation).attached.degraded());
  int woken = 0;
  observation->OnReady([&] { ++woken; });
  log_.Degrade();
  EXPECT_EQ(woken, 1);
  Response response;
  ASSERT_EQ(observation->TakeNext(response), Observation::Next::kResponse);
  v1::ObserveResponse told;
  ASSERT_TRUE(told.ParseFromString(response.ToString()));
  EXPECT_TRUE(told.heartbeat().degraded());
  EXPECT_EQ(observation->TakeNext(response), Observation::Next::kWait) << "once";
  observation->TakeHeartbeat(response);
  ASSERT_TRUE(told.ParseFromString(response.ToString()));
  EXPECT_TRUE(told.heartbeat().degraded());
  const auto late = Observe([](Asked&) {});
  const Shown shown = Show(*late);
  EXPECT_TRUE(shown.attached.degraded());
  EXPECT_EQ(shown.attached.incarnation(), 1);
}

// --- Waking. ---

TEST_F(LogObservationTest, IsWokenOnceForWhatItWaitsFor) {
  const auto a = AddChild("a"), b = AddChild("b");
  const auto observation = Observe([&](Asked& asked) {
    asked.children = {a};
    asked.observation.add_kinds(v1::EVENT_KIND_MESSAGE);
  });
  int woken = 0;
  const auto wait = [&] { observation->OnReady([&] { ++woken; }); };
  wait();
  EXPECT_EQ(woken, 1) << "there is `attached`, so at once";
  Show(*observation);
  wait();
  EXPECT_EQ(woken, 1);
  Append(*b, 1, 5);
  AppendKind(log_, *a, v1::Event::kExited);
  StageMessage(log_, *a, "6");
  EXPECT_EQ(woken, 1) << "of no interest, or not committed";
  log_.Commit();
  EXPECT_EQ(woken, 2);
  Append(*a, 7, 9);
  EXPECT_EQ(woken, 2) << "once";
  EXPECT_EQ(ShowMore(*observation).events.size(), 4u);
  wait();
  log_.Forget(a);
  EXPECT_EQ(ShowMore(*observation).gaps.size(), 0u);
}

TEST_F(LogObservationTest, AChildThatComesLaterWakesToo) {
  const auto all = Observe([](Asked&) {});
  const auto labelled = Observe([](Asked& asked) { asked.labels = {{"tier", "web"}}; });
  Show(*all);
  Show(*labelled);
  int all_woken = 0, labelled_woken = 0;
  all->OnReady([&] { ++all_woken; });
  labelled->OnReady([&] { ++labelled_woken; });
  const auto other = log_.AddChild("other", {{"tier", "db"}}, kBig, kMany);
  AppendMessage(log_, **other, "1");
  EXPECT_EQ(all_woken, 1);
  EXPECT_EQ(labelled_woken, 0);
  const auto fits = log_.AddChild("fits", {{"tier", "web"}, {"more", ""}}, kBig, kMany);
  AppendMessage(log_, **fits, "2");
  EXPECT_EQ(labelled_woken, 1);
  EXPECT_THAT(ShowMore(*all).payloads(), ElementsAre("1", "2"));
  EXPECT_THAT(ShowMore(*labelled).payloads(), ElementsAre("2"));
}

TEST_F(LogObservationTest, ACallbackMayEndItsObservation) {
  const auto a = AddChild("a");
  auto observation = Earliest();
  Show(*observation);
  observation->OnReady([&] { observation.reset(); });
  Append(*a, 1, 1);
  EXPECT_EQ(observation, nullptr);
}

TEST_F(LogObservationTest, NoCallbackComesWhenItIsGone) {
  const auto a = AddChild("a");
  // One that waits is dropped.
  int woken = 0;
  {
    const auto observation = Earliest();
    Show(*observation);
    observation->OnReady([&] { ++woken; });
  }
  Append(*a, 1, 1);
  EXPECT_EQ(woken, 0);

  // One that runs on another thread is waited for.
  auto observation = Earliest();
  Show(*observation);
  ipc::Mutex mutex;
  ipc::CondVar changed;
  bool begun = false, may_return = false, gone = false;
  observation->OnReady([&] {
    ipc::MutexLock lock(mutex);
    begun = true;
    changed.NotifyAll();
    while (!may_return) changed.Wait(mutex);
    EXPECT_FALSE(gone);
  });
  std::thread writer([&] { AppendMessage(log_, *a, "2"); });
  {
    ipc::MutexLock lock(mutex);
    while (!begun) changed.Wait(mutex);
  }
  std::thread ender([&] {
    observation.reset();
    ipc::MutexLock lock(mutex);
    gone = true;
    changed.NotifyAll();
  });
  {
    // It cannot be gone, however long one waits.
    ipc::MutexLock lock(mutex);
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
    while (!gone && changed.WaitUntil(mutex, until)) {
    }
    EXPECT_FALSE(gone);
    may_return = true;
    changed.NotifyAll();
    while (!gone) changed.Wait(mutex);
  }
  writer.join();
  ender.join();
}

// --- Everything at random. ---

// What was written, and so what may be shown.
class History {
 public:
  struct Happened {
    std::string child;
    int64_t sequence = 0;
    int64_t child_sequence = 0;
    v1::EventKind kind = v1::EVENT_KIND_UNSPECIFIED;
    v1::Direction direction = v1::DIRECTION_UNSPECIFIED;
    std::string payload;
  };

  explicit History(EventLog& log) : log_(log) {}

  struct Child {
    std::shared_ptr<Log> log;
    std::map<std::string, std::string> labels;
    std::vector<int64_t> sequences = {};  // of its events
    bool closed = false;
    bool forgotten = false;
  };

  void AddChild(const std::string& id, std::map<std::string, std::string> labels, size_t bytes_max,
                size_t events_max) {
    auto log = log_.AddChild(id, labels, bytes_max, events_max);
    ASSERT_TRUE(log.ok()) << log.status();
    children_[id] = {.log = *std::move(log), .labels = std::move(labels)};
  }

  // Stages one; the caller commits.
  void Stage(const std::string& id, v1::EventKind kind, v1::Direction direction,
             std::string payload) {
    Child& child = children_.at(id);
    int64_t sequence = 0;
    if (kind == v1::EVENT_KIND_MESSAGE) {
      sequence = StageMessage(log_, *child.log, payload, direction);
    } else if (kind == v1::EVENT_KIND_OUTPUT) {
      const EncodedKind encoded =
          EncodedKind::Output(v1::Output::STREAM_STDERR, payload.size(), false, false);
      sequence = log_.Stage(*child.log, {.kind_field = v1::Event::kOutput,
                                         .kind = encoded.bytes(),
                                         .payload_field = PayloadField::kRaw,
                                         .payload = payload});
    } else {
      payload = "";
      child.closed = child.closed || kind == v1::EVENT_KIND_CLOSED;
      sequence = log_.Stage(
          *child.log,
          {.kind_field = kind == v1::EVENT_KIND_CLOSED ? v1::Event::kClosed : v1::Event::kExited});
    }
    ASSERT_EQ(sequence, static_cast<int64_t>(happened_.size()) + 1);
    child.sequences.push_back(sequence);
    happened_.push_back({.child = id,
                         .sequence = sequence,
                         .child_sequence = static_cast<int64_t>(child.sequences.size()),
                         .kind = kind,
                         .direction = direction,
                         .payload = std::move(payload)});
  }

  void Forget(const std::string& id) {
    Child& child = children_.at(id);
    log_.Forget(child.log);
    child.forgotten = true;
  }

  const Happened& At(int64_t sequence) const {
    return happened_.at(static_cast<size_t>(sequence - 1));
  }
  const Happened& At(const std::string& child, int64_t child_sequence) const {
    return At(children_.at(child).sequences.at(static_cast<size_t>(child_sequence - 1)));
  }
  const std::map<std::string, Child>& children() const { return children_; }
  int64_t head() const { return static_cast<int64_t>(happened_.size()); }

  // The child's first event after this place.
  int64_t FirstAfter(const std::string& child, int64_t sequence) const {
    const auto& all = children_.at(child).sequences;
    return std::upper_bound(all.begin(), all.end(), sequence) - all.begin() + 1;
  }

  // The child's first event that is still in the log; one past its newest if there is none.
  int64_t FirstKept(const std::string& id) const {
    const Child& child = children_.at(id);
    const int64_t none = static_cast<int64_t>(child.sequences.size()) + 1;
    if (child.forgotten) return none;
    Asked asked;
    asked.children = {child.log};
    asked.observation.mutable_start()->set_earliest(true);
    Shown shown;
    TakeAll(**agent::Observe(log_, std::move(asked)), shown);
    return shown.events.empty() ? none : shown.events.front().child_sequence();
  }

 private:
  EventLog& log_;
  std::vector<Happened> happened_;
  std::map<std::string, Child> children_;
};

// How often each promise was put to the test.
struct Exercised {
  int events = 0, gaps = 0, resumed_gaps = 0, forgotten_gaps = 0, inexact_gaps = 0, resumed = 0,
      refused_to_gap = 0, woken = 0, waited = 0, last = 0, large = 0;
};

// One observer, that may be resumed: its streams together show everything once, or name it in gaps.
class Observer {
 public:
  struct Wanted {
    std::optional<std::set<std::string>> names;
    std::map<std::string, std::string> labels;
    std::set<v1::EventKind> kinds;  // empty: all
    v1::Direction direction = v1::DIRECTION_UNSPECIFIED;
  };

  Observer(EventLog& log, const History& history, Exercised& exercised, Wanted wanted)
      : log_(log), history_(history), exercised_(exercised), wanted_(std::move(wanted)) {}

  // From where on, and what is expected to be shown from there.
  void Begin(const v1::ObserveStart& start, bool fail_on_gap, int64_t response_bytes_max) {
    Asked asked = Request(fail_on_gap, response_bytes_max);
    *asked.observation.mutable_start() = start;
    std::map<std::string, int64_t> kept;
    for (const auto& [id, child] : history_.children()) {
      if (Observes(id)) kept[id] = history_.FirstKept(id);
    }
    auto observation = agent::Observe(log_, std::move(asked));
    if (!observation.ok()) {
      ASSERT_TRUE(fail_on_gap) << observation.status();
      ASSERT_EQ(ipc::ReasonOf(observation.status()), ipc::Reason::kCursorExpired);
      ++exercised_.refused_to_gap;
      ended_ = true;
      return;
    }
    observation_ = *std::move(observation);
    Take();  // `attached`
    const int64_t began = shown_.attached.start().sequence();
    if (start.has_after()) {
      ASSERT_EQ(began, start.after().sequence());
    }
    int64_t fitting = 0, fitting_kept = 0;
    for (const auto& [id, first_kept] : kept) {
      next_[id] = history_.FirstAfter(id, began);
      if (!start.has_after()) next_[id] = std::max(next_[id], first_kept);
      const int64_t end = static_cast<int64_t>(history_.children().at(id).sequences.size());
      for (int64_t i = first_kept; i <= end; ++i) fitting_kept += Fits(history_.At(id, i));
      for (int64_t i = next_[id]; i <= end; ++i) fitting += Fits(history_.At(id, i));
    }
    if (start.has_last()) {
      ASSERT_EQ(fitting, std::min(start.last(), fitting_kept));
      ++exercised_.last;
    }
    if (start.has_earliest()) {
      ASSERT_EQ(fitting, fitting_kept);
    }
    if (start.has_latest()) {
      ASSERT_EQ(fitting, 0);
    }
    last_sequence_ = began;
    resumed_ = start.has_after();
  }

  // Begins anew where it stands, as a client does that has lost its stream.
  void Resume() {
    if (ended_) return;
    const v1::Cursor cursor = observation_->cursor();
    ASSERT_GE(cursor.sequence(), last_sequence_);
    ASSERT_LE(cursor.sequence(), history_.head());
    Asked asked = Request(false, 0);
    *asked.observation.mutable_start()->mutable_after() = cursor;
    // A name that is not known any more would be refused.
    for (const std::string& name : wanted_.names.value_or(std::set<std::string>())) {
      const History::Child& child = history_.children().at(name);
      if (child.forgotten) next_[name] = static_cast<int64_t>(child.sequences.size()) + 1;
    }
    observation_ = nullptr;
    auto observation = agent::Observe(log_, std::move(asked));
    ASSERT_TRUE(observation.ok()) << observation.status();
    observation_ = *std::move(observation);
    shown_ = Shown();
    last_sequence_ = cursor.sequence();
    delivered_ = dropped_ = 0;
    resumed_ = true;
    waits_ = woken_ = false;
    ++exercised_.resumed;
  }

  // Takes one piece and checks it.
  Next Take() {
    if (ended_) return Next::kEnd;
    Response bytes;
    Next next = Next::kBusy;
    while (next == Next::kBusy) next = observation_->TakeNext(bytes);
    // Who waits, and was not called, has nothing to take.
    if (waits_ && !woken_) {
      EXPECT_EQ(next, Next::kWait) << "a wake-up was lost";
      ++exercised_.waited;
    }
    waits_ = woken_ = false;
    if (next == Next::kEnd) {
      EXPECT_EQ(ipc::ReasonOf(observation_->status()), ipc::Reason::kCursorExpired);
      ++exercised_.refused_to_gap;
      ended_ = true;
    }
    if (next != Next::kResponse) return next;
    const size_t before = shown_.responses.size();
    shown_.Add(bytes.ToString());
    if (shown_.responses.size() == before) return Next::kEnd;  // it has failed
    const v1::ObserveResponse& response = shown_.responses.back();
    if (response.has_gap()) Check(response.gap());
    for (const v1::Event& event : response.batch().events()) Check(event);
    return next;
  }

  void Wait() {
    if (ended_) return;
    woken_ = false;
    waits_ = true;
    observation_->OnReady([this] {
      woken_ = true;
      ++exercised_.woken;
    });
  }

  void CheckHeartbeat() {
    if (ended_) return;
    Response bytes;
    observation_->TakeHeartbeat(bytes);
    v1::ObserveResponse response;
    ASSERT_TRUE(response.ParseFromString(bytes.ToString()));
    EXPECT_EQ(response.heartbeat().delivered(), delivered_);
    EXPECT_EQ(response.heartbeat().dropped(), dropped_);
    EXPECT_GE(response.heartbeat().cursor().sequence(), last_sequence_);
    EXPECT_LE(response.heartbeat().cursor().sequence(), history_.head());
  }

  // Takes all that there is: nothing is missing then.
  void Finish() {
    do {  // it may be woken once without cause
      while (Take() == Next::kResponse && !::testing::Test::HasFailure()) {
      }
      if (ended_ || ::testing::Test::HasFailure()) return;
      Wait();
    } while (woken_);
    EXPECT_EQ(observation_->cursor().sequence(), history_.head());
    for (const auto& [id, child] : history_.children()) {
      if (Observes(id)) CheckPassed(id, static_cast<int64_t>(child.sequences.size()) + 1);
    }
  }

 private:
  Asked Request(bool fail_on_gap, int64_t response_bytes_max) const {
    Asked asked;
    if (wanted_.names) {
      asked.children.emplace();
      for (const std::string& name : *wanted_.names) {
        const History::Child& child = history_.children().at(name);
        if (!child.forgotten) asked.children->push_back(child.log);
      }
    }
    asked.labels = wanted_.labels;
    for (const v1::EventKind kind : wanted_.kinds) asked.observation.add_kinds(kind);
    asked.observation.set_direction(wanted_.direction);
    asked.observation.set_fail_on_gap(fail_on_gap);
    asked.observation.set_response_bytes_max(response_bytes_max);
    return asked;
  }

  bool Observes(const std::string& id) const {
    const auto& labels = history_.children().at(id).labels;
    return (!wanted_.names || wanted_.names->contains(id)) &&
           std::includes(labels.begin(), labels.end(), wanted_.labels.begin(),
                         wanted_.labels.end());
  }

  bool Fits(const History::Happened& event) const {
    if (!wanted_.kinds.empty() && !wanted_.kinds.contains(event.kind)) return false;
    return event.kind != v1::EVENT_KIND_MESSAGE || wanted_.direction == v1::DIRECTION_UNSPECIFIED ||
           wanted_.direction == event.direction;
  }

  // Everything of the child before `child_sequence` that was neither shown nor named by a gap does
  // not fit the filter.
  void CheckPassed(const std::string& child, int64_t child_sequence) {
    int64_t& next = next_.try_emplace(child, 1).first->second;
    for (; next < child_sequence; ++next) {
      EXPECT_FALSE(Fits(history_.At(child, next)))
          << "left out in silence: " << child << " " << next << " of "
          << history_.children().at(child).sequences.size() << ", forgotten "
          << history_.children().at(child).forgotten << ", named " << wanted_.names.has_value()
          << ", labels " << wanted_.labels.size() << ", resumed " << resumed_ << " sequence "
          << history_.At(child, next).sequence << " last " << last_sequence_;
    }
  }

  void Check(const v1::Event& event) {
    ++delivered_;
    ++exercised_.events;
    ASSERT_LE(event.sequence(), history_.head());
    const History::Happened& happened = history_.At(event.sequence());
    ASSERT_EQ(event.child(), happened.child);
    ASSERT_EQ(event.child_sequence(), happened.child_sequence);
    const std::string& payload = event.has_json() ? event.json() : event.raw();
    if (payload.size() < happened.payload.size()) ++exercised_.large;
    ASSERT_EQ(payload, happened.payload.substr(0, payload.size()));
    EXPECT_TRUE(Observes(event.child()) && Fits(happened));
    EXPECT_GT(event.sequence(), last_sequence_);
    last_sequence_ = event.sequence();
    EXPECT_GE(event.child_sequence(), next_.try_emplace(event.child(), 1).first->second)
        << "shown, or named as missed, before";
    CheckPassed(event.child(), event.child_sequence());
    next_[event.child()] = event.child_sequence() + 1;
  }

  void Check(const v1::Gap& gap) {
    EXPECT_GT(gap.to_sequence(), last_sequence_);
    if (gap.inexact()) {
      ++exercised_.inexact_gaps;
      EXPECT_TRUE(resumed_);
      EXPECT_EQ(gap.reason(), v1::Gap::REASON_CHILD_FORGOTTEN);
      EXPECT_FALSE(wanted_.names);
      for (const auto& [id, child] : history_.children()) {
        if (child.forgotten && Observes(id) && child.sequences.back() <= gap.to_sequence()) {
          next_[id] = static_cast<int64_t>(child.sequences.size()) + 1;
        }
      }
      return;
    }
    ASSERT_TRUE(history_.children().contains(gap.child()));
    EXPECT_TRUE(Observes(gap.child()));
    const History::Child& child = history_.children().at(gap.child());
    const int64_t to = gap.to_child_sequence();
    ASSERT_LE(to, static_cast<int64_t>(child.sequences.size()));
    EXPECT_EQ(history_.At(gap.child(), to).sequence, gap.to_sequence());
    EXPECT_LT(to, history_.FirstKept(gap.child())) << "it is still there";
    ++exercised_.gaps;
    if (gap.reason() == v1::Gap::REASON_CHILD_FORGOTTEN) {
      ++exercised_.forgotten_gaps;
      EXPECT_TRUE(child.forgotten);
    } else {
      EXPECT_EQ(gap.reason(), v1::Gap::REASON_LOG_TURNED_OVER);
    }
    int64_t& next = next_.try_emplace(gap.child(), 1).first->second;
    if (gap.has_from_child_sequence()) {
      EXPECT_LE(gap.from_child_sequence(), to);
      dropped_ += to - gap.from_child_sequence() + 1;
      // One that a resumed stream begins with may tell again what was told.
      if (gap.from_child_sequence() < next) {
        EXPECT_TRUE(resumed_);
        EXPECT_EQ(gap.from_child_sequence(), 1);
      }
      CheckPassed(gap.child(), gap.from_child_sequence());
    } else {
      EXPECT_TRUE(resumed_) << "only a cursor cannot tell where it begins";
      ++exercised_.resumed_gaps;
    }
    next = std::max(next, to + 1);
  }

  EventLog& log_;
  const History& history_;
  Exercised& exercised_;
  const Wanted wanted_;
  std::unique_ptr<Observation> observation_;
  Shown shown_;
  std::map<std::string, int64_t> next_;  // what of each child was neither shown nor missed
  int64_t last_sequence_ = 0;
  int64_t delivered_ = 0, dropped_ = 0;
  bool resumed_ = false;
  bool ended_ = false;
  bool waits_ = false, woken_ = false;
};

class RandomHistory {
 public:
  RandomHistory(uint32_t seed, Exercised& exercised) : random_(seed), exercised_(exercised) {}

  void Run() {
    for (int i = 0; i < 3; ++i) AddChild();
    for (int step = 0; step < 400 && !::testing::Test::HasFailure(); ++step) Step();
    for (auto& observer : observers_) observer->Finish();
    observers_.clear();
  }

 private:
  int Below(int count) { return std::uniform_int_distribution<int>(0, count - 1)(random_); }

  void AddChild() {
    const std::string id = "child" + std::to_string(history_.children().size());
    std::map<std::string, std::string> labels;
    if (Below(2) == 0) labels["tier"] = "web";
    // Some turn over by their events, some by their bytes.
    history_.AddChild(id, labels, static_cast<size_t>(Below(2) == 0 ? 4096 : 400'000),
                      static_cast<size_t>(1 + Below(60)));
    live_.push_back(id);
  }

  void Append() {
    if (live_.empty()) return;
    const int children = 1 + Below(3);
    for (int i = 0; i < children; ++i) {
      const std::string child = live_[static_cast<size_t>(Below(static_cast<int>(live_.size())))];
      const int events = 1 + Below(8);
      const bool large = Below(40) == 0;
      for (int k = 0; k < events; ++k) {
        const size_t size = static_cast<size_t>(large ? Below(100'000) : Below(300));
        const v1::Direction direction =
            Below(3) == 0 ? v1::DIRECTION_TO_CHILD : v1::DIRECTION_FROM_CHILD;
        if (Below(4) == 0) {
          history_.Stage(child, v1::EVENT_KIND_OUTPUT, v1::DIRECTION_UNSPECIFIED,
                         std::string(size, 'o'));
        } else {
          history_.Stage(child, v1::EVENT_KIND_MESSAGE, direction,
                         std::to_string(history_.head()) + std::string(size, '1'));
        }
      }
    }
    log_.Commit();
  }

  void CloseOne() {
    if (live_.empty()) return;
    const auto child = live_.begin() + Below(static_cast<int>(live_.size()));
    history_.Stage(*child, v1::EVENT_KIND_EXITED, v1::DIRECTION_UNSPECIFIED, "");
    history_.Stage(*child, v1::EVENT_KIND_CLOSED, v1::DIRECTION_UNSPECIFIED, "");
    log_.Commit();
    closed_.push_back(*child);
    live_.erase(child);
  }

  void ForgetOne() {
    if (closed_.empty()) return;
    history_.Forget(closed_.front());
    closed_.erase(closed_.begin());
  }

  void Observe() {
    if (observers_.size() == 6) observers_.erase(observers_.begin() + Below(6));
    Observer::Wanted wanted;
    if (Below(3) == 0) {
      wanted.names.emplace();
      for (const std::string& id : live_) {
        if (Below(2) == 0) wanted.names->insert(id);
      }
    }
    if (Below(4) == 0) wanted.labels["tier"] = "web";
    if (Below(3) == 0) wanted.kinds.insert(v1::EVENT_KIND_MESSAGE);
    if (Below(6) == 0) wanted.kinds.insert(v1::EVENT_KIND_CLOSED);
    if (Below(3) == 0) wanted.direction = v1::DIRECTION_TO_CHILD;
    auto observer = std::make_unique<Observer>(log_, history_, exercised_, std::move(wanted));
    v1::ObserveStart start;
    switch (Below(4)) {
      case 0:
        start.set_latest(true);
        break;
      case 1:
        start.set_earliest(true);
        break;
      case 2:
        start.set_last(1 + Below(40));
        break;
      default:
        start.mutable_after()->set_agent("test");
        start.mutable_after()->set_epoch(log_.epoch());
        start.mutable_after()->set_sequence(Below(static_cast<int>(history_.head()) + 1));
    }
    observer->Begin(start, /*fail_on_gap=*/Below(6) == 0, Below(2) == 0 ? 64 << 10 : 0);
    observers_.push_back(std::move(observer));
  }

  void Step() {
    const int what = Below(100);
    if (what < 30) return Append();
    if (what < 33 && history_.children().size() < 30) return AddChild();
    if (what < 36) return CloseOne();
    if (what < 38) return ForgetOne();
    if (what < 44) return Observe();
    if (observers_.empty()) return;
    Observer& observer =
        *observers_[static_cast<size_t>(Below(static_cast<int>(observers_.size())))];
    if (what < 50) return observer.Wait();
    if (what < 55) return observer.CheckHeartbeat();
    if (what < 60) return observer.Resume();
    for (int pieces = 1 + Below(what < 80 ? 2 : 50); pieces > 0; --pieces) {
      if (observer.Take() != Next::kResponse) return;
    }
  }

  std::mt19937 random_;
  Exercised& exercised_;
  EventLog log_{{.agent = "test"}};
  History history_{log_};
  std::vector<std::string> live_, closed_;
  std::vector<std::unique_ptr<Observer>> observers_;
};

TEST(LogObservationRandomTest, EachStreamIsDenseOrGappedExactly) {
  Exercised exercised;
  for (uint32_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    RandomHistory(seed, exercised).Run();
    if (::testing::Test::HasFailure()) return;
  }
  for (const auto& [name, count] : {std::pair("events", exercised.events),
                                    {"gaps", exercised.gaps},
                                    {"gaps of a resumed cursor", exercised.resumed_gaps},
                                    {"gaps of forgotten children", exercised.forgotten_gaps},
                                    {"inexact gaps", exercised.inexact_gaps},
                                    {"resumed", exercised.resumed},
                                    {"failed instead of a gap", exercised.refused_to_gap},
                                    {"woken", exercised.woken},
                                    {"waited", exercised.waited},
                                    {"started at the last", exercised.last},
                                    {"cut", exercised.large}}) {
    RecordProperty(name, count);
    EXPECT_GT(count, 20) << name;
  }
}

TEST(LogObservationThreadsTest, ReadersOnOtherThreadsWhileTheWriterFloods) {
  EventLog log({.agent = "test"});
  History history(log);
  constexpr int kChildren = 3, kReaders = 3, kMessages = 60'000;
  for (int i = 0; i < kChildren; ++i) history.AddChild("c" + std::to_string(i), {}, 16 << 10, 200);
  // Each reads as fast as it can; what it was shown is checked when all is written.
  struct Reader {
    std::unique_ptr<Observation> observation;
    std::vector<std::string> responses;
    std::thread thread;
  };
  std::vector<Reader> readers(kReaders);
  for (int i = 0; i < kReaders; ++i) {
    Reader& reader = readers[static_cast<size_t>(i)];
    Asked asked;
    if (i == 1) asked.observation.set_direction(v1::DIRECTION_TO_CHILD);
    if (i == 2) asked.children = {history.children().at("c1").log};
    reader.observation = *agent::Observe(log, std::move(asked));
    reader.thread = std::thread([&reader] {
      ipc::Mutex mutex;
      ipc::CondVar changed;
      bool ready = false;
      for (Response response;;) {
        const Next next = reader.observation->TakeNext(response);
        if (next == Next::kEnd) return;
        if (next == Next::kResponse) reader.responses.push_back(response.ToString());
        if (next != Next::kWait) continue;
        reader.observation->OnReady([&] {
          ipc::MutexLock lock(mutex);
          ready = true;
          changed.NotifyAll();
        });
        ipc::MutexLock lock(mutex);
        while (!ready) changed.Wait(mutex);
        ready = false;
      }
    });
  }
  std::mt19937 random(1);
  for (int i = 0; i < kMessages; ++i) {
    history.Stage("c" + std::to_string(random() % kChildren), v1::EVENT_KIND_MESSAGE,
                  random() % 4 == 0 ? v1::DIRECTION_TO_CHILD : v1::DIRECTION_FROM_CHILD,
                  std::string(random() % 100, '1'));
    if (random() % 8 == 0) log.Commit();
  }
  log.Close();
  for (Reader& reader : readers) reader.thread.join();

  size_t gaps = 0, events = 0;
  for (size_t i = 0; i < readers.size(); ++i) {
    SCOPED_TRACE(i);
    std::map<std::string, int64_t> next;  // what was neither shown nor missed nor filtered
    const auto pass = [&](const std::string& child, int64_t child_sequence) {
      int64_t& at = next.try_emplace(child, 1).first->second;
      for (; at < child_sequence; ++at) {
        ASSERT_TRUE(i == 1 && history.At(child, at).direction == v1::DIRECTION_FROM_CHILD)
            << child << " " << at;
      }
    };
    Shown shown;
    for (const std::string& bytes : readers[i].responses) {
      shown.Add(bytes);
      ASSERT_FALSE(HasFailure());
      const v1::ObserveResponse& response = shown.responses.back();
      if (response.has_gap()) {
        const v1::Gap& gap = response.gap();
        ++gaps;
        ASSERT_TRUE(gap.has_from_child_sequence());
        pass(gap.child(), gap.from_child_sequence());
        ASSERT_EQ(next[gap.child()], gap.from_child_sequence());
        ASSERT_EQ(history.At(gap.child(), gap.to_child_sequence()).sequence, gap.to_sequence());
        next[gap.child()] = gap.to_child_sequence() + 1;
      }
      for (const v1::Event& event : response.batch().events()) {
        ++events;
        const History::Happened& happened = history.At(event.sequence());
        ASSERT_EQ(event.child(), happened.child);
        ASSERT_EQ(event.child_sequence(), happened.child_sequence);
        ASSERT_EQ(event.json(), happened.payload);
        pass(event.child(), event.child_sequence());
        ASSERT_EQ(next[event.child()], event.child_sequence());
        ++next[event.child()];
      }
    }
    EXPECT_EQ(shown.fin.reason(), v1::Fin::REASON_AGENT_STOPPING);
    EXPECT_EQ(shown.fin.cursor().sequence(), history.head());
    for (const auto& [id, child] : history.children()) {
      if (i != 2 || id == "c1") pass(id, static_cast<int64_t>(child.sequences.size()) + 1);
    }
  }
  RecordProperty("gaps", static_cast<int>(gaps));
  RecordProperty("events", static_cast<int>(events));
  EXPECT_GT(events, 0u);
}

}  // namespace
}  // namespace deka::agent
