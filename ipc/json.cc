#include "ipc/json.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "ipc/error.h"
#include "ipc/json_scan.h"
#include "ipc/utf8.h"

namespace deka::ipc {
namespace {

// Reads one JSON value by the grammar. Its methods are given where they begin and answer where they
// ended, or null, with `error_` set, if what stands there cannot be: the place stays in a register.
class Scanner {
 public:
  Scanner(std::string_view json, size_t depth_max, std::span<JsonMember> members)
      : begin_(json.data()), end_(begin_ + json.size()), depth_max_(depth_max), members_(members) {}

  std::optional<JsonError> Scan() {
    if (Document() && Utf8()) return std::nullopt;
    return error_;
  }

 private:
  std::nullptr_t Fail(const char* p, std::string_view what) {
    error_ = {what, static_cast<size_t>(p - begin_)};
    return nullptr;
  }
  std::nullptr_t FailOpen(const char* p) {
    return Fail(p, in_object_ ? "an object is not closed" : "an array is not closed");
  }

  const char* Document() {
    const char* p = SkipSpace(begin_);
    if (p == end_) return Fail(p, "there is no value, only white space or nothing");
    for (;;) {
      if (*p == '{' || *p == '[') {
        p = Open(p);
        if (p == nullptr) return nullptr;
        p = SkipSpace(p);
        if (p == end_) return FailOpen(p);
        if (*p != ClosingBracket()) {
          if (in_object_ && (p = Key(p)) == nullptr) return nullptr;
          continue;
        }
      } else {
        p = Scalar(p);
        if (p == nullptr) return nullptr;
        p = EndValue(p);
      }

      // The ends of all containers that end here, then a comma.
      for (;;) {
        if (depth_ == 0) return p == end_ ? p : Fail(p, "more text stands behind the value");
        if (p == end_) return FailOpen(p);
        if (*p != ClosingBracket()) break;
        Close();
        p = EndValue(p + 1);
      }
      if (*p != ',') {
        return Fail(p, in_object_ ? "a comma or the end of the object is expected"
                                  : "a comma or the end of the array is expected");
      }
      p = SkipSpace(p + 1);
      if (p == end_) return FailOpen(p);
      if (*p == ClosingBracket()) return Fail(p, "a comma stands before a closing bracket");
      if (in_object_ && (p = Key(p)) == nullptr) return nullptr;
    }
  }

  char ClosingBracket() const { return in_object_ ? '}' : ']'; }

  // A value has ended at `p`.
  [[gnu::always_inline]] const char* EndValue(const char* p) {
    if (member_ != nullptr && depth_ == 1) {
      member_->value = {member_begin_, static_cast<size_t>(p - member_begin_)};
      member_ = nullptr;
    }
    return SkipSpace(p);
  }

  const char* SkipSpace(const char* p) const { return SkipJsonSpace(p, end_); }

  // What kind each open container is, is kept in bits, the innermost lowest: 64 of them in `open_`,
  // the others in `outer_`.
  [[gnu::always_inline]] const char* Open(const char* p) {
    if (depth_ == depth_max_) return Fail(p, "arrays and objects are nested deeper than the limit");
    if (depth_ % 64 == 0 && depth_ > 0) outer_.push_back(open_);
    ++depth_;
    in_object_ = *p == '{';
    open_ = open_ << 1 | (in_object_ ? 1 : 0);
    return p + 1;
  }

  [[gnu::always_inline]] void Close() {
    --depth_;
    open_ >>= 1;
    if (depth_ % 64 == 0 && depth_ > 0) {
      open_ = outer_.back();
      outer_.pop_back();
    }
    in_object_ = (open_ & 1) != 0;
  }

  // A key and its colon, up to the value.
  [[gnu::always_inline]] const char* Key(const char* p) {
    if (*p != '"') return Fail(p, "a key in double quotes is expected");
    const char* key = p;
    p = String(p);
    if (p == nullptr) return nullptr;
    const char* key_end = p;
    p = SkipSpace(p);
    if (p == end_) return FailOpen(p);
    if (*p != ':') return Fail(p, "a colon is expected behind a key");
    p = SkipSpace(p + 1);
    if (p == end_) return FailOpen(p);
    if (depth_ == 1 && !members_.empty()) {
      FindMember({key, static_cast<size_t>(key_end - key)}, p);
    }
    return p;
  }

  void FindMember(std::string_view key_in_quotes, const char* value) {
    const std::string_view key = key_in_quotes.substr(1, key_in_quotes.size() - 2);
    for (JsonMember& member : members_) {
      if (key == member.key || EqualsDecoded(key_in_quotes, member.key)) {
        member_ = &member;
        member_begin_ = value;
        return;
      }
    }
  }

  static bool EqualsDecoded(std::string_view key_in_quotes, std::string_view key) {
    // An escape is longer than what it means.
    if (key_in_quotes.size() <= key.size() + 2) return false;
    if (key_in_quotes.find('\\') == std::string_view::npos) return false;
    char buffer[64];  // holds a key and one character more
    return DecodeJsonString(key_in_quotes, buffer) == key;
  }

  [[gnu::always_inline]] const char* Scalar(const char* p) {
    switch (*p) {
      case '"':
        return String(p);
      case '-':
      case '0':
      case '1':
      case '2':
      case '3':
      case '4':
      case '5':
      case '6':
      case '7':
      case '8':
      case '9':
        return Number(p);
      case 't':
        return Literal(p, "true");
      case 'f':
        return Literal(p, "false");
      case 'n':
        return Literal(p, "null");
      case '\0':
        return Fail(p, "a NUL byte stands where a value is expected");
      default:
        return Fail(p, "no value begins like this");
    }
  }

