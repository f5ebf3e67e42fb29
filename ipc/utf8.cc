#include "ipc/utf8.h"

#include <cstdint>

namespace deka::ipc {
namespace {

constexpr uint64_t kHighBits = 0x8080808080808080;

}  // namespace

size_t Utf8CharacterSize(std::string_view text) {
  if (text.empty()) return 0;
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return 1;
  // The second byte's range excludes overlong forms, surrogates and what lies past U+10FFFF.
  size_t size;
  uint8_t low = 0x80, high = 0xBF;
  if (first >= 0xC2 && first <= 0xDF) {
    size = 2;
  } else if (first >= 0xE0 && first <= 0xEF) {
    size = 3;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
  } else if (first >= 0xF0 && first <= 0xF4) {
    size = 4;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  } else {
    return 0;
  }
  if (text.size() < size || byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < size; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  return size;
}

bool IsControl(std::string_view character) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(character[i]); };
  switch (character.size()) {
    case 1:
      return byte(0) < 0x20 || byte(0) == 0x7F;
    case 2:  // U+0080 to U+009F
      return byte(0) == 0xC2 && byte(1) < 0xA0;
    case 3:
      if (byte(0) != 0xE2) return false;
      return (byte(1) == 0x80 && byte(2) >= 0xA8 && byte(2) <= 0xAE) ||  // U+2028 to U+202E
             (byte(1) == 0x81 && byte(2) >= 0xA6 && byte(2) <= 0xA9);    // U+2066 to U+2069
    default:
      return false;
  }
}

std::optional<size_t> FirstBadByte(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    // ASCII, eight bytes at a time.
    uint64_t eight = kHighBits;
    if (text.size() - at >= sizeof(eight)) {
      text.copy(reinterpret_cast<char*>(&eight), sizeof(eight), at);
    }
    if ((eight & kHighBits) == 0) {
      at += sizeof(eight);
      continue;
    }
    const size_t size = Utf8CharacterSize(text.substr(at));
    if (size == 0) return at;
    at += size;
  }
  return std::nullopt;
}

std::string ToUtf8(std::string_view bytes, size_t bytes_max) {
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
  std::string text;
  while (!bytes.empty()) {
    const size_t size = Utf8CharacterSize(bytes);
    const std::string_view character = size == 0 ? kReplacement : bytes.substr(0, size);
    if (text.size() + character.size() > bytes_max) break;
    text += character;
    bytes.remove_prefix(size == 0 ? 1 : size);
  }
  return text;
}

std::string_view Utf8Prefix(std::string_view text, size_t bytes_max) {
  if (text.size() <= bytes_max) return text;
  // A character that begins before the cut and ends behind it; at most 3 bytes are before.
  for (size_t before = 1; before <= 3 && before <= bytes_max; ++before) {
    const size_t begin = bytes_max - before;
    if (Utf8CharacterSize(text.substr(begin)) > before) return text.substr(0, begin);
  }
  return text.substr(0, bytes_max);
}

}  // namespace deka::ipc
