// A child of a storm: does what its role says until it is told to stop, and keeps an account.
//
//   storm_child ACCOUNT SEED ROLE CODE COUNT AHEAD
//
//   flood  bursts of up to COUNT numbered messages, as fast as they are taken, with short pauses
//   half   messages in pieces, with pauses in the middle of a frame
//   echo   an answer to each message
//   slow   reads little at a time, seldom
//   print  numbered lines on stdout and stderr, and a message now and then
//   burst  COUNT messages and lines, then it ends at once; it reads nothing, but may wait for input
//
// With AHEAD those that write by themselves pause when so many of their messages and lines were not
// shown yet. Told to stop, or at the channel's end, it writes what it has begun and exits with
// CODE.

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "tests/survival/account.h"
#include "tests/survival/content.h"

namespace deka::storm {
namespace {

constexpr std::string_view kEnvelope = R"({"cmd":"NODE_HANDLE","msg":)";

[[noreturn]] void Die(const char* what) {
  dprintf(2, "storm_child: %s: %s\n", what, strerror(errno));
  _exit(99);
}

class Child {
 public:
  Child(const char* account, uint64_t seed, std::string_view role, int code, uint64_t count,
        uint64_t ahead)
      : seed_(seed), random_(seed), role_(role), code_(code), count_(count), ahead_(ahead) {
    const int file = open(account, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, sizeof(Account)) != 0) Die(account);
    void* const mapped =
        mmap(nullptr, sizeof(Account), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) Die(account);
    close(file);
    account_ = static_cast<Account*>(mapped);
    const char* const deka = getenv("DEKA_IPC_FD");
    const char* const node = getenv("NODE_CHANNEL_FD");
    deka_ = deka != nullptr;
    if (deka == nullptr && node == nullptr) Die("there is no channel");
    channel_ = atoi(deka_ ? deka : node);
    signal(SIGPIPE, SIG_IGN);
  }

  [[noreturn]] void Run() {
    if (role_ == "flood") {
      for (; !over(); AwaitShown()) {
        for (uint64_t burst = random_.Between(1, count_); burst > 0; --burst) {
          Queue(MessageOf(seed_, ++number_));
          if (queued_.size() >= random_.Between(1, 64 << 10)) Flush();
        }
        Flush();
        Read(static_cast<int>(random_.Below(20)));
      }
    } else if (role_ == "half") {
      for (; !over(); AwaitShown()) {
        Queue(MessageOf(seed_, ++number_));
        if (random_.Below(3) == 0) Queue(MessageOf(seed_, ++number_));
        const std::string bytes = Take();
        for (size_t at = 0; at < bytes.size();) {
          const size_t piece = std::min(bytes.size() - at, 1 + random_.Below(bytes.size()));
          Write(bytes.substr(at, piece));
          at += piece;
          Read(static_cast<int>(random_.Below(8)));
        }
        account_->written = number_;
      }
    } else if (role_ == "echo") {
      while (!over()) {
        Read(-1);
        Flush();
      }
    } else if (role_ == "slow") {
      while (!over()) {
        Pause(static_cast<int>(random_.Between(2, 10)));
        Read(-1, 1 + random_.Below(32 << 10));
      }
    } else if (role_ == "print") {
      for (; !over(); AwaitShown()) {
        for (uint64_t lines = random_.Between(1, 40); lines > 0; --lines) PrintLine();
        Queue(MessageOf(seed_, ++number_));
        Flush();
        Read(static_cast<int>(random_.Below(20)));
      }
    } else if (role_ == "burst") {
      // Half of them end with input that they have not read.
      pollfd unread = {.fd = channel_, .events = POLLIN, .revents = 0};
      if (random_.Below(2) == 0) poll(&unread, 1, 500);
      for (; count_ > 0; --count_) {
        Queue(MessageOf(seed_, ++number_));
        if (random_.Below(20) == 0) Flush();
        if (random_.Below(10) == 0) PrintLine();
      }
    } else {
      Die("there is no such role");
    }
    Flush();
    account_->finished = 1;
    _exit(code_);
  }

