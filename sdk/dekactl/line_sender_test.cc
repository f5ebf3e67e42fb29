#include "sdk/dekactl/line_sender.h"

#include <unistd.h>

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace deka::dekactl {
namespace {

using Strings = std::vector<std::string>;

class LineSenderTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(pipe(pipe_), 0); }
  void TearDown() override { close(pipe_[0]); }

  // Everything that will be read.
  void Write(std::string_view text) {
    ASSERT_EQ(write(pipe_[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
    close(pipe_[1]);
  }

  // The attachment, which refuses "bad" before it gives it a number.
  LineSender::Send Send() {
    return [this](std::string_view message) -> absl::StatusOr<int64_t> {
      if (message == "bad") {
        return absl::InvalidArgumentError("bad");
      }
      sent_.emplace_back(message);
      return static_cast<int64_t>(sent_.size());
    };
  }

  int pipe_[2];
  Strings sent_;
};

TEST_F(LineSenderTest, BlankLinesAreCountedAndNotSent) {
  LineSender lines(pipe_[0]);
  Write("\n1\n \t\r\n\n2\n\n3");
  while (!lines.done()) {
    ASSERT_TRUE(lines.Read().ok());
    ASSERT_TRUE(lines.SendRead(Send()).ok());
  }
  EXPECT_EQ(sent_, (Strings{"1", "2", "3"}));
  EXPECT_EQ(lines.LineOf(1), 2);
  EXPECT_EQ(lines.LineOf(2), 5);
  EXPECT_EQ(lines.LineOf(3), 7);
  EXPECT_EQ(lines.LineOf(4), 0);
}

TEST_F(LineSenderTest, IsNotDoneBeforeTheLastLineHasFoundRoom) {
  LineSender lines(pipe_[0], {.messages_max = 2, .bytes_max = 100});
  Write("1\n2\n3\n4");
  ASSERT_TRUE(lines.Read().ok());
  ASSERT_TRUE(lines.SendRead(Send()).ok());
  EXPECT_EQ(sent_, (Strings{"1", "2"}));
  EXPECT_FALSE(lines.WantsInput());
  lines.Answered(2);
  ASSERT_TRUE(lines.SendRead(Send()).ok());
  EXPECT_EQ(sent_, (Strings{"1", "2", "3"}));
  ASSERT_TRUE(lines.WantsInput()) << "the last line has not ended";
  ASSERT_TRUE(lines.Read().ok());
  EXPECT_FALSE(lines.done());
  ASSERT_TRUE(lines.SendRead(Send()).ok());
  EXPECT_EQ(sent_, (Strings{"1", "2", "3", "4"}));
  EXPECT_FALSE(lines.done()) << "it has not seen that nothing is left";
  lines.Answered(4);
  ASSERT_TRUE(lines.SendRead(Send()).ok());
  EXPECT_TRUE(lines.done());
}

TEST_F(LineSenderTest, BytesAreARoomToo) {
  LineSender lines(pipe_[0], {.messages_max = 100, .bytes_max = 6});
  Write("123\n456\n789\n");
  ASSERT_TRUE(lines.Read().ok());
  ASSERT_TRUE(lines.SendRead(Send()).ok());
  EXPECT_EQ(sent_.size(), 2u);
  EXPECT_FALSE(lines.WantsInput());
  lines.Answered(1);
  ASSERT_TRUE(lines.SendRead(Send()).ok());
  EXPECT_EQ(sent_.size(), 3u);
  EXPECT_FALSE(lines.WantsInput()) << "it has not seen that nothing is left";
  lines.Answered(3);
  ASSERT_TRUE(lines.SendRead(Send()).ok());
  EXPECT_TRUE(lines.WantsInput());
}

TEST_F(LineSenderTest, GoesOnBehindALineThatWasRefused) {
  LineSender lines(pipe_[0]);
  Write("1\nbad\n3\n");
  ASSERT_TRUE(lines.Read().ok());
  EXPECT_FALSE(lines.SendRead(Send()).ok());
  EXPECT_EQ(lines.line(), 2);
  EXPECT_TRUE(lines.SendRead(Send()).ok());
  EXPECT_EQ(sent_, (Strings{"1", "3"}));
  EXPECT_EQ(lines.LineOf(2), 3);
}

TEST_F(LineSenderTest, AccountsForEveryLine) {
  LineSender lines(pipe_[0]);
  Write("\n1\n2\n\n3\n");
  EXPECT_EQ(lines.Account(), "no line was sent");
  ASSERT_TRUE(lines.Read().ok());
  ASSERT_TRUE(lines.SendRead(Send()).ok());
  EXPECT_EQ(lines.Account(), "lines 2 to 5 may be written or not, no further ones are");
  EXPECT_FALSE(lines.all_answered());
  lines.Answered(1);
  EXPECT_EQ(lines.Account(),
            "written up to line 2; lines 3 to 5 may be written or not, no further ones are");
  lines.Answered(2);
  EXPECT_EQ(lines.Account(),
            "written up to line 3; line 5 may be written or not, no further ones are");
  lines.Answered(3);
  EXPECT_EQ(lines.Account(), "written up to line 5 and no further");
  EXPECT_TRUE(lines.all_answered());
}

}  // namespace
}  // namespace deka::dekactl
