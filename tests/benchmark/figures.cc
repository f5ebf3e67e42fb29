#include "tests/benchmark/figures.h"

#include <fmt/format.h>

#include <algorithm>

namespace deka::benchmark {
namespace {

// 1234567 as 1,234,567.
std::string Grouped(int64_t count) {
  std::string text = std::to_string(count);
  for (size_t i = text.size(); i > (text[0] == '-' ? 4u : 3u);) text.insert(i -= 3, ",");
  return text;
}

}  // namespace

void Figures::Add(std::string_view name, int64_t count) {
  figures_.push_back({std::string(name), Grouped(count), std::to_string(count)});
}

void Figures::Add(std::string_view name, double value, Unit unit) {
  figures_.push_back({std::string(name), Format(value, unit), fmt::format("{}", value)});
}

void Figures::Add(std::string_view name, const Delays& delays) {
  figures_.push_back(
      {std::string(name), delays.Text(),
       fmt::format(R"({{"count":{},"p50_ns":{},"p99_ns":{},"max_ns":{}}})", delays.count(),
                   delays.Percentile(0.5), delays.Percentile(0.99), delays.max_ns())});
}

std::string Figures::Text() const {
  size_t width = 0;
  for (const Figure& figure : figures_) width = std::max(width, figure.name.size());
  std::string text;
  for (const Figure& figure : figures_) {
    text += fmt::format("  {:<{}}  {}\n", figure.name, width, figure.text);
  }
  return text;
}

std::string Figures::Json() const {
  std::string json;
  for (const Figure& figure : figures_) {
    json += fmt::format(R"({}"{}":{})", json.empty() ? "" : ",", figure.name, figure.json);
  }
  return "{" + json + "}";
}

}  // namespace deka::benchmark