 private:
  bool over() const { return stopped_ || account_->ended != 0; }

  void AwaitShown() {
    while (ahead_ > 0 && !over() &&
           number_ + account_->lines[0] + account_->lines[1] > account_->shown + ahead_) {
      Read(5);
    }
  }

  void Queue(const std::string& value) {
    if (deka_) queued_ += kEnvelope;
    queued_ += value;
    queued_ += deka_ ? "}\n" : "\n";
  }

  std::string Take() {
    account_->began = number_;
    return std::exchange(queued_, {});
  }

  void Flush() {
    Write(Take());
    account_->written = number_;
  }

  // Waits for as long as nobody takes it.
  void Write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = send(channel_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) {
        account_->failed = static_cast<uint64_t>(errno);
        _exit(98);
      }
      bytes.remove_prefix(static_cast<size_t>(count));
    }
  }

  void PrintLine() {
    const int stream = static_cast<int>(random_.Below(2));
    std::atomic<uint64_t>& lines = account_->lines[stream];
    const std::string line = LineOf(seed_, stream, lines + 1) + '\n';
    for (std::string_view rest = line; !rest.empty();) {
      const ssize_t count = write(1 + stream, rest.data(), rest.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) Die("write");
      rest.remove_prefix(static_cast<size_t>(count));
    }
    ++lines;
  }

  static void Pause(int milliseconds) { poll(nullptr, 0, milliseconds); }

  // What has come within that time; -1: something has.
  void Read(int milliseconds, size_t bytes_max = 64 << 10) {
    pollfd ready = {.fd = channel_, .events = POLLIN, .revents = 0};
    if (poll(&ready, 1, milliseconds) <= 0) return;
    char bytes[64 << 10];
    const ssize_t count = recv(channel_, bytes, std::min(sizeof(bytes), bytes_max), 0);
    if (count < 0 && errno == EINTR) return;
    if (count < 0) {
      account_->failed = static_cast<uint64_t>(errno);
      _exit(98);
    }
    if (count == 0) {
      if (!input_.empty()) account_->failed = EPROTO;  // half a frame
      account_->ended = 1;
    }
    input_.append(bytes, static_cast<size_t>(count));
    size_t begin = 0;
    for (size_t end; (end = input_.find('\n', begin)) != std::string::npos; begin = end + 1) {
      Receive(std::string_view(input_).substr(begin, end - begin));
    }
    input_.erase(0, begin);
  }

  void Receive(std::string_view line) {
    if (deka_ && line.starts_with(kEnvelope) && line.ends_with('}')) {
      line = line.substr(kEnvelope.size(), line.size() - kEnvelope.size() - 1);
    }
    const uint64_t read = account_->read;
    if (read == Account::kReceiptsMax) Die("the account is full");
    account_->receipts[read] = HashOf(line);
    account_->read = read + 1;
    if (line == kStop) stopped_ = true;
    if (role_ == "echo") Queue(EchoOf(++number_, HashOf(line)));
  }

  const uint64_t seed_;
  Random random_;
  const std::string_view role_;
  const int code_;
  uint64_t count_;
  const uint64_t ahead_;
  Account* account_ = nullptr;
  bool deka_ = false;
  int channel_ = -1;
  uint64_t number_ = 0;  // of its messages
  std::string queued_;
  std::string input_;
  bool stopped_ = false;
};

}  // namespace
}  // namespace deka::storm

int main(int argc, char** argv) {
  if (argc < 7) {
    fprintf(stderr, "usage: storm_child ACCOUNT SEED ROLE CODE COUNT AHEAD\n");
    return 2;
  }
  deka::storm::Child(argv[1], strtoull(argv[2], nullptr, 10), argv[3], atoi(argv[4]),
                     strtoull(argv[5], nullptr, 10), strtoull(argv[6], nullptr, 10))
      .Run();
}
