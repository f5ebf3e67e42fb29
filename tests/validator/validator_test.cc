// The validator finds nothing in a history that was recorded, and in each that was changed so that
// one promise is broken, that promise and no other.

#include "tests/validator/validator.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "deka/bridge/v1/bridge_service.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/validator/facts.h"

namespace deka::validator {
namespace {

using testing::ElementsAre;

constexpr char kRecorded[] = "tests/validator/recorded/history.txt";

google::rpc::Status Refusal(int code, const std::string& reason) {
  google::rpc::Status status;
  status.set_code(code);
  google::rpc::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("deka.bridge");
  status.add_details()->PackFrom(info);
  return status;
}

class Mutation : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    absl::StatusOr<Recording> recording = Load(kRecorded);
    ASSERT_TRUE(recording.ok()) << recording.status();
    recorded_ = new Recording(*std::move(recording));
  }
  static void TearDownTestSuite() { delete recorded_; }

  Mutation() : recording_(*recorded_) { KnowEvents(); }

  // The promises that are broken, each once.
  std::set<int> Broken() const {
    std::set<int> promises;
    for (const Violation& violation : Validate(recording_).violations) {
      promises.insert(InfoOf(violation.check).promise);
      broken_ += ToText(violation, recording_);
    }
    return promises;
  }

  void ExpectBroken(int promise) { EXPECT_THAT(Broken(), ElementsAre(promise)) << broken_; }
  void ExpectRight() { EXPECT_THAT(Broken(), ElementsAre()) << broken_; }

  // --- Changing it. ---

  template <typename M>
  void Edit(size_t record, const std::function<void(M&)>& change) {
    auto body = std::make_shared<M>(*recording_[record].As<M>());
    change(*body);
    recording_[record].body = std::move(body);
  }

  // What was shown in a record, be it of Observe or Attach.
  static const v1::ObserveResponse* ShownIn(const Record& record) {
    if (const auto* response = record.As<v1::ObserveResponse>()) return response;
    const auto* answer = record.As<v1::AttachResponse>();
    return answer != nullptr && answer->has_observed() ? &answer->observed() : nullptr;
  }

  void EditShown(size_t record, const std::function<void(v1::ObserveResponse&)>& change) {
    if (recording_[record].As<v1::ObserveResponse>() != nullptr) {
      return Edit<v1::ObserveResponse>(record, change);
    }
    Edit<v1::AttachResponse>(
        record, [&](v1::AttachResponse& answer) { change(*answer.mutable_observed()); });
  }

  // Every copy of every event.
  void EditEvents(const std::function<void(v1::Event&)>& change) {
    for (size_t i = 0; i < recording_.size(); ++i) {
      const v1::ObserveResponse* const shown = ShownIn(recording_[i]);
      if (shown == nullptr || !shown->has_batch()) continue;
      EditShown(i, [&](v1::ObserveResponse& response) {
        for (v1::Event& event : *response.mutable_batch()->mutable_events()) change(event);
      });
    }
    KnowEvents();
  }

  void EditEvent(int64_t sequence, const std::function<void(v1::Event&)>& change) {
    EditEvents([&](v1::Event& event) {
      if (event.sequence() == sequence) change(event);
    });
  }

  // What happened at one number happens at the other: the order of two events is changed.
  static void TakeContent(const v1::Event& from, v1::Event& event) {
    v1::Event changed = from;
    changed.set_sequence(event.sequence());
    changed.set_child_sequence(event.child_sequence());
    *changed.mutable_time() = event.time();
    event = std::move(changed);
  }
  void Exchange(int64_t a, int64_t b) {
    const v1::Event first = At(a), second = At(b);
    EditEvent(a, [&](v1::Event& event) { TakeContent(second, event); });
    EditEvent(b, [&](v1::Event& event) { TakeContent(first, event); });
  }

  void Remove(size_t record) {
    recording_.erase(recording_.begin() + static_cast<ptrdiff_t>(record));
  }
  void Insert(size_t record, Record what) {
    recording_.insert(recording_.begin() + static_cast<ptrdiff_t>(record), std::move(what));
  }

  // As if those who saw only a part had not been there: what is changed in all copies is changed in
  // whole streams then.
  void KeepWholeStreamsOnly() {
    std::set<int64_t> dropped;
    for (size_t i = 0; i < recording_.size(); ++i) {
      if (const auto* request = recording_[i].As<v1::ObserveRequest>()) {
        const bool whole = KindBits(request->observation()) == KindBits({}) &&
                           request->filter().ByteSizeLong() == 0 &&
                           request->observation().where().empty() &&
                           !request->observation().has_payload_bytes_max();
        if (!whole) dropped.insert(recording_[i].call);
      }
      const auto* attach = recording_[i].As<v1::AttachRequest>();
      if (attach != nullptr && attach->open().has_observation()) {
        Edit<v1::AttachRequest>(
            i, [](v1::AttachRequest& open) { open.mutable_open()->clear_observation(); });
      }
    }
    std::erase_if(recording_, [&](const Record& record) {
      const auto* answer = record.As<v1::AttachResponse>();
      return dropped.contains(record.call) || (answer != nullptr && answer->has_observed());
    });
    KnowEvents();
  }

  // --- Finding a place in it. ---

  void KnowEvents() {
    events_.clear();
    for (const Record& record : recording_) {
      const v1::ObserveResponse* const shown = ShownIn(record);
      if (shown == nullptr) continue;
      for (const v1::Event& event : shown->batch().events()) {
        v1::Event& known = events_[event.sequence()];
        if (PayloadOf(event).size() >= PayloadOf(known).size()) known = event;
      }
    }
    by_child_.clear();
    for (const auto& [sequence, event] : events_) {
      by_child_[event.child()][event.child_sequence()] = sequence;
    }
  }

  const v1::Event& At(int64_t sequence) const { return events_.at(sequence); }
  // The event of the same child so many further; null if it is not known.
  const v1::Event* After(const v1::Event& event, int64_t count = 1) const {
    const auto& child = by_child_.at(event.child());
    const auto found = child.find(event.child_sequence() + count);
    return found == child.end() ? nullptr : &events_.at(found->second);
  }
  // All of its events are known.
  bool IsComplete(const std::string& child) const {
    const auto& events = by_child_.at(child);
    return events_.at(events.rbegin()->second).has_closed() &&
           events.rbegin()->first == static_cast<int64_t>(events.size());
  }

