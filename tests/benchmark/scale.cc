// What a deka-agent needs and how long messages take where there is much of something: many
// children, many observers, large messages, an observer that is suspended.
//
//   ./bazelw run -c opt //tests/benchmark:scale -- [--row NAME]... [--for 1m]
//
// Prints figures of each row. Ends with 1 if a row could not be run, or what was shown does not add
// up with what was sent.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sdk/cpp/client.h"
#include "tests/benchmark/agent_program.h"
#include "tests/benchmark/figures.h"
#include "tests/benchmark/ledger.h"
#include "tests/benchmark/message.h"
#include "tests/benchmark/process_figures.h"
#include "tests/benchmark/program.h"
#include "tests/benchmark/run_options.h"
#include "tests/benchmark/watchers.h"

namespace deka::benchmark {
namespace {

using std::chrono::milliseconds;

constexpr char kPlainChild[] = "tests/benchmark/plain_child";

struct Options {
  double seconds = 60;
  bool brief = false;  // few of everything: for the tests
};

// The agent's memory and CPU, from when it is made on.
class AgentFigures {
 public:
  static absl::StatusOr<AgentFigures> Begin(const AgentProgram& agent) {
    const absl::StatusOr<Memory> memory = MemoryOf(agent.pid());
    const absl::StatusOr<int64_t> cpu = CpuNs(agent.pid());
    if (!memory.ok()) return memory.status();
    if (!cpu.ok()) return cpu.status();
    return AgentFigures(agent.pid(), *memory, *cpu);
  }

  // Those that need no time of their own may be looked at meanwhile.
  absl::StatusOr<Memory> MemoryNow() const { return MemoryOf(pid_); }

  absl::Status AddTo(Figures& figures) const {
    const absl::StatusOr<Memory> memory = MemoryOf(pid_);
    const absl::StatusOr<int64_t> cpu = CpuNs(pid_);
    if (!memory.ok()) return memory.status();
    if (!cpu.ok()) return cpu.status();
    const double seconds = static_cast<double>(NowNs() - begin_ns_) * 1e-9;
    const double cpu_seconds = static_cast<double>(*cpu - cpu_ns_) * 1e-9;
    figures.Add("time", seconds, Unit::kSeconds);
    figures.Add("agent: CPU", cpu_seconds, Unit::kSeconds);
    figures.Add("agent: memory before", static_cast<double>(before_.resident_bytes), Unit::kBytes);
    figures.Add("agent: memory after", static_cast<double>(memory->resident_bytes), Unit::kBytes);
    figures.Add("agent: peak memory", static_cast<double>(memory->peak_bytes), Unit::kBytes);
    return absl::OkStatus();
  }

 private:
  AgentFigures(pid_t pid, Memory before, int64_t cpu_ns)
      : pid_(pid), before_(before), cpu_ns_(cpu_ns), begin_ns_(NowNs()) {}

  pid_t pid_;
  Memory before_;
  int64_t cpu_ns_;
  int64_t begin_ns_;
};

// An agent with an observer of everything in this process.
class Watched {
 public:
  explicit Watched(std::function<void(const v1::Event&)> on_message = {})
      : ledger_(std::move(on_message)) {}

  absl::Status Start(const std::string& config = "") {
    absl::StatusOr<std::unique_ptr<AgentProgram>> agent = AgentProgram::Start(config);
    if (!agent.ok()) return agent.status();
    agent_ = *std::move(agent);
    absl::StatusOr<Observation> observation =
        agent_->client().Observe(Everything(), ledger_.Callbacks());
    if (!observation.ok()) return observation.status();
    observation_.emplace(*std::move(observation));
    return absl::OkStatus();
  }

  AgentProgram& agent() { return *agent_; }
  const Client& client() const { return agent_->client(); }
  Ledger& ledger() { return ledger_; }

