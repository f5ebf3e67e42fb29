// Kills deka-agent again and again under load, and checks that nobody who talks to it, and no
// child, can tell but by the time that it takes: nothing is lost, doubled, reordered or forgotten.
//
//   storm --seed 7 --kills 1000
//   storm --seed 7 --kills 1000 --small-logs    logs turn over, and gaps must be exact
//
//   children -- deka-agent, killed by Killer -- SDK -- parties: watchers, senders, forkers
//      |                                                   |
//      +-- accounts ---------> Ledger: the checks <--------+
//
// Prints what happened, and each violation with the kill before it. Exit code 1 if there is one.

#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "fmt/format.h"
#include "tests/survival/content.h"
#include "tests/survival/killer.h"
#include "tests/survival/ledger.h"
#include "tests/survival/parties.h"
#include "tests/validator/agent_process.h"
#include "tests/validator/directory.h"

namespace deka::storm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr char kAgent[] = "storm";

struct Options {
  uint64_t seed = 1;
  int kills = 60;
  bool small_logs = false;
  std::string agent;
  std::string child;
};

bridge::v1::AgentConfig ConfigOf(const Options& options) {
  bridge::v1::AgentConfig config;
  config.set_agent_id(kAgent);
  auto& limits = *config.mutable_limits();
  auto& child = *limits.mutable_child();
  child.set_message_bytes_max(kMessageBytesMax);
  child.set_queue_bytes_max(256 << 10);
  child.set_log_bytes_max(options.small_logs ? 192 << 10 : 16 << 20);
  limits.set_log_events_max(options.small_logs ? 1000 : 1 << 15);
  limits.set_logs_bytes_max(int64_t{2} << 30);
  limits.set_ended_children_max(4096);
  return config;
}

// Ends all that an agent has left, if the storm cannot end it in order.
void EndAll(pid_t keeper) {
  std::vector<pid_t> pids = {keeper};
  std::ifstream children(fmt::format("/proc/{}/task/{}/children", keeper, keeper));
  for (pid_t pid; children >> pid;) pids.push_back(pid);
  for (const pid_t pid : pids) kill(pid, SIGKILL);
}

class Storm {
 public:
  explicit Storm(const Options& options)
      : options_(options),
        ledger_(verdict_, options.small_logs),
        scene_{.target = "",
               .agent = kAgent,
               .child_program = std::filesystem::absolute(options.child),
               .directory = directory_.path(),
               .small_logs = options.small_logs,
               .seed = options.seed,
               .verdict = verdict_,
               .ledger = ledger_} {}

  int Run() {
    auto agent =
        validator::AgentProcess::Start(options_.agent, directory_.path(), ConfigOf(options_));
    if (!agent.ok()) {
      fmt::print(stderr, "{}\n", std::string(agent.status().message()));
      return 2;
    }
    scene_.target = (*agent)->target();
    const Client client = scene_.Connect("storm");
    const absl::StatusOr<v1::Agent> description = client.GetAgent();
    if (!description.ok() || description->keeper_pid() == 0) {
      fmt::print(stderr, "the agent has no keeper\n");
      return 2;
    }
    const pid_t keeper = description->keeper_pid();
    scene_.epoch = description->epoch();
    killer_ = std::make_unique<Killer>(
        Killer::Options{.seed = Mix(options_.seed),
                        .kills = options_.kills,
                        .keeper = keeper,
                        .program = std::filesystem::canonical(options_.agent),
                        .target = scene_.target},
        verdict_);
    std::thread watchdog([this, keeper] { Watch(keeper); });
    Rage(client);
    // Who is to be told of the end observes the last agent.
    for (const auto& watcher : watchers_) watcher->AwaitAttachedSince(killer_->last_kill());
    const int code = (*agent)->Stop(kHangs);
    if (code != 0) verdict_.Violation(fmt::format("deka-agent has ended with {}", code));
    for (const auto& watcher : watchers_) watcher->Check();
    ledger_.CheckAll();
    {
      ipc::MutexLock lock(mutex_);
      done_ = true;
      changed_.NotifyAll();
    }
    watchdog.join();
    CheckKills();
    Print();
    if (verdict_.violations() > 0) PrintLog((*agent)->log());
    if (code < 0) EndAll(keeper);
    return verdict_.violations() == 0 ? 0 : 1;
  }