  // No snapshot is of a state between these events.
  bool NobodyBeganBetween(int64_t first, int64_t last) const {
    return !FindRecord([&](const Record& record) {
      const v1::ObserveResponse* const shown = ShownIn(record);
      return shown != nullptr && shown->has_attached() && shown->attached().head() >= first &&
             shown->attached().head() < last;
    });
  }

  template <typename Predicate>
  std::optional<size_t> FindRecord(Predicate predicate) const {
    for (size_t i = 0; i < recording_.size(); ++i) {
      if (predicate(recording_[i])) return i;
    }
    return std::nullopt;
  }
  template <typename Predicate>
  std::optional<int64_t> FindEvent(Predicate predicate) const {
    for (const auto& [sequence, event] : events_) {
      if (predicate(event)) return sequence;
    }
    return std::nullopt;
  }
  // What a child says that it has done, in its account.
  std::optional<size_t> FindDeed(const std::string& child, What what,
                                 std::string_view payload) const {
    return FindRecord([&](const Record& record) {
      const auto* event = record.As<v1::Event>();
      return record.party == child && record.what == what && event != nullptr &&
             PayloadOf(*event) == payload;
    });
  }
  // Where a call of this party begins.
  std::optional<size_t> AskedIn(int64_t call) const {
    return FindRecord(
        [&](const Record& record) { return record.call == call && record.what == What::kAsked; });
  }
  // A message that was sent by a SendMessage of its own, and how that was answered.
  struct Sent {
    size_t asked, answered;
    int64_t sequence;  // of its event
  };
  template <typename Predicate>
  std::optional<Sent> FindSent(Predicate predicate) const {
    for (size_t asked = 0; asked < recording_.size(); ++asked) {
      const auto* request = recording_[asked].As<v1::SendMessageRequest>();
      if (request == nullptr || request->request_id().empty()) continue;
      const auto answered = FindRecord([&](const Record& record) {
        return record.call == recording_[asked].call &&
               record.As<v1::SendMessageResponse>() != nullptr;
      });
      const auto same_id =
          std::count_if(recording_.begin(), recording_.end(), [&](const Record& record) {
            const auto* other = record.As<v1::SendMessageRequest>();
            return other != nullptr && other->request_id() == request->request_id();
          });
      const auto sequence = FindEvent([&](const v1::Event& event) {
        return event.to_child().request_id() == request->request_id() &&
               request->child().ends_with(event.child());
      });
      if (!answered || !sequence || same_id != 1) continue;
      const Record& answer = recording_[*answered];
      if (predicate(*request, *answer.As<v1::SendMessageResponse>(), At(*sequence))) {
        return Sent{asked, *answered, *sequence};
      }
    }
    return std::nullopt;
  }

  static const Recording* recorded_;
  Recording recording_;
  std::map<int64_t, v1::Event> events_;
  std::map<std::string, std::map<int64_t, int64_t>> by_child_;  // child_sequence to sequence
  mutable std::string broken_;
};

const Recording* Mutation::recorded_ = nullptr;

// The i-th event of the record's batch is the first for which this holds.
template <typename Predicate>
std::optional<std::pair<size_t, int>> FindShown(const Recording& recording, Predicate predicate) {
  for (size_t i = 0; i < recording.size(); ++i) {
    const auto* response = recording[i].As<v1::ObserveResponse>();
    if (response == nullptr) continue;
    for (int j = 0; j < response->batch().events_size(); ++j) {
      if (predicate(recording[i], *response, j)) return std::pair(i, j);
    }
  }
  return std::nullopt;
}

// A copy of an event that somebody else was shown before.
template <typename Predicate>
std::optional<std::pair<size_t, int>> FindLaterCopy(const Recording& recording,
                                                    Predicate predicate) {
  std::set<int64_t> shown_before;
  for (size_t i = 0; i < recording.size(); ++i) {
    const auto* response = recording[i].As<v1::ObserveResponse>();
    if (response == nullptr) continue;
    for (int j = 0; j < response->batch().events_size(); ++j) {
      const int64_t sequence = response->batch().events(j).sequence();
      if (!shown_before.insert(sequence).second && predicate(*response, j)) return std::pair(i, j);
    }
  }
  return std::nullopt;
}

// In the middle of what the witness saw, an event that is followed by another of the same child.
std::optional<std::pair<size_t, int>> InTheMiddle(const Recording& recording) {
  return FindShown(recording, [](const Record& record, const v1::ObserveResponse& shown, int i) {
    const auto& events = shown.batch().events();
    return record.party == "witness" && i > 0 && i + 1 < events.size() &&
           events[i].child() == events[i - 1].child() && events[i].child() == events[i + 1].child();
  });
}

TEST_F(Mutation, WithoutOneAllIsRight) {
  ExpectRight();
  KeepWholeStreamsOnly();
  ExpectRight();
}

TEST_F(Mutation, ARecordingIsTheSameWhenItIsReadAgain) {
  for (const Record& record : recording_) {
    const std::string line = ToText(record);
    const absl::StatusOr<Record> again = ParseRecord(line);
    ASSERT_TRUE(again.ok()) << again.status() << "\n" << line;
    EXPECT_EQ(std::tie(again->moment, again->party, again->call, again->what),
              std::tie(record.moment, record.party, record.call, record.what));
    ASSERT_EQ(again->body == nullptr, record.body == nullptr);
    using google::protobuf::util::MessageDifferencer;
    EXPECT_TRUE(record.body == nullptr || MessageDifferencer::Equals(*again->body, *record.body))
        << line;
  }
}

TEST(RecordTest, ALineThatIsNoneIsRefused) {
  EXPECT_FALSE(ParseRecord("").ok());
  EXPECT_FALSE(ParseRecord("1 witness 2 danced").ok());
  EXPECT_FALSE(ParseRecord("1 witness 2 asked NoSuchRequest {}").ok());
  EXPECT_FALSE(ParseRecord("1 witness 2 asked ObserveRequest {\"parent\":").ok());
  EXPECT_TRUE(ParseRecord("1 witness 2 asked ObserveRequest {}").ok());
  EXPECT_TRUE(ParseRecord("1 witness 2 paused").ok());
}

