// Numbers as people write them on a command line.
#ifndef SDK_DEKACTL_NUMBER_H_
#define SDK_DEKACTL_NUMBER_H_

#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>

namespace deka::dekactl {

// Decimal digits and nothing else; unset if `text` is no such number or too large.
inline std::optional<int64_t> ParseNumber(std::string_view text) {
  if (text.empty() || text.front() == '-') {
    return std::nullopt;
  }
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) {
    return std::nullopt;
  }
  return number;
}

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_NUMBER_H_
