#include "tests/benchmark/agent_sides.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ipc/mutex.h"
#include "sdk/cpp/client.h"
#include "tests/benchmark/agent_program.h"
#include "tests/benchmark/bare_stream.h"
#include "tests/benchmark/message.h"
#include "tests/benchmark/process_figures.h"
#include "tests/benchmark/program.h"
#include "tests/benchmark/watchers.h"

namespace deka::benchmark {
namespace {

constexpr char kPlainChild[] = "tests/benchmark/plain_child";

absl::Status StatusOf(std::string_view what) { return absl::DataLossError(std::string(what)); }

// A measurement that other threads bring to its end.
class Finish {
 public:
  void Begin() {
    ipc::MutexLock lock(mutex_);
    outcome_.reset();
  }
  void Set(absl::Status outcome) {
    ipc::MutexLock lock(mutex_);
    if (!outcome_.has_value()) outcome_ = std::move(outcome);
    changed_.NotifyAll();
  }
  absl::Status Await() {
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    ipc::MutexLock lock(mutex_);
    while (!outcome_.has_value()) {
      if (!changed_.WaitUntil(mutex_, deadline)) {
        return absl::DeadlineExceededError("what was sent is not observed");
      }
    }
    return *outcome_;
  }

 private:
  ipc::Mutex mutex_;
  ipc::CondVar changed_;
  std::optional<absl::Status> outcome_ ABSL_GUARDED_BY(mutex_);
};

class AgentStreamSide final : public AgentStream {
 public:
  AgentStreamSide(int64_t messages, size_t bytes)
      : order_{.messages = messages,
               .bytes = static_cast<int64_t>(bytes),
               .window = 3 * AllowanceFor(static_cast<int64_t>(bytes))},
        allowance_(AllowanceFor(order_.bytes)) {}

  absl::Status Open() {
    absl::StatusOr<std::unique_ptr<AgentProgram>> agent = AgentProgram::Start();
    if (!agent.ok()) return agent.status();
    agent_ = *std::move(agent);
    absl::StatusOr<Child> child = agent_->Fork(kPlainChild);
    if (!child.ok()) return child.status();
    // A second stream for what the child is told, so that observing never waits for it.
    absl::StatusOr<Attachment> orders = agent_->client().Attach(child->name(), {});
    if (!orders.ok()) return orders.status();
    orders_.emplace(*std::move(orders));
    if (absl::Status status = CountResponses(child->name()); !status.ok()) return status;
    Observer observer;
    observer.on_event = [this](const v1::Event& event) { Take(event); };
    observer.on_gap = [this](const v1::Gap&) { finish_.Set(StatusOf("events were missed")); };
    observer.on_end = [this](const absl::Status& status, const v1::Fin&) { finish_.Set(status); };
    absl::StatusOr<Observation> observation =
        agent_->client().Observe(MessagesOf(child->name()), std::move(observer));
    if (!observation.ok()) return observation.status();
    observation_.emplace(*std::move(observation));
    return absl::OkStatus();
  }

  absl::StatusOr<Run> Measure() override {
    received_ = sent_ = 0;
    finish_.Begin();
    const int64_t begin = NowNs();
    if (const auto asked = orders_->Send(order_.ToJson()); !asked.ok()) return asked.status();
    if (absl::Status status = finish_.Await(); !status.ok()) return status;
    const double seconds = static_cast<double>(end_ns_ - begin) * 1e-9;
    return Counted(
        {.value = static_cast<double>(received_) / seconds, .sent = sent_, .received = received_});
  }

  int64_t events_per_response() const override { return events_per_response_; }