// --- Numbers. ---

TEST_F(Mutation, AChildSequenceGivenTwice) {
  const auto at = InTheMiddle(recording_);
  ASSERT_TRUE(at);
  const int64_t sequence =
      recording_[at->first].As<v1::ObserveResponse>()->batch().events(at->second).sequence();
  EditEvent(sequence,
            [](v1::Event& event) { event.set_child_sequence(event.child_sequence() - 1); });
  ExpectBroken(1);
}

TEST_F(Mutation, ASequenceGivenTwice) {
  KeepWholeStreamsOnly();
  const auto at =
      FindLaterCopy(recording_, [](const v1::ObserveResponse&, int i) { return i > 0; });
  ASSERT_TRUE(at);
  EditShown(at->first, [&](v1::ObserveResponse& response) {
    auto& events = *response.mutable_batch()->mutable_events();
    events[at->second].set_sequence(events[at->second - 1].sequence());
  });
  ExpectBroken(2);
}

TEST_F(Mutation, ASequenceLeftOut) {
  const int64_t from = events_.rbegin()->first - 3;
  EditEvents([&](v1::Event& event) {
    if (event.sequence() >= from) event.set_sequence(event.sequence() + 1);
  });
  ExpectBroken(2);
}

TEST_F(Mutation, TwoSwapped) {
  const auto at = InTheMiddle(recording_);
  ASSERT_TRUE(at);
  EditShown(at->first, [&](v1::ObserveResponse& response) {
    response.mutable_batch()->mutable_events()->SwapElements(at->second, at->second + 1);
  });
  ExpectBroken(2);
}

TEST_F(Mutation, APayloadThatOneObserverSeesOtherwise) {
  KeepWholeStreamsOnly();
  const auto at = FindLaterCopy(recording_, [](const v1::ObserveResponse& shown, int i) {
    return shown.batch().events(i).has_from_child();
  });
  ASSERT_TRUE(at);
  EditShown(at->first, [&](v1::ObserveResponse& response) {
    v1::Event& event = *response.mutable_batch()->mutable_events(at->second);
    event.mutable_json()->back() ^= 1;
  });
  ExpectBroken(2);
}

TEST_F(Mutation, APayloadCutThatNobodyAskedFor) {
  const auto at =
      FindShown(recording_, [](const Record& record, const v1::ObserveResponse& shown, int i) {
        return record.party == "witness" && shown.batch().events(i).json().size() > 10;
      });
  ASSERT_TRUE(at);
  EditShown(at->first, [&](v1::ObserveResponse& response) {
    response.mutable_batch()->mutable_events(at->second)->mutable_json()->resize(5);
  });
  ExpectBroken(2);
}

TEST_F(Mutation, TimeRunsBackwards) {
  const int64_t sequence = events_.rbegin()->first - 1;
  EditEvent(sequence, [&](v1::Event& event) {
    event.mutable_time()->set_seconds(event.time().seconds() - 60);
  });
  ExpectBroken(3);
}

// --- Order. ---

TEST_F(Mutation, SomethingAfterClosed) {
  KeepWholeStreamsOnly();
  const auto sequence = FindEvent([&](const v1::Event& event) {
    return event.has_exited() && After(event) != nullptr && After(event)->has_closed() &&
           !FindRecord([&](const Record& record) {
             const v1::ObserveResponse* const shown = ShownIn(record);
             return shown != nullptr && shown->gap().child() == event.child();
           });
  });
  ASSERT_TRUE(sequence);
  Exchange(*sequence, After(At(*sequence))->sequence());
  ExpectBroken(4);
}

TEST_F(Mutation, AByteOfAMessageChanged) {
  const auto sequence = FindEvent([&](const v1::Event& event) {
    return event.has_from_child() && IsComplete(event.child()) &&
           event.from_child().size_bytes() == static_cast<int64_t>(event.json().size());
  });
  ASSERT_TRUE(sequence);
  KeepWholeStreamsOnly();
  EditEvent(*sequence, [](v1::Event& event) { event.mutable_json()->back() = '?'; });
  ExpectBroken(5);
}

TEST_F(Mutation, AMessageRecordedTwice) {
  KeepWholeStreamsOnly();
  const auto sequence = FindEvent([&](const v1::Event& event) {
    const v1::Event* const next = After(event);
    return event.has_from_child() && next != nullptr && next->has_from_child();
  });
  ASSERT_TRUE(sequence);
  const v1::Event first = At(*sequence);
  EditEvent(After(first)->sequence(), [&](v1::Event& event) { TakeContent(first, event); });
  ExpectBroken(5);
}

TEST_F(Mutation, ALineOfOutputChanged) {
  const auto sequence =
      FindEvent([&](const v1::Event& event) { return event.has_output() && event.has_text(); });
  ASSERT_TRUE(sequence);
  KeepWholeStreamsOnly();
  EditEvent(*sequence, [](v1::Event& event) { event.mutable_text()->front() = '?'; });
  ExpectBroken(5);
}

// The last message, `disconnected` and `exited`, in another order.
TEST_F(Mutation, ExitedBeforeALastMessageOfItsOwnProcess) {
  KeepWholeStreamsOnly();
  const auto sequence = FindEvent([&](const v1::Event& event) {
    const v1::Event* const second = After(event, 1);
    const v1::Event* const third = After(event, 2);
    return event.has_from_child() && second != nullptr && second->has_disconnected() &&
           third != nullptr && third->has_exited() &&
           NobodyBeganBetween(event.sequence(), third->sequence());
  });
  ASSERT_TRUE(sequence);
  const int64_t second = After(At(*sequence), 1)->sequence();
  const int64_t third = After(At(*sequence), 2)->sequence();
  Exchange(second, third);
  Exchange(*sequence, second);
  ExpectBroken(6);
}

