#include "sdk/dekactl/line_reader.h"

#include <unistd.h>

#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"

namespace deka::dekactl {
namespace {

class LineReaderTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(pipe(pipe_), 0); }
  void TearDown() override {
    close(pipe_[0]);
    CloseWriter();
  }

  void Write(std::string_view text) {
    ASSERT_EQ(write(pipe_[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  void CloseWriter() {
    if (pipe_[1] >= 0) {
      close(pipe_[1]);
      pipe_[1] = -1;
    }
  }
  static std::vector<std::string> Lines(LineReader& reader) {
    std::vector<std::string> lines;
    while (const std::optional<std::string> line = reader.Next()) {
      lines.push_back(*line);
    }
    return lines;
  }

  int pipe_[2];
};

using Strings = std::vector<std::string>;

TEST_F(LineReaderTest, GivesWholeLinesHoweverTheyArrive) {
  LineReader reader(pipe_[0]);
  std::string all;
  for (const char letter : std::string("one\n\ntwo\n")) {
    Write(std::string_view(&letter, 1));
    ASSERT_TRUE(reader.Read().ok());
    for (const std::string& line : Lines(reader)) {
      all += line + "|";
    }
  }
  EXPECT_EQ(all, "one||two|");
}

TEST_F(LineReaderTest, GivesSeveralLinesOfOneRead) {
  LineReader reader(pipe_[0]);
  Write("1\n2\n3");
  ASSERT_TRUE(reader.Read().ok());
  EXPECT_EQ(Lines(reader), Strings({"1", "2"}));
  EXPECT_FALSE(reader.at_end());
}

TEST_F(LineReaderTest, GivesTheUnfinishedLineAtTheEnd) {
  LineReader reader(pipe_[0]);
  Write("1\nhalf");
  CloseWriter();
  ASSERT_TRUE(reader.Read().ok());
  EXPECT_EQ(Lines(reader), Strings({"1"}));
  ASSERT_TRUE(reader.Read().ok());
  EXPECT_TRUE(reader.at_end());
  EXPECT_EQ(Lines(reader), Strings({"half"}));
  EXPECT_EQ(Lines(reader), Strings());
}

TEST_F(LineReaderTest, GivesNoLineAtAnEndBehindALineBreak) {
  LineReader reader(pipe_[0]);
  Write("1\n");
  CloseWriter();
  ASSERT_TRUE(reader.Read().ok());
  ASSERT_TRUE(reader.Read().ok());
  EXPECT_EQ(Lines(reader), Strings({"1"}));
}

TEST_F(LineReaderTest, TakesALineAtTheLimitAndRefusesALongerOne) {
  LineReader reader(pipe_[0], 4);
  Write("1234");
  ASSERT_TRUE(reader.Read().ok());
  EXPECT_EQ(Lines(reader), Strings());
  Write("\n12345");
  ASSERT_TRUE(reader.Read().ok());
  EXPECT_EQ(Lines(reader), Strings({"1234"}));
  const absl::Status status = reader.Read();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

TEST(LineReaderOfNothingTest, SaysWhyItCannotRead) {
  LineReader reader(-1);
  EXPECT_EQ(reader.Read().message(), "cannot read standard input: Bad file descriptor");
}

}  // namespace
}  // namespace deka::dekactl
