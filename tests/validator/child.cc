// A child of a history. It does what its arguments say, draws sizes and bytes from a seed, and
// keeps an account of what it writes and reads.
//
//   history_child ACCOUNT SEED STEP...
//
//   write:N:GATHER:BYTES  N messages of at most some BYTES, up to GATHER in one write
//   bad:N                 N lines that are no messages
//   big:BYTES             one message of some BYTES
//   too-large:BYTES       the same, of more than the child may write
//   print:N               N lines, on stdout and stderr
//   long-line:BYTES       one line on stdout
//   unterminated          a line on stdout that does not end
//   serve:BURST:N         reads, and answers each message with an echo and up to BURST more; goes
//   on
//                         after N messages, or at the end of the channel
//   deaf                  reads nothing until SIGUSR1 comes or the other side has ended
//   half                  half a line on the channel
//   close                 closes the channel
//   hold:CODE             forks: the child exits with CODE, the other does the steps that follow
//   exit:CODE, kill:N     ends
//
// SIGUSR1 makes it write a message, once it serves.

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tests/validator/account.h"

namespace deka::validator {
namespace {

constexpr std::string_view kEnvelope = R"({"cmd":"NODE_HANDLE","msg":)";

[[noreturn]] void Die(const char* what) {
  fprintf(stderr, "history_child: %s: %s\n", what, strerror(errno));
  _exit(99);
}

class Account {
 public:
  explicit Account(const char* path) {
    const int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, kAccountBytes) != 0) Die(path);
    base_ = static_cast<char*>(
        mmap(nullptr, kAccountBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    if (base_ == MAP_FAILED) Die(path);
    close(file);
  }

  void Add(Deed deed, std::string_view bytes, int64_t value = 0, uint64_t end = 0) {
    const uint64_t used = header().used.load(std::memory_order_relaxed);
    const size_t size = sizeof(AccountEntry) + (bytes.size() + 7) / 8 * 8;
    if (sizeof(AccountHeader) + used + size > kAccountBytes) Die("the account is full");
    char* const place = base_ + sizeof(AccountHeader) + used;
    const AccountEntry entry{deed, static_cast<uint32_t>(bytes.size()), value, end};
    memcpy(place, &entry, sizeof(entry));
    if (!bytes.empty()) memcpy(place + sizeof(entry), bytes.data(), bytes.size());
    header().used.store(used + size, std::memory_order_release);
  }

  void Written(Sink sink, uint64_t position) {
    header().written[static_cast<size_t>(sink)].store(position, std::memory_order_release);
  }

 private:
  AccountHeader& header() { return *reinterpret_cast<AccountHeader*>(base_); }
  char* base_;
};

class Child {
 public:
  Child(const char* account, uint64_t seed) : account_(account), random_(seed) {
    const char* const deka = getenv("DEKA_IPC_FD");
    const char* const node = getenv("NODE_CHANNEL_FD");
    deka_ = deka != nullptr;
    if (deka != nullptr || node != nullptr) channel_ = atoi(deka_ ? deka : node);
    signal(SIGPIPE, SIG_IGN);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    signals_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals_ < 0) Die("signalfd");
  }

