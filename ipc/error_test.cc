#include "ipc/error.h"

#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"

namespace deka::ipc {
namespace {

std::vector<Reason> AllReasons() {
  std::vector<Reason> reasons;
  for (int i = 0; i <= static_cast<int>(Reason::kInternal); ++i) {
    reasons.push_back(static_cast<Reason>(i));
  }
  return reasons;
}

TEST(ErrorTest, EveryReasonComesBackWithItsCode) {
  for (const Reason reason : AllReasons()) {
    const absl::Status status = MakeError(reason, "what, why, what next");
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(ReasonOf(status), reason);
    EXPECT_EQ(status.code(), CodeOf(reason));
    EXPECT_EQ(status.message(), "what, why, what next");
    EXPECT_TRUE(MetadataOf(status).empty());
  }
}

TEST(ErrorTest, NamesAreUniqueAndReadBack) {
  std::set<std::string_view> names;
  for (const Reason reason : AllReasons()) {
    const std::string_view name = ReasonName(reason);
    EXPECT_TRUE(names.insert(name).second) << name;
    EXPECT_EQ(ReasonFromName(name), reason);
    // What google.rpc.ErrorInfo asks of a reason.
    EXPECT_FALSE(name.empty());
    EXPECT_LE(name.size(), 63u);
    EXPECT_EQ(name.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ_"), std::string_view::npos);
  }
  EXPECT_EQ(ReasonFromName("NO_SUCH_REASON"), std::nullopt);
  EXPECT_EQ(ReasonFromName(""), std::nullopt);
}

TEST(ErrorTest, CodesSayWhatToDoNext) {
  EXPECT_EQ(CodeOf(Reason::kQueueFull), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(CodeOf(Reason::kChannelClosed), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(CodeOf(Reason::kHandleUnsupported), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(CodeOf(Reason::kRequestIdReused), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(CodeOf(Reason::kCursorExpired), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(CodeOf(Reason::kOutcomeUnknown), absl::StatusCode::kUnknown);
  EXPECT_EQ(CodeOf(Reason::kStalled), absl::StatusCode::kAborted);
  EXPECT_EQ(ReasonName(Reason::kQueueFull), "QUEUE_FULL");
}

TEST(ErrorTest, ADelayIsGivenOnlyWhereRepeatingTheSameCallHelps) {
  for (const Reason reason : AllReasons()) {
    if (RetryDelayMs(reason) == 0) continue;
    EXPECT_GT(RetryDelayMs(reason), 0) << ReasonName(reason);
    EXPECT_TRUE(CodeOf(reason) == absl::StatusCode::kResourceExhausted ||
                CodeOf(reason) == absl::StatusCode::kUnavailable)
        << ReasonName(reason);
  }
  EXPECT_GT(RetryDelayMs(Reason::kQueueFull), 0);
  EXPECT_GT(RetryDelayMs(Reason::kDescriptorsExhausted), 0);
  EXPECT_GT(RetryDelayMs(Reason::kAgentStopping), 0);
  EXPECT_EQ(RetryDelayMs(Reason::kOutcomeUnknown), 0);
}

TEST(ErrorTest, MetadataTravelsSortedWithCopies) {
  const std::string binary("\0\n\xff", 3);
  absl::Status status =
      MakeError(Reason::kMessageTooLarge, "too large",
                {{"size", "9"}, {"limit", "1"}, {"limit", "8"}, {"name", binary}});
  const absl::StatusOr<int> carried(status);
  status = absl::OkStatus();
  const ErrorMetadata expected = {{"limit", "8"}, {"name", binary}, {"size", "9"}};
  EXPECT_EQ(MetadataOf(carried.status()), expected);
  EXPECT_EQ(MetadataOf(carried.status(), "limit"), "8");
  EXPECT_EQ(MetadataOf(carried.status(), "name"), binary);
  EXPECT_EQ(MetadataOf(carried.status(), "other"), std::nullopt);
  EXPECT_EQ(ReasonOf(carried.status()), Reason::kMessageTooLarge);
}

TEST(ErrorTest, StatusOfOthersHasNoReason) {
  EXPECT_EQ(ReasonOf(absl::OkStatus()), std::nullopt);
  EXPECT_EQ(ReasonOf(absl::InternalError("elsewhere")), std::nullopt);
  EXPECT_TRUE(MetadataOf(absl::OkStatus()).empty());
  EXPECT_EQ(MetadataOf(absl::OkStatus(), "limit"), std::nullopt);
  absl::Status foreign = absl::InternalError("elsewhere");
  foreign.SetPayload("type.googleapis.com/google.rpc.ErrorInfo", absl::Cord("x"));
  EXPECT_TRUE(MetadataOf(foreign).empty());
}

}  // namespace
}  // namespace deka::ipc
