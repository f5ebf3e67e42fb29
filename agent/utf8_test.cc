#include "agent/utf8.h"

#include <string>

#include "gtest/gtest.h"

namespace deka::agent {
namespace {

TEST(Utf8, EveryCodePointIsACharacterButSurrogates) {
  for (uint32_t point = 0; point <= 0x10FFFF; ++point) {
    std::string text;
    if (point < 0x80) {
      text = {static_cast<char>(point)};
    } else if (point < 0x800) {
      text = {static_cast<char>(0xC0 | point >> 6), static_cast<char>(0x80 | (point & 63))};
    } else if (point < 0x10000) {
      text = {static_cast<char>(0xE0 | point >> 12), static_cast<char>(0x80 | (point >> 6 & 63)),
              static_cast<char>(0x80 | (point & 63))};
    } else {
      text = {static_cast<char>(0xF0 | point >> 18), static_cast<char>(0x80 | (point >> 12 & 63)),
              static_cast<char>(0x80 | (point >> 6 & 63)), static_cast<char>(0x80 | (point & 63))};
    }
    const bool surrogate = point >= 0xD800 && point <= 0xDFFF;
    ASSERT_EQ(IsUtf8(text), !surrogate) << point;
    // Behind eight bytes of ASCII too, which are skipped at once.
    ASSERT_EQ(IsUtf8("12345678" + text), !surrogate) << point;
    ASSERT_EQ(ToUtf8(text, 4) == text, !surrogate) << point;
    // Cut anywhere, it is none.
    for (size_t size = 1; size < text.size(); ++size) {
      ASSERT_FALSE(IsUtf8(text.substr(0, size))) << point;
    }
  }
}

TEST(Utf8, RefusesWhatIsNone) {
  for (const std::string& text :
       {std::string("\x80"), std::string("\xBF"), std::string("\xC0\x80"), std::string("\xC1\xBF"),
        std::string("\xE0\x9F\xBF"), std::string("\xF0\x8F\xBF\xBF"),
        std::string("\xF4\x90\x80\x80"), std::string("\xF5\x80\x80\x80"), std::string("\xFF"),
        std::string("\xE2\x82z"), std::string("12345678\xFF")}) {
    EXPECT_FALSE(IsUtf8(text));
    EXPECT_TRUE(IsUtf8(ToUtf8(text, 100)));
  }
}

TEST(Utf8, ReplacesAndCutsBetweenCharacters) {
  EXPECT_EQ(ToUtf8("a\xFF"
                   "b",
                   100),
            "a\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(ToUtf8("\xC3\xA4\xC3\xA4", 3), "\xC3\xA4");
  EXPECT_EQ(ToUtf8("\xFF", 2), "");
  EXPECT_EQ(ToUtf8("", 2), "");
  EXPECT_EQ(ToUtf8(std::string("\0a", 2), 2), std::string("\0a", 2));
}

TEST(Utf8, APrefixEndsBetweenCharacters) {
  const std::string_view text = "a\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80z";  // 1, 2, 3, 4, 1 bytes
  const size_t ends[] = {0, 1, 3, 6, 10, 11};
  for (size_t bytes_max = 0; bytes_max <= text.size() + 1; ++bytes_max) {
    size_t expected = 0;
    for (const size_t end : ends) {
      if (end <= bytes_max) expected = end;
    }
    EXPECT_EQ(Utf8Prefix(text, bytes_max), text.substr(0, expected)) << bytes_max;
  }
}

}  // namespace
}  // namespace deka::agent
