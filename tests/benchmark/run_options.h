// What the programs here have in common at a terminal.
//
// Thread: one.
#ifndef TESTS_BENCHMARK_RUN_OPTIONS_H_
#define TESTS_BENCHMARK_RUN_OPTIONS_H_

#include <unistd.h>

#include <chrono>
#include <string>
#include <string_view>

#include "CLI/CLI.hpp"
#include "fmt/format.h"

namespace deka::benchmark {

// One line on a terminal, nothing elsewhere.
class ProgressLine {
 public:
  ~ProgressLine() { Show(""); }
  void Show(std::string_view text) const {
    if (terminal_) fmt::print(stderr, "\r\033[K{}", text);
  }

 private:
  const bool terminal_ = isatty(STDERR_FILENO) == 1;
};

// An option that takes a time: 90, 90s, 5m, 2h.
inline CLI::Option* AddDuration(CLI::App& app, const std::string& name, double& seconds,
                                const std::string& description) {
  return app.add_option(name, seconds, description)
      ->type_name("DURATION")
      ->transform(
          CLI::AsNumberWithUnit(std::map<std::string, double>{{"s", 1}, {"m", 60}, {"h", 3600}},
                                CLI::AsNumberWithUnit::CASE_SENSITIVE, "s, m, h"))
      ->check(CLI::PositiveNumber);
}

inline std::chrono::milliseconds Milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_RUN_OPTIONS_H_
