// Cuts a child's captured output into lines. It does no IO.
//
//   pipe -> Append(bytes) -> Next() ... Next() -> OutputLine
//
// A line ends with '\n', which is not part of it; any other byte is. A line of more than
// line_bytes_max bytes comes in pieces, each but the last one marked as partial, cut between two
// UTF-8 characters where it can be. After End() the last line comes too, marked as unterminated.
#ifndef IPC_OUTPUT_LINES_H_
#define IPC_OUTPUT_LINES_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace deka::ipc {

struct OutputLine {
  int descriptor = 1;         // 1 or 2
  std::string_view text;      // without its line break; any bytes
  bool partial = false;       // a piece of a longer line, more follows
  bool unterminated = false;  // the stream ended without a line break
};

class OutputLines {
 public:
  OutputLines(int descriptor, size_t line_bytes_max)
      : descriptor_(descriptor), line_bytes_max_(line_bytes_max) {}

  void Append(std::string_view bytes);
  void End() { ended_ = true; }

  // The next line or piece; its text lives until the next call. Unset: more bytes are needed, or
  // all is told. Holds no memory then but for the line that is not complete.
  std::optional<OutputLine> Next();

  bool ended() const { return ended_; }

 private:
  const int descriptor_;
  const size_t line_bytes_max_;
  std::string bytes_;
  size_t begin_ = 0;    // told before it
  size_t scanned_ = 0;  // no line break in [begin_, scanned_)
  bool ended_ = false;
};

}  // namespace deka::ipc

#endif  // IPC_OUTPUT_LINES_H_
