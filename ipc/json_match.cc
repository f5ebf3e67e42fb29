#include "ipc/json_match.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <compare>
#include <cstdint>
#include <cstring>
#include <utility>

#include "ipc/error.h"
#include "ipc/json.h"
#include "ipc/json_scan.h"
#include "ipc/utf8.h"

namespace deka::ipc {
namespace {

// Reads valid JSON from front to back. Text that is not valid ends it at the end at the latest.
//
//   if (reader.Peek() is { or [) {
//     reader.Open();
//     while (reader.Next()) {
//       reader.Key() if it is an object, then the value: Scalar(), Skip(), or Open() again
class Reader {
 public:
  explicit Reader(std::string_view json) : p_(json.data()), end_(p_ + json.size()) {
    p_ = SkipJsonSpace(p_, end_);
  }

  // What the value begins with; NUL if there is none.
  char Peek() const { return p_ < end_ ? *p_ : '\0'; }

  void Open() { ++p_; }

  // Goes to the next element or key of the innermost container; false: behind its end.
  bool Next() {
    p_ = SkipJsonSpace(p_, end_);
    if (Peek() == ',') p_ = SkipJsonSpace(p_ + 1, end_);
    if (p_ == end_) return false;
    if (*p_ != ']' && *p_ != '}') return true;
    ++p_;
    return false;
  }

  // A key with its quotes, and goes to its value.
  std::string_view Key() {
    const std::string_view key = Scalar();
    p_ = SkipJsonSpace(p_, end_);
    if (Peek() == ':') p_ = SkipJsonSpace(p_ + 1, end_);
    return key;
  }

  // A string with its quotes, a number or a literal.
  std::string_view Scalar() {
    const char* const begin = p_;
    if (Peek() == '"') {
      SkipString();
    } else if (p_ < end_) {
      do {
        ++p_;
      } while (p_ < end_ && !EndsScalar(*p_));
    }
    return {begin, static_cast<size_t>(p_ - begin)};
  }

  void Skip() {
    if (Peek() != '{' && Peek() != '[') {
      Scalar();
      return;
    }
    size_t depth = 0;
    do {
      switch (Peek()) {
        case '"':
          SkipString();
          continue;
        case '{':
        case '[':
          ++depth;
          break;
        case '}':
        case ']':
          --depth;
          break;
        default:
          break;
      }
      ++p_;
    } while (depth > 0 && p_ < end_);
  }

 private:
  static bool EndsScalar(char c) { return c == ',' || c == ']' || c == '}' || IsSpace(c); }

  void SkipString() {
    ++p_;
    for (unsigned high_bits = 0;;) {
      p_ = SkipPlain(p_, p_, end_, high_bits);
      if (p_ == end_) return;
      if (*p_ == '"') break;
      p_ += std::min<ptrdiff_t>(*p_ == '\\' ? 2 : 1, end_ - p_);
    }
    ++p_;
  }

