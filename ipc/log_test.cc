#include "ipc/log.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace deka::ipc {
namespace {

std::string All(std::string_view bytes) { return Escaped(bytes, bytes.size()); }

TEST(EscapedTest, LeavesTextAsItIs) {
  for (const char* text : {"", "plain", "{\"a\":\"\xc3\xa4\xe6\xbc\xa2\xf0\x9f\x98\x80\"}"}) {
    EXPECT_EQ(All(text), text);
  }
  // Neighbours of what is escaped, and marks that reorder nothing by themselves.
  for (const char* text : {" ", "~", "\xc2\xa0", "\xe2\x80\xa7", "\xe2\x80\xaf", "\xe2\x81\xa5",
                           "\xe2\x81\xaa", "\xe2\x80\x8e", "\xe3\x80\xa8"}) {
    EXPECT_EQ(All(text), text);
  }
}

TEST(EscapedTest, IsOneLineThatReadsBack) { EXPECT_EQ(All("a\nb\rc\td\\n"), "a\\nb\\rc\\td\\\\n"); }

TEST(EscapedTest, WritesOutWhatATerminalObeys) {
  EXPECT_EQ(All("\x1b[2J"), "\\x1b[2J");
  EXPECT_EQ(All(std::string_view("\0\x1f\x7f", 3)), "\\x00\\x1f\\x7f");
  // C1: U+009B is what ESC [ is.
  EXPECT_EQ(All("\xc2\x9b"
                "2J"),
            "\\xc2\\x9b2J");
  EXPECT_EQ(All("\xc2\x80\xc2\x85\xc2\x9f"), "\\xc2\\x80\\xc2\\x85\\xc2\\x9f");
}

TEST(EscapedTest, WritesOutWhatReordersTextOrEndsALine) {
  for (const int last : {0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae}) {
    EXPECT_EQ(All(std::string{'\xe2', '\x80', static_cast<char>(last)}).substr(0, 8), "\\xe2\\x80")
        << last;
  }
  for (const int last : {0xa6, 0xa7, 0xa8, 0xa9}) {
    EXPECT_EQ(All(std::string{'\xe2', '\x81', static_cast<char>(last)}).substr(0, 8), "\\xe2\\x81")
        << last;
  }
}

TEST(EscapedTest, WritesOutWhatIsNoUtf8) {
  EXPECT_EQ(All("a\xff\xc2"), "a\\xff\\xc2");
  EXPECT_EQ(All("\xed\xa0\x80"), "\\xed\\xa0\\x80") << "a surrogate";
}

TEST(EscapedTest, IsCutBetweenCharacters) {
  EXPECT_EQ(Escaped("abc", 2), "ab");
  EXPECT_EQ(Escaped("a\xc3\xa4", 2), "a");
  EXPECT_EQ(Escaped("a\xc2\x9b", 2), "a");
}

}  // namespace
}  // namespace deka::ipc
