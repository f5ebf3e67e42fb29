#include "tests/benchmark/message.h"

#include <time.h>

#include <charconv>
#include <cinttypes>
#include <cstdio>

namespace deka::benchmark {
namespace {

constexpr std::string_view kItem = R"({"id":12345,"ok":true,"name":"child"},)";
constexpr std::string_view kStampPrefix = R"({"t":")";
constexpr size_t kStampDigits = 24;
constexpr std::string_view kSentPrefix = R"({"sent":)";

// `head` is an object without its closing brace.
std::string Fill(std::string head, size_t bytes) {
  constexpr std::string_view kItems = R"(,"items":[)";
  constexpr std::string_view kFiller = R"(,"text":")";
  if (bytes >= head.size() + kItems.size() + kItem.size() + 4) {
    head += kItems;
    while (head.size() + kItem.size() + 4 <= bytes) head += kItem;
    head += '"';
    head.append(bytes - head.size() - 3, 'x');
    return head + "\"]}";
  }
  if (bytes >= head.size() + kFiller.size() + 2) {
    head += kFiller;
    head.append(bytes - head.size() - 2, 'x');
    return head + "\"}";
  }
  // White space is part of no value, but of its text.
  head.append(bytes - head.size() - 1, ' ');
  return head + "}";
}

}  // namespace

std::string MessageOf(size_t bytes) { return Fill(R"({"n":123456,"text":"hello, you")", bytes); }

std::string StampedMessageOf(size_t bytes) {
  std::string message =
      Fill(std::string(kStampPrefix) + std::string(kStampDigits, '0') + '"', bytes);
  return message;
}

void SetStamp(char* message, int64_t time_ns) {
  char* digit = message + kStampPrefix.size() + kStampDigits;
  for (size_t i = 0; i < kStampDigits; ++i) {
    *--digit = static_cast<char>('0' + time_ns % 10);
    time_ns /= 10;
  }
}

std::optional<int64_t> StampOf(std::string_view message) {
  if (!message.starts_with(kStampPrefix)) return std::nullopt;
  const std::string_view digits = message.substr(kStampPrefix.size(), kStampDigits);
  int64_t time_ns = 0;
  const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), time_ns);
  if (read.ec != std::errc()) return std::nullopt;
  return time_ns;
}

int64_t NowNs() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

constexpr char kOrderFormat[] =
    "{\"messages\":%" PRId64 ",\"bytes\":%" PRId64 ",\"per_write\":%" PRId64
    ",\"first_ns\":%" PRId64 ",\"period_ns\":%" PRId64 ",\"window\":%" PRId64 ",\"stamped\":%d}";

std::string Order::ToJson() const {
  char json[256];
  std::snprintf(json, sizeof(json), kOrderFormat, messages, bytes, per_write, first_ns, period_ns,
                window, stamped ? 1 : 0);
  return json;
}

std::optional<Order> Order::FromJson(const std::string& json) {
  Order order;
  int stamped = 0;
  const int fields =
      std::sscanf(json.c_str(), kOrderFormat, &order.messages, &order.bytes, &order.per_write,
                  &order.first_ns, &order.period_ns, &order.window, &stamped);
  if (fields != 7) return std::nullopt;
  order.stamped = stamped != 0;
  return order;
}

std::string AllowanceJson(int64_t messages) {
  return "{\"allow\":" + std::to_string(messages) + "}";
}

std::optional<int64_t> AllowanceFromJson(const std::string& json) {
  int64_t messages = 0;
  if (std::sscanf(json.c_str(), "{\"allow\":%" PRId64 "}", &messages) != 1) return std::nullopt;
  return messages;
}

std::string SentJson(int64_t messages) {
  return std::string(kSentPrefix) + std::to_string(messages) + "}";
}

std::optional<int64_t> SentFromJson(std::string_view json) {
  if (!json.starts_with(kSentPrefix)) return std::nullopt;
  json.remove_prefix(kSentPrefix.size());
  int64_t messages = 0;
  const auto read = std::from_chars(json.data(), json.data() + json.size(), messages);
  if (read.ec != std::errc()) return std::nullopt;
  return messages;
}

}  // namespace deka::benchmark
