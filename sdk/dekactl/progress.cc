#include "sdk/dekactl/progress.h"

#include <chrono>
#include <utility>

#include "fmt/format.h"

namespace deka::dekactl {

Progress::Progress(Output& output, std::string what) : output_(output), what_(std::move(what)) {
  if (output_.terminal()) {
    thread_ = std::thread([this] { Show(); });
  }
}

Progress::~Progress() {
  if (!thread_.joinable()) {
    return;
  }
  {
    ipc::MutexLock lock(mutex_);
    done_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
  output_.Status("");
}

void Progress::Show() {
  const auto start = std::chrono::steady_clock::now();
  int seconds = 0;
  ipc::MutexLock lock(mutex_);
  while (!done_) {
    if (!changed_.WaitUntil(mutex_, start + std::chrono::seconds(seconds + 1))) {
      ++seconds;
      output_.Status(fmt::format("{}, {} s", what_, seconds));
    }
  }
}

}  // namespace deka::dekactl
