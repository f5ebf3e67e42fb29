#include <fmt/format.h>
#include <simdjson.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "ipc/descriptor.h"
#include "tests/benchmark/message.h"
#include "tests/benchmark/program.h"
#include "tests/benchmark/yardsticks.h"

namespace deka::benchmark {
namespace {

absl::StatusOr<std::unique_ptr<Program>> PlainChild(std::vector<std::string> arguments) {
  std::vector<std::string> command = {Runfile("tests/benchmark/plain_child")};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return Program::Start({.command = std::move(command)});
}

absl::Status SystemError(std::string_view what) {
  return absl::InternalError(fmt::format("{}: {}", what, std::strerror(errno)));
}

class RawPingPong final : public Side {
 public:
  RawPingPong(int64_t round_trips, std::unique_ptr<Program> child)
      : round_trips_(round_trips), child_(std::move(child)) {}

  absl::Status Open() {
    epoll_ = ipc::Descriptor(epoll_create1(EPOLL_CLOEXEC));
    epoll_event wanted = {.events = EPOLLIN, .data = {}};
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, child_->socket(), &wanted) != 0) {
      return SystemError("epoll");
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Run> Measure() override {
    const int socket = child_->socket();
    const ssize_t size = static_cast<ssize_t>(line_.size());
    int64_t sent = 0, received = 0;
    const int64_t begin = NowNs();
    while (received < round_trips_) {
      if (send(socket, line_.data(), line_.size(), MSG_DONTWAIT | MSG_NOSIGNAL) != size) {
        return SystemError("the child takes no messages");
      }
      ++sent;
      char answer[256];
      ssize_t answered = -1;
      do {
        epoll_event event;
        const int timeout = static_cast<int>(std::chrono::milliseconds(kDeadline).count());
        if (epoll_wait(epoll_.get(), &event, 1, timeout) != 1) return SystemError("no echo");
        answered = recv(socket, answer, sizeof(answer), MSG_DONTWAIT);
      } while (answered < 0 && errno == EAGAIN);
      if (answered != size || std::memcmp(answer, line_.data(), line_.size()) != 0) {
        return absl::DataLossError("the echo is not what was sent");
      }
      ++received;
    }
    const double seconds = static_cast<double>(NowNs() - begin) * 1e-9;
    return Counted(
        {.value = seconds / static_cast<double>(round_trips_), .sent = sent, .received = received});
  }

 private:
  const int64_t round_trips_;
  const std::string line_ = MessageOf(kMessageBytesMin) + "\n";
  const std::unique_ptr<Program> child_;
  ipc::Descriptor epoll_;
};

class ReadLoop final : public Side {
 public:
  ReadLoop(int64_t messages, size_t bytes, std::unique_ptr<Program> child)
      : order_{.messages = messages, .bytes = static_cast<int64_t>(bytes)},
        child_(std::move(child)),
        inbox_(bytes + kReadBytes + simdjson::SIMDJSON_PADDING),
        log_(4 << 20) {}

  absl::StatusOr<Run> Measure() override {
    const int64_t begin_ns = NowNs();
    if (absl::Status status = child_->WriteLine(order_.ToJson()); !status.ok()) return status;
    int64_t received = 0;
    size_t size = 0, scanned = 0;
    for (;;) {
      const ssize_t more = recv(child_->socket(), inbox_.data() + size, kReadBytes, 0);
      if (more <= 0) return SystemError("the child has ended");
      size += static_cast<size_t>(more);
      size_t begin = 0;
      while (const void* found = std::memchr(inbox_.data() + scanned, '\n', size - scanned)) {
        const size_t end = static_cast<size_t>(static_cast<const char*>(found) - inbox_.data());
        const std::string_view line(inbox_.data() + begin, end - begin);
        if (parser_.parse(line.data(), line.size(), /*realloc_if_needed=*/false).error()) {
          return absl::DataLossError("the child sent what is no JSON");
        }
        if (const auto sent = SentFromJson(line)) {
          const double seconds = static_cast<double>(NowNs() - begin_ns) * 1e-9;
          return Counted({.value = static_cast<double>(received) / seconds,
                          .sent = *sent,
                          .received = received});
        }
        Keep(line);
        ++received;
        begin = scanned = end + 1;
      }
      size -= begin;
      // The beginning of a line, whose rest comes with the next reads.
      if (begin > 0) std::memmove(inbox_.data(), inbox_.data() + begin, size);
      scanned = size;
    }
  }

 private:
  static constexpr size_t kReadBytes = 256 << 10;

  // The one copy, into memory that is used over and over.
  void Keep(std::string_view line) {
    if (log_.size() - kept_ < line.size()) kept_ = 0;
    std::memcpy(log_.data() + kept_, line.data(), line.size());
    kept_ += line.size();
  }

  const Order order_;
  const std::unique_ptr<Program> child_;
  std::vector<char> inbox_;
  std::vector<char> log_;
  size_t kept_ = 0;
  simdjson::dom::parser parser_;
};

class NodeStream final : public Side {
 public:
  NodeStream(int64_t messages, size_t bytes, std::unique_ptr<Program> parent)
      : order_(fmt::format(R"({{"messages":{},"message":{}}})", messages, MessageOf(bytes))),
        parent_(std::move(parent)) {}

  absl::StatusOr<Run> Measure() override {
    if (absl::Status status = parent_->WriteLine(order_); !status.ok()) return status;
    const absl::StatusOr<std::string> line = parent_->ReadLine();
    if (!line.ok()) return line.status();
    Run run;
    double seconds = 0;
    if (std::sscanf(line->c_str(),
                    "{\"sent\":%" SCNd64 ",\"received\":%" SCNd64 ",\"seconds\":%lf}", &run.sent,
                    &run.received, &seconds) != 3) {
      return absl::InternalError("node_parent.js answers " + *line);
    }
    run.value = static_cast<double>(run.received) / seconds;
    return Counted(run);
  }

 private:
  const std::string order_;
  const std::unique_ptr<Program> parent_;
};

}  // namespace

SideOr MakeRawPingPong(int64_t round_trips, Echo echo) {
  absl::StatusOr<std::unique_ptr<Program>> child =
      PlainChild({echo == Echo::kEpoll ? "epoll" : "echo"});
  if (!child.ok()) return child.status();
  auto side = std::make_unique<RawPingPong>(round_trips, *std::move(child));
  if (absl::Status status = side->Open(); !status.ok()) return status;
  return std::unique_ptr<Side>(std::move(side));
}

SideOr MakeReadLoop(int64_t messages, size_t bytes) {
  absl::StatusOr<std::unique_ptr<Program>> child = PlainChild({});
  if (!child.ok()) return child.status();
  return std::make_unique<ReadLoop>(messages, bytes, *std::move(child));
}

SideOr MakeNodeStream(int64_t messages, size_t bytes) {
  absl::StatusOr<std::unique_ptr<Program>> parent =
      Program::Start({.command = {"node", Runfile("tests/benchmark/node_parent.js")}});
  if (!parent.ok()) return parent.status();
  return std::make_unique<NodeStream>(messages, bytes, *std::move(parent));
}

}  // namespace deka::benchmark