 private:
  Ledger ledger_;
  std::unique_ptr<AgentProgram> agent_;
  std::optional<Observation> observation_;
};

// --- Rows. ---

absl::StatusOr<Figures> Fan(const Options& options) {
  const int children_count = options.brief ? 20 : 1'000;
  const int observers = options.brief ? 4 : 64;
  // Each child speaks five times a second.
  constexpr int64_t kPeriodNs = 200'000'000;
  const int64_t messages =
      std::max<int64_t>(1, static_cast<int64_t>(options.seconds * 1e9) / kPeriodNs);

  Watched watched;
  if (absl::Status status = watched.Start(); !status.ok()) return status;
  absl::StatusOr<AgentFigures> agent = AgentFigures::Begin(watched.agent());
  if (!agent.ok()) return agent.status();
  std::vector<Child> children;
  const int64_t fork_begin_ns = NowNs();
  for (int i = 0; i < children_count; ++i) {
    absl::StatusOr<Child> child = watched.agent().Fork(kPlainChild);
    if (!child.ok()) return child.status();
    children.push_back(*std::move(child));
  }
  const int64_t fork_ns = NowNs() - fork_begin_ns;
  // One of the observers is the ledger's.
  absl::StatusOr<std::unique_ptr<Watchers>> watchers =
      Watchers::Start(watched.agent().target(), MessagesOfAll(), observers - 1);
  if (!watchers.ok()) return watchers.status();

  const int64_t begin_ns = NowNs() + 2'000'000 * children_count + 50'000'000;
  for (int i = 0; i < children_count; ++i) {
    const Order order = {.messages = messages,
                         .per_write = 1,
                         .first_ns = begin_ns + i * kPeriodNs / children_count,
                         .period_ns = kPeriodNs,
                         .stamped = true};
    const auto sent = children[static_cast<size_t>(i)].Send(order.ToJson());
    if (!sent.ok()) return sent.status();
  }
  const milliseconds deadline = Milliseconds(options.seconds) + kDeadline;
  const int64_t all = messages * children_count;
  absl::Status shown = watched.ledger().Await(
      [all](const Ledger::Totals& totals) { return totals.reported == all; }, deadline);
  if (!shown.ok()) return shown;
  shown = (*watchers)->AwaitEach(all + children_count);
  if (!shown.ok()) return shown;

  Figures figures;
  figures.Add("children", children_count);
  figures.Add("observers", observers);
  figures.Add("forking them all", static_cast<double>(fork_ns) * 1e-9, Unit::kSeconds);
  figures.Add("messages sent", all);
  figures.Add("events shown, all observers", (all + children_count) * observers);
  figures.Add("missed", watched.ledger().totals().missed);
  figures.Add("delay, written to shown", watched.ledger().TakeDelays());
  if (absl::Status status = agent->AddTo(figures); !status.ok()) return status;
  return figures;
}

absl::StatusOr<Figures> Idle(const Options& options) {
  const size_t children_max = options.brief ? 50 : 10'000;
  const int64_t trips = options.brief ? 50 : 5'000;
  Watched watched;
  if (absl::Status status = watched.Start(); !status.ok()) return status;
  absl::StatusOr<AgentFigures> agent = AgentFigures::Begin(watched.agent());
  if (!agent.ok()) return agent.status();
  const absl::StatusOr<Memory> before = agent->MemoryNow();
  if (!before.ok()) return before.status();
  std::vector<Child> children;
  const int64_t fork_begin_ns = NowNs();
  while (children.size() < children_max) {
    absl::StatusOr<Child> child = watched.agent().Fork(kPlainChild);
    // Fewer descriptors make for fewer children.
    if (ErrorReason(child.status()) == "CHILDREN_LIMIT") break;
    if (!child.ok()) return child.status();
    children.push_back(*std::move(child));
  }
  const int64_t fork_ns = NowNs() - fork_begin_ns;
  const auto children_count = static_cast<int64_t>(children.size());
  // Each channel has carried a message either way: an order of one message, and its report.
  for (const Child& child : children) {
    const auto sent = child.Send(Order{.messages = 1, .stamped = true}.ToJson());
    if (!sent.ok()) return sent.status();
  }
  const absl::Status all = watched.ledger().Await(
      [children_count](const Ledger::Totals& totals) { return totals.reported == children_count; },
      kDeadline);
  if (!all.ok()) return all;
  watched.ledger().TakeDelays();
  // One of them speaks, in the middle of the others.
  const Child& speaker = children[children.size() / 2];
  const Order order = {.messages = trips, .per_write = 1, .period_ns = 1'000'000, .stamped = true};
  if (const auto sent = speaker.Send(order.ToJson()); !sent.ok()) return sent.status();
  const absl::Status spoken = watched.ledger().Await(
      [&](const Ledger::Totals& totals) { return totals.reported == children_count + trips; },
      kDeadline);
  if (!spoken.ok()) return spoken;

  const absl::StatusOr<Memory> memory = agent->MemoryNow();
  const absl::StatusOr<int> descriptors = DescriptorsOf(watched.agent().pid());
  if (!memory.ok()) return memory.status();
  if (!descriptors.ok()) return descriptors.status();
  const auto each = [children_count](int64_t from, int64_t to) {
    return static_cast<double>(to - from) / static_cast<double>(children_count);
  };
  Figures figures;
  figures.Add("children, processes that wait", children_count);
  figures.Add("forking one",
              static_cast<double>(fork_ns) * 1e-9 / static_cast<double>(children_count),
              Unit::kSeconds);
  figures.Add("agent: memory for each", each(before->resident_bytes, memory->resident_bytes),
              Unit::kBytes);
  figures.Add("agent: page tables for each",
              each(before->page_table_bytes, memory->page_table_bytes), Unit::kBytes);
  figures.Add("agent: descriptors", *descriptors);
  figures.Add("delay of one that speaks", watched.ledger().TakeDelays());
  if (absl::Status status = agent->AddTo(figures); !status.ok()) return status;
  return figures;
}

// A child that sends as fast as this process is shown its messages, so that nothing is missed.
class Stream {
 public:
  Stream(int64_t bytes, int64_t allowance)
      : order_{.messages = int64_t{1} << 50,
               .bytes = bytes,
               .window = 3 * allowance,
               .stamped = true},
        allowance_(allowance),
        watched_([this](const v1::Event& event) { Take(event); }) {}

