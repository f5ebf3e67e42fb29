// Runs a deka-agent for a given time: children come, talk, are spoken to and go, observers join,
// lag and leave. One observer watches from the beginning to the end and keeps account of
// everything.
//
//   ./bazelw run -c opt //tests/benchmark:soak -- --for 10m
//
// Ends with figures: messages, observers, gaps, memory and descriptors of the agent. Fails if what
// was shown does not add up with what children and senders say they sent, if the agent has more
// descriptors at the end than at the start, or does not stop in order.

#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ipc/mutex.h"
#include "sdk/cpp/client.h"
#include "tests/benchmark/agent_program.h"
#include "tests/benchmark/figures.h"
#include "tests/benchmark/ledger.h"
#include "tests/benchmark/message.h"
#include "tests/benchmark/process_figures.h"
#include "tests/benchmark/program.h"
#include "tests/benchmark/run_options.h"

namespace deka::benchmark {
namespace {

using std::chrono::milliseconds;

struct Options {
  double seconds = 60;
  int children = 16;
  int observers = 8;
  uint64_t seed = 1;
};

class Soak {
 public:
  explicit Soak(Options options) : options_(options) {}

  absl::StatusOr<Figures> Run(const ProgressLine& progress) {
    if (absl::Status status = Open(); !status.ok()) return status;
    std::vector<std::thread> threads;
    for (int i = 0; i < options_.children; ++i) {
      threads.emplace_back([this, i] { End(LiveChildren(i)); });
    }
    for (int i = 0; i < options_.observers; ++i) {
      threads.emplace_back([this, i] { End(LiveObservers(i)); });
    }
    const auto begin = Clock::now();
    const auto end = begin + Milliseconds(options_.seconds);
    while (Clock::now() < end && !WaitForStop(milliseconds(500))) {
      progress.Show(fmt::format("{:.0f} s of {:.0f} s, {} events",
                                std::chrono::duration<double>(Clock::now() - begin).count(),
                                options_.seconds, ledger_.totals().events));
    }
    End(absl::OkStatus());
    for (std::thread& thread : threads) thread.join();
    progress.Show("");
    return Account(std::chrono::duration<double>(Clock::now() - begin).count());
  }

 private:
  using Clock = std::chrono::steady_clock;

  absl::Status Open() {
    absl::StatusOr<std::unique_ptr<AgentProgram>> agent = AgentProgram::Start();
    if (!agent.ok()) return agent.status();
    agent_ = *std::move(agent);
    const absl::StatusOr<int> descriptors = DescriptorsOf(agent_->pid());
    const absl::StatusOr<Memory> memory = MemoryOf(agent_->pid());
    if (!descriptors.ok()) return descriptors.status();
    if (!memory.ok()) return memory.status();
    descriptors_ = *descriptors;
    memory_ = *memory;
    absl::StatusOr<Observation> observation =
        agent_->client().Observe(Everything(), ledger_.Callbacks());
    if (!observation.ok()) return observation.status();
    observation_.emplace(*std::move(observation));
    return absl::OkStatus();
  }

  // --- Threads. Each has a source of chance of its own. ---

