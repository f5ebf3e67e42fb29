#include "sdk/cpp/utf8.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <string_view>

namespace deka {
namespace {

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

}  // namespace
}  // namespace deka
