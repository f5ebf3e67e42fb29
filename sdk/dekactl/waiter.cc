#include "sdk/dekactl/waiter.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>

namespace deka::dekactl {
namespace {

sigset_t Interrupts() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  return signals;
}

int Checked(int descriptor, const char* what) {
  if (descriptor < 0) {
    perror(what);
    exit(1);
  }
  return descriptor;
}

}  // namespace

Waiter::Waiter() {
  const sigset_t signals = Interrupts();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  wake_ = Checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "dekactl: eventfd");
  signals_ = Checked(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK), "dekactl: signalfd");
}

Waiter::~Waiter() {
  close(wake_);
  close(signals_);
}

void Waiter::Wake() {
  const uint64_t one = 1;
  // Fails only if the counter is full, and then it wakes already.
  [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof(one));
}

Waiter::Event Waiter::Wait(bool with_input) {
  for (;;) {
    pollfd polled[] = {
        {.fd = wake_, .events = POLLIN, .revents = 0},
        {.fd = signals_, .events = POLLIN, .revents = 0},
        {.fd = STDOUT_FILENO, .events = 0, .revents = 0},
        {.fd = with_input ? STDIN_FILENO : -1, .events = POLLIN, .revents = 0},
    };
    if (poll(polled, std::size(polled), -1) <= 0) {
      continue;
    }
    uint64_t count;
    if (read(wake_, &count, sizeof(count)) == sizeof(count)) {
      return Event::kWoken;
    }
    signalfd_siginfo info;
    if (read(signals_, &info, sizeof(info)) == sizeof(info)) {
      const sigset_t signals = Interrupts();
      pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
      return Event::kInterrupted;
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