  absl::Status LiveChildren(int number) {
    std::mt19937_64 chance(options_.seed * 1000 + static_cast<uint64_t>(number));
    const auto pick = [&chance](int64_t from, int64_t to) {
      return std::uniform_int_distribution<int64_t>(from, to)(chance);
    };
    while (!stopping_) {
      const absl::StatusOr<Child> child = agent_->Fork("tests/benchmark/plain_child");
      if (!child.ok()) return child.status();
      ++forked_;
      for (int64_t i = pick(0, 20); i > 0; --i) {
        if (absl::Status status = Send(*child, MessageOf(kMessageBytesMin)); !status.ok()) {
          return status;
        }
      }
      constexpr int64_t kSizes[] = {32, 256, 4096};
      const Order order = {.messages = pick(500, 5'000),
                           .bytes = kSizes[pick(0, 2)],
                           .per_write = pick(1, 32),
                           .period_ns = pick(1, 8) * 1'000'000,
                           .stamped = true};
      if (absl::Status status = Send(*child, order.ToJson()); !status.ok()) return status;

      const int64_t fate = pick(0, 7);
      const milliseconds patience = fate < 2 ? milliseconds(pick(1, 400)) : kDeadline;
      const absl::Status reported = ledger_.AwaitReport(child->name(), patience);
      if (!reported.ok() && !absl::IsDeadlineExceeded(reported)) return reported;
      if (fate >= 2 && !reported.ok()) return reported;
      const absl::Status ended = fate == 0   ? child->Kill(SIGKILL)
                                 : fate == 1 ? child->Disconnect(v1::DISCONNECT_MODE_NOW)
                                             : child->Disconnect();
      if (!ended.ok() && ErrorReason(ended) != "CHILD_EXITED") return ended;
      if (absl::Status status = ledger_.AwaitClosed(child->name(), kDeadline); !status.ok()) {
        return status;
      }
    }
    return absl::OkStatus();
  }

  absl::Status Send(const Child& child, std::string_view json) {
    const absl::StatusOr<v1::SendMessageResponse> sent = child.Send(json);
    if (sent.ok()) ++sent_;
    return sent.status();
  }

  // Every other one begins with what the log has, every fourth one reads slowly.
  absl::Status LiveObservers(int number) {
    std::mt19937_64 chance(options_.seed * 1000 + 500 + static_cast<uint64_t>(number));
    const bool slow = number % 4 == 3;
    const bool earliest = number % 2 == 1;
    while (!stopping_) {
      const absl::StatusOr<Client> client = Client::Connect({.target = agent_->target()});
      if (!client.ok()) return client.status();
      Ledger ledger([this, slow](const v1::Event&) {
        if (slow) WaitForStop(milliseconds(1));
      });
      v1::ObserveRequest request = Everything();
      if (earliest) request.mutable_observation()->mutable_start()->set_earliest(true);
      absl::StatusOr<Observation> observation = client->Observe(
          std::move(request), ledger.Callbacks(earliest ? Ledger::From::kLog : Ledger::From::kNow));
      if (!observation.ok()) return observation.status();
      WaitForStop(milliseconds(std::uniform_int_distribution<int>(200, 4'000)(chance)));
      observation->Stop();
      if (absl::Status status = ledger.status(); !status.ok()) return status;
      const Ledger::Totals totals = ledger.totals();
      ++observed_;
      shown_ += totals.events;
      gaps_ += totals.gaps;
      missed_ += totals.missed;
    }
    return absl::OkStatus();
  }

  // --- The end. ---

  absl::StatusOr<Figures> Account(double seconds) {
    {
      ipc::MutexLock lock(mutex_);
      if (!status_.ok()) return status_;
    }
    const absl::Status closed = ledger_.Await(
        [this](const Ledger::Totals& totals) { return totals.closed == forked_; }, kDeadline);
    if (!closed.ok()) return closed;
    observation_.reset();
    const Ledger::Totals totals = ledger_.totals();
    if (totals.missed == 0 && totals.to_child != sent_) {
      return absl::DataLossError(fmt::format("{} messages were sent to children and {} observed",
                                             sent_.load(), totals.to_child));
    }
    const absl::StatusOr<int> descriptors = SettledDescriptors();
    if (!descriptors.ok()) return descriptors.status();
    const absl::StatusOr<Memory> memory = MemoryOf(agent_->pid());
    const absl::StatusOr<int64_t> cpu = CpuNs(agent_->pid());
    if (!memory.ok()) return memory.status();
    if (!cpu.ok()) return cpu.status();
    const absl::StatusOr<int> code = agent_->Stop();
    if (!code.ok()) return code.status();
    if (*code != 0) return absl::UnavailableError(fmt::format("the agent ended with {}", *code));

    Figures figures;
    figures.Add("time", seconds, Unit::kSeconds);
    figures.Add("children", forked_);
    figures.Add("messages from children", totals.from_child);
    figures.Add("messages to children", sent_);
    figures.Add("events", totals.events + totals.missed);
    figures.Add("missed by the observer of all", totals.missed);
    figures.Add("delay to the observer of all", ledger_.TakeDelays());
    figures.Add("other observers", observed_);
    figures.Add("events shown to them", shown_);
    figures.Add("gaps told to them", gaps_);
    figures.Add("events missed by them", missed_);
    figures.Add("agent: CPU", static_cast<double>(*cpu) * 1e-9, Unit::kSeconds);
    figures.Add("agent: memory at start", static_cast<double>(memory_.resident_bytes),
                Unit::kBytes);
    figures.Add("agent: memory at end", static_cast<double>(memory->resident_bytes), Unit::kBytes);
    figures.Add("agent: peak memory", static_cast<double>(memory->peak_bytes), Unit::kBytes);
    figures.Add("agent: descriptors at start", descriptors_);
    figures.Add("agent: descriptors at end", *descriptors);
    return figures;
  }

  // Connections take a moment to be seen as closed.
  absl::StatusOr<int> SettledDescriptors() {
    const auto end = Clock::now() + std::chrono::seconds(30);
    for (;;) {
      const absl::StatusOr<int> now = DescriptorsOf(agent_->pid());
      if (!now.ok() || *now <= descriptors_) return now;
      if (Clock::now() > end) {
        return absl::ResourceExhaustedError(fmt::format(
            "the agent has {} descriptors when all is over and had {} before", *now, descriptors_));
      }
      ipc::MutexLock lock(mutex_);
      changed_.WaitUntil(mutex_, Clock::now() + milliseconds(20));
    }
  }

  // Everything stops when the time is over, or at the first error.
  void End(absl::Status status) {
    ipc::MutexLock lock(mutex_);
    if (status_.ok()) status_ = std::move(status);
    stopping_ = true;
    changed_.NotifyAll();
  }

  bool WaitForStop(milliseconds time) {
    const auto end = Clock::now() + time;
    ipc::MutexLock lock(mutex_);
    while (!stopping_ && changed_.WaitUntil(mutex_, end)) {
    }
    return stopping_;
  }

  const Options options_;
  std::unique_ptr<AgentProgram> agent_;
  int descriptors_ = 0;
  Memory memory_;
  Ledger ledger_;
  std::optional<Observation> observation_;

  std::atomic<int64_t> forked_{0}, sent_{0};
  std::atomic<int64_t> observed_{0}, shown_{0}, gaps_{0}, missed_{0};
  std::atomic<bool> stopping_{false};
  ipc::Mutex mutex_;
  ipc::CondVar changed_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

int Main(int argc, char** argv) {
  CLI::App app("Runs a deka-agent with children and observers, and checks that all adds up.",
               "soak");
  Options options;
  bool json = false;
  AddDuration(app, "--for", options.seconds, "How long. Default: one minute.");
  app.add_option("--children", options.children, "At once. Default: 16.")
      ->check(CLI::Range(1, 1000));
  app.add_option("--observers", options.observers, "At once, beside that of all. Default: 8.")
      ->check(CLI::Range(0, 500));
  app.add_option("--seed", options.seed, "Of what is left to chance. Default: 1.");
  app.add_flag("--json", json, "Print one JSON object.");
  CLI11_PARSE(app, argc, argv);
  const ProgressLine progress;
  const absl::StatusOr<Figures> figures = Soak(options).Run(progress);
  if (!figures.ok()) {
    progress.Show("");
    fmt::print(stderr, "soak: seed {}: {}\n", options.seed,
               std::string(figures.status().message()));
    return 1;
  }
  fmt::print("{}", json ? figures->Json() + "\n" : figures->Text());
  return 0;
}

}  // namespace
}  // namespace deka::benchmark

int main(int argc, char** argv) { return deka::benchmark::Main(argc, argv); }