TEST_F(Mutation, LastWordsThatAreNotRecorded) {
  const auto sequence = FindEvent([&](const v1::Event& event) {
    return event.has_from_child() && IsComplete(event.child()) && After(event) != nullptr &&
           After(event)->has_disconnected() && !FindRecord([&](const Record& record) {
             return record.party == event.child() && record.what == What::kForked;
           });
  });
  ASSERT_TRUE(sequence);
  const std::string child = At(*sequence).child();
  // It says that it has written one more.
  const auto last = FindDeed(child, What::kWrote, At(*sequence).json());
  ASSERT_TRUE(last);
  Record more = recording_[*last];
  auto event = std::make_shared<v1::Event>(*more.As<v1::Event>());
  event->set_json("\"and one more\"");
  more.body = std::move(event);
  Insert(*last + 1, std::move(more));
  ExpectBroken(6);
}

TEST_F(Mutation, AnExitCodeThatIsNotItsOwn) {
  const auto sequence = FindEvent([&](const v1::Event& event) {
    return event.has_exited() && event.exited().status().has_code();
  });
  ASSERT_TRUE(sequence);
  const std::string child = At(*sequence).child();
  const auto ends = FindRecord(
      [&](const Record& record) { return record.party == child && record.what == What::kEnds; });
  ASSERT_TRUE(ends);
  Edit<v1::ExitStatus>(*ends, [](v1::ExitStatus& status) { status.set_code(status.code() + 1); });
  ExpectBroken(6);
}

TEST_F(Mutation, ExitedDoesNotSayThatItsChannelIsStillHeld) {
  const auto say_nothing = [](v1::ExitStatus& status) { status.set_still_held(false); };
  bool any = false;
  EditEvents([&](v1::Event& event) {
    if (!event.exited().status().still_held()) return;
    any = true;
    say_nothing(*event.mutable_exited()->mutable_status());
  });
  ASSERT_TRUE(any);
  for (size_t i = 0; i < recording_.size(); ++i) {
    const v1::ObserveResponse* const shown = ShownIn(recording_[i]);
    if (shown == nullptr || !shown->has_snapshot()) continue;
    EditShown(i, [&](v1::ObserveResponse& response) {
      for (v1::Child& child : *response.mutable_snapshot()->mutable_children()) {
        if (child.has_exit_status()) say_nothing(*child.mutable_exit_status());
      }
    });
  }
  ExpectBroken(7);
}

TEST_F(Mutation, AnAnswerBeforeItsQuestion) {
  KeepWholeStreamsOnly();
  // An echo stands right behind what it answers, which no call was told the sequence of.
  const auto sequence = FindEvent([&](const v1::Event& event) {
    const v1::Event* const next = After(event);
    if (!event.has_to_child() || next == nullptr || !next->has_from_child()) return false;
    if (next->json().find(event.json()) == std::string::npos) return false;
    return !FindRecord([&](const Record& record) {
      const auto* response = record.As<v1::SendMessageResponse>();
      return response != nullptr && response->sequence() == event.sequence();
    });
  });
  ASSERT_TRUE(sequence);
  Exchange(*sequence, After(At(*sequence))->sequence());
  ExpectBroken(8);
}

TEST_F(Mutation, TwoSendsOfOneAttachInAnotherOrder) {
  const auto find = [&](int64_t call, int64_t number) {
    return FindRecord([&](const Record& record) {
      const auto* request = record.As<v1::AttachRequest>();
      return request != nullptr && (call == 0 || record.call == call) &&
             request->number() == number && request->has_send() &&
             FindEvent([&](const v1::Event& event) {
               return event.has_to_child() && event.json() == request->send().json();
             });
    });
  };
  std::optional<size_t> first, second;
  for (const Record& record : recording_) {
    if (record.As<v1::AttachRequest>() == nullptr || (first && second)) continue;
    first = find(record.call, 1);
    second = find(record.call, 2);
  }
  ASSERT_TRUE(first && second);
  const v1::AttachRequest::Send a = recording_[*first].As<v1::AttachRequest>()->send();
  const v1::AttachRequest::Send b = recording_[*second].As<v1::AttachRequest>()->send();
  Edit<v1::AttachRequest>(*first, [&](v1::AttachRequest& request) { *request.mutable_send() = b; });
  Edit<v1::AttachRequest>(*second,
                          [&](v1::AttachRequest& request) { *request.mutable_send() = a; });
  ExpectBroken(9);
}

TEST_F(Mutation, TwoMessagesReadInAnotherOrder) {
  const auto first = FindRecord([&](const Record& record) {
    if (record.what != What::kRead) return false;
    const size_t next = static_cast<size_t>(&record - recording_.data()) + 1;
    return FindRecord([&](const Record& other) {
             return other.party == record.party && other.what == What::kRead &&
                    static_cast<size_t>(&other - recording_.data()) >= next;
           })
        .has_value();
  });
  ASSERT_TRUE(first);
  const auto second = FindRecord([&](const Record& record) {
    return record.party == recording_[*first].party && record.what == What::kRead &&
           static_cast<size_t>(&record - recording_.data()) > *first;
  });
  std::swap(recording_[*first].body, recording_[*second].body);
  ExpectBroken(9);
}

TEST_F(Mutation, ASendThatPrecedesWhatWasKnownBeforeIt) {
  // The last one of its child.
  const auto sent = FindSent([&](const auto&, const auto&, const v1::Event& event) {
    return !FindEvent([&](const v1::Event& later) {
      return later.child() == event.child() && later.sequence() > event.sequence() &&
             (later.has_to_child() || later.has_undelivered());
    });
  });
  ASSERT_TRUE(sent);
  // It is asked for when the last event is known to all.
  for (const size_t record : {sent->asked, sent->answered}) {
    recording_[record].moment = recording_[FindRecord([](const Record& each) {
                                             return each.what == What::kStopping;
                                           }).value()]
                                    .moment;
  }
  ExpectBroken(9);
}

TEST_F(Mutation, SignalledBehindWhatItCaused) {
  KeepWholeStreamsOnly();
  const auto sequence = FindEvent([&](const v1::Event& event) {
    const v1::Event* const next = After(event);
    if (!event.has_signalled() || next == nullptr || !next->has_from_child()) return false;
    if (!IsComplete(event.child())) return false;
    const auto wrote = FindDeed(event.child(), What::kWrote, next->json());
    return wrote && recording_[*wrote - 1].what == What::kGotSignal;
  });
  ASSERT_TRUE(sequence);
  Exchange(*sequence, After(At(*sequence))->sequence());
  ExpectBroken(10);
}

