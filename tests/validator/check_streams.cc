#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "fmt/format.h"
#include "google/rpc/error_details.pb.h"
#include "tests/validator/checks.h"
#include "tests/validator/content.h"

namespace deka::validator {
namespace {

constexpr int64_t kUnknown = -1;
// What the agent may put around an event in a response.
constexpr int64_t kResponseSlackBytes = 1024;
constexpr int64_t kResponseBytesDefault = 4 << 20;
// What a log may take for an event beside its bytes, and keep free.
constexpr int64_t kRecordBytes = 64;
constexpr int64_t kLogSlackBytes = 8 << 10;
constexpr int64_t kLogEventsDefault = 16384;

bool IsBefore(const v1::Event& event, const google::protobuf::Timestamp& time) {
  return std::pair(event.time().seconds(), event.time().nanos()) <
         std::pair(time.seconds(), time.nanos());
}

std::string MetadataOf(const google::rpc::Status& status, const std::string& key) {
  for (const google::protobuf::Any& detail : status.details()) {
    google::rpc::ErrorInfo info;
    if (!detail.UnpackTo(&info)) continue;
    const auto found = info.metadata().find(key);
    if (found != info.metadata().end()) return found->second;
  }
  return "";
}

// Equal but for payloads.
bool SameHead(const v1::Event& a, const v1::Event& b) {
  if (a.sequence() != b.sequence() || a.child_sequence() != b.child_sequence() ||
      a.child() != b.child() || a.kind_case() != b.kind_case() ||
      a.time().seconds() != b.time().seconds() || a.time().nanos() != b.time().nanos()) {
    return false;
  }
  if (a.has_from_child()) {
    return a.from_child().dialect() == b.from_child().dialect() &&
           a.from_child().size_bytes() == b.from_child().size_bytes() &&
           a.from_child().internal() == b.from_child().internal();
  }
  using google::protobuf::util::MessageDifferencer;
  v1::Event heads[2] = {a, b};
  for (v1::Event& head : heads) head.clear_payload();
  return MessageDifferencer::Equals(heads[0], heads[1]);
}

// The children that nothing can have evicted from their log: all of their events fit into it.
std::vector<bool> FindFitting(const Facts& facts) {
  const v1::AgentLimits& limits = facts.limits();
  int64_t all_logs = 0;
  for (const ChildFacts& child : facts.children()) all_logs += child.limits.log_bytes_max();
  const bool together = limits.logs_bytes_max() == 0 || all_logs < limits.logs_bytes_max();
  const int64_t events_max =
      limits.log_events_max() == 0 ? kLogEventsDefault : limits.log_events_max();
  std::vector<bool> fitting;
  for (const ChildFacts& child : facts.children()) {
    const auto events = static_cast<int64_t>(child.sequences.size());
    int64_t bytes = kLogSlackBytes;
    for (const int64_t sequence : child.sequences) {
      if (sequence == 0) continue;
      const v1::Event& event = *facts.EventAt(sequence);
      bytes += static_cast<int64_t>(event.ByteSizeLong()) + kRecordBytes +
               WholePayloadBytes(event) - static_cast<int64_t>(PayloadOf(event).size());
    }
    fitting.push_back(together && child.complete() &&
                      bytes < child.limits.log_bytes_max() / 16 * 15 &&
                      events + std::min<int64_t>(events_max / 16, 32) < events_max);
  }
  return fitting;
}

// One stream, and where it continues another of the same party, both together.
class StreamCheck {
 public:
  StreamCheck(const Facts& facts, const std::vector<bool>& fitting, const Stream& stream,
              const StreamCheck* before, Verdict& verdict);
  void Run();

 private:
  // How far a child is accounted for: what is not after `through` was shown, named by a gap, did
  // not fit, or lies before the start.
  struct Place {
    bool fits = false;  // the filter's names and labels
    int64_t through = kUnknown;
    bool by_snapshot = false;              // that is where `through` is from
    bool touched = false;                  // an event or gap of it was on this stream
    const v1::Child* described = nullptr;  // in the snapshot
    bool forgotten_before = false;
    // The stream, this one or one that it continues, began with what was in the logs: what was gone
    // then is no gap, until something of the child is shown.
    struct {
      int64_t head = 0;
      int64_t attached_at = 0;
      bool last = false;
    } from_log = {};
    // Gaps since its last event: the sequence that each reaches to, and `through` before it.
    std::vector<std::pair<int64_t, int64_t>> gaps = {};

    // The same at a cursor that stands before the end of a gap: such a gap is told again.
    int64_t ThroughAt(int64_t cursor) const {
      for (const auto& [to_sequence, before] : gaps) {
        if (to_sequence > cursor) return before;
      }
      return through;
    }
  };

  const v1::Observation& asked() const { return stream_.request.observation(); }
  const ChildFacts& child(int number) const {
    return facts_.children()[static_cast<size_t>(number)];
  }
  const EventFact& fact(int64_t sequence) const {
    return facts_.events()[static_cast<size_t>(sequence)];
  }
  int64_t head() const { return stream_.attached->head(); }
  bool Continues(const StreamCheck& before) const;
  // Unset: its payload is not known as a whole.
  std::optional<bool> Fits(const EventFact& event) const {
    if ((kind_bits_ & event.kind_bit) == 0) return false;
    return asked().where().empty() ? true : ContentFits(*event.event, asked());
  }

