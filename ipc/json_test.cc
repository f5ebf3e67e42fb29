#include "ipc/json.h"

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "ipc/error.h"

namespace deka::ipc {
namespace {

constexpr size_t kDepthMax = 256;

// A copy that ends where its memory ends: a sanitizer sees a read behind it.
class Exact {
 public:
  explicit Exact(std::string_view text) : bytes_(new char[text.size()]), size_(text.size()) {
    std::memcpy(bytes_.get(), text.data(), size_);
  }
  std::string_view view() const { return {bytes_.get(), size_}; }

 private:
  std::unique_ptr<char[]> bytes_;
  size_t size_;
};

std::optional<JsonError> Check(std::string_view json, size_t depth_max = kDepthMax) {
  return CheckJson(Exact(json).view(), depth_max);
}

bool IsJson(std::string_view json) { return !Check(json).has_value(); }

std::string Nested(size_t levels) { return std::string(levels, '[') + std::string(levels, ']'); }

TEST(CheckJsonTest, TakesEveryKindOfValue) {
  for (const char* json : {"null",
                           "true",
                           "false",
                           "0",
                           "-0",
                           "12",
                           "-1.5e-7",
                           "1E+2",
                           "\"\"",
                           "\"a\"",
                           "[]",
                           "{}",
                           "[1,2]",
                           "[[],{}]",
                           R"({"a":1,"b":[null,{"c":"d"}]})",
                           R"("\"\\\/\b\f\n\r\t\u00e9")",
                           " \t\r\n1 \t\r\n",
                           "[ 1 , 2 ]",
                           "{ \"a\" : 1 }",
                           R"({"":0})",
                           R"({"a":1,"a":2})"}) {
    EXPECT_TRUE(IsJson(json)) << json;
  }
}

TEST(CheckJsonTest, TakesWhatAParserMayNotConvert) {
  for (const char* json :
       {"1e20", "1e999", "-1e-999", "123456789012345678901234567890", "0.1234567890123456789012345",
        R"("\ud800")", R"("\udc00\ud800")", R"(["\uD83D\uDE00"])"}) {
    EXPECT_TRUE(IsJson(json)) << json;
  }
}

TEST(CheckJsonTest, TakesUtf8OfEveryLength) {
  for (const char* json : {"\"\x7f\"", "\"\xc2\x80\"", "\"\xdf\xbf\"", "\"\xe0\xa0\x80\"",
                           "\"\xed\x9f\xbf\"", "\"\xee\x80\x80\"", "\"\xef\xbf\xbf\"",
                           "\"\xf0\x90\x80\x80\"", "\"\xf4\x8f\xbf\xbf\"", "{\"\xc3\xa9\":1}"}) {
    EXPECT_TRUE(IsJson(json)) << json;
  }
}

struct Refusal {
  std::string json;
  size_t offset;
  std::string_view what;
};

TEST(CheckJsonTest, NamesTheFirstByteThatCannotBe) {
  const std::vector<Refusal> refusals = {
      {"", 0, "no value"},
      {" \n ", 3, "no value"},
      {"undefined", 0, "no value begins"},
      {"nul", 3, "ends in the middle"},
      {"nulL", 0, "no value begins"},
      {"truefalse", 4, "more text"},
      {"1 2", 2, "more text"},
      {"{} x", 3, "more text"},
      {"\xef\xbb\xbf{}", 0, "no value begins"},
      {std::string("\0", 1), 0, "NUL"},
      {std::string("[1,\0]", 5), 3, "NUL"},
      {std::string("\"a\0b\"", 5), 2, "NUL"},
      {"[", 1, "array is not closed"},
      {"[1", 2, "array is not closed"},
      {"[1,", 3, "array is not closed"},
      {"[1,]", 3, "comma stands before"},
      {"[,1]", 1, "no value begins"},
      {"[1 2]", 3, "end of the array"},
      {"[1}", 2, "end of the array"},
      {"{", 1, "object is not closed"},
      {"{\"a\"", 4, "object is not closed"},
      {"{\"a\":", 5, "object is not closed"},
      {"{\"a\":1", 6, "object is not closed"},
      {"{\"a\":1,", 7, "object is not closed"},
      {"{\"a\":1,}", 7, "comma stands before"},
      {"{a:1}", 1, "key in double quotes"},
      {"{1:1}", 1, "key in double quotes"},
      {"{\"a\" 1}", 5, "colon"},
      {"{\"a\":1 \"b\":2}", 7, "end of the object"},
      {"{\"a\":1]", 6, "end of the object"},
      {"{\"a\":}", 5, "no value begins"},
      {"]", 0, "no value begins"},
      {"'a'", 0, "no value begins"},
      {"\"abc", 4, "string is not closed"},
      {"\"abc\\", 5, "string is not closed"},
      {"\"abc\\u12", 8, "string is not closed"},
      {"\"a\nb\"", 2, "control character"},
      {"\"a\tb\"", 2, "control character"},
      {"\"a\x1f\"", 2, "control character"},
      {"\"\\x\"", 2, "escape"},
      {"\"\\u00g0\"", 5, "hexadecimal"},
      {"01", 1, "leading zero"},
      {"-", 1, "middle of a number"},
      {"-x", 1, "digit"},
      {"+1", 0, "no value begins"},
      {".5", 0, "no value begins"},
      {"1.", 2, "middle of a number"},
      {"1.e5", 2, "digit"},
      {"1e", 2, "middle of a number"},
      {"1e+", 3, "middle of a number"},
      {"[1e+]", 4, "digit"},
      {"0x10", 1, "more text"},
      {"NaN", 0, "no value begins"},
      {"-Infinity", 1, "digit"},
      {"[\xc3\xa9]", 1, "no value begins"},
      {"// a", 0, "no value begins"},
      {"\"\x80\"", 1, "UTF-8"},
      {"\"a\xc0\x80\"", 2, "UTF-8"},
      {"\"\xc3\"", 1, "UTF-8"},
      {"\"\xe0\x9f\x80\"", 1, "UTF-8"},
      {"\"\xed\xa0\x80\"", 1, "UTF-8"},
      {"\"\xc3\xa9\xf0\x8f\x80\x80\"", 3, "UTF-8"},
      {"\"\xf4\x90\x80\x80\"", 1, "UTF-8"},
      {"\"\xf5\x80\x80\x80\"", 1, "UTF-8"},
      {"\"\xff\"", 1, "UTF-8"},
      {"{\"\xff\":1}", 2, "UTF-8"},
  };
  for (const Refusal& refusal : refusals) {
    const std::optional<JsonError> error = Check(refusal.json);
    ASSERT_TRUE(error.has_value()) << refusal.json;
    EXPECT_EQ(error->offset, refusal.offset) << refusal.json << ": " << error->what;
    EXPECT_NE(error->what.find(refusal.what), std::string_view::npos)
        << refusal.json << ": " << error->what;
  }
}

TEST(CheckJsonTest, LimitsDepth) {
  EXPECT_TRUE(IsJson(Nested(256)));
  const std::optional<JsonError> error = Check(Nested(257));
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->offset, 256u);
  EXPECT_NE(error->what.find("nested"), std::string_view::npos);
  EXPECT_TRUE(Check(Nested(10000)).has_value());