TEST_F(Mutation, ASignalThatNobodyIsToldOf) {
  KeepWholeStreamsOnly();
  const auto sequence = FindEvent([&](const v1::Event& event) {
    return event.has_exited() && event.exited().status().has_signal() &&
           IsComplete(event.child()) && FindRecord([&](const Record& record) {
             return record.party == event.child() && record.what == What::kEnds;
           });
  });
  ASSERT_TRUE(sequence);
  const std::string child = At(*sequence).child();
  // Then it was not the child itself.
  Remove(*FindRecord(
      [&](const Record& record) { return record.party == child && record.what == What::kEnds; }));
  ExpectBroken(10);
}

// --- Sends. ---

TEST_F(Mutation, WrittenAnsweredForWhatWasNot) {
  const auto refused = FindRecord([&](const Record& record) {
    const auto* status = record.As<google::rpc::Status>();
    const auto asked = AskedIn(record.call);
    return status != nullptr && status->code() != 0 && asked &&
           ReasonOf(*status) == "INVALID_JSON" &&
           recording_[*asked].As<v1::SendMessageRequest>() != nullptr;
  });
  ASSERT_TRUE(refused);
  const auto other = FindEvent([](const v1::Event& event) { return event.has_to_child(); });
  ASSERT_TRUE(other);
  auto response = std::make_shared<v1::SendMessageResponse>();
  response->set_outcome(v1::SEND_OUTCOME_WRITTEN);
  response->set_sequence(*other);
  recording_[*refused].what = What::kAnswered;
  recording_[*refused].body = std::move(response);
  ExpectBroken(11);
}

TEST_F(Mutation, AnEventOfAnotherSender) {
  const auto sent = FindSent([](const auto&, const auto& response, const v1::Event&) {
    return response.outcome() == v1::SEND_OUTCOME_WRITTEN;
  });
  ASSERT_TRUE(sent);
  EditEvent(sent->sequence, [](v1::Event& event) {
    event.mutable_to_child()->mutable_sender()->set_client("somebody");
  });
  ExpectBroken(11);
}

TEST_F(Mutation, AMessageToTheWrongChild) {
  const auto sent = FindSent([&](const auto&, const auto&, const v1::Event& event) {
    return IsComplete(event.child()) &&
           FindDeed(event.child(), What::kRead, event.json()).has_value();
  });
  ASSERT_TRUE(sent);
  const v1::Event event = At(sent->sequence);
  const auto read = FindDeed(event.child(), What::kRead, event.json());
  Record record = recording_[*read];
  Remove(*read);
  // Another one has read it, last of all.
  std::optional<size_t> last;
  for (size_t i = 0; i < recording_.size(); ++i) {
    const Record& each = recording_[i];
    const bool same = last && recording_[*last].party == each.party;
    if (each.what == What::kRead && each.party != event.child() && IsComplete(each.party) &&
        (!last || same)) {
      last = i;
    }
  }
  ASSERT_TRUE(last);
  record.party = recording_[*last].party;
  Insert(*last + 1, std::move(record));
  ExpectBroken(11);
}

TEST_F(Mutation, AcceptedAndNeitherWrittenNorToldAsUndelivered) {
  KeepWholeStreamsOnly();
  const auto sent = FindSent([&](const auto&, const auto& response, const v1::Event& event) {
    return response.outcome() == v1::SEND_OUTCOME_ACCEPTED && IsComplete(event.child());
  });
  ASSERT_TRUE(sent);
  const v1::Event written = At(sent->sequence);
  // It was not written after all: `undelivered`, and the child has not read it.
  const auto read = FindDeed(written.child(), What::kRead, written.json());
  ASSERT_TRUE(read);
  Remove(*read);
  EditEvent(sent->sequence, [&](v1::Event& event) {
    event.clear_payload();
    v1::Undelivered& undelivered = *event.mutable_undelivered();
    undelivered.set_request_id(written.to_child().request_id());
    *undelivered.mutable_sender() = written.to_child().sender();
    undelivered.set_frame_bytes(100);
    undelivered.set_reason("CHANNEL_CLOSED");
  });
  ExpectRight();
  EditEvent(sent->sequence,
            [](v1::Event& event) { event.mutable_undelivered()->set_request_id("another"); });
  ExpectBroken(12);
}

TEST_F(Mutation, UndeliveredAndWrittenToTheLastByte) {
  KeepWholeStreamsOnly();
  const auto sent = FindSent([&](const auto&, const auto& response, const v1::Event& event) {
    return response.outcome() == v1::SEND_OUTCOME_ACCEPTED && !IsComplete(event.child());
  });
  const auto any = sent ? sent : FindSent([](const auto&, const auto& response, const v1::Event&) {
    return response.outcome() == v1::SEND_OUTCOME_ACCEPTED;
  });
  ASSERT_TRUE(any);
  const v1::Event written = At(any->sequence);
  if (const auto read = FindDeed(written.child(), What::kRead, written.json())) Remove(*read);
  EditEvent(any->sequence, [&](v1::Event& event) {
    event.clear_payload();
    event.mutable_undelivered()->set_request_id(written.to_child().request_id());
    event.mutable_undelivered()->set_written_bytes(100);
    event.mutable_undelivered()->set_frame_bytes(100);
  });
  ExpectBroken(12);
}

TEST_F(Mutation, RefusedAndWrittenAllTheSame) {
  const auto sent = FindSent([](const auto&, const auto&, const v1::Event&) { return true; });
  ASSERT_TRUE(sent);
  recording_[sent->answered].what = What::kEnded;
  recording_[sent->answered].body = std::make_shared<google::rpc::Status>(Refusal(8, "QUEUE_FULL"));
  ExpectBroken(13);
}

