// What one observer was shown, checked as it comes: of each child every event once, in order, or
// named as missed, nothing after `closed`, and as many messages as the child says it sent.
//
//   deka::Observation -> Ledger -> Totals; status(): the first thing that was not so
//
// It outlives the observation whose callbacks it gives.
//
// Thread: any; callbacks one at a time.
#ifndef TESTS_BENCHMARK_LEDGER_H_
#define TESTS_BENCHMARK_LEDGER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "ipc/mutex.h"
#include "sdk/cpp/client.h"
#include "tests/benchmark/delays.h"

namespace deka::benchmark {

class Ledger {
 public:
  struct Totals {
    int64_t events = 0;      // shown, of all kinds
    int64_t from_child = 0;  // of them, messages of children, but for their reports
    int64_t to_child = 0;    // of them, messages sent to children
    int64_t gaps = 0;        // told
    int64_t missed = 0;      // events in them
    int64_t reported = 0;    // messages that children said they sent and that were all shown
    int64_t closed = 0;      // children
    int64_t resumed = 0;     // times that the stream was lost or ended

    std::string ToJson() const;
  };

  // `on_message` may be empty: called for each message of a child.
  explicit Ledger(std::function<void(const v1::Event&)> on_message = {})
      : on_message_(std::move(on_message)) {}

  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  // For an observation that begins with what happens from now on, or with what the log still has:
  // then the first event of a child that is there already may be any.
  enum class From { kNow, kLog };
  Observer Callbacks(From from = From::kNow);

  Totals totals() const;
  absl::Status status() const;
  // Of the messages that tell when they were written, since the last call.
  Delays TakeDelays();

  // Waits until it holds; the deadline is an error, as is what status() says.
  absl::Status Await(const std::function<bool(const Totals&)>& condition,
                     std::chrono::milliseconds deadline);
  // Waits until this child has said how much it sent, or closed.
  absl::Status AwaitReport(const std::string& child, std::chrono::milliseconds deadline);
  absl::Status AwaitClosed(const std::string& child, std::chrono::milliseconds deadline);

 private:
  static constexpr int64_t kUnknown = -1;

  struct Account {
    int64_t last = 0;      // child_sequence; kUnknown: whatever comes is the first
    int64_t messages = 0;  // since the last report
    bool whole = true;     // nothing was missed since then
    bool reported = false;
    bool closed = false;
  };

  void TakeEvent(const v1::Event& event);
  void TakeGap(const v1::Gap& gap);
  void TakeMessage(const v1::Event& event, Account& account) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Break(std::string what) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AwaitAccount(const std::string& child, bool Account::*fact,
                            std::chrono::milliseconds deadline);

  const std::function<void(const v1::Event&)> on_message_;

  mutable ipc::Mutex mutex_;
  ipc::CondVar changed_;
  Totals totals_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  Delays delays_ ABSL_GUARDED_BY(mutex_);
  std::unordered_map<std::string, Account> accounts_ ABSL_GUARDED_BY(mutex_);
};

// The request to observe everything, from now on.
v1::ObserveRequest Everything();

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_LEDGER_H_
