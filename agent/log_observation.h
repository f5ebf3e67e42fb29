// An Observation of an EventLog: see observation.h for what it gives, event_log.h for what it
// reads.
//
//   begin -> attached, snapshot... -> rounds -> fin
//
// A round takes everything up to the head that it saw at its beginning: it collects the logs with
// news, and merges them by sequence in a heap of one entry for each log, its next event. Events are
// read from blocks: copies of what stands in a ring, as long as no other log has an event in
// between and 64 KiB at most, which the next observer that comes by uses too. Of a block's bytes
// long runs go into the response as they are, short ones by copy. Between two calls it holds a
// place for each log and the last block that it read.
//
// A log that evicted what was not read yet gives a gap, which stands where the last event missed
// would have stood; so does a rate that leaves events out. Gaps that a resumed cursor begins with
// come first.
//
// However much does not match, a call to TakeNext ends after some hundred microseconds: it answers
// kBusy and goes on in the next one.
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
#include "agent/event_block.h"
#include "agent/event_log.h"
#include "agent/observation.h"
#include "agent/observation_spec.h"
#include "agent/record_ring.h"
#include "agent/response.h"

namespace deka::agent {

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

  Next TakeNext(Response& response) override;
  absl::Status status() const override { return status_; }
  void OnReady(absl::AnyInvocable<void()> ready) override;
  void TakeHeartbeat(Response& response) override;
  std::chrono::milliseconds heartbeat_interval() const override { return spec_.heartbeat_interval; }
  std::chrono::steady_clock::time_point time() const override;
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
  using Clock = std::chrono::steady_clock;

  // Where the next event of a log is read.
  struct Place {
    std::shared_ptr<Log> log;
    uint64_t position = 0;
    int64_t seen = 0;     // child_sequence of the event before it
    bool search = false;  // it is a later one: the first event after cursor_ is to be found
    // Left out to keep the rate, and not yet told: child sequences; 0: none.
    struct {
      int64_t first = 0;
      int64_t last = 0;
      int64_t sequence = 0;  // of the last
    } left_out = {};
  };
  // A place's next event, or the last event of its gap.
  struct Source {
    int64_t key;
    uint32_t place;
    bool operator<(const Source& other) const { return key < other.key; }
    bool operator>(const Source& other) const { return key > other.key; }
  };
  enum class Step { kStart, kSnapshot, kEvents, kEnded };

  // A gap that is still to be told, and the place in the order of events that telling it reaches.
  struct PendingGap {
    v1::Gap gap;
    int64_t key;
    bool slow = false;  // because this observation was
  };

  // What one response gathers, and how far it may go.
  struct Batch {
    Response& response;
    // Of the block that is being read: events that go out as they are, behind one another.
    std::shared_ptr<const EventBlock> block = nullptr;
    size_t begin = 0;
    size_t end = 0;
    size_t bytes = 0;  // of the response, with these

    bool empty() const { return bytes == 0; }
    void Flush();
    void Finish();
  };
  // Whether the rate allows an event now.
  enum class Allowed { kNow, kNot, kAfterGaps };

  // The place of a log; a new one begins with the child's first event.
  uint32_t PlaceOf(const std::shared_ptr<Log>& log);
  void RemovePlace(const Log& log);
  void Watch(const std::shared_ptr<Log>& log) ABSL_EXCLUSIVE_LOCKS_REQUIRED(log_.mutex_);
  absl::Status BeginAfter(const v1::Cursor& cursor) ABSL_EXCLUSIVE_LOCKS_REQUIRED(log_.mutex_);
  void AddInexactGap(v1::Gap::Reason reason, int64_t to_sequence);

  // Finding the start. Each goes on where it was and is false while there is more to do.
  bool FindStart();
  // Moves all places back over the last events that match.
  bool FindLast(int64_t events);
  void PushLast(uint32_t place_number);
  // Moves all places back to the first event that is not older.
  bool FindSince(int64_t since_us);
  // Moves a place back to the event behind the first one for which `is_before` holds.
  template <typename IsBefore>
  bool StepBack(Place& place, IsBefore is_before);
  // The record at `begin`, and its payload if the filter looks at that. Unset if it was evicted.
  std::optional<Record> ReadRecord(Log& log, uint64_t begin, std::string& payload);

