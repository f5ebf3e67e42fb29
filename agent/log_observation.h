// An Observation of an EventLog: see observation.h for what it gives, event_log.h for what it
// reads.
//
//   begin -> attached, snapshot... -> rounds -> fin
//
// A round takes everything up to the head that it saw at its beginning: it collects the logs with
// news, and merges them by sequence in a heap of one entry for each log, its next event. Bytes go
// from the ring straight into the response, in runs that are only as long as no other log has an
// event in between, 64 KiB at most at a time. Between two calls it holds a place for each log, no
// events.
//
// A log that evicted what was not read yet gives a gap, which stands where the last event missed
// would have stood. Gaps that a resumed cursor begins with come first.
//
// Thread: as Observation says, but for what the writer's thread calls, under EventLog::mutex_:
// while the observation waits and has read everything (`skipping_`), events that do not match are
// passed over there, without waking it.
#ifndef AGENT_LOG_OBSERVATION_H_
#define AGENT_LOG_OBSERVATION_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "agent/event_log.h"

namespace deka::agent {

// The bit of a record's kind in a filter. Messages have one for each direction.
inline uint32_t FilterBit(const Record& record) {
  return 1u << (record.direction == v1::DIRECTION_TO_CHILD ? 31 : record.kind);
}

// A callback that is called once, and not after Cancel has returned, whatever thread calls.
class Wakeup {
 public:
  void Arm(absl::AnyInvocable<void()> callback);
  void Call();
  // Waits for a call under way on another thread.
  void Cancel();

 private:
  ipc::Mutex mutex_;
  ipc::CondVar returned_;
  absl::AnyInvocable<void()> callback_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread::id> callers_ ABSL_GUARDED_BY(mutex_);  // threads inside of it
};

class LogObservation final : public Observation {
 public:
  LogObservation(EventLog& log, ObservationPlan plan);
  ~LogObservation() override;

  // Takes its place in the logs: they are at `head` now. Fails as EventLog::Observe says.
  absl::Status Begin() ABSL_EXCLUSIVE_LOCKS_REQUIRED(log_.mutex_);

  Next TakeNext(std::string& response) override;
  absl::Status status() const override { return status_; }
  void OnReady(absl::AnyInvocable<void()> ready) override;
  void TakeHeartbeat(std::string& response) override;
  std::chrono::milliseconds heartbeat_interval() const override { return heartbeat_interval_; }
  std::chrono::steady_clock::time_point deadline() const override { return deadline_; }
  void End(v1::Fin::Reason reason) override;
  v1::Cursor cursor() const override;

  // --- For EventLog's writer, under its mutex. ---

  void OnNewLog(const std::shared_ptr<Log>& log) ABSL_EXCLUSIVE_LOCKS_REQUIRED(log_.mutex_);
  // True if it is to be woken. `head_before` is the head before this commit.
  bool OnCommit(Log& log, const RecordRing::Control& control, uint32_t filter_bits,
                int64_t head_before) ABSL_EXCLUSIVE_LOCKS_REQUIRED(log_.mutex_);
  bool OnForget(const std::shared_ptr<Log>& log) ABSL_EXCLUSIVE_LOCKS_REQUIRED(log_.mutex_);
  const std::shared_ptr<Wakeup>& wakeup() const { return wakeup_; }

 private:
  // Where the next event of a log is read.
  struct Place {
    std::shared_ptr<Log> log;
    uint64_t position = 0;
    int64_t seen = 0;     // child_sequence of the event before it
    bool search = false;  // it is a later one: the first event after cursor_ is to be found
  };
  // A place's next event, or the last event of its gap.
  struct Source {
    int64_t key;
    uint32_t place;
    bool operator>(const Source& other) const { return key > other.key; }
  };
  enum class Step { kAttached, kSnapshot, kEvents, kEnded };

  // A gap that is still to be told, and the place in the order of events that telling it reaches.
  struct PendingGap {
    v1::Gap gap;
    int64_t key;
  };

