// The messages that everything here sends, and the orders that tell a child to send them.
//
// A message is a JSON value of exactly so many bytes, the same one each time:
//
//   32 bytes        {"n":123456,"text":"hello, you"}
//   some KiB        the same with an array of small objects, as JSON.stringify writes them
//   stamped         begins {"t":"<24 digits>": CLOCK_MONOTONIC in nanoseconds when it was written
//
// A child that gets an order sends its messages, then says how many those were: {"sent":n}. So who
// counts what arrives can compare it with what the sender has counted.
//
// For the tiny children too: nothing but the standard library.
#ifndef TESTS_BENCHMARK_MESSAGE_H_
#define TESTS_BENCHMARK_MESSAGE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace deka::benchmark {

inline constexpr size_t kMessageBytesMin = 32;

// At least kMessageBytesMin bytes.
std::string MessageOf(size_t bytes);

// The same with a time in it, which SetStamp() writes and StampOf() reads.
std::string StampedMessageOf(size_t bytes);
void SetStamp(char* message, int64_t time_ns);
std::optional<int64_t> StampOf(std::string_view message);

// CLOCK_MONOTONIC: the same in all processes of a host.
int64_t NowNs();

struct Order {
  int64_t messages = 0;
  int64_t bytes = kMessageBytesMin;  // of each value
  int64_t per_write = 0;             // messages in one write; 0: as many as 64 KiB hold
  int64_t first_ns = 0;              // when to begin, by NowNs(); 0: at once
  int64_t period_ns = 0;             // from one write to the next; 0: as fast as they are taken
  int64_t window = 0;                // ahead of what is allowed, see Allowance; 0: no limit
  bool stamped = false;

  std::string ToJson() const;
  static std::optional<Order> FromJson(const std::string& json);
};

// Lets a child that has a window send more.
std::string AllowanceJson(int64_t messages);
std::optional<int64_t> AllowanceFromJson(const std::string& json);

std::string SentJson(int64_t messages);
// Unset for what is no such report.
std::optional<int64_t> SentFromJson(std::string_view json);

}  // namespace deka::benchmark

#endif  // TESTS_BENCHMARK_MESSAGE_H_
