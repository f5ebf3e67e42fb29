// Whether bytes are one JSON value, and where its parts are. Nothing is converted or changed.
//
// JSON is RFC 8259's grammar in UTF-8, not what a parser can convert: 1e999, a number of 30 digits
// and the lone surrogate escape "\ud800" are JSON. A byte order mark is not. Simdjson says yes at
// memory speed; what it refuses is judged by a strict scanner of our own, which names the byte.
//
// Views given out are parts of the input. Thread: free functions any; a validator one at a time.
#ifndef IPC_JSON_H_
#define IPC_JSON_H_

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace deka::ipc {

struct JsonError {
  std::string_view what;  // static text: "a control character in a string"
  size_t offset = 0;      // of the first byte that cannot be; the input's size if it ends too early
};

// Bytes that must be readable behind an input given as Padding::kReadable. What they hold does not
// matter.
inline constexpr size_t kJsonPaddingBytes = 64;

enum class Padding {
  kNone,     // the bytes are copied into the validator's own buffer first
  kReadable  // kJsonPaddingBytes behind the input may be read: nothing is copied
};

struct JsonOptions {
  size_t depth_max = 256;  // of arrays and objects: a scalar has depth 0, [] depth 1
  // Longer inputs are left to the scanner, whose memory does not grow with them. Simdjson's does,
  // some 14 bytes for each byte of the longest input seen.
  size_t simdjson_bytes_max = 1 << 20;
};

// Owns the memory that validation needs and reuses it: no allocation once it has seen its longest
// input. One serves all channels of a loop.
class JsonValidator {
 public:
  explicit JsonValidator(JsonOptions options = {});
  ~JsonValidator();

  JsonValidator(const JsonValidator&) = delete;
  JsonValidator& operator=(const JsonValidator&) = delete;

  // Unset if `json` is one value, white space around it allowed.
  std::optional<JsonError> Check(std::string_view json, Padding padding = Padding::kNone);

  // The decoded text of the string member `key` of the object that the last Check() found valid.
  // Unset if that value is no object, or has no such member, or the member is no string or is
  // longer than 64 bytes. The last of equal keys counts, as with JSON.parse. The text lives until
  // the next call; the bytes checked must still be there.
  std::optional<std::string_view> StringMember(std::string_view key);

  const JsonOptions& options() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// The scanner alone: grammar, UTF-8 and depth in linear time, with memory of depth_max bits.
std::optional<JsonError> ScanJson(std::string_view json, size_t depth_max);

// The value of `object`'s member `key`, without the white space around it. Keys are compared
// decoded: "\u0063md" is cmd. The last of equal keys counts. Unset if there is none or `object` is
// no object. `object` has passed Check(); bytes that have not give some answer, never a crash.
std::optional<std::string_view> FindMember(std::string_view object, std::string_view key);

// The text of the JSON string `json`, decoded into `buffer`; a lone surrogate becomes U+FFFD. Unset
// if it is no string, or its text does not fit. Same precondition as FindMember.
std::optional<std::string_view> DecodeString(std::string_view json, std::span<char> buffer);

// `json` without the white space around it.
std::string_view TrimJson(std::string_view json);

// Turns CR and LF into spaces. In valid JSON they are only white space between tokens, so the value
// stays the same and fits on one line.
void BreaksToSpaces(std::span<char> json);

// A client's message made ready for a frame: at most `bytes_max` bytes, one JSON value, its line
// breaks turned into spaces, else untouched. Fails with kMessageTooLarge or kInvalidJson, with
// `limit` or `offset` as metadata.
absl::StatusOr<std::string> MessageFromClient(JsonValidator& validator, std::string json,
                                              size_t bytes_max);

// The longest beginning of `text` of at most `bytes_max` bytes that ends between two characters.
// Bytes that are no UTF-8 count as characters of their own.
std::string_view Utf8Prefix(std::string_view text, size_t bytes_max);

}  // namespace deka::ipc

#endif  // IPC_JSON_H_
