#include "ipc/json_match.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "ipc/error.h"
#include "ipc/json.h"

namespace {
thread_local size_t allocations = 0;
}  // namespace

// Counted, for NeedsNoMemoryToLookUpAPointer. Not inlined, or gcc would take them for a pair that
// does not fit.
[[gnu::noinline]] void* operator new(size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size);
}
[[gnu::noinline]] void* operator new(size_t size) {
  if (void* const memory = operator new(size, std::nothrow)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace deka::ipc {
namespace {

using std::string_literals::operator""s;

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

bool Matches(std::string_view pointer, std::optional<std::string_view> equals,
             std::string_view json) {
  EXPECT_FALSE(CheckJson(json, kDepthMax).has_value()) << json;
  const absl::StatusOr<JsonMatch> match = JsonMatch::Create(pointer, equals);
  EXPECT_TRUE(match.ok()) << match.status();
  return match.ok() && match->Matches(Exact(json).view());
}

bool Exists(std::string_view pointer, std::string_view json) {
  return Matches(pointer, std::nullopt, json);
}

// Both ways round, since they differ in what is made ready beforehand.
bool Equal(std::string_view a, std::string_view b) {
  const bool equal = Matches("", a, b);
  EXPECT_EQ(equal, Matches("", b, a)) << a << " " << b;
  return equal;
}

// The document of RFC 6901, section 5.
constexpr char kRfc[] = R"({
  "foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, "k\"l": 6,
  " ": 7, "m~n": 8
})";

TEST(PointerTest, LeadsWhereTheRfcSays) {
  EXPECT_TRUE(Matches("", kRfc, kRfc));
  EXPECT_TRUE(Matches("/foo", R"(["bar","baz"])", kRfc));
  EXPECT_TRUE(Matches("/foo/0", "\"bar\"", kRfc));
  EXPECT_TRUE(Matches("/", "0", kRfc));
  EXPECT_TRUE(Matches("/a~1b", "1", kRfc));
  EXPECT_TRUE(Matches("/c%d", "2", kRfc));
  EXPECT_TRUE(Matches("/e^f", "3", kRfc));
  EXPECT_TRUE(Matches("/g|h", "4", kRfc));
  EXPECT_TRUE(Matches("/i\\j", "5", kRfc));
  EXPECT_TRUE(Matches("/k\"l", "6", kRfc));
  EXPECT_TRUE(Matches("/ ", "7", kRfc));
  EXPECT_TRUE(Matches("/m~0n", "8", kRfc));
  EXPECT_TRUE(Matches("/~01", "1", R"({"/":0,"~1":1})")) << "~01 is ~1 and not /";
}

TEST(PointerTest, LeadsNowhere) {
  for (const char* pointer :
       {"/bar", "/foo/2", "/foo/-", "/foo/00", "/foo/01", "/foo/+1", "/foo/1 ", "/foo/1.0", "/foo/",
        "/foo/0/0", "/foo/0/", "//", "/Foo", "/fo", "/fooo", "/foo/18446744073709551616",
        "/foo/4294967296", "/foo/1x"}) {
    EXPECT_FALSE(Exists(pointer, kRfc)) << pointer;
  }
  for (const char* json :
       {"1", "\"a\"", "null", "true", "[]", "{}", R"(["a"])", R"("{\"a\":1}")"}) {
    EXPECT_FALSE(Exists("/a", json)) << json;
    EXPECT_TRUE(Exists("", json)) << json;
  }
}

TEST(PointerTest, ANumberIsAnIndexOrAKey) {
  EXPECT_TRUE(Matches("/0", "1", R"({"0":1})"));
  EXPECT_TRUE(Matches("/00", "1", R"({"00":1})"));
  EXPECT_TRUE(Matches("/-", "1", R"({"-":1})"));
  EXPECT_TRUE(Matches("/10", "\"x\"", R"([0,1,2,3,4,5,6,7,8,9,"x"])"));
  EXPECT_FALSE(Exists("/11", R"([0,1,2,3,4,5,6,7,8,9,"x"])"));
  EXPECT_TRUE(Matches("/1/0/a", "1", R"([{"a":0},[{"a":1}],{"a":2}])"));
}

TEST(PointerTest, NullIsThere) { EXPECT_TRUE(Exists("/a", R"({"a":null})")); }

TEST(PointerTest, IsNotMisledByWhatStandsInStringsAndOtherLevels) {
  EXPECT_FALSE(Exists("/b", R"({"a":{"b":1},"c":"\"b\":1"})"));
  EXPECT_FALSE(Exists("/b", R"({"a":"b"})"));
  EXPECT_TRUE(Matches("/b", "1", R"({"a":"}\\","b":1})"));
  EXPECT_TRUE(Matches("/b", "1", R"({"a":["]}\"",[{}],"\\\""],"b":1})"));
  EXPECT_TRUE(Matches("/1", "2", R"([{"a":"],[","b":[3,4]},2])"));
  EXPECT_TRUE(Matches("/b", "1", " {\n\t\"a\" : [ 1 , { } ] , \"b\" : 1 } \r\n"));
}

