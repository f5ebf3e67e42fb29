// One thread's event loop, on libuv.
//
//   other threads -> Post() ---+
//   descriptors   -> Watch ----+--> tasks and callbacks, one at a time, on the loop's thread
//   time          -> Timer ----+
//   end of a turn -> AtTurnEnd +
//
// A turn is: the callbacks of everything that became ready, then the tasks queued by AtTurnEnd and
// TurnTask, then the wait. So all that one turn sends to a child can go out in one write, and
// nothing waits for it.
//
// Thread: the loop belongs to the thread that calls Run(). Everything but Post() and Stop() runs
// there; before the first Run() the constructing thread counts as the loop's.
#ifndef IPC_EVENT_LOOP_H_
#define IPC_EVENT_LOOP_H_

#include <chrono>
#include <cstddef>
#include <memory>
#include <typeindex>

#include "absl/functional/any_invocable.h"

struct uv_loop_s;

namespace deka::ipc {

class EventLoop {
 public:
  using Task = absl::AnyInvocable<void()>;

  // Aborts, and says why, if the system has no descriptors left for it. Those that it gets are
  // above 2, whichever of the standard ones are closed.
  EventLoop();

  // Everything that was made with the loop is destroyed before it. Tasks posted and not run are
  // destroyed unrun.
  ~EventLoop();

  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // Runs until Stop(), or, as Node does, until nothing referenced is left to wait for. May be
  // called again.
  void Run();

  // Makes Run() return after the current turn. Any thread.
  void Stop();

  // Runs `task` on the loop's thread, in the order posted, never inside the call. A posted task
  // keeps Run() from returning for want of work until it has run. Any thread.
  void Post(Task task);

  // Keeps Run() going although nothing else is referenced: a loop that serves Post() only. Counted.
  void Hold();
  void Release();

  // Runs `task` once, at the end of this turn, before the loop waits again. One that is queued by
  // such a task runs at the end of the next turn, which does not wait. Keeps Run() going.
  void AtTurnEnd(Task task);

  // The one T of this loop, for what its channels and children share (a scratch buffer, a parser's
  // memory). Made with T(loop) when it is first asked for, destroyed with the loop.
  template <typename T>
  T& Shared() {
    std::shared_ptr<void>& slot = SharedSlot(typeid(T));
    if (slot == nullptr) slot = std::make_shared<T>(*this);
    return *static_cast<T*>(slot.get());
  }

  // True on the loop's thread.
  bool InLoop() const;

  uv_loop_s* uv() const;

 private:
  friend class TurnTask;
  struct State;

  std::shared_ptr<void>& SharedSlot(std::type_index type);

  std::unique_ptr<State> state_;
};

// A task for the end of a turn, made once and scheduled often: allocates nothing then. The
// destructor cancels it; the task may destroy it. Loop's thread.
class TurnTask {
 public:
  TurnTask(EventLoop& loop, EventLoop::Task task);
  ~TurnTask();

  TurnTask(const TurnTask&) = delete;
  TurnTask& operator=(const TurnTask&) = delete;

  // Runs the task once at the end of this turn, as AtTurnEnd does, however often it is called.
  void Schedule();
  void Cancel();

 private:
  friend class EventLoop;
  static constexpr size_t kNotScheduled = static_cast<size_t>(-1);

  EventLoop& loop_;
  std::shared_ptr<EventLoop::Task> task_;
  size_t slot_ = kNotScheduled;  // in the loop's list
};

// A one-shot timer. The destructor cancels it. Loop's thread.
class Timer {
 public:
  explicit Timer(EventLoop& loop);
  ~Timer();

  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // (Re)starts it; the task may destroy it. A timer that runs does not keep Run() from returning if
  // `referenced` is false.
  void Start(std::chrono::milliseconds delay, EventLoop::Task on_expired, bool referenced = true);
  void Cancel();
  bool running() const;

 private:
  struct State;
  State* state_;
};

// Readiness of one descriptor, level triggered. Never owns the descriptor; is destroyed before it
// is closed. Loop's thread.
class Watch {
 public:
  enum Events { kNone = 0, kReadable = 1, kWritable = 2, kHangup = 4 };

  // `on_ready` gets the events that are ready, an error of the descriptor as all those wanted: the
  // next system call tells it. It may destroy the watch. Makes the descriptor non-blocking.
  Watch(EventLoop& loop, int descriptor, absl::AnyInvocable<void(int events)> on_ready);
  ~Watch();

  // 0, or the errno that says why the descriptor cannot be watched: it is never ready then.
  int error() const;

  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // Waits for `events` (an OR of Events) from now on; kNone stops waiting: no event is told then,
  // not even that the peer is gone. kHangup: the peer has shut its writing side down.
  void Want(int events);

  // As Node's ref and unref: whether waiting keeps Run() from returning. Referenced at first.
  void Reference(bool referenced);

 private:
  struct State;
  State* state_;
};

}  // namespace deka::ipc

#endif  // IPC_EVENT_LOOP_H_