  const char* p_;
  const char* const end_;
};

// Gives what the string `json`, with its quotes, says to `take`, in pieces of WTF-8, until that
// answers false.
template <typename Take>
void Decode(std::string_view json, Take take) {
  if (json.size() < 2) return;
  const char* p = json.data() + 1;
  const char* const end = json.data() + json.size() - 1;
  while (p < end) {
    char bytes[4];
    std::string_view piece;
    if (*p == '\\') {
      const std::optional<char32_t> character = TakeEscape(p, end);
      if (!character.has_value()) return;
      piece = {bytes, EncodeUtf8(*character, bytes)};
    } else {
      const void* const escape = std::memchr(p, '\\', static_cast<size_t>(end - p));
      const char* const piece_end = escape == nullptr ? end : static_cast<const char*>(escape);
      piece = {p, static_cast<size_t>(piece_end - p)};
      p = piece_end;
    }
    if (!take(piece)) return;
  }
}

// What the string `json` says, compared with `text`, byte by byte.
std::strong_ordering CompareDecoded(std::string_view json, std::string_view text) {
  std::strong_ordering order = std::strong_ordering::equal;
  Decode(json, [&order, &text](std::string_view piece) {
    order = piece <=> text.substr(0, piece.size());
    if (order != 0) return false;
    text.remove_prefix(piece.size());
    return true;
  });
  if (order != 0) return order;
  return text.empty() ? std::strong_ordering::equal : std::strong_ordering::less;
}

// The decimal `number`, of any length, plus `n`, which is much less than 10^18.
std::string Sum(std::string_view number, int64_t n) {
  const bool negative = number.starts_with('-');
  if (negative || number.starts_with('+')) number.remove_prefix(1);
  number.remove_prefix(std::min(number.find_first_not_of('0'), number.size()));
  if (number.size() <= 18) {
    int64_t value = 0;
    std::from_chars(number.data(), number.data() + number.size(), value);
    return std::to_string((negative ? -value : value) + n);
  }
  // It is more than `n` by far: its sign stays.
  std::string sum(number);
  int64_t carry = negative ? -n : n;
  for (size_t i = sum.size(); i > 0 && carry != 0; --i) {
    carry += sum[i - 1] - '0';
    const int64_t digit = (carry % 10 + 10) % 10;
    sum[i - 1] = static_cast<char>('0' + digit);
    carry = (carry - digit) / 10;
  }
  if (carry > 0) sum.insert(0, std::to_string(carry));
  sum.erase(0, sum.find_first_not_of('0'));
  return negative ? "-" + sum : sum;
}

// The same text for all spellings of the same value: `0`, or -?DIGITSe-?DIGITS, which means
// 0.DIGITS times that power of ten, DIGITS without a zero at either end.
std::string NormalNumber(std::string_view number) {
  const bool negative = number.starts_with('-');
  if (negative) number.remove_prefix(1);
  const size_t e = std::min(number.find_first_of("eE"), number.size());
  const std::string_view exponent = number.substr(std::min(e + 1, number.size()));
  const std::string_view significand = number.substr(0, e);
  const size_t point = std::min(significand.find('.'), significand.size());

  std::string digits(significand.substr(0, point));
  digits += significand.substr(std::min(point + 1, significand.size()));
  const size_t zeros = digits.find_first_not_of('0');
  if (zeros == std::string::npos) return "0";
  digits.erase(digits.find_last_not_of('0') + 1);
  digits.replace(0, zeros, negative ? "-" : "");
  digits += 'e';
  return digits + Sum(exponent, static_cast<int64_t>(point) - static_cast<int64_t>(zeros));
}

// What a value is, by what it begins with: that, and 0 for each number.
char KindOf(char first) { return first == '-' || IsDigit(first) ? '0' : first; }

absl::Status BadPointer(std::string_view what, size_t offset) {
  return MakeError(Reason::kInvalidArgument, fmt::format("the pointer {}", what),
                   {{"offset", fmt::format("{}", offset)}});
}

absl::Status TooLong(std::string_view what, size_t size, size_t limit, std::string_view advice) {
  return MakeError(
      Reason::kInvalidArgument,
      fmt::format("{} has {} bytes and the limit is {}; {}", what, size, limit, advice),
      {{"limit", fmt::format("{}", limit)}});
}

std::optional<size_t> IndexOf(std::string_view key) {
  if (key.empty() || !IsDigit(key[0]) || (key[0] == '0' && key.size() > 1)) return std::nullopt;
  size_t index = 0;
  const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), index);
  if (error != std::errc() || end != key.data() + key.size()) return std::nullopt;
  return index;
}

}  // namespace

// The value `equals`, ready to be compared with: its strings decoded, its numbers normal, the
// members of its objects sorted and each there once.
class JsonMatch::Expected {
 public:
  struct Range {
    uint32_t begin = 0;
    uint32_t size = 0;
  };

  struct Value {
    char kind = '\0';  // KindOf
    Range key{};       // in the text, if it is a member of an object
    // Of a string or number: in the text. Of an array: its elements, of an object: its members by
    // key, among the values.
    Range content{};
  };

  // `json` is valid, has at most kEqualsBytesMax bytes and is at most kEqualsDepthMax deep.
  explicit Expected(std::string_view json) {
    Reader reader(json);
    const Value root = Read(reader);
    values_.push_back(root);
    values_.shrink_to_fit();
    text_.shrink_to_fit();
  }

