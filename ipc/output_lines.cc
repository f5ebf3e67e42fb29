#include "ipc/output_lines.h"

#include <algorithm>

#include "ipc/utf8.h"

namespace deka::ipc {

std::optional<OutputLine> OutputLines::Next(const RingView& ring, bool ended,
                                            std::string& scratch) {
  // A line break at `line_bytes_max` still ends a line that is not too long.
  scanned_ = FindBreak(ring, scanned_, ring.end);
  const bool broken = scanned_ != ring.end;
  if (broken && scanned_ - begin_ <= line_bytes_max_) {
    const std::string_view text = InOnePiece(ring, begin_, scanned_, scratch);
    begin_ = ++scanned_;
    return OutputLine{.descriptor = descriptor_, .text = text};
  }
  // A character that stands across the cut has at most 3 bytes behind it, which may still be
  // coming.
  const uint64_t rest = ring.end - begin_;
  if (rest >= line_bytes_max_ + (broken || ended ? 1 : 3)) {
    const uint64_t seen = std::min<uint64_t>(rest, line_bytes_max_ + 3);
    const std::string_view text = InOnePiece(ring, begin_, begin_ + seen, scratch);
    std::string_view piece = Utf8Prefix(text, line_bytes_max_);
    if (piece.empty()) piece = text.substr(0, line_bytes_max_);
    begin_ += piece.size();
    return OutputLine{.descriptor = descriptor_, .text = piece, .partial = true};
  }
  if (ended && rest > 0) {
    const std::string_view text = InOnePiece(ring, begin_, ring.end, scratch);
    begin_ = ring.end;
    return OutputLine{.descriptor = descriptor_, .text = text, .unterminated = true};
  }
  return std::nullopt;
}

}  // namespace deka::ipc