  void Do(std::string_view step) {
    std::vector<std::string> words;
    for (size_t at = 0; at <= step.size();) {
      const size_t end = std::min(step.find(':', at), step.size());
      words.emplace_back(step.substr(at, end - at));
      at = end + 1;
    }
    const auto number = [&](size_t i) -> uint64_t {
      return i < words.size() ? strtoull(words[i].c_str(), nullptr, 10) : 0;
    };
    const std::string& verb = words[0];
    if (verb == "write") {
      Write(number(1), number(2), number(3));
    } else if (verb == "bad") {
      for (uint64_t i = 0; i < number(1); ++i) Bad();
      Flush();
    } else if (verb == "big") {
      Queue(Deed::kMessage, Value(number(1)));
      Flush();
    } else if (verb == "too-large") {
      Queue(Deed::kBadFrame, Framed(Value(number(1))));
      Flush();
    } else if (verb == "print") {
      for (uint64_t i = 0; i < number(1); ++i) {
        Print(Below(2) == 0 ? Sink::kStdout : Sink::kStderr, Text("line", Below(80)), "\n");
      }
    } else if (verb == "long-line") {
      Print(Sink::kStdout, Text("long", number(1)), "\n");
    } else if (verb == "unterminated") {
      Print(Sink::kStdout, Text("rest", Below(80)), "");
    } else if (verb == "serve") {
      Serve(number(1), number(2));
    } else if (verb == "deaf") {
      Wait(POLLRDHUP);
      TakeSignals();
    } else if (verb == "half") {
      Queue(Deed::kHalfFrame, Text(deka_ ? R"({"cmd":"NODE_HANDLE","msg":)" : R"({"half":)", 0));
      Flush();
    } else if (verb == "close") {
      if (channel_ >= 0) close(channel_);
      channel_ = -1;
    } else if (verb == "hold") {
      account_.Add(Deed::kExits, "", static_cast<int64_t>(number(1)));
      account_.Add(Deed::kForked, "");
      const pid_t pid = fork();
      if (pid < 0) Die("fork");
      if (pid > 0) _exit(static_cast<int>(number(1)));
    } else if (verb == "exit") {
      Exit(static_cast<int>(number(1)));
    } else if (verb == "kill") {
      account_.Add(Deed::kKilled, "", static_cast<int64_t>(number(1)));
      kill(getpid(), static_cast<int>(number(1)));
      pause();
    } else {
      Die("there is no such step");
    }
  }

  [[noreturn]] void Exit(int code) {
    account_.Add(Deed::kExits, "", code);
    _exit(code);
  }

 private:
  uint64_t Next() {
    random_ += 0x9E3779B97F4A7C15;
    uint64_t x = random_;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
  }
  uint64_t Below(uint64_t limit) { return limit == 0 ? 0 : Next() % limit; }

  // A text that no other is equal to, and that some characters of more than one byte fill.
  std::string Text(std::string_view name, uint64_t bytes) {
    constexpr std::string_view kFill[] = {"a", "b", " ", "\u00e4", "\u20ac", "\U0001F642"};
    std::string text(name);
    text += ' ';
    text += std::to_string(++texts_);
    text += ' ';
    while (text.size() < bytes) text += kFill[Below(std::size(kFill))];
    return text;
  }

  std::string Value(uint64_t bytes) {
    switch (Below(4)) {
      case 0:
        return '"' + Text("m", bytes) + '"';
      case 1:
        return "[ " + std::to_string(++texts_) + ", \"" + Text("m", bytes) + "\" ]";
      default:
        return R"({"n":)" + std::to_string(++texts_) + R"(,"kind":")" +
               (Below(2) == 0 ? "even" : "odd") + R"(","pad":")" + Text("m", bytes) + "\"}";
    }
  }

  void Write(uint64_t count, uint64_t gather, uint64_t bytes) {
    for (uint64_t gathered = 0; count > 0; --count) {
      Queue(Deed::kMessage, Value(Below(bytes + 1)));
      if (++gathered <= Below(gather)) continue;
      Flush();
      gathered = 0;
    }
    Flush();
  }

  void Bad() {
    switch (Below(4)) {
      case 0:
        return Queue(Deed::kBadFrame, Text("no JSON", Below(200)));
      case 1:
        return Queue(Deed::kBadFrame, R"({"open":")" + Text("b", Below(100)));
      case 2:
        return Queue(Deed::kBadFrame, "\xff\xfe" + Text("no UTF-8", 0));
      default:
        return Queue(Deed::kBadFrame, Text("1,2", 0));
    }
  }

  std::string Framed(const std::string& value) const {
    return deka_ ? std::string(kEnvelope).append(value).append("}") : value;
  }

  void Queue(Deed deed, const std::string& bytes) {
    if (channel_ < 0 || broken_) return;
    const std::string line = deed == Deed::kMessage ? Framed(bytes) : bytes;
    queued_ += line;
    if (deed != Deed::kHalfFrame) queued_ += '\n';
    account_.Add(deed, bytes, 0, written_ + queued_.size());
  }

