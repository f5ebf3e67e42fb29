// The rows of the table.
//
// Thread: one.
#ifndef TESTS_BENCHMARK_ROWS_H_
#define TESTS_BENCHMARK_ROWS_H_

#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "tests/benchmark/row.h"

namespace deka::benchmark {

enum class Size {
  kFull,
  kShort,  // the same with few messages: figures mean nothing, counts do
};

struct RowKind {
  std::string_view name;
  std::string_view title;
  // Starts what it needs.
  absl::StatusOr<Row> (*make)(Size size);
};

std::span<const RowKind> AllRows();

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_ROWS_H_
