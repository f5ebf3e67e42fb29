// The reply to one message, found in what an observation tells.
//
//   observation -- a message that fits, a gap, the channel's end --> Observer() --> Await()
//   send        -- the sequence of the message itself ------------> Sent() ------^
//
// A child's message is a reply only if it comes after the one that was sent. Where that stands is
// known when the send is answered, and a reply may be told before. So the observer's callbacks
// stand still until then, or until nobody waits any more: nothing is kept here, what comes
// meanwhile waits in the agent.
//
// Thread: any.
#ifndef SDK_CPP_REPLY_H_
#define SDK_CPP_REPLY_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "deka/bridge/v1/bridge_service.pb.h"
#include "ipc/mutex.h"
#include "sdk/cpp/observer.h"

namespace deka {

class Reply {
 public:
  using Clock = std::chrono::steady_clock;

  Reply() = default;
  Reply(const Reply&) = delete;
  Reply& operator=(const Reply&) = delete;

  // For an observation of the child's messages and its `disconnected`. This outlives it. No
  // callback stands still beyond `deadline`.
  deka::Observer Observer(Clock::time_point deadline);

  // The message is the event of this sequence.
  void Sent(int64_t sequence);

  // Callbacks that stand still return, and so do later ones.
  void Abandon();

  // The reply, or why there will be none: NO_REPLY_CHANNEL_CLOSED, or OUTCOME_UNKNOWN where one may
  // have come that was not told. Unset if `deadline` comes first.
  std::optional<absl::StatusOr<v1::Event>> Await(Clock::time_point deadline);

 private:
  // Waits until it is known; true if `sequence` is behind the message.
  bool IsBehind(int64_t sequence, Clock::time_point deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The first counts.
  void Set(absl::StatusOr<v1::Event> result) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  ipc::Mutex mutex_;
  ipc::CondVar changed_;
  std::optional<int64_t> sent_ ABSL_GUARDED_BY(mutex_);
  bool abandoned_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::StatusOr<v1::Event>> result_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace deka

#endif  // SDK_CPP_REPLY_H_
