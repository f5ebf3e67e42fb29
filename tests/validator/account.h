// What a child of a history tells of itself, in a file that it has mapped: what it stored there
// outlives it, however it ends.
//
//   AccountHeader, then entries: AccountEntry and its bytes, padded to 8
//
// An entry of something written stands there before the write begins, and `written` says afterwards
// how much the kernel took: what lies between the two may have been written, whole or in part. The
// file is written by one process at a time: the child, or after kForked the one that it has forked.
#ifndef TESTS_VALIDATOR_ACCOUNT_H_
#define TESTS_VALIDATOR_ACCOUNT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace deka::validator {

enum class Deed : uint32_t {
  kMessage,    // bytes: the value that goes into a frame
  kBadFrame,   // bytes: the line, without its line feed
  kHalfFrame,  // bytes: the beginning of a line that never ends
  kStdout,     // bytes: a line, without its line feed
  kStderr,
  kRead,     // bytes: the value that came
  kReadEnd,  // bytes: what stood behind the last line feed
  kSignal,   // value: its number
  kForked,
  kExits,   // value: the code
  kKilled,  // value: the signal that it sends itself
};

// The streams that a child writes, in AccountHeader::written.
enum class Sink : uint32_t { kChannel, kStdout, kStderr, kCount };

struct AccountEntry {
  Deed deed = Deed::kMessage;
  uint32_t bytes = 0;
  int64_t value = 0;
  uint64_t end = 0;  // of something written: its end in its stream, line feed and envelope counted
};

struct AccountHeader {
  std::atomic<uint64_t> used;  // bytes of whole entries
  std::atomic<uint64_t> written[static_cast<size_t>(Sink::kCount)];
};

// The file's size; what is not used takes no room.
inline constexpr size_t kAccountBytes = 64 << 20;

}  // namespace deka::validator

#endif  // TESTS_VALIDATOR_ACCOUNT_H_
