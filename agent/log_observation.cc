#include "agent/log_observation.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "fmt/format.h"
#include "ipc/error.h"
#include "ipc/utf8.h"

namespace deka::agent {
namespace {

// What an answer of Attach puts around a response, with room to spare.
constexpr size_t kEnvelopeBytes = 64;
constexpr size_t kResponseBytesDefault = 4 << 20;
constexpr size_t kResponseBytesMin = 64 << 10;
// No event is larger: a bound beyond it means the same.
constexpr size_t kResponseBytesMax = 128 << 20;
// The longest that the writer waits for a reader: copied, or walked over, under a log's lock.
constexpr size_t kCopyBytesMax = 64 << 10;
constexpr int kWalkRecordsMax = 512;
constexpr size_t kForgottenMax = 1024;
// Up to here it costs less to look at each place than to walk the list of logs with news.
constexpr size_t kPlacesLookedAt = 16;

// A batch is written behind room for tag and length, as long as they are for most.
constexpr size_t kBatchHeadBytes = 4;
constexpr char kBatchTag = v1::ObserveResponse::kBatchFieldNumber << 3 | 2;

void FinishBatch(std::string& batch) {
  const size_t bytes = batch.size() - kBatchHeadBytes;
  const size_t head_bytes = 1 + VarintBytes(bytes);
  if (head_bytes > kBatchHeadBytes) {
    batch.insert(0, head_bytes - kBatchHeadBytes, '\0');
  } else {
    batch.erase(0, kBatchHeadBytes - head_bytes);
  }
  batch[0] = kBatchTag;
  PutVarint(bytes, batch.data() + 1);
}

absl::Status InvalidField(std::string_view field, std::string_view what) {
  return ipc::MakeError(ipc::Reason::kInvalidArgument, fmt::format("`{}` {}", field, what),
                        {{"field", std::string(field)}});
}

// Unset if it is out of range or not normalised.
std::optional<std::chrono::milliseconds> ToMilliseconds(
    const google::protobuf::Duration& duration) {
  constexpr int64_t kSecondsMax = 315'576'000'000;
  const int64_t seconds = duration.seconds();
  const int32_t nanos = duration.nanos();
  if (seconds < -kSecondsMax || seconds > kSecondsMax) return std::nullopt;
  if (nanos <= -1'000'000'000 || nanos >= 1'000'000'000) return std::nullopt;
  if ((seconds < 0 && nanos > 0) || (seconds > 0 && nanos < 0)) return std::nullopt;
  return std::chrono::milliseconds(seconds * 1000 + nanos / 1'000'000);
}

size_t ResponseBytes(const v1::Observation& observation) {
  const int64_t asked = observation.response_bytes_max();
  if (asked == 0) return kResponseBytesDefault - kEnvelopeBytes;
  return std::min(static_cast<size_t>(asked), kResponseBytesMax) - kEnvelopeBytes;
}

uint32_t FilterBits(const v1::Observation& observation) {
  uint32_t bits = 0;
  for (const int kind : observation.kinds()) bits |= 1u << kind;
  if (bits == 0) bits = ~0u;
  const uint32_t from = 1u << v1::EVENT_KIND_MESSAGE;
  const uint32_t to = 1u << 31;
  if (!(bits & from)) return bits;
  bits |= to;
  if (observation.direction() == v1::DIRECTION_FROM_CHILD) bits &= ~to;
  if (observation.direction() == v1::DIRECTION_TO_CHILD) bits &= ~from;
  return bits;
}

// Where the record before `position` begins. There is one.
uint64_t BeginBefore(const RecordRing& ring, uint64_t position) {
  if (position == ring.control().head) return ring.control().newest;
  const uint64_t begin = ring.Settle(position);
  return begin - ring.At(begin).back_bytes;
}

}  // namespace

absl::Status ValidateObservation(const v1::Observation& observation, bool children_named) {
  if (observation.start().has_last() && observation.start().last() < 1) {
    return InvalidField("observation.start.last", "must be at least 1.");
  }
  if (observation.start().has_after() && observation.start().after().sequence() < 0) {
    return InvalidField("observation.start.after", "has a negative sequence.");
  }
  for (const int kind : observation.kinds()) {
    if (kind == v1::EVENT_KIND_UNSPECIFIED || !v1::EventKind_IsValid(kind)) {
      return InvalidField("observation.kinds",
                          fmt::format("holds {}, which is no kind of event.", kind));
    }
  }
  if (!v1::Direction_IsValid(observation.direction())) {
    return InvalidField(
        "observation.direction",
        fmt::format("is {}, which is no direction.", static_cast<int>(observation.direction())));
  }
  if (observation.events_max() < 0) {
    return InvalidField("observation.events_max", "must not be negative; 0 means no such end.");
  }
  if (observation.has_duration()) {
    const auto duration = ToMilliseconds(observation.duration());
    if (!duration || duration->count() <= 0) {
      return InvalidField("observation.duration",
                          "must be a valid time of at least 1 ms; leave it out for no such end.");
    }
  }
  if (observation.until_closed() && !children_named) {
    return InvalidField("observation.until_closed", "needs children that are named in the filter.");
  }
  const int64_t response_bytes = observation.response_bytes_max();
  if (response_bytes != 0 && response_bytes < static_cast<int64_t>(kResponseBytesMin)) {
    return InvalidField("observation.response_bytes_max",
                        fmt::format("must be 0 or at least {}.", kResponseBytesMin));
  }
  if (observation.has_heartbeat_interval()) {
    const auto interval = ToMilliseconds(observation.heartbeat_interval());
    if (!interval || interval->count() < 1000 || interval->count() > 60'000) {
      return InvalidField("observation.heartbeat_interval", "must be 1 to 60 seconds.");
    }
  }
  return absl::OkStatus();
}

size_t SnapshotBytesMax(const v1::Observation& observation) {
  return std::min(ResponseBytes(observation), Observation::kBatchBytesMax);
}

void Wakeup::Arm(absl::AnyInvocable<void()> callback) {
  ipc::MutexLock lock(mutex_);
  callback_ = std::move(callback);
}

void Wakeup::Call() {
  const std::thread::id self = std::this_thread::get_id();
  absl::AnyInvocable<void()> callback;
  {
    ipc::MutexLock lock(mutex_);
    if (!callback_) return;
    callback = std::exchange(callback_, nullptr);
    callers_.push_back(self);
  }
  callback();
  callback = nullptr;
  ipc::MutexLock lock(mutex_);
  callers_.erase(std::find(callers_.begin(), callers_.end(), self));
  returned_.NotifyAll();
}

void Wakeup::Cancel() {
  const std::thread::id self = std::this_thread::get_id();
  absl::AnyInvocable<void()> dropped;
  ipc::MutexLock lock(mutex_);
  dropped = std::exchange(callback_, nullptr);
  while (std::any_of(callers_.begin(), callers_.end(), [&](auto id) { return id != self; })) {
    returned_.Wait(mutex_);
  }
}

LogObservation::LogObservation(EventLog& log, ObservationPlan plan)
    : log_(log),
      named_(plan.children.has_value()),
      labels_(std::move(plan.labels)),
      filter_bits_(FilterBits(plan.observation)),
      start_(plan.observation.start()),
      fail_on_gap_(plan.observation.fail_on_gap()),
      events_max_(plan.observation.events_max()),
      until_closed_(plan.observation.until_closed()),
      response_bytes_max_(ResponseBytes(plan.observation)),
      batch_bytes_max_(std::min(response_bytes_max_, kBatchBytesMax)),
      heartbeat_interval_(std::chrono::seconds(10)),
      snapshot_(std::make_move_iterator(plan.snapshot.begin()),
                std::make_move_iterator(plan.snapshot.end())) {
  if (plan.children) children_ = *std::move(plan.children);
  if (plan.observation.has_heartbeat_interval()) {
    heartbeat_interval_ = *ToMilliseconds(plan.observation.heartbeat_interval());
  }
  if (plan.observation.has_duration()) {
    deadline_ = std::chrono::steady_clock::now() + *ToMilliseconds(plan.observation.duration());
  }
}

LogObservation::~LogObservation() {
  {
    ipc::MutexLock lock(log_.mutex_);
    log_.observers_.erase(this);
    std::erase(log_.observers_of_all_, this);
    for (Log* log : watched_) std::erase(log->observers_, this);
  }
  wakeup_->Cancel();
}

absl::Status LogObservation::Begin() {
  attached_.set_agent(log_.agent());
  attached_.set_epoch(log_.epoch());
  attached_.set_head(log_.head_);
  attached_.set_response_bytes_max(static_cast<int64_t>(response_bytes_max_ + kEnvelopeBytes));
  int64_t first_sequence = log_.head_ + 1;
  for (const std::shared_ptr<Log>& log : log_.logs_) {
    ipc::MutexLock lock(log->mutex_);
    const RecordRing& ring = log->ring_;
    if (ring.empty()) continue;
    first_sequence = std::min(first_sequence, ring.At(ring.Settle(ring.control().tail)).sequence);
  }
  attached_.set_first_sequence(first_sequence);

  if (!named_) children_.assign(log_.logs_.begin(), log_.logs_.end());
  std::erase_if(children_, [&](const std::shared_ptr<Log>& log) { return !HasLabels(*log); });
  for (const std::shared_ptr<Log>& log : children_) {
    ipc::MutexLock lock(log->mutex_);
    const RecordRing::Control& control = log->ring_.control();
    Place& place = places_[PlaceOf(log)];
    place.position = start_.has_earliest() ? control.tail : control.head;
    place.seen =
        start_.has_earliest() ? control.evicted_child_sequence : control.newest_child_sequence;
  }
  cursor_ = start_.has_earliest() ? first_sequence - 1 : log_.head_;
  *attached_.mutable_start() = CursorAt(cursor_);
  if (start_.has_after()) {
    if (absl::Status status = BeginAfter(start_.after()); !status.ok()) return status;
  }

  log_.observers_.insert(this);
  if (!named_ && labels_.empty()) {
    log_.observers_of_all_.push_back(this);
  } else {
    for (const std::shared_ptr<Log>& log : children_) Watch(log);
  }
  children_ = {};
  return absl::OkStatus();
}

absl::Status LogObservation::BeginAfter(const v1::Cursor& cursor) {
  if (!cursor.agent().empty() && cursor.agent() != log_.agent()) {
    return ipc::MakeError(ipc::Reason::kInvalidArgument,
                          fmt::format("The cursor is of agent {}, this is agent {}. Observe there, "
                                      "or start without a cursor.",
                                      cursor.agent(), log_.agent()));
  }
  *attached_.mutable_start() = cursor;
  if (cursor.epoch() != log_.epoch()) {
    if (fail_on_gap_) {
      return ipc::MakeError(
          ipc::Reason::kCursorOtherEpoch,
          fmt::format("The cursor is of epoch {}, the log of epoch {}: the agent was started anew. "
                      "Observe from the earliest event, or without fail_on_gap.",
                      cursor.epoch(), log_.epoch()),
          {{"epoch", fmt::format("{}", log_.epoch())}});
    }
    // Nothing of this epoch was seen.
    for (Place& place : places_) place = {.log = std::move(place.log)};
    cursor_ = 0;
    AddInexactGap(v1::Gap::REASON_OTHER_EPOCH, log_.forgotten_through_);
    return absl::OkStatus();
  }
  if (cursor.sequence() > log_.head_) {
    return ipc::MakeError(ipc::Reason::kInvalidArgument,
                          fmt::format("The cursor's sequence {} lies beyond the newest event, {}. "
                                      "Use a cursor that the agent gave.",
                                      cursor.sequence(), log_.head_),
                          {{"head", fmt::format("{}", log_.head_)}});
  }
  cursor_ = cursor.sequence();
  int64_t missed = named_ ? 0 : log_.forgotten_through_;
  if (missed > cursor_) AddInexactGap(v1::Gap::REASON_CHILD_FORGOTTEN, missed);
  for (Place& place : places_) {
    ipc::MutexLock lock(place.log->mutex_);
    missed = std::max(missed, place.log->ring_.control().evicted_sequence);
    place.search = place.log->ring_.control().newest_sequence > cursor_;
  }
  if (missed > cursor_ && fail_on_gap_) {
    return ipc::MakeError(
        ipc::Reason::kCursorExpired,
        fmt::format("Events after sequence {} are no longer in the log; after {} nothing is "
                    "missing. Observe after that, or without fail_on_gap.",
                    cursor_, missed),
        {{"first_sequence", fmt::format("{}", missed)}});
  }
  return absl::OkStatus();
}

void LogObservation::AddInexactGap(v1::Gap::Reason reason, int64_t to_sequence) {
  v1::Gap gap;
  gap.set_inexact(true);
  gap.set_to_sequence(to_sequence);
  gap.set_reason(reason);
  gaps_.push_back({std::move(gap), 0});
}

bool LogObservation::HasLabels(const Log& log) const {
  return std::all_of(labels_.begin(), labels_.end(), [&](const auto& label) {
    const auto found = log.labels().find(label.first);
    return found != log.labels().end() && found->second == label.second;
  });
}

uint32_t LogObservation::PlaceOf(const std::shared_ptr<Log>& log) {
  const auto [entry, is_new] =
      place_numbers_.try_emplace(log.get(), static_cast<uint32_t>(places_.size()));
  if (is_new) places_.push_back({.log = log});
  return entry->second;
}

void LogObservation::RemovePlace(const Log& log) {
  const auto found = place_numbers_.find(&log);
  if (found == place_numbers_.end()) return;
  const uint32_t number = found->second;
  place_numbers_.erase(found);
  if (number + 1 < places_.size()) {
    places_[number] = std::move(places_.back());
    place_numbers_[places_[number].log.get()] = number;
  }
  places_.pop_back();
  closed_places_ = 0;
}

void LogObservation::Watch(const std::shared_ptr<Log>& log) {
  log->observers_.push_back(this);
  watched_.insert(log.get());
}

void LogObservation::OnNewLog(const std::shared_ptr<Log>& log) {
  if (!named_ && !labels_.empty() && HasLabels(*log)) Watch(log);
}

bool LogObservation::OnCommit(Log& log, const RecordRing::Control& control, uint32_t filter_bits,
                              int64_t head_before) {
  if (!skipping_) return true;
  const uint32_t wanted = filter_bits_ | (until_closed_ ? 1u << v1::EVENT_KIND_CLOSED : 0);
  if (filter_bits & wanted) {
    skipping_ = false;
    cursor_ = head_before;
    return true;
  }
  Place& place = places_[PlaceOf(*log.place_in_list_)];
  place.position = control.head;
  place.seen = control.newest_child_sequence;
  return false;
}

bool LogObservation::OnForget(const std::shared_ptr<Log>& log) {
  watched_.erase(log.get());
  if (skipping_) {
    RemovePlace(*log);
    return false;
  }
  if (forgotten_.size() < kForgottenMax) {
    forgotten_.push_back(log);
  } else {
    forgotten_overflow_ = log->news_;
  }
  return true;
}

void LogObservation::OnReady(absl::AnyInvocable<void()> ready) {
  {
    ipc::MutexLock lock(log_.mutex_);
    const bool now = step_ != Step::kEvents || end_ || !gaps_.empty() || !heap_.empty() ||
                     (!skipping_ && log_.head_ > cursor_) || !forgotten_.empty() || log_.closing_ ||
                     std::chrono::steady_clock::now() >= deadline_;
    if (!now) {
      skipping_ = true;
      wakeup_->Arm(std::move(ready));
      return;
    }
  }
  ready();
}

void LogObservation::End(v1::Fin::Reason reason) {
  if (reason == v1::Fin::REASON_AGENT_STOPPING) {
    ipc::MutexLock lock(log_.mutex_);
    if (!stop_at_) stop_at_ = log_.head_;
  } else if (!end_) {
    end_ = reason;
  }
  const std::shared_ptr<Wakeup> wakeup = wakeup_;
  wakeup->Call();
}

v1::Cursor LogObservation::cursor() const {
  ipc::MutexLock lock(log_.mutex_);
  return CursorAt(skipping_ ? log_.head_ : cursor_);
}

v1::Cursor LogObservation::CursorAt(int64_t sequence) const {
  v1::Cursor cursor;
  cursor.set_agent(log_.agent());
  cursor.set_epoch(log_.epoch());
  cursor.set_sequence(sequence);
  return cursor;
}

void LogObservation::TakeHeartbeat(std::string& response) {
  v1::ObserveResponse message;
  v1::Heartbeat& heartbeat = *message.mutable_heartbeat();
  *heartbeat.mutable_cursor() = cursor();
  heartbeat.set_delivered(delivered_);
  heartbeat.set_dropped(dropped_);
  message.SerializeToString(&response);
}

Observation::Next LogObservation::TakeNext(std::string& response) {
  {
    ipc::MutexLock lock(log_.mutex_);
    if (skipping_) cursor_ = log_.head_;
    skipping_ = false;
  }
  if (step_ == Step::kEnded) return Next::kEnd;
  if (!end_ && deadline_ != std::chrono::steady_clock::time_point::max() &&
      std::chrono::steady_clock::now() >= deadline_) {
    end_ = v1::Fin::REASON_DURATION;
  }
  if (end_) return TakeFin(response);
  if (step_ == Step::kAttached) {
    if (start_.has_last()) FindLast(start_.last());
    v1::ObserveResponse message;
    *message.mutable_attached() = attached_;
    message.SerializeToString(&response);
    step_ = Step::kSnapshot;
    return Next::kResponse;
  }
  if (step_ == Step::kSnapshot) {
    if (!snapshot_.empty()) {
      response = std::move(snapshot_.front());
      snapshot_.pop_front();
      return Next::kResponse;
    }
    v1::ObserveResponse message;
    message.mutable_snapshot_complete()->set_head(attached_.head());
    message.SerializeToString(&response);
    step_ = Step::kEvents;
    return Next::kResponse;
  }
  return TakeEvents(response);
}

void LogObservation::FindLast(int64_t count) {
  // Steps back from the newest event of all, wherever it is.
  struct Walk {
    int64_t sequence;
    uint64_t begin;
    uint32_t place;
    bool operator<(const Walk& other) const { return sequence < other.sequence; }
  };
  std::vector<Walk> heap;
  const auto push_before = [&](uint32_t number, const RecordRing& ring) {
    const Place& place = places_[number];
    if (place.seen <= ring.control().evicted_child_sequence) return;
    const uint64_t begin = BeginBefore(ring, place.position);
    heap.push_back({ring.At(begin).sequence, begin, number});
    std::push_heap(heap.begin(), heap.end());
  };
  for (uint32_t number = 0; number < places_.size(); ++number) {
    Log& log = *places_[number].log;
    ipc::MutexLock lock(log.mutex_);
    push_before(number, log.ring_);
  }
  while (count > 0 && !heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    Walk walk = heap.back();
    heap.pop_back();
    const int64_t other = heap.empty() ? 0 : heap.front().sequence;
    Place& place = places_[walk.place];
    ipc::MutexLock lock(place.log->mutex_);
    const RecordRing& ring = place.log->ring_;
    for (int i = 0; i < kWalkRecordsMax; ++i) {
      if (place.seen <= ring.control().evicted_child_sequence) break;
      const Record& record = ring.At(walk.begin);
      if (record.sequence < other) break;
      place.position = walk.begin;
      place.seen = record.child_sequence - 1;
      cursor_ = record.sequence - 1;
      if (Matches(record) && --count == 0) break;
      walk.begin -= record.back_bytes;
    }
    if (count > 0) push_before(walk.place, ring);
  }
  *attached_.mutable_start() = CursorAt(cursor_);
}

void LogObservation::Search(Place& place) {
  Log& log = *place.log;
  for (bool found = false; !found;) {
    ipc::MutexLock lock(log.mutex_);
    const RecordRing& ring = log.ring_;
    for (int i = 0; i < kWalkRecordsMax && !found; ++i) {
      if (place.seen <= ring.control().evicted_child_sequence) {
        found = true;
        break;
      }
      const uint64_t begin = BeginBefore(ring, place.position);
      const Record& record = ring.At(begin);
      found = record.sequence <= cursor_;
      if (found) break;
      place.position = begin;
      place.seen = record.child_sequence - 1;
    }
    if (found) SkipUnseen(place);
  }
}

Observation::Next LogObservation::TakeEvents(std::string& response) {
  for (;;) {
    if (end_) return TakeFin(response);
    if (!gaps_.empty()) return TakeGap(response);
    if (heap_.empty()) {
      cursor_ = std::max(cursor_, round_head_);
      const bool stopped = stop_at_ && cursor_ >= *stop_at_;
      if (!stopped && Collect()) continue;
      if (until_closed_ && AllClosed()) {
        end_ = v1::Fin::REASON_CLOSED;
      } else if (stopped || stopping_) {
        end_ = v1::Fin::REASON_AGENT_STOPPING;
      } else {
        return Next::kWait;
      }
      continue;
    }
    response.assign(kBatchHeadBytes, '\0');
    bool full = false;
    while (!full && !heap_.empty() && gaps_.empty() && !end_) {
      std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
      const Source source = heap_.back();
      heap_.pop_back();
      const int64_t others = heap_.empty() ? round_head_ : heap_.front().key - 1;
      full = Run(places_[source.place], source, std::max(source.key, others), response);
      Enqueue(source.place);
    }
    if (response.size() > kBatchHeadBytes) {
      FinishBatch(response);
      return Next::kResponse;
    }
  }
}

bool LogObservation::Collect() {
  std::vector<uint32_t> candidates;
  {
    ipc::MutexLock lock(log_.mutex_);
    round_head_ = log_.head_;
    stopping_ = log_.closing_;
    TakeForgotten();
    const bool look_at_each = first_round_ || (named_ && places_.size() <= kPlacesLookedAt);
    if (look_at_each) {
      for (uint32_t number = 0; number < places_.size(); ++number) candidates.push_back(number);
    }
    if (!named_ || !look_at_each) {
      for (const std::shared_ptr<Log>& log : log_.logs_) {
        if (log->news_ <= cursor_) break;
        if (named_ ? !place_numbers_.contains(log.get())
                   : !labels_.empty() && !watched_.contains(log.get())) {
          continue;
        }
        const size_t places_before = places_.size();
        const uint32_t number = PlaceOf(log);
        if (!look_at_each || places_.size() > places_before) candidates.push_back(number);
      }
    }
  }
  first_round_ = false;
  for (const uint32_t number : candidates) Enqueue(number);
  return !heap_.empty() || !gaps_.empty();
}

void LogObservation::TakeForgotten() {
  for (const std::shared_ptr<Log>& log : forgotten_) {
    Place& place = places_[PlaceOf(log)];
    {
      ipc::MutexLock lock(log->mutex_);
      if (place.search) {
        SkipUnseen(place);
      } else {
        SkipEvicted(place, 0);
      }
    }
    RemovePlace(*log);
  }
  forgotten_.clear();
  if (forgotten_overflow_ == 0) return;
  AddInexactGap(v1::Gap::REASON_CHILD_FORGOTTEN, std::exchange(forgotten_overflow_, 0));
  for (size_t i = places_.size(); i-- > 0;) {
    if (places_[i].log->forgotten_) RemovePlace(*std::shared_ptr<Log>(places_[i].log));
  }
}

void LogObservation::Enqueue(uint32_t place_number) {
  Place& place = places_[place_number];
  if (place.search) Search(place);
  int64_t key;
  {
    ipc::MutexLock lock(place.log->mutex_);
    const RecordRing& ring = place.log->ring_;
    const RecordRing::Control& control = ring.control();
    if (place.position < control.tail && place.seen < control.evicted_child_sequence) {
      key = std::min(control.evicted_sequence, round_head_);
    } else {
      place.position = std::max(place.position, control.tail);
      if (place.position == control.head) return;
      key = ring.At(ring.Settle(place.position)).sequence;
    }
  }
  if (key > round_head_) return;
  heap_.push_back({key, place_number});
  std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
}

bool LogObservation::SkipEvicted(Place& place, int64_t key) {
  const RecordRing::Control& control = place.log->ring_.control();
  if (place.position >= control.tail) return false;
  place.position = control.tail;
  if (place.seen >= control.evicted_child_sequence) return false;
  AddGap(place, place.seen + 1, key);
  return true;
}

void LogObservation::SkipUnseen(Place& place) {
  const RecordRing::Control& control = place.log->ring_.control();
  place.search = false;
  if (control.evicted_sequence <= cursor_) return;
  place.position = control.tail;
  AddGap(place, control.first_sequence > cursor_ ? std::optional<int64_t>(1) : std::nullopt, 0);
}

void LogObservation::AddGap(Place& place, std::optional<int64_t> from_child_sequence, int64_t key) {
  const RecordRing::Control& control = place.log->ring_.control();
  place.seen = control.evicted_child_sequence;
  v1::Gap gap;
  gap.set_child(place.log->child());
  if (from_child_sequence) gap.set_from_child_sequence(*from_child_sequence);
  gap.set_to_child_sequence(control.evicted_child_sequence);
  gap.set_to_sequence(control.evicted_sequence);
  gap.set_reason(place.log->memory_ ? v1::Gap::REASON_LOG_TURNED_OVER
                                    : v1::Gap::REASON_CHILD_FORGOTTEN);
  gaps_.push_back({std::move(gap), key});
}

bool LogObservation::Run(Place& place, const Source& source, int64_t bound, std::string& batch) {
  Log& log = *place.log;
  for (;;) {
    {
      ipc::MutexLock lock(log.mutex_);
      const RecordRing& ring = log.ring_;
      if (SkipEvicted(place, source.key)) return false;
      bool large = false;
      for (size_t cost = 0; cost < kCopyBytesMax && !large;) {
        if (place.position == ring.control().head) return false;
        const uint64_t begin = ring.Settle(place.position);
        const Record& record = ring.At(begin);
        if (record.sequence > bound) return false;
        cost += sizeof(Record);
        if (Matches(record)) {
          const size_t bytes = record.entry_bytes;
          const bool alone = batch.size() == kBatchHeadBytes;
          if (!alone && batch.size() + bytes > batch_bytes_max_) return true;
          large = bytes > kCopyBytesMax || batch.size() + bytes > response_bytes_max_;
          if (large) break;
          batch.append(record.entry(), bytes);
          cost += bytes;
          Pass(place, begin, record);
          if (CountDelivered()) return true;
        } else {
          Pass(place, begin, record);
        }
      }
      if (!large) continue;
    }
    if (AppendLarge(place, batch) && CountDelivered()) return true;
  }
}

bool LogObservation::AppendLarge(Place& place, std::string& batch) {
  Log& log = *place.log;
  const uint64_t position = place.position;
  const size_t batch_bytes_before = batch.size();
  uint64_t begin;
  Record record;
  size_t head_bytes, payload_bytes;
  {
    ipc::MutexLock lock(log.mutex_);
    const RecordRing& ring = log.ring_;
    if (position < ring.control().tail) return false;
    begin = ring.Settle(position);
    record = ring.At(begin);
    const char* const entry = ring.At(begin).entry();
    head_bytes = record.entry_bytes - record.payload_bytes;
    payload_bytes = record.payload_bytes;
    std::string_view head(entry, head_bytes);
    const size_t whole_bytes = batch.size() + record.entry_bytes;
    if (whole_bytes > response_bytes_max_) {
      payload_bytes -= std::min(payload_bytes, whole_bytes - response_bytes_max_);
      if (record.payload_field != PayloadField::kRaw) {
        payload_bytes =
            ipc::Utf8Prefix({entry + head_bytes, record.payload_bytes}, payload_bytes).size();
      }
      batch += HeadForPayload(head, record.payload_bytes, payload_bytes);
    } else {
      batch += head;
    }
  }
  for (size_t copied = 0; copied < payload_bytes;) {
    ipc::MutexLock lock(log.mutex_);
    if (position < log.ring_.control().tail) {
      batch.resize(batch_bytes_before);
      return false;
    }
    const size_t bytes = std::min(payload_bytes - copied, kCopyBytesMax);
    batch.append(log.ring_.At(begin).entry() + head_bytes + copied, bytes);
    copied += bytes;
  }
  Pass(place, begin, record);
  return true;
}

void LogObservation::Pass(Place& place, uint64_t begin, const Record& record) {
  place.position = begin + record.bytes();
  place.seen = record.child_sequence;
  cursor_ = record.sequence;
}

bool LogObservation::CountDelivered() {
  ++delivered_;
  if (delivered_ != events_max_) return false;
  end_ = v1::Fin::REASON_EVENTS_MAX;
  return true;
}

Observation::Next LogObservation::TakeGap(std::string& response) {
  PendingGap pending = std::move(gaps_.front());
  gaps_.pop_front();
  v1::Gap& gap = pending.gap;
  if (fail_on_gap_) {
    step_ = Step::kEnded;
    status_ = ipc::MakeError(
        ipc::Reason::kCursorExpired,
        fmt::format("Events after sequence {} are no longer in the log: the observer was too slow. "
                    "Observe on without fail_on_gap, or after {}.",
                    cursor_, gap.to_sequence()),
        {{"first_sequence", fmt::format("{}", gap.to_sequence())}});
    return Next::kEnd;
  }
  if (gap.has_from_child_sequence()) {
    dropped_ += gap.to_child_sequence() - gap.from_child_sequence() + 1;
  }
  cursor_ = std::max(cursor_, pending.key);
  v1::ObserveResponse message;
  *message.mutable_gap() = std::move(gap);
  message.SerializeToString(&response);
  return Next::kResponse;
}

Observation::Next LogObservation::TakeFin(std::string& response) {
  v1::ObserveResponse message;
  v1::Fin& fin = *message.mutable_fin();
  *fin.mutable_cursor() = CursorAt(cursor_);
  // Who was shown everything to the last `closed` is told so, also by an agent that stops.
  const bool closed = *end_ == v1::Fin::REASON_AGENT_STOPPING && until_closed_ &&
                      step_ == Step::kEvents && gaps_.empty() && heap_.empty() && AllClosed();
  fin.set_reason(closed ? v1::Fin::REASON_CLOSED : *end_);
  message.SerializeToString(&response);
  step_ = Step::kEnded;
  return Next::kResponse;
}

bool LogObservation::AllClosed() {
  for (; closed_places_ < places_.size(); ++closed_places_) {
    const Place& place = places_[closed_places_];
    ipc::MutexLock lock(place.log->mutex_);
    if (!place.log->closed_ || place.position != place.log->ring_.control().head) return false;
  }
  return true;
}

}  // namespace deka::agent
