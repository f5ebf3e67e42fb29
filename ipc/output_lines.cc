#include "ipc/output_lines.h"

#include "ipc/utf8.h"

namespace deka::ipc {

void OutputLines::Append(std::string_view bytes) {
  bytes_.erase(0, begin_);
  scanned_ -= begin_;
  begin_ = 0;
  bytes_.append(bytes);
}

std::optional<OutputLine> OutputLines::Next() {
  const std::string_view rest = std::string_view(bytes_).substr(begin_);
  // A line break at `line_bytes_max` still ends a line that is not too long.
  const size_t end = std::string_view(bytes_).find('\n', scanned_);
  if (end != std::string::npos && end - begin_ <= line_bytes_max_) {
    const std::string_view text = rest.substr(0, end - begin_);
    begin_ = scanned_ = end + 1;
    return OutputLine{.descriptor = descriptor_, .text = text};
  }
  // A character that stands across the cut has at most 3 bytes behind it, which may still be
  // coming.
  const bool rest_known = end != std::string::npos || ended_;
  if (rest.size() >= line_bytes_max_ + (rest_known ? 1 : 3)) {
    std::string_view piece = Utf8Prefix(rest, line_bytes_max_);
    if (piece.empty()) piece = rest.substr(0, line_bytes_max_);
    begin_ += piece.size();
    scanned_ = end == std::string::npos ? bytes_.size() : end;
    return OutputLine{.descriptor = descriptor_, .text = piece, .partial = true};
  }
  if (ended_ && !rest.empty()) {
    begin_ = scanned_ = bytes_.size();
    return OutputLine{.descriptor = descriptor_, .text = rest, .unterminated = true};
  }
  if (begin_ > 0) {
    bytes_ = std::string(rest);
    begin_ = 0;
  }
  scanned_ = bytes_.size();
  return std::nullopt;
}

}  // namespace deka::ipc
