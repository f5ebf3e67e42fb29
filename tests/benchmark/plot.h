// Charts with logarithmic axes, as an SVG image.
//
// One below the other, each with a title, named axes and a key. Every curve has a colour and a
// shape of its own points; nothing but the curves is filled, so it reads on light and dark ground.
//
// Thread: any.
#ifndef TESTS_BENCHMARK_PLOT_H_
#define TESTS_BENCHMARK_PLOT_H_

#include <string>
#include <utility>
#include <vector>

namespace deka::benchmark {

struct Curve {
  std::string name;
  std::vector<std::pair<double, double>> points;  // x and y above 0, x growing
};

struct Chart {
  std::string title;
  std::string x_axis, y_axis;
  std::vector<double> x_ticks;
  std::vector<std::string> x_tick_names;
  std::vector<Curve> curves;
};

std::string Svg(const std::vector<Chart>& charts);

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_PLOT_H_
