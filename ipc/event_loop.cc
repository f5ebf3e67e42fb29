#include "ipc/event_loop.h"

#include <fcntl.h>
#include <unistd.h>
#include <uv.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ipc/descriptor.h"
#include "ipc/mutex.h"

namespace deka::ipc {
namespace {

// For calls of libuv that fail only for want of memory or descriptors, before anything runs.
void OrAbort(int result, const char* call) {
  if (result == 0) return;
  std::fprintf(stderr, "deka: the event loop cannot start: %s: %s\n", call, uv_strerror(result));
  std::abort();
}

// While it lives, nothing that is opened gets the number of a standard descriptor that is closed: a
// child would inherit it, and libuv aborts when it closes one.
class StandardNumbersTaken {
 public:
  StandardNumbersTaken() {
    for (Descriptor& number : numbers_) {
      number = Descriptor(open("/dev/null", O_RDONLY | O_CLOEXEC));
      if (number.get() > STDERR_FILENO) return;
    }
  }

 private:
  Descriptor numbers_[STDERR_FILENO + 2];
};

template <typename Handle>
uv_handle_t* AsHandle(Handle* handle) {
  return reinterpret_cast<uv_handle_t*>(handle);
}

void Reference(uv_handle_t* handle, bool referenced) {
  if (referenced) {
    uv_ref(handle);
  } else {
    uv_unref(handle);
  }
}

}  // namespace

struct EventLoop::State {
  // One entry of the list for the end of a turn: a TurnTask, or a task to run once, or neither if
  // it was cancelled.
  struct TurnEntry {
    TurnTask* reusable = nullptr;
    Task once;
  };

  uv_loop_t uv;
  uv_async_t wake;        // tasks were posted
  uv_prepare_t turn_end;  // just before the wait
  uv_idle_t no_wait;      // active while something is queued for the end of a turn
  std::atomic<std::thread::id> thread;
  int holds = 0;
  bool stopping = false;  // Run() returns after this turn

  std::vector<TurnEntry> turn_entries;
  std::vector<Task> running;  // taken from `posted`; kept for its capacity
  std::unordered_map<std::type_index, std::shared_ptr<void>> shared;

  Mutex mutex;
  std::vector<Task> posted ABSL_GUARDED_BY(mutex);
  bool stop ABSL_GUARDED_BY(mutex) = false;

  size_t AddTurnEntry(TurnEntry entry) {
    if (turn_entries.empty()) uv_idle_start(&no_wait, [](uv_idle_t*) {});
    turn_entries.push_back(std::move(entry));
    return turn_entries.size() - 1;
  }

  // Runs what is queued now; what that queues stays for the next turn.
  void RunTurnEntries() {
    const size_t count = turn_entries.size();
    if (count == 0) return;
    for (size_t i = 0; i < count; ++i) {
      // The entry may move while its task runs: tasks add entries.
      TurnEntry entry = std::exchange(turn_entries[i], {});
      if (entry.reusable != nullptr) {
        entry.reusable->slot_ = TurnTask::kNotScheduled;
        const std::shared_ptr<Task> task = entry.reusable->task_;
        (*task)();
      } else if (entry.once) {
        entry.once();
      }
    }
    turn_entries.erase(turn_entries.begin(), turn_entries.begin() + static_cast<ptrdiff_t>(count));
    for (TurnEntry& entry : turn_entries) {
      if (entry.reusable != nullptr) entry.reusable->slot_ -= count;
    }
    if (turn_entries.empty()) uv_idle_stop(&no_wait);
  }

  void StopAfterTurn() {
    stopping = true;
    uv_stop(&uv);
  }

