// Says on a terminal what is waited for, once that takes longer than a second.
#ifndef SDK_DEKACTL_PROGRESS_H_
#define SDK_DEKACTL_PROGRESS_H_

#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "ipc/mutex.h"
#include "sdk/dekactl/output.h"

namespace deka::dekactl {

// From its construction to its destruction. Silent where `output` is no terminal.
class Progress {
 public:
  Progress(Output& output, std::string what);
  ~Progress();

  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

 private:
  void Show();

  Output& output_;
  const std::string what_;
  ipc::Mutex mutex_;
  ipc::CondVar changed_;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_PROGRESS_H_
