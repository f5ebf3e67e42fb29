// Whether bytes are one JSON value, and where its parts are. Nothing is converted or changed.
//
// JSON is RFC 8259's grammar in UTF-8, not what a parser can convert: 1e999, a number of 30 digits
// and the lone surrogate escape "\ud800" are JSON. A byte order mark is not. A strict scanner reads
// the grammar and names the byte that cannot be; UTF-8 beyond ASCII is left to simdjson.
//
// One pass, linear time, no state, no allocation but for nesting beyond 64 levels, nothing read
// outside the input. Views given out are parts of the input. Thread: any.
#ifndef IPC_JSON_H_
#define IPC_JSON_H_

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

#include "absl/status/status.h"

namespace deka::ipc {

struct JsonError {
  std::string_view what;  // static text: "a string is not closed"
  size_t offset = 0;      // of the first byte that cannot be; the input's size if it ends too early
};

// A member of an object that CheckJson looks for.
struct JsonMember {
  std::string_view key;      // decoded: "\u0063md" in the input is cmd
  std::string_view value{};  // set by CheckJson: the value as it stands there; empty if it does not
};

// Unset if `json` is one value, white space around it allowed. `depth_max` limits how deep arrays
// and objects are nested: a scalar has depth 0, [] depth 1.
//
// If the value is an object, sets the value of each of `members` on the way; the last of equal keys
// counts, as with JSON.parse.
std::optional<JsonError> CheckJson(std::string_view json, size_t depth_max,
                                   std::span<JsonMember> members = {});

// kInvalidJson for people: "The message is not acceptable JSON: a string is not closed at byte 17.
// ...", where `what` is "The message". The metadata `offset` is the byte.
absl::Status JsonErrorToStatus(const JsonError& error, std::string_view what);

// The text of the JSON string `json` (valid, with its quotes), decoded into `buffer`: as many whole
// characters as fit. A lone surrogate becomes U+FFFD. Unset if `json` is no string.
std::optional<std::string_view> DecodeJsonString(std::string_view json, std::span<char> buffer);

// `json` without the white space around it.
std::string_view TrimJson(std::string_view json);

// Turns CR and LF into spaces. `json` has been found valid: there they are only white space between
// tokens, so the value stays the same and fits on one line.
void BreaksToSpaces(std::span<char> json);

}  // namespace deka::ipc

#endif  // IPC_JSON_H_
