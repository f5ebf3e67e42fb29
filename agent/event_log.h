// The logs of an agent: numbers events, keeps their bytes, and wakes who observes them.
//
//   Stage  -> a record behind the log's head, invisible                 (the writer's thread)
//   Commit -> numbers, visible, observers woken: in one step, for all that was staged
//   Observe -> an Observation, which reads the logs from its own places (any thread)
//
// A log whose memory another process has left goes on behind its newest event; see agent_memory.h
// for what a process that is killed leaves.
//
// Sequences are dense over all logs, child sequences dense in each, both from 1, and time never
// decreases. No observer sees n + 1 before n. Logs with news are found without touching quiet ones:
// they stand in a list, the one with the newest event first.
//
// Bounds: a log holds at most its bytes and its events, the oldest are evicted. All logs together
// hold at most logs_bytes_max of memory: beyond it the largest evicts some of its events and gives
// their pages back. (A batch that is staged may exceed it until its commit.)
//
// Thread: one writer, the loop's thread, calls what is under "Writing"; the rest is for any. Locks
// are taken in this order: EventLog::mutex_, one Log's mutex. None is held while a callback runs.
// The writer waits for a reader at most as long as it takes to copy 64 KiB.
#ifndef AGENT_EVENT_LOG_H_
#define AGENT_EVENT_LOG_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/agent_memory.h"
#include "agent/event_block.h"
#include "agent/event_encoding.h"
#include "agent/log_memory.h"
#include "agent/observation.h"
#include "agent/observation_spec.h"
#include "agent/record_ring.h"
#include "deka/bridge/v1/bridge_service.pb.h"
#include "ipc/mutex.h"

namespace deka::agent {

class LogObservation;

using Labels = std::map<std::string, std::string>;

// True if each of `wanted` is there, with its value.
inline bool HasLabels(const Labels& labels, const Labels& wanted) {
  return std::includes(labels.begin(), labels.end(), wanted.begin(), wanted.end());
}

// The bit of a record's event in ObservationSpec::filter_bits.
inline uint32_t FilterBit(const Record& record) {
  return ObservationSpec::FilterBit(record.kind, static_cast<v1::Direction>(record.direction));
}

// The log of one child. Made by EventLog::AddChild; shared by the child and the observers that
// still have to hear that it was forgotten.
class Log {
 public:
  const std::string& child() const { return child_; }
  const Labels& labels() const { return labels_; }

  // Of the newest event committed, 0 if there is none. Writer's thread.
  int64_t newest_sequence() const ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return ring_.control().newest_sequence;
  }
  int64_t newest_child_sequence() const ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return ring_.control().newest_child_sequence;
  }
  // Since 1970; 0 if there is none any more.
  int64_t newest_time_us() const ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return ring_.empty() ? ring_.control().evicted_time_us
                         : ring_.At(ring_.control().newest).time_us;
  }

 private:
  friend class EventLog;
  friend class LogObservation;

  Log(std::string child, Labels labels, LogMemory memory, uint64_t bytes_max, uint64_t events_max)
      : child_(std::move(child)),
        labels_(std::move(labels)),
        bytes_max_(bytes_max),
        events_max_(events_max),
        memory_(std::move(memory)),
        ring_(memory_->control(), memory_->data(), memory_->size()) {}

  const std::string child_;
  const Labels labels_;
  const uint64_t bytes_max_;
  const uint64_t events_max_;

  ipc::Mutex mutex_;
  // Its bytes are gone once the child is forgotten; then the ring is empty. Only the writer changes
  // it.
  std::optional<LogMemory> memory_;
  RecordRing::Control forgotten_control_;  // the ring's, then
  // Visible records only change under the mutex; only the writer changes them.
  RecordRing ring_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;  // `closed` is visible
  // The copies that were made last, while somebody has them.
  std::shared_ptr<const EventBlock> FindBlock(uint64_t position) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Remember(const std::shared_ptr<const EventBlock>& block)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::array<std::weak_ptr<const EventBlock>, 8> blocks_ ABSL_GUARDED_BY(mutex_);
  size_t next_block_ ABSL_GUARDED_BY(mutex_) = 0;

  // How far an observer that must not lose anything has read.
  struct Reading {
    // kBehind --- it is at the head, or the log has room for it ---> kHolds
    // kHolds  --- waited for too long ---> kLapsed --- as from kBehind ---> kHolds
    enum class State { kBehind, kHolds, kLapsed };

    uint64_t position = 0;
    int64_t child_sequence = 0;  // of the event before it
    std::chrono::milliseconds hold_max{};
    State state = State::kBehind;
    // The log is full of what it has not read, since then.
    std::optional<std::chrono::steady_clock::time_point> waited_for_since = {};
  };
  absl::flat_hash_map<const LogObservation*, Reading> lossless_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> has_lossless_ = false;
  absl::AnyInvocable<void()> on_read_ ABSL_GUARDED_BY(mutex_);

  // Pages at positions from here to the end of what is written are charged to this log. Writer's.
  uint64_t charged_from_ = 0;
  uint64_t charged_bytes_ = 0;

  // Guarded by EventLog::mutex_.
  int64_t news_ = 0;  // newest sequence
  std::list<std::shared_ptr<Log>>::iterator place_in_list_;
  std::vector<LogObservation*> observers_;  // those that name it or fit its labels
  bool forgotten_ = false;
};

