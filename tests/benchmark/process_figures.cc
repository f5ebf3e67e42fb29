#include "tests/benchmark/process_figures.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

namespace deka::benchmark {
namespace {

absl::Status Gone(pid_t pid) {
  return absl::NotFoundError(fmt::format("there is nothing to read of process {}", pid));
}

// The number of KiB in the line `Name: 123 kB` of a file in /proc.
std::optional<int64_t> Kilobytes(const std::string& path, std::string_view name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name) && line.substr(name.size()).starts_with(":")) {
      return std::stoll(line.substr(name.size() + 1)) * 1024;
    }
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<int64_t> CpuNs(pid_t pid) {
  clockid_t clock;
  timespec time = {};
  if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &time) != 0) return Gone(pid);
  return time.tv_sec * 1'000'000'000 + time.tv_nsec;
}

absl::StatusOr<Memory> MemoryOf(pid_t pid) {
  const std::string folder = fmt::format("/proc/{}/", pid);
  const auto resident = Kilobytes(folder + "smaps_rollup", "Rss");
  const auto peak = Kilobytes(folder + "status", "VmHWM");
  const auto page_tables = Kilobytes(folder + "status", "VmPTE");
  if (!resident || !peak || !page_tables) return Gone(pid);
  return Memory{.resident_bytes = *resident, .peak_bytes = *peak, .page_table_bytes = *page_tables};
}

absl::StatusOr<int> DescriptorsOf(pid_t pid) {
  std::error_code error;
  const std::filesystem::directory_iterator all(fmt::format("/proc/{}/fd", pid), error);
  if (error) return Gone(pid);
  return static_cast<int>(std::distance(begin(all), end(all)));
}

void RaiseDescriptorLimit(size_t wanted) {
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur >= wanted) return;
  const rlimit higher = {.rlim_cur = wanted, .rlim_max = std::max<rlim_t>(wanted, limit.rlim_max)};
  if (setrlimit(RLIMIT_NOFILE, &higher) == 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace deka::benchmark
