// What the tests of ipc/ share: running a loop until something is so, what a listener heard, and
// what this process uses.
#ifndef IPC_TESTING_H_
#define IPC_TESTING_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <uv.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "ipc/event_loop.h"
#include "ipc/stream_memory.h"

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

// The calls that a listener got, a letter for each, and what a test does in one.
class Calls {
 public:
  bool Has(char call) const { return order.find(call) != std::string::npos; }
  size_t Count(char call) const {
    return static_cast<size_t>(std::count(order.begin(), order.end(), call));
  }

  std::string order;
  std::function<void(char call)> on_event;

 protected:
  void Heard(char call) {
    order += call;
    // The hook may destroy whom this listens to, and replace itself.
    if (!on_event) return;
    const std::function<void(char)> hook = on_event;
    hook(call);
  }
};

inline int OpenDescriptors() {
  int count = 0;
  for (int i = 0; i < 1024; ++i) count += fcntl(i, F_GETFD) != -1 ? 1 : 0;
  return count;
}

// Of this thread.
inline double CpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_THREAD, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

// 0 if the memory cannot be asked about.
inline size_t ResidentPages(const StreamMemory& memory) {
  std::vector<unsigned char> pages(memory.control().bytes / StreamMemory::kPageBytes);
  if (mincore(memory.at(0), memory.control().bytes, pages.data()) != 0) return 0;
  return static_cast<size_t>(
      std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return page & 1; }));
}

}  // namespace deka::ipc

#endif  // IPC_TESTING_H_