TEST_F(Mutation, SentTwice) {
  KeepWholeStreamsOnly();
  // Two sends, of which the second becomes a repeat of the first: with an event of its own.
  const auto first = FindSent([&](const auto&, const auto& response, const v1::Event& event) {
    return response.outcome() == v1::SEND_OUTCOME_WRITTEN && IsComplete(event.child());
  });
  ASSERT_TRUE(first);
  const v1::SendMessageRequest request = *recording_[first->asked].As<v1::SendMessageRequest>();
  const auto second = FindSent([&](const auto& other, const auto& response, const v1::Event&) {
    return response.outcome() == v1::SEND_OUTCOME_WRITTEN && other.child() == request.child() &&
           other.request_id() != request.request_id();
  });
  ASSERT_TRUE(second);
  const v1::Event event = At(first->sequence), repeated = At(second->sequence);
  Edit<v1::SendMessageRequest>(second->asked, [&](v1::SendMessageRequest& other) {
    other.set_json(request.json());
    other.set_request_id(request.request_id());
  });
  EditEvent(second->sequence, [&](v1::Event& other) {
    other.set_json(event.json());
    other.mutable_to_child()->set_request_id(request.request_id());
    other.mutable_to_child()->set_size_bytes(event.to_child().size_bytes());
  });
  const auto read = FindDeed(event.child(), What::kRead, repeated.json());
  ASSERT_TRUE(read);
  Edit<v1::Event>(*read, [&](v1::Event& deed) { deed.set_json(event.json()); });
  ExpectBroken(14);
}

TEST_F(Mutation, ForkedTwice) {
  std::map<std::string, size_t> forks;
  std::optional<size_t> again;
  for (size_t i = 0; i < recording_.size() && !again; ++i) {
    const auto* request = recording_[i].As<v1::ForkChildRequest>();
    if (request != nullptr && !forks.emplace(request->request_id(), i).second) again = i;
  }
  ASSERT_TRUE(again);
  const auto answer = FindRecord([&](const Record& record) {
    return record.call == recording_[*again].call && record.As<v1::ForkChildResponse>() != nullptr;
  });
  ASSERT_TRUE(answer);
  const auto other = FindRecord([&](const Record& record) {
    const auto* response = record.As<v1::ForkChildResponse>();
    return response != nullptr &&
           response->child().name() !=
               recording_[*answer].As<v1::ForkChildResponse>()->child().name();
  });
  ASSERT_TRUE(other);
  recording_[*answer].body = recording_[*other].body;
  ExpectBroken(14);
}

TEST_F(Mutation, ARepeatThatWasNotRememberedAndSent) {
  const auto sent = FindSent([](const auto&, const auto&, const v1::Event&) { return true; });
  ASSERT_TRUE(sent);
  Edit<v1::SendMessageRequest>(sent->asked,
                               [](v1::SendMessageRequest& request) { request.set_repeat(true); });
  ExpectBroken(14);
}

// --- Observing. ---

TEST_F(Mutation, AnEventDropped) {
  const auto at = InTheMiddle(recording_);
  ASSERT_TRUE(at);
  EditShown(at->first, [&](v1::ObserveResponse& response) {
    response.mutable_batch()->mutable_events()->DeleteSubrange(at->second, 1);
  });
  ExpectBroken(15);
}

TEST_F(Mutation, AnEventDroppedThatNobodyElseSaw) {
  const auto at = InTheMiddle(recording_);
  ASSERT_TRUE(at);
  const int64_t sequence =
      recording_[at->first].As<v1::ObserveResponse>()->batch().events(at->second).sequence();
  KeepWholeStreamsOnly();
  for (size_t i = 0; i < recording_.size(); ++i) {
    const v1::ObserveResponse* const shown = ShownIn(recording_[i]);
    if (shown == nullptr || !shown->has_batch()) continue;
    EditShown(i, [&](v1::ObserveResponse& response) {
      auto& events = *response.mutable_batch()->mutable_events();
      events.erase(
          std::remove_if(events.begin(), events.end(),
                         [&](const v1::Event& event) { return event.sequence() == sequence; }),
          events.end());
    });
  }
  EXPECT_TRUE(Broken().contains(15)) << broken_;
}

TEST_F(Mutation, OneRepeated) {
  const auto at = InTheMiddle(recording_);
  ASSERT_TRUE(at);
  EditShown(at->first, [&](v1::ObserveResponse& response) {
    auto& events = *response.mutable_batch()->mutable_events();
    const v1::Event event = events[at->second];
    *events.Add() = event;
    std::rotate(events.begin() + at->second, events.end() - 1, events.end());
  });
  ExpectBroken(15);
}

TEST_F(Mutation, AGapOneShort) {
  const auto at = FindRecord([&](const Record& record) {
    const v1::ObserveResponse* const shown = ShownIn(record);
    if (shown == nullptr || shown->gap().reason() != v1::Gap::REASON_LOG_TURNED_OVER) return false;
    const v1::Gap& gap = shown->gap();
    const auto known = by_child_.find(gap.child());
    return gap.has_from_child_sequence() && gap.from_child_sequence() < gap.to_child_sequence() &&
           known != by_child_.end() && known->second.contains(gap.to_child_sequence()) &&
           known->second.contains(gap.to_child_sequence() - 1);
  });
  ASSERT_TRUE(at);
  const v1::Gap gap = ShownIn(recording_[*at])->gap();
  EditShown(*at, [&](v1::ObserveResponse& response) {
    v1::Gap& shorter = *response.mutable_gap();
    shorter.set_to_child_sequence(gap.to_child_sequence() - 1);
    shorter.set_to_sequence(by_child_[gap.child()][gap.to_child_sequence() - 1]);
  });
  ExpectBroken(15);
  // Or at its beginning.
  EditShown(*at, [&](v1::ObserveResponse& response) {
    *response.mutable_gap() = gap;
    response.mutable_gap()->set_from_child_sequence(gap.from_child_sequence() + 1);
  });
  ExpectBroken(15);
  // Or with another sequence than the event that it ends with.
  EditShown(*at, [&](v1::ObserveResponse& response) {
    *response.mutable_gap() = gap;
    response.mutable_gap()->set_to_sequence(gap.to_sequence() - 1);
  });
  ExpectBroken(15);
}

