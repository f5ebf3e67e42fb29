// The lexical part of JSON, for what reads it byte by byte: json.cc and json_match.cc.
//
// `p` is where to read and `end` is the end of the text; nothing is read there or behind it.
#ifndef IPC_JSON_SCAN_H_
#define IPC_JSON_SCAN_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace deka::ipc {

inline bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }
inline bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// The value of a hexadecimal digit, or -1.
inline int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

inline const char* SkipJsonSpaces(const char* p, const char* end) {
#if defined(__SSE2__)
  for (; end - p >= 16; p += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const auto is = [bytes](char c) { return _mm_cmpeq_epi8(bytes, _mm_set1_epi8(c)); };
    const __m128i spaces =
        _mm_or_si128(_mm_or_si128(is(' '), is('\n')), _mm_or_si128(is('\r'), is('\t')));
    const unsigned others = ~static_cast<unsigned>(_mm_movemask_epi8(spaces)) & 0xffff;
    if (others != 0) return p + std::countr_zero(others);
  }
#endif
  while (p < end && IsSpace(*p)) ++p;
  return p;
}

// Mostly there is no white space.
inline const char* SkipJsonSpace(const char* p, const char* end) {
  if (p<end&& static_cast<uint8_t>(*p)> ' ') return p;
  return SkipJsonSpaces(p, end);
}

// Inside a string: up to a quote, a backslash or a control character. Sets bits of `high_bits` if
// there was anything but ASCII; they may be those of text around it. The text may be read from
// `begin` on, so that its last few bytes are looked at together with some before them.
inline const char* SkipPlain(const char* begin, const char* p, const char* end,
                             unsigned& high_bits) {
#if defined(__SSE2__)
  // A bit for each of 16 bytes that ends it.
  const auto ends_at = [&high_bits](const char* place) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(place));
    const auto is = [bytes](char c) { return _mm_cmpeq_epi8(bytes, _mm_set1_epi8(c)); };
    const __m128i control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1f)), bytes);
    const __m128i ends = _mm_or_si128(_mm_or_si128(is('"'), is('\\')), control);
    high_bits |= static_cast<unsigned>(_mm_movemask_epi8(bytes));
    return static_cast<unsigned>(_mm_movemask_epi8(ends));
  };
  for (; end - p >= 16; p += 16) {
    if (const unsigned mask = ends_at(p); mask != 0) return p + std::countr_zero(mask);
  }
  if (end - begin >= 16 && p < end) {
    const unsigned mask = ends_at(end - 16) >> (16 - (end - p));
    return mask != 0 ? p + std::countr_zero(mask) : end;
  }
#endif
  for (; p < end; ++p) {
    const uint8_t c = static_cast<uint8_t>(*p);
    if (c < 0x20 || c == '"' || c == '\\') break;
    high_bits |= c & 0x80;
  }
  return p;
}

// The value of the four hexadecimal digits behind the \u at `p`; unset if that is not what is
// there.
inline std::optional<char32_t> HexEscape(const char* p, const char* end) {
  if (end - p < 6 || p[0] != '\\' || p[1] != 'u') return std::nullopt;
  char32_t value = 0;
  for (int i = 2; i < 6; ++i) {
    const int digit = HexValue(p[i]);
    if (digit < 0) return std::nullopt;
    value = value * 16 + static_cast<char32_t>(digit);
  }
  return value;
}

inline bool IsSurrogate(char32_t character) { return character >= 0xD800 && character <= 0xDFFF; }

// Moves `p` behind the escape it points to. A pair of surrogates is one character; a lone one is
// given as it is. Unset if there is no such escape.
inline std::optional<char32_t> TakeEscape(const char*& p, const char* end) {
  if (end - p < 2) return std::nullopt;
  if (p[1] != 'u') {
    constexpr std::string_view kEscapes = R"("\/bfnrt)";
    const size_t i = kEscapes.find(p[1]);
    if (i == std::string_view::npos) return std::nullopt;
    p += 2;
    return static_cast<char32_t>("\"\\/\b\f\n\r\t"[i]);
  }
  const std::optional<char32_t> first = HexEscape(p, end);
  if (!first.has_value()) return std::nullopt;
  p += 6;
  if (!IsSurrogate(*first)) return first;
  const std::optional<char32_t> second = HexEscape(p, end);
  const bool pair = *first < 0xDC00 && second.has_value() && *second >= 0xDC00 && *second <= 0xDFFF;
  if (!pair) return first;
  p += 6;
  return 0x10000 + ((*first - 0xD800) << 10) + (*second - 0xDC00);
}

// Writes a character, and answers how many bytes it has. A surrogate is written as a character of
// its range would be: that is WTF-8.
inline size_t EncodeUtf8(char32_t character, char* bytes) {
  const auto tail = [character](int shift) {
    return static_cast<char>(0x80 | (character >> shift & 0x3F));
  };
  if (character < 0x80) {
    bytes[0] = static_cast<char>(character);
    return 1;
  }
  if (character < 0x800) {
    bytes[0] = static_cast<char>(0xC0 | character >> 6);
    bytes[1] = tail(0);
    return 2;
  }
  if (character < 0x10000) {
    bytes[0] = static_cast<char>(0xE0 | character >> 12);
    bytes[1] = tail(6);
    bytes[2] = tail(0);
    return 3;
  }
  bytes[0] = static_cast<char>(0xF0 | character >> 18);
  bytes[1] = tail(12);
  bytes[2] = tail(6);
  bytes[3] = tail(0);
  return 4;
}

}  // namespace deka::ipc

#endif  // IPC_JSON_SCAN_H_