  absl::Status Start(const std::string& config = "") { return watched_.Start(config); }

  // Other observers may come before.
  absl::Status Fork() {
    absl::StatusOr<Child> child = watched_.agent().Fork(kPlainChild);
    if (!child.ok()) return child.status();
    child_.emplace(*std::move(child));
    absl::StatusOr<Attachment> orders = watched_.client().Attach(child_->name(), {});
    if (!orders.ok()) return orders.status();
    orders_.emplace(*std::move(orders));
    return absl::OkStatus();
  }

  absl::Status Send() { return orders_->Send(order_.ToJson()).status(); }

  // Lets the stream run for a while: what it brought, and the delays.
  struct Phase {
    double messages_per_second = 0;
    Delays delays;
  };
  absl::StatusOr<Phase> Run(double seconds, const std::function<void()>& meanwhile = {}) {
    Ledger& ledger = watched_.ledger();
    ledger.TakeDelays();
    const int64_t begin_ns = NowNs(), before = ledger.totals().from_child;
    const int64_t end_ns = begin_ns + static_cast<int64_t>(seconds * 1e9);
    const absl::Status status = ledger.Await(
        [&](const Ledger::Totals&) {
          if (meanwhile) meanwhile();
          return NowNs() >= end_ns;
        },
        Milliseconds(seconds) + kDeadline);
    if (!status.ok()) return status;
    const double took = static_cast<double>(NowNs() - begin_ns) * 1e-9;
    return Phase{
        .messages_per_second = static_cast<double>(ledger.totals().from_child - before) / took,
        .delays = ledger.TakeDelays()};
  }

  // Ends the child, and waits until all of it is shown here: how many events it had.
  absl::StatusOr<int64_t> Finish() {
    if (absl::Status status = child_->Kill(SIGKILL); !status.ok()) return status;
    const absl::Status closed = watched_.ledger().AwaitClosed(child_->name(), kDeadline);
    if (!closed.ok()) return closed;
    return watched_.ledger().totals().events + watched_.ledger().totals().missed;
  }

  Watched& watched() { return watched_; }

 private:
  void Take(const v1::Event&) {
    if (++taken_ % allowance_ == 0) (void)orders_->Send(AllowanceJson(allowance_));
  }

