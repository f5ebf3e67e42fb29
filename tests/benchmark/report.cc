#include "tests/benchmark/report.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <stdio.h>
#include <sys/utsname.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <string_view>
#include <thread>

namespace deka::benchmark {
namespace {

std::string FormatBar(const Bar& bar, std::string_view limit) {
  return fmt::format("{} {}", bar.kind == Bar::Kind::kAtLeast ? "at least" : "at most", limit);
}

std::string FormatRatio(double ratio) {
  return fmt::format("{:.{}f} x", ratio, ratio < 9.995 ? 2 : ratio < 99.95 ? 1 : 0);
}

std::string Processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "processor unknown";
}

std::string NodeVersion() {
  FILE* pipe = popen("node --version 2>/dev/null", "r");
  if (pipe == nullptr) return "";
  char version[32] = {};
  const size_t size = fread(version, 1, sizeof(version) - 1, pipe);
  pclose(pipe);
  return std::string(version, size > 0 ? size - 1 : 0);
}

std::string_view Name(Unit unit) {
  switch (unit) {
    case Unit::kSeconds:
      return "seconds";
    case Unit::kMessagesPerSecond:
      return "messages_per_second";
    case Unit::kBytesPerSecond:
      return "bytes_per_second";
    case Unit::kBytes:
      return "bytes";
  }
  return "";
}

std::string Quoted(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return quoted + '"';
}

std::string BarJson(const Bar& bar, double value) {
  return fmt::format(R"("bar":{{"{}":{}}},"met":{})",
                     bar.kind == Bar::Kind::kAtLeast ? "at_least" : "at_most", bar.limit,
                     bar.Met(value));
}

}  // namespace

std::string DescribeMachine() {
  utsname system = {};
  uname(&system);
  std::string_view release = system.release;
#ifdef NDEBUG
  const char* build = "optimised";
#else
  const char* build = "NOT OPTIMISED, the figures mean nothing: build with -c opt";
#endif
  return fmt::format("{} x {}, Linux {}, gRPC {}, Node {}, {}", std::thread::hardware_concurrency(),
                     Processor(), release.substr(0, release.find('-')), grpc::Version(),
                     NodeVersion(), build);
}

std::string Table(const std::vector<Comparison>& comparisons) {
  using Cells = std::array<std::string, 7>;
  std::vector<Cells> lines = {{"row", "measured", "beside", "", "ratio", "bar", ""}};
  for (const Comparison& comparison : comparisons) {
    Cells first = {comparison.title, Format(comparison.value, comparison.unit)};
    if (comparison.bar.has_value()) {
      first[5] = FormatBar(*comparison.bar, Format(comparison.bar->limit, comparison.unit));
      first[6] = comparison.bar->Met(comparison.value) ? "met" : "missed";
      lines.push_back(first);
    }
    for (const Comparison::Beside& beside : comparison.beside) {
      first[2] = beside.title;
      first[3] = Format(beside.value, comparison.unit);
      first[4] = FormatRatio(beside.ratio);
      first[5] = FormatBar(beside.bar, FormatRatio(beside.bar.limit));
      first[6] = beside.bar.Met(beside.ratio) ? "met" : "missed";
      lines.push_back(std::exchange(first, Cells()));
    }
  }
  std::array<size_t, 7> widths = {};
  for (const Cells& cells : lines) {
    for (size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());
  }
  std::string table;
  for (const Cells& cells : lines) {
    for (size_t i = 0; i < cells.size(); ++i) {
      table += fmt::format("| {:<{}} ", cells[i], widths[i]);
    }
    table += "|\n";
    if (&cells != &lines.front()) continue;
    for (const size_t width : widths) table += "|" + std::string(width + 2, '-');
    table += "|\n";
  }
  return table;
}

std::string Json(const std::vector<Comparison>& comparisons, int pairs) {
  std::string rows;
  for (const Comparison& comparison : comparisons) {
    std::string beside;
    for (const Comparison::Beside& each : comparison.beside) {
      beside += fmt::format(R"({}{{"title":{},"value":{},"sent":{},"received":{},"ratio":{},{}}})",
                            beside.empty() ? "" : ",", Quoted(each.title), each.value, each.sent,
                            each.received, each.ratio, BarJson(each.bar, each.ratio));
    }
    rows += fmt::format(
        R"({}{{"name":{},"title":{},"unit":"{}","value":{},"sent":{},"received":{},{}"beside":[{}]}})",
        rows.empty() ? "" : ",", Quoted(comparison.name), Quoted(comparison.title),
        Name(comparison.unit), comparison.value, comparison.sent, comparison.received,
        comparison.bar.has_value() ? BarJson(*comparison.bar, comparison.value) + "," : "", beside);
  }
  return fmt::format(R"({{"machine":{},"pairs":{},"rows":[{}]}})", Quoted(DescribeMachine()), pairs,
                     rows);
}

}  // namespace deka::benchmark