// Which events, from where on, until when.
struct ObservationPlan {
  // Those that were named; unset: all, later ones included.
  std::optional<std::vector<std::shared_ptr<Log>>> children;
  // That a child must have, with these values.
  Labels labels;
  ObservationSpec spec;
  // Encoded ObserveResponses: the children as they are.
  std::vector<std::string> snapshot;
};

class EventLog {
 public:
  struct Options {
    std::string agent;
    size_t logs_bytes_max = 256 << 20;
    size_t observers_max = 1024;
    int64_t incarnation = 1;  // what observers are told of the agent
    // Goes on with what it holds; outlives the log. Null: the log has its own.
    AgentMemory* memory = nullptr;
  };

  explicit EventLog(Options options);
  // After all observations.
  ~EventLog();

  EventLog(const EventLog&) = delete;
  EventLog& operator=(const EventLog&) = delete;

  const std::string& agent() const { return options_.agent; }
  int64_t epoch() const { return memory_.epoch; }

  // --- Writing. ---

  // A log for a child, which goes on with what its memory holds. INVALID_ARGUMENT if that cannot be
  // what a log has left.
  absl::StatusOr<std::shared_ptr<Log>> AddChild(std::string child, Labels labels, LogMemory memory,
                                                size_t bytes_max, size_t events_max);
  // The same with memory of its own. kChildrenLimit if the system has none for it.
  absl::StatusOr<std::shared_ptr<Log>> AddChild(std::string child, Labels labels, size_t bytes_max,
                                                size_t events_max);

  struct Draft {
    int kind_field = 0;          // v1::Event::kFromChild...
    std::string_view kind = {};  // that message, encoded
    PayloadField payload_field = PayloadField::kNone;
    std::string_view payload = {};  // UTF-8 unless the field is kRaw
    // How far the child's streams are told when this is; null: as far as before.
    const ipc::Progress* progress = nullptr;
  };

  // Numbers an event and writes it behind the log's head. Returns its sequence. What is staged for
  // another log, or is half of this one, is committed first. A payload that is too long for the log
  // is cut; `kind` is at most kHeadBytesMax and fits.
  int64_t Stage(Log& log, const Draft& draft) ABSL_NO_THREAD_SAFETY_ANALYSIS;

  // Makes visible what is staged.
  void Commit();

  // The sequence that the next event staged will have.
  int64_t next_sequence() const { return memory_.next_sequence + batch_.events; }

  // Room for more events: their records, and once more the largest, which may not fit at the end of
  // the ring.
  struct Room {
    uint64_t bytes = 0;
    uint64_t events = 0;
  };

