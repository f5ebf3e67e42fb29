#include "agent/utf8.h"

#include <cstdint>
#include <cstring>

namespace deka::agent {
namespace {

// Bytes of the character that `bytes` begins with; 0 if it begins with none.
size_t CharacterBytes(std::string_view bytes) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
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
  if (bytes.size() < size || byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < size; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  return size;
}

// Bytes of ASCII that `bytes` begins with, in steps of eight.
size_t AsciiBytes(std::string_view bytes) {
  size_t done = 0;
  while (bytes.size() - done >= 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + done, 8);
    if (word & 0x8080808080808080) break;
    done += 8;
  }
  return done;
}

}  // namespace

bool IsUtf8(std::string_view bytes) {
  while (!bytes.empty()) {
    bytes.remove_prefix(AsciiBytes(bytes));
    if (bytes.empty()) break;
    const size_t size = CharacterBytes(bytes);
    if (size == 0) return false;
    bytes.remove_prefix(size);
  }
  return true;
}

std::string ToUtf8(std::string_view bytes, size_t bytes_max) {
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
  std::string text;
  while (!bytes.empty()) {
    const size_t size = CharacterBytes(bytes);
    const std::string_view character = size == 0 ? kReplacement : bytes.substr(0, size);
    if (text.size() + character.size() > bytes_max) break;
    text += character;
    bytes.remove_prefix(size == 0 ? 1 : size);
  }
  return text;
}

std::string_view Utf8Prefix(std::string_view text, size_t bytes_max) {
  if (text.size() <= bytes_max) return text;
  while (bytes_max > 0 && (text[bytes_max] & 0xC0) == 0x80) --bytes_max;
  return text.substr(0, bytes_max);
}

}  // namespace deka::agent