  EXPECT_FALSE(Check("7", 0).has_value());
  EXPECT_TRUE(Check("[]", 0).has_value());
  EXPECT_FALSE(Check("[[],[],{}]", 2).has_value()) << "depth is not the number of containers";
  EXPECT_FALSE(Check(Nested(10000), 10000).has_value());
}

TEST(CheckJsonTest, RemembersWhatIsOpenAcrossManyLevels) {
  for (const size_t levels : {63, 64, 65, 127, 128, 129, 200}) {
    std::string json, closing;
    for (size_t i = 0; i < levels; ++i) {
      const bool object = i % 3 == 0;
      json += object ? "{\"k\":" : "[";
      closing.insert(closing.begin(), object ? '}' : ']');
    }
    const std::string open = json + "1";
    EXPECT_TRUE(IsJson(open + closing)) << levels;
    for (size_t i = 0; i < levels; ++i) {
      std::string wrong = closing;
      wrong[i] = wrong[i] == ']' ? '}' : ']';
      const std::optional<JsonError> error = Check(open + wrong);
      ASSERT_TRUE(error.has_value()) << levels << " " << i;
      EXPECT_EQ(error->offset, open.size() + i);
    }
  }
}

// Strings and white space are read in blocks of 16: each place in a block must count.
TEST(CheckJsonTest, FindsTheEndOfAStringAtEveryPlaceOfABlock) {
  for (size_t before = 0; before < 40; ++before) {
    const std::string plain(before, 'x');
    EXPECT_TRUE(IsJson("\"" + plain + "\""));
    EXPECT_TRUE(IsJson("\"" + plain + "\\n" + plain + "\""));
    EXPECT_TRUE(IsJson("\"" + plain + "\xc3\xa9\""));
    const std::string space(before, ' ');
    EXPECT_TRUE(IsJson(space + "[" + space + "1" + space + "]" + space));

    std::optional<JsonError> error = Check("\"" + plain + "\x01\"");
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(error->offset, before + 1);
    error = Check("\"" + plain + "\xff\"");
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(error->offset, before + 1);
    error = Check("\"" + plain);
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(error->offset, before + 1);
    error = Check(space + "\v");
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(error->offset, before);
  }
}

