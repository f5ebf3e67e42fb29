// LineFramer against cutting the whole stream at its '\n': whatever pieces the bytes come in, and
// whatever the ring's size, the same lines are told.
//
// Input: one byte for the ring's size, one for the limit, one for the sizes of the pieces, then the
// stream.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "ipc/line_framer.h"

namespace {

using deka::ipc::Frame;
using deka::ipc::LineFramer;
using deka::ipc::RingSpans;
using deka::ipc::RingView;

void Require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 3) return 0;
  const uint64_t capacity = uint64_t{1} << (1 + data[0] % 8);
  const uint64_t line_bytes_max = data[1] % capacity;
  uint32_t seed = data[2];
  const std::string_view stream(reinterpret_cast<const char*>(data) + 3, size - 3);

  std::string ring(capacity, '\0');
  LineFramer framer({.line_bytes_max = line_bytes_max});
  uint64_t received = 0;
  uint64_t expected_begin = 0;

  const auto check = [&](const Frame& frame, bool finished) {
    const uint64_t end = std::min<uint64_t>(stream.find('\n', expected_begin), stream.size());
    const std::string_view line = stream.substr(expected_begin, end - expected_begin);
    Require(frame.begin == expected_begin && frame.end == end);
    expected_begin = std::min<uint64_t>(end + 1, stream.size());
    if (line.size() > line_bytes_max) {
      Require(frame.kind == Frame::Kind::kTooLong);
      Require(framer.first_bytes() == line.substr(0, LineFramer::kFirstBytes));
      return;
    }
    Require(frame.kind == (finished ? Frame::Kind::kPartial : Frame::Kind::kLine));
    const RingSpans spans =
        deka::ipc::SpansOf({ring.data(), capacity, received}, frame.begin, frame.end);
    Require(std::string(spans.first).append(spans.second) == line);
  };

  while (received < stream.size()) {
    const uint64_t room = capacity - (received - framer.position());
    Require(room > 0);
    seed = seed * 1664525 + 1013904223;
    const uint64_t count =
        std::min<uint64_t>({room, stream.size() - received, 1 + (seed >> 16) % capacity});
    for (uint64_t i = 0; i < count; ++i, ++received) ring[received % capacity] = stream[received];
    for (;;) {
      const Frame frame = framer.Next({ring.data(), capacity, received});
      if (frame.kind == Frame::Kind::kNeedMore) break;
      check(frame, false);
    }
    if (seed >> 31) framer = LineFramer({.line_bytes_max = line_bytes_max}, framer.state());
  }
  const Frame last = framer.Finish({ring.data(), capacity, received});
  if (last.kind == Frame::Kind::kNeedMore) {
    Require(stream.empty() || stream.back() == '\n');
  } else {
    check(last, true);
  }
  Require(framer.position() == stream.size());
  return 0;
}