 private:
  // Three of them fit the child's log, which holds 4 MiB or 16,384 events.
  static int64_t AllowanceFor(int64_t bytes) {
    constexpr int64_t kBytesBesideMessage = 128;
    return std::clamp<int64_t>((1 << 20) / (bytes + kBytesBesideMessage), 1, 4'096);
  }

  // The SDK does not tell where a response ends; a bare client that is as fast does.
  absl::Status CountResponses(const std::string& child) {
    v1::ObserveRequest request = MessagesOf(child);
    request.mutable_observation()->set_events_max(order_.messages + 1);
    const absl::StatusOr<StreamCounts> counts = ReadStream(
        ConnectTo(agent_->target()), request, [this] { (void)orders_->Send(order_.ToJson()); },
        [this](const v1::Event& event) { Take(event); });
    if (!counts.ok()) return counts.status();
    events_per_response_ = counts->events / counts->responses;
    return absl::OkStatus();
  }

  // On the thread that observes.
  void Take(const v1::Event& event) {
    if (event.from_child().size_bytes() == order_.bytes) {
      if (++received_ % allowance_ == 0) (void)orders_->Send(AllowanceJson(allowance_));
      return;
    }
    sent_ = SentFromJson(event.json()).value_or(-1);
    end_ns_ = NowNs();
    finish_.Set(absl::OkStatus());
  }

  const Order order_;
  const int64_t allowance_;
  Finish finish_;
  int64_t received_ = 0, sent_ = 0;
  int64_t end_ns_ = 0;
  int64_t events_per_response_ = 1;
  std::unique_ptr<AgentProgram> agent_;
  std::optional<Attachment> orders_;
  std::optional<Observation> observation_;
};

class AgentPingPong final : public Side {
 public:
  explicit AgentPingPong(int64_t round_trips) : round_trips_(round_trips) {}

  absl::Status Open() {
    absl::StatusOr<std::unique_ptr<AgentProgram>> agent = AgentProgram::Start();
    if (!agent.ok()) return agent.status();
    agent_ = *std::move(agent);
    absl::StatusOr<Child> child = agent_->Fork(kPlainChild, {"echo"});
    if (!child.ok()) return child.status();
    Attachment::Options options;
    options.observation = MessagesOf(child->name()).observation();
    options.observer.on_event = [this](const v1::Event& event) { Take(event); };
    options.observer.on_gap = [this](const v1::Gap&) {
      finish_.Set(StatusOf("events were missed"));
    };
    options.observer.on_end = [this](const absl::Status& status, const v1::Fin&) {
      finish_.Set(status);
    };
    absl::StatusOr<Attachment> attachment =
        agent_->client().Attach(child->name(), std::move(options));
    if (!attachment.ok()) return attachment.status();
    attachment_.emplace(*std::move(attachment));
    return absl::OkStatus();
  }

  absl::StatusOr<Run> Measure() override {
    sent_ = received_ = 0;
    finish_.Begin();
    const int64_t begin = NowNs();
    Ping();
    if (absl::Status status = finish_.Await(); !status.ok()) return status;
    const double seconds = static_cast<double>(NowNs() - begin) * 1e-9;
    return Counted({.value = seconds / static_cast<double>(round_trips_),
                    .sent = sent_,
                    .received = received_});
  }

 private:
  void Ping() {
    ++sent_;
    if (const auto asked = attachment_->Send(message_); !asked.ok()) finish_.Set(asked.status());
  }
  void Take(const v1::Event& event) {
    if (event.json() != message_) return finish_.Set(StatusOf("the echo is not what was sent"));
    if (++received_ == round_trips_) return finish_.Set(absl::OkStatus());
    Ping();
  }