TEST(CheckJsonTest, EveryBeginningOfAValueIsIncomplete) {
  const std::string json = R"({"a":[1.5e3,true,null,"x\u00e9\n)"
                           "\xf0\x9f\x98\x80"
                           R"("],"b":{"c":false}})";
  ASSERT_TRUE(IsJson(json));
  for (size_t size = 0; size < json.size(); ++size) {
    const std::optional<JsonError> error = Check(json.substr(0, size));
    ASSERT_TRUE(error.has_value()) << size;
    EXPECT_LE(error->offset, size);
  }
}

std::string_view Member(std::string_view json, std::string_view key) {
  JsonMember members[] = {{.key = key}};
  EXPECT_FALSE(CheckJson(json, kDepthMax, members).has_value()) << json;
  return members[0].value;
}

TEST(MembersTest, AreFoundAsTheyStand) {
  EXPECT_EQ(Member(R"({"cmd":"x","msg":{"cmd":1}})", "cmd"), "\"x\"");
  EXPECT_EQ(Member(R"({"cmd":"x","msg":{"cmd":1}})", "msg"), "{\"cmd\":1}");
  EXPECT_EQ(Member(" { \"a\" :  [ 1 , 2 ]  , \"b\" : 3 } ", "a"), "[ 1 , 2 ]");
  EXPECT_EQ(Member(" { \"a\" :  [ 1 , 2 ]  , \"b\" : 3 } ", "b"), "3");
  EXPECT_EQ(Member(R"({"a":1e999})", "a"), "1e999");
  EXPECT_EQ(Member(R"({"a":{}})", "a"), "{}");
  EXPECT_EQ(Member(R"({"":null})", ""), "null");
}

TEST(MembersTest, AreOnlyThoseOfTheOutermostObject) {
  EXPECT_EQ(Member(R"({"x":{"cmd":1}})", "cmd"), "");
  EXPECT_EQ(Member(R"([{"cmd":1}])", "cmd"), "");
  EXPECT_EQ(Member(R"("cmd")", "cmd"), "");
  EXPECT_EQ(Member(R"({"x":"cmd"})", "cmd"), "");
  EXPECT_EQ(Member(R"({"x":[{"cmd":1}],"cmd":2})", "cmd"), "2");
  EXPECT_EQ(Member(R"({"cmd2":1,"cm":2})", "cmd"), "");
}

TEST(MembersTest, TheLastOfEqualKeysCounts) {
  EXPECT_EQ(Member(R"({"a":1,"b":2,"a":[3]})", "a"), "[3]");
  EXPECT_EQ(Member(R"({"a":{"a":1},"a":{"a":2}})", "a"), R"({"a":2})");
  EXPECT_EQ(Member(R"({"a":1,"\u0061":2})", "a"), "2");
}

TEST(MembersTest, KeysAreComparedDecoded) {
  EXPECT_EQ(Member(R"({"\u0063md":1})", "cmd"), "1");
  EXPECT_EQ(Member(R"({"\u0063\u006D\u0064":1})", "cmd"), "1");
  EXPECT_EQ(Member(R"({"\\u0063md":1})", "cmd"), "");
  EXPECT_EQ(Member(R"({"a\/b":1})", "a/b"), "1");
  EXPECT_EQ(Member(R"({"\ud83d\ude00":1})", "\xf0\x9f\x98\x80"), "1");
  const std::string long_key(1000, 'k');
  EXPECT_EQ(Member("{\"" + long_key + "\\n\":1}", "cmd"), "");
  EXPECT_EQ(Member("{\"\\u006b" + long_key + "\":1}", long_key.substr(0, 60)), "");
  EXPECT_EQ(Member("{\"\\u006b" + long_key.substr(0, 59) + "\":1}", long_key.substr(0, 60)), "1");
}