TEST_F(Mutation, AnEventThatDoesNotFitTheFilter) {
  const auto asked = FindRecord([](const Record& record) {
    return record.party == "witness" && record.As<v1::ObserveRequest>() != nullptr;
  });
  ASSERT_TRUE(asked);
  Edit<v1::ObserveRequest>(*asked, [](v1::ObserveRequest& request) {
    request.mutable_observation()->set_direction(v1::DIRECTION_TO_CHILD);
  });
  ExpectBroken(15);
}

TEST_F(Mutation, AMessageThatDoesNotFitTheCondition) {
  const auto asked = FindRecord([](const Record& record) {
    return record.party == "witness" && record.As<v1::ObserveRequest>() != nullptr;
  });
  ASSERT_TRUE(asked);
  Edit<v1::ObserveRequest>(*asked, [](v1::ObserveRequest& request) {
    v1::ContentFilter& where = *request.mutable_observation()->add_where();
    where.set_pointer("/from");
    where.set_equals("\"sender-1\"");
  });
  ExpectBroken(15);
}

// The first batch of the stream that began in the middle, when all was over.
std::optional<size_t> FirstBatchAfterACursor(const Recording& recording) {
  std::set<int64_t> resumed;
  for (size_t i = 0; i < recording.size(); ++i) {
    const auto* request = recording[i].As<v1::ObserveRequest>();
    if (request != nullptr && request->observation().start().after().sequence() > 0 &&
        KindBits(request->observation()) == KindBits({}) && request->filter().ByteSizeLong() == 0 &&
        request->observation().where().empty()) {
      resumed.insert(recording[i].call);
    }
    const auto* response = recording[i].As<v1::ObserveResponse>();
    if (response == nullptr || !resumed.contains(recording[i].call)) continue;
    if (response->batch().events_size() > 1) return i;
  }
  return std::nullopt;
}

TEST_F(Mutation, AResumedStreamThatShowsOneTwice) {
  const auto at = FirstBatchAfterACursor(recording_);
  ASSERT_TRUE(at);
  const auto asked = AskedIn(recording_[*at].call);
  const int64_t cursor =
      recording_[*asked].As<v1::ObserveRequest>()->observation().start().after().sequence();
  ASSERT_TRUE(events_.contains(cursor));
  EditShown(*at, [&](v1::ObserveResponse& response) {
    auto& events = *response.mutable_batch()->mutable_events();
    *events.Add() = At(cursor);
    std::rotate(events.begin(), events.end() - 1, events.end());
  });
  ExpectBroken(16);
}

TEST_F(Mutation, AResumedStreamThatLeavesOutTheFirst) {
  const auto at = FirstBatchAfterACursor(recording_);
  ASSERT_TRUE(at);
  EditShown(*at, [](v1::ObserveResponse& response) {
    response.mutable_batch()->mutable_events()->DeleteSubrange(0, 1);
  });
  ExpectBroken(16);
}

TEST_F(Mutation, AGapThatDoesNotSayWhereItBegins) {
  const auto at = FindRecord([&](const Record& record) {
    const v1::ObserveResponse* const shown = ShownIn(record);
    const auto asked = AskedIn(record.call);
    return shown != nullptr && shown->gap().has_from_child_sequence() && asked &&
           recording_[*asked].As<v1::ObserveRequest>() != nullptr &&
           !recording_[*asked].As<v1::ObserveRequest>()->observation().start().has_after();
  });
  if (!at) GTEST_SKIP() << "the history has no gap on a stream that was not resumed";
  EditShown(*at, [](v1::ObserveResponse& response) {
    response.mutable_gap()->clear_from_child_sequence();
  });
  ExpectBroken(16);
}

// A snapshot piece, and a child in it whose newest event is known.
TEST_F(Mutation, ASnapshotOlderThanItsHead) {
  std::optional<std::pair<size_t, int>> at;
  for (size_t i = 0; i < recording_.size() && !at; ++i) {
    const v1::ObserveResponse* const shown = ShownIn(recording_[i]);
    if (shown == nullptr) continue;
    for (int j = 0; j < shown->snapshot().children_size() && !at; ++j) {
      const v1::Child& child = shown->snapshot().children(j);
      if (child.last_child_sequence() > 1 && events_.contains(child.last_sequence())) {
        at = std::pair(i, j);
      }
    }
  }
  ASSERT_TRUE(at);
  EditShown(at->first, [&](v1::ObserveResponse& response) {
    v1::Child& child = *response.mutable_snapshot()->mutable_children(at->second);
    const auto& known = by_child_.at(At(child.last_sequence()).child());
    child.set_last_child_sequence(child.last_child_sequence() - 1);
    child.set_last_sequence(known.at(child.last_child_sequence()));
  });
  ExpectBroken(17);
}

TEST_F(Mutation, ASnapshotInAnotherState) {
  std::optional<std::pair<size_t, int>> at;
  for (size_t i = 0; i < recording_.size() && !at; ++i) {
    const v1::ObserveResponse* const shown = ShownIn(recording_[i]);
    if (shown == nullptr) continue;
    for (int j = 0; j < shown->snapshot().children_size() && !at; ++j) {
      if (shown->snapshot().children(j).state() == v1::Child::STATE_CLOSED) at = std::pair(i, j);
    }
  }
  ASSERT_TRUE(at);
  EditShown(at->first, [&](v1::ObserveResponse& response) {
    response.mutable_snapshot()
        ->mutable_children(at->second)
        ->set_state(v1::Child::STATE_CONNECTED);
  });
  ExpectBroken(17);
}

TEST_F(Mutation, AChildMissingInTheSnapshot) {
  const auto at = FindRecord([&](const Record& record) {
    const v1::ObserveResponse* const shown = ShownIn(record);
    return shown != nullptr && shown->snapshot().children_size() > 0 &&
           shown->snapshot().children(0).state() == v1::Child::STATE_CONNECTED;
  });
  ASSERT_TRUE(at);
  EditShown(*at, [](v1::ObserveResponse& response) {
    response.mutable_snapshot()->mutable_children()->DeleteSubrange(0, 1);
  });
  ExpectBroken(17);
}

