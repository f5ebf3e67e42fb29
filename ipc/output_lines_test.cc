#include "ipc/output_lines.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace deka::ipc {
namespace {

constexpr uint64_t kCapacity = 1 << 17;

// Lines cut from a ring that is filled piece by piece, as OutputInbox does.
class Source {
 public:
  // Positions begin so that what comes soon wraps.
  explicit Source(size_t line_bytes_max)
      : ring_(kCapacity, '\0'), end_(kCapacity - 7), lines_(2, line_bytes_max, end_) {}

  void Append(std::string_view bytes) {
    for (const char byte : bytes) ring_[end_++ % kCapacity] = byte;
    ASSERT_LT(end_ - lines_.position(), kCapacity);
  }
  void End() { ended_ = true; }
  std::optional<OutputLine> Next() {
    return lines_.Next({ring_.data(), kCapacity, end_}, ended_, scratch_);
  }

 private:
  std::string ring_;
  std::string scratch_;
  uint64_t end_;
  OutputLines lines_;
  bool ended_ = false;
};

// "text" for a line, "text+" for a piece, "text!" for one without its end.
std::vector<std::string> Drain(Source& lines) {
  std::vector<std::string> all;
  while (const std::optional<OutputLine> line = lines.Next()) {
    EXPECT_EQ(line->descriptor, 2);
    all.push_back(std::string(line->text) + (line->partial ? "+" : "") +
                  (line->unterminated ? "!" : ""));
  }
  return all;
}

std::vector<std::string> Cut(std::string_view bytes, size_t chunk, size_t line_bytes_max) {
  Source lines(line_bytes_max);
  std::vector<std::string> all;
  const auto drain = [&] {
    for (std::string& line : Drain(lines)) all.push_back(std::move(line));
  };
  while (!bytes.empty()) {
    lines.Append(bytes.substr(0, chunk));
    bytes.remove_prefix(std::min(chunk, bytes.size()));
    drain();
  }
  lines.End();
  drain();
  return all;
}

TEST(OutputLinesTest, EverySplitOfTheSameBytesGivesTheSameLines) {
  const std::string bytes("one\n\ntwo\r\nth\0ree\n12345\n123456\nlast", 34);
  const std::vector<std::string> expected = {
      "one", "", "two\r", std::string("th\0re", 5) + "+", "e", "12345", "12345+", "6", "last!"};
  for (size_t chunk = 1; chunk <= bytes.size(); ++chunk) {
    EXPECT_EQ(Cut(bytes, chunk, 5), expected) << chunk;
  }
}

TEST(OutputLinesTest, ALineAtTheLimitIsWholeAndOnePastIsCut) {
  using Lines = std::vector<std::string>;
  EXPECT_EQ(Cut("12345\n", 99, 5), Lines({"12345"}));
  EXPECT_EQ(Cut("123456\n", 99, 5), Lines({"12345+", "6"}));
  EXPECT_EQ(Cut("12345", 99, 5), Lines({"12345!"}));
  EXPECT_EQ(Cut("123456", 99, 5), Lines({"12345+", "6!"}));
}

TEST(OutputLinesTest, ACutNeverSplitsACharacter) {
  using Lines = std::vector<std::string>;
  for (size_t chunk = 1; chunk < 12; ++chunk) {
    EXPECT_EQ(Cut("aä€😀b\n", chunk, 4), Lines({"aä+", "€+", "😀+", "b"})) << chunk;
    // A limit below the size of a character cannot be kept otherwise.
    EXPECT_EQ(Cut("ä\n", chunk, 1), Lines({"\xc3+", "\xa4"})) << chunk;
  }
}

TEST(OutputLinesTest, NothingIsToldOfNothing) {
  EXPECT_TRUE(Cut("", 1, 5).empty());
  EXPECT_EQ(Cut("\n", 1, 5), std::vector<std::string>({""}));
}

TEST(OutputLinesTest, LinesMayBeTakenLater) {
  Source lines(10);
  lines.Append("a\nb\nc");
  EXPECT_EQ(lines.Next()->text, "a");
  lines.Append("d\n");
  lines.End();
  EXPECT_EQ(Drain(lines), std::vector<std::string>({"b", "cd"}));
  EXPECT_FALSE(lines.Next().has_value());
}

TEST(OutputLinesTest, GoesOnFromTheFirstByteThatWasNotTold) {
  const std::string ring = "one\ntwo\nthr" + std::string(4, '\0');
  const RingView view = {ring.data(), 16, 11};
  std::string scratch;
  OutputLines first(1, 99);
  EXPECT_EQ(first.Next(view, false, scratch)->text, "one");
  OutputLines second(1, 99, first.position());
  EXPECT_EQ(second.Next(view, false, scratch)->text, "two");
  EXPECT_FALSE(second.Next(view, false, scratch).has_value());
  OutputLines third(1, 99, second.position());
  EXPECT_EQ(third.Next(view, true, scratch)->text, "thr");
}

TEST(OutputLinesTest, ALongLineTakesLinearTimeAndComesWhole) {
  const std::string line(8 << 20, 'x');
  Source lines(64 << 10);
  std::string all;
  for (size_t i = 0; i < line.size(); i += 1000) {
    lines.Append(std::string_view(line).substr(i, 1000));
    while (const std::optional<OutputLine> piece = lines.Next()) {
      EXPECT_TRUE(piece->partial);
      all += piece->text;
    }
  }
  lines.Append("\n");
  const std::optional<OutputLine> rest = lines.Next();
  ASSERT_TRUE(rest.has_value());
  EXPECT_FALSE(rest->partial);
  all += rest->text;
  EXPECT_EQ(all, line);
}

}  // namespace
}  // namespace deka::ipc