  // False if there was nothing to run.
  bool RunPosted() {
    {
      MutexLock lock(mutex);
      if (std::exchange(stop, false)) StopAfterTurn();
      posted.swap(running);
    }
    if (running.empty()) return false;
    for (Task& task : running) task();
    running.clear();
    return true;
  }
};

EventLoop::EventLoop() : state_(std::make_unique<State>()) {
  State* state = state_.get();
  const StandardNumbersTaken taken;
  OrAbort(uv_loop_init(&state->uv), "uv_loop_init");
  OrAbort(uv_async_init(&state->uv, &state->wake,
                        [](uv_async_t* wake) { static_cast<State*>(wake->data)->RunPosted(); }),
          "uv_async_init");
  state->wake.data = state;
  uv_unref(AsHandle(&state->wake));
  uv_prepare_init(&state->uv, &state->turn_end);
  state->turn_end.data = state;
  uv_prepare_start(&state->turn_end, [](uv_prepare_t* turn_end) {
    static_cast<State*>(turn_end->data)->RunTurnEntries();
  });
  uv_unref(AsHandle(&state->turn_end));
  uv_idle_init(&state->uv, &state->no_wait);
  state->thread = std::this_thread::get_id();
}

EventLoop::~EventLoop() {
  // Tasks that never ran, and what is shared, may own timers and watches.
  std::vector<Task> posted;
  {
    MutexLock lock(state_->mutex);
    posted.swap(state_->posted);
  }
  posted.clear();
  state_->shared.clear();
  for (size_t i = 0; i < state_->turn_entries.size(); ++i) {
    const State::TurnEntry entry = std::exchange(state_->turn_entries[i], {});
    if (entry.reusable != nullptr) entry.reusable->slot_ = TurnTask::kNotScheduled;
  }
  uv_close(AsHandle(&state_->wake), nullptr);
  uv_close(AsHandle(&state_->turn_end), nullptr);
  uv_close(AsHandle(&state_->no_wait), nullptr);
  while (uv_loop_close(&state_->uv) == UV_EBUSY) uv_run(&state_->uv, UV_RUN_NOWAIT);
}

void EventLoop::Run() {
  State& state = *state_;
  state.thread = std::this_thread::get_id();
  for (;;) {
    uv_run(&state.uv, UV_RUN_DEFAULT);
    if (std::exchange(state.stopping, false)) {
      state.RunTurnEntries();
      return;
    }
    // Nothing is left to wait for but, perhaps, tasks that other threads posted meanwhile.
    if (!state.RunPosted() && !state.stopping) return;
  }
}

void EventLoop::Stop() {
  if (InLoop()) {
    state_->StopAfterTurn();
    return;
  }
  MutexLock lock(state_->mutex);
  state_->stop = true;
  uv_async_send(&state_->wake);
}

void EventLoop::Post(Task task) {
  MutexLock lock(state_->mutex);
  state_->posted.push_back(std::move(task));
  // Under the lock: libuv 1.44 may lose one of two calls that race without it.
  uv_async_send(&state_->wake);
}

void EventLoop::Hold() {
  if (state_->holds++ == 0) uv_ref(AsHandle(&state_->wake));
}

void EventLoop::Release() {
  if (--state_->holds == 0) uv_unref(AsHandle(&state_->wake));
}

void EventLoop::AtTurnEnd(Task task) {
  state_->AddTurnEntry({.reusable = nullptr, .once = std::move(task)});
}

std::shared_ptr<void>& EventLoop::SharedSlot(std::type_index type) { return state_->shared[type]; }

bool EventLoop::InLoop() const { return state_->thread == std::this_thread::get_id(); }

uv_loop_s* EventLoop::uv() const { return &state_->uv; }

TurnTask::TurnTask(EventLoop& loop, EventLoop::Task task)
    : loop_(loop), task_(std::make_shared<EventLoop::Task>(std::move(task))) {}

TurnTask::~TurnTask() { Cancel(); }

void TurnTask::Schedule() {
  if (slot_ == kNotScheduled) slot_ = loop_.state_->AddTurnEntry({.reusable = this, .once = {}});
}

void TurnTask::Cancel() {
  if (slot_ == kNotScheduled) return;
  loop_.state_->turn_entries[slot_].reusable = nullptr;
  slot_ = kNotScheduled;
}

// Both handles below outlive their owners by the turn that libuv needs to close them; so does the
// callable, which may be what destroys the owner.

struct Timer::State {
  uv_timer_t uv;
  EventLoop::Task on_expired;
};

Timer::Timer(EventLoop& loop) : state_(new State) {
  uv_timer_init(loop.uv(), &state_->uv);
  state_->uv.data = state_;
}

Timer::~Timer() {
  uv_close(AsHandle(&state_->uv),
           [](uv_handle_t* handle) { delete static_cast<State*>(handle->data); });
}

void Timer::Start(std::chrono::milliseconds delay, EventLoop::Task on_expired, bool referenced) {
  state_->on_expired = std::move(on_expired);
  Reference(AsHandle(&state_->uv), referenced);
  // The loop's time stands still during a turn; the delay counts from now.
  uv_update_time(state_->uv.loop);
  uv_timer_start(
      &state_->uv,
      [](uv_timer_t* timer) {
        EventLoop::Task task = std::move(static_cast<State*>(timer->data)->on_expired);
        task();
      },
      delay.count() > 0 ? static_cast<uint64_t>(delay.count()) : 0, 0);
}

void Timer::Cancel() {
  uv_timer_stop(&state_->uv);
  state_->on_expired = nullptr;
}

bool Timer::running() const { return uv_is_active(AsHandle(&state_->uv)) != 0; }

struct Watch::State {
  uv_poll_t uv;
  absl::AnyInvocable<void(int)> on_ready;
  int error = 0;
  int wanted = kNone;

  void Start() {
    if (error != 0) return;
    if (wanted == kNone) {
      uv_poll_stop(&uv);
      return;
    }
    const int events = (wanted & kReadable ? UV_READABLE : 0) |
                       (wanted & kWritable ? UV_WRITABLE : 0) |
                       (wanted & kHangup ? UV_DISCONNECT : 0);
    uv_poll_start(&uv, events, [](uv_poll_t* poll, int status, int ready) {
      static_cast<State*>(poll->data)->OnReady(status, ready);
    });
  }

  void OnReady(int status, int ready) {
    int events = wanted;
    if (status == 0) {
      events = (ready & UV_READABLE ? kReadable : 0) | (ready & UV_WRITABLE ? kWritable : 0) |
               (ready & UV_DISCONNECT ? kHangup : 0);
    } else {
      Start();  // libuv stops a handle that it saw an error on
    }
    on_ready(events);
  }
};

Watch::Watch(EventLoop& loop, int descriptor, absl::AnyInvocable<void(int events)> on_ready)
    : state_(new State) {
  state_->on_ready = std::move(on_ready);
  state_->error = -uv_poll_init(loop.uv(), &state_->uv, descriptor);
  state_->uv.data = state_;
}

Watch::~Watch() {
  if (state_->error != 0) {
    delete state_;
    return;
  }
  uv_close(AsHandle(&state_->uv),
           [](uv_handle_t* handle) { delete static_cast<State*>(handle->data); });
}

int Watch::error() const { return state_->error; }

void Watch::Want(int events) {
  if (events == state_->wanted) return;
  state_->wanted = events;
  state_->Start();
}

void Watch::Reference(bool referenced) {
  if (state_->error == 0) ipc::Reference(AsHandle(&state_->uv), referenced);
}

}  // namespace deka::ipc