  const int64_t round_trips_;
  const std::string message_ = MessageOf(kMessageBytesMin);
  Finish finish_;
  int64_t sent_ = 0, received_ = 0;
  std::unique_ptr<AgentProgram> agent_;
  std::optional<Attachment> attachment_;
};

// What the log says was told after a place: messages, and how many the children say they sent.
absl::StatusOr<Run> Recount(const Client& client, v1::ObserveRequest request,
                            const v1::Cursor& after, int64_t events) {
  Run run;
  Finish finish;
  finish.Begin();
  *request.mutable_observation()->mutable_start()->mutable_after() = after;
  request.mutable_observation()->set_events_max(events);
  Observer observer;
  observer.on_event = [&run](const v1::Event& event) {
    const std::optional<int64_t> sent = SentFromJson(event.json());
    run.sent += sent.value_or(0);
    run.received += sent.has_value() ? 0 : 1;
  };
  observer.on_gap = [&finish](const v1::Gap&) { finish.Set(StatusOf("events were missed")); };
  observer.on_end = [&finish](const absl::Status& status, const v1::Fin&) { finish.Set(status); };
  const absl::StatusOr<Observation> observation =
      client.Observe(std::move(request), std::move(observer));
  if (!observation.ok()) return observation.status();
  if (absl::Status status = finish.Await(); !status.ok()) return status;
  return run;
}

// Children of one agent that all get an order, and the observers of all of them.
class AgentCpu final : public Side {
 public:
  AgentCpu(std::vector<Order> orders, int observers)
      : orders_(std::move(orders)), observers_(observers) {}

  absl::Status Open() {
    absl::StatusOr<std::unique_ptr<AgentProgram>> agent = AgentProgram::Start();
    if (!agent.ok()) return agent.status();
    agent_ = *std::move(agent);
    for (size_t i = 0; i < orders_.size(); ++i) {
      absl::StatusOr<Child> child = agent_->Fork(kPlainChild);
      if (!child.ok()) return child.status();
      children_.push_back(*std::move(child));
    }
    absl::StatusOr<std::unique_ptr<Watchers>> watchers =
        Watchers::Start(agent_->target(), MessagesOfAll(), observers_);
    if (!watchers.ok()) return watchers.status();
    watchers_ = *std::move(watchers);
    return absl::OkStatus();
  }

  absl::StatusOr<Run> Measure() override {
    for (;;) {
      const absl::StatusOr<Client::Children> before = agent_->client().List();
      if (!before.ok()) return before.status();
      const absl::StatusOr<std::optional<double>> seconds = MeasureCpu();
      if (!seconds.ok()) return seconds.status();
      if (!seconds->has_value()) continue;
      absl::StatusOr<Run> run =
          Recount(agent_->client(), MessagesOfAll(), before->cursor, Events());
      if (!run.ok()) return run.status();
      run->value = **seconds / static_cast<double>(Events());
      return Counted(*run);
    }
  }

 private:
  // With the children's reports.
  int64_t Events() const {
    int64_t events = static_cast<int64_t>(orders_.size());
    for (const Order& order : orders_) events += order.messages;
    return events;
  }

  // Of the agent, from before the first message is written until the last is shown. All orders are
  // given before, and what they cost is not measured; unset if that took too long this time.
  absl::StatusOr<std::optional<double>> MeasureCpu() {
    const int64_t begin_ns = NowNs() + lead_ns_;
    for (size_t i = 0; i < orders_.size(); ++i) {
      Order order = orders_[i];
      order.first_ns += begin_ns;
      if (const auto sent = children_[i].Send(order.ToJson()); !sent.ok()) return sent.status();
    }
    const absl::StatusOr<int64_t> cpu_before = CpuNs(agent_->pid());
    const bool in_time = NowNs() < begin_ns;
    if (absl::Status status = watchers_->AwaitEach(Events()); !status.ok()) return status;
    const absl::StatusOr<int64_t> cpu_after = CpuNs(agent_->pid());
    if (!cpu_before.ok() || !cpu_after.ok()) return StatusOf("the agent is gone");
    if (in_time) return static_cast<double>(*cpu_after - *cpu_before) * 1e-9;
    lead_ns_ *= 2;
    return std::nullopt;
  }

