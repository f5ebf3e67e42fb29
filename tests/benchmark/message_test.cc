#include "tests/benchmark/message.h"

#include <string>

#include "gtest/gtest.h"
#include "ipc/json.h"

namespace deka::benchmark {
namespace {

TEST(MessageOf, IsJsonOfExactlyThatSize) {
  for (size_t bytes = kMessageBytesMin; bytes < 300; ++bytes) {
    for (const std::string& message : {MessageOf(bytes), StampedMessageOf(bytes)}) {
      EXPECT_EQ(message.size(), bytes);
      EXPECT_FALSE(ipc::CheckJson(message, 256).has_value()) << message;
    }
  }
  const std::string large = MessageOf(256 << 10);
  EXPECT_EQ(large.size(), 256u << 10);
  EXPECT_FALSE(ipc::CheckJson(large, 256).has_value());
}

TEST(Stamp, IsReadAsItWasWritten) {
  std::string message = StampedMessageOf(kMessageBytesMin);
  SetStamp(message.data(), 1234567890123456789);
  EXPECT_FALSE(ipc::CheckJson(message, 256).has_value()) << message;
  EXPECT_EQ(StampOf(message), 1234567890123456789);
  EXPECT_EQ(StampOf(MessageOf(kMessageBytesMin)), std::nullopt);
}

TEST(Order, IsReadAsItWasWritten) {
  const Order order = {.messages = 1'000'000'000'000,
                       .bytes = 256,
                       .per_write = 3,
                       .first_ns = 4,
                       .period_ns = 5,
                       .window = 6,
                       .stamped = true};
  const auto read = Order::FromJson(order.ToJson());
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(read->ToJson(), order.ToJson());
  EXPECT_EQ(read->messages, 1'000'000'000'000);
  EXPECT_TRUE(read->stamped);
  EXPECT_EQ(Order::FromJson(AllowanceJson(7)), std::nullopt);
}

TEST(Reports, AreToldFromMessages) {
  EXPECT_EQ(AllowanceFromJson(AllowanceJson(7)), 7);
  EXPECT_EQ(AllowanceFromJson(SentJson(7)), std::nullopt);
  EXPECT_EQ(SentFromJson(SentJson(7)), 7);
  EXPECT_EQ(SentFromJson(MessageOf(kMessageBytesMin)), std::nullopt);
}

}  // namespace
}  // namespace deka::benchmark
