#include "sdk/cpp/progress.h"

#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "google/protobuf/util/time_util.h"

namespace deka {
namespace {

using google::protobuf::TextFormat;
using google::protobuf::util::TimeUtil;
using std::chrono::seconds;

template <typename T>
T Proto(const std::string& text) {
  T message;
  EXPECT_TRUE(TextFormat::ParseFromString(text, &message)) << text;
  return message;
}

// An observation, and what it told, a word for each call.
class ProgressTest : public testing::Test {
 protected:
  ProgressTest() {
    observer_.on_attached = [this](const v1::Attached& attached) {
      Told("attached " + std::to_string(attached.epoch()));
    };
    observer_.on_child = [this](const v1::Child& child) { Told("child " + child.name()); };
    observer_.on_snapshot_complete = [this] { Told("snapshot"); };
    observer_.on_event = [this](const v1::Event& event) {
      Told(event.child() + std::to_string(event.child_sequence()));
    };
    observer_.on_gap = [this](const v1::Gap& gap) {
      if (gap.inexact()) {
        Told("inexact ..." + std::to_string(gap.to_sequence()));
        return;
      }
      const std::string from =
          gap.has_from_child_sequence() ? std::to_string(gap.from_child_sequence()) : "?";
      Told("gap " + gap.child() + from + "-" + std::to_string(gap.to_child_sequence()));
    };
    observer_.on_heartbeat = [this](const v1::Heartbeat&) { Told("heartbeat"); };
    observer_.on_resumed = [this](const v1::Cursor& cursor) {
      Told("resumed " + std::to_string(cursor.sequence()));
    };
  }

  void Observe(const std::string& observation, std::vector<std::string> children = {}) {
    progress_.emplace(Proto<v1::Observation>(observation), std::move(children), observer_,
                      stopped_);
  }
  void Take(const std::string& response) {
    progress_->Take(Proto<v1::ObserveResponse>(response), now_);
  }
  void Attach(int64_t start, int64_t head, int64_t epoch = 7) {
    Take("attached { agent: 'host' epoch: " + std::to_string(epoch) + " head: " +
         std::to_string(head) + " start { agent: 'host' epoch: " + std::to_string(epoch) +
         " sequence: " + std::to_string(start) + " } }");
  }
  void Event(int64_t sequence, const std::string& child, int64_t child_sequence,
             const std::string& kind = "from_child {}") {
    Take("batch { events { sequence: " + std::to_string(sequence) + " child: '" + child +
         "' child_sequence: " + std::to_string(child_sequence) + " " + kind + " } }");
  }
  void Gap(const std::string& child, int64_t to_child_sequence, int64_t to_sequence) {
    Take("gap { child: '" + child + "' to_child_sequence: " + std::to_string(to_child_sequence) +
         " to_sequence: " + std::to_string(to_sequence) + " reason: REASON_LOG_TURNED_OVER }");
  }

  void Told(std::string what) { told_.push_back(std::move(what)); }
  std::vector<std::string> TakeTold() { return std::exchange(told_, {}); }

  using Words = std::vector<std::string>;

