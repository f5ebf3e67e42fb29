// One thread's event loop, on libuv.
//
//   other threads -> Post() ---+
//   descriptors   -> Watch ----+--> tasks and callbacks, one at a time, on the loop's thread
//   time          -> Timer ----+
//   end of a turn -> AtTurnEnd +
//
// A turn is: the callbacks of everything that became ready, then the tasks queued by AtTurnEnd,
// then the wait.
//
// Thread: the loop belongs to the thread that calls Run(). Everything but Post() and Stop() runs
// there; before the first Run() the constructing thread counts as the loop's.
#ifndef IPC_EVENT_LOOP_H_
#define IPC_EVENT_LOOP_H_

#include <chrono>
#include <functional>
#include <memory>

#include "absl/functional/any_invocable.h"

struct uv_loop_s;

namespace deka::ipc {

class EventLoop {
 public:
  using Task = absl::AnyInvocable<void()>;

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

  // Runs `task` once, at the end of this turn, before the loop waits again. Loop's thread.
  void AtTurnEnd(Task task);

  // True on the loop's thread.
  bool InLoop() const;

  uv_loop_s* uv() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A one-shot timer. The destructor cancels it. Loop's thread.
class Timer {
 public:
  explicit Timer(EventLoop& loop);
  ~Timer();

  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // (Re)starts it. A timer that runs does not keep Run() from returning if `referenced` is false.
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

  // `on_ready` gets the events that are ready. It may destroy the watch.
  Watch(EventLoop& loop, int descriptor, absl::AnyInvocable<void(int events)> on_ready);
  ~Watch();

  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // Waits for `events` (an OR of Events) from now on; kNone stops waiting.
  void Want(int events);

  // As Node's ref and unref: whether waiting keeps Run() from returning. Referenced at first.
  void Reference(bool referenced);

 private:
  struct State;
  State* state_;
};

}  // namespace deka::ipc

#endif  // IPC_EVENT_LOOP_H_
