// What a command that goes on for long waits for on its main thread.
#ifndef SDK_DEKACTL_WAITER_H_
#define SDK_DEKACTL_WAITER_H_

#include <atomic>

namespace deka::dekactl {

// One in a process.
class Waiter {
 public:
  enum class Event {
    kInterrupted,  // Ctrl-C or SIGTERM; only the first: a second one ends the process
    kWoken,        // Wake() was called
    kReaderGone,   // nobody reads standard output any more
    kInput,        // standard input has something, or its end
  };

  // What else to wait for.
  struct For {
    bool input = false;
    bool reader = false;
  };

  Waiter();
  ~Waiter();

  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  // Ctrl-C and SIGTERM are events from here on; before, they end the process at once as they do any
  // other, since nothing has happened that would have to be told. One that was ignored when the
  // process started stays so. Once is enough. Any thread.
  void TakeInterrupts();
  // The signal that came; 0: none.
  int interrupt() const { return interrupt_; }

  // Any thread.
  void Wake();

  // Until one of them; of several, the first in the list above.
  Event Wait(For what);

 private:
  int wake_;
  int interrupts_;  // the end of a pipe that signals are read from, each as one byte
  std::atomic_flag taken_;
  int interrupt_ = 0;
};

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_WAITER_H_
