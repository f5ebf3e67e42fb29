#include "sdk/cpp/utf8.h"

#include <cstdint>

namespace deka {
namespace {

constexpr uint64_t kHighBits = 0x8080808080808080;

}  // namespace

size_t Utf8CharacterSize(std::string_view text) {
  if (text.empty()) {
    return 0;
  }
  const auto byte = [text](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) {
    return 1;
  }
  // What the second byte may be depends on the first: no overlong forms, no surrogates.
  size_t size = 0;
  uint8_t low = 0x80;
  uint8_t high = 0xBF;
  if (first >= 0xC2 && first <= 0xDF) {
    size = 2;
  } else if (first >= 0xE0 && first <= 0xEF) {
    size = 3;
    low = first == 0xE0 ? 0xA0 : 0x80;
    high = first == 0xED ? 0x9F : 0xBF;
  } else if (first >= 0xF0 && first <= 0xF4) {
    size = 4;
    low = first == 0xF0 ? 0x90 : 0x80;
    high = first == 0xF4 ? 0x8F : 0xBF;
  }
  if (size == 0 || text.size() < size || byte(1) < low || byte(1) > high) {
    return 0;
  }
  for (size_t i = 2; i < size; ++i) {
    if (byte(i) < 0x80 || byte(i) > 0xBF) {
      return 0;
    }
  }
  return size;
}

std::optional<size_t> FirstBadByte(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    uint64_t eight = kHighBits;
    if (text.size() - at >= sizeof(eight)) {
      text.copy(reinterpret_cast<char*>(&eight), sizeof(eight), at);
    }
    if ((eight & kHighBits) == 0) {
      at += sizeof(eight);
      continue;
    }
    // A character has 4 bytes at most, so a view of 4 says all.
    const size_t size = Utf8CharacterSize(text.substr(at, 4));
    if (size == 0) {
      return at;
    }
    at += size;
  }
  return std::nullopt;
}

}  // namespace deka
