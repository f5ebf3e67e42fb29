#include "agent/log_observation.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>

#include "fmt/format.h"
#include "ipc/error.h"
#include "ipc/utf8.h"

namespace deka::agent {
namespace {

// The longest that the writer waits for a reader: copied, or walked over, under a log's lock.
constexpr size_t kCopyBytesMax = EventBlock::kBytesMax;
constexpr int kWalkRecordsMax = 512;
// Runs of events at least this long are shared, not copied: what a response keeps of blocks is at
// most four times its own length.
constexpr size_t kShareBytesMin = 16 << 10;
// Work of one TakeNext, in records looked at: some hundred microseconds.
constexpr size_t kWorkMax = 16384;
// What else costs as much as a record.
constexpr size_t kWorkBytesCopied = 256;
constexpr size_t kWorkBytesMatched = 32;
constexpr size_t kForgottenMax = 1024;
// Up to here it costs less to look at each place than to walk the list of logs with news.
constexpr size_t kPlacesLookedAt = 16;

// Where the record before `position` begins. There is one.
uint64_t BeginBefore(const RecordRing& ring, uint64_t position) {
  if (position == ring.control().head) return ring.control().newest;
  const uint64_t begin = ring.Settle(position);
  return begin - ring.At(begin).back_bytes;
}

}  // namespace

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
      spec_(std::move(plan.spec)),
      deadline_(spec_.duration ? Clock::now() + *spec_.duration : Clock::time_point::max()),
      snapshot_(std::make_move_iterator(plan.snapshot.begin()),
                std::make_move_iterator(plan.snapshot.end())) {
  if (plan.children) children_ = *std::move(plan.children);
}

LogObservation::~LogObservation() {
  std::vector<std::shared_ptr<Log>> held;
  {
    ipc::MutexLock lock(log_.mutex_);
    log_.observers_.erase(this);
    std::erase(log_.observers_of_all_, this);
    for (Log* log : watched_) std::erase(log->observers_, this);
    if (spec_.hold_max) held.assign(log_.logs_.begin(), log_.logs_.end());
  }
  wakeup_->Cancel();
  for (const std::shared_ptr<Log>& log : held) {
    {
      ipc::MutexLock lock(log->mutex_);
      if (log->lossless_.erase(this) == 0) continue;
      log->has_lossless_.store(!log->lossless_.empty(), std::memory_order_relaxed);
    }
    EventLog::TellRead(*log);
  }
}

absl::Status LogObservation::Begin() {
  attached_.set_agent(log_.agent());
  attached_.set_epoch(log_.epoch());
  attached_.set_head(log_.head_);
  attached_.set_incarnation(log_.options_.incarnation);
  attached_.set_degraded(log_.degraded_);
  degraded_told_ = log_.degraded_;
  attached_.set_response_bytes_max(
      static_cast<int64_t>(spec_.response_bytes_max + ObservationSpec::kEnvelopeBytes));
  int64_t first_sequence = log_.head_ + 1;
  for (const std::shared_ptr<Log>& log : log_.logs_) {
    ipc::MutexLock lock(log->mutex_);
    const RecordRing& ring = log->ring_;
    if (ring.empty()) continue;
    first_sequence = std::min(first_sequence, ring.At(ring.Settle(ring.control().tail)).sequence);
  }
  attached_.set_first_sequence(first_sequence);

  if (!named_) children_.assign(log_.logs_.begin(), log_.logs_.end());
  std::erase_if(children_, [&](const std::shared_ptr<Log>& log) {
    return !HasLabels(log->labels(), labels_);
  });
  const bool earliest = std::holds_alternative<ObservationSpec::Earliest>(spec_.start);
  for (const std::shared_ptr<Log>& log : children_) {
    ipc::MutexLock lock(log->mutex_);
    const RecordRing::Control& control = log->ring_.control();
    Place& place = places_[PlaceOf(log)];
    place.position = earliest ? control.tail : control.head;
    place.seen = earliest ? control.evicted_child_sequence : control.newest_child_sequence;
    if (spec_.hold_max) TellReading(place);
  }
  // Of a start that is still to be found nothing was shown.
  const bool from_first = earliest || std::holds_alternative<ObservationSpec::Last>(spec_.start) ||
                          std::holds_alternative<ObservationSpec::Since>(spec_.start);
  cursor_ = from_first ? first_sequence - 1 : log_.head_;
  *attached_.mutable_start() = CursorAt(cursor_);
  if (const auto* after = std::get_if<v1::Cursor>(&spec_.start)) {
    if (absl::Status status = BeginAfter(*after); !status.ok()) return status;
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
    if (spec_.fail_on_gap) {
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
  if (missed > cursor_ && spec_.fail_on_gap) {
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
  if (block_log_ == &log) DropBlock();
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
  if (named_ || !HasLabels(log->labels(), labels_)) return;
  if (!labels_.empty()) Watch(log);
  if (spec_.hold_max) {
    ipc::MutexLock lock(log->mutex_);
    TellReading({.log = log});
  }
}

bool LogObservation::OnCommit(Log& log, const RecordRing::Control& control, uint32_t filter_bits,
                              int64_t head_before) {
  if (!skipping_) return true;
  const uint32_t wanted =
      spec_.filter_bits | (spec_.until_closed ? 1u << v1::EVENT_KIND_CLOSED : 0);
  if ((filter_bits & wanted) || spec_.hold_max) {
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
  if (skipping_ && !left_out_) {
    RemovePlace(*log);
    return false;
  }
  if (forgotten_.size() < kForgottenMax) {
    forgotten_.push_back(log);
  } else {
    forgotten_overflow_ = std::max(forgotten_overflow_, log->news_);
  }
  return true;
}

void LogObservation::OnReady(absl::AnyInvocable<void()> ready) {
  {
    ipc::MutexLock lock(log_.mutex_);
    const bool now = step_ != Step::kEvents || end_ || !gaps_.empty() || !heap_.empty() ||
                     !candidates_.empty() || (!skipping_ && log_.head_ > cursor_) ||
                     !forgotten_.empty() || log_.closing_ || log_.degraded_ != degraded_told_ ||
                     Clock::now() >= time();
    if (!now) {
      skipping_ = true;
      wakeup_->Arm(std::move(ready));
      return;
    }
  }
  ready();
}

std::chrono::steady_clock::time_point LogObservation::time() const {
  return left_out_ ? std::min(deadline_, second_end_) : deadline_;
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
  const int64_t sequence = skipping_ ? log_.head_ : cursor_;
  return CursorAt(left_out_ ? std::min(sequence, left_out_after_) : sequence);
}

v1::Cursor LogObservation::CursorAt(int64_t sequence) const {
  v1::Cursor cursor;
  cursor.set_agent(log_.agent());
  cursor.set_epoch(log_.epoch());
  cursor.set_sequence(sequence);
  return cursor;
}

void LogObservation::TakeHeartbeat(Response& response) {
  v1::ObserveResponse message;
  v1::Heartbeat& heartbeat = *message.mutable_heartbeat();
  *heartbeat.mutable_cursor() = cursor();
  heartbeat.set_delivered(delivered_);
  heartbeat.set_dropped(dropped_);
  heartbeat.set_degraded(degraded_told_);
  response.Set(message);
}

Observation::Next LogObservation::TakeNext(Response& response) {
  bool degraded = false;
  {
    ipc::MutexLock lock(log_.mutex_);
    if (skipping_) cursor_ = log_.head_;
    skipping_ = false;
    degraded = log_.degraded_;
  }
  if (step_ == Step::kEnded) return Next::kEnd;
  now_ = Clock::now();
  work_left_ = kWorkMax;
  if (!end_ && now_ >= deadline_) end_ = v1::Fin::REASON_DURATION;
  if (step_ == Step::kEvents && degraded != degraded_told_) {
    degraded_told_ = degraded;
    TakeHeartbeat(response);
    return Next::kResponse;
  }
  if (step_ == Step::kEvents) return TakeEvents(response);
  if (end_ && step_ != Step::kStart) return TakeFin(response);
  if (step_ == Step::kStart) {
    if (!FindStart()) return Next::kBusy;
    v1::ObserveResponse message;
    *message.mutable_attached() = attached_;
    response.Set(message);
    step_ = Step::kSnapshot;
    return Next::kResponse;
  }
  if (!snapshot_.empty()) {
    response.Clear();
    response.Append(snapshot_.front());
    snapshot_.pop_front();
    return Next::kResponse;
  }
  v1::ObserveResponse message;
  message.mutable_snapshot_complete()->set_head(attached_.head());
  response.Set(message);
  step_ = Step::kEvents;
  return Next::kResponse;
}

bool LogObservation::FindStart() {
  if (const auto* last = std::get_if<ObservationSpec::Last>(&spec_.start)) {
    if (!FindLast(last->events)) return false;
  } else if (const auto* since = std::get_if<ObservationSpec::Since>(&spec_.start)) {
    if (!FindSince(since->time_us)) return false;
  } else {
    return true;
  }
  *attached_.mutable_start() = CursorAt(cursor_);
  find_ = {};
  return true;
}

// Steps back from the newest event of all, wherever it is.
bool LogObservation::FindLast(int64_t events) {
  if (find_.left == 0) {
    find_.left = events;
    find_.first = attached_.head() + 1;
    find_.positions.resize(places_.size());
  }
  while (find_.place < places_.size()) {
    if (!Spend(1)) return false;
    PushLast(static_cast<uint32_t>(find_.place++));
  }
  while (find_.left > 0 && !find_.heap.empty()) {
    if (!Spend(1)) return false;
    std::pop_heap(find_.heap.begin(), find_.heap.end(), std::less<>());
    const Source source = find_.heap.back();
    find_.heap.pop_back();
    Place& place = places_[source.place];
    const uint64_t begin = find_.positions[source.place];
    const std::optional<Record> record = ReadRecord(*place.log, begin, find_.payload);
    if (!record) continue;  // evicted, and all before it too
    place.position = begin;
    place.seen = record->child_sequence - 1;
    find_.first = record->sequence;
    Spend(find_.payload.size() / kWorkBytesMatched);
    if (Matches(*record) && ContentMatches(*record, find_.payload) && --find_.left == 0) break;
    PushLast(source.place);
  }
  cursor_ = find_.first - 1;
  return true;
}

void LogObservation::PushLast(uint32_t place_number) {
  const Place& place = places_[place_number];
  ipc::MutexLock lock(place.log->mutex_);
  const RecordRing& ring = place.log->ring_;
  if (place.seen <= ring.control().evicted_child_sequence) return;
  const uint64_t begin = BeginBefore(ring, place.position);
  find_.positions[place_number] = begin;
  find_.heap.push_back({ring.At(begin).sequence, place_number});
  std::push_heap(find_.heap.begin(), find_.heap.end(), std::less<>());
}

// The record at `begin`, and its payload if it is a message whose content counts. Unset if it was
// evicted.
std::optional<Record> LogObservation::ReadRecord(Log& log, uint64_t begin, std::string& payload) {
  payload.clear();
  Record record;
  for (;;) {
    ipc::MutexLock lock(log.mutex_);
    const RecordRing& ring = log.ring_;
    if (begin < ring.control().tail) return std::nullopt;
    record = ring.At(begin);
    if (spec_.where.empty() || record.kind != v1::EVENT_KIND_MESSAGE || !Matches(record))
      return record;
    const char* const bytes = ring.At(begin).entry() + record.entry_bytes - record.payload_bytes;
    payload.append(bytes + payload.size(),
                   std::min(record.payload_bytes - payload.size(), kCopyBytesMax));
    if (payload.size() == record.payload_bytes) return record;
  }
}

bool LogObservation::FindSince(int64_t since_us) {
  if (find_.place == 0) find_.first = attached_.head() + 1;
  for (; find_.place < places_.size(); ++find_.place) {
    Place& place = places_[find_.place];
    if (!StepBack(place, [&](const Record& record) { return record.time_us < since_us; })) {
      return false;
    }
    ipc::MutexLock lock(place.log->mutex_);
    const RecordRing& ring = place.log->ring_;
    const RecordRing::Control& control = ring.control();
    if (control.evicted_time_us >= since_us && control.evicted_sequence > 0) {
      find_.first = std::min(find_.first, control.evicted_sequence);
      continue;
    }
    // What was evicted is older.
    if (place.position < control.tail) {
      place.position = control.tail;
      place.seen = control.evicted_child_sequence;
    }
    if (place.position != control.head) {
      find_.first = std::min(find_.first, ring.At(ring.Settle(place.position)).sequence);
    }
  }
  if (!named_) {
    ipc::MutexLock lock(log_.mutex_);
    if (log_.forgotten_through_ > 0 && log_.forgotten_time_us_ >= since_us) {
      find_.first = std::min(find_.first, log_.forgotten_through_);
      AddInexactGap(v1::Gap::REASON_CHILD_FORGOTTEN, log_.forgotten_through_);
    }
  }
  cursor_ = find_.first - 1;
  for (Place& place : places_) {
    ipc::MutexLock lock(place.log->mutex_);
    place.search = place.log->ring_.control().evicted_sequence > cursor_;
  }
  return true;
}

template <typename IsBefore>
bool LogObservation::StepBack(Place& place, IsBefore is_before) {
  Log& log = *place.log;
  for (;;) {
    if (!Spend(1)) return false;
    ipc::MutexLock lock(log.mutex_);
    const RecordRing& ring = log.ring_;
    for (int i = 0; i < kWalkRecordsMax; ++i) {
      if (place.seen <= ring.control().evicted_child_sequence) return true;
      const uint64_t begin = BeginBefore(ring, place.position);
      const Record& record = ring.At(begin);
      if (is_before(record)) return true;
      place.position = begin;
      place.seen = record.child_sequence - 1;
      Spend(1);
    }
  }
}

Observation::Next LogObservation::TakeEvents(Response& response) {
  if (left_out_ && now_ >= second_end_) TellAllLeftOut();
  for (;;) {
    if (end_ && left_out_) TellAllLeftOut();
    if (!gaps_.empty()) return TakeGap(response);
    if (end_) return TakeFin(response);
    while (!candidates_.empty()) {
      if (!Spend(1) || !Enqueue(candidates_.back())) return Next::kBusy;
      candidates_.pop_back();
    }
    if (!gaps_.empty()) continue;
    if (heap_.empty()) {
      cursor_ = std::max(cursor_, round_head_);
      const bool stopped = stop_at_ && cursor_ >= *stop_at_;
      if (!stopped && Collect()) continue;
      if (spec_.until_closed && AllClosed()) {
        end_ = v1::Fin::REASON_CLOSED;
      } else if (stopped || stopping_) {
        end_ = v1::Fin::REASON_AGENT_STOPPING;
      } else {
        if (block_ != nullptr && block_->bytes() > EventBlock::kBytesMax) DropBlock();
        return Next::kWait;
      }
      continue;
    }
    response.Clear();
    Batch batch{.response = response};
    bool complete = false;
    while (!complete && !heap_.empty() && gaps_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
      const Source source = heap_.back();
      heap_.pop_back();
      const int64_t others = heap_.empty() ? round_head_ : heap_.front().key - 1;
      complete = Run(places_[source.place], source, std::max(source.key, others), batch);
      (void)Enqueue(source.place);  // nothing is to be searched there
      if (!Spend(1)) complete = true;
    }
    if (!batch.empty()) {
      batch.Finish();
      return Next::kResponse;
    }
    if (work_left_ == 0) return Next::kBusy;
  }
}

void LogObservation::Batch::Flush() {
  if (block == nullptr) return;
  const std::string_view entries = block->Entries(begin, end);
  if (entries.size() >= kShareBytesMin) {
    response.Share(std::move(block), entries);
  } else {
    response.Append(entries);
  }
  block = nullptr;
}

void LogObservation::Batch::Finish() {
  Flush();
  char head[1 + kVarintBytesMax] = {v1::ObserveResponse::kBatchFieldNumber << 3 | 2};
  const char* const head_end = PutVarint(response.bytes(), head + 1);
  response.Prepend({head, static_cast<size_t>(head_end - head)});
}

// True if there is news, or there may be.
bool LogObservation::Collect() {
  {
    ipc::MutexLock lock(log_.mutex_);
    round_head_ = log_.head_;
    stopping_ = log_.closing_;
    TakeForgotten();
    const bool look_at_each = first_round_ || (named_ && places_.size() <= kPlacesLookedAt);
    if (look_at_each) {
      for (uint32_t number = 0; number < places_.size(); ++number) candidates_.push_back(number);
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
        if (!look_at_each || places_.size() > places_before) candidates_.push_back(number);
      }
    }
  }
  const bool news = first_round_ || round_head_ > cursor_ || !gaps_.empty();
  first_round_ = false;
  if (!news) candidates_.clear();
  return news;
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
    TellLeftOut(place);
    RemovePlace(*log);
  }
  forgotten_.clear();
  if (forgotten_overflow_ == 0) return;
  AddInexactGap(v1::Gap::REASON_CHILD_FORGOTTEN, std::exchange(forgotten_overflow_, 0));
  for (size_t i = places_.size(); i-- > 0;) {
    if (!places_[i].log->forgotten_) continue;
    TellLeftOut(places_[i]);
    RemovePlace(*std::shared_ptr<Log>(places_[i].log));
  }
}

bool LogObservation::Enqueue(uint32_t place_number) {
  Place& place = places_[place_number];
  if (place.search) {
    if (!StepBack(place, [&](const Record& record) { return record.sequence <= cursor_; })) {
      return false;
    }
    ipc::MutexLock lock(place.log->mutex_);
    SkipUnseen(place);
  }
  int64_t key = std::numeric_limits<int64_t>::max();
  bool has_read = false;
  {
    ipc::MutexLock lock(place.log->mutex_);
    const RecordRing& ring = place.log->ring_;
    const RecordRing::Control& control = ring.control();
    if (place.position < control.tail && place.seen < control.evicted_child_sequence) {
      key = std::min(control.evicted_sequence, round_head_);
    } else {
      place.position = std::max(place.position, control.tail);
      if (place.position != control.head) key = ring.At(ring.Settle(place.position)).sequence;
      if (spec_.hold_max) has_read = TellReading(place);
    }
  }
  if (has_read) EventLog::TellRead(*place.log);
  if (key > round_head_) return true;
  heap_.push_back({key, place_number});
  std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
  return true;
}

bool LogObservation::TellReading(const Place& place) {
  Log& log = *place.log;
  Log::Reading& reading = log.lossless_[this];
  const bool has_read = place.position > reading.position && log.on_read_;
  if (place.position < reading.position) reading.state = Log::Reading::State::kBehind;
  if (place.position == log.ring_.control().head) {
    // What is staged behind the head is for it, too.
    reading.state = Log::Reading::State::kHolds;
    reading.waited_for_since.reset();
  }
  reading.position = place.position;
  reading.child_sequence = place.seen;
  reading.hold_max = *spec_.hold_max;
  log.has_lossless_.store(true, std::memory_order_relaxed);
  return has_read;
}

bool LogObservation::SkipEvicted(Place& place, int64_t key) {
  const RecordRing::Control& control = place.log->ring_.control();
  if (place.position >= control.tail) return false;
  place.position = control.tail;
  if (place.seen >= control.evicted_child_sequence) return false;
  TellLeftOut(place);
  AddGap(place, place.seen + 1, key);
  return true;
}

void LogObservation::SkipUnseen(Place& place) {
  const RecordRing::Control& control = place.log->ring_.control();
  place.search = false;
  if (control.evicted_sequence <= cursor_) return;
  place.position = control.tail;
  AddGap(place, control.first_sequence > cursor_ ? std::optional<int64_t>(1) : std::nullopt, 0);
  gaps_.back().slow = false;
}

void LogObservation::AddGap(Place& place, std::optional<int64_t> from_child_sequence, int64_t key) {
  const RecordRing::Control& control = place.log->ring_.control();
  place.seen = control.evicted_child_sequence;
  v1::Gap gap;
  gap.set_child(place.log->child());
  if (from_child_sequence) gap.set_from_child_sequence(*from_child_sequence);
  gap.set_to_child_sequence(control.evicted_child_sequence);
  gap.set_to_sequence(control.evicted_sequence);
  const auto lossless = place.log->lossless_.find(this);
  const bool lapsed = lossless != place.log->lossless_.end() &&
                      lossless->second.state == Log::Reading::State::kLapsed;
  gap.set_reason(!place.log->memory_ ? v1::Gap::REASON_CHILD_FORGOTTEN
                 : lapsed            ? v1::Gap::REASON_BLOCK_TIMEOUT
                                     : v1::Gap::REASON_LOG_TURNED_OVER);
  gaps_.push_back({std::move(gap), key, /*slow=*/true});
}

bool LogObservation::Run(Place& place, const Source& source, int64_t bound, Batch& batch) {
  for (;;) {
    std::shared_ptr<const EventBlock> block = BlockAt(place, source, bound);
    if (block == nullptr) return false;
    block_ = std::move(block);
    block_log_ = place.log.get();
    if (RunBlock(place, block_, bound, batch)) return true;
  }
}

void LogObservation::DropBlock() {
  block_ = nullptr;
  block_log_ = nullptr;
}

std::shared_ptr<const EventBlock> LogObservation::BlockAt(Place& place, const Source& source,
                                                          int64_t bound) {
  Log& log = *place.log;
  for (;;) {
    {
      ipc::MutexLock lock(log.mutex_);
      if (SkipEvicted(place, source.key)) return nullptr;
      const RecordRing& ring = log.ring_;
      const uint64_t head = ring.control().head;
      if (place.position == head) return nullptr;
      place.position = ring.Settle(place.position);
      const Record& first = ring.At(place.position);
      if (first.sequence > bound) return nullptr;
      if (block_log_ == &log && block_->Has(place.position)) return block_;
      if (std::shared_ptr<const EventBlock> block = log.FindBlock(place.position)) return block;
      if (first.entry_bytes <= EventBlock::kBytesMax) {
        auto block = std::make_shared<EventBlock>();
        block->Reserve(std::min<size_t>(head - place.position, EventBlock::kBytesMax));
        for (uint64_t position = place.position; position != head;) {
          position = ring.Settle(position);
          const Record& record = ring.At(position);
          if (record.sequence > bound) break;
          if (block->bytes() + record.entry_bytes > EventBlock::kBytesMax) break;
          block->Add(record, position, {record.entry(), record.entry_bytes});
          position += record.bytes();
        }
        Spend(block->bytes() / kWorkBytesCopied);
        log.Remember(block);
        return block;
      }
    }
    if (std::shared_ptr<const EventBlock> block = CopyLarge(log, place.position)) return block;
  }
}

std::shared_ptr<const EventBlock> LogObservation::CopyLarge(Log& log, uint64_t position) {
  auto block = std::make_shared<EventBlock>();
  for (;;) {
    ipc::MutexLock lock(log.mutex_);
    if (position < log.ring_.control().tail) return nullptr;
    const Record& record = log.ring_.At(position);
    const size_t copied = block->bytes();
    const size_t bytes = std::min<size_t>(record.entry_bytes - copied, kCopyBytesMax);
    if (copied == 0) {
      block->Reserve(record.entry_bytes);
      block->Add(record, position, {record.entry(), bytes});
    } else {
      block->Extend({record.entry() + copied, bytes});
    }
    Spend(bytes / kWorkBytesCopied);
    if (block->bytes() < record.entry_bytes) continue;
    log.Remember(block);
    return block;
  }
}

bool LogObservation::RunBlock(Place& place, const std::shared_ptr<const EventBlock>& block,
                              int64_t bound, Batch& batch) {
  const std::vector<EventBlock::Event>& events = block->events();
  for (size_t number = block->Find(place.position); number < events.size(); ++number) {
    const EventBlock::Event& event = events[number];
    if (event.record.sequence > bound) return false;
    if (!Spend(1)) return true;
    bool shown = false;
    if (Matches(event.record) && ContentMatches(event.record, block->Payload(event))) {
      switch (Rate()) {
        case Allowed::kNow:
          if (!Show(block, number, batch)) return true;
          shown = true;
          second_left_ -= spec_.events_per_second_max > 0;
          break;
        case Allowed::kNot:
          LeaveOut(place, event.record);
          break;
        case Allowed::kAfterGaps:
          TellAllLeftOut();
          return true;
      }
    }
    place.position = event.position + event.record.bytes();
    place.seen = event.record.child_sequence;
    cursor_ = event.record.sequence;
    if (shown && ++delivered_ == spec_.events_max) {
      end_ = v1::Fin::REASON_EVENTS_MAX;
      return true;
    }
  }
  return false;
}

bool LogObservation::ContentMatches(const Record& record, std::string_view payload) {
  if (spec_.where.empty() || record.kind != v1::EVENT_KIND_MESSAGE) return true;
  Spend(payload.size() / kWorkBytesMatched);
  return std::all_of(spec_.where.begin(), spec_.where.end(),
                     [&](const ipc::JsonMatch& match) { return match.Matches(payload); });
}

bool LogObservation::Show(const std::shared_ptr<const EventBlock>& block, size_t number,
                          Batch& batch) {
  const EventBlock::Event& event = block->events()[number];
  const Record& record = event.record;
  size_t payload_bytes = std::min<size_t>(record.payload_bytes, spec_.payload_bytes_max);
  const size_t bytes = record.entry_bytes - (record.payload_bytes - payload_bytes);
  if (!batch.empty() && batch.bytes + bytes > spec_.batch_bytes_max()) return false;
  if (bytes > spec_.response_bytes_max)
    payload_bytes -= std::min(payload_bytes, bytes - spec_.response_bytes_max);
  if (payload_bytes == record.payload_bytes) {
    if (batch.block != block || batch.end != number) {
      batch.Flush();
      batch.block = block;
      batch.begin = number;
    }
    batch.end = number + 1;
    batch.bytes += bytes;
    return true;
  }
  batch.Flush();
  std::string_view payload = block->Payload(event);
  payload = record.payload_field == PayloadField::kRaw ? payload.substr(0, payload_bytes)
                                                       : ipc::Utf8Prefix(payload, payload_bytes);
  const std::string_view entry = block->Entries(number, number + 1);
  const std::string head = HeadForPayload(entry.substr(0, entry.size() - record.payload_bytes),
                                          record.payload_bytes, payload.size());
  batch.response.Append(head);
  if (payload.size() >= kShareBytesMin && payload.size() >= block->bytes() / 4) {
    batch.response.Share(block, payload);
  } else {
    batch.response.Append(payload);
  }
  batch.bytes += head.size() + payload.size();
  return true;
}

LogObservation::Allowed LogObservation::Rate() {
  if (spec_.events_per_second_max == 0) return Allowed::kNow;
  if (now_ >= second_end_) {
    if (left_out_) return Allowed::kAfterGaps;
    second_end_ = now_ + std::chrono::seconds(1);
    second_left_ = spec_.events_per_second_max;
  }
  if (second_left_ == 0) return Allowed::kNot;
  return Allowed::kNow;
}

void LogObservation::LeaveOut(Place& place, const Record& record) {
  if (!std::exchange(left_out_, true)) left_out_after_ = cursor_;
  if (place.left_out.first == 0) place.left_out.first = record.child_sequence;
  place.left_out.last = record.child_sequence;
  place.left_out.sequence = record.sequence;
}

void LogObservation::TellLeftOut(Place& place) {
  if (place.left_out.first == 0) return;
  v1::Gap gap;
  gap.set_child(place.log->child());
  gap.set_from_child_sequence(place.left_out.first);
  gap.set_to_child_sequence(place.left_out.last);
  gap.set_to_sequence(place.left_out.sequence);
  gap.set_reason(v1::Gap::REASON_RATE);
  gaps_.push_back({std::move(gap), place.left_out.sequence, /*slow=*/false});
  place.left_out = {};
}

void LogObservation::TellAllLeftOut() {
  left_out_ = false;
  const size_t told_before = gaps_.size();
  for (Place& place : places_) TellLeftOut(place);
  std::sort(gaps_.begin() + static_cast<ptrdiff_t>(told_before), gaps_.end(),
            [](const PendingGap& a, const PendingGap& b) { return a.key < b.key; });
}

Observation::Next LogObservation::TakeGap(Response& response) {
  PendingGap pending = std::move(gaps_.front());
  gaps_.pop_front();
  v1::Gap& gap = pending.gap;
  const bool rate = gap.reason() == v1::Gap::REASON_RATE;
  if (!rate && (spec_.fail_on_gap || (spec_.fail_when_slow && pending.slow))) {
    step_ = Step::kEnded;
    status_ =
        spec_.fail_on_gap
            ? ipc::MakeError(ipc::Reason::kCursorExpired,
                             fmt::format("Events after sequence {} are no longer in the log: the "
                                         "observer was too slow. Observe on without fail_on_gap, "
                                         "or after {}.",
                                         cursor_, gap.to_sequence()),
                             {{"first_sequence", fmt::format("{}", gap.to_sequence())}})
            : ipc::MakeError(ipc::Reason::kTooSlow,
                             fmt::format("The observer was too slow: events after sequence {} are "
                                         "no longer in the log. Resume after it, which begins with "
                                         "the gap, or observe less.",
                                         cursor_),
                             {{"sequence", fmt::format("{}", cursor_)}});
    return Next::kEnd;
  }
  if (gap.has_from_child_sequence()) {
    dropped_ += gap.to_child_sequence() - gap.from_child_sequence() + 1;
  }
  cursor_ = std::max(cursor_, pending.key);
  v1::ObserveResponse message;
  *message.mutable_gap() = std::move(gap);
  response.Set(message);
  return Next::kResponse;
}

Observation::Next LogObservation::TakeFin(Response& response) {
  v1::ObserveResponse message;
  v1::Fin& fin = *message.mutable_fin();
  *fin.mutable_cursor() = CursorAt(cursor_);
  // Who was shown everything to the last `closed` is told so, also by an agent that stops.
  const bool closed = *end_ == v1::Fin::REASON_AGENT_STOPPING && spec_.until_closed &&
                      step_ == Step::kEvents && heap_.empty() && candidates_.empty() && AllClosed();
  fin.set_reason(closed ? v1::Fin::REASON_CLOSED : *end_);
  response.Set(message);
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
