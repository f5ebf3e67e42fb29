// What --plot draws: rates against the size of messages, and against the number of children and of
// observers. Each point is the median of three measurements after one to warm up.
//
// Thread: one.
#ifndef TESTS_BENCHMARK_CURVES_H_
#define TESTS_BENCHMARK_CURVES_H_

#include <functional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/benchmark/plot.h"
#include "tests/benchmark/rows.h"

namespace deka::benchmark {

// `on_point` hears what is measured next.
absl::StatusOr<std::vector<Chart>> MeasureCharts(
    Size size, const std::function<void(std::string_view what)>& on_point);

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_CURVES_H_