  const Value& root() const { return values_.back(); }
  const std::vector<Value>& values() const { return values_; }
  std::string_view Text(Range range) const {
    return std::string_view(text_).substr(range.begin, range.size);
  }

  // The member whose key is what `key`, with its quotes, says; null if there is none.
  const Value* Member(const Value& object, std::string_view key) const {
    const auto begin = values_.begin() + object.content.begin;
    const auto end = begin + object.content.size;
    const auto member = std::partition_point(
        begin, end, [&](const Value& value) { return CompareDecoded(key, Text(value.key)) > 0; });
    if (member == end || CompareDecoded(key, Text(member->key)) != 0) return nullptr;
    return &*member;
  }

 private:
  Value Read(Reader& reader) {
    Value value{.kind = KindOf(reader.Peek())};
    if (value.kind == '"') {
      value.content = Add(reader.Scalar());
    } else if (value.kind == '0') {
      const std::string number = NormalNumber(reader.Scalar());
      value.content = {static_cast<uint32_t>(text_.size()), static_cast<uint32_t>(number.size())};
      text_ += number;
    } else if (value.kind == '[' || value.kind == '{') {
      value.content = ReadContainer(reader);
    } else {
      reader.Skip();
    }
    return value;
  }

  // Values within values come first, so that those of one container stand together.
  Range ReadContainer(Reader& reader) {
    const bool object = reader.Peek() == '{';
    std::vector<Value> values;
    reader.Open();
    while (reader.Next()) {
      const Range key = object ? Add(reader.Key()) : Range();
      values.push_back(Read(reader));
      values.back().key = key;
    }
    if (object) SortMembers(values);
    const Range range = {static_cast<uint32_t>(values_.size()),
                         static_cast<uint32_t>(values.size())};
    values_.insert(values_.end(), values.begin(), values.end());
    return range;
  }

  // Of equal keys, which a stable sort leaves in order, the last one stays.
  void SortMembers(std::vector<Value>& members) const {
    std::stable_sort(members.begin(), members.end(),
                     [this](const Value& a, const Value& b) { return Text(a.key) < Text(b.key); });
    const auto same_key = [this](const Value& a, const Value& b) {
      return Text(a.key) == Text(b.key);
    };
    members.erase(members.begin(), std::unique(members.rbegin(), members.rend(), same_key).base());
  }

  // Decodes the string `json` into the text.
  Range Add(std::string_view json) {
    const size_t begin = text_.size();
    Decode(json, [this](std::string_view piece) {
      text_ += piece;
      return true;
    });
    return {static_cast<uint32_t>(begin), static_cast<uint32_t>(text_.size() - begin)};
  }

  std::vector<Value> values_;
  std::string text_;
};

// One pass over a message.
class JsonMatch::Walk {
 public:
  Walk(const JsonMatch& match, std::string_view json)
      : steps_(match.steps_), expected_(match.expected_.get()), reader_(json) {}

  // Takes the value that the first `depth` steps lead to: whether what the others lead to is there
  // and as expected.
  bool Find(size_t depth) {
    if (depth == steps_.size()) {
      if (expected_ != nullptr) return Equals(expected_->root());
      reader_.Skip();
      return true;
    }
    const Step& step = steps_[depth];
    bool found = false;
    if (reader_.Peek() == '{') {
      reader_.Open();
      while (reader_.Next()) {
        if (CompareDecoded(reader_.Key(), step.key) == 0) {
          found = Find(depth + 1);
        } else {
          reader_.Skip();
        }
      }
    } else if (reader_.Peek() == '[') {
      reader_.Open();
      for (size_t i = 0; reader_.Next(); ++i) {
        if (i == step.index) {
          found = Find(depth + 1);
        } else {
          reader_.Skip();
        }
      }
    } else {
      reader_.Skip();
    }
    return found;
  }

 private:
  using Value = Expected::Value;