  const std::vector<Order> orders_;  // first_ns: after the beginning
  const int observers_;
  int64_t lead_ns_ = 100'000'000;
  std::unique_ptr<AgentProgram> agent_;
  std::vector<Child> children_;
  std::unique_ptr<Watchers> watchers_;
};

class Flood final : public Side {
 public:
  Flood(int64_t messages, int children, int observers)
      : messages_(messages / children), children_count_(children), observers_(observers) {}

  absl::Status Open() {
    absl::StatusOr<std::unique_ptr<AgentProgram>> agent = AgentProgram::Start(
        "limits { log_events_max: 1048576 child { log_bytes_max: 134217728 } }");
    if (!agent.ok()) return agent.status();
    agent_ = *std::move(agent);
    for (int i = 0; i < children_count_; ++i) {
      absl::StatusOr<Child> child = agent_->Fork(kPlainChild);
      if (!child.ok()) return child.status();
      children_.push_back(*std::move(child));
    }
    absl::StatusOr<std::unique_ptr<Watchers>> watchers =
        Watchers::Start(agent_->target(), MessagesOfAll(), observers_);
    if (!watchers.ok()) return watchers.status();
    watchers_ = *std::move(watchers);
    return absl::OkStatus();
  }

  absl::StatusOr<Run> Measure() override {
    const absl::StatusOr<Client::Children> before = agent_->client().List();
    if (!before.ok()) return before.status();
    // All begin together, or as soon as they are told.
    const int64_t begin_ns = NowNs() + 1'000'000 * (50 + children_count_);
    const Order order = {.messages = messages_, .first_ns = begin_ns};
    for (const Child& child : children_) {
      if (const auto sent = child.Send(order.ToJson()); !sent.ok()) return sent.status();
    }
    const int64_t events = (messages_ + 1) * children_count_;
    if (absl::Status status = watchers_->AwaitEach(events); !status.ok()) return status;
    const double seconds = static_cast<double>(NowNs() - begin_ns) * 1e-9;
    absl::StatusOr<Run> run = Recount(agent_->client(), MessagesOfAll(), before->cursor, events);
    if (!run.ok()) return run.status();
    run->value = static_cast<double>(events * observers_) / seconds;
    return Counted(*run);
  }

 private:
  const int64_t messages_;  // of each child
  const int children_count_;
  const int observers_;
  std::unique_ptr<AgentProgram> agent_;
  std::vector<Child> children_;
  std::unique_ptr<Watchers> watchers_;
};

template <typename T, typename Base = Side>
absl::StatusOr<std::unique_ptr<Base>> Opened(std::unique_ptr<T> side) {
  if (absl::Status status = side->Open(); !status.ok()) return status;
  return std::unique_ptr<Base>(std::move(side));
}

}  // namespace

absl::StatusOr<std::unique_ptr<AgentStream>> MakeAgentStream(int64_t messages, size_t bytes) {
  return Opened<AgentStreamSide, AgentStream>(std::make_unique<AgentStreamSide>(messages, bytes));
}

SideOr MakeAgentPingPong(int64_t round_trips) {
  return Opened(std::make_unique<AgentPingPong>(round_trips));
}

SideOr MakeObserversCpu(int64_t messages, int observers) {
  const Order order = {
      .messages = messages, .per_write = kObservedBlock, .period_ns = kObservedPeriodNs};
  return Opened(std::make_unique<AgentCpu>(std::vector<Order>{order}, observers));
}

SideOr MakeChildrenCpu(int64_t messages, int children) {
  std::vector<Order> orders;
  for (int i = 0; i < children; ++i) {
    orders.push_back({.messages = messages / children,
                      .per_write = 1,
                      .first_ns = i * kTotalPeriodNs,
                      .period_ns = children * kTotalPeriodNs});
  }
  return Opened(std::make_unique<AgentCpu>(std::move(orders), 1));
}

SideOr MakeFlood(int64_t messages, int children, int observers) {
  return Opened(std::make_unique<Flood>(messages, children, observers));
}

}  // namespace deka::benchmark
