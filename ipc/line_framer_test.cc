#include "ipc/line_framer.h"

#include <algorithm>
#include <ostream>
#include <string>
#include <type_traits>
#include <vector>

#include "gtest/gtest.h"

namespace deka::ipc {
namespace {

static_assert(std::is_trivially_copyable_v<LineFramer::State>);

// What a framer told, in readable form.
struct Told {
  Frame::Kind kind;
  std::string text;   // the line; of one that is too long its first bytes
  uint64_t size = 0;  // of the line

  bool operator==(const Told&) const = default;
};

Told Line(std::string text) { return {Frame::Kind::kLine, text, text.size()}; }
Told Partial(std::string text) { return {Frame::Kind::kPartial, text, text.size()}; }
Told TooLong(const std::string& line) {
  return {Frame::Kind::kTooLong, line.substr(0, LineFramer::kFirstBytes), line.size()};
}

std::ostream& operator<<(std::ostream& out, const Told& told) {
  return out << static_cast<int>(told.kind) << " \"" << told.text << "\" " << told.size;
}

// A stream that a framer reads through a ring of its own: received bytes overwrite what the framer
// does not need any more.
class Stream {
 public:
  Stream(uint64_t capacity, uint64_t line_bytes_max)
      : line_bytes_max_(line_bytes_max),
        ring_(capacity, '~'),
        framer_({.line_bytes_max = line_bytes_max}) {}

  // Bytes arrive `at_once` at a time, fewer if the ring has no room.
  void Receive(std::string_view bytes, size_t at_once) {
    while (!bytes.empty()) {
      const uint64_t room = ring_.size() - (end_ - framer_.position());
      ASSERT_GT(room, 0u) << "the framer holds on to a full ring";
      const size_t count = std::min<size_t>({bytes.size(), at_once, room});
      for (const char byte : bytes.substr(0, count)) ring_[end_++ % ring_.size()] = byte;
      bytes.remove_prefix(count);
      for (;;) {
        const Frame frame = framer_.Next(View());
        if (frame.kind == Frame::Kind::kNeedMore) break;
        Tell(frame);
      }
    }
  }

  void Finish() {
    const Frame frame = framer_.Finish(View());
    if (frame.kind != Frame::Kind::kNeedMore) Tell(frame);
    EXPECT_EQ(framer_.position(), end_);
    EXPECT_EQ(framer_.Finish(View()).kind, Frame::Kind::kNeedMore);
  }

  // Another framer goes on, with what the first one keeps.
  void Succeed() {
    const LineFramer::State state = framer_.state();
    framer_ = LineFramer({.line_bytes_max = line_bytes_max_}, state);
  }

  const std::vector<Told>& told() const { return told_; }
  uint64_t held() const { return end_ - framer_.position(); }
  LineFramer& framer() { return framer_; }

 private:
  RingView View() const { return {ring_.data(), ring_.size(), end_}; }

  void Tell(const Frame& frame) {
    Told told{frame.kind, "", frame.end - frame.begin};
    if (frame.kind == Frame::Kind::kTooLong) {
      told.text = framer_.first_bytes();
    } else {
      const RingSpans spans = SpansOf(View(), frame.begin, frame.end);
      told.text.append(spans.first).append(spans.second);
    }
    told_.push_back(told);
  }