TEST(PointerTest, TheLastOfEqualKeysCounts) {
  EXPECT_TRUE(Matches("/a", "2", R"({"a":1,"a":2})"));
  EXPECT_FALSE(Matches("/a", "1", R"({"a":1,"a":2})"));
  EXPECT_TRUE(Matches("/a", "2", R"({"\u0061":1,"a":2})"));
  EXPECT_TRUE(Matches("/a", "2", R"({"a":1,"\u0061":2})"));
  EXPECT_FALSE(Exists("/a/b", R"({"a":{"b":1},"a":{}})"));
  EXPECT_FALSE(Exists("/a/b", R"({"a":{"b":1},"a":3})"));
  EXPECT_TRUE(Exists("/a/b", R"({"a":{},"a":{"b":1}})"));
}

TEST(PointerTest, KeysAreComparedByWhatTheySay) {
  EXPECT_TRUE(Exists("/\xc3\xa9", R"({"\u00e9":1})"));
  EXPECT_TRUE(Exists("/\xc3\xa9", R"({"\u00E9":1})"));
  EXPECT_TRUE(Exists("/\xc3\xa9", "{\"\xc3\xa9\":1}"));
  EXPECT_TRUE(Exists("/\xf0\x9f\x98\x80", R"({"\ud83d\ude00":1})"));
  EXPECT_FALSE(Exists("/\xef\xbf\xbd", R"({"\ud83d":1})")) << "U+FFFD is no lone surrogate";
  EXPECT_TRUE(Exists("/a\nb", R"({"a\nb":1})"));
  EXPECT_TRUE(Exists("/a~1b", R"({"a\/b":1})"));
  EXPECT_FALSE(Exists("/a\\u0062", R"({"ab":1})")) << "a pointer has no escapes but ~0 and ~1";
  EXPECT_TRUE(Exists("/a\\u0062", R"({"a\\u0062":1})"));
  EXPECT_FALSE(Exists("/ab", R"({"a\\u0062":1})"));
  EXPECT_TRUE(Exists("/a\0b"s, R"({"a\u0000b":1})"));
  EXPECT_FALSE(Exists("/a", R"({"a\u0000":1})"));
  EXPECT_FALSE(Exists("/a\0"s, R"({"a":1})"));
}

TEST(PointerTest, NeedsNoMemoryToLookUpAPointer) {
  const JsonMatch match = JsonMatch::Create("/a/0/long key number one", std::nullopt).value();
  const std::string json = R"({"b":[1e999,{}],"a":[{"c":"\n","long key number one":"x"}]})";
  const size_t before = allocations;
  const bool matches = match.Matches(json);
  EXPECT_EQ(allocations, before);
  EXPECT_TRUE(matches);
}

