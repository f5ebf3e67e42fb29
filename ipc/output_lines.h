// Cuts a child's captured output into lines. It does no IO and holds no bytes.
//
//   pipe -> OutputInbox -> Next(view) ... Next(view) -> OutputLine
//
// A line ends with '\n', which is not part of it; any other byte is. A line of more than
// line_bytes_max bytes comes in pieces, each but the last one marked as partial, cut between two
// UTF-8 characters where it can be. When the stream has ended the last line comes too, marked as
// unterminated. Its only state is the position of the first byte that was not told.
#ifndef IPC_OUTPUT_LINES_H_
#define IPC_OUTPUT_LINES_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "ipc/line_framer.h"

namespace deka::ipc {

struct OutputLine {
  int descriptor = 1;         // 1 or 2
  std::string_view text;      // without its line break; any bytes
  bool partial = false;       // a piece of a longer line, more follows
  bool unterminated = false;  // the stream ended without a line break
};

class OutputLines {
 public:
  // Goes on at `begin`.
  OutputLines(int descriptor, size_t line_bytes_max, uint64_t begin = 0)
      : descriptor_(descriptor), line_bytes_max_(line_bytes_max), begin_(begin), scanned_(begin) {}

  // The next line or piece of what the ring holds from position() on. Its text lies in the ring,
  // or, if it wraps there, in `scratch`. Unset: more bytes are needed, or all is told. `ended`: no
  // more will come. The ring has room for a line, its break and 3 bytes more.
  std::optional<OutputLine> Next(const RingView& ring, bool ended, std::string& scratch);

  // Of the first byte that was not told.
  uint64_t position() const { return begin_; }

 private:
  const int descriptor_;
  const size_t line_bytes_max_;
  uint64_t begin_;
  uint64_t scanned_;  // no line break in [begin_, scanned_)
};

}  // namespace deka::ipc

#endif  // IPC_OUTPUT_LINES_H_
