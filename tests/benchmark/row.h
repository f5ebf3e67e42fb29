// A row of the table: something of ours, measured beside what a user would otherwise have.
//
//   Row: subject (a Side) | yardsticks (a Side and a bar each)
//   Compare: subject, yardstick, subject, yardstick... -> medians, the median of the pairs' ratios
//
// What else the machine does slows both sides of a pair alike, so the ratio is steadier than either
// figure. A side stands ready when it is made: processes run, connections are open. Measure() only
// does what is to be measured.
//
// Thread: one.
#ifndef TESTS_BENCHMARK_ROW_H_
#define TESTS_BENCHMARK_ROW_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace deka::benchmark {

// One measurement of one side. Who sends and who receives count by themselves.
struct Run {
  double value = 0;  // in the row's unit
  int64_t sent = 0;
  int64_t received = 0;
};

class Side {
 public:
  virtual ~Side() = default;
  // Fails if not everything that was sent has arrived.
  virtual absl::StatusOr<Run> Measure() = 0;
};

using SideOr = absl::StatusOr<std::unique_ptr<Side>>;

enum class Unit {
  kSeconds,            // less is better
  kMessagesPerSecond,  // more is better
  kBytesPerSecond,
  kBytes,
};

// "31.2 us", "4.56 M/s", "1.23 GB/s", "12.3 KiB".
std::string Format(double value, Unit unit);

struct Bar {
  enum class Kind { kAtLeast, kAtMost };
  Kind kind = Kind::kAtLeast;
  double limit = 0;

  bool Met(double value) const { return kind == Kind::kAtLeast ? value >= limit : value <= limit; }
};

struct Yardstick {
  std::string title;
  std::unique_ptr<Side> side;
  Bar bar;  // of subject / yardstick
};

struct Row {
  Unit unit = Unit::kSeconds;
  std::unique_ptr<Side> subject;
  std::vector<Yardstick> yardsticks;
  std::optional<Bar> bar;  // of the subject itself, where there is nothing to stand beside it
};

struct Comparison {
  struct Beside {
    std::string title;
    double value = 0;  // median
    double ratio = 0;  // median over the pairs
    Bar bar;
    int64_t sent = 0, received = 0;  // in all pairs
  };
  std::string name;
  std::string title;
  Unit unit = Unit::kSeconds;
  double value = 0;
  std::optional<Bar> bar;
  int64_t sent = 0, received = 0;
  std::vector<Beside> beside;
};

// The middle one; the mean of the two in the middle. `values` is not empty.
double Median(std::vector<double> values);

// Measures every side once to warm up, then `pairs` times in turn. `on_pair` hears how many are
// done. Of the answer `name` and `title` are left to the caller.
absl::StatusOr<Comparison> Compare(Row& row, int pairs, const std::function<void(int)>& on_pair);

// The two measured one after the other, as one: their values added.
std::unique_ptr<Side> Sum(std::unique_ptr<Side> first, std::unique_ptr<Side> second);

// A side whose value is `factor` times that of another.
std::unique_ptr<Side> Times(double factor, std::unique_ptr<Side> side);

// kDataLoss unless as many have arrived as were sent.
absl::StatusOr<Run> Counted(Run run);

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_ROW_H_
