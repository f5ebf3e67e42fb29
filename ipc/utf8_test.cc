#include "ipc/utf8.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>

namespace deka::ipc {
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

TEST(Utf8, TextWithWhatIsNoneIsNotUtf8) {
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

TEST(Utf8, KnowsTheSizeOfACharacter) {
  EXPECT_EQ(Utf8CharacterSize("a"), 1u);
  EXPECT_EQ(Utf8CharacterSize(std::string_view("\0", 1)), 1u);
  EXPECT_EQ(Utf8CharacterSize("\x7f"), 1u);
  EXPECT_EQ(Utf8CharacterSize("\xC2\x80"), 2u);
  EXPECT_EQ(Utf8CharacterSize("ßx"), 2u);
  EXPECT_EQ(Utf8CharacterSize("€x"), 3u);
  EXPECT_EQ(Utf8CharacterSize("\xED\x9F\xBF"), 3u);      // U+D7FF
  EXPECT_EQ(Utf8CharacterSize("\xEE\x80\x80"), 3u);      // U+E000
  EXPECT_EQ(Utf8CharacterSize("\xF0\x90\x80\x80"), 4u);  // U+10000
  EXPECT_EQ(Utf8CharacterSize("\xF4\x8F\xBF\xBF"), 4u);  // U+10FFFF
}

TEST(Utf8, RefusesWhatIsNone) {
  for (const std::string_view bad : {
           "",
           "\x80",
           "\xBF",
           "\xC0\x80",
           "\xC1\xBF",      // overlong
           "\xE0\x9F\xBF",  // overlong
           "\xED\xA0\x80",
           "\xED\xBF\xBF",      // surrogates
           "\xF0\x8F\xBF\xBF",  // overlong
           "\xF4\x90\x80\x80",  // beyond U+10FFFF
           "\xF5\x80\x80\x80",
           "\xFF",
           "\xC2",
           "\xE2\x82",
           "\xF0\x9F\x98",  // cut short
           "\xC2 ",
           "\xE2\x82 ",
           "\xF0\x9F\x98 ",
       }) {
    EXPECT_EQ(Utf8CharacterSize(bad), 0u) << testing::PrintToString(bad);
  }
}

TEST(Utf8, FindsTheFirstBadByteAtEveryOffset) {
  const std::string good = "plain, ß, €, \xF0\x9F\x98\x80 and sixteen more bytes..";
  EXPECT_EQ(FirstBadByte(good), std::nullopt);
  EXPECT_EQ(FirstBadByte(""), std::nullopt);
  for (size_t at = 0; at <= good.size(); ++at) {
    const bool between = at == good.size() || (good[at] & 0xC0) != 0x80;
    if (between) {
      std::string bad = good;
      bad.insert(at, "\xFF");
      EXPECT_EQ(FirstBadByte(bad), at);
    }
  }
  EXPECT_EQ(FirstBadByte("12345678\xE2\x82"), 8u);
}

TEST(Utf8PrefixTest, CutsBetweenCharacters) {
  const std::string text = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z";
  const size_t expected[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 11, 11};
  for (size_t bytes_max = 0; bytes_max < std::size(expected); ++bytes_max) {
    EXPECT_EQ(Utf8Prefix(text, bytes_max).size(), expected[bytes_max]) << bytes_max;
  }
}

TEST(Utf8PrefixTest, BytesThatAreNoCharacterStandAlone) {
  const std::string text = "\x80\x80\xc3\xff\xe2\x82";
  for (size_t bytes_max = 0; bytes_max <= text.size() + 1; ++bytes_max) {
    EXPECT_EQ(Utf8Prefix(text, bytes_max).size(), std::min(bytes_max, text.size())) << bytes_max;
  }
}

}  // namespace
}  // namespace deka::ipc
