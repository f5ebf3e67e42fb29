#include "ipc/line_framer.h"

#include <algorithm>
#include <cstring>

namespace deka::ipc {
uint64_t FindBreak(const RingView& ring, uint64_t begin, uint64_t end) {
  const RingSpans spans = SpansOf(ring, begin, end);
  const size_t first = spans.first.find('\n');
  if (first != std::string_view::npos) return begin + first;
  const size_t second = spans.second.find('\n');
  if (second != std::string_view::npos) return begin + spans.first.size() + second;
  return end;
}

std::string_view InOnePiece(const RingView& ring, uint64_t begin, uint64_t end,
                            std::string& scratch) {
  const RingSpans spans = SpansOf(ring, begin, end);
  if (spans.second.empty()) return spans.first;
  scratch.assign(spans.first).append(spans.second);
  return scratch;
}

RingSpans SpansOf(const RingView& ring, uint64_t begin, uint64_t end) {
  const uint64_t offset = begin & (ring.capacity - 1);
  const uint64_t size = end - begin;
  const uint64_t first = std::min(size, ring.capacity - offset);
  return {{ring.data + offset, first}, {ring.data, size - first}};
}

LineFramer::LineFramer(Options options) : LineFramer(options, State()) {}

LineFramer::LineFramer(Options options, const State& state) : options_(options), state_(state) {}

Frame LineFramer::Next(const RingView& ring) {
  if (state_.scanned == ring.end) return {};
  const uint64_t line_break = FindBreak(ring, state_.scanned, ring.end);
  Scan(ring, line_break);
  if (line_break == ring.end) return {};
  return EndLine(line_break, line_break + 1);
}

Frame LineFramer::Finish(const RingView& ring) {
  if (state_.begin == ring.end) return {};
  Frame frame = EndLine(ring.end, ring.end);
  if (frame.kind == Frame::Kind::kLine) frame.kind = Frame::Kind::kPartial;
  return frame;
}

void LineFramer::Scan(const RingView& ring, uint64_t end) {
  if (!state_.skipping && end - state_.begin > options_.line_bytes_max) {
    state_.skipping = true;
    state_.first_bytes_size = 0;
    state_.scanned = state_.begin;
  }
  if (state_.skipping && state_.first_bytes_size < kFirstBytes) {
    const uint64_t room = kFirstBytes - state_.first_bytes_size;
    const RingSpans spans = SpansOf(ring, state_.scanned, std::min(end, state_.scanned + room));
    for (const std::string_view span : {spans.first, spans.second}) {
      std::memcpy(state_.first_bytes + state_.first_bytes_size, span.data(), span.size());
      state_.first_bytes_size += static_cast<uint8_t>(span.size());
    }
  }
  state_.scanned = end;
}

Frame LineFramer::EndLine(uint64_t end, uint64_t next_begin) {
  const Frame frame = {
      .kind = state_.skipping ? Frame::Kind::kTooLong : Frame::Kind::kLine,
      .begin = state_.begin,
      .end = end,
  };
  state_.begin = next_begin;
  state_.scanned = next_begin;
  state_.skipping = false;
  return frame;
}

}  // namespace deka::ipc