  // Lossless observers hold a child back: true if this much room cannot be had without evicting
  // what one of them has not read. Whoever records goes on only with what cannot wait then. An
  // observer that begins behind the head of a log without that room, or was waited for too long,
  // holds nobody until it has read.
  bool IsFull(Log& log, Room room) ABSL_NO_THREAD_SAFETY_ANALYSIS;

  // True if a lossless observer is there, and not even a log that it has read all of has that room.
  static bool IsTooSmall(const Log& log, Room room);

  // `read` is called once when a lossless observer has read on or is gone. Any thread calls it,
  // under no lock. Replaces the one before.
  void OnRead(Log& log, absl::AnyInvocable<void()> read);

  // Nobody is waited for longer than it asked: those that were, at `now`, hold nobody until they
  // have read. When it is the next one's time; nothing if nobody is waited for.
  std::optional<std::chrono::steady_clock::time_point> Lapse(
      Log& log, std::chrono::steady_clock::time_point now);

  // No observer is waited for any more.
  void EndHolds();

  // Drops the log of an ended child: who has not read all of it gets a gap.
  void Forget(std::shared_ptr<Log> log);

  // Tells the observers at once that the agent is degraded, and those that come later.
  void Degrade();

  // Ends the observations, with AGENT_STOPPING, as soon as each has shown all that is committed.
  void Close();

  // --- Observing. ---

  // The newest event committed, 0 if there is none.
  int64_t head() const;

  // How many observations there are now.
  size_t observers() const;

  // Begins now: its `head` is what is committed. Fails with kCursorExpired or kCursorOtherEpoch
  // (`fail_on_gap`), kInvalidArgument (a cursor beyond the head, or of another agent) or
  // kObserversLimit.
  absl::StatusOr<std::unique_ptr<Observation>> Observe(ObservationPlan plan);

  // Memory that all logs are charged for. Writer's thread.
  size_t charged_bytes() const { return charged_bytes_; }

 private:
  friend class LogObservation;

  // What is staged: events of one log, behind its head.
  struct Batch {
    Log* log = nullptr;
    uint64_t end = 0;
    uint64_t newest = 0;
    int64_t events = 0;
    int64_t time_us = 0;
    uint32_t filter_bits = 0;
    bool closes = false;
    ipc::Progress progress;
  };

  absl::Status Recover(Log& log) ABSL_NO_THREAD_SAFETY_ANALYSIS;
  static bool IsHalfALog(const Batch& batch) ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void Open(Log& log) ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void MakeRoom(Log& log, uint64_t record_bytes) ABSL_NO_THREAD_SAFETY_ANALYSIS;
  void Charge(Log& log, uint64_t end);
  void SetCharge(Log& log, uint64_t bytes);
  void Yield();
  void WakeAll();
  // Calls what OnRead was given.
  static void TellRead(Log& log);
  bool YieldSome(Log& log, uint64_t bytes) ABSL_NO_THREAD_SAFETY_ANALYSIS;

  const Options options_;

  // The writer's.
  AgentMemory own_memory_;
  AgentMemory& memory_;  // that, or the one that was given
  Batch batch_;
  size_t charged_bytes_ = 0;
  std::set<std::pair<uint64_t, Log*>> by_charge_;
  bool holds_ended_ = false;

  mutable ipc::Mutex mutex_;
  int64_t head_ ABSL_GUARDED_BY(mutex_) = 0;
  std::list<std::shared_ptr<Log>> logs_ ABSL_GUARDED_BY(mutex_);  // newest event first
  absl::flat_hash_set<LogObservation*> observers_ ABSL_GUARDED_BY(mutex_);
  std::vector<LogObservation*> observers_of_all_ ABSL_GUARDED_BY(mutex_);
  // The newest event of all children that are forgotten.
  int64_t forgotten_through_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t forgotten_time_us_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  bool degraded_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace deka::agent

#endif  // AGENT_EVENT_LOG_H_
