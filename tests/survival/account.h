// What a child of a storm counts of itself, in a file that it has mapped: what it stored there
// outlives it, however it ends.
//
// Counters are stored behind what they count: `began` before the first byte of a frame is written,
// `written` after the last. A child that is killed leaves frames between the two of which nobody
// knows whether they were written.
#ifndef TESTS_SURVIVAL_ACCOUNT_H_
#define TESTS_SURVIVAL_ACCOUNT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace deka::storm {

struct Account {
  static constexpr size_t kReceiptsMax = size_t{1} << 21;

  // Stored by the storm: its messages and lines that the witness was shown. A child that floods
  // keeps not too far ahead of it, as a log is not endless.
  std::atomic<uint64_t> shown;

  std::atomic<uint64_t> began;  // messages
  std::atomic<uint64_t> written;
  std::atomic<uint64_t> lines[2];   // of stdout and stderr
  std::atomic<uint64_t> failed;     // errno of a read or a write of the channel
  std::atomic<uint64_t> ended;      // it has read the channel's end
  std::atomic<uint64_t> finished;   // it is about to exit, all is written
  std::atomic<uint64_t> read;       // messages
  uint64_t receipts[kReceiptsMax];  // HashOf() each message read
};

}  // namespace deka::storm

#endif  // TESTS_SURVIVAL_ACCOUNT_H_