  // The place of a log; a new one begins with the child's first event.
  uint32_t PlaceOf(const std::shared_ptr<Log>& log);
  void RemovePlace(const Log& log);
  void Watch(const std::shared_ptr<Log>& log) ABSL_EXCLUSIVE_LOCKS_REQUIRED(log_.mutex_);
  absl::Status BeginAfter(const v1::Cursor& cursor) ABSL_EXCLUSIVE_LOCKS_REQUIRED(log_.mutex_);
  void AddInexactGap(v1::Gap::Reason reason, int64_t to_sequence);
  bool HasLabels(const Log& log) const;

  // Moves all places back over the last `count` events that match.
  void FindLast(int64_t count);
  // Moves a place that is to be searched back to the first event after the cursor.
  void Search(Place& place);

  Next TakeEvents(std::string& response);
  // Begins a round. False if there is no news.
  bool Collect();
  void TakeForgotten() ABSL_EXCLUSIVE_LOCKS_REQUIRED(log_.mutex_);
  // Puts the place into the heap if the round has something of it.
  void Enqueue(uint32_t place_number);
  // Copies events of one place up to `bound`. True if the batch is full.
  bool Run(Place& place, const Source& source, int64_t bound, std::string& batch);
  // Copies the next event, which is larger than one copy or one response may be. False if it was
  // evicted meanwhile; then nothing is copied.
  bool AppendLarge(Place& place, std::string& batch);
  void Pass(Place& place, uint64_t begin, const Record& record);
  // Both under the log's mutex. If the log has evicted what this place has not read, it goes on
  // with the oldest event, and the gap is pending. The first knows what was seen and is true if
  // something was missed; the second is for a place that was to be searched.
  bool SkipEvicted(Place& place, int64_t key);
  void SkipUnseen(Place& place);
  void AddGap(Place& place, std::optional<int64_t> from_child_sequence, int64_t key);
  // True if this was the last.
  bool CountDelivered();
  bool AllClosed();

  bool Matches(const Record& record) const { return filter_bits_ & FilterBit(record); }
  Next TakeGap(std::string& response);
  Next TakeFin(std::string& response);
  v1::Cursor CursorAt(int64_t sequence) const;

  EventLog& log_;
  const std::shared_ptr<Wakeup> wakeup_ = std::make_shared<Wakeup>();

  // The plan.
  bool named_ = false;
  std::map<std::string, std::string> labels_;
  uint32_t filter_bits_ = 0;
  v1::ObserveStart start_;
  bool fail_on_gap_ = false;
  int64_t events_max_ = 0;
  bool until_closed_ = false;
  size_t response_bytes_max_ = 0;
  size_t batch_bytes_max_ = 0;
  std::chrono::milliseconds heartbeat_interval_{};
  std::chrono::steady_clock::time_point deadline_ = std::chrono::steady_clock::time_point::max();
  std::vector<std::shared_ptr<Log>> children_;  // until Begin
  std::deque<std::string> snapshot_;

  // The state. What `skipping_` says is the writer's is under EventLog::mutex_ too.
  Step step_ = Step::kAttached;
  v1::Attached attached_;
  int64_t cursor_ = 0;      // everything up to here is done
  int64_t round_head_ = 0;  // the round goes up to here
  bool first_round_ = true;
  bool stopping_ = false;           // EventLog::Close was called before the round began
  std::optional<int64_t> stop_at_;  // ends with AGENT_STOPPING when everything up to here is shown
  std::vector<Place> places_;
  absl::flat_hash_map<const Log*, uint32_t> place_numbers_;
  std::vector<Source> heap_;
  std::deque<PendingGap> gaps_;  // to be told before anything else
  size_t closed_places_ = 0;     // places_ before this are of children that have closed
  int64_t delivered_ = 0;
  int64_t dropped_ = 0;
  std::optional<v1::Fin::Reason> end_;
  absl::Status status_;

  // Guarded by EventLog::mutex_.
  bool skipping_ = false;
  absl::flat_hash_set<Log*> watched_;            // logs whose observers_ has this
  std::vector<std::shared_ptr<Log>> forgotten_;  // and not yet told
  int64_t forgotten_overflow_ = 0;               // newest event of those that were too many
};

}  // namespace deka::agent

#endif  // AGENT_LOG_OBSERVATION_H_
