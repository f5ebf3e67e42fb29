// Lines of a descriptor.
#ifndef SDK_DEKACTL_LINE_READER_H_
#define SDK_DEKACTL_LINE_READER_H_

#include <cstddef>
#include <optional>
#include <string>

#include "absl/status/status.h"

namespace deka::dekactl {

class LineReader {
 public:
  // Longer than any message that an agent takes.
  static constexpr size_t kLineBytesMax = 65 << 20;

  explicit LineReader(int descriptor, size_t line_bytes_max = kLineBytesMax)
      : descriptor_(descriptor), line_bytes_max_(line_bytes_max) {}

  // The next line that has been read, without its line break; at the end what is left, if anything.
  std::optional<std::string> Next();

  // Reads once, which may wait. RESOURCE_EXHAUSTED for a line that is too long.
  absl::Status Read();

  // Nothing more will be read.
  bool at_end() const { return at_end_; }

 private:
  const int descriptor_;
  const size_t line_bytes_max_;
  std::string buffer_;
  size_t taken_ = 0;     // of the buffer
  size_t searched_ = 0;  // no line break before this one
  bool at_end_ = false;
};

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_LINE_READER_H_