  Observer observer_;
  std::atomic<bool> stopped_{false};
  std::optional<Progress> progress_;
  Progress::Clock::time_point now_;
  Words told_;
};

TEST_F(ProgressTest, BeginsAsAskedAndResumesAfterTheLastEvent) {
  Observe("start { last: 3 } kinds: EVENT_KIND_MESSAGE");
  EXPECT_EQ(progress_->cursor(), std::nullopt);
  EXPECT_EQ(progress_->NextObservation(now_).start().last(), 3);
  Attach(40, 43);
  EXPECT_EQ(progress_->NextObservation(now_).start().after().sequence(), 40);
  Take("snapshot_complete { head: 43 }");
  Event(41, "a", 1);
  Event(43, "a", 2);
  const v1::Observation next = progress_->NextObservation(now_);
  EXPECT_EQ(next.start().after().agent(), "host");
  EXPECT_EQ(next.start().after().epoch(), 7);
  EXPECT_EQ(next.start().after().sequence(), 43);
  EXPECT_EQ(next.kinds_size(), 1);
  Attach(43, 43);
  EXPECT_EQ(TakeTold(), (Words{"attached 7", "snapshot", "a1", "a2", "attached 7", "resumed 43"}));
}

TEST_F(ProgressTest, ATimeToBeginAtIsForTheFirstStreamOnly) {
  Observe("start { since { seconds: 77 } }");
  EXPECT_EQ(progress_->NextObservation(now_).start().since().seconds(), 77);
  Attach(40, 43);
  const v1::Observation next = progress_->NextObservation(now_);
  EXPECT_FALSE(next.start().has_since());
  EXPECT_EQ(next.start().after().sequence(), 40);
}

TEST_F(ProgressTest, AsksTheNextStreamForTheSame) {
  const std::string observation =
      "kinds: EVENT_KIND_MESSAGE direction: DIRECTION_TO_CHILD "
      "where { pointer: '/id' equals: '7' } where { pointer: '/user' } payload_bytes_max: 0 "
      "events_per_second_max: 5 when_slow: SLOW_POLICY_BLOCK hold_max { seconds: 2 } ";
  Observe(observation + "start { latest: true }");
  Attach(40, 40);
  Event(41, "a", 1);
  EXPECT_EQ(progress_->NextObservation(now_).ShortDebugString(),
            Proto<v1::Observation>(observation +
                                   "start { after { agent: 'host' epoch: 7 sequence: 41 } }")
                .ShortDebugString());
}

TEST_F(ProgressTest, AHeartbeatMovesThePlace) {
  Observe("");
  Attach(1, 1);
  Take("heartbeat { cursor { agent: 'host' epoch: 7 sequence: 90 } }");
  EXPECT_EQ(progress_->cursor()->sequence(), 90);
}

TEST_F(ProgressTest, AGapDoesNotMoveThePlace) {
  // The gap of a reaches beyond the events of b that are still to come.
  Observe("");
  Attach(10, 10);
  Take(
      "snapshot { children { name: 'agents/host/children/a' last_child_sequence: 2 } "
      "children { name: 'agents/host/children/b' last_child_sequence: 5 } }");
  Take("snapshot_complete { head: 10 }");
  Attach(10, 99);
  TakeTold();
  Gap("a", 60, 90);
  EXPECT_EQ(progress_->cursor()->sequence(), 10);
  Event(20, "b", 6);
  EXPECT_EQ(progress_->cursor()->sequence(), 20);
  EXPECT_EQ(TakeTold(), (Words{"gap a3-60", "b6"}));
}

TEST_F(ProgressTest, AGapBeginsAfterWhatWasShown) {
  Observe("start { earliest: true }");
  Attach(0, 50);
  Take("snapshot { children { name: 'agents/host/children/a' last_child_sequence: 30 } }");
  Take("snapshot_complete { head: 50 }");
  Event(1, "a", 4);
  Attach(1, 70);
  TakeTold();
  Gap("a", 40, 69);
  EXPECT_EQ(TakeTold(), Words{"gap a5-40"});
}

TEST_F(ProgressTest, AGapThatIsNamedAgainLosesWhatWasTold) {
  Observe("");
  Attach(10, 10);
  Take("snapshot { children { name: 'agents/host/children/a' last_child_sequence: 2 } }");
  Take("snapshot_complete { head: 10 }");
  TakeTold();
  Gap("a", 60, 90);
  Attach(10, 99);  // lost before any event: the same place once more
  Gap("a", 60, 90);
  Attach(10, 199);
  Gap("a", 80, 120);
  EXPECT_EQ(TakeTold(), (Words{"gap a3-60", "attached 7", "resumed 10", "attached 7", "resumed 10",
                               "gap a61-80"}));
}

TEST_F(ProgressTest, WhatWasToldAsMissedIsNotShownByTheNextStream) {
  Observe("events_per_second_max: 1");
  Attach(10, 10);
  Take("snapshot_complete { head: 10 }");
  Event(11, "a", 3);
  Event(12, "b", 5);
  Take(
      "gap { child: 'a' from_child_sequence: 4 to_child_sequence: 6 to_sequence: 20 "
      "reason: REASON_RATE }");
  Attach(12, 99);
  TakeTold();
  Event(13, "a", 5);
  Event(14, "a", 6);
  EXPECT_EQ(progress_->cursor()->sequence(), 14);
  Event(15, "b", 6);
  Take(
      "gap { child: 'a' from_child_sequence: 6 to_child_sequence: 8 to_sequence: 30 "
      "reason: REASON_RATE }");
  Event(31, "a", 9);
  EXPECT_EQ(TakeTold(), (Words{"b6", "gap a7-8", "a9"}));
}

TEST_F(ProgressTest, AnotherEpochHasMissedNothingYet) {
  Observe("events_per_second_max: 1");
  Attach(10, 10);
  Take("gap { child: 'a' from_child_sequence: 4 to_child_sequence: 6 to_sequence: 20 }");
  Attach(0, 5, /*epoch=*/8);
  TakeTold();
  Event(1, "a", 1);
  EXPECT_EQ(TakeTold(), Words{"a1"});
}

TEST_F(ProgressTest, AnExactGapInMidStreamStaysAsItIs) {
  Observe("kinds: EVENT_KIND_MESSAGE");
  Attach(10, 10);
  Take("snapshot { children { name: 'agents/host/children/a' last_child_sequence: 2 } }");
  Take("snapshot_complete { head: 10 }");
  TakeTold();
  Take("gap { child: 'a' from_child_sequence: 7 to_child_sequence: 9 to_sequence: 20 }");
  EXPECT_EQ(TakeTold(), Words{"gap a7-9"});
}

TEST_F(ProgressTest, AGapOfAChildOfWhichNothingWasShownIsTheAgents) {
  Observe("start { earliest: true }");
  Attach(0, 50);
  Take("snapshot { children { name: 'agents/host/children/a' last_child_sequence: 30 } }");
  Take("snapshot_complete { head: 50 }");
  Attach(0, 99);
  TakeTold();
  Gap("a", 40, 69);
  Take("gap { child: 'late' from_child_sequence: 1 to_child_sequence: 8 to_sequence: 90 }");
  EXPECT_EQ(TakeTold(), (Words{"gap a?-40", "gap late1-8"}));
}

TEST_F(ProgressTest, AnotherEpochIsToldOnceAndForgetsNumbers) {
  Observe("");
  Attach(10, 10);
  Take("snapshot { children { name: 'agents/host/children/a' last_child_sequence: 2 } }");
  Take("snapshot_complete { head: 10 }");
  Event(11, "a", 3);
  TakeTold();
  Attach(0, 5, /*epoch=*/8);
  EXPECT_EQ(progress_->cursor()->epoch(), 7);  // the gap is still to be told
  Take("gap { inexact: true to_sequence: 11 reason: REASON_OTHER_EPOCH }");
  EXPECT_EQ(progress_->cursor()->epoch(), 8);
  EXPECT_EQ(progress_->cursor()->sequence(), 0);
  Take("snapshot_complete { head: 5 }");
  Event(5, "c", 5);
  EXPECT_EQ(TakeTold(), (Words{"attached 8", "resumed 11", "inexact ...11", "snapshot", "c5"}));
}

TEST_F(ProgressTest, AnInexactGapIsToldOnce) {
  Observe("");
  Attach(10, 10);
  TakeTold();
  Take("gap { inexact: true to_sequence: 30 reason: REASON_CHILD_FORGOTTEN }");
  Take("gap { inexact: true to_sequence: 30 reason: REASON_CHILD_FORGOTTEN }");
  Take("gap { inexact: true to_sequence: 40 reason: REASON_CHILD_FORGOTTEN }");
  EXPECT_EQ(TakeTold(), (Words{"inexact ...30", "inexact ...40"}));
}

// A gap begins after what was told of its child, as long as that is remembered.
TEST_F(ProgressTest, RemembersTheChildrenOfWhichItWasToldLast) {
  Observe("");
  const auto children = static_cast<int64_t>(Progress::kKnownMax);
  const auto name = [](int64_t i) { return "c" + std::to_string(i) + "-"; };
  Attach(children, children);
  Take("snapshot { children { name: 'agents/host/children/" + name(children) +
       "' last_child_sequence: 5 last_sequence: " + std::to_string(children) + " } }");
  Take("snapshot_complete {}");
  for (int64_t i = 1; i < children; ++i) Event(i, name(i), 5);
  const auto gap_of = [&](int64_t i) {
    TakeTold();
    Gap(name(i), 9, 3 * children);
    return TakeTold();
  };
  EXPECT_EQ(gap_of(1), (Words{"gap c1-6-9"}));
  // Those that have closed, and one more than it remembers.
  Event(children + 1, name(2), 6, "closed {}");
  Event(children + 2, name(children + 1), 5);
  EXPECT_EQ(gap_of(3), (Words{"gap c3-6-9"}));
  Event(children + 3, name(children + 2), 5);
  EXPECT_EQ(gap_of(4), (Words{"gap c4-?-9"}));
  EXPECT_EQ(gap_of(children / 2 + 5), (Words{"gap c" + std::to_string(children / 2 + 5) + "-6-9"}));
  EXPECT_EQ(gap_of(children), (Words{"gap c" + std::to_string(children) + "-6-9"}));
  EXPECT_EQ(gap_of(1), Words{}) << "it was told already";
}

TEST_F(ProgressTest, LearnsFromTheSnapshotOfAnotherEpoch) {
  Observe("");
  Attach(10, 10);
  Take("snapshot_complete { head: 10 }");
  Take("gap { inexact: true to_sequence: 30 reason: REASON_CHILD_FORGOTTEN }");
  Attach(5, 5, /*epoch=*/8);
  Take("snapshot { children { name: 'agents/host/children/a' last_child_sequence: 2 } }");
  Take("snapshot_complete { head: 5 }");
  TakeTold();
  Gap("a", 4, 9);
  Take("gap { inexact: true to_sequence: 9 reason: REASON_CHILD_FORGOTTEN }");
  EXPECT_EQ(TakeTold(), (Words{"gap a3-4", "inexact ...9"}));
}

TEST_F(ProgressTest, NamesStandForTheChildrenThatTheyMeantFirst) {
  Observe("", {"worker"});
  Attach(10, 10);
  Take("snapshot { children { name: 'agents/host/children/x1' } }");
  EXPECT_EQ(progress_->children(), Words{"worker"});
  Take("snapshot_complete { head: 10 }");
  EXPECT_EQ(progress_->children(), Words{"agents/host/children/x1"});
}

TEST_F(ProgressTest, AllChildrenStayAll) {
  for (const Words& names : {Words{}, Words{"agents/-/children/-"}}) {
    Observe("", names);
    Attach(10, 10);
    Take("snapshot { children { name: 'agents/host/children/x1' } }");
    Take("snapshot_complete { head: 10 }");
    EXPECT_EQ(progress_->children(), names);
  }
}

TEST_F(ProgressTest, CountsTheEventsThatAreStillToCome) {
  Observe("events_max: 3");
  Attach(0, 0);
  Event(1, "a", 1);
  Event(2, "a", 2);
  EXPECT_EQ(progress_->NextObservation(now_).events_max(), 1);
  EXPECT_FALSE(progress_->Finished(now_).has_value());
  Event(3, "a", 3);
  ASSERT_TRUE(progress_->Finished(now_).has_value());
  EXPECT_EQ(progress_->Finished(now_)->reason(), v1::Fin::REASON_EVENTS_MAX);
  EXPECT_EQ(progress_->Finished(now_)->cursor().sequence(), 3);
}

TEST_F(ProgressTest, CountsTheTimeThatIsLeft) {
  Observe("duration { seconds: 10 }");
  EXPECT_EQ(progress_->NextObservation(now_ + seconds(50)).duration().seconds(), 10);
  Attach(0, 0);
  EXPECT_EQ(progress_->NextObservation(now_ + seconds(4)).duration().seconds(), 6);
  EXPECT_FALSE(progress_->Finished(now_ + seconds(9)).has_value());
  EXPECT_EQ(progress_->Finished(now_ + seconds(10))->reason(), v1::Fin::REASON_DURATION);
  // The agent takes no duration of nothing.
  EXPECT_EQ(
      TimeUtil::DurationToNanoseconds(progress_->NextObservation(now_ + seconds(11)).duration()),
      1);
}

TEST_F(ProgressTest, TheAgentsFinIsTheEnd) {
  Observe("");
  Attach(0, 0);
  Take("fin { cursor { agent: 'host' epoch: 7 sequence: 30 } reason: REASON_AGENT_STOPPING }");
  EXPECT_EQ(progress_->Finished(now_)->reason(), v1::Fin::REASON_AGENT_STOPPING);
  EXPECT_EQ(progress_->cursor()->sequence(), 30);
}

TEST_F(ProgressTest, TellsNothingOnceItIsStopped) {
  Observe("");
  observer_.on_event = [this](const v1::Event& event) {
    Told(event.child() + std::to_string(event.child_sequence()));
    stopped_ = true;
  };
  Attach(0, 0);
  TakeTold();
  Take(
      "batch { events { sequence: 1 child: 'a' child_sequence: 1 closed {} } "
      "events { sequence: 2 child: 'a' child_sequence: 2 closed {} } }");
  Gap("a", 9, 9);
  EXPECT_EQ(TakeTold(), Words{"a1"});
  EXPECT_EQ(progress_->cursor()->sequence(), 1);
}

}  // namespace
}  // namespace deka
