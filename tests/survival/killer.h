// Kills agents under a keeper, one after the other.
//
// The victim is the keeper's oldest child that runs the agent's program: the agent, or, for a
// moment after its death, the one that is about to take over. A prober asks each agent who it is,
// on a connection of its own, so a kill is known to come before or after the agent has answered a
// client.
//
// Thread: Run() on one, the rest on any.
#ifndef TESTS_SURVIVAL_KILLER_H_
#define TESTS_SURVIVAL_KILLER_H_

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "ipc/mutex.h"
#include "tests/survival/content.h"
#include "tests/survival/ledger.h"

namespace deka::storm {

class Killer {
 public:
  struct Options {
    uint64_t seed = 0;
    int kills = 0;
    pid_t keeper = 0;
    std::string program;  // of the agent
    std::string target;
  };

  Killer(const Options& options, Verdict& verdict);
  ~Killer();

  // Half of the kills come 10 to 60 ms after the one before, the others 200 ms after the agent has
  // answered a client and the witness observes it. In an order that the seed draws.
  void Run();
  // It kills no more: there is no agent to kill.
  bool stopping() const { return stopping_; }

  int kills() const { return kills_; }
  Clock::time_point last_kill() const;
  int quick() const { return quick_; }
  int before_answer() const { return before_answer_; }
  int after_answer() const { return after_answer_; }

  // The witness: a stream stands; an event came.
  void Attached();
  void Event();
  // From a kill, with an agent that had answered, to the first event of the stream that its
  // successor has begun.
  std::vector<double> DowntimesMs() const;
  // To the first answer of its successor to a client that asked at once.
  std::vector<double> TakeoversMs() const;

 private:
  std::optional<pid_t> FindAgent() const;
  void Probe();
  // False if it does not yet, after some time.
  bool AwaitWork(pid_t agent, std::chrono::milliseconds ago);
  void Kill(bool quick);

  const Options options_;
  Verdict& verdict_;
  Random random_;
  std::atomic<bool> stopping_{false};
  std::atomic<int> kills_{0};
  std::atomic<int> quick_{0}, before_answer_{0}, after_answer_{0};

  mutable ipc::Mutex mutex_;
  ipc::CondVar changed_;
  pid_t answered_ ABSL_GUARDED_BY(mutex_) = 0;  // the agent that answered last
  Clock::time_point answered_time_ ABSL_GUARDED_BY(mutex_) = Clock::now();
  bool killed_answered_ ABSL_GUARDED_BY(mutex_) = false;
  Clock::time_point killed_time_ ABSL_GUARDED_BY(mutex_) = Clock::now();
  bool measured_ ABSL_GUARDED_BY(mutex_) = true;  // the last kill, or it is not to be
  int attached_kills_ ABSL_GUARDED_BY(mutex_) = 0;
  Clock::time_point attached_time_ ABSL_GUARDED_BY(mutex_) = Clock::now();
  std::vector<double> takeovers_ms_ ABSL_GUARDED_BY(mutex_);
  std::vector<double> downtimes_ms_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread prober_;
};

}  // namespace deka::storm

#endif  // TESTS_SURVIVAL_KILLER_H_