 private:
  void Rage(const Client& client) {
    Watch("witness", {}, [](const Seen&) { return true; });
    watchers_[0]->on_event = [this](const v1::Event& event) {
      killer_->Event();
      ledger_.Saw(event);
    };
    watchers_[0]->on_gap = [this](const v1::Gap& gap) { ledger_.Missed(gap); };
    watchers_[0]->on_attached = [this] { killer_->Attached(); };
    watchers_[0]->Start();
    ForkAll(client);
    WatchAll();

    std::thread killing([this] { killer_->Run(); });
    std::vector<std::thread> parties;
    const auto start = [&parties](std::function<void()> run) {
      parties.emplace_back(std::move(run));
    };
    start([this] { SendSingly(scene_, "single-1", {"echo-1", "echo-2", "half-1"}, 500, true); });
    start([this] { SendSingly(scene_, "single-2", {"slow-1", "echo-1"}, 16 << 10, true); });
    start([this] { SendSingly(scene_, "hasty", {"slow-1", "slow-2", "half-2"}, 24 << 10, false); });
    start([this] { SendAttached(scene_, "attached", "echo-2"); });
    start([this] { SendAttached(scene_, "attached-slow", "slow-2"); });
    start([this] { Fork(scene_, "fork-1"); });
    start([this] { Fork(scene_, "fork-2"); });
    start([this] { Reread(scene_); });
    // The last kills come while everything ends.
    const int last = std::min(20, options_.kills / 5);
    while (killer_->kills() < options_.kills - last && !killer_->stopping()) {
      scene_.kills = killer_->kills();
      ledger_.AwaitAnything(milliseconds(500));
    }
    scene_.stopping = true;
    for (std::thread& party : parties) party.join();
    for (const std::string& key : keys_) Stop(scene_, client, key);
    for (const std::string& key : keys_) {
      if (!ledger_.AwaitClosed(key)) verdict_.Violation(fmt::format("{} does not end", key));
    }
    killing.join();
    if (verdict_.violations() > 0) fmt::print("{}", ledger_.ToText());
  }

  void ForkAll(const Client& client) {
    struct Kind {
      const char* role;
      const char* group;
      uint64_t count;
    };
    const Kind kinds[] = {{"flood", "a", options_.small_logs ? 400u : 60u},
                          {"echo", "a", 0},
                          {"half", "b", 0},
                          {"slow", "b", 0},
                          {"print", "c", 0}};
    int code = 10;
    for (const Kind& kind : kinds) {
      for (int i = 1; i <= 2; ++i) {
        const std::string key = fmt::format("{}-{}", kind.role, i);
        const ChildPlan& plan =
            ledger_.Plan({.key = key,
                          .group = kind.group,
                          .role = kind.role,
                          .seed = Mix(options_.seed ^ HashOf(key)),
                          .code = ++code,
                          .count = kind.count,
                          .ahead = options_.small_logs ? 0u : 800u,
                          .node = i == 2,
                          .account = fmt::format("{}/{}.account", directory_.path(), key)});
        const absl::StatusOr<Child> child = client.Fork(scene_.SpecOf(plan));
        if (!child.ok()) {
          verdict_.Violation(
              fmt::format("cannot fork {}: {}", key, std::string(child.status().message())));
          continue;
        }
        ledger_.Forked(key, child->name());
        keys_.push_back(key);
      }
    }
  }

  void WatchAll() {
    v1::ObserveRequest request;
    request.mutable_filter()->add_children("half-1");
    Watch("by name", request, [](const Seen& seen) { return seen.child->key == "half-1"; });

    request.Clear();
    (*request.mutable_filter()->mutable_labels())["group"] = "b";
    request.mutable_observation()->add_kinds(v1::EVENT_KIND_MESSAGE);
    request.mutable_observation()->set_direction(v1::DIRECTION_TO_CHILD);
    Watch("by label", request, [](const Seen& seen) {
      return seen.child->group == "b" && seen.direction == v1::DIRECTION_TO_CHILD;
    });

    request.Clear();
    request.mutable_observation()->add_kinds(v1::EVENT_KIND_OUTPUT);
    Watch("by kind", request, [](const Seen& seen) { return seen.kind == v1::EVENT_KIND_OUTPUT; });

    request.Clear();
    for (const v1::EventKind kind : {v1::EVENT_KIND_STARTED, v1::EVENT_KIND_EXITED,
                                     v1::EVENT_KIND_CLOSED, v1::EVENT_KIND_DISCONNECTED}) {
      request.mutable_observation()->add_kinds(kind);
    }
    Watch("by life", request, [](const Seen& seen) {
      return seen.kind == v1::EVENT_KIND_STARTED || seen.kind == v1::EVENT_KIND_EXITED ||
             seen.kind == v1::EVENT_KIND_CLOSED || seen.kind == v1::EVENT_KIND_DISCONNECTED;
    });

    request.Clear();
    request.mutable_observation()->add_kinds(v1::EVENT_KIND_MESSAGE);
    request.mutable_observation()->set_direction(v1::DIRECTION_FROM_CHILD);
    v1::ContentFilter& where = *request.mutable_observation()->add_where();
    where.set_pointer("/kind");
    where.set_equals("\"even\"");
    Watch("by content", request,
          [](const Seen& seen) { return seen.direction == v1::DIRECTION_FROM_CHILD && seen.even; });
    for (size_t i = 1; i < watchers_.size(); ++i) watchers_[i]->Start();
  }

