#include "agent/event_log.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "absl/container/inlined_vector.h"
#include "agent/log_observation.h"
#include "agent/wall_time.h"
#include "fmt/format.h"
#include "ipc/error.h"
#include "ipc/utf8.h"

namespace deka::agent {
namespace {

constexpr uint64_t kPage = LogMemory::kPageBytes;
constexpr uint64_t PageFloor(uint64_t bytes) { return bytes / kPage * kPage; }
constexpr uint64_t PageCeil(uint64_t bytes) { return PageFloor(bytes + kPage - 1); }

}  // namespace

std::shared_ptr<const EventBlock> Log::FindBlock(uint64_t position) const {
  for (const std::weak_ptr<const EventBlock>& remembered : blocks_) {
    std::shared_ptr<const EventBlock> block = remembered.lock();
    if (block != nullptr && block->Has(position)) return block;
  }
  return nullptr;
}

void Log::Remember(const std::shared_ptr<const EventBlock>& block) {
  blocks_[next_block_] = block;
  next_block_ = (next_block_ + 1) % blocks_.size();
}

EventLog::EventLog(Options options)
    : options_(std::move(options)),
      memory_(options_.memory != nullptr ? *options_.memory : own_memory_),
      head_(memory_.next_sequence - 1),
      forgotten_through_(memory_.forgotten_through),
      forgotten_time_us_(memory_.forgotten_time_us) {
  if (memory_.epoch == 0) memory_.epoch = NowUs();
  // A commit that was not decided has not happened.
  if (memory_.redo.last != head_) memory_.redo.last = 0;
}

EventLog::~EventLog() = default;

absl::StatusOr<std::shared_ptr<Log>> EventLog::AddChild(std::string child, Labels labels,
                                                        LogMemory memory, size_t bytes_max,
                                                        size_t events_max) {
  std::shared_ptr<Log> log(new Log(std::move(child), std::move(labels), std::move(memory),
                                   bytes_max / 8 * 8, events_max));
  if (absl::Status status = Recover(*log); !status.ok()) return status;
  by_charge_.insert({log->charged_bytes_, log.get()});
  ipc::MutexLock lock(mutex_);
  // In the order of their news: one that has none stands last.
  auto place = log->news_ == 0 ? logs_.end() : logs_.begin();
  while (place != logs_.end() && (*place)->news_ > log->news_) ++place;
  log->place_in_list_ = logs_.insert(place, log);
  for (LogObservation* observer : observers_) observer->OnNewLog(log);
  return log;
}

absl::StatusOr<std::shared_ptr<Log>> EventLog::AddChild(std::string child, Labels labels,
                                                        size_t bytes_max, size_t events_max) {
  absl::StatusOr<LogMemory> memory = LogMemory::Create(bytes_max);
  if (!memory.ok()) return memory.status();
  return AddChild(std::move(child), std::move(labels), *std::move(memory), bytes_max, events_max);
}

absl::Status EventLog::Recover(Log& log) {
  const LogMemory& memory = *log.memory_;
  const RecordRing::Control& control = log.ring_.control();
  if (!log.ring_.Recover() || control.newest_sequence > head_) {
    return ipc::MakeError(
        ipc::Reason::kInvalidArgument,
        fmt::format("The log of {} holds what no agent can have left.", log.child_),
        {{"field", "log"}});
  }
  log.news_ = control.newest_sequence;
  log.charged_from_ = control.tail;
  if (log.ring_.empty()) return absl::OkStatus();
  log.charged_bytes_ =
      std::min<uint64_t>(PageCeil(control.head) - PageFloor(control.tail), memory.size());
  charged_bytes_ += log.charged_bytes_;
  log.closed_ = log.ring_.At(control.newest).kind == v1::EVENT_KIND_CLOSED;
  memory_.time_us = std::max(memory_.time_us, log.ring_.At(control.newest).time_us);
  return absl::OkStatus();
}

int64_t EventLog::Stage(Log& log, const Draft& draft) {
  if (batch_.log != &log || IsHalfALog(batch_)) {
    Commit();
    Open(log);
  }
  const RecordRing::Control& control = log.ring_.control();
  EventFields fields{.sequence = next_sequence(),
                     .child_sequence = control.newest_child_sequence + batch_.events + 1,
                     .time_us = batch_.time_us,
                     .child = log.child_,
                     .kind_field = draft.kind_field,
                     .kind = draft.kind,
                     .payload_field = draft.payload_field,
                     .payload = draft.payload};
  size_t entry_bytes = EntryBytes(fields);
  if (Record::BytesFor(entry_bytes) > log.bytes_max_) {
    const size_t excess = Record::BytesFor(entry_bytes) - log.bytes_max_;
    const size_t kept = fields.payload.size() - std::min(excess, fields.payload.size());
    fields.payload = draft.payload_field == PayloadField::kRaw
                         ? fields.payload.substr(0, kept)
                         : ipc::Utf8Prefix(fields.payload, kept);
    entry_bytes = EntryBytes(fields);
  }
  const uint64_t record_bytes = Record::BytesFor(entry_bytes);
  if (record_bytes > log.bytes_max_) std::abort();  // the caller's promise about `kind` is broken
  MakeRoom(log, record_bytes);

  const uint64_t begin = log.ring_.BeginFor(batch_.end, record_bytes);
  Charge(log, begin + record_bytes);
  Record& record = log.ring_.Prepare(batch_.end, begin);
  record.entry_bytes = static_cast<uint32_t>(entry_bytes);
  record.payload_bytes = static_cast<uint32_t>(fields.payload.size());
  record.sequence = fields.sequence;
  record.child_sequence = fields.child_sequence;
  record.time_us = fields.time_us;
  record.back_bytes = static_cast<uint32_t>(begin - batch_.newest);
  const v1::EventKind kind = KindOf(draft.kind_field);
  record.kind = static_cast<uint8_t>(kind);
  record.direction = static_cast<uint8_t>(DirectionOf(draft.kind_field));
  record.payload_field = draft.payload_field;
  EncodeEntry(fields, record.entry());

  batch_.end = begin + record_bytes;
  batch_.newest = begin;
  batch_.events += 1;
  batch_.filter_bits |= FilterBit(record);
  batch_.closes |= kind == v1::EVENT_KIND_CLOSED;
  if (draft.progress != nullptr) batch_.progress = *draft.progress;
  return fields.sequence;
}

bool EventLog::IsHalfALog(const Batch& batch) {
  const Log& log = *batch.log;
  return batch.end - log.ring_.control().head >= log.bytes_max_ / 2 ||
         static_cast<uint64_t>(batch.events) >= log.events_max_ / 2;
}

void EventLog::Open(Log& log) {
  const RecordRing::Control& control = log.ring_.control();
  memory_.time_us = std::max(memory_.time_us, NowUs());
  batch_ = {.log = &log,
            .end = control.head,
            .newest = control.newest,
            .time_us = memory_.time_us,
            .progress = log.memory_->progress()};
}

void EventLog::MakeRoom(Log& log, uint64_t record_bytes) {
  RecordRing& ring = log.ring_;
  const auto fits = [&](uint64_t slack_bytes, uint64_t slack_events) {
    const uint64_t end = ring.BeginFor(batch_.end, record_bytes) + record_bytes;
    return end - ring.control().tail + slack_bytes <= log.bytes_max_ &&
           ring.events() + static_cast<uint64_t>(batch_.events) + slack_events < log.events_max_;
  };
  if (fits(0, 0)) return;
  // Some more than needed, so that not each event takes the lock; but nothing that somebody may
  // still read who must not lose it.
  const bool lossless = log.has_lossless_.load(std::memory_order_relaxed);
  const uint64_t slack_bytes = lossless ? 0 : std::min(log.bytes_max_ / 16, kPage);
  const uint64_t slack_events = lossless ? 0 : std::min<uint64_t>(log.events_max_ / 16, 32);
  for (;;) {
    {
      ipc::MutexLock lock(log.mutex_);
      while (!ring.empty() && !fits(slack_bytes, slack_events)) ring.Evict();
    }
    if (fits(0, 0)) return;
    if (batch_.events == 0) break;
    // What is staged is in the way: made visible it can be evicted.
    Commit();
    Open(log);
  }
  // Empty, and the record does not fit behind the end: it begins at the memory's beginning.
  ipc::MutexLock lock(log.mutex_);
  ring.Skip(ring.BeginFor(batch_.end, record_bytes));
  batch_.end = ring.control().head;
}

void EventLog::Commit() {
  if (batch_.events == 0) return;
  const Batch batch = batch_;
  batch_ = {};
  Log& log = *batch.log;
  const int64_t head_before = memory_.next_sequence - 1;
  const int64_t head_now = head_before + batch.events;
  AgentMemory::Redo& redo = memory_.redo;
  redo.child = log.memory_->number();
  redo.values = {.progress = batch.progress, .head = log.ring_.HeadFor(batch.end, batch.newest)};
  __atomic_store_n(&redo.last, head_now, __ATOMIC_RELEASE);
  __atomic_store_n(&memory_.next_sequence, head_now + 1, __ATOMIC_RELEASE);
  absl::InlinedVector<std::shared_ptr<Wakeup>, 8> wakeups;
  {
    ipc::MutexLock lock(mutex_);
    RecordRing::Control control;
    {
      ipc::MutexLock log_lock(log.mutex_);
      redo.values.ApplyTo(log.memory_->progress(), log.ring_);
      log.closed_ |= batch.closes;
      control = log.ring_.control();
    }
    __atomic_store_n(&redo.last, 0, __ATOMIC_RELEASE);
    head_ = head_now;
    log.news_ = head_;
    logs_.splice(logs_.begin(), logs_, log.place_in_list_);
    const auto tell = [&](LogObservation* observer) {
      if (observer->OnCommit(log, control, batch.filter_bits, head_before)) {
        wakeups.push_back(observer->wakeup());
      }
    };
    for (LogObservation* observer : observers_of_all_) tell(observer);
    for (LogObservation* observer : log.observers_) tell(observer);
  }
  for (const std::shared_ptr<Wakeup>& wakeup : wakeups) wakeup->Call();
  if (charged_bytes_ > options_.logs_bytes_max) Yield();
}

void EventLog::Charge(Log& log, uint64_t end) {
  const uint64_t bytes = std::min(PageCeil(end) - PageFloor(log.charged_from_),
                                  static_cast<uint64_t>(log.memory_->size()));
  if (bytes != log.charged_bytes_) SetCharge(log, bytes);
}

void EventLog::SetCharge(Log& log, uint64_t bytes) {
  by_charge_.erase({log.charged_bytes_, &log});
  charged_bytes_ += bytes - log.charged_bytes_;
  log.charged_bytes_ = bytes;
  by_charge_.insert({bytes, &log});
}

void EventLog::Yield() {
  while (charged_bytes_ > options_.logs_bytes_max) {
    Log& largest = *by_charge_.rbegin()->second;
    // An eighth at once: logs of equal size give in turn, none is emptied for another.
    const uint64_t bytes =
        std::max<uint64_t>(charged_bytes_ - options_.logs_bytes_max, largest.charged_bytes_ / 8);
    if (!YieldSome(largest, bytes)) return;
  }
}

bool EventLog::YieldSome(Log& log, uint64_t bytes) {
  RecordRing& ring = log.ring_;
  const uint64_t head = ring.control().head;
  const uint64_t kept_bytes = log.charged_bytes_ - std::min(log.charged_bytes_, PageCeil(bytes));
  {
    ipc::MutexLock lock(log.mutex_);
    while (!ring.empty() && PageCeil(head) - PageFloor(ring.control().tail) > kept_bytes) {
      ring.Evict();
    }
  }
  const uint64_t charged_bytes_before = log.charged_bytes_;
  if (ring.empty()) {
    log.memory_->GiveBack(0, ring.size());
    log.charged_from_ = head;
    SetCharge(log, 0);
  } else {
    // The free room goes from the head's page, once around, to the tail's.
    const uint64_t begin = PageCeil(head) % ring.size();
    const uint64_t end = PageFloor(ring.control().tail) % ring.size();
    const uint64_t used = PageCeil(head) - PageFloor(ring.control().tail);
    if (used >= ring.size()) return false;
    if (begin <= end) {
      log.memory_->GiveBack(begin, end);
    } else {
      log.memory_->GiveBack(begin, ring.size());
      log.memory_->GiveBack(0, end);
    }
    log.charged_from_ = ring.control().tail;
    SetCharge(log, used);
  }
  return log.charged_bytes_ < charged_bytes_before;
}

bool EventLog::IsFull(Log& log, Room room) {
  if (!log.has_lossless_.load(std::memory_order_relaxed) || holds_ended_) return false;
  const bool staged = batch_.log == &log;
  const RecordRing::Control& control = log.ring_.control();
  const uint64_t end = staged ? batch_.end : control.head;
  const int64_t events = control.newest_child_sequence + (staged ? batch_.events : 0);
  ipc::MutexLock lock(log.mutex_);
  bool full = false;
  for (auto& [observer, reading] : log.lossless_) {
    const uint64_t unread_events = static_cast<uint64_t>(events - reading.child_sequence);
    if (reading.position >= end || (end - reading.position + room.bytes <= log.bytes_max_ &&
                                    unread_events + room.events <= log.events_max_)) {
      reading.state = Log::Reading::State::kHolds;
      reading.waited_for_since.reset();
    } else if (reading.state == Log::Reading::State::kHolds) {
      if (!reading.waited_for_since) reading.waited_for_since = std::chrono::steady_clock::now();
      full = true;
    }
  }
  return full;
}

bool EventLog::IsTooSmall(const Log& log, Room room) {
  return log.has_lossless_.load(std::memory_order_relaxed) &&
         (room.bytes > log.bytes_max_ || room.events > log.events_max_);
}

void EventLog::OnRead(Log& log, absl::AnyInvocable<void()> read) {
  ipc::MutexLock lock(log.mutex_);
  log.on_read_ = std::move(read);
}

std::optional<std::chrono::steady_clock::time_point> EventLog::Lapse(
    Log& log, std::chrono::steady_clock::time_point now) {
  std::optional<std::chrono::steady_clock::time_point> next;
  ipc::MutexLock lock(log.mutex_);
  for (auto& [observer, reading] : log.lossless_) {
    if (reading.state != Log::Reading::State::kHolds || !reading.waited_for_since) continue;
    const auto end = *reading.waited_for_since + reading.hold_max;
    if (end <= now) {
      reading.state = Log::Reading::State::kLapsed;
      reading.waited_for_since.reset();
    } else {
      next = std::min(next.value_or(end), end);
    }
  }
  return next;
}

void EventLog::EndHolds() {
  holds_ended_ = true;
  std::vector<std::shared_ptr<Log>> logs;
  {
    ipc::MutexLock lock(mutex_);
    logs.assign(logs_.begin(), logs_.end());
  }
  for (const std::shared_ptr<Log>& log : logs) TellRead(*log);
}

void EventLog::TellRead(Log& log) {
  absl::AnyInvocable<void()> read;
  {
    ipc::MutexLock lock(log.mutex_);
    read = std::exchange(log.on_read_, nullptr);
  }
  if (read) read();
}

void EventLog::Forget(std::shared_ptr<Log> log) {
  Commit();
  by_charge_.erase({log->charged_bytes_, log.get()});
  charged_bytes_ -= log->charged_bytes_;
  log->charged_bytes_ = 0;
  std::vector<std::shared_ptr<Wakeup>> wakeups;
  {
    ipc::MutexLock lock(mutex_);
    logs_.erase(log->place_in_list_);
    log->forgotten_ = true;
    {
      ipc::MutexLock log_lock(log->mutex_);
      while (!log->ring_.empty()) log->ring_.Evict();
      log->forgotten_control_ = log->ring_.control();
      log->ring_ = RecordRing(log->forgotten_control_, nullptr, log->ring_.size());
      log->memory_.reset();
      log->lossless_.clear();
      forgotten_through_ = std::max(forgotten_through_, log->news_);
      forgotten_time_us_ = std::max(forgotten_time_us_, log->ring_.control().evicted_time_us);
      memory_.forgotten_through = forgotten_through_;
      memory_.forgotten_time_us = forgotten_time_us_;
    }
    const auto tell = [&](LogObservation* observer) {
      if (observer->OnForget(log)) wakeups.push_back(observer->wakeup());
    };
    for (LogObservation* observer : observers_of_all_) tell(observer);
    for (LogObservation* observer : log->observers_) tell(observer);
    log->observers_.clear();
  }
  for (const std::shared_ptr<Wakeup>& wakeup : wakeups) wakeup->Call();
}

void EventLog::Degrade() {
  {
    ipc::MutexLock lock(mutex_);
    degraded_ = true;
  }
  WakeAll();
}

void EventLog::Close() {
  Commit();
  {
    ipc::MutexLock lock(mutex_);
    closing_ = true;
  }
  WakeAll();
}

void EventLog::WakeAll() {
  std::vector<std::shared_ptr<Wakeup>> wakeups;
  {
    ipc::MutexLock lock(mutex_);
    for (LogObservation* observer : observers_) wakeups.push_back(observer->wakeup());
  }
  for (const std::shared_ptr<Wakeup>& wakeup : wakeups) wakeup->Call();
}

absl::StatusOr<std::unique_ptr<Observation>> EventLog::Observe(ObservationPlan plan) {
  auto observation = std::make_unique<LogObservation>(*this, std::move(plan));
  ipc::MutexLock lock(mutex_);
  if (observers_.size() >= options_.observers_max) {
    return ipc::MakeError(
        ipc::Reason::kObserversLimit,
        fmt::format("{} observers are there already, which is the limit. End one, or raise "
                    "observers_max.",
                    options_.observers_max),
        {{"limit", fmt::format("{}", options_.observers_max)}});
  }
  if (absl::Status status = observation->Begin(); !status.ok()) return status;
  return observation;
}

int64_t EventLog::head() const {
  ipc::MutexLock lock(mutex_);
  return head_;
}

size_t EventLog::observers() const {
  ipc::MutexLock lock(mutex_);
  return observers_.size();
}

}  // namespace deka::agent