  Next TakeEvents(Response& response);
  // Begins a round. False if nothing has happened since the last one.
  bool Collect();
  void TakeForgotten() ABSL_EXCLUSIVE_LOCKS_REQUIRED(log_.mutex_);
  // Puts the place into the heap if the round has something of it. False if there is more to do.
  bool Enqueue(uint32_t place_number);
  // Takes events of one place up to `bound`. True if the response is complete.
  bool Run(Place& place, const Source& source, int64_t bound, Batch& batch);
  void DropBlock();
  // A block that has the place's next event; null if there is none up to `bound`, or a gap before.
  std::shared_ptr<const EventBlock> BlockAt(Place& place, const Source& source, int64_t bound);
  // A copy of an event that is longer than a block may be; null if it was evicted meanwhile.
  std::shared_ptr<const EventBlock> CopyLarge(Log& log, uint64_t position);
  bool RunBlock(Place& place, const std::shared_ptr<const EventBlock>& block, int64_t bound,
                Batch& batch);
  // Puts an event into the response, cut as it has to be. False if it does not fit any more.
  bool Show(const std::shared_ptr<const EventBlock>& block, size_t number, Batch& batch);
  // Both under the log's mutex. If the log has evicted what this place has not read, it goes on
  // with the oldest event, and the gap is pending. The first knows what was seen and is true if
  // something was missed; the second is for a place that was to be searched.
  bool SkipEvicted(Place& place, int64_t key);
  void SkipUnseen(Place& place);
  void AddGap(Place& place, std::optional<int64_t> from_child_sequence, int64_t key);
  bool AllClosed();

  // Of an observation that must not lose anything: how far it has read, for who waits for it: true
  // if somebody does. Under the log's mutex.
  bool TellReading(const Place& place);

  // Keeping the rate.
  Allowed Rate();
  void LeaveOut(Place& place, const Record& record);
  void TellLeftOut(Place& place);
  void TellAllLeftOut();

  bool Matches(const Record& record) const { return spec_.filter_bits & FilterBit(record); }
  bool ContentMatches(const Record& record, std::string_view payload);
  Next TakeGap(Response& response);
  Next TakeFin(Response& response);
  v1::Cursor CursorAt(int64_t sequence) const;

  // Takes off what a TakeNext may do. False if nothing is left of it.
  bool Spend(size_t work) {
    work_left_ -= std::min(work_left_, work);
    return work_left_ > 0;
  }

  EventLog& log_;
  const std::shared_ptr<Wakeup> wakeup_ = std::make_shared<Wakeup>();

  // The plan.
  const bool named_;
  const Labels labels_;
  const ObservationSpec spec_;
  const Clock::time_point deadline_;
  std::vector<std::shared_ptr<Log>> children_;  // until Begin
  std::deque<std::string> snapshot_;

  // The state. What `skipping_` says is the writer's is under EventLog::mutex_ too.
  Step step_ = Step::kStart;
  v1::Attached attached_;
  int64_t cursor_ = 0;      // everything up to here is done
  int64_t round_head_ = 0;  // the round goes up to here
  bool first_round_ = true;
  bool stopping_ = false;           // EventLog::Close was called before the round began
  std::optional<int64_t> stop_at_;  // ends with AGENT_STOPPING when everything up to here is shown
  std::vector<Place> places_;
  absl::flat_hash_map<const Log*, uint32_t> place_numbers_;
  std::vector<uint32_t> candidates_;  // places that the round has not looked at
  std::vector<Source> heap_;
  std::deque<PendingGap> gaps_;              // to be told before anything else
  size_t closed_places_ = 0;                 // places_ before this are of children that have closed
  std::shared_ptr<const EventBlock> block_;  // the last one read: others may come by
  const Log* block_log_ = nullptr;           // whose it is
  bool degraded_told_ = false;               // that the agent is
  int64_t delivered_ = 0;
  int64_t dropped_ = 0;
  std::optional<v1::Fin::Reason> end_;
  absl::Status status_;
  // Of the present TakeNext.
  Clock::time_point now_{};
  size_t work_left_ = 0;

  // While the start is searched.
  struct {
    size_t place = 0;  // the next one to look at
    std::vector<Source> heap;
    std::vector<uint64_t> positions;  // of each place's next event, going back
    int64_t left = 0;
    int64_t first = 0;
    std::string payload;
  } find_;

  // Of the present second, if there is a rate to keep.
  Clock::time_point second_end_{};
  int64_t second_left_ = 0;     // events that may be shown
  bool left_out_ = false;       // something was that is not told
  int64_t left_out_after_ = 0;  // cursor_ before it

  // Guarded by EventLog::mutex_.
  bool skipping_ = false;
  absl::flat_hash_set<Log*> watched_;            // logs whose observers_ has this
  std::vector<std::shared_ptr<Log>> forgotten_;  // and not yet told
  int64_t forgotten_overflow_ = 0;               // newest event of those that were too many
};

}  // namespace deka::agent

#endif  // AGENT_LOG_OBSERVATION_H_
