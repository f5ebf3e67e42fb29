#include "tests/benchmark/curves.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "tests/benchmark/agent_sides.h"
#include "tests/benchmark/core_sides.h"
#include "tests/benchmark/row.h"
#include "tests/benchmark/yardsticks.h"

namespace deka::benchmark {
namespace {

// A side for each x of a curve.
struct Recipe {
  std::string name;
  std::function<SideOr(int64_t x)> make;
};

absl::StatusOr<double> Measure(SideOr side, Size size) {
  if (!side.ok()) return side.status();
  std::vector<double> values;
  for (int i = size == Size::kFull ? -1 : 0; i < (size == Size::kFull ? 3 : 1); ++i) {
    const absl::StatusOr<Run> run = (*side)->Measure();
    if (!run.ok()) return run.status();
    if (i >= 0) values.push_back(run->value);
  }
  return Median(std::move(values));
}

absl::Status Fill(Chart& chart, const std::vector<int64_t>& xs, const std::vector<Recipe>& recipes,
                  Size size, const std::function<void(std::string_view)>& on_point) {
  for (const Recipe& recipe : recipes) {
    Curve curve;
    curve.name = recipe.name;
    for (size_t i = 0; i < xs.size(); ++i) {
      on_point(fmt::format("{}: {}, {}", chart.title, recipe.name, chart.x_tick_names[i]));
      const absl::StatusOr<double> rate = Measure(recipe.make(xs[i]), size);
      if (!rate.ok()) {
        return absl::Status(rate.status().code(),
                            fmt::format("{}, {}: {}", recipe.name, chart.x_tick_names[i],
                                        std::string(rate.status().message())));
      }
      curve.points.emplace_back(xs[i], *rate);
    }
    chart.curves.push_back(std::move(curve));
  }
  return absl::OkStatus();
}

Chart ChartOver(std::string title, std::string x_axis, std::string y_axis,
                const std::vector<int64_t>& xs, std::string (*name)(int64_t)) {
  Chart chart;
  chart.title = std::move(title);
  chart.x_axis = std::move(x_axis);
  chart.y_axis = std::move(y_axis);
  for (const int64_t x : xs) {
    chart.x_ticks.push_back(static_cast<double>(x));
    chart.x_tick_names.push_back(name(x));
  }
  return chart;
}

std::string SizeName(int64_t bytes) {
  if (bytes >= 1 << 20) return fmt::format("{} MiB", bytes >> 20);
  return bytes >= 1 << 10 ? fmt::format("{} KiB", bytes >> 10) : fmt::format("{} B", bytes);
}

std::string CountName(int64_t count) { return std::to_string(count); }

// As many messages as make so many bytes.
int64_t CountFor(int64_t bytes, int64_t total, int64_t most) {
  return std::clamp<int64_t>(total / bytes, 20, most);
}

}  // namespace

absl::StatusOr<std::vector<Chart>> MeasureCharts(
    Size size, const std::function<void(std::string_view what)>& on_point) {
  const bool full = size == Size::kFull;
  using Counts = std::vector<int64_t>;

  const Counts sizes =
      full ? Counts{32, 256, 2 << 10, 16 << 10, 128 << 10, 1 << 20} : Counts{32, 2 << 10};
  const int64_t total = full ? 256 << 20 : 64 << 10;
  Chart by_size = ChartOver("One child", "size of a message", "messages a second", sizes, SizeName);
  absl::Status status = Fill(
      by_size, sizes,
      {{"core",
        [&](int64_t bytes) {
          return MakeCoreStream(CountFor(bytes, total, 1'000'000), static_cast<size_t>(bytes));
        }},
       {"agent, gRPC, SDK",
        [&](int64_t bytes) -> SideOr {
          return MakeAgentStream(CountFor(bytes, total, 400'000), static_cast<size_t>(bytes));
        }},
       {"Node's fork()",
        [&](int64_t bytes) {
          return MakeNodeStream(CountFor(bytes, total / 2, 40'000), static_cast<size_t>(bytes));
        }}},
      size, on_point);
  if (!status.ok()) return status;

  const int64_t messages = full ? 400'000 : 2'000;
  const Counts children = full ? Counts{1, 10, 100, 1'000} : Counts{1, 4};
  Chart by_children = ChartOver("One observer of all children, 32 B", "children", "events a second",
                                children, CountName);
  status = Fill(by_children, children,
                {{"shown to the observer",
                  [&](int64_t count) { return MakeFlood(messages, static_cast<int>(count), 1); }}},
                size, on_point);
  if (!status.ok()) return status;

  const Counts observers = full ? Counts{1, 4, 16, 64} : Counts{1, 4};
  Chart by_observers =
      ChartOver("One child, 32 B", "observers", "events a second", observers, CountName);
  status =
      Fill(by_observers, observers,
           {{"shown to all observers together",
             [&](int64_t count) { return MakeFlood(messages / 4, 1, static_cast<int>(count)); }}},
           size, on_point);
  if (!status.ok()) return status;

  return std::vector<Chart>{std::move(by_size), std::move(by_children), std::move(by_observers)};
}

}  // namespace deka::benchmark
