#include "tests/benchmark/row.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace deka::benchmark {
namespace {

// Gives these values, one a measurement, and writes down who was measured.
class Scripted final : public Side {
 public:
  Scripted(char name, std::vector<double> values, std::string& order)
      : name_(name), values_(std::move(values)), order_(order) {}

  absl::StatusOr<Run> Measure() override {
    order_ += name_;
    return Run{.value = values_.at(measured_++), .sent = 10, .received = 10};
  }

 private:
  const char name_;
  const std::vector<double> values_;
  size_t measured_ = 0;
  std::string& order_;
};

TEST(Median, TakesTheMiddle) {
  EXPECT_EQ(Median({3}), 3);
  EXPECT_EQ(Median({9, 1, 2}), 2);
  EXPECT_EQ(Median({9, 1, 2, 4}), 3);
}

TEST(Compare, MeasuresInTurnAndTakesMediansOfThePairs) {
  std::string order;
  Row row;
  // The first of each only warms up.
  row.subject = std::make_unique<Scripted>('A', std::vector<double>{99, 10, 20, 30}, order);
  row.yardsticks.push_back(
      {.title = "beside",
       .side = std::make_unique<Scripted>('B', std::vector<double>{99, 5, 40, 20}, order),
       .bar = {.kind = Bar::Kind::kAtMost, .limit = 1.5}});
  std::vector<int> told;
  const auto comparison = Compare(row, 3, [&told](int done) { told.push_back(done); });
  ASSERT_TRUE(comparison.ok());
  EXPECT_EQ(order, "ABABABAB");
  EXPECT_EQ(told, (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(comparison->value, 20);
  EXPECT_EQ(comparison->sent, 30);
  EXPECT_EQ(comparison->received, 30);
  ASSERT_EQ(comparison->beside.size(), 1u);
  EXPECT_EQ(comparison->beside[0].value, 20);
  // Of 2, 0.5 and 1.5.
  EXPECT_EQ(comparison->beside[0].ratio, 1.5);
  EXPECT_TRUE(comparison->beside[0].bar.Met(1.5));
  EXPECT_FALSE(comparison->beside[0].bar.Met(1.51));
}

class Losing final : public Side {
 public:
  absl::StatusOr<Run> Measure() override {
    return Counted({.value = 1, .sent = 10, .received = 9});
  }
};

TEST(Compare, FailsWhereAMessageIsLost) {
  Row row;
  row.subject = std::make_unique<Losing>();
  EXPECT_EQ(Compare(row, 1, [](int) {}).status().code(), absl::StatusCode::kDataLoss);
}

TEST(Sides, AddAndMultiply) {
  std::string order;
  const auto three = [&order] {
    return std::make_unique<Scripted>('A', std::vector<double>{3}, order);
  };
  const auto four = [&order] {
    return std::make_unique<Scripted>('B', std::vector<double>{4}, order);
  };
  const auto sum = Sum(three(), four())->Measure();
  ASSERT_TRUE(sum.ok());
  EXPECT_EQ(sum->value, 7);
  EXPECT_EQ(sum->received, 20);
  const auto times = Times(64, three())->Measure();
  ASSERT_TRUE(times.ok());
  EXPECT_EQ(times->value, 192);
  EXPECT_EQ(times->received, 10);
}

TEST(Format, ChoosesTheUnit) {
  EXPECT_EQ(Format(0.0000312, Unit::kSeconds), "31.2 us");
  EXPECT_EQ(Format(0.000000052, Unit::kSeconds), "52.0 ns");
  EXPECT_EQ(Format(4'560'000, Unit::kMessagesPerSecond), "4.56 M/s");
  EXPECT_EQ(Format(110'000, Unit::kMessagesPerSecond), "110 k/s");
  EXPECT_EQ(Format(1.5e9, Unit::kBytesPerSecond), "1.50 GB/s");
  EXPECT_EQ(Format(16 << 10, Unit::kBytes), "16.0 KiB");
}

}  // namespace
}  // namespace deka::benchmark