  // Takes a value, always all of it: whether it equals `value`.
  bool Equals(const Value& value) {
    if (KindOf(reader_.Peek()) != value.kind) {
      reader_.Skip();
      return false;
    }
    switch (value.kind) {
      case '[':
        return EqualsArray(value);
      case '{':
        return EqualsObject(value);
      case '"':
        return CompareDecoded(reader_.Scalar(), expected_->Text(value.content)) == 0;
      case '0':
        return NormalNumber(reader_.Scalar()) == expected_->Text(value.content);
      default:
        reader_.Skip();
        return true;
    }
  }

  bool EqualsArray(const Value& array) {
    const Value* const elements = expected_->values().data() + array.content.begin;
    size_t equal = 0;
    size_t count = 0;
    reader_.Open();
    for (; reader_.Next(); ++count) {
      if (count == equal && count < array.content.size) {
        if (Equals(elements[count])) ++equal;
      } else {
        reader_.Skip();
      }
    }
    return equal == count && count == array.content.size;
  }

  // Counts the members that are equal so far. Which they are, is noted once for all objects that
  // the same `object` is compared with: if it were once for each, many small ones that are compared
  // with a large one would take long.
  bool EqualsObject(const Value& object) {
    if (equal_in_.empty()) equal_in_.resize(expected_->values().size());
    const uint32_t serial = ++objects_;
    size_t equal = 0;
    bool known = true;
    reader_.Open();
    while (reader_.Next()) {
      const std::string_view key = reader_.Key();
      const Value* const member = known ? expected_->Member(object, key) : nullptr;
      if (member == nullptr) {
        known = false;
        reader_.Skip();
        continue;
      }
      uint32_t& equal_in = equal_in_[static_cast<size_t>(member - expected_->values().data())];
      if (equal_in == serial) --equal;
      equal_in = Equals(*member) ? serial : 0;
      if (equal_in == serial) ++equal;
    }
    return known && equal == object.content.size;
  }

  const std::vector<Step>& steps_;
  const Expected* const expected_;
  Reader reader_;
  uint32_t objects_ = 0;            // compared
  std::vector<uint32_t> equal_in_;  // for each expected value: the last object it was equal in
};

absl::StatusOr<JsonMatch> JsonMatch::Create(std::string_view pointer,
                                            std::optional<std::string_view> equals) {
  if (pointer.size() > kPointerBytesMax) {
    return TooLong("the pointer", pointer.size(), kPointerBytesMax,
                   "point to a value nearer to the root");
  }
  if (const std::optional<size_t> offset = FirstBadByte(pointer)) {
    return BadPointer(fmt::format("is not UTF-8 at byte {}; write it in UTF-8", *offset), *offset);
  }
  if (!pointer.empty() && pointer[0] != '/') {
    return BadPointer(
        "does not begin with /; write one before each key or index, or leave the pointer empty for "
        "the whole value",
        0);
  }
  JsonMatch match;
  for (size_t i = 0; i < pointer.size(); ++i) {
    const char c = pointer[i];
    if (c == '/') {
      match.steps_.emplace_back();
    } else if (c != '~') {
      match.steps_.back().key += c;
    } else if (const char next = i + 1 < pointer.size() ? pointer[i + 1] : '\0';
               next == '0' || next == '1') {
      match.steps_.back().key += next == '0' ? '~' : '/';
      ++i;
    } else {
      return BadPointer(
          fmt::format("has a ~ at byte {} that stands for nothing; write ~0 for ~ and ~1 for /", i),
          i);
    }
  }
  for (Step& step : match.steps_) step.index = IndexOf(step.key);

  if (equals.has_value()) {
    if (equals->size() > kEqualsBytesMax) {
      return TooLong("the value to compare with", equals->size(), kEqualsBytesMax,
                     "compare a smaller part of the message");
    }
    if (const std::optional<JsonError> error = CheckJson(*equals, kEqualsDepthMax)) {
      return MakeError(
          Reason::kInvalidArgument,
          fmt::format("the value to compare with is not one JSON value: {} at byte {}; write JSON, "
                      "a text in its double quotes",
                      error->what, error->offset),
          {{"offset", fmt::format("{}", error->offset)}});
    }
    match.expected_ = std::make_shared<const Expected>(*equals);
  }
  return match;
}

bool JsonMatch::Matches(std::string_view json) const { return Walk(*this, json).Find(0); }

}  // namespace deka::ipc
