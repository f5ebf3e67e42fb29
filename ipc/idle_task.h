// A task that runs when something has not been used for a while: gives its memory back.
//
// All of a loop share one timer, which runs while any of them was used lately and keeps no loop
// going.
//
// Thread: the loop's.
#ifndef IPC_IDLE_TASK_H_
#define IPC_IDLE_TASK_H_

#include <chrono>
#include <cstddef>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "ipc/event_loop.h"

namespace deka::ipc {

class IdleTask {
 public:
  // Runs after one to two of these without a use.
  static constexpr std::chrono::milliseconds kIdle{500};

  // `task` does not destroy it.
  IdleTask(EventLoop& loop, absl::AnyInvocable<void()> task)
      : used_(loop.Shared<Used>()), task_(std::move(task)) {}
  ~IdleTask() {
    if (place_ != kNowhere) used_.Remove(*this);
  }

  IdleTask(const IdleTask&) = delete;
  IdleTask& operator=(const IdleTask&) = delete;

  // It is used now: the task runs once when it has not been for a while.
  void Use() {
    used_now_ = true;
    if (place_ == kNowhere) used_.Add(*this);
  }

 private:
  // Those that were used lately.
  class Used {
   public:
    explicit Used(EventLoop& loop) : timer_(loop) {}

    void Add(IdleTask& task) {
      task.place_ = tasks_.size();
      tasks_.push_back(&task);
      if (!timer_.running()) Wait();
    }

    void Remove(IdleTask& task) {
      tasks_[task.place_] = tasks_.back();
      tasks_[task.place_]->place_ = task.place_;
      tasks_.pop_back();
      task.place_ = kNowhere;
    }

   private:
    void Wait() {
      timer_.Start(
          kIdle, [this] { Look(); }, /*referenced=*/false);
    }

    void Look() {
      for (size_t i = tasks_.size(); i-- > 0;) {
        IdleTask& task = *tasks_[i];
        if (std::exchange(task.used_now_, false)) continue;
        Remove(task);
        task.task_();
      }
      if (!tasks_.empty()) Wait();
    }

    std::vector<IdleTask*> tasks_;
    Timer timer_;
  };

  static constexpr size_t kNowhere = static_cast<size_t>(-1);

  Used& used_;
  absl::AnyInvocable<void()> task_;
  bool used_now_ = false;  // since Used looked
  size_t place_ = kNowhere;
};

}  // namespace deka::ipc

#endif  // IPC_IDLE_TASK_H_