TEST(MembersTest, AreUnsetByTheNextCheck) {
  JsonMember members[] = {{.key = "a"}, {.key = "b"}};
  ASSERT_FALSE(CheckJson(R"({"a":1,"b":2})", kDepthMax, members).has_value());
  EXPECT_EQ(members[0].value, "1");
  EXPECT_EQ(members[1].value, "2");
  ASSERT_FALSE(CheckJson(R"({"b":3})", kDepthMax, members).has_value());
  EXPECT_EQ(members[0].value, "");
  EXPECT_EQ(members[1].value, "3");
}

std::optional<std::string> Decode(std::string_view json, size_t room = 64) {
  std::string buffer(room, '\0');
  const std::optional<std::string_view> text = DecodeJsonString(json, buffer);
  if (!text.has_value()) return std::nullopt;
  return std::string(*text);
}

TEST(DecodeJsonStringTest, DecodesEscapes) {
  EXPECT_EQ(Decode(R"("")"), "");
  EXPECT_EQ(Decode(R"("plain")"), "plain");
  EXPECT_EQ(Decode(R"("\"\\\/\b\f\n\r\t")"), "\"\\/\b\f\n\r\t");
  EXPECT_EQ(Decode(R"("\u0041\u00e9\u20AC")"), "A\xc3\xa9\xe2\x82\xac");
  EXPECT_EQ(Decode(R"("\ud83d\ude00")"), "\xf0\x9f\x98\x80");
  EXPECT_EQ(Decode(R"("\u0000")"), std::string(1, '\0'));
  EXPECT_EQ(Decode("\"\xc3\xa9\""), "\xc3\xa9");
}

TEST(DecodeJsonStringTest, ALoneSurrogateBecomesTheReplacementCharacter) {
  EXPECT_EQ(Decode(R"("\ud800")"), "\xef\xbf\xbd");
  EXPECT_EQ(Decode(R"("\udc00x")"), "\xef\xbf\xbdx");
  EXPECT_EQ(Decode(R"("\ud800\u0041")"),
            "\xef\xbf\xbd"
            "A");
  EXPECT_EQ(Decode(R"("\ud800\ud83d\ude00")"), "\xef\xbf\xbd\xf0\x9f\x98\x80");
}

TEST(DecodeJsonStringTest, RefusesWhatIsNoString) {
  EXPECT_EQ(Decode("1"), std::nullopt);
  EXPECT_EQ(Decode(""), std::nullopt);
  EXPECT_EQ(Decode("\""), std::nullopt);
  EXPECT_EQ(Decode("\"\\x\""), std::nullopt);
  EXPECT_EQ(Decode("\"\\u12\""), std::nullopt);
}

TEST(DecodeJsonStringTest, DecodesWhatFits) {
  EXPECT_EQ(Decode("\"abc\"", 3), "abc");
  EXPECT_EQ(Decode("\"abcd\"", 3), "abc");
  EXPECT_EQ(Decode("\"abcd\"", 0), "");
  EXPECT_EQ(Decode(R"("a\u00e9")", 3), "a\xc3\xa9");
  EXPECT_EQ(Decode(R"("a\u00e9b")", 2), "a");
  EXPECT_EQ(Decode("\"a\xc3\xa9"
                   "b\"",
                   2),
            "a");
}

TEST(TrimJsonTest, TakesWhiteSpaceAway) {
  EXPECT_EQ(TrimJson(" \t\r\n[ 1 ]\n\r\t "), "[ 1 ]");
  EXPECT_EQ(TrimJson("1"), "1");
  EXPECT_EQ(TrimJson(" \n"), "");
  EXPECT_EQ(TrimJson("\v1"), "\v1");
}

TEST(BreaksToSpacesTest, LeavesEverythingElse) {
  std::string json = "\n{\r\n  \"a\": \"x\\n\",\n\t\"b\": 1\n}\r\n";
  BreaksToSpaces(json);
  EXPECT_EQ(json, " {    \"a\": \"x\\n\", \t\"b\": 1 }  ");
  std::string empty;
  BreaksToSpaces(empty);
  EXPECT_EQ(empty, "");
}

TEST(JsonErrorTest, SaysWhichByteAndWhatIsExpected) {
  const std::optional<JsonError> error = CheckJson("{\"a\":nope}", kDepthMax);
  ASSERT_TRUE(error.has_value());
  const absl::Status status = JsonErrorToStatus(*error, "The message");
  EXPECT_EQ(ReasonOf(status), Reason::kInvalidJson);
  EXPECT_EQ(MetadataOf(status, "offset"), "5");
  EXPECT_EQ(std::string(status.message()),
            "The message is not acceptable JSON: no value begins like this at byte 5. One JSON "
            "value in UTF-8 is expected.");
}

}  // namespace
}  // namespace deka::ipc
