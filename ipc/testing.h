// What the tests of ipc/ share: running a loop until something is so.
#ifndef IPC_TESTING_H_
#define IPC_TESTING_H_

#include <uv.h>

#include <chrono>

#include "absl/functional/function_ref.h"
#include "ipc/event_loop.h"

namespace deka::ipc {

// Runs turns of the loop until `condition` holds. False if it does not within `limit`, which is
// long enough for a busy machine and reached only by a test that fails.
[[nodiscard]] inline bool RunUntil(EventLoop& loop, absl::FunctionRef<bool()> condition,
                                   std::chrono::milliseconds limit = std::chrono::seconds(30)) {
  bool expired = false;
  Timer deadline(loop);
  deadline.Start(limit, [&expired] { expired = true; });
  while (!condition()) {
    if (expired) return false;
    uv_run(loop.uv(), UV_RUN_ONCE);
  }
  return true;
}

// Runs the loop for that long: to see that something does not happen.
inline void RunFor(EventLoop& loop, std::chrono::milliseconds time) {
  bool expired = false;
  Timer timer(loop);
  timer.Start(time, [&expired] { expired = true; });
  while (!expired) uv_run(loop.uv(), UV_RUN_ONCE);
}

}  // namespace deka::ipc

#endif  // IPC_TESTING_H_
