#include "tests/benchmark/core_sides.h"

#include <fmt/format.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/agent.h"
#include "ipc/child_process.h"
#include "ipc/event_loop.h"
#include "tests/benchmark/message.h"
#include "tests/benchmark/program.h"

namespace deka::benchmark {
namespace {

// The largest message that is measured needs room on its way.
constexpr size_t kMessageBytesMax = 2 << 20;

ipc::ForkOptions CoreChild(std::vector<std::string> args) {
  ipc::ForkOptions options;
  options.program = Runfile("tests/benchmark/core_child");
  options.args = std::move(args);
  options.dialect = ipc::Dialect::kNode;
  options.channel.message_bytes_max = kMessageBytesMax;
  return options;
}

// Runs a loop for one measurement, until it is finished or has failed.
class LoopRun {
 public:
  explicit LoopRun(ipc::EventLoop& loop) : loop_(loop), deadline_(loop) {}

  absl::Status Run() {
    status_ = absl::OkStatus();
    deadline_.Start(kDeadline, [this] { Fail("what was sent does not arrive"); });
    loop_.Run();
    deadline_.Cancel();
    return status_;
  }
  void Finish() { loop_.Stop(); }
  void Fail(std::string_view why) {
    status_ = absl::UnavailableError(why.data());
    loop_.Stop();
  }

 private:
  ipc::EventLoop& loop_;
  ipc::Timer deadline_;
  absl::Status status_;
};

class CorePingPong final : public Side, private ipc::ChildProcess::Listener {
 public:
  explicit CorePingPong(int64_t round_trips) : round_trips_(round_trips) {}

  absl::Status Open() {
    absl::StatusOr<std::unique_ptr<ipc::ChildProcess>> child =
        ipc::ChildProcess::Fork(loop_, CoreChild({"echo"}), *this);
    if (!child.ok()) return child.status();
    child_ = *std::move(child);
    return absl::OkStatus();
  }

  absl::StatusOr<Run> Measure() override {
    sent_ = received_ = 0;
    const int64_t begin = NowNs();
    Ping();
    if (absl::Status status = run_.Run(); !status.ok()) return status;
    const double seconds = static_cast<double>(NowNs() - begin) * 1e-9;
    return Counted({.value = seconds / static_cast<double>(round_trips_),
                    .sent = sent_,
                    .received = received_});
  }

 private:
  void Ping() {
    if (!child_->Send(message_).ok()) return run_.Fail("the child takes no messages");
    ++sent_;
  }
  void OnMessage(ipc::Message message) override {
    if (message.json != message_) return run_.Fail("the echo is not what was sent");
    if (++received_ == round_trips_) return run_.Finish();
    Ping();
  }
  void OnDisconnect(absl::Status) override { run_.Fail("the child has ended"); }

  const int64_t round_trips_;
  const std::string message_ = MessageOf(kMessageBytesMin);
  ipc::EventLoop loop_;
  LoopRun run_{loop_};
  std::unique_ptr<ipc::ChildProcess> child_;
  int64_t sent_ = 0, received_ = 0;
};

// What one stream has brought, up to the child's own count.
class Arrivals {
 public:
  explicit Arrivals(size_t bytes) : bytes_(bytes) {}

  void Begin() {
    received_ = 0;
    begin_ns_ = NowNs();
  }
  // True if this was the end.
  bool Take(std::string_view json) {
    if (json.size() == bytes_) {
      ++received_;
      return false;
    }
    sent_ = SentFromJson(json).value_or(-1);
    end_ns_ = NowNs();
    return true;
  }
  absl::StatusOr<Run> Rate() const {
    const double seconds = static_cast<double>(end_ns_ - begin_ns_) * 1e-9;
    return Counted(
        {.value = static_cast<double>(received_) / seconds, .sent = sent_, .received = received_});
  }

 private:
  const size_t bytes_;
  int64_t received_ = 0, sent_ = 0;
  int64_t begin_ns_ = 0, end_ns_ = 0;
};

class CoreStream final : public Side, private ipc::ChildProcess::Listener {
 public:
  CoreStream(int64_t messages, size_t bytes)
      : order_{.messages = messages, .bytes = static_cast<int64_t>(bytes)}, arrivals_(bytes) {}

  absl::Status Open() {
    absl::StatusOr<std::unique_ptr<ipc::ChildProcess>> child =
        ipc::ChildProcess::Fork(loop_, CoreChild({}), *this);
    if (!child.ok()) return child.status();
    child_ = *std::move(child);
    return absl::OkStatus();
  }

  absl::StatusOr<Run> Measure() override {
    arrivals_.Begin();
    if (const auto sent = child_->Send(order_.ToJson()); !sent.ok()) return sent.status();
    if (absl::Status status = run_.Run(); !status.ok()) return status;
    return arrivals_.Rate();
  }

 private:
  void OnMessage(ipc::Message message) override {
    if (arrivals_.Take(message.json)) run_.Finish();
  }
  void OnDisconnect(absl::Status) override { run_.Fail("the child has ended"); }

  const Order order_;
  Arrivals arrivals_;
  ipc::EventLoop loop_;
  LoopRun run_{loop_};
  std::unique_ptr<ipc::ChildProcess> child_;
};

class EmbeddedStream final : public Side, private agent::Child::Listener {
 public:
  EmbeddedStream(int64_t messages, size_t bytes)
      : order_{.messages = messages, .bytes = static_cast<int64_t>(bytes)}, arrivals_(bytes) {}

  absl::Status Open() {
    absl::StatusOr<std::unique_ptr<agent::Agent>> agent =
        agent::Agent::Create(loop_, {.id = "benchmark"});
    if (!agent.ok()) return agent.status();
    agent_ = *std::move(agent);
    absl::StatusOr<agent::Child*> child = agent_->Fork(
        {.program = Runfile("tests/benchmark/plain_child"), .dialect = ipc::Dialect::kNode}, {},
        this);
    if (!child.ok()) return child.status();
    child_ = *child;
    return absl::OkStatus();
  }

  absl::StatusOr<Run> Measure() override {
    arrivals_.Begin();
    if (const auto sent = child_->Send(order_.ToJson()); !sent.ok()) return sent.status();
    if (absl::Status status = run_.Run(); !status.ok()) return status;
    return arrivals_.Rate();
  }

 private:
  void OnMessage(agent::Child&, std::string_view json) override {
    if (arrivals_.Take(json)) run_.Finish();
  }
  void OnDisconnect(agent::Child&) override { run_.Fail("the child has ended"); }

  const Order order_;
  Arrivals arrivals_;
  ipc::EventLoop loop_;
  LoopRun run_{loop_};
  std::unique_ptr<agent::Agent> agent_;
  agent::Child* child_ = nullptr;
};

template <typename T>
SideOr Opened(std::unique_ptr<T> side) {
  if (absl::Status status = side->Open(); !status.ok()) return status;
  return std::unique_ptr<Side>(std::move(side));
}

}  // namespace

SideOr MakeCorePingPong(int64_t round_trips) {
  return Opened(std::make_unique<CorePingPong>(round_trips));
}

SideOr MakeCoreStream(int64_t messages, size_t bytes) {
  return Opened(std::make_unique<CoreStream>(messages, bytes));
}

SideOr MakeEmbeddedStream(int64_t messages, size_t bytes) {
  return Opened(std::make_unique<EmbeddedStream>(messages, bytes));
}

}  // namespace deka::benchmark
