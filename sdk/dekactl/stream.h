// What tail and attach show of a stream, and how it ended.
#ifndef SDK_DEKACTL_STREAM_H_
#define SDK_DEKACTL_STREAM_H_

#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "ipc/mutex.h"
#include "sdk/cpp/client.h"
#include "sdk/dekactl/context.h"
#include "sdk/dekactl/event_text.h"
#include "sdk/dekactl/waiter.h"

namespace deka::dekactl {

// Outlives the observation or attachment that tells its observer. Thread: any.
class Stream {
 public:
  // One that has ended wakes `waiter`. Once it stands, an interrupt is for `waiter` to tell.
  Stream(Context& context, Waiter& waiter, bool json);

  // Prints events and gaps as they come.
  deka::Observer Observer();

  // Some events were missed.
  bool missed() const;
  // All events of the child that is attached have been shown.
  bool closed() const;

  struct End {
    absl::Status status;
    v1::Fin fin;
  };
  std::optional<End> end() const;

 private:
  void Show(const v1::Event& event);
  void Show(const v1::Gap& gap);

  Context& context_;
  Waiter& waiter_;
  const bool json_;
  mutable ipc::Mutex mutex_;
  EventText text_ ABSL_GUARDED_BY(mutex_);
  v1::Cursor place_ ABSL_GUARDED_BY(mutex_);  // agent and epoch
  bool missed_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<End> end_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_STREAM_H_
