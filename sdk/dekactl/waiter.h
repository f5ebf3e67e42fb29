// What a command that shows a stream waits for on its main thread.
#ifndef SDK_DEKACTL_WAITER_H_
#define SDK_DEKACTL_WAITER_H_

namespace deka::dekactl {

class Waiter {
 public:
  enum class Event {
    kWoken,        // Wake() was called
    kInterrupted,  // Ctrl-C or SIGTERM; only the first: a second one ends the process
    kReaderGone,   // nobody reads standard output any more
    kInput,        // standard input has something, or its end
  };

  // Takes SIGINT and SIGTERM from here on: make it before any thread.
  Waiter();
  ~Waiter();

  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  // Any thread.
  void Wake();

  // Until one of them; of several, the first in the list above.
  Event Wait(bool with_input = false);

 private:
  int wake_;
  int signals_;
};

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_WAITER_H_
