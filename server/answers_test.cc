#include "server/answers.h"

#include <gtest/gtest.h>

namespace deka::server {
namespace {

TEST(Answers, NumbersFromOne) {
  Answers answers;
  EXPECT_EQ(answers.next_number(), 1);
  EXPECT_EQ(answers.Add(), 1);
  EXPECT_EQ(answers.Add(), 2);
  EXPECT_EQ(answers.next_number(), 3);
}

TEST(Answers, AreToldTogetherThroughTheNewest) {
  Answers answers;
  for (int i = 0; i < 5; ++i) answers.Add();
  EXPECT_FALSE(answers.HasNext());
  answers.Set(2, absl::OkStatus());
  answers.Set(3, absl::OkStatus());
  EXPECT_FALSE(answers.HasNext());  // 1 comes first
  answers.Set(1, absl::OkStatus());
  ASSERT_TRUE(answers.HasNext());
  const Answers::Answer answer = answers.Take();
  EXPECT_TRUE(answer.status.ok());
  EXPECT_EQ(answer.number, 3);
  EXPECT_FALSE(answers.HasNext());
  EXPECT_EQ(answers.size(), 2u);
}

TEST(Answers, FailuresStandAlone) {
  Answers answers;
  for (int i = 0; i < 4; ++i) answers.Add();
  answers.Set(1, absl::OkStatus());
  answers.Set(2, absl::NotFoundError("2"));
  answers.Set(3, absl::NotFoundError("3"));
  answers.Set(4, absl::OkStatus());
  Answers::Answer answer = answers.Take();
  EXPECT_EQ(answer.number, 1);
  EXPECT_TRUE(answer.status.ok());
  answer = answers.Take();
  EXPECT_EQ(answer.number, 2);
  EXPECT_EQ(answer.status, absl::NotFoundError("2"));
  answer = answers.Take();
  EXPECT_EQ(answer.number, 3);
  EXPECT_EQ(answer.status, absl::NotFoundError("3"));
  answer = answers.Take();
  EXPECT_EQ(answer.number, 4);
  EXPECT_TRUE(answer.status.ok());
  EXPECT_TRUE(answers.empty());
}

TEST(Answers, NumbersGoOnWhenAllIsAnswered) {
  Answers answers;
  EXPECT_EQ(answers.Add(), 1);
  answers.Set(1, absl::OkStatus());
  EXPECT_EQ(answers.Take().number, 1);
  EXPECT_TRUE(answers.empty());
  EXPECT_EQ(answers.Add(), 2);
  answers.Set(2, absl::OkStatus());
  EXPECT_EQ(answers.Take().number, 2);
}

}  // namespace
}  // namespace deka::server