  uint64_t line_bytes_max_;
  std::string ring_;
  LineFramer framer_;
  uint64_t end_ = 0;
  std::vector<Told> told_;
};

std::vector<Told> Frames(std::string_view bytes, size_t at_once, uint64_t capacity,
                         uint64_t line_bytes_max) {
  Stream stream(capacity, line_bytes_max);
  stream.Receive(bytes, at_once);
  stream.Finish();
  return stream.told();
}

TEST(LineFramerTest, TellsTheSameForEverySplit) {
  const std::string with_nul("[2,\xff,\t\"\0\"]", 10);
  const std::string bytes =
      "{\"a\":1}\n\n\"\xc3\xa9\xf0\x9f\x98\x80\"\r\n1\n" + with_nul + "\nhalf";
  const std::vector<Told> expected = {
      Line("{\"a\":1}"), Line(""),       Line("\"\xc3\xa9\xf0\x9f\x98\x80\"\r"),
      Line("1"),         Line(with_nul), Partial("half"),
  };

  for (size_t at_once = 1; at_once <= bytes.size(); ++at_once) {
    EXPECT_EQ(Frames(bytes, at_once, 64, 20), expected) << at_once;
    EXPECT_EQ(Frames(bytes, at_once, 32, 20), expected) << at_once << ", through a ring that wraps";
  }
  for (size_t first = 0; first <= bytes.size(); ++first) {
    Stream stream(64, 20);
    stream.Receive(std::string_view(bytes).substr(0, first), bytes.size());
    stream.Succeed();
    stream.Receive(std::string_view(bytes).substr(first), bytes.size());
    stream.Finish();
    EXPECT_EQ(stream.told(), expected) << first;
  }
}

TEST(LineFramerTest, ALineAtTheLimitIsALineAndOnePastIsTooLong) {
  const std::string at_limit(20, 'x'), past(21, 'y'), next = "next";
  const std::string bytes = at_limit + "\n" + past + "\n" + next + "\n" + at_limit + "\n";
  const std::vector<Told> expected = {Line(at_limit), TooLong(past), Line(next), Line(at_limit)};
  for (size_t at_once = 1; at_once <= bytes.size(); ++at_once) {
    for (const uint64_t capacity : {32, 64, 256}) {
      EXPECT_EQ(Frames(bytes, at_once, capacity, 20), expected) << at_once << " " << capacity;
    }
  }
}

TEST(LineFramerTest, AnEndlessLineHoldsNoBytesAndIsToldOnceWithItsSize) {
  std::string start;
  for (char c = ' '; c < 'z'; ++c) start += c;
  Stream stream(256, 100);
  stream.Receive(start, 7);
  for (int i = 0; i < 1000; ++i) {
    stream.Receive(std::string(1000, 'x'), 256);
    EXPECT_EQ(stream.held(), 0u);
  }
  EXPECT_TRUE(stream.told().empty());
  stream.Receive("end\nnext\n", 9);
  const std::vector<Told> expected = {
      {Frame::Kind::kTooLong, start.substr(0, 64), start.size() + 1000000 + 3}, Line("next")};
  EXPECT_EQ(stream.told(), expected);
}

TEST(LineFramerTest, TheFirstBytesOfALineThatIsTooLongAreGathered) {
  const std::string line = "0123456789abcdef";
  for (size_t at_once = 1; at_once <= line.size() + 1; ++at_once) {
    EXPECT_EQ(Frames(line + "\n", at_once, 8, 4), std::vector<Told>{TooLong(line)}) << at_once;
  }
  const std::string one_past = "01234";
  EXPECT_EQ(Frames(one_past + "\n" + line + "\n", 3, 8, 4),
            (std::vector<Told>{TooLong(one_past), TooLong(line)}));
}

TEST(LineFramerTest, TheEndOfTheStreamTellsWhatIsLeft) {
  EXPECT_EQ(Frames("", 1, 8, 4), std::vector<Told>{});
  EXPECT_EQ(Frames("a\n", 1, 8, 4), std::vector<Told>{Line("a")});
  EXPECT_EQ(Frames("a\nbcde", 1, 8, 4), (std::vector<Told>{Line("a"), Partial("bcde")}));
  EXPECT_EQ(Frames("a\nbcdef", 1, 8, 4), (std::vector<Told>{Line("a"), TooLong("bcdef")}));
}

TEST(LineFramerTest, ASuccessorGoesOnInTheMiddleOfALineThatIsTooLong) {
  const std::string line(50, 'z');
  for (size_t first = 0; first <= line.size(); ++first) {
    Stream stream(16, 10);
    stream.Receive(line.substr(0, first), 5);
    stream.Succeed();
    stream.Receive(line.substr(first) + "\nok\n", 5);
    EXPECT_EQ(stream.told(), (std::vector<Told>{TooLong(line), Line("ok")})) << first;
  }
}

TEST(LineFramerTest, StartsAtAnyPositionOfTheStream) {
  const std::string ring = "ef\nghi\nabcd\n....";
  // The stream's bytes [7, 23): "abcd\n....", then what wrapped.
  LineFramer framer({.line_bytes_max = 12}, {.begin = 7, .scanned = 7});
  const Frame first = framer.Next({ring.data(), 16, 23});
  EXPECT_EQ(first.kind, Frame::Kind::kLine);
  EXPECT_EQ(first.begin, 7u);
  EXPECT_EQ(first.end, 11u);
  const Frame second = framer.Next({ring.data(), 16, 23});
  EXPECT_EQ(second.begin, 12u);
  EXPECT_EQ(second.end, 18u);
  const RingSpans spans = SpansOf({ring.data(), 16, 23}, second.begin, second.end);
  EXPECT_EQ(spans.first, "....");
  EXPECT_EQ(spans.second, "ef");
  EXPECT_EQ(framer.position(), 19u);
}

TEST(LineFramerTest, NoByteIsScannedTwice) {
  // If it were, a line of n bytes that comes byte by byte would take n * n / 2 steps: half a day.
  constexpr uint64_t kCapacity = 1 << 20;
  std::string ring(kCapacity, 'x');
  LineFramer framer({.line_bytes_max = kCapacity - 1});
  for (uint64_t end = 1; end < kCapacity; ++end) {
    ASSERT_EQ(framer.Next({ring.data(), kCapacity, end}).kind, Frame::Kind::kNeedMore);
    ASSERT_EQ(framer.state().scanned, end);
  }
  ring[kCapacity - 1] = '\n';
  EXPECT_EQ(framer.Next({ring.data(), kCapacity, kCapacity}).kind, Frame::Kind::kLine);
}

TEST(LineFramerTest, OffsetsGoBeyond32Bits) {
  constexpr uint64_t kBase = (uint64_t{1} << 40) + 3;
  std::string ring(16, '\0');
  const std::string bytes = "abcdefghij\nk";
  for (size_t i = 0; i < bytes.size(); ++i) ring[(kBase + i) % 16] = bytes[i];
  LineFramer framer({.line_bytes_max = 15}, {.begin = kBase, .scanned = kBase});
  const Frame frame = framer.Next({ring.data(), 16, kBase + bytes.size()});
  EXPECT_EQ(frame.kind, Frame::Kind::kLine);
  EXPECT_EQ(frame.begin, kBase);
  EXPECT_EQ(frame.end, kBase + 10);
}

}  // namespace
}  // namespace deka::ipc
