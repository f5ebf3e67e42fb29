// How far an observation has come: tells the observer what streams bring, and says where the next
// stream begins when one is lost. No IO.
//
//   stream 1: attached, snapshot, events ... lost
//   stream 2: attached, snapshot, gaps, events ... fin
//     -> Observer: every event and every gap once
//
// The place to resume from is that of the last event shown, or a later one that a heartbeat or the
// fin gave. A gap does not move it: the gap of one child may reach beyond events of another that
// are still to come. So a resumed stream may name missed events again, or show them where they were
// left out for `events_per_second_max` and are in the log still. What was told as missed stays so:
// it is taken off.
//
// It remembers kKnownMax children at most, beyond that the half of which something was told last:
// of another, a resumed stream may tell a gap again, or not where it begins.
//
// Thread: one at a time; cursor() any.
#ifndef SDK_CPP_PROGRESS_H_
#define SDK_CPP_PROGRESS_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "deka/bridge/v1/bridge_service.pb.h"
#include "ipc/mutex.h"
#include "sdk/cpp/observer.h"

namespace deka {

// True if `observation` ends by itself.
bool HasEnd(const v1::Observation& observation);

class Progress {
 public:
  using Clock = std::chrono::steady_clock;

  static constexpr size_t kKnownMax = 65536;  // four times what an agent has by default

  // `children` are the names in the filter, if any. Once `stopped` is true the observer is told
  // nothing more, and the place stays where it is. `observer` and `stopped` outlive it.
  Progress(v1::Observation observation, std::vector<std::string> children, const Observer& observer,
           const std::atomic<bool>& stopped);

  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // What to ask the next stream for. Once the agent has told which children the names mean, these
  // are asked for by resource name: a name may come to mean another child.
  v1::Observation NextObservation(Clock::time_point now) const;
  const std::vector<std::string>& children() const { return children_; }

  // Set once everything that was asked for is shown: no further stream is needed. Besides the
  // agent's own fin, a limit on events or time that was reached before the fin could come.
  std::optional<v1::Fin> Finished(Clock::time_point now) const;

  // Tells the observer what `response` holds.
  void Take(const v1::ObserveResponse& response, Clock::time_point now);

  // Unset before the first stream stands.
  std::optional<v1::Cursor> cursor() const;

 private:
  void TakeAttached(const v1::Attached& attached, Clock::time_point now);
  void TakeSnapshot(const v1::Snapshot& snapshot);
  void TakeSnapshotComplete();
  void TakeEvent(const v1::Event& event);
  void TakeGap(const v1::Gap& gap);
  void MoveTo(const v1::Cursor& cursor);
  void Know(const std::string& child, int64_t child_sequence, int64_t sequence, bool missed);
  template <typename Callback, typename... Arguments>
  void Tell(const Callback& callback, const Arguments&... arguments) const;

  const v1::Observation observation_;
  const Observer& observer_;
  const std::atomic<bool>& stopped_;
  std::vector<std::string> children_;
  bool pinned_ = false;  // `children_` are resource names

  mutable ipc::Mutex mutex_;
  std::optional<v1::Cursor> cursor_ ABSL_GUARDED_BY(mutex_);

  // Of the present stream.
  v1::Attached attached_;
  std::vector<std::string> snapshot_;

  std::optional<v1::Fin> fin_;
  std::optional<Clock::time_point> deadline_;  // of an observation that ends after a time
  int64_t events_ = 0;

  // Of a child: the last event that was shown or named by a gap, or that precedes the observation.
  struct Known {
    int64_t child_sequence = 0;
    int64_t sequence = 0;
    bool missed = false;  // a gap named it
  };
  absl::flat_hash_map<std::string, Known> known_;  // of those of this epoch that have not closed
  bool first_stream_ = true;
  int64_t inexact_to_ = 0;  // inexact gaps were told up to here
};

}  // namespace deka

#endif  // SDK_CPP_PROGRESS_H_