  void Watch(std::string name, const v1::ObserveRequest& request,
             std::function<bool(const Seen&)> fits) {
    watchers_.push_back(
        std::make_unique<Watcher>(scene_, std::move(name), request, std::move(fits)));
  }

  // A storm that hangs tells where, and ends.
  void Watch(pid_t keeper) {
    const auto deadline = Clock::now() + 2 * kHangs + options_.kills * seconds(2);
    ipc::MutexLock lock(mutex_);
    while (!done_) {
      if (changed_.WaitUntil(mutex_, deadline)) continue;
      verdict_.Violation(fmt::format("the storm hangs:\n{}", ledger_.ToText()));
      EndAll(keeper);
      fflush(stdout);
      _exit(1);
    }
  }

  // A storm that is too gentle proves nothing.
  void CheckKills() {
    const int kills = killer_->kills();
    if (kills < options_.kills || killer_->after_answer() * 10 < kills * 3 ||
        killer_->before_answer() * 10 < kills) {
      verdict_.Violation(
          fmt::format("{} kills of {}, {} after and {} before a client was answered; at least 30 % "
                      "and 10 % are wanted",
                      kills, options_.kills, killer_->after_answer(), killer_->before_answer()));
    }
  }

  void Print() {
    const Figures figures = ledger_.figures();
    fmt::print("seed {}{}: {:.1f} s, {} children\n", options_.seed,
               options_.small_logs ? ", small logs" : "", verdict_.SecondsSinceStart(),
               figures.children);
    fmt::print(
        "kills: {}, {} of them 10 to 60 ms apart; {} after a client was answered, {} before\n",
        killer_->kills(), killer_->quick(), killer_->after_answer(), killer_->before_answer());
    fmt::print(
        "events: {}; {} messages from children, {} to them, {} lines; {} gaps with {} events\n",
        figures.events, figures.from_child, figures.to_child, figures.lines, figures.gaps,
        figures.missed);
    fmt::print(
        "sends: {} WRITTEN and {} in streams, {} ACCEPTED, {} OUTCOME_UNKNOWN, {} not sent, {} "
        "times "
        "refused, {} repeated\n",
        scene_.written.load(), scene_.attached.load(), scene_.accepted.load(),
        scene_.unknown.load(), scene_.not_sent.load(), scene_.refused.load(),
        scene_.repeated.load());
    fmt::print("forks: {}, {} repeated; observers' resumes: {}; events looked at again: {}\n",
               scene_.forks.load(), scene_.repeated_forks.load(), scene_.resumes.load(),
               scene_.reread.load());
    PrintTimes("from a kill to an answer of the successor", killer_->TakeoversMs());
    PrintTimes("from a kill to an observer's next event", killer_->DowntimesMs());
    fmt::print("violations: {}\n", verdict_.violations());
    fflush(stdout);
  }

  static void PrintTimes(std::string_view what, const std::vector<double>& sorted) {
    if (sorted.empty()) return;
    fmt::print("{}: {:.0f} ms, the median of {}; {:.0f} ms at most\n", what,
               sorted[sorted.size() / 2], sorted.size(), sorted.back());
  }

  // The end of what the agents have said, but for what each says when it begins.
  static void PrintLog(const std::string& log) {
    std::vector<std::string_view> lines;
    for (size_t begin = 0; begin < log.size();) {
      const size_t end = std::min(log.find('\n', begin), log.size());
      const std::string_view line = std::string_view(log).substr(begin, end - begin);
      begin = end + 1;
      if (line.find(" serves unix:") == std::string_view::npos &&
          line.find(" descriptors allows ") == std::string_view::npos) {
        lines.push_back(line);
      }
    }
    constexpr size_t kMax = 50;
    for (size_t i = lines.size() - std::min(lines.size(), kMax); i < lines.size(); ++i) {
      fmt::print("log: {}\n", lines[i]);
    }
  }

  const Options options_;
  const validator::Directory directory_;
  Verdict verdict_;
  Ledger ledger_;
  Scene scene_;
  std::unique_ptr<Killer> killer_;
  std::vector<std::unique_ptr<Watcher>> watchers_;
  std::vector<std::string> keys_;  // of the children that live until the end
  ipc::Mutex mutex_;
  ipc::CondVar changed_;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
};

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Kills deka-agent under load, and checks that nothing is lost.");
  app.add_option("--seed", options.seed, "of all that is drawn");
  app.add_option("--kills", options.kills, "how many")->check(CLI::Range(1, 1'000'000));
  app.add_flag("--small-logs", options.small_logs, "logs turn over, gaps must be exact");
  app.add_option("--agent", options.agent, "the program deka-agent")
      ->required()
      ->envname("DEKA_AGENT");
  app.add_option("--child", options.child, "the program of the children")
      ->required()
      ->envname("STORM_CHILD");
  CLI11_PARSE(app, argc, argv);
  return Storm(options).Run();
}

}  // namespace
}  // namespace deka::storm

int main(int argc, char** argv) { return deka::storm::Main(argc, argv); }
