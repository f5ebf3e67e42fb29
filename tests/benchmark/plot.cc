#include "tests/benchmark/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string_view>

#include "tests/benchmark/row.h"

namespace deka::benchmark {
namespace {

constexpr double kWidth = 720, kHeight = 380;
constexpr double kLeft = 80, kRight = 24, kTop = 64, kBottom = 56;

// Of middle lightness: they show on white and on black.
constexpr const char* kColours[] = {"#2f81f7", "#d9822b", "#2ea043", "#bf4b8a", "#8957e5"};

std::string Escaped(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string Text(double x, double y, std::string_view anchor, std::string_view text,
                 std::string_view more = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y,
                     anchor, more, Escaped(text));
}

std::string Line(double x1, double y1, double x2, double y2, std::string_view kind) {
  return fmt::format(
      "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"{}\"/>\n", x1, y1, x2,
      y2, kind);
}

// A point's mark; one shape for each curve.
std::string Mark(size_t curve, double x, double y) {
  const std::string fill = fmt::format("fill=\"{}\"", kColours[curve % std::size(kColours)]);
  switch (curve % 3) {
    case 0:
      return fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" {}/>\n", x, y, fill);
    case 1:
      return fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"8\" height=\"8\" {}/>\n", x - 4,
                         y - 4, fill);
    default:
      return fmt::format("<path d=\"M{:.1f} {:.1f}l5 9h-10z\" {}/>\n", x, y - 6, fill);
  }
}

// Maps [from, to] to pixels by logarithm.
class Axis {
 public:
  Axis(double from, double to, double pixel_from, double pixel_to)
      : from_(std::log10(from)),
        scale_((pixel_to - pixel_from) / (std::log10(to) - from_)),
        pixel_from_(pixel_from) {}
  double At(double value) const { return pixel_from_ + (std::log10(value) - from_) * scale_; }

 private:
  double from_, scale_, pixel_from_;
};

std::string ChartSvg(const Chart& chart, double top) {
  double least = std::numeric_limits<double>::max(), most = 0;
  for (const Curve& curve : chart.curves) {
    for (const auto& [x, y] : curve.points) {
      least = std::min(least, y);
      most = std::max(most, y);
    }
  }
  // Whole powers of ten, at least one between them.
  const double bottom_value = std::pow(10, std::floor(std::log10(least)));
  const double top_value = std::max(std::pow(10, std::ceil(std::log10(most))), bottom_value * 10);
  const double pixel_bottom = top + kHeight - kBottom, pixel_top = top + kTop;
  const Axis x_axis(chart.x_ticks.front(), chart.x_ticks.back(), kLeft, kWidth - kRight);
  const Axis y_axis(bottom_value, top_value, pixel_bottom, pixel_top);

  std::string svg = Text(kLeft, top + 22, "start", chart.title, " class=\"title\"");
  for (double value = bottom_value; value < top_value * 1.5; value *= 10) {
    const double y = y_axis.At(value);
    svg += Line(kLeft, y, kWidth - kRight, y, "grid");
    svg += Text(kLeft - 8, y + 4, "end", Format(value, Unit::kMessagesPerSecond));
  }
  for (size_t i = 0; i < chart.x_ticks.size(); ++i) {
    const double x = x_axis.At(chart.x_ticks[i]);
    svg += Line(x, pixel_bottom, x, pixel_bottom + 5, "axis");
    svg += Text(x, pixel_bottom + 20, "middle", chart.x_tick_names[i]);
  }
  svg += Line(kLeft, pixel_bottom, kWidth - kRight, pixel_bottom, "axis");
  svg += Line(kLeft, pixel_top, kLeft, pixel_bottom, "axis");
  svg += Text((kLeft + kWidth - kRight) / 2, pixel_bottom + 42, "middle", chart.x_axis);
  const double middle = (pixel_top + pixel_bottom) / 2;
  svg += Text(16, middle, "middle", chart.y_axis,
              fmt::format(" transform=\"rotate(-90 16 {:.1f})\"", middle));

  double key_x = kLeft;
  for (size_t i = 0; i < chart.curves.size(); ++i) {
    const Curve& curve = chart.curves[i];
    svg += Mark(i, key_x + 6, top + 40);
    svg += Text(key_x + 18, top + 44, "start", curve.name);
    key_x += 36 + 7.0 * static_cast<double>(curve.name.size());
    std::string path;
    std::string marks;
    for (const auto& [x, y] : curve.points) {
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x_axis.At(x), y_axis.At(y));
      marks += Mark(i, x_axis.At(x), y_axis.At(y));
    }
    svg += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n", path,
                       kColours[i % std::size(kColours)]);
    svg += marks;
  }
  return svg;
}

}  // namespace

std::string Svg(const std::vector<Chart>& charts) {
  const double height = kHeight * static_cast<double>(charts.size());
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
      "height=\"{1:.0f}\">\n"
      "<style>\n"
      "text {{ font: 12px sans-serif; fill: #57606a; }}\n"
      ".title {{ font: bold 14px sans-serif; }}\n"
      ".axis {{ stroke: #57606a; }}\n"
      ".grid {{ stroke: #8c959f; stroke-opacity: 0.35; }}\n"
      "@media (prefers-color-scheme: dark) {{\n"
      "text {{ fill: #b1bac4; }}\n"
      ".axis {{ stroke: #b1bac4; }}\n"
      "}}\n"
      "</style>\n",
      kWidth, height);
  for (size_t i = 0; i < charts.size(); ++i) {
    svg += ChartSvg(charts[i], kHeight * static_cast<double>(i));
  }
  return svg + "</svg>\n";
}

}  // namespace deka::benchmark
