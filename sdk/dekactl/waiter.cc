#include "sdk/dekactl/waiter.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>

namespace deka::dekactl {
namespace {

constexpr int kInterrupts[] = {SIGINT, SIGTERM};

// The other end of Waiter::interrupts_.
std::atomic<int> interrupts_in = -1;
static_assert(std::atomic<int>::is_always_lock_free, "signal handlers use it");

void OnInterrupt(int number) {
  const int error = errno;
  for (const int interrupt : kInterrupts) {
    signal(interrupt, SIG_DFL);
  }
  const auto byte = static_cast<unsigned char>(number);
  [[maybe_unused]] const ssize_t written = write(interrupts_in, &byte, 1);
  errno = error;
}

int Checked(int result, const char* what) {
  if (result < 0) {
    perror(what);
    exit(1);
  }
  return result;
}

}  // namespace

Waiter::Waiter() {
  wake_ = Checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "dekactl: eventfd");
  int ends[2];
  Checked(pipe2(ends, O_CLOEXEC | O_NONBLOCK), "dekactl: pipe");
  interrupts_ = ends[0];
  interrupts_in = ends[1];
}

Waiter::~Waiter() {
  close(interrupts_in.exchange(-1));
  close(interrupts_);
  close(wake_);
}

void Waiter::TakeInterrupts() {
  if (taken_.test_and_set()) {
    return;
  }
  for (const int interrupt : kInterrupts) {
    struct sigaction action {};
    sigaction(interrupt, nullptr, &action);
    if (action.sa_handler != SIG_IGN) {
      action.sa_handler = OnInterrupt;
      action.sa_flags = SA_RESTART;
      sigaction(interrupt, &action, nullptr);
    }
  }
}

void Waiter::Wake() {
  const uint64_t one = 1;
  // Fails only if the counter is full, and then it wakes already.
  [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof(one));
}

Waiter::Event Waiter::Wait(For what) {
  for (;;) {
    pollfd polled[] = {
        {.fd = wake_, .events = POLLIN, .revents = 0},
        {.fd = interrupts_, .events = POLLIN, .revents = 0},
        {.fd = what.reader ? STDOUT_FILENO : -1, .events = 0, .revents = 0},
        {.fd = what.input ? STDIN_FILENO : -1, .events = POLLIN, .revents = 0},
    };
    if (poll(polled, std::size(polled), -1) <= 0) {
      continue;
    }
    unsigned char number;
    if (read(interrupts_, &number, 1) == 1) {
      interrupt_ = number;
      return Event::kInterrupted;
    }
    uint64_t count;
    if (read(wake_, &count, sizeof(count)) == sizeof(count)) {
      return Event::kWoken;
    }
    if (polled[2].revents != 0) {
      return Event::kReaderGone;
    }
    if (polled[3].revents != 0) {
      return Event::kInput;
    }
  }
}

}  // namespace deka::dekactl