  const Order order_;
  const int64_t allowance_;
  int64_t taken_ = 0;
  std::optional<Attachment> orders_;  // used by the observation's callbacks
  Watched watched_;
  std::optional<Child> child_;
};

absl::StatusOr<Figures> Large(const Options& options) {
  Stream stream(1 << 20, 1);
  if (absl::Status status = stream.Start(); !status.ok()) return status;
  absl::StatusOr<AgentFigures> agent = AgentFigures::Begin(stream.watched().agent());
  if (!agent.ok()) return agent.status();
  if (absl::Status status = stream.Fork(); !status.ok()) return status;
  if (absl::Status status = stream.Send(); !status.ok()) return status;
  const absl::StatusOr<Stream::Phase> phase = stream.Run(options.seconds);
  if (!phase.ok()) return phase.status();
  Figures figures;
  figures.Add("messages of 1 MiB", phase->delays.count());
  figures.Add("rate", phase->messages_per_second * (1 << 20), Unit::kBytesPerSecond);
  figures.Add("missed", stream.watched().ledger().totals().missed);
  figures.Add("delay, written to shown", phase->delays);
  if (absl::Status status = agent->AddTo(figures); !status.ok()) return status;
  const absl::StatusOr<int64_t> events = stream.Finish();
  if (!events.ok()) return events.status();
  return figures;
}

// The whole of a file.
std::string Contents(const std::string& path) {
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// One observer is suspended under full load. Its call ends after `stall_s`, or it is let go on
// before.
absl::StatusOr<Figures> Suspended(const Options& options, double stall_s, double suspended_s) {
  const double before_s = std::min(10.0, options.seconds);
  Stream stream(kMessageBytesMin, 4'096);
  const absl::Status started = stream.Start(
      fmt::format("limits {{ write_stalled_ms_max: {} }}", static_cast<int64_t>(stall_s * 1000)));
  if (!started.ok()) return started;
  AgentProgram& program = stream.watched().agent();
  absl::StatusOr<std::unique_ptr<Program>> observer =
      Program::Start({.command = {Runfile("tests/benchmark/observer"), program.target()}});
  if (!observer.ok()) return observer.status();
  if (const auto standing = (*observer)->ReadLine(); !standing.ok()) return standing.status();
  absl::StatusOr<AgentFigures> agent = AgentFigures::Begin(program);
  if (!agent.ok()) return agent.status();
  if (absl::Status status = stream.Fork(); !status.ok()) return status;
  if (absl::Status status = stream.Send(); !status.ok()) return status;

  const absl::StatusOr<Stream::Phase> before = stream.Run(before_s);
  if (!before.ok()) return before.status();
  const absl::StatusOr<Memory> memory_before = agent->MemoryNow();
  if (!memory_before.ok()) return memory_before.status();

  if (absl::Status status = (*observer)->Signal(SIGSTOP); !status.ok()) return status;
  const int64_t suspended_ns = NowNs();
  int64_t most = 0;
  double ended_s = 0;
  const absl::StatusOr<Stream::Phase> meanwhile = stream.Run(suspended_s, [&] {
    if (const absl::StatusOr<Memory> now = agent->MemoryNow(); now.ok()) {
      most = std::max(most, now->resident_bytes);
    }
    if (ended_s == 0 && Contents(program.log_path()).find("STALLED") != std::string::npos) {
      ended_s = static_cast<double>(NowNs() - suspended_ns) * 1e-9;
    }
  });
  if (!meanwhile.ok()) return meanwhile.status();
  if (absl::Status status = (*observer)->Signal(SIGCONT); !status.ok()) return status;
  const absl::StatusOr<int64_t> events = stream.Finish();
  if (!events.ok()) return events.status();

  // What it was shown and what it was told to have missed are all events.
  int64_t shown = 0, gaps = 0, missed = 0, resumed = 0;
  for (int64_t until = NowNs() + 60'000'000'000; shown + missed < *events;) {
    if (NowNs() > until) {
      return absl::DataLossError(fmt::format("the observer was shown {} events and missed {} of {}",
                                             shown, missed, *events));
    }
    if (absl::Status status = (*observer)->WriteLine(""); !status.ok()) return status;
    const absl::StatusOr<std::string> line = (*observer)->ReadLine();
    if (!line.ok()) return line.status();
    if (line->find(R"("status":"")") == std::string::npos) return absl::DataLossError(*line);
    const auto number = [&line](std::string_view name) {
      const size_t place = line->find(fmt::format("\"{}\":", name));
      return std::stoll(line->substr(place + name.size() + 3));
    };
    shown = number("events");
    gaps = number("gaps");
    missed = number("missed");
    resumed = number("resumed");
  }

  Figures figures;
  figures.Add("suspended for", suspended_s, Unit::kSeconds);
  if (ended_s > 0) figures.Add("its call ended after", ended_s, Unit::kSeconds);
  figures.Add("events", *events);
  figures.Add("suspended observer: shown", shown);
  figures.Add("suspended observer: gaps", gaps);
  figures.Add("suspended observer: missed", missed);
  figures.Add("suspended observer: resumed", resumed);
  figures.Add("rate to the other before", before->messages_per_second, Unit::kMessagesPerSecond);
  figures.Add("rate to the other meanwhile", meanwhile->messages_per_second,
              Unit::kMessagesPerSecond);
  figures.Add("delay to the other before", before->delays);
  figures.Add("delay to the other meanwhile", meanwhile->delays);
  figures.Add("agent: memory when suspended", static_cast<double>(memory_before->resident_bytes),
              Unit::kBytes);
  figures.Add("agent: most memory meanwhile", static_cast<double>(most), Unit::kBytes);
  if (absl::Status status = agent->AddTo(figures); !status.ok()) return status;
  return figures;
}

absl::StatusOr<Figures> Stopped(const Options& options) {
  return Suspended(options, 2 * std::max(options.seconds, 5.0), options.seconds);
}

absl::StatusOr<Figures> Stalled(const Options& options) {
  return options.brief ? Suspended(options, 1, 3) : Suspended(options, 10, 20);
}

struct RowKind {
  const char* name;
  const char* title;
  absl::StatusOr<Figures> (*run)(const Options& options);
};

constexpr RowKind kRows[] = {
    {"fan", "1,000 children, five messages a second each, and 64 observers of all of them", Fan},
    {"idle",
     "10,000 children that wait (or as many as the agent may have), and one of them that speaks",
     Idle},
    {"large", "a child that sends messages of 1 MiB only", Large},
    {"stopped", "an observer suspended under full load, and let go on before its call would end",
     Stopped},
    {"stalled", "an observer suspended under full load until its call has ended", Stalled},
};

int Main(int argc, char** argv) {
  CLI::App app("Figures of a deka-agent where there is much of something.", "scale");
  Options options;
  bool json = false;
  std::vector<std::string> names, wanted;
  std::string rows = "The rows:\n";
  for (const RowKind& kind : kRows) {
    names.emplace_back(kind.name);
    rows += fmt::format("  {:<9}{}\n", kind.name, kind.title);
  }
  app.add_option("--row", wanted, "Run this row; may be given several times. Default: all.")
      ->type_name("NAME")
      ->check(CLI::IsMember(names))
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  AddDuration(app, "--for", options.seconds, "How long a row runs, where it matters. Default: 1m.");
  app.add_flag("--json", json, "Print one JSON object a row.");
  app.add_flag("--short", options.brief, "Few of everything: what is counted is right.");
  app.footer(rows);
  CLI11_PARSE(app, argc, argv);
  RaiseDescriptorLimit(1 << 15);

  const ProgressLine progress;
  bool failed = false;
  for (const RowKind& kind : kRows) {
    const bool named = std::find(wanted.begin(), wanted.end(), kind.name) != wanted.end();
    if (!named && !wanted.empty()) continue;
    progress.Show(kind.title);
    const absl::StatusOr<Figures> figures = kind.run(options);
    progress.Show("");
    if (!figures.ok()) {
      fmt::print(stderr, "scale: {}: {}\n", kind.name, std::string(figures.status().message()));
      failed = true;
    } else if (json) {
      fmt::print("{{\"row\":\"{}\",\"figures\":{}}}\n", kind.name, figures->Json());
    } else {
      fmt::print("{}: {}\n{}\n", kind.name, kind.title, figures->Text());
    }
  }
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace deka::benchmark

int main(int argc, char** argv) { return deka::benchmark::Main(argc, argv); }
