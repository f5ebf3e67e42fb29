// A child that costs as little as a child can: no library, no event loop, blocking system calls.
// Its blocks of messages are made before it begins to write.
//
//   plain_child         carries out one Order a line (message.h), until its channel ends
//   plain_child echo    writes back each line that it reads, at most 64 KiB
//   plain_child epoll   the same, waiting as a program does that has more to do
//
// It speaks dialect node on the descriptor that NODE_CHANNEL_FD names, or on 3.

#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>

#include "tests/benchmark/message.h"

namespace deka::benchmark {
namespace {

int Channel() {
  const char* variable = getenv("NODE_CHANNEL_FD");
  return variable == nullptr ? 3 : std::atoi(variable);
}

void WriteAll(int channel, const char* bytes, size_t size) {
  while (size > 0) {
    const ssize_t written = write(channel, bytes, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) exit(0);  // nobody reads any more
    bytes += written;
    size -= static_cast<size_t>(written);
  }
}

class Lines {
 public:
  explicit Lines(int channel) : channel_(channel) {}

  // Waits for the next line; ends the program when there is none.
  std::string Next() {
    for (;;) {
      if (const size_t end = bytes_.find('\n'); end != std::string::npos) {
        std::string line = bytes_.substr(0, end);
        bytes_.erase(0, end + 1);
        return line;
      }
      char more[4096];
      const ssize_t size = read(channel_, more, sizeof(more));
      if (size < 0 && errno == EINTR) continue;
      if (size <= 0) exit(0);
      bytes_.append(more, static_cast<size_t>(size));
    }
  }

 private:
  const int channel_;
  std::string bytes_;
};

// Times to write at: each Wait() is one of them.
class Clock {
 public:
  Clock(int64_t first_ns, int64_t period_ns) {
    if (first_ns == 0 && period_ns == 0) return;
    // Wake up at the time, not within the usual 50 us after it.
    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    if (first_ns == 0) first_ns = NowNs() + 1;
    const auto split = [](int64_t ns) {
      return timespec{.tv_sec = ns / 1'000'000'000, .tv_nsec = ns % 1'000'000'000};
    };
    const itimerspec times = {.it_interval = split(period_ns), .it_value = split(first_ns)};
    if (timer_ < 0 || timerfd_settime(timer_, TFD_TIMER_ABSTIME, &times, nullptr) != 0) exit(1);
    periodic_ = period_ns != 0;
  }
  ~Clock() {
    if (timer_ >= 0) close(timer_);
  }

  // What fell behind catches up: times that have passed do not wait.
  void Wait() {
    if (timer_ < 0 || (!periodic_ && begun_)) return;
    begun_ = true;
    while (due_ == 0) {
      if (read(timer_, &due_, sizeof(due_)) < 0 && errno != EINTR) exit(1);
    }
    --due_;
  }

 private:
  int timer_ = -1;
  bool periodic_ = false;
  bool begun_ = false;
  uint64_t due_ = 0;
};

void CarryOut(const Order& order, int channel, Lines& lines) {
  const size_t bytes = static_cast<size_t>(order.bytes);
  const std::string line = (order.stamped ? StampedMessageOf(bytes) : MessageOf(bytes)) + "\n";
  const int64_t per_write =
      order.per_write > 0 ? order.per_write
                          : std::max<int64_t>(1, (64 << 10) / static_cast<int64_t>(line.size()));
  std::string block;
  for (int64_t i = 0; i < per_write; ++i) block += line;

  Clock clock(order.first_ns, order.period_ns);
  int64_t allowed = order.window > 0 ? order.window : std::numeric_limits<int64_t>::max();
  int64_t sent = 0;
  while (sent < order.messages) {
    while (allowed == sent) allowed += AllowanceFromJson(lines.Next()).value_or(0);
    clock.Wait();
    const int64_t count = std::min({per_write, order.messages - sent, allowed - sent});
    if (order.stamped) {
      const int64_t now = NowNs();
      for (int64_t i = 0; i < count; ++i) {
        SetStamp(&block[static_cast<size_t>(i) * line.size()], now);
      }
    }
    WriteAll(channel, block.data(), static_cast<size_t>(count) * line.size());
    sent += count;
  }
  const std::string report = SentJson(sent) + "\n";
  WriteAll(channel, report.data(), report.size());
}

[[noreturn]] void Echo(int channel, bool with_epoll) {
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  epoll_event event = {.events = EPOLLIN, .data = {}};
  epoll_ctl(epoll, EPOLL_CTL_ADD, channel, &event);
  char bytes[64 << 10];
  size_t size = 0;
  for (;;) {
    if (with_epoll && epoll_wait(epoll, &event, 1, -1) != 1) continue;
    const ssize_t more = read(channel, bytes + size, sizeof(bytes) - size);
    if (more < 0 && errno == EINTR) continue;
    if (more <= 0) exit(0);
    size += static_cast<size_t>(more);
    const void* last = memrchr(bytes, '\n', size);
    if (last == nullptr) continue;
    const size_t whole = static_cast<size_t>(static_cast<const char*>(last) - bytes) + 1;
    WriteAll(channel, bytes, whole);
    size -= whole;
    std::memmove(bytes, bytes + whole, size);
  }
}

int Main(int argc, char** argv) {
  const int channel = Channel();
  if (argc > 1) Echo(channel, std::string_view(argv[1]) == "epoll");
  Lines lines(channel);
  for (;;) {
    // An allowance that came after the last message is of no use any more.
    if (const auto order = Order::FromJson(lines.Next())) CarryOut(*order, channel, lines);
  }
}

}  // namespace
}  // namespace deka::benchmark

int main(int argc, char** argv) { return deka::benchmark::Main(argc, argv); }