  [[gnu::always_inline]] const char* Literal(const char* p, std::string_view word) {
    if (static_cast<size_t>(end_ - p) >= word.size() &&
        std::memcmp(p, word.data(), word.size()) == 0) {
      return p + word.size();
    }
    for (size_t i = 0; i < word.size(); ++i) {
      if (p + i == end_) return Fail(end_, "the text ends in the middle of a value");
      if (p[i] != word[i]) return Fail(p, "no value begins like this");
    }
    return p + word.size();
  }

  [[gnu::always_inline]] const char* Number(const char* p) {
    if (*p == '-') ++p;
    if (p < end_ && *p == '0') {
      ++p;
      if (p < end_ && IsDigit(*p)) return Fail(p, "a number has a leading zero");
    } else {
      p = Digits(p);
      if (p == nullptr) return nullptr;
    }
    if (p < end_ && *p == '.') {
      p = Digits(p + 1);
      if (p == nullptr) return nullptr;
    }
    if (p < end_ && (*p == 'e' || *p == 'E')) {
      ++p;
      if (p < end_ && (*p == '+' || *p == '-')) ++p;
      p = Digits(p);
    }
    return p;
  }

  [[gnu::always_inline]] const char* Digits(const char* p) {
    if (p == end_) return Fail(p, "the text ends in the middle of a number");
    if (!IsDigit(*p)) return Fail(p, "a digit is expected in a number");
    do {
      ++p;
    } while (p < end_ && IsDigit(*p));
    return p;
  }

  [[gnu::always_inline]] const char* String(const char* p) {
    ++p;
    for (;;) {
      p = SkipPlain(begin_, p, end_, high_bits_);
      if (p != end_ && *p == '"') return p + 1;
      if (p == end_) return Fail(p, "a string is not closed");
      if (*p == '\0') return Fail(p, "a NUL byte stands in a string");
      if (*p != '\\') return Fail(p, "a control character stands in a string without an escape");
      p = Escape(p);
      if (p == nullptr) return nullptr;
    }
  }

  const char* Escape(const char* p) {
    if (end_ - p < 2) return Fail(end_, "a string is not closed");
    switch (p[1]) {
      case '"':
      case '\\':
      case '/':
      case 'b':
      case 'f':
      case 'n':
      case 'r':
      case 't':
        return p + 2;
      case 'u':
        for (int i = 2; i < 6; ++i) {
          if (p + i == end_) return Fail(end_, "a string is not closed");
          if (HexValue(p[i]) < 0) return Fail(p + i, "\\u needs four hexadecimal digits");
        }
        return p + 6;
      default:
        return Fail(p + 1, "a string has an escape that does not exist");
    }
  }

  // The grammar holds, so all bytes that are not ASCII stand in strings.
  bool Utf8() {
    if (high_bits_ == 0) return true;
    if (simdjson::validate_utf8(begin_, static_cast<size_t>(end_ - begin_))) return true;
    const std::string_view text(begin_, static_cast<size_t>(end_ - begin_));
    Fail(begin_ + FirstBadByte(text).value_or(text.size()), "a string is not UTF-8");
    return false;
  }

  const char* const begin_;
  const char* const end_;
  unsigned high_bits_ = 0;

  const size_t depth_max_;
  size_t depth_ = 0;
  bool in_object_ = false;
  uint64_t open_ = 0;
  std::vector<uint64_t> outer_;

  const std::span<JsonMember> members_;
  JsonMember* member_ = nullptr;  // of the outermost object: its value is being read
  const char* member_begin_ = nullptr;
  JsonError error_;
};

}  // namespace

std::optional<JsonError> CheckJson(std::string_view json, size_t depth_max,
                                   std::span<JsonMember> members) {
  for (JsonMember& member : members) member.value = {};
  return Scanner(json, depth_max, members).Scan();
}

absl::Status JsonErrorToStatus(const JsonError& error, std::string_view what) {
  return MakeError(
      Reason::kInvalidJson,
      fmt::format("{} is not acceptable JSON: {} at byte {}. One JSON value in UTF-8 is "
                  "expected.",
                  what, error.what, error.offset),
      {{"offset", fmt::format("{}", error.offset)}});
}

std::optional<std::string_view> DecodeJsonString(std::string_view json, std::span<char> buffer) {
  if (json.size() < 2 || json.front() != '"' || json.back() != '"') return std::nullopt;
  const char* p = json.data() + 1;
  const char* const end = json.data() + json.size() - 1;
  size_t size = 0;
  while (p < end) {
    char bytes[4] = {*p};
    size_t count = 1;
    if (*p != '\\') {
      count = std::max<size_t>(1, Utf8CharacterSize({p, static_cast<size_t>(end - p)}));
      std::memcpy(bytes, p, count);
      p += count;
    } else {
      const std::optional<char32_t> character = TakeEscape(p, end);
      if (!character.has_value()) return std::nullopt;
      count = EncodeUtf8(IsSurrogate(*character) ? U'\uFFFD' : *character, bytes);
    }
    if (buffer.size() - size < count) break;
    std::memcpy(buffer.data() + size, bytes, count);
    size += count;
  }
  return std::string_view(buffer.data(), size);
}

std::string_view TrimJson(std::string_view json) {
  while (!json.empty() && IsSpace(json.front())) json.remove_prefix(1);
  while (!json.empty() && IsSpace(json.back())) json.remove_suffix(1);
  return json;
}

void BreaksToSpaces(std::span<char> json) {
  for (const char line_break : {'\n', '\r'}) {
    char* const end = json.data() + json.size();
    for (char* p = json.data(); p != end; ++p) {
      p = static_cast<char*>(std::memchr(p, line_break, static_cast<size_t>(end - p)));
      if (p == nullptr) break;
      *p = ' ';
    }
  }
}

}  // namespace deka::ipc
