// Runs histories and checks that the promises of docs/guarantees.md were kept in each; tells how
// often each was put to the test, and fails if one was not.
//
//   histories --seeds 1..1000          those histories, --jobs at once
//   histories --seed 17 --keep FILE    one, and keeps what was recorded
//   histories --check FILE             what was recorded, again

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "fmt/format.h"
#include "tests/validator/history.h"
#include "tests/validator/plan.h"
#include "tests/validator/validator.h"

namespace deka::validator {
namespace {

using std::chrono::steady_clock;

struct Options {
  std::string seeds;
  uint64_t seed = 0;
  bool small = false;
  std::string keep;
  std::string check;
  int jobs = 2;
  Programs programs;
};

double SecondsSince(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

std::string ToText(const Verdict& verdict, const Recording& recording) {
  std::string text;
  for (const Violation& violation : verdict.violations) text += ToText(violation, recording);
  return text;
}

int CheckFile(const std::string& path) {
  const absl::StatusOr<Recording> recording = Load(path);
  if (!recording.ok()) {
    fmt::print(stderr, "{}\n", std::string(recording.status().message()));
    return 2;
  }
  const Verdict verdict = Validate(*recording);
  fmt::print("{}{}{} records, {} violations\n", ToText(verdict, *recording),
             ExercisedText(verdict.exercised), recording->size(), verdict.violations.size());
  return verdict.ok() ? 0 : 1;
}

class Run {
 public:
  explicit Run(const Options& options) : options_(options) {}

  int All(uint64_t first, uint64_t last) {
    const auto start = steady_clock::now();
    std::atomic<uint64_t> next = first;
    std::vector<std::thread> threads;
    for (int job = 0; job < options_.jobs; ++job) {
      threads.emplace_back([&] {
        for (uint64_t seed; (seed = next++) <= last;) One(seed);
      });
    }
    for (std::thread& thread : threads) thread.join();
    fmt::print("{}", ExercisedText(exercised_));
    int idle = 0;
    for (size_t check = 0; check < kChecks; ++check) {
      if (exercised_[check] > 0) continue;
      ++idle;
      const CheckInfo& info = InfoOf(static_cast<Check>(check));
      fmt::print("promise {} was never put to the test: {}\n", info.promise, info.name);
    }
    fmt::print("{} histories, {} events, {} failed, {:.1f} s\n", last - first + 1, events_, failed_,
               SecondsSince(start));
    return failed_ == 0 && idle == 0 ? 0 : 1;
  }

 private:
  void One(uint64_t seed) {
    const auto start = steady_clock::now();
    const History history =
        RunHistory(options_.programs, MakePlan(seed, options_.small ? Size::kSmall : Size::kFull));
    const double played = SecondsSince(start);
    const Verdict verdict = Validate(history.recording);
    std::string text = fmt::format(
        "seed {}: {} children, {} observers, {} senders, {} events, {:.2f} s and {:.2f} s to "
        "check\n",
        seed, history.children, history.observers, history.senders, history.events, played,
        SecondsSince(start) - played);
    const bool failed = !verdict.ok() || !history.troubles.empty();
    for (const std::string& trouble : history.troubles) text += trouble + "\n";
    text += ToText(verdict, history.recording);
    std::string keep = options_.keep;
    if (failed && keep.empty()) {
      const char* const outputs = getenv("TEST_UNDECLARED_OUTPUTS_DIR");
      keep = fmt::format("{}/history-{}.txt", outputs == nullptr ? "/tmp" : outputs, seed);
    }
    if (!keep.empty()) {
      if (const absl::Status status = Save(
              history.recording,
              fmt::format("histories --seed {}{}", seed, options_.small ? " --small" : ""), keep);
          !status.ok()) {
        text += fmt::format("{}\n", std::string(status.message()));
      }
    }
    if (failed) {
      text += fmt::format(
          "seed {} FAILED; run it again: bazel run //tests/validator:histories -- --seed {}\n"
          "check what was recorded again: bazel run //tests/validator:histories -- --check {}\n",
          seed, seed, keep);
    }
    const std::lock_guard lock(mutex_);
    fmt::print("{}", text);
    fflush(stdout);
    failed_ += failed;
    events_ += history.events;
    for (size_t check = 0; check < kChecks; ++check) exercised_[check] += verdict.exercised[check];
  }

  const Options& options_;
  std::mutex mutex_;
  int failed_ = 0;
  int64_t events_ = 0;
  std::array<int64_t, kChecks> exercised_{};
};

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Runs histories, and checks that the promises were kept in them.");
  app.add_option("--seeds", options.seeds, "FIRST..LAST");
  app.add_option("--seed", options.seed, "one only");
  app.add_flag("--small", options.small, "histories of some hundred events");
  app.add_option("--keep", options.keep, "with --seed: the file to keep what was recorded in");
  app.add_option("--check", options.check, "checks what was recorded, and runs nothing");
  app.add_option("--jobs", options.jobs, "histories at once")->check(CLI::Range(1, 64));
  app.add_option("--agent", options.programs.agent, "the program deka-agent")
      ->envname("DEKA_AGENT");
  app.add_option("--child", options.programs.child, "the program of the children")
      ->envname("HISTORY_CHILD");
  CLI11_PARSE(app, argc, argv);
  if (!options.check.empty()) return CheckFile(options.check);
  uint64_t first = options.seed, last = options.seed;
  if (!options.seeds.empty()) {
    const size_t dots = options.seeds.find("..");
    if (dots == std::string::npos) {
      fmt::print(stderr, "--seeds: write it as FIRST..LAST\n");
      return 2;
    }
    first = std::stoull(options.seeds);
    last = std::stoull(options.seeds.substr(dots + 2));
  }
  return Run(options).All(first, last);
}

}  // namespace
}  // namespace deka::validator

int main(int argc, char** argv) { return deka::validator::Main(argc, argv); }
