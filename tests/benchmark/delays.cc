#include "tests/benchmark/delays.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tests/benchmark/row.h"

namespace deka::benchmark {

void Delays::Add(int64_t delay_ns) {
  static const double kLogGrowth = std::log(kGrowth);
  const double cell =
      std::ceil(std::log(static_cast<double>(std::max<int64_t>(delay_ns, 1))) / kLogGrowth);
  ++cells_[std::min(static_cast<size_t>(cell), kCells - 1)];
  ++count_;
  max_ns_ = std::max(max_ns_, delay_ns);
}

int64_t Delays::Percentile(double share) const {
  int64_t left = static_cast<int64_t>(std::ceil(share * static_cast<double>(count_)));
  for (size_t i = 0; i < kCells && count_ > 0; ++i) {
    left -= cells_[i];
    if (left <= 0) {
      return std::min(max_ns_, static_cast<int64_t>(std::pow(kGrowth, static_cast<double>(i))));
    }
  }
  return max_ns_;
}

std::string Delays::Text() const {
  const auto text = [](int64_t ns) {
    return Format(static_cast<double>(ns) * 1e-9, Unit::kSeconds);
  };
  return fmt::format("p50 {}, p99 {}, max {}", text(Percentile(0.5)), text(Percentile(0.99)),
                     text(max_ns_));
}

}  // namespace deka::benchmark
