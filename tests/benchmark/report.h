// What was measured, for people and for machines.
//
// Thread: any.
#ifndef TESTS_BENCHMARK_REPORT_H_
#define TESTS_BENCHMARK_REPORT_H_

#include <string>
#include <vector>

#include "tests/benchmark/row.h"

namespace deka::benchmark {

// What the figures depend on: processors, system, libraries, how this program was compiled.
std::string DescribeMachine();

// A table in Markdown whose columns are aligned.
std::string Table(const std::vector<Comparison>& comparisons);

// One object on one line; values are seconds, messages a second, bytes a second or bytes.
std::string Json(const std::vector<Comparison>& comparisons, int pairs);

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_REPORT_H_
