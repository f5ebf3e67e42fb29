#include "tests/benchmark/row.h"

#include <fmt/format.h>

#include <algorithm>

#include "absl/status/status.h"

namespace deka::benchmark {
namespace {

// One side's runs in a comparison.
struct Series {
  std::vector<double> values;
  int64_t sent = 0, received = 0;

  void Add(const Run& run) {
    values.push_back(run.value);
    sent += run.sent;
    received += run.received;
  }
};

class SumSide final : public Side {
 public:
  SumSide(std::unique_ptr<Side> first, std::unique_ptr<Side> second)
      : first_(std::move(first)), second_(std::move(second)) {}

  absl::StatusOr<Run> Measure() override {
    const absl::StatusOr<Run> first = first_->Measure();
    if (!first.ok()) return first.status();
    const absl::StatusOr<Run> second = second_->Measure();
    if (!second.ok()) return second.status();
    return Run{.value = first->value + second->value,
               .sent = first->sent + second->sent,
               .received = first->received + second->received};
  }

 private:
  const std::unique_ptr<Side> first_, second_;
};

class TimesSide final : public Side {
 public:
  TimesSide(double factor, std::unique_ptr<Side> side) : factor_(factor), side_(std::move(side)) {}

  absl::StatusOr<Run> Measure() override {
    absl::StatusOr<Run> run = side_->Measure();
    if (run.ok()) run->value *= factor_;
    return run;
  }

 private:
  const double factor_;
  const std::unique_ptr<Side> side_;
};

struct Prefix {
  double scale;
  const char* name;
};

}  // namespace

std::string Format(double value, Unit unit) {
  static constexpr Prefix kTimes[] = {{1, "s"}, {1e-3, "ms"}, {1e-6, "us"}, {1e-9, "ns"}};
  static constexpr Prefix kRates[] = {{1e6, "M/s"}, {1e3, "k/s"}, {1, "/s"}};
  static constexpr Prefix kByteRates[] = {{1e9, "GB/s"}, {1e6, "MB/s"}, {1e3, "kB/s"}, {1, "B/s"}};
  static constexpr Prefix kSizes[] = {
      {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}, {1, "B"}};
  const auto format = [value](const auto& prefixes) {
    const Prefix* prefix = std::begin(prefixes);
    while (value < prefix->scale && prefix + 1 != std::end(prefixes)) ++prefix;
    const double shown = value / prefix->scale;
    return fmt::format("{:.{}f} {}", shown,
                       shown < 9.995   ? 2
                       : shown < 99.95 ? 1
                                       : 0,
                       prefix->name);
  };
  switch (unit) {
    case Unit::kSeconds:
      return format(kTimes);
    case Unit::kMessagesPerSecond:
      return format(kRates);
    case Unit::kBytesPerSecond:
      return format(kByteRates);
    case Unit::kBytes:
      return format(kSizes);
  }
  return "";
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

absl::StatusOr<Comparison> Compare(Row& row, int pairs, const std::function<void(int)>& on_pair) {
  std::vector<Side*> sides = {row.subject.get()};
  for (const Yardstick& yardstick : row.yardsticks) sides.push_back(yardstick.side.get());
  std::vector<Series> series(sides.size());
  for (int pair = -1; pair < pairs; ++pair) {
    for (size_t i = 0; i < sides.size(); ++i) {
      const absl::StatusOr<Run> run = sides[i]->Measure();
      if (!run.ok()) return run.status();
      if (pair >= 0) series[i].Add(*run);
    }
    on_pair(pair + 1);
  }

  Comparison comparison;
  comparison.unit = row.unit;
  comparison.bar = row.bar;
  comparison.value = Median(series[0].values);
  comparison.sent = series[0].sent;
  comparison.received = series[0].received;
  for (size_t i = 0; i < row.yardsticks.size(); ++i) {
    const Series& beside = series[i + 1];
    std::vector<double> ratios;
    for (int pair = 0; pair < pairs; ++pair) {
      ratios.push_back(series[0].values[static_cast<size_t>(pair)] /
                       beside.values[static_cast<size_t>(pair)]);
    }
    comparison.beside.push_back({.title = row.yardsticks[i].title,
                                 .value = Median(beside.values),
                                 .ratio = Median(ratios),
                                 .bar = row.yardsticks[i].bar,
                                 .sent = beside.sent,
                                 .received = beside.received});
  }
  return comparison;
}

std::unique_ptr<Side> Sum(std::unique_ptr<Side> first, std::unique_ptr<Side> second) {
  return std::make_unique<SumSide>(std::move(first), std::move(second));
}

std::unique_ptr<Side> Times(double factor, std::unique_ptr<Side> side) {
  return std::make_unique<TimesSide>(factor, std::move(side));
}

absl::StatusOr<Run> Counted(Run run) {
  if (run.sent == run.received) return run;
  return absl::DataLossError(
      fmt::format("{} messages were sent and {} have arrived", run.sent, run.received));
}

}  // namespace deka::benchmark