TEST(EqualTest, NumbersByValue) {
  const std::vector<std::vector<std::string>> groups = {
      {"0", "-0", "0.0", "-0.00", "0e5", "0e-999999999999999999999999", "-0E+7", "0.000e1"},
      {"1", "1.0", "10e-1", "0.1e1", "1e0", "1E+0", "1e-0", "1000e-3", "0.001e+003", "1.000"},
      {"-1", "-1.0", "-10e-1", "-0.1e1"},
      {"10", "1e1", "10.0", "0.01e3"},
      {"0.1", "1e-1", "0.10", "100e-3"},
      {"0.10000000000000000001"},
      {"9007199254740992", "9007199254740992.0", "9.007199254740992e15"},
      {"9007199254740993"},
      {"123456789012345678901234567890", "12345678901234567890123456789e1",
       "1.2345678901234567890123456789e29", "1234567890123456789012345678900e-1"},
      {"123456789012345678901234567891"},
      {"1e999", "10e998", "0.1e1000", "1" + std::string(999, '0')},
      {"1e1000"},
      {"1e-999", "10e-1000", "0." + std::string(998, '0') + "1"},
      // Powers about where they fit no integer, carries from all digits, and through a zero.
      {"1e999999999999999999", "10e999999999999999998", "0.1e1000000000000000000"},
      {"1e1000000000000000000", "10e999999999999999999", "0.1e1000000000000000001"},
      {"1e9223372036854775807", "10e9223372036854775806", "0.1e9223372036854775808"},
      {"1e100000000000000000000000", "100e99999999999999999999998", "0.01e100000000000000000000002",
       "1e0000100000000000000000000000"},
      {"1e-100000000000000000000000", "0.01e-99999999999999999999998",
       "100e-100000000000000000000002"},
      {"1e-1000000000000000000", "0.1e-999999999999999999", "10e-1000000000000000001"},
      {"1e-18446744073709551616"},
      {"1e18446744073709551616"},
      {"1e18446744073709551617"},
  };
  for (size_t i = 0; i < groups.size(); ++i) {
    for (const std::string& a : groups[i]) {
      for (size_t j = 0; j < groups.size(); ++j) {
        for (const std::string& b : groups[j]) {
          EXPECT_EQ(Equal(a, b), i == j) << a << " " << b;
        }
      }
    }
  }
}

