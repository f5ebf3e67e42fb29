// A condition on a JSON value: that something stands at a JSON Pointer (RFC 6901), or a given value
// does.
//
//   pointer    stands for
//              the whole value
//   /a/b       the member b of the member a
//   /a/0       the first element of the array a, or its member "0" if it is an object
//   /a~1b~0c   the member "a/b~c"
//
// An index has no leading zeros, and `-`, the element behind the last, never stands anywhere. The
// RFC leaves equal keys in one object open: the last of them counts, as with JSON.parse.
//
// Two values are equal if they are
//
//   numbers    of exactly the same decimal value: 1, 1.0 and 10e-1 are equal, 1e999 and 10e998 too,
//              -0 and 0 too; 0.1 and 0.10000000000000000001 are not
//   strings    that say the same characters, escaped or not; a lone surrogate equals itself
//   arrays     of equal elements in the same order
//   objects    that say the same keys, in any order, with equal values
//   true, false, null   and the same
//
// A small reader of ours, not simdjson: that needs bytes behind the text which a ring buffer does
// not have, and refuses numbers and lone surrogates that are JSON (json.h). The text is known to be
// valid, so all there is to see are quotes, brackets and commas.
//
// One pass: time is linear in the message, times the logarithm of the members of an object that is
// compared. Recursion is no deeper than the message, nor than pointer and `equals` together. Only
// comparing allocates: for long numbers, and once for all objects. A JsonMatch holds up to twelve
// bytes for each byte of `equals`; copies share them. Thread: any, and several at once.
#ifndef IPC_JSON_MATCH_H_
#define IPC_JSON_MATCH_H_

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace deka::ipc {

class JsonMatch {
 public:
  static constexpr size_t kPointerBytesMax = 1024;
  static constexpr size_t kEqualsBytesMax = 64 << 10;
  static constexpr size_t kEqualsDepthMax = 256;

  // `equals`: one JSON value, white space around it allowed; unset: any value will do.
  //
  // kInvalidArgument: `pointer` is malformed, `equals` is not one JSON value, or one of them is
  // over its limit. Metadata: `limit`, or `offset` of the byte that cannot be.
  static absl::StatusOr<JsonMatch> Create(std::string_view pointer,
                                          std::optional<std::string_view> equals);

  // `json` is one JSON value that CheckJson has accepted, white space around it allowed. Of other
  // text the answer means nothing; nothing is read outside of it all the same.
  bool Matches(std::string_view json) const;

 private:
  // A key, or an index, on the way to the value.
  struct Step {
    std::string key;
    std::optional<size_t> index;  // if the key reads as one
  };
  class Expected;
  class Walk;

  JsonMatch() = default;

  std::vector<Step> steps_;
  std::shared_ptr<const Expected> expected_;  // null if any value will do
};

}  // namespace deka::ipc

#endif  // IPC_JSON_MATCH_H_