  void Begin();
  void CheckSince();
  // Where gaps stand of what was gone before it began.
  bool AtTheBeginning() const { return (after_ || since_) && delivered_ == 0; }
  void TakeChild(size_t record, const v1::Child& child);
  void CheckSnapshot(size_t record, const v1::SnapshotComplete& complete);
  void CheckDescription(size_t record, const v1::Child& shown, const ChildFacts& facts);
  // The numbers of its events, all of them; if they are wrong, there is nothing to go by.
  bool CheckOrder();
  // Whether what others were shown under the same number is the same.
  bool CheckCopy(size_t record, const v1::Event& event);
  void TakeEvent(size_t record, const v1::Event& event);
  void CheckCut(size_t record, const v1::Event& event);
  void TakeGap(size_t record, const v1::Gap& gap);
  void CheckGapEnds(size_t record, const v1::Gap& gap, const ChildFacts& facts);
  void CheckReason(size_t record, const v1::Gap& gap);
  void TakeHeartbeat(size_t record, const v1::Heartbeat& heartbeat);
  void TakeFin(size_t record, const v1::Fin& fin);
  void End();

  // The events of the child that are known, fit, and come before child_sequence `end`, and were
  // neither shown nor named: none, unless something excuses it.
  void CheckSkipped(int number, int64_t end, size_t record);
  // The same for all children and everything up to `sequence`. With `all`, nothing may be left for
  // a gap that was still to come.
  void CheckThrough(int64_t sequence, bool all, Check check, size_t record);
  int64_t FirstDue(const Place& place, const ChildFacts& facts) const;
  bool Excused(int number, const EventFact& event) const;
  // Its snapshot says so, or one before did.
  bool IsForgotten(int number) const {
    const Place& place = places_[static_cast<size_t>(number)];
    return place.forgotten_before ||
           (snapshot_complete_ && place.described == nullptr && child(number).started <= head());
  }
  Check CheckOf(const Place& place, const ChildFacts& facts) const;

  const Facts& facts_;
  const std::vector<bool>& fitting_;
  const Stream& stream_;
  Verdict& verdict_;
  const uint32_t kind_bits_;
  const bool whole_;  // all kinds, directions and contents
  std::vector<Place> places_;
  const size_t violations_before_;
  std::set<std::pair<size_t, int>> told_;  // at most one complaint of a piece and check

