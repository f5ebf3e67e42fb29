// Measures deka-bridge beside what a user would otherwise have: raw sockets, a bare gRPC stream,
// Node's own fork().
//
//   ./bazelw run -c opt //tests/benchmark -- [--row NAME]... [--pairs N] [--json] [--plot OUT.svg]
//
// Prints a table; a bar that is missed is said there, and is no failure. Ends with 1 if something
// could not be measured, or not everything that was sent arrived.

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "tests/benchmark/curves.h"
#include "tests/benchmark/plot.h"
#include "tests/benchmark/process_figures.h"
#include "tests/benchmark/report.h"
#include "tests/benchmark/row.h"
#include "tests/benchmark/rows.h"
#include "tests/benchmark/run_options.h"

namespace deka::benchmark {
namespace {

// Bazel runs it elsewhere than where the user is.
std::string ForUser(const std::string& path) {
  const char* directory = getenv("BUILD_WORKING_DIRECTORY");
  if (directory == nullptr) return path;
  return std::filesystem::path(directory) / path;
}

void Complain(std::string_view what, const absl::Status& status) {
  fmt::print(stderr, "benchmark: {}: {}\n", what, std::string(status.message()));
}

absl::StatusOr<Comparison> Measure(const RowKind& kind, Size size, int pairs,
                                   const ProgressLine& progress) {
  progress.Show(fmt::format("{}: starting", kind.name));
  absl::StatusOr<Row> row = kind.make(size);
  if (!row.ok()) return row.status();
  absl::StatusOr<Comparison> comparison = Compare(*row, pairs, [&](int done) {
    progress.Show(fmt::format("{}: {} of {}", kind.name, done, pairs));
  });
  progress.Show("");
  if (comparison.ok()) {
    comparison->name = kind.name;
    comparison->title = kind.title;
  }
  return comparison;
}

int Main(int argc, char** argv) {
  CLI::App app("Measures deka-bridge beside raw sockets, bare gRPC and Node's fork().",
               "benchmark");
  std::vector<std::string> names, wanted;
  std::string rows = "The rows:\n";
  for (const RowKind& kind : AllRows()) {
    names.emplace_back(kind.name);
    rows += fmt::format("  {:<12}{}\n", kind.name, kind.title);
  }
  int pairs = 7;
  bool json = false, brief = false;
  std::string plot;
  app.add_option("--row", wanted, "Measure this row; may be given several times. Default: all.")
      ->type_name("NAME")
      ->check(CLI::IsMember(names))
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("--pairs", pairs, "Measure both sides of a row this often, in turn. Default: 7.")
      ->type_name("N")
      ->check(CLI::Range(1, 1000));
  app.add_flag("--json", json, "Print one JSON object instead of the table.");
  app.add_option("--plot", plot,
                 "Draw rates against message size, children and observers instead of measuring "
                 "rows, unless some are named.")
      ->type_name("OUT.svg");
  app.add_flag("--short", brief, "Few messages: what is counted is right, what is timed is not.");
  app.footer(rows);
  CLI11_PARSE(app, argc, argv);
  const Size size = brief ? Size::kShort : Size::kFull;
  RaiseDescriptorLimit(1 << 15);

  const ProgressLine progress;
  bool failed = false;
  std::vector<Comparison> comparisons;
  for (const RowKind& kind : AllRows()) {
    const bool named = std::find(wanted.begin(), wanted.end(), kind.name) != wanted.end();
    if (!named && !(wanted.empty() && plot.empty())) continue;
    absl::StatusOr<Comparison> comparison = Measure(kind, size, pairs, progress);
    if (comparison.ok()) {
      comparisons.push_back(*std::move(comparison));
    } else {
      progress.Show("");
      Complain(kind.name, comparison.status());
      failed = true;
    }
  }
  if (json) {
    fmt::print("{}\n", Json(comparisons, pairs));
  } else if (!comparisons.empty()) {
    fmt::print("{}\n\n{}", DescribeMachine(), Table(comparisons));
  }

  if (!plot.empty()) {
    const absl::StatusOr<std::vector<Chart>> charts =
        MeasureCharts(size, [&progress](std::string_view what) { progress.Show(what); });
    progress.Show("");
    if (!charts.ok()) {
      Complain("--plot", charts.status());
      return 1;
    }
    std::ofstream file(ForUser(plot));
    file << Svg(*charts);
    if (!file.flush()) {
      fmt::print(stderr, "benchmark: {} cannot be written\n", plot);
      return 1;
    }
  }
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace deka::benchmark

int main(int argc, char** argv) { return deka::benchmark::Main(argc, argv); }
