// A run's figures, as they are found: `name: value` lines for people, one JSON object for machines.
//
// Thread: one.
#ifndef TESTS_BENCHMARK_FIGURES_H_
#define TESTS_BENCHMARK_FIGURES_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/benchmark/delays.h"
#include "tests/benchmark/row.h"

namespace deka::benchmark {

class Figures {
 public:
  void Add(std::string_view name, int64_t count);
  void Add(std::string_view name, double value, Unit unit);
  void Add(std::string_view name, const Delays& delays);

  std::string Text() const;
  std::string Json() const;

 private:
  struct Figure {
    std::string name;
    std::string text;
    std::string json;
  };
  std::vector<Figure> figures_;
};

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_FIGURES_H_