TEST(EqualTest, StringsByWhatTheySay) {
  EXPECT_TRUE(Equal(R"("")", R"("")"));
  EXPECT_TRUE(Equal(R"("A\u00e9\u20AC\ud83d\ude00")", "\"A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\""));
  EXPECT_TRUE(Equal(R"("\/\b\f\n\r\t\"\\")", R"("/\u0008\u000C\u000a\u000D\u0009\u0022\u005c")"));
  EXPECT_TRUE(Equal(R"("\ud800")", R"("\uD800")"));
  EXPECT_FALSE(Equal(R"("\ud800")", R"("\udbff")"));
  EXPECT_FALSE(Equal(R"("\ud800")", R"("\ufffd")"));
  EXPECT_FALSE(Equal(R"("\ude00\ud83d")", R"("\ud83d\ude00")"));
  EXPECT_TRUE(Equal(R"("\ud83d\ud83d\ude00")", "\"\\ud83d\xf0\x9f\x98\x80\""));
  EXPECT_FALSE(Equal(R"("a")", R"("A")"));
  EXPECT_FALSE(Equal(R"("a")", R"("aa")"));
  EXPECT_FALSE(Equal(R"("a")", R"("a\u0000")"));
  EXPECT_FALSE(Equal(R"("\\u0061")", R"("a")"));
  EXPECT_FALSE(Equal("\"\xc3\xa9\"", "\"e\xcc\x81\"")) << "characters are not normalised";
  for (size_t size = 0; size < 70; ++size) {
    const std::string text(size, 'x');
    EXPECT_TRUE(Equal("\"" + text + "\\n\"", "\"" + text + "\\u000a\""));
    EXPECT_FALSE(Equal("\"" + text + "\"", "\"" + text + "x\""));
  }
}

TEST(EqualTest, KindsDiffer) {
  const std::vector<std::string> values = {"null", "true",   "false",    "0",   "1",
                                           "\"\"", "\"0\"",  "\"null\"", "[]",  "{}",
                                           "[0]",  "[null]", "[[]]",     "[{}]"};
  for (const std::string& a : values) {
    for (const std::string& b : values) EXPECT_EQ(Equal(a, b), a == b) << a << " " << b;
  }
}

TEST(EqualTest, ArraysInOrder) {
  EXPECT_TRUE(Equal("[1,[2,\"a\"],{}]", " [ 1.0 , [ 2 , \"\\u0061\" ] , { } ] "));
  EXPECT_FALSE(Equal("[1,2]", "[2,1]"));
  EXPECT_FALSE(Equal("[1,2]", "[1]"));
  EXPECT_FALSE(Equal("[1,2]", "[1,2,2]"));
  EXPECT_FALSE(Equal("[1,2,3]", "[1,0,3]"));
  EXPECT_FALSE(Equal("[[1],[2]]", "[[1,2],[]]"));
}

TEST(EqualTest, ObjectsInAnyOrder) {
  EXPECT_TRUE(Equal(R"({"a":1,"b":{"c":2,"d":3}})", R"({"b":{"d":3.0,"c":2e0},"\u0061":1})"));
  EXPECT_FALSE(Equal(R"({"a":1,"b":2})", R"({"a":2,"b":1})"));
  EXPECT_FALSE(Equal(R"({"a":1,"b":2})", R"({"a":1})"));
  EXPECT_FALSE(Equal(R"({"a":1,"b":2})", R"({"a":1,"c":2})"));
  EXPECT_FALSE(Equal(R"({"a":1})", "{}"));
  EXPECT_FALSE(Equal(R"({"a":{"b":1}})", R"({"a":{"b":1},"b":1})"));
  EXPECT_TRUE(Equal(R"({"\ud800":1,"\ufffd":2,"":3})", R"({"":3,"\ufffd":2,"\uD800":1})"));
  EXPECT_TRUE(Equal(R"([{"a":1},{"a":1}])", R"([{"a":1},{"a":1}])"));
  EXPECT_FALSE(Equal(R"([{"a":1},{"a":1}])", R"([{"a":1},{}])"));
}

TEST(EqualTest, TheLastOfEqualKeysCounts) {
  EXPECT_TRUE(Equal(R"({"a":1,"a":2})", R"({"a":2})"));
  EXPECT_TRUE(Equal(R"({"a":2,"a":2})", R"({"a":2})"));
  EXPECT_FALSE(Equal(R"({"a":1,"a":2})", R"({"a":1})"));
  EXPECT_FALSE(Equal(R"({"a":2,"a":1})", R"({"a":2})"));
  EXPECT_FALSE(Equal(R"({"a":2,"a":2})", R"({"a":2,"b":2})"));
  EXPECT_TRUE(Equal(R"({"a":1,"b":5,"\u0061":[3],"a":2})", R"({"b":5,"a":2})"));
  EXPECT_TRUE(Equal(R"({"a":{"b":1},"a":{"b":2}})", R"({"a":{"b":2}})"));
  EXPECT_FALSE(Equal(R"({"a":{"b":2},"a":{}})", R"({"a":{"b":2}})"));
}

TEST(EqualTest, StandsAtThePointer) {
  EXPECT_TRUE(Matches("/user/name", "\"ann\"", R"({"user":{"name":"ann","id":7}})"));
  EXPECT_FALSE(Matches("/user/name", "\"ann\"", R"({"user":{"name":"bob"},"name":"ann"})"));
  EXPECT_TRUE(Matches("/items/1", R"({"n":2})", R"({"items":[{"n":1},{"n":2}]})"));
}

TEST(CreateTest, NamesWhatIsWrongWithThePointer) {
  const auto refuse = [](std::string_view pointer) {
    const absl::Status status = JsonMatch::Create(pointer, std::nullopt).status();
    EXPECT_EQ(ReasonOf(status), Reason::kInvalidArgument) << pointer;
    return std::pair(MetadataOf(status, "offset"), std::string(status.message()));
  };
  for (const char* pointer : {"a", "a/b", "#/a", " /a", "~0"}) {
    EXPECT_EQ(refuse(pointer).first, "0") << pointer;
  }
  EXPECT_EQ(refuse("a").second,
            "the pointer does not begin with /; write one before each key or index, or leave the "
            "pointer empty for the whole value");
  EXPECT_EQ(refuse("/a~").second,
            "the pointer has a ~ at byte 2 that stands for nothing; write ~0 for ~ and ~1 for /");
  EXPECT_EQ(refuse("/a~2").first, "2");
  EXPECT_EQ(refuse("/a~0~").first, "4");
  EXPECT_EQ(refuse("/~~0").first, "1");
  EXPECT_EQ(refuse("/a/\xff").second, "the pointer is not UTF-8 at byte 3; write it in UTF-8");
}

TEST(CreateTest, NamesWhatIsWrongWithTheValue) {
  const absl::Status status = JsonMatch::Create("", "hello").status();
  EXPECT_EQ(ReasonOf(status), Reason::kInvalidArgument);
  EXPECT_EQ(MetadataOf(status, "offset"), "0");
  EXPECT_EQ(std::string(status.message()),
            "the value to compare with is not one JSON value: no value begins like this at byte 0; "
            "write JSON, a text in its double quotes");
  for (const char* json : {"", " ", "1 2", "[1,]", "{\"a\"}", "\"a", "\"\xff\"", "01"}) {
    EXPECT_EQ(ReasonOf(JsonMatch::Create("", json).status()), Reason::kInvalidArgument) << json;
  }
}

TEST(CreateTest, LimitsThePointer) {
  const std::string pointer = "/" + std::string(JsonMatch::kPointerBytesMax - 1, 'k');
  EXPECT_TRUE(Exists(pointer, "{\"" + pointer.substr(1) + "\":1}"));
  const absl::Status status = JsonMatch::Create(pointer + "k", std::nullopt).status();
  EXPECT_EQ(ReasonOf(status), Reason::kInvalidArgument);
  EXPECT_EQ(MetadataOf(status, "limit"), "1024");
  EXPECT_NE(std::string(status.message()).find("1025"), std::string::npos) << status;
}

TEST(CreateTest, LimitsTheValue) {
  const std::string text = "\"" + std::string(JsonMatch::kEqualsBytesMax - 2, 'x') + "\"";
  EXPECT_TRUE(Matches("", text, text));
  const absl::Status status = JsonMatch::Create("", text + " ").status();
  EXPECT_EQ(ReasonOf(status), Reason::kInvalidArgument);
  EXPECT_EQ(MetadataOf(status, "limit"), "65536");
  EXPECT_NE(std::string(status.message()).find("65537"), std::string::npos) << status;

  const std::string deep = std::string(256, '[') + std::string(256, ']');
  EXPECT_TRUE(Matches("", deep, deep));
  EXPECT_EQ(ReasonOf(JsonMatch::Create("", "[" + deep + "]").status()), Reason::kInvalidArgument);
}

TEST(MatchesTest, IsAsDeepAsAMessage) {
  std::string pointer, open, close;
  for (size_t i = 0; i < kDepthMax; ++i) {
    pointer += i % 2 == 0 ? "/k" : "/0";
    open += i % 2 == 0 ? R"({"x":"{","k":)" : "[";
    close.insert(close.begin(), i % 2 == 0 ? '}' : ']');
  }
  const std::string json = open + "1" + close;
  EXPECT_TRUE(Matches(pointer, "1", json));
  EXPECT_FALSE(Matches(pointer, "2", json));
  EXPECT_FALSE(Exists(pointer + "/k", json));
  EXPECT_TRUE(Equal(json, json));
  EXPECT_FALSE(Equal(json, open + "2" + close));
  EXPECT_FALSE(Exists(std::string(JsonMatch::kPointerBytesMax, '/'), json));
}

// Text that is no JSON is not read past its end, and ends.
TEST(MatchesTest, StaysWithinTextThatIsCut) {
  const std::string json = R"( {"a":[1.5e3,true,null,{"x":"\u00e9\n"}],"b":{"c":false}} )";
  const JsonMatch whole = JsonMatch::Create("", json).value();
  const JsonMatch part = JsonMatch::Create("/a/3/x", std::nullopt).value();
  EXPECT_TRUE(whole.Matches(json));
  for (size_t size = 0; size < json.size(); ++size) {
    for (const char* end : {"", "}", "]", ",", ":", "\"", "\\", "{", "["}) {
      const Exact text(json.substr(0, size) + end);
      whole.Matches(text.view());
      part.Matches(text.view());
    }
  }
}

// --- random values, which know themselves whether they are equal
// -----------------------------------

// Text is UTF-16 here, where a lone surrogate is nothing special, and a number is the integer
// `mantissa` times ten to the `exponent`, or to the `exponent` and `far` times 10^20.
struct Node {
  enum class Kind { kNull, kFalse, kTrue, kNumber, kString, kArray, kObject };
  Kind kind = Kind::kNull;
  int64_t mantissa = 0;
  int exponent = 0;
  int far = 0;
  std::u16string text;
  std::vector<Node> values;
  std::vector<std::u16string> keys;  // of `values`, if it is an object; each once
};

const Node* MemberOf(const Node& object, const std::u16string& key) {
  for (size_t i = 0; i < object.keys.size(); ++i) {
    if (object.keys[i] == key) return &object.values[i];
  }
  return nullptr;
}

int64_t Scaled(const Node& number) {
  int64_t scaled = number.mantissa;
  for (int i = -6; i < number.exponent; ++i) scaled *= 10;
  return scaled;
}

bool Same(const Node& a, const Node& b) {
  if (a.kind != b.kind || a.values.size() != b.values.size()) return false;
  switch (a.kind) {
    case Node::Kind::kNumber:
      return Scaled(a) == Scaled(b) && (a.far == b.far || a.mantissa == 0);
    case Node::Kind::kString:
      return a.text == b.text;
    case Node::Kind::kArray:
      for (size_t i = 0; i < a.values.size(); ++i) {
        if (!Same(a.values[i], b.values[i])) return false;
      }
      return true;
    case Node::Kind::kObject:
      for (size_t i = 0; i < a.values.size(); ++i) {
        const Node* const member = MemberOf(b, a.keys[i]);
        if (member == nullptr || !Same(a.values[i], *member)) return false;
      }
      return true;
    default:
      return true;
  }
}

std::string Padded(int64_t number, size_t width) {
  const std::string digits = std::to_string(number);
  return std::string(width - std::min(width, digits.size()), '0') + digits;
}

class Random {
 public:
  explicit Random(uint32_t seed) : bits_(seed) {}

  size_t Below(size_t count) { return bits_() % count; }
  bool OneIn(size_t count) { return Below(count) == 0; }

  std::u16string MakeText() {
    static constexpr char16_t kUnits[] = u"aab01-/~\\\"\n\u00e9\u20ac\uffff\uffff\uffff\uffff";
    static constexpr char16_t kSurrogates[] = {0xD83D, 0xDE00, 0xDBFF, 0xDFFF};
    std::u16string text;
    for (size_t i = Below(4); i > 0; --i) {
      char16_t unit = kUnits[Below(std::size(kUnits))];  // the last one is NUL
      if (unit == 0xFFFF) unit = kSurrogates[Below(4)];
      text += unit;
    }
    return text;
  }

  Node MakeNode(size_t depth) {
    Node node;
    node.kind = static_cast<Node::Kind>(Below(depth > 0 ? 9 : 5) % 7);
    if (depth > 0 && OneIn(3)) node.kind = Node::Kind::kObject;
    switch (node.kind) {
      case Node::Kind::kNumber:
        node.mantissa = static_cast<int64_t>(Below(OneIn(2) ? 3 : 30000)) * (OneIn(3) ? -1 : 1);
        node.exponent = static_cast<int>(Below(OneIn(2) ? 3 : 13)) - 6;
        if (OneIn(4)) node.far = OneIn(2) ? 1 : -1;
        break;
      case Node::Kind::kString:
        node.text = MakeText();
        break;
      case Node::Kind::kArray:
        for (size_t i = Below(4); i > 0; --i) node.values.push_back(MakeNode(depth - 1));
        break;
      case Node::Kind::kObject:
        for (size_t i = Below(6); i > 0; --i) {
          std::u16string key = MakeText();
          if (MemberOf(node, key) != nullptr) continue;
          node.keys.push_back(std::move(key));
          node.values.push_back(MakeNode(depth - 1));
        }
        break;
      default:
        break;
    }
    return node;
  }

  // `node` with one small thing in it changed, mostly.
  Node Changed(Node node) {
    if (node.values.empty() || OneIn(4)) return MakeNode(1);
    const size_t i = Below(node.values.size());
    const bool object = node.kind == Node::Kind::kObject;
    if (OneIn(3)) {
      node.values.erase(node.values.begin() + static_cast<ptrdiff_t>(i));
      if (object) node.keys.erase(node.keys.begin() + static_cast<ptrdiff_t>(i));
    } else if (!object && OneIn(3)) {
      node.values.push_back(MakeNode(0));
    } else if (object && OneIn(3)) {
      const std::u16string key = MakeText();
      if (MemberOf(node, key) == nullptr) node.keys[i] = key;
    } else {
      node.values[i] = Changed(node.values[i]);
    }
    return node;
  }

  std::string Print(const Node& node) {
    std::string json = Space();
    switch (node.kind) {
      case Node::Kind::kNull:
        json += "null";
        break;
      case Node::Kind::kFalse:
        json += "false";
        break;
      case Node::Kind::kTrue:
        json += "true";
        break;
      case Node::Kind::kNumber:
        json += PrintNumber(node);
        break;
      case Node::Kind::kString:
        json += PrintText(node.text);
        break;
      case Node::Kind::kArray: {
        json += "[" + Space();
        for (size_t i = 0; i < node.values.size(); ++i) {
          json += (i > 0 ? "," : "") + Print(node.values[i]);
        }
        json += "]";
        break;
      }
      case Node::Kind::kObject: {
        std::vector<std::string> members;
        std::vector<size_t> order(node.keys.size());
        for (size_t i = 0; i < order.size(); ++i) order[i] = i;
        std::shuffle(order.begin(), order.end(), bits_);
        for (const size_t i : order) {
          // A key that counts for nothing, since the same one comes later.
          while (OneIn(5)) {
            const Node other = OneIn(2) ? Changed(node.values[i]) : node.values[i];
            members.insert(members.begin() + static_cast<ptrdiff_t>(Below(members.size() + 1)),
                           PrintMember(node.keys[i], other));
          }
          members.push_back(PrintMember(node.keys[i], node.values[i]));
        }
        json += "{" + Space();
        for (size_t i = 0; i < members.size(); ++i) json += (i > 0 ? "," : "") + members[i];
        json += "}";
        break;
      }
    }
    return json + Space();
  }

 private:
  std::string Space() {
    static constexpr std::string_view kSpaces[] = {"", "", "", " ", "\n", "\t\r ", "  "};
    return std::string(kSpaces[Below(std::size(kSpaces))]);
  }

  std::string PrintMember(const std::u16string& key, const Node& value) {
    return Space() + PrintText(key) + Space() + ":" + Print(value);
  }

  std::string PrintNumber(const Node& node) {
    std::string digits = std::to_string(std::abs(node.mantissa));
    int exponent = node.exponent;
    for (size_t zeros = Below(3); zeros > 0 && digits != "0"; --zeros) {
      digits += '0';
      --exponent;
    }
    if (const size_t behind_point = Below(5); behind_point > 0) {
      if (digits.size() <= behind_point) digits.insert(0, behind_point + 1 - digits.size(), '0');
      digits.insert(digits.size() - behind_point, ".");
      exponent += static_cast<int>(behind_point);
    }
    const bool negative = node.mantissa < 0 || (node.mantissa == 0 && OneIn(2));
    std::string number = (negative ? "-" : "") + digits;
    if (node.far == 0 && exponent == 0 && OneIn(2)) return number;
    number += OneIn(2) ? 'e' : 'E';
    const int sign = node.far != 0 ? node.far : exponent < 0 ? -1 : 1;
    if (sign < 0) number += '-';
    if (sign > 0 && OneIn(2)) number += '+';
    number += std::string(Below(3), '0');
    const int more = sign * exponent;
    if (node.far == 0) return number + std::to_string(more);
    return number +
           (more < 0 ? std::string(17, '9') + Padded(1000 + more, 3) : "1" + Padded(more, 20));
  }

  std::string Escaped(char16_t unit) {
    static constexpr char kDigits[][17] = {"0123456789abcdef", "0123456789ABCDEF"};
    std::string escape = "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) escape += kDigits[Below(2)][unit >> shift & 15];
    return escape;
  }

  std::string PrintText(const std::u16string& text) {
    std::string json = "\"";
    for (size_t i = 0; i < text.size(); ++i) {
      const char16_t unit = text[i];
      const bool pair =
          (unit & 0xFC00) == 0xD800 && i + 1 < text.size() && (text[i + 1] & 0xFC00) == 0xDC00;
      if (pair && OneIn(2)) {
        json += text[i + 1] == 0xDE00 && unit == 0xD83D   ? "\xf0\x9f\x98\x80"
                : text[i + 1] == 0xDFFF && unit == 0xD83D ? "\xf0\x9f\x9f\xbf"
                : text[i + 1] == 0xDE00                   ? "\xf4\x8f\xb8\x80"
                                                          : "\xf4\x8f\xbf\xbf";
        ++i;
      } else if (pair) {
        json += Escaped(unit) + Escaped(text[++i]);
      } else if ((unit & 0xF800) == 0xD800 || unit == 0 || OneIn(3)) {
        json += Escaped(unit);
      } else if (unit == '\n') {
        json += "\\n";
      } else if (unit == '"' || unit == '\\' || (unit == '/' && OneIn(2))) {
        json += {'\\', static_cast<char>(unit)};
      } else {
        json += unit == 0xE9     ? "\xc3\xa9"
                : unit == 0x20AC ? "\xe2\x82\xac"
                                 : std::string(1, char(unit));
      }
    }
    return json + "\"";
  }

  std::mt19937 bits_;
};

// `key` as a step of a pointer; unset if it has surrogates, which this test writes in no pointer.
std::optional<std::string> PointerStep(const std::u16string& key) {
  std::string step = "/";
  for (const char16_t unit : key) {
    if ((unit & 0xF800) == 0xD800) return std::nullopt;
    step += unit == '~'      ? "~0"
            : unit == '/'    ? "~1"
            : unit == 0xE9   ? "\xc3\xa9"
            : unit == 0x20AC ? "\xe2\x82\xac"
                             : std::string(1, static_cast<char>(unit));
  }
  return step;
}

TEST(RandomTest, AgreesWithValuesThatKnowThemselves) {
  Random random(1);
  size_t found = 0, nowhere = 0, equal = 0, different = 0;
  for (int round = 0; round < 5000; ++round) {
    const Node root = random.MakeNode(4);
    const Node* there = &root;
    std::string pointer;
    while (!random.OneIn(4)) {
      std::u16string key = random.MakeText();
      if (there != nullptr && !there->values.empty() && !random.OneIn(8)) {
        const size_t i = random.Below(there->values.size());
        const std::string index = std::to_string(i);
        key = there->keys.empty() ? std::u16string(index.begin(), index.end()) : there->keys[i];
      }
      const std::optional<std::string> step = PointerStep(key);
      if (!step.has_value()) continue;
      pointer += *step;
      const Node* next = nullptr;
      for (size_t i = 0; there != nullptr && i < there->values.size(); ++i) {
        const std::string index = std::to_string(i);
        const bool here = there->kind == Node::Kind::kArray
                              ? std::u16string(index.begin(), index.end()) == key
                              : there->keys[i] == key;
        if (here) next = &there->values[i];
      }
      there = next;
    }

    const std::string json = random.Print(root);
    ASSERT_FALSE(CheckJson(json, kDepthMax).has_value()) << json;
    ASSERT_EQ(Exists(pointer, json), there != nullptr) << pointer << "\n" << json;
    ++(there != nullptr ? found : nowhere);

    const Node value = there == nullptr  ? random.MakeNode(1)
                       : random.OneIn(2) ? *there
                                         : random.Changed(*there);
    const std::string equals = random.Print(value);
    const bool same = there != nullptr && Same(*there, value);
    ASSERT_EQ(Matches(pointer, equals, json), same) << pointer << "\n" << equals << "\n" << json;
    ++(same ? equal : different);
  }
  for (const size_t count : {found, nowhere, equal, different}) EXPECT_GT(count, 1000u);
}

}  // namespace
}  // namespace deka::ipc