TEST_F(Mutation, ALaterChildWithoutItsFirstEvent) {
  const auto attached = FindRecord([](const Record& record) {
    const v1::ObserveResponse* const shown = ShownIn(record);
    return record.party == "witness" && shown != nullptr && shown->has_attached();
  });
  ASSERT_TRUE(attached);
  const int64_t head = ShownIn(recording_[*attached])->attached().head();
  const auto at =
      FindShown(recording_, [&](const Record& record, const v1::ObserveResponse& shown, int i) {
        const v1::Event& event = shown.batch().events(i);
        return record.party == "witness" && event.has_started() && event.sequence() > head &&
               shown.batch().events_size() > 1;
      });
  ASSERT_TRUE(at);
  EditShown(at->first, [&](v1::ObserveResponse& response) {
    response.mutable_batch()->mutable_events()->DeleteSubrange(at->second, 1);
  });
  ExpectBroken(17);
}

// The witness' Fin, which the agent's stop made.
std::optional<size_t> LastFin(const Recording& recording) {
  for (size_t i = 0; i < recording.size(); ++i) {
    const auto* response = recording[i].As<v1::ObserveResponse>();
    if (recording[i].party == "witness" && response != nullptr && response->has_fin()) return i;
  }
  return std::nullopt;
}

TEST_F(Mutation, FinBehindWhatWasShown) {
  const auto at = LastFin(recording_);
  ASSERT_TRUE(at);
  EditShown(*at, [](v1::ObserveResponse& response) {
    v1::Cursor& cursor = *response.mutable_fin()->mutable_cursor();
    cursor.set_sequence(cursor.sequence() - 1);
  });
  ExpectBroken(18);
}

TEST_F(Mutation, AStopThatDoesNotShowTheLastEvent) {
  const auto fin = LastFin(recording_);
  ASSERT_TRUE(fin);
  size_t at = *fin;
  while (recording_[at].party != "witness" || ShownIn(recording_[at]) == nullptr ||
         !ShownIn(recording_[at])->has_batch()) {
    ASSERT_GT(at--, 0u);
  }
  EditShown(at, [](v1::ObserveResponse& response) {
    response.mutable_batch()->mutable_events()->RemoveLast();
  });
  ExpectBroken(18);
}

TEST_F(Mutation, AStreamThatEndsWithoutFin) {
  const auto at = LastFin(recording_);
  ASSERT_TRUE(at);
  Remove(*at);
  ExpectBroken(18);
}

TEST_F(Mutation, FinForAReasonThatIsNone) {
  const auto at = LastFin(recording_);
  ASSERT_TRUE(at);
  EditShown(*at, [](v1::ObserveResponse& response) {
    response.mutable_fin()->set_reason(v1::Fin::REASON_EVENTS_MAX);
  });
  ExpectBroken(18);
}

TEST_F(Mutation, AHeartbeatThatCountsWrong) {
  const auto at = LastFin(recording_);
  ASSERT_TRUE(at);
  Record heartbeat = recording_[*at];
  auto body = std::make_shared<v1::ObserveResponse>();
  *body->mutable_heartbeat()->mutable_cursor() =
      heartbeat.As<v1::ObserveResponse>()->fin().cursor();
  body->mutable_heartbeat()->set_delivered(1);
  heartbeat.body = std::move(body);
  Insert(*at, std::move(heartbeat));
  ExpectBroken(18);
}

TEST_F(Mutation, APausedObserverThatHoldsUpTheRest) {
  const auto at = FindRecord([](const Record& record) { return record.what == What::kResumed; });
  ASSERT_TRUE(at);
  recording_[*at].what = What::kGaveUp;
  ExpectBroken(19);
}

TEST_F(Mutation, ALosslessObserverThatLoses) {
  const auto at = FindRecord([](const Record& record) {
    const v1::ObserveResponse* const shown = ShownIn(record);
    return shown != nullptr && shown->gap().reason() == v1::Gap::REASON_LOG_TURNED_OVER;
  });
  ASSERT_TRUE(at);
  // As if it had waited, for one that did not ask for that.
  EditShown(*at, [](v1::ObserveResponse& response) {
    response.mutable_gap()->set_reason(v1::Gap::REASON_BLOCK_TIMEOUT);
  });
  ExpectBroken(20);
}

TEST_F(Mutation, AGapOfALogThatHadRoom) {
  // What the last one who looked back was shown of a child that fits into its log.
  std::map<std::string, int> events;
  for (const auto& [sequence, event] : events_) ++events[event.child()];
  int64_t last_call = 0;
  for (const Record& record : recording_) {
    if (record.party == "main" && record.As<v1::ObserveRequest>()) last_call = record.call;
  }
  const auto at =
      FindShown(recording_, [&](const Record& record, const v1::ObserveResponse& shown, int i) {
        const auto& all = shown.batch().events();
        return record.call == last_call && i > 0 && i + 1 < all.size() &&
               IsComplete(all[i].child()) && events[all[i].child()] < 20;
      });
  ASSERT_TRUE(at);
  const v1::ObserveResponse shown = *recording_[at->first].As<v1::ObserveResponse>();
  const v1::Event& missed = shown.batch().events(at->second);
  Record gap = recording_[at->first], rest = recording_[at->first];
  auto body = std::make_shared<v1::ObserveResponse>();
  body->mutable_gap()->set_child(missed.child());
  body->mutable_gap()->set_from_child_sequence(missed.child_sequence());
  body->mutable_gap()->set_to_child_sequence(missed.child_sequence());
  body->mutable_gap()->set_to_sequence(missed.sequence());
  body->mutable_gap()->set_reason(v1::Gap::REASON_LOG_TURNED_OVER);
  gap.body = std::move(body);
  auto later = std::make_shared<v1::ObserveResponse>(shown);
  later->mutable_batch()->mutable_events()->DeleteSubrange(0, at->second + 1);
  rest.body = std::move(later);
  EditShown(at->first, [&](v1::ObserveResponse& response) {
    auto& all = *response.mutable_batch()->mutable_events();
    all.DeleteSubrange(at->second, all.size() - at->second);
  });
  Insert(at->first + 1, std::move(rest));
  Insert(at->first + 1, std::move(gap));
  ExpectBroken(21);
}

}  // namespace
}  // namespace deka::validator
