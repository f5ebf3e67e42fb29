// Cuts a stream of bytes into lines. It does no IO and holds no bytes.
//
//   socket -> inbox ring, positions are offsets in the stream
//                 |  Next(view)
//                 v
//   kNeedMore | kLine [begin, end) | kTooLong {first bytes, total size}
//
// A line ends with '\n', which is not part of it; a '\r' before it is. An empty line is a line. A
// line of more than line_bytes_max bytes is told once, when its end comes, and the framing goes on
// with the next; its bytes may be overwritten as soon as they were scanned.
//
//   LineFramer framer({.line_bytes_max = 1 << 20});
//   for (;;) {
//     Frame frame = framer.Next({ring, capacity, received});
//     if (frame.kind == Frame::Kind::kNeedMore) break;
//     ... the bytes [frame.begin, frame.end) of the stream ...
//   }
//   // Bytes before framer.position() are not needed any more.
//
// Time is linear: no byte is scanned twice. The state is plain data, so it may be kept in memory
// that outlives the process. A framer that starts at the first byte of a line needs no state but
// that position.
#ifndef IPC_LINE_FRAMER_H_
#define IPC_LINE_FRAMER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace deka::ipc {

// A ring of bytes: the byte at offset p of the stream lies at data[p % capacity].
struct RingView {
  const char* data = nullptr;
  uint64_t capacity = 0;  // a power of two
  uint64_t end = 0;       // offset behind the last byte received
};

// Two spans of a ring that are one piece of the stream; the second is empty if it does not wrap.
struct RingSpans {
  std::string_view first;
  std::string_view second;
};
RingSpans SpansOf(const RingView& ring, uint64_t begin, uint64_t end);

// The bytes [begin, end) of the stream in one piece: in place if they do not wrap, else copied into
// `scratch`.
std::string_view InOnePiece(const RingView& ring, uint64_t begin, uint64_t end,
                            std::string& scratch);

// Offset of the first '\n' in [begin, end) of the stream; `end` if there is none.
uint64_t FindBreak(const RingView& ring, uint64_t begin, uint64_t end);

struct Frame {
  enum class Kind {
    kNeedMore,  // no whole line is there
    kLine,      // [begin, end), its '\n' at `end`
    kTooLong,   // a line of end - begin bytes; its bytes may be gone, see first_bytes()
    kPartial,   // from Finish() only: [begin, end) is what stood behind the last '\n'
  };
  Kind kind = Kind::kNeedMore;
  uint64_t begin = 0;
  uint64_t end = 0;
};

class LineFramer {
 public:
  struct Options {
    uint64_t line_bytes_max = 1 << 20;  // without '\n'; the ring holds at least one byte more
  };

  static constexpr size_t kFirstBytes = 64;

  // Plain data, all zero for a new stream.
  struct State {
    uint64_t begin = 0;                  // of the line that is being read
    uint64_t scanned = 0;                // no '\n' in [begin, scanned)
    char first_bytes[kFirstBytes] = {};  // of the last line that was too long
    uint8_t first_bytes_size = 0;
    bool skipping = false;  // the line is too long: its bytes before `scanned` may be gone
  };

  explicit LineFramer(Options options);
  // Goes on where `state` stands.
  LineFramer(Options options, const State& state);

  // The next line of the stream. The ring holds the bytes [position(), ring.end).
  Frame Next(const RingView& ring);

  // The stream has ended and Next() answered kNeedMore: kPartial, kTooLong, or kNeedMore if the
  // stream ended between two lines.
  Frame Finish(const RingView& ring);

  // Offset of the first byte that is still needed.
  uint64_t position() const { return state_.skipping ? state_.scanned : state_.begin; }

  // After kTooLong, until the next line that is too long: its first 64 bytes, or all if it has
  // fewer.
  std::string_view first_bytes() const { return {state_.first_bytes, state_.first_bytes_size}; }

  const State& state() const { return state_; }

 private:
  // The line has ended at `end`; the next begins at `next_begin`.
  Frame EndLine(uint64_t end, uint64_t next_begin);
  // [scanned, end) is part of the line, without its end.
  void Scan(const RingView& ring, uint64_t end);

  Options options_;
  State state_;
};

}  // namespace deka::ipc

#endif  // IPC_LINE_FRAMER_H_