  bool after_ = false;         // began after a cursor
  bool other_epoch_ = false;   // of another life of the log
  bool since_ = false;         // began at a time
  bool from_the_log_ = false;  // began with what was in the logs, whatever was gone
  int64_t start_ = 0;
  int64_t position_ = 0;  // where a stream goes on that continues this one
  bool snapshot_complete_ = false;
  int64_t last_ = 0;         // sequence shown
  std::vector<bool> shown_;  // by sequence
  int64_t delivered_ = 0, dropped_ = 0;
  bool exact_ = true;                     // no gap but said how many it names
  int64_t forgotten_through_ = kUnknown;  // of a gap that does not name its children
  const v1::Fin* fin_ = nullptr;
};

StreamCheck::StreamCheck(const Facts& facts, const std::vector<bool>& fitting, const Stream& stream,
                         const StreamCheck* before, Verdict& verdict)
    : facts_(facts),
      fitting_(fitting),
      stream_(stream),
      verdict_(verdict),
      kind_bits_(KindBits(stream.request.observation())),
      whole_(kind_bits_ == KindBits({}) && stream.request.observation().where().empty()),
      places_(facts.children().size()),
      violations_before_(verdict.violations.size()),
      shown_(facts.events().size()) {
  const v1::ChildFilter& filter = stream.request.filter();
  std::set<int> named;
  bool all = filter.children().empty();
  for (const std::string& name : filter.children()) {
    all |= name.ends_with("/-") || name == "-";
    named.insert(facts.ChildNamed(name));
  }
  for (size_t i = 0; i < places_.size(); ++i) {
    const ChildFacts& child = facts.children()[i];
    places_[i].fits =
        (all || named.contains(static_cast<int>(i))) &&
        std::all_of(filter.labels().begin(), filter.labels().end(), [&](const auto& label) {
          const auto found = child.labels.find(label.first);
          return found != child.labels.end() && found->second == label.second;
        });
  }
  if (before == nullptr || !Continues(*before)) return;
  forgotten_through_ = before->forgotten_through_;
  for (size_t i = 0; i < places_.size(); ++i) {
    places_[i].through = before->places_[i].ThroughAt(before->position_);
    places_[i].forgotten_before = before->IsForgotten(static_cast<int>(i));
    if (!before->places_[i].touched) places_[i].from_log = before->places_[i].from_log;
  }
}

bool StreamCheck::Continues(const StreamCheck& before) const {
  const v1::Observation& a = before.asked();
  const v1::Observation& b = asked();
  return before.stream_.attached != nullptr && b.start().has_after() &&
         b.start().after().epoch() == before.stream_.attached->epoch() &&
         b.start().after().sequence() == before.position_ && before.kind_bits_ == kind_bits_ &&
         std::equal(places_.begin(), places_.end(), before.places_.begin(), before.places_.end(),
                    [](const Place& x, const Place& y) { return x.fits == y.fits; }) &&
         a.where_size() == b.where_size() &&
         std::equal(a.where().begin(), a.where().end(), b.where().begin(),
                    [](const auto& x, const auto& y) {
                      return google::protobuf::util::MessageDifferencer::Equals(x, y);
                    });
}

void StreamCheck::Run() {
  if (stream_.attached != nullptr) Begin();
  if (!CheckOrder()) return;
  for (const Stream::Piece& piece : stream_.pieces) {
    const v1::ObserveResponse& response = *piece.response;
    if (fin_ != nullptr) {
      verdict_.Violate(Check::kFinReason, "something follows Fin", {piece.record});
      break;
    }
    const bool first = &piece == stream_.pieces.data();
    if (first != response.has_attached() ||
        (response.has_snapshot() || response.has_snapshot_complete()
             ? snapshot_complete_
             : !first && !snapshot_complete_ && !response.has_fin())) {
      verdict_.Violate(Check::kSnapshot,
                       "a stream is Attached, the snapshot, its end, and then everything else",
                       {piece.record});
      return;
    }
    switch (response.response_case()) {
      case v1::ObserveResponse::kSnapshot:
        for (const v1::Child& shown : response.snapshot().children()) {
          TakeChild(piece.record, shown);
        }
        break;
      case v1::ObserveResponse::kSnapshotComplete:
        CheckSnapshot(piece.record, response.snapshot_complete());
        break;
      case v1::ObserveResponse::kBatch:
        for (const v1::Event& event : response.batch().events()) TakeEvent(piece.record, event);
        break;
      case v1::ObserveResponse::kGap:
        TakeGap(piece.record, response.gap());
        break;
      case v1::ObserveResponse::kHeartbeat:
        TakeHeartbeat(piece.record, response.heartbeat());
        break;
      case v1::ObserveResponse::kFin:
        TakeFin(piece.record, response.fin());
        break;
      case v1::ObserveResponse::kAttached:
      case v1::ObserveResponse::RESPONSE_NOT_SET:
        break;
    }
  }
  End();
}

void StreamCheck::Begin() {
  const v1::Attached& attached = *stream_.attached;
  const v1::ObserveStart& start = asked().start();
  start_ = attached.start().sequence();
  after_ = start.has_after();
  since_ = start.has_since();
  from_the_log_ = start.has_earliest() || start.has_last();
  if (after_) {
    other_epoch_ = start.after().epoch() != attached.epoch();
    if (start_ != start.after().sequence() && !other_epoch_) {
      verdict_.Violate(Check::kResumed,
                       fmt::format("it was to begin after {}, and begins after {}",
                                   start.after().sequence(), start_),
                       {stream_.asked, stream_.pieces[0].record});
    }
    // Of another life of the log: everything of this one is still to be told.
    start_ = other_epoch_ ? 0 : start.after().sequence();
    verdict_.Exercise(Check::kResumed);
  }
  const int64_t known = facts_.KnownBefore(stream_.asked_at);
  if (attached.head() < known) {
    verdict_.Violate(Check::kSnapshot,
                     fmt::format("its head is {}, though {} was known before it was asked for",
                                 attached.head(), known),
                     {stream_.asked, stream_.pieces[0].record});
  }
  if (since_) CheckSince();
  if (!after_ && !since_ && !from_the_log_ && start_ != attached.head()) {
    verdict_.Violate(Check::kSnapshotThenEvents,
                     fmt::format("it begins with what happens from now on, but after {} where the "
                                 "head is {}",
                                 start_, attached.head()),
                     {stream_.pieces[0].record});
  }
  position_ = last_ = start_;
  for (size_t i = 0; i < places_.size(); ++i) {
    const int64_t started = facts_.children()[i].started;
    if (places_[i].through == kUnknown && started > start_) places_[i].through = 0;
    if (from_the_log_) places_[i].from_log = {head(), stream_.attached_at, start.has_last()};
  }
}

// What happened since then and was in the log is after the place that it begins after.
void StreamCheck::CheckSince() {
  verdict_.Exercise(Check::kResumed);
  for (int64_t sequence = 1; sequence <= std::min(start_, facts_.head()); ++sequence) {
    const EventFact& event = fact(sequence);
    if (event.event == nullptr || IsBefore(*event.event, asked().start().since()) ||
        event.in_log_at <= stream_.attached_at || !places_[static_cast<size_t>(event.child)].fits) {
      continue;
    }
    verdict_.Violate(Check::kResumed,
                     fmt::format("it begins after {}, though {} is not older than the time that "
                                 "it was to begin with, and was in the log",
                                 start_, NameOf(*event.event, facts_)),
                     {stream_.asked, stream_.pieces[0].record, event.record});
    return;
  }
}

void StreamCheck::TakeChild(size_t record, const v1::Child& shown) {
  const int number = facts_.ChildNamed(shown.name());
  Place& place = places_[static_cast<size_t>(number)];
  if (!place.fits || place.described != nullptr) {
    verdict_.Violate(
        Check::kSnapshot,
        fmt::format("{} {}", NameOf(child(number)),
                    place.fits ? "is in the snapshot twice" : "does not fit the filter"),
        {stream_.asked, record});
  }
  place.described = &shown;
  verdict_.Exercise(Check::kSnapshot);
  CheckDescription(record, shown, child(number));
  if (place.through == kUnknown && start_ == head()) {
    place.through = shown.last_child_sequence();
    place.by_snapshot = true;
  }
}

void StreamCheck::CheckDescription(size_t record, const v1::Child& shown, const ChildFacts& facts) {
  const auto wrong = [&](std::string what) {
    verdict_.Violate(Check::kSnapshot,
                     fmt::format("the snapshot of {} at {} {}", NameOf(facts), head(), what),
                     {stream_.pieces[0].record, record});
  };
  // The newest event up to head, as far as it is known.
  int64_t newest = 0;
  for (const int64_t sequence : facts.sequences) {
    if (sequence != 0 && sequence <= head()) newest = sequence;
  }
  const v1::Event* const last = facts_.EventAt(shown.last_sequence());
  if (shown.last_sequence() > head() || shown.last_sequence() < newest ||
      (last != nullptr &&
       (last->child() != facts.id || last->child_sequence() != shown.last_child_sequence()))) {
    return wrong(fmt::format("says that its newest event is {}, its own {}; {} is known",
                             shown.last_sequence(), shown.last_child_sequence(), newest));
  }
  const auto past = [&](int64_t sequence) { return sequence != 0 && sequence <= head(); };
  const auto future = [&](int64_t sequence) { return sequence > head(); };
  const bool fits = [&] {
    switch (shown.state()) {
      case v1::Child::STATE_CONNECTED:
        return !past(facts.disconnected) && !past(facts.exited) && !past(facts.closed);
      case v1::Child::STATE_DISCONNECTED:
        return !past(facts.exited) && !past(facts.closed);
      case v1::Child::STATE_EXITED:
        return !future(facts.exited) && !past(facts.closed);
      case v1::Child::STATE_CLOSED:
        return !future(facts.closed);
      default:
        return false;
    }
  }();
  if (!fits) {
    return wrong(fmt::format("is in {}, with `disconnected` at {}, `exited` at {}, `closed` at {}",
                             v1::Child::State_Name(shown.state()), facts.disconnected, facts.exited,
                             facts.closed));
  }
  using google::protobuf::util::MessageDifferencer;
  if (const v1::Event* exited = facts_.EventAt(facts.exited);
      exited != nullptr && past(facts.exited) &&
      !MessageDifferencer::Equals(exited->exited().status(), shown.exit_status())) {
    return wrong("tells another exit status than its event");
  }
  if (const v1::Event* started = facts_.EventAt(facts.started)) {
    const v1::Child& first = started->started().child();
    if (first.name() != shown.name() || first.display_name() != shown.display_name() ||
        first.pid() != shown.pid()) {
      return wrong("is of another child than its `started`");
    }
  }
}

void StreamCheck::CheckSnapshot(size_t record, const v1::SnapshotComplete& complete) {
  snapshot_complete_ = true;
  if (complete.head() != head()) {
    verdict_.Violate(
        Check::kSnapshot,
        fmt::format("the snapshot is of {}, and the head was {}", complete.head(), head()),
        {stream_.pieces[0].record, record});
  }
  for (size_t i = 0; i < places_.size(); ++i) {
    const ChildFacts& facts = facts_.children()[i];
    // What has an event after the head was not forgotten at the head.
    const bool there =
        facts.started != 0 && facts.started <= head() && facts.newest_sequence > head();
    if (!places_[i].fits || !there || places_[i].described != nullptr) continue;
    verdict_.Violate(Check::kSnapshot,
                     fmt::format("{} is not in the snapshot of {}, though it was started at {}",
                                 NameOf(facts), head(), facts.started),
                     {stream_.pieces[0].record, record});
  }
}

bool StreamCheck::CheckOrder() {
  bool right = true;
  int64_t last = start_;
  const auto wrong = [&](Check check, const v1::Event& event, const std::string& what,
                         size_t record) {
    right = false;
    verdict_.Violate(check, fmt::format("{} {}", NameOf(event, facts_), what),
                     {stream_.asked, record});
  };
  for (const Stream::Piece& piece : stream_.pieces) {
    for (const v1::Event& event : piece.response->batch().events()) {
      verdict_.Exercise(Check::kShownOnce);
      verdict_.Exercise(Check::kSequenceGrows);
      if (facts_.EventAt(event.sequence()) == nullptr) {
        wrong(Check::kSequenceGrows, event, "has a number that cannot be", piece.record);
        continue;
      }
      if (!CheckCopy(piece.record, event)) {
        right = false;
        continue;
      }
      std::vector<bool>::reference shown = shown_[static_cast<size_t>(event.sequence())];
      if ((after_ || since_) && event.sequence() <= start_) {
        wrong(Check::kResumed, event, fmt::format("is shown after the place {}", start_),
              piece.record);
      } else if (shown) {
        wrong(Check::kShownOnce, event, "is shown twice on one stream", piece.record);
      } else if (event.sequence() <= last) {
        wrong(Check::kSequenceGrows, event, fmt::format("is shown after sequence {}", last),
              piece.record);
      }
      shown = true;
      last = std::max(last, event.sequence());
    }
  }
  return right;
}

bool StreamCheck::CheckCopy(size_t record, const v1::Event& event) {
  const EventFact& fact = this->fact(event.sequence());
  if (&event == fact.event) return true;
  verdict_.Exercise(Check::kSameEvent);
  const bool same_head = SameHead(event, *fact.event);
  if (same_head && PayloadOf(*fact.event).starts_with(PayloadOf(event))) return true;
  verdict_.Violate(
      Check::kSameEvent,
      same_head ? fmt::format("{} has two payloads", NameOf(event, facts_))
                : fmt::format("sequence {} stands for two events: {} and {}", event.sequence(),
                              NameOf(event, facts_), NameOf(*fact.event, facts_)),
      {fact.record, record});
  return false;
}

void StreamCheck::TakeEvent(size_t record, const v1::Event& event) {
  ++delivered_;
  verdict_.Exercise(Check::kNothingSilent);
  CheckCut(record, event);
  if (since_ && IsBefore(event, asked().start().since())) {
    verdict_.Violate(
        Check::kResumed,
        fmt::format("{} is older than the time that it was to begin with", NameOf(event, facts_)),
        {stream_.asked, record});
  }
  last_ = position_ = event.sequence();
  const int number = facts_.ChildNamed(event.child());
  Place& place = places_[static_cast<size_t>(number)];
  if (!whole_ || !stream_.request.filter().children().empty() ||
      !stream_.request.filter().labels().empty()) {
    verdict_.Exercise(Check::kFits);
  }
  if (!place.fits || !Fits(fact(event.sequence())).value_or(true)) {
    verdict_.Violate(Check::kFits, fmt::format("{} does not fit the filter", NameOf(event, facts_)),
                     {stream_.asked, record});
  }
  CheckSkipped(number, event.child_sequence(), record);
  if (!place.touched && place.by_snapshot) verdict_.Exercise(Check::kSnapshotThenEvents);
  if (!place.touched && child(number).started > head()) verdict_.Exercise(Check::kLaterChild);
  place.touched = true;
  place.gaps.clear();
  place.through = std::max(place.through, event.child_sequence());
}

void StreamCheck::CheckCut(size_t record, const v1::Event& event) {
  const auto shown = static_cast<int64_t>(PayloadOf(event).size());
  const int64_t whole = WholePayloadBytes(event);
  if (asked().has_payload_bytes_max() && shown > asked().payload_bytes_max()) {
    verdict_.Violate(Check::kPayloadCut,
                     fmt::format("{} has {} bytes of payload, {} were asked for",
                                 NameOf(event, facts_), shown, asked().payload_bytes_max()),
                     {stream_.asked, record});
  }
  if (shown >= whole) return;
  verdict_.Exercise(Check::kPayloadCut);
  const int64_t response_bytes =
      asked().response_bytes_max() == 0 ? kResponseBytesDefault : asked().response_bytes_max();
  const int64_t room =
      response_bytes - kResponseSlackBytes - (static_cast<int64_t>(event.ByteSizeLong()) - shown);
  // Three bytes less, where a character of four would be cut.
  const int64_t asked_for = asked().has_payload_bytes_max() ? asked().payload_bytes_max() : whole;
  if (shown < std::min({whole, room, asked_for}) - 3) {
    verdict_.Violate(Check::kPayloadCut,
                     fmt::format("{} is cut to {} of {} bytes without need", NameOf(event, facts_),
                                 shown, whole),
                     {stream_.asked, record});
  }
}

int64_t StreamCheck::FirstDue(const Place& place, const ChildFacts& facts) const {
  if (place.through != kUnknown) return place.through + 1;
  const auto first = std::find_if(facts.sequences.begin(), facts.sequences.end(),
                                  [&](int64_t sequence) { return sequence > start_; });
  return first - facts.sequences.begin();
}

bool StreamCheck::Excused(int number, const EventFact& event) const {
  const Place& place = places_[static_cast<size_t>(number)];
  const int64_t sequence = event.event->sequence();
  const bool forgotten = IsForgotten(number);
  if (!place.touched && sequence <= place.from_log.head &&
      event.in_log_at <= place.from_log.attached_at &&
      (forgotten || !fitting_[static_cast<size_t>(number)] ||
       // It may have been forgotten before its last events were looked for.
       (place.from_log.last && child(number).closed != 0))) {
    return true;
  }
  return forgotten && sequence <= forgotten_through_;
}

Check StreamCheck::CheckOf(const Place& place, const ChildFacts& facts) const {
  if (place.touched) return Check::kNothingSilent;
  if (facts.started > head()) return Check::kLaterChild;
  if (place.by_snapshot) return Check::kSnapshotThenEvents;
  return after_ ? Check::kResumed : Check::kNothingSilent;
}

void StreamCheck::CheckSkipped(int number, int64_t end, size_t record) {
  const ChildFacts& facts = child(number);
  Place& place = places_[static_cast<size_t>(number)];
  const int64_t first = FirstDue(place, facts);
  const auto wrong = [&](const std::string& what) {
    const Check check = CheckOf(place, facts);
    if (!told_.emplace(record, static_cast<int>(check)).second) return;
    verdict_.Violate(check,
                     fmt::format("{} of {} was neither shown nor named by a gap before {}", what,
                                 NameOf(facts), end),
                     {stream_.asked, record});
  };
  if (end <= place.through) {
    verdict_.Violate(Check::kShownOnce,
                     fmt::format("event {} of {} was accounted for up to {} already", end,
                                 NameOf(facts), place.through),
                     {stream_.asked, record});
    return;
  }
  for (int64_t i = first; i < std::min<int64_t>(end, std::ssize(facts.sequences)); ++i) {
    const int64_t sequence = facts.sequences[static_cast<size_t>(i)];
    if (sequence == 0) continue;
    const EventFact& event = fact(sequence);
    if (!Fits(event).value_or(false) || Excused(number, event)) continue;
    return wrong(NameOf(*event.event, facts_));
  }
  // Without a filter the numbers alone tell, of what nobody was shown, too.
  const bool may_be_gone = !place.touched && facts.started <= place.from_log.head;
  if (whole_ && place.through != kUnknown && first < end && !may_be_gone) {
    wrong(fmt::format("event {}", first));
  }
}

void StreamCheck::TakeGap(size_t record, const v1::Gap& gap) {
  if (asked().fail_on_gap() && gap.reason() != v1::Gap::REASON_RATE) {
    verdict_.Violate(Check::kFailOnGap, "a gap is told, though the stream was to fail instead",
                     {stream_.asked, record});
  }
  if (gap.inexact()) {
    verdict_.Exercise(Check::kForgottenGap);
    const bool other_epoch = after_ && asked().start().after().epoch() != stream_.attached->epoch();
    if (gap.reason() !=
        (other_epoch ? v1::Gap::REASON_OTHER_EPOCH : v1::Gap::REASON_CHILD_FORGOTTEN)) {
      verdict_.Violate(
          Check::kForgottenGap,
          fmt::format("a gap that names no child has {}", v1::Gap::Reason_Name(gap.reason())),
          {stream_.asked, record});
    }
    forgotten_through_ = std::max(forgotten_through_, gap.to_sequence());
    exact_ = false;
    return;
  }
  verdict_.Exercise(Check::kGap);
  const int number = facts_.ChildNamed(gap.child());
  const ChildFacts& facts = child(number);
  Place& place = places_[static_cast<size_t>(number)];
  const auto wrong = [&](Check check, const std::string& what) {
    verdict_.Violate(check,
                     fmt::format("the gap of {} from {} to {} {}", NameOf(facts),
                                 gap.from_child_sequence(), gap.to_child_sequence(), what),
                     {stream_.asked, record});
  };
  if (!place.fits) return wrong(Check::kFits, "is of a child that does not fit the filter");
  int64_t from = gap.from_child_sequence();
  if (!gap.has_from_child_sequence()) {
    verdict_.Exercise(Check::kFirstGaps);
    exact_ = false;
    if (!AtTheBeginning() || place.touched) {
      wrong(Check::kFirstGaps,
            "does not say where it begins, and does not stand at the beginning of a stream that "
            "was resumed");
    }
    from = FirstDue(place, facts);
  } else if (from < 1 || from > gap.to_child_sequence()) {
    wrong(Check::kGap, "names nothing");
  } else if (from <= place.through) {
    wrong(Check::kGap, fmt::format("names what was accounted for up to {}", place.through));
  } else {
    CheckSkipped(number, from, record);
    dropped_ += gap.to_child_sequence() - from + 1;
  }
  CheckGapEnds(record, gap, facts);
  CheckReason(record, gap);
  for (int64_t i = from; i <= std::min(gap.to_child_sequence(), std::ssize(facts.sequences) - 1);
       ++i) {
    const int64_t sequence = facts.sequences[static_cast<size_t>(i)];
    if (sequence == 0) continue;
    if (sequence <= start_ && gap.has_from_child_sequence() && !from_the_log_) {
      wrong(Check::kGap, fmt::format("names {}, from before the start after {}",
                                     NameOf(*facts_.EventAt(sequence), facts_), start_));
      break;
    }
    if (gap.reason() != v1::Gap::REASON_RATE &&
        fact(sequence).in_log_at > facts_.recording()[record].moment) {
      wrong(Check::kGap, fmt::format("names {}, which was still in the log later",
                                     NameOf(*facts_.EventAt(sequence), facts_)));
      break;
    }
  }
  if (gap.reason() == v1::Gap::REASON_LOG_TURNED_OVER && fitting_[static_cast<size_t>(number)]) {
    wrong(Check::kOwnLog, "says that its log turned over, where all of its events had room");
  }
  if (gap.reason() == v1::Gap::REASON_CHILD_FORGOTTEN) {
    verdict_.Exercise(Check::kForgottenGap);
    if (const v1::Event* closed = facts_.EventAt(facts.closed);
        closed != nullptr && closed->child_sequence() != gap.to_child_sequence()) {
      wrong(Check::kForgottenGap,
            fmt::format("is of a child that was forgotten, whose last event is {}",
                        closed->child_sequence()));
    }
  }
  place.touched = true;
  place.gaps.emplace_back(gap.to_sequence(), place.through);
  place.through = std::max(place.through, gap.to_child_sequence());
}

void StreamCheck::CheckGapEnds(size_t record, const v1::Gap& gap, const ChildFacts& facts) {
  // The events around its end that are known.
  const int64_t to = gap.to_child_sequence();
  int64_t before = 0, before_sequence = 0, after_sequence = 0;
  for (int64_t i = 1; i < std::ssize(facts.sequences) && after_sequence == 0; ++i) {
    const int64_t sequence = facts.sequences[static_cast<size_t>(i)];
    if (sequence == 0) continue;
    if (i <= to) {
      before = i;
      before_sequence = sequence;
    } else {
      after_sequence = sequence;
    }
  }
  const v1::Event* const last = facts_.EventAt(gap.to_sequence());
  const bool fits = before == to
                        ? before_sequence == gap.to_sequence()
                        : last == nullptr && gap.to_sequence() - before_sequence >= to - before;
  if (fits && (after_sequence == 0 || gap.to_sequence() < after_sequence) &&
      gap.to_sequence() > start_) {
    return;
  }
  verdict_.Violate(Check::kGap,
                   fmt::format("the gap of {} ends with event {}, which cannot have sequence {}",
                               NameOf(facts), to, gap.to_sequence()),
                   {stream_.asked, record});
}

// Whether an observer that asked for this may be told of such a gap.
void StreamCheck::CheckReason(size_t record, const v1::Gap& gap) {
  const v1::SlowPolicy policy = asked().when_slow();
  const auto wrong = [&](Check check) {
    verdict_.Violate(check,
                     fmt::format("a gap with {} is told to an observer with {}",
                                 v1::Gap::Reason_Name(gap.reason()), v1::SlowPolicy_Name(policy)),
                     {stream_.asked, record});
  };
  switch (gap.reason()) {
    case v1::Gap::REASON_LOG_TURNED_OVER:
    case v1::Gap::REASON_CHILD_FORGOTTEN:
      if (policy == v1::SLOW_POLICY_DISCONNECT && !AtTheBeginning()) return wrong(Check::kGap);
      // One that began with what was in a full log holds nobody before it has read that, and all
      // logs together may be too large, for everybody.
      if (gap.reason() == v1::Gap::REASON_LOG_TURNED_OVER && policy == v1::SLOW_POLICY_BLOCK &&
          start_ == head() && facts_.limits().logs_bytes_max() == 0) {
        return wrong(Check::kLossless);
      }
      return;
    case v1::Gap::REASON_RATE:
      if (asked().events_per_second_max() == 0) return wrong(Check::kGap);
      return;
    case v1::Gap::REASON_BLOCK_TIMEOUT:
      if (policy != v1::SLOW_POLICY_BLOCK) return wrong(Check::kLossless);
      return;
    default:
      return wrong(Check::kGap);
  }
}

void StreamCheck::TakeHeartbeat(size_t record, const v1::Heartbeat& heartbeat) {
  verdict_.Exercise(Check::kHeartbeat);
  const int64_t cursor = heartbeat.cursor().sequence();
  if (cursor < last_ || heartbeat.delivered() != delivered_ || heartbeat.dropped() != dropped_) {
    verdict_.Violate(
        Check::kHeartbeat,
        fmt::format("a heartbeat at {} says {} shown and {} missed; it is {}, {} and {}", cursor,
                    heartbeat.delivered(), heartbeat.dropped(), last_, delivered_, dropped_),
        {stream_.asked, record});
  }
  CheckThrough(cursor, /*all=*/true, Check::kHeartbeat, record);
  position_ = std::max(position_, cursor);
}

void StreamCheck::CheckThrough(int64_t sequence, bool all, Check check, size_t record) {
  for (size_t number = 0; number < places_.size(); ++number) {
    const Place& place = places_[number];
    const ChildFacts& facts = facts_.children()[number];
    if (!place.fits) continue;
    for (int64_t i = FirstDue(place, facts); i < std::ssize(facts.sequences); ++i) {
      const int64_t each = facts.sequences[static_cast<size_t>(i)];
      if (each > sequence) break;
      if (each == 0) continue;
      const EventFact& event = fact(each);
      if (!Fits(event).value_or(false) || Excused(static_cast<int>(number), event)) continue;
      // Its log turned over beyond here: the gap would have come after what was shown last.
      if (!all && facts.newest_sequence > sequence && event.in_log_at <= stream_.last_at &&
          !fitting_[number]) {
        continue;
      }
      if (!told_.emplace(record, static_cast<int>(check)).second) return;
      verdict_.Violate(check,
                       fmt::format("{} was neither shown nor named by a gap, and the stream has "
                                   "come to {}",
                                   NameOf(*event.event, facts_), sequence),
                       {stream_.asked, record, event.record});
      return;
    }
  }
}

void StreamCheck::TakeFin(size_t record, const v1::Fin& fin) {
  fin_ = &fin;
  const int64_t cursor = fin.cursor().sequence();
  verdict_.Exercise(Check::kFinCursor);
  verdict_.Exercise(Check::kFinReason);
  if (cursor < last_ || fin.cursor().epoch() != stream_.attached->epoch()) {
    verdict_.Violate(Check::kFinCursor,
                     fmt::format("Fin says to go on after {}, and {} was shown", cursor, last_),
                     {stream_.asked, record});
  }
  const bool stopped = fin.reason() == v1::Fin::REASON_AGENT_STOPPING;
  const bool closed = fin.reason() == v1::Fin::REASON_CLOSED;
  CheckThrough(cursor, stopped || closed, Check::kFinCursor, record);
  position_ = std::max(position_, cursor);

  const bool right = [&] {
    switch (fin.reason()) {
      case v1::Fin::REASON_EVENTS_MAX:
        return asked().events_max() > 0 && delivered_ == asked().events_max();
      case v1::Fin::REASON_DURATION:
        return asked().has_duration();
      case v1::Fin::REASON_CLOSED:
        return asked().until_closed();
      case v1::Fin::REASON_AGENT_STOPPING:
        return facts_.stopping();
      case v1::Fin::REASON_HALF_CLOSED:
        return facts_.recording()[stream_.asked].As<v1::AttachRequest>() != nullptr;
      default:
        return false;
    }
  }();
  if (!right) {
    verdict_.Violate(Check::kFinReason,
                     fmt::format("Fin says {} after {} events, which is not what was asked for",
                                 v1::Fin::Reason_Name(fin.reason()), delivered_),
                     {stream_.asked, record});
  }
  if (!stopped && !closed) return;
  if (stopped) verdict_.Exercise(Check::kStopShowsAll);
  for (size_t number = 0; number < places_.size(); ++number) {
    const ChildFacts& facts = facts_.children()[number];
    if (!places_[number].fits || (closed && facts.started > head())) continue;
    const int64_t newest = facts.sequences.empty() ? 0 : facts.sequences.back();
    if (newest <= cursor) continue;
    verdict_.Violate(
        stopped ? Check::kStopShowsAll : Check::kFinReason,
        fmt::format("{} comes after Fin, which says {}", NameOf(*facts_.EventAt(newest), facts_),
                    v1::Fin::Reason_Name(fin.reason())),
        {stream_.asked, record});
    return;
  }
  // Every number of the agent up to here was shown or named.
  if (!stopped || !whole_ || !exact_ || verdict_.violations.size() != violations_before_ ||
      from_the_log_ || !stream_.request.filter().children().empty() ||
      !stream_.request.filter().labels().empty()) {
    return;
  }
  verdict_.Exercise(Check::kSequenceDense, cursor - start_);
  if (delivered_ + dropped_ != cursor - start_) {
    verdict_.Violate(Check::kSequenceDense,
                     fmt::format("of the {} events from {} to {}, {} were shown and {} named by "
                                 "gaps",
                                 cursor - start_, start_, cursor, delivered_, dropped_),
                     {stream_.asked, record});
  }
}

void StreamCheck::End() {
  const google::rpc::Status* const status = stream_.status;
  const bool attached = stream_.attached != nullptr;
  if (fin_ == nullptr && attached) {
    CheckThrough(last_, /*all=*/false, Check::kNothingSilent, stream_.last);
  }
  if (attached && asked().when_slow() == v1::SLOW_POLICY_BLOCK && delivered_ > 0) {
    verdict_.Exercise(Check::kLossless);
  }
  if (status == nullptr) return;
  const auto wrong = [&](Check check, const std::string& what) {
    verdict_.Violate(check, what, {stream_.asked, stream_.last});
  };
  if (status->code() == 0) {
    if (attached && fin_ == nullptr) wrong(Check::kFinReason, "the stream ends well, without Fin");
    return;
  }
  const std::string reason = ReasonOf(*status);
  if (reason == "CURSOR_EXPIRED") {
    verdict_.Exercise(Check::kFailOnGap);
    const std::string first = MetadataOf(*status, "first_sequence");
    if (!asked().fail_on_gap() || std::strtoll(first.c_str(), nullptr, 10) <=
                                      (attached ? start_ : asked().start().after().sequence())) {
      wrong(Check::kFailOnGap,
            fmt::format("it fails with CURSOR_EXPIRED, first_sequence {}", first));
    }
  } else if (reason == "TOO_SLOW") {
    if (asked().when_slow() != v1::SLOW_POLICY_DISCONNECT) {
      wrong(Check::kFinReason, "it fails with TOO_SLOW, which was not asked for");
    }
  } else if (reason.empty()) {
    wrong(Check::kFinReason, fmt::format("the stream ends with code {} and no reason: {}",
                                         status->code(), status->message()));
  }
}

void CheckPauses(const Facts& facts, Verdict& verdict) {
  for (size_t i = 0; i < facts.recording().size(); ++i) {
    const Record& record = facts.recording()[i];
    if (record.what == What::kResumed) verdict.Exercise(Check::kPausedObserver);
    if (record.what != What::kGaveUp) continue;
    verdict.Violate(
        Check::kPausedObserver,
        fmt::format("{} read nothing, and what had to happen all the same did not", record.party),
        {i});
  }
}

// The children that fit into their log, where the log of another turned over.
void CountOwnLogs(const Facts& facts, const std::vector<bool>& fitting, Verdict& verdict) {
  for (const Stream& stream : facts.streams()) {
    for (const Stream::Piece& piece : stream.pieces) {
      if (piece.response->gap().reason() != v1::Gap::REASON_LOG_TURNED_OVER) continue;
      return verdict.Exercise(Check::kOwnLog, std::count(fitting.begin(), fitting.end(), true));
    }
  }
}

}  // namespace

void CheckStreams(const Facts& facts, Verdict& verdict) {
  const std::vector<bool> fitting = FindFitting(facts);
  std::map<std::string, std::unique_ptr<StreamCheck>> last;  // by party
  for (const Stream& stream : facts.streams()) {
    std::unique_ptr<StreamCheck>& before = last[stream.party];
    auto check = std::make_unique<StreamCheck>(facts, fitting, stream, before.get(), verdict);
    check->Run();
    if (stream.attached != nullptr) before = std::move(check);
  }
  CheckPauses(facts, verdict);
  CountOwnLogs(facts, fitting, verdict);
}

}  // namespace deka::validator
