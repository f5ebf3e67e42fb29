// How long messages took, most of them and the slowest.
//
// Of each delay the figures are right to 5 %, and memory is the same however many there are.
//
// Thread: one at a time.
#ifndef TESTS_BENCHMARK_DELAYS_H_
#define TESTS_BENCHMARK_DELAYS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace deka::benchmark {

class Delays {
 public:
  void Add(int64_t delay_ns);
  int64_t count() const { return count_; }
  int64_t max_ns() const { return max_ns_; }
  // That at most this share of them took: 0.5 is the median. 0 if there is none.
  int64_t Percentile(double share) const;
  // "p50 1.2 ms, p99 3.4 ms, max 5.6 ms".
  std::string Text() const;

 private:
  // Cell i ends at kGrowth^i nanoseconds.
  static constexpr double kGrowth = 1.05;
  static constexpr size_t kCells = 600;  // the last ends beyond an hour

  std::array<int64_t, kCells> cells_ = {};
  int64_t count_ = 0;
  int64_t max_ns_ = 0;
};

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_DELAYS_H_