  // All of it: who reads this channel always does.
  void Flush() {
    size_t sent = 0;
    while (sent < queued_.size() && channel_ >= 0 && !broken_) {
      const ssize_t n = send(channel_, queued_.data() + sent, queued_.size() - sent, MSG_NOSIGNAL);
      if (n < 0) {
        broken_ = errno != EINTR;
        continue;
      }
      sent += static_cast<size_t>(n);
      account_.Written(Sink::kChannel, written_ + sent);
    }
    written_ += sent;
    queued_.clear();
  }

  void Print(Sink sink, const std::string& line, std::string_view end) {
    const std::string text = line + std::string(end);
    uint64_t& printed = printed_[sink == Sink::kStderr];
    const uint64_t begin = printed;
    account_.Add(sink == Sink::kStdout ? Deed::kStdout : Deed::kStderr, line, 0,
                 begin + text.size());
    while (printed < begin + text.size()) {
      const ssize_t n = write(sink == Sink::kStdout ? 1 : 2, text.data() + (printed - begin),
                              text.size() - (printed - begin));
      if (n < 0) {
        if (errno == EINTR) continue;
        return;
      }
      printed += static_cast<uint64_t>(n);
      account_.Written(sink, printed);
    }
  }

  // Until the channel has something of this, or there is a signal.
  short Wait(short events) {
    pollfd descriptors[] = {{channel_, events, 0}, {signals_, POLLIN, 0}};
    while (poll(descriptors, 2, -1) < 0) {
      if (errno != EINTR) Die("poll");
    }
    return descriptors[0].revents;
  }

  bool TakeSignals() {
    signalfd_siginfo info;
    bool any = false;
    while (read(signals_, &info, sizeof(info)) == sizeof(info)) {
      account_.Add(Deed::kSignal, "", info.ssi_signo);
      any = true;
    }
    return any;
  }

  void Serve(uint64_t burst, uint64_t count) {
    for (uint64_t served = 0; channel_ >= 0;) {
      const size_t end = input_.find('\n');
      if (end != std::string::npos) {
        std::string line = input_.substr(0, end);
        input_.erase(0, end + 1);
        Answer(std::move(line), burst);
        if (++served == count) return;
        continue;
      }
      if (ended_) return;
      const short ready = Wait(POLLIN);
      if (TakeSignals()) Write(1, 1, 40);
      if (ready == 0) continue;
      char bytes[16384];
      const ssize_t n = recv(channel_, bytes, 1 + Below(sizeof(bytes)), 0);
      if (n < 0 && errno == EINTR) continue;
      if (n > 0) {
        input_.append(bytes, static_cast<size_t>(n));
        continue;
      }
      ended_ = true;
      // After an error it has not read all that was written.
      if (n == 0) account_.Add(Deed::kReadEnd, input_);
    }
  }

  void Answer(std::string line, uint64_t burst) {
    if (deka_ && line.starts_with(kEnvelope) && line.ends_with('}')) {
      line = line.substr(kEnvelope.size(), line.size() - kEnvelope.size() - 1);
    }
    account_.Add(Deed::kRead, line);
    if (line.size() < 300) {
      Queue(Deed::kMessage, "{\"n\":" + std::to_string(++texts_) + ",\"echo\":" + line + "}");
    }
    for (uint64_t i = Below(burst + 1); i > 0; --i) {
      if (Below(50) == 0) {
        Bad();
      } else {
        Queue(Deed::kMessage, Value(Below(100)));
      }
    }
    Flush();
  }

  Account account_;
  uint64_t random_;
  bool deka_ = false;
  int channel_ = -1;
  int signals_ = -1;
  uint64_t texts_ = 0;
  std::string queued_;
  uint64_t written_ = 0;
  bool broken_ = false;
  uint64_t printed_[2] = {0, 0};
  std::string input_;
  bool ended_ = false;
};

}  // namespace
}  // namespace deka::validator

int main(int argc, char** argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: history_child ACCOUNT SEED STEP...\n");
    return 2;
  }
  deka::validator::Child child(argv[1], strtoull(argv[2], nullptr, 10));
  for (int i = 3; i < argc; ++i) child.Do(argv[i]);
  child.Exit(0);
}
